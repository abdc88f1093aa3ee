//! Programs of other makers that are hosts for hooks: Debian's Python, which opens us as an
//! extension, and its jemalloc, which is preloaded.
//!
//! They are no part of the tree, since one test file needs them: a folder of the cache holds them
//! with those of their libraries that the tree does not have. Of Python's own library it is the
//! part without which it does not start, and `ctypes`.
//!
//! Key type: [`Hosts`]. Neighbours: `apt` fetches, `gdb` knows what a package needs, `test` takes
//! them along.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

use crate::{
    apt::{Apt, GUEST_ARCH},
    cache::RoomMib,
    gdb::with_libraries,
    initramfs::files_under,
    lab::{LabKind, Load},
    progress::Step,
    tree::SUITE,
    vm_lab::VmLab,
};

/// The test file that wants them.
pub(crate) const NAME: &str = "host_process";
/// Its tests that have one of these in their names want them.
pub(crate) const WORDS: [&str; 2] = ["python", "jemalloc"];
/// The variables that tell it where they are.
const PYTHON_VAR: &str = "RVBPF_PYTHON";
const JEMALLOC_VAR: &str = "RVBPF_JEMALLOC";

/// The suite's Python.
const PYTHON: &str = "python3.13";
const PACKAGES: [&str; 4] = [
    "python3.13-minimal",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "libjemalloc2",
];
const JEMALLOC: &str = "libjemalloc.so.2";
const LIBRARIES: &str = "usr/lib/riscv64-linux-gnu";
/// What is taken out of all packages, of those whose names end in [`MINIMAL`], and of the others.
const OF_ALL: [&str; 2] = ["./usr/bin/python3.*", "./usr/lib/riscv64-linux-gnu/*.so*"];
const OF_MINIMAL: [&str; 1] = ["./usr/lib/python3.*"];
const OF_OTHERS: [&str; 2] = [
    "./usr/lib/python3.*/ctypes/*",
    "./usr/lib/python3.*/lib-dynload/_ctypes.*",
];
const MINIMAL: &str = "-minimal";
const ROOM: RoomMib = RoomMib(100);

/// Where each is, for the variables of the test.
pub(crate) type Places = Vec<(&'static str, String)>;

/// The hosts that the VM gets, or those of this machine; what it does not have is left out.
pub(crate) fn take(lab: &LabKind, load: &mut Load) -> Result<Places> {
    let (python, jemalloc) = match lab {
        LabKind::Native => (
            Path::new("/usr/bin/python3").to_owned(),
            Path::new("/").join(LIBRARIES).join(JEMALLOC),
        ),
        LabKind::Vm(vm) => {
            let hosts = Hosts::open(vm)?;
            let (python, jemalloc) = (hosts.python(), hosts.jemalloc());
            load.library_dirs.push(hosts.dir.join(LIBRARIES));
            load.libraries.extend([python.clone(), jemalloc.clone()]);
            load.libraries.extend(hosts.files("so")?);
            load.files.extend(hosts.files("py")?);
            (python, jemalloc)
        }
    };
    let places = [(PYTHON_VAR, python), (JEMALLOC_VAR, jemalloc)];
    let there = places.into_iter().filter(|(_, path)| path.exists());
    Ok(there
        .map(|(name, path)| (name, path.display().to_string()))
        .collect())
}

/// Those of the lab.
struct Hosts {
    dir: PathBuf,
}

impl Hosts {
    /// Fetched when they are not there.
    fn open(lab: &VmLab) -> Result<Self> {
        let make = |dir: &Path| {
            let step = Step::new("fetching Python and jemalloc (once; about 6 MB)");
            let apt = Apt::update(&lab.tree, &lab.stage, dir, (SUITE, GUEST_ARCH), &step)?;
            let packages = with_libraries(&apt, lab, &PACKAGES)?;
            for deb in apt.download(&packages, &step)? {
                let more = match deb.to_string_lossy().contains(MINIMAL) {
                    true => &OF_MINIMAL[..],
                    false => &OF_OTHERS[..],
                };
                for pattern in OF_ALL.iter().chain(more) {
                    apt.extract(&deb, pattern, dir)?;
                }
            }
            fs::remove_dir_all(dir.join("apt"))?;
            step.done();
            Ok(())
        };
        let dir = lab.cache.folder(("hosts", SUITE), 1, ROOM, make)?;
        let hosts = Self { dir };
        for file in [hosts.python(), hosts.jemalloc()] {
            ensure!(file.is_file(), "{} is not there", file.display());
        }
        Ok(hosts)
    }

    fn python(&self) -> PathBuf {
        self.dir.join("usr/bin").join(PYTHON)
    }

    fn jemalloc(&self) -> PathBuf {
        self.dir.join(LIBRARIES).join(JEMALLOC)
    }

    /// Python's files whose names end so.
    fn files(&self, extension: &str) -> Result<Vec<PathBuf>> {
        // Some are links to where nothing is: settings of the system.
        let is_meant =
            |path: &Path| path.extension().is_some_and(|end| end == extension) && path.is_file();
        files_under(&self.dir.join("usr/lib").join(PYTHON), &is_meant)
    }
}
