//! Children that run with the memory and the thread pointer of a thread that waits for them, as
//! those of `vfork` do: their calls run programs, and leave the thread as it was, or in them.

use std::ffi::{c_int, c_long, c_void};
use std::ptr;
use std::thread;
use std::time::Duration;

use rvbpf::{Error, FuncModel, Runtime, TrampError};
use testlib::functions::{tl_add2, tl_read_byte};

use crate::common::{
    ADD2, SUM, assert_settled, call_back, call_through, gettid, hook, is_asleep, pipe, send,
    serial, vfork, wait_until,
};

fn assert_in_use(rt: &Runtime) {
    let result = rt.synchronize(Duration::from_millis(300));
    assert!(
        matches!(result, Err(Error::Tramp(TrampError::StillInUse { .. }))),
        "{result:?}"
    );
}

extern "C" fn adds(_: *mut c_void) -> c_int {
    c_int::from(tl_add2(40, 2) != 42)
}

/// The thread's first hooked call is one of its child's, which has another id. When the thread
/// sleeps in a program later, that is seen.
#[test]
fn a_child_may_come_first() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let adding = hook(&rt, ADD2).on_entry(|_| {}).on_exit(|_, _| {});
    let adding = adding.attach().unwrap();
    let (from, to) = pipe();
    let sleeping = hook(&rt, call_back())
        .on_entry(move |_| assert_eq!(tl_read_byte(from), 1))
        .attach()
        .unwrap();
    let (send_tid, tid) = std::sync::mpsc::channel();
    let sleeper = thread::spawn(move || {
        assert_eq!(vfork(adds, ptr::null_mut()), 0);
        send_tid.send(gettid()).unwrap();
        call_through(nothing, ptr::null_mut())
    });
    let tid = tid.recv().unwrap();
    wait_until("a program that sleeps", || is_asleep(tid));
    assert!(adding.stats().progs.iter().all(|p| p.runs == 1));
    rt.detach_all([&adding, &sleeping]).unwrap();
    assert_in_use(&rt);
    send(to, 1);
    assert_eq!(sleeper.join().unwrap(), 1);
    assert_eq!((sleeping.stats().panics, adding.stats().missed), (0, 0));
    assert_settled(&rt);
    for fd in [from, to] {
        // SAFETY: 1. our own descriptor, closed once.
        unsafe { libc::close(fd) };
    }
}

extern "C-unwind" fn nothing(_: *mut c_void) -> c_long {
    0
}

extern "C-unwind" fn ends(_: *mut c_void) -> c_long {
    // SAFETY: 1. ends this process, which shares memory with another, and nothing else.
    unsafe { libc::_exit(7) }
}

extern "C" fn ends_inside(_: *mut c_void) -> c_int {
    call_through(ends, ptr::null_mut()) as c_int
}

/// Its call never returns, nor counts itself out: as after `longjmp`, the image is kept. Its thread
/// is free to call.
#[test]
fn a_child_may_end_inside_a_call() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let hooked = hook(&rt, call_back()).on_entry(|_| {}).on_exit(|_, _| {});
    let hooked = hooked.attach().unwrap();
    for _ in 0..3 {
        assert_eq!(libc::WEXITSTATUS(vfork(ends_inside, ptr::null_mut())), 7);
        assert_eq!(call_through(nothing, ptr::null_mut()), 1);
    }
    let runs: Vec<_> = hooked.stats().progs.iter().map(|p| p.runs).collect();
    assert_eq!(runs, [6, 3]);
    hooked.detach().unwrap();
    assert_in_use(&rt);
    assert_eq!(rt.stats().tramps.retired, 1);
    assert_eq!(call_through(nothing, ptr::null_mut()), 1);
    assert_eq!(hooked.stats().runs, 9);
}

extern "C" fn sums(_: *mut c_void) -> c_int {
    // SAFETY: 1. two numbers, as the first says.
    let sum = unsafe { SUM(2, 40_i32, 2_i32) };
    c_int::from(sum != 42)
}

/// Frames of such calls lie on the thread's shadow stack. A child uses its thread's, if that has
/// one; a child that would have to make one goes by, and the call is missed.
#[test]
fn children_use_the_shadow_stack_of_their_thread() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. nothing is claimed of the function.
    let hooked = unsafe { rt.hook_addr(SUM as *const (), FuncModel::untyped()) }.unwrap();
    let hooked = hooked.on_exit(|_, _| {}).attach().unwrap();
    let of_new_thread = |first: fn()| {
        thread::scope(|scope| {
            scope.spawn(|| {
                first();
                assert_eq!(vfork(sums, ptr::null_mut()), 0);
            });
        });
        let stats = hooked.stats();
        (stats.runs, stats.missed)
    };
    assert_eq!(of_new_thread(|| ()), (0, 1));
    assert_eq!(
        of_new_thread(|| assert_eq!(sums(ptr::null_mut()), 0)),
        (2, 1)
    );
    hooked.detach().unwrap();
    assert_settled(&rt);
}
