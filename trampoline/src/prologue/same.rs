//! Whether a copy means what the original means, found out by reading both.
//!
//! Both are executed with symbols for values, along all their paths: a value is a constant, what a
//! register held at the entry, or what some instruction made. A path is what was decided at its
//! branches, what it did on the way (each instruction that is not an address computation, with
//! the values that it read), where it ends, and what all registers hold there. Nothing here knows
//! how a copy is made, but that it may put constants behind its code.
//!
//! What may differ at the end of a path: temporaries that the original never wrote there, for they
//! still hold what no caller put into them. `t0` and `t2` may not: they carry the return address
//! of millicode and the static chain.
//!
//! Key functions: [`same_meaning`]. Source: Unprivileged ISA.

use std::ops::Range;

use rv64::Reg::{self, T1, T3, T4, T5, T6, Zero};
use rv64::{Cond, Flow, IOp, Insn, LoadOp, ROp, RegSet, SImm, Step, UOp, step};

use super::Prologue;

/// Temporaries that hold nothing for anybody unless they are written.
const NOBODYS: RegSet = RegSet::of(&[T1, T3, T4, T5, T6]);

/// The most instructions on all paths together; copies have a tenth of it.
const MAX_STEPS: usize = 500;

/// In what a copy differs from its original.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Difference {
    /// What stands there is no instruction.
    #[error("{at:#x}: no instruction")]
    NoInstruction {
        /// The address, in the original or in the copy.
        at: u64,
    },
    /// One of the two does not come to an end.
    #[error("{at:#x}: goes on and on")]
    Endless {
        /// The first address, of the original or of the copy.
        at: u64,
    },
    /// They do not decide the same things, in the same order.
    #[error("path {path}: the branches on the way are others")]
    Branches {
        /// Which path, in the original's order.
        path: usize,
    },
    /// An instruction is missing, added, or works on other values.
    #[error("path {path}: effect {nth} is another")]
    Effect {
        /// Which path.
        path: usize,
        /// Which effect on it.
        nth: usize,
    },
    /// They go on at different places.
    #[error("path {path}: leads elsewhere")]
    Exit {
        /// Which path.
        path: usize,
    },
    /// A register holds something else in the end.
    #[error("path {path}: {reg} holds something else at its end")]
    Register {
        /// Which path.
        path: usize,
        /// The first such register.
        reg: Reg,
    },
}

/// Checks that `copy`, code for the address `copy_at`, does what the covered instructions at the
/// start of `original` do.
///
/// # Errors
/// The first [`Difference`] found.
pub fn same_meaning(
    prologue: &Prologue,
    original: &[u8],
    copy: &[u8],
    copy_at: u64,
) -> Result<(), Difference> {
    let covered = original.get(..prologue.covered_bytes().into());
    let at = prologue.entry();
    let covered = covered.ok_or(Difference::NoInstruction { at })?;
    let want = Region::new(at, covered, Pool::None).paths()?;
    let got = Region::new(copy_at, copy, Pool::Behind).paths()?;
    for (path, want) in want.iter().enumerate() {
        let got = got.get(path).ok_or(Difference::Branches { path })?;
        want.compare(got, path)?;
    }
    if got.len() > want.len() {
        return Err(Difference::Branches { path: want.len() });
    }
    Ok(())
}

/// What a register holds.
#[derive(Copy, Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Value {
    Const(u64),
    /// What this register held at first.
    Entry(Reg),
    /// What effect number `effect` has put into `reg`.
    Made {
        effect: usize,
        reg: Reg,
    },
}

/// An instruction and the values that it works on.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Effect {
    /// Without its base and offset, if they add up to a constant.
    word: u32,
    operands: Vec<Value>,
}

/// What a branch found: `Eq`, `Lt` or `Ltu`, or the opposite.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Decision {
    cond: Cond,
    left: Value,
    right: Value,
    holds: Holds,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Holds {
    Yes,
    No,
}

/// Where a path leads: a value and a distance from it, which is in the value if that is constant.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Exit {
    base: Value,
    off: i64,
}

/// A path, as far as it has been followed.
#[derive(Clone, Debug)]
struct Path {
    regs: [Value; 32],
    decisions: Vec<Decision>,
    effects: Vec<Effect>,
    exit: Exit,
}

