//! Everything that can be wrong with a batch of detours, found before anything is stored.
//!
//! The text must be what the caller took it for: as many whole instructions as the detour says, no
//! breakpoint among them, no pad that is armed, no other detour. What each site comes to is a
//! [`Script`].
//!
//! Neighbours: `script`, `state`, [`crate::txn`] (what is mapped).

use super::script::{self, Phase, Script, Shape};
use super::{Detour, DetourKind, Plans};
use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::flush::{self, SyncMode};
use crate::insn;
use crate::state::State;
use crate::sys;
use crate::txn;

/// Detours are aligned, long enough for their jump, and do not overlap.
pub(super) fn apart(detours: &[Detour]) -> Result<(), TextError> {
    for detour in detours {
        for addr in [detour.at, detour.to] {
            if !addr.is_aligned(2) {
                return Err(TextError::Misaligned {
                    addr,
                    align_bytes: 2,
                });
            }
        }
        if let DetourKind::Far { scratch } = detour.kind {
            if !(1..32).contains(&scratch) {
                return Err(TextError::Scratch {
                    site: detour.at,
                    reg: scratch,
                });
            }
        }
        let jump_bytes = script::jump_bytes(detour.kind);
        if detour.covered_bytes < jump_bytes {
            return Err(not_whole(detour, detour.covered_bytes));
        }
        if detour.at.checked_add(0x100).is_none() {
            return Err(TextError::Unmapped { addr: detour.at });
        }
    }
    let mut covered: Vec<RxRange> = detours.iter().map(Detour::covered).collect();
    covered.sort_by_key(|range| range.start);
    match covered.windows(2).find(|w| w[0].end() > w[1].start) {
        Some(w) => Err(TextError::Duplicate { site: w[1].start }),
        None => Ok(()),
    }
}

/// What each detour comes to, in the order given.
pub(super) fn divert(state: &mut State, detours: &[Detour]) -> Result<Plans, TextError> {
    let words = |d: &Detour| script::words_of(d.at, usize::from(d.covered_bytes));
    let mut words: Vec<RxAddr> = detours.iter().flat_map(words).collect();
    words.sort_unstable();
    words.dedup();
    // Forgets what is no longer ours, too.
    txn::check_mapped(state, &words)?;
    let can_wait = flush::sync_mode_of_maps()? != SyncMode::Remap;
    let plan = |detour| {
        let (shape, from) = match state.detours.get(&detour_key(detour)) {
            Some(entry) => (same(detour, entry)?, entry.phase),
            None => (fresh(state, detour)?, Phase::Bare),
        };
        let mut script = Script::new(&shape, from, shape.goal());
        if script.pass.is_some() && !can_wait {
            // A user-mode emulator does not show where its threads are.
            script = Script::new(&shape, from, Phase::Trap);
        }
        Ok((shape, script))
    };
    detours.iter().map(plan).collect()
}

/// The way back of each detour that is there.
pub(super) fn undivert(state: &mut State, detours: &[Detour]) -> Result<Plans, TextError> {
    let is_laid = |detour: &&Detour| state.detours.contains_key(&detour_key(detour));
    let laid: Vec<&Detour> = detours.iter().filter(is_laid).collect();
    let words = |d: &&Detour| script::words_of(d.at, usize::from(d.covered_bytes));
    let present = txn::present(state, laid.iter().map(words))?;
    let mut plans = Vec::with_capacity(laid.len());
    for (detour, is_present) in laid.into_iter().zip(present) {
        if !is_present {
            state.forget_sites(RxRange::new(detour.at, 2));
        }
        let Some(entry) = state.detours.get(&detour_key(detour)) else {
            continue;
        };
        let shape = same(detour, entry)?;
        let script = Script::new(&shape, entry.phase, Phase::Bare);
        plans.push((shape, script));
    }
    Ok(plans)
}

fn detour_key(detour: &Detour) -> u64 {
    detour.at.get()
}

/// The shape of a site that is ours, if it is this very detour.
fn same(detour: &Detour, entry: &super::Entry) -> Result<Shape, TextError> {
    if entry.is_busy() {
        return Err(TextError::Busy { site: detour.at });
    }
    if entry.shape.detour != *detour {
        return Err(hooked(detour.at));
    }
    Ok(entry.shape.clone())
}

/// The shape of a site over text that nobody has changed.
fn fresh(state: &State, detour: &Detour) -> Result<Shape, TextError> {
    let covered = detour.covered();
    if let Some((other, entry)) = state.detours_over(covered).next() {
        return Err(match entry.is_busy() {
            true => TextError::Busy { site: other },
            false => hooked(other),
        });
    }
    if state.has_site_in(covered) {
        return Err(hooked(detour.at));
    }
    if state.gate.hides().any(|(at, _)| covered.contains(at)) {
        return Err(TextError::Busy { site: detour.at });
    }
    let nr_halves = usize::from(detour.covered_bytes) / 2;
    let halves = (0..nr_halves).filter_map(|i| detour.at.checked_add(2 * i as u64));
    let code: Vec<u16> = halves.map(load_half).collect();
    check_code(detour, &code)?;
    Shape::new(detour, &code)
}

