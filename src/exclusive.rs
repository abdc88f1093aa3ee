//! What is freed under the lock of changes, so that no fork comes between.
//!
//! Key type: [`Exclusive`]. Neighbours: `host` and `bpf::loaded` keep published code in it.

use trampoline::Trampolines;

/// Dropped under the lock; without it where this thread has it: then it frees the image that called
/// the code, or is in the midst of another change.
#[derive(Debug)]
pub(crate) struct Exclusive<T>(Option<T>);

impl<T> Exclusive<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T> Drop for Exclusive<T> {
    fn drop(&mut self) {
        Trampolines::locked(|| drop(self.0.take()));
    }
}
