//! Static calls and dispatchers: direct jumps that are led elsewhere under running callers.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "stubs in use, functions of libraries")]

mod common;

use std::ffi::c_long;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{Site, Stopper, assert_settled, serial};
use rvbpf::{Dispatcher, Error, Runtime, StaticCall, TrampError};
use testlib::functions::{Pair as CPair, tl_sites};

type Step = extern "C" fn(u64) -> u64;

extern "C" fn plus_one(x: u64) -> u64 {
    x + 1
}
extern "C" fn plus_two(x: u64) -> u64 {
    x + 2
}
extern "C" fn plus_three(x: u64) -> u64 {
    x + 3
}

const STEPS: [Step; 3] = [plus_one, plus_two, plus_three];

rvbpf::static_call! {
    /// Adds something.
    fn Plus = "rvbpf_test_plus" (x: u64) -> u64 { plus_one }
}

rvbpf::static_call! {
    /// Another, with floats and nothing to return but through a pointer.
    fn Store = "rvbpf_test_store" (to: *mut f64, a: f64, b: f32) { store_sum }
}

extern "C" fn store_sum(to: *mut f64, a: f64, b: f32) {
    // SAFETY: 1. the test gives a place.
    unsafe { to.write(a + f64::from(b)) };
}

extern "C" fn store_product(to: *mut f64, a: f64, b: f32) {
    // SAFETY: 1. the test gives a place.
    unsafe { to.write(a * f64::from(b)) };
}

#[test]
fn a_stub_in_text_goes_where_it_is_led() {
    let _one = serial();
    assert_eq!(Plus::call(5), 6);
    for (i, step) in STEPS.iter().cycle().take(7).enumerate() {
        Plus::update(*step).unwrap();
        assert_eq!(Plus::call(5), 6 + i as u64 % 3);
    }
    let mut sum = 0.0;
    Store::call(&raw mut sum, 1.5, 2.0);
    assert_eq!(sum, 3.5);
    Store::update(store_product).unwrap();
    Store::call(&raw mut sum, 1.5, 2.0);
    assert_eq!(sum, 3.0);
}

/// Callers that never stop find one of the targets each time; who has led the stub elsewhere finds
/// the new one at once.
fn under_load(call: impl Fn(u64) -> u64 + Sync, update: impl Fn(Step)) {
    let (stop, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|s| {
        let stopper = Stopper(&stop);
        for _ in 0..2 {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let x = calls.fetch_add(1, Ordering::Relaxed);
                    let by = call(x) - x;
                    assert!((1..=3).contains(&by), "{by}");
                }
            });
        }
        for round in 0..60 {
            let by = round % 3;
            update(STEPS[by]);
            for x in 0..10 {
                assert_eq!(call(x), x + 1 + by as u64);
            }
        }
        drop(stopper);
    });
    assert!(calls.load(Ordering::Relaxed) > 100);
}

#[test]
fn a_stub_in_text_loses_no_call() {
    let _one = serial();
    under_load(Plus::call, |step| Plus::update(step).unwrap());
}

#[test]
fn a_stub_in_a_pack_loses_no_call() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. it is called below, while it is there.
    let plus = unsafe { StaticCall::<Step>::new(&rt, plus_one) }.unwrap();
    let stub = plus.stub();
    assert_eq!(stub(1), 2);
    under_load(|x| stub(black_box(x)), |step| plus.update(step).unwrap());
    drop(plus);
    assert_settled(&rt);
}

#[test]
fn a_target_out_of_reach_changes_nothing() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. it is called below, while it is there.
    let plus = unsafe { StaticCall::<Step>::new(&rt, plus_two) }.unwrap();
    let raw: *const () = libc::labs as *const ();
    // SAFETY: 1. a `long` is a register, signed or not.
    let far = unsafe { std::mem::transmute::<*const (), Step>(raw) };
    let refused = plus.update(far);
    assert!(
        matches!(refused, Err(Error::Tramp(TrampError::OutOfReach { .. }))),
        "{refused:?}"
    );
    assert_eq!((plus.stub())(1), 3);
    plus.update(plus_one).unwrap();
    assert_eq!((plus.stub())(1), 2);
    drop(plus);
    assert_settled(&rt);
}

