//! The system calls of this module, made directly.
//!
//! libc's own functions (`open`, `read`, `nanosleep`) are likely targets of hooks; only the bare
//! `syscall` is used, and errors are returned as errno values. All of these are
//! async-signal-safe but for `errno` itself, which the signal handler saves.

#![expect(
    unsafe_code,
    reason = "system calls that libc's safe wrappers do not cover"
)]

use std::ffi::CStr;
use std::time::Duration;

/// An errno value.
pub(super) type Errno = i32;

/// A file descriptor of this module, closed on drop.
pub(super) struct Fd(i32);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: 1. the descriptor is ours alone and is not used after this.
        unsafe { libc::syscall(libc::SYS_close, self.0) };
    }
}

impl Fd {
    /// Reads from offset 0 until the buffer is full or the file ends.
    pub(super) fn read_from_start(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: 1. `buf` is writable for its length (a live `&mut`).
        let got = unsafe {
            libc::syscall(
                libc::SYS_pread64,
                self.0,
                buf.as_mut_ptr(),
                buf.len(),
                0_i64,
            )
        };
        check(got)
    }

    /// Reads on from where the last read ended.
    pub(super) fn read_on(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: 1. `buf` is writable for its length (a live `&mut`).
        let got = unsafe { libc::syscall(libc::SYS_read, self.0, buf.as_mut_ptr(), buf.len()) };
        check(got)
    }

    /// `getdents64` into `buf`, with all signals blocked: the kernel ends the list early, and says
    /// nothing, when one is pending (`filldir64`).
    pub(super) fn list(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        let args = [
            self.0 as usize,
            buf.as_mut_ptr().expose_provenance(),
            buf.len(),
        ];
        let _whole = crate::sys::BlockedSignals::new();
        // No function of libc: one that is closed (`detour::window`) would not return here.
        // SAFETY: 1. `buf` is writable for its length (a live `&mut`).
        unsafe { crate::syscall::syscall(libc::SYS_getdents64, args) }
    }
}

/// Opens a file or folder for reading, relative to `at` if given.
pub(super) fn open(at: Option<&Fd>, path: &CStr) -> Result<Fd, Errno> {
    let at = at.map_or(libc::AT_FDCWD, |fd| fd.0);
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: 1. `path` ends in a null byte (a `CStr`).
    let fd = unsafe { libc::syscall(libc::SYS_openat, at, path.as_ptr(), flags) };
    let fd = check(fd)?;
    i32::try_from(fd).map(Fd).map_err(|_| libc::EBADF)
}

/// Copies this process's memory at `addr` into `buf`. Unmapped memory ends the copy (a short
/// count), or is EFAULT if it begins with it; nothing crashes.
pub(super) fn read_memory(addr: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(addr as usize),
        iov_len: buf.len(),
    };
    // SAFETY:
    // 1. `local` is writable for its length (a live `&mut`).
    // 2. The kernel checks `remote` page by page.
    let got = unsafe {
        libc::syscall(
            libc::SYS_process_vm_readv,
            // Not the process: its first thread may have ended, and has no memory then.
            gettid(),
            &raw const local,
            1_usize,
            &raw const remote,
            1_usize,
            0_usize,
        )
    };
    check(got)
}

/// The id of this process, never cached.
pub(super) fn getpid() -> i32 {
    // SAFETY: 1. takes nothing, changes nothing.
    unsafe { libc::syscall(libc::SYS_getpid) as i32 }
}

/// The id of this thread.
pub(super) fn gettid() -> i32 {
    // SAFETY: 1. takes nothing, changes nothing.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// Whether thread `tid` of this process has an id still.
pub(super) fn is_alive(tid: i32) -> bool {
    // SAFETY: 1. signal 0 is not sent, only checked.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, getpid(), tid, 0) };
    check(sent) != Err(libc::ESRCH)
}

/// Sleeps this long, or less if a signal comes.
pub(super) fn pause(time: Duration) {
    let spec = libc::timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
    };
    // SAFETY: 1. `spec` lives through the call; a null remainder is allowed.
    unsafe { libc::syscall(libc::SYS_nanosleep, &raw const spec, 0_usize) };
}

/// The result of a raw system call made through libc.
pub(super) fn check(ret: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(ret).map_err(|_| errno())
}

/// This thread's `errno`.
pub(super) fn errno() -> Errno {
    let errno = errno_location();
    // SAFETY: 1. libc's pointer to this thread's errno is always valid.
    unsafe { *errno }
}

/// Sets this thread's `errno`.
pub(super) fn set_errno(value: Errno) {
    let errno = errno_location();
    // SAFETY: 1. libc's pointer to this thread's errno is always valid.
    unsafe { *errno = value };
}

fn errno_location() -> *mut Errno {
    // SAFETY: 1. takes nothing, changes nothing.
    unsafe { libc::__errno_location() }
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
