//! A timer for the thread that keeps entries closed: it lets this thread through, and opens them
//! if nothing else does.
//!
//! The thread that has stored `c.j .` over functions (`window`) gets a signal four times a millisecond. The
//! handler
//! 1. stores the old heads again if the time is up and the thread has not come as far as to change
//!    the tails: it may be waiting for a lock whose holder waits at one of the entries;
//! 2. leads the thread on if it stands at a closed entry itself.
//!
//! The handler runs on the thread that changes, and nowhere else, so its state is that thread's own;
//! atomics order it for the compiler. It calls no function of the C library, any of which may be
//! closed: bare system calls, and stores through views that were mapped before.
//!
//! Key types: [`Closed`], [`Ticker`]. Neighbours: `window`, `table`, [`crate::txn`]. Source:
//! `timer_create(2)` (`SIGEV_THREAD_ID`).
#![expect(
    unsafe_code,
    reason = "a timer, its signal handler, and a pointer that it shares with its thread"
)]

use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, Ordering};
use std::time::Duration;

use super::check::load_half;
use super::table;
use crate::addr::RxAddr;
use crate::insn::C_J_0;
use crate::signal::set_of;
use crate::sys::{BlockedSignals, FAULTS};
use crate::syscall::{Errno, gettid, syscall};
use crate::txn::Prepared;

/// Hands `go` where a thread goes on that waits at the closed entry `pc`. Async-signal-safe, and
/// calls nothing of the C library.
pub(crate) fn leave(pc: u64, go: impl FnOnce(u64)) {
    // While the table is being read, a thread that takes the entry out of it waits.
    table::lead(pc, |to| {
        if load_half(RxAddr::new(pc)) == C_J_0 {
            go(to);
        }
    });
}

const TICK: Duration = Duration::from_micros(250);

/// Entries that are closed, or about to be.
pub(super) struct Closed<'a> {
    prepared: &'a Prepared,
    /// The old heads.
    opens: &'a [(RxAddr, u16)],
    limit: Duration,
    /// On the clock that never goes back.
    deadline_ns: u64,
    stage: AtomicU8,
    tid: i32,
}

/// May be opened by the timer.
const CLOSED: u8 = 0;
/// The tails are being changed.
const HELD: u8 = 1;
/// The timer has opened them.
#[cfg_attr(
    not(target_arch = "riscv64"),
    allow(dead_code, reason = "stored by the handler")
)]
const OPENED: u8 = 2;

impl<'a> Closed<'a> {
    pub(super) fn new(prepared: &'a Prepared, opens: &'a [(RxAddr, u16)], limit: Duration) -> Self {
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Self {
            prepared,
            opens,
            limit,
            deadline_ns: now_ns().saturating_add(limit_ns),
            stage: AtomicU8::new(CLOSED),
            tid: gettid(),
        }
    }

    /// Stores the old heads. Async-signal-safe.
    pub(super) fn open(&self) -> Result<(), Errno> {
        self.prepared.store(self.opens.iter().copied())
    }

    #[cfg_attr(
        not(target_arch = "riscv64"),
        allow(dead_code, reason = "called by the handler")
    )]
    fn tick(&self) {
        let is_late = now_ns() >= self.deadline_ns;
        if is_late && self.stage.load(Ordering::SeqCst) != HELD {
            // Once a hart has heard of it, it is open; `window` flushes again. Each time: a store that
            // this has interrupted may close them once more.
            let _ = self.open();
            self.stage.store(OPENED, Ordering::SeqCst);
        }
    }
}

/// What the handler looks at. One window at a time: the text lock is held.
static NOW: AtomicPtr<Closed<'static>> = AtomicPtr::new(null_mut());
/// The thread that has put it there.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// The signal that has the handler; 0: none yet.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The timer runs, and this thread gets no other signal, while this lives.
pub(super) struct Ticker<'a> {
    closed: &'a Closed<'a>,
    timer: i32,
    _signals: BlockedSignals,
    _here: PhantomData<*const ()>,
}

