//! Functions found by address and by name, on any host: of this program, of the C library, of
//! assembly with every quirk, and what is said of addresses and names that are none.
#![expect(unsafe_code, reason = "assembles functions, loads libraries, forks")]

mod funcs {
    pub(crate) mod asm;
    pub(crate) mod changed;
    pub(crate) mod errors;
    pub(crate) mod libraries;
    pub(crate) mod names;
    pub(crate) mod objects;
    #[cfg(target_arch = "riscv64")]
    pub(crate) mod riscv;
}
