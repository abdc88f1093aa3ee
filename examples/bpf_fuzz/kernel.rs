//! Interpreter and compiled code against the kernel.

use std::collections::BTreeMap;

use super::fuzz::case::Case;
use super::fuzz::compare::Machine;
use super::fuzz::generate::case_for;
use super::fuzz::kernel::{Kernel, Refused, Verdict};
use super::fuzz::shrink::shrink;
use super::{Error, Run};

/// How many of the reasons for which programs are refused are told.
const REASONS: usize = 8;

/// Whether all programs that the kernel accepts have done the same.
pub(super) fn run(mut run: Run) -> Result<bool, Error> {
    let (machine, kernel) = (Machine::new()?, open()?);
    let features = rvbpf::features();
    println!(
        "seeds from {:#x}; {:?}; in the kernel: {:?}; compiled here: {}",
        run.seed,
        kernel.profile(),
        kernel.ways(),
        machine.compiles()
    );
    let mut accepted = 0;
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let mut refused = 0;
    while let Some(seed) = run.next(accepted, || {
        format!("{accepted} accepted, {refused} refused")
    }) {
        let case = case_for(seed, kernel.profile());
        match kernel.compare(&machine, &case, features)? {
            Verdict::Same => accepted += 1,
            Verdict::Refused(Refused(reason)) => {
                refused += 1;
                *reasons.entry(reason).or_default() += 1;
            }
            Verdict::Fails(failure) => {
                println!("seed {seed:#x}: {failure}");
                tell(&machine, &kernel, &case)?;
                return Ok(false);
            }
        }
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    for (reason, times) in reasons.iter().take(REASONS) {
        println!("refused {times} times: {reason}");
    }
    println!(
        "{accepted} programs accepted, all the same; {refused} refused; last seed {:#x}",
        run.last()
    );
    Ok(true)
}

fn open() -> Result<Kernel, Error> {
    Kernel::new().map_err(|error| {
        format!("bpf(2): {error}; programs are loaded by root alone, and by a kernel that has it")
            .into()
    })
}

/// A smaller case that fails, too.
fn tell(machine: &Machine, kernel: &Kernel, case: &Case) -> Result<(), Error> {
    let features = rvbpf::features();
    let mut fails = |other: &Case| {
        kernel
            .compare(machine, other, features)
            .is_ok_and(|verdict| verdict.is_difference())
    };
    let small = match fails(case) {
        true => shrink(case, &mut fails),
        false => case.clone(),
    };
    println!("shrunk: {small}");
    if let Verdict::Fails(failure) = kernel.compare(machine, &small, features)? {
        println!("{failure}");
    }
    Ok(())
}
