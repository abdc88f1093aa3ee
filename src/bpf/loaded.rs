//! A program as code in a pack.
//!
//! Key types: [`BpfProg`], [`Options`]. Neighbours: `jit` makes the code, `pack_alloc` holds it.

#![expect(unsafe_code, reason = "calls the code that was made")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::symbols::Published;
use pack_alloc::{Near, PackCode};
use rv64::Features;
use text::{RxAddr, RxRange};
use trampoline::Trampolines;

use super::array::{self, BudgetKind, Slots, kind_of};
use super::dump::Compiled;
use super::env::Env;
use super::error::{LoadError, Stop};
use super::faults::{self, Registered};
use super::jit::{Blind, Budget, Linked, Plan};
use super::objects::Objects;
use super::program::Program;
use super::tables::Tables;
use super::{entropy, helpers, jit, symbols};
use crate::exclusive::Exclusive;
use crate::raw::RawProg;
use crate::runtime::Runtime;
use trampoline::{Needs, Owner, Prog, ProgFn, ProgKind, RetFrom};

/// What a call's `auipc` reaches, less its rounding and the size of the code.
const REACH_BYTES: u64 = (1 << 31) - (64 << 20);

/// What a program that begins at a random place has around it, at least. Kernel:
/// `bpf_jit_binary_alloc`.
const SPARE_BYTES: usize = 128;

/// How a program is compiled.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// The extensions that the code may use; what this machine has, by default. Code for what it
    /// does not have ends in an illegal instruction.
    pub features: Features,
    /// How long a run may take; without a limit it costs nothing. Programs that go on in each other
    /// must have budgets of one kind, or none; that of the program that was entered first counts.
    /// When the host calls a function of the program back, that is a run of its own, with a budget
    /// of its own: if it is used up, the function returns 0.
    pub budget: Option<Budget>,
    /// No constant that the program's author chose is in the code as it was given: see
    /// `jit::blind`. Off by default: the code grows by two instructions and more for each.
    #[doc(alias = "bpf_jit_harden")]
    pub constant_blinding: bool,
    /// The program begins at a random place in its chunks, illegal instructions around it. Off by
    /// default: it takes two chunks more.
    pub random_start: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            features: crate::hwprobe::features(),
            budget: None,
            constant_blinding: false,
            random_start: false,
        }
    }
}

impl Options {
    /// For the compiler; `stops` counts the runs that the budget ends.
    pub(crate) fn plan<'a>(
        self,
        program: &Program,
        stops: &'a AtomicU64,
    ) -> Result<Plan<'a>, LoadError> {
        let keys = || entropy::words(program.ops().len()).map_err(LoadError::Random);
        Ok(Plan {
            features: self.features,
            blind: match self.constant_blinding {
                true => Some(Blind::new(keys()?)),
                false => None,
            },
            budget: self.budget,
            stops,
        })
    }
}

/// Where a program begins, so many bytes being left.
fn random_off(spare_bytes: usize, options: Options) -> Result<usize, LoadError> {
    if !options.random_start {
        return Ok(0);
    }
    let align = if options.features.c { 2 } else { 4 };
    let places = spare_bytes / align + 1;
    let words = entropy::words(1).map_err(LoadError::Random)?;
    Ok(words[0] as usize % places * align)
}

/// A compiled program. Clones share the code, which is freed with the last of them, and with the
/// last image that calls it. (A hook's program must not let go of the last one while it runs in the
/// midst of a change of hooks by its own thread, as on `malloc`: it would wait for itself.)
#[derive(Clone, Debug)]
pub struct BpfProg {
    code: Arc<Code>,
    /// What it must find in its context when it is attached.
    needs: Needs,
    /// Keeps the packs.
    runtime: Runtime,
}

