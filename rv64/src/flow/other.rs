//! Rows of extensions that this crate does not assemble, for the registers that they touch.
//!
//! A row is a mnemonic, its fixed bits, and the places of its operands: the same places as those
//! of [`crate::insn`], which know what they read and write.
//!
//! Neighbours: [`super::vector`] has what is better said in bits than in rows.
//!
//! Source: Unprivileged ISA, chapters "Zbc", "Zbkb", "Zbkx", "Zkn", "Zks", "Zfh", "Zfa",
//! "Zfbfmin", "Zimop", "Zcmop", "CMO", "Zawrs"; "Memory Ordering Instructions" for fences that
//! order nothing, which are hints.

use crate::insn::bits::{
    LOAD_FP, MADD, MISC_MEM, MSUB, NMADD, NMSUB, OP, OP_32, OP_IMM, STORE_FP, SYSTEM, fp, fp2, fp3,
    fp23, fused, i, r, unary, word,
};
use crate::insn::place::{self, bits};
use crate::{Insn, Reg, RegSet, add};

/// Widths of floating point, as `fmt` holds them.
const S: u32 = 0b00;
const D: u32 = 0b01;
const H: u32 = 0b10;

/// `| funct5 | aq.. | rs2 | rs1 | funct3 | rd | opcode |` with a byte number above `rs2`.
const fn sm4(funct5: u32) -> u32 {
    r(OP, 0b000, funct5)
}

/// `| op | rs1 | 010 | 00000 | MISC-MEM |`: cache blocks.
const fn cbo(op: u32) -> u32 {
    op << 20 | i(MISC_MEM, 0b010)
}

/// `| fm | pred | succ | 00000 | 000 | 00000 | MISC-MEM |`
const fn fence(fm: u32) -> u32 {
    fm << 28 | i(MISC_MEM, 0b000)
}

macro_rules! others {
    ($($text:literal $bits:ident $args:tt [$($f:ident)*];)*) => {
        /// What `word` reads and writes.
        pub(super) const fn regs(word: u32) -> Option<(RegSet, RegSet)> {
            $({
                const MASK: u32 = !(0 $(| place::$f::MASK)*);
                const BITS: u32 = $bits $args;
                if word & MASK == BITS {
                    $(let Some($f) = place::$f::get(word) else { return None };)*
                    return Some((
                        RegSet::EMPTY $(.union(place::$f::reads($f)))*,
                        RegSet::EMPTY $(.union(place::$f::writes($f)))*,
                    ));
                }
            })*
            None
        }

        /// Fixed bits, their mask and the mnemonic of every row.
        #[cfg(test)]
        pub(super) const ROWS: &[(u32, u32, &str)] =
            &[$(($bits $args, !(0 $(| place::$f::MASK)*), $text)),*];
    };
}

