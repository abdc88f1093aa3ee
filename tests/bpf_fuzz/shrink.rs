//! A smaller program that fails, too.
//!
//! Instructions are replaced by what does nothing, many at once and then fewer; what is left, by
//! simpler ones. The caller says whether a program still fails, which must include that it is still
//! fit to be run.
//!
//! Key function: [`shrink`].

use rvbpf::bpf::{AluOp, BpfReg, Callee, Extend, Fault, Imm64, Op, Operand, Width};

use super::case::{Body, Case, Keep, NOP, Slot};

/// How often everything is tried at most.
const MAX_ROUNDS: usize = 8;

/// Makes `case` smaller while `fails` says that it fails.
pub(crate) fn shrink(case: &Case, fails: &mut dyn FnMut(&Case) -> bool) -> Case {
    let mut best = Shrink {
        case: case.clone(),
        fails,
    };
    for _ in 0..MAX_ROUNDS {
        let mut is_smaller = best.without_functions();
        best.case.funcs.iter_mut().for_each(release);
        is_smaller |= best.without_instructions();
        is_smaller |= best.with_simpler_ones();
        is_smaller |= best.with_simpler_data();
        if !is_smaller {
            break;
        }
    }
    best.case
}

struct Shrink<'a> {
    /// The smallest so far.
    case: Case,
    fails: &'a mut dyn FnMut(&Case) -> bool,
}

impl Shrink<'_> {
    /// Keeps another case, if it fails.
    fn attempt(&mut self, other: Case) -> bool {
        let fails = (self.fails)(&other);
        if fails {
            self.case = other;
        }
        fails
    }

    /// Without a function and the calls of it.
    fn without_functions(&mut self) -> bool {
        let mut is_smaller = false;
        for index in 1..self.case.funcs.len() {
            if self.case.funcs[index].is_empty() {
                continue;
            }
            let mut other = self.case.clone();
            other.funcs[index].clear();
            for slot in other.funcs.iter_mut().flatten().flatten() {
                if slot.op == Op::Call(Callee::Local(index as i32)) {
                    slot.op = NOP;
                }
            }
            is_smaller |= self.attempt(other);
        }
        is_smaller
    }

    fn without_instructions(&mut self) -> bool {
        let mut is_smaller = false;
        for func in 0..self.case.funcs.len() {
            let places: Vec<usize> = (0..self.case.funcs[func].len())
                .filter(|at| can_go(&self.case.funcs[func], *at))
                .collect();
            let mut many = places.len().next_power_of_two();
            while many > 0 {
                for some in places.chunks(many) {
                    let mut other = self.case.clone();
                    let body = &mut other.funcs[func];
                    if some.iter().all(|at| !can_go(body, *at)) {
                        continue;
                    }
                    some.iter().for_each(|at| remove(body, *at));
                    is_smaller |= self.attempt(other);
                }
                many /= 2;
            }
        }
        is_smaller
    }

    fn with_simpler_ones(&mut self) -> bool {
        let mut is_smaller = false;
        for func in 0..self.case.funcs.len() {
            for at in 0..self.case.funcs[func].len() {
                let Some(slot) = self.case.funcs[func][at] else {
                    continue;
                };
                if !can_go(&self.case.funcs[func], at) {
                    continue;
                }
                for op in simpler(slot.op) {
                    let mut other = self.case.clone();
                    remove(&mut other.funcs[func], at);
                    put(&mut other.funcs[func], at, op);
                    if self.attempt(other) {
                        is_smaller = true;
                        break;
                    }
                }
            }
        }
        is_smaller
    }

    fn with_simpler_data(&mut self) -> bool {
        let mut is_smaller = false;
        for i in 0..self.case.words.len() + self.case.args.len() {
            let mut other = self.case.clone();
            let count = other.words.len();
            let word = match i < count {
                true => &mut other.words[i],
                false => &mut other.args[i - count],
            };
            if *word != 0 {
                *word = 0;
                is_smaller |= self.attempt(other);
            }
        }
        is_smaller
    }
}

