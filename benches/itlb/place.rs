//! Where programs are put.
//!
//! | layout | programs | pages |
//! | --- | --- | --- |
//! | [`Layout::Page`] | one in a page, somewhere in it, as in the kernel before packs | 4 KiB |
//! | [`Layout::Packed`] | one after the other | 4 KiB |
//! | [`Layout::Hot`] | one after the other, those that are called most first | 4 KiB |
//! | [`Layout::Huge`] | one after the other | 2 MiB, where the system gives them |
//!
//! Somewhere in the page: all at its start would share few lines of the instruction cache, which
//! would be measured too. Key types: [`Layout`], [`Placed`]. Neighbours: `pack_alloc` has the
//! memory, `pages` says what pages it became. Source: kernel `kernel/bpf/core.c`
//! (`bpf_jit_binary_alloc`, `bpf_prog_pack_alloc`).

use std::fmt;

use pack_alloc::{CHUNK_BYTES, Config, HugePolicy, Near, PackAlloc, PackCode};
use text::{RxAddr, RxRange};

use super::Error;
use super::corpus::Corpus;
use super::order::Rng;
use super::pages::Pages;
use super::tlb::PageSize;

/// A way to put programs into memory.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Layout {
    Page,
    Packed,
    Hot,
    Huge,
}

impl Layout {
    pub(crate) const ALL: [Self; 4] = [Self::Page, Self::Packed, Self::Hot, Self::Huge];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Packed => "packed",
            Self::Hot => "hot-first",
            Self::Huge => "huge",
        }
    }

    /// For people.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Page => "one 4 KiB page per program",
            Self::Packed => "packed in 4 KiB pages",
            Self::Hot => "packed in 4 KiB pages, hot first",
            Self::Huge => "packed in 2 MiB pages",
        }
    }

    fn huge_policy(self) -> HugePolicy {
        match self {
            Self::Page | Self::Packed | Self::Hot => HugePolicy::Never,
            Self::Huge => HugePolicy::Try,
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const PAGE_BYTES: usize = 4096;
/// Programs that are published with one flush.
const NR_BATCH: usize = 1024;
/// What a call's `auipc` reaches, less some slack: where the runtime puts programs too.
const REACH_BYTES: u64 = (1 << 31) - (64 << 20);

/// Programs where they run.
#[derive(Debug)]
pub(crate) struct Placed {
    /// By number of the program.
    spots: Vec<Spot>,
    packs: PackAlloc,
    codes: Vec<PackCode>,
    resident_bytes: u64,
}

/// Where a program runs, and on which pages.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) rx: RxRange,
    pub(crate) page: PageSize,
}

impl Placed {
    /// Puts the programs 0 to `nr_programs` - 1 of `corpus` into memory, in the order `by`.
    ///
    /// # Errors
    /// [`Error::Pack`] when there is no memory for it.
    pub(crate) fn new(corpus: &Corpus, layout: Layout, by: &[u32]) -> Result<Self, Error> {
        let mut config = Config::default();
        config.huge = layout.huge_policy();
        let packs = PackAlloc::new(config);
        let mut codes = Vec::with_capacity(by.len());
        let mut starts = vec![RxRange::new(RxAddr::new(0), 0); by.len()];
        let mut rng = Rng::new(by.len() as u64);
        for batch in by.chunks(NR_BATCH) {
            let mut bufs = Vec::with_capacity(batch.len());
            for &number in batch {
                let code = corpus.code(number);
                let (off, align) = match layout {
                    Layout::Page => (somewhere(code.len(), &mut rng), PAGE_BYTES),
                    Layout::Packed | Layout::Hot | Layout::Huge => (0, CHUNK_BYTES),
                };
                let mut buf = packs.alloc(off + code.len(), align, near())?;
                buf.rw()[off..].copy_from_slice(code);
                let start = RxAddr::new(buf.rx().start.get() + off as u64);
                starts[number as usize] = RxRange::new(start, code.len());
                bufs.push(buf);
            }
            codes.extend(packs.finalize_all(bufs)?);
        }
        let pages = Pages::read()?;
        let spot = |rx: RxRange| Spot {
            rx,
            page: pages.size_at(rx.start.get()),
        };
        Ok(Self {
            resident_bytes: resident_bytes(&codes, &pages),
            spots: starts.into_iter().map(spot).collect(),
            packs,
            codes,
        })
    }

    /// Where a program is.
    pub(crate) fn spot(&self, number: u32) -> Spot {
        self.spots[number as usize]
    }

    /// Looks again at what [`Self::resident_bytes`] tells: pages come when they are used.
    pub(crate) fn look_again(&mut self) -> Result<(), Error> {
        self.resident_bytes = resident_bytes(&self.codes, &Pages::read()?);
        Ok(())
    }

    /// Memory that the packs hold: pages that are there.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    /// What pages it became, for people.
    pub(crate) fn backing(&self) -> String {
        let stats = self.packs.stats();
        let nr_huge = self.spots.iter().filter(|s| s.page != PageSize::K4).count();
        let nr = self.spots.len();
        let pages = match nr_huge {
            0 => "4 KiB pages".to_owned(),
            all if all == nr => "2 MiB pages".to_owned(),
            some => format!("2 MiB pages for {some} of {nr} programs, 4 KiB pages for the rest"),
        };
        match stats.nr_packs {
            1 => format!("1 pack of 2 MiB, in {pages}"),
            nr_packs => format!("{nr_packs} packs of 2 MiB, in {pages}"),
        }
    }

    /// Whether all of it is in huge pages.
    pub(crate) fn is_huge(&self) -> bool {
        self.spots.iter().all(|spot| spot.page != PageSize::K4)
    }

    /// Gives the memory back, with one flush.
    pub(crate) fn free(self) -> Result<(), Error> {
        Ok(self.packs.free_all(self.codes)?)
    }
}

fn resident_bytes(codes: &[PackCode], pages: &Pages) -> u64 {
    pages.resident_bytes(codes.iter().map(|code| code.rx().start.get()))
}

/// Where in its page a program starts.
fn somewhere(len_bytes: usize, rng: &mut Rng) -> usize {
    let room = PAGE_BYTES.saturating_sub(len_bytes) / 4;
    4 * rng.below(room as u64 + 1) as usize
}

fn near() -> Near {
    Near::Within {
        of: RxAddr::new(somewhere as *const () as u64),
        reach_bytes: REACH_BYTES,
    }
}
