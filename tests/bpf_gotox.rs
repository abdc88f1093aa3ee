//! Jumps through registers, by tables: in the interpreter and compiled.
#![expect(unsafe_code, reason = "runs programs")]

use rvbpf::bpf::BpfReg::{self, R0, R1, R2, R3, R6};
use rvbpf::bpf::{
    AluOp, Callee, Cond, Env, Extra, Imm64, Interpreter, JumpTable, Label, Op, Options, Program,
    ProgramBuilder, Reason, Refusal, Size, Stop, Width,
};
use rvbpf::{Features, Runtime};

/// `dst` = element `index` of the table at `map`.
fn element(b: &mut ProgramBuilder, dst: BpfReg, map: i32, index: BpfReg) {
    let imm = Imm64::MapIdxValue { idx: map, off: 0 };
    b.op(Op::LdImm64 { dst, imm }).alu(AluOp::Lsh, index, 3);
    b.alu(AluOp::Add, dst, index).load(Size::Dw, dst, dst, 0);
}

/// What a program gives on every side that this host has.
fn results(program: &Program, r1: u64) -> Vec<u64> {
    let env = Env::new();
    let args = [r1, 0, 0, 0, 0];
    let interpreter = Interpreter::new(program, &env).unwrap();
    // SAFETY: 1. the programs of this file read their tables alone.
    let mut all = vec![unsafe { interpreter.run(args, 1_000_000) }.unwrap()];
    if cfg!(target_arch = "riscv64") {
        let rt = Runtime::new().unwrap();
        for features in [Features::RV64GC, Options::default().features] {
            let mut options = Options::default();
            options.features = features;
            let prog = rt.load_with(program, &env, options).unwrap();
            // SAFETY: 1. as above, and they end.
            all.push(unsafe { prog.run(args) }.unwrap());
        }
    }
    all
}

fn assert_gives(program: &Program, r1: u64, want: u64) {
    let results = results(program, r1);
    let text = program.disassemble();
    assert!(
        results.iter().all(|r| *r == want),
        "{results:x?} for {r1:#x}, not {want:#x}\n{text}"
    );
}

fn labels(b: &mut ProgramBuilder, count: usize) -> Vec<Label> {
    (0..count).map(|_| b.label()).collect()
}

#[test]
fn a_switch_of_many_cases() {
    const CASES: usize = 300;
    let mut b = ProgramBuilder::new();
    let cases = labels(&mut b, CASES);
    let other = b.label();
    b.branch(Cond::Ge, R1, CASES as i32, other);
    element(&mut b, R2, 3, R1);
    b.jump_table(3, &cases).jump_reg(R2);
    for (i, case) in cases.iter().enumerate() {
        b.bind(*case).mov(R0, (i * i) as i32).exit();
    }
    b.bind(other).mov(R0, -1).exit();
    let program = b.finish().unwrap();
    assert!(program.disassemble().contains("(0d) gotox r2\n"));
    for r1 in [0, 1, 77, 299] {
        assert_gives(&program, r1, r1 * r1);
    }
    assert_gives(&program, 300, u64::MAX);
}

/// A machine of three states, each with a table of its own to jump by; they meet in one place that
/// looks at all of a register which some have written in 32 bits.
#[test]
fn paths_meet_where_tables_lead() {
    let mut b = ProgramBuilder::new();
    let [add, double, flip, end] = [(); 4].map(|()| b.label());
    b.mov(R0, 1).mov(R6, R1).mov(R3, 0);
    let next = |b: &mut ProgramBuilder, map| {
        // Two bits of r6 at a time.
        b.mov(R1, R6).alu(AluOp::And, R1, 3).alu(AluOp::Rsh, R6, 2);
        element(b, R2, map, R1);
        b.jump_reg(R2);
    };
    next(&mut b, 0);
    b.bind(add).alu32(AluOp::Add, R0, -2);
    next(&mut b, 1);
    b.bind(double).alu(AluOp::Add, R0, R0);
    next(&mut b, 0);
    b.bind(flip).alu32(AluOp::Xor, R0, i32::MIN).mov(R3, 1);
    next(&mut b, 1);
    b.bind(end).alu(AluOp::Add, R0, R3).exit();
    b.jump_table(0, &[end, add, double, flip]);
    b.jump_table(1, &[end, flip, add, double]);
    let program = b.finish().unwrap();
    for path in (0..1 << 10).step_by(7) {
        assert_gives(&program, path, by_hand(path));
    }
}

fn by_hand(mut path: u64) -> u64 {
    let (mut r0, mut r3, mut table) = (1_u64, 0, 0);
    loop {
        let element = (path & 3) as usize;
        path >>= 2;
        let tables = [
            ["end", "add", "double", "flip"],
            ["end", "flip", "add", "double"],
        ];
        match tables[table][element] {
            "add" => (r0, table) = (u64::from((r0 as u32).wrapping_sub(2)), 1),
            "double" => (r0, table) = (r0.wrapping_add(r0), 0),
            "flip" => (r0, r3, table) = (u64::from(r0 as u32 ^ 1 << 31), 1, 1),
            _ => return r0.wrapping_add(r3),
        }
    }
}

