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

/// Does something to the file at a path.
type Fate = fn(&Path);

/// What becomes of the file of a library that is opened at a path.
const FATES: [(&str, Fate); 5] = [
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

/// `dlmopen`: the objects of another namespace, with names that this one has too.
#[test]
fn another_namespace() {
    let _one = serial();
    let folder = folder("namespace");
    let path = folder.join("libspace.so");
    fs::write(&path, testlib::ON_LOAD).unwrap();
    let rt = Runtime::new().unwrap();
    let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let open = || {
        let flags = libc::RTLD_NOW | libc::RTLD_LOCAL;
        // SAFETY: 1. its constructor does nothing without its variable.
        let handle = unsafe { libc::dlmopen(libc::LM_ID_NEWLM, c_path.as_ptr(), flags) };
        assert!(!handle.is_null());
        Opened(handle)
    };
    let opened = open();
    let six = opened.six();
    // By address, and by the name of an object that only that namespace has.
    let by_addr = attach(&rt, opened.symbol(PLAIN)).unwrap();
    assert_eq!(by_addr.kind(), Some(EntryKind::Jump));
    // SAFETY: 1. nothing is claimed of the function.
    let by_name = unsafe { rt.hook_symbol(Some("libspace"), PLAIN, FuncModel::untyped()) };
    let by_name = by_name.unwrap().on_entry(|_| {}).attach().unwrap();
    assert_eq!(by_name.func(), by_addr.func());
    // One with a pad that ends in a stub, which is bound there.
    let padded = attach(&rt, opened.symbol("tl_unbound")).unwrap();
    assert_eq!(padded.kind(), Some(EntryKind::Pad));
    // SAFETY: 1. a function of this type.
    let parent: extern "C" fn() -> i32 =
        unsafe { std::mem::transmute(opened.symbol("tl_unbound")) };
    assert_eq!(parent(), std::os::unix::process::parent_id() as i32);
    // Its C library is another one.
    let theirs = opened.symbol("strlen");
    assert_ne!(theirs.cast_const().cast(), libc::strlen as *const ());
    let strlen = attach(&rt, theirs).unwrap();
    // SAFETY: 1. a function of this type.
    let their: extern "C" fn(*const i8) -> usize = unsafe { std::mem::transmute(theirs) };
    assert_eq!(their(c"five!".as_ptr().cast()), 5);
    // SAFETY: 1. a string with its zero.
    let len = unsafe { libc::strlen(std::hint::black_box(c"six...".as_ptr())) };
    assert_eq!(len, 6);
    assert_eq!((six(1, 2), by_name.stats().runs), (18, 1));
    assert_eq!((strlen.stats().runs, padded.stats().runs), (2, 2));
    // It stays mapped while it is hooked.
    // SAFETY: 1. closed once.
    unsafe { libc::dlclose(opened.0) };
    assert_eq!(six(1, 2), 18);
    for hook in [by_addr, by_name, padded, strlen] {
        hook.detach().unwrap();
    }
    assert_settled(&rt);
    // All of it has gone, and what comes next is found anew.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("libspace"), "{maps}");
    let opened = open();
    let again = attach(&rt, opened.symbol(PLAIN)).unwrap();
    assert_eq!((opened.six()(2, 2), again.stats().runs), (24, 2));
    again.detach().unwrap();
    assert_settled(&rt);
    fs::remove_dir_all(&folder).unwrap();
}

/// Code of the kernel, which is of no file.
#[test]
fn the_vdso() {
    let _one = serial();
    type Gettime = extern "C" fn(i32, *mut libc::timespec) -> i32;
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. nothing is claimed of the function.
    let found = unsafe {
        rt.hook_symbol(
            Some("linux-vdso.so.1"),
            "__vdso_clock_gettime",
            FuncModel::untyped(),
        )
    };
    let builder = match found {
        Ok(builder) => builder,
        Err(e) => panic!("{e}"),
    };
    let attached = builder
        .allow_trap()
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach();
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match attached {
        Ok(hook) => {
            let at = std::ptr::with_exposed_provenance::<()>(hook.func().get() as usize);
            // SAFETY: 1. the kernel's function of this type.
            let gettime: Gettime = unsafe { std::mem::transmute(at) };
            assert_eq!(gettime(libc::CLOCK_MONOTONIC, &mut now), 0);
            assert!(now.tv_sec > 0 || now.tv_nsec > 0);
            assert_eq!(hook.stats().runs, 2);
            hook.detach().unwrap();
        }
        Err(e) => println!("refused: {e}"),
    }
    // SAFETY: 1. room for a time.
    checked(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) });
    assert_settled(&rt);
}
