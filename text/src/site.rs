//! Sites that have been armed: what stood there, and how far a change has come.
//!
//! Key type: [`Site`]. Neighbours: `state` (keeps them), `poke` (changes them), `pad` (asks
//! whether a pad is ours). Source: the kernel's `dyn_ftrace` flags, `include/linux/ftrace.h`.

/// A pair of words that is ours, `hi` and the one after it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Site {
    /// The words before we came.
    pub(crate) orig: [u32; 2],
    pub(crate) phase: Phase,
}

/// How far the last change has come.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Phase {
    /// No thread can be between the words without having executed the `auipc` there.
    Open,
    /// The first word jumps over the second, or did; threads may still be between them.
    Closed,
    /// A thread is at work on it.
    Busy,
}

impl Site {
    /// In the child of a fork: the thread at work does not exist here.
    pub(crate) fn release_after_fork(&mut self) {
        if self.phase == Phase::Busy {
            self.phase = Phase::Closed;
        }
    }
}
