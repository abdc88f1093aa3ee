//! From encodings to what they mean.
//!
//! [`Op::decode`] is the one reader of encodings. One that means nothing, or has a reserved field
//! set, is refused.
//!
//! Neighbours: `insn`, `op`; `encode` is the way back. Source: RFC 9669, chapters 3 to 5; kernel
//! `kernel/bpf/verifier.c` for what is reserved.

use super::arena_op::ArenaOp;
use super::error::Reason;
use super::insn::{BpfInsn, BpfReg, code};
use super::op::{
    AluOp, AtomicOp, ByteOrder, Callee, Cond, Extend, Fault, Imm64, Op, Operand, Size, Width,
};

impl Op {
    /// What the first of `insns` does (with the second, where it takes two).
    ///
    /// # Errors
    /// [`Reason::UnknownOpcode`], [`Reason::Legacy`], [`Reason::BadRegister`],
    /// [`Reason::Reserved`], [`Reason::Truncated`].
    pub fn decode(insns: &[BpfInsn]) -> Result<Self, Reason> {
        let insn = *insns.first().ok_or(Reason::Truncated)?;
        if let Some(plain) = without_arena_mark(insn) {
            return arena(insn, plain);
        }
        match insn.code & code::CLASS {
            code::ALU => alu(insn, Width::W32),
            code::ALU64 => alu(insn, Width::W64),
            code::JMP => jump(insn, Width::W64),
            code::JMP32 => jump(insn, Width::W32),
            code::LD => ld_imm64(insns),
            code::LDX => load(insn),
            code::ST => store_imm(insn),
            _ => store(insn),
        }
    }
}

/// The access through an address as it is, if this is one to the arena.
fn without_arena_mark(insn: BpfInsn) -> Option<BpfInsn> {
    let mode = match (insn.code & code::CLASS, insn.code & code::MODE) {
        (code::LDX | code::ST | code::STX, code::PROBE_MEM32) => code::MEM,
        (code::LDX, code::PROBE_MEM32SX) => code::MEMSX,
        (code::STX, code::PROBE_ATOMIC) => code::ATOMIC,
        _ => return None,
    };
    let code = insn.code & !code::MODE | mode;
    Some(BpfInsn { code, ..insn })
}

fn arena(insn: BpfInsn, plain: BpfInsn) -> Result<Op, Reason> {
    let op = Op::decode(&[plain]).map_err(|reason| match reason {
        Reason::UnknownOpcode { .. } => unknown(insn),
        reason => reason,
    })?;
    ArenaOp::of(op).map(Op::Arena).ok_or(unknown(insn))
}

/// The registers of an instruction.
fn dst(insn: BpfInsn) -> Result<BpfReg, Reason> {
    BpfReg::from_num(insn.dst).ok_or(Reason::BadRegister { num: insn.dst })
}

fn src(insn: BpfInsn) -> Result<BpfReg, Reason> {
    BpfReg::from_num(insn.src).ok_or(Reason::BadRegister { num: insn.src })
}

