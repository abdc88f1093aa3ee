//! The C library's own functions, hooked by name while threads use them.

use std::ffi::{CString, c_void};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rvbpf::{EntryKind, FuncModel, Hook, Runtime};

use crate::common::{assert_settled, pipe, serial};

/// What everybody calls all the time, the runtime included.
const NAMES: [&str; 12] = [
    // A new thread calls these two with all signals blocked, and would not survive a trap there.
    "memset",
    "memcpy",
    "malloc",
    "free",
    "realloc",
    "strlen",
    "pthread_mutex_lock",
    "pthread_mutex_unlock",
    "write",
    "read",
    "qsort",
    "dlopen",
];

fn hook_all(rt: &Runtime, names: &[&str]) -> Vec<Hook> {
    let begin = |name: &&str| {
        // SAFETY: 1. nothing is claimed of the function.
        let builder = unsafe { rt.hook_symbol(Some("libc.so.6"), name, FuncModel::untyped()) };
        let builder = builder.unwrap_or_else(|e| panic!("{name}: {e}"));
        let builder = builder.on_entry(|_| {}).allow_trap();
        match *name {
            // It serves the object that its return address is in.
            "dlopen" => builder,
            _ => builder.on_exit(|_, _| {}),
        }
    };
    let builders: Vec<_> = names.iter().map(begin).collect();
    rt.attach_all(builders).unwrap()
}

/// Uses all of [`NAMES`]; the same number every time.
fn work() -> u64 {
    extern "C" fn by_value(a: *const c_void, b: *const c_void) -> i32 {
        // SAFETY: 1. `qsort` passes elements of the array below.
        let a = unsafe { a.cast::<u32>().read() };
        // SAFETY: as above.
        let b = unsafe { b.cast::<u32>().read() };
        a.cmp(&b) as i32
    }
    let mut numbers: Vec<u32> = (0..300_u32)
        .map(|i| i.wrapping_mul(2_654_435_761))
        .collect();
    let base = numbers.as_mut_ptr().cast();
    // SAFETY: 1. 300 elements of 4 bytes, compared as such.
    unsafe { libc::qsort(base, numbers.len(), 4, Some(by_value)) };
    assert!(numbers.is_sorted());
    let text = CString::new(format!("{numbers:?}")).unwrap();
    // SAFETY: 1. a string with its zero.
    let len = unsafe { libc::strlen(black_box(text.as_ptr())) };
    assert_eq!(len, text.as_bytes().len());
    let mut copy = vec![0_u8; len];
    copy.copy_from_slice(text.as_bytes());
    let ends = pipe();
    // SAFETY: 1. 512 readable bytes.
    let written = unsafe { libc::write(ends.1, copy.as_ptr().cast(), 512) };
    let mut back = [0_u8; 512];
    // SAFETY: 1. room for 512 bytes.
    let read = unsafe { libc::read(ends.0, back.as_mut_ptr().cast(), 512) };
    assert_eq!((written, read), (512, 512));
    assert_eq!(back, copy[..512]);
    for end in [ends.0, ends.1] {
        // SAFETY: 1. our own descriptor, closed once.
        unsafe { libc::close(end) };
    }
    // SAFETY: 1. no name: the program itself.
    let program = unsafe { libc::dlopen(std::ptr::null(), libc::RTLD_NOW) };
    assert!(!program.is_null());
    let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
    let at = &raw mut mutex;
    // SAFETY: 1. an initialised mutex that stays where it is.
    assert_eq!(unsafe { libc::pthread_mutex_lock(at) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::pthread_mutex_unlock(at) }, 0);
    copy.iter()
        .fold(0, |sum, b| sum * 31 % 1_000_003 + u64::from(*b))
}

#[test]
fn what_everybody_uses() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let want = work();
    for round in 0..5 {
        let hooks = hook_all(&rt, &NAMES);
        assert_eq!(work(), want);
        for (hook, name) in hooks.iter().zip(NAMES) {
            assert!(hook.stats().runs > 0, "{name} ran, round {round}");
        }
        let jumps = hooks.iter().filter(|h| h.kind() == Some(EntryKind::Jump));
        assert!(jumps.count() >= NAMES.len() - 2, "{hooks:?}");
        rt.detach_all(&hooks).unwrap();
        assert_eq!(work(), want);
        if round % 2 == 0 {
            rt.synchronize(crate::common::PATIENCE).unwrap();
        }
    }
    assert_settled(&rt);
}

/// The same while four threads work, start, block and end.
#[test]
fn what_everybody_uses_under_load() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let want = work();
    let done = AtomicBool::new(false);
    let worked = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(thread::spawn(work).join().unwrap(), want);
                    worked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..20 {
            let hooks = hook_all(&rt, &NAMES);
            assert_eq!(work(), want);
            rt.detach_all(&hooks).unwrap();
            if round % 4 == 0 {
                rt.synchronize(crate::common::PATIENCE).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(worked.load(Ordering::Relaxed) > 0);
    assert_settled(&rt);
}

/// IFUNCs, aliases and stubs lead to one and the same function.
#[test]
fn names_that_mean_one_function() {
    let _one = serial();
    static LONGEST: AtomicU64 = AtomicU64::new(0);
    let rt = Runtime::new().unwrap();
    // SAFETY: 1. nothing is claimed of the function.
    let by_name = unsafe { rt.hook_symbol(None, "memcpy", FuncModel::untyped()) }.unwrap();
    let hooked = by_name
        .on_entry(|call| {
            LONGEST.fetch_max(call.slots()[2], Ordering::Relaxed);
        })
        .allow_trap()
        .attach()
        .unwrap();
    let from = [7_u8; 4001];
    let mut to = [0_u8; 4001];
    let memcpy: unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void =
        black_box(libc::memcpy);
    // SAFETY: 1. two arrays of that length.
    unsafe { memcpy(to.as_mut_ptr().cast(), from.as_ptr().cast(), 4001) };
    assert_eq!(to, from);
    hooked.detach().unwrap();
    assert_eq!(LONGEST.load(Ordering::Relaxed), 4001);
    assert_settled(&rt);
}
