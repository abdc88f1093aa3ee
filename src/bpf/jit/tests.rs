//! What compiled code looks like: listings, reviewed.

use std::sync::atomic::AtomicU64;

use rv64::Features;

use super::super::insn::BpfReg::{self, R0, R1, R2, R3, R6, R10};
use super::super::op::{AluOp, Callee, Cond, Extend, Fault, Op, Operand, Size, Width};
use super::super::{Env, Program};
use super::{Plan, compile};

const BASE: u64 = 0x2000_0000;

fn alu(op: AluOp, width: Width, dst: BpfReg, src: impl Into<Operand>) -> Op {
    let src = src.into();
    Op::Alu {
        op,
        width,
        dst,
        src,
    }
}

fn load(size: Size, dst: BpfReg, src: BpfReg, off: i16) -> Op {
    let (extend, fault) = (Extend::Zero, Fault::Fatal);
    Op::Load {
        size,
        extend,
        fault,
        dst,
        src,
        off,
    }
}

fn branch(cond: Cond, width: Width, dst: BpfReg, src: impl Into<Operand>, off: i16) -> Op {
    let src = src.into();
    Op::Branch {
        cond,
        width,
        dst,
        src,
        off,
    }
}

fn program(ops: &[Op]) -> Program {
    let insns = ops.iter().flat_map(|op| {
        let (first, second) = op.encode();
        [Some(first), second].into_iter().flatten()
    });
    Program::new(insns.collect()).unwrap()
}

fn plan(features: Features) -> Plan<'static> {
    static STOPS: AtomicU64 = AtomicU64::new(0);
    Plan {
        features,
        budget: None,
        stops: &STOPS,
    }
}

/// The instructions of a program.
fn listing(features: Features, env: &Env, ops: &[Op]) -> Vec<String> {
    let code = compile(&program(ops), env, plan(features)).unwrap();
    let bytes = code.link(BASE).unwrap().bytes;
    let (mut at, mut lines) = (0, Vec::new());
    while let Ok((insn, len)) = rv64::Insn::decode_at(&bytes[at..]) {
        lines.push(as_move(&insn.to_string()));
        at += len;
    }
    lines
}

/// A compressed move decodes to an addition of zero.
fn as_move(text: &str) -> String {
    match (text.strip_prefix("add "), text.split_once(", zero, ")) {
        (Some(_), Some((add, rs))) => format!("mv {}, {rs}", add.trim_start_matches("add ")),
        _ => text.to_owned(),
    }
}

fn assert_code(features: Features, ops: &[Op], want: &str) {
    let want: Vec<&str> = want
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    assert_eq!(listing(features, &Env::new(), ops), want);
}

#[test]
fn a_leaf_without_stack_has_no_frame() {
    let ops = [
        alu(AluOp::Mov, Width::W64, R6, R1),
        alu(AluOp::Add, Width::W64, R6, 1),
        alu(AluOp::Mov, Width::W64, R0, R6),
        Op::Exit,
    ];
    assert_code(
        Features::RV64GC,
        &ops,
        "
        mv a6, a0
        addi a6, a6, 1
        mv a5, a6
        mv a0, a5
        ret
        ",
    );
}

#[test]
fn a_function_that_calls_saves_what_it_uses_and_keeps_the_chain_of_frames() {
    let ops = [
        alu(AluOp::Mov, Width::W64, R6, R1),
        Op::Call(Callee::Local(2)),
        alu(AluOp::Add, Width::W64, R0, R6),
        Op::Exit,
        alu(AluOp::Mov, Width::W64, R0, 1),
        Op::Exit,
    ];
    assert_code(
        Features::RV64GC,
        &ops,
        "
        addi sp, sp, -32
        sd ra, 24(sp)
        sd s0, 16(sp)
        sd s1, 8(sp)
        addi s0, sp, 32
        mv s1, a0
        jal ra, .+20
        mv a5, a0
        add a5, a5, s1
        mv a0, a5
        ld ra, 24(sp)
        ld s0, 16(sp)
        ld s1, 8(sp)
        addi sp, sp, 32
        ret
        li a5, 1
        mv a0, a5
        ret
        ",
    );
}

