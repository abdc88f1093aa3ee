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
        let value = &mut self.0;
        if Trampolines::exclusively(|| drop(value.take())).is_err() {
            drop(self.0.take());
        }
    }
}

/// Runs `f` under the lock, across which no fork comes; this thread may have it, so `f` takes what
/// else there is to lock by `try_lock` alone.
pub(crate) fn locked<R>(f: impl FnOnce() -> R) -> R {
    let mut f = Some(f);
    let mut run = || f.take().map(|f| f());
    let result = match Trampolines::exclusively(&mut run) {
        Ok(result) => result,
        Err(_) => run(),
    };
    result.expect("it runs once")
}
