//! Which shared libraries an executable needs.
//!
//! Key type: [`Libraries`]. Neighbour: `initramfs` packs them.
//! Source: the System V gABI, chapter "Dynamic Linking"; `ld.so(8)`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use object::{elf, read::elf::ElfFile64};

/// What an ELF file says that it needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    /// `DT_NEEDED`.
    names: Vec<String>,
    /// `DT_RUNPATH` and `DT_RPATH`, `$ORIGIN` put in.
    run_path: Vec<PathBuf>,
}

/// Where libraries are on the host, and where they go in the VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct Libraries {
    /// Folders of libraries that stand at the same path in the VM, such as those
    /// in which build scripts left theirs.
    pub(crate) same_path: Vec<PathBuf>,
    /// Folders of the tree, whose libraries go to [`SYSTEM_DIR`].
    pub(crate) system: Vec<PathBuf>,
}

/// Where the VM's loader looks.
pub(crate) const SYSTEM_DIR: &str = "/lib/riscv64-linux-gnu";

impl Libraries {
    /// Everything that the file `path` needs to be loaded, as (path in the VM,
    /// path on the host).
    pub(crate) fn closure(&self, path: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
        let mut found = BTreeMap::new();
        let mut to_read = vec![path.to_owned()];
        while let Some(path) = to_read.pop() {
            let needs = needs(&path)?;
            for name in &needs.names {
                let library = self.find(name, &needs.run_path);
                let (inside, host) = library.with_context(|| {
                    format!("{} needs {name}, which is nowhere", path.display())
                })?;
                if found.insert(inside, host.clone()).is_none() {
                    to_read.push(host);
                }
            }
        }
        Ok(found)
    }

    /// The library `name`.
    pub(crate) fn find(&self, name: &str, run_path: &[PathBuf]) -> Option<(PathBuf, PathBuf)> {
        let same = run_path
            .iter()
            .chain(&self.same_path)
            .map(|dir| dir.join(name));
        let system = |dir: &PathBuf| (Path::new(SYSTEM_DIR).join(name), dir.join(name));
        let all = same
            .map(|path| (path.clone(), path))
            .chain(self.system.iter().map(system));
        all.into_iter().find(|(_, host)| host.is_file())
    }
}

fn needs(path: &Path) -> Result<Needs> {
    let shown = || path.display().to_string();
    let bytes = fs::read(path).with_context(shown)?;
    let file = ElfFile64::<object::Endianness>::parse(&*bytes).with_context(shown)?;
    let machine = file.elf_header().e_machine.get(file.endian());
    ensure!(
        machine == elf::EM_RISCV,
        "{} is not a riscv64 program",
        path.display()
    );
    let table = file.elf_dynamic_table().with_context(shown)?;
    let origin = path.parent().unwrap_or(Path::new("/"));
    let mut needs = Needs::default();
    for entry in table.iter() {
        let text = || -> Result<String> {
            let bytes = table.string(entry).with_context(shown)?;
            Ok(String::from_utf8_lossy(bytes).into_owned())
        };
        match entry.tag {
            elf::DT_NEEDED => needs.names.push(text()?),
            elf::DT_RUNPATH | elf::DT_RPATH => {
                let dirs = text()?.replace("${ORIGIN}", "$ORIGIN");
                let dirs = dirs.replace("$ORIGIN", &origin.display().to_string());
                needs.run_path.extend(dirs.split(':').map(PathBuf::from));
            }
            _ => {}
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_riscv64_program_is_named() {
        let error = Libraries::default()
            .closure(Path::new("/nowhere/program"))
            .unwrap_err();
        assert!(error.to_string().contains("/nowhere/program"), "{error}");
        let error = Libraries::default()
            .closure(Path::new("Cargo.toml"))
            .unwrap_err();
        assert!(error.to_string().contains("Cargo.toml"), "{error}");
    }

    #[test]
    fn a_run_path_comes_before_the_system() {
        let dir = std::env::temp_dir().join(format!("xtask-elf-{}", std::process::id()));
        let (own, system) = (dir.join("own"), dir.join("system"));
        for made in [&own, &system] {
            fs::create_dir_all(made).unwrap();
            fs::write(made.join("liba.so"), "").unwrap();
        }
        let libraries = Libraries {
            same_path: vec![],
            system: vec![system.clone()],
        };
        let (inside, host) = libraries
            .find("liba.so", std::slice::from_ref(&own))
            .unwrap();
        assert_eq!((inside, host), (own.join("liba.so"), own.join("liba.so")));
        let (inside, host) = libraries.find("liba.so", &[]).unwrap();
        assert_eq!(inside, Path::new(SYSTEM_DIR).join("liba.so"));
        assert_eq!(host, system.join("liba.so"));
        assert_eq!(libraries.find("libb.so", &[]), None);
        fs::remove_dir_all(dir).unwrap();
    }
}
