//! Real threads in every state that a proof must see through.
//!
//! The range is a loop in assembly that a thread enters and leaves by a flag. Tests take turns:
//! each one's threads would be inside for the others.

#![expect(unsafe_code, reason = "signals, raw clone and an assembly loop")]

use std::ffi::{c_int, c_void};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::RxAddr;

#[cfg(target_arch = "riscv64")]
std::arch::global_asm!(
    ".pushsection .text.rvbpf_threads_tests, \"ax\"",
    ".balign 16",
    "rvbpf_threads_inside: lw a1, 0(a0)",
    "beqz a1, rvbpf_threads_inside",
    "ret",
    ".balign 16",
    "rvbpf_threads_outside: lw a1, 0(a0)",
    "beqz a1, rvbpf_threads_outside",
    "ret",
    ".popsection",
);
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .text.rvbpf_threads_tests, \"ax\"",
    ".balign 16",
    "rvbpf_threads_inside: mov eax, [rdi]",
    "test eax, eax",
    "je rvbpf_threads_inside",
    "ret",
    ".balign 16",
    "rvbpf_threads_outside: mov eax, [rdi]",
    "test eax, eax",
    "je rvbpf_threads_outside",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn rvbpf_threads_inside(stop: *const AtomicU32);
    fn rvbpf_threads_outside(stop: *const AtomicU32);
}

/// The loop that counts as inside.
fn range() -> [RxRange; 1] {
    let start = rvbpf_threads_inside as *const () as u64;
    [RxRange {
        start: RxAddr::new(start),
        len_bytes: 16,
    }]
}

/// A watch that finds nobody: what remains are threads that cannot be looked at.
pub(super) fn nowhere() -> impl Watch {
    RangesOnly(&[])
}

pub(crate) fn in_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask_at_once(deadline: Duration) -> Patience {
    Patience::Signal {
        after: Duration::ZERO,
        deadline,
    }
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn stuck(tid: i32, why: StuckWhy) -> Result<(), Stuck> {
    Err(Stuck { tid, why })
}

/// Proves the test's range.
fn prove(patience: Patience) -> Result<(), Stuck> {
    pass_by_watch(&RangesOnly(&range()), patience)
}

/// A thread that never blocks.
pub(super) struct Spinner {
    tid: i32,
    stop: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

/// A failed test leaves nobody inside for the others.
impl Drop for Spinner {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::Relaxed);
        LET_HANDLER_GO.store(1, Ordering::Relaxed);
    }
}

impl Spinner {
    fn new(spin: unsafe extern "C" fn(*const AtomicU32), first: fn()) -> Self {
        let (send, tid) = mpsc::channel();
        let stop = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            first();
            sys::set_errno(1234);
            send.send(sys::gettid()).expect("the test waits");
            // Once the flag is set, the first loop is left and this thread ends.
            // SAFETY: 1. the loops only read the flag, which lives until the thread ends.
            unsafe { spin(Arc::as_ptr(&seen)) };
            assert_eq!(sys::errno(), 1234, "the handler keeps errno");
        });
        let tid = tid.recv().expect("the thread starts");
        // Well into the loop.
        std::thread::sleep(Duration::from_millis(20));
        Self {
            tid,
            stop,
            thread: Some(thread),
        }
    }

    pub(super) fn outside() -> Self {
        Self::new(rvbpf_threads_outside, || ())
    }

    fn inside() -> Self {
        Self::new(rvbpf_threads_inside, || ())
    }

    pub(super) fn tid(&self) -> i32 {
        self.tid
    }

    pub(super) fn stop(mut self) {
        self.stop.store(1, Ordering::Relaxed);
        let thread = self.thread.take().expect("stopped once");
        thread.join().expect("the spinner ends well");
    }
}

/// A thread that blocks in `read`.
pub(super) struct Parked {
    tid: i32,
    writer: UnixStream,
    thread: JoinHandle<()>,
}

