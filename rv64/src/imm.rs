//! Immediates whose only constructor is the range check.
//!
//! Key types: [`SImm`] (signed), [`UImm`] (unsigned), [`Offset`] (a branch or
//! jump distance: signed and even), [`PrefetchOffset`]. No encoder masks a
//! value: what has one of these types fits its field.
//!
//! A constant is checked at compile time by [`imm!`](crate::imm!),
//! [`uimm!`](crate::uimm!) and [`offset!`](crate::offset!), a variable by
//! `new`, which answers `None` for what does not fit.
//!
//! Neighbours: [`crate::insn`] places them into words.
//!
//! Source: Unprivileged ISA, "Immediate Encoding Variants".

use core::fmt;

/// A signed immediate of `BITS` bits (at most 32).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SImm<const BITS: u32>(i32);

impl<const BITS: u32> SImm<BITS> {
    /// The smallest value.
    pub const MIN: Self = Self(-1 << (BITS - 1));
    /// The largest value.
    pub const MAX: Self = Self(!Self::MIN.0);
    /// Zero.
    pub const ZERO: Self = Self(0);

    /// `value`, if it fits.
    #[must_use]
    pub const fn new(value: i64) -> Option<Self> {
        if Self::MIN.0 as i64 <= value && value <= Self::MAX.0 as i64 {
            Some(Self(value as i32))
        } else {
            None
        }
    }

    /// A constant, checked while compiling.
    ///
    /// ```compile_fail,E0080
    /// # use rvbpf_rv64 as rv64;
    /// let _ = rv64::SImm::<12>::of::<2048>();
    /// ```
    #[must_use]
    pub const fn of<const VALUE: i64>() -> Self {
        const { Self::literal(VALUE) }
    }

    /// What [`imm!`](crate::imm!) evaluates at compile time.
    #[doc(hidden)]
    #[must_use]
    pub const fn literal(value: i64) -> Self {
        match Self::new(value) {
            Some(imm) => imm,
            None => panic!("immediate out of range"),
        }
    }

    /// The value.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0 as i64
    }

    /// The low `BITS` bits of the two's complement, as a field holds them.
    pub(crate) const fn field(self) -> u32 {
        self.0 as u32 & (u32::MAX >> (32 - BITS))
    }

    /// The value of a field; bits above it are ignored.
    pub(crate) const fn from_field(field: u32) -> Self {
        Self((field << (32 - BITS)) as i32 >> (32 - BITS))
    }
}

impl<const BITS: u32> fmt::Display for SImm<BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The bits of the field.
impl<const BITS: u32> fmt::LowerHex for SImm<BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.field(), f)
    }
}

impl<const BITS: u32> TryFrom<i64> for SImm<BITS> {
    type Error = ImmRange;

    fn try_from(value: i64) -> Result<Self, ImmRange> {
        Self::new(value).ok_or(ImmRange { value, bits: BITS })
    }
}

impl From<i8> for SImm<12> {
    fn from(value: i8) -> Self {
        Self(value.into())
    }
}

impl From<u8> for SImm<12> {
    fn from(value: u8) -> Self {
        Self(value.into())
    }
}

/// An unsigned immediate or a shift amount of `BITS` bits (at most 31).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UImm<const BITS: u32>(u32);

impl<const BITS: u32> UImm<BITS> {
    /// The largest value.
    pub const MAX: Self = Self((1 << BITS) - 1);
    /// Zero.
    pub const ZERO: Self = Self(0);

    /// `value`, if it fits.
    #[must_use]
    pub const fn new(value: i64) -> Option<Self> {
        if 0 <= value && value <= Self::MAX.0 as i64 {
            Some(Self(value as u32))
        } else {
            None
        }
    }

    /// A constant, checked while compiling.
    #[must_use]
    pub const fn of<const VALUE: i64>() -> Self {
        const { Self::literal(VALUE) }
    }

    /// What [`uimm!`](crate::uimm!) evaluates at compile time.
    #[doc(hidden)]
    #[must_use]
    pub const fn literal(value: i64) -> Self {
        match Self::new(value) {
            Some(imm) => imm,
            None => panic!("immediate out of range"),
        }
    }

    /// The value.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The value of a field; bits above it are ignored.
    pub(crate) const fn from_field(field: u32) -> Self {
        Self(field & Self::MAX.0)
    }
}

impl<const BITS: u32> fmt::Display for UImm<BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const BITS: u32> TryFrom<i64> for UImm<BITS> {
    type Error = ImmRange;

    fn try_from(value: i64) -> Result<Self, ImmRange> {
        Self::new(value).ok_or(ImmRange { value, bits: BITS })
    }
}

/// The distance of a branch (`BITS` = 13, ±4 KiB) or a jump (`BITS` = 21,
/// ±1 MiB) in bytes: signed and even.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Offset<const BITS: u32>(SImm<BITS>);

impl<const BITS: u32> Offset<BITS> {
    /// The farthest backward.
    pub const MIN: Self = Self(SImm::MIN);
    /// The farthest forward.
    pub const MAX: Self = Self(SImm(SImm::<BITS>::MAX.0 - 1));
    /// Zero: a jump to itself.
    pub const ZERO: Self = Self(SImm::ZERO);

    /// `bytes`, if it is even and fits.
    #[must_use]
    pub const fn new(bytes: i64) -> Option<Self> {
        match SImm::new(bytes) {
            Some(imm) if bytes % 2 == 0 => Some(Self(imm)),
            _ => None,
        }
    }

    /// A constant, checked while compiling.
    #[must_use]
    pub const fn of<const BYTES: i64>() -> Self {
        const { Self::literal(BYTES) }
    }

