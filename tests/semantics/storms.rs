//! Timers that interrupt every thread again and again, while threads begin and end in masses and
//! hooks come and go; and threads that sleep through all that.

use std::ffi::{c_int, c_long};
use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rvbpf::{Error, FuncModel, Hook, Runtime, TrampError};
use testlib::functions::{tl_add2, tl_get_errno, tl_read_byte, tl_set_errno};

use crate::common::{
    ADD2, READ_BYTE, SUM, WEIGH12, assert_settled, checked, gettid, hook, pipe, send, serial,
    sites, weigh_from,
};

static ADDS: AtomicU64 = AtomicU64::new(0);
static WEIGHS: AtomicU64 = AtomicU64::new(0);
static SIGNALS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
/// Handlers have nothing to do any more.
static CALM: AtomicBool = AtomicBool::new(false);

fn call_all(a: c_int) {
    ADDS.fetch_add(1, Ordering::Relaxed);
    let added = tl_add2(a, 1);
    WEIGHS.fetch_add(1, Ordering::Relaxed);
    let (got, want) = weigh_from(a.into());
    if added != a + 1 || got != want {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
}

extern "C" fn on_timer(_: c_int) {
    if CALM.load(Ordering::Relaxed) {
        return;
    }
    let errno = tl_get_errno();
    SIGNALS.fetch_add(1, Ordering::Relaxed);
    call_all(-7);
    tl_set_errno(errno);
}

/// A timer that signals the thread that made it.
struct Storm(libc::timer_t);

impl Storm {
    fn begin(period: Duration) -> Self {
        // SAFETY: 1. zero bytes are a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = gettid();
        let mut timer = MaybeUninit::uninit();
        // SAFETY: 1. there is room for it.
        checked(unsafe {
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr())
        });
        // SAFETY: 1. it has been made.
        let timer = unsafe { timer.assume_init() };
        let step = libc::timespec {
            tv_sec: 0,
            tv_nsec: period.as_nanos() as c_long,
        };
        let when = libc::itimerspec {
            it_interval: step,
            it_value: step,
        };
        // SAFETY: 1. a timer of ours.
        checked(unsafe { libc::timer_settime(timer, 0, &raw const when, ptr::null_mut()) });
        Storm(timer)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        // SAFETY: 1. a timer of ours.
        checked(unsafe { libc::timer_delete(self.0) });
    }
}

fn handle_timers() {
    let handler: extern "C" fn(c_int) = on_timer;
    // SAFETY: 1. zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: 1. the handler calls hooked functions and atomics.
    checked(unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) });
}

fn everything_was_seen(hooked: &Hook, calls: &AtomicU64) {
    let calls = calls.load(Ordering::Relaxed);
    for prog in hooked.stats().progs {
        assert_eq!(prog.runs + prog.missed, calls, "{prog:?}");
    }
    assert_eq!(hooked.stats().panics, 0);
}

/// A short life under a storm: the first hooked call, which registers the thread, may be the
/// handler's or be interrupted by it.
fn short_life(period: Duration) {
    let _storm = Storm::begin(period);
    for i in 0..30 {
        tl_set_errno(i);
        call_all(i);
        if tl_get_errno() != i {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_storm_of_timers_over_threads_that_begin_and_end() {
    const THREADS: usize = 1500;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    handle_timers();
    let adds = hook(&rt, ADD2)
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    // SAFETY: 1. the model claims nothing.
    let weighs = unsafe { rt.hook_addr(WEIGH12 as *const (), FuncModel::untyped()) }.unwrap();
    let weighs = weighs
        .on_entry(|_| call_inside(3))
        .on_exit(|_, _| call_inside(4))
        .attach()
        .unwrap();
    // Reached from programs alone.
    let inner = hook(&rt, sites(1)[0]).on_exit(|_, _| {}).attach().unwrap();

    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let builder = hook(&rt, ADD2).on_exit(|_, _| {});
                builder.attach().unwrap().detach().unwrap();
                // Images are freed meanwhile, and threads' places in the table.
                let _in_use = rt.synchronize(Duration::from_millis(20));
            }
        });
        for batch in 0..THREADS / 10 {
            let period = Duration::from_micros(60 + 40 * (batch as u64 % 8));
            thread::scope(|s| (0..10).for_each(|_| drop(s.spawn(move || short_life(period)))));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let signals = SIGNALS.load(Ordering::Relaxed);
    let missed = adds.stats().missed + weighs.stats().missed + inner.stats().missed;
    println!("{signals} signals, {missed} runs missed by recursion");
    assert!(signals > 2000 && missed > 0, "{signals}, {missed}");
    assert_eq!(WRONG.load(Ordering::Relaxed), 0);
    everything_was_seen(&adds, &ADDS);
    everything_was_seen(&weighs, &WEIGHS);
    rt.detach_all([&adds, &weighs, &inner]).unwrap();
    assert_settled(&rt);
}

fn call_inside(x: c_long) {
    assert_eq!(sites(1)[0](x), x);
}

/// Programs that hook and unhook, on several threads at once, interrupted by handlers that call
/// what they change. (A change within a change is refused: `tests/malloc.rs`.)
#[test]
fn programs_change_hooks_under_a_storm() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    handle_timers();
    static MADE: AtomicU64 = AtomicU64::new(0);
    static REFUSED: AtomicU64 = AtomicU64::new(0);
    static ODD: AtomicU64 = AtomicU64::new(0);
    let inner = rt.clone();
    let changing = hook(&rt, ADD2)
        .on_entry(move |_| {
            // SAFETY: 1. sites are of this type.
            let builder = unsafe { inner.hook(sites(2)[1]) };
            let hooked = builder.and_then(|b| b.on_entry(|_| {}).attach());
            let detached = hooked.and_then(|h| match h.detach() {
                Err(Error::Tramp(TrampError::Reentered)) => unreachable!("attached a moment ago"),
                other => other,
            });
            match detached {
                Ok(()) => MADE.fetch_add(1, Ordering::Relaxed),
                Err(Error::Tramp(TrampError::Reentered)) => REFUSED.fetch_add(1, Ordering::Relaxed),
                Err(_) => ODD.fetch_add(1, Ordering::Relaxed),
            };
        })
        .attach()
        .unwrap();
    // What a handler begins takes longer than its timer's period: it is the flag that ends them.
    let change = || {
        let _storm = Storm::begin(Duration::from_micros(500));
        while !CALM.load(Ordering::Relaxed) {
            assert_eq!(tl_add2(20, 22), 42);
        }
    };
    thread::scope(|s| {
        (0..3).for_each(|_| drop(s.spawn(change)));
        thread::sleep(Duration::from_secs(5));
        CALM.store(true, Ordering::Relaxed);
    });
    CALM.store(false, Ordering::Relaxed);
    assert!(MADE.load(Ordering::Relaxed) > 10, "{MADE:?}");
    assert_eq!(
        (REFUSED.load(Ordering::Relaxed), ODD.load(Ordering::Relaxed)),
        (0, 0)
    );
    changing.detach().unwrap();
    assert_eq!(changing.stats().panics, 0);
    assert_settled(&rt);
}

