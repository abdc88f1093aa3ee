//! Memory of loaded objects, as bytes that know their addresses.
//!
//! Tables that the dynamic linker has loaded are copied before they are looked at: what is wrong
//! in them then cannot lead out of the copy.
//!
//! Key types: [`Span`], [`Cursor`]. Neighbours: `eh_frame` and `dynamic` read with them.
//! Source: DWARF 5, 7.6 (LEB128); LSB, "DWARF Exception Header Encoding".

use crate::addr::{RxAddr, RxRange};
use crate::proc_maps::ProcMaps;
use crate::sys;

/// A copy of some memory.
#[derive(Debug)]
pub(crate) struct Span {
    start: u64,
    bytes: Vec<u8>,
}

impl Span {
    /// Copies `range`; `None` when it is not all readable.
    pub(crate) fn read(range: RxRange, maps: &ProcMaps) -> Option<Self> {
        if !maps.is_readable(range) {
            return None;
        }
        let mut bytes = vec![0; range.len_bytes];
        sys::read_text(range.start, &mut bytes);
        Some(Self {
            start: range.start.get(),
            bytes,
        })
    }

    /// The same, from `start` and in bytes.
    pub(crate) fn at(start: u64, len_bytes: usize, maps: &ProcMaps) -> Option<Self> {
        Self::read(RxRange::new(RxAddr::new(start), len_bytes), maps)
    }

    /// Bytes that are said to have been at `start`.
    #[cfg(test)]
    pub(crate) fn of(start: u64, bytes: Vec<u8>) -> Self {
        Self { start, bytes }
    }

    /// The first address after it.
    pub(crate) fn end(&self) -> u64 {
        self.start.wrapping_add(self.bytes.len() as u64)
    }

    /// The bytes at an address.
    pub(crate) fn get(&self, at: u64, len_bytes: usize) -> Option<&[u8]> {
        let off = usize::try_from(at.checked_sub(self.start)?).ok()?;
        self.bytes.get(off..off.checked_add(len_bytes)?)
    }

    /// The bytes at an address up to the next NUL.
    pub(crate) fn text(&self, at: u64) -> Option<&[u8]> {
        let off = usize::try_from(at.checked_sub(self.start)?).ok()?;
        let rest = self.bytes.get(off..)?;
        Some(&rest[..rest.iter().position(|b| *b == 0)?])
    }

    fn array<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        self.get(at, N)?.try_into().ok()
    }

    pub(crate) fn u16(&self, at: u64) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&self, at: u64) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&self, at: u64) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}

/// Reads a span from one address to another.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    span: &'a Span,
    pub(crate) at: u64,
    pub(crate) end: u64,
}

impl<'a> Cursor<'a> {
    /// From `at` to `end`, or to the end of the span if that comes first.
    pub(crate) fn new(span: &'a Span, at: u64, end: u64) -> Self {
        let end = end.min(span.end());
        Self { span, at, end }
    }

    /// Goes on by some bytes, which must be there.
    pub(crate) fn skip(&mut self, len_bytes: u64) -> Option<()> {
        let to = self.at.checked_add(len_bytes)?;
        if to > self.end {
            return None;
        }
        self.at = to;
        Some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let from = self.at;
        self.skip(N as u64)?;
        self.span.array(from)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Up to the next NUL, which is read too.
    pub(crate) fn text(&mut self) -> Option<&'a [u8]> {
        let text = self.span.text(self.at)?;
        self.skip(text.len() as u64 + 1)?;
        Some(text)
    }

    /// Seven bits a byte, the lowest first; those beyond 64 are dropped.
    pub(crate) fn uleb(&mut self) -> Option<u64> {
        self.leb().map(|(value, _)| value)
    }

    /// The same, with the sign in the highest bit.
    pub(crate) fn sleb(&mut self) -> Option<i64> {
        let (value, bits) = self.leb()?;
        let unused = 64u32.saturating_sub(bits);
        Some(((value << unused) as i64) >> unused)
    }

    fn leb(&mut self) -> Option<(u64, u32)> {
        let (mut value, mut bits) = (0, 0);
        loop {
            let byte = self.u8()?;
            if bits < 64 {
                value |= u64::from(byte & 0x7f) << bits;
            }
            bits += 7;
            if byte & 0x80 == 0 {
                return Some((value, bits.min(64)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leb128_is_read() {
        for (bytes, unsigned, signed) in [
            (&[0x02][..], 2, 2),
            (&[0x7e], 0x7e, -2),
            (&[0x80, 0x01], 128, 128),
            (&[0x80, 0x7f], 0x3f80, -128),
            (&[0xff, 0x00], 127, 127),
            (
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                u64::MAX,
                -1,
            ),
        ] {
            let span = Span::of(0x1000, bytes.to_vec());
            let mut cursor = Cursor::new(&span, 0x1000, u64::MAX);
            assert_eq!(cursor.clone().uleb(), Some(unsigned), "{bytes:x?}");
            assert_eq!(cursor.sleb(), Some(signed), "{bytes:x?}");
            assert_eq!(cursor.at, span.end());
        }
        let span = Span::of(0, vec![0x80]);
        assert_eq!(Cursor::new(&span, 0, 9).uleb(), None, "it does not end");
    }

    #[test]
    fn nothing_is_read_outside() {
        let span = Span::of(0x1000, b"ab\0\x01\x02\x03\x04".to_vec());
        assert_eq!(span.text(0x1001), Some(&b"b"[..]));
        assert_eq!(span.text(0x1003), None, "no NUL");
        assert_eq!(span.u32(0x1003), Some(0x0403_0201));
        assert_eq!(span.u32(0x1004), None);
        assert_eq!(span.u16(0xfff), None);
        assert_eq!(span.get(u64::MAX, 2), None);
        let mut cursor = Cursor::new(&span, 0x1000, 0x1002);
        assert_eq!(cursor.text(), None, "the NUL is behind the end");
        assert_eq!(cursor.u16(), Some(0x6261));
        assert_eq!(cursor.u8(), None);
    }
}
