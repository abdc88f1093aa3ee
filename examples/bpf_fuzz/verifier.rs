//! The verifier against anything.

use std::collections::BTreeMap;

use super::fuzz::host;
use super::fuzz::verifier::{Fate, Kind, attempt, hex, smaller, survive};
use super::{Error, Run};

/// Whether all bytes have been refused, or accepted and run.
pub(super) fn run(mut run: Run) -> Result<bool, Error> {
    println!("seeds from {:#x}", run.seed);
    let env = host::env();
    let mut fates: BTreeMap<(Kind, Fate), u64> = BTreeMap::new();
    let mut programs = 0;
    while let Some(seed) = run.next(programs, || format!("{programs} programs")) {
        let (kind, bytes) = attempt(seed);
        match survive(&env, &bytes) {
            Ok(fate) => *fates.entry((kind, fate)).or_default() += 1,
            Err(why) => {
                println!("seed {seed:#x} ({kind:?}): {why}");
                println!("shrunk: {}", hex(&smaller(&env, &bytes)));
                return Ok(false);
            }
        }
        programs += 1;
    }
    for ((kind, fate), times) in fates {
        println!("{kind:?} {fate:?}: {times}");
    }
    println!(
        "{programs} programs, none too much; last seed {:#x}",
        run.last()
    );
    Ok(true)
}
