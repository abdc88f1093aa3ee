//! One system call of one thread is refused.
//!
//! The thread puts itself under a filter that asks a listener about every call that is not in
//! [`FREE`], or about those of one number; the listener, another thread of this process, lets it go
//! on or gives it an errno. Source: `seccomp(2)`, `seccomp_unotify(2)`.

use std::ffi::c_long;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

/// What the thread itself needs, or what has no way to fail that a caller could be told of.
const FREE: [c_long; 14] = [
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_sched_yield,
    libc::SYS_gettid,
    libc::SYS_getpid,
];

/// What is refused.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Refuse {
    Nothing,
    /// The call `nth`, from 0, of those that have this number.
    Nth {
        number: i32,
        nth: usize,
        errno: i32,
    },
}

/// The numbers of the calls that were made, in order; when one is refused, of those of its number.
pub(crate) type Calls = Vec<i32>;

/// Runs `change` on a thread of its own, one of whose calls may be refused.
pub(crate) fn refusing<T: Send>(refuse: Refuse, change: impl FnOnce() -> T + Send) -> (T, Calls) {
    let listener = AtomicI32::new(-1);
    let armed = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            listener.store(filter_this_thread(refuse), Ordering::Release);
            armed.store(true, Ordering::SeqCst);
            let result = change();
            armed.store(false, Ordering::SeqCst);
            result
        });
        while listener.load(Ordering::Acquire) < 0 {
            thread::yield_now();
        }
        let calls = listen(listener.load(Ordering::Acquire), &armed, refuse);
        (worker.join().unwrap(), calls)
    })
}

/// The filter: heap memory (private, anonymous, writable, wherever there is room) is free too.
fn program(refuse: Refuse) -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const NR: u32 = 0;
    const HEAP_PROT: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;
    const HEAP_FLAGS: u32 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
    // Where the lower half of argument `i` is in `seccomp_data`.
    let arg = |i: u32| 16 + 8 * i;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut steps = vec![step(LOAD, NR, 0, 0)];
    let allow = step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
    match refuse {
        Refuse::Nothing => {
            let free = |nr: c_long| [step(EQUAL, nr as u32, 0, 1), allow];
            steps.extend(FREE.into_iter().flat_map(free));
        }
        // Each question costs two switches of threads.
        Refuse::Nth { number, .. } => steps.extend([step(EQUAL, number as u32, 1, 0), allow]),
    }
    steps.extend([
        step(EQUAL, libc::SYS_mmap as u32, 0, 5),
        step(LOAD, arg(2), 0, 0),
        step(EQUAL, HEAP_PROT, 0, 3),
        step(LOAD, arg(3), 0, 0),
        step(EQUAL, HEAP_FLAGS, 0, 1),
        allow,
        step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
    ]);
    steps
}

/// Puts the calling thread, and no other, under the filter; gives the listener's descriptor.
fn filter_this_thread(refuse: Refuse) -> i32 {
    let mut steps = program(refuse);
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: 1. the flag takes plain numbers.
    let rc = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(rc, 0);
    // SAFETY: 1. a program that outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    assert!(fd >= 0, "seccomp: {}", std::io::Error::last_os_error());
    fd as i32
}

/// Answers until the filtered thread has ended.
fn listen(listener: i32, armed: &AtomicBool, refuse: Refuse) -> Calls {
    let mut calls = Calls::new();
    while let Some(notif) = next(listener) {
        let errno = match refuse {
            _ if !armed.load(Ordering::SeqCst) => None,
            Refuse::Nth { nth, errno, .. } if nth == calls.len() => Some(errno),
            _ => None,
        };
        if armed.load(Ordering::SeqCst) {
            calls.push(notif.data.nr);
        }
        answer(listener, notif.id, errno);
    }
    // SAFETY: 1. our own descriptor, closed once.
    unsafe { libc::close(listener) };
    calls
}

/// The next question; `None` when nobody is left who could ask.
fn next(listener: i32) -> Option<libc::seccomp_notif> {
    let mut poll = libc::pollfd {
        fd: listener,
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        // SAFETY: 1. one descriptor to poll.
        unsafe { libc::poll(&raw mut poll, 1, 1000) };
        if poll.revents & libc::POLLIN != 0 {
            // SAFETY: 1. plain numbers, for which zeros are valid.
            let mut notif: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: 1. room for one question.
            let rc =
                unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notif) };
            if rc == 0 {
                return Some(notif);
            }
        } else if poll.revents & libc::POLLHUP != 0 {
            return None;
        }
    }
}

fn answer(listener: i32, id: u64, errno: Option<i32>) {
    let mut resp = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: errno.map_or(0, |errno| -errno),
        flags: match errno {
            Some(_) => 0,
            None => libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        },
    };
    loop {
        // SAFETY: 1. an answer to the question of this number. Whoever asked may be gone.
        let rc = unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut resp) };
        // This thread is asked by signal where it is.
        if rc == 0 || std::io::Error::last_os_error().kind() != ErrorKind::Interrupted {
            break;
        }
    }
}
