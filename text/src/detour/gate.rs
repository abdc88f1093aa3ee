//! The gate: neither a thread nor a child is started while a batch lays traps.
//!
//! A C library starts threads with all signals blocked, and they run a little (`memset`, `memcpy`)
//! before they set the mask that they shall have. The child of a `posix_spawn` shares our memory,
//! has its signals blocked, and has no handlers. A trap kills either. So the places where the
//! library begins to block signals for such a start ([`super::starts`]) are held for the time of a
//! change:
//!
//! ```text
//!   pthread_create:   …                       stacks, locks: all before
//!                     li    a7, rt_sigprocmask
//!                     li    a0, SIG_BLOCK
//!              gate:  ecall                   c.j .  while it is closed: whoever comes waits
//!                     …                       behind: blocks SIGTRAP, which can be looked for
//!                     clone
//!                     restore the mask        the new thread does, too, when it is ready
//!
//!   posix_spawn:      …
//!              gate:  jal   ra, block         c.j .
//!                     …
//!                     clone                   comes back when the child is another program
//!                     restore the mask
//! ```
//!
//! # Why nobody is starting when the traps are laid
//! 1. *Close*, flush: no hart goes through any more.
//! 2. *Pass by* what lies behind ([`Start`]): whoever was in the system call has left the kernel,
//!    with SIGTRAP blocked. From here on a thread that starts another one shows it, from before
//!    `clone` until after it, and so does the thread that is born. One that has a child shows it
//!    for as long as the child is in this memory.
//! 3. *Two looks* that find nobody who blocks SIGTRAP. When the first has seen a thread's mask
//!    open, that thread has no `clone` before it; who is born before that is listed by the second.
//!
//! Whoever waits at the gate holds no lock that a change takes, has its signals open, and answers
//! questions ([`crate::threads`]), the first of them in step 2. It spins until it is asked, and
//! then sleeps in the handler of the question ([`wait_here`]), or else those who wait would keep
//! the harts from those who are waited for. It takes a few milliseconds as a rule, the patience of
//! the change at most. The thread that changes must not come by: its signals are blocked, but for
//! faults, SIGTRAP, questions and what the C library keeps for itself.
//!
//! Where a function has no such place (another library), the gate is its entry, and a thread that
//! is between entry and `clone` when it closes is not known. Nor is one that is in a hook of the
//! private function which blocks the signals for `posix_spawn`.
//!
//! A child of a fork finds it open (`fork`). A refused flush leaves it open too: a hart may wait
//! until it fetches anew.
//!
//! Key types: [`Held`], [`Gate`]. Neighbours: [`super`], `starts`, `txn`, `fork`. Source: glibc
//! `nptl/pthread_create.c` (`__pthread_create_2_1`, `start_thread`),
//! `sysdeps/unix/sysv/linux/spawni.c` (`__spawnix`, `__spawni_child`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Plans;
use super::check::load_half;
use super::script::{self, Half, Shape};
use super::starts::{self, Start};
use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::insn;
use crate::signal::set_of;
use crate::state::{self, State};
use crate::sync::Event;
use crate::sys::{self, BlockedSignals};
use crate::threads::{self, Patience};
use crate::txn::{self, WordPatch};

/// How long step 2 waits. A thread needs the rest of a system call; one that cannot be seen is not
/// waited for.
const PASSING: Duration = Duration::from_millis(500);
/// When threads that run are asked.
const LOOKING: Duration = Duration::from_millis(1);
/// Between two tries to open it.
const OPENING: Duration = Duration::from_millis(1);

/// Where it is closed; 0 where it is not. For [`wait_here`].
static CLOSED_AT: [AtomicU64; starts::MOST] = [const { AtomicU64::new(0) }; starts::MOST];
/// That it has opened.
static OPENED: Event = Event::new();

