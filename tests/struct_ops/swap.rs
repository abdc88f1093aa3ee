//! The model test: whoever calls finds one version, whatever is swapped meanwhile.
//!
//! `RVBPF_SWAPS` says how many swaps there are; 100,000 in full.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rvbpf::Runtime;
use rvbpf::bpf::BpfReg::{R0, R1, R2};
use rvbpf::bpf::{AluOp, Env, ProgramBuilder, Size};
use rvbpf::struct_ops::{Link, Table};

use crate::common::{Stopper, assert_settled, serial};
use crate::table::{Big, M, Ops, Pair, Point, bpf, builder, register};

const CALLERS: usize = 4;

/// Every member of a table gives its stamp, in one way or the other.
fn stamped_closures(rt: &Runtime, stamp: i64) -> Table<Ops> {
    builder(rt)
        .closure(M.stamp, move |(x,)| x + stamp)
        .closure(M.weigh12, move |(a, ..)| a + stamp)
        .closure(M.mul_add, move |(a, _, _)| a + stamp as f64)
        .closure(M.swap, move |(p,)| Point {
            x: p.x,
            y: stamp as f64,
        })
        .closure(M.divmod, move |(a, _)| Pair { a, b: stamp })
        .closure(M.scale, move |(v, _)| Big { f: stamp, ..v })
        .data(M.flags, stamp as u64)
        .build()
        .unwrap()
}

extern "C" fn stamp(x: i64) -> i64 {
    x + 1000
}
extern "C" fn weigh12(
    a: i64,
    _: i64,
    _: i64,
    _: i64,
    _: i64,
    _: i64,
    _: i64,
    _: i64,
    _: i64,
    _: i64,
    _: i64,
    _: i64,
) -> i64 {
    a + 1000
}
extern "C" fn mul_add(a: f64, _: f32, _: f64) -> f64 {
    a + 1000.0
}
extern "C" fn swap(p: Point) -> Point {
    Point { x: p.x, y: 1000.0 }
}
extern "C" fn divmod(a: i64, _: i64) -> Pair {
    Pair { a, b: 1000 }
}
extern "C" fn scale(v: Big, _: i64) -> Big {
    Big { f: 1000, ..v }
}

fn stamped_functions(rt: &Runtime) -> Table<Ops> {
    builder(rt)
        .function(M.stamp, stamp)
        .function(M.weigh12, weigh12)
        .function(M.mul_add, mul_add)
        .function(M.swap, swap)
        .function(M.divmod, divmod)
        .function(M.scale, scale)
        .data(M.flags, 1000)
        .build()
        .unwrap()
}

/// Like the closures, but that two members are BPF programs.
fn stamped_programs(rt: &Runtime, stamp: i64) -> Table<Ops> {
    let mut b = ProgramBuilder::new();
    b.load(Size::Dw, R0, R1, 0);
    b.ld_imm64(R2, stamp as u64).alu(AluOp::Add, R0, R2).exit();
    let plus = rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap();
    let mut b = ProgramBuilder::new();
    b.load(Size::Dw, R2, R1, 0).store(Size::Dw, R1, 16, R2);
    b.ld_imm64(R2, stamp as u64).store(Size::Dw, R1, 24, R2);
    b.mov(R0, 0).exit();
    let pair = rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap();
    let others = builder(rt)
        .closure(M.mul_add, move |(a, _, _)| a + stamp as f64)
        .closure(M.swap, move |(p,)| Point {
            x: p.x,
            y: stamp as f64,
        })
        .closure(M.scale, move |(v, _)| Big { f: stamp, ..v })
        .data(M.flags, stamp as u64);
    let others = bpf(others, M.stamp, &plus);
    let others = bpf(others, M.weigh12, &plus);
    bpf(others, M.divmod, &pair).build().unwrap()
}

const MEMBERS: u64 = 6;

/// Calls a member of a table and gives the stamp that its result shows.
fn stamp_of(ops: &Functions, member: u64, k: i64) -> i64 {
    match member {
        0 => (ops.0)(k) - k,
        1 => (ops.1)(k, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12) - k,
        2 => ((ops.2)(k as f64, 1.0, 1.0) - k as f64) as i64,
        3 => {
            let p = (ops.3)(Point { x: 1.5, y: 2.5 });
            assert_eq!(p.x, 1.5);
            p.y as i64
        }
        4 => {
            let pair = (ops.4)(k, 7);
            assert_eq!(pair.a, k);
            pair.b
        }
        _ => {
            let big = Big {
                a: k,
                b: 2,
                c: 3,
                d: 4,
                e: 5,
                f: 6,
            };
            let got = (ops.5)(big, 7);
            assert_eq!((got.a, got.b, got.c, got.d, got.e), (k, 2, 3, 4, 5));
            got.f
        }
    }
}

