//! The file that an object was loaded from, whatever has become of its path.
//!
//! What is loaded is in memory; the file is an extra, for what is not loaded (section headers, local
//! symbols) and to compare text with. The path by which an object was opened may lead nowhere by
//! now, or to another file: it is relative, and the process has changed its folder; the file was
//! moved, or deleted by an upgrade which put another there; it was a memfd, and its descriptor
//! (`/proc/self/fd/…`) is closed or used again. The kernel knows the file of each mapping, so what is
//! opened is compared with that by device and inode, and looked for in this order:
//!
//! 1. at the path that the dynamic linker knows;
//! 2. at the path that the kernel knows, which follows the file when it is moved;
//! 3. behind the mapping itself (`/proc/self/map_files`), which opens deleted files and memfds too,
//!    for a process with `CAP_CHECKPOINT_RESTORE`.
//!
//! Some file systems (overlays, Btrfs) show other numbers for a mapping than for its file. There the
//! path that the kernel knows is taken, unless it is of a deleted file; readers compare program
//! headers and notes with those in memory in any case (`object`).
//!
//! Key function: [`open`]. Neighbours: `loaded`, `proc_maps`; `object`, `catalog` and `unchanged`
//! read. Source: `proc_pid_maps(5)`, `proc_pid_map_files(5)`, kernel `fs/d_path.c`.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::TextError;
use crate::loaded::{Header, Loaded};
use crate::proc_maps::{Mapping, ProcMaps};

/// Opens the file that `loaded` was loaded from.
///
/// # Errors
/// [`TextError::ObjectFile`].
pub(crate) fn open(loaded: &Loaded, maps: &ProcMaps) -> Result<File, TextError> {
    let Some(mapped) = mapping_of(loaded, maps) else {
        // Of no file (the vDSO), or an emulator shows it otherwise. A relative path means nothing.
        return match loaded.path.is_absolute() {
            true => open_regular(loaded.file()).map_err(|e| loaded.io_error(&e)),
            false => Err(loaded.error("it was loaded from no file")),
        };
    };
    let kernels = path_of(mapped);
    let mut error = None;
    for path in [Some(loaded.file()), kernels].into_iter().flatten() {
        match open_regular(path) {
            Ok(file) if is_of(mapped, &file) => return Ok(file),
            Ok(_) => {}
            Err(e) => _ = error.get_or_insert(e),
        }
    }
    if let Ok(file) = open_behind(mapped) {
        return Ok(file);
    }
    match (kernels, error) {
        (Some(path), _) => open_regular(path).map_err(|e| loaded.io_error(&e)),
        (None, Some(e)) => Err(loaded.io_error(&e)),
        (None, None) => Err(loaded.error("the file at its path is not the one that was loaded")),
    }
}

/// Opens the file of a mapping.
///
/// # Errors
/// The kernel's: its path leads elsewhere, and the process may not open mappings.
pub(crate) fn open_mapped(mapped: &Mapping) -> io::Result<File> {
    match path_of(mapped).map(open_regular) {
        Some(Ok(file)) if is_of(mapped, &file) => Ok(file),
        _ => open_behind(mapped),
    }
}

/// Reads from `off` until `bytes` is full or the file ends; how many.
///
/// # Errors
/// The kernel's.
pub(crate) fn read_up_to(file: &File, off: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], off + done as u64) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn open_behind(mapped: &Mapping) -> io::Result<File> {
    let (start, end) = (mapped.range.start.get(), mapped.range.end().get());
    File::open(format!("/proc/self/map_files/{start:x}-{end:x}"))
}

/// Where the kernel says that the file of a mapping is; `None` when it has been deleted, or never
/// had a name.
fn path_of(mapped: &Mapping) -> Option<&Path> {
    let has_one = mapped.path.starts_with(b"/") && !mapped.path.ends_with(b" (deleted)");
    has_one.then(|| Path::new(OsStr::from_bytes(&mapped.path)))
}

/// Whether `file` is the one that is mapped.
fn is_of(mapped: &Mapping, file: &File) -> bool {
    file.metadata().is_ok_and(|meta| {
        let dev = (libc::major(meta.dev()), libc::minor(meta.dev()));
        (dev, meta.ino()) == (mapped.dev, mapped.inode)
    })
}

/// Opens a path that may lead to anything by now: a pipe would wait for a writer.
fn open_regular(path: &Path) -> io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A mapping of the object's file. Pages of text may have been replaced, by hooks among others, so
/// data is looked at first.
fn mapping_of<'m>(loaded: &Loaded, maps: &'m ProcMaps) -> Option<&'m Mapping> {
    let page_bytes = region::page::size() as u64;
    let is_load = |h: &&Header| h.kind == libc::PT_LOAD && h.filesz != 0;
    let is_text = |h: &Header| h.flags & libc::PF_X != 0;
    let of_file = |h: &Header| {
        let at = loaded.range_of(h).start.align_down(page_bytes);
        let off = h.offset & !(page_bytes - 1);
        let is_it = |m: &&Mapping| {
            let is_copy = is_text(h) && m.path.starts_with(b"/memfd:");
            m.inode != 0 && m.off_at(at) == off && !is_copy
        };
        maps.find(at).filter(is_it)
    };
    let loads = || loaded.headers.iter().filter(is_load);
    let data = loads().filter(|h| !is_text(h)).find_map(of_file);
    data.or_else(|| loads().filter(|h| is_text(h)).find_map(of_file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_is_what_is_mapped() {
        let maps = ProcMaps::read().unwrap();
        for loaded in Loaded::all() {
            let opened = open(&loaded, &maps);
            match mapping_of(&loaded, &maps) {
                Some(mapped) => assert!(is_of(mapped, &opened.unwrap()), "{loaded:?}"),
                None => assert!(opened.is_err(), "{loaded:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        assert!(open_regular(Path::new("/dev/null")).is_err());
        let path = std::env::temp_dir().join(format!("rvbpf-{}-fifo", std::process::id()));
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        if made.is_ok_and(|status| status.success()) {
            assert!(open_regular(&path).is_err());
            std::fs::remove_file(&path).unwrap();
        }
    }
}
