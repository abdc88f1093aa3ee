//! Files that describe TLBs.

use crate::itlb::spec::{Replacement, TlbSpec};
use crate::itlb::tlb::PageSize;

#[test]
fn the_files_that_come_with_it_are_read() {
    let u74 = TlbSpec::parse(include_str!("../../benches/itlb/u74.tlb")).expect("a core");
    assert_eq!(
        u74.to_string(),
        "SiFive U74: ITLB of 40 entries, fully associative; UTLB of 512 entries, direct-mapped"
    );
    assert!(u74.levels.iter().all(|level| level.pages == PageSize::ALL));
    assert_eq!(u74.levels[0].replacement, Replacement::Lru);
    let u54 = TlbSpec::parse(include_str!("../../benches/itlb/u54.tlb")).expect("a core");
    assert_eq!(
        u54.to_string(),
        "SiFive U54 (PolarFire SoC): ITLB of 32 entries, fully associative"
    );
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    const L: &str = "level L1 entries=8 ways=2 pages=4K replacement=lru";
    for (text, want) in [
        ("", "line 1: the file ends without a line that says core"),
        (
            "# c\n\ncore x # y\n",
            "line 3: the file ends without a line that says level",
        ),
        ("core", "line 1: core wants the core's name, once"),
        ("core a\ncore b", "line 2: core wants the core's name, once"),
        (
            "core a\ncpu b",
            "line 2: a line begins with core or level, not with cpu",
        ),
        (
            "core a\nlevel",
            "line 2: level wants a name of its own before its entries",
        ),
        (
            "level entries=8",
            "line 1: level wants a name of its own before its entries",
        ),
        (
            &format!("{L}\n{L}"),
            "line 2: level wants a name of its own before its entries",
        ),
        ("level a", "line 1: entries= is missing"),
        (
            "level a entries=8 ways=2 pages=4K",
            "line 1: replacement= is missing",
        ),
        (
            "level a entries=8 size=2",
            "line 1: size=2 is none of entries=, ways=, pages=, replacement=, or is there twice",
        ),
        (
            "level a entries=8 entries=8",
            "line 1: entries=8 is none of entries=, ways=, pages=, replacement=, or is there twice",
        ),
        (
            &L.replace("=8", "=0"),
            "line 1: entries is a number from 1 to 1048576, not 0",
        ),
        (
            &L.replace("=8", "=many"),
            "line 1: entries is a number from 1 to 1048576, not many",
        ),
        (
            &L.replace("ways=2", "ways=3"),
            "line 1: ways is full or a number that divides 8 into a power of two, not 3",
        ),
        (
            &L.replace("=8 ways=2", "=12 ways=2"),
            "line 1: ways is full or a number that divides 12 into a power of two, not 2",
        ),
        (
            &L.replace("ways=2", "ways=0"),
            "line 1: ways is full or a number that divides 8 into a power of two, not 0",
        ),
        (
            &L.replace("4K", "4K,8K"),
            "line 1: pages are some of 4K, 2M, 1G with commas between, not 4K,8K",
        ),
        (
            &L.replace("lru", "plru"),
            "line 1: replacement is lru, fifo or random, not plru",
        ),
    ] {
        let error = TlbSpec::parse(text).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some(want), "{text}");
    }
}
