//! `errno`, `fcsr`, and calls whose programs panic.

use std::sync::Arc;

use rvbpf::{HookBuilder, HookFn, RawProg, Runtime};
use testlib::functions::{
    tl_add2, tl_clobber, tl_get_errno, tl_get_fcsr, tl_keeper, tl_kept, tl_set_errno, tl_set_fcsr,
};

use crate::common::{ADD2, Count, assert_settled, hook, serial};

/// Rounding towards zero, and two flags.
const FCSR: u64 = 0x23;
const ERRNO: i32 = 4321;

/// Changes everything that a call may change, and what it must not be seen to change.
fn wreck() {
    set_fcsr(0x44);
    tl_set_errno(99);
    tl_clobber();
}

fn set_fcsr(value: u64) -> u64 {
    // SAFETY:
    // 1. Rounding modes and flags, none reserved; the tests do no float arithmetic under them.
    unsafe { tl_set_fcsr(value) }
}

unsafe extern "C" fn raw_wreck(_: *mut u64) -> u64 {
    wreck();
    0
}

/// How a wrecking program is attached.
type Give<F> = fn(HookBuilder<F>) -> HookBuilder<F>;

fn closure_at_entry<F: HookFn>(b: HookBuilder<F>) -> HookBuilder<F> {
    b.on_entry(|_| wreck())
}

fn closure_at_exit<F: HookFn>(b: HookBuilder<F>) -> HookBuilder<F> {
    b.on_exit(|_, _| wreck())
}

fn closure_before_others<F: HookFn>(b: HookBuilder<F>) -> HookBuilder<F> {
    b.on_entry(|_| {}).on_exit(|_, _| {}).override_return(|_| {
        wreck();
        None
    })
}

fn session<F: HookFn>(b: HookBuilder<F>) -> HookBuilder<F> {
    b.on_session(|_, _| wreck(), |_, _, _| wreck())
}

fn raw_at_entry<F: HookFn>(b: HookBuilder<F>) -> HookBuilder<F> {
    // SAFETY:
    // 1. The program returns and does not look at its context.
    unsafe { b.raw(RawProg::fentry(raw_wreck)) }
}

fn raw_at_exit<F: HookFn>(b: HookBuilder<F>) -> HookBuilder<F> {
    // SAFETY:
    // 1. As above.
    unsafe { b.raw(RawProg::fexit(raw_wreck)) }
}

/// One promises to change nothing (and keeps the promise), the other wrecks.
fn raw_beside_bare<F: HookFn>(b: HookBuilder<F>) -> HookBuilder<F> {
    unsafe extern "C" fn nothing(_: *mut u64) -> u64 {
        0
    }
    // SAFETY:
    // 1. As above.
    let bare = unsafe { b.raw(RawProg::fentry(nothing).bare()) };
    raw_at_exit(bare)
}

fn ways<F: HookFn>() -> [(&'static str, Give<F>); 7] {
    [
        ("closure at entry", closure_at_entry),
        ("closure at exit", closure_at_exit),
        ("fmod_ret closure", closure_before_others),
        ("session", session),
        ("raw at entry", raw_at_entry),
        ("raw at exit", raw_at_exit),
        ("raw beside bare", raw_beside_bare),
    ]
}

/// Hooks `f`, calls `check`, unhooks.
fn with_each<F: HookFn>(rt: &Runtime, f: F, check: impl Fn(&str)) {
    for (how, give) in ways::<F>() {
        let hooked = give(hook(rt, f)).attach().unwrap();
        check(how);
        hooked.detach().unwrap();
    }
}

/// What the function and, after it, the caller see is what they would see unhooked.
fn check_errno_and_fcsr(rt: &Runtime) {
    with_each(rt, tl_get_errno as extern "C" fn() -> i32, |how| {
        tl_set_errno(ERRNO);
        let seen = tl_get_errno();
        // Not through the hook: `errno` itself.
        let after = std::io::Error::last_os_error().raw_os_error();
        assert_eq!((seen, after), (ERRNO, Some(ERRNO)), "{how}");
    });
    with_each(rt, tl_get_fcsr as extern "C" fn() -> u64, |how| {
        set_fcsr(FCSR);
        let seen = tl_get_fcsr();
        let after = set_fcsr(0);
        assert_eq!((seen, after), (FCSR, FCSR), "{how}");
    });
    // Not through a hook at all: the function between changes them, the caller sees that.
    with_each(rt, ADD2, |how| {
        tl_set_errno(ERRNO);
        set_fcsr(FCSR);
        let sum = tl_add2(1, 2);
        let (errno, fcsr) = (tl_set_errno(0), set_fcsr(0));
        assert_eq!((sum, errno, fcsr), (3, ERRNO, FCSR), "{how}");
    });
}

#[test]
fn errno_and_fcsr_survive_programs() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    check_errno_and_fcsr(&rt);
    assert_settled(&rt);
}

