//! The model of TLBs against cases worked by hand.

use crate::itlb::spec::TlbSpec;
use crate::itlb::tlb::{PageSize, Tlb};

const K4: u64 = 4 << 10;
const M2: u64 = 2 << 20;

/// A TLB of these levels.
fn tlb(levels: &[&str]) -> Tlb {
    let mut text = "core by hand\n".to_owned();
    for (index, level) in levels.iter().enumerate() {
        text += &format!("level L{index} {level}\n");
    }
    Tlb::new(&TlbSpec::parse(&text).expect("a core"))
}

/// Misses by level when small pages of these numbers are entered.
fn misses_of(tlb: &mut Tlb, pages: impl IntoIterator<Item = u64>) -> Vec<u64> {
    tlb.reset_counts();
    for page in pages {
        tlb.access(page * K4, PageSize::K4);
    }
    tlb.misses().collect()
}

/// One letter for each access: `m`iss or `h`it of the first level.
fn letters(tlb: &mut Tlb, pages: &[u64]) -> String {
    let letter = |&page: &u64| match misses_of(tlb, [page])[0] {
        0 => 'h',
        _ => 'm',
    };
    pages.iter().map(letter).collect()
}

const FULL3: &str = "entries=3 ways=full pages=4K,2M";

#[test]
fn the_least_recently_used_entry_goes() {
    let mut lru = tlb(&[&format!("{FULL3} replacement=lru")]);
    // 4 takes the place of 2; 1 was used after it.
    assert_eq!(letters(&mut lru, &[1, 2, 3, 1, 4, 1, 3, 2]), "mmmhmhhm");
    // Now 3, 1 and 2 are in, and one more than there is room for goes round.
    assert_eq!(letters(&mut lru, &[1, 2, 3, 1, 2, 3]), "hhhhhh");
    assert_eq!(letters(&mut lru, &[4, 1, 2, 3, 4, 1, 2, 3]), "mmmmmmmm");
}

#[test]
fn first_in_first_out_does_not_look_at_use() {
    let mut fifo = tlb(&[&format!("{FULL3} replacement=fifo")]);
    // 4 takes the place of 1, though that has just been used; then 1 that of 2, and 2 that of 3.
    assert_eq!(
        letters(&mut fifo, &[1, 2, 3, 1, 4, 1, 2, 4, 3]),
        "mmmhmmmhm"
    );
}

#[test]
fn random_replacement_takes_any_of_a_full_set() {
    let mut random = tlb(&[&format!("{FULL3} replacement=random")]);
    assert_eq!(letters(&mut random, &[1, 2, 3, 1, 2, 3]), "mmmhhh");
    // Going round through 4 pages: LRU would miss 4,000 times. Here a page survives the three
    // misses between its uses at most now and then, and is gone at least now and then.
    let misses = misses_of(&mut random, (0..4000).map(|n| n % 4))[0];
    assert!((1000..3000).contains(&misses), "{misses}");
}

#[test]
fn pages_of_one_set_drive_each_other_out() {
    let mut direct = tlb(&["entries=4 ways=1 pages=4K replacement=lru"]);
    // 0, 4 and 8 share a set; 5 has another.
    assert_eq!(
        letters(&mut direct, &[0, 4, 0, 4, 8, 5, 8, 5, 0]),
        "mmmmmmhhm"
    );
    let mut two_ways = tlb(&["entries=8 ways=2 pages=4K replacement=lru"]);
    assert_eq!(letters(&mut two_ways, &[0, 4, 0, 4, 8, 4, 0]), "mmhhmhm");
}

#[test]
fn a_huge_page_covers_512_small_ones() {
    let mut tlb = tlb(&["entries=40 ways=full pages=4K,2M replacement=lru"]);
    for small in 0..512 {
        tlb.access(M2 + small * K4 + 8, PageSize::M2);
    }
    assert_eq!(tlb.misses().collect::<Vec<_>>(), [1]);
    tlb.access(M2 - 2, PageSize::M2);
    tlb.access(2 * M2, PageSize::M2);
    assert_eq!(tlb.misses().collect::<Vec<_>>(), [3]);
    assert_eq!(misses_of(&mut tlb, 512..1024), [512]);
}

