//! Closures that a handler of the host leaves by `siglongjmp`.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rvbpf::{Hook, Runtime};
use testlib::functions::{tl_add2, tl_left_by_signal};

use crate::common::{
    ADD2, Count, Site, assert_settled, call_back, call_through, hook, serial, sites,
};

/// The first argument of calls whose closure raises [`SIGNO`] in itself.
const LEAVES: c_int = 5;
const SIGNO: c_int = libc::SIGUSR1;

fn raise() {
    // SAFETY: 1. the test has a handler for it.
    unsafe { libc::raise(SIGNO) };
}

extern "C-unwind" fn call_leaving(_: *mut c_void) -> c_long {
    tl_add2(LEAVES, 1).into()
}

/// Calls that, and is back when the handler has left it.
fn leave(flags: c_int) {
    // SAFETY: 1. no frame in between has anything to drop.
    let signal = unsafe { tl_left_by_signal(SIGNO, flags, call_leaving, null_mut()) };
    assert_eq!(signal, SIGNO);
}

/// Calls `f` from this many bytes further down.
#[inline(never)]
fn from_below(bytes: usize, f: &dyn Fn()) {
    let here = std::hint::black_box([1_u8; 512]);
    match bytes.checked_sub(512) {
        Some(less) => from_below(less, f),
        None => f(),
    }
    assert_eq!(std::hint::black_box(here)[7], 1);
}

/// Gives the thread another alternate stack, which nothing runs on now; the one that it had.
fn use_stack(stack: &libc::stack_t) -> libc::stack_t {
    let mut before = *stack;
    // SAFETY: 1. the tests keep its memory until they give the thread the one of before.
    let set = unsafe { libc::sigaltstack(stack, &raw mut before) };
    assert_eq!(set, 0);
    before
}

fn is_cancellable() -> bool {
    unsafe extern "C" {
        fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
    }
    let (mut before, mut now) = (-1, -1);
    // SAFETY: 1. both states are known to it. 2. Room for the state.
    unsafe { pthread_setcancelstate(0, &raw mut before) };
    // SAFETY: as above.
    unsafe { pthread_setcancelstate(before, &raw mut now) };
    before == 0
}

fn hook_leaving(rt: &Runtime) -> Hook {
    let leaving = hook(rt, ADD2).on_entry(|call| {
        if call.args().0 == LEAVES {
            raise();
        }
    });
    leaving.attach().unwrap()
}

/// Calls from above, from the same place, and from far below run the closure again.
fn calls_go_on(leave: impl Fn()) {
    let rt = Runtime::new().unwrap();
    let hook = hook_leaving(&rt);
    for bytes in [0, 512, 4096, 40_000] {
        // What the closure leaves behind is above, or below.
        from_below(bytes, &leave);
        let (runs, missed) = (hook.stats().runs, hook.stats().missed);
        tl_add2(1, 1);
        let now = hook.stats();
        assert_eq!((now.runs - runs, now.missed - missed), (1, 0), "{bytes}");
        // What comes by later uses the stack.
        from_below(50_000, &|| ());
        tl_add2(1, 1);
        assert!(is_cancellable());

        leave();
        from_below(4096, &|| ());
        let (runs, missed) = (hook.stats().runs, hook.stats().missed);
        from_below(bytes, &|| assert_eq!(tl_add2(1, 1), 2));
        let now = hook.stats();
        assert_eq!((now.runs - runs, now.missed - missed), (1, 0), "{bytes}");
    }
    tl_add2(1, 1);
    drop(hook);
    assert_settled(&rt);
    assert!(is_cancellable());
}

#[test]
fn calls_go_on_after_a_closure_was_left() {
    let _one = serial();
    calls_go_on(|| leave(0));
    // The test's thread has an alternate stack.
    calls_go_on(|| leave(libc::SA_ONSTACK));
}

/// C's threads have none.
#[test]
fn so_they_do_without_an_alternate_stack() {
    let _one = serial();
    thread::spawn(|| {
        let none = libc::stack_t {
            ss_sp: null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: 0,
        };
        let before = use_stack(&none);
        calls_go_on(|| leave(0));
        // Its owner frees it when the thread ends.
        use_stack(&before);
    })
    .join()
    .unwrap();
}

