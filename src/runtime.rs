//! The runtime: packs, hooked functions, and numbers about both.

#![expect(
    unsafe_code,
    reason = "declares the promises under which functions are hooked"
)]

use std::sync::Arc;
use std::time::Duration;

use pack_alloc::{Config, HugePolicy, PackAlloc, PackStats};
use symbols::Tools;
use text::{Deadline, Lookup, RxAddr};
use trampoline::indirect::Workshop;
use trampoline::{FuncModel, TrampError, TrampStats, Trampolines, Traps};

use crate::bpf::{self, BpfProg, Env, LoadError, Options, Program};
use crate::error::Error;
use crate::func::{HookFn, Untyped};
use crate::glue::Site;
use crate::hook::{self, Hook, HookBuilder};
use crate::struct_ops::{OpsStats, Retirees};

/// How long dropping the last handle of a runtime waits for images to be left.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// Hooks functions of this process. Cheap to clone; hooks keep it alive.
///
/// Runtimes know nothing of each other: a function that one of them has hooked is refused to
/// another.
#[derive(Clone, Debug)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) tramps: Arc<Trampolines>,
    packs: Arc<PackAlloc>,
    tools: Tools,
    ops: Retirees,
}

/// Settings of a runtime.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Builder {
    config: Config,
    tools: Tools,
}

/// Numbers of a runtime.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Hooked functions, programs, images, and what waits to be freed.
    pub tramps: TrampStats,
    /// Tables of functions.
    pub ops: OpsStats,
    /// Code memory.
    pub packs: PackStats,
}

impl Builder {
    /// At most so many packs of 2 MiB.
    pub fn max_packs(mut self, packs: usize) -> Self {
        self.config.max_packs = Some(packs);
        self
    }

    /// Whether packs shall lie in huge pages.
    pub fn huge(mut self, huge: HugePolicy) -> Self {
        self.config.huge = huge;
        self
    }

    /// Who is told of images, programs and hosted code, besides unwinders: gdb, and whom the
    /// variable `RVBPF_TOOLS` names (`gdb`, `perf-map`, `jitdump`, with commas between).
    pub fn tools(mut self, tools: Tools) -> Self {
        self.tools = tools;
        self
    }

    /// Makes the runtime.
    ///
    /// # Errors
    /// [`Error::Symbols`] when a file for `perf` cannot be written; [`Error::Tramp`] where hooks
    /// cannot work: not riscv64 Linux, or an emulator whose stale code cannot be dealt with.
    pub fn build(self) -> Result<Runtime, Error> {
        text::come_before_allocators();
        let packs = Trampolines::exclusively(|| Arc::new(PackAlloc::new(self.config)))?;
        let tramps = Arc::new(Trampolines::new(packs.clone())?.with_tools(self.tools));
        Trampolines::exclusively(|| self.tools.open())??;
        Ok(Runtime {
            inner: Arc::new(Inner {
                tramps,
                packs,
                tools: self.tools,
                ops: Retirees::default(),
            }),
        })
    }
}

