//! All allocators of the process, behind one lock that a fork can hold.
//!
//! A fork while another thread is inside an allocator would leave the child with a locked lock
//! and half-changed bitmaps. So the lock is taken before the fork and released on both sides, and
//! for that one lock for all allocators is simplest: it is held for a search in a bitmap, rarely
//! for mapping a pack, never while code is copied, flushed or invalidated.
//!
//! Lock order: this one, then `text`'s. Handlers that run before a fork run in the reverse order
//! of their registration, so `text`'s must be registered before these. All are registered by
//! constructors when the program is loaded, in the order of the numbers of their sections
//! (`text/src/fork.rs` says why not later); a crate that calls this one with a lock of its own held
//! takes a greater number than this one's.
//!
//! The memory itself is `text`'s matter: the child has its own copy at the same addresses, so
//! this table holds for the child as it stands.
//!
//! Key function: [`lock`]. Neighbour: `text/src/fork.rs`, which calls the handlers.

#![expect(
    unsafe_code,
    reason = "a lock that is held from one fork handler to the next, and a constructor"
)]

use std::collections::BTreeMap;
use std::mem;

use parking_lot::lock_api::RawMutex as _;
use text::{ForkHandlers, ForkMutex, ForkMutexGuard, RawForkMutex, at_fork};

use crate::alloc::State;

/// The allocators by number.
pub(crate) type Registry = BTreeMap<u64, State>;

static ALL: ForkMutex<Registry> = ForkMutex::const_new(RawForkMutex::INIT, BTreeMap::new());

/// Locks all allocators.
pub(crate) fn lock() -> ForkMutexGuard<'static, Registry> {
    ALL.lock()
}

/// Registers the fork handlers.
// SAFETY:
// 1. The linker makes this a constructor, whose type this is (the arguments are not looked at).
// 2. It needs nothing that other constructors make.
#[used]
#[unsafe(link_section = ".init_array.60002")]
static WHEN_LOADED: extern "C" fn() = when_loaded;

extern "C" fn when_loaded() {
    at_fork(&HANDLERS);
}

static HANDLERS: ForkHandlers = ForkHandlers {
    before: before_fork,
    in_parent: after_fork,
    in_child: after_fork,
};

fn before_fork() {
    mem::forget(ALL.lock());
}

fn after_fork() {
    // SAFETY: 1. `before_fork` has locked it, on this thread or on the one that this is a copy
    //    of, and forgot the guard.
    unsafe { ALL.force_unlock() };
}
