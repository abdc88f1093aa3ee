//! Raw programs: the context of the kernel, and the helpers that look around it.

use std::ffi::c_long;
use std::sync::atomic::{AtomicU64, Ordering};

use rvbpf::{
    Needs, RawProg, Runtime, get_func_arg, get_func_arg_cnt, get_func_ip, get_func_ret,
    session_cookie, session_is_return,
};
use testlib::functions::tl_add2;

use crate::common::{ADD2, WEIGH12, assert_settled, hook, serial, weigh_from};

/// What a program saw: slot count, some arguments, ip, return value.
static SEEN: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

fn seen() -> Vec<u64> {
    SEEN.iter()
        .map(|s| s.swap(u64::MAX, Ordering::SeqCst))
        .collect()
}

fn put(i: usize, value: u64) {
    SEEN[i].store(value, Ordering::SeqCst);
}

/// # Safety
/// `ctx` is the context of a running program that asked for META and IP.
unsafe fn look(ctx: *const u64) {
    // SAFETY: passed on.
    let count = unsafe { get_func_arg_cnt(ctx) };
    put(0, count);
    for (i, n) in [0, count - 1, count].into_iter().enumerate() {
        // SAFETY: passed on.
        let arg = unsafe { get_func_arg(ctx, n) };
        put(1 + i, arg.unwrap_or(0xdead));
    }
    // SAFETY: passed on.
    let ip = unsafe { get_func_ip(ctx) };
    put(4, ip);
}

unsafe extern "C" fn at_entry(ctx: *mut u64) -> u64 {
    // SAFETY: 1. the program is attached with META and IP.
    unsafe { look(ctx) };
    1 // ignored
}

unsafe extern "C" fn at_exit(ctx: *mut u64) -> u64 {
    // SAFETY: 1. the program is attached with META and IP.
    unsafe { look(ctx) };
    // SAFETY: 1. as above, and after the function.
    put(5, unsafe { get_func_ret(ctx) });
    1 // ignored
}

unsafe extern "C" fn with_cookie(ctx: *mut u64, cookie: u64) -> u64 {
    put(6, cookie);
    // SAFETY: 1. the first slot of a function of two arguments.
    put(7, unsafe { ctx.read() });
    0
}

#[test]
fn programs_find_what_they_asked_for() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let all = Needs::META | Needs::IP | Needs::STATS;
    for (kind, ret) in [
        (RawProg::fentry(at_entry), u64::MAX),
        (RawProg::fexit(at_exit), 650),
    ] {
        // SAFETY: 1. the programs return. 2. they look only at what they asked for.
        let builder = unsafe { hook(&rt, WEIGH12).raw(kind.needs(all)) };
        let hooked = builder.attach().unwrap();
        seen();
        assert_eq!(weigh_from(1), (650, 650));
        let ip = WEIGH12 as usize as u64;
        assert_eq!(seen()[..6], [12, 1, 12, 0xdead, ip, ret]);
        assert_eq!(hooked.stats().runs, 1);
        hooked.detach().unwrap();
    }
    assert_settled(&rt);
}

#[test]
fn programs_that_ask_for_nothing_are_not_counted() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let cookie = 0xfeed_beef_1234_5678;
    let quiet = RawProg::fentry(at_entry).with_cookie(with_cookie, cookie);
    // SAFETY: 1. as above; the replaced function is not called.
    let hooked = unsafe { hook(&rt, ADD2).raw(quiet) }.attach().unwrap();
    seen();
    assert_eq!(tl_add2(-1, 2), 1);
    let saw = seen();
    assert_eq!((saw[6], saw[7] as i32), (cookie, -1));
    assert_eq!(
        saw[0],
        u64::MAX,
        "the function without a cookie was replaced"
    );
    assert_eq!(hooked.stats().runs, 0);
    hooked.detach().unwrap();
    assert_settled(&rt);
}

unsafe extern "C" fn answer_sum(ctx: *mut u64) -> u64 {
    // SAFETY: 1. two argument slots.
    let [a, b] = unsafe { *ctx.cast::<[u64; 2]>() };
    if a as i32 == 7 {
        b.wrapping_add(1000)
    } else {
        0
    }
}

unsafe extern "C" fn answer_slots(ctx: *mut u64) -> u64 {
    // SAFETY: 1. two argument slots, the return slot behind them.
    let [a, _, ret] = unsafe { &mut *ctx.cast::<[u64; 3]>() };
    if *a as i32 != 7 {
        return 0;
    }
    *ret = 0;
    1
}

#[test]
fn fmod_ret_the_kernels_way_and_by_slots() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. the program returns. 2. it keeps within the slots.
    let by_value = unsafe { hook(&rt, ADD2).raw(RawProg::fmod_ret(answer_sum)) }
        .attach()
        .unwrap();
    assert_eq!((tl_add2(7, -2), tl_add2(8, -2)), (998, 6));
    drop(by_value);
    // SAFETY: as above.
    let by_slots = unsafe { hook(&rt, ADD2).raw(RawProg::fmod_ret_slots(answer_slots)) }
        .attach()
        .unwrap();
    assert_eq!((tl_add2(7, -2), tl_add2(8, -2)), (0, 6));
    drop(by_slots);
    assert_settled(&rt);
}

unsafe extern "C" fn session(ctx: *mut u64) -> u64 {
    // SAFETY: 1. a session program.
    let cookie = unsafe { session_cookie(ctx) };
    // SAFETY: 1. a session program.
    if unsafe { session_is_return(ctx) } {
        // SAFETY: 1. the cookie is this call's.
        put(0, unsafe { cookie.read() });
        // SAFETY: 1. sessions have META, and this is after the function.
        put(1, unsafe { get_func_ret(ctx) });
    } else {
        // SAFETY: 1. the cookie is this call's.
        put(2, unsafe { cookie.read() });
        // SAFETY: 1. the first argument slot.
        let arg = unsafe { ctx.read() };
        // SAFETY: 1. as above.
        unsafe { cookie.write(arg) };
    }
    0
}

#[test]
fn raw_sessions() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let prog = RawProg::fsession(session).needs(Needs::STATS);
    // SAFETY: 1. the program returns. 2. it looks only at what sessions have.
    let hooked = unsafe { hook(&rt, WEIGH12).raw(prog) }.attach().unwrap();
    seen();
    let (got, want): (c_long, c_long) = weigh_from(99);
    assert_eq!(got, want);
    assert_eq!(seen()[..3], [99, want as u64, 0]);
    assert_eq!(hooked.stats().runs, 2);
    hooked.detach().unwrap();
    assert_settled(&rt);
}
