//! Bare system calls: no libc, no `errno`, no cancellation point.
//!
//! Code that an image, a signal handler or a fork handler can reach calls these and not libc's
//! functions: any of libc's may be hooked (`mmap`, `getpid`, `syscall` itself), or a breakpoint at
//! this moment, and a call of it would then run a program where none may run. Every room takes
//! them from here.
//!
//! Key functions: [`syscall`]; [`gettid`], [`getpid`], [`read_memory`], which many need. Source: `syscall(2)`; Linux `arch/riscv/kernel/entry.S`; RISC-V ELF
//! psABI, calling convention.
#![expect(
    unsafe_code,
    reason = "the ecall instruction, and calls that are sound for all arguments"
)]

use std::ffi::c_long;

/// An errno value, positive.
pub type Errno = i32;

/// The largest errno that a call returns, negated (kernel `include/linux/err.h`).
const MAX_ERRNO: usize = 4095;

/// Calls the kernel; missing arguments are zero.
///
/// # Errors
/// The errno that the kernel answers. `errno` itself is not touched.
///
/// # Safety
/// What the kernel does with these arguments must be sound, as with `libc::syscall`.
#[inline(always)]
pub unsafe fn syscall<const N: usize>(nr: c_long, args: [usize; N]) -> Result<usize, Errno> {
    const { assert!(N <= 6, "a system call has at most six arguments") };
    // No second array: callers run on stacks of which they may use little.
    let arg = |i: usize| if i < N { args[i] } else { 0 };
    let all = [arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)];
    // SAFETY: 1. the caller's promise.
    let ret = unsafe { ecall(nr, all) };
    if ret > usize::MAX - MAX_ERRNO {
        return Err(ret.wrapping_neg() as Errno);
    }
    Ok(ret)
}

/// The id of this process, never cached.
#[must_use]
pub fn getpid() -> i32 {
    // SAFETY: 1. takes nothing, changes nothing.
    unsafe { syscall(libc::SYS_getpid, []) }.unwrap_or_default() as i32
}

/// The id of this thread, never cached.
#[must_use]
pub fn gettid() -> i32 {
    // SAFETY: 1. takes nothing, changes nothing.
    unsafe { syscall(libc::SYS_gettid, []) }.unwrap_or_default() as i32
}

/// Copies this process's memory at `addr` into `buf`; how many bytes. Unmapped memory ends the copy,
/// or is EFAULT if it begins with it; nothing crashes.
///
/// # Errors
/// The errno of `process_vm_readv(2)`, which may be filtered.
pub fn read_memory(addr: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    let local = [buf.as_mut_ptr().expose_provenance(), buf.len()];
    let remote = [addr as usize, buf.len()];
    let (local_at, remote_at) = (
        local.as_ptr().expose_provenance(),
        remote.as_ptr().expose_provenance(),
    );
    // Not the process: its first thread may have ended, and has no memory then.
    let args = [gettid() as usize, local_at, 1, remote_at, 1, 0];
    // SAFETY:
    // 1. Both are an `iovec`: an address and a length. `local` is writable (a live `&mut`).
    // 2. The kernel checks `remote` page by page.
    unsafe { syscall(libc::SYS_process_vm_readv, args) }
}

/// The kernel keeps all registers but `a0` and those of vectors.
#[cfg(target_arch = "riscv64")]
#[inline(always)]
unsafe fn ecall(nr: c_long, [a0, a1, a2, a3, a4, a5]: [usize; 6]) -> usize {
    let ret: usize;
    // SAFETY: 1. the caller's promise. 2. What the kernel changes is named.
    unsafe {
        std::arch::asm!(
            "ecall",
            inlateout("a0") a0 => ret,
            in("a1") a1,
            in("a2") a2,
            in("a3") a3,
            in("a4") a4,
            in("a5") a5,
            in("a7") nr,
            clobber_abi("C"),
            options(nostack),
        );
    }
    ret
}

/// Other architectures build and test this crate, and hook nothing.
#[cfg(not(target_arch = "riscv64"))]
unsafe fn ecall(nr: c_long, [a0, a1, a2, a3, a4, a5]: [usize; 6]) -> usize {
    // SAFETY: 1. no preconditions.
    let errno_at = unsafe { libc::__errno_location() };
    // SAFETY: 1. libc's pointer to this thread's errno is always valid.
    let before = unsafe { errno_at.read() };
    // SAFETY: 1. the caller's promise.
    let ret = unsafe { libc::syscall(nr, a0, a1, a2, a3, a4, a5) };
    // SAFETY: 1. as above.
    let errno = unsafe { errno_at.replace(before) };
    match ret {
        -1 => (-errno as isize) as usize,
        _ => ret as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_errnos_are_told_apart() {
        // SAFETY: 1. takes nothing, changes nothing.
        let pid = unsafe { syscall(libc::SYS_getpid, []) };
        assert_eq!(pid, Ok(std::process::id() as usize));
        // SAFETY: 1. a descriptor that is never open.
        let closed = unsafe { syscall(libc::SYS_close, [u32::MAX as usize]) };
        assert_eq!(closed, Err(libc::EBADF));
    }
}
