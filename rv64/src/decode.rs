//! From bytes to instructions.
//!
//! Key functions: [`Insn::decode`] (a word), [`Insn::decode_compressed`] (a
//! half-word, to what it stands for) and [`Insn::decode_at`] (bytes).
//!
//! Strict: a word decodes to the instruction that encodes to it, or is an
//! error. Hints in 32-bit encodings are instructions with `rd` = `zero` like
//! any other; compressed hints are errors.
//!
//! Neighbours: the tables in [`crate::insn`], and `scatter`.
//!
//! Source: Unprivileged ISA, chapters "C" ("RVC Instruction Set Listings")
//! and "Zcb"; "Base Instruction-Length Encoding".

use crate::insn::{self, Insn, mv_add, place::bits};
use crate::scatter::{
    ADDI4SPN, ADDI16SP, BYTE, CB, CI, CJ, D_MEM, D_SP_LOAD, D_SP_STORE, HALF, Scatter, W_MEM,
    W_SP_LOAD, W_SP_STORE,
};
use crate::{DecodeError, FReg, Offset, Reg, SImm, UImm};

impl Insn {
    /// The instruction that a 32-bit word holds.
    ///
    /// # Errors
    /// [`DecodeError::Word`] for every word that no [`Insn`] encodes to.
    pub const fn decode(word: u32) -> Result<Self, DecodeError> {
        match Self::from_word(word) {
            Some(insn) => Ok(insn),
            None => Err(DecodeError::Word { word }),
        }
    }

    /// The instruction that a 16-bit word of C or Zcb stands for.
    ///
    /// # Errors
    /// [`DecodeError::Half`] for reserved and unknown half-words (zero among
    /// them) and for the halves of longer instructions,
    /// [`DecodeError::Hint`] for hints.
    pub fn decode_compressed(half: u16) -> Result<Self, DecodeError> {
        let word = Half(u32::from(half));
        match word.0 & 3 {
            0 => word.quadrant0(),
            1 => word.quadrant1(),
            2 => word.quadrant2(),
            _ => None,
        }
        .ok_or(if word.is_hint() {
            DecodeError::Hint { half }
        } else {
            DecodeError::Half { half }
        })
    }

    /// The instruction at the start of `bytes`, and its length in bytes: 2
    /// or 4.
    ///
    /// # Errors
    /// Those of the other two, [`DecodeError::Long`] for the start of an
    /// instruction of 48 bits or more, [`DecodeError::Truncated`] when bytes
    /// are missing.
    pub fn decode_at(bytes: &[u8]) -> Result<(Self, usize), DecodeError> {
        let truncated = |need_bytes| DecodeError::Truncated {
            have_bytes: bytes.len(),
            need_bytes,
        };
        let &[b0, b1, ..] = bytes else {
            return Err(truncated(2));
        };
        let half = u16::from_le_bytes([b0, b1]);
        if half & 0b11 != 0b11 {
            return Ok((Self::decode_compressed(half)?, 2));
        }
        if half & 0b11100 == 0b11100 {
            return Err(DecodeError::Long { half });
        }
        let &[.., b2, b3] = bytes.get(..4).ok_or(truncated(4))? else {
            return Err(truncated(4));
        };
        Ok((Self::decode(u32::from_le_bytes([b0, b1, b2, b3]))?, 4))
    }
}

/// A half-word and its fields.
#[derive(Clone, Copy)]
struct Half(u32);

impl Half {
    /// `rd` or `rs1`, five bits.
    fn rd(self) -> Reg {
        Reg::ALL[bits(self.0, 11, 7) as usize]
    }

    /// `rs2`, five bits.
    fn rs2(self) -> Reg {
        Reg::ALL[bits(self.0, 6, 2) as usize]
    }

    /// `rs1'` or `rd'`, three bits.
    fn rs1_low3(self) -> Reg {
        Reg::from_low3(bits(self.0, 9, 7))
    }

    /// `rs2'` or `rd'`, three bits.
    fn rs2_low3(self) -> Reg {
        Reg::from_low3(bits(self.0, 4, 2))
    }

    fn funct3(self) -> u32 {
        bits(self.0, 15, 13)
    }

