//! What a buffer holds: runs of bytes, and the things whose size or content
//! depends on where they stand.
//!
//! Neighbours: `layout` chooses a form and a place for each, `emit` writes it.

use core::ops::Range;

use super::{Asm, Label};
use crate::{BranchOp, Insn, LoadOp, Offset, Reg};

/// The condition of a branch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cond {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less, signed.
    Lt,
    /// Greater or equal, signed.
    Ge,
    /// Less, unsigned.
    Ltu,
    /// Greater or equal, unsigned.
    Geu,
}

impl Cond {
    /// The condition that holds when this one does not.
    #[must_use]
    pub const fn inverse(self) -> Self {
        match self {
            Self::Eq => Self::Ne,
            Self::Ne => Self::Eq,
            Self::Lt => Self::Ge,
            Self::Ge => Self::Lt,
            Self::Ltu => Self::Geu,
            Self::Geu => Self::Ltu,
        }
    }

    /// The condition of a branch instruction.
    #[must_use]
    pub const fn of(op: BranchOp) -> Self {
        match op {
            BranchOp::Beq => Self::Eq,
            BranchOp::Bne => Self::Ne,
            BranchOp::Blt => Self::Lt,
            BranchOp::Bge => Self::Ge,
            BranchOp::Bltu => Self::Ltu,
            BranchOp::Bgeu => Self::Geu,
        }
    }

    /// The branch instruction.
    #[must_use]
    pub const fn branch(self, rs1: Reg, rs2: Reg, offset: Offset<13>) -> Insn {
        let op = match self {
            Self::Eq => BranchOp::Beq,
            Self::Ne => BranchOp::Bne,
            Self::Lt => BranchOp::Blt,
            Self::Ge => BranchOp::Bge,
            Self::Ltu => BranchOp::Bltu,
            Self::Geu => BranchOp::Bgeu,
        };
        Insn::Branch {
            op,
            rs1,
            rs2,
            offset,
        }
    }
}

/// What an `auipc` pair makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PcRel {
    /// The address.
    Address,
    /// The 64 bits there.
    Load,
}

/// What is done with an address outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AbsRel {
    /// It is kept.
    Address,
    /// It is loaded from.
    Load(LoadOp),
}

/// A piece of the buffer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Item {
    /// Instructions that stand as they are.
    Insns(Range<usize>),
    /// Bytes that are no instructions.
    Data(Range<usize>),
    /// `nop`s up to a multiple.
    Align { align: u32 },
    /// A conditional branch.
    Branch {
        cond: Cond,
        rs1: Reg,
        rs2: Reg,
        target: Label,
    },
    /// A jump, with or without link.
    Jump { rd: Reg, target: Label },
    /// A jump to an address outside, through `tmp` if need be. `literal`
    /// holds the address for the farthest form.
    Absolute {
        link: Reg,
        tmp: Reg,
        target: u64,
        literal: usize,
    },
    /// An address outside, or what is there, in `rd`. `literal` holds the address for the farthest
    /// form.
    AbsRel {
        kind: AbsRel,
        rd: Reg,
        address: u64,
        literal: usize,
    },
    /// An `auipc` and its partner.
    PcRel { kind: PcRel, rd: Reg, label: Label },
    /// The first half of a shared pair.
    Base { index: usize },
    /// A second half.
    Low {
        kind: PcRel,
        rd: Reg,
        base: usize,
        label: Label,
    },
    /// Zeros before the literals.
    PoolAlign,
    /// 64 bits of the pool.
    Literal { index: usize },
}

/// What a literal holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LiteralValue {
    /// A number.
    Bits(u64),
    /// Where a label will run.
    Address(Label),
}

/// Who put a literal there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// The caller has its label: it is there, and its own.
    Caller,
    /// `ld_lit`: there, and shared by all that load the same value.
    Shared,
    /// Calls and jumps to one address, and uses of it: there if one of them needs it.
    Far,
}

/// 64 bits of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Literal {
    pub(super) value: LiteralValue,
    pub(super) owner: Owner,
    pub(super) label: Label,
}

/// A form of an item. Larger ones reach farther.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Form {
    /// 16 bits: c.beqz, c.bnez (±256 bytes), c.j (±2 KiB).
    Short,
    /// 32 bits: b (±4 KiB), jal (±1 MiB); a base in one auipc.
    Near,
    /// Inverted branch and jal (±1 MiB).
    Inverted,
    /// auipc and a partner (±2 GiB); after an inverted branch if it is one.
    Pair,
    /// auipc, ld, jalr or another use (anywhere).
    Loaded,
}

impl Asm {
    /// The forms an item can take, from the smallest.
    pub(super) fn forms(&self, item: &Item) -> &'static [Form] {
        use Form::{Inverted, Loaded, Near, Pair, Short};
        match *item {
            Item::Branch { cond, rs1, rs2, .. } => {
                match (
                    self.has_short_branch(cond, rs1, rs2),
                    self.scratch.is_some(),
                ) {
                    (true, true) => &[Short, Near, Inverted, Pair],
                    (true, false) => &[Short, Near, Inverted],
                    (false, true) => &[Near, Inverted, Pair],
                    (false, false) => &[Near, Inverted],
                }
            }
            Item::Jump { rd: Reg::Zero, .. } => match (self.features.c, self.scratch.is_some()) {
                (true, true) => &[Short, Near, Pair],
                (true, false) => &[Short, Near],
                (false, true) => &[Near, Pair],
                (false, false) => &[Near],
            },
            Item::Jump { .. } | Item::Base { .. } => &[Near, Pair],
            Item::Absolute {
                link: Reg::Zero, ..
            } if self.features.c => &[Short, Near, Pair, Loaded],
            Item::Absolute { .. } => &[Near, Pair, Loaded],
            Item::AbsRel { .. } => &[Pair, Loaded],
            _ => &[Near],
        }
    }

    /// Whether a branch on this has a 16-bit form.
    pub(super) fn has_short_branch(&self, cond: Cond, rs1: Reg, rs2: Reg) -> bool {
        if !matches!(cond, Cond::Eq | Cond::Ne) {
            return false;
        }
        cond.branch(rs1, rs2, Offset::ZERO)
            .compress_for(self.features)
            .is_some()
    }
}
