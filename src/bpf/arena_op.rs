//! Accesses to the arena by offset: what the kernel's verifier makes of accesses through pointers
//! that it knows to be of the arena.
//!
//! Key type: [`ArenaOp`]. Neighbours: `op` has it as one of its kinds, and the same accesses through
//! addresses. Source: kernel `kernel/bpf/verifier.c` (`convert_ctx_accesses`),
//! `include/linux/filter.h` (`BPF_PROBE_MEM32`, `BPF_PROBE_MEM32SX`, `BPF_PROBE_ATOMIC`).

use super::insn::BpfReg;
use super::op::{AtomicOp, Extend, Fault, Op, Operand, Size};

/// An access whose address register holds an offset in the arena, in its lower half. It cannot
/// fault: where there is no page, loads give 0, and stores are dropped.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[allow(missing_docs, reason = "fields are those of `Op`")]
pub enum ArenaOp {
    /// As [`Op::Load`].
    #[doc(alias = "BPF_PROBE_MEM32")]
    #[doc(alias = "BPF_PROBE_MEM32SX")]
    Load {
        size: Size,
        extend: Extend,
        dst: BpfReg,
        src: BpfReg,
        off: i16,
    },
    /// As [`Op::Store`].
    Store {
        size: Size,
        dst: BpfReg,
        off: i16,
        src: Operand,
    },
    /// As [`Op::Atomic`].
    #[doc(alias = "BPF_PROBE_ATOMIC")]
    Atomic {
        op: AtomicOp,
        size: Size,
        dst: BpfReg,
        off: i16,
        src: BpfReg,
    },
    /// As [`Op::LoadAcquire`].
    LoadAcquire {
        size: Size,
        dst: BpfReg,
        src: BpfReg,
        off: i16,
    },
    /// As [`Op::StoreRelease`].
    StoreRelease {
        size: Size,
        dst: BpfReg,
        off: i16,
        src: BpfReg,
    },
}

impl ArenaOp {
    /// An access through an address, to the arena instead; `None` of other instructions.
    #[must_use]
    pub const fn of(op: Op) -> Option<Self> {
        Some(match op {
            Op::Load {
                size,
                extend,
                dst,
                src,
                off,
                ..
            } => Self::Load {
                size,
                extend,
                dst,
                src,
                off,
            },
            Op::Store {
                size,
                dst,
                off,
                src,
            } => Self::Store {
                size,
                dst,
                off,
                src,
            },
            Op::Atomic {
                op,
                size,
                dst,
                off,
                src,
            } => Self::Atomic {
                op,
                size,
                dst,
                off,
                src,
            },
            Op::LoadAcquire {
                size,
                dst,
                src,
                off,
            } => Self::LoadAcquire {
                size,
                dst,
                src,
                off,
            },
            Op::StoreRelease {
                size,
                dst,
                off,
                src,
            } => Self::StoreRelease {
                size,
                dst,
                off,
                src,
            },
            _ => return None,
        })
    }

    /// The same access through an address as it is.
    #[must_use]
    pub const fn plain(self) -> Op {
        match self {
            Self::Load {
                size,
                extend,
                dst,
                src,
                off,
            } => Op::Load {
                size,
                extend,
                fault: Fault::Fatal,
                dst,
                src,
                off,
            },
            Self::Store {
                size,
                dst,
                off,
                src,
            } => Op::Store {
                size,
                dst,
                off,
                src,
            },
            Self::Atomic {
                op,
                size,
                dst,
                off,
                src,
            } => Op::Atomic {
                op,
                size,
                dst,
                off,
                src,
            },
            Self::LoadAcquire {
                size,
                dst,
                src,
                off,
            } => Op::LoadAcquire {
                size,
                dst,
                src,
                off,
            },
            Self::StoreRelease {
                size,
                dst,
                off,
                src,
            } => Op::StoreRelease {
                size,
                dst,
                off,
                src,
            },
        }
    }
}
