//! Live sites: a pair of words that does nothing, calls, or jumps.
//!
//! ```text
//!                Call                    Jump
//!   site = hi:   auipc t0, hi20          auipc t1, hi20      which 4 KiB window the target is in
//!          lo:   jalr  t0, lo12(t0)      jalr  x0, lo12(t1)
//!                nop                     nop                 Nop: the auipc may stay
//! ```
//!
//! `t0` and `t1` hold nothing at a function's entry (psABI: temporaries, never arguments). A call
//! tells the target where it came from; a jump leaves the link registers alone, and with them the
//! return-address predictor of the hart: trampolines use it, since they know their site. Both words
//! are naturally aligned, so a hart fetches each whole, old or new (Ziccif). What is left are
//! threads *between* the words, and here is what covers each.
//!
//! # Arming: from nops to a pair
//! 1. **Close.** `hi` becomes a jump over `lo` (`c.j .+8` where a `c.nop` was, its upper half
//!    unchanged; `j .+8` otherwise). Flush. From now on nobody enters between the words.
//! 2. **Pass by.** [`crate::threads::pass_by`] proves of every thread that it is not in
//!    `hi+2..lo+4`, nor will a signal handler return there.
//! 3. **Open.** Store `lo`, then `hi`. Flush.
//!
//! - *A thread executed the old nop at `hi` and stands at `lo`, when `lo` becomes a `jalr`*: it
//!   would jump through a stale register. Step 2 waits for it before step 3 stores `lo`.
//! - *A pad of `c.nop`s: a thread stands at `hi+2`, or `lo+2`*: it would execute the upper half of
//!   our word. In step 1 the upper half of `hi` stays what it was; before step 3 nobody is there.
//! - *A thread sleeps, or a signal frame waits, at any of these places*: the same; step 2 looks
//!   at both.
//! - *A hart still fetches old text in step 3*: new `hi` with old `lo` computes an address and
//!   falls through the nop; old `hi` jumps over whatever `lo` is. Both are a call that began before
//!   the site was armed. In step 1 an old nop leads to an old nop, and step 2 begins after the
//!   flush, when no hart fetches the old `hi` any more.
//!
//! # Switching and disarming: one store
//! While `hi` is an `auipc` that everybody at `lo` has executed, `lo` alone decides, and changes
//! between `jalr`s and `nop` by one store. A thread at `lo` executes the old or the new one, with
//! the register of the same `auipc`. A target in another window needs another `auipc`, and a thread
//! between the two would mix them: that is refused for a live pair
//! ([`TextError::RetargetWindow`]) and goes through step 1 to 3 for a disarmed one.
//!
//! # Restoring: the partner first
//! `lo` becomes its old nops, flush, then `hi`, flush. With the flush between no hart can see the
//! nop at `hi` and the `jalr` at `lo`. In the middle an `auipc` stands before nops, which is
//! harmless for any thread anywhere. A thread that executed the `auipc` finds a nop.
//!
//! The text lock is not held in step 2, so that other sites (and `fork`) need not wait for it;
//! the site is marked busy, and everything is checked again in step 3.
//!
//! Key types: [`Insn`], [`Poke`]. Neighbours: `txn`, `site`, `pad`, [`crate::threads`]. Source:
//! kernel `arch/riscv/kernel/ftrace.c` (the same pair, made safe by `stop_machine`),
//! `bpf_arch_text_poke` in `arch/riscv/net/bpf_jit_comp64.c`; RISC-V profiles, Ziccif.

use std::time::Duration;

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::flush::{self, SyncMode};
use crate::insn;
use crate::pad::PadWords;
use crate::plan::{self, Plan};
use crate::site::Phase;
use crate::state::{self, State};
use crate::sys;
use crate::txn::{self, WordPatch};

/// How long arming waits for threads between the words. They need one instruction to leave, so
/// only a thread that is stopped, or cannot be looked at, takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What stands at a site.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Insn {
    /// Nothing happens (`t0` or `t1` may change).
    Nop,
    /// Goes to the target with `t0` = the address after the site.
    Call(RxAddr),
    /// Goes to the target; `t1` changes.
    Jump(RxAddr),
}

