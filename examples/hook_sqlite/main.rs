//! SQLite, unmodified but for a compiler flag, traced, timed and fault-injected while it works.
//!
//! `cargo xtask demo` runs this. It checks everything that it says, and fails if anything is off.

use std::process::ExitCode;

#[cfg(target_arch = "riscv64")]
mod demo;

#[cfg(target_arch = "riscv64")]
fn main() -> ExitCode {
    match demo::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("\nThe demo FAILED: {why}.");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "riscv64"))]
fn main() -> ExitCode {
    eprintln!("This demo runs on riscv64 only; `cargo xtask demo` brings its own.");
    ExitCode::FAILURE
}
