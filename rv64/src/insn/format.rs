//! The macros that make everything from a row.
//!
//! [`formats!`] lists the instruction formats: the operands, their places,
//! and the assembler text. It makes [`Insn`](super::Insn) with its encoder,
//! its decoder and its `Display`. [`rows!`] lists the instructions of one
//! format: each row makes the constructor function, the fixed bits that
//! encoder and decoder use, the mnemonic, and the entry of the oracle test.
//!
//! Neighbours: `place` (the operands' places), the tables beside this file.
//!
//! Source: Unprivileged ISA, "RV32/64G Instruction Set Listings".

/// Declares [`Insn`](super::Insn) from the list of formats.
macro_rules! formats {
    ($(
        $(#[$doc:meta])*
        $Var:ident($op:ident: $Op:ident) { $($f:ident: $place:ident),* } $text:literal;
    )*) => {
        /// One instruction: any value is valid and encodes to one word.
        ///
        /// Made by the constructor functions of [`insn`](crate::insn), or
        /// by [`Insn::decode`]. `Display` writes it in the syntax of GNU as.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum Insn {$(
            $(#[$doc])*
            #[allow(missing_docs, reason = "operands carry the manual's names")]
            $Var { $op: $Op, $($f: place::$place::Operand),* },
        )*}

        impl Insn {
            /// The 32-bit word.
            #[must_use]
            pub const fn encode(self) -> u32 {
                match self {$(
                    Self::$Var { $op, $($f),* } => $op.bits() $(| place::$place::put($f))*,
                )*}
            }

            /// The row and operands of `word`, if it has one.
            pub(super) const fn from_word(word: u32) -> Option<Self> {
                $({
                    const FIXED: u32 = !(0 $(| place::$place::MASK)*);
                    if let Some($op) = $Op::from_bits(word & FIXED) {
                        $(let Some($f) = place::$place::get(word) else { return None };)*
                        return Some(Self::$Var { $op, $($f),* });
                    }
                })*
                None
            }

            /// The registers in the fields that it reads. `zero` is none.
            pub(crate) const fn fields_read(self) -> RegSet {
                match self {$(
                    Self::$Var { $($f,)* .. } => RegSet::EMPTY $(.union(place::$place::reads($f)))*,
                )*}
            }

            /// The registers in the fields that it writes. `zero` is none.
            pub(crate) const fn fields_written(self) -> RegSet {
                match self {$(
                    Self::$Var { $($f,)* .. } => RegSet::EMPTY $(.union(place::$place::writes($f)))*,
                )*}
            }

            /// The mnemonic and operands, without aliases.
            pub(super) fn fmt_plain(self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self {$(
                    Self::$Var { $op, $($f),* } => write!(f, $text),
                )*}
            }

            /// The mnemonic, without ordering or operands.
            #[must_use]
            pub const fn mnemonic(self) -> &'static str {
                match self {$( Self::$Var { $op, .. } => $op.mnemonic(), )*}
            }

            /// The extension it belongs to.
            #[must_use]
            pub const fn ext(self) -> Ext {
                match self {$( Self::$Var { $op, .. } => $op.ext(), )*}
            }

            /// Every row with every edge operand, others held at a middle value.
            #[cfg(test)]
            pub(crate) fn edges() -> Vec<Self> {
                #[allow(unused_imports)]
                use crate::testing::Edges;
                let mut all = Vec::new();
                $(for &$op in $Op::ALL {
                    $(let $f = <place::$place::Operand as Edges>::middle();)*
                    let middle = Self::$Var { $op, $($f),* };
                    all.push(middle);
                    formats!(@edges all middle $Var $($f: $place),*);
                })*
                all
            }

            /// Fixed bits, their mask and the mnemonic of every row.
            #[cfg(test)]
            pub(crate) fn patterns() -> Vec<(u32, u32, &'static str)> {
                let mut all = Vec::new();
                $(for &op in $Op::ALL {
                    all.push((op.bits(), !(0 $(| place::$place::MASK)*), op.mnemonic()));
                })*
                all
            }
        }
    };
    (@edges $all:ident $middle:ident $Var:ident $($f:ident: $place:ident),*) => {
        $(for edge in <place::$place::Operand as Edges>::edges() {
            let mut insn = $middle;
            #[allow(irrefutable_let_patterns, reason = "one format or many")]
            if let Self::$Var { $f, .. } = &mut insn {
                *$f = edge;
            }
            $all.push(insn);
        })*
    };
}

/// Declares the instructions of one format.
macro_rules! rows {
    (
        $(#[$doc:meta])*
        $Op:ident => $Var:ident $operands:tt, $bits:ident;
        $(
            $(#[$row_doc:meta])*
            $Row:ident $fun:ident $text:literal $ext:ident $args:tt;
        )*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum $Op {$(
            #[doc = concat!("`", $text, "`, made by [`", stringify!($fun), "`].")]
            $Row,
        )*}

        impl $Op {
            /// Every row.
            pub const ALL: &'static [Self] = &[$(Self::$Row),*];

            /// The bits that are no operand.
            #[must_use]
            pub const fn bits(self) -> u32 {
                match self {$( Self::$Row => $bits $args, )*}
            }

            /// The row with these bits.
            #[allow(non_upper_case_globals, reason = "named after the rows")]
            const fn lookup(bits: u32) -> Option<Self> {
                $(const $Row: u32 = $bits $args;)*
                match bits {
                    $($Row => Some(Self::$Row),)*
                    _ => None,
                }
            }

            pub(super) const fn from_bits(bits: u32) -> Option<Self> {
                Self::lookup(bits)
            }

            /// The mnemonic.
            #[must_use]
            pub const fn mnemonic(self) -> &'static str {
                match self {$( Self::$Row => $text, )*}
            }

            /// The extension.
            #[must_use]
            pub const fn ext(self) -> Ext {
                match self {$( Self::$Row => Ext::$ext, )*}
            }
        }

        impl core::fmt::Display for $Op {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.mnemonic())
            }
        }

        $(rows! {
            @constructor $Op $Var $operands
            #[doc = concat!("`", $text, "`:")]
            $(#[$row_doc])*
            $Row $fun
        })*
    };
    (
        @constructor $Op:ident $Var:ident ($($f:ident: $place:ident),*)
        $(#[$doc:meta])*
        $Row:ident $fun:ident
    ) => {
        $(#[$doc])*
        #[must_use]
        pub const fn $fun($($f: place::$place::Operand),*) -> Insn {
            Insn::$Var { op: $Op::$Row, $($f),* }
        }
    };
}

pub(super) use {formats, rows};
