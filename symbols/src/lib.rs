//! What others are told of code that is made at run time: `perf`, gdb, unwinders.
//!
//! ```text
//!              ┌─▶ unwind   .eh_frame, registered with libgcc     backtrace(), exceptions
//!   CodeInfo ──┼─▶ gdb      an ELF object, JIT interface          gdb, lldb
//!   publish    ├─▶ map      /tmp/perf-PID.map                     perf report
//!              └─▶ dump     jit-PID.dump                          perf inject --jit
//! ```
//!
//! The unwinder is always told; the others as [`Tools`] say. What [`publish`] returns takes it back
//! when it is dropped, which must come before the code is gone.
//!
//! | module | holds |
//! | --- | --- |
//! | `info` | [`CodeInfo`]: symbols, lines, [`Unwind`], [`Landing`] |
//! | `unwind` | `.eh_frame`, and who reads it |
//! | `elf`, `line` | the object for gdb, with its line table |
//! | `gdb` | the JIT interface |
//! | `map`, `dump` | files for `perf` |
//! | `bytes` | numbers as DWARF and ELF write them |
//!
//! Whoever calls [`publish`], or drops what it gave, holds a lock that is held across `fork`: the
//! locks here are not.
//!
//! Neighbours: `text` has the addresses. Source: see the modules.

mod bytes;
mod dump;
mod elf;
mod error;
mod file;
mod gdb;
mod info;
mod line;
mod map;
mod unwind;

pub use error::SymbolsError;
pub use info::{Cfa, CodeInfo, Landing, LineEntry, Row, SavedFrom, Symbol, Unwind};
pub use unwind::resume_addr;

bitflags::bitflags! {
    /// Who is told of code.
    #[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
    pub struct Tools: u8 {
        /// gdb and what else knows its JIT interface: an object in memory for each piece of code.
        const GDB = 1 << 0;
        /// `/tmp/perf-PID.map`. It says where code is now, not what was there before.
        const PERF_MAP = 1 << 1;
        /// `jit-PID.dump`, in `JITDUMPDIR` or the current directory, for `perf record -k mono` and
        /// `perf inject --jit`. It knows times and lines, and the code that is gone.
        const JITDUMP = 1 << 2;
    }
}

/// The environment's say: words of `gdb`, `perf-map`, `jitdump`, with commas between.
pub const TOOLS_VAR: &str = "RVBPF_TOOLS";

impl Tools {
    /// What [`TOOLS_VAR`] says; where it is not set, gdb alone. Words that nobody knows are passed
    /// over: a program should not fail by them.
    #[must_use]
    pub fn from_env() -> Self {
        match std::env::var(TOOLS_VAR) {
            Ok(words) => Self::of_words(&words),
            Err(_) => Self::GDB,
        }
    }

    fn of_words(words: &str) -> Self {
        words
            .split(',')
            .map(|word| match word.trim() {
                "gdb" => Self::GDB,
                "perf-map" => Self::PERF_MAP,
                "jitdump" => Self::JITDUMP,
                _ => Self::empty(),
            })
            .collect()
    }

    /// Opens the files that are wanted.
    ///
    /// # Errors
    /// [`SymbolsError::File`]
    pub fn open(self) -> Result<(), SymbolsError> {
        if self.contains(Self::PERF_MAP) {
            map::open()?;
        }
        if self.contains(Self::JITDUMP) {
            dump::open()?;
        }
        Ok(())
    }
}

impl Default for Tools {
    fn default() -> Self {
        Self::from_env()
    }
}

/// Code that others know of, for as long as this lives.
#[derive(Debug)]
pub struct Published {
    _unwind: unwind::Registered,
    _gdb: Option<gdb::Registered>,
    _map: Option<map::Registered>,
}

/// Tells `tools`, and the unwinder, of code that is in place already.
///
/// What cannot be written to a file is lost: code does not fail because nobody can watch it.
#[must_use]
pub fn publish(info: &CodeInfo<'_>, tools: Tools) -> Published {
    if tools.contains(Tools::JITDUMP) {
        dump::write(info);
    }
    Published {
        _unwind: unwind::Registered::new(info),
        _gdb: tools
            .contains(Tools::GDB)
            .then(|| gdb::Registered::new(elf::object(info))),
        _map: tools
            .contains(Tools::PERF_MAP)
            .then(|| map::Registered::new(info)),
    }
}

#[cfg(test)]
mod tests {
    use super::Tools;

    #[test]
    fn tools_have_words() {
        assert_eq!(
            Tools::of_words("perf-map, jitdump"),
            Tools::PERF_MAP | Tools::JITDUMP
        );
        assert_eq!(Tools::of_words("gdb,valgrind"), Tools::GDB);
        assert_eq!(Tools::of_words(""), Tools::empty());
    }
}
