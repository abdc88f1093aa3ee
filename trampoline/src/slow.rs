//! The slow path of an image: a thread's first hooked call, nesting, recursion.
//!
//! Machine code comes here when its thread's guard is not idle (see [`crate::guard`]). The
//! image has counted itself as in flight before it comes here and does so until it is back, so it
//! is not freed meanwhile, whatever the guard says. The
//! programs of the phase are then run from the image's [`Desc`], in the same order and with the
//! same context as the machine code would run them. Nothing here takes a lock or allocates: the
//! caller may be inside `malloc`, inside a signal handler, or inside an attach.

#![expect(
    unsafe_code,
    reason = "called by machine code; runs user programs through pointers"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::compiler_fence;

use crate::guard::{self, MAX_NESTING, ThreadBlock};
use crate::prog::{Needs, Prog, ProgFn, ProgKind, ProgState, RetFrom};
use crate::table::{self, Unregistered};

/// One program of one phase, as the slow path sees it.
#[derive(Debug)]
pub(crate) struct DescCall {
    pub(crate) func: ProgFn,
    pub(crate) cookie: Option<u64>,
    /// Whether it finds its cookie at `ctx[-3]`, too.
    pub(crate) wants_cookie: bool,
    pub(crate) kind: ProgKind,
    /// The word for `ctx[-1]`, when the frame has it.
    pub(crate) meta: Option<u64>,
    pub(crate) counts_runs: bool,
    pub(crate) state: Arc<ProgState>,
}

impl DescCall {
    pub(crate) fn new(prog: &Prog, meta: Option<u64>) -> Self {
        DescCall {
            func: prog.func,
            cookie: prog.cookie,
            wants_cookie: prog.wants(Needs::COOKIE),
            kind: prog.kind,
            meta,
            counts_runs: prog.needs.contains(Needs::STATS),
            state: prog.state.clone(),
        }
    }
}

/// What an image is, for the slow path. Its address stands before each key of the image.
#[derive(Debug)]
pub(crate) struct Desc {
    /// The hooked function: recursion means that the same function is reached again.
    pub(crate) func: u64,
    pub(crate) nr_arg_slots: usize,
    /// Programs before the function, in order.
    pub(crate) entry: Vec<DescCall>,
    /// Programs after the function, in order.
    pub(crate) exit: Vec<DescCall>,
}

/// The two times at which an image runs programs.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[repr(u64)]
pub(crate) enum Phase {
    Entry = 0,
    Exit = 1,
}

/// What the image does after the slow path; machine code compares with these numbers.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[repr(u64)]
pub(crate) enum Verdict {
    /// As after its own fast path.
    GoOn = 0,
    /// Recursion: straight to the function, as if there were no hook.
    Bypass = 1,
    /// An fmod_ret program has given the return value.
    SkipFunc = 2,
}

/// Entered from machine code.
///
/// # Safety
/// 1. `key` is the key of a live image that this thread is in, `ctx` the context in its frame.
pub(crate) unsafe extern "C" fn run_slow(key: u64, phase: u64, ctx: *mut u64) -> u64 {
    let block = guard::block();
    let idle = guard::idle_value(block.addr());
    // SAFETY: 1. caller's contract: the image is live, and so is its descriptor.
    let desc = unsafe { desc_of(key) };
    let phase = if phase == Phase::Entry as u64 {
        Phase::Entry
    } else {
        Phase::Exit
    };

    let held = block.guard.load(Relaxed);
    let registered = match held {
        0 => table::register(block),
        _ => Ok(()),
    };
    let verdict = match registered {
        Err(Unregistered::NoMemory) => count_missed(desc, phase),
        // The count of calls in flight keeps the image, and those of nested programs, which come
        // here too. The thread that waits comes here with its own first call.
        // SAFETY: 1. `desc` and `ctx` belong together (caller).
        Err(Unregistered::Guest) => unsafe { run_as(block, key, 0, desc, phase, ctx) },
        // Idle: a signal handler registered the thread between the image's look and ours.
        Ok(()) if held == 0 || held == idle => {
            // SAFETY: as above.
            unsafe { run_as(block, key, idle, desc, phase, ctx) }
        }
        // SAFETY: as above; `held` is the key of an image whose programs this thread runs.
        Ok(()) => unsafe { run_nested(block, key, held, desc, phase, ctx) },
    };
    verdict as u64
}

/// # Safety
/// 1. `key` belongs to an image that cannot be freed now.
unsafe fn desc_of<'a>(key: u64) -> &'a Desc {
    let at = (key - 8) as *const *const Desc;
    // SAFETY: 1. codegen puts the descriptor's address in the eight bytes before each key, at
    //    any even address.
    let desc = unsafe { at.read_unaligned() };
    // SAFETY: 1. the image keeps its descriptor, which nobody changes.
    unsafe { &*desc }
}

