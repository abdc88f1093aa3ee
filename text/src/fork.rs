//! `fork`: parent and child share all code until one of them changes it.
//!
//! Code maps are shared memory, and replaced foreign pages are mapped privately from memfds, so a
//! fork shares them all. Nothing is copied when it happens: most children `exec`, and a fork must
//! neither allocate nor need descriptors. Instead every change asks first whether another process
//! may have this code ([`ForkState::may_be_shared`]), and takes copies of its own then
//! ([`State::part_from_sharers`](crate::state::State::part_from_sharers)); the old memory is the
//! other side's. Neither ever sees what the other stores.
//!
//! *Whether another process has it* is told by a page of private memory, the canary: every child
//! that has not `exec`ed maps the same one until one side writes to it. Whoever has parted writes,
//! and has a page of its own from then on, as it has code of its own. `/proc/self/pagemap` says
//! whether a page is mapped once; where it does not answer, the code counts as shared. This finds
//! the children of `_Fork` and of bare `clone` too, which run no handlers. One that is born in the
//! midst of a change shares its second half with the parent: old or new words, each whole, that
//! lead to images that it may not have.
//!
//! Handlers of `pthread_atfork` hold the locks of this crate while the memory is copied, and give
//! them back on both sides: no change is under way then. A lock is a futex word
//! ([`crate::sync`]), so the child can release it whoever waited for it in the parent. The handlers
//! allocate nothing, free nothing and call nothing of libc: an allocator may hold its own locks for the
//! time of a fork. One thing does: where a change was under way, the child opens the gate that it has
//! closed ([`detour::open_in_child`]).
//!
//! The handlers are registered when the program (or library) that this crate is part of is loaded,
//! not at the first change or question: a fork runs those handlers alone that it found when it
//! began. One that began a moment before would leave the locks of this crate, and the dynamic
//! linker's, as another thread held them, and its child would wait for them for ever.
//!
//! # Allocators that lock, too
//! jemalloc and tcmalloc hold their locks from a handler of their own to its counterpart. A thread
//! that changes text holds a lock of ours and waits for theirs when it allocates; so the thread that
//! forks must take ours first. What is registered last runs first before a fork, and last after it:
//!
//! ```text
//!   registered:   1. at load     2. the allocator     3. with the first runtime
//!   before:       nothing more   its locks            our locks
//!   after:        nothing yet    its locks            our locks
//! ```
//!
//! Hence both registrations: the second alone would come too late for a fork that has begun. An
//! allocator makes its own at its first allocation as a rule, so there is one before our first,
//! and then that one suffices. Crates above have their handlers called from here ([`at_fork`]), so
//! that the order of all is one.
//!
//! A fork that skips the handlers (`_Fork`, a bare `clone`) is noticed by a page that the kernel
//! wipes in every forked child (`MADV_WIPEONFORK`): changes are refused in the child, since locks
//! may be held there by threads that it does not have. Its hooks stay as they were. `vfork` and
//! `posix_spawn` run no handlers and share all memory until `exec`: nothing to part.
//!
//! The copies are ordinary pages even when the map is huge: the pool may be empty. They can be
//! collapsed again.
//!
//! Key type: [`ForkState`]. Neighbours: `state`, `foreign`, `loaded`, `cache`. Source:
//! `pthread_atfork(3)`, `madvise(2)`, `proc_pid_pagemap(5)` (bit 56); ELF gABI, "Initialization and Termination Functions".
#![expect(
    unsafe_code,
    reason = "pthread_atfork, a lock that is held between its handlers, and a constructor"
)]

use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use crate::addr::RxAddr;
use crate::detour;
use crate::error::TextError;
use crate::flush::{self, SyncMode};
use crate::proc_maps::PageMap;
use crate::state;
use crate::sys;
use crate::syscall::gettid;

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
    // An allocator that has handlers of its own registers them now.
    drop(black_box(Box::new(0_u64)));
    at_fork(&OURS);
    // Where it is refused, `ForkState::watch` tries again, and says so.
    let _ = state::raw().lock().fork.register();
}

