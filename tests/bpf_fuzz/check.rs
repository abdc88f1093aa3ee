//! A second look at a program, so that a difference is the compiler's and not the program's: on
//! every path, what is read has been set, addresses are addresses, and no address becomes a value.
//!
//! The library's verifier is content with *some* path that sets a register, and leaves addresses
//! to the program; `shrink` must not go by that. Bounds are not looked at here: see
//! [`Keep::Fixed`](super::case::Keep).
//!
//! Key function: [`check`].

use rvbpf::bpf::{AluOp, AtomicOp, BpfReg, Callee, Op, Operand, Program, Width};

use super::host::{ARITIES, THROW};

/// What a register holds, on all paths.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Holds {
    /// Nothing, or not the same everywhere.
    Nothing,
    Value,
    Address,
}

type Regs = [Holds; 11];

/// What is wrong: an instruction, and what about it.
#[derive(Debug)]
pub(crate) struct Flaw(pub(crate) usize, pub(crate) String);

/// Looks at all functions, `main` being called with an address in `r1` and values in `r2` to `r5`.
pub(crate) fn check(program: &Program) -> Result<(), Flaw> {
    let funcs = program.funcs();
    // What a function finds in r1 is known when its first caller has been seen; callers come first.
    let mut first_arg = vec![None; program.ops().len()];
    first_arg[0] = Some(Holds::Address);
    for func in funcs {
        let Some(r1) = first_arg[func.start] else {
            return Err(Flaw(func.start, "comes before its callers".into()));
        };
        walk(program, func.start, r1, &mut first_arg)?;
    }
    Ok(())
}

fn entry(r1: Holds) -> Regs {
    let mut regs = [Holds::Nothing; 11];
    regs[2..6].fill(Holds::Value);
    regs[1] = r1;
    regs[10] = Holds::Address;
    regs
}

fn walk(
    program: &Program,
    start: usize,
    r1: Holds,
    first_arg: &mut [Option<Holds>],
) -> Result<(), Flaw> {
    let ops = program.ops();
    let mut known: Vec<Option<Regs>> = vec![None; ops.len()];
    let mut todo = vec![(start, entry(r1))];
    while let Some((at, regs)) = todo.pop() {
        let met = match known[at] {
            None => regs,
            Some(before) => meet(before, regs),
        };
        if known[at] == Some(met) {
            continue;
        }
        known[at] = Some(met);
        let Some(op) = ops[at] else { continue };
        let mut regs = met;
        step(op, &mut regs).map_err(|what| Flaw(at, what))?;
        if let Op::Call(Callee::Local(off)) = op {
            let place = &mut first_arg[target(at, off)];
            if *place.get_or_insert(met[1]) != met[1] {
                return Err(Flaw(at, "passes another kind of r1".into()));
            }
        }
        match op {
            Op::Exit => continue,
            Op::Jump { off } => todo.push((target(at, off), regs)),
            Op::MayGoto { off } | Op::Branch { off, .. } => {
                todo.push((target(at, off.into()), regs));
                todo.push((at + op.len_insns(), regs));
            }
            _ => todo.push((at + op.len_insns(), regs)),
        }
    }
    Ok(())
}

fn target(at: usize, off: i32) -> usize {
    (at as i64 + 1 + i64::from(off)) as usize
}

fn meet(mut a: Regs, b: Regs) -> Regs {
    for (a, b) in a.iter_mut().zip(b) {
        if *a != b {
            *a = Holds::Nothing;
        }
    }
    a
}

fn step(op: Op, regs: &mut Regs) -> Result<(), String> {
    let want = |reg: BpfReg, what: Holds| match regs[reg.index()] {
        held if held == what => Ok(()),
        held => Err(format!("{reg} holds {held:?}, not {what:?}, in {op:?}")),
    };
    let value = |reg| want(reg, Holds::Value);
    let address = |reg| want(reg, Holds::Address);
    let operand = |src: Operand| match src {
        Operand::Reg(reg) => value(reg),
        Operand::Imm(_) => Ok(()),
    };
    let mut set = None;
    match op {
        Op::Alu {
            op,
            width,
            dst,
            src,
        } => {
            let result = alu(op, width, regs, dst, src);
            set = Some((
                dst,
                result.ok_or(format!("wrong operands: {op:?} {src:?}"))?,
            ));
        }
        Op::Neg { dst, .. } | Op::End { dst, .. } => value(dst)?,
        Op::Movsx { dst, src, .. } => {
            value(src)?;
            set = Some((dst, Holds::Value));
        }
        Op::LdImm64 { dst, .. } => set = Some((dst, Holds::Value)),
        Op::Load { dst, src, .. } | Op::LoadAcquire { dst, src, .. } => {
            address(src)?;
            set = Some((dst, Holds::Value));
        }
        Op::Store { dst, src, .. } => {
            address(dst)?;
            operand(src)?;
        }
        Op::StoreRelease { dst, src, .. } => {
            address(dst)?;
            value(src)?;
        }
        Op::Atomic { op, dst, src, .. } => {
            address(dst)?;
            value(src)?;
            if op == AtomicOp::Cmpxchg {
                value(BpfReg::R0)?;
            }
        }
        Op::Branch { dst, src, .. } => {
            value(dst)?;
            operand(src)?;
        }
        Op::Call(callee) => return call(callee, regs),
        Op::Exit => value(BpfReg::R0)?,
        Op::Jump { .. } | Op::MayGoto { .. } => {}
        Op::AddrSpaceCast { .. } | Op::Arena(_) => return Err("there is no arena".into()),
        Op::JumpReg { .. } => return Err("there is no table".into()),
    }
    if let Some((reg, what)) = set {
        regs[reg.index()] = what;
    }
    Ok(())
}

/// The result of arithmetic: addresses can be copied, and moved by values.
fn alu(op: AluOp, width: Width, regs: &Regs, dst: BpfReg, src: Operand) -> Option<Holds> {
    let a = regs[dst.index()];
    let b = match src {
        Operand::Reg(reg) => regs[reg.index()],
        Operand::Imm(_) => Holds::Value,
    };
    match (op, width, a, b) {
        (AluOp::Mov, _, _, Holds::Value) => Some(Holds::Value),
        (AluOp::Mov, Width::W64, _, Holds::Address) => Some(Holds::Address),
        (_, _, Holds::Value, Holds::Value) => Some(Holds::Value),
        (AluOp::Add, Width::W64, Holds::Address, Holds::Value)
        | (AluOp::Add, Width::W64, Holds::Value, Holds::Address) => Some(Holds::Address),
        _ => None,
    }
}

fn call(callee: Callee, regs: &mut Regs) -> Result<(), String> {
    let args = match callee {
        Callee::Host { id: THROW, .. } => 1..=1,
        Callee::Helper(id) | Callee::Host { id, .. } => 1..=ARITIES[id as usize - 1],
        // What is in r1 is the caller's affair.
        Callee::Local(_) if regs[1] != Holds::Nothing => 2..=5,
        Callee::Local(_) => 1..=5,
    };
    for reg in args {
        if regs[reg] != Holds::Value {
            return Err(format!("argument r{reg} holds {:?}", regs[reg]));
        }
    }
    regs[0] = Holds::Value;
    regs[1..6].fill(Holds::Nothing);
    Ok(())
}
