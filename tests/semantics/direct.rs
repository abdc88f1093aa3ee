//! Functions that can tell whether they return straight to their caller: hooked at their entries,
//! and refused, by name, at their returns. And values that are returned by a pointer.

use std::ffi::{CStr, c_int, c_void};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use rvbpf::{DirectReturn, Error, FuncModel, Hook, HookBuilder, Runtime, TrampError, Untyped};
use testlib::functions::{tl_getcontext_rounds, tl_setjmp_rounds, tl_vfork_exits};
use testlib::throws::tl_catch_past_cleanup;

use crate::common::{assert_settled, library::Library, serial};

const LIBC: &str = "libc.so.6";
const LIBGCC: &str = "libgcc_s.so.1";

unsafe extern "C" {
    fn vfork() -> c_int;
}

const DIRECT: [(&str, &str, DirectReturn); 13] = [
    (LIBC, "_setjmp", DirectReturn::Twice),
    (LIBC, "__sigsetjmp", DirectReturn::Twice),
    (LIBC, "getcontext", DirectReturn::Twice),
    (LIBC, "swapcontext", DirectReturn::Twice),
    (LIBC, "vfork", DirectReturn::SharedStack),
    (LIBC, "dlopen", DirectReturn::LooksAtCaller),
    (LIBC, "dlmopen", DirectReturn::LooksAtCaller),
    (LIBC, "dlsym", DirectReturn::LooksAtCaller),
    (LIBC, "dlvsym", DirectReturn::LooksAtCaller),
    (LIBC, "dl_iterate_phdr", DirectReturn::LooksAtCaller),
    (LIBGCC, "_Unwind_Resume", DirectReturn::Unwinder),
    (LIBGCC, "_Unwind_RaiseException", DirectReturn::Unwinder),
    (LIBGCC, "_Unwind_ForcedUnwind", DirectReturn::Unwinder),
];

fn begin(rt: &Runtime, object: &str, name: &str) -> HookBuilder<Untyped> {
    // SAFETY: 1. nothing is claimed of the function.
    unsafe { rt.hook_symbol(Some(object), name, FuncModel::untyped()) }.unwrap()
}

#[track_caller]
fn assert_refused(attached: Result<Hook, Error>, want: DirectReturn) -> Box<str> {
    match attached.map(|_| ()) {
        Err(Error::Tramp(TrampError::ReturnsDirectly { name, why, .. })) if why == want => name,
        other => panic!("{want:?}: {other:?}"),
    }
}

#[test]
fn their_returns_are_refused_by_name() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    for (object, name, why) in DIRECT {
        let at_exit = begin(&rt, object, name).allow_trap().on_exit(|_, _| {});
        assert!(!assert_refused(at_exit.attach(), why).is_empty(), "{name}");
        let session = begin(&rt, object, name).allow_trap();
        let session = session.on_session(|_, _| {}, |_, _, _| {});
        assert_refused(session.attach(), why);
    }
    // By address, in a batch: nothing is attached.
    let vfork = vfork as *const ();
    // SAFETY: 1. nothing is claimed of the function.
    let by_addr = unsafe { rt.hook_addr(vfork, FuncModel::untyped()) }.unwrap();
    let others = ["getpid", "strlen"].map(|name| begin(&rt, LIBC, name).on_entry(|_| {}));
    let all = others.into_iter().chain([by_addr.on_exit(|_, _| {})]);
    let refused = rt.attach_all(all.map(HookBuilder::allow_trap));
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("vfork cannot be hooked at its return"),
        "{text}"
    );
    assert_eq!(rt.stats().tramps.sites, 0);
    // An entry hook is there, and stays as it is.
    let entry = begin(&rt, LIBC, "getcontext").allow_trap().on_entry(|_| {});
    let entry = entry.attach().unwrap();
    let more = begin(&rt, LIBC, "getcontext")
        .allow_trap()
        .on_exit(|_, _| {});
    assert_refused(more.attach(), DirectReturn::Twice);
    assert_eq!(tl_getcontext_rounds(3), 4);
    assert_eq!(entry.stats().runs, 1);
    drop(entry);
    assert_settled(&rt);
}

