//! Arithmetic of 32 bits: chapter 4.1. The upper halves of the operands do not count, and that of
//! the result is zero.

use super::alu64::REGS;
use super::asm::*;
use super::table::Table;

const MIN: u32 = 1 << 31;
const MAX: u32 = MIN - 1;

/// 32 bits under an upper half that must not matter.
const fn dirty(low: u32) -> u64 {
    0xdead_beef_0000_0000 | low as u64
}

/// Operation, what is special, both operands, the result. A second operand that is the sign
/// extension of 32 bits makes a second vector, with a constant.
#[rustfmt::skip]
const ROWS: &[(Alu, &str, u64, u64, u32)] = &[
    (ADD, "upper_halves_do_not_count", dirty(2), dirty(3), 5),
    (ADD, "wraps_to_zero", dirty(u32::MAX), 1, 0),
    (ADD, "signed_overflow", dirty(MAX), 1, MIN),
    (ADD, "negative", dirty(5), s(-7), 0xffff_fffe),
    (SUB, "upper_halves_do_not_count", dirty(7), dirty(5), 2),
    (SUB, "wraps_below_zero", 0, 1, u32::MAX),
    (SUB, "signed_overflow", dirty(MIN), 1, MAX),
    (SUB, "negative", dirty(5), s(-3), 8),
    (MUL, "upper_halves_do_not_count", dirty(6), dirty(7), 42),
    (MUL, "by_zero", dirty(9), 0, 0),
    (MUL, "drops_the_upper_bits", 0x1_0001, 0x1_0001, 0x2_0001),
    (MUL, "by_minus_one", dirty(5), s(-1), 0xffff_fffb),
    (MUL, "smallest_by_minus_one", dirty(MIN), s(-1), MIN),
    (DIV, "upper_halves_do_not_count", dirty(100), dirty(7), 14),
    (DIV, "is_unsigned", dirty(0xffff_fff6), 2, 0x7fff_fffb),
    (DIV, "by_zero", dirty(100), 0, 0),
    (DIV, "negative_by_zero", s(-100), 0, 0),
    (DIV, "by_a_zero_under_an_upper_half", dirty(100), dirty(0), 0),
    (DIV, "constant_is_unsigned", dirty(u32::MAX), s(-1), 1),
    (DIV, "smallest_by_minus_one", dirty(MIN), s(-1), 0),
    (SDIV, "upper_halves_do_not_count", dirty(10), dirty(3), 3),
    (SDIV, "negative_by_positive", dirty(0xffff_fff6), 3, 0xffff_fffd),
    (SDIV, "positive_by_negative", dirty(10), s(-3), 0xffff_fffd),
    (SDIV, "negative_by_negative", dirty(0xffff_fff6), s(-3), 3),
    (SDIV, "towards_zero", s(-1), 2, 0),
    (SDIV, "by_zero", dirty(10), 0, 0),
    (SDIV, "negative_by_zero", s(-10), 0, 0),
    (SDIV, "smallest_by_minus_one", dirty(MIN), s(-1), MIN),
    (SDIV, "smallest_by_two", dirty(MIN), 2, 0xc000_0000),
    (MOD, "upper_halves_do_not_count", dirty(100), dirty(7), 2),
    (MOD, "is_unsigned", dirty(0xffff_fff6), 7, 1),
    (MOD, "by_zero_keeps_the_lower_half", dirty(100), 0, 100),
    (MOD, "negative_by_zero_keeps_the_lower_half", s(-100), 0, 0xffff_ff9c),
    (MOD, "by_a_zero_under_an_upper_half", dirty(100), dirty(0), 100),
    (MOD, "by_minus_one", dirty(MIN), s(-1), MIN),
    (MOD, "largest_by_itself", dirty(u32::MAX), s(-1), 0),
    (SMOD, "upper_halves_do_not_count", dirty(10), dirty(3), 1),
    (SMOD, "negative_by_positive", dirty(0xffff_fff6), 3, u32::MAX),
    (SMOD, "positive_by_negative", dirty(10), s(-3), 1),
    (SMOD, "negative_by_negative", dirty(0xffff_fff6), s(-3), u32::MAX),
    (SMOD, "by_zero_keeps_the_lower_half", dirty(10), 0, 10),
    (SMOD, "negative_by_zero_keeps_the_lower_half", s(-10), 0, 0xffff_fff6),
    (SMOD, "smallest_by_minus_one", dirty(MIN), s(-1), 0),
    (OR, "upper_halves_do_not_count", dirty(0xf0), dirty(0x0f), 0xff),
    (OR, "negative", dirty(1), s(-16), 0xffff_fff1),
    (AND, "upper_halves_do_not_count", dirty(0xff), dirty(0x3c), 0x3c),
    (AND, "negative", dirty(0x9abc_def7), s(-16), 0x9abc_def0),
    (XOR, "upper_halves_do_not_count", 0xff, dirty(0x0f), 0xf0),
    (XOR, "negative", dirty(0x89ab_cdef), s(-1), 0x7654_3210),
    (LSH, "upper_halves_do_not_count", dirty(3), dirty(4), 0x30),
    (LSH, "by_the_most", dirty(3), 31, MIN),
    (LSH, "by_the_width", dirty(5), 32, 5),
    (LSH, "by_more_than_the_width", dirty(5), 33, 10),
    (LSH, "by_minus_one", dirty(3), s(-1), MIN),
    (LSH, "by_zero", dirty(5), 0, 5),
    (RSH, "upper_halves_do_not_count", dirty(0x30), dirty(4), 3),
    (RSH, "zeros_come_in", s(-1), 1, MAX),
    (RSH, "by_the_most", dirty(MIN), 31, 1),
    (RSH, "by_the_width", dirty(MIN), 32, MIN),
    (RSH, "by_more_than_the_width", dirty(10), 33, 5),
    (RSH, "by_minus_one", dirty(MIN), s(-1), 1),
    (RSH, "by_zero", dirty(MIN), 0, MIN),
    (ARSH, "upper_halves_do_not_count", dirty(0x30), dirty(4), 3),
    (ARSH, "sign_is_bit_31", 0x8000_0000, 4, 0xf800_0000),
    (ARSH, "by_the_most", dirty(MIN), 31, u32::MAX),
    (ARSH, "by_the_width", dirty(MIN), 32, MIN),
    (ARSH, "by_more_than_the_width", s(-10), 33, 0xffff_fffb),
    (ARSH, "by_minus_one", dirty(MIN), s(-1), u32::MAX),
    (ARSH, "by_zero", s(-10), 0, 0xffff_fff6),
    (MOV, "clears_the_upper_half", s(-1), 5, 5),
    (MOV, "takes_the_lower_half", 0, dirty(0x89ab_cdef), 0x89ab_cdef),
    (MOV, "negative_is_not_extended", 0, s(-1), u32::MAX),
    (MOV, "smallest_constant", 0, 0xffff_ffff_8000_0000, MIN),
];

