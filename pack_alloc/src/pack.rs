//! One pack: a code map and its chunks.
//!
//! Key types: [`Pack`], [`Ask`] (what is to be placed). Neighbours: `chunks`, `place`,
//! `text::CodeMap`. Source: kernel `kernel/bpf/core.c` (`alloc_new_pack`).

use std::ops::Range;

use text::{Backing, CodeMap, Place, ProcMaps, RxAddr, RxRange, TextError};

use crate::place::Wish;
use crate::{CHUNK_BYTES, Chunks, HugePolicy, Near, PACK_BYTES, PackError};

/// A request that has been found good.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) size_bytes: usize,
    /// A power of two, at most [`PACK_BYTES`].
    pub(crate) align_bytes: usize,
    pub(crate) near: Near,
}

impl Ask {
    fn nr_chunks(&self) -> usize {
        self.size_bytes.div_ceil(CHUNK_BYTES)
    }

    fn pack_bytes(&self) -> usize {
        self.size_bytes.next_multiple_of(PACK_BYTES)
    }

    /// Requests above the size of a pack share it with nobody.
    fn wants_own_pack(&self) -> bool {
        self.size_bytes > PACK_BYTES
    }
}

/// A code map and its chunks.
pub(crate) struct Pack {
    map: CodeMap,
    pub(crate) chunks: Chunks,
    sharing: Sharing,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Sharing {
    Shared,
    /// For one allocation.
    Own,
}

impl Pack {
    /// Maps a pack in which `ask` fits.
    pub(crate) fn new(ask: &Ask, huge: HugePolicy) -> Result<Self, PackError> {
        let map = match ask.near {
            Near::Anywhere => map_pack(ask.pack_bytes(), Place::Anywhere, huge)?,
            Near::Within { of, reach_bytes } => map_within(ask, of, reach_bytes, huge)?,
        };
        let sharing = match ask.wants_own_pack() {
            true => Sharing::Own,
            false => Sharing::Shared,
        };
        let chunks = Chunks::new(map.rx().len_bytes / CHUNK_BYTES);
        Ok(Self {
            map,
            chunks,
            sharing,
        })
    }

    pub(crate) fn rx(&self) -> RxRange {
        self.map.rx()
    }

    pub(crate) fn is_huge(&self) -> bool {
        self.map.is_huge()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.nr_used() == 0
    }

    /// Whether it is of use to anybody else when it is empty.
    pub(crate) fn is_shared(&self) -> bool {
        self.sharing == Sharing::Shared
    }

    /// Takes room for `ask`: where the code goes, and all that it occupies.
    pub(crate) fn take(&mut self, ask: &Ask) -> Option<(RxRange, RxRange)> {
        if ask.wants_own_pack() == self.is_shared() {
            return None;
        }
        let align = (ask.align_bytes / CHUNK_BYTES).max(1);
        let run = self
            .chunks
            .take(ask.nr_chunks(), align, self.window(ask.near))?;
        let start_bytes = run.start * CHUNK_BYTES;
        let Some(code) = self.rx().sub(start_bytes, ask.size_bytes) else {
            // Cannot be: the run lies in the bitmap, and the bitmap in the map.
            self.chunks.give(run);
            return None;
        };
        if self.sharing == Sharing::Own {
            self.chunks.give(run);
            let all = self.rx().len_bytes / CHUNK_BYTES;
            self.chunks.take(all, 1, 0..all);
            return Some((code, self.rx()));
        }
        let occupied = self.rx().sub(start_bytes, run.len() * CHUNK_BYTES)?;
        Some((code, occupied))
    }

    /// Gives back what [`Self::take`] occupied.
    pub(crate) fn give(&mut self, occupied: RxRange) {
        let start = (occupied.start.get() - self.rx().start.get()) as usize / CHUNK_BYTES;
        self.chunks
            .give(start..start + occupied.len_bytes / CHUNK_BYTES);
    }

    /// The chunks that lie wholly in reach.
    pub(crate) fn window(&self, near: Near) -> Range<usize> {
        let (low, high) = near.bounds();
        let (start, chunk) = (self.rx().start.get(), CHUNK_BYTES as u64);
        let first = low.saturating_sub(start).div_ceil(chunk);
        let end = high.saturating_sub(start) / chunk;
        first as usize..(end as usize).min(self.rx().len_bytes / CHUNK_BYTES)
    }
}

/// A place may be lost to another thread this often before it is given up.
const MAX_TRIES: usize = 64;

fn map_within(
    ask: &Ask,
    of: RxAddr,
    reach_bytes: u64,
    huge: HugePolicy,
) -> Result<CodeMap, PackError> {
    let wish = Wish {
        pack_bytes: ask.pack_bytes() as u64,
        // The last chunk must be in reach as a whole, since it is in the window or not.
        fit_bytes: (ask.nr_chunks() * CHUNK_BYTES) as u64,
        align_bytes: ask.align_bytes as u64,
        of,
        bounds: ask.near.bounds(),
    };
    let mut refused = Vec::new();
    for _ in 0..MAX_TRIES {
        let maps = ProcMaps::read()?;
        let Some(start) = wish.nearest(maps.all(), &refused) else {
            break;
        };
        match map_pack(ask.pack_bytes(), Place::At(RxAddr::new(start)), huge) {
            Ok(map) => return Ok(map),
            // Lost to another thread, or free to the eye only (the gap under a stack).
            Err(TextError::Occupied { .. }) => refused.push(start),
            Err(error) => return Err(error.into()),
        }
    }
    Err(PackError::OutOfReach { of, reach_bytes })
}

/// A map on the best pages that can be had.
fn map_pack(pack_bytes: usize, place: Place, huge: HugePolicy) -> Result<CodeMap, TextError> {
    if huge == HugePolicy::Never {
        return CodeMap::new(pack_bytes, place, Backing::Memfd);
    }
    match CodeMap::new(pack_bytes, place, Backing::Hugetlb) {
        Err(TextError::NoHugePages { .. }) => {}
        done => return done,
    }
    let map = CodeMap::new(pack_bytes, place, Backing::Memfd)?;
    // An old kernel, or no free 2 MiB of memory: ordinary pages serve as well, and
    // `CodeMap::is_huge` says so.
    let _ = collapse(&map);
    Ok(map)
}

/// Makes the pages huge. The kernel refuses to collapse a stretch of which no page is there
/// (EINVAL, `mm/khugepaged.c`), so one chunk of each is written first.
fn collapse(map: &CodeMap) -> Result<(), TextError> {
    let starts = (0..map.rx().len_bytes).step_by(PACK_BYTES);
    let chunks: Vec<RxRange> = starts
        .filter_map(|start| map.rx().sub(start, CHUNK_BYTES))
        .collect();
    text::text_invalidate_all(&chunks)?;
    map.collapse()
}
