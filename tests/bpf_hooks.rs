//! BPF programs on hooks: compiled, attached like native ones, and freed like them.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "attaches raw programs")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::{ADD2, assert_settled, hook, serial};
use rvbpf::bpf::BpfReg::{R0, R1, R2, R3, R6, R7, R10};
use rvbpf::bpf::{AluOp, AtomicOp, BpfProg, BpfReg, Cond, Env, Fetch, Op, ProgramBuilder, Size};
use rvbpf::{RawProg, Runtime};
use testlib::functions::tl_add2;

/// `*cell += src`, whole, by way of `r7`.
fn add_to(b: &mut ProgramBuilder, cell: &AtomicU64, src: BpfReg) {
    let (op, size, dst, off) = (AtomicOp::Add(Fetch::No), Size::Dw, R7, 0);
    b.ld_imm64(dst, cell.as_ptr() as u64).op(Op::Atomic {
        op,
        size,
        dst,
        off,
        src,
    });
}

/// `dst = &stack[-8]`
fn stack(b: &mut ProgramBuilder, dst: BpfReg) {
    b.mov(dst, R10).alu(AluOp::Add, dst, -8);
}

fn loaded(rt: &Runtime, b: &ProgramBuilder) -> BpfProg {
    rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap()
}

/// Attaches a program to `tl_add2` while `calls` runs.
fn with_program(rt: &Runtime, prog: RawProg, calls: impl FnOnce()) {
    // SAFETY:
    // 1. The programs of this file end. 2. They read the two argument slots and what they ask for.
    let hooked = unsafe { hook(rt, ADD2).raw(prog) }.attach().unwrap();
    calls();
    hooked.detach().unwrap();
}

fn get(cell: &AtomicU64) -> i64 {
    cell.load(Ordering::Relaxed) as i64
}

#[test]
fn a_program_adds_up_its_arguments() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let sum = AtomicU64::new(0);
    let mut b = ProgramBuilder::new();
    b.load(Size::Dw, R2, R1, 0).load(Size::Dw, R3, R1, 8);
    add_to(&mut b, &sum, R2);
    add_to(&mut b, &sum, R3);
    b.mov(R0, 0).exit();
    let prog = loaded(&rt, &b);
    with_program(&rt, prog.fentry(), || {
        assert_eq!((tl_add2(20, 3), tl_add2(40, 4)), (23, 44));
    });
    assert_eq!(get(&sum), 67);
    assert_eq!((tl_add2(1, 1), get(&sum)), (2, 67));
    drop(prog);
    assert_settled(&rt);
}

#[test]
fn a_program_sees_the_return_value_and_asks_its_helpers() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let [ret, ip, count, arg, past] = [const { AtomicU64::new(0) }; 5];
    let mut b = ProgramBuilder::new();
    b.mov(R6, R1);
    stack(&mut b, R2);
    // get_func_ret(ctx, &stack)
    b.call_helper(184).load(Size::Dw, R0, R10, -8);
    add_to(&mut b, &ret, R0);
    // get_func_ip(ctx), get_func_arg_cnt(ctx)
    for (id, cell) in [(173, &ip), (185, &count)] {
        b.mov(R1, R6).call_helper(id);
        add_to(&mut b, cell, R0);
    }
    // get_func_arg(ctx, 1, &stack)
    b.mov(R1, R6).mov(R2, 1);
    stack(&mut b, R3);
    b.call_helper(183).load(Size::Dw, R0, R10, -8);
    add_to(&mut b, &arg, R0);
    // The same past the last one.
    b.mov(R1, R6).mov(R2, 2);
    stack(&mut b, R3);
    b.call_helper(183);
    add_to(&mut b, &past, R0);
    b.exit();
    let prog = loaded(&rt, &b);
    with_program(&rt, prog.fexit(), || assert_eq!(tl_add2(20, 3), 23));
    assert_eq!((get(&ret), get(&arg), get(&count)), (23, 3, 2));
    assert_eq!(get(&ip), ADD2 as *const () as i64);
    assert_eq!(get(&past), -i64::from(libc::EINVAL));
    drop(prog);
    assert_settled(&rt);
}

#[test]
fn a_program_answers_instead_of_the_function() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // 99 for calls whose first argument is 7.
    let mut b = ProgramBuilder::new();
    let other = b.label();
    b.load(Size::Dw, R2, R1, 0).mov(R0, 0);
    b.branch32(Cond::Ne, R2, 7, other).mov(R0, 99);
    b.bind(other).exit();
    let prog = loaded(&rt, &b);
    with_program(&rt, prog.fmod_ret(), || {
        assert_eq!((tl_add2(7, 1), tl_add2(8, 1)), (99, 9));
    });
    drop(prog);
    assert_settled(&rt);
}

/// The hook keeps the code of a program whose handle is gone.
#[test]
fn a_hook_keeps_its_program() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let runs = AtomicU64::new(0);
    let mut b = ProgramBuilder::new();
    b.mov(R3, 1);
    add_to(&mut b, &runs, R3);
    b.mov(R0, 0).exit();
    let prog = loaded(&rt, &b).fentry();
    with_program(&rt, prog, || assert_eq!(tl_add2(1, 2), 3));
    assert_eq!(get(&runs), 1);
    assert_settled(&rt);
}
