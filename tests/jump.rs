//! Functions without entry pads: hooked by a jump over moved instructions, or by a trap.
//!
//! `fns` are functions whose first instructions are hard to move; `moved` calls them hooked,
//! switched and taken apart, under load, `held` while a thread is inside; `libc` hooks the C
//! library by name, `island` short ones of it, `loading` while libraries are opened; `spawn` has children in the same memory,
//! `waiting` threads that block all signals.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "assembly functions, and those of the C library")]

mod common;

#[path = "jump/fns.rs"]
mod fns;
#[path = "jump/held.rs"]
mod held;
#[path = "jump/island.rs"]
mod island;
#[path = "jump/libc.rs"]
mod libc_by_name;
#[path = "jump/loading.rs"]
mod loading;
#[path = "jump/moved.rs"]
mod moved;
#[path = "jump/spawn.rs"]
mod spawn;
#[path = "jump/waiting.rs"]
mod waiting;
