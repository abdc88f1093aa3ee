//! Runs what the buffer makes: random buffers on a machine, and each limit
//! from both sides.

use super::*;
use crate::Reg::{A0, A1, A5, Ra, T0, T1, T2, Zero};
use crate::testing::Rng;
use crate::testing::machine::Machine;
use crate::{addi, bne, ebreak, imm, ret};

const CONDS: [Cond; 6] = [Cond::Eq, Cond::Ne, Cond::Lt, Cond::Ge, Cond::Ltu, Cond::Geu];

fn holds(cond: Cond, left: u64, right: u64) -> bool {
    match cond {
        Cond::Eq => left == right,
        Cond::Ne => left != right,
        Cond::Lt => (left as i64) < right as i64,
        Cond::Ge => left as i64 >= right as i64,
        Cond::Ltu => left < right,
        Cond::Geu => left >= right,
    }
}

/// A buffer with `gap` bytes between a jump and its target, each way.
fn across(gap: usize, features: Features, jump: impl Fn(&mut Asm, Label)) -> Asm {
    let mut asm = Asm::new(features);
    let (back, forth) = (asm.here(), asm.new_label());
    jump(&mut asm, forth);
    asm.data(&vec![0; gap]);
    jump(&mut asm, back);
    asm.bind(forth);
    asm.emit(ret());
    asm
}

/// The sizes of the two jumps of `across`.
fn sizes(gap: usize, features: Features, jump: impl Fn(&mut Asm, Label)) -> usize {
    let asm = across(gap, features, jump);
    let bound = asm.max_size();
    let code = asm.finish(0).unwrap();
    assert!(code.bytes.len() <= bound);
    code.bytes.len() - gap - if features.c { 2 } else { 4 }
}

#[test]
fn branches_grow_exactly_when_they_must() {
    let beqz = |asm: &mut Asm, to| asm.beqz(A0, to);
    let blt = |asm: &mut Asm, to| asm.branch(Cond::Lt, A0, A1, to);
    let c = Features::RV64GC;
    // Forward, 254 is the farthest for c.beqz; backward, 256.
    assert_eq!(sizes(250, c, beqz), 2 + 2);
    assert_eq!(sizes(252, c, beqz), 4 + 2);
    assert_eq!(sizes(254, c, beqz), 4 + 4);
    assert_eq!(sizes(248, Features::RV64G, beqz), 4 + 4);
    // 4094 and 4096 for the wide ones.
    assert_eq!(sizes(4086, c, blt), 4 + 4);
    assert_eq!(sizes(4088, c, blt), 8 + 4);
    assert_eq!(sizes(4090, c, blt), 8 + 8);
    assert_eq!(sizes(4088, c, beqz), 6 + 4);
    assert_eq!(sizes(4092, c, beqz), 6 + 6);
    assert_eq!(sizes(4092, Features::RV64G, beqz), 8 + 8);
    // 1 MiB - 2 for the jal after the inverted branch.
    assert_eq!(sizes((1 << 20) - 12, c, beqz), 6 + 6);
    let far = across(1 << 20, c, beqz);
    assert!(matches!(far.finish(0), Err(AsmError::OutOfReach { .. })));
    let with_scratch = |asm: &mut Asm, to| {
        asm.set_scratch(T0);
        asm.beqz(A0, to);
    };
    assert_eq!(sizes(1 << 20, c, with_scratch), 10 + 10);
}

#[test]
fn jumps_grow_exactly_when_they_must() {
    let jump = |asm: &mut Asm, to| asm.jump(to);
    let call = |asm: &mut Asm, to| asm.jal(Ra, to);
    let c = Features::RV64GC;
    assert_eq!(sizes(2042, c, jump), 2 + 2);
    assert_eq!(sizes(2044, c, jump), 4 + 2);
    assert_eq!(sizes(2046, c, jump), 4 + 4);
    assert_eq!(sizes(64, Features::RV64G, jump), 8);
    assert_eq!(sizes((1 << 20) - 10, c, call), 8);
    assert_eq!(sizes(1 << 20, c, call), 16);
    assert!(matches!(
        across(1 << 20, c, jump).finish(0),
        Err(AsmError::OutOfReach { .. })
    ));
}

