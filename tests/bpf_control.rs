//! What goes beyond calls and branches: tail calls, callbacks, exceptions, budgets. Everything is
//! interpreted, and on riscv64 compiled as well.

#![expect(unsafe_code, reason = "runs programs")]

#[cfg(target_arch = "riscv64")]
mod common;
#[cfg(target_arch = "riscv64")]
#[path = "bpf_control/compiled.rs"]
mod compiled;
#[cfg(target_arch = "riscv64")]
#[path = "bpf_control/keeps.rs"]
mod keeps;

use std::sync::atomic::AtomicU64;

use rvbpf::bpf::BpfReg::{R0, R1, R2, R3, R4, R6, R7, R8, R10};
use rvbpf::bpf::{
    AluOp, AtomicOp, BpfReg, Cond, Env, Fetch, Imm64, Interpreter, Label, Op, ProgArray, Program,
    ProgramBuilder, Size, Stop,
};

/// The id of `bpf_throw` here.
const THROW: i32 = 77;
const EINVAL: u64 = -22i64 as u64;
const E2BIG: u64 = -7i64 as u64;
/// More than any program here executes that ends.
const PLENTY: u64 = 1_000_000;

fn env() -> Env {
    Env::new().throw(THROW)
}

/// `*r1 += by`, whole, over `r7`.
fn count(b: &mut ProgramBuilder, cell: BpfReg, by: i32) {
    let (op, size, src, off) = (AtomicOp::Add(Fetch::No), Size::Dw, R7, 0);
    let dst = cell;
    b.mov(src, by).op(Op::Atomic {
        op,
        size,
        dst,
        off,
        src,
    });
}

fn tail_call(b: &mut ProgramBuilder, index: i32) {
    let imm = Imm64::MapIdx(0);
    b.op(Op::LdImm64 { dst: R2, imm }).mov(R3, index);
    b.call_helper(12);
}

fn bpf_loop(b: &mut ProgramBuilder, times: i32, func: Label) {
    b.mov(R1, times)
        .ld_func(R2, func)
        .mov(R4, 0)
        .call_helper(181);
}

/// Interprets `program` with the address of a counter; what it gives and what it has counted.
fn interpreted(program: &Program, env: &Env) -> (Result<u64, Stop>, u64) {
    let cell = AtomicU64::new(0);
    let interpreter = Interpreter::new(program, env).unwrap();
    let args = [cell.as_ptr() as u64, 0, 0, 0, 0];
    // SAFETY: 1. The programs of this file access their stack and the counter.
    let r0 = unsafe { interpreter.run(args, PLENTY) };
    (r0, cell.into_inner())
}

/// The same in all ways that this host has, which must agree.
fn run(b: &ProgramBuilder, env: &Env) -> (u64, u64) {
    let program = b.finish().unwrap();
    let (r0, counted) = interpreted(&program, env);
    let outcome = (r0.unwrap(), counted);
    #[cfg(target_arch = "riscv64")]
    compiled::assert_same(&program, env, outcome);
    outcome
}

/// The same with a program that is also entry 0 of the environment's array.
fn run_in_array(b: &ProgramBuilder, env: &Env, array: &ProgArray) -> (u64, u64) {
    let program = b.finish().unwrap();
    array.set_interpreted(0, program.clone()).unwrap();
    let (r0, counted) = interpreted(&program, env);
    let outcome = (r0.unwrap(), counted);
    #[cfg(target_arch = "riscv64")]
    compiled::assert_same_in_array(&program, env, array, outcome);
    outcome
}

fn with_array(len: u32) -> (ProgArray, Env) {
    let array = ProgArray::new(len).unwrap();
    let env = env().prog_array(&array);
    (array, env)
}

#[test]
fn a_cycle_of_tail_calls_ends_after_33() {
    let (array, env) = with_array(1);
    let mut b = ProgramBuilder::new();
    count(&mut b, R1, 1);
    tail_call(&mut b, 0);
    b.exit();
    assert_eq!(run_in_array(&b, &env, &array), (EINVAL, 34));
}

/// Main calls a function twice, which goes on in main: there would be 2^33 of them if each had a
/// count of its own.
#[test]
fn tail_calls_are_counted_across_functions() {
    let (array, env) = with_array(2);
    let mut b = ProgramBuilder::new();
    let sub = b.label();
    b.mov(R6, R1).call(sub).mov(R8, R0);
    b.mov(R1, R6).call(sub).alu(AluOp::Add, R0, R8).exit();
    b.bind(sub);
    count(&mut b, R1, 1);
    tail_call(&mut b, 0);
    b.mov(R0, 1).exit();
    let (r0, counted) = run_in_array(&b, &env, &array);
    // Each of 34 runs of main has two calls of the function.
    assert_eq!((r0, counted), (35, 68));
}

