//! What dispatch through a table costs: instructions beyond a plain call, time, and swaps.
//!
//! Two kinds of loops call a function of two integers a hundred times. Those in assembly call
//! directly, by a static call, or through a table as C code does (load, `jalr`); from them are the
//! rows that have targets: loop, loads and function cancel. Those in Rust are compared with the
//! same loop around a direct call of a function that is not inlined: `dyn Trait` and what guards
//! it, and pinned tables.
//!
//! | measure | rows |
//! | --- | --- |
//! | `insns` | instructions added per call, the least of many stretches; `_4t`: the mean of four threads at a time |
//! | `time` | nanoseconds per call, on one thread and on four; and of a swap |
//!
//! Instructions mean something only where the machine counts (see `benches/trampoline.rs`), time
//! only on hardware. Prints a table, writes `dispatch.json`, fails when a target is missed.
#![cfg_attr(
    target_arch = "riscv64",
    expect(unsafe_code, reason = "assembly, BPF programs, tables in use")
)]

#[cfg(target_arch = "riscv64")]
mod common;

#[cfg(target_arch = "riscv64")]
fn main() -> std::process::ExitCode {
    riscv::main()
}

#[cfg(not(target_arch = "riscv64"))]
fn main() {
    println!("tables run on riscv64 only: use cargo xtask bench dispatch");
}

#[cfg(target_arch = "riscv64")]
mod riscv {
    use std::arch::global_asm;
    use std::hint::black_box;
    use std::process::ExitCode;
    use std::sync::{Arc, Barrier};
    use std::thread;
    use std::time::Instant;

    use arc_swap::ArcSwap;
    use parking_lot::RwLock;
    use perf_event::Counter;
    use rvbpf::bpf::{BpfReg, Env, ProgramBuilder};
    use rvbpf::struct_ops::{Link, StructOps as _, Table};
    use rvbpf::{Dispatcher, Runtime, StructOps};

    use crate::common::{self, Error, Goal, Row, Whose, counter};

    const CALLS: u64 = 100;
    const STRETCHES: usize = 200;
    const THREADS: usize = 4;
    /// Calls of one thread when time is taken.
    const TIMED: u64 = 200_000;
    const SWAPS: u32 = 2_000;

    global_asm!(
        ".option push",
        ".option norelax",
        ".section .text.bench_dispatch, \"ax\", @progbits",
        // bench_table(table, n): table[0](1, 2), n times.
        ".balign 64",
        "bench_table:",
        "addi sp, sp, -32",
        "sd ra, 24(sp)",
        "sd s0, 16(sp)",
        "sd s1, 8(sp)",
        "mv s0, a0",
        "mv s1, a1",
        "1:",
        "li a0, 1",
        "li a1, 2",
        "ld t0, 0(s0)",
        "jalr t0",
        "addi s1, s1, -1",
        "bnez s1, 1b",
        "ld ra, 24(sp)",
        "ld s0, 16(sp)",
        "ld s1, 8(sp)",
        "addi sp, sp, 32",
        "ret",
        // bench_direct(n), bench_static(n): the same with direct calls.
        ".balign 64",
        "bench_direct:",
        "addi sp, sp, -16",
        "sd ra, 8(sp)",
        "sd s1, 0(sp)",
        "mv s1, a0",
        "1:",
        "li a0, 1",
        "li a1, 2",
        "call {add}",
        "addi s1, s1, -1",
        "bnez s1, 1b",
        "ld ra, 8(sp)",
        "ld s1, 0(sp)",
        "addi sp, sp, 16",
        "ret",
        ".balign 64",
        "bench_static:",
        "addi sp, sp, -16",
        "sd ra, 8(sp)",
        "sd s1, 0(sp)",
        "mv s1, a0",
        "1:",
        "li a0, 1",
        "li a1, 2",
        "call bench_static_add",
        "addi s1, s1, -1",
        "bnez s1, 1b",
        "ld ra, 8(sp)",
        "ld s1, 0(sp)",
        "addi sp, sp, 16",
        "ret",
        ".previous",
        ".option pop",
        add = sym add,
    );

    unsafe extern "C" {
        fn bench_table(table: *const Ops, calls: u64);
        safe fn bench_direct(calls: u64);
        safe fn bench_static(calls: u64);
    }

    rvbpf::static_call! {
        /// `a + b`
        pub(crate) fn Add = "bench_static_add" (a: u64, b: u64) -> u64 { add }
    }

    #[inline(never)]
    extern "C" fn add(a: u64, b: u64) -> u64 {
        black_box(a) + b
    }

    /// The same, elsewhere, and just as long.
    #[inline(never)]
    extern "C" fn add_too(a: u64, b: u64) -> u64 {
        black_box(b) + a
    }

