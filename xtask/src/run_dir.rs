//! A folder for what one call of the lab needs while it runs.
//!
//! Key type: [`RunDir`]. Neighbour: `lab`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// A folder named after this process, and removed with it.
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    /// In `lab_dir`, which is made when it is not there.
    pub(crate) fn new(lab_dir: &Path) -> Result<Self> {
        fs::create_dir_all(lab_dir).with_context(|| lab_dir.display().to_string())?;
        // What calls left behind that were killed.
        for entry in fs::read_dir(lab_dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix("run-") else {
                continue;
            };
            if !Path::new("/proc").join(pid).exists() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let dir = lab_dir.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where the files are that programs kept.
    pub(crate) fn out(&self) -> PathBuf {
        self.0.join("out")
    }

    /// Empties [`Self::out`].
    pub(crate) fn clear_out(&self) -> Result<()> {
        let out = self.out();
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        Ok(fs::create_dir_all(&out)?)
    }

    /// Copies what programs kept into `to`.
    pub(crate) fn copy_out(&self, to: &Path) -> Result<()> {
        copy_all(&self.out(), to)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // If it stays, the next call removes it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            fs::create_dir_all(to)?;
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Writes a part of a file that the VM sent into `out`.
pub(crate) fn keep_file(out: &Path, name: &str, data: &[u8]) -> Result<()> {
    use std::{io::Write, path::Component};
    let name = Path::new(name);
    let plain = name
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    ensure!(
        plain,
        "the VM sent a file with the odd name {}",
        name.display()
    );
    let path = out.join(name);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = fs::File::options().append(true).create(true).open(path)?;
    Ok(file.write_all(data)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_of_killed_calls_are_removed() {
        let lab = std::env::temp_dir().join(format!("xtask-run-{}", std::process::id()));
        // Process numbers end below this.
        let (stale, live) = (lab.join("run-4194305"), lab.join("run-1"));
        for dir in [&stale, &live] {
            fs::create_dir_all(dir).unwrap();
        }
        let own = RunDir::new(&lab).unwrap();
        assert!(!stale.exists() && live.exists() && own.0.exists());
        let path = own.0.clone();
        drop(own);
        assert!(!path.exists());
        fs::remove_dir_all(lab).unwrap();
    }

    #[test]
    fn files_stay_in_the_out_folder_and_are_copied_from_there() {
        let lab = std::env::temp_dir().join(format!("xtask-out-{}", std::process::id()));
        let dir = RunDir::new(&lab).unwrap();
        dir.clear_out().unwrap();
        for odd in ["../x", "/etc/x", "a/../../x"] {
            assert!(keep_file(&dir.out(), odd, b"").is_err(), "{odd}");
        }
        keep_file(&dir.out(), "a/b.json", b"[1,").unwrap();
        keep_file(&dir.out(), "a/b.json", b"2]").unwrap();
        dir.copy_out(&lab.join("kept")).unwrap();
        dir.clear_out().unwrap();
        assert_eq!(fs::read(lab.join("kept/a/b.json")).unwrap(), b"[1,2]");
        assert_eq!(fs::read_dir(dir.out()).unwrap().count(), 0);
        fs::remove_dir_all(lab).unwrap();
    }
}
