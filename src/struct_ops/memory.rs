//! The struct that C sees, as memory of a size that is known at run time alone.
//!
//! Key type: [`Memory`].

#![expect(
    unsafe_code,
    reason = "C's struct is memory behind a pointer, which other threads read"
)]

use std::alloc::{self, Layout};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::describe::OpsType;

/// Room for one struct, zeros at first.
#[derive(Debug)]
pub(super) struct Memory {
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: 1. it is memory, which belongs to whoever has this. 2. through a shared reference it is
//    written by atomic stores alone.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn for_type(ty: &OpsType) -> Self {
        // A struct without members has a place too.
        let layout = Layout::from_size_align(ty.size_bytes.max(1), ty.align_bytes.max(8));
        let layout = layout.expect("the layout of a type");
        // SAFETY: 1. the size is not zero.
        let at = unsafe { alloc::alloc_zeroed(layout) };
        match NonNull::new(at) {
            Some(at) => Memory { at, layout },
            None => alloc::handle_alloc_error(layout),
        }
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.at.as_ptr()
    }

    /// Stores `bytes` at `off`: in the largest pieces that are aligned, each whole.
    ///
    /// # Panics
    /// When they do not fit.
    pub(super) fn store(&self, off: usize, bytes: &[u8]) {
        let end = off.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.layout.size()),
            "a member lies in its struct"
        );
        let mut done = 0;
        while done < bytes.len() {
            let (at, rest) = (off + done, &bytes[done..]);
            let fits = |len: &usize| at % len == 0 && rest.len() >= *len;
            let len = [8, 4, 2, 1].into_iter().find(fits).unwrap_or(1);
            self.store_piece(at, &rest[..len]);
            done += len;
        }
    }

    fn store_piece(&self, at: usize, piece: &[u8]) {
        // SAFETY: 1. `store` has checked that the piece lies in the memory.
        let to = unsafe { self.at.as_ptr().add(at) };
        match *piece {
            [a, b, c, d, e, f, g, h] => {
                let word = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                // SAFETY: 1. inside, and aligned: the memory is to 8. 2. shared access is atomic.
                unsafe { AtomicU64::from_ptr(to.cast()) }.store(word, Ordering::Release);
            }
            [a, b, c, d] => {
                let word = u32::from_ne_bytes([a, b, c, d]);
                // SAFETY: as above.
                unsafe { AtomicU32::from_ptr(to.cast()) }.store(word, Ordering::Release);
            }
            [a, b] => {
                let word = u16::from_ne_bytes([a, b]);
                // SAFETY: as above.
                unsafe { AtomicU16::from_ptr(to.cast()) }.store(word, Ordering::Release);
            }
            [a] => {
                // SAFETY: as above.
                unsafe { AtomicU8::from_ptr(to) }.store(a, Ordering::Release);
            }
            _ => {}
        }
    }

    /// What stands at `off`.
    ///
    /// # Panics
    /// When there is not so much.
    pub(super) fn load(&self, off: usize, len: usize) -> Vec<u8> {
        let end = off.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.layout.size()),
            "a member lies in its struct"
        );
        let byte = |i| {
            // SAFETY: 1. inside, as checked.
            let at = unsafe { self.at.as_ptr().add(off + i) };
            // SAFETY: 1. inside. 2. shared access is atomic.
            unsafe { AtomicU8::from_ptr(at) }.load(Ordering::Relaxed)
        };
        (0..len).map(byte).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: 1. allocated with this layout, and dropped once.
        unsafe { alloc::dealloc(self.at.as_ptr(), self.layout) };
    }
}

/// The bytes of a value.
pub(super) fn bytes_of<D: super::OpsData>(value: &D) -> Vec<u8> {
    let at = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: 1. so many bytes are there, and none of them is padding (contract of OpsData).
    unsafe { std::slice::from_raw_parts(at, size_of::<D>()) }.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::any::TypeId;

    #[test]
    fn bytes_come_back_from_any_place() {
        let ty = OpsType {
            id: TypeId::of::<()>(),
            name: "T",
            size_bytes: 31,
            align_bytes: 1,
            fields: Vec::new(),
        };
        let memory = Memory::for_type(&ty);
        for off in 0..8 {
            for len in 0..=23 {
                let bytes: Vec<u8> = (0..len).map(|i| 0x80 | i).collect();
                memory.store(off, &bytes);
                assert_eq!(memory.load(off, bytes.len()), bytes, "{off} {len}");
            }
        }
        assert_eq!(bytes_of(&[1u16, 2]), [1, 0, 2, 0]);
    }
}
