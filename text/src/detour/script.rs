//! What each change of a site comes to: stores of half-words in an order, and whom to wait for.
//!
//! This is data alone, and the same data drives the live change ([`super::change`]) and the
//! exhaustive model of it (`model`). A site is in one of four [`Phase`]s, by its head (the
//! first half-word) and its tail (the rest of its jump):
//!
//! ```text
//!               head          tail
//!   Bare        original      original       nobody has been here
//!   Trap        c.ebreak      original
//!   Closed      c.ebreak      of the jump
//!   Jump        of the jump   of the jump
//! ```
//!
//! A script leads from any phase to any other. While the tail changes the head is a trap, and
//! between two changes of different parts there is always a flush. Why that is enough is argued in
//! [`super`].
//!
//! Where a trap would kill, the head is `c.j .` meanwhile ([`Script::waiting`]). That is no phase:
//! it begins and ends under the text lock (`window`).
//!
//! Key types: [`Shape`], [`Phase`], [`Script`], [`ORDER`]. Neighbours: `change`, `model`.

use std::collections::BTreeMap;

use super::{Detour, DetourKind};
use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::insn::{self, C_EBREAK, C_J_0};
use crate::txn::WordPatch;

/// How far a site has come.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub(crate) enum Phase {
    /// The original text.
    Bare,
    /// A trap, and behind it the original text.
    Trap,
    /// A trap, and behind it the rest of a jump.
    Closed,
    /// A jump.
    Jump,
}

impl Phase {
    fn of(head: Head, tail: Tail) -> Self {
        match (head, tail) {
            (Head::Trap, Tail::Original) => Self::Trap,
            (Head::Trap, Tail::OfJump) => Self::Closed,
            (Head::Final, Tail::Original) => Self::Bare,
            (Head::Final, Tail::OfJump) => Self::Jump,
        }
    }

    fn head(self) -> Head {
        match self {
            Self::Bare | Self::Jump => Head::Final,
            Self::Trap | Self::Closed => Head::Trap,
        }
    }

    fn tail(self) -> Tail {
        match self {
            Self::Bare | Self::Trap => Tail::Original,
            Self::Closed | Self::Jump => Tail::OfJump,
        }
    }
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum Head {
    Trap,
    /// What belongs to the tail.
    Final,
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum Tail {
    Original,
    OfJump,
}

/// A change of half a word.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Half {
    pub(crate) at: RxAddr,
    pub(crate) old: u16,
    pub(crate) new: u16,
}

/// A detour and the text that it replaces.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) detour: Detour,
    /// The half-words that the jump replaces, as they were before.
    pub(crate) original: Vec<u16>,
    /// The half-words of the jump; a lone `c.ebreak` if the site shall stay a trap.
    pub(crate) jump: Vec<u16>,
}

impl Shape {
    /// A detour over `code`, the original text from its site on.
    ///
    /// # Errors
    /// [`TextError::Reach`].
    pub(crate) fn new(detour: &Detour, code: &[u16]) -> Result<Self, TextError> {
        let jump = jump_halves(detour)?;
        Ok(Self {
            detour: detour.clone(),
            original: code.iter().copied().take(jump.len()).collect(),
            jump,
        })
    }

    /// Whether one aligned store changes the site, with no boundary between instructions inside of
    /// it before or after.
    pub(crate) fn is_one_store(&self) -> bool {
        let first = self
            .original
            .first()
            .and_then(|half| insn::len_bytes(*half));
        self.detour.kind == DetourKind::Near
            && self.detour.at.is_aligned(4)
            && self.detour.covered_bytes == 4
            && first == Some(4)
    }

    /// The phase that its kind wants.
    pub(crate) fn goal(&self) -> Phase {
        match self.detour.kind {
            DetourKind::Trap => Phase::Trap,
            DetourKind::Near | DetourKind::Far { .. } => Phase::Jump,
        }
    }

    fn halves(&self, tail: Tail) -> &[u16] {
        match tail {
            Tail::Original => &self.original,
            Tail::OfJump => &self.jump,
        }
    }

    fn head(&self, phase: Phase) -> u16 {
        match phase.head() {
            Head::Trap => C_EBREAK,
            Head::Final => self
                .halves(phase.tail())
                .first()
                .copied()
                .unwrap_or(C_EBREAK),
        }
    }

