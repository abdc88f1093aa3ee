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

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

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
    loaded: Arc<Loaded>,
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

pub(crate) fn check_by(range: RxRange, maps: &ProcMaps, files: &Files) -> Result<(), TextError> {
    let Some(loaded) = Loaded::find(range.start) else {
        return Ok(());
    };
    let in_file = files.read(&loaded, range, maps);
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
                object: loaded.real_path().into(),
                in_file: first_bytes(&in_file[off_bytes..]),
                found: first_bytes(&found[off_bytes..]),
            })
        }
    }
}

/// The file that was read last during a look, and some of it: many functions of an object, in
/// order, cost few system calls.
#[derive(Debug, Default)]
pub(crate) struct Files(RefCell<Option<Open>>);

#[derive(Debug)]
struct Open {
    loaded: Arc<Loaded>,
    /// If its text is what was loaded.
    file: Option<File>,
    /// Some of it, and where that begins.
    off: u64,
    bytes: Vec<u8>,
}

/// As much is read at first, and twice as much each time.
const FIRST_BYTES: usize = 4 << 10;
const MOST_BYTES: usize = 256 << 10;

impl Files {
    /// The bytes that the file has for `range`, if they are what was loaded.
    fn read(&self, loaded: &Arc<Loaded>, range: RxRange, maps: &ProcMaps) -> Option<Vec<u8>> {
        let off = loaded.file_off(range)?;
        let mut open = self.0.borrow_mut();
        if open.as_ref().is_none_or(|o| *o.loaded != **loaded) {
            let file = file::open(loaded, maps).ok();
            let file = file.filter(|file| is_same(loaded, file, maps) == Some(true));
            *open = Some(Open {
                loaded: Arc::clone(loaded),
                file,
                off: 0,
                bytes: Vec::new(),
            });
        }
        open.as_mut()?.read(off, range.len_bytes)
    }
}

impl Open {
    fn read(&mut self, off: u64, len_bytes: usize) -> Option<Vec<u8>> {
        let file = self.file.as_ref()?;
        let at = |open: &Self| {
            let from = usize::try_from(off.checked_sub(open.off)?).ok()?;
            Some(open.bytes.get(from..from.checked_add(len_bytes)?)?.to_vec())
        };
        if let Some(bytes) = at(self) {
            return Some(bytes);
        }
        let want = (2 * self.bytes.len()).clamp(FIRST_BYTES, MOST_BYTES);
        let mut bytes = vec![0; want.max(len_bytes)];
        // There may be less behind it.
        let done = file::read_up_to(file, off, &mut bytes).ok()?;
        bytes.truncate(done);
        (self.off, self.bytes) = (off, bytes);
        at(self)
    }
}

/// Whether the file's text is what was loaded; compared once.
pub(crate) fn is_same(loaded: &Arc<Loaded>, file: &File, maps: &ProcMaps) -> Option<bool> {
    let meta = file.metadata().ok()?;
    let stamp = Stamp {
        dev: meta.dev(),
        inode: meta.ino(),
        len_bytes: meta.len(),
        changed: (meta.mtime(), meta.mtime_nsec()),
    };
    let is_it = |c: &&Compared| *c.loaded == **loaded && c.stamp == stamp;
    if let Some(known) = cache::lock().compared.iter().find(is_it) {
        return Some(known.is_same);
    }
    let is_same = !dynamic::has_text_relocations(loaded, maps)
        && object::with_headers(loaded, file, maps, |_| Ok(())).is_ok();
    let compared = &mut cache::lock().compared;
    compared.retain(|c| c.loaded.base != loaded.base);
    compared.push(Compared {
        loaded: Arc::clone(loaded),
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

/// As many as messages show; what is not there is zero.
fn first_bytes(bytes: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(bytes) {
        *to = *from;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_file_are_what_it_has() {
        let loaded = Loaded::all()[0].clone();
        let whole = std::fs::read(&loaded.path).unwrap();
        let mut open = Open {
            file: File::open(loaded.file()).ok(),
            loaded,
            off: 0,
            bytes: Vec::new(),
        };
        let (len, end) = (16, whole.len() as u64 - 16);
        let mut nr_blocks = 0;
        // In order, backwards, across the ends of blocks, and at the end of the file.
        let offs = (0..end).step_by(1000).take(500);
        for off in offs.chain([0, 4090, 8190, end, 5]) {
            let from = off as usize;
            let before = open.off;
            let got = open.read(off, len);
            assert_eq!(got.as_deref(), Some(&whole[from..from + len]), "{off}");
            nr_blocks += usize::from(open.off != before);
        }
        assert!(nr_blocks < 50, "{nr_blocks}");
        assert_eq!(open.read(end, 17), None);
        assert_eq!(open.read(end + 1000, len), None);
    }
}
