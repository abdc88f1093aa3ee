//! Waiting for threads inside the covered bytes, and carrying away those that can be carried.
//!
//! All sites of a batch are proved in one pass. Threads that run and do not answer, because others
//! keep them from their harts, are asked again. If somebody stays, a short pass more finds out
//! where, and the others are proved without that site.
//!
//! Key types: [`Inside`]. Neighbours: `script` ([`Pass`]), [`crate::threads`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::script::Pass;
use crate::addr::RxRange;
use crate::threads::{self, Patience, Stuck, StuckWhy, Watch};

/// How many times as long as for one who is inside is waited for threads that run and have not
/// answered: they do when they get a hart.
const UNANSWERED: u32 = 5;
/// How long to look who it is that stays.
const SECOND_LOOK: Duration = Duration::from_millis(100);

/// Where somebody stayed.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) struct Stays {
    /// Which of the passes.
    pub(super) index: usize,
    /// The thread that was named, in this pass or in any, and what is known of it.
    pub(super) stuck: Stuck,
}

/// Proves every thread outside of all passes; those of which that cannot be proved within
/// `deadline` are the result.
pub(super) fn pass_by(passes: &[(usize, &Pass)], deadline: Duration) -> Vec<Stays> {
    let mut left = passes.to_vec();
    let mut stays = Vec::new();
    let patience = Patience::until(deadline);
    let start = Instant::now();
    while !left.is_empty() {
        let watch = Inside::new(&left);
        let Err(stuck) = threads::pass_by_watch(&watch, patience) else {
            break;
        };
        if stuck.why == StuckWhy::Running && start.elapsed() < deadline.saturating_mul(UNANSWERED) {
            continue;
        }
        let where_it_is = where_stuck(&watch, stuck, Patience::until(SECOND_LOOK));
        let Some((stuck, is_seen)) = where_it_is else {
            break;
        };
        let stay = |(index, _): &(usize, &Pass)| {
            let index = *index;
            (is_seen.is_empty() || is_seen.contains(&index)).then_some(Stays { index, stuck })
        };
        let nr_before = stays.len();
        stays.extend(left.iter().filter_map(stay));
        left.retain(|(index, _)| !stays[nr_before..].iter().any(|s| s.index == *index));
    }
    stays
}

/// Where threads are seen now; nowhere (an empty list) if that cannot be known. `None`: they have
/// left.
fn where_stuck(watch: &Inside, stuck: Stuck, patience: Patience) -> Option<(Stuck, Vec<usize>)> {
    if !matches!(stuck.why, StuckWhy::Inside | StuckWhy::Caller) {
        return Some((stuck, Vec::new()));
    }
    watch.forget_seen();
    let stuck = threads::pass_by_watch(watch, patience).err()?;
    Some((stuck, watch.seen()))
}

/// The watch over all passes of a batch.
pub(super) struct Inside {
    /// By first address.
    ranges: Vec<RxRange>,
    /// For each range, its pass, and whether somebody has been seen there.
    seen: Vec<(usize, AtomicBool)>,
    /// By address.
    carry: Vec<(u64, u64)>,
}

impl Inside {
    pub(super) fn new(passes: &[(usize, &Pass)]) -> Self {
        let mut by_start = passes.to_vec();
        by_start.sort_by_key(|(_, pass)| pass.range.start);
        let carry = by_start.iter().flat_map(|(_, pass)| &pass.carry);
        let mut carry: Vec<_> = carry.copied().collect();
        carry.sort_unstable();
        Self {
            ranges: by_start.iter().map(|(_, pass)| pass.range).collect(),
            seen: by_start
                .iter()
                .map(|(index, _)| (*index, AtomicBool::new(false)))
                .collect(),
            carry,
        }
    }

    fn forget_seen(&self) {
        for (_, is_seen) in &self.seen {
            is_seen.store(false, Ordering::Relaxed);
        }
    }

    fn seen(&self) -> Vec<usize> {
        let seen = self.seen.iter();
        let seen = seen.filter(|(_, is_seen)| is_seen.load(Ordering::Relaxed));
        seen.map(|(index, _)| *index).collect()
    }
}

impl Watch for Inside {
    fn ranges(&self) -> &[RxRange] {
        &self.ranges
    }

    fn busy_here(&self) -> bool {
        false
    }

    fn busy_of(&self, _tid: i32) -> bool {
        false
    }

    fn carry(&self, pc: u64) -> Option<u64> {
        let found = self.carry.binary_search_by_key(&pc, |(from, _)| *from);
        found
            .ok()
            .and_then(|i| self.carry.get(i))
            .map(|(_, to)| *to)
    }

    fn seen_at(&self, pc: u64) {
        let after = self.ranges.partition_point(|r| r.start.get() <= pc);
        let Some(i) = after.checked_sub(1) else {
            return;
        };
        if let (Some(range), Some((_, is_seen))) = (self.ranges.get(i), self.seen.get(i)) {
            if pc < range.end().get() {
                is_seen.store(true, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RxAddr;

    fn pass(start: u64, len_bytes: usize) -> Pass {
        Pass {
            range: RxRange::new(RxAddr::new(start), len_bytes),
            carry: vec![(start + 2, 0x9000 + start)],
        }
    }

    #[test]
    fn a_place_is_known_by_its_pass() {
        let (high, low) = (pass(0x2002, 6), pass(0x1002, 2));
        let watch = Inside::new(&[(7, &high), (3, &low)]);
        for (pc, want) in [
            (0, vec![]),
            (0x1001, vec![]),
            (0x1002, vec![3]),
            (0x1004, vec![]),
            (0x2007, vec![7]),
            (0x2008, vec![]),
        ] {
            watch.forget_seen();
            watch.seen_at(pc);
            assert_eq!(watch.seen(), want, "{pc:#x}");
        }
        assert_eq!(watch.carry(0x1004), Some(0x9000 + 0x1002));
        assert_eq!(watch.carry(0x2002), None);
    }

    #[test]
    fn where_nobody_is_nobody_stays() {
        let _turn = threads::tests::in_turn();
        let passes = [pass(0x2002, 6), pass(0x1002, 2)];
        let passes: Vec<_> = passes.iter().enumerate().collect();
        assert_eq!(pass_by(&passes, Duration::from_secs(20)), []);
    }
}