#[test]
fn pages_of_different_sizes_are_different_though_their_numbers_are_equal() {
    let mut tlb = tlb(&["entries=2 ways=full pages=4K,2M,1G replacement=lru"]);
    let mut misses = |address, page| {
        tlb.reset_counts();
        tlb.access(address, page);
        tlb.misses().next()
    };
    assert_eq!(misses(5 * K4, PageSize::K4), Some(1));
    assert_eq!(misses(5 * M2, PageSize::M2), Some(1));
    assert_eq!(misses(5 * K4 + 100, PageSize::K4), Some(0));
    assert_eq!(misses(6 * M2 - 2, PageSize::M2), Some(0));
    // A third drives out the first of them, which is the small one.
    assert_eq!(misses(5 << 30, PageSize::G1), Some(1));
    assert_eq!(misses(5 * M2, PageSize::M2), Some(0));
    assert_eq!(misses(5 * K4, PageSize::K4), Some(1));
}

#[test]
fn large_pages_choose_sets_by_their_own_numbers() {
    let mut tlb = tlb(&["entries=4 ways=1 pages=4K,2M replacement=lru"]);
    let mut misses = |address, page| {
        tlb.reset_counts();
        tlb.access(address, page);
        tlb.misses().next()
    };
    // Set 1: the large page 1, and the small pages 1 and 5. Set 2: the large page 2.
    assert_eq!(misses(M2, PageSize::M2), Some(1));
    assert_eq!(misses(2 * M2, PageSize::M2), Some(1));
    assert_eq!(misses(M2, PageSize::M2), Some(0));
    assert_eq!(misses(5 * K4, PageSize::K4), Some(1));
    assert_eq!(misses(M2, PageSize::M2), Some(1));
    assert_eq!(misses(2 * M2, PageSize::M2), Some(0));
}

#[test]
fn what_a_level_cannot_hold_whole_it_holds_in_pieces_or_not_at_all() {
    let mut tlb = tlb(&[
        "entries=8 ways=full pages=2M replacement=lru",
        "entries=8 ways=full pages=4K replacement=lru",
    ]);
    let mut misses = |address, page| {
        tlb.reset_counts();
        tlb.access(address, page);
        tlb.misses().collect::<Vec<_>>()
    };
    // Small pages: the first level has no room for them, ever.
    assert_eq!(misses(0, PageSize::K4), [1, 1]);
    assert_eq!(misses(8, PageSize::K4), [1, 0]);
    // Of 1 GiB: the first holds 2 MiB of it.
    assert_eq!(misses(1 << 30, PageSize::G1), [1, 1]);
    assert_eq!(misses((1 << 30) + M2 - 2, PageSize::G1), [0, 0]);
    assert_eq!(misses((1 << 30) + M2, PageSize::G1), [1, 1]);
}

#[test]
fn the_second_level_sees_only_what_the_first_misses() {
    let mut tlb = tlb(&[
        "entries=2 ways=full pages=4K replacement=lru",
        "entries=4 ways=1 pages=4K replacement=lru",
    ]);
    // Three pages go round in two entries, and fit into the four below.
    assert_eq!(misses_of(&mut tlb, [0, 1, 2, 0, 1, 2]), [6, 3]);
    assert_eq!(misses_of(&mut tlb, [0, 1, 2]), [3, 0]);
    // 4 drives 0 out of the second level, not out of the first.
    assert_eq!(misses_of(&mut tlb, [0, 4, 0]), [2, 1]);
    assert_eq!(misses_of(&mut tlb, [1, 2, 0]), [3, 1]);
}

#[test]
fn the_u74_at_its_borders() {
    let spec = TlbSpec::parse(include_str!("../../benches/itlb/u74.tlb")).expect("a core");
    let mut tlb = Tlb::new(&spec);
    let mut round = |pages: u64| {
        misses_of(&mut tlb, 0..pages);
        misses_of(&mut tlb, 0..pages)
    };
    assert_eq!(round(40), [0, 0]);
    assert_eq!(round(41), [41, 0]);
    assert_eq!(round(512), [512, 0]);
    // 0 and 512 share a set, and nobody else has to share.
    assert_eq!(round(513), [513, 2]);
    assert_eq!(round(1024), [1024, 1024]);
}
