//! C functions with patchable entries, for the tests of this workspace.
//!
//! - [`functions`]: functions written by hand, one per thing that a hook can get wrong.
//! - [`ops`]: callers of tables of functions.
//! - [`ON_LOAD`]: a library that calls back when it is opened.
//! - [`TLS_WORD`]: one that needs static TLS.
//! - [`PRIVATE`]: a library with an unwinder of its own.
//! - [`throws`]: functions that C++ exceptions pass through.
//! - [`abi`]: hundreds of generated functions, each with a caller, and a gate between the two that
//!   sees every register and stack word that passes.
//! - [`sig`]: the random signatures of those.
//!
//! The C and the C++ are compiled for riscv64 with `-fpatchable-function-entry=5`, whatever the
//! environment says. On other targets only [`sig`] is there.

#[cfg(target_arch = "riscv64")]
pub mod abi;
#[cfg(target_arch = "riscv64")]
pub mod functions;
#[cfg(target_arch = "riscv64")]
pub mod ops;
pub mod sig;
#[cfg(target_arch = "riscv64")]
pub mod throws;

/// A shared library, to be written to a file. Its constructor calls the function whose address
/// stands in the variable `TL_ON_LOAD`, in hexadecimal digits. It exports `tl_chosen`, which has
/// several implementations, `tl_unbound`, which ends in a stub that is not bound, and
/// `tl_in_library`, which makes `6 * (a + b)` of two `long`s and has no pad.
#[cfg(target_arch = "riscv64")]
pub const ON_LOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/onload.so"));

/// A shared library that needs eight bytes of static TLS. It exports `tl_tls_word`.
#[cfg(target_arch = "riscv64")]
pub const TLS_WORD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tlsword.so"));

/// A C++ library, stripped, with an unwinder of its own. `tl_private_throw` throws an `int` below 0,
/// and adds 1 to others; `tl_private_catch` calls it, and returns 1000 less what is thrown.
#[cfg(target_arch = "riscv64")]
pub const PRIVATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/private.so"));
