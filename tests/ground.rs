//! Hooks share the process with its host: the C library's functions that the runtime would call,
//! forks, destructors, panics, cancellation, signal handlers.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "C functions of the host, and hooks of them")]

mod common;
#[path = "ground/contract.rs"]
mod contract;
#[path = "ground/left.rs"]
mod left;

use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::panic;
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{ADD2, PATIENCE, Stopper, assert_settled, hook, in_child, serial, sites};
use rvbpf::{Dispatcher, EntryKind, FuncModel, Hook, Runtime, TrampError};
use testlib::functions::tl_add2;

/// Hooks a function of libc at both ends; the error says why it is refused.
fn try_hook_libc(
    rt: &Runtime,
    name: &str,
    f: impl Fn() + Send + Sync + Clone + 'static,
) -> Result<Hook, rvbpf::Error> {
    // SAFETY: 1. nothing is claimed of the function.
    let builder = unsafe { rt.hook_symbol(Some("libc.so.6"), name, FuncModel::untyped()) }?;
    let at_exit = f.clone();
    let builder = builder.allow_trap().on_entry(move |_| f());
    builder.on_exit(move |_, _| at_exit()).attach()
}

fn hook_libc(rt: &Runtime, name: &str, f: impl Fn() + Send + Sync + Clone + 'static) -> Hook {
    try_hook_libc(rt, name, f).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Calls what [`NAMES`] has, each once.
fn call_all() {
    let (prot, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: 1. a fresh mapping disturbs nothing.
    let page = unsafe { libc::mmap(null_mut(), 4096, prot, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: 1. the page is ours.
    assert_eq!(unsafe { libc::madvise(page, 4096, libc::MADV_NORMAL) }, 0);
    // SAFETY: 1. the page is ours.
    assert_eq!(unsafe { libc::mprotect(page, 4096, libc::PROT_NONE) }, 0);
    // SAFETY: 1. the page is ours, and is not used any more.
    assert_eq!(unsafe { libc::munmap(page, 4096) }, 0);
    // SAFETY: 1. takes nothing.
    let pid = unsafe { libc::getpid() };
    // SAFETY: 1. takes nothing.
    assert_eq!(unsafe { libc::syscall(libc::SYS_getpid) } as i32, pid);
    // SAFETY: 1. takes nothing.
    assert!(unsafe { libc::gettid() } >= pid);
    // SAFETY: 1. asks for nothing.
    assert_eq!(unsafe { libc::sigaltstack(null(), null_mut()) }, 0);
    // SAFETY: 1. asks for nothing.
    let asked = unsafe { libc::sigaction(libc::SIGUSR2, null(), null_mut()) };
    assert_eq!(asked, 0);
    let nap = libc::timespec {
        tv_sec: 0,
        tv_nsec: 1,
    };
    // SAFETY: 1. `nap` is live.
    assert_eq!(unsafe { libc::nanosleep(&raw const nap, null_mut()) }, 0);
    // SAFETY: 1. takes nothing, and gives this thread's own place.
    let errno = unsafe { libc::__errno_location() };
    assert!(!errno.is_null());
}

/// What the runtime's own code would call, if it called the C library.
const NAMES: [&str; 11] = [
    "mmap",
    "madvise",
    "mprotect",
    "munmap",
    "getpid",
    "syscall",
    "gettid",
    "sigaltstack",
    "sigaction",
    "nanosleep",
    "__errno_location",
];

#[test]
fn each_function_of_libc_can_be_the_first_that_is_hooked() {
    let _one = serial();
    for name in NAMES {
        // A process in which nothing has been hooked, and no thread is registered.
        let child = in_child(|| {
            let rt = Runtime::new().unwrap();
            // A wrapper whose second instruction is the system call is refused, by name.
            let Ok(hook) = try_hook_libc(&rt, name, || {}) else {
                return eprintln!("{name}: refused");
            };
            call_all();
            let mut least = 2;
            // glibc calls some of these at a thread's end, with all signals blocked: who makes them
            // a trap that stays must not start threads.
            if hook.kind() != Some(EntryKind::Trap) {
                thread::spawn(call_all).join().unwrap();
                least = 4;
            }
            let stats = hook.stats();
            assert!(stats.runs >= least, "{name}: {stats:?}");
            drop(hook);
            call_all();
            assert_settled(&rt);
        });
        child.join();
    }
}

#[test]
fn no_closure_runs_in_the_runtimes_own_signal_handler() {
    static SPINNER: AtomicI32 = AtomicI32::new(0);
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let on_spinner = || {
        if gettid_bare() == SPINNER.load(Ordering::Relaxed) {
            RUNS.fetch_add(1, Ordering::Relaxed);
        }
    };
    let hooks: Vec<Hook> = ["syscall", "getpid", "gettid", "__errno_location"]
        .into_iter()
        .filter_map(|name| try_hook_libc(&rt, name, on_spinner).ok())
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        scope.spawn(|| {
            SPINNER.store(gettid_bare(), Ordering::Relaxed);
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        while SPINNER.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        // It must be asked each time: it never sleeps.
        for _ in 0..3 {
            drop(hook(&rt, ADD2).on_entry(|_| {}).attach().unwrap());
            rt.synchronize(PATIENCE).unwrap();
        }
        SPINNER.store(0, Ordering::Relaxed);
    });
    assert_eq!(RUNS.load(Ordering::Relaxed), 0);
    assert!(!hooks.is_empty());
    drop(hooks);
    assert_settled(&rt);
}

/// This thread's id, by no function of libc.
fn gettid_bare() -> i32 {
    // SAFETY: 1. takes nothing.
    unsafe { text::syscall::syscall(libc::SYS_gettid, []) }.unwrap() as i32
}

type Step = extern "C" fn(u64) -> u64;

extern "C" fn plus_one(x: u64) -> u64 {
    x + 1
}
extern "C" fn plus_two(x: u64) -> u64 {
    x + 2
}

rvbpf::static_call! {
    /// Adds something.
    fn Plus = "rvbpf_ground_plus" (x: u64) -> u64 { plus_one }
}

#[test]
fn a_child_can_change_what_threads_of_its_parent_were_changing() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. it is not called.
    let steps = unsafe { Dispatcher::<Step>::new(&rt) }.unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                Plus::update(plus_two).unwrap();
                Plus::update(plus_one).unwrap();
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                steps.set_targets(&[plus_one as Step]).unwrap();
                steps.set_targets(&[plus_two as Step, plus_one]).unwrap();
            }
        });
        thread::sleep(Duration::from_millis(50));
        for _ in 0..6 {
            let child = in_child(|| {
                // SAFETY: 1. a process that hangs dies of it.
                unsafe { libc::alarm(20) };
                Plus::update(plus_two).unwrap();
                assert_eq!(Plus::call(1), 3);
                steps.set_targets(&[plus_two as Step]).unwrap();
            });
            child.join();
        }
    });
    drop(steps);
    assert_settled(&rt);
}

