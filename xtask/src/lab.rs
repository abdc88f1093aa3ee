//! The two places in which riscv64 code can run: this machine, or a VM on it.
//!
//! Key types: [`Lab`], [`Place`], [`Load`]. Neighbours: `vm_lab` is the VM's half; `test`,
//! `run`, `bench` and `ci` use a lab without knowing which it is.

use std::{
    env::{self, consts::ARCH},
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use lab_init::{
    job::{Job, Kind, OUT_DIR, OUT_VAR},
    protocol::Event,
    runner,
};

use crate::{
    cargo::{Built, Executable, Want, build},
    gdb::GDB_VAR,
    machine::Machine,
    run_dir::RunDir,
    vm::Console,
    vm_lab::VmLab,
    workspace::{Workspace, host_cargo},
};

/// The variable that tells tests where the assembler is; objdump and objcopy are
/// beside it.
pub(crate) const AS_VAR: &str = "RVBPF_AS";
/// The variable that says what a bench is to measure.
pub(crate) const MEASURE_VAR: &str = "RVBPF_MEASURE";
/// The variable that says where a bench finds what was made for it.
pub(crate) const MATERIAL_VAR: &str = "RVBPF_MATERIAL";

/// Where riscv64 code is built and run.
pub(crate) struct Lab {
    pub(crate) workspace: Workspace,
    pub(crate) run_dir: RunDir,
    pub(crate) kind: LabKind,
}

/// The two kinds of lab.
pub(crate) enum LabKind {
    /// This machine, which is a riscv64 one.
    Native,
    /// The Debian tree and the VM.
    Vm(VmLab),
}

/// Where a run happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Right here.
    Here,
    /// In a VM like this.
    Vm(Machine),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("this machine"),
            Self::Vm(machine) => machine.fmt(f),
        }
    }
}

/// What a run takes along.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) jobs: Vec<Job>,
    /// Shared libraries that stand at the same path in the VM.
    pub(crate) libraries: Vec<PathBuf>,
    /// Folders in which libraries may be that executables need.
    pub(crate) library_dirs: Vec<PathBuf>,
    /// Other files that stand at the same path in the VM.
    pub(crate) files: Vec<PathBuf>,
}

impl Load {
    /// A load with what a build made, and no jobs yet.
    pub(crate) fn of(built: &Built) -> Self {
        Self {
            libraries: built.libraries.clone(),
            library_dirs: built.library_dirs.clone(),
            ..Self::default()
        }
    }

    /// Adds a job that runs `executable`.
    pub(crate) fn add(&mut self, executable: &Executable, kind: Kind, env: &[(&str, &str)]) {
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.jobs.push(Job {
            name: executable.name.clone(),
            path: executable.path.clone(),
            dir: executable.dir.clone(),
            env: env.collect(),
            kind,
            launcher: Vec::new(),
        });
    }

    /// Leaves out the tests whose names contain `name`.
    pub(crate) fn skip(&mut self, name: &str) {
        for job in &mut self.jobs {
            if let Kind::Tests { skip, .. } = &mut job.kind {
                skip.push(name.to_owned());
            }
        }
    }
}

impl Lab {
    /// The lab of this machine, made ready.
    pub(crate) fn open() -> Result<Self> {
        let workspace = Workspace::find()?;
        let run_dir = RunDir::new(&workspace.lab_dir())?;
        let kind = match ARCH {
            "riscv64" => LabKind::Native,
            _ => LabKind::Vm(VmLab::open(&workspace)?),
        };
        Ok(Self {
            workspace,
            run_dir,
            kind,
        })
    }

    /// `cargo SUBCOMMAND` for the riscv64 target, in the workspace's root.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        match &self.kind {
            LabKind::Native => {
                let mut cargo = host_cargo();
                cargo.current_dir(&self.workspace.root).arg(subcommand);
                cargo.env("RUSTDOCFLAGS", "-D warnings");
                // fmt knows no lock file.
                cargo.args((subcommand != "fmt").then_some("--locked"));
                cargo
            }
            LabKind::Vm(lab) => lab.cargo(subcommand),
        }
    }

    /// Builds for the riscv64 target: `cargo SUBCOMMAND ARGS`.
    pub(crate) fn build(&self, subcommand: &str, args: &[&str], want: Want) -> Result<Built> {
        let mut cargo = self.cargo(subcommand);
        build(
            cargo
                .args(args)
                .arg("--message-format=json-render-diagnostics"),
            want,
        )
    }

    /// Runs `load` in `place` and tells `sink` what happens. What programs kept
    /// is in the run folder until the next run.
    pub(crate) fn run(
        &self,
        place: Place,
        load: &Load,
        console: Console,
        sink: &mut dyn FnMut(Event),
    ) -> Result<()> {
        self.run_dir.clear_out()?;
        match (&self.kind, place) {
            (LabKind::Vm(lab), Place::Vm(machine)) => {
                let mut jobs = env_for(load, Path::new(OUT_DIR));
                // Snapshots are compared there and reviewed here.
                set_env(&mut jobs, "INSTA_UPDATE", "no");
                lab.run(machine, load, &jobs, &self.run_dir, console, sink)
            }
            _ => {
                run_here(env_for(load, &self.run_dir.out()), sink);
                Ok(())
            }
        }
    }
}

/// Runs jobs on this machine, each ended when we are.
pub(crate) fn run_here(mut jobs: Vec<Job>, sink: &mut dyn FnMut(Event)) {
    for job in &mut jobs {
        job.launcher = ["setpriv", "--pdeathsig", "KILL", "--"]
            .map(str::to_owned)
            .into();
    }
    runner::run(&jobs, sink);
}

/// The jobs of `load` with the variables that all programs get.
fn env_for(load: &Load, out: &Path) -> Vec<Job> {
    let mut jobs = load.jobs.clone();
    set_env(&mut jobs, OUT_VAR, &out.display().to_string());
    set_env(&mut jobs, "RUST_BACKTRACE", "1");
    for (name, value) in settings() {
        set_env(&mut jobs, &name, &value);
    }
    let dirs: Vec<_> = load
        .library_dirs
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    if !dirs.is_empty() {
        set_env(&mut jobs, "LD_LIBRARY_PATH", &dirs.join(":"));
    }
    jobs
}

/// What the user sets for tests and build scripts, such as a seed: variables
/// that start with `RVBPF_`, but those that name something on this machine or
/// that the lab sets itself.
pub(crate) fn settings() -> impl Iterator<Item = (String, String)> {
    const NOT: [&str; 5] = [OUT_VAR, MEASURE_VAR, MATERIAL_VAR, AS_VAR, GDB_VAR];
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("RVBPF_") && !NOT.contains(&name.as_str()))
}

fn set_env(jobs: &mut [Job], name: &str, value: &str) {
    for job in jobs {
        job.env
            .entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    }
}
