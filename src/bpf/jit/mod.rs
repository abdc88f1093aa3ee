//! The compiler: from BPF to RV64.
//!
//! One pass over each function, one [`Op`] after the other, into an [`Asm`] that chooses the
//! compressed forms and lets branches grow. What makes the code short is known before: which upper
//! halves matter (`facts`), which registers a function needs (`frame`), which constants it keeps in
//! others (`pool`), and which accesses may be to the arena (`space`). What is not wanted at once is
//! made when it is (`later`).
//!
//! | file | emits |
//! | --- | --- |
//! | `frame` | prologue, epilogue, the map of registers |
//! | `later` | copies, shifts, constants: when somebody wants them |
//! | `pool` | constants, before a function's first instruction |
//! | `alu` | arithmetic |
//! | `mem` | loads, stores, atomics, casts |
//! | `flow` | branches, calls, exits |
//! | `inline` | helpers that are not called |
//! | `record` | what is around a program: tail calls left, exceptions, budgets, callbacks |
//! | `blind` | constants that are not to be seen |
//!
//! Key function: [`compile`]. Neighbours: `verify` has seen that the program is well-formed;
//! [`rv64`] knows the instructions. Source: kernel `arch/riscv/net/bpf_jit_comp64.c`.

mod alu;
mod blind;
mod facts;
mod flow;
mod frame;
mod inline;
mod later;
mod mem;
mod pool;
mod record;
mod space;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rv64::{
    Asm, AsmError, Features, Insn, Label, Reg, SImm, addi, mv, sext_w, slli, srli, uimm, zext_w,
};

pub(crate) use self::blind::Blind;
use self::facts::{Facts, Forms};
use self::frame::{Catches, Frame};
use self::inline::Second;
use self::later::Pending;
use self::pool::Pool;
use self::record::{Routines, Uses};
use self::space::Spaces;
use super::env::Env;
use super::error::Refusal;
use super::faults::Probe;
use super::insn::BpfReg;
use super::interp::check_imports;
use super::op::{Fault, Op, Operand};
use super::program::{Func, MAX_LOOPS, Program};
use super::regs::{ARGS, RegSet, bit};
use super::tables::Tables;
use super::verify::jump_of;

/// A compiled program, for any address yet.
#[derive(Debug)]
pub(crate) struct Object {
    asm: Asm,
    probes: Vec<ProbeLabels>,
    inner: Label,
    /// What each mark of `asm` stands before.
    parts: Vec<Part>,
    /// Of indices of instructions; the code refers to them.
    tables: Tables,
    /// By instruction.
    table_labels: BTreeMap<u64, Label>,
}

/// What a program's code depends on beside the program and what is around it.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) features: Features,
    /// The keys of constants, if those are not to be seen.
    pub(crate) blind: Option<Blind>,
    pub(crate) budget: Option<Budget>,
    /// Counts the runs that the budget has ended.
    pub(crate) stops: &'a AtomicU64,
}

/// How long a program may run.
///
/// A compiled program is charged by its loops: each time round takes the length of the whole loop
/// from the budget, each call the length of the whole function. So it ends before it has executed
/// more than it may, if not after as many.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// So many instructions of BPF.
    Insns(u64),
    /// So long, from the first look at the clock on: one every 16,384 instructions.
    Time(Duration),
}

/// A compiled program for one address.
#[derive(Debug)]
pub(crate) struct Linked {
    pub(crate) bytes: Vec<u8>,
    /// By address.
    pub(crate) probes: Vec<Probe>,
    /// Where tail calls arrive.
    pub(crate) inner: u64,
    /// By address; the last is the end of the code.
    pub(crate) places: Vec<Place>,
    /// Of addresses; the code refers to them.
    pub(crate) tables: Tables,
}

/// What a stretch of code was made of.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Part {
    /// What is around the functions.
    Around(Around),
    /// What comes before the first instruction of a function, which is this.
    Prologue(u32),
    /// An instruction.
    Insn(u32),
    /// Nothing any more.
    End,
}

/// Code that no instruction became: see `record`.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Around {
    /// By which the host enters a program or a callback: the prologue.
    Entry,
    /// `bpf_loop`: the prologue.
    Loop,
    /// What follows a prologue of those.
    Rest,
    /// Where exceptions end in the first function.
    Catch,
    /// The end of budgets, come to from anywhere.
    Stop,
}

