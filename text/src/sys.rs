//! The system calls of this room, each with its checks, and raw access to text.
//!
//! Everything unsafe that is not a protocol of its own stands here: memfds, placed mappings,
//! loads from rx text. Neighbours: `map`, `memory`, `foreign`, `txn`.
//! Source: `memfd_create(2)`, `mmap(2)`, `madvise(2)`; RISC-V profiles, Ziccif.
#![expect(
    unsafe_code,
    reason = "mmap, memfd_create, madvise, and raw loads and stores of text"
)]

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::Mmap;

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::signal::Set;

/// 2 MiB: a pack, and what a huge page of riscv64 covers.
pub(crate) const HUGE_BYTES: usize = 2 << 20;

const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;
const MFD_EXEC: libc::c_uint = 0x10;
const MADV_COLLAPSE: libc::c_int = 25;
const MEMFD_NAME: &CStr = c"rvbpf-text";

/// The errno of the last failed call on this thread.
pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub(crate) fn map_error(call: &'static str, range: RxRange) -> TextError {
    TextError::Map {
        call,
        addr: range.start,
        len_bytes: range.len_bytes,
        errno: errno(),
    }
}

pub(crate) fn io_error(call: &'static str, len_bytes: usize, e: &std::io::Error) -> TextError {
    TextError::Map {
        call,
        addr: RxAddr::new(0),
        len_bytes,
        errno: e.raw_os_error().unwrap_or(0),
    }
}

/// What an instruction raises. A thread that blocks one of these dies of it; and every function of
/// libc may be a trap at some moment ([`crate::detour`]), `memset` for an array of zeros included.
pub(crate) const FAULTS: [libc::c_int; 5] = [
    libc::SIGTRAP,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
];

/// Keeps signals from the calling thread while this value lives: all of them, those that libc keeps
/// for itself included.
pub(crate) struct BlockedSignals {
    before: u64,
}

impl BlockedSignals {
    /// Also [`FAULTS`]: what runs meanwhile calls nothing.
    pub(crate) fn new() -> Self {
        let mut before = 0;
        set_signal_mask(u64::MAX, Some(&mut before));
        Self { before }
    }

    /// All but `open`, which stay as they are.
    pub(crate) fn but(open: Set) -> Self {
        Self::but_for(open, 0)
    }

    /// All but `open`, which stay as they are, and `heard`, which are let in.
    pub(crate) fn but_for(open: Set, heard: Set) -> Self {
        let blocked = Self::new();
        set_signal_mask((!open | blocked.before) & !heard, None);
        blocked
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        set_signal_mask(self.before, None);
    }
}

/// The kernel's set of signals is 64 bits.
///
/// No function of libc: it may be a trap at this moment ([`crate::detour`]), and with all signals
/// blocked a trap kills.
#[cfg(target_arch = "riscv64")]
fn set_signal_mask(mask: u64, before: Option<&mut u64>) {
    let before = before.map_or(ptr::null_mut(), ptr::from_mut);
    // SAFETY: the kernel reads one set and writes the other, if there is one; it keeps all
    // registers but a0 and those of vectors.
    unsafe {
        std::arch::asm!(
            "ecall",
            inlateout("a0") i64::from(libc::SIG_SETMASK) => _,
            in("a1") &raw const mask,
            in("a2") before,
            in("a3") size_of::<u64>(),
            in("a7") libc::SYS_rt_sigprocmask,
            clobber_abi("C"),
            options(nostack),
        );
    }
}

/// The kernel's set of signals is 64 bits.
#[cfg(not(target_arch = "riscv64"))]
fn set_signal_mask(mask: u64, before: Option<&mut u64>) {
    let before = before.map_or(ptr::null_mut(), ptr::from_mut);
    // SAFETY: the kernel reads one set and writes the other, if there is one.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            before,
            size_of::<u64>(),
        );
    }
}

/// What backs a memfd.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Pages {
    Ordinary,
    Huge2M,
}

