//! Making every hart fetch what was stored.
//!
//! RISC-V instruction fetches are not coherent with stores until a `fence.i` on the fetching
//! hart; only the kernel can reach the other harts. [`flush_icache`] asks it and checks the
//! answer; [`SyncMode`] says what a change of live text must do on this machine.
//!
//! Neighbours: `txn` (every change ends here), [`crate::testing`] (refuses and counts flushes).
//! Source: kernel `arch/riscv/kernel/sys_riscv.c` (`riscv_flush_icache`),
//! `arch/riscv/mm/cacheflush.c`; unprivileged manual, Zifencei.
#![cfg_attr(
    target_arch = "riscv64",
    expect(unsafe_code, reason = "a bare system call")
)]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::addr::RxRange;
use crate::error::TextError;
use crate::syscall::Errno;

/// Whose instruction fetches a flush makes coherent.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(usize)]
pub enum FlushScope {
    /// All harts that run threads of this process, now or later.
    Process = 0,
    /// The hart this thread is on (a header calls this flag "all").
    ThisHart = 1,
}

/// How a change of live text becomes visible on this machine.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum SyncMode {
    /// Store, flush: hardware.
    Flush,
    /// In stages: QEMU's system emulator. It can keep a stale translation when one hart
    /// translates the old bytes while another stores the new ones, so everything is stored and
    /// flushed twice; and before 10.1 it fetches even an aligned word as two halves, so no word
    /// changes in both halves at once (see `txn`).
    Staged,
    /// Store, map the same page of the memfd over itself, flush: QEMU's user emulator, which
    /// does not see stores through another mapping.
    Remap,
}

static FLUSHES: AtomicU64 = AtomicU64::new(0);
/// For tests: how many flushes shall be refused, and, above that, how many pass before.
static REFUSALS: AtomicU64 = AtomicU64::new(0);
/// 0 unknown, else `SyncMode as u8 + 1`.
static MODE: AtomicU8 = AtomicU8::new(0);

/// Asks the kernel to make instruction fetches from `range` see all stores made before.
///
/// # Errors
/// [`TextError::Flush`] with the kernel's errno (some seccomp filters refuse this call). On hosts
/// other than riscv64 there is nothing to flush, and it succeeds.
pub fn flush_icache(range: RxRange, scope: FlushScope) -> Result<(), TextError> {
    flush_bare(range, scope).map_err(|errno| TextError::Flush { errno })
}

/// The same where no function of libc may be called: to move a [`TextError`] is a `memcpy`.
pub(crate) fn flush_bare(range: RxRange, scope: FlushScope) -> Result<(), Errno> {
    FLUSHES.fetch_add(1, Ordering::Relaxed);
    if is_refused() {
        return Err(libc::EPERM);
    }
    flush_raw(range, scope)
}

pub(crate) fn flush_count() -> u64 {
    FLUSHES.load(Ordering::Relaxed)
}

pub(crate) fn refuse_flushes_after(pass: u32, n: u32) {
    REFUSALS.store(u64::from(pass) << 32 | u64::from(n), Ordering::Relaxed);
}

fn is_refused() -> bool {
    let next = |now: u64| match (now >> 32, now & u64::from(u32::MAX)) {
        (_, 0) => None,
        (0, n) => Some(n - 1),
        (pass, n) => Some((pass - 1) << 32 | n),
    };
    let before = REFUSALS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    before.is_ok_and(|before| before >> 32 == 0)
}

#[cfg(target_arch = "riscv64")]
fn flush_raw(range: RxRange, scope: FlushScope) -> Result<(), Errno> {
    /// The `libc` crate does not have it.
    const SYS_RISCV_FLUSH_ICACHE: u64 = 259;
    let mut a0 = range.start.get();
    // No function of libc: in the middle of a staged change a hooked one would not return.
    // SAFETY: the call reads and writes no memory; the kernel takes the range as a hint, and
    // keeps all registers but a0 and those of vectors.
    unsafe {
        std::arch::asm!(
            "ecall",
            inout("a0") a0,
            in("a1") range.end().get(),
            in("a2") scope as usize,
            in("a7") SYS_RISCV_FLUSH_ICACHE,
            clobber_abi("C"),
            options(nostack),
        );
    }
    match a0 as i64 {
        0 => Ok(()),
        refused => Err(-refused as Errno),
    }
}

#[cfg(not(target_arch = "riscv64"))]
#[expect(clippy::unnecessary_wraps, reason = "the same interface as on riscv64")]
fn flush_raw(_: RxRange, _: FlushScope) -> Result<(), Errno> {
    Ok(())
}

