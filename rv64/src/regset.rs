//! Sets of integer and floating-point registers.
//!
//! Key type: [`RegSet`]. Neighbours: [`flow`](mod@crate::flow) says with it what an instruction
//! reads and writes.
//!
//! Source: Unprivileged ISA, "Programmers' Model for Base Integer ISA", "F Register State".

use core::fmt;

use crate::{EvenReg, FReg, Reg};

/// A set of registers. `zero` holds nothing and is in no set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RegSet(u64);

/// The bit of `ft0`; those of the integer registers are below.
const FLOATS: u32 = 32;

impl RegSet {
    /// No register.
    pub const EMPTY: Self = Self(0);

    /// What a function may overwrite and never finds arguments in: `t0` to `t6`, `ft0` to `ft11`.
    /// psABI, "Integer Register Convention", "Floating-point Register Convention".
    pub const TEMPORARIES: Self = {
        use Reg::{T0, T1, T2, T3, T4, T5, T6};
        Self::of(&[T0, T1, T2, T3, T4, T5, T6]).union(Self::FLOAT_TEMPORARIES)
    };

    /// The floating-point ones of [`Self::TEMPORARIES`].
    pub const FLOAT_TEMPORARIES: Self = {
        use FReg::{Ft0, Ft1, Ft2, Ft3, Ft4, Ft5, Ft6, Ft7, Ft8, Ft9, Ft10, Ft11};
        Self::of_floats(&[Ft0, Ft1, Ft2, Ft3, Ft4, Ft5, Ft6, Ft7, Ft8, Ft9, Ft10, Ft11])
    };

    /// These floating-point registers.
    #[must_use]
    pub const fn of_floats(regs: &[FReg]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < regs.len() {
            bits |= 1 << (FLOATS + regs[at].num());
            at += 1;
        }
        Self(bits)
    }

    /// These integer registers.
    #[must_use]
    pub const fn of(regs: &[Reg]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < regs.len() {
            bits |= 1 << regs[at].num();
            at += 1;
        }
        Self(bits & !1)
    }

    /// Both registers of a pair.
    pub(crate) const fn pair(first: EvenReg) -> Self {
        match first.get() {
            Reg::Zero => Self::EMPTY,
            reg => Self(0b11 << reg.num()),
        }
    }

    /// Whether the floating-point register `reg` is in it.
    #[must_use]
    pub const fn contains_float(self, reg: FReg) -> bool {
        self.0 >> (FLOATS + reg.num()) & 1 != 0
    }

    /// Whether the integer register `reg` is in it.
    #[must_use]
    pub const fn contains(self, reg: Reg) -> bool {
        self.0 >> reg.num() & 1 != 0
    }

    /// Whether no register is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in one of the two.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The integer registers, in order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Reg> {
        Reg::ALL.into_iter().filter(move |reg| self.contains(*reg))
    }

    /// The floating-point registers, in order of their numbers.
    pub fn floats(self) -> impl Iterator<Item = FReg> {
        let all = FReg::ALL.into_iter();
        all.filter(move |reg| self.contains_float(*reg))
    }
}

impl FromIterator<Reg> for RegSet {
    fn from_iter<I: IntoIterator<Item = Reg>>(regs: I) -> Self {
        let add = |all: Self, reg| all.union(Self::of(&[reg]));
        regs.into_iter().fold(Self::EMPTY, add)
    }
}

/// `{ra, a0}`.
impl fmt::Debug for RegSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let floats = self.floats().map(FReg::name);
        let names: Vec<&str> = self.iter().map(Reg::name).chain(floats).collect();
        write!(f, "{{{}}}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_in_no_set() {
        let set = RegSet::of(&[Reg::Zero, Reg::Ra, Reg::T6]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Reg::Ra, Reg::T6]);
        assert!(!set.contains(Reg::Zero) && set.contains(Reg::Ra));
        assert!(RegSet::of(&[Reg::Zero]).is_empty());
        assert!(RegSet::pair(EvenReg::new(Reg::Zero).unwrap()).is_empty());
        assert_eq!(format!("{set:?}"), "{ra, t6}");
    }

    #[test]
    fn floats_are_registers_of_their_own() {
        let set = RegSet::of_floats(&[FReg::Ft0, FReg::Ft11]).union(RegSet::of(&[Reg::T6]));
        assert_eq!(format!("{set:?}"), "{t6, ft0, ft11}");
        assert!(set.contains_float(FReg::Ft11) && !set.contains_float(FReg::Fa0));
        assert!(!set.contains(Reg::Zero));
        let temporaries: Vec<_> = RegSet::TEMPORARIES.floats().map(FReg::name).collect();
        assert!(temporaries.len() == 12 && temporaries.iter().all(|name| name.starts_with("ft")));
    }

    #[test]
    fn sets_are_sets() {
        let (a, b) = (
            RegSet::of(&[Reg::A0, Reg::A1]),
            RegSet::of(&[Reg::A1, Reg::Sp]),
        );
        assert_eq!(a.union(b), RegSet::from_iter([Reg::Sp, Reg::A0, Reg::A1]));
        assert_eq!(a.intersection(b), RegSet::of(&[Reg::A1]));
        assert_eq!(a.without(b), RegSet::of(&[Reg::A0]));
        assert_eq!(
            RegSet::pair(EvenReg::new(Reg::T5).unwrap()),
            RegSet::of(&[Reg::T5, Reg::T6])
        );
    }
}
