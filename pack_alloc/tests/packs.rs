//! Allocators from outside: sizes, limits, reach, statistics, threads, forks. Runs on any host;
//! where the host is riscv64 the code in the packs is executed too.

use rvbpf_pack_alloc::{
    CHUNK_BYTES, Config, HugePolicy, MAX_ALLOC_BYTES, Near, PACK_BYTES, PackAlloc, PackCode,
    PackError, PackStats,
};
use text::{ProcMaps, RxAddr};

const M: usize = 1 << 20;

fn ordinary() -> PackAlloc {
    let mut config = Config::default();
    config.huge = HugePolicy::Never;
    PackAlloc::new(config)
}

fn limited(max_packs: usize) -> PackAlloc {
    let mut config = Config::default();
    config.huge = HugePolicy::Never;
    config.max_packs = Some(max_packs);
    PackAlloc::new(config)
}

fn within(of: u64, reach_bytes: u64) -> Near {
    Near::Within {
        of: RxAddr::new(of),
        reach_bytes,
    }
}

fn here() -> u64 {
    here as fn() -> u64 as usize as u64
}

/// A stand-in for code: distinct bytes, each half-word a legal compressed instruction (`c.li`).
fn fill(rw: &mut [u8], seed: u8) {
    for (index, byte) in rw.iter_mut().enumerate() {
        *byte = if index % 2 == 0 { 1 | seed << 2 } else { 0x45 };
    }
}

/// Reads code through its rx mapping, which is readable.
fn read_rx(code: &PackCode) -> Vec<u8> {
    let mem = std::fs::File::open("/proc/self/mem").expect("own memory");
    let mut bytes = vec![0; code.rx().len_bytes];
    let at = code.rx().start.get();
    std::os::unix::fs::FileExt::read_exact_at(&mem, &mut bytes, at).expect("it is mapped");
    bytes
}

/// All that lives or is used.
fn use_of(stats: &PackStats) -> [usize; 5] {
    [
        stats.nr_live,
        stats.nr_chunks_used,
        stats.requested_bytes,
        stats.occupied_bytes,
        stats.nr_in_limbo,
    ]
}

fn assert_all_back(packs: &PackAlloc) {
    let stats = packs.stats();
    assert_eq!(use_of(&stats), [0; 5], "{stats}");
    assert!(stats.nr_packs <= 1, "{stats}");
    assert_eq!(stats.largest_free_run_bytes, stats.pack_bytes, "{stats}");
}

#[test]
fn what_is_written_is_what_stands_at_rx_and_zeros_stand_there_after() {
    let packs = ordinary();
    let mut buf = packs.alloc(300, 64, Near::Anywhere).expect("room");
    let rx = buf.rx();
    assert_eq!((rx.len_bytes, rx.start.get() % 64), (300, 0));
    assert_eq!(buf.rw(), [0; 300]);
    fill(buf.rw(), 3);
    let want = buf.rw().to_vec();
    let code = packs.finalize(buf).expect("published");
    assert_eq!(code.rx(), rx);
    assert_eq!(read_rx(&code), want);
    let stats = packs.stats();
    assert_eq!(use_of(&stats), [1, 5, 300, 320, 0]);
    assert_eq!(
        (stats.nr_packs, stats.nr_huge_packs, stats.pack_bytes),
        (1, 0, PACK_BYTES)
    );
    packs.free(code).expect("freed");
    let again = packs.alloc(300, 64, Near::Anywhere).expect("room");
    assert_eq!(again.rx(), rx, "first fit");
    let again = packs.finalize(again).expect("published");
    assert_eq!(read_rx(&again), [0; 300]);
    drop(again);
    assert_all_back(&packs);
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let packs = limited(1);
    let refused = |size, align, near| packs.alloc(size, align, near).map(|buf| buf.rx());
    let max_bytes = MAX_ALLOC_BYTES;
    for size_bytes in [MAX_ALLOC_BYTES + 1, usize::MAX, isize::MAX as usize] {
        assert_eq!(
            refused(size_bytes, 64, Near::Anywhere),
            Err(PackError::TooLarge {
                size_bytes,
                max_bytes
            })
        );
    }
    assert_eq!(refused(0, 64, Near::Anywhere), Err(PackError::ZeroSize));
    for align_bytes in [0, 3, 2 * PACK_BYTES, usize::MAX] {
        let max_bytes = PACK_BYTES;
        assert_eq!(
            refused(64, align_bytes, Near::Anywhere),
            Err(PackError::BadAlign {
                align_bytes,
                max_bytes
            })
        );
    }
    let of = RxAddr::new(here());
    let far = RxAddr::new(0xffff_ffff_0000_0000);
    for (of, reach_bytes) in [(of, 0), (of, 16), (far, 1 << 31), (RxAddr::new(0), 4096)] {
        assert_eq!(
            refused(64, 64, Near::Within { of, reach_bytes }),
            Err(PackError::OutOfReach { of, reach_bytes })
        );
    }
    assert_eq!(packs.stats(), PackStats::default());

    let one = packs
        .alloc(PACK_BYTES, 64, Near::Anywhere)
        .expect("a whole pack");
    assert_eq!(
        refused(64, 64, Near::Anywhere),
        Err(PackError::LimitReached { limit: 1 })
    );
    assert_eq!(
        refused(3 * M, 64, Near::Anywhere),
        Err(PackError::LimitReached { limit: 1 })
    );
    assert_eq!(use_of(&packs.stats())[0], 1);
    drop(one);
    // The empty pack that is kept is in nobody's way.
    let big = packs
        .alloc(3 * M, 64, Near::Anywhere)
        .expect("the limit is not reached");
    assert_eq!(packs.stats().nr_packs, 1);
    drop(big);
    assert_all_back(&packs);
    assert_eq!(
        limited(0).alloc(1, 1, Near::Anywhere).map(|buf| buf.rx()),
        Err(PackError::LimitReached { limit: 0 })
    );
}

