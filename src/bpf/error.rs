//! What is wrong with a program.
//!
//! Key types: [`Refusal`] (an instruction and a [`Reason`]), [`LoadError`], [`Stop`],
//! [`ArenaError`].

use thiserror::Error;

use super::insn::BpfReg;

/// Why an instruction makes its program unfit. Kernel: `-EINVAL` from `bpf(BPF_PROG_LOAD)`, with a
/// line in the verifier's log.
#[derive(Clone, Eq, PartialEq, Debug, Error)]
#[non_exhaustive]
pub enum Reason {
    /// No instruction at all.
    #[error("the program is empty")]
    Empty,
    /// More than a program may have.
    #[error("the program has {insns} instructions, and {max} are the most")]
    TooLong {
        /// How many it has.
        insns: usize,
        /// How many it may have.
        max: usize,
    },
    /// The bytes are no whole number of instructions.
    #[error("{bytes} bytes are no whole number of 8-byte instructions")]
    OddBytes {
        /// How many bytes.
        bytes: usize,
    },
    /// A code that means nothing.
    #[error("opcode {code:#04x} is unknown")]
    UnknownOpcode {
        /// The code.
        code: u8,
    },
    /// `LD_ABS` and `LD_IND`.
    #[error(
        "opcode {code:#04x} is a legacy packet access (LD_ABS, LD_IND), which has no packet here"
    )]
    Legacy {
        /// The code.
        code: u8,
    },
    /// A register above `r10`.
    #[error("register r{num} does not exist")]
    BadRegister {
        /// The number.
        num: u8,
    },
    /// A field that must have another value.
    #[error("field {field} is {value}, which is reserved")]
    Reserved {
        /// The field.
        field: &'static str,
        /// What is in it.
        value: i64,
    },
    /// A label that was never bound.
    #[error("goes to a label that is bound nowhere")]
    Unbound,
    /// A label that the instruction cannot reach.
    #[error("goes {by} instructions further, which does not fit its offset")]
    TooFar {
        /// How far.
        by: i64,
    },
    /// The program ends in the middle of an instruction.
    #[error("the second half of a 64-bit constant is missing")]
    Truncated,
    /// A target that is not in the same function.
    #[error("goes to instruction {target}, outside its function ({start}..{end})")]
    JumpOut {
        /// The target.
        target: i64,
        /// The function's first instruction.
        start: usize,
        /// The one after its last.
        end: usize,
    },
    /// A target in the middle of an instruction.
    #[error("goes to instruction {target}, the second half of a 64-bit constant")]
    JumpIntoConstant {
        /// The target.
        target: usize,
    },
    /// The last instruction of a function goes on.
    #[error("the function ends here without exit or jump")]
    FallThrough,
    /// `r10` is read-only.
    #[error("writes r10, which is read-only")]
    WritesFrame,
    /// An access to the stack beyond its end or its limit.
    #[error("accesses {bytes} bytes of stack at r10{off:+}; the stack is r10-{max}..r10")]
    StackBounds {
        /// From where, relative to `r10`.
        off: i64,
        /// How many.
        bytes: u32,
        /// The size of the stack.
        max: u32,
    },
    /// Functions that call each other use more stack together than there is.
    #[error("calls add up to {bytes} bytes of stack, and {max} are the most")]
    StackDepth {
        /// All frames together.
        bytes: u32,
        /// The most.
        max: u32,
    },
    /// Too many functions inside each other.
    #[error("calls go {frames} functions deep, and {max} are the most")]
    CallDepth {
        /// How many.
        frames: usize,
        /// The most.
        max: usize,
    },
    /// A function that reaches itself.
    #[error("the function can call itself")]
    Recursion,
    /// No path leads here.
    #[error("is unreachable")]
    Unreachable,
    /// A register that nobody has set, or that a call has spoiled on some path.
    #[error("reads {reg}, which is not set here")]
    Unset {
        /// The register.
        reg: BpfReg,
    },
    /// A helper that this environment does not have.
    #[error("calls helper {id}, which is not there")]
    NoHelper {
        /// Its number.
        id: i32,
    },
    /// A host function that this environment does not have.
    #[error("calls host function {id}, which is not there")]
    NoHostFunction {
        /// Its number.
        id: i32,
    },
    /// A constant that stands for something this environment does not have.
    #[error("refers to {what} {id}, which is not there")]
    NoObject {
        /// What it stands for.
        what: &'static str,
        /// Its number.
        id: i32,
    },
    /// An offset into a map's value that is not in it. Kernel: `-EINVAL`, `-ERANGE`.
    #[error("refers to byte {off} of {what} {id}, which has {len_bytes} bytes")]
    ValueBounds {
        /// What it refers to.
        what: &'static str,
        /// Its number.
        id: i32,
        /// From which byte on.
        off: u32,
        /// How many there are.
        len_bytes: u64,
    },
    /// An instruction for an arena, where there is none.
    #[error("needs an arena, which is not there: give the environment one (Env::arena)")]
    NoArena,
    /// An entry of the line information that cannot be.
    #[error("the entry of the line information for it {what}")]
    LineInfo {
        /// What is wrong with it.
        what: &'static str,
    },
    /// A jump through a register, and no table that leads into its function. Kernel: `-EINVAL`.
    #[error(
        "jumps through a register, but no jump table leads into its function: give the program \
         one (Extra::jump_tables)"
    )]
    NoTable,
    /// A jump table that leads to where no instruction begins, or into two functions.
    #[error("the jump table at map {map} leads to {target}, where nothing of one function begins")]
    TableTarget {
        /// The table's map.
        map: i32,
        /// The element.
        target: usize,
    },
    /// A jump through a register that a jump table of another function may have set. Kernel:
    /// `-EINVAL`.
    #[error(
        "jumps through {reg}, which may come from the jump table of another function: a table \
         serves the function that its elements are in"
    )]
    ForeignTable {
        /// The register.
        reg: BpfReg,
    },
    /// A reference into the middle of a jump table's element.
    #[error("refers to byte {off} of the jump table at map {map}, where no element begins")]
    TableElement {
        /// The table's map.
        map: i32,
        /// The byte.
        off: u32,
    },
    /// Two jump tables that are the value of one map.
    #[error("there are two jump tables at map {map}")]
    TableTwice {
        /// The map.
        map: i32,
    },
    /// An instruction that is known but cannot be run.
    #[error("{what} is not supported")]
    Unsupported {
        /// What it is.
        what: &'static str,
    },
}

