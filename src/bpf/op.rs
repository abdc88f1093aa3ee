//! One instruction, as what it does.
//!
//! Verifier, interpreter, compiler and disassembler match on [`Op`].
//!
//! Three things are meant here that the kernel takes from no user: atomics of 8 and 16 bits, loads
//! marked `BPF_PROBE_MEM`, which yield 0 where there is no memory, and the marks of arena accesses
//! that its verifier leaves in programs ([`ArenaOp`]).
//!
//! Key types: [`Op`], [`Operand`], [`Callee`]. Neighbours: `insn` below; `decode` and `encode` turn
//! one into the other; everything else above.
//! Source: RFC 9669, chapters 4 and 5; kernel `kernel/bpf/verifier.c` for what is reserved.

use super::arena_op::ArenaOp;
use super::insn::{BpfReg, code};

/// How much of its operands arithmetic and comparisons look at.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Width {
    /// The lower 32 bits; results are zero-extended.
    W32,
    /// All of them.
    W64,
}

/// The size of a value in memory.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum Size {
    /// One byte.
    B,
    /// Two bytes.
    H,
    /// Four bytes.
    W,
    /// Eight bytes.
    Dw,
}

impl Size {
    /// All four.
    pub const ALL: [Self; 4] = [Self::B, Self::H, Self::W, Self::Dw];

    /// How many bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        1 << self as u32
    }

    /// How many bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        8 * self.bytes()
    }

    pub(super) const fn from_code(code: u8) -> Self {
        match code & code::SIZE {
            code::B => Self::B,
            code::H => Self::H,
            code::W => Self::W,
            _ => Self::Dw,
        }
    }

    pub(super) const fn code(self) -> u8 {
        match self {
            Self::B => code::B,
            Self::H => code::H,
            Self::W => code::W,
            Self::Dw => code::DW,
        }
    }
}

/// A register or a constant, sign-extended to 64 bits.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Operand {
    /// A register.
    Reg(BpfReg),
    /// A constant.
    Imm(i32),
}

impl From<BpfReg> for Operand {
    fn from(reg: BpfReg) -> Self {
        Self::Reg(reg)
    }
}

impl From<i32> for Operand {
    fn from(imm: i32) -> Self {
        Self::Imm(imm)
    }
}

/// What arithmetic with two operands computes; the first is the destination.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum AluOp {
    /// `dst + src`.
    Add,
    /// `dst - src`.
    Sub,
    /// `dst * src`.
    Mul,
    /// `dst / src`, unsigned; by zero: 0.
    Div,
    /// `dst / src`, signed, towards zero; by zero: 0; the smallest number by -1: itself.
    SDiv,
    /// `dst | src`.
    Or,
    /// `dst & src`.
    And,
    /// `dst << src`, by the lower 5 or 6 bits.
    Lsh,
    /// `dst >> src`, zeros in, by the lower 5 or 6 bits.
    Rsh,
    /// `dst % src`, unsigned; by zero: `dst`.
    Mod,
    /// `dst % src`, signed, with the sign of `dst`; by zero: `dst`; by -1: 0.
    SMod,
    /// `dst ^ src`.
    Xor,
    /// `src`.
    Mov,
    /// `dst >> src`, sign in, by the lower 5 or 6 bits.
    Arsh,
}

impl AluOp {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Add,
        Self::Sub,
        Self::Mul,
        Self::Div,
        Self::SDiv,
        Self::Or,
        Self::And,
        Self::Lsh,
        Self::Rsh,
        Self::Mod,
        Self::SMod,
        Self::Xor,
        Self::Mov,
        Self::Arsh,
    ];

    /// The operation's bits, and the `off` that tells signed from unsigned.
    pub(super) const fn code(self) -> (u8, i16) {
        match self {
            Self::Add => (0x00, 0),
            Self::Sub => (0x10, 0),
            Self::Mul => (0x20, 0),
            Self::Div => (code::DIV, 0),
            Self::SDiv => (code::DIV, 1),
            Self::Or => (0x40, 0),
            Self::And => (0x50, 0),
            Self::Lsh => (0x60, 0),
            Self::Rsh => (0x70, 0),
            Self::Mod => (code::MOD, 0),
            Self::SMod => (code::MOD, 1),
            Self::Xor => (0xa0, 0),
            Self::Mov => (code::MOV, 0),
            Self::Arsh => (0xc0, 0),
        }
    }

    pub(super) fn from_code(operation: u8, off: i16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|op| op.code() == (operation, off))
    }
}

