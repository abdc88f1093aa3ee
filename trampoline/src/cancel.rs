//! Cancellation of threads (`pthread_cancel`) stays out of closures and of changes.
//!
//! A thread that is cancelled is unwound by force, from the next cancellation point: any `println!`
//! has one. Such an unwinding must not meet the `catch_unwind` around a closure, which would end the
//! process; nor must it leave a change of hooks in the middle. So a thread's cancellation is disabled
//! while it runs a closure or makes a change; what comes meanwhile waits for the next cancellation
//! point behind it.
//!
//! `pthread_setcancelstate` may be hooked, or a trap, so it cannot be called there. What it changes
//! is one bit of the thread's block, at a distance from `tp` that is the same in all threads. The
//! bit is found by comparing the block in both states ([`find`]), once, before the first
//! change. If that does not give exactly one bit, closures run as if there were no cancellation.
//!
//! Key functions: [`find`], [`disable`]. Neighbours: `mark`, `owner`. Source: `pthread_setcancelstate(3)`;
//! glibc `nptl/pthread_setcancelstate.c`, `nptl/descr.h`; psABI for `tp`.
#![cfg_attr(
    target_arch = "riscv64",
    expect(unsafe_code, reason = "changes a bit of libc's thread block")
)]

pub(crate) use imp::{disable, enable, find};

#[cfg(target_arch = "riscv64")]
mod imp {
    use std::ffi::c_int;
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use text::syscall::read_memory;

    use crate::guard::tp;

    /// Bytes below `tp` that are compared: more than any C library's block of a thread.
    const BLOCK_BYTES: usize = 4096;
    /// Memory is asked for in such pieces, since the block may begin where nothing is mapped.
    const PIECE_BYTES: usize = 64;
    const TRIES: usize = 4;

    /// Distance below `tp` in the upper half, the bit in the lower one; 0: not looked for yet.
    static PLACE: AtomicU64 = AtomicU64::new(0);
    /// It was looked for in vain.
    const NOWHERE: u64 = u64::MAX;

    unsafe extern "C" {
        /// As `pthread_setcancelstate(3)`.
        fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
    }

    const ENABLE: c_int = 0;
    const DISABLE: c_int = 1;

    /// Finds the bit, if it has not been looked for.
    pub(crate) fn find() {
        if PLACE.load(Ordering::Relaxed) == 0 {
            let found = (0..TRIES).find_map(|_| compare());
            PLACE.store(found.unwrap_or(NOWHERE), Ordering::Relaxed);
        }
    }

    /// The place, if the two states differ in one bit alone.
    fn compare() -> Option<u64> {
        let before = set(DISABLE);
        let disabled = block();
        set(ENABLE);
        let enabled = block();
        set(DISABLE);
        let again = block();
        set(before);
        let words = disabled.iter().zip(&enabled).zip(&again).enumerate();
        let mut differing = words.filter(|(_, ((a, b), c))| a != b || a != c);
        let (i, ((a, b), c)) = differing.next()?;
        let bit = a ^ b;
        let is_it = a == c && bit.is_power_of_two() && a & bit != 0 && differing.next().is_none();
        let below = (BLOCK_BYTES - i * size_of::<u32>()) as u64;
        is_it.then_some(below << 32 | u64::from(bit))
    }

    /// What it was before.
    fn set(state: c_int) -> c_int {
        let mut before = ENABLE;
        // SAFETY: 1. `before` is live; both states are known to it.
        unsafe { pthread_setcancelstate(state, &raw mut before) };
        before
    }

    /// The words below `tp`; zeros where there is no memory.
    fn block() -> [u32; BLOCK_BYTES / size_of::<u32>()] {
        let mut bytes = [0; BLOCK_BYTES];
        let start = tp() - BLOCK_BYTES as u64;
        for (at, piece) in (start..)
            .step_by(PIECE_BYTES)
            .zip(bytes.chunks_mut(PIECE_BYTES))
        {
            let _ = read_memory(at, piece);
        }
        std::array::from_fn(|i| {
            let [a, b, c, d] = [0, 1, 2, 3].map(|k| bytes[size_of::<u32>() * i + k]);
            u32::from_ne_bytes([a, b, c, d])
        })
    }

    /// Disables cancellation of this thread. Was it enabled?
    #[inline]
    pub(crate) fn disable() -> bool {
        let place = PLACE.load(Ordering::Relaxed);
        if place == 0 || place == NOWHERE {
            return false;
        }
        let was = word(place).fetch_or(place as u32, Ordering::Relaxed);
        was & place as u32 == 0
    }

    /// Enables it again, where [`disable`] has disabled it.
    #[inline]
    pub(crate) fn enable() {
        let place = PLACE.load(Ordering::Relaxed);
        word(place).fetch_and(!(place as u32), Ordering::Relaxed);
    }

    #[inline]
    fn word(place: u64) -> &'static AtomicU32 {
        let at = (tp() - (place >> 32)) as usize;
        let at = std::ptr::with_exposed_provenance::<AtomicU32>(at);
        // SAFETY:
        // 1. A word of this thread's block, which lives as long as the thread runs; aligned, because
        //    `tp` is.
        // 2. Other threads change it by atomic instructions.
        unsafe { &*at }
    }
}

#[cfg(not(target_arch = "riscv64"))]
mod imp {
    /// Nothing is hooked there.
    pub(crate) fn find() {}

    pub(crate) fn disable() -> bool {
        false
    }

    pub(crate) fn enable() {}
}
