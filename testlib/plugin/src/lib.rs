//! A tool as a shared library: what a host opens, closes and opens again.
//!
//! Tests open it by `dlopen` and call its functions by name; nothing links to it.

#![cfg(target_arch = "riscv64")]
#![expect(
    unsafe_code,
    reason = "functions that are found by name, and what they hook"
)]

use std::ffi::{CString, c_char, c_long};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
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
