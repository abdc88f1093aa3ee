//! Children that run in this memory, of `vfork` and `posix_spawn`, while entries of what they call
//! become jumps and traps and go back.
//!
//! A child of `vfork` has our handlers, so nothing may go wrong in it. One of `posix_spawn` has
//! reset them, so none is started while traps are laid on the way to a jump, and a trap that stays
//! ends it before it has become another program; the parent gets a wait status that says so, and is
//! as it was.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rvbpf::{EntryKind, Error, FuncModel, Hook, Runtime, TrampError};

use crate::common::{
    PATIENCE, Stopper, assert_settled, code_at, hook, is_asleep, pipe, send, serial, vfork,
    wait_for, wait_until,
};
use crate::fns::{CASES, Case, Takes};

/// How long hooks come and go.
const CHURN: Duration = Duration::from_secs(5);
/// Between two children of a thread: who has one all the time is never seen elsewhere.
const BREATH: Duration = Duration::from_millis(20);
const ARG: c_long = 1000;

fn cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(|case| case.takes != Takes::Nothing)
}

fn attach_all(rt: &Runtime) -> Vec<Hook> {
    let begin = |case: &Case| hook(rt, case.f).on_entry(|_| {}).allow_trap();
    rt.attach_all(cases().map(begin)).unwrap()
}

fn check() {
    for case in cases() {
        assert_eq!((case.f)(ARG), (case.want)(ARG), "{}", case.name);
    }
}

/// In a child: reads a byte from the pipe whose end `arg` points to, if to any, and calls all.
extern "C" fn call_all(arg: *mut c_void) -> c_int {
    let mut byte = 0_u8;
    if !arg.is_null() {
        // SAFETY: 1. the parent, which waits in `vfork`, keeps the descriptor there.
        let fd = unsafe { arg.cast::<c_int>().read() };
        // SAFETY: 1. room for a byte.
        unsafe { libc::read(fd, (&raw mut byte).cast(), 1) };
    }
    // No panic in here: this is the stack of a child, and the heap and the locks of its parent.
    let is_wrong = |case: &Case| (case.f)(ARG) != (case.want)(ARG);
    cases().position(is_wrong).map_or(0, |n| 1 + n as c_int)
}

/// The wait status of a child that calls all, after it has read from `fd`.
fn call_all_in_child(fd: Option<&c_int>) -> c_int {
    let arg = fd.map_or(ptr::null_mut(), |fd| ptr::from_ref(fd).cast_mut().cast());
    vfork(call_all, arg)
}

#[test]
fn programs_run_in_children_of_vfork() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let hooks = attach_all(&rt);
    let runs = || hooks.iter().map(|h| h.stats().runs).collect::<Vec<_>>();
    check();
    // Some of the functions call others.
    let once = runs();
    assert!(once.iter().all(|runs| *runs > 0));
    let mut sum = once.clone();
    for _ in 0..20 {
        assert_eq!(call_all_in_child(None), 0);
        // Its memory is ours.
        sum.iter_mut()
            .zip(&once)
            .for_each(|(sum, once)| *sum += once);
        assert_eq!(runs(), sum);
    }
    rt.detach_all(&hooks).unwrap();
    assert_eq!(call_all_in_child(None), 0);
    assert_eq!(runs(), sum);
    assert_settled(&rt);
}

#[test]
fn hooks_come_and_go_under_children_of_vfork() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let before: Vec<_> = cases().map(|c| code_at(c.f as *const ())).collect();
    let (stop, children) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut changes, mut in_use) = (0, 0);
    thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(call_all_in_child(None), 0, "a child went wrong");
                    children.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(BREATH);
                }
            });
        }
        let end = Instant::now() + CHURN;
        while Instant::now() < end {
            let hooks = attach_all(&rt);
            check();
            rt.detach_all(&hooks).unwrap();
            check();
            // The functions' own instructions are back, if the threads have let themselves be seen.
            match rt.synchronize(PATIENCE / 4) {
                Ok(()) => changes += 2,
                Err(Error::Tramp(TrampError::StillInUse { .. })) => in_use += 1,
                Err(other) => panic!("{other}"),
            }
            check();
        }
    });
    let children = children.into_inner();
    println!("{children} children of vfork under {changes} changes, {in_use} waited in vain");
    assert!(changes > 0 && children > 20, "{changes}, {in_use}");
    assert_settled(&rt);
    let after: Vec<_> = cases().map(|c| code_at(c.f as *const ())).collect();
    assert_eq!(after, before);
}