    #[derive(StructOps)]
    #[repr(C)]
    struct Ops {
        add: extern "C" fn(u64, u64) -> u64,
        sub: Option<extern "C" fn(u64, u64) -> u64>,
    }

    const M: OpsMembers = Ops::MEMBERS;

    type Binary = extern "C" fn(u64, u64) -> u64;

    extern "C" fn plus<const N: u64>(a: u64, b: u64) -> u64 {
        black_box(a) + b + N
    }

    /// What an indirect call goes to in turn.
    static EIGHT: [Binary; 8] = [
        plus::<1>, plus::<2>, plus::<3>, plus::<4>, plus::<5>, plus::<6>, plus::<7>, plus::<8>,
    ];
    static OTHERS: [Binary; 8] = [
        plus::<11>, plus::<12>, plus::<13>, plus::<14>, plus::<15>, plus::<16>, plus::<17>,
        plus::<18>,
    ];

    trait Adder: Send + Sync {
        fn add(&self, a: u64, b: u64) -> u64;
    }

    struct Plain;
    impl Adder for Plain {
        #[inline(never)]
        fn add(&self, a: u64, b: u64) -> u64 {
            black_box(a) + b
        }
    }

    pub(crate) fn main() -> ExitCode {
        let rows = match std::env::var("RVBPF_MEASURE").as_deref() {
            Ok("time") => time(),
            _ => instructions(),
        };
        common::exit("dispatch", rows.and_then(finish))
    }

    fn finish(rows: Vec<Row>) -> Result<ExitCode, Error> {
        println!("{:36}{:>10}{:>9}  unit", "", "value", "target");
        for row in &rows {
            let [target, _] = row.cells();
            println!("{:36}{:>10.2}{target:>9}  {}", row.row, row.value, row.unit);
        }
        common::finish("dispatch", &rows)
    }

    /// Everything that is called.
    struct Subjects {
        links: Vec<Link<Ops>>,
        /// What C would have: those of the links, and at last one that is no table of ours.
        at: [usize; 5],
        _direct: Box<Ops>,
        boxed: Box<dyn Adder>,
        locked: RwLock<Box<dyn Adder>>,
        swapped: ArcSwap<Box<dyn Adder>>,
        /// What it is led to in turn.
        adders: [Arc<Box<dyn Adder>>; 2],
        /// It knows `EIGHT`.
        known: Dispatcher<Binary>,
        /// It knows `OTHERS`.
        unknown: Dispatcher<Binary>,
        /// Of the links, in order, and one more.
        tables: Vec<Table<Ops>>,
    }

    /// Places in [`Subjects::at`].
    const RUST: usize = 0;
    const SHARED: usize = 1;
    const CLOSURE: usize = 2;
    const BPF: usize = 3;
    const DIRECT: usize = 4;

    /// Something to be called `n` times.
    type Loop = fn(&Subjects, u64);

    /// What a row is: its loop, the loop that it is compared with, and its target.
    struct Subject {
        name: &'static str,
        run: Loop,
        base: Loop,
        target: Option<f64>,
    }

    fn table(at: usize, calls: u64) {
        // SAFETY: 1. a table that the subjects keep.
        unsafe { bench_table(std::ptr::with_exposed_provenance(at), calls) };
    }

    fn in_rust(calls: u64, f: impl Fn(u64, u64) -> u64) {
        for _ in 0..calls {
            black_box(f(black_box(1), black_box(2)));
        }
    }

