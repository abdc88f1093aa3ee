//! The allocator and what it gives out.
//!
//! Key types: [`PackAlloc`], [`PackBuf`], [`PackCode`], and [`State`] behind the lock. A double
//! free cannot be written: [`PackAlloc::free`] takes the [`PackCode`]. Neighbours: `registry`
//! (the lock), `pack`. Source: kernel `kernel/bpf/core.c` (`bpf_prog_pack_alloc`,
//! `bpf_prog_pack_free`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use text::RxRange;

use crate::pack::{Ask, Pack};
use crate::{
    CHUNK_BYTES, Config, MAX_ALLOC_BYTES, Near, PACK_BYTES, PackError, PackStats, registry,
};

/// An allocator of executable memory. Threads may share it.
#[derive(Debug)]
pub struct PackAlloc {
    owner: Arc<Owner>,
}

impl PackAlloc {
    /// An allocator without packs.
    #[must_use]
    pub fn new(config: Config) -> Self {
        static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        registry::lock().insert(number, State::new(config));
        Self {
            owner: Arc::new(Owner { number }),
        }
    }

    /// Memory for `size_bytes` of code that starts at a multiple of `align_bytes` (a power of two
    /// up to 2 MiB; anything up to 64 comes by itself), `near` the text it serves.
    ///
    /// Packs with room in reach are used first; else one is mapped as near as there is room.
    ///
    /// # Errors
    /// [`PackError::ZeroSize`], [`PackError::TooLarge`], [`PackError::BadAlign`],
    /// [`PackError::LimitReached`], [`PackError::OutOfReach`], [`PackError::NoMemory`], and
    /// [`PackError::Text`] if the kernel refuses a map.
    #[doc(alias = "bpf_prog_pack_alloc")]
    pub fn alloc(
        &self,
        size_bytes: usize,
        align_bytes: usize,
        near: Near,
    ) -> Result<PackBuf, PackError> {
        if size_bytes == 0 {
            return Err(PackError::ZeroSize);
        }
        if size_bytes > MAX_ALLOC_BYTES {
            return Err(PackError::TooLarge {
                size_bytes,
                max_bytes: MAX_ALLOC_BYTES,
            });
        }
        if !align_bytes.is_power_of_two() || align_bytes > PACK_BYTES {
            return Err(PackError::BadAlign {
                align_bytes,
                max_bytes: PACK_BYTES,
            });
        }
        let rw = zeroed(size_bytes)?;
        let ask = Ask {
            size_bytes,
            align_bytes,
            near,
        };
        let lease = self
            .owner
            .with_state(|state| state.lease(&ask, &self.owner))?;
        Ok(PackBuf {
            rw,
            lease: Some(lease),
        })
    }

    /// Whether no room `near` was found lately, so that [`Self::alloc`] will not look for it; what
    /// packs have left is looked at by that alone.
    #[must_use]
    pub fn has_none_near(&self, near: Near) -> bool {
        self.owner.with_state(|state| state.has_none_near(near))
    }

    /// Copies the buffer to where it runs; when this returns every hart fetches it.
    ///
    /// # Errors
    /// [`PackError::Text`] if the kernel refuses the rw view or the flush. The buffer is gone
    /// then, and its memory given back.
    #[doc(alias = "bpf_jit_binary_pack_finalize")]
    pub fn finalize(&self, buf: PackBuf) -> Result<PackCode, PackError> {
        let mut codes = self.finalize_all(vec![buf])?;
        // One buffer makes one code.
        codes.pop().ok_or(PackError::ZeroSize)
    }

    /// [`Self::finalize`] for many buffers with one flush: all or none. In the same order.
    ///
    /// # Errors
    /// As [`Self::finalize`].
    pub fn finalize_all(&self, mut bufs: Vec<PackBuf>) -> Result<Vec<PackCode>, PackError> {
        let copies: Vec<(RxRange, &[u8])> = bufs
            .iter()
            .map(|buf| (buf.rx(), buf.rw.as_slice()))
            .collect();
        text::text_copy_all(&copies)?;
        let leases = bufs.iter_mut().filter_map(|buf| buf.lease.take());
        Ok(leases
            .map(|lease| PackCode { lease: Some(lease) })
            .collect())
    }

