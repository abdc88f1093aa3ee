//! What can go wrong.

use std::io;
use std::path::PathBuf;

use super::plot::PlotError;
use super::spec::SpecError;

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no option {found}; there are: {USAGE}")]
    UnknownOption { found: String },
    #[error("{option} wants a value")]
    NoValue { option: String },
    #[error("there is no layout {found}; there are: page, packed, hot-first, huge")]
    UnknownLayout { found: String },
    #[error("there is no order {found}; there are: round-robin, random, zipf")]
    UnknownOrder { found: String },
    #[error("the number of programs is from 1 to {MAX_PROGRAMS}, not {found}")]
    Programs { found: String },
    #[error("the number of runs is from 1 to 1000, not {found}")]
    Runs { found: String },
    #[error("a hart has a number, not {found}")]
    HartNumber { found: String },
    #[error("this thread cannot be pinned to hart {hart}: {error}")]
    Hart { hart: usize, error: io::Error },
    #[error("{path}, {error}", path = .path.display())]
    Spec { path: PathBuf, error: SpecError },
    #[error("{path}: {error}", path = .path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {error}", path = .path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("the plot of {metric} cannot be drawn: {error}")]
    Plot { metric: String, error: PlotError },
    #[error("program {number} is no plain code that runs through: the model would be wrong")]
    CodeNotPlain { number: u32 },
    #[error("programs were called, but not those that were meant ({order}, {nr} programs)")]
    WrongSum { order: &'static str, nr: usize },
    #[error("counters cannot be read: {0}")]
    Counters(io::Error),
    #[error(transparent)]
    Refused(#[from] rvbpf::bpf::Refusal),
    #[error(transparent)]
    Load(#[from] rvbpf::bpf::LoadError),
    #[error(transparent)]
    Pack(#[from] pack_alloc::PackError),
    #[error(transparent)]
    Text(#[from] text::TextError),
}

/// The most programs: 64 MiB at one page each.
pub(crate) const MAX_PROGRAMS: usize = 16384;

/// The options that there are.
pub(crate) const USAGE: &str = "--programs N,N --layout NAME,NAME --order NAME,NAME --tlb FILE \
                                --runs N --hart N --out FOLDER";
