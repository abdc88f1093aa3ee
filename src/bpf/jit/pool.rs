//! Constants that stay in registers.
//!
//! An address is five or six instructions, and BPF makes it anew wherever it is wanted, in loops too;
//! so are masks, multipliers and bounds of one or two instructions. A function that calls nobody has
//! registers to spare: those of BPF registers that it does not use, and temporaries. They get the
//! constants that cost most in its loops, before its first instruction.
//!
//! Key type: [`Pool`]. Neighbours: `frame` says which registers are taken; `later` and the rest of
//! `jit` ask for constants.

use std::collections::BTreeMap;

use rv64::{Reg, SImm, addi};

use super::super::env::Env;
use super::super::insn::BpfReg;
use super::super::op::{AluOp, Op, Operand, Width};
use super::super::program::{Func, target};
use super::super::regs::{RegSet, bit};
use super::super::verify::jump_of;
use super::frame::Frame;
use super::{Emit, imm12};

/// The registers that a constant may stay in, those of compressed instructions first.
const CANDIDATES: [Reg; 11] = [
    Reg::A0,
    Reg::A1,
    Reg::A2,
    Reg::A3,
    Reg::A4,
    Reg::A6,
    Reg::A7,
    Reg::T3,
    Reg::T4,
    // The temporaries of atomics and of jumps by table.
    Reg::T2,
    Reg::T5,
];
/// What an instruction in a loop weighs, for each loop that it is in.
const LOOP_WEIGHT: u64 = 8;
/// The loops inside each other that are told apart.
const MAX_DEPTH: u32 = 4;

/// Constants and their registers.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Vec<(i64, Reg)>);

impl Pool {
    pub(super) fn new(func: &Func, ops: &[Option<Op>], frame: &Frame, env: &Env) -> Self {
        let mut wanted = wanted(func, ops, env);
        let mut pool = Self::default();
        if wanted.is_empty() {
            return pool;
        }
        for reg in spare(func, ops, frame) {
            // What it saves beyond its own making; less if one nearby is there.
            let saves = |(value, weight): (&i64, &u64)| match pool.near(*value) {
                Some(_) => weight.saturating_sub(1),
                None => (weight - 1) * cost(*value),
            };
            let best = wanted
                .iter()
                .map(|(value, weight)| (saves((value, weight)), *value))
                .max_by_key(|(saved, value)| (*saved, std::cmp::Reverse(*value)));
            let Some((1.., value)) = best else { break };
            wanted.remove(&value);
            pool.0.push((value, reg));
        }
        pool
    }

    /// The register that holds `value`.
    pub(super) fn reg(&self, value: i64) -> Option<Reg> {
        match value {
            0 => Some(Reg::Zero),
            _ => self
                .0
                .iter()
                .find(|(held, _)| *held == value)
                .map(|(_, reg)| *reg),
        }
    }

    /// A register whose value is near, and how much must be added.
    pub(super) fn near(&self, value: i64) -> Option<(Reg, SImm<12>)> {
        let distance = |held: i64| imm12(value.wrapping_sub(held));
        self.0
            .iter()
            .find_map(|(held, reg)| Some((*reg, distance(*held)?)))
    }
}

/// About how many instructions make a constant: to find the fewest takes longer than the rest.
fn cost(value: i64) -> u64 {
    match (imm12(value), i32::try_from(value)) {
        (Some(_), _) => 1,
        (None, Ok(_)) => 2,
        (None, Err(_)) => 5,
    }
}

/// The registers that a function does not use; none if it calls.
fn spare(func: &Func, ops: &[Option<Op>], frame: &Frame) -> Vec<Reg> {
    let body = || ops[func.start..func.end].iter().flatten();
    if body().any(|op| matches!(op, Op::Call(_))) {
        return Vec::new();
    }
    let used: RegSet = body().fold(func.zeroed | bit(BpfReg::R0), |set, op| {
        set | op.read() | op.written()
    });
    let temporaries = body().any(|op| match op {
        Op::Arena(access) => matches!(access.plain(), Op::Atomic { .. }),
        op => matches!(op, Op::Atomic { .. } | Op::JumpReg { .. }),
    });
    let taken = |reg: &Reg| {
        let held = |bpf: &BpfReg| used & bit(*bpf) != 0 && frame.reg(*bpf) == *reg;
        BpfReg::ALL.iter().any(held) || (temporaries && matches!(reg, Reg::T2 | Reg::T5))
    };
    CANDIDATES.into_iter().filter(|reg| !taken(reg)).collect()
}

/// The constants that instructions in loops want in a register, and how much they weigh.
fn wanted(func: &Func, ops: &[Option<Op>], env: &Env) -> BTreeMap<i64, u64> {
    let mut wanted = BTreeMap::new();
    // How much deeper in loops an instruction is than the one before it.
    let mut deeper = vec![0_i32; func.end - func.start + 1];
    for at in func.start..func.end {
        let jump = ops[at]
            .and_then(jump_of)
            .map(|off| target(at, off) as usize);
        if let Some(to) = jump.filter(|to| *to <= at) {
            deeper[to - func.start] += 1;
            deeper[at + 1 - func.start] -= 1;
        }
    }
    let mut depth = 0;
    for at in func.start..func.end {
        depth += deeper[at - func.start];
        let value = ops[at].and_then(|op| want(op, env));
        if let (Some(value), 1..) = (value, depth) {
            let weight = LOOP_WEIGHT.pow(MAX_DEPTH.min(depth as u32));
            *wanted.entry(value).or_insert(0) += weight;
        }
    }
    wanted
}

/// The constant that an instruction wants in a register.
fn want(op: Op, env: &Env) -> Option<i64> {
    match op {
        Op::LdImm64 { imm, .. } => {
            let value = env.address(imm).ok().map(|value| value as i64);
            value.filter(|value| *value != 0)
        }
        Op::Alu {
            op,
            width,
            src: Operand::Imm(imm),
            ..
        } => {
            let value = i64::from(imm);
            let short = imm12(value).is_some();
            let power = imm.count_ones() == 1;
            let wants = match op {
                AluOp::Lsh | AluOp::Rsh | AluOp::Arsh => false,
                // With zeros or without, as it is looked at.
                AluOp::Mov if width == Width::W32 && imm < 0 => false,
                AluOp::Mul | AluOp::Div | AluOp::Mod => !power && !matches!(imm, -1..=1),
                AluOp::SDiv | AluOp::SMod => !matches!(imm, -1..=1),
                AluOp::And => !short && imm & imm.wrapping_add(1) != 0,
                _ => !short,
            };
            wants.then_some(value)
        }
        Op::Branch {
            src: Operand::Imm(imm),
            ..
        }
        | Op::Store {
            src: Operand::Imm(imm),
            ..
        } if imm != 0 => Some(imm.into()),
        _ => None,
    }
}

impl Emit<'_> {
    /// Puts the pool's constants into their registers.
    pub(super) fn fill_pool(&mut self) {
        let pool = std::mem::take(&mut self.pool);
        for (value, reg) in pool.0 {
            // From those that are there.
            self.open_constant(reg, value);
            self.pool.0.push((value, reg));
        }
    }

    /// `rd` = `value`, which need not be hidden.
    pub(super) fn open_constant(&mut self, rd: Reg, value: i64) {
        match (self.pool.reg(value), self.pool.near(value)) {
            (Some(rs), _) if rs != Reg::Zero => self.mv(rd, rs),
            (None, Some((rs, distance))) if imm12(value).is_none() => {
                self.emit(addi(rd, rs, distance));
            }
            _ => self.asm.li(rd, value),
        }
    }
}
