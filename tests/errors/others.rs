//! Functions that other software has hooked: debuggers, and libraries that hook.

use std::ffi::c_long;
use std::os::unix::fs::FileExt;

use rvbpf::{EntryKind, Error, Runtime, TrampError};
use testlib::functions::tl_no_pad;
use text::TextError;

use crate::common::library::Library;
use crate::common::{assert_settled, code_at, hook, serial};
use crate::{Before, assert_is, refused};

type F = extern "C" fn(c_long, c_long) -> c_long;

/// The compressed `ebreak`, `ret`.
const C_EBREAK: [u8; 2] = [0x02, 0x90];
const C_RET: [u8; 2] = [0x82, 0x80];

/// Writes into read-only text as debuggers do, and gives back what was there.
fn patch(at: *const (), bytes: &[u8]) -> Vec<u8> {
    let before = code_at(at)[..bytes.len()].to_vec();
    let mut options = std::fs::File::options();
    let memory = options.write(true).open("/proc/self/mem").unwrap();
    memory.write_all_at(bytes, at as u64).unwrap();
    before
}

/// `auipc t1, 0x40000`, `jr t1`: a jump to a hook a gigabyte away.
const FAR_JUMP: [u8; 8] = [0x17, 0x03, 0x00, 0x40, 0x67, 0x00, 0x03, 0x00];

/// Where the first instructions begin, as far as 16 bytes show.
fn starts(f: F) -> Vec<usize> {
    let code = code_at(f as *const ());
    let (mut starts, mut off) = (Vec::new(), 0);
    while let Some(step) = code.get(off..).and_then(rv64::step) {
        starts.push(off);
        off += usize::from(step.len_bytes);
    }
    starts
}

/// Whether it is hooked, called and left as it was.
fn takes_hooks(rt: &Runtime, f: F, want: c_long) {
    let before = code_at(f as *const ());
    let hooked = hook(rt, f).on_entry(|_| {}).attach().unwrap();
    assert_eq!(hooked.kind(), Some(EntryKind::Jump));
    assert_eq!((f(40, 2), hooked.stats().runs), (want, 1));
    hooked.detach().unwrap();
    assert_settled(rt);
    assert_eq!(code_at(f as *const ()), before);
}

/// Everything that others may have done to `f`, which returns `want` of 40 and 2, and lies in a
/// file that is called `object`.
fn others_come_first(f: F, want: c_long, object: &str) {
    let rt = Runtime::new().unwrap();
    let entry = f as *const ();
    let second = starts(f)[1];
    assert_eq!(second, 2, "begins as functions with frames do");
    for (off, bytes) in [
        (0, FAR_JUMP.to_vec()),
        (0, C_RET.to_vec()),
        (0, C_EBREAK.to_vec()),
        (second, C_EBREAK.to_vec()),
    ] {
        let at = entry.wrapping_byte_add(off);
        let original = patch(at, &bytes);
        let before = Before::new(&rt, &[entry]);
        let error = refused(hook(&rt, f).on_entry(|_| {}).attach());
        let trap = refused(hook(&rt, f).on_entry(|_| {}).allow_trap().attach());
        before.assert_unchanged();
        assert_eq!(trap.to_string(), error.to_string());
        let words = error.to_string();
        assert!(words.contains(object), "{words} does not name {object}");
        assert!(words.contains("take that hook"), "{words}");
        let Error::Tramp(TrampError::Text(TextError::ChangedByOthers {
            at: said,
            off_bytes,
            in_file,
            found,
            ..
        })) = &error
        else {
            panic!("is {error:?}");
        };
        assert_eq!((said.get(), *off_bytes), (entry as u64, off));
        assert_eq!((&in_file[..2], &found[..2]), (&original[..2], &bytes[..2]));
        patch(at, &original);
        takes_hooks(&rt, f, want);
    }
    // What they do behind the moved instructions is theirs, and stays.
    let behind = starts(f).into_iter().find(|off| *off >= 10).unwrap();
    let at = entry.wrapping_byte_add(behind);
    let original = patch(at, &C_EBREAK);
    let before = code_at(entry);
    let hooked = hook(&rt, f).on_entry(|_| {}).attach().unwrap();
    hooked.detach().unwrap();
    assert_settled(&rt);
    assert_eq!(code_at(entry), before);
    patch(at, &original);
    takes_hooks(&rt, f, want);
}

#[test]
fn others_have_hooked_a_function_of_the_program() {
    let _one = serial();
    let name = std::env::current_exe().unwrap();
    let name = name.file_name().unwrap().to_str().unwrap();
    others_come_first(tl_no_pad, 42, name);
}

#[test]
fn others_have_hooked_a_function_of_a_library() {
    let _one = serial();
    let library = Library::new("others");
    let handle = library.open();
    let f = handle.symbol(c"tl_in_library");
    // SAFETY:
    // 1. The library defines it so.
    let f: F = unsafe { std::mem::transmute::<*const (), F>(f) };
    others_come_first(f, 252, library.name());
}

/// Ours is not others': what another runtime has done is said as such.
#[test]
fn another_runtime_has_hooked_a_function_without_a_pad() {
    let _one = serial();
    let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let f: F = tl_no_pad;
    let hooked = hook(&first, f).on_entry(|_| {}).attach().unwrap();
    let before = code_at(f as *const ());
    let error = refused(hook(&second, f).on_entry(|_| {}).attach());
    assert_eq!(code_at(f as *const ()), before);
    assert_is!(
        &error,
        Error::Tramp(TrampError::Text(TextError::HookedByOthers { .. }))
    );
    assert!(error.to_string().contains("runtime"), "{error}");
    assert_eq!((f(40, 2), hooked.stats().runs), (42, 1));
    hooked.detach().unwrap();
    assert_settled(&first);
    takes_hooks(&second, f, 42);
}
