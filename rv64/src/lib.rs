//! What an RV64 instruction is: registers, immediates, encode, compress,
//! decode, labels.
//!
//! RV64IMAFDC with Zicsr, Zifencei, Zba, Zbb, Zbs, Zicond, Zacas, Zabha, Zcb,
//! and the hints of Zicbop, Zihintpause and Zicfilp. Pure: no I/O, no unsafe.
//!
//! | module | key types |
//! | --- | --- |
//! | [`reg`], [`regset`] | [`Reg`], [`FReg`], [`RegSet`] |
//! | [`imm`](mod@imm) | [`SImm`], [`UImm`], [`Offset`]; the constructor is the range check |
//! | [`operand`] | [`Order`], [`Rm`], [`FenceSet`], [`Csr`] |
//! | [`insn`] | [`Insn`] and one constructor function per instruction |
//! | [`decode`], [`compress`] | words and half-words |
//! | [`flow`](mod@flow) | [`step`]: where an instruction goes, which registers it reads and writes |
//! | [`disasm`] | [`Line`]: code as text, with where it goes |
//! | [`li`](mod@li) | [`li()`](li::li): a constant in the fewest instructions |
//! | [`asm`] | [`Asm`]: a buffer with labels, literals, jumps that grow |
//!
//! Neighbours: none below; the trampolines and the JIT emit through
//! [`Asm`].
//!
//! Source: RISC-V Unprivileged ISA; RISC-V ELF psABI.

#![forbid(unsafe_code)]
#![allow(
    clippy::precedence,
    reason = "fields are shifted and joined everywhere: shifts bind tighter than `|`, `&`, `^`"
)]

pub mod asm;
pub mod compress;
pub mod decode;
pub mod disasm;
pub mod error;
pub mod features;
pub mod flow;
pub mod imm;
pub mod insn;
pub mod li;
pub mod operand;
pub mod reg;
pub mod regset;
mod scatter;
#[cfg(test)]
mod testing;

pub use asm::{Asm, Code, Cond, Hi, Label};
pub use disasm::{Line, disassemble};
pub use error::{AsmError, DecodeError};
pub use features::Features;
pub use flow::{Flow, Step, step};
pub use imm::{ImmRange, Offset, PrefetchOffset, SImm, UImm};
pub use insn::*;
pub use li::li;
pub use operand::{Csr, FenceSet, Order, Rm};
pub use reg::{EvenReg, FReg, Reg};
pub use regset::RegSet;