#[test]
fn large_requests_have_packs_of_their_own() {
    let packs = ordinary();
    let small = packs.alloc(64, 64, Near::Anywhere).expect("room");
    let mut big = packs
        .alloc(2 * PACK_BYTES + 1, 4096, Near::Anywhere)
        .expect("room");
    let stats = packs.stats();
    assert_eq!((stats.nr_packs, stats.pack_bytes), (2, 4 * PACK_BYTES));
    assert_eq!(
        use_of(&stats)[3],
        3 * PACK_BYTES + 64,
        "the whole pack is occupied"
    );
    assert_eq!(big.rx().start.get() % PACK_BYTES as u64, 0);
    fill(big.rw(), 5);
    let want = big.rw().to_vec();
    let big = packs.finalize(big).expect("published");
    assert_eq!(read_rx(&big), want);
    // Its tail is not for others.
    let other = packs.alloc(64, 64, Near::Anywhere).expect("room");
    assert!(other.rx().start.get().abs_diff(small.rx().start.get()) < PACK_BYTES as u64);
    packs.free(big).expect("freed");
    assert_eq!(packs.stats().nr_packs, 1);
    drop((small, other));
    assert_all_back(&packs);
}

#[test]
fn alignment_and_reach_hold_for_the_whole_range() {
    let packs = ordinary();
    let mut bufs = Vec::new();
    for align_bytes in (0..=21).map(|bits| 1_usize << bits) {
        let reach_bytes = (2 << 30) - 4096;
        let near = within(here(), reach_bytes);
        let buf = packs.alloc(1000, align_bytes, near).expect("room");
        let rx = buf.rx();
        assert_eq!(rx.start.get() % align_bytes as u64, 0);
        assert!(rx.start.get() >= here() - reach_bytes, "{rx}");
        assert!(rx.end().get() <= here() + reach_bytes, "{rx}");
        bufs.push(buf);
    }
    assert!(packs.stats().fragmentation() > 0.0);
    drop(bufs);
    assert_all_back(&packs);
}

#[test]
fn a_short_reach_takes_only_the_near_part_of_a_pack() {
    let packs = ordinary();
    // A pack somewhere, to have an address with room around it.
    let anchor = packs.alloc(64, 64, Near::Anywhere).expect("room");
    let of = anchor.rx().start.get() + M as u64;
    let (mut bufs, mut nr_bytes) = (Vec::new(), 0);
    // Whatever of the pack is within 64 KiB of its middle is taken, then there is no more.
    let refused = loop {
        match packs.alloc(1024, 1, within(of, 64 << 10)) {
            Ok(buf) => {
                assert!(buf.rx().start.get() >= of - (64 << 10));
                assert!(buf.rx().end().get() <= of + (64 << 10));
                nr_bytes += 1024;
                bufs.push(buf);
            }
            Err(refused) => break refused,
        }
    };
    assert_eq!(nr_bytes, 128 << 10);
    assert_eq!(
        refused,
        PackError::OutOfReach {
            of: RxAddr::new(of),
            reach_bytes: 64 << 10
        }
    );
    assert_eq!(packs.stats().nr_packs, 1);
    // One byte less than a whole number of chunks on either side.
    let edge = packs
        .alloc(64, 1, within(of + (256 << 10) + 1, 64))
        .expect("room");
    assert_eq!(edge.rx().start.get(), of + (256 << 10));
    let narrow = within(of + (256 << 10) + 65, 62);
    assert!(matches!(
        packs.alloc(64, 1, narrow),
        Err(PackError::OutOfReach { .. })
    ));
    drop((bufs, anchor, edge));
    assert_all_back(&packs);
}