#[test]
fn a_dispatcher_calls_what_it_is_given() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. it is called below, while it is there.
    let sites = unsafe { Dispatcher::<Site>::new(&rt) }.unwrap();
    let call = |i: usize| {
        // SAFETY: 1. the dispatcher lives.
        unsafe { (sites.function())(1000, tl_sites[i]) }
    };
    let all_are_right = || (0..tl_sites.len()).all(|i| call(i) == 1000 + i as c_long);
    assert!(all_are_right(), "without targets");
    for n in [1, 2, 3, 7, 48, 0, 5] {
        // Not in order, and one of them twice.
        let targets: Vec<Site> = (0..n).rev().map(|i| tl_sites[i * 2]).collect();
        sites.set_targets(&targets).unwrap();
        assert!(all_are_right(), "{n} targets");
    }
    sites.set_targets(&[tl_sites[3]; 48]).unwrap();
    assert!(all_are_right());
    let refused = sites.set_targets(&tl_sites[..49]);
    assert!(matches!(
        refused,
        Err(Error::Tramp(TrampError::TooManyTargets { max: 48 }))
    ));
    assert!(all_are_right());
    drop(sites);
    assert_settled(&rt);
}

#[test]
fn targets_change_under_running_callers() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. it is called below, while it is there.
    let sites = unsafe { Dispatcher::<Site>::new(&rt) }.unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let stopper = Stopper(&stop);
        for first in 0..2 {
            let (stop, call) = (&stop, sites.function());
            s.spawn(move || {
                let mut i = first;
                while !stop.load(Ordering::Relaxed) {
                    i = (i * 5 + 1) % tl_sites.len();
                    // SAFETY: 1. the dispatcher lives.
                    let got = unsafe { call(7, tl_sites[i]) };
                    assert_eq!(got, 7 + i as c_long);
                }
            });
        }
        for n in 0..40 {
            sites.set_targets(&tl_sites[n..2 * n]).unwrap();
        }
        drop(stopper);
    });
    drop(sites);
    assert_settled(&rt);
}

/// It may be anywhere. Whoever drops code does not wait for it, and the code is freed afterwards.
#[test]
fn code_is_kept_for_a_thread_that_is_not_seen() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. it is not called.
    let sites = unsafe { Dispatcher::<Site>::new(&rt) }.unwrap();
    let (stop, runs) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|s| {
        let stopper = Stopper(&stop);
        s.spawn(|| {
            block_all_signals();
            runs.store(true, Ordering::Relaxed);
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        while !runs.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        sites.set_targets(&tl_sites[..8]).unwrap();
        drop(sites);
        let left = rt.synchronize(Duration::from_millis(200));
        let three = |retired| retired == 3;
        assert!(
            matches!(left, Err(Error::Tramp(TrampError::StillInUse { retired })) if three(retired)),
            "two chains and the stub: {left:?}"
        );
        drop(stopper);
    });
    assert_settled(&rt);
}

/// As whoever must not be interrupted does.
fn block_all_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: 1. `all` is writable.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: 1. `all` is a set now. 2. Nobody asks for the old one.
    let rc = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) };
    assert_eq!(rc, 0);
}

rvbpf::abi_struct! {
    /// Two registers.
    struct Pair { a: c_long, b: c_long }
}

#[test]
fn a_dispatcher_needs_a_free_register() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    type Full = extern "C" fn(Pair, Pair, Pair, Pair) -> c_long;
    // SAFETY: 1. it is not called.
    let refused = unsafe { Dispatcher::<Full>::new(&rt) };
    assert!(matches!(
        refused,
        Err(Error::Tramp(TrampError::NoFreeRegister))
    ));
    extern "C" fn mixed(a: f64, p: Pair, b: f32) -> f64 {
        a + p.a as f64 + 2.0 * p.b as f64 + f64::from(b)
    }
    type Mixed = extern "C" fn(f64, Pair, f32) -> f64;
    // SAFETY: 1. it is called below, while it is there.
    let dispatcher = unsafe { Dispatcher::<Mixed>::new(&rt) }.unwrap();
    dispatcher.set_targets(&[mixed as Mixed]).unwrap();
    let CPair { a, b } = CPair { a: 3, b: 4 };
    // SAFETY: 1. the dispatcher lives.
    let got = unsafe { (dispatcher.function())(0.5, Pair { a, b }, 0.25, mixed) };
    assert_eq!(got, 11.75);
    drop(dispatcher);
    assert_settled(&rt);
}
