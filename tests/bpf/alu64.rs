//! Arithmetic of 64 bits: chapter 4.1.

use super::asm::*;
use super::table::Table;

const MIN: u64 = 1 << 63;
const MAX: u64 = MIN - 1;

/// Operation, what is special, both operands, the result. A second operand that is the sign
/// extension of 32 bits makes a second vector, with a constant.
#[rustfmt::skip]
const ROWS: &[(Alu, &str, u64, u64, u64)] = &[
    (ADD, "small", 2, 3, 5),
    (ADD, "wraps_to_zero", s(-1), 1, 0),
    (ADD, "carries_into_the_upper_half", 0xffff_ffff, 1, 0x1_0000_0000),
    (ADD, "signed_overflow", MAX, 1, MIN),
    (ADD, "negative", 5, s(-7), s(-2)),
    (ADD, "smallest_constant", 0x1_0000_0000, 0xffff_ffff_8000_0000, 0x8000_0000),
    (ADD, "largest_constant", 1, 0x7fff_ffff, 0x8000_0000),
    (ADD, "whole_registers", 0x1111_2222_3333_4444, 0x1234_5678_9abc_def0, 0x2345_789a_cdf0_2334),
    (SUB, "small", 7, 5, 2),
    (SUB, "wraps_below_zero", 0, 1, s(-1)),
    (SUB, "borrows_from_the_upper_half", 0x1_0000_0000, 1, 0xffff_ffff),
    (SUB, "signed_overflow", MIN, 1, MAX),
    (SUB, "negative", 5, s(-3), 8),
    (SUB, "smallest_constant", 0, 0xffff_ffff_8000_0000, 0x8000_0000),
    (MUL, "small", 6, 7, 42),
    (MUL, "by_zero", s(-1), 0, 0),
    (MUL, "product_of_halves", 0xffff_ffff, 0xffff_ffff, 0xffff_fffe_0000_0001),
    (MUL, "by_minus_one", 0x1_0000_0001, s(-1), 0xffff_fffe_ffff_ffff),
    (MUL, "smallest_by_minus_one", MIN, s(-1), MIN),
    (MUL, "drops_the_upper_bits", MIN + 1, 2, 2),
    (DIV, "small", 100, 7, 14),
    (DIV, "exact", 42, 6, 7),
    (DIV, "small_by_large", 3, 7, 0),
    (DIV, "is_unsigned", s(-10), 2, 0x7fff_ffff_ffff_fffb),
    (DIV, "by_zero", 100, 0, 0),
    (DIV, "negative_by_zero", s(-100), 0, 0),
    (DIV, "constant_is_sign_extended", 0xffff_ffff, s(-1), 0),
    (DIV, "largest_by_itself", s(-1), s(-1), 1),
    (DIV, "smallest_by_minus_one", MIN, s(-1), 0),
    (DIV, "whole_registers", 0x6_0000_0009, 0x2_0000_0003, 3),
    (SDIV, "positive_by_positive", 10, 3, 3),
    (SDIV, "negative_by_positive", s(-10), 3, s(-3)),
    (SDIV, "positive_by_negative", 10, s(-3), s(-3)),
    (SDIV, "negative_by_negative", s(-10), s(-3), 3),
    (SDIV, "towards_zero", s(-1), 2, 0),
    (SDIV, "by_zero", 10, 0, 0),
    (SDIV, "negative_by_zero", s(-10), 0, 0),
    (SDIV, "smallest_by_minus_one", MIN, s(-1), MIN),
    (SDIV, "smallest_by_one", MIN, 1, MIN),
    (SDIV, "smallest_by_two", MIN, 2, 0xc000_0000_0000_0000),
    (SDIV, "lower_half_is_minus_one", 0x2_0000_0000, 0xffff_ffff, 2),
    (MOD, "small", 100, 7, 2),
    (MOD, "exact", 42, 6, 0),
    (MOD, "small_by_large", 3, 7, 3),
    (MOD, "is_unsigned", s(-10), 7, 6),
    (MOD, "by_zero_keeps", 100, 0, 100),
    (MOD, "negative_by_zero_keeps", s(-100), 0, s(-100)),
    (MOD, "constant_is_sign_extended", 0xffff_ffff, s(-1), 0xffff_ffff),
    (MOD, "largest_by_itself", s(-1), s(-1), 0),
    (MOD, "smallest_by_minus_one", MIN, s(-1), MIN),
    (SMOD, "positive_by_positive", 10, 3, 1),
    (SMOD, "negative_by_positive", s(-10), 3, s(-1)),
    (SMOD, "positive_by_negative", 10, s(-3), 1),
    (SMOD, "negative_by_negative", s(-10), s(-3), s(-1)),
    (SMOD, "exact", s(-6), 3, 0),
    (SMOD, "by_zero_keeps", 10, 0, 10),
    (SMOD, "negative_by_zero_keeps", s(-10), 0, s(-10)),
    (SMOD, "smallest_by_minus_one", MIN, s(-1), 0),
    (SMOD, "smallest_by_three", MIN, 3, s(-2)),
    (SMOD, "upper_half_counts", 0x1_0000_0007, 0x1_0000_0000, 7),
    (OR, "small", 0xf0, 0x0f, 0xff),
    (OR, "constant_is_sign_extended", 1, 0xffff_ffff_8000_0000, 0xffff_ffff_8000_0001),
    (OR, "whole_registers", 0xff00_ff00_ff00_ff00, 0x00aa_00aa_00aa_00aa, 0xffaa_ffaa_ffaa_ffaa),
    (AND, "small", 0xff, 0x3c, 0x3c),
    (AND, "constant_is_sign_extended", 0x1234_5678_9abc_def7, s(-16), 0x1234_5678_9abc_def0),
    (AND, "positive_constant_clears_the_upper_half", s(-1), 0x7fff_ffff, 0x7fff_ffff),
    (AND, "whole_registers", 0xff00_ff00_ff00_ff00, 0xf0f0_f0f0_f0f0_f0f0, 0xf000_f000_f000_f000),
    (XOR, "small", 0xff, 0x0f, 0xf0),
    (XOR, "with_minus_one", 0x0123_4567_89ab_cdef, s(-1), 0xfedc_ba98_7654_3210),
    (XOR, "whole_registers", 0xff00_ff00_ff00_ff00, 0xffff_ffff_0000_0000, 0x00ff_00ff_ff00_ff00),
    (LSH, "small", 1, 4, 16),
    (LSH, "by_zero", 0xff, 0, 0xff),
    (LSH, "into_the_upper_half", 1, 32, 0x1_0000_0000),
    (LSH, "by_the_most", 1, 63, MIN),
    (LSH, "by_the_width", 5, 64, 5),
    (LSH, "by_more_than_the_width", 5, 65, 10),
    (LSH, "by_minus_one", 3, s(-1), MIN),
    (LSH, "upper_half_of_the_distance", 1, 0x1_0000_0002, 4),
    (RSH, "small", 16, 4, 1),
    (RSH, "by_zero", s(-1), 0, s(-1)),
    (RSH, "zeros_come_in", s(-1), 1, MAX),
    (RSH, "upper_half_down", 0x1234_5678_9abc_def0, 32, 0x1234_5678),
    (RSH, "by_the_most", MIN, 63, 1),
    (RSH, "by_the_width", s(-5), 64, s(-5)),
    (RSH, "by_more_than_the_width", 10, 65, 5),
    (RSH, "by_minus_one", MIN, s(-1), 1),
    (ARSH, "sign_comes_in", s(-16), 2, s(-4)),
    (ARSH, "by_zero", s(-16), 0, s(-16)),
    (ARSH, "positive", MAX, 62, 1),
    (ARSH, "by_the_most", MIN, 63, s(-1)),
    (ARSH, "by_the_width", s(-5), 64, s(-5)),
    (ARSH, "by_more_than_the_width", s(-10), 65, s(-5)),
    (ARSH, "by_minus_one", MIN, s(-1), s(-1)),
    (ARSH, "lower_half_is_not_signed", 0x8000_0000, 31, 1),
    (MOV, "small", s(-1), 5, 5),
    (MOV, "constant_is_sign_extended", 0, s(-1), s(-1)),
    (MOV, "smallest_constant", 0, 0xffff_ffff_8000_0000, 0xffff_ffff_8000_0000),
    (MOV, "largest_constant", s(-1), 0x7fff_ffff, 0x7fff_ffff),
    (MOV, "whole_registers", 0, 0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef),
];

