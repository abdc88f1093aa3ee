//! What the tests of hooks share: function types, one test at a time, numbers before and after,
//! children.
#![allow(dead_code, reason = "each test file uses a part of this")]

pub(crate) mod library;

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rvbpf::{HookBuilder, HookFn, Runtime, RxAddr, Stats};
use testlib::functions::{tl_add2, tl_call, tl_jump, tl_read_byte, tl_sites, tl_sum, tl_weigh12};

pub(crate) type Add2 = extern "C" fn(c_int, c_int) -> c_int;
pub(crate) type L = c_long;
pub(crate) type Weigh12 = extern "C" fn(L, L, L, L, L, L, L, L, L, L, L, L) -> L;
pub(crate) type Site = extern "C" fn(c_long) -> c_long;
/// `tl_call`, its callback as an address.
pub(crate) type CallBack = unsafe extern "C" fn(*const c_void, *mut c_void) -> c_long;

pub(crate) const ADD2: Add2 = tl_add2;
pub(crate) const WEIGH12: Weigh12 = tl_weigh12;
pub(crate) const SUM: unsafe extern "C" fn(c_int, ...) -> c_long = tl_sum;
pub(crate) const READ_BYTE: extern "C" fn(c_int) -> c_long = tl_read_byte;
pub(crate) const JUMP: unsafe extern "C" fn(c_int) = tl_jump;

/// How long a change may take that must not wait for anybody. Generous: the VM may stall.
pub(crate) const PROMPT: Duration = Duration::from_secs(5);

/// How long a synchronisation may take when nothing is in use.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Tests hook the same functions, and runtimes refuse each other's: one at a time.
pub(crate) fn serial() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `tl_call` with a type that can be hooked.
pub(crate) fn call_back() -> CallBack {
    let raw: *const () = tl_call as *const ();
    // SAFETY:
    // 1. The callback is passed as an address either way.
    unsafe { std::mem::transmute::<*const (), CallBack>(raw) }
}

/// Calls `tl_call`; `f` gets `arg`.
pub(crate) fn call_through(
    f: extern "C-unwind" fn(*mut c_void) -> c_long,
    arg: *mut c_void,
) -> c_long {
    // SAFETY:
    // 1. `f` takes the `arg` that it is given.
    unsafe { tl_call(f, arg) }
}

/// `12a + …`: what `tl_weigh12` makes of `first`, `first + 1`, …
pub(crate) fn weigh_from(first: c_long) -> (c_long, c_long) {
    let n = |i: c_long| first + i;
    let got = tl_weigh12(
        n(0),
        n(1),
        n(2),
        n(3),
        n(4),
        n(5),
        n(6),
        n(7),
        n(8),
        n(9),
        n(10),
        n(11),
    );
    (got, (0..12).map(|i| (i + 1) * (first + i)).sum())
}

/// Begins a hook of a function of the test library.
pub(crate) fn hook<F: HookFn>(rt: &Runtime, f: F) -> HookBuilder<F> {
    // SAFETY:
    // 1. Test functions are declared as they are.
    unsafe { rt.hook(f) }.unwrap()
}

/// The hookable sites of the table.
pub(crate) fn sites(n: usize) -> Vec<Site> {
    tl_sites[..n].to_vec()
}

/// The first bytes of a function, as a hart would fetch them.
pub(crate) fn code_of(addr: RxAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let at = (addr.get() + i as u64) as *const u8;
        // SAFETY:
        // 1. Text of this process, mapped and readable; volatile, since others change it.
        *byte = unsafe { at.read_volatile() };
    }
    bytes
}

/// The same for a function pointer's address.
pub(crate) fn code_at(f: *const ()) -> [u8; 16] {
    code_of(RxAddr::new(f as u64))
}

/// What must be as before once everything is detached and freed.
#[derive(Debug, PartialEq)]
pub(crate) struct Footprint {
    sites: usize,
    links: usize,
    images: usize,
    retired: usize,
    retired_bytes: usize,
    live: usize,
    used_chunks: usize,
    occupied_bytes: usize,
}

pub(crate) fn footprint(stats: &Stats) -> Footprint {
    Footprint {
        sites: stats.tramps.sites,
        links: stats.tramps.links,
        images: stats.tramps.images,
        retired: stats.tramps.retired,
        retired_bytes: stats.tramps.retired_bytes,
        live: stats.packs.nr_live,
        used_chunks: stats.packs.nr_chunks_used,
        occupied_bytes: stats.packs.occupied_bytes,
    }
}

/// Everything is detached: waits for the grace periods, then all numbers are those of a new
/// runtime.
pub(crate) fn assert_settled(rt: &Runtime) {
    if let Err(error) = rt.synchronize(PATIENCE) {
        panic!("{error}: {:?}", rt.stats());
    }
    let (now, fresh) = (rt.stats(), Runtime::new().unwrap().stats());
    assert_eq!(
        footprint(&now),
        footprint(&fresh),
        "something is left: {now:?}"
    );
    assert!(now.packs.nr_packs <= 1, "packs are left: {now:?}");
}