/// The text is whole instructions, none of them a breakpoint, and a copy begins where one does.
fn check_code(detour: &Detour, code: &[u16]) -> Result<(), TextError> {
    let mut starts = Vec::new();
    let mut off = 0;
    while off < detour.covered_bytes {
        let half = |i: u8| code.get(usize::from(i / 2)).copied().unwrap_or(0);
        if insn::is_breakpoint(half(off), half(off.saturating_add(2))) {
            return Err(hooked(RxAddr::new(detour.at.get() + u64::from(off))));
        }
        starts.push(off);
        let len_bytes = insn::len_bytes(half(off)).ok_or(not_whole(detour, off))?;
        off = off.checked_add(len_bytes).ok_or(not_whole(detour, off))?;
    }
    if off != detour.covered_bytes {
        return Err(not_whole(detour, off));
    }
    match detour.moved.iter().find(|(off, _)| !starts.contains(off)) {
        Some((off, _)) => Err(TextError::NotAnInsn {
            site: detour.at,
            off_bytes: *off,
        }),
        None => Ok(()),
    }
}

fn not_whole(detour: &Detour, whole_bytes: u8) -> TextError {
    TextError::NotWholeInsns {
        site: detour.at,
        covered_bytes: detour.covered_bytes,
        jump_bytes: script::jump_bytes(detour.kind),
        whole_bytes,
    }
}

/// The caller has checked that the covered bytes are mapped.
fn hooked(site: RxAddr) -> TextError {
    let mut found = [0; 8];
    let words = script::words_of(site, 2);
    // What lies beyond the word of the site may not be mapped.
    for at in words {
        let word = sys::load_text_u32(at).to_le_bytes();
        let from = (site.get() - at.get()) as usize;
        for (to, byte) in found.iter_mut().zip(&word[from..]) {
            *to = *byte;
        }
    }
    TextError::HookedByOthers { site, found }
}

/// Async-signal-safe.
pub(super) fn load_half(at: RxAddr) -> u16 {
    let word_at = at.align_down(4);
    let shift = 8 * (at.get() - word_at.get());
    (sys::load_text_u32(word_at) >> shift) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detour(kind: DetourKind, covered_bytes: u8, moved: &[u8]) -> Detour {
        let at = RxAddr::new(0x1000);
        let moved = moved.iter().map(|off| (*off, at)).collect();
        Detour {
            at,
            to: RxAddr::new(0x2000),
            kind,
            covered_bytes,
            moved,
        }
    }

    #[test]
    fn covered_bytes_are_whole_instructions() {
        let (c, long, huge) = (0x0505, [0x0513, 0x0015], 0x001f);
        let near = DetourKind::Near;
        for (covered_bytes, code, moved, is_good) in [
            (4, vec![c, c], vec![0, 2], true),
            (4, vec![long[0], long[1]], vec![0], true),
            (6, vec![c, long[0], long[1]], vec![0, 2], true),
            (4, vec![c, long[0]], vec![0], false),
            (4, vec![long[0], long[1]], vec![2], false),
            (4, vec![huge, 0], vec![], false),
            (6, vec![long[0], long[1], c], vec![], true),
        ] {
            let d = detour(near, covered_bytes, &moved);
            let got = check_code(&d, &code);
            assert_eq!(got.is_ok(), is_good, "{covered_bytes} {code:x?}: {got:?}");
        }
    }

    #[test]
    fn detours_overlap_or_not() {
        let near = |at: u64| Detour {
            at: RxAddr::new(at),
            ..detour(DetourKind::Near, 6, &[])
        };
        assert_eq!(apart(&[near(0x1006), near(0x1000)]), Ok(()));
        let site = RxAddr::new(0x1004);
        let got = apart(&[near(0x1004), near(0x1000)]);
        assert_eq!(got, Err(TextError::Duplicate { site }));
        let short = detour(DetourKind::Far { scratch: 28 }, 6, &[]);
        assert!(matches!(
            apart(&[short]),
            Err(TextError::NotWholeInsns { jump_bytes: 8, .. })
        ));
        for reg in [0, 32] {
            let far = detour(DetourKind::Far { scratch: reg }, 8, &[]);
            let site = far.at;
            assert_eq!(apart(&[far]), Err(TextError::Scratch { site, reg }));
        }
        let odd = RxAddr::new(0x1001);
        assert!(matches!(
            apart(&[near(0x1001)]),
            Err(TextError::Misaligned { addr, align_bytes: 2 }) if addr == odd
        ));
    }
}
