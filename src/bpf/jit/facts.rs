//! What is known of registers' upper halves, so that 32-bit results are extended only for those
//! who look.
//!
//! A BPF register that 32-bit arithmetic has written has zeros in its upper half; an RV64 one has
//! the sign there. Two questions decide whether that must be mended:
//!
//! - *Does anybody read the upper half?* Backwards along all paths: [`Facts::upper_live`]. If not,
//!   the upper half may hold anything, and 64-bit additions become 32-bit ones.
//! - *What is in it?* Forwards along all paths: [`Form`]. Comparisons of 32 bits take any two
//!   registers of one form as they are.
//!
//! Both walks repeat until nothing changes: as often as loops are nested, and a few times more. A
//! program that takes longer is compiled as if nothing were known, so time stays linear.
//!
//! Key types: [`Facts`], [`Form`], [`Forms`]. Neighbour: the rest of `jit` asks. Source: kernel
//! `kernel/bpf/verifier.c` (`opt_subreg_zext_lo32_rnd_hi32`), which knows the first question.

use super::super::env::{Env, Fill, Inline};
use super::super::insn::BpfReg;
use super::super::op::{AluOp, AtomicOp, ByteOrder, Extend, Imm64, Op, Operand, Size, Width};
use super::super::program::{Func, Program, target};
use super::super::regs::{ARGS, RegSet, bit};
use super::super::verify::{goes_on, jump_of};

/// How often the walks are repeated at most.
const MAX_ROUNDS: usize = 64;

/// What the upper half of a register holds, beside what the program says.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub(super) struct Form {
    /// Zeros.
    pub(super) zero: bool,
    /// The sign of the lower half.
    pub(super) sign: bool,
}

impl Form {
    const ANY: Self = Self {
        zero: false,
        sign: false,
    };
    const ZERO: Self = Self {
        zero: true,
        sign: false,
    };
    const SIGN: Self = Self {
        zero: false,
        sign: true,
    };
    /// Below 2^31.
    const BOTH: Self = Self {
        zero: true,
        sign: true,
    };

    /// Of a constant in 64 bits.
    pub(super) fn of(value: i64) -> Self {
        Self {
            zero: u32::try_from(value).is_ok(),
            sign: i32::try_from(value).is_ok(),
        }
    }

    fn is_both(self) -> bool {
        self.zero && self.sign
    }
}

/// The forms of all registers.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub(super) struct Forms {
    zero: RegSet,
    sign: RegSet,
}

impl Forms {
    const ALL: Self = Self {
        zero: RegSet::MAX,
        sign: RegSet::MAX,
    };

    pub(super) fn of(self, reg: BpfReg) -> Form {
        Form {
            zero: self.zero & bit(reg) != 0,
            sign: self.sign & bit(reg) != 0,
        }
    }

    fn set(&mut self, reg: BpfReg, form: Form) {
        let put = |set: &mut RegSet, on: bool| match on {
            true => *set |= bit(reg),
            false => *set &= !bit(reg),
        };
        put(&mut self.zero, form.zero);
        put(&mut self.sign, form.sign);
    }

    fn meet(self, other: Self) -> Self {
        Self {
            zero: self.zero & other.zero,
            sign: self.sign & other.sign,
        }
    }

