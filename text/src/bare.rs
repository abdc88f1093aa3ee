//! Memory on the stack that is cleared and filled without `memset` and `memcpy`.
//!
//! For an array of zeros, or a copy, the compiler calls these functions, which may be hooked, or a
//! trap at this moment ([`crate::syscall`]). A signal handler takes a [`Buf`] instead. Volatile
//! stores also leave nothing behind when it is cleared before it goes. What looks at threads takes
//! one too: while `memset` is closed, each call of it costs that thread a tick of its timer.
//!
//! Neighbours: `threads::ask`, `threads::proc`.
#![expect(unsafe_code, reason = "memory that is not initialised, word by word")]

use std::mem::MaybeUninit;

/// Room for `N` bytes, a multiple of 8.
pub(crate) struct Buf<const N: usize>(MaybeUninit<Words<N>>);

#[repr(C, align(8))]
struct Words<const N: usize>([u8; N]);

impl<const N: usize> Buf<N> {
    /// Holds nothing yet.
    pub(crate) const fn new() -> Self {
        const { assert!(N % 8 == 0, "whole words") };
        Self(MaybeUninit::uninit())
    }

    /// All zeros.
    #[inline]
    pub(crate) fn zeroed(&mut self) -> &mut [u8; N] {
        self.fill(|_| 0)
    }

    /// A copy of what is at `from`.
    ///
    /// # Safety
    /// 1. `N` bytes there are readable and aligned to 8, and no other thread writes to them.
    #[inline]
    pub(crate) unsafe fn copied(&mut self, from: *const u64) -> &mut [u8; N] {
        // SAFETY: 1. the caller's promise.
        self.fill(|i| unsafe { from.wrapping_add(i).read() })
    }

    #[inline]
    fn fill(&mut self, word: impl Fn(usize) -> u64) -> &mut [u8; N] {
        let at = self.0.as_mut_ptr().cast::<u64>();
        for i in 0..N / 8 {
            // SAFETY: 1. inside the value, and aligned like it.
            unsafe { at.wrapping_add(i).write_volatile(word(i)) };
        }
        // SAFETY: 1. all of its words have been written.
        &mut unsafe { self.0.assume_init_mut() }.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_copied_and_cleared() {
        let from = [0x0807_0605_0403_0201_u64, 9];
        let mut buf = Buf::<16>::new();
        // SAFETY: 1. a live array of that length.
        let bytes = unsafe { buf.copied(from.as_ptr()) };
        assert_eq!(bytes, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(buf.zeroed(), &[0; 16]);
    }
}
