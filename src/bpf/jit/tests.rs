//! What compiled code looks like: listings, reviewed.

use std::sync::atomic::AtomicU64;

use rv64::Features;

use super::super::insn::BpfReg::{self, R0, R1, R2, R3, R6, R10};
use super::super::op::{
    AluOp, AtomicOp, Callee, Cond, Extend, Fault, Fetch, Imm64, Op, Operand, Size, Width,
};
use super::super::{Arena, ArenaOp, Env, Extra, JumpTable, Program};
use super::{Plan, compile};

mod blind;
mod inline;

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
        blind: None,
        budget: None,
        stops: &STOPS,
    }
}

/// The instructions of a program.
fn listing(features: Features, env: &Env, ops: &[Op]) -> Vec<String> {
    listed(compile(&program(ops), env, plan(features)).unwrap())
}

fn listed(code: super::Object) -> Vec<String> {
    lines(&code.link(BASE).unwrap().bytes)
}

fn lines(bytes: &[u8]) -> Vec<String> {
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
    assert_code_in(&Env::new(), features, ops, want);
}

fn assert_code_in(env: &Env, features: Features, ops: &[Op], want: &str) {
    assert_lines(&listing(features, env, ops), want);
}

fn assert_lines(got: &[String], want: &str) {
    let want: Vec<&str> = want
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    assert_eq!(got, want);
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
        addi a0, a0, 1
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
        li a0, 1
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
        ld a5, 0(sp)
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
        ret
        ";
    let shifts = "slli a1, a1, 32\nsrli a1, a1, 32\nmv a0, a1";
    assert_code(Features::RV64GC, &ops, &want.replace("ZEXT", shifts));
    let zext = "zext.w a1, a1\nmv a0, a1";
    assert_code(Features::U74, &ops, &want.replace("ZEXT", zext));
}

/// What shifts and copies stand for is one instruction where there is one, and a register that
/// nobody reads is not written.
#[test]
fn a_rotation_is_one_instruction() {
    let rotation = |width, up, down| {
        [
            alu(AluOp::Mov, width, R2, R1),
            alu(AluOp::Rsh, width, R2, down),
            alu(AluOp::Lsh, width, R1, up),
            alu(AluOp::Or, width, R1, R2),
            alu(AluOp::Mov, width, R0, R1),
            Op::Exit,
        ]
    };
    let wide = rotation(Width::W64, 13, 51);
    assert_code(
        Features::U74,
        &wide,
        "
        rori a0, a0, 51
        ret
        ",
    );
    assert_code(
        Features::RV64GC,
        &wide,
        "
        srli a1, a0, 51
        slli a0, a0, 13
        or a0, a0, a1
        ret
        ",
    );
    assert_code(
        Features::U74,
        &rotation(Width::W32, 4, 28),
        "
        roriw a0, a0, 28
        zext.w a0, a0
        ret
        ",
    );
    // One bit too few.
    assert_code(
        Features::U74,
        &rotation(Width::W64, 12, 51),
        "
        srli a1, a0, 51
        slli a0, a0, 12
        or a0, a0, a1
        ret
        ",
    );
}

/// The lower half of a register as an index, as clang writes it.
#[test]
fn an_index_is_scaled_by_the_addition() {
    let ops = [
        alu(AluOp::Mov, Width::W64, R3, R2),
        alu(AluOp::Lsh, Width::W64, R3, 32),
        alu(AluOp::Rsh, Width::W64, R3, 32),
        alu(AluOp::Lsh, Width::W64, R3, 2),
        alu(AluOp::Add, Width::W64, R1, R3),
        alu(AluOp::Add, Width::W64, R1, 8),
        load(Size::B, R0, R1, 4),
        Op::Exit,
    ];
    assert_code(
        Features::U74,
        &ops,
        "
        sh2add.uw a0, a1, a0
        lbu a5, 12(a0)
        mv a0, a5
        ret
        ",
    );
    assert_code(
        Features::RV64GC,
        &ops,
        "
        slli a2, a1, 32
        srli a2, a2, 30
        add a0, a0, a2
        lbu a5, 12(a0)
        mv a0, a5
        ret
        ",
    );
}

