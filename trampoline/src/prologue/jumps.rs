//! All direct jumps of an object, by where they go.
//!
//! Key type: [`Jumps`]. An object has one for each few instructions, so an edge is two words.

use std::ops::Range;

use rv64::{Flow, IOp, Insn, Reg, RegSet, SImm, Step, step};

/// The direct jumps, branches and calls of an object's code, by target: made once for the object,
/// and asked for each of its functions.
#[derive(Clone, Debug, Default)]
pub struct Jumps {
    /// Sorted.
    edges: Box<[Edge]>,
}

/// One of them.
#[derive(Copy, Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Edge {
    target: u64,
    /// The address of the instruction, which is even; bit 0 is set for a call.
    from: u64,
}

impl Edge {
    pub(super) fn target(self) -> u64 {
        self.target
    }

    pub(super) fn from(self) -> u64 {
        self.from & !1
    }

    pub(super) fn is_call(self) -> bool {
        self.from & 1 != 0
    }
}

impl Jumps {
    /// Reads code: the address and the bytes of each part, a function or a section. What is no
    /// instruction is skipped half-word by half-word: it is data between functions, or code for
    /// other machines. A `jalr` through an address that an `auipc` has made is a direct jump as
    /// well.
    pub fn scan<'a>(parts: impl IntoIterator<Item = (u64, &'a [u8])>) -> Self {
        let mut edges = Vec::new();
        for (address, bytes) in parts {
            scan_part(address, bytes, &mut edges);
        }
        edges.sort_unstable();
        edges.dedup();
        Jumps {
            edges: edges.into_boxed_slice(),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.edges.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// Those that go to an address in `targets`.
    pub(super) fn landing_in(&self, targets: Range<u64>) -> &[Edge] {
        let before = |end: u64| self.edges.partition_point(|edge| edge.target < end);
        let (first, last) = (before(targets.start), before(targets.end));
        self.edges.get(first..last).unwrap_or_default()
    }
}

/// The length of what begins with `half`, if that is surely neither a direct jump nor an `auipc`:
/// most of an object need not be decoded. Source: unprivileged ISA, "RV32/64G Instruction Set
/// Listings", "RVC Instruction Set Listings".
fn goes_on(half: u16) -> Option<usize> {
    const AUIPC: u16 = 0x17;
    const BRANCH: u16 = 0x63;
    const JALR: u16 = 0x67;
    const JAL: u16 = 0x6f;
    match (half & 3, half >> 13) {
        // Longer encodings, of which there are none yet.
        (3, _) if half & 0x1c == 0x1c => Some(2),
        (3, _) => (!matches!(half & 0x7f, AUIPC | BRANCH | JALR | JAL)).then_some(4),
        // c.j, c.beqz, c.bnez
        (1, 5..) => None,
        _ => Some(2),
    }
}

fn scan_part(address: u64, bytes: &[u8], edges: &mut Vec<Edge>) {
    let (mut off, mut known) = (0, Known::default());
    while let Some(rest @ [low, high, ..]) = bytes.get(off..) {
        let half = u16::from_le_bytes([*low, *high]);
        if let (true, Some(len_bytes)) = (known.regs.is_empty(), goes_on(half)) {
            off += len_bytes;
            continue;
        }
        let at = address.wrapping_add(off as u64);
        let Some(step) = step(rest) else {
            (off, known) = (off + 2, Known::default());
            continue;
        };
        let target = match step.flow {
            Flow::IndirectJump { base, off } | Flow::IndirectCall { base, off, .. } => {
                known.sum(base, off).map(|target| target & !1)
            }
            flow => flow.target(at),
        };
        if let Some(target) = target {
            let from = at | u64::from(step.flow.is_call());
            edges.push(Edge { target, from });
        }
        known.pass(&step, at);
        off += usize::from(step.len_bytes);
    }
}

/// Registers that hold an address, because an `auipc` has put it there.
#[derive(Default)]
struct Known {
    regs: RegSet,
    values: [u64; 32],
}

impl Known {
    fn sum(&self, base: Reg, off: SImm<12>) -> Option<u64> {
        let value = self.values[base.num() as usize];
        let known = self.regs.contains(base);
        known.then(|| value.wrapping_add_signed(off.get()))
    }

    /// Behind a jump or a call nothing is known.
    fn pass(&mut self, step: &Step, at: u64) {
        let made = match step.flow {
            Flow::Auipc { rd, imm } => Some((rd, at.wrapping_add_signed(imm.get() << 12))),
            flow if flow.is_jump() || flow.is_call() => {
                self.regs = RegSet::EMPTY;
                return;
            }
            Flow::Next if !self.regs.intersection(step.reads).is_empty() => self.added(step),
            _ => None,
        };
        self.regs = self.regs.without(step.writes);
        if let Some((rd, value)) = made {
            self.regs = self.regs.union(RegSet::of(&[rd]));
            self.values[rd.num() as usize] = value;
        }
    }

    fn added(&self, step: &Step) -> Option<(Reg, u64)> {
        match Insn::decode(step.word) {
            Ok(Insn::I {
                op: IOp::Addi,
                rd,
                rs1,
                imm,
            }) => Some((rd, self.sum(rs1, imm)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rv64::Reg::{A0, Ra, T1, Zero};
    use rv64::{Features, imm, insn, offset};

    use super::*;

    /// Compressed where it can be.
    fn code(insns: &[Insn]) -> Vec<u8> {
        let mut asm = rv64::Asm::new(Features::RV64GC);
        for insn in insns {
            asm.emit(*insn);
        }
        asm.finish(0).unwrap().bytes
    }

    #[test]
    fn all_direct_jumps_are_found_by_target() {
        let mut bytes = code(&[
            insn::beq(A0, A0, offset!(16)), // 0
            insn::jal(Zero, offset!(-4)),   // 4
            insn::jal(Ra, offset!(12)),     // 6
            insn::auipc(T1, imm!(1)),       // 10
            insn::jalr(Zero, T1, imm!(6)),  // 14
            insn::auipc(Ra, imm!(-1)),      // 18
            insn::addi(Ra, Ra, imm!(6)),    // 22
            insn::addi(A0, A0, imm!(1)),    // 24
            insn::jalr(Ra, Ra, imm!(2)),    // 26
            insn::jalr(Ra, Ra, imm!(2)),    // 30: goes where it was returned to
            insn::auipc(T1, imm!(1)),       // 34
            insn::ld(T1, T1, imm!(0)),      // 38
            insn::jalr(Zero, T1, imm!(0)),  // 42: goes to what has been loaded
        ]);
        // What is no instruction is skipped by halves.
        bytes.extend([0, 0, 0xff, 0xff]);
        bytes.extend(code(&[insn::jal(Zero, offset!(0))]));
        let jumps = Jumps::scan([(0x8000, &bytes[..])]);
        let all: Vec<_> = jumps
            .landing_in(0..u64::MAX)
            .iter()
            .map(|edge| (edge.target(), edge.from(), edge.is_call()))
            .collect();
        let last = 0x8000 + bytes.len() as u64 - 2;
        let want = [
            (0x701a, 0x801a, true),
            (0x8000, 0x8004, false),
            (0x8010, 0x8000, false),
            (0x8012, 0x8006, true),
            (last, last, false),
            (0x9010, 0x800e, false),
        ];
        assert_eq!(all, want);
        assert_eq!((jumps.len(), jumps.is_empty()), (6, false));
    }

    #[test]
    fn ranges_have_ends() {
        let edge = |target| Edge { target, from: 0x10 };
        let jumps = Jumps {
            edges: Box::new([edge(2), edge(4), edge(4), edge(6)]),
        };
        assert_eq!(jumps.landing_in(4..6).len(), 2);
        assert_eq!(jumps.landing_in(3..7).len(), 3);
        assert!(jumps.landing_in(7..100).is_empty());
        assert!(Jumps::default().landing_in(0..100).is_empty());
    }
}
