//! What the compiler leaves for later comes out as it would have at once.
//!
//! Random sequences of what it fuses and leaves out: copies, shifts that are rotations or scale,
//! small additions, constants near each other, loads and stores through copies, in loops and
//! behind branches. They differ from those of `bpf_fuzz` in that few registers and amounts meet
//! again and again. Interpreted and compiled, all registers and all memory must agree.
//!
//! `RVBPF_FUZZ_PROGRAMS` says how many, for each set of extensions; 300 by default.
#![expect(unsafe_code, reason = "runs programs that access memory")]

use rvbpf::bpf::BpfReg::{self, R0, R1, R2, R3, R4, R5, R6, R7, R8, R10};
use rvbpf::bpf::{
    AluOp, Cond, Env, Extend, Fault, Imm64, Interpreter, Op, Operand, Options, Program, Size, Width,
};
use rvbpf::{Features, Runtime};

const BUDGET: u64 = 100_000;
/// The memory of a program; `r6` points to its beginning.
const WORDS: usize = 16;
/// What is computed with.
const VALUES: [BpfReg; 6] = [R0, R1, R2, R3, R4, R5];
const BASE: i32 = 0x1234_5678;

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

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

fn store(size: Size, dst: BpfReg, off: i16, src: impl Into<Operand>) -> Op {
    let src = src.into();
    Op::Store {
        size,
        dst,
        off,
        src,
    }
}

/// A few instructions that belong together.
fn some(rng: &mut Rng, ops: &mut Vec<Op>) {
    let (a, b) = (rng.of(&VALUES), rng.of(&VALUES));
    let width = rng.of(&[Width::W32, Width::W64]);
    let amount = rng.of(&[1, 2, 3, 8, 13, 16, 19, 29, 30, 31, 32, 34, 51, 61]);
    match rng.below(14) {
        0 | 1 => ops.push(alu(AluOp::Mov, width, a, b)),
        2 => ops.push(alu(
            rng.of(&[AluOp::Lsh, AluOp::Rsh, AluOp::Arsh]),
            width,
            a,
            amount,
        )),
        3 => ops.push(alu(
            rng.of(&[AluOp::Add, AluOp::Sub]),
            width,
            a,
            rng.of(&[1, 8, -8, 2047, -2048, 4096, BASE]),
        )),
        4 | 5 => ops.push(alu(
            rng.of(&[
                AluOp::Add,
                AluOp::Or,
                AluOp::Xor,
                AluOp::Sub,
                AluOp::And,
                AluOp::Mul,
            ]),
            width,
            a,
            b,
        )),
        6 => ops.push(alu(
            rng.of(&[
                AluOp::And,
                AluOp::Or,
                AluOp::Xor,
                AluOp::Div,
                AluOp::Mod,
                AluOp::Mul,
            ]),
            width,
            a,
            rng.of(&[1, 7, 31, 255, 0xffff, BASE, BASE + 1, -1]),
        )),
        7 => {
            // Constants near each other, and halves of pointers.
            let imm = Imm64::Value(0x7f00_1234_5678 + rng.of(&[0, 8, 2000, 4000, 1 << 40]));
            ops.push(Op::LdImm64 { dst: a, imm });
        }
        8 => {
            // A rotation, in one of the forms that clang gives it, or nearly one.
            let bits = if width == Width::W32 { 32 } else { 64 };
            let (up, t) = (1 + rng.below(bits - 1) as i32, rng.of(&VALUES));
            let down = bits as i32 - up + i32::from(rng.below(8) == 0);
            ops.extend([
                alu(AluOp::Mov, width, t, a),
                alu(AluOp::Rsh, width, t, down.min(bits as i32 - 1)),
            ]);
            match rng.below(2) {
                0 => ops.extend([alu(AluOp::Lsh, width, a, up), alu(AluOp::Or, width, a, t)]),
                _ => ops.extend([
                    alu(AluOp::Mov, width, b, a),
                    alu(AluOp::Lsh, width, b, up),
                    alu(AluOp::Or, width, b, t),
                ]),
            }
        }
        12 => {
            // A register's old value beside its new one.
            let change = rng.of(&[AluOp::Add, AluOp::Lsh, AluOp::Rsh]);
            let (x, y) = rng.of(&[(a, b), (b, a)]);
            ops.extend([
                alu(AluOp::Mov, Width::W64, b, a),
                alu(change, width, a, amount),
                alu(rng.of(&[AluOp::Sub, AluOp::Xor, AluOp::Add]), width, x, y),
            ]);
        }
        13 => {
            // The same of a pointer, in memory.
            ops.extend([
                alu(AluOp::Mov, Width::W64, b, R6),
                alu(AluOp::Sub, Width::W64, b, R6),
                alu(AluOp::Mov, Width::W64, R7, R6),
                alu(AluOp::Mov, Width::W64, a, b),
                alu(AluOp::Add, Width::W64, b, 8),
                alu(AluOp::Add, Width::W64, R7, b),
                store(Size::Dw, R7, 16, a),
                store(Size::Dw, R7, 24, b),
            ]);
        }
        9 => {
            // The lower half, scaled, as an index.
            ops.extend([
                alu(AluOp::Mov, Width::W64, a, b),
                alu(AluOp::Lsh, Width::W64, a, 32),
                alu(
                    AluOp::Rsh,
                    Width::W64,
                    a,
                    rng.of(&[32, 31, 30, 29, 28, 33, 40]),
                ),
                alu(AluOp::Add, Width::W64, rng.of(&VALUES), a),
            ]);
        }
        10 => {
            // Through a copy of the pointer, or of the stack's.
            let place = rng.of(&[R6, R10]);
            let off = match place {
                R10 => -8 * (1 + rng.below(8) as i32),
                _ => 8 * rng.below(8) as i32,
            };
            let size = rng.of(&[Size::B, Size::H, Size::W, Size::Dw]);
            ops.extend([
                alu(AluOp::Mov, Width::W64, R7, place),
                alu(AluOp::Add, Width::W64, R7, off),
                load(size, a, R7, 0),
                store(size, R7, 0, b),
            ]);
        }
        _ => {
            let cond = rng.of(&[Cond::Eq, Cond::Gt, Cond::Sle, Cond::Set, Cond::Lt]);
            let src = rng.of(&[Operand::Reg(b), Operand::Imm(BASE), Operand::Imm(5)]);
            let branch = |off| Op::Branch {
                cond,
                width,
                dst: a,
                src,
                off,
            };
            let skipped = alu(AluOp::Mov, width, b, a);
            match rng.below(2) {
                0 => ops.extend([branch(1), skipped]),
                // Over a jump.
                _ => ops.extend([branch(1), Op::Jump { off: 1 }, skipped]),
            }
        }
    }
}

