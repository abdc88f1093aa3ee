//! What can go wrong.
//!
//! Key types: [`DecodeError`], [`AsmError`]; [`crate::ImmRange`] stands
//! beside the immediates.

use crate::{Label, Reg};

/// Bytes that are not one of this crate's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A 32-bit word that is reserved, or belongs to an extension that this
    /// crate does not know. Kernel: `-EINVAL`.
    #[error("unknown instruction {word:#010x}")]
    Word {
        /// The word.
        word: u32,
    },
    /// A 16-bit word that is reserved, or belongs to an extension that this
    /// crate does not know. Kernel: `-EINVAL`.
    #[error("unknown compressed instruction {half:#06x}")]
    Half {
        /// The half-word.
        half: u16,
    },
    /// A compressed hint: it does nothing, but no instruction of this crate
    /// compresses to it. Kernel: `-EINVAL`.
    #[error("compressed hint {half:#06x}")]
    Hint {
        /// The half-word.
        half: u16,
    },
    /// The first half-word of an instruction of more than 32 bits. Kernel:
    /// `-EINVAL`.
    #[error("instruction of more than 32 bits, starting with {half:#06x}")]
    Long {
        /// The first half-word.
        half: u16,
    },
    /// The bytes end inside the instruction. Kernel: `-EINVAL`.
    #[error("an instruction of {need_bytes} bytes begins in the last {have_bytes}")]
    Truncated {
        /// How many bytes are there.
        have_bytes: usize,
        /// How many the instruction has, as far as they tell.
        need_bytes: usize,
    },
}

/// Why a buffer cannot become code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AsmError {
    /// A label that is used, but bound nowhere. Kernel: `-EINVAL`.
    #[error("{label:?} is used but never bound")]
    Unbound {
        /// The label.
        label: Label,
    },
    /// A label bound a second time. Kernel: `-EINVAL`.
    #[error("{label:?} is bound twice")]
    BoundTwice {
        /// The label.
        label: Label,
    },
    /// A label or `Hi` of another buffer. Kernel: `-EINVAL`.
    #[error("{label:?} belongs to another buffer")]
    ForeignLabel {
        /// The label.
        label: Label,
    },
    /// A branch, jump or address that no form reaches. Kernel: `-ERANGE`.
    #[error("the target is {distance} bytes from offset {offset:#x}, out of reach")]
    OutOfReach {
        /// Where the instruction stands in the buffer.
        offset: u32,
        /// The distance in bytes.
        distance: i64,
    },
    /// Labels of one `Hi` that are too far apart. Kernel: `-ERANGE`.
    #[error("the labels of the base at offset {offset:#x} lie {span} bytes apart, more than 4095")]
    LowOutOfReach {
        /// Where the `auipc` stands in the buffer.
        offset: u32,
        /// From the lowest to the highest label.
        span: i64,
    },
    /// A register that must hold an address is `zero`, or is the same as
    /// another that must differ. Kernel: `-EINVAL`.
    #[error("{reg} cannot hold an address here")]
    BadRegister {
        /// The register.
        reg: Reg,
    },
    /// An instruction or the base of the code at a misaligned address, or a
    /// jump to one. Kernel: `-EINVAL`.
    #[error("{address:#x} is not a multiple of {align}")]
    Misaligned {
        /// The address, or the offset in the buffer.
        address: u64,
        /// What it must be a multiple of.
        align: u32,
    },
    /// An alignment that is not a power of two, or above 4096. Kernel:
    /// `-EINVAL`.
    #[error("{align} is not an alignment")]
    BadAlign {
        /// The alignment.
        align: u32,
    },
    /// More code than offsets can count, or code past the end of the address
    /// space. Kernel: `-E2BIG`.
    #[error("{bytes} bytes are too much code")]
    TooLarge {
        /// The size.
        bytes: u64,
    },
}
