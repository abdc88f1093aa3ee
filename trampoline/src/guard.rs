//! The word per thread that says which image is running programs on it.
//!
//! An image that runs programs first looks at its thread's `guard`:
//!
//! | guard | means | what the image does |
//! | --- | --- | --- |
//! | `tp` | this thread runs no program and is registered | stores its *key* there, runs the programs, stores `tp` again |
//! | 0 | the thread is new (thread-local memory starts as zero) | the slow path registers it |
//! | a key | the thread runs a program of that image now | the slow path tells recursion from nesting |
//!
//! A *key* is the address of an instruction of the image; the eight bytes before it point to the
//! image's [`Desc`](crate::slow::Desc). So an image needs one `auipc` to name itself, and the
//! grace period sees from any thread's guard which image it is in: keys lie in the range of the
//! image.
//!
//! Beside it stands what a thread holds of *struct_ops* tables: the entry of the member that it is
//! in, those that it was in when it called that one, and the tables that it has pinned
//! ([`crate::indirect`]).
//!
//! Registered threads stand in a table (`tid`, address of the block), so that a grace period
//! can look at the guard of a thread that sleeps. Neither registering nor looking allocates from
//! the heap: both may happen inside a hooked `malloc`.
//!
//! Source of the idea: the per-CPU `prog->active` of `kernel/bpf/trampoline.c`, made one word
//! for all programs of an image.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Nested images that are remembered; deeper nesting counts as recursion.
pub(crate) const MAX_NESTING: usize = 11;

/// Members inside members that are remembered by name; deeper ones are counted.
pub(crate) const OPS_NESTING: usize = 6;

/// Tables that a thread can have pinned at a time by name; more are counted.
pub(crate) const OPS_PINS: usize = 8;

/// The thread-local block that images read and write, addressed from `tp`. Its words are atomic
/// because machine code and signal handlers of the same thread change them under our feet; all
/// accesses are plain loads and stores.
///
/// It has 64 bytes: a library that is opened late gets its part of static TLS from what the dynamic
/// linker keeps for that, which is little ([`crate::tls`]).
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct ThreadBlock {
    /// See the module.
    pub(crate) guard: AtomicU64,
    /// Byte offset of this thread's line among the in-flight counters.
    pub(crate) shard_off: AtomicU64,
    /// Shadow stack: the first free entry, and where the stack begins; 0 if there is none.
    pub(crate) shadow_free: AtomicU64,
    pub(crate) shadow_base: AtomicU64,
    /// The closure that it runs ([`crate::mark`]); 0: none.
    pub(crate) mark: AtomicU64,
    /// The entry of the struct_ops member that the thread is in; `tp`: none; 0: not registered.
    pub(crate) ops: AtomicU64,
    /// How many images' programs were interrupted by those of the one in `guard`.
    pub(crate) depth: AtomicU32,
    /// In how many struct_ops members it was when it called the one in `ops`.
    pub(crate) ops_depth: AtomicU32,
    /// Address of the thread's [`Levels`]; 0: not registered.
    pub(crate) levels: AtomicU64,
}

/// What a thread has below what its block names. It lies in the table of threads, which is never
/// freed ([`crate::table`]).
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Levels {
    /// Keys of the images whose programs were interrupted by the one in `guard`.
    pub(crate) nested: [AtomicU64; MAX_NESTING],
    /// The closures of those.
    pub(crate) marks: [AtomicU64; MAX_NESTING],
    /// Entries of the members that the thread was in when it called the one in `ops`.
    pub(crate) ops_nested: [AtomicU64; OPS_NESTING],
    /// Numbers of the tables that it has pinned, 0 where none.
    pub(crate) pins: [AtomicU64; OPS_PINS],
}

