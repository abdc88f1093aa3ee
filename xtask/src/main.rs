//! The lab, `cargo xtask`: builds, runs, tests and measures rvbpf on riscv64.
//!
//! On a riscv64 machine it does so directly. Elsewhere it makes, once and under
//! the user's cache folder, a private Debian tree with the cross toolchain and
//! QEMU, builds there, and runs in a VM:
//!
//! ```text
//! main ─ test, run, bench, ci ─ lab ─┬─ (native) ─────────────── lab_init::runner
//!                                    └─ vm_lab ─┬─ tree, enter, apt, kernel, clang, gdb, debian, vendor ─ cache
//!                                               ├─ cargo, elf, initramfs
//!                                               └─ vm, machine ═ serial line ═ lab_init
//! ```

mod apt;
mod bench;
mod cache;
mod cargo;
mod ci;
mod clang;
mod conformance;
mod corpus;
mod debian;
mod elf;
mod enter;
mod fuzz;
mod gdb;
mod hosts;
mod initramfs;
mod kernel;
mod lab;
mod licences;
mod machine;
mod process;
mod progress;
mod report;
mod run;
mod run_dir;
mod test;
mod tree;
mod vendor;
mod vm;
mod vm_lab;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    bench::BENCHES,
    fuzz::FuzzTarget,
    lab::{Lab, LabKind, Place},
    machine::{Clock, Cpu, Kernel, Machine},
    run::{Profile, Program, What},
    test::{Selection, Side, Slow},
    vm::Console,
};

