//! Pseudo-instructions and hints: other names of rows, and the text of
//! [`Insn`].
//!
//! A hint is defined as an encoding of a base instruction that does nothing
//! there, so [`prefetch_r`] is an [`ori`](super::ori) and [`lpad`] an
//! [`auipc`](super::auipc): they are equal to what their words decode to.
//!
//! Source: Unprivileged ISA, "RISC-V Assembly Programmer's Handbook",
//! "Zicbop", "Zicfilp"; `Display` follows GNU as.

use core::fmt;

use super::{
    BranchOp, CsrRegOp, FBinaryOp, IOp, Insn, ROp, UOp, add, add_uw, addi, addiw, auipc, csrrs,
    csrrw, fence, fsgnj_d, fsgnj_s, jal, jalr, ori, sltiu, sltu, sub, xori,
};
use crate::{Csr, FReg, FenceSet, Offset, PrefetchOffset, Reg, SImm};

/// Does nothing: `addi zero, zero, 0`.
#[must_use]
pub const fn nop() -> Insn {
    addi(Reg::Zero, Reg::Zero, SImm::ZERO)
}

/// `rd = rs`: `addi rd, rs, 0`.
#[must_use]
pub const fn mv(rd: Reg, rs: Reg) -> Insn {
    addi(rd, rs, SImm::ZERO)
}

/// `rd = !rs`: `xori rd, rs, -1`.
#[must_use]
pub const fn not(rd: Reg, rs: Reg) -> Insn {
    xori(rd, rs, SImm::<12>::of::<-1>())
}

/// `rd = -rs`: `sub rd, zero, rs`.
#[must_use]
pub const fn neg(rd: Reg, rs: Reg) -> Insn {
    sub(rd, Reg::Zero, rs)
}

/// Sign-extends 32 bits: `addiw rd, rs, 0`.
#[must_use]
pub const fn sext_w(rd: Reg, rs: Reg) -> Insn {
    addiw(rd, rs, SImm::ZERO)
}

/// Zero-extends 32 bits: `add.uw rd, rs, zero` (Zba).
#[must_use]
pub const fn zext_w(rd: Reg, rs: Reg) -> Insn {
    add_uw(rd, rs, Reg::Zero)
}

/// `rd = rs == 0`: `sltiu rd, rs, 1`.
#[must_use]
pub const fn seqz(rd: Reg, rs: Reg) -> Insn {
    sltiu(rd, rs, SImm::<12>::of::<1>())
}

/// `rd = rs != 0`: `sltu rd, zero, rs`.
#[must_use]
pub const fn snez(rd: Reg, rs: Reg) -> Insn {
    sltu(rd, Reg::Zero, rs)
}

/// Jumps by `offset`: `jal zero, offset`.
#[must_use]
pub const fn j(offset: Offset<21>) -> Insn {
    jal(Reg::Zero, offset)
}

/// Jumps to `rs`: `jalr zero, 0(rs)`.
#[must_use]
pub const fn jr(rs: Reg) -> Insn {
    jalr(Reg::Zero, rs, SImm::ZERO)
}

/// Returns: `jalr zero, 0(ra)`.
#[must_use]
pub const fn ret() -> Insn {
    jr(Reg::Ra)
}

/// Reads a control register: `csrrs rd, csr, zero`.
#[must_use]
pub const fn csrr(rd: Reg, csr: Csr) -> Insn {
    csrrs(rd, csr, Reg::Zero)
}

/// Writes a control register: `csrrw zero, csr, rs`.
#[must_use]
pub const fn csrw(csr: Csr, rs: Reg) -> Insn {
    csrrw(Reg::Zero, csr, rs)
}

/// The full fence: `fence iorw, iorw`.
#[must_use]
pub const fn fence_full() -> Insn {
    fence(FenceSet::IORW, FenceSet::IORW)
}

/// `fd = fs`, 32 bits: `fsgnj.s fd, fs, fs`.
#[must_use]
pub const fn fmv_s(fd: FReg, fs: FReg) -> Insn {
    fsgnj_s(fd, fs, fs)
}

/// `fd = fs`, 64 bits: `fsgnj.d fd, fs, fs`.
#[must_use]
pub const fn fmv_d(fd: FReg, fs: FReg) -> Insn {
    fsgnj_d(fd, fs, fs)
}

/// Traps as an illegal instruction for good: a write to a read-only register,
/// `csrrw zero, cycle, zero`.
#[must_use]
pub const fn unimp() -> Insn {
    csrrw(Reg::Zero, Csr::CYCLE, Reg::Zero)
}

/// A landing pad: `auipc zero, label`. It checks the upper 20 bits of `t2`
/// where landing pads are enforced, and does nothing elsewhere; label 0
/// checks nothing. Zicfilp.
#[must_use]
pub const fn lpad(label: SImm<20>) -> Insn {
    auipc(Reg::Zero, label)
}