    /// An unsigned offset in the twelve bits of a load.
    fn uimm(self, layout: Scatter) -> Option<SImm<12>> {
        SImm::new(layout.get(self.0))
    }

    fn simm<const BITS: u32>(self, layout: Scatter) -> Option<SImm<BITS>> {
        SImm::new(layout.get_signed(self.0))
    }

    fn shamt(self) -> Option<UImm<6>> {
        UImm::new(CI.get(self.0))
    }

    /// c.addi4spn, c.fld, c.lw, c.ld, Zcb, c.fsd, c.sw, c.sd.
    fn quadrant0(self) -> Option<Insn> {
        let (rs1, rs2) = (self.rs1_low3(), self.rs2_low3());
        let float = FReg::from_low3(bits(self.0, 4, 2));
        Some(match self.funct3() {
            0b000 => {
                let imm = self.uimm(ADDI4SPN).filter(|&imm| imm != SImm::ZERO)?;
                insn::addi(rs2, Reg::Sp, imm)
            }
            0b001 => insn::fld(float, rs1, self.uimm(D_MEM)?),
            0b010 => insn::lw(rs2, rs1, self.uimm(W_MEM)?),
            0b011 => insn::ld(rs2, rs1, self.uimm(D_MEM)?),
            0b100 => return self.zcb_mem(),
            0b101 => insn::fsd(float, rs1, self.uimm(D_MEM)?),
            0b110 => insn::sw(rs2, rs1, self.uimm(W_MEM)?),
            _ => insn::sd(rs2, rs1, self.uimm(D_MEM)?),
        })
    }

    /// c.lbu, c.lhu, c.lh, c.sb, c.sh.
    fn zcb_mem(self) -> Option<Insn> {
        let (rs1, rs2) = (self.rs1_low3(), self.rs2_low3());
        Some(match (bits(self.0, 12, 10), bits(self.0, 6, 6)) {
            (0b000, _) => insn::lbu(rs2, rs1, self.uimm(BYTE)?),
            (0b001, 0) => insn::lhu(rs2, rs1, self.uimm(HALF)?),
            (0b001, _) => insn::lh(rs2, rs1, self.uimm(HALF)?),
            (0b010, _) => insn::sb(rs2, rs1, self.uimm(BYTE)?),
            (0b011, 0) => insn::sh(rs2, rs1, self.uimm(HALF)?),
            _ => return None,
        })
    }

    /// c.addi, c.addiw, c.li, c.lui and c.addi16sp, arithmetic, c.j, c.beqz,
    /// c.bnez.
    fn quadrant1(self) -> Option<Insn> {
        let rd = self.rd();
        let imm = self.simm::<12>(CI)?;
        Some(match self.funct3() {
            0b000 if rd == Reg::Zero && imm == SImm::ZERO => insn::nop(),
            0b000 if rd == Reg::Zero || imm == SImm::ZERO => return None,
            0b000 => insn::addi(rd, rd, imm),
            0b001 if rd == Reg::Zero => return None,
            0b001 => insn::addiw(rd, rd, imm),
            0b010 if rd == Reg::Zero => return None,
            0b010 => insn::addi(rd, Reg::Zero, imm),
            0b011 if rd == Reg::Zero || imm == SImm::ZERO => return None,
            0b011 if rd == Reg::Sp => insn::addi(Reg::Sp, Reg::Sp, self.simm(ADDI16SP)?),
            0b011 => insn::lui(rd, self.simm(CI)?),
            0b100 => return self.arithmetic(),
            0b101 => insn::j(Offset::new(CJ.get_signed(self.0))?),
            0b110 => insn::beq(
                self.rs1_low3(),
                Reg::Zero,
                Offset::new(CB.get_signed(self.0))?,
            ),
            _ => insn::bne(
                self.rs1_low3(),
                Reg::Zero,
                Offset::new(CB.get_signed(self.0))?,
            ),
        })
    }

