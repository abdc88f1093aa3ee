//! Hooks that come and go under threads that block all signals, which a trap would kill: of what
//! the thread that changes calls itself, and of what an allocator calls with its locks held.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rvbpf::{EntryKind, Error, FuncModel, Hook, Runtime, TrampError};

use crate::common::{PATIENCE, Stopper, assert_settled, serial, wait_until};

/// What has room for a jump of these is hooked.
const NAMES: [&str; 10] = [
    "malloc",
    "free",
    "memcpy",
    "memset",
    "syscall",
    "mmap",
    "mprotect",
    "clock_gettime",
    "pthread_mutex_lock",
    "dup2",
];

/// Between two rounds of a thread: one that comes by all the time is found waiting at the entry, and
/// is not proved outside.
const REST: Duration = Duration::from_millis(200);

fn block_all() {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: 1. room for a set.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: 1. a whole set; a null old one is allowed.
    let done = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) };
    assert_eq!(done, 0);
}

/// Allocates as much as makes an arena grow, and gives it back.
fn work() {
    let all: Vec<Vec<u8>> = (1..20).map(|i| vec![i as u8; 4000 * i]).collect();
    assert!(
        black_box(&all)
            .iter()
            .enumerate()
            .all(|(i, v)| v[i] == i as u8 + 1)
    );
}

fn hook_jump(rt: &Runtime, name: &str) -> Result<Hook, Error> {
    // SAFETY: 1. nothing is claimed of the function.
    let builder = unsafe { rt.hook_symbol(Some("libc.so.6"), name, FuncModel::untyped()) }?;
    builder.on_entry(|_| {}).attach()
}

#[test]
fn what_everybody_calls_is_hooked_under_threads_that_block_all_signals() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let stop = AtomicBool::new(false);
    let rounds = [const { AtomicU64::new(0) }; 3];
    let mut nr_hooked = 0;
    thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        for (i, nr) in rounds.iter().enumerate() {
            let stop = &stop;
            scope.spawn(move || {
                let is_deaf = i < 2;
                if is_deaf {
                    block_all();
                }
                while !stop.load(Ordering::Relaxed) {
                    work();
                    nr.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(if is_deaf { REST } else { REST / 50 });
                }
            });
        }
        let go_on = || {
            let before = rounds.each_ref().map(|nr| nr.load(Ordering::Relaxed));
            let has = |(nr, before): (&AtomicU64, u64)| nr.load(Ordering::Relaxed) > before;
            wait_until("every thread goes on", || {
                rounds.iter().zip(before).all(has)
            });
        };
        go_on();
        for name in NAMES {
            let hooked = match hook_jump(&rt, name) {
                Ok(hooked) => hooked,
                Err(Error::Tramp(TrampError::CannotMove { .. })) => continue,
                Err(e) => panic!("{name}: {e}"),
            };
            assert_eq!(hooked.kind(), Some(EntryKind::Jump), "{name}");
            work();
            hooked.detach().unwrap();
            rt.synchronize(PATIENCE)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            go_on();
            nr_hooked += 1;
        }
    });
    println!("{nr_hooked} hooked");
    assert!(nr_hooked > 5, "{nr_hooked}");
    assert_settled(&rt);
}
