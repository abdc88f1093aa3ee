//! The table of registered threads: which kernel thread has which [`ThreadBlock`].
//!
//! Entries live in slabs from `mmap`, never freed, so that reading needs no lock. An entry's
//! `tid` is 0 (free), [`CLAIMED`] (somebody writes it) or the thread's id.

#![expect(
    unsafe_code,
    reason = "slabs from mmap, reached through raw pointers by all threads"
)]

use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

use text::syscall::{getpid, gettid, read_memory, syscall};

use crate::guard::{self, Levels, ThreadBlock};
use crate::shadow;

const CLAIMED: i32 = -1;
const SLAB_ENTRIES: usize = 105;

/// Lines of an in-flight counter; a thread uses one of them.
pub(crate) const SHARDS: usize = 8;
/// Bytes of such a line.
pub(crate) const SHARD_BYTES: usize = 64;

#[derive(Debug)]
struct Entry {
    tid: AtomicI32,
    /// Address of the thread's block.
    block: AtomicU64,
    /// Lowest address of the thread's shadow stack, 0 if it has none.
    shadow: AtomicU64,
    /// The rest of the thread's block.
    levels: Levels,
}

#[derive(Debug)]
struct Slab {
    next: AtomicPtr<Slab>,
    entries: [Entry; SLAB_ENTRIES],
}

static HEAD: AtomicPtr<Slab> = AtomicPtr::new(ptr::null_mut());

fn slabs() -> impl Iterator<Item = &'static Slab> {
    let mut at = HEAD.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY:
        // 1. Slabs are published whole by `add_slab` and never unmapped.
        let slab = unsafe { at.as_ref() }?;
        at = slab.next.load(Ordering::Acquire);
        Some(slab)
    })
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    slabs().flat_map(|s| &s.entries)
}

/// The process whose threads are registered; 0 before this is loaded.
static PROCESS: AtomicI32 = AtomicI32::new(0);

/// From here on threads of the calling process are registered, and no others.
pub(crate) fn take_process() {
    PROCESS.store(getpid(), Ordering::Relaxed);
}

/// Why a thread is not registered.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Unregistered {
    /// There is no memory for a slab. The thread must then not run programs, since a grace period
    /// could not see that it does.
    NoMemory,
    /// It is a child of `vfork` or the like, which runs with the memory and the thread pointer of a
    /// thread that waits for it. Its id says nothing of that thread.
    Guest,
}

/// Puts the calling thread into the table, if it is not there. Safe in signal handlers.
#[inline(never)]
pub(crate) fn register(block: &ThreadBlock) -> Result<(), Unregistered> {
    // A signal handler may have come between the caller's look and this.
    if block.levels.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    let process = PROCESS.load(Ordering::Relaxed);
    if process != 0 && process != getpid() {
        return Err(Unregistered::Guest);
    }
    let tid = gettid();
    let (index, entry) = claim(tid).ok_or(Unregistered::NoMemory)?;
    entry.block.store(block.addr(), Ordering::Relaxed);
    // What a thread that has ended left. (A signal handler that comes before the end of this has an
    // entry of its own, which is looked at too.)
    entry.levels.clear();
    entry.tid.store(tid, Ordering::Release);
    block
        .levels
        .store(ptr::from_ref(&entry.levels) as u64, Ordering::Relaxed);
    let shard_off = (index % SHARDS * SHARD_BYTES) as u64;
    block.shard_off.store(shard_off, Ordering::Relaxed);
    Ok(())
}

/// Claims the entry that a dead thread of the same id left, else a free one, else one of a new
/// slab.
fn claim(tid: i32) -> Option<(usize, &'static Entry)> {
    let take = |from: i32| {
        entries().enumerate().find(|(_, e)| {
            e.tid.load(Ordering::Relaxed) == from
                && e.tid
                    .compare_exchange(from, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
        })
    };
    loop {
        if let Some(found) = take(tid).or_else(|| take(0)) {
            return Some(found);
        }
        add_slab()?;
    }
}

/// Memory that is zero, by a bare system call: `mmap` may be what is hooked.
pub(crate) fn map_anonymous(len_bytes: usize, more_flags: i32) -> Option<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | more_flags;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let args = [0, len_bytes, prot as usize, flags as usize, usize::MAX, 0];
    // SAFETY: 1. a fresh anonymous mapping disturbs nothing.
    let at = unsafe { syscall(libc::SYS_mmap, args) }.ok()?;
    Some(ptr::with_exposed_provenance_mut(at))
}

fn add_slab() -> Option<()> {
    let new = map_anonymous(size_of::<Slab>(), 0)?.cast::<Slab>();
    let mut head = HEAD.load(Ordering::Acquire);
    loop {
        // SAFETY:
        // 1. Zero bytes from the kernel are a valid `Slab`; it is never unmapped.
        let slab = unsafe { &*new };
        slab.next.store(head, Ordering::Relaxed);
        match HEAD.compare_exchange(head, new, Ordering::Release, Ordering::Acquire) {
            Ok(_) => return Some(()),
            Err(now) => head = now,
        }
    }
}