    /// After an instruction, which is as [`Facts::op`] gives it.
    pub(super) fn step(&mut self, op: Op, upper_live: RegSet, env: &Env) {
        let live = |reg: BpfReg| upper_live & bit(reg) != 0;
        // A 32-bit result that comes with its sign is given zeros if somebody looks.
        let extended = |reg, native: Form| match live(reg) && !native.zero {
            true => Form::ZERO,
            false => native,
        };
        match op {
            Op::Alu {
                op,
                width,
                dst,
                src,
            } => {
                let native = alu_form(op, width, self.of(dst), self.operand(src), src);
                let form = match width {
                    Width::W32 => extended(dst, native),
                    Width::W64 => native,
                };
                let form = match (op, width, src) {
                    // A constant is loaded with zeros at once.
                    (AluOp::Mov, Width::W32, Operand::Imm(imm)) if live(dst) => {
                        Form::of(i64::from(imm as u32))
                    }
                    _ => form,
                };
                self.set(dst, form);
            }
            Op::Neg {
                width: Width::W32,
                dst,
            } => self.set(dst, extended(dst, Form::SIGN)),
            Op::Neg { dst, .. } => self.set(dst, Form::ANY),
            Op::Movsx { width, dst, .. } => self.set(
                dst,
                match width {
                    Width::W32 => extended(dst, Form::SIGN),
                    Width::W64 => Form::SIGN,
                },
            ),
            Op::End { order, size, dst } => {
                let form = match (order, size) {
                    (_, Size::B | Size::H) => Form::BOTH,
                    (ByteOrder::Le, Size::W) => extended(dst, self.of(dst)),
                    (_, Size::W) => Form::ZERO,
                    (ByteOrder::Le, Size::Dw) => self.of(dst),
                    (_, Size::Dw) => Form::ANY,
                };
                self.set(dst, form);
            }
            Op::AddrSpaceCast { dst, .. } => self.set(dst, Form::ANY),
            Op::LdImm64 { dst, imm } => {
                let form = match imm {
                    Imm64::Value(value) => Form::of(value as i64),
                    _ => Form::ANY,
                };
                self.set(dst, form);
            }
            Op::Load {
                size, extend, dst, ..
            } => {
                let form = match (size, extend) {
                    (Size::Dw, _) => Form::ANY,
                    (_, Extend::Sign) => Form::SIGN,
                    (Size::B | Size::H, Extend::Zero) => Form::BOTH,
                    (Size::W, Extend::Zero) => extended(dst, Form::SIGN),
                };
                self.set(dst, form);
            }
            Op::LoadAcquire { size, dst, .. } => self.set(dst, memory_form(size, live(dst))),
            Op::Atomic { op, size, src, .. } => {
                if let Some(reg) = op.result(src) {
                    self.set(reg, memory_form(size, live(reg)));
                }
            }
            Op::Call(callee) => {
                self.zero &= !ARGS;
                self.sign &= !ARGS;
                let import = env.import(callee);
                let inlined = import.and_then(|import| import.inline.and_then(inline_form));
                let form = match import.map_or(Fill::Whole, |import| import.ret) {
                    Fill::Whole | Fill::Zeros(Size::Dw) | Fill::Sign(Size::Dw) => Form::ANY,
                    Fill::Zeros(Size::B | Size::H) => Form::BOTH,
                    Fill::Zeros(Size::W) => extended(BpfReg::R0, Form::SIGN),
                    Fill::Sign(_) => Form::SIGN,
                };
                self.set(BpfReg::R0, inlined.unwrap_or(form));
            }
            Op::Arena(access) => self.step(access.plain(), upper_live, env),
            Op::Store { .. }
            | Op::StoreRelease { .. }
            | Op::Jump { .. }
            | Op::JumpReg { .. }
            | Op::MayGoto { .. }
            | Op::Branch { .. }
            | Op::Exit => {}
        }
    }

    fn operand(self, src: Operand) -> Form {
        match src {
            Operand::Reg(reg) => self.of(reg),
            Operand::Imm(imm) => Form::of(imm.into()),
        }
    }
}

/// What is known of an inlined helper's result beyond its type.
fn inline_form(inline: Inline) -> Option<Form> {
    match inline {
        Inline::FuncArgCnt => Some(Form::BOTH),
        // Zero, or a negative number.
        Inline::FuncArg | Inline::FuncRet => Some(Form::SIGN),
        Inline::FuncIp | Inline::AttachCookie | Inline::ProcessorId { .. } => None,
    }
}

/// What an atomic instruction or an acquiring load brings.
fn memory_form(size: Size, live: bool) -> Form {
    match size {
        Size::B | Size::H => Form::BOTH,
        Size::W if live => Form::ZERO,
        Size::W => Form::SIGN,
        Size::Dw => Form::ANY,
    }
}

