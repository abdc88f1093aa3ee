//! Compiled programs: the same results, and what only they have.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rvbpf::Runtime;
use rvbpf::bpf::BpfReg::R9;
use rvbpf::bpf::{
    BpfProg, Budget, Env, LoadError, Options, ProgArray, ProgArrayError, Program, ProgramBuilder,
    Size, Stop,
};
use testlib::functions::tl_add2;

use super::common::{ADD2, PATIENCE, assert_settled, footprint, hook, serial};
use super::keeps;
use super::*;

/// Room for everything that ends.
const ROOMY: [Option<Budget>; 3] = [
    None,
    Some(Budget::Insns(1 << 40)),
    Some(Budget::Time(Duration::from_secs(100))),
];

fn load(rt: &Runtime, program: &Program, env: &Env, budget: Option<Budget>) -> BpfProg {
    let mut options = Options::default();
    options.budget = budget;
    rt.load_with(program, env, options).unwrap()
}

fn run_compiled(prog: &BpfProg) -> (Result<u64, Stop>, u64) {
    let cell = AtomicU64::new(0);
    // SAFETY: 1. The programs of this file access their stack and the counter, and end.
    let r0 = unsafe { prog.run([cell.as_ptr() as u64, 0, 0, 0, 0]) };
    (r0, cell.into_inner())
}

/// With and without budgets.
pub(super) fn assert_same(program: &Program, env: &Env, want: (u64, u64)) {
    let rt = Runtime::new().unwrap();
    for budget in ROOMY {
        let (r0, counted) = run_compiled(&load(&rt, program, env, budget));
        assert_eq!((r0, counted), (Ok(want.0), want.1), "{budget:?}");
    }
}

/// The same for a program that goes on in itself. An array has programs of one kind only: each
/// budget has its own.
pub(super) fn assert_same_in_array(
    program: &Program,
    _env: &Env,
    array: &ProgArray,
    want: (u64, u64),
) {
    let rt = Runtime::new().unwrap();
    for budget in ROOMY {
        let (array, env) = with_array(array.len());
        let prog = load(&rt, program, &env, budget);
        array.set(0, &prog).unwrap();
        let (r0, counted) = run_compiled(&prog);
        assert_eq!((r0, counted), (Ok(want.0), want.1), "{budget:?}");
    }
}

#[test]
fn programs_with_budgets_of_two_kinds_do_not_mix() {
    let rt = Runtime::new().unwrap();
    let mut b = ProgramBuilder::new();
    tail_call(&mut b, 0);
    b.exit();
    let program = b.finish().unwrap();
    for (i, one) in ROOMY.into_iter().enumerate() {
        let (array, env) = with_array(2);
        array.set(0, &load(&rt, &program, &env, one)).unwrap();
        for other in (0..3).filter(|other| *other != i).map(|other| ROOMY[other]) {
            let mut options = Options::default();
            options.budget = other;
            let error = rt.load_with(&program, &env, options).unwrap_err();
            let LoadError::ProgArray(ProgArrayError::Budgets) = error else {
                panic!("{error:?}");
            };
            let prog = load(&rt, &program, &with_array(1).1, other);
            assert!(matches!(array.set(1, &prog), Err(ProgArrayError::Budgets)));
        }
        array.set(1, &load(&rt, &program, &env, one)).unwrap();
    }
    // A load that one of two arrays refuses leaves the other as it was.
    let (first, env) = with_array(1);
    let (second, other) = with_array(1);
    let _decided = load(&rt, &program, &other, None);
    let mut options = Options::default();
    options.budget = ROOMY[1];
    let both = env.clone().prog_array(&second);
    rt.load_with(&program, &both, options).unwrap_err();
    first.set(0, &load(&rt, &program, &env, None)).unwrap();
}

/// Counts by one or two in an endless cycle, while the program that it goes on in is replaced by
/// others that are made and dropped.
#[test]
fn programs_are_replaced_while_they_run() {
    // With the second, every run ends in a program that may be gone already.
    for budget in [None, Some(Budget::Insns(80))] {
        replace_while_running(budget);
    }
}