/// Through a third register; neither copy may be made after what it copies was overwritten.
#[test]
fn registers_change_places() {
    let ops = [
        alu(AluOp::Mov, Width::W64, R3, R1),
        alu(AluOp::Mov, Width::W64, R1, R2),
        alu(AluOp::Mov, Width::W64, R2, R3),
        alu(AluOp::Sub, Width::W64, R1, R2),
        alu(AluOp::Mov, Width::W64, R0, R1),
        Op::Exit,
    ];
    assert_code(
        Features::RV64GC,
        &ops,
        "
        mv a2, a0
        mv a0, a1
        sub a0, a0, a2
        ret
        ",
    );
}

/// An address, a mask and a bound, and an address near the first one.
#[test]
fn constants_of_loops_stay_in_registers() {
    let constant = |dst, value| Op::LdImm64 {
        dst,
        imm: Imm64::Value(value),
    };
    let ops = [
        constant(R2, 0x12_3456_7800),
        alu(AluOp::Add, Width::W64, R2, R1),
        load(Size::B, R0, R2, 0),
        constant(R3, 0x12_3456_7900),
        load(Size::B, R2, R3, 4),
        alu(AluOp::And, Width::W64, R2, 0x1235),
        alu(AluOp::Add, Width::W64, R0, R2),
        alu(AluOp::Add, Width::W64, R1, 1),
        branch(Cond::Lt, Width::W64, R1, 1000, -11),
        Op::Exit,
    ];
    assert_code(
        Features::RV64GC,
        &ops,
        "
        lui a3, 0x2469
        addiw a3, a3, -1329
        slli a3, a3, 11
        lui a4, 0x1
        addiw a4, a4, 565
        li a6, 1000
        addi a7, a3, 256
        add a1, a3, a0
        lbu a5, 0(a1)
        lbu a1, 260(a3)
        and a1, a1, a4
        add a5, a5, a1
        addi a0, a0, 1
        bltu a0, a6, .-18
        mv a0, a5
        ret
        ",
    );
}

#[test]
fn a_branch_over_a_jump_is_the_opposite_branch() {
    let ops = [
        branch(Cond::Gt, Width::W64, R1, R2, 1),
        Op::Jump { off: 1 },
        alu(AluOp::Add, Width::W64, R1, R2),
        alu(AluOp::Mov, Width::W64, R0, R1),
        Op::Exit,
    ];
    assert_code(
        Features::RV64GC,
        &ops,
        "
        bgeu a1, a0, .+6
        add a0, a0, a1
        ret
        ",
    );
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
        divu a5, a0, a1
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
        divu a5, a0, a1
        czero.eqz a5, a5, a1
        mv a0, a5
        ret
        ",
    );
}

#[test]
fn an_empty_program_is_four_bytes() {
    let ops = [alu(AluOp::Mov, Width::W64, R0, 0), Op::Exit];
    let code = compile(&program(&ops), &Env::new(), plan(Features::RV64GC)).unwrap();
    assert_eq!(code.link(BASE).unwrap().bytes.len(), 4);
}

