//! What programs print, and where it goes.
//!
//! ```text
//!   task-1234    [002] 5171.028144: bpf_trace_printk: MESSAGE
//! ```
//!
//! A line is made on the stack and handed over by one `write(2)`, so that a program prints from
//! wherever it is: inside `malloc`, inside a signal handler. Nobody waits, nothing is allocated.
//!
//! Key types: [`TraceSink`], [`trace_pipe`]. Neighbour: `printf` knows the formats. Source: kernel
//! `kernel/trace/bpf_trace.c` (`bpf_trace_printk`, `bpf_trace_vprintk`),
//! `kernel/bpf/helpers.c` (`bpf_snprintf`).

#![expect(
    unsafe_code,
    reason = "reads the formats and arguments that programs point to"
)]

use std::fmt::Write;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use super::printf::{Out, print};
use super::{current_comm, errno, get_smp_processor_id, ktime_get_ns};

/// Room for a message. Kernel: `MAX_BPRINTF_BUF`.
const MAX_MESSAGE_BYTES: usize = 1024;
/// Room for what stands before it.
const MAX_HEAD_BYTES: usize = 96;
/// Kernel: `MAX_BPRINTF_VARARGS`.
const MAX_ARGS: usize = 12;

/// Where the lines of `trace_printk` and `trace_vprintk` go.
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
pub enum TraceSink {
    /// To a file that is open, one write a line. Standard error at first.
    Fd(RawFd),
    /// To a function, a line at a time, with its end. It runs wherever the program runs: it must
    /// not wait for a lock, allocate, or panic if programs are on functions that do.
    Call(fn(&[u8])),
    /// Nowhere.
    Off,
}

/// [`TraceSink::Call`], if it is not null.
static CALL: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
/// [`TraceSink::Fd`], if it is not negative.
static FD: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);

/// Sets where the lines of all programs of this process go. Lines that are printed meanwhile go to
/// the one or the other.
pub fn trace_pipe(sink: TraceSink) {
    let fd = match sink {
        TraceSink::Call(call) => {
            return CALL.store(call as *mut (), Ordering::Release);
        }
        TraceSink::Fd(fd) => fd.max(-1),
        TraceSink::Off => -1,
    };
    FD.store(fd, Ordering::Relaxed);
    CALL.store(ptr::null_mut(), Ordering::Release);
}

fn hand_over(line: &[u8]) {
    let call = CALL.load(Ordering::Acquire);
    if !call.is_null() {
        // SAFETY: 1. `trace_pipe` has put a function of this type there.
        let call = unsafe { std::mem::transmute::<*mut (), fn(&[u8])>(call) };
        return call(line);
    }
    let fd = FD.load(Ordering::Relaxed);
    if fd < 0 {
        return;
    }
    // The bare call: `write` may be hooked, and is a point where threads are cancelled.
    // SAFETY: 1. `line` is that long; a descriptor that is closed is refused.
    let write = || unsafe { libc::syscall(libc::SYS_write, fd, line.as_ptr(), line.len()) };
    while write() < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted {
    }
}

/// Prints a line; how long its message is.
fn print_line(fmt: &[u8], args: &[u64]) -> i64 {
    let mut buf = [0; MAX_HEAD_BYTES + MAX_MESSAGE_BYTES];
    let (head, message) = buf.split_at_mut(MAX_HEAD_BYTES);
    let mut message = Out::new(&mut message[..MAX_MESSAGE_BYTES - 1]);
    if print(&mut message, fmt, args).is_err() {
        return errno(libc::EINVAL);
    }
    let (wanted, len) = (message.wanted(), message.len());
    let head_len = print_head(head);
    // The message moves up to its head.
    buf.copy_within(MAX_HEAD_BYTES..MAX_HEAD_BYTES + len, head_len);
    let mut end = head_len + len;
    if end == 0 || buf[end - 1] != b'\n' {
        buf[end] = b'\n';
        end += 1;
    }
    hand_over(&buf[..end]);
    wanted as i64
}

