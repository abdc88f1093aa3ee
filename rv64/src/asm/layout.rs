//! Chooses a form and a place for every item.
//!
//! All start in their smallest form. A round places everything, then grows
//! each item that does not reach; nothing ever shrinks, so the rounds end.
//!
//! The bound for an unknown base is the same with every padding at its
//! longest and every absolute jump and shared base at its largest. Why it is a bound: by
//! induction over the rounds no form of a real layout exceeds the bound's
//! form of the same item, because every distance between two items is a sum
//! of sizes that are not larger, and what reaches far reaches near.
//!
//! Branches that each push the next out of reach could take a round each.
//! After [`MAX_ROUNDS`] the bound gives whatever could still grow a form that
//! reaches even if everything else is at its largest; a real layout takes the
//! forms of the bound, whose distances its own do not exceed. So time is linear
//! in the length, and the bound stays one.
//!
//! Neighbours: `item` names the forms, `emit` writes what is chosen.
//!
//! Source: the shape of GNU as `relax_segment`, growing only.

use super::item::{AbsRel, Form, Item, Owner};
use super::{Asm, Label};
use crate::{AsmError, Offset};

/// The most code: every distance fits a pair of auipc and partner.
const MAX_BYTES: u64 = 1 << 30;

/// The most rounds in which items grow one form at a time.
pub(super) const MAX_ROUNDS: u32 = 32;

/// Where the code will stand.
#[derive(Clone, Copy)]
pub(super) enum Base {
    /// At this address.
    At(u64),
    /// Anywhere: sizes are upper bounds.
    Any,
}

/// Form and place of every item.
pub(super) struct Layout {
    base: Base,
    pub(super) forms: Vec<Form>,
    /// One more than items: the last is the size.
    pub(super) offsets: Vec<u32>,
    /// Whether each literal is there.
    pub(super) present: Vec<bool>,
    /// Those there have been.
    pub(super) rounds: u32,
}

/// The two ways an item can fail to reach.
enum Reach {
    Yes,
    /// By this distance.
    No(i64),
}

impl Layout {
    /// The layout for a known base.
    pub(super) fn settle(asm: &Asm, base: Base) -> Result<Self, AsmError> {
        let mut layout = Self::start(asm, base);
        while layout.round(asm)? {
            if layout.rounds == MAX_ROUNDS {
                layout.take_bound(asm);
            }
        }
        if let Base::At(base) = base {
            layout.check_base(asm, base)?;
        }
        Ok(layout)
    }

    /// The size that no layout exceeds.
    pub(super) fn bound(asm: &Asm) -> usize {
        Self::limit(asm).size() as usize
    }

    /// The layout that has this size.
    pub(super) fn limit(asm: &Asm) -> Self {
        let mut layout = Self::start(asm, Base::Any);
        for (form, item) in layout.forms.iter_mut().zip(&asm.items) {
            if matches!(
                item,
                Item::Absolute { .. } | Item::AbsRel { .. } | Item::Base { .. }
            ) {
                *form = asm.forms(item).last().copied().unwrap_or(*form);
            }
        }
        layout.present.fill(true);
        // An error is a target that no form reaches: its item has its largest
        // form, and `finish` will say so. Rounds still end, by growth alone.
        while layout.round_lenient(asm) {
            if layout.rounds == MAX_ROUNDS {
                layout.take_certain(asm);
            }
        }
        layout
    }

    /// Takes the forms of the bound.
    fn take_bound(&mut self, asm: &Asm) {
        let bound = Self::limit(asm);
        (self.forms, self.present) = (bound.forms, bound.present);
        self.rounds += bound.rounds;
    }

    /// Takes, for every item, a form that reaches whatever the others take.
    fn take_certain(&mut self, asm: &Asm) {
        let mut largest = Self::start(asm, self.base);
        for (form, item) in largest.forms.iter_mut().zip(&asm.items) {
            *form = asm.forms(item).last().copied().unwrap_or(*form);
        }
        largest.present.fill(true);
        // What is too large for that is found too large by the next round.
        if largest.place(asm).is_ok() {
            for (index, &form) in self.forms.iter().enumerate() {
                largest.forms[index] = form;
                while let Reach::No(_) = largest.reach(asm, index) {
                    if !largest.grow(asm, index) {
                        break;
                    }
                }
            }
        }
        self.forms = largest.forms;
    }

