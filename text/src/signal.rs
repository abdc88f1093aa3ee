//! Signals by bare system calls: actions, masks, the alternate stack.
//!
//! libc's functions for these are likely to be hooked, and handlers must not run what is
//! ([`crate::syscall`]). The kernel's own structures are used: they differ from libc's.
//!
//! Key types: [`Action`], [`action`]; [`Chain`], a signal that is shared with handlers of the host. Neighbours: `detour::trap`, `threads::ask`, and whatever room
//! has a handler. Source: Linux `include/linux/signal_types.h` (`struct sigaction`; riscv64 defines
//! no `SA_RESTORER`, its return trampoline is in the vDSO), `include/uapi/asm-generic/signal.h`.
#![expect(
    unsafe_code,
    reason = "structures that the kernel reads and writes, and handlers called through pointers"
)]

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use crate::syscall::{Errno, getpid, gettid, syscall};

/// The kernel's set of signals: signal `n` is bit `n - 1`.
pub type Set = u64;

/// The set of these signals alone.
pub fn set_of(signals: &[c_int]) -> Set {
    signals.iter().fold(0, |set, signo| set | 1 << (signo - 1))
}

/// What is done when a signal comes. All zeros: the default.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Action {
    /// A function, `SIG_DFL` or `SIG_IGN`.
    pub handler: usize,
    /// `SA_…`.
    pub flags: u64,
    /// What is blocked while the handler runs.
    pub mask: Set,
}

#[cfg(target_arch = "riscv64")]
const _: () = assert!(size_of::<Action>() == 24);

impl Action {
    /// Has it this flag?
    pub fn has(&self, flag: c_int) -> bool {
        self.flags & flag as u64 != 0
    }

    /// Calls the handler, which is neither `SIG_DFL` nor `SIG_IGN`.
    ///
    /// # Safety
    /// 1. The arguments are those of a handler for a signal of this action.
    pub unsafe fn call(&self, signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        // The kernel gives all three to every handler.
        type Full = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: 1. it was installed as a handler; one that takes the number alone does not look
        //    at the other registers.
        let handler = unsafe { std::mem::transmute::<usize, Full>(self.handler) };
        // SAFETY: 1. caller's contract.
        unsafe { handler(signo, info, context) };
    }
}

/// `rt_sigaction(2)`: the action of now, and `new` in its place if given.
///
/// # Errors
/// The errno of the kernel.
///
/// # Safety
/// 1. A handler of `new` is a function that may run at any moment, on any thread.
#[cfg(target_arch = "riscv64")]
pub unsafe fn action(signo: c_int, new: Option<&Action>) -> Result<Action, Errno> {
    let mut now = Action::default();
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    let args = [
        signo as usize,
        new.expose_provenance(),
        (&raw mut now).expose_provenance(),
        size_of::<Set>(),
    ];
    // SAFETY: 1. `new` is null or live, `now` is writable. 2. The caller's promise.
    unsafe { syscall(libc::SYS_rt_sigaction, args) }?;
    Ok(now)
}

