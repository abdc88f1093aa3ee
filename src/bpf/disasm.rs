//! Instructions as text, in the form of the kernel's verifier log and of bpftool.
//!
//! ```text
//!      0: (b7) r0 = 1
//!   index code instruction
//! ```
//!
//! The text of an instruction is [`Op`]'s `Display`; [`Program::disassemble`] makes the listing.
//! The words are the kernel's, so that a listing can be compared with its log. What the kernel
//! looks up in its tables is not known here and has its number instead:
//!
//! | | here | bpftool |
//! | --- | --- | --- |
//! | helper | `call 5` | `call bpf_ktime_get_ns#5` |
//! | host function | `call kfunc#7`, `call kfunc[2]#7` | `call bpf_task_acquire#7` |
//! | map | `map[fd:3]`, `map[idx:3]` | `map[id:193]` |
//! | variable | `btf[id:7]`, `btf[fd:4][id:7]` | its address |
//!
//! Loads that may fault, and accesses to the arena, look like others; the code before them tells
//! them apart.
//!
//! Key types: [`Op`], [`Program`]. Neighbours: `op` decodes, `program` keeps. Source: kernel
//! `kernel/bpf/disasm.c` (`print_bpf_insn`), `tools/bpf/bpftool/xlated_dumper.c`
//! (`dump_xlated_plain`, `print_imm`).

use std::fmt;

use super::insn::{BpfReg, code};
use super::op::{
    AluOp, AtomicOp, ByteOrder, Callee, Cond, Extend, Fetch, Imm64, Op, Operand, Size, Width,
};
use super::program::Program;

impl Program {
    /// All instructions, a line each: index, code, text.
    ///
    /// A constant of 64 bits has one line and takes two indices. Functions but the first begin with
    /// an empty line and a label, `func_7:`, which has the index of their first instruction.
    #[must_use]
    #[doc(alias = "print_bpf_insn")]
    pub fn disassemble(&self) -> String {
        Listing(self).to_string()
    }

    /// Instruction `at`, without a line's end.
    pub(super) fn line(&self, at: usize) -> Line<'_> {
        Line { program: self, at }
    }
}

struct Listing<'a>(&'a Program);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(program) = self;
        for (i, func) in program.funcs().iter().enumerate() {
            if i != 0 {
                writeln!(f, "\nfunc_{}:", func.start)?;
            }
            for at in func.start..func.end {
                if program.ops()[at].is_some() {
                    writeln!(f, "{}", program.line(at))?;
                }
            }
        }
        Ok(())
    }
}

/// One instruction of a listing: index, code, text.
pub(super) struct Line<'a> {
    program: &'a Program,
    at: usize,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, at } = *self;
        let (Some(insn), Some(Some(op))) = (program.insns().get(at), program.ops().get(at)) else {
            return Ok(());
        };
        write!(f, "{at:4}: ({:02x}) ", insn.code)?;
        match op {
            // Near enough for the short form, but written in the long one.
            Op::Jump { off } if insn.code == LONG_JUMP => write!(f, "gotol pc{off:+}"),
            op => write!(f, "{op}"),
        }
    }
}

const LONG_JUMP: u8 = code::JMP32 | code::JA;