/// Follows one jump at `from` on a machine, to the first address outside it.
fn follow(code: &Code, from: u64, end: u64, machine: &mut Machine) {
    machine.pc = from;
    while machine.pc >= from && machine.pc < end {
        machine.step(code);
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Branch(Cond, Reg, Reg),
    Jump(Reg),
    Absolute(u64, Reg, Reg),
    Address,
    Load(u64),
    Shared(u64),
}

struct Piece {
    kind: Kind,
    from: Label,
    to: Label,
    target: Label,
}

/// A random buffer: every piece between two labels, filler between pieces.
fn random(rng: &mut Rng, features: Features, base: u64) -> (Asm, Vec<Piece>) {
    let mut asm = Asm::new(features);
    asm.set_scratch(T2);
    let count = 2 + rng.below(40) as usize;
    let targets: Vec<Label> = (0..count).map(|_| asm.new_label()).collect();
    let mut pieces = Vec::new();
    for &here in &targets {
        asm.bind(here);
        let target = rng.pick(&targets);
        let kind = match rng.below(6) {
            0 => Kind::Branch(
                rng.pick(&CONDS),
                rng.pick(&[A0, A1, T1]),
                rng.pick(&[Zero, A1, A5]),
            ),
            1 => Kind::Jump(rng.pick(&[Zero, Ra, T0])),
            2 => {
                let near = base.wrapping_add_signed((rng.next() as i64) >> rng.pick(&[30, 42, 52]));
                let far = rng.shaped();
                let target = rng.pick(&[near, far]) & !1;
                Kind::Absolute(target, rng.pick(&[Zero, Ra]), rng.pick(&[T0, T1]))
            }
            3 => Kind::Address,
            4 => Kind::Load(rng.shaped()),
            _ => Kind::Shared(rng.shaped()),
        };
        let from = asm.here();
        match kind {
            Kind::Branch(cond, rs1, rs2) => asm.branch(cond, rs1, rs2, target),
            Kind::Jump(rd) => asm.jal(rd, target),
            Kind::Absolute(target, link, tmp) => asm.call_abs(target, link, tmp),
            Kind::Address => asm.la(A5, target),
            Kind::Load(value) => asm.ld_lit(A5, value),
            Kind::Shared(value) => {
                let (one, other) = (asm.lit64(!value), asm.lit64(value));
                let hi = asm.pcrel_hi(T0, one);
                asm.ld_lo(A0, hi, one);
                asm.ld_lo(A5, hi, other);
                asm.la_lo(A1, hi, one);
            }
        }
        let to = asm.here();
        pieces.push(Piece {
            kind,
            from,
            to,
            target,
        });
        match rng.below(8) {
            0 => asm.data(&vec![0; rng.below(3000) as usize * 4]),
            1 => asm.align(1 << rng.below(7)),
            2 => (0..rng.below(60)).for_each(|_| asm.emit(ebreak())),
            _ => asm.li(A0, rng.shaped() as i64),
        }
        if !features.c {
            asm.align(4);
        }
    }
    (asm, pieces)
}

fn check(piece: &Piece, code: &Code, rng: &mut Rng) {
    let (from, to) = (code.address(piece.from), code.address(piece.to));
    let mut machine = Machine::default();
    for reg in [A0, A1, A5, T1] {
        machine.set(reg, rng.pick(&[0, 1, u64::MAX, 7]));
    }
    let (left, right) = match piece.kind {
        Kind::Branch(_, rs1, rs2) => (machine.get(rs1), machine.get(rs2)),
        _ => (0, 0),
    };
    follow(code, from, to, &mut machine);
    let target = code.address(piece.target);
    let what = piece.kind;
    match piece.kind {
        // A branch to itself runs until the machine would not end.
        Kind::Branch(cond, ..) if holds(cond, left, right) => {
            assert_eq!(machine.pc, target, "{what:?}");
        }
        Kind::Jump(link) => {
            assert_eq!(machine.pc, target, "{what:?}");
            assert_eq!(
                machine.get(link),
                if link == Zero { 0 } else { to },
                "{what:?}"
            );
        }
        Kind::Absolute(target, link, _) => {
            assert_eq!(machine.pc, target, "{what:?}");
            assert_eq!(
                machine.get(link),
                if link == Zero { 0 } else { to },
                "{what:?}"
            );
        }
        _ => assert_eq!(machine.pc, to, "{what:?}"),
    }
    match piece.kind {
        Kind::Address => assert_eq!(machine.get(A5), target),
        Kind::Load(value) => assert_eq!(machine.get(A5), value),
        Kind::Shared(value) => {
            assert_eq!((machine.get(A0), machine.get(A5)), (!value, value));
            let at = (machine.get(A1) - code.base) as usize;
            assert_eq!(code.bytes[at..at + 8], (!value).to_le_bytes());
        }
        _ => {}
    }
}

#[test]
fn random_buffers_do_what_they_say() {
    let mut rng = Rng(7);
    for round in 0..1500 {
        let features = rng.pick(&[Features::RV64G, Features::RV64GC, Features::ALL]);
        let base = rng.pick(&[0x1000, 0x7fff_f000, 0x3f_1234_5678, u64::MAX - (1 << 24)]) & !7;
        let (asm, pieces) = random(&mut rng, features, base);
        let bound = asm.max_size();
        let code = asm
            .finish(base)
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(
            code.bytes.len() <= bound,
            "round {round}: {} > {bound}",
            code.bytes.len()
        );
        for piece in &pieces {
            let (from, to) = (code.address(piece.from), code.address(piece.to));
            // Code that jumps into itself would not leave.
            if !(from..to).contains(&code.address(piece.target)) {
                check(piece, &code, &mut rng);
            }
        }
    }
}

#[test]
fn absolute_jumps_take_the_nearest_form() {
    let base = 0x10_0000_0000;
    let size = |target: u64, link| {
        let mut asm = Asm::new(Features::RV64GC);
        asm.call_abs(target, link, T0);
        asm.finish(base).unwrap().bytes.len()
    };
    assert_eq!(size(base - 2048, Zero), 2);
    assert_eq!(size(base - 2050, Zero), 4);
    assert_eq!(size(base, Ra), 4);
    assert_eq!(size(base + (1 << 20) - 2, Ra), 4);
    assert_eq!(size(base + (1 << 20), Ra), 8);
    assert_eq!(size(base + 0x7fff_f7fe, Ra), 8);
    assert_eq!(size(base + 0x7fff_f800, Ra), 12 + 4 + 8);
    assert_eq!(size(base - 0x8000_0800, Ra), 8);
    assert_eq!(size(base - 0x8000_0802, Ra), 12 + 4 + 8);
    assert_eq!(size(0, Ra), 12 + 4 + 8);
}

/// An address outside is exact from anywhere; what is loaded from it is loaded from there.
#[test]
fn absolute_addresses_are_exact() {
    let base = 0x10_0000_0000;
    for (address, far) in [
        (base, false),
        (base + 0x7fff_f7ff, false),
        // The load stands 8 bytes behind.
        (base + 0x7fff_f808, true),
        (base - 0x7fff_fff8, false),
        (base - 0x8000_0801, true),
        (3, true),
        (u64::MAX, true),
    ] {
        let mut asm = Asm::new(Features::RV64GC);
        asm.la_abs(A0, address);
        asm.load_abs(crate::LoadOp::Lhu, A1, address);
        let bound = asm.max_size();
        let code = asm.finish(base).unwrap();
        // With a literal, which both share, after 20 bytes of code.
        assert_eq!(code.bytes.len(), if far { 20 + 4 + 8 } else { 16 });
        assert!(code.bytes.len() <= bound);
        let mut machine = Machine::default();
        machine.pc = base;
        machine.step(&code);
        machine.step(&code);
        assert_eq!(machine.get(A0), address);
        if far {
            machine.step(&code);
            machine.step(&code);
        } else {
            machine.step(&code);
        }
        let at = (machine.pc - base) as usize;
        let (insn, _) = crate::Insn::decode_at(&code.bytes[at..]).unwrap();
        let crate::Insn::Load { op, rd, rs1, imm } = insn else {
            panic!("{insn}");
        };
        assert_eq!((op, rd, rs1), (crate::LoadOp::Lhu, A1, A1));
        let reached = machine.get(A1).wrapping_add_signed(imm.get());
        assert_eq!(reached, address);
    }
    let mut asm = Asm::new(Features::RV64GC);
    asm.la_abs(Zero, 4);
    assert_eq!(asm.finish(base), Err(AsmError::BadRegister { reg: Zero }));
}

#[test]
fn a_shared_base_over_a_tile_border_takes_an_addi() {
    let size = |gap: usize| {
        let mut asm = Asm::new(Features::RV64GC);
        let (one, other) = (asm.lit64(1), asm.lit64(2));
        let hi = asm.pcrel_hi(T0, one);
        asm.ld_lo(A0, hi, one);
        asm.ld_lo(A1, hi, other);
        asm.data(&vec![0; gap]);
        asm.finish(0).unwrap().bytes.len() - gap - 16
    };
    assert_eq!(size(2020), 12);
    assert_eq!(size(2028), 12 + 4 + 4); // auipc, addi, ld, ld; four of padding
    assert_eq!(size(2044), 12);
}

#[test]
fn wide_labels_are_aligned_and_wide() {
    let mut asm = Asm::new(Features::RV64GC);
    asm.emit(nop());
    let site = asm.wide_label(nop());
    asm.emit(nop());
    let code = asm.finish(0x1002).unwrap();
    assert_eq!(code.address(site) % 4, 0);
    assert_eq!(code.bytes, [0x01, 0x00, 0x13, 0x00, 0x00, 0x00, 0x01, 0x00]);
}

#[test]
fn literals_stand_aligned_and_shared() {
    let mut asm = Asm::new(Features::RV64GC);
    let target = asm.here();
    asm.ld_lit(A0, 5);
    asm.ld_lit(A1, 5);
    let own = asm.lit64(5);
    let address = asm.lit_address(target);
    asm.ld_label(A5, own);
    let code = asm.finish(0x4000_0002).unwrap();
    assert_eq!(code.address(own) % 8, 0);
    assert_eq!(code.bytes.len(), 24 + 6 + 3 * 8);
    let at = code.offset(address) as usize;
    assert_eq!(code.bytes[at..at + 8], 0x4000_0002_u64.to_le_bytes());
}

/// Marks stand where they were made, and the code is what it is without them.
#[test]
fn marks_say_where_they_stand_and_change_nothing() {
    let make = |mark: &dyn Fn(&mut Asm)| {
        let mut asm = Asm::new(Features::RV64GC);
        let far = asm.new_label();
        mark(&mut asm);
        asm.emit(nop());
        mark(&mut asm);
        asm.emit(nop());
        asm.beqz(A0, far);
        mark(&mut asm);
        asm.align(8);
        mark(&mut asm);
        asm.data(&[0; 300]);
        asm.bind(far);
        mark(&mut asm);
        asm.ld_lit(A0, 5);
        mark(&mut asm);
        asm.finish(0x1000).unwrap()
    };
    let code = make(&Asm::mark);
    assert_eq!(code.marks(), [0, 2, 8, 8, 308, 316]);
    assert_eq!(code.bytes, make(&|_| {}).bytes);
    assert_eq!(
        code.bytes.len(),
        328,
        "the last mark is before the literals"
    );
}

#[test]
fn mistakes_are_errors() {
    let finish = |make: &dyn Fn(&mut Asm)| {
        let mut asm = Asm::new(Features::RV64GC);
        make(&mut asm);
        let _ = asm.max_size();
        asm.finish(0x1000).unwrap_err()
    };
    let label = Label(0);
    assert_eq!(
        finish(&|asm| {
            asm.new_label();
        }),
        AsmError::Unbound { label }
    );
    assert_eq!(
        finish(&|asm| {
            let l = asm.new_label();
            asm.jump(l);
        }),
        AsmError::Unbound { label }
    );
    assert_eq!(
        finish(&|asm| {
            let l = asm.here();
            asm.bind(l);
        }),
        AsmError::BoundTwice { label }
    );
    assert_eq!(
        finish(&|asm| asm.jump(label)),
        AsmError::ForeignLabel { label }
    );
    assert_eq!(
        finish(&|asm| asm.bind(label)),
        AsmError::ForeignLabel { label }
    );
    assert_eq!(
        finish(&|asm| asm.ld_lit(Zero, 1)),
        AsmError::BadRegister { reg: Zero }
    );
    assert_eq!(
        finish(&|asm| asm.call_abs(0, Ra, Zero)),
        AsmError::BadRegister { reg: Zero }
    );
    assert_eq!(
        finish(&|asm| asm.jump_abs(3, T0)),
        AsmError::Misaligned {
            address: 3,
            align: 2
        }
    );
    assert_eq!(finish(&|asm| asm.align(3)), AsmError::BadAlign { align: 3 });
    assert_eq!(
        finish(&|asm| asm.align(8192)),
        AsmError::BadAlign { align: 8192 }
    );
    assert_eq!(
        finish(&|asm| {
            asm.data(&[1]);
            asm.emit(nop());
        }),
        AsmError::Misaligned {
            address: 1,
            align: 2
        }
    );
    assert_eq!(
        finish(&|asm| {
            let l = asm.new_label();
            asm.jump(l);
            asm.data(&[1]);
            asm.bind(l);
        }),
        AsmError::Misaligned {
            address: 3,
            align: 2
        }
    );
    let spread = finish(&|asm| {
        let (one, other) = (asm.here(), asm.new_label());
        let hi = asm.pcrel_hi(T0, one);
        asm.la_lo(A0, hi, one);
        asm.la_lo(A0, hi, other);
        asm.data(&[0; 4096]);
        asm.bind(other);
    });
    assert_eq!(
        spread,
        AsmError::LowOutOfReach {
            offset: 0,
            span: 4112
        }
    );
    let wide = Asm::new(Features::RV64G);
    assert_eq!(
        wide.finish(2),
        Err(AsmError::Misaligned {
            address: 2,
            align: 4
        })
    );
    let mut full = Asm::new(Features::RV64GC);
    full.emit(nop());
    full.emit(nop());
    assert_eq!(
        full.finish(u64::MAX - 1),
        Err(AsmError::TooLarge { bytes: 4 })
    );
}

#[test]
fn alignment_after_odd_data_is_filled() {
    let mut asm = Asm::new(Features::RV64GC);
    asm.data(&[0xff]);
    asm.align(8);
    asm.emit(addi(A0, A0, imm!(1)));
    let code = asm.finish(0x1000).unwrap();
    assert_eq!(code.bytes, [0xff, 0, 1, 0, 1, 0, 1, 0, 0x05, 0x05]);
}

#[test]
fn conditions_have_inverses() {
    for cond in CONDS {
        assert_eq!(cond.inverse().inverse(), cond);
        for (left, right) in [(0, 0), (0, 1), (1, 0), (u64::MAX, 1), (1, u64::MAX)] {
            assert_ne!(holds(cond, left, right), holds(cond.inverse(), left, right));
        }
    }
    assert_eq!(
        Cond::Ne.branch(A0, A1, crate::offset!(8)),
        bne(A0, A1, crate::offset!(8))
    );
}

/// Branches that stand 2400 bytes apart, each going 4094 bytes, which is as far as it can: when one
/// grows the one before it must, too. The last one must. Gives each branch and its target.
fn dominoes(count: usize) -> (Asm, Vec<(Label, Label)>) {
    let mut asm = Asm::new(Features::RV64GC);
    asm.set_scratch(T2);
    let mut pairs: Vec<(Label, Label)> = Vec::new();
    for _ in 0..count {
        let (from, to) = (asm.here(), asm.new_label());
        asm.branch(Cond::Lt, A0, A1, to);
        asm.data(&[0; 1690]);
        if let Some((_, before)) = pairs.last() {
            asm.bind(*before);
        }
        asm.data(&[0; 706]);
        pairs.push((from, to));
    }
    asm.data(&[0; 2 << 10]);
    if let Some((_, last)) = pairs.last() {
        asm.bind(*last);
    }
    asm.emit(ret());
    (asm, pairs)
}

#[test]
fn growth_that_spreads_ends_within_the_cap() {
    let many = layout::MAX_ROUNDS as usize;
    for count in [2, many - 2, many, many + 2, 5 * many, 1000] {
        let (asm, pairs) = dominoes(count);
        let mut all = asm.clone();
        all.close();
        let bound = layout::Layout::limit(&all);
        let layout = layout::Layout::settle(&all, layout::Base::At(0x1000)).unwrap();
        let rounds = (bound.rounds, layout.rounds);
        println!("{count}: {rounds:?}");
        assert!(
            bound.rounds <= layout::MAX_ROUNDS + 1,
            "{count}: {rounds:?}"
        );
        assert!(
            layout.rounds <= 2 * (layout::MAX_ROUNDS + 1),
            "{count}: {rounds:?}"
        );
        let code = asm.finish(0x1000).unwrap();
        assert!(code.bytes.len() as u64 <= bound.size(), "{count}");
        for (from, to) in pairs {
            let mut machine = Machine::default();
            machine.set(A1, 1);
            let from = code.address(from);
            follow(&code, from, from + 8, &mut machine);
            assert_eq!(machine.pc, code.address(to), "{count}");
        }
    }
    let (asm, _) = dominoes(many / 2);
    let rounds = layout::Layout::limit(&asm).rounds;
    assert_eq!(
        rounds as usize,
        many / 2 + 1,
        "each falls in a round of its own"
    );
}
