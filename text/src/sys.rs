//! The system calls of this room, each with its checks, and raw access to text.
//!
//! Everything unsafe that is not a protocol of its own stands here: memfds, placed mappings,
//! loads from rx text, stores through an rw view. Neighbours: `map`, `foreign`, `fork`, `txn`.
//! Source: `memfd_create(2)`, `mmap(2)`, `madvise(2)`; RISC-V profiles, Ziccif.
#![expect(
    unsafe_code,
    reason = "mmap, memfd_create, madvise, and raw loads and stores of text"
)]

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use memmap2::{Mmap, MmapOptions, MmapRaw};

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;

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

fn map_error(call: &'static str, range: RxRange) -> TextError {
    TextError::Map {
        call,
        addr: range.start,
        len_bytes: range.len_bytes,
        errno: errno(),
    }
}

/// Keeps signals from the calling thread while this value lives: all of them, those that libc keeps
/// for itself included.
pub(crate) struct BlockedSignals {
    before: u64,
}

impl BlockedSignals {
    pub(crate) fn new() -> Self {
        let mut before = 0;
        set_signal_mask(u64::MAX, Some(&mut before));
        Self { before }
    }

    /// All but these, which stay as they are.
    pub(crate) fn but(open: impl IntoIterator<Item = libc::c_int>) -> Self {
        let blocked = Self::new();
        let open = open
            .into_iter()
            .fold(0, |set, signo| set | 1 << (signo - 1));
        set_signal_mask(!open | blocked.before, None);
        blocked
    }

    /// All but `open`, which stay as they are, and `heard`, which is let in.
    pub(crate) fn but_for(open: &[libc::c_int], heard: libc::c_int) -> Self {
        let blocked = Self::new();
        let set = |signals: &[libc::c_int]| signals.iter().fold(0, |set, s| set | 1 << (s - 1));
        let mask = (!set(open) | blocked.before) & !set(&[heard]);
        set_signal_mask(mask, None);
        blocked
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        set_signal_mask(self.before, None);
    }
}