#[test]
fn tail_calls_to_nothing_fall_through() {
    let (array, env) = with_array(4);
    let mut b = ProgramBuilder::new();
    b.mov(R6, R1).mov(R8, 0);
    for index in [1, 3, 4, 5, 1000, -1, i32::MIN] {
        b.mov(R1, R6);
        tail_call(&mut b, index);
        b.alu(AluOp::Add, R8, R0);
    }
    count(&mut b, R6, 5);
    b.mov(R0, R8).exit();
    let all = EINVAL.wrapping_mul(7);
    assert_eq!(run_in_array(&b, &env, &array), (all, 5));
}

/// Only the lower half of the index counts.
#[test]
fn the_index_of_a_tail_call_has_32_bits() {
    let (array, env) = with_array(1);
    let mut b = ProgramBuilder::new();
    count(&mut b, R1, 1);
    let imm = Imm64::MapIdx(0);
    b.op(Op::LdImm64 { dst: R2, imm }).ld_imm64(R3, 7 << 32);
    b.call_helper(12).exit();
    assert_eq!(run_in_array(&b, &env, &array).1, 34);
}

#[test]
fn arrays_refuse_what_is_beyond_them() {
    let array = ProgArray::new(2).unwrap();
    let error = array.clear(2).unwrap_err().to_string();
    assert!(
        error.contains("2 entries") && error.contains("index 2"),
        "{error}"
    );
    array.clear(1).unwrap();
    let error = ProgArray::new(u32::MAX).unwrap_err().to_string();
    assert!(error.contains("4294967295"), "{error}");
    assert_eq!(
        (array.len(), ProgArray::new(0).unwrap().is_empty()),
        (2, true)
    );
}

/// A function that adds its first argument to `*r2`, and stops at `last`.
fn adder(b: &mut ProgramBuilder, func: Label, last: i32) {
    b.bind(func).load(Size::Dw, R3, R2, 0);
    b.alu(AluOp::Add, R3, R1).store(Size::Dw, R2, 0, R3);
    let go_on = b.label();
    b.mov(R0, 0).branch(Cond::Ne, R1, last, go_on).mov(R0, 1);
    b.bind(go_on).exit();
}

#[test]
fn loops_call_back() {
    for (times, last, want) in [
        (0, -1, (0, 0)),
        (1, -1, (1, 0)),
        (100, -1, (100, 4950)),
        (100, 9, (10, 45)),
    ] {
        let mut b = ProgramBuilder::new();
        let func = b.label();
        b.mov(R3, R1);
        bpf_loop(&mut b, times, func);
        b.exit();
        adder(&mut b, func, last);
        assert_eq!(run(&b, &env()), want, "{times} {last}");
    }
}

#[test]
fn loops_that_make_no_sense_are_errors() {
    for (times, flags, want) in [
        ((8 << 20) + 1, 0, E2BIG),
        (-1, 0, E2BIG),
        (1, 1, EINVAL),
        (0, -1, EINVAL),
    ] {
        let mut b = ProgramBuilder::new();
        let func = b.label();
        b.mov(R3, R1)
            .mov(R1, times)
            .ld_func(R2, func)
            .mov(R4, flags);
        b.call_helper(181).exit();
        adder(&mut b, func, -1);
        assert_eq!(run(&b, &env()), (want, 0), "{times} {flags}");
    }
}

/// The callback writes where its caller has not: the stack is there all the same.
#[test]
fn callbacks_reach_their_callers_stack() {
    let mut b = ProgramBuilder::new();
    let func = b.label();
    b.mov(R3, R10);
    bpf_loop(&mut b, 3, func);
    b.exit();
    b.bind(func).store(Size::Dw, R2, -8, -1);
    b.store(Size::Dw, R2, -16, -1).store(Size::Dw, R2, -512, -1);
    b.mov(R0, 0).exit();
    assert_eq!(run(&b, &env()), (3, 0));
}

/// Only its address can be called: a program's own, or that of a function whose program waits.
#[test]
fn what_is_no_function_is_not_called() {
    let mut b = ProgramBuilder::new();
    b.mov(R2, R1).mov(R3, R1).mov(R1, 1).mov(R4, 0);
    b.call_helper(181).exit();
    let (r0, _) = interpreted(&b.finish().unwrap(), &env());
    assert_eq!(r0, Ok(EINVAL));
}

/// Loops in loops, with registers and stack that must stay.
#[test]
fn loops_nest() {
    let mut b = ProgramBuilder::new();
    let (outer, inner) = (b.label(), b.label());
    b.mov(R6, 1000).store(Size::Dw, R10, -8, 7).mov(R3, R1);
    bpf_loop(&mut b, 5, outer);
    b.load(Size::Dw, R1, R10, -8);
    b.alu(AluOp::Add, R0, R6).alu(AluOp::Add, R0, R1).exit();
    b.bind(outer).mov(R3, R2);
    bpf_loop(&mut b, 7, inner);
    b.mov(R0, 0).exit();
    b.bind(inner).mov(R6, R2);
    count(&mut b, R6, 1);
    b.mov(R0, 0).exit();
    assert_eq!(run(&b, &env()), (1012, 35));
}

