//! Registers, under their ABI names.
//!
//! Key types: [`Reg`] (x0 to x31) and [`FReg`] (f0 to f31). Both are meant
//! for a glob import: `use rv64::Reg::*`.
//!
//! Neighbours: every instruction in [`crate::insn`] takes them.
//!
//! Source: RISC-V ELF psABI, "Register Convention".

use core::fmt;

macro_rules! regs {
    ($(#[$doc:meta])* $name:ident { $($(#[$var_doc:meta])* $var:ident = $num:literal $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name {
            $(#[doc = concat!("`", $text, "`.")] $(#[$var_doc])* $var = $num,)*
        }

        impl $name {
            /// All 32, in order of their numbers.
            pub const ALL: [Self; 32] = [$(Self::$var,)*];

            /// The number that instructions carry, 0 to 31.
            #[must_use]
            pub const fn num(self) -> u32 {
                self as u32
            }

            /// The register with this number; `None` above 31.
            #[must_use]
            pub const fn from_num(num: u32) -> Option<Self> {
                if num < 32 { Some(Self::ALL[num as usize]) } else { None }
            }

            /// The ABI name, as GNU as writes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$var => $text,)* }
            }

            /// Whether this is one of the eight registers (numbers 8 to 15)
            /// that three-bit fields of compressed instructions can name.
            #[must_use]
            pub const fn is_compressible(self) -> bool {
                let num = self.num();
                8 <= num && num < 16
            }

            /// The register of a three-bit field of a compressed instruction.
            pub(crate) const fn from_low3(bits: u32) -> Self {
                Self::ALL[8 + (bits & 7) as usize]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

regs! {
    /// An integer register.
    Reg {
        /// Reads as zero, ignores writes.
        Zero = 0 "zero",
        /// Return address.
        Ra = 1 "ra",
        /// Stack pointer.
        Sp = 2 "sp",
        /// Global pointer: not for code that can be linked.
        Gp = 3 "gp",
        /// Thread pointer.
        Tp = 4 "tp",
        T0 = 5 "t0",
        T1 = 6 "t1",
        T2 = 7 "t2",
        /// Frame pointer, also called `fp`. Saved by the callee.
        Fp = 8 "s0",
        S1 = 9 "s1",
        A0 = 10 "a0",
        A1 = 11 "a1",
        A2 = 12 "a2",
        A3 = 13 "a3",
        A4 = 14 "a4",
        A5 = 15 "a5",
        A6 = 16 "a6",
        A7 = 17 "a7",
        S2 = 18 "s2",
        S3 = 19 "s3",
        S4 = 20 "s4",
        S5 = 21 "s5",
        S6 = 22 "s6",
        S7 = 23 "s7",
        S8 = 24 "s8",
        S9 = 25 "s9",
        S10 = 26 "s10",
        S11 = 27 "s11",
        T3 = 28 "t3",
        T4 = 29 "t4",
        T5 = 30 "t5",
        T6 = 31 "t6",
    }
}

impl Reg {
    /// The psABI's other name of the frame pointer.
    pub const S0: Self = Self::Fp;
}

regs! {
    /// A floating-point register.
    FReg {
        Ft0 = 0 "ft0",
        Ft1 = 1 "ft1",
        Ft2 = 2 "ft2",
        Ft3 = 3 "ft3",
        Ft4 = 4 "ft4",
        Ft5 = 5 "ft5",
        Ft6 = 6 "ft6",
        Ft7 = 7 "ft7",
        Fs0 = 8 "fs0",
        Fs1 = 9 "fs1",
        Fa0 = 10 "fa0",
        Fa1 = 11 "fa1",
        Fa2 = 12 "fa2",
        Fa3 = 13 "fa3",
        Fa4 = 14 "fa4",
        Fa5 = 15 "fa5",
        Fa6 = 16 "fa6",
        Fa7 = 17 "fa7",
        Fs2 = 18 "fs2",
        Fs3 = 19 "fs3",
        Fs4 = 20 "fs4",
        Fs5 = 21 "fs5",
        Fs6 = 22 "fs6",
        Fs7 = 23 "fs7",
        Fs8 = 24 "fs8",
        Fs9 = 25 "fs9",
        Fs10 = 26 "fs10",
        Fs11 = 27 "fs11",
        Ft8 = 28 "ft8",
        Ft9 = 29 "ft9",
        Ft10 = 30 "ft10",
        Ft11 = 31 "ft11",
    }
}

/// An even integer register: the first of the pair that `amocas.q` works on.
/// `zero` names the pair that reads as zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EvenReg(Reg);

impl EvenReg {
    /// `reg`, if its number is even.
    #[must_use]
    pub const fn new(reg: Reg) -> Option<Self> {
        if reg.num() % 2 == 0 {
            Some(Self(reg))
        } else {
            None
        }
    }

    /// The register.
    #[must_use]
    pub const fn get(self) -> Reg {
        self.0
    }
}

impl fmt::Display for EvenReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
