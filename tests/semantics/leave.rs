//! Calls that are inside a function while hooks come and go.

use std::ffi::{c_int, c_long};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rvbpf::{Error, Hook, Runtime, TrampError};
use testlib::functions::{tl_read_byte, tl_spin_until};

use crate::common::{
    ADD2, Count, PROMPT, READ_BYTE, assert_settled, gettid, hook, is_asleep, pipe, send, serial,
    wait_until,
};

/// A thread that is blocked in `tl_read_byte`.
struct Blocked {
    thread: JoinHandle<c_long>,
    write_end: c_int,
}

impl Blocked {
    fn new() -> Self {
        // Only functions of the Rust ABI are closures.
        fn read_byte(fd: c_int) -> c_long {
            tl_read_byte(fd)
        }
        Self::under(read_byte)
    }

    /// Blocked in a call that `call` makes.
    fn under(call: impl Fn(c_int) -> c_long + Send + 'static) -> Self {
        let (read_end, write_end) = pipe();
        let tid = Arc::new(AtomicI32::new(0));
        let its = tid.clone();
        let thread = thread::spawn(move || {
            its.store(gettid(), Ordering::SeqCst);
            call(read_end)
        });
        wait_until("the thread blocks", || {
            let tid = tid.load(Ordering::SeqCst);
            let syscall = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall"));
            // 63: read. The kernel may not tell; then a sleep is a sleep.
            tid != 0 && is_asleep(tid) && syscall.map_or(true, |s| s.starts_with("63 "))
        });
        Blocked { thread, write_end }
    }

    /// Lets it go on; what the function returned.
    fn release(self, byte: u8) -> c_long {
        send(self.write_end, byte);
        self.thread.join().unwrap()
    }
}

/// Tells other threads to stop, also when a test fails.
struct Stop(Arc<AtomicI32>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(1, Ordering::SeqCst);
    }
}

fn promptly(what: &str, change: impl FnOnce()) {
    let begin = Instant::now();
    change();
    assert!(
        begin.elapsed() < PROMPT,
        "{what} took {:?}",
        begin.elapsed()
    );
}

fn exit_hook(rt: &Runtime, count: &Arc<Count>) -> Hook {
    let count = count.clone();
    hook(rt, READ_BYTE)
        .on_exit(move |_, ret| {
            assert_eq!(*ret, 7);
            count.add();
        })
        .attach()
        .unwrap()
}

fn still_in_use(rt: &Runtime) -> bool {
    let answer = rt.synchronize(Duration::from_millis(30));
    matches!(answer, Err(Error::Tramp(TrampError::StillInUse { .. })))
}

#[test]
fn a_detached_exit_program_does_not_run_for_a_call_under_way() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (goes, stays, late) = (
        Arc::new(Count::new()),
        Arc::new(Count::new()),
        Arc::new(Count::new()),
    );
    let going = exit_hook(&rt, &goes);
    let staying = exit_hook(&rt, &stays);
    let blocked = Blocked::new();

    promptly("detach", || going.detach().unwrap());
    // Attached while the call is inside: it began before, so the program does not see it.
    let added = exit_hook(&rt, &late);
    assert!(
        still_in_use(&rt),
        "the image that the call returns through cannot be freed"
    );
    assert!(rt.stats().tramps.retired > 0);

    assert_eq!(blocked.release(7), 7);
    assert_eq!((goes.get(), stays.get(), late.get()), (0, 1, 0));
    rt.synchronize(crate::common::PATIENCE).unwrap();
    assert_eq!(
        rt.stats().tramps.retired,
        0,
        "freed once the call has returned"
    );

    assert_eq!(Blocked::new().release(7), 7);
    assert_eq!((goes.get(), stays.get(), late.get()), (0, 2, 1));
    rt.detach_all([&staying, &added]).unwrap();
    assert_settled(&rt);
}

