//! Where the thread-local block lies: at one distance from `tp`, in every thread.
//!
//! | this crate is part of | the block is |
//! | --- | --- |
//! | the program | a thread-local variable, which lies in static TLS |
//! | a library | in a second object, made here, of 64 bytes of static TLS and nothing else |
//!
//! *Why a second object.* A library that is opened late gets static TLS from the little that the
//! dynamic linker keeps for that (glibc: `glibc.rtld.optional_static_tls` and some more), all of its
//! thread-local variables or none, those of the standard library among them: it cannot be opened
//! where that is used up. With no such access of its own it can always be opened; its variables are
//! allocated when they are used. The second object takes what is needed, and if there is no room
//! for that, [`ready`] says so.
//!
//! The object is a memfd with an ELF header, a dynamic section, and one relocation by which the
//! dynamic linker tells the distance. It stays loaded, as the library does ([`text::own_object`]).
//! It is opened by a constructor, whose thread holds the dynamic linker's lock.
//!
//! Key function: [`ready`]. Neighbours: [`crate::guard`] says what stands in the block. Source: ELF
//! gABI, chapter 5; RISC-V ELF psABI, "Thread Local Storage"; glibc `elf/dl-reloc.c`
//! (`_dl_try_allocate_static_tls`).

#![cfg_attr(
    all(target_arch = "riscv64", target_os = "linux"),
    expect(
        unsafe_code,
        reason = "an object that is made and opened here, and a constructor"
    )
)]

#[cfg(all(target_arch = "riscv64", target_os = "linux"))]
pub(crate) use imp::{ready, tp_off};

/// Nothing runs in an image on other hosts.
#[cfg(not(all(target_arch = "riscv64", target_os = "linux")))]
pub(crate) fn ready() -> Result<(), crate::TrampError> {
    Ok(())
}

#[cfg(all(target_arch = "riscv64", target_os = "linux"))]
mod imp {
    use std::ffi::{CStr, CString, c_void};
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::fs::FileExt;
    use std::ptr;
    use std::sync::atomic::AtomicI64;
    use std::sync::atomic::Ordering::Relaxed;

    use text::Own;

    use super::object;
    use crate::TrampError;
    use crate::guard::{ThreadBlock, tp};

    /// Not known yet.
    const UNKNOWN: i64 = i64::MIN;
    static TP_OFF: AtomicI64 = AtomicI64::new(UNKNOWN);

    /// Objects of this name that other copies of this crate may have left open, at most.
    const MAX_NAMES: i32 = 16;

    thread_local! {
        /// The program's. Nothing else may touch it by its name: in a library it is elsewhere.
        static BLOCK: ThreadBlock = const { ThreadBlock::new() };
    }

    // SAFETY:
    // 1. The linker makes this a constructor, whose type this is (the arguments are not looked at).
    // 2. It needs nothing that other constructors make.
    #[used]
    #[unsafe(link_section = ".init_array.60004")]
    static WHEN_LOADED: extern "C" fn() = when_loaded;

    extern "C" fn when_loaded() {
        // Where it fails, `Trampolines::new` asks again, and says so.
        let _ = ready();
    }

    /// Distance of the block from `tp`, when there is one.
    #[inline]
    pub(crate) fn tp_off() -> Option<i64> {
        Some(TP_OFF.load(Relaxed)).filter(|off| *off != UNKNOWN)
    }

    /// Sees to it that there is a block.
    ///
    /// Should the constructor have failed, this asks the dynamic linker again, whose lock is held
    /// while constructors run.
    pub(crate) fn ready() -> Result<(), TrampError> {
        if tp_off().is_some() {
            return Ok(());
        }
        let off = match text::own_object()? {
            Own::Program => BLOCK.with(|b| b.addr().wrapping_sub(tp()) as i64),
            Own::Library => open_object().map_err(|reason| TrampError::NoThreadBlock {
                reason: reason.into(),
            })?,
        };
        // Another thread may have been quicker: then that one's is in use.
        let _ = TP_OFF.compare_exchange(UNKNOWN, off, Relaxed, Relaxed);
        Ok(())
    }