/// What RV64's instruction for an operation leaves.
pub(super) fn alu_form(op: AluOp, width: Width, a: Form, b: Form, src: Operand) -> Form {
    let imm = match src {
        Operand::Imm(imm) => Some(imm),
        Operand::Reg(_) => None,
    };
    match op {
        AluOp::Mov => b,
        AluOp::And if a.is_both() || b.is_both() => Form::BOTH,
        AluOp::And => Form {
            zero: a.zero || b.zero,
            sign: a.sign && b.sign,
        },
        AluOp::Or | AluOp::Xor => Form {
            zero: a.zero && b.zero,
            sign: a.sign && b.sign,
        },
        AluOp::Rsh => {
            let by = imm.unwrap_or(0) as u32 & if width == Width::W32 { 31 } else { 63 };
            match width {
                Width::W32 if by > 0 => Form::BOTH,
                Width::W32 => Form::SIGN,
                Width::W64 if by > 32 || (by > 0 && a.zero) => Form::BOTH,
                Width::W64 if by == 32 => Form::ZERO,
                Width::W64 => Form::ANY,
            }
        }
        AluOp::Arsh if width == Width::W64 => {
            match imm.is_some_and(|imm| imm as u32 & 63 >= 32) || a.sign {
                true => Form::SIGN,
                false => Form::ANY,
            }
        }
        _ if width == Width::W64 => Form::ANY,
        _ => Form::SIGN,
    }
}

/// What is known of a program's registers.
pub(super) struct Facts {
    /// After each instruction.
    upper_live: Vec<RegSet>,
    /// The registers that are read after each instruction.
    live: Vec<RegSet>,
    /// Before each instruction that is jumped to.
    forms: Vec<Option<Forms>>,
}

impl Facts {
    pub(super) fn new(program: &Program, env: &Env) -> Self {
        let ops = program.ops();
        let mut facts = Self {
            upper_live: vec![0; ops.len()],
            live: vec![0; ops.len()],
            forms: vec![None; ops.len()],
        };
        for (at, op) in ops.iter().enumerate() {
            if let Some(off) = op.and_then(jump_of) {
                facts.forms[target(at, off) as usize] = Some(Forms::ALL);
            }
        }
        for to in program.funcs().iter().flat_map(|func| &func.table_targets) {
            facts.forms[*to] = Some(Forms::ALL);
        }
        for func in program.funcs() {
            let range = func.start..func.end;
            // Without jumps back nothing is asked before it is known: once is enough.
            let goes_back = |at: usize| {
                let to = ops[at].and_then(jump_of).map(|off| target(at, off));
                to.is_some_and(|to| to <= at as i64)
            };
            let once = func.table_targets.is_empty() && !range.clone().any(goes_back);
            let settled = (0..MAX_ROUNDS).any(|_| !facts.walk_back(program, env, func) || once);
            if !settled {
                facts.upper_live[range.clone()].fill(RegSet::MAX);
                facts.live[range.clone()].fill(RegSet::MAX);
            }
            let settled = (0..MAX_ROUNDS).any(|_| !facts.walk_on(program, env, func) || once);
            if !settled {
                let known = facts.forms[range].iter_mut().flatten();
                known.for_each(|forms| *forms = Forms::default());
            }
        }
        facts
    }

    /// Whether the paths meet before instruction `at`, and what is known there.
    pub(super) fn forms_at(&self, at: usize) -> Option<Forms> {
        self.forms[at]
    }

    /// The registers whose upper halves somebody reads after instruction `at`.
    pub(super) fn upper_live(&self, at: usize) -> RegSet {
        self.upper_live[at]
    }

    /// The registers that somebody reads after instruction `at`.
    pub(super) fn live(&self, at: usize) -> RegSet {
        self.live[at]
    }

