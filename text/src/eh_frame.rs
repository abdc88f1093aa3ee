//! Which stretches of text are functions, by what unwinders are told.
//!
//! ```text
//!   PT_GNU_EH_FRAME ──▶ .eh_frame_hdr      where .eh_frame is; a table of (start, FDE)
//!                         │ │ │
//!                         ▼ ▼ ▼
//!                       .eh_frame          CIE: how the pointers of its FDEs are written
//!                                          FDE: start and length of one stretch, and how the
//!                                               frame changes in it
//! ```
//!
//! All of it is loaded, so it is there for stripped objects too, and it says nothing of the bytes
//! of the text, so it holds whatever has been written over them. Not every stretch is a function:
//! compilers move unlikely paths away (`.cold`), assemblers write one FDE for each part of a
//! function. Such a part begins within a frame, so its FDE begins with other rules than a call
//! leaves behind: [`Start`].
//!
//! Key types: [`Fde`], [`Start`]. Neighbour: `catalog` joins it with symbols. Source: LSB,
//! "Exception Frames" (`.eh_frame`, `.eh_frame_hdr`, pointer encodings); DWARF 5, 6.4.

use crate::addr::{RxAddr, RxRange};
use crate::loaded::Loaded;
use crate::proc_maps::ProcMaps;
use crate::span::{Cursor, Span};

/// A stretch of text with one description of its frames.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Fde {
    pub(crate) range: RxRange,
    pub(crate) start: Start,
}

/// What the frame is like at the first instruction.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Start {
    /// As a call leaves it.
    Called,
    /// There is one already: this is jumped to from the rest of a function.
    InFrame,
    /// The kernel has made it: signal handlers return to this.
    Signal,
}

/// The stretches of an object, as far as they can be read; in no order.
pub(crate) fn read(object: &Loaded, maps: &ProcMaps) -> Vec<Fde> {
    find(object, maps).unwrap_or_default()
}

fn find(object: &Loaded, maps: &ProcMaps) -> Option<Vec<Fde>> {
    let header = object.range_of(object.header(libc::PT_GNU_EH_FRAME)?);
    let hdr = from_to_end(header.start, object, maps)?;
    let index = Index::read(&hdr, header)?;
    let frames = from_to_end(RxAddr::new(index.frames), object, maps)?;
    let mut section = Section {
        span: &frames,
        known: None,
    };
    Some(match index.fdes {
        Some(fdes) => fdes.into_iter().filter_map(|at| section.fde(at)).collect(),
        None => section.all(index.frames),
    })
}

/// The rest of the segment from `start` on.
fn from_to_end(start: RxAddr, object: &Loaded, maps: &ProcMaps) -> Option<Span> {
    let end = object.segment_of(start)?.end();
    Span::at(start.get(), (end.get() - start.get()) as usize, maps)
}

/// How a pointer is written.
mod pe {
    pub(super) const OMIT: u8 = 0xff;
    /// The lower half: its form.
    pub(super) const FORM: u8 = 0x0f;
    pub(super) const ABSPTR: u8 = 0x00;
    pub(super) const ULEB128: u8 = 0x01;
    pub(super) const UDATA2: u8 = 0x02;
    pub(super) const UDATA4: u8 = 0x03;
    pub(super) const UDATA8: u8 = 0x04;
    pub(super) const SLEB128: u8 = 0x09;
    pub(super) const SDATA2: u8 = 0x0a;
    pub(super) const SDATA4: u8 = 0x0b;
    pub(super) const SDATA8: u8 = 0x0c;
    /// The upper half: what it is relative to. (The highest bit says that there is an address of
    /// it, and is for pointers into other objects.)
    pub(super) const BASE: u8 = 0xf0;
    pub(super) const ABSOLUTE: u8 = 0x00;
    pub(super) const PCREL: u8 = 0x10;
    pub(super) const DATAREL: u8 = 0x30;
    pub(super) const ALIGNED: u8 = 0x50;
}

/// The number behind a pointer, without its base.
fn value(cursor: &mut Cursor<'_>, encoding: u8) -> Option<u64> {
    Some(match encoding & pe::FORM {
        pe::ABSPTR | pe::UDATA8 | pe::SDATA8 => cursor.u64()?,
        pe::ULEB128 => cursor.uleb()?,
        pe::SLEB128 => cursor.sleb()? as u64,
        pe::UDATA2 => cursor.u16()?.into(),
        pe::SDATA2 => i64::from(cursor.u16()? as i16) as u64,
        pe::UDATA4 => cursor.u32()?.into(),
        pe::SDATA4 => i64::from(cursor.u32()? as i32) as u64,
        _ => return None,
    })
}

