//! Where one 64-bit piece of a value is when a function is entered or left.
//!
//! Key types: [`Slot`], one word of the BPF context; [`Loc`], a register or a stack word.
//! Neighbours: [`super::FuncModel`] makes them, the frame and the images move them.
//!
//! Source: RISC-V ELF psABI, "Procedure Calling Convention".

use core::fmt;

/// Where 64 bits are at the first instruction of a function, or at its return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loc {
    /// `a0` to `a7`, by number.
    Int(u8),
    /// `fa0` to `fa7`, by number.
    Fp(u8),
    /// The 8-byte word with this index above `sp`: `8 * n(sp)` at entry.
    Stack(u16),
}

impl fmt::Display for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loc::Int(n) => write!(f, "a{n}"),
            Loc::Fp(n) => write!(f, "fa{n}"),
            Loc::Stack(n) => write!(f, "{}(sp)", 8 * u32::from(*n)),
        }
    }
}

/// Which value a slot is a piece of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotOf {
    /// The argument with this number, counted from 0 as in the C declaration.
    Arg(u8),
    /// The hidden first argument: where the caller wants a value that is returned by reference.
    RetPtr,
    /// The return value.
    Ret,
    /// A register that may carry something of which nothing is known: a variadic argument, or an
    /// argument or return value of an untyped function. It is kept, bit for bit.
    Unknown,
}

/// What stands in a slot above the `size_bytes` that belong to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Upper {
    /// Nothing: the value fills the slot.
    Full,
    /// Zeros: an unsigned integer of 1 or 2 bytes.
    Zero,
    /// Copies of the value's top bit: a signed integer, and `unsigned int` too.
    Sign,
    /// Ones: a floating-point value in a floating-point register, NaN-boxed.
    NanBox,
    /// Anything: struct padding, a float in an integer register, an integer of a flattened struct.
    Undefined,
}

/// Whether a slot holds (a piece of) the value itself or where the value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The bits of the value.
    Value,
    /// The address of the value, in memory that belongs to the callee for the call.
    Reference {
        /// How many bytes stand there.
        size_bytes: u32,
    },
}

/// One 64-bit slot of the BPF context, and where its bits are when the function is entered (or,
/// for [`SlotOf::Ret`], left).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Register or stack word.
    pub loc: Loc,
    /// Which value.
    pub of: SlotOf,
    /// Where in the value this piece begins.
    pub offset_bytes: u32,
    /// How many bytes of the value the slot holds, from the low end: 1 to 8.
    pub size_bytes: u8,
    /// What stands above them.
    pub upper: Upper,
    /// The value, or its address.
    pub pass: Pass,
}

impl Slot {
    /// A register of which nothing is known.
    pub(super) const fn unknown(loc: Loc, of: SlotOf) -> Slot {
        Slot {
            loc,
            of,
            offset_bytes: 0,
            size_bytes: 8,
            upper: Upper::Full,
            pass: Pass::Value,
        }
    }
}
