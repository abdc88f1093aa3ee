//! `.eh_frame`: how an unwinder gets from a frame to its caller, and libgcc, which is told.
//!
//! ```text
//!   CIE   length  0         1  "zR"  1  -8  1  1  absptr   cfa = sp + 0
//!   FDE   length  to CIE    start  bytes  0   rows         one for each function
//!   FDE   …
//!   0                                                      the end
//!   ff ff uleb  bytes  off len to 0  …                     one for each function with landings
//! ```
//!
//! A row is written as what differs from the one before: how far it is, the CFA, what is saved now
//! and what is not any more.
//!
//! Code with [`Landing`]s names libgcc's personality for C in the CIE ("zPLR"): a frame is not
//! dropped then, but left through code of its own, as with `__attribute__((cleanup))`. Each FDE
//! says where its table of landings is, from its own place on, so the bytes may be copied.
//!
//! Key types: [`Registered`]. Neighbours: `elf` gives gdb the same rows. Source: LSB Core,
//! "Exception Frames"; DWARF 5, 6.4; RISC-V DWARF specification, "Register numbers"; gcc
//! `unwind-dw2-fde.c`.

#![expect(unsafe_code, reason = "registers frames with libgcc")]

use crate::bytes::Bytes;
use crate::info::{Cfa, CodeInfo, Landing, Row, SavedFrom, Unwind};

/// What registers are saved in multiples of; stacks grow down.
const DATA_ALIGN: i64 = -8;
/// The number of `ra`.
const RA: u8 = 1;

const DW_CFA_NOP: u8 = 0;
const DW_CFA_ADVANCE_LOC4: u8 = 4;
const DW_CFA_OFFSET_EXTENDED: u8 = 5;
const DW_CFA_RESTORE_EXTENDED: u8 = 6;
const DW_CFA_DEF_CFA: u8 = 0xc;
const DW_CFA_EXPRESSION: u8 = 0x10;
const DW_OP_BREG0: u8 = 0x70;
const DW_EH_PE_ABSPTR: u8 = 0;
const DW_EH_PE_ULEB128: u8 = 1;
const DW_EH_PE_PCREL_SDATA4: u8 = 0x1b;
const DW_EH_PE_OMIT: u8 = 0xff;

/// The section for code at the address where it is. Its addresses are absolute.
pub(crate) fn eh_frame(info: &CodeInfo<'_>) -> Vec<u8> {
    let lands = !info.landings.is_empty();
    let mut out = Bytes::default();
    let cie = out.open();
    out.u32(0);
    out.u8(1);
    out.str(if lands { "zPLR" } else { "zR" });
    out.uleb(1);
    out.sleb(DATA_ALIGN);
    out.u8(RA);
    if lands {
        out.uleb(11);
        out.u8(DW_EH_PE_ABSPTR);
        out.u64(personality_addr());
        out.u8(DW_EH_PE_PCREL_SDATA4);
    } else {
        out.uleb(1);
    }
    out.u8(DW_EH_PE_ABSPTR);
    def_cfa(&mut out, Cfa::ENTRY);
    finish(&mut out, cie);
    // Where the tables of landings are to be named, and what is in them.
    let mut tables = Vec::new();
    for unwind in info.unwind {
        let start = out.open();
        // From here back to the CIE's length.
        out.u32((start - cie + 4) as u32);
        out.u64(info.range.start.get() + u64::from(unwind.off));
        out.u64(unwind.len.into());
        if lands {
            out.uleb(4);
            tables.push((out.0.len(), unwind));
            out.u32(0);
        } else {
            out.uleb(0);
        }
        rows(&mut out, unwind);
        finish(&mut out, start);
    }
    out.u32(0);
    for (named_at, unwind) in tables {
        let by = (out.0.len() - named_at) as u32;
        out.0[named_at..named_at + 4].copy_from_slice(&by.to_le_bytes());
        landings(&mut out, info.landings, unwind);
    }
    out.0
}