/// Elsewhere the kernel wants a return trampoline, which libc has.
///
/// # Errors
/// The errno of the kernel.
///
/// # Safety
/// 1. A handler of `new` is a function that may run at any moment, on any thread.
#[cfg(not(target_arch = "riscv64"))]
pub unsafe fn action(signo: c_int, new: Option<&Action>) -> Result<Action, Errno> {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    let new = new.map(|new| {
        let mut full = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: 1. all of its fields are integers or an optional pointer and may be zero.
        let action = unsafe { full.assume_init_mut() };
        action.sa_sigaction = new.handler;
        action.sa_flags = new.flags as c_int;
        // SAFETY: 1. libc's set is longer than the kernel's, which it begins with.
        unsafe { (&raw mut action.sa_mask).cast::<Set>().write(new.mask) };
        full
    });
    let new = new.as_ref().map_or(std::ptr::null(), |new| new.as_ptr());
    // SAFETY: 1. `new` is null or complete; `now` is writable. 2. The caller's promise.
    if unsafe { libc::sigaction(signo, new, now.as_mut_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    // SAFETY: 1. all of its fields may be zero; the kernel has filled it.
    let now = unsafe { now.assume_init() };
    Ok(Action {
        handler: now.sa_sigaction,
        flags: now.sa_flags as u64,
        // SAFETY: 1. libc's set is longer than the kernel's, which it begins with.
        mask: unsafe { (&raw const now.sa_mask).cast::<Set>().read() },
    })
}

/// The action of now.
///
/// # Errors
/// The errno of the kernel.
pub fn action_of(signo: c_int) -> Result<Action, Errno> {
    // SAFETY: 1. nothing is installed.
    unsafe { action(signo, None) }
}

/// A signal that a handler of ours shares with those of the host, whoever came first.
///
/// *Before us.* What is not ours is handed on as the kernel would deliver it: with the mask that the
/// interrupted thread had and the one of that handler (the signal itself stays open, since its code
/// may need ours), `SA_RESETHAND` once. `SIG_DFL` takes the process of a trap or fault down, and so
/// does `SIG_IGN`, because these cannot be ignored; a signal that was *sent* is ignored.
///
/// *After us.* A handler that has replaced ours is noted as the one before, and ours installed again
/// ([`Chain::come_first`], before each change that may need it). Should theirs hand on to ours,
/// which it found when it was installed, the signal goes on to the one before *that*: how far it
/// has come is noted in the last word of its `siginfo`, which the kernel leaves zero.
#[derive(Debug)]
pub struct Chain {
    signo: c_int,
    /// The newest of those before ours. None is ever freed: a handler may be reading it.
    newest: AtomicPtr<Before>,
}

/// A handler that was there before ours, and what was there before it.
#[derive(Debug)]
struct Before {
    action: Action,
    /// Reset by `SA_RESETHAND`.
    is_spent: AtomicBool,
    older: *const Before,
}

/// Why there is a signal.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Cause {
    /// An instruction, which will be executed again.
    Fault,
    /// It was sent, and does not come again by itself.
    Sent,
}

/// Where in a `siginfo` is noted how far it was handed on, and by what that is known.
const NOTE_OFF: usize = size_of::<libc::siginfo_t>() - 8;
const NOTE: u64 = 0x7262_7066_7472_0000;
const NOTE_MASK: u64 = !0xffff;

impl Chain {
    /// Nothing is installed yet.
    pub const fn new(signo: c_int) -> Self {
        Self {
            signo,
            newest: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Makes sure that the signal comes to `ours` first. One thread at a time. Allocates.
    ///
    /// # Errors
    /// The errno of the kernel.
    ///
    /// # Safety
    /// 1. The handler is async-signal-safe, always the same, and hands on what is not its own.
    pub unsafe fn come_first(&self, ours: &Action) -> Result<(), Errno> {
        let now = action_of(self.signo)?;
        if now.handler == ours.handler {
            return Ok(());
        }
        // Known before it can be asked for.
        self.note(now);
        // SAFETY: 1. caller's contract.
        let replaced = unsafe { action(self.signo, Some(ours)) }?;
        if replaced != now && replaced.handler != ours.handler {
            self.note(replaced);
        }
        Ok(())
    }

    fn note(&self, action: Action) {
        let older = self.newest.load(Ordering::Acquire).cast_const();
        // SAFETY: 1. none is ever freed.
        let is_same = unsafe { older.as_ref() }.is_some_and(|before| {
            before.action == action && !before.is_spent.load(Ordering::Relaxed)
        });
        if is_same {
            return;
        }
        let before = Box::leak(Box::new(Before {
            action,
            is_spent: AtomicBool::new(false),
            older,
        }));
        self.newest.store(before, Ordering::Release);
    }

    fn nth_before(&self, depth: u64) -> Option<&'static Before> {
        let mut before = self.newest.load(Ordering::Acquire).cast_const();
        for _ in 0..depth {
            // SAFETY: 1. none is ever freed.
            before = unsafe { before.as_ref() }?.older;
        }
        // SAFETY: 1. none is ever freed.
        unsafe { before.as_ref() }
    }

    /// Hands a signal on that is not ours. Async-signal-safe.
    ///
    /// # Safety
    /// 1. `info` and `context` are those that the kernel has given to a handler of this signal.
    pub unsafe fn hand_on(&self, cause: Cause, info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: 1. inside the siginfo, aligned like it.
        let note = unsafe { info.byte_add(NOTE_OFF) }.cast::<u64>();
        // SAFETY: 1. ours to read: the kernel has written all of the siginfo.
        let noted = unsafe { note.read_volatile() };
        let depth = match noted & NOTE_MASK {
            NOTE => noted & !NOTE_MASK,
            _ => 0,
        };
        let before = self.nth_before(depth);
        let action = before.map_or_else(Action::default, |before| before.action);
        let is_spent = before.is_some_and(|before| {
            action.has(libc::SA_RESETHAND) && before.is_spent.swap(true, Ordering::Relaxed)
        });
        match action.handler {
            libc::SIG_IGN if cause == Cause::Sent => return,
            libc::SIG_DFL | libc::SIG_IGN => return self.end(cause),
            _ if is_spent => return self.end(cause),
            _ => {}
        }
        let context_mask = context.cast::<libc::ucontext_t>();
        // SAFETY: 1. inside the context that the kernel passes.
        let mask_at = unsafe { &raw const (*context_mask).uc_sigmask }.cast::<Set>();
        // SAFETY: 1. the kernel's set comes first in libc's.
        let thread = unsafe { mask_at.read() };
        set_mask((thread | action.mask) & !set_of(&[self.signo]));
        // SAFETY: 1. ours to write: nobody reads the end of a siginfo of this kind.
        unsafe { note.write_volatile(NOTE | (depth + 1)) };
        // SAFETY: 1. caller's contract.
        unsafe { action.call(self.signo, info, context) };
        // SAFETY: 1. as above.
        unsafe { note.write_volatile(noted) };
    }

    /// What the kernel does when nobody handles the signal. A trap or fault comes again by itself.
    fn end(&self, cause: Cause) {
        // The process ends whether this is heard or not.
        // SAFETY: 1. no handler is installed.
        let _ = unsafe { action(self.signo, Some(&Action::default())) };
        if cause == Cause::Sent {
            raise(self.signo);
        }
    }
}

/// Sets the signals that this thread blocks.
fn set_mask(mask: Set) {
    let at = (&raw const mask).expose_provenance();
    let args = [libc::SIG_SETMASK as usize, at, 0, size_of::<Set>()];
    // SAFETY: 1. the kernel reads one set.
    let _ = unsafe { syscall(libc::SYS_rt_sigprocmask, args) };
}

/// Sends a signal to the calling thread. Failing is for a number that is no signal.
pub fn raise(signo: c_int) {
    let (pid, tid) = (getpid() as usize, gettid() as usize);
    // SAFETY: 1. takes numbers alone.
    let _ = unsafe { syscall(libc::SYS_tgkill, [pid, tid, signo as usize]) };
}

/// The alternate signal stack of the calling thread; empty if it has none.
///
/// # Errors
/// The errno of the kernel.
#[inline(never)]
pub fn alternate_stack() -> Result<Range<u64>, Errno> {
    // `stack_t`: sp, flags, size.
    let mut stack = [0_u64; 3];
    let at = (&raw mut stack).expose_provenance();
    // SAFETY: 1. only asks; there is room for the answer.
    unsafe { syscall(libc::SYS_sigaltstack, [0, at]) }?;
    // SAFETY: 1. the kernel has written it behind the compiler's back.
    let [sp, _, size] = unsafe { (&raw const stack).read_volatile() };
    Ok(sp..sp.saturating_add(size))
}

const _: () = assert!(size_of::<libc::stack_t>() == 24);
const _: () = assert!(std::mem::offset_of!(libc::stack_t, ss_size) == 16);

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn nothing(_: c_int) {}

    #[test]
    fn an_action_is_read_as_it_was_installed() {
        let signo = libc::SIGURG;
        let before = action_of(signo).unwrap();
        assert_eq!(before.handler, libc::SIG_DFL);
        let handler: extern "C" fn(c_int) = nothing;
        let ours = Action {
            handler: handler as usize,
            flags: libc::SA_RESTART as u64,
            mask: set_of(&[libc::SIGUSR1, libc::SIGRTMIN() + 3]),
        };
        // SAFETY: 1. it does nothing.
        assert_eq!(unsafe { action(signo, Some(&ours)) }, Ok(before));
        let now = action_of(signo).unwrap();
        assert_eq!((now.handler, now.mask), (ours.handler, ours.mask));
        assert!(now.has(libc::SA_RESTART) && !now.has(libc::SA_SIGINFO));
        raise(signo);
        // SAFETY: 1. it is what was there.
        unsafe { action(signo, Some(&before)) }.unwrap();
    }

    #[test]
    fn the_alternate_stack_is_that_of_this_thread() {
        // The test harness's threads have one from the standard library.
        let stack = alternate_stack().unwrap();
        let mut here = std::mem::MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: 1. only asks.
        unsafe { libc::sigaltstack(std::ptr::null(), here.as_mut_ptr()) };
        // SAFETY: 1. the kernel has filled it.
        let here = unsafe { here.assume_init() };
        let start = here.ss_sp as u64;
        assert_eq!(stack, start..start + here.ss_size as u64);
    }
}