#[test]
fn nothing_is_ever_writable_and_executable_and_nothing_is_left_mapped() {
    let mapped = || {
        let maps = ProcMaps::read().expect("maps");
        assert!(!maps.all().iter().any(text::Mapping::is_wx));
        let ours = maps.all().iter().filter(|map| map.perms[2] == b'x');
        ours.filter(|map| map.perms[3] == b's').count()
    };
    let packs = ordinary();
    let bufs: Vec<_> = (0..5)
        .map(|_| packs.alloc(PACK_BYTES, 64, Near::Anywhere).expect("room"))
        .collect();
    assert!(mapped() >= 5);
    assert_eq!(packs.stats().nr_packs, 5);
    let codes = packs.finalize_all(bufs).expect("published");
    mapped();
    packs.free_all(codes).expect("freed");
    assert_all_back(&packs);
    mapped();
    drop(packs);
}

/// xorshift64*: the same sizes in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

#[test]
fn two_threads_of_random_sizes_leave_nothing_behind() {
    const NR_ROUNDS: usize = 10_000;
    let packs = ordinary();
    let work = |seed: u64| {
        let mut random = Random(seed);
        let (mut bufs, mut codes) = (Vec::new(), Vec::new());
        for round in 0..NR_ROUNDS {
            let size_bytes = match random.below(200) {
                0 => 1 + random.below(64 << 10),
                1..20 => 1 + random.below(4096),
                _ => 1 + random.below(600),
            };
            let align_bytes = 1 << random.below(9);
            let near = match random.below(2) {
                0 => Near::Anywhere,
                _ => within(here(), (2 << 30) - 4096),
            };
            bufs.push(packs.alloc(size_bytes, align_bytes, near).expect("room"));
            // Most are published in batches, some are thrown away.
            if random.below(10) == 0 {
                drop(bufs.pop());
            }
            if random.below(50) == 0 {
                for buf in &mut bufs {
                    fill(buf.rw(), round as u8 & 7);
                }
                codes.extend(
                    packs
                        .finalize_all(std::mem::take(&mut bufs))
                        .expect("published"),
                );
            }
            if codes.len() > 400 {
                let half = codes.split_off(random.below(codes.len()));
                packs.free_all(half).expect("freed");
            }
        }
        drop(bufs);
        packs.free_all(codes).expect("freed");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(1));
        scope.spawn(|| work(2));
    });
    assert_all_back(&packs);
}

#[test]
fn no_two_allocations_overlap() {
    let packs = ordinary();
    let mut random = Random(7);
    let mut bufs: Vec<_> = (0..2000)
        .map(|_| {
            packs
                .alloc(1 + random.below(700), 1, Near::Anywhere)
                .expect("room")
        })
        .collect();
    bufs.sort_by_key(|buf| buf.rx().start);
    for pair in bufs.windows(2) {
        let (first, second) = (pair[0].rx(), pair[1].rx());
        let end = first.start.get() + (first.len_bytes as u64).next_multiple_of(CHUNK_BYTES as u64);
        assert!(end <= second.start.get(), "{first} {second}");
    }
}

#[test]
fn code_outlives_the_allocator_that_made_it() {
    let packs = ordinary();
    let mut buf = packs.alloc(64, 64, Near::Anywhere).expect("room");
    fill(buf.rw(), 1);
    let want = buf.rw().to_vec();
    let code = packs.finalize(buf).expect("published");
    drop(packs);
    assert_eq!(read_rx(&code), want);
    let other = ordinary();
    other.free(code).expect("freed where it belongs");
    assert_eq!(other.stats(), PackStats::default());
}
