//! Islands: eight unused bytes of an object's text, from which a jump of one word goes on to far
//! away.
//!
//! ```text
//!   function                 island                     anywhere within 2 GiB
//!     jal x0, island ──────▶   auipc t, hi
//!     rest      (1 MiB)        jr    lo(t) ────────────▶  stub
//! ```
//!
//! A `jal` covers one instruction where `auipc` and `jalr` cover two or more, and it is one word; but
//! it reaches 1 MiB, and that near to a library there is seldom room for code. What is there is the
//! library itself: the loader maps whole pages, so behind the end of its text the last page goes on,
//! with whatever the file has there.
//!
//! # Why nothing else uses these bytes
//! - They lie behind the segment's last byte and belong to no segment, so no symbol, relocation,
//!   unwind table or program header names them. Where another segment is mapped over that page,
//!   there are none.
//! - No thread falls into them: it would have to run over the end of its segment. A call that is
//!   the last instruction and does not return has its return address there, so the first eight are
//!   left free.
//! - They are what the file has there, or zero where that cannot be compared: not another tool's.
//!
//! Padding between functions would serve as well, but there is none to speak of: instructions are
//! aligned to two bytes, and so are functions (Debian's libc, libcrypto, zlib and libzstd: one gap
//! of eight bytes, of zeros, which may be data).
//!
//! # Order
//! An island's words are stored and flushed before anything leads to it, and taken back when no
//! thread can be in it or on its way: its owner proves that ([`Island::range`]) as it does of the
//! code behind. Meanwhile it does not change. At the entry of a function the register `t` holds
//! nothing, as with a far jump; nothing else is written, and `ra` and the predictor of returns see
//! nothing of it.
//!
//! Key types: [`Island`], [`Need`]. Neighbours: `loaded`, `unchanged` (the file), `txn` (stores),
//! `state` (which are taken). Source: ELF gABI, "Program Loading"; `mmap(2)` (the rest of a last
//! page).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::file;
use crate::insn;
use crate::loaded::{Header, Loaded};
use crate::proc_maps::ProcMaps;
use crate::state::{self, State};
use crate::sys;
use crate::txn::{self, WordPatch};
use crate::unchanged;

const ISLAND_BYTES: u64 = 8;
/// Objects of which it is known which islands they have.
const MOST_KNOWN: usize = 16;

/// What an island is wanted for. There are a few hundred in an object at most.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Need {
    /// Another jump would do, but not by one store: half of an object's islands may serve this.
    NoWindow,
    /// No other jump fits.
    OnlyWay,
}

/// Eight bytes that are taken. Dropped without having led anywhere, they are free again; else see
/// [`give_back_all`].
#[derive(Debug)]
pub struct Island {
    at: RxAddr,
    unused: [u32; 2],
    /// Its two words; 0 while it leads nowhere.
    words: AtomicU64,
}

impl Island {
    /// Takes an island within reach of a `jal` at `func`, in the same object. `None`: there is none,
    /// or none for this need.
    #[must_use]
    pub fn reserve(func: RxAddr, need: Need) -> Option<Self> {
        state::watch_forks().ok()?;
        let object = Loaded::find(func)?;
        let mut state = state::lock();
        let slots = slots_of(&object, &mut state)?;
        let Islands { known, taken } = &mut state.islands;
        let slots = &known.get(slots)?.slots;
        let free = slots.iter().filter(|slot| !taken.contains(&slot.at));
        if need == Need::NoWindow && 2 * free.clone().count() <= slots.len() {
            return None;
        }
        // The last one: functions that lie further ahead do not reach it.
        let near = free.rev().filter(|slot| slot.at.rel_to(func).fits_jal());
        let Slot { at, unused } = *near.clone().find(|slot| slot.is_unused())?;
        taken.insert(at);
        Some(Self {
            at,
            unused,
            words: AtomicU64::new(0),
        })
    }

    /// Where to jump to.
    #[must_use]
    pub fn at(&self) -> RxAddr {
        self.at
    }

    /// Where a thread is that is on its way.
    #[must_use]
    pub fn range(&self) -> RxRange {
        RxRange::new(self.at, ISLAND_BYTES as usize)
    }

    fn patches(&self, old: [u32; 2], new: [u32; 2]) -> [WordPatch; 2] {
        [0, 1].map(|i| WordPatch {
            at: RxAddr::new(self.at.get() + 4 * i as u64),
            old: old[i],
            new: new[i],
        })
    }