/// The kernel's text, without index and code.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Alu {
                op,
                width,
                dst,
                src,
            } => match src {
                Operand::Reg(src) => {
                    let (dst, src) = (Part(width, dst), Part(width, src));
                    write!(f, "{dst} {} {src}", assign(op))
                }
                Operand::Imm(imm) => write!(f, "{} {} {imm}", Part(width, dst), assign(op)),
            },
            Self::Neg { width, dst } => write!(f, "{0} = -{0}", Part(width, dst)),
            Self::Movsx {
                width,
                size,
                dst,
                src,
            } => {
                let (dst, src) = (Part(width, dst), Part(width, src));
                write!(f, "{dst} = ({}){src}", ty(size, Extend::Sign))
            }
            Self::End { order, size, dst } => {
                let order = match order {
                    ByteOrder::Le => "le",
                    ByteOrder::Be => "be",
                    ByteOrder::Swap => "bswap",
                };
                write!(f, "{dst} = {order}{} {dst}", size.bits())
            }
            Self::AddrSpaceCast { dst, src, to, from } => {
                write!(f, "{dst} = addr_space_cast({src}, {to}, {from})")
            }
            Self::LdImm64 { dst, imm } => write!(f, "{dst} = {imm}"),
            Self::Load {
                size,
                extend,
                fault: _,
                dst,
                src,
                off,
            } => write!(f, "{dst} = *{}", Place(ty(size, extend), src, off)),
            Self::Store {
                size,
                dst,
                off,
                src,
            } => {
                write!(f, "*{} = ", Place(ty(size, Extend::Zero), dst, off))?;
                match src {
                    Operand::Reg(src) => write!(f, "{src}"),
                    Operand::Imm(imm) => write!(f, "{imm}"),
                }
            }
            Self::Atomic {
                op,
                size,
                dst,
                off,
                src,
            } => {
                let place = Place(ty(size, Extend::Zero), dst, off);
                atomic(f, op, size, place, src)
            }
            Self::LoadAcquire {
                size,
                dst,
                src,
                off,
            } => {
                let place = Place(ty(size, Extend::Zero), src, off);
                write!(f, "{dst} = load_acquire({place})")
            }
            Self::StoreRelease {
                size,
                dst,
                off,
                src,
            } => {
                let place = Place(ty(size, Extend::Zero), dst, off);
                write!(f, "store_release({place}, {src})")
            }
            Self::Arena(access) => write!(f, "{}", access.plain()),
            Self::Jump { off } if i16::try_from(off).is_ok() => write!(f, "goto pc{off:+}"),
            Self::Jump { off } => write!(f, "gotol pc{off:+}"),
            Self::JumpReg { dst } => write!(f, "gotox {dst}"),
            Self::MayGoto { off } => write!(f, "may_goto pc{off:+}"),
            Self::Branch {
                cond,
                width,
                dst,
                src,
                off,
            } => {
                write!(f, "if {} {} ", Part(width, dst), compare(cond))?;
                match src {
                    Operand::Reg(src) => write!(f, "{}", Part(width, src))?,
                    // Also of signed conditions, and never more than 32 bits.
                    Operand::Imm(imm) => write!(f, "{imm:#x}")?,
                }
                write!(f, " goto pc{off:+}")
            }
            Self::Call(callee) => write!(f, "call {callee}"),
            Self::Exit => f.write_str("exit"),
        }
    }
}

fn atomic(
    f: &mut fmt::Formatter<'_>,
    op: AtomicOp,
    size: Size,
    place: Place,
    src: BpfReg,
) -> fmt::Result {
    let (fetch, sign, name) = match op {
        AtomicOp::Add(fetch) => (fetch, "+=", "fetch_add"),
        AtomicOp::Or(fetch) => (fetch, "|=", "fetch_or"),
        AtomicOp::And(fetch) => (fetch, "&=", "fetch_and"),
        AtomicOp::Xor(fetch) => (fetch, "^=", "fetch_xor"),
        AtomicOp::Xchg => (Fetch::Yes, "", "xchg"),
        AtomicOp::Cmpxchg => (Fetch::Yes, "", "cmpxchg"),
    };
    let bits = if size == Size::Dw { "64" } else { "" };
    match (op, fetch) {
        (AtomicOp::Cmpxchg, _) => write!(f, "r0 = atomic{bits}_{name}({place}, r0, {src})"),
        (_, Fetch::Yes) => write!(f, "{src} = atomic{bits}_{name}({place}, {src})"),
        (_, Fetch::No) => write!(f, "lock *{place} {sign} {src}"),
    }
}

