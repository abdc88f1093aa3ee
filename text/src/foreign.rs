//! Foreign text: pages of an ELF that hold copies of themselves.
//!
//! ```text
//!   before:  libfoo.so  r-xp ──────────────┐ page
//!   copy:    memfd page ◄── rw view ◄──────┘ (its bytes)
//!   after:   memfd page  r-xp at the same address, stores through a rw view of the memfd
//! ```
//!
//! The page is replaced by `mmap(MAP_FIXED)` in one step under the kernel's lock of the address
//! space: a thread executing there faults, waits, and fetches the same instruction from the new
//! page. There is no moment in which the page is writable or not executable. The mapping is
//! private, so that a debugger can still set breakpoints (a shared one refuses it); a page that a
//! debugger has written to is no longer the memfd's, and is found out and replaced anew.
//!
//! All pages come from one memfd; pages that are neighbours in a batch are neighbours in the file
//! too, so that the kernel merges their mappings. A page that we believe is ours is checked at
//! every use: a library may have been unloaded and another mapped there.
//!
//! Key type: [`Foreign`]. Neighbours: `state`, `txn`, `proc_maps`. Source: `mmap(2)`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::proc_maps::{Mapping, ProcMaps};
use crate::sys::{self, Pages, RwView, Sharing};

/// The memfd of all replaced pages, and where they are.
pub(crate) struct Foreign {
    store: Option<Store>,
    /// First address of a page → its offset in the memfd.
    pages: BTreeMap<u64, u64>,
    /// Offsets whose pages are gone.
    free: Vec<u64>,
}

/// The memfd itself.
struct Store {
    file: File,
    inode: u64,
    len_bytes: u64,
}

impl Store {
    fn new(len_bytes: u64) -> Result<Self, TextError> {
        let file = sys::memfd(len_bytes as usize, Pages::Ordinary)?;
        let inode = file.metadata().map_err(|e| io_error("fstat", 0, &e))?.ino();
        Ok(Self {
            file,
            inode,
            len_bytes,
        })
    }
}

fn io_error(call: &'static str, len_bytes: u64, e: &std::io::Error) -> TextError {
    let errno = e.raw_os_error().unwrap_or(0);
    TextError::Map {
        call,
        addr: RxAddr::new(0),
        len_bytes: len_bytes as usize,
        errno,
    }
}

impl Foreign {
    pub(crate) const fn new() -> Self {
        Self {
            store: None,
            pages: BTreeMap::new(),
            free: Vec::new(),
        }
    }

    /// Where the memfd has `addr`, by the table alone: for pages checked by [`Self::off_of`], or
    /// adopted, under this hold of the text lock.
    pub(crate) fn trusted_off(&self, addr: RxAddr) -> Option<usize> {
        let page = addr.align_down(region::page::size() as u64);
        let off = *self.pages.get(&page.get())?;
        Some((off + (addr.get() - page.get())) as usize)
    }

    /// Where the memfd has the page of `addr`, if that page is still the one that we put there.
    pub(crate) fn off_of(&self, addr: RxAddr, maps: &ProcMaps) -> Option<u64> {
        let page = addr.align_down(region::page::size() as u64);
        let off = *self.pages.get(&page.get())?;
        let inode = self.store.as_ref()?.inode;
        let is_ours =
            |m: &Mapping| m.is_private_text() && m.inode == inode && m.off_at(page) == off;
        maps.find(page)
            .is_some_and(is_ours)
            .then_some(off + (addr.get() - page.get()))
    }

    /// Forgets a page that is not ours any more; whether there was one.
    pub(crate) fn forget(&mut self, page: RxAddr) -> bool {
        match self.pages.remove(&page.get()) {
            Some(off) => {
                self.free.push(off);
                true
            }
            None => false,
        }
    }

    /// A rw view of all replaced pages.
    pub(crate) fn view(&self) -> Result<Option<RwView>, TextError> {
        self.store
            .as_ref()
            .map(|s| RwView::new(&s.file, s.len_bytes as usize))
            .transpose()
    }

