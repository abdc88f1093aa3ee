//! Objects loaded into this process: their entry pads and their vector functions.
//!
//! `__patchable_function_entries` is an allocated, writable section of addresses. Where it is
//! stands in the section headers, which are not loaded: they are read from the object's file.
//! The addresses themselves are read in memory, where the dynamic linker has relocated them. The
//! file must be the one that was loaded: its program headers and notes (the build id among them)
//! are compared with those in memory.
//!
//! Key types: [`Object`], [`find`]. Neighbours: `pad`. Source: ELF gABI, `dl_iterate_phdr(3)`,
//! GCC manual (`-fpatchable-function-entry`), RISC-V ELF psABI (`STO_RISCV_VARIANT_CC`).
#![expect(
    unsafe_code,
    reason = "dl_iterate_phdr, and a lock that is held across fork"
)]

use std::ffi::{CStr, OsStr, c_int, c_void};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object as _, ObjectSection, ObjectSymbol, SymbolFlags, SymbolKind};

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::proc_maps::ProcMaps;
use crate::sync::{ForkMutex, ForkMutexGuard, RawForkMutex};
use crate::sys;

/// In `st_other`: the function's arguments may be in vector registers.
const STO_RISCV_VARIANT_CC: u8 = 0x80;
const SECTION: &str = "__patchable_function_entries";

/// What is known of a loaded object.
#[derive(Debug)]
pub(crate) struct Object {
    key: Key,
    /// The addresses in `__patchable_function_entries`, sorted, each once.
    pub(crate) pads: Vec<RxAddr>,
    /// Where functions start, sorted.
    funcs: Vec<RxAddr>,
    /// Functions of a variant calling convention.
    variants: Vec<(RxRange, Box<str>)>,
}

/// What an object is cached by.
#[derive(Clone, Eq, PartialEq, Debug)]
struct Key {
    base: u64,
    path: PathBuf,
    dev: u64,
    inode: u64,
}

/// Objects that have been read. Those closed since are dropped when their place is taken.
static CACHE: ForkMutex<Vec<Arc<Object>>> = ForkMutex::const_new(
    <RawForkMutex as parking_lot::lock_api::RawMutex>::INIT,
    Vec::new(),
);

/// Held while the dynamic linker is asked, and across `fork`: glibc frees its other locks in the
/// child, but not the one of `dl_iterate_phdr` (`posix/fork.c`), which another thread may be holding.
static ASKING: ForkMutex<()> =
    ForkMutex::const_new(<RawForkMutex as parking_lot::lock_api::RawMutex>::INIT, ());

/// Takes the locks of this module for the time of a fork.
pub(crate) fn before_fork() {
    let _asking = ManuallyDrop::new(ASKING.lock());
    let _cache = ManuallyDrop::new(CACHE.lock());
}

/// Gives them back, in the parent and in the child.
pub(crate) fn after_fork() {
    // SAFETY: `before_fork` took the lock on this thread and forgot its guard.
    unsafe { CACHE.force_unlock() };
    // SAFETY: as above.
    unsafe { ASKING.force_unlock() };
}

/// The object that holds `addr`, and the segment in which it does; `None` when no object does.
pub(crate) fn find(addr: RxAddr) -> Result<Option<(Arc<Object>, RxRange)>, TextError> {
    let Some(loaded) = Loaded::find(addr) else {
        return Ok(None);
    };
    let file = File::open(&loaded.path).map_err(|e| loaded.io_error(&e))?;
    let meta = file.metadata().map_err(|e| loaded.io_error(&e))?;
    let key = Key {
        base: loaded.base,
        path: loaded.path.clone(),
        dev: meta.dev(),
        inode: meta.ino(),
    };
    let known = cache().iter().find(|o| o.key == key).cloned();
    let object = match known {
        Some(object) => object,
        None => {
            let object = Arc::new(Object::read(&loaded, key, &file)?);
            let mut cache = cache();
            cache.retain(|o| o.key.base != object.key.base);
            cache.push(Arc::clone(&object));
            object
        }
    };
    Ok(Some((object, loaded.segment)))
}

fn cache() -> ForkMutexGuard<'static, Vec<Arc<Object>>> {
    CACHE.lock()
}

