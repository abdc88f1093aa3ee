//! Interpreter against compiled code.

use rvbpf::Features;

use super::fuzz::case::Case;
use super::fuzz::compare::{Machine, feature_sets};
use super::fuzz::generate::case;
use super::fuzz::shrink::shrink;
use super::{Error, Run};

/// Whether all programs have done the same.
pub(super) fn run(mut run: Run) -> Result<bool, Error> {
    let machine = Machine::new()?;
    let sets = feature_sets();
    let names: Vec<_> = sets.iter().map(|(name, _)| *name).collect();
    println!(
        "seeds from {:#x}; sets {names:?}; compiled: {}",
        run.seed,
        machine.compiles()
    );
    let mut programs = 0;
    while let Some(seed) = run.next(programs, || format!("{programs} programs")) {
        let case = case(seed);
        for (name, features) in &sets {
            if !is_same(&machine, &case, (name, *features)) {
                return Ok(false);
            }
        }
        programs += 1;
    }
    println!(
        "{programs} programs, all the same; last seed {:#x}",
        run.last()
    );
    Ok(true)
}

/// Whether both sides do the same; if not, says why.
fn is_same(machine: &Machine, case: &Case, (name, features): (&str, Features)) -> bool {
    let Err(failure) = machine.run(case, features) else {
        return true;
    };
    println!("seed {:#x} for {name} ({features:?}): {failure}", case.seed);
    let mut fails = |other: &Case| {
        machine
            .run(other, features)
            .is_err_and(|f| f.is_difference())
    };
    match failure.is_difference() {
        true => println!("shrunk: {}", shrink(case, &mut fails)),
        false => println!("{case}"),
    }
    false
}