/// Sleeps while a thread that a question has interrupted at `pc` could do no more than to spin
/// there. Async-signal-safe.
///
/// It does not wake up meanwhile: whoever looks for it, as step 2 of a change does, finds it asleep.
pub(crate) fn wait_here(pc: u64) {
    OPENED.wait_until(|| {
        let mut closed = CLOSED_AT.iter();
        let is_closed = closed.any(|at| at.load(Ordering::Acquire) == pc);
        // What is executed can be read. It counts, too: it is the parent's in a child that has a
        // copy of the word alone.
        !is_closed || load_half(RxAddr::new(pc)) != insn::C_J_0
    });
}

/// Whether it is closed, under the text lock.
pub(crate) struct Gate {
    /// Where it can be, once that has been looked for.
    known: Option<Arc<[Start]>>,
    closed: Option<Closed>,
}

struct Closed {
    /// What stands there when it is open.
    places: Vec<(Start, u16)>,
    /// Batches that want it closed.
    nr_batches: usize,
}

impl Gate {
    pub(crate) const fn open() -> Self {
        Self {
            known: None,
            closed: None,
        }
    }

    /// What it hides, and where.
    pub(crate) fn hides(&self) -> impl Iterator<Item = (RxAddr, u16)> {
        let places = self.closed.iter().flat_map(|closed| &closed.places);
        places.map(|(start, half)| (start.at, *half))
    }

    /// One batch less wants it closed; whether others do.
    fn is_left_to_others(&mut self) -> bool {
        match &mut self.closed {
            Some(closed) if closed.nr_batches > 1 => {
                closed.nr_batches -= 1;
                true
            }
            Some(_) | None => false,
        }
    }
}

/// In the child of a fork, over its own copy of the text: whoever closed it does not exist here.
pub(crate) fn open_in_child(state: &mut State) {
    // What is refused here would have been refused to the copy.
    let _ = open(state);
}

/// One batch's hold of the gate, which opens it when it is dropped. Not to be dropped under the
/// text lock.
pub(super) struct Held {
    /// Where it can be.
    starts: Arc<[Start]>,
    /// While it is closed: where nobody may be who came by before.
    closed: Option<(Vec<RxRange>, BlockedSignals)>,
}

/// What a call of [`Held::close`] has come to.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Change {
    /// It has just been closed: see [`Held::pass_by`].
    Closed,
    /// It is as it was: closed before, or never.
    None,
}

impl Held {
    /// No lock of this crate may be held.
    pub(super) fn new() -> Self {
        let known = state::lock().gate.known.clone();
        let starts = known.unwrap_or_else(|| {
            let found: Arc<[Start]> = starts::find().into();
            state::lock().gate.known = Some(Arc::clone(&found));
            found
        });
        Self {
            starts,
            closed: None,
        }
    }

    /// Closes it for `plans`, once. Not where it cannot be: in text that nobody may change, or
    /// that a site of ours, or one of these plans, covers.
    pub(super) fn close(&mut self, state: &mut State, plans: &Plans) -> Result<Change, TextError> {
        if self.is_closed() {
            return Ok(Change::None);
        }
        if let Some(closed) = &mut state.gate.closed {
            closed.nr_batches += 1;
            self.closed = Some((behind(&closed.places), blocked_signals()));
            return Ok(Change::Closed);
        }
        let places = places(state, &self.starts, plans)?;
        if places.is_empty() {
            self.starts = Arc::new([]);
            return Ok(Change::None);
        }
        let patches = patches_of(places.iter().map(|(start, half)| Half {
            at: start.at,
            old: *half,
            new: insn::C_J_0,
        }))?;
        let behind = behind(&places);
        let signals = blocked_signals();
        txn::patch_locked(state, &patches)?;
        for (word, (start, _)) in CLOSED_AT.iter().zip(&places) {
            word.store(start.at.get(), Ordering::Release);
        }
        state.gate.closed = Some(Closed {
            places,
            nr_batches: 1,
        });
        self.closed = Some((behind, signals));
        Ok(Change::Closed)
    }

