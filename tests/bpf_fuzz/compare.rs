//! Both sides, and what differs.
//!
//! Key types: [`Machine`], which runs cases; [`Failure`]. Neighbours: `gen` makes cases, `shrink`
//! asks again and again.

#![expect(unsafe_code, reason = "runs programs")]

use std::fmt;
use std::time::Duration;

use rvbpf::bpf::{Budget, Env, Interpreter, LoadError, Options, Program, Refusal, Stop};
use rvbpf::{Features, Runtime};

use super::case::Case;
use super::check::{Flaw, check};
use super::crash::Watch;
use super::host;
use super::kernel::Way;

/// The most instructions of a run.
pub(crate) const BUDGET: u64 = 1_000_000;

/// Runs cases.
pub(crate) struct Machine {
    env: Env,
    /// Where compiled code can run.
    runtime: Option<Runtime>,
}

/// What a run leaves.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Outcome {
    pub(crate) r0: u64,
    pub(crate) words: Vec<u64>,
}

/// What is wrong with a case, or with who ran it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The generator's fault: the verifier refuses the program.
    Refused(Refusal),
    /// The generator's fault: the program is not fit to be compared.
    Flawed(Flaw),
    /// The generator's fault: it does not end.
    Endless(Stop),
    /// The interpreter's fault, or the program has got hold of an address.
    Again { first: Outcome, second: Outcome },
    /// The compiler refuses what the interpreter runs.
    Load(LoadError),
    /// The two sides have not done the same.
    Differs {
        interpreted: Outcome,
        compiled: Outcome,
    },
    /// The kernel has not done the same. Where its interpreter has and its compiled code has not,
    /// the fault is the kernel's.
    KernelDiffers {
        way: Way,
        interpreted: Outcome,
        kernel: Outcome,
    },
}

impl Failure {
    /// Whether a smaller case that fails thus shows the same fault.
    pub(crate) fn is_difference(&self) -> bool {
        matches!(
            self,
            Self::Differs { .. } | Self::Again { .. } | Self::KernelDiffers { .. }
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::Flawed(Flaw(at, what)) => write!(f, "instruction {at}: {what}"),
            Self::Endless(stop) => write!(f, "does not end: {stop}"),
            Self::Load(error) => write!(f, "is not compiled: {error}"),
            Self::Again { first, second } => {
                writeln!(f, "two runs in the interpreter differ:")?;
                differences(f, ("first", first), ("second", second))
            }
            Self::Differs {
                interpreted,
                compiled,
            } => {
                writeln!(f, "compiled code differs:")?;
                differences(f, ("interpreted", interpreted), ("compiled", compiled))
            }
            Self::KernelDiffers {
                way,
                interpreted,
                kernel,
            } => {
                writeln!(f, "the kernel ({way:?}) differs:")?;
                differences(f, ("interpreted", interpreted), ("kernel", kernel))
            }
        }
    }
}

fn differences(
    f: &mut fmt::Formatter<'_>,
    (a, first): (&str, &Outcome),
    (b, second): (&str, &Outcome),
) -> fmt::Result {
    let mut line = |what: &dyn fmt::Display, x: u64, y: u64| match x == y {
        true => Ok(()),
        false => writeln!(f, "  {what}: {a} {x:#018x}, {b} {y:#018x}"),
    };
    line(&"r0", first.r0, second.r0)?;
    for (i, (x, y)) in first.words.iter().zip(&second.words).enumerate() {
        line(&format_args!("memory at {}", 8 * i), *x, *y)?;
    }
    Ok(())
}

impl Machine {
    /// # Errors
    /// As [`Runtime::new`].
    pub(crate) fn new() -> Result<Self, rvbpf::Error> {
        let runtime = match cfg!(target_arch = "riscv64") {
            true => Some(Runtime::new()?),
            false => None,
        };
        Ok(Self {
            env: host::env(),
            runtime,
        })
    }

    /// Whether it compares with compiled code.
    pub(crate) fn compiles(&self) -> bool {
        self.runtime.is_some()
    }