/// A pointer; `data` is what `DATAREL` is relative to.
fn pointer(cursor: &mut Cursor<'_>, encoding: u8, data: u64) -> Option<u64> {
    let base = match encoding & pe::BASE {
        pe::ABSOLUTE => 0,
        pe::PCREL => cursor.at,
        pe::DATAREL => data,
        _ => return None,
    };
    Some(value(cursor, encoding)?.wrapping_add(base))
}

/// `.eh_frame_hdr`.
struct Index {
    /// Where `.eh_frame` is.
    frames: u64,
    /// Where each FDE is, if there is a table.
    fdes: Option<Vec<u64>>,
}

impl Index {
    fn read(hdr: &Span, range: RxRange) -> Option<Self> {
        let data = range.start.get();
        let mut cursor = Cursor::new(hdr, data, range.end().get());
        let [version, frames_enc, count_enc, table_enc] = cursor.u32()?.to_le_bytes();
        if version != 1 {
            return None;
        }
        let frames = pointer(&mut cursor, frames_enc, data)?;
        let fdes = Self::table(&mut cursor, count_enc, table_enc, data);
        Some(Self { frames, fdes })
    }

    fn table(cursor: &mut Cursor<'_>, count: u8, table: u8, data: u64) -> Option<Vec<u64>> {
        if count == pe::OMIT || table == pe::OMIT {
            return None;
        }
        let count = pointer(cursor, count, data)?;
        (0..count)
            .map(|_| {
                pointer(cursor, table, data)?;
                pointer(cursor, table, data)
            })
            .collect()
    }
}

/// What FDEs have in common.
#[derive(Copy, Clone, Debug)]
struct Cie {
    at: u64,
    /// How their pointers are written.
    encoding: u8,
    /// Whether the length of further data stands before their rules (`z`).
    has_length: bool,
    /// Whether their code is where signal handlers return to (`S`).
    is_signal: bool,
    /// The register and the offset that the frame's address is computed from at a call.
    cfa: Option<(u64, u64)>,
}

/// The rules that are looked at (`DW_CFA_…`).
mod cfa {
    pub(super) const NOP: u8 = 0x00;
    pub(super) const ADVANCE_LOC1: u8 = 0x02;
    pub(super) const ADVANCE_LOC2: u8 = 0x03;
    pub(super) const ADVANCE_LOC4: u8 = 0x04;
    pub(super) const UNDEFINED: u8 = 0x07;
    pub(super) const SAME_VALUE: u8 = 0x08;
    pub(super) const REMEMBER_STATE: u8 = 0x0a;
    pub(super) const DEF_CFA: u8 = 0x0c;
    pub(super) const DEF_CFA_REGISTER: u8 = 0x0d;
    pub(super) const DEF_CFA_OFFSET: u8 = 0x0e;
    pub(super) const GNU_ARGS_SIZE: u8 = 0x2e;
    /// With the distance in the lower six bits.
    pub(super) const ADVANCE_LOC: u8 = 0x40;
    pub(super) const HIGH: u8 = 0xc0;
}

/// `.eh_frame`.
struct Section<'a> {
    span: &'a Span,
    /// The CIE that was read last: most FDEs share one.
    known: Option<Cie>,
}

impl<'a> Section<'a> {
    /// All stretches, from `at` to the entry of length zero, or to what is none.
    fn all(&mut self, mut at: u64) -> Vec<Fde> {
        let mut fdes = Vec::new();
        while let Some(entry) = self.entry(at) {
            at = entry.end;
            fdes.extend(self.fde_of(entry));
        }
        fdes
    }

    /// What is described by the FDE at `at`.
    fn fde(&mut self, at: u64) -> Option<Fde> {
        let entry = self.entry(at)?;
        self.fde_of(entry)
    }

