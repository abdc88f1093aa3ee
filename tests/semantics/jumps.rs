//! Calls that are left by a jump, or go on elsewhere: `longjmp`, `siglongjmp`, coroutines.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_void};
use std::mem::{MaybeUninit, offset_of};
use std::sync::Mutex;
use std::thread;

use rvbpf::{FuncModel, Hook, HookBuilder, Runtime, Untyped};
use testlib::functions::tl_catch_jump;

use crate::common::{JUMP, SUM, assert_settled, call_back, call_through, checked, hook, serial};

fn untyped(rt: &Runtime, addr: *const ()) -> HookBuilder<Untyped> {
    // SAFETY: 1. the model claims nothing.
    unsafe { rt.hook_addr(addr, FuncModel::untyped()) }.unwrap()
}

fn at_both_ends(rt: &Runtime, addr: *const ()) -> Hook {
    let builder = untyped(rt, addr).on_entry(|_| {}).on_exit(|_, _| {});
    builder.attach().unwrap()
}

/// Memory of this process alone that is there, in bytes.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<usize> = statm
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    let (all, shared) = (pages[1], pages[2]);
    (all - shared) * 4096
}

/// All jumps leave calls that were made with one and the same stack pointer, and no call of another
/// frame ever comes to clean up: those who are gone must be told from those who wait.
fn jump_often(jump: &Hook) {
    const JUMPS: c_int = 100_000;
    let (before, missed) = (resident_bytes(), jump.stats().missed);
    for i in 1..=JUMPS {
        assert_eq!(tl_catch_jump(i), i);
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 2 << 20, "a shadow stack has grown to {grown} bytes");
    assert_eq!(jump.stats().missed, missed);
    assert_eq!(jump.stats().panics, 0);
}

#[test]
fn jumps_do_not_use_up_a_shadow_stack() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let jump = at_both_ends(&rt, JUMP as *const ());
    jump_often(&jump);
    // Stacks of threads that have ended after a jump go to later ones.
    for _ in 0..3 {
        thread::scope(|s| s.spawn(|| jump_often(&jump)).join().unwrap());
    }
    for _ in 0..200 {
        thread::scope(|s| s.spawn(|| assert_eq!(tl_catch_jump(3), 3)).join().unwrap());
    }
    assert_eq!(jump.stats().progs[0].runs, 400_200);
    jump.detach().unwrap();
    // At worst the image is kept.
    let _in_use = rt.synchronize(std::time::Duration::from_millis(100));
    assert!(rt.stats().tramps.retired <= 1);
    assert_eq!(tl_catch_jump(5), 5);
}

thread_local! {
    static SIGNALLED: Cell<c_int> = const { Cell::new(0) };
}

extern "C" fn catch_in_handler(signal: c_int) {
    SIGNALLED.set(SIGNALLED.get() + 1);
    assert_eq!(tl_catch_jump(signal), signal);
}

/// In a handler, on a stack of its own: its frames are higher or lower than the interrupted ones.
#[test]
fn handlers_jump_on_their_own_stack() {
    const SIGNALS: c_int = 20_000;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let jump = at_both_ends(&rt, JUMP as *const ());
    let call = at_both_ends(&rt, call_back() as *const ());
    let handler: extern "C" fn(c_int) = catch_in_handler;
    let mut stack = vec![0_u8; 64 << 10];
    let there = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: stack.len(),
    };
    let mut before = MaybeUninit::<libc::stack_t>::uninit();
    // SAFETY: 1. the memory outlives its use: the old stack is put back below.
    checked(unsafe { libc::sigaltstack(&raw const there, before.as_mut_ptr()) });
    // SAFETY: 1. zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: 1. the handler calls hooked functions and a thread-local without destructor.
    checked(unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()) });
    extern "C-unwind" fn raise(_: *mut c_void) -> c_long {
        // SAFETY: 1. its handler is there.
        checked(unsafe { libc::raise(libc::SIGUSR2) });
        7
    }
    for _ in 0..SIGNALS {
        assert_eq!(call_through(raise, std::ptr::null_mut()), 8);
    }
    assert_eq!(SIGNALLED.get(), SIGNALS);
    let runs = |hook: &Hook| {
        hook.stats()
            .progs
            .iter()
            .map(|p| p.runs)
            .collect::<Vec<_>>()
    };
    assert_eq!(runs(&jump), [SIGNALS as u64, 0]);
    assert_eq!(runs(&call), [SIGNALS as u64; 2]);
    assert_eq!(jump.stats().missed + call.stats().missed, 0);
    // SAFETY: 1. what the kernel said was there.
    checked(unsafe { libc::sigaltstack(before.as_ptr(), std::ptr::null_mut()) });
    rt.detach_all([&jump, &call]).unwrap();
    let _in_use = rt.synchronize(std::time::Duration::from_millis(100));
    assert!(rt.stats().tramps.retired <= 1, "the image of `tl_jump`");
}