    /// What [`offset!`](crate::offset!) evaluates at compile time.
    #[doc(hidden)]
    #[must_use]
    pub const fn literal(bytes: i64) -> Self {
        match Self::new(bytes) {
            Some(offset) => offset,
            None => panic!("offset odd or out of range"),
        }
    }

    /// The distance in bytes.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0.get()
    }

    /// The low `BITS` bits; bit 0 is zero.
    pub(crate) const fn field(self) -> u32 {
        self.0.field()
    }

    /// The distance of a field whose bit 0 is zero.
    pub(crate) const fn from_field(field: u32) -> Self {
        Self(SImm::from_field(field & !1))
    }
}

/// As GNU as reads it: relative to the instruction itself.
impl<const BITS: u32> fmt::Display for Offset<BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ".{:+}", self.get())
    }
}

impl<const BITS: u32> TryFrom<i64> for Offset<BITS> {
    type Error = ImmRange;

    fn try_from(value: i64) -> Result<Self, ImmRange> {
        Self::new(value).ok_or(ImmRange { value, bits: BITS })
    }
}

/// The offset of a prefetch: twelve signed bits, a multiple of 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PrefetchOffset(SImm<12>);

impl PrefetchOffset {
    /// `bytes`, if it is a multiple of 32 and fits.
    #[must_use]
    pub const fn new(bytes: i64) -> Option<Self> {
        match SImm::new(bytes) {
            Some(imm) if bytes % 32 == 0 => Some(Self(imm)),
            _ => None,
        }
    }

    /// The offset in bytes.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0.get()
    }
}

/// A number that does not fit its field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{value} does not fit an immediate of {bits} bits")]
pub struct ImmRange {
    /// The number.
    pub value: i64,
    /// The width of the field.
    pub bits: u32,
}

/// A constant [`SImm`], checked while compiling; its width comes from where
/// it is used.
///
/// ```
/// # use rvbpf_rv64 as rv64;
/// use rv64::{Reg::*, addi, imm};
/// assert_eq!(addi(Sp, Sp, imm!(-64)).to_string(), "addi sp, sp, -64");
/// ```
/// ```compile_fail,E0080
/// # use rvbpf_rv64 as rv64;
/// use rv64::{Reg::*, addi, imm};
/// addi(Sp, Sp, imm!(2048));
/// ```
#[macro_export]
macro_rules! imm {
    ($value:expr) => {
        const { $crate::SImm::literal($value) }
    };
}

/// A constant [`UImm`] or shift amount, checked while compiling.
///
/// ```
/// # use rvbpf_rv64 as rv64;
/// use rv64::{Reg::*, slli, uimm};
/// assert_eq!(slli(A0, A0, uimm!(63)).to_string(), "slli a0, a0, 63");
/// ```
/// ```compile_fail,E0080
/// # use rvbpf_rv64 as rv64;
/// use rv64::{Reg::*, slli, uimm};
/// slli(A0, A0, uimm!(64));
/// ```
#[macro_export]
macro_rules! uimm {
    ($value:expr) => {
        const { $crate::UImm::literal($value) }
    };
}

/// A constant [`Offset`], checked while compiling.
///
/// ```
/// # use rvbpf_rv64 as rv64;
/// use rv64::{Reg::*, jal, offset};
/// assert_eq!(jal(Ra, offset!(-2)).to_string(), "jal ra, .-2");
/// ```
/// ```compile_fail,E0080
/// # use rvbpf_rv64 as rv64;
/// use rv64::{Reg::*, jal, offset};
/// jal(Ra, offset!(3));
/// ```
#[macro_export]
macro_rules! offset {
    ($bytes:expr) => {
        const { $crate::Offset::literal($bytes) }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constructor_is_the_range_check() {
        assert_eq!(SImm::<12>::new(-2048).map(SImm::get), Some(-2048));
        assert_eq!(SImm::<12>::new(2047).map(SImm::get), Some(2047));
        assert_eq!(SImm::<12>::new(2048), None);
        assert_eq!(SImm::<12>::new(-2049), None);
        assert_eq!(SImm::<32>::new(i64::from(i32::MIN)), Some(SImm::MIN));
        assert_eq!(SImm::<32>::new(1 << 31), None);
        assert_eq!(SImm::<12>::new(i64::MIN), None);
        assert_eq!(UImm::<5>::new(31), Some(UImm::MAX));
        assert_eq!(UImm::<5>::new(32), None);
        assert_eq!(UImm::<5>::new(-1), None);
        assert_eq!(Offset::<13>::new(4094), Some(Offset::MAX));
        assert_eq!(Offset::<13>::new(-4096), Some(Offset::MIN));
        assert_eq!(Offset::<13>::new(4095), None);
        assert_eq!(Offset::<13>::new(4096), None);
        assert_eq!(Offset::<13>::new(-1), None);
        assert_eq!(
            PrefetchOffset::new(2016).map(PrefetchOffset::get),
            Some(2016)
        );
        assert_eq!(PrefetchOffset::new(2017), None);
        assert_eq!(PrefetchOffset::new(2048), None);
    }

    #[test]
    fn fields_keep_the_sign() {
        for value in -2048..2048 {
            let imm = SImm::<12>::new(value).unwrap();
            assert_eq!(SImm::<12>::from_field(imm.field()), imm);
        }
    }

    #[test]
    fn the_error_names_value_and_width() {
        let err = SImm::<12>::try_from(4096_i64).unwrap_err();
        assert_eq!(err.to_string(), "4096 does not fit an immediate of 12 bits");
    }
}
