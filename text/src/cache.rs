//! What has been read of loaded objects, so that it is read once.
//!
//! What was read of an object that has been closed since is dropped when its place is taken.
//!
//! Key type: [`Cache`]. Neighbours: `object`, `catalog` and `unchanged`, which fill it; `fork`
//! keeps its lock.
#![expect(unsafe_code, reason = "a lock that is held across fork")]

use std::mem::ManuallyDrop;
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::object::Object;
use crate::stays::Staying;
use crate::sync::{ForkMutex, ForkMutexGuard, RawForkMutex};
use crate::unchanged::Compared;

/// By what it was read for.
pub(crate) struct Cache {
    pub(crate) objects: Vec<Arc<Object>>,
    pub(crate) catalogs: Vec<Arc<Catalog>>,
    pub(crate) compared: Vec<Compared>,
    pub(crate) staying: Option<Arc<Staying>>,
}

static CACHE: ForkMutex<Cache> = ForkMutex::const_new(
    <RawForkMutex as parking_lot::lock_api::RawMutex>::INIT,
    Cache {
        objects: Vec::new(),
        catalogs: Vec::new(),
        compared: Vec::new(),
        staying: None,
    },
);

/// Locks it, for a look; nothing is read from files or asked of the dynamic linker meanwhile.
pub(crate) fn lock() -> ForkMutexGuard<'static, Cache> {
    CACHE.lock()
}

/// Takes the lock for the time of a fork.
pub(crate) fn before_fork() {
    let _cache = ManuallyDrop::new(CACHE.lock());
}

/// Gives it back, in the parent and in the child.
pub(crate) fn after_fork() {
    // SAFETY: `before_fork` took the lock on this thread and forgot its guard.
    unsafe { CACHE.force_unlock() };
}
