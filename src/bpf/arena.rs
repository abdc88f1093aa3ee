//! Arenas: memory that programs and their host share, with pointers whose lower 32 bits say it all.
//!
//! ```text
//!          ┌───────┬──────┬────────────────────────────────────┬───────┐
//!          │ guard │ null │ pages, there or not                │ guard │
//!          └───────┴──────┴────────────────────────────────────┴───────┘
//!                  ▲      ▲                                    ▲
//!           base + 0      one page                             4 GiB
//! ```
//!
//! All of it is reserved, and `base` is a multiple of 4 GiB: an address in the arena is `base` with
//! an offset in its lower half. That is what a program's pointers hold, in both of its address
//! spaces, and what its host may follow. A cast looks at the lower half alone, so no pointer of a
//! program, whatever it holds, leaves the window by it. Null stays null: the first page is never
//! there.
//!
//! Pages come and go ([`Arena::alloc`], [`Arena::free`]). A program that reaches for one that is
//! not there meets an *arena fault*: loads give 0, stores are dropped, and it goes on. Compiled
//! code has this from the handler of `faults`; the interpreter asks ([`Arena::access`]) and keeps
//! the pages from going meanwhile.
//!
//! (The kernel's arena has two windows, one for programs and one for its user, and casts go from one
//! to the other. Here they are one, so what a cast to address space 0 gives is dereferenced as it
//! is.)
//!
//! Key type: [`Arena`]. Neighbours: `env` hands it to programs. Source: kernel `kernel/bpf/arena.c`;
//! `mmap(2)`.

#![expect(
    unsafe_code,
    reason = "reserves memory, and hands out pages that programs write"
)]

use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::RwLock;
use trampoline::Trampolines;

use super::error::ArenaError;

/// What an offset of 32 bits reaches.
const WINDOW_BYTES: u64 = 1 << 32;
/// More than an instruction's offset and the size of an access, on both sides.
const GUARD_BYTES: u64 = 1 << 16;

/// Memory with 32-bit pointers. Clones share it; it goes with the last of them.
///
/// ```
/// use rvbpf::bpf::{Arena, BpfReg::*, Env, Interpreter, Op, ProgramBuilder, Size};
///
/// // What r1, a pointer into the arena, points to.
/// let mut b = ProgramBuilder::new();
/// b.op(Op::AddrSpaceCast { dst: R1, src: R1, to: 0, from: 1 });
/// b.load(Size::Dw, R0, R1, 0).exit();
/// let program = b.finish()?;
///
/// let arena = Arena::new(16)?;
/// let page = arena.alloc(1)?;
/// arena.write(page, &7_u64.to_ne_bytes())?;
/// let env = Env::new().arena(&arena);
/// let interpreter = Interpreter::new(&program, &env)?;
/// for (ptr, want) in [(page, 7), (0x1234_5678, 0)] {
///     // SAFETY: it reads the arena, whether there is a page or not.
///     let r0 = unsafe { interpreter.run([ptr.into(), 0, 0, 0, 0], 10) };
///     assert_eq!(r0, Ok(want));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[doc(alias = "BPF_MAP_TYPE_ARENA")]
pub struct Arena(Arc<Inner>);

struct Inner {
    base: *mut u8,
    page_bytes: u32,
    pages: RwLock<Pages>,
}

// SAFETY: 1. the memory is of no thread; whoever follows a pointer into it answers for that.
unsafe impl Send for Inner {}
// SAFETY: 1. as above; what is known of pages is under a lock.
unsafe impl Sync for Inner {}

/// Which pages are there.
#[derive(Debug)]
struct Pages {
    /// A bit for each page; that of null is set.
    used: Vec<u64>,
    /// One more than the last page that can be used.
    end: u32,
    /// How many are there.
    count: u32,
}

impl Pages {
    fn new(max: u32) -> Self {
        let end = max + 1;
        let mut used = vec![0; end.div_ceil(64) as usize];
        used[0] = 1;
        Self {
            used,
            end,
            count: 0,
        }
    }

