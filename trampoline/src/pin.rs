//! Keeps a library loaded while its functions are hooked.
//!
//! `dlclose` of a library whose text holds a site must not unmap the text under the hook: a site
//! holds a reference of its own, as another `dlopen` would. The dynamic linker's lock is taken
//! here, and a constructor that runs under that lock may be hooking functions itself; so pins are
//! taken before, and given back after, the lock under which hooks are changed.

#![expect(unsafe_code, reason = "dladdr, dlopen, dlclose")]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use text::{RxAddr, RxRange};

use crate::owner::ChangeLock;

/// One reference to the library that holds a function; `None` inside: the function is in none, or
/// in one that cannot be closed.
#[derive(Debug, Default)]
pub(crate) struct LibPin(Option<NonNull<c_void>>);

// SAFETY: 1. The handle is a token for `dlclose`, which any thread may call.
unsafe impl Send for LibPin {}

// SAFETY: 1. A shared reference gives access to nothing.
unsafe impl Sync for LibPin {}

impl LibPin {
    /// References to the libraries that hold `funcs`, one for all of a library's.
    pub(crate) fn of_all(funcs: impl Iterator<Item = RxAddr>) -> BTreeMap<RxAddr, Arc<Self>> {
        let mut pins: BTreeMap<*mut c_void, Arc<Self>> = BTreeMap::new();
        let mut pin = |func: RxAddr| match Self::info(func) {
            None => Arc::default(),
            Some(info) => pins
                .entry(info.dli_fbase)
                .or_insert_with(|| Arc::new(Self::of(&info)))
                .clone(),
        };
        // `dladdr` reads all symbols of a library: once a segment, not once a function.
        let mut segments: BTreeMap<RxAddr, (RxRange, Arc<Self>)> = BTreeMap::new();
        let mut pin_of = |func: RxAddr| {
            if let Some((_, (segment, pin))) = segments.range(..=func).next_back() {
                if segment.contains(func) {
                    return pin.clone();
                }
            }
            let pin = pin(func);
            // That asks under a lock of `text`, which a program on this thread may want, too: not
            // without the lock of changes, and not at all in the midst of a change.
            let segment = ChangeLock::enter().and_then(|_change| text::segment_of(func));
            if let Some(segment) = segment {
                segments.insert(segment.start, (segment, pin.clone()));
            }
            pin
        };
        funcs.map(|func| (func, pin_of(func))).collect()
    }

    /// What holds `func`.
    fn info(func: RxAddr) -> Option<libc::Dl_info> {
        let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: 1. any address may be asked for. 2. `info` is writable.
        let found = unsafe { libc::dladdr(func.get() as *const c_void, info.as_mut_ptr()) };
        // SAFETY: 1. zero bytes are a valid `Dl_info`.
        let info = unsafe { info.assume_init() };
        (found != 0 && !info.dli_fname.is_null()).then_some(info)
    }

    fn of(info: &libc::Dl_info) -> Self {
        let only_a_reference = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
        // SAFETY:
        // 1. `dli_fname` is the name of a loaded object; the caller keeps that loaded for now.
        // 2. RTLD_NOLOAD loads nothing, so no constructor runs.
        LibPin(NonNull::new(unsafe {
            libc::dlopen(info.dli_fname, only_a_reference)
        }))
    }
}

impl Drop for LibPin {
    fn drop(&mut self) {
        if let Some(handle) = self.0 {
            // SAFETY: 1. the handle is ours and is given back once.
            unsafe { libc::dlclose(handle.as_ptr()) };
        }
    }
}
