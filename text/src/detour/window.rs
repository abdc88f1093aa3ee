//! A change without a trap: the entry is `c.j .` for a moment, and threads that come by wait in it.
//!
//! A trap kills a thread that blocks SIGTRAP, and a child that has no handlers. Where one of those
//! is about, the steps are the same with another head ([`Script::waiting`]):
//!
//! ```text
//!   close          c.j .          a thread that comes by spins at the entry, outside of the tail
//!   pass by                       no thread is in the covered bytes
//!   tail, head                    waiting threads go where the detour leads
//! ```
//!
//! # Bounded
//! The text lock is held from beginning to end, so other batches and `fork` wait, too, and nothing
//! of it is seen outside this file. If threads cannot be proved outside within the patience (one
//! runs all the time and blocks all signals; one waits for a child of `vfork`) the old head is
//! stored: nothing has changed then. The caller tries again, for longer, after a pause.
//!
//! # Waiting threads
//! | thread | is let go |
//! | --- | --- |
//! | a thread that is asked | the question's handler leads it to the detour's target ([`super::leave`]), as a trap would; it calls no function that may be closed, not even `memset` |
//! | a thread that blocks all signals, a child of `vfork` | at the end |
//! | the thread that changes: the C library's functions that it calls (`malloc`, `openat`, `memcpy`) may be what is closed | a timer's signal, a fraction of a millisecond later, leads it to the target |
//! | the thread that changes waits for a lock, whose holder waits at the entry (`mmap`, in an allocator) | at its deadline the timer's handler itself stores the old heads (`tick`); the change was in vain |
//! | the thread that changes, on the only hart, under one of real-time priority | it takes a higher one before it begins, or does not (`rank`) |
//! | the thread that changes: its own signal handlers | all its signals but faults and the timer's are blocked |
//!
//! Behind the proof there are no locks and no memory to wait for: stores of half-words through
//! views that were mapped before, and flushes.
//!
//! # Why half-words
//! Each store is one aligned half of a word that other sites may share; no hart sees a half of it.
//! The first half-word decides alone what a hart does at the entry. Of the rest, no hart
//! executes anything while it is closed.
//!
//! # A refused flush
//! Closing or opening: a hart that has not heard of it waits, or does what it did; the old head is
//! right in both cases. The tail: the old one is stored again and flushed until that succeeds, or
//! else the heads become traps, as in `change`. The new head: the old one is `c.j .`; it stays, and
//! is flushed again.
//!
//! Neighbours: `change` (calls it), `tick`, `rank`, `script`, [`crate::txn`].

use std::time::Duration;

use super::check::load_half;
use super::pass::Inside;
use super::rank;
use super::script::{Half, Part, Pass, Script};
use super::tick::{Closed, Ticker};
use crate::addr::RxAddr;
use crate::error::TextError;
use crate::insn::C_EBREAK;
use crate::state::State;
use crate::syscall::Errno;
use crate::threads::{self, Patience};
use crate::txn::Prepared;

/// When threads that run are asked.
const LOOKING: Duration = Duration::from_millis(1);
/// How often a refused flush is tried again, and how long between.
const FLUSHES: usize = 100;
const FLUSHING: Duration = Duration::from_millis(1);

/// What came of it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Window {
    /// All sites are what they should be.
    Changed,
    /// All are what they were: a thread could not be proved outside.
    Stuck,
}

/// Something was refused.
pub(super) struct Refused {
    pub(super) why: TextError,
    pub(super) left: Left,
}

/// What the sites are then.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Left {
    Unchanged,
    Changed,
    /// Their heads are traps.
    Traps,
}

/// How long after the proof's end the timer opens what is closed.
const fn limit(patience: Duration) -> Duration {
    patience
        .saturating_mul(2)
        .saturating_add(Duration::from_millis(100))
}

