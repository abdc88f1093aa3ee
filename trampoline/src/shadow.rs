//! Shadow stacks: frames of images whose function must see the caller's stack pointer.
//!
//! When nobody can say how many arguments lie on the stack (a variadic or untyped function), an
//! image that wants to see the function return cannot have a frame of its own between the
//! caller's and the function's. Its frame lies in an entry of a per-thread shadow stack instead;
//! `sp` is left alone, and `fp`, which the function keeps, leads back to the entry.
//!
//! ```text
//!   base -> head: how many entries have ever been out, and how many that may be until they are
//!           collected
//!           entry  ┌─ frame of the image, or the next free entry ─┬ owner ┬ line ┬ sp ┐
//!           entry  │ …
//! ```
//!
//! Free entries are a list that begins in the thread's block ([`crate::guard`]). They need not come
//! back in the order in which they went, so several stacks on one thread (coroutines, signal
//! stacks) are no matter. `sp` is the caller's stack pointer while a call has the entry; 0 says
//! that none has, or that none has written it yet.
//!
//! *Signal handlers* take and give back entries between any two instructions of the code that they
//! interrupt. They give back all that they take, the last first, so they leave the list as it was,
//! and what they add is behind its last entry: that one is never taken, so a thread that has read
//! which entry comes next never writes an end over what a handler has added.
//!
//! *Jumps.* A call that is left by `longjmp` does not give its entry back. When many entries are
//! out, those are collected whose call is certainly over: seen from a call that is made with the
//! stack pointer `sp`,
//!
//! | the entry's `sp` | over, because |
//! | --- | --- |
//! | below ours, and all between is one readable piece of memory | the stack is shorter now; stacks are kept apart by guard pages |
//! | ours, and our call does not come from an image of such an entry | its caller goes on; else the function that we come from has jumped to its end, and its caller's image waits |
//! | on the alternate signal stack, and we are not | the handler is gone |
//! | below ours on that stack, when we are on it | as above; of others nothing is known then |
//! | [`LEFT_ELSEWHERE`] | it has returned on another thread |
//!
//! Collected calls are counted out of their images. Source of the idea: `kernel/trace/fgraph.c`
//! and its per-task return stack.

#![expect(
    unsafe_code,
    reason = "stack memory from mmap that machine code writes"
)]

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use text::syscall::syscall;

use crate::guard::{self, ThreadBlock};
use crate::life::Inflight;
use crate::slow::{Desc, Phase, count_missed};
use crate::table;

/// Size of an entry: the largest frame without stack arguments, and three words.
pub(crate) const ENTRY_BYTES: usize = 576;
/// What of it a frame may take.
pub(crate) const ENTRY_FRAME_BYTES: u32 = 552;
/// Of a free entry: the next one; 0 in the last.
pub(crate) const ENTRY_NEXT_OFF: i32 = 0;
/// The thread pointer of the thread to whose list it goes back.
pub(crate) const ENTRY_OWNER_OFF: i32 = 552;
/// The line of the in-flight counter that the call has incremented.
pub(crate) const ENTRY_LINE_OFF: i32 = 560;
/// The caller's stack pointer.
pub(crate) const ENTRY_SP_OFF: i32 = 568;
/// In the place of a stack pointer: the call has returned, on a thread that is not the owner.
pub(crate) const LEFT_ELSEWHERE: u64 = 1;

const _: () = assert!(ENTRY_FRAME_BYTES as i32 <= ENTRY_OWNER_OFF);
const _: () = assert!(ENTRY_SP_OFF as usize + 8 == ENTRY_BYTES);

/// Address space of one shadow stack; memory is used as calls nest.
const STACK_BYTES: usize = 8 << 20;
/// Entries that join the list at once: about a page of them.
const BATCH: u64 = 7;
/// The first collection comes when so many entries have been given out.
const FIRST_COLLECTION: u64 = 64;

/// Called by an image that found no free entry. Returns 1 when there is one now; 0 means that this
/// call goes unhooked.
///
/// # Safety
/// 1. `desc` is the descriptor of the live image that this thread is in. 2. `sp` and `ra` are what
///    the image was entered with.
pub(crate) unsafe extern "C" fn grow(desc: *const Desc, sp: u64, ra: u64) -> u64 {
    let call = Call { sp, ra };
    let room = Stack::of_this_thread().is_some_and(|stack| stack.grow(call));
    if !room {
        // SAFETY: 1. caller's contract.
        count_missed(unsafe { &*desc }, Phase::Entry);
    }
    u64::from(room)
}

