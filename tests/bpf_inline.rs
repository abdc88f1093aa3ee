//! Helpers that compiled code has inline give what their functions give, on hooks of functions with
//! none to twelve arguments.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "attaches raw programs and replaces helpers")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::{ADD2, WEIGH12, assert_settled, hook, serial, weigh_from};
use rvbpf::bpf::BpfReg::{self, R0, R1, R2, R3, R6, R7, R10};
use rvbpf::bpf::{AluOp, BpfProg, Env, Options, Program, ProgramBuilder, Size};
use rvbpf::{HookFn, RawProg, Runtime, session_cookie, session_is_return};
use testlib::functions::{tl_add2, tl_fib, tl_get_errno, tl_mul_add};

const INVALID: u64 = -libc::EINVAL as i64 as u64;
const UNSUPPORTED: u64 = -libc::EOPNOTSUPP as i64 as u64;
/// What stands where a helper puts its answer.
const BEFORE: i32 = 0x5e5e;
const COOKIE: u64 = 0xc00c_1e00_0000_0007;

/// Constants to ask for, and numbers that come from memory.
const CONSTANTS: [i32; 17] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 200, 255, 256, -1];
static NUMBERS: [AtomicU64; 6] = [
    AtomicU64::new(0),
    AtomicU64::new(1),
    AtomicU64::new(11),
    AtomicU64::new(12),
    // The upper half does not count.
    AtomicU64::new(1 << 32 | 1),
    AtomicU64::new(u64::MAX),
];
const CELLS: usize = 5 + 2 * (CONSTANTS.len() + NUMBERS.len());
static SEEN: [AtomicU64; CELLS] = [const { AtomicU64::new(0) }; CELLS];

