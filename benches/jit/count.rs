//! Instructions counted.
//!
//! Key types: [`Count`], [`Entry`].

use std::arch::global_asm;

use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

use crate::measure::Error;

/// Runs that are counted beyond the first.
const RUNS: u64 = 8;
/// Stretches, of which the least is taken, so that no timer tick is in it.
const STRETCHES: usize = 20;

// count_loop(f, n): calls f n times. count_nothing: returns.
global_asm!(
    ".section .text.count_loop, \"ax\", @progbits",
    ".balign 64",
    ".type count_nothing, @function",
    "count_nothing:",
    "ret",
    ".size count_nothing, . - count_nothing",
    ".type count_loop, @function",
    "count_loop:",
    "addi sp, sp, -32",
    "sd ra, 24(sp)",
    "sd s0, 16(sp)",
    "sd s1, 8(sp)",
    "mv s0, a0",
    "mv s1, a1",
    "1:",
    "jalr s0",
    "addi s1, s1, -1",
    "bnez s1, 1b",
    "ld ra, 24(sp)",
    "ld s0, 16(sp)",
    "ld s1, 8(sp)",
    "addi sp, sp, 32",
    "ret",
    ".size count_loop, . - count_loop",
    ".previous",
);

unsafe extern "C" {
    fn count_nothing();
    fn count_loop(f: u64, calls: u64);
}

/// The address of an `extern "C"` function that looks at no argument and gives 32 bits.
#[derive(Clone, Copy)]
pub(crate) struct Entry(pub(crate) u64);

impl Entry {
    /// Calls it.
    ///
    /// # Safety
    /// 1. It is what its type says, and may be called.
    pub(crate) unsafe fn call(self) -> u32 {
        let entry = std::ptr::with_exposed_provenance::<()>(self.0 as usize);
        // SAFETY: 1. caller's contract.
        let entry =
            unsafe { std::mem::transmute::<*const (), unsafe extern "C" fn() -> u32>(entry) };
        // SAFETY: 1. caller's contract.
        unsafe { entry() }
    }
}

/// Counts this thread's instructions, in user space and in the kernel.
pub(crate) struct Count {
    counter: Counter,
    /// Of a call in the loop, without those of the function.
    per_call: u64,
}

impl Count {
    pub(crate) fn new() -> Result<Self, Error> {
        let mut builder = Builder::new(Hardware::INSTRUCTIONS);
        builder.exclude_kernel(false).exclude_hv(true);
        let counter = builder
            .build()
            .map_err(|e| format!("instructions cannot be counted here: perf_event_open: {e}"))?;
        let mut count = Self {
            counter,
            per_call: 0,
        };
        // SAFETY: 1. it only returns, and stays.
        let nothing = unsafe { count.calls(Entry(count_nothing as usize as u64)) }?;
        // Its return is not the loop's.
        count.per_call = nothing - 1;
        Ok(count)
    }

    /// The instructions of one call of a function.
    ///
    /// # Safety
    /// 1. As [`Entry::call`], many times.
    pub(crate) unsafe fn calls(&mut self, entry: Entry) -> Result<u64, Error> {
        let taken = self.per_run(|runs| {
            // SAFETY: 1. caller's contract.
            unsafe { count_loop(entry.0, runs) };
            Ok(())
        })?;
        Ok(taken - self.per_call)
    }

    /// The instructions of one run, where `run` does so many.
    pub(crate) fn per_run(
        &mut self,
        mut run: impl FnMut(u64) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let one = self.least(|| run(1))?;
        let many = self.least(|| run(1 + RUNS))?;
        let between = many
            .checked_sub(one)
            .ok_or("more runs took fewer instructions")?;
        match between % RUNS {
            0 => Ok(between / RUNS),
            _ => Err(format!("{RUNS} runs took {between} instructions: runs differ").into()),
        }
    }

    fn least(&mut self, mut stretch: impl FnMut() -> Result<(), Error>) -> Result<u64, Error> {
        let mut least = u64::MAX;
        for _ in 0..STRETCHES {
            self.counter.reset()?;
            self.counter.enable()?;
            stretch()?;
            self.counter.disable()?;
            least = least.min(self.counter.read()?);
        }
        Ok(least)
    }
}