/// The call that wants an entry.
#[derive(Copy, Clone, Debug)]
struct Call {
    sp: u64,
    ra: u64,
}

/// The shadow stack of this thread.
struct Stack {
    block: &'static ThreadBlock,
    base: u64,
}

/// An entry, by its address; or something else that words are in.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Entry(u64);

impl Entry {
    fn word(self, off: i32) -> &'static AtomicU64 {
        let at = self.0.wrapping_add_signed(off.into()) as *const AtomicU64;
        // SAFETY:
        // 1. Entries lie in the mapping of this thread, or of one that has ended, which the caller
        //    has not unmapped yet. Counters live as long as an entry that names them is out.
        // 2. Aligned; machine code and handlers change it under our feet, so it is atomic.
        unsafe { &*at }
    }

    fn next(self) -> &'static AtomicU64 {
        self.word(ENTRY_NEXT_OFF)
    }

    fn sp(self) -> &'static AtomicU64 {
        self.word(ENTRY_SP_OFF)
    }

    /// The line of the in-flight counter. The entry is out, so the counter lives.
    fn line(self) -> Entry {
        Entry(self.word(ENTRY_LINE_OFF).load(Relaxed))
    }

    /// The return address of the image that waits for the call of this entry.
    fn back(self, shard_off: u64) -> u64 {
        let counter = Entry(self.line().0.wrapping_sub(shard_off));
        counter.word(Inflight::BACK_OFF).load(Relaxed)
    }

    /// The call of this entry, whose `sp` it had, is over: whether it is ours to give out now.
    fn collect(self, sp: u64) -> bool {
        if self.sp().compare_exchange(sp, 0, Acquire, Relaxed).is_err() {
            return false;
        }
        if sp != LEFT_ELSEWHERE {
            // It had been counted in, and nobody else counts it out.
            self.line().word(0).fetch_sub(1, Release);
        }
        true
    }
}

/// The words at the base of a stack.
#[derive(Copy, Clone)]
enum Head {
    /// How many entries have ever been given out.
    Used = 0,
    /// How many that may be before the next collection.
    Collect = 8,
}

fn head_word(base: u64, word: Head) -> &'static AtomicU64 {
    Entry(base).word(word as i32)
}

/// The entries of the stack at `base` that have ever been given out.
fn used_entries(base: u64) -> impl Iterator<Item = Entry> {
    let used = head_word(base, Head::Used).load(Relaxed).min(room());
    (1..=used).map(move |i| Entry(base + i * ENTRY_BYTES as u64))
}

/// How many entries fit behind the head.
fn room() -> u64 {
    (STACK_BYTES / ENTRY_BYTES) as u64 - 1
}

impl Stack {
    /// Makes it when there is none.
    fn of_this_thread() -> Option<Self> {
        let block = guard::block();
        let base = match block.shadow_base.load(Relaxed) {
            0 => make(block)?,
            base => base,
        };
        Some(Stack { block, base })
    }

    /// Adds free entries to the list: collected ones when it is time, else fresh ones.
    fn grow(&self, call: Call) -> bool {
        let (used, collect_at) = (
            head_word(self.base, Head::Used),
            head_word(self.base, Head::Collect),
        );
        let is_time = |used: u64| used >= collect_at.load(Relaxed).min(room());
        if is_time(used.load(Relaxed)) {
            let found = self.collect(call);
            // Not again before there are twice as many, unless it was worth it.
            if found < used.load(Relaxed) / 2 {
                collect_at.fetch_max(2 * used.load(Relaxed), Relaxed);
            }
            if found > 0 {
                return true;
            }
        }
        self.add_fresh()
    }

    fn add_fresh(&self) -> bool {
        let used = head_word(self.base, Head::Used);
        let first = used.fetch_add(BATCH, Relaxed) + 1;
        let fresh = (first..first + BATCH).take_while(|i| *i <= room());
        let mut last = &self.block.shadow_free;
        for i in fresh {
            last = self.add(Entry(self.base + i * ENTRY_BYTES as u64), last);
        }
        // The number must not run over.
        used.fetch_min(room(), Relaxed);
        first <= room()
    }

