//! Every system call that a change of hooks makes is refused once, one after the other: the change
//! fails and everything is as before, or it does without and has been made. Nothing is half done.
//!
//! A filter of the kernel stops each call of the changing thread, and this process decides: see
//! `refuse`. Memory for the heap is left out: without it Rust's collections end the process.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "a seccomp filter, and hooks")]

mod common;

#[path = "syscalls/refuse.rs"]
mod refuse;

use std::ffi::c_long;

use common::{PATIENCE, Site, assert_settled, code_at, in_child, pipe, send, serial, sites};
use refuse::{Asked, refusing};
use rvbpf::{Error, Hook, Runtime};
use testlib::functions::{plain, tl_plain};

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
    /// With the first call refused, then with the second, and so on; each in a process that finds
    /// what is known of the objects, and has made one such change.
    fn at_every_call(&self, errno: i32) {
        self.at(u32::MAX, errno);
        let (mut nr_failed, mut nr_done) = (0_u32, 0_u32);
        for nth in 1.. {
            let (from, to) = pipe();
            in_child(|| send(to, self.at(nth, errno))).join();
            let mut byte = 0_u8;
            // SAFETY: 1. room for one byte.
            assert_eq!(unsafe { libc::read(from, (&raw mut byte).cast(), 1) }, 1);
            for fd in [from, to] {
                // SAFETY: 1. our own descriptor, closed once.
                unsafe { libc::close(fd) };
            }
            match byte {
                b'f' => nr_failed += 1,
                b'd' => nr_done += 1,
                _ => {
                    println!(
                        "{}: {} calls, each refused once (errno {errno}): {nr_failed} times it \
                         failed, {nr_done} times it did without",
                        self.what,
                        nth - 1
                    );
                    break;
                }
            }
        }
        assert!(nr_failed > 0, "{}: nothing was refused", self.what);
    }

    /// `f`: it failed; `d`: it did without the `nth` call; `n`: there is no such call.
    fn at(&self, nth: u32, errno: i32) -> u8 {
        let plain_code = code();
        let rt = Runtime::new().unwrap();
        let before = (self.prepare)(&rt);
        let (result, asked) = refusing(nth, errno, || (self.change)(&rt, &before));
        let how = match (asked, &result) {
            (Asked::Never, Ok(_)) => b'n',
            (Asked::Once, Ok(_)) => b'd',
            (Asked::Once, Err(error)) => {
                assert_ne!(error.to_string(), "");
                b'f'
            }
            (Asked::Never, Err(error)) => panic!("{}: {error} for no reason", self.what),
        };
        (self.after)(&rt, before, result);
        check();
        assert_settled(&rt);
        assert_eq!(code(), plain_code, "its own instructions are back");
        how
    }
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
#[ignore = "takes minutes"]
fn slow_no_memory() {
    let _one = serial();
    attaching().at_every_call(libc::ENOMEM);
    detaching().at_every_call(libc::ENOMEM);
    synchronizing().at_every_call(libc::ENOMEM);
}

#[test]
#[ignore = "takes minutes"]
fn slow_not_permitted() {
    let _one = serial();
    attaching().at_every_call(libc::EPERM);
    detaching().at_every_call(libc::EPERM);
    synchronizing().at_every_call(libc::EPERM);
}
