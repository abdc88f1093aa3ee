//! How long programs take to compile, here and through Cranelift: rows for `cargo xtask bench`.
//!
//! ```text
//! cargo xtask run --release -- -p rvbpf-peers --example compile            programs made here
//! cargo xtask run --release -- -p rvbpf-peers --example compile FILE.hex   and one of a file
//! cargo xtask run --release -- -p rvbpf-peers --example compile FILE.json  those of a file alone
//! ```
//!
//! A `.hex` file holds a program, 8-byte little-endian instructions; a `.json` file is an array of
//! `{"name", "insns"}`, each instruction a number: the corpus of `cargo xtask bench jit`.

use std::path::Path;

use rvbpf::bpf::BpfReg::{self, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use rvbpf::bpf::{AluOp, Cond, Program, ProgramBuilder, Size};
use rvbpf_peers::compile::{Row, compare};
use rvbpf_peers::cranelift::Error;
use serde::Deserialize;

fn main() -> Result<(), Error> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let mut programs = match files.iter().all(|file| file.ends_with(".json")) && !files.is_empty() {
        true => Vec::new(),
        false => own()?,
    };
    for file in &files {
        let text = std::fs::read_to_string(file)?;
        if file.ends_with(".json") {
            let sources: Vec<Source> = serde_json::from_str(&text)?;
            for source in sources {
                let bytes: Vec<u8> = source.insns.iter().flat_map(|i| i.to_le_bytes()).collect();
                programs.push((source.name, Program::from_bytes(&bytes)?));
            }
            continue;
        }
        let name = Path::new(file).file_stem().and_then(|stem| stem.to_str());
        let bytes = bytes_of(&text)?;
        programs.push((
            name.unwrap_or("file").to_owned(),
            Program::from_bytes(&bytes)?,
        ));
    }
    let (mut log_sum, mut nr_peers) = (0.0, 0);
    for (name, program) in &programs {
        let row: Row = compare(name, program)?;
        println!("{}", serde_json::to_string(&row)?);
        if let Some(theirs) = row.peer_value {
            log_sum += (theirs / row.value).ln();
            nr_peers += 1;
            let (insns, times) = (program.insns().len(), theirs / row.value);
            eprintln!("{name}: {insns} instructions, {times:.1} times as fast");
        }
    }
    if nr_peers != 0 {
        let mean = (log_sum / f64::from(nr_peers)).exp();
        eprintln!("geometric mean: {mean:.1} times as fast as Cranelift");
    }
    Ok(())
}

/// A program of a `.json` file.
#[derive(Deserialize)]
struct Source {
    name: String,
    insns: Vec<u64>,
}

/// The programs that are made here.
fn own() -> Result<Vec<(String, Program)>, Error> {
    Ok([
        ("sum", sum()?),
        ("mix", mix(100)?),
        ("mix-long", mix(2000)?),
        ("branches", branches(300)?),
        ("memory", memory(200)?),
    ]
    .map(|(name, program)| (name.to_owned(), program))
    .into())
}

/// The sum of 1 to `r1`.
fn sum() -> Result<Program, Error> {
    let mut b = ProgramBuilder::new();
    let (again, done) = (b.label(), b.label());
    b.mov(R0, 0).bind(again).branch(Cond::Eq, R1, 0, done);
    b.alu(AluOp::Add, R0, R1).alu(AluOp::Sub, R1, 1).jump(again);
    b.bind(done).exit();
    Ok(b.finish()?)
}

const ALL: [BpfReg; 9] = [R1, R2, R3, R4, R5, R6, R7, R8, R9];

fn all_set(b: &mut ProgramBuilder) {
    for (i, reg) in ALL.into_iter().enumerate() {
        b.mov(reg, 0x0123_4567 + i as i32);
    }
}

/// Arithmetic on all registers, as hashes have it.
fn mix(rounds: usize) -> Result<Program, Error> {
    const OPS: [AluOp; 6] = [
        AluOp::Add,
        AluOp::Xor,
        AluOp::Mul,
        AluOp::Sub,
        AluOp::Or,
        AluOp::Lsh,
    ];
    let mut b = ProgramBuilder::new();
    all_set(&mut b);
    for i in 0..rounds {
        let (dst, src, op) = (ALL[i % 9], ALL[(i * 4 + 1) % 9], OPS[i % 6]);
        match (op, i % 3) {
            (AluOp::Lsh, _) => b.alu(op, dst, (i % 31) as i32),
            (_, 0) => b.alu(op, dst, src),
            (_, 1) => b.alu32(op, dst, src),
            _ => b.alu(op, dst, i as i32 | 1),
        };
    }
    b.mov(R0, R1);
    for reg in ALL {
        b.alu(AluOp::Xor, R0, reg);
    }
    b.exit();
    Ok(b.finish()?)
}

/// Short blocks, each skipped or not.
fn branches(blocks: usize) -> Result<Program, Error> {
    const CONDS: [Cond; 4] = [Cond::Eq, Cond::Gt, Cond::Slt, Cond::Ne];
    let mut b = ProgramBuilder::new();
    all_set(&mut b);
    for i in 0..blocks {
        let skip = b.label();
        b.branch(CONDS[i % 4], ALL[i % 9], i as i32, skip);
        b.alu(AluOp::Add, ALL[(i + 1) % 9], ALL[(i + 5) % 9]);
        b.alu(AluOp::Xor, ALL[(i + 2) % 9], 77).bind(skip);
    }
    b.mov(R0, R1).exit();
    Ok(b.finish()?)
}

/// Loads and stores on the stack.
fn memory(rounds: usize) -> Result<Program, Error> {
    const SIZES: [Size; 4] = [Size::B, Size::H, Size::W, Size::Dw];
    let mut b = ProgramBuilder::new();
    all_set(&mut b);
    for i in 0..rounds {
        let (off, reg, size) = (-8 * (1 + i as i16 % 60), ALL[i % 9], SIZES[i % 4]);
        b.store(Size::Dw, R10, off, reg)
            .load(size, ALL[(i + 3) % 9], R10, off);
    }
    b.mov(R0, R1).exit();
    Ok(b.finish()?)
}

fn bytes_of(text: &str) -> Result<Vec<u8>, Error> {
    let hex: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |two: &[char]| u8::from_str_radix(&two.iter().collect::<String>(), 16);
    Ok(hex.chunks(2).map(byte).collect::<Result<_, _>>()?)
}
