//! Objects in other namespaces (`dlmopen`), which `dl_iterate_phdr` does not list.
//!
//! ```text
//!   program's DT_DEBUG ──▶ r_debug (the first namespace) ──▶ r_debug ──▶ …   one a namespace
//!                                                             r_map ──▶ link_map ──▶ link_map ──▶ …
//! ```
//! This is what debuggers read. Objects come into these lists when they are mapped and leave them
//! when they are unmapped, under the lock that `dl_iterate_phdr` holds, so they are read in a callback
//! of that function. A `link_map` does not say where the program headers are: they are found from
//! the ELF header, with which an object's first segment begins.
//!
//! Key types: [`Namespace`], [`Mapped`]. Neighbour: `loaded` lists them behind the others. Source:
//! glibc's `elf/link.h` (`struct r_debug_extended`), `elf/dl-debug.c`, `elf/dl-iteratephdr.c`;
//! `dlmopen(3)`, `dlinfo(3)`.
#![expect(
    unsafe_code,
    reason = "lists of the dynamic linker, and its dlinfo and dlmopen"
)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use crate::addr::{RxAddr, RxRange};
use crate::proc_maps::ProcMaps;

/// `struct r_debug_extended`. Others append to it.
#[repr(C)]
struct Debug {
    version: c_int,
    map: *const LinkMap,
    brk: u64,
    state: c_int,
    ldbase: u64,
    /// From version 2 on.
    next: *const Debug,
}

/// The public part of `struct link_map`.
#[repr(C)]
struct LinkMap {
    addr: u64,
    name: *const c_char,
    ld: u64,
    next: *const LinkMap,
    prev: *const LinkMap,
}

/// The namespace of an object, and the dynamic linker's handle of that.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct Namespace {
    /// 0 is the one that `dl_iterate_phdr` lists.
    id: usize,
    map: usize,
}

/// An object of another namespace.
pub(crate) struct Mapped {
    pub(crate) info: libc::dl_phdr_info,
    pub(crate) namespace: Namespace,
}

impl Namespace {
    /// Whether it is one that `dl_iterate_phdr` does not list.
    #[must_use]
    pub fn is_other(self) -> bool {
        self.id != 0
    }

    /// Whether both objects see each other.
    pub(crate) fn is_of(self, other: Self) -> bool {
        self.id == other.id
    }

    /// A reference to the object of this name, which is loaded; null if the dynamic linker gives
    /// none. It is given back by `dlclose`.
    ///
    /// Takes the dynamic linker's lock, under which constructors run.
    #[must_use]
    pub fn open(self, name: Option<&CStr>) -> *mut c_void {
        let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
        let path = name.map_or(ptr::null(), CStr::as_ptr);
        if !self.is_other() {
            // SAFETY:
            // 1. A NUL-terminated path, or none.
            // 2. RTLD_NOLOAD loads nothing, so no constructor runs.
            return unsafe { libc::dlopen(path, flags) };
        }
        let handle = ptr::with_exposed_provenance_mut::<c_void>(self.map);
        let mut id: libc::Lmid_t = 0;
        // SAFETY:
        // 1. glibc's handles are its link maps, and who asks keeps the object loaded.
        // 2. This question is answered by a number (`dlinfo(3)`).
        let rc = unsafe { libc::dlinfo(handle, libc::RTLD_DI_LMID, (&raw mut id).cast()) };
        if rc != 0 {
            return ptr::null_mut();
        }
        // SAFETY: as for `dlopen`.
        unsafe { libc::dlmopen(id, path, flags) }
    }
}

/// The objects of all namespaces but those of `listed`, of which the first is the program.
///
/// To be called in a callback of `dl_iterate_phdr` only.
pub(crate) fn others(listed: &[libc::dl_phdr_info]) -> Vec<Mapped> {
    let mut all = Vec::new();
    let Some(mut debug) = listed.first().and_then(debug_of) else {
        return all;
    };
    let mut maps = None;
    // SAFETY:
    // 1. The dynamic linker keeps these structures, and appends to their list alone.
    while let Some(next) = unsafe { next_of(debug) } {
        debug = next;
        let maps = maps.get_or_insert_with(ProcMaps::read);
        let Ok(maps) = maps else { break };
        // SAFETY: 1. as above; the lock of its lists is held.
        let mut map = unsafe { (*debug).map };
        while !map.is_null() {
            // SAFETY: as above.
            let object = unsafe { &*map };
            let is_new = listed.iter().all(|info| info.dlpi_addr != object.addr);
            if let Some(mut info) = info_of(object, maps).filter(|_| is_new) {
                info.dlpi_adds = listed[0].dlpi_adds;
                info.dlpi_subs = listed[0].dlpi_subs;
                let namespace = Namespace {
                    id: debug.expose_provenance(),
                    map: map.expose_provenance(),
                };
                all.push(Mapped { info, namespace });
            }
            map = object.next;
        }
    }
    all
}

