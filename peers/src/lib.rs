//! Other people's compilers: hosted in our packs, and measured against ours.
//!
//! A package of its own, because Cranelift takes longer to build than all the rest: `cargo xtask
//! test` passes it over, `cargo xtask ci` checks it, and who wants it asks for it:
//!
//! ```text
//! cargo xtask run -- -p rvbpf-peers --example host_cranelift
//! cargo xtask run --release -- -p rvbpf-peers --example compile [FILE.hex …]
//! ```
//!
//! | module | what it does |
//! | --- | --- |
//! | [`cranelift`] | from a function of Cranelift to code that [`rvbpf::Runtime::host`] takes |
//! | [`compile`] | how long a program takes to compile, here and in rbpf's Cranelift backend |
//!
//! Key functions: [`cranelift::compile`], [`compile::compare`]. The version of Cranelift is the one
//! that rbpf uses, so that one is built.

pub mod compile;
pub mod cranelift;
