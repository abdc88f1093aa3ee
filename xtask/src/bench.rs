//! `cargo xtask bench`: runs benches in the lab, shows their numbers to people
//! and keeps them for machines.
//!
//! A bench is a program `benches/NAME.rs` with `harness = false`. It is run once
//! for each thing that it measures, with [`MEASURE_VAR`] naming that thing, and
//! writes its [`Row`]s as a JSON array to `NAME.json` in the out folder.
//!
//! Key types: [`Bench`], [`Row`]. Neighbour: `run`.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use lab_init::job::Kind;
use serde::{Deserialize, Serialize};

use crate::{
    cargo::Want,
    lab::{Lab, Load, MEASURE_VAR, Place},
    machine::{Clock, Machine},
    run,
    vm::Console,
};

/// A bench that there is.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    about: &'static str,
    measures: &'static [Measure],
}

/// What a run of a bench measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// Instructions: `insns`. The VM counts them, with one hart.
    Insns,
    /// Time: `time`.
    Time,
}

/// All benches.
pub(crate) const BENCHES: [Bench; 2] = [
    Bench {
        name: "trampoline",
        about: "what a hooked call costs beyond an unhooked one",
        measures: &[Measure::Insns],
    },
    Bench {
        name: "pack",
        about: "what code memory costs, from packs and from one mapping per program",
        measures: &[Measure::Insns, Measure::Time],
    },
];

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    row: String,
    value: f64,
    unit: String,
    /// With what it is compared, if with anything.
    #[serde(default)]
    peer: Option<String>,
    #[serde(default)]
    peer_value: Option<f64>,
}

/// The bench `name`.
pub(crate) fn find(name: &str) -> Result<&'static Bench> {
    let found = BENCHES.iter().find(|bench| bench.name == name);
    let names: Vec<_> = BENCHES.iter().map(|bench| bench.name).collect();
    found.with_context(|| format!("there is no bench {name}; there are: {}", names.join(", ")))
}

/// Runs `bench` in `place`.
pub(crate) fn bench(lab: &Lab, place: Place, bench: &Bench, console: Console) -> Result<()> {
    let built = lab.build(
        "bench",
        &["--no-run", "--bench", bench.name],
        Want::Programs,
    )?;
    let Some(executable) = built
        .executables
        .iter()
        .find(|built| built.name == bench.name)
    else {
        bail!("cargo built no bench {}", bench.name);
    };
    let dir = lab.workspace.bench_dir();
    let mut rows: Vec<Row> = Vec::new();
    for measure in bench.measures {
        let (word, place) = match (measure, place) {
            (Measure::Insns, Place::Vm(machine)) => {
                let machine = Machine {
                    harts: 1,
                    clock: Clock::Instructions,
                    ..machine
                };
                ("insns", Place::Vm(machine))
            }
            (Measure::Insns, Place::Here) => ("insns", place),
            (Measure::Time, _) => ("time", place),
        };
        let mut load = Load::of(&built);
        let kind = Kind::Program {
            args: vec!["--bench".to_owned()],
        };
        load.add(executable, kind, &[(MEASURE_VAR, word)]);
        let code = run::run(lab, place, &load, console)?;
        ensure!(
            code == 0,
            "bench {} ended with exit code {code}",
            bench.name
        );
        lab.run_dir.copy_out(&dir)?;
        rows.extend(read_rows(
            &lab.run_dir.out().join(format!("{}.json", bench.name)),
        )?);
    }
    ensure!(!rows.is_empty(), "bench {} measured nothing", bench.name);
    let file = dir.join(format!("{}.json", bench.name));
    fs::write(&file, serde_json::to_string_pretty(&rows)? + "\n")?;
    println!("{}: {}\n{}", bench.name, bench.about, table(&rows));
    println!("written to {}", file.display());
    Ok(())
}

fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let text = fs::read(path).with_context(|| format!("the bench left no {name}"))?;
    serde_json::from_slice(&text).with_context(|| format!("the bench's {name} is not as agreed"))
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header(["row", "value", "unit", "peer", "peer's value"]);
    for row in rows {
        table.add_row([
            row.row.clone(),
            number(row.value),
            row.unit.clone(),
            row.peer.clone().unwrap_or_default(),
            row.peer_value.map(number).unwrap_or_default(),
        ]);
    }
    for column in [1, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_bench_lists_those_there_are() {
        assert_eq!(find("pack").unwrap().name, "pack");
        let text = find("speed").unwrap_err().to_string();
        assert_eq!(text, "there is no bench speed; there are: trampoline, pack");
    }

    #[test]
    fn rows_become_a_table() {
        let json = r#"[{"row":"fentry","value":29,"unit":"insns","peer":"kernel","peer_value":133},
                       {"row":"bytes","value":2.5,"unit":"bytes","peer":null,"peer_value":null}]"#;
        let rows: Vec<Row> = serde_json::from_str(json).unwrap();
        let text = table(&rows).to_string();
        assert!(
            text.contains("fentry") && text.contains("133") && text.contains("2.50"),
            "{text}"
        );
    }
}