const _: () = assert!(size_of::<ThreadBlock>() == BLOCK_BYTES);
/// What a thread-local block takes.
pub(crate) const BLOCK_BYTES: usize = 64;
pub(crate) const GUARD_OFF: i32 = offset_of!(ThreadBlock, guard) as i32;
pub(crate) const SHARD_OFF: i32 = offset_of!(ThreadBlock, shard_off) as i32;
pub(crate) const SHADOW_FREE_OFF: i32 = offset_of!(ThreadBlock, shadow_free) as i32;
pub(crate) const OPS_OFF: i32 = offset_of!(ThreadBlock, ops) as i32;
pub(crate) const OPS_DEPTH_OFF: i32 = offset_of!(ThreadBlock, ops_depth) as i32;
pub(crate) const LEVELS_OFF: i32 = offset_of!(ThreadBlock, levels) as i32;
pub(crate) const OPS_NESTED_OFF: i32 = offset_of!(Levels, ops_nested) as i32;

pub(crate) use imp::{block, errno_tp_off, thread_tp_off};

#[cfg(all(target_arch = "riscv64", target_os = "linux"))]
#[expect(
    unsafe_code,
    reason = "a thread-local block that machine code shares, found from tp"
)]
mod imp {
    use super::ThreadBlock;
    use crate::tls;

    pub(crate) use text::threads::thread_pointer as tp;

    /// The block of a process that has none: nothing runs in an image there, and nothing is in it.
    static NONE: ThreadBlock = ThreadBlock::new();

    /// Distance of the block from `tp`, the same for every thread. There is one where code is
    /// made: [`tls::ready`] comes before.
    #[inline]
    pub(crate) fn thread_tp_off() -> i64 {
        tls::tp_off().unwrap_or_default()
    }

    /// Distance of `errno` from `tp`; C libraries keep it in static TLS.
    pub(crate) fn errno_tp_off() -> i64 {
        // SAFETY:
        // 1. `__errno_location` has no preconditions.
        let errno = unsafe { libc::__errno_location() };
        (errno as u64).wrapping_sub(tp()) as i64
    }

    /// This thread's block; not to be kept beyond the caller.
    #[inline]
    pub(crate) fn block() -> &'static ThreadBlock {
        let Some(off) = tls::tp_off() else {
            return &NONE;
        };
        let at = tp().wrapping_add_signed(off) as *const ThreadBlock;
        // SAFETY:
        // 1. The block lies in this thread's static TLS, which lives as long as the thread runs.
        // 2. It is aligned and zeroed, as `tls` says, and zeros are a valid block; all its words
        //    are atomic.
        unsafe { &*at }
    }
}

#[cfg(all(target_arch = "riscv64", target_os = "linux"))]
pub(crate) use imp::tp;

#[cfg(not(all(target_arch = "riscv64", target_os = "linux")))]
mod imp {
    use super::ThreadBlock;

    // Enough for the parts that other hosts can test: nothing runs in an image there.
    thread_local! {
        static BLOCK: &'static ThreadBlock = Box::leak(Box::default());
    }

    pub(crate) fn thread_tp_off() -> i64 {
        64
    }

    pub(crate) fn errno_tp_off() -> i64 {
        256
    }

    pub(crate) fn block() -> &'static ThreadBlock {
        BLOCK.with(|b| *b)
    }
}

/// What `guard` holds while no program runs: the thread pointer on riscv64. `block_addr` is the
/// address of the block in its thread.
pub(crate) fn idle_value(block_addr: u64) -> u64 {
    block_addr.wrapping_sub(thread_tp_off() as u64)
}

impl Levels {
    /// The key and the mark of an image whose programs were interrupted.
    pub(crate) fn level(&self, level: usize) -> (u64, u64) {
        (
            self.nested[level].load(Relaxed),
            self.marks[level].load(Relaxed),
        )
    }

    /// As a new thread has it.
    pub(crate) fn clear(&self) {
        let closures = self.nested.iter().chain(&self.marks);
        let words = closures.chain(&self.ops_nested).chain(&self.pins);
        words.for_each(|word| word.store(0, Relaxed));
    }
}

