//! Where every thread of this process is, without stopping any of them.
//!
//! A change to live code often has a second half that must wait: the second word of a pair may be
//! stored only when nobody stands between the two, and an image may be freed only when nobody can
//! be in it. The kernel waits with `rcu_tasks`; this module is its twin in user space.
//!
//! [`pass_by`] proves, for every thread, that at *one instant after the call began* the thread was
//! outside the given ranges. The caller has first changed (and flushed) the code so that nobody
//! can newly enter them; so a thread seen outside once is outside for good, and the proofs of
//! different threads need no common instant.
//!
//! How one thread is proved outside (first that works):
//!
//! | thread is | what is read | disturbed |
//! | --- | --- | --- |
//! | blocked | its pc and sp from `/proc/self/task/TID/syscall`, and the signal frames on its stack | no |
//! | running | the same, later: polled until it is caught blocked | no |
//! | never blocking | it is asked by a real-time signal and answers in the handler ([`Patience::Signal`]) | a handler runs |
//! | gone | nothing | no |
//!
//! A blocked thread never sees a signal, so its system call is not interrupted. (A thread that was
//! running at every look of the polling time and blocks between the last look and the signal is
//! woken like by any handled signal with `SA_RESTART`.)
//!
//! What counts as *inside*: the pc of the thread; the pc of any context that a signal interrupted
//! and whose handler has not returned (the handler may block for long, and then the thread resumes
//! in the range); and whatever the caller's [`Watch`] says.
//!
//! # What is left out, and why that is sound
//! - **Threads created after the start.** A new thread's first user instruction is the one after
//!   `clone`'s `ecall`, on a fresh stack: outside every range, unless a range holds that very
//!   instruction. From there it could only newly enter, which the caller has ruled out.
//! - **`vfork` and `posix_spawn` children** run in this memory under another process id and are
//!   in no list here. While one exists its parent is blocked in `clone`: such a parent is not
//!   taken for outside until it has left that call.
//! - **Contexts that no stack holds.** A signal handler that leaves by switching to another stack,
//!   to come back later (preemptive coroutines made from `swapcontext` in a handler), hides the
//!   context that it interrupted. No such context is looked for.
//!
//! # Locks
//! There are none, on purpose: a hook program may run anywhere, also in an allocation that this
//! module makes, and may call this module again. Slots for questions are claimed by
//! compare-and-swap and carry the process id of their owner, so a `fork` in the midst of somebody
//! else's question leaves nothing that the child could wait for. System calls are made directly,
//! not through libc functions that may be hooked. Memory is allocated in few, plain places; the
//! signal handler allocates nothing.
//!
//! Neighbours: live sites (`site`) wait here between the two halves of a pad; trampolines wait here
//! before an image is freed. Source: `kernel/rcu/tasks.h`; `fs/proc/base.c` (`proc_pid_syscall`),
//! `lib/syscall.c` (`task_current_syscall`), `arch/riscv/kernel/signal.c` (`setup_rt_frame`).

mod ask;
mod engine;
mod frames;
mod proc;
mod sys;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::missing;
use crate::{RxRange, TextError};

#[cfg(target_arch = "riscv64")]
pub(crate) use frames::ANSWERED;

/// What must be proved absent: a thread whose pc, or the pc of a context that a signal interrupted
/// on it, lies in one of the ranges, or of which the watch itself says that it is busy.
pub trait Watch: Sync {
    /// The code ranges that a thread must be out of. Read once, at the start.
    fn ranges(&self) -> &[RxRange];

    /// Whether the thread that runs this is busy in a way that the ranges do not show, for
    /// example because it will return into one of them. It runs in a signal handler: it must be
    /// async-signal-safe (no lock, no allocation, no panic) and short.
    fn busy_here(&self) -> bool;

    /// The same of thread `tid`, which is off-cpu for as long as this runs, or else the answer is
    /// thrown away. Called on the caller's thread, which is never `tid`.
    fn busy_of(&self, tid: i32) -> bool;

    /// Where a thread that a signal has interrupted at `pc`, inside the ranges, may as well go on:
    /// a place outside of them that does the same from there. `None`: it is waited for.
    ///
    /// Only the thread that answers is carried, and only the context that the question itself has
    /// interrupted: that one the kernel hands over. Contexts deeper on its stack are found by
    /// search. To read one that is none costs time; to write to one that is none would cost the
    /// program its data, so those are waited for.
    ///
    /// It runs in a signal handler, like [`Watch::busy_here`].
    fn carry(&self, _pc: u64) -> Option<u64> {
        None
    }

    /// A thread, or a context that a signal interrupted on it, was seen at `pc`, inside the
    /// ranges; 0 if it is not known where. May run in a signal handler, like
    /// [`Watch::busy_here`].
    fn seen_at(&self, _pc: u64) {}
}

/// How long to wait for threads that are not proved outside at once, and by what means.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Patience {
    /// Look again and again for this long; no thread ever sees a signal. Whoever never blocks in
    /// that time is reported as stuck.
    PollOnly(Duration),
    /// Look for `after`, then ask those that are still running by signal, until `deadline` (both
    /// counted from the start).
    Signal {
        /// Time in which threads are only looked at.
        after: Duration,
        /// When to give up. Threads are asked once even if a single look takes longer, and have 20 ms
        /// more for an answer that is under way.
        deadline: Duration,
    },
}

impl Patience {
    /// Signals after an eighth of the deadline, at most 10 ms: a thread that sleeps now and then is
    /// mostly caught before.
    #[must_use]
    pub fn until(deadline: Duration) -> Self {
        let after = (deadline / 8).min(Duration::from_millis(10));
        Self::Signal { after, deadline }
    }

