//! Programs that an image calls: what they are, what they ask for, and their counters.
//!
//! Key types: [`Prog`] (what a user hands in), [`ProgState`] (counters, shared by every image
//! that calls the program). Source: `struct bpf_tramp_link`, `enum bpf_tramp_prog_type`
//! in the kernel's `include/linux/bpf.h`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bitflags::bitflags;

/// A native program: `ctx` is the BPF context (argument slots, return slots behind them,
/// the slot count before them), `cookie` is [`Prog::cookie`].
///
/// A function that takes the context alone may be used too: LP64D ignores the second register.
pub type ProgFn = unsafe extern "C" fn(ctx: *mut u64, cookie: u64) -> u64;

/// Where in a call a program runs. Kernel: `enum bpf_tramp_prog_type`.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum ProgKind {
    /// Before the function.
    Fentry,
    /// After the function; sees arguments and return value.
    Fexit,
    /// Before the function, after the fentry programs; may replace it.
    FmodRet(RetFrom),
    /// At both ends, with a cookie of 64 bits that lives as long as the call.
    Fsession,
}

/// How an fmod_ret program hands over the return value.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum RetFrom {
    /// The kernel's way: what the program returns, if it is not zero, is the return value.
    Value,
    /// The program has written the return slots of its context and returns non-zero; so zero,
    /// floats and pairs of registers can be returned as well.
    Slots,
}

bitflags! {
    /// What a program wants to find in its context or have counted. Nothing is stored that
    /// nobody asked for.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct Needs: u8 {
        /// `ctx[-1]`: the number of argument slots in its low 8 bits (`get_func_arg_cnt`).
        const META = 1 << 0;
        /// `ctx[-2]`: the address of the function (`get_func_ip`).
        const IP = 1 << 1;
        /// Count runs in [`ProgState::runs`] (one atomic addition a run).
        const STATS = 1 << 2;
        /// `errno` and `fcsr` are kept as they were. Without it the program promises to change
        /// neither.
        const PRESERVE = 1 << 3;
        /// `ctx[-3]`: the program's own [`Prog::cookie`], or zero (`get_attach_cookie`).
        const COOKIE = 1 << 4;
        /// [`Needs::META`], with [`meta::NO_RET`] where there is no return value, and zeros in the
        /// return slot that a session finds when the call begins (`get_func_ret`).
        const RET = 1 << 5;
    }
}

/// One program as it is attached.
#[derive(Clone, Debug)]
pub struct Prog {
    /// When it runs.
    pub kind: ProgKind,
    /// What runs.
    pub func: ProgFn,
    /// The program's second argument; `None`: it takes the context alone.
    pub cookie: Option<u64>,
    /// What it asks for.
    pub needs: Needs,
    /// Its counters.
    pub state: Arc<ProgState>,
    /// Kept alive as long as an image that calls the program: what `cookie` points to, say.
    pub owner: Owner,
}

/// Something that must outlive every image of its program.
#[derive(Clone, Default)]
pub struct Owner(pub Option<Arc<dyn std::any::Any + Send + Sync>>);

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Owner(..)"
        } else {
            "Owner"
        })
    }
}

impl Prog {
    /// A program that keeps `errno` and `fcsr` and asks for nothing else.
    pub fn new(kind: ProgKind, func: ProgFn) -> Self {
        Prog {
            kind,
            func,
            cookie: None,
            needs: Needs::PRESERVE,
            state: Arc::default(),
            owner: Owner::default(),
        }
    }

    /// Does it run before the function?
    pub(crate) fn runs_at_entry(&self) -> bool {
        !matches!(self.kind, ProgKind::Fexit)
    }

    /// Does it run after the function?
    pub(crate) fn runs_at_exit(&self) -> bool {
        matches!(self.kind, ProgKind::Fexit | ProgKind::Fsession)
    }

    /// What must be stored for it. A session cannot be told from its return without the meta
    /// word, nor can a function that returns something.
    pub(crate) fn wants(&self, need: Needs) -> bool {
        let brings_meta = self.kind == ProgKind::Fsession || self.needs.contains(Needs::RET);
        self.needs.contains(need) || (need == Needs::META && brings_meta)
    }
}

/// Counters of one attached program. Machine code adds to `runs`: the layout is pinned.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ProgState {
    runs: AtomicU64,
    missed: AtomicU64,
    detached: AtomicBool,
}

const _: () = assert!(std::mem::offset_of!(ProgState, runs) == 0);

impl ProgState {
    /// How often the program ran; counted when it asked for [`Needs::STATS`].
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// How often it did not run because it was reached from itself on the same thread.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Counts one run; for programs whose own glue counts.
    #[inline]
    pub fn add_run(&self) {
        self.runs.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one run that does not happen; for programs whose own glue decides so.
    #[inline]
    pub fn add_missed(&self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn detach(&self) {
        self.detached.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::SeqCst)
    }

    pub(crate) fn runs_addr(&self) -> u64 {
        self.runs.as_ptr() as u64
    }
}

/// The word before the context. Kernel: `func_meta` of `arch_prepare_bpf_trampoline`,
/// `bpf_session_is_return` and `bpf_session_cookie`.
pub mod meta {
    /// Bits that hold the number of argument slots.
    pub const SLOTS_MASK: u64 = 0xff;
    /// Shift of the distance, in 64-bit words below the context, of a session's cookie.
    pub const COOKIE_SHIFT: u32 = 8;
    /// Set for a program that asked for the return value ([`Needs::RET`](super::Needs::RET)) when
    /// there is none: before the function, and of a function that returns nothing.
    pub const NO_RET: u64 = 1 << 62;
    /// Set when a session program runs after the function.
    pub const IS_RETURN: u64 = 1 << 63;
}