    /// Makes the code illegal and gives its memory back. Nobody may be executing it, or will
    /// return into it: that is for the caller to know.
    ///
    /// # Errors
    /// [`PackError::Text`] if the kernel refuses the rw view or the flush. The code is kept then,
    /// as it is, and the next call that frees tries again ([`PackStats::nr_in_limbo`]).
    #[doc(alias = "bpf_prog_pack_free")]
    pub fn free(&self, code: PackCode) -> Result<(), PackError> {
        self.free_all(vec![code])
    }

    /// [`Self::free`] for many with one flush.
    ///
    /// # Errors
    /// As [`Self::free`]; all of them are kept then.
    pub fn free_all(&self, mut codes: Vec<PackCode>) -> Result<(), PackError> {
        let leases = codes
            .iter_mut()
            .filter_map(|code| code.lease.take())
            .collect();
        free_leases(leases, &self.owner)
    }

    /// What it holds now.
    #[must_use]
    pub fn stats(&self) -> PackStats {
        self.owner.with_state(|state| state.stats())
    }
}

/// Memory for code that is being written: an ordinary buffer, and the place where it will run.
/// Dropped, it gives that place back.
#[derive(Debug)]
pub struct PackBuf {
    rw: Vec<u8>,
    /// Until it is published.
    lease: Option<Lease>,
}

impl PackBuf {
    /// What to write into; zeros (illegal instructions) at first. Nobody executes this memory.
    pub fn rw(&mut self) -> &mut [u8] {
        &mut self.rw
    }

    /// Where it will run.
    #[must_use]
    pub fn rx(&self) -> RxRange {
        code_of(self.lease.as_ref())
    }
}

impl Drop for PackBuf {
    fn drop(&mut self) {
        // It was never written to: there is nothing to invalidate.
        if let Some(lease) = self.lease.take() {
            give_back(vec![lease]);
        }
    }
}

/// Published code. Free it by [`PackAlloc::free`]; dropped, it is freed too, and what that
/// refuses is kept for the next who frees.
#[derive(Debug)]
pub struct PackCode {
    /// Until it is freed.
    lease: Option<Lease>,
}

impl PackCode {
    /// Where it runs.
    #[must_use]
    pub fn rx(&self) -> RxRange {
        code_of(self.lease.as_ref())
    }
}

impl Drop for PackCode {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            let owner = Arc::clone(&lease.owner);
            // The error is not lost: the code stays in limbo, and the statistics show it.
            let _ = free_leases(vec![lease], &owner);
        }
    }
}

/// What an allocation occupies. Whoever has it gives it back, or leaves it in limbo.
#[derive(Debug)]
struct Lease {
    owner: Arc<Owner>,
    held: Held,
}

#[derive(Copy, Clone, Debug)]
struct Held {
    code: RxRange,
    /// Whole chunks around it.
    occupied: RxRange,
}

fn code_of(lease: Option<&Lease>) -> RxRange {
    // Without a lease a value is on its way out and has no methods left to call.
    lease.map_or(RxRange::new(text::RxAddr::new(0), 0), |lease| {
        lease.held.code
    })
}

/// Zeros, or an error where `vec!` would end the process.
fn zeroed(size_bytes: usize) -> Result<Vec<u8>, PackError> {
    let mut rw = Vec::new();
    rw.try_reserve_exact(size_bytes)
        .map_err(|_| PackError::NoMemory { size_bytes })?;
    rw.resize(size_bytes, 0);
    Ok(rw)
}