/// The same where programs run from the slow path: in a program of another hook.
#[test]
fn errno_and_fcsr_survive_nested_programs() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let inner = rt.clone();
    let site = crate::common::sites(1)[0];
    let outer = hook(&rt, site)
        .on_entry(move |_| check_errno_and_fcsr(&inner))
        .attach()
        .unwrap();
    assert_eq!(site(5), 5);
    assert_eq!(outer.stats().panics, 0);
    outer.detach().unwrap();
    assert_settled(&rt);
}

/// What the function does to them is not undone by programs at its end.
#[test]
fn what_the_function_sets_stays_set() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    with_each(
        &rt,
        tl_set_fcsr as unsafe extern "C" fn(u64) -> u64,
        |how| {
            set_fcsr(0);
            assert_eq!(set_fcsr(FCSR), 0, "{how}");
            assert_eq!(tl_get_fcsr(), FCSR, "{how}");
            set_fcsr(0);
        },
    );
    let set_errno = tl_set_errno as extern "C" fn(i32) -> i32;
    with_each(&rt, set_errno, |how| {
        tl_set_errno(1);
        assert_eq!(tl_set_errno(ERRNO), 1, "{how}");
        assert_eq!(tl_get_errno(), ERRNO, "{how}");
    });
    assert_settled(&rt);
}

/// A bare program promises to change neither; nobody looks. This is also the proof that the tests
/// above can fail.
#[test]
fn a_bare_program_that_breaks_its_promise_is_seen() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY:
    // 1. The program returns and does not look at its context.
    let builder = unsafe { hook(&rt, ADD2).raw(RawProg::fentry(raw_wreck).bare()) };
    let hooked = builder.attach().unwrap();
    tl_set_errno(ERRNO);
    assert_eq!(tl_add2(1, 2), 3);
    let (errno, fcsr) = (tl_set_errno(0), set_fcsr(0));
    assert_eq!((errno, fcsr), (99, 0x44));
    hooked.detach().unwrap();
    assert_settled(&rt);
}

#[test]
fn a_panic_is_counted_and_the_call_goes_on() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let after = Arc::new(Count::new());
    let (c1, c2) = (after.clone(), after.clone());
    let hooked = hook(&rt, ADD2)
        .on_entry(|call| assert!(call.args().0 % 2 == 0, "odd, at entry"))
        .on_entry(move |_| c1.add())
        .override_return(|(a, _)| if a % 3 == 0 { panic!("by three") } else { None })
        .on_exit(|_, sum| assert!(*sum % 5 != 0, "by five, at exit"))
        .on_exit(move |_, _| c2.add())
        .attach()
        .unwrap();
    tl_set_errno(ERRNO);
    for a in 0..30 {
        assert_eq!(tl_add2(a, 0), a);
        assert_eq!(
            tl_set_errno(ERRNO),
            ERRNO,
            "a panic is work, but errno survives it"
        );
    }
    let stats = hooked.stats();
    assert_eq!(stats.panics, 15 + 10 + 6);
    assert_eq!(after.get(), 60, "the other programs run");
    assert!(
        stats.progs.iter().all(|p| (p.runs, p.missed) == (30, 0)),
        "{stats:?}"
    );
    hooked.detach().unwrap();
    assert_settled(&rt);
}

/// A caller of the same unit, compiled with all of GCC's optimisations, expects no more than psABI:
/// no value of its own is in a register that a program may change.
#[test]
fn callers_rely_on_psabi_alone() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let call = || [1, -77, 1 << 40].map(|x| tl_keeper(x, x * 31, 5 - x, 0.5));
    let want = call();
    for wreck_at in [closure_at_entry, closure_at_exit] {
        let wrecked = wreck_at(hook(&rt, tl_kept)).attach().unwrap();
        assert_eq!(call(), want);
        assert_eq!(wrecked.stats().runs, 6);
    }
    assert_settled(&rt);
}
