//! The compiler: from BPF to RV64.
//!
//! One pass over each function, one [`Op`] after the other, into an [`Asm`] that chooses the
//! compressed forms and lets branches grow. What makes the code short is known before: which upper
//! halves matter (`facts`), and which registers a function needs (`frame`).
//!
//! | file | emits |
//! | --- | --- |
//! | `frame` | prologue, epilogue, the map of registers |
//! | `alu` | arithmetic |
//! | `mem` | loads, stores, atomics |
//! | `flow` | branches, calls, exits |
//!
//! Key function: [`compile`]. Neighbours: `verify` has seen that the program is well-formed;
//! [`rv64`] knows the instructions. Source: kernel `arch/riscv/net/bpf_jit_comp64.c`.

mod alu;
mod facts;
mod flow;
mod frame;
mod mem;

use rv64::{
    Asm, AsmError, Features, Insn, Label, Reg, SImm, addi, mv, sext_w, slli, srli, uimm, zext_w,
};

use self::facts::{Facts, Forms};
use self::frame::Frame;
use super::env::Env;
use super::error::Refusal;
use super::faults::Probe;
use super::insn::BpfReg;
use super::interp::{MAX_LOOPS, check_import};
use super::op::{Fault, Op, Operand};
use super::program::{Func, Program};
use super::regs::{RegSet, bit};
use super::verify::jump_of;

/// A compiled program, for any address yet.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    asm: Asm,
    probes: Vec<ProbeLabels>,
}

/// A compiled program for one address.
#[derive(Clone, Debug)]
pub(crate) struct Linked {
    pub(crate) bytes: Vec<u8>,
    /// By address.
    pub(crate) probes: Vec<Probe>,
}

/// A load that may fault: where it is, where the program goes on, what it loads.
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
        Ok(Linked {
            bytes: code.bytes,
            probes,
        })
    }
}

/// Compiles `program` for a machine with `features`.
///
/// # Errors
/// A [`Refusal`] when it refers to something that `env` does not have.
pub(crate) fn compile(program: &Program, env: &Env, features: Features) -> Result<Object, Refusal> {
    for (insn, op) in program.ops().iter().enumerate() {
        let Some(op) = op else { continue };
        check_import(*op, env).map_err(|reason| Refusal { insn, reason })?;
    }
    let facts = Facts::new(program, env);
    let (mut asm, mut probes) = (Asm::new(features), Vec::new());
    asm.set_scratch(FAR);
    let labels = labels(program, &mut asm);
    for func in program.funcs() {
        let frame = Frame::new(func, program.ops());
        let mut emit = Emit {
            asm: &mut asm,
            probes: &mut probes,
            env,
            labels: &labels,
            frame,
            forms: Forms::default(),
            live: 0,
        };
        emit.function(program, &facts, func);
    }
    Ok(Object { asm, probes })
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

/// The emission of one function.
struct Emit<'a> {
    asm: &'a mut Asm,
    probes: &'a mut Vec<ProbeLabels>,
    env: &'a Env,
    labels: &'a Labels,
    frame: Frame,
    /// Before the instruction that is emitted now.
    forms: Forms,
    /// The upper halves that are read after it.
    live: RegSet,
}

impl Emit<'_> {
    fn function(&mut self, program: &Program, facts: &Facts, func: &Func) {
        let (range, zeroed) = (func.start..func.end, func.zeroed);
        if let Some(label) = self.labels.funcs[range.start] {
            self.asm.bind(label);
        }
        self.frame.prologue(self.asm, MAX_LOOPS);
        for reg in BpfReg::ALL.into_iter().filter(|r| zeroed & bit(*r) != 0) {
            self.asm.li(self.frame.reg(reg), 0);
        }
        for at in range {
            let Some(op) = program.ops()[at] else {
                continue;
            };
            if let Some(label) = self.labels.insns[at] {
                self.asm.bind(label);
            }
            if let Some(forms) = facts.forms_at(at) {
                self.forms = forms;
            }
            self.live = facts.upper_live(at);
            let op = facts.op(at, op);
            self.op(at, op);
            self.forms.step(op, self.live, self.env);
        }
    }

    fn op(&mut self, at: usize, op: Op) {
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
            // The verifier refuses it.
            Op::AddrSpaceCast { .. } => {}
            Op::LdImm64 { dst, imm } => self.ld_imm64(dst, imm),
            Op::Load {
                size,
                extend,
                fault: Fault::Fatal,
                dst,
                src,
                off,
            } => self.load(size, extend, dst, (src, off)),
            Op::Load {
                size,
                extend,
                dst,
                src,
                off,
                ..
            } => self.probing_load(size, extend, dst, (src, off)),
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
            Op::Jump { off } => self.jump(at, off),
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
        self.frame.reg(reg)
    }

    /// A register that holds an operand; constants come into `tmp`.
    fn operand(&mut self, src: Operand, tmp: Reg) -> Reg {
        match src {
            Operand::Reg(reg) => self.rs(reg, tmp),
            Operand::Imm(0) => Reg::Zero,
            Operand::Imm(imm) => {
                self.asm.li(tmp, imm.into());
                tmp
            }
        }
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
        if self.features().zba {
            self.emit(zext_w(rd, rs));
        } else {
            self.emit(slli(rd, rs, uimm!(32)));
            self.emit(srli(rd, rd, uimm!(32)));
        }
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

/// The immediate, if it fits.
fn imm12(value: i64) -> Option<SImm<12>> {
    SImm::new(value)
}

#[cfg(test)]
mod tests;
