//! A constant in the fewest instructions.
//!
//! Key function: [`li()`]. It works backwards: which value, one instruction
//! earlier, is easier to make? Candidates come from undoing an add, a shift,
//! a rotation, a multiplication by 3, 5 or 9, or one bit, two instructions
//! deep; each is measured by the plain way of lui, addi and slli.
//!
//! "Fewest" is over one register and these operations: lui, addi, addiw,
//! xori, slli, srli; Zba's zext.w, slli.uw, sh1add, sh2add, sh3add; Zbb's
//! rori; Zbs's bseti, bclri, binvi. What the tests' search for
//! counterexamples says: no sequence is longer than one of two instructions;
//! without Zba and Zbb none is longer than one of three; with them, and
//! for four and five instructions, fewer than 1 in 200 random chains of
//! operations beat it. From about four instructions on a literal
//! ([`Asm::ld_lit`](crate::Asm::ld_lit)) is smaller, and found without a
//! search, which takes microseconds.
//!
//! Neighbours: [`Asm::li`](crate::Asm::li).
//!
//! Source: RISC-V Assembly Programmer's Handbook, "Load Immediate"; the idea
//! of undoing: LLVM `RISCVMatInt.cpp`.

use crate::{
    Features, Insn, Reg, SImm, UImm, addi, addiw, bclri, bseti, lui, nop, not, rori, sh1add,
    sh2add, sh3add, slli, slli_uw, srli, xori, zext_w,
};

/// How many instructions are undone before [`plain`] takes over.
const DEPTH: u32 = 2;

/// The multiplicative inverses of 3, 5 and 9 modulo 2^64.
const INVERSES: [i64; 3] = [
    0xaaaa_aaaa_aaaa_aaab_u64 as i64,
    0xcccc_cccc_cccc_cccd_u64 as i64,
    0x8e38_e38e_38e3_8e39_u64 as i64,
];

/// The shortest sequence that makes `rd` = `value`, using `rd` alone: at most
/// eight instructions. Nothing for `zero`.
///
/// ```
/// # use rvbpf_rv64 as rv64;
/// use rv64::{Features, Reg::*, li};
/// let text = |value, features| {
///     li(A0, value, features).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
/// };
/// assert_eq!(text(0x12345, Features::RV64GC), "lui a0, 0x12; addiw a0, a0, 837");
/// assert_eq!(text(0xffff_ffff, Features::RV64GC), "li a0, -1; srli a0, a0, 32");
/// assert_eq!(text(1 << 40, Features::RVA22), "bseti a0, zero, 40");
/// ```
#[must_use]
pub fn li(rd: Reg, value: i64, features: Features) -> Vec<Insn> {
    if rd == Reg::Zero {
        return Vec::new();
    }
    let search = Search { rd, features };
    match search.shortest(value, DEPTH, MAX_INSNS) {
        Some(steps) => steps.insns[..steps.len].iter().rev().copied().collect(),
        None => Vec::new(),
    }
}

/// The longest sequence that [`Search::plain`] makes.
const MAX_INSNS: usize = 8;

/// A sequence, last instruction first.
#[derive(Clone, Copy)]
struct Steps {
    insns: [Insn; MAX_INSNS],
    len: usize,
}

impl Steps {
    fn push(&mut self, insn: Insn) {
        self.insns[self.len] = insn;
        self.len += 1;
    }
}

/// What `li` is asked for, but for the value.
#[derive(Clone, Copy)]
struct Search {
    rd: Reg,
    features: Features,
}