/// Where a stretch of code begins, in bytes.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) off: u32,
    pub(crate) part: Part,
}

/// An access that may fault: where it is, where the program goes on, what becomes 0.
#[derive(Copy, Clone, Debug)]
struct ProbeLabels {
    at: Label,
    next: Label,
    rd: Reg,
}

impl Object {
    /// What it takes at most, in bytes.
    pub(crate) fn max_bytes(&self) -> usize {
        self.asm.max_size()
    }

    /// The code for one address; it begins with the program's entry, an `extern "C"` function of
    /// `r1` to `r5`.
    pub(crate) fn link(self, base: u64) -> Result<Linked, AsmError> {
        let code = self.asm.finish(base)?;
        let probe = |labels: &ProbeLabels| Probe {
            at: code.address(labels.at),
            next: code.address(labels.next),
            reg: labels.rd.num() as u8,
        };
        let probes = self.probes.iter().map(probe).collect();
        let inner = code.address(self.inner);
        let places = code.marks().iter().zip(self.parts);
        let places = places.map(|(&off, part)| Place { off, part }).collect();
        let mut tables = self.tables;
        // Every element has a label.
        tables.replace(|insn| self.table_labels.get(&insn).map_or(0, |l| code.address(*l)));
        Ok(Linked {
            inner,
            bytes: code.bytes,
            probes,
            places,
            tables,
        })
    }
}

/// Compiles `program`.
///
/// # Errors
/// A [`Refusal`] when it refers to something that `env` does not have.
pub(crate) fn compile(program: &Program, env: &Env, plan: Plan<'_>) -> Result<Object, Refusal> {
    check_imports(program, env)?;
    // The code refers to tables of its own.
    let tables = Tables::new(&program.extra().jump_tables);
    let mut blind = plan.blind;
    let facts = Facts::new(program, env);
    let spaces = Spaces::new(program, env);
    let (mut asm, mut probes, mut parts) = (Asm::new(plan.features), Vec::new(), Vec::new());
    asm.set_scratch(FAR);
    let labels = labels(program, &mut asm);
    let inner = labels.funcs[0].unwrap_or_else(|| asm.new_label());
    let func_label = |at: usize| labels.funcs[at];
    let uses = Uses::new(program, env, plan.budget);
    let mut routines = Routines::new(uses, &mut asm, func_label);
    if routines.uses.record() {
        routines.entry(&mut asm, &mut parts, inner, None);
    }
    let callback = program.extra().exception_callback.and_then(func_label);
    let charges = match plan.budget {
        Some(_) => record::charges(program),
        None => Vec::new(),
    };
    for (i, func) in program.funcs().iter().enumerate() {
        let catches = match i == 0 && routines.uses.controls.throws {
            true => Catches::Yes,
            false => Catches::No,
        };
        let frame = Frame::new(func, program.ops(), env, catches);
        let mut emit = Emit {
            asm: &mut asm,
            probes: &mut probes,
            parts: &mut parts,
            env,
            program,
            tables: &tables,
            labels: &labels,
            routines: &mut routines,
            charges: &charges,
            pool: match blind {
                // Nor are they to stay anywhere.
                Some(_) => Pool::default(),
                None => Pool::new(func, program.ops(), &frame, env),
            },
            frame,
            forms: Forms::default(),
            live: 0,
            live_after: 0,
            pending: Pending::default(),
            in_arena: 0,
            fault: Fault::Fatal,
            space: Space::Process,
            second: Second::default(),
            blind: blind.as_mut(),
        };
        emit.function(program, &facts, spaces.as_ref(), func);
        if catches == Catches::Yes {
            emit.catch(callback);
        }
    }
    routines.finish(&mut asm, &mut parts, plan.stops, func_label, callback);
    begin(&mut asm, &mut parts, Part::End);
    let targets = program.funcs().iter().flat_map(|func| &func.table_targets);
    let table_labels = targets.filter_map(|to| Some((*to as u64, labels.insns[*to]?)));
    Ok(Object {
        asm,
        probes,
        inner,
        parts,
        table_labels: table_labels.collect(),
        tables,
    })
}

