//! A machine that runs what the tests emit: the instructions of `li` and of
//! the assembler buffer, no memory but the code.
//!
//! Source: Unprivileged ISA; it shares nothing with the encoder but `Insn`.

use std::collections::HashMap;

use crate::insn::{BranchOp, IOp, Insn, LoadOp, ROp, ShiftOp, UOp, UnaryOp};
use crate::{Code, Reg};

/// Registers and a program counter.
#[derive(Default)]
pub(crate) struct Machine {
    regs: HashMap<Reg, u64>,
    pub(crate) pc: u64,
}

impl Machine {
    pub(crate) fn get(&self, reg: Reg) -> u64 {
        self.regs.get(&reg).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, reg: Reg, value: u64) {
        if reg != Reg::Zero {
            self.regs.insert(reg, value);
        }
    }

    /// Runs one instruction of `code` at `pc`.
    pub(crate) fn step(&mut self, code: &Code) {
        let at = usize::try_from(self.pc - code.base).unwrap();
        let (insn, len) = Insn::decode_at(&code.bytes[at..]).unwrap();
        self.run(insn, len as u64, code);
    }

    /// Runs `insn`, `len` bytes long.
    pub(crate) fn run(&mut self, insn: Insn, len: u64, code: &Code) {
        let next = self.pc.wrapping_add(len);
        let mut goto = next;
        match insn {
            Insn::I { op, rd, rs1, imm } => self.set(rd, imm_op(op, self.get(rs1), imm.get())),
            Insn::Shift { op, rd, rs1, shamt } => {
                self.set(rd, shift_op(op, self.get(rs1), shamt.get()));
            }
            Insn::R { op, rd, rs1, rs2 } => {
                self.set(rd, reg_op(op, self.get(rs1), self.get(rs2)));
            }
            Insn::Unary {
                op: UnaryOp::Rev8,
                rd,
                rs1,
            } => {
                self.set(rd, self.get(rs1).swap_bytes());
            }
            Insn::U { op, rd, imm } => {
                let upper = (imm.get() << 12) as u64;
                let pc = if op == UOp::Auipc { self.pc } else { 0 };
                self.set(rd, pc.wrapping_add(upper));
            }
            Insn::Load {
                op: LoadOp::Ld,
                rd,
                rs1,
                imm,
            } => {
                let address = self.get(rs1).wrapping_add_signed(imm.get());
                assert_eq!(address % 8, 0, "literals are aligned");
                let at = usize::try_from(address - code.base).unwrap();
                let bytes = code.bytes[at..at + 8].try_into().unwrap();
                self.set(rd, u64::from_le_bytes(bytes));
            }
            Insn::Branch {
                op,
                rs1,
                rs2,
                offset,
            } => {
                if branch_op(op, self.get(rs1), self.get(rs2)) {
                    goto = self.pc.wrapping_add_signed(offset.get());
                }
            }
            Insn::Jal { rd, offset, .. } => {
                goto = self.pc.wrapping_add_signed(offset.get());
                self.set(rd, next);
            }
            Insn::Jalr { rd, rs1, imm, .. } => {
                goto = self.get(rs1).wrapping_add_signed(imm.get()) & !1;
                self.set(rd, next);
            }
            _ => panic!("the machine does not know {insn}"),
        }
        self.pc = goto;
    }
}

pub(crate) fn imm_op(op: IOp, value: u64, imm: i64) -> u64 {
    let imm = imm as u64;
    match op {
        IOp::Addi => value.wrapping_add(imm),
        IOp::Addiw => value.wrapping_add(imm) as i32 as u64,
        IOp::Xori => value ^ imm,
        IOp::Ori => value | imm,
        IOp::Andi => value & imm,
        _ => panic!("the machine does not know {op}"),
    }
}

pub(crate) fn shift_op(op: ShiftOp, value: u64, by: u32) -> u64 {
    match op {
        ShiftOp::Slli => value << by,
        ShiftOp::Srli => value >> by,
        ShiftOp::Srai => ((value as i64) >> by) as u64,
        ShiftOp::SlliUw => (value & 0xffff_ffff) << by,
        ShiftOp::Rori => value.rotate_right(by),
        ShiftOp::Bseti => value | 1 << by,
        ShiftOp::Bclri => value & !(1 << by),
        ShiftOp::Binvi => value ^ 1 << by,
        ShiftOp::Bexti => value >> by & 1,
    }
}

pub(crate) fn reg_op(op: ROp, left: u64, right: u64) -> u64 {
    match op {
        ROp::Add => left.wrapping_add(right),
        ROp::AddUw => (left & 0xffff_ffff).wrapping_add(right),
        ROp::Sh1add => (left << 1).wrapping_add(right),
        ROp::Sh2add => (left << 2).wrapping_add(right),
        ROp::Sh3add => (left << 3).wrapping_add(right),
        _ => panic!("the machine does not know {op}"),
    }
}

fn branch_op(op: BranchOp, left: u64, right: u64) -> bool {
    match op {
        BranchOp::Beq => left == right,
        BranchOp::Bne => left != right,
        BranchOp::Blt => (left as i64) < right as i64,
        BranchOp::Bge => left as i64 >= right as i64,
        BranchOp::Bltu => left < right,
        BranchOp::Bgeu => left >= right,
    }
}
