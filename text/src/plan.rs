//! What each poke of a batch comes to: one store, or the three steps of arming.
//!
//! Everything that can be wrong with a batch is found here, before anything is stored. The
//! reasons behind the rules are in `poke`.
//!
//! Key types: [`Plan`]. Neighbours: `poke` (carries plans out), `site`, `txn`.

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::insn;
use crate::poke::{Insn, Poke};
use crate::site::{Phase, Site};
use crate::state::State;
use crate::sys;
use crate::txn::{self, WordPatch};

/// What one poke comes to.
pub(crate) struct Plan {
    pub(crate) hi: RxAddr,
    pub(crate) lo: RxAddr,
    /// The words now.
    pub(crate) old: [u32; 2],
    /// The words to be.
    pub(crate) new: [u32; 2],
    /// The site's entry before, if it had one.
    pub(crate) entry: Option<Site>,
    step: Step,
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum Step {
    /// One store, of the partner.
    Partner,
    /// Close, pass by, open.
    Arm,
}

impl Plan {
    pub(crate) fn is_arm(&self) -> bool {
        self.step == Step::Arm
    }

    pub(crate) fn closed(&self) -> u32 {
        insn::close(self.old[0])
    }

    pub(crate) fn close(&self) -> WordPatch {
        WordPatch {
            at: self.hi,
            old: self.old[0],
            new: self.closed(),
        }
    }

    pub(crate) fn set_phase(&self, state: &mut State, phase: Phase) {
        let orig = self.entry.map_or(self.old, |e| e.orig);
        state.sites.insert(self.hi.get(), Site { orig, phase });
    }
}

/// The last transaction of all plans: the partners, then the first words of those to be armed.
pub(crate) fn finish(plans: &[Plan]) -> Vec<WordPatch> {
    let partners = plans.iter().map(|p| WordPatch {
        at: p.lo,
        old: p.old[1],
        new: p.new[1],
    });
    let firsts = plans.iter().filter(|p| p.is_arm());
    let firsts = firsts.map(|p| WordPatch {
        at: p.hi,
        old: p.closed(),
        new: p.new[0],
    });
    partners.chain(firsts).collect()
}

/// Sites are aligned and do not share words.
pub(crate) fn check_apart(pokes: &[Poke]) -> Result<(), TextError> {
    if let Some(p) = pokes.iter().find(|p| !p.site.is_aligned(4)) {
        return Err(TextError::Misaligned {
            addr: p.site,
            align_bytes: 4,
        });
    }
    let mut sites: Vec<RxAddr> = pokes.iter().map(|p| p.site).collect();
    sites.sort_unstable();
    match sites.windows(2).find(|w| w[1].get() - w[0].get() < 8) {
        Some(w) => Err(TextError::Duplicate { site: w[1] }),
        None => Ok(()),
    }
}

pub(crate) fn plan(state: &mut State, pokes: &[Poke]) -> Result<Vec<Plan>, TextError> {
    let mut words = Vec::with_capacity(2 * pokes.len());
    for p in pokes {
        let lo = p
            .site
            .checked_add(4)
            .ok_or(TextError::Unmapped { addr: p.site })?;
        words.extend([p.site, lo]);
    }
    txn::check_mapped(state, &words)?;
    pokes
        .iter()
        .zip(words.chunks_exact(2))
        .map(|(p, w)| plan_one(state, p, w[1]))
        .collect()
}

fn plan_one(state: &State, poke: &Poke, lo: RxAddr) -> Result<Plan, TextError> {
    let hi = poke.site;
    let entry = state.sites.get(&hi.get()).copied();
    if entry.is_some_and(|e| e.phase == Phase::Busy) {
        return Err(TextError::Busy { site: hi });
    }
    let found = [sys::load_text_u32(hi), sys::load_text_u32(lo)];
    if state.detours_over(RxRange::new(hi, 8)).next().is_some() {
        let found = (u64::from(found[1]) << 32 | u64::from(found[0])).to_le_bytes();
        return Err(TextError::HookedByOthers { site: hi, found });
    }
    let is_ours = entry.is_some() || state.map_of(hi).is_some();
    match poke.old.pair(hi)? {
        Some(want) => expect_words([hi, lo], want, found)?,
        None => expect_nop([hi, lo], found, entry, is_ours)?,
    }
    let (new, step) = match poke.new.pair(hi)? {
        // Whatever `hi` is, this one store is safe: it takes a jalr away, or changes nothing.
        None if insn::is_nops(found[1]) => (found, Step::Partner),
        None => ([found[0], insn::NOP], Step::Partner),
        Some(new) => {
            // An auipc at `hi` that nobody can have missed: everybody at `lo` has its register.
            let is_open = insn::is_pair_auipc(found[0])
                && entry.is_none_or(|e| e.phase == Phase::Open)
                && found[1] != insn::C_NOP_PAIR;
            match (is_open && new[0] == found[0], insn::is_nops(found[1])) {
                (true, _) => (new, Step::Partner),
                (false, true) => (new, Step::Arm),
                (false, false) => return Err(retarget_error(hi, found[0], poke.new)),
            }
        }
    };
    Ok(Plan {
        hi,
        lo,
        old: found,
        new,
        entry,
        step,
    })
}

fn expect_words(at: [RxAddr; 2], want: [u32; 2], found: [u32; 2]) -> Result<(), TextError> {
    for i in 0..2 {
        if found[i] != want[i] {
            return Err(TextError::Mismatch {
                site: at[i],
                expected: want[i],
                found: found[i],
            });
        }
    }
    Ok(())
}

/// A site is a nop when its partner is one, and its first word is one, or an `auipc` or a jump
/// over the partner that we have put there.
fn expect_nop(
    at: [RxAddr; 2],
    found: [u32; 2],
    entry: Option<Site>,
    is_ours: bool,
) -> Result<(), TextError> {
    let is_closed = entry.is_some_and(|e| found[0] == insn::close(e.orig[0]))
        || (entry.is_some() && found[0] == insn::close(insn::NOP));
    let hi_is_nop =
        insn::is_nops(found[0]) || (is_ours && insn::is_pair_auipc(found[0])) || is_closed;
    for (i, is_nop) in [hi_is_nop, insn::is_nops(found[1])].into_iter().enumerate() {
        if !is_nop {
            return Err(TextError::Mismatch {
                site: at[i],
                expected: insn::NOP,
                found: found[i],
            });
        }
    }
    Ok(())
}

fn retarget_error(site: RxAddr, auipc: u32, new: Insn) -> TextError {
    let window = i64::from((auipc & 0xffff_f000) as i32);
    let mid = site.get().wrapping_add_signed(window);
    let reaches = RxRange::new(RxAddr::new(mid.wrapping_sub(0x800)), 0x1000);
    match new {
        Insn::Call(target) | Insn::Jump(target) => TextError::RetargetWindow {
            site,
            target,
            reaches,
        },
        Insn::Nop => TextError::Busy { site },
    }
}
