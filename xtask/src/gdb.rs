//! gdb for the guest, for the test in which it walks stacks.
//!
//! It is no part of the tree, since one test needs it: a folder of the cache holds it with those of
//! its libraries that the tree does not have, and with the part of Python's own library without
//! which it does not start.
//!
//! Key type: [`Gdb`]. Neighbours: `apt` fetches, `test` takes it along.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

use crate::{
    apt::{Apt, GUEST_ARCH},
    cache::RoomMib,
    initramfs::files_under,
    progress::Step,
    tree::SUITE,
    vm_lab::VmLab,
};

/// The variable that tells a test where it is.
pub(crate) const GDB_VAR: &str = "RVBPF_GDB";
/// A test that has this in its name wants it.
pub(crate) const NAME: &str = "gdb";

const PACKAGE: &str = "gdb";
const ROOM: RoomMib = RoomMib(500);
/// What is taken out of the packages: the program, libraries, and what Python cannot do without.
const PATTERNS: [&str; 3] = [
    "./usr/bin/gdb",
    "./usr/lib/riscv64-linux-gnu/*.so*",
    "./usr/lib/python3.*",
];
/// Packages of this kind alone have files of Python that are wanted.
const PYTHON: &str = "-minimal";

/// A debugger that is there.
pub(crate) struct Gdb {
    dir: PathBuf,
}

impl Gdb {
    /// The lab's gdb, fetched when it is not there.
    pub(crate) fn open(lab: &VmLab) -> Result<Self> {
        let make = |dir: &Path| {
            let step = Step::new("fetching gdb (once; about 50 MB)");
            let apt = Apt::update(&lab.tree, &lab.stage, dir, (SUITE, GUEST_ARCH), &step)?;
            let packages = with_libraries(&apt, lab, &[PACKAGE])?;
            for deb in apt.download(&packages, &step)? {
                let is_python = deb.to_string_lossy().contains(PYTHON);
                for pattern in &PATTERNS[..if is_python { 3 } else { 2 }] {
                    apt.extract(&deb, pattern, dir)?;
                }
            }
            fs::write(dir.join("packages"), packages.join("\n"))?;
            fs::remove_dir_all(dir.join("apt"))?;
            step.done();
            Ok(())
        };
        let dir = lab.cache.folder(("gdb", SUITE), 1, ROOM, make)?;
        let gdb = Self { dir };
        let program = gdb.program();
        ensure!(program.is_file(), "{} is no program", program.display());
        Ok(gdb)
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.dir.join("usr/bin/gdb")
    }

    pub(crate) fn libraries(&self) -> PathBuf {
        self.dir.join("usr/lib/riscv64-linux-gnu")
    }

    /// Python's files.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        // Some are links to where nothing is: settings of the system.
        let is_python =
            |path: &Path| path.extension().is_some_and(|end| end == "py") && path.is_file();
        files_under(&self.dir.join("usr/lib"), &is_python)
    }
}

/// These packages, and those of libraries that they need and the tree does not have.
pub(crate) fn with_libraries(apt: &Apt<'_>, lab: &VmLab, packages: &[&str]) -> Result<Vec<String>> {
    let installed = lab.tree.host_path("var/lib/dpkg/info");
    let is_there = |name: &str| installed.join(format!("{name}:{GUEST_ARCH}.list")).exists();
    let is_wanted = |name: &str| name.starts_with("lib") || name.starts_with("zlib");
    let mut packages: Vec<String> = packages.iter().map(ToString::to_string).collect();
    let mut asked = 0;
    while let Some(package) = packages.get(asked).cloned() {
        asked += 1;
        for name in apt.depends(&package)? {
            if is_wanted(&name) && !is_there(&name) && !packages.contains(&name) {
                packages.push(name);
            }
        }
    }
    Ok(packages)
}
