//! The lock that can be held across `fork`.
//!
//! A lock of parking_lot keeps its queue of waiters in a table of the whole process: in the
//! child of a fork that queue names threads which no longer exist, and a bucket of it may be
//! locked for ever. [`RawForkMutex`] is the same interface (parking_lot's `lock_api`) over one
//! futex word, so all its state is the word: unlocking it in the child makes it new.
//!
//! Another such word is an [`Event`], for which a signal handler may wait.
//!
//! Key types: [`ForkMutex`], [`ForkMutexGuard`], [`Event`]. Neighbours: `state` and `fork` here; crates
//! above that keep a lock across `fork` use it too. Source: U. Drepper, "Futexes Are Tricky",
//! mutex 2; `futex(2)`.
#![expect(
    unsafe_code,
    reason = "implements lock_api's unsafe RawMutex and calls futex"
)]

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::lock_api;

use crate::syscall::syscall;

/// A mutex that may be held across `fork` and unlocked on both sides.
pub type ForkMutex<T> = lock_api::Mutex<RawForkMutex, T>;
/// Its guard.
pub type ForkMutexGuard<'a, T> = lock_api::MutexGuard<'a, RawForkMutex, T>;

const FREE: u32 = 0;
const HELD: u32 = 1;
const HELD_WITH_WAITERS: u32 = 2;

/// One futex word.
pub struct RawForkMutex(AtomicU32);

/// Sleeps while the word holds `value`; may wake without reason. Async-signal-safe.
fn wait(word: &AtomicU32, value: u32) {
    futex(word, libc::FUTEX_WAIT, value);
}

/// Wakes as many of those who sleep.
fn wake(word: &AtomicU32, nr: u32) {
    futex(word, libc::FUTEX_WAKE, nr);
}

/// FUTEX_WAIT or FUTEX_WAKE.
fn futex(word: &AtomicU32, op: c_int, value: u32) {
    let at = word.as_ptr().expose_provenance();
    let op = (op | libc::FUTEX_PRIVATE_FLAG) as usize;
    // SAFETY:
    // 1. The address is that of a live, aligned 32-bit word.
    // 2. FUTEX_WAIT only reads it, and a null timeout means none; FUTEX_WAKE uses the address as a
    //    name, and has no timeout.
    let _ = unsafe { syscall(libc::SYS_futex, [at, op, value as usize, 0]) };
}

/// Something that happens now and then, for which signal handlers may wait.
pub(crate) struct Event {
    /// How often it has happened.
    count: AtomicU32,
}

impl Event {
    pub(crate) const fn new() -> Self {
        Self {
            count: AtomicU32::new(0),
        }
    }

    /// Sleeps until `is_over`, which is asked at first, and whenever it has happened.
    /// Async-signal-safe if `is_over` is.
    pub(crate) fn wait_until(&self, is_over: impl Fn() -> bool) {
        loop {
            let count = self.count.load(Ordering::Acquire);
            if is_over() {
                return;
            }
            wait(&self.count, count);
        }
    }

    /// It has happened.
    pub(crate) fn tell(&self) {
        self.count.fetch_add(1, Ordering::Release);
        wake(&self.count, i32::MAX as u32);
    }
}

// SAFETY:
// 1. Mutual exclusion: only the thread that changes the word from FREE holds the lock.
// 2. `lock`/`try_lock` acquire and `unlock` releases, so the holder sees the previous one's work.
unsafe impl lock_api::RawMutex for RawForkMutex {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "the interface asks for a const"
    )]
    const INIT: Self = Self(AtomicU32::new(FREE));
    // Held from the prepare handler to the parent handler, which run on one thread; Send guards
    // are not needed.
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        if self.try_lock() {
            return;
        }
        // Whoever comes this way leaves the word saying "with waiters", since it cannot know
        // that it was the only one.
        while self.0.swap(HELD_WITH_WAITERS, Ordering::Acquire) != FREE {
            wait(&self.0, HELD_WITH_WAITERS);
        }
    }

    fn try_lock(&self) -> bool {
        self.0
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    unsafe fn unlock(&self) {
        if self.0.swap(FREE, Ordering::Release) == HELD_WITH_WAITERS {
            wake(&self.0, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let total = ForkMutex::new(0u64);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..50_000 {
                        *total.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*total.lock(), 200_000);
    }

    #[test]
    fn try_lock_is_refused_while_held() {
        let m = ForkMutex::new(());
        let held = m.lock();
        assert!(m.try_lock().is_none());
        drop(held);
        assert!(m.try_lock().is_some());
    }
    #[test]
    fn whoever_waits_for_an_event_sees_what_came_before_it() {
        let (turn, changed) = (AtomicU32::new(0), Event::new());
        let wait_for = |want: u32| changed.wait_until(|| turn.load(Ordering::Relaxed) >= want);
        wait_for(0);
        std::thread::scope(|s| {
            let waiters = [1, 5, 1000].map(|want| s.spawn(move || wait_for(want)));
            for _ in 0..999 {
                turn.fetch_add(1, Ordering::Relaxed);
                changed.tell();
            }
            let [one, five, last] = waiters;
            one.join().unwrap();
            five.join().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(10));
            assert!(!last.is_finished());
            turn.fetch_add(1, Ordering::Relaxed);
            changed.tell();
        });
    }
}
