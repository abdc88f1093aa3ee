//! `fork`: the child gets code memory of its own.
//!
//! Code maps and replaced foreign pages are memfds, which a fork shares. Handlers of
//! `pthread_atfork` part them:
//!
//! | handler | does |
//! | --- | --- |
//! | prepare | takes the text lock; copies every memfd (what is used of it) into a new one |
//! | parent | drops the copies; releases the lock |
//! | child | maps the copies over the rx ranges, r-x; swaps the files; releases the lock |
//!
//! No transaction is under way in either process while the copy is made, since the lock is held;
//! it is a futex word ([`crate::sync`]), so the child can release it whoever waited for it in the
//! parent. Until its handler has run the child executes the parent's pages: should the parent
//! change them meanwhile, the child executes old or new words, both whole.
//!
//! The handlers are registered when the program (or library) that this crate is part of is loaded,
//! not at the first change or question: a fork runs those handlers alone that it found when it
//! began. One that began a moment before would leave the locks of this crate, and the dynamic
//! linker's, as another thread held them, and its child would wait for them for ever.
//!
//! A fork that skips the handlers (`_Fork`, a bare `clone`) is noticed by a page that the kernel
//! wipes in every forked child (`MADV_WIPEONFORK`): changes are then refused in the child, and
//! its hooks stay as they are and follow the parent's changes. `vfork` and `posix_spawn` run no
//! handlers and share all memory until `exec`: nothing to part.
//!
//! A child's copy is ordinary pages even when the parent's map is huge: the pool may be empty,
//! and most children `exec`. It can collapse again.
//!
//! Key type: [`ForkState`]. Neighbours: `state`, `foreign`, `loaded`, `cache`. Source:
//! `pthread_atfork(3)`, `madvise(2)`; ELF gABI, "Initialization and Termination Functions".
#![expect(
    unsafe_code,
    reason = "pthread_atfork, a lock that is held between its handlers, and a constructor"
)]

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{RxAddr, RxRange};
use crate::detour;
use crate::error::TextError;
use crate::flush::{FlushScope, flush_icache};
use crate::foreign::Snapshot;
use crate::map::Backing;
use crate::proc_maps::ProcMaps;
use crate::state::{self, State};
use crate::sys::{self, Pages, Sharing};

/// What stands in the wiped page of a process that may change text.
const ALIVE: u64 = 0x7276_6270_665f_6f6b;

/// Registers the handlers before there is a second thread, or before anybody has this library.
// SAFETY:
// 1. The linker makes this a constructor, whose type this is (the arguments are not looked at).
// 2. It needs nothing that other constructors make.
// 3. It comes before those of crates that hold locks of their own while they use this one: the
//    number is less.
#[used]
#[unsafe(link_section = ".init_array.60001")]
static WHEN_LOADED: extern "C" fn() = when_loaded;

extern "C" fn when_loaded() {
    // Where it is refused, `ForkState::watch` tries again, and says so.
    let _ = state::raw().lock().fork.register();
}

/// What the handlers need to know of each other.
pub(crate) struct ForkState {
    is_registered: bool,
    /// The page that a fork wipes; there is one once something is changed or asked.
    wiped: Option<&'static AtomicU64>,
    /// Set for good in a child that could not be parted from its parent.
    shared: Option<&'static str>,
    /// From prepare to parent or child.
    copies: Option<Copies>,
}

/// The memory of a child to be.
struct Copies {
    maps: Vec<(u64, File)>,
    foreign: Option<Snapshot>,
}

impl ForkState {
    pub(crate) const fn new() -> Self {
        Self {
            is_registered: false,
            wiped: None,
            shared: None,
            copies: None,
        }
    }

    fn register(&mut self) -> Result<(), TextError> {
        if !self.is_registered {
            register()?;
            self.is_registered = true;
        }
        Ok(())
    }

    /// Sees to it that forks are noticed, before the first change or the first question to the
    /// dynamic linker.
    pub(crate) fn watch(&mut self) -> Result<(), TextError> {
        if self.wiped.is_none() {
            let wiped = wiped_page()?;
            self.register()?;
            wiped.store(ALIVE, Ordering::Relaxed);
            self.wiped = Some(wiped);
        }
        Ok(())
    }

    /// Refuses changes in a child that shares its code with its parent.
    pub(crate) fn check(&mut self) -> Result<(), TextError> {
        if let Some(reason) = self.shared {
            return Err(TextError::SharedWithParent { reason });
        }
        self.watch()?;
        let is_alive = |wiped: &AtomicU64| wiped.load(Ordering::Relaxed) == ALIVE;
        if self.wiped.is_some_and(is_alive) {
            return Ok(());
        }
        let reason = "the fork did not run its handlers (_Fork or a bare clone)";
        self.shared = Some(reason);
        Err(TextError::SharedWithParent { reason })
    }
}

/// A page that is zero in every forked child; never unmapped.
fn wiped_page() -> Result<&'static AtomicU64, TextError> {
    let len_bytes = region::page::size();
    let fail = |call| TextError::Map {
        call,
        addr: RxAddr::new(0),
        len_bytes,
        errno: sys::errno(),
    };
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(fail("mmap"));
    }
    // SAFETY: the page is ours; the advice wipes it in children only.
    let rc = unsafe { libc::madvise(page, len_bytes, libc::MADV_WIPEONFORK) };
    if rc != 0 {
        let e = fail("madvise(MADV_WIPEONFORK)");
        // SAFETY: the page is ours and nothing refers to it yet.
        unsafe { libc::munmap(page, len_bytes) };
        return Err(e);
    }
    // SAFETY:
    // 1. The page is zeroed, aligned, readable and writable, and is never unmapped.
    // 2. It is only ever used as this atomic.
    Ok(unsafe { AtomicU64::from_ptr(page.cast()) })
}