    fn deadline(self) -> Duration {
        match self {
            Self::PollOnly(deadline) | Self::Signal { deadline, .. } => deadline,
        }
    }

    /// Whether there is a time at which threads are asked.
    fn asks(self) -> bool {
        match self {
            Self::PollOnly(_) => false,
            Self::Signal { after, deadline } => after <= deadline,
        }
    }
}

/// Why a thread could not be proved outside.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StuckWhy {
    /// It is in the ranges, or a signal handler on it interrupted a context that is, or the watch
    /// calls it busy.
    Inside,
    /// The thread that asks is itself inside or busy. Waiting cannot help, so there was no wait.
    Caller,
    /// It was running at every look, and was not to be asked or did not answer in time.
    Running,
    /// It was running at every look and blocks the signal by which it would be asked.
    SignalBlocked,
    /// It waits for a `vfork` child, which runs in this memory and cannot be seen.
    Vfork,
    /// What the kernel shows of it could not be read (errno), and it did not answer in time. A
    /// thread id of 0 means that the threads could not even be listed.
    Hidden(i32),
}

impl fmt::Display for StuckWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside => f.write_str("it is still inside"),
            Self::Caller => f.write_str("it is the calling thread, which is itself inside"),
            Self::Running => f.write_str("it never blocked and did not answer"),
            Self::SignalBlocked => f.write_str("it never blocked and blocks all signals"),
            Self::Vfork => f.write_str("it waits for a vfork child"),
            Self::Hidden(errno) => {
                let missing = missing(*errno);
                write!(f, "its state cannot be read (errno {errno}): {missing}")
            }
        }
    }
}

/// Proves that every thread has been outside `ranges` at some instant after this call began.
///
/// The caller has made sure before that nobody can newly enter them. Threads are looked at first
/// and asked by signal if they never block ([`Patience::until`]). An empty slice is proved by
/// looking at nobody.
///
/// # Errors
/// [`TextError::Stuck`] names the first thread that could not be proved outside in time.
///
/// Source: `kernel/rcu/tasks.h`, `synchronize_rcu_tasks`.
#[doc(alias = "synchronize_rcu_tasks")]
pub fn pass_by(ranges: &[RxRange], deadline: Duration) -> Result<(), TextError> {
    Ok(pass_by_until(ranges, Patience::until(deadline))?)
}

/// [`pass_by`] with a choice of means.
pub(crate) fn pass_by_until(ranges: &[RxRange], patience: Patience) -> Result<(), Stuck> {
    if ranges.is_empty() {
        return Ok(());
    }
    pass_by_watch(&RangesOnly(ranges), patience)
}

/// [`pass_by`] with a [`Watch`] of the caller's and a choice of means.
///
/// Cost per blocked thread: nine system calls, of which two open a file. Any number of callers may
/// be in here at once.
///
/// # Errors
/// [`Stuck`] names the first thread that could not be proved outside in time, and why; it turns
/// into a [`TextError::Stuck`], or, if the kernel does not show the thread, into a
/// [`TextError::ThreadUnseen`] or [`TextError::ThreadsUnseen`].
pub fn pass_by_watch(watch: &dyn Watch, patience: Patience) -> Result<(), Stuck> {
    LOOKS.fetch_add(1, Ordering::Relaxed);
    engine::prove(watch, patience)
}

pub use sys::thread_pointer;

/// Whether the calling thread is in a signal handler, as far as can be known: a frame of the kernel
/// is on its stack, or that cannot be read. A stale frame counts too (`frames`).
///
/// Async-signal-safe. A system call for each kilobyte of stack.
pub fn may_be_in_handler() -> bool {
    ask::is_interrupting()
}

/// How often all threads were looked at.
static LOOKS: AtomicU64 = AtomicU64::new(0);

/// For tests and benches.
pub(crate) fn look_count() -> u64 {
    LOOKS.load(Ordering::Relaxed)
}

/// A thread of this process that blocks signal `signo`, if there is one. `Ok(None)` also where the
/// kernel shows an emulator's threads instead of ours.
pub(crate) fn blocking(signo: i32) -> Result<Option<i32>, Stuck> {
    LOOKS.fetch_add(1, Ordering::Relaxed);
    engine::blocking(signo)
}

/// The ids of all threads of this process.
pub(crate) fn list() -> Result<Vec<i32>, Stuck> {
    engine::ids()
}

/// The signal by which threads are asked, if there is one: whoever blocks signals for long leaves
/// it open.
pub(crate) fn question_signal() -> Option<i32> {
    ask::signal().ok()
}

/// A thread that could not be proved outside. Kernel: `-EBUSY`.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("thread {tid} was not proved outside: {why}")]
pub struct Stuck {
    /// The thread.
    pub tid: i32,
    /// What is known of it.
    pub why: StuckWhy,
}

impl From<Stuck> for TextError {
    fn from(stuck: Stuck) -> Self {
        match stuck {
            Stuck {
                tid: 0,
                why: StuckWhy::Hidden(errno),
            } => Self::ThreadsUnseen { errno },
            Stuck {
                tid,
                why: StuckWhy::Hidden(errno),
            } => Self::ThreadUnseen { tid, errno },
            Stuck { tid, .. } => Self::Stuck { tid },
        }
    }
}

struct RangesOnly<'a>(&'a [RxRange]);

impl Watch for RangesOnly<'_> {
    fn ranges(&self) -> &[RxRange] {
        self.0
    }

    fn busy_here(&self) -> bool {
        false
    }

    fn busy_of(&self, _tid: i32) -> bool {
        false
    }
}
