//! BPF programs: what they mean, and how they run.
//!
//! ```text
//!   bytes ──▶ Program ──────────▶ Interpreter          any host
//!             decoded, checked └─▶ BpfProg             RV64 code in a pack
//!                                  └─▶ RawProg         on a hook
//! ```
//!
//! [`ProgramBuilder`] writes programs, with an example; [`Runtime::load`](crate::Runtime::load)
//! compiles them.
//!
//! | module | holds |
//! | --- | --- |
//! | `insn`, `op` | [`BpfInsn`] as encoded, [`Op`] as meant |
//! | `arena_op` | [`ArenaOp`]: accesses by offset in an arena |
//! | `decode`, `encode` | from one to the other |
//! | `regs` | which registers an instruction reads and writes |
//! | `disasm` | the kernel's text form of [`Op`], [`Program::disassemble`] |
//! | `builder` | [`ProgramBuilder`]: programs written in Rust |
//! | `verify`, `program` | [`Program`]: well-formed, in functions |
//! | `array` | [`ProgArray`]: where tail calls go |
//! | `tables` | [`JumpTable`]: where jumps through registers lead |
//! | `env`, `helpers` | [`Env`]: helpers, host functions, maps; [`Env::tracing`] |
//! | `objects` | [`MapObject`]: what constants of 64 bits refer to |
//! | `arena` | [`Arena`]: memory that programs and host share |
//! | `interp` | [`Interpreter`]: the reference |
//! | `jit`, `loaded` | [`BpfProg`]: compiled |
//! | `dump`, `line` | [`Compiled`]: BPF and RV64 side by side; [`LineInfo`] |
//! | `entropy` | random numbers, for code that is hardened |
//! | `faults` | accesses that may fault, and the handler that lets them |
//! | `symbols` | what `perf`, gdb and unwinders are told |
//!
//! Source: RFC 9669; kernel `Documentation/bpf/standardization/instruction-set.rst`.

mod arena;
mod arena_op;
mod array;
mod builder;
mod decode;
mod disasm;
mod dump;
mod encode;
mod entropy;
mod env;
mod error;
mod faults;
mod helpers;
mod insn;
mod interp;
mod jit;
mod line;
mod loaded;
mod objects;
mod op;
mod program;
mod regs;
mod symbols;
mod tables;
mod verify;

pub use arena::{Arena, arena_alloc_pages, arena_free_pages};
pub use arena_op::ArenaOp;
pub(crate) use array::synchronize;
pub use array::{ProgArray, ProgArrayError};
pub use builder::{Label, ProgramBuilder};
pub use dump::Compiled;
pub use env::{Env, Fill, HostArg, HostFn, HostRet};
pub use error::{ArenaError, LoadError, Reason, Refusal, Stop};
pub use helpers::{TraceSink, trace_pipe};
pub use insn::{BpfInsn, BpfReg, INSN_BYTES};
pub use interp::Interpreter;
pub use jit::Budget;
pub use line::LineInfo;
pub use loaded::{BpfProg, Options};
pub use objects::MapObject;
pub use op::{
    AluOp, AtomicOp, ByteOrder, Callee, Cond, Extend, Fault, Fetch, Imm64, Op, Operand, Size, Width,
};
pub use program::{
    Extra, Func, MAX_CALL_FRAMES, MAX_INSNS, MAX_STACK_BYTES, MAX_TAIL_CALLS, Program,
};
pub use tables::JumpTable;
