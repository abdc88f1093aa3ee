//! Hooks: built, attached, asked for numbers, detached.

#![expect(
    unsafe_code,
    reason = "attaching programs whose promises the builder collected"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use text::RxAddr;
use trampoline::{Attach, EntryKind, LinkId, Prog, ProgKind, ProgState, Traps};

use crate::call::Call;
use crate::error::Error;
use crate::func::HookFn;
use crate::glue::Site;
use crate::panics::Panics;
use crate::raw::RawProg;
use crate::runtime::{Inner, Runtime};

/// The programs that shall be attached to one function.
#[must_use = "nothing is hooked before `attach`"]
pub struct HookBuilder<F> {
    runtime: Runtime,
    site: Site,
    progs: Vec<Prog>,
    _of: std::marker::PhantomData<F>,
}

impl<F: HookFn> HookBuilder<F> {
    pub(crate) fn new(runtime: Runtime, site: Site) -> Self {
        HookBuilder {
            runtime,
            site,
            progs: Vec::new(),
            _of: std::marker::PhantomData,
        }
    }

    /// Runs `f` before the function, in whatever context that is called:
    /// [`Runtime::hook`](crate::Runtime::hook) says what the closure must keep to.
    #[doc(alias = "BPF_TRACE_FENTRY")]
    pub fn on_entry(mut self, f: impl Fn(&Call<'_, F>) + Send + Sync + 'static) -> Self {
        self.progs.push(self.site.entry::<F, _>(f));
        self
    }

    /// Runs `f` after the function, with its return value.
    #[doc(alias = "BPF_TRACE_FEXIT")]
    pub fn on_exit(mut self, f: impl Fn(&Call<'_, F>, &F::Ret) + Send + Sync + 'static) -> Self {
        self.progs.push(self.site.exit::<F, _>(f));
        self
    }

    /// Runs `enter` before and `leave` after the function, with 64 bits of their own for each
    /// call, zero at its beginning.
    #[doc(alias = "BPF_TRACE_FSESSION")]
    pub fn on_session(
        mut self,
        enter: impl Fn(&Call<'_, F>, &mut u64) + Send + Sync + 'static,
        leave: impl Fn(&Call<'_, F>, &F::Ret, &mut u64) + Send + Sync + 'static,
    ) -> Self {
        self.progs.push(self.site.session::<F, _, _>(enter, leave));
        self
    }

    /// Asks `f` before the function: `Some(value)` is returned to the caller instead of calling
    /// the function; later overrides are not asked then.
    ///
    /// The function's callers rely on what it does and not on its value alone. That an answer keeps
    /// the function's promises to them is part of what the caller of
    /// [`Runtime::hook`](crate::Runtime::hook) has promised (*Safety*, 3).
    #[doc(alias = "BPF_MODIFY_RETURN")]
    pub fn override_return(
        mut self,
        f: impl Fn(F::Args) -> Option<F::Ret> + Send + Sync + 'static,
    ) -> Self {
        self.progs.push(self.site.fmod_ret::<F, _>(f));
        self
    }

    /// Closures that are added from here on run *alone*: while one runs, hooked calls on its thread,
    /// of whatever functions, run no programs and count as [missed](HookStats::missed), whether the
    /// closure makes them or a signal handler that interrupts it. So what it locks or has half
    /// changed is met by no other closure of this thread.
    pub fn alone(mut self) -> Self {
        self.site.is_alone = true;
        self
    }

    /// Adds a native program that gets the BPF context itself.
    ///
    /// # Safety
    /// 1. The program may run wherever the function is called, and returns: it neither throws (a
    ///    Rust `extern "C"` function that panics ends the process), nor jumps out, nor ends its
    ///    thread. An exception would leave its thread marked as being in the program.
    /// 2. It uses the context as [`crate::RawProg`] describes it.
    pub unsafe fn raw(mut self, prog: RawProg) -> Self {
        self.progs.push(prog.0);
        self
    }

    /// Lets a trap lead to the programs if no jump fits over the function's first instructions:
    /// it costs several thousand instructions a call. Without this such a function is refused.
    /// [`Hook::kind`] says which it became.
    pub fn allow_trap(mut self) -> Self {
        self.site.traps = Traps::Allowed;
        self
    }

    /// Attaches the programs. When it returns, every call that begins afterwards runs them.
    ///
    /// # Errors
    /// [`Error::NoProgram`]; [`Error::Tramp`] with the reason why the function cannot be hooked.
    /// Nothing has changed then.
    pub fn attach(self) -> Result<Hook, Error> {
        let runtime = self.runtime.clone();
        let hooks = runtime.attach_all([self])?;
        hooks.into_iter().next().ok_or(Error::NoProgram)
    }

    pub(crate) fn into_parts(self) -> (Site, Vec<Prog>) {
        (self.site, self.progs)
    }
}

impl<F> std::fmt::Debug for HookBuilder<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds: Vec<_> = self.progs.iter().map(|p| p.kind).collect();
        f.debug_struct("HookBuilder")
            .field("func", &self.site.func)
            .field("progs", &kinds)
            .finish()
    }
}

/// Attached programs of one function. Detaches when it is dropped.
#[must_use = "the hook is detached when this is dropped"]
pub struct Hook {
    inner: Arc<Inner>,
    func: RxAddr,
    links: Vec<LinkId>,
    progs: Vec<(ProgKind, Arc<ProgState>)>,
    panics: Arc<Panics>,
    detached: AtomicBool,
}

/// Numbers of one hook.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct HookStats {
    /// Runs of all its programs together.
    pub runs: u64,
    /// Runs that did not happen because a program had reached its own hook.
    pub missed: u64,
    /// Closures that panicked.
    pub panics: u64,
    /// The same for each program, in the order in which they were given.
    pub progs: Vec<ProgStats>,
}

/// Numbers of one program.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ProgStats {
    /// What it is.
    pub kind: ProgKind,
    /// How often it ran. Closures are always counted, raw programs if they ask for it
    /// ([`Needs::STATS`](crate::Needs::STATS)).
    pub runs: u64,
    /// How often it did not run because it had reached its own hook.
    pub missed: u64,
}

