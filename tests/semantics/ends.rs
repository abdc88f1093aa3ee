//! Threads that come and go, handles that are dropped, batches.

use std::cell::RefCell;
use std::ffi::{c_int, c_long, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use rvbpf::{FuncModel, Hook, Runtime};
use testlib::functions::{tl_add2, tl_read_byte, tl_sum};
use text::testing::flush_count;

use crate::common::{
    ADD2, Count, READ_BYTE, SUM, WEIGH12, assert_settled, call_back, call_through, checked, gettid,
    hook, is_asleep, pipe, serial, sites, wait_until, weigh_from,
};

#[test]
fn dropping_a_hook_detaches_it() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let runs = Arc::new(Count::new());
    let count = runs.clone();
    let hooked = hook(&rt, ADD2)
        .on_entry(move |_| count.add())
        .attach()
        .unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    drop(hooked);
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(runs.get(), 1);
    assert_settled(&rt);
    assert_eq!(
        Arc::strong_count(&runs),
        1,
        "the closure has been dropped with its image"
    );
}

#[test]
fn hooks_keep_their_runtime() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let hooked = hook(&rt, ADD2).on_exit(|_, _| {}).attach().unwrap();
    drop(rt);
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(hooked.stats().runs, 1);
    drop(hooked);
    // The runtime is gone by now, and the function another's to hook.
    let rt = Runtime::new().unwrap();
    let hooked = hook(&rt, ADD2).on_exit(|_, _| {}).attach().unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    hooked.detach().unwrap();
    assert_settled(&rt);
}

/// Flushes of attaching, retargeting and detaching `n` sites at once.
fn flushes_of(n: usize) -> [u64; 3] {
    let rt = Runtime::new().unwrap();
    let counted = |change: &mut dyn FnMut()| {
        let before = flush_count();
        change();
        flush_count() - before
    };
    let batch = || {
        let builders = sites(n)
            .into_iter()
            .map(|s| hook(&rt, s).on_entry(|_| {}).on_exit(|_, _| {}));
        rt.attach_all(builders).unwrap()
    };
    let (mut first, mut second): (Vec<Hook>, Vec<Hook>) = (Vec::new(), Vec::new());
    let attach = counted(&mut || first = batch());
    let retarget = counted(&mut || second = batch());
    for (i, site) in sites(n).into_iter().enumerate() {
        assert_eq!(site(1), 1 + i as c_long);
    }
    let detach = counted(&mut || rt.detach_all(first.iter().chain(&second)).unwrap());
    let runs: u64 = first.iter().chain(&second).map(|h| h.stats().runs).sum();
    assert_eq!(runs, 4 * n as u64);
    assert_settled(&rt);
    [attach, retarget, detach]
}

#[test]
fn a_batch_costs_a_constant_number_of_flushes() {
    let _one = serial();
    let warm_up = flushes_of(1);
    let (few, many) = (flushes_of(2), flushes_of(64));
    println!(
        "flushes to attach, retarget, detach: {few:?} for 2 sites, {many:?} for 64, {warm_up:?} at first"
    );
    assert_eq!(few, many);
    assert!(many.iter().all(|n| (1..=20).contains(n)), "{many:?}");
}

#[test]
fn a_batch_is_attached_whole_or_not_at_all() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let fine = || sites(5).into_iter().map(|s| hook(&rt, s).on_entry(|_| {}));
    let without_program = hook(&rt, sites(6)[5]);
    assert!(rt.attach_all(fine().chain([without_program])).is_err());
    assert_eq!(rt.stats().tramps.sites, 0);
    let hooks = rt.attach_all(fine()).unwrap();
    hooks[3].detach().unwrap();
    assert!(
        rt.detach_all(&hooks).is_err(),
        "one of them is detached already"
    );
    assert_eq!(rt.stats().tramps.sites, 4, "so none of the others was");
    for (i, site) in sites(5).into_iter().enumerate() {
        assert_eq!(site(0), i as c_long);
        assert_eq!(hooks[i].stats().runs, u64::from(i != 3));
    }
    drop(hooks);
    assert_settled(&rt);
}

/// Calls hooked functions when its thread ends.
struct Farewell;

impl Drop for Farewell {
    fn drop(&mut self) {
        assert_eq!(tl_add2(40, 2), 42);
        assert_eq!(weigh_from(3).0, weigh_from(3).1);
    }
}

thread_local! {
    static FAREWELL: RefCell<Option<Farewell>> = const { RefCell::new(None) };
}