#[test]
fn the_stack_is_reached_through_sp() {
    let ops = [
        Op::Store {
            size: Size::Dw,
            dst: R10,
            off: -16,
            src: Operand::Imm(0),
        },
        alu(AluOp::Mov, Width::W64, R2, R10),
        load(Size::Dw, R0, R2, -16),
        Op::Exit,
    ];
    assert_code(
        Features::RV64GC,
        &ops,
        "
        addi sp, sp, -16
        sd zero, 0(sp)
        addi a1, sp, 16
        ld a5, -16(a1)
        mv a0, a5
        addi sp, sp, 16
        ret
        ",
    );
}

/// Three 32-bit results, of which only the last is looked at in 64 bits.
#[test]
fn results_are_extended_for_those_who_look() {
    let ops = [
        load(Size::W, R2, R1, 0),
        alu(AluOp::Add, Width::W32, R2, 1),
        alu(AluOp::Mul, Width::W32, R2, R2),
        alu(AluOp::Mov, Width::W64, R0, R2),
        Op::Exit,
    ];
    let want = "
        lw a1, 0(a0)
        addiw a1, a1, 1
        mulw a1, a1, a1
        ZEXT
        mv a5, a1
        mv a0, a5
        ret
        ";
    let shifts = "slli a1, a1, 32\nsrli a1, a1, 32";
    assert_code(Features::RV64GC, &ops, &want.replace("ZEXT", shifts));
    assert_code(Features::U74, &ops, &want.replace("ZEXT", "zext.w a1, a1"));
}

/// Both loads come with their signs, so they compare as they are.
#[test]
fn halves_of_one_form_compare_as_they_are() {
    let ops = [
        load(Size::W, R2, R1, 0),
        load(Size::W, R3, R1, 4),
        alu(AluOp::Mov, Width::W64, R0, 0),
        branch(Cond::Sgt, Width::W32, R2, R3, 1),
        alu(AluOp::Mov, Width::W64, R0, 1),
        Op::Exit,
    ];
    assert_code(
        Features::RV64GC,
        &ops,
        "
        lw a1, 0(a0)
        lw a2, 4(a0)
        li a5, 0
        blt a2, a1, .+6
        li a5, 1
        mv a0, a5
        ret
        ",
    );
}

/// An argument may hold anything in its upper half.
#[test]
fn halves_of_unknown_form_are_given_their_signs() {
    let ops = [
        alu(AluOp::Mov, Width::W64, R0, 0),
        branch(Cond::Lt, Width::W32, R1, R2, 1),
        alu(AluOp::Mov, Width::W64, R0, 1),
        Op::Exit,
    ];
    assert_code(
        Features::RV64GC,
        &ops,
        "
        li a5, 0
        sext.w t0, a0
        sext.w t1, a1
        bltu t0, t1, .+6
        li a5, 1
        mv a0, a5
        ret
        ",
    );
}

#[test]
fn division_by_zero_is_zero_with_and_without_zicond() {
    let ops = [
        alu(AluOp::Mov, Width::W64, R0, R1),
        alu(AluOp::Div, Width::W64, R0, R2),
        Op::Exit,
    ];
    assert_code(
        Features::RV64GC,
        &ops,
        "
        mv a5, a0
        divu a5, a5, a1
        bnez a1, .+4
        li a5, 0
        mv a0, a5
        ret
        ",
    );
    assert_code(
        Features::RVA23,
        &ops,
        "
        mv a5, a0
        divu a5, a5, a1
        czero.eqz a5, a5, a1
        mv a0, a5
        ret
        ",
    );
}

#[test]
fn an_empty_program_is_six_bytes() {
    let ops = [alu(AluOp::Mov, Width::W64, R0, 0), Op::Exit];
    let code = compile(&program(&ops), &Env::new(), plan(Features::RV64GC)).unwrap();
    assert_eq!(code.link(BASE).unwrap().bytes.len(), 6);
}

/// A branch over more than 1 MiB, and code that is made in one go.
#[test]
fn far_branches_reach() {
    let mut ops = vec![
        branch(Cond::Eq, Width::W64, R1, 5, 1),
        Op::Jump { off: 800_000 },
    ];
    ops.extend((0..800_000).map(|i| alu(AluOp::Xor, Width::W64, R1, i | 0x1000)));
    ops.extend([alu(AluOp::Mov, Width::W64, R0, R1), Op::Exit]);
    let code = compile(&program(&ops), &Env::new(), plan(Features::RV64GC)).unwrap();
    assert!(code.link(BASE).unwrap().bytes.len() > 4 << 20);
}
