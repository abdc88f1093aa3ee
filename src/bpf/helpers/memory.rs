//! Helpers on memory that may not be there: the kernel looks, and says what it found.
//!
//! Key functions: [`probe_read`], [`probe_read_str`], [`probe_write_user`]; [`read_str`] for the
//! rest of the crate. Source: kernel `kernel/trace/bpf_trace.c` (`bpf_probe_read_user_str`),
//! `mm/maccess.c` (`strncpy_from_user_nofault`).

#![expect(
    unsafe_code,
    reason = "helpers read and write what programs point them to"
)]

use super::errno;

/// The smallest page: what is there at an address is there up to the next multiple of this.
const PAGE_BYTES: usize = 4096;

/// Both ends of a copy.
fn vectors(local: *mut u8, remote: u64, len: usize) -> (libc::iovec, libc::iovec) {
    let of = |base: *mut u8| libc::iovec {
        iov_base: base.cast(),
        iov_len: len,
    };
    let remote = std::ptr::with_exposed_provenance_mut(remote as usize);
    (of(local), of(remote))
}

/// Copies all of `len` bytes from `src`, which need not be there; whether it did.
///
/// # Safety
/// 1. There is room for `len` bytes at `dst`.
unsafe fn read(dst: *mut u8, src: u64, len: usize) -> bool {
    let (local, remote) = vectors(dst, src, len);
    // Not the process: its first thread may have ended, and has no memory then.
    // SAFETY: 1. no preconditions.
    let tid = unsafe { libc::gettid() };
    // SAFETY:
    // 1. Caller's contract.
    // 2. The kernel checks `remote`.
    let got = unsafe { libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0) };
    got == len as isize
}

/// Copies `size` bytes from an address that need not be one.
///
/// # Safety
/// 1. There is room for `size` bytes at `dst`.
pub(in crate::bpf) unsafe extern "C" fn probe_read(dst: *mut u8, size: u32, src: *const u8) -> i64 {
    // SAFETY: 1. caller's contract.
    if unsafe { read(dst, src.expose_provenance() as u64, size as usize) } {
        return 0;
    }
    // SAFETY: 1. as above.
    unsafe { dst.write_bytes(0, size as usize) };
    errno(libc::EFAULT)
}

/// Copies a string, cut if it is longer than there is room for, to `dst`: how many bytes it has
/// there with its final zero; zeros follow. `None`, and zeros all over, if it is not there.
pub(super) fn read_str(dst: &mut [u8], src: u64) -> Option<usize> {
    let mut len = 0;
    while len < dst.len() {
        let at = src.wrapping_add(len as u64);
        let whole = PAGE_BYTES - at as usize % PAGE_BYTES;
        let room = &mut dst[len..];
        let room_bytes = room.len().min(whole);
        let room = &mut room[..room_bytes];
        // SAFETY: 1. so much room there is.
        if !unsafe { read(room.as_mut_ptr(), at, room_bytes) } {
            dst.fill(0);
            return None;
        }
        if let Some(end) = room.iter().position(|b| *b == 0) {
            dst[len + end..].fill(0);
            return Some(len + end + 1);
        }
        len += room_bytes;
    }
    if let Some(last) = dst.last_mut() {
        *last = 0;
    }
    Some(len)
}

/// # Safety
/// 1. There are `size` bytes at `dst`.
pub(super) unsafe extern "C" fn probe_read_str(dst: *mut u8, size: u32, src: *const u8) -> i64 {
    if size == 0 {
        return 0;
    }
    // They may hold anything yet.
    // SAFETY: 1. caller's contract.
    unsafe { dst.write_bytes(0, size as usize) };
    // SAFETY: 1. as above; now they are set, and nobody else has them while the program waits.
    let dst = unsafe { std::slice::from_raw_parts_mut(dst, size as usize) };
    match read_str(dst, src.expose_provenance() as u64) {
        Some(len) => len as i64,
        None => errno(libc::EFAULT),
    }
}

/// Writes where it may not be allowed: memory that cannot be written stays as it is.
///
/// # Safety
/// 1. There are `len` bytes at `src`.
/// 2. What is written may be written by this program.
pub(super) unsafe extern "C" fn probe_write_user(dst: *mut u8, src: *const u8, len: u32) -> i64 {
    let (local, remote) = vectors(src.cast_mut(), dst.expose_provenance() as u64, len as usize);
    let pid = std::process::id() as libc::pid_t;
    // SAFETY:
    // 1. Caller's contract.
    // 2. Caller's contract; the kernel checks that it can be written.
    let put = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    match put == len as isize {
        true => 0,
        false => errno(libc::EFAULT),
    }
}

