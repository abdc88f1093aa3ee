//! `cargo xtask ci`: everything that must hold before a change lands.
//!
//! The checks run with the tree's tools, so that their versions are the same
//! everywhere.
//!
//! Key function: [`ci`]. Neighbours: `licences`, `test`.

use std::{process::Command, time::Instant};

use anyhow::Result;
use comfy_table::{Table, presets::ASCII_MARKDOWN};

use crate::{
    lab::{Lab, LabKind, Place},
    licences,
    process::{output_of, succeeds},
    report::Report,
    test::{ON_DEMAND, Selection, test},
    vm::Console,
};

/// The Rust that everything must build with.
const MSRV: &str = "1.85";

/// A check and how it ended.
struct Line {
    name: &'static str,
    ending: Ending,
    seconds: f64,
}

/// How a check ended.
enum Ending {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Runs all checks, then the tests of `selection` in `places`; whether all passed.
pub(crate) fn ci(
    lab: &Lab,
    places: &[Place],
    selection: &Selection,
    console: Console,
) -> Result<bool> {
    let all = ["--workspace", "--all-targets"];
    let deny = ["--", "-D", "warnings"];
    let mut lines = Vec::new();
    let mut check = |name, f: &mut dyn FnMut() -> Result<Ending>| {
        println!("== {name}");
        let start = Instant::now();
        let ending = f().unwrap_or_else(|error| Ending::Failed(format!("{error:#}")));
        if let Ending::Failed(why) = &ending {
            println!("{name} failed: {why}");
        }
        lines.push(Line {
            name,
            ending,
            seconds: start.elapsed().as_secs_f64(),
        });
    };
    check("format", &mut || {
        cargo(lab.cargo("fmt").args(["--all", "--check"]))
    });
    check("licences", &mut || {
        licences::check().map(|()| Ending::Passed)
    });
    check("clippy, riscv64", &mut || {
        cargo(lab.cargo("clippy").args(all).args(deny))
    });
    if let LabKind::Vm(lab) = &lab.kind {
        check("clippy, host", &mut || {
            // What is built on demand has been checked for one target, which is enough.
            let mut clippy = lab.cargo_for_host("clippy");
            cargo(clippy.args(all).args(["--exclude", ON_DEMAND]).args(deny))
        });
    }
    check("docs", &mut || {
        cargo(lab.cargo("doc").args(["--workspace", "--no-deps"]))
    });
    check("Rust 1.85", &mut || msrv(lab));
    let mut report = Report::default();
    check("tests", &mut || {
        report = test(lab, places, selection, console);
        Ok(match report.failed() {
            0 => Ending::Passed,
            failed => Ending::Failed(format!("{failed} failed")),
        })
    });
    println!("{}", table(&lines));
    let passed = lines
        .iter()
        .all(|line| !matches!(line.ending, Ending::Failed(_)));
    Ok(report.close() && passed)
}

fn cargo(command: &mut Command) -> Result<Ending> {
    Ok(match succeeds(command, "cargo")? {
        true => Ending::Passed,
        false => Ending::Failed("see above".to_owned()),
    })
}

/// Checks with the oldest Rust that is promised, which is the tree's.
fn msrv(lab: &Lab) -> Result<Ending> {
    if let LabKind::Native = lab.kind {
        let version = output_of(Command::new("rustc").arg("--version"), "rustc")?;
        if !version.starts_with(&format!("rustc {MSRV}.")) {
            return Ok(Ending::Skipped(format!("this is {}", version.trim())));
        }
    }
    cargo(lab.cargo("check").args(["--workspace", "--all-targets"]))
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(ASCII_MARKDOWN)
        .set_header(["check", "result", "seconds"]);
    for line in lines {
        let result = match &line.ending {
            Ending::Passed => "passed".to_owned(),
            Ending::Failed(why) => format!("FAILED: {}", why.lines().next().unwrap_or_default()),
            Ending::Skipped(why) => format!("skipped: {why}"),
        };
        table.add_row([line.name.to_owned(), result, format!("{:.0}", line.seconds)]);
    }
    table
}
