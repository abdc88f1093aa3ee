//! Entry pads: the nops that `-fpatchable-function-entry` leaves at the start of a function.
//!
//! ```text
//!   func:  [lpad]                 Zicfilp's landing pad, when the code has them
//!          nop nop nop …          the pad: 2-byte nops with the C extension, 4-byte without
//!            └── hi ──┴── lo ──┘  the first naturally aligned pair of words inside
//!          body                   resume
//! ```
//!
//! With 2-byte nops a pad may start at 2 mod 4 and then needs ten bytes; hence
//! `-fpatchable-function-entry=5`. Nops *before* the entry (the `N,M` form) are not executed and
//! not used.
//!
//! Key types: [`Pad`], [`PadWords`]. Neighbours: `object` (where pads are), `poke` (fills them),
//! `site` (which are ours). Source: GCC manual, `-fpatchable-function-entry`; RISC-V ELF psABI,
//! `STO_RISCV_VARIANT_CC`; kernel `arch/riscv/kernel/ftrace.c`.

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::insn::{self, C_NOP, NOP};
use crate::look::Look;
use crate::object::{self, Object};
use crate::original;
use crate::proc_maps::ProcMaps;
use crate::state;
use crate::syscall::read_memory;

/// How far a pad is looked at: what lies beyond is left alone.
const MAX_PAD_BYTES: usize = 256;
/// A pair of words.
const PAIR_BYTES: usize = 8;

/// The entry pad of a function.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Pad {
    /// The function.
    pub func: RxAddr,
    /// The pad's first byte: the function's, or the one after its landing pad.
    pub start: RxAddr,
    /// The length in bytes (as far as it was looked at: at most 256).
    pub len_bytes: usize,
    /// Where the first aligned pair of words starts, if there is one.
    hi: Option<RxAddr>,
}

/// The words of a pad that carry the jump.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct PadWords {
    /// The first word, naturally aligned: the `auipc`.
    pub hi: RxAddr,
    /// The word after it: the partner.
    pub lo: RxAddr,
    /// The first byte after the pad: where the function goes on.
    pub resume: RxAddr,
}

impl Pad {
    /// Finds the pad of `func` through the `__patchable_function_entries` of its object. A pad
    /// that this process has armed counts as a pad.
    ///
    /// # Errors
    /// [`TextError::Misaligned`], [`TextError::Unmapped`], [`TextError::NotExecutable`],
    /// [`TextError::NotAPad`], [`TextError::PadTaken`], [`TextError::VariantCc`],
    /// [`TextError::ObjectFile`].
    pub fn find(func: RxAddr) -> Result<Self, TextError> {
        Look::now()?.pad(func)
    }

    pub(crate) fn find_by(func: RxAddr, maps: &ProcMaps) -> Result<Self, TextError> {
        maps.check_executable(func)?;
        match object::find(func, maps)? {
            Some((object, segment)) => Self::find_in(&object, segment, func, maps),
            None => Err(not_a_pad(&Code::read(
                func,
                mapped_after(func, maps)?,
                maps,
            )?)),
        }
    }

    /// All pads of the object that holds `addr`, in order of address, each with its own answer.
    ///
    /// # Errors
    /// [`TextError::Unmapped`] when no object holds `addr`; [`TextError::ObjectFile`].
    pub fn all_in(addr: RxAddr) -> Result<Vec<Result<Self, TextError>>, TextError> {
        state::watch_forks()?;
        let maps = ProcMaps::read()?;
        let Some((object, _)) = object::find(addr, &maps)? else {
            return Err(TextError::Unmapped { addr });
        };
        let find = |entry: &RxAddr| {
            let func = func_of(&object, *entry, &maps);
            let text = maps.private_text_at(func)?.range;
            Self::find_in(&object, text, func, &maps)
        };
        Ok(object.pads.iter().map(find).collect())
    }

    /// The aligned pair of words in the pad.
    ///
    /// # Errors
    /// [`TextError::PadTooShort`] when none fits.
    pub fn words(&self) -> Result<PadWords, TextError> {
        let too_short = || TextError::PadTooShort {
            site: self.start,
            found_bytes: self.len_bytes,
            needed_bytes: PAIR_BYTES + (self.start.get() % 4) as usize,
        };
        let hi = self.hi.ok_or_else(too_short)?;
        let lo = hi.checked_add(4).ok_or_else(too_short)?;
        let resume = self
            .start
            .checked_add(self.len_bytes as u64)
            .ok_or_else(too_short)?;
        Ok(PadWords { hi, lo, resume })
    }