impl Insn {
    /// The two words, or `None` for a nop.
    pub(crate) fn pair(self, site: RxAddr) -> Result<Option<[u32; 2]>, TextError> {
        let (target, pair) = match self {
            Self::Nop => return Ok(None),
            Self::Call(target) => (target, insn::Pair::Call),
            Self::Jump(target) => (target, insn::Pair::Jump),
        };
        pair.words(site, target)
            .map(Some)
            .ok_or(TextError::Reach { site, target })
    }
}

/// One change of a live site of two words, 4-aligned.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Poke {
    /// The first word.
    pub site: RxAddr,
    /// What must stand there.
    pub old: Insn,
    /// What shall stand there.
    pub new: Insn,
}

/// Changes one live site; see [`poke_all`].
///
/// # Errors
/// As [`poke_all`].
#[doc(alias = "bpf_arch_text_poke")]
pub fn text_poke(site: RxAddr, old: Insn, new: Insn) -> Result<(), TextError> {
    poke_all(&[Poke { site, old, new }])
}

/// Changes live sites, all or none, with a constant number of flushes (and, if any site must be
/// armed, one look at all threads). Any thread may be executing there.
///
/// # Errors
/// Those of [`patch_words`](crate::patch_words); [`TextError::Reach`],
/// [`TextError::RetargetWindow`], [`TextError::Busy`], [`TextError::HookedByOthers`] (a detour
/// covers it), [`TextError::Stuck`]. Under qemu-user a
/// site cannot be armed ([`TextError::UnsupportedHost`]), only switched. Every site is as
/// before then.
pub fn poke_all(pokes: &[Poke]) -> Result<(), TextError> {
    poke_to(pokes, Partner::Switched)
}

/// What becomes of the partner of a site that is armed.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Partner {
    /// It leads to the target.
    Switched,
    /// It is a nop; [`PadWords::switch`] comes later.
    Off,
}

fn poke_to(pokes: &[Poke], partner: Partner) -> Result<(), TextError> {
    plan::check_apart(pokes)?;
    let mut state = state::lock_for_change()?;
    let mut plans = plan::plan(&mut state, pokes)?;
    if partner == Partner::Off {
        plans.iter_mut().for_each(|p| p.new[1] = insn::NOP);
    }
    let arms: Vec<&Plan> = plans.iter().filter(|p| p.is_arm()).collect();
    if arms.is_empty() {
        return txn::patch_locked(&mut state, &plan::finish(&plans));
    }
    if flush::sync_mode_of_maps()? == SyncMode::Remap {
        let reason = "a user-mode emulator does not show where its threads are";
        return Err(TextError::UnsupportedHost { reason });
    }
    let closes: Vec<WordPatch> = arms.iter().map(|p| p.close()).collect();
    txn::patch_locked(&mut state, &closes)?;
    for arm in &arms {
        arm.set_phase(&mut state, Phase::Busy);
    }
    drop(state);
    let passed = pass_by(&arms);
    let mut state = state::lock();
    let opened = passed.and_then(|()| txn::patch_locked(&mut state, &plan::finish(&plans)));
    if opened.is_ok() {
        for arm in &arms {
            arm.set_phase(&mut state, Phase::Open);
        }
    } else {
        take_back(&mut state, &arms);
    }
    opened
}

/// Arms pads with calls; see [`poke_all`]. A pad of `c.nop`s or of nops, or one that was armed
/// and has been disarmed.
///
/// # Errors
/// As [`poke_all`].
pub fn arm_all(arms: &[(PadWords, RxAddr)]) -> Result<(), TextError> {
    let pokes: Vec<Poke> = arms
        .iter()
        .map(|(words, target)| Poke {
            site: words.hi,
            old: Insn::Nop,
            new: Insn::Call(*target),
        })
        .collect();
    poke_all(&pokes)
}

