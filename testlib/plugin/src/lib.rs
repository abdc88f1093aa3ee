//! A tool as a shared library: what a host opens, closes and opens again.
//!
//! Tests open it by `dlopen` and call its functions by name; nothing links to it.

#![cfg(target_arch = "riscv64")]
#![expect(
    unsafe_code,
    reason = "functions that are found by name, and what they hook"
)]

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use rvbpf::{Error, Hook, Runtime};

static STATE: Mutex<Option<(Runtime, Hook)>> = Mutex::new(None);
static SEEN: AtomicI64 = AtomicI64::new(0);

/// Null, or what went wrong.
fn answer(result: Result<(), Error>) -> *const c_char {
    match result {
        Ok(()) => ptr::null(),
        Err(e) => CString::new(e.to_string()).unwrap_or_default().into_raw(),
    }
}

/// Hooks `atol`.
// SAFETY: 1. no other function of this name is linked with it.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_start() -> *const c_char {
    let start = || {
        let rt = Runtime::new()?;
        let atol: unsafe extern "C" fn(*const c_char) -> c_long = libc::atol;
        // SAFETY: 1. a function of this type.
        let builder = unsafe { rt.hook(atol) }?;
        let seen = |_: &rvbpf::Call<'_, _>, _: &c_long| {
            SEEN.fetch_add(1, Ordering::Relaxed);
        };
        let hook = builder.on_entry(|_| {}).on_exit(seen).attach()?;
        *STATE.lock().unwrap() = Some((rt, hook));
        Ok(())
    };
    answer(start())
}

/// How often `atol` was called since then.
// SAFETY: 1. no other function of this name is linked with it.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_seen() -> c_long {
    SEEN.load(Ordering::Relaxed)
}

/// Takes the hook away.
// SAFETY: 1. no other function of this name is linked with it.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_stop() -> *const c_char {
    let Some((rt, hook)) = STATE.lock().unwrap().take() else {
        return c"not started".as_ptr();
    };
    let detached = hook.detach();
    drop(hook);
    answer(detached.and_then(|()| rt.synchronize(Duration::from_secs(20))))
}

/// The words of a `PyModuleDef` (CPython `Include/moduleobject.h`), which Python changes.
static MODULE: [AtomicUsize; 13] = [const { AtomicUsize::new(0) }; 13];
const REFCNT: usize = 0;
const NAME: usize = 5;
const SIZE: usize = 7;
const PYTHON_API_VERSION: c_int = 1013;

/// What Python calls when it imports this library as `testplugin`: hooks, and makes a module with
/// nothing in it. The function for that is Python's, so it is found when there is one.
// SAFETY: 1. no other function of this name is linked with it.
#[unsafe(no_mangle)]
pub extern "C" fn PyInit_testplugin() -> *mut c_void {
    let all = libc::RTLD_DEFAULT;
    // SAFETY: 1. a name that ends.
    let found = unsafe { libc::dlsym(all, c"PyModule_Create2".as_ptr()) };
    if found.is_null() || !plugin_start().is_null() {
        return ptr::null_mut();
    }
    MODULE[REFCNT].store(1, Ordering::Relaxed);
    let name = c"testplugin".as_ptr().expose_provenance();
    MODULE[NAME].store(name, Ordering::Relaxed);
    // It keeps its state itself.
    MODULE[SIZE].store(usize::MAX, Ordering::Relaxed);
    type Create = unsafe extern "C" fn(*const AtomicUsize, c_int) -> *mut c_void;
    // SAFETY: 1. it is of this type.
    let create = unsafe { std::mem::transmute::<*mut c_void, Create>(found) };
    // SAFETY: 1. a definition that lives for ever. 2. Python calls this, so it may be called.
    unsafe { create(MODULE.as_ptr(), PYTHON_API_VERSION) }
}
