//! `cargo xtask test`: the host's tests, then the same and more in the VM.
//!
//! Key type: [`Selection`]. Neighbours: `lab` builds and runs, `report` counts;
//! [`lab_init::runner`] lists, limits and kills.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use lab_init::job::{Job, Kind, SLOW_PREFIX};

use crate::{
    cargo::{Built, Want, build},
    gdb::{self, GDB_VAR, Gdb},
    hosts,
    initramfs::files_under,
    lab::{AS_VAR, Lab, LabKind, Load, Place, run_here},
    report::Report,
    tree::host_tools,
    vm::Console,
    vm_lab::VmLab,
    workspace::host_cargo,
};

/// Packages that run on the host only: the lab, what the compiler runs, and what is arithmetic
/// alone, the same everywhere.
const HOST_ONLY: [&str; 3] = ["xtask", "rvbpf-derive", "rvbpf-rv64"];
/// Models of protocols, which are arithmetic too: where the host has run them, the VM does not.
const MODELS: &str = "::model::";
/// A package that is built on demand only: Cranelift alone takes minutes.
pub(crate) const ON_DEMAND: &str = "rvbpf-peers";
/// What is built for testing unless told otherwise. Examples and benches are programs, not tests.
const ALL_TARGETS: [&str; 3] = ["--lib", "--bins", "--tests"];

/// Which tests.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// Of these packages; of all when empty.
    pub(crate) packages: Vec<String>,
    /// In these files of `tests/`, and no others; in all of them, and in units, when empty.
    pub(crate) files: Vec<String>,
    /// Those whose names contain one of these; all when empty.
    pub(crate) filters: Vec<String>,
    pub(crate) side: Side,
    pub(crate) slow: Slow,
}

/// In which places the tests run whose names begin with [`SLOW_PREFIX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slow {
    Everywhere,
    /// They take minutes, and are not about the instructions of a cpu.
    InTheFirst,
}

/// On which side tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    /// On this machine and in the lab's VM.
    Both,
    /// On this machine only.
    Host,
    /// In the VM only.
    Vm,
}

impl Selection {
    /// All tests, on both sides.
    pub(crate) fn all(slow: Slow) -> Self {
        Self {
            packages: Vec::new(),
            files: Vec::new(),
            filters: Vec::new(),
            side: Side::Both,
            slow,
        }
    }

    /// Cargo's arguments for what is built of them.
    fn target_args(&self) -> impl Iterator<Item = &str> {
        let all = if self.files.is_empty() {
            &ALL_TARGETS[..]
        } else {
            &[]
        };
        let files = self.files.iter().flat_map(|name| ["--test", name]);
        ["--no-run"]
            .into_iter()
            .chain(all.iter().copied())
            .chain(files)
    }

    /// Whether the executable called `name` may run a test that has one of `words` in its name.
    fn wants(&self, built: &Built, name: &str, words: &[&str]) -> bool {
        let is_there = built.executables.iter().any(|e| e.name == name);
        let is_meant = |filter: &String| words.iter().any(|word| filter.contains(word));
        is_there && (self.filters.is_empty() || self.filters.iter().any(is_meant))
    }

    /// Cargo's arguments for the packages that can run on `side`. None: there
    /// is none.
    fn cargo_args(&self, side: Side) -> Option<Vec<&str>> {
        let packages = self.packages.iter().map(String::as_str);
        let mut packages = packages.filter(|name| side == Side::Host || !HOST_ONLY.contains(name));
        if !self.packages.is_empty() {
            let first = packages.next()?;
            return Some(
                [first]
                    .into_iter()
                    .chain(packages)
                    .flat_map(|name| ["-p", name])
                    .collect(),
            );
        }
        Some(match side {
            Side::Vm => {
                let left_out = HOST_ONLY.into_iter().chain([ON_DEMAND]);
                let left_out = left_out.flat_map(|name| ["--exclude", name]);
                ["--workspace"].into_iter().chain(left_out).collect()
            }
            Side::Host | Side::Both => vec!["--workspace", "--exclude", ON_DEMAND],
        })
    }
}

