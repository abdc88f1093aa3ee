//! Trampolines for native RV64 functions: what the kernel's BPF trampoline is, in user space.
//!
//! An *image* serves one function and all programs attached to it: fentry programs, then fmod_ret
//! programs, the function, then fexit programs; session programs run at both ends. The function
//! and its caller see what they would see unhooked, bit for bit, in the whole LP64D ABI.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`model`] | where a function's arguments and return value are |
//! | [`frame`] | the frame of an image, as data |
//! | `image` | codegen |
//! | `guard`, `table`, `slow` | the word per thread that tells recursion, nesting and grace periods |
//! | [`mark`], `cancel` | closures: how it is noticed that one was left by a jump; cancellation stays out |
//! | `shadow` | frames of images whose function must see the caller's stack pointer |
//! | [`indirect`] | struct_ops: tables of functions that are swapped while they are called |
//! | `static_call` | [`StaticStub`]: one function, whose calls are direct jumps |
//! | `dispatcher` | [`Chain`]: comparisons in front of an indirect call |
//! | `slot` | one word that leads a site to its image |
//! | `entry` | pads, and functions whose first instructions are moved |
//! | [`prologue`] | moves the first instructions of a function that has no pad |
//! | `life` | when an image can be freed |
//! | `domain`, `change`, `owner`, `pin` | [`Trampolines`]: attach and detach as transactions |
//!
//! # Stack
//! Below the stack pointer of its caller a hooked call takes at most 512 bytes, besides what the
//! programs and the function take themselves: the frame of its image (48 to 128 bytes for a
//! function whose arguments are in registers; stack arguments are there twice), and in a thread's
//! first call, nested calls and now and then, the slow path. Closures take at most 768. So threads
//! with 16 KiB and signal handlers on stacks of `AT_MINSIGSTKSZ` and a kilobyte or two may call
//! hooked functions (`tests/stack.rs`).
//!
//! Neighbours: `rv64` encodes, `text` finds and changes sites and watches threads, `pack_alloc`
//! holds images. Source: the kernel's `kernel/bpf/trampoline.c`,
//! `arch/riscv/net/bpf_jit_comp64.c`.

mod cancel;
mod change;
mod dispatcher;
mod domain;
mod emit;
mod entry;
mod error;
mod flags;
pub mod frame;
mod guard;
mod image;
pub mod indirect;
mod leaf;
mod life;
pub mod mark;
pub mod model;
mod owner;
mod pin;
mod prog;
pub mod prologue;
mod shadow;
mod slot;
mod slow;
mod static_call;
mod table;
mod tls;

pub use dispatcher::{Chain, MAX_TARGETS};
pub use domain::{Attach, LinkId, MAX_LINKS, TrampStats, Trampolines};
pub use entry::{EntryKind, Traps, resolve};
pub use error::TrampError;
pub use flags::TrampFlags;
pub use model::FuncModel;
pub use prog::{Needs, Owner, Prog, ProgFn, ProgKind, ProgState, RetFrom, meta};
pub use static_call::{STATIC_STUB_BYTES, StaticStub};
