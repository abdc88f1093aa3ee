//! The life of an image: made, reachable, retired, freed.
//!
//! # When is an image free of threads?
//! After the change that retires it (its slot leads elsewhere, or its site is off, and the flush
//! is done) no call enters it newly. What may still be in it, and what covers each window:
//!
//! | where a thread can be | covered by |
//! | --- | --- |
//! | in the slot, with the image's address in a register | its pc: the slot belongs to the watched ranges |
//! | in the image, before it has counted itself or set the guard | its pc |
//! | in a program that the hot path called | the thread's guard holds the image's key |
//! | nested deeper: a program of another image on top | the key is among the nested ones |
//! | in the slow path, or in a program called from there | the in-flight counter |
//! | in the function, to return through the image | the in-flight counter |
//! | in the image, after the count or the guard was given back | its pc |
//! | in a signal handler that interrupted one of these | the signal frame's pc, or the same counter or guard |
//! | left by an exception, a panic or `pthread_exit` | it lands in the image, which counts it out |
//! | left by `longjmp` | the counter does not return to zero, and the image is kept: for good if the frame was on the stack, until it is collected (`shadow`) if it was not |
//! | in a child of `vfork`, which has the thread pointer of a thread that waits | that thread's guard and the counter; a child whose thread is not registered runs programs in the slow path alone (`table`) |
//! | left by such a child that ends, or `exec`s, inside | as by `longjmp` |
//!
//! So freeing takes two passes of [`text::threads`] around the counter:
//!
//! 1. *Pass*: every thread is seen once outside the ranges and not in a program of the image.
//!    From then on nobody can count in any more.
//! 2. The counter's lines add up to zero: everybody who counted in has counted out. (From here on
//!    lines only fall, so lines read one after the other cannot add up to zero too early.)
//! 3. *Pass* again: whoever counted out last has left the image.
//!
//! Images whose programs do not look at the return are only counted in the slow path; for them the
//! same steps cost nothing more. Neither pass waits for a thread that is blocked inside the
//! function: such a thread is outside the ranges, and the counter says that it will be back.
//!
//! Source of the idea: `bpf_tramp_image_put` in the kernel's `kernel/bpf/trampoline.c`, whose
//! `percpu_ref` and `rcu_tasks` these are.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use pack_alloc::{PackAlloc, PackCode};
use symbols::Published;
use text::threads::{Patience, Stuck, StuckWhy, Watch, pass_by_watch};
use text::{Island, RxRange, WordPatch};

use crate::entry::Entry;
use crate::image::ExitBlock;
use crate::indirect::Placed;
use crate::pin::LibPin;
use crate::prog::Prog;
use crate::slot;
use crate::slow::Desc;
use crate::table;

/// Calls in flight through an image, in one line per shard: a hot function called by many harts
/// does not make them fight for one cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Line(AtomicI64);

const _: () = assert!(size_of::<Line>() == table::SHARD_BYTES);

/// The counter of one image. Machine code adds to its lines.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Inflight {
    lines: [Line; table::SHARDS],
    /// The address in the image that the function returns to; 0 if it does not. For whoever knows
    /// a call by its line.
    back: AtomicU64,
}

impl Inflight {
    /// Where `back` is.
    pub(crate) const BACK_OFF: i32 = offset_of!(Inflight, back) as i32;

    /// Notes it.
    pub(crate) fn comes_back_to(&self, back: u64) {
        self.back.store(back, Ordering::Relaxed);
    }

    pub(crate) fn addr(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }

    fn is_zero(&self) -> bool {
        let sum = self
            .lines
            .iter()
            .map(|l| l.0.load(Ordering::Acquire))
            .fold(0, i64::wrapping_add);
        sum == 0
    }
}

/// A published image and everything its machine code refers to.
#[derive(Debug)]
pub(crate) struct Image {
    /// Taken back before the code is freed.
    pub(crate) _published: Published,
    pub(crate) code: PackCode,
    pub(crate) exits: Vec<Exit>,
    pub(crate) inflight: Box<Inflight>,
    /// Referred to by the image's words.
    pub(crate) _desc: Box<Desc>,
    /// With the number of the link that each belongs to; keeps counters and owners alive.
    pub(crate) progs: Vec<(u64, Prog)>,
}

/// An exit block, and whether its program still runs there.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) block: ExitBlock,
    pub(crate) first_word: u32,
    pub(crate) runs: Runs,
}

/// Does the program of an exit block run?
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Runs {
    Yes,
    No,
}

impl Image {
    /// The stores after which the programs of `links` run in no call that is inside the function
    /// now.
    pub(crate) fn exit_patches(&self, links: &BTreeSet<u64>) -> Vec<WordPatch> {
        let mine = self
            .exits
            .iter()
            .filter(|x| x.runs == Runs::Yes && links.contains(&self.link_of(x)));
        let patch = |x: &Exit| {
            let skip = slot::skip_word(x.block.next_bytes - x.block.at_bytes)?;
            let at = self.code.rx().start.checked_add(x.block.at_bytes.into())?;
            Some(WordPatch {
                at,
                old: x.first_word,
                new: skip,
            })
        };
        mine.filter_map(patch).collect()
    }

