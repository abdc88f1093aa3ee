//! Which extensions the code may use.
//!
//! Key type: [`Features`]. The caller fills it from `riscv_hwprobe` or from
//! a wish; nothing here asks the machine.
//!
//! Neighbours: [`crate::Asm`] and [`crate::li()`] obey it.
//!
//! Source: RVA22 and RVA23 profiles.

/// The extensions beyond RV64G that code may use.
///
/// ```
/// # use rvbpf_rv64 as rv64;
/// use rv64::Features;
/// let u74 = Features { zba: true, zbb: true, ..Features::RV64GC };
/// assert!(u74.c && !u74.zbs);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// Compressed instructions.
    pub c: bool,
    /// Address generation.
    pub zba: bool,
    /// Basic bit manipulation.
    pub zbb: bool,
    /// Single bits.
    pub zbs: bool,
    /// Conditional zero.
    pub zicond: bool,
    /// Compare-and-swap.
    pub zacas: bool,
    /// Byte and half-word atomics.
    pub zabha: bool,
    /// More compressed instructions. Asks for `c`.
    pub zcb: bool,
    /// Prefetch hints.
    pub zicbop: bool,
    /// Landing pads.
    pub zicfilp: bool,
}

impl Features {
    /// RV64G: nothing beyond.
    pub const RV64G: Self = Self {
        c: false,
        zba: false,
        zbb: false,
        zbs: false,
        zicond: false,
        zacas: false,
        zabha: false,
        zcb: false,
        zicbop: false,
        zicfilp: false,
    };

    /// RV64GC: what every Linux distribution asks for.
    pub const RV64GC: Self = Self {
        c: true,
        ..Self::RV64G
    };

    /// SiFive U74: RV64GC with Zba and Zbb.
    pub const U74: Self = Self {
        zba: true,
        zbb: true,
        ..Self::RV64GC
    };

    /// The mandatory part of the RVA22U64 profile.
    pub const RVA22: Self = Self {
        zbs: true,
        zicbop: true,
        ..Self::U74
    };

    /// The mandatory part of the RVA23U64 profile.
    pub const RVA23: Self = Self {
        zicond: true,
        zcb: true,
        ..Self::RVA22
    };

    /// All that this crate knows.
    pub const ALL: Self = Self {
        zacas: true,
        zabha: true,
        zicfilp: true,
        ..Self::RVA23
    };
}