fn replace_while_running(budget: Option<Budget>) {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let before = footprint(&rt.stats());
    {
        let (array, env) = with_array(1);
        let program = |by: i32| {
            let mut b = ProgramBuilder::new();
            count(&mut b, R1, by);
            tail_call(&mut b, 0);
            b.mov(R0, 0).exit();
            b.finish().unwrap()
        };
        let programs = [program(1), program(2)];
        let first = load(&rt, &programs[0], &env, budget);
        array.set(0, &first).unwrap();
        let ended = AtomicBool::new(false);
        thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        let (r0, counted) = run_compiled(&first);
                        assert!(matches!(r0, Ok(0) | Err(Stop::Budget { .. })), "{r0:?}");
                        assert!((1..=67).contains(&counted), "{counted}");
                    }
                });
            }
            for round in 0..200 {
                let prog = load(&rt, &programs[round % 2], &env, budget);
                array.set(0, &prog).unwrap();
                drop(prog);
                if round % 10 == 0 {
                    array.clear(0).unwrap();
                }
            }
            ended.store(true, Ordering::Relaxed);
        });
        rt.synchronize(PATIENCE).unwrap();
    }
    rt.synchronize(PATIENCE).unwrap();
    assert_eq!(footprint(&rt.stats()), before);
}

/// A program in its own array, whose last handles are gone.
#[test]
fn a_program_that_holds_itself_is_freed() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let before = footprint(&rt.stats());
    {
        let (array, env) = with_array(1);
        let mut b = ProgramBuilder::new();
        tail_call(&mut b, 0);
        b.exit();
        let prog = load(&rt, &b.finish().unwrap(), &env, None);
        array.set(0, &prog).unwrap();
    }
    rt.synchronize(PATIENCE).unwrap();
    assert_eq!(footprint(&rt.stats()), before);
}

fn endless() -> ProgramBuilder {
    let mut b = ProgramBuilder::new();
    let again = b.label();
    b.mov(R6, R1).bind(again);
    count(&mut b, R6, 1);
    b.jump(again);
    b
}

#[test]
fn a_runaway_loop_ends_with_its_instructions() {
    let rt = Runtime::new().unwrap();
    let program = endless().finish().unwrap();
    for budget in [0, 1, 100, 1_000_003] {
        let prog = load(&rt, &program, &env(), Some(Budget::Insns(budget)));
        let (stop, counted) = run_compiled(&prog);
        let Err(Stop::Budget { insn, budget: told }) = stop else {
            panic!("{stop:?}");
        };
        assert!(insn <= 1 && told == budget, "{insn} {told}");
        // The loop has three instructions, and the function's entry is charged with four.
        assert_eq!(counted, budget.saturating_sub(4) / 3, "{budget}");
        assert_eq!(prog.stops(), 1);
    }
}

#[test]
fn a_runaway_loop_ends_with_its_time() {
    let rt = Runtime::new().unwrap();
    let program = endless().finish().unwrap();
    let limit = Duration::from_millis(50);
    let prog = load(&rt, &program, &env(), Some(Budget::Time(limit)));
    let began = Instant::now();
    let (stop, counted) = run_compiled(&prog);
    let took = began.elapsed();
    assert_eq!(stop, Err(Stop::Time { insn: 1, limit }));
    assert!(took >= limit && took < limit * 100, "{took:?}");
    assert!(counted > 1000, "{counted}");
}