/// How live text is changed on this machine; found out once per process, by changing a function
/// of its own and calling it.
///
/// # Errors
/// [`TextError::UnsupportedHost`] where it cannot be changed, [`TextError::Flush`] where the
/// kernel refuses to flush, [`TextError::Map`] where code cannot be mapped.
#[cfg(target_arch = "riscv64")]
pub fn sync_mode() -> Result<SyncMode, TextError> {
    match MODE.load(Ordering::Acquire) {
        1 => Ok(SyncMode::Flush),
        2 => Ok(SyncMode::Staged),
        3 => Ok(SyncMode::Remap),
        _ => {
            // Two threads may both try: they find the same.
            let mode = self_test::detect()?;
            MODE.store(mode as u8 + 1, Ordering::Release);
            Ok(mode)
        }
    }
}

/// How live text is changed on this machine.
///
/// # Errors
/// [`TextError::UnsupportedHost`]: this is not riscv64.
#[cfg(not(target_arch = "riscv64"))]
pub fn sync_mode() -> Result<SyncMode, TextError> {
    let _ = &MODE;
    Err(TextError::UnsupportedHost {
        reason: "this is not riscv64",
    })
}

/// The mode for maps of our own, which other hosts may fill too: nothing executes there.
pub(crate) fn sync_mode_of_maps() -> Result<SyncMode, TextError> {
    if cfg!(target_arch = "riscv64") {
        sync_mode()
    } else {
        Ok(SyncMode::Flush)
    }
}

#[cfg(target_arch = "riscv64")]
mod self_test {
    use std::fs::File;

    use super::{FlushScope, SyncMode, flush_raw};
    use crate::addr::RxRange;
    use crate::error::TextError;
    use crate::memory::{Descriptor, RwView, TextMemory};
    use crate::sys::{self, Pages, Sharing};

    /// `lpad 0; li a0, n; ret` (the landing pad is a nop where it is not needed).
    const fn returns(n: u32) -> [u32; 3] {
        [0x0000_0017, n << 20 | 0x513, 0x0000_8067]
    }

    fn flush(rx: RxRange) -> Result<(), TextError> {
        flush_raw(rx, FlushScope::Process).map_err(|errno| TextError::Flush { errno })
    }

    struct Probe {
        file: File,
        /// Before its memory, which it must not outlive.
        view: RwView,
        _memory: TextMemory,
        rx: RxRange,
    }

    impl Probe {
        fn new() -> Result<Self, TextError> {
            let page_bytes = region::page::size();
            let file = sys::memfd(page_bytes, Pages::Ordinary)?;
            let again = file.try_clone().map_err(|e| sys::io_error("dup", 0, &e))?;
            let mut memory =
                TextMemory::of_file(again, page_bytes, page_bytes, Descriptor::Closed)?;
            let view = memory.open(0, page_bytes)?;
            let rx = sys::reserve(page_bytes)?;
            let probe = Self {
                file,
                view,
                _memory: memory,
                rx,
            };
            sys::mmap_rx_over(rx, &probe.file, 0, Sharing::Shared)?;
            Ok(probe)
        }

        fn store(&self, n: u32) -> Result<(), TextError> {
            for (i, word) in returns(n).into_iter().enumerate() {
                self.view.store_u32(4 * i, word);
            }
            flush(self.rx)
        }

        fn call(&self) -> u64 {
            let entry = std::ptr::with_exposed_provenance::<()>(self.rx.start.get() as usize);
            // SAFETY: a data pointer and a function pointer have one size on riscv64.
            let f = unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u64>(entry) };
            f()
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            sys::munmap(self.rx);
        }
    }

    pub(super) fn detect() -> Result<SyncMode, TextError> {
        let probe = Probe::new()?;
        probe.store(1)?;
        // Often enough that an emulator has translated it and chained it.
        if (0..100).any(|_| probe.call() != 1) {
            return Err(TextError::UnsupportedHost {
                reason: "fresh code does not run",
            });
        }
        probe.store(2)?;
        if probe.call() == 2 {
            return Ok(if is_qemu_board() {
                SyncMode::Staged
            } else {
                SyncMode::Flush
            });
        }
        for n in 3..10 {
            probe.store(n)?;
            sys::mmap_rx_over(probe.rx, &probe.file, 0, Sharing::Shared)?;
            flush(probe.rx)?;
            if (0..10).any(|_| probe.call() != u64::from(n)) {
                return Err(TextError::UnsupportedHost {
                    reason: "changed code stays stale after a flush and after mapping it anew",
                });
            }
        }
        Ok(SyncMode::Remap)
    }

    /// QEMU's `virt` board says so in its device tree; `RVBPF_QEMU=1` says it where there is no
    /// device tree to read.
    fn is_qemu_board() -> bool {
        if std::env::var_os("RVBPF_QEMU").is_some_and(|v| v == "1") {
            return true;
        }
        [
            "/sys/firmware/devicetree/base/compatible",
            "/proc/device-tree/compatible",
        ]
        .into_iter()
        .filter_map(|path| std::fs::read(path).ok())
        .any(|compatible| {
            compatible
                .split(|b| *b == 0)
                .any(|entry| entry == b"riscv-virtio")
        })
    }
}
