//! Calls that are left by unwinding: C++ exceptions, panics, `pthread_exit`; and stacks that are
//! walked. Whatever image they pass through counts itself out and is freed.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "calls C++, walks stacks")]

mod common;

use std::ffi::{c_int, c_long, c_void};
use std::panic::{self, resume_unwind};
use std::ptr;
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
        depth => call_through(panics, ptr::without_provenance_mut(depth - 1)),
    }
}

fn caught_panic(depth: usize) -> u8 {
    let call = || call_through(panics, ptr::without_provenance_mut(depth));
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
    let mut frames = [ptr::null_mut::<c_void>(); MAX_FRAMES];
    // SAFETY: 1. there is room for so many.
    let nr = unsafe { libc::backtrace(frames.as_mut_ptr(), MAX_FRAMES as c_int) };
    for (place, frame) in FRAMES.iter().zip(frames) {
        place.store(frame as usize, Ordering::Relaxed);
    }
    NR_FRAMES.store(nr as usize, Ordering::Relaxed);
}

/// Where the function begins that holds what comes before the return address `ra`, by what a walk
/// knows.
fn start_of(ra: usize) -> usize {
    // SAFETY: 1. any address will do; it is looked up as a walk looks it up.
    unsafe { _Unwind_FindEnclosingFunction(ptr::without_provenance_mut(ra)) }.addr()
}

/// Where frames of a function are in the last trace. How long it is is the compiler's business.
fn frames_of(function: *const ()) -> Vec<usize> {
    /// What GCC describes begins behind the pad.
    const PAD_BYTES: usize = 10;
    let start = start_of(function.addr() + PAD_BYTES + 1);
    assert_ne!(start, 0, "frames of {function:p}");
    let nr = NR_FRAMES.load(Ordering::Relaxed);
    let at = |i: &usize| FRAMES[*i].load(Ordering::Relaxed);
    (0..nr).filter(|i| start_of(at(i)) == start).collect()
}