    const BY_TABLE: Loop = |s, n| table(s.at[DIRECT], n);
    const BY_CALL: Loop = |_, n| bench_direct(n);
    #[allow(
        clippy::redundant_closure,
        reason = "functions of another ABI are no closures"
    )]
    const BY_RUST: Loop = |_, n| in_rust(n, |a, b| add(a, b));

    /// Calls the eight in turn.
    fn in_turn(calls: u64, f: impl Fn(Binary, u64, u64) -> u64) {
        for i in 0..calls {
            let to = black_box(EIGHT[i as usize % 8]);
            black_box(f(to, black_box(1), black_box(2)));
        }
    }

    fn through(dispatcher: &Dispatcher<Binary>, calls: u64) {
        let call = dispatcher.function();
        // SAFETY: 1. the subjects keep it.
        in_turn(calls, |to, a, b| unsafe { call(a, b, to) });
    }

    const IN_TURN: Loop = |_, n| in_turn(n, |to, a, b| to(a, b));

    const fn subject(name: &'static str, run: Loop, base: Loop, target: Option<f64>) -> Subject {
        Subject {
            name,
            run,
            base,
            target,
        }
    }

    const SUBJECTS: [Subject; 13] = [
        subject(
            "struct_ops_rust_added",
            |s, n| table(s.at[RUST], n),
            BY_TABLE,
            Some(12.0),
        ),
        subject(
            "struct_ops_rust_shared_added",
            |s, n| table(s.at[SHARED], n),
            BY_TABLE,
            None,
        ),
        subject(
            "struct_ops_bpf_added",
            |s, n| table(s.at[BPF], n),
            BY_TABLE,
            None,
        ),
        subject(
            "struct_ops_closure_added",
            |s, n| table(s.at[CLOSURE], n),
            BY_TABLE,
            None,
        ),
        subject(
            "struct_ops_pinned_added",
            |s, n| {
                if let Some(pinned) = s.links[RUST].pin() {
                    table((&raw const *pinned).expose_provenance(), n);
                }
            },
            BY_TABLE,
            None,
        ),
        subject(
            "static_call_added",
            |_, n| bench_static(n),
            BY_CALL,
            Some(2.0),
        ),
        subject("indirect_added", BY_TABLE, BY_CALL, None),
        subject(
            "dyn_added",
            |s, n| in_rust(n, |a, b| black_box(&s.boxed).add(a, b)),
            BY_RUST,
            None,
        ),
        subject(
            "rwlock_dyn_added",
            |s, n| in_rust(n, |a, b| s.locked.read().add(a, b)),
            BY_RUST,
            None,
        ),
        subject(
            "arc_swap_dyn_added",
            |s, n| in_rust(n, |a, b| s.swapped.load().add(a, b)),
            BY_RUST,
            None,
        ),
        subject(
            "struct_ops_pin_call_unpin_added",
            |s, n| {
                in_rust(n, |a, b| {
                    s.links[RUST].pin().map_or(0, |ops| (ops.add)(a, b))
                })
            },
            BY_RUST,
            None,
        ),
        subject(
            "dispatcher_of_8_added",
            |s, n| through(&s.known, n),
            IN_TURN,
            None,
        ),
        subject(
            "dispatcher_unknown_added",
            |s, n| through(&s.unknown, n),
            IN_TURN,
            None,
        ),
    ];

    impl Subjects {
        fn new() -> Result<Self, Error> {
            let rt = Runtime::new()?;
            let mut b = ProgramBuilder::new();
            b.mov(BpfReg::R0, 3).exit();
            let prog = rt.load(&b.finish()?, &Env::tracing())?;
            let builder = || Table::<Ops>::builder(&rt);
            // The first table has the function to itself, the second must tell its use from that.
            let tables = vec![
                builder()?.function(M.add, add_too).build()?,
                builder()?.function(M.add, add_too).build()?,
                builder()?.closure(M.add, |(a, b)| a + b).build()?,
                // SAFETY: 1. the program returns a number.
                unsafe { builder()?.bpf(M.add, &prog) }.build()?,
                builder()?.function(M.add, add).build()?,
            ];
            let mut links = Vec::new();
            for table in &tables[..DIRECT] {
                // SAFETY: 1. nothing is called when the subjects are gone.
                links.push(unsafe { rt.register(table) }?);
            }
            let direct = Box::new(Ops {
                add: add_too,
                sub: None,
            });
            let mut at = [(&raw const *direct).expose_provenance(); 5];
            for (at, link) in at.iter_mut().zip(&links) {
                *at = link.as_ptr().expose_provenance();
            }
            Add::update(add_too)?;
            let dispatcher = |targets: &[Binary]| -> Result<Dispatcher<Binary>, Error> {
                // SAFETY: 1. nothing is called when the subjects are gone.
                let dispatcher = unsafe { Dispatcher::new(&rt) }?;
                dispatcher.set_targets(targets)?;
                Ok(dispatcher)
            };
            Ok(Subjects {
                known: dispatcher(&EIGHT)?,
                unknown: dispatcher(&OTHERS)?,
                links,
                at,
                _direct: direct,
                boxed: Box::new(Plain),
                locked: RwLock::new(Box::new(Plain)),
                swapped: ArcSwap::from_pointee(Box::new(Plain)),
                adders: [Arc::new(Box::new(Plain)), Arc::new(Box::new(Plain))],
                tables,
            })
        }
    }

    fn least(counter: &mut Counter, s: &Subjects, run: Loop) -> Result<u64, Error> {
        common::least(counter, STRETCHES, || run(s, CALLS))
    }

    /// Instructions per call while four threads call, the mean.
    fn mean_of_threads(s: &Subjects, run: Loop) -> Result<f64, Error> {
        let (calls, all) = (CALLS * STRETCHES as u64, Barrier::new(THREADS));
        let one = || {
            let mut counter = counter(Whose::User).map_err(|e| e.to_string())?;
            // The first call makes the thread known, once.
            run(s, 1);
            all.wait();
            common::count(&mut counter, || run(s, calls)).map_err(|e| e.to_string())
        };
        let sum = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(one)).collect();
            let join = |t: thread::ScopedJoinHandle<'_, Result<u64, String>>| {
                t.join().unwrap_or_else(|_| Err("a thread panicked".into()))
            };
            threads.into_iter().map(join).sum::<Result<u64, String>>()
        })?;
        Ok(sum as f64 / (calls * THREADS as u64) as f64)
    }

    fn instructions() -> Result<Vec<Row>, Error> {
        let s = Subjects::new()?;
        let mut counter = counter(Whose::User)?;
        let mut rows = Vec::new();
        for subject in &SUBJECTS {
            let base = least(&mut counter, &s, subject.base)?;
            let with = least(&mut counter, &s, subject.run)?;
            let added = (with as f64 - base as f64) / CALLS as f64;
            let target = subject.target.map(Goal::AtMost);
            rows.push(Row::new(subject.name, added, "insns/call").wants(target));
        }
        for subject in &SUBJECTS {
            let added = mean_of_threads(&s, subject.run)? - mean_of_threads(&s, subject.base)?;
            let name = format!("{}_4t", subject.name);
            rows.push(Row::new(name, added, "insns/call"));
        }
        let mut swaps = |swap: Swaps| -> Result<f64, Error> {
            let mut done = Ok(());
            let each = common::least(&mut counter, 20, || {
                if done.is_ok() {
                    done = swap(&s, CALLS as u32);
                }
            })?;
            done?;
            Ok(each as f64 / CALLS as f64)
        };
        let row = Row::new("swap", swaps(swap)?, "insns/swap");
        rows.push(row.beside("arc-swap", swaps(swap_arc)?));
        Ok(rows)
    }

    /// Swaps as often as it is told.
    type Swaps = fn(&Subjects, u32) -> Result<(), Error>;

    /// Swaps to and fro, and ends where it began.
    fn swap(s: &Subjects, swaps: u32) -> Result<(), Error> {
        for _ in 0..swaps / 2 {
            s.links[RUST].update(&s.tables[DIRECT])?;
            s.links[RUST].update(&s.tables[RUST])?;
        }
        Ok(())
    }

    /// The same with [`ArcSwap`], of one pointer.
    fn swap_arc(s: &Subjects, swaps: u32) -> Result<(), Error> {
        for _ in 0..swaps / 2 {
            for adder in &s.adders {
                s.swapped.store(adder.clone());
            }
        }
        Ok(())
    }

    fn time() -> Result<Vec<Row>, Error> {
        let s = Subjects::new()?;
        let mut rows = Vec::new();
        let bases = [
            ("table", BY_TABLE),
            ("direct", BY_CALL),
            ("direct_rust", BY_RUST),
        ];
        let subjects = SUBJECTS.iter().map(|subject| {
            let name = subject.name.trim_end_matches("_added");
            (name, subject.run)
        });
        for (name, run) in bases.into_iter().chain(subjects) {
            for threads in [1, THREADS] {
                let each = nanos(&s, run, threads);
                rows.push(Row::new(format!("{name}_{threads}t_ns"), each, "ns/call"));
            }
        }
        let swaps = |swap: Swaps| -> Result<f64, Error> {
            let start = Instant::now();
            swap(&s, SWAPS)?;
            Ok(start.elapsed().as_nanos() as f64 / f64::from(SWAPS))
        };
        let row = Row::new("swap_ns", swaps(swap)?, "ns/swap");
        rows.push(row.beside("arc-swap", swaps(swap_arc)?));
        Add::update(add)?;
        let start = Instant::now();
        for _ in 0..10 {
            Add::update(add_too)?;
            Add::update(add)?;
        }
        let each = start.elapsed().as_nanos() as f64 / 20.0;
        rows.push(Row::new("static_call_update_ns", each, "ns/swap"));
        Ok(rows)
    }

    /// Nanoseconds per call and thread, the least of three rounds.
    fn nanos(s: &Subjects, run: Loop, threads: usize) -> f64 {
        let round = |_| {
            let all = Barrier::new(threads);
            let one = || {
                all.wait();
                let start = Instant::now();
                run(s, TIMED);
                start.elapsed().as_nanos() as f64
            };
            let sum: f64 = thread::scope(|scope| {
                let all: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
                all.into_iter().map(|t| t.join().unwrap_or(f64::NAN)).sum()
            });
            sum / (TIMED * threads as u64) as f64
        };
        (0..3).map(round).fold(f64::INFINITY, f64::min)
    }
}