impl<'a> Ticker<'a> {
    /// `None`: there is no signal, or no timer, to be had.
    pub(super) fn start(closed: &'a Closed<'a>) -> Option<Self> {
        debug_assert!(closed.limit > TICK, "no time at all");
        let signo = handler::signal()?;
        let signals = BlockedSignals::but_for(set_of(&FAULTS), set_of(&[signo]));
        let timer = create_timer(signo, closed.tid)?;
        let ticker = Self {
            closed,
            timer,
            _signals: signals,
            _here: PhantomData,
        };
        OWNER.store(closed.tid, Ordering::SeqCst);
        NOW.store(
            std::ptr::from_ref(closed).cast_mut().cast(),
            Ordering::SeqCst,
        );
        // Dropped, and so deleted, if it does not start.
        set_timer(timer).then_some(ticker)
    }

    /// From here on the timer opens nothing. `false`: it has.
    pub(super) fn hold(&self) -> bool {
        let stage = &self.closed.stage;
        stage
            .compare_exchange(CLOSED, HELD, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

impl Drop for Ticker<'_> {
    fn drop(&mut self) {
        // SAFETY: 1. a timer of this process, not used after this.
        let _ = unsafe { syscall(libc::SYS_timer_delete, [self.timer as usize]) };
        NOW.store(null_mut(), Ordering::SeqCst);
    }
}

/// `struct sigevent` with `SIGEV_THREAD_ID`, as the kernel lays it out on 64-bit machines.
#[repr(C)]
struct SigEvent {
    value: u64,
    signo: i32,
    notify: i32,
    tid: i32,
    _rest: [i32; 11],
}

const _: () = assert!(size_of::<SigEvent>() == 64);

fn create_timer(signo: i32, tid: i32) -> Option<i32> {
    let event = SigEvent {
        value: 0,
        signo,
        notify: libc::SIGEV_THREAD_ID,
        tid,
        _rest: [0; 11],
    };
    let mut timer: i32 = -1;
    let args = [
        libc::CLOCK_MONOTONIC as usize,
        (&raw const event).expose_provenance(),
        (&raw mut timer).expose_provenance(),
    ];
    // SAFETY: 1. the kernel reads one and writes the other, and both live.
    unsafe { syscall(libc::SYS_timer_create, args) }.ok()?;
    // SAFETY: 1. this function's own; the kernel wrote it behind the compiler's back.
    Some(unsafe { (&raw const timer).read_volatile() })
}

fn set_timer(timer: i32) -> bool {
    let tick = libc::timespec {
        tv_sec: 0,
        tv_nsec: i64::from(TICK.subsec_nanos()),
    };
    let spec = libc::itimerspec {
        it_interval: tick,
        it_value: tick,
    };
    let args = [timer as usize, 0, (&raw const spec).expose_provenance(), 0];
    // SAFETY: 1. the kernel reads `spec`, which lives; a null old value is allowed.
    unsafe { syscall(libc::SYS_timer_settime, args) }.is_ok()
}

fn now_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let args = [
        libc::CLOCK_MONOTONIC as usize,
        (&raw mut now).expose_provenance(),
    ];
    // SAFETY: 1. the kernel writes `now`, which lives.
    let _ = unsafe { syscall(libc::SYS_clock_gettime, args) };
    // SAFETY: 1. this function's own; the kernel wrote it behind the compiler's back.
    let now = unsafe { (&raw const now).read_volatile() };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(target_arch = "riscv64")]
mod handler {
    use std::ffi::{c_int, c_void};
    use std::sync::atomic::Ordering;

    use super::{NOW, OWNER, SIGNAL, leave};
    use crate::signal::{self, Action};
    use crate::syscall::gettid;
    use crate::threads;

