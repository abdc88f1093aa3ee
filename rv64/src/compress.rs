//! The 16-bit form of an instruction, where it has one.
//!
//! Key functions: [`Insn::compress`] and [`Insn::compress_for`]. Hints are
//! never made, with one exception in name only: `nop` becomes `c.nop`.
//!
//! Neighbours: `scatter` holds the layouts of the immediates;
//! [`crate::decode`] goes the other way.
//!
//! Source: Unprivileged ISA, chapters "C" and "Zcb".

use crate::insn::{
    BranchOp, FLoadOp, FStoreOp, IOp, Insn, LoadOp, PlainOp, ROp, ShiftOp, StoreOp, UOp, UnaryOp,
};
use crate::scatter::{
    ADDI4SPN, ADDI16SP, BYTE, CB, CI, CJ, D_MEM, D_SP_LOAD, D_SP_STORE, HALF, Scatter, W_MEM,
    W_SP_LOAD, W_SP_STORE,
};
use crate::{FReg, Features, Reg, UImm};

impl Insn {
    /// The C form (no Zcb), if there is one.
    ///
    /// ```
    /// # use rvbpf_rv64 as rv64;
    /// use rv64::{Reg::*, addi, imm, sd};
    /// assert_eq!(addi(Sp, Sp, imm!(-64)).compress(), Some(0x7139)); // c.addi16sp
    /// assert_eq!(sd(Ra, Sp, imm!(8)).compress(), Some(0xe406)); // c.sdsp
    /// assert_eq!(sd(Ra, Sp, imm!(9)).compress(), None);
    /// ```
    #[must_use]
    pub fn compress(self) -> Option<u16> {
        let half = match self {
            Self::I { op, rd, rs1, imm } => imm_form(op, rd, rs1, imm.get()),
            Self::Shift { op, rd, rs1, shamt } => shift_form(op, rd, rs1, shamt),
            Self::R { op, rd, rs1, rs2 } => reg_form(op, rd, rs1, rs2),
            Self::Load { op, rd, rs1, imm } => load_form(op, rd, rs1, imm.get()),
            Self::Store { op, rs2, rs1, imm } => store_form(op, rs2, rs1, imm.get()),
            Self::FLoad {
                op: FLoadOp::Fld,
                fd,
                rs1,
                imm,
            } => fld_form(fd, rs1, imm.get()),
            Self::FStore {
                op: FStoreOp::Fsd,
                fs2,
                rs1,
                imm,
            } => fsd_form(fs2, rs1, imm.get()),
            Self::U {
                op: UOp::Lui,
                rd,
                imm,
            } => {
                if matches!(rd, Reg::Zero | Reg::Sp) || imm.get() == 0 {
                    return None;
                }
                Some(0x6001 | full(rd) << 7 | CI.put_signed(imm.get())?)
            }
            Self::Branch {
                op,
                rs1,
                rs2,
                offset,
            } => branch_form(op, rs1, rs2, offset.get()),
            Self::Jal {
                rd: Reg::Zero,
                offset,
                ..
            } => Some(0xa001 | CJ.put_signed(offset.get())?),
            Self::Jalr { rd, rs1, imm, .. } => match (rd, rs1, imm.get()) {
                (_, Reg::Zero, _) => None,
                (Reg::Zero, _, 0) => Some(0x8002 | full(rs1) << 7),
                (Reg::Ra, _, 0) => Some(0x9002 | full(rs1) << 7),
                _ => None,
            },
            Self::Plain {
                op: PlainOp::Ebreak,
            } => Some(0x9002),
            _ => None,
        };
        half.map(|half| half as u16)
    }

    /// The 16-bit form that `features` allow: none without `c`, those of Zcb
    /// with `zcb` (and `zba` or `zbb` where the instruction is theirs).
    #[must_use]
    pub fn compress_for(self, features: Features) -> Option<u16> {
        if !features.c {
            return None;
        }
        self.compress().or_else(|| {
            if features.zcb {
                self.compress_zcb()
            } else {
                None
            }
        })
    }

