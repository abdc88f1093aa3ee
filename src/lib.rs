//! Hooks for native riscv64 processes: the Linux kernel's BPF text machinery in user space.
//!
//! A [`Runtime`] hooks functions that were compiled with `-fpatchable-function-entry=5` (or
//! more). Programs run before ([`HookBuilder::on_entry`]) and after ([`HookBuilder::on_exit`]) the
//! function, or instead of it ([`HookBuilder::override_return`]). Nothing traps, no thread is
//! stopped, and text is never writable and executable at once.
//!
//! ```no_run
//! # #[cfg(target_arch = "riscv64")]
//! # mod demo {
//! use rvbpf::Runtime;
//! use std::ffi::c_int;
//!
//! unsafe extern "C" {
//!     fn add(a: c_int, b: c_int) -> c_int; // built with -fpatchable-function-entry=5
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rt = Runtime::new()?;
//! // SAFETY: `add` is what its declaration says.
//! let hook = unsafe { rt.hook(add as unsafe extern "C" fn(c_int, c_int) -> c_int) }?
//!     .on_entry(|call| println!("add{:?}", call.args()))
//!     .on_exit(|_, sum| println!("is {sum}"))
//!     .attach()?;
//! unsafe { add(1, 2) };
//! println!("{:?}", hook.stats());
//! hook.detach()?;
//! # Ok(()) }
//! # }
//! ```
//!
//! Key types: [`Runtime`], [`HookBuilder`], [`Hook`], [`Call`], [`RawProg`]. Neighbours: the rooms
//! below, re-exported where a user needs them: [`model`] describes functions that Rust's types
//! cannot.

mod abi;
pub mod bpf;
mod call;
mod dispatcher;
mod error;
mod exclusive;
mod func;
mod glue;
mod hook;
pub mod host;
mod hwprobe;
mod panics;
mod raw;
mod runtime;
mod static_call;
pub mod struct_ops;

pub use abi::AbiType;
#[doc(hidden)]
pub use abi::struct_type;
pub use call::{Call, RetSlots};
pub use dispatcher::{DispatchFn, Dispatcher};
pub use error::Error;
pub use func::{HookFn, Untyped};
pub use hook::{Hook, HookBuilder, HookStats, ProgStats};
pub use hwprobe::features;
pub use pack_alloc::{HugePolicy, PackStats};
pub use raw::{
    RawCookieFn, RawFn, RawProg, get_attach_cookie, get_func_arg, get_func_arg_cnt, get_func_ip,
    get_func_ret, session_cookie, session_is_return,
};
pub use runtime::{Builder, Runtime, Stats};
pub use rv64::Features;
pub use rvbpf_derive::StructOps;
pub use static_call::StaticCall;
#[doc(hidden)]
pub use static_call::TextStub;
pub use symbols::{SymbolsError, Tools};
pub use text::{DirectReturn, RxAddr};
pub use trampoline::model;
pub use trampoline::model::FuncModel;
pub use trampoline::{EntryKind, MAX_LINKS, Needs, ProgKind, RetFrom, TrampError};