others! {
    // Zbc, Zbkb, Zbkx.
    "clmul" r(OP, 0b001, 0b000_0101) [rd rs1 rs2];
    "clmulr" r(OP, 0b010, 0b000_0101) [rd rs1 rs2];
    "clmulh" r(OP, 0b011, 0b000_0101) [rd rs1 rs2];
    "pack" r(OP, 0b100, 0b000_0100) [rd rs1 rs2];
    "packh" r(OP, 0b111, 0b000_0100) [rd rs1 rs2];
    "packw" r(OP_32, 0b100, 0b000_0100) [rd rs1 rs2];
    "brev8" unary(OP_IMM, 0b101, 0b011_0100, 7) [rd rs1];
    "xperm4" r(OP, 0b010, 0b001_0100) [rd rs1 rs2];
    "xperm8" r(OP, 0b100, 0b001_0100) [rd rs1 rs2];

    // Zkn, Zks.
    "sha256sum0" unary(OP_IMM, 0b001, 0b000_1000, 0) [rd rs1];
    "sha256sum1" unary(OP_IMM, 0b001, 0b000_1000, 1) [rd rs1];
    "sha256sig0" unary(OP_IMM, 0b001, 0b000_1000, 2) [rd rs1];
    "sha256sig1" unary(OP_IMM, 0b001, 0b000_1000, 3) [rd rs1];
    "sha512sum0" unary(OP_IMM, 0b001, 0b000_1000, 4) [rd rs1];
    "sha512sum1" unary(OP_IMM, 0b001, 0b000_1000, 5) [rd rs1];
    "sha512sig0" unary(OP_IMM, 0b001, 0b000_1000, 6) [rd rs1];
    "sha512sig1" unary(OP_IMM, 0b001, 0b000_1000, 7) [rd rs1];
    "sm3p0" unary(OP_IMM, 0b001, 0b000_1000, 8) [rd rs1];
    "sm3p1" unary(OP_IMM, 0b001, 0b000_1000, 9) [rd rs1];
    "aes64im" unary(OP_IMM, 0b001, 0b001_1000, 0) [rd rs1];
    "aes64ks1i" unary(OP_IMM, 0b001, 0b001_1000, 0b10000) [rd rs1 rnum];
    "aes64ks2" r(OP, 0b000, 0b011_1111) [rd rs1 rs2];
    "aes64es" r(OP, 0b000, 0b001_1001) [rd rs1 rs2];
    "aes64esm" r(OP, 0b000, 0b001_1011) [rd rs1 rs2];
    "aes64ds" r(OP, 0b000, 0b001_1101) [rd rs1 rs2];
    "aes64dsm" r(OP, 0b000, 0b001_1111) [rd rs1 rs2];
    "sm4ed" sm4(0b11000) [rd rs1 rs2 bs];
    "sm4ks" sm4(0b11010) [rd rs1 rs2 bs];

    // Zfh.
    "flh" i(LOAD_FP, 0b001) [fd rs1 i_imm];
    "fsh" i(STORE_FP, 0b001) [fs2 rs1 s_imm];
    "fmadd.h" fused(MADD, H) [fd fs1 fs2 fs3 rm];
    "fmsub.h" fused(MSUB, H) [fd fs1 fs2 fs3 rm];
    "fnmsub.h" fused(NMSUB, H) [fd fs1 fs2 fs3 rm];
    "fnmadd.h" fused(NMADD, H) [fd fs1 fs2 fs3 rm];
    "fadd.h" fp(0b00000, H) [fd fs1 fs2 rm];
    "fsub.h" fp(0b00001, H) [fd fs1 fs2 rm];
    "fmul.h" fp(0b00010, H) [fd fs1 fs2 rm];
    "fdiv.h" fp(0b00011, H) [fd fs1 fs2 rm];
    "fsqrt.h" fp2(0b01011, H, 0) [fd fs1 rm];
    "fsgnj.h" fp3(0b00100, H, 0b000) [fd fs1 fs2];
    "fsgnjn.h" fp3(0b00100, H, 0b001) [fd fs1 fs2];
    "fsgnjx.h" fp3(0b00100, H, 0b010) [fd fs1 fs2];
    "fmin.h" fp3(0b00101, H, 0b000) [fd fs1 fs2];
    "fmax.h" fp3(0b00101, H, 0b001) [fd fs1 fs2];
    "feq.h" fp3(0b10100, H, 0b010) [rd fs1 fs2];
    "flt.h" fp3(0b10100, H, 0b001) [rd fs1 fs2];
    "fle.h" fp3(0b10100, H, 0b000) [rd fs1 fs2];
    "fcvt.w.h" fp2(0b11000, H, 0) [rd fs1 rm];
    "fcvt.wu.h" fp2(0b11000, H, 1) [rd fs1 rm];
    "fcvt.l.h" fp2(0b11000, H, 2) [rd fs1 rm];
    "fcvt.lu.h" fp2(0b11000, H, 3) [rd fs1 rm];
    "fcvt.h.w" fp2(0b11010, H, 0) [fd rs1 rm];
    "fcvt.h.wu" fp2(0b11010, H, 1) [fd rs1 rm];
    "fcvt.h.l" fp2(0b11010, H, 2) [fd rs1 rm];
    "fcvt.h.lu" fp2(0b11010, H, 3) [fd rs1 rm];
    "fcvt.h.s" fp2(0b01000, H, 0) [fd fs1 rm];
    "fcvt.h.d" fp2(0b01000, H, 1) [fd fs1 rm];
    "fcvt.s.h" fp23(0b01000, S, 2, 0) [fd fs1];
    "fcvt.d.h" fp23(0b01000, D, 2, 0) [fd fs1];
    "fmv.x.h" fp23(0b11100, H, 0, 0b000) [rd fs1];
    "fclass.h" fp23(0b11100, H, 0, 0b001) [rd fs1];
    "fmv.h.x" fp23(0b11110, H, 0, 0b000) [fd rs1];

    // Zfbfmin.
    "fcvt.s.bf16" fp23(0b01000, S, 6, 0) [fd fs1];
    "fcvt.bf16.s" fp2(0b01000, H, 8) [fd fs1 rm];

    // Zfa.
    "fli.s" fp23(0b11110, S, 1, 0b000) [fd zimm];
    "fli.d" fp23(0b11110, D, 1, 0b000) [fd zimm];
    "fli.h" fp23(0b11110, H, 1, 0b000) [fd zimm];
    "fminm.s" fp3(0b00101, S, 0b010) [fd fs1 fs2];
    "fmaxm.s" fp3(0b00101, S, 0b011) [fd fs1 fs2];
    "fminm.d" fp3(0b00101, D, 0b010) [fd fs1 fs2];
    "fmaxm.d" fp3(0b00101, D, 0b011) [fd fs1 fs2];
    "fminm.h" fp3(0b00101, H, 0b010) [fd fs1 fs2];
    "fmaxm.h" fp3(0b00101, H, 0b011) [fd fs1 fs2];
    "fround.s" fp2(0b01000, S, 4) [fd fs1 rm];
    "froundnx.s" fp2(0b01000, S, 5) [fd fs1 rm];
    "fround.d" fp2(0b01000, D, 4) [fd fs1 rm];
    "froundnx.d" fp2(0b01000, D, 5) [fd fs1 rm];
    "fround.h" fp2(0b01000, H, 4) [fd fs1 rm];
    "froundnx.h" fp2(0b01000, H, 5) [fd fs1 rm];
    "fcvtmod.w.d" fp23(0b11000, D, 8, 0b001) [rd fs1];
    "fleq.s" fp3(0b10100, S, 0b100) [rd fs1 fs2];
    "fltq.s" fp3(0b10100, S, 0b101) [rd fs1 fs2];
    "fleq.d" fp3(0b10100, D, 0b100) [rd fs1 fs2];
    "fltq.d" fp3(0b10100, D, 0b101) [rd fs1 fs2];
    "fleq.h" fp3(0b10100, H, 0b100) [rd fs1 fs2];
    "fltq.h" fp3(0b10100, H, 0b101) [rd fs1 fs2];

    // Zicbom, Zicboz.
    "cbo.inval" cbo(0) [rs1];
    "cbo.clean" cbo(1) [rs1];
    "cbo.flush" cbo(2) [rs1];
    "cbo.zero" cbo(4) [rs1];

    // Zawrs.
    "wrs.nto" word(0x00d0_0073) [];
    "wrs.sto" word(0x01d0_0073) [];

    // Fences that order nothing.
    "fence" fence(0) [fence_sets];

    // Zimop, and what is made of it: Zicfiss.
    "mop.r" word(0x81c0_4000 | SYSTEM) [rd rs1 mop_r];
    "mop.rr" word(0x8200_4000 | SYSTEM) [rd rs1 rs2 mop_rr];
}

/// What a `c.mop.n` stands for if it is `c.sspush ra` or `c.sspopchk t0`, and an addition to
/// `zero` otherwise; and the register that it may read.
pub(super) fn may_be_operation(half: u16) -> Option<(u32, RegSet)> {
    let half = u32::from(half);
    if half & 0xf8ff != 0x6081 {
        return None;
    }
    let reg = Reg::from_num(bits(half, 11, 7))?;
    let word = match reg {
        Reg::Ra => 0xce10_4073,
        Reg::T0 => 0xcdc2_c073,
        reg => Insn::encode(add(Reg::Zero, Reg::Zero, reg)),
    };
    Some((word, RegSet::of(&[reg])))
}