#[test]
fn the_last_program_leaves_under_a_call() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (entries, exits) = (Arc::new(Count::new()), Arc::new(Count::new()));
    for round in 0..20 {
        let (enter, leave, exit) = (entries.clone(), exits.clone(), exits.clone());
        let hooked = hook(&rt, READ_BYTE)
            .on_session(move |_, _| enter.add(), move |_, _, _| leave.add())
            .on_exit(move |_, _| exit.add())
            .attach()
            .unwrap();
        let blocked = Blocked::new();
        promptly("detach", || hooked.detach().unwrap());
        if round % 2 == 0 {
            // The site may even be hooked anew meanwhile.
            let again = hook(&rt, READ_BYTE)
                .on_exit(|_, _| panic!("a call of before"))
                .attach()
                .unwrap();
            assert_eq!(blocked.release(round), c_long::from(round));
            assert_eq!((again.stats().runs, again.stats().panics), (0, 0));
        } else {
            assert_eq!(blocked.release(round), c_long::from(round));
        }
    }
    assert_eq!((entries.get(), exits.get()), (20, 0));
    assert_settled(&rt);
}

/// The call is made by a program of another hook, so that its image runs programs from the slow
/// path.
#[test]
fn a_nested_call_under_way() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (goes, stays) = (Arc::new(Count::new()), Arc::new(Count::new()));
    let going = exit_hook(&rt, &goes);
    let staying = exit_hook(&rt, &stays);
    let fd = Arc::new(AtomicI32::new(-1));
    let at = fd.clone();
    let outer = hook(&rt, ADD2)
        .on_entry(move |_| assert_eq!(tl_read_byte(at.load(Ordering::SeqCst)), 7))
        .attach()
        .unwrap();
    let blocked = Blocked::under(move |read_end| {
        fd.store(read_end, Ordering::SeqCst);
        testlib::functions::tl_add2(1, 2).into()
    });
    promptly("detach", || going.detach().unwrap());
    // The thread is inside a program of this one.
    promptly("detach", || outer.detach().unwrap());
    assert!(still_in_use(&rt));
    assert_eq!(blocked.release(7), 3);
    assert_eq!((goes.get(), stays.get()), (0, 1));
    assert_eq!(outer.stats().panics, 0);
    staying.detach().unwrap();
    assert_settled(&rt);
}

/// A thread that never sleeps inside the function has to be asked where it is.
#[test]
fn a_thread_that_spins_in_the_function() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let exits = Arc::new(Count::new());
    let count = exits.clone();
    let spin = tl_spin_until as unsafe extern "C" fn(*const c_int) -> u64;
    let hooked = hook(&rt, spin)
        .on_exit(move |_, _| count.add())
        .attach()
        .unwrap();
    let stop = Stop(Arc::new(AtomicI32::new(0)));
    let (its, started) = (stop.0.clone(), Arc::new(Count::new()));
    let up = started.clone();
    let thread = thread::spawn(move || {
        up.add();
        // SAFETY:
        // 1. The flag outlives the call.
        unsafe { tl_spin_until(its.as_ptr()) }
    });
    wait_until("the thread runs", || started.get() == 1);
    thread::sleep(Duration::from_millis(50));
    promptly("detach", || hooked.detach().unwrap());
    assert!(still_in_use(&rt));
    // What is not in use is freed though the thread spins on.
    let other = hook(&rt, ADD2).on_exit(|_, _| {}).attach().unwrap();
    other.detach().unwrap();
    wait_until("all is freed but what the thread is in", || {
        assert!(still_in_use(&rt));
        rt.stats().tramps.retired == 1
    });
    drop(stop);
    assert!(thread.join().unwrap() > 0);
    assert_eq!(exits.get(), 0);
    assert_settled(&rt);
}

/// Removing and adding programs never loses a call for one that stays, not even at its exit.
#[test]
fn whoever_stays_sees_every_call() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let stay = hook(&rt, ADD2)
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    let stop = Stop(Arc::default());
    let its = stop.0.clone();
    let caller = thread::spawn(move || {
        let mut calls = 0;
        while its.load(Ordering::Relaxed) == 0 {
            assert_eq!(testlib::functions::tl_add2(calls, 1), calls + 1);
            calls += 1;
        }
        calls as u64
    });
    for round in 0..100 {
        let builder = hook(&rt, ADD2);
        let comes = match round % 3 {
            0 => builder.on_entry(|_| {}),
            1 => builder.on_exit(|_, _| {}),
            _ => builder.override_return(|_| None),
        };
        comes.attach().unwrap().detach().unwrap();
    }
    drop(stop);
    let calls = caller.join().unwrap();
    let stats = stay.stats();
    assert!(calls > 0);
    assert!(
        stats.progs.iter().all(|p| (p.runs, p.missed) == (calls, 0)),
        "{calls}: {stats:?}"
    );
    stay.detach().unwrap();
    assert_settled(&rt);
}
