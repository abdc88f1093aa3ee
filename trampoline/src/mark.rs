//! What a closure leaves on its thread while it runs, so that a jump out of it is noticed.
//!
//! `siglongjmp` out of a handler of the host leaves the closures that the signal interrupted, and
//! nothing of theirs is undone: the guard says that the image's programs run, so all later calls
//! would be taken for calls of its own, and the thread cannot be cancelled any more.
//!
//! A *mark* is the address of a record in the closure's own frame. What the closure calls lies below
//! it, so a hooked call that comes from above shows that the closure was left, unless a handler that
//! interrupts it runs on another stack:
//!
//! | a hooked call comes from | the closure | what is done |
//! | --- | --- | --- |
//! | below the record, which stands there | runs | as ever |
//! | below, and something else stands there | was left | guard, depth and cancellation become what they were |
//! | above, and the record lies in stack that the call has taken itself, or both are on the alternate stack that the kernel names | was left | the same |
//! | above, from the alternate stack that the kernel names, and the record lies elsewhere | runs | as ever |
//! | above, otherwise | was left, or the call comes from another stack: of a handler, where the kernel does not name it now (`SS_AUTODISARM`), or of a child of `posix_spawn` | the call's programs run; the rest when something else stands where the record was |
//!
//! As long as what the record was stands there still, calls from below do not show that it was left,
//! and are missed. Raw programs leave no mark, and must not be left. The mark of a closure of a
//! struct_ops table says nothing of the guard: where one is left outside of images, its thread cannot
//! be cancelled any more. A host that disables cancellation itself, after a closure was left and
//! before that is noticed, finds it enabled then.
//!
//! Key functions: [`run`], `forget_left`. Neighbours: `guard`, `slow`, `cancel`. Source:
//! `sigaltstack(2)`; psABI, "Integer Calling Convention" (the stack grows downwards).
#![expect(
    unsafe_code,
    reason = "reads records on the stack, asks for its pointer, counts out calls that were left"
)]

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use text::syscall::syscall;

use crate::guard::{self, MAX_NESTING, ThreadBlock};
use crate::{cancel, slow, table};

/// What runs.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum Of {
    /// A closure that an image calls.
    Image = 0,
    /// One that a struct_ops table leads to.
    Member = MEMBER,
    /// A closure of an image: while it runs, hooked calls on its thread run no programs.
    Alone = ALONE,
}

/// The thread was cancellable before.
const CANCELLABLE: u64 = 1;
const MEMBER: u64 = 2;
const ALONE: u64 = 4;
const FLAGS: u64 = CANCELLABLE | MEMBER | ALONE;

#[repr(C, align(16))]
struct Record {
    who: u64,
    /// What makes it known for a record of this place.
    seal: AtomicU64,
}

impl Record {
    fn seal(who: u64, at: u64) -> u64 {
        who ^ at ^ 0x7276_6270_665f_6d61
    }
}

/// Runs a closure, which must not unwind, with a mark on it, and without being cancelled.
#[inline]
pub fn run<R>(who: *const (), of: Of, closure: impl FnOnce() -> R) -> R {
    let who = who.expose_provenance() as u64;
    let record = Record {
        who,
        seal: AtomicU64::new(0),
    };
    let at = (&raw const record).expose_provenance() as u64;
    record.seal.store(Record::seal(who, at), Relaxed);
    let disabled = cancel::disable();
    let block = guard::block();
    let (outer, depth) = (block.mark.load(Relaxed), block.depth.load(Relaxed));
    // What an image runs is told by its own mark, also while it runs a member.
    if of != Of::Member || outer == 0 {
        let mark = at | of as u64 | u64::from(disabled);
        block.mark.store(mark, Relaxed);
    }
    let result = closure();
    if block.depth.load(Relaxed) > depth {
        forget_inner(block, depth as usize);
    }
    block.mark.store(outer, Relaxed);
    if disabled {
        cancel::enable();
    }
    result
}

/// What [`run`] was called with last on this thread, if that closure runs still.
pub fn running() -> Option<*const ()> {
    let at = guard::block().mark.load(Relaxed) & !FLAGS;
    if at <= stack_pointer() {
        return None;
    }
    let [who, seal] = read(at)?;
    (seal == Record::seal(who, at)).then(|| std::ptr::with_exposed_provenance(who as usize))
}

/// What a call from `sp` says of the closure of a mark.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Seen {
    Runs,
    Left,
    /// It was left, or what makes the call is on another stack: a handler on one that the kernel does
    /// not name now, a child of `posix_spawn`.
    Unknown,
}

fn look(mark: u64, sp: u64) -> Seen {
    let at = mark & !FLAGS;
    if mark == 0 || mark & MEMBER != 0 || at > sp {
        return Seen::Runs;
    }
    if at >= stack_pointer() {
        return Seen::Left;
    }
    match text::signal::alternate_stack() {
        Ok(stack) => match (stack.contains(&sp), stack.contains(&at)) {
            (true, false) => Seen::Runs,
            (true, true) => Seen::Left,
            _ => Seen::Unknown,
        },
        Err(_) => Seen::Unknown,
    }
}