    /// The form that only Zcb has.
    fn compress_zcb(self) -> Option<u16> {
        let half = match self {
            Self::Load { op, rd, rs1, imm } => {
                let (base, layout) = match op {
                    LoadOp::Lbu => (0x8000, BYTE),
                    LoadOp::Lhu => (0x8400, HALF),
                    LoadOp::Lh => (0x8440, HALF),
                    _ => return None,
                };
                base | low3(rs1)? << 7 | low3(rd)? << 2 | layout.put(imm.get())?
            }
            Self::Store { op, rs2, rs1, imm } => {
                let (base, layout) = match op {
                    StoreOp::Sb => (0x8800, BYTE),
                    StoreOp::Sh => (0x8c00, HALF),
                    _ => return None,
                };
                base | low3(rs1)? << 7 | low3(rs2)? << 2 | layout.put(imm.get())?
            }
            Self::I {
                op: IOp::Andi,
                rd,
                rs1,
                imm,
            } if rd == rs1 && imm.get() == 0xff => 0x9c61 | low3(rd)? << 7,
            Self::I {
                op: IOp::Xori,
                rd,
                rs1,
                imm,
            } if rd == rs1 && imm.get() == -1 => 0x9c75 | low3(rd)? << 7,
            Self::Unary { op, rd, rs1 } if rd == rs1 => {
                let base = match op {
                    UnaryOp::SextB => 0x9c65,
                    UnaryOp::ZextH => 0x9c69,
                    UnaryOp::SextH => 0x9c6d,
                    _ => return None,
                };
                base | low3(rd)? << 7
            }
            Self::R {
                op: ROp::AddUw,
                rd,
                rs1,
                rs2: Reg::Zero,
            } if rd == rs1 => 0x9c71 | low3(rd)? << 7,
            Self::R {
                op: ROp::Mul,
                rd,
                rs1,
                rs2,
            } => {
                let other = commuted(rd, rs1, rs2)?;
                0x9c41 | low3(rd)? << 7 | low3(other)? << 2
            }
            _ => return None,
        };
        Some(half as u16)
    }
}

/// A five-bit register field.
fn full(reg: Reg) -> u32 {
    reg.num()
}

/// A three-bit register field, for registers 8 to 15.
fn low3(reg: Reg) -> Option<u32> {
    reg.is_compressible().then(|| reg.num() - 8)
}

/// The operand that is not `rd`, where `rd = rd op other`, either way round.
fn commuted(rd: Reg, rs1: Reg, rs2: Reg) -> Option<Reg> {
    if rd == rs1 {
        Some(rs2)
    } else if rd == rs2 {
        Some(rs1)
    } else {
        None
    }
}

fn imm_form(op: IOp, rd: Reg, rs1: Reg, imm: i64) -> Option<u32> {
    match op {
        IOp::Addi => addi_form(rd, rs1, imm),
        IOp::Addiw if rd == rs1 && rd != Reg::Zero => {
            Some(0x2001 | full(rd) << 7 | CI.put_signed(imm)?)
        }
        IOp::Andi if rd == rs1 => Some(0x8801 | low3(rd)? << 7 | CI.put_signed(imm)?),
        _ => None,
    }
}

/// c.nop, c.li, c.mv, c.addi, c.addi16sp, c.addi4spn, in this order.
fn addi_form(rd: Reg, rs1: Reg, imm: i64) -> Option<u32> {
    if rd == Reg::Zero {
        return (rs1 == Reg::Zero && imm == 0).then_some(0x0001);
    }
    if rs1 == Reg::Zero {
        return Some(0x4001 | full(rd) << 7 | CI.put_signed(imm)?);
    }
    if imm == 0 {
        return Some(mv_form(rd, rs1));
    }
    if rd == rs1 {
        if let Some(field) = CI.put_signed(imm) {
            return Some(0x0001 | full(rd) << 7 | field);
        }
        return match rd {
            Reg::Sp => Some(0x6101 | ADDI16SP.put_signed(imm)?),
            _ => None,
        };
    }
    match rs1 {
        Reg::Sp => Some(low3(rd)? << 2 | ADDI4SPN.put(imm)?),
        _ => None,
    }
}

/// c.mv; neither may be `zero`.
fn mv_form(rd: Reg, rs: Reg) -> u32 {
    0x8002 | full(rd) << 7 | full(rs) << 2
}

