//! Raw programs: native functions that get the BPF context itself. [`RawProg`] draws it.
//!
//! Source: `kernel/trace/bpf_trace.c` (`bpf_get_func_arg`, `bpf_get_func_ret`,
//! `bpf_get_func_ip`, `bpf_session_cookie`).

#![expect(unsafe_code, reason = "reads words around a context")]

use trampoline::{Needs, Prog, ProgKind, RetFrom, meta};

/// A native program before it is attached ([`HookBuilder::raw`](crate::HookBuilder::raw)). It gets
/// the kernel's BPF context, an array of 64-bit words:
///
/// | word | holds | is there | read by |
/// | --- | --- | --- | --- |
/// | `ctx[n..]` | return slots | after the function; in fmod_ret and session programs always | [`get_func_ret`] |
/// | `ctx[0..n]` | argument slots | always | [`get_func_arg`] |
/// | `ctx[-1]` | `n` in bits 0 to 7, the session's bits (`trampoline::meta`) | [`Needs::META`]; in session programs always | [`get_func_arg_cnt`], [`session_is_return`] |
/// | `ctx[-2]` | address of the function | [`Needs::IP`] | [`get_func_ip`] |
/// | `ctx[-3]` | the attachment's cookie | [`Needs::COOKIE`] | [`get_attach_cookie`] |
/// | below | the session's 64 bits for this call | session programs | [`session_cookie`] |
///
/// *Slots.* One for each argument that takes one register or one word of the stack; a value of two
/// registers has two. [`FuncModel::slots`](crate::FuncModel::slots) lists them in order, and where
/// each comes from. Integers narrower than 64 bits are extended as in a register; a float lies in
/// the lower bits of its slot as in a floating-point register. A function of which nothing is known
/// ([`FuncModel::untyped`](crate::FuncModel::untyped)) has those of all argument registers, and the
/// return slots `a0`, `a1`, `fa0`, `fa1`.
///
/// *Writing.* An fmod_ret program of [`RawProg::fmod_ret_slots`] writes return slots, a session
/// program its own 64 bits; nothing else may be written. The context is gone when the program has
/// returned.
///
/// ```no_run
/// use rvbpf::{Needs, RawProg, Runtime, get_func_ip};
/// use std::ffi::{c_char, c_long};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// static LAST: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
///
/// unsafe extern "C" fn watch(ctx: *mut u64) -> u64 {
///     // SAFETY: `atol` has one argument, and the program asks for `Needs::IP`.
///     let words = unsafe { [*ctx, get_func_ip(ctx)] };
///     for (last, word) in LAST.iter().zip(words) {
///         last.store(word, Ordering::Relaxed);
///     }
///     0 // not looked at: the program is no fmod_ret
/// }
///
/// # fn main() -> Result<(), rvbpf::Error> {
/// let atol: unsafe extern "C" fn(*const c_char) -> c_long = libc::atol;
/// let rt = Runtime::new()?;
/// // SAFETY: a function of this type; the program may run anywhere, and returns.
/// let hook = unsafe { rt.hook(atol)?.raw(RawProg::fentry(watch).needs(Needs::IP)) }.attach()?;
/// # drop(hook);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RawProg(pub(crate) Prog);

/// A program that takes the context alone.
pub type RawFn = unsafe extern "C" fn(ctx: *mut u64) -> u64;
/// A program that takes a cookie too.
pub type RawCookieFn = unsafe extern "C" fn(ctx: *mut u64, cookie: u64) -> u64;

impl RawProg {
    fn of(kind: ProgKind, func: RawFn) -> Self {
        // SAFETY:
        // 1. Both are `extern "C"`; LP64D passes the cookie in a register that a function of one
        //    argument does not look at.
        RawProg(Prog::new(kind, unsafe {
            std::mem::transmute::<RawFn, RawCookieFn>(func)
        }))
    }

    /// Runs before the function. What it returns is ignored.
    #[doc(alias = "BPF_TRACE_FENTRY")]
    pub fn fentry(func: RawFn) -> Self {
        Self::of(ProgKind::Fentry, func)
    }

    /// Runs after the function. What it returns is ignored.
    #[doc(alias = "BPF_TRACE_FEXIT")]
    pub fn fexit(func: RawFn) -> Self {
        Self::of(ProgKind::Fexit, func)
    }

    /// Runs before the function; if it returns non-zero, that is the function's return value, the
    /// function does not run, and neither do later fmod_ret programs.
    #[doc(alias = "BPF_MODIFY_RETURN")]
    pub fn fmod_ret(func: RawFn) -> Self {
        Self::of(ProgKind::FmodRet(RetFrom::Value), func)
    }

    /// As [`RawProg::fmod_ret`], but the return value is what the program has written to the
    /// return slots: so it can be zero, a float, or in two registers.
    pub fn fmod_ret_slots(func: RawFn) -> Self {
        Self::of(ProgKind::FmodRet(RetFrom::Slots), func)
    }

    /// Runs at both ends; see [`session_is_return`] and [`session_cookie`].
    #[doc(alias = "BPF_TRACE_FSESSION")]
    pub fn fsession(func: RawFn) -> Self {
        Self::of(ProgKind::Fsession, func)
    }