/// Published code.
#[derive(Debug)]
struct Code {
    /// The first goes first: nobody looks up what is freed.
    _parts: Exclusive<(Published, Registered, PackCode)>,
    rx: RxRange,
    compiled: Compiled,
    /// Where tail calls arrive.
    inner: u64,
    /// It has accesses that may fault.
    may_fault: bool,
    budget: Option<Budget>,
    /// Runs that the budget has ended. The code counts.
    stops: Box<AtomicU64>,
    /// What the code looks into.
    _arrays: Vec<Arc<Slots>>,
    /// What constants of the program refer to, arenas among them.
    _objects: Objects,
    _tables: Tables,
}

impl BpfProg {
    pub(crate) fn load(
        runtime: &Runtime,
        program: &Program,
        env: &Env,
        options: Options,
    ) -> Result<Self, LoadError> {
        if !cfg!(target_arch = "riscv64") {
            return Err(LoadError::UnsupportedHost);
        }
        let stops = Box::new(AtomicU64::new(0));
        let object = jit::compile(program, env, options.plan(program, &stops)?)?;
        let kind = kind_of(options.budget);
        let tail_calls = env.controls(program).tail_calls;
        let arrays = match tail_calls {
            true => env.prog_arrays(),
            false => &[],
        };
        let max_bytes = object.max_bytes();
        let room_bytes = match options.random_start {
            true => (max_bytes + SPARE_BYTES).next_multiple_of(pack_alloc::CHUNK_BYTES),
            false => max_bytes,
        };
        let off = random_off(room_bytes - max_bytes, options)?;
        // Near the functions that it is likely to call.
        let near = Near::Within {
            of: RxAddr::new(Self::load as *const () as u64),
            reach_bytes: REACH_BYTES,
        };
        let packs = runtime.packs();
        let code = Trampolines::exclusively(|| -> Result<Code, LoadError> {
            arrays.iter().try_for_each(|array| array.agree(kind))?;
            let mut buf = packs.alloc(room_bytes, 64, near)?;
            let start = RxAddr::new(buf.rx().start.get() + off as u64);
            let Linked {
                bytes,
                probes,
                inner,
                places,
                tables,
            } = object.link(start.get())?;
            let len_bytes = bytes.len();
            buf.rw()[off..off + len_bytes].copy_from_slice(&bytes);
            let pack = packs.finalize(buf)?;
            let rx = RxRange::new(start, len_bytes);
            let may_fault = !probes.is_empty();
            let known = Registered::new(program.name(), rx, probes);
            let compiled = Compiled::new(program, start, bytes, places);
            let published = symbols::publish(&compiled, runtime.tools());
            arrays.iter().for_each(|array| array.adopt(kind));
            Ok(Code {
                _parts: Exclusive::new((published, known, pack)),
                rx,
                compiled,
                inner,
                may_fault,
                budget: options.budget,
                stops,
                _arrays: env
                    .prog_arrays()
                    .iter()
                    .map(|a| a.slots().clone())
                    .collect(),
                _objects: env.objects().clone(),
                _tables: tables,
            })
        })??;
        array::settle();
        Ok(Self {
            code: Arc::new(code),
            needs: match tail_calls {
                // Whatever it goes on in finds the context that it was given.
                true => Needs::META | Needs::IP | Needs::COOKIE | Needs::RET,
                false => helpers::needs(program),
            },
            runtime: runtime.clone(),
        })
    }

    /// Where the code is.
    #[must_use]
    pub fn rx(&self) -> RxRange {
        self.code.rx
    }

    /// What it was compiled from, and its code.
    #[must_use]
    pub fn compiled(&self) -> &Compiled {
        &self.code.compiled
    }

    /// BPF and RV64 side by side; see [`Compiled::dump`].
    #[must_use]
    #[doc(alias = "bpf_prog_dump_jited")]
    pub fn dump(&self) -> String {
        self.code.compiled.dump()
    }