    fn find_in(
        object: &Object,
        segment: RxRange,
        func: RxAddr,
        maps: &ProcMaps,
    ) -> Result<Self, TextError> {
        if let Some(symbol) = object.variant_at(func) {
            return Err(TextError::VariantCc {
                symbol: symbol.into(),
            });
        }
        let room_bytes = (segment.end().get() - func.get()) as usize;
        let code = Code::read(func, room_bytes, maps)?;
        let skip_bytes = if code.word(0).is_some_and(insn::is_lpad) {
            4
        } else {
            0
        };
        if !has_entry(object, func, skip_bytes, maps)? {
            return Err(not_a_pad(&code));
        }
        let nops = code.nops_from(skip_bytes);
        let start = func
            .checked_add(skip_bytes as u64)
            .ok_or(TextError::Unmapped { addr: func })?;
        if nops.len_bytes == 0 || (nops.pair.is_none() && nops.ends_in_hook) {
            return Err(TextError::PadTaken {
                site: start,
                found: code.first_bytes(skip_bytes),
            });
        }
        let hi = nops.pair.and_then(|off| func.checked_add(off as u64));
        Ok(Self {
            func,
            start,
            len_bytes: nops.len_bytes,
            hi,
        })
    }
}

/// Whether there is no pad at `func`, or one that is ours or full of nops: as far as can be seen
/// without knowing what is mapped.
pub(crate) fn is_untaken(object: &Object, func: RxAddr) -> bool {
    const BYTES: usize = PAIR_BYTES + 2;
    let near = func.checked_add(4).and_then(|at| object.pad_before(at));
    let is_near = |pad: RxAddr| pad.get() + MAX_PAD_BYTES as u64 >= func.get();
    if !near.is_some_and(is_near) {
        return true;
    }
    let range = RxRange::new(func, BYTES);
    let mut bytes = [0; BYTES];
    state::lock().has_site_in(range)
        || (read_memory(func.get(), &mut bytes) == Ok(BYTES)
            && bytes
                .chunks_exact(2)
                .all(|half| half == C_NOP.to_le_bytes()))
}

fn not_a_pad(code: &Code) -> TextError {
    TextError::NotAPad {
        func: code.start,
        found: code.first_bytes(0),
    }
}

fn mapped_after(addr: RxAddr, maps: &ProcMaps) -> Result<usize, TextError> {
    let m = maps.find(addr).ok_or(TextError::Unmapped { addr })?;
    Ok((m.range.end().get() - addr.get()) as usize)
}

/// Whether an entry of the section belongs to `func`: it names the function's first byte, or the
/// one after its landing pad, or (the `N,M` form) a nop before it from which nops lead to it.
fn has_entry(
    object: &Object,
    func: RxAddr,
    skip_bytes: usize,
    maps: &ProcMaps,
) -> Result<bool, TextError> {
    let after_lpad = func.checked_add(skip_bytes as u64).unwrap_or(func);
    let Some(entry) = object.pad_before(after_lpad) else {
        return Ok(false);
    };
    if entry >= func {
        return Ok(entry == func || entry == after_lpad);
    }
    let before_bytes = (func.get() - entry.get()) as usize;
    // An entry at which a function starts is that function's, and `func` is inside its pad.
    let is_others = object.is_func(entry);
    if is_others || before_bytes > MAX_PAD_BYTES {
        return Ok(false);
    }
    let before = Code::read(entry, before_bytes, maps)?;
    Ok(before.nops_from(0).len_bytes == before_bytes)
}

/// The function that an entry belongs to: a symbol at it or within the nops that follow.
fn func_of(object: &Object, entry: RxAddr, maps: &ProcMaps) -> RxAddr {
    let room_bytes = mapped_after(entry, maps).unwrap_or(0);
    let code = Code::read(entry, room_bytes, maps);
    let nops_bytes = code.map_or(0, |c| c.nops_from(0).len_bytes);
    object
        .func_in(RxRange::new(entry, nops_bytes))
        .unwrap_or(entry)
}

/// Some code as it would be without our sites.
struct Code {
    start: RxAddr,
    bytes: Vec<u8>,
}

/// A run of nops.
#[derive(Eq, PartialEq, Debug)]
struct Nops {
    len_bytes: usize,
    /// Offset of the first aligned pair of words that begins, divides and ends between nops.
    pair: Option<usize>,
    /// Whether what follows is what others patch in: `auipc` of a pair, `jal t0`, a breakpoint.
    ends_in_hook: bool,
}

