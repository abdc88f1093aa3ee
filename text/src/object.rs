//! Objects loaded into this process: their entry pads and their vector functions.
//!
//! `__patchable_function_entries` is an allocated, writable section of addresses. Where it is
//! stands in the section headers, which are not loaded: they are read from the object's file.
//! The addresses themselves are read in memory, where the dynamic linker has relocated them. The
//! file must be the one that was loaded: its program headers and notes (the build id among them)
//! are compared with those in memory.
//!
//! Key types: [`Object`], [`find`], [`with_file`]. Neighbours: `loaded` says what there is, `pad`,
//! `catalog` and `unchanged` use what is read here, `cache` keeps it. Source: ELF gABI, GCC manual
//! (`-fpatchable-function-entry`), RISC-V ELF psABI (`STO_RISCV_VARIANT_CC`).

use std::fs::File;
use std::sync::Arc;

use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object as _, ObjectSection, ObjectSymbol, SymbolFlags, SymbolKind};

use crate::addr::{RxAddr, RxRange};
use crate::cache;
use crate::error::TextError;
use crate::file;
use crate::loaded::{Header, Loaded};
use crate::proc_maps::ProcMaps;
use crate::sys;

/// In `st_other`: the function's arguments may be in vector registers.
pub(crate) const STO_RISCV_VARIANT_CC: u8 = 0x80;
const SECTION: &str = "__patchable_function_entries";

/// What is known of a loaded object.
#[derive(Debug)]
pub(crate) struct Object {
    loaded: Arc<Loaded>,
    /// The addresses in `__patchable_function_entries`, sorted, each once.
    pub(crate) pads: Vec<RxAddr>,
    /// Where functions start, sorted.
    funcs: Vec<RxAddr>,
    /// Functions of a variant calling convention.
    variants: Vec<(RxRange, Box<str>)>,
}

/// The object that holds `addr`, and the segment in which it does; `None` when no object does.
pub(crate) fn find(
    addr: RxAddr,
    maps: &ProcMaps,
) -> Result<Option<(Arc<Object>, RxRange)>, TextError> {
    let Some(loaded) = Loaded::find(addr) else {
        return Ok(None);
    };
    let segment = loaded
        .segment_of(addr)
        .ok_or(TextError::Unmapped { addr })?;
    let object = match known(&loaded) {
        Some(object) => object,
        None => {
            let file = file::open(&loaded, maps)?;
            let object = Arc::new(Object::read(&loaded, &file, maps)?);
            let objects = &mut cache::lock().objects;
            objects.retain(|o| o.loaded.base != loaded.base);
            objects.push(Arc::clone(&object));
            object
        }
    };
    Ok(Some((object, segment)))
}

/// What has been read of an object. What becomes of its file afterwards says nothing of what is
/// loaded.
pub(crate) fn known(loaded: &Loaded) -> Option<Arc<Object>> {
    let cache = cache::lock();
    let found = cache.objects.iter().find(|o| *o.loaded == *loaded);
    found.cloned()
}

pub(crate) type Elf<'a> = ElfFile64<'a, object::LittleEndian>;