    /// Instruction `at`, or one of 32 bits that does the same for whoever looks at the result.
    pub(super) fn op(&self, at: usize, op: Op) -> Op {
        narrowed(op, self.upper_live[at])
    }

    /// Once from the end of a function to its beginning; whether anything was learnt.
    fn walk_back(&mut self, program: &Program, env: &Env, func: &Func) -> bool {
        let ops = program.ops();
        // Upper halves, and registers.
        let live_in = |facts: &Self, at: usize| match ops[at] {
            Some(op) => (
                upper_live_in(op, facts.upper_live[at], env),
                live_in(op, facts.live[at]),
            ),
            None => (0, 0),
        };
        let both = |a: (RegSet, RegSet), b: (RegSet, RegSet)| (a.0 | b.0, a.1 | b.1);
        let mut learnt = false;
        let mut next = (0, 0);
        // As it is now: what is learnt in this walk counts in the next one.
        let targets = func.table_targets.iter();
        let at_targets = targets.fold((0, 0), |live, to| both(live, live_in(self, *to)));
        for at in (func.start..func.end).rev() {
            let Some(op) = ops[at] else { continue };
            let mut live = match goes_on(op) {
                true => next,
                false => (0, 0),
            };
            if let Some(off) = jump_of(op) {
                live = both(live, live_in(self, target(at, off) as usize));
            }
            if let Op::JumpReg { .. } = op {
                live = both(live, at_targets);
            }
            learnt |= (self.upper_live[at], self.live[at]) != live;
            (self.upper_live[at], self.live[at]) = live;
            next = live_in(self, at);
        }
        learnt
    }

    /// Once from the beginning of a function to its end; whether anything was unlearnt.
    fn walk_on(&mut self, program: &Program, env: &Env, func: &Func) -> bool {
        let ops = program.ops();
        let mut unlearnt = false;
        let mut forms = Forms::default();
        let mut comes_on = true;
        let mut at_jumps = Forms::ALL;
        let range = func.start..func.end;
        for at in range {
            let Some(op) = ops[at] else { continue };
            if let Some(known) = &mut self.forms[at] {
                // The first instruction is come to from outside, too.
                let met = match comes_on {
                    true => known.meet(forms),
                    false => *known,
                };
                unlearnt |= met != *known;
                *known = met;
                forms = met;
            }
            forms.step(self.op(at, op), self.upper_live[at], env);
            if let Some(off) = jump_of(op) {
                if let Some(known) = &mut self.forms[target(at, off) as usize] {
                    let met = known.meet(forms);
                    unlearnt |= met != *known;
                    *known = met;
                }
            }
            if let Op::JumpReg { .. } = op {
                at_jumps = at_jumps.meet(forms);
            }
            comes_on = goes_on(op);
        }
        for to in &func.table_targets {
            if let Some(known) = &mut self.forms[*to] {
                let met = known.meet(at_jumps);
                unlearnt |= met != *known;
                *known = met;
            }
        }
        unlearnt
    }
}

/// See [`Facts::op`].
fn narrowed(op: Op, upper_live: RegSet) -> Op {
    let dead = |reg: BpfReg| upper_live & bit(reg) == 0;
    match op {
        Op::Alu {
            op: op @ (AluOp::Add | AluOp::Sub | AluOp::Mul),
            width: Width::W64,
            dst,
            src,
        } if dead(dst) && src != Operand::Reg(BpfReg::R10) => Op::Alu {
            op,
            width: Width::W32,
            dst,
            src,
        },
        Op::Alu {
            op: AluOp::Lsh,
            width: Width::W64,
            dst,
            src: Operand::Imm(imm),
        } if dead(dst) => {
            let (op, imm) = match imm & 63 {
                by @ 0..32 => (AluOp::Lsh, by),
                _ => (AluOp::Mov, 0),
            };
            Op::Alu {
                op,
                width: Width::W32,
                dst,
                src: Operand::Imm(imm),
            }
        }
        Op::Neg { dst, .. } if dead(dst) => Op::Neg {
            width: Width::W32,
            dst,
        },
        _ => op,
    }
}

