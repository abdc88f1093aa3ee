//! Text as it would be without our sites: pads with their nops, entries without their detours, the
//! gate open.
//!
//! Key function: [`original_text`]. Neighbours: `pad` (looks for pads in it), `state`, `site`,
//! [`crate::detour`].

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::look::Look;
use crate::proc_maps::ProcMaps;
use crate::state::{self, State};
use crate::sys;

/// The bytes of `range` as they would be without the pads that are armed and the detours that
/// stand in it. What others have changed is seen as it is.
///
/// # Errors
/// [`TextError::Unmapped`], [`TextError::Map`].
pub fn original_text(range: RxRange) -> Result<Vec<u8>, TextError> {
    Look::now()?.original_text(range)
}

pub(crate) fn read_by(range: RxRange, maps: &ProcMaps) -> Result<Vec<u8>, TextError> {
    let mut bytes = vec![0; range.len_bytes];
    if bytes.is_empty() {
        return Ok(bytes);
    }
    if !maps.is_readable(range) {
        return Err(TextError::Unmapped { addr: range.start });
    }
    read(&mut state::lock(), range.start, &mut bytes)?;
    Ok(bytes)
}

/// Reads original text from `start` on, all of it readable.
pub(crate) fn read(state: &mut State, start: RxAddr, bytes: &mut [u8]) -> Result<(), TextError> {
    sys::read_text(start, bytes);
    let range = RxRange::new(start, bytes.len());
    let ours = replaced_in(state, range);
    if ours.is_empty() {
        return Ok(());
    }
    // Asked here: whoever calls may have looked before a page was replaced.
    let maps = ProcMaps::read()?;
    for (at, original) in ours {
        if state.foreign.spot_of(at, &maps).is_none() && state.map_of(at).is_none() {
            // The library was closed, and something else is here now.
            state.forget_sites(RxRange::new(at, 2));
            continue;
        }
        overlay(bytes, at.get().wrapping_sub(start.get()), &original);
    }
    Ok(())
}

/// What our sites in `range` have replaced, and where.
fn replaced_in(state: &State, range: RxRange) -> Vec<(RxAddr, Vec<u8>)> {
    let from = range.start.get().saturating_sub(7);
    let bounds = from..range.end().get();
    let bounds_of_gate = bounds.clone();
    let pads = state.sites.range(bounds.clone()).map(|(hi, site)| {
        let bytes = site.orig.map(u32::to_le_bytes).concat();
        (RxAddr::new(*hi), bytes)
    });
    let detours = state.detours.range(bounds).map(|(at, entry)| {
        let halves = entry.shape.original.iter();
        let bytes = halves.flat_map(|half| half.to_le_bytes()).collect();
        (RxAddr::new(*at), bytes)
    });
    let gate = state.gate.hides();
    let gate = gate.filter(|(at, _)| bounds_of_gate.contains(&at.get()));
    let gate = gate.map(|(at, half)| (at, half.to_le_bytes().to_vec()));
    gate.chain(pads).chain(detours).collect()
}

/// Puts bytes where they lie in `bytes`, of which they may lie partly outside.
fn overlay(bytes: &mut [u8], off: u64, original: &[u8]) {
    for (i, byte) in original.iter().enumerate() {
        let at = off.wrapping_add(i as u64);
        if let Some(to) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
            *to = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_seen_through() {
        let mut bytes = vec![0xff; 6];
        overlay(&mut bytes, 4, &[1, 2, 3, 4]);
        assert_eq!(bytes, [0xff, 0xff, 0xff, 0xff, 1, 2]);
        overlay(&mut bytes, 0u64.wrapping_sub(2), &[5, 6, 7, 8]);
        assert_eq!(bytes, [7, 8, 0xff, 0xff, 1, 2]);
    }

    #[test]
    fn nothing_is_read_where_nothing_is() {
        let hole = RxRange::new(RxAddr::new(0x1000), 4);
        let got = original_text(hole);
        assert_eq!(got, Err(TextError::Unmapped { addr: hole.start }));
        assert_eq!(original_text(RxRange::new(hole.start, 0)), Ok(Vec::new()));
    }
}
