//! fork: what either process changes, the other does not see.

use rvbpf_text::{
    Insn, TextError, WordPatch, arm_all, patch_words, restore_all, text_copy, text_poke,
};

use super::fns::*;
use crate::alone;

unsafe extern "C" {
    /// fork without the handlers (glibc 2.34).
    fn _Fork() -> libc::pid_t;
}

/// Runs `child` in a fork made by `fork`; whether it was content.
pub(crate) fn forked(
    fork: unsafe extern "C" fn() -> libc::pid_t,
    child: impl FnOnce() -> bool,
) -> bool {
    // SAFETY: the child calls this crate and `_exit` only.
    let pid = unsafe { fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let is_content = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(!is_content.unwrap_or(false))) };
    }
    let mut status = 0;
    // SAFETY: `pid` is our child and `status` is ours.
    let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(got, pid);
    status == 0
}

#[test]
fn parent_and_child_change_their_own_code() {
    let _alone = alone();
    let images = Images::new();
    let w = words(pad_c_2mod4);
    let (a, b) = images.two_in_reach(w.hi, 100, 200);
    let func = rx(pad_c_2mod4);
    arm_all(&[(w, a)]).unwrap();
    let is_content = forked(libc::fork, || {
        // What the child inherits works, and changes for it alone.
        let inherited = call(func, 5);
        text_poke(w.hi, Insn::Call(a), Insn::Call(b)).unwrap();
        let switched = call(func, 5);
        let image = images
            .map
            .rx()
            .sub((b.get() - images.map.rx().start.get()) as usize, 4);
        text_copy(image.unwrap(), &(300u32 << 20 | 0x513).to_le_bytes()).unwrap();
        let rewritten = call(func, 5);
        restore_all(&[w]).unwrap();
        let restored = call(func, 5);
        eprintln!("child: {inherited} {switched} {rewritten} {restored}");
        (inherited, switched, rewritten, restored) == (101, 201, 301, 6)
    });
    assert!(is_content);
    assert_eq!(call(func, 5), 101, "the parent's site is as it was");
    text_poke(w.hi, Insn::Call(a), Insn::Call(b)).unwrap();
    assert_eq!(call(func, 5), 201, "and so is its image");
    restore_all(&[w]).unwrap();
}

#[test]
fn the_parents_changes_do_not_reach_the_child() {
    let _alone = alone();
    let images = Images::new();
    let w = words(pad_4);
    let (a, b) = images.two_in_reach(w.hi, 100, 200);
    let func = rx(pad_4);
    arm_all(&[(w, a)]).unwrap();
    let mut pipe = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    // SAFETY: the child calls a function of the test, `read` and `_exit` only.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let mut byte = 0u8;
        // SAFETY: room for one byte.
        unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) };
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(call(func, 5) != 101)) };
    }
    text_poke(w.hi, Insn::Call(a), Insn::Call(b)).unwrap();
    assert_eq!(call(func, 5), 201);
    let mut status = -1;
    // SAFETY: one byte of ours.
    unsafe { libc::write(pipe[1], b"x".as_ptr().cast(), 1) };
    // SAFETY: `pid` is our child and `status` is ours.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
    restore_all(&[w]).unwrap();
}

#[test]
fn forks_while_others_change_text_do_not_hang() {
    let _alone = alone();
    let images = Images::new();
    let w = words(pad_c_0mod4);
    let (a, _) = images.two_in_reach(w.hi, 100, 200);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for i in 0..2 {
            let (images, done) = (&images, &done);
            s.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    images.put(0x10_0000 + 64 * i, 7);
                    rvbpf_text::Pad::find(rx(pad_4)).unwrap();
                }
            });
        }
        for _ in 0..20 {
            let is_content = forked(libc::fork, || {
                arm_all(&[(w, a)]).unwrap();
                call(rx(pad_c_0mod4), 5) == 101
            });
            assert!(is_content);
            assert_eq!(call(rx(pad_c_0mod4), 5), 6);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_grandchild_has_its_own_too() {
    let _alone = alone();
    let images = Images::new();
    let w = words(pad_c_0mod4);
    let (a, b) = images.two_in_reach(w.hi, 100, 200);
    let func = rx(pad_c_0mod4);
    arm_all(&[(w, a)]).unwrap();
    assert!(forked(libc::fork, || {
        text_poke(w.hi, Insn::Call(a), Insn::Call(b)).unwrap();
        let is_content = forked(libc::fork, || {
            restore_all(&[w]).unwrap();
            call(func, 5) == 6
        });
        is_content && call(func, 5) == 201
    }));
    assert_eq!(call(func, 5), 101);
    restore_all(&[w]).unwrap();
}

#[test]
fn a_fork_without_handlers_may_not_change_text() {
    let _alone = alone();
    let images = Images::new();
    let w = words(pad_c_0mod4);
    let (a, _) = images.two_in_reach(w.hi, 100, 200);
    let func = rx(pad_c_0mod4);
    arm_all(&[(w, a)]).unwrap();
    let is_content = forked(_Fork, || {
        let poked = text_poke(w.hi, Insn::Call(a), Insn::Nop);
        let patched = patch_words(&[WordPatch {
            at: w.lo,
            old: 0,
            new: 0,
        }]);
        let is_shared =
            |e: &Result<(), TextError>| matches!(e, Err(TextError::SharedWithParent { .. }));
        is_shared(&poked) && is_shared(&patched) && call(func, 5) == 101
    });
    assert!(is_content);
    restore_all(&[w]).unwrap();
    assert_eq!(call(func, 5), 6);
}
