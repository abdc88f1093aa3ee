//! Code maps: memory for code of our own, executable for ever, writable never.
//!
//! Key types: [`CodeMap`], [`Place`], [`Backing`]. A map is memory that is shared with nobody
//! (`memory`), mapped r-x at its rx range. Its view, at an address that the kernel chooses, has no
//! access but during a transaction (`txn`), and then to the pages in question; so no mapping is
//! ever writable and executable and none stays writable. Fresh maps are all zero, which is defined
//! illegal. Neighbours: `state` (the table of maps), `memory`, `txn`. Source: kernel
//! `kernel/bpf/core.c` (`bpf_prog_pack`).

use std::fs::File;

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::flush::{self, SyncMode};
use crate::memory::{Descriptor, TextMemory};
use crate::state::{self, MapEntry};
use crate::sys::{self, HUGE_BYTES, Pages, Sharing};

/// Where a code map goes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Place {
    /// Where the kernel likes; aligned to 2 MiB when the length is a multiple of it.
    Anywhere,
    /// At this address, which must be free and page-aligned (2 MiB for huge pages).
    At(RxAddr),
}

/// What backs a code map.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Backing {
    /// 2 MiB pages out of the system's pool.
    Hugetlb,
    /// Ordinary shared memory, as a memfd has; [`CodeMap::collapse`] may make its pages huge.
    Memfd,
}

/// Executable memory of our own. Dropping it unmaps it: nothing may be executing there then.
#[derive(Debug)]
pub struct CodeMap {
    rx: RxRange,
}

impl CodeMap {
    /// Maps `len_bytes` bytes (rounded up to whole pages) of illegal instructions.
    ///
    /// # Errors
    /// [`TextError::Length`], [`TextError::Misaligned`], [`TextError::Occupied`],
    /// [`TextError::NoHugePages`], [`TextError::Map`], [`TextError::SharedWithParent`].
    pub fn new(len_bytes: usize, place: Place, backing: Backing) -> Result<Self, TextError> {
        let (pages, page_bytes) = match backing {
            Backing::Hugetlb => (Pages::Huge2M, HUGE_BYTES),
            Backing::Memfd => (Pages::Ordinary, region::page::size()),
        };
        let map_bytes = len_bytes
            .checked_next_multiple_of(page_bytes)
            .filter(|n| *n > 0 && isize::try_from(*n).is_ok())
            .ok_or(TextError::Length { len_bytes })?;
        let mut state = state::lock_for_change()?;
        let source = Source::new(backing, map_bytes, pages, page_bytes);
        let source = source.map_err(|e| no_huge_pages(e, backing, map_bytes))?;
        let rx = match place {
            Place::At(start) => map_at(RxRange::new(start, map_bytes), page_bytes, &source),
            Place::Anywhere => map_anywhere(map_bytes, page_bytes, &source),
        }
        .map_err(|e| no_huge_pages(e, backing, map_bytes))?;
        let memory = source.into_memory(map_bytes, page_bytes).map_err(|e| {
            sys::munmap(rx);
            no_huge_pages(e, backing, map_bytes)
        })?;
        // A site that went away while it was being armed may have left its entry.
        state.forget_sites(rx);
        let entry = MapEntry {
            rx,
            memory,
            backing,
            collapsed: false,
        };
        state.maps.insert(rx.start.get(), entry);
        Ok(Self { rx })
    }

    /// Where the code runs.
    #[must_use]
    pub fn rx(&self) -> RxRange {
        self.rx
    }

    /// What backs the map. Once a process and its child have parted, the copy of the one that
    /// changed first is [`Backing::Memfd`].
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.with_entry(|e| e.backing).unwrap_or(Backing::Memfd)
    }

    /// Asks the kernel to make the map's pages huge, in place, while code runs in it.
    ///
    /// # Errors
    /// [`TextError::Misaligned`] when the map is not whole 2 MiB pages, [`TextError::Map`] with
    /// `-EINVAL` (kernel before 6.1, or not configured), `-ENOMEM`, `-EAGAIN`, `-EBUSY`.
    pub fn collapse(&self) -> Result<(), TextError> {
        let huge = HUGE_BYTES as u64;
        if !self.rx.start.is_aligned(huge) || self.rx.len_bytes % HUGE_BYTES != 0 {
            return Err(TextError::Misaligned {
                addr: self.rx.start,
                align_bytes: huge,
            });
        }
        let mut state = state::lock_for_change()?;
        let Some(entry) = state.maps.get_mut(&self.rx.start.get()) else {
            return Err(TextError::NotInCodeMap { range: self.rx });
        };
        if entry.backing == Backing::Hugetlb {
            return Ok(());
        }
        sys::collapse(self.rx)?;
        entry.collapsed = true;
        Ok(())
    }

    /// Whether the map stands on huge pages, by its backing or since a collapse succeeded.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.with_entry(|e| e.collapsed || e.backing == Backing::Hugetlb)
            .unwrap_or(false)
    }

    fn with_entry<T>(&self, f: impl FnOnce(&MapEntry) -> T) -> Option<T> {
        state::lock().maps.get(&self.rx.start.get()).map(f)
    }
}

