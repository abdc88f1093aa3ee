//! Hooks that are made while another thread opens libraries whose constructors hook.

use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rv64::Flow;
use rvbpf::{FuncModel, Runtime};
use testlib::functions::tl_add2;

use crate::common::library::{Handle, Library};
use crate::common::{ADD2, Stopper, assert_settled, code_at, hook, serial};

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static HOOKED_ON_LOAD: AtomicU64 = AtomicU64::new(0);

/// What the constructor calls.
extern "C" fn hook_on_load() {
    if let Some(rt) = RUNTIME.get() {
        let hooked = hook(rt, ADD2).on_entry(|_| {}).attach().unwrap();
        assert_eq!(tl_add2(1, 2), 3);
        HOOKED_ON_LOAD.fetch_add(hooked.stats().runs, Ordering::Relaxed);
        hooked.detach().unwrap();
    }
}

/// The stub that `tl_unbound` ends in.
fn unbound_stub(handle: &Handle) -> *const () {
    let start = handle.symbol(c"tl_unbound");
    let mut off = 0;
    loop {
        let step = rv64::step(&code_at(start.wrapping_byte_add(off))).unwrap();
        if let Flow::Jump { .. } | Flow::Call { .. } = step.flow {
            let at = step.flow.target(start as u64 + off as u64).unwrap();
            return at as *const ();
        }
        off += usize::from(step.len_bytes);
    }
}

/// Whoever asks the dynamic linker holds no lock that a constructor may want.
#[test]
fn constructors_hook_while_names_and_stubs_are_resolved() {
    const ROUNDS: u64 = 24;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (asked, opened) = (Library::new("asked"), Library::new("opened"));
    // Before there are other threads, and before the variable is set.
    let handle = asked.open();
    let stub = unbound_stub(&handle);
    let callback = hook_on_load as *const () as usize;
    // SAFETY: 1. the only thread of this process that knows the variable.
    unsafe { std::env::set_var("TL_ON_LOAD", format!("{callback:x}")) };
    RUNTIME.set(rt.clone()).unwrap();
    let done = AtomicBool::new(false);
    let mut resolved = 0;
    thread::scope(|scope| {
        let _stop = Stopper(&done);
        let opener = scope.spawn(|| {
            for _ in 0..ROUNDS {
                drop(opened.open());
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) && !opener.is_finished() {
            let untyped = FuncModel::untyped;
            // SAFETY: 1. nothing is claimed of the function, which is not attached to.
            drop(unsafe { rt.hook_symbol(Some(asked.name()), "tl_chosen", untyped()) }.unwrap());
            // SAFETY: as above.
            drop(unsafe { rt.hook_addr(stub, untyped()) }.unwrap());
            resolved += 1;
        }
    });
    assert_eq!(HOOKED_ON_LOAD.load(Ordering::Relaxed), ROUNDS);
    assert!(resolved > 0);
    // What the dynamic linker has chosen is what runs.
    // SAFETY: 1. it is a function of one `int`.
    let builder = unsafe { rt.hook_symbol(Some(asked.name()), "tl_chosen", int_model()) }.unwrap();
    let hooked = builder.on_entry(|_| {}).allow_trap().attach().unwrap();
    let chosen = handle.symbol(c"tl_chosen");
    assert_eq!(hooked.func().get(), chosen as u64);
    // SAFETY: 1. it is a function of this type.
    let chosen: extern "C" fn(c_int) -> c_int = unsafe { std::mem::transmute(chosen) };
    assert_eq!((chosen(1), hooked.stats().runs), (2, 1));
    hooked.detach().unwrap();
    // A stub stands for the function that it will lead to.
    // SAFETY: 1. nothing is claimed of the function.
    let builder = unsafe { rt.hook_addr(stub, FuncModel::untyped()) }.unwrap();
    let parent = std::os::unix::process::parent_id() as c_int;
    let hooked = builder.on_entry(|_| {}).allow_trap().attach().unwrap();
    let ends_in_stub = handle.symbol(c"tl_unbound");
    // SAFETY: 1. it is a function of this type.
    let ends_in_stub: extern "C" fn() -> c_int = unsafe { std::mem::transmute(ends_in_stub) };
    assert_eq!((ends_in_stub(), hooked.stats().runs), (parent, 1));
    hooked.detach().unwrap();
    assert_settled(&rt);
}

fn int_model() -> FuncModel {
    use rvbpf::model::Type;
    FuncModel::new(&[Type::I32], Type::I32).unwrap()
}