/// The next object after this program that has the name, as seen from here.
fn next_of(name: &CStr) -> *mut c_void {
    // SAFETY: 1. a NUL-terminated name.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

#[test]
fn their_entries_can_be_hooked() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let next = next_of(c"malloc");
    assert!(!next.is_null());
    let entries = DIRECT.map(|(object, name, _)| {
        let runs = begin(&rt, object, name).allow_trap().on_entry(|_| {});
        // And one that could answer instead: nothing but an exit is in the way of a return.
        runs.override_return(|()| None)
    });
    let hooks = rt.attach_all(entries).unwrap();
    for _ in 0..20 {
        assert_eq!(tl_setjmp_rounds(5), 15_006);
        assert_eq!(tl_getcontext_rounds(5), 6);
        assert_eq!(tl_vfork_exits(7), 7);
        assert_eq!(next_of(c"malloc"), next);
        assert_eq!(tl_catch_past_cleanup(-4), 1004);
    }
    let runs = |name| {
        let at = DIRECT.iter().position(|d| d.1 == name).unwrap();
        hooks[at].stats().progs[0].runs
    };
    for name in [
        "__sigsetjmp",
        "getcontext",
        "vfork",
        "dlsym",
        "_Unwind_Resume",
    ] {
        assert!(runs(name) >= 20, "{name}: {}", runs(name));
    }
    rt.detach_all(&hooks).unwrap();
    assert_settled(&rt);
}

#[test]
fn a_library_with_its_own_unwinder() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let library = Library::of("private", testlib::PRIVATE);
    let handle = library.open();
    let catch = handle.symbol(c"tl_private_catch");
    // SAFETY: 1. a function of `int` and to `int`.
    let catch = unsafe { std::mem::transmute::<*const (), extern "C" fn(c_int) -> c_int>(catch) };
    for name in ["tl_private_throw", "tl_private_catch"] {
        let at_exit = begin(&rt, library.name(), name)
            .allow_trap()
            .on_exit(|_, _| {});
        let named = assert_refused(at_exit.attach(), DirectReturn::OwnUnwinder);
        assert_eq!(&*named, name);
        let entry = begin(&rt, library.name(), name)
            .allow_trap()
            .on_entry(|_| {});
        let entry = entry.attach().unwrap();
        assert_eq!((catch(-3), catch(3)), (1003, 4));
        assert_eq!(entry.stats().runs, 2);
    }
    assert_settled(&rt);
}

rvbpf::abi_struct! {
    /// Returned by a pointer to it.
    struct Five { a: u64, b: u64, c: u64, d: u64, e: u64 }
}

#[inline(never)]
extern "C" fn last(x: u64) -> u64 {
    black_box(x + 1)
}

/// LLVM ends it with something else than the pointer in `a0`.
#[inline(never)]
extern "C" fn make(x: u64) -> Five {
    let (v, w) = (last(x), last(x + 1));
    Five {
        a: v,
        b: w,
        c: 1,
        d: 2,
        e: last(w),
    }
}

#[test]
fn a_struct_that_is_returned_by_a_pointer() {
    let _one = serial();
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let rt = Runtime::new().unwrap();
    let want = Five {
        a: 65,
        b: 66,
        c: 1,
        d: 2,
        e: 67,
    };
    assert_eq!(black_box(make as extern "C" fn(u64) -> Five)(64), want);
    // SAFETY: 1. the function's own type.
    let hook = unsafe { rt.hook(make as extern "C" fn(u64) -> Five) }.unwrap();
    let hook = hook.on_exit(move |_, ret| {
        assert_eq!(*ret, want);
        SEEN.fetch_add(1, Ordering::Relaxed);
    });
    let hook = hook.on_session(|_, _| {}, move |_, ret, _| assert_eq!(*ret, want));
    let hook = hook.attach().unwrap();
    for _ in 0..10 {
        assert_eq!(black_box(make as extern "C" fn(u64) -> Five)(64), want);
    }
    assert_eq!((SEEN.load(Ordering::Relaxed), hook.stats().panics), (10, 0));
    drop(hook);
    assert_settled(&rt);
}