impl Hook {
    /// How often the programs ran, and how often they did not.
    pub fn stats(&self) -> HookStats {
        let of = |(kind, state): &(ProgKind, Arc<ProgState>)| ProgStats {
            kind: *kind,
            runs: state.runs(),
            missed: state.missed(),
        };
        let progs: Vec<_> = self.progs.iter().map(of).collect();
        HookStats {
            runs: progs.iter().map(|p| p.runs).sum(),
            missed: progs.iter().map(|p| p.missed).sum(),
            panics: self.panics.count(),
            progs,
        }
    }

    /// The hooked function.
    pub fn func(&self) -> RxAddr {
        self.func
    }

    /// How calls are led to the programs; `None` once nothing is attached to the function.
    pub fn kind(&self) -> Option<EntryKind> {
        self.inner.tramps.entry_of(self.func)
    }

    /// Detaches. When it returns, no call that begins afterwards runs the programs, and none runs
    /// at the end of a call that is under way. Does not wait for calls inside the function.
    ///
    /// # Errors
    /// [`Error::AlreadyDetached`]; [`Error::Tramp`] if text could not be changed: the hook is
    /// attached then as before.
    pub fn detach(&self) -> Result<(), Error> {
        detach_all([self])
    }
}

/// Detaches all of `hooks`, which belong to one runtime, or none, with a constant number of
/// flushes.
pub(crate) fn detach_all<'h>(hooks: impl IntoIterator<Item = &'h Hook>) -> Result<(), Error> {
    let hooks: Vec<&Hook> = hooks.into_iter().collect();
    let mut taken = Vec::new();
    let give_back = |taken: &[&Hook]| {
        taken
            .iter()
            .for_each(|h| h.detached.store(false, Ordering::SeqCst))
    };
    for &hook in &hooks {
        if hook.detached.swap(true, Ordering::SeqCst) {
            give_back(&taken);
            return Err(Error::AlreadyDetached);
        }
        taken.push(hook);
    }
    let Some(first) = hooks.first() else {
        return Ok(());
    };
    // Links of another runtime are unknown to the first one's, and refused by it.
    let links: Vec<LinkId> = hooks.iter().flat_map(|h| h.links.iter().copied()).collect();
    first.inner.tramps.detach(&links).map_err(|e| {
        give_back(&taken);
        e.into()
    })
}

impl Drop for Hook {
    fn drop(&mut self) {
        // Detached before, or refused: then the programs stay attached, and alive.
        let _ = self.detach();
    }
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook")
            .field("func", &self.func)
            .field("stats", &self.stats())
            .finish()
    }
}

impl Inner {
    /// Attaches every builder's programs, or nothing.
    pub(crate) fn attach(
        self: &Arc<Self>,
        parts: Vec<(Site, Vec<Prog>)>,
    ) -> Result<Vec<Hook>, Error> {
        if parts.iter().any(|(_, progs)| progs.is_empty()) {
            return Err(Error::NoProgram);
        }
        let wanted: Vec<Attach> = parts
            .iter()
            .flat_map(|(site, progs)| {
                progs.iter().map(|prog| Attach {
                    func: site.func,
                    model: site.model.clone(),
                    prog: prog.clone(),
                    traps: site.traps,
                })
            })
            .collect();
        // SAFETY:
        // 1. Whoever called `Runtime::hook` promised that the function is as its type or model
        //    says.
        // 2. Closures are held by the programs' owners; raw programs were promised to fit by the
        //    caller of `HookBuilder::raw`.
        let mut links = unsafe { self.tramps.attach(&wanted) }?.into_iter();
        let hooks = parts.into_iter().map(|(site, progs)| Hook {
            inner: self.clone(),
            func: site.func,
            links: links.by_ref().take(progs.len()).collect(),
            progs: progs.iter().map(|p| (p.kind, p.state.clone())).collect(),
            panics: site.panics,
            detached: AtomicBool::new(false),
        });
        Ok(hooks.collect())
    }
}
