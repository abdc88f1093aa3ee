//! Libraries whose files were moved, replaced or deleted, or never had a name: what is loaded is in
//! memory, and is hooked all the same.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "opens libraries, and takes their files away")]

mod common;

use std::ffi::{CString, c_long, c_void};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rvbpf::{EntryKind, Error, FuncModel, Hook, Runtime};

use crate::common::{assert_settled, checked, in_child, pipe, serial};

/// What a library exports that has no pad: six times the sum.
const PLAIN: &str = "tl_in_library";

type Six = extern "C" fn(c_long, c_long) -> c_long;

struct Opened(*mut c_void);

fn open(path: &Path) -> Opened {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: 1. its constructor does nothing without its variable.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!handle.is_null());
    Opened(handle)
}

impl Opened {
    fn symbol(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: 1. a live handle and a NUL-terminated name.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!found.is_null());
        found
    }

    fn six(&self) -> Six {
        // SAFETY: 1. a function of this type.
        unsafe { std::mem::transmute::<*mut c_void, Six>(self.symbol(PLAIN)) }
    }
}

/// Hooks what `opened` has, by address, calls it, and takes the hooks away.
fn hook_and_call(opened: &Opened, name: Option<&str>) {
    let rt = Runtime::new().unwrap();
    let six = opened.six();
    assert_eq!(six(2, 3), 30);
    let by_addr = attach(&rt, opened.symbol(PLAIN)).unwrap();
    assert_eq!(by_addr.kind(), Some(EntryKind::Jump));
    let padded = attach(&rt, opened.symbol("tl_unbound")).unwrap();
    assert_eq!(six(4, 3), 42);
    assert_eq!(by_addr.stats().runs, 2);
    padded.detach().unwrap();
    by_addr.detach().unwrap();
    assert_settled(&rt);
    if let Some(name) = name {
        // SAFETY: 1. nothing is claimed of the function.
        let found = unsafe { rt.hook_symbol(Some(name), PLAIN, FuncModel::untyped()) };
        let hook = found.unwrap().on_entry(|_| {}).attach().unwrap();
        assert_eq!((six(1, 1), hook.stats().runs), (12, 1));
    }
    assert_settled(&rt);
}

fn attach(rt: &Runtime, func: *mut c_void) -> Result<Hook, Error> {
    // SAFETY: 1. nothing is claimed of the function.
    let builder = unsafe { rt.hook_addr(func.cast_const().cast(), FuncModel::untyped()) }?;
    builder.on_entry(|_| {}).on_exit(|_, _| {}).attach()
}

/// What becomes of the file of a library that is opened at a path.
const FATES: [(&str, fn(&Path)); 5] = [
    ("stays", |_| {}),
    ("deleted", |path| fs::remove_file(path).unwrap()),
    ("replaced", |path| {
        // A build of the same library, and then another one.
        let other = path.with_extension("new");
        fs::write(&other, testlib::PRIVATE).unwrap();
        fs::rename(&other, path).unwrap();
    }),
    ("moved", |path| {
        fs::rename(path, path.with_extension("old")).unwrap();
        fs::write(path, testlib::TLS_WORD).unwrap();
    }),
    ("a_pipe", |path| {
        fs::remove_file(path).unwrap();
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: 1. a NUL-terminated path.
        checked(unsafe { libc::mkfifo(path.as_ptr(), 0o644) });
    }),
];

/// Whom the kernel lets open what is behind a mapping.
fn drop_rights() {
    // SAFETY: 1. no preconditions.
    checked(unsafe { libc::setresuid(65534, 65534, 65534) });
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("rvbpf-{}-{name}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn files_that_are_gone_or_others() {
    let _one = serial();
    for (what, fate) in FATES {
        for user in [false, true] {
            let folder = folder(what);
            let path = folder.join("libfate.so.1");
            fs::write(&path, testlib::ON_LOAD).unwrap();
            let child = in_child(|| {
                let opened = open(&path);
                fate(&path);
                if user {
                    drop_rights();
                }
                hook_and_call(&opened, Some("libfate"));
            });
            assert_eq!(child.status(), 0, "{what}, rights dropped: {user}");
            fs::remove_dir_all(&folder).unwrap();
        }
    }
}

#[test]
fn a_relative_path_of_another_folder() {
    let _one = serial();
    for user in [false, true] {
        let folder = folder("relative");
        fs::write(folder.join("libhere.so"), testlib::ON_LOAD).unwrap();
        // What its path leads to from elsewhere.
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("sub/libhere.so"), testlib::PRIVATE).unwrap();
        let child = in_child(|| {
            std::env::set_current_dir(&folder).unwrap();
            let opened = open(Path::new("./libhere.so"));
            std::env::set_current_dir("sub").unwrap();
            if user {
                drop_rights();
            }
            hook_and_call(&opened, Some("libhere.so"));
        });
        assert_eq!(child.status(), 0, "rights dropped: {user}");
        fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn a_library_without_a_path() {
    let _one = serial();
    for user in [false, true] {
        in_child(|| {
            // SAFETY: 1. a NUL-terminated name.
            let fd = checked(unsafe { libc::memfd_create(c"plugin".as_ptr(), 0) });
            // SAFETY: 1. our own descriptor.
            let file = unsafe { OwnedFd::from_raw_fd(fd) };
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            fs::write(&path, testlib::ON_LOAD).unwrap();
            let opened = open(&path);
            drop(file);
            // The number is used again.
            let ends = pipe();
            assert_eq!(ends.0, fd);
            if user {
                drop_rights();
            }
            hook_and_call(&opened, None);
        })
        .join();
    }
}
