//! A program as code in a pack.
//!
//! Key types: [`BpfProg`], [`Options`]. Neighbours: `jit` makes the code, `pack_alloc` holds it.

#![expect(unsafe_code, reason = "calls the code that was made")]

use std::sync::Arc;

use pack_alloc::{Near, PackCode};
use rv64::Features;
use text::{RxAddr, RxRange};
use trampoline::Trampolines;

use super::env::Env;
use super::error::LoadError;
use super::faults::Registered;
use super::program::Program;
use super::{helpers, jit};
use crate::raw::RawProg;
use crate::runtime::Runtime;
use trampoline::{Needs, Owner, Prog, ProgFn, ProgKind, RetFrom};

/// What a call's `auipc` reaches, less its rounding and the size of the code.
const REACH_BYTES: u64 = (1 << 31) - (64 << 20);

/// How a program is compiled.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// The extensions that the code may use; what this machine has, by default. Code for what it
    /// does not have ends in an illegal instruction.
    pub features: Features,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            features: crate::hwprobe::features(),
        }
    }
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

/// Published code. It is freed under the lock of changes, so that no fork comes between.
#[derive(Debug)]
struct Code {
    rx: RxRange,
    /// The first goes first: nobody looks up what is freed.
    parts: Option<(Registered, PackCode)>,
}

impl Drop for Code {
    fn drop(&mut self) {
        let parts = &mut self.parts;
        if Trampolines::exclusively(|| drop(parts.take())).is_err() {
            // This thread has the lock: it frees the image that called the program.
            drop(self.parts.take());
        }
    }
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
        let object = jit::compile(program, env, options.features)?;
        // Near the functions that it is likely to call.
        let near = Near::Within {
            of: RxAddr::new(Self::load as *const () as u64),
            reach_bytes: REACH_BYTES,
        };
        let packs = runtime.packs();
        let code = Trampolines::exclusively(|| -> Result<Code, LoadError> {
            let mut buf = packs.alloc(object.max_bytes(), 64, near)?;
            let linked = object.link(buf.rx().start.get())?;
            buf.rw()[..linked.bytes.len()].copy_from_slice(&linked.bytes);
            let pack = packs.finalize(buf)?;
            let known = Registered::new(program.name(), pack.rx(), linked.probes);
            Ok(Code {
                rx: pack.rx(),
                parts: Some((known, pack)),
            })
        })??;
        Ok(Self {
            code: Arc::new(code),
            needs: helpers::needs(program),
            runtime: runtime.clone(),
        })
    }

    /// Where the code is.
    #[must_use]
    pub fn rx(&self) -> RxRange {
        self.code.rx
    }

    /// Runs it with `r1` to `r5`; gives `r0`.
    ///
    /// # Safety
    /// 1. The program's loads, stores and calls, with these arguments, are sound, and it ends.
    #[must_use]
    pub unsafe fn run(&self, args: [u64; 5]) -> u64 {
        let entry = std::ptr::with_exposed_provenance::<()>(self.rx().start.get() as usize);
        // SAFETY:
        // 1. The code begins with an `extern "C"` function of five integers (`jit::Object::link`).
        let entry = unsafe {
            std::mem::transmute::<*const (), unsafe extern "C" fn(u64, u64, u64, u64, u64) -> u64>(
                entry,
            )
        };
        // SAFETY: 1. caller's contract.
        unsafe { entry(args[0], args[1], args[2], args[3], args[4]) }
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
        let entry = std::ptr::with_exposed_provenance::<()>(self.rx().start.get() as usize);
        // SAFETY:
        // 1. The code begins with an `extern "C"` function that looks at its first arguments.
        let func = unsafe { std::mem::transmute::<*const (), ProgFn>(entry) };
        let mut prog = Prog::new(kind, func);
        prog.needs |= self.needs;
        prog.owner = Owner(Some(Arc::new(self.code.clone())));
        RawProg(prog)
    }

    /// The runtime in whose packs it is.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}
