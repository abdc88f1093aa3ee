//! Values that are made when somebody wants them.
//!
//! BPF has two operands, RV64 three; BPF has no rotation, and no address that is scaled. So what one
//! RV64 instruction does is often a few of BPF's, the first of which copy or shift. Such an
//! instruction emits nothing: its result is noted as a [`Later`], an expression of one register. Who
//! reads it takes the expression as it is, if RV64 has an instruction for both together, or has it
//! made. What is overwritten before anybody reads it is never made.
//!
//! *What must hold.* Making a value gives bit for bit what its instruction would have given, so
//! `facts` need not know. The register in an expression holds what it held: before it is written,
//! expressions of it are made (`before_write`). Making one needs no other one made first, but for
//! this: an expression of the register that it is itself for, such as `r1 + 8` for `r1`, may have
//! others of the same register beside it, and they are made before it. Between basic blocks there are
//! none.
//!
//! Key type: [`Later`]. Neighbours: `alu`, `mem` and `flow` take expressions; `pool` has constants.

use rv64::{Reg, SImm, UImm, addi, slli, slli_uw, slliw, srli, srliw, uimm, zext_w};

use super::super::insn::BpfReg;
use super::super::op::{AluOp, Imm64, Op, Operand, Width};
use super::super::regs::{RegSet, bit};
use super::{Emit, imm12};

/// Which bits of a register are shifted.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Bits {
    All,
    /// The lower half; zeros above.
    Low,
}

/// A value that has not been made.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Later {
    Const(i64),
    Copy(Reg),
    Plus(Reg, SImm<12>),
    /// To the left by less than 64; of the lower half by less than 32.
    Shl(Bits, Reg, u32),
    /// To the right, with zeros, by 1 to 63.
    Shr(Reg, u32),
    /// By 1 to 31, as the instructions for 32 bits do.
    ShlW(Reg, u32),
    ShrW(Reg, u32),
}

impl Later {
    /// The register that it is an expression of.
    fn base(self) -> Option<Reg> {
        match self {
            Self::Const(_) => None,
            Self::Copy(rs)
            | Self::Plus(rs, _)
            | Self::Shl(_, rs, _)
            | Self::Shr(rs, _)
            | Self::ShlW(rs, _)
            | Self::ShrW(rs, _) => Some(rs),
        }
    }

    /// That, plus `value`, in 64 bits.
    fn plus(self, value: i64) -> Option<Self> {
        match self {
            Self::Const(before) => Some(Self::Const(before.wrapping_add(value))),
            Self::Copy(rs) => Some(Self::Plus(rs, imm12(value)?)),
            Self::Plus(rs, before) => Some(Self::Plus(rs, imm12(before.get() + value)?)),
            _ => None,
        }
    }

    /// That, shifted to the left by 1 to 63.
    fn shl(self, by: u32) -> Option<Self> {
        match self {
            Self::Const(value) => Some(Self::Const(value << by)),
            Self::Copy(rs) => Some(Self::Shl(Bits::All, rs, by)),
            Self::Shl(bits, rs, before) if before + by < 64 => {
                let bits = if before + by < 32 { bits } else { Bits::All };
                Some(Self::Shl(bits, rs, before + by))
            }
            _ => None,
        }
    }

    /// That, shifted to the right with zeros by 1 to 63.
    fn shr(self, by: u32) -> Option<Self> {
        match self {
            Self::Const(value) => Some(Self::Const((value as u64 >> by) as i64)),
            Self::Copy(rs) => Some(Self::Shr(rs, by)),
            Self::Shl(Bits::All, rs, 32) if by > 32 => Some(Self::ShrW(rs, by - 32)),
            Self::Shl(Bits::All, rs, 32) => Some(Self::Shl(Bits::Low, rs, 32 - by)),
            _ => None,
        }
    }
}

/// What has not been made, for each BPF register.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending([Option<Later>; BpfReg::ALL.len()]);