/// Whatever a loop goes through, it is ended, and no register of the caller's is lost.
#[test]
fn what_is_called_or_gone_on_in_is_ended_too() {
    let rt = Runtime::new().unwrap();
    let env = env();
    // A call of a function that never returns.
    let mut b = ProgramBuilder::new();
    let (sub, again) = (b.label(), b.label());
    b.mov(R6, 1).mov(R7, 1).mov(R8, 1).call(sub).exit();
    b.bind(sub).mov(R6, R1).bind(again);
    count(&mut b, R6, 1);
    b.jump(again);
    // A callback that does not, in a loop.
    let mut c = ProgramBuilder::new();
    let (func, again) = (c.label(), c.label());
    c.mov(R3, R1);
    bpf_loop(&mut c, 10, func);
    c.exit();
    c.bind(func).mov(R6, R2).bind(again);
    count(&mut c, R6, 1);
    c.jump(again);
    // Loops in loops in loops of callbacks that end.
    let mut d = ProgramBuilder::new();
    let funcs = [d.label(), d.label(), d.label()];
    d.mov(R3, R1);
    bpf_loop(&mut d, 1 << 23, funcs[0]);
    d.exit();
    for pair in funcs.windows(2) {
        d.bind(pair[0]).mov(R3, R2);
        bpf_loop(&mut d, 1 << 23, pair[1]);
        d.mov(R0, 0).exit();
    }
    d.bind(funcs[2]).mov(R6, R2);
    count(&mut d, R6, 1);
    d.mov(R0, 0).exit();
    for b in [b, c, d] {
        let program = b.finish().unwrap();
        for budget in [
            Budget::Insns(100_000),
            Budget::Time(Duration::from_millis(20)),
        ] {
            let prog = load(&rt, &program, &env, Some(budget));
            for round in 1..4 {
                let (stop, counted) = run_compiled(&prog);
                assert!(stop.is_err() && counted > 100, "{stop:?} {counted}");
                assert_eq!(prog.stops(), round);
            }
            keeps::assert_kept(&prog);
        }
    }
    // A cycle of programs, each of which has a loop that is long enough to be ended.
    let (array, env) = with_array(1);
    let mut b = ProgramBuilder::new();
    let again = b.label();
    count(&mut b, R1, 1);
    b.mov(R0, 0).bind(again).alu(AluOp::Add, R0, 1);
    b.branch(Cond::Lt, R0, 1000, again);
    tail_call(&mut b, 0);
    b.exit();
    let program = b.finish().unwrap();
    let prog = load(&rt, &program, &env, Some(Budget::Insns(10_500)));
    array.set(0, &prog).unwrap();
    let (stop, counted) = run_compiled(&prog);
    assert!(
        matches!(stop, Err(Stop::Budget { insn: 3, .. })),
        "{stop:?}"
    );
    assert_eq!(counted, 6);
    keeps::assert_kept(&prog);
}

/// Out of a function of a program that a function of another has gone on in; out of its callback,
/// which nobody catches.
#[test]
fn exceptions_lose_no_register_of_the_callers() {
    let rt = Runtime::new().unwrap();
    for rethrows in [false, true] {
        let (array, env) = with_array(1);
        let mut b = ProgramBuilder::new();
        let (sub, callback) = (b.label(), b.label());
        b.mov(R6, 1).mov(R7, 2).mov(R8, 3).mov(R9, 4).call(sub);
        b.alu(AluOp::Add, R0, R6).alu(AluOp::Add, R0, R9).exit();
        b.bind(sub).mov(R6, 5).mov(R7, 6).mov(R8, 7).mov(R9, 8);
        b.mov(R1, R6).call_host(THROW).mov(R0, R9).exit();
        b.bind(callback).mov(R6, R1).mov(R9, 1);
        if rethrows {
            b.mov(R1, R6).call_host(THROW);
        }
        b.mov(R0, R6).exit().exception_callback(callback);
        let thrower = load(&rt, &b.finish().unwrap(), &env, None);
        let mut b = ProgramBuilder::new();
        let sub = b.label();
        b.mov(R6, 9)
            .mov(R8, 10)
            .call(sub)
            .alu(AluOp::Add, R0, R6)
            .exit();
        b.bind(sub).mov(R6, 11).mov(R8, R1).mov(R9, 12);
        tail_call(&mut b, 0);
        b.mov(R0, R9).exit();
        let prog = load(&rt, &b.finish().unwrap(), &env, None);
        array.set(0, &thrower).unwrap();
        // Nobody catches the second one: it ends the run.
        let want = if rethrows { 5 } else { 14 };
        for prog in [&prog, &thrower] {
            let want = if std::ptr::eq(prog, &thrower) {
                5
            } else {
                want
            };
            assert_eq!(run_compiled(prog).0, Ok(want));
            keeps::assert_kept(prog);
        }
    }
}