/// Carries out scripts of [`Script::waiting`], all or none. Under the text lock.
pub(super) fn carry_out(
    state: &mut State,
    scripts: &[Script],
    patience: Duration,
) -> Result<Window, Refused> {
    let unchanged = |why| Refused {
        why,
        left: Left::Unchanged,
    };
    let part = |part| scripts.iter().flat_map(move |s| s.part(part));
    let prepared = prepare(state, scripts).map_err(unchanged)?;
    let passes: Vec<&Pass> = scripts.iter().filter_map(|s| s.pass.as_ref()).collect();
    let passes: Vec<_> = passes.into_iter().enumerate().collect();
    let watch = Inside::new(&passes);
    let opens: Vec<(RxAddr, u16)> = part(Part::Close).map(|h| (h.at, h.old)).collect();
    let new = |h: &Half| (h.at, h.new);
    let old = |h: &Half| (h.at, h.old);

    let Some(_rank) = rank::above_all() else {
        return Ok(Window::Stuck);
    };
    let closed = Closed::new(&prepared, &opens, limit(patience));
    let Some(ticker) = Ticker::start(&closed) else {
        return Ok(Window::Stuck);
    };
    let closing = prepared.store(part(Part::Close).map(new));
    let is_proved = closing.is_ok() && {
        let patience = Patience::Signal {
            after: LOOKING,
            deadline: patience,
        };
        passes.is_empty() || threads::pass_by_watch(&watch, patience).is_ok()
    };
    let is_held = ticker.hold();
    if !is_proved || !is_held {
        // A hart that has not heard of it waits until it fetches anew.
        let _ = (0..FLUSHES).any(|_| closed.open().is_ok());
        return match closing {
            Err(errno) => Err(unchanged(TextError::Flush { errno })),
            Ok(()) => Ok(Window::Stuck),
        };
    }
    let again = |store: &dyn Fn() -> Result<(), Errno>| {
        (0..FLUSHES).any(|_| {
            let is_done = store().is_ok();
            if !is_done {
                std::thread::sleep(FLUSHING);
            }
            is_done
        })
    };
    if let Err(errno) = prepared.store(part(Part::Tail).map(new)) {
        let why = TextError::Flush { errno };
        let left = match again(&|| prepared.store(part(Part::Tail).map(old))) {
            true => {
                let _ = again(&|| closed.open());
                Left::Unchanged
            }
            false => {
                let _ = prepared.store(opens.iter().map(|(at, _)| (*at, C_EBREAK)));
                Left::Traps
            }
        };
        return Err(Refused { why, left });
    }
    if let Err(errno) = prepared.store(part(Part::Head).map(new)) {
        let why = TextError::Flush { errno };
        if !again(&|| prepared.store(part(Part::Head).map(new))) {
            return Err(Refused {
                why,
                left: Left::Changed,
            });
        }
    }
    Ok(Window::Changed)
}

/// The text is what the scripts take it for, and its pages are ours.
fn prepare(state: &mut State, scripts: &[Script]) -> Result<Prepared, TextError> {
    let halves = || {
        let parts = [Part::Close, Part::Tail, Part::Head];
        scripts
            .iter()
            .flat_map(move |s| parts.into_iter().flat_map(move |part| s.part(part)))
    };
    let mut words: Vec<RxAddr> = halves().map(|h| h.at.align_down(4)).collect();
    words.sort_unstable();
    words.dedup();
    let prepared = Prepared::new(state, &words)?;
    for script in scripts {
        let closes = script.part(Part::Close);
        let head = script.part(Part::Head).iter().filter(|_| closes.is_empty());
        let firsts = closes.iter().chain(script.part(Part::Tail)).chain(head);
        for half in firsts {
            let found = load_half(half.at);
            if found != half.old {
                return Err(TextError::Mismatch {
                    site: half.at,
                    expected: half.old.into(),
                    found: found.into(),
                });
            }
        }
    }
    Ok(prepared)
}