impl Code {
    /// Reads code at `start`, as far as a pad can reach and `room_bytes` allow.
    fn read(start: RxAddr, room_bytes: usize, maps: &ProcMaps) -> Result<Self, TextError> {
        let mut bytes = vec![0; room_bytes.min(MAX_PAD_BYTES + 8)];
        let range = RxRange::new(start, bytes.len());
        if !maps.is_readable(range) {
            return Err(TextError::Unmapped { addr: start });
        }
        original::read(&mut state::lock(), start, &mut bytes)?;
        Ok(Self { start, bytes })
    }

    fn half(&self, off: usize) -> Option<u16> {
        let bytes = self.bytes.get(off..off.checked_add(2)?)?;
        Some(u16::from_le_bytes(bytes.try_into().ok()?))
    }

    fn word(&self, off: usize) -> Option<u32> {
        let bytes = self.bytes.get(off..off.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn first_bytes(&self, off: usize) -> [u8; 8] {
        let mut first = [0; 8];
        for (to, from) in first.iter_mut().zip(self.bytes.iter().skip(off)) {
            *to = *from;
        }
        first
    }

    fn nops_from(&self, from: usize) -> Nops {
        let mut boundaries = vec![from];
        let mut off = from;
        while off - from < MAX_PAD_BYTES {
            off += match (self.half(off), self.word(off)) {
                (Some(C_NOP), _) => 2,
                (_, Some(NOP)) => 4,
                _ => break,
            };
            boundaries.push(off);
        }
        let is_boundary = |off: usize| boundaries.binary_search(&off).is_ok();
        let is_pair = |off: &usize| {
            (self.start.get() + *off as u64) % 4 == 0
                && is_boundary(off + 4)
                && is_boundary(off + 8)
        };
        Nops {
            len_bytes: off - from,
            pair: boundaries.iter().copied().find(is_pair),
            ends_in_hook: self.is_hook(off),
        }
    }

    fn is_hook(&self, off: usize) -> bool {
        /// `jal t0, …`.
        const JAL_T0: u32 = 0x2ef;
        let is_word = |w: u32| insn::is_pair_auipc(w) || w == insn::EBREAK || w & 0xfff == JAL_T0;
        self.half(off) == Some(insn::C_EBREAK) || self.word(off).is_some_and(is_word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(start: u64, halves: &[u16]) -> Code {
        let bytes = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
        Code {
            start: RxAddr::new(start),
            bytes,
        }
    }

    const N4: [u16; 2] = [0x0013, 0x0000];

    #[test]
    fn the_aligned_pair_is_found() {
        let ret = 0x8082;
        let five = [C_NOP, C_NOP, C_NOP, C_NOP, C_NOP, ret];
        for (start, halves, len_bytes, pair) in [
            (0x1000, &five[..], 10, Some(0)),
            (0x1002, &five[..], 10, Some(2)),
            (0x1000, &[C_NOP, C_NOP, C_NOP, C_NOP, ret], 8, Some(0)),
            (0x1002, &[C_NOP, C_NOP, C_NOP, C_NOP, ret], 8, None),
            (0x1000, &[N4[0], N4[1], N4[0], N4[1], ret], 8, Some(0)),
            // Four-byte nops at 2 mod 4: no aligned word begins with one.
            (
                0x1002,
                &[N4[0], N4[1], N4[0], N4[1], N4[0], N4[1], ret],
                12,
                None,
            ),
            (
                0x1002,
                &[C_NOP, N4[0], N4[1], N4[0], N4[1], ret],
                10,
                Some(2),
            ),
            (
                0x1000,
                &[C_NOP, N4[0], N4[1], C_NOP, C_NOP, C_NOP, C_NOP, C_NOP, ret],
                16,
                Some(8),
            ),
            (0x1000, &[ret], 0, None),
            // The code ends in the middle of the pad.
            (0x1000, &[C_NOP, C_NOP, C_NOP], 6, None),
        ] {
            let got = code(start, halves).nops_from(0);
            assert_eq!(
                (got.len_bytes, got.pair),
                (len_bytes, pair),
                "{start:#x} {halves:x?}"
            );
        }
    }

    #[test]
    fn others_hooks_are_seen() {
        // c.nop; auipc t0, 1
        let taken = code(0x1002, &[C_NOP, 0x1297, 0x0000, 0x0001]).nops_from(0);
        assert!(taken.ends_in_hook && taken.pair.is_none());
        assert!(code(0, &[C_NOP, 0x9002]).nops_from(0).ends_in_hook);
        assert!(!code(0, &[C_NOP, 0x1101]).nops_from(0).ends_in_hook);
    }
}
