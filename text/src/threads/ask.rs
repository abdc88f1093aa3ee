//! Asking a running thread by signal where it is.
//!
//! A question is a slot: one word that holds owner, number and state, and a pointer to what is
//! asked. The number of the slot and of the question travel in the signal's value.
//!
//! ```text
//!              claim                publish            handler             handler
//!   Free ───────────────▶ Claimed ──────────▶ Asked ─────────▶ Answering ─────────▶ Outside
//!    ▲   (or owner is                           │                                   Inside
//!    │    another process)        take back     │                                   …
//!    └──────────────────────────────────────────┴──────────────◀────────────── take back
//! ```
//!
//! - Only the owner moves a slot out of Free, Claimed and the answers; Asked leaves by one
//!   compare-and-swap, either of the owner (taken back: the handler will find nothing to do) or of
//!   the handler (then the owner waits for the answer before what is asked can go away). So the
//!   handler reads the [`Question`] only while its owner is kept from dropping it.
//! - Claimed is published to Asked with release, read with acquire: the pointer is seen. An answer
//!   is stored with release, read with acquire: all that the thread did before is seen.
//! - A signal that comes late, twice or from a stranger carries a number that no Asked slot has.
//! - After `fork` the child finds slots of its parent in any state. They carry the parent's
//!   process id and are claimed like free ones; their signals were not inherited.
//!
//! The signal is the highest real-time signal with default disposition. Its handler stays
//! installed: taking it back could let a late signal kill the process.
//!
//! Key types: [`Question`], [`Asked`]. Source: `signal(7)`, `rt_tgsigqueueinfo(2)`.

#![expect(
    unsafe_code,
    reason = "a signal handler, and a pointer that it shares with its asker"
)]

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

use super::Watch;
use super::frames::{
    self, ANSWERED, Bounds, Context, Frames, Marked, PC_OFF, Spans, UC_LINK_OFF, UCONTEXT_BYTES,
    UnknownRun,
};
use super::proc::StackRuns;
use super::sys::{self, Errno};
use crate::bare::Buf;
use crate::signal::{self, Action};
use crate::sys::FAULTS;
use crate::syscall::syscall;

/// What a thread is asked.
pub(super) struct Question<'a> {
    pub(super) watch: &'a dyn Watch,
    pub(super) spans: Spans,
    pub(super) runs: StackRuns,
}

impl Question<'_> {
    /// Answers for the thread that runs this, of which `here` is known. Reads its stack through
    /// `buf`: the larger, the fewer system calls.
    ///
    /// Async-signal-safe.
    pub(super) fn answer_here(&self, here: Here, buf: &mut [u8]) -> Answer {
        if self.spans.contains(here.pc) {
            self.watch.seen_at(here.pc);
            return Answer::Inside;
        }
        if self.watch.busy_here() {
            return Answer::Inside;
        }
        let bounds = Bounds {
            runs: &self.runs,
            unknown: UnknownRun::ToFirstHole,
            tp: here.tp,
        };
        match frames::search(here.sp, &self.spans, bounds, Marked::Dead, buf) {
            Ok(Frames::Clear) => Answer::Outside,
            Ok(Frames::Inside { pc }) => {
                self.watch.seen_at(pc);
                Answer::Inside
            }
            Ok(Frames::UnknownStack) => Answer::Inside,
            Err(_) => Answer::Unreadable,
        }
    }
}

impl Question<'_> {
    /// Where a thread that was interrupted at `pc`, in the spans, goes on instead, outside of them.
    ///
    /// Async-signal-safe.
    fn carry(&self, pc: u64) -> Option<u64> {
        let there = match self.spans.contains(pc) {
            true => self.watch.carry(pc)?,
            false => return None,
        };
        (!self.spans.contains(there)).then_some(there)
    }
}

/// Whether there is a context on the stack of the calling thread that a signal has interrupted, or
/// it cannot be seen. Async-signal-safe.
#[inline(never)]
pub(super) fn is_interrupting() -> bool {
    let mut room = Buf::<HANDLER_BUF_BYTES>::new();
    let buf = room.zeroed();
    let sp = buf.as_ptr().expose_provenance() as u64;
    let bounds = Bounds {
        runs: &StackRuns::default(),
        unknown: UnknownRun::ToFirstHole,
        tp: Some(sys::thread_pointer()),
    };
    let found = frames::search(sp, &Spans::EVERYWHERE, bounds, Marked::Dead, buf);
    found != Ok(Frames::Clear)
}

