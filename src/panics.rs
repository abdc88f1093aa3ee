//! Panics in closures: counted, reported once a hook, kept away from the hooked program.
//!
//! *While the thread panics.* A panic inside the process's panic hook ends the process, and no
//! `catch_unwind` sees it. So closures do not run there: the call counts as missed. They run in the
//! destructors of an unwinding, where a panic can be contained. The two are told apart by the filter
//! that [`install_hook`] puts in front of the panic hook: if the host has replaced the hook since,
//! and with it the filter, closures run in neither on a thread that had not panicked before.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use trampoline::mark::{self, Of};

/// The panics of one hook's closures.
#[derive(Debug, Default)]
pub(crate) struct Panics {
    count: AtomicU64,
    reported: AtomicBool,
}

thread_local! {
    /// How far the panics of this thread have come.
    static SEEN: Cell<Seen> = const { Cell::new(Seen::No) };
}

/// What the filter has seen of this thread's panic.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Seen {
    /// Nothing: the thread does not panic, or the filter has been replaced.
    No,
    /// It is in the panic hook.
    InHook,
    /// The hook has returned: it is unwinding.
    Unwinds,
}

/// Whether a panic of a closure that runs now could be contained.
#[inline]
pub(crate) fn can_contain() -> bool {
    !std::thread::panicking() || SEEN.get() == Seen::Unwinds
}

impl Panics {
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Runs a closure's body. `None`: it panicked, and that has been counted.
    #[inline]
    pub(crate) fn contain<R>(&self, of: Of, body: impl FnOnce() -> R) -> Option<R> {
        mark::run(ptr::from_ref(self).cast(), of, || {
            match panic::catch_unwind(AssertUnwindSafe(body)) {
                Ok(value) => Some(value),
                Err(payload) => {
                    self.count.fetch_add(1, Ordering::Relaxed);
                    // A payload's destructor may panic as well.
                    if let Err(second) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                        std::mem::forget(second);
                    }
                    None
                }
            }
        })
    }
}

/// Puts a filter in front of the process's panic hook, once: the first panic of a hook's closures
/// is reported as usual, with a line that says what becomes of it; later ones are only counted.
/// Panics of the program itself are reported as ever.
pub(crate) fn install_hook() {
    static IS_INSTALLED: AtomicBool = AtomicBool::new(false);
    // The hook cannot be changed by a thread that panics: the next closure brings it. No lock is
    // held: the hook of another thread may be changing hooks, or forking, meanwhile.
    if !std::thread::panicking() && !IS_INSTALLED.swap(true, Ordering::Relaxed) {
        install();
    }
}

/// Ends a stay in the hook, however it is left.
struct InHook(Seen);

impl Drop for InHook {
    fn drop(&mut self) {
        SEEN.set(self.0);
    }
}

fn install() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let _in_hook = InHook(Seen::Unwinds);
        SEEN.set(Seen::InHook);
        let Some(running) = mark::running() else {
            return before(info);
        };
        if first_report(running.cast()) {
            before(info);
            eprintln!(
                "rvbpf: the panic above was in a hook's closure; the hooked call goes on. \
Further panics of this hook are only counted (Hook::stats)."
            );
        }
    }));
}

#[expect(unsafe_code, reason = "the pointer is of the running closure's hook")]
fn first_report(running: *const Panics) -> bool {
    // SAFETY:
    // 1. `contain` is running with it on this thread: its `&self` lives.
    let panics = unsafe { &*running };
    !panics.reported.swap(true, Ordering::Relaxed)
}