    /// The bytes of an entry behind its length.
    fn entry(&self, at: u64) -> Option<Cursor<'a>> {
        let mut cursor = Cursor::new(self.span, at, u64::MAX);
        let len_bytes = match cursor.u32()? {
            0 => return None,
            u32::MAX => cursor.u64()?,
            short => short.into(),
        };
        let end = cursor.at.checked_add(len_bytes)?;
        (end <= cursor.end).then(|| Cursor::new(self.span, cursor.at, end))
    }

    fn fde_of(&mut self, mut entry: Cursor<'_>) -> Option<Fde> {
        let cie_at = match (entry.at, entry.u32()?) {
            // A CIE.
            (_, 0) => return None,
            (at, back) => at.checked_sub(back.into())?,
        };
        let cie = self.cie(cie_at)?;
        let start = pointer(&mut entry, cie.encoding, 0)?;
        let len_bytes = usize::try_from(value(&mut entry, cie.encoding)?).ok()?;
        if cie.has_length {
            let rest = entry.uleb()?;
            entry.skip(rest)?;
        }
        if len_bytes == 0 {
            return None;
        }
        let start_kind = if cie.is_signal {
            Start::Signal
        } else {
            start_of(entry, cie.cfa)
        };
        Some(Fde {
            range: RxRange::new(RxAddr::new(start), len_bytes),
            start: start_kind,
        })
    }

    fn cie(&mut self, at: u64) -> Option<Cie> {
        if let Some(cie) = self.known.filter(|cie| cie.at == at) {
            return Some(cie);
        }
        let cie = Self::read_cie(self.entry(at)?, at)?;
        self.known = Some(cie);
        Some(cie)
    }

    fn read_cie(mut entry: Cursor<'_>, at: u64) -> Option<Cie> {
        let (id, version) = (entry.u32()?, entry.u8()?);
        if id != 0 || !matches!(version, 1 | 3) {
            return None;
        }
        let augmentation = entry.text()?;
        // Factors of code and data, and the register of the return address.
        entry.uleb()?;
        entry.sleb()?;
        match version {
            1 => u64::from(entry.u8()?),
            _ => entry.uleb()?,
        };
        let mut cie = Cie {
            at,
            encoding: pe::ABSPTR,
            has_length: false,
            is_signal: false,
            cfa: None,
        };
        for letter in augmentation {
            match letter {
                b'z' => {
                    cie.has_length = true;
                    entry.uleb()?;
                }
                b'R' => cie.encoding = entry.u8()?,
                b'L' => drop(entry.u8()?),
                b'P' => skip_pointer(&mut entry)?,
                b'S' => cie.is_signal = true,
                // Kinds of signed return addresses, on other machines.
                b'B' | b'G' => {}
                _ => return None,
            }
        }
        cie.cfa = def_cfa(entry);
        Some(cie)
    }
}

fn skip_pointer(cursor: &mut Cursor<'_>) -> Option<()> {
    let encoding = cursor.u8()?;
    if encoding == pe::ALIGNED {
        let padding = cursor.at.wrapping_neg() % 8;
        cursor.skip(padding)?;
        cursor.u64()?;
    } else if encoding != pe::OMIT {
        value(cursor, encoding)?;
    }
    Some(())
}

/// What a CIE's rules begin with.
fn def_cfa(mut rules: Cursor<'_>) -> Option<(u64, u64)> {
    match rules.u8()? {
        cfa::DEF_CFA => Some((rules.uleb()?, rules.uleb()?)),
        _ => None,
    }
}

/// Whether the rules of an FDE say anything new of its first instruction. What cannot be read
/// says nothing.
fn start_of(mut rules: Cursor<'_>, cie: Option<(u64, u64)>) -> Start {
    let mut is_new = || -> Option<bool> {
        loop {
            match rules.u8()? {
                cfa::NOP | cfa::REMEMBER_STATE => {}
                cfa::UNDEFINED | cfa::SAME_VALUE | cfa::GNU_ARGS_SIZE => drop(rules.uleb()?),
                cfa::DEF_CFA if Some((rules.uleb()?, rules.uleb()?)) == cie => {}
                cfa::DEF_CFA_REGISTER if Some(rules.uleb()?) == cie.map(|(reg, _)| reg) => {}
                cfa::DEF_CFA_OFFSET if Some(rules.uleb()?) == cie.map(|(_, off)| off) => {}
                // Distances that linkers compute are there even if they are 0.
                cfa::ADVANCE_LOC1 if rules.u8()? == 0 => {}
                cfa::ADVANCE_LOC2 if rules.u16()? == 0 => {}
                cfa::ADVANCE_LOC4 if rules.u32()? == 0 => {}
                cfa::ADVANCE_LOC => {}
                cfa::ADVANCE_LOC1..=cfa::ADVANCE_LOC4 => return Some(false),
                op if op & cfa::HIGH == cfa::ADVANCE_LOC => return Some(false),
                _ => return Some(true),
            }
        }
    };
    match is_new() {
        Some(true) => Start::InFrame,
        Some(false) | None => Start::Called,
    }
}

#[cfg(test)]
mod tests;