    fn change_head(&self, from: Phase, to: Phase) -> Vec<Half> {
        let half = Half {
            at: self.detour.at,
            old: self.head(from),
            new: self.head(to),
        };
        if half.old == half.new {
            return Vec::new();
        }
        vec![half]
    }

    fn change_tail(&self, from: Tail, to: Tail) -> Vec<Half> {
        let pairs = self.halves(from).iter().zip(self.halves(to)).enumerate();
        let at = |i: usize| RxAddr::new(self.detour.at.get().wrapping_add(2 * i as u64));
        let halves = pairs.map(|(i, (old, new))| Half {
            at: at(i),
            old: *old,
            new: *new,
        });
        halves.skip(1).collect()
    }

    /// Who must not be inside when this tail goes away.
    fn pass(&self, tail: Tail) -> Option<Pass> {
        let Detour { at, to, .. } = self.detour;
        let here = |off: u8| at.get().wrapping_add(u64::from(off));
        match (tail, self.detour.kind) {
            (Tail::Original, _) => {
                let moved = self.detour.moved.iter().filter(|(off, _)| *off > 0);
                Some(Pass::over(
                    at,
                    self.detour.covered_bytes,
                    moved.map(|(off, to)| (here(*off), to.get())).collect(),
                ))
            }
            // Between `auipc` and `jalr`: what the `jalr` does is known.
            (Tail::OfJump, DetourKind::Far { .. }) => {
                Some(Pass::over(at, 8, vec![(here(4), to.get())]))
            }
            // The jump is one instruction: nobody can be inside.
            (Tail::OfJump, DetourKind::Trap | DetourKind::Near) => None,
        }
    }
}

/// Bytes that every thread must have left, the first half-word aside.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Pass {
    pub(crate) range: RxRange,
    /// Where a thread goes on that is carried away, by where it is.
    pub(crate) carry: Vec<(u64, u64)>,
}

impl Pass {
    fn over(at: RxAddr, covered_bytes: u8, carry: Vec<(u64, u64)>) -> Self {
        let start = RxAddr::new(at.get().wrapping_add(2));
        Self {
            range: RxRange::new(start, usize::from(covered_bytes).saturating_sub(2)),
            carry,
        }
    }
}

/// A change of one site, part by part.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) from: Phase,
    pub(crate) to: Phase,
    /// The head becomes a trap.
    close: Vec<Half>,
    pub(crate) pass: Option<Pass>,
    tail: Vec<Half>,
    head: Vec<Half>,
}

/// The parts of a script that store something.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Part {
    Close,
    Tail,
    Head,
}

/// A step of all scripts of a batch.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Step {
    /// Store this part, then flush.
    Change(Part),
    /// Wait until nobody is inside.
    PassBy,
}

/// The order of all scripts.
pub(crate) const ORDER: [Step; 4] = [
    Step::Change(Part::Close),
    Step::PassBy,
    Step::Change(Part::Tail),
    Step::Change(Part::Head),
];

impl Script {
    pub(crate) fn new(shape: &Shape, from: Phase, to: Phase) -> Self {
        let mut script = Self {
            from,
            to,
            close: Vec::new(),
            pass: None,
            tail: Vec::new(),
            head: Vec::new(),
        };
        if from.tail() == to.tail() {
            script.head = shape.change_head(from, to);
            return script;
        }
        let tail = shape.change_tail(from.tail(), to.tail());
        if shape.is_one_store() && (from.head(), to.head()) == (Head::Final, Head::Final) {
            script.head = shape.whole_word(from, to, tail);
            return script;
        }
        let closed = Phase::of(Head::Trap, from.tail());
        script.close = shape.change_head(from, closed);
        script.pass = shape.pass(from.tail());
        script.tail = tail;
        script.head = shape.change_head(Phase::of(Head::Trap, to.tail()), to);
        script
    }