impl ThreadBlock {
    /// As a new thread has it.
    #[cfg(all(target_arch = "riscv64", target_os = "linux"))]
    pub(crate) const fn new() -> Self {
        Self {
            guard: AtomicU64::new(0),
            shard_off: AtomicU64::new(0),
            shadow_free: AtomicU64::new(0),
            shadow_base: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            ops: AtomicU64::new(0),
            depth: AtomicU32::new(0),
            ops_depth: AtomicU32::new(0),
            levels: AtomicU64::new(0),
        }
    }

    /// Where it is.
    pub(crate) fn addr(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }

    /// Is a key that `in_image` knows among the images whose programs the thread runs? `levels` are
    /// the thread's.
    pub(crate) fn runs(
        &self,
        levels: Option<&Levels>,
        idle: u64,
        in_image: impl Fn(u64) -> bool,
    ) -> bool {
        let guard = self.guard.load(Relaxed);
        let depth = (self.depth.load(Relaxed) as usize).min(MAX_NESTING);
        let mut nested = levels.iter().flat_map(|levels| &levels.nested[..depth]);
        guard != 0
            && ((guard != idle && in_image(guard)) || nested.any(|k| in_image(k.load(Relaxed))))
    }

    /// Is the thread in a member, or has it pinned a table, that `is_of` knows?
    pub(crate) fn holds(
        &self,
        levels: Option<&Levels>,
        idle: u64,
        is_of: impl Fn(u64) -> bool,
    ) -> bool {
        let now = self.ops.load(Relaxed);
        let depth = (self.ops_depth.load(Relaxed) as usize).min(OPS_NESTING);
        let of = |levels: &'_ Levels| {
            let mut more = levels.ops_nested[..depth].iter().chain(&levels.pins);
            more.any(|word| counts(word.load(Relaxed), idle, &is_of))
        };
        counts(now, idle, &is_of) || levels.is_some_and(of)
    }
}

fn counts(word: u64, idle: u64, is_of: impl Fn(u64) -> bool) -> bool {
    word != 0 && word != idle && is_of(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_holds_of_tables_is_found_everywhere() {
        let (b, l) = (ThreadBlock::default(), Levels::default());
        let mine = |k| (100..200).contains(&k);
        assert!(!b.holds(Some(&l), 150, mine));
        b.ops.store(150, Relaxed);
        assert!(!b.holds(Some(&l), 150, mine), "idle");
        assert!(b.holds(Some(&l), 5, mine), "in a member");
        b.ops.store(300, Relaxed);
        l.ops_nested[1].store(150, Relaxed);
        b.ops_depth.store(1, Relaxed);
        assert!(
            !b.holds(Some(&l), 5, mine),
            "a level above the depth is stale"
        );
        b.ops_depth.store(2, Relaxed);
        assert!(b.holds(Some(&l), 5, mine), "in a member further out");
        b.ops_depth.store(u32::MAX, Relaxed);
        assert!(b.holds(Some(&l), 5, mine), "whatever the depth says");
        b.ops_depth.store(0, Relaxed);
        l.pins[OPS_PINS - 1].store(150, Relaxed);
        assert!(b.holds(Some(&l), 5, mine), "pinned");
    }

    #[test]
    fn a_key_is_found_at_every_level() {
        let (b, l) = (ThreadBlock::default(), Levels::default());
        let mine = |k| (100..200).contains(&k);
        assert!(!b.runs(Some(&l), 5, mine));
        b.guard.store(5, Relaxed);
        assert!(!b.runs(Some(&l), 5, mine));
        b.guard.store(150, Relaxed);
        assert!(b.runs(Some(&l), 5, mine));
        b.guard.store(300, Relaxed);
        l.nested[0].store(150, Relaxed);
        assert!(
            !b.runs(Some(&l), 5, mine),
            "a level above the depth is stale"
        );
        b.depth.store(1, Relaxed);
        assert!(b.runs(Some(&l), 5, mine));
    }
}
