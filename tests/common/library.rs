//! The test library that is opened while tests run.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The library, in a file of its own.
pub(crate) struct Library {
    path: PathBuf,
}

impl Library {
    pub(crate) fn new(name: &str) -> Self {
        Self::of(name, testlib::ON_LOAD)
    }

    /// Another one.
    pub(crate) fn of(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("rvbpf-{}-{name}.so", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Library { path }
    }

    pub(crate) fn open(&self) -> Handle {
        let path = CString::new(self.path.as_os_str().as_bytes()).unwrap();
        // SAFETY: 1. the constructor calls what the test has put into the environment, or nothing.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        assert!(!handle.is_null());
        Handle(handle)
    }

    pub(crate) fn name(&self) -> &str {
        self.path.file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

pub(crate) struct Handle(*mut c_void);

impl Handle {
    pub(crate) fn symbol(&self, name: &CStr) -> *const () {
        // SAFETY: 1. a live handle and a NUL-terminated name.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!found.is_null());
        found.cast()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: 1. nothing of the library is in use.
        unsafe { libc::dlclose(self.0) };
    }
}
