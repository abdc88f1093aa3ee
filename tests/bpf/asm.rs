//! Writes instructions, from the tables of RFC 9669 and nothing else.
//!
//! ```text
//!   byte  0      1           2..4     4..8
//!         code   src | dst   off      imm         little-endian
//! ```
//!
//! Key type: [`Insn`], whose fields a row may spoil: `Insn { off: 1, ..neg64(R0) }`.

/// An instruction, right or wrong.
#[derive(Copy, Clone, Default)]
pub(crate) struct Insn {
    pub(crate) code: u8,
    pub(crate) dst: u8,
    pub(crate) src: u8,
    pub(crate) off: i16,
    pub(crate) imm: i32,
    /// The second half of a constant of 64 bits.
    pub(crate) second: Option<Second>,
}

/// The second half of a constant: four bytes that are zero, and the upper 32 bits.
#[derive(Copy, Clone, Default)]
pub(crate) struct Second {
    pub(crate) zeros: [u8; 4],
    pub(crate) imm: u32,
}

impl Insn {
    /// Its bytes, 8 or 16.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![self.code, self.src << 4 | self.dst];
        bytes.extend(self.off.to_le_bytes());
        bytes.extend(self.imm.to_le_bytes());
        if let Some(second) = self.second {
            bytes.extend(second.zeros);
            bytes.extend(second.imm.to_le_bytes());
        }
        bytes
    }
}

/// A register by its number.
#[derive(Copy, Clone)]
pub(crate) struct Reg(pub(crate) u8);

pub(crate) const R0: Reg = Reg(0);
pub(crate) const R1: Reg = Reg(1);
pub(crate) const R2: Reg = Reg(2);
pub(crate) const R3: Reg = Reg(3);
pub(crate) const R4: Reg = Reg(4);
pub(crate) const R5: Reg = Reg(5);
pub(crate) const R6: Reg = Reg(6);
pub(crate) const R7: Reg = Reg(7);
pub(crate) const R8: Reg = Reg(8);
pub(crate) const R9: Reg = Reg(9);
pub(crate) const R10: Reg = Reg(10);
/// The first that does not exist.
pub(crate) const R11: Reg = Reg(11);

/// A register (the code's bit 3) or a constant.
#[derive(Copy, Clone)]
pub(crate) enum Src {
    Reg(Reg),
    Imm(i32),
}

