//! Tables that no call reaches any more, until no thread is inside them.
//!
//! A table that is swapped out and in again all the time has one entry here, which begins anew each
//! time. Threads are looked at only when something would be freed by it. Key type: [`Retirees`].
//! Neighbour: [`trampoline::indirect::Leaving`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use text::ForkMutex;
use text::threads::Patience;
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
    list: ForkMutex<Vec<Retired>>,
    /// Held while those of the list are looked at, which takes time.
    settling: ForkMutex<()>,
    /// How many that is.
    looked_at: AtomicUsize,
    /// How many the last look has left.
    left: AtomicUsize,
    links: AtomicUsize,
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
        let mut list = self.list.lock();
        let link = retired.link;
        // Calls reach it again: whatever has been seen of threads is void.
        list.retain(|old| !old.is_of(link, now));
        list.push(retired);
    }

    /// A table has been unregistered.
    pub(super) fn unregistered(&self, retired: Retired) {
        self.list.lock().push(retired);
    }

    /// A link is gone.
    pub(super) fn front_gone(&self, retired: Retired) {
        self.links.fetch_sub(1, Ordering::Relaxed);
        self.list.lock().push(retired);
    }

    /// Frees what can be freed, if it is worth a look.
    pub(super) fn settle_some(&self) {
        let last = self.list.lock().iter().filter(|one| one.is_last()).count();
        if last < LOOK_AT + self.left.load(Ordering::Relaxed) || self.settling.try_lock().is_none()
        {
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
        let one_at_a_time = self.settling.lock();
        let mut work = {
            let mut list = self.list.lock();
            self.looked_at.store(list.len(), Ordering::Relaxed);
            std::mem::take(&mut *list)
        };
        let mut leaving: Vec<_> = work.iter_mut().map(|one| &mut one.leaving).collect();
        Leaving::advance_all(&mut leaving, patience);
        let (free, kept): (Vec<_>, Vec<_>) =
            work.into_iter().partition(|one| one.leaving.is_left());
        let left = {
            let mut list = self.list.lock();
            list.extend(kept);
            self.looked_at.store(0, Ordering::Relaxed);
            list.len()
        };
        self.left.store(left, Ordering::Relaxed);
        drop(one_at_a_time);
        // Without the locks: what a closure holds may be anything.
        drop(free);
        left
    }

    /// Waits until nothing is retired; how much still is.
    pub(crate) fn synchronize(&self, patience: Duration) -> usize {
        let end = Instant::now() + patience;
        let mut round = Duration::from_millis(5);
        loop {
            let left = self.settle(Patience::Signal {
                after: round / 2,
                deadline: round,
            });
            if left == 0 || Instant::now() >= end {
                return left;
            }
            std::thread::sleep(Duration::from_millis(1));
            round = (round * 2).min(Duration::from_millis(200));
        }
    }

    /// Forgets what threads may still be in, so that nothing of it is freed.
    pub(crate) fn leak(&self) {
        std::mem::forget(std::mem::take(&mut *self.list.lock()));
    }

    pub(crate) fn stats(&self) -> OpsStats {
        OpsStats {
            links: self.links.load(Ordering::Relaxed),
            retired: self.list.lock().len() + self.looked_at.load(Ordering::Relaxed),
        }
    }
}
