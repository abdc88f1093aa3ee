//! A small server whose congestion control is a plugin, swapped while it works.
//!
//! `cargo xtask demo struct_ops` runs this. It checks everything that it says, and fails if
//! anything is off. `policy.rs` has the table and its versions, `server.rs` the server, which calls
//! the table as C code would: by a pointer that it has got once.

use std::process::ExitCode;

#[cfg(target_arch = "riscv64")]
#[path = "struct_ops_plugin/demo.rs"]
mod demo;
#[cfg(target_arch = "riscv64")]
#[path = "struct_ops_plugin/policy.rs"]
mod policy;
#[cfg(target_arch = "riscv64")]
#[path = "struct_ops_plugin/server.rs"]
mod server;

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
    eprintln!("This demo runs on riscv64 only; `cargo xtask demo struct_ops` brings its own.");
    ExitCode::FAILURE
}
