//! Vector instructions, as far as integer and floating-point registers are concerned.
//!
//! ```text
//! 31    26 25 24  20 19  15 14  12 11  7 6     0
//! | funct6 |vm| vs2  | vs1  | form | vd  | OP-V |    vs1 is rs1 or an immediate, vd may be rd
//! | nf|mew|mop|vm| rs2 | rs1 | width | vd | LOAD-FP, STORE-FP |
//! ```
//! Which `funct6` a form has is a set of 64 bits, written as the list of its members.
//!
//! Source: Unprivileged ISA, "V" ("Vector Instruction Listing", "Vector Memory Instruction
//! Encoding"), "Vector Bit-manipulation and Cryptography" (Zvbb, Zvbc, Zvk), "Zvfbfmin",
//! "Zvfbfwma".

use crate::insn::bits::{LOAD_FP, STORE_FP};
use crate::insn::place::{bits, fd, fs1, rd, rs1, rs2};
use crate::{Reg, RegSet};

const OP_V: u32 = 0b101_0111;
const OP_VE: u32 = 0b111_0111;

/// A set of numbers below 64.
const fn set(members: &[u32]) -> u64 {
    let (mut bits, mut at) = (0, 0);
    while at < members.len() {
        bits |= 1 << members[at];
        at += 1;
    }
    bits
}

const fn has(set: u64, member: u32) -> bool {
    set >> member & 1 != 0
}

/// A range of numbers as a set.
const fn span(first: u32, last: u32) -> u64 {
    u64::MAX >> (63 - last) & u64::MAX << first
}

/// Integer arithmetic: vector with vector. Those of Zvbb behind V's.
const OPIVV: u64 = set(&[0, 2, 9, 10, 11, 12, 14, 23, 37, 39])
    | span(4, 7)
    | span(16, 19)
    | span(24, 29)
    | span(32, 35)
    | span(40, 49)
    | set(&[1, 20, 21, 53]);
/// With a register.
const OPIVX: u64 = set(&[0, 2, 3, 9, 10, 11, 12, 14, 15, 23, 37, 39])
    | span(4, 7)
    | span(16, 19)
    | span(24, 35)
    | span(40, 47)
    | set(&[1, 20, 21, 53]);
/// With an immediate.
const OPIVI: u64 = set(&[
    0, 3, 9, 10, 11, 12, 14, 15, 16, 17, 23, 24, 25, 32, 33, 37, 39,
]) | span(28, 31)
    | span(40, 47)
    | set(&[20, 21, 53]);
/// Reductions, masks, multiplication, widening. Those of Zvbc behind V's.
const OPMVV: u64 = set(&[16, 18, 20, 23, 41, 43, 45, 47, 63])
    | span(0, 11)
    | span(24, 39)
    | span(48, 56)
    | span(58, 61)
    | set(&[12, 13]);
/// With a register.
const OPMVX: u64 = set(&[14, 15, 16, 41, 43, 45, 47])
    | span(8, 11)
    | span(32, 39)
    | span(48, 56)
    | span(58, 63)
    | set(&[12, 13]);
/// Floating point. That of Zvfbfwma behind V's.
const OPFVV: u64 = set(&[16, 18, 19, 24, 25, 27, 28, 32, 36, 54, 56, 59])
    | span(0, 10)
    | span(40, 52)
    | span(60, 63);
/// With a floating-point register.
const OPFVF: u64 = set(&[
    0, 2, 4, 6, 8, 9, 10, 14, 15, 16, 23, 24, 25, 27, 28, 29, 31, 32, 33, 36, 39, 48, 50, 52, 54,
    56, 59,
]) | span(40, 47)
    | span(60, 63);

/// The fields that tell instructions apart.
struct Fields {
    funct6: u32,
    /// Zero if masked by `v0`.
    vm: u32,
    vs2: u32,
    vs1: u32,
}

/// What `word` reads and writes.
pub(super) fn regs(word: u32) -> Option<(RegSet, RegSet)> {
    match bits(word, 6, 0) {
        OP_V if bits(word, 14, 12) == 0b111 => configure(word),
        OP_V => arithmetic(word),
        OP_VE => crypto(word),
        LOAD_FP => memory(word, Access::Load),
        STORE_FP => memory(word, Access::Store),
        _ => None,
    }
}

/// vsetvli, vsetivli, vsetvl.
fn configure(word: u32) -> Option<(RegSet, RegSet)> {
    let (rd, rs1, rs2) = (rd::get(word)?, rs1::get(word)?, rs2::get(word)?);
    let reads = match bits(word, 31, 25) {
        0b000_0000..=0b011_1111 => RegSet::of(&[rs1]),
        0b110_0000..=0b111_1111 => RegSet::EMPTY,
        0b100_0000 => RegSet::of(&[rs1, rs2]),
        _ => return None,
    };
    Some((reads, RegSet::of(&[rd])))
}