#[test]
fn what_closures_own_is_dropped_without_locks() {
    static MUTEX: Mutex<()> = Mutex::new(());
    static HELD: AtomicBool = AtomicBool::new(false);
    struct LocksMutex;
    impl Drop for LocksMutex {
        fn drop(&mut self) {
            drop(MUTEX.lock());
        }
    }
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let owned = LocksMutex;
    let closure = move |_: &rvbpf::Call<'_, common::Add2>| {
        black_box(&owned);
    };
    drop(hook(&rt, ADD2).on_entry(closure).attach().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            let _held = MUTEX.lock();
            HELD.store(true, Ordering::Release);
            thread::sleep(Duration::from_millis(100));
            // While the other thread waits for the mutex.
            drop(hook(&rt, sites(2)[1]).on_entry(|_| {}).attach().unwrap());
        });
        while !HELD.load(Ordering::Acquire) {
            thread::yield_now();
        }
        rt.synchronize(PATIENCE).unwrap();
    });
    assert_settled(&rt);
}

#[test]
fn a_hook_that_a_closure_owns_is_detached_with_it() {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let site = sites(1)[0];
    let inner = hook(&rt, site).on_entry(|_| {
        RUNS.fetch_add(1, Ordering::Relaxed);
    });
    let inner = inner.attach().unwrap();
    site(1);
    let closure = move |_: &rvbpf::Call<'_, common::Add2>| {
        black_box(&inner);
    };
    drop(hook(&rt, ADD2).on_entry(closure).attach().unwrap());
    rt.synchronize(PATIENCE).unwrap();
    let before = RUNS.load(Ordering::Relaxed);
    site(1);
    assert_eq!((before, RUNS.load(Ordering::Relaxed)), (1, 1));
    // Nothing of either is left.
    assert_eq!(rt.stats().tramps.retired, 0);
    assert_settled(&rt);
}

