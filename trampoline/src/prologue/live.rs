//! What a function finds in temporaries, on any of its ways.
//!
//! [`refuse_custom_entry`](super::refuse_custom_entry) follows the way that leads straight on, and
//! is sure of what it finds. This follows all direct branches and jumps inside the function, up to
//! calls (which leave nothing in temporaries) and indirect jumps. It cannot know that two branches
//! go together, so it finds too much now and then, and is asked of registers of which that costs
//! little: the static chain, which an image can keep, and floating-point temporaries, which hardly a
//! function uses.

use rv64::{Flow, Reg, RegSet, step};

/// As many instructions are looked at, those that are met by two ways twice.
const MOST_INSNS: usize = 4096;

/// A register that is read before anything is written to it: the instruction's offset in bytes, and
/// all temporaries that it finds so.
pub(super) type Found = (u64, RegSet);

/// The temporaries in which the function finds something, of those in `wanted`.
pub(super) fn find(bytes: &[u8], wanted: RegSet) -> Vec<Found> {
    let mut found = Vec::new();
    // What is written on all ways to an instruction, by its half-word.
    let mut known: Vec<Option<RegSet>> = vec![None; bytes.len().div_ceil(2)];
    let mut todo = vec![(0, RegSet::EMPTY)];
    let mut left = MOST_INSNS;
    while let Some(begin) = todo.pop() {
        let mut next = Some(begin);
        while let Some((at, written)) = next.take() {
            let Some(known) = known.get_mut(at / 2) else {
                break;
            };
            let before = *known;
            let written = before.map_or(written, |before| before.intersection(written));
            if before == Some(written) || left == 0 || wanted.without(written).is_empty() {
                break;
            }
            left -= 1;
            *known = Some(written);
            let rest = bytes.get(at..).unwrap_or_default();
            if let Some(len_bytes) = passes(rest, wanted) {
                next = Some((at + len_bytes, written));
                continue;
            }
            let Some(step) = step(rest) else {
                break;
            };
            let finds = step.reads.intersection(wanted).without(written);
            if !finds.is_empty() {
                found.push((at as u64, finds));
            }
            let written = written.union(step.writes.intersection(wanted));
            let behind = Some((at + usize::from(step.len_bytes), written));
            let target = step.flow.target(at as u64).map(|to| to as usize);
            let target = target.filter(|to| *to < bytes.len());
            match step.flow {
                Flow::Jump { .. } => next = target.map(|to| (to, written)),
                Flow::Branch { .. } => {
                    todo.extend(target.map(|to| (to, written)));
                    next = behind;
                }
                // Millicode saves registers, and leaves the temporaries that it does not need.
                Flow::Call { link: Reg::T0, .. } | Flow::IndirectCall { link: Reg::T0, .. } => {
                    next = behind;
                }
                Flow::Call { .. } | Flow::IndirectCall { .. } | Flow::IndirectJump { .. } => {}
                _ => next = behind,
            }
        }
    }
    found
}

/// The length of the instruction at the start of `bytes`, if it surely goes on to the next one and
/// names none of the registers in `of`, which are temporaries: most instructions need not be decoded.
/// Source: unprivileged ISA, "RV32/64G Instruction Set Listings", "RVC Instruction Set Listings".
pub(super) fn passes(bytes: &[u8], of: RegSet) -> Option<usize> {
    let [b0, b1, rest @ ..] = bytes else {
        return None;
    };
    let half = u32::from(u16::from_le_bytes([*b0, *b1]));
    let reg = |at: u32| 1 << (half >> at & 31);
    let named = match (half & 3, half >> 13) {
        (0, _) if half == 0 => return None,
        // Of the registers 8 to 15 alone, which are no temporaries.
        (0, _) | (1, 4) => 0,
        (1, 0..=3) | (2, 0 | 2 | 3) => reg(7),
        // c.mv, c.add; not the jumps.
        (2, 4) if half & 0x7c != 0 => reg(7) | reg(2),
        (2, 6 | 7) => reg(2),
        (3, _) => return passes_wide(half, rest, of),
        _ => return None,
    };
    (named & of.int_bits() == 0).then_some(2)
}

fn passes_wide(low: u32, rest: &[u8], of: RegSet) -> Option<usize> {
    let [b2, b3, ..] = rest else {
        return None;
    };
    let word = low | u32::from(u16::from_le_bytes([*b2, *b3])) << 16;
    let reg = |at: u32| 1 << (word >> at & 31);
    let named = match word & 0x7f {
        // LUI, AUIPC
        0x37 | 0x17 => reg(7),
        // LOAD, OP-IMM, OP-IMM-32
        0x03 | 0x13 | 0x1b => reg(7) | reg(15),
        // OP, OP-32
        0x33 | 0x3b => reg(7) | reg(15) | reg(20),
        // STORE
        0x23 => reg(15) | reg(20),
        _ => return None,
    };
    (named & of.int_bits() == 0).then_some(4)
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

    #[test]
    fn what_passes_is_what_decoding_says() {
        let of = RegSet::TEMPORARIES;
        let mut nr = 0;
        let mut check = |word: u32| {
            let bytes = word.to_le_bytes();
            let Some(len_bytes) = passes(&bytes, of) else {
                return;
            };
            // What is reserved goes on, too: it is not executed.
            let Some(step) = step(&bytes) else {
                return;
            };
            nr += 1;
            assert_eq!(usize::from(step.len_bytes), len_bytes, "{word:#x}");
            let named = step.reads.union(step.writes).intersection(of);
            assert!(named.is_empty(), "{word:#x}: {named:?}");
            assert!(
                matches!(step.flow, Flow::Next | Flow::Auipc { .. }),
                "{word:#x}"
            );
        };
        (0..=0xffff_u32)
            .filter(|half| half & 3 != 3)
            .for_each(&mut check);
        // The fields of all opcodes, with many contents.
        for opcode in (3..0x80).step_by(4) {
            for rest in 0..0x4000_u32 {
                check(opcode | rest.wrapping_mul(0x9e37_79b9) & !0x7f);
            }
        }
        assert!(nr > 40_000, "{nr}");
    }
}