/// Whether a call from `sp` may come from the closure of `mark`.
pub(crate) fn runs(mark: u64, sp: u64) -> bool {
    look(mark, sp) == Seen::Runs
}

/// Whether a closure runs alone, for all that a call from `sp` shows.
pub(crate) fn is_alone(mark: u64, sp: u64) -> bool {
    mark & ALONE != 0 && look(mark, sp) != Seen::Left
}

/// Which records are read, with the kernel's help, to see whether they stand there still.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Records {
    /// Those above which the call comes from, where nothing else tells whether they were left.
    Passed,
    /// All.
    All,
}

/// Takes back what closures of this thread that were left have left behind, if there is such a
/// one. The call of an image comes from `sp`. Safe in signal handlers.
#[inline(never)]
pub(crate) fn forget_left(block: &ThreadBlock, sp: u64, records: Records) -> bool {
    let depth = depth_of(block);
    let mut levels = 0..=depth;
    match levels.find(|level| is_left(level_of(block, depth, *level).1, sp, records)) {
        Some(first) => {
            take_back(block, depth, first);
            true
        }
        None => false,
    }
}

fn depth_of(block: &ThreadBlock) -> usize {
    (block.depth.load(Relaxed) as usize).min(MAX_NESTING)
}

/// Key and mark of one level; the programs of the last one run now.
fn level_of(block: &ThreadBlock, depth: usize, level: usize) -> (u64, u64) {
    match table::levels(block) {
        _ if level == depth => (block.guard.load(Relaxed), block.mark.load(Relaxed)),
        Some(levels) => levels.level(level),
        None => (0, 0),
    }
}

#[inline(never)]
fn is_left(mark: u64, sp: u64, records: Records) -> bool {
    match look(mark, sp) {
        Seen::Left => true,
        Seen::Runs => records == Records::All && is_gone(mark),
        Seen::Unknown => is_gone(mark),
    }
}

/// A closure at level `depth` returns: what it has called was left, into itself.
#[cold]
#[inline(never)]
fn forget_inner(block: &ThreadBlock, depth: usize) {
    take_back(block, depth_of(block), depth + 1);
}

/// Takes the levels from `first` on away.
#[inline(never)]
fn take_back(block: &ThreadBlock, depth: usize, first: usize) {
    for level in first..=depth {
        let (key, mark) = level_of(block, depth, level);
        // A signal handler that comes in between finds a level that runs, and takes nothing back.
        match table::levels(block) {
            Some(levels) if level < depth => levels.marks[level].store(0, Relaxed),
            _ => block.mark.store(0, Relaxed),
        }
        compiler_fence(SeqCst);
        if mark & CANCELLABLE != 0 {
            cancel::enable();
        }
        // SAFETY: 1. it is in the guard, or below it.
        unsafe { slow::count_out(block, key) };
    }
    let (guard, mark) = match first {
        0 => (guard::idle_value(block.addr()), 0),
        _ => level_of(block, depth, first - 1),
    };
    // A grace period that looks at any moment finds the keys of those that go on.
    block.guard.store(guard, Relaxed);
    compiler_fence(SeqCst);
    block.depth.store(first.saturating_sub(1) as u32, Relaxed);
    compiler_fence(SeqCst);
    block.mark.store(mark, Relaxed);
}

/// Whether something else stands where the record of an image's closure was.
fn is_gone(mark: u64) -> bool {
    let at = mark & !FLAGS;
    mark != 0
        && mark & MEMBER == 0
        && read(at).is_some_and(|[who, seal]| seal != Record::seal(who, at))
}

/// The two words of a record, if they are mapped. The kernel is asked by a call that every filter
/// of system calls lets through: it reads a set of signals and refuses what it is told to do with it.
fn read(at: u64) -> Option<[u64; 2]> {
    const NO_SUCH_WAY: usize = 0x7262;
    // It does not cross a page: it is aligned to its length.
    let args = [NO_SUCH_WAY, at as usize, 0, size_of::<u64>()];
    // SAFETY: 1. changes nothing: there is no such way to change a mask.
    if unsafe { syscall(libc::SYS_rt_sigprocmask, args) } != Err(libc::EINVAL) {
        return None;
    }
    let at = std::ptr::with_exposed_provenance::<[u64; 2]>(at as usize);
    // SAFETY: 1. mapped, aligned, and of this thread's stack, or of one that it was on.
    Some(unsafe { at.read_volatile() })
}

#[cfg(target_arch = "riscv64")]
#[inline(always)]
fn stack_pointer() -> u64 {
    let sp: u64;
    // SAFETY: 1. copies a register; touches no memory.
    unsafe { std::arch::asm!("mv {}, sp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    sp
}

#[cfg(not(target_arch = "riscv64"))]
fn stack_pointer() -> u64 {
    let here = 0_u8;
    (&raw const here).expose_provenance() as u64
}
