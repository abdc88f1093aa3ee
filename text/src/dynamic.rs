//! What an object tells the dynamic linker: its symbols, and the slots through which it calls.
//!
//! All of it is loaded, so it is there for stripped objects, and for those whose files have been
//! replaced since. Addresses in the dynamic section are relocated in place by most dynamic
//! linkers; where the section is read-only (RISC-V's ABI, the vDSO) they are offsets from the
//! base. What lies in the object is an address.
//!
//! Key types: [`Dynamic`], [`Slot`]. Neighbours: `catalog` joins it with what else is known of
//! functions, `stub` follows the slots. Source: ELF gABI, chapter 5; LSB, "Symbol Versioning";
//! `DT_GNU_HASH` as in glibc's `elf/dl-lookup.c`; RISC-V ELF psABI, "Relocations".

use std::collections::BTreeMap;

use crate::addr::{RxAddr, RxRange};
use crate::loaded::Loaded;
use crate::proc_maps::ProcMaps;
use crate::span::Span;
use crate::sys;

/// Kinds of relocations of this machine.
#[cfg(target_arch = "riscv64")]
mod reloc {
    pub(super) const ADDRESS: u32 = 2;
    pub(super) const JUMP_SLOT: u32 = 5;
    pub(super) const IRELATIVE: u32 = 58;
    /// RISC-V has none: an address in the GOT is an address.
    pub(super) const GLOB_DAT: u32 = ADDRESS;
}
#[cfg(target_arch = "x86_64")]
mod reloc {
    pub(super) const ADDRESS: u32 = 1;
    pub(super) const GLOB_DAT: u32 = 6;
    pub(super) const JUMP_SLOT: u32 = 7;
    pub(super) const IRELATIVE: u32 = 37;
}
#[cfg(not(any(target_arch = "riscv64", target_arch = "x86_64")))]
mod reloc {
    pub(super) const ADDRESS: u32 = 257;
    pub(super) const GLOB_DAT: u32 = 1025;
    pub(super) const JUMP_SLOT: u32 = 1026;
    pub(super) const IRELATIVE: u32 = 1032;
}

/// A symbol as the object has it.
#[derive(Clone, Debug)]
pub(crate) struct RawSymbol {
    pub(crate) name: Box<str>,
    /// `st_value`, not relocated.
    pub(crate) value: u64,
    pub(crate) size: u64,
    /// `STT_…`.
    pub(crate) kind: u8,
    /// `STB_…`.
    pub(crate) binding: u8,
    pub(crate) other: u8,
    pub(crate) section: u16,
    /// Whether only who asks for its version gets it.
    pub(crate) is_old: bool,
    /// The version that is asked for, of a symbol that is not defined here.
    pub(crate) version: Option<Box<str>>,
}

/// A word that the dynamic linker fills with the address of a function.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Slot {
    /// Of the symbol with this index.
    Symbol(u32),
    /// Of what the function at this address (relocated) chooses.
    Chosen(RxAddr),
}

/// What the dynamic section leads to.
#[derive(Debug, Default)]
pub(crate) struct Dynamic {
    /// By index, with the empty one.
    pub(crate) symbols: Vec<RawSymbol>,
    /// By address.
    pub(crate) slots: BTreeMap<u64, Slot>,
    /// `DT_SONAME`.
    pub(crate) soname: Option<Box<str>>,
}

impl Dynamic {
    /// What there is of it; nothing, in an object without a dynamic section.
    pub(crate) fn read(object: &Loaded, maps: &ProcMaps) -> Self {
        let Some(tags) = Tags::read(object, maps) else {
            return Self::default();
        };
        let strings = tags.table(tag::STRTAB, tag::STRSZ);
        let text = |off: u64| -> Option<Box<str>> {
            let strings = strings.as_ref()?;
            let start = tags.address(tag::STRTAB)?;
            Some(String::from_utf8_lossy(strings.text(start.checked_add(off)?)?).into())
        };
        Self {
            symbols: tags.symbols(&text).unwrap_or_default(),
            slots: tags.slots(),
            soname: tags.values.get(&tag::SONAME).and_then(|off| text(*off)),
        }
    }
}

/// Whether the dynamic linker has changed the object's text.
pub(crate) fn has_text_relocations(object: &Loaded, maps: &ProcMaps) -> bool {
    /// In `DT_FLAGS`.
    const DF_TEXTREL: u64 = 4;
    Tags::read(object, maps).is_some_and(|tags| {
        let flags = tags.values.get(&tag::FLAGS).copied().unwrap_or(0);
        tags.values.contains_key(&tag::TEXTREL) || flags & DF_TEXTREL != 0
    })
}