/// Prefetches for execution: a hint in the encoding of `ori`. Zicbop.
#[must_use]
pub const fn prefetch_i(base: Reg, offset: PrefetchOffset) -> Insn {
    prefetch(base, offset, 0)
}

/// Prefetches for reading: a hint in the encoding of `ori`. Zicbop.
#[must_use]
pub const fn prefetch_r(base: Reg, offset: PrefetchOffset) -> Insn {
    prefetch(base, offset, 1)
}

/// Prefetches for writing: a hint in the encoding of `ori`. Zicbop.
#[must_use]
pub const fn prefetch_w(base: Reg, offset: PrefetchOffset) -> Insn {
    prefetch(base, offset, 3)
}

/// `| offset[11:5] | kind | base | 110 | 00000 | OP-IMM |`
const fn prefetch(base: Reg, offset: PrefetchOffset, kind: i64) -> Insn {
    // A multiple of 32 has room for `kind` in its low five bits.
    ori(
        Reg::Zero,
        base,
        SImm::from_field((offset.get() | kind) as u32),
    )
}

/// `rd = rs1 + rs2` in the form that `c.mv` stands for: `add rd, zero, rs`.
pub(crate) const fn mv_add(rd: Reg, rs: Reg) -> Insn {
    add(rd, Reg::Zero, rs)
}

/// In the syntax of GNU as; pseudo-instructions where they say more.
impl fmt::Display for Insn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Reg::{Ra, Zero};
        match *self {
            Self::I { op, rd, rs1, imm } => match (op, rd, rs1, imm.get()) {
                (IOp::Addi, Zero, Zero, 0) => f.write_str("nop"),
                (IOp::Addi, _, Zero, _) => write!(f, "li {rd}, {imm}"),
                (IOp::Addi, _, _, 0) => write!(f, "mv {rd}, {rs1}"),
                (IOp::Xori, _, _, -1) => write!(f, "not {rd}, {rs1}"),
                (IOp::Addiw, _, _, 0) => write!(f, "sext.w {rd}, {rs1}"),
                (IOp::Sltiu, _, _, 1) => write!(f, "seqz {rd}, {rs1}"),
                (IOp::Ori, Zero, _, imm) if matches!(imm & 31, 0 | 1 | 3) => {
                    let kind = ["i", "r", "", "w"][(imm & 3) as usize];
                    write!(f, "prefetch.{kind} {}({rs1})", imm & !31)
                }
                _ => self.fmt_plain(f),
            },
            Self::R { op, rd, rs1, rs2 } => match (op, rs1, rs2) {
                (ROp::Sub, Zero, _) => write!(f, "neg {rd}, {rs2}"),
                (ROp::Sltu, Zero, _) => write!(f, "snez {rd}, {rs2}"),
                (ROp::AddUw, _, Zero) => write!(f, "zext.w {rd}, {rs1}"),
                _ => self.fmt_plain(f),
            },
            Self::Branch {
                op: BranchOp::Beq,
                rs1,
                rs2: Zero,
                offset,
            } => {
                write!(f, "beqz {rs1}, {offset}")
            }
            Self::Branch {
                op: BranchOp::Bne,
                rs1,
                rs2: Zero,
                offset,
            } => {
                write!(f, "bnez {rs1}, {offset}")
            }
            Self::U {
                op: UOp::Auipc,
                rd: Zero,
                imm,
            } => write!(f, "lpad {imm:#x}"),
            Self::Jal {
                rd: Zero, offset, ..
            } => write!(f, "j {offset}"),
            Self::Jalr { rd, rs1, imm, .. } => match (rd, rs1, imm.get()) {
                (Zero, Ra, 0) => f.write_str("ret"),
                (Zero, _, 0) => write!(f, "jr {rs1}"),
                (Ra, _, 0) => write!(f, "jalr {rs1}"),
                _ => self.fmt_plain(f),
            },
            Self::CsrReg { op, rd, csr, rs1 } => match (op, rd, rs1) {
                (CsrRegOp::Csrrw, Zero, Zero) if csr == Csr::CYCLE => f.write_str("unimp"),
                (CsrRegOp::Csrrs, _, Zero) => write!(f, "csrr {rd}, {csr}"),
                (CsrRegOp::Csrrw, Zero, _) => write!(f, "csrw {csr}, {rs1}"),
                _ => self.fmt_plain(f),
            },
            Self::FBinary {
                op: FBinaryOp::FsgnjS,
                fd,
                fs1,
                fs2,
            } if fs1 == fs2 => {
                write!(f, "fmv.s {fd}, {fs1}")
            }
            Self::FBinary {
                op: FBinaryOp::FsgnjD,
                fd,
                fs1,
                fs2,
            } if fs1 == fs2 => {
                write!(f, "fmv.d {fd}, {fs1}")
            }
            _ => self.fmt_plain(f),
        }
    }
}
