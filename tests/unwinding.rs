//! Calls that are left by unwinding: C++ exceptions, panics, `pthread_exit`; and stacks that are
//! walked. Whatever image they pass through counts itself out and is freed.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "calls C++, walks stacks")]

mod common;

use std::ffi::{c_int, c_long, c_void};
use std::panic::{self, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::{CallBack, assert_settled, call_back, call_through, serial};
use rvbpf::model::Type;
use rvbpf::{FuncModel, Hook, HookBuilder, Runtime, Untyped};
use testlib::throws::{
    tl_catch_past_cleanup, tl_catch_throw, tl_catch_throw_at_end, tl_catch_variadic, tl_cleanups,
    tl_throw, tl_throw_at_end, tl_throw_past_cleanup, tl_throw_variadic,
};

type Unwinds = extern "C-unwind" fn(c_int) -> c_int;
type Catches = extern "C" fn(c_int) -> c_int;

/// How a function is hooked: what lies between it and its caller.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Way {
    /// Nothing: the image has jumped to the function.
    Entry,
    /// A frame on the stack.
    Exit,
    /// The same, with registers of the caller in it.
    Both,
    /// A frame on the thread's shadow stack.
    UntypedExit,
    UntypedBoth,
}

const WAYS: [Way; 5] = [
    Way::Entry,
    Way::Exit,
    Way::Both,
    Way::UntypedExit,
    Way::UntypedBoth,
];

impl Way {
    fn hook(self, rt: &Runtime, addr: *const (), typed: FuncModel) -> Hook {
        let model = match self {
            Way::Entry | Way::Exit | Way::Both => typed,
            Way::UntypedExit | Way::UntypedBoth => FuncModel::untyped(),
        };
        // SAFETY: 1. callers pass the model of the function.
        let builder: HookBuilder<Untyped> = unsafe { rt.hook_addr(addr, model) }.unwrap();
        let builder = match self {
            Way::Exit | Way::UntypedExit => builder,
            Way::Entry | Way::Both | Way::UntypedBoth => builder.on_entry(|_| {}),
        };
        let builder = match self {
            Way::Entry => builder,
            _ => builder.on_exit(|_, _| {}),
        };
        builder.attach().unwrap()
    }
}

fn int_to_int() -> FuncModel {
    FuncModel::new(&[Type::I32], Type::I32).unwrap()
}

/// Throws and returns in turns, through `hooks`.
fn catch_in_turns(catch: Catches, added: c_int, rounds: c_int) {
    for i in 1..=rounds {
        assert_eq!(catch(-i), 1000 + i);
        assert_eq!(catch(i), i + added);
    }
}

#[test]
fn exceptions_pass_through_images() {
    const ROUNDS: c_int = 200;
    let _one = serial();
    for way in WAYS {
        let rt = Runtime::new().unwrap();
        let hook = |f: Unwinds| way.hook(&rt, f as *const (), int_to_int());
        let hooks = [
            hook(tl_throw),
            hook(tl_throw_at_end),
            hook(tl_throw_past_cleanup),
        ];
        let catchers: [Catches; 3] = [tl_catch_throw, tl_catch_throw_at_end, tl_catch_past_cleanup];
        let catchers = catchers.map(|f| way.hook(&rt, f as *const (), int_to_int()));
        let before = tl_cleanups();
        catch_in_turns(tl_catch_throw, 0, ROUNDS);
        catch_in_turns(tl_catch_throw_at_end, 0, ROUNDS);
        catch_in_turns(tl_catch_past_cleanup, 1, ROUNDS);
        assert_eq!(tl_cleanups() - before, 2 * ROUNDS, "{way:?}");
        // Each catcher has made as many calls that returned as calls that threw.
        let runs = |hook: &Hook| {
            hook.stats()
                .progs
                .iter()
                .map(|p| p.runs)
                .collect::<Vec<_>>()
        };
        let (entered, returned) = (6 * ROUNDS as u64, 3 * ROUNDS as u64);
        let want = match way {
            Way::Entry => vec![entered],
            Way::Exit | Way::UntypedExit => vec![returned],
            Way::Both | Way::UntypedBoth => vec![entered, returned],
        };
        assert_eq!(runs(&hooks[0]), want, "{way:?}");
        assert!(hooks.iter().all(|h| h.stats().missed == 0));
        assert!(runs(&catchers[0]).iter().all(|n| *n == 2 * ROUNDS as u64));
        rt.detach_all(hooks.iter().chain(&catchers)).unwrap();
        assert_settled(&rt);
    }
}

/// More than a shadow stack has room for, and in a thread that ends.
#[test]
fn exceptions_leave_nothing_on_shadow_stacks() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let variadic = FuncModel::variadic(&[Type::I32], Type::I32).unwrap();
    let thrower = Way::Both.hook(&rt, tl_throw_variadic as *const (), variadic);
    let inner = Way::UntypedExit.hook(&rt, tl_throw as *const (), int_to_int());
    catch_in_turns(tl_catch_variadic, 0, 20_000);
    thread::spawn(|| catch_in_turns(tl_catch_variadic, 0, 1000))
        .join()
        .unwrap();
    assert_eq!((thrower.stats().missed, inner.stats().missed), (0, 0));
    rt.detach_all([&thrower, &inner]).unwrap();
    assert_settled(&rt);
}

