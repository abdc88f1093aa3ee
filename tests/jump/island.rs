//! Functions of the C library that have room for a jump of one word and no more, or that one word
//! changes as a whole: it goes by an island of the library, if there is no room for code nearby.

use std::ffi::c_int;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rvbpf::{EntryKind, FuncModel, Hook, Runtime};

use crate::common::{PATIENCE, Stopper, assert_settled, code_of, serial, wait_until};

/// One jump; and wrappers whose second instruction is the system call.
const NAMES: [&str; 7] = [
    "pthread_mutex_unlock",
    "waitpid",
    "munmap",
    "mprotect",
    "execve",
    "sched_yield",
    "getpid",
];

/// Calls that came in, and that came back.
static CALLS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];
static RETURNS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// No traps are allowed.
fn hook_all(rt: &Runtime) -> Vec<Hook> {
    let begin = |(i, name): (usize, &&str)| {
        // SAFETY: 1. nothing is claimed of the function.
        let builder = unsafe { rt.hook_symbol(Some("libc.so.6"), name, FuncModel::untyped()) };
        let builder = builder.unwrap_or_else(|e| panic!("{name}: {e}"));
        let count = |nr: &AtomicU64| nr.fetch_add(1, Ordering::Relaxed);
        let builder = builder.on_entry(move |_| _ = count(&CALLS[i]));
        builder.on_exit(move |_, _| _ = count(&RETURNS[i]))
    };
    rt.attach_all(NAMES.iter().enumerate().map(begin)).unwrap()
}

/// Calls each of [`NAMES`] once or more.
fn work() {
    let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
    let at = black_box(&raw mut mutex);
    // SAFETY: 1. an initialised mutex that stays where it is.
    assert_eq!(unsafe { libc::pthread_mutex_lock(at) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::pthread_mutex_unlock(at) }, 0);
    let mut status: c_int = 0;
    // SAFETY: 1. takes nothing.
    let pid = unsafe { libc::getpid() };
    // SAFETY: 1. room for a status. This process is not its own child.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    assert_eq!((waited, errno()), (-1, libc::ECHILD));
    let (read, anonymous) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: 1. a new mapping.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, read, anonymous, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: 1. our own page, which nothing refers to.
    assert_eq!(unsafe { libc::mprotect(page, 4096, libc::PROT_NONE) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munmap(page, 4096) }, 0);
    // SAFETY: 1. strings with their zeros, and empty lists. There is no such program.
    let ran = unsafe {
        libc::execve(
            c"/no/program".as_ptr(),
            [ptr::null()].as_ptr(),
            [ptr::null()].as_ptr(),
        )
    };
    assert_eq!((ran, errno()), (-1, libc::ENOENT));
    // SAFETY: 1. no conditions.
    assert_eq!(unsafe { libc::sched_yield() }, 0);
    // SAFETY: 1. no conditions.
    assert_eq!(unsafe { libc::getpid() } as u32, std::process::id());
}

fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

#[test]
fn one_jump_and_wrappers_of_system_calls() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let mut before = Vec::new();
    for round in 0..6 {
        let hooks = hook_all(&rt);
        let nr = || CALLS.each_ref().map(|nr| nr.load(Ordering::Relaxed));
        let nr_before = nr();
        work();
        for (i, (hook, name)) in hooks.iter().zip(NAMES).enumerate() {
            assert_eq!(hook.kind(), Some(EntryKind::Jump), "{name}");
            assert!(nr()[i] > nr_before[i], "{name} ran, round {round}");
        }
        rt.detach_all(&hooks).unwrap();
        let nr_detached = nr();
        work();
        assert_eq!(nr(), nr_detached);
        if round % 2 == 0 {
            rt.synchronize(PATIENCE).unwrap();
            let now: Vec<_> = hooks.iter().map(|h| code_of(h.func())).collect();
            before = if before.is_empty() {
                now.clone()
            } else {
                before
            };
            assert_eq!(now, before, "round {round}");
        }
    }
    assert_settled(&rt);
    // Of calls that come back.
    let both = CALLS.iter().zip(&RETURNS);
    for ((calls, returns), name) in both.zip(NAMES) {
        let nr = calls.load(Ordering::Relaxed);
        assert!(
            (1..=nr).contains(&returns.load(Ordering::Relaxed)),
            "{name}"
        );
    }
}

#[test]
fn they_come_and_go_under_load() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let stop = AtomicBool::new(false);
    let nr_worked = AtomicU64::new(0);
    thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    work();
                    nr_worked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..15 {
            let hooks = hook_all(&rt);
            work();
            rt.detach_all(&hooks).unwrap();
            if round % 2 == 0 {
                rt.synchronize(PATIENCE).unwrap();
            }
        }
        let now = nr_worked.load(Ordering::Relaxed);
        wait_until("they work", || nr_worked.load(Ordering::Relaxed) > now + 3);
    });
    assert_settled(&rt);
}

/// One store leads a call to the old or the new: nothing must be known of a thread that hears no
/// signal, never sleeps, and comes by all the time.
#[test]
fn one_word_changes_under_a_thread_that_never_shows_where_it_is() {
    fn block_all() {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: 1. room for a set.
        unsafe { libc::sigfillset(set.as_mut_ptr()) };
        // SAFETY: 1. a whole set; a null old one is allowed.
        let done =
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) };
        assert_eq!(done, 0);
    }
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. nothing is claimed of the function.
    let hook = || unsafe { rt.hook_symbol(Some("libc.so.6"), "getpid", FuncModel::untyped()) };
    let hook = || {
        hook()
            .unwrap()
            .on_entry(|_| _ = CALLS.fetch_add(1, Ordering::Relaxed))
    };
    let probe = hook().attach().unwrap();
    let (entry, code) = (probe.func(), code_of(probe.func()));
    probe.detach().unwrap();
    rt.synchronize(PATIENCE).unwrap();
    let original = code_of(entry);
    // `li a7, 172`, in one aligned word.
    let is_one_word = entry.get() % 4 == 0 && original[0] & 3 == 3;
    println!("{entry}: {original:02x?} {code:02x?}");
    let (stop, nr_calls) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        scope.spawn(|| {
            if is_one_word {
                block_all();
            }
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: 1. no conditions.
                assert_eq!(unsafe { libc::getpid() } as u32, std::process::id());
                nr_calls.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..10 {
            let hooked = hook().attach().unwrap();
            assert_eq!(hooked.kind(), Some(EntryKind::Jump));
            let now = CALLS.load(Ordering::Relaxed);
            wait_until("it is seen", || CALLS.load(Ordering::Relaxed) > now + 10);
            hooked.detach().unwrap();
            let now = nr_calls.load(Ordering::Relaxed);
            wait_until("it goes on", || nr_calls.load(Ordering::Relaxed) > now + 10);
        }
    });
    assert_settled(&rt);
}
