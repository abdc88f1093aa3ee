//! A file that grows by records, and whose descriptor is not kept: the host may close it, and open
//! a file of its own under its number.
//!
//! Key type: [`Growing`]. Neighbours: `map`, `dump`. Source: `open(2)`, `setrlimit(2)`.

#![expect(unsafe_code, reason = "asks for a limit, which std does not know")]

use std::fs::{File, OpenOptions};
use std::io::{Error, Result, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A file of ours.
#[derive(Debug)]
pub(crate) struct Growing {
    /// From the root: the host may change its directory.
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Growing {
    /// A new file, not one that a link of another user's leads to, and what it begins with. The
    /// file is open as long as `with` runs.
    pub(crate) fn create(
        path: &Path,
        start: &[u8],
        with: impl FnOnce(&File) -> Result<()>,
    ) -> Result<Self> {
        let path = std::path::absolute(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let mut file = options.custom_flags(libc::O_NOFOLLOW).open(&path)?;
        write(&mut file, start)?;
        with(&file)?;
        let identity = identity(&file)?;
        Ok(Self { path, identity })
    }

    /// Adds to its end.
    ///
    /// # Errors
    /// There is another file now, or the limits do not allow it.
    pub(crate) fn add(&self, bytes: &[u8]) -> Result<()> {
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&self.path)?;
        if identity(&file)? != self.identity {
            return Err(Error::from_raw_os_error(libc::ESTALE));
        }
        write(&mut file, bytes)
    }
}

fn identity(file: &File) -> Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// Writes at the end of a file, unless that would exceed `RLIMIT_FSIZE`: the kernel would send
/// SIGXFSZ.
fn write(file: &mut File, bytes: &[u8]) -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: 1. `limit` is a place for the answer.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    let len_bytes = file.metadata()?.len().saturating_add(bytes.len() as u64);
    if rc == 0 && len_bytes > limit.rlim_cur {
        return Err(Error::from_raw_os_error(libc::EFBIG));
    }
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_of_the_name_is_left_alone() {
        let path = std::env::temp_dir().join(format!("rvbpf-growing-{}", std::process::id()));
        let growing = Growing::create(&path, b"a", |_| Ok(())).unwrap();
        growing.add(b"b").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ab");
        // The old one stays open, so that its inode is not given to the new one.
        let old = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(growing.add(b"c").is_err());
        std::fs::write(&path, "the host's").unwrap();
        assert!(growing.add(b"c").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"the host's");
        std::fs::remove_file(&path).unwrap();
        drop(old);
    }
}
