//! The record of a run: what goes along with a program through all its functions, and through the
//! programs that it goes on in by tail calls.
//!
//! Only programs that make tail calls, throw exceptions or have a budget have one. The code that
//! they are entered by makes it on its own frame, points `s6` at it, keeps the budget in `s7`, and
//! calls the program's first function: the *inner entry*, at which tail calls arrive with the record
//! of whoever was entered. All of them find the same record, so this frame is the same for all
//! programs:
//!
//! ```text
//!   s6 + SIZE ──▶ ┌────────────────────┐ ◀── fp
//!                 │ ra, caller's fp    │
//!                 │ s6, s1 to s4, s7   │  s7 if there is a budget
//!                 ├────────────────────┤
//!                 │ the outermost node │  exceptions that nobody else catches
//!                 │ limit, deadline    │  of a budget of time; the second once it was asked for
//!                 │ line               │  of the counter of runs, if this one is counted
//!                 │ way out            │  the code of the program that was entered
//!                 │ node               │  where exceptions end now
//!                 │ tail calls left    │
//!   s6 = sp ─────▶└────────────────────┘
//! ```
//!
//! - *Exceptions.* The first function of a program that throws puts a node on its frame and at the
//!   head of the record's list: the node before it, and the code to go on at, which finds its frame
//!   around the node. A throw jumps there with the cookie in `a0`.
//! - *Budgets.* Whatever can run for ever goes round a loop or through a function's entry. Each
//!   entry takes the length of its function from `s7`, each target of jumps back the length of the
//!   longest of its loops; below zero, the time is asked for, or the program ends: `sp` is the
//!   record's again, and the code around the run returns, with the instruction's number + 1 in
//!   `a1`: that of the program that was entered, which is there as long as its caller is in it.
//! - *Callbacks.* A function whose address is taken is called by the host as if it were a program:
//!   with a record of its own, and so with a budget of its own. `bpf_loop`, which is code of ours,
//!   goes to it directly, with the record that there is.
//!
//! Key types: [`Uses`], [`Routines`]. Neighbours: `flow` emits jumps to what is here; `array` counts
//! runs. Source: kernel `kernel/bpf/core.c` (`MAX_TAIL_CALL_CNT`), `kernel/bpf/helpers.c`
//! (`bpf_throw`, `bpf_loop`).

use std::mem::offset_of;
use std::sync::atomic::AtomicU64;

use rv64::{
    Asm, Label, Order, Reg, SImm, add, addi, amoadd_d, andi, imm, jalr, jr, ld, mv, ret, sd, slli,
    srli, uimm,
};

use super::super::array::{LINE_BYTES, LINE_SHIFT, LINES, runs_addr};
use super::super::env::{Controls, Env};
use super::super::op::{Imm64, Op};
use super::super::program::{MAX_LOOPS, MAX_TAIL_CALLS, Program, target};
use super::super::verify::jump_of;
use super::frame::small;
use super::{Around, Budget, Part, begin, zext_half};

/// Points to the record.
pub(super) const RECORD: Reg = Reg::S6;
/// Instructions left.
pub(super) const LEFT: Reg = Reg::S7;

const TAIL_CALLS: i64 = 0;
const NODE: i64 = 8;
const WAY_OUT: i64 = 16;
const LINE: i64 = 24;
const CLOCK: i64 = 32;
const LIMIT: i64 = CLOCK + offset_of!(Clock, limit_ns) as i64;
const DEADLINE: i64 = CLOCK + offset_of!(Clock, deadline_ns) as i64;
const OUTERMOST: i64 = CLOCK + size_of::<Clock>() as i64;
const SIZE: i64 = 128;
/// From the top; what is left by an exception or at a budget's end has not restored what it had
/// saved.
const SAVED: [Reg; 7] = [Reg::Ra, Reg::Fp, RECORD, Reg::S1, Reg::S2, Reg::S3, Reg::S4];
const _: () = assert!(SIZE >= OUTERMOST + NODE_BYTES + 8 * (SAVED.len() as i64 + 1));
const _: () = assert!(SIZE % 16 == 0);

/// A node of the list of places where exceptions end: the node before, and this.
pub(super) const NODE_BYTES: i64 = 16;
const HANDLER: i64 = 8;

/// The part of the record that a budget of time is kept in.
#[derive(Debug)]
#[repr(C)]
struct Clock {
    limit_ns: u64,
    /// 0: not asked for yet.
    deadline_ns: u64,
}