#[test]
fn closures_that_panic_while_the_thread_panics_end_nothing() {
    struct CallsOnDrop;
    impl Drop for CallsOnDrop {
        fn drop(&mut self) {
            assert_eq!(tl_add2(2, 2), 4);
        }
    }
    let _one = serial();
    panic::set_hook(Box::new(|_| assert_eq!(tl_add2(1, 1), 2)));
    let rt = Runtime::new().unwrap();
    let hook = hook(&rt, ADD2).on_entry(|_| panic!("of the closure"));
    let hook = hook.attach().unwrap();
    tl_add2(1, 1);
    let (panics, missed) = (hook.stats().panics, hook.stats().missed);
    assert_eq!(panics, 1);
    for _ in 0..3 {
        let caught = panic::catch_unwind(|| {
            let _calls = CallsOnDrop;
            panic!("of the program");
        });
        assert!(caught.is_err());
    }
    let _ = panic::take_hook();
    let stats = hook.stats();
    // Unwinding runs it, and so does the hook's own call of it, in vain.
    assert_eq!(stats.panics, panics + 3, "{stats:?}");
    assert!(stats.missed >= missed + 3, "{stats:?}");
    drop(hook);
    assert_settled(&rt);
}

unsafe extern "C-unwind" {
    fn pthread_create(
        id: *mut libc::pthread_t,
        attr: *const c_void,
        run: extern "C-unwind" fn(*mut c_void) -> *mut c_void,
        arg: *mut c_void,
    ) -> c_int;
    fn pthread_cancel(thread: libc::pthread_t) -> c_int;
    // A thread that is cancelled is unwound from here.
    fn pthread_testcancel();
}

#[test]
fn a_thread_that_is_cancelled_in_a_closure_ends_behind_it() {
    static IN_CLOSURE: AtomicBool = AtomicBool::new(false);
    static FINISHED: AtomicBool = AtomicBool::new(false);
    static RETURNED: AtomicBool = AtomicBool::new(false);
    extern "C-unwind" fn thread(_: *mut c_void) -> *mut c_void {
        tl_add2(5, 5);
        RETURNED.store(true, Ordering::Release);
        loop {
            // SAFETY: 1. no frame of this thread has anything to drop.
            unsafe { pthread_testcancel() };
            thread::yield_now();
        }
    }
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let hook = hook(&rt, ADD2).on_entry(|call| {
        if call.args() == (5, 5) {
            IN_CLOSURE.store(true, Ordering::Release);
            thread::sleep(Duration::from_millis(100));
            FINISHED.store(true, Ordering::Release);
        }
    });
    let hook = hook.attach().unwrap();
    let mut id = 0;
    // SAFETY: 1. the function takes nothing.
    let made = unsafe { pthread_create(&raw mut id, null(), thread, null_mut()) };
    assert_eq!(made, 0);
    while !IN_CLOSURE.load(Ordering::Acquire) {
        thread::yield_now();
    }
    // SAFETY: 1. the thread has not been joined.
    assert_eq!(unsafe { pthread_cancel(id) }, 0);
    let mut value = null_mut();
    // SAFETY: 1. the thread is joined once; `value` is live.
    assert_eq!(unsafe { libc::pthread_join(id, &raw mut value) }, 0);
    assert_eq!(value.addr(), usize::MAX, "PTHREAD_CANCELED");
    assert!(
        FINISHED.load(Ordering::Acquire),
        "the closure ran to its end"
    );
    assert!(RETURNED.load(Ordering::Acquire), "and the call returned");
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(hook.stats().panics, 0);
    drop(hook);
    assert_settled(&rt);
}

