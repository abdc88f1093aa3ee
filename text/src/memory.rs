//! Memory for code that is kept alive by mappings alone.
//!
//! ```text
//!   view   ---s  at an address of the kernel's choice; rw for the time of a transaction
//!   rx     r-x   where the code runs; another mapping of the same pages
//! ```
//!
//! The host may close every descriptor of the process, and open its own files under the numbers
//! that it has closed, so no descriptor is kept: code maps are shared anonymous memory, of which
//! `mremap` makes second mappings, and a file that must be one (huge pages, copies of foreign
//! pages) is closed once it is mapped. The view stays mapped without access, is opened by
//! `mprotect` where it is stored to, and is never executable.
//!
//! QEMU user mode alone needs a page mapped anew after a store, which takes a descriptor: there
//! one is kept, and used and closed only while it is still the same file.
//!
//! Key types: [`TextMemory`], [`RwView`]. Neighbours: `map`, `foreign`, `txn`. Source: `mmap(2)`,
//! `mremap(2)` (an old size of zero), `mprotect(2)`.
#![expect(
    unsafe_code,
    reason = "mmap, mremap, mprotect, and raw loads and stores of text"
)]

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::ptr;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::sys;
use crate::syscall::syscall;

/// Whether something needs a descriptor later.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Descriptor {
    Closed,
    /// For QEMU user mode.
    Kept,
}

/// Pages for code, and their view. Dropping it unmaps the view.
pub(crate) struct TextMemory {
    view: RxRange,
    page_bytes: usize,
    kept: Option<KeptFile>,
    /// A bit a page that a view was ever opened for: the others are zero.
    written: Vec<u64>,
}

impl TextMemory {
    /// Zeroed pages without a file.
    pub(crate) fn anonymous(len_bytes: usize) -> Result<Self, TextError> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let view = mmap_view(len_bytes, libc::PROT_NONE, flags, -1)?;
        Ok(Self::new(view, region::page::size(), None))
    }

    /// The first `len_bytes` bytes of a file of ours, in pages of `page_bytes`.
    pub(crate) fn of_file(
        file: File,
        len_bytes: usize,
        page_bytes: usize,
        descriptor: Descriptor,
    ) -> Result<Self, TextError> {
        let view = mmap_view(
            len_bytes,
            libc::PROT_NONE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
        )?;
        // From here on the view is unmapped with this value.
        let mut memory = Self::new(view, page_bytes, None);
        if descriptor == Descriptor::Kept {
            memory.kept = Some(KeptFile::new(file)?);
        }
        Ok(memory)
    }

    fn new(view: RxRange, page_bytes: usize, kept: Option<KeptFile>) -> Self {
        let nr_pages = view.len_bytes.div_ceil(page_bytes);
        Self {
            view,
            page_bytes,
            kept,
            written: vec![0; nr_pages.div_ceil(64)],
        }
    }

    /// Maps the pages shared, r-x, over a reservation of ours as long as they are. For anonymous
    /// memory.
    pub(crate) fn map_rx_over(&self, rx: RxRange) -> Result<(), TextError> {
        let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        remap(self.view.start, 0, rx.len_bytes, fixed, rx.start)?;
        protect(rx, libc::PROT_READ | libc::PROT_EXEC)
    }

    /// Maps the pages shared, r-x, over `rx`, which holds the same bytes and may be executed: in
    /// one step under the kernel's lock of the address space.
    pub(crate) fn replace_rx(&self, rx: RxRange) -> Result<(), TextError> {
        let may_move = libc::MREMAP_MAYMOVE;
        let aside = remap(self.view.start, 0, rx.len_bytes, may_move, RxAddr::new(0))?;
        let aside = RxRange::new(aside, rx.len_bytes);
        let fixed = may_move | libc::MREMAP_FIXED;
        let moved = protect(aside, libc::PROT_READ | libc::PROT_EXEC)
            .and_then(|()| remap(aside.start, rx.len_bytes, rx.len_bytes, fixed, rx.start));
        if moved.is_err() {
            sys::munmap(aside);
        }
        moved.map(|_| ())
    }

    /// Opens the pages of a range for stores.
    ///
    /// The text lock is held as long as the view lives, and this memory outlives it.
    pub(crate) fn open(&mut self, off_bytes: usize, len_bytes: usize) -> Result<RwView, TextError> {
        let end = off_bytes.checked_add(len_bytes);
        let end = end.filter(|end| *end <= self.view.len_bytes);
        let end = end.ok_or(TextError::Length { len_bytes })?;
        let first = off_bytes / self.page_bytes;
        let pages = first..end.div_ceil(self.page_bytes);
        let start = first * self.page_bytes;
        let window_bytes = (pages.len() * self.page_bytes).min(self.view.len_bytes - start);
        let window = self.view.sub(start, window_bytes);
        let window = window.ok_or(TextError::Length { len_bytes })?;
        let view = RwView {
            window,
            off_bytes: start,
        };
        protect(window, libc::PROT_READ | libc::PROT_WRITE)?;
        for page in pages {
            self.written[page / 64] |= 1 << (page % 64);
        }
        Ok(view)
    }

    /// The ranges that may hold something else than zeros, as offsets.
    fn written(&self) -> impl Iterator<Item = (usize, usize)> {
        let is_written = |page: &usize| self.written[page / 64] >> (page % 64) & 1 == 1;
        let nr_pages = self.view.len_bytes.div_ceil(self.page_bytes);
        (0..nr_pages).filter(is_written).map(|page| {
            let off = page * self.page_bytes;
            (off, self.page_bytes.min(self.view.len_bytes - off))
        })
    }

    /// Anonymous memory that holds what this one does, which runs at `rx`.
    pub(crate) fn copy(&self, rx: RxRange) -> Result<Self, TextError> {
        let mut copy = Self::anonymous(rx.len_bytes)?;
        for (off, len) in self.written() {
            let from = rx
                .sub(off, len)
                .ok_or(TextError::Length { len_bytes: len })?;
            copy.open(off, len)?.copy_from_text(off, from);
        }
        Ok(copy)
    }

    /// Whether a descriptor is kept for it.
    pub(crate) fn needs_file(&self) -> bool {
        self.kept.is_some()
    }

    /// The file, where it was to be kept and is still there.
    pub(crate) fn file(&self) -> Option<&File> {
        self.kept
            .as_ref()
            .filter(|k| k.is_there())
            .map(|k| &*k.file)
    }
}