    fn back(&self) -> Option<[WordPatch; 2]> {
        let words = self.words.load(Ordering::Relaxed);
        (words != 0).then(|| self.patches([words as u32, (words >> 32) as u32], self.unused))
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        if *self.words.get_mut() == 0 {
            state::lock().islands.taken.remove(&self.at);
        }
    }
}

/// Stores the words of islands to which nothing leads yet: each leads to the address beside it, by
/// the register of that number. All or none.
///
/// # Errors
/// [`TextError::Reach`], and those of [`patch_words`](crate::patch_words).
pub fn lead_all(islands: &[(&Island, RxAddr, u8)]) -> Result<(), TextError> {
    let words = |(island, to, scratch): &(&Island, RxAddr, u8)| {
        let (site, target) = (island.at, *to);
        insn::jump_far(site, target, *scratch).ok_or(TextError::Reach { site, target })
    };
    let words: Vec<[u32; 2]> = islands.iter().map(words).collect::<Result<_, _>>()?;
    let both = islands.iter().zip(&words);
    let patches = both
        .clone()
        .flat_map(|((i, ..), new)| i.patches(i.unused, *new));
    txn::patch_words(&patches.collect::<Vec<_>>())?;
    for ((island, ..), [first, second]) in both {
        let words = u64::from(*second) << 32 | u64::from(*first);
        island.words.store(words, Ordering::Relaxed);
    }
    Ok(())
}

/// Frees islands, to which nothing leads any more and in which no thread is: their bytes are again
/// what they were. Those for which that is refused stay taken.
pub fn give_back_all(islands: Vec<Island>) {
    let Ok(mut state) = state::lock_for_change() else {
        // They lead somewhere, and stay taken.
        return;
    };
    let patches = islands.iter().filter_map(Island::back).flatten();
    let all = txn::patch_locked(&mut state, &patches.collect::<Vec<_>>());
    let is_back = |island: &Island| {
        let Some(patches) = island.back().filter(|_| all.is_err()) else {
            return true;
        };
        match txn::patch_locked(&mut state, &patches) {
            Ok(()) => true,
            // The library was closed; what is there now is not ours.
            Err(TextError::Mismatch { .. } | TextError::Unmapped { .. }) => true,
            Err(_) => false,
        }
    };
    let (back, _stay): (Vec<Island>, Vec<Island>) = islands.into_iter().partition(is_back);
    drop(state);
    for mut island in back {
        *island.words.get_mut() = 0;
    }
}

/// Which islands there are, and which of them are taken. In the text's state.
pub(crate) struct Islands {
    known: Vec<Known>,
    taken: BTreeSet<RxAddr>,
}

/// The islands of an object, in order.
struct Known {
    object: Arc<Loaded>,
    slots: Vec<Slot>,
}

/// Where an island can be, and what is there while there is none.
#[derive(Copy, Clone)]
struct Slot {
    at: RxAddr,
    unused: [u32; 2],
}

impl Slot {
    /// Nobody else has found it.
    fn is_unused(&self) -> bool {
        let now = [0, 4].map(|off| sys::load_text_u32(RxAddr::new(self.at.get() + off)));
        now == self.unused
    }
}

impl Islands {
    pub(crate) const fn new() -> Self {
        Self {
            known: Vec::new(),
            taken: BTreeSet::new(),
        }
    }
}

/// Which of the known ones is the object, looked at if it was not.
fn slots_of(object: &Arc<Loaded>, state: &mut State) -> Option<usize> {
    let known = &state.islands.known;
    if let Some(i) = known.iter().position(|k| k.object == *object) {
        return Some(i);
    }
    let slots = look(object)?;
    let known = &mut state.islands.known;
    known.retain(|k| k.object.base != object.base);
    if known.len() == MOST_KNOWN {
        known.remove(0);
    }
    known.push(Known {
        object: Arc::clone(object),
        slots,
    });
    Some(known.len() - 1)
}