impl Parked {
    pub(super) fn new() -> Self {
        let (mut reader, writer) = UnixStream::pair().expect("a pair");
        let (send, tid) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            send.send(sys::gettid()).expect("the test waits");
            let mut byte = [0];
            reader.read_exact(&mut byte).expect("read is not disturbed");
            assert_eq!(byte, [42]);
        });
        let tid = tid.recv().expect("the thread starts");
        std::thread::sleep(Duration::from_millis(20));
        Self {
            tid,
            writer,
            thread,
        }
    }

    pub(super) fn stop(mut self) {
        self.writer.write_all(&[42]).expect("the thread reads");
        self.thread.join().expect("the reader ends well");
    }
}

fn block_all_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: 1. `all` is writable.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: 1. `all` was filled; a null old set is allowed.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) };
}

fn send_signal(tid: i32, signo: c_int) {
    // SAFETY: 1. the tests install a handler for it first.
    unsafe { libc::syscall(libc::SYS_tgkill, sys::getpid(), tid, signo) };
}

fn install(signo: c_int, flags: c_int, handler: extern "C" fn(c_int)) {
    // SAFETY: 1. all of its fields are integers or an optional pointer and may be zero.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = flags;
    // SAFETY: 1. the handlers of this file are async-signal-safe.
    unsafe { libc::sigaction(signo, &raw const action, std::ptr::null_mut()) };
}

#[test]
fn blocked_threads_pass_and_feel_nothing() {
    let _turn = in_turn();
    let parked = Parked::new();
    let interrupted = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let sleeper = std::thread::spawn({
        let (interrupted, stop) = (Arc::clone(&interrupted), Arc::clone(&stop));
        move || {
            let spec = libc::timespec {
                tv_sec: 0,
                tv_nsec: 300_000_000,
            };
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: 1. `spec` lives through the call; a null remainder is allowed.
                let ret = unsafe { libc::nanosleep(&raw const spec, std::ptr::null_mut()) };
                interrupted.fetch_add(u64::from(ret != 0), Ordering::Relaxed);
            }
        }
    });
    // A thread that is only starting runs, and may be asked.
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..100 {
        assert_eq!(pass_by(&range(), LONG), Ok(()));
    }
    stop.store(true, Ordering::Relaxed);
    sleeper.join().expect("the sleeper ends");
    assert_eq!(interrupted.load(Ordering::Relaxed), 0, "EINTR");
    parked.stop();
}

#[test]
fn a_thread_that_never_blocks_is_asked() {
    let _turn = in_turn();
    let spinners: Vec<_> = (0..3).map(|_| Spinner::outside()).collect();
    for _ in 0..20 {
        assert_eq!(pass_by(&range(), LONG), Ok(()));
    }
    let polled = prove(Patience::PollOnly(Duration::from_millis(20)));
    assert_eq!(polled.map_err(|stuck| stuck.why), Err(StuckWhy::Running));
    spinners.into_iter().for_each(Spinner::stop);
}

#[test]
fn a_thread_inside_is_named_at_the_deadline() {
    let _turn = in_turn();
    let inside = Spinner::inside();
    let start = Instant::now();
    assert_eq!(
        prove(ask_at_once(SHORT)),
        stuck(inside.tid, StuckWhy::Inside)
    );
    assert!(
        start.elapsed() >= SHORT && start.elapsed() < LONG,
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        pass_by(&range(), SHORT),
        Err(TextError::Stuck { tid: inside.tid })
    );
    // It leaves while it is waited for.
    let stop = Arc::clone(&inside.stop);
    let waiter = std::thread::spawn(|| prove(ask_at_once(LONG)));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!waiter.is_finished(), "it is inside still");
    stop.store(1, Ordering::Relaxed);
    assert_eq!(waiter.join().expect("no panic"), Ok(()));
    inside.stop();
}

static HANDLER_PIPE: AtomicI32 = AtomicI32::new(-1);
static HANDLER_DEPTH: AtomicU32 = AtomicU32::new(0);

/// Blocks until somebody writes to the pipe.
extern "C" fn block_in_handler(_signo: c_int) {
    let mut byte = 0_u8;
    HANDLER_DEPTH.fetch_add(1, Ordering::Relaxed);
    let fd = HANDLER_PIPE.load(Ordering::Relaxed);
    // SAFETY: 1. one byte may be written.
    unsafe { libc::read(fd, (&raw mut byte).cast(), 1) };
    HANDLER_DEPTH.fetch_sub(1, Ordering::Relaxed);
}