    /// Puts an entry behind the last one; where that is, `last` says if it can. A signal handler
    /// may do the same meanwhile. Returns where the next one goes.
    fn add(&self, entry: Entry, mut last: &'static AtomicU64) -> &'static AtomicU64 {
        entry.next().store(0, Relaxed);
        let tp = guard::idle_value(self.block.addr());
        entry.word(ENTRY_OWNER_OFF).store(tp, Relaxed);
        while let Err(next) = last.compare_exchange(0, entry.0, Relaxed, Relaxed) {
            last = Entry(next).next();
        }
        entry.next()
    }

    /// Takes entries back whose calls are over; how many. Not inlined: its frame is not wanted below a
    /// thread's first call.
    #[inline(never)]
    fn collect(&self, call: Call) -> u64 {
        let Some(signal_stack) = SignalStack::now() else {
            return 0;
        };
        let shard_off = self.block.shard_off.load(Relaxed);
        let waits = |e: Entry| e.sp().load(Relaxed) == call.sp && e.back(shard_off) == call.ra;
        let jumped_to = used_entries(self.base).any(waits);
        let mut below = Below::of(call.sp);
        let (mut found, mut last) = (0, &self.block.shadow_free);
        for entry in used_entries(self.base) {
            let sp = entry.sp().load(Relaxed);
            let is_over = match sp {
                0 => false,
                LEFT_ELSEWHERE => true,
                sp if sp == call.sp => !jumped_to,
                sp => match signal_stack.contains(call.sp) {
                    // A handler's stack says nothing about the one that it interrupted.
                    true => signal_stack.contains(sp) && sp < call.sp,
                    false => signal_stack.contains(sp) || below.is_one_piece(sp),
                },
            };
            if is_over && entry.collect(sp) {
                last = self.add(entry, last);
                found += 1;
            }
        }
        found
    }
}

/// The alternate signal stack; empty for a thread that has none.
struct SignalStack(Range<u64>);

impl SignalStack {
    /// `None`: the kernel does not say.
    fn now() -> Option<Self> {
        text::signal::alternate_stack().ok().map(SignalStack)
    }

    fn contains(&self, sp: u64) -> bool {
        // The highest stack pointer is the end itself.
        self.0.contains(&sp.wrapping_sub(1))
    }
}

/// What is known of the memory below a stack pointer.
struct Below {
    sp: u64,
    /// From here up to it, it is one piece.
    lowest: u64,
    /// From here up, it is not.
    apart: u64,
}

impl Below {
    const PAGE: u64 = 4096;
    /// Farther away is another stack, whatever lies between.
    const FAR: u64 = 8 << 20;

    fn of(sp: u64) -> Self {
        Below {
            sp,
            lowest: sp,
            apart: sp.saturating_sub(Self::FAR),
        }
    }

    /// Is `low` below, and all between readable? A guard page is not, nor is what nobody has
    /// mapped.
    fn is_one_piece(&mut self, low: u64) -> bool {
        if low >= self.lowest || low <= self.apart {
            return low >= self.lowest && low < self.sp;
        }
        let start = low & !(Self::PAGE - 1);
        let end = self.lowest.next_multiple_of(Self::PAGE);
        let args = [
            start as usize,
            (end - start) as usize,
            libc::MADV_POPULATE_READ as usize,
        ];
        // SAFETY:
        // 1. Reads pages in, if they are there: memory keeps what it holds.
        let is_there = unsafe { syscall(libc::SYS_madvise, args) }.is_ok();
        match is_there {
            true => self.lowest = low,
            false => self.apart = low,
        }
        is_there
    }
}

/// Maps a stack for a thread that has none, or takes over what an ended thread has left.
fn make(block: &ThreadBlock) -> Option<u64> {
    if block.guard.load(Relaxed) == 0 {
        table::register(block).ok()?;
        block.guard.store(guard::idle_value(block.addr()), Relaxed);
    }
    let owner = table::shadow_of_this_thread()?;
    let mut base = owner.load(Relaxed);
    if base == 0 {
        let fresh = map()?;
        head_word(fresh, Head::Collect).store(FIRST_COLLECTION, Relaxed);
        base = match owner.compare_exchange(0, fresh, Relaxed, Relaxed) {
            Ok(_) => fresh,
            Err(of_handler) => {
                free(fresh);
                of_handler
            }
        };
    }
    block.shadow_base.store(base, Relaxed);
    Some(base)
}

#[inline(never)]
fn map() -> Option<u64> {
    let at = table::map_anonymous(STACK_BYTES, libc::MAP_NORESERVE)?.expose_provenance();
    // A huge page for a few entries, for every thread, would be a waste; a kernel without them
    // refuses, and that is as well.
    let args = [at, STACK_BYTES, libc::MADV_NOHUGEPAGE as usize];
    // SAFETY: 1. the mapping is ours; what it holds does not change.
    let _without = unsafe { syscall(libc::SYS_madvise, args) };
    Some(at as u64)
}

/// The thread with this stack has ended. Unmaps it, unless calls are still out: a coroutine may
/// have taken them to another thread. Then it stays for the next thread of the same place in the
/// table, which collects them when it can. Returns what stays.
pub(crate) fn unmap(base: u64) -> u64 {
    if base == 0 {
        return 0;
    }
    if used_entries(base).any(|e| e.sp().load(Acquire) > LEFT_ELSEWHERE) {
        // The list is lost with its thread.
        for entry in used_entries(base) {
            let free = entry.sp();
            let _out = free.compare_exchange(0, LEFT_ELSEWHERE, Relaxed, Relaxed);
        }
        head_word(base, Head::Collect).store(FIRST_COLLECTION, Relaxed);
        return base;
    }
    free(base);
    0
}

#[inline(never)]
fn free(base: u64) {
    // SAFETY: 1. mapped by `map` with this size. 2. No call is out, and no thread has it.
    let _ = unsafe { syscall(libc::SYS_munmap, [base as usize, STACK_BYTES]) };
}

#[cfg(all(target_arch = "riscv64", target_os = "linux"))]
mod thunk {
    use std::arch::global_asm;

