//! Tables of functions that are swapped while they are called (kernel: struct_ops).
//!
//! ```text
//!   C code ── jalr ──▶ stub (in a pack, never moves)     front
//!                        thread's word = entry           3
//!                        call the entry  ──────────────▶ entry (of one version)   member
//!                        thread's word = none              a Rust function itself,
//!                        return                            or an image that builds the BPF
//!                                                          context and runs one program
//!   pinned code ── jalr ───────────────────────────────▶ entry
//! ```
//!
//! A *front* has one stub and one cell for each member. The stub loads the member's *entry* from
//! the cell, so a swap is a plain store into each cell; no text changes and nothing is flushed.
//! What a reader pays beside an indirect call is twelve instructions, none of them atomic.
//!
//! # When has the last thread left a version?
//! The word in the thread's block (`guard`) says which entry a thread is in, and
//! no entry belongs to two versions ([`Version`]). After its cells lead elsewhere:
//!
//! | where a thread can be | covered by |
//! | --- | --- |
//! | in the stub: the entry is in a register, the word not written | its pc: the front belongs to the watched ranges |
//! | in the member, or what that calls | its word holds the entry |
//! | in a member of another table that this one called | the entry is among those further out |
//! | deeper than those are remembered | the front's counter |
//! | back in the stub | its pc |
//! | in a signal handler on top of one of these | the signal frame's pc, or the same words |
//! | it has pinned the version | the number is among its pins, or the counter has it |
//!
//! A caller that kept a function pointer in a register has the stub's address, which stays valid
//! as long as the front: that is why the pointer in the table never changes, and what the load in
//! the stub pays for.
//!
//! The word is a plain store and the cell a plain load, in this order on no machine. That is no
//! gap: nobody reads a word while its thread runs. A thread is looked at by itself in a signal
//! handler, or while the kernel has it off its hart (`text::threads`), and both see all that it
//! has done.
//!
//! | module | holds |
//! | --- | --- |
//! | `front` | [`Front`]: stubs and cells |
//! | `member` | [`Version`]: entries |
//! | `cells` | words within reach of code |
//! | `enter` | a thread's first call; pins |
//! | `leave` | [`Leaving`]: the steps above |
//!
//! Source: kernel `kernel/bpf/bpf_struct_ops.c`; `BPF_TRAMP_F_INDIRECT` and its part of
//! `__arch_prepare_bpf_trampoline` in `arch/riscv/net/bpf_jit_comp64.c`.

pub(crate) mod cells;
mod code;
mod enter;
mod front;
mod leave;
mod member;
#[cfg(all(test, not(target_arch = "riscv64")))]
mod tests;

pub use cells::MAX_CELLS;
pub use enter::Pin;
pub use front::Front;
pub use leave::{Leaving, Left};
pub use member::{Member, MemberProg, Version};
pub(crate) use member::{Placed, place_code};

use std::sync::Arc;

use pack_alloc::PackAlloc;
use rv64::Features;
use symbols::Tools;

/// Where code for tables is made.
#[derive(Clone, Debug)]
pub struct Workshop {
    /// Holds the code.
    pub packs: Arc<PackAlloc>,
    /// What the code may use.
    pub features: Features,
    /// Who is told of it.
    pub tools: Tools,
}
