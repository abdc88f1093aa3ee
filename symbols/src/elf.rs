//! The object that gdb reads: an ELF file in memory about code that is elsewhere.
//!
//! ```text
//!   header, 64 bytes
//!   .eh_frame  .debug_abbrev  .debug_info  .debug_line  .symtab  .strtab  .shstrtab
//!   section headers, 64 bytes each; .text has an address, and no bytes here
//! ```
//!
//! Key function: [`object`]. Neighbours: `gdb` hands it over. Source: ELF specification; RISC-V ELF
//! psABI, "File Header".

use crate::bytes::Bytes;
use crate::info::CodeInfo;
use crate::line::Lines;
use crate::unwind::eh_frame;

const HEADER_BYTES: usize = 64;
const SECTION_BYTES: u16 = 64;
const SYMBOL_BYTES: u64 = 24;

const ET_REL: u16 = 1;
const EM_RISCV: u16 = 243;
/// Compressed instructions, floats in registers of 64 bits.
const EF_RISCV_RVC_DOUBLE: u32 = 0x5;

const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
const SHF_ALLOC: u64 = 2;
const SHF_ALLOC_EXEC: u64 = 2 | 4;
/// Global, function.
const STB_GLOBAL_FUNC: u8 = 1 << 4 | 2;

/// The number of `.text`, which symbols name.
const TEXT: u16 = 1;

#[derive(Debug)]
struct Section {
    name: &'static str,
    kind: u32,
    flags: u64,
    address: u64,
    /// What is in the file; `.text` has none.
    bytes: Vec<u8>,
    size: u64,
    link: u32,
    info: u32,
    entry_bytes: u64,
}

impl Section {
    fn new(name: &'static str, kind: u32, bytes: Vec<u8>) -> Self {
        Self {
            name,
            kind,
            flags: 0,
            address: 0,
            size: bytes.len() as u64,
            bytes,
            link: 0,
            info: 0,
            entry_bytes: 0,
        }
    }
}

/// The object of `info`.
pub(crate) fn object(info: &CodeInfo<'_>) -> Vec<u8> {
    let mut sections = vec![Section {
        flags: SHF_ALLOC_EXEC,
        address: info.range.start.get(),
        size: info.range.len_bytes as u64,
        ..Section::new(".text", SHT_NOBITS, Vec::new())
    }];
    if !info.unwind.is_empty() {
        // Readers take all of the section for frames: tables of landings have no place there, and a
        // debugger no use for them.
        let info = &CodeInfo {
            landings: &[],
            ..info.clone()
        };
        sections.push(Section {
            flags: SHF_ALLOC,
            ..Section::new(".eh_frame", SHT_PROGBITS, eh_frame(info))
        });
    }
    if let Some(lines) = Lines::of(info) {
        sections.push(Section::new(".debug_abbrev", SHT_PROGBITS, lines.abbrev));
        sections.push(Section::new(".debug_info", SHT_PROGBITS, lines.info));
        sections.push(Section::new(".debug_line", SHT_PROGBITS, lines.line));
    }
    let (symbols, names) = symbols(info);
    sections.push(Section {
        // Numbers count from 1: the strings are next.
        link: sections.len() as u32 + 2,
        // The first that is global.
        info: 1,
        entry_bytes: SYMBOL_BYTES,
        ..Section::new(".symtab", SHT_SYMTAB, symbols)
    });
    sections.push(Section::new(".strtab", SHT_STRTAB, names));
    write(sections)
}

/// `.symtab` and its strings.
fn symbols(info: &CodeInfo<'_>) -> (Vec<u8>, Vec<u8>) {
    let (mut table, mut names) = (Bytes::default(), Bytes::default());
    names.u8(0);
    table.0.resize(SYMBOL_BYTES as usize, 0);
    for symbol in info.symbols {
        table.u32(names.0.len() as u32);
        names.str(&symbol.name);
        table.u8(STB_GLOBAL_FUNC);
        table.u8(0);
        table.u16(TEXT);
        // In an object that is not linked, from the section's start.
        table.u64(symbol.off.into());
        table.u64(symbol.len.into());
    }
    (table.0, names.0)
}

fn write(mut sections: Vec<Section>) -> Vec<u8> {
    let mut names = Bytes::default();
    names.u8(0);
    let mut name_offs: Vec<u32> = Vec::new();
    sections.push(Section::new(".shstrtab", SHT_STRTAB, Vec::new()));
    for section in &sections {
        name_offs.push(names.0.len() as u32);
        names.str(section.name);
    }
    if let Some(last) = sections.last_mut() {
        last.size = names.0.len() as u64;
        last.bytes = names.0;
    }
    let mut out = Bytes::default();
    out.0.resize(HEADER_BYTES, 0);
    let mut headers = Bytes::default();
    headers.0.resize(SECTION_BYTES.into(), 0);
    for (section, name) in sections.iter().zip(name_offs) {
        out.align(0, 8, 0);
        headers.u32(name);
        headers.u32(section.kind);
        headers.u64(section.flags);
        headers.u64(section.address);
        headers.u64(out.0.len() as u64);
        headers.u64(section.size);
        headers.u32(section.link);
        headers.u32(section.info);
        headers.u64(8);
        headers.u64(section.entry_bytes);
        out.0.extend(&section.bytes);
    }
    out.align(0, 8, 0);
    let header = header(out.0.len() as u64, sections.len() as u16 + 1);
    out.0[..HEADER_BYTES].copy_from_slice(&header);
    out.0.extend(headers.0);
    out.0
}

fn header(sections_at: u64, nr_sections: u16) -> Vec<u8> {
    let mut out = Bytes::default();
    out.0.extend(*b"\x7fELF");
    // 64 bits, little-endian, version 1, System V.
    out.0.extend([2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.u16(ET_REL);
    out.u16(EM_RISCV);
    out.u32(1);
    out.u64(0); // entry
    out.u64(0); // program headers
    out.u64(sections_at);
    out.u32(EF_RISCV_RVC_DOUBLE);
    out.u16(HEADER_BYTES as u16);
    out.u16(0);
    out.u16(0);
    out.u16(SECTION_BYTES);
    out.u16(nr_sections);
    out.u16(nr_sections - 1);
    out.0
}

#[cfg(test)]
mod tests;
