//! Runs BPF vectors, one JSON object a line, through the interpreter and through compiled code:
//! `cargo xtask conformance FILE.jsonl`.
//!
//! | field | meaning |
//! | --- | --- |
//! | `name` | the vector's name |
//! | `insns` | the program: hex of 8-byte little-endian instructions |
//! | `mem` | hex of the memory that `r1` points to, with its length in `r2`; empty: both are 0 |
//! | `r0` | the expected `r0` |
//! | `error` | not empty: the program must be refused, or stop with an error |
#![expect(unsafe_code, reason = "runs the programs of the vectors")]

use std::process::ExitCode;

use rvbpf::Runtime;
use rvbpf::bpf::{BpfProg, Env, Interpreter, LoadError, Program};
use serde::Deserialize;

/// The most instructions of a vector; more is an endless loop.
const BUDGET: u64 = 100_000_000;

#[derive(Deserialize)]
struct Vector {
    name: String,
    insns: String,
    #[serde(default)]
    mem: String,
    #[serde(default)]
    r0: String,
    #[serde(default)]
    error: String,
}

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("say which vectors: conformance FILE.jsonl");
        return ExitCode::FAILURE;
    };
    match run(&path) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {path}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How many failed.
fn run(path: &str) -> Result<usize, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(path)?;
    let ways = Ways::new()?;
    let (mut passed, mut failed) = (0, 0);
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let vector: Vector =
            serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1))?;
        match ways.check(&vector) {
            Ok(()) => passed += 1,
            Err(why) => {
                failed += 1;
                println!("FAIL {}: {why}", vector.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed)
}

/// The ways in which this host can run a program.
struct Ways {
    env: Env,
    /// Where compiled code runs.
    runtime: Option<Runtime>,
}

impl Ways {
    fn new() -> Result<Self, rvbpf::Error> {
        let runtime = match cfg!(target_arch = "riscv64") {
            true => Some(Runtime::new()?),
            false => {
                println!("this host is not riscv64: interpreted only");
                None
            }
        };
        Ok(Self {
            env: Env::new(),
            runtime,
        })
    }

    fn check(&self, vector: &Vector) -> Result<(), String> {
        let insns = hex(&vector.insns)?;
        let mem = hex(&vector.mem)?;
        let program = Program::from_bytes(&insns).map_err(|e| e.to_string());
        let interpreted = program
            .as_ref()
            .map_err(String::clone)
            .and_then(|program| self.interpret(program, mem.clone()));
        expect("interpreted", vector, interpreted.clone())?;
        // A program that the interpreter does not bring to its end is not run without it.
        let (Some(runtime), Ok(program), Ok(_)) = (&self.runtime, &program, interpreted) else {
            return Ok(());
        };
        let loaded = runtime.load(program, &self.env);
        expect("compiled", vector, compiled(loaded, mem))
    }

    fn interpret(&self, program: &Program, mut mem: Vec<u8>) -> Result<u64, String> {
        let interpreter = Interpreter::new(program, &self.env).map_err(|e| e.to_string())?;
        // SAFETY: 1. the vectors keep to the memory that they are given.
        let r0 = unsafe { interpreter.run(args(&mut mem), BUDGET) };
        r0.map_err(|e| e.to_string())
    }
}

fn compiled(loaded: Result<BpfProg, LoadError>, mut mem: Vec<u8>) -> Result<u64, String> {
    let loaded = loaded.map_err(|e| e.to_string())?;
    // SAFETY: 1. as above, and the interpreter has come to its end.
    let r0 = unsafe { loaded.run(args(&mut mem)) };
    r0.map_err(|e| e.to_string())
}

fn args(mem: &mut [u8]) -> [u64; 5] {
    match mem.len() {
        0 => [0; 5],
        len => [mem.as_mut_ptr() as u64, len as u64, 0, 0, 0],
    }
}

fn expect(way: &str, vector: &Vector, got: Result<u64, String>) -> Result<(), String> {
    match (got, vector.error.is_empty()) {
        (Err(_), false) => Ok(()),
        (Ok(r0), false) => Err(format!("{way}: gave {r0:#x}, not an error")),
        (Err(error), true) => Err(format!("{way}: {error}")),
        (Ok(r0), true) => {
            let want = number(&vector.r0)?;
            match r0 == want {
                true => Ok(()),
                false => Err(format!("{way}: gave {r0:#x}, not {want:#x}")),
            }
        }
    }
}

/// Decimal, or hex after `0x`.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| format!("r0 is {text:?}: {e}"))
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    match digits {
        Some(digits) if digits.len() % 2 == 0 => Ok(digits
            .chunks_exact(2)
            .map(|pair| (pair[0] << 4 | pair[1]) as u8)
            .collect()),
        _ => Err(format!("{text:?} is no hex")),
    }
}
