//! SIGTRAP is shared: handlers before ours and after ours, and threads that block it.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use rvbpf_text::{
    Detour, DetourKind, DetourState, RxRange, TextError, divert_all, threads, undivert_all,
};

use super::detour_fns::*;
use super::fns::*;
use super::fork::forked;
use super::park::parked_in;
use crate::alone;

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

static NR_FIRST: AtomicU32 = AtomicU32::new(0);
static NR_SECOND: AtomicU32 = AtomicU32::new(0);
/// Whether the masks that a handler finds are those that it asked for.
static NR_BAD_MASKS: AtomicU32 = AtomicU32::new(0);
/// What the second handler found when it was installed.
static OLDER: AtomicUsize = AtomicUsize::new(0);

/// Steps over the breakpoint of `d_foreign`.
fn step_over(info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's siginfo.
    let info = unsafe { &*info };
    // SAFETY: a breakpoint has an address.
    let addr = unsafe { info.si_addr() } as u64;
    // SAFETY: the kernel passes the context that it will restore.
    let regs = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.__gregs };
    if regs[0] != rx(d_foreign).get() || addr != regs[0] {
        // SAFETY: ends the process.
        unsafe { libc::_exit(98) };
    }
    regs[0] += 2;
}

extern "C" fn first(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    NR_FIRST.fetch_add(1, Ordering::SeqCst);
    let is_blocked = |signal| {
        // SAFETY: all zero is a valid set.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: a null new set only asks.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set) };
        // SAFETY: the set is live.
        unsafe { libc::sigismember(&raw const set, signal) == 1 }
    };
    let is_good = is_blocked(libc::SIGUSR1) && !is_blocked(libc::SIGUSR2);
    NR_BAD_MASKS.fetch_add(u32::from(!is_good), Ordering::SeqCst);
    step_over(info, context);
}

/// Knows nothing itself: hands on what it was given when it was installed.
extern "C" fn second(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    NR_SECOND.fetch_add(1, Ordering::SeqCst);
    let older = OLDER.load(Ordering::SeqCst);
    // SAFETY: a handler of this kind was there.
    let older = unsafe { std::mem::transmute::<usize, Handler>(older) };
    older(signal, info, context);
}

/// Installs a handler; what was there before.
fn install(action: usize, blocks: &[c_int]) -> libc::sigaction {
    // SAFETY: all zero is a valid `sigaction`.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = action;
    new.sa_flags = libc::SA_SIGINFO;
    for signal in blocks {
        // SAFETY: the set is live.
        unsafe { libc::sigaddset(&raw mut new.sa_mask, *signal) };
    }
    let mut old = new;
    // SAFETY: both are live, and the handlers are async-signal-safe.
    unsafe { libc::sigaction(libc::SIGTRAP, &raw const new, &raw mut old) };
    old
}

fn trap(i: usize) -> [Detour; 1] {
    [SITES[i].detour(DetourKind::Trap, rx(d_target))]
}

#[test]
fn handlers_before_and_after_ours_are_asked_once() {
    let _alone = alone();
    let (site, other) = (trap(1), trap(5));
    let before = install(first as usize, &[libc::SIGUSR1]);
    divert_all(&site).unwrap();
    let counts = || [&NR_FIRST, &NR_SECOND].map(|n| n.swap(0, Ordering::SeqCst));
    counts();
    for _ in 0..10 {
        assert_eq!(call(SITES[1].at(), 5), 5 + LED);
        assert_eq!(call(rx(d_foreign), 5), 10);
    }
    assert_eq!(counts(), [10, 0], "before ours");
    assert_eq!(NR_BAD_MASKS.load(Ordering::SeqCst), 0);
    // One that comes later is asked first, hands on to ours, and is not disturbed.
    let ours = install(second as usize, &[]);
    OLDER.store(ours.sa_sigaction, Ordering::SeqCst);
    assert_eq!(call(SITES[1].at(), 5), 5 + LED);
    assert_eq!(call(rx(d_foreign), 5), 10);
    assert_eq!(counts(), [1, 2], "after ours");
    // The next change puts ours in front; who hands on to ours does not go in circles.
    divert_all(&other).unwrap();
    assert_eq!(call(SITES[5].at(), 5), 5 + LED);
    assert_eq!(counts(), [0, 0]);
    assert_eq!(call(rx(d_foreign), 5), 10);
    assert_eq!(counts(), [1, 1], "in front of both");
    // One that hands on nothing, too.
    install(first as usize, &[libc::SIGUSR1]);
    undivert_all(&other).unwrap();
    divert_all(&other).unwrap();
    assert_eq!(call(SITES[5].at(), 5), 5 + LED);
    assert_eq!(call(rx(d_foreign), 5), 10);
    assert_eq!(counts(), [1, 0]);
    undivert_all(&site).unwrap();
    undivert_all(&other).unwrap();
    assert_eq!(call(rx(d_foreign), 5), 10);
    // SAFETY: gives the handler of before back.
    unsafe { libc::sigaction(libc::SIGTRAP, &raw const before, std::ptr::null_mut()) };
}

/// How a child ends that does this.
fn status_of(child: impl FnOnce()) -> i32 {
    // SAFETY: the child calls this crate and `_exit` only.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: `pid` is our child and `status` is ours.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    status
}