    fn start(asm: &Asm, base: Base) -> Self {
        Self {
            base,
            forms: asm.items.iter().map(|item| asm.forms(item)[0]).collect(),
            offsets: vec![0; asm.items.len() + 1],
            present: asm
                .literals
                .iter()
                .map(|literal| literal.owner != Owner::Far)
                .collect(),
            rounds: 0,
        }
    }

    /// The size of everything in bytes.
    pub(super) fn size(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0).into()
    }

    /// Where a label is; `None` if it is bound nowhere.
    pub(super) fn label(&self, asm: &Asm, label: Label) -> Option<i64> {
        let item = (*asm.labels.get(label.0 as usize)?)?;
        Some(self.offsets[item].into())
    }

    /// One round; whether anything grew.
    fn round(&mut self, asm: &Asm) -> Result<bool, AsmError> {
        self.rounds += 1;
        self.place(asm)?;
        let mut grew = false;
        for index in 0..asm.items.len() {
            if let Reach::No(distance) = self.reach(asm, index) {
                if !self.grow(asm, index) {
                    return Err(self.out_of_reach(asm, index, distance));
                }
                grew = true;
            }
        }
        Ok(grew)
    }

    fn round_lenient(&mut self, asm: &Asm) -> bool {
        self.rounds += 1;
        if self.place(asm).is_err() {
            return false;
        }
        let mut grew = false;
        for index in 0..asm.items.len() {
            if let Reach::No(_) = self.reach(asm, index) {
                grew |= self.grow(asm, index);
            }
        }
        grew
    }

    /// Computes all offsets for the forms as they are.
    fn place(&mut self, asm: &Asm) -> Result<(), AsmError> {
        let mut offset = 0_u64;
        for (index, item) in asm.items.iter().enumerate() {
            self.offsets[index] = offset as u32;
            offset += self.item_size(asm, index, item, offset);
            if offset > MAX_BYTES {
                return Err(AsmError::TooLarge { bytes: offset });
            }
        }
        self.offsets[asm.items.len()] = offset as u32;
        Ok(())
    }

    /// The size of an item in bytes.
    fn item_size(&self, asm: &Asm, index: usize, item: &Item, offset: u64) -> u64 {
        let form = self.forms[index];
        match item {
            Item::Insns(range) | Item::Data(range) => range.len() as u64,
            Item::Align { align } => self.padding(offset, *align),
            Item::PoolAlign if self.present.contains(&true) => self.padding(offset, 8),
            Item::PoolAlign => 0,
            Item::Literal { index } => {
                if self.present[*index] {
                    8
                } else {
                    0
                }
            }
            Item::AbsRel {
                kind: AbsRel::Load(_),
                ..
            } if form == Form::Loaded => 12,
            Item::PcRel { .. } | Item::AbsRel { .. } => 8,
            Item::Low { .. } => 4,
            Item::Branch { cond, rs1, rs2, .. } => {
                let skip = if asm.has_short_branch(cond.inverse(), *rs1, *rs2) {
                    2
                } else {
                    4
                };
                match form {
                    Form::Short => 2,
                    Form::Near => 4,
                    Form::Inverted => skip + 4,
                    Form::Pair | Form::Loaded => skip + 8,
                }
            }
            Item::Jump { .. } | Item::Absolute { .. } | Item::Base { .. } => match form {
                Form::Short => 2,
                Form::Near | Form::Inverted => 4,
                Form::Pair => 8,
                Form::Loaded => 12,
            },
        }
    }

    fn padding(&self, offset: u64, align: u32) -> u64 {
        match self.base {
            Base::At(base) => base.wrapping_add(offset).wrapping_neg() % u64::from(align),
            Base::Any => u64::from(align) - 1,
        }
    }

    /// Whether the item reaches its target in its form.
    fn reach(&self, asm: &Asm, index: usize) -> Reach {
        let at = i64::from(self.offsets[index]);
        let form = self.forms[index];
        match &asm.items[index] {
            Item::Branch {
                cond,
                rs1,
                rs2,
                target,
            } => {
                let skip = if asm.has_short_branch(cond.inverse(), *rs1, *rs2) {
                    2
                } else {
                    4
                };
                let Some(to) = self.label(asm, *target) else {
                    return Reach::No(i64::MAX);
                };
                let distance = to - at;
                within(
                    distance,
                    match form {
                        Form::Short => fits::<9>(distance),
                        Form::Near => fits::<13>(distance),
                        Form::Inverted => fits::<21>(distance - skip),
                        Form::Pair | Form::Loaded => true,
                    },
                )
            }
            Item::Jump { target, .. } => {
                let Some(to) = self.label(asm, *target) else {
                    return Reach::No(i64::MAX);
                };
                within(to - at, jump_fits(form, to - at))
            }
            Item::Absolute { target, .. }
            | Item::AbsRel {
                address: target, ..
            } => match self.base {
                Base::Any => Reach::Yes,
                Base::At(base) => {
                    let pc = base.wrapping_add(at as u64);
                    let distance = target.wrapping_sub(pc) as i64;
                    within(distance, jump_fits(form, distance))
                }
            },
            Item::Base { index: base } => match self.span(asm, *base) {
                None => Reach::No(i64::MAX),
                Some((min, max)) => within(
                    max - min,
                    match form {
                        Form::Near => tile(min - at) == tile(max - at),
                        _ => max - min <= 4095,
                    },
                ),
            },
            _ => Reach::Yes,
        }
    }

    /// The lowest and the highest label of a shared base.
    pub(super) fn span(&self, asm: &Asm, base: usize) -> Option<(i64, i64)> {
        let mut labels = asm.bases[base].labels.iter();
        let first = self.label(asm, *labels.next()?)?;
        labels.try_fold((first, first), |(min, max), &label| {
            let at = self.label(asm, label)?;
            Some((min.min(at), max.max(at)))
        })
    }

    /// Takes the next form; `false` if there is none.
    fn grow(&mut self, asm: &Asm, index: usize) -> bool {
        let item = &asm.items[index];
        let Some(&next) = asm
            .forms(item)
            .iter()
            .find(|&&form| form > self.forms[index])
        else {
            return false;
        };
        self.forms[index] = next;
        if let (Item::Absolute { literal, .. } | Item::AbsRel { literal, .. }, Form::Loaded) =
            (item, next)
        {
            self.present[*literal] = true;
        }
        true
    }

    fn out_of_reach(&self, asm: &Asm, index: usize, distance: i64) -> AsmError {
        let offset = self.offsets[index];
        match &asm.items[index] {
            Item::Base { .. } => AsmError::LowOutOfReach {
                offset,
                span: distance,
            },
            _ => AsmError::OutOfReach { offset, distance },
        }
    }

    /// Instructions stand aligned, and the code ends inside the address space.
    fn check_base(&self, asm: &Asm, base: u64) -> Result<(), AsmError> {
        let align = asm.insn_align();
        let misaligned = |address: u64| {
            if address % u64::from(align) == 0 {
                Ok(())
            } else {
                Err(AsmError::Misaligned { address, align })
            }
        };
        misaligned(base)?;
        if base.checked_add(self.size()).is_none() {
            return Err(AsmError::TooLarge { bytes: self.size() });
        }
        for (item, &offset) in asm.items.iter().zip(&self.offsets) {
            match item {
                Item::Data(_) | Item::Align { .. } | Item::PoolAlign | Item::Literal { .. } => {}
                Item::Branch { target, .. } | Item::Jump { target, .. } => {
                    misaligned(offset.into())?;
                    misaligned(self.label(asm, *target).unwrap_or(0) as u64)?;
                }
                _ => misaligned(offset.into())?,
            }
        }
        Ok(())
    }
}

fn within(distance: i64, fits: bool) -> Reach {
    if fits {
        Reach::Yes
    } else {
        Reach::No(distance)
    }
}

/// Whether a distance fits `BITS` signed bits, parity aside.
fn fits<const BITS: u32>(distance: i64) -> bool {
    Offset::<BITS>::new(distance & !1).is_some()
}

fn jump_fits(form: Form, distance: i64) -> bool {
    match form {
        Form::Short => fits::<12>(distance),
        Form::Near | Form::Inverted => fits::<21>(distance),
        Form::Pair => split(distance).is_some(),
        Form::Loaded => true,
    }
}

/// The upper part that a distance takes.
fn tile(distance: i64) -> i64 {
    (distance + 0x800) >> 12
}

/// The immediates of an auipc and its partner.
pub(super) fn split(distance: i64) -> Option<(crate::SImm<20>, crate::SImm<12>)> {
    let upper = tile(distance);
    Some((
        crate::SImm::new(upper)?,
        crate::SImm::new(distance - (upper << 12))?,
    ))
}