/// The registers that are read by an instruction or by what comes after it.
fn live_in(op: Op, live_out: RegSet) -> RegSet {
    let args = match op {
        Op::Call(_) => ARGS,
        _ => 0,
    };
    (live_out & !op.written()) | op.read() | args
}

/// The registers whose upper halves are read by an instruction or by what comes after it.
fn upper_live_in(op: Op, live_out: RegSet, env: &Env) -> RegSet {
    let live = |reg: BpfReg| live_out & bit(reg) != 0;
    let operand = |src: Operand| match src {
        Operand::Reg(reg) => bit(reg),
        Operand::Imm(_) => 0,
    };
    let read = match op {
        Op::Alu {
            width: Width::W32, ..
        }
        | Op::Neg {
            width: Width::W32, ..
        }
        | Op::Branch {
            width: Width::W32, ..
        } => 0,
        Op::Alu { op, dst, src, .. } => {
            let both = bit(dst) | operand(src);
            match op {
                AluOp::Mov if live(dst) => operand(src),
                AluOp::Mov => 0,
                // The constant cuts the upper half.
                AluOp::And if matches!(src, Operand::Imm(0..)) => 0,
                // The lower half of the result depends on lower halves alone.
                AluOp::Add | AluOp::Sub | AluOp::Mul | AluOp::And | AluOp::Or | AluOp::Xor => {
                    if live(dst) {
                        both
                    } else {
                        0
                    }
                }
                // Or what is shifted out.
                AluOp::Lsh if matches!(src, Operand::Imm(imm) if imm & 63 >= 32) => 0,
                AluOp::Lsh if live(dst) => bit(dst),
                AluOp::Lsh => 0,
                AluOp::Rsh | AluOp::Arsh => bit(dst),
                AluOp::Div | AluOp::SDiv | AluOp::Mod | AluOp::SMod => both,
            }
        }
        Op::Neg { dst, .. } if live(dst) => bit(dst),
        Op::Neg { .. } => 0,
        Op::Branch { dst, src, .. } => bit(dst) | operand(src),
        Op::JumpReg { dst } => bit(dst),
        Op::Movsx { .. } | Op::LdImm64 { .. } | Op::Jump { .. } | Op::MayGoto { .. } => 0,
        Op::End { order, size, dst } => match (order, size) {
            (ByteOrder::Le, Size::Dw) if !live(dst) => 0,
            (_, Size::Dw) => bit(dst),
            _ => 0,
        },
        Op::AddrSpaceCast { .. } => 0,
        Op::Load { .. }
        | Op::LoadAcquire { .. }
        | Op::Store { .. }
        | Op::StoreRelease { .. }
        | Op::Atomic { .. } => op.base().map_or(0, bit) | upper_stored(op),
        // The address is in the lower half.
        Op::Arena(access) => upper_stored(access.plain()),
        Op::Call(callee) => {
            let import = env.import(callee);
            let whole = |i: usize| import.is_none_or(|import| import.args[i] == Fill::Whole);
            let args = BpfReg::ALL[1..6].iter().enumerate();
            args.filter(|(i, _)| whole(*i))
                .fold(0, |set, (_, reg)| set | bit(*reg))
        }
        Op::Exit => bit(BpfReg::R0),
    };
    (live_out & !op.written()) | read
}

/// The registers whose upper halves an access to memory stores or compares.
fn upper_stored(op: Op) -> RegSet {
    match op {
        Op::Store {
            size: Size::Dw,
            src: Operand::Reg(src),
            ..
        }
        | Op::StoreRelease {
            size: Size::Dw,
            src,
            ..
        } => bit(src),
        Op::Atomic {
            op,
            size: Size::Dw,
            src,
            ..
        } => match op {
            AtomicOp::Cmpxchg => bit(src) | bit(BpfReg::R0),
            _ => bit(src),
        },
        _ => 0,
    }
}
