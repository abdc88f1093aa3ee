//! What closures may ask for, so that they can keep what was promised for them.

use std::ffi::{c_int, c_long};
use std::ptr::null_mut;
use std::sync::Arc;

use rvbpf::Runtime;
use testlib::functions::tl_add2;

use crate::common::{ADD2, Count, assert_settled, hook, serial, sites};

const SIGNO: c_int = libc::SIGUSR2;

extern "C" fn calls_both(_: c_int) {
    tl_add2(9, 9);
    sites(1)[0](9);
}

/// Sends this thread a signal whose handler calls both hooked functions.
fn interrupt(flags: c_int) {
    let handler: extern "C" fn(c_int) = calls_both;
    // SAFETY: 1. all of its fields may be zero.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = flags;
    let mut before = action;
    // SAFETY: 1. the handler calls hooked functions alone.
    let set = unsafe { libc::sigaction(SIGNO, &raw const action, &raw mut before) };
    assert_eq!(set, 0);
    // SAFETY: 1. its handler is above.
    assert_eq!(unsafe { libc::raise(SIGNO) }, 0);
    // SAFETY: 1. what was there.
    let set = unsafe { libc::sigaction(SIGNO, &raw const before, null_mut()) };
    assert_eq!(set, 0);
}

#[test]
fn a_closure_that_runs_alone_is_not_interrupted_by_others() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let site = sites(1)[0];
    let other = hook(&rt, site).on_entry(|_| {}).on_exit(|_, _| {});
    let other = other.attach().unwrap();
    let work = |a: c_int| {
        if a == 5 {
            let _: c_long = sites(1)[0](1);
            interrupt(0);
            interrupt(libc::SA_ONSTACK);
        }
    };
    let not_alone = hook(&rt, ADD2).on_entry(move |call| work(call.args().0));
    let not_alone = not_alone.attach().unwrap();
    tl_add2(5, 5);
    // Its own call, and one of each handler, at both ends.
    assert_eq!((other.stats().runs, other.stats().missed), (6, 0));
    drop(not_alone);

    let alone = hook(&rt, ADD2).alone();
    let alone = alone.on_entry(move |call| work(call.args().0));
    let alone = alone.on_exit(move |call, _| work(call.args().0));
    let alone = alone.attach().unwrap();
    let before = other.stats();
    tl_add2(5, 5);
    let now = other.stats();
    assert_eq!(now.runs, before.runs);
    let missed = now.missed - before.missed;
    assert_eq!(missed, 12, "three calls at both ends, twice");
    assert_eq!(alone.stats().runs, 2);
    site(1);
    assert_eq!(other.stats().runs, before.runs + 2, "afterwards they run");
    drop((alone, other));
    assert_settled(&rt);
}

#[test]
fn a_call_in_a_signal_handler_is_known_for_one() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (inside, outside) = (Arc::new(Count::new()), Arc::new(Count::new()));
    let counts = (inside.clone(), outside.clone());
    let asking = hook(&rt, ADD2).on_entry(move |call| match call.in_signal_handler() {
        true => counts.0.add(),
        false => counts.1.add(),
    });
    let asking = asking.attach().unwrap();
    // On a stack that no handler has used before.
    std::thread::scope(|s| {
        s.spawn(|| {
            tl_add2(1, 1);
            assert_eq!((inside.take(), outside.take()), (0, 1));
            interrupt(0);
            assert_eq!((inside.take(), outside.take()), (1, 0));
            interrupt(libc::SA_ONSTACK);
            assert_eq!((inside.take(), outside.take()), (1, 0));
        });
    });
    drop(asking);
    assert_settled(&rt);
}