/// Where the thread that answers will go on.
#[derive(Copy, Clone, Debug)]
pub(super) struct Here {
    /// 0: by itself, from a call of this module.
    pub(super) pc: u64,
    pub(super) sp: u64,
    pub(super) tp: Option<u64>,
}

/// What a thread answers.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// Nothing yet.
    None,
    Outside,
    Inside,
    /// It could not read its own stack.
    Unreadable,
}

/// A question under way. Dropping it takes it back.
pub(super) struct Asked<'a> {
    slot: &'static Slot,
    word: Word,
    _question: PhantomData<&'a Question<'a>>,
}

impl<'a> Asked<'a> {
    /// Sends `question` to thread `tid` by `signo`, which [`signal`] gave. `Ok(None)`: all slots
    /// are in use, try later.
    pub(super) fn send(
        question: &'a Question<'a>,
        tid: i32,
        signo: c_int,
    ) -> Result<Option<Self>, Errno> {
        let pid = sys::getpid();
        let Some((index, slot, word)) = claim(pid) else {
            return Ok(None);
        };
        let asked = Self {
            slot,
            word,
            _question: PhantomData,
        };
        slot.question.store(
            std::ptr::from_ref(question).cast_mut().cast(),
            Ordering::Relaxed,
        );
        slot.word
            .store(word.with(State::Asked).0, Ordering::Release);
        queue_signal(pid, tid, signo, word.number() << 8 | index as u64)?;
        Ok(Some(asked))
    }

    pub(super) fn answer(&self) -> Answer {
        match Word(self.slot.word.load(Ordering::Acquire)).state() {
            State::Outside => Answer::Outside,
            State::Inside => Answer::Inside,
            State::Unreadable => Answer::Unreadable,
            _ => Answer::None,
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let (asked, free) = (
            self.word.with(State::Asked).0,
            self.word.with(State::Free).0,
        );
        let word = &self.slot.word;
        if word
            .compare_exchange(asked, free, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            return;
        }
        // The handler is at work or done. It takes no lock and ends soon.
        while Word(word.load(Ordering::Acquire)).state() == State::Answering {
            sys::pause(Duration::from_micros(20));
        }
        word.store(free, Ordering::Relaxed);
    }
}

/// The signal that asks, chosen and given its handler at the first call.
pub(super) fn signal() -> Result<c_int, Errno> {
    let chosen = SIGNAL.load(Ordering::Relaxed);
    if chosen != 0 && disposition(chosen)? == handler_address() {
        return Ok(chosen);
    }
    // Several threads may be here at once: they choose the same signal, or each a good one.
    for signo in (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev() {
        let now = disposition(signo)?;
        if now == handler_address() || (now == libc::SIG_DFL && install(signo)?) {
            SIGNAL.store(signo, Ordering::Relaxed);
            return Ok(signo);
        }
    }
    Err(libc::EBUSY)
}

const HANDLER_BUF_BYTES: usize = 1024;
/// Threads that can be asked at once, by all callers together.
const NR_SLOTS: usize = 64;

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
static SLOTS: [Slot; NR_SLOTS] = [const { Slot::new() }; NR_SLOTS];

struct Slot {
    word: AtomicU64,
    question: AtomicPtr<Question<'static>>,
}

impl Slot {
    const fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            question: AtomicPtr::new(null_mut()),
        }
    }
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum State {
    Free,
    Claimed,
    Asked,
    Answering,
    Outside,
    Inside,
    Unreadable,
}

/// `pid:22 number:39 state:3`. Process ids have at most 22 bits (`PID_MAX_LIMIT`).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Word(u64);

impl Word {
    const NUMBER_MASK: u64 = (1 << 39) - 1;

    fn new(pid: i32, number: u64) -> Self {
        Self((pid as u64) << 42 | (number & Self::NUMBER_MASK) << 3)
    }

    fn pid(self) -> i32 {
        (self.0 >> 42) as i32
    }

    fn number(self) -> u64 {
        self.0 >> 3 & Self::NUMBER_MASK
    }

    fn state(self) -> State {
        match self.0 & 7 {
            0 => State::Free,
            1 => State::Claimed,
            2 => State::Asked,
            3 => State::Answering,
            4 => State::Outside,
            5 => State::Inside,
            _ => State::Unreadable,
        }
    }