type L = i64;
/// The members that are called, out of a table.
struct Functions(
    extern "C" fn(L) -> L,
    extern "C" fn(L, L, L, L, L, L, L, L, L, L, L, L) -> L,
    extern "C" fn(f64, f32, f64) -> f64,
    extern "C" fn(Point) -> Point,
    extern "C" fn(L, L) -> Pair,
    extern "C" fn(Big, L) -> Big,
);

impl Functions {
    fn of_link(link: &Link<Ops>) -> Self {
        Functions(
            link.get(M.stamp),
            link.get(M.weigh12),
            link.get(M.mul_add),
            link.get(M.swap),
            link.get(M.divmod),
            link.get(M.scale),
        )
    }

    fn of_version(ops: &Ops) -> Self {
        Functions(
            ops.stamp,
            ops.weigh12,
            ops.mul_add,
            ops.swap,
            ops.divmod,
            ops.scale,
        )
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// Calls at random until `stop`; how often.
fn call(link: &Link<Ops>, stop: &AtomicBool, seed: u64) -> u64 {
    let mut random = Random(seed);
    let unpinned = Functions::of_link(link);
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        let k = random.below(1 << 20) as i64;
        if random.below(4) > 0 {
            let stamp = stamp_of(&unpinned, random.below(MEMBERS), k);
            assert!([1000, 2000, 3000].contains(&stamp), "{stamp}");
            calls += 1;
            continue;
        }
        let pinned = link.pin().unwrap();
        let functions = Functions::of_version(&pinned);
        let stamp = pinned.flags as i64;
        for _ in 0..1 + random.below(8) {
            let member = random.below(MEMBERS);
            assert_eq!(stamp_of(&functions, member, k), stamp, "a mixture");
            calls += 1;
        }
    }
    calls
}

fn swaps_wanted(default: u64) -> u64 {
    let given = std::env::var("RVBPF_SWAPS").ok();
    given.map_or(default, |text| {
        text.parse().expect("RVBPF_SWAPS is a number")
    })
}

#[test]
fn callers_find_one_version_while_two_threads_swap_three() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let tables = [
        stamped_functions(&rt),
        stamped_closures(&rt, 2000),
        stamped_programs(&rt, 3000),
    ];
    let link = register(&rt, &tables[0]);
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let wanted = swaps_wanted(100_000);
    let calls: u64 = thread::scope(|s| {
        let stopper = Stopper(&stop);
        let callers: Vec<_> = (0..CALLERS as u64)
            .map(|seed| {
                let (link, stop) = (&link, &stop);
                s.spawn(move || call(link, stop, seed + 1))
            })
            .collect();
        let swappers: Vec<_> = (0..2)
            .map(|seed| {
                let (link, tables, swaps) = (&link, &tables, &swaps);
                s.spawn(move || {
                    let mut random = Random(77 + seed);
                    while swaps.fetch_add(1, Ordering::Relaxed) < wanted {
                        link.update(&tables[random.below(3) as usize]).unwrap();
                        if random.below(64) == 0 {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for swapper in swappers {
            swapper.join().unwrap();
        }
        drop(stopper);
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .sum()
    });
    println!("{wanted} swaps under {calls} calls");
    assert!(calls > 1000);
    assert!(tables.iter().all(|table| table.panics() == 0));
    drop((link, tables));
    assert_settled(&rt);
    assert_eq!(rt.stats().ops, Default::default());
}

/// The same with tables that are made, swapped in, and let go of all the time: code is freed under
/// the callers.
#[test]
fn callers_never_find_what_has_been_freed() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let link = register(&rt, &stamped_functions(&rt));
    let stop = AtomicBool::new(false);
    let wanted = swaps_wanted(100_000) / 1000;
    thread::scope(|s| {
        let stopper = Stopper(&stop);
        for seed in 0..CALLERS as u64 {
            let (link, stop) = (&link, &stop);
            s.spawn(move || call(link, stop, seed + 1));
        }
        for i in 0..wanted {
            let table = match i % 2 {
                0 => stamped_closures(&rt, 2000),
                _ => stamped_programs(&rt, 3000),
            };
            link.update(&table).unwrap();
        }
        drop(stopper);
    });
    drop(link);
    assert_settled(&rt);
}
