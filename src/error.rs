//! What can go wrong for a user of this crate.

use trampoline::TrampError;
use trampoline::model::ModelError;

/// Errors of this crate. After each of them everything is as it was before the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hook has been detached before. Kernel: `-ENOENT`.
    #[error("this hook is detached already")]
    AlreadyDetached,
    /// `attach` without a program.
    #[error("nothing to attach: give the hook a program first (on_entry, on_exit, ...)")]
    NoProgram,
    /// The function's signature has no model. Kernel: `-EINVAL`.
    #[error("this signature cannot be hooked: {0}")]
    Model(#[from] ModelError),
    /// From finding the function, generating the image, or changing text.
    #[error(transparent)]
    Tramp(#[from] TrampError),
    /// Others cannot be told of code.
    #[error(transparent)]
    Symbols(#[from] symbols::SymbolsError),
}

impl From<text::TextError> for Error {
    fn from(e: text::TextError) -> Self {
        Error::Tramp(e.into())
    }
}

impl From<pack_alloc::PackError> for Error {
    fn from(e: pack_alloc::PackError) -> Self {
        Error::Tramp(e.into())
    }
}
