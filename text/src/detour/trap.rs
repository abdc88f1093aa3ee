//! The handler of SIGTRAP: leads a thread that came by a trap to where the detour goes.
//!
//! | the signal | what is done |
//! | --- | --- |
//! | a breakpoint, its pc in the table | the thread goes on at the target |
//! | a breakpoint, but none stands there any more | the thread goes on where it is: the trap was taken away between it and us |
//! | anything else | handed on to the handler that was there before |
//!
//! *Before us.* Handing on is done as the kernel would deliver it: with the mask that the
//! interrupted thread had and the one of that handler (SIGTRAP alone stays open, since its code may
//! come by a trap of ours), `SA_RESETHAND` once. `SIG_DFL` takes a trap's process down, and so does
//! `SIG_IGN`, because a trap cannot be ignored; a SIGTRAP that somebody *sent* is ignored.
//!
//! *After us.* Before traps are laid the handler is looked for; if somebody has replaced it, theirs
//! is noted as the one before, and ours installed again. Should theirs hand on what it does not
//! know to us, which it found when it was installed, the signal goes on to the one before *that*:
//! how far it has come is noted in the last word of its `siginfo`, which the kernel leaves zero.
//! Who replaces the handler while traps stand, and hands nothing on, has to bear them itself.
//!
//! *Interrupted by nothing.* All signals but faults and SIGTRAP are blocked until the thread's
//! context is changed: `table` waits for us. SIGTRAP is not, because the mask of an interrupted
//! handler of this kind would kill the process at a second trap. The handler calls nothing outside
//! this crate before it hands on.
//!
//! Neighbours: `table`, `change`. Source: kernel `arch/riscv/kernel/traps.c` (`handle_break`),
//! `kernel/signal.c` (`force_sig_info_to_task`, `get_signal`); `sigaction(2)`.
#![cfg_attr(
    target_arch = "riscv64",
    expect(unsafe_code, reason = "a signal handler, and the one before it")
)]

use crate::error::TextError;

/// Makes sure that SIGTRAP comes to us first. Under the text lock.
///
/// # Errors
/// [`TextError::TrapHandler`].
#[cfg(target_arch = "riscv64")]
pub(crate) fn install() -> Result<(), TextError> {
    handler::install().map_err(|errno| TextError::TrapHandler { errno })
}

/// # Errors
/// [`TextError::UnsupportedHost`], always.
#[cfg(not(target_arch = "riscv64"))]
pub(crate) fn install() -> Result<(), TextError> {
    Err(TextError::UnsupportedHost {
        reason: "this is not riscv64",
    })
}

#[cfg(target_arch = "riscv64")]
mod handler {
    use std::ffi::{c_int, c_void};
    use std::mem::MaybeUninit;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

    use crate::detour::table::{self, Found};
    use crate::insn;
    use crate::{sys, threads};

    /// A handler that was there before ours, and what was there before it.
    struct Before {
        action: libc::sigaction,
        /// Reset by `SA_RESETHAND`.
        is_spent: AtomicBool,
        older: *const Before,
    }

    /// The newest one. Each is never freed: a handler may be reading it.
    static NEWEST: AtomicPtr<Before> = AtomicPtr::new(null_mut());

    /// Where in a `siginfo` is noted how far it was handed on, and by what that is known.
    const NOTE_OFF: usize = size_of::<libc::siginfo_t>() - 8;
    const NOTE: u64 = 0x7262_7066_7472_0000;
    const NOTE_MASK: u64 = !0xffff;

    pub(super) fn install() -> Result<(), i32> {
        let now = exchange(None)?;
        if now.sa_sigaction == address() {
            return Ok(());
        }
        // Known before it can be asked for.
        note(now);
        let replaced = exchange(Some(&ours()))?;
        if replaced.sa_sigaction != now.sa_sigaction && replaced.sa_sigaction != address() {
            note(replaced);
        }
        Ok(())
    }

    fn note(action: libc::sigaction) {
        let older = NEWEST.load(Ordering::Acquire).cast_const();
        // SAFETY: 1. none is ever freed.
        let is_same = unsafe { older.as_ref() }.is_some_and(|before| {
            before.action.sa_sigaction == action.sa_sigaction
                && before.action.sa_flags == action.sa_flags
                && !before.is_spent.load(Ordering::Relaxed)
        });
        if is_same {
            return;
        }
        let before = Box::leak(Box::new(Before {
            action,
            is_spent: AtomicBool::new(false),
            older,
        }));
        NEWEST.store(before, Ordering::Release);
    }

    fn address() -> libc::sighandler_t {
        let handler: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_trap;
        handler as *const () as libc::sighandler_t
    }

    fn ours() -> libc::sigaction {
        let mut ours = MaybeUninit::<libc::sigaction>::zeroed();
        let mask = {
            // SAFETY: 1. all of its fields are integers or an optional pointer and may be zero.
            let ours = unsafe { ours.assume_init_mut() };
            ours.sa_sigaction = address();
            ours.sa_flags =
                libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART;
            &raw mut ours.sa_mask
        };
        // SAFETY: 1. `mask` is a live signal set.
        unsafe { libc::sigfillset(mask) };
        for open in [
            libc::SIGTRAP,
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
        ] {
            // SAFETY: 1. `mask` is a live signal set.
            unsafe { libc::sigdelset(mask, open) };
        }
        // SAFETY: 1. all of its fields are set.
        unsafe { ours.assume_init() }
    }