    fn is_used(&self, page: u32) -> bool {
        let word = self.used.get(page as usize / 64);
        word.is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    fn is_there(&self, page: u32) -> bool {
        page != 0 && self.is_used(page)
    }

    /// The first of so many pages in a row that are not used.
    fn find(&self, pages: u32) -> Option<u32> {
        let (mut page, mut run) = (0, 0);
        while page < self.end {
            if page % 64 == 0 && self.used[page as usize / 64] == u64::MAX {
                (page, run) = (page + 64, 0);
                continue;
            }
            run = if self.is_used(page) { 0 } else { run + 1 };
            page += 1;
            if run == pages {
                return Some(page - run);
            }
        }
        None
    }

    fn set(&mut self, page: u32) {
        self.used[page as usize / 64] |= 1 << (page % 64);
        self.count += 1;
    }

    fn clear(&mut self, page: u32) {
        self.used[page as usize / 64] &= !(1 << (page % 64));
        self.count -= 1;
    }
}

impl Arena {
    /// Reserves an arena of which at most so many pages are there at once, none yet.
    ///
    /// # Errors
    /// [`ArenaError::Size`] for no page or more than 32 bits reach, [`ArenaError::Reserve`] when
    /// there is no room for 4 GiB of addresses.
    pub fn new(max_pages: u32) -> Result<Self, ArenaError> {
        let page_bytes = page_bytes();
        let max = (WINDOW_BYTES / u64::from(page_bytes) - 1) as u32;
        if max_pages == 0 || max_pages > max {
            return Err(ArenaError::Size {
                pages: max_pages,
                max,
            });
        }
        let base = reserve().map_err(|errno| ArenaError::Reserve { errno })?;
        let pages = RwLock::new(Pages::new(max_pages));
        Ok(Self(Arc::new(Inner {
            base,
            page_bytes,
            pages,
        })))
    }

    /// The size of a page.
    #[must_use]
    pub fn page_bytes(&self) -> u32 {
        self.0.page_bytes
    }

    /// How many pages are there.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.0.pages.read_recursive().count
    }