    /// c.srli, c.srai, c.andi, register arithmetic, and Zcb's.
    fn arithmetic(self) -> Option<Insn> {
        let (rd, rs2) = (self.rs1_low3(), self.rs2_low3());
        Some(match bits(self.0, 11, 10) {
            0b00 | 0b01 => {
                let shamt = self.shamt().filter(|&shamt| shamt != UImm::ZERO)?;
                match bits(self.0, 10, 10) {
                    0 => insn::srli(rd, rd, shamt),
                    _ => insn::srai(rd, rd, shamt),
                }
            }
            0b10 => insn::andi(rd, rd, self.simm(CI)?),
            _ => match (bits(self.0, 12, 12), bits(self.0, 6, 5)) {
                (0, 0b00) => insn::sub(rd, rd, rs2),
                (0, 0b01) => insn::xor(rd, rd, rs2),
                (0, 0b10) => insn::or(rd, rd, rs2),
                (0, _) => insn::and(rd, rd, rs2),
                (_, 0b00) => insn::subw(rd, rd, rs2),
                (_, 0b01) => insn::addw(rd, rd, rs2),
                (_, 0b10) => insn::mul(rd, rd, rs2),
                _ => match bits(self.0, 4, 2) {
                    0b000 => insn::andi(rd, rd, SImm::from(0xff_u8)),
                    0b001 => insn::sext_b(rd, rd),
                    0b010 => insn::zext_h(rd, rd),
                    0b011 => insn::sext_h(rd, rd),
                    0b100 => insn::zext_w(rd, rd),
                    0b101 => insn::not(rd, rd),
                    _ => return None,
                },
            },
        })
    }

    /// c.slli, c.fldsp, c.lwsp, c.ldsp, c.jr, c.mv, c.ebreak, c.jalr, c.add,
    /// c.fsdsp, c.swsp, c.sdsp.
    fn quadrant2(self) -> Option<Insn> {
        let (rd, rs2) = (self.rd(), self.rs2());
        let (float_rd, float_rs2) = (
            FReg::ALL[bits(self.0, 11, 7) as usize],
            FReg::ALL[bits(self.0, 6, 2) as usize],
        );
        Some(match self.funct3() {
            0b000 => {
                let shamt = self.shamt().filter(|&shamt| shamt != UImm::ZERO)?;
                if rd == Reg::Zero {
                    return None;
                }
                insn::slli(rd, rd, shamt)
            }
            0b001 => insn::fld(float_rd, Reg::Sp, self.uimm(D_SP_LOAD)?),
            0b010 | 0b011 if rd == Reg::Zero => return None,
            0b010 => insn::lw(rd, Reg::Sp, self.uimm(W_SP_LOAD)?),
            0b011 => insn::ld(rd, Reg::Sp, self.uimm(D_SP_LOAD)?),
            0b100 => match (bits(self.0, 12, 12), rd, rs2) {
                (0, Reg::Zero, _) => return None,
                (0, _, Reg::Zero) => insn::jr(rd),
                (0, _, _) => mv_add(rd, rs2),
                (_, Reg::Zero, Reg::Zero) => insn::ebreak(),
                (_, Reg::Zero, _) => return None,
                (_, _, Reg::Zero) => insn::jalr(Reg::Ra, rd, SImm::ZERO),
                _ => insn::add(rd, rd, rs2),
            },
            0b101 => insn::fsd(float_rs2, Reg::Sp, self.uimm(D_SP_STORE)?),
            0b110 => insn::sw(rs2, Reg::Sp, self.uimm(W_SP_STORE)?),
            _ => insn::sd(rs2, Reg::Sp, self.uimm(D_SP_STORE)?),
        })
    }

    /// Whether a half-word without an instruction is a hint.
    fn is_hint(self) -> bool {
        let (rd, rs2) = (self.rd(), self.rs2());
        match (self.0 & 3, self.funct3()) {
            (1, 0b000) => true,
            (1, 0b010) => rd == Reg::Zero,
            (1, 0b011) => rd == Reg::Zero && CI.get(self.0) != 0,
            (1, 0b100) => bits(self.0, 11, 11) == 0 && CI.get(self.0) == 0,
            (2, 0b000) => true,
            (2, 0b100) => rd == Reg::Zero && rs2 != Reg::Zero,
            _ => false,
        }
    }
}
