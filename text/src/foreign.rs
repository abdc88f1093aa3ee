//! Foreign text: pages of an ELF that hold copies of themselves.
//!
//! ```text
//!   before:  libfoo.so  r-xp ──────────────┐ page
//!   copy:    memfd page ◄── view ◄─────────┘ (its bytes)
//!   after:   memfd page  r-xp at the same address, stores through the view
//! ```
//!
//! The page is replaced by `mmap(MAP_FIXED)` in one step under the kernel's lock of the address
//! space: a thread executing there faults, waits, and fetches the same instruction from the new
//! page. There is no moment in which the page is writable or not executable. The mapping is
//! private, so that a debugger can still set breakpoints (a shared one refuses it); a page that a
//! debugger has written to is no longer the memfd's, and is found out and replaced anew.
//!
//! The pages of a batch come from one memfd, which is closed at once (`memory`): pages that are
//! neighbours in a batch are neighbours in the file too, so that the kernel merges their mappings.
//! A page of the file is used for one page of text and never again, and all harts are told to
//! forget what they may have fetched of it before it is mapped executable. A file whose pages are
//! all gone is gone with its view: there are at most two mappings a page of text that was ever
//! changed.
//!
//! A page that we believe is ours is checked at every use, by device, inode and offset: a library
//! may have been unloaded and another mapped there.
//!
//! # Probes of others on the page
//! The kernel knows its probes (uprobes) by file and offset. On a page that is not the file's any
//! more their breakpoints belong to nothing, and the next call of *that* function would die of
//! SIGTRAP. So what has been copied is looked through ([`breakpoints`]) before it replaces the page,
//! and with a breakpoint that is not in the file the change is refused. A debugger's breakpoints,
//! which it knows by their addresses, go on to work: a process that is traced is not refused.
//!
//! A uprobe that is set *later* does not come onto a page that has been replaced: it never fires
//! there in this process, and does no harm.
//!
//! Key type: [`Foreign`]. Neighbours: `state`, `memory`, `breakpoints`, `txn`, `proc_maps`. Source:
//! `mmap(2)`; kernel `kernel/events/uprobes.c` (`build_map_info`, `handle_swbp`).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use crate::addr::{RxAddr, RxRange};
use crate::breakpoints;
use crate::error::TextError;
use crate::flush::{self, FlushScope, SyncMode, flush_icache};
use crate::memory::{Descriptor, RwView, TextMemory};
use crate::proc_maps::{Mapping, ProcMaps};
use crate::sys::{self, Pages, Sharing};

/// The replaced pages, and the files that they are of.
pub(crate) struct Foreign {
    /// First address of a page → where its bytes are.
    pages: BTreeMap<u64, Spot>,
    stores: BTreeMap<u32, Store>,
    /// How many stores there have been.
    nr_stores: u32,
}

/// A place in a store.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Spot {
    pub(crate) store: u32,
    pub(crate) off_bytes: usize,
}

impl Spot {
    fn plus(self, bytes: u64) -> Self {
        Self {
            off_bytes: self.off_bytes + bytes as usize,
            ..self
        }
    }
}

/// The memfd of a batch.
struct Store {
    memory: TextMemory,
    dev: (u32, u32),
    inode: u64,
    /// How many pages of text are of it.
    nr_pages: usize,
}

impl Foreign {
    pub(crate) const fn new() -> Self {
        Self {
            pages: BTreeMap::new(),
            stores: BTreeMap::new(),
            nr_stores: 0,
        }
    }

    /// Where the word at `addr` is stored, by the table alone: for pages checked by
    /// [`Self::spot_of`], or adopted, under this hold of the text lock.
    pub(crate) fn trusted_spot(&self, addr: RxAddr) -> Option<Spot> {
        let page = addr.align_down(region::page::size() as u64);
        let spot = self.pages.get(&page.get())?;
        Some(spot.plus(addr.get() - page.get()))
    }

    /// Where `addr` is stored, if its page is still the one that we put there.
    pub(crate) fn spot_of(&self, addr: RxAddr, maps: &ProcMaps) -> Option<Spot> {
        let page = addr.align_down(region::page::size() as u64);
        let spot = *self.pages.get(&page.get())?;
        let store = self.stores.get(&spot.store)?;
        let is_ours = |m: &Mapping| {
            m.is_private_text()
                && (m.dev, m.inode) == (store.dev, store.inode)
                && m.off_at(page) == spot.off_bytes as u64
        };
        maps.find(page)
            .is_some_and(is_ours)
            .then(|| spot.plus(addr.get() - page.get()))
    }

