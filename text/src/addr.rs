//! Addresses that execute, and the distances between them.
//!
//! Key types: [`RxAddr`], [`PcRel`], [`RxRange`]. A displacement exists only between two
//! addresses that execute, so an address of the rw view can never end up in an instruction.
//! Neighbours: everything in this crate. Source: RISC-V unprivileged manual, `auipc`, `jal`.

use std::fmt;

/// An address at which code executes (never one of the rw view).
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct RxAddr(u64);

impl RxAddr {
    /// Wraps an address of the rx view.
    #[must_use]
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// The bare address.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address `off_bytes` further on, or `None` when it would wrap.
    #[must_use]
    pub const fn checked_add(self, off_bytes: u64) -> Option<Self> {
        match self.0.checked_add(off_bytes) {
            Some(addr) => Some(Self(addr)),
            None => None,
        }
    }

    /// The address `off_bytes` before, or `None` when it would wrap.
    #[must_use]
    pub const fn checked_sub(self, off_bytes: u64) -> Option<Self> {
        match self.0.checked_sub(off_bytes) {
            Some(addr) => Some(Self(addr)),
            None => None,
        }
    }

    /// The displacement that an instruction at `pc` needs to reach this address.
    #[must_use]
    pub const fn rel_to(self, pc: Self) -> PcRel {
        PcRel(self.0.wrapping_sub(pc.0) as i64)
    }

    /// Whether the address is a multiple of `align_bytes` (a power of two).
    #[must_use]
    pub const fn is_aligned(self, align_bytes: u64) -> bool {
        self.0 & align_bytes.wrapping_sub(1) == 0
    }

    /// The address rounded down to a multiple of `align_bytes` (a power of two).
    #[must_use]
    pub(crate) const fn align_down(self, align_bytes: u64) -> Self {
        Self(self.0 & !align_bytes.wrapping_sub(1))
    }
}

impl fmt::Display for RxAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for RxAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RxAddr({:#x})", self.0)
    }
}

/// A displacement in bytes between two addresses that execute: target minus pc.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct PcRel(i64);

impl PcRel {
    /// The displacement in bytes.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Whether one `jal` reaches: even, and within ±1 MiB.
    #[must_use]
    pub const fn fits_jal(self) -> bool {
        self.0 & 1 == 0 && self.0 >= -(1 << 20) && self.0 < (1 << 20)
    }

    /// Whether an `auipc` pair reaches: `[-2^31 - 2^11, 2^31 - 2^11)`.
    #[must_use]
    pub const fn fits_auipc(self) -> bool {
        self.0 >= -(1 << 31) - (1 << 11) && self.0 < (1 << 31) - (1 << 11)
    }

    /// The immediates of an `auipc` pair, `hi20` in `[-2^19, 2^19)` and `lo12` in
    /// `[-2048, 2047]`, with `(hi20 << 12) + lo12` equal to the displacement; `None` when the
    /// pair does not reach.
    #[must_use]
    pub const fn hi20_lo12(self) -> Option<(i32, i32)> {
        if !self.fits_auipc() {
            return None;
        }
        let hi20 = (self.0 + 0x800) >> 12;
        let lo12 = self.0 - (hi20 << 12);
        Some((hi20 as i32, lo12 as i32))
    }
}

impl fmt::Display for PcRel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+}", self.0)
    }
}

/// A stretch of addresses that execute.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct RxRange {
    /// The first address.
    pub start: RxAddr,
    /// How many bytes.
    pub len_bytes: usize,
}

impl RxRange {
    /// The range of `len_bytes` bytes from `start`.
    #[must_use]
    pub const fn new(start: RxAddr, len_bytes: usize) -> Self {
        Self { start, len_bytes }
    }

    /// The first address after the range (saturating at the top of the address space).
    #[must_use]
    pub const fn end(&self) -> RxAddr {
        RxAddr(self.start.0.saturating_add(self.len_bytes as u64))
    }

    /// Whether `addr` lies in the range.
    #[must_use]
    pub const fn contains(&self, addr: RxAddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end().0
    }

    /// Whether all of `other` lies in the range.
    #[must_use]
    pub const fn contains_range(&self, other: &Self) -> bool {
        match other.start.0.checked_add(other.len_bytes as u64) {
            Some(end) => self.start.0 <= other.start.0 && end <= self.end().0,
            None => false,
        }
    }

    /// The part of `len_bytes` bytes from `off_bytes` on, or `None` when it does not fit.
    #[must_use]
    pub const fn sub(&self, off_bytes: usize, len_bytes: usize) -> Option<Self> {
        match off_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.len_bytes => match self.start.checked_add(off_bytes as u64) {
                Some(start) => Some(Self { start, len_bytes }),
                None => None,
            },
            _ => None,
        }
    }
}

impl fmt::Display for RxRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hi20_lo12_adds_up_at_the_edges() {
        for (rel, want) in [
            (0i64, Some((0, 0))),
            (0x7ff, Some((0, 0x7ff))),
            (0x800, Some((1, -0x800))),
            (-0x800, Some((0, -0x800))),
            (-0x801, Some((-1, 0x7ff))),
            ((1 << 31) - (1 << 11) - 1, Some((0x7ffff, 0x7ff))),
            ((1 << 31) - (1 << 11), None),
            (-(1 << 31) - (1 << 11), Some((-0x80000, -0x800))),
            (-(1 << 31) - (1 << 11) - 1, None),
        ] {
            let got = PcRel(rel).hi20_lo12();
            assert_eq!(got, want, "{rel:#x}");
            if let Some((hi, lo)) = got {
                assert_eq!((i64::from(hi) << 12) + i64::from(lo), rel);
            }
        }
    }

    #[test]
    fn jal_reaches_one_mib_and_even_only() {
        for (rel, want) in [
            ((1 << 20) - 2, true),
            (1 << 20, false),
            (-(1 << 20), true),
            (-(1 << 20) - 2, false),
            (3, false),
        ] {
            assert_eq!(PcRel(rel).fits_jal(), want, "{rel:#x}");
        }
    }

    #[test]
    fn ranges_do_not_wrap() {
        let top = RxRange::new(RxAddr::new(u64::MAX - 3), 16);
        assert_eq!(top.end().get(), u64::MAX);
        assert!(!top.contains_range(&top));
        let r = RxRange::new(RxAddr::new(0x1000), 0x100);
        assert_eq!(r.sub(0xf0, 0x10).map(|s| s.start.get()), Some(0x10f0));
        assert_eq!(r.sub(0xf0, 0x11), None);
        assert_eq!(r.sub(usize::MAX, 2), None);
        assert!(r.contains(RxAddr::new(0x10ff)) && !r.contains(RxAddr::new(0x1100)));
    }
}