/// What a sleeping thread's system call returned.
type Woken = (&'static str, c_long, c_int);

fn result(name: &'static str, value: c_long) -> Woken {
    (
        name,
        value,
        std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
    )
}

/// System calls that no `SA_RESTART` restarts, and one inside of a hooked function. Each thread has
/// called what is hooked, so images that it has been in are freed while it sleeps.
#[test]
fn sleepers_sleep_on_while_images_are_freed() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let sleep = Duration::from_secs(8);
    let (read_end, write_end) = pipe();
    let (poll_end, wake_end) = pipe();
    let word = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let its = word.clone();
    let sleepers: [Box<dyn FnOnce() -> Woken + Send>; 5] = [
        Box::new(move || {
            let time = libc::timespec {
                tv_sec: sleep.as_secs() as i64,
                tv_nsec: 0,
            };
            // SAFETY: 1. a valid time.
            let left = unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) };
            result("nanosleep", left.into())
        }),
        Box::new(move || {
            let mut fd = libc::pollfd {
                fd: poll_end,
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: 1. one descriptor.
            let ready = unsafe { libc::poll(&raw mut fd, 1, -1) };
            result("poll", c_long::from(ready) - 1)
        }),
        Box::new(move || {
            // SAFETY: 1. the word lives. 2. Nobody but the test wakes it.
            let woken = unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    its.as_ptr(),
                    libc::FUTEX_WAIT,
                    0,
                    ptr::null::<libc::timespec>(),
                )
            };
            result("futex", woken)
        }),
        Box::new(move || {
            let time = libc::timespec {
                tv_sec: sleep.as_secs() as i64,
                tv_nsec: 0,
            };
            // SAFETY: 1. no descriptors, a valid time.
            let none = unsafe { libc::ppoll(ptr::null_mut(), 0, &raw const time, ptr::null()) };
            result("ppoll", none.into())
        }),
        Box::new(move || result("read in a hooked function", tl_read_byte(read_end) - 7)),
    ];
    let reading = hook(&rt, READ_BYTE).on_exit(|_, _| {}).attach().unwrap();
    let sum = hook(&rt, SUM).on_exit(|_, _| {}).attach().unwrap();
    let asleep: Vec<_> = sleepers
        .into_iter()
        .map(|sleeper| {
            thread::spawn(move || {
                call_all(5);
                sleeper()
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    let mut rounds = 0;
    while begin.elapsed() < sleep / 2 {
        let hooks = [
            hook(&rt, ADD2).on_exit(|_, _| {}).attach().unwrap(),
            hook(&rt, ADD2).on_entry(|_| {}).attach().unwrap(),
        ];
        call_all(1);
        rt.detach_all(&hooks).unwrap();
        rt.synchronize(Duration::from_secs(2)).unwrap();
        rounds += 1;
    }
    println!("{rounds} rounds of freeing");
    assert!(rounds >= 2);
    word.store(1, Ordering::SeqCst);
    // SAFETY: 1. wakes whoever waits at the word.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
    send(write_end, 7);
    send(wake_end, 1);
    for sleeper in asleep {
        let (name, value, errno) = sleeper.join().unwrap();
        assert_eq!(value, 0, "{name}: errno {errno}");
    }
    assert_eq!(reading.stats().runs, 1);
    rt.detach_all([&reading, &sum]).unwrap();
    assert_settled(&rt);
}
