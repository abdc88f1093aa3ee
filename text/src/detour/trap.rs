//! The handler of SIGTRAP: leads a thread that came by a trap to where the detour goes.
//!
//! | the signal | what is done |
//! | --- | --- |
//! | a breakpoint, its pc in the table | the thread goes on at the target |
//! | a breakpoint, but none stands there any more | the thread goes on where it is: the trap was taken away between it and us |
//! | anything else | handed on to the handler that was there before |
//!
//! How it shares the signal with handlers of the host, that came before it or come later:
//! [`crate::signal::Chain`]. Before traps are laid it is made the first one again. A handler that
//! replaces it while traps stand, and hands nothing on, has to bear them itself.
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

    use crate::detour::table::{self, Found};
    use crate::signal::{self, Action, Cause, Chain};
    use crate::{insn, sys, threads};

    static CHAIN: Chain = Chain::new(libc::SIGTRAP);

    pub(super) fn install() -> Result<(), i32> {
        // SAFETY: 1. it takes no lock and calls nothing, and hands on.
        unsafe { CHAIN.come_first(&ours()) }
    }

    fn address() -> libc::sighandler_t {
        let handler: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_trap;
        handler as *const () as libc::sighandler_t
    }

    fn ours() -> Action {
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART;
        Action {
            handler: address(),
            flags: flags as u64,
            mask: !signal::set_of(&sys::FAULTS),
        }
    }

    unsafe extern "C" fn on_trap(_signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
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
        let cause = match code {
            ..=0 => Cause::Sent,
            _ => Cause::Fault,
        };
        // SAFETY: 1. the kernel's own arguments.
        unsafe { CHAIN.hand_on(cause, info, context) };
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
}
