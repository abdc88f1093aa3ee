//! Every system call that a change of hooks makes is refused once, one after the other: the change
//! fails and everything is as before, or it does without and has been made. Nothing is half done.
//!
//! All of them with `RVBPF_REFUSE_EVERY=1`, which takes ten minutes; without it the first and the last
//! call of each number, and every 16th.
//!
//! A filter of the kernel stops each call of the changing thread, and this process decides: see
//! `refuse`. Memory for code is among what is refused: packs are files in memory and their maps
//! (`errors/limits.rs` has their limits). Memory for the heap is not: without it Rust's
//! collections end the process, by design.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "a seccomp filter, and hooks")]

mod common;

#[path = "syscalls/refuse.rs"]
mod refuse;

use std::ffi::{c_int, c_long};
use std::fs::File;
use std::io::{Read, Write};
use std::iter::once;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Instant;

use common::{PATIENCE, Site, assert_settled, code_at, in_child, pipe, serial, sites};
use refuse::{Calls, Refuse, refusing};
use rvbpf::{Error, Hook, Runtime};
use testlib::functions::{plain, tl_plain};

/// Without `RVBPF_REFUSE_EVERY`.
const EVERY: usize = 16;

/// Functions without pads that are hooked here.
const PLAIN: [usize; 3] = [0, 3, 6];

/// Three with pads, three without.
fn funcs() -> Vec<Site> {
    let plain = PLAIN.map(|n| tl_plain[n]);
    sites(3).into_iter().chain(plain).collect()
}

fn check() {
    for (i, site) in sites(3).into_iter().enumerate() {
        assert_eq!(site(40), 40 + i as c_long);
    }
    PLAIN.map(|n| assert_eq!(tl_plain[n](41), plain(n, 41)));
}

fn code() -> Vec<[u8; 16]> {
    funcs().iter().map(|f| code_at(*f as *const ())).collect()
}

fn attach(rt: &Runtime) -> Result<Vec<Hook>, Error> {
    let begin = |f: &Site| {
        // SAFETY: 1. test functions are declared as they are.
        let builder = unsafe { rt.hook(*f) }?;
        Ok(builder.on_entry(|_| {}).on_exit(|_, _| {}))
    };
    let builders: Result<Vec<_>, Error> = funcs().iter().map(begin).collect();
    rt.attach_all(builders?)
}

/// Each program of `hooks` runs twice in one [`check`], or never.
fn assert_runs(hooks: &[Hook], each: u64) {
    let runs = || hooks.iter().map(|h| h.stats().runs).collect::<Vec<_>>();
    let before = runs();
    check();
    for (before, after) in before.into_iter().zip(runs()) {
        assert_eq!(after - before, each);
    }
}

/// One kind of change.
struct Change<P, T> {
    what: &'static str,
    prepare: fn(&Runtime) -> P,
    change: fn(&Runtime, &P) -> Result<T, Error>,
    /// What must hold afterwards; detaches what is attached.
    after: fn(&Runtime, P, Result<T, Error>),
}

impl<P: Send + Sync, T: Send> Change<P, T> {
    /// With one call refused, then with another, and so on; each in a process that finds what is
    /// known of the objects, and has made one such change.
    fn at_each_call(&self, errno: i32) {
        self.at(Refuse::Nothing);
        let start = Instant::now();
        let calls = self.in_child(Refuse::Nothing);
        assert_eq!(calls.how, b'n', "{}: nothing was refused", self.what);
        let (mut failed, mut did_without, mut fewer) = (0_u32, 0_u32, 0_u32);
        let chosen = chosen(&calls.numbers);
        for &(number, nth) in &chosen {
            // Named if the child dies.
            eprintln!("{}: call {number} refused after {nth} of them", self.what);
            match self.in_child(Refuse::Nth { number, nth, errno }).how {
                b'f' => failed += 1,
                b'd' => did_without += 1,
                _ => fewer += 1,
            }
        }
        println!(
            "{}: {} calls, {} of them refused (errno {errno}): {failed} times it failed, \
             {did_without} times it did without, {fewer} times it made fewer calls; {:?}",
            self.what,
            calls.numbers.len(),
            chosen.len(),
            start.elapsed(),
        );
        assert!(failed > 0, "{}: nothing was refused", self.what);
        // How often a thread is looked at depends on where it is.
        assert!(fewer <= failed + did_without, "{}: {fewer}", self.what);
    }