/// Who prints, where and when; how long that is.
fn print_head(head: &mut [u8]) -> usize {
    let mut out = Out::new(head);
    let comm = current_comm();
    let len = comm.iter().position(|b| *b == 0).unwrap_or(comm.len());
    out.put(&comm[..len]);
    // SAFETY: 1. takes nothing, changes nothing.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    let (cpu, micros) = (get_smp_processor_id(), ktime_get_ns() / 1000);
    let (secs, micros) = (micros / 1_000_000, micros % 1_000_000);
    // It fits, and `Out` refuses nothing.
    let _ = write!(
        out,
        "-{tid} [{cpu:03}] {secs}.{micros:06}: bpf_trace_printk: "
    );
    out.len()
}

/// A format with its final zero cut off; kernel: there must be one in the given length.
///
/// # Safety
/// 1. There are `size` bytes at `fmt`, for as long as the program waits.
unsafe fn format<'f>(fmt: *const u8, size: u32) -> Option<&'f [u8]> {
    if size == 0 {
        return None;
    }
    // SAFETY: 1. caller's contract.
    let bytes = unsafe { std::slice::from_raw_parts(fmt, size as usize) };
    let len = bytes.iter().position(|b| *b == 0)?;
    Some(&bytes[..len])
}

/// The arguments of a helper that takes an array of them.
///
/// # Safety
/// 1. There are `len` bytes at `data`.
unsafe fn arguments(args: &mut [u64; MAX_ARGS], data: *const u64, len: u32) -> Option<&[u64]> {
    let count = len as usize / 8;
    if len % 8 != 0 || count > MAX_ARGS || (data.is_null() && len != 0) {
        return None;
    }
    for (i, arg) in args[..count].iter_mut().enumerate() {
        let at = data.wrapping_add(i);
        // SAFETY: 1. caller's contract.
        *arg = unsafe { at.read_unaligned() };
    }
    Some(&args[..count])
}

/// # Safety
/// 1. There are `size` bytes at `fmt`.
pub(super) unsafe extern "C" fn trace_printk(
    fmt: *const u8,
    size: u32,
    a: u64,
    b: u64,
    c: u64,
) -> i64 {
    // SAFETY: 1. caller's contract.
    match unsafe { format(fmt, size) } {
        Some(fmt) => print_line(fmt, &[a, b, c]),
        None => errno(libc::EINVAL),
    }
}

/// # Safety
/// 1. There are `size` bytes at `fmt`, and `len` bytes at `data`.
pub(super) unsafe extern "C" fn trace_vprintk(
    fmt: *const u8,
    size: u32,
    data: *const u64,
    len: u32,
) -> i64 {
    let mut args = [0; MAX_ARGS];
    // SAFETY: 1. caller's contract.
    let fmt = unsafe { format(fmt, size) };
    // SAFETY: 1. caller's contract.
    let args = unsafe { arguments(&mut args, data, len) };
    match fmt.zip(args) {
        Some((fmt, args)) => print_line(fmt, args),
        None => errno(libc::EINVAL),
    }
}

