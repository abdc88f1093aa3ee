//! The generator: one statement.
//!
//! Neighbours: `gen` makes functions of them.

use rvbpf::bpf::{
    AluOp, AtomicOp, BpfReg, ByteOrder, Callee, Cond, Extend, Fault, Imm64, Op, Operand, Size,
    Width,
};

use super::case::{Keep, NOP, Slot};
use super::generate::{Calls, Func};
use super::host::{ARITIES, THROW};

/// Where an access goes: from a register, so many bytes.
#[derive(Copy, Clone, Debug)]
struct Area {
    base: BpfReg,
    /// Its first byte, from the register.
    from: i32,
    bytes: i32,
}

impl Func<'_> {
    pub(super) fn block(&mut self, stmts: usize) {
        for _ in 0..stmts {
            match self.rng.chance(self.style.alu) {
                true => self.arithmetic(),
                false => self.stmt(),
            }
        }
    }

    fn stmt(&mut self) {
        match self.rng.below(100) {
            0..=14 => self.arithmetic(),
            15..=49 => self.access(),
            50..=59 => self.indexed(),
            60..=64 => self.stack_alias(),
            65..=76 => self.branch(),
            77..=81 => self.repeat(),
            82..=88 => self.call_host(),
            89..=94 => self.call(),
            95..=96 => self.may_goto(),
            97 => self.leave(),
            _ => self.free(NOP),
        }
    }

    fn operand(&mut self) -> Operand {
        match self.rng.chance(self.style.imm) {
            true => Operand::Imm(self.rng.imm()),
            false => Operand::Reg(self.value()),
        }
    }

    fn arithmetic(&mut self) {
        let (dst, width) = (self.variable(), self.width());
        let op = match self.rng.below(20) {
            0 => Op::Neg { width, dst },
            1 | 2 => {
                let src = self.value();
                let size = match width {
                    Width::W32 => self.rng.pick(&[Size::B, Size::H]),
                    Width::W64 => self.rng.pick(&[Size::B, Size::H, Size::W]),
                };
                Op::Movsx {
                    width,
                    size,
                    dst,
                    src,
                }
            }
            3 | 4 => {
                let order = [ByteOrder::Le, ByteOrder::Be, ByteOrder::Swap];
                let order = self.rng.pick(&order);
                let size = self.rng.pick(&[Size::H, Size::W, Size::Dw]);
                Op::End { order, size, dst }
            }
            5 => {
                let imm = Imm64::Value(self.rng.imm64());
                Op::LdImm64 { dst, imm }
            }
            _ => Op::Alu {
                op: self.rng.pick(&AluOp::ALL),
                width,
                dst,
                src: self.operand(),
            },
        };
        self.free(op);
    }

    /// The stack, or the memory; one of them is there, or none.
    fn area(&mut self) -> Option<Area> {
        let stack = (self.stack_bytes > 0).then_some(Area {
            base: BpfReg::R10,
            from: -self.stack_bytes,
            bytes: self.stack_bytes,
        });
        let memory = self.base.map(|base| Area {
            base,
            from: 0,
            bytes: self.buffer_bytes,
        });
        match self.rng.chance(40) {
            true => stack.or(memory),
            false => memory.or(stack),
        }
    }

    fn access(&mut self) {
        match self.area() {
            Some(area) => self.access_in(area),
            None => self.arithmetic(),
        }
    }

    /// A load, a store, or both at once. `area.base` holds a multiple of 8.
    fn access_in(&mut self, area: Area) {
        let kind = self.rng.below(10);
        let size = self.rng.pick(&Size::ALL);
        let bytes = size.bytes() as i32;
        // What is not atomic may be anywhere.
        let step = match kind < 6 && self.rng.chance(10) && self.profile.misaligns() {
            true => 1,
            false => bytes,
        };
        let at = self.rng.below(((area.bytes - bytes) / step + 1) as usize);
        let off = (area.from + at as i32 * step) as i16;
        let (base, src) = (area.base, self.value());
        let op = match kind {
            0..=2 => {
                let extend = match size {
                    Size::Dw => Extend::Zero,
                    _ => self.rng.pick(&[Extend::Zero, Extend::Sign]),
                };
                let faults = [Fault::Fatal, Fault::Fatal, Fault::Fatal, Fault::Zero];
                Op::Load {
                    size,
                    extend,
                    fault: self.rng.pick(&faults),
                    dst: self.variable(),
                    src: base,
                    off,
                }
            }
            3..=5 => Op::Store {
                size,
                dst: base,
                off,
                src: self.operand(),
            },
            6 => Op::LoadAcquire {
                size,
                dst: self.variable(),
                src: base,
                off,
            },
            7 => Op::StoreRelease {
                size,
                dst: base,
                off,
                src,
            },
            _ => return self.atomic(size, base, off),
        };
        self.free(op);
    }

    fn atomic(&mut self, size: Size, dst: BpfReg, off: i16) {
        if !self.profile.has_atomic(size) {
            return self.arithmetic();
        }
        let op = self.rng.pick(&AtomicOp::ALL);
        // What was there may go to it.
        let src = self.variable();
        // Else it is hardly ever there.
        if op == AtomicOp::Cmpxchg && self.rng.chance(60) {
            self.expect(size, dst, off);
        }
        self.free(Op::Atomic {
            op,
            size,
            dst,
            off,
            src,
        });
    }

    /// Sets `r0` to what is there, perhaps with an upper half that somebody else looks at.
    fn expect(&mut self, size: Size, src: BpfReg, off: i16) {
        let to = match self.rng.chance(50) {
            true => self.variable(),
            false => BpfReg::R0,
        };
        let extend = match size {
            Size::Dw => Extend::Zero,
            _ => self.rng.pick(&[Extend::Zero, Extend::Sign]),
        };
        self.free(Op::Load {
            size,
            extend,
            fault: Fault::Fatal,
            dst: to,
            src,
            off,
        });
        if to != BpfReg::R0 {
            self.mov(BpfReg::R0, Operand::Reg(to), Keep::Free);
        }
    }

    pub(super) fn load_word(&mut self, dst: BpfReg, off: i16) {
        self.free(Op::Load {
            size: Size::Dw,
            extend: Extend::Zero,
            fault: Fault::Fatal,
            dst,
            src: BpfReg::R10,
            off,
        });
    }

    /// A register to hold an address for a while; it is no value then.
    fn borrow(&mut self) -> Option<BpfReg> {
        let free = |reg: &BpfReg| *reg != BpfReg::R0 && !self.counters.contains(reg);
        let free: Vec<_> = self.data.iter().copied().filter(free).collect();
        if free.len() < 2 {
            return None;
        }
        let reg = self.rng.pick(&free);
        self.data.retain(|r| *r != reg);
        Some(reg)
    }

    /// It is a value again.
    fn give_back(&mut self, reg: BpfReg) {
        self.set(reg);
        self.data.push(reg);
    }

    /// Accesses from an address that a value is part of.
    fn indexed(&mut self) {
        let Some(area) = self.area().filter(|area| area.bytes >= 24) else {
            return self.arithmetic();
        };
        let Some(tmp) = self.borrow() else {
            return self.arithmetic();
        };
        let masks = [8, 24, 16, 56, 0, 120];
        let fits = |mask: &i32| mask + 16 <= area.bytes;
        let masks: Vec<_> = masks.into_iter().filter(fits).collect();
        let mask = self.rng.pick(&masks);
        let (src, width) = (self.value(), self.width());
        self.mov(tmp, Operand::Reg(src), Keep::Free);
        let (op, dst, src) = (AluOp::And, tmp, Operand::Imm(mask));
        self.push(
            Op::Alu {
                op,
                width,
                dst,
                src,
            },
            Keep::Fixed,
        );
        self.add(tmp, Operand::Reg(area.base));
        let mut from = area.from;
        // An offset that loads and stores of RV64 do not have.
        if self.rng.chance(30) {
            let far = 8 * (self.rng.below(7000) as i32 - 3500);
            self.add(tmp, Operand::Imm(-far));
            from += far;
        }
        let bytes = area.bytes - mask;
        for _ in 0..self.rng.between(1, 3) {
            self.access_in(Area {
                base: tmp,
                from,
                bytes,
            });
        }
        self.give_back(tmp);
    }

    /// Accesses through another pointer into the stack.
    fn stack_alias(&mut self) {
        if self.stack_bytes == 0 {
            return self.arithmetic();
        }
        let Some(tmp) = self.borrow() else {
            return self.arithmetic();
        };
        let bytes = 8 * self.rng.between(1, self.stack_bytes as usize / 8) as i32;
        self.mov(tmp, Operand::Reg(BpfReg::R10), Keep::Fixed);
        self.add(tmp, Operand::Imm(-bytes));
        for _ in 0..self.rng.between(1, 3) {
            self.access_in(Area {
                base: tmp,
                from: 0,
                bytes,
            });
        }
        self.give_back(tmp);
    }

    /// A jump to wherever [`Func::land`] says.
    fn jump(&mut self, op: Op) -> usize {
        self.free(op);
        self.body.len() - 1
    }

    /// The jump at `at` goes to what comes next.
    fn land(&mut self, at: usize) {
        let to = self.body.len() - at - 1;
        if let Some(Some(Slot { op, .. })) = self.body.get_mut(at) {
            match op {
                Op::Jump { off } => *off = to as i32,
                Op::MayGoto { off } | Op::Branch { off, .. } => *off = to as i16,
                _ => {}
            }
        }
    }

    fn condition(&mut self) -> Op {
        Op::Branch {
            cond: self.rng.pick(&Cond::ALL),
            width: self.width(),
            dst: self.value(),
            src: self.operand(),
            off: 0,
        }
    }

    fn inner_block(&mut self) {
        let stmts = self.rng.between(1, if self.depth < 2 { 5 } else { 2 });
        self.depth += 1;
        self.block(stmts);
        self.depth -= 1;
    }

    /// Two ways, or one and past it.
    fn branch(&mut self) {
        if self.depth > 4 {
            return self.arithmetic();
        }
        let condition = self.condition();
        let other = self.jump(condition);
        self.inner_block();
        if self.rng.chance(50) {
            return self.land(other);
        }
        let end = self.jump(NOP);
        self.land(other);
        self.inner_block();
        self.land(end);
    }

    /// More than the 4 KiB that branches reach.
    pub(super) fn far_branch(&mut self) {
        let condition = self.condition();
        let past = self.jump(condition);
        for _ in 0..self.rng.between(400, 1600) {
            self.arithmetic();
        }
        self.land(past);
    }

    /// Past it after more rounds than there are.
    fn may_goto(&mut self) {
        if self.depth > 4 {
            return self.arithmetic();
        }
        let past = self.jump(Op::MayGoto { off: 0 });
        self.inner_block();
        self.land(past);
    }

    /// The end of the function in its middle.
    fn leave(&mut self) {
        let condition = self.condition();
        let past = self.jump(condition);
        self.arithmetic();
        if self.calls == Calls::Yes && self.profile.has_host() && self.rng.chance(50) {
            self.arguments(1);
            let (id, object) = (THROW, 0);
            self.free(Op::Call(Callee::Host { id, object }));
        }
        self.free(Op::Exit);
        self.land(past);
    }

    /// A register to count with, which inner calls keep.
    fn counter(&mut self) -> Option<BpfReg> {
        let from = match self.calls {
            Calls::Yes => 6,
            Calls::No => 1,
        };
        let free = |reg: &BpfReg| reg.index() >= from && !self.counters.contains(reg);
        let free: Vec<_> = self.data.iter().copied().filter(free).collect();
        // Two are left to be changed.
        if free.is_empty() || self.data.len() - self.counters.len() < 3 {
            return None;
        }
        Some(self.rng.pick(&free))
    }

    /// A loop that is counted: down to zero, up to a number, or up from below zero.
    fn repeat(&mut self) {
        let rounds = self.rng.between(1, 6) as i32;
        let times = self.times * rounds as u64;
        if self.loops == 2 || self.cost + times * 200 > self.max_cost {
            return self.arithmetic();
        }
        let Some(counter) = self.counter() else {
            return self.arithmetic();
        };
        let width = self.width();
        let (from, by, conds, to): (i32, i32, &[Cond], i32) = match self.rng.below(3) {
            0 => (rounds, -1, &[Cond::Ne, Cond::Sgt, Cond::Gt], 0),
            1 => (0, 1, &[Cond::Ne, Cond::Lt, Cond::Slt], rounds),
            _ => (-rounds, 1, &[Cond::Ne, Cond::Slt], 0),
        };
        let cond = self.rng.pick(conds);
        let alu = |op, imm| Op::Alu {
            op,
            width,
            dst: counter,
            src: Operand::Imm(imm),
        };
        self.free(alu(AluOp::Mov, from));
        self.counters.push(counter);
        let top = self.body.len();
        let before = std::mem::replace(&mut self.times, times);
        self.loops += 1;
        self.inner_block();
        self.free(alu(AluOp::Add, by));
        let off = (top as i64 - self.body.len() as i64 - 1) as i16;
        self.free(Op::Branch {
            cond,
            width,
            dst: counter,
            src: Operand::Imm(to),
            off,
        });
        self.loops -= 1;
        self.times = before;
        self.counters.pop();
    }

    fn call_host(&mut self) {
        if self.calls == Calls::No || !self.profile.has_host() {
            return self.arithmetic();
        }
        let index = self.rng.below(ARITIES.len());
        self.arguments(ARITIES[index]);
        let id = index as i32 + 1;
        let callee = match self.rng.chance(50) {
            true => Callee::Helper(id),
            false => Callee::Host { id, object: 0 },
        };
        self.free(Op::Call(callee));
        self.after_call();
    }

    fn call(&mut self) {
        if self.calls == Calls::No {
            return self.arithmetic();
        }
        match self.callee() {
            Some(index) => self.call_local(index),
            None => self.call_host(),
        }
    }
}
