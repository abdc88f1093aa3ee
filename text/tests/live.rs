//! Live text: foreign pads and code maps changed while threads execute them. These need riscv64.
#![cfg(target_arch = "riscv64")]
#![expect(
    unsafe_code,
    reason = "calls code that it has written, forks, maps pages"
)]

mod live {
    pub(crate) mod detour_fns;
    pub(crate) mod detours;
    pub(crate) mod errors;
    pub(crate) mod fns;
    pub(crate) mod foreign;
    pub(crate) mod fork;
    pub(crate) mod gate;
    pub(crate) mod islands;
    pub(crate) mod pads;
    pub(crate) mod park;
    pub(crate) mod threads;
    pub(crate) mod traps;
    pub(crate) mod waiting;
}

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Sites, counters and forks are of the whole process: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}
