//! What a function finds in temporaries, on any of its ways.
//!
//! [`refuse_custom_entry`](super::refuse_custom_entry) follows the way that leads straight on, and
//! is sure of what it finds. This follows all direct branches and jumps inside the function, up to
//! calls (which leave nothing in temporaries) and indirect jumps. It cannot know that two branches
//! go together, so it finds too much now and then, and is asked of registers of which that costs
//! little: the static chain, which an image can keep, and floating-point temporaries, which hardly a
//! function uses.

use std::collections::BTreeMap;

use rv64::{Flow, Reg, RegSet, step};

/// As many instructions are looked at, those that are met by two ways twice.
const MOST_INSNS: usize = 4096;

/// A register that is read before anything is written to it: the instruction's offset in bytes, and
/// all temporaries that it finds so.
pub(super) type Found = (u64, RegSet);

/// The temporaries in which the function finds something, of those in `wanted`.
pub(super) fn find(bytes: &[u8], wanted: RegSet) -> Vec<Found> {
    let mut found = Vec::new();
    // What is written on all ways to an instruction.
    let mut known: BTreeMap<usize, RegSet> = BTreeMap::new();
    let mut todo = vec![(0, RegSet::EMPTY)];
    let mut left = MOST_INSNS;
    while let Some((at, written)) = todo.pop() {
        let before = known.get(&at).copied();
        let written = before.map_or(written, |before| before.intersection(written));
        if before == Some(written) || left == 0 || wanted.without(written).is_empty() {
            continue;
        }
        left -= 1;
        known.insert(at, written);
        let Some(step) = bytes.get(at..).and_then(step) else {
            continue;
        };
        let finds = step.reads.intersection(wanted).without(written);
        if !finds.is_empty() {
            found.push((at as u64, finds));
        }
        let written = written.union(step.writes);
        let next = at + usize::from(step.len_bytes);
        let target = step.flow.target(at as u64).map(|to| to as usize);
        let target = target.filter(|to| *to < bytes.len());
        match step.flow {
            Flow::Jump { .. } => todo.extend(target.map(|to| (to, written))),
            Flow::Branch { .. } => {
                todo.extend(target.map(|to| (to, written)));
                todo.push((next, written));
            }
            // Millicode saves registers, and leaves the temporaries that it does not need.
            Flow::Call { link: Reg::T0, .. } | Flow::IndirectCall { link: Reg::T0, .. } => {
                todo.push((next, written));
            }
            Flow::Call { .. } | Flow::IndirectCall { .. } | Flow::IndirectJump { .. } => {}
            _ => todo.push((next, written)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use rv64::{FReg, Insn, insn, offset};

    use super::*;

    fn found(insns: &[Insn]) -> Vec<Found> {
        let words = insns.iter().flat_map(|insn| insn.encode().to_le_bytes());
        let wanted = RegSet::TEMPORARIES.without(RegSet::of(&[Reg::T0]));
        find(&words.collect::<Vec<_>>(), wanted)
    }

    #[test]
    fn all_ways_are_followed() {
        use Reg::{A0, Ra, T2, Zero};
        let ret = insn::jalr(Zero, Ra, rv64::imm!(0));
        let read = insn::addi(A0, T2, rv64::imm!(0));
        let write = insn::addi(T2, A0, rv64::imm!(0));
        let t2 = RegSet::of(&[T2]);
        let branch = |off| insn::beq(A0, Zero, off);
        assert_eq!(found(&[read, ret]), [(0, t2)]);
        assert_eq!(found(&[write, read, ret]), []);
        // On the way of the branch; on one of two; on neither.
        assert_eq!(found(&[branch(offset!(8)), ret, read, ret]), [(8, t2)]);
        assert_eq!(found(&[branch(offset!(8)), write, read, ret]), [(8, t2)]);
        let jump = insn::jal(Zero, offset!(8));
        assert_eq!(found(&[write, branch(offset!(8)), ret, read, ret]), []);
        assert_eq!(found(&[jump, ret, read, ret]), [(8, t2)]);
        // Nothing is left by a call, but by one of millicode.
        let call = |link| insn::jal(link, offset!(16));
        assert_eq!(found(&[call(Ra), read, ret]), []);
        assert_eq!(found(&[call(Reg::T0), read, ret]), [(4, t2)]);
        // A loop ends.
        assert_eq!(found(&[write, insn::jal(Zero, offset!(-4))]), []);
    }

    #[test]
    fn floats_are_found() {
        let reads = insn::fmv_x_d(Reg::A0, FReg::Ft3);
        let ft3 = RegSet::of_floats(&[FReg::Ft3]);
        assert_eq!(found(&[reads]), [(0, ft3)]);
        assert_eq!(found(&[insn::fmv_d_x(FReg::Ft3, Reg::A0), reads]), []);
        let argument = insn::fmv_x_d(Reg::A0, FReg::Fa3);
        assert_eq!(found(&[argument]), []);
    }
}