/// What tells processes apart.
pub(crate) struct ForkState {
    is_registered: bool,
    /// There are some once something is changed or asked.
    pages: Option<Pages>,
    /// Set for good in a child whose fork ran no handlers.
    orphan: Option<&'static str>,
    /// Whether this process has forked, or is a child, since it last parted; for machines whose
    /// canary says nothing.
    has_forked: bool,
}

/// Pages that are never unmapped.
#[derive(Copy, Clone)]
struct Pages {
    /// Zero in every forked child.
    wiped: &'static AtomicU64,
    /// The same as the parent's until one of the two writes to it.
    canary: &'static AtomicU64,
}

impl ForkState {
    pub(crate) const fn new() -> Self {
        Self {
            is_registered: false,
            pages: None,
            orphan: None,
            has_forked: false,
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
        if self.pages.is_none() {
            let pages = Pages::new()?;
            self.register()?;
            self.pages = Some(pages);
        }
        Ok(())
    }

    /// Refuses changes in a child whose locks may be held by threads of its parent.
    pub(crate) fn check(&mut self) -> Result<(), TextError> {
        if let Some(reason) = self.orphan {
            return Err(TextError::SharedWithParent { reason });
        }
        self.watch()?;
        self.note_orphan();
        match self.orphan {
            None => Ok(()),
            Some(reason) => Err(TextError::SharedWithParent { reason }),
        }
    }

    /// Looks whether this is a child whose fork ran no handlers.
    fn note_orphan(&mut self) {
        let is_wiped = |pages: Pages| pages.wiped.load(Ordering::Relaxed) != ALIVE;
        if self.orphan.is_none() && self.pages.is_some_and(is_wiped) {
            self.orphan = Some("the fork did not run its handlers (_Fork or a bare clone)");
        }
    }

    /// Whether another process may execute the memory of this one's code.
    pub(crate) fn may_be_shared(&self) -> bool {
        let Some(pages) = self.pages else {
            return false;
        };
        // Under an emulator of processes the page map is that of the emulator.
        if matches!(flush::sync_mode_of_maps(), Ok(SyncMode::Remap)) {
            return self.has_forked;
        }
        // Mapped once more, should it have been reclaimed.
        pages.canary.load(Ordering::Relaxed);
        let at = RxAddr::new(ptr::from_ref(pages.canary).expose_provenance() as u64);
        let is_exclusive = PageMap::open().and_then(|map| map.is_exclusive(at));
        is_exclusive != Some(true)
    }

    /// All code is this process's own: its canary is, too.
    pub(crate) fn has_parted(&mut self) {
        self.has_forked = false;
        if let Some(pages) = self.pages {
            pages.canary.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Pages {
    fn new() -> Result<Self, TextError> {
        let wiped = page(Some(libc::MADV_WIPEONFORK))?;
        let canary = page(None)?;
        wiped.store(ALIVE, Ordering::Relaxed);
        // The first write makes it a page.
        canary.store(1, Ordering::Relaxed);
        let (at, len_bytes) = (ptr::from_ref(canary).cast(), region::page::size());
        // SAFETY: 1. the page is ours. In memory it stays the page that children have; where that
        //    is refused, swapping it out and in while a child lives may hide that child.
        unsafe { libc::mlock(at, len_bytes) };
        Ok(Self { wiped, canary })
    }
}

/// A zeroed page, never unmapped, with an advice for forks.
fn page(advice: Option<libc::c_int>) -> Result<&'static AtomicU64, TextError> {
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
    // SAFETY: the page is ours; the advice changes what children have only.
    let advise = |advice| unsafe { libc::madvise(page, len_bytes, advice) };
    if advice.is_some_and(|advice| advise(advice) != 0) {
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

/// What holds locks for the time of a fork.
#[derive(Debug)]
pub struct ForkHandlers {
    /// Takes them. It neither allocates nor frees, and calls nothing of libc.
    pub before: fn(),
    /// Gives them back in the parent.
    pub in_parent: fn(),
    /// The same in the child, whose only thread this is.
    pub in_child: fn(),
}

/// There are three crates.
const MOST: usize = 4;
/// All handlers, those of the innermost locks first.
static HANDLERS: [AtomicPtr<ForkHandlers>; MOST] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MOST];
static NR_HANDLERS: AtomicUsize = AtomicUsize::new(0);

/// Has `handlers` called at each fork, before those of this crate and after them. For constructors
/// of crates that use this one: their numbers are greater than that of this crate's.
pub fn at_fork(handlers: &'static ForkHandlers) {
    let nr = NR_HANDLERS.load(Ordering::Relaxed);
    if let Some(place) = HANDLERS.get(nr) {
        place.store(ptr::from_ref(handlers).cast_mut(), Ordering::Release);
        NR_HANDLERS.store(nr + 1, Ordering::Release);
    }
}

/// Registers the handlers once more, if that has not been done: an allocator may have come since.
/// No lock may be held. A refusal leaves things as they were.
pub fn come_before_allocators() {
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    if !IS_DONE.swap(true, Ordering::Relaxed) {
        let _ = register();
    }
}

/// The thread that forks, while it has the locks; 0: none.
static FORKING: AtomicI32 = AtomicI32::new(0);
/// How many calls of [`before_fork`] of its have no counterpart yet.
static DEPTH: AtomicUsize = AtomicUsize::new(0);
/// How many handlers were called.
static NR_CALLED: AtomicUsize = AtomicUsize::new(0);

fn handlers(nr: usize) -> impl DoubleEndedIterator<Item = &'static ForkHandlers> {
    let all = HANDLERS.iter().take(nr);
    // SAFETY: 1. null, or from a reference that lives for ever.
    all.filter_map(|place| unsafe { place.load(Ordering::Acquire).as_ref() })
}

unsafe extern "C" fn before_fork() {
    let me = gettid();
    if FORKING.load(Ordering::Relaxed) == me {
        DEPTH.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let nr = NR_HANDLERS.load(Ordering::Acquire);
    handlers(nr).rev().for_each(|handlers| (handlers.before)());
    FORKING.store(me, Ordering::Relaxed);
    DEPTH.store(1, Ordering::Relaxed);
    NR_CALLED.store(nr, Ordering::Relaxed);
}

/// What is to be called after the fork, now that a handler of it runs.
fn after_fork() -> impl Iterator<Item = &'static ForkHandlers> {
    let is_last = DEPTH.fetch_sub(1, Ordering::Relaxed) == 1;
    let nr = match is_last {
        true => NR_CALLED.load(Ordering::Relaxed),
        false => 0,
    };
    if is_last {
        FORKING.store(0, Ordering::Relaxed);
    }
    handlers(nr)
}

unsafe extern "C" fn after_in_parent() {
    after_fork().for_each(|handlers| (handlers.in_parent)());
}

unsafe extern "C" fn after_in_child() {
    after_fork().for_each(|handlers| (handlers.in_child)());
}

/// Those of this crate.
static OURS: ForkHandlers = ForkHandlers {
    before: lock,
    in_parent: unlock_in_parent,
    in_child: unlock_in_child,
};

fn lock() {
    crate::loaded::before_fork();
    crate::cache::before_fork();
    let mut state = ManuallyDrop::new(state::raw().lock());
    // A child of `_Fork` that forks: its children are no better off.
    state.fork.note_orphan();
}

fn unlock_in_parent() {
    // SAFETY: `lock` left the lock held by this thread, and nothing else refers to the data until
    // it is unlocked below.
    let state = unsafe { &mut *state::raw().data_ptr() };
    state.fork.has_forked = true;
    unlock();
}

fn unlock_in_child() {
    // SAFETY: as in the parent; besides, this is the only thread of the process.
    let state = unsafe { &mut *state::raw().data_ptr() };
    state.fork.has_forked = true;
    if let (Some(pages), None) = (state.fork.pages, state.fork.orphan) {
        pages.wiped.store(ALIVE, Ordering::Relaxed);
    }
    // Whoever was arming a site is a thread of the parent.
    for site in state.sites.values_mut() {
        site.release_after_fork();
    }
    for entry in state.detours.values_mut() {
        entry.release_after_fork();
    }
    detour::after_fork();
    if state.fork.orphan.is_none() {
        detour::open_in_child(state);
    }
    unlock();
}

/// Ends what `lock` began.
fn unlock() {
    // SAFETY: `lock` took the lock on this thread and forgot its guard.
    unsafe { state::raw().force_unlock() };
    crate::cache::after_fork();
    crate::loaded::after_fork();
}