#[inline(never)]
extern "C-unwind" fn traces(depth: *mut c_void) -> c_long {
    match depth.addr() {
        0 => trace(),
        depth => {
            std::hint::black_box(call_through(traces, ptr::without_provenance_mut(depth - 1)));
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
            traces(ptr::without_provenance_mut(2));
        }
        let frames = frames_of(traces as *const ());
        let step = if way == Way::Entry { 2 } else { 3 };
        let [one, two, three] = frames[..] else {
            panic!("{way:?}: {frames:?}");
        };
        assert_eq!((two - one, three - two), (step, step), "{way:?}");
        let functions = frames_of(call as *const ());
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
    // SAFETY: 1. as above.
    let builder = unsafe { rt.hook_addr(tl_throw_at_end as *const (), FuncModel::untyped()) };
    let builder = builder.unwrap();
    let at_exit = builder.on_exit(|_, _| trace()).attach().unwrap();
    for call in [tl_catch_throw as Catches, tl_catch_throw_at_end] {
        for _ in 0..2 {
            NR_FRAMES.store(0, Ordering::Relaxed);
            assert_eq!(call(5), 5);
        }
        let caller = frames_of(call as *const ());
        assert_eq!(caller.len(), 1, "the caller of the hooked function");
        assert!(caller[0] + 2 < NR_FRAMES.load(Ordering::Relaxed));
    }
    rt.detach_all([&at_entry, &at_exit]).unwrap();
    assert_settled(&rt);
}

/// Start and end of images of the function: the one under test, and those before it, in which
/// nobody is any more.
static IMAGES: [[AtomicUsize; 2]; 8] = [const { [const { AtomicUsize::new(0) }; 2] }; 8];
static WALKED: AtomicUsize = AtomicUsize::new(0);
static LOST_AT: AtomicUsize = AtomicUsize::new(0);
/// Bit by halfword: where in the image signals have come.
static PLACES: [AtomicUsize; 16] = [const { AtomicUsize::new(0) }; 16];

extern "C" fn on_timer(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: 1. the kernel passes the context of what it has interrupted.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let pc = context.uc_mcontext.__gregs[0] as usize;
    let is_in = |[start, end]: &&[AtomicUsize; 2]| {
        (start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&pc)
    };
    let Some([start, _]) = IMAGES.iter().find(is_in) else {
        return;
    };
    let start = start.load(Ordering::Relaxed);
    trace();
    let callers = frames_of(calls_again as *const ());
    if !callers.is_empty() {
        WALKED.fetch_add(1, Ordering::Relaxed);
        let place = (pc - start) / 2 % 1024;
        PLACES[place / 64].fetch_or(1 << (place % 64), Ordering::Relaxed);
    } else {
        LOST_AT.store(pc - start, Ordering::Relaxed);
    }
}

/// Not to be called with a constant: the compiler makes another function for that.
#[inline(never)]
fn calls_again(call: Catches) {
    for i in 0..100 {
        assert_eq!(std::hint::black_box(call(i)), i);
    }
}

/// Where images of `addr` are and were, as the map says.
fn find_images(addr: *const ()) {
    let map = std::fs::read_to_string(format!("/tmp/perf-{}.map", std::process::id())).unwrap();
    let name = format!(" bpf_trampoline_{:x}", addr as usize);
    let lines = map.lines().filter(|line| line.ends_with(&name));
    for (place, line) in IMAGES.iter().zip(lines) {
        let mut words = line.split(' ').map(|word| usize::from_str_radix(word, 16));
        let mut word = || words.next().unwrap().unwrap();
        let (start, len) = (word(), word());
        place[0].store(start, Ordering::Relaxed);
        place[1].store(start + len, Ordering::Relaxed);
    }
}

/// From every instruction of an image at which a signal comes.
#[test]
fn slow_stacks_are_walked_from_wherever_a_signal_finds_them() {
    let _one = serial();
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_timer;
    // SAFETY: 1. zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
    // SAFETY: 1. the handler walks the stack only where no lock can be held, in an image.
    common::checked(unsafe { libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) });
    // What the first walk allocates is there then.
    trace();
    let period = |micros| {
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: micros,
        };
        let timer = libc::itimerval {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: 1. a valid time; the handler is there.
        common::checked(unsafe { setitimer(0, &raw const timer, ptr::null_mut()) });
    };
    for way in WAYS {
        let rt = Runtime::builder()
            .tools(rvbpf::Tools::PERF_MAP)
            .build()
            .unwrap();
        let hooked = way.hook(&rt, tl_throw as *const (), int_to_int());
        find_images(tl_throw as *const ());
        WALKED.store(0, Ordering::Relaxed);
        PLACES
            .iter()
            .for_each(|word| word.store(0, Ordering::Relaxed));
        period(150);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(8);
        while WALKED.load(Ordering::Relaxed) < 300 && std::time::Instant::now() < end {
            calls_again(std::hint::black_box(tl_catch_throw));
        }
        period(0);
        let places: u32 = PLACES
            .iter()
            .map(|word| word.load(Ordering::Relaxed).count_ones())
            .sum();
        let walked = WALKED.load(Ordering::Relaxed);
        println!("{way:?}: {walked} walks from {places} places");
        assert_eq!(
            LOST_AT.load(Ordering::Relaxed),
            0,
            "{way:?}: lost at this offset"
        );
        // An emulator takes interrupts at few places alone.
        assert!(walked > 20 && places > 2, "{way:?}: {walked} from {places}");
        hooked.detach().unwrap();
        assert_settled(&rt);
    }
}

// The crate declares the first for other targets; the second is libgcc's.
unsafe extern "C" {
    fn setitimer(which: c_int, new: *const libc::itimerval, old: *mut libc::itimerval) -> c_int;
    fn _Unwind_FindEnclosingFunction(pc: *mut c_void) -> *mut c_void;
}
