//! Programs of up to 1,000,000 instructions: checked and compiled in time linear in their length,
//! and run right, with branches and calls farther than RV64's own reach.

#![expect(unsafe_code, reason = "runs programs, and asks for a thread's time")]

use std::time::Duration;

#[cfg(target_arch = "riscv64")]
use rvbpf::Runtime;
use rvbpf::RxAddr;
use rvbpf::bpf::{
    AluOp, BpfInsn, BpfReg, Callee, Cond, Env, Imm64, Interpreter, MAX_INSNS, Op, Operand, Options,
    Program, Reason, Width,
};

use BpfReg::{R0, R1, R2, R3, R6};

/// Lengths to compare, and how often each is measured.
const LENGTHS: [(usize, usize); 3] = [(100_000, 3), (300_000, 2), (MAX_INSNS, 1)];

/// How many times more than in proportion a long program may take: short ones stay in caches, and
/// need no new pages. Time that grows with the square would be ten times too much.
const SLACK: u32 = 4;

/// Makes a program of about so many instructions, and not more.
type Shape = fn(usize) -> Vec<Op>;

/// Those with something far away in them come first.
const SHAPES: [(&str, Shape); 5] = [
    ("branches", branches),
    ("functions", functions),
    ("straight", straight),
    ("loops", loops),
    ("constants", constants),
];

/// How many of them run, and how many are timed. In a VM instructions take thirty times as long.
const RUN: usize = if cfg!(target_arch = "riscv64") { 2 } else { 5 };
const TIMED: usize = if cfg!(target_arch = "riscv64") { 1 } else { 5 };

fn alu(op: AluOp, width: Width, dst: BpfReg, src: Operand) -> Op {
    Op::Alu {
        op,
        width,
        dst,
        src,
    }
}

fn set(dst: BpfReg, imm: i32) -> Op {
    alu(AluOp::Mov, Width::W64, dst, Operand::Imm(imm))
}

/// Something that changes `r0`, and is not the same everywhere.
fn mix(at: usize) -> Op {
    let imm = Operand::Imm((at as i32).wrapping_mul(0x9e37_79b1_u32 as i32));
    match at % 5 {
        0 => alu(AluOp::Add, Width::W64, R0, imm),
        1 => alu(AluOp::Xor, Width::W32, R0, imm),
        2 => alu(AluOp::Mul, Width::W64, R0, Operand::Imm(0x61c8_8647)),
        3 => alu(AluOp::Add, Width::W64, R0, Operand::Reg(R2)),
        _ => alu(AluOp::Xor, Width::W64, R2, Operand::Reg(R0)),
    }
}

fn start() -> Vec<Op> {
    vec![set(R0, 1), set(R2, 2), set(R3, 3)]
}

fn straight(len: usize) -> Vec<Op> {
    let mut ops = start();
    ops.extend((ops.len()..len - 1).map(mix));
    ops.push(Op::Exit);
    ops
}

/// From the start to the end, back to the middle of the start, and on, with branches as far as they
/// go and near ones.
fn branches(len: usize) -> Vec<Op> {
    let mut ops = start();
    let first = ops.len();
    // To the last but two, which comes back behind this one.
    ops.push(Op::Jump {
        off: (len - 3 - first - 1) as i32,
    });
    while ops.len() < len - 3 {
        let at = ops.len();
        let far = i16::MAX as usize;
        let by = match at % 64 {
            0 => 3,
            32 => far,
            _ => {
                ops.push(mix(at));
                continue;
            }
        };
        ops.push(Op::Branch {
            cond: [Cond::Eq, Cond::Sgt, Cond::Set, Cond::Lt][at / 32 % 4],
            width: [Width::W64, Width::W32][at / 128 % 2],
            dst: R0,
            src: Operand::Imm(at as i32),
            off: by.min((len - 5).saturating_sub(at)) as i16,
        });
    }
    // Over the way back, at the end of the way there.
    let last = ops.len() - 1;
    ops[last] = Op::Jump { off: 2 };
    ops.push(set(R3, 4));
    ops.push(Op::Jump {
        off: first as i32 + 1 - (len as i32 - 2) - 1,
    });
    ops.push(Op::Exit);
    ops
}

/// A call of each of many functions, none of which calls.
fn functions(len: usize) -> Vec<Op> {
    const FUNC: usize = 20;
    let count = (len - 5) / (FUNC + 3);
    let mut ops = vec![set(R6, 1)];
    let main = 1 + 3 * count + 2;
    for func in 0..count {
        let to = main + func * FUNC;
        ops.push(alu(AluOp::Mov, Width::W64, R1, Operand::Reg(R6)));
        ops.push(Op::Call(Callee::Local((to - ops.len() - 1) as i32)));
        ops.push(alu(AluOp::Xor, Width::W64, R6, Operand::Reg(R0)));
    }
    ops.push(alu(AluOp::Mov, Width::W64, R0, Operand::Reg(R6)));
    ops.push(Op::Exit);
    for func in 0..count {
        ops.push(alu(AluOp::Mov, Width::W64, R0, Operand::Reg(R1)));
        ops.push(set(R2, func as i32));
        ops.extend((0..FUNC - 3).map(|i| mix(7 * func + i)));
        ops.push(Op::Exit);
    }
    ops
}