/// Runs the tests of `selection`, on the host and then in `places`. What keeps
/// them from running is a failure in the report.
pub(crate) fn test(lab: &Lab, places: &[Place], selection: &Selection, console: Console) -> Report {
    let mut report = Report::default();
    if let Err(error) = test_sides(lab, places, selection, console, &mut report) {
        report.fail("before it ran", "the tests", &format!("{error:#}"));
    }
    report
}

fn test_sides(
    lab: &Lab,
    places: &[Place],
    selection: &Selection,
    console: Console,
    report: &mut Report,
) -> Result<()> {
    match &lab.kind {
        // One side, which can run everything.
        LabKind::Native => {
            test_places(lab, places, selection, Side::Host, console, report)?;
            doc_tests(report, selection)
        }
        LabKind::Vm(vm) => {
            if selection.side != Side::Vm {
                test_host(lab, vm, selection, report)?;
            }
            if selection.side != Side::Host {
                test_places(lab, places, selection, Side::Vm, console, report)?;
            }
            Ok(())
        }
    }
}

/// The riscv64 tests.
fn test_places(
    lab: &Lab,
    places: &[Place],
    selection: &Selection,
    side: Side,
    console: Console,
    report: &mut Report,
) -> Result<()> {
    let Some(mut args) = selection.cargo_args(side) else {
        return Ok(());
    };
    args.extend(selection.target_args());
    let built = lab.build("test", &args, Want::Tests)?;
    let root = &lab.workspace.root;
    let mut load = Load::of(&built);
    let root_name = root.to_string_lossy();
    let mut env = vec![("INSTA_WORKSPACE_ROOT", &*root_name)];
    // The VM has no assembler: there, the same tests have run on the host.
    if matches!(lab.kind, LabKind::Native) && Path::new(NATIVE_AS).exists() {
        env.push((AS_VAR, NATIVE_AS));
    }
    let gdb = if selection.wants(&built, gdb::NAME, &[gdb::NAME]) {
        take_gdb(lab, &mut load)?
    } else {
        None
    };
    let gdb = gdb.map(|path| path.to_string_lossy().into_owned());
    env.extend(gdb.as_deref().map(|path| (GDB_VAR, path)));
    let hosts = match selection.wants(&built, hosts::NAME, &hosts::WORDS) {
        true => hosts::take(&lab.kind, &mut load)?,
        false => Vec::new(),
    };
    env.extend(hosts.iter().map(|(name, path)| (*name, &**path)));
    add_tests(&mut load, &built, selection, &env);
    let data = files_under(root, &|path| is_test_data(root, path))?;
    load.files.extend(data);
    if side == Side::Vm && selection.side == Side::Both {
        load.skip(MODELS);
    }
    for (i, place) in places.iter().enumerate() {
        println!("== {place}");
        let name = place.to_string();
        if i == 1 && selection.slow == Slow::InTheFirst {
            println!(
                "without tests called {SLOW_PREFIX}…: they have run in {}",
                places[0]
            );
            load.skip(SLOW_PREFIX);
        }
        let run = lab.run(*place, &load, console, &mut |event| {
            report.event(&name, event)
        });
        if let Err(error) = run {
            report.lost(&name, &format!("{error:#}"));
        }
    }
    Ok(())
}

/// The debugger, which the VM gets with its libraries. A machine that has none does without.
fn take_gdb(lab: &Lab, load: &mut Load) -> Result<Option<PathBuf>> {
    let LabKind::Vm(vm) = &lab.kind else {
        return Ok(Some(PathBuf::from(NATIVE_GDB)).filter(|path| path.exists()));
    };
    let gdb = Gdb::open(vm)?;
    load.library_dirs.push(gdb.libraries());
    load.libraries.push(gdb.program());
    load.files.extend(gdb.files()?);
    Ok(Some(gdb.program()))
}

/// Where Debian has gdb.
const NATIVE_GDB: &str = "/usr/bin/gdb";
/// Debian's assembler on riscv64.
const NATIVE_AS: &str = "/usr/bin/riscv64-linux-gnu-as";
/// Folders whose files tests may read when they run: the VM has them at the same
/// path.
const DATA_DIRS: [&str; 2] = ["data", "snapshots"];