impl Runtime {
    /// A runtime with the usual settings.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Settings first.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Begins a hook of `f`, an `extern "C"` function pointer. A stub of the dynamic linker stands
    /// for the function that it leads to. May be called by a library's constructor, but not by a
    /// callback of `dl_iterate_phdr`.
    ///
    /// # Errors
    /// [`Error::Tramp`]: no function, vector calling convention, taken by others and so on;
    /// [`Error::Model`]: a signature that cannot be passed.
    ///
    /// # Safety
    /// 1. `f` points to a function of this very type.
    /// 2. What is added to the builder may run wherever the function is called, in the place of a
    ///    call from it:
    ///
    /// | the function is called | then a closure must not |
    /// | --- | --- |
    /// | in a signal handler | wait for what the interrupted code holds: locks, the allocator (`println!` takes one and uses the other) |
    /// | by the allocator (`malloc`, `free`, `mmap`) | count on an allocation being seen; it may allocate: see below |
    /// | with a lock held, by the function's own library | call what takes that lock |
    /// | by a thread that begins or ends | use thread-locals with destructors (they may be gone; to use one registers it, under the dynamic linker's lock) |
    /// | between `fork` and `exec` in a process of several threads | take locks that another thread may have held at the fork, the allocator's where it frees none |
    /// | in a child of `vfork`, or of `posix_spawn` | change memory that the parent does not expect to change: it is the parent's |
    ///
    ///    A closure must return: it must not `longjmp` out, end its thread, or switch stacks.
    ///    A panic is contained.
    /// 3. An answer of [`override_return`](HookBuilder::override_return) keeps the promises of the
    ///    function to all its callers, not to the closure's author alone: `pthread_mutex_lock` that
    ///    is answered by 0 lets two threads into what one must be in, `malloc` must give memory that
    ///    is free and stays so, or null.
    ///
    /// # Recursion
    /// A closure that calls, however indirectly, the function that it is attached to does not run
    /// again: the call goes straight to the function and counts as
    /// [`missed`](crate::HookStats::missed). So a closure on `malloc` may allocate. Closures on
    /// *other* functions that it calls do run, up to eleven within each other; deeper ones are
    /// missed. The same holds for a signal handler that interrupts a closure. Closures that must not
    /// be interrupted by others at all are added behind [`alone`](HookBuilder::alone); whether a call
    /// is one of a signal handler tells [`Call::in_signal_handler`](crate::Call::in_signal_handler).
    ///
    /// A closure that the host's `siglongjmp` leaves is noticed when a hooked call comes that it
    /// cannot have made, and is over then. Raw programs must not be left.
    pub unsafe fn hook<F: HookFn>(&self, f: F) -> Result<HookBuilder<F>, Error> {
        let model = f.model()?;
        self.begin(f.addr(), model)
    }

    /// Begins a hook of the function at `addr`, described by `model`
    /// ([`FuncModel::untyped`] if nothing is known of it).
    ///
    /// # Errors
    /// As [`Runtime::hook`].
    ///
    /// # Safety
    /// 1. If there is a function at `addr`, it is as `model` says.
    /// 2. The rest as for [`Runtime::hook`].
    pub unsafe fn hook_addr(
        &self,
        addr: *const (),
        model: FuncModel,
    ) -> Result<HookBuilder<Untyped>, Error> {
        self.begin(Untyped(addr as u64).addr(), Arc::new(model))
    }

    /// Begins a hook of the function `name` of the loaded object whose file is called `object`
    /// (`libz.so.1`), or of the first one that has it. Aliases, stubs of the dynamic linker and
    /// functions chosen at load time (IFUNCs) stand for the function that runs.
    ///
    /// # Errors
    /// As [`Runtime::hook`], and if there is no such object or function.
    ///
    /// # Safety
    /// 1. The function is as `model` says.
    /// 2. The rest as for [`Runtime::hook`].
    pub unsafe fn hook_symbol(
        &self,
        object: Option<&str>,
        name: &str,
        model: FuncModel,
    ) -> Result<HookBuilder<Untyped>, Error> {
        let func = match Trampolines::exclusively(|| text::look_symbol(object, name))?? {
            Lookup::Known(func) => func,
            Lookup::Ask(question) => question.ask()?,
        };
        self.begin(func.get(), Arc::new(model))
    }

    fn begin<F: HookFn>(&self, addr: u64, model: Arc<FuncModel>) -> Result<HookBuilder<F>, Error> {
        let func = resolve(RxAddr::new(addr))?;
        let site = Site {
            func,
            model,
            panics: Arc::default(),
            is_alone: false,
            traps: Traps::Refused,
        };
        Ok(HookBuilder::new(self.clone(), site))
    }

    /// Attaches the programs of all builders, or none, with a constant number of flushes.
    ///
    /// # Errors
    /// As [`HookBuilder::attach`]; builders of another runtime are attached by this one.
    pub fn attach_all<F: HookFn>(
        &self,
        builders: impl IntoIterator<Item = HookBuilder<F>>,
    ) -> Result<Vec<Hook>, Error> {
        self.inner
            .attach(builders.into_iter().map(HookBuilder::into_parts).collect())
    }

