//! The main thread has ended: `/proc/self` and `getpid` name a thread that is dead.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rvbpf::Runtime;

use crate::common::{in_child, serial};
use crate::{Elsewhere, Sleeper, end_with, works};

/// Runs `body` on a thread of a child whose first thread has ended.
fn without_leader(body: fn()) {
    in_child(|| {
        let leader = crate::gettid();
        std::thread::spawn(move || {
            let state = || std::fs::read_to_string(format!("/proc/self/task/{leader}/stat"));
            crate::wait_until("the first thread ends", || state().unwrap().contains(") Z"));
            end_with(catch_unwind(AssertUnwindSafe(body)).is_ok());
        });
        // SAFETY: 1. ends this thread only; the other ends the process.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    })
    .join();
}

#[test]
fn without_a_first_thread_hooks_come_and_go() {
    let _one = serial();
    without_leader(|| {
        let _threads = (Elsewhere::spinning(), Elsewhere::sleeping());
        let rt = Runtime::new().unwrap();
        works(&rt);
        works(&rt);
    });
}

#[test]
fn without_a_first_thread_nothing_is_freed_that_is_in_use() {
    let _one = serial();
    without_leader(|| {
        let rt = Runtime::new().unwrap();
        Sleeper::new(&rt).outlives_its_hook(&rt);
    });
}
