//! Where the address space has room for a pack within reach.
//!
//! Pure but for the mappings that are passed in. Key type: [`Wish`]. Neighbours: `pack` (tries the
//! places in turn), `text::ProcMaps`. Source: `proc_pid_maps(5)`.

use text::{Mapping, RxAddr};

use crate::{CHUNK_BYTES, PACK_BYTES};

/// What a new pack is for.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Wish {
    /// The size of the pack: whole [`PACK_BYTES`].
    pub(crate) pack_bytes: u64,
    /// What must fit in it, in reach.
    pub(crate) fit_bytes: u64,
    pub(crate) align_bytes: u64,
    pub(crate) of: RxAddr,
    /// First and last address in reach.
    pub(crate) bounds: (u64, u64),
}

impl Wish {
    /// The free place nearest to `of` that none of `refused` is.
    ///
    /// Places that would stand in the way of the heap or of the main stack growing are taken only
    /// if there is no other.
    pub(crate) fn nearest(&self, maps: &[Mapping], refused: &[u64]) -> Option<u64> {
        [Margin::Polite, Margin::None]
            .into_iter()
            .find_map(|margin| {
                let starts = gaps(maps, margin).filter_map(|gap| self.nearest_in(gap, refused));
                starts.min_by_key(|start| start.abs_diff(self.of.get()))
            })
    }

    fn nearest_in(&self, (gap_start, gap_end): (u64, u64), refused: &[u64]) -> Option<u64> {
        let pack = PACK_BYTES as u64;
        let (low, high) = self.bounds;
        let lowest = (low.saturating_add(self.fit_bytes)).saturating_sub(self.pack_bytes);
        let first = gap_start.max(lowest).checked_next_multiple_of(pack)?;
        let last = gap_end
            .checked_sub(self.pack_bytes)?
            .min(high.checked_sub(self.fit_bytes)?);
        let last = last / pack * pack;
        if first > last {
            return None;
        }
        let middle = (self.of.get() / pack * pack).clamp(first, last);
        let fits = |start: &u64| {
            (first..=last).contains(start) && !refused.contains(start) && self.fits_at(*start)
        };
        // At most the refused ones and the two at the bounds, where the alignment may spoil it,
        // are passed over.
        let steps = (0..=refused.len() as u64 + 2).map(|nr| nr * pack);
        let around = steps.flat_map(|step| [middle.checked_sub(step), middle.checked_add(step)]);
        around.flatten().find(fits)
    }

    /// Whether a pack there has the room in reach.
    fn fits_at(&self, start: u64) -> bool {
        let align = self.align_bytes.max(CHUNK_BYTES as u64);
        let Some(at) = start.max(self.bounds.0).checked_next_multiple_of(align) else {
            return false;
        };
        let end = at.saturating_add(self.fit_bytes);
        end <= start.saturating_add(self.pack_bytes) && end <= self.bounds.1
    }
}

/// Whether to leave room for what grows.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Margin {
    Polite,
    None,
}

/// Room left above the heap (`brk`) and below the main stack.
const GROWTH_BYTES: u64 = 128 << 20;
/// Nothing is mapped below (`vm.mmap_min_addr`, rounded up to a pack).
const LOWEST: u64 = PACK_BYTES as u64;

/// Where the kernel's half begins (x86_64 shows one page of it, `[vsyscall]`).
const USER_END: u64 = 1 << 63;

