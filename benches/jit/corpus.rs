//! The programs of the corpus, and their memory.
//!
//! Key types: [`Source`], [`Memory`], [`Library`]. Neighbour: `xtask/src/corpus.rs` makes the files.

use std::ffi::{CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rvbpf::bpf::BpfInsn;
use serde::Deserialize;

use crate::count::Entry;
use crate::measure::Error;

/// The size of `in` and of `out`: `corpus.h`.
pub(crate) const IN_BYTES: usize = 4096;
const OUT_BYTES: usize = 4096;

/// A program as clang made it.
#[derive(Deserialize)]
pub(crate) struct Source {
    pub(crate) name: String,
    insns: Vec<u64>,
    /// 64-bit constants, by their first instruction, that are an address: so far into the memory.
    addresses: Vec<(usize, u64)>,
    memory_bytes: usize,
    in_off: usize,
    out_off: usize,
}

impl Source {
    pub(crate) fn read_all(material: &Path) -> Result<Vec<Self>, Error> {
        let text = std::fs::read(material.join("corpus.json"))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// The memory before a run.
    pub(crate) fn memory(&self, input: &[u8]) -> Vec<u8> {
        let mut memory = vec![0; self.memory_bytes];
        memory[self.in_off..][..input.len()].copy_from_slice(input);
        memory
    }

    /// `out` in such a memory.
    pub(crate) fn out_of(&self, memory: &[u8]) -> Vec<u8> {
        memory[self.out_off..][..OUT_BYTES].to_vec()
    }

    /// The instructions for a memory at `base`.
    pub(crate) fn insns_at(&self, base: u64) -> Vec<BpfInsn> {
        let mut insns = self.insns.clone();
        for &(at, off) in &self.addresses {
            let address = base + off;
            set_imm(&mut insns[at], address as u32);
            set_imm(&mut insns[at + 1], (address >> 32) as u32);
        }
        let insns = insns.into_iter();
        insns
            .map(|insn| BpfInsn::from_bytes(insn.to_le_bytes()))
            .collect()
    }

    /// The instructions for the kernel, where the memory is the value of a map.
    pub(crate) fn insns_of(&self, map_fd: u32) -> Vec<u64> {
        const PSEUDO_MAP_VALUE: u64 = 2;
        let mut insns = self.insns.clone();
        for &(at, off) in &self.addresses {
            set_imm(&mut insns[at], map_fd);
            insns[at] |= PSEUDO_MAP_VALUE << 12;
            set_imm(&mut insns[at + 1], off as u32);
        }
        insns
    }
}

fn set_imm(insn: &mut u64, imm: u32) {
    *insn = *insn & 0xffff_ffff | u64::from(imm) << 32;
}

/// The memory of a program that runs in this process.
pub(crate) struct Memory {
    lines: *mut [Line],
    out_off: usize,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; 64]);

impl Memory {
    pub(crate) fn new(source: &Source, input: &[u8]) -> Self {
        let memory = source.memory(input);
        let line = |bytes: &[u8]| {
            let mut line = Line([0; 64]);
            line.0[..bytes.len()].copy_from_slice(bytes);
            line
        };
        let lines: Box<[Line]> = memory.chunks(64).map(line).collect();
        let lines = Box::into_raw(lines);
        lines.cast::<Line>().expose_provenance();
        Self {
            lines,
            out_off: source.out_off,
        }
    }

    pub(crate) fn addr(&self) -> u64 {
        self.lines.cast::<Line>().addr() as u64
    }

    /// A copy of `out`.
    pub(crate) fn out(&self) -> Vec<u8> {
        let start = self.lines.cast::<u8>().wrapping_add(self.out_off);
        // SAFETY: 1. `out` is inside the memory, which is initialized. 2. Nobody writes it meanwhile.
        unsafe { std::slice::from_raw_parts(start, OUT_BYTES) }.to_vec()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: 1. it came from a box.
        drop(unsafe { Box::from_raw(self.lines) });
    }
}

/// The programs compiled for this machine, and their memory.
pub(crate) struct Library {
    handle: *mut c_void,
    input: *mut u8,
    out: *const u8,
}

impl Library {
    pub(crate) fn open(material: &Path) -> Result<Self, Error> {
        let path = material.join("libcorpus.so");
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: 1. the library has no constructors.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            return Err(format!("cannot load {}", path.display()).into());
        }
        let mut library = Self {
            handle,
            input: std::ptr::null_mut(),
            out: std::ptr::null(),
        };
        library.input = library.array("corpus_in")?;
        library.out = library.array("corpus_out")?;
        Ok(library)
    }

    /// The array whose address a function of the library gives.
    fn array(&self, name: &str) -> Result<*mut u8, Error> {
        let entry = std::ptr::with_exposed_provenance::<()>(self.entry(name)?.0 as usize);
        // SAFETY: 1. `native.c` has such functions.
        let entry =
            unsafe { std::mem::transmute::<*const (), unsafe extern "C" fn() -> *mut u8>(entry) };
        // SAFETY: 1. the same.
        Ok(unsafe { entry() })
    }

    pub(crate) fn entry(&self, name: &str) -> Result<Entry, Error> {
        let symbol = CString::new(name)?;
        // SAFETY: 1. the handle is of an open library.
        let found = unsafe { libc::dlsym(self.handle, symbol.as_ptr()) };
        match found.is_null() {
            true => Err(format!("the library has no {name}").into()),
            false => Ok(Entry(found.expose_provenance() as u64)),
        }
    }

    /// Sets `in`, and clears `out`.
    pub(crate) fn fill(&self, input: &[u8]) {
        let bytes = input.len().min(IN_BYTES);
        // SAFETY: 1. `in` has so many bytes. 2. The library is called by this thread alone.
        unsafe { self.input.copy_from(input.as_ptr(), bytes) };
        // SAFETY: 1. `out` has so many bytes. 2. As above.
        unsafe { self.out.cast_mut().write_bytes(0, OUT_BYTES) };
    }

    /// A copy of `out`.
    pub(crate) fn out(&self) -> Vec<u8> {
        // SAFETY: 1. `out` has so many bytes. 2. Nobody writes them meanwhile.
        unsafe { std::slice::from_raw_parts(self.out, OUT_BYTES) }.to_vec()
    }
}
