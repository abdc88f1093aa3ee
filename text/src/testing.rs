//! For tests: what the kernel was asked, and a kernel that refuses.
//!
//! An emulator shows fresh code even without a flush, so tests count the flushes themselves.
//! Neighbour: `flush`.

/// How many flushes this process has asked for.
#[must_use]
pub fn flush_count() -> u64 {
    crate::flush::flush_count()
}

/// How often this process has read what is mapped: `/proc/self/maps`.
#[must_use]
pub fn maps_reading_count() -> u64 {
    crate::proc_maps::reading_count()
}

/// How often this process has looked where all its threads are.
#[must_use]
pub fn thread_look_count() -> u64 {
    crate::threads::look_count()
}

/// Makes the next `n` flushes fail with EPERM, as under a seccomp filter that refuses the call.
pub fn refuse_next_flushes(n: u32) {
    refuse_flushes_after(0, n);
}

/// Lets the next `pass` flushes pass and makes the `n` after them fail with EPERM: so a change can
/// be refused in the middle. Replaces what was asked for before.
pub fn refuse_flushes_after(pass: u32, n: u32) {
    crate::flush::refuse_flushes_after(pass, n);
}
