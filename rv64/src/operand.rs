//! Operands that are neither registers nor numbers.
//!
//! Key types: [`Order`] of an atomic, [`Rm`] of a rounding, [`FenceSet`] of
//! a fence, [`Csr`].
//!
//! Neighbours: the tables in [`crate::insn`] take them.
//!
//! Source: Unprivileged ISA, chapters "A", "F", "Memory Ordering
//! Instructions" and "Zicsr".

use core::fmt;

/// The ordering bits of an atomic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Order {
    /// None.
    Relaxed = 0,
    /// `.rl`: after everything before it.
    Rl = 1,
    /// `.aq`: before everything after it.
    Aq = 2,
    /// `.aqrl`: both.
    AqRl = 3,
}

impl Order {
    /// All four, in order of their bits.
    pub const ALL: [Self; 4] = [Self::Relaxed, Self::Rl, Self::Aq, Self::AqRl];
}

/// The suffix of the mnemonic.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["", ".rl", ".aq", ".aqrl"][*self as usize])
    }
}

/// A rounding mode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Rm {
    /// To nearest, ties to even.
    Rne = 0,
    /// Towards zero.
    Rtz = 1,
    /// Down.
    Rdn = 2,
    /// Up.
    Rup = 3,
    /// To nearest, ties away from zero.
    Rmm = 4,
    /// What `frm` says.
    Dyn = 7,
}

impl Rm {
    /// All six, in order of their bits.
    pub const ALL: [Self; 6] = [
        Self::Rne,
        Self::Rtz,
        Self::Rdn,
        Self::Rup,
        Self::Rmm,
        Self::Dyn,
    ];

    /// The mode of a field; 5 and 6 are reserved.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            0..=4 => Some(Self::ALL[bits as usize]),
            7 => Some(Self::Dyn),
            _ => None,
        }
    }
}

impl fmt::Display for Rm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rne => "rne",
            Self::Rtz => "rtz",
            Self::Rdn => "rdn",
            Self::Rup => "rup",
            Self::Rmm => "rmm",
            Self::Dyn => "dyn",
        })
    }
}

/// What one side of a fence orders: a non-empty set of reads and writes, of
/// memory and of devices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FenceSet(u8);

impl FenceSet {
    /// Memory writes.
    pub const W: Self = Self(0b0001);
    /// Memory reads.
    pub const R: Self = Self(0b0010);
    /// Memory reads and writes.
    pub const RW: Self = Self(0b0011);
    /// Device output.
    pub const O: Self = Self(0b0100);
    /// Device input.
    pub const I: Self = Self(0b1000);
    /// Everything.
    pub const IORW: Self = Self(0b1111);

    /// The set of a field. The empty set is `None`: fences with it are hints.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if 1 <= bits && bits <= 15 {
            Some(Self(bits as u8))
        } else {
            None
        }
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bits of the field.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for FenceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(8, "i"), (4, "o"), (2, "r"), (1, "w")] {
            if self.0 & bit != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// The number of a control and status register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Csr(u16);

macro_rules! csrs {
    ($($(#[$doc:meta])* $name:ident = $num:literal $text:literal;)*) => {
        impl Csr {
            $($(#[$doc])* pub const $name: Self = Self($num);)*

            /// The name, for those that unprivileged code meets.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($num => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

csrs! {
    /// Accrued floating-point exceptions.
    FFLAGS = 0x001 "fflags";
    /// Floating-point rounding mode.
    FRM = 0x002 "frm";
    /// Both of the above.
    FCSR = 0x003 "fcsr";
    /// Vector start index.
    VSTART = 0x008 "vstart";
    /// Vector fixed-point saturation flag.
    VXSAT = 0x009 "vxsat";
    /// Vector fixed-point rounding mode.
    VXRM = 0x00a "vxrm";
    /// Both of the above.
    VCSR = 0x00f "vcsr";
    /// Cycle counter.
    CYCLE = 0xc00 "cycle";
    /// Real-time counter.
    TIME = 0xc01 "time";
    /// Counter of retired instructions.
    INSTRET = 0xc02 "instret";
    /// Vector length.
    VL = 0xc20 "vl";
    /// Vector type.
    VTYPE = 0xc21 "vtype";
    /// Bytes in a vector register.
    VLENB = 0xc22 "vlenb";
}

impl Csr {
    /// The register with this number; `None` above 4095.
    #[must_use]
    pub const fn new(num: u32) -> Option<Self> {
        if num < 0x1000 {
            Some(Self(num as u16))
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub const fn num(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for Csr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}
