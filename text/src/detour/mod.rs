//! Detours: a jump, or a trap, written over live code that has no pad.
//!
//! ```text
//!   before          trap              near             far
//!   insn 0          c.ebreak          jal x0, to       auipc t, hi20      t: a register that the
//!   insn 1          (rest of 0, 1)                     jalr x0, lo12(t)   caller knows to be free
//!   insn 2          insn 2            insn 2 …         insn 2 …
//! ```
//!
//! What the jump overlaps, whole instructions, is *covered*. The caller has made a copy of it
//! elsewhere that does the same and goes on behind it ([`Detour::moved`]), and knows that nothing
//! but the entry leads into it: no branch, and no call returns between two covered instructions.
//!
//! The jump is up to eight bytes, has boundaries between instructions inside of it before and
//! after, and may lie across words; a store changes one word. So between the old text and the jump
//! the entry is a trap, a half-word that one aligned store puts there and takes away, and whose
//! handler sends every thread where the jump will.
//!
//! # The gate
//! A thread that is being started blocks all signals, and so does a child of `posix_spawn`, which
//! has no handlers besides: a trap would kill either. So before the first trap of a batch is laid
//! such starts are held, and those under way are waited for; when all is done, whatever came of it,
//! they go on (`gate`). It costs two flushes a batch, and a page of each place (`starts`).
//!
//! # Divert
//! 1. **Close.** `c.ebreak` on the first half-word. Flush.
//! 2. **Pass by.** [`crate::threads`] proves of every thread that it is not in the covered bytes
//!    behind the first half-word, nor will a signal handler return there. A thread that runs there
//!    when it is asked goes on in the copy.
//! 3. **Tail.** Everything of the jump but its first half-word. Flush.
//! 4. **Head.** The first half-word. Flush.
//!
//! A site in which somebody stays is left after step 1: it is a trap, which does the same at the
//! cost of a signal. A later call takes it from there. Trap kinds end there too. When the jump is
//! one word that replaces one instruction of one word (`jal` over four bytes at a multiple of
//! four), one store does it all.
//!
//! # Undivert
//! Backwards: **close** (the head becomes the trap again), **pass by** if the jump has a boundary
//! inside (far), **tail**, **head**, a flush after each. A thread between `auipc` and `jalr` goes
//! on where the `jalr` leads.
//!
//! # Without a trap
//! Where a thread goes on blocking SIGTRAP, step 1 stores `c.j .` instead: threads that come by wait
//! in it, for milliseconds (`window`). If step 2 fails then, all is as it was, and it is tried again
//! for a while. Trap kinds are refused.
//!
//! # Hazard windows
//! | window | covered by |
//! | --- | --- |
//! | a hart fetches the head while it is stored | one aligned store of the word (Ziccif); the half beside it is composed under the text lock and unchanged. Old: a call that began before. New: the trap |
//! | the first instruction has 4 bytes at 2 mod 4, its halves are fetched one by one | of its words only the head's changes in step 1, and the tail's only while no hart fetches anything but the trap (flush of step 1) |
//! | a thread has executed some covered instructions, not all | step 2 waits for it, or carries it to the copy of where it is |
//! | it sleeps there, or a signal handler (or several) runs on top of it | step 2: its system call line, the signal frames on its stacks |
//! | it stays there for ever | the site stays a trap |
//! | a hart fetches the new head and an old tail | flush between 3 and 4: before it, the head is a trap for everybody |
//! | a thread has come by the trap and is on its way to the handler when the trap goes away | the table keeps the address for as long as the detour is there; afterwards the handler finds no breakpoint and sends the thread back, through a `fence.i` |
//! | it has read where to go when the detour is taken away, and that target shall be freed | [`undivert_all`] waits for handlers that have read and not yet written it into their thread's context, where [`crate::threads`] finds it |
//! | a far jump goes away under a thread between its halves | step 2 of undivert |
//! | a debugger, or another tool, has its own breakpoint there | checked before anything is stored; a breakpoint that we know nothing of is its owner's ([`TextError::HookedByOthers`], and the handler hands the signal on) |
//! | somebody replaced the handler of SIGTRAP | it is looked for before each step 1, and installed again |
//! | a thread blocks SIGTRAP; a trap would kill it | looked for before step 1; if it goes on, the change is made without a trap, or refused ([`TextError::SigtrapBlocked`]) |
//! | threads wait in `c.j .` for a thread that waits for one of them, or cannot run because of them | a timer, and a priority (`window`) |
//! | a thread is started, with all signals blocked, after that look or during it; or a child, without handlers | the gate is closed before, and opened after the last flush; in the model, `starting` |
//! | a thread is past the gate, but has not blocked its signals yet: no look shows it | it is in one system call, or in the few instructions that lead to it, at the end of which it is passed by |
//! | its parent opens its signals between the list of threads and the look at the parent | two looks in a row |
//! | the thread that changes comes by the gate: its own signal handler | its signals are blocked while the gate is closed |
//! | two changes at once | the gate is closed by the first and opened by the last |
//! | `fork` while the gate is closed | the child opens it in its own text; handlers of `pthread_atfork` that ran before ours, and children that did not run ours, wait for the parent's |
//! | the flush that opens the gate is refused | it is stored all the same, and tried again |
//! | a debugger has a breakpoint at the gate, or takes it away | it is put back with the rest; what is not `c.j .` any more is left alone |
//! | a trap is laid where one was taken away, between the handler's look into the table and at the text | it looks again, for as long as the table changes |
//! | the frame of a trap's signal, dead on a stack, looks like a thread at the target | the handler marks it ([`crate::threads`]) |
//! | a refused flush | a flush that succeeds, then the way back, wait included; until then traps (see `change`) |
//! | `fork` between two steps | the text lock is held across it; the child has its own text, the table, and sites that are traps or jumps |
//! | `dlclose` between two steps | the sites are forgotten with the page; the batch is refused |
//! | two sites, or a site and other code, share a word | half-words are put together to words under the text lock, from what is there |
//! | stale translations of an emulator | [`crate::txn`] |
//!
//! # What is not covered
//! - A thread that *begins* to block SIGTRAP after step 1 otherwise than by being started, and then
//!   comes by a site that is a trap: the kernel kills the process. A signal handler whose mask
//!   holds it; the C library around `abort`, and where a thread ends (there it calls `madvise`;
//!   `munmap` and `free` if the thread is detached); a program that calls `clone` itself. So
//!   functions that such code calls are better diverted by one store.
//! - A site that *stays* a trap, by its kind or because somebody stayed inside: the gate opens all
//!   the same, and a thread that is started and comes by in its first moments dies. What it calls
//!   there (`memset`, `memcpy`) nobody sleeps in: it stays a trap only under a signal handler that
//!   interrupted its first instructions and lasts longer than [`PATIENCE`]. And every child of
//!   `posix_spawn` that comes by dies of SIGTRAP before `exec`: the call has succeeded, the wait
//!   status says so, and the parent is as it was.
//! - A hook's program that starts a thread or a child on the thread that lays detours, in the midst
//!   of it, waits for itself. One of real-time priority that waits at the gate, on the only hart
//!   that the change could use, keeps it from going on for as long as the scheduler lets it.
//! - A child of `vfork` runs in this memory, and with our handlers, if it is younger than the first
//!   detour. Step 2 does not take its parent for passed by, nor that of a child of `posix_spawn`
//!   where nothing is held: sites that need step 2 stay traps.
//! - A child of `posix_spawn` that waits before `exec` (it opens a FIFO, say) keeps SIGTRAP blocked
//!   in its parent, and the parent cannot be proved outside: changes are refused
//!   ([`TextError::SigtrapBlocked`]). The same goes for a thread that blocks all signals and never
//!   sleeps, or comes by the entry so often that it is always found waiting there: nothing shows
//!   where it is.
//! - Code that is entered in its covered bytes in another way: see above, the caller's promise.
//! - A debugger sees our traps before we do.
//!
//! # Locks
//! The text lock, but not in step 2 of a change with traps. The handlers take none.
//!
//! Key types: [`Detour`], [`DetourKind`]. `gate` comes first and last; `script` is what is done, as
//! data; `change` does it, `window` without traps; `model` tries all interleavings of it. Neighbours: [`crate::poke`]
//! (pads), [`crate::threads`],
//! [`crate::txn`]. Source: kernel `arch/x86/kernel/alternative.c` (`smp_text_poke_batch_finish`,
//! which has the same steps with `int3`), `kernel/kprobes.c` (`optimize_all_kprobes`), RISC-V
//! profiles (Ziccif), unprivileged ISA (Zifencei, "C").

