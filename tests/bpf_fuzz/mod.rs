//! Random programs, in the interpreter and compiled: both must do the same.
//!
//! ```text
//!   seed ──▶ gen ──▶ Case ──▶ check ──▶ compare ──▶ Failure ──▶ shrink
//! ```
//!
//! | file | holds |
//! | --- | --- |
//! | `rng` | numbers that repeat, and the constants that programs are made of |
//! | `case` | a program with its memory and its arguments |
//! | `gen` | the generator: functions, calls, blocks |
//! | `stmt` | the generator: one statement |
//! | `profile` | what programs may be made of |
//! | `check` | a second look: nothing unset is read, no address becomes a value |
//! | `host` | the functions of the host that programs call |
//! | `compare` | both sides, and what differs |
//! | `kernel` | the same program in the running kernel |
//! | `crash` | which seed it was, when compiled code does not come back |
//! | `shrink` | a smaller program that fails, too |
//! | `verifier` | bytes that nobody has made to be accepted |
//!
//! `tests/bpf_fuzz.rs` runs a fixed number of seeds, `examples/bpf_fuzz` runs for a time.

pub(crate) mod case;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod crash;
// `gen` is a keyword.
#[path = "gen.rs"]
pub(crate) mod generate;
pub(crate) mod host;
pub(crate) mod kernel;
pub(crate) mod profile;
pub(crate) mod rng;
pub(crate) mod shrink;
mod stmt;
pub(crate) mod verifier;