/// By what names an object is found and finds others.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    /// `DT_SONAME`.
    pub(crate) soname: Option<Box<str>>,
    /// `DT_NEEDED`.
    pub(crate) needed: Vec<Box<str>>,
    /// Whether the object says that it is never closed (`DF_1_NODELETE`).
    pub(crate) is_kept: bool,
}

impl Needs {
    /// What there is of it.
    pub(crate) fn read(object: &Loaded, maps: &ProcMaps) -> Option<Self> {
        /// In `DT_FLAGS_1`.
        const DF_1_NODELETE: u64 = 8;
        let tags = Tags::read(object, maps)?;
        let strings = tags.table(tag::STRTAB, tag::STRSZ)?;
        let start = tags.address(tag::STRTAB)?;
        let text = |off: u64| -> Option<Box<str>> {
            Some(String::from_utf8_lossy(strings.text(start.checked_add(off)?)?).into())
        };
        let flags = tags.values.get(&tag::FLAGS_1).copied().unwrap_or(0);
        Some(Self {
            soname: tags.values.get(&tag::SONAME).and_then(|off| text(*off)),
            needed: tags.needed.iter().filter_map(|off| text(*off)).collect(),
            is_kept: flags & DF_1_NODELETE != 0,
        })
    }
}

/// Entries of the dynamic section (`DT_…`).
mod tag {
    pub(super) const NULL: u64 = 0;
    pub(super) const NEEDED: u64 = 1;
    pub(super) const PLTRELSZ: u64 = 2;
    pub(super) const HASH: u64 = 4;
    pub(super) const STRTAB: u64 = 5;
    pub(super) const SYMTAB: u64 = 6;
    pub(super) const RELA: u64 = 7;
    pub(super) const RELASZ: u64 = 8;
    pub(super) const STRSZ: u64 = 10;
    pub(super) const SONAME: u64 = 14;
    pub(super) const TEXTREL: u64 = 22;
    pub(super) const JMPREL: u64 = 23;
    pub(super) const FLAGS: u64 = 30;
    pub(super) const FLAGS_1: u64 = 0x6fff_fffb;
    pub(super) const GNU_HASH: u64 = 0x6fff_fef5;
    pub(super) const VERSYM: u64 = 0x6fff_fff0;
    pub(super) const VERNEED: u64 = 0x6fff_fffe;
    pub(super) const VERNEEDNUM: u64 = 0x6fff_ffff;
}

const SYMBOL_BYTES: usize = 24;
const RELA_BYTES: usize = 24;
/// In a version's index: only who asks for it gets it.
const HIDDEN: u16 = 0x8000;

/// The dynamic section.
struct Tags<'a> {
    object: &'a Loaded,
    maps: &'a ProcMaps,
    values: BTreeMap<u64, u64>,
    /// Of `DT_NEEDED`, of which there may be many.
    needed: Vec<u64>,
}

impl<'a> Tags<'a> {
    fn read(object: &'a Loaded, maps: &'a ProcMaps) -> Option<Self> {
        let section = object.range_of(object.header(libc::PT_DYNAMIC)?);
        let span = Span::read(section, maps)?;
        let (mut values, mut needed) = (BTreeMap::new(), Vec::new());
        for at in (section.start.get()..section.end().get()).step_by(16) {
            match (span.u64(at)?, span.u64(at + 8)?) {
                (tag::NULL, _) => break,
                (tag::NEEDED, name) => needed.push(name),
                (tag, value) => _ = values.insert(tag, value),
            };
        }
        Some(Self {
            object,
            maps,
            values,
            needed,
        })
    }

    fn address(&self, tag: u64) -> Option<u64> {
        let value = *self.values.get(&tag)?;
        let is_address = self.object.segment_of(RxAddr::new(value)).is_some();
        Some(if is_address {
            value
        } else {
            self.object.base.wrapping_add(value)
        })
    }

    /// The table that one entry leads to and another gives the length of.
    fn table(&self, start: u64, len: u64) -> Option<Span> {
        let len_bytes = usize::try_from(*self.values.get(&len)?).ok()?;
        Span::at(self.address(start)?, len_bytes, self.maps)
    }

    fn word(&self, at: u64) -> Option<u32> {
        Span::at(at, 4, self.maps)?.u32(at)
    }

    /// How many symbols there are, which only the hash tables say.
    fn symbol_count(&self) -> Option<u32> {
        match self.address(tag::GNU_HASH) {
            Some(table) => self.gnu_hash_count(table),
            None => self.word(self.address(tag::HASH)? + 4),
        }
    }

