//! Libraries that come and go, whose files are gone, and processes that fork.

use std::ffi::{CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rvbpf_text::{Func, ProcMaps, RxAddr, TextError, find_symbol, original_text};

use super::names::linked;

/// A copy of libgcc_s, loaded from a file of its own.
pub(crate) struct Copy {
    file_name: String,
    pub(crate) path: PathBuf,
    handle: *mut c_void,
    pub(crate) func: RxAddr,
}

impl Copy {
    pub(crate) fn load(name: &str, tamper: impl FnOnce(&mut Vec<u8>)) -> Self {
        let original = Func::find(linked(c"_Unwind_Backtrace"))
            .unwrap()
            .object
            .unwrap();
        let mut bytes = std::fs::read(&*original).unwrap();
        tamper(&mut bytes);
        let file_name = format!("rvbpf-func-{}-{name}.so", std::process::id());
        let path = std::env::temp_dir().join(&file_name);
        std::fs::write(&path, bytes).unwrap();
        let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a copy of a library that this process has loaded before.
        let handle = unsafe { libc::dlopen(c_path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        assert!(!handle.is_null());
        // SAFETY: a live handle and a NUL-terminated name.
        let func = unsafe { libc::dlsym(handle, c"_Unwind_Backtrace".as_ptr()) };
        Self {
            file_name,
            path,
            handle,
            func: RxAddr::new(func.expose_provenance() as u64),
        }
    }

    pub(crate) fn close(self) {
        // SAFETY: nothing of the library is in use.
        unsafe { libc::dlclose(self.handle) };
    }
}

/// What is there of each function, wherever the object is loaded.
fn shapes(funcs: &[Func]) -> Vec<(u64, Option<usize>, Option<Box<str>>)> {
    let first = funcs[0].entry.get();
    funcs
        .iter()
        .map(|f| (f.entry.get() - first, f.len_bytes, f.name.clone()))
        .collect()
}

#[test]
fn the_file_is_not_needed() {
    let original = Func::all_in(linked(c"_Unwind_Backtrace")).unwrap();
    // Without section headers: e_shoff, e_shnum, e_shstrndx.
    let copy = Copy::load("gone", |bytes| {
        bytes[40..48].fill(0);
        bytes[60..64].fill(0);
    });
    std::fs::remove_file(&copy.path).unwrap();
    let funcs = Func::all_in(copy.func).unwrap();
    assert!(funcs.len() > 20);
    assert_eq!(shapes(&funcs), shapes(&original));
    let func = Func::find(copy.func).unwrap();
    assert_eq!(func.name.as_deref(), Some("_Unwind_Backtrace"));
    let name = copy.file_name.clone();
    assert_eq!(find_symbol(Some(&name), "_Unwind_Backtrace"), Ok(copy.func));
    // The copy was loaded for itself: others get the first.
    assert_eq!(
        find_symbol(None, "_Unwind_Backtrace"),
        Ok(linked(c"_Unwind_Backtrace"))
    );
    let addr = copy.func;
    copy.close();
    assert_eq!(Func::find(addr), Err(TextError::Unmapped { addr }));
    let closed = find_symbol(Some(&name), "_Unwind_Backtrace");
    assert!(
        matches!(closed, Err(TextError::ObjectNotLoaded { .. })),
        "{closed:?}"
    );
}

#[test]
fn what_takes_the_place_of_a_library_is_read_anew() {
    let copy = Copy::load("first", |_| ());
    let before = Func::all_in(copy.func).unwrap();
    let (at, path) = (copy.func, copy.path.clone());
    copy.close();
    std::fs::remove_file(&path).unwrap();
    // The same layout at the same path, and most likely at the same place; one letter differs.
    let again = Copy::load("first", |bytes| {
        let name = b"\0_Unwind_Backtrace\0";
        while let Some(i) = bytes.windows(name.len()).position(|w| w == name) {
            bytes[i + 1] = b'X';
        }
    });
    // Its name is gone with the letter.
    let handle = again.handle;
    // SAFETY: a live handle and a NUL-terminated name.
    let other = unsafe { libc::dlsym(handle, c"_Unwind_Find_FDE".as_ptr()) };
    let after = Func::all_in(RxAddr::new(other.expose_provenance() as u64)).unwrap();
    let moved = after[0].entry.get().wrapping_sub(before[0].entry.get());
    let there = RxAddr::new(at.get().wrapping_add(moved));
    let func = Func::find(there).unwrap();
    assert_eq!(func.name.as_deref(), Some("XUnwind_Backtrace"));
    std::fs::remove_file(&again.path).unwrap();
    again.close();
}

/// Sets a flag at the end of a scope, also when a test fails there.
struct StopAtLast<'a>(&'a AtomicBool);

impl Drop for StopAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_child_can_ask_whatever_other_threads_were_asking() {
    let (malloc, memcpy) = (linked(c"malloc"), linked(c"memcpy"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopAtLast(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Not by name: glibc does not free the lock of `dlopen` in the child.
                    Func::find(malloc).unwrap();
                    Func::all_in(memcpy).unwrap();
                }
            });
        }
        for _ in 0..6 {
            // SAFETY: the child only asks, and ends without running anything of the parent's.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let is_found = Func::find(malloc).is_ok_and(|f| f.entry == malloc)
                    && find_symbol(Some("libc.so.6"), "memcpy") == Ok(memcpy);
                // SAFETY: ends this child.
                unsafe { libc::_exit(i32::from(!is_found)) };
            }
            let mut status = 0;
            // SAFETY: a child of ours, and a place for its status.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            assert_eq!((waited, status), (pid, 0));
        }
    });
}