mod change;
mod check;
mod gate;
#[cfg(test)]
mod model;
mod pass;
mod rank;
mod script;
mod starts;
mod table;
mod tick;
mod trap;
mod window;

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::state::{self, State};
use crate::sync::ForkMutexGuard;
use crate::threads;

pub(crate) use change::Entry;
use change::{Batch, IfStuck};
use gate::Held;
pub(crate) use gate::{Gate, open_in_child, wait_here};
use script::{Phase, Script, Shape};
pub(crate) use table::{after_fork, remove as forget};
pub(crate) use tick::leave;

/// How long threads in the covered bytes are waited for. They need a few instructions to leave; a
/// site in which one stays is a trap until a later call.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same when text is given back: there is no other way out than to wait.
const PATIENCE_BACK: Duration = Duration::from_secs(5);
/// How long a thread may block SIGTRAP at least: it may be in a signal handler, between two calls
/// that set its mask, or starting.
const UNBLOCKING: Duration = Duration::from_secs(2);
/// For how long that is waited for alone, at first: one that is starting may have to wait for a hart.
/// Afterwards changes without traps are tried (`window`), so many times; then it is waited for again,
/// twice as long.
const UNBLOCKING_SOON: Duration = Duration::from_millis(500);
/// The same of the thread that was the reason for the last change without traps.
const UNBLOCKING_NEVER: Duration = Duration::from_millis(20);
const WINDOWS: usize = 3;
/// However little of all that a machine that is busy gets done in its time.
const LEAST_ROUNDS: usize = 3;
/// How long entries are closed at a time: short for those who wait there, longer if that was not
/// enough. As long a time, they are open in between.
const FIRST_WINDOW: Duration = Duration::from_millis(10);
const LAST_WINDOW: Duration = Duration::from_millis(320);

