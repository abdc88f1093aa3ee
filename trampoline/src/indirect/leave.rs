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
use text::threads::{Patience, Stuck, Watch, pass_by_watch};

use super::{Front, Version};
use crate::table;

/// Something that no call reaches any more, and that threads may be in.
#[derive(Debug)]
pub struct Leaving {
    front: Arc<Front>,
    version: Arc<Version>,
    /// By which it is pinned.
    number: u64,
    ranges: [RxRange; 1],
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
            ranges: [front.rx()],
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
            if self.stage == Stage::Counted && !self.front.is_counted_out() {
                return Left::No(None);
            }
            if let Err(stuck) = pass_by_watch(&*self, patience) {
                return Left::No(Some(stuck));
            }
            self.stage = match self.stage {
                Stage::Entered => Stage::Counted,
                Stage::Counted | Stage::Left => Stage::Left,
            };
        }
        Left::Yes
    }

    /// Whether it has been found left.
    pub fn is_left(&self) -> bool {
        self.stage == Stage::Left
    }

    fn is_of(&self, word: u64) -> bool {
        self.version.has(word) || (self.number != 0 && word == self.number)
    }
}

impl Watch for Leaving {
    fn ranges(&self) -> &[RxRange] {
        &self.ranges
    }

    fn busy_here(&self) -> bool {
        table::holds_here(|word| self.is_of(word))
    }

    fn busy_of(&self, tid: i32) -> bool {
        table::holds(tid, &|word| self.is_of(word))
    }
}
