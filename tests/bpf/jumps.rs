//! Branches and jumps: chapter 4.3.

use super::asm::*;
use super::table::Table;

const ALL: [Cond; 11] = [EQ, GT, GE, SET, NE, SGT, SGE, LT, LE, SLT, SLE];

/// What is special, both operands, the branches that are taken; all others are not. A second
/// operand that is the sign extension of 32 bits makes more vectors, with a constant.
type Row = (&'static str, u64, u64, &'static [Cond]);

#[rustfmt::skip]
const ROWS64: &[Row] = &[
    ("equal", 7, 7, &[EQ, GE, SGE, LE, SLE, SET]),
    ("zeros", 0, 0, &[EQ, GE, SGE, LE, SLE]),
    ("above", 6, 5, &[NE, GT, GE, SGT, SGE, SET]),
    ("below", 2, 4, &[NE, LT, LE, SLT, SLE]),
    ("negative_left", s(-1), 1, &[NE, GT, GE, SLT, SLE, SET]),
    ("negative_right", 1, s(-2), &[NE, LT, LE, SGT, SGE]),
    ("smallest_and_largest", 1 << 63, (1 << 63) - 1, &[NE, GT, GE, SLT, SLE]),
    ("upper_half_counts", 0x1_0000_0000, 5, &[NE, GT, GE, SGT, SGE]),
    ("constant_is_sign_extended", 0x8000_0000, 0xffff_ffff_8000_0000, &[NE, LT, LE, SGT, SGE, SET]),
    ("smallest_constant", 0xffff_ffff_8000_0000, 0xffff_ffff_8000_0000, &[EQ, GE, SGE, LE, SLE, SET]),
    ("only_bits_of_the_extension", 0x8000_0000_0000_0000, s(-16), &[NE, LT, LE, SLT, SLE, SET]),
];

#[rustfmt::skip]
const ROWS32: &[Row] = &[
    ("equal_lower_halves", 0x1_0000_0007, 7, &[EQ, GE, SGE, LE, SLE, SET]),
    ("zero_lower_halves", 0xdead_beef_0000_0000, 0, &[EQ, GE, SGE, LE, SLE]),
    ("above", 6, 5, &[NE, GT, GE, SGT, SGE, SET]),
    ("below_under_an_upper_half", 0x9_0000_0002, 4, &[NE, LT, LE, SLT, SLE]),
    ("upper_half_of_the_source", 7, 0xdead_beef_0000_0007, &[EQ, GE, SGE, LE, SLE, SET]),
    ("negative_left", 0xffff_ffff, 1, &[NE, GT, GE, SLT, SLE, SET]),
    ("negative_right", 1, s(-2), &[NE, LT, LE, SGT, SGE]),
    ("smallest_and_largest", 0x8000_0000, 0x7fff_ffff, &[NE, GT, GE, SLT, SLE]),
    ("smallest_constant", 0x8000_0000, 0xffff_ffff_8000_0000, &[EQ, GE, SGE, LE, SLE, SET]),
    ("sign_of_64_bits_is_no_sign", 0x8000_0000_0000_0002, 1, &[NE, GT, GE, SGT, SGE]),
];

pub(super) fn rows(t: &mut Table) {
    for &row in ROWS64 {
        let by_reg = |cond, dst, src: Reg| jmp64(cond, dst, src, 2);
        branches(t, "64", row, by_reg, |cond, dst, imm| {
            jmp64(cond, dst, imm, 2)
        });
    }
    for &row in ROWS32 {
        let by_reg = |cond, dst, src: Reg| jmp32(cond, dst, src, 2);
        branches(t, "32", row, by_reg, |cond, dst, imm| {
            jmp32(cond, dst, imm, 2)
        });
    }
    same_register(t);
    distances(t);
    long_jumps(t);
}

/// All branches of a row: 1 if taken.
fn branches(
    t: &mut Table,
    width: &str,
    (what, a, b, taken): Row,
    by_reg: impl Fn(Cond, Reg, Reg) -> Insn,
    by_imm: impl Fn(Cond, Reg, i32) -> Insn,
) {
    for cond in ALL {
        let want = u64::from(taken.contains(&cond));
        let name = format!("{}{width}_{what}", cond.0);
        let (set_a, set_b) = (ld_imm64(R6, a), ld_imm64(R2, b));
        let [no, end, yes] = [mov(R0, 0), exit(), mov(R0, 1)];
        let program = [set_a, set_b, by_reg(cond, R6, R2), no, end, yes, end];
        t.gives(format!("{name}_reg"), &program, want);
        if let Some(imm) = imm_of(b) {
            let program = [set_a, by_imm(cond, R6, imm), no, end, yes, end];
            t.gives(format!("{name}_imm"), &program, want);
        }
    }
}

/// A register is equal to itself.
fn same_register(t: &mut Table) {
    for cond in ALL {
        let want = u64::from([EQ, GE, SGE, LE, SLE, SET].contains(&cond));
        for (width, branch) in [
            ("64", jmp64(cond, R3, R3, 1)),
            ("32", jmp32(cond, R3, R3, 1)),
        ] {
            let name = format!("{}{width}_same_register", cond.0);
            let program = [mov(R0, 1), mov(R3, -5), branch, mov(R0, 0), exit()];
            t.gives(name, &program, want);
        }
    }
}

fn distances(t: &mut Table) {
    // A branch to the next instruction goes there either way.
    let program = [mov(R0, 9), jmp64(EQ, R0, 9, 0), exit()];
    t.gives("branch_to_the_next_instruction", &program, 9);
    let program = [mov(R0, 9), ja(0), exit()];
    t.gives("jump_to_the_next_instruction", &program, 9);
    let program = [mov(R0, 1), ja(1), exit(), mov(R0, 2), ja(-3)];
    t.gives("jump_forward_and_back", &program, 2);
    // 10 + 9 + … + 1.
    let program = [
        mov(R0, 0),
        mov(R1, 10),
        add(R0, R1),
        add(R1, -1),
        jmp64(NE, R1, 0, -3),
        exit(),
    ];
    t.gives("branch_back_until_zero", &program, 55);
    let program = [mov(R0, 0), add(R0, 3), jmp32(LT, R0, 20, -2), exit()];
    t.gives("branch32_back_while_below", &program, 21);
    // Distances count both halves of a constant.
    let program = [
        mov(R0, 1),
        jmp64(EQ, R0, 1, 2),
        ld_imm64(R0, 0x1_0000_0000),
        exit(),
    ];
    t.gives("branch_over_a_constant", &program, 1);
    let over: Vec<Insn> = [mov(R0, 1), jmp64(NE, R0, 0, 1000)]
        .into_iter()
        .chain([add(R0, 1); 1000])
        .chain([exit()])
        .collect();
    t.gives("branch_over_a_thousand_instructions", &over, 1);
}

fn long_jumps(t: &mut Table) {
    let program = [mov(R0, 1), ja32(1), exit(), mov(R0, 2), ja32(-3)];
    t.gives("long_jump_forward_and_back", &program, 2);
    let program = [mov(R0, 9), ja32(0), exit()];
    t.gives("long_jump_to_the_next_instruction", &program, 9);
    let program = [mov(R0, 1), ja32(2), ld_imm64(R0, 5), exit(), ja32(-4)];
    t.refuses("long_jump_over_unreachable_code", &program, "unreachable");
    let program = [
        mov(R0, 3),
        ja32(3),
        ld_imm64(R1, 5),
        exit(),
        add(R0, 4),
        ja32(-5),
    ];
    t.gives("long_jump_over_and_back_to_a_constant", &program, 7);
}