impl Search {
    /// The shortest sequence found, if it has at most `limit` instructions.
    fn shortest(self, value: i64, depth: u32, limit: usize) -> Option<Steps> {
        if limit == 1 {
            return self.one(value).map(|insn| Steps {
                insns: [insn; MAX_INSNS],
                len: 1,
            });
        }
        let mut best = Some(self.plain(value)).filter(|steps| steps.len <= limit);
        let mut limit = best.map_or(limit, |steps| steps.len - 1);
        if depth == 0 || limit < 2 {
            return best;
        }
        self.easier(value, &mut |earlier, step| {
            if limit < 2 {
                return;
            }
            if let Some(steps) = self.shortest(earlier, depth - 1, limit - 1) {
                let mut longer = Steps {
                    insns: [step; MAX_INSNS],
                    len: steps.len + 1,
                };
                longer.insns[1..=steps.len].copy_from_slice(&steps.insns[..steps.len]);
                limit = steps.len;
                best = Some(longer);
            }
        });
        best
    }

    /// The sequence without search: the low twelve bits by addi, then the
    /// zeros above them by slli, until lui reaches.
    fn plain(self, mut value: i64) -> Steps {
        let rd = self.rd;
        let mut steps = Steps {
            insns: [nop(); MAX_INSNS],
            len: 0,
        };
        loop {
            if let Some(first) = self.one(value) {
                steps.push(first);
                return steps;
            }
            let low = low12(value);
            if let Some(upper) = upper20(value) {
                steps.push(addiw(rd, rd, low));
                steps.push(lui(rd, upper));
                return steps;
            }
            if low != SImm::ZERO {
                steps.push(addi(rd, rd, low));
                value = value.wrapping_sub(low.get());
                continue;
            }
            let zeros = value.trailing_zeros();
            // With twelve zeros left, lui may do what addi cannot.
            let with_lui = self.one(value >> (zeros - 12)).is_some();
            let shift = if with_lui && self.one(value >> zeros).is_none() {
                zeros - 12
            } else {
                zeros
            };
            steps.push(slli(rd, rd, UImm::from_field(shift)));
            value >>= shift;
        }
    }

    /// The single instruction that makes `value`.
    fn one(self, value: i64) -> Option<Insn> {
        if let Some(imm) = SImm::new(value) {
            return Some(addi(self.rd, Reg::Zero, imm));
        }
        if low12(value) == SImm::ZERO && SImm::<32>::new(value).is_some() {
            return upper20(value).map(|upper| lui(self.rd, upper));
        }
        if self.features.zbs && value.count_ones() == 1 {
            return Some(bseti(
                self.rd,
                Reg::Zero,
                UImm::from_field(value.trailing_zeros()),
            ));
        }
        None
    }

    /// Calls `found` with values from which one instruction leads to `value`.
    fn easier(self, value: i64, found: &mut impl FnMut(i64, Insn)) {
        self.undo_imm(value, found);
        self.undo_shift(value, found);
        if self.features.zba {
            self.undo_zba(value, found);
        }
        if self.features.zbs {
            self.undo_bit(value, found);
        }
        if self.features.zbb {
            self.undo_rotation(value, found);
        }
    }

    fn undo_imm(self, value: i64, found: &mut impl FnMut(i64, Insn)) {
        let rd = self.rd;
        let low = low12(value);
        if low != SImm::ZERO {
            found(value.wrapping_sub(low.get()), addi(rd, rd, low));
        }
        // Two in a row reach twice as far.
        let far = if low.get() < 0 { SImm::MAX } else { SImm::MIN };
        found(value.wrapping_sub(far.get()), addi(rd, rd, far));
        // A rotation leaves ones below as well as zeros.
        let ones = low12(value.wrapping_add(1));
        if self.features.zbb && ones != SImm::ZERO {
            found(value.wrapping_sub(ones.get()), addi(rd, rd, ones));
        }
        // A negative xori inverts all above, and leaves the low twelve bits
        // zero, or bit 11 alone.
        let flip = if low.get() < 0 {
            low
        } else {
            SImm::from_field(low.field() ^ 0x800)
        };
        found(value ^ flip.get(), xori(rd, rd, flip));
        if flip.get() != -1 {
            found(!value, not(rd, rd));
        }
    }