/// A label for every instruction that somebody goes to; functions have theirs at their prologue.
fn labels(program: &Program, asm: &mut Asm) -> Labels {
    let len = program.ops().len();
    let mut labels = Labels {
        insns: vec![None; len],
        funcs: vec![None; len],
    };
    for func in program.funcs() {
        labels.funcs[func.start] = Some(asm.new_label());
        for to in &func.table_targets {
            labels.insns[*to] = Some(asm.new_label());
        }
    }
    for (at, op) in program.ops().iter().enumerate() {
        if let Some(off) = op.and_then(jump_of) {
            let to = super::program::target(at, off) as usize;
            labels.insns[to].get_or_insert_with(|| asm.new_label());
        }
    }
    labels
}

/// Where jumps and calls go.
struct Labels {
    insns: Vec<Option<Label>>,
    funcs: Vec<Option<Label>>,
}

/// Temporaries that hold nothing from one BPF instruction to the next.
const TMP: Reg = Reg::T0;
const TMP2: Reg = Reg::T1;
const TMP3: Reg = Reg::T2;
const TMP4: Reg = Reg::T5;
/// What jumps of more than 1 MiB go through.
const FAR: Reg = Reg::T6;

/// What the address of an access is counted from.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Space {
    /// It is one.
    Process,
    /// The lower half is an offset.
    Arena,
}

/// The emission of one function.
struct Emit<'a> {
    asm: &'a mut Asm,
    probes: &'a mut Vec<ProbeLabels>,
    parts: &'a mut Vec<Part>,
    env: &'a Env,
    program: &'a Program,
    tables: &'a Tables,
    labels: &'a Labels,
    routines: &'a mut Routines,
    /// What the budget is charged before each instruction; empty without one.
    charges: &'a [u32],
    frame: Frame,
    /// Before the instruction that is emitted now.
    forms: Forms,
    /// The upper halves that are read after it.
    live: RegSet,
    /// The registers that may point into the arena before it.
    in_arena: RegSet,
    /// What its accesses do where there is no memory.
    fault: Fault,
    /// What their addresses are counted from.
    space: Space,
    /// Before it, too.
    second: Second,
    /// The keys of constants, if those are not to be seen.
    blind: Option<&'a mut Blind>,
    /// The registers that are read after it.
    live_after: RegSet,
    /// Constants that stay in registers.
    pool: Pool,
    /// Results that have not been made.
    pending: Pending,
}