/// A loop of such, and all registers into memory.
fn program(seed: u64) -> Program {
    let mut rng = Rng(seed);
    let mut ops = vec![
        alu(AluOp::Mov, Width::W64, R6, R1),
        alu(AluOp::Mov, Width::W64, R8, 3),
    ];
    for (i, reg) in VALUES.into_iter().enumerate() {
        ops.push(load(Size::Dw, reg, R6, 8 * i as i16));
    }
    for i in 1..=8 {
        ops.push(store(Size::Dw, R10, -8 * i, i32::from(i) * 0x0101_0101));
    }
    let mut body = Vec::new();
    while body.len() < 30 {
        some(&mut rng, &mut body);
    }
    let slots: usize = body
        .iter()
        .map(|op| 1 + usize::from(op.encode().1.is_some()))
        .sum();
    ops.extend(body);
    ops.extend([
        alu(AluOp::Sub, Width::W64, R8, 1),
        Op::Branch {
            cond: Cond::Ne,
            width: Width::W64,
            dst: R8,
            src: Operand::Imm(0),
            off: -(slots as i16) - 2,
        },
    ]);
    for (i, reg) in VALUES.into_iter().enumerate() {
        ops.push(store(Size::Dw, R6, 64 + 8 * i as i16, reg));
    }
    ops.push(Op::Exit);
    let insns = ops.iter().flat_map(|op| {
        let (first, second) = op.encode();
        [Some(first), second].into_iter().flatten()
    });
    Program::new(insns.collect()).unwrap_or_else(|refusal| panic!("seed {seed}: {refusal}"))
}

fn memory(seed: u64) -> Vec<u64> {
    let mut rng = Rng(!seed);
    let edges = [
        0,
        1,
        u64::MAX,
        1 << 31,
        1 << 32,
        0xffff_ffff,
        0x8000_0000_0000_0000,
    ];
    let word = |_| match rng.below(2) {
        0 => rng.of(&edges),
        _ => rng.below(u64::MAX),
    };
    (0..WORDS).map(word).collect()
}

fn args(words: &mut [u64]) -> [u64; 5] {
    [words.as_mut_ptr().expose_provenance() as u64, 0, 0, 0, 0]
}

#[test]
fn fused_and_left_out_instructions_do_what_they_say() {
    let given = std::env::var("RVBPF_FUZZ_PROGRAMS").ok();
    let programs = given.map_or(300, |n| n.parse().expect("a number"));
    let env = Env::new();
    let runtime = cfg!(target_arch = "riscv64").then(|| Runtime::new().expect("a runtime"));
    let has = rvbpf::features();
    let all = Options::default();
    for seed in 0..programs {
        let program = program(seed);
        let interpreter = Interpreter::new(&program, &env).expect("it refers to nothing");
        let mut want = memory(seed);
        // SAFETY: 1. `program` accesses the words of its memory and of its stack.
        let r0 = unsafe { interpreter.run(args(&mut want), BUDGET) }.expect("it ends");
        let Some(runtime) = &runtime else { continue };
        for features in [Features::RV64GC, Features::U74, all.features] {
            let features = Features {
                zba: features.zba && has.zba,
                zbb: features.zbb && has.zbb,
                ..features
            };
            let mut options = Options::default();
            options.features = features;
            let code = runtime
                .load_with(&program, &env, options)
                .expect("it compiles");
            let mut got = memory(seed);
            // SAFETY: 1. as above; interpreted, it has come to its end.
            let compiled = unsafe { code.run(args(&mut got)) };
            let text = || program.disassemble();
            assert_eq!(compiled, Ok(r0), "seed {seed}, {features:?}\n{}", text());
            assert_eq!(got, want, "seed {seed}, {features:?}\n{}", text());
        }
    }
}