    /// The same without a trap on the way: threads that come by wait at the entry, in `c.j .`.
    /// Every site is closed, also one that one store could change. `None`: what shall be a trap
    /// in the end, and is none.
    pub(crate) fn waiting(shape: &Shape, from: Phase, to: Phase) -> Option<Self> {
        if to.head() == Head::Trap && from != to {
            return None;
        }
        let mut script = Self::new(shape, from, to);
        if from.tail() == to.tail() {
            return Some(script);
        }
        script.tail = shape.change_tail(from.tail(), to.tail());
        script.pass = shape.pass(from.tail());
        let half = |old, new| Half {
            at: shape.detour.at,
            old,
            new,
        };
        let (before, after) = (shape.head(from), shape.head(to));
        script.close = match from.head() {
            Head::Trap => Vec::new(),
            Head::Final => vec![half(before, C_J_0)],
        };
        let closed = script.close.first().map_or(before, |close| close.new);
        script.head = vec![half(closed, after)];
        Some(script)
    }

    pub(crate) fn part(&self, part: Part) -> &[Half] {
        match part {
            Part::Close => &self.close,
            Part::Tail => &self.tail,
            Part::Head => &self.head,
        }
    }

    /// The phase of the site when this part has been changed.
    pub(crate) fn after(&self, part: Part) -> Phase {
        match part {
            Part::Close => Phase::of(Head::Trap, self.from.tail()),
            Part::Tail => Phase::of(Head::Trap, self.to.tail()),
            Part::Head => self.to,
        }
    }

    /// The phase of the site if its head is made a trap after all.
    pub(crate) fn trapped(&self) -> Phase {
        Phase::of(Head::Trap, self.from.tail())
    }

    /// Whether a site that is none becomes a trap.
    pub(crate) fn lays_trap(&self) -> bool {
        let is_trap = |half: &Half| half.new == C_EBREAK && half.old != C_EBREAK;
        self.from.head() != Head::Trap && self.close.iter().chain(&self.head).any(is_trap)
    }
}

impl Shape {
    fn whole_word(&self, from: Phase, to: Phase, tail: Vec<Half>) -> Vec<Half> {
        let mut word = self.change_head(from, to);
        word.extend(tail);
        word
    }
}

/// Puts half-words together to words, with their neighbours as they are now.
///
/// # Errors
/// [`TextError::Mismatch`]: a half-word is not what it should be.
pub(crate) fn compose<'a>(
    halves: impl IntoIterator<Item = &'a Half>,
    load: impl Fn(RxAddr) -> u32,
) -> Result<Vec<WordPatch>, TextError> {
    let mut words: BTreeMap<u64, WordPatch> = BTreeMap::new();
    for half in halves {
        let at = half.at.align_down(4);
        let word = words.entry(at.get()).or_insert_with(|| {
            let now = load(at);
            WordPatch {
                at,
                old: now,
                new: now,
            }
        });
        let shift = 8 * (half.at.get() - at.get()) as u32;
        let with = |word: u32, half: u16| word & !(0xffff << shift) | u32::from(half) << shift;
        if with(word.old, half.old) != word.old {
            return Err(TextError::Mismatch {
                site: at,
                expected: with(word.old, half.old),
                found: word.old,
            });
        }
        word.new = with(word.new, half.new);
    }
    Ok(words.into_values().collect())
}

/// The words that half-words lie in, each once.
pub(crate) fn words_of(start: RxAddr, len_bytes: usize) -> Vec<RxAddr> {
    let first = start.align_down(4).get();
    let end = start.get().saturating_add(len_bytes as u64);
    let words = (first..end).step_by(4);
    words.map(RxAddr::new).collect()
}

/// How many bytes the jump of this kind has.
pub(crate) const fn jump_bytes(kind: DetourKind) -> u8 {
    match kind {
        DetourKind::Trap => 2,
        DetourKind::Near => 4,
        DetourKind::Far { .. } => 8,
    }
}

fn jump_halves(detour: &Detour) -> Result<Vec<u16>, TextError> {
    let Detour { at, to, kind, .. } = *detour;
    let words = match kind {
        DetourKind::Trap => return Ok(vec![C_EBREAK]),
        DetourKind::Near => insn::jump_near(at, to).map(|word| vec![word]),
        DetourKind::Far { scratch } => insn::jump_far(at, to, scratch).map(Vec::from),
    };
    let words = words.ok_or(TextError::Reach {
        site: at,
        target: to,
    })?;
    let halves = words.into_iter().flat_map(|w| [w as u16, (w >> 16) as u16]);
    Ok(halves.collect())
}
