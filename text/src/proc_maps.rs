//! What is mapped where: `/proc/self/maps`, read once per question.
//!
//! `/proc/self` is the thread group's leader. Once that has ended, its `maps` are empty, or cannot be
//! opened; then the calling thread's are read. (They are not read first: an emulator of user programs
//! translates `/proc/self` alone.) A process without any mapping cannot ask, so nothing is never
//! taken for an answer.
//!
//! `region` answers what protection one address has; a batch of sites, and the question whether
//! a page is still the one that we mapped there (inode and offset), need the lines themselves.
//!
//! Key types: [`ProcMaps`], [`Mapping`], `PageMap`. Neighbours: `foreign`, `txn`, `object`; crates
//! above look for free address space with it. Source: `proc_pid_maps(5)`, `proc_pid_pagemap(5)`.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt;

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;

/// One line of `/proc/self/maps`.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Mapping {
    /// Where it is mapped. (Not all of these addresses execute: see `perms`.)
    pub range: RxRange,
    /// `rwx` and `s`hared or `p`rivate, as the kernel prints them.
    pub perms: [u8; 4],
    /// Where in the file the mapping starts.
    pub off_bytes: u64,
    /// Major and minor number of the file's device.
    pub dev: (u32, u32),
    /// The file's inode, 0 without one.
    pub inode: u64,
    /// The file's path, or a name in brackets, or nothing.
    pub path: Vec<u8>,
}

impl Mapping {
    /// Whether it can be read and executed, and by nobody written: private r-x.
    #[must_use]
    pub fn is_private_text(&self) -> bool {
        self.perms == *b"r-xp"
    }

    /// Whether it is writable and executable at once.
    #[must_use]
    pub fn is_wx(&self) -> bool {
        self.perms[1] == b'w' && self.perms[2] == b'x'
    }

    /// The mapping's file offset at `addr`, which lies in it.
    pub(crate) fn off_at(&self, addr: RxAddr) -> u64 {
        self.off_bytes + (addr.get() - self.range.start.get())
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |b| *b == b' ');
        let (start, end) = split_hex(fields.next()?, b'-')?;
        let perms = fields.next()?.try_into().ok()?;
        let off_bytes = hex(fields.next()?)?;
        let (major, minor) = split_hex(fields.next()?, b':')?;
        let inode = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let path = fields
            .next()
            .unwrap_or_default()
            .trim_ascii_start()
            .to_vec();
        let len_bytes = usize::try_from(end.checked_sub(start)?).ok()?;
        Some(Self {
            range: RxRange::new(RxAddr::new(start), len_bytes),
            perms,
            off_bytes,
            dev: (u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
            inode,
            path,
        })
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn split_hex(field: &[u8], at: u8) -> Option<(u64, u64)> {
    let i = field.iter().position(|b| *b == at)?;
    Some((hex(&field[..i])?, hex(&field[i + 1..])?))
}

/// All mappings of this process, in order.
#[derive(Clone, Debug)]
pub struct ProcMaps {
    mappings: Vec<Mapping>,
}

impl ProcMaps {
    /// Reads them.
    ///
    /// # Errors
    /// [`TextError::MapsUnseen`] when the kernel does not show them.
    pub fn read() -> Result<Self, TextError> {
        Self::read_first(&["/proc/self/maps", "/proc/thread-self/maps"])
    }

    /// Those of the first of `files` that has any.
    fn read_first(files: &[&str]) -> Result<Self, TextError> {
        // The kernel does not say how long it is: room for most, or it is read in crumbs.
        let mut text = Vec::with_capacity(64 << 10);
        let mut errno = libc::ESRCH;
        for file in files {
            text.clear();
            match File::open(file).and_then(|mut file| file.read_to_end(&mut text)) {
                Ok(0) => {}
                Ok(_) => return Ok(Self::parse(&text)),
                Err(e) => errno = e.raw_os_error().unwrap_or(libc::EIO),
            }
        }
        Err(TextError::MapsUnseen { errno })
    }

    fn parse(text: &[u8]) -> Self {
        let mut mappings: Vec<Mapping> = text
            .split(|b| *b == b'\n')
            .filter_map(Mapping::parse)
            .collect();
        mappings.sort_by_key(|m| m.range.start);
        Self { mappings }
    }

    /// The mapping that holds `addr`.
    #[must_use]
    pub fn find(&self, addr: RxAddr) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|m| m.range.start <= addr);
        self.mappings
            .get(after.checked_sub(1)?)
            .filter(|m| m.range.contains(addr))
    }

    /// That `addr` may be where code is: that it is even, and can be read and executed.
    pub(crate) fn check_executable(&self, addr: RxAddr) -> Result<(), TextError> {
        if !addr.is_aligned(2) {
            return Err(TextError::Misaligned {
                addr,
                align_bytes: 2,
            });
        }
        let mapping = self.find(addr).ok_or(TextError::Unmapped { addr })?;
        match mapping.perms {
            [b'r', _, b'x', _] => Ok(()),
            _ => Err(TextError::NotExecutable { addr }),
        }
    }

    /// All of them, in order of address.
    #[must_use]
    pub fn all(&self) -> &[Mapping] {
        &self.mappings
    }

    /// Whether all of `range` is mapped readable.
    pub(crate) fn is_readable(&self, range: RxRange) -> bool {
        let mut at = range.start;
        while at < range.end() {
            match self.find(at) {
                Some(m) if m.perms[0] == b'r' => at = m.range.end(),
                _ => return false,
            }
        }
        true
    }

