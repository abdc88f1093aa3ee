//! One instruction, as it is encoded.
//!
//! ```text
//!   byte  0      1           2..4     4..8
//!         code   src | dst   off      imm         little-endian
//!                7:4   3:0
//! ```
//!
//! Key types: [`BpfInsn`], [`BpfReg`]. Neighbour: `op`, which says what it means. Source: RFC 9669,
//! chapter 3; kernel `include/uapi/linux/bpf.h` (`struct bpf_insn`).

use std::fmt;

/// Bytes of an instruction.
pub const INSN_BYTES: usize = 8;

/// An encoded instruction. Any value is possible; [`Op::decode`](super::Op::decode) says which mean
/// something.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
#[doc(alias = "bpf_insn")]
pub struct BpfInsn {
    /// Class, and what the class makes of the other bits.
    pub code: u8,
    /// The destination register's number, 0 to 15.
    pub dst: u8,
    /// The source register's number, 0 to 15.
    pub src: u8,
    /// A displacement: bytes of memory, or instructions to jump over.
    pub off: i16,
    /// A constant.
    pub imm: i32,
}

impl BpfInsn {
    /// From its eight bytes.
    #[must_use]
    pub const fn from_bytes(b: [u8; INSN_BYTES]) -> Self {
        Self {
            code: b[0],
            dst: b[1] & 15,
            src: b[1] >> 4,
            off: i16::from_le_bytes([b[2], b[3]]),
            imm: i32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    /// Its eight bytes; registers keep their low four bits.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; INSN_BYTES] {
        let [o0, o1] = self.off.to_le_bytes();
        let [i0, i1, i2, i3] = self.imm.to_le_bytes();
        let regs = (self.src & 15) << 4 | self.dst & 15;
        [self.code, regs, o0, o1, i0, i1, i2, i3]
    }
}

/// A register of the BPF machine.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
#[repr(u8)]
pub enum BpfReg {
    /// Return value.
    R0,
    /// First argument; a call may change it, and so up to `R5`.
    R1,
    /// Second argument.
    R2,
    /// Third argument.
    R3,
    /// Fourth argument.
    R4,
    /// Fifth argument.
    R5,
    /// Kept by calls; and so up to `R9`.
    R6,
    /// Kept by calls.
    R7,
    /// Kept by calls.
    R8,
    /// Kept by calls.
    R9,
    /// The end of the function's stack; cannot be written.
    R10,
}

impl BpfReg {
    /// All eleven, in order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::R0,
        Self::R1,
        Self::R2,
        Self::R3,
        Self::R4,
        Self::R5,
        Self::R6,
        Self::R7,
        Self::R8,
        Self::R9,
        Self::R10,
    ];

    /// The register with this number; `None` above 10.
    #[must_use]
    pub const fn from_num(num: u8) -> Option<Self> {
        if num < 11 {
            Some(Self::ALL[num as usize])
        } else {
            None
        }
    }

    /// The number that instructions carry.
    #[must_use]
    pub const fn num(self) -> u8 {
        self as u8
    }

    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for BpfReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.num())
    }
}

/// The bits of [`BpfInsn::code`]. RFC 9669, chapters 3 to 5.
pub(crate) mod code {
    pub(crate) const CLASS: u8 = 0x07;
    pub(crate) const LD: u8 = 0x00;
    pub(crate) const LDX: u8 = 0x01;
    pub(crate) const ST: u8 = 0x02;
    pub(crate) const STX: u8 = 0x03;
    pub(crate) const ALU: u8 = 0x04;
    pub(crate) const JMP: u8 = 0x05;
    pub(crate) const JMP32: u8 = 0x06;
    pub(crate) const ALU64: u8 = 0x07;

    /// The source is a register.
    pub(crate) const X: u8 = 0x08;
    /// The operation of arithmetic and jumps.
    pub(crate) const OPERATION: u8 = 0xf0;

    pub(crate) const NEG: u8 = 0x80;
    pub(crate) const MOV: u8 = 0xb0;
    pub(crate) const DIV: u8 = 0x30;
    pub(crate) const MOD: u8 = 0x90;
    pub(crate) const END: u8 = 0xd0;

    pub(crate) const JA: u8 = 0x00;
    pub(crate) const CALL: u8 = 0x80;
    pub(crate) const EXIT: u8 = 0x90;
    pub(crate) const JCOND: u8 = 0xe0;

    /// The size of memory accesses.
    pub(crate) const SIZE: u8 = 0x18;
    pub(crate) const W: u8 = 0x00;
    pub(crate) const H: u8 = 0x08;
    pub(crate) const B: u8 = 0x10;
    pub(crate) const DW: u8 = 0x18;

    /// The mode of memory accesses.
    pub(crate) const MODE: u8 = 0xe0;
    pub(crate) const IMM: u8 = 0x00;
    pub(crate) const ABS: u8 = 0x20;
    pub(crate) const IND: u8 = 0x40;
    pub(crate) const MEM: u8 = 0x60;
    pub(crate) const MEMSX: u8 = 0x80;
    pub(crate) const ATOMIC: u8 = 0xc0;
    /// The kernel's marks of loads that may fault; `ABS` and `IND` mean something else for `LD`.
    pub(crate) const PROBE_MEM: u8 = 0x20;
    pub(crate) const PROBE_MEMSX: u8 = 0x40;
    /// The kernel's marks of arena accesses; the last two are `ATOMIC` and nothing otherwise.
    pub(crate) const PROBE_MEM32: u8 = 0xa0;
    pub(crate) const PROBE_MEM32SX: u8 = 0xc0;
    pub(crate) const PROBE_ATOMIC: u8 = 0xe0;

    pub(crate) const XCHG: i32 = 0xe1;
    pub(crate) const CMPXCHG: i32 = 0xf1;
    pub(crate) const LOAD_ACQ: i32 = 0x100;
    pub(crate) const STORE_REL: i32 = 0x110;

    pub(crate) const PSEUDO_CALL: u8 = 1;
    pub(crate) const PSEUDO_KFUNC_CALL: u8 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_where_the_rfc_has_them() {
        // r3 += r4 has its source in the upper half of byte 1.
        let insn = BpfInsn::from_bytes([0x0f, 0x43, 0xfe, 0xff, 1, 2, 3, 0x84]);
        let want = BpfInsn {
            code: 0x0f,
            dst: 3,
            src: 4,
            off: -2,
            imm: 0x8403_0201_u32 as i32,
        };
        assert_eq!(insn, want);
        assert_eq!(insn.to_bytes(), [0x0f, 0x43, 0xfe, 0xff, 1, 2, 3, 0x84]);
    }

    #[test]
    fn registers_have_their_numbers() {
        for (i, reg) in BpfReg::ALL.into_iter().enumerate() {
            assert_eq!(reg.index(), i);
            assert_eq!(BpfReg::from_num(i as u8), Some(reg));
        }
        assert_eq!(BpfReg::from_num(11), None);
    }
}