/// Remembers the shadow stack of the calling thread, or finds the one that an earlier thread of
/// this entry left.
pub(crate) fn shadow_of_this_thread() -> Option<&'static AtomicU64> {
    let (tid, block) = (gettid(), guard::block().addr());
    let mine = |e: &&Entry| {
        e.tid.load(Ordering::Acquire) == tid && e.block.load(Ordering::Relaxed) == block
    };
    entries().find(mine).map(|e| &e.shadow)
}

/// Does a thread that does not run now (the caller has made sure) run programs of one of the
/// images that `in_image` knows?
pub(crate) fn is_busy(tid: i32, in_image: &dyn Fn(u64) -> bool) -> bool {
    any_block(tid, |block, levels, idle| {
        block.runs(Some(levels), idle, in_image)
    })
}

/// Is such a thread in a member of a struct_ops table, or has it pinned one, that `is_of` knows?
pub(crate) fn holds(tid: i32, is_of: &dyn Fn(u64) -> bool) -> bool {
    any_block(tid, |block, levels, idle| {
        block.holds(Some(levels), idle, is_of)
    })
}

fn any_block(tid: i32, is_so: impl Fn(&ThreadBlock, &Levels, u64) -> bool) -> bool {
    let mut found = entries().filter(|e| e.tid.load(Ordering::Acquire) == tid);
    found.any(|e| {
        let at = e.block.load(Ordering::Relaxed);
        match read_block(at) {
            Copied::Block(block) => is_so(&block, &e.levels, guard::idle_value(at)),
            // Of a thread that has ended, and whose id is used again.
            Copied::Gone => false,
            Copied::Unknown => true,
        }
    })
}

/// What the calling thread has beside its block; `None` where it is not registered.
pub(crate) fn levels(block: &ThreadBlock) -> Option<&'static Levels> {
    let at = block.levels.load(Ordering::Relaxed) as *const Levels;
    // SAFETY:
    // 1. It is null, or `register` stored the address of an entry's, and slabs are never unmapped.
    // 2. The entry is this thread's as long as the thread lives; all its words are atomic.
    unsafe { at.as_ref() }
}

/// The same for the calling thread. Safe in signal handlers.
pub(crate) fn is_busy_here(in_image: impl Fn(u64) -> bool) -> bool {
    let block = guard::block();
    block.runs(levels(block), guard::idle_value(block.addr()), in_image)
}

/// [`holds`] for the calling thread. Safe in signal handlers.
pub(crate) fn holds_here(is_of: impl Fn(u64) -> bool) -> bool {
    let block = guard::block();
    block.holds(levels(block), guard::idle_value(block.addr()), is_of)
}

/// What the kernel says of a block.
enum Copied {
    Block(ThreadBlock),
    /// Its memory is not mapped any more.
    Gone,
    /// The kernel does not say.
    Unknown,
}

/// Copies a block of another thread, whose memory may be gone by now.
fn read_block(at: u64) -> Copied {
    let mut copy = ThreadBlock::default();
    let len = size_of::<ThreadBlock>();
    // SAFETY: 1. all of it, which nothing else refers to meanwhile; any bytes are a block.
    let bytes = unsafe { std::slice::from_raw_parts_mut((&raw mut copy).cast::<u8>(), len) };
    match read_memory(at, bytes) {
        Ok(got) if got == len => Copied::Block(copy),
        Ok(_) | Err(libc::EFAULT) => Copied::Gone,
        Err(_) => Copied::Unknown,
    }
}

/// Gives entries of threads that have ended back, and their shadow stacks.
pub(crate) fn sweep() {
    // A child of `_Fork` knows its only thread by the parent's id.
    if PROCESS.load(Ordering::Relaxed) != getpid() {
        return;
    }
    for e in entries() {
        let tid = e.tid.load(Ordering::Acquire);
        if tid <= 0 || is_alive(tid) {
            continue;
        }
        let claimed = e
            .tid
            .compare_exchange(tid, CLAIMED, Ordering::Acquire, Ordering::Relaxed);
        if claimed.is_ok() {
            let stays = shadow::unmap(e.shadow.load(Ordering::Relaxed));
            e.shadow.store(stays, Ordering::Relaxed);
            e.tid.store(0, Ordering::Release);
        }
    }
}

fn is_alive(tid: i32) -> bool {
    let args = [getpid() as usize, tid as usize, 0];
    // SAFETY: 1. signal 0 only asks.
    let asked = unsafe { syscall(libc::SYS_tgkill, args) };
    asked != Err(libc::ESRCH)
}

/// In the child of a fork: the one thread has a new id.
pub(crate) fn after_fork_in_child() {
    take_process();
    let block = guard::block().addr();
    let tid = gettid();
    for e in entries().filter(|e| e.tid.load(Ordering::Relaxed) > 0) {
        if e.block.load(Ordering::Relaxed) == block {
            e.tid.store(tid, Ordering::Release);
        }
    }
}
