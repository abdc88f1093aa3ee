//! The object that holds this crate: the program, or a library that stays loaded.
//!
//! A library that is opened late (a plugin, an extension of an interpreter, an agent) may be closed
//! while it is in use all the same: handlers of forks and signals, images, entries of unwinders'
//! lists and the words of sites in foreign text lead into it, and threads may be on their way. So it
//! keeps itself loaded from its first moment. The dynamic linker gives nothing of static TLS back
//! either: a library that is opened again must be the same one.
//!
//! It is asked in a constructor, by a thread that holds the dynamic linker's lock.
//!
//! Key function: [`own_object`]. Neighbours: `loaded`. Source: `dlopen(3)` (`RTLD_NODELETE`).
#![expect(unsafe_code, reason = "dlopen, dlinfo, and a constructor")]

use std::ffi::{CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::addr::RxAddr;
use crate::error::TextError;
use crate::loaded::Loaded;

/// What holds this crate.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Own {
    /// The main program.
    Program,
    /// A library, which is not closed any more.
    Library,
}

/// 0: not known yet; 1: the program; 2: a library.
static OWN: AtomicU8 = AtomicU8::new(0);

// SAFETY:
// 1. The linker makes this a constructor, whose type this is (the arguments are not looked at).
// 2. It needs nothing that other constructors make.
#[used]
#[unsafe(link_section = ".init_array.60000")]
static WHEN_LOADED: extern "C" fn() = when_loaded;

extern "C" fn when_loaded() {
    // Where it fails, whoever needs it asks again, and is told.
    let _ = own_object();
}

/// What holds this crate. A library is kept loaded from the first call on, which a constructor
/// makes.
///
/// Should that have failed, the dynamic linker is asked again, whose lock is held while
/// constructors run.
///
/// # Errors
/// [`TextError::ObjectFile`]: the library cannot be kept.
pub fn own_object() -> Result<Own, TextError> {
    let own = match OWN.load(Ordering::Relaxed) {
        1 => return Ok(Own::Program),
        2 => return Ok(Own::Library),
        _ => find()?,
    };
    OWN.store(1 + own as u8, Ordering::Relaxed);
    Ok(own)
}

fn find() -> Result<Own, TextError> {
    let here = RxAddr::new(own_object as *const () as u64);
    match Loaded::find(here) {
        Some(object) if !object.is_main() => keep(&object).map(|()| Own::Library),
        _ => Ok(Own::Program),
    }
}

fn keep(object: &Loaded) -> Result<(), TextError> {
    let fail = || object.error("the dynamic linker does not keep this library loaded");
    let name = CString::new(object.path.as_os_str().as_bytes()).map_err(|_| fail())?;
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY:
    // 1. A NUL-terminated name.
    // 2. RTLD_NOLOAD loads nothing, so no constructor runs.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if handle.is_null() || base_of(handle) != Some(object.base) {
        return Err(fail());
    }
    Ok(())
}

/// Where the object of a handle of `dlopen` lies.
fn base_of(handle: *mut c_void) -> Option<u64> {
    let mut map: *mut u64 = ptr::null_mut();
    // SAFETY:
    // 1. A live handle.
    // 2. This question is answered by a pointer (`dlinfo(3)`).
    let rc = unsafe { libc::dlinfo(handle, libc::RTLD_DI_LINKMAP, (&raw mut map).cast()) };
    // SAFETY: 1. a `struct link_map` of a live handle, whose first word is `l_addr`.
    (rc == 0).then(|| unsafe { map.read() })
}