    /// Runs a case on both sides; without a compiled one, twice on the other. Gives what it leaves.
    pub(crate) fn run(&self, case: &Case, features: Features) -> Result<Outcome, Failure> {
        let program = Program::new(case.insns()).map_err(Failure::Refused)?;
        check(&program).map_err(Failure::Flawed)?;
        let first = self.interpreted(case, &program)?;
        let Some(runtime) = &self.runtime else {
            // Addresses are not the same again.
            let _other: Vec<_> = (0..4).map(|_| Box::new([0_u64; 64])).collect();
            let second = self.interpreted(case, &program)?;
            return match first == second {
                true => Ok(first),
                false => Err(Failure::Again { first, second }),
            };
        };
        let compiled = self.compiled(runtime, case, &program, features)?;
        match first == compiled {
            true => Ok(first),
            false => Err(Failure::Differs {
                interpreted: first,
                compiled,
            }),
        }
    }

    fn interpreted(&self, case: &Case, program: &Program) -> Result<Outcome, Failure> {
        let interpreter = Interpreter::new(program, &self.env).map_err(Failure::Refused)?;
        let mut words = case.words.clone();
        let args = arguments(case, &mut words);
        // SAFETY:
        // 1. The generator keeps accesses inside `words` and the stack, and `shrink` lets be what
        //    does that (`Keep::Fixed`); `check` has seen that they go through addresses.
        // 2. Its host functions may be called with anything (`host`).
        let r0 = unsafe { interpreter.run(args, BUDGET) };
        let r0 = r0.map_err(Failure::Endless)?;
        Ok(Outcome { r0, words })
    }

    fn compiled(
        &self,
        runtime: &Runtime,
        case: &Case,
        program: &Program,
        features: Features,
    ) -> Result<Outcome, Failure> {
        let mut options = Options::default();
        options.features = features;
        // Every fourth program, which stays the same while it shrinks.
        options.constant_blinding = case.seed % 4 == 3;
        options.random_start = options.constant_blinding;
        // Budgets that none of them uses up, two times of three.
        options.budget = match case.seed % 3 {
            0 => None,
            1 => Some(Budget::Insns(1 << 40)),
            _ => Some(Budget::Time(Duration::from_secs(1 << 20))),
        };
        let code = runtime.load_with(program, &self.env, options);
        let code = code.map_err(Failure::Load)?;
        let mut words = case.words.clone();
        let args = arguments(case, &mut words);
        let watch = Watch::new(case.seed);
        // SAFETY: as in `interpreted`, where the program has ended.
        let r0 = unsafe { code.run(args) };
        let r0 = r0.expect("it has been interpreted in less than its budget");
        drop(watch);
        Ok(Outcome { r0, words })
    }
}

fn arguments(case: &Case, words: &mut [u64]) -> [u64; 5] {
    let addr = words.as_mut_ptr().expose_provenance() as u64;
    let [r3, r4, r5] = case.args;
    [addr, size_of_val(words) as u64, r3, r4, r5]
}

/// The sets of extensions to compile for that this machine has, by their names; each once.
pub(crate) fn feature_sets() -> Vec<(&'static str, Features)> {
    let has = rvbpf::features();
    let mut sets: Vec<(&str, Features)> = Vec::new();
    for (name, set) in [
        ("RV64GC", Features::RV64GC),
        ("U74", Features::U74),
        ("RVA22", Features::RVA22),
        ("RVA23", Features::RVA23),
        ("ALL", Features::ALL),
    ] {
        let set = both(set, has);
        if sets.iter().all(|(_, other)| *other != set) {
            sets.push((name, set));
        }
    }
    sets
}

fn both(a: Features, b: Features) -> Features {
    Features {
        c: a.c && b.c,
        zba: a.zba && b.zba,
        zbb: a.zbb && b.zbb,
        zbs: a.zbs && b.zbs,
        zicond: a.zicond && b.zicond,
        zacas: a.zacas && b.zacas,
        zabha: a.zabha && b.zabha,
        zcb: a.zcb && b.zcb,
        zicbop: a.zicbop && b.zicbop,
        zicfilp: a.zicfilp && b.zicfilp,
    }
}
