//! Programs written in Rust, with labels instead of offsets.
//!
//! Key types: [`ProgramBuilder`], [`Label`]. Neighbours: `op` is what is written, `program` what
//! comes out.

use super::error::{Reason, Refusal};
use super::insn::{BpfInsn, BpfReg};
use super::op::{AluOp, Callee, Cond, Extend, Fault, Imm64, Op, Operand, Size, Width};
use super::program::{Extra, Program};
use super::tables::JumpTable;

/// A place in a program: made by [`ProgramBuilder::label`], put by [`ProgramBuilder::bind`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Label(usize);

/// Writes a program, one instruction after the other.
///
/// ```
/// use rvbpf::bpf::{AluOp, BpfReg::*, Cond, Env, Interpreter, ProgramBuilder};
///
/// // The sum of 1 to r1.
/// let mut b = ProgramBuilder::new();
/// let (again, done) = (b.label(), b.label());
/// b.mov(R0, 0).bind(again).branch(Cond::Eq, R1, 0, done);
/// b.alu(AluOp::Add, R0, R1).alu(AluOp::Sub, R1, 1).jump(again);
/// b.bind(done).exit();
/// let program = b.finish()?;
/// let env = Env::new();
/// // SAFETY: the program touches no memory.
/// let r0 = unsafe { Interpreter::new(&program, &env)?.run([10, 0, 0, 0, 0], 1000) };
/// assert_eq!(r0, Ok(55));
/// # Ok::<(), rvbpf::bpf::Refusal>(())
/// ```
///
/// What has no method of its own is added by [`ProgramBuilder::op`].
#[derive(Clone, Debug, Default)]
pub struct ProgramBuilder {
    ops: Vec<(Op, Option<Label>)>,
    /// How many instructions there are.
    len: usize,
    /// The instruction that each label stands before.
    labels: Vec<Option<usize>>,
    exception_callback: Option<Label>,
    /// The map and the elements of each jump table.
    tables: Vec<(i32, Vec<Label>)>,
}

impl ProgramBuilder {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Any instruction, as it is.
    pub fn op(&mut self, op: Op) -> &mut Self {
        self.push(op, None)
    }

