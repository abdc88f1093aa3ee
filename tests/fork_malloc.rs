//! An allocator that locks in handlers of `fork`, as jemalloc and tcmalloc do.
//!
//! For the time of a fork its lock is the forking thread's, so that the child finds memory whole.
//! Two things would hang then: a handler of ours that allocates while the lock is held, and a
//! thread that holds a lock of ours and waits for an allocation, while the forking thread holds the
//! allocator's and waits for ours. The allocator finds out, and ends the process with a sentence.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "a global allocator")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::env;
use std::ffi::CStr;
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{ADD2, Count, Stopper, WEIGH12, gettid, hook, in_child, serial, weigh_from};
use rvbpf::Runtime;
use testlib::functions::tl_add2;

struct Locking;

#[global_allocator]
static ALLOC: Locking = Locking;

/// The thread that allocates, or forks; 0: none.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// When it begins to lock in forks.
static IS_KNOWN: AtomicBool = AtomicBool::new(false);

fn fail(why: &str) -> ! {
    // SAFETY: 1. live bytes. Whether they arrive does not matter.
    unsafe { libc::write(2, why.as_ptr().cast(), why.len()) };
    // SAFETY: 1. ends this process.
    unsafe { libc::_exit(99) }
}

/// Waits for the lock, for a time that is far longer than a fork takes.
fn lock() {
    let me = gettid();
    for _ in 0..20_000 {
        match OWNER.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return,
            Err(owner) if owner == me => fail("an allocation while this thread forks\n"),
            Err(_) => {
                // SAFETY: 1. no preconditions.
                unsafe { libc::usleep(1000) };
            }
        }
    }
    fail("an allocation waits for a fork that does not end\n")
}

extern "C" fn unlock() {
    OWNER.store(0, Ordering::Release);
}

extern "C" fn before_fork() {
    lock();
}

/// From here on forks lock it.
fn lock_in_forks() {
    if !IS_KNOWN.swap(true, Ordering::Relaxed) {
        let (before, after): (extern "C" fn(), extern "C" fn()) = (before_fork, unlock);
        // SAFETY: 1. functions of this program, which is never unloaded.
        let failed = unsafe { libc::pthread_atfork(Some(before), Some(after), Some(after)) };
        assert_eq!(failed, 0);
    }
}

// SAFETY: 1. memory is the system allocator's.
unsafe impl GlobalAlloc for Locking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_late() {
            lock_in_forks();
        }
        lock();
        // SAFETY: passed on.
        let at = unsafe { System.alloc(layout) };
        unlock();
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        lock();
        // SAFETY: passed on.
        unsafe { System.dealloc(at, layout) };
        unlock();
    }
}

/// Forks while other threads attach, retarget and detach, and while nothing changes.
fn forks() {
    let rt = Runtime::new().unwrap();
    let count = Arc::new(Count::new());
    let its = count.clone();
    let hooked = hook(&rt, ADD2)
        .on_entry(move |_| its.add())
        .attach()
        .unwrap();
    let fork = || {
        in_child(|| {
            let before = count.get();
            assert_eq!(tl_add2(20, 3), 23);
            assert_eq!(count.get(), before + 1);
            black_box(vec![0_u8; 1 << 20]);
            let more = hook(&rt, ADD2).on_exit(|_, _| {}).attach().unwrap();
            assert_eq!(tl_add2(20, 3), 23);
            assert_eq!(more.stats().runs, 1);
            rt.detach_all([&more, &hooked]).unwrap();
        })
        .join();
    };
    fork();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stopper(&is_over);
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let weigh = hook(&rt, WEIGH12).on_exit(|_, _| {}).attach().unwrap();
                    assert_eq!(weigh_from(1), (650, 650));
                    weigh.detach().unwrap();
                    // The lock of changes is not fair: the thread that forks must get it, too.
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(5);
        let forks = (0..40).take_while(|_| Instant::now() < end);
        forks.for_each(|_| fork());
    });
    hooked.detach().unwrap();
}

/// Where this is set, the allocator waits to be told.
const LATE: &CStr = c"RVBPF_TEST_LATE";

fn is_late() -> bool {
    // SAFETY: 1. a text that ends; the variable is not changed by this program.
    !unsafe { libc::getenv(LATE.as_ptr()) }.is_null()
}

/// As jemalloc does it, which is called first while the program is being loaded.
#[test]
fn an_allocator_that_locks_in_forks_from_its_first_allocation_on() {
    let _one = serial();
    assert!(IS_KNOWN.load(Ordering::Relaxed) || is_late());
    in_child(forks).join();
}

/// It comes after all that this crate does when it is loaded.
#[test]
fn an_allocator_that_locks_in_forks_from_later_on() {
    let _one = serial();
    if is_late() {
        lock_in_forks();
        return forks();
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "an_allocator_that_locks_in_forks_from_later_on"])
        .arg("--nocapture")
        .env(LATE.to_str().unwrap(), "1")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned());
    assert!(output.status.success(), "{}\n{text:?}", output.status);
}