/// A memfd of `len_bytes` zero bytes, to be closed before the call that wants it returns.
///
/// A file longer than `RLIMIT_FSIZE` is refused (EFBIG) before the kernel would send SIGXFSZ.
///
/// Kernels that know `MFD_EXEC` are told that this file holds code; older ones answer EINVAL and
/// are asked without it; where `vm.memfd_noexec=2` forbids it (EACCES) the file is made
/// unexecutable *as a file*, which does not keep it from being mapped.
pub(crate) fn memfd(len_bytes: usize, pages: Pages) -> Result<File, TextError> {
    check_file_size(len_bytes)?;
    let base = libc::MFD_CLOEXEC
        | match pages {
            Pages::Ordinary => 0,
            Pages::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        };
    let create = |flags: libc::c_uint| {
        // SAFETY: the name is a NUL-terminated constant.
        unsafe { libc::memfd_create(MEMFD_NAME.as_ptr(), base | flags) }
    };
    let mut fd = create(MFD_EXEC);
    if fd < 0 {
        fd = match errno() {
            libc::EINVAL => create(0),
            libc::EACCES => create(MFD_NOEXEC_SEAL),
            _ => fd,
        };
    }
    let range = RxRange::new(RxAddr::new(0), len_bytes);
    if fd < 0 {
        return Err(map_error("memfd_create", range));
    }
    // SAFETY: `fd` was just made and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len_bytes as u64).map_err(|e| TextError::Map {
        call: "ftruncate",
        addr: range.start,
        len_bytes,
        errno: e.raw_os_error().unwrap_or(0),
    })?;
    Ok(file)
}

/// That `RLIMIT_FSIZE` allows files of `len_bytes` bytes.
fn check_file_size(len_bytes: usize) -> Result<(), TextError> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: 1. `limit` is a place for the answer.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    if rc == 0 && limit.rlim_cur < len_bytes as u64 {
        return Err(TextError::Map {
            call: "memfd_create under RLIMIT_FSIZE",
            addr: RxAddr::new(0),
            len_bytes,
            errno: libc::EFBIG,
        });
    }
    Ok(())
}

/// Whether an rx mapping is the file's for everybody, or private until somebody (a debugger)
/// writes to it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Sharing {
    Shared,
    Private,
}

impl Sharing {
    const fn flag(self) -> libc::c_int {
        match self {
            Self::Shared => libc::MAP_SHARED,
            Self::Private => libc::MAP_PRIVATE,
        }
    }
}

