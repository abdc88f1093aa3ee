//! No mapping of this process is writable and executable, at any moment that another thread can
//! see, while hooks come and go.
#![cfg(target_arch = "riscv64")]
#![expect(
    unsafe_code,
    reason = "maps memory in a child, to see that the search finds it"
)]

mod common;

use std::ffi::c_long;
use std::fs::File;
use std::io::Read;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::{assert_settled, hook, in_child, serial, sites};
use rvbpf::Runtime;

/// Lines of `/proc/self/maps` that are writable and executable, and how many lines there are.
fn wx_lines(buf: &mut Vec<u8>) -> (Vec<String>, usize) {
    buf.clear();
    File::open("/proc/self/maps")
        .unwrap()
        .read_to_end(buf)
        .unwrap();
    let text = String::from_utf8_lossy(buf);
    let is_wx = |line: &&str| {
        let rights = line.split(' ').nth(1).unwrap();
        rights.contains('w') && rights.contains('x')
    };
    (
        text.lines().filter(is_wx).map(str::to_owned).collect(),
        text.lines().count(),
    )
}

fn map(rights: i32) -> *mut libc::c_void {
    // SAFETY:
    // 1. A fresh mapping disturbs nothing.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            4096,
            rights,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    at
}

/// In a child, whose mappings are its own.
#[test]
fn the_search_finds_what_it_looks_for() {
    let _one = serial();
    in_child(|| {
        let mut buf = Vec::new();
        assert_eq!(wx_lines(&mut buf).0, [""; 0]);
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let at = map(all);
        let found = wx_lines(&mut buf).0;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with(&format!("{:x}-", at as usize)),
            "{found:?}"
        );
    })
    .join();
}

/// The look-out is fast enough to see a mapping that is there for a moment only, as one would be
/// that is made writable for the time of a store.
#[test]
fn the_search_sees_short_moments() {
    let _one = serial();
    in_child(|| {
        let at = map(libc::PROT_READ | libc::PROT_EXEC);
        let protect = |rights: i32| {
            // SAFETY:
            // 1. Our own mapping, which nobody uses.
            assert_eq!(unsafe { libc::mprotect(at, 4096, rights) }, 0);
        };
        let (seen, looks) = look_out(|| {
            for _ in 0..2000 {
                protect(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
                protect(libc::PROT_READ | libc::PROT_EXEC);
            }
        });
        assert!(!seen.is_empty(), "not seen in {looks} looks");
    })
    .join();
}

/// Runs `body` while another thread looks; what that saw, and how often it looked.
fn look_out(body: impl FnOnce()) -> (Vec<String>, usize) {
    let (stop, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|s| {
        let looker = s.spawn(|| {
            let (mut seen, mut buf) = (Vec::new(), Vec::new());
            while !stop.load(Ordering::SeqCst) {
                let (mut wx, lines) = wx_lines(&mut buf);
                assert!(lines > 5, "the map is empty");
                seen.append(&mut wx);
                looks.fetch_add(1, Ordering::SeqCst);
            }
            seen
        });
        // The first look before the first change.
        common::wait_until("a look", || looks.load(Ordering::SeqCst) > 0);
        body();
        let last = looks.load(Ordering::SeqCst);
        common::wait_until("a last look", || looks.load(Ordering::SeqCst) > last + 1);
        stop.store(true, Ordering::SeqCst);
        (looker.join().unwrap(), looks.load(Ordering::SeqCst))
    })
}

#[test]
fn nothing_is_writable_and_executable() {
    const ROUNDS: usize = 30;
    let _one = serial();
    let (seen, looks) = look_out(|| {
        for round in 0..ROUNDS {
            // New runtimes make and drop packs; new sites replace pages of text.
            let rt = Runtime::new().unwrap();
            let all = sites(8 + 2 * round);
            let builders = all
                .iter()
                .map(|s| hook(&rt, *s).on_entry(|_| {}).on_exit(|_, _| {}));
            let hooks = rt.attach_all(builders).unwrap();
            let more = hook(&rt, all[0])
                .override_return(|_| Some(-1))
                .attach()
                .unwrap();
            assert_eq!(all[0](5), -1);
            more.detach().unwrap();
            for (i, site) in all.iter().enumerate() {
                assert_eq!(site(5), 5 + i as c_long);
            }
            rt.detach_all(&hooks).unwrap();
            assert_settled(&rt);
        }
    });
    println!("{looks} looks during {ROUNDS} rounds");
    assert!(looks >= ROUNDS, "only {looks} looks");
    assert_eq!(seen, [""; 0]);
}