    /// The mapping at `addr` when it is foreign text that may be replaced.
    pub(crate) fn private_text_at(&self, addr: RxAddr) -> Result<&Mapping, TextError> {
        let m = self.find(addr).ok_or(TextError::Unmapped { addr })?;
        match m.perms {
            _ if m.is_private_text() => Ok(m),
            [b'r', _, b'x', _] => Err(TextError::WritableText { addr }),
            _ => Err(TextError::NotExecutable { addr }),
        }
    }
}

/// Of an entry of the page map: the page is in memory.
const PRESENT: u64 = 1 << 63;

/// What each page of this process is: `/proc/self/pagemap`.
pub(crate) struct PageMap(File);

impl PageMap {
    /// `None` where the kernel has none, or does not let us see it.
    pub(crate) fn open() -> Option<Self> {
        // Of the calling thread: the leader may have ended (see the module).
        File::open("/proc/thread-self/pagemap").ok().map(Self)
    }

    /// Whether the page at `page`, of a private mapping, is a copy that a write has made: what is
    /// stored in the file is not seen there any more. `None` if that cannot be known.
    pub(crate) fn is_copied(&self, page: RxAddr) -> Option<bool> {
        const OF_FILE: u64 = 1 << 61;
        const SWAPPED: u64 = 1 << 62;
        let is_copied = |entry| entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0;
        self.entry(page).map(is_copied)
    }

    /// Whether a page of private memory is mapped here and nowhere else, in no process; `None`
    /// where that is not known.
    pub(crate) fn is_exclusive(&self, page: RxAddr) -> Option<bool> {
        const EXCLUSIVE: u64 = 1 << 56;
        let entry = self.entry(page).filter(|entry| entry & PRESENT != 0)?;
        Some(entry & EXCLUSIVE != 0)
    }

    fn entry(&self, page: RxAddr) -> Option<u64> {
        let off = page.get() / region::page::size() as u64 * 8;
        let mut entry = [0; 8];
        self.0.read_exact_at(&mut entry, off).ok()?;
        Some(u64::from_le_bytes(entry))
    }
}

/// Whether another process traces this one, as debuggers do. `None` if that cannot be known.
pub(crate) fn is_traced() -> Option<bool> {
    let status = std::fs::read("/proc/thread-self/status").ok()?;
    let mut rows = status.split(|byte| *byte == b'\n');
    let tracer = rows.find_map(|row| row.strip_prefix(b"TracerPid:"))?;
    Some(tracer.trim_ascii() != b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"\
2aaaaaa000-2aaaaab000 r-xp 00001000 fe:01 123                              /usr/bin/a b\n\
2aaaaab000-2aaaaac000 rw-p 00000000 00:00 0 \n\
3ff0000000-3ff0001000 --xp 00000000 00:00 0 \n\
3ff0001000-3ff0002000 r-xs 00000000 00:01 77                               /memfd:x (deleted)\n\
garbage\n";

    #[test]
    fn lines_are_read() {
        let maps = ProcMaps::parse(MAPS);
        assert_eq!(maps.all().len(), 4);
        let m = maps.find(RxAddr::new(0x2a_aaaa_a800)).unwrap();
        assert_eq!((m.off_bytes, m.dev, m.inode), (0x1000, (0xfe, 1), 123));
        assert_eq!(m.path, b"/usr/bin/a b");
        assert_eq!(m.off_at(RxAddr::new(0x2a_aaaa_a800)), 0x1800);
        assert!(maps.find(RxAddr::new(0x2a_aaaa_c000)).is_none());
        assert!(maps.find(RxAddr::new(0)).is_none());
    }

    #[test]
    fn maps_without_a_line_are_no_answer() {
        let read = |files: &[&str]| ProcMaps::read_first(files).map(|maps| maps.all().len());
        let unseen = |errno| Err(TextError::MapsUnseen { errno });
        assert_eq!(read(&["/dev/null"]), unseen(libc::ESRCH));
        assert_eq!(read(&["/dev/null", "/no/such/file"]), unseen(libc::ENOENT));
        let second = read(&["/dev/null", "/proc/thread-self/maps"]).unwrap();
        assert!(second > 0);
        assert!(read(&["/no/such/file", "/proc/self/maps"]).unwrap() > 0);
    }

    #[test]
    fn only_private_r_x_is_text_to_replace() {
        let maps = ProcMaps::parse(MAPS);
        let at = |a| maps.private_text_at(RxAddr::new(a)).map(|m| m.inode);
        assert_eq!(at(0x2a_aaaa_a000), Ok(123));
        for (addr, want) in [
            (
                0x2a_aaaa_b000,
                TextError::NotExecutable {
                    addr: RxAddr::new(0x2a_aaaa_b000),
                },
            ),
            (
                0x3f_f000_0000,
                TextError::NotExecutable {
                    addr: RxAddr::new(0x3f_f000_0000),
                },
            ),
            (
                0x3f_f000_1000,
                TextError::WritableText {
                    addr: RxAddr::new(0x3f_f000_1000),
                },
            ),
            (
                0x10,
                TextError::Unmapped {
                    addr: RxAddr::new(0x10),
                },
            ),
        ] {
            assert_eq!(at(addr), Err(want));
        }
    }

    #[test]
    fn readable_needs_every_page() {
        let maps = ProcMaps::parse(MAPS);
        let r = |start, len| maps.is_readable(RxRange::new(RxAddr::new(start), len));
        assert!(r(0x2a_aaaa_a000, 0x2000));
        assert!(!r(0x2a_aaaa_a000, 0x2001));
        assert!(!r(0x3f_f000_0000, 8));
    }
}