/// Fields that must be zero are.
fn zero(fields: &[(&'static str, i64)]) -> Result<(), Reason> {
    match fields.iter().find(|(_, value)| *value != 0) {
        Some(&(field, value)) => Err(Reason::Reserved { field, value }),
        None => Ok(()),
    }
}

fn no_src(insn: BpfInsn) -> Result<(), Reason> {
    zero(&[("src", insn.src.into())])
}

fn no_dst(insn: BpfInsn) -> Result<(), Reason> {
    zero(&[("dst", insn.dst.into())])
}

fn no_off(insn: BpfInsn) -> Result<(), Reason> {
    zero(&[("off", insn.off.into())])
}

fn no_imm(insn: BpfInsn) -> Result<(), Reason> {
    zero(&[("imm", insn.imm.into())])
}

/// The second operand of arithmetic and branches.
fn operand(insn: BpfInsn) -> Result<Operand, Reason> {
    if insn.code & code::X == 0 {
        no_src(insn)?;
        return Ok(Operand::Imm(insn.imm));
    }
    no_imm(insn)?;
    src(insn).map(Operand::Reg)
}

fn unknown(insn: BpfInsn) -> Reason {
    Reason::UnknownOpcode { code: insn.code }
}

fn alu(insn: BpfInsn, width: Width) -> Result<Op, Reason> {
    let operation = insn.code & code::OPERATION;
    let is_x = insn.code & code::X != 0;
    match operation {
        code::END => return byte_order(insn, width),
        code::NEG if is_x => return Err(unknown(insn)),
        code::NEG => {
            no_src(insn)?;
            no_off(insn)?;
            no_imm(insn)?;
            let dst = dst(insn)?;
            return Ok(Op::Neg { width, dst });
        }
        code::MOV if is_x && insn.off != 0 => return extending_mov(insn, width),
        _ => {}
    }
    let signed = matches!(operation, code::DIV | code::MOD) && insn.off == 1;
    if !signed {
        no_off(insn)?;
    }
    let op = AluOp::from_code(operation, insn.off).ok_or(unknown(insn))?;
    let (dst, src) = (dst(insn)?, operand(insn)?);
    Ok(Op::Alu {
        op,
        width,
        dst,
        src,
    })
}

/// A move with an `off`: from fewer bits, or between address spaces.
fn extending_mov(insn: BpfInsn, width: Width) -> Result<Op, Reason> {
    let (dst, src) = (dst(insn)?, src(insn)?);
    let size = match (insn.off, width) {
        (8, _) => Size::B,
        (16, _) => Size::H,
        (32, Width::W64) => Size::W,
        (1, Width::W64) => {
            let (to, from) = ((insn.imm as u32 >> 16) as u16, insn.imm as u16);
            return match (to, from) {
                (0, 1) | (1, 0) => Ok(Op::AddrSpaceCast { dst, src, to, from }),
                _ => Err(Reason::Reserved {
                    field: "imm",
                    value: insn.imm.into(),
                }),
            };
        }
        _ => {
            return Err(Reason::Reserved {
                field: "off",
                value: insn.off.into(),
            });
        }
    };
    no_imm(insn)?;
    Ok(Op::Movsx {
        width,
        size,
        dst,
        src,
    })
}

fn byte_order(insn: BpfInsn, width: Width) -> Result<Op, Reason> {
    no_src(insn)?;
    no_off(insn)?;
    let order = match (width, insn.code & code::X != 0) {
        (Width::W32, false) => ByteOrder::Le,
        (Width::W32, true) => ByteOrder::Be,
        (Width::W64, false) => ByteOrder::Swap,
        (Width::W64, true) => return Err(unknown(insn)),
    };
    let size = match insn.imm {
        16 => Size::H,
        32 => Size::W,
        64 => Size::Dw,
        imm => {
            return Err(Reason::Reserved {
                field: "imm",
                value: imm.into(),
            });
        }
    };
    let dst = dst(insn)?;
    Ok(Op::End { order, size, dst })
}

fn jump(insn: BpfInsn, width: Width) -> Result<Op, Reason> {
    let is_imm = insn.code & code::X == 0;
    match (insn.code & code::OPERATION, width) {
        (code::JA, Width::W64) if is_imm => {
            no_dst(insn)?;
            no_src(insn)?;
            no_imm(insn)?;
            return Ok(Op::Jump {
                off: insn.off.into(),
            });
        }
        (code::JA, Width::W64) => {
            no_src(insn)?;
            no_off(insn)?;
            no_imm(insn)?;
            return Ok(Op::JumpReg { dst: dst(insn)? });
        }
        (code::JA, Width::W32) if is_imm => {
            no_dst(insn)?;
            no_src(insn)?;
            no_off(insn)?;
            return Ok(Op::Jump { off: insn.imm });
        }
        (code::JCOND, Width::W64) if is_imm => {
            no_dst(insn)?;
            no_src(insn)?;
            no_imm(insn)?;
            return Ok(Op::MayGoto { off: insn.off });
        }
        (code::CALL, Width::W64) if is_imm => return call(insn),
        (code::EXIT, Width::W64) if is_imm => {
            no_dst(insn)?;
            no_src(insn)?;
            no_off(insn)?;
            no_imm(insn)?;
            return Ok(Op::Exit);
        }
        _ => {}
    }
    let operation = insn.code & code::OPERATION;
    let cond = Cond::ALL.into_iter().find(|c| c.code() == operation);
    let cond = cond.ok_or(unknown(insn))?;
    let (dst, src) = (dst(insn)?, operand(insn)?);
    Ok(Op::Branch {
        cond,
        width,
        dst,
        src,
        off: insn.off,
    })
}

fn call(insn: BpfInsn) -> Result<Op, Reason> {
    no_dst(insn)?;
    let callee = match insn.src {
        0 => {
            no_off(insn)?;
            Callee::Helper(insn.imm)
        }
        code::PSEUDO_CALL => {
            no_off(insn)?;
            Callee::Local(insn.imm)
        }
        code::PSEUDO_KFUNC_CALL => Callee::Host {
            id: insn.imm,
            object: insn.off,
        },
        src => {
            return Err(Reason::Reserved {
                field: "src",
                value: src.into(),
            });
        }
    };
    Ok(Op::Call(callee))
}

fn ld_imm64(insns: &[BpfInsn]) -> Result<Op, Reason> {
    let insn = insns[0];
    match insn.code & code::MODE {
        code::IMM if insn.code & code::SIZE == code::DW => {}
        code::ABS | code::IND if insn.code & code::SIZE != code::DW => {
            return Err(Reason::Legacy { code: insn.code });
        }
        _ => return Err(unknown(insn)),
    }
    let next = *insns.get(1).ok_or(Reason::Truncated)?;
    no_off(insn)?;
    zero(&[
        ("code of the second half", next.code.into()),
        ("dst of the second half", next.dst.into()),
        ("src of the second half", next.src.into()),
        ("off of the second half", next.off.into()),
    ])?;
    let (lo, hi) = (insn.imm, next.imm as u32);
    let alone = zero(&[("imm of the second half", next.imm.into())]);
    let imm = match insn.src {
        0 => Imm64::Value(u64::from(hi) << 32 | u64::from(lo as u32)),
        1 => alone.map(|()| Imm64::MapFd(lo))?,
        2 => Imm64::MapValue { fd: lo, off: hi },
        3 => Imm64::BtfId { id: lo, object: hi },
        4 => alone.map(|()| Imm64::Func(lo))?,
        5 => alone.map(|()| Imm64::MapIdx(lo))?,
        6 => Imm64::MapIdxValue { idx: lo, off: hi },
        src => {
            return Err(Reason::Reserved {
                field: "src",
                value: src.into(),
            });
        }
    };
    let dst = dst(insn)?;
    Ok(Op::LdImm64 { dst, imm })
}

fn load(insn: BpfInsn) -> Result<Op, Reason> {
    let size = Size::from_code(insn.code);
    let (extend, fault) = match insn.code & code::MODE {
        code::MEM => (Extend::Zero, Fault::Fatal),
        code::MEMSX if size != Size::Dw => (Extend::Sign, Fault::Fatal),
        code::PROBE_MEM => (Extend::Zero, Fault::Zero),
        code::PROBE_MEMSX if size != Size::Dw => (Extend::Sign, Fault::Zero),
        _ => return Err(unknown(insn)),
    };
    no_imm(insn)?;
    Ok(Op::Load {
        size,
        extend,
        fault,
        dst: dst(insn)?,
        src: src(insn)?,
        off: insn.off,
    })
}

fn store_imm(insn: BpfInsn) -> Result<Op, Reason> {
    if insn.code & code::MODE != code::MEM {
        return Err(unknown(insn));
    }
    no_src(insn)?;
    Ok(Op::Store {
        size: Size::from_code(insn.code),
        dst: dst(insn)?,
        off: insn.off,
        src: Operand::Imm(insn.imm),
    })
}

fn store(insn: BpfInsn) -> Result<Op, Reason> {
    let size = Size::from_code(insn.code);
    match insn.code & code::MODE {
        code::MEM => {
            no_imm(insn)?;
            Ok(Op::Store {
                size,
                dst: dst(insn)?,
                off: insn.off,
                src: Operand::Reg(src(insn)?),
            })
        }
        code::ATOMIC => atomic(insn, size),
        _ => Err(unknown(insn)),
    }
}

fn atomic(insn: BpfInsn, size: Size) -> Result<Op, Reason> {
    let (dst, src, off) = (dst(insn)?, src(insn)?, insn.off);
    match insn.imm {
        code::LOAD_ACQ => Ok(Op::LoadAcquire {
            size,
            dst,
            src,
            off,
        }),
        code::STORE_REL => Ok(Op::StoreRelease {
            size,
            dst,
            off,
            src,
        }),
        imm => match AtomicOp::ALL.into_iter().find(|op| op.code() == imm) {
            Some(op) => Ok(Op::Atomic {
                op,
                size,
                dst,
                off,
                src,
            }),
            None => Err(Reason::Reserved {
                field: "imm",
                value: imm.into(),
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code with every field at its edges: refused, or encoded again to the same bytes.
    #[test]
    fn what_is_decoded_is_encoded_the_same() {
        let mut known = 0;
        let offs = [0, 1, 8, 16, 32, -1, i16::MAX, i16::MIN];
        let imms = [
            0,
            1,
            16,
            32,
            64,
            -1,
            0x40,
            0x41,
            0x50,
            0x51,
            0xa0,
            0xa1,
            0xe1,
            0xf1,
            0x100,
            0x110,
            1 << 16,
            i32::MAX,
            i32::MIN,
        ];
        for code in 0..=u8::MAX {
            for (dst, src) in [(0, 0), (1, 2), (10, 9), (3, 1), (0, 6), (11, 0), (0, 15)] {
                for off in offs {
                    for imm in imms {
                        let insn = BpfInsn {
                            code,
                            dst,
                            src,
                            off,
                            imm,
                        };
                        let next = BpfInsn {
                            imm: imm / 2,
                            ..BpfInsn::default()
                        };
                        let Ok(op) = Op::decode(&[insn, next]) else {
                            continue;
                        };
                        known += 1;
                        let (first, second) = op.encode();
                        // A short jump may have been written as a long one.
                        let short = matches!(op, Op::Jump { off } if i16::try_from(off).is_ok());
                        if !(short && code == 0x06) {
                            assert_eq!(first, insn, "{op:?}");
                        }
                        assert_eq!(second.is_some(), op.len_insns() == 2);
                        let again = [first, second.unwrap_or_default()];
                        assert_eq!(Op::decode(&again), Ok(op));
                    }
                }
            }
        }
        assert!(known > 8_000, "{known}");
    }

    #[test]
    fn refusals_say_why() {
        let decode = |bytes: [u8; 8]| Op::decode(&[BpfInsn::from_bytes(bytes)]);
        for (bytes, want) in [
            ([0x30, 0, 0, 0, 0, 0, 0, 0], Reason::Legacy { code: 0x30 }),
            ([0x48, 0, 0, 0, 0, 0, 0, 0], Reason::Legacy { code: 0x48 }),
            (
                [0xff, 0, 0, 0, 0, 0, 0, 0],
                Reason::UnknownOpcode { code: 0xff },
            ),
            (
                [0xb7, 11, 0, 0, 0, 0, 0, 0],
                Reason::BadRegister { num: 11 },
            ),
            (
                [0x95, 1, 0, 0, 0, 0, 0, 0],
                Reason::Reserved {
                    field: "dst",
                    value: 1,
                },
            ),
            (
                [0xd4, 0, 0, 0, 17, 0, 0, 0],
                Reason::Reserved {
                    field: "imm",
                    value: 17,
                },
            ),
            (
                [0xb4, 0, 32, 0, 0, 0, 0, 0],
                Reason::Reserved {
                    field: "off",
                    value: 32,
                },
            ),
            ([0x18, 0, 0, 0, 1, 0, 0, 0], Reason::Truncated),
        ] {
            assert_eq!(decode(bytes), Err(want), "{bytes:02x?}");
        }
        assert_eq!(Op::decode(&[]), Err(Reason::Truncated));
    }
}