    /// `sigaction` for SIGTRAP: what is installed, and `new` in its place if given.
    fn exchange(new: Option<&libc::sigaction>) -> Result<libc::sigaction, i32> {
        let mut now = MaybeUninit::<libc::sigaction>::zeroed();
        let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY:
        // 1. `new` is null, which only asks, or complete; `now` is writable.
        // 2. The handler is async-signal-safe.
        let ret = unsafe { libc::sigaction(libc::SIGTRAP, new, now.as_mut_ptr()) };
        if ret != 0 {
            return Err(sys::errno());
        }
        // SAFETY: 1. all of its fields are integers and may be zero; the kernel has filled it.
        Ok(unsafe { now.assume_init() })
    }

    unsafe extern "C" fn on_trap(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: 1. the kernel passes it.
        let code = unsafe { (*info).si_code };
        if code == libc::TRAP_BRKPT {
            // SAFETY: 1. the kernel passes the context that it will restore; nobody else uses it.
            let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
            let regs = &mut context.uc_mcontext.__gregs;
            let pc = regs[0];
            // No more than a copy, once this has returned: see `threads::frames`.
            let link = &mut context.uc_link;
            let mut done = || *link = std::ptr::without_provenance_mut(threads::ANSWERED as usize);
            match table::look(pc, |to| regs[0] = to, is_breakpoint) {
                Found::Led => return done(),
                Found::Gone => {
                    // What this hart has fetched there is older than what stands there.
                    // SAFETY: 1. fetches anew, and changes nothing.
                    unsafe { std::arch::asm!("fence.i", options(nostack)) };
                    return done();
                }
                Found::Unknown => {}
            }
        }
        // SAFETY: 1. the kernel's own arguments.
        unsafe { hand_on(signal, info, context) };
    }

    /// Whether a breakpoint stands at `pc`, where this thread has just executed.
    fn is_breakpoint(pc: u64) -> bool {
        let half = |off: u64| {
            let at = std::ptr::with_exposed_provenance::<u16>((pc + off) as usize);
            // SAFETY: 1. mapped, because it was fetched; the second half only if the first one is
            //    that of an instruction of two.
            unsafe { at.read_volatile() }
        };
        let first = half(0);
        let second = match insn::len_bytes(first) {
            Some(2) => 0,
            _ => half(2),
        };
        insn::is_breakpoint(first, second)
    }

    /// # Safety
    /// 1. The arguments are those of a handler.
    unsafe fn hand_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: 1. inside the siginfo, aligned like it.
        let note = unsafe { info.byte_add(NOTE_OFF) }.cast::<u64>();
        // SAFETY: 1. ours to read: the kernel has written all of the siginfo.
        let noted = unsafe { note.read_volatile() };
        let depth = match noted & NOTE_MASK {
            NOTE => noted & !NOTE_MASK,
            _ => 0,
        };
        // SAFETY: 1. the kernel passes it.
        let is_sent = unsafe { (*info).si_code } <= 0;
        let before = nth_before(depth);
        let action = before.map(|before| before.action);
        let handler = action.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
        let flags = action.map_or(0, |action| action.sa_flags);
        let is_spent = before.is_some_and(|before| {
            let resets = before.action.sa_flags & libc::SA_RESETHAND != 0;
            resets && before.is_spent.swap(true, Ordering::Relaxed)
        });
        match handler {
            libc::SIG_IGN if is_sent => return,
            libc::SIG_DFL | libc::SIG_IGN => return end(signal, is_sent),
            _ if is_spent => return end(signal, is_sent),
            _ => {}
        }
        // SAFETY: 1. the context that the kernel passes.
        let mask_of_thread = unsafe { (*context.cast::<libc::ucontext_t>()).uc_sigmask };
        if let Some(action) = action {
            sys::set_mask_of(&mask_of_thread, &action.sa_mask, libc::SIGTRAP);
        }
        // SAFETY: 1. ours to write: nobody reads the end of a siginfo of this kind.
        unsafe { note.write_volatile(NOTE | (depth + 1)) };
        if flags & libc::SA_SIGINFO != 0 {
            type Full = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: 1. it was installed as a handler of this kind.
            let handler = unsafe { std::mem::transmute::<usize, Full>(handler) };
            // SAFETY: 1. caller's contract.
            unsafe { handler(signal, info, context) };
        } else {
            type Short = unsafe extern "C" fn(c_int);
            // SAFETY: 1. it was installed as a handler of this kind.
            let handler = unsafe { std::mem::transmute::<usize, Short>(handler) };
            // SAFETY: 1. caller's contract.
            unsafe { handler(signal) };
        }
        // SAFETY: 1. as above.
        unsafe { note.write_volatile(noted) };
    }

    fn nth_before(depth: u64) -> Option<&'static Before> {
        let mut before = NEWEST.load(Ordering::Acquire).cast_const();
        for _ in 0..depth {
            // SAFETY: 1. none is ever freed.
            before = unsafe { before.as_ref() }?.older;
        }
        // SAFETY: 1. none is ever freed.
        unsafe { before.as_ref() }
    }

    /// What the kernel does when nobody handles the signal. A trap comes again by itself; what was
    /// sent does not.
    fn end(signal: c_int, is_sent: bool) {
        // SAFETY: 1. all zeros is the default action.
        let default = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
        // The process ends whether this is heard or not.
        let _ = exchange(Some(&default));
        if is_sent {
            // SAFETY: 1. takes numbers alone.
            unsafe { libc::raise(signal) };
        }
    }
}