fn is_test_data(root: &Path, path: &Path) -> bool {
    let dir = path.strip_prefix(root).ok().and_then(Path::parent);
    let mut names = dir.into_iter().flatten();
    names.any(|name| DATA_DIRS.iter().any(|dir| name == *dir))
}

/// The tests that the host can run itself, with the tree's assembler at hand.
fn test_host(lab: &Lab, vm: &VmLab, selection: &Selection, report: &mut Report) -> Result<()> {
    let Some(args) = selection.cargo_args(Side::Host) else {
        return Ok(());
    };
    println!("== the host");
    let mut cargo = host_cargo();
    cargo
        .current_dir(&lab.workspace.root)
        .args(["test", "--locked"])
        .args(args)
        .args(selection.target_args());
    let built = build(
        cargo.arg("--message-format=json-render-diagnostics"),
        Want::Tests,
    )?;
    let tools = host_tools(&vm.tree, &lab.workspace.lab_dir().join("tools"))?;
    let assembler = tools.join("riscv64-linux-gnu-as");
    let mut load = Load::of(&built);
    add_tests(
        &mut load,
        &built,
        selection,
        &[(AS_VAR, &assembler.to_string_lossy())],
    );
    run_here(load.jobs, &mut |event| report.event("the host", event));
    if !selection.files.is_empty() {
        return Ok(());
    }
    doc_tests(report, selection)
}

fn add_tests(load: &mut Load, built: &Built, selection: &Selection, env: &[(&str, &str)]) {
    for executable in &built.executables {
        let kind = Kind::Tests {
            filters: selection.filters.clone(),
            skip: Vec::new(),
        };
        load.add(executable, kind, env);
    }
    load.jobs
        .sort_by(|a: &Job, b: &Job| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
}

/// Examples in the docs, which cargo alone can build and run.
fn doc_tests(report: &mut Report, selection: &Selection) -> Result<()> {
    let mut cargo = host_cargo();
    cargo.args(["test", "--quiet", "--locked", "--doc", "--no-fail-fast"]);
    cargo.args(selection.cargo_args(Side::Host).unwrap_or_default());
    let output = cargo
        .arg("--")
        .args(&selection.filters)
        .env("CARGO_TERM_COLOR", "never")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let [passed, failed, skipped] = doc_counts(&text);
    println!("== examples in the docs: {passed} passed, {failed} failed, {skipped} skipped");
    report.add(passed, skipped);
    if failed > 0 || !output.status.success() {
        println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let why = format!("{failed} failed ({})", output.status);
        report.fail("the host", "examples in the docs", &why);
    }
    Ok(())
}

/// Passed, failed and ignored, from rustdoc's closing lines.
fn doc_counts(text: &str) -> [usize; 3] {
    let mut counts = [0; 3];
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        for part in line.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (words.next(), words.next()) else {
                continue;
            };
            let kind = ["passed", "failed", "ignored"]
                .iter()
                .position(|kind| *kind == word);
            if let (Ok(number), Some(kind)) = (number.parse::<usize>(), kind) {
                counts[kind] += number;
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_data_is_known_by_its_folder() {
        let root = Path::new("/data/w");
        for (path, want) in [
            ("/data/w/rv64/tests/data/words.txt", true),
            ("/data/w/src/snapshots/a/frame.snap", true),
            ("/data/w/src/data", false),
            ("/data/w/src/lib.rs", false),
        ] {
            assert_eq!(is_test_data(root, Path::new(path)), want, "{path}");
        }
    }

    #[test]
    fn doc_tests_are_counted() {
        let text = "\nrunning 3 tests\n...\ntest result: ok. 2 passed; 0 failed; 1 ignored; \
                    0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: FAILED. 1 passed; 4 failed; 0 ignored; 0 measured; 0 filtered\n";
        assert_eq!(doc_counts(text), [3, 4, 1]);
    }
}