    fn undo_shift(self, value: i64, found: &mut impl FnMut(i64, Insn)) {
        let rd = self.rd;
        for shift in shifts(value) {
            let insn = slli(rd, rd, UImm::from_field(shift));
            found(value >> shift, insn);
            if value < 0 {
                found(((value as u64) >> shift) as i64, insn);
            }
        }
        let zeros = value.leading_zeros();
        if zeros > 0 && zeros < 64 {
            let insn = srli(rd, rd, UImm::from_field(zeros));
            found(value << zeros, insn);
            found(!(!value << zeros), insn);
        }
    }

    fn undo_zba(self, value: i64, found: &mut impl FnMut(i64, Insn)) {
        let rd = self.rd;
        if value < 0x1_0000_0000 && value > 0x7fff_ffff {
            found(i64::from(value as i32), zext_w(rd, rd));
        }
        let top = 32_u32.saturating_sub(value.leading_zeros());
        let to_top = Some(top).filter(|&top| top > 0 && top < value.trailing_zeros());
        for shift in shifts(value).chain(to_top) {
            if let Ok(word) = u32::try_from(value as u64 >> shift) {
                found(
                    i64::from(word as i32),
                    slli_uw(rd, rd, UImm::from_field(shift)),
                );
            }
        }
        for (inverse, shift_add) in INVERSES.into_iter().zip([sh1add, sh2add, sh3add]) {
            found(value.wrapping_mul(inverse), shift_add(rd, rd, rd));
        }
    }

    /// Bits that differ from both neighbours, and the ends: the others only
    /// move the end of a run.
    fn undo_bit(self, value: i64, found: &mut impl FnMut(i64, Insn)) {
        let rd = self.rd;
        let edges = value ^ value >> 1;
        let mut bits = (edges & edges << 1) as u64 | 1 << 63 | 1 << 31;
        bits |= (value & value.wrapping_neg()) as u64;
        if let Some(top) = 63_u32.checked_sub((value ^ value >> 63).leading_zeros()) {
            bits |= 1 << top;
        }
        while bits != 0 {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            let at = UImm::from_field(bit);
            let mask = 1_i64 << bit;
            found(
                value ^ mask,
                if value & mask == 0 {
                    bclri(rd, rd, at)
                } else {
                    bseti(rd, rd, at)
                },
            );
        }
    }

    /// Rotations that put a long run of equal bits to the top, or to the
    /// bottom, or twelve of it to the bottom.
    fn undo_rotation(self, value: i64, found: &mut impl FnMut(i64, Insn)) {
        let rd = self.rd;
        let starts = (value ^ value.rotate_left(1)) as u64;
        let mut rest = starts;
        while rest != 0 {
            // Bits `at` to `at + run - 1` are equal, cyclically.
            let at = rest.trailing_zeros();
            rest &= rest - 1;
            let run = starts.rotate_right(at + 1).trailing_zeros() + 1;
            if run < 8 {
                continue;
            }
            for by in [64 - at, 128 - at - run, 140 - at - run] {
                if by % 64 != 0 {
                    let insn = rori(rd, rd, UImm::from_field(by));
                    found(value.rotate_left(by), insn);
                }
            }
        }
    }
}

/// Shifts worth undoing: all zeros at the bottom, or all but lui's twelve.
fn shifts(value: i64) -> impl Iterator<Item = u32> {
    let zeros = value.trailing_zeros();
    [zeros, zeros.saturating_sub(12)]
        .into_iter()
        .filter(|&shift| 0 < shift && shift < 64)
}

/// The low twelve bits, as addi would add them.
fn low12(value: i64) -> SImm<12> {
    SImm::from_field(value as u32)
}

/// What lui must load so that addiw can finish a 32-bit `value`.
fn upper20(value: i64) -> Option<SImm<20>> {
    let value = i32::try_from(value).ok()?;
    let rest = value.wrapping_sub(low12(value.into()).get() as i32);
    Some(SImm::from_field(rest as u32 >> 12))
}

#[cfg(test)]
mod tests;
