//! Signal handlers that call hooked functions, whatever they interrupt.

use std::ffi::{c_int, c_long};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rvbpf::{Hook, Runtime};
use testlib::functions::{tl_add2, tl_get_errno, tl_set_errno, tl_sum};

use crate::common::{ADD2, SUM, WEIGH12, assert_settled, checked, hook, serial, weigh_from};

/// Calls made so far, by anybody.
static ADDS: AtomicU64 = AtomicU64::new(0);
static WEIGHS: AtomicU64 = AtomicU64::new(0);
static SUMS: AtomicU64 = AtomicU64::new(0);
static SIGNALS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

fn check(right: bool) {
    if !right {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
}

fn add(a: c_int) {
    ADDS.fetch_add(1, Ordering::Relaxed);
    check(tl_add2(a, 1) == a + 1);
}

fn weigh(from: c_long) {
    WEIGHS.fetch_add(1, Ordering::Relaxed);
    let (got, want) = weigh_from(from);
    check(got == want);
}

fn sum(a: c_long) {
    SUMS.fetch_add(1, Ordering::Relaxed);
    // SAFETY:
    // 1. Nine `long`s follow.
    let got = unsafe { tl_sum(9, a, a, a, a, a, a, a, a, a) };
    check(got == 9 * a);
}

extern "C" fn on_signal(_: c_int) {
    let errno = tl_get_errno();
    SIGNALS.fetch_add(1, Ordering::Relaxed);
    add(-7);
    sum(11);
    weigh(3);
    tl_set_errno(errno);
}

fn handle_signals() {
    let handler: extern "C" fn(c_int) = on_signal;
    // SAFETY:
    // 1. Zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY:
    // 1. The handler calls nothing but hooked functions and atomics.
    checked(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) });
}

fn everything_was_seen(hooked: &Hook, calls: &AtomicU64) {
    let calls = calls.load(Ordering::Relaxed);
    for prog in hooked.stats().progs {
        assert_eq!(prog.runs + prog.missed, calls, "{prog:?}");
    }
    assert_eq!(hooked.stats().panics, 0);
}

/// Every call either runs each program or counts as missed by it.
#[test]
fn handlers_call_hooked_functions() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    handle_signals();
    let adds = hook(&rt, ADD2)
        .on_entry(|_| weigh(100))
        .on_exit(|_, _| sum(5))
        .attach()
        .unwrap();
    let weighs = hook(&rt, WEIGH12)
        .on_entry(|_| {})
        .override_return(|_| None)
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    let sums = hook(&rt, SUM)
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let its_done = done.clone();
    // SAFETY:
    // 1. No preconditions.
    let me = unsafe { libc::pthread_self() };
    let pesterer = thread::spawn(move || {
        while !its_done.load(Ordering::Relaxed) {
            // SAFETY:
            // 1. The thread joins this one before it ends.
            checked(-unsafe { libc::pthread_kill(me, libc::SIGUSR1) });
            thread::sleep(Duration::from_micros(200));
        }
    });
    let mut rounds = 0;
    while SIGNALS.load(Ordering::Relaxed) < 3000 {
        rounds += 1;
        tl_set_errno(rounds);
        add(rounds);
        check(tl_get_errno() == rounds);
        sum(rounds.into());
        weigh(rounds.into());
        if rounds % 100 == 0 {
            // A change on the way: signals arrive in it, too.
            hook(&rt, ADD2)
                .on_exit(|_, _| {})
                .attach()
                .unwrap()
                .detach()
                .unwrap();
        }
    }
    done.store(true, Ordering::Relaxed);
    pesterer.join().unwrap();

    assert_eq!(WRONG.load(Ordering::Relaxed), 0);
    everything_was_seen(&adds, &ADDS);
    everything_was_seen(&weighs, &WEIGHS);
    everything_was_seen(&sums, &SUMS);
    let missed = adds.stats().missed + weighs.stats().missed + sums.stats().missed;
    println!("{rounds} rounds, {missed} runs missed by recursion");
    assert!(missed > 0, "no signal interrupted a program");
    rt.detach_all([&adds, &weighs, &sums]).unwrap();
    assert_settled(&rt);
}
