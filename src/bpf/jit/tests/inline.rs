//! Helpers that are not called.

use rv64::Features;

use super::super::super::env::{Env, Inline};
use super::super::super::insn::BpfReg::{R0, R1, R2, R3, R6, R10};
use super::super::super::op::{AluOp, Callee, Op, Size, Width};
use super::{alu, assert_lines, listing, load};

extern "C" fn hart() -> u32 {
    7
}

/// The tracing helpers, the hart's number being so far from the thread pointer.
#[expect(unsafe_code, reason = "adds a helper")]
fn env(tp_off: i32) -> Env {
    let hart = hart as extern "C" fn() -> u32;
    let inline = Some(Inline::ProcessorId { tp_off });
    // SAFETY: 1. and 2. Nothing of this is run.
    unsafe { Env::tracing().inlined(8, hart, inline) }
}

fn helper(id: i32) -> Op {
    Op::Call(Callee::Helper(id))
}

fn mov(dst: super::BpfReg, src: impl Into<super::Operand>) -> Op {
    alu(AluOp::Mov, Width::W64, dst, src)
}

fn assert_inlined(features: Features, ops: &[Op], want: &str) {
    assert_lines(&listing(features, &env(-1000), ops), want);
}

/// No frame, `r6` in a temporary.
#[test]
fn a_function_of_inlined_helpers_is_a_leaf() {
    let ops = [
        mov(R6, R1),
        helper(173),
        mov(R1, R6),
        mov(R6, R0),
        helper(185),
        alu(AluOp::Add, Width::W64, R6, R0),
        helper(174),
        alu(AluOp::Add, Width::W64, R0, R6),
        Op::Exit,
    ];
    // The context is needed again.
    let ops = [&ops[..6], &[mov(R1, R6)], &ops[6..]].concat();
    assert_inlined(
        Features::RV64GC,
        &ops,
        "
        mv a6, a0
        ld a5, -16(a0)
        mv a0, a6
        mv a6, a5
        ld a5, -8(a0)
        andi a5, a5, 255
        add a6, a6, a5
        mv a0, a6
        ld a5, -24(a0)
        add a5, a5, a6
        mv a0, a5
        ret
        ",
    );
}

#[test]
fn an_argument_by_constant_is_one_load_behind_its_check() {
    let ops = [
        mov(R2, 2),
        mov(R3, R10),
        alu(AluOp::Add, Width::W64, R3, -8),
        helper(183),
        load(Size::Dw, R0, R10, -8),
        Op::Exit,
    ];
    assert_inlined(
        Features::RV64GC,
        &ops,
        "
        addi sp, sp, -16
        li a1, 2
        mv a2, sp
        ld t0, -8(a0)
        andi t0, t0, 255
        li a5, -22
        bgeu a1, t0, .+14
        ld t0, 16(a0)
        sd t0, 0(a2)
        li a5, 0
        ld a5, 0(sp)
        mv a0, a5
        addi sp, sp, 16
        ret
        ",
    );
}

/// Its upper half does not count, and it may be one past the end.
#[test]
fn an_argument_by_number_is_looked_up() {
    let ops = [mov(R3, R10), helper(183), Op::Exit];
    let want = "
        mv a2, sp
        ld t0, -8(a0)
        andi t0, t0, 255
        sext.w t1, a1
        li a5, -22
        bgeu t1, t0, .+SKIP
        SLOT
        ld t0, 0(t0)
        sd t0, 0(a2)
        li a5, 0
        mv a0, a5
        ret
        ";
    let shifted = want.replace("SLOT", "slli t0, t1, 3\nadd t0, t0, a0");
    assert_inlined(Features::RV64GC, &ops, &shifted.replace("SKIP", "20"));
    let scaled = want.replace("SLOT", "sh3add t0, t1, a0");
    assert_inlined(Features::U74, &ops, &scaled.replace("SKIP", "18"));
}

#[test]
fn a_return_value_that_is_not_there_is_an_error() {
    let ops = [mov(R2, R10), helper(184), Op::Exit];
    assert_inlined(
        Features::U74,
        &ops,
        "
        mv a1, sp
        ld t0, -8(a0)
        li a5, -95
        slli t1, t0, 1
        blt t1, zero, .+22
        andi t0, t0, 255
        sh3add t0, t0, a0
        ld t0, 0(t0)
        sd t0, 0(a1)
        li a5, 0
        mv a0, a5
        ret
        ",
    );
}

/// The number has zeros above it if somebody looks there.
#[test]
fn the_hart_is_a_load_from_the_thread() {
    let ops = [helper(8), Op::Exit];
    assert_inlined(Features::U74, &ops, "lwu a5, -1000(tp)\nmv a0, a5\nret");
    let low = [helper(8), alu(AluOp::Rsh, Width::W32, R0, 1), Op::Exit];
    let want = "lw a5, -1000(tp)\nsrliw a0, a5, 1\nret";
    assert_inlined(Features::U74, &low, want);
    let far = listing(Features::U74, &env(5000), &ops);
    let want = "lui t0, 0x1\nadd t0, t0, tp\nlwu a5, 904(t0)\nmv a0, a5\nret";
    assert_lines(&far, want);
}

/// A user's own function is called.
#[test]
#[expect(unsafe_code, reason = "replaces a helper")]
fn a_helper_that_is_replaced_is_called() {
    let env = env(-1000);
    // SAFETY: 1. nothing of this is run.
    let env = unsafe { env.helper(8, hart as extern "C" fn() -> u32) };
    let lines = listing(Features::U74, &env, &[helper(8), Op::Exit]);
    assert!(lines.iter().any(|l| l.starts_with("sd ra")), "{lines:#?}");
    assert!(lines.iter().all(|l| !l.contains("tp")), "{lines:#?}");
}
