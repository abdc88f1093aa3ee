//! Argument registers that a caller has not set, and jump tables that reach another function: what
//! the check refuses, on every edge of the call graph, and what it goes on to accept.
#![expect(unsafe_code, reason = "runs programs")]

use rvbpf::bpf::BpfReg::{R0, R1, R2, R3, R4, R5, R6};
use rvbpf::bpf::{
    AluOp, BpfReg, Cond, Env, Imm64, Interpreter, Label, Op, ProgArray, ProgramBuilder, Reason,
    Refusal, Size,
};

const THROW: i32 = 77;

/// The instruction and the register that a program is refused for.
fn unset(b: &ProgramBuilder) -> Option<(usize, BpfReg)> {
    match b.finish() {
        Ok(_) => None,
        Err(Refusal {
            insn,
            reason: Reason::Unset { reg },
        }) => Some((insn, reg)),
        Err(other) => panic!("{other}"),
    }
}

/// A main function that makes a call, so that its argument registers are spoilt.
fn spoilt() -> ProgramBuilder {
    let mut b = ProgramBuilder::new();
    b.call_helper(5);
    b
}

/// `func`, which adds up registers.
fn adds(b: &mut ProgramBuilder, func: Label, regs: &[BpfReg]) {
    b.bind(func).mov(R0, 0);
    for reg in regs {
        b.alu(AluOp::Add, R0, *reg);
    }
    b.exit();
}

#[test]
fn a_function_reads_what_all_its_callers_set() {
    // The host sets all five, and a function passes on what it got.
    let mut b = ProgramBuilder::new();
    let (one, two) = (b.label(), b.label());
    b.call(one).exit();
    b.bind(one).call(two).exit();
    adds(&mut b, two, &[R1, R2, R3, R4, R5]);
    assert_eq!(unset(&b), None);
    let mut b = spoilt();
    let func = b.label();
    b.mov(R1, 1).mov(R2, 2).call(func).exit();
    adds(&mut b, func, &[R1, R2, R3]);
    assert_eq!(unset(&b), Some((8, R3)));
    // Through a function between them, which has not touched it.
    let mut b = spoilt();
    let (one, two) = (b.label(), b.label());
    b.mov(R1, 1).call(one).exit();
    b.bind(one).call(two).exit();
    adds(&mut b, two, &[R1, R2]);
    let text = b.finish().unwrap_err().to_string();
    assert_eq!(text, "instruction 8: reads r2, which is not set here");
    // One of two callers.
    for sets in [true, false] {
        let mut b = ProgramBuilder::new();
        let func = b.label();
        b.call(func).mov(R1, 1).mov(R2, 2);
        if sets {
            b.mov(R3, 3);
        }
        b.call(func).exit();
        adds(&mut b, func, &[R1, R2, R3]);
        assert_eq!(unset(&b).is_none(), sets);
    }
    // On one of two paths to the call.
    let mut b = spoilt();
    let (func, over) = (b.label(), b.label());
    b.branch(Cond::Eq, R0, 0, over).mov(R1, 1);
    b.bind(over).call(func).exit();
    adds(&mut b, func, &[R1]);
    assert_eq!(unset(&b), Some((6, R1)));
    // What it does not read need not be set.
    let mut b = spoilt();
    let func = b.label();
    b.call(func).exit();
    b.bind(func).mov(R1, 1).mov(R0, R1).exit();
    assert_eq!(unset(&b), None);
}

#[test]
fn a_callback_reads_what_its_helper_passes() {
    for (helper, given) in [(164, 4), (170, 3), (180, 3), (181, 2), (209, 2)] {
        let func_in = if helper == 180 { R3 } else { R2 };
        for (i, reg) in [R1, R2, R3, R4, R5].into_iter().enumerate() {
            let mut b = ProgramBuilder::new();
            let func = b.label();
            b.ld_func(func_in, func).call_helper(helper).exit();
            adds(&mut b, func, &[reg]);
            let want = (i >= given).then_some((5, reg));
            assert_eq!(unset(&b), want, "helper {helper}");
        }
    }
    // A function passes on the function that it got, and is walked after the callback.
    let mut b = ProgramBuilder::new();
    let (func, loops) = (b.label(), b.label());
    b.ld_func(R2, func).mov(R1, 3).call(loops).exit();
    adds(&mut b, func, &[R3]);
    b.bind(loops).mov(R3, 0).mov(R4, 0).call_helper(181).exit();
    assert_eq!(unset(&b), Some((6, R3)));
    // A host function may pass anything; of two functions only one is the loop's.
    let mut b = ProgramBuilder::new();
    let (looped, hosts) = (b.label(), b.label());
    b.ld_func(R2, looped).mov(R4, 0).call_helper(181);
    b.ld_func(R1, hosts).call_host(9).exit();
    adds(&mut b, looped, &[R1, R2]);
    adds(&mut b, hosts, &[R1, R5]);
    assert_eq!(unset(&b), None);
}

#[test]
fn an_exception_callback_reads_the_cookie() {
    for (reg, want) in [(R1, None), (R2, Some((3, R2)))] {
        let mut b = ProgramBuilder::new();
        let func = b.label();
        b.call_host(THROW).exit().exception_callback(func);
        adds(&mut b, func, &[reg]);
        assert_eq!(unset(&b), want);
    }
}

extern "C" fn two(a: u64, b: u64) -> u64 {
    a + b
}

