//! The VM's file system: what runs, what that needs, and nothing else.
//!
//! Key type: [`Initramfs`]. Neighbours: `elf` says which libraries, `vm` boots
//! it. Source: `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use cpio::{NewcBuilder, newc};

use crate::elf::Libraries;

const DIR_MODE: u32 = 0o040_755;
const FILE_MODE: u32 = 0o100_755;
/// Libraries that programs load without naming them: for unwinding, and for
/// ending threads.
const ALWAYS: [&str; 2] = ["libgcc_s.so.1", "libc.so.6"];
/// Where programs say that their loader is.
const LOADER: &str = "/lib/ld-linux-riscv64-lp64d.so.1";

enum Entry {
    Dir,
    HostFile(PathBuf),
    Bytes(Vec<u8>),
}

/// A file system in the making. Paths are absolute, as seen in the VM.
#[derive(Default)]
pub(crate) struct Initramfs {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Initramfs {
    /// With the loader and the libraries that every program may need.
    pub(crate) fn new(libraries: &Libraries) -> Result<Self> {
        let mut this = Self::default();
        // The kernel opens it for the first process before anything is mounted.
        this.add_dir(Path::new("/dev"));
        let loader = Path::new(LOADER);
        let name = loader.file_name().context("loader")?.to_string_lossy();
        for library in ALWAYS.into_iter().chain([&*name]) {
            let found = libraries.find(library, &[]);
            let (inside, host) = found.with_context(|| format!("the tree has no {library}"))?;
            if library == name {
                this.add_file(loader, &host);
            }
            this.add_file(&inside, &host);
        }
        Ok(this)
    }

    /// A folder, and those above it.
    pub(crate) fn add_dir(&mut self, path: &Path) {
        for dir in path.ancestors().filter(|dir| dir.parent().is_some()) {
            self.entries.entry(dir.to_owned()).or_insert(Entry::Dir);
        }
    }

    /// The host's file `host` as `path`.
    pub(crate) fn add_file(&mut self, path: &Path, host: &Path) {
        self.add(path, Entry::HostFile(host.to_owned()));
    }

    /// A file with these bytes.
    pub(crate) fn add_bytes(&mut self, path: &Path, bytes: Vec<u8>) {
        self.add(path, Entry::Bytes(bytes));
    }

    /// The host's executable or library `host` as `path`, with the libraries
    /// that it needs.
    pub(crate) fn add_elf(
        &mut self,
        path: &Path,
        host: &Path,
        libraries: &Libraries,
    ) -> Result<()> {
        self.add_file(path, host);
        for (inside, host) in libraries.closure(host)? {
            self.add_file(&inside, &host);
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        if let Some(dir) = path.parent() {
            self.add_dir(dir);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes it as a cpio archive. Sorted by path: folders come before what is
    /// in them.
    pub(crate) fn write(&self, to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| to.display().to_string())?;
        let mut out = BufWriter::new(file);
        for (path, entry) in &self.entries {
            let shown = || path.display().to_string();
            let name = path.strip_prefix("/").unwrap_or(path);
            let name = std::str::from_utf8(name.as_os_str().as_bytes()).with_context(shown)?;
            let builder = NewcBuilder::new(name).nlink(1);
            out = match entry {
                Entry::Dir => builder.mode(DIR_MODE).nlink(2).write(out, 0).finish()?,
                Entry::Bytes(bytes) => {
                    let len_bytes = u32::try_from(bytes.len()).with_context(shown)?;
                    let mut writer = builder.mode(FILE_MODE).write(out, len_bytes);
                    writer.write_all(bytes)?;
                    writer.finish()?
                }
                Entry::HostFile(host) => {
                    let mut file = File::open(host).with_context(|| host.display().to_string())?;
                    let len_bytes = u32::try_from(file.metadata()?.len()).with_context(shown)?;
                    let mut writer = builder.mode(FILE_MODE).write(out, len_bytes);
                    io::copy(&mut file, &mut writer).with_context(shown)?;
                    writer.finish()?
                }
            };
        }
        newc::trailer(out)?.flush()?;
        Ok(())
    }
}

/// All files under `dir` for which `wanted` holds, with folders in no order.
pub(crate) fn files_under(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, entry.path());
            let hidden = entry.file_name().as_bytes().starts_with(b".");
            if kind.is_dir() && !hidden && entry.file_name() != "target" {
                folders.push(path);
            } else if wanted(&path) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_reads_back() {
        let dir = std::env::temp_dir().join(format!("xtask-cpio-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let host = dir.join("host");
        fs::write(&host, vec![7; 70_001]).unwrap();
        let mut initramfs = Initramfs::default();
        initramfs.add_file(Path::new("/a/b/file"), &host);
        initramfs.add_bytes(Path::new("/a/text"), b"text".to_vec());
        let archive = dir.join("cpio");
        initramfs.write(&archive).unwrap();

        let mut input = File::open(&archive).unwrap();
        let mut got = Vec::new();
        loop {
            let reader = newc::Reader::new(input).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            got.push((entry.name().to_owned(), entry.mode(), entry.file_size()));
            input = reader.finish().unwrap();
        }
        let want = [
            ("a", DIR_MODE, 0),
            ("a/b", DIR_MODE, 0),
            ("a/b/file", FILE_MODE, 70_001),
            ("a/text", FILE_MODE, 4),
        ];
        let want: Vec<_> = want
            .map(|(name, mode, size)| (name.to_owned(), mode, size))
            .into();
        assert_eq!(got, want);
        fs::remove_dir_all(dir).unwrap();
    }
}