    /// A new label, bound nowhere yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts `label` before what comes next; the last place counts.
    pub fn bind(&mut self, label: Label) -> &mut Self {
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(self.len);
        }
        self
    }

    /// `dst = src`.
    pub fn mov(&mut self, dst: BpfReg, src: impl Into<Operand>) -> &mut Self {
        self.alu(AluOp::Mov, dst, src)
    }

    /// `dst = dst op src`, in 64 bits.
    pub fn alu(&mut self, op: AluOp, dst: BpfReg, src: impl Into<Operand>) -> &mut Self {
        let (width, src) = (Width::W64, src.into());
        self.op(Op::Alu {
            op,
            width,
            dst,
            src,
        })
    }

    /// `dst = dst op src`, in 32 bits.
    pub fn alu32(&mut self, op: AluOp, dst: BpfReg, src: impl Into<Operand>) -> &mut Self {
        let (width, src) = (Width::W32, src.into());
        self.op(Op::Alu {
            op,
            width,
            dst,
            src,
        })
    }

    /// `dst` = a constant of 64 bits.
    pub fn ld_imm64(&mut self, dst: BpfReg, value: u64) -> &mut Self {
        let imm = Imm64::Value(value);
        self.op(Op::LdImm64 { dst, imm })
    }

    /// `dst = *(size *)(src + off)`, zero-extended.
    pub fn load(&mut self, size: Size, dst: BpfReg, src: BpfReg, off: i16) -> &mut Self {
        let (extend, fault) = (Extend::Zero, Fault::Fatal);
        self.op(Op::Load {
            size,
            extend,
            fault,
            dst,
            src,
            off,
        })
    }

    /// `*(size *)(dst + off) = src`.
    pub fn store(
        &mut self,
        size: Size,
        dst: BpfReg,
        off: i16,
        src: impl Into<Operand>,
    ) -> &mut Self {
        let src = src.into();
        self.op(Op::Store {
            size,
            dst,
            off,
            src,
        })
    }

    /// Goes on at `label`.
    pub fn jump(&mut self, label: Label) -> &mut Self {
        self.push(Op::Jump { off: 0 }, Some(label))
    }

    /// Goes on at `label` if the condition holds, in 64 bits.
    pub fn branch(
        &mut self,
        cond: Cond,
        dst: BpfReg,
        src: impl Into<Operand>,
        label: Label,
    ) -> &mut Self {
        self.branch_of(Width::W64, cond, (dst, src.into()), label)
    }

    /// Goes on at `label` if the condition holds for the lower halves.
    pub fn branch32(
        &mut self,
        cond: Cond,
        dst: BpfReg,
        src: impl Into<Operand>,
        label: Label,
    ) -> &mut Self {
        self.branch_of(Width::W32, cond, (dst, src.into()), label)
    }

    /// A jump table of these places, as the value of this map of the program's list.
    pub fn jump_table(&mut self, map: i32, targets: &[Label]) -> &mut Self {
        self.tables.push((map, targets.into()));
        self
    }

    /// Goes on where `dst` says, which has been loaded from a jump table.
    #[doc(alias = "gotox")]
    pub fn jump_reg(&mut self, dst: BpfReg) -> &mut Self {
        self.op(Op::JumpReg { dst })
    }

    /// Calls a helper.
    pub fn call_helper(&mut self, id: i32) -> &mut Self {
        self.op(Op::Call(Callee::Helper(id)))
    }

    /// Calls the function of this program that begins at `label`.
    pub fn call(&mut self, label: Label) -> &mut Self {
        self.push(Op::Call(Callee::Local(0)), Some(label))
    }

    /// `dst` = the function of this program that begins at `label`, for whoever calls it back:
    /// `bpf_loop`, or a host function, to which it is an `extern "C"` function of up to five `u64`
    /// that returns a `u64`, as long as the program is loaded. To the interpreter it is a word that
    /// only `bpf_loop` understands.
    ///
    /// When the host calls it back, that is a run of its own: exceptions end in the call, which
    /// gives what the exception callback makes of them, and tail calls are counted anew.
    pub fn ld_func(&mut self, dst: BpfReg, label: Label) -> &mut Self {
        let imm = Imm64::Func(0);
        self.push(Op::LdImm64 { dst, imm }, Some(label))
    }

    /// Calls a host function.
    pub fn call_host(&mut self, id: i32) -> &mut Self {
        self.op(Op::Call(Callee::Host { id, object: 0 }))
    }

    /// The function at `label` is what exceptions end in: see [`Extra::exception_callback`].
    pub fn exception_callback(&mut self, label: Label) -> &mut Self {
        self.exception_callback = Some(label);
        self
    }

    /// Returns `r0`.
    pub fn exit(&mut self) -> &mut Self {
        self.op(Op::Exit)
    }

    /// The program, checked.
    ///
    /// # Errors
    /// [`Reason::Unbound`], [`Reason::TooFar`], and as [`Program::with_extra`].
    pub fn finish(&self) -> Result<Program, Refusal> {
        let mut insns: Vec<BpfInsn> = Vec::with_capacity(self.len);
        for (op, label) in &self.ops {
            let at = insns.len();
            let op = match label {
                Some(label) => self
                    .aimed(at, *op, *label)
                    .map_err(|reason| Refusal { insn: at, reason })?,
                None => *op,
            };
            let (first, second) = op.encode();
            insns.push(first);
            insns.extend(second);
        }
        let at_end = |reason| Refusal {
            insn: insns.len(),
            reason,
        };
        let mut extra = Extra::default();
        if let Some(label) = self.exception_callback {
            extra.exception_callback = Some(self.place(label).map_err(at_end)?);
        }
        for (map, labels) in &self.tables {
            let targets = labels.iter().map(|label| self.place(*label));
            let targets = targets.collect::<Result<_, _>>().map_err(at_end)?;
            extra.jump_tables.push(JumpTable::new(*map, targets));
        }
        Program::with_extra(insns, extra)
    }

    fn push(&mut self, op: Op, label: Option<Label>) -> &mut Self {
        self.ops.push((op, label));
        self.len += op.len_insns();
        self
    }

    fn branch_of(
        &mut self,
        width: Width,
        cond: Cond,
        (dst, src): (BpfReg, Operand),
        label: Label,
    ) -> &mut Self {
        let op = Op::Branch {
            cond,
            width,
            dst,
            src,
            off: 0,
        };
        self.push(op, Some(label))
    }

    /// The instruction that a label stands before.
    fn place(&self, label: Label) -> Result<usize, Reason> {
        let place = self.labels.get(label.0).copied().flatten();
        place.ok_or(Reason::Unbound)
    }

    /// Instruction `at`, with the distance to its label.
    fn aimed(&self, at: usize, op: Op, label: Label) -> Result<Op, Reason> {
        let by = self.place(label)? as i64 - (at as i64 + 1);
        let far = i32::try_from(by).map_err(|_| Reason::TooFar { by });
        let near = i16::try_from(by).map_err(|_| Reason::TooFar { by });
        Ok(match op {
            Op::Jump { .. } => Op::Jump { off: far? },
            Op::Call(_) => Op::Call(Callee::Local(far?)),
            Op::LdImm64 { dst, .. } => {
                let imm = Imm64::Func(far?);
                Op::LdImm64 { dst, imm }
            }
            Op::Branch {
                cond,
                width,
                dst,
                src,
                ..
            } => Op::Branch {
                cond,
                width,
                dst,
                src,
                off: near?,
            },
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::insn::BpfReg::{R0, R1};
    use super::*;

    #[test]
    fn labels_become_distances_over_constants_of_two_instructions() {
        let mut b = ProgramBuilder::new();
        let (func, done) = (b.label(), b.label());
        b.branch32(Cond::Ne, R1, 0, done).ld_imm64(R1, 1 << 40);
        b.call(func).exit();
        b.bind(done).mov(R0, 1).exit();
        b.bind(func).mov(R0, R1).exit();
        let program = b.finish().unwrap();
        let text: Vec<String> = program.ops().iter().flatten().map(Op::to_string).collect();
        assert_eq!(text[0], "if w1 != 0x0 goto pc+4");
        assert_eq!(text[2], "call pc+3");
        assert_eq!(program.funcs().len(), 2);
    }

    #[test]
    fn labels_out_of_reach_or_bound_nowhere_are_refused() {
        let mut b = ProgramBuilder::new();
        let far = b.label();
        b.mov(R0, 0).branch(Cond::Eq, R0, 0, far);
        (0..40_000).for_each(|_| {
            b.alu(AluOp::Add, R0, 1);
        });
        let refused = |b: &ProgramBuilder| b.finish().map(|_| ()).unwrap_err();
        let reason = Reason::Unbound;
        assert_eq!(refused(&b), Refusal { insn: 1, reason });
        b.bind(far).exit();
        let reason = Reason::TooFar { by: 40_000 };
        assert_eq!(refused(&b), Refusal { insn: 1, reason });
    }
}
