//! Shows what a program becomes: BPF and RV64 side by side.
//!
//! ```text
//! cargo xtask run -- --example bpf_dump              a program that is built in
//! cargo xtask run -- --example bpf_dump b700000001000000 9500000000000000
//! ```
//!
//! Hex is of 8-byte little-endian instructions, as in an object's section. On riscv64 the program
//! is loaded, and shown as it is in its pack; elsewhere it is compiled for an address.

use std::error::Error;

use rvbpf::bpf::BpfReg::{R0, R1, R2, R3, R6};
use rvbpf::bpf::{
    AluOp, Callee, Compiled, Cond, Env, LineInfo, Op, Options, Program, ProgramBuilder, Size,
};
use rvbpf::{Runtime, RxAddr};

fn main() -> Result<(), Box<dyn Error>> {
    let hex: String = std::env::args().skip(1).collect();
    let program = match hex.is_empty() {
        true => built_in()?,
        false => Program::from_bytes(&bytes_of(&hex)?)?,
    };
    print!("{}", compiled(&program)?.dump());
    Ok(())
}

fn compiled(program: &Program) -> Result<Compiled, Box<dyn Error>> {
    // Helpers by number have to be there; which they are does not matter here.
    let env = Env::tracing();
    if cfg!(target_arch = "riscv64") {
        let loaded = Runtime::new()?.load(program, &env)?;
        return Ok(loaded.compiled().clone());
    }
    let base = RxAddr::new(0x3f_8000_0000);
    Ok(program.compile(&env, Options::default(), base)?)
}

/// Sums the bytes at `r1`, `r2` of them, and mixes in the time.
fn built_in() -> Result<Program, Box<dyn Error>> {
    let source = [
        (0, 3, "long sum = 0;"),
        (1, 4, "while (len) {"),
        (2, 5, "sum += *data++;"),
        (5, 6, "len--;"),
        (7, 8, "return sum ^ bpf_ktime_get_ns();"),
    ];
    let mut b = ProgramBuilder::new();
    let (again, done) = (b.label(), b.label());
    b.mov(R0, 0).bind(again).branch(Cond::Eq, R2, 0, done);
    b.load(Size::B, R3, R1, 0).alu(AluOp::Add, R0, R3);
    b.alu(AluOp::Add, R1, 1).alu(AluOp::Sub, R2, 1).jump(again);
    b.bind(done).mov(R6, R0);
    b.op(Op::Call(Callee::Helper(KTIME_GET_NS)));
    b.alu(AluOp::Xor, R0, R6).exit();
    let line = |(insn, line, text): (usize, u32, &str)| LineInfo {
        insn,
        file: "sum.bpf.c".into(),
        line,
        column: 0,
        text: Some(text.into()),
    };
    let program = b.finish()?.with_name("sum");
    Ok(program.with_line_info(source.map(line).into())?)
}

/// `bpf_ktime_get_ns`.
const KTIME_GET_NS: i32 = 5;

fn bytes_of(hex: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    if hex.len() % 2 != 0 || !hex.is_ascii() {
        return Err("the hex has half a byte too much, or other letters than hex".into());
    }
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16);
    Ok((0..hex.len())
        .step_by(2)
        .map(byte)
        .collect::<Result<_, _>>()?)
}