    fn with(self, state: State) -> Self {
        Self(self.0 & !7 | state as u64)
    }
}

fn claim(pid: i32) -> Option<(usize, &'static Slot, Word)> {
    let word = Word::new(pid, NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
    let claimed = word.with(State::Claimed).0;
    SLOTS.iter().enumerate().find_map(|(index, slot)| {
        let old = slot.word.load(Ordering::Relaxed);
        let free = Word(old).state() == State::Free || Word(old).pid() != pid;
        let taken = free
            && slot
                .word
                .compare_exchange(old, claimed, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        taken.then_some((index, slot, word))
    })
}

/// Answers the question that the signal's `value` names, if it is still asked. `carry_to` makes
/// the interrupted thread go on elsewhere; it is called before the answer is given, so whoever asks
/// finds no thread that is still to be carried.
fn answer_signal(value: u64, context: &Context<'_>, carry_to: impl FnOnce(u64)) {
    let Some(slot) = SLOTS.get((value & 0xff) as usize) else {
        return;
    };
    let asked = Word(slot.word.load(Ordering::Relaxed));
    if asked.state() != State::Asked || asked.number() != value >> 8 {
        return;
    }
    let answering = asked.with(State::Answering).0;
    if slot
        .word
        .compare_exchange(asked.0, answering, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        return;
    }
    // SAFETY:
    // 1. The slot was Asked with this number, so `send` stored a live question before (acquire).
    // 2. It is Answering now: the owner does not drop the question before the answer is stored,
    //    because `Asked` borrows it and its drop waits.
    // 3. The question is only shared: `Watch` is `Sync`, the rest is plain data nobody writes.
    let question = unsafe { &*slot.question.load(Ordering::Relaxed) };
    let mut here = Here {
        pc: context.pc(),
        sp: context.sp(),
        tp: context.tp(),
    };
    if let Some(there) = question.carry(here.pc) {
        carry_to(there);
        here.pc = there;
    }
    let mut buf = Buf::<HANDLER_BUF_BYTES>::new();
    let answer = question.answer_here(here, buf.zeroed());
    // Leave no copy of a frame behind in dead stack, where the next search would find it.
    buf.zeroed();
    let state = match answer {
        Answer::Outside => State::Outside,
        Answer::Inside => State::Inside,
        Answer::None | Answer::Unreadable => State::Unreadable,
    };
    slot.word.store(asked.with(state).0, Ordering::Release);
}

extern "C" fn on_signal(_signo: c_int, info: *mut libc::siginfo_t, ucontext: *mut c_void) {
    // SAFETY: 1. the kernel passes a live siginfo to an SA_SIGINFO handler.
    let info = unsafe { &*info };
    // SAFETY: 1. it has room for a value whatever its kind; a value that is none of ours names no
    //    open question.
    let value = unsafe { info.si_value() };
    let mut copy = Buf::<UCONTEXT_BYTES>::new();
    // SAFETY: 1. the kernel passes a ucontext, which is longer than this, aligned to 16, and
    //    written by no other thread.
    let bytes = unsafe { copy.copied(ucontext.cast()) };
    let go_on = |there: u64| {
        // SAFETY: 1. the field is inside the ucontext.
        let pc = unsafe { ucontext.byte_add(PC_OFF) };
        // SAFETY:
        // 1. The ucontext is writable and aligned to 16, and nobody else reads or writes it.
        // 2. That the thread may go on `there` is the promise of `Watch::carry`; a call that waits
        //    at a closed entry goes on where the detour leads.
        unsafe { pc.cast::<u64>().write_volatile(there) };
    };
    if let Some(context) = Context::new(bytes) {
        answer_signal(value.sival_ptr.addr() as u64, &context, go_on);
        crate::detour::wait_here(context.pc());
        crate::detour::leave(context.pc(), go_on);
    }
    // No copy of the frame stays behind in dead stack.
    copy.zeroed();
    // SAFETY: 1. the field is inside the ucontext.
    let uc_link = unsafe { ucontext.byte_add(UC_LINK_OFF) };
    // SAFETY:
    // 1. The ucontext is writable and aligned to 16, and nobody else reads or writes it.
    // 2. The kernel does not read this field on the way back.
    unsafe { uc_link.cast::<u64>().write_volatile(ANSWERED) };
}

fn handler_address() -> libc::sighandler_t {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
    handler as *const () as libc::sighandler_t
}

fn disposition(signo: c_int) -> Result<libc::sighandler_t, Errno> {
    Ok(signal::action_of(signo)?.handler)
}

/// Installs the handler; `false` if somebody else was faster.
fn install(signo: c_int) -> Result<bool, Errno> {
    // No other handler runs within ours, so that it ends soon; faults stay deliverable.
    let ours = Action {
        handler: handler_address(),
        flags: (libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK) as u64,
        mask: !signal::set_of(&FAULTS),
    };
    // SAFETY:
    // 1. The handler is async-signal-safe and lives as long as the code of this module; nobody
    //    else uses a signal of default disposition, and if so the old action is put back.
    let before = unsafe { signal::action(signo, Some(&ours)) }?;
    if before.handler == libc::SIG_DFL || before.handler == handler_address() {
        return Ok(true);
    }
    // SAFETY: 1. `before` came from the kernel.
    unsafe { signal::action(signo, Some(&before)) }?;
    Ok(false)
}

/// `siginfo_t` of a queued signal, as the kernel lays it out on 64-bit machines.
#[repr(C)]
struct QueuedInfo {
    signo: c_int,
    errno: c_int,
    code: c_int,
    _pad: c_int,
    pid: i32,
    uid: u32,
    value: u64,
    _rest: [u64; 12],
}

const _: () = assert!(size_of::<QueuedInfo>() == size_of::<libc::siginfo_t>());

fn queue_signal(pid: i32, tid: i32, signo: c_int, value: u64) -> Result<(), Errno> {
    let info = QueuedInfo {
        signo,
        errno: 0,
        code: libc::SI_QUEUE,
        _pad: 0,
        pid,
        uid: 0,
        value,
        _rest: [0; 12],
    };
    let info_at = (&raw const info).expose_provenance();
    let args = [pid as usize, tid as usize, signo as usize, info_at];
    // SAFETY:
    // 1. `info` is a whole siginfo and lives through the call.
    // 2. `signo` has our handler, which does nothing with a value it does not know.
    unsafe { syscall(libc::SYS_rt_tgsigqueueinfo, args) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_word_keeps_its_three_parts() {
        let word = Word::new(4_194_303, (1 << 39) + 7);
        for state in [
            State::Free,
            State::Claimed,
            State::Asked,
            State::Answering,
            State::Outside,
            State::Inside,
            State::Unreadable,
        ] {
            let word = word.with(state);
            assert_eq!(
                (word.pid(), word.number(), word.state()),
                (4_194_303, 7, state)
            );
        }
    }

    #[test]
    fn a_slot_of_another_process_is_free_and_an_own_one_is_not() {
        let _turn = crate::threads::tests::in_turn();
        let pid = sys::getpid();
        let (_, slot, word) = claim(pid).expect("a slot is free");
        let claimed = word.with(State::Claimed).0;
        assert_eq!(slot.word.load(Ordering::Relaxed), claimed);
        let other = claim(pid).expect("another slot is free");
        assert!(!std::ptr::eq(other.1, slot));
        let mut taken = Vec::new();
        while let Some((_, slot, _)) = claim(pid) {
            taken.push(slot);
        }
        assert!(claim(pid + 1).is_some(), "the child's claim");
        for slot in SLOTS
            .iter()
            .filter(|slot| Word(slot.word.load(Ordering::Relaxed)).state() == State::Claimed)
        {
            slot.word.store(0, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_handler_keeps_errno_even_if_its_own_calls_fail() {
        use crate::threads::tests::{Spinner, in_turn};
        struct Failing;
        impl Watch for Failing {
            fn ranges(&self) -> &[crate::RxRange] {
                &[]
            }
            fn busy_here(&self) -> bool {
                sys::read_memory(0, &mut [0]).is_ok()
            }
            fn busy_of(&self, _tid: i32) -> bool {
                false
            }
        }
        let _turn = in_turn();
        let spinner = Spinner::outside();
        let (watch, runs) = (Failing, StackRuns::default());
        let question = Question {
            watch: &watch,
            spans: Spans::new(&[]),
            runs,
        };
        let signo = signal().expect("a free signal");
        let asked = Asked::send(&question, spinner.tid(), signo).expect("sent");
        let asked = asked.expect("a free slot");
        while asked.answer() == Answer::None {
            std::thread::yield_now();
        }
        assert_eq!(asked.answer(), Answer::Outside);
        // It compares its errno.
        spinner.stop();
    }
}