/// Its parent cannot be seen to be outside, so what takes more than one store stays a trap. The
/// child comes by all of them.
#[test]
fn a_child_of_vfork_that_stays_keeps_no_hook_away() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // The handlers that it will have are those of now.
    rt.detach_all(&attach_all(&rt)).unwrap();
    assert_settled(&rt);
    let (from, to) = pipe();
    let (tid_to, tid_from) = std::sync::mpsc::channel();
    let parent = thread::spawn(move || {
        tid_to.send(crate::common::gettid()).unwrap();
        call_all_in_child(Some(&from))
    });
    let tid = tid_from.recv().unwrap();
    // A parent in `vfork` is not interruptible: neither asleep nor running.
    let waits = || {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
        is_asleep(tid) || stat.contains(") D ")
    };
    wait_until("a child of vfork", waits);
    let hooks = attach_all(&rt);
    let traps = |hooks: &[Hook]| {
        let is_trap = |h: &&Hook| h.kind() == Some(EntryKind::Trap);
        hooks.iter().filter(is_trap).count()
    };
    let for_good = cases().filter(|c| c.takes == Takes::Trap).count();
    assert!(traps(&hooks) > for_good, "{hooks:?}");
    check();
    send(to, 1);
    assert_eq!(parent.join().unwrap(), 0, "the child went wrong");
    assert!(hooks.iter().all(|h| h.stats().runs >= 2));
    rt.detach_all(&hooks).unwrap();
    assert_settled(&rt);
    // Nobody is in the way any more.
    let hooks = attach_all(&rt);
    assert_eq!(traps(&hooks), for_good);
    rt.detach_all(&hooks).unwrap();
    assert_settled(&rt);
    for fd in [from, to] {
        // SAFETY: 1. our own descriptor, closed once.
        unsafe { libc::close(fd) };
    }
}

/// What has become of a child of `posix_spawn`.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Spawned {
    /// It has run, and ended with 0.
    Ran,
    /// There was none, for this errno.
    Not(c_int),
    /// A trap has ended it.
    Trapped,
}

/// Runs the program at `path`, which is told to do nothing, and to say so to nobody.
fn spawn(path: &CStr) -> Spawned {
    let args = [path, c"--exact", c"none"].map(|arg| arg.as_ptr().cast_mut());
    let args: Vec<*mut c_char> = args.into_iter().chain([ptr::null_mut()]).collect();
    let env = [ptr::null_mut()];
    let null = File::create("/dev/null").unwrap();
    let mut quiet = MaybeUninit::uninit();
    let quiet: *mut libc::posix_spawn_file_actions_t = quiet.as_mut_ptr();
    // SAFETY: 1. room for it.
    let rc = unsafe { libc::posix_spawn_file_actions_init(quiet) };
    assert_eq!(rc, 0);
    // SAFETY: 1. initialised; the descriptor stays open.
    let rc = unsafe { libc::posix_spawn_file_actions_adddup2(quiet, null.as_raw_fd(), 1) };
    assert_eq!(rc, 0);
    let mut pid = 0;
    // SAFETY: 1. strings and lists with their ends, initialised actions.
    let errno = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            quiet,
            ptr::null(),
            args.as_ptr(),
            env.as_ptr(),
        )
    };
    // SAFETY: 1. initialised, and not used any more.
    unsafe { libc::posix_spawn_file_actions_destroy(quiet) };
    if errno != 0 {
        return Spawned::Not(errno);
    }
    match wait_for(pid) {
        0 => Spawned::Ran,
        status if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGTRAP => {
            Spawned::Trapped
        }
        status => panic!("a child ended with this wait status: {status:#x}"),
    }
}

const THIS: &CStr = c"/proc/self/exe";
const NOWHERE: &CStr = c"/nowhere";