impl Path {
    fn compare(&self, got: &Self, path: usize) -> Result<(), Difference> {
        if self.decisions != got.decisions {
            return Err(Difference::Branches { path });
        }
        if self.effects != got.effects {
            let same = |(want, got): &(&Effect, &Effect)| want == got;
            let pairs = self.effects.iter().zip(&got.effects);
            let nth = pairs.take_while(same).count();
            return Err(Difference::Effect { path, nth });
        }
        if self.exit != got.exit {
            return Err(Difference::Exit { path });
        }
        for reg in Reg::ALL {
            let want = self.get(reg);
            let free = NOBODYS.contains(reg) && want == Value::Entry(reg);
            if want != got.get(reg) && !free {
                return Err(Difference::Register { path, reg });
            }
        }
        Ok(())
    }

    fn get(&self, reg: Reg) -> Value {
        self.regs[reg.num() as usize]
    }

    fn set(&mut self, reg: Reg, value: Value) {
        if reg != Zero {
            self.regs[reg.num() as usize] = value;
        }
    }

    /// `base + off`, if it is constant.
    fn sum(&self, base: Reg, off: SImm<12>) -> Option<u64> {
        match self.get(base) {
            Value::Const(value) => Some(value.wrapping_add_signed(off.get())),
            _ => None,
        }
    }

    /// Notes what `step` does, and that it has made what it writes.
    fn effect(&mut self, step: &Step, insn: Option<Insn>) {
        let constant = insn.and_then(|insn| self.constant_address(insn));
        let effect = constant.unwrap_or_else(|| Effect {
            word: step.word,
            operands: step.reads.iter().map(|reg| self.get(reg)).collect(),
        });
        for reg in step.writes.iter() {
            let effect = self.effects.len();
            self.set(reg, Value::Made { effect, reg });
        }
        self.effects.push(effect);
    }

    /// An access to a constant address, however that is put together.
    fn constant_address(&self, insn: Insn) -> Option<Effect> {
        let (rs1, imm) = (Zero, SImm::ZERO);
        let (insn, address, stored) = match insn {
            Insn::Load {
                op,
                rd,
                rs1: base,
                imm: off,
            } => (Insn::Load { op, rd, rs1, imm }, self.sum(base, off)?, None),
            Insn::FLoad {
                op,
                fd,
                rs1: base,
                imm: off,
            } => (Insn::FLoad { op, fd, rs1, imm }, self.sum(base, off)?, None),
            Insn::FStore {
                op,
                fs2,
                rs1: base,
                imm: off,
            } => (
                Insn::FStore { op, fs2, rs1, imm },
                self.sum(base, off)?,
                None,
            ),
            Insn::Store {
                op,
                rs2,
                rs1: base,
                imm: off,
            } => (
                Insn::Store { op, rs2, rs1, imm },
                self.sum(base, off)?,
                Some(self.get(rs2)),
            ),
            _ => return None,
        };
        let address = Some(Value::Const(address));
        Some(Effect {
            word: insn.encode(),
            operands: address.into_iter().chain(stored).collect(),
        })
    }
}

/// Whether constants stand behind the code.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Pool {
    None,
    Behind,
}

/// Code, and where it stands. Whoever leaves it has come to the end of a path.
struct Region<'a> {
    at: u64,
    bytes: &'a [u8],
    pool: Pool,
    steps: usize,
    done: Vec<Path>,
}

impl<'a> Region<'a> {
    fn new(at: u64, bytes: &'a [u8], pool: Pool) -> Self {
        Region {
            at,
            bytes,
            pool,
            steps: 0,
            done: Vec::new(),
        }
    }

    /// All paths; of each branch first those on which its condition holds.
    fn paths(mut self) -> Result<Vec<Path>, Difference> {
        let mut regs = Reg::ALL.map(Value::Entry);
        regs[0] = Value::Const(0);
        let path = Path {
            regs,
            decisions: Vec::new(),
            effects: Vec::new(),
            exit: Exit {
                base: Value::Const(self.at),
                off: 0,
            },
        };
        let mut todo = vec![path];
        while let Some(path) = todo.pop() {
            self.follow(path, &mut todo)?;
        }
        Ok(self.done)
    }

    fn range(&self) -> Range<u64> {
        self.at..self.at + self.bytes.len() as u64
    }

