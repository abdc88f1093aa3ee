//! Blinded constants and random starts.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "runs programs and reads their code")]

mod common;

use std::collections::BTreeSet;

use common::assert_settled;
use rvbpf::bpf::BpfReg::{R0, R1};
use rvbpf::bpf::{AluOp, BpfProg, Cond, Env, Options, Program, ProgramBuilder, Size};
use rvbpf::{Features, Runtime};

/// The bytes from `before` the program to `behind` it, which must be in its chunks.
fn code(prog: &BpfProg, before: usize, behind: usize) -> Vec<u8> {
    let start = prog.rx().start.get() as usize - before;
    let byte = |i| {
        let at = std::ptr::with_exposed_provenance::<u8>(start + i);
        // SAFETY: 1. in a pack, which can be read; volatile, since others change it.
        unsafe { at.read_volatile() }
    };
    (0..before + prog.rx().len_bytes + behind)
        .map(byte)
        .collect()
}

fn options(constant_blinding: bool, random_start: bool) -> Options {
    let mut options = Options::default();
    options.constant_blinding = constant_blinding;
    options.random_start = random_start;
    options
}

const WIDE: u64 = 0x1357_9bdf_0246_8ace;
const WORD: i32 = 0x2b4d_6f71;

/// `r0` of the address of a word.
fn program() -> Program {
    let mut b = ProgramBuilder::new();
    let (other, end) = (b.label(), b.label());
    b.ld_imm64(R0, WIDE).alu(AluOp::Xor, R0, WORD);
    b.store(Size::W, R1, 0, WORD).load(Size::W, R1, R1, 0);
    b.branch32(Cond::Ne, R1, WORD, other)
        .alu(AluOp::Mul, R0, WORD)
        .jump(end);
    b.bind(other).mov(R0, WORD);
    b.bind(end).exit();
    b.finish().unwrap()
}

fn run(prog: &BpfProg) -> u64 {
    let mut word = 0u64;
    let at = (&raw mut word).expose_provenance() as u64;
    // SAFETY: 1. it writes and reads that word.
    unsafe { prog.run([at, 0, 0, 0, 0]) }.unwrap()
}

/// The constants that sequences of `lui`, `addi` and shifts make, the last of each.
fn constants(code: &[u8]) -> BTreeSet<u64> {
    let (mut at, mut made, mut regs) = (0, BTreeSet::new(), [None; 32]);
    regs[0] = Some(0);
    while let Ok((insn, len)) = rv64::Insn::decode_at(&code[at..]) {
        at += len;
        let text = insn.to_string();
        let mut words = text.split([' ', ',']).filter(|word| !word.is_empty());
        let (op, rd) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let rest: Vec<&str> = words.collect();
        let Some(rd) = number(rd) else { continue };
        let imm = |i: usize| rest.get(i).and_then(|word| signed(word));
        let rs = rest
            .first()
            .and_then(|word| number(word))
            .and_then(|rs| regs[rs]);
        let value = match op {
            "lui" => imm(0).map(|imm| i64::from((imm << 12) as i32)),
            "li" => imm(0),
            "addi" => rs
                .zip(imm(1))
                .map(|(rs, imm): (i64, i64)| rs.wrapping_add(imm)),
            "addiw" => rs
                .zip(imm(1))
                .map(|(rs, imm)| i64::from(rs.wrapping_add(imm) as i32)),
            "slli" => rs.zip(imm(1)).map(|(rs, by)| rs << by),
            _ => None,
        };
        regs[rd] = value;
        regs[0] = Some(0);
        made.extend(value.map(|value| value as u64));
    }
    made
}

fn number(name: &str) -> Option<usize> {
    rv64::Reg::ALL
        .into_iter()
        .find(|reg| reg.to_string() == name)
        .map(|reg| reg.num() as usize)
}

fn signed(word: &str) -> Option<i64> {
    match word.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

#[test]
fn blinded_constants_are_not_in_the_code() {
    let rt = Runtime::new().unwrap();
    let (program, env) = (program(), Env::new());
    let chosen = [WIDE, WORD as u64];
    // What extensions make constants with, `constants` does not follow.
    let options = |constant_blinding| {
        let mut options = options(constant_blinding, false);
        options.features = Features::RV64GC;
        options
    };
    let plain = rt.load_with(&program, &env, options(false)).unwrap();
    let want = (WIDE ^ WORD as u64).wrapping_mul(WORD as u64);
    assert_eq!(run(&plain), want);
    let made = constants(&code(&plain, 0, 0));
    // So the search finds what is there.
    assert!(chosen.iter().all(|c| made.contains(c)), "{made:x?}");
    let mut codes = BTreeSet::new();
    for _ in 0..16 {
        let prog = rt.load_with(&program, &env, options(true)).unwrap();
        assert_eq!(run(&prog), want);
        let code = code(&prog, 0, 0);
        let made = constants(&code);
        assert!(!chosen.iter().any(|c| made.contains(c)), "{made:x?}");
        for word in [WORD.to_le_bytes(), (WIDE as u32).to_le_bytes()] {
            assert!(!code.windows(4).any(|bytes| bytes == word));
        }
        codes.insert(code);
    }
    assert_eq!(codes.len(), 16, "the keys are the same again");
    drop(plain);
    assert_settled(&rt);
}

#[test]
fn programs_begin_anywhere_in_their_chunks() {
    let rt = Runtime::new().unwrap();
    let (program, env) = (program(), Env::new());
    let fresh = rt.stats().packs.nr_chunks_used;
    let plain = rt.load_with(&program, &env, options(false, false)).unwrap();
    let want = run(&plain);
    drop(plain);
    for c in [true, false] {
        let mut starts = BTreeSet::new();
        for _ in 0..64 {
            let mut options = options(false, true);
            options.features = Features {
                c,
                ..options.features
            };
            let prog = rt.load_with(&program, &env, options).unwrap();
            let chunks = rt.stats().packs.nr_chunks_used - fresh;
            assert_eq!(run(&prog), want);
            let rx = prog.rx();
            assert_eq!(rx.start.get() % if c { 2 } else { 4 }, 0);
            // It is alone in the first chunks of its pack.
            let before = rx.start.get() as usize % (2 << 20);
            let behind = (64 * chunks).checked_sub(before + rx.len_bytes);
            let behind = behind.expect("it ends in its chunks");
            let bytes = code(&prog, before, behind);
            assert!(bytes[..before].iter().all(|b| *b == 0), "illegal before it");
            assert!(
                bytes[before + rx.len_bytes..].iter().all(|b| *b == 0),
                "and behind it"
            );
            starts.insert(before);
        }
        assert!(starts.len() > 8, "{starts:?}");
        assert!(starts.iter().any(|s| s % 64 != 0), "{starts:?}");
    }
    assert_settled(&rt);
}