/// A closure leaves one that it has called, for itself: it is not left.
#[test]
fn a_closure_that_is_jumped_back_into_runs_still() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let inner = hook_leaving(&rt);
    let outer = hook(&rt, sites(1)[0]).on_entry(|call| {
        if call.args().0 == 7 {
            leave(0);
            // Of its own function: no program may run.
            let site: Site = sites(1)[0];
            site(1);
            // Of the other one.
            tl_add2(1, 1);
        }
    });
    let outer = outer.attach().unwrap();
    let site = sites(1)[0];
    for _ in 0..3 {
        site(7);
    }
    let (ran, of_inner) = (outer.stats(), inner.stats());
    assert_eq!((ran.runs, ran.missed), (3, 3));
    assert_eq!((of_inner.runs, of_inner.missed), (6, 0));
    site(1);
    assert_eq!(outer.stats().runs, 4);
    drop((inner, outer));
    assert_settled(&rt);
}

thread_local! {
    static IN_HANDLER: Cell<u32> = const { Cell::new(0) };
}

extern "C" fn calls_in_handler(_: c_int) {
    IN_HANDLER.set(IN_HANDLER.get() + 1);
    // The function whose closure is interrupted, and another one.
    tl_add2(1, 1);
    sites(1)[0](1);
}

/// A handler on another stack, above or below the interrupted one, with and without the kernel's
/// knowing of it: the closure that it interrupts is not left.
#[test]
fn a_closure_that_a_handler_interrupts_is_not_left() {
    const AUTODISARM: c_int = 1 << 31;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let interrupted = hook_leaving(&rt);
    let other = hook(&rt, sites(1)[0]).on_entry(|_| {}).attach().unwrap();
    let handler: extern "C" fn(c_int) = calls_in_handler;
    for flags in [0, AUTODISARM] {
        // On the heap of the process, and on the caller's own stack, above.
        let mut on_stack = [0_u8; 64 << 10];
        let mut on_heap = vec![0_u8; 64 << 10];
        for memory in [&mut on_stack[..], &mut on_heap[..]] {
            let stack = libc::stack_t {
                ss_sp: memory.as_mut_ptr().cast(),
                ss_flags: flags,
                ss_size: memory.len(),
            };
            let before = use_stack(&stack);
            // SAFETY: 1. all of its fields may be zero.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_ONSTACK;
            // SAFETY: 1. the handler calls hooked functions alone.
            let set = unsafe { libc::sigaction(SIGNO, &raw const action, null_mut()) };
            assert_eq!(set, 0);
            let (runs, missed) = (interrupted.stats().runs, interrupted.stats().missed);
            let others = other.stats().runs;
            tl_add2(LEAVES, 1);
            tl_add2(1, 1);
            let now = interrupted.stats();
            // The kernel's unnamed stack leaves it open: the handler's call may run it once more.
            let nr = (now.runs - runs, now.missed - missed);
            assert!(
                nr == (2, 1) || flags == AUTODISARM && nr == (3, 0),
                "{nr:?}"
            );
            assert_eq!(other.stats().runs, others + 1);
            use_stack(&before);
        }
    }
    assert_eq!(IN_HANDLER.get(), 4);
    assert!(is_cancellable());
    drop((interrupted, other));
    assert_settled(&rt);
}

/// Nested closures are left together, by a jump over the hooked call in between.
#[test]
fn nested_closures_are_left_together() {
    extern "C-unwind" fn call_both(_: *mut c_void) -> c_long {
        call_through(call_leaving, null_mut())
    }
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let leaving = hook_leaving(&rt);
    let trying = Arc::new(AtomicBool::new(true));
    let may_try = trying.clone();
    let outer = hook(&rt, call_back()).on_entry(move |_| {
        if may_try.load(Ordering::Relaxed) {
            tl_add2(LEAVES, 1);
        }
    });
    let outer = outer.attach().unwrap();
    // SAFETY: 1. no frame in between has anything to drop.
    let signal = unsafe { tl_left_by_signal(SIGNO, 0, call_both, null_mut()) };
    assert_eq!(signal, SIGNO);
    trying.store(false, Ordering::Relaxed);
    static RAN: Count = Count::new();
    extern "C-unwind" fn ran(_: *mut c_void) -> c_long {
        RAN.add();
        tl_add2(1, 1).into()
    }
    for _ in 0..3 {
        assert_eq!(call_through(ran, null_mut()), 3);
    }
    assert_eq!(
        (RAN.get(), outer.stats().runs, outer.stats().missed),
        (3, 4, 0)
    );
    assert_eq!((leaving.stats().runs, leaving.stats().missed), (4, 0));
    drop((leaving, outer));
    assert_settled(&rt);
}
