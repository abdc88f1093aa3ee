//! Random BPF programs, for a time or for a number of them.
//!
//! ```text
//! bpf_fuzz [--target jit|kernel|verifier] [--seconds N] [--programs N] [--seed S]
//! ```
//!
//! | target | what must hold |
//! | --- | --- |
//! | `jit` | a program does the same in the interpreter and compiled for every set of extensions that this machine has |
//! | `kernel` | so it does in the kernel, if its verifier accepts it; `--programs` counts those |
//! | `verifier` | no bytes make the verifier panic, and what it accepts can be run and compiled |
//!
//! Each seed from `S` on (the time of day, if there is none) makes a program. A failure ends it with
//! exit code 1, the seed and a smaller program. See `tests/bpf_fuzz/`.

#[path = "../../tests/bpf_fuzz/mod.rs"]
mod fuzz;
mod jit;
mod kernel;
mod verifier;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often there is a word about it.
const PROGRESS: Duration = Duration::from_secs(10);

const USAGE: &str =
    "usage: bpf_fuzz [--target jit|kernel|verifier] [--seconds N] [--programs N] [--seed S]";

/// What is looked for faults.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Target {
    Jit,
    Kernel,
    Verifier,
}

/// What could not be begun.
type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let Some((target, run)) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let well = match target {
        Target::Jit => jit::run(run),
        Target::Kernel => kernel::run(run),
        Target::Verifier => verifier::run(run),
    };
    match well {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Seeds, one after the other, until it is enough.
struct Run {
    seed: u64,
    /// How many seeds there have been.
    seeds: u64,
    seconds: Option<Duration>,
    programs: Option<u64>,
    begin: Instant,
    said: Instant,
}

impl Run {
    /// The next seed, unless the time is over or `done` programs are enough. Now and then tells how
    /// it goes.
    fn next(&mut self, done: u64, how: impl FnOnce() -> String) -> Option<u64> {
        let is_over = self
            .seconds
            .is_some_and(|limit| self.begin.elapsed() >= limit);
        if is_over || self.programs.is_some_and(|programs| done >= programs) {
            return None;
        }
        let seed = self.seed.wrapping_add(self.seeds);
        self.seeds += 1;
        if self.said.elapsed() >= PROGRESS {
            self.said = Instant::now();
            println!("{:.0?}: {}, seed {seed:#x}", self.begin.elapsed(), how());
        }
        Some(seed)
    }

    /// The last seed that there was.
    fn last(&self) -> u64 {
        self.seed.wrapping_add(self.seeds).wrapping_sub(1)
    }
}

fn arguments() -> Option<(Target, Run)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let begin = Instant::now();
    let mut target = Target::Jit;
    let mut run = Run {
        seed: now.as_nanos() as u64,
        seeds: 0,
        seconds: None,
        programs: None,
        begin,
        said: begin,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next()?;
        match arg.as_str() {
            "--target" => {
                target = match value.as_str() {
                    "jit" => Target::Jit,
                    "kernel" => Target::Kernel,
                    "verifier" => Target::Verifier,
                    _ => return None,
                }
            }
            "--seconds" => run.seconds = Some(Duration::from_secs(value.parse().ok()?)),
            "--programs" => run.programs = Some(value.parse().ok()?),
            "--seed" => {
                run.seed = match value.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16).ok()?,
                    None => value.parse().ok()?,
                }
            }
            _ => return None,
        }
    }
    let is_endless = run.seconds.is_none() && run.programs.is_none();
    (!is_endless).then_some((target, run))
}
