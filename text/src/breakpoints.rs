//! Breakpoints that others keep on a page of text.
//!
//! The kernel puts an `ebreak` (`c.ebreak` where compressed instructions are) over the first bytes of
//! the instruction that it probes, in a copy of the file's page. Found is therefore what looks like one
//! in memory, on a page that is a copy, and is something else in the file. Where there is nothing that
//! looks like one, which is the rule, neither the kernel nor the file is asked. What can be known
//! neither of the page nor of the file counts as a breakpoint.
//!
//! Key function: [`check`]. Neighbours: `foreign`, which replaces pages, and says what becomes of
//! probes. Source: kernel `arch/riscv/include/asm/uprobes.h` (`UPROBE_SWBP_INSN`),
//! `kernel/events/uprobes.c`.

use std::os::unix::fs::FileExt;

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::file;
use crate::insn::{C_EBREAK, EBREAK};
use crate::proc_maps::{PageMap, ProcMaps, is_traced};

/// That no breakpoint of others is in `run`, whole pages, of which `word` gives the word at a multiple
/// of 4. `maps` is what is mapped now; `is_ours` knows pages that hold our own traps, and no probe.
///
/// # Errors
/// [`TextError::BreakpointOnPage`] with the first.
pub(crate) fn check(
    run: RxRange,
    word: impl Fn(usize) -> u32,
    maps: &ProcMaps,
    is_ours: impl Fn(RxAddr) -> bool,
) -> Result<(), TextError> {
    let looks = candidates(run.len_bytes, word);
    if looks.is_empty() {
        return Ok(());
    }
    let page_map = PageMap::open();
    let is_copy = |at: RxAddr| {
        let page = at.align_down(region::page::size() as u64);
        page_map.as_ref().and_then(|map| map.is_copied(page)) != Some(false)
    };
    let mut at = looks.into_iter().map(|(off, len_bytes)| {
        let at = RxAddr::new(run.start.get() + off as u64);
        (at, len_bytes)
    });
    let is_foreign = |(at, len_bytes): &(RxAddr, usize)| {
        !is_ours(*at) && is_copy(*at) && !in_file(*at, *len_bytes, maps)
    };
    match at.find(is_foreign) {
        Some((at, _)) if is_traced() != Some(true) => Err(TextError::BreakpointOnPage { at }),
        _ => Ok(()),
    }
}

/// What looks like a breakpoint: offset and length. Every even offset may be one: where instructions
/// begin is not known.
fn candidates(len_bytes: usize, word: impl Fn(usize) -> u32) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut before = 0_u32;
    for off in (0..len_bytes).step_by(4) {
        let now = word(off);
        let straddling = before >> 16 | now << 16;
        if off > 0 && straddling == EBREAK {
            found.push((off - 2, 4));
        }
        if now == EBREAK {
            found.push((off, 4));
        }
        for (half, at) in [(now as u16, off), ((now >> 16) as u16, off + 2)] {
            if half == C_EBREAK {
                found.push((at, 2));
            }
        }
        before = now;
    }
    found
}

/// Whether the file that is mapped at `at` has a breakpoint there, too.
fn in_file(at: RxAddr, len_bytes: usize, maps: &ProcMaps) -> bool {
    let bytes = || {
        let mapping = maps.find(at).filter(|m| m.inode != 0)?;
        let file = file::open_mapped(mapping).ok()?;
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes[..len_bytes], mapping.off_at(at))
            .ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let breakpoint = match len_bytes {
        4 => EBREAK,
        _ => C_EBREAK.into(),
    };
    bytes() == Some(breakpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<(usize, usize)> {
        candidates(4 * words.len(), |at| words[at / 4])
    }

    #[test]
    fn breakpoints_are_found_at_every_even_offset() {
        assert_eq!(words(&[0x13, 0x9002_0001, 0x0001_9002]), [(6, 2), (8, 2)]);
        assert_eq!(words(&[EBREAK, 0x0073_0001, 0x0001_0010]), [(0, 4), (6, 4)]);
        assert_eq!(words(&[0x0290_0000, 0x0000_0290]), []);
        assert_eq!(words(&[]), []);
    }
}
