//! The gate: no thread is started while a batch lays traps.
//!
//! A C library starts threads with all signals blocked, and they run a little (`memset`, `memcpy`)
//! before they set the mask that they shall have. A trap there kills the process. So the place in
//! `pthread_create` where the library begins to block signals is held for the time of a change:
//!
//! ```text
//!   pthread_create:   …                       stacks, locks: all before
//!                     li    a7, rt_sigprocmask
//!                     li    a0, SIG_BLOCK
//!              gate:  ecall                   c.j .  while it is closed: whoever comes waits
//!                     …                       behind: blocks SIGTRAP, which can be looked for
//!                     clone
//!                     restore the mask        the new thread does, too, when it is ready
//! ```
//!
//! # Why nobody is starting when the traps are laid
//! 1. *Close*, flush: no hart executes the `ecall` any more.
//! 2. *Pass by* the end of the `ecall` ([`Place::behind`]): whoever was in it has left the kernel,
//!    with SIGTRAP blocked. From here on a thread that creates one shows it, from before `clone`
//!    until after it, and so does the thread that is born.
//! 3. *Two looks* that find nobody who blocks SIGTRAP. When the first has seen a thread's mask
//!    open, that thread has no `clone` before it; who is born before that is listed by the second.
//!
//! Whoever waits at the gate holds no lock of the library, has its signals open, and answers
//! questions ([`crate::threads`]), the first of them in step 2. It spins until it is asked, and
//! then sleeps in the handler of the question ([`wait_here`]), or else those who wait would keep
//! the harts from those who are waited for. It takes a few milliseconds as a rule, the patience of
//! the change at most. The thread that changes must not come by: its signals are blocked, but for
//! faults, SIGTRAP, questions and what the C library keeps for itself.
//!
//! Where no such place is found (another library), the gate is the entry of `pthread_create`, and
//! a thread that is between entry and `clone` when it closes is not known.
//!
//! A child of a fork finds it open (`fork`). A refused flush leaves it open too: a hart may wait
//! until it fetches anew.
//!
//! Key types: [`Held`], [`Gate`], [`Place`]. Neighbours: [`super`], `txn`, `fork`. Source: glibc
//! `nptl/pthread_create.c` (`__pthread_create_2_1`, `start_thread`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Plans;
use super::check::load_half;
use super::script::{self, Half, Shape};
use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::func::Func;
use crate::insn;
use crate::original::original_text;
use crate::state::{self, State};
use crate::sys::{self, BlockedSignals};
use crate::threads::{self, Patience};
use crate::txn::{self, WordPatch};

/// How long step 2 waits. A thread needs the rest of a system call; one that cannot be seen is not
/// waited for.
const PASSING: Duration = Duration::from_millis(500);
/// When threads that run are asked.
const LOOKING: Duration = Duration::from_millis(1);
/// Between two looks of one who waits.
const WAITING: Duration = Duration::from_millis(2);
/// Between two tries to open it.
const OPENING: Duration = Duration::from_millis(1);

/// Where it stands.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Place {
    /// An instruction of `pthread_create`.
    at: RxAddr,
}

impl Place {
    /// What a thread has before it that has executed the first half of a gate of 4 bytes.
    pub(super) fn behind(self) -> RxRange {
        RxRange::new(RxAddr::new(self.at.get().wrapping_add(2)), 4)
    }

    /// Finds it at the first call; no lock of this crate may be held.
    fn of_this_process() -> Option<Self> {
        if !cfg!(target_arch = "riscv64") {
            return None;
        }
        /// 0: not looked for yet.
        static KNOWN: AtomicU64 = AtomicU64::new(0);
        const NONE: u64 = 1;
        let known = match KNOWN.load(Ordering::Relaxed) {
            0 => {
                let found = find().map_or(NONE, |place| place.at.get());
                KNOWN.store(found, Ordering::Relaxed);
                found
            }
            known => known,
        };
        (known != NONE).then(|| Self {
            at: RxAddr::new(known),
        })
    }
}

/// Where it is closed; 0 if it is not. For [`wait_here`].
static CLOSED_AT: AtomicU64 = AtomicU64::new(0);

/// Sleeps while a thread that a question has interrupted at `pc` could do no more than to spin
/// there. Async-signal-safe.
pub(crate) fn wait_here(pc: u64) {
    let is_closed = || {
        // What is executed can be read. It counts, too: it is the parent's in a child that has a
        // copy of the word alone.
        CLOSED_AT.load(Ordering::Acquire) == pc && load_half(RxAddr::new(pc)) == insn::C_J_0
    };
    while is_closed() {
        threads::pause(WAITING);
    }
}