/// Harts that this process may run on.
pub(crate) fn harts() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Tells threads to stop, also when the test panics: a scope waits for them.
pub(crate) struct Stopper<'s>(pub(crate) &'s AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A counter that programs add to.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) const fn new() -> Self {
        Count(AtomicU64::new(0))
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

/// The result of a system call that returns -1 on failure.
pub(crate) fn checked(result: c_int) -> c_int {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

/// The library that cargo built beside this test (`testlib/plugin`).
pub(crate) fn plugin() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let mut entries = std::fs::read_dir(test.parent().unwrap()).unwrap();
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("libtestplugin") && name.ends_with(".so")
    };
    let found = entries.find_map(|entry| Some(entry.unwrap().path()).filter(is_it));
    found.expect("cargo builds it as a dependency, and the lab takes it along")
}

/// A pipe: read end, write end.
pub(crate) fn pipe() -> (c_int, c_int) {
    let mut ends = [0; 2];
    // SAFETY:
    // 1. Room for two descriptors.
    checked(unsafe { libc::pipe(ends.as_mut_ptr()) });
    (ends[0], ends[1])
}

/// Writes one byte.
pub(crate) fn send(fd: c_int, byte: u8) {
    // SAFETY:
    // 1. One readable byte.
    let sent = unsafe { libc::write(fd, (&raw const byte).cast(), 1) };
    assert_eq!(sent, 1, "{}", io::Error::last_os_error());
}

/// A thread of this process in the kernel's words: is it asleep in a system call?
pub(crate) fn is_asleep(tid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    // "(name)" may hold anything; the state is the first word behind its last bracket.
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('S'))
}

pub(crate) fn gettid() -> i32 {
    // SAFETY:
    // 1. No preconditions.
    unsafe { libc::gettid() }
}

/// Waits until `done` says so, and fails with `what` when that takes too long.
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(std::time::Instant::now() < end, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Forks. The child runs `body` and ends; its panic, signal or hanging is an error here.
pub(crate) fn in_child(body: impl FnOnce()) -> Child {
    // SAFETY:
    // 1. The child runs `body` alone and leaves by `_exit`; tests that fork beside other threads
    //    use nothing in it that another thread could hold, glibc's allocator being fork-safe.
    let pid = checked(unsafe { libc::fork() });
    if pid == 0 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY:
        // 1. Leaves at once.
        unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) };
    }
    Child { pid }
}

/// A forked child.
#[must_use]
pub(crate) struct Child {
    pid: i32,
}

impl Child {
    /// Waits for it and fails unless it ended well.
    pub(crate) fn join(self) {
        assert_eq!(self.status(), 0, "the child ended with this wait status");
    }

    /// Its wait status.
    pub(crate) fn status(self) -> c_int {
        let mut status = 0;
        let end = std::time::Instant::now() + 3 * PATIENCE;
        loop {
            // SAFETY:
            // 1. Our own child; `status` is writable.
            let got = checked(unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) });
            if got == self.pid {
                return status;
            }
            if std::time::Instant::now() > end {
                // SAFETY:
                // 1. Our own child.
                unsafe { libc::kill(self.pid, libc::SIGKILL) };
                panic!("the child hangs");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Runs `child` with `arg` as C's `vfork` would, but on a stack of its own, as `posix_spawn` does
/// it: the child has this thread's memory and thread pointer, and the thread waits. Gives the
/// child's wait status.
///
/// `child` must leave alone what the thread's own frames, locks and heap are in the midst of.
pub(crate) fn vfork(child: extern "C" fn(*mut c_void) -> c_int, arg: *mut c_void) -> c_int {
    const STACK_BYTES: usize = 256 << 10;
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
    );
    // Given back afterwards: what signals left on it would be found in memory that is used again.
    // SAFETY:
    // 1. A fresh mapping disturbs nothing.
    let stack = unsafe { libc::mmap(std::ptr::null_mut(), STACK_BYTES, prot, flags, -1, 0) };
    assert_ne!(stack, libc::MAP_FAILED);
    let top = stack.wrapping_byte_add(STACK_BYTES);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY:
    // 1. The child has a stack, which lives until it has ended (CLONE_VFORK).
    // 2. What it does with this memory is said above.
    let pid = checked(unsafe { libc::clone(child, top, flags, arg) });
    let status = wait_for(pid);
    // SAFETY:
    // 1. Mapped above; nobody runs there any more.
    checked(unsafe { libc::munmap(stack, STACK_BYTES) });
    status
}

/// The wait status of a child of ours, which has not been waited for.
pub(crate) fn wait_for(pid: c_int) -> c_int {
    let mut status = -1;
    // SAFETY:
    // 1. The status is writable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}