/// The cells of [`SEEN`], one after the other.
struct Cells(std::slice::Iter<'static, AtomicU64>);

impl Cells {
    /// The next cell = `src`, by way of `r7`.
    fn put(&mut self, b: &mut ProgramBuilder, src: BpfReg) {
        let cell = self.0.next().unwrap();
        b.ld_imm64(R7, cell.as_ptr().expose_provenance() as u64);
        b.store(Size::Dw, R7, 0, src);
    }

    /// What a helper returns that has put something below `r10`, and that.
    fn put_answer(&mut self, b: &mut ProgramBuilder, id: i32) {
        b.store(Size::Dw, R10, -8, BEFORE).call_helper(id);
        self.put(b, R0);
        b.load(Size::Dw, R0, R10, -8);
        self.put(b, R0);
    }
}

/// Asks everything, and returns 0.
fn question() -> Program {
    let mut b = ProgramBuilder::new();
    let mut cells = Cells(SEEN.iter());
    b.mov(R6, R1);
    for id in [185, 173, 174] {
        b.mov(R1, R6).call_helper(id);
        cells.put(&mut b, R0);
    }
    b.mov(R1, R6).mov(R2, R10).alu(AluOp::Add, R2, -8);
    cells.put_answer(&mut b, 184);
    for n in CONSTANTS {
        b.mov(R1, R6)
            .mov(R3, R10)
            .alu(AluOp::Add, R3, -8)
            .mov(R2, n);
        cells.put_answer(&mut b, 183);
    }
    for n in &NUMBERS {
        b.ld_imm64(R2, n.as_ptr().expose_provenance() as u64);
        b.load(Size::Dw, R2, R2, 0);
        b.mov(R1, R6).mov(R3, R10).alu(AluOp::Add, R3, -8);
        cells.put_answer(&mut b, 183);
    }
    b.mov(R0, 0).exit();
    assert!(cells.0.next().is_none());
    b.finish().unwrap()
}

unsafe extern "C" fn arg(ctx: *const u64, n: u32, value: *mut u64) -> i64 {
    // SAFETY: 1. the program's context.
    let Some(arg) = (unsafe { rvbpf::get_func_arg(ctx, n.into()) }) else {
        return -i64::from(libc::EINVAL);
    };
    // SAFETY: 1. its stack.
    unsafe { value.write(arg) };
    0
}

unsafe extern "C" fn arg_cnt(ctx: *const u64) -> u64 {
    // SAFETY: 1. the program's context.
    unsafe { rvbpf::get_func_arg_cnt(ctx) }
}

unsafe extern "C" fn ip(ctx: *const u64) -> u64 {
    // SAFETY: 1. the program's context.
    unsafe { rvbpf::get_func_ip(ctx) }
}

unsafe extern "C" fn cookie(ctx: *const u64) -> u64 {
    // SAFETY: 1. the program's context.
    unsafe { rvbpf::get_attach_cookie(ctx) }
}

/// The tracing helpers with replacements, which are called.
fn called() -> Env {
    let env = Env::tracing();
    let arg = arg as unsafe extern "C" fn(*const u64, u32, *mut u64) -> i64;
    // SAFETY: 1. called as the helpers that they replace.
    let env = unsafe { env.helper(183, arg) };
    let mut env = env;
    for (id, func) in [(185, arg_cnt as One), (173, ip), (174, cookie)] {
        // SAFETY: as above.
        env = unsafe { env.helper(id, func) };
    }
    env
}

type One = unsafe extern "C" fn(*const u64) -> u64;

/// What a program finds in two calls of a thread, of which the first one goes the slow way.
fn seen<F: HookFn>(rt: &Runtime, func: F, prog: RawProg, call: fn()) -> Vec<u64> {
    // SAFETY: 1. the program ends. 2. It asks its helpers alone.
    let hooked = unsafe { hook(rt, func).raw(prog) }.attach().unwrap();
    let runs = std::thread::spawn(move || {
        let run = |()| {
            SEEN.iter()
                .for_each(|cell| cell.store(0xdead, Ordering::Relaxed));
            call();
            let seen = SEEN.iter().map(|cell| cell.load(Ordering::Relaxed));
            seen.collect::<Vec<u64>>()
        };
        [run(()), run(())]
    });
    let [slow, fast] = runs.join().unwrap();
    assert_eq!(slow, fast, "the slow path shows something else");
    hooked.detach().unwrap();
    fast
}

/// The answers for a function that was called with `args`.
fn want(ip: *const (), args: &[u64], ret: (u64, u64)) -> Vec<u64> {
    let mut want = vec![args.len() as u64, ip as u64, COOKIE, ret.0, ret.1];
    let constants = CONSTANTS.into_iter().map(|n| n as u32);
    let numbers = NUMBERS.iter().map(|n| n.load(Ordering::Relaxed) as u32);
    for n in constants.chain(numbers) {
        want.extend(match args.get(n as usize) {
            Some(arg) => [0, *arg],
            None => [INVALID, BEFORE as u64],
        });
    }
    want
}

fn check<F: HookFn + Copy>(func: F, addr: *const (), call: fn(), args: &[u64], ret: Option<u64>) {
    let rt = Runtime::new().unwrap();
    let program = question();
    let mut options = Options::default();
    for blinded in [false, true] {
        options.constant_blinding = blinded;
        for (way, env) in [("inline", Env::tracing()), ("called", called())] {
            let prog = rt.load_with(&program, &env, options).unwrap();
            let none = (UNSUPPORTED, BEFORE as u64);
            type Attach = fn(&BpfProg) -> RawProg;
            for (kind, attach, ret) in [
                ("fentry", BpfProg::fentry as Attach, none),
                ("fexit", BpfProg::fexit, ret.map_or(none, |ret| (0, ret))),
                // Nobody has decided before it.
                ("fmod_ret", BpfProg::fmod_ret, (0, 0)),
            ] {
                let got = seen(&rt, func, attach(&prog).cookie(COOKIE), call);
                let want = want(addr, args, ret);
                assert_eq!(got, want, "{way} {kind}, blinded: {blinded}");
            }
        }
    }
    assert_settled(&rt);
}

#[test]
fn functions_without_arguments() {
    let _one = serial();
    let errno: extern "C" fn() -> i32 = tl_get_errno;
    let call = || {
        testlib::functions::tl_set_errno(33);
        tl_get_errno();
    };
    check(errno, errno as *const (), call, &[], Some(33));
}

#[test]
fn functions_with_one_to_three_arguments() {
    let _one = serial();
    let fib: extern "C" fn(u64) -> u64 = tl_fib;
    let call = || {
        tl_fib(1);
    };
    check(fib, fib as *const (), call, &[1], Some(tl_fib(1)));
    let call = || {
        tl_add2(-20, 3);
    };
    let minus = |n: i64| n as u64;
    check(
        ADD2,
        ADD2 as *const (),
        call,
        &[minus(-20), 3],
        Some(minus(-17)),
    );
    let mul_add: extern "C" fn(f64, f32, f64) -> f64 = tl_mul_add;
    let call = || {
        tl_mul_add(2.0, 3.0, 4.0);
    };
    let boxed = 0xffff_ffff_0000_0000 | u64::from(3f32.to_bits());
    let args = [2f64.to_bits(), boxed, 4f64.to_bits()];
    check(
        mul_add,
        mul_add as *const (),
        call,
        &args,
        Some(10f64.to_bits()),
    );
}

#[test]
fn functions_with_arguments_on_the_stack() {
    let _one = serial();
    let call = || {
        weigh_from(5);
    };
    let args: Vec<u64> = (5..17).collect();
    let ret = weigh_from(5).1 as u64;
    check(WEIGH12, WEIGH12 as *const (), call, &args, Some(ret));
}

/// There is no return slot, and nothing is read that might be one.
#[test]
fn functions_that_return_nothing() {
    let _one = serial();
    let addr = ADD2 as *const ();
    // SAFETY: 1. a function of these arguments, whose result is not looked at.
    let add2 = unsafe { std::mem::transmute::<*const (), extern "C" fn(i32, i32)>(addr) };
    let call = || {
        tl_add2(1, 2);
    };
    check(add2, addr, call, &[1, 2], None);
}

/// `cell = 1000 * cell + r0 + 1`
fn append(b: &mut ProgramBuilder, cell: &AtomicU64) {
    b.ld_imm64(R7, cell.as_ptr().expose_provenance() as u64);
    b.load(Size::Dw, R2, R7, 0).alu(AluOp::Mul, R2, 1000);
    b.alu(AluOp::Add, R2, R0).alu(AluOp::Add, R2, 1);
    b.store(Size::Dw, R7, 0, R2);
}

/// A session finds zero before the function, whatever the stack held there.
#[test]
fn sessions_find_a_return_value_at_both_ends() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    static VALUES: AtomicU64 = AtomicU64::new(0);
    static ERRORS: AtomicU64 = AtomicU64::new(0);
    let mut b = ProgramBuilder::new();
    b.store(Size::Dw, R10, -8, BEFORE);
    b.mov(R2, R10).alu(AluOp::Add, R2, -8).call_helper(184);
    append(&mut b, &ERRORS);
    b.load(Size::Dw, R0, R10, -8);
    append(&mut b, &VALUES);
    b.mov(R0, 0).exit();
    let prog = rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap();
    // SAFETY: 1. the program ends. 2. It asks its helper alone.
    let hooked = unsafe { hook(&rt, ADD2).raw(prog.fsession()) }
        .attach()
        .unwrap();
    for _ in 0..2 {
        VALUES.store(0, Ordering::Relaxed);
        ERRORS.store(0, Ordering::Relaxed);
        assert_eq!(tl_add2(20, 3), 23);
        assert_eq!(VALUES.load(Ordering::Relaxed), 1024);
        assert_eq!(ERRORS.load(Ordering::Relaxed), 1001);
    }
    hooked.detach().unwrap();
    drop((hooked, prog));
    assert_settled(&rt);
}