/// One function's entry, and where its calls shall go.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Detour {
    /// The function's entry, a multiple of 2.
    pub at: RxAddr,
    /// Where every call shall go, a multiple of 2.
    pub to: RxAddr,
    /// By what.
    pub kind: DetourKind,
    /// The length of the whole instructions that the jump overlaps: for [`DetourKind::Trap`] the
    /// first one, else at least 4 or 8 bytes.
    pub covered_bytes: u8,
    /// For each covered instruction its offset, and where a thread that stands there may as well go
    /// on. Without an entry, threads there are waited for.
    pub moved: Vec<(u8, RxAddr)>,
}

/// What leads a call away.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum DetourKind {
    /// `c.ebreak`, 2 bytes: a signal per call.
    Trap,
    /// `jal x0`, 4 bytes, ±1 MiB.
    Near,
    /// `auipc t; jalr x0, t`, 8 bytes, ±2 GiB.
    Far {
        /// The number of the register `t`, which holds nothing at the entry.
        scratch: u8,
    },
}

/// What became of a site.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum DetourState {
    /// It jumps.
    Jump,
    /// It traps: its kind says so, or a thread stayed in the covered bytes.
    Trap,
}

/// Lays detours, all or none, over live code: on return every call that begins afterwards goes to
/// [`Detour::to`], and whoever was in the covered bytes has gone on in the old code or its copy.
/// Costs a constant number of flushes (five at most; one where one store does it all) and of
/// looks at all threads, however many there are. If traps are needed on the way, `pthread_create`
/// and `posix_spawn` wait meanwhile.
///
/// Gives for each what it became. A site whose threads stay inside remains a
/// [`DetourState::Trap`]; naming the same detour again, later, brings it to its kind. A detour that
/// is there already is left as it is.
///
/// Where a thread goes on blocking SIGTRAP no trap is laid; calls of a site wait then, for a part of
/// a second at most, and sites that have to stay traps are refused.
///
/// Installs a handler of SIGTRAP when a trap is needed, and leaves it installed. On qemu-user,
/// which does not show where its threads are, sites that would have to wait stay traps.
///
/// # Errors
/// [`TextError::Misaligned`], [`TextError::Duplicate`] (two detours overlap),
/// [`TextError::Reach`], [`TextError::Scratch`], [`TextError::NotWholeInsns`],
/// [`TextError::HookedByOthers`] (a breakpoint, an armed pad, another detour),
/// [`TextError::Busy`], [`TextError::SigtrapBlocked`], [`TextError::TrapHandler`],
/// [`TextError::Unmapped`], [`TextError::NotExecutable`], [`TextError::WritableText`],
/// [`TextError::Mismatch`], [`TextError::Flush`], [`TextError::Map`],
/// [`TextError::UnsupportedHost`], [`TextError::SharedWithParent`]. All is as before then; only if
/// the kernel goes on refusing to flush, sites that a hart may have seen stay traps to
/// [`Detour::to`], and [`undivert_all`] takes them away.
#[doc(alias = "register_kprobe")]
pub fn divert_all(detours: &[Detour]) -> Result<Vec<DetourState>, TextError> {
    check::apart(detours)?;
    if detours.is_empty() {
        return Ok(Vec::new());
    }
    let mut gate = Held::new();
    if let Some((state, plans)) = planned(&mut gate, |state| check::divert(state, detours))? {
        Batch::carry_out(state, plans, IfStuck::StaysTrap, PATIENCE)?;
    }
    drop(gate);
    let state = state::lock();
    let became = |detour: &Detour| {
        let entry = state.detours.get(&detour.at.get());
        match entry.map(|entry| entry.phase) {
            Some(Phase::Jump) => Ok(DetourState::Jump),
            Some(_) => Ok(DetourState::Trap),
            // Unmapped by another thread just now.
            None => Err(TextError::Unmapped { addr: detour.at }),
        }
    };
    detours.iter().map(became).collect()
}

