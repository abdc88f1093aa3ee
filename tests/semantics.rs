//! What hooks do to calls: order, recursion, what survives a program, and what happens to calls
//! that are under way when hooks change.
//!
//! Each test hooks functions of the test library from a runtime of its own and ends with that
//! runtime's numbers back at the start.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "attaches raw programs, calls C, forks")]

#[path = "common/mod.rs"]
mod common;

#[path = "semantics/direct.rs"]
mod direct;
#[path = "semantics/ends.rs"]
mod ends;
#[path = "semantics/jumps.rs"]
mod jumps;
#[path = "semantics/leave.rs"]
mod leave;
#[path = "semantics/nested.rs"]
mod nested;
#[path = "semantics/order.rs"]
mod order;
#[path = "semantics/raw.rs"]
mod raw;
#[path = "semantics/recursion.rs"]
mod recursion;
#[path = "semantics/signals.rs"]
mod signals;
#[path = "semantics/storms.rs"]
mod storms;
#[path = "semantics/survive.rs"]
mod survive;
#[path = "semantics/unknown.rs"]
mod unknown;
#[path = "semantics/vfork.rs"]
mod vfork;
