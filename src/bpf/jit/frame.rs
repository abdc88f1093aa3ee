//! Where a function's registers and stack are.
//!
//! ```text
//!   sp + size ──▶ ┌───────────────┐ ◀── fp
//!                 │ ra            │  a function that calls
//!                 │ caller's fp   │
//!                 │ s1 to s4      │  those it uses
//!                 ├───────────────┤
//!                 │ node          │  in the first function of a program that throws: see `record`
//!                 ├───────────────┤
//!                 │ may_goto      │  loops left, if it has such loops
//!                 ├───────────────┤ ◀── r10
//!                 │ BPF stack     │
//!   sp ──────────▶└───────────────┘
//! ```
//!
//! | BPF | RV64 | in a leaf |
//! | --- | --- | --- |
//! | r0 | a5 | a5 |
//! | r1 to r5 | a0 to a4 | a0 to a4 |
//! | r6 to r9 | s1 to s4 | a6, a7, t3, t4 |
//! | r10 | sp + stack | sp + stack |
//!
//! That is the kernel's map but for three things: `r10` needs no register, since `sp` stands still
//! between prologue and epilogue; a function that calls nobody saves nothing; and one that has no
//! stack either has no frame at all.
//!
//! Key type: [`Frame`]. Neighbours: `jit` emits what is drawn here. Source: kernel
//! `arch/riscv/net/bpf_jit_comp64.c` (`regmap`, `bpf_jit_build_prologue`); psABI, "Frame Pointer
//! Convention".

use rv64::{Asm, Label, Reg, SImm, addi, ld, ret, sd};

use super::super::env::Env;
use super::super::insn::BpfReg;
use super::super::op::Op;
use super::super::program::Func;
use super::super::regs::bit;
use super::record;

/// Whether a function calls others.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Calls {
    Yes,
    No,
}

/// Whether exceptions end in a function.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Catches {
    Yes,
    No,
}

/// The frame of one function.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    calls: Calls,
    /// The BPF stack, a multiple of 8.
    stack_bytes: i64,
    may_goto: bool,
    catches: Catches,
    saved: Vec<Reg>,
    size_bytes: i64,
}

impl Frame {
    pub(super) fn new(func: &Func, ops: &[Option<Op>], env: &Env, catches: Catches) -> Self {
        let body = || ops[func.start..func.end].iter().flatten();
        let is_call = |op: &Op| matches!(op, Op::Call(callee) if env.is_called(*callee));
        let is_catching = catches == Catches::Yes;
        let calls = match is_catching || body().any(is_call) {
            true => Calls::Yes,
            false => Calls::No,
        };
        let may_goto = body().any(|op| matches!(op, Op::MayGoto { .. }));
        let written = body().fold(0, |set, op| set | op.written());
        let mut saved = Vec::new();
        if calls == Calls::Yes {
            saved.extend([Reg::Ra, Reg::Fp]);
            let used = BpfReg::ALL[6..10]
                .iter()
                // What is left by an exception has not restored what it had saved.
                .filter(|r| is_catching || written & bit(**r) != 0);
            saved.extend(used.map(|reg| SAVED_MAP[reg.index() - 6]));
        }
        let stack_bytes = i64::from(func.stack_bytes.next_multiple_of(8));
        let node_bytes = if is_catching { record::NODE_BYTES } else { 0 };
        let size = stack_bytes + 8 * i64::from(may_goto) + node_bytes + 8 * saved.len() as i64;
        Self {
            calls,
            stack_bytes,
            may_goto,
            catches,
            saved,
            size_bytes: (size + 15) & !15,
        }
    }

    /// The register that holds a BPF register; `r10` has none.
    pub(super) fn reg(&self, reg: BpfReg) -> Reg {
        let n = reg.index();
        match (n, self.calls) {
            (0, _) => Reg::A5,
            (1..=5, _) => ARG_MAP[n - 1],
            (6..=9, Calls::Yes) => SAVED_MAP[n - 6],
            (6..=9, Calls::No) => LEAF_MAP[n - 6],
            _ => Reg::Sp,
        }
    }

    /// Where `r10` points, from `sp`.
    pub(super) fn r10(&self) -> i64 {
        self.stack_bytes
    }

    /// Where the count of loops is, from `sp`.
    pub(super) fn loops_off(&self) -> i64 {
        self.stack_bytes
    }

    /// Where the node is, from `sp`.
    pub(super) fn node_off(&self) -> i64 {
        self.stack_bytes + 8 * i64::from(self.may_goto)
    }

    /// Makes the frame; exceptions go on at `caught` if it catches them.
    pub(super) fn prologue(&self, asm: &mut Asm, max_loops: u64, caught: Label) {
        if self.size_bytes == 0 {
            return;
        }
        asm.emit(addi(Reg::Sp, Reg::Sp, small(-self.size_bytes)));
        for (reg, off) in self.saves() {
            asm.emit(sd(reg, Reg::Sp, small(off)));
        }
        if self.calls == Calls::Yes {
            asm.emit(addi(Reg::Fp, Reg::Sp, small(self.size_bytes)));
        }
        if self.may_goto {
            asm.li(Reg::T0, max_loops as i64);
            asm.emit(sd(Reg::T0, Reg::Sp, small(self.loops_off())));
        }
        if self.catches == Catches::Yes {
            record::push_node(asm, caught, self.node_off());
        }
    }

    /// Returns; the result is in `a0`.
    pub(super) fn epilogue(&self, asm: &mut Asm) {
        self.leave(asm);
        asm.emit(ret());
    }

    /// An exception has come, with its node in `t1`: `sp` and `fp` are the frame's again.
    pub(super) fn catch(&self, asm: &mut Asm) {
        let off = self.node_off();
        asm.emit(addi(Reg::Sp, Reg::T1, small(-off)));
        asm.emit(addi(Reg::Fp, Reg::Sp, small(self.size_bytes)));
        record::pop_node(asm, off);
    }

    /// Undoes what the prologue has done, over `t0`.
    pub(super) fn leave(&self, asm: &mut Asm) {
        if self.catches == Catches::Yes {
            record::pop_node(asm, self.node_off());
        }
        for (reg, off) in self.saves() {
            asm.emit(ld(reg, Reg::Sp, small(off)));
        }
        if self.size_bytes != 0 {
            asm.emit(addi(Reg::Sp, Reg::Sp, small(self.size_bytes)));
        }
    }

    /// What is saved where, from `sp`.
    fn saves(&self) -> impl Iterator<Item = (Reg, i64)> + '_ {
        let place = |(i, reg): (usize, &Reg)| (*reg, self.size_bytes - 8 * (i as i64 + 1));
        self.saved.iter().enumerate().map(place)
    }
}

const ARG_MAP: [Reg; 5] = [Reg::A0, Reg::A1, Reg::A2, Reg::A3, Reg::A4];
const SAVED_MAP: [Reg; 4] = [Reg::S1, Reg::S2, Reg::S3, Reg::S4];
const LEAF_MAP: [Reg; 4] = [Reg::A6, Reg::A7, Reg::T3, Reg::T4];

/// An offset that is known to fit: frames have at most 512 bytes of stack, and little besides.
pub(super) fn small(value: i64) -> SImm<12> {
    SImm::new(value).unwrap_or(SImm::ZERO)
}
