//! Which registers may point into the arena, so that accesses through them may fault.
//!
//! What a cast makes is an address like any other. Whatever it may have come to, along any path,
//! is watched: an access through it gets an entry in the table of faults, which costs nothing
//! unless it faults. What is known to be something else (the stack, a constant) is not, so that
//! its faults stay what they are. Where there is no arena, nothing is looked at.
//!
//! Key types: [`Spaces`]. Neighbours: the rest of `jit` asks; `facts` walks in the same way.

use super::super::env::Env;
use super::super::insn::BpfReg;
use super::super::op::{AluOp, Imm64, Op, Operand};
use super::super::program::{Func, Program, target};
use super::super::regs::{RegSet, bit};
use super::super::verify::{goes_on, jump_of};

/// How often the walk is repeated at most.
const MAX_ROUNDS: usize = 64;
/// At a function's beginning: what its caller has passed is not known.
pub(super) const ANY: RegSet = RegSet::MAX & !bit(BpfReg::R10);

/// The registers that may point into the arena, where paths meet.
pub(super) struct Spaces {
    /// Before each instruction that is jumped to.
    met: Vec<Option<RegSet>>,
}

impl Spaces {
    /// `None` where there is no arena.
    pub(super) fn new(program: &Program, env: &Env) -> Option<Self> {
        env.arena_of_programs()?;
        let ops = program.ops();
        let mut met = vec![None; ops.len()];
        for (at, op) in ops.iter().enumerate() {
            if let Some(off) = op.and_then(jump_of) {
                met[target(at, off) as usize] = Some(0);
            }
        }
        for to in program.funcs().iter().flat_map(|func| &func.table_targets) {
            met[*to] = Some(0);
        }
        let mut spaces = Self { met };
        for func in program.funcs() {
            let settled = (0..MAX_ROUNDS).any(|_| !spaces.walk(ops, func));
            if !settled {
                let known = spaces.met[func.start..func.end].iter_mut().flatten();
                known.for_each(|set| *set = ANY);
            }
        }
        Some(spaces)
    }

    /// What is known before instruction `at`, if paths meet there.
    pub(super) fn met(&self, at: usize) -> Option<RegSet> {
        self.met[at]
    }

    /// Once from the beginning of a function to its end; whether anything was learnt.
    fn walk(&mut self, ops: &[Option<Op>], func: &Func) -> bool {
        let mut learnt = false;
        let mut now = ANY;
        let mut comes_on = true;
        let mut at_jumps = 0;
        let range = func.start..func.end;
        for at in range {
            let Some(op) = ops[at] else { continue };
            if let Some(known) = &mut self.met[at] {
                learnt |= comes_on && join(known, now);
                now = *known;
            }
            now = after(now, op);
            if let Some(off) = jump_of(op) {
                if let Some(known) = &mut self.met[target(at, off) as usize] {
                    learnt |= join(known, now);
                }
            }
            if let Op::JumpReg { .. } = op {
                at_jumps |= now;
            }
            comes_on = goes_on(op);
        }
        for to in &func.table_targets {
            if let Some(known) = &mut self.met[*to] {
                learnt |= join(known, at_jumps);
            }
        }
        learnt
    }
}

fn join(known: &mut RegSet, set: RegSet) -> bool {
    let before = std::mem::replace(known, *known | set);
    before != *known
}

/// The registers that may point into the arena after an instruction.
pub(super) fn after(now: RegSet, op: Op) -> RegSet {
    let written = op.written();
    let of = |reg: BpfReg| now & bit(reg) != 0;
    let may = match op {
        Op::Alu {
            op: AluOp::Mov,
            src: Operand::Reg(src),
            ..
        }
        | Op::Movsx { src, .. } => of(src),
        Op::Alu { op: AluOp::Mov, .. } => false,
        Op::Alu { dst, src, .. } => match src {
            Operand::Reg(src) => of(dst) || of(src),
            Operand::Imm(_) => of(dst),
        },
        Op::Neg { dst, .. } | Op::End { dst, .. } => of(dst),
        // The value may be that of the arena.
        Op::LdImm64 { imm, .. } => {
            matches!(imm, Imm64::MapValue { .. } | Imm64::MapIdxValue { .. })
        }
        // Memory and callees may hold pointers.
        _ => true,
    };
    match may {
        true => now | written,
        false => now & !written,
    }
}
