//! Programs, where they are put, and what pages that is.

use crate::itlb::corpus::{Corpus, SIZES};
use crate::itlb::order::Rng;
use crate::itlb::pages::Pages;
use crate::itlb::place::{Layout, Placed};
use crate::itlb::tlb::PageSize;

const NR: u32 = 600;

fn in_order(nr: u32) -> Vec<u32> {
    (0..nr).collect()
}

/// First and last page of each, by number.
fn pages_of(placed: &Placed, nr: u32) -> Vec<(u64, u64)> {
    let pages = |number| {
        let rx = placed.spot(number).rx;
        (rx.start.get() >> 12, (rx.end().get() - 1) >> 12)
    };
    (0..nr).map(pages).collect()
}

#[test]
fn sizes_are_spread_over_the_range() {
    let corpus = Corpus::new(2048).expect("programs");
    let (least, median, most) = corpus.sizes();
    let near = |size: usize, want: u64| size.abs_diff(want as usize) <= 8;
    assert!(near(least, *SIZES.start()), "{least}");
    assert!(near(most, *SIZES.end()), "{most}");
    // The root of 64 x 1024.
    assert!(near(median, 256), "{median}");
    // Any stretch has about the same mixture: the mean is 960 / ln 16.
    for first in [0, 1000, 1900] {
        let sizes = (first..first + 64).map(|number| corpus.code(number).len());
        let mean = sizes.sum::<usize>() / 64;
        assert!((320..370).contains(&mean), "{first}: {mean}");
    }
}

#[test]
fn one_page_per_program_is_shared_with_nobody() {
    let corpus = Corpus::new(NR as usize).expect("programs");
    let placed = Placed::new(&corpus, Layout::Page, &in_order(NR)).expect("placed");
    let mut pages = pages_of(&placed, NR);
    assert!(pages.iter().all(|(first, last)| first == last));
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), NR as usize);
    // Somewhere in the page: not all in the same place.
    let starts_at_0 = |number: &u32| placed.spot(*number).rx.start.get() % 4096 == 0;
    assert!(in_order(NR).iter().filter(|n| starts_at_0(n)).count() < 10);
    assert_eq!(placed.backing(), "2 packs of 2 MiB, in 4 KiB pages");
    placed.free().expect("freed");
}

#[test]
fn packed_programs_lie_side_by_side_in_the_order_that_was_asked_for() {
    let corpus = Corpus::new(NR as usize).expect("programs");
    for (layout, by) in [
        (Layout::Packed, in_order(NR)),
        (Layout::Hot, Rng::new(7).shuffled(NR as usize)),
    ] {
        let placed = Placed::new(&corpus, layout, &by).expect("placed");
        for pair in by.windows(2) {
            let (one, next) = (placed.spot(pair[0]).rx, placed.spot(pair[1]).rx);
            let chunks_end = one.end().get().next_multiple_of(64);
            assert_eq!(next.start.get(), chunks_end, "{layout}: {pair:?}");
        }
        for number in 0..NR {
            let spot = placed.spot(number);
            assert_eq!(spot.rx.len_bytes, corpus.code(number).len());
            assert_eq!(spot.page, PageSize::K4);
        }
        placed.free().expect("freed");
    }
}

#[test]
fn mappings_are_read_with_their_pages() {
    let pages = Pages::parse(
        "1000-3000 r-xp 00000000 00:01 5 /memfd:a (deleted)\n\
         Size:                  8 kB\nKernelPageSize:        4 kB\nRss:                   4 kB\n\
         ShmemPmdMapped:        0 kB\nVmFlags: rd ex\n\
         200000-400000 r-xs 00000000 00:01 6 /memfd:b (deleted)\n\
         KernelPageSize:        4 kB\nRss:                2048 kB\nShmemPmdMapped:     2048 kB\n\
         400000-600000 r-xs 00000000 00:01 7 /anon_hugepage (deleted)\n\
         KernelPageSize:     2048 kB\nRss:                   0 kB\nShared_Hugetlb:     2048 kB\n\
         600000-a00000 r-xs 00000000 00:01 8 /memfd:c (deleted)\n\
         KernelPageSize:        4 kB\nRss:                2052 kB\nShmemPmdMapped:     2048 kB\n",
    );
    for (address, want) in [
        (0xfff, PageSize::K4),
        (0x1000, PageSize::K4),
        (0x20_0000, PageSize::M2),
        (0x3f_ffff, PageSize::M2),
        (0x40_0000, PageSize::M2),
        // Huge in part.
        (0x60_0000, PageSize::K4),
        (0xa0_0000, PageSize::K4),
    ] {
        assert_eq!(pages.size_at(address), want, "{address:#x}");
    }
    let resident = |addresses: &[u64]| pages.resident_bytes(addresses.iter().copied()) / 1024;
    assert_eq!(resident(&[0x1000, 0x1fff, 0x2000]), 4);
    assert_eq!(
        resident(&[0x20_0000, 0x40_0000, 0x60_0000, 0x99_9999]),
        6148
    );
    assert_eq!(resident(&[0x5000]), 0);
}