// The C library has them, the crate does not declare them.
unsafe extern "C" {
    fn getcontext(into: *mut libc::ucontext_t) -> c_int;
    fn makecontext(of: *mut libc::ucontext_t, entry: extern "C" fn(), args: c_int, ...);
    fn swapcontext(save: *mut libc::ucontext_t, to: *const libc::ucontext_t) -> c_int;
}

/// A coroutine: a context of its own, and that of whoever resumed it.
struct Coroutine {
    inside: libc::ucontext_t,
    outside: libc::ucontext_t,
    _stack: Vec<u8>,
    id: usize,
    result: c_long,
}

// Contexts are addressed by number, so that they may move between threads.
static COROUTINES: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn coroutine(id: usize) -> *mut Coroutine {
    COROUTINES.lock().unwrap()[id] as *mut Coroutine
}

const INSIDE: usize = offset_of!(Coroutine, inside);
const OUTSIDE: usize = offset_of!(Coroutine, outside);

fn context(of: *mut Coroutine, off: usize) -> *mut libc::ucontext_t {
    of.wrapping_byte_add(off).cast()
}

fn suspend(id: usize) {
    let it = coroutine(id);
    // SAFETY: 1. the coroutine runs, and its resumer waits in `outside`.
    unsafe { swapcontext(context(it, INSIDE), context(it, OUTSIDE)) };
}

fn resume(id: usize) {
    let it = coroutine(id);
    // SAFETY: 1. the coroutine is suspended, or has not begun.
    unsafe { swapcontext(context(it, OUTSIDE), context(it, INSIDE)) };
}

/// Twice inside of a hooked call, and between them once outside.
extern "C" fn body(id: usize) {
    extern "C-unwind" fn suspends(id: *mut c_void) -> c_long {
        suspend(id.addr());
        id.addr() as c_long
    }
    let first = call_through(suspends, std::ptr::without_provenance_mut(id));
    suspend(id);
    let second = call_through(suspends, std::ptr::without_provenance_mut(id));
    // SAFETY: 1. only this coroutine writes it.
    unsafe { (*coroutine(id)).result = 1000 * first + second };
    loop {
        suspend(id);
    }
}

fn make(id: usize) {
    let mut stack = vec![0_u8; 64 << 10];
    let mut fresh = MaybeUninit::<libc::ucontext_t>::zeroed();
    // SAFETY: 1. there is room for a context.
    checked(unsafe { getcontext(fresh.as_mut_ptr()) });
    // SAFETY: 1. `getcontext` has filled it in.
    let mut inside = unsafe { fresh.assume_init() };
    inside.uc_stack.ss_sp = stack.as_mut_ptr().cast();
    inside.uc_stack.ss_size = stack.len();
    let it = Box::into_raw(Box::new(Coroutine {
        inside,
        outside: inside,
        _stack: stack,
        id,
        result: 0,
    }));
    COROUTINES.lock().unwrap().push(it as usize);
    // SAFETY: 1. `body` takes one word.
    let entry = unsafe { std::mem::transmute::<extern "C" fn(usize), extern "C" fn()>(body) };
    // SAFETY: 1. the context stays where it is until the coroutine is dropped.
    unsafe { makecontext(context(it, INSIDE), entry, 1, id) };
}

/// Their calls return in any order, and on another thread than they were made on.
#[test]
fn coroutines_return_when_and_where_they_like() {
    const MANY: usize = 50;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let call = at_both_ends(&rt, call_back() as *const ());
    let sum = hook(&rt, SUM).on_exit(|_, _| {}).attach().unwrap();
    (0..MANY).for_each(make);
    (0..MANY).for_each(resume);
    // Out of the first call: odd ones here, even ones there.
    (0..MANY).filter(|i| i % 2 == 1).for_each(resume);
    thread::scope(|s| {
        let there = || (0..MANY).filter(|i| i % 2 == 0).for_each(resume);
        s.spawn(there).join().unwrap();
        // And into the second, by a thread that ends before they return.
        s.spawn(|| (0..MANY).rev().for_each(resume)).join().unwrap();
    });
    // The thread's place in the table is swept.
    let _in_use = rt.synchronize(std::time::Duration::from_millis(50));
    (0..MANY).for_each(resume);
    for id in 0..MANY {
        let it = coroutine(id);
        // SAFETY: 1. made by `Box::into_raw`; it will not be resumed any more.
        let it = unsafe { Box::from_raw(it) };
        assert_eq!((it.id, it.result), (id, 1001 * (id as c_long + 1)));
    }
    COROUTINES.lock().unwrap().clear();
    let runs: Vec<_> = call.stats().progs.iter().map(|p| p.runs).collect();
    assert_eq!(runs, [2 * MANY as u64; 2]);
    rt.detach_all([&call, &sum]).unwrap();
    assert_settled(&rt);
}