/// So many instructions are executed between two looks at the clock.
const SLICE: i64 = 1 << 14;

/// What a program asks of the code around it.
#[derive(Clone, Debug)]
pub(super) struct Uses {
    pub(super) controls: Controls,
    budget: Option<Budget>,
    /// The functions whose addresses are taken.
    callbacks: Vec<usize>,
}

impl Uses {
    pub(super) fn new(program: &Program, env: &Env, budget: Option<Budget>) -> Self {
        let taken = program
            .ops()
            .iter()
            .enumerate()
            .filter_map(|(at, op)| match op {
                Some(Op::LdImm64 {
                    imm: Imm64::Func(off),
                    ..
                }) => Some(target(at, *off) as usize),
                _ => None,
            });
        let mut callbacks: Vec<usize> = taken.collect();
        callbacks.sort_unstable();
        callbacks.dedup();
        Self {
            controls: env.controls(program),
            budget,
            callbacks,
        }
    }

    /// Whether there is a record.
    pub(super) fn record(&self) -> bool {
        self.controls.tail_calls || self.controls.throws || self.budget.is_some()
    }
}

/// What is taken from the budget before each instruction that is jumped back to: the length of the
/// longest loop.
pub(super) fn charges(program: &Program) -> Vec<u32> {
    let mut charges = vec![0; program.ops().len()];
    for (at, op) in program.ops().iter().enumerate() {
        let Some(off) = op.and_then(jump_of) else {
            continue;
        };
        let to = target(at, off) as usize;
        if to <= at {
            charges[to] = (at - to + 1) as u32;
        }
    }
    for func in program.funcs() {
        let is_jump = |at: &usize| matches!(program.ops()[*at], Some(Op::JumpReg { .. }));
        let Some(last) = (func.start..func.end).rev().find(is_jump) else {
            continue;
        };
        for to in func.table_targets.iter().filter(|to| **to <= last) {
            charges[*to] = charges[*to].max((last - to + 1) as u32);
        }
    }
    charges
}

/// A charge that was too much: what comes then.
#[derive(Copy, Clone, Debug)]
struct Spent {
    insn: usize,
    label: Label,
    back: Label,
}

/// The code that serves all functions of a program.
#[derive(Debug)]
pub(super) struct Routines {
    pub(super) uses: Uses,
    /// By which the host calls a function: itself, or code that makes a record first.
    callbacks: Vec<(usize, Label)>,
    pub(super) loop_: Label,
    /// Where the first function goes on after an exception.
    pub(super) caught: Label,
    spent: Vec<Spent>,
    stop: Label,
    refill: Label,
}

impl Routines {
    pub(super) fn new(
        uses: Uses,
        asm: &mut Asm,
        func_label: impl Fn(usize) -> Option<Label>,
    ) -> Self {
        let mut outer = |at: usize| match uses.record() {
            true => Some((at, asm.new_label())),
            false => Some((at, func_label(at)?)),
        };
        let callbacks = uses.callbacks.iter().filter_map(|at| outer(*at)).collect();
        Self {
            callbacks,
            loop_: asm.new_label(),
            caught: asm.new_label(),
            stop: asm.new_label(),
            refill: asm.new_label(),
            spent: Vec::new(),
            uses,
        }
    }

    /// What stands for the function that begins at instruction `at`.
    pub(super) fn callback(&self, at: usize) -> Option<Label> {
        let found = self.callbacks.iter().find(|(func, _)| *func == at);
        found.map(|(_, label)| *label)
    }

