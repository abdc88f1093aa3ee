//! Sign-extending moves, negation and byte order: chapters 4.1 and 4.2; and every register once.

use super::asm::*;
use super::table::Table;

/// Bits, what is special, the source, the result in 64 bits and (not for 32) in 32 bits.
#[rustfmt::skip]
const MOVSX: &[(i16, &str, u64, u64, Option<u64>)] = &[
    (8, "positive", 0x1234_5678_9abc_de7f, 0x7f, Some(0x7f)),
    (8, "negative", 0x1234_5678_9abc_de80, 0xffff_ffff_ffff_ff80, Some(0xffff_ff80)),
    (8, "minus_one", 0xff, s(-1), Some(0xffff_ffff)),
    (8, "zero_under_ones", s(-256), 0, Some(0)),
    (16, "positive", 0x1234_5678_9abc_7fff, 0x7fff, Some(0x7fff)),
    (16, "negative", 0x1234_5678_9abc_8000, 0xffff_ffff_ffff_8000, Some(0xffff_8000)),
    (16, "minus_one", 0xffff, s(-1), Some(0xffff_ffff)),
    (16, "sign_of_a_byte_is_no_sign", 0x0080, 0x80, Some(0x80)),
    (32, "positive", 0x8234_5678_7fff_ffff, 0x7fff_ffff, None),
    (32, "negative", 0x1234_5678_8000_0000, 0xffff_ffff_8000_0000, None),
    (32, "minus_one", 0xffff_ffff, s(-1), None),
    (32, "sign_of_two_bytes_is_no_sign", 0x8000, 0x8000, None),
];

/// What is special, the operand, the result in 64 and in 32 bits.
#[rustfmt::skip]
const NEG: &[(&str, u64, u64, u64)] = &[
    ("positive", 5, s(-5), 0xffff_fffb),
    ("negative", s(-5), 5, 5),
    ("zero", 0, 0, 0),
    ("smallest_of_64_bits", 1 << 63, 1 << 63, 0),
    ("smallest_of_32_bits", 0x8000_0000, 0xffff_ffff_8000_0000, 0x8000_0000),
    ("upper_half", 0xdead_beef_0000_0001, 0x2152_4110_ffff_ffff, 0xffff_ffff),
];

/// Bits, the operand, little-endian, big-endian and swapped on a little-endian machine.
#[rustfmt::skip]
const ORDER: &[(i32, u64, u64, u64)] = &[
    (16, 0x1122_3344_5566_7788, 0x7788, 0x8877),
    (32, 0x1122_3344_5566_7788, 0x5566_7788, 0x8877_6655),
    (64, 0x1122_3344_5566_7788, 0x1122_3344_5566_7788, 0x8877_6655_4433_2211),
    (16, 0xffff_ffff_ffff_00fe, 0x00fe, 0xfe00),
    (32, 0xffff_ffff_0000_00fe, 0x0000_00fe, 0xfe00_0000),
    (64, 0x0000_0000_0000_00fe, 0x0000_0000_0000_00fe, 0xfe00_0000_0000_0000),
];

pub(super) fn rows(t: &mut Table) {
    for &(bits, what, from, want64, want32) in MOVSX {
        let dirty = ld_imm64(R3, 0x5555_5555_5555_5555);
        let set = ld_imm64(R7, from);
        let program = [dirty, set, movsx64(bits, R3, R7), mov(R0, R3), exit()];
        t.gives(format!("movsx64_from_{bits}_{what}"), &program, want64);
        if let Some(want32) = want32 {
            let program = [dirty, set, movsx32(bits, R3, R7), mov(R0, R3), exit()];
            t.gives(format!("movsx32_from_{bits}_{what}"), &program, want32);
        }
    }
    for (bits, want) in [(8, s(-127)), (16, s(-32_383)), (32, s(-2_122_219_135))] {
        let program = [
            ld_imm64(R0, 0x8181_8181_8181_8181),
            movsx64(bits, R0, R0),
            exit(),
        ];
        t.gives(format!("movsx64_from_{bits}_same_register"), &program, want);
    }
    for &(what, of, want64, want32) in NEG {
        let set = ld_imm64(R2, of);
        let program = [set, neg64(R2), mov(R0, R2), exit()];
        t.gives(format!("neg64_{what}"), &program, want64);
        let program = [set, neg32(R2), mov(R0, R2), exit()];
        t.gives(format!("neg32_{what}"), &program, want32);
    }
    byte_order(t);
    registers(t);
}

fn byte_order(t: &mut Table) {
    for (i, &(bits, of, little, swapped)) in ORDER.iter().enumerate() {
        let what = ["mixed", "low_byte"][i / 3];
        for (name, insn, want) in [
            ("le", le(bits, R5), little),
            ("be", be(bits, R5), swapped),
            ("bswap", bswap(bits, R5), swapped),
        ] {
            let program = [ld_imm64(R5, of), insn, mov(R0, R5), exit()];
            t.gives(format!("{name}{bits}_{what}"), &program, want);
        }
    }
}

/// Every register keeps a value of its own, as destination and as source.
fn registers(t: &mut Table) {
    let all = [R0, R1, R2, R3, R4, R5, R6, R7, R8, R9];
    let fill = || all.into_iter().map(|r| mov(r, 100 + i32::from(r.0)));
    for reg in all {
        let program: Vec<_> = fill().chain([mov(R0, reg), exit()]).collect();
        t.gives(
            format!("mov64_keeps_register_{}", reg.0),
            &program,
            100 + u64::from(reg.0),
        );
    }
    // 100 + 101 + … + 109.
    let sum = all[1..].iter().map(|reg| add(R0, *reg));
    let program: Vec<_> = fill().chain(sum).chain([exit()]).collect();
    t.gives("add64_of_all_registers", &program, 1045);
    let program = [mov(R0, R10), alu64(SUB, R0, R10), exit()];
    t.gives("mov64_reads_the_frame_register", &program, 0);
}