/// Whether it is closed, under the text lock.
pub(crate) struct Gate {
    closed: Option<Closed>,
}

struct Closed {
    at: RxAddr,
    /// What stands there when it is open.
    half: u16,
    /// Batches that want it closed.
    nr_batches: usize,
}

impl Gate {
    pub(crate) const fn open() -> Self {
        Self { closed: None }
    }

    /// What it hides, and where.
    pub(crate) fn hides(&self) -> Option<(RxAddr, u16)> {
        let closed = self.closed.as_ref()?;
        Some((closed.at, closed.half))
    }

    /// One batch less wants it closed; whether others do.
    fn is_left_to_others(&mut self) -> bool {
        match &mut self.closed {
            Some(closed) if closed.nr_batches > 1 => {
                closed.nr_batches -= 1;
                true
            }
            Some(_) | None => false,
        }
    }
}

/// In the child of a fork, over its own copy of the text: whoever closed it does not exist here.
pub(crate) fn open_in_child(state: &mut State) {
    if state.gate.closed.is_some() {
        // What is refused here would have been refused to the copy.
        let _ = open(state);
    }
}

/// One batch's hold of the gate, which opens it when it is dropped. Not to be dropped under the
/// text lock.
pub(super) struct Held {
    place: Option<Place>,
    /// While it is closed.
    signals: Option<BlockedSignals>,
}

/// What a call of [`Held::close`] has come to.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Change {
    /// It has just been closed: see [`Held::pass_by`].
    Closed,
    /// It is as it was: closed before, or never.
    None,
}

impl Held {
    /// No lock of this crate may be held.
    pub(super) fn new() -> Self {
        Self {
            place: Place::of_this_process(),
            signals: None,
        }
    }

    /// Closes it for `plans`, once. Where it cannot be there is none: in text that nobody may
    /// change, or that a site of ours, or one of these plans, covers.
    pub(super) fn close(&mut self, state: &mut State, plans: &Plans) -> Result<Change, TextError> {
        let Some(Place { at }) = self.place.filter(|_| self.signals.is_none()) else {
            return Ok(Change::None);
        };
        if let Some(closed) = &mut state.gate.closed {
            closed.nr_batches += 1;
            self.signals = Some(blocked_signals());
            return Ok(Change::Closed);
        }
        let half = RxRange::new(at, 2);
        let covers = |shape: &Shape| shape.detour.covered().contains(at);
        let is_taken = state.has_site_in(half)
            || state.detours_over(half).next().is_some()
            || plans.iter().any(|(shape, _)| covers(shape));
        if is_taken || txn::present(state, [[at.align_down(4)]])? != [true] {
            self.place = None;
            return Ok(Change::None);
        }
        let half = load_half(at);
        let patch = patch_of(at, half, insn::C_J_0)?;
        let signals = blocked_signals();
        txn::patch_locked(state, &patch)?;
        state.gate.closed = Some(Closed {
            at,
            half,
            nr_batches: 1,
        });
        CLOSED_AT.store(at.get(), Ordering::Release);
        self.signals = Some(signals);
        Ok(Change::Closed)
    }

    /// Waits until whoever came by before it closed shows it by its mask, and makes those sleep who
    /// wait at it. Without the text lock.
    pub(super) fn pass_by(&self) {
        let behind = self.place.map(Place::behind);
        let patience = Patience::Signal {
            after: LOOKING,
            deadline: PASSING,
        };
        // Who cannot be seen is not known to be there.
        let _ = threads::pass_by_until(behind.as_slice(), patience);
    }

    /// Whether it has held anybody's start.
    pub(super) fn is_closed(&self) -> bool {
        self.signals.is_some()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_closed() {
            return;
        }
        // Until it is open: nobody could ever start a thread again.
        loop {
            let mut state = state::lock();
            if state.gate.is_left_to_others() || open(&mut state).is_ok() {
                return;
            }
            drop(state);
            std::thread::sleep(OPENING);
        }
    }
}

/// # Errors
/// Those of mapping memory; it is closed still.
fn open(state: &mut State) -> Result<(), TextError> {
    let Some((at, half)) = state.gate.hides() else {
        return Ok(());
    };
    // A debugger that takes a breakpoint away has opened it.
    if load_half(at) == insn::C_J_0 {
        txn::store_for_good(state, &patch_of(at, insn::C_J_0, half)?)?;
    }
    CLOSED_AT.store(0, Ordering::Release);
    state.gate.closed = None;
    Ok(())
}