extern "C-unwind" fn panics(depth: *mut c_void) -> c_long {
    match depth.addr() {
        0 => resume_unwind(Box::new(7_u8)),
        depth => call_through(panics, std::ptr::without_provenance_mut(depth - 1)),
    }
}

fn caught_panic(depth: usize) -> u8 {
    let call = || call_through(panics, std::ptr::without_provenance_mut(depth));
    let payload = panic::catch_unwind(call).unwrap_err();
    *payload.downcast::<u8>().unwrap()
}

fn call_back_model() -> FuncModel {
    FuncModel::new(&[Type::Ptr, Type::Ptr], Type::I64).unwrap()
}

#[test]
fn panics_pass_through_images() {
    let _one = serial();
    for way in WAYS {
        let rt = Runtime::new().unwrap();
        let hooked = way.hook(&rt, call_back() as *const (), call_back_model());
        for depth in [0, 1, 5] {
            for _ in 0..100 {
                assert_eq!(caught_panic(depth), 7);
            }
        }
        assert_eq!((hooked.stats().missed, hooked.stats().panics), (0, 0));
        hooked.detach().unwrap();
        assert_settled(&rt);
    }
}

const MAX_FRAMES: usize = 64;
static FRAMES: [AtomicUsize; MAX_FRAMES] = [const { AtomicUsize::new(0) }; MAX_FRAMES];
static NR_FRAMES: AtomicUsize = AtomicUsize::new(0);

fn trace() {
    let mut frames = [std::ptr::null_mut::<c_void>(); MAX_FRAMES];
    // SAFETY: 1. there is room for so many.
    let nr = unsafe { libc::backtrace(frames.as_mut_ptr(), MAX_FRAMES as c_int) };
    for (place, frame) in FRAMES.iter().zip(frames) {
        place.store(frame as usize, Ordering::Relaxed);
    }
    NR_FRAMES.store(nr as usize, Ordering::Relaxed);
}

/// Where frames of a function of less than `len` bytes are in the last trace.
fn frames_of(start: usize, len: usize) -> Vec<usize> {
    let nr = NR_FRAMES.load(Ordering::Relaxed);
    let at = |i: &usize| FRAMES[*i].load(Ordering::Relaxed).wrapping_sub(1);
    (0..nr)
        .filter(|i| (start..start + len).contains(&at(i)))
        .collect()
}

#[inline(never)]
extern "C-unwind" fn traces(depth: *mut c_void) -> c_long {
    match depth.addr() {
        0 => trace(),
        depth => {
            std::hint::black_box(call_through(
                traces,
                std::ptr::without_provenance_mut(depth - 1),
            ));
        }
    }
    0
}

/// Three calls inside each other: the frames of the callback, the function and, for ways that have
/// one, the image repeat down to the test.
#[test]
fn stacks_are_walked_through_images() {
    let _one = serial();
    for way in WAYS {
        let rt = Runtime::new().unwrap();
        let call: CallBack = call_back();
        let hooked = way.hook(&rt, call as *const (), call_back_model());
        // A thread's first call may have frames of its own.
        for _ in 0..2 {
            traces(std::ptr::without_provenance_mut(2));
        }
        let frames = frames_of(traces as *const () as usize, 256);
        let step = if way == Way::Entry { 2 } else { 3 };
        let [one, two, three] = frames[..] else {
            panic!("{way:?}: {frames:?}");
        };
        assert_eq!((two - one, three - two), (step, step), "{way:?}");
        let functions = frames_of(call as *const () as usize, 64);
        assert_eq!(functions, [one + 1, two + 1], "{way:?}");
        hooked.detach().unwrap();
        assert_settled(&rt);
    }
}

/// A program of an image on a shadow stack, at both ends of the call.
#[test]
fn stacks_are_walked_from_programs() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. the model claims nothing.
    let builder = unsafe { rt.hook_addr(tl_throw as *const (), FuncModel::untyped()) }.unwrap();
    let at_entry = builder.on_entry(|_| trace()).attach().unwrap();
    // SAFETY: as above.
    let builder =
        unsafe { rt.hook_addr(tl_throw_at_end as *const (), FuncModel::untyped()) }.unwrap();
    let at_exit = builder.on_exit(|_, _| trace()).attach().unwrap();
    for call in [tl_catch_throw as Catches, tl_catch_throw_at_end] {
        for _ in 0..2 {
            NR_FRAMES.store(0, Ordering::Relaxed);
            assert_eq!(call(5), 5);
        }
        let caller = frames_of(call as *const () as usize, 64);
        assert_eq!(caller.len(), 1, "the caller of the hooked function");
        assert!(caller[0] + 2 < NR_FRAMES.load(Ordering::Relaxed));
    }
    rt.detach_all([&at_entry, &at_exit]).unwrap();
    assert_settled(&rt);
}
