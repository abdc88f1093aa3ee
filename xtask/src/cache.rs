//! Folders that are made once and kept: the Debian tree, kernels, vendored
//! crates.
//!
//! Such a folder is filled under a temporary name and renamed when it is whole,
//! so whatever interrupts the making, the next call begins it anew. Who makes one
//! holds the cache's lock, and hands it on to the programs that help to make it:
//! a helper that outlives us keeps others from removing the folder under it.
//!
//! Key type: [`Cache`]. Neighbours: `tree`, `kernel`, `vendor`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{FlockOperation, flock, statvfs},
    io::{Errno, FdFlags, fcntl_setfd},
};
use sha2::{Digest, Sha256};

use crate::process::output_of;

/// The lab's folder in the user's cache.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

/// How much room the making of a folder takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoomMib(pub(crate) u64);

impl Cache {
    /// The cache in `dir`, made when it is not there.
    pub(crate) fn open(dir: PathBuf) -> Result<Self> {
        let made = fs::create_dir_all(&dir);
        made.with_context(|| format!("cannot make the lab's cache folder {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Where `name` is or will be.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The folder `KIND-KEY`, made by `make` when it is not there. `make` fills
    /// the folder it is given. Of each kind the `keep` used last stay.
    pub(crate) fn folder(
        &self,
        (kind, key): (&str, &str),
        keep: usize,
        room: RoomMib,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.path(&format!("{kind}-{key}"));
        if path.is_dir() {
            return touch(path);
        }
        let _lock = self.lock()?;
        if path.is_dir() {
            return touch(path);
        }
        let partial = self.path(&format!("{kind}-{key}.partial"));
        self.remove_partials()?;
        self.check_room(kind, room)?;
        fs::create_dir(&partial).with_context(|| partial.display().to_string())?;
        make(&partial)?;
        fs::rename(&partial, &path).with_context(|| path.display().to_string())?;
        let path = touch(path)?;
        self.prune(kind, keep)?;
        Ok(path)
    }

    fn lock(&self) -> Result<File> {
        let path = self.path("lock");
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                eprintln!("waiting for another cargo xtask that fills the lab's cache ...");
                flock(&file, FlockOperation::LockExclusive).context("flock")?;
            }
            other => other.context("flock")?,
        }
        // Programs that we start inherit it; see the module's words.
        fcntl_setfd(&file, FdFlags::empty()).context("fcntl")?;
        Ok(file)
    }

    /// Removes what interrupted calls left behind. The lock says that nobody
    /// works on it.
    fn remove_partials(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "partial")
            {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn check_room(&self, kind: &str, RoomMib(needed): RoomMib) -> Result<()> {
        let stat = statvfs(&self.dir).context("statvfs")?;
        let free = (stat.f_bavail * stat.f_frsize) >> 20;
        ensure!(
            free >= needed,
            "the lab's {kind} needs {needed} MiB in {}, and {free} MiB are free there; make room, \
             or let XDG_CACHE_HOME name a folder on another disk",
            self.dir.display(),
        );
        Ok(())
    }

    /// Removes the folders of `kind` but the `keep` that were used last.
    fn prune(&self, kind: &str, keep: usize) -> Result<()> {
        let mut folders: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(&format!("{kind}-")) {
                folders.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        folders.sort();
        let old = folders.len().saturating_sub(keep);
        folders
            .iter()
            .take(old)
            .try_for_each(|(_, path)| remove(path))
    }
}

/// A short key for `text`: 48 bits of its hash.
pub(crate) fn key_of(text: &[u8]) -> String {
    let hash = format!("{:x}", Sha256::digest(text));
    hash[..12].to_owned()
}

/// Notes that `path` was used now.
fn touch(path: PathBuf) -> Result<PathBuf> {
    // Only the order of pruning hangs on it, and a folder of another user's
    // making may refuse it.
    let _ = File::open(&path).and_then(|dir| dir.set_modified(SystemTime::now()));
    Ok(path)
}

/// Removes a folder, but never goes through a mount that is still in it.
fn remove(path: &Path) -> Result<()> {
    let mut rm = Command::new("rm");
    output_of(rm.args(["-rf", "--one-file-system", "--"]).arg(path), "rm")?;
    if path.exists() {
        bail!("cannot remove {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(name: &str) -> Cache {
        let dir = std::env::temp_dir().join(format!("xtask-cache-{name}-{}", std::process::id()));
        remove(&dir).unwrap();
        Cache::open(dir).unwrap()
    }

    #[test]
    fn a_folder_is_made_once() {
        let cache = cache("once");
        let mut made = 0;
        for _ in 0..2 {
            let make = |path: &Path| {
                made += 1;
                Ok(fs::write(path.join("file"), "whole")?)
            };
            let path = cache.folder(("tree", "1"), 2, RoomMib(1), make).unwrap();
            assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "whole");
        }
        assert_eq!(made, 1);
        remove(&cache.dir).unwrap();
    }

    #[test]
    fn an_interrupted_making_is_begun_anew() {
        let cache = cache("anew");
        let fail = |path: &Path| {
            fs::write(path.join("half"), "")?;
            bail!("interrupted")
        };
        assert!(cache.folder(("tree", "1"), 2, RoomMib(1), fail).is_err());
        assert!(cache.path("tree-1.partial").exists() && !cache.path("tree-1").exists());
        // Another recipe's partial folder goes too.
        fs::create_dir(cache.path("tree-0.partial")).unwrap();
        let path = cache
            .folder(("tree", "1"), 2, RoomMib(1), |_| Ok(()))
            .unwrap();
        assert!(!path.join("half").exists());
        let names = fs::read_dir(&cache.dir).unwrap().count();
        assert_eq!(names, 2, "the folder and the lock");
        remove(&cache.dir).unwrap();
    }

    #[test]
    fn no_room_is_said_before_anything_is_made() {
        let cache = cache("room");
        let make = |_: &Path| panic!("must not be called");
        let error = cache
            .folder(("tree", "1"), 2, RoomMib(1 << 40), make)
            .unwrap_err();
        assert!(error.to_string().contains("MiB are free"), "{error}");
        remove(&cache.dir).unwrap();
    }

    #[test]
    fn the_folders_used_last_stay() {
        let cache = cache("prune");
        for key in ["1", "2", "1", "3"] {
            cache
                .folder(("tree", key), 2, RoomMib(1), |_| Ok(()))
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(cache.path("tree-1").exists() && cache.path("tree-3").exists());
        assert!(!cache.path("tree-2").exists());
        remove(&cache.dir).unwrap();
    }

    #[test]
    fn a_helper_that_outlives_us_keeps_the_lock() {
        let cache = cache("lock");
        let lock = cache.lock().unwrap();
        let mut helper = Command::new("sleep").arg("0.5").spawn().unwrap();
        drop(lock);
        let other = File::create(cache.path("lock")).unwrap();
        let refused = flock(&other, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused, Err(Errno::WOULDBLOCK));
        helper.wait().unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        remove(&cache.dir).unwrap();
    }
}
