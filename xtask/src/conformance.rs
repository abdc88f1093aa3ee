//! `cargo xtask conformance FILE`: BPF vectors, interpreted and compiled, on
//! several machines, with one closing line for all.
//!
//! Key function: [`conformance`]. Neighbours: `run` runs the example that does
//! the work.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab_init::protocol::{Event, Stream};

use crate::{
    lab::{Lab, Place},
    run::{self, Profile, Program, What},
    vm::Console,
};

/// The example that runs vectors.
const EXAMPLE: [&str; 2] = ["--example", "conformance"];

/// Vectors that passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

impl Counts {
    /// From a line `N passed, N failed`.
    fn parse(line: &str) -> Option<Self> {
        let (passed, failed) = line.trim().split_once(" passed, ")?;
        Some(Self {
            passed: passed.parse().ok()?,
            failed: failed.strip_suffix(" failed")?.parse().ok()?,
        })
    }
}

/// Runs the vectors in `file` in all `places`; whether all passed.
pub(crate) fn conformance(
    lab: &Lab,
    places: &[Place],
    file: &Path,
    console: Console,
) -> Result<bool> {
    let file = std::path::absolute(file)?;
    ensure!(file.is_file(), "{} is no file", file.display());
    let program = Program {
        what: What::Target(EXAMPLE.map(str::to_owned).into()),
        args: vec![file.to_string_lossy().into_owned()],
    };
    let mut load = run::load(lab, &program, Profile::Dev, &[])?;
    load.files.push(file);
    let mut all = Counts::default();
    for place in places {
        println!("== {place}");
        let here = run_in(lab, *place, &load, console)?;
        all.passed += here.passed;
        all.failed += here.failed;
    }
    println!("{} passed, {} failed", all.passed, all.failed);
    Ok(all.failed == 0)
}

fn run_in(lab: &Lab, place: Place, load: &crate::lab::Load, console: Console) -> Result<Counts> {
    let mut text = Vec::new();
    let code = run::run_with(lab, place, load, console, &mut |event| {
        if let Event::Output { stream, data } = event {
            match stream {
                Stream::Stdout => text.extend_from_slice(&data.0),
                Stream::Stderr => eprint!("{}", String::from_utf8_lossy(&data.0)),
            }
        }
    })?;
    let text = String::from_utf8_lossy(&text);
    let mut counts = None;
    for line in text.lines() {
        match Counts::parse(line) {
            Some(found) => counts = Some(found),
            None => println!("{line}"),
        }
    }
    counts.with_context(|| format!("the vectors did not come to their end (exit code {code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_is_read() {
        let counts = |passed, failed| Some(Counts { passed, failed });
        assert_eq!(Counts::parse("12 passed, 3 failed"), counts(12, 3));
        for line in [
            "FAIL a: 1 passed, x failed",
            "12 passed",
            "a passed, 3 failed",
        ] {
            assert_eq!(Counts::parse(line), None, "{line}");
        }
    }
}
