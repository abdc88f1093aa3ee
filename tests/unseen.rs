//! Processes that the kernel does not show to themselves as it shows others: what is not known is
//! never taken for an answer. Either it works, or a change is refused by a sentence that says what is
//! missing, with everything as before, and works when that is there again.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "namespaces, limits, users, and hooks")]

mod common;

#[path = "unseen/io_uring.rs"]
mod io_uring;
#[path = "unseen/leader.rs"]
mod leader;
#[path = "unseen/proc.rs"]
mod proc;
#[path = "unseen/rights.rs"]
mod rights;

use std::ffi::c_long;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{ADD2, Count, gettid, hook, pipe, send, serial, wait_until};
use rvbpf::{EntryKind, Error, Hook, Runtime};
use testlib::functions::{plain, tl_add2, tl_plain};

/// Longer than anything that is refused may take.
const SOON: Duration = Duration::from_millis(500);

/// Hooks one with a pad and one without.
fn attach(rt: &Runtime) -> Result<Vec<Hook>, Error> {
    // SAFETY: 1. test functions are declared as they are.
    let pad = unsafe { rt.hook(ADD2) }?.on_entry(|_| {}).attach()?;
    // SAFETY: 1. as above.
    let plain = unsafe { rt.hook(tl_plain[0]) }?;
    Ok(vec![pad, plain.on_entry(|_| {}).attach()?])
}

/// Both give what they should; how often programs ran.
fn call_both(hooks: &[Hook]) -> u64 {
    let runs = || hooks.iter().map(|h| h.stats().runs).sum::<u64>();
    let before = runs();
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(tl_plain[0](41), plain(0, 41));
    runs() - before
}

/// Everything works here.
fn works(rt: &Runtime) {
    let hooks = attach(rt).unwrap();
    assert_eq!(hooks[1].kind(), Some(EntryKind::Jump));
    assert_eq!(call_both(&hooks), 2);
    rt.detach_all(&hooks).unwrap();
    assert_eq!(call_both(&hooks), 0);
    rt.synchronize(common::PATIENCE).unwrap();
}

/// A thread that is somewhere else until it is dropped.
struct Elsewhere {
    tid: i32,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Elsewhere {
    /// Runs `once` again and again.
    fn new(mut once: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tid = Arc::new(AtomicI32::new(0));
        let thread = std::thread::spawn({
            let (stop, tid) = (stop.clone(), tid.clone());
            move || {
                tid.store(gettid(), Ordering::SeqCst);
                while !stop.load(Ordering::Relaxed) {
                    once();
                }
            }
        });
        wait_until("a thread starts", || tid.load(Ordering::SeqCst) != 0);
        Elsewhere {
            tid: tid.load(Ordering::SeqCst),
            stop,
            thread: Some(thread),
        }
    }

    fn spinning() -> Self {
        Self::new(std::hint::spin_loop)
    }

    fn sleeping() -> Self {
        Self::new(|| std::thread::sleep(Duration::from_millis(2)))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join).unwrap().unwrap();
    }
}

/// A patience without an end ends when nothing is in use.
#[test]
fn patience_may_be_endless() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    drop(attach(&rt).unwrap());
    rt.synchronize(Duration::MAX).unwrap();
    common::assert_settled(&rt);
}

/// Sleeps in a program of a hook of `tl_add2` from when it says so until a byte comes.
struct Sleeper {
    hook: Hook,
    inside: Arc<Count>,
    dropped: Arc<AtomicBool>,
    wake: i32,
}

/// Is told when the closure that owns it is dropped.
struct Tracked(Arc<AtomicBool>);

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Sleeper {
    fn new(rt: &Runtime) -> Self {
        let (from, wake) = pipe();
        let inside = Arc::new(Count::new());
        let dropped = Arc::new(AtomicBool::new(false));
        let (entered, tracked) = (inside.clone(), Tracked(dropped.clone()));
        let sleep = move |c: &rvbpf::Call<'_, common::Add2>| {
            if c.args() == (7, 7) {
                entered.add();
                let mut byte = 0_u8;
                // SAFETY: 1. room for one byte.
                unsafe { libc::read(from, (&raw mut byte).cast(), 1) };
                assert!(!tracked.0.load(Ordering::SeqCst), "dropped while it runs");
            }
        };
        let hook = hook(rt, ADD2).on_entry(sleep).attach().unwrap();
        Sleeper {
            hook,
            inside,
            dropped,
            wake,
        }
    }

    /// Detaches while a thread is in the closure: nothing is freed before it has left.
    fn outlives_its_hook(self, rt: &Runtime) {
        // Registered: the next call runs in the image, and its guard alone tells.
        let caller = std::thread::spawn(|| (tl_add2(1, 1), tl_add2(7, 7)));
        wait_until("the closure runs", || self.inside.get() == 1);
        std::thread::sleep(Duration::from_millis(50));
        self.hook.detach().unwrap();
        let waited = rt.synchronize(SOON);
        assert!(waited.is_err(), "freed under a thread that sleeps in it");
        assert!(!self.dropped.load(Ordering::SeqCst));
        send(self.wake, 1);
        assert_eq!(caller.join().unwrap(), (2, 14));
        drop(self.hook);
        rt.synchronize(common::PATIENCE).unwrap();
        assert!(self.dropped.load(Ordering::SeqCst));
    }
}

/// A wait status's exit code, for children that end otherwise than by returning.
fn end_with(ok: bool) -> ! {
    // SAFETY: 1. ends the process, whatever its threads do.
    unsafe { libc::_exit(if ok { 0 } else { 101 }) }
}

/// Bare results of system calls.
fn checked(result: c_long) -> c_long {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}