/// Both operands in one register.
const SAME: &[(Alu, u64, u32)] = &[
    (ADD, dirty(MIN + 3), 6),
    (SUB, dirty(7), 0),
    (MUL, dirty(0x1_0003), 0x6_0009),
    (DIV, dirty(0), 0),
    (SDIV, dirty(MIN), 1),
    (OR, dirty(0xf0), 0xf0),
    (AND, dirty(0xf0), 0xf0),
    (LSH, dirty(3), 24),
    (RSH, dirty(0x4000_0004), 0x0400_0000),
    (MOD, dirty(0), 0),
    (SMOD, dirty(9), 0),
    (XOR, dirty(9), 0),
    (MOV, dirty(MIN), MIN),
    (ARSH, dirty(0x8000_0004), 0xf800_0000),
];

pub(super) fn rows(t: &mut Table) {
    for (&(op, what, a, b, want), (dst, src)) in ROWS.iter().zip(REGS.into_iter().cycle()) {
        let name = op.0;
        let (a, set_b, want) = (ld_imm64(dst, a), ld_imm64(src, b), want.into());
        let program = [a, set_b, alu32(op, dst, src), mov(R0, dst), exit()];
        t.gives(format!("{name}32_{what}_reg"), &program, want);
        if let Some(imm) = imm_of(b) {
            let program = [a, alu32(op, dst, imm), mov(R0, dst), exit()];
            t.gives(format!("{name}32_{what}_imm"), &program, want);
        }
    }
    for &(op, a, want) in SAME {
        let program = [ld_imm64(R4, a), alu32(op, R4, R4), mov(R0, R4), exit()];
        t.gives(format!("{}32_same_register", op.0), &program, want.into());
    }
}