#[test]
fn what_nobody_handles_ends_as_the_kernel_would_end_it() {
    let _alone = alone();
    for (action, dies_of_sent) in [(libc::SIG_DFL, true), (libc::SIG_IGN, false)] {
        let with_trap = || {
            install(action, &[]);
            divert_all(&trap(1)).unwrap();
            if call(SITES[1].at(), 5) != 5 + LED {
                // SAFETY: ends the child.
                unsafe { libc::_exit(97) };
            }
        };
        let trapped = status_of(|| {
            with_trap();
            call(rx(d_foreign), 5);
        });
        assert!(libc::WIFSIGNALED(trapped), "{trapped:#x}");
        assert_eq!(libc::WTERMSIG(trapped), libc::SIGTRAP);
        let sent = status_of(|| {
            with_trap();
            // SAFETY: a signal to this thread.
            unsafe { libc::raise(libc::SIGTRAP) };
        });
        assert_eq!(libc::WIFSIGNALED(sent), dies_of_sent, "{sent:#x}");
        assert_eq!(sent == 0, !dies_of_sent, "{sent:#x}");
    }
    // A handler that is reset by its first signal.
    let reset = status_of(|| {
        // SAFETY: all zero is a valid `sigaction`.
        let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
        new.sa_sigaction = first as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
        // SAFETY: it is live, and the handler async-signal-safe.
        unsafe { libc::sigaction(libc::SIGTRAP, &raw const new, std::ptr::null_mut()) };
        divert_all(&trap(1)).unwrap();
        if call(rx(d_foreign), 5) != 10 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(97) };
        }
        call(rx(d_foreign), 5);
    });
    assert!(libc::WIFSIGNALED(reset), "{reset:#x}");
}

/// A thread that blocks SIGTRAP until it is told not to.
fn with_a_deaf_thread(while_deaf: impl FnOnce(i32, &dyn Fn())) {
    let (tid, may_hear) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|s| {
        s.spawn(|| {
            // SAFETY: all zero is a valid set.
            let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
            // SAFETY: the set is live.
            unsafe { libc::sigaddset(&raw mut set, libc::SIGTRAP) };
            // SAFETY: the set is live; a null old set is allowed.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
            // SAFETY: takes nothing.
            tid.store(unsafe { libc::gettid() } as u32, Ordering::SeqCst);
            parked_in(|| may_hear.load(Ordering::SeqCst) != 0);
            // SAFETY: as above.
            unsafe {
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut())
            };
            parked_in(|| may_hear.load(Ordering::SeqCst) == 2);
        });
        parked_in(|| tid.load(Ordering::SeqCst) != 0);
        let hear = || may_hear.store(1, Ordering::SeqCst);
        while_deaf(tid.load(Ordering::SeqCst) as i32, &hear);
        may_hear.store(2, Ordering::SeqCst);
    });
}

/// Takes the thread's signal stack away, and gives it back: traps are on its own stack meanwhile.
fn without_signal_stack(f: impl FnOnce()) {
    // SAFETY: all zero is a valid description.
    let mut before: libc::stack_t = unsafe { std::mem::zeroed() };
    let none = libc::stack_t {
        ss_flags: libc::SS_DISABLE,
        ..before
    };
    // SAFETY: both are live, and the thread is not on that stack.
    let taken = unsafe { libc::sigaltstack(&raw const none, &raw mut before) };
    assert_eq!(taken, 0);
    f();
    // SAFETY: it is as it was; a null old one is allowed.
    let given = unsafe { libc::sigaltstack(&raw const before, std::ptr::null_mut()) };
    assert_eq!(given, 0);
}

/// What the kernel has pushed for a trap lies in dead stack afterwards, and may lie in the frame of
/// somebody who has not written there.
#[test]
fn a_trap_that_has_been_led_on_is_not_somebody_inside() {
    #[inline(never)]
    fn ask_over_dead_stack(range: RxRange) -> Result<(), TextError> {
        let mut dead = std::mem::MaybeUninit::<[u8; 16 << 10]>::uninit();
        std::hint::black_box(dead.as_mut_ptr());
        let asked = threads::pass_by(&[range], Duration::from_secs(1));
        std::hint::black_box(dead.as_mut_ptr());
        asked
    }
    let _alone = alone();
    let detours = trap(5);
    let target = RxRange::new(detours[0].to, 8);
    assert_eq!(divert_all(&detours), Ok(vec![DetourState::Trap]));
    without_signal_stack(|| {
        for _ in 0..3 {
            assert_eq!(call(SITES[5].at(), 5), 5 + LED);
            assert_eq!(ask_over_dead_stack(target), Ok(()));
        }
    });
    undivert_all(&detours).unwrap();
}

#[test]
fn a_thread_that_blocks_sigtrap_is_named() {
    let _alone = alone();
    let before = SITES[5].bytes();
    with_a_deaf_thread(|tid, hear| {
        assert_eq!(divert_all(&trap(5)), Err(TextError::SigtrapBlocked { tid }));
        assert_eq!(SITES[5].bytes(), before);
        // What needs no trap is done.
        let direct = [SITES[2].detour(DetourKind::Near, rx(d_target))];
        assert_eq!(divert_all(&direct), Ok(vec![DetourState::Jump]));
        assert_eq!(call(SITES[2].at(), 5), 5 + LED);
        undivert_all(&direct).unwrap();
        // For a short while it is waited for.
        std::thread::scope(|s| {
            let diverting = s.spawn(|| divert_all(&trap(5)));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!diverting.is_finished());
            hear();
            assert_eq!(diverting.join().unwrap(), Ok(vec![DetourState::Trap]));
        });
    });
    // Taking a trap away needs none.
    with_a_deaf_thread(|_, _| undivert_all(&trap(5)).unwrap());
    assert_eq!(SITES[5].bytes(), before);
    assert!(forked(libc::fork, || divert_all(&trap(5)).is_ok()));
}
