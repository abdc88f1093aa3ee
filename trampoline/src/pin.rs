//! Keeps a library loaded while its functions are hooked.
//!
//! `dlclose` of a library whose text holds a site must not unmap the text under the hook: a site
//! holds a reference of its own, as another `dlopen` would. To take it and to give it back, the
//! dynamic linker's lock is taken, and a constructor that runs under that lock may be hooking
//! functions itself; so pins are taken before, and given back after, the lock under which hooks are
//! changed. The constructor may also be waiting for this very thread. So a reference is taken only
//! where one is needed ([`text::holders`]): the program, what it needs, and this library with what
//! it needs, are never closed. **Hooks of other libraries, attached or taken away, wait for
//! constructors that run in other threads.**

#![expect(unsafe_code, reason = "dlclose")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use text::{Holder, Namespace, RxAddr};

/// One reference to the library that holds a function; `None` inside: the function is in none, or
/// in one that cannot be closed.
#[derive(Debug, Default)]
pub(crate) struct LibPin(Option<NonNull<c_void>>);

// SAFETY: 1. The handle is a token for `dlclose`, which any thread may call.
unsafe impl Send for LibPin {}

// SAFETY: 1. A shared reference gives access to nothing.
unsafe impl Sync for LibPin {}

impl LibPin {
    /// References to what holds each function, one for all of a library's.
    pub(crate) fn of_all(
        held: impl Iterator<Item = (RxAddr, Holder)>,
    ) -> BTreeMap<RxAddr, Arc<Self>> {
        let mut pins: BTreeMap<u64, Arc<Self>> = BTreeMap::new();
        let mut pin = |holder| match holder {
            Holder::Stays => Arc::default(),
            Holder::MayGo {
                name,
                base,
                namespace,
            } => pins
                .entry(base)
                .or_insert_with(|| Arc::new(Self::of(&name, namespace)))
                .clone(),
        };
        held.map(|(func, holder)| (func, pin(holder))).collect()
    }

    /// A reference to a loaded object, which the caller keeps loaded for now.
    fn of(name: &CStr, namespace: Namespace) -> Self {
        LibPin(NonNull::new(namespace.open(Some(name))))
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