/// `t0` = where the arena is.
fn base(arena: &Arena, features: Features) -> String {
    let insns = rv64::li(rv64::Reg::T0, arena.base() as i64, features);
    let lines: Vec<String> = insns.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn a_cast_keeps_null_and_an_access_by_offset_needs_no_branch() {
    let arena = Arena::new(1).unwrap();
    let env = Env::new().arena(&arena);
    let (dst, src) = (R1, R1);
    let by_offset = |off| ArenaOp::of(load(Size::Dw, R0, R1, off)).map(Op::Arena);
    let ops = [
        Op::AddrSpaceCast {
            dst,
            src,
            to: 0,
            from: 1,
        },
        by_offset(8).unwrap(),
        Op::Exit,
    ];
    let want = "
        ZEXT a0
        beqz a0, .+SKIP
        BASE
        add a0, a0, t0
        ZEXT t1
        BASE
        ADD
        ld a5, 8(t0)
        mv a0, a5
        ret
        ";
    for (features, zexts, add) in [
        (
            Features::RV64GC,
            [
                "slli a0, a0, 32\nsrli a0, a0, 32",
                "slli t1, a0, 32\nsrli t1, t1, 32",
            ],
            "add t0, t0, t1",
        ),
        (Features::U74, ["zext.w a0, a0", ""], "add.uw t0, a0, t0"),
    ] {
        let code = listing(features, &env, &ops);
        let skip = code
            .iter()
            .find_map(|line| line.strip_prefix("beqz a0, .+"));
        let want = want
            .replace("ZEXT a0", zexts[0])
            .replace("ZEXT t1", zexts[1])
            .replace("SKIP", skip.unwrap())
            .replace("BASE", &base(&arena, features))
            .replace("ADD", add);
        assert_code_in(&env, features, &ops, &want);
    }
}

/// The register that becomes 0 in the table of faults for each access, 0 for none.
fn probes(env: &Env, ops: &[Op]) -> Vec<u8> {
    let code = compile(&program(ops), env, plan(Features::RV64GC)).unwrap();
    let probes = code.link(BASE).unwrap().probes;
    assert!(probes.iter().all(|probe| probe.at < probe.next));
    assert!(probes.windows(2).all(|two| two[0].at < two[1].at));
    probes.iter().map(|probe| probe.reg).collect()
}

/// What may have come from a cast is in the table; the stack and constants are not.
#[test]
fn accesses_that_may_be_to_the_arena_may_fault() {
    let arena = Arena::new(1).unwrap();
    let env = Env::new().arena(&arena);
    let cast = |dst, src| Op::AddrSpaceCast {
        dst,
        src,
        to: 0,
        from: 1,
    };
    let store = |dst| Op::Store {
        size: Size::Dw,
        dst,
        off: -8,
        src: Operand::Imm(1),
    };
    let atomic = |op, dst, src| Op::Atomic {
        op,
        size: Size::W,
        dst,
        off: -8,
        src,
    };
    let (a1, a5) = (rv64::Reg::A1.num() as u8, rv64::Reg::A5.num() as u8);
    let ops = [
        alu(AluOp::Mov, Width::W64, R0, 0),
        alu(AluOp::Mov, Width::W64, R6, R10),
        store(R6),
        cast(R3, R1),
        store(R3),
        alu(AluOp::Mov, Width::W64, R6, R3),
        load(Size::W, R2, R6, -8),
        atomic(AtomicOp::Or(Fetch::No), R6, R2),
        atomic(AtomicOp::Or(Fetch::Yes), R6, R2),
        // lr and sc.
        atomic(AtomicOp::Cmpxchg, R6, R2),
        atomic(AtomicOp::Cmpxchg, R10, R2),
        alu(AluOp::Mov, Width::W64, R6, 0x1000),
        store(R6),
        // A constant and what came from a cast.
        alu(AluOp::Add, Width::W64, R6, R3),
        store(R6),
        Op::Exit,
    ];
    assert_eq!(probes(&env, &ops), [0, a1, 0, a1, a5, a5, 0]);
    // Around a loop: to before the store, and to before the move in front of it.
    for (off, want) in [(-4, vec![0]), (-5, vec![])] {
        let ops = [
            alu(AluOp::Mov, Width::W64, R6, R10),
            store(R6),
            branch(Cond::Eq, Width::W64, R1, 0, 2),
            cast(R6, R1),
            Op::Jump { off },
            alu(AluOp::Mov, Width::W64, R0, 0),
            Op::Exit,
        ];
        assert_eq!(probes(&env, &ops), want);
    }
}

/// A jump through `t2` is none that wants a landing pad.
#[test]
fn a_jump_by_table_goes_to_what_was_loaded() {
    let ops = [
        load(Size::Dw, R2, R1, 0),
        Op::JumpReg { dst: R2 },
        alu(AluOp::Mov, Width::W64, R0, 0),
        Op::Exit,
    ];
    let insns = ops.iter().map(|op| op.encode().0).collect();
    let tables = vec![JumpTable::new(0, vec![2, 2])];
    let extra = Extra {
        jump_tables: tables,
        ..Extra::default()
    };
    let program = Program::with_extra(insns, extra).unwrap();
    let plain = Features::RV64GC;
    for (zicfilp, want) in [(false, vec!["jr a1"]), (true, vec!["mv t2, a1", "jr t2"])] {
        let features = Features { zicfilp, ..plain };
        let linked = compile(&program, &Env::new(), plan(features)).unwrap();
        let linked = linked.link(BASE).unwrap();
        let code = lines(&linked.bytes);
        assert_eq!(code[1..code.len() - 2], want);
        // Behind the load and the jump, compressed.
        let target = BASE + 2 + 2 * want.len() as u64;
        assert_eq!(linked.tables.elements(0), [target, target]);
    }
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