    /// Forgets a page that is not ours any more; whether there was one.
    pub(crate) fn forget(&mut self, page: RxAddr) -> bool {
        let Some(spot) = self.pages.remove(&page.get()) else {
            return false;
        };
        if let Some(store) = self.stores.get_mut(&spot.store) {
            store.nr_pages -= 1;
            if store.nr_pages == 0 {
                self.stores.remove(&spot.store);
            }
        }
        true
    }

    /// Opens a range of a store.
    pub(crate) fn open(&mut self, spot: Spot, len_bytes: usize) -> Result<RwView, TextError> {
        let store = self.stores.get_mut(&spot.store);
        let store = store.ok_or(TextError::Length { len_bytes })?;
        store.memory.open(spot.off_bytes, len_bytes)
    }

    /// Replaces pages (sorted, each once, private text) by copies of themselves.
    ///
    /// On an error some of them may have been replaced; they hold what they held, and the others
    /// are what they were. `maps` is what is mapped now.
    pub(crate) fn adopt(&mut self, pages: &[RxAddr], maps: &ProcMaps) -> Result<(), TextError> {
        let page_bytes = region::page::size();
        let len_bytes = pages.len() * page_bytes;
        let descriptor = match flush::sync_mode()? {
            SyncMode::Remap => Descriptor::Kept,
            _ => Descriptor::Closed,
        };
        let file = sys::memfd(len_bytes, Pages::Ordinary)?;
        let meta = file.metadata();
        let meta = meta.map_err(|e| sys::io_error("fstat", len_bytes, &e))?;
        let again = file.try_clone();
        let again = again.map_err(|e| sys::io_error("dup", len_bytes, &e))?;
        let mut memory = TextMemory::of_file(again, len_bytes, page_bytes, descriptor)?;
        let runs = runs(pages, page_bytes as u64);
        let view = memory.open(0, len_bytes)?;
        let mut off = 0;
        for run in &runs {
            view.copy_from_text(off, *run);
            let word = |at: usize| view.load_u32(off + at);
            let is_ours = |at| self.spot_of(at, maps).is_some();
            breakpoints::check(*run, word, maps, is_ours)?;
            off += run.len_bytes;
        }
        drop(view);
        // Before any hart can fetch from these pages.
        flush_icache(RxRange::new(RxAddr::new(0), 0), FlushScope::Process)?;
        let mut off = 0;
        let mut placed = Vec::with_capacity(pages.len());
        let mut all = Ok(());
        for run in runs {
            all = sys::mmap_rx_over(run, &file, off as u64, Sharing::Private);
            if all.is_err() {
                break;
            }
            let steps = (0..run.len_bytes).step_by(page_bytes);
            placed.extend(steps.map(|step| (run.start.get() + step as u64, off + step)));
            off += run.len_bytes;
        }
        if !placed.is_empty() {
            self.keep(memory, &meta, &placed);
        }
        all
    }

    fn keep(&mut self, memory: TextMemory, meta: &std::fs::Metadata, placed: &[(u64, usize)]) {
        let number = self.nr_stores;
        self.nr_stores += 1;
        for (page, off_bytes) in placed {
            self.forget(RxAddr::new(*page));
            let spot = Spot {
                store: number,
                off_bytes: *off_bytes,
            };
            self.pages.insert(*page, spot);
        }
        let store = Store {
            memory,
            dev: (libc::major(meta.dev()), libc::minor(meta.dev())),
            inode: meta.ino(),
            nr_pages: placed.len(),
        };
        self.stores.insert(number, store);
    }

    /// Maps the page of `addr` over itself (qemu-user's way to see what was stored).
    pub(crate) fn remap(&self, addr: RxAddr) -> Result<(), TextError> {
        let page_bytes = region::page::size();
        let page = addr.align_down(page_bytes as u64);
        let spot = self.trusted_spot(page);
        let spot = spot.ok_or(TextError::Unmapped { addr })?;
        let store = self.stores.get(&spot.store);
        let file = store.and_then(|store| store.memory.file());
        let file = file.ok_or(TextError::Unmapped { addr })?;
        let range = RxRange::new(page, page_bytes);
        sys::mmap_rx_over(range, file, spot.off_bytes as u64, Sharing::Private)
    }

    /// Replaces all pages that are ours by copies of themselves, which no other process has.
    pub(crate) fn part(&mut self) -> Result<(), TextError> {
        if self.pages.is_empty() {
            return Ok(());
        }
        let maps = ProcMaps::read()?;
        let pages = self.pages.keys().map(|page| RxAddr::new(*page));
        let ours = pages.filter(|page| self.spot_of(*page, &maps).is_some());
        let ours: Vec<RxAddr> = ours.collect();
        if ours.is_empty() {
            return Ok(());
        }
        self.adopt(&ours, &maps)
    }
}

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
