//! Programs of many blocks, interpreted once and compiled for every set of extensions.
//!
//! A program is compiled as one function that calls nobody, or as one that does, which keeps its
//! registers elsewhere. Both sides work on the same memory, so that addresses are the same numbers;
//! all of it is compared.
//!
//! Key function: [`check`]. Neighbours: `block` makes the instructions.

use rvbpf::bpf::{BpfReg, Callee, Env, Interpreter, Op, Operand, Options, Program};
use rvbpf::{Features, Runtime};

use super::block::{AREA_WORDS, Arena, Block, mov};
use super::rng::Rng;

/// How often each block runs, with other operands.
const RUNS: u64 = 12;
/// The same where a set has a single extension.
const FEW_RUNS: usize = 4;
/// The blocks of one program.
const BLOCKS: usize = 1_500;
/// The memory that loads and stores go to.
const ARENA_WORDS: usize = 4096;

/// Whether the function with the blocks calls another.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Calls {
    Yes,
    No,
}

/// The sets of extensions that this machine can run code for: none, compressed ones, each other one
/// alone, two that only work together, all.
pub(crate) fn feature_sets() -> Vec<(&'static str, Features)> {
    let has = rvbpf::features();
    let gc = Features::RV64GC;
    let none = Features::RV64G;
    let all = [
        ("none", none, true),
        ("c", gc, true),
        ("zba", Features { zba: true, ..none }, has.zba),
        ("zbb", Features { zbb: true, ..none }, has.zbb),
        ("zbs", Features { zbs: true, ..none }, has.zbs),
        (
            "zicond",
            Features {
                zicond: true,
                ..none
            },
            has.zicond,
        ),
        (
            "zacas",
            Features {
                zacas: true,
                ..none
            },
            has.zacas,
        ),
        (
            "zabha",
            Features {
                zabha: true,
                ..none
            },
            has.zabha,
        ),
        ("c, zcb", Features { zcb: true, ..gc }, has.zcb),
        (
            "zacas, zabha",
            Features {
                zacas: true,
                zabha: true,
                ..none
            },
            has.zacas && has.zabha,
        ),
        ("all there are", has, has != gc),
    ];
    let here = all.into_iter().filter(|(_, _, here)| *here);
    here.map(|(name, set, _)| (name, set)).collect()
}

/// Compares what all blocks do.
pub(crate) fn check(blocks: &[Block]) {
    assert!(!blocks.is_empty());
    let runtime = Runtime::new().expect("a runtime");
    let sets = feature_sets();
    let mut seed = 0;
    for blocks in blocks.chunks(BLOCKS) {
        seed += RUNS;
        Bench::new(blocks, seed).compare(&runtime, &sets);
    }
    let names: Vec<_> = sets.iter().map(|(name, _)| *name).collect();
    println!("{} blocks, {RUNS} runs, for {names:?}", blocks.len());
}

/// A program and its memory.
struct Bench<'a> {
    blocks: &'a [Block],
    seed: u64,
    /// Areas, then the arena.
    memory: Vec<u64>,
}

impl<'a> Bench<'a> {
    fn new(blocks: &'a [Block], seed: u64) -> Self {
        let memory = vec![0; blocks.len() * AREA_WORDS + ARENA_WORDS];
        Self {
            blocks,
            seed,
            memory,
        }
    }

    fn program(&mut self, calls: Calls) -> Program {
        let addr = self.memory.as_mut_ptr().expose_provenance() as u64;
        let mut ops: Vec<Op> = BpfReg::ALL[..10]
            .iter()
            .map(|reg| mov(*reg, Operand::Imm(reg.index() as i32)))
            .collect();
        for (i, block) in self.blocks.iter().enumerate() {
            block.emit(addr + (8 * AREA_WORDS * i) as u64, &mut ops);
        }
        let end = [mov(BpfReg::R0, Operand::Imm(0)), Op::Exit];
        if calls == Calls::Yes {
            // Over what follows.
            ops.push(Op::Call(Callee::Local(end.len() as i32)));
            ops.extend(end);
        }
        ops.extend(end);
        let halves = ops.iter().map(|op| op.encode());
        let insns = halves.flat_map(|(first, second)| std::iter::once(first).chain(second));
        Program::new(insns.collect()).expect("a program of blocks is accepted")
    }

    /// Puts the operands of a run in.
    fn fill(&mut self, run: u64) {
        let rng = &mut Rng::new(self.seed + run);
        let (areas, arena) = self.memory.split_at_mut(self.blocks.len() * AREA_WORDS);
        arena.fill_with(|| rng.next());
        let arena = Arena {
            addr: arena.as_ptr().expose_provenance() as u64,
            words: arena,
        };
        for (block, area) in self.blocks.iter().zip(areas.chunks_mut(AREA_WORDS)) {
            block.fill(area, rng, arena);
        }
    }

    fn compare(&mut self, runtime: &Runtime, sets: &[(&str, Features)]) {
        let env = Env::new();
        let programs = [Calls::No, Calls::Yes].map(|calls| (calls, self.program(calls)));
        let interpreter = Interpreter::new(&programs[0].1, &env).expect("all is there");
        let mut wanted = Vec::new();
        for run in 0..RUNS {
            self.fill(run);
            // SAFETY:
            // 1. Blocks access their areas, places in the arena and the stack (`block`, `rows`).
            let ended = unsafe { interpreter.run([0; 5], u64::MAX) };
            assert_eq!(ended, Ok(0));
            wanted.push(self.memory.clone());
        }
        for (i, (name, features)) in sets.iter().enumerate() {
            // Where registers are has nothing to do with extensions but for compressed ones: sets
            // of one take turns.
            let is_first = [Features::RV64GC, rvbpf::features()].contains(features);
            let turn = (i + self.seed as usize / RUNS as usize) % 2;
            let (from, to, runs) = match is_first {
                true => (0, 2, RUNS as usize),
                false => (turn, turn + 1, FEW_RUNS),
            };
            for (calls, program) in &programs[from..to] {
                let mut options = Options::default();
                options.features = *features;
                let code = runtime.load_with(program, &env, options).expect("compiled");
                for (run, want) in wanted.iter().take(runs).enumerate() {
                    self.fill(run as u64);
                    // SAFETY: 1. as above.
                    let ended = unsafe { code.run([0; 5]) };
                    assert_eq!(ended, Ok(0));
                    if self.memory != *want {
                        let of = format!("for {name}, calls: {calls:?}");
                        panic!("{of}: {}", self.difference(run as u64, want));
                    }
                }
            }
        }
    }

    /// The first block that does something else, and what.
    fn difference(&mut self, run: u64, want: &[u64]) -> String {
        let got = self.memory.clone();
        let at = got.iter().zip(want).position(|(a, b)| a != b);
        let at = at.unwrap_or_default();
        self.fill(run);
        match self.blocks.get(at / AREA_WORDS) {
            Some(block) => format!(
                "{block:x?}\noperands {:#x?}\nword {}: interpreted {:#x}, compiled {:#x}",
                &self.memory[at / AREA_WORDS * AREA_WORDS..][..3],
                at % AREA_WORDS,
                want[at],
                got[at]
            ),
            None => {
                let at = at - self.blocks.len() * AREA_WORDS;
                format!("the arena differs at byte {}", 8 * at)
            }
        }
    }
}