/// Where nothing but the first stores to the stack accesses memory, no address needs its bounds.
fn release(body: &mut Body) {
    let accesses = |slot: &Slot| match slot.op {
        Op::Store { .. } => slot.keep == Keep::Free,
        Op::Load { .. } | Op::LoadAcquire { .. } | Op::StoreRelease { .. } => true,
        Op::Atomic { .. } | Op::Call(Callee::Local(_)) => true,
        _ => false,
    };
    if !body.iter().flatten().any(accesses) {
        let slots = body.iter_mut().flatten();
        slots.for_each(|slot| slot.keep = Keep::Free);
    }
}

fn can_go(body: &Body, at: usize) -> bool {
    body[at].is_some_and(|slot| slot.keep == Keep::Free && slot.op != NOP)
}

fn put(body: &mut Body, at: usize, op: Op) {
    let keep = Keep::Free;
    body[at] = Some(Slot { op, keep });
    if op.len_insns() == 2 {
        body[at + 1] = None;
    }
}

/// Puts what does nothing in the place of an instruction, both halves of it.
fn remove(body: &mut Body, at: usize) {
    let len = body[at].map_or(1, |slot| slot.op.len_insns());
    for place in at..at + len {
        put(body, place, NOP);
    }
}

/// The simplest first; each leads on to simpler ones only.
fn simpler(op: Op) -> Vec<Op> {
    let mov = |dst, imm| Op::Alu {
        op: AluOp::Mov,
        width: Width::W64,
        dst,
        src: Operand::Imm(imm),
    };
    match op {
        Op::Alu {
            op: AluOp::Mov,
            width: Width::W64,
            dst,
            src: Operand::Imm(imm),
        } => smaller(imm).map(|imm| mov(dst, imm)).collect(),
        Op::Alu {
            op,
            width,
            dst,
            src,
        } => {
            let with = |src| Op::Alu {
                op,
                width,
                dst,
                src,
            };
            [mov(dst, 0), mov(dst, -1)]
                .into_iter()
                .chain(operands(src).map(with))
                .collect()
        }
        Op::Neg { dst, .. }
        | Op::Movsx { dst, .. }
        | Op::End { dst, .. }
        | Op::LoadAcquire { dst, .. } => vec![mov(dst, 0), mov(dst, -1)],
        Op::LdImm64 { dst, imm } => {
            let other = [1 << 32, u64::MAX << 32].map(Imm64::Value);
            let other = other.into_iter().filter(|o| *o != imm);
            let other = other.map(|imm| Op::LdImm64 { dst, imm });
            [mov(dst, 0), mov(dst, -1)]
                .into_iter()
                .chain(other)
                .collect()
        }
        Op::Load {
            size,
            dst,
            src,
            off,
            fault,
            ..
        } => {
            let plain = Op::Load {
                size,
                extend: Extend::Zero,
                fault: Fault::Fatal,
                dst,
                src,
                off,
            };
            let plain = (fault == Fault::Zero).then_some(plain);
            [mov(dst, 0), mov(dst, -1)]
                .into_iter()
                .chain(plain)
                .collect()
        }
        Op::Store {
            size,
            dst,
            off,
            src,
        } => operands(src)
            .map(|src| Op::Store {
                size,
                dst,
                off,
                src,
            })
            .collect(),
        Op::Branch {
            cond,
            width,
            dst,
            src,
            off,
        } => {
            let with = |src| Op::Branch {
                cond,
                width,
                dst,
                src,
                off,
            };
            let jump = Op::Jump { off: off.into() };
            [jump].into_iter().chain(operands(src).map(with)).collect()
        }
        Op::MayGoto { off } => vec![Op::Jump { off: off.into() }],
        Op::Call(_) => vec![mov(BpfReg::R0, 0), mov(BpfReg::R0, -1)],
        _ => Vec::new(),
    }
}

fn operands(src: Operand) -> impl Iterator<Item = Operand> {
    let now = match src {
        Operand::Reg(_) => i32::MIN,
        Operand::Imm(imm) => imm,
    };
    smaller(now).map(Operand::Imm)
}

/// Constants that are easier to read, down to zero.
fn smaller(imm: i32) -> impl Iterator<Item = i32> {
    let order = [0, 1, -1, 8, i32::MAX];
    order.into_iter().take_while(move |other| *other != imm)
}
