//! Values by a machine, lengths by searching for counterexamples.

use super::*;
use crate::insn::{IOp, ROp, ShiftOp};
use crate::testing::Rng;
use crate::testing::machine::{Machine, imm_op, reg_op, shift_op};
use crate::{Code, Reg::A0};

const SETS: [Features; 5] = [
    Features::RV64GC,
    Features {
        zba: true,
        ..Features::RV64GC
    },
    Features {
        zbs: true,
        ..Features::RV64GC
    },
    Features::U74,
    Features::RVA22,
];

/// How many values are tried at random. In a VM instructions take thirty times as long.
const AT_RANDOM: usize = if cfg!(target_arch = "riscv64") {
    5_000
} else {
    100_000
};

fn eval(steps: &[Insn]) -> u64 {
    let code = Code::default();
    let mut machine = Machine::default();
    machine.set(A0, 0xdead_beef_dead_beef);
    for &step in steps {
        machine.run(step, 4, &code);
    }
    machine.get(A0)
}

fn check(value: u64, features: Features) -> usize {
    let steps = li(A0, value as i64, features);
    assert_eq!(eval(&steps), value, "{value:#x} {features:?}: {steps:?}");
    assert!(steps.len() <= 8, "{value:#x}: {steps:?}");
    steps.len()
}

#[test]
fn values_are_right_around_every_power() {
    for features in SETS {
        for hi in 0..64 {
            for lo in 0..=hi {
                for off in [
                    0,
                    1,
                    u64::MAX,
                    2047,
                    2048,
                    4095,
                    4096,
                    u64::MAX - 2047,
                    u64::MAX - 2048,
                ] {
                    let bits = 1_u64 << hi | 1 << lo;
                    check(bits.wrapping_add(off), features);
                    check((!bits).wrapping_add(off), features);
                }
            }
        }
    }
}

#[test]
fn values_are_right_at_random() {
    let mut rng = Rng(1);
    for _ in 0..AT_RANDOM {
        let value = rng.shaped();
        for features in SETS {
            check(value, features);
        }
    }
}

/// One random step of the operations that `li` knows.
fn step(rng: &mut Rng, value: u64, features: Features) -> u64 {
    let any = rng_imm(rng);
    let imm = rng.pick(&[-2048, -1, 1, 2047, any, any]);
    let by = 1 + rng.below(63) as u32;
    let mut kinds = vec![0, 1, 2, 3, 4];
    if features.zba {
        kinds.extend([5, 6, 7, 8, 9]);
    }
    if features.zbb {
        kinds.push(10);
    }
    if features.zbs {
        kinds.extend([11, 12, 13]);
    }
    match rng.pick(&kinds) {
        0 => imm_op(IOp::Addi, value, imm),
        1 => imm_op(IOp::Addiw, value, imm),
        2 => imm_op(IOp::Xori, value, imm),
        3 => shift_op(ShiftOp::Slli, value, by),
        4 => shift_op(ShiftOp::Srli, value, by),
        5 => shift_op(ShiftOp::SlliUw, value, by),
        6 => reg_op(ROp::AddUw, value, 0),
        7 => reg_op(ROp::Sh1add, value, value),
        8 => reg_op(ROp::Sh2add, value, value),
        9 => reg_op(ROp::Sh3add, value, value),
        10 => shift_op(ShiftOp::Rori, value, by),
        11 => shift_op(ShiftOp::Bseti, value, by),
        12 => shift_op(ShiftOp::Bclri, value, by),
        _ => shift_op(ShiftOp::Binvi, value, by),
    }
}

fn rng_imm(rng: &mut Rng) -> i64 {
    SImm::<12>::from_field(rng.next() as u32).get()
}

fn first(rng: &mut Rng, features: Features) -> u64 {
    match rng.below(if features.zbs { 3 } else { 2 }) {
        0 => rng_imm(rng) as u64,
        1 => ((rng.next() as i32) & !0xfff >> rng.below(32)) as u64 & !0xfff,
        _ => 1 << rng.below(64),
    }
}

/// How many of `count` random chains of `len` operations make a value for
/// which `li` takes longer.
fn beaten(len: usize, count: usize, features: Features) -> usize {
    let mut rng = Rng(len as u64);
    let mut beaten = 0;
    for _ in 0..count {
        let mut value = first(&mut rng, features);
        for _ in 1..len {
            value = step(&mut rng, value, features);
        }
        beaten += usize::from(check(value, features) > len);
    }
    beaten
}

#[test]
fn no_chain_of_two_is_shorter() {
    for features in SETS {
        assert_eq!(beaten(1, 20_000, features), 0, "{features:?}");
        assert_eq!(beaten(2, 100_000, features), 0, "{features:?}");
    }
}

#[test]
fn slow_every_shifted_small_number_takes_two() {
    for features in SETS {
        for imm in -2048_i64..2048 {
            for by in 1..64 {
                assert!(check((imm as u64) << by, features) <= 2, "{imm} << {by}");
                assert!(check(imm as u64 >> by, features) <= 2, "{imm} >> {by}");
            }
        }
    }
}

#[test]
fn few_longer_chains_are_shorter() {
    for features in SETS {
        for len in 3..=5 {
            let exact = len == 3 && !features.zba && !features.zbb;
            let limit = if exact { 0 } else { 20_000 / 200 };
            let beaten = beaten(len, 20_000, features);
            assert!(
                beaten <= limit,
                "{beaten} of 20,000, length {len}, {features:?}"
            );
        }
    }
}

#[test]
fn zero_needs_nothing_and_words_need_two() {
    assert!(li(Reg::Zero, 12345, Features::RVA22).is_empty());
    let mut rng = Rng(3);
    for _ in 0..100_000 {
        assert!(check(rng.next() as i32 as u64, Features::RV64G) <= 2);
    }
    assert_eq!(check(0x7fff_ffff, Features::RV64G), 2);
}