/// The thread whose fork waits, in the midst of it, until others have asked.
static FORKING: AtomicI32 = AtomicI32::new(0);
static FORK_HAS_BEGUN: AtomicBool = AtomicBool::new(false);
static HAVE_ASKED: AtomicI32 = AtomicI32::new(0);

fn gettid() -> i32 {
    // SAFETY: no preconditions.
    unsafe { libc::gettid() }
}

extern "C" fn wait_for_askers() {
    if FORKING.load(Ordering::Relaxed) == gettid() {
        FORK_HAS_BEGUN.store(true, Ordering::Relaxed);
        while HAVE_ASKED.load(Ordering::Relaxed) < 3 {
            std::thread::yield_now();
        }
    }
}

/// Handlers that are registered in the midst of a fork do not run in it. Each round is a process in
/// which nobody has asked before.
#[test]
fn a_fork_that_began_before_the_first_question_leaves_a_child_that_can_ask() {
    const NAME: &str = "funcs::libraries::\
        a_fork_that_began_before_the_first_question_leaves_a_child_that_can_ask";
    const ROUND: &str = "RVBPF_TEST_ROUND";
    if std::env::var_os(ROUND).is_some() {
        return fork_before_the_first_question();
    }
    for round in 0..8 {
        let mut process = std::process::Command::new("/proc/self/exe");
        process.args(["--exact", NAME]).env(ROUND, "");
        let output = process.output().unwrap();
        assert!(output.status.success(), "round {round}: {output:?}");
    }
}

fn fork_before_the_first_question() {
    let malloc = linked(c"malloc");
    // Long enough for somebody to hold the lock whenever one looks.
    let much = ProcMaps::read().unwrap().find(malloc).unwrap().range;
    // SAFETY: the handler is a function of this program.
    unsafe { libc::pthread_atfork(Some(wait_for_askers), None, None) };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopAtLast(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !FORK_HAS_BEGUN.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                while !stop.load(Ordering::Relaxed) {
                    original_text(much).unwrap();
                    HAVE_ASKED.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        FORKING.store(gettid(), Ordering::Relaxed);
        // SAFETY: the child only asks, and ends without running anything of the parent's.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: one that waits for ever is ended.
            unsafe { libc::alarm(40) };
            let is_found = Func::find(malloc).is_ok_and(|f| f.entry == malloc);
            // SAFETY: ends this child.
            unsafe { libc::_exit(i32::from(!is_found)) };
        }
        let mut status = 0;
        // SAFETY: a child of ours, and a place for its status.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!((waited, status), (pid, 0));
    });
}