/// Both operands in one register.
const SAME: &[(Alu, u64, u64)] = &[
    (ADD, MIN + 3, 6),
    (SUB, 0x1234_5678_9abc_def0, 0),
    (MUL, 0x1_0000_0001, 0x2_0000_0001),
    (DIV, s(-9), 1),
    (SDIV, MIN, 1),
    (OR, 0xf0, 0xf0),
    (AND, 0xf0, 0xf0),
    (LSH, 3, 24),
    (RSH, 0x4000_0000_0000_0004, 0x0400_0000_0000_0000),
    (MOD, 9, 0),
    (SMOD, s(-9), 0),
    (XOR, s(-1), 0),
    (MOV, 7, 7),
    (ARSH, 0x8000_0000_0000_0004, 0xf800_0000_0000_0000),
];

/// Destination and source of a row, in turn.
pub(super) const REGS: [(Reg, Reg); 4] = [(R0, R1), (R6, R2), (R3, R9), (R8, R7)];

pub(super) fn rows(t: &mut Table) {
    for (&(op, what, a, b, want), (dst, src)) in ROWS.iter().zip(REGS.into_iter().cycle()) {
        let name = op.0;
        let (a, set_b) = (ld_imm64(dst, a), ld_imm64(src, b));
        let program = [a, set_b, alu64(op, dst, src), mov(R0, dst), exit()];
        t.gives(format!("{name}64_{what}_reg"), &program, want);
        if let Some(imm) = imm_of(b) {
            let program = [a, alu64(op, dst, imm), mov(R0, dst), exit()];
            t.gives(format!("{name}64_{what}_imm"), &program, want);
        }
    }
    for &(op, a, want) in SAME {
        let program = [ld_imm64(R4, a), alu64(op, R4, R4), mov(R0, R4), exit()];
        t.gives(format!("{}64_same_register", op.0), &program, want);
    }
    leave_the_source(t);
}

/// Arithmetic changes its destination only.
fn leave_the_source(t: &mut Table) {
    for op in [ADD, SUB, MUL, DIV, SDIV, MOD, SMOD, LSH, RSH, ARSH] {
        let program = [
            mov(R0, 40),
            mov(R5, 3),
            alu64(op, R0, R5),
            mov(R0, R5),
            exit(),
        ];
        t.gives(format!("{}64_leaves_its_source", op.0), &program, 3);
    }
}