    /// Makes the object, opens it, and gives what the dynamic linker says in it.
    fn open_object() -> Result<i64, String> {
        let owner = ptr::from_ref(&TP_OFF) as u64;
        let mut file = memfd(&object::bytes(owner)).map_err(|e| format!("memfd: {e}"))?;
        for _ in 0..MAX_NAMES {
            let name = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let name = name.unwrap_or_default();
            // SAFETY:
            // 1. A NUL-terminated name.
            // 2. The object has no constructors, and needs nothing.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if handle.is_null() {
                return Err(why());
            }
            if let Some([off, _]) = words_of(handle).filter(|words| words[1] == owner) {
                return Ok(off as i64);
            }
            // One of this name is open already, another copy's: the descriptor was the same.
            // SAFETY: 1. the handle is ours, and not used any more.
            unsafe { libc::dlclose(handle) };
            let from = file.as_raw_fd() + 1;
            // SAFETY: 1. a live descriptor.
            let other = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, from) };
            if other < 0 {
                return Err(format!("dup: {}", io::Error::last_os_error()));
            }
            // SAFETY: 1. a new descriptor that is nobody else's.
            file = unsafe { File::from_raw_fd(other) };
        }
        Err("too many copies of this library are open".into())
    }

    fn memfd(bytes: &[u8]) -> io::Result<File> {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: 1. `limit` is writable.
        let rc = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) };
        if rc == 0 && limit.rlim_cur < bytes.len() as u64 {
            // A longer file would end the process by SIGXFSZ.
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        // SAFETY: 1. a NUL-terminated name.
        let fd = unsafe { libc::memfd_create(c"rvbpf-tls".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: 1. a new descriptor that is nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.write_all_at(bytes, 0)?;
        Ok(file)
    }

    /// What the dynamic linker says went wrong.
    fn why() -> String {
        // SAFETY: 1. no preconditions.
        let text = unsafe { libc::dlerror() };
        if text.is_null() {
            return "dlopen failed".into();
        }
        // SAFETY: 1. a NUL-terminated text that lives until the next call of the kind.
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    }

    /// The words at the end of an object, of this name at least.
    fn words_of(handle: *mut c_void) -> Option<[u64; 2]> {
        let mut map: *mut u64 = ptr::null_mut();
        // SAFETY:
        // 1. A live handle.
        // 2. This question is answered by a pointer (`dlinfo(3)`).
        let rc = unsafe { libc::dlinfo(handle, libc::RTLD_DI_LINKMAP, (&raw mut map).cast()) };
        if rc != 0 {
            return None;
        }
        // SAFETY: 1. a `struct link_map` of a live handle, whose first word is `l_addr`.
        let base = unsafe { map.read() };
        let words = (base + object::WORDS_OFF as u64) as *const [u64; 2];
        // SAFETY: 1. any object has as many bytes from its base, where its first page is loaded.
        Some(unsafe { words.read() })
    }
}

/// The object, byte for byte.
///
/// ```text
///   0  ELF header
///  64  program headers: load (all of this, rw), dynamic, TLS, stack
/// 288  dynamic section
/// 448  symbols: the empty one
/// 472  strings: the empty one
/// 480  relocation: the word at 504 becomes the distance of the TLS from tp
/// 504  that word; the word that says whose it is
/// ```
#[cfg(any(test, all(target_arch = "riscv64", target_os = "linux")))]
mod object {
    use crate::guard::BLOCK_BYTES;

    const PHDRS_OFF: usize = 64;
    const PHDRS: usize = 4;
    const DYNAMIC_OFF: usize = PHDRS_OFF + 56 * PHDRS;
    const TAGS: usize = 10;
    const SYMBOLS_OFF: usize = DYNAMIC_OFF + 16 * TAGS;
    const STRINGS_OFF: usize = SYMBOLS_OFF + 24;
    const RELA_OFF: usize = STRINGS_OFF + 8;
    pub(super) const WORDS_OFF: usize = RELA_OFF + 24;
    const BYTES: usize = WORDS_OFF + 16;

    const ET_DYN: u64 = 3;
    const EM_RISCV: u64 = 243;
    /// `EF_RISCV_FLOAT_ABI_DOUBLE`, as of all that is loaded here.
    const FLAGS: u64 = 4;
    const R_RISCV_TLS_TPREL64: u64 = 11;

    const DYNAMIC: [(u64, u64); TAGS] = [
        (5, STRINGS_OFF as u64), // DT_STRTAB
        (6, SYMBOLS_OFF as u64), // DT_SYMTAB
        (7, RELA_OFF as u64),    // DT_RELA
        (8, 24),                 // DT_RELASZ
        (9, 24),                 // DT_RELAENT
        (10, 8),                 // DT_STRSZ
        (11, 24),                // DT_SYMENT
        (30, 0x10),              // DT_FLAGS: DF_STATIC_TLS
        (0x6fff_fffb, 8),        // DT_FLAGS_1: DF_1_NODELETE
        (0, 0),                  // DT_NULL
    ];

    struct Writer(Vec<u8>);

    impl Writer {
        fn put(&mut self, bytes: usize, value: u64) {
            self.0.extend_from_slice(&value.to_le_bytes()[..bytes]);
        }

        /// A program header; `lens` in the file and in memory.
        fn header(&mut self, kind: u64, flags: u64, off: usize, lens: [usize; 2], align: u64) {
            self.put(4, kind);
            self.put(4, flags);
            for _ in ["offset", "vaddr", "paddr"] {
                self.put(8, off as u64);
            }
            self.put(8, lens[0] as u64);
            self.put(8, lens[1] as u64);
            self.put(8, align);
        }
    }

    /// With `owner` as its last word.
    pub(super) fn bytes(owner: u64) -> Vec<u8> {
        let mut all = Writer(Vec::with_capacity(BYTES));
        all.put(4, 0x464c_457f);
        all.put(4, 0x0001_0102); // 64 bits, little-endian, version 1
        all.put(8, 0);
        all.put(2, ET_DYN);
        all.put(2, EM_RISCV);
        all.put(4, 1);
        all.put(8, 0);
        all.put(8, PHDRS_OFF as u64);
        all.put(8, 0);
        all.put(4, FLAGS);
        for half in [64, 56, PHDRS as u64, 64, 0, 0] {
            all.put(2, half);
        }
        let (read, write) = (4, 2);
        all.header(1, read | write, 0, [BYTES, BYTES], 4096); // PT_LOAD
        all.header(2, read | write, DYNAMIC_OFF, [16 * TAGS, 16 * TAGS], 8); // PT_DYNAMIC
        all.header(7, read, 0, [0, BLOCK_BYTES], 8); // PT_TLS
        all.header(0x6474_e551, read | write, 0, [0, 0], 16); // PT_GNU_STACK
        for (tag, value) in DYNAMIC {
            all.put(8, tag);
            all.put(8, value);
        }
        all.0.resize(RELA_OFF, 0);
        all.put(8, WORDS_OFF as u64);
        all.put(8, R_RISCV_TLS_TPREL64);
        all.put(8, 0);
        all.put(8, 0);
        all.put(8, owner);
        all.0
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_picture_is_what_is_made() {
            assert_eq!(
                (DYNAMIC_OFF, SYMBOLS_OFF, STRINGS_OFF, RELA_OFF, WORDS_OFF),
                (288, 448, 472, 480, 504)
            );
            let bytes = bytes(0x1234);
            assert_eq!(bytes.len(), BYTES);
            assert_eq!(bytes[WORDS_OFF + 8..], 0x1234u64.to_le_bytes());
        }
    }
}