impl Emit<'_> {
    /// Whether an instruction's result is left for later.
    pub(super) fn defer(&mut self, op: Op) -> bool {
        let Some((dst, value)) = self.later_of(op) else {
            return false;
        };
        if value == Later::Copy(self.rd(dst)) {
            // What it holds already.
            self.pending.0[dst.index()] = None;
            return true;
        }
        if value.base() != Some(self.rd(dst)) {
            self.before_write(dst);
        }
        self.pending.0[dst.index()] = Some(value);
        true
    }

    /// The expression that an instruction stands for, if it is one.
    fn later_of(&mut self, op: Op) -> Option<(BpfReg, Later)> {
        match op {
            Op::LdImm64 {
                imm: Imm64::Func(_),
                ..
            } => None,
            Op::LdImm64 {
                imm: Imm64::Value(1..),
                ..
            } if self.is_blinded() => None,
            Op::LdImm64 { dst, imm } => Some((dst, Later::Const(self.address_of(imm)))),
            Op::Alu {
                op,
                src: Operand::Imm(imm),
                ..
            } if self.hides(op, imm) => None,
            Op::Alu {
                op: AluOp::Mov,
                width,
                dst,
                src,
            } => Some((dst, self.later_mov(width, dst, src)?)),
            Op::Alu {
                op,
                width,
                dst,
                src: Operand::Imm(imm),
            } => Some((dst, self.later_alu(op, width, dst, imm)?)),
            _ => None,
        }
    }

    fn later_mov(&mut self, width: Width, dst: BpfReg, src: Operand) -> Option<Later> {
        let zext = width == Width::W32 && self.is_upper_live(dst);
        match src {
            Operand::Imm(imm) if zext => Some(Later::Const(i64::from(imm as u32))),
            Operand::Imm(imm) => Some(Later::Const(imm.into())),
            Operand::Reg(BpfReg::R10) if width == Width::W32 => None,
            Operand::Reg(BpfReg::R10) => Some(Later::Plus(Reg::Sp, imm12(self.frame.r10())?)),
            Operand::Reg(src) if zext && !self.forms.of(src).zero => {
                Some(Later::Shl(Bits::Low, self.source(src), 0))
            }
            Operand::Reg(src) => match self.later(src) {
                // Two instructions on some machines: not twice.
                Later::Shl(Bits::Low, ..) => Some(Later::Copy(self.source(src))),
                later => Some(later),
            },
        }
    }

    fn later_alu(&mut self, op: AluOp, width: Width, dst: BpfReg, imm: i32) -> Option<Later> {
        let by = imm as u32 & if width == Width::W32 { 31 } else { 63 };
        let value = match self.later(dst) {
            later @ (Later::Const(_) | Later::Copy(_) | Later::Plus(..) | Later::Shl(..)) => later,
            _ => Later::Copy(self.source(dst)),
        };
        let fused = match (op, width) {
            (AluOp::Add, Width::W64) => value.plus(imm.into()),
            (AluOp::Sub, Width::W64) => value.plus(-i64::from(imm)),
            (AluOp::Lsh, Width::W64) if by > 0 => value.shl(by),
            (AluOp::Rsh, Width::W64) if by > 0 => value.shr(by),
            _ => None,
        };
        if fused.is_some() {
            return fused;
        }
        let zext = width == Width::W32 && op == AluOp::Lsh && self.is_upper_live(dst);
        match (op, width) {
            (AluOp::Add, Width::W64) => Some(Later::Plus(self.source(dst), imm12(imm.into())?)),
            (AluOp::Sub, Width::W64) => {
                Some(Later::Plus(self.source(dst), imm12(-i64::from(imm))?))
            }
            (AluOp::Lsh, Width::W64) if by > 0 => Some(Later::Shl(Bits::All, self.source(dst), by)),
            (AluOp::Rsh, Width::W64) if by > 0 => Some(Later::Shr(self.source(dst), by)),
            (AluOp::Lsh, Width::W32) if by > 0 && !zext => Some(Later::ShlW(self.source(dst), by)),
            (AluOp::Rsh, Width::W32) if by > 0 => Some(Later::ShrW(self.source(dst), by)),
            _ => None,
        }
    }

    /// The expression of a register; a copy of itself when it has been made.
    pub(super) fn later(&self, reg: BpfReg) -> Later {
        let later = self.pending.0[reg.index()];
        later.unwrap_or(Later::Copy(self.rd(reg)))
    }

    /// A register that holds the value of `reg`, which is not `r10`.
    pub(super) fn source(&mut self, reg: BpfReg) -> Reg {
        match self.later(reg) {
            Later::Copy(rs) => rs,
            Later::Const(value) => match self.pool.reg(value) {
                Some(rs) => rs,
                None => self.settle(reg),
            },
            _ => self.settle(reg),
        }
    }

    /// Makes two operands ready to be read together: to make one may write what the other is an
    /// expression of, so `source` is asked for either once more, and makes nothing then.
    pub(super) fn ready(&mut self, dst: BpfReg, src: Operand) {
        let src = match src {
            Operand::Reg(reg) => Some(reg),
            Operand::Imm(_) => None,
        };
        for reg in [Some(dst), src].into_iter().flatten() {
            if reg != BpfReg::R10 {
                self.source(reg);
            }
        }
    }

    /// Makes the value of `reg`, in its own register.
    pub(super) fn settle(&mut self, reg: BpfReg) -> Reg {
        let rd = self.rd(reg);
        if let Some(value) = self.pending.0[reg.index()].take() {
            self.before_write(reg);
            self.make(rd, value);
        }
        rd
    }

    pub(super) fn settle_all(&mut self, set: RegSet) {
        for reg in BpfReg::ALL.into_iter().filter(|reg| set & bit(*reg) != 0) {
            self.settle(reg);
        }
    }

    /// Makes what is an expression of the register of `reg`, but for `reg` itself.
    pub(super) fn before_write(&mut self, reg: BpfReg) {
        let rd = self.rd(reg);
        for other in BpfReg::ALL.into_iter().filter(|other| *other != reg) {
            let later = self.pending.0[other.index()];
            if later.is_some_and(|later| later.base() == Some(rd)) {
                self.settle(other);
            }
        }
    }

    /// The register of `reg`, which an instruction writes whose operands have been found.
    pub(super) fn target_of(&mut self, reg: BpfReg) -> Reg {
        self.forget_all_but(self.live_after);
        self.before_write(reg);
        self.pending.0[reg.index()] = None;
        self.rd(reg)
    }

    /// Leaves the lower half of what `reg` holds, with zeros, for later.
    pub(super) fn zext_later(&mut self, reg: BpfReg) {
        self.pending.0[reg.index()] = Some(Later::Shl(Bits::Low, self.rd(reg), 0));
    }

    /// Forgets what nobody in `live` wants.
    pub(super) fn forget_all_but(&mut self, live: RegSet) {
        for reg in BpfReg::ALL.into_iter().filter(|reg| live & bit(*reg) == 0) {
            self.pending.0[reg.index()] = None;
        }
    }

    /// `rd` = the value, and nothing else changes.
    pub(super) fn make(&mut self, rd: Reg, value: Later) {
        let up = |by: u32| UImm::new(by.into()).unwrap_or(uimm!(0));
        let up_w = |by: u32| UImm::new(by.into()).unwrap_or(uimm!(0));
        match value {
            Later::Const(value) => self.constant(rd, value),
            Later::Copy(rs) => self.mv(rd, rs),
            Later::Plus(rs, imm) => self.emit(addi(rd, rs, imm)),
            Later::Shl(Bits::All, rs, by) => self.emit(slli(rd, rs, up(by))),
            Later::Shl(Bits::Low, rs, by) if self.features().zba => self.emit(match by {
                0 => zext_w(rd, rs),
                by => slli_uw(rd, rs, up(by)),
            }),
            Later::Shl(Bits::Low, rs, by) => {
                self.emit(slli(rd, rs, uimm!(32)));
                self.emit(srli(rd, rd, up(32 - by)));
            }
            Later::Shr(rs, by) => self.emit(srli(rd, rs, up(by))),
            Later::ShlW(rs, by) => self.emit(slliw(rd, rs, up_w(by))),
            Later::ShrW(rs, by) => self.emit(srliw(rd, rs, up_w(by))),
        }
    }
}