#[test]
fn a_call_out_of_the_program_has_its_arguments_set() {
    // SAFETY: 1. it takes any numbers.
    let env = unsafe { Env::tracing().helper(900, two as extern "C" fn(u64, u64) -> u64) };
    let env = env.throw(THROW);
    type Call = fn(&mut ProgramBuilder);
    let rows: [(Call, u32); 5] = [
        (
            |b| {
                b.call_helper(900);
            },
            2,
        ),
        (
            |b| {
                b.call_helper(12);
            },
            3,
        ),
        (
            |b| {
                b.call_helper(181);
            },
            4,
        ),
        (
            |b| {
                b.call_host(THROW);
            },
            1,
        ),
        // Its format says how many follow.
        (
            |b| {
                b.call_helper(6);
            },
            2,
        ),
    ];
    for (call, count) in rows {
        for set in 0..=5 {
            let mut b = spoilt();
            for reg in &BpfReg::ALL[1..=set] {
                b.mov(*reg, 0);
            }
            call(&mut b);
            b.mov(R0, 0).exit();
            let program = b.finish().unwrap();
            let refusal = Interpreter::new(&program, &env).err();
            let want = (set < count as usize).then(|| Refusal {
                insn: 1 + set,
                reason: Reason::Unset {
                    reg: BpfReg::ALL[set + 1],
                },
            });
            assert_eq!(refusal, want, "{}", program.disassemble());
        }
    }
}

/// What a caller has not set is zero in the program that it goes on in, on every side.
#[test]
fn a_tail_call_passes_what_is_set() {
    let caller = |set: bool| {
        let mut b = ProgramBuilder::new();
        b.mov(R6, R1).call_helper(5).mov(R1, R6);
        if set {
            b.mov(R4, 40).mov(R5, 5);
        }
        let imm = Imm64::MapIdx(0);
        b.op(Op::LdImm64 { dst: R2, imm }).mov(R3, 0);
        b.call_helper(12).exit();
        b.finish().unwrap()
    };
    let mut b = ProgramBuilder::new();
    b.mov(R0, R1).alu(AluOp::Add, R0, R3);
    b.alu(AluOp::Add, R0, R4).alu(AluOp::Add, R0, R5).exit();
    let callee = b.finish().unwrap();
    for (set, want) in [(true, 145), (false, 100)] {
        let array = ProgArray::new(1).unwrap();
        let env = Env::tracing().prog_array(&array);
        array.set_interpreted(0, callee.clone()).unwrap();
        let program = caller(set);
        let interpreter = Interpreter::new(&program, &env).unwrap();
        let args = [100, 0, 0, 77, 88];
        // SAFETY: 1. it accesses no memory.
        assert_eq!(unsafe { interpreter.run(args, 100) }, Ok(want));
        #[cfg(target_arch = "riscv64")]
        {
            let rt = rvbpf::Runtime::new().unwrap();
            let array = ProgArray::new(1).unwrap();
            let env = Env::tracing().prog_array(&array);
            array.set(0, &rt.load(&callee, &env).unwrap()).unwrap();
            let prog = rt.load(&program, &env).unwrap();
            // SAFETY: 1. as above, and it ends.
            assert_eq!(unsafe { prog.run(args) }, Ok(want));
        }
    }
}

/// `dst` = the first element of the table at `map`.
fn element(b: &mut ProgramBuilder, dst: BpfReg, map: i32) {
    let imm = Imm64::MapIdxValue { idx: map, off: 0 };
    b.op(Op::LdImm64 { dst, imm }).load(Size::Dw, dst, dst, 0);
}

/// A jump through a table that leads into another function: named itself, passed, or returned.
#[test]
fn tables_belong_to_functions() {
    let foreign = |b: &ProgramBuilder| match b.finish() {
        Ok(_) => None,
        Err(Refusal {
            insn,
            reason: Reason::ForeignTable { reg },
        }) => Some((insn, reg)),
        Err(other) => panic!("{other}"),
    };
    let own = |b: &mut ProgramBuilder, map, out: Label| {
        b.jump_table(map, &[out]);
        element(b, R2, map);
        b.jump_reg(R2).bind(out).mov(R0, 1).exit();
    };
    // Both functions have tables; the first one's jump is by the second's.
    for map in [0, 1] {
        let mut b = ProgramBuilder::new();
        let [func, out, other] = [(); 3].map(|()| b.label());
        b.call(func).jump_table(0, &[out]);
        element(&mut b, R3, map);
        b.mov(R2, R3).jump_reg(R2).bind(out).mov(R0, 1).exit();
        b.bind(func);
        own(&mut b, 1, other);
        assert_eq!(foreign(&b), (map == 1).then_some((5, R2)));
    }
    // The caller's table, by an argument, whole or an element.
    for whole in [true, false] {
        let mut b = ProgramBuilder::new();
        let [func, out, other] = [(); 3].map(|()| b.label());
        let imm = Imm64::MapIdxValue { idx: 0, off: 0 };
        match whole {
            true => {
                b.op(Op::LdImm64 { dst: R1, imm });
            }
            false => element(&mut b, R1, 0),
        }
        b.call(func);
        own(&mut b, 0, out);
        b.bind(func).jump_table(1, &[other]);
        if whole {
            b.load(Size::Dw, R1, R1, 0);
        }
        b.jump_reg(R1).bind(other).mov(R0, 1).exit();
        assert_eq!(foreign(&b), Some((10, R1)));
    }
    // The callee's, as its result.
    let mut b = ProgramBuilder::new();
    let [func, out, other] = [(); 3].map(|()| b.label());
    b.call(func).jump_table(0, &[out]).jump_reg(R0);
    b.bind(out).mov(R0, 1).exit();
    b.bind(func).jump_table(1, &[other]);
    element(&mut b, R0, 1);
    b.branch(Cond::Eq, R1, 0, other).jump_reg(R0);
    b.bind(other).exit();
    assert_eq!(foreign(&b), Some((1, R0)));
}