    /// Runs it with `r1` to `r5`; gives `r0`.
    ///
    /// # Errors
    /// [`Stop::Budget`] or [`Stop::Time`], if it was loaded with a [`Budget`].
    ///
    /// # Safety
    /// 1. The program's loads, stores and calls, with these arguments, are sound, and those of the
    ///    programs that it goes on in; without a budget it ends.
    /// 2. No function of the program that the host calls back, or whose address it keeps in memory,
    ///    leads back to itself: that would use up the thread's stack, whatever the budget.
    pub unsafe fn run(&self, args: [u64; 5]) -> Result<u64, Stop> {
        /// What two registers return.
        #[repr(C)]
        struct Outcome {
            r0: u64,
            /// With a budget: 0, or one more than the instruction where it was used up.
            stopped: u64,
        }
        type Entry = unsafe extern "C" fn(u64, u64, u64, u64, u64) -> Outcome;
        let entry = std::ptr::with_exposed_provenance::<()>(self.rx().start.get() as usize);
        // SAFETY:
        // 1. The code begins with an `extern "C"` function of five integers (`jit::Object::link`),
        //    whose second result is not looked at where there is none.
        let entry = unsafe { std::mem::transmute::<*const (), Entry>(entry) };
        // SAFETY: 1. caller's contract.
        let outcome = unsafe { entry(args[0], args[1], args[2], args[3], args[4]) };
        let insn = (outcome.stopped as usize).wrapping_sub(1);
        match self.code.budget {
            Some(Budget::Insns(budget)) if outcome.stopped != 0 => {
                Err(Stop::Budget { insn, budget })
            }
            Some(Budget::Time(limit)) if outcome.stopped != 0 => Err(Stop::Time { insn, limit }),
            _ => Ok(outcome.r0),
        }
    }

    /// How many runs have ended because their budget was used up while they were in this program;
    /// hooks take their result as 0.
    #[must_use]
    pub fn stops(&self) -> u64 {
        self.code.stops.load(Ordering::Relaxed)
    }

    pub(crate) fn budget_kind(&self) -> BudgetKind {
        kind_of(self.code.budget)
    }

    /// Where tail calls arrive.
    pub(crate) fn inner(&self) -> u64 {
        self.code.inner
    }

    /// Runs before a function; see [`RawProg::fentry`]. Here and below the program gets the BPF
    /// context in `r1`.
    #[doc(alias = "BPF_TRACE_FENTRY")]
    pub fn fentry(&self) -> RawProg {
        self.raw(ProgKind::Fentry)
    }

    /// Runs after a function; see [`RawProg::fexit`].
    #[doc(alias = "BPF_TRACE_FEXIT")]
    pub fn fexit(&self) -> RawProg {
        self.raw(ProgKind::Fexit)
    }

    /// May run instead of a function; see [`RawProg::fmod_ret`].
    #[doc(alias = "BPF_MODIFY_RETURN")]
    pub fn fmod_ret(&self) -> RawProg {
        self.raw(ProgKind::FmodRet(RetFrom::Value))
    }

    /// Runs at both ends; see [`RawProg::fsession`].
    #[doc(alias = "BPF_TRACE_FSESSION")]
    pub fn fsession(&self) -> RawProg {
        self.raw(ProgKind::Fsession)
    }

    fn raw(&self, kind: ProgKind) -> RawProg {
        if self.code.may_fault {
            // The host may have installed handlers since it was loaded.
            Trampolines::locked(faults::come_first);
        }
        let entry = std::ptr::with_exposed_provenance::<()>(self.rx().start.get() as usize);
        // SAFETY:
        // 1. The code begins with an `extern "C"` function that looks at its first arguments.
        let func = unsafe { std::mem::transmute::<*const (), ProgFn>(entry) };
        let mut prog = Prog::new(kind, func);
        prog.needs |= self.needs;
        prog.owner = Owner(Some(Arc::new(self.code.clone())));
        RawProg(prog)
    }

    /// What its own helper calls want to find in a context, whatever it may go on in.
    pub(crate) fn asks_for(&self) -> Needs {
        helpers::needs(self.compiled().program())
    }

    /// The runtime in whose packs it is.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}
