//! Words that stubs load: the entry of each member of each front.
//!
//! A stub reaches its word by one `auipc`, so the words lie in one static array, and the code of
//! fronts near that. Key type: [`Cells`].

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use text::RxAddr;

use crate::Trampolines;

/// How many members all fronts of a process can have together.
pub const MAX_CELLS: usize = 8192;

static CELLS: [AtomicU64; MAX_CELLS] = [const { AtomicU64::new(0) }; MAX_CELLS];

/// Which of them are taken, a bit each. Used under the lock of changes, across which no fork comes.
static TAKEN: Mutex<[u64; MAX_CELLS / 64]> = Mutex::new([0; MAX_CELLS / 64]);

/// Some cells, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Cells(Vec<usize>);

impl Cells {
    /// Takes `len` of them; `None` when there are not so many.
    pub(crate) fn take(len: usize) -> Option<Self> {
        let mut taken = TAKEN.lock();
        let is_free = |&i: &usize| taken[i / 64] & (1 << (i % 64)) == 0;
        let free: Vec<usize> = (0..MAX_CELLS).filter(is_free).take(len).collect();
        if free.len() < len {
            return None;
        }
        free.iter().for_each(|i| taken[i / 64] |= 1 << (i % 64));
        Some(Self(free))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Where cell `i` is.
    pub(crate) fn addr(&self, i: usize) -> u64 {
        CELLS[self.0[i]].as_ptr() as u64
    }

    /// Leads calls that begin afterwards to `entry`. What the entry refers to has been written
    /// before.
    pub(crate) fn store(&self, i: usize, entry: u64) {
        CELLS[self.0[i]].store(entry, Ordering::Release);
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        Trampolines::locked(|| {
            let mut taken = TAKEN.lock();
            self.0
                .iter()
                .for_each(|i| taken[i / 64] &= !(1 << (i % 64)));
        });
    }
}

/// What code must be near.
pub(crate) fn address() -> RxAddr {
    RxAddr::new(CELLS.as_ptr() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_taken_once_and_given_back() {
        let all = Cells::take(MAX_CELLS).unwrap();
        assert!(Cells::take(1).is_none());
        assert_eq!(all.len(), MAX_CELLS);
        drop(all);
        let (a, b) = (Cells::take(2).unwrap(), Cells::take(2).unwrap());
        let mut addrs = [a.addr(0), a.addr(1), b.addr(0), b.addr(1)];
        addrs.sort_unstable();
        assert!(addrs.windows(2).all(|w| w[0] + 8 <= w[1]), "{addrs:x?}");
    }
}
