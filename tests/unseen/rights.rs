//! The process may not open what `/proc` has of it.

use std::time::Duration;

use rvbpf::{Error, Runtime, TrampError};
use testlib::functions::tl_plain;
use text::TextError;

use crate::common::{hook, in_child, serial};
use crate::{Elsewhere, Sleeper, call_both, checked, works};

const NOBODY: u32 = 65534;

/// As daemons do: the files of `/proc/self/task/TID` belong to root then.
fn drop_rights() {
    // SAFETY: 1. only this process changes.
    checked(unsafe { libc::setresgid(NOBODY, NOBODY, NOBODY) }.into());
    // SAFETY: 1. as above.
    checked(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }.into());
    let line = std::fs::read(format!("/proc/self/task/{}/syscall", crate::gettid()));
    assert!(line.is_err(), "shown still");
}

#[test]
fn another_user_s_threads_are_asked() {
    let _one = serial();
    in_child(|| {
        drop_rights();
        let _threads = (Elsewhere::spinning(), Elsewhere::sleeping());
        let rt = Runtime::new().unwrap();
        works(&rt);
        works(&rt);
    })
    .join();
}

#[test]
fn another_user_s_closure_is_not_freed_while_it_runs() {
    let _one = serial();
    in_child(|| {
        drop_rights();
        let rt = Runtime::new().unwrap();
        Sleeper::new(&rt).outlives_its_hook(&rt);
    })
    .join();
}

/// Such a thread would die of a breakpoint.
#[test]
fn another_user_s_thread_that_blocks_sigtrap_is_seen() {
    let _one = serial();
    in_child(|| {
        drop_rights();
        let mut is_first = true;
        let deaf = Elsewhere::new(move || {
            if std::mem::take(&mut is_first) {
                block_all();
            }
            tl_plain[0](1);
        });
        std::thread::sleep(Duration::from_millis(100));
        let rt = Runtime::new().unwrap();
        let refused = hook(&rt, tl_plain[0]).on_entry(|_| {}).attach().map(drop);
        let Err(Error::Tramp(TrampError::Text(TextError::SigtrapBlocked { tid }))) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((tid, call_both(&[])), (deaf.tid, 0));
        drop(deaf);
        works(&rt);
    })
    .join();
}

fn block_all() {
    // SAFETY: 1. a set of signals may be zero.
    let mut all = unsafe { std::mem::zeroed() };
    // SAFETY: 1. `all` is writable.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: 1. `all` is a set; a null old set is allowed.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) };
}