    /// Makes a record and calls `inner`; `catch` is the callback of exceptions that come out of it.
    pub(super) fn entry(
        &self,
        asm: &mut Asm,
        parts: &mut Vec<Part>,
        inner: Label,
        catch: Option<Label>,
    ) {
        begin(asm, parts, Part::Around(Around::Entry));
        let [caught, done, way_out] = [0; 3].map(|_| asm.new_label());
        asm.emit(addi(Reg::Sp, Reg::Sp, small(-SIZE)));
        for (reg, off) in self.saved() {
            asm.emit(sd(reg, Reg::Sp, small(off)));
        }
        asm.emit(addi(Reg::Fp, Reg::Sp, small(SIZE)));
        begin(asm, parts, Part::Around(Around::Rest));
        asm.emit(mv(RECORD, Reg::Sp));
        asm.li(Reg::T0, MAX_TAIL_CALLS.into());
        asm.emit(sd(Reg::T0, Reg::Sp, small(TAIL_CALLS)));
        push_node(asm, caught, OUTERMOST);
        if self.uses.controls.tail_calls {
            count_in(asm);
        }
        match self.uses.budget {
            None => {}
            Some(Budget::Insns(insns)) => {
                asm.li(LEFT, i64::try_from(insns).unwrap_or(i64::MAX));
            }
            Some(Budget::Time(limit)) => {
                let limit = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX);
                asm.li(Reg::T0, limit);
                asm.emit(sd(Reg::T0, Reg::Sp, small(LIMIT)));
                asm.emit(sd(Reg::Zero, Reg::Sp, small(DEADLINE)));
                asm.li(LEFT, SLICE);
            }
        }
        if self.uses.budget.is_some() {
            asm.la(Reg::T0, way_out);
            asm.emit(sd(Reg::T0, Reg::Sp, small(WAY_OUT)));
        }
        asm.jal(Reg::Ra, inner);
        asm.bind(done);
        if self.uses.budget.is_some() {
            asm.li(Reg::A1, 0);
        }
        asm.bind(way_out);
        if self.uses.controls.tail_calls {
            asm.emit(ld(Reg::T0, Reg::Sp, small(LINE)));
            asm.li(Reg::T1, -1);
            asm.emit(amoadd_d(Reg::Zero, Reg::T1, Reg::T0, Order::Rl));
        }
        for (reg, off) in self.saved() {
            asm.emit(ld(reg, Reg::Sp, small(off)));
        }
        asm.emit(addi(Reg::Sp, Reg::Sp, small(SIZE)));
        asm.emit(ret());
        // An exception: `t1` is the node, `a0` the cookie.
        asm.bind(caught);
        asm.emit(addi(Reg::Sp, Reg::T1, small(-OUTERMOST)));
        asm.emit(addi(Reg::Fp, Reg::Sp, small(SIZE)));
        if let Some(catch) = catch {
            // One that comes out of the callback ends in its own cookie.
            let last = asm.new_label();
            asm.la(Reg::T0, last);
            asm.emit(sd(Reg::T0, Reg::Sp, small(OUTERMOST + HANDLER)));
            asm.jal(Reg::Ra, catch);
            asm.jump(done);
            asm.bind(last);
            asm.emit(addi(Reg::Sp, Reg::T1, small(-OUTERMOST)));
        }
        asm.jump(done);
    }

    fn saved(&self) -> impl Iterator<Item = (Reg, i64)> + use<> {
        let regs = SAVED.into_iter().chain(self.uses.budget.map(|_| LEFT));
        regs.zip(1..).map(|(reg, i)| (reg, SIZE - 8 * i))
    }

    /// Takes `insns` from the budget, if there is one, before instruction `insn`.
    pub(super) fn charge(&mut self, asm: &mut Asm, insn: usize, insns: u32) {
        if self.uses.budget.is_none() || insns == 0 {
            return;
        }
        match SImm::new(-i64::from(insns)) {
            Some(less) => asm.emit(addi(LEFT, LEFT, less)),
            None => {
                asm.li(Reg::T0, -i64::from(insns));
                asm.emit(add(LEFT, LEFT, Reg::T0));
            }
        }
        let label = asm.new_label();
        asm.branch(rv64::Cond::Lt, LEFT, Reg::Zero, label);
        let back = asm.here();
        self.spent.push(Spent { insn, label, back });
    }

    /// What comes after all functions. `stops` counts the runs that a budget has ended.
    pub(super) fn finish(
        self,
        asm: &mut Asm,
        parts: &mut Vec<Part>,
        stops: &AtomicU64,
        func_label: impl Fn(usize) -> Option<Label>,
        exception_callback: Option<Label>,
    ) {
        if self.uses.record() {
            for (at, outer) in &self.callbacks {
                asm.bind(*outer);
                if let Some(inner) = func_label(*at) {
                    self.entry(asm, parts, inner, exception_callback);
                }
            }
        }
        self.emit_loop(asm, parts, func_label);
        self.emit_stop(asm, parts, stops);
        if !self.uses.controls.throws {
            asm.bind(self.caught);
        }
    }

    /// `a0` = `bpf_loop(a0, a1, a2, a3)`.
    fn emit_loop(
        &self,
        asm: &mut Asm,
        parts: &mut Vec<Part>,
        func_label: impl Fn(usize) -> Option<Label>,
    ) {
        if !self.uses.controls.loops {
            return asm.bind(self.loop_);
        }
        begin(asm, parts, Part::Around(Around::Loop));
        asm.bind(self.loop_);
        const SAVED: [Reg; 6] = [Reg::Ra, Reg::Fp, Reg::S1, Reg::S2, Reg::S3, Reg::S4];
        const SIZE: i64 = 48;
        let [no_flags, not_too_many, none] = [0; 3].map(|_| asm.new_label());
        asm.beqz(Reg::A3, no_flags);
        asm.li(Reg::A0, -i64::from(libc::EINVAL));
        asm.emit(ret());
        asm.bind(no_flags);
        zext_half(asm, Reg::A0, Reg::A0);
        asm.li(Reg::T0, MAX_LOOPS as i64);
        asm.branch(rv64::Cond::Geu, Reg::T0, Reg::A0, not_too_many);
        asm.li(Reg::A0, -i64::from(libc::E2BIG));
        asm.emit(ret());
        asm.bind(not_too_many);
        asm.beqz(Reg::A0, none);
        let saved = || {
            SAVED
                .into_iter()
                .zip(1..)
                .map(|(reg, i)| (reg, SIZE - 8 * i))
        };
        asm.emit(addi(Reg::Sp, Reg::Sp, small(-SIZE)));
        saved().for_each(|(reg, off)| asm.emit(sd(reg, Reg::Sp, small(off))));
        asm.emit(addi(Reg::Fp, Reg::Sp, small(SIZE)));
        begin(asm, parts, Part::Around(Around::Rest));
        for (rd, rs) in [(Reg::S1, Reg::A0), (Reg::S2, Reg::A1), (Reg::S3, Reg::A2)] {
            asm.emit(mv(rd, rs));
        }
        asm.li(Reg::S4, 0);
        let (again, done) = (asm.new_label(), asm.new_label());
        // What the program knows as its function makes a record of its own: past that.
        if self.uses.record() {
            for (at, outer) in &self.callbacks {
                let Some(inner) = func_label(*at) else {
                    continue;
                };
                asm.la(Reg::T0, *outer);
                let other = asm.new_label();
                asm.branch(rv64::Cond::Ne, Reg::T0, Reg::S2, other);
                asm.la(Reg::S2, inner);
                asm.jump(again);
                asm.bind(other);
            }
        }
        asm.bind(again);
        asm.emit(mv(Reg::A0, Reg::S4));
        asm.emit(mv(Reg::A1, Reg::S3));
        asm.emit(jalr(Reg::Ra, Reg::S2, SImm::ZERO));
        asm.emit(addi(Reg::S4, Reg::S4, imm!(1)));
        asm.bnez(Reg::A0, done);
        asm.branch(rv64::Cond::Ne, Reg::S4, Reg::S1, again);
        asm.bind(done);
        asm.emit(mv(Reg::A0, Reg::S4));
        saved().for_each(|(reg, off)| asm.emit(ld(reg, Reg::Sp, small(off))));
        asm.emit(addi(Reg::Sp, Reg::Sp, small(SIZE)));
        asm.bind(none);
        asm.emit(ret());
    }

    fn emit_stop(&self, asm: &mut Asm, parts: &mut Vec<Part>, stops: &AtomicU64) {
        let Some(budget) = self.uses.budget else {
            asm.bind(self.stop);
            return asm.bind(self.refill);
        };
        begin(asm, parts, Part::Around(Around::Stop));
        for spent in &self.spent {
            asm.bind(spent.label);
            asm.li(Reg::T1, spent.insn as i64 + 1);
            match budget {
                Budget::Insns(_) => asm.jump(self.stop),
                Budget::Time(_) => {
                    asm.jal(Reg::T0, self.refill);
                    asm.jump(spent.back);
                }
            }
        }
        asm.bind(self.refill);
        if let Budget::Time(_) = budget {
            self.emit_refill(asm);
        }
        asm.bind(self.stop);
        asm.emit(mv(Reg::Sp, RECORD));
        asm.emit(mv(Reg::A1, Reg::T1));
        asm.li(Reg::T0, stops.as_ptr().expose_provenance() as i64);
        asm.li(Reg::T1, 1);
        asm.emit(amoadd_d(Reg::Zero, Reg::T1, Reg::T0, Order::Relaxed));
        asm.li(Reg::A0, 0);
        // This program may have been replaced: it is left before the run is counted out.
        asm.emit(ld(Reg::T0, Reg::Sp, small(WAY_OUT)));
        asm.emit(jr(Reg::T0));
    }

    /// Asks for the time; returns to `t0` if there is some left. All registers of the program stay,
    /// and of its pool.
    fn emit_refill(&self, asm: &mut Asm) {
        const KEPT: [Reg; 15] = [
            Reg::A0,
            Reg::A1,
            Reg::A2,
            Reg::A3,
            Reg::A4,
            Reg::A5,
            Reg::A6,
            Reg::A7,
            Reg::T2,
            Reg::T3,
            Reg::T4,
            Reg::T5,
            Reg::Ra,
            Reg::T0,
            Reg::T1,
        ];
        const SIZE: i64 = 128;
        let kept = || KEPT.into_iter().zip(0..).map(|(reg, i)| (reg, 8 * i));
        asm.emit(addi(Reg::Sp, Reg::Sp, small(-SIZE)));
        kept().for_each(|(reg, off)| asm.emit(sd(reg, Reg::Sp, small(off))));
        asm.emit(addi(Reg::A0, RECORD, small(CLOCK)));
        asm.call_abs(slice as *const () as u64, Reg::Ra, Reg::Ra);
        asm.emit(mv(LEFT, Reg::A0));
        kept().for_each(|(reg, off)| asm.emit(ld(reg, Reg::Sp, small(off))));
        asm.emit(addi(Reg::Sp, Reg::Sp, small(SIZE)));
        asm.branch(rv64::Cond::Lt, LEFT, Reg::Zero, self.stop);
        asm.emit(jr(Reg::T0));
    }
}

