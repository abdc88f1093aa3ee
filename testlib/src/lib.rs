//! C functions with patchable entries, for the tests of this workspace.
//!
//! - [`functions`]: functions written by hand, one per thing that a hook can get wrong.
//! - [`ops`]: callers of tables of functions.
//! - [`throws`]: functions that C++ exceptions pass through.
//! - [`abi`]: hundreds of generated functions, each with a caller, and a gate between the two that
//!   sees every register and stack word that passes.
//! - [`sig`]: the random signatures of those.
//!
//! The C and the C++ are compiled for riscv64 with `-fpatchable-function-entry=5`, whatever the environment
//! says. On other targets only [`sig`] is there.

#[cfg(target_arch = "riscv64")]
pub mod abi;
#[cfg(target_arch = "riscv64")]
pub mod functions;
#[cfg(target_arch = "riscv64")]
pub mod ops;
pub mod sig;
#[cfg(target_arch = "riscv64")]
pub mod throws;
