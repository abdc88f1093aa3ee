//! What can go wrong.
//!
//! Key type: [`SymbolsError`].

use std::path::PathBuf;

/// Why others cannot be told of code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolsError {
    /// A file for `perf` that cannot be written.
    #[error("cannot write {} for perf: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