/// Counts the run on this thread's line.
fn count_in(asm: &mut Asm) {
    asm.emit(srli(Reg::T0, Reg::Tp, uimm!(LINE_SHIFT)));
    asm.emit(andi(Reg::T0, Reg::T0, imm!(LINES as i64 - 1)));
    let by = uimm!(LINE_BYTES.trailing_zeros() as i64);
    asm.emit(slli(Reg::T0, Reg::T0, by));
    asm.li(Reg::T1, runs_addr() as i64);
    asm.emit(add(Reg::T0, Reg::T0, Reg::T1));
    asm.emit(sd(Reg::T0, Reg::Sp, small(LINE)));
    asm.li(Reg::T1, 1);
    // What is looked up in arrays is looked up after this: see `array`.
    asm.emit(amoadd_d(Reg::Zero, Reg::T1, Reg::T0, Order::AqRl));
}

/// How many instructions may be executed before the next look at the clock; -1: the time is over.
/// The time until the first look is not counted.
extern "C" fn slice(clock: &mut Clock) -> i64 {
    let now = super::super::helpers::ktime_get_ns();
    if clock.deadline_ns == 0 {
        clock.deadline_ns = now.saturating_add(clock.limit_ns);
    }
    match now < clock.deadline_ns {
        true => SLICE,
        false => -1,
    }
}