/// Invalidates `leases`, and what is in `owner`'s limbo with them, and gives all back.
fn free_leases(leases: Vec<Lease>, owner: &Arc<Owner>) -> Result<(), PackError> {
    let limbo = owner.with_state(|state| std::mem::take(&mut state.limbo));
    let limbo = limbo.into_iter().map(|held| Lease {
        owner: Arc::clone(owner),
        held,
    });
    let leases: Vec<Lease> = leases.into_iter().chain(limbo).collect();
    let ranges: Vec<RxRange> = leases.iter().map(|lease| lease.held.occupied).collect();
    let invalidated = text::text_invalidate_all(&ranges);
    match invalidated {
        Ok(()) => give_back(leases),
        Err(_) => {
            for lease in leases {
                lease.owner.with_state(|state| state.limbo.push(lease.held));
            }
        }
    }
    Ok(invalidated?)
}

fn give_back(leases: Vec<Lease>) {
    for lease in leases {
        // The map is unmapped after the lock is released.
        let emptied = lease.owner.with_state(|state| state.give(lease.held));
        drop(emptied);
    }
}

/// The key of an allocator's state. It goes when the allocator and all that it gave out are gone.
#[derive(Debug)]
struct Owner {
    number: u64,
}

impl Owner {
    fn with_state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(registry::lock().entry(self.number).or_default())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let state = registry::lock().remove(&self.number);
        drop(state);
    }
}

/// What the lock protects, of one allocator.
#[derive(Default)]
pub(crate) struct State {
    config: Config,
    /// By first address.
    packs: BTreeMap<u64, Pack>,
    limbo: Vec<Held>,
    nr_live: usize,
    requested_bytes: usize,
    occupied_bytes: usize,
    none_near: NoneNear,
}

/// Where no pack could be mapped within a jump's reach: what was looked for in all mappings is not
/// looked for again by each of thousands of neighbours. What becomes free is found after a while,
/// and until then a longer jump does. 16 bytes for each 64 KiB of text.
#[derive(Default)]
struct NoneNear(BTreeMap<u64, u32>);

impl NoneNear {
    /// What reaches further is not remembered: to have no room there is an error.
    const MOST_REACH_BYTES: u64 = 1 << 20;
    const STRETCH_BYTES: u64 = 64 << 10;
    /// As often it is taken for granted.
    const TIMES: u32 = 1000;

    fn key(near: Near) -> Option<u64> {
        match near {
            Near::Within { of, reach_bytes } if reach_bytes <= Self::MOST_REACH_BYTES => {
                Some(of.get() / Self::STRETCH_BYTES)
            }
            Near::Within { .. } | Near::Anywhere => None,
        }
    }

    fn holds(&mut self, near: Near) -> bool {
        let Some(times) = Self::key(near).and_then(|key| self.0.get_mut(&key)) else {
            return false;
        };
        *times = times.saturating_sub(1);
        *times > 0
    }

    fn note(&mut self, ask: &Ask, error: &PackError) {
        if let (Some(key), PackError::OutOfReach { .. }) = (Self::key(ask.near), error) {
            self.0.insert(key, Self::TIMES);
        }
    }
}

fn out_of_reach(ask: &Ask) -> PackError {
    match ask.near {
        Near::Within { of, reach_bytes } => PackError::OutOfReach { of, reach_bytes },
        // Cannot be: anywhere there is room.
        Near::Anywhere => PackError::LimitReached { limit: 0 },
    }
}

impl State {
    fn new(config: Config) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    fn has_none_near(&mut self, near: Near) -> bool {
        let has_chunks = |pack: &Pack| !pack.window(near).is_empty();
        !self.packs.values().any(has_chunks) && self.none_near.holds(near)
    }

    fn lease(&mut self, ask: &Ask, owner: &Arc<Owner>) -> Result<Lease, PackError> {
        let found = self.packs.values_mut().find_map(|pack| pack.take(ask));
        let (code, occupied) = match found {
            Some(found) => found,
            None if self.none_near.holds(ask.near) => return Err(out_of_reach(ask)),
            None => {
                let taken = self.take_from_new_pack(ask);
                if let Err(error) = &taken {
                    self.none_near.note(ask, error);
                }
                taken?
            }
        };
        self.nr_live += 1;
        self.requested_bytes += code.len_bytes;
        self.occupied_bytes += occupied.len_bytes;
        Ok(Lease {
            owner: Arc::clone(owner),
            held: Held { code, occupied },
        })
    }

