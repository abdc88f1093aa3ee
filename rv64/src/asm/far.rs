//! Literals, shared bases, and jumps to and uses of addresses outside the buffer.
//!
//! Key type: [`Hi`].
//!
//! Neighbours: `item` and `layout`.
//!
//! Source: RISC-V ELF psABI, "Code models" (`%pcrel_hi`, `%pcrel_lo`).

use super::item::{AbsRel, Item, Literal, LiteralValue, Owner, PcRel};
use super::{Asm, Label};
use crate::{AsmError, LoadOp, Reg};

/// A register that holds an address near some labels, set by
/// [`Asm::pcrel_hi`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hi {
    index: usize,
    anchor: Label,
}

/// What is known of a [`Hi`]: its register and all labels that it serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Base {
    pub(super) rd: Reg,
    /// The `Item::Base`.
    pub(super) item: usize,
    pub(super) labels: Vec<Label>,
}

impl Asm {
    /// 64 bits in the pool after the code, aligned to 8 bytes: a slot of its
    /// own, so that it may be changed later.
    pub fn lit64(&mut self, value: u64) -> Label {
        let index = self.literal(LiteralValue::Bits(value), Owner::Caller);
        self.literals[index].label
    }

    /// The address where `target` will run, as 64 bits in the pool.
    pub fn lit_address(&mut self, target: Label) -> Label {
        self.check_label(target);
        let index = self.literal(LiteralValue::Address(target), Owner::Caller);
        self.literals[index].label
    }

    /// `rd` = `value` from the pool (auipc, ld); equal values share a slot.
    pub fn ld_lit(&mut self, rd: Reg, value: u64) {
        let index = self.shared_literal(value, Owner::Shared);
        self.ld_label(rd, self.literals[index].label);
    }

    /// Makes `rd` a base for [`Asm::ld_lo`] and [`Asm::la_lo`] of `label` and
    /// its neighbours: one auipc can serve many loads. They must lie within
    /// 4095 bytes of each other; where one auipc cannot reach all of them, an
    /// addi is added to it. `rd` must not change until the last use.
    pub fn pcrel_hi(&mut self, rd: Reg, label: Label) -> Hi {
        self.check_label(label);
        self.check_address_reg(rd);
        let index = self.bases.len();
        let (item, labels) = (self.items.len(), vec![label]);
        self.bases.push(Base { rd, item, labels });
        self.push(Item::Base { index });
        Hi {
            index,
            anchor: label,
        }
    }

    /// `rd` = the 64 bits at `label`, from the base of `hi` (ld).
    pub fn ld_lo(&mut self, rd: Reg, hi: Hi, label: Label) {
        self.low(PcRel::Load, rd, hi, label);
    }

    /// `rd` = the address of `label`, from the base of `hi` (addi).
    pub fn la_lo(&mut self, rd: Reg, hi: Hi, label: Label) {
        self.low(PcRel::Address, rd, hi, label);
    }

    /// Calls the absolute address `target`, link in `link`: jal when it is in
    /// reach, else auipc and jalr through `tmp` (`link` itself will do), else
    /// a literal.
    pub fn call_abs(&mut self, target: u64, link: Reg, tmp: Reg) {
        self.check_address_reg(tmp);
        if target % 2 != 0 {
            self.fail(AsmError::Misaligned {
                address: target,
                align: 2,
            });
        }
        let literal = self.shared_literal(target, Owner::Far);
        self.push(Item::Absolute {
            link,
            tmp,
            target,
            literal,
        });
    }

    /// Jumps to the absolute address `target`, through `tmp` if need be.
    pub fn jump_abs(&mut self, target: u64, tmp: Reg) {
        self.call_abs(target, Reg::Zero, tmp);
    }

    /// `rd` = `address`, wherever the code will stand: auipc and addi when it is in reach, else
    /// from the pool.
    pub fn la_abs(&mut self, rd: Reg, address: u64) {
        self.absolute(AbsRel::Address, rd, address);
    }

    /// Loads `rd` from `address`, through `rd` alone: auipc and the load when it is in reach, else
    /// with the address from the pool.
    pub fn load_abs(&mut self, op: LoadOp, rd: Reg, address: u64) {
        self.absolute(AbsRel::Load(op), rd, address);
    }

    fn absolute(&mut self, kind: AbsRel, rd: Reg, address: u64) {
        self.check_address_reg(rd);
        let literal = self.shared_literal(address, Owner::Far);
        self.push(Item::AbsRel {
            kind,
            rd,
            address,
            literal,
        });
    }

    fn low(&mut self, kind: PcRel, rd: Reg, hi: Hi, label: Label) {
        self.check_label(label);
        match self.bases.get_mut(hi.index) {
            Some(base) if base.labels.first() == Some(&hi.anchor) => {
                base.labels.push(label);
                self.push(Item::Low {
                    kind,
                    rd,
                    base: hi.index,
                    label,
                });
            }
            _ => self.fail(AsmError::ForeignLabel { label: hi.anchor }),
        }
    }

    fn shared_literal(&mut self, bits: u64, owner: Owner) -> usize {
        let value = LiteralValue::Bits(bits);
        let same = |literal: &Literal| literal.value == value && literal.owner == owner;
        match self.literals.iter().position(same) {
            Some(index) => index,
            None => self.literal(value, owner),
        }
    }

    fn literal(&mut self, value: LiteralValue, owner: Owner) -> usize {
        let label = self.new_label();
        self.literals.push(Literal {
            value,
            owner,
            label,
        });
        self.literals.len() - 1
    }
}