/// Gives pads their original nops back, whatever has been armed there, with a constant number of
/// flushes. A pad that is not armed is left as it is.
///
/// # Errors
/// Those of [`patch_words`](crate::patch_words), [`TextError::Busy`]. Every pad is as before then.
pub fn restore_all(pads: &[PadWords]) -> Result<(), TextError> {
    let mut state = state::lock_for_change()?;
    let words: Vec<RxAddr> = pads.iter().flat_map(|p| [p.hi, p.lo]).collect();
    txn::check_mapped(&mut state, &words)?;
    let mut partners = Vec::new();
    let mut firsts = Vec::new();
    for pad in pads {
        let Some(site) = state.sites.get(&pad.hi.get()) else {
            continue;
        };
        if site.phase == Phase::Busy {
            return Err(TextError::Busy { site: pad.hi });
        }
        let to = |at, orig| WordPatch {
            at,
            old: sys::load_text_u32(at),
            new: orig,
        };
        partners.push(to(pad.lo, site.orig[1]));
        firsts.push(to(pad.hi, site.orig[0]));
    }
    restore(&mut state, &partners, &firsts)
}

/// Arms pads for jumps to their targets, switched off: to a call they are still nops, and one
/// store of [`PadWords::switch`] lets them jump. A pad of `c.nop`s or of nops, or one that was
/// armed and is off. See [`poke_all`].
///
/// # Errors
/// As [`poke_all`].
pub fn arm_off_all(arms: &[(PadWords, RxAddr)]) -> Result<(), TextError> {
    let pokes: Vec<Poke> = arms
        .iter()
        .map(|(words, target)| Poke {
            site: words.hi,
            old: Insn::Nop,
            new: Insn::Jump(*target),
        })
        .collect();
    poke_to(&pokes, Partner::Off)
}

/// Which way an armed pad is switched.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Switch {
    /// It jumps to its target.
    On,
    /// It does nothing.
    Off,
}

impl PadWords {
    /// The store that switches this pad, which [`arm_off_all`] has armed for `target`; for
    /// [`patch_words`](crate::patch_words), together with others.
    ///
    /// # Errors
    /// [`TextError::Reach`].
    pub fn switch(&self, target: RxAddr, to: Switch) -> Result<WordPatch, TextError> {
        let pair = insn::Pair::Jump.words(self.hi, target);
        let [_, jump] = pair.ok_or(TextError::Reach {
            site: self.hi,
            target,
        })?;
        Ok(match to {
            Switch::On => WordPatch {
                at: self.lo,
                old: insn::NOP,
                new: jump,
            },
            Switch::Off => WordPatch {
                at: self.lo,
                old: jump,
                new: insn::NOP,
            },
        })
    }

    /// Whether the pad is switched off, so that it can be armed.
    ///
    /// # Errors
    /// [`TextError::PadTaken`] when something stands there that goes elsewhere.
    pub fn check_off(&self) -> Result<(), TextError> {
        let [hi, lo] = self.load();
        if insn::is_nops(lo) {
            return Ok(());
        }
        let found = (u64::from(lo) << 32 | u64::from(hi)).to_le_bytes();
        Err(TextError::PadTaken {
            site: self.hi,
            found,
        })
    }

    /// Whether the pad is armed for `target` and switched off, so that [`PadWords::switch`] is all
    /// that is left to do. Another user of the pad may have armed it for something else.
    pub fn is_armed_off_for(&self, target: RxAddr) -> bool {
        let auipc = insn::Pair::Jump.words(self.hi, target).map(|[hi, _]| hi);
        let [hi, lo] = self.load();
        Some(hi) == auipc && lo == insn::NOP
    }

    fn load(&self) -> [u32; 2] {
        [self.hi, self.lo].map(sys::load_text_u32)
    }

    /// Both words.
    pub fn range(&self) -> RxRange {
        RxRange::new(self.hi, 8)
    }
}

