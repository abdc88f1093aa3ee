//! A program that has been found fit.
//!
//! Key types: [`Program`], [`Func`], [`Extra`]. Neighbours: `verify` finds it fit, `interp` and `jit` run it.

use std::sync::Arc;

use super::error::{Reason, Refusal};
use super::insn::{BpfInsn, INSN_BYTES};
use super::line::LineInfo;
use super::op::Op;
use super::regs::RegSet;
use super::tables::{JumpTable, Tables};
use super::verify;

/// The most instructions of a program. Kernel: `BPF_COMPLEXITY_LIMIT_INSNS`.
pub const MAX_INSNS: usize = 1_000_000;
/// The most stack of all functions that are inside each other. Kernel: `MAX_BPF_STACK`.
pub const MAX_STACK_BYTES: u32 = 512;
/// The most functions inside each other. Kernel: `MAX_CALL_FRAMES`.
pub const MAX_CALL_FRAMES: usize = 8;
/// The most tail calls of one run, in whatever functions and programs. Kernel:
/// `MAX_TAIL_CALL_CNT`.
pub const MAX_TAIL_CALLS: u32 = 33;
/// The most iterations of `may_goto` loops and of `bpf_loop`. Kernel: `BPF_MAX_LOOPS`.
pub(crate) const MAX_LOOPS: u64 = 8 << 20;

/// A program: instructions that are well-formed, in functions that call each other and end.
///
/// That is all that has been checked: what its loads and stores touch, and what it does with the
/// values it is given, is the program's own affair, as it is for native code. Clones share all of it.
#[derive(Clone, Debug)]
pub struct Program {
    name: Arc<str>,
    insns: Arc<[BpfInsn]>,
    ops: Arc<[Option<Op>]>,
    funcs: Arc<[Func]>,
    lines: Arc<[LineInfo]>,
    /// Of indices of instructions.
    tables: Arc<Tables>,
    /// Calls out of the program before which some argument registers are not set, in order.
    unset_args: Arc<[(usize, RegSet)]>,
    extra: Extra,
}

/// What belongs to a program beside its instructions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Extra {
    /// The first instruction of the function that turns the cookie of an exception (in `r1`) into
    /// the program's result; without one, the cookie is the result.
    #[doc(alias = "__exception_cb")]
    pub exception_callback: Option<usize>,
    /// Where jumps through registers lead.
    #[doc(alias = "gotox")]
    pub jump_tables: Vec<JumpTable>,
}

/// A function of a program.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Func {
    /// Its first instruction.
    pub start: usize,
    /// The one after its last.
    pub end: usize,
    /// How much stack it has, in bytes: as much as constants show it to touch, or all there can be
    /// where they do not show it.
    pub stack_bytes: u32,
    /// The registers that it may read before it has set them, a bit each; they are zero then.
    pub(crate) zeroed: u16,
    /// The functions that it calls or refers to, by their index.
    pub callees: Vec<usize>,
    /// Where its jumps through registers may lead, in order; nowhere if it has none.
    pub table_targets: Vec<usize>,
}

impl Program {
    /// Checks `insns`.
    ///
    /// # Errors
    /// The first [`Refusal`], in the order of the program for what one instruction can be refused
    /// for.
    pub fn new(insns: Vec<BpfInsn>) -> Result<Self, Refusal> {
        Self::with_extra(insns, Extra::default())
    }

    /// The same for instructions that something belongs to.
    ///
    /// # Errors
    /// As [`Program::new`]; [`Reason::NoTable`], [`Reason::TableTarget`], [`Reason::TableTwice`],
    /// [`Reason::ForeignTable`],
    /// [`Reason::ValueBounds`].
    pub fn with_extra(insns: Vec<BpfInsn>, extra: Extra) -> Result<Self, Refusal> {
        let verified = verify::verify(&insns, &extra)?;
        Ok(Self {
            name: "unnamed".into(),
            insns: insns.into(),
            ops: verified.ops.into(),
            funcs: verified.funcs.into(),
            lines: Arc::default(),
            tables: Arc::new(Tables::new(&extra.jump_tables)),
            unset_args: verified.unset_args.into(),
            extra,
        })
    }

    /// Checks instructions as they are stored in an object, eight little-endian bytes each.
    ///
    /// # Errors
    /// [`Reason::OddBytes`], and as [`Program::new`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refusal> {
        let (insns, rest) = (
            bytes.chunks_exact(INSN_BYTES),
            bytes.len() % INSN_BYTES != 0,
        );
        let insns: Vec<BpfInsn> = insns
            .map(|b| BpfInsn::from_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect();
        if rest {
            return Err(Refusal {
                insn: insns.len(),
                reason: Reason::OddBytes { bytes: bytes.len() },
            });
        }
        Self::new(insns)
    }

    /// Gives it a name, by which its faults are reported.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its instructions come from, as far as it was told.
    #[must_use]
    pub fn line_info(&self) -> &[LineInfo] {
        &self.lines
    }

    pub(super) fn with_lines(self, lines: Arc<[LineInfo]>) -> Self {
        Self { lines, ..self }
    }

    /// The instructions as they were given.
    #[must_use]
    pub fn insns(&self) -> &[BpfInsn] {
        &self.insns
    }

    /// What each instruction does; `None` for the second half of a constant.
    #[must_use]
    pub fn ops(&self) -> &[Option<Op>] {
        &self.ops
    }

    /// What belongs to it beside its instructions.
    #[must_use]
    pub fn extra(&self) -> &Extra {
        &self.extra
    }

    /// The tables that its jumps through registers go by, with indices of instructions.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The argument registers that are not set on every path to the call at `at`, which leads out of
    /// the program.
    pub(crate) fn unset_args(&self, at: usize) -> RegSet {
        let found = self.unset_args.binary_search_by_key(&at, |(at, _)| *at);
        found.map_or(0, |i| self.unset_args[i].1)
    }

    /// The functions in order; the first is where the program begins.
    #[must_use]
    pub fn funcs(&self) -> &[Func] {
        &self.funcs
    }
}

/// Where a jump of instruction `at` goes that counts from the next one.
pub(crate) fn target(at: usize, off: i32) -> i64 {
    at as i64 + 1 + i64::from(off)
}