    /// How many bytes of the window pages can be in, from offset 0.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        u64::from(self.0.pages.read_recursive().end) * u64::from(self.page_bytes())
    }

    /// The address of offset 0.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.0.base
    }

    /// Makes so many pages in a row be there, zeroed; the offset of the first. Kernel:
    /// `bpf_arena_alloc_pages`.
    ///
    /// # Errors
    /// [`ArenaError::Full`] when there is no such row, [`ArenaError::Commit`] when there is no
    /// memory, [`ArenaError::Reentered`].
    pub fn alloc(&self, pages: u32) -> Result<u32, ArenaError> {
        self.change(|known| {
            let none = ArenaError::Full { pages };
            let first = match pages {
                0 => None,
                _ => known.find(pages),
            };
            self.commit(known, first.ok_or(none)?, pages)
        })
    }

    /// Changes what pages there are, under the lock of changes: so no fork comes between, and a
    /// program that runs in the midst of a change by its own thread is refused.
    fn change<T>(
        &self,
        f: impl FnOnce(&mut Pages) -> Result<T, ArenaError>,
    ) -> Result<T, ArenaError> {
        let changed = Trampolines::exclusively(|| f(&mut self.0.pages.write()));
        changed.map_err(|_| ArenaError::Reentered)?
    }

    /// The same at an offset.
    ///
    /// # Errors
    /// [`ArenaError::Bounds`] when that is not the start of so many pages, [`ArenaError::Full`]
    /// when one of them is there already, [`ArenaError::Commit`] when there is no memory.
    pub fn alloc_at(&self, offset: u32, pages: u32) -> Result<u32, ArenaError> {
        self.change(|known| {
            let first = self.page_of(known, offset, pages)?;
            if (first..first + pages).any(|page| known.is_used(page)) {
                return Err(ArenaError::Full { pages });
            }
            self.commit(known, first, pages)
        })
    }

    /// Makes so many pages from an offset on not be there, whether they are or not; how many were.
    /// Kernel: `bpf_arena_free_pages`.
    ///
    /// Programs that use them meanwhile meet arena faults. Whoever follows a pointer of
    /// [`Arena::ptr`] there dies of it.
    ///
    /// # Errors
    /// [`ArenaError::Bounds`] when that is not the start of so many pages, [`ArenaError::Commit`]
    /// when the kernel cannot take them back.
    pub fn free(&self, offset: u32, pages: u32) -> Result<u32, ArenaError> {
        self.change(|known| {
            let first = self.page_of(known, offset, pages)?;
            let before = known.count;
            // The reservation stays: nobody else's memory comes to lie in it.
            self.protect(first, pages, libc::PROT_NONE)?;
            let (start, len) = self.place(first, pages);
            // SAFETY:
            // 1. The range is inside the reservation, which is this arena's own (`page_of`).
            // 2. The interpreter is in none of the pages: `known` is held.
            let taken = unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) } == 0;
            let refused = errno();
            for page in first..first + pages {
                match (known.is_there(page), taken) {
                    (true, true) => known.clear(page),
                    // It stays, with what is in it.
                    (true, false) => self.protect(page, 1, libc::PROT_READ | libc::PROT_WRITE)?,
                    (false, _) => {}
                }
            }
            match taken {
                true => Ok(before - known.count),
                false => Err(ArenaError::Commit { errno: refused }),
            }
        })
    }

    /// Where pages are.
    fn place(&self, first: u32, pages: u32) -> (*mut libc::c_void, usize) {
        let (at, bytes) = (first as usize, self.page_bytes() as usize);
        let start = self.0.base.wrapping_add(at * bytes);
        (start.cast(), pages as usize * bytes)
    }

    /// Lets pages be accessed, or not.
    fn protect(&self, first: u32, pages: u32, prot: libc::c_int) -> Result<(), ArenaError> {
        let (start, len) = self.place(first, pages);
        // SAFETY:
        // 1. The range is inside the reservation (`page_of`, `Pages::find`).
        // 2. The interpreter is in none of the pages: what is known of them is being changed.
        match unsafe { libc::mprotect(start, len, prot) } {
            0 => Ok(()),
            _ => Err(ArenaError::Commit { errno: errno() }),
        }
    }

    /// Where an offset is: what a program's pointers hold. Null of offset 0.
    ///
    /// It may be followed while its page is there, with care for what programs do meanwhile.
    #[must_use]
    pub fn ptr(&self, offset: u32) -> *mut u8 {
        match offset {
            0 => ptr::null_mut(),
            _ => self.0.base.wrapping_add(offset as usize),
        }
    }

    /// The offset in a pointer, of a program or of [`Arena::ptr`]: its lower half.
    #[must_use]
    pub fn offset(ptr: *const u8) -> u32 {
        ptr as u64 as u32
    }

    /// Copies out of the arena. Bytes that somebody writes meanwhile are old or new.
    ///
    /// # Errors
    /// [`ArenaError::NotThere`] when a byte's page is not; nothing is copied then.
    pub fn read(&self, offset: u32, to: &mut [u8]) -> Result<(), ArenaError> {
        self.copy(offset, to.len(), |i, byte| {
            // SAFETY: 1. its page is there, and stays so (`copy`).
            let byte = unsafe { AtomicU8::from_ptr(byte) };
            to[i] = byte.load(Ordering::Relaxed);
        })
    }

    /// Copies into the arena. Who reads meanwhile sees each byte old or new.
    ///
    /// # Errors
    /// [`ArenaError::NotThere`] when a byte's page is not; nothing is copied then.
    pub fn write(&self, offset: u32, from: &[u8]) -> Result<(), ArenaError> {
        self.copy(offset, from.len(), |i, byte| {
            // SAFETY: 1. its page is there, and stays so (`copy`).
            let byte = unsafe { AtomicU8::from_ptr(byte) };
            byte.store(from[i], Ordering::Relaxed);
        })
    }

    fn copy(
        &self,
        offset: u32,
        len: usize,
        mut each: impl FnMut(usize, *mut u8),
    ) -> Result<(), ArenaError> {
        let first = self.0.base as u64 + u64::from(offset);
        let all = || (0..len).for_each(|i| each(i, self.0.base.wrapping_add(offset as usize + i)));
        self.access(first, len as u64, all)
            .ok_or(ArenaError::NotThere { offset, len })
    }

    /// What a cast makes of a register: null, or the address of its lower half.
    pub(crate) fn cast(&self, value: u64) -> u64 {
        match value as u32 {
            0 => 0,
            offset => self.at(offset.into()),
        }
    }

    /// The address of the lower half of a register, null or not. Kernel: `BPF_PROBE_MEM32`.
    pub(crate) fn at(&self, value: u64) -> u64 {
        self.0.base as u64 + u64::from(value as u32)
    }

    /// Does an access, unless it is one to a page that is not there. The pages stay meanwhile.
    ///
    /// What is neither in the window nor around null is none of the arena's business, and is done.
    pub(crate) fn access<T>(&self, addr: u64, bytes: u64, access: impl FnOnce() -> T) -> Option<T> {
        let base = self.0.base as u64;
        let in_window =
            addr.wrapping_sub(base - GUARD_BYTES) < GUARD_BYTES + WINDOW_BYTES + GUARD_BYTES;
        if !in_window {
            let near_null = addr.wrapping_add(GUARD_BYTES) < 2 * GUARD_BYTES;
            return (!near_null).then(access);
        }
        // Within itself, if a program that the access leads to comes here again.
        let known = self.0.pages.read_recursive();
        let page = |addr: u64| {
            addr.checked_sub(base)
                .map(|off| off / self.page_bytes() as u64)
        };
        let first = page(addr)?;
        let last = page(addr + bytes.saturating_sub(1))?;
        let there = |page| u32::try_from(page).is_ok_and(|page| known.is_there(page));
        (first..=last).all(there).then(access)
    }

    /// What programs refer to it by: their `bpf_arena_alloc_pages` gets it back.
    pub(crate) fn handle(&self) -> u64 {
        Arc::as_ptr(&self.0) as u64
    }

    /// The page at an offset that begins so many pages.
    fn page_of(&self, known: &Pages, offset: u32, pages: u32) -> Result<u32, ArenaError> {
        let first = offset / self.page_bytes();
        let fits = first.checked_add(pages).is_some_and(|end| end <= known.end);
        if pages == 0 || first == 0 || offset % self.page_bytes() != 0 || !fits {
            return Err(ArenaError::Bounds { offset, pages });
        }
        Ok(first)
    }

    /// Makes pages be there that are not.
    fn commit(&self, known: &mut Pages, first: u32, pages: u32) -> Result<u32, ArenaError> {
        let offset = first * self.page_bytes();
        self.protect(first, pages, libc::PROT_READ | libc::PROT_WRITE)?;
        (first..first + pages).for_each(|page| known.set(page));
        Ok(offset)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("base", &self.0.base)
            .field("pages", &self.pages())
            .finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let start = self.base.wrapping_sub(GUARD_BYTES as usize);
        // SAFETY: 1. it is the reservation; nobody has the arena any more.
        unsafe { libc::munmap(start.cast(), RESERVED_BYTES) };
    }
}

