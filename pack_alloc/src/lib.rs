//! Packs: 2 MiB of executable memory, shared by many programs.
//!
//! One page per program wastes memory and instruction TLB entries. As in the kernel
//! (`bpf_prog_pack`), programs share *packs*: maps of 2 MiB, aligned to 2 MiB, on a huge page
//! where there is one, cut in chunks of 64 bytes.
//!
//! ```text
//!   alloc ──▶ PackBuf { rw: ordinary memory, rx: where it will run }
//!                 │ write the code for rx into rw
//!   finalize ──▶ PackCode { rx }        copied over, flushed: runs
//!                 │
//!   free ──────▶ invalidated, flushed, its chunks given back
//! ```
//!
//! The rw side is plain memory: nobody can execute it, and no mapping of a pack is ever writable
//! but for the moments in which `text` copies. Since rx is known before a byte is written, code
//! is made for where it runs. Many of each cost one flush: [`PackAlloc::finalize_all`],
//! [`PackAlloc::free_all`].
//!
//! | module | holds |
//! | --- | --- |
//! | `chunks` | [`Chunks`]: a pure bitmap |
//! | `place` | where the address space has room within reach |
//! | `pack` | one map and its chunks |
//! | `alloc` | [`PackAlloc`], [`PackBuf`], [`PackCode`] |
//! | `registry` | the one lock, held across `fork` |
//!
//! Neighbours: `text` maps, copies, invalidates and flushes. Source: kernel `kernel/bpf/core.c`
//! (`bpf_prog_pack_alloc`, `bpf_jit_binary_pack_alloc`).

mod alloc;
mod chunks;
mod error;
mod pack;
mod place;
mod registry;
mod stats;

pub use alloc::{PackAlloc, PackBuf, PackCode};
pub use chunks::Chunks;
pub use error::PackError;
pub use stats::PackStats;

use text::RxAddr;

/// The size of a pack, and what its start is a multiple of.
#[doc(alias = "BPF_PROG_PACK_SIZE")]
pub const PACK_BYTES: usize = 2 << 20;
/// The size of a chunk.
#[doc(alias = "BPF_PROG_CHUNK_SIZE")]
pub const CHUNK_BYTES: usize = 64;
/// The largest allocation: half of what an `auipc` pair spans.
pub const MAX_ALLOC_BYTES: usize = 1 << 30;

/// How a [`PackAlloc`] is to work.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// At most so many packs at a time; no limit if `None`.
    pub max_packs: Option<usize>,
    /// Whether packs shall lie in huge pages.
    pub huge: HugePolicy,
}

/// Whether packs shall lie in huge pages.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub enum HugePolicy {
    /// Pages of the system's pool, else a collapsed memfd, else ordinary pages; which it became
    /// is in the [statistics](PackStats).
    #[default]
    Try,
    /// Ordinary pages. A pack costs memory only where it is used.
    Never,
}

/// Where code must lie.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Near {
    /// Wherever there is room.
    Anywhere,
    /// All of it within reach of an address: no byte is farther from `of` than `reach_bytes`.
    Within {
        /// The text that it serves.
        of: RxAddr,
        /// 2 GiB less some slack for an `auipc` pair, 1 MiB for a `jal`.
        reach_bytes: u64,
    },
}

impl Near {
    /// First and last address of what is in reach.
    fn bounds(self) -> (u64, u64) {
        match self {
            Self::Anywhere => (0, u64::MAX),
            Self::Within { of, reach_bytes } => (
                of.get().saturating_sub(reach_bytes),
                of.get().saturating_add(reach_bytes),
            ),
        }
    }
}