impl fmt::Display for Imm64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Value(value) => write!(f, "{value:#x}"),
            Self::MapFd(fd) => write!(f, "map[fd:{fd}]"),
            Self::MapValue { fd, off } => write!(f, "map[fd:{fd}][0]+{off}"),
            Self::BtfId { id, object: 0 } => write!(f, "btf[id:{id}]"),
            Self::BtfId { id, object } => write!(f, "btf[fd:{object}][id:{id}]"),
            Self::Func(off) => write!(f, "subprog[{off:+}]"),
            Self::MapIdx(idx) => write!(f, "map[idx:{idx}]"),
            Self::MapIdxValue { idx, off } => write!(f, "map[idx:{idx}]+{off}"),
        }
    }
}

impl fmt::Display for Callee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Helper(id) => write!(f, "{id}"),
            Self::Local(off) => write!(f, "pc{off:+}"),
            Self::Host { id, object: 0 } => write!(f, "kfunc#{id}"),
            Self::Host { id, object } => write!(f, "kfunc[{object}]#{id}"),
        }
    }
}

/// As much of a register as an instruction of this width looks at: `r3`, or `w3`.
struct Part(Width, BpfReg);

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(Width::W64, reg) => write!(f, "{reg}"),
            Self(Width::W32, reg) => write!(f, "w{}", reg.num()),
        }
    }
}

/// A typed pointer: `(u32 *)(r1 +8)`.
struct Place(&'static str, BpfReg, i16);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(ty, reg, off) = self;
        write!(f, "({ty} *)({reg} {off:+})")
    }
}

const fn ty(size: Size, extend: Extend) -> &'static str {
    match (extend, size) {
        (Extend::Zero, Size::B) => "u8",
        (Extend::Zero, Size::H) => "u16",
        (Extend::Zero, Size::W) => "u32",
        (Extend::Zero, Size::Dw) => "u64",
        (Extend::Sign, Size::B) => "s8",
        (Extend::Sign, Size::H) => "s16",
        (Extend::Sign, Size::W) => "s32",
        (Extend::Sign, Size::Dw) => "s64",
    }
}

const fn assign(op: AluOp) -> &'static str {
    match op {
        AluOp::Add => "+=",
        AluOp::Sub => "-=",
        AluOp::Mul => "*=",
        AluOp::Div => "/=",
        AluOp::SDiv => "s/=",
        AluOp::Or => "|=",
        AluOp::And => "&=",
        AluOp::Lsh => "<<=",
        AluOp::Rsh => ">>=",
        AluOp::Mod => "%=",
        AluOp::SMod => "s%=",
        AluOp::Xor => "^=",
        AluOp::Mov => "=",
        AluOp::Arsh => "s>>=",
    }
}