/// How many sessions have found at the end what they left at the beginning.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn session(ctx: *mut u64) -> u64 {
    // SAFETY: 1. a session program's context.
    let cookie = unsafe { session_cookie(ctx) };
    let mark = cookie.addr() as u64;
    // SAFETY: as above.
    if unsafe { session_is_return(ctx) } {
        // SAFETY: 1. its own 64 bits.
        let found = unsafe { cookie.read() } == mark;
        SESSIONS.fetch_add(found.into(), Ordering::Relaxed);
    } else {
        // SAFETY: as above.
        unsafe { cookie.write(mark) };
    }
    0
}

/// Every attachment of a program has its own cookie, and sessions keep theirs.
#[test]
fn attachments_have_cookies_of_their_own() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    static COOKIES: AtomicU64 = AtomicU64::new(0);
    let mut b = ProgramBuilder::new();
    b.call_helper(174);
    append(&mut b, &COOKIES);
    b.mov(R0, 0).exit();
    let prog = rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap();
    let mut builder = hook(&rt, ADD2);
    for prog in [
        prog.fentry().cookie(6),
        RawProg::fsession(session),
        prog.fentry(),
        prog.fmod_ret().cookie(4),
        prog.fexit().cookie(2),
        RawProg::fsession(session),
    ] {
        // SAFETY: 1. the programs end. 2. They look at what they ask for.
        builder = unsafe { builder.raw(prog) };
    }
    let hooked = builder.attach().unwrap();
    for _ in 0..2 {
        COOKIES.store(0, Ordering::Relaxed);
        SESSIONS.store(0, Ordering::Relaxed);
        assert_eq!(tl_add2(20, 3), 23);
        assert_eq!(COOKIES.load(Ordering::Relaxed), 7_001_005_003);
        assert_eq!(SESSIONS.load(Ordering::Relaxed), 2);
    }
    hooked.detach().unwrap();
    drop((hooked, prog));
    assert_settled(&rt);
}

/// A thread that may run on one hart alone finds that hart, in both forms of the number.
#[test]
fn a_thread_finds_its_hart() {
    let rt = Runtime::new().unwrap();
    let mut b = ProgramBuilder::new();
    b.call_helper(8).mov(R6, R0).call_helper(8);
    // Both halves of the first, the lower one of the second.
    b.alu(AluOp::Lsh, R6, 32).alu32(AluOp::Add, R0, 0);
    b.alu(AluOp::Or, R0, R6).exit();
    let prog = rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap();
    for hart in 0..common::harts() {
        let prog = prog.clone();
        let there = std::thread::spawn(move || {
            let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
            // SAFETY: 1. zeros are an empty set.
            let set = unsafe { set.assume_init_mut() };
            // SAFETY: 1. below the size of a set.
            unsafe { libc::CPU_SET(hart, set) };
            // SAFETY: 1. a set of that size.
            let moved = unsafe { libc::sched_setaffinity(0, size_of_val(set), set) };
            // SAFETY: 1. the program asks its helper alone.
            (moved, unsafe { prog.run([0; 5]) }.unwrap())
        });
        let want = (0, (hart as u64) << 32 | hart as u64);
        assert_eq!(there.join().unwrap(), want);
    }
}
