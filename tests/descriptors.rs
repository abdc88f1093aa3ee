//! The host's descriptors and limits: no descriptor is kept beyond a call, and what a limit
//! refuses is an error.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "closes descriptors, forks, and sets limits")]

mod common;

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::Arc;

use common::{ADD2, Count, assert_settled, hook, in_child, pipe, send, serial, sites};
use rvbpf::{Hook, Runtime};
use testlib::functions::{tl_add2, tl_read_byte};

unsafe extern "C" {
    /// `fork` without the handlers (glibc 2.34).
    fn _Fork() -> libc::pid_t;
}

const LEN: usize = 64 << 10;

fn limit(resource: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY:
    // 1. `limit` is readable; this is a child of the test.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
}

/// Closes all descriptors, as daemons do, and opens files under their numbers.
fn reopen() -> Vec<File> {
    // SAFETY:
    // 1. A child of the test, which uses none of them any more.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    let open = |i: u8| {
        let path = format!("/tmp/rvbpf-data-{}-{i}", std::process::id());
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true);
        let mut file = options.open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(&[0xd0 + i; LEN]).unwrap();
        file
    };
    (0..8).map(open).collect()
}

fn assert_untouched(files: &mut [File]) {
    for (i, file) in files.iter_mut().enumerate() {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes == [0xd0 + i as u8; LEN], "file {i} was changed");
    }
}

fn counting(rt: &Runtime) -> (Hook, Arc<Count>) {
    let count = Arc::new(Count::new());
    let its = count.clone();
    let builder = hook(rt, ADD2).on_entry(move |_| its.add());
    (builder.attach().unwrap(), count)
}

#[test]
fn the_hosts_files_stay_as_they_are() {
    let _one = serial();
    in_child(|| {
        let rt = Runtime::new().unwrap();
        let (hooked, count) = counting(&rt);
        let mut files = reopen();
        let more = rt
            .attach_all(sites(8).into_iter().map(|s| hook(&rt, s).on_entry(|_| {})))
            .unwrap();
        assert_eq!(tl_add2(1, 2), 3);
        assert_untouched(&mut files);
        in_child(|| {
            assert_eq!(tl_add2(1, 2), 3);
            hooked.detach().unwrap();
            assert_eq!(tl_add2(1, 2), 3);
        })
        .join();
        assert_untouched(&mut files);
        hooked.detach().unwrap();
        rt.detach_all(&more).unwrap();
        assert_eq!((tl_add2(1, 2), count.get()), (3, 1));
        assert_settled(&rt);
        drop((hooked, more));
        drop(rt);
        assert_untouched(&mut files);
    })
    .join();
}

/// A child of `_Fork` runs no handlers, and yet what its parent does later does not reach it.
#[test]
fn what_the_parent_attaches_does_not_reach_children_without_handlers() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (hooked, count) = counting(&rt);
    let (read, go) = pipe();
    // SAFETY:
    // 1. The child calls hooked functions, `read` and `_exit` alone.
    let pid = common::checked(unsafe { _Fork() });
    if pid == 0 {
        let mut is_right = tl_read_byte(read) == 1;
        for (i, site) in sites(40).into_iter().enumerate() {
            is_right &= site(5) == 5 + i as libc::c_long && tl_add2(1, 2) == 3;
        }
        // SAFETY:
        // 1. Leaves at once.
        unsafe { libc::_exit(i32::from(!is_right)) };
    }
    hooked.detach().unwrap();
    rt.synchronize(common::PATIENCE).unwrap();
    let many = sites(40)
        .into_iter()
        .map(|s| hook(&rt, s).override_return(|_| Some(-1)));
    let many = rt.attach_all(many).unwrap();
    assert_eq!(sites(1)[0](5), -1);
    send(go, 1);
    let mut status = -1;
    // SAFETY:
    // 1. Our own child; `status` is writable.
    common::checked(unsafe { libc::waitpid(pid, &raw mut status, 0) });
    assert_eq!(status, 0, "the child ended with this wait status");
    rt.detach_all(&many).unwrap();
    assert_eq!((tl_add2(1, 2), count.get()), (3, 0));
    assert_settled(&rt);
}

#[test]
fn a_limit_of_file_sizes_is_an_error() {
    let _one = serial();
    for (bytes, is_enough) in [(1 << 20, true), (0, false)] {
        in_child(|| {
            limit(libc::RLIMIT_FSIZE, bytes);
            let attached = Runtime::new()
                .and_then(|rt| hook(&rt, ADD2).on_entry(|_| {}).attach().map(|h| (rt, h)));
            assert_eq!(attached.is_ok(), is_enough, "{:?}", attached.err());
            assert_eq!(tl_add2(1, 2), 3);
        })
        .join();
    }
}
