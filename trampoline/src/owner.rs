//! The lock under which hooks are changed, and who holds it.
//!
//! One lock for the process, held across `fork`, so that a child never finds a change half done.
//! A program that runs inside an attach or detach of its own thread (because that allocates, and
//! `malloc` is hooked) and wants to change hooks would wait for itself: [`ChangeLock::enter`]
//! refuses instead.

#![expect(
    unsafe_code,
    reason = "a mutex held from one handler to the next, and a constructor"
)]

use std::sync::atomic::{AtomicI32, Ordering};

use text::syscall::gettid;
use text::{ForkHandlers, ForkMutex, ForkMutexGuard, at_fork};

use crate::{cancel, table};

static LOCK: ForkMutex<()> = ForkMutex::new(());
/// The thread that holds the lock, 0: none.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Proof that this thread may change hooks, and is not cancelled in the midst of it: an unwinding
/// from one of its system calls would leave jumps behind that lead nowhere.
pub(crate) struct ChangeLock {
    _guard: ForkMutexGuard<'static, ()>,
    was_cancellable: bool,
}

impl ChangeLock {
    /// Waits for the lock; `None` when this thread holds it already.
    pub(crate) fn enter() -> Option<Self> {
        let me = gettid();
        if OWNER.load(Ordering::Relaxed) == me {
            return None;
        }
        cancel::find();
        let was_cancellable = cancel::disable();
        let guard = LOCK.lock();
        OWNER.store(me, Ordering::Relaxed);
        Some(ChangeLock {
            _guard: guard,
            was_cancellable,
        })
    }
}

impl Drop for ChangeLock {
    fn drop(&mut self) {
        OWNER.store(0, Ordering::Relaxed);
        if self.was_cancellable {
            cancel::enable();
        }
    }
}

/// Registers the handlers. They must run outside of `text`'s and the packs', so these are
/// registered first: by constructors too, with lesser numbers.
// SAFETY:
// 1. The linker makes this a constructor, whose type this is (the arguments are not looked at).
// 2. It needs nothing that other constructors make.
#[used]
#[unsafe(link_section = ".init_array.60003")]
static WHEN_LOADED: extern "C" fn() = when_loaded;

extern "C" fn when_loaded() {
    at_fork(&HANDLERS);
    table::take_process();
}

static HANDLERS: ForkHandlers = ForkHandlers {
    before: prepare,
    in_parent: parent,
    in_child: child,
};

fn prepare() {
    // A program that forks inside a change of its own thread: the lock is held already.
    if OWNER.load(Ordering::Relaxed) != gettid() {
        std::mem::forget(LOCK.lock());
        OWNER.store(-gettid(), Ordering::Relaxed);
    }
}

fn leave(held_by: i32) {
    if OWNER.load(Ordering::Relaxed) == -held_by {
        OWNER.store(0, Ordering::Relaxed);
        // SAFETY: 1. `prepare` locked it on this thread and forgot the guard.
        unsafe { LOCK.force_unlock() };
    }
}

fn parent() {
    leave(gettid());
}

fn child() {
    // The child's only thread has another id than the one that prepared.
    let owner = OWNER.load(Ordering::Relaxed);
    table::after_fork_in_child();
    match owner.signum() {
        -1 => leave(-owner),
        1 => OWNER.store(gettid(), Ordering::Relaxed),
        _ => {}
    }
}
