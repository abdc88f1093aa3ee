//! Every instruction with every kind of register and constant, compiled for every set of
//! extensions that this machine has, does what the interpreter does: to all registers and to memory.
//!
//! | file | holds |
//! | --- | --- |
//! | `rows` | the matrix: which instructions, registers, constants, offsets |
//! | `block` | an instruction, its operands before it and all registers after it |
//! | `run` | programs of blocks, and both sides |
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "runs programs")]

#[path = "bpf_lowering/block.rs"]
mod block;
#[path = "bpf_fuzz/rng.rs"]
#[expect(dead_code, reason = "what only the fuzzer draws")]
mod rng;
#[path = "bpf_lowering/rows.rs"]
mod rows;
#[path = "bpf_lowering/run.rs"]
mod run;

use run::check;

#[test]
fn arithmetic_of_registers() {
    check(&rows::alu_registers());
}

#[test]
fn arithmetic_of_known_forms() {
    check(&rows::alu_forms());
}

#[test]
fn arithmetic_with_constants() {
    check(&rows::alu_constants());
}

#[test]
fn one_operand() {
    check(&rows::unary());
}

#[test]
fn the_frame_pointer_as_an_operand() {
    check(&rows::frame_pointer());
}

#[test]
fn branches_of_registers() {
    check(&rows::branch_registers());
}

#[test]
fn branches_on_constants() {
    check(&rows::branch_constants());
}

#[test]
fn loads() {
    check(&rows::loads());
}

#[test]
fn stores() {
    check(&rows::stores());
}

#[test]
fn atomics() {
    check(&rows::atomics());
}

#[test]
fn misaligned_atomics() {
    check(&rows::misaligned_atomics());
}

#[test]
fn the_stack() {
    check(&rows::stack());
}
