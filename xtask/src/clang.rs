//! clang, for benches whose programs are C: it compiles for BPF, and for riscv64 as their peer.
//!
//! It is no part of the tree, since only benches need it: a folder of the cache holds what the tree
//! does not, and is bound into it. What they share, LLVM's library, the tree has for rustc's sake.
//!
//! Key type: [`Clang`]. Neighbours: `apt` fetches, `enter` runs it in the tree, `corpus` uses it.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::{
    apt::{Apt, keep},
    cache::RoomMib,
    enter::Inside,
    lab::{Lab, LabKind},
    process::probe,
    progress::Step,
    tree::{SUITE, debian_arch},
    vm_lab::VmLab,
};

/// The version whose LLVM the suite's rustc is linked with.
const VERSION: &str = "19";
const ROOM: RoomMib = RoomMib(1 << 10);

/// A compiler that is there.
pub(crate) enum Clang<'a> {
    /// Of this machine.
    Here,
    /// In the tree, from this folder.
    InTree(&'a VmLab, PathBuf),
}

impl<'a> Clang<'a> {
    /// The lab's clang, fetched when it is not there.
    pub(crate) fn open(lab: &'a Lab) -> Result<Self> {
        match &lab.kind {
            LabKind::Native => {
                let there = probe(Command::new("clang").arg("--version"));
                ensure!(there, "this bench compiles C for BPF: install clang");
                Ok(Self::Here)
            }
            LabKind::Vm(lab) => Ok(Self::InTree(lab, fetched(lab)?)),
        }
    }

    /// The command `clang`, which sees `dirs` and works in the first of them.
    pub(crate) fn command(&self, dirs: &[&Path]) -> Command {
        match self {
            Self::Here => {
                let mut clang = Command::new("clang");
                if let Some(dir) = dirs.first() {
                    clang.current_dir(dir);
                }
                clang
            }
            Self::InTree(lab, files) => {
                let inside = Inside::new(&lab.tree, &lab.stage).bind(files);
                let inside = dirs.iter().fold(inside, |inside, dir| inside.bind(dir));
                let inside = match dirs.first() {
                    Some(dir) => inside.dir(dir),
                    None => inside,
                };
                let inside = inside.env("LD_LIBRARY_PATH", files.join("lib").display().to_string());
                inside.command(&files.join("bin/clang").display().to_string())
            }
        }
    }
}

/// The folder with what the tree lacks: `bin/clang` and `lib/libclang-cpp`.
fn fetched(lab: &VmLab) -> Result<PathBuf> {
    let make = |dir: &Path| {
        let step = Step::new("fetching clang (once; about 50 MB)");
        let arch = debian_arch(ARCH)?;
        let apt = Apt::update(&lab.tree, &lab.stage, dir, (SUITE, arch), &step)?;
        let packages = [format!("clang-{VERSION}"), format!("libclang-cpp{VERSION}")];
        let files = dir.join("files");
        fs::create_dir(&files)?;
        for deb in apt.download(&packages, &step)? {
            for pattern in ["*/bin/clang", "*/libclang-cpp.so*"] {
                apt.extract(&deb, pattern, &files)?;
            }
        }
        for (name, place) in [
            ("clang", "bin/clang".to_owned()),
            (
                "libclang-cpp.so",
                format!("lib/libclang-cpp.so.{VERSION}.1"),
            ),
        ] {
            keep(&files, name, &dir.join(place))?;
        }
        fs::remove_dir_all(dir.join("apt"))?;
        fs::remove_dir_all(files)?;
        step.done();
        Ok(())
    };
    let key = format!("{SUITE}-{VERSION}");
    lab.cache.folder(("clang", &key), 1, ROOM, make)
}