/// Takes detours away, all or none: on return their entries hold the original text again, and
/// every call that begins afterwards runs it. Costs a constant number of flushes, and one look at
/// all threads if any is [`DetourKind::Far`].
///
/// Threads that were led to [`Detour::to`] may be there still. From now on each of them shows it to
/// [`threads::pass_by`], in its registers or in a signal frame.
///
/// A detour that is not there (or whose text is not there any more) is left alone.
///
/// # Errors
/// [`TextError::Busy`], [`TextError::HookedByOthers`] (there is another detour there),
/// [`TextError::Stuck`] (a thread stays between the words of a far jump),
/// [`TextError::SigtrapBlocked`], [`TextError::TrapHandler`], [`TextError::Mismatch`],
/// [`TextError::Flush`], [`TextError::Map`], [`TextError::SharedWithParent`]. All is as before
/// then; only if the kernel goes on refusing to flush, sites may stay traps.
#[doc(alias = "unregister_kprobe")]
pub fn undivert_all(detours: &[Detour]) -> Result<(), TextError> {
    undivert_all_within(detours, PATIENCE_BACK)
}

/// [`undivert_all`] that waits for threads between the words of far jumps as long as this.
///
/// # Errors
/// Those of [`undivert_all`].
pub fn undivert_all_within(detours: &[Detour], patience: Duration) -> Result<(), TextError> {
    check::apart(detours)?;
    if detours.is_empty() {
        return Ok(());
    }
    let mut gate = Held::new();
    match planned(&mut gate, |state| check::undivert(state, detours))? {
        Some((state, plans)) => Batch::carry_out(state, plans, IfStuck::Fails, patience),
        None => Ok(()),
    }
}

type Plans = Vec<(Shape, Script)>;