/// Every function has its own; a constant may refer to an element.
#[test]
fn functions_jump_by_their_own_tables() {
    let mut b = ProgramBuilder::new();
    let func = b.label();
    let [one, two, three, four] = [(); 4].map(|()| b.label());
    b.mov(R6, R1).call(func).mov(R1, R6);
    element(&mut b, R2, 0, R1);
    b.jump_table(0, &[one, two]).jump_reg(R2);
    b.bind(one).alu(AluOp::Add, R0, 1).exit();
    b.bind(two).alu(AluOp::Add, R0, 2).exit();
    b.bind(func);
    let imm = Imm64::MapIdxValue { idx: 1, off: 8 };
    b.op(Op::LdImm64 { dst: R2, imm }).load(Size::Dw, R2, R2, 0);
    b.jump_table(1, &[three, four]).jump_reg(R2);
    b.bind(three).mov(R0, 30).exit();
    b.bind(four).mov(R0, 40).exit();
    let program = b.finish().unwrap();
    let targets = |func: usize| program.funcs()[func].table_targets.len();
    assert_eq!((targets(0), targets(1)), (2, 2));
    assert_gives(&program, 0, 41);
    assert_gives(&program, 1, 42);
}

fn refused(tables: Vec<JumpTable>, off: u32) -> Option<Refusal> {
    let imm = Imm64::MapIdxValue { idx: 0, off };
    let (dst, src) = (R2, R2.into());
    let ops = [
        Op::LdImm64 { dst, imm },
        Op::Alu {
            op: AluOp::Mov,
            width: Width::W64,
            dst: R0,
            src,
        },
        Op::JumpReg { dst },
        Op::Call(Callee::Local(1)),
        Op::Exit,
        Op::Exit,
    ];
    let insns = ops.iter().flat_map(|op| {
        let (first, second) = op.encode();
        [Some(first), second].into_iter().flatten()
    });
    let mut extra = Extra::default();
    extra.jump_tables = tables;
    Program::with_extra(insns.collect(), extra).err()
}

#[test]
fn tables_that_lead_elsewhere_are_refused() {
    let table = |targets: &[usize]| vec![JumpTable::new(0, targets.into())];
    let leads = |target| {
        let (insn, map) = (0, 0);
        let reason = Reason::TableTarget { map, target };
        Some(Refusal { insn, reason })
    };
    assert_eq!(refused(table(&[4]), 0), None);
    assert_eq!(refused(table(&[4, 1]), 0), leads(1), "half a constant");
    assert_eq!(refused(table(&[4, 6]), 0), leads(6), "another function");
    assert_eq!(refused(table(&[7]), 0), leads(7), "beyond the end");
    let (insn, reason) = (3, Reason::NoTable);
    for tables in [vec![], table(&[6])] {
        let want = Some(Refusal {
            insn,
            reason: reason.clone(),
        });
        assert_eq!(refused(tables, 0), want);
    }
    let bounds = refused(table(&[4, 5]), 16).unwrap();
    let text = "instruction 0: refers to byte 16 of the jump table at map 0, which has 16 bytes";
    assert_eq!(bounds.to_string(), text);
    let (insn, reason) = (0, Reason::TableElement { map: 0, off: 4 });
    assert_eq!(refused(table(&[4, 5]), 4), Some(Refusal { insn, reason }));
    let twice = vec![JumpTable::new(0, vec![4]), JumpTable::new(0, vec![4, 5])];
    let (insn, reason) = (0, Reason::TableTwice { map: 0 });
    assert_eq!(refused(twice, 0), Some(Refusal { insn, reason }));
    // Nothing else leads to the last two instructions of the first function.
    let (insn, reason) = (4, Reason::Unreachable);
    assert_eq!(refused(table(&[5]), 0), Some(Refusal { insn, reason }));
    let mut b = ProgramBuilder::new();
    let nowhere = b.label();
    b.jump_table(0, &[nowhere]).mov(R0, 0).exit();
    let (insn, reason) = (2, Reason::Unbound);
    assert_eq!(b.finish().unwrap_err(), Refusal { insn, reason });
}

/// What a target reads must have been set on the way there.
#[test]
fn what_is_known_goes_with_the_jump() {
    let mut b = ProgramBuilder::new();
    let there = b.label();
    element(&mut b, R2, 0, R1);
    b.jump_table(0, &[there]).jump_reg(R2);
    b.bind(there).mov(R0, R6).exit();
    let refusal = b.finish().unwrap_err();
    assert_eq!(refusal.reason, Reason::Unset { reg: R6 });
}

#[test]
fn the_interpreter_stops_at_a_jump_by_no_table() {
    let mut b = ProgramBuilder::new();
    let there = b.label();
    b.jump_table(0, &[there]).jump_reg(R1);
    b.bind(there).mov(R0, 5).exit();
    let program = b.finish().unwrap();
    let env = Env::new();
    let interpreter = Interpreter::new(&program, &env).unwrap();
    // SAFETY: 1. it accesses no memory.
    let run = |r1| unsafe { interpreter.run([r1, 0, 0, 0, 0], 10) };
    assert_eq!(run(1), Ok(5), "the index of an instruction");
    for value in [0, 2, 3, u64::MAX] {
        assert_eq!(run(value), Err(Stop::BadJump { insn: 0, value }));
    }
}