fn register() -> Result<(), TextError> {
    // SAFETY: the three handlers are functions of this crate, which is never unloaded while its
    // text is hooked; they take the lock in prepare and release it once in each process.
    let rc = unsafe {
        libc::pthread_atfork(
            Some(before_fork),
            Some(after_in_parent),
            Some(after_in_child),
        )
    };
    let none = RxAddr::new(0);
    match rc {
        0 => Ok(()),
        errno => Err(TextError::Map {
            call: "pthread_atfork",
            addr: none,
            len_bytes: 0,
            errno,
        }),
    }
}

unsafe extern "C" fn before_fork() {
    crate::loaded::before_fork();
    crate::cache::before_fork();
    let mut state = ManuallyDrop::new(state::raw().lock());
    // Where nothing has been changed or asked there is nothing to copy.
    if state.fork.wiped.is_none() || state.fork.check().is_err() {
        return;
    }
    match Copies::make(&state) {
        Ok(copies) => state.fork.copies = Some(copies),
        Err(_) => state.fork.copies = None,
    }
}

unsafe extern "C" fn after_in_parent() {
    // SAFETY: `before_fork` left the lock held by this thread, and nothing else refers to the
    // data until it is unlocked below.
    let state = unsafe { &mut *state::raw().data_ptr() };
    state.fork.copies = None;
    unlock();
}

unsafe extern "C" fn after_in_child() {
    // SAFETY: as in the parent; besides, this is the only thread of the process.
    let state = unsafe { &mut *state::raw().data_ptr() };
    let was_shared = state.fork.shared.is_some();
    if let (Some(wiped), false) = (state.fork.wiped, was_shared) {
        wiped.store(ALIVE, Ordering::Relaxed);
        state.fork.shared = match state.fork.copies.take() {
            None => Some("its code could not be copied at the fork"),
            Some(copies) => copies
                .enter(state)
                .is_err()
                .then_some("its copy of the code could not be mapped after the fork"),
        };
    }
    // Whoever was arming a site is a thread of the parent.
    for site in state.sites.values_mut() {
        site.release_after_fork();
    }
    for entry in state.detours.values_mut() {
        entry.release_after_fork();
    }
    detour::after_fork();
    if state.fork.shared.is_none() {
        detour::open_in_child(state);
    }
    unlock();
}

/// Ends what `before_fork` began.
fn unlock() {
    // SAFETY: `before_fork` took the lock on this thread and forgot its guard.
    unsafe { state::raw().force_unlock() };
    crate::cache::after_fork();
    crate::loaded::after_fork();
}

impl Copies {
    fn make(state: &State) -> Result<Self, TextError> {
        let mut maps = Vec::with_capacity(state.maps.len());
        for (start, entry) in &state.maps {
            let copy = sys::memfd(entry.rx.len_bytes, Pages::Ordinary)?;
            copy_used(entry.rx, &entry.file, &copy)?;
            maps.push((*start, copy));
        }
        Ok(Self {
            maps,
            foreign: state.foreign.snapshot()?,
        })
    }

    /// In the child.
    fn enter(self, state: &mut State) -> Result<(), TextError> {
        for (start, copy) in self.maps {
            let Some(entry) = state.maps.get_mut(&start) else {
                continue;
            };
            sys::mmap_rx_over(entry.rx, &copy, 0, Sharing::Shared)?;
            entry.file = copy;
            entry.backing = Backing::Memfd;
            entry.collapsed = false;
        }
        if let Some(snapshot) = self.foreign {
            // Asked here, where no other thread can close a library between answer and use.
            let maps = ProcMaps::read()?;
            state.foreign.enter(snapshot, &maps)?;
        }
        flush_icache(RxRange::new(RxAddr::new(0), 0), FlushScope::Process)
    }
}

/// Copies what is not zero; holes are not even read, since reading would fill them.
fn copy_used(rx: RxRange, file: &File, copy: &File) -> Result<(), TextError> {
    let mut page = vec![0; region::page::size()];
    let mut off_bytes = 0;
    while let Some(data) = next_data(file, off_bytes, rx.len_bytes) {
        for off in data.clone().step_by(page.len()) {
            let Some(from) = rx.start.checked_add(off as u64) else {
                break;
            };
            sys::read_text(from, &mut page);
            if page.iter().any(|b| *b != 0) {
                copy.write_all_at(&page, off as u64)
                    .map_err(|e| TextError::Map {
                        call: "pwrite",
                        addr: from,
                        len_bytes: page.len(),
                        errno: e.raw_os_error().unwrap_or(0),
                    })?;
            }
        }
        off_bytes = data.end;
    }
    Ok(())
}

/// The next stretch of a memfd that is no hole.
fn next_data(file: &File, from: usize, end: usize) -> Option<std::ops::Range<usize>> {
    let seek = |off: usize, whence| {
        // SAFETY: a seek of a file of ours, whose position nobody uses.
        let at = unsafe { libc::lseek(file.as_raw_fd(), off as libc::off_t, whence) };
        usize::try_from(at).map_err(|_| sys::errno())
    };
    if from >= end {
        return None;
    }
    match seek(from, libc::SEEK_DATA) {
        Ok(start) if start < end => {
            let stop = seek(start, libc::SEEK_HOLE).map_or(end, |hole| hole.min(end));
            Some(start..stop)
        }
        Ok(_) | Err(libc::ENXIO) => None,
        // A file system that does not know (hugetlbfs): take it all as data.
        Err(_) => Some(from..end),
    }
}
