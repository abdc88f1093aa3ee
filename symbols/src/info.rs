//! What there is to know of a piece of code.
//!
//! Key types: [`CodeInfo`], [`Symbol`], [`LineEntry`], [`Unwind`], [`Landing`]. Offsets are in
//! bytes from the start of the code.

use std::sync::Arc;

use text::RxRange;

/// A piece of code, all of it in place.
#[derive(Clone, Debug)]
pub struct CodeInfo<'a> {
    /// Where it is.
    pub range: RxRange,
    /// What is there.
    pub bytes: &'a [u8],
    /// Its functions, by offset.
    pub symbols: &'a [Symbol],
    /// Where its instructions come from, by offset.
    pub lines: &'a [LineEntry],
    /// How to leave its frames, by offset.
    pub unwind: &'a [Unwind],
    /// What exceptions must not pass by, by offset.
    pub landings: &'a [Landing],
}

/// A function.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Symbol {
    /// What it is called.
    pub name: String,
    /// Where it begins.
    pub off: u32,
    /// How many bytes it has.
    pub len: u32,
}

/// A place in a source, of the code from `off` up to the next entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LineEntry {
    /// Where it begins.
    pub off: u32,
    /// The file's path.
    pub file: Arc<str>,
    /// The line, from 1; 0 for code that comes from no line.
    pub line: u32,
    /// The column, from 1; 0 where nobody knows.
    pub column: u32,
}

/// How to get from a place in a function to its caller.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unwind {
    /// Where the function begins.
    pub off: u32,
    /// How many bytes it has.
    pub len: u32,
    /// From each offset on, what holds; before the first, that nothing has been done yet: the
    /// stack pointer is the caller's, and the return address in `ra`.
    pub rows: Vec<Row>,
}

/// What holds from one offset of a function on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// From where, in bytes from the start of the code.
    pub off: u32,
    /// The stack pointer that the caller had.
    pub cfa: Cfa,
    /// Registers of the caller that are in memory: DWARF number (`x0` to `x31`, then `f0` to
    /// `f31`), and place in bytes from `from`. A multiple of 8, below 0.
    pub saved: Vec<(u8, i32)>,
    /// Where they are.
    pub from: SavedFrom,
}

/// What the places of saved registers are counted from.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub enum SavedFrom {
    /// The caller's stack pointer.
    #[default]
    Cfa,
    /// This register, for frames that are not on the stack: one that callees keep.
    Reg(u8),
}

/// A call that an exception does not pass by unseen: the unwinder goes on to a place of the same
/// function, with the exception in `a0` and everything else as it was at the call.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Landing {
    /// Where the calling instructions begin.
    pub off: u32,
    /// How many bytes they have.
    pub len: u32,
    /// Where to go on.
    pub to: u32,
}

/// A stack pointer of the caller: a register and a distance. DWARF calls it the canonical frame
/// address.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Cfa {
    /// The register's number: 2 is `sp`, 8 is `fp`.
    pub reg: u8,
    /// What is to be added to it, in bytes.
    pub off: u32,
}

impl Cfa {
    /// Where a function begins: `sp` itself.
    pub const ENTRY: Self = Self { reg: 2, off: 0 };
}