/// Three functions deep, `r1` being a cookie.
fn thrower(b: &mut ProgramBuilder, cookie: i32) {
    let (one, two) = (b.label(), b.label());
    b.mov(R6, R1).call(one);
    count(b, R6, 100);
    b.mov(R0, 0).exit();
    b.bind(one).mov(R8, R1).call(two);
    count(b, R8, 1000);
    b.mov(R0, 0).exit();
    b.bind(two).mov(R6, R1);
    count(b, R6, 1);
    b.mov(R1, cookie).call_host(THROW);
    count(b, R6, 10_000);
    b.mov(R0, 0).exit();
}

#[test]
fn an_exception_ends_the_program_with_its_cookie() {
    let mut b = ProgramBuilder::new();
    thrower(&mut b, -5);
    assert_eq!(run(&b, &env()), (-5i64 as u64, 1));
}

#[test]
fn the_callback_makes_a_result_of_the_cookie() {
    let mut b = ProgramBuilder::new();
    thrower(&mut b, 20);
    let callback = b.label();
    b.bind(callback).mov(R0, R1).alu(AluOp::Mul, R0, 3).exit();
    b.exception_callback(callback);
    assert_eq!(run(&b, &env()), (60, 1));
}

#[test]
fn an_exception_out_of_the_callback_ends_in_its_own_cookie() {
    let mut b = ProgramBuilder::new();
    thrower(&mut b, 20);
    let callback = b.label();
    b.bind(callback).alu(AluOp::Add, R1, 1).call_host(THROW);
    b.mov(R0, 0).exit();
    b.exception_callback(callback);
    assert_eq!(run(&b, &env()), (21, 1));
}

#[test]
fn an_exception_leaves_loops() {
    let mut b = ProgramBuilder::new();
    let func = b.label();
    b.mov(R3, R1);
    bpf_loop(&mut b, 10, func);
    b.exit();
    b.bind(func).mov(R6, R1).mov(R8, R2);
    count(&mut b, R8, 1);
    let go_on = b.label();
    b.branch(Cond::Ne, R6, 4, go_on)
        .mov(R1, 44)
        .call_host(THROW);
    b.bind(go_on).mov(R0, 0).exit();
    assert_eq!(run(&b, &env()), (44, 5));
}

/// Main calls a function that goes on in main, which throws the second time: that ends the second
/// program alone.
#[test]
fn an_exception_ends_in_the_program_that_was_gone_on_in() {
    let (array, env) = with_array(1);
    let mut b = ProgramBuilder::new();
    let (sub, throw) = (b.label(), b.label());
    b.mov(R6, R1)
        .load(Size::Dw, R2, R1, 0)
        .branch(Cond::Ne, R2, 0, throw);
    b.call(sub).alu(AluOp::Add, R0, 1000);
    count(&mut b, R6, 100);
    b.exit();
    b.bind(throw).mov(R1, 5).call_host(THROW);
    b.mov(R0, 0).exit();
    b.bind(sub);
    count(&mut b, R1, 1);
    tail_call(&mut b, 0);
    b.mov(R0, 0).exit();
    assert_eq!(run_in_array(&b, &env, &array), (1005, 101));
}

/// The callback gets the cookie, and nothing else.
#[test]
fn an_exception_callback_that_reads_more_is_refused() {
    let mut b = ProgramBuilder::new();
    let callback = b.label();
    b.mov(R0, 0).exit().bind(callback).mov(R0, R2).exit();
    b.exception_callback(callback);
    let refusal = b.finish().unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "instruction 2: reads r2, which is not set here"
    );
}

#[test]
fn a_callback_that_is_none_is_refused() {
    let mut b = ProgramBuilder::new();
    let nowhere = b.label();
    b.mov(R0, 0).exit().exception_callback(nowhere);
    assert!(b.finish().unwrap_err().to_string().contains("label"));
    let insns = {
        let mut b = ProgramBuilder::new();
        b.mov(R0, 0).exit();
        b.finish().unwrap().insns().to_vec()
    };
    for (at, want) in [(0, "can call itself"), (2, "outside"), (99, "outside")] {
        let mut extra = rvbpf::bpf::Extra::default();
        extra.exception_callback = Some(at);
        let error = Program::with_extra(insns.clone(), extra).unwrap_err();
        assert!(error.to_string().contains(want), "{at}: {error}");
    }
}

#[test]
fn an_interpreted_program_ends_with_its_budget() {
    let mut b = ProgramBuilder::new();
    let again = b.label();
    b.bind(again).jump(again);
    let program = b.finish().unwrap();
    let (stop, _) = interpreted(&program, &env());
    let budget = PLENTY;
    assert_eq!(stop, Err(Stop::Budget { insn: 0, budget }));
}
