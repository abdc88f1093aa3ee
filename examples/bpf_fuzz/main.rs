//! Random programs for a time: `bpf_fuzz --seconds N [--seed S]`.
//!
//! Each seed from `S` on (the time of day, if there is none) makes a program, which must do the
//! same in the interpreter and compiled for every set of extensions that this machine has. A
//! difference ends it with exit code 1, the seed and a smaller program. See `tests/bpf_fuzz/`.

#[path = "../tests/bpf_fuzz/mod.rs"]
mod fuzz;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuzz::case::Case;
use fuzz::compare::{Machine, feature_sets};
use fuzz::generate::case;
use fuzz::shrink::shrink;
use rvbpf::Features;

/// How often there is a word about it.
const PROGRESS: Duration = Duration::from_secs(10);

const USAGE: &str = "usage: bpf_fuzz --seconds N [--seed S]";

fn main() -> ExitCode {
    let Some((seconds, seed)) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let machine = match Machine::new() {
        Ok(machine) => machine,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let sets = feature_sets();
    let names: Vec<_> = sets.iter().map(|(name, _)| *name).collect();
    println!(
        "seeds from {seed:#x}; sets {names:?}; compiled: {}",
        machine.compiles()
    );
    let begin = Instant::now();
    let mut said = begin;
    let (mut programs, mut last) = (0_u64, seed);
    while begin.elapsed() < seconds {
        last = seed.wrapping_add(programs);
        let case = case(last);
        for (name, features) in &sets {
            if !is_same(&machine, &case, (name, *features)) {
                return ExitCode::FAILURE;
            }
        }
        programs += 1;
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            println!(
                "{:.0?}: {programs} programs, seed {last:#x}",
                begin.elapsed()
            );
        }
    }
    println!("{programs} programs, all the same; last seed {last:#x}");
    ExitCode::SUCCESS
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

fn arguments() -> Option<(Duration, u64)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let (mut seconds, mut seed) = (None, now.as_nanos() as u64);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next()?;
        match arg.as_str() {
            "--seconds" => seconds = Some(value.parse().ok()?),
            "--seed" => {
                seed = match value.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16).ok()?,
                    None => value.parse().ok()?,
                }
            }
            _ => return None,
        }
    }
    Some((Duration::from_secs(seconds?), seed))
}