/// What the dynamic linker says of an object.
struct Loaded {
    base: u64,
    path: PathBuf,
    /// The segment that holds the address asked for.
    segment: RxRange,
    /// The program headers, as they are in memory.
    phdrs: Vec<libc::Elf64_Phdr>,
}

impl Loaded {
    fn find(addr: RxAddr) -> Option<Self> {
        let mut search = Search { addr, found: None };
        let _asking = ASKING.lock();
        // SAFETY:
        // 1. `visit` has the type that the call wants and does not unwind.
        // 2. `search` outlives the call and nobody else uses it meanwhile.
        unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast::<c_void>()) };
        search.found
    }

    fn error(&self, reason: &'static str) -> TextError {
        TextError::ObjectFile {
            object: self.path.as_path().into(),
            errno: 0,
            reason,
        }
    }

    fn io_error(&self, e: &std::io::Error) -> TextError {
        TextError::ObjectFile {
            object: self.path.as_path().into(),
            errno: e.raw_os_error().unwrap_or(0),
            reason: "its file is needed for its section headers, which are not loaded",
        }
    }
}

struct Search {
    addr: RxAddr,
    found: Option<Loaded>,
}

unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    data: *mut c_void,
) -> c_int {
    // SAFETY: the dynamic linker passes a live structure.
    let info = unsafe { &*info };
    // SAFETY: `data` is the `Search` of `Loaded::find`, borrowed by nobody else.
    let search = unsafe { &mut *data.cast::<Search>() };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the structure says how many headers there are, and they are loaded.
    let phdrs = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let range_of = |ph: &libc::Elf64_Phdr| {
        let start = RxAddr::new(info.dlpi_addr.wrapping_add(ph.p_vaddr));
        RxRange::new(start, ph.p_memsz as usize)
    };
    let mut loads = phdrs
        .iter()
        .filter(|ph| ph.p_type == libc::PT_LOAD)
        .map(range_of);
    let Some(segment) = loads.find(|segment| segment.contains(search.addr)) else {
        return 0;
    };
    let name = if info.dlpi_name.is_null() {
        &[]
    } else {
        // SAFETY: a name is a NUL-terminated string that lives as long as the object.
        unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes()
    };
    // The main program has no name.
    let path = if name.is_empty() {
        "/proc/self/exe".as_bytes()
    } else {
        name
    };
    search.found = Some(Loaded {
        base: info.dlpi_addr,
        path: Path::new(OsStr::from_bytes(path)).to_path_buf(),
        segment,
        phdrs: phdrs.to_vec(),
    });
    1
}

type Elf<'a> = ElfFile64<'a, object::LittleEndian>;

impl Object {
    fn read(loaded: &Loaded, key: Key, file: &File) -> Result<Self, TextError> {
        // SAFETY: the file is only read; should somebody truncate a library in use, this access
        // is not the first to fault.
        let bytes = unsafe { Mmap::map(file) }.map_err(|e| loaded.io_error(&e))?;
        let malformed = |_| loaded.error("it is no well-formed little-endian ELF64 file");
        let elf = Elf::parse(&*bytes).map_err(malformed)?;
        let maps = ProcMaps::read()?;
        check_is_loaded(loaded, &elf, &maps)?;
        if elf.elf_section_table().is_empty() {
            return Err(loaded.error("its section headers are stripped"));
        }
        let mut object = Self {
            key,
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
    if headers.len() != loaded.phdrs.len() {
        return Err(stale());
    }
    for (in_file, in_memory) in headers.iter().zip(&loaded.phdrs) {
        let is_same = in_file.p_type(endian).0 == in_memory.p_type
            && in_file.p_vaddr(endian) == in_memory.p_vaddr
            && in_file.p_filesz(endian) == in_memory.p_filesz
            && in_file.p_memsz(endian) == in_memory.p_memsz;
        if !is_same {
            return Err(stale());
        }
        if in_memory.p_type == libc::PT_NOTE {
            let start = RxAddr::new(loaded.base.wrapping_add(in_memory.p_vaddr));
            let range = RxRange::new(start, in_memory.p_filesz as usize);
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
