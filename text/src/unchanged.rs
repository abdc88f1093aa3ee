//! Whether text is still what the object's file has, or others have changed it: hooks of other
//! libraries, breakpoints of debuggers, probes of the kernel.
//!
//! Text is not relocated, so what is in memory is what is in the file; our own sites are seen
//! through. Where the comparison would prove nothing (of objects with text relocations,
//! `DT_TEXTREL`, and of those whose file cannot be had) a function that begins with a jump out of
//! its object is taken for one that others have hooked. Nothing is said of code that belongs to no
//! object.
//!
//! Key function: [`check_unchanged`]. Neighbours: `object` compares a file with what is loaded,
//! `original` sees through our sites, `cache` keeps the verdict on a file. Source: ELF gABI,
//! "Program Loading".

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::addr::{RxAddr, RxRange};
use crate::cache;
use crate::dynamic;
use crate::error::TextError;
use crate::file;
use crate::insn;
use crate::loaded::Loaded;
use crate::look::Look;
use crate::object;
use crate::original;
use crate::proc_maps::ProcMaps;

/// A file that has been compared with what is loaded.
#[derive(Debug)]
pub(crate) struct Compared {
    loaded: Loaded,
    stamp: Stamp,
    /// Whether its text is that in memory, unless somebody has changed it.
    is_same: bool,
}

/// What another file at the same path, or a change of the file, does not keep.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Stamp {
    dev: u64,
    inode: u64,
    len_bytes: u64,
    changed: (i64, i64),
}

/// That the text of `range`, without our own sites, is what the object's file has.
///
/// # Errors
/// [`TextError::ChangedByOthers`] with the first place where it is not; [`TextError::Unmapped`],
/// [`TextError::Map`].
pub fn check_unchanged(range: RxRange) -> Result<(), TextError> {
    Look::now()?.check_unchanged(range)
}

pub(crate) fn check_by(range: RxRange, maps: &ProcMaps) -> Result<(), TextError> {
    let Some(loaded) = Loaded::find(range.start) else {
        return Ok(());
    };
    let in_file = in_file(&loaded, range, maps);
    let found = original::read_by(range, maps)?;
    let Some(in_file) = in_file else {
        return match leads_out(&loaded, range.start, &found, maps) {
            true => Err(TextError::HookedByOthers {
                site: range.start,
                found: first_bytes(&found),
            }),
            false => Ok(()),
        };
    };
    match found.iter().zip(&in_file).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(off) => {
            // Instructions begin at even offsets.
            let off_bytes = off & !1;
            Err(TextError::ChangedByOthers {
                at: range.start,
                off_bytes,
                object: path_of(&loaded),
                in_file: first_bytes(&in_file[off_bytes..]),
                found: first_bytes(&found[off_bytes..]),
            })
        }
    }
}

/// The bytes that the file has for `range`, if they are what was loaded.
fn in_file(loaded: &Loaded, range: RxRange, maps: &ProcMaps) -> Option<Vec<u8>> {
    let off = loaded.file_off(range)?;
    let file = file::open(loaded, maps).ok()?;
    if !is_same(loaded, &file, maps)? {
        return None;
    }
    let mut bytes = vec![0; range.len_bytes];
    file.read_exact_at(&mut bytes, off).ok()?;
    Some(bytes)
}

/// Whether the file's text is what was loaded; compared once.
pub(crate) fn is_same(loaded: &Loaded, file: &File, maps: &ProcMaps) -> Option<bool> {
    let meta = file.metadata().ok()?;
    let stamp = Stamp {
        dev: meta.dev(),
        inode: meta.ino(),
        len_bytes: meta.len(),
        changed: (meta.mtime(), meta.mtime_nsec()),
    };
    let is_it = |c: &&Compared| c.loaded == *loaded && c.stamp == stamp;
    if let Some(known) = cache::lock().compared.iter().find(is_it) {
        return Some(known.is_same);
    }
    let is_same = !dynamic::has_text_relocations(loaded, maps)
        && object::with_headers(loaded, file, maps, |_| Ok(())).is_ok();
    let compared = &mut cache::lock().compared;
    compared.retain(|c| c.loaded.base != loaded.base);
    compared.push(Compared {
        loaded: loaded.clone(),
        stamp,
        is_same,
    });
    Some(is_same)
}

/// Whether code at `at` begins, behind nops, with a jump or call to another object, as hooks do: a
/// word, a pair, or a pair around a load of the target from beside it.
fn leads_out(loaded: &Loaded, at: RxAddr, code: &[u8], maps: &ProcMaps) -> bool {
    let word = |off: usize| {
        let bytes = code.get(off..off.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let mut off = 0;
    while let Some(len_bytes) = word(off).and_then(insn::nop_bytes) {
        off += len_bytes;
    }
    let (Some(first), Some(at)) = (word(off), at.checked_add(off as u64)) else {
        return false;
    };
    let [second, third] = [word(off + 4), word(off + 8)].map(Option::unwrap_or_default);
    let jump = insn::jump_target(first, at).or_else(|| insn::pair_target([first, second], at));
    let target = match (jump, insn::loaded_target([first, second, third], at)) {
        (Some((_, target)), _) => target,
        (None, Some(slot)) => match dynamic::load(slot, maps) {
            Some(target) => target,
            None => return true,
        },
        (None, None) => return false,
    };
    loaded.segment_of(target).is_none()
}

/// Where the file really is.
fn path_of(loaded: &Loaded) -> Box<std::path::Path> {
    let path = match loaded.is_main() {
        true => std::fs::read_link(&loaded.path).ok(),
        false => None,
    };
    path.unwrap_or_else(|| loaded.path.clone()).into()
}

/// As many as messages show; what is not there is zero.
fn first_bytes(bytes: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(bytes) {
        *to = *from;
    }
    first
}
