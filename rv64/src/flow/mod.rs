//! What an instruction does to control flow and to the integer registers.
//!
//! Key function: [`step`], which takes bytes and answers with a [`Step`]. It knows more than
//! [`Insn`]: whatever code of a distribution holds in functions chosen at load time, vectors and
//! cryptography above all, decodes here as far as integer registers are concerned.
//!
//! ```
//! # use rvbpf_rv64 as rv64;
//! use rv64::{Flow, Reg::*, RegSet, step};
//! let ret = step(&[0x82, 0x80]).unwrap(); // c.jr ra
//! assert_eq!((ret.len_bytes, ret.reads), (2, RegSet::of(&[Ra])));
//! assert!(matches!(ret.flow, Flow::IndirectJump { base: Ra, .. }));
//! ```
//!
//! What is not known is `None`, never a guess: an instruction of 48 bits, a reserved encoding, an
//! extension of a vendor, an instruction of the supervisor.
//!
//! Neighbours: the tables in [`crate::insn`] say what their rows read and write; `other` and
//! `vector` have the rest. Code is moved by what is said here.
//!
//! Source: Unprivileged ISA; Linux `arch/riscv/kernel/probes/simulate-insn.c` (which instructions
//! care where they stand).

mod other;
#[cfg(test)]
mod tests;
mod vector;

use crate::insn::{AmoOp, Insn, JalrOp, PlainOp, UOp, place};
use crate::{Cond, DecodeError, Offset, Reg, RegSet, SImm, add, nop};

/// One instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its length in bytes: 2 or 4.
    pub len_bytes: u8,
    /// The 32-bit word that does the same.
    pub word: u32,
    /// Where it goes.
    pub flow: Flow,
    /// The registers that it reads. `zero` is never among them.
    pub reads: RegSet,
    /// The registers that it writes. `zero` is never among them.
    pub writes: RegSet,
}

/// Where an instruction goes, and what it makes of the pc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Flow {
    /// To the next one, and the pc plays no part.
    Next,
    /// To `pc + off`.
    Jump {
        /// The distance in bytes.
        off: Offset<21>,
    },
    /// To `pc + off`, with the address of the next one in `link`.
    Call {
        /// Gets the return address; never `zero`.
        link: Reg,
        /// The distance in bytes.
        off: Offset<21>,
    },
    /// To `pc + off` or to the next one.
    Branch {
        /// Compares `rs1` with `rs2`.
        cond: Cond,
        /// The left side.
        rs1: Reg,
        /// The right side.
        rs2: Reg,
        /// The distance in bytes.
        off: Offset<13>,
    },
    /// To `base + off`.
    IndirectJump {
        /// Holds the address.
        base: Reg,
        /// Added to it.
        off: SImm<12>,
    },
    /// To `base + off`, with the address of the next one in `link`.
    IndirectCall {
        /// Gets the return address; never `zero`.
        link: Reg,
        /// Holds the address; may be `link`.
        base: Reg,
        /// Added to it.
        off: SImm<12>,
    },
    /// To the next one, with `pc + (imm << 12)` in `rd`.
    Auipc {
        /// Gets the address; never `zero`.
        rd: Reg,
        /// The upper 20 bits of the distance.
        imm: SImm<20>,
    },
    /// Into the kernel, and to the next one.
    Ecall,
    /// A breakpoint.
    Ebreak,
}

impl Flow {
    /// Where a jump, call or branch at `pc` goes, if the instruction alone tells.
    #[must_use]
    pub const fn target(self, pc: u64) -> Option<u64> {
        let off = match self {
            Self::Jump { off } | Self::Call { off, .. } => off.get(),
            Self::Branch { off, .. } => off.get(),
            _ => return None,
        };
        Some(pc.wrapping_add_signed(off))
    }

    /// Whether the next instruction in memory never follows this one, not even after a return.
    #[must_use]
    pub const fn is_jump(self) -> bool {
        matches!(self, Self::Jump { .. } | Self::IndirectJump { .. })
    }