const RESERVED_BYTES: usize = (GUARD_BYTES + WINDOW_BYTES + GUARD_BYTES) as usize;

/// For programs, as host function `bpf_arena_alloc_pages(arena, addr, pages, node, flags)`: pages at
/// `addr`, or anywhere if that is null; their address, or null if there are none.
///
/// `node` is not looked at; `flags` must be 0.
///
/// # Safety
/// 1. `arena` is what a reference to an arena of the program's environment gives.
#[doc(alias = "bpf_arena_alloc_pages")]
pub unsafe extern "C" fn arena_alloc_pages(
    arena: *const (),
    addr: *mut u8,
    pages: u32,
    _node: i32,
    flags: u64,
) -> *mut u8 {
    // SAFETY: 1. caller's contract.
    let arena = unsafe { from_handle(arena) };
    let offset = match (flags, addr.is_null()) {
        (0, true) => arena.alloc(pages),
        (0, false) => arena.alloc_at(Arena::offset(addr), pages),
        _ => return ptr::null_mut(),
    };
    offset.map_or(ptr::null_mut(), |offset| arena.ptr(offset))
}

/// For programs, as host function `bpf_arena_free_pages(arena, addr, pages)`.
///
/// # Safety
/// 1. `arena` is what a reference to an arena of the program's environment gives.
#[doc(alias = "bpf_arena_free_pages")]
pub unsafe extern "C" fn arena_free_pages(arena: *const (), addr: *mut u8, pages: u32) {
    // SAFETY: 1. caller's contract.
    let arena = unsafe { from_handle(arena) };
    // Where there are no such pages, there is nothing to free.
    let _ = arena.free(Arena::offset(addr), pages);
}

/// # Safety
/// 1. `handle` is that of a live arena.
unsafe fn from_handle(handle: *const ()) -> Arena {
    let inner = handle.cast::<Inner>();
    // SAFETY:
    // 1. It is of `Arc::as_ptr`, and the loaded program, or the environment of an interpreted one,
    //    keeps the arena (caller's contract).
    unsafe { Arc::increment_strong_count(inner) };
    // SAFETY: 1. as above; the count is the one that was just taken.
    Arena(unsafe { Arc::from_raw(inner) })
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn page_bytes() -> u32 {
    // SAFETY: 1. takes a number, changes nothing.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(bytes).unwrap_or(4096)
}

/// Addresses without memory, where the kernel chooses.
fn map(len: usize) -> *mut libc::c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: 1. nothing else is there.
    unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) }
}