/// What `read` makes of the file of an object, with its section headers, if it is the one that
/// was loaded.
pub(crate) fn with_file<T>(
    loaded: &Loaded,
    file: &File,
    maps: &ProcMaps,
    read: impl FnOnce(&Elf<'_>) -> Result<T, TextError>,
) -> Result<T, TextError> {
    with_headers(loaded, file, maps, |elf| {
        if elf.elf_section_table().is_empty() {
            return Err(loaded.error("its section headers are stripped"));
        }
        read(elf)
    })
}

/// The same of a file that may have its program headers alone.
pub(crate) fn with_headers<T>(
    loaded: &Loaded,
    file: &File,
    maps: &ProcMaps,
    read: impl FnOnce(&Elf<'_>) -> Result<T, TextError>,
) -> Result<T, TextError> {
    let bytes = sys::map_file(file).map_err(|e| loaded.io_error(&e))?;
    let malformed = |_| loaded.error("it is no well-formed little-endian ELF64 file");
    let elf = Elf::parse(&*bytes).map_err(malformed)?;
    check_is_loaded(loaded, &elf, maps)?;
    read(&elf)
}

impl Object {
    fn read(loaded: &Arc<Loaded>, file: &File, maps: &ProcMaps) -> Result<Self, TextError> {
        with_file(loaded, file, maps, |elf| Self::read_elf(loaded, elf, maps))
    }

    fn read_elf(loaded: &Arc<Loaded>, elf: &Elf<'_>, maps: &ProcMaps) -> Result<Self, TextError> {
        let mut object = Self {
            loaded: Arc::clone(loaded),
            pads: Vec::new(),
            funcs: Vec::new(),
            variants: Vec::new(),
        };
        for section in elf.sections().filter(|s| s.name() == Ok(SECTION)) {
            let start = RxAddr::new(loaded.base.wrapping_add(section.address()));
            let range = RxRange::new(start, section.size() as usize & !7);
            if !start.is_aligned(8) || !maps.is_readable(range) {
                return Err(loaded.error("its __patchable_function_entries are not in memory"));
            }
            let mut values = vec![0; range.len_bytes];
            sys::read_text(start, &mut values);
            object
                .pads
                .extend(values.chunks_exact(8).filter_map(address));
        }
        object.pads.sort_unstable();
        object.pads.dedup();
        for symbol in elf.dynamic_symbols().chain(elf.symbols()) {
            object.add_symbol(loaded.base, &symbol);
        }
        object.funcs.sort_unstable();
        object.funcs.dedup();
        Ok(object)
    }

    fn add_symbol<'d>(&mut self, base: u64, symbol: &impl ObjectSymbol<'d>) {
        if symbol.is_undefined() {
            return;
        }
        let start = RxAddr::new(base.wrapping_add(symbol.address()));
        if symbol.kind() == SymbolKind::Text {
            self.funcs.push(start);
        }
        if let SymbolFlags::Elf { st_other, .. } = symbol.flags() {
            if st_other.0 & STO_RISCV_VARIANT_CC != 0 {
                let name = symbol.name_bytes().unwrap_or_default();
                let range = RxRange::new(start, (symbol.size() as usize).max(1));
                self.variants
                    .push((range, String::from_utf8_lossy(name).into()));
            }
        }
    }

    /// The name of the function at `addr`, if it follows a variant calling convention.
    pub(crate) fn variant_at(&self, addr: RxAddr) -> Option<&str> {
        self.variants
            .iter()
            .find(|(range, _)| range.contains(addr))
            .map(|(_, name)| &**name)
    }

    /// Whether the symbols name a function that starts at `addr`.
    pub(crate) fn is_func(&self, addr: RxAddr) -> bool {
        self.funcs.binary_search(&addr).is_ok()
    }

    /// The first function that starts in `range`.
    pub(crate) fn func_in(&self, range: RxRange) -> Option<RxAddr> {
        let i = self.funcs.partition_point(|f| *f < range.start);
        self.funcs.get(i).copied().filter(|f| *f <= range.end())
    }

    /// The last pad address at or before `addr`.
    pub(crate) fn pad_before(&self, addr: RxAddr) -> Option<RxAddr> {
        let i = self.pads.partition_point(|p| *p <= addr);
        self.pads.get(i.checked_sub(1)?).copied()
    }
}

/// One entry of the section; discarded functions leave zeros.
fn address(entry: &[u8]) -> Option<RxAddr> {
    let value = u64::from_le_bytes(entry.try_into().ok()?);
    (value != 0).then_some(RxAddr::new(value))
}

/// Compares the file's program headers and notes with those in memory.
fn check_is_loaded(loaded: &Loaded, elf: &Elf<'_>, maps: &ProcMaps) -> Result<(), TextError> {
    let stale = || loaded.error("the file at its path is not the one that was loaded");
    let endian = object::LittleEndian;
    let headers = elf.elf_program_headers();
    if headers.len() != loaded.headers.len() {
        return Err(stale());
    }
    for (in_file, in_memory) in headers.iter().zip(&loaded.headers) {
        let from_file = Header {
            kind: in_file.p_type(endian).0,
            flags: in_file.p_flags(endian).0,
            offset: in_file.p_offset(endian),
            vaddr: in_file.p_vaddr(endian),
            filesz: in_file.p_filesz(endian),
            memsz: in_file.p_memsz(endian),
        };
        if from_file != *in_memory {
            return Err(stale());
        }
        if in_memory.kind == libc::PT_NOTE {
            let start = loaded.range_of(in_memory).start;
            let range = RxRange::new(start, in_memory.filesz as usize);
            let want = in_file.data(endian, elf.data()).map_err(|()| stale())?;
            let mut note = vec![0; want.len()];
            if want.len() != range.len_bytes || !maps.is_readable(range) {
                return Err(stale());
            }
            sys::read_text(start, &mut note);
            if note != want {
                return Err(stale());
            }
        }
    }
    Ok(())
}