    /// The bytes from this address on.
    fn from(&self, address: u64) -> &'a [u8] {
        let off = address.wrapping_sub(self.at) as usize;
        self.bytes.get(off..).unwrap_or_default()
    }

    /// Follows a path to its end, or to a branch, where it becomes two.
    fn follow(&mut self, mut path: Path, todo: &mut Vec<Path>) -> Result<(), Difference> {
        while let Value::Const(pc) = path.exit.base {
            if !self.range().contains(&pc) {
                break;
            }
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(Difference::Endless { at: self.at });
            }
            let step = step(self.from(pc)).ok_or(Difference::NoInstruction { at: pc })?;
            let next = pc.wrapping_add(step.len_bytes.into());
            if let Flow::Branch { cond, rs1, rs2, .. } = step.flow {
                let target = step.flow.target(pc).unwrap_or(next);
                todo.extend(fork(&path, cond, (rs1, rs2), (target, next)));
                return Ok(());
            }
            self.go(&mut path, &step, pc);
            // A function may call itself.
            if step.flow.is_call() {
                break;
            }
        }
        self.done.push(path);
        Ok(())
    }

    /// Executes anything but a branch.
    fn go(&self, path: &mut Path, step: &Step, pc: u64) {
        let next = pc.wrapping_add(step.len_bytes.into());
        let mut exit = Exit {
            base: Value::Const(step.flow.target(pc).unwrap_or(next)),
            off: 0,
        };
        match step.flow {
            Flow::Jump { .. } => {}
            Flow::Call { link, .. } => path.set(link, Value::Const(next)),
            Flow::IndirectJump { base, off } => exit = goto(path, base, off),
            Flow::IndirectCall { link, base, off } => {
                exit = goto(path, base, off);
                path.set(link, Value::Const(next));
            }
            _ => {
                let insn = Insn::decode(step.word).ok();
                match insn.and_then(|insn| self.computed(path, insn, pc)) {
                    Some((rd, value)) => path.set(rd, value),
                    None => path.effect(step, insn),
                }
            }
        }
        path.exit = exit;
    }

    /// What computes an address or copies a register: where to, and what.
    fn computed(&self, path: &Path, insn: Insn, pc: u64) -> Option<(Reg, Value)> {
        match insn {
            Insn::U { op, rd, imm } => {
                let base = if op == UOp::Auipc { pc } else { 0 };
                let value = base.wrapping_add_signed(imm.get() << 12);
                Some((rd, Value::Const(value)))
            }
            Insn::I {
                op: IOp::Addi,
                rd,
                rs1,
                imm,
            } => match path.sum(rs1, imm) {
                Some(value) => Some((rd, Value::Const(value))),
                None if imm == SImm::ZERO => Some((rd, path.get(rs1))),
                None => None,
            },
            Insn::R {
                op: ROp::Add,
                rd,
                rs1: Zero,
                rs2,
            } => Some((rd, path.get(rs2))),
            Insn::Load {
                op: LoadOp::Ld,
                rd,
                rs1,
                imm,
            } if self.pool == Pool::Behind => {
                let address = path.sum(rs1, imm)?;
                self.range().contains(&address).then_some(())?;
                let bytes = self.from(address).get(..8)?.try_into().ok()?;
                Some((rd, Value::Const(u64::from_le_bytes(bytes))))
            }
            _ => None,
        }
    }
}

fn goto(path: &Path, base: Reg, off: SImm<12>) -> Exit {
    match path.sum(base, off) {
        Some(target) => Exit {
            base: Value::Const(target & !1),
            off: 0,
        },
        None => Exit {
            base: path.get(base),
            off: off.get(),
        },
    }
}

/// Both ways of a branch, that on which its condition holds behind the other: it is taken first.
fn fork(path: &Path, cond: Cond, (rs1, rs2): (Reg, Reg), (taken, next): (u64, u64)) -> [Path; 2] {
    let (cond, yes, no) = match cond {
        Cond::Eq | Cond::Lt | Cond::Ltu => (cond, taken, next),
        Cond::Ne | Cond::Ge | Cond::Geu => (cond.inverse(), next, taken),
    };
    let (mut left, mut right) = (path.get(rs1), path.get(rs2));
    if cond == Cond::Eq && right < left {
        std::mem::swap(&mut left, &mut right);
    }
    [(Holds::No, no), (Holds::Yes, yes)].map(|(holds, goto)| {
        let mut way = path.clone();
        way.decisions.push(Decision {
            cond,
            left,
            right,
            holds,
        });
        way.exit.base = Value::Const(goto);
        way
    })
}
