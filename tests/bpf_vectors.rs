//! Conformance vectors of RFC 9669, run through the interpreter and, where it runs, through
//! compiled code, plain and hardened.
//!
//! The vectors are written as rows under `tests/bpf`, with expected results taken from the RFC and
//! an encoder of their own; `tests/data/rfc9669.jsonl` is what the rows come to, for other
//! runners. After a change of the rows:
//! `cargo test -p rvbpf --test bpf_vectors -- --ignored update_vectors`.

#![expect(unsafe_code, reason = "runs programs that access memory")]

#[path = "bpf/mod.rs"]
mod bpf;

use std::collections::BTreeSet;
use std::path::PathBuf;

use rvbpf::bpf::{Env, Interpreter, LoadError, Options, Program, Reason};
use rvbpf::{Features, Runtime};

use bpf::table::{Vector, bytes_of_hex};

/// More instructions than any vector executes.
const BUDGET: u64 = 10_000;

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/rfc9669.jsonl")
}

fn text_of(vectors: &[Vector]) -> String {
    let line = |v| serde_json::to_string(v).expect("a vector is plain text") + "\n";
    vectors.iter().map(line).collect()
}

fn file_text() -> String {
    std::fs::read_to_string(file()).expect("the file of vectors is there")
}

/// The kind of a refusal, in the words of the `error` field.
fn kind(reason: &Reason) -> &'static str {
    match reason {
        Reason::Empty => "empty",
        Reason::OddBytes { .. } => "odd bytes",
        Reason::UnknownOpcode { .. } => "unknown opcode",
        Reason::Legacy { .. } => "legacy",
        Reason::BadRegister { .. } => "bad register",
        Reason::Reserved { .. } => "reserved field",
        Reason::Truncated => "truncated",
        Reason::JumpOut { .. } => "jump out",
        Reason::JumpIntoConstant { .. } => "jump into constant",
        Reason::FallThrough => "fall through",
        Reason::WritesFrame => "writes r10",
        Reason::StackBounds { .. } => "stack bounds",
        Reason::StackDepth { .. } => "stack depth",
        Reason::CallDepth { .. } => "call depth",
        Reason::Recursion => "recursion",
        Reason::Unreachable => "unreachable",
        Reason::Unset { .. } => "unset register",
        Reason::NoHelper { .. } => "no helper",
        Reason::NoHostFunction { .. } => "no host function",
        Reason::NoObject { .. } => "no object",
        Reason::ValueBounds { .. } => "value bounds",
        Reason::NoArena => "no arena",
        Reason::NoTable => "no table",
        Reason::TableTarget { .. } => "table target",
        Reason::TableTwice { .. } => "table twice",
        Reason::Unsupported { .. } => "unsupported",
        _ => "something else",
    }
}

/// What became of a vector, as its fields `r0` and `error` tell it.
fn outcome(vector: &Vector) -> (String, String) {
    match run(vector) {
        Ok(r0) => (format!("{r0:#x}"), String::new()),
        Err(error) => ("0x0".to_owned(), error),
    }
}

fn run(vector: &Vector) -> Result<u64, String> {
    let refused = |refusal: rvbpf::bpf::Refusal| kind(&refusal.reason).to_owned();
    let program = Program::from_bytes(&bytes_of_hex(&vector.insns)).map_err(refused)?;
    let env = Env::new();
    let interpreter = Interpreter::new(&program, &env).map_err(refused)?;
    let (mut mem, len) = memory(vector);
    // SAFETY: 1. A vector accesses its memory and its stack, within their bounds.
    unsafe { interpreter.run(arguments(&mut mem, len), BUDGET) }.map_err(|stop| stop.to_string())
}

/// A vector's memory, and how many bytes of it there are. Words, so that it is aligned for the
/// atomic instructions.
fn memory(vector: &Vector) -> (Vec<u64>, usize) {
    let bytes = bytes_of_hex(&vector.mem);
    (bytes.chunks(8).map(word).collect(), bytes.len())
}

fn arguments(mem: &mut [u64], len: usize) -> [u64; 5] {
    match len {
        0 => [0; 5],
        _ => {
            let addr = mem.as_mut_ptr().expose_provenance() as u64;
            [addr, len as u64, 0, 0, 0]
        }
    }
}

/// As [`run`], compiled. The interpreter has come to the end of it.
fn run_compiled(rt: &Runtime, vector: &Vector, options: Options) -> Result<u64, String> {
    let program = Program::from_bytes(&bytes_of_hex(&vector.insns))
        .map_err(|refusal| kind(&refusal.reason).to_owned())?;
    let code = rt.load_with(&program, &Env::new(), options);
    let code = code.map_err(|error| match error {
        LoadError::Refused(refusal) => kind(&refusal.reason).to_owned(),
        other => other.to_string(),
    })?;
    let (mut mem, len) = memory(vector);
    // SAFETY: 1. as in `run`.
    unsafe { code.run(arguments(&mut mem, len)) }.map_err(|stop| stop.to_string())
}

/// Every vector for the plainest machine and for this one.
fn check_compiled(harden: fn(&mut Options)) {
    if !cfg!(target_arch = "riscv64") {
        return;
    }
    let rt = Runtime::new().expect("a runtime");
    let (mut failed, mut ran) = (Vec::new(), 0);
    for features in [Features::RV64GC, rvbpf::features()] {
        let mut options = Options::default();
        options.features = features;
        harden(&mut options);
        for vector in bpf::vectors().iter().filter(|v| v.error.is_empty()) {
            let got = run_compiled(&rt, vector, options).map(|r0| format!("{r0:#x}"));
            ran += 1;
            if got.as_ref() != Ok(&vector.r0) {
                failed.push(format!("{}: {got:?}, not {}", vector.name, vector.r0));
            }
        }
    }
    assert!(ran > 0, "there are no vectors");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Up to eight bytes in the order of this machine's memory.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

#[test]
fn the_file_is_what_the_rows_come_to() {
    let rows = bpf::vectors();
    let names: BTreeSet<&str> = rows.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names.len(), rows.len(), "two vectors have the same name");
    let (want, file) = (text_of(&rows), file_text());
    for (row, line) in want.lines().zip(file.lines()) {
        assert_eq!(row, line, "run `update_vectors`");
    }
    assert!(
        want == file,
        "the file has more or fewer lines than there are rows: run `update_vectors`"
    );
}

#[test]
fn every_vector_passes_in_the_interpreter() {
    let mut failed = Vec::new();
    let mut ran = 0;
    for line in file_text().lines() {
        let vector: Vector = serde_json::from_str(line).expect("a line is a vector");
        let got = outcome(&vector);
        let want = (vector.r0, vector.error);
        ran += 1;
        if got != want {
            failed.push(format!("{}: {got:?} instead of {want:?}", vector.name));
        }
    }
    println!("{ran} vectors");
    assert!(ran > 0, "the file is empty");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_vector_passes_compiled() {
    check_compiled(|_| {});
}

#[test]
fn every_vector_passes_hardened() {
    check_compiled(|options| {
        options.constant_blinding = true;
        options.random_start = true;
    });
}

#[test]
#[ignore = "writes tests/data/rfc9669.jsonl"]
fn update_vectors() {
    std::fs::write(file(), text_of(&bpf::vectors())).expect("the file can be written");
}
