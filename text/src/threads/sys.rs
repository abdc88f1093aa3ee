//! The system calls of this module, made directly.
//!
//! libc's own functions (`open`, `read`, `nanosleep`, `syscall`) are likely targets of hooks; all
//! of these are bare ([`crate::syscall`]), and async-signal-safe.

#![expect(
    unsafe_code,
    reason = "system calls that libc's safe wrappers do not cover"
)]

use std::ffi::CStr;
use std::time::Duration;

use crate::syscall::syscall;

pub(super) use crate::syscall::{Errno, getpid, gettid, read_memory};

/// A file descriptor of this module, closed on drop.
pub(super) struct Fd(i32);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: 1. the descriptor is ours alone and is not used after this.
        let _ = unsafe { syscall(libc::SYS_close, [self.0 as usize]) };
    }
}

impl Fd {
    /// Reads from offset 0 until the buffer is full or the file ends.
    pub(super) fn read_from_start(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: 1. `buf` is writable for its length (a live `&mut`).
        unsafe {
            syscall(
                libc::SYS_pread64,
                [self.0 as usize, start_of(buf), buf.len(), 0],
            )
        }
    }

    /// Reads on from where the last read ended.
    pub(super) fn read_on(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: 1. `buf` is writable for its length (a live `&mut`).
        unsafe { syscall(libc::SYS_read, [self.0 as usize, start_of(buf), buf.len()]) }
    }

    /// `getdents64` into `buf`.
    pub(super) fn list(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: 1. `buf` is writable for its length (a live `&mut`).
        unsafe {
            syscall(
                libc::SYS_getdents64,
                [self.0 as usize, start_of(buf), buf.len()],
            )
        }
    }
}

/// Opens a file or folder for reading, relative to `at` if given.
pub(super) fn open(at: Option<&Fd>, path: &CStr) -> Result<Fd, Errno> {
    let at = at.map_or(libc::AT_FDCWD, |fd| fd.0);
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    let args = [
        at as usize,
        path.as_ptr().expose_provenance(),
        flags as usize,
    ];
    // SAFETY: 1. `path` ends in a null byte (a `CStr`).
    let fd = unsafe { syscall(libc::SYS_openat, args) }?;
    i32::try_from(fd).map(Fd).map_err(|_| libc::EBADF)
}

/// Whether thread `tid` of this process has an id still.
pub(super) fn is_alive(tid: i32) -> bool {
    // SAFETY: 1. signal 0 is not sent, only checked.
    let sent = unsafe { syscall(libc::SYS_tgkill, [getpid() as usize, tid as usize, 0]) };
    sent != Err(libc::ESRCH)
}

/// Sleeps this long, or less if a signal comes.
pub(super) fn pause(time: Duration) {
    // `struct timespec` of the kernel.
    let spec = [time.as_secs(), time.subsec_nanos().into()];
    let spec = spec.as_ptr().expose_provenance();
    // SAFETY: 1. it lives through the call; a null remainder is allowed.
    let _ = unsafe { syscall(libc::SYS_nanosleep, [spec, 0]) };
}

fn start_of(buf: &mut [u8]) -> usize {
    buf.as_mut_ptr().expose_provenance()
}

/// The calling thread's `tp`, above which its stack does not go if it is one of a C library's
/// threads; 0 where it is no register that is known here. Source: psABI, "Integer Register
/// Convention".
#[inline(always)]
#[must_use]
pub fn thread_pointer() -> u64 {
    #[cfg(target_arch = "riscv64")]
    {
        let tp: u64;
        // SAFETY: 1. copies a register; touches no memory.
        unsafe {
            std::arch::asm!("mv {}, tp", out(reg) tp, options(nomem, nostack, preserves_flags));
        }
        tp
    }
    #[cfg(not(target_arch = "riscv64"))]
    0
}

/// This thread's `errno`, for tests of what keeps it.
#[cfg(test)]
pub(super) fn errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Sets this thread's `errno`.
#[cfg(test)]
pub(super) fn set_errno(value: Errno) {
    // SAFETY: 1. takes nothing, changes nothing.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: 1. libc's pointer to this thread's errno is always valid.
    unsafe { *errno = value };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_mapped_is_an_error_and_a_border_a_short_count() {
        let mut buf = [0_u8; 64];
        assert_eq!(read_memory(0, &mut buf), Err(libc::EFAULT));
        let here = [7_u8; 64];
        assert_eq!(read_memory(here.as_ptr() as u64, &mut buf), Ok(64));
        assert_eq!(buf, here);
    }

    #[test]
    fn a_failed_open_gives_its_errno() {
        assert_eq!(open(None, c"/proc/self/no-such").err(), Some(libc::ENOENT));
        assert!(is_alive(gettid()));
    }
}
