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
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use crate::guard::{self, MAX_NESTING, ThreadBlock};
use crate::mark::{self, Records};
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
    /// Where calls in flight are counted.
    pub(crate) inflight: u64,
    pub(crate) counts: Counts,
}

/// Which calls of an image are counted as in flight.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Counts {
    /// All: it calls the function. Those that have their frame on the shadow stack are counted out
    /// with it.
    Calls {
        /// Their frames are there.
        on_shadow: bool,
    },
    /// Those that come by the slow path.
    SlowPath,
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
/// 1. `key` is the key of a live image that this thread is in, `ctx` the context in its frame, `sp`
///    where its programs find the stack.
pub(crate) unsafe extern "C" fn run_slow(key: u64, phase: u64, ctx: *mut u64, sp: u64) -> u64 {
    let block = guard::block();
    let idle = guard::idle_value(block.addr());
    // SAFETY: 1. caller's contract: the image is live, and so is its descriptor.
    let desc = unsafe { desc_of(key) };
    let phase = if phase == Phase::Entry as u64 {
        Phase::Entry
    } else {
        Phase::Exit
    };

    if is_missed(block, idle, desc, sp) {
        return count_missed(desc, phase) as u64;
    }
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
            block.depth.store(0, Relaxed);
            // SAFETY: as above.
            unsafe { run_as(block, key, idle, desc, phase, ctx) }
        }
        // SAFETY: as above; `held` is the key of an image whose programs this thread runs.
        Ok(()) => unsafe { run_nested(block, key, held, desc, phase, ctx) },
    };
    verdict as u64
}

/// In a guard: the image's programs run from here. (Keys are even.)
const BY_SLOW_PATH: u64 = 1;

/// Counts out the call whose programs `key` stands for, since it was left.
///
/// # Safety
/// 1. `key` is or was in the guard of this thread, and its image cannot be freed before this.
pub(crate) unsafe fn count_out(block: &ThreadBlock, key: u64) {
    // SAFETY: 1. caller's contract.
    let desc = unsafe { desc_of(key) };
    let is_counted = match desc.counts {
        Counts::Calls { on_shadow } => !on_shadow,
        Counts::SlowPath => key & BY_SLOW_PATH != 0,
    };
    if is_counted {
        let line = desc.inflight + block.shard_off.load(Relaxed);
        // SAFETY: 1. the image's counter has such a line, and lives as long as the image.
        let line = unsafe { &*(line as *const AtomicU64) };
        line.fetch_sub(1, Release);
    }
}

/// # Safety
/// 1. `key` belongs to an image that cannot be freed now.
unsafe fn desc_of<'a>(key: u64) -> &'a Desc {
    let at = ((key & !BY_SLOW_PATH) - 8) as *const *const Desc;
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
    block.guard.store(key | BY_SLOW_PATH, Relaxed);
    compiler_fence(SeqCst);
    // SAFETY: 2. passed on.
    let verdict = unsafe { run_programs(desc, phase, ctx) };
    compiler_fence(SeqCst);
    block.guard.store(after, Relaxed);
    verdict
}

/// Whether the call is one that its own programs made, when it is known which of them were left.
#[inline(never)]
fn is_missed(block: &ThreadBlock, idle: u64, desc: &Desc, sp: u64) -> bool {
    mark::forget_left(block, sp, Records::Passed);
    // To read all of them is for calls that would be missed.
    is_recursion(block, idle, desc, sp)
        && (!mark::forget_left(block, sp, Records::All) || is_recursion(block, idle, desc, sp))
}

/// Whether programs of the function run on this thread already, or nesting is too deep.
#[inline(never)]
fn is_recursion(block: &ThreadBlock, idle: u64, desc: &Desc, sp: u64) -> bool {
    let held = block.guard.load(Relaxed);
    if held == 0 || held == idle {
        return false;
    }
    let depth = block.depth.load(Relaxed) as usize;
    let mark = block.mark.load(Relaxed);
    if depth >= MAX_NESTING || mark::is_alone(mark, sp) {
        return true;
    }
    // SAFETY: 1. entered, and running as a grace period sees it, so its image lives.
    let runs = |(key, mark)| unsafe { desc_of(key) }.func == desc.func && mark::runs(mark, sp);
    // A child of `vfork` that runs as a thread without them: nesting ends by its depth alone.
    let levels = table::levels(block);
    let outer = |level| levels.is_some_and(|levels| runs(levels.level(level)));
    runs((held, mark)) || (0..depth).any(outer)
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
    let mark = block.mark.load(Relaxed);
    let levels = table::levels(block);
    // The order lets a signal handler on this thread, or a grace period that looks at any
    // moment, find every key: first the copy, then the depth, then the guard.
    if let Some(levels) = levels {
        levels.nested[depth].store(held, Relaxed);
        levels.marks[depth].store(mark, Relaxed);
    }
    compiler_fence(SeqCst);
    block.depth.store(depth as u32 + 1, Relaxed);
    compiler_fence(SeqCst);
    block.mark.store(0, Relaxed);
    // SAFETY: passed on.
    let verdict = unsafe { run_as(block, key, held, desc, phase, ctx) };
    block.mark.store(mark, Relaxed);
    compiler_fence(SeqCst);
    block.depth.store(depth as u32, Relaxed);
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
