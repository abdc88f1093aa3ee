//! There is no `/proc`, or that of another PID namespace, or no descriptor to open it with.

use std::fs::File;
use std::os::fd::AsRawFd as _;

use rvbpf::{Error, Runtime};
use testlib::functions::tl_plain;

use crate::common::{ADD2, code_at, in_child, serial, wait_for};
use crate::{Elsewhere, SOON, attach, call_both, checked, works};

#[test]
fn in_a_pid_namespace_with_the_outer_proc() {
    let _one = serial();
    in_child(|| {
        // SAFETY: 1. concerns children of this process alone.
        checked(unsafe { libc::unshare(libc::CLONE_NEWPID) }.into());
        // The first process of the new namespace. It has this one's `/proc`.
        in_child(|| {
            assert_eq!(std::process::id(), 1);
            let _threads = (Elsewhere::spinning(), Elsewhere::sleeping());
            let rt = Runtime::new().unwrap();
            works(&rt);
            works(&rt);
        })
        .join();
    })
    .join();
}

#[test]
fn in_a_pid_namespace_a_closure_is_not_freed_while_it_runs() {
    let _one = serial();
    in_child(|| {
        // SAFETY: 1. concerns children of this process alone.
        checked(unsafe { libc::unshare(libc::CLONE_NEWPID) }.into());
        in_child(|| {
            let rt = Runtime::new().unwrap();
            crate::Sleeper::new(&rt).outlives_its_hook(&rt);
        })
        .join();
    })
    .join();
}

/// Code of the two functions that are hooked.
fn code() -> [[u8; 16]; 2] {
    [ADD2 as *const (), tl_plain[0] as *const ()].map(code_at)
}

/// A change is refused, says why, and leaves code as it is.
fn assert_refused(what: Result<(), Error>, missing: &str, as_before: [[u8; 16]; 2]) {
    let error = what.expect_err("was not refused").to_string();
    println!("{error}");
    assert!(error.contains(missing), "{error}");
    assert_eq!(code(), as_before);
}

/// A root folder without anything in it, and a way back.
struct Elseroot(File);

impl Elseroot {
    fn enter() -> Self {
        let back = File::open("/").unwrap();
        let empty = std::env::temp_dir().join(format!("rvbpf-empty-{}", std::process::id()));
        std::fs::create_dir_all(&empty).unwrap();
        std::os::unix::fs::chroot(&empty).unwrap();
        std::env::set_current_dir("/").unwrap();
        Elseroot(back)
    }

    fn leave(self) {
        // SAFETY: 1. an open folder.
        checked(unsafe { libc::fchdir(self.0.as_raw_fd()) }.into());
        std::os::unix::fs::chroot(".").unwrap();
    }
}

#[test]
fn without_proc_hooks_are_refused() {
    let _one = serial();
    in_child(|| {
        let rt = Runtime::new().unwrap();
        let before = code();
        let root = Elseroot::enter();
        assert_refused(attach(&rt).map(drop), "mount the one", before);
        assert_eq!(call_both(&[]), 0);
        root.leave();
        works(&rt);
    })
    .join();
}

#[test]
fn after_a_chroot_hooks_stay_or_go_but_nothing_is_lost() {
    let _one = serial();
    in_child(|| {
        let rt = Runtime::new().unwrap();
        let hooks = attach(&rt).unwrap();
        let _threads = (Elsewhere::spinning(), Elsewhere::sleeping());
        let root = Elseroot::enter();
        match rt.detach_all(&hooks) {
            Ok(()) => assert_eq!(call_both(&hooks), 0),
            Err(error) => {
                println!("{error}");
                assert!(error.to_string().contains("mount the one"), "{error}");
                assert_eq!(call_both(&hooks), 2);
            }
        }
        if let Err(error) = rt.synchronize(SOON) {
            println!("{error}");
            assert!(error.to_string().contains("mount the one"), "{error}");
        }
        root.leave();
        let _ = rt.detach_all(&hooks);
        assert_eq!(call_both(&hooks), 0);
        drop(hooks);
        rt.synchronize(crate::common::PATIENCE).unwrap();
        works(&rt);
    })
    .join();
}

/// Sets how many descriptors may be open.
fn limit_files(soft: u64) {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: 1024,
    };
    // SAFETY: 1. `limit` is one.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }.into());
}

#[test]
fn without_a_free_descriptor() {
    let _one = serial();
    in_child(|| {
        let rt = Runtime::new().unwrap();
        let before = code();
        limit_files(0);
        assert_refused(attach(&rt).map(drop), "no file descriptor is free", before);
        limit_files(1024);
        let hooks = attach(&rt).unwrap();
        let _threads = (Elsewhere::spinning(), Elsewhere::sleeping());
        limit_files(0);
        match rt.detach_all(&hooks) {
            Ok(()) => assert_eq!(call_both(&hooks), 0),
            Err(error) => {
                println!("{error}");
                assert_eq!(call_both(&hooks), 2);
            }
        }
        let waited = rt.synchronize(SOON);
        println!("{waited:?}");
        limit_files(1024);
        let _ = rt.detach_all(&hooks);
        assert_eq!(call_both(&hooks), 0);
        drop(hooks);
        rt.synchronize(crate::common::PATIENCE).unwrap();
        works(&rt);
    })
    .join();
}

/// Where `/proc` is that of a namespace in which this process is not, there is no `/proc/self`.
#[test]
fn with_the_proc_of_others() {
    let _one = serial();
    in_child(|| {
        // SAFETY: 1. a namespace of mounts for this process.
        checked(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWPID) }.into());
        let mount = |from, to, kind, flags| {
            let (data, from): (*const libc::c_void, &std::ffi::CStr) = (std::ptr::null(), from);
            let to: &std::ffi::CStr = to;
            let kind: &std::ffi::CStr = kind;
            // SAFETY: 1. strings; mounts are this process's own.
            let done =
                unsafe { libc::mount(from.as_ptr(), to.as_ptr(), kind.as_ptr(), flags, data) };
            checked(done.into());
        };
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE);
        // SAFETY: 1. single-threaded; the child mounts, tells, and waits to be killed.
        let init = crate::common::checked(unsafe { libc::fork() });
        if init == 0 {
            mount(c"proc", c"/proc", c"proc", 0);
            loop {
                std::thread::sleep(crate::common::PATIENCE);
            }
        }
        crate::wait_until("the inner /proc is there", || {
            std::fs::metadata("/proc/self").is_err()
        });
        let rt = Runtime::new().unwrap();
        let before = code();
        assert_refused(attach(&rt).map(drop), "mount the one", before);
        // SAFETY: 1. our own child.
        unsafe { libc::kill(init, libc::SIGKILL) };
        wait_for(init);
    })
    .join();
}