/// The free stretches between mappings. What lies above the last one may not be user space.
fn gaps(maps: &[Mapping], margin: Margin) -> impl Iterator<Item = (u64, u64)> + '_ {
    let ends = |map: &Mapping| (map.range.start.get(), map.range.end().get());
    let below = std::iter::once(None).chain(maps.iter().map(Some));
    let users = maps
        .iter()
        .take_while(|map| map.range.start.get() < USER_END);
    below.zip(users).filter_map(move |(below, above)| {
        let mut start = below.map_or(LOWEST, |map| ends(map).1);
        let mut end = ends(above).0;
        if margin == Margin::Polite {
            if below.is_some_and(|map| map.path == b"[heap]") {
                start = start.saturating_add(GROWTH_BYTES);
            }
            if above.path == b"[stack]" {
                end = end.saturating_sub(GROWTH_BYTES);
            }
        }
        (start < end).then_some((start, end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::RxRange;

    const M: u64 = 1 << 20;
    const G: u64 = 1 << 30;

    fn maps(list: &[(u64, u64, &str)]) -> Vec<Mapping> {
        let mapping = |&(start, end, path): &(u64, u64, &str)| Mapping {
            range: RxRange::new(RxAddr::new(start), (end - start) as usize),
            perms: *b"r-xp",
            off_bytes: 0,
            dev: (0, 0),
            inode: 0,
            path: path.into(),
        };
        list.iter().map(mapping).collect()
    }

    fn wish(of: u64, reach_bytes: u64, fit_bytes: u64) -> Wish {
        Wish {
            pack_bytes: fit_bytes.next_multiple_of(2 * M),
            fit_bytes,
            align_bytes: 64,
            of: RxAddr::new(of),
            bounds: (
                of.saturating_sub(reach_bytes),
                of.saturating_add(reach_bytes),
            ),
        }
    }

    #[test]
    fn the_nearest_gap_wins_on_either_side() {
        let maps = maps(&[
            (10 * G, 10 * G + 5 * M, "lib"),
            (10 * G + 9 * M, 12 * G, "other"),
        ]);
        let low = wish(10 * G + M, 2 * G, 64);
        assert_eq!(low.nearest(&maps, &[]), Some(10 * G - 2 * M));
        let high = wish(10 * G + 4 * M, 2 * G, 64);
        assert_eq!(high.nearest(&maps, &[]), Some(10 * G + 6 * M));
        // The gap above holds one pack only; then it is the other side.
        assert_eq!(high.nearest(&maps, &[10 * G + 6 * M]), Some(10 * G - 2 * M));
        let refused = [10 * G + 6 * M, 10 * G - 2 * M, 10 * G - 4 * M];
        assert_eq!(high.nearest(&maps, &refused), Some(10 * G - 6 * M));
    }

    #[test]
    fn a_short_reach_takes_part_of_a_pack() {
        let maps = maps(&[
            (10 * G, 10 * G + 512 * 1024, "lib"),
            (10 * G + 8 * M, 11 * G, "x"),
        ]);
        let of = 10 * G + 256 * 1024;
        assert_eq!(wish(of, M, 64).nearest(&maps, &[]), Some(10 * G - 2 * M));
        // Room for 768 KiB below and none above (the next 2 MiB border is too far).
        assert_eq!(
            wish(of, M, 768 * 1024).nearest(&maps, &[]),
            Some(10 * G - 2 * M)
        );
        assert_eq!(wish(of, M, 768 * 1024 + 64).nearest(&maps, &[]), None);
        let mut aligned = wish(of, M, 512 * 1024);
        aligned.align_bytes = 512 * 1024;
        assert_eq!(aligned.nearest(&maps, &[]), Some(10 * G - 2 * M));
        aligned.align_bytes = M;
        assert_eq!(aligned.nearest(&maps, &[]), None);
    }

    #[test]
    fn out_of_reach_is_none_and_ends_do_not_wrap() {
        let maps = maps(&[
            (4 * M, 10 * G, "all"),
            (u64::MAX - 4 * M, u64::MAX - 2 * M, "top"),
        ]);
        assert_eq!(wish(5 * G, G, 64).nearest(&maps, &[]), None);
        assert_eq!(wish(0, 3 * M, 64).nearest(&maps, &[]), Some(2 * M));
        assert_eq!(wish(u64::MAX, M, 64).nearest(&maps, &[]), None);
        assert_eq!(wish(u64::MAX - 1, 1 << 62, 64).nearest(&maps, &[]), None);
        assert_eq!(wish(5 * G, 0, 64).nearest(&maps, &[]), None);
        assert_eq!(wish(0, G, 64).nearest(&[], &[]), None);
    }

    #[test]
    fn heap_and_stack_keep_room_to_grow_if_there_is_a_choice() {
        let of = 10 * G;
        let heap = maps(&[
            (of, of + M, "exe"),
            (of + M, of + 2 * M, "[heap]"),
            (12 * G, 13 * G, "x"),
        ]);
        let taken_below = maps(&[
            (2 * M, of + M, "exe"),
            (of + M, of + 2 * M, "[heap]"),
            (12 * G, 13 * G, "x"),
        ]);
        assert_eq!(
            wish(of + M, 2 * G, 64).nearest(&heap, &[]),
            Some(of - 2 * M)
        );
        assert_eq!(
            wish(of, 2 * G, 64).nearest(&taken_below, &[]),
            Some(of + 130 * M)
        );
        assert_eq!(
            wish(of, 64 * M, 64).nearest(&taken_below, &[]),
            Some(of + 2 * M)
        );
        let stack = maps(&[(2 * M, of, "x"), (11 * G, 12 * G, "[stack]")]);
        assert_eq!(
            wish(11 * G, 2 * G, 64).nearest(&stack, &[]),
            Some(11 * G - 130 * M)
        );
    }
}