    /// The patches of [`Image::exit_patches`] have been stored.
    pub(crate) fn exits_patched(&mut self, links: &BTreeSet<u64>) {
        let progs = &self.progs;
        for x in &mut self.exits {
            if links.contains(&progs[x.block.prog].0) {
                x.runs = Runs::No;
            }
        }
    }

    fn link_of(&self, exit: &Exit) -> u64 {
        self.progs[exit.block.prog].0
    }
}

/// Code that nobody reaches any more, on its way to being freed.
#[derive(Debug)]
pub(crate) struct Retired {
    pub(crate) what: What,
    /// Where a thread could be that is about to enter, or in it.
    pub(crate) ranges: Vec<RxRange>,
    stage: Stage,
}

/// What is retired.
#[derive(Debug)]
pub(crate) enum What {
    Image(Image),
    /// With the island by which its function leads to it.
    Slot(PackCode, Arc<LibPin>, Option<Arc<Island>>),
    Leaf(Placed),
}

/// How far it has come; see the module.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Stage {
    /// Threads may be about to count in.
    Entered,
    /// Those who are in it are counted.
    Counted,
    /// A pass has found it in use; it is asked about alone from now on, so that it does not hold
    /// up others. Holds the stage to go on from.
    Slow(SlowStage),
    /// Nobody is in it, and nobody will be.
    Free,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum SlowStage {
    Entered,
    Counted,
}

impl Retired {
    pub(crate) fn image(image: Image, slot: RxRange) -> Self {
        let ranges = vec![image.code.rx(), slot];
        Retired {
            what: What::Image(image),
            ranges,
            stage: Stage::Entered,
        }
    }

    /// A slot is free as soon as nobody is in it, between the site's words, or in the island.
    pub(crate) fn slot(code: PackCode, entry: Entry, pin: Arc<LibPin>) -> Self {
        let mut ranges = entry.way_in();
        ranges.push(code.rx());
        Retired {
            what: What::Slot(code, pin, entry.into_island()),
            ranges,
            stage: Stage::Counted,
        }
    }

    /// A leaf is free as soon as nobody is in it, or on the way.
    pub(crate) fn leaf(placed: Placed, way_in: Option<RxRange>) -> Self {
        let ranges = std::iter::once(placed.rx()).chain(way_in).collect();
        Retired {
            what: What::Leaf(placed),
            ranges,
            stage: Stage::Counted,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match &self.what {
            What::Image(image) => image.code.rx().len_bytes,
            What::Slot(code, ..) => code.rx().len_bytes,
            What::Leaf(placed) => placed.rx().len_bytes,
        }
    }

    fn nobody_counted(&self) -> bool {
        match &self.what {
            What::Image(image) => image.inflight.is_zero(),
            What::Slot(..) | What::Leaf(_) => true,
        }
    }

    /// Would a pass bring it further?
    fn wants_pass(&self) -> bool {
        match self.stage {
            Stage::Entered | Stage::Slow(SlowStage::Entered) => true,
            Stage::Counted | Stage::Slow(SlowStage::Counted) => self.nobody_counted(),
            Stage::Free => false,
        }
    }

    fn is_slow(&self) -> bool {
        matches!(self.stage, Stage::Slow(_))
    }

    fn slow_down(&mut self) {
        self.stage = match self.stage {
            Stage::Entered => Stage::Slow(SlowStage::Entered),
            Stage::Counted => Stage::Slow(SlowStage::Counted),
            other @ (Stage::Slow(_) | Stage::Free) => other,
        };
    }

    /// A pass has succeeded.
    fn passed(&mut self) {
        self.stage = match self.stage {
            Stage::Entered | Stage::Slow(SlowStage::Entered) => Stage::Counted,
            Stage::Counted | Stage::Slow(SlowStage::Counted) | Stage::Free => Stage::Free,
        };
    }
}

/// The ranges of several retired pieces, and the guards that hold keys in them. In order; those
/// that overlap (a slot is the way into several images) are one.
struct Ranges(Vec<RxRange>);

impl Ranges {
    fn new(mut all: Vec<RxRange>) -> Self {
        all.sort_unstable_by_key(|r| r.start);
        let mut ranges: Vec<RxRange> = Vec::with_capacity(all.len());
        for range in all {
            match ranges.last_mut() {
                Some(last) if range.start <= last.end() => {
                    let end = last.end().max(range.end());
                    last.len_bytes = (end.get() - last.start.get()) as usize;
                }
                _ => ranges.push(range),
            }
        }
        Ranges(ranges)
    }

    /// Runs in a signal handler.
    fn has(&self, key: u64) -> bool {
        let key = text::RxAddr::new(key);
        let after = self.0.partition_point(|r| r.start <= key);
        let range = after.checked_sub(1).and_then(|i| self.0.get(i));
        range.is_some_and(|r| r.contains(key))
    }
}

impl Watch for Ranges {
    fn ranges(&self) -> &[RxRange] {
        &self.0
    }