#[test]
fn threads_come_and_go() {
    const THREADS: u64 = 300;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let add = hook(&rt, ADD2)
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    let weigh = hook(&rt, WEIGH12).on_exit(|_, _| {}).attach().unwrap();
    let sum = hook(&rt, SUM).on_exit(|_, _| {}).attach().unwrap();
    let mut running = Vec::new();
    for i in 0..THREADS as c_int {
        running.push(thread::spawn(move || {
            FAREWELL.set(Some(Farewell));
            assert_eq!(tl_add2(i, 1), i + 1);
            // SAFETY:
            // 1. Two numbers follow.
            let sum = unsafe { tl_sum(2, c_long::from(i), 1_i64) };
            assert_eq!(sum, c_long::from(i) + 1);
        }));
        if i % 16 == 15 {
            running.drain(..).for_each(|t| t.join().unwrap());
            // Grace periods meet threads that are about to end.
            hook(&rt, ADD2)
                .on_exit(|_, _| {})
                .attach()
                .unwrap()
                .detach()
                .unwrap();
            rt.synchronize(crate::common::PATIENCE).unwrap();
        }
    }
    running.into_iter().for_each(|t| t.join().unwrap());
    let runs = |h: &Hook| {
        h.stats()
            .progs
            .iter()
            .map(|p| (p.runs, p.missed))
            .collect::<Vec<_>>()
    };
    assert_eq!(runs(&add), [(2 * THREADS, 0); 2]);
    // `weigh_from` is called twice by each.
    assert_eq!(runs(&weigh), [(2 * THREADS, 0)]);
    assert_eq!(runs(&sum), [(THREADS, 0)]);
    rt.detach_all([&add, &weigh, &sum]).unwrap();
    assert_settled(&rt);
}

unsafe extern "C" {
    fn pthread_exit(value: *mut c_void) -> !;
}

extern "C-unwind" fn exit_thread(_: *mut c_void) -> c_long {
    // SAFETY:
    // 1. No frame of this thread has anything to drop.
    unsafe { pthread_exit(ptr::without_provenance_mut(17)) }
}

extern "C" fn exit_within_hooked(_: *mut c_void) -> *mut c_void {
    call_through(exit_thread, ptr::null_mut());
    ptr::null_mut()
}

static BLOCKED_TID: AtomicI32 = AtomicI32::new(0);

extern "C" fn block_within_hooked(fd: *mut c_void) -> *mut c_void {
    BLOCKED_TID.store(gettid(), Ordering::SeqCst);
    tl_read_byte(fd.addr() as c_int);
    ptr::null_mut()
}

fn start(f: extern "C" fn(*mut c_void) -> *mut c_void, arg: *mut c_void) -> libc::pthread_t {
    let mut thread = 0;
    // SAFETY:
    // 1. `f` takes what it is given, and is joined by every caller.
    checked(-unsafe { libc::pthread_create(&raw mut thread, ptr::null(), f, arg) });
    thread
}

fn join(thread: libc::pthread_t) -> usize {
    let mut value = ptr::null_mut();
    // SAFETY:
    // 1. A thread of ours that nobody else joins.
    checked(-unsafe { libc::pthread_join(thread, &raw mut value) });
    value.addr()
}

fn end_threads_within(exited: &Hook, cancelled: &Hook) {
    for round in 1..=20 {
        assert_eq!(join(start(exit_within_hooked, ptr::null_mut())), 17);
        assert_eq!(exited.stats().progs[0].runs, round);

        let (read_end, _write_end) = pipe();
        BLOCKED_TID.store(0, Ordering::SeqCst);
        let thread = start(
            block_within_hooked,
            ptr::without_provenance_mut(read_end as usize),
        );
        wait_until("the thread blocks", || {
            let tid = BLOCKED_TID.load(Ordering::SeqCst);
            tid != 0 && is_asleep(tid)
        });
        // SAFETY:
        // 1. It has not been joined yet.
        checked(-unsafe { libc::pthread_cancel(thread) });
        assert_eq!(join(thread), CANCELED);
        assert_eq!(cancelled.stats().progs[0].runs, round);
    }
}

/// `PTHREAD_CANCELED`.
const CANCELED: usize = usize::MAX;

/// The process goes on, hooks go on, and no image is kept.
#[test]
fn threads_that_end_inside_a_hooked_function() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let exited = hook(&rt, call_back())
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    let cancelled = hook(&rt, READ_BYTE)
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    end_threads_within(&exited, &cancelled);
    assert_eq!(
        (
            exited.stats().progs[1].runs,
            cancelled.stats().progs[1].runs
        ),
        (0, 0)
    );
    check_working(&rt, &[&exited, &cancelled]);
}

/// The same with frames on the threads' shadow stacks.
#[test]
fn threads_that_end_inside_a_function_of_unknown_arguments() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let untyped = |addr: *const ()| {
        // SAFETY:
        // 1. The model claims nothing.
        let builder = unsafe { rt.hook_addr(addr, FuncModel::untyped()) }.unwrap();
        builder
            .on_entry(|_| {})
            .on_exit(|_, _| {})
            .attach()
            .unwrap()
    };
    let exited = untyped(call_back() as *const ());
    let cancelled = untyped(READ_BYTE as *const ());
    end_threads_within(&exited, &cancelled);
    check_working(&rt, &[&exited, &cancelled]);
}

/// Hooks of functions in which threads have ended still work, and so do others.
fn check_working(rt: &Runtime, hooks: &[&Hook]) {
    extern "C-unwind" fn five(_: *mut c_void) -> c_long {
        5
    }
    let before = hooks[0].stats().progs[1].runs;
    assert_eq!(call_through(five, ptr::null_mut()), 6);
    assert_eq!(hooks[0].stats().progs[1].runs, before + 1);
    rt.detach_all(hooks.iter().copied()).unwrap();
    assert_eq!(call_through(five, ptr::null_mut()), 6);
    // The calls have been counted out of their images on the threads' way to their ends.
    assert_settled(rt);
    let again = hook(rt, ADD2).on_exit(|_, _| {}).attach().unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(again.stats().runs, 1);
    again.detach().unwrap();
    assert_settled(rt);
}
