//! Code maps as data: placing, copying, patching, undoing. Nothing executes, so these run on
//! every host.

use rvbpf_text::{
    Backing, CodeMap, Place, ProcMaps, RxAddr, RxRange, TextError, WordPatch, patch_words, testing,
    text_copy, text_copy_all, text_invalidate,
};

/// The counters of `testing` are of the whole process: one test at a time.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

const MIB2: usize = 2 << 20;

fn bytes(range: RxRange) -> Vec<u8> {
    let mut out = vec![0; range.len_bytes];
    let at = std::ptr::with_exposed_provenance::<u8>(range.start.get() as usize);
    #[expect(unsafe_code, reason = "reads a map as the harts do")]
    // SAFETY: the range is in a live map of the test, which nobody changes meanwhile.
    unsafe {
        std::ptr::copy_nonoverlapping(at, out.as_mut_ptr(), out.len());
    }
    out
}

fn part(map: &CodeMap, off: usize, len: usize) -> RxRange {
    map.rx().sub(off, len).expect("inside the map")
}

fn perms(range: RxRange) -> [u8; 4] {
    let maps = ProcMaps::read().unwrap();
    let m = maps.find(range.start).expect("mapped");
    assert!(m.range.contains_range(&range), "{range} in {}", m.range);
    m.perms
}

#[test]
fn a_map_is_aligned_executable_and_illegal() {
    let _alone = alone();
    let map = CodeMap::new(MIB2, Place::Anywhere, Backing::Memfd).unwrap();
    assert!(map.rx().start.is_aligned(MIB2 as u64));
    assert_eq!(map.rx().len_bytes, MIB2);
    assert_eq!(perms(map.rx()), *b"r-xs");
    assert!(bytes(map.rx()).iter().all(|b| *b == 0));
    assert_eq!(map.backing(), Backing::Memfd);
}

#[test]
fn a_map_goes_where_it_is_told_or_nowhere() {
    let _alone = alone();
    let first = CodeMap::new(MIB2, Place::Anywhere, Backing::Memfd).unwrap();
    let start = first.rx().start;
    let again = CodeMap::new(4096, Place::At(start), Backing::Memfd);
    assert!(
        matches!(again, Err(TextError::Occupied { .. })),
        "{again:?}"
    );
    text_copy(part(&first, 0, 4), &[1, 2, 3, 4]).unwrap();
    drop(first);
    let second = CodeMap::new(MIB2, Place::At(start), Backing::Memfd).unwrap();
    assert_eq!(second.rx().start, start);
    assert_eq!(bytes(part(&second, 0, 4)), [0; 4], "fresh maps are illegal");
    let odd = CodeMap::new(4096, Place::At(RxAddr::new(0x1234)), Backing::Memfd);
    assert!(matches!(odd, Err(TextError::Misaligned { .. })), "{odd:?}");
}

#[test]
fn lengths_are_checked() {
    let _alone = alone();
    for len_bytes in [0, usize::MAX, isize::MAX as usize] {
        let got = CodeMap::new(len_bytes, Place::Anywhere, Backing::Memfd);
        assert_eq!(got.map(|_| ()), Err(TextError::Length { len_bytes }));
    }
    // More than any address space holds (Sv57 has 2^56 bytes for a process).
    let huge = CodeMap::new(1 << 62, Place::Anywhere, Backing::Memfd);
    assert!(matches!(huge, Err(TextError::Map { .. })), "{huge:?}");
}

#[test]
fn an_empty_pool_of_huge_pages_is_said() {
    let _alone = alone();
    match CodeMap::new(MIB2, Place::Anywhere, Backing::Hugetlb) {
        Ok(map) => assert!(map.is_huge() && map.backing() == Backing::Hugetlb),
        Err(e) => assert!(matches!(e, TextError::NoHugePages { .. }), "{e}"),
    }
}

#[test]
fn copies_go_over_and_are_invalidated() {
    let _alone = alone();
    let map = CodeMap::new(MIB2, Place::Anywhere, Backing::Memfd).unwrap();
    let other = CodeMap::new(8192, Place::Anywhere, Backing::Memfd).unwrap();
    let before = testing::flush_count();
    text_copy_all(&[
        (part(&map, 100, 3), &[7, 8, 9]),
        (part(&map, 8190, 4), &[1, 2, 3, 4]),
        (part(&other, 0, 2), &[5, 6]),
    ])
    .unwrap();
    assert_eq!(testing::flush_count() - before, 1, "one flush for all");
    assert_eq!(bytes(part(&map, 99, 5)), [0, 7, 8, 9, 0]);
    assert_eq!(bytes(part(&map, 8190, 4)), [1, 2, 3, 4]);
    assert_eq!(bytes(part(&other, 0, 3)), [5, 6, 0]);
    text_invalidate(part(&map, 101, 1)).unwrap();
    assert_eq!(bytes(part(&map, 99, 5)), [0, 7, 0, 9, 0]);
}

