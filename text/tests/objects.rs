//! Objects whose files cannot be used, each with its sentence. Any host: a copy of a library is
//! loaded, and then its file is tampered with.
#![expect(unsafe_code, reason = "loads libraries")]

use std::ffi::{CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rvbpf_text::{Pad, ProcMaps, RxAddr, TextError};

/// A copy of libgcc_s, loaded from a file of its own.
struct Library {
    path: PathBuf,
    handle: *mut c_void,
    func: RxAddr,
}

impl Library {
    /// Loads a copy that `tamper` has changed.
    fn load(name: &str, tamper: impl FnOnce(&mut Vec<u8>)) -> Self {
        let maps = ProcMaps::read().unwrap();
        let is_lib = |path: &[u8]| path.windows(8).any(|w| w == b"libgcc_s");
        let lib = maps
            .all()
            .iter()
            .find(|m| is_lib(&m.path))
            .expect("tests link libgcc_s");
        let mut bytes = std::fs::read(std::ffi::OsStr::from_bytes(&lib.path)).unwrap();
        tamper(&mut bytes);
        let path = std::env::temp_dir().join(format!("rvbpf-{}-{name}.so", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a copy of a library that this process has loaded before.
        let handle = unsafe { libc::dlopen(c_path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null());
        // SAFETY: a live handle and a NUL-terminated name.
        let func = unsafe { libc::dlsym(handle, c"_Unwind_Backtrace".as_ptr()) };
        assert!(!func.is_null());
        Self {
            path,
            handle,
            func: RxAddr::new(func.expose_provenance() as u64),
        }
    }

    fn reason(&self) -> (i32, &'static str) {
        match Pad::find(self.func) {
            Err(TextError::ObjectFile {
                object,
                errno,
                reason,
            }) => {
                assert_eq!(&*object, self.path.as_path());
                (errno, reason)
            }
            other => panic!("{other:?}"),
        }
    }

    /// What is wrong with the file; `None` where the kernel opens the right one behind the mapping.
    fn gone(&self) -> Option<(i32, &'static str)> {
        let maps = ProcMaps::read().unwrap();
        let mapped = maps.find(self.func).unwrap().range;
        let (start, end) = (mapped.start.get(), mapped.end().get());
        let behind = std::fs::File::open(format!("/proc/self/map_files/{start:x}-{end:x}"));
        if behind.is_err() {
            return Some(self.reason());
        }
        let got = Pad::find(self.func);
        assert!(
            matches!(got, Err(TextError::NotAPad { func, .. }) if func == self.func),
            "{got:?}"
        );
        None
    }

    fn replace_file(&self, bytes: &[u8]) {
        std::fs::remove_file(&self.path).unwrap();
        std::fs::write(&self.path, bytes).unwrap();
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        // SAFETY: nothing of the library is in use.
        unsafe { libc::dlclose(self.handle) };
    }
}

#[test]
fn a_library_without_pads_has_none() {
    let lib = Library::load("plain", |_| ());
    let got = Pad::find(lib.func);
    assert!(
        matches!(got, Err(TextError::NotAPad { func, .. }) if func == lib.func),
        "{got:?}"
    );
    assert_eq!(Pad::all_in(lib.func), Ok(vec![]));
    let again = Pad::find(lib.func);
    assert_eq!(got, again, "from the cache");
}

#[test]
fn a_deleted_file_is_said() {
    let lib = Library::load("deleted", |_| ());
    std::fs::remove_file(&lib.path).unwrap();
    assert!(lib.gone().is_none_or(|(errno, _)| errno == libc::ENOENT));
}

#[test]
fn another_file_at_the_path_is_said() {
    let lib = Library::load("other", |_| ());
    let own = std::fs::read("/proc/self/exe").unwrap();
    lib.replace_file(&own);
    let gone = lib.gone();
    assert!(gone.is_none_or(|(_, reason)| reason.contains("not the one that was loaded")));
}

#[test]
fn a_newer_build_at_the_path_is_said() {
    let lib = Library::load("newer", |_| ());
    // The same layout, another build id.
    let mut bytes = std::fs::read(&lib.path).unwrap();
    let gnu = bytes
        .windows(4)
        .position(|w| w == b"GNU\0")
        .expect("a build id");
    bytes[gnu + 5] ^= 0xff;
    lib.replace_file(&bytes);
    let gone = lib.gone();
    assert!(gone.is_none_or(|(_, reason)| reason.contains("not the one that was loaded")));
}

#[test]
fn another_layout_at_the_path_is_said() {
    let lib = Library::load("layout", |_| ());
    let mut bytes = std::fs::read(&lib.path).unwrap();
    // The first program header's p_memsz; e_phoff is at 32.
    let e_phoff = u64::from_le_bytes(bytes[32..40].try_into().unwrap()) as usize;
    bytes[e_phoff + 40] ^= 1;
    lib.replace_file(&bytes);
    let gone = lib.gone();
    assert!(gone.is_none_or(|(_, reason)| reason.contains("not the one that was loaded")));
}

#[test]
fn a_truncated_file_is_said() {
    let lib = Library::load("short", |_| ());
    let bytes = std::fs::read(&lib.path).unwrap();
    for len in [0, 10, 64, 100, bytes.len() / 2] {
        lib.replace_file(&bytes[..len]);
        assert!(
            lib.gone().is_none_or(|(_, reason)| !reason.is_empty()),
            "{len}"
        );
    }
}

#[test]
fn stripped_section_headers_are_said() {
    // e_shoff, then e_shnum and e_shstrndx.
    let lib = Library::load("stripped", |bytes| {
        bytes[40..48].fill(0);
        bytes[60..64].fill(0);
    });
    assert!(lib.reason().1.contains("section headers are stripped"));
}

#[test]
fn errors_name_the_file() {
    let e = TextError::ObjectFile {
        object: Path::new("/a/b.so").into(),
        errno: 2,
        reason: "r",
    };
    assert_eq!(e.to_string(), "cannot read the object /a/b.so (errno 2): r");
}
