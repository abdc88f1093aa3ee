//! Functions of libraries that everybody has, hooked by their names while four threads use them:
//! zlib, OpenSSL's libcrypto and the C library, as Debian ships them, compiled without a thought of
//! hooks.
//!
//! `cargo xtask demo hook_any` runs this. It checks everything that it says, and fails if anything
//! is off.

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
    eprintln!("This demo runs on riscv64 only; `cargo xtask demo hook_any` brings its own.");
    ExitCode::FAILURE
}
