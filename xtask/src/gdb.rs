//! gdb for the guest, for the test in which it walks stacks: Debian's smallest, without Python.
//!
//! It is no part of the tree, since one test needs it: a folder of the cache holds it with those of
//! its libraries that the tree does not have.
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
    progress::Step,
    tree::SUITE,
    vm_lab::VmLab,
};

/// The variable that tells a test where it is.
pub(crate) const GDB_VAR: &str = "RVBPF_GDB";
/// A test that has this in its name wants it.
pub(crate) const NAME: &str = "gdb";

const PACKAGE: &str = "gdb-minimal";
/// What the tree has anyhow.
const IN_TREE: [&str; 3] = ["libc6", "libgcc-s1", "libstdc++6"];
const ROOM: RoomMib = RoomMib(200);

/// A debugger that is there.
pub(crate) struct Gdb {
    dir: PathBuf,
}

impl Gdb {
    /// The lab's gdb, fetched when it is not there.
    pub(crate) fn open(lab: &VmLab) -> Result<Self> {
        let make = |dir: &Path| {
            let step = Step::new("fetching gdb (once; about 10 MB)");
            let apt = Apt::update(&lab.tree, &lab.stage, dir, (SUITE, GUEST_ARCH), &step)?;
            let mut packages = vec![PACKAGE.to_owned()];
            let needs = apt.depends(PACKAGE)?;
            packages.extend(needs.into_iter().filter(|name| !IN_TREE.contains(&&**name)));
            for deb in apt.download(&packages, &step)? {
                for pattern in ["./usr/bin/gdb*", "./usr/lib/riscv64-linux-gnu/*.so*"] {
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
}