    /// Detaches all of `hooks`, which are this runtime's, or none, with a constant number of
    /// flushes.
    ///
    /// # Errors
    /// As [`Hook::detach`].
    pub fn detach_all<'h>(&self, hooks: impl IntoIterator<Item = &'h Hook>) -> Result<(), Error> {
        hook::detach_all(hooks)
    }

    /// Waits until the code of everything that was detached, or taken out of an array of programs,
    /// is freed. Nobody has to call this: code is freed along the way; but afterwards the numbers
    /// are exact.
    ///
    /// # Errors
    /// [`Error::Tramp`] with `StillInUse` when threads are still inside hooked calls or programs
    /// after `patience`; nothing is lost. So it is for ever after a call that `longjmp` has left,
    /// or that a child of `vfork` has ended in, and in the child of a `fork` while other threads
    /// ran programs that make tail calls.
    #[doc(alias = "synchronize_rcu_tasks")]
    pub fn synchronize(&self, patience: Duration) -> Result<(), Error> {
        let end = Deadline::after(patience);
        // First: what tables hold may be programs in arrays.
        let retired = self.inner.ops.synchronize(patience);
        if retired > 0 {
            return Err(TrampError::StillInUse { retired }.into());
        }
        self.inner.tramps.synchronize(end.left())?;
        match bpf::synchronize(end.left()) {
            0 => Ok(()),
            retired => Err(TrampError::StillInUse { retired }.into()),
        }
    }

    /// Compiles `program`, with `env` around it, into a pack.
    ///
    /// # Errors
    /// [`LoadError::Refused`] when it refers to what `env` does not have;
    /// [`LoadError::UnsupportedHost`]; [`LoadError::Pack`] when there is no memory for the code.
    #[doc(alias = "BPF_PROG_LOAD")]
    pub fn load(&self, program: &Program, env: &Env) -> Result<BpfProg, LoadError> {
        self.load_with(program, env, Options::default())
    }

    /// The same with other options.
    ///
    /// # Errors
    /// As [`Runtime::load`].
    pub fn load_with(
        &self,
        program: &Program,
        env: &Env,
        options: Options,
    ) -> Result<BpfProg, LoadError> {
        BpfProg::load(self, program, env, options)
    }

    pub(crate) fn packs(&self) -> &PackAlloc {
        &self.inner.packs
    }

    /// Where code for tables is made.
    pub(crate) fn workshop(&self) -> Workshop {
        self.inner.tramps.workshop()
    }

    pub(crate) fn tramps(&self) -> &Arc<Trampolines> {
        &self.inner.tramps
    }

    pub(crate) fn retirees(&self) -> &Retirees {
        &self.inner.ops
    }

    pub(crate) fn tools(&self) -> Tools {
        self.inner.tools
    }

    /// Numbers as of now; all zero for a program that runs in the midst of a change of its own
    /// thread.
    pub fn stats(&self) -> Stats {
        Stats {
            tramps: self.inner.tramps.stats(),
            ops: self.inner.ops.stats(),
            packs: Trampolines::exclusively(|| self.inner.packs.stats()).unwrap_or_default(),
        }
    }
}

/// The function that runs when `addr` is called. The dynamic linker is asked without the lock of
/// changes: constructors of libraries that other threads open run under its own, and may hook.
fn resolve(addr: RxAddr) -> Result<RxAddr, Error> {
    let mut at = addr;
    // A stub may lead to one, of the program, which takes its address; not many do in a row.
    for _ in 0..8 {
        match Trampolines::exclusively(|| trampoline::resolve(at))?? {
            Lookup::Known(func) => return Ok(func),
            Lookup::Ask(question) => at = question.ask()?,
        }
    }
    Err(TrampError::UnboundStub { func: addr }.into())
}

impl Drop for Inner {
    fn drop(&mut self) {
        // No hook is left: each holds this. Programs may be, if the kernel refused to let the last
        // handle detach them. What can be reached, or threads are still in, cannot be unmapped.
        // Links held this too; tables that they led to may not have been left yet.
        if self.ops.synchronize(LAST_PATIENCE) > 0 {
            self.ops.leak();
            std::mem::forget(self.packs.clone());
        }
        let left = self.tramps.detach_rest();
        if left
            .and_then(|()| self.tramps.synchronize(LAST_PATIENCE))
            .is_err()
        {
            self.tramps.leak();
            std::mem::forget(self.packs.clone());
        }
    }
}