fn look(object: &Arc<Loaded>) -> Option<Vec<Slot>> {
    let maps = ProcMaps::read().ok()?;
    let file = file::open(object, &maps).ok();
    let file = file.filter(|file| unchanged::is_same(object, file, &maps) == Some(true));
    let mut slots = Vec::new();
    for (rest, off) in rests(object) {
        if maps.private_text_at(rest.start).is_err() || !maps.is_readable(rest) {
            continue;
        }
        let mut unused = vec![0; rest.len_bytes];
        if let Some(file) = &file {
            // Behind its end, a file reads as zeros in memory.
            file::read_up_to(file, off, &mut unused).ok()?;
        }
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        for (i, bytes) in unused.chunks_exact(ISLAND_BYTES as usize).enumerate() {
            slots.push(Slot {
                at: RxAddr::new(rest.start.get() + i as u64 * ISLAND_BYTES),
                unused: [word(bytes), word(&bytes[4..])],
            });
        }
    }
    slots.sort_unstable_by_key(|slot| slot.at);
    Some(slots)
}

/// What is left of the last pages of executed segments, in whole islands, and where the file has it.
fn rests(object: &Loaded) -> Vec<(RxRange, u64)> {
    let page_bytes = region::page::size() as u64;
    let is_text = |h: &&Header| {
        let kinds = libc::PF_X | libc::PF_W;
        h.flags & kinds == libc::PF_X && h.filesz == h.memsz && h.filesz != 0
    };
    let mut rests = Vec::new();
    for header in object.loads().filter(is_text) {
        let end = object.range_of(header).end();
        let page = end.align_down(page_bytes);
        if page == end {
            continue;
        }
        let pages_of = |h: &Header| {
            let range = object.range_of(h);
            let start = range.start.align_down(page_bytes);
            start..RxAddr::new(range.end().get().next_multiple_of(page_bytes))
        };
        let is_over = |h: &Header| h != header && pages_of(h).contains(&page);
        if object.loads().any(is_over) {
            continue;
        }
        let start = end.align_down(ISLAND_BYTES).get() + 2 * ISLAND_BYTES;
        let page_end = page.get() + page_bytes;
        let Some(len @ 1..) = page_end.checked_sub(start) else {
            continue;
        };
        let off = start - end.get() + header.offset + header.filesz;
        let rest = RxRange::new(RxAddr::new(start), len as usize);
        rests.push((rest, off));
    }
    rests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u32, offset: u64, vaddr: u64, len: u64) -> Header {
        Header {
            kind: libc::PT_LOAD,
            flags,
            offset,
            vaddr,
            filesz: len,
            memsz: len,
        }
    }

    fn rests_of(headers: Vec<Header>) -> Vec<(u64, usize, u64)> {
        let object = Loaded::of_headers(0x10_0000, headers);
        let plain = |(rest, off): (RxRange, u64)| (rest.start.get(), rest.len_bytes, off);
        rests(&object).into_iter().map(plain).collect()
    }

    #[test]
    fn what_is_left_of_the_last_page_begins_behind_the_end() {
        let (rx, rw) = (libc::PF_R | libc::PF_X, libc::PF_R | libc::PF_W);
        let data = header(rw, 0x2580, 0x3580, 0x100);
        let text = |len| header(rx, 0, 0, len);
        let left = rests_of(vec![text(0x2428), data]);
        assert_eq!(left, [(0x10_2438, 0xbc8, 0x2438)]);
        // A return address at the end is no island.
        assert_eq!(rests_of(vec![text(0x2421)]), [(0x10_2430, 0xbd0, 0x2430)]);
        assert_eq!(rests_of(vec![text(0x2ff0)]), []);
        assert_eq!(rests_of(vec![text(0x2fef)]), [(0x10_2ff8, 8, 0x2ff8)]);
        assert_eq!(rests_of(vec![text(0x3000)]), []);
        // Another segment in the same page, by its beginning or its end.
        for over in [
            header(rw, 0x2600, 0x2600, 0x10),
            header(rw, 0, 0x1f00, 0x200),
        ] {
            assert_eq!(rests_of(vec![text(0x2428), over]), []);
        }
        // Writable text is none; a segment that ends in zeros is not the file's.
        assert_eq!(rests_of(vec![data]), []);
        let mut longer = text(0x2428);
        longer.memsz += 8;
        assert_eq!(rests_of(vec![longer]), []);
        // The file has it elsewhere.
        let split = header(rx, 0x1234, 0x5234, 0x100);
        assert_eq!(rests_of(vec![split]), [(0x10_5340, 0xcc0, 0x1340)]);
    }
}