fn wait_for_handler() {
    let start = Instant::now();
    while HANDLER_DEPTH.load(Ordering::Relaxed) != 1 {
        assert!(start.elapsed() < LONG, "the handler runs");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn a_handler_that_blocks_does_not_hide_what_it_interrupted() {
    let _turn = in_turn();
    let (reader, mut writer) = UnixStream::pair().expect("a pair");
    HANDLER_PIPE.store(reader.as_raw_fd(), Ordering::Relaxed);
    install(libc::SIGUSR1, libc::SA_RESTART, block_in_handler);
    install(
        libc::SIGUSR2,
        libc::SA_RESTART | libc::SA_ONSTACK,
        block_in_handler,
    );
    for signo in [libc::SIGUSR1, libc::SIGUSR2] {
        let inside = Spinner::inside();
        send_signal(inside.tid, signo);
        wait_for_handler();
        assert_eq!(
            prove(Patience::PollOnly(SHORT)),
            stuck(inside.tid, StuckWhy::Inside)
        );
        inside.stop.store(1, Ordering::Relaxed);
        writer.write_all(&[1]).expect("the handler reads");
        inside.stop();

        // The same from outside passes.
        let outside = Spinner::outside();
        send_signal(outside.tid, signo);
        wait_for_handler();
        assert_eq!(prove(ask_at_once(LONG)), Ok(()));
        outside.stop.store(1, Ordering::Relaxed);
        writer.write_all(&[1]).expect("the handler reads");
        outside.stop();
    }
}

static LET_HANDLER_GO: AtomicU32 = AtomicU32::new(0);

extern "C" fn spin_in_handler(_signo: c_int) {
    // SAFETY: 1. the loop only reads the flag.
    unsafe { rvbpf_threads_outside(&raw const LET_HANDLER_GO) };
}

#[test]
fn frames_are_followed_from_the_signal_stack_to_the_stack_below() {
    let _turn = in_turn();
    let (reader, mut writer) = UnixStream::pair().expect("a pair");
    HANDLER_PIPE.store(reader.as_raw_fd(), Ordering::Relaxed);
    // On the thread's own stack, over the range; then on the signal stack, over the first.
    install(libc::SIGUSR1, libc::SA_RESTART, spin_in_handler);
    install(
        libc::SIGUSR2,
        libc::SA_RESTART | libc::SA_ONSTACK,
        block_in_handler,
    );
    let inside = Spinner::inside();
    LET_HANDLER_GO.store(0, Ordering::Relaxed);
    send_signal(inside.tid, libc::SIGUSR1);
    std::thread::sleep(Duration::from_millis(50));
    // Running in the first handler: it answers for what that one interrupted.
    assert_eq!(
        prove(ask_at_once(SHORT)),
        stuck(inside.tid, StuckWhy::Inside)
    );
    send_signal(inside.tid, libc::SIGUSR2);
    wait_for_handler();
    assert_eq!(
        prove(Patience::PollOnly(SHORT)),
        stuck(inside.tid, StuckWhy::Inside)
    );
    writer.write_all(&[1]).expect("the handler reads");
    LET_HANDLER_GO.store(1, Ordering::Relaxed);
    inside.stop();
}

#[test]
fn threads_that_come_and_go_pass() {
    let _turn = in_turn();
    let stop = Arc::new(AtomicBool::new(false));
    let makers: Vec<_> = (0..2)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut nr_made = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    std::thread::spawn(|| ()).join().expect("an empty thread");
                    nr_made += 1;
                }
                nr_made
            })
        })
        .collect();
    let inside = Spinner::inside();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        assert!(prove(Patience::PollOnly(Duration::from_millis(2))).is_err());
    }
    inside.stop();
    for _ in 0..50 {
        assert_eq!(pass_by(&range(), LONG), Ok(()));
    }
    stop.store(true, Ordering::Relaxed);
    let nr_made: u32 = makers
        .into_iter()
        .map(|maker| maker.join().expect("no panic"))
        .sum();
    assert!(nr_made > 10, "{nr_made}");
}