#[test]
fn bad_copies_change_nothing() {
    let _alone = alone();
    let map = CodeMap::new(8192, Place::Anywhere, Backing::Memfd).unwrap();
    let (a, b) = (part(&map, 0, 4), part(&map, 2, 4));
    let got = text_copy_all(&[(a, &[1; 4]), (b, &[2; 4])]);
    assert_eq!(got, Err(TextError::Duplicate { site: b.start }));
    let got = text_copy_all(&[(a, &[1; 4]), (part(&map, 16, 4), &[2; 3])]);
    assert!(
        matches!(got, Err(TextError::CopyLength { src_bytes: 3, .. })),
        "{got:?}"
    );
    let over = RxRange::new(map.rx().end().checked_sub(2).unwrap(), 4);
    let got = text_copy_all(&[(a, &[1; 4]), (over, &[2; 4])]);
    assert_eq!(got, Err(TextError::NotInCodeMap { range: over }));
    testing::refuse_next_flushes(1);
    let got = text_copy_all(&[(a, &[1; 4])]);
    assert_eq!(got, Err(TextError::Flush { errno: libc::EPERM }));
    assert!(bytes(map.rx()).iter().all(|x| *x == 0));
}

#[test]
fn words_are_patched_all_or_none() {
    let _alone = alone();
    let map = CodeMap::new(MIB2, Place::Anywhere, Backing::Memfd).unwrap();
    let at = |i: u64| map.rx().start.checked_add(4 * i).unwrap();
    let p = |i, old, new| WordPatch {
        at: at(i),
        old,
        new,
    };
    let word = |i: usize| u32::from_le_bytes(bytes(part(&map, 4 * i, 4)).try_into().unwrap());
    patch_words(&[p(0, 0, 10), p(1, 0, 11)]).unwrap();
    assert_eq!((word(0), word(1)), (10, 11));
    let got = patch_words(&[p(2, 0, 12), p(0, 99, 1)]);
    assert_eq!(
        got,
        Err(TextError::Mismatch {
            site: at(0),
            expected: 99,
            found: 10
        })
    );
    let got = patch_words(&[p(2, 0, 12), p(3, 0, 1), p(2, 0, 13)]);
    assert_eq!(got, Err(TextError::Duplicate { site: at(2) }));
    let odd = at(3).checked_add(2).unwrap();
    let got = patch_words(&[
        p(2, 0, 12),
        WordPatch {
            at: odd,
            old: 0,
            new: 1,
        },
    ]);
    assert_eq!(
        got,
        Err(TextError::Misaligned {
            addr: odd,
            align_bytes: 4
        })
    );
    for refused in 1..=2 {
        testing::refuse_next_flushes(refused);
        let got = patch_words(&[p(2, 0, 12), p(0, 10, 20)]);
        assert_eq!(got, Err(TextError::Flush { errno: libc::EPERM }));
        testing::refuse_next_flushes(0);
    }
    assert_eq!((word(0), word(1), word(2)), (10, 11, 0));
}

#[test]
fn a_batch_costs_as_many_flushes_as_one_word() {
    let _alone = alone();
    let map = CodeMap::new(MIB2, Place::Anywhere, Backing::Memfd).unwrap();
    let cost = |n: u64, new| {
        let all: Vec<_> = (0..n)
            .map(|i| map.rx().start.checked_add(4096 * i).unwrap())
            .map(|at| WordPatch {
                at,
                old: new - 1,
                new,
            })
            .collect();
        let before = testing::flush_count();
        patch_words(&all).unwrap();
        testing::flush_count() - before
    };
    let one = cost(1, 1);
    assert!(one > 0);
    patch_words(&[WordPatch {
        at: map.rx().start,
        old: 1,
        new: 0,
    }])
    .unwrap();
    assert_eq!(cost(500, 1), one);
}

#[test]
fn an_unmapped_word_is_refused() {
    let _alone = alone();
    let map = CodeMap::new(4096, Place::Anywhere, Backing::Memfd).unwrap();
    let at = map.rx().start;
    drop(map);
    let got = patch_words(&[WordPatch { at, old: 0, new: 1 }]);
    assert_eq!(got, Err(TextError::Unmapped { addr: at }));
}

#[test]
fn maps_unmap_when_dropped() {
    let _alone = alone();
    let rx = CodeMap::new(MIB2, Place::Anywhere, Backing::Memfd)
        .unwrap()
        .rx();
    assert!(
        ProcMaps::read()
            .unwrap()
            .find(rx.start)
            .is_none_or(|m| m.perms != *b"r-xs")
    );
}

#[test]
fn huge_pages_when_the_kernel_collapses() {
    let _alone = alone();
    let map = CodeMap::new(MIB2, Place::Anywhere, Backing::Memfd).unwrap();
    text_copy(part(&map, 4096, 2), &[1, 2]).unwrap();
    match map.collapse() {
        Ok(()) => assert!(map.is_huge()),
        Err(e) => assert!(matches!(e, TextError::Map { .. }) && !map.is_huge(), "{e}"),
    }
    assert_eq!(bytes(part(&map, 4095, 4)), [0, 1, 2, 0]);
    let small = CodeMap::new(4096, Place::Anywhere, Backing::Memfd).unwrap();
    assert!(matches!(
        small.collapse(),
        Err(TextError::Misaligned { .. })
    ));
}

#[test]
#[cfg(not(target_arch = "riscv64"))]
fn other_hosts_text_is_not_touched() {
    let _alone = alone();
    let at = RxAddr::new(bytes as *const () as usize as u64 & !3);
    let old = u32::from_le_bytes(bytes(RxRange::new(at, 4)).try_into().unwrap());
    let got = patch_words(&[WordPatch { at, old, new: old }]);
    assert!(
        matches!(got, Err(TextError::UnsupportedHost { .. })),
        "{got:?}"
    );
    let inode = ProcMaps::read().unwrap().find(at).map(|m| m.path.clone());
    assert!(
        !inode.unwrap().starts_with(b"/memfd"),
        "the page is still the file's"
    );
}
