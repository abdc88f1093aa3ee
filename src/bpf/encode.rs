//! From what instructions mean to their encodings.
//!
//! Neighbours: `insn`, `op`; `decode` is the way back, and holds the test that it is. Source: RFC
//! 9669, chapters 3 to 5.

use super::insn::{BpfInsn, BpfReg, code};
use super::op::{ByteOrder, Callee, Extend, Fault, Imm64, Op, Operand, Size, Width};

impl Op {
    /// Its encoding: one instruction, or two.
    #[must_use]
    pub fn encode(self) -> (BpfInsn, Option<BpfInsn>) {
        let insn = BpfInsn::default();
        let with = |code: u8, src: Operand| match src {
            Operand::Reg(reg) => BpfInsn {
                code: code | code::X,
                src: reg.num(),
                ..insn
            },
            Operand::Imm(imm) => BpfInsn { code, imm, ..insn },
        };
        let one = match self {
            Self::Alu {
                op,
                width,
                dst,
                src,
            } => {
                let (operation, off) = op.code();
                BpfInsn {
                    dst: dst.num(),
                    off,
                    ..with(alu_class(width) | operation, src)
                }
            }
            Self::Neg { width, dst } => BpfInsn {
                code: alu_class(width) | code::NEG,
                dst: dst.num(),
                ..insn
            },
            Self::Movsx {
                width,
                size,
                dst,
                src,
            } => BpfInsn {
                dst: dst.num(),
                off: size.bits() as i16,
                ..with(alu_class(width) | code::MOV, Operand::Reg(src))
            },
            Self::End { order, size, dst } => BpfInsn {
                code: code::END
                    | match order {
                        ByteOrder::Le => code::ALU,
                        ByteOrder::Be => code::ALU | code::X,
                        ByteOrder::Swap => code::ALU64,
                    },
                dst: dst.num(),
                imm: size.bits() as i32,
                ..insn
            },
            Self::AddrSpaceCast { dst, src, to, from } => BpfInsn {
                dst: dst.num(),
                off: 1,
                imm: (u32::from(to) << 16 | u32::from(from)) as i32,
                ..with(code::ALU64 | code::MOV, Operand::Reg(src))
            },
            Self::LdImm64 { dst, imm } => return encode_imm64(dst, imm),
            Self::Load {
                size,
                extend,
                fault,
                dst,
                src,
                off,
            } => {
                let mode = match (extend, fault) {
                    (Extend::Zero, Fault::Fatal) => code::MEM,
                    (Extend::Sign, Fault::Fatal) => code::MEMSX,
                    (Extend::Zero, Fault::Zero) => code::PROBE_MEM,
                    (Extend::Sign, Fault::Zero) => code::PROBE_MEMSX,
                };
                BpfInsn {
                    code: code::LDX | mode | size.code(),
                    dst: dst.num(),
                    src: src.num(),
                    off,
                    imm: 0,
                }
            }
            Self::Store {
                size,
                dst,
                off,
                src,
            } => {
                let (class, src, imm) = match src {
                    Operand::Reg(reg) => (code::STX, reg.num(), 0),
                    Operand::Imm(imm) => (code::ST, 0, imm),
                };
                BpfInsn {
                    code: class | code::MEM | size.code(),
                    dst: dst.num(),
                    src,
                    off,
                    imm,
                }
            }
            Self::Atomic {
                op,
                size,
                dst,
                off,
                src,
            } => encode_atomic(size, dst, src, off, op.code()),
            Self::LoadAcquire {
                size,
                dst,
                src,
                off,
            } => encode_atomic(size, dst, src, off, code::LOAD_ACQ),
            Self::StoreRelease {
                size,
                dst,
                off,
                src,
            } => encode_atomic(size, dst, src, off, code::STORE_REL),
            Self::Arena(access) => {
                let (plain, _) = access.plain().encode();
                let mode = match plain.code & code::MODE {
                    code::MEMSX => code::PROBE_MEM32SX,
                    code::ATOMIC => code::PROBE_ATOMIC,
                    _ => code::PROBE_MEM32,
                };
                let code = plain.code & !code::MODE | mode;
                BpfInsn { code, ..plain }
            }
            Self::Jump { off } => match i16::try_from(off) {
                Ok(off) => BpfInsn {
                    code: code::JMP | code::JA,
                    off,
                    ..insn
                },
                Err(_) => BpfInsn {
                    code: code::JMP32 | code::JA,
                    imm: off,
                    ..insn
                },
            },
            Self::JumpReg { dst } => BpfInsn {
                code: code::JMP | code::JA | code::X,
                dst: dst.num(),
                ..insn
            },
            Self::MayGoto { off } => BpfInsn {
                code: code::JMP | code::JCOND,
                off,
                ..insn
            },
            Self::Branch {
                cond,
                width,
                dst,
                src,
                off,
            } => {
                let class = match width {
                    Width::W32 => code::JMP32,
                    Width::W64 => code::JMP,
                };
                BpfInsn {
                    dst: dst.num(),
                    off,
                    ..with(class | cond.code(), src)
                }
            }
            Self::Call(callee) => {
                let (src, off, imm) = match callee {
                    Callee::Helper(id) => (0, 0, id),
                    Callee::Local(off) => (code::PSEUDO_CALL, 0, off),
                    Callee::Host { id, object } => (code::PSEUDO_KFUNC_CALL, object, id),
                };
                BpfInsn {
                    code: code::JMP | code::CALL,
                    dst: 0,
                    src,
                    off,
                    imm,
                }
            }
            Self::Exit => BpfInsn {
                code: code::JMP | code::EXIT,
                ..insn
            },
        };
        (one, None)
    }
}

const fn alu_class(width: Width) -> u8 {
    match width {
        Width::W32 => code::ALU,
        Width::W64 => code::ALU64,
    }
}

fn encode_atomic(size: Size, dst: BpfReg, src: BpfReg, off: i16, imm: i32) -> BpfInsn {
    BpfInsn {
        code: code::STX | code::ATOMIC | size.code(),
        dst: dst.num(),
        src: src.num(),
        off,
        imm,
    }
}

fn encode_imm64(dst: BpfReg, imm: Imm64) -> (BpfInsn, Option<BpfInsn>) {
    let (src, lo, hi) = match imm {
        Imm64::Value(value) => (0, value as i32, (value >> 32) as u32),
        Imm64::MapFd(fd) => (1, fd, 0),
        Imm64::MapValue { fd, off } => (2, fd, off),
        Imm64::BtfId { id, object } => (3, id, object),
        Imm64::Func(off) => (4, off, 0),
        Imm64::MapIdx(idx) => (5, idx, 0),
        Imm64::MapIdxValue { idx, off } => (6, idx, off),
    };
    let first = BpfInsn {
        code: code::LD | code::IMM | code::DW,
        dst: dst.num(),
        src,
        off: 0,
        imm: lo,
    };
    let second = BpfInsn {
        imm: hi as i32,
        ..BpfInsn::default()
    };
    (first, Some(second))
}
