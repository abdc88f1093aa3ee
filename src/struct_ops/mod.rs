//! Tables of functions that are swapped while they are called: plugins.
//!
//! A C table of functions, a `#[repr(C)]` struct of function pointers and data, is described by
//! [`#[derive(StructOps)]`](macro@crate::StructOps). A [`Table`] is one version of it: each member
//! is a Rust function, a closure, a BPF program, or what the type has as its default.
//! [`Runtime::register`](crate::Runtime::register) gives a [`Link`], whose table C code calls
//! directly; [`Link::update`] swaps the whole table under callers that hold no lock and execute no
//! atomic instruction.
//!
//! ```no_run
//! # #[cfg(target_arch = "riscv64")]
//! # mod demo {
//! use rvbpf::{Runtime, StructOps};
//! use rvbpf::struct_ops::{StructOps as _, Table};
//!
//! extern "C" fn half(window: u32) -> u32 { window / 2 }
//!
//! #[derive(StructOps)]
//! #[repr(C)]
//! pub struct Policy {
//!     #[ops(default = half)]
//!     pub on_loss: extern "C" fn(u32) -> u32,
//!     pub start: u32,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rt = Runtime::new()?;
//! let m = Policy::MEMBERS;
//! let plain = Table::<Policy>::builder(&rt)?.data(m.start, 10).build()?;
//! let timid = Table::<Policy>::builder(&rt)?.closure(m.on_loss, |_| 1).build()?;
//! // SAFETY: nobody calls functions of the table when the link is gone.
//! let link = unsafe { rt.register(&plain) }?;
//! let c_table: *const Policy = link.as_ptr(); // for C
//! link.update(&timid)?;
//! assert_eq!((link.get(m.on_loss))(64), 1);
//! if let Some(policy) = link.pin() {
//!     // Both of one version, whatever happens meanwhile.
//!     let _ = ((policy.on_loss)(64), policy.start);
//! }
//! # Ok(()) }
//! # }
//! ```
//!
//! | who calls | sees | pays, beside an indirect call |
//! | --- | --- | --- |
//! | C, or [`Link::get`] | with each call one version, the one of now | twelve instructions; with stack arguments, two more for each word |
//! | [`Link::pin`] | one version for as long as the pin lives | nothing; the pin some plain loads and stores |
//!
//! | module | holds |
//! | --- | --- |
//! | `describe` | [`StructOps`], [`Describe`], keys of members |
//! | `member_fn` | which function pointers can be members |
//! | `closure` | closures as members |
//! | `table` | [`Table`], [`TableBuilder`] |
//! | `link` | [`Link`], [`Pinned`], [`Leave`] |
//! | `any` | [`AnyTable`], [`AnyLink`]: of whatever type |
//! | `retire` | what waits until nobody is in it |
//! | `memory` | the structs that C sees |
//!
//! Neighbours: `trampoline::indirect` makes the code and says when it has been left. Source:
//! kernel `kernel/bpf/bpf_struct_ops.c`, `include/linux/bpf.h`.

mod any;
mod closure;
mod describe;
mod error;
mod link;
mod member_fn;
mod memory;
mod retire;
mod table;

pub use any::{AnyLink, AnyTable};
pub use describe::{DataKey, Describe, MemberKey, OpsData, StructOps};
pub use error::OpsError;
pub use link::{Leave, Link, Pinned};
pub use member_fn::{FnField, MemberFn};
pub use retire::OpsStats;
pub(crate) use retire::Retirees;
pub use table::{Table, TableBuilder};