fn shift_form(op: ShiftOp, rd: Reg, rs1: Reg, shamt: UImm<6>) -> Option<u32> {
    if rd != rs1 || rd == Reg::Zero || shamt == UImm::ZERO {
        return None;
    }
    let field = CI.put(shamt.get().into())?;
    match op {
        ShiftOp::Slli => Some(0x0002 | full(rd) << 7 | field),
        ShiftOp::Srli => Some(0x8001 | low3(rd)? << 7 | field),
        ShiftOp::Srai => Some(0x8401 | low3(rd)? << 7 | field),
        _ => None,
    }
}

fn reg_form(op: ROp, rd: Reg, rs1: Reg, rs2: Reg) -> Option<u32> {
    let base = match op {
        ROp::Add => return add_form(rd, rs1, rs2),
        ROp::Sub if rd == rs1 => 0x8c01,
        ROp::Xor => 0x8c21,
        ROp::Or => 0x8c41,
        ROp::And => 0x8c61,
        ROp::Subw if rd == rs1 => 0x9c01,
        ROp::Addw => 0x9c21,
        _ => return None,
    };
    let other = commuted(rd, rs1, rs2)?;
    Some(base | low3(rd)? << 7 | low3(other)? << 2)
}

fn add_form(rd: Reg, rs1: Reg, rs2: Reg) -> Option<u32> {
    match (rd, rs1, rs2) {
        (Reg::Zero, _, _) | (_, _, Reg::Zero) => None,
        (_, Reg::Zero, rs) => Some(mv_form(rd, rs)),
        _ => Some(0x9002 | full(rd) << 7 | full(commuted(rd, rs1, rs2)?) << 2),
    }
}

fn load_form(op: LoadOp, rd: Reg, rs1: Reg, imm: i64) -> Option<u32> {
    let (sp_base, sp_layout, base, layout) = match op {
        LoadOp::Lw => (0x4002, W_SP_LOAD, 0x4000, W_MEM),
        LoadOp::Ld => (0x6002, D_SP_LOAD, 0x6000, D_MEM),
        _ => return None,
    };
    if rs1 == Reg::Sp {
        return (rd != Reg::Zero).then_some(sp_base | full(rd) << 7 | sp_layout.put(imm)?);
    }
    Some(base | low3(rs1)? << 7 | low3(rd)? << 2 | layout.put(imm)?)
}

fn store_form(op: StoreOp, rs2: Reg, rs1: Reg, imm: i64) -> Option<u32> {
    let (sp_base, sp_layout, base, layout) = match op {
        StoreOp::Sw => (0xc002, W_SP_STORE, 0xc000, W_MEM),
        StoreOp::Sd => (0xe002, D_SP_STORE, 0xe000, D_MEM),
        _ => return None,
    };
    if rs1 == Reg::Sp {
        return Some(sp_base | full(rs2) << 2 | sp_layout.put(imm)?);
    }
    Some(base | low3(rs1)? << 7 | low3(rs2)? << 2 | layout.put(imm)?)
}

fn fld_form(fd: FReg, rs1: Reg, imm: i64) -> Option<u32> {
    if rs1 == Reg::Sp {
        return Some(0x2002 | fd.num() << 7 | D_SP_LOAD.put(imm)?);
    }
    float_mem(0x2000, fd, rs1, imm, D_MEM)
}

fn fsd_form(fs2: FReg, rs1: Reg, imm: i64) -> Option<u32> {
    if rs1 == Reg::Sp {
        return Some(0xa002 | fs2.num() << 2 | D_SP_STORE.put(imm)?);
    }
    float_mem(0xa000, fs2, rs1, imm, D_MEM)
}

fn float_mem(base: u32, reg: FReg, rs1: Reg, imm: i64, layout: Scatter) -> Option<u32> {
    let reg = reg.is_compressible().then(|| reg.num() - 8)?;
    Some(base | low3(rs1)? << 7 | reg << 2 | layout.put(imm)?)
}

fn branch_form(op: BranchOp, rs1: Reg, rs2: Reg, offset: i64) -> Option<u32> {
    let base = match op {
        BranchOp::Beq => 0xc001,
        BranchOp::Bne => 0xe001,
        _ => return None,
    };
    let reg = match (rs1, rs2) {
        (reg, Reg::Zero) | (Reg::Zero, reg) => reg,
        _ => return None,
    };
    Some(base | low3(reg)? << 7 | CB.put_signed(offset)?)
}
