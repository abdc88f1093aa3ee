//! Panics in closures: counted, reported once a hook, kept away from the hooked program.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The panics of one hook's closures.
#[derive(Debug, Default)]
pub(crate) struct Panics {
    count: AtomicU64,
    reported: AtomicBool,
}

thread_local! {
    /// The hook whose closure this thread runs.
    static RUNNING: Cell<*const Panics> = const { Cell::new(ptr::null()) };
}

impl Panics {
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Runs a closure's body. `None`: it panicked, and that has been counted.
    pub(crate) fn contain<R>(&self, body: impl FnOnce() -> R) -> Option<R> {
        let outer = RUNNING.replace(self);
        let result = panic::catch_unwind(AssertUnwindSafe(body));
        if let Err(payload) = result {
            self.count.fetch_add(1, Ordering::Relaxed);
            // A payload's destructor may panic as well.
            if let Err(second) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(second);
            }
            RUNNING.set(outer);
            return None;
        }
        RUNNING.set(outer);
        result.ok()
    }
}

/// Puts a filter in front of the process's panic hook, once: the first panic of a hook's closures
/// is reported as usual, with a line that says what becomes of it; later ones are only counted.
/// Panics of the program itself are reported as ever.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // A pointer to compare, never to follow: the flag below it is reached while the
            // closure runs, on this very thread.
            let running = RUNNING.get();
            if running.is_null() {
                return before(info);
            }
            if first_report(running) {
                before(info);
                eprintln!(
                    "rvbpf: the panic above was in a hook's closure; the hooked call goes on. \
Further panics of this hook are only counted (Hook::stats)."
                );
            }
        }));
    });
}

#[expect(unsafe_code, reason = "the pointer is of the running closure's hook")]
fn first_report(running: *const Panics) -> bool {
    // SAFETY:
    // 1. `contain` set it on this thread and has not returned: its `&self` lives.
    let panics = unsafe { &*running };
    !panics.reported.swap(true, Ordering::Relaxed)
}