/// What is done to the bytes of a value.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum ByteOrder {
    /// To little-endian and cut to the size.
    Le,
    /// To big-endian and cut to the size.
    Be,
    /// Reversed and cut to the size.
    Swap,
}

/// When a branch is taken.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Cond {
    /// `dst == src`.
    Eq,
    /// `dst > src`, unsigned.
    Gt,
    /// `dst >= src`, unsigned.
    Ge,
    /// `dst & src` is not zero.
    Set,
    /// `dst != src`.
    Ne,
    /// `dst > src`, signed.
    Sgt,
    /// `dst >= src`, signed.
    Sge,
    /// `dst < src`, unsigned.
    Lt,
    /// `dst <= src`, unsigned.
    Le,
    /// `dst < src`, signed.
    Slt,
    /// `dst <= src`, signed.
    Sle,
}

impl Cond {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Eq,
        Self::Gt,
        Self::Ge,
        Self::Set,
        Self::Ne,
        Self::Sgt,
        Self::Sge,
        Self::Lt,
        Self::Le,
        Self::Slt,
        Self::Sle,
    ];

    /// The condition that holds when this one does not, if there is one.
    pub(super) const fn opposite(self) -> Option<Self> {
        Some(match self {
            Self::Eq => Self::Ne,
            Self::Ne => Self::Eq,
            Self::Gt => Self::Le,
            Self::Le => Self::Gt,
            Self::Ge => Self::Lt,
            Self::Lt => Self::Ge,
            Self::Sgt => Self::Sle,
            Self::Sle => Self::Sgt,
            Self::Sge => Self::Slt,
            Self::Slt => Self::Sge,
            Self::Set => return None,
        })
    }

    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Eq => 0x10,
            Self::Gt => 0x20,
            Self::Ge => 0x30,
            Self::Set => 0x40,
            Self::Ne => 0x50,
            Self::Sgt => 0x60,
            Self::Sge => 0x70,
            Self::Lt => 0xa0,
            Self::Le => 0xb0,
            Self::Slt => 0xc0,
            Self::Sle => 0xd0,
        }
    }
}

/// What an atomic instruction does to memory.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum AtomicOp {
    /// Adds `src`.
    Add(Fetch),
    /// Sets the bits of `src`.
    Or(Fetch),
    /// Keeps the bits of `src`.
    And(Fetch),
    /// Flips the bits of `src`.
    Xor(Fetch),
    /// Stores `src`; what was there goes to `src`.
    Xchg,
    /// Stores `src` if `r0` is there; what was there goes to `r0`.
    Cmpxchg,
}

/// Whether what was there goes to `src`. If so the instruction is fully ordered.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Fetch {
    /// It does not.
    No,
    /// It does.
    Yes,
}

impl AtomicOp {
    /// The register that what was there goes to, if it goes to one.
    #[must_use]
    pub const fn result(self, src: BpfReg) -> Option<BpfReg> {
        match self {
            Self::Add(Fetch::No)
            | Self::Or(Fetch::No)
            | Self::And(Fetch::No)
            | Self::Xor(Fetch::No) => None,
            Self::Cmpxchg => Some(BpfReg::R0),
            _ => Some(src),
        }
    }

    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Add(Fetch::No),
        Self::Or(Fetch::No),
        Self::And(Fetch::No),
        Self::Xor(Fetch::No),
        Self::Add(Fetch::Yes),
        Self::Or(Fetch::Yes),
        Self::And(Fetch::Yes),
        Self::Xor(Fetch::Yes),
        Self::Xchg,
        Self::Cmpxchg,
    ];

    pub(super) const fn code(self) -> i32 {
        match self {
            Self::Add(fetch) => fetch as i32,
            Self::Or(fetch) => 0x40 | fetch as i32,
            Self::And(fetch) => 0x50 | fetch as i32,
            Self::Xor(fetch) => 0xa0 | fetch as i32,
            Self::Xchg => code::XCHG,
            Self::Cmpxchg => code::CMPXCHG,
        }
    }
}

/// `BPF_FETCH`.
const _: () = assert!(Fetch::Yes as i32 == 1);

/// What a load does when the memory is not there.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Fault {
    /// It is the process's own fault.
    Fatal,
    /// The load yields 0 and the program goes on.
    #[doc(alias = "BPF_PROBE_MEM")]
    Zero,
}

/// How a value in memory becomes 64 bits.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Extend {
    /// With zeros.
    Zero,
    /// With its sign.
    Sign,
}

