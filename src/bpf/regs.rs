//! Which registers an instruction reads and writes.
//!
//! Key type: [`RegSet`]. Neighbours: `verify` and the compiler ask. Source: RFC 9669, chapters 4
//! and 5.

use super::insn::BpfReg;
use super::op::{AluOp, AtomicOp, Op, Operand};

/// A set of registers, a bit each.
pub(crate) type RegSet = u16;

pub(crate) const fn bit(reg: BpfReg) -> RegSet {
    1 << reg.num()
}

/// The registers that a call may change.
pub(crate) const CALLER_SAVED: RegSet = 0b11_1111;
/// The registers that hold arguments.
pub(crate) const ARGS: RegSet = 0b11_1110;

/// The registers of the first `count` arguments.
pub(crate) const fn first_args(count: u32) -> RegSet {
    ARGS & ((2 << count) - 1)
}

fn operand_bit(src: Operand) -> RegSet {
    match src {
        Operand::Reg(reg) => bit(reg),
        Operand::Imm(_) => 0,
    }
}

impl Op {
    /// The registers that it reads; of a call, none: which arguments there are is its callee's
    /// affair.
    pub(crate) fn read(self) -> RegSet {
        match self {
            Self::Alu {
                op: AluOp::Mov,
                src,
                ..
            } => operand_bit(src),
            Self::Alu { dst, src, .. }
            | Self::Branch { dst, src, .. }
            | Self::Store { dst, src, .. } => bit(dst) | operand_bit(src),
            Self::Neg { dst, .. } | Self::End { dst, .. } | Self::JumpReg { dst } => bit(dst),
            Self::Movsx { src, .. }
            | Self::AddrSpaceCast { src, .. }
            | Self::Load { src, .. }
            | Self::LoadAcquire { src, .. } => bit(src),
            Self::Atomic { op, dst, src, .. } => {
                let r0 = match op {
                    AtomicOp::Cmpxchg => bit(BpfReg::R0),
                    _ => 0,
                };
                bit(dst) | bit(src) | r0
            }
            Self::StoreRelease { dst, src, .. } => bit(dst) | bit(src),
            Self::Arena(access) => access.plain().read(),
            Self::LdImm64 { .. } | Self::Jump { .. } | Self::MayGoto { .. } | Self::Call(_) => 0,
            Self::Exit => bit(BpfReg::R0),
        }
    }

    /// The register that its access to memory goes through, if it has one; of an access to the
    /// arena by offset, none.
    pub(crate) fn base(self) -> Option<BpfReg> {
        match self {
            Self::Load { src, .. } | Self::LoadAcquire { src, .. } => Some(src),
            Self::Store { dst, .. } | Self::Atomic { dst, .. } | Self::StoreRelease { dst, .. } => {
                Some(dst)
            }
            _ => None,
        }
    }

    /// The registers that it changes.
    pub(crate) fn written(self) -> RegSet {
        match self {
            Self::Alu { dst, .. }
            | Self::Neg { dst, .. }
            | Self::Movsx { dst, .. }
            | Self::End { dst, .. }
            | Self::AddrSpaceCast { dst, .. }
            | Self::LdImm64 { dst, .. }
            | Self::Load { dst, .. }
            | Self::LoadAcquire { dst, .. } => bit(dst),
            Self::Atomic { op, src, .. } => op.result(src).map_or(0, bit),
            Self::Arena(access) => access.plain().written(),
            Self::Call(_) => CALLER_SAVED,
            Self::Store { .. }
            | Self::StoreRelease { .. }
            | Self::Jump { .. }
            | Self::JumpReg { .. }
            | Self::MayGoto { .. }
            | Self::Branch { .. }
            | Self::Exit => 0,
        }
    }
}