static TRAPS: AtomicU64 = AtomicU64::new(0);
/// The thread that is at the host's own breakpoint.
static AT_BREAKPOINT: AtomicI32 = AtomicI32::new(0);
/// The handler that was there before [`on_trap`].
static FOUND: AtomicUsize = AtomicUsize::new(0);

/// As a host's handler should be: what it does not know goes to the one before.
extern "C" fn on_trap(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: 1. the kernel passes it.
    if unsafe { (*info).si_code } > 0 {
        if AT_BREAKPOINT.load(Ordering::Relaxed) != gettid_bare() {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            let found = FOUND.load(Ordering::Relaxed);
            // SAFETY: 1. the runtime's own, which takes all three.
            let found = unsafe { std::mem::transmute::<usize, Handler>(found) };
            return found(signo, info, context);
        }
        // SAFETY: 1. the kernel passes the context that it will restore.
        let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
        context.uc_mcontext.__gregs[0] += 4;
    }
    TRAPS.fetch_add(1, Ordering::Relaxed);
}

/// The host's own breakpoint.
fn breakpoint() {
    AT_BREAKPOINT.store(gettid_bare(), Ordering::Relaxed);
    // SAFETY: 1. the handler steps over it.
    unsafe { std::arch::asm!(".option push", ".option norvc", "ebreak", ".option pop") };
    AT_BREAKPOINT.store(0, Ordering::Relaxed);
}

#[test]
fn handlers_of_sigtrap_that_come_later_get_what_is_theirs() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let stop = AtomicBool::new(false);
    let first = hook_libc(&rt, "qsort", || {});
    thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    sort();
                }
            });
        }
        for round in 0..5 {
            let found = text::signal::action_of(libc::SIGTRAP).unwrap();
            FOUND.store(found.handler, Ordering::Relaxed);
            assert_ne!(found.handler, on_trap as *const () as usize);
            // SAFETY: 1. all zeros is an action.
            let mut theirs: libc::sigaction = unsafe { std::mem::zeroed() };
            theirs.sa_sigaction = on_trap as *const () as usize;
            theirs.sa_flags = libc::SA_SIGINFO | (round % 2) * libc::SA_NODEFER;
            // SAFETY: 1. the handler is async-signal-safe.
            let set = unsafe { libc::sigaction(libc::SIGTRAP, &raw const theirs, null_mut()) };
            assert_eq!(set, 0);
            // Detaching, attaching, and taking apart find it in their way.
            let second = hook_libc(&rt, "qsort_r", || {});
            drop(second);
            rt.synchronize(PATIENCE).unwrap();
            TRAPS.store(0, Ordering::Relaxed);
            breakpoint();
            // SAFETY: 1. sends a signal that has a handler.
            unsafe { libc::raise(libc::SIGTRAP) };
            assert_eq!(TRAPS.load(Ordering::Relaxed), 2);
        }
    });
    drop(first);
    assert_settled(&rt);
}

fn sort() {
    extern "C" fn compare(a: *const c_void, b: *const c_void) -> c_int {
        // SAFETY: 1. elements of the array below.
        let a = unsafe { a.cast::<i32>().read() };
        // SAFETY: as above.
        let b = unsafe { b.cast::<i32>().read() };
        a.cmp(&b) as c_int
    }
    let mut numbers = [3_i32, 1, 2];
    // SAFETY: 1. three elements of four bytes.
    unsafe { libc::qsort(numbers.as_mut_ptr().cast(), 3, 4, Some(compare)) };
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn static_calls_within_a_change_are_refused() {
    let _one = serial();
    // A change of this thread is under way.
    let inner = trampoline::Trampolines::exclusively(|| Plus::update(plus_two));
    assert!(
        matches!(inner, Ok(Err(rvbpf::Error::Tramp(TrampError::Reentered)))),
        "{inner:?}"
    );
    assert_eq!(Plus::call(1), 2);
}
