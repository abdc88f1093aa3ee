//! Where a thread finds the number of its hart without asking the kernel.
//!
//! glibc registers an area of each thread, at one distance from its thread pointer, in which the
//! kernel keeps the number current (restartable sequences).
//!
//! Key function: [`cpu_id_off`]. Source: glibc manual, "Restartable Sequences"; kernel
//! `include/uapi/linux/rseq.h` (`struct rseq`).

#![expect(unsafe_code, reason = "asks the C library for two of its variables")]

use std::ffi::CStr;

/// `cpu_id` in `struct rseq`.
const CPU_ID_OFF: isize = 4;

/// The distance of the number, 32 bits, from the thread pointer; `None` where threads have none.
pub(super) fn cpu_id_off() -> Option<i32> {
    let (off, size) = (
        symbol::<isize>(c"__rseq_offset"),
        symbol::<u32>(c"__rseq_size"),
    );
    // The C library does not know of it, or the kernel does not: the size is zero then.
    if size? < CPU_ID_OFF as u32 + 4 {
        return None;
    }
    i32::try_from(off? + CPU_ID_OFF).ok()
}

/// The value of a constant of the C library.
fn symbol<T: Copy>(name: &CStr) -> Option<T> {
    // SAFETY: 1. `name` ends; nothing is loaded.
    let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }.cast::<T>();
    // SAFETY: 1. it is there, of the type that the manual gives, and never changes.
    (!at.is_null()).then(|| unsafe { at.read() })
}