/// Gives pads that [`arm_off_all`] has armed for these targets, and that are off, their original
/// nops back, with a constant number of flushes. A pad that holds something else is left as it is.
///
/// # Errors
/// Those of [`patch_words`](crate::patch_words), [`TextError::Busy`]. Every pad is as before then.
pub fn restore_off_all(pads: &[(PadWords, RxAddr)]) -> Result<(), TextError> {
    let mut state = state::lock_for_change()?;
    let is_armed = |(pad, _): &&(PadWords, RxAddr)| state.sites.contains_key(&pad.hi.get());
    let armed: Vec<_> = pads.iter().filter(is_armed).collect();
    let words = armed.iter().map(|(pad, _)| [pad.hi, pad.lo]);
    let present = txn::present(&mut state, words)?;
    let mut partners = Vec::new();
    let mut firsts = Vec::new();
    for ((pad, target), is_present) in armed.into_iter().zip(present) {
        if !is_present {
            state.sites.remove(&pad.hi.get());
        }
        let Some(site) = state.sites.get(&pad.hi.get()).copied() else {
            continue;
        };
        if site.phase == Phase::Busy {
            return Err(TextError::Busy { site: pad.hi });
        }
        let now = [pad.hi, pad.lo].map(sys::load_text_u32);
        let auipc = insn::Pair::Jump.words(pad.hi, *target).map(|[hi, _]| hi);
        if Some(now[0]) == auipc && now[1] == insn::NOP {
            partners.push(WordPatch {
                at: pad.lo,
                old: now[1],
                new: site.orig[1],
            });
            firsts.push(WordPatch {
                at: pad.hi,
                old: now[0],
                new: site.orig[0],
            });
        }
    }
    restore(&mut state, &partners, &firsts)
}

/// The partners first, then, after a flush, the first words; all or none.
fn restore(
    state: &mut State,
    partners: &[WordPatch],
    firsts: &[WordPatch],
) -> Result<(), TextError> {
    txn::patch_locked(state, partners)?;
    if let Err(e) = txn::patch_locked(state, firsts) {
        // `hi` is the auipc that it was, so the partner may come back.
        let back: Vec<WordPatch> = partners
            .iter()
            .map(|p| WordPatch {
                old: p.new,
                new: p.old,
                ..*p
            })
            .collect();
        let _ = txn::patch_locked(state, &back);
        return Err(e);
    }
    for first in firsts {
        state.sites.remove(&first.at.get());
    }
    Ok(())
}

/// Waits until no thread is between the words of any of these sites.
fn pass_by(arms: &[&Plan]) -> Result<(), TextError> {
    if !cfg!(target_arch = "riscv64") {
        // Only our own maps can be changed there, and nothing executes in them.
        return Ok(());
    }
    let inside: Vec<RxRange> = arms
        .iter()
        .filter_map(|p| p.hi.checked_add(2))
        .map(|after_first_half| RxRange::new(after_first_half, 6))
        .collect();
    crate::threads::pass_by(&inside, PATIENCE)
}

/// Opens closed sites again with the words that they had. A closed word can become any nop at any
/// time: whoever stands inside finds what was there.
fn take_back(state: &mut State, arms: &[&Plan]) {
    let back: Vec<WordPatch> = arms
        .iter()
        .map(|p| WordPatch {
            at: p.hi,
            old: p.closed(),
            new: p.old[0],
        })
        .collect();
    let is_back = txn::patch_locked(state, &back).is_ok();
    for arm in arms {
        match (is_back, arm.entry) {
            (true, Some(entry)) => {
                state.sites.insert(arm.hi.get(), entry);
            }
            (true, None) => {
                state.sites.remove(&arm.hi.get());
            }
            // It stays closed, which does nothing to anybody; ours to arm or restore.
            (false, _) if state.sites.contains_key(&arm.hi.get()) => {
                arm.set_phase(state, Phase::Closed);
            }
            // The text went away meanwhile.
            (false, _) => {}
        }
    }
}
