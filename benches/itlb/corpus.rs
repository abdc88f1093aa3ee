//! The programs that are called: BPF without a branch, compiled.
//!
//! Sizes are spread log-uniformly over [`SIZES`]: as many programs between 64 and 128 bytes as
//! between 512 and 1,024. They go by the golden ratio, so that any number of programs has about the
//! same mixture (R. C. Richtmyer's sequence), and numbers of programs can be compared. Since a
//! program has no branch, a call executes all of it once, from its first byte to its last, which is
//! how the model knows the addresses that are executed; and since it refers to no address, it is
//! compiled once and runs wherever it is copied. [`Corpus::new`] looks that both is so. A program
//! returns its number, so that the sum of the results tells whether the right ones were called.
//!
//! Key type: [`Corpus`]. Neighbour: `place` puts them into packs.

use std::ops::RangeInclusive;

use rvbpf::RxAddr;
use rvbpf::bpf::{AluOp, BpfReg::*, Env, Options, Program, ProgramBuilder};

use super::Error;

/// Of what sizes programs are, in bytes, but for eight at most.
pub(crate) const SIZES: RangeInclusive<u64> = 64..=1024;

/// Machine code, by number of the program.
#[derive(Debug)]
pub(crate) struct Corpus {
    codes: Vec<Vec<u8>>,
}

impl Corpus {
    pub(crate) fn new(nr_programs: usize) -> Result<Self, Error> {
        let codes = (0..nr_programs as u32)
            .map(|number| code(number, size_bytes(number)))
            .collect::<Result<_, _>>()?;
        Ok(Self { codes })
    }

    /// The code of a program.
    pub(crate) fn code(&self, number: u32) -> &[u8] {
        &self.codes[number as usize]
    }

    /// How many instructions a call of it executes.
    pub(crate) fn nr_insns(&self, number: u32) -> u64 {
        lengths(self.code(number)).count() as u64
    }

    /// The smallest size, the median, the largest, in bytes.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        let mut sizes: Vec<usize> = self.codes.iter().map(Vec::len).collect();
        sizes.sort_unstable();
        let at = |index: usize| sizes.get(index).copied().unwrap_or_default();
        (
            at(0),
            at(sizes.len() / 2),
            at(sizes.len().saturating_sub(1)),
        )
    }
}

/// How large a program shall be; the first is the median.
fn size_bytes(number: u32) -> u64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let (low, high) = (*SIZES.start() as f64, *SIZES.end() as f64);
    let part = (0.5 + f64::from(number) * GOLDEN).fract();
    (low * (high / low).powf(part)) as u64
}

/// A program of about `size_bytes`.
fn code(number: u32, size_bytes: u64) -> Result<Vec<u8>, Error> {
    /// What the copy at the start, the number at the end and the return take, about.
    const REST_BYTES: u64 = 10;
    let ops = [AluOp::Add, AluOp::Xor, AluOp::Or, AluOp::Sub, AluOp::And];
    let mut b = ProgramBuilder::new();
    // The arguments are 0, and so is all else until the number is added.
    b.mov(R0, R1);
    let nr_ops = size_bytes.saturating_sub(REST_BYTES) / 2;
    for index in 0..nr_ops as usize {
        let source = if index % 2 == 0 { R1 } else { R2 };
        b.alu(ops[index % ops.len()], R0, source);
    }
    b.alu(AluOp::Add, R0, number as i32).exit();
    let program = b.finish()?;
    let code = compiled(&program, 0)?;
    let last = lengths(&code).last().map_or(&[][..], |at| &code[at..]);
    if code != compiled(&program, 1 << 32)? || !is_ret(last) {
        return Err(Error::CodeNotPlain { number });
    }
    Ok(code)
}

fn compiled(program: &Program, base: u64) -> Result<Vec<u8>, Error> {
    let compiled = program.compile(&Env::default(), Options::default(), RxAddr::new(base))?;
    Ok(compiled.bytes().to_vec())
}

/// Where each instruction starts.
fn lengths(code: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let next = |&at: &usize| {
        let first = *code.get(at)?;
        Some(at + if first & 3 == 3 { 4 } else { 2 })
    };
    std::iter::successors(Some(0), next).take_while(|&at| at < code.len())
}

/// `ret`, in either length.
fn is_ret(insn: &[u8]) -> bool {
    matches!(insn, [0x82, 0x80] | [0x67, 0x80, 0, 0])
}
