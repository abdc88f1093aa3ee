//! The lab's half that runs where the code under test runs.
//!
//! In a VM it is the first process (`lab-init`, see `main.rs`); on a riscv64
//! machine, and for the host's own tests, `xtask` calls the same [`runner`] in
//! its own process. So a test is listed, limited, killed and counted in one way
//! wherever it runs.
//!
//! - [`job`]: what is to be run ([`job::Job`]) and for how long.
//! - [`runner`]: runs jobs and tells what happens as [`protocol::Event`]s.
//! - [`protocol`]: those events as lines on a serial console that the kernel
//!   writes to as well.

pub mod job;
pub mod protocol;
pub mod runner;