#[test]
fn a_runaway_program_on_a_hook_lets_the_call_go_on() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let mut b = ProgramBuilder::new();
    let again = b.label();
    b.bind(again).jump(again);
    let prog = load(
        &rt,
        &b.finish().unwrap(),
        &env(),
        Some(Budget::Insns(10_000)),
    );
    for raw in [prog.fentry(), prog.fexit(), prog.fmod_ret()] {
        // SAFETY:
        // 1. The program ends by its budget. 2. It looks at nothing.
        let hooked = unsafe { hook(&rt, ADD2).raw(raw) }.attach().unwrap();
        assert_eq!(tl_add2(20, 3), 23);
        hooked.detach().unwrap();
    }
    assert_eq!(prog.stops(), 3);
    drop(prog);
    assert_settled(&rt);
}

/// Calls what it is given with 1 and 2, twice.
extern "C" fn call_twice(func: *const (), cell: u64) -> u64 {
    // SAFETY: 1. The programs below pass functions of their own, of two arguments.
    let func = unsafe { std::mem::transmute::<*const (), extern "C" fn(u64, u64) -> u64>(func) };
    func(1, cell) * 1000 + func(2, cell)
}

#[test]
fn functions_of_the_host_call_back() {
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. The programs below pass a function and the counter.
    let env = unsafe { env().helper(200, call_twice as extern "C" fn(*const (), u64) -> u64) };
    // With an exception, a program has a record, and so has each call of its function.
    for throws in [false, true] {
        let mut b = ProgramBuilder::new();
        let (func, go_on, callback) = (b.label(), b.label(), b.label());
        b.mov(R6, R1).mov(R2, R1).ld_func(R1, func).call_helper(200);
        b.mov(R8, R0);
        if throws {
            let on = b.label();
            b.branch(Cond::Ne, R6, 0, on)
                .mov(R1, 1)
                .call_host(THROW)
                .bind(on);
        }
        b.mov(R0, R8).exit();
        b.bind(func).mov(R6, R2).mov(R8, R1);
        count(&mut b, R6, 10);
        b.branch(Cond::Ne, R8, 2, go_on);
        if throws {
            b.mov(R1, 70).call_host(THROW);
        }
        b.bind(go_on).mov(R0, R8).alu(AluOp::Add, R0, 5).exit();
        if throws {
            b.bind(callback).mov(R0, R1).alu(AluOp::Add, R0, 1).exit();
            b.exception_callback(callback);
        }
        let program = b.finish().unwrap();
        let want = if throws { 6071 } else { 6007 };
        for budget in ROOMY {
            let got = run_compiled(&load(&rt, &program, &env, budget));
            assert_eq!(got, (Ok(want), 20), "{budget:?}");
        }
    }
}

/// The stack is that of the functions that are under way, whatever has been left by exceptions.
#[test]
fn exceptions_leave_no_stack_behind() {
    let rt = Runtime::new().unwrap();
    let mut b = ProgramBuilder::new();
    let sub = b.label();
    b.store(Size::Dw, R10, -64, 1).call(sub).mov(R0, 0).exit();
    b.bind(sub)
        .store(Size::Dw, R10, -400, 1)
        .mov(R1, 9)
        .call_host(THROW)
        .exit();
    let prog = load(&rt, &b.finish().unwrap(), &env(), None);
    // 8 MiB of stack would not last for so many.
    for _ in 0..100_000 {
        assert_eq!(run_compiled(&prog).0, Ok(9));
    }
}