    /// One change, in a child.
    fn in_child(&self, refuse: Refuse) -> Ended {
        let (from, to) = pipe();
        let child = in_child(|| {
            let ended = self.at(refuse);
            let mut to = File::from(owned(to));
            let numbers = ended.numbers.iter().flat_map(|n| n.to_le_bytes());
            let bytes: Vec<u8> = once(ended.how).chain(numbers).collect();
            to.write_all(&bytes).unwrap();
        });
        drop(owned(to));
        let mut bytes = Vec::new();
        File::from(owned(from)).read_to_end(&mut bytes).unwrap();
        child.join();
        let (&how, numbers) = bytes.split_first().unwrap();
        let number = |bytes: &[u8]| i32::from_le_bytes(bytes.try_into().unwrap());
        let numbers = numbers.chunks_exact(4).map(number).collect();
        Ended { how, numbers }
    }

    fn at(&self, refuse: Refuse) -> Ended {
        let plain_code = code();
        let rt = Runtime::new().unwrap();
        let before = (self.prepare)(&rt);
        let (result, numbers) = refusing(refuse, || (self.change)(&rt, &before));
        let was_refused = match refuse {
            Refuse::Nothing => false,
            Refuse::Nth { nth, .. } => nth < numbers.len(),
        };
        let how = match (was_refused, &result) {
            (false, Ok(_)) => b'n',
            (true, Ok(_)) => b'd',
            (true, Err(error)) => {
                assert_ne!(error.to_string(), "");
                b'f'
            }
            (false, Err(error)) => panic!("{}: {error} for no reason", self.what),
        };
        (self.after)(&rt, before, result);
        check();
        assert_settled(&rt);
        assert_eq!(code(), plain_code, "its own instructions are back");
        Ended { how, numbers }
    }
}

/// What has become of a change.
struct Ended {
    /// `f`: it failed; `d`: it did without the call; `n`: no call was refused.
    how: u8,
    /// The numbers of its system calls.
    numbers: Calls,
}

/// Which of these calls are refused, as numbers and how many of the number come before: of each
/// number the first and the last, and every so many of all.
fn chosen(numbers: &[i32]) -> Vec<(i32, usize)> {
    let given = std::env::var("RVBPF_REFUSE_EVERY").ok();
    let every: usize = given.map_or(EVERY, |n| n.parse().expect("a number above 0"));
    let choose = |(i, number): (usize, &i32)| {
        let before = numbers[..i].iter().filter(|n| *n == number).count();
        let is_last = !numbers[i + 1..].contains(number);
        let is_chosen = before == 0 || is_last || i % every == every - 1;
        is_chosen.then_some((*number, before))
    };
    numbers.iter().enumerate().filter_map(choose).collect()
}

fn owned(fd: c_int) -> OwnedFd {
    // SAFETY: 1. a descriptor of ours, which each process closes once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn attaching() -> Change<(), Vec<Hook>> {
    Change {
        what: "attach",
        prepare: |_| (),
        change: |rt, ()| attach(rt),
        after: |rt, (), result| match result {
            Ok(hooks) => {
                assert_runs(&hooks, 2);
                rt.detach_all(&hooks).unwrap();
            }
            Err(_) => {
                let now = rt.stats().tramps;
                assert_eq!((now.sites, now.links, now.images), (0, 0, 0));
            }
        },
    }
}

fn detaching() -> Change<Vec<Hook>, ()> {
    Change {
        what: "detach",
        prepare: |rt| attach(rt).unwrap(),
        change: |rt, hooks| rt.detach_all(hooks),
        after: |rt, hooks, result| match result {
            Ok(()) => assert_runs(&hooks, 0),
            Err(_) => {
                assert_runs(&hooks, 2);
                rt.detach_all(&hooks).unwrap();
            }
        },
    }
}

fn synchronizing() -> Change<(), ()> {
    Change {
        what: "synchronize",
        prepare: |rt| drop(attach(rt).unwrap()),
        change: |rt, ()| rt.synchronize(PATIENCE),
        after: |_, (), _| (),
    }
}

#[test]
fn slow_attach_no_memory() {
    let _one = serial();
    attaching().at_each_call(libc::ENOMEM);
}

#[test]
fn slow_attach_not_permitted() {
    let _one = serial();
    attaching().at_each_call(libc::EPERM);
}

#[test]
fn slow_detach_no_memory() {
    let _one = serial();
    detaching().at_each_call(libc::ENOMEM);
}

#[test]
fn slow_detach_not_permitted() {
    let _one = serial();
    detaching().at_each_call(libc::EPERM);
}

#[test]
fn slow_synchronize_no_memory() {
    let _one = serial();
    synchronizing().at_each_call(libc::ENOMEM);
}

#[test]
fn slow_synchronize_not_permitted() {
    let _one = serial();
    synchronizing().at_each_call(libc::EPERM);
}
