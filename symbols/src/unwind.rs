//! `.eh_frame`: how an unwinder gets from a frame to its caller, and libgcc, which is told.
//!
//! ```text
//!   CIE   length  0         1  "zR"  1  -8  1  1  absptr   cfa = sp + 0
//!   FDE   length  to CIE    start  bytes  0   rows         one for each function
//!   FDE   …
//!   0                                                      the end
//! ```
//!
//! A row is written as what differs from the one before: how far it is, the CFA, what is saved now
//! and what is not any more.
//!
//! Key types: [`Registered`]. Neighbours: `elf` gives gdb the same bytes. Source: LSB Core, "Exception
//! Frames"; DWARF 5, 6.4; RISC-V DWARF specification, "Register numbers"; gcc `unwind-dw2-fde.c`.

#![expect(unsafe_code, reason = "registers frames with libgcc")]

use crate::bytes::Bytes;
use crate::info::{Cfa, CodeInfo, Row, Unwind};

/// What registers are saved in multiples of; stacks grow down.
const DATA_ALIGN: i64 = -8;
/// The number of `ra`.
const RA: u8 = 1;

const DW_CFA_NOP: u8 = 0;
const DW_CFA_ADVANCE_LOC4: u8 = 4;
const DW_CFA_OFFSET_EXTENDED: u8 = 5;
const DW_CFA_RESTORE_EXTENDED: u8 = 6;
const DW_CFA_DEF_CFA: u8 = 0xc;
const DW_EH_PE_ABSPTR: u8 = 0;

/// The section for code at the address where it is. Its addresses are absolute.
pub(crate) fn eh_frame(info: &CodeInfo<'_>) -> Vec<u8> {
    let mut out = Bytes::default();
    let cie = out.open();
    out.u32(0);
    out.u8(1);
    out.str("zR");
    out.uleb(1);
    out.sleb(DATA_ALIGN);
    out.u8(RA);
    out.uleb(1);
    out.u8(DW_EH_PE_ABSPTR);
    def_cfa(&mut out, Cfa::ENTRY);
    finish(&mut out, cie);
    for unwind in info.unwind {
        let start = out.open();
        // From here back to the CIE's length.
        out.u32((start - cie + 4) as u32);
        out.u64(info.range.start.get() + u64::from(unwind.off));
        out.u64(unwind.len.into());
        out.uleb(0);
        rows(&mut out, unwind);
        finish(&mut out, start);
    }
    out.u32(0);
    out.0
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
    };
    for row in &unwind.rows {
        if row.off != now.off {
            out.u8(DW_CFA_ADVANCE_LOC4);
            out.u32(row.off - now.off);
        }
        if row.cfa != now.cfa {
            def_cfa(out, row.cfa);
        }
        for (reg, off) in row.saved.iter().filter(|saved| !now.saved.contains(saved)) {
            out.u8(DW_CFA_OFFSET_EXTENDED);
            out.uleb((*reg).into());
            out.uleb((i64::from(*off) / DATA_ALIGN) as u64);
        }
        let is_saved = |reg| row.saved.iter().any(|(saved, _)| *saved == reg);
        for (reg, _) in now.saved.iter().filter(|(reg, _)| !is_saved(*reg)) {
            out.u8(DW_CFA_RESTORE_EXTENDED);
            out.uleb((*reg).into());
        }
        now = row.clone();
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
    fn __register_frame(section: *const u8);
    fn __deregister_frame(section: *const u8) -> *mut libc::c_void;
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