const fn compare(cond: Cond) -> &'static str {
    match cond {
        Cond::Eq => "==",
        Cond::Gt => ">",
        Cond::Ge => ">=",
        Cond::Set => "&",
        Cond::Ne => "!=",
        Cond::Sgt => "s>",
        Cond::Sge => "s>=",
        Cond::Lt => "<",
        Cond::Le => "<=",
        Cond::Slt => "s<",
        Cond::Sle => "s<=",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::insn::BpfInsn;
    use super::super::op::Fault;
    use super::*;

    /// `regs` is the second byte: source, then destination.
    fn insn(code: u8, regs: u8, off: i16, imm: i32) -> BpfInsn {
        BpfInsn {
            code,
            dst: regs & 15,
            src: regs >> 4,
            off,
            imm,
        }
    }

    fn text(insns: &[BpfInsn]) -> String {
        Op::decode(insns).unwrap().to_string()
    }

    #[test]
    #[rustfmt::skip]
    fn one_instruction_is_as_the_kernel_prints_it() {
        for (code, regs, off, imm, want) in [
            // Arithmetic on 64 bits.
            (0x07, 0x02, 0, -8, "r2 += -8"),
            (0x0f, 0x23, 0, 0, "r3 += r2"),
            (0x17, 0x0a, 0, 1, "r10 -= 1"),
            (0x1f, 0x21, 0, 0, "r1 -= r2"),
            (0x27, 0x00, 0, 4, "r0 *= 4"),
            (0x2f, 0x10, 0, 0, "r0 *= r1"),
            (0x37, 0x00, 0, 3, "r0 /= 3"),
            (0x37, 0x00, 1, -3, "r0 s/= -3"),
            (0x3f, 0x10, 0, 0, "r0 /= r1"),
            (0x3f, 0x10, 1, 0, "r0 s/= r1"),
            (0x47, 0x00, 0, i32::MIN, "r0 |= -2147483648"),
            (0x4f, 0x98, 0, 0, "r8 |= r9"),
            (0x57, 0x01, 0, 255, "r1 &= 255"),
            (0x5f, 0x21, 0, 0, "r1 &= r2"),
            (0x67, 0x03, 0, 3, "r3 <<= 3"),
            (0x6f, 0x43, 0, 0, "r3 <<= r4"),
            (0x77, 0x03, 0, 32, "r3 >>= 32"),
            (0x7f, 0x43, 0, 0, "r3 >>= r4"),
            (0x87, 0x01, 0, 0, "r1 = -r1"),
            (0x97, 0x01, 0, 10, "r1 %= 10"),
            (0x97, 0x01, 1, 10, "r1 s%= 10"),
            (0x9f, 0x21, 0, 0, "r1 %= r2"),
            (0x9f, 0x21, 1, 0, "r1 s%= r2"),
            (0xa7, 0x01, 0, -1, "r1 ^= -1"),
            (0xaf, 0x21, 0, 0, "r1 ^= r2"),
            (0xb7, 0x00, 0, 1, "r0 = 1"),
            (0xbf, 0x17, 0, 0, "r7 = r1"),
            (0xc7, 0x03, 0, 4, "r3 s>>= 4"),
            (0xcf, 0x43, 0, 0, "r3 s>>= r4"),
            // On 32.
            (0x04, 0x01, 0, 7, "w1 += 7"),
            (0x0c, 0x21, 0, 0, "w1 += w2"),
            (0x3c, 0x10, 1, 0, "w0 s/= w1"),
            (0x34, 0x00, 0, 2, "w0 /= 2"),
            (0x84, 0x02, 0, 0, "w2 = -w2"),
            (0x94, 0x02, 1, -7, "w2 s%= -7"),
            (0xb4, 0x05, 0, -1, "w5 = -1"),
            (0xbc, 0xa0, 0, 0, "w0 = w10"),
            (0xc4, 0x03, 0, 31, "w3 s>>= 31"),
            (0xcc, 0x43, 0, 0, "w3 s>>= w4"),
            // Moves that extend, and of address spaces.
            (0xbf, 0x21, 8, 0, "r1 = (s8)r2"),
            (0xbf, 0x21, 16, 0, "r1 = (s16)r2"),
            (0xbf, 0x21, 32, 0, "r1 = (s32)r2"),
            (0xbc, 0x21, 8, 0, "w1 = (s8)w2"),
            (0xbc, 0x21, 16, 0, "w1 = (s16)w2"),
            (0xbf, 0x21, 1, 1, "r1 = addr_space_cast(r2, 0, 1)"),
            (0xbf, 0x21, 1, 0x1_0000, "r1 = addr_space_cast(r2, 1, 0)"),
            // Byte order.
            (0xd4, 0x01, 0, 16, "r1 = le16 r1"),
            (0xd4, 0x01, 0, 64, "r1 = le64 r1"),
            (0xdc, 0x01, 0, 16, "r1 = be16 r1"),
            (0xdc, 0x02, 0, 32, "r2 = be32 r2"),
            (0xd7, 0x02, 0, 16, "r2 = bswap16 r2"),
            (0xd7, 0x01, 0, 32, "r1 = bswap32 r1"),
            (0xd7, 0x01, 0, 64, "r1 = bswap64 r1"),
            // Loads; the kernel's own marks (0x20, 0x40) do not show.
            (0x71, 0x10, 3, 0, "r0 = *(u8 *)(r1 +3)"),
            (0x69, 0x10, 0, 0, "r0 = *(u16 *)(r1 +0)"),
            (0x61, 0x10, -4, 0, "r0 = *(u32 *)(r1 -4)"),
            (0x79, 0xa2, -512, 0, "r2 = *(u64 *)(r10 -512)"),
            (0x91, 0x10, 1, 0, "r0 = *(s8 *)(r1 +1)"),
            (0x89, 0x10, i16::MAX, 0, "r0 = *(s16 *)(r1 +32767)"),
            (0x81, 0x10, i16::MIN, 0, "r0 = *(s32 *)(r1 -32768)"),
            (0x39, 0x10, 8, 0, "r0 = *(u64 *)(r1 +8)"),
            (0x51, 0x10, 8, 0, "r0 = *(s8 *)(r1 +8)"),
            // The arena's too (0xa0, 0xc0, 0xe0).
            (0xb9, 0x10, 8, 0, "r0 = *(u64 *)(r1 +8)"),
            (0xd1, 0x10, 8, 0, "r0 = *(s8 *)(r1 +8)"),
            (0xb2, 0x01, -1, 255, "*(u8 *)(r1 -1) = 255"),
            (0xbb, 0x21, -8, 0, "*(u64 *)(r1 -8) = r2"),
            (0xfb, 0x21, 0, 0xf1, "r0 = atomic64_cmpxchg((u64 *)(r1 +0), r0, r2)"),
            (0xf3, 0x10, 0, 0x100, "r0 = load_acquire((u8 *)(r1 +0))"),
            // Stores.
            (0x72, 0x0a, -1, 255, "*(u8 *)(r10 -1) = 255"),
            (0x6a, 0x01, 2, -2, "*(u16 *)(r1 +2) = -2"),
            (0x62, 0x0a, -8, 5, "*(u32 *)(r10 -8) = 5"),
            (0x7a, 0x0a, -512, -256, "*(u64 *)(r10 -512) = -256"),
            (0x73, 0x21, 0, 0, "*(u8 *)(r1 +0) = r2"),
            (0x6b, 0x21, 0, 0, "*(u16 *)(r1 +0) = r2"),
            (0x63, 0x06, 44, 0, "*(u32 *)(r6 +44) = r0"),
            (0x7b, 0x1a, -8, 0, "*(u64 *)(r10 -8) = r1"),
            // Atomic instructions.
            (0xc3, 0x21, 0, 0x00, "lock *(u32 *)(r1 +0) += r2"),
            (0xdb, 0x12, 0, 0x00, "lock *(u64 *)(r2 +0) += r1"),
            (0xdb, 0x03, 0, 0x40, "lock *(u64 *)(r3 +0) |= r0"),
            (0xdb, 0x11, 94, 0x50, "lock *(u64 *)(r1 +94) &= r1"),
            (0xc3, 0x21, -8, 0xa0, "lock *(u32 *)(r1 -8) ^= r2"),
            (0xdb, 0x2a, -8, 0x01, "r2 = atomic64_fetch_add((u64 *)(r10 -8), r2)"),
            (0xc3, 0x21, 0, 0x01, "r2 = atomic_fetch_add((u32 *)(r1 +0), r2)"),
            (0xc3, 0x21, 0, 0x41, "r2 = atomic_fetch_or((u32 *)(r1 +0), r2)"),
            (0xdb, 0x03, 0, 0x51, "r0 = atomic64_fetch_and((u64 *)(r3 +0), r0)"),
            (0xdb, 0x03, 0, 0xa1, "r0 = atomic64_fetch_xor((u64 *)(r3 +0), r0)"),
            (0xdb, 0x10, 0, 0xe1, "r1 = atomic64_xchg((u64 *)(r0 +0), r1)"),
            (0xc3, 0x10, 4, 0xe1, "r1 = atomic_xchg((u32 *)(r0 +4), r1)"),
            (0xdb, 0x21, 0, 0xf1, "r0 = atomic64_cmpxchg((u64 *)(r1 +0), r0, r2)"),
            (0xc3, 0x21, 0, 0xf1, "r0 = atomic_cmpxchg((u32 *)(r1 +0), r0, r2)"),
            (0xd3, 0x10, 0, 0x100, "r0 = load_acquire((u8 *)(r1 +0))"),
            (0xc3, 0x10, -4, 0x100, "r0 = load_acquire((u32 *)(r1 -4))"),
            (0xcb, 0x21, 0, 0x110, "store_release((u16 *)(r1 +0), r2)"),
            (0xdb, 0x1a, -8, 0x110, "store_release((u64 *)(r10 -8), r1)"),
            // Jumps.
            (0x05, 0x00, 0, 0, "goto pc+0"),
            (0x05, 0x00, 3, 0, "goto pc+3"),
            (0x05, 0x00, -1, 0, "goto pc-1"),
            (0x06, 0x00, 0, -100_000, "gotol pc-100000"),
            (0x06, 0x00, 0, 32768, "gotol pc+32768"),
            (0xe5, 0x00, 2, 0, "may_goto pc+2"),
            // Branches: constants are hexadecimal, always.
            (0x15, 0x01, 2, 0, "if r1 == 0x0 goto pc+2"),
            (0x1d, 0x44, 0, 0, "if r4 == r4 goto pc+0"),
            (0x25, 0x03, 666, 4, "if r3 > 0x4 goto pc+666"),
            (0x2d, 0x21, 1, 0, "if r1 > r2 goto pc+1"),
            (0x35, 0x01, 1, 16, "if r1 >= 0x10 goto pc+1"),
            (0x45, 0x01, 1, 7, "if r1 & 0x7 goto pc+1"),
            (0x55, 0x01, -1, 0, "if r1 != 0x0 goto pc-1"),
            (0x65, 0x01, 2, 5, "if r1 s> 0x5 goto pc+2"),
            (0x75, 0x01, 2, -1, "if r1 s>= 0xffffffff goto pc+2"),
            (0xa5, 0x01, 2, 5, "if r1 < 0x5 goto pc+2"),
            (0xb5, 0x00, -2, 0, "if r0 <= 0x0 goto pc-2"),
            (0xc5, 0x00, 2, -4095, "if r0 s< 0xfffff001 goto pc+2"),
            (0xdd, 0x21, 2, 0, "if r1 s<= r2 goto pc+2"),
            (0x4e, 0x21, -3, 0, "if w1 & w2 goto pc-3"),
            (0x7e, 0x88, 15, 0, "if w8 s>= w8 goto pc+15"),
            (0x16, 0x00, 1, -1, "if w0 == 0xffffffff goto pc+1"),
            (0xd6, 0x03, 1, 9, "if w3 s<= 0x9 goto pc+1"),
            // Calls.
            (0x85, 0x00, 0, 5, "call 5"),
            (0x85, 0x10, 0, 7, "call pc+7"),
            (0x85, 0x10, 0, -3, "call pc-3"),
            (0x85, 0x20, 0, 1234, "call kfunc#1234"),
            (0x85, 0x20, 2, 1234, "call kfunc[2]#1234"),
            (0x95, 0x00, 0, 0, "exit"),
        ] {
            assert_eq!(text(&[insn(code, regs, off, imm)]), want, "{code:#04x}");
        }
    }

    #[test]
    fn a_constant_says_what_it_stands_for() {
        for (regs, lo, hi, want) in [
            (0x03, 0, 0, "r3 = 0x0"),
            (0x01, 0x2345_6789, 1, "r1 = 0x123456789"),
            (0x02, 0x256c_6c78, 0x2020_2000, "r2 = 0x20202000256c6c78"),
            (0x02, -1, 0, "r2 = 0xffffffff"),
            (0x02, -2, -1, "r2 = 0xfffffffffffffffe"),
            (0x11, 3, 0, "r1 = map[fd:3]"),
            (0x21, 193, 0, "r1 = map[fd:193][0]+0"),
            (0x21, 3, 16, "r1 = map[fd:3][0]+16"),
            (0x36, 77, 0, "r6 = btf[id:77]"),
            (0x36, 77, 4, "r6 = btf[fd:4][id:77]"),
            (0x42, 17, 0, "r2 = subprog[+17]"),
            (0x42, -9, 0, "r2 = subprog[-9]"),
            (0x51, 1, 0, "r1 = map[idx:1]"),
            (0x61, 0, 5584, "r1 = map[idx:0]+5584"),
        ] {
            let insns = [insn(0x18, regs, 0, lo), insn(0, 0, 0, hi)];
            assert_eq!(text(&insns), want);
        }
    }

    /// What the kernel's text does not tell apart: whether a load may fault.
    fn as_printed(op: Op) -> Op {
        match op {
            Op::Load {
                size,
                extend,
                dst,
                src,
                off,
                fault: _,
            } => Op::Load {
                size,
                extend,
                fault: Fault::Fatal,
                dst,
                src,
                off,
            },
            Op::Arena(access) => as_printed(access.plain()),
            op => op,
        }
    }

    #[test]
    fn what_differs_is_printed_differently() {
        let imms = [
            0, 1, -1, 16, 32, 64, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, 0xe1, 0xf1, 0x100, 0x110,
            0x1_0000,
        ];
        let mut seen: HashMap<String, Op> = HashMap::new();
        let mut codes = 0;
        for code in 0..=u8::MAX {
            let mut known = false;
            for (regs, next) in (0..=0x77).flat_map(|regs| [(regs, 0), (regs, 1)]) {
                for (off, imm) in [0, 1, 8, 16, 32, -1]
                    .map(|off| imms.map(|imm| (off, imm)))
                    .concat()
                {
                    let insns = [insn(code, regs, off, imm), insn(0, 0, 0, next)];
                    let Ok(op) = Op::decode(&insns) else {
                        continue;
                    };
                    known = true;
                    let text = op.to_string();
                    assert!(
                        !text.is_empty() && text.trim() == text && text.is_ascii(),
                        "{op:?}"
                    );
                    let op = as_printed(op);
                    let before = *seen.entry(text).or_insert(op);
                    assert_eq!(before, op, "both are {op}");
                }
            }
            codes += usize::from(known);
        }
        assert!(codes > 120 && seen.len() > 20_000, "{codes} {}", seen.len());
    }

    #[test]
    fn a_listing_has_index_and_code_and_labels() {
        let program = Program::new(vec![
            insn(0x18, 0x02, 0, 7),
            insn(0, 0, 0, 1),
            insn(0x39, 0x13, 8, 0),
            insn(0x06, 0x00, 0, 0),
            insn(0x05, 0x00, 0, 0),
            insn(0x85, 0x10, 0, 2),
            insn(0xb7, 0x00, 0, 0),
            insn(0x95, 0x00, 0, 0),
            insn(0xb7, 0x00, 0, 1),
            insn(0x95, 0x00, 0, 0),
        ]);
        let want = "   0: (18) r2 = 0x100000007
   2: (39) r3 = *(u64 *)(r1 +8)
   3: (06) gotol pc+0
   4: (05) goto pc+0
   5: (85) call pc+2
   6: (b7) r0 = 0
   7: (95) exit

func_8:
   8: (b7) r0 = 1
   9: (95) exit
";
        assert_eq!(program.unwrap().disassemble(), want);
    }
}
