//! Lines for gdb: a compile unit of DWARF 4, and its line program.
//!
//! The unit says no more than where its code is and which line program it has. The line program is
//! written in the plainest way: for each entry what differs, then a row.
//!
//! Key function: [`Lines::of`]. Neighbours: `elf` puts the sections in place. Source: DWARF 4, 3.1
//! and 6.2.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bytes::Bytes;
use crate::info::CodeInfo;

/// The three sections.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) abbrev: Vec<u8>,
    pub(crate) info: Vec<u8>,
    pub(crate) line: Vec<u8>,
}

const DW_TAG_COMPILE_UNIT: u8 = 0x11;
const DW_AT_NAME: (u8, u8) = (0x03, DW_FORM_STRING);
const DW_AT_STMT_LIST: (u8, u8) = (0x10, DW_FORM_SEC_OFFSET);
const DW_AT_LOW_PC: (u8, u8) = (0x11, DW_FORM_ADDR);
const DW_AT_HIGH_PC: (u8, u8) = (0x12, DW_FORM_DATA8);
const DW_AT_LANGUAGE: (u8, u8) = (0x13, DW_FORM_DATA2);
const DW_FORM_ADDR: u8 = 0x01;
const DW_FORM_DATA2: u8 = 0x05;
const DW_FORM_DATA8: u8 = 0x07;
const DW_FORM_STRING: u8 = 0x08;
const DW_FORM_SEC_OFFSET: u8 = 0x17;
const DW_LANG_C99: u16 = 0x0c;

const DW_LNS_COPY: u8 = 1;
const DW_LNS_ADVANCE_PC: u8 = 2;
const DW_LNS_ADVANCE_LINE: u8 = 3;
const DW_LNS_SET_FILE: u8 = 4;
const DW_LNS_SET_COLUMN: u8 = 5;
const DW_LNE_END_SEQUENCE: u8 = 1;
const DW_LNE_SET_ADDRESS: u8 = 2;
/// How many operands each standard opcode has; what is behind them is special, and not used.
const OPERANDS: [u8; 12] = [0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1];

impl Lines {
    /// `None` for code that has no lines.
    pub(crate) fn of(info: &CodeInfo<'_>) -> Option<Self> {
        let first = info.lines.first()?;
        Some(Self {
            abbrev: abbrev(),
            info: unit(info, &first.file),
            line: program(info),
        })
    }
}

fn abbrev() -> Vec<u8> {
    let mut out = Bytes::default();
    out.uleb(1);
    out.u8(DW_TAG_COMPILE_UNIT);
    out.u8(0); // no children
    let attributes = [
        DW_AT_NAME,
        DW_AT_LANGUAGE,
        DW_AT_LOW_PC,
        DW_AT_HIGH_PC,
        DW_AT_STMT_LIST,
        (0, 0),
    ];
    for (attribute, form) in attributes {
        out.u8(attribute);
        out.u8(form);
    }
    out.u8(0);
    out.0
}

fn unit(info: &CodeInfo<'_>, name: &str) -> Vec<u8> {
    let mut out = Bytes::default();
    let start = out.open();
    out.u16(4);
    out.u32(0); // where the abbreviations are
    out.u8(8);
    out.uleb(1);
    out.str(name);
    out.u16(DW_LANG_C99);
    out.u64(info.range.start.get());
    out.u64(info.range.len_bytes as u64);
    out.u32(0); // where the line program is
    out.close(start);
    out.0
}

fn program(info: &CodeInfo<'_>) -> Vec<u8> {
    let mut files: BTreeMap<&Arc<str>, u64> = BTreeMap::new();
    let mut names = Vec::new();
    for line in info.lines {
        files.entry(&line.file).or_insert_with(|| {
            names.push(&line.file);
            names.len() as u64
        });
    }
    let mut out = Bytes::default();
    let start = out.open();
    out.u16(4);
    let header = out.open();
    out.u8(1); // shortest instruction
    out.u8(1); // operations of one
    out.u8(1); // rows are statements
    out.u8(0); // line base and range, of special opcodes
    out.u8(1);
    out.u8(OPERANDS.len() as u8 + 1);
    out.0.extend(OPERANDS);
    out.u8(0); // no folders
    for name in names {
        out.str(name);
        // Folder, time, length: not known.
        out.0.extend([0, 0, 0]);
    }
    out.u8(0);
    out.close(header);
    extended(&mut out, DW_LNE_SET_ADDRESS, Some(info.range.start.get()));
    let (mut pc, mut file, mut line, mut column) = (0, 1, 1, 0);
    for entry in info.lines {
        advance(&mut out, entry.off - pc);
        let this = files[&entry.file];
        if this != file {
            out.u8(DW_LNS_SET_FILE);
            out.uleb(this);
        }
        if entry.line != line {
            out.u8(DW_LNS_ADVANCE_LINE);
            out.sleb(i64::from(entry.line) - i64::from(line));
        }
        if entry.column != column {
            out.u8(DW_LNS_SET_COLUMN);
            out.uleb(entry.column.into());
        }
        out.u8(DW_LNS_COPY);
        (pc, file, line, column) = (entry.off, this, entry.line, entry.column);
    }
    advance(&mut out, info.range.len_bytes as u32 - pc);
    extended(&mut out, DW_LNE_END_SEQUENCE, None);
    out.close(start);
    out.0
}

fn advance(out: &mut Bytes, by: u32) {
    if by != 0 {
        out.u8(DW_LNS_ADVANCE_PC);
        out.uleb(by.into());
    }
}

fn extended(out: &mut Bytes, opcode: u8, address: Option<u64>) {
    out.u8(0);
    out.uleb(if address.is_some() { 9 } else { 1 });
    out.u8(opcode);
    if let Some(address) = address {
        out.u64(address);
    }
}
