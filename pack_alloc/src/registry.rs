//! All allocators of the process, behind one lock that a fork can hold.
//!
//! A fork while another thread is inside an allocator would leave the child with a locked lock
//! and half-changed bitmaps. So the lock is taken before the fork and released on both sides, and
//! for that one lock for all allocators is simplest: it is held for a search in a bitmap, rarely
//! for mapping a pack, never while code is copied, flushed or invalidated.
//!
//! Lock order: this one, then `text`'s. Handlers that run before a fork run in the reverse order
//! of their registration, so `text`'s must be registered before these: [`prepare`] makes it so by
//! an empty change. Whoever calls this crate with a lock of their own held registers theirs after
//! their first [`PackAlloc::new`](crate::PackAlloc::new).
//!
//! The memory itself is `text`'s matter: the child has its own copy at the same addresses, so
//! this table holds for the child as it stands.
//!
//! Key function: [`lock`]. Source: `pthread_atfork(3)`.

#![expect(
    unsafe_code,
    reason = "a lock that is held from one fork handler to the next"
)]

use std::collections::BTreeMap;
use std::mem;
use std::sync::Once;

use parking_lot::lock_api::RawMutex as _;
use text::{ForkMutex, ForkMutexGuard, RawForkMutex};

use crate::alloc::State;

/// The allocators by number.
pub(crate) type Registry = BTreeMap<u64, State>;

static ALL: ForkMutex<Registry> = ForkMutex::const_new(RawForkMutex::INIT, BTreeMap::new());

/// Locks all allocators.
pub(crate) fn lock() -> ForkMutexGuard<'static, Registry> {
    ALL.lock()
}

/// Registers the fork handlers, once.
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Makes `text` register its handlers. Where it cannot, every map will fail with the
        // reason, and there is nothing to protect.
        let _ = text::text_copy_all(&[]);
        // SAFETY: 1. the handlers live as long as the process; the crate is never unloaded while
        //    its code is in use. A failure (no memory) leaves forks unprotected, no more.
        unsafe {
            libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork));
        }
    });
}

unsafe extern "C" fn before_fork() {
    mem::forget(ALL.lock());
}

unsafe extern "C" fn after_fork() {
    // SAFETY: 1. `before_fork` has locked it, on this thread or on the one that this is a copy
    //    of, and forgot the guard.
    unsafe { ALL.force_unlock() };
}
