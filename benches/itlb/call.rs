//! The loop that calls programs.
//!
//! Seven instructions a call besides the program's own, all in one page. Key type: [`Calls`].

#![expect(
    unsafe_code,
    reason = "assembly, and calls of the code that was placed"
)]

use std::arch::global_asm;

use super::place::Placed;

/// Instructions of the loop for one call.
pub(crate) const LOOP_INSNS: u64 = 7;

// itlb_calls(entries, nr): calls the `nr` functions (at least one) at `entries` with two zeros, and
// gives the sum of what they return. The sequence of addresses is read once from front to back.
global_asm!(
    ".section .text.itlb_calls, \"ax\", @progbits",
    ".balign 128",
    // Whatever part of this program refers to it may be compiled apart from this.
    ".globl itlb_calls",
    ".hidden itlb_calls",
    ".type itlb_calls, @function",
    "itlb_calls:",
    "addi sp, sp, -32",
    "sd ra, 24(sp)",
    "sd s0, 16(sp)",
    "sd s1, 8(sp)",
    "sd s2, 0(sp)",
    "mv s0, a0",
    "slli a1, a1, 3",
    "add s1, a0, a1",
    "li s2, 0",
    "1:",
    "ld t0, 0(s0)",
    "addi s0, s0, 8",
    "li a0, 0",
    "li a1, 0",
    "jalr t0",
    "add s2, s2, a0",
    "bltu s0, s1, 1b",
    "mv a0, s2",
    "ld ra, 24(sp)",
    "ld s0, 16(sp)",
    "ld s1, 8(sp)",
    "ld s2, 0(sp)",
    "addi sp, sp, 32",
    "ret",
    ".size itlb_calls, . - itlb_calls",
    ".previous",
);

unsafe extern "C" {
    fn itlb_calls(entries: *const u64, nr: usize) -> u64;
}

/// A sequence of calls, ready to be made.
#[derive(Debug)]
pub(crate) struct Calls<'a> {
    entries: Vec<u64>,
    /// What the results must add up to.
    sum: u64,
    _placed: &'a Placed,
}

impl<'a> Calls<'a> {
    /// The calls of these programs.
    pub(crate) fn new(placed: &'a Placed, calls: &[u32]) -> Self {
        let entry = |&number: &u32| placed.spot(number).rx.start.get();
        Self {
            entries: calls.iter().map(entry).collect(),
            sum: calls.iter().map(|&number| u64::from(number)).sum(),
            _placed: placed,
        }
    }

    /// Makes them all; whether every program that was meant has run.
    #[must_use]
    pub(crate) fn make(&self) -> bool {
        if self.entries.is_empty() {
            return true;
        }
        // SAFETY:
        // 1. There are so many entries, at least one.
        // 2. Each is a program of `_placed`, which is published and stays while it is borrowed:
        //    an `extern "C"` function that reads and writes no memory (`corpus`).
        let sum = unsafe { itlb_calls(self.entries.as_ptr(), self.entries.len()) };
        sum == self.sum
    }
}

/// Where the loop is.
pub(crate) fn loop_address() -> u64 {
    itlb_calls as usize as u64
}