/// Runs the phase with `key` in the guard, then puts `after` there.
///
/// # Safety
/// 1. `ctx` is the context of a call of the image of `desc`.
unsafe fn run_as(
    block: &ThreadBlock,
    key: u64,
    after: u64,
    desc: &Desc,
    phase: Phase,
    ctx: *mut u64,
) -> Verdict {
    block.guard.store(key, Relaxed);
    compiler_fence(SeqCst);
    // SAFETY: 2. passed on.
    let verdict = unsafe { run_programs(desc, phase, ctx) };
    compiler_fence(SeqCst);
    block.guard.store(after, Relaxed);
    verdict
}

/// # Safety
/// As [`run_as`], and `held` is the key in the guard.
unsafe fn run_nested(
    block: &ThreadBlock,
    key: u64,
    held: u64,
    desc: &Desc,
    phase: Phase,
    ctx: *mut u64,
) -> Verdict {
    let depth = block.depth.load(Relaxed) as usize;
    // SAFETY: 1. `held` is in the guard, so its image is entered and lives.
    let mut recursion = unsafe { desc_of(held) }.func == desc.func || depth >= MAX_NESTING;
    // A child of `vfork` that runs as a thread without them: nesting ends by its depth alone.
    let levels = table::levels(block);
    let nested = levels.map(|levels| &levels.nested);
    for outer in nested.iter().flat_map(|n| &n[..depth.min(MAX_NESTING)]) {
        // SAFETY: 1. entered below the current one, so it lives.
        recursion |= unsafe { desc_of(outer.load(Relaxed)) }.func == desc.func;
    }
    if recursion {
        return count_missed(desc, phase);
    }
    // The order lets a signal handler on this thread, or a grace period that looks at any
    // moment, find every key: first the copy, then the depth, then the guard.
    if let Some(nested) = nested {
        nested[depth].store(held, Relaxed);
    }
    compiler_fence(SeqCst);
    block.depth.store(depth as u64 + 1, Relaxed);
    compiler_fence(SeqCst);
    // SAFETY: passed on.
    let verdict = unsafe { run_as(block, key, held, desc, phase, ctx) };
    compiler_fence(SeqCst);
    block.depth.store(depth as u64, Relaxed);
    verdict
}

/// A call that its own programs made: each of them misses it once, whatever ends it runs at.
pub(crate) fn count_missed(desc: &Desc, phase: Phase) -> Verdict {
    match phase {
        Phase::Entry => {
            desc.entry.iter().for_each(|c| c.state.add_missed());
            let exits = desc.exit.iter().filter(|c| c.kind == ProgKind::Fexit);
            exits.for_each(|c| c.state.add_missed());
            Verdict::Bypass
        }
        Phase::Exit => {
            desc.exit.iter().for_each(|c| c.state.add_missed());
            Verdict::GoOn
        }
    }
}

/// # Safety
/// `ctx` is the context of a call of the image of `desc`.
unsafe fn run_programs(desc: &Desc, phase: Phase, ctx: *mut u64) -> Verdict {
    let calls = match phase {
        Phase::Entry => &desc.entry,
        Phase::Exit => &desc.exit,
    };
    for call in calls {
        if phase == Phase::Exit && call.state.is_detached() {
            continue;
        }
        if let Some(meta) = call.meta {
            // SAFETY: 1. the frame of an image whose programs have meta words has this slot.
            unsafe { put(ctx.wrapping_sub(1), meta) };
        }
        let cookie = call.cookie.unwrap_or_default();
        if call.wants_cookie {
            // SAFETY: 1. the frame of an image whose programs want cookies has this slot.
            unsafe { put(ctx.wrapping_sub(3), cookie) };
        }
        if call.counts_runs {
            call.state.add_run();
        }
        // SAFETY: 1. the program is attached, or was when the call began: whoever attached it
        //    promised that it can be called until its image is freed.
        let value = unsafe { (call.func)(ctx, cookie) };
        if let ProgKind::FmodRet(from) = call.kind {
            if from == RetFrom::Value {
                // SAFETY: 1. images with fmod_ret programs have at least one return slot.
                unsafe { put(ctx.wrapping_add(desc.nr_arg_slots), value) };
            }
            if value != 0 {
                return Verdict::SkipFunc;
            }
        }
    }
    Verdict::GoOn
}

/// # Safety
/// 1. `slot` is a word of the frame of a call that is under way on this thread.
unsafe fn put(slot: *mut u64, word: u64) {
    // SAFETY: 1. caller's contract.
    unsafe { slot.write(word) };
}