/// What a 64-bit constant stands for.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Imm64 {
    /// Itself.
    Value(u64),
    /// A map, by its file descriptor.
    #[doc(alias = "BPF_PSEUDO_MAP_FD")]
    MapFd(i32),
    /// The value of a map of one element, from this byte on.
    #[doc(alias = "BPF_PSEUDO_MAP_VALUE")]
    MapValue {
        /// The map's file descriptor.
        fd: i32,
        /// Where in the value.
        off: u32,
    },
    /// A variable, by its BTF id.
    #[doc(alias = "BPF_PSEUDO_BTF_ID")]
    BtfId {
        /// The variable's type.
        id: i32,
        /// The object it is in.
        object: u32,
    },
    /// A function of this program, as many instructions from the next one.
    #[doc(alias = "BPF_PSEUDO_FUNC")]
    Func(i32),
    /// A map, by its place in the program's list.
    #[doc(alias = "BPF_PSEUDO_MAP_IDX")]
    MapIdx(i32),
    /// The value of a map by its place, from this byte on.
    #[doc(alias = "BPF_PSEUDO_MAP_IDX_VALUE")]
    MapIdxValue {
        /// The map's place.
        idx: i32,
        /// Where in the value.
        off: u32,
    },
}

/// What is called.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Callee {
    /// A helper, by its number.
    Helper(i32),
    /// A function of this program, as many instructions from the next one.
    Local(i32),
    /// A host function, by its BTF id.
    #[doc(alias = "BPF_PSEUDO_KFUNC_CALL")]
    Host {
        /// The function's id.
        id: i32,
        /// The object it is in.
        object: i16,
    },
}

/// What an instruction does. Jumps count instructions from the next one.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[allow(missing_docs, reason = "fields carry the RFC's names")]
pub enum Op {
    /// `dst = dst op src`.
    Alu {
        op: AluOp,
        width: Width,
        dst: BpfReg,
        src: Operand,
    },
    /// `dst = -dst`.
    Neg { width: Width, dst: BpfReg },
    /// `dst` = the lower `size` of `src`, sign-extended to `width`.
    Movsx {
        width: Width,
        size: Size,
        dst: BpfReg,
        src: BpfReg,
    },
    /// `dst` = the lower `size` of `dst` in this byte order, zero-extended.
    End {
        order: ByteOrder,
        size: Size,
        dst: BpfReg,
    },
    /// `dst = src`, from one address space to another: 1 is the arena's.
    AddrSpaceCast {
        dst: BpfReg,
        src: BpfReg,
        /// The space of the result.
        to: u16,
        /// The space of `src`.
        from: u16,
    },
    /// `dst` = a constant of 64 bits, in two instructions.
    LdImm64 { dst: BpfReg, imm: Imm64 },
    /// `dst = *(size *)(src + off)`.
    Load {
        size: Size,
        extend: Extend,
        fault: Fault,
        dst: BpfReg,
        src: BpfReg,
        off: i16,
    },
    /// `*(size *)(dst + off) = src`.
    Store {
        size: Size,
        dst: BpfReg,
        off: i16,
        src: Operand,
    },
    /// `*(size *)(dst + off)` is changed, whole. At an address that is no multiple of the size
    /// nothing is changed, and what it brings is 0: this, too, on every machine.
    Atomic {
        op: AtomicOp,
        size: Size,
        dst: BpfReg,
        off: i16,
        src: BpfReg,
    },
    /// `dst = *(size *)(src + off)`, zero-extended, before everything that follows; 0 if it is
    /// misaligned.
    LoadAcquire {
        size: Size,
        dst: BpfReg,
        src: BpfReg,
        off: i16,
    },
    /// `*(size *)(dst + off) = src`, after everything before; nothing is stored if it is misaligned.
    StoreRelease {
        size: Size,
        dst: BpfReg,
        off: i16,
        src: BpfReg,
    },
    /// An access to the arena by offset.
    Arena(ArenaOp),
    /// Goes on `off` instructions further.
    Jump { off: i32 },
    /// Goes on where `dst` says, which has been loaded from a jump table.
    #[doc(alias = "gotox")]
    JumpReg { dst: BpfReg },
    /// Goes on `off` instructions further when it has been here too often.
    MayGoto { off: i16 },
    /// Goes on `off` instructions further if the condition holds.
    Branch {
        cond: Cond,
        width: Width,
        dst: BpfReg,
        src: Operand,
        off: i16,
    },
    /// Calls; arguments in `r1` to `r5`, the result in `r0`.
    Call(Callee),
    /// Returns `r0`.
    Exit,
}

impl Op {
    /// How many instructions it is encoded in: 1, or 2 for a constant of 64 bits.
    #[must_use]
    pub const fn len_insns(self) -> usize {
        match self {
            Self::LdImm64 { .. } => 2,
            _ => 1,
        }
    }
}
