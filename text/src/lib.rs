//! Reading and changing the executable memory of a running riscv64 process.
//!
//! This is the room in which text changes: code of our own ([`CodeMap`], [`text_copy`],
//! [`text_invalidate`]), and live code, ours or foreign ([`text_poke`], [`patch_words`],
//! [`divert_all`]), with
//! any thread executing at, before or inside the site. It knows no other room.
//!
//! | module | holds |
//! | --- | --- |
//! | `addr` | [`RxAddr`], [`PcRel`], [`RxRange`] |
//! | `map` | [`CodeMap`]: a memfd, r-x for ever, writable never |
//! | `foreign` | pages of an ELF replaced by copies of themselves |
//! | `txn` | check all, store all, flush once |
//! | `copy` | text that nobody can be executing |
//! | `poke`, `plan` | live sites of two words: nop, call, jump; why no thread sees half of one |
//! | `detour` | live code without a pad: a trap, then a jump over it; why no thread sees half of one |
//! | `island` | [`Island`]: unused text in reach of a jump of one word |
//! | `pad`, `object` | entry pads in foreign text |
//! | `func`, `names` | [`Func`]: functions by their addresses and by their names |
//! | `question` | what of that only the dynamic linker can say |
//! | `catalog` | the functions of an object, from `eh_frame`, `dynamic` and its file |
//! | [`DirectReturn`] | functions that can tell who has called them |
//! | `original` | text as it would be without all that |
//! | `look` | [`Look`]: many questions of one moment |
//! | `stays` | objects that are never closed |
//! | `own` | the library that this is part of stays loaded |
//! | `unchanged` | whether that is what the object's file has |
//! | [`threads`] | where every thread is |
//! | `flush` | the instruction cache, and what this machine needs |
//! | `memory` | pages for code that need no descriptor, and their view |
//! | `fork` | a child's own copy |
//! | [`syscall`] | bare system calls, for all rooms |
//!
//! Four promises hold for all of it: no mapping is writable and executable, not even for a
//! moment; a change is all or nothing; after it every hart fetches the new text; a refused flush
//! is an error. Source: kernel `arch/riscv/kernel/patch.c`, `kernel/bpf/core.c`.

mod addr;
mod bare;
mod breakpoints;
mod cache;
mod caller;
mod catalog;
mod copy;
mod deadline;
mod detour;
mod dynamic;
mod eh_frame;
mod error;
mod file;
mod flush;
mod foreign;
mod fork;
mod func;
mod insn;
mod island;
mod loaded;
mod look;
mod map;
mod memory;
mod names;
mod namespaces;
mod object;
mod original;
mod own;
mod pad;
mod plan;
mod poke;
mod proc_maps;
mod question;
pub mod signal;
mod site;
mod span;
mod state;
mod stays;
mod stub;
mod sync;
mod sys;
pub mod syscall;
#[doc(hidden)]
pub mod testing;
pub mod threads;
mod txn;
mod unchanged;

pub use addr::{PcRel, RxAddr, RxRange};
pub use caller::DirectReturn;
pub use copy::{text_copy, text_copy_all, text_invalidate, text_invalidate_all};
pub use deadline::Deadline;
pub use detour::{Detour, DetourKind, DetourState, divert_all, undivert_all, undivert_all_within};
pub use error::TextError;
pub use flush::{FlushScope, SyncMode, flush_icache, sync_mode};
pub use fork::{ForkHandlers, at_fork, come_before_allocators};
pub use func::{Convention, Func, FuncKind, find_symbol, is_entry, look_symbol};
pub use island::{Island, Need, give_back_all, lead_all};
pub use loaded::segment_of;
pub use look::Look;
pub use map::{Backing, CodeMap, Place};
pub use namespaces::Namespace;
pub use original::original_text;
pub use own::{Own, own_object};
pub use pad::{Pad, PadWords};
pub use poke::{
    Insn, Poke, Switch, arm_all, arm_off_all, poke_all, restore_all, restore_off_all, text_poke,
};
pub use proc_maps::{Mapping, ProcMaps};
pub use question::{Lookup, Question};
pub use stays::{Holder, holders};
pub use sync::{ForkMutex, ForkMutexGuard, RawForkMutex};
pub use txn::{WordPatch, patch_words};
pub use unchanged::check_unchanged;
