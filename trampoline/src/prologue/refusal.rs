//! Why instructions cannot be moved.

use rv64::{FReg, Reg};

/// What stands against moving a function's first instructions. Addresses are of the instruction
/// that is meant.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The function ends before the jump does. Kernel: `-EINVAL`.
    #[error("{entry:#x}: the function has {len} bytes, and {needed} are needed for a jump")]
    TooShort {
        /// The function.
        entry: u64,
        /// Its length in bytes.
        len: usize,
        /// The bytes that the covered instructions would have.
        needed: usize,
    },
    /// An instruction that is not known. Kernel: `-EILSEQ`.
    #[error("{at:#x}: {bytes:02x?} is no instruction that is known, and cannot be moved")]
    Undecodable {
        /// Where it stands.
        at: u64,
        /// Its first bytes.
        bytes: [u8; 4],
    },
    /// A jump, branch or call leads into the covered bytes. Kernel: `-EILSEQ`.
    #[error("{from:#x}: this instruction goes to {to:#x}, into the bytes that would be replaced")]
    BranchesInto {
        /// The jump, branch or call.
        from: u64,
        /// Where it goes.
        to: u64,
    },
    /// The function has a loop that begins at its entry: each round would be a call. Kernel:
    /// `-EILSEQ`.
    #[error("{from:#x}: this instruction goes back to the function's entry, in a loop")]
    LoopsToEntry {
        /// The jump or branch.
        from: u64,
    },
    /// A call among the covered instructions returns to another of them. Kernel: `-EILSEQ`.
    #[error("{at:#x}: this call returns into the bytes that would be replaced")]
    ReturnsInto {
        /// The call.
        at: u64,
    },
    /// A system call among the covered instructions, not at the entry: threads sleep in it, and
    /// are restarted at it. Kernel: `-EILSEQ`.
    #[error("{at:#x}: this is a system call, in which threads may sleep, and it cannot be moved")]
    SystemCall {
        /// The `ecall`.
        at: u64,
    },
    /// A breakpoint, which is somebody else's. Kernel: `-EBUSY`.
    #[error("{at:#x}: there is a breakpoint here; is a debugger at work?")]
    Breakpoint {
        /// The `ebreak`.
        at: u64,
    },
    /// The function finds something in a temporary, so it is not called as the psABI says. Kernel:
    /// `-EOPNOTSUPP`.
    #[error(
        "{at:#x}: reads {reg} before anything is in it: the function has a convention of its own"
    )]
    CustomEntry {
        /// The instruction.
        at: u64,
        /// The register.
        reg: Reg,
    },
    /// The same of a floating-point temporary: LLVM's `fastcc` passes arguments there. Kernel:
    /// `-EOPNOTSUPP`.
    #[error(
        "{at:#x}: reads {reg} before anything is in it: the function has a convention of its own"
    )]
    CustomFloatEntry {
        /// The instruction.
        at: u64,
        /// The register.
        reg: FReg,
    },
    /// The covered instructions write all temporaries, and none is left for the copy. Kernel:
    /// `-EOPNOTSUPP`.
    #[error(
        "{entry:#x}: the first instructions write all temporaries, and none is left to jump by"
    )]
    NoScratch {
        /// The function.
        entry: u64,
    },
}
