//! A machine that runs prologues and copies: integer registers, memory that is made up where
//! nothing has been stored.
//!
//! Source: Unprivileged ISA; it shares nothing with the module but [`Insn`].

use std::collections::BTreeMap;

use rv64::{BranchOp, IOp, LoadOp, ROp, ShiftOp, StoreOp, UOp};

use super::*;

/// The most instructions until a region must have been left.
const MAX_STEPS: usize = 100;

#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) regs: [u64; 32],
    pub(super) pc: u64,
    memory: BTreeMap<u64, u8>,
}

/// SplitMix64's last step.
pub(super) fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl Machine {
    /// Registers of all sizes, some of them equal.
    pub(super) fn random(seed: u64) -> Self {
        let mut regs = [0; 32];
        for (num, reg) in regs.iter_mut().enumerate().skip(1) {
            let x = mix(seed << 8 | num as u64);
            *reg = x >> (mix(x) % 64);
        }
        Machine {
            regs,
            pc: ENTRY,
            memory: BTreeMap::new(),
        }
    }

    /// Runs `code` at `base` until it leaves it, or calls.
    pub(super) fn run(&mut self, base: u64, code: &[u8]) {
        for _ in 0..MAX_STEPS {
            let off = self.pc.wrapping_sub(base) as usize;
            if off >= code.len() {
                return;
            }
            let (insn, len) = Insn::decode_at(&code[off..]).unwrap();
            self.insn(insn, len as u64, (base, code));
            if insn.flow().is_call() {
                return;
            }
        }
        panic!("{:#x}: does not end", self.pc);
    }

    /// All that anybody may look at.
    pub(super) fn agrees(&self, want: &Self, what: &str) {
        assert_eq!(self.pc, want.pc, "{what}: {:#x} {:#x}", self.pc, want.pc);
        assert_eq!(self.memory, want.memory, "{what}");
        for reg in Reg::ALL {
            let num = reg as usize;
            let (got, want) = (self.regs[num], want.regs[num]);
            assert_eq!(got, want, "{what}: {reg} {got:#x} {want:#x}");
        }
    }

    /// Sets those registers to what they hold in `other`.
    pub(super) fn forget(&mut self, regs: RegSet, other: &Self) {
        for reg in regs.iter() {
            self.regs[reg as usize] = other.regs[reg as usize];
        }
    }

    fn get(&self, reg: Reg) -> u64 {
        self.regs[reg as usize]
    }

    fn set(&mut self, reg: Reg, value: u64) {
        if reg != Zero {
            self.regs[reg as usize] = value;
        }
    }

    /// Behind a copy are its constants. A function that reads itself as data would find our jump.
    fn load(&self, at: u64, bytes: u64, (base, code): (u64, &[u8])) -> u64 {
        let code = if base == ENTRY { &[] } else { code };
        let byte = |at: u64| {
            let off = at.wrapping_sub(base) as usize;
            let made_up = mix(at) as u8;
            let here = code.get(off).copied();
            *self.memory.get(&at).or(here.as_ref()).unwrap_or(&made_up)
        };
        let all = (0..bytes).rev().map(|nth| byte(at.wrapping_add(nth)));
        all.fold(0, |all, byte| all << 8 | u64::from(byte))
    }

    fn store(&mut self, at: u64, bytes: u64, value: u64) {
        for nth in 0..bytes {
            let byte = (value >> (8 * nth)) as u8;
            self.memory.insert(at.wrapping_add(nth), byte);
        }
    }

    fn insn(&mut self, insn: Insn, len: u64, code: (u64, &[u8])) {
        let next = self.pc.wrapping_add(len);
        let mut goto = next;
        match insn {
            Insn::I { op, rd, rs1, imm } => self.set(rd, immediate(op, self.get(rs1), imm.get())),
            Insn::R { op, rd, rs1, rs2 } => {
                self.set(rd, register(op, self.get(rs1), self.get(rs2)));
            }
            Insn::Shift {
                op: ShiftOp::Slli,
                rd,
                rs1,
                shamt,
            } => self.set(rd, self.get(rs1) << shamt.get()),
            Insn::U { op, rd, imm } => {
                let base = if op == UOp::Auipc { self.pc } else { 0 };
                self.set(rd, base.wrapping_add_signed(imm.get() << 12));
            }
            Insn::Load { op, rd, rs1, imm } => {
                let at = self.get(rs1).wrapping_add_signed(imm.get());
                let value = match op {
                    LoadOp::Ld => self.load(at, 8, code),
                    LoadOp::Lw => self.load(at, 4, code) as i32 as u64,
                    LoadOp::Lhu => self.load(at, 2, code),
                    LoadOp::Lb => self.load(at, 1, code) as i8 as u64,
                    _ => panic!("{insn}"),
                };
                self.set(rd, value);
            }
            Insn::Store { op, rs2, rs1, imm } => {
                let at = self.get(rs1).wrapping_add_signed(imm.get());
                let bytes = if op == StoreOp::Sd { 8 } else { 4 };
                self.store(at, bytes, self.get(rs2));
            }
            Insn::Branch {
                op,
                rs1,
                rs2,
                offset,
            } => {
                if branches(op, self.get(rs1), self.get(rs2)) {
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

fn immediate(op: IOp, value: u64, imm: i64) -> u64 {
    match op {
        IOp::Addi => value.wrapping_add_signed(imm),
        IOp::Addiw => value.wrapping_add_signed(imm) as i32 as u64,
        IOp::Xori => value ^ imm as u64,
        IOp::Andi => value & imm as u64,
        _ => panic!("{op}"),
    }
}

fn register(op: ROp, left: u64, right: u64) -> u64 {
    match op {
        ROp::Add => left.wrapping_add(right),
        ROp::Sub => left.wrapping_sub(right),
        ROp::Xor => left ^ right,
        ROp::Or => left | right,
        _ => panic!("{op}"),
    }
}

fn branches(op: BranchOp, left: u64, right: u64) -> bool {
    match op {
        BranchOp::Beq => left == right,
        BranchOp::Bne => left != right,
        BranchOp::Blt => (left as i64) < right as i64,
        BranchOp::Bge => left as i64 >= right as i64,
        BranchOp::Bltu => left < right,
        BranchOp::Bgeu => left >= right,
        _ => panic!("{op}"),
    }
}
