//! Tables of functions that are swapped while they are called.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "C callers, BPF programs, raw function pointers")]

#[path = "struct_ops/abi.rs"]
mod abi;
mod common;
#[path = "struct_ops/errors.rs"]
mod errors;
#[path = "struct_ops/leave.rs"]
mod leave;
#[path = "struct_ops/swap.rs"]
mod swap;
#[path = "struct_ops/table.rs"]
mod table;