/// This thread's signals, but for those that it may have to answer.
fn blocked_signals() -> BlockedSignals {
    let question = threads::question_signal();
    let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];
    // The C library's own: `pthread_cancel`, `setuid`.
    let library = 32..libc::SIGRTMIN();
    let open = faults.into_iter().chain([libc::SIGTRAP]);
    BlockedSignals::but(open.chain(question).chain(library))
}

fn patch_of(at: RxAddr, old: u16, new: u16) -> Result<Vec<WordPatch>, TextError> {
    script::compose(&[Half { at, old, new }], sys::load_text_u32)
}

/// The C library's `pthread_create`, even if somebody has put another one before it.
fn find() -> Option<Place> {
    let addr = |f: *const ()| RxAddr::new(f.expose_provenance() as u64);
    let in_library = Func::all_in(addr(libc::getauxval as *const ()));
    let mut funcs = in_library.ok()?.into_iter();
    let func = match funcs.find(|f| f.name.as_deref() == Some("pthread_create")) {
        Some(func) => func,
        None => Func::find(addr(libc::pthread_create as *const ())).ok()?,
    };
    let entry = func.entry;
    let len_bytes = func.len_bytes.unwrap_or(0);
    let code = original_text(RxRange::new(entry, len_bytes)).unwrap_or_default();
    let halves = code
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    let off = blocking_ecall(&halves.collect::<Vec<_>>()).unwrap_or(0);
    let at = entry.checked_add(off)?;
    Some(Place { at })
}

/// The offset of the one system call of this code that blocks signals.
fn blocking_ecall(code: &[u16]) -> Option<u64> {
    /// As many instructions before it may say which call it is.
    const MOST: usize = 8;
    let (mut found, mut i) = (None, 0);
    let mut before: Vec<u32> = Vec::new();
    while let Some(first) = code.get(i) {
        let len_bytes = insn::len_bytes(*first)?;
        let word = match len_bytes {
            2 => u32::from(*first),
            _ => u32::from(*code.get(i + 1)?) << 16 | u32::from(*first),
        };
        let says = |word: u32| before.iter().rev().take(MOST).any(|w| *w == word);
        let blocks =
            says(insn::LI_A7_SIGPROCMASK) && (says(insn::C_LI_A0_0) || says(insn::LI_A0_0));
        match word {
            insn::ECALL if blocks && found.replace(2 * i as u64).is_some() => return None,
            _ if word == insn::ECALL || insn::is_transfer(word) => before.clear(),
            _ => before.push(word),
        }
        i += usize::from(len_bytes / 2);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From a `pthread_create` of glibc 2.41, by GNU as.
    const BLOCK: [u16; 13] = [
        0x8656, // mv a2, s5
        0x0893, 0x0870, // li a7, 135
        0x4501, // li a0, 0
        0x0597, 0x000b, // auipc a1, 0xb0
        0x8593, 0x6845, // addi a1, a1, 1668
        0x46a1, // li a3, 8
        0x0073, 0x0000, // ecall
        0x749c, // ld a5, 40(s1)
        0xc3f1, // beqz a5, …
    ];

    #[test]
    fn the_call_that_blocks_signals_is_found() {
        assert_eq!(blocking_ecall(&BLOCK), Some(18));
        let with = |i: usize, half: u16| {
            let mut code = BLOCK;
            code[i] = half;
            blocking_ecall(&code)
        };
        assert_eq!(with(3, 0x4509), None, "SIG_SETMASK");
        assert_eq!(with(2, 0x0880), None, "another call");
        assert_eq!(with(8, 0xc3f1), None, "a branch in between");
        assert_eq!(with(9, 0x0013), None, "no call at all");
        let twice = [BLOCK, BLOCK].concat();
        assert_eq!(blocking_ecall(&twice), None, "which of the two?");
        assert_eq!(blocking_ecall(&[0x001f]), None, "no instruction");
    }

    #[test]
    fn half_words_are_exchanged_in_their_words() {
        let word = 0x1234_5678;
        for (off, old, want) in [(0, 0x5678, 0x1234_a001), (2, 0x1234, 0xa001_5678)] {
            let at = RxAddr::new(0x1000 + off);
            let new = insn::C_J_0;
            let patches = script::compose(&[Half { at, old, new }], |_| word).unwrap();
            let [patch] = patches[..] else {
                panic!("{patches:?}");
            };
            assert_eq!((patch.at.get(), patch.old, patch.new), (0x1000, word, want));
        }
    }
}
