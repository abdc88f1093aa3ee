//! A program with its memory and its arguments.
//!
//! Key types: [`Case`], [`Body`], [`Slot`]. Neighbours: `gen` makes it, `shrink` changes it,
//! `compare` runs it.

use std::fmt;

use rvbpf::bpf::{BpfInsn, Callee, Op};

/// Whether `shrink` may try without it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Keep {
    /// It may.
    Free,
    /// Not: it keeps addresses in their bounds, which nobody else looks after.
    Fixed,
}

/// An instruction of a function.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Slot {
    /// A local call has the function's index in [`Case::funcs`] for its displacement.
    pub(crate) op: Op,
    pub(crate) keep: Keep,
}

/// The instructions of a function; `None` is the second half of a constant.
pub(crate) type Body = Vec<Option<Slot>>;

/// What does nothing.
pub(crate) const NOP: Op = Op::Jump { off: 0 };

/// A program, and what it is called with.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    /// The first is where it begins. One without instructions is not there.
    pub(crate) funcs: Vec<Body>,
    /// The memory whose address is in `r1`; its length in bytes is in `r2`.
    pub(crate) words: Vec<u64>,
    /// `r3` to `r5`.
    pub(crate) args: [u64; 3],
}

impl Case {
    /// Its instructions, with local calls as they are encoded.
    pub(crate) fn ops(&self) -> Vec<Option<Op>> {
        let mut starts = Vec::new();
        let mut next = 0;
        for body in &self.funcs {
            starts.push(next);
            next += body.len();
        }
        let slots = self.funcs.iter().flatten().enumerate();
        slots
            .map(|(at, slot)| {
                Some(match (*slot)?.op {
                    Op::Call(Callee::Local(func)) => {
                        let start = starts[func as usize];
                        Op::Call(Callee::Local(start as i32 - at as i32 - 1))
                    }
                    op => op,
                })
            })
            .collect()
    }

    /// What the verifier gets.
    pub(crate) fn insns(&self) -> Vec<BpfInsn> {
        let mut insns = Vec::new();
        for op in self.ops().into_iter().flatten() {
            let (first, second) = op.encode();
            insns.push(first);
            insns.extend(second);
        }
        insns
    }
}

impl fmt::Display for Case {
    /// A line for each instruction that does something.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {:#018x}", self.seed)?;
        writeln!(f, "memory {:#x?}", self.words)?;
        writeln!(f, "r3..r5 {:#x?}", self.args)?;
        for (at, op) in self.ops().into_iter().enumerate() {
            match op {
                None | Some(NOP) => {}
                Some(op) => writeln!(f, "{at:5}: {op:?}")?,
            }
        }
        write!(f, "bytes")?;
        for insn in self.insns() {
            write!(f, " ")?;
            for byte in insn.to_bytes() {
                write!(f, "{byte:02x}")?;
            }
        }
        writeln!(f)
    }
}
