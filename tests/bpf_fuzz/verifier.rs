//! Programs that nobody has made to be accepted: none makes the library panic, and what the
//! verifier accepts can be disassembled, interpreted and compiled.
//!
//! | kind | bytes |
//! | --- | --- |
//! | `Noise` | any, of any length |
//! | `Insns` | instructions that exist, behind some that set all registers |
//! | `Mutant` | a program of `gen`, with a few changes |
//! | `Cut` | one that ends anywhere |
//! | `Long` | about as long as a program can be |
//!
//! What is accepted runs if that is sound: its accesses go through `r10`, whose bounds the verifier
//! has looked at, or yield zero where there is nothing. In half of the programs all accesses are
//! made so.
//!
//! Key functions: [`attempt`], [`survive`]. Neighbours: `gen` makes what is changed.

#![expect(unsafe_code, reason = "runs programs")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use rvbpf::RxAddr;
use rvbpf::bpf::{
    BpfInsn, BpfReg, Env, Fault, INSN_BYTES, Interpreter, LoadError, MAX_INSNS, Op, Options,
    Program, Stop,
};

use super::generate::case;
use super::rng::Rng;

/// The most instructions of a run.
const BUDGET: u64 = 20_000;
/// One program of so many is about as long as it can be.
const LONG_ONE_OF: usize = 4_000;
/// Classes of instructions; see RFC 9669, section 3.2.
const LDX: u8 = 1;
const ST: u8 = 2;
const STX: u8 = 3;
/// `mov64 dst, imm`.
const MOV_IMM: u8 = 0xb7;
const EXIT: u8 = 0x95;
/// The mode of atomics, and the one of them that has its address in `src`.
const ATOMIC: u8 = 0xc0;
const LOAD_ACQ: i32 = 0x100;

/// How bytes were made.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub(crate) enum Kind {
    Noise,
    Insns,
    Mutant,
    Cut,
    Long,
}

/// What became of bytes.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub(crate) enum Fate {
    /// By the verifier.
    Refused,
    /// Accepted, but the environment does not have what it refers to.
    Lacks,
    /// Accepted and compiled; to run it might not be sound.
    Compiled,
    /// And run.
    Ran,
}

/// The bytes of a seed.
pub(crate) fn attempt(seed: u64) -> (Kind, Vec<u8>) {
    let rng = &mut Rng::new(seed);
    let kind = match rng.below(100) {
        _ if rng.below(LONG_ONE_OF) == 0 => Kind::Long,
        0..=9 => Kind::Noise,
        10..=54 => Kind::Insns,
        55..=94 => Kind::Mutant,
        _ => Kind::Cut,
    };
    let bytes = match kind {
        Kind::Noise => {
            let len = rng.below(400);
            (0..len).map(|_| rng.next() as u8).collect()
        }
        Kind::Insns => bytes_of(&existing(rng)),
        Kind::Mutant => bytes_of(&mutant(rng, seed)),
        Kind::Cut => {
            let mut bytes = bytes_of(&case(seed).insns());
            bytes.truncate(rng.below(bytes.len() + 1));
            bytes
        }
        Kind::Long => bytes_of(&long(rng)),
    };
    (kind, bytes)
}

fn bytes_of(insns: &[BpfInsn]) -> Vec<u8> {
    insns.iter().flat_map(|insn| insn.to_bytes()).collect()
}

