//! Debian's libraries, for programs that hook functions of those that everybody has.
//!
//! They are no part of the tree, since few programs open them: a folder of the cache holds what
//! Debian's packages for riscv64 hold, stripped as they are, and what those libraries need. In the
//! VM they stand where the loader looks. On a riscv64 machine its own are used, and the program
//! says what is missing.
//!
//! Key functions: [`is_opened_by`], [`fetched`]. Neighbours: `apt` fetches, `vm_lab` packs.

use std::{fs, path::Path, path::PathBuf};

use anyhow::Result;

use crate::{
    apt::{Apt, GUEST_ARCH, keep},
    cache::{Cache, RoomMib},
    progress::Step,
    tree::{SUITE, Tree},
};

/// The packages, and in each the library: zlib, OpenSSL, and what the latter needs besides.
const PACKAGES: [(&str, &str); 3] = [
    ("zlib1g", "libz.so.1"),
    ("libssl3t64", "libcrypto.so.3"),
    ("libzstd1", "libzstd.so.1"),
];
/// The names of the programs, examples, benches and test files that open them.
const OPENED_BY: [&str; 3] = ["any", "attach", "hook_any"];
const ROOM: RoomMib = RoomMib(256);

/// The libraries in the folder that [`fetched`] gives.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PACKAGES.into_iter().map(|(_, library)| library)
}

/// Whether the program of this name opens them.
pub(crate) fn is_opened_by(program: &str) -> bool {
    OPENED_BY.contains(&program)
}

/// The folder with the libraries, fetched when it is not there.
pub(crate) fn fetched(cache: &Cache, tree: &Tree, stage: &Path) -> Result<PathBuf> {
    let make = |dir: &Path| {
        let step = Step::new("fetching libraries to hook (once; about 3 MB)");
        let apt = Apt::update(tree, stage, dir, (SUITE, GUEST_ARCH), &step)?;
        let files = dir.join("files");
        fs::create_dir(&files)?;
        let packages = PACKAGES.map(|(package, _)| package.to_owned());
        for deb in apt.download(&packages, &step)? {
            apt.extract(&deb, "*/lib*.so.*", &files)?;
        }
        for library in names() {
            keep(&files, library, &dir.join(library))?;
        }
        fs::remove_dir_all(dir.join("apt"))?;
        fs::remove_dir_all(files)?;
        step.done();
        Ok(())
    };
    cache.folder(("libraries", SUITE), 1, ROOM, make)
}
