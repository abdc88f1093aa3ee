//! Unused text of the C library, which leads on and is what it was afterwards.

use rvbpf_text::{
    Island, Need, RxAddr, TextError, WordPatch, find_symbol, give_back_all, lead_all, patch_words,
    testing,
};

use super::fns::*;
use crate::alone;

/// `t1`.
const SCRATCH: u8 = 6;

fn getpid() -> RxAddr {
    find_symbol(Some("libc.so.6"), "getpid").unwrap()
}

fn all(need: Need) -> Vec<Island> {
    std::iter::from_fn(|| Island::reserve(getpid(), need)).collect()
}

fn words_of(islands: &[Island]) -> Vec<[u32; 2]> {
    let words = |i: &Island| [0, 4].map(|off| word(i.at().checked_add(off).unwrap()));
    islands.iter().map(words).collect()
}

fn lead(islands: &[Island]) -> Result<(), TextError> {
    let to_getpid = |island| (island, getpid(), SCRATCH);
    lead_all(&islands.iter().map(to_getpid).collect::<Vec<_>>())
}

#[test]
fn islands_are_taken_once_and_are_afterwards_what_they_were() {
    let _alone = alone();
    let half = all(Need::NoWindow);
    let rest = all(Need::OnlyWay);
    assert!(half.len() > 8, "{} {}", half.len(), rest.len());
    assert!(
        half.len().abs_diff(rest.len()) <= 1,
        "{} {}",
        half.len(),
        rest.len()
    );
    let mut islands: Vec<Island> = half.into_iter().chain(rest).collect();
    let nr = islands.len();
    islands.sort_by_key(Island::at);
    let are_apart = |w: &[Island]| w[0].range().end() <= w[1].at();
    assert!(islands.windows(2).all(are_apart), "{islands:?}");
    // Those that lead nowhere are free when they are dropped.
    islands.truncate(nr / 2);
    let before = words_of(&islands);
    lead(&islands).unwrap();
    for island in &islands {
        assert_eq!(call(island.at(), 0), u64::from(std::process::id()));
    }
    assert_eq!(all(Need::OnlyWay).len(), nr - nr / 2);
    give_back_all(islands);
    let islands = all(Need::OnlyWay);
    assert_eq!(islands.len(), nr);
    let after = words_of(&islands);
    assert!(before.iter().all(|words| after.contains(words)));
    assert!(lead(&islands[..1]).is_ok());
    give_back_all(islands);
    assert_eq!(all(Need::OnlyWay).len(), nr);
}

#[test]
fn a_refused_flush_leaves_an_island_unused() {
    let _alone = alone();
    let nr = all(Need::OnlyWay).len();
    let islands = vec![Island::reserve(getpid(), Need::OnlyWay).unwrap()];
    let before = words_of(&islands);
    testing::refuse_next_flushes(1);
    let refused = lead(&islands);
    testing::refuse_next_flushes(0);
    assert!(
        matches!(refused, Err(TextError::Flush { .. })),
        "{refused:?}"
    );
    assert_eq!(words_of(&islands), before);
    lead(&islands).unwrap();
    assert_eq!(call(islands[0].at(), 0), u64::from(std::process::id()));
    // It stays taken if it cannot be given back, and leads where it led.
    let at = islands[0].at();
    testing::refuse_next_flushes(100);
    give_back_all(islands);
    testing::refuse_next_flushes(0);
    assert_eq!(all(Need::OnlyWay).len(), nr - 1);
    assert_eq!(call(at, 0), u64::from(std::process::id()));
}

/// Another tool has found the same bytes.
#[test]
fn what_somebody_else_has_written_is_no_island() {
    let _alone = alone();
    let first = Island::reserve(getpid(), Need::OnlyWay).unwrap();
    let at = first.at();
    drop(first);
    let patch = |old, new| [WordPatch { at, old, new }];
    let old = word(at);
    patch_words(&patch(old, 0x0010_0073)).unwrap();
    let second = Island::reserve(getpid(), Need::OnlyWay).unwrap();
    assert_ne!(second.at(), at);
    patch_words(&patch(0x0010_0073, old)).unwrap();
    let third = Island::reserve(getpid(), Need::OnlyWay).unwrap();
    assert_eq!(third.at(), at);
}