impl Drop for TextMemory {
    fn drop(&mut self) {
        sys::munmap(self.view);
    }
}

/// A descriptor that the host may have closed, and used again, since.
struct KeptFile {
    file: ManuallyDrop<File>,
    identity: (u64, u64),
}

impl KeptFile {
    fn new(file: File) -> Result<Self, TextError> {
        let identity = identity(&file).map_err(|e| sys::io_error("fstat", 0, &e))?;
        Ok(Self {
            file: ManuallyDrop::new(file),
            identity,
        })
    }

    fn is_there(&self) -> bool {
        identity(&self.file).is_ok_and(|now| now == self.identity)
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        if self.is_there() {
            // SAFETY: 1. this is the only place that drops it, and once.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

/// Device and inode.
pub(crate) fn identity(file: &File) -> std::io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// A new mapping at an address that the kernel chooses.
fn mmap_view(len_bytes: usize, prot: i32, flags: i32, fd: i32) -> Result<RxRange, TextError> {
    // SAFETY: 1. a new mapping at an address of the kernel's choice disturbs nothing.
    let at = unsafe { libc::mmap(ptr::null_mut(), len_bytes, prot, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        let range = RxRange::new(RxAddr::new(0), len_bytes);
        return Err(sys::map_error("mmap (view)", range));
    }
    let at = RxAddr::new(at.expose_provenance() as u64);
    Ok(RxRange::new(at, len_bytes))
}

/// Moves a mapping of ours or, from an old size of zero, makes another one of the same pages.
fn remap(
    from: RxAddr,
    old_bytes: usize,
    new_bytes: usize,
    flags: i32,
    to: RxAddr,
) -> Result<RxAddr, TextError> {
    let args = [
        from.get() as usize,
        old_bytes,
        new_bytes,
        flags as usize,
        to.get() as usize,
    ];
    // SAFETY:
    // 1. `from` is a mapping of ours.
    // 2. `to`, where it counts, is a reservation of ours, or holds the same bytes (callers).
    let at = unsafe { syscall(libc::SYS_mremap, args) };
    let at = at.map_err(|errno| TextError::Map {
        call: "mremap",
        addr: to,
        len_bytes: new_bytes,
        errno,
    })?;
    let at: *mut u8 = ptr::with_exposed_provenance_mut(at);
    Ok(RxAddr::new(at.expose_provenance() as u64))
}

fn protect(range: RxRange, prot: i32) -> Result<(), TextError> {
    let args = [range.start.get() as usize, range.len_bytes, prot as usize];
    // SAFETY: 1. the range is a mapping of ours (callers), of which nothing holds a reference.
    let done = unsafe { syscall(libc::SYS_mprotect, args) };
    done.map(|_| ()).map_err(|errno| TextError::Map {
        call: "mprotect",
        addr: range.start,
        len_bytes: range.len_bytes,
        errno,
    })
}

/// Pages of a view that can be stored to for as long as this value lives. Never executable.
///
/// Offsets are the memory's.
pub(crate) struct RwView {
    window: RxRange,
    /// Where the window begins.
    off_bytes: usize,
}

impl Drop for RwView {
    fn drop(&mut self) {
        // Cannot fail for want of mappings: the pages join their neighbours again. They are not
        // executable in any case.
        let _ = protect(self.window, libc::PROT_NONE);
    }
}

impl RwView {
    /// A pointer to `len_bytes` bytes at `off_bytes`. The offsets come from the table of maps, so
    /// one that does not fit is a bug of this crate.
    fn at(&self, off_bytes: usize, len_bytes: usize) -> *mut u8 {
        let start = off_bytes.checked_sub(self.off_bytes);
        let start = start.filter(|start| {
            let end = start.checked_add(len_bytes);
            end.is_some_and(|end| end <= self.window.len_bytes)
        });
        let Some(start) = start else {
            panic!(
                "text view: {off_bytes}+{len_bytes} exceeds {}+{}",
                self.off_bytes, self.window.len_bytes
            );
        };
        ptr::with_exposed_provenance_mut(self.window.start.get() as usize + start)
    }

    /// One aligned store, which other harts see whole or not at all.
    pub(crate) fn store_u32(&self, off_bytes: usize, word: u32) {
        assert!(
            off_bytes % 4 == 0,
            "text view: unaligned store at {off_bytes}"
        );
        let at = self.at(off_bytes, 4).cast::<u32>();
        // SAFETY:
        // 1. `at` lies in the live rw view (checked) and is aligned (checked; views are
        //    page-aligned).
        // 2. Everybody else reads it by instruction fetch or atomic loads.
        unsafe { AtomicU32::from_ptr(at).store(word, Ordering::Release) };
    }

    /// One aligned store of half a word.
    pub(crate) fn store_u16(&self, off_bytes: usize, half: u16) {
        assert!(
            off_bytes % 2 == 0,
            "text view: unaligned store at {off_bytes}"
        );
        let at = self.at(off_bytes, 2).cast::<u16>();
        // SAFETY: as in `store_u32`.
        unsafe { AtomicU16::from_ptr(at).store(half, Ordering::Release) };
    }

    /// The word as the file has it.
    pub(crate) fn load_u32(&self, off_bytes: usize) -> u32 {
        assert!(
            off_bytes % 4 == 0,
            "text view: unaligned load at {off_bytes}"
        );
        let at = self.at(off_bytes, 4).cast::<u32>();
        // SAFETY: as in `store_u32`.
        unsafe { AtomicU32::from_ptr(at).load(Ordering::Acquire) }
    }

    /// Writes text that nobody can be executing.
    pub(crate) fn write(&self, off_bytes: usize, src: &[u8]) {
        let at = self.at(off_bytes, src.len());
        // SAFETY:
        // 1. `at` has room for `src` (checked), and `src` is a live slice.
        // 2. They do not overlap: a view has no references into it.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), at, src.len()) };
    }

    /// Fills text that nobody can be executing with zeros, which are defined illegal.
    pub(crate) fn fill_illegal(&self, off_bytes: usize, len_bytes: usize) {
        let at = self.at(off_bytes, len_bytes);
        // SAFETY: `at` has room for `len_bytes` (checked).
        unsafe { ptr::write_bytes(at, 0, len_bytes) };
    }

    /// Copies text from an rx mapping that nobody changes meanwhile.
    pub(crate) fn copy_from_text(&self, off_bytes: usize, from: RxRange) {
        let at = self.at(off_bytes, from.len_bytes);
        // SAFETY:
        // 1. `from` is mapped readable (callers checked it under the text lock).
        // 2. `at` has room (checked); a fresh view does not overlap an rx mapping.
        unsafe {
            ptr::copy_nonoverlapping(
                ptr::with_exposed_provenance::<u8>(from.start.get() as usize),
                at,
                from.len_bytes,
            );
        };
    }
}