    /// The highest real-time signal with default disposition, or the one that is ours already.
    pub(super) fn signal() -> Option<c_int> {
        let chosen = SIGNAL.load(Ordering::Relaxed);
        if chosen != 0 && signal::action_of(chosen).ok()?.handler == address() {
            return Some(chosen);
        }
        let free = (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev().find(|signo| {
            let now = signal::action_of(*signo);
            now.is_ok_and(|now| now.handler == libc::SIG_DFL)
        })?;
        // SAFETY: 1. it is async-signal-safe.
        let before = unsafe { signal::action(free, Some(&ours())) }.ok()?;
        if before.handler != libc::SIG_DFL {
            // Another thread of the host was faster.
            // SAFETY: 1. it was there before.
            let _ = unsafe { signal::action(free, Some(&before)) };
            return None;
        }
        SIGNAL.store(free, Ordering::Relaxed);
        Some(free)
    }

    fn address() -> libc::sighandler_t {
        let handler: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_tick;
        handler as *const () as libc::sighandler_t
    }

    fn ours() -> Action {
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        Action {
            handler: address(),
            flags: flags as u64,
            mask: u64::MAX,
        }
    }

    unsafe extern "C" fn on_tick(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
        // A late one, of a window that is over, may meet that of another thread.
        if OWNER.load(Ordering::SeqCst) == gettid() {
            // SAFETY:
            // 1. What it points to lives until the window's end, at which it is null again; that
            //    end and this handler are the same thread's.
            if let Some(closed) = unsafe { NOW.load(Ordering::SeqCst).as_ref() } {
                closed.tick();
            }
        }
        // SAFETY: 1. the kernel passes the context that it will restore; nobody else uses it.
        let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
        let pc = &mut context.uc_mcontext.__gregs[0];
        leave(*pc, |there| *pc = there);
        // No more than a copy, once this has returned: see `threads::frames`.
        context.uc_link = std::ptr::without_provenance_mut(threads::ANSWERED as usize);
    }
}

/// Other architectures hook nothing.
#[cfg(not(target_arch = "riscv64"))]
mod handler {
    pub(super) fn signal() -> Option<i32> {
        let _ = (&super::NOW, &super::OWNER, &super::SIGNAL);
        None
    }
}

#[cfg(all(test, target_arch = "riscv64"))]
mod tests {
    use super::*;
    use crate::map::{Backing, CodeMap, Place};
    use crate::{state, text_copy};

    /// `li a0, 1; ret` and `li a0, 2; ret`.
    const CODE: [u16; 4] = [0x4505, 0x8082, 0x4509, 0x8082];

    /// Closes the first function, which `table` leads to the second or not, and calls it on the
    /// thread that has closed it. What it gave, and whether it was still closed.
    fn call_closed(limit: Duration, is_known: bool) -> (u64, bool) {
        let map = CodeMap::new(4096, Place::Anywhere, Backing::Memfd).unwrap();
        let bytes: Vec<u8> = CODE.iter().flat_map(|half| half.to_le_bytes()).collect();
        let at = map.rx().start;
        let there = at.checked_add(4).unwrap();
        text_copy(map.rx().sub(0, bytes.len()).unwrap(), &bytes).unwrap();
        let mut state = state::lock();
        let prepared = Prepared::new(&mut state, &[at]).unwrap();
        if is_known {
            table::insert(&[(at, there)]);
        }
        let opens = [(at, CODE[0])];
        let closed = Closed::new(&prepared, &opens, limit);
        let ticker = Ticker::start(&closed).expect("there is a timer");
        prepared.store([(at, C_J_0)].into_iter()).unwrap();
        let entry = std::ptr::with_exposed_provenance::<()>(at.get() as usize);
        // SAFETY: 1. code of this type, see `CODE`.
        let f = unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u64>(entry) };
        let got = f();
        let is_held = ticker.hold();
        assert_eq!(load_half(at) == C_J_0, is_held);
        closed.open().unwrap();
        drop(ticker);
        table::remove(&[at]);
        drop(state);
        (got, is_held)
    }

    #[test]
    fn entries_are_opened_when_the_time_is_up() {
        assert_eq!(call_closed(Duration::from_millis(20), false), (1, false));
    }

    #[test]
    fn the_thread_that_has_closed_an_entry_is_led_on() {
        assert_eq!(call_closed(Duration::from_secs(20), true), (2, true));
    }
}