    /// Replaces the program's function by one that takes `cookie` as a second argument.
    pub fn with_cookie(mut self, func: RawCookieFn, cookie: u64) -> Self {
        self.0.func = func;
        self.0.cookie = Some(cookie);
        self
    }

    /// Gives the program 64 bits, to tell this attachment from its others: its second argument,
    /// and what [`get_attach_cookie`] finds. Zero if nobody gives any.
    #[doc(alias = "bpf_cookie")]
    pub fn cookie(mut self, cookie: u64) -> Self {
        self.0.cookie = Some(cookie);
        self
    }

    /// Asks for more: words of the context, or a count of runs.
    pub fn needs(mut self, needs: Needs) -> Self {
        self.0.needs |= needs;
        self
    }

    /// Promises that the program changes neither `errno` nor `fcsr`: the image need not keep
    /// them.
    pub fn bare(mut self) -> Self {
        self.0.needs -= Needs::PRESERVE;
        self
    }
}

/// The `n`-th argument slot, as the kernel's helper of that name; `None` past the last one.
///
/// # Safety
/// 1. `ctx` is the context of a running program that asked for [`Needs::META`].
pub unsafe fn get_func_arg(ctx: *const u64, n: u64) -> Option<u64> {
    // SAFETY: 1. passed on.
    let cnt = unsafe { get_func_arg_cnt(ctx) };
    let at = ctx.wrapping_add(n as usize);
    // SAFETY: 1. below the number of slots.
    (n < cnt).then(|| unsafe { at.read() })
}

/// How many argument slots there are.
///
/// # Safety
/// As [`get_func_arg`].
pub unsafe fn get_func_arg_cnt(ctx: *const u64) -> u64 {
    // SAFETY: 1. the word exists for a program that asked for it.
    let word = unsafe { ctx.sub(1) };
    // SAFETY: as above.
    unsafe { word.read() & meta::SLOTS_MASK }
}

/// The first return slot.
///
/// # Safety
/// As [`get_func_arg`], in a program that runs after the function, which returns a value.
pub unsafe fn get_func_ret(ctx: *const u64) -> u64 {
    // SAFETY: 1. passed on.
    let cnt = unsafe { get_func_arg_cnt(ctx) };
    // SAFETY: 1. the return slot stands behind the arguments.
    let at = unsafe { ctx.add(cnt as usize) };
    // SAFETY: as above.
    unsafe { at.read() }
}

/// The address of the hooked function.
///
/// # Safety
/// 1. `ctx` is the context of a running program that asked for [`Needs::IP`].
pub unsafe fn get_func_ip(ctx: *const u64) -> u64 {
    // SAFETY: 1. the word exists for a program that asked for it.
    let at = unsafe { ctx.sub(2) };
    // SAFETY: as above.
    unsafe { at.read() }
}

/// What the program was attached with ([`RawProg::cookie`]), or zero.
///
/// # Safety
/// 1. `ctx` is the context of a running program that asked for [`Needs::COOKIE`].
#[doc(alias = "bpf_get_attach_cookie")]
pub unsafe fn get_attach_cookie(ctx: *const u64) -> u64 {
    // SAFETY: 1. the word exists for a program that asked for it.
    let at = unsafe { ctx.sub(3) };
    // SAFETY: as above.
    unsafe { at.read() }
}

/// The first return slot, if there is one: a program before the function finds none, but for
/// fmod_ret and session programs, which find what earlier ones gave, or zero.
///
/// # Safety
/// 1. `ctx` is the context of a running program that asked for [`Needs::RET`].
pub(crate) unsafe fn get_func_ret_checked(ctx: *const u64) -> Option<u64> {
    // SAFETY: 1. the word exists for a program that asked for it.
    let word = unsafe { ctx.sub(1) };
    // SAFETY: as above.
    let word = unsafe { word.read() };
    let at = ctx.wrapping_add((word & meta::SLOTS_MASK) as usize);
    // SAFETY: 1. there is a return slot, and it stands behind the arguments.
    (word & meta::NO_RET == 0).then(|| unsafe { at.read() })
}

/// Does a session program run after the function?
///
/// # Safety
/// 1. `ctx` is the context of a running session program.
#[doc(alias = "bpf_session_is_return")]
pub unsafe fn session_is_return(ctx: *const u64) -> bool {
    // SAFETY: 1. session programs always have the word.
    let word = unsafe { ctx.sub(1) };
    // SAFETY: as above.
    unsafe { word.read() & meta::IS_RETURN != 0 }
}

/// The session program's 64 bits for this call; zero when the call begins.
///
/// # Safety
/// As [`session_is_return`].
#[doc(alias = "bpf_session_cookie")]
pub unsafe fn session_cookie(ctx: *mut u64) -> *mut u64 {
    // SAFETY: 1. session programs always have the word.
    let word = unsafe { ctx.sub(1) };
    // SAFETY: as above.
    let below = unsafe { word.read() } >> meta::COOKIE_SHIFT & 0xff;
    // SAFETY: 1. the image put the distance there.
    unsafe { ctx.sub(below as usize) }
}
