//! Host processes of every kind: daemons, sandboxes, other users, exhausted limits.
//!
//! Each row is a host, set up in a child process, in which the same small workload of hooks runs.
//! Its answer is one of two: everything works, or a refusal with a sentence that names what is
//! missing, after which the hooked functions are as they were.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "the system calls that make a host what it is")]

mod common;
#[path = "host_process/hosts.rs"]
mod hosts;
#[path = "host_process/limits.rs"]
mod limits;
#[path = "host_process/others.rs"]
mod others;
#[path = "host_process/threads.rs"]
mod threads;

use std::ffi::c_long;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use common::{ADD2, Count, PATIENCE, footprint};
use rvbpf::{Error, Hook, Runtime};
use testlib::functions::{plain, tl_add2, tl_plain};

/// A function of the test library without a pad, whose shape takes a jump.
const PLAIN: usize = 2;

/// What a host answers.
#[derive(Debug)]
enum Answer {
    Works,
    /// Refused, with a sentence that holds one of these.
    Refused(&'static [&'static str]),
    /// Either: it depends on the kernel.
    WorksOrRefused(&'static [&'static str]),
}

impl Answer {
    fn check(&self, got: Result<(), Error>) {
        unhooked();
        match (self, got) {
            (Answer::Works | Answer::WorksOrRefused(_), Ok(())) => {}
            (Answer::Refused(words) | Answer::WorksOrRefused(words), Err(error)) => {
                let text = error.to_string();
                let is_meant = words.iter().any(|word| text.contains(word));
                assert!(is_meant, "refused, but by `{text}`: expected {words:?}");
            }
            (want, got) => panic!("expected {want:?}, got {got:?}"),
        }
    }
}

/// The hooked functions return what they return without hooks.
fn unhooked() {
    assert_eq!(tl_add2(20, 3), 23);
    assert_eq!(tl_plain[PLAIN](5), plain(PLAIN, 5));
}

/// Hooks of a function with a pad and of one without, and what they count.
struct Hooks {
    rt: Runtime,
    pad: Hook,
    jump: Hook,
    counts: Arc<[Count; 2]>,
}

impl Hooks {
    fn attach() -> Result<Self, Error> {
        let rt = Runtime::new()?;
        let counts = Arc::new([const { Count::new() }; 2]);
        let (of_pad, of_jump) = (counts.clone(), counts.clone());
        // SAFETY: 1. test functions are declared as they are.
        let pad = unsafe { rt.hook(ADD2) }?
            .on_entry(move |_| of_pad[0].add())
            .attach()?;
        let f: extern "C" fn(c_long) -> c_long = tl_plain[PLAIN];
        // SAFETY: 1. as above.
        let jump = unsafe { rt.hook(f) }?
            .on_exit(move |_, _| of_jump[1].add())
            .attach()?;
        Ok(Self {
            rt,
            pad,
            jump,
            counts,
        })
    }

    /// Calls each function once: each program runs once.
    fn call(&self) {
        let before = [self.counts[0].get(), self.counts[1].get()];
        unhooked();
        let after = [self.counts[0].get(), self.counts[1].get()];
        assert_eq!(after, before.map(|n| n + 1), "a program did not run");
    }

    /// A second program on the function with a pad, and away again.
    fn retarget(&self) -> Result<(), Error> {
        let count = Arc::new(Count::new());
        let its = count.clone();
        // SAFETY: 1. test functions are declared as they are.
        let second = unsafe { self.rt.hook(ADD2) }?
            .on_exit(move |_, _| its.add())
            .attach()?;
        self.call();
        assert_eq!(count.get(), 1);
        second.detach()?;
        self.call();
        assert_eq!(count.get(), 1);
        Ok(())
    }

    fn end(self) -> Result<(), Error> {
        self.rt.detach_all([&self.pad, &self.jump])?;
        let before = [self.counts[0].get(), self.counts[1].get()];
        unhooked();
        assert_eq!([self.counts[0].get(), self.counts[1].get()], before);
        self.rt.synchronize(PATIENCE)?;
        let left = footprint(&self.rt.stats());
        drop((self.pad, self.jump));
        assert_eq!(left, footprint(&Runtime::new()?.stats()), "left behind");
        Ok(())
    }
}

/// Runs `body` and ends this process; a panic is its exit status.
fn exit_process(body: impl FnOnce()) -> ! {
    let result = catch_unwind(AssertUnwindSafe(body));
    // SAFETY: 1. ends this process.
    unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) }
}

/// The whole workload.
fn workload() -> Result<(), Error> {
    let hooks = Hooks::attach()?;
    hooks.call();
    hooks.retarget()?;
    hooks.end()
}