impl Drop for CodeMap {
    fn drop(&mut self) {
        let mut state = state::lock();
        state.forget_sites(self.rx);
        let entry = state.maps.remove(&self.rx.start.get());
        // Under the lock: nobody may map something there and find our entry still in the table.
        sys::munmap(self.rx);
        drop(state);
        drop(entry);
    }
}

/// Where the pages of a new map come from.
enum Source {
    Anonymous(TextMemory),
    /// A file that is closed once it is mapped, or kept.
    File(File, Descriptor),
}

impl Source {
    fn new(
        backing: Backing,
        map_bytes: usize,
        pages: Pages,
        page_bytes: usize,
    ) -> Result<Self, TextError> {
        let descriptor = match flush::sync_mode_of_maps()? {
            SyncMode::Remap => Descriptor::Kept,
            _ => Descriptor::Closed,
        };
        debug_assert!(map_bytes % page_bytes == 0);
        match (backing, descriptor) {
            (Backing::Memfd, Descriptor::Closed) => {
                TextMemory::anonymous(map_bytes).map(Self::Anonymous)
            }
            _ => sys::memfd(map_bytes, pages).map(|file| Self::File(file, descriptor)),
        }
    }

    fn map_rx_over(&self, rx: RxRange) -> Result<(), TextError> {
        match self {
            Self::Anonymous(memory) => memory.map_rx_over(rx),
            Self::File(file, _) => sys::mmap_rx_over(rx, file, 0, Sharing::Shared),
        }
    }

    fn into_memory(self, map_bytes: usize, page_bytes: usize) -> Result<TextMemory, TextError> {
        match self {
            Self::Anonymous(memory) => Ok(memory),
            Self::File(file, descriptor) => {
                TextMemory::of_file(file, map_bytes, page_bytes, descriptor)
            }
        }
    }
}

/// With an empty pool `memfd_create` succeeds and `mmap` fails: both mean the same here.
fn no_huge_pages(e: TextError, backing: Backing, len_bytes: usize) -> TextError {
    match (backing, e) {
        (Backing::Hugetlb, TextError::Map { errno, .. }) => {
            TextError::NoHugePages { len_bytes, errno }
        }
        (_, e) => e,
    }
}

fn map_at(range: RxRange, page_bytes: usize, source: &Source) -> Result<RxRange, TextError> {
    let align_bytes = page_bytes as u64;
    if !range.start.is_aligned(align_bytes) {
        return Err(TextError::Misaligned {
            addr: range.start,
            align_bytes,
        });
    }
    if range.start.checked_add(range.len_bytes as u64).is_none() {
        return Err(TextError::Length {
            len_bytes: range.len_bytes,
        });
    }
    sys::reserve_at(range)?;
    if let Err(e) = source.map_rx_over(range) {
        sys::munmap(range);
        return Err(e);
    }
    Ok(range)
}

/// Reserves more than is needed, maps over the aligned part, and gives the rest back: no other
/// thread can map in between.
fn map_anywhere(
    map_bytes: usize,
    page_bytes: usize,
    source: &Source,
) -> Result<RxRange, TextError> {
    let align_bytes = if map_bytes % HUGE_BYTES == 0 {
        HUGE_BYTES
    } else {
        page_bytes
    };
    let slack_bytes = align_bytes - region::page::size().min(align_bytes);
    let wide_bytes = map_bytes
        .checked_add(slack_bytes)
        .ok_or(TextError::Length {
            len_bytes: map_bytes,
        })?;
    let wide = sys::reserve(wide_bytes)?;
    let head_bytes = wide.start.get().next_multiple_of(align_bytes as u64) - wide.start.get();
    let head_bytes = head_bytes as usize;
    let (Some(head), Some(rx)) = (wide.sub(0, head_bytes), wide.sub(head_bytes, map_bytes)) else {
        sys::munmap(wide);
        return Err(TextError::Length {
            len_bytes: map_bytes,
        });
    };
    if let Err(e) = source.map_rx_over(rx) {
        sys::munmap(wide);
        return Err(e);
    }
    let tail_bytes = slack_bytes - head_bytes;
    sys::munmap(head);
    sys::munmap(RxRange::new(rx.end(), tail_bytes));
    Ok(rx)
}