fn mmap_rx(
    range: RxRange,
    file: &File,
    off_bytes: u64,
    flags: libc::c_int,
) -> Result<RxAddr, TextError> {
    let want = ptr::without_provenance_mut(range.start.get() as usize);
    // SAFETY:
    // 1. Without MAP_FIXED an existing mapping is never touched.
    // 2. With it, the callers own the range or replace it by the same bytes (see `mmap_rx_over`).
    let at = unsafe {
        libc::mmap(
            want,
            range.len_bytes,
            libc::PROT_READ | libc::PROT_EXEC,
            flags,
            file.as_raw_fd(),
            off_bytes as libc::off_t,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(map_error("mmap", range));
    }
    Ok(RxAddr::new(at.expose_provenance() as u64))
}

/// Maps `file` from `off_bytes` on, r-x, over `range`, replacing what is there.
///
/// The caller owns the range (its own reservation or map), or the file holds the very bytes that
/// are there now.
pub(crate) fn mmap_rx_over(
    range: RxRange,
    file: &File,
    off_bytes: u64,
    sharing: Sharing,
) -> Result<(), TextError> {
    mmap_rx(range, file, off_bytes, sharing.flag() | libc::MAP_FIXED).map(|_| ())
}

/// Reserves exactly `range`, which must be free.
pub(crate) fn reserve_at(range: RxRange) -> Result<(), TextError> {
    let want = ptr::without_provenance_mut(range.start.get() as usize);
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: 1. without MAP_FIXED an existing mapping is never touched.
    let at = unsafe { libc::mmap(want, range.len_bytes, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(match errno() {
            libc::EEXIST => TextError::Occupied { range },
            _ => map_error("mmap", range),
        });
    }
    let at = RxAddr::new(at.expose_provenance() as u64);
    if at != range.start {
        // A kernel that does not know MAP_FIXED_NOREPLACE took the address as a hint.
        munmap(RxRange::new(at, range.len_bytes));
        return Err(TextError::Occupied { range });
    }
    Ok(())
}

/// Reserves address space (no access) of at least `range.len_bytes`, anywhere.
pub(crate) fn reserve(len_bytes: usize) -> Result<RxRange, TextError> {
    let range = RxRange::new(RxAddr::new(0), len_bytes);
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len_bytes,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(map_error("mmap", range));
    }
    Ok(RxRange::new(
        RxAddr::new(at.expose_provenance() as u64),
        len_bytes,
    ))
}

/// Unmaps a range of ours. Cannot fail for a range that was mapped as a whole, except when the
/// limit of mappings is reached, and then the range stays what it is.
pub(crate) fn munmap(range: RxRange) {
    if range.len_bytes == 0 {
        return;
    }
    // SAFETY: the callers own the range; nothing refers to it any more.
    unsafe {
        libc::munmap(
            ptr::with_exposed_provenance_mut(range.start.get() as usize),
            range.len_bytes,
        );
    }
}

/// Maps a file to be read. Should somebody truncate a library in use, an access through this map
/// is not the first to fault.
pub(crate) fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the file is only read, by callers who compare it with what is loaded.
    unsafe { Mmap::map(file) }
}

/// `madvise(MADV_COLLAPSE)`.
pub(crate) fn collapse(range: RxRange) -> Result<(), TextError> {
    // SAFETY: MADV_COLLAPSE changes the size of pages, never what they hold.
    let rc = unsafe {
        libc::madvise(
            ptr::with_exposed_provenance_mut(range.start.get() as usize),
            range.len_bytes,
            MADV_COLLAPSE,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(map_error("madvise(MADV_COLLAPSE)", range))
    }
}

/// Loads the naturally aligned word that the harts fetch at `at`.
///
/// The caller has checked that `at` is mapped readable (its own map, or by `/proc/self/maps`
/// under the text lock). Somebody who unmaps it in between breaks more than this load.
pub(crate) fn load_text_u32(at: RxAddr) -> u32 {
    debug_assert!(at.is_aligned(4));
    let word = ptr::with_exposed_provenance_mut::<u32>(at.get() as usize);
    // SAFETY:
    // 1. `at` is aligned and readable (callers, see above).
    // 2. Others only ever change it by aligned atomic stores.
    unsafe { AtomicU32::from_ptr(word).load(Ordering::Acquire) }
}

/// Loads an aligned address that the dynamic linker may be storing; same conditions as
/// [`load_text_u32`].
pub(crate) fn load_slot_u64(at: RxAddr) -> u64 {
    debug_assert!(at.is_aligned(8));
    let slot = ptr::with_exposed_provenance_mut::<u64>(at.get() as usize);
    // SAFETY:
    // 1. `at` is aligned and readable (callers, see above).
    // 2. The dynamic linker stores whole addresses.
    unsafe { AtomicU64::from_ptr(slot).load(Ordering::Acquire) }
}

/// Copies text out of an rx mapping; same conditions as [`load_text_u32`] for the whole range,
/// which nobody changes meanwhile (text lock).
pub(crate) fn read_text(at: RxAddr, out: &mut [u8]) {
    let from = ptr::with_exposed_provenance::<u8>(at.get() as usize);
    // SAFETY:
    // 1. The range is readable and does not change (callers, see above).
    // 2. It cannot overlap `out`: nothing holds a `&mut` into an rx mapping.
    unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
}