    /// The last symbol is the last one of the bucket that begins last; its hash is odd.
    fn gnu_hash_count(&self, table: u64) -> Option<u32> {
        let head = Span::at(table, 16, self.maps)?;
        let buckets = head.u32(table)?;
        let first_hashed = head.u32(table + 4)?;
        let filter_words = head.u32(table + 8)?;
        let start = table + 16 + 8 * u64::from(filter_words);
        let len_bytes = 4 * buckets as usize;
        let span = Span::at(start, len_bytes, self.maps)?;
        let last = (0..buckets).filter_map(|i| span.u32(start + 4 * u64::from(i)));
        let Some(mut last) = last.max().filter(|last| *last >= first_hashed) else {
            return Some(first_hashed);
        };
        let chain = start + len_bytes as u64;
        while self.word(chain + 4 * u64::from(last - first_hashed))? & 1 == 0 {
            last += 1;
        }
        Some(last + 1)
    }

    fn symbols(&self, text: &dyn Fn(u64) -> Option<Box<str>>) -> Option<Vec<RawSymbol>> {
        let count = self.symbol_count()?;
        let start = self.address(tag::SYMTAB)?;
        let table = Span::at(start, SYMBOL_BYTES * count as usize, self.maps)?;
        let versions = self
            .address(tag::VERSYM)
            .and_then(|at| Some((at, Span::at(at, 2 * count as usize, self.maps)?)));
        let needed = self.needed_versions(text);
        let read = |i: u32| {
            let at = start + u64::from(i) * SYMBOL_BYTES as u64;
            let (info, other) = (table.get(at + 4, 1)?[0], table.get(at + 5, 1)?[0]);
            let section = table.u16(at + 6)?;
            let version = versions
                .as_ref()
                .and_then(|(at, span)| span.u16(at + 2 * u64::from(i)));
            let index = version.map_or(0, |v| v & !HIDDEN);
            Some(RawSymbol {
                name: text(table.u32(at)?.into())?,
                value: table.u64(at + 8)?,
                size: table.u64(at + 16)?,
                kind: info & 0xf,
                binding: info >> 4,
                other,
                section,
                is_old: version.is_some_and(|v| v & HIDDEN != 0),
                version: needed.get(&index).filter(|_| section == 0).cloned(),
            })
        };
        (0..count).map(read).collect()
    }

    /// The names of the versions that are asked for, by their index.
    fn needed_versions(&self, text: &dyn Fn(u64) -> Option<Box<str>>) -> BTreeMap<u16, Box<str>> {
        let mut needed = BTreeMap::new();
        let read = |needed: &mut BTreeMap<u16, Box<str>>| -> Option<()> {
            let mut need_at = self.address(tag::VERNEED)?;
            for _ in 0..*self.values.get(&tag::VERNEEDNUM)? {
                let need = Span::at(need_at, 16, self.maps)?;
                let mut aux_at = need_at + u64::from(need.u32(need_at + 8)?);
                for _ in 0..need.u16(need_at + 2)? {
                    let aux = Span::at(aux_at, 16, self.maps)?;
                    let index = aux.u16(aux_at + 6)? & !HIDDEN;
                    needed.insert(index, text(aux.u32(aux_at + 8)?.into())?);
                    aux_at += u64::from(aux.u32(aux_at + 12)?);
                }
                need_at += u64::from(need.u32(need_at + 12)?);
            }
            Some(())
        };
        // What cannot be read is not asked for: then any version is taken.
        let _ = read(&mut needed);
        needed
    }

    fn slots(&self) -> BTreeMap<u64, Slot> {
        let tables = [(tag::RELA, tag::RELASZ), (tag::JMPREL, tag::PLTRELSZ)];
        let mut slots = BTreeMap::new();
        for (start, len) in tables {
            let (Some(span), Some(first)) = (self.table(start, len), self.address(start)) else {
                continue;
            };
            for at in (first..span.end()).step_by(RELA_BYTES) {
                slots.extend(self.slot(&span, at));
            }
        }
        slots
    }

    fn slot(&self, table: &Span, at: u64) -> Option<(u64, Slot)> {
        let slot = self.object.base.wrapping_add(table.u64(at)?);
        let info = table.u64(at + 8)?;
        let addend = table.u64(at + 16)?;
        let symbol = (info >> 32) as u32;
        let kind = match info as u32 {
            reloc::JUMP_SLOT => Slot::Symbol(symbol),
            reloc::GLOB_DAT | reloc::ADDRESS if addend == 0 => Slot::Symbol(symbol),
            reloc::IRELATIVE => Slot::Chosen(RxAddr::new(self.object.base.wrapping_add(addend))),
            _ => return None,
        };
        Some((slot, kind))
    }
}

/// What a slot holds now; `None` when it is not in memory.
pub(crate) fn load(slot: RxAddr, maps: &ProcMaps) -> Option<RxAddr> {
    if !slot.is_aligned(8) || !maps.is_readable(RxRange::new(slot, 8)) {
        return None;
    }
    Some(RxAddr::new(sys::load_slot_u64(slot)))
}