    /// Waits until whoever came by before it closed shows it by its mask, and makes those sleep who
    /// wait at it. Without the text lock.
    pub(super) fn pass_by(&self) {
        let Some((behind, _)) = &self.closed else {
            return;
        };
        let patience = Patience::Signal {
            after: LOOKING,
            deadline: PASSING,
        };
        // Who cannot be seen is not known to be there.
        let _ = threads::pass_by_until(behind, patience);
    }

    /// Whether it has held anybody's start.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_closed() {
            return;
        }
        // Until it is open: nobody could ever start a thread again.
        loop {
            let mut state = state::lock();
            if state.gate.is_left_to_others() || open(&mut state).is_ok() {
                return;
            }
            drop(state);
            std::thread::sleep(OPENING);
        }
    }
}

/// Where it can be closed, and what stands there.
fn places(
    state: &mut State,
    starts: &[Start],
    plans: &Plans,
) -> Result<Vec<(Start, u16)>, TextError> {
    let is_free = |start: &&Start| {
        let half = RxRange::new(start.at, 2);
        let covers = |shape: &Shape| shape.detour.covered().contains(start.at);
        !state.has_site_in(half)
            && state.detours_over(half).next().is_none()
            && !plans.iter().any(|(shape, _)| covers(shape))
    };
    let free: Vec<Start> = starts.iter().filter(is_free).copied().collect();
    let words = free.iter().map(|start| [start.at.align_down(4)]);
    let present = txn::present(state, words)?;
    let present = free.into_iter().zip(present).filter(|(_, is)| *is);
    let places = present.map(|(start, _)| (start, load_half(start.at)));
    Ok(places.collect())
}

fn behind(places: &[(Start, u16)]) -> Vec<RxRange> {
    places.iter().map(|(start, _)| start.behind).collect()
}

/// # Errors
/// Those of mapping memory; it is closed still.
fn open(state: &mut State) -> Result<(), TextError> {
    if state.gate.closed.is_none() {
        return Ok(());
    }
    // A debugger that takes a breakpoint away has opened it.
    let is_closed = |(at, _): &(RxAddr, u16)| load_half(*at) == insn::C_J_0;
    let patches = patches_of(state.gate.hides().filter(is_closed).map(|(at, half)| Half {
        at,
        old: insn::C_J_0,
        new: half,
    }))?;
    if !patches.is_empty() {
        txn::store_for_good(state, &patches)?;
    }
    for at in &CLOSED_AT {
        at.store(0, Ordering::Release);
    }
    OPENED.tell();
    state.gate.closed = None;
    Ok(())
}

/// This thread's signals, but for those that it may have to answer.
fn blocked_signals() -> BlockedSignals {
    let question = threads::question_signal().map_or(0, |signo| set_of(&[signo]));
    // The C library's own: `pthread_cancel`, `setuid`.
    let library = (32..libc::SIGRTMIN()).fold(0, |set, signo| set | set_of(&[signo]));
    BlockedSignals::but(set_of(&sys::FAULTS) | question | library)
}

fn patches_of(halves: impl Iterator<Item = Half>) -> Result<Vec<WordPatch>, TextError> {
    script::compose(&halves.collect::<Vec<_>>(), sys::load_text_u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_words_are_exchanged_in_their_words() {
        let word = 0x1234_5678;
        for (off, old, want) in [(0, 0x5678, 0x1234_a001), (2, 0x1234, 0xa001_5678)] {
            let at = RxAddr::new(0x1000 + off);
            let new = insn::C_J_0;
            let patches = script::compose(&[Half { at, old, new }], |_| word).unwrap();
            let [patch] = patches[..] else {
                panic!("{patches:?}");
            };
            assert_eq!((patch.at.get(), patch.old, patch.new), (0x1000, word, want));
        }
    }
}