/// Prints to memory: how many bytes it takes with the final zero, cut to `size`.
///
/// # Safety
/// 1. There are `size` bytes at `to`, and `len` bytes at `data`.
/// 2. `fmt` is a string that ends.
pub(super) unsafe extern "C" fn snprintf(
    to: *mut u8,
    size: u32,
    fmt: *const libc::c_char,
    data: *const u64,
    len: u32,
) -> i64 {
    let mut args = [0; MAX_ARGS];
    // SAFETY: 1. caller's contract.
    let Some(args) = (unsafe { arguments(&mut args, data, len) }) else {
        return errno(libc::EINVAL);
    };
    // SAFETY: 1. contract 2.
    let fmt = unsafe { std::ffi::CStr::from_ptr(fmt) };
    let mut nothing = [];
    let to: &mut [u8] = match size {
        0 => &mut nothing,
        _ => {
            // SAFETY: 1. caller's contract.
            unsafe { to.write_bytes(0, size as usize) };
            // SAFETY: 1. as above; they are set now.
            unsafe { std::slice::from_raw_parts_mut(to, size as usize) }
        }
    };
    let room = to.len().saturating_sub(1);
    let mut out = Out::new(&mut to[..room]);
    match print(&mut out, fmt.to_bytes(), args) {
        Ok(()) => out.wanted() as i64 + 1,
        Err(_) => errno(libc::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn keep(line: &[u8]) {
        let line = String::from_utf8_lossy(line).into_owned();
        LINES.lock().unwrap().push(line);
    }

    #[test]
    fn lines_have_heads_and_ends() {
        trace_pipe(TraceSink::Call(keep));
        let fmt = b"got %d and %s\0";
        let text = c"more".as_ptr().expose_provenance() as u64;
        // SAFETY: 1. the format.
        let len = unsafe { trace_printk(fmt.as_ptr(), fmt.len() as u32, 7, text, 0) };
        assert_eq!(len, 14);
        let args = [1, 2, 3, 4];
        let fmt = b"%d%d%d%d\n\0";
        let size = fmt.len() as u32;
        // SAFETY: 1. the format and four words.
        let len = unsafe { trace_vprintk(fmt.as_ptr(), size, args.as_ptr(), 32) };
        assert_eq!(len, 5);
        // Without its final zero, without arguments, with half an argument.
        // SAFETY: 1. as above.
        let bad = unsafe { trace_printk(fmt.as_ptr(), size - 1, 0, 0, 0) };
        assert_eq!(bad, errno(libc::EINVAL));
        for (data, len) in [(ptr::null(), 8), (args.as_ptr(), 24), (args.as_ptr(), 31)] {
            // SAFETY: 1. as above; nothing is read from null.
            let bad = unsafe { trace_vprintk(fmt.as_ptr(), size, data, len) };
            assert_eq!(bad, errno(libc::EINVAL), "{len}");
        }
        let mut long = vec![b'x'; 2 * MAX_MESSAGE_BYTES];
        long.push(0);
        // SAFETY: 1. the format.
        let len = unsafe { trace_printk(long.as_ptr(), long.len() as u32, 0, 0, 0) };
        assert_eq!(len, 2 * MAX_MESSAGE_BYTES as i64);
        trace_pipe(TraceSink::Off);
        // SAFETY: 1. as above.
        let len = unsafe { trace_vprintk(fmt.as_ptr(), size, args.as_ptr(), 32) };
        assert_eq!(len, 5);
        trace_pipe(TraceSink::Fd(libc::STDERR_FILENO));
        let lines = std::mem::take(&mut *LINES.lock().unwrap());
        // SAFETY: 1. takes nothing.
        let tid = unsafe { libc::syscall(libc::SYS_gettid) };
        let cut = "x".repeat(MAX_MESSAGE_BYTES - 1);
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, want) in lines.iter().zip(["got 7 and more", "1234", &cut]) {
            assert!(line.contains(&format!("-{tid} [")), "{line}");
            assert!(
                line.ends_with(&format!(": bpf_trace_printk: {want}\n")),
                "{line}"
            );
        }
    }

    #[test]
    fn what_is_printed_to_memory_ends_in_zero() {
        let args = [0xfeed];
        for (room, want) in [(16, &b"= feed\0"[..]), (4, b"= f\0"), (1, b"\0"), (0, b"")] {
            let mut to = [0xff; 16];
            let fmt = c"= %x".as_ptr();
            // SAFETY: 1. so many bytes, one word. 2. It does.
            let len = unsafe { snprintf(to.as_mut_ptr(), room, fmt, args.as_ptr(), 8) };
            assert_eq!((len, &to[..want.len()]), (7, want), "{room}");
            assert!(to[room as usize..].iter().all(|b| *b == 0xff));
        }
    }
}
