//! Threads that are many, that are gone, that block all signals, or that are the kernel's.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use testlib::functions::tl_plain;

use crate::common::{Stopper, checked, in_child, pipe, serial, wait_until};
use crate::{Answer, Hooks, PLAIN, exit_process, workload};

/// Ends this thread alone, not the process.
fn exit_thread() -> ! {
    // SAFETY: 1. the thread owns nothing that others need.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("the thread has ended")
}

/// Runs `body` in a child whose first thread has ended.
fn without_leader(body: impl FnOnce() + Send + 'static) {
    in_child(|| {
        thread::spawn(move || {
            let stat = || std::fs::read_to_string("/proc/self/stat").unwrap();
            wait_until("the end of the first thread", || stat().contains(") Z "));
            exit_process(body);
        });
        exit_thread();
    })
    .join();
}

#[test]
fn the_first_thread_has_ended() {
    let _one = serial();
    without_leader(|| Answer::Works.check(workload()));
}

#[test]
fn the_first_thread_ends_while_hooked() {
    let _one = serial();
    in_child(|| {
        let hooks = Hooks::attach().unwrap();
        thread::spawn(move || {
            let stat = || std::fs::read_to_string("/proc/self/stat").unwrap();
            wait_until("the end of the first thread", || stat().contains(") Z "));
            exit_process(|| {
                hooks.call();
                Answer::Works.check(hooks.retarget().and_then(|()| hooks.end()));
            });
        });
        exit_thread();
    })
    .join();
}

#[test]
fn slow_a_thousand_threads() {
    let _one = serial();
    in_child(|| {
        let (read, _write) = pipe();
        for _ in 0..1000 {
            let builder = thread::Builder::new().stack_size(64 << 10);
            let sleep = move || {
                let mut byte = 0_u8;
                // SAFETY: 1. one writable byte.
                unsafe { libc::read(read, (&raw mut byte).cast(), 1) };
            };
            builder.spawn(sleep).unwrap();
        }
        Answer::Works.check(workload());
    })
    .join();
}

fn block_all_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: 1. room for a set.
    checked(unsafe { libc::sigfillset(all.as_mut_ptr()) });
    let none = std::ptr::null_mut();
    // SAFETY: 1. the set was filled above.
    checked(unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), none) });
}

/// All threads block all signals, as servers do that wait for them in one place; some of them
/// call what is hooked.
#[test]
fn all_signals_are_blocked() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let _one = serial();
    in_child(|| {
        block_all_signals();
        thread::scope(|scope| {
            let _stopper = Stopper(&STOP);
            scope.spawn(|| {
                while !STOP.load(Ordering::Relaxed) {
                    for _ in 0..64 {
                        black_box(tl_plain[PLAIN])(5);
                    }
                    // A thread that never sleeps and blocks all signals cannot be looked at.
                    thread::sleep(Duration::from_micros(100));
                }
            });
            Answer::WorksOrRefused(&["SIGTRAP"]).check(quiet_workload());
        });
    })
    .join();
}

/// The workload, where other threads call the functions as well: counts are not compared.
fn quiet_workload() -> Result<(), rvbpf::Error> {
    let hooks = Hooks::attach()?;
    hooks.rt.detach_all([&hooks.pad, &hooks.jump])?;
    hooks.rt.synchronize(crate::common::PATIENCE)
}

/// A kernel thread of `io_uring` stands among this process's threads and blocks all signals; it
/// never runs code of the process.
#[test]
fn io_uring_workers() {
    const SETUP_SQPOLL: u32 = 1 << 1;
    const IO_URING_SETUP: libc::c_long = 425;
    let _one = serial();
    in_child(|| {
        // struct io_uring_params: entries, entries, flags, cpu, idle time in ms, …
        let mut params = [0_u32; 30];
        params[2] = SETUP_SQPOLL;
        params[4] = 60_000;
        // SAFETY: 1. the parameters are writable and 120 bytes long.
        let ring = unsafe { libc::syscall(IO_URING_SETUP, 4, params.as_mut_ptr()) };
        if ring < 0 {
            eprintln!("not tried: io_uring: {}", std::io::Error::last_os_error());
            return;
        }
        Answer::Works.check(workload());
    })
    .join();
}
