//! Numbers about packs.

use std::fmt;

/// What a [`PackAlloc`](crate::PackAlloc) holds at one moment.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct PackStats {
    /// Packs mapped. After everything is freed at most one is left.
    pub nr_packs: usize,
    /// Those that stand on huge pages.
    pub nr_huge_packs: usize,
    /// Address space of all packs.
    pub pack_bytes: usize,
    /// Allocations that live, published or not.
    pub nr_live: usize,
    /// Allocations freed whose code the kernel has not let be invalidated; the next
    /// [`free`](crate::PackAlloc::free) tries again. They count as live.
    pub nr_in_limbo: usize,
    /// Chunks in use.
    pub nr_chunks_used: usize,
    /// Chunks free.
    pub nr_chunks_free: usize,
    /// What was asked for by all that live.
    pub requested_bytes: usize,
    /// What they occupy: chunks, or the whole of a pack of their own.
    pub occupied_bytes: usize,
    /// The longest run of free chunks of any pack.
    pub largest_free_run_bytes: usize,
}

impl PackStats {
    /// How much of the free space is not in one piece: 0 if all of it is, near 1 if it is dust.
    #[must_use]
    pub fn fragmentation(&self) -> f64 {
        let free_bytes = self.nr_chunks_free * crate::CHUNK_BYTES;
        if free_bytes == 0 {
            return 0.0;
        }
        1.0 - self.largest_free_run_bytes as f64 / free_bytes as f64
    }
}

impl fmt::Display for PackStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} packs ({} huge), {} allocations, {} bytes asked for in {} occupied, \
             {} of {} chunks used, fragmentation {:.2}",
            self.nr_packs,
            self.nr_huge_packs,
            self.nr_live,
            self.requested_bytes,
            self.occupied_bytes,
            self.nr_chunks_used,
            self.nr_chunks_used + self.nr_chunks_free,
            self.fragmentation(),
        )
    }
}