/// Loops of three rounds, one after the other; each goes around an earlier number.
fn loops(len: usize) -> Vec<Op> {
    const BODY: usize = 8;
    let mut ops = start();
    while ops.len() + BODY + 4 < len {
        ops.push(set(R1, 3));
        let at = ops.len();
        ops.extend((at..at + BODY).map(mix));
        ops.push(alu(AluOp::Sub, Width::W64, R1, Operand::Imm(1)));
        ops.push(Op::Branch {
            cond: Cond::Ne,
            width: Width::W64,
            dst: R1,
            src: Operand::Imm(0),
            off: -(BODY as i16) - 2,
        });
    }
    ops.push(Op::Exit);
    ops
}

/// Constants of 64 bits, each of which counts as two.
fn constants(len: usize) -> Vec<Op> {
    let mut ops = start();
    let count = (len - ops.len() - 1) / 3;
    for i in 0..count as u64 {
        let imm = Imm64::Value(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        ops.push(Op::LdImm64 { dst: R2, imm });
        ops.push(alu(AluOp::Xor, Width::W64, R0, Operand::Reg(R2)));
    }
    ops.push(Op::Exit);
    ops
}

fn insns(ops: &[Op]) -> Vec<BpfInsn> {
    let halves = ops.iter().map(|op| op.encode());
    halves
        .flat_map(|(first, second)| std::iter::once(first).chain(second))
        .collect()
}

fn verified(shape: Shape, len: usize) -> Program {
    let insns = insns(&shape(len));
    assert!(
        insns.len() <= len && insns.len() + 30 > len,
        "{} of {len}",
        insns.len()
    );
    Program::new(insns).expect("it is well-formed")
}

/// How long this thread has had a processor: others do not count.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: 1. `time` is a place for a time.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(rc, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The least time of some.
fn best(times: usize, mut what: impl FnMut()) -> Duration {
    let once = |_| {
        let begin = thread_time();
        what();
        thread_time() - begin
    };
    (0..times).map(once).min().unwrap_or_default()
}

/// Time grows with the length, and not faster.
fn assert_linear(name: &str, work: impl Fn(usize) -> Box<dyn FnMut()>) {
    let took = LENGTHS.map(|(len, times)| (len, best(times, work(len))));
    println!("{name}: {took:?}");
    let (short, base) = took[0];
    for (len, time) in took {
        let most = base * SLACK * (len / short) as u32;
        assert!(
            time <= most,
            "{name}: {len} instructions took {time:?}, {short} {base:?}"
        );
    }
}

#[test]
fn slow_the_verifier_takes_time_linear_in_the_length() {
    for (name, shape) in &SHAPES[..TIMED] {
        assert_linear(name, |len| {
            let insns = insns(&shape(len));
            Box::new(move || drop(Program::new(insns.clone()).expect("it is well-formed")))
        });
    }
}

#[test]
fn slow_the_compiler_takes_time_linear_in_the_length() {
    for (name, shape) in &SHAPES[..TIMED] {
        assert_linear(name, |len| {
            let (program, env) = (verified(*shape, len), Env::new());
            let base = RxAddr::new(0x1000);
            let code = move || program.compile(&env, Options::default(), base);
            Box::new(move || drop(code().expect("it is compiled")))
        });
    }
}

#[test]
fn slow_programs_of_a_million_instructions_run() {
    for (name, shape) in &SHAPES[..RUN] {
        let (program, env) = (verified(*shape, MAX_INSNS), Env::new());
        let interpreter = Interpreter::new(&program, &env).expect("nothing is missing");
        // SAFETY: 1. no shape accesses memory or calls the host.
        let want = unsafe { interpreter.run([0; 5], 10 * MAX_INSNS as u64) };
        let want = want.expect("it ends");
        println!("{name}: {want:#x}");
        #[cfg(target_arch = "riscv64")]
        {
            let runtime = Runtime::new().expect("a runtime");
            let code = runtime.load(&program, &env).expect("it is compiled");
            let bytes = code.rx().len_bytes;
            println!("{name}: {bytes} bytes");
            assert!(
                bytes > 2 << 20,
                "{name}: no distance is far in {bytes} bytes"
            );
            // SAFETY: 1. as above.
            let got = unsafe { code.run([0; 5]) }.unwrap();
            assert_eq!(got, want, "{name}");
        }
    }
}

#[test]
fn one_more_is_too_long() {
    let mut ops = vec![set(R0, 0); MAX_INSNS];
    ops.push(Op::Exit);
    let reason = Program::new(insns(&ops)).map_err(|refusal| refusal.reason);
    let (insns_are, max) = (MAX_INSNS + 1, MAX_INSNS);
    let want = Reason::TooLong {
        insns: insns_are,
        max,
    };
    assert_eq!(reason.err(), Some(want));
}
