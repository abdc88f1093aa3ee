//! RV64 instructions.
//!
//! Key types: [`Insn`], the constructor functions ([`addi`], [`sd`], ...),
//! and one operation enum per format ([`ROp`], [`IOp`], ...).
//!
//! ```
//! # use rvbpf_rv64 as rv64;
//! use rv64::{Insn, Reg::*, addi, imm};
//! let insn = addi(Sp, Sp, imm!(-2048));
//! assert_eq!(insn.encode(), 0x8001_0113);
//! assert_eq!(Insn::decode(0x8001_0113), Ok(insn));
//! assert_eq!(insn.to_string(), "addi sp, sp, -2048");
//! ```
//!
//! A row in a table (`int`, `amo`, `float`, `system`) is all there is to an
//! instruction: see `format`. Pseudo-instructions and hints live in `alias`.
//!
//! Neighbours: `compress` and `decode` know the 16-bit forms,
//! [`Asm`](crate::Asm) collects instructions.
//!
//! Source: Unprivileged ISA; the row's doc names the chapter.

mod alias;
mod amo;
pub(crate) mod bits;
mod float;
mod format;
mod int;
pub(crate) mod place;
mod system;
#[cfg(test)]
mod tests;

pub use alias::*;
pub use amo::*;
pub use float::*;
pub use int::*;
pub use system::*;

use crate::RegSet;
use format::formats;

/// The extension an instruction belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the manual's names")]
pub enum Ext {
    I,
    M,
    A,
    F,
    D,
    Zicsr,
    Zifencei,
    Zihintpause,
    Zba,
    Zbb,
    Zbs,
    Zicond,
    Zacas,
    Zabha,
    /// `amocas.b` and `amocas.h` ask for both.
    ZabhaZacas,
}

formats! {
    /// `rd = rs1 op rs2`.
    R(op: ROp) { rd: rd, rs1: rs1, rs2: rs2 } "{op} {rd}, {rs1}, {rs2}";
    /// `rd = op rs1`.
    Unary(op: UnaryOp) { rd: rd, rs1: rs1 } "{op} {rd}, {rs1}";
    /// `rd = rs1 op imm`.
    I(op: IOp) { rd: rd, rs1: rs1, imm: i_imm } "{op} {rd}, {rs1}, {imm}";
    /// `rd = rs1 op shamt`, 64 bits wide.
    Shift(op: ShiftOp) { rd: rd, rs1: rs1, shamt: shamt6 } "{op} {rd}, {rs1}, {shamt}";
    /// `rd = rs1 op shamt`, 32 bits wide.
    ShiftW(op: ShiftWOp) { rd: rd, rs1: rs1, shamt: shamt5 } "{op} {rd}, {rs1}, {shamt}";
    /// `rd = [rs1 + imm]`.
    Load(op: LoadOp) { rd: rd, rs1: rs1, imm: i_imm } "{op} {rd}, {imm}({rs1})";
    /// `[rs1 + imm] = rs2`.
    Store(op: StoreOp) { rs2: rs2, rs1: rs1, imm: s_imm } "{op} {rs2}, {imm}({rs1})";
    /// `if rs1 op rs2 goto pc + offset`.
    Branch(op: BranchOp) { rs1: rs1, rs2: rs2, offset: b_imm } "{op} {rs1}, {rs2}, {offset}";
    /// `rd = imm << 12`, with or without `pc`.
    U(op: UOp) { rd: rd, imm: u_imm } "{op} {rd}, {imm:#x}";
    /// `rd = pc + 4; goto pc + offset`.
    Jal(op: JalOp) { rd: rd, offset: j_imm } "{op} {rd}, {offset}";
    /// `rd = pc + 4; goto rs1 + imm`.
    Jalr(op: JalrOp) { rd: rd, rs1: rs1, imm: i_imm } "{op} {rd}, {imm}({rs1})";
    /// `rd = [rs1]; [rs1] = rd op rs2`.
    Amo(op: AmoOp) { rd: rd, rs2: rs2, rs1: rs1, order: order } "{op}{order} {rd}, {rs2}, ({rs1})";
    /// Compare-and-swap of 128 bits in register pairs.
    AmoPair(op: AmoPairOp) { rd: rd_pair, rs2: rs2_pair, rs1: rs1, order: order } "{op}{order} {rd}, {rs2}, ({rs1})";
    /// `rd = [rs1]`, reserved.
    Lr(op: LrOp) { rd: rd, rs1: rs1, order: order } "{op}{order} {rd}, ({rs1})";
    /// `fd = [rs1 + imm]`.
    FLoad(op: FLoadOp) { fd: fd, rs1: rs1, imm: i_imm } "{op} {fd}, {imm}({rs1})";
    /// `[rs1 + imm] = fs2`.
    FStore(op: FStoreOp) { fs2: fs2, rs1: rs1, imm: s_imm } "{op} {fs2}, {imm}({rs1})";
    /// `fd = ±(fs1 * fs2) ± fs3`, rounded.
    FFused(op: FFusedOp) { fd: fd, fs1: fs1, fs2: fs2, fs3: fs3, rm: rm } "{op} {fd}, {fs1}, {fs2}, {fs3}, {rm}";
    /// `fd = fs1 op fs2`, rounded.
    FArith(op: FArithOp) { fd: fd, fs1: fs1, fs2: fs2, rm: rm } "{op} {fd}, {fs1}, {fs2}, {rm}";
    /// `fd = fs1 op fs2`, exact.
    FBinary(op: FBinaryOp) { fd: fd, fs1: fs1, fs2: fs2 } "{op} {fd}, {fs1}, {fs2}";
    /// `rd = fs1 op fs2`.
    FCompare(op: FCompareOp) { rd: rd, fs1: fs1, fs2: fs2 } "{op} {rd}, {fs1}, {fs2}";
    /// `fd = op fs1`, rounded.
    FUnary(op: FUnaryOp) { fd: fd, fs1: fs1, rm: rm } "{op} {fd}, {fs1}, {rm}";
    /// `fd = op fs1`, exact.
    FWiden(op: FWidenOp) { fd: fd, fs1: fs1 } "{op} {fd}, {fs1}";
    /// `rd = op fs1`, rounded.
    FToInt(op: FToIntOp) { rd: rd, fs1: fs1, rm: rm } "{op} {rd}, {fs1}, {rm}";
    /// `rd = op fs1`, exact.
    FMove(op: FMoveOp) { rd: rd, fs1: fs1 } "{op} {rd}, {fs1}";
    /// `fd = op rs1`, rounded.
    IntToF(op: IntToFOp) { fd: fd, rs1: rs1, rm: rm } "{op} {fd}, {rs1}, {rm}";
    /// `fd = op rs1`, exact.
    MoveF(op: MoveFOp) { fd: fd, rs1: rs1 } "{op} {fd}, {rs1}";
    /// No operands.
    Plain(op: PlainOp) {} "{op}";
    /// Orders `pred` before `succ`.
    Fence(op: FenceOp) { pred: pred, succ: succ } "{op} {pred}, {succ}";
    /// `rd = csr; csr = csr op rs1`.
    CsrReg(op: CsrRegOp) { rd: rd, csr: csr, rs1: rs1 } "{op} {rd}, {csr}, {rs1}";
    /// `rd = csr; csr = csr op imm`.
    CsrImm(op: CsrImmOp) { rd: rd, csr: csr, imm: zimm } "{op} {rd}, {csr}, {imm}";
}