    // Called from images with the link in t4. Keeps every register that the image has not saved
    // yet, and is left by `jr t4`. t3 = descriptor; returns the answer of `grow` in t5.
    global_asm!(
        ".section .text.rvbpf_shadow_0_1,\"ax\",@progbits",
        ".option push",
        // Module-level assembly does not inherit the target's extensions.
        ".option arch, +d",
        ".hidden rvbpf_shadow_grow_0_1",
        ".globl rvbpf_shadow_grow_0_1",
        ".type rvbpf_shadow_grow_0_1, @function",
        "rvbpf_shadow_grow_0_1:",
        "addi sp, sp, -160",
        "sd ra, 152(sp)",
        "sd t4, 144(sp)",
        "sd t2, 136(sp)",
        "sd a0, 0(sp)",
        "sd a1, 8(sp)",
        "sd a2, 16(sp)",
        "sd a3, 24(sp)",
        "sd a4, 32(sp)",
        "sd a5, 40(sp)",
        "sd a6, 48(sp)",
        "sd a7, 56(sp)",
        "fsd fa0, 64(sp)",
        "fsd fa1, 72(sp)",
        "fsd fa2, 80(sp)",
        "fsd fa3, 88(sp)",
        "fsd fa4, 96(sp)",
        "fsd fa5, 104(sp)",
        "fsd fa6, 112(sp)",
        "fsd fa7, 120(sp)",
        "mv a0, t3",
        "addi a1, sp, 160",
        "mv a2, ra",
        "call {grow}",
        "mv t5, a0",
        "ld ra, 152(sp)",
        "ld t4, 144(sp)",
        "ld t2, 136(sp)",
        "ld a0, 0(sp)",
        "ld a1, 8(sp)",
        "ld a2, 16(sp)",
        "ld a3, 24(sp)",
        "ld a4, 32(sp)",
        "ld a5, 40(sp)",
        "ld a6, 48(sp)",
        "ld a7, 56(sp)",
        "fld fa0, 64(sp)",
        "fld fa1, 72(sp)",
        "fld fa2, 80(sp)",
        "fld fa3, 88(sp)",
        "fld fa4, 96(sp)",
        "fld fa5, 104(sp)",
        "fld fa6, 112(sp)",
        "fld fa7, 120(sp)",
        "addi sp, sp, 160",
        "jr t4",
        ".size rvbpf_shadow_grow_0_1, . - rvbpf_shadow_grow_0_1",
        ".option pop",
        ".previous",
        grow = sym super::grow,
    );

    unsafe extern "C" {
        fn rvbpf_shadow_grow_0_1();
    }

    pub(crate) fn grow_addr() -> u64 {
        rvbpf_shadow_grow_0_1 as *const () as u64
    }
}

#[cfg(not(all(target_arch = "riscv64", target_os = "linux")))]
mod thunk {
    pub(crate) fn grow_addr() -> u64 {
        super::grow as *const () as u64
    }
}

pub(crate) use thunk::grow_addr;
