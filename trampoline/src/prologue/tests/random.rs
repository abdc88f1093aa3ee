//! Random prologues, executed: original and copy leave the same state behind.

use rv64::{Offset, SImm, UImm};

use super::machine::{Machine, mix};
use super::*;

type Immediate = fn(Reg, Reg, SImm<12>) -> Insn;
type Registers = fn(Reg, Reg, Reg) -> Insn;
type Branch = fn(Reg, Reg, Offset<13>) -> Insn;

/// Random numbers that are the same in every run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % end
    }

    fn pick<T: core::marker::Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Few registers, so that they meet; temporaries among them.
    fn reg(&mut self) -> Reg {
        self.pick(&[Zero, Ra, Sp, T0, T1, T3, Fp, A0, A0, A1, A1, A2, A3])
    }

    fn imm(&mut self) -> SImm<12> {
        let value = match self.below(3) {
            0 => self.below(4096) as i64 - 2048,
            1 => self.below(8) as i64 * 8,
            _ => self.below(32) as i64 - 16,
        };
        SImm::new(value).unwrap()
    }

    /// Some distance that `BITS` hold, near ones more often.
    fn offset<const BITS: u32>(&mut self) -> Offset<BITS> {
        let span = if self.below(3) == 0 { 12 } else { 1 << BITS };
        let by = self.below(span) as i64 - (span / 2) as i64;
        Offset::new(by & !1).unwrap()
    }

    /// An `auipc` and what may be its partner, with or without something in between.
    fn pair(&mut self) -> Vec<Insn> {
        let (rd, imm) = (self.reg(), self.imm());
        let upper = insn::auipc(rd, SImm::new(imm.get()).unwrap());
        let partner = match self.below(4) {
            0 => insn::addi(rd, rd, imm),
            1 => insn::jalr(rd, rd, imm),
            2 => insn::jalr(Zero, rd, imm),
            _ => self.pick::<Immediate>(&[insn::ld, insn::lw, insn::lhu])(rd, rd, imm),
        };
        match self.below(2) {
            0 => vec![upper, partner],
            _ => vec![upper, self.insn(), partner],
        }
    }

    fn prologue(&mut self) -> Vec<Insn> {
        let mut all: Vec<_> = (0..self.below(3)).map(|_| self.insn()).collect();
        if self.below(3) == 0 {
            all.extend(self.pair());
        }
        all.extend((0..5).map(|_| self.insn()));
        all
    }

    fn insn(&mut self) -> Insn {
        let (rd, rs1, rs2) = (self.reg(), self.reg(), self.reg());
        let imm = self.imm();
        match self.below(20) {
            0 => insn::addi(rd, rd, imm),
            1 => insn::addi(rd, rs1, imm),
            2 => insn::addi(rd, Zero, imm),
            3 => self.pick::<Immediate>(&[insn::addiw, insn::xori, insn::andi])(rd, rs1, imm),
            4 => self.pick::<Registers>(&[insn::add, insn::sub, insn::xor, insn::or])(rd, rs1, rs2),
            5 => insn::add(rd, rd, rs2),
            6 => insn::add(rd, Zero, rs2),
            7 => insn::slli(rd, rs1, UImm::new(3).unwrap()),
            8 => insn::lui(rd, SImm::new(imm.get() % 32).unwrap()),
            9..=11 => insn::auipc(rd, SImm::new(imm.get()).unwrap()),
            12 => self.pick::<Immediate>(&[insn::ld, insn::lw, insn::lhu, insn::lb])(rd, rs1, imm),
            13 => self.pick::<Immediate>(&[insn::ld, insn::lw, insn::lhu, insn::lb])(rd, rd, imm),
            14 => self.pick::<Immediate>(&[insn::sd, insn::sw])(rs2, rs1, imm),
            15 | 16 => {
                let branch = self.pick::<Branch>(&[
                    insn::beq,
                    insn::bne,
                    insn::blt,
                    insn::bge,
                    insn::bltu,
                    insn::bgeu,
                ]);
                branch(rs1, rs2, self.offset())
            }
            17 => insn::beq(rs1, Zero, self.offset()),
            18 => insn::jal(self.pick(&[Zero, Ra, T0]), self.offset()),
            _ => insn::jalr(self.pick(&[Zero, Ra, T0]), rs1, imm),
        }
    }
}

#[test]
fn slow_random_prologues_do_the_same() {
    let mut rng = Rng(1);
    let (mut moved, mut fused, mut inside) = (0, 0, 0);
    for round in 0..60_000 {
        let insns = rng.prologue();
        let bytes = padded(&insns);
        let reach = rng.pick(&[Reach::Near, Reach::Far]);
        let Ok(prologue) = planned(&bytes, reach) else {
            continue;
        };
        let at = rng.pick(&[NEAR, FAR, BEYOND, ENTRY - 0x10_0000]);
        let copy = copy(&prologue, at);
        let what = || format!("{round}: {insns:?} {:#?}", listing(&copy));
        let same = same_meaning(&prologue, &bytes, &copy.code.bytes, at);
        assert_eq!(same, Ok(()), "{}", what());
        moved += 1;
        fused += usize::from(prologue.moved.contains(&Moved::ByPartner));
        inside += usize::from(prologue.moved.iter().any(stays_inside));
        for state in 0..4 {
            let mut original = Machine::random(round * 4 + state);
            let mut machine = original.clone();
            machine.pc = at;
            original.run(ENTRY, &bytes[..prologue.covered_bytes().into()]);
            machine.run(at, &copy.code.bytes);
            // Nothing was in it at the entry, and nothing is afterwards.
            machine.forget(RegSet::of(&[prologue.scratch()]), &original);
            machine.agrees(&original, &what());
        }
    }
    assert!(
        moved > 5000 && fused > 50 && inside > 20,
        "{moved} {fused} {inside}"
    );
}

fn stays_inside(moved: &Moved) -> bool {
    match moved {
        Moved::Branch { to, .. } | Moved::Jump { to } => matches!(to, To::Covered(_)),
        _ => false,
    }
}