    fn busy_here(&self) -> bool {
        table::is_busy_here(|key| self.has(key))
    }

    fn busy_of(&self, tid: i32) -> bool {
        table::is_busy(tid, &|key| self.has(key))
    }
}

/// What a pass says of some pieces.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Pass {
    /// Every thread has been outside of all of them.
    Outside,
    /// Some thread is in one of them.
    Inside,
    /// Some thread could not be looked at in time. It may be anywhere: asking about fewer pieces
    /// would say no more.
    Unseen(Stuck),
}

fn pass(some: &[&mut Retired], patience: Patience) -> Pass {
    let ranges = Ranges::new(some.iter().flat_map(|r| r.ranges.iter().copied()).collect());
    match pass_by_watch(&ranges, patience) {
        Ok(()) => Pass::Outside,
        Err(Stuck {
            why: StuckWhy::Inside | StuckWhy::Caller,
            ..
        }) => Pass::Inside,
        Err(stuck) => Pass::Unseen(stuck),
    }
}

/// What freed pieces had, which is dropped when no lock is held: a library's destructors run when
/// its pin goes, and those of users when the owners of programs go.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    pins: Vec<Arc<LibPin>>,
    progs: Vec<Vec<(u64, Prog)>>,
}

impl Leftovers {
    pub(crate) fn is_empty(&self) -> bool {
        self.pins.is_empty() && self.progs.is_empty()
    }
}

/// Frees what can be freed of `retired`; what cannot stays in it. Gives a thread that could not be
/// looked at, if one stood in the way.
///
/// # Errors
/// What the pack says; the pieces concerned are not reachable and stay where they are.
pub(crate) fn reclaim(
    retired: &mut Vec<Retired>,
    packs: &PackAlloc,
    patience: Patience,
    leftovers: &mut Leftovers,
) -> Result<Option<Stuck>, pack_alloc::PackError> {
    table::sweep();
    let (mut free, mut unseen) = (Vec::new(), None);
    // Two passes bring a piece from `Entered` to free; a third finds what the second slowed down.
    for _ in 0..3 {
        if !advance(retired, &mut free, patience, &mut unseen) {
            break;
        }
    }
    let mut islands = Vec::new();
    let codes = free.into_iter().filter_map(|r: Retired| match r.what {
        What::Image(image) => {
            leftovers.progs.push(image.progs);
            Some(image.code)
        }
        What::Slot(code, pin, island) => {
            leftovers.pins.push(pin);
            islands.extend(island.and_then(Arc::into_inner));
            Some(code)
        }
        What::Leaf(placed) => placed.into_code(),
    });
    let codes = codes.collect();
    // While the library is held, and before what they lead to is gone.
    text::give_back_all(islands);
    packs.free_all(codes)?;
    Ok(unseen)
}

/// Brings every piece that can be one stage further. Says whether anything moved.
fn advance(
    retired: &mut Vec<Retired>,
    free: &mut Vec<Retired>,
    patience: Patience,
    unseen: &mut Option<Stuck>,
) -> bool {
    let wanted = retired.iter_mut().filter(|r| r.wants_pass());
    let (mut slow, mut fast): (Vec<_>, Vec<_>) = wanted.partition(|r| r.is_slow());
    let moved = advance_all(&mut fast, patience, unseen) | advance_all(&mut slow, patience, unseen);
    for i in (0..retired.len()).rev() {
        if retired[i].stage == Stage::Free {
            free.push(retired.swap_remove(i));
        }
    }
    moved
}

/// One pass for all. Where somebody is in one of them, both halves are asked about on their own,
/// and so on, until those are found who hold up the others.
fn advance_all(some: &mut [&mut Retired], patience: Patience, unseen: &mut Option<Stuck>) -> bool {
    if some.is_empty() {
        return false;
    }
    match (pass(some, patience), some) {
        (Pass::Outside, some) => {
            some.iter_mut().for_each(|piece| piece.passed());
            true
        }
        (Pass::Unseen(stuck), _) => {
            *unseen = Some(stuck);
            false
        }
        (Pass::Inside, [one]) => {
            one.slow_down();
            false
        }
        (Pass::Inside, some) => {
            let (left, right) = some.split_at_mut(some.len() / 2);
            advance_all(left, patience, unseen) | advance_all(right, patience, unseen)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::RxAddr;

    #[test]
    fn ranges_are_found_however_they_lie() {
        let range = |(start, len)| RxRange::new(RxAddr::new(start), len);
        // A slot that two images share, neighbours, one in another, gaps.
        let all = [
            (64, 64),
            (0x400, 8),
            (64, 64),
            (128, 64),
            (0x1000, 256),
            (0x1010, 4),
        ];
        let all: Vec<RxRange> = all.map(range).to_vec();
        let ranges = Ranges::new(all.clone());
        for key in 0..0x1200 {
            let want = all.iter().any(|r| r.contains(RxAddr::new(key)));
            assert_eq!(ranges.has(key), want, "{key:#x}");
        }
        assert!(!Ranges::new(Vec::new()).has(0));
    }
}