/// Compares a string of at most `len` bytes with another.
///
/// # Safety
/// 1. Both can be read up to their ends or `len` bytes.
pub(super) unsafe extern "C" fn strncmp(a: *const u8, len: u32, b: *const u8) -> i64 {
    // SAFETY: 1. caller's contract.
    let order = unsafe { libc::strncmp(a.cast(), b.cast(), len as usize) };
    i64::from(order.signum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere() -> *mut u8 {
        std::ptr::without_provenance_mut(8)
    }

    #[test]
    fn memory_that_is_not_there_reads_as_zeros() {
        let (mut got, there) = ([1u8; 8], [7u8; 8]);
        // SAFETY: 1. eight bytes at `got`.
        let read = |dst: &mut [u8; 8], src| unsafe { probe_read(dst.as_mut_ptr(), 8, src) };
        assert_eq!(read(&mut got, there.as_ptr()), 0);
        assert_eq!(got, there);
        assert_eq!(read(&mut got, nowhere()), errno(libc::EFAULT));
        assert_eq!(got, [0; 8]);
    }

    #[test]
    fn strings_are_cut_to_the_room_there_is() {
        for (text, room, want, bytes) in [
            (c"hook", 8, 5, &b"hook\0\0\0\0"[..]),
            (c"hook", 5, 5, b"hook\0"),
            (c"hook", 3, 3, b"ho\0"),
            (c"", 2, 1, b"\0\0"),
            (c"hook", 0, 0, b""),
        ] {
            let mut got = vec![0xff; room];
            let src = text.as_ptr().cast();
            // SAFETY: 1. so many bytes.
            let len = unsafe { probe_read_str(got.as_mut_ptr(), room as u32, src) };
            assert_eq!((len, &got[..]), (want, bytes), "{text:?} in {room}");
        }
        let mut got = [0xff; 4];
        // SAFETY: 1. four bytes.
        let len = unsafe { probe_read_str(got.as_mut_ptr(), 4, nowhere()) };
        assert_eq!((len, got), (errno(libc::EFAULT), [0; 4]));
    }

    /// A string that ends at the end of its page is read, though nothing is behind it.
    #[test]
    fn strings_end_where_memory_ends() {
        let len = 2 * PAGE_BYTES;
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: 1. a new map.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        assert_ne!(map, libc::MAP_FAILED);
        let map = map.cast::<u8>();
        let second = map.wrapping_add(PAGE_BYTES);
        // SAFETY: 1. the second page is nobody's.
        unsafe { libc::munmap(second.cast(), PAGE_BYTES) };
        let text = second.wrapping_sub(5);
        // SAFETY: 1. the last bytes of the first page.
        unsafe { text.copy_from_nonoverlapping(c"five".as_ptr().cast(), 5) };
        let mut got = [0; 64];
        let at = text.expose_provenance() as u64;
        assert_eq!(read_str(&mut got, at), Some(5));
        assert_eq!(&got[..5], b"five\0");
        // SAFETY: 1. as above.
        unsafe { text.wrapping_add(4).write(b'!') };
        assert_eq!(read_str(&mut got, at), None);
        // SAFETY: 1. nobody has it.
        unsafe { libc::munmap(map.cast(), PAGE_BYTES) };
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let mut cell = 1u64;
        let new = 2u64;
        let src = (&raw const new).cast();
        // SAFETY: 1. and 2. eight bytes of this test.
        let put = unsafe { probe_write_user((&raw mut cell).cast(), src, 8) };
        assert_eq!((put, cell), (0, 2));
        static FIXED: u64 = 3;
        for dst in [(&raw const FIXED).cast_mut().cast(), nowhere()] {
            // SAFETY: 1. as above. 2. It is not.
            let put = unsafe { probe_write_user(dst, src, 8) };
            assert_eq!(put, errno(libc::EFAULT));
        }
        assert_eq!(FIXED, 3);
    }

    #[test]
    fn strings_compare_up_to_their_length() {
        for (a, len, b, want) in [
            (c"read", 5, c"read", 0),
            (c"read", 5, c"ready", -1),
            (c"ready", 4, c"read", 0),
            (c"b", 2, c"a", 1),
        ] {
            // SAFETY: 1. both end.
            let got = unsafe { strncmp(a.as_ptr().cast(), len, b.as_ptr().cast()) };
            assert_eq!(got, want, "{a:?} {b:?}");
        }
    }
}
