//! The kernels that the VM boots, from Debian's riscv64 packages.
//!
//! Key function: [`image`]. Neighbours: `apt` fetches, `machine` names them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};

use crate::{
    apt::{Apt, GUEST_ARCH},
    cache::{Cache, RoomMib},
    initramfs::files_under,
    machine::Kernel,
    progress::Step,
    tree::{SUITE, Tree},
};

/// The package that depends on the suite's kernel.
const META_PACKAGE: &str = "linux-image-riscv64";
/// The image in a package: in `/boot`, or from 7.0 on beside its modules.
const IMAGE_PATTERN: &str = "*/vmlinu[xz]*";
/// What the packages that make up a kernel are called. From 7.0 on the image
/// package holds no file and depends on the others.
const PARTS: [&str; 2] = ["linux-image-", "linux-binary-"];
const ROOM: RoomMib = RoomMib(2 << 10);

/// The kernel's image, fetched when it is not there.
pub(crate) fn image(cache: &Cache, tree: &Tree, stage: &Path, kernel: Kernel) -> Result<PathBuf> {
    let (name, suite) = match kernel {
        Kernel::Stable => ("stable", SUITE),
        Kernel::Testing => ("testing", "forky"),
    };
    let make = |dir: &Path| {
        let step = Step::new(&format!("fetching the {name} kernel (once; about 100 MB)"));
        let apt = Apt::update(tree, stage, dir, (suite, GUEST_ARCH), &step)?;
        let packages = parts(&apt)?;
        let files = dir.join("files");
        fs::create_dir(&files)?;
        for deb in apt.download(&packages, &step)? {
            apt.extract(&deb, IMAGE_PATTERN, &files)?;
        }
        let images = files_under(&files, &|_| true)?;
        ensure!(
            images.len() == 1,
            "{} hold {} kernels, not one",
            packages.join(", "),
            images.len()
        );
        fs::rename(&images[0], dir.join("image"))?;
        fs::write(dir.join("packages"), packages.join("\n"))?;
        fs::remove_dir_all(dir.join("apt"))?;
        fs::remove_dir_all(files)?;
        step.done();
        Ok(())
    };
    // Two kinds of kernel, each with one folder.
    Ok(cache.folder(("kernel", name), 2, ROOM, make)?.join("image"))
}

/// The packages that make up the suite's kernel.
fn parts(apt: &Apt<'_>) -> Result<Vec<String>> {
    let mut parts = Vec::new();
    let mut to_ask = vec![META_PACKAGE.to_owned()];
    while let Some(package) = to_ask.pop() {
        for name in apt.depends(&package)? {
            let part = PARTS.iter().any(|prefix| name.starts_with(prefix));
            if part && !parts.contains(&name) {
                parts.push(name.clone());
                to_ask.push(name);
            }
        }
    }
    if parts.is_empty() {
        bail!("the package index names no kernel behind {META_PACKAGE}");
    }
    Ok(parts)
}