impl From<Reg> for Src {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

impl From<i32> for Src {
    fn from(imm: i32) -> Self {
        Self::Imm(imm)
    }
}

/// A signed number as its 64 bits.
pub(crate) const fn s(value: i64) -> u64 {
    value as u64
}

/// The constant whose sign extension is `value`, if there is one.
pub(crate) fn imm_of(value: u64) -> Option<i32> {
    i32::try_from(value as i64).ok()
}

fn with_src(code: u8, dst: Reg, off: i16, src: Src) -> Insn {
    let (code, src, imm) = match src {
        Src::Reg(reg) => (code | 0x08, reg.0, 0),
        Src::Imm(imm) => (code, 0, imm),
    };
    Insn {
        code,
        dst: dst.0,
        src,
        off,
        imm,
        second: None,
    }
}

/// Chapter 4.1: a name, the code's upper half, the offset.
#[derive(Copy, Clone)]
pub(crate) struct Alu(pub(crate) &'static str, u8, i16);

pub(crate) const ADD: Alu = Alu("add", 0x00, 0);
pub(crate) const SUB: Alu = Alu("sub", 0x10, 0);
pub(crate) const MUL: Alu = Alu("mul", 0x20, 0);
pub(crate) const DIV: Alu = Alu("div", 0x30, 0);
pub(crate) const SDIV: Alu = Alu("sdiv", 0x30, 1);
pub(crate) const OR: Alu = Alu("or", 0x40, 0);
pub(crate) const AND: Alu = Alu("and", 0x50, 0);
pub(crate) const LSH: Alu = Alu("lsh", 0x60, 0);
pub(crate) const RSH: Alu = Alu("rsh", 0x70, 0);
pub(crate) const MOD: Alu = Alu("mod", 0x90, 0);
pub(crate) const SMOD: Alu = Alu("smod", 0x90, 1);
pub(crate) const XOR: Alu = Alu("xor", 0xa0, 0);
pub(crate) const MOV: Alu = Alu("mov", 0xb0, 0);
pub(crate) const ARSH: Alu = Alu("arsh", 0xc0, 0);

pub(crate) fn alu64(op: Alu, dst: Reg, src: impl Into<Src>) -> Insn {
    with_src(0x07 | op.1, dst, op.2, src.into())
}

pub(crate) fn alu32(op: Alu, dst: Reg, src: impl Into<Src>) -> Insn {
    with_src(0x04 | op.1, dst, op.2, src.into())
}

/// The two that every program needs.
pub(crate) fn mov(dst: Reg, src: impl Into<Src>) -> Insn {
    alu64(MOV, dst, src)
}

pub(crate) fn add(dst: Reg, src: impl Into<Src>) -> Insn {
    alu64(ADD, dst, src)
}

pub(crate) fn neg64(dst: Reg) -> Insn {
    with_src(0x87, dst, 0, Src::Imm(0))
}

pub(crate) fn neg32(dst: Reg) -> Insn {
    with_src(0x84, dst, 0, Src::Imm(0))
}

/// `bits`: 8, 16, 32.
pub(crate) fn movsx64(bits: i16, dst: Reg, src: Reg) -> Insn {
    with_src(0xb7, dst, bits, Src::Reg(src))
}

/// `bits`: 8, 16.
pub(crate) fn movsx32(bits: i16, dst: Reg, src: Reg) -> Insn {
    with_src(0xb4, dst, bits, Src::Reg(src))
}

/// Chapter 4.2. `bits`: 16, 32, 64.
pub(crate) fn le(bits: i32, dst: Reg) -> Insn {
    with_src(0xd4, dst, 0, Src::Imm(bits))
}

pub(crate) fn be(bits: i32, dst: Reg) -> Insn {
    let code = 0xdc;
    Insn {
        code,
        ..le(bits, dst)
    }
}

pub(crate) fn bswap(bits: i32, dst: Reg) -> Insn {
    with_src(0xd7, dst, 0, Src::Imm(bits))
}

/// Chapter 4.3: a name, the code's upper half.
#[derive(Copy, Clone, Eq, PartialEq)]
pub(crate) struct Cond(pub(crate) &'static str, u8);

pub(crate) const EQ: Cond = Cond("jeq", 0x10);
pub(crate) const GT: Cond = Cond("jgt", 0x20);
pub(crate) const GE: Cond = Cond("jge", 0x30);
pub(crate) const SET: Cond = Cond("jset", 0x40);
pub(crate) const NE: Cond = Cond("jne", 0x50);
pub(crate) const SGT: Cond = Cond("jsgt", 0x60);
pub(crate) const SGE: Cond = Cond("jsge", 0x70);
pub(crate) const LT: Cond = Cond("jlt", 0xa0);
pub(crate) const LE: Cond = Cond("jle", 0xb0);
pub(crate) const SLT: Cond = Cond("jslt", 0xc0);
pub(crate) const SLE: Cond = Cond("jsle", 0xd0);

pub(crate) fn jmp64(cond: Cond, dst: Reg, src: impl Into<Src>, off: i16) -> Insn {
    with_src(0x05 | cond.1, dst, off, src.into())
}

pub(crate) fn jmp32(cond: Cond, dst: Reg, src: impl Into<Src>, off: i16) -> Insn {
    with_src(0x06 | cond.1, dst, off, src.into())
}

pub(crate) fn ja(off: i16) -> Insn {
    with_src(0x05, R0, off, Src::Imm(0))
}

/// The long jump, its distance in `imm`.
pub(crate) fn ja32(off: i32) -> Insn {
    with_src(0x06, R0, 0, Src::Imm(off))
}

pub(crate) fn call_helper(id: i32) -> Insn {
    with_src(0x85, R0, 0, Src::Imm(id))
}

pub(crate) fn call_local(off: i32) -> Insn {
    let src = 1;
    Insn {
        src,
        ..call_helper(off)
    }
}

pub(crate) fn call_host(id: i32) -> Insn {
    let src = 2;
    Insn {
        src,
        ..call_helper(id)
    }
}

pub(crate) fn exit() -> Insn {
    with_src(0x95, R0, 0, Src::Imm(0))
}

/// Chapter 5: a name, the code's size bits.
#[derive(Copy, Clone)]
pub(crate) struct Size(pub(crate) &'static str, u8);

pub(crate) const B: Size = Size("8", 0x10);
pub(crate) const H: Size = Size("16", 0x08);
pub(crate) const W: Size = Size("32", 0x00);
pub(crate) const DW: Size = Size("64", 0x18);

fn access(code: u8, size: Size, dst: Reg, src: Reg, off: i16, imm: i32) -> Insn {
    Insn {
        code: code | size.1,
        dst: dst.0,
        src: src.0,
        off,
        imm,
        second: None,
    }
}

/// `dst = *(size *)(src + off)`.
pub(crate) fn ldx(size: Size, dst: Reg, src: Reg, off: i16) -> Insn {
    access(0x61, size, dst, src, off, 0)
}

/// The same, sign-extended.
pub(crate) fn ldsx(size: Size, dst: Reg, src: Reg, off: i16) -> Insn {
    access(0x81, size, dst, src, off, 0)
}

/// `*(size *)(dst + off) = imm`.
pub(crate) fn st(size: Size, dst: Reg, off: i16, imm: i32) -> Insn {
    access(0x62, size, dst, R0, off, imm)
}

/// `*(size *)(dst + off) = src`.
pub(crate) fn stx(size: Size, dst: Reg, off: i16, src: Reg) -> Insn {
    access(0x63, size, dst, src, off, 0)
}

/// `dst` = all 64 bits of `value`.
pub(crate) fn ld_imm64(dst: Reg, value: u64) -> Insn {
    let second = Second {
        imm: (value >> 32) as u32,
        ..Second::default()
    };
    Insn {
        code: 0x18,
        dst: dst.0,
        imm: value as i32,
        second: Some(second),
        ..Insn::default()
    }
}

/// Chapter 5.3; the last two are the kernel's.
pub(crate) mod atomic {
    pub(crate) const ADD: i32 = 0x00;
    pub(crate) const OR: i32 = 0x40;
    pub(crate) const AND: i32 = 0x50;
    pub(crate) const XOR: i32 = 0xa0;
    pub(crate) const FETCH: i32 = 0x01;
    pub(crate) const XCHG: i32 = 0xe1;
    pub(crate) const CMPXCHG: i32 = 0xf1;
    pub(crate) const LOAD_ACQ: i32 = 0x100;
    pub(crate) const STORE_REL: i32 = 0x110;
}

/// `op` on `*(size *)(dst + off)` with `src`.
pub(crate) fn atomically(size: Size, op: i32, dst: Reg, off: i16, src: Reg) -> Insn {
    access(0xc3, size, dst, src, off, op)
}