/// The table of one function: offsets are from its start; no types, no actions.
fn landings(out: &mut Bytes, all: &[Landing], unwind: &Unwind) {
    let inside = unwind.off..unwind.off + unwind.len;
    let mut table = Bytes::default();
    for landing in all.iter().filter(|landing| inside.contains(&landing.off)) {
        table.uleb((landing.off - unwind.off).into());
        table.uleb(landing.len.into());
        table.uleb((landing.to - unwind.off).into());
        table.uleb(0);
    }
    out.u8(DW_EH_PE_OMIT);
    out.u8(DW_EH_PE_OMIT);
    out.u8(DW_EH_PE_ULEB128);
    out.uleb(table.0.len() as u64);
    out.0.extend(table.0);
}

fn finish(out: &mut Bytes, start: usize) {
    // The length itself is 4 bytes.
    out.align(start - 4, 8, DW_CFA_NOP);
    out.close(start);
}

fn rows(out: &mut Bytes, unwind: &Unwind) {
    let mut now = Row {
        off: unwind.off,
        cfa: Cfa::ENTRY,
        saved: Vec::new(),
        from: SavedFrom::Cfa,
    };
    for row in &unwind.rows {
        if row.off != now.off {
            out.u8(DW_CFA_ADVANCE_LOC4);
            out.u32(row.off - now.off);
        }
        if row.cfa != now.cfa {
            def_cfa(out, row.cfa);
        }
        let is_new = |saved: &&(u8, i32)| row.from != now.from || !now.saved.contains(saved);
        for (reg, off) in row.saved.iter().filter(is_new) {
            saved(out, row.from, *reg, *off);
        }
        let is_saved = |reg| row.saved.iter().any(|(saved, _)| *saved == reg);
        for (reg, _) in now.saved.iter().filter(|(reg, _)| !is_saved(*reg)) {
            out.u8(DW_CFA_RESTORE_EXTENDED);
            out.uleb((*reg).into());
        }
        now = row.clone();
    }
}

fn saved(out: &mut Bytes, from: SavedFrom, reg: u8, off: i32) {
    match from {
        SavedFrom::Cfa => {
            out.u8(DW_CFA_OFFSET_EXTENDED);
            out.uleb(reg.into());
            out.uleb((i64::from(off) / DATA_ALIGN) as u64);
        }
        SavedFrom::Reg(base) => {
            let mut place = Bytes::default();
            place.u8(DW_OP_BREG0 + base % 32);
            place.sleb(off.into());
            out.u8(DW_CFA_EXPRESSION);
            out.uleb(reg.into());
            out.uleb(place.0.len() as u64);
            out.0.extend(place.0);
        }
    }
}

fn def_cfa(out: &mut Bytes, cfa: Cfa) {
    out.u8(DW_CFA_DEF_CFA);
    out.uleb(cfa.reg.into());
    out.uleb(cfa.off.into());
}

/// Frames that the unwinder knows, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Registered {
    /// Its address is what libgcc keeps.
    section: Option<Box<[u8]>>,
}

unsafe extern "C" {
    fn __gcc_personality_v0();
    fn _Unwind_Resume();
    fn __register_frame(section: *const u8);
    fn __deregister_frame(section: *const u8) -> *mut libc::c_void;
}

fn personality_addr() -> u64 {
    __gcc_personality_v0 as *const () as u64
}

/// Where code goes when it has landed and tidied up: `_Unwind_Resume`, with the exception in `a0`.
/// It unwinds from wherever `ra` says that it was called.
#[must_use]
pub fn resume_addr() -> u64 {
    _Unwind_Resume as *const () as u64
}

impl Registered {
    pub(crate) fn new(info: &CodeInfo<'_>) -> Self {
        if info.unwind.is_empty() {
            return Self { section: None };
        }
        let section = eh_frame(info).into_boxed_slice();
        // SAFETY:
        // 1. It is a section with an end, as `eh_frame` makes it.
        // 2. It stays where it is until it is taken back (`drop`).
        unsafe { __register_frame(section.as_ptr()) };
        Self {
            section: Some(section),
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(section) = &self.section {
            // SAFETY: 1. `new` has registered this very address, once.
            unsafe { __deregister_frame(section.as_ptr()) };
        }
    }
}

#[cfg(test)]
mod tests;