/// Puts a node at `sp + off` and at the head of the list: exceptions go on at `handler`.
pub(super) fn push_node(asm: &mut Asm, handler: Label, off: i64) {
    asm.la(Reg::T0, handler);
    asm.emit(sd(Reg::T0, Reg::Sp, small(off + HANDLER)));
    asm.emit(ld(Reg::T0, RECORD, small(NODE)));
    asm.emit(sd(Reg::T0, Reg::Sp, small(off)));
    asm.emit(addi(Reg::T0, Reg::Sp, small(off)));
    asm.emit(sd(Reg::T0, RECORD, small(NODE)));
}

/// Takes the node at `sp + off` off the list.
pub(super) fn pop_node(asm: &mut Asm, off: i64) {
    asm.emit(ld(Reg::T0, Reg::Sp, small(off)));
    asm.emit(sd(Reg::T0, RECORD, small(NODE)));
}

/// Goes to where exceptions end, with the node in `t1`.
pub(super) fn throw(asm: &mut Asm) {
    asm.emit(ld(Reg::T1, RECORD, small(NODE)));
    asm.emit(ld(Reg::T0, Reg::T1, small(HANDLER)));
    asm.emit(jr(Reg::T0));
}

/// `left` = the tail calls that are left; goes to `none` if there is none.
pub(super) fn load_tail_calls(asm: &mut Asm, left: Reg, none: Label) {
    asm.emit(ld(left, RECORD, small(TAIL_CALLS)));
    asm.beqz(left, none);
}

/// One tail call less than `left`.
pub(super) fn store_tail_calls(asm: &mut Asm, left: Reg) {
    asm.emit(addi(left, left, imm!(-1)));
    asm.emit(sd(left, RECORD, small(TAIL_CALLS)));
}
