//! What is wrong with code that shall be hosted.
//!
//! Key types: [`HostError`], [`RelocFault`].

use pack_alloc::PackError;
use trampoline::TrampError;

use super::reloc::RelocKind;

/// Why code was not hosted. Nothing has been placed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// This host runs no RV64 code.
    #[error("hosted code runs on riscv64 only")]
    UnsupportedHost,
    /// No code at all.
    #[error("there is no code to host")]
    Empty,
    /// A relocation that cannot be.
    #[error("relocation {index} ({kind:?} at {off:#x}): {fault}")]
    Reloc {
        /// Its number, from 0.
        index: usize,
        /// Where it is.
        off: usize,
        /// Its kind.
        kind: RelocKind,
        /// What is wrong.
        #[source]
        fault: RelocFault,
    },
    /// A symbol that reaches beyond the code.
    #[error("the symbol {name} reaches beyond the code")]
    Symbol {
        /// Its name.
        name: String,
    },
    /// Lines that are not in order, or beyond the code.
    #[error("the lines are not in order of their offsets, or one is beyond the code")]
    Lines,
    /// Rows that are not in order, outside of their function, or that name places which are no
    /// negative multiples of 8; or functions that overlap.
    #[error(
        "the unwind rows of the function at {off:#x} are not in order, not inside of it, or save \
         registers at other places than negative multiples of 8"
    )]
    Unwind {
        /// The function.
        off: u32,
    },
    /// There is no memory for the code, or none where it must be.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Code cannot be changed now.
    #[error(transparent)]
    Tramp(#[from] TrampError),
}

/// What is wrong with a relocation.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RelocFault {
    /// It is not all inside the code.
    #[error("it needs {need_bytes} bytes there, and the code ends at {len_bytes:#x}")]
    PastEnd {
        /// How many bytes it changes.
        need_bytes: usize,
        /// How many there are.
        len_bytes: usize,
    },
    /// An instruction at an odd offset.
    #[error("instructions stand at even offsets")]
    Misaligned,
    /// Another instruction than the kind is for.
    #[error("there is {found:#x}, which is not {expected}")]
    WrongInsn {
        /// What the kind is for.
        expected: &'static str,
        /// The bytes that are there.
        found: u64,
    },
    /// Another relocation changes the same bytes.
    #[error("relocation {other} changes the same bytes")]
    Overlap {
        /// Its number.
        other: usize,
    },
    /// The target is an offset beyond the code.
    #[error("its target, {target:#x}, is beyond the code, which ends at {len_bytes:#x}")]
    TargetPastEnd {
        /// The offset.
        target: usize,
        /// How many bytes there are.
        len_bytes: usize,
    },
    /// A jump to an odd address.
    #[error("it would jump to {target:#x}, which is odd")]
    OddTarget {
        /// The address.
        target: u64,
    },
    /// The target is too far away.
    #[error("its target is {distance:+#x} bytes away, and {reach_bytes:#x} are the most")]
    OutOfReach {
        /// From the instruction, or from where the code would have to be.
        distance: i64,
        /// How far it reaches.
        reach_bytes: u64,
    },
    /// A lower half whose target is not an upper half.
    #[error("its target, {target:#x}, is no offset of a PcrelHi20 or GotHi20 relocation")]
    NoUpperHalf {
        /// The target.
        target: u64,
    },
}
