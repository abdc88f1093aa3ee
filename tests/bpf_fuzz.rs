//! Random programs do the same in the interpreter and compiled.
//!
//! `RVBPF_FUZZ_PROGRAMS` says how many, for each set of extensions that this machine has; 300 by
//! default. Hosts that compile nothing run each twice in the interpreter. `examples/bpf_fuzz`
//! goes on with other seeds for as long as it is told.

#[path = "bpf_fuzz/coverage.rs"]
mod coverage;
#[path = "bpf_fuzz/mod.rs"]
mod fuzz;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::ErrorKind;

use fuzz::case::{Case, Keep};
use fuzz::compare::{Failure, Machine, feature_sets};
use fuzz::generate::{case, case_for};
use fuzz::kernel::{Kernel, Verdict};
use fuzz::shrink::shrink;
use fuzz::verifier::{Fate, Kind, attempt, hex, smaller, survive};
use rvbpf::Features;
use rvbpf::bpf::{AluOp, Op, Program};

fn programs() -> u64 {
    let given = std::env::var("RVBPF_FUZZ_PROGRAMS").ok();
    given.map_or(300, |n| n.parse().expect("a number"))
}

#[test]
fn both_sides_do_the_same() {
    let machine = Machine::new().expect("a runtime");
    for (name, features) in feature_sets() {
        for seed in 0..programs() {
            let case = case(seed);
            let Err(failure) = machine.run(&case, features) else {
                continue;
            };
            let mut fails = |other: &Case| {
                machine
                    .run(other, features)
                    .is_err_and(|f| f.is_difference())
            };
            let small = match failure.is_difference() {
                true => shrink(&case, &mut fails),
                false => case,
            };
            panic!("seed {seed:#x} for {name}: {failure}\nshrunk: {small}");
        }
        println!("{name}: {} programs, {features:?}", programs());
    }
    println!("compiled: {}", machine.compiles());
}

/// The kernel does what interpreter and compiled code do, where this process may ask it.
#[test]
fn the_kernel_does_the_same() {
    const PROGRAMS: u64 = 60;
    let kernel = match Kernel::new() {
        Ok(kernel) => kernel,
        Err(error) => {
            let may_not = [ErrorKind::PermissionDenied, ErrorKind::Unsupported];
            assert!(may_not.contains(&error.kind()), "bpf(2): {error}");
            return println!("not shown: bpf(2): {error}");
        }
    };
    let machine = Machine::new().expect("a runtime");
    let mut accepted = 0;
    for seed in 0..PROGRAMS {
        let case = case_for(seed, kernel.profile());
        match kernel.compare(&machine, &case, rvbpf::features()) {
            Ok(Verdict::Same) => accepted += 1,
            Ok(Verdict::Refused(reason)) => println!("seed {seed:#x}: {reason:?}"),
            Ok(verdict @ Verdict::Fails(_)) => {
                let mut fails = |other: &Case| {
                    let verdict = kernel.compare(&machine, other, rvbpf::features());
                    verdict.is_ok_and(|verdict| verdict.is_difference())
                };
                let small = match verdict.is_difference() {
                    true => shrink(&case, &mut fails),
                    false => case,
                };
                panic!("seed {seed:#x}: {verdict:?}\nshrunk: {small}");
            }
            Err(error) => panic!("seed {seed:#x}: the kernel does not run it: {error}"),
        }
    }
    println!("{accepted} of {PROGRAMS} accepted; {:?}", kernel.ways());
    assert!(accepted >= PROGRAMS / 2, "{accepted} of {PROGRAMS}");
}

/// The generator makes every kind of instruction, and a seed makes the same program again.
#[test]
fn every_kind_of_instruction_occurs() {
    let mut seen = coverage::Seen::default();
    for seed in 0..300 {
        let case = case(seed);
        assert_eq!(case.insns(), fuzz::generate::case(seed).insns(), "{seed}");
        let program = Program::new(case.insns()).expect("accepted");
        seen.add(&program);
    }
    let missing = seen.missing();
    assert!(missing.is_empty(), "never made: {missing:#?}");
    seen.print();
}

/// A made-up fault shrinks to what shows it: a signed remainder, and little else.
#[test]
fn shrinking_leaves_what_matters() {
    let is_it = |op: Op| {
        matches!(
            op,
            Op::Alu {
                op: AluOp::SMod,
                ..
            }
        )
    };
    let machine = Machine::new().expect("a runtime");
    let runs = Cell::new(0);
    let mut fails = |other: &Case| {
        runs.set(runs.get() + 1);
        let fit = match machine.run(other, Features::RV64GC) {
            Ok(_) => true,
            Err(failure) => failure.is_difference(),
        };
        fit && other.ops().into_iter().flatten().any(is_it)
    };
    let seed = (0..).find(|seed| fails(&case(*seed))).expect("one of them");
    let small = shrink(&case(seed), &mut fails);
    let left = small.funcs.iter().flatten().flatten();
    let left = left.filter(|slot| slot.keep == Keep::Free && slot.op != fuzz::case::NOP);
    let left: Vec<Op> = left.map(|slot| slot.op).collect();
    println!("{} runs; left: {left:#?}", runs.get());
    assert!(left.iter().copied().any(is_it));
    assert!(left.len() <= 12, "{small}");
}

/// What is not fit is found before it runs.
#[test]
fn unfit_programs_are_told_apart() {
    let machine = Machine::new().expect("a runtime");
    let mut case = case(1);
    // r0, which is not set.
    case.funcs = vec![vec![Some(fuzz::case::Slot {
        op: Op::Exit,
        keep: Keep::Fixed,
    })]];
    let failure = machine.run(&case, Features::RV64GC);
    assert!(matches!(failure, Err(Failure::Refused(_))), "{failure:?}");
}

/// Whatever the bytes, nothing panics, and what is accepted can be run.
#[test]
fn no_bytes_are_too_much() {
    // In a VM instructions take thirty times as long.
    const PROGRAMS: u64 = if cfg!(target_arch = "riscv64") {
        3_000
    } else {
        20_000
    };
    let env = fuzz::host::env();
    let mut fates = BTreeMap::new();
    for seed in 0..PROGRAMS {
        let (kind, bytes) = attempt(seed);
        match survive(&env, &bytes) {
            Ok(fate) => *fates.entry((kind, fate)).or_insert(0) += 1,
            Err(why) => {
                let small = hex(&smaller(&env, &bytes));
                panic!("seed {seed:#x} ({kind:?}): {why}\nshrunk: {small}");
            }
        }
    }
    println!("{fates:#?}");
    for kind in [Kind::Insns, Kind::Mutant] {
        for fate in [Fate::Refused, Fate::Ran] {
            let times = fates.get(&(kind, fate)).copied().unwrap_or(0);
            assert!(times > PROGRAMS / 100, "{kind:?} {fate:?}: {times}");
        }
    }
}