impl Emit<'_> {
    fn function(&mut self, program: &Program, facts: &Facts, spaces: Option<&Spaces>, func: &Func) {
        let (range, zeroed) = (func.start..func.end, func.zeroed);
        if let Some(label) = self.labels.funcs[range.start] {
            self.asm.bind(label);
        }
        self.begin(Part::Prologue(range.start as u32));
        let len = (func.end - func.start) as u32;
        self.routines.charge(self.asm, func.start, len);
        self.frame
            .prologue(self.asm, MAX_LOOPS, self.routines.caught);
        for reg in BpfReg::ALL.into_iter().filter(|r| zeroed & bit(*r) != 0) {
            self.asm.li(self.frame.reg(reg), 0);
        }
        self.in_arena = spaces.map_or(0, |_| space::ANY);
        self.fill_pool();
        let mut over = None;
        for at in range {
            let Some(op) = program.ops()[at] else {
                continue;
            };
            if over == Some(at) {
                self.begin(Part::Insn(at as u32));
                continue;
            }
            if let Some(label) = self.labels.insns[at] {
                self.settle_all(RegSet::MAX);
                self.asm.bind(label);
            }
            self.begin(Part::Insn(at as u32));
            if let Some(forms) = facts.forms_at(at) {
                self.forms = forms;
                self.second = Second::default();
            }
            if let Some(met) = spaces.and_then(|spaces| spaces.met(at)) {
                self.in_arena = met;
            }
            if let Some(insns) = self.charges.get(at) {
                self.routines.charge(self.asm, at, *insns);
            }
            self.live = facts.upper_live(at);
            self.live_after = facts.live(at);
            let op = facts.op(at, op);
            self.fault = self.fault_of(op);
            let probes = self.probes.len();
            match self.over_jump(program, at, op) {
                Some((from, inverted)) => {
                    over = Some(from);
                    self.op(from, inverted);
                }
                None => self.op(at, op),
            }
            self.go_on_after_faults(op, probes);
            self.forget_all_but(self.live_after);
            self.forms.step(op, self.live, self.env);
            if spaces.is_some() {
                self.in_arena = space::after(self.in_arena, op);
            }
            self.second.step(op);
        }
    }

    fn begin(&mut self, part: Part) {
        begin(self.asm, self.parts, part);
    }

    /// What an instruction's accesses do where there is no memory.
    fn fault_of(&self, op: Op) -> Fault {
        let through_arena = |base: BpfReg| self.in_arena & bit(base) != 0;
        match op {
            Op::Load {
                fault: Fault::Zero, ..
            }
            | Op::Arena(_) => Fault::Zero,
            op if op.base().is_some_and(through_arena) => Fault::Zero,
            _ => Fault::Fatal,
        }
    }

    /// What an instruction that has been emitted does after a fault of its accesses, `probes` and
    /// the following: what it brings is 0, and the program goes on behind it.
    fn go_on_after_faults(&mut self, op: Op, probes: usize) {
        if self.probes.len() == probes {
            return;
        }
        let next = self.asm.here();
        let written = |reg: &&BpfReg| op.written() & bit(**reg) != 0;
        let brings = BpfReg::ALL.iter().find(written);
        let rd = brings.map_or(Reg::Zero, |reg| self.rd(*reg));
        for probe in &mut self.probes[probes..] {
            (probe.next, probe.rd) = (next, rd);
        }
    }

    /// What comes after the first function of a program that throws: its callback makes the result
    /// of the cookie, which is in `a0`.
    fn catch(&mut self, callback: Option<Label>) {
        self.begin(Part::Around(Around::Catch));
        self.asm.bind(self.routines.caught);
        self.frame.catch(self.asm);
        if let Some(callback) = callback {
            self.asm.jal(Reg::Ra, callback);
        }
        self.frame.epilogue(self.asm);
    }

    /// A branch over a jump is the opposite branch from there; where that is.
    fn over_jump(&self, program: &Program, at: usize, op: Op) -> Option<(usize, Op)> {
        let Op::Branch { cond, off: 1, .. } = op else {
            return None;
        };
        let next = at + 1;
        let Some(Some(Op::Jump { off })) = program.ops().get(next) else {
            return None;
        };
        // Somebody else may come to it.
        let alone = self.labels.insns[next].is_none();
        let (off, opposite) = (i16::try_from(*off).ok()?, cond.opposite()?);
        let Op::Branch {
            width, dst, src, ..
        } = op
        else {
            return None;
        };
        let inverted = Op::Branch {
            cond: opposite,
            width,
            dst,
            src,
            off,
        };
        alone.then_some((next, inverted))
    }

    fn op(&mut self, at: usize, op: Op) {
        if self.defer(op) {
            return;
        }
        self.prepare(op);
        match op {
            Op::Alu {
                op,
                width,
                dst,
                src,
            } => self.alu(op, width, dst, src),
            Op::Neg { width, dst } => self.neg(width, dst),
            Op::Movsx {
                width,
                size,
                dst,
                src,
            } => self.movsx(width, size, dst, src),
            Op::End { order, size, dst } => self.end(order, size, dst),
            Op::AddrSpaceCast { dst, src, .. } => self.cast(dst, src),
            Op::LdImm64 { dst, imm } => self.ld_imm64(at, dst, imm),
            Op::Load {
                size,
                extend,
                dst,
                src,
                off,
                ..
            } => self.load(size, extend, dst, (src, off)),
            Op::Store {
                size,
                dst,
                off,
                src,
            } => self.store(size, (dst, off), src),
            Op::Atomic {
                op,
                size,
                dst,
                off,
                src,
            } => self.atomic(op, size, (dst, off), src),
            Op::LoadAcquire {
                size,
                dst,
                src,
                off,
            } => self.load_acquire(size, dst, (src, off)),
            Op::StoreRelease {
                size,
                dst,
                off,
                src,
            } => self.store_release(size, (dst, off), src),
            Op::Arena(access) => {
                self.space = Space::Arena;
                self.op(at, access.plain());
                self.space = Space::Process;
            }
            Op::Jump { off } => self.jump(at, off),
            Op::JumpReg { dst } => self.jump_reg(dst),
            Op::MayGoto { off } => self.may_goto(at, off),
            Op::Branch {
                cond,
                width,
                dst,
                src,
                off,
            } => self.branch(at, cond, width, (dst, src), off),
            Op::Call(callee) => self.call(at, callee),
            Op::Exit => self.exit(),
        }
    }

    /// Makes what an instruction wants to find made.
    fn prepare(&mut self, op: Op) {
        match op {
            // They look themselves.
            Op::Alu { .. } | Op::Load { .. } | Op::Store { .. } | Op::Arena(_) | Op::Exit => {}
            Op::Jump { .. } | Op::MayGoto { .. } | Op::Branch { .. } => {
                self.settle_all(self.live_after);
            }
            Op::JumpReg { dst } => self.settle_all(self.live_after | bit(dst)),
            Op::Call(_) => self.settle_all(self.live_after | ARGS),
            _ => {
                self.settle_all(op.read());
                let written = op.written();
                for reg in BpfReg::ALL.into_iter().filter(|r| written & bit(*r) != 0) {
                    self.target_of(reg);
                }
            }
        }
    }

    fn emit(&mut self, insn: Insn) {
        self.asm.emit(insn);
    }

    fn features(&self) -> Features {
        self.asm.features()
    }

    /// Where a BPF register that can be written is.
    fn rd(&self, reg: BpfReg) -> Reg {
        self.frame.reg(reg)
    }

    /// A register that holds a BPF register's value; `tmp` for `r10`.
    fn rs(&mut self, reg: BpfReg, tmp: Reg) -> Reg {
        if reg == BpfReg::R10 {
            let off = frame::small(self.frame.r10());
            self.emit(addi(tmp, Reg::Sp, off));
            return tmp;
        }
        self.source(reg)
    }

    /// A register that holds an operand; constants come into `tmp`, and may take `TMP3`.
    fn operand(&mut self, src: Operand, tmp: Reg) -> Reg {
        match src {
            Operand::Reg(reg) => self.rs(reg, tmp),
            Operand::Imm(imm) => self.constant_reg(imm.into(), tmp),
        }
    }

    /// A register that holds a constant; `tmp` if none does already.
    fn constant_reg(&mut self, value: i64, tmp: Reg) -> Reg {
        if let Some(reg) = self.pool.reg(value) {
            return reg;
        }
        self.constant(tmp, value);
        tmp
    }

    /// Whether somebody reads the upper half of what is written to `reg` now.
    fn is_upper_live(&self, reg: BpfReg) -> bool {
        self.live & bit(reg) != 0
    }

    fn mv(&mut self, rd: Reg, rs: Reg) {
        if rd != rs {
            self.emit(mv(rd, rs));
        }
    }

    /// `rd` = the lower half of `rs`, with zeros.
    fn zext_w(&mut self, rd: Reg, rs: Reg) {
        zext_half(self.asm, rd, rs);
    }

    /// A register that holds the lower half of `rs` with its sign: itself, if it does.
    fn signed(&mut self, rs: Reg, is_signed: bool, tmp: Reg) -> Reg {
        if is_signed || rs == Reg::Zero {
            return rs;
        }
        self.emit(sext_w(tmp, rs));
        tmp
    }
}

/// What is emitted from here on is for `part`.
fn begin(asm: &mut Asm, parts: &mut Vec<Part>, part: Part) {
    asm.mark();
    parts.push(part);
}

/// `rd` = the lower half of `rs`, with zeros.
fn zext_half(asm: &mut Asm, rd: Reg, rs: Reg) {
    if asm.features().zba {
        asm.emit(zext_w(rd, rs));
    } else {
        asm.emit(slli(rd, rs, uimm!(32)));
        asm.emit(srli(rd, rd, uimm!(32)));
    }
}

/// The immediate, if it fits.
fn imm12(value: i64) -> Option<SImm<12>> {
    SImm::new(value)
}

#[cfg(test)]
mod tests;