/// Gives this thread the signals of both sets to block, without `open`. For signal handlers.
#[cfg(target_arch = "riscv64")]
pub(crate) fn set_mask_of(thread: &libc::sigset_t, handler: &libc::sigset_t, open: libc::c_int) {
    let first_word = |set: &libc::sigset_t| {
        // SAFETY: 1. a set is longer than 8 bytes and aligned to 8, and its first 64 bits are the
        //    kernel's set.
        unsafe { ptr::from_ref(set).cast::<u64>().read() }
    };
    let mask = first_word(thread) | first_word(handler);
    set_signal_mask(mask & !(1 << (open - 1)), None);
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

/// A memfd of `len_bytes` zero bytes.
///
/// Kernels that know `MFD_EXEC` are told that this file holds code; older ones answer EINVAL and
/// are asked without it; where `vm.memfd_noexec=2` forbids it (EACCES) the file is made
/// unexecutable *as a file*, which does not keep it from being mapped.
pub(crate) fn memfd(len_bytes: usize, pages: Pages) -> Result<File, TextError> {
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

/// Maps the start of `file` shared, r-x, at exactly `range`, which must be free.
pub(crate) fn mmap_rx_free(range: RxRange, file: &File) -> Result<(), TextError> {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    match mmap_rx(range, file, 0, flags) {
        Ok(at) if at == range.start => Ok(()),
        Ok(at) => {
            // A kernel that does not know MAP_FIXED_NOREPLACE took the address as a hint.
            munmap(RxRange::new(at, range.len_bytes));
            Err(TextError::Occupied { range })
        }
        Err(TextError::Map {
            errno: libc::EEXIST,
            ..
        }) => Err(TextError::Occupied { range }),
        Err(e) => Err(e),
    }
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

/// Writes text of ours, which nobody changes meanwhile, to the same place of another file.
pub(crate) fn pwrite_text(file: &File, from: RxRange, mut off_bytes: u64) -> Result<(), TextError> {
    let mut done = 0;
    while let Some(rest) = from
        .sub(done, from.len_bytes - done)
        .filter(|r| r.len_bytes > 0)
    {
        // SAFETY: the kernel reads `rest`, which is mapped (callers), and checks it itself.
        let n = unsafe {
            libc::pwrite(
                file.as_raw_fd(),
                ptr::with_exposed_provenance(rest.start.get() as usize),
                rest.len_bytes,
                off_bytes as libc::off_t,
            )
        };
        match n {
            n if n > 0 => {
                done += n as usize;
                off_bytes += n as u64;
            }
            n if n < 0 && errno() == libc::EINTR => {}
            _ => return Err(map_error("pwrite", rest)),
        }
    }
    Ok(())
}

/// A file of ours, mapped writable for as long as this value lives, at an address that the
/// kernel chooses. Never executable.
pub(crate) struct RwView {
    map: MmapRaw,
}

impl RwView {
    pub(crate) fn new(file: &File, len_bytes: usize) -> Result<Self, TextError> {
        MmapOptions::new()
            .offset(0)
            .len(len_bytes)
            .map_raw(file)
            .map(|map| Self { map })
            .map_err(|e| TextError::Map {
                call: "mmap (rw view)",
                addr: RxAddr::new(0),
                len_bytes,
                errno: e.raw_os_error().unwrap_or(0),
            })
    }

    /// A pointer to `len_bytes` bytes at `off_bytes`. The offsets come from the table of maps, so
    /// one that does not fit is a bug of this crate.
    fn at(&self, off_bytes: usize, len_bytes: usize) -> *mut u8 {
        assert!(
            off_bytes
                .checked_add(len_bytes)
                .is_some_and(|end| end <= self.map.len()),
            "text view: {off_bytes}+{len_bytes} exceeds {}",
            self.map.len()
        );
        self.map.as_mut_ptr().wrapping_add(off_bytes)
    }

    /// One aligned store, which other harts see whole or not at all.
    pub(crate) fn store_u32(&self, off_bytes: usize, word: u32) {
        assert!(
            off_bytes % 4 == 0,
            "text view: unaligned store at {off_bytes}"
        );
        let at = self.at(off_bytes, 4).cast::<u32>();
        // SAFETY:
        // 1. `at` lies in the live rw view (checked) and is aligned (checked; views are
        //    page-aligned).
        // 2. Everybody else reads it by instruction fetch or atomic loads.
        unsafe { AtomicU32::from_ptr(at).store(word, Ordering::Release) };
    }

    /// One aligned store of half a word.
    pub(crate) fn store_u16(&self, off_bytes: usize, half: u16) {
        assert!(
            off_bytes % 2 == 0,
            "text view: unaligned store at {off_bytes}"
        );
        let at = self.at(off_bytes, 2).cast::<u16>();
        // SAFETY: as in `store_u32`.
        unsafe { AtomicU16::from_ptr(at).store(half, Ordering::Release) };
    }

    /// The word as the file has it.
    pub(crate) fn load_u32(&self, off_bytes: usize) -> u32 {
        assert!(
            off_bytes % 4 == 0,
            "text view: unaligned load at {off_bytes}"
        );
        let at = self.at(off_bytes, 4).cast::<u32>();
        // SAFETY: as in `store_u32`.
        unsafe { AtomicU32::from_ptr(at).load(Ordering::Acquire) }
    }

    /// Writes text that nobody can be executing.
    pub(crate) fn write(&self, off_bytes: usize, src: &[u8]) {
        let at = self.at(off_bytes, src.len());
        // SAFETY:
        // 1. `at` has room for `src` (checked), and `src` is a live slice.
        // 2. They do not overlap: a view has no references into it.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), at, src.len()) };
    }

    /// Fills text that nobody can be executing with zeros, which are defined illegal.
    pub(crate) fn fill_illegal(&self, off_bytes: usize, len_bytes: usize) {
        let at = self.at(off_bytes, len_bytes);
        // SAFETY: `at` has room for `len_bytes` (checked).
        unsafe { ptr::write_bytes(at, 0, len_bytes) };
    }

    /// Copies text from an rx mapping that nobody changes meanwhile.
    pub(crate) fn copy_from_text(&self, off_bytes: usize, from: RxRange) {
        let at = self.at(off_bytes, from.len_bytes);
        // SAFETY:
        // 1. `from` is mapped readable (callers checked it under the text lock).
        // 2. `at` has room (checked); a fresh view does not overlap an rx mapping.
        unsafe {
            ptr::copy_nonoverlapping(
                ptr::with_exposed_provenance::<u8>(from.start.get() as usize),
                at,
                from.len_bytes,
            );
        };
    }
}