/// Hooks a function of the C library.
fn hook_libc(rt: &Runtime, name: &str) -> Result<Hook, Error> {
    // SAFETY: 1. nothing is claimed of the function.
    let builder = unsafe { rt.hook_symbol(Some("libc.so.6"), name, FuncModel::untyped()) }?;
    builder.on_entry(|_| {}).allow_trap().attach()
}

/// What each spawned child calls: what has room for a long jump, and what has room for a short one,
/// while the library has islands.
const TAKES_JUMP: [&str; 2] = ["dup2", "execve"];
const TAKES_SHORT_JUMP: &str = "execve";

#[test]
fn spawned_children_pass_jumps() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    for name in TAKES_JUMP {
        let hooked = hook_libc(&rt, name).unwrap();
        assert_eq!(hooked.kind(), Some(EntryKind::Jump), "{name}");
        for _ in 0..10 {
            assert_eq!(spawn(THIS), Spawned::Ran, "{name}");
            assert_eq!(spawn(NOWHERE), Spawned::Not(libc::ENOENT), "{name}");
        }
        assert_eq!(hooked.stats().runs, 20, "{name}");
        hooked.detach().unwrap();
        assert_eq!(spawn(THIS), Spawned::Ran, "{name}");
        assert_eq!(hooked.stats().runs, 20, "{name}");
    }
    assert_settled(&rt);
}

#[test]
fn traps_end_spawned_children() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let at = text::find_symbol(Some("libc.so.6"), TAKES_SHORT_JUMP).unwrap();
    let all = std::iter::from_fn(|| text::Island::reserve(at, text::Need::OnlyWay));
    let _none_left: Vec<text::Island> = all.collect();
    let hooked = hook_libc(&rt, TAKES_SHORT_JUMP).unwrap();
    assert_eq!(hooked.kind(), Some(EntryKind::Trap));
    for _ in 0..10 {
        assert_eq!(spawn(THIS), Spawned::Trapped);
        assert_eq!(spawn(NOWHERE), Spawned::Trapped);
    }
    assert_eq!(hooked.stats().runs, 0);
    hooked.detach().unwrap();
    // Until here the trap leads to the function's copy.
    assert_settled(&rt);
    assert_eq!(spawn(THIS), Spawned::Ran);
    assert_eq!(spawn(NOWHERE), Spawned::Not(libc::ENOENT));
}

/// Each child runs, and no hook is kept away: starts wait while traps are laid on the way to a jump.
/// Parents rest for so long between two children.
fn come_and_go_under_spawned_children(rest: Duration) {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let before = code_at(libc::dup2 as *const ());
    let stop = AtomicBool::new(false);
    let [ran, not_there] = [AtomicU64::new(0), AtomicU64::new(0)];
    let mut changes = 0;
    thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        for (path, want, count) in [
            (THIS, Spawned::Ran, &ran),
            (NOWHERE, Spawned::Not(libc::ENOENT), &not_there),
        ] {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(spawn(path), want);
                    count.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(rest);
                }
            });
        }
        let end = Instant::now() + CHURN;
        while Instant::now() < end {
            let hooked = hook_libc(&rt, TAKES_JUMP[0]).unwrap();
            assert_eq!(hooked.kind(), Some(EntryKind::Jump));
            hooked.detach().unwrap();
            rt.synchronize(PATIENCE).unwrap();
            changes += 2;
        }
    });
    let [ran, not_there] = [ran, not_there].map(AtomicU64::into_inner);
    println!("{ran} children ran, {not_there} were not there, under {changes} changes");
    assert!(changes > 0 && ran > 0 && not_there > 0);
    assert_eq!(spawn(THIS), Spawned::Ran);
    assert_eq!(spawn(NOWHERE), Spawned::Not(libc::ENOENT));
    assert_settled(&rt);
    assert_eq!(code_at(libc::dup2 as *const ()), before);
}

#[test]
fn hooks_come_and_go_under_spawned_children() {
    come_and_go_under_spawned_children(BREATH);
}

#[test]
fn children_in_an_endless_row_keep_no_hook_away() {
    come_and_go_under_spawned_children(Duration::ZERO);
}