#[test]
fn a_thread_deaf_to_signals_is_caught_asleep_or_reported() {
    let _turn = in_turn();
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let napper = std::thread::spawn(move || {
        block_all_signals();
        while !seen.load(Ordering::Relaxed) {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(3) {}
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    for _ in 0..10 {
        assert_eq!(pass_by(&range(), LONG), Ok(()));
    }
    stop.store(true, Ordering::Relaxed);
    napper.join().expect("the napper ends");

    let deaf = Spinner::new(rvbpf_threads_outside, block_all_signals);
    assert_eq!(
        prove(ask_at_once(SHORT)),
        stuck(deaf.tid, StuckWhy::SignalBlocked)
    );
    deaf.stop();
}

struct Busy {
    here: bool,
    tid: i32,
    asked_of: AtomicU32,
}

impl Watch for Busy {
    fn ranges(&self) -> &[RxRange] {
        &[]
    }

    fn busy_here(&self) -> bool {
        self.here
    }

    fn busy_of(&self, tid: i32) -> bool {
        self.asked_of.fetch_add(1, Ordering::Relaxed);
        tid == self.tid
    }
}

#[test]
fn a_busy_thread_is_stuck_and_a_busy_caller_at_once() {
    let _turn = in_turn();
    let parked = Parked::new();
    let busy = Busy {
        here: false,
        tid: parked.tid,
        asked_of: AtomicU32::new(0),
    };
    assert_eq!(
        pass_by_watch(&busy, Patience::PollOnly(SHORT)),
        stuck(parked.tid, StuckWhy::Inside)
    );
    assert!(busy.asked_of.load(Ordering::Relaxed) > 1);

    let start = Instant::now();
    let busy = Busy {
        here: true,
        tid: 0,
        asked_of: AtomicU32::new(0),
    };
    assert_eq!(
        pass_by_watch(&busy, ask_at_once(LONG)),
        stuck(sys::gettid(), StuckWhy::Caller)
    );
    assert!(start.elapsed() < SHORT);
    assert_eq!(busy.asked_of.load(Ordering::Relaxed), 0);
    parked.stop();
}

#[test]
fn a_spinner_that_is_busy_answers_so() {
    let _turn = in_turn();
    static SPINNER: AtomicI32 = AtomicI32::new(0);
    struct BusyByTid;
    impl Watch for BusyByTid {
        fn ranges(&self) -> &[RxRange] {
            &[]
        }
        fn busy_here(&self) -> bool {
            sys::gettid() == SPINNER.load(Ordering::Relaxed)
        }
        fn busy_of(&self, tid: i32) -> bool {
            tid == SPINNER.load(Ordering::Relaxed)
        }
    }
    let spinner = Spinner::outside();
    SPINNER.store(spinner.tid, Ordering::Relaxed);
    assert_eq!(
        pass_by_watch(&BusyByTid, ask_at_once(SHORT)),
        stuck(spinner.tid, StuckWhy::Inside)
    );
    SPINNER.store(0, Ordering::Relaxed);
    assert_eq!(pass_by_watch(&BusyByTid, ask_at_once(LONG)), Ok(()));
    spinner.stop();
}

static HANDLER_RESULT: AtomicI32 = AtomicI32::new(0);

/// What a hook program does that detaches: it may itself interrupt the range.
extern "C" fn prove_in_handler(_signo: c_int) {
    let errno = sys::errno();
    let result = match prove(ask_at_once(SHORT)) {
        Err(Stuck {
            tid,
            why: StuckWhy::Caller,
        }) if tid == sys::gettid() => 1,
        Ok(()) => 2,
        _ => 3,
    };
    sys::set_errno(errno);
    HANDLER_RESULT.store(result, Ordering::Relaxed);
}

#[test]
fn a_caller_whose_handler_interrupted_the_range_is_told_so() {
    let _turn = in_turn();
    install(libc::SIGUSR1, libc::SA_RESTART, prove_in_handler);
    for (spinner, want) in [(Spinner::inside(), 1), (Spinner::outside(), 2)] {
        HANDLER_RESULT.store(0, Ordering::Relaxed);
        send_signal(spinner.tid, libc::SIGUSR1);
        let start = Instant::now();
        while HANDLER_RESULT.load(Ordering::Relaxed) == 0 && start.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(HANDLER_RESULT.load(Ordering::Relaxed), want);
        spinner.stop();
    }
}

#[test]
fn many_callers_at_once() {
    let _turn = in_turn();
    let spinners: Vec<_> = (0..2).map(|_| Spinner::outside()).collect();
    let callers: Vec<_> = (0..4)
        .map(|_| std::thread::spawn(|| (0..10).try_for_each(|_| prove(ask_at_once(LONG)))))
        .collect();
    for caller in callers {
        assert_eq!(caller.join().expect("no panic"), Ok(()));
    }
    spinners.into_iter().for_each(Spinner::stop);
}

extern "C" fn vfork_child(_arg: *mut c_void) -> c_int {
    sys::pause(SHORT);
    0
}

#[test]
fn the_parent_of_a_vfork_child_waits_for_it() {
    let _turn = in_turn();
    let (send, tid) = mpsc::channel();
    let parent = std::thread::spawn(move || {
        let mut stack = vec![0_u128; 4096];
        send.send(sys::gettid()).expect("the test waits");
        let top = stack.as_mut_ptr_range().end.cast();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY:
        // 1. The child runs on its own stack, which lives until it has ended (CLONE_VFORK).
        // 2. It only sleeps and exits.
        let pid = unsafe { libc::clone(vfork_child, top, flags, std::ptr::null_mut()) };
        assert!(pid > 0);
        // SAFETY: 1. a null status is allowed.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    });
    let tid = tid.recv().expect("the thread starts");
    std::thread::sleep(Duration::from_millis(20));
    let soon = Patience::PollOnly(Duration::from_millis(20));
    assert_eq!(prove(soon), stuck(tid, StuckWhy::Vfork));
    assert_eq!(prove(ask_at_once(LONG)), Ok(()));
    parent.join().expect("the parent ends");
}

/// Runs `child` in a forked process; its result is the exit code.
fn in_fork(child: fn() -> i32) -> i32 {
    // SAFETY: 1. the child calls only what this module promises to work after a fork, and exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = child();
        // SAFETY: 1. ends the process without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: 1. `status` is writable.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        -status
    }
}

#[test]
fn a_forked_child_proves_its_own_threads() {
    let _turn = in_turn();
    // A question of the parent's is open all the time.
    let inside = Spinner::inside();
    let asker = std::thread::spawn(|| prove(ask_at_once(Duration::from_secs(2))));
    for _ in 0..5 {
        let code = in_fork(|| {
            let spinner = Spinner::outside();
            let all_pass = (0..5).all(|_| prove(ask_at_once(LONG)).is_ok());
            spinner.stop();
            if all_pass { 7 } else { 1 }
        });
        assert_eq!(code, 7);
    }
    assert!(asker.join().expect("no panic").is_err());
    inside.stop();
}

#[test]
fn a_leader_that_has_ended_passes() {
    let _turn = in_turn();
    let code = in_fork(|| {
        std::thread::spawn(|| {
            sys::pause(Duration::from_millis(50));
            let code = if prove(ask_at_once(LONG)).is_ok() {
                7
            } else {
                1
            };
            // SAFETY: 1. ends the process without running anything of the parent's.
            unsafe { libc::_exit(code) };
        });
        // SAFETY: 1. ends this thread only; the other ends the process.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        1
    });
    assert_eq!(code, 7);
}

#[test]
fn what_a_proof_costs() {
    let _turn = in_turn();
    let parked: Vec<_> = (0..16).map(|_| Parked::new()).collect();
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(pass_by(&range(), LONG), Ok(()));
    }
    println!("16 blocked threads: {:?} per proof", start.elapsed() / 20);
    assert_eq!(pass_by(&[], Duration::ZERO), Ok(()));
    parked.into_iter().for_each(Parked::stop);
}
