//! `cargo xtask fuzz`: random BPF programs.
//!
//! Key type: [`FuzzTarget`]. Neighbours: `main` reads the command line; the
//! example `bpf_fuzz` does the work, mostly in the lab.

use anyhow::Result;
use clap::ValueEnum;

use crate::{process::succeeds, workspace::host_cargo};

/// Cargo's words for the program that does the work.
pub(crate) const EXAMPLE: [&str; 2] = ["--example", "bpf_fuzz"];

/// How long it goes on when nothing is said.
const SECONDS: u64 = 60;

/// What is looked for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FuzzTarget {
    /// The compiler: programs do the same interpreted and compiled.
    Jit,
    /// The compiler: programs do the same here and in the machine's kernel.
    Kernel,
    /// The verifier: no bytes make it panic, and what it accepts can be run.
    Verifier,
}

/// The program's arguments.
pub(crate) fn arguments(
    target: FuzzTarget,
    seconds: Option<u64>,
    programs: Option<u64>,
    seed: Option<String>,
) -> Vec<String> {
    let seconds = match programs {
        None => Some(seconds.unwrap_or(SECONDS)),
        Some(_) => seconds,
    };
    let name = target.to_possible_value();
    let mut args = vec!["--target".to_owned()];
    args.extend(name.map(|name| name.get_name().to_owned()));
    for (option, value) in [
        ("--seconds", seconds.map(|n| n.to_string())),
        ("--programs", programs.map(|n| n.to_string())),
        ("--seed", seed),
    ] {
        args.extend(value.into_iter().flat_map(|v| [option.to_owned(), v]));
    }
    args
}

/// Runs it on this machine; whether it ended well.
pub(crate) fn here(args: &[String]) -> Result<bool> {
    let mut command = host_cargo();
    command.args(["run", "--quiet", "--release"]);
    command.args(EXAMPLE).arg("--").args(args);
    succeeds(&mut command, "cargo run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_when_nothing_is_said() {
        let line =
            |seconds, programs| arguments(FuzzTarget::Kernel, seconds, programs, None).join(" ");
        assert_eq!(line(None, None), "--target kernel --seconds 60");
        assert_eq!(line(None, Some(9)), "--target kernel --programs 9");
        let both = "--target kernel --seconds 5 --programs 9";
        assert_eq!(line(Some(5), Some(9)), both);
        let seed = arguments(FuzzTarget::Jit, Some(1), None, Some("0x7".to_owned()));
        assert_eq!(seed.join(" "), "--target jit --seconds 1 --seed 0x7");
    }
}