/// A program that is refused: which instruction, and why.
#[derive(Clone, Eq, PartialEq, Debug, Error)]
#[error("instruction {insn}: {reason}")]
pub struct Refusal {
    /// The instruction's index; constants of 64 bits count as two.
    pub insn: usize,
    /// What is wrong with it.
    #[source]
    pub reason: Reason,
}

/// Why a program could not be made ready to run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The program itself.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// This host runs no RV64 code.
    #[error("compiled programs run on riscv64 only; this host can interpret them")]
    UnsupportedHost,
    /// The code could not be made.
    #[error("cannot generate code: {0}")]
    Asm(#[from] rv64::AsmError),
    /// There is no memory for the code.
    #[error("{0}")]
    Pack(#[from] pack_alloc::PackError),
    /// Code cannot be changed now.
    #[error("{0}")]
    Tramp(#[from] trampoline::TrampError),
    /// An array of programs that it uses has others.
    #[error("{0}")]
    ProgArray(#[from] super::array::ProgArrayError),
    /// The kernel gives no random numbers, which the options ask for.
    #[error("no random numbers to harden the code with: {0}")]
    Random(#[source] std::io::Error),
}

/// Why a program stopped before its end.
#[derive(Clone, Eq, PartialEq, Debug, Error)]
#[non_exhaustive]
pub enum Stop {
    /// It has executed as many instructions as it may.
    #[error("instruction {insn}: the budget of {budget} instructions is used up")]
    Budget {
        /// Where it was, in the program that it was in.
        insn: usize,
        /// How many it could execute.
        budget: u64,
    },
    /// It has run as long as it may.
    #[error("instruction {insn}: the time of {limit:?} is over")]
    Time {
        /// Where it was, in the program that it was in.
        insn: usize,
        /// How long it could run.
        limit: std::time::Duration,
    },
    /// A tail call of an interpreted program led to one that cannot be run.
    #[error("a tail call leads to a program that is refused: {0}")]
    Refused(#[from] Refusal),
    /// A jump through a register that no jump table of the function has given it.
    #[error("instruction {insn}: jumps to {value:#x}, which is in no jump table of its function")]
    BadJump {
        /// The jump.
        insn: usize,
        /// What is in the register.
        value: u64,
    },
}

/// What an arena cannot do. After each of them it is as it was before.
#[derive(Clone, Eq, PartialEq, Debug, Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// No page, or more than pointers of 32 bits reach. Kernel: `-EINVAL`, `-E2BIG`.
    #[error("an arena of {pages} pages: it has at least 1 and at most {max}")]
    Size {
        /// How many were asked for.
        pages: u32,
        /// The most.
        max: u32,
    },
    /// There is no room for its addresses. Kernel: `-ENOMEM`.
    #[error("cannot reserve 4 GiB of addresses (errno {errno}): see RLIMIT_AS")]
    Reserve {
        /// From `mmap`.
        errno: i32,
    },
    /// So many pages in a row are not free, or none were asked for. Kernel: a null pointer.
    #[error("there is no room for {pages} pages in a row")]
    Full {
        /// How many were asked for.
        pages: u32,
    },
    /// An offset that does not begin so many pages of the arena.
    #[error("offset {offset:#x} does not begin {pages} pages of the arena")]
    Bounds {
        /// The offset.
        offset: u32,
        /// How many.
        pages: u32,
    },
    /// Memory that is not there.
    #[error("not all of the {len} bytes from offset {offset:#x} on are there")]
    NotThere {
        /// The offset.
        offset: u32,
        /// How many bytes.
        len: usize,
    },
    /// The kernel gives no memory, or does not take it back.
    #[error("cannot change pages of the arena (errno {errno}): see vm.max_map_count")]
    Commit {
        /// From `mprotect` or `madvise`.
        errno: i32,
    },
    /// This thread is changing code or an arena, and a hook of what that calls changes one.
    #[error("this thread is in the midst of a change already")]
    Reentered,
}