/// # Safety
/// 1. `debug` is a structure of the dynamic linker.
unsafe fn next_of(debug: *const Debug) -> Option<*const Debug> {
    // SAFETY: 1. the caller's promise.
    let version = unsafe { (*debug).version };
    // SAFETY: 1. as above; this version has the field.
    let next = (version >= 2).then(|| unsafe { (*debug).next })?;
    (!next.is_null()).then_some(next)
}

/// What the program's `DT_DEBUG` leads to.
fn debug_of(program: &libc::dl_phdr_info) -> Option<*const Debug> {
    const DT_NULL: u64 = 0;
    const DT_DEBUG: u64 = 21;
    // SAFETY: 1. the structure says how many headers there are, and they are loaded.
    let headers =
        unsafe { std::slice::from_raw_parts(program.dlpi_phdr, program.dlpi_phnum.into()) };
    let dynamic = headers.iter().find(|h| h.p_type == libc::PT_DYNAMIC)?;
    let mut at = program.dlpi_addr.wrapping_add(dynamic.p_vaddr);
    loop {
        let entry = ptr::with_exposed_provenance::<[u64; 2]>(at as usize);
        // SAFETY: 1. an entry of the dynamic section, which is loaded and ends with DT_NULL.
        match unsafe { entry.read() } {
            [DT_NULL, _] => return None,
            [DT_DEBUG, 0] => return None,
            [DT_DEBUG, debug] => return Some(ptr::with_exposed_provenance(debug as usize)),
            _ => at += 16,
        }
    }
}

/// What `dl_iterate_phdr` would say of an object.
fn info_of(object: &LinkMap, maps: &ProcMaps) -> Option<libc::dl_phdr_info> {
    let at = |off: u64| object.addr.wrapping_add(off) as usize;
    let is_there = |off: u64, len_bytes: usize| {
        maps.is_readable(RxRange::new(RxAddr::new(at(off) as u64), len_bytes))
    };
    let header_bytes = size_of::<libc::Elf64_Ehdr>();
    if !is_there(0, header_bytes) || object.name.is_null() {
        return None;
    }
    // SAFETY: 1. as many bytes are readable; an object's first segment is not written.
    let header = unsafe { &*ptr::with_exposed_provenance::<libc::Elf64_Ehdr>(at(0)) };
    let len_bytes = usize::from(header.e_phnum) * size_of::<libc::Elf64_Phdr>();
    let is_elf = header.e_ident.starts_with(b"\x7fELF")
        && usize::from(header.e_phentsize) == size_of::<libc::Elf64_Phdr>();
    if !is_elf || header.e_phoff % 8 != 0 || !is_there(header.e_phoff, len_bytes) {
        return None;
    }
    let phdrs = ptr::with_exposed_provenance::<libc::Elf64_Phdr>(at(header.e_phoff));
    // SAFETY: 1. as many headers are readable, and aligned.
    let headers = unsafe { std::slice::from_raw_parts(phdrs, header.e_phnum.into()) };
    let is_dynamic = |h: &libc::Elf64_Phdr| h.p_type == libc::PT_DYNAMIC;
    let dynamic = headers.iter().find(|h| is_dynamic(h))?;
    if object.addr.wrapping_add(dynamic.p_vaddr) != object.ld {
        return None;
    }
    Some(libc::dl_phdr_info {
        dlpi_addr: object.addr,
        dlpi_name: object.name,
        dlpi_phdr: phdrs,
        dlpi_phnum: header.e_phnum,
        dlpi_adds: 0,
        dlpi_subs: 0,
        dlpi_tls_modid: 0,
        dlpi_tls_data: ptr::null_mut(),
    })
}
