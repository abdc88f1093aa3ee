//! `cargo xtask bench`: runs benches in the lab, shows their numbers to people
//! and keeps them for machines.
//!
//! A bench is a program `benches/NAME.rs` with `harness = false`. It is run once
//! for each thing that it measures, with [`MEASURE_VAR`] naming that thing, and
//! writes its [`Row`]s as a JSON array to `NAME.json` in the out folder. What it
//! needs beyond itself is made before, and lies in the folder that
//! [`MATERIAL_VAR`] names. What takes longer to build than all the rest is
//! measured by an example of `peers`, which prints its rows, one JSON object a
//! line.
//!
//! Key types: [`Bench`], [`Row`]. Neighbour: `run`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use lab_init::{
    job::Kind,
    protocol::{Event, Stream},
};
use serde::{Deserialize, Serialize};

use crate::{
    cargo::Want,
    corpus,
    lab::{Lab, Load, MATERIAL_VAR, MEASURE_VAR, Place},
    machine::{Clock, Machine},
    run::{self, Profile, Program, What},
    vm::Console,
};

/// A bench that there is.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    about: &'static str,
    measures: &'static [Measure],
    material: Option<Material>,
    /// The example of `peers` that measures more, with the material's first file.
    peers: Option<&'static str>,
}

/// Makes what a bench needs on a machine, in a folder, and gives the files.
type Material = fn(&Lab, Place, &Path) -> Result<Vec<PathBuf>>;

/// What a run of a bench measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// Instructions: `insns`. The VM counts them, with one hart.
    Insns,
    /// Time: `time`.
    Time,
    /// What code is there: `code`.
    Code,
}

/// All benches.
pub(crate) const BENCHES: [Bench; 7] = [
    Bench {
        name: "trampoline",
        about: "what a hooked call costs beyond an unhooked one",
        measures: &[Measure::Insns],
        material: None,
        peers: None,
    },
    Bench {
        name: "pack",
        about: "what code memory costs, from packs and from one mapping per program",
        measures: &[Measure::Insns, Measure::Time],
        material: None,
        peers: None,
    },
    Bench {
        name: "jit",
        about: "what compiled BPF programs execute, beside the kernel's code and clang's",
        measures: &[Measure::Insns],
        material: Some(corpus::build),
        peers: Some("compile"),
    },
    Bench {
        name: "any",
        about: "functions as they are: which can be hooked by a jump, and what a call costs then",
        measures: &[Measure::Insns, Measure::Code],
        material: None,
        peers: None,
    },
    Bench {
        name: "attach",
        about: "what attaching, retargeting and detaching cost, by the number of functions",
        measures: &[Measure::Insns, Measure::Time],
        material: None,
        peers: None,
    },
    Bench {
        name: "itlb",
        about: "what code layout does to the instruction TLB",
        measures: &[Measure::Insns],
        material: None,
        peers: None,
    },
    Bench {
        name: "dispatch",
        about: "what a call through a table that can be swapped costs, and a swap",
        measures: &[Measure::Insns, Measure::Time],
        material: None,
        peers: None,
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
    /// The processor, where the bench depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
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
    let material_dir = lab.workspace.lab_dir().join("bench").join(bench.name);
    let files = match bench.material {
        Some(make) => make(lab, place, &material_dir)?,
        None => Vec::new(),
    };
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
            (Measure::Code, _) => ("code", place),
        };
        let mut load = Load::of(&built);
        let kind = Kind::Program {
            args: vec!["--bench".to_owned()],
        };
        let material = material_dir.to_string_lossy();
        load.add(
            executable,
            kind,
            &[(MEASURE_VAR, word), (MATERIAL_VAR, &material)],
        );
        load.files.extend(files.iter().cloned());
        let code = run::run(lab, place, &load, console)?;
        ensure!(
            code == 0,
            "bench {} ended with exit code {code}",
            bench.name
        );
        lab.run_dir.copy_out(&dir)?;
        let measured = read_rows(&lab.run_dir.out().join(format!("{}.json", bench.name)))?;
        rows.extend(measured.into_iter().map(|row| Row {
            cpu: cpu_of(bench, place),
            ..row
        }));
    }
    if let (Some(example), Some(file)) = (bench.peers, files.first()) {
        rows.extend(peers_rows(lab, place, example, file)?);
    }
    ensure!(!rows.is_empty(), "bench {} measured nothing", bench.name);
    let file = dir.join(format!("{}.json", bench.name));
    fs::write(&file, serde_json::to_string_pretty(&rows)? + "\n")?;
    println!(
        "{}: {} ({place})\n{}",
        bench.name,
        bench.about,
        table(&rows)
    );
    println!("written to {}", file.display());
    Ok(())
}

/// What an example of `peers` measures with `file`.
fn peers_rows(lab: &Lab, place: Place, example: &str, file: &Path) -> Result<Vec<Row>> {
    let target = ["-p", "rvbpf-peers", "--example", example].map(str::to_owned);
    let program = Program {
        what: What::Target(target.into()),
        args: vec![file.to_string_lossy().into_owned()],
    };
    let mut load = run::load(lab, &program, Profile::Release, &[])?;
    load.files.push(file.to_owned());
    let mut out = Vec::new();
    let code = run::run_with(lab, place, &load, Console::Kept, &mut |event| {
        if let Event::Output { stream, data } = event {
            match stream {
                Stream::Stdout => out.extend(data.0),
                Stream::Stderr => eprint!("{}", String::from_utf8_lossy(&data.0)),
            }
        }
    })?;
    ensure!(
        code == 0,
        "{example} of the peers ended with exit code {code}"
    );
    let text = String::from_utf8(out).context("the peers' rows are no text")?;
    let row = |line: &str| serde_json::from_str(line).with_context(|| format!("no row: {line}"));
    text.lines().map(row).collect()
}

/// The processor, if the bench's material is made for it.
fn cpu_of(bench: &Bench, place: Place) -> Option<String> {
    match (bench.material, place) {
        (Some(_), Place::Vm(machine)) => Some(machine.cpu.to_string()),
        _ => None,
    }
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
        assert_eq!(
            text,
            "there is no bench speed; there are: trampoline, pack, jit, any, attach, itlb, dispatch"
        );
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