/// The lab: builds, runs, tests and measures rvbpf on riscv64.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Shows the main job on a real library, and explains what it prints.
    Demo {
        /// The example to run; struct_ops is the one of tables.
        #[arg(default_value = "hook_sqlite")]
        name: String,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Runs the host's tests, then all tests in the VM: on rv64gc and rva23 with
    /// the stable kernel unless told otherwise.
    Test {
        /// Only tests whose names contain one of these.
        filters: Vec<String>,
        /// Only tests of this package; may be repeated.
        #[arg(short, long = "package", value_name = "PACKAGE")]
        packages: Vec<String>,
        /// Only tests in `tests/FILE.rs`; may be repeated. Builds nothing else.
        #[arg(short, long = "file", value_name = "FILE")]
        files: Vec<String>,
        /// Only on this machine, or only in the VM.
        #[arg(long, default_value = "both")]
        side: Side,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Measures: a table, and target/bench/NAME.json.
    Bench {
        /// The bench; all when left out.
        name: Option<String>,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Checks format, licences, clippy, docs and Rust 1.85, then runs `test`.
    Ci {
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Runs BPF vectors, interpreted and compiled: on all cpus unless told
    /// otherwise.
    Conformance {
        /// JSON objects, one a line: see examples/conformance.rs.
        file: std::path::PathBuf,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Tries random BPF programs until the time is over or one fails.
    Fuzz {
        /// What they are to find faults in. The verifier's need no riscv64: they
        /// run on this machine unless another is chosen.
        #[arg(long, default_value = "jit")]
        target: FuzzTarget,
        /// How long; 60 when neither this nor `--programs` is given.
        #[arg(long)]
        seconds: Option<u64>,
        /// How many programs; with `--target kernel`, that its verifier accepts.
        #[arg(long)]
        programs: Option<u64>,
        /// Where to begin; the clock when left out.
        #[arg(long)]
        seed: Option<String>,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Builds one program and runs it in the lab.
    Run {
        /// With optimisation.
        #[arg(long)]
        release: bool,
        /// Takes a file along, at the same path.
        #[arg(long = "file", value_name = "PATH")]
        files: Vec<std::path::PathBuf>,
        #[command(flatten)]
        machine: MachineArgs,
        /// `--example NAME`, `--bin NAME` (with `-p PACKAGE` before) or a file,
        /// and the program's arguments.
        #[arg(last = true)]
        program: Vec<String>,
    },
}

/// Which machine. On riscv64 it is this one, and nothing can be chosen.
#[derive(Args)]
struct MachineArgs {
    /// The processor; several for `test`.
    #[arg(long, value_delimiter = ',')]
    cpu: Vec<Cpu>,
    /// The kernel; several for `test`.
    #[arg(long, value_delimiter = ',')]
    kernel: Vec<Kernel>,
    /// The number of harts.
    #[arg(long, value_name = "HARTS", value_parser = clap::value_parser!(u16).range(1..=64))]
    smp: Option<u16>,
    /// One hart, and one nanosecond an instruction: counts repeat.
    #[arg(long, conflicts_with = "smp")]
    icount: bool,
    /// Shows the VM's console.
    #[arg(long)]
    console: bool,
}

impl MachineArgs {
    /// The places that are meant, in `lab`; `cpus` when none is chosen.
    fn places(&self, lab: &Lab, cpus: &[Cpu]) -> Result<Vec<Place>> {
        if let LabKind::Native = lab.kind {
            ensure!(
                !self.is_chosen(),
                "this is a riscv64 machine: there is no other to choose"
            );
            return Ok(vec![Place::Here]);
        }
        let cpus = if self.cpu.is_empty() { cpus } else { &self.cpu };
        let kernels = if self.kernel.is_empty() {
            &[Kernel::Stable]
        } else {
            &*self.kernel
        };
        let (harts, clock) = match self.icount {
            true => (1, Clock::Instructions),
            false => (self.smp.unwrap_or(2), Clock::Host),
        };
        let machines = kernels.iter().flat_map(|&kernel| {
            cpus.iter().map(move |&cpu| Machine {
                cpu,
                kernel,
                harts,
                clock,
            })
        });
        Ok(machines.map(Place::Vm).collect())
    }

    /// Where slow tests run: on every cpu that is asked for, else on the first that is not.
    fn slow_tests(&self) -> Slow {
        match self.cpu.is_empty() {
            true => Slow::InTheFirst,
            false => Slow::Everywhere,
        }
    }

    /// Whether any machine is chosen.
    fn is_chosen(&self) -> bool {
        let kind = !self.cpu.is_empty() || !self.kernel.is_empty();
        kind || self.smp.is_some() || self.icount
    }

    /// The one place that is meant.
    fn place(&self, lab: &Lab) -> Result<Place> {
        let places = self.places(lab, &[Cpu::U74])?;
        ensure!(
            places.len() == 1,
            "one machine at a time here: one --cpu and one --kernel"
        );
        Ok(places[0])
    }

    fn console(&self) -> Console {
        if self.console {
            Console::Shown
        } else {
            Console::Kept
        }
    }
}

/// What `test` runs on when nothing is chosen; slow tests on the first alone.
const TEST_CPUS: [Cpu; 2] = [Cpu::Rv64gc, Cpu::Rva23];

fn main() -> ExitCode {
    match xtask(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn xtask(command: Sub) -> Result<ExitCode> {
    match command {
        Sub::Demo { name, machine } => {
            let name = demo_example(&name);
            let what = What::Target(vec!["--example".to_owned(), name.to_owned()]);
            let program = Program {
                what,
                args: Vec::new(),
            };
            run_program(&program, Profile::Release, &[], &machine)
        }
        Sub::Run {
            release,
            files,
            machine,
            program,
        } => {
            let program = Program::parse(&program)?;
            let profile = if release {
                Profile::Release
            } else {
                Profile::Dev
            };
            run_program(&program, profile, &files, &machine)
        }
        Sub::Test {
            filters,
            packages,
            files,
            side,
            machine,
        } => {
            let selection = Selection {
                packages,
                files,
                filters,
                side,
                slow: machine.slow_tests(),
            };
            let lab = Lab::open()?;
            let places = machine.places(&lab, &TEST_CPUS)?;
            let report = test::test(&lab, &places, &selection, machine.console());
            Ok(exit(report.close()))
        }
        Sub::Bench { name, machine } => {
            let benches = match &name {
                Some(name) => std::slice::from_ref(bench::find(name)?),
                None => &BENCHES[..],
            };
            let lab = Lab::open()?;
            let place = machine.place(&lab)?;
            for bench in benches {
                bench::bench(&lab, place, bench, machine.console())?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Sub::Conformance { file, machine } => {
            let lab = Lab::open()?;
            let places = machine.places(&lab, Cpu::value_variants())?;
            let well = conformance::conformance(&lab, &places, &file, machine.console())?;
            Ok(exit(well))
        }
        Sub::Fuzz {
            target,
            seconds,
            programs,
            seed,
            machine,
        } => {
            let args = fuzz::arguments(target, seconds, programs, seed);
            if target == FuzzTarget::Verifier && !machine.is_chosen() {
                return Ok(exit(fuzz::here(&args)?));
            }
            let what = What::Target(fuzz::EXAMPLE.map(str::to_owned).into());
            run_program(&Program { what, args }, Profile::Release, &[], &machine)
        }
        Sub::Ci { machine } => {
            let lab = Lab::open()?;
            let places = machine.places(&lab, &TEST_CPUS)?;
            let selection = Selection::all(machine.slow_tests());
            Ok(exit(ci::ci(&lab, &places, &selection, machine.console())?))
        }
    }
}

/// The example that a demo's name stands for.
fn demo_example(name: &str) -> &str {
    match name {
        "struct_ops" => "struct_ops_plugin",
        other => other,
    }
}

fn exit(well: bool) -> ExitCode {
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_program(
    program: &Program,
    profile: Profile,
    files: &[std::path::PathBuf],
    machine: &MachineArgs,
) -> Result<ExitCode> {
    let lab = Lab::open()?;
    let place = machine.place(&lab)?;
    let mut load = run::load(&lab, program, profile, &[])?;
    for file in files {
        load.files.push(std::path::absolute(file)?);
    }
    let code = run::run(&lab, place, &load, machine.console())?;
    lab.run_dir.copy_out(&lab.workspace.bench_dir())?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn unknown_names_are_refused_with_those_there_are() {
        for (line, want) in [
            (
                ["xtask", "test", "--cpu", "z80"],
                "rv64gc, u74, rva22, rva23",
            ),
            (["xtask", "test", "--kernel", "bsd"], "stable, testing"),
        ] {
            let error = Cli::try_parse_from(line)
                .err()
                .map(|error| error.to_string());
            assert!(error.is_some_and(|text| text.contains(want)), "{line:?}");
        }
    }
}
