//! Tables that no call reaches any more, until no thread is inside them.
//!
//! A table that is swapped out and in again all the time has one entry here, which begins anew each
//! time. Threads are looked at only when something would be freed by it. Key type: [`Retirees`].
//! Neighbour: [`trampoline::indirect::Leaving`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use text::Deadline;
use text::ForkMutex;
use text::threads::Patience;
use trampoline::Trampolines;
use trampoline::indirect::Leaving;

use super::memory::Memory;
use super::table::TableCore;

/// Pieces that nobody but this list has, and that were not there at the last look, after which
/// threads are looked at.
const LOOK_AT: usize = 16;
/// After which those that never seem to sleep are asked.
const ASK_AT: usize = 64;
/// How long a swap waits for their answers.
const ASK_DEADLINE: Duration = Duration::from_millis(20);

/// Numbers of a runtime's tables.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct OpsStats {
    /// Links that there are.
    pub links: usize,
    /// Tables and links that wait until nobody is in them.
    pub retired: usize,
}

/// Those of one runtime.
#[derive(Debug, Default)]
pub(crate) struct Retirees {
    /// Locked under the lock of changes alone.
    list: ForkMutex<Vec<Retired>>,
    /// The process of the thread that looks at those that were in the list; 0: none.
    turn: AtomicU32,
    /// How many that is.
    looked_at: AtomicUsize,
    /// How many the last look has left.
    left: AtomicUsize,
    links: AtomicUsize,
}

/// Given back when it is dropped.
struct Turn<'r>(&'r AtomicU32);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

/// Something that no call reaches any more.
#[derive(Debug)]
pub(super) struct Retired {
    /// The link that led to it.
    pub(super) link: u64,
    pub(super) leaving: Leaving,
    pub(super) keep: Keep,
}

/// What is kept.
#[derive(Debug)]
pub(super) enum Keep {
    Table(Arc<TableCore>),
    Front(#[expect(dead_code, reason = "held")] Option<Memory>),
}

impl Retired {
    fn is_of(&self, link: u64, table: &Arc<TableCore>) -> bool {
        match &self.keep {
            Keep::Table(kept) => self.link == link && Arc::ptr_eq(kept, table),
            Keep::Front(_) => false,
        }
    }

    /// Whether anything is freed when it goes.
    fn is_last(&self) -> bool {
        match &self.keep {
            Keep::Table(table) => Arc::strong_count(table) == 1,
            Keep::Front(_) => true,
        }
    }
}

impl Retirees {
    pub(super) fn link_made(&self) {
        self.links.fetch_add(1, Ordering::Relaxed);
    }

    /// A link leads to `now` instead of the table that is retired.
    pub(super) fn swapped(&self, retired: Retired, now: &Arc<TableCore>) {
        let link = retired.link;
        // Calls reach it again: whatever has been seen of threads is void.
        self.change(|list| list.retain(|old| !old.is_of(link, now)));
        self.push(retired);
    }

    /// A table has been unregistered.
    pub(super) fn unregistered(&self, retired: Retired) {
        self.push(retired);
    }

    /// A link is gone.
    pub(super) fn front_gone(&self, retired: Retired) {
        self.links.fetch_sub(1, Ordering::Relaxed);
        self.push(retired);
    }

    fn push(&self, retired: Retired) {
        let mut retired = Some(retired);
        self.change(|list| list.extend(retired.take()));
        // In the midst of a change of the list by this thread: kept for good, which is safe.
        std::mem::forget(retired);
    }

    /// Changes the list; `None` in the midst of a change by this thread.
    fn change<R>(&self, f: impl FnOnce(&mut Vec<Retired>) -> R) -> Option<R> {
        Trampolines::locked(|| self.list.try_lock().map(|mut list| f(&mut list)))
    }

    /// Frees what can be freed, if it is worth a look.
    pub(super) fn settle_some(&self) {
        let is_last = |one: &&Retired| one.is_last();
        let last = self.change(|list| list.iter().filter(is_last).count());
        let last = last.unwrap_or_default();
        if last < LOOK_AT + self.left.load(Ordering::Relaxed) {
            return;
        }
        let patience = match last < ASK_AT {
            true => Patience::PollOnly(Duration::ZERO),
            false => Patience::Signal {
                after: Duration::ZERO,
                deadline: ASK_DEADLINE,
            },
        };
        self.settle(patience);
    }

    /// Frees what can be freed; how much is left. Swaps go on meanwhile: a table that is swapped in
    /// while its entry is looked at here is kept by its link, and an entry more by whoever swaps it
    /// out again.
    fn settle(&self, patience: Patience) -> usize {
        let Some(turn) = self.take_turn() else {
            return self.stats().retired;
        };
        let work = self.change(|list| {
            self.looked_at.store(list.len(), Ordering::Relaxed);
            std::mem::take(list)
        });
        let mut work = work.unwrap_or_default();
        let mut leaving: Vec<_> = work.iter_mut().map(|one| &mut one.leaving).collect();
        Leaving::advance_all(&mut leaving, patience);
        let (free, kept): (Vec<_>, Vec<_>) =
            work.into_iter().partition(|one| one.leaving.is_left());
        let mut kept = Some(kept);
        let left = self.change(|list| {
            list.extend(kept.take().into_iter().flatten());
            self.looked_at.store(0, Ordering::Relaxed);
            list.len()
        });
        std::mem::forget(kept);
        let left = left.unwrap_or_default();
        self.left.store(left, Ordering::Relaxed);
        drop(turn);
        // Without the turn: what a closure holds may be anything.
        drop(free);
        left
    }

    /// One thread at a time looks. The turn of a thread that a fork has left behind is over; what
    /// it was looking at is kept for good.
    fn take_turn(&self) -> Option<Turn<'_>> {
        let me = std::process::id();
        let now = self.turn.load(Ordering::Relaxed);
        if now == me {
            return None;
        }
        let taken = self
            .turn
            .compare_exchange(now, me, Ordering::Acquire, Ordering::Relaxed);
        taken.ok().map(|_| Turn(&self.turn))
    }

    /// Waits until nothing is retired; how much still is.
    pub(crate) fn synchronize(&self, patience: Duration) -> usize {
        let end = Deadline::after(patience);
        let mut round = Duration::from_millis(5);
        loop {
            let left = self.settle(Patience::Signal {
                after: round / 2,
                deadline: round,
            });
            if left == 0 || end.is_over() {
                return left;
            }
            std::thread::sleep(Duration::from_millis(1));
            round = (round * 2).min(Duration::from_millis(200));
        }
    }

    /// Forgets what threads may still be in, so that nothing of it is freed.
    pub(crate) fn leak(&self) {
        std::mem::forget(self.change(std::mem::take));
    }

    pub(crate) fn stats(&self) -> OpsStats {
        OpsStats {
            links: self.links.load(Ordering::Relaxed),
            retired: self.change(|list| list.len()).unwrap_or_default()
                + self.looked_at.load(Ordering::Relaxed),
        }
    }
}