/// A window and its guards, the window at a multiple of 4 GiB; or the errno.
fn reserve() -> Result<*mut u8, i32> {
    // Somewhere in here is one.
    let all = RESERVED_BYTES + WINDOW_BYTES as usize;
    let start = map(all);
    if start == libc::MAP_FAILED {
        return Err(errno());
    }
    let start = start.cast::<u8>();
    let before = {
        let first = start as u64 + GUARD_BYTES;
        (first.next_multiple_of(WINDOW_BYTES) - first) as usize
    };
    let window = start.wrapping_add(before + GUARD_BYTES as usize);
    let rest = start.wrapping_add(before + RESERVED_BYTES);
    for (at, len) in [(start, before), (rest, all - before - RESERVED_BYTES)] {
        if len != 0 {
            // SAFETY: 1. the range is of the mapping that was just made, and not of the window.
            unsafe { libc::munmap(at.cast(), len) };
        }
    }
    window.expose_provenance();
    Ok(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_aligned_and_its_pages_come_zeroed_and_go() {
        let arena = Arena::new(4).unwrap();
        assert_eq!(arena.base() as u64 % WINDOW_BYTES, 0);
        let page = arena.page_bytes();
        assert_eq!(arena.alloc(3).unwrap(), page, "null is not among them");
        assert_eq!(arena.alloc(2), Err(ArenaError::Full { pages: 2 }));
        assert_eq!(arena.alloc(1).unwrap(), 4 * page);
        arena.write(page, &[7; 9]).unwrap();
        // SAFETY: 1. the page is there.
        assert_eq!(unsafe { arena.ptr(page + 8).read() }, 7);
        assert_eq!(arena.free(page, 2), Ok(2));
        assert_eq!(arena.free(page, 3), Ok(1));
        assert_eq!(arena.pages(), 1);
        assert_eq!(arena.alloc_at(2 * page, 1).unwrap(), 2 * page);
        assert_eq!(arena.alloc(2), Err(ArenaError::Full { pages: 2 }));
        assert_eq!(arena.alloc(1).unwrap(), page);
        let mut got = [1; 9];
        arena.read(page, &mut got).unwrap();
        assert_eq!(got, [0; 9], "zeroed again");
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let max = (WINDOW_BYTES / u64::from(page_bytes()) - 1) as u32;
        for pages in [0, max + 1] {
            assert_eq!(
                Arena::new(pages).unwrap_err(),
                ArenaError::Size { pages, max }
            );
        }
        let arena = Arena::new(max).unwrap();
        let page = arena.page_bytes();
        let bounds = |offset, pages| Err(ArenaError::Bounds { offset, pages });
        for (offset, pages) in [(0, 1), (page + 8, 1), (page, 0), (2 * page, max)] {
            assert_eq!(arena.alloc_at(offset, pages), bounds(offset, pages));
            assert_eq!(arena.free(offset, pages), bounds(offset, pages));
        }
        assert_eq!(arena.alloc(0), Err(ArenaError::Full { pages: 0 }));
        let last = max * page;
        assert_eq!(arena.alloc_at(last, 1).unwrap(), last);
        let len = 2;
        let offset = u32::MAX;
        let not_there = Err(ArenaError::NotThere { offset, len });
        assert_eq!(arena.write(offset, &[1; 2]), not_there);
        assert_eq!(arena.write(offset, &[1]), Ok(()));
    }

    #[test]
    fn accesses_are_done_where_they_may_be() {
        let arena = Arena::new(2).unwrap();
        let page = u64::from(arena.page_bytes());
        let base = arena.base() as u64;
        arena.alloc(1).unwrap();
        let done = |addr: u64, bytes| arena.access(addr, bytes, || ()).is_some();
        assert!(done(base + page, 8) && done(base + 2 * page - 8, 8));
        assert!(!done(base + page - 1, 1), "null's page");
        assert!(!done(base + 2 * page - 4, 8), "one half is not there");
        assert!(!done(base - 8, 8) && !done(base + WINDOW_BYTES + 8, 8));
        assert!(!done(0, 1) && !done(0x8000, 8) && !done(u64::MAX, 1));
        assert!(done(base - GUARD_BYTES - 8, 8), "somebody else's");
        assert_eq!((arena.cast(7 << 32), arena.at(7 << 32)), (0, base));
        assert_eq!(arena.cast(7 << 32 | page), base + page);
    }
}
