//! Numbers as DWARF and ELF write them, little-endian.

/// Bytes that grow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// Seven bits a byte, the lowest first, the last without its top bit.
    pub(crate) fn uleb(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.u8(value as u8);
    }

    /// The same with a sign, which is bit 6 of the last byte.
    pub(crate) fn sleb(&mut self, mut value: i64) {
        while !(-0x40..0x40).contains(&value) {
            self.u8(value as u8 & 0x7f | 0x80);
            value >>= 7;
        }
        self.u8(value as u8 & 0x7f);
    }

    /// A string and its zero; what is behind a zero of its own is lost.
    pub(crate) fn str(&mut self, text: &str) {
        self.0.extend(text.bytes().take_while(|byte| *byte != 0));
        self.u8(0);
    }

    /// Pads with `fill` to a multiple of `align`, counted from `start`.
    pub(crate) fn align(&mut self, start: usize, align: usize, fill: u8) {
        let len = (self.0.len() - start).next_multiple_of(align);
        self.0.resize(start + len, fill);
    }

    /// Makes room for a length of 32 bits, which `close` fills in.
    pub(crate) fn open(&mut self) -> usize {
        self.u32(0);
        self.0.len()
    }

    /// Fills in how many bytes have come since `open`.
    pub(crate) fn close(&mut self, start: usize) {
        let len = (self.0.len() - start) as u32;
        self.0[start - 4..start].copy_from_slice(&len.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    /// The examples of the DWARF standard, appendix C.
    #[test]
    fn leb128_is_the_standards() {
        for (value, want) in [
            (2, &[2][..]),
            (127, &[127]),
            (128, &[0x80, 1]),
            (12857, &[0xb9, 0x64]),
        ] {
            let mut bytes = Bytes::default();
            bytes.uleb(value);
            assert_eq!(bytes.0, want);
        }
        for (value, want) in [
            (2, &[2][..]),
            (-2, &[0x7e]),
            (127, &[0xff, 0]),
            (-127, &[0x81, 0x7f]),
            (128, &[0x80, 1]),
            (-128, &[0x80, 0x7f]),
            (-129, &[0xff, 0x7e]),
        ] {
            let mut bytes = Bytes::default();
            bytes.sleb(value);
            assert_eq!(bytes.0, want, "{value}");
        }
    }
}
