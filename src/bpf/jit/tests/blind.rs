//! Constants that are not to be seen.

use rv64::Features;

use super::super::super::insn::BpfReg::{R0, R1, R2, R3, R10};
use super::super::super::op::{AluOp, Cond, Imm64, Op, Operand, Size, Width};
use super::super::super::{Env, Program};
use super::super::{Blind, Plan, compile};
use super::{alu, assert_lines, branch, listed, plan, program};

/// The listing with a key that is not random.
fn blinded(ops: &[Op], key: u64) -> Vec<String> {
    let program: Program = program(ops);
    let keys = Blind::new(vec![key; program.ops().len()]);
    let plan = Plan {
        blind: Some(keys),
        ..plan(Features::RV64GC)
    };
    listed(compile(&program, &Env::new(), plan).unwrap())
}

#[test]
fn a_constant_is_two_and_neither_is_it() {
    let ops = [
        alu(AluOp::Mov, Width::W64, R0, 0x123),
        alu(AluOp::Add, Width::W64, R0, 0x44),
        // Nothing that anybody chooses.
        alu(AluOp::Lsh, Width::W64, R0, 3),
        alu(AluOp::And, Width::W64, R0, 0),
        Op::Exit,
    ];
    assert_lines(
        &blinded(&ops, 0x100),
        "
        li a5, 35
        li t2, 256
        xor a5, a5, t2
        li t0, 324
        li t2, 256
        xor t0, t0, t2
        addw a5, a5, t0
        slliw a5, a5, 3
        andi a5, a5, 0
        mv a0, a5
        ret
        ",
    );
}

/// A negative number of 32 bits takes no key of 64 bits; zeros come above it afterwards.
#[test]
fn a_negative_half_is_blinded_as_one() {
    let ops = [alu(AluOp::Mov, Width::W32, R0, -2), Op::Exit];
    assert_lines(
        &blinded(&ops, 0x40),
        "
        li a5, -66
        li t2, 64
        xor a5, a5, t2
        slli a5, a5, 32
        srli a5, a5, 32
        mv a0, a5
        ret
        ",
    );
}

/// Whatever takes a constant takes it from a register.
#[test]
fn every_kind_of_constant_is_blinded() {
    const CHOSEN: i32 = 0x155;
    let (dst, off) = (R1, 0);
    let src = Operand::Imm(CHOSEN);
    let mut kinds = Vec::new();
    for width in [Width::W32, Width::W64] {
        use AluOp::*;
        let ops = [Add, Sub, Mul, Div, SDiv, Mod, SMod, Or, And, Xor, Mov];
        kinds.extend(ops.map(|op| alu(op, width, R1, CHOSEN)));
        use Cond::*;
        let conds = [Eq, Ne, Gt, Ge, Lt, Le, Sgt, Sge, Slt, Sle, Set];
        kinds.extend(conds.map(|cond| branch(cond, width, R1, CHOSEN, 1)));
    }
    let sizes = [Size::B, Size::H, Size::W, Size::Dw];
    kinds.extend(sizes.map(|size| Op::Store {
        size,
        dst,
        off,
        src,
    }));
    let imm = Imm64::Value(CHOSEN as u64);
    kinds.push(Op::LdImm64 { dst, imm });
    for kind in kinds {
        let ops = [
            kind,
            alu(AluOp::Mov, Width::W64, R2, 0),
            alu(AluOp::Mov, Width::W64, R0, R1),
            Op::Exit,
        ];
        let lines = blinded(&ops, 0x2a);
        let has = |what: i32| lines.iter().any(|l| l.ends_with(&format!(", {what}")));
        assert!(!has(CHOSEN) && !has(-CHOSEN), "{kind:?}: {lines:#?}");
        assert!(has(CHOSEN ^ 0x2a) && has(0x2a), "{kind:?}: {lines:#?}");
        // So the search would find it.
        let plain = blinded(&ops, 0);
        assert!(plain.iter().any(|l| l.ends_with(", 341")), "{plain:#?}");
    }
}

#[test]
fn wide_constants_have_wide_keys() {
    let imm = Imm64::Value(0x1234_5678_9abc_def0);
    let ops = [Op::LdImm64 { dst: R0, imm }, Op::Exit];
    let key = 0x1234_5678_9abc_de00;
    let lines = blinded(&ops, key);
    assert_eq!(lines[0], "li a5, 240", "{lines:#?}");
}

/// The stack's address comes into one temporary, a constant that is compared with it into another.
#[test]
fn a_key_spoils_nothing() {
    let ops = [
        alu(AluOp::Mov, Width::W64, R0, 0),
        alu(AluOp::Mov, Width::W64, R3, R10),
        branch(Cond::Eq, Width::W64, R10, 5, 0),
        Op::Store {
            size: Size::Dw,
            dst: R10,
            off: -8,
            src: Operand::Imm(5),
        },
        Op::Exit,
    ];
    assert_lines(
        &blinded(&ops, 1),
        "
        addi sp, sp, -16
        li a5, 0
        addi t0, sp, 8
        li t1, 4
        li t2, 1
        xor t1, t1, t2
        beq t0, t1, .+4
        li t1, 4
        li t2, 1
        xor t1, t1, t2
        sd t1, 0(sp)
        mv a0, a5
        addi sp, sp, 16
        ret
        ",
    );
}