    fn take_from_new_pack(&mut self, ask: &Ask) -> Result<(RxRange, RxRange), PackError> {
        let limit = self.config.max_packs.unwrap_or(usize::MAX);
        let spare = self
            .packs
            .iter()
            .find(|(_, pack)| pack.is_empty())
            .map(|(start, _)| *start);
        let nr_kept = self.packs.len() - usize::from(spare.is_some());
        if nr_kept >= limit {
            return Err(PackError::LimitReached { limit });
        }
        let mut pack = Pack::new(ask, self.config.huge)?;
        let unreachable = match ask.near {
            Near::Within { of, reach_bytes } => PackError::OutOfReach { of, reach_bytes },
            Near::Anywhere => PackError::LimitReached { limit },
        };
        let taken = pack.take(ask).ok_or(unreachable)?;
        // The empty pack that was kept did not serve: it makes room where there is none.
        if let (Some(start), true) = (spare, self.packs.len() >= limit) {
            self.packs.remove(&start);
        }
        self.packs.insert(pack.rx().start.get(), pack);
        Ok(taken)
    }

    /// Gives the pack that is not needed any more, for the caller to drop.
    fn give(&mut self, held: Held) -> Option<Pack> {
        self.nr_live -= 1;
        self.requested_bytes -= held.code.len_bytes;
        self.occupied_bytes -= held.occupied.len_bytes;
        let at = held.occupied.start.get();
        let (&start, pack) = self.packs.range_mut(..=at).next_back()?;
        pack.give(held.occupied);
        if !pack.is_empty() {
            return None;
        }
        // One empty pack is kept for the next, so that a lone program that comes and goes does
        // not map and unmap each time.
        let is_shared = pack.is_shared();
        let nr_empty = self.packs.values().filter(|pack| pack.is_empty()).count();
        if is_shared && nr_empty == 1 {
            return None;
        }
        self.packs.remove(&start)
    }

    fn stats(&self) -> PackStats {
        let packs = || self.packs.values();
        let nr_used = packs().map(|pack| pack.chunks.nr_used()).sum();
        let largest = packs().map(|pack| pack.chunks.largest_free_run()).max();
        PackStats {
            nr_packs: self.packs.len(),
            nr_huge_packs: packs().filter(|pack| pack.is_huge()).count(),
            pack_bytes: packs().map(|pack| pack.rx().len_bytes).sum(),
            nr_live: self.nr_live,
            nr_in_limbo: self.limbo.len(),
            nr_chunks_used: nr_used,
            nr_chunks_free: packs().map(|pack| pack.chunks.nr_free()).sum(),
            requested_bytes: self.requested_bytes,
            occupied_bytes: self.occupied_bytes,
            largest_free_run_bytes: largest.unwrap_or(0) * CHUNK_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_room_is_looked_at_again_after_a_while() {
        let of = text::RxAddr::new(0x40_0000);
        let ask = |reach_bytes| Ask {
            size_bytes: 64,
            align_bytes: 64,
            near: Near::Within { of, reach_bytes },
        };
        let (near, far) = (ask(NoneNear::MOST_REACH_BYTES), ask(1 << 31));
        let mut none = NoneNear::default();
        assert!(!none.holds(near.near));
        none.note(&near, &PackError::LimitReached { limit: 1 });
        assert!(
            !none.holds(near.near),
            "a limit is not where there is no room"
        );
        none.note(&near, &out_of_reach(&near));
        none.note(&far, &out_of_reach(&far));
        assert!(!none.holds(far.near), "what reaches far is not remembered");
        let times = (0..2 * NoneNear::TIMES).take_while(|_| none.holds(near.near));
        assert_eq!(times.count() as u32, NoneNear::TIMES - 1);
    }
}