fn arithmetic(word: u32) -> Option<(RegSet, RegSet)> {
    let f = Fields {
        funct6: bits(word, 31, 26),
        vm: bits(word, 25, 25),
        vs2: bits(word, 24, 20),
        vs1: bits(word, 19, 15),
    };
    let scalar = RegSet::of(&[rs1::get(word)?]);
    let none = RegSet::EMPTY;
    match bits(word, 14, 12) {
        0b000 => (has(OPIVV, f.funct6) && f.integer()).then_some((none, none)),
        // vfmv.f.s
        0b001 if f.funct6 == 16 => {
            let fd = RegSet::of_floats(&[fd::get(word)?]);
            f.float().then_some((none, fd))
        }
        0b001 => (has(OPFVV, f.funct6) && f.float()).then_some((none, none)),
        0b010 if f.funct6 == 16 => {
            let rd = RegSet::of(&[rd::get(word)?]);
            // vmv.x.s, vcpop.m, vfirst.m
            (f.vs1 == 0 && f.vm == 1 || matches!(f.vs1, 16 | 17)).then_some((none, rd))
        }
        0b010 => (has(OPMVV, f.funct6) && f.mask_or_unary()).then_some((none, none)),
        0b011 => (has(OPIVI, f.funct6) && f.immediate()).then_some((none, none)),
        0b100 => (has(OPIVX, f.funct6) && f.integer()).then_some((scalar, none)),
        0b101 => {
            let scalar = RegSet::of_floats(&[fs1::get(word)?]);
            (has(OPFVF, f.funct6) && f.float_scalar()).then_some((scalar, none))
        }
        _ => {
            // vmv.s.x
            let whole = f.funct6 != 16 || f.vs2 == 0 && f.vm == 1;
            (has(OPMVX, f.funct6) && whole).then_some((scalar, none))
        }
    }
}

impl Fields {
    /// vadc and vsbc ask for a mask; a move has no `vs2`.
    fn integer(&self) -> bool {
        match self.funct6 {
            16 | 18 => self.vm == 0,
            23 => self.vm == 0 || self.vs2 == 0,
            _ => true,
        }
    }

    /// The same, and moves of whole registers: one, two, four or eight. A rotation has a sixth
    /// bit of its immediate where others have `funct6`.
    fn immediate(&self) -> bool {
        match self.funct6 {
            39 => self.vm == 1 && matches!(self.vs1, 0 | 1 | 3 | 7),
            _ => self.integer(),
        }
    }

    /// Extensions, bits, masks, and what is never masked.
    fn mask_or_unary(&self) -> bool {
        match self.funct6 {
            18 => matches!(self.vs1, 2..=10 | 12..=14),
            20 => matches!(self.vs1, 1..=3 | 16) || self.vs1 == 17 && self.vs2 == 0,
            23..=31 => self.vm == 1,
            _ => true,
        }
    }

    /// Conversions and other unary operations.
    fn float(&self) -> bool {
        match self.funct6 {
            16 => self.vs1 == 0 && self.vm == 1,
            18 => matches!(self.vs1, 0..=3 | 6..=15 | 16..=23 | 29),
            19 => matches!(self.vs1, 0 | 4 | 5 | 16),
            _ => true,
        }
    }

    /// Moves have no `vs2`.
    fn float_scalar(&self) -> bool {
        match self.funct6 {
            16 => self.vs2 == 0 && self.vm == 1,
            23 => self.vm == 0 || self.vs2 == 0,
            _ => true,
        }
    }
}

/// Zvk: all unmasked, between vectors.
fn crypto(word: u32) -> Option<(RegSet, RegSet)> {
    if bits(word, 14, 12) != 0b010 || bits(word, 25, 25) == 0 {
        return None;
    }
    let known = match bits(word, 31, 26) {
        32..=34 | 42..=47 => true,
        // Of vectors: vaes*, vsm4r, vgmul.
        40 => matches!(bits(word, 19, 15), 0..=3 | 16 | 17),
        // With one element of `vs2`.
        41 => matches!(bits(word, 19, 15), 0..=3 | 7 | 16),
        _ => false,
    };
    known.then_some((RegSet::EMPTY, RegSet::EMPTY))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Load,
    Store,
}

fn memory(word: u32, access: Access) -> Option<(RegSet, RegSet)> {
    let (width, vm, nf) = (bits(word, 14, 12), bits(word, 25, 25), bits(word, 31, 29));
    if !matches!(width, 0 | 5..=7) || bits(word, 28, 28) != 0 {
        return None;
    }
    let base = rs1::get(word)?;
    let stride = match (bits(word, 27, 26), bits(word, 24, 20)) {
        (0b00, 0) | (0b01 | 0b11, _) => Reg::Zero,
        // Whole registers.
        (0b00, 8) if vm == 1 && matches!(nf, 0 | 1 | 3 | 7) => match access {
            Access::Store if width != 0 => return None,
            _ => Reg::Zero,
        },
        // Masks.
        (0b00, 11) if vm == 1 && nf == 0 && width == 0 => Reg::Zero,
        // Up to the first fault.
        (0b00, 16) if access == Access::Load => Reg::Zero,
        (0b10, _) => rs2::get(word)?,
        _ => return None,
    };
    Some((RegSet::of(&[base, stride]), RegSet::EMPTY))
}
