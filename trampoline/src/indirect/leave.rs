//! When the last thread has left a version, or a front: see the table of [`super`].
//!
//! 1. *Pass*: every thread is seen once outside of the stubs and without an entry or pin of the
//!    version. From then on nobody who is not counted can be in it.
//! 2. The front's counter is zero: those who were counted have left too.
//! 3. *Pass* again: whoever counted out last has left the stub.
//!
//! Key type: [`Leaving`]. Neighbours: [`text::threads`] looks at threads. Source of the idea:
//! `bpf_struct_ops_map_put` in the kernel's `kernel/bpf/bpf_struct_ops.c`, which waits for RCU and
//! RCU tasks.

use std::sync::Arc;

use text::RxRange;
use text::threads::{Patience, Stuck, StuckWhy, Watch, pass_by_watch};

use super::{Front, Version};
use crate::table;

/// Something that no call reaches any more, and that threads may be in.
#[derive(Debug)]
pub struct Leaving {
    front: Arc<Front>,
    version: Arc<Version>,
    /// By which it is pinned.
    number: u64,
    stage: Stage,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Stage {
    Entered,
    Counted,
    Left,
}

/// Whether everybody has left.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Left {
    /// Nobody is in it, and nobody will be.
    Yes,
    /// Somebody may be. A thread that stands in the way, if one was seen.
    No(Option<Stuck>),
}

impl Leaving {
    /// `front` has been led away from `version` with this number.
    pub fn of_version(front: Arc<Front>, version: Arc<Version>, number: u64) -> Leaving {
        Leaving {
            front,
            version,
            number,
            stage: Stage::Entered,
        }
    }

    /// Nobody calls the stubs of `front` any more, which leads to no version, and all versions that
    /// it led to have been left.
    pub fn of_front(front: Arc<Front>) -> Leaving {
        let vacant = front.vacant().clone();
        Self::of_version(front, vacant, 0)
    }

    /// Looks at all threads, up to twice. Once left, it stays so.
    pub fn advance(&mut self, patience: Patience) -> Left {
        table::sweep();
        while self.stage != Stage::Left {
            if !self.wants_pass() {
                return Left::No(None);
            }
            if let Err(stuck) = pass_by_watch(&Group::of(&[&mut *self]), patience) {
                return Left::No(Some(stuck));
            }
            self.passed();
        }
        Left::Yes
    }

    /// Brings each of `some` as far as it goes, by as few looks at all threads as there can be.
    pub fn advance_all(some: &mut [&mut Leaving], patience: Patience) {
        table::sweep();
        for _ in 0..2 {
            let wanted = some.iter_mut().filter(|one| one.wants_pass());
            let mut wanted: Vec<&mut Leaving> = wanted.map(|one| &mut **one).collect();
            if pass_all(&mut wanted, patience) == Moved::No {
                break;
            }
        }
    }

    /// Would a pass bring it further?
    fn wants_pass(&self) -> bool {
        match self.stage {
            Stage::Entered => true,
            Stage::Counted => self.front.is_counted_out(),
            Stage::Left => false,
        }
    }

    fn passed(&mut self) {
        self.stage = match self.stage {
            Stage::Entered => Stage::Counted,
            Stage::Counted | Stage::Left => Stage::Left,
        };
    }

    /// Whether it has been found left.
    pub fn is_left(&self) -> bool {
        self.stage == Stage::Left
    }

    fn is_of(&self, word: u64) -> bool {
        self.version.has(word) || (self.number != 0 && word == self.number)
    }
}

/// Has any of them come further?
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Moved {
    Yes,
    No,
}

/// One pass for all. Where somebody is in one of them, both halves are asked about on their own,
/// and so on, until those are found that somebody is in.
fn pass_all(some: &mut [&mut Leaving], patience: Patience) -> Moved {
    if some.is_empty() {
        return Moved::No;
    }
    match (pass_by_watch(&Group::of(some), patience), some) {
        (Ok(()), some) => {
            some.iter_mut().for_each(|one| one.passed());
            Moved::Yes
        }
        (Err(stuck), some)
            if some.len() > 1 && matches!(stuck.why, StuckWhy::Inside | StuckWhy::Caller) =>
        {
            let (left, right) = some.split_at_mut(some.len() / 2);
            match (pass_all(left, patience), pass_all(right, patience)) {
                (Moved::No, Moved::No) => Moved::No,
                _ => Moved::Yes,
            }
        }
        // A thread that could not be looked at may be anywhere: fewer pieces say no more.
        (Err(_), _) => Moved::No,
    }
}

/// Several pieces that one pass is about.
struct Group<'a> {
    all: Vec<&'a Leaving>,
    ranges: Vec<RxRange>,
}

impl<'a> Group<'a> {
    fn of(some: &'a [&mut Leaving]) -> Self {
        let mut ranges: Vec<RxRange> = some.iter().map(|one| one.front.rx()).collect();
        ranges.sort_by_key(|range| range.start);
        ranges.dedup();
        Group {
            all: some.iter().map(|one| &**one).collect(),
            ranges,
        }
    }

    fn has(&self, word: u64) -> bool {
        self.all.iter().any(|one| one.is_of(word))
    }
}

impl Watch for Group<'_> {
    fn ranges(&self) -> &[RxRange] {
        &self.ranges
    }

    fn busy_here(&self) -> bool {
        table::holds_here(|word| self.has(word))
    }

    fn busy_of(&self, tid: i32) -> bool {
        table::holds(tid, &|word| self.has(word))
    }
}
