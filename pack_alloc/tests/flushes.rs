//! What flushes cost, and what is left when the kernel refuses one. In a program of its own: the
//! counts are those of the whole process.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rvbpf_pack_alloc::{Config, HugePolicy, Near, PackAlloc, PackError};

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ordinary() -> PackAlloc {
    let mut config = Config::default();
    config.huge = HugePolicy::Never;
    PackAlloc::new(config)
}

fn assert_all_back(packs: &PackAlloc) {
    let stats = packs.stats();
    assert_eq!(
        (stats.nr_live, stats.nr_in_limbo, stats.nr_chunks_used),
        (0, 0, 0),
        "{stats}"
    );
    assert!(stats.nr_packs <= 1, "{stats}");
}

#[test]
fn batches_cost_one_flush() {
    let _alone = alone();
    let packs = ordinary();
    let first = packs.alloc(64, 64, Near::Anywhere).expect("room");
    drop(packs.finalize(first).expect("published"));
    let bufs: Vec<_> = (0..100)
        .map(|_| packs.alloc(300, 64, Near::Anywhere).expect("room"))
        .collect();
    let before = text::testing::flush_count();
    let codes = packs.finalize_all(bufs).expect("published");
    assert_eq!(text::testing::flush_count() - before, 1);
    packs.free_all(codes).expect("freed");
    assert_eq!(text::testing::flush_count() - before, 2);
    assert_all_back(&packs);
}

#[test]
fn a_refused_flush_keeps_the_code_until_the_next_free() {
    let _alone = alone();
    let packs = ordinary();
    let alloc = || packs.alloc(300, 64, Near::Anywhere).expect("room");
    let kept = packs.finalize(alloc()).expect("published");
    let dropped = packs.finalize(alloc()).expect("published");
    // The flush, and the one that takes back what was stored.
    text::testing::refuse_next_flushes(2);
    let refused = packs.free(kept);
    assert!(
        matches!(refused, Err(PackError::Text(text::TextError::Flush { .. }))),
        "{refused:?}"
    );
    let stats = packs.stats();
    assert_eq!((stats.nr_live, stats.nr_in_limbo), (2, 1), "{stats}");
    packs.free(dropped).expect("freed, and the other with it");
    assert_all_back(&packs);

    // A buffer that cannot be published is gone.
    let buf = alloc();
    text::testing::refuse_next_flushes(2);
    assert!(packs.finalize(buf).is_err());
    assert_all_back(&packs);
}