/// An instruction that exists, with jumps of up to `reach`.
fn some_insn(rng: &mut Rng, reach: usize) -> BpfInsn {
    for _ in 0..200 {
        let imm = match rng.chance(50) {
            true => rng.pick(&[
                0, 1, 16, 32, 64, 0x40, 0x50, 0xa0, 0xe1, 0xf1, LOAD_ACQ, 0x110,
            ]),
            false => rng.imm(),
        };
        // Not so far that most programs are refused for it.
        let near = rng.between(0, reach) as i16 - (reach / 4) as i16;
        let insn = BpfInsn {
            code: rng.next() as u8,
            dst: rng.below(10) as u8,
            src: rng.pick(&[0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
            off: rng.pick(&[0, 0, 1, near, near, near, -8, 16]),
            imm,
        };
        if Op::decode(&[insn, BpfInsn::default()]).is_ok() {
            return insn;
        }
    }
    BpfInsn::default()
}

fn existing(rng: &mut Rng) -> Vec<BpfInsn> {
    let mut insns: Vec<BpfInsn> = (0..10)
        .map(|dst| BpfInsn {
            code: MOV_IMM,
            dst,
            imm: rng.imm(),
            ..BpfInsn::default()
        })
        .collect();
    let len = rng.between(1, 24);
    for at in 0..len {
        insns.push(some_insn(rng, len - at));
    }
    insns.push(BpfInsn {
        code: EXIT,
        ..BpfInsn::default()
    });
    if rng.chance(70) {
        insns.iter_mut().for_each(tame);
    }
    insns
}

fn mutant(rng: &mut Rng, seed: u64) -> Vec<BpfInsn> {
    let mut insns = case(seed).insns();
    if rng.chance(50) {
        insns.iter_mut().for_each(tame);
    }
    for _ in 0..rng.between(1, 4) {
        let at = rng.below(insns.len());
        let other = rng.below(insns.len());
        match rng.below(10) {
            0 => {
                insns.remove(at);
            }
            1 => insns.insert(at, insns[other]),
            2 => insns.swap(at, other),
            3 => insns[at] = some_insn(rng, 8),
            4 => insns[at].imm = rng.imm(),
            5 => insns[at].off = rng.imm() as i16,
            6 | 7 => {
                let by = rng.between(0, 6) as i16 - 3;
                insns[at].off = insns[at].off.wrapping_add(by);
            }
            8 => insns[at].dst = rng.below(16) as u8,
            _ => {
                let mut bytes = insns[at].to_bytes();
                bytes[rng.below(INSN_BYTES)] ^= 1 << rng.below(8);
                insns[at] = BpfInsn::from_bytes(bytes);
            }
        }
        if insns.is_empty() {
            break;
        }
    }
    insns
}

/// An access goes to the stack.
fn tame(insn: &mut BpfInsn) {
    let class = insn.code & 7;
    let is_acquire = insn.code & 0xe0 == ATOMIC && insn.imm == LOAD_ACQ;
    match class {
        LDX => insn.src = 10,
        STX if is_acquire => insn.src = 10,
        ST | STX => insn.dst = 10,
        _ => return,
    }
    insn.off = -8 - 8 * insn.off.rem_euclid(63);
}

/// Arithmetic, with jumps here and there.
fn long(rng: &mut Rng) -> Vec<BpfInsn> {
    let len = MAX_INSNS - 3 + rng.below(8);
    let mov = BpfInsn {
        code: MOV_IMM,
        ..BpfInsn::default()
    };
    let mut insns = vec![mov; len];
    for _ in 0..rng.below(4) {
        let at = rng.below(len);
        insns[at] = some_insn(rng, 1000);
    }
    insns[len - 1].code = EXIT;
    insns
}

/// Lets the library do all that it does with bytes; `Err`: what is wrong with it.
pub(crate) fn survive(env: &Env, bytes: &[u8]) -> Result<Fate, String> {
    match catch_unwind(AssertUnwindSafe(|| lives(env, bytes))) {
        Ok(fate) => fate,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

fn lives(env: &Env, bytes: &[u8]) -> Result<Fate, String> {
    let Ok(program) = Program::from_bytes(bytes) else {
        return Ok(Fate::Refused);
    };
    if program.disassemble().is_empty() {
        return Err("an accepted program without text".to_owned());
    }
    let interpreter = Interpreter::new(&program, env);
    let code = program.compile(env, Options::default(), RxAddr::new(0x1000));
    let interpreter = match (interpreter, code) {
        (Ok(interpreter), Ok(_)) => interpreter,
        (Err(a), Err(LoadError::Refused(b))) if a == b => return Ok(Fate::Lacks),
        (a, b) => {
            let (a, b) = (a.err(), b.err());
            return Err(format!("interpreter says {a:?}, compiler says {b:?}"));
        }
    };
    if !is_sound(&program) {
        return Ok(Fate::Compiled);
    }
    // SAFETY:
    // 1. `is_sound`: what is read and written is there.
    // 2. The functions of the environment may be called with anything (`host`).
    match unsafe { interpreter.run([0; 5], BUDGET) } {
        Ok(_) | Err(Stop::Budget { .. }) => Ok(Fate::Ran),
        Err(stop) => Err(format!("stops: {stop}")),
    }
}

/// Whether all accesses are in the stack, aligned where they must be, or may fault.
fn is_sound(program: &Program) -> bool {
    let is_atomic = |base: BpfReg, off: i16, bytes: u32| {
        base == BpfReg::R10 && i32::from(off).rem_euclid(bytes as i32) == 0
    };
    program.ops().iter().flatten().all(|op| match *op {
        Op::Load {
            fault: Fault::Zero, ..
        } => true,
        Op::Load { src, .. } => src == BpfReg::R10,
        Op::Store { dst, .. } => dst == BpfReg::R10,
        Op::LoadAcquire { size, src, off, .. } => is_atomic(src, off, size.bytes()),
        Op::StoreRelease { size, dst, off, .. } | Op::Atomic { size, dst, off, .. } => {
            is_atomic(dst, off, size.bytes())
        }
        _ => true,
    })
}

/// Fewer instructions that are wrong in the same way.
pub(crate) fn smaller(env: &Env, bytes: &[u8]) -> Vec<u8> {
    let mut best = bytes.to_vec();
    let mut many = (best.len() / INSN_BYTES).next_power_of_two() * INSN_BYTES;
    while many >= INSN_BYTES {
        let mut at = 0;
        while at < best.len() {
            let mut other = best.clone();
            other.drain(at..best.len().min(at + many));
            match survive(env, &other) {
                Err(_) => best = other,
                Ok(_) => at += many,
            }
        }
        many /= 2;
    }
    best
}

/// As it goes into a vector.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let digits = b"0123456789abcdef";
        text.push(char::from(digits[usize::from(byte >> 4)]));
        text.push(char::from(digits[usize::from(byte & 15)]));
        text
    })
}