    /// Whether it leaves a return address.
    #[must_use]
    pub const fn is_call(self) -> bool {
        matches!(self, Self::Call { .. } | Self::IndirectCall { .. })
    }
}

/// The instruction at the start of `bytes`; `None` if it is not known, or not all there.
#[must_use]
pub fn step(bytes: &[u8]) -> Option<Step> {
    match Insn::decode_at(bytes) {
        Ok((insn, len)) => Some(Step {
            len_bytes: len as u8,
            word: insn.encode(),
            flow: insn.flow(),
            reads: insn.reads(),
            writes: insn.writes(),
        }),
        Err(DecodeError::Word { word }) => {
            let (reads, writes) = vector::regs(word).or_else(|| other::regs(word))?;
            Some(plain(4, word, reads, writes))
        }
        Err(DecodeError::Hint { half }) => {
            Some(plain(2, hint(half).encode(), RegSet::EMPTY, RegSet::EMPTY))
        }
        Err(DecodeError::Half { half }) => {
            let (word, reads) = other::may_be_operation(half)?;
            Some(plain(2, word, reads, RegSet::EMPTY))
        }
        Err(_) => None,
    }
}

const fn plain(len_bytes: u8, word: u32, reads: RegSet, writes: RegSet) -> Step {
    Step {
        len_bytes,
        word,
        flow: Flow::Next,
        reads,
        writes,
    }
}

/// What a compressed hint stands for. Those on locality (Zihintntl) are additions to `zero` and
/// speak of the next instruction; the others are nothing.
fn hint(half: u16) -> Insn {
    let half = u32::from(half);
    match Reg::from_num(place::bits(half, 6, 2)) {
        Some(rs2) if half & 0xff83 == 0x9002 => add(Reg::Zero, Reg::Zero, rs2),
        _ => nop(),
    }
}

impl Insn {
    /// Where it goes.
    #[must_use]
    pub const fn flow(self) -> Flow {
        match self {
            Self::Jal { rd, offset, .. } => match rd {
                Reg::Zero => Flow::Jump { off: offset },
                link => Flow::Call { link, off: offset },
            },
            Self::Jalr {
                op: JalrOp::Jalr,
                rd,
                rs1,
                imm,
            } => match rd {
                Reg::Zero => Flow::IndirectJump {
                    base: rs1,
                    off: imm,
                },
                link => Flow::IndirectCall {
                    link,
                    base: rs1,
                    off: imm,
                },
            },
            Self::Branch {
                op,
                rs1,
                rs2,
                offset,
            } => Flow::Branch {
                cond: Cond::of(op),
                rs1,
                rs2,
                off: offset,
            },
            Self::U {
                op: UOp::Auipc,
                rd,
                imm,
            } => match rd {
                Reg::Zero => Flow::Next,
                rd => Flow::Auipc { rd, imm },
            },
            Self::Plain { op: PlainOp::Ecall } => Flow::Ecall,
            Self::Plain {
                op: PlainOp::Ebreak,
            } => Flow::Ebreak,
            _ => Flow::Next,
        }
    }

    /// The registers that it reads. A system call of Linux reads its number and all
    /// registers that may hold arguments.
    #[must_use]
    pub const fn reads(self) -> RegSet {
        use Reg::{A0, A1, A2, A3, A4, A5, A6, A7};
        let more = match self {
            // What memory is compared with.
            Self::Amo {
                op: AmoOp::AmocasB | AmoOp::AmocasH | AmoOp::AmocasW | AmoOp::AmocasD,
                rd,
                ..
            } => RegSet::of(&[rd]),
            Self::AmoPair { rd, .. } => RegSet::pair(rd),
            Self::Plain { op: PlainOp::Ecall } => RegSet::of(&[A0, A1, A2, A3, A4, A5, A6, A7]),
            _ => RegSet::EMPTY,
        };
        self.fields_read().union(more)
    }

    /// The registers that it writes. A system call of Linux writes its result.
    #[must_use]
    pub const fn writes(self) -> RegSet {
        match self {
            Self::Plain { op: PlainOp::Ecall } => RegSet::of(&[Reg::A0]),
            _ => self.fields_written(),
        }
    }
}
