//! What a program may be made of: whatever the compiler takes, or what the kernel's verifier
//! accepts as well.
//!
//! Key type: [`Profile`]. Neighbours: `gen` and `stmt` ask it, and pass it each instruction. Source:
//! kernel `kernel/bpf/verifier.c` (`check_alu_op`, `check_atomic`, `check_ptr_alignment`).

use rvbpf::bpf::{AluOp, Extend, Fault, Op, Operand, Size, Width};

/// Who is to run a program beside the interpreter.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Profile {
    /// The compiler.
    Ours,
    /// The kernel and the compiler.
    Kernel(Ordered),
}

/// Whether a kernel knows load-acquire and store-release.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Ordered {
    Yes,
    No,
}

impl Profile {
    /// The most instructions that a run may take. The kernel's verifier walks every path, and stops
    /// at a million.
    pub(super) fn max_cost(self) -> u64 {
        match self {
            Self::Ours => 200_000,
            Self::Kernel(_) => 20_000,
        }
    }

    /// The same of a function that is called.
    pub(super) fn max_call_cost(self) -> u64 {
        match self {
            Self::Ours => 5_000,
            Self::Kernel(_) => 1_000,
        }
    }

    /// The most stack of a function, in words: four inside each other share 512 bytes, and the
    /// kernel puts the count of `may_goto` there.
    pub(super) fn max_stack_words(self) -> usize {
        match self {
            Self::Ours => 16,
            Self::Kernel(_) => 12,
        }
    }

    /// Whether accesses may be misaligned.
    pub(super) fn misaligns(self) -> bool {
        self == Self::Ours
    }

    /// Whether there are our functions of the host.
    pub(super) fn has_host(self) -> bool {
        self == Self::Ours
    }

    /// Whether atomics of this size are there.
    pub(super) fn has_atomic(self, size: Size) -> bool {
        self == Self::Ours || size >= Size::W
    }

    /// The instruction, or what comes nearest to it.
    pub(super) fn fit(self, op: Op) -> Op {
        let Self::Kernel(ordered) = self else {
            return op;
        };
        match op {
            Op::Alu {
                op,
                width,
                dst,
                src: Operand::Imm(imm),
            } => Op::Alu {
                op,
                width,
                dst,
                src: Operand::Imm(constant(op, width, imm)),
            },
            Op::Load {
                size,
                extend,
                dst,
                src,
                off,
                ..
            } => Op::Load {
                size,
                extend,
                fault: Fault::Fatal,
                dst,
                src,
                off,
            },
            Op::LoadAcquire {
                size,
                dst,
                src,
                off,
            } if ordered == Ordered::No => Op::Load {
                size,
                extend: Extend::Zero,
                fault: Fault::Fatal,
                dst,
                src,
                off,
            },
            Op::StoreRelease {
                size,
                dst,
                off,
                src,
            } if ordered == Ordered::No => Op::Store {
                size,
                dst,
                off,
                src: Operand::Reg(src),
            },
            op => op,
        }
    }
}

/// No shift by more than there is, no division by a zero that is plain to see.
fn constant(op: AluOp, width: Width, imm: i32) -> i32 {
    let bits = match width {
        Width::W32 => 32,
        Width::W64 => 64,
    };
    match op {
        AluOp::Lsh | AluOp::Rsh | AluOp::Arsh => imm & (bits - 1),
        AluOp::Div | AluOp::SDiv | AluOp::Mod | AluOp::SMod if imm == 0 => 1,
        _ => imm,
    }
}
