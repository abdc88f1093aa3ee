//! A model of TLBs: which of the pages that code runs through are translated by which level.
//!
//! ```text
//!   address, size of its page ──▶ level 1 ──miss──▶ level 2 ──miss──▶ … ──miss──▶ page table walk
//!                                    ◀── every level that missed is filled ──┘
//! ```
//!
//! It is told of every page that is entered, in order; fetches that stay in a page cannot miss and
//! are not told. A miss of a level is an access that got as far as this level and found nothing
//! there, so misses of the last level are page table walks. One address space, nobody else on the
//! hart: no data in a level that serves both, no kernel, no other process, nothing prefetched.
//!
//! Key types: [`Tlb`], [`PageSize`]. Neighbour: `spec` reads what a core has from a file. Source:
//! RISC-V privileged ISA, Sv39 (page sizes).

use std::fmt;

use super::spec::{LevelSpec, Replacement, TlbSpec};

/// The sizes of Sv39's pages.
#[derive(Copy, Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum PageSize {
    /// 4 KiB.
    K4,
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
}

impl PageSize {
    pub(crate) const ALL: [Self; 3] = [Self::K4, Self::M2, Self::G1];

    /// Where the page ends that `address` lies in.
    pub(crate) fn end_of(self, address: u64) -> u64 {
        ((address >> self.shift()) + 1) << self.shift()
    }

    fn shift(self) -> u32 {
        match self {
            Self::K4 => 12,
            Self::M2 => 21,
            Self::G1 => 30,
        }
    }
}

/// As in a file: `4K`.
impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::K4 => "4K",
            Self::M2 => "2M",
            Self::G1 => "1G",
        })
    }
}

/// The TLBs of a hart, empty at first.
#[derive(Clone, Debug)]
pub(crate) struct Tlb {
    levels: Vec<Level>,
}

impl Tlb {
    pub(crate) fn new(spec: &TlbSpec) -> Self {
        Self {
            levels: spec.levels.iter().map(Level::new).collect(),
        }
    }

    /// Translates `address`, which lies in a page of size `page`.
    pub(crate) fn access(&mut self, address: u64, page: PageSize) {
        for level in &mut self.levels {
            if level.access(address, page) == Found::Hit {
                break;
            }
        }
    }

    /// Misses since the counts were reset, by level, the first first.
    pub(crate) fn misses(&self) -> impl Iterator<Item = u64> + '_ {
        self.levels.iter().map(|level| level.misses)
    }

    /// Counts from zero; what is translated stays so.
    pub(crate) fn reset_counts(&mut self) {
        self.levels.iter_mut().for_each(|level| level.misses = 0);
    }
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Found {
    Hit,
    Miss,
}

/// What an entry translates.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Tag {
    page: PageSize,
    number: u64,
}

#[derive(Clone, Debug)]
struct Level {
    /// Each has its entries in the order in which they shall go, the last first: by use with LRU,
    /// else by when they came.
    sets: Vec<Vec<Tag>>,
    ways: usize,
    /// From small to large.
    pages: Vec<PageSize>,
    replacement: Replacement,
    /// Of the random replacement; the same each time.
    state: u64,
    misses: u64,
}

impl Level {
    fn new(spec: &LevelSpec) -> Self {
        let nr_sets = spec.entries / spec.ways;
        Self {
            sets: vec![Vec::with_capacity(spec.ways); nr_sets],
            ways: spec.ways,
            pages: spec.pages.clone(),
            replacement: spec.replacement,
            state: 1,
            misses: 0,
        }
    }

    /// Looks it up, and fills it in if it is not there.
    fn access(&mut self, address: u64, page: PageSize) -> Found {
        // A level that does not know pages of this size holds the smaller ones that it consists of.
        let held_as = self.pages.iter().rev().find(|&&size| size <= page);
        let Some(&page) = held_as else {
            self.misses += 1;
            return Found::Miss;
        };
        let number = address >> page.shift();
        let tag = Tag { page, number };
        // The number of sets is a power of two: the page's low bits choose.
        let set = (number % self.sets.len() as u64) as usize;
        let found = self.sets[set].iter().position(|&held| held == tag);
        match found {
            Some(at) => {
                if self.replacement == Replacement::Lru {
                    self.sets[set][..=at].rotate_right(1);
                }
                Found::Hit
            }
            None => {
                self.fill(set, tag);
                self.misses += 1;
                Found::Miss
            }
        }
    }

    fn fill(&mut self, set: usize, tag: Tag) {
        if self.sets[set].len() == self.ways {
            match self.replacement {
                Replacement::Lru | Replacement::Fifo => {
                    self.sets[set].pop();
                }
                Replacement::Random => {
                    let at = self.random() as usize % self.ways;
                    self.sets[set].remove(at);
                }
            }
        }
        self.sets[set].insert(0, tag);
    }

    /// Marsaglia's xorshift.
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}