    /// Replaces pages (sorted, each once, private text, not ours) by copies of themselves.
    ///
    /// On an error some of them may have been replaced; they hold what they held.
    pub(crate) fn adopt(&mut self, pages: &[RxAddr]) -> Result<(), TextError> {
        let page_bytes = region::page::size();
        for run in runs(pages, page_bytes as u64) {
            let off = self.reserve(run.len_bytes as u64, page_bytes as u64)?;
            let placed = self.place(run, off);
            for i in 0..run.len_bytes / page_bytes {
                let step = (i * page_bytes) as u64;
                if placed.is_ok() {
                    self.pages.insert(run.start.get() + step, off + step);
                } else {
                    self.free.push(off + step);
                }
            }
            placed?;
        }
        Ok(())
    }

    /// Room for a run in the memfd: a page that is free again, or new ones at its end.
    fn reserve(&mut self, run_bytes: u64, page_bytes: u64) -> Result<u64, TextError> {
        if run_bytes == page_bytes {
            if let Some(off) = self.free.pop() {
                return Ok(off);
            }
        }
        match &mut self.store {
            None => {
                self.store = Some(Store::new(run_bytes)?);
                Ok(0)
            }
            Some(store) => {
                let off = store.len_bytes;
                let len_bytes = off + run_bytes;
                store
                    .file
                    .set_len(len_bytes)
                    .map_err(|e| io_error("ftruncate", len_bytes, &e))?;
                store.len_bytes = len_bytes;
                Ok(off)
            }
        }
    }

    fn place(&self, run: RxRange, off: u64) -> Result<(), TextError> {
        let Some(store) = &self.store else {
            return Err(TextError::Unmapped { addr: run.start });
        };
        let view = RwView::new(&store.file, store.len_bytes as usize)?;
        view.copy_from_text(off as usize, run);
        drop(view);
        sys::mmap_rx_over(run, &store.file, off, Sharing::Private)
    }

    /// Maps the page of `addr` over itself (qemu-user's way to see what was stored).
    pub(crate) fn remap(&self, addr: RxAddr) -> Result<(), TextError> {
        let page_bytes = region::page::size();
        let page = addr.align_down(page_bytes as u64);
        match (&self.store, self.pages.get(&page.get())) {
            (Some(store), Some(off)) => sys::mmap_rx_over(
                RxRange::new(page, page_bytes),
                &store.file,
                *off,
                Sharing::Private,
            ),
            _ => Err(TextError::Unmapped { addr }),
        }
    }

    /// A memfd with what the replaced pages hold now; `None` when there are none.
    pub(crate) fn snapshot(&self) -> Result<Option<Snapshot>, TextError> {
        let (Some(store), false) = (&self.store, self.pages.is_empty()) else {
            return Ok(None);
        };
        let page_bytes = region::page::size();
        let copy = Store::new(store.len_bytes)?;
        for (page, off) in &self.pages {
            // The page may have been unmapped since; then the kernel refuses to read it, and the
            // child finds out that it is not ours at its next use.
            let from = RxRange::new(RxAddr::new(*page), page_bytes);
            match sys::pwrite_text(&copy.file, from, *off) {
                Err(TextError::Map {
                    errno: libc::EFAULT,
                    ..
                })
                | Ok(()) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(Snapshot(copy)))
    }

    /// In the child of a fork: goes over to the snapshot.
    pub(crate) fn enter(&mut self, snapshot: Snapshot, maps: &ProcMaps) -> Result<(), TextError> {
        let page_bytes = region::page::size();
        let ours: Vec<(u64, u64)> = self
            .pages
            .iter()
            .map(|(page, off)| (*page, *off))
            .filter(|(page, _)| self.off_of(RxAddr::new(*page), maps).is_some())
            .collect();
        for (page, off) in ours {
            let range = RxRange::new(RxAddr::new(page), page_bytes);
            sys::mmap_rx_over(range, &snapshot.0.file, off, Sharing::Private)?;
        }
        self.store = Some(snapshot.0);
        Ok(())
    }
}

/// The memfd for a child of a fork.
pub(crate) struct Snapshot(Store);

/// Sorted pages as ranges of neighbours.
fn runs(pages: &[RxAddr], page_bytes: u64) -> Vec<RxRange> {
    let mut runs: Vec<RxRange> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run.end() == *page => run.len_bytes += page_bytes as usize,
            _ => runs.push(RxRange::new(*page, page_bytes as usize)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_make_one_run() {
        let pages = [0x1000, 0x2000, 0x4000].map(RxAddr::new);
        let want = [
            RxRange::new(RxAddr::new(0x1000), 0x2000),
            RxRange::new(RxAddr::new(0x4000), 0x1000),
        ];
        assert_eq!(runs(&pages, 0x1000), want);
    }
}
