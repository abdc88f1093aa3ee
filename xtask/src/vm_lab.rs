//! The lab that builds in the Debian tree and runs in a VM.
//!
//! Key type: [`VmLab`]. Neighbours: `tree`, `vendor` and `kernel` make what it
//! needs, `initramfs` packs, `vm` runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use lab_init::{
    job::{JOBS_PATH, Job},
    protocol::Event,
};

use crate::{
    cache::Cache,
    cargo::{Want, build},
    debian,
    elf::{Libraries, SYSTEM_DIR},
    enter::Inside,
    initramfs::Initramfs,
    kernel,
    lab::{Load, settings},
    machine::{Clock, Machine},
    run_dir::{RunDir, keep_file},
    tree::Tree,
    vendor,
    vm::{self, Console},
    workspace::{TARGET, Workspace, cache_dir},
};

/// How long a VM may say nothing. It sends a heartbeat every two seconds of its
/// own time, which runs slower than the host's when it counts instructions.
const SILENCE: Duration = Duration::from_secs(90);
const SILENCE_COUNTING: Duration = Duration::from_secs(600);

/// The lab in a VM.
pub(crate) struct VmLab {
    workspace: Workspace,
    pub(crate) cache: Cache,
    pub(crate) tree: Tree,
    cargo_home: PathBuf,
    pub(crate) stage: PathBuf,
}

impl VmLab {
    pub(crate) fn open(workspace: &Workspace) -> Result<Self> {
        let cache = Cache::open(cache_dir()?)?;
        let stage = cache.path("stage");
        fs::create_dir_all(&stage)?;
        let tree = Tree::open(&cache)?;
        let cargo_home = vendor::cargo_home(&cache, workspace)?;
        Ok(Self {
            workspace: workspace.clone(),
            cache,
            tree,
            cargo_home,
            stage,
        })
    }

    /// `cargo SUBCOMMAND` in the tree, for the riscv64 target.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = self.cargo_for_host(subcommand);
        // fmt has no target.
        if subcommand != "fmt" {
            cargo.args(["--target", TARGET]);
        }
        cargo
    }

    /// `cargo SUBCOMMAND` in the tree, for the host's own target.
    pub(crate) fn cargo_for_host(&self, subcommand: &str) -> Command {
        let target = TARGET.to_uppercase().replace('-', "_");
        let color = if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            "always"
        } else {
            "never"
        };
        let inside = Inside::new(&self.tree, &self.stage)
            .bind(&self.workspace.root)
            .bind(&self.workspace.target_dir)
            .bind(&self.cargo_home)
            .dir(&self.workspace.root)
            .env("CARGO_HOME", &self.cargo_home)
            // Apart from the host's cargo, which is another version.
            .env("CARGO_TARGET_DIR", self.workspace.lab_dir())
            .env("CARGO_NET_OFFLINE", "true")
            .env("CARGO_TERM_COLOR", color)
            .env("RUSTDOCFLAGS", "-D warnings")
            .env(
                &format!("CARGO_TARGET_{target}_LINKER"),
                "riscv64-linux-gnu-gcc",
            );
        let inside = settings().fold(inside, |inside, (name, value)| inside.env(&name, value));
        let mut cargo = inside.command("cargo");
        cargo.arg(subcommand);
        if subcommand != "fmt" {
            cargo.args(["--locked", "--offline"]);
        }
        cargo
    }

    /// Boots `machine`, runs `jobs` in it, and brings back what they kept.
    pub(crate) fn run(
        &self,
        machine: Machine,
        load: &Load,
        jobs: &[Job],
        dir: &RunDir,
        console: Console,
        sink: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let kernel = kernel::image(&self.cache, &self.tree, &self.stage, machine.kernel)?;
        let archive = dir.path().join("initramfs");
        self.initramfs(load, jobs)?
            .write(&archive)
            .context("writing the VM's file system")?;

        let kernel_dir = kernel.parent().context("kernel")?;
        let inside = Inside::new(&self.tree, &self.stage)
            .bind(kernel_dir)
            .bind(dir.path());
        let mut command = inside.command("qemu-system-riscv64");
        command
            .args(machine.qemu_args())
            .arg("-kernel")
            .arg(&kernel)
            .arg("-initrd")
            .arg(&archive);
        command.args(["-append", "console=ttyS0 quiet panic=-1"]);
        let silence = match machine.clock {
            Clock::Host => SILENCE,
            Clock::Instructions => SILENCE_COUNTING,
        };
        let mut kept = Ok(());
        vm::run(command, silence, console, &mut |event| match event {
            Event::File { name, data } => {
                if kept.is_ok() {
                    kept = keep_file(&dir.out(), &name, &data.0);
                }
            }
            event => sink(event),
        })?;
        kept
    }

    fn initramfs(&self, load: &Load, jobs: &[Job]) -> Result<Initramfs> {
        let init = self.build_init()?;
        let system = ["usr/lib/riscv64-linux-gnu", "usr/riscv64-linux-gnu/lib"];
        let mut libraries = Libraries {
            same_path: load.library_dirs.clone(),
            system: system.iter().map(|dir| self.tree.host_path(dir)).collect(),
        };
        let opened = self.opened(jobs, &mut libraries)?;
        let mut initramfs = Initramfs::new(&libraries)?;
        initramfs.add_elf(Path::new("/init"), &init, &libraries)?;
        for job in jobs {
            initramfs.add_elf(&job.path, &job.path, &libraries)?;
            initramfs.add_dir(&job.dir);
        }
        for library in &load.libraries {
            initramfs.add_elf(library, library, &libraries)?;
        }
        for (inside, host) in opened {
            initramfs.add_elf(&inside, &host, &libraries)?;
        }
        for file in &load.files {
            initramfs.add_file(file, file);
        }
        initramfs.add_bytes(Path::new(JOBS_PATH), serde_json::to_vec(jobs)?);
        Ok(initramfs)
    }

    /// Debian's libraries, if one of `jobs` opens them, which are libraries of the system then: as
    /// (path in the VM, path here).
    fn opened(&self, jobs: &[Job], libraries: &mut Libraries) -> Result<Vec<(PathBuf, PathBuf)>> {
        if !jobs.iter().any(|job| debian::is_opened_by(&job.name)) {
            return Ok(Vec::new());
        }
        let dir = debian::fetched(&self.cache, &self.tree, &self.stage)?;
        libraries.system.push(dir.clone());
        let both = |name| (Path::new(SYSTEM_DIR).join(name), dir.join(name));
        Ok(debian::names().map(both).collect())
    }

    fn build_init(&self) -> Result<PathBuf> {
        let mut cargo = self.cargo("build");
        cargo.args(["--quiet", "--package=lab-init", "--bin=lab-init"]);
        cargo.arg("--message-format=json-render-diagnostics");
        let built = build(&mut cargo, Want::Programs)?;
        let executable = built.executables.into_iter().next();
        Ok(executable.context("cargo built no lab-init")?.path)
    }
}