/// Plans under the text lock, which is held on return; sees to it that traps, if any are to be
/// laid, are safe: the gate is closed then, and nobody is starting who came by before. Where a
/// thread goes on blocking SIGTRAP, the change is made without traps: `None`. Both ways are tried in
/// turn, for longer each time: a thread that is starting needs a hart, and so does each look at one.
fn planned(
    gate: &mut Held,
    plan: impl Fn(&mut State) -> Result<Plans, TextError>,
) -> Result<Option<(ForkMutexGuard<'static, State>, Plans)>, TextError> {
    let start = Instant::now();
    let (mut patience, mut window) = (UNBLOCKING_SOON, FIRST_WINDOW);
    let mut round = 0;
    loop {
        round += 1;
        let tid = match planned_with_traps(gate, &plan, patience)? {
            Safe::Yes(planned) => return Ok(Some(planned)),
            Safe::Blocks(tid) => tid,
        };
        // No traps, no gate.
        *gate = Held::new();
        for _ in 0..WINDOWS {
            let (mut state, plans) = plan_locked(&plan)?;
            if Batch::carry_out_waiting(&mut state, plans, window)?.is_some() {
                DEAF.store(tid, Ordering::Relaxed);
                return Ok(None);
            }
            drop(state);
            std::thread::sleep(window);
            window = LAST_WINDOW.min(2 * window);
        }
        if round >= LEAST_ROUNDS && start.elapsed() > UNBLOCKING {
            return Err(TextError::SigtrapBlocked { tid });
        }
        patience = patience.saturating_mul(2);
    }
}

/// The thread that was the reason for the last change without traps.
static DEAF: AtomicI32 = AtomicI32::new(0);

/// Whether traps can be laid.
enum Safe {
    /// Under the lock.
    Yes((ForkMutexGuard<'static, State>, Plans)),
    /// Not while this thread blocks SIGTRAP.
    Blocks(i32),
}

/// Waits until no thread blocks SIGTRAP, with the gate closed if there is anything to wait for. One
/// that goes on blocking it is given this patience; where it is another one each time, threads are
/// on their way out.
fn planned_with_traps(
    gate: &mut Held,
    plan: impl Fn(&mut State) -> Result<Plans, TextError>,
    patience: Duration,
) -> Result<Safe, TextError> {
    let start = Instant::now();
    let mut since = (0, start);
    loop {
        let (mut state, plans) = plan_locked(&plan)?;
        if !plans.iter().any(|(_, script)| script.lays_trap()) {
            return Ok(Safe::Yes((state, plans)));
        }
        trap::install()?;
        if gate.close(&mut state, &plans)? == gate::Change::Closed {
            drop(state);
            gate.pass_by();
            continue;
        }
        let Some(tid) = blocking()? else {
            return Ok(Safe::Yes((state, plans)));
        };
        drop(state);
        if since.0 != tid {
            since = (tid, Instant::now());
        }
        let patience = match DEAF.load(Ordering::Relaxed) == tid {
            true => patience.min(UNBLOCKING_NEVER),
            false => patience,
        };
        if since.1.elapsed() > patience || start.elapsed() > UNBLOCKING {
            return Ok(Safe::Blocks(tid));
        }
        std::thread::sleep(Duration::from_millis(1));
        // Who has come to the gate meanwhile shall not spin.
        gate.pass_by();
    }
}

/// Those plans of which something is left to be done.
fn plan_locked(
    plan: impl Fn(&mut State) -> Result<Plans, TextError>,
) -> Result<(ForkMutexGuard<'static, State>, Plans), TextError> {
    let mut state = state::lock_for_change()?;
    let mut plans = plan(&mut state)?;
    plans.retain(|(_, script)| script.from != script.to);
    Ok((state, plans))
}

/// A thread that blocks SIGTRAP. Two looks: see `gate`.
fn blocking() -> Result<Option<i32>, TextError> {
    match threads::blocking(libc::SIGTRAP)? {
        None => Ok(threads::blocking(libc::SIGTRAP)?),
        some => Ok(some),
    }
}

impl Detour {
    pub(crate) fn covered(&self) -> RxRange {
        RxRange::new(self.at, usize::from(self.covered_bytes))
    }
}
