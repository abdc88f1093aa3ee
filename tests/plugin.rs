//! rvbpf in a shared library that a host opens, closes, and opens again (`testlib/plugin`).

#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "opens a library, and calls what it finds there")]

mod common;

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rvbpf::{FuncModel, Runtime};

use common::{ADD2, PATIENCE, hook, plugin, serial};

fn open(path: &str) -> Result<*mut c_void, String> {
    let path = CString::new(path).unwrap();
    // SAFETY: 1. constructors of libraries that were made for this.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: 1. no preconditions.
        let why = unsafe { libc::dlerror() };
        // SAFETY: 1. there was an error, whose text ends.
        let why = unsafe { CStr::from_ptr(why) };
        return Err(why.to_string_lossy().into_owned());
    }
    Ok(handle)
}

fn close(handle: *mut c_void) {
    // SAFETY: 1. a handle that is not used any more.
    assert_eq!(unsafe { libc::dlclose(handle) }, 0);
}

/// Calls a function of the plugin that says what went wrong.
fn ask(handle: *mut c_void, name: &CStr) -> Result<(), String> {
    // SAFETY: 1. a live handle, or the default one.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    assert!(!found.is_null(), "{name:?}");
    // SAFETY: 1. it is of this type.
    let call: extern "C" fn() -> *const c_char = unsafe { std::mem::transmute(found) };
    let text = call();
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: 1. a text that ends.
    Err(unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned())
}

fn seen(handle: *mut c_void) -> c_long {
    // SAFETY: 1. a live handle, or the default one.
    let found = unsafe { libc::dlsym(handle, c"plugin_seen".as_ptr()) };
    // SAFETY: 1. it is of this type.
    let call: extern "C" fn() -> c_long = unsafe { std::mem::transmute(found) };
    call()
}

fn atol() -> c_long {
    // SAFETY: 1. a text that ends.
    unsafe { libc::atol(black_box(c"17").as_ptr()) }
}

/// What a child of a fork gets.
fn atol_in_child() -> c_int {
    // SAFETY: 1. the child calls one function, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let got = atol() as c_int;
        // SAFETY: 1. no preconditions.
        unsafe { libc::_exit(got) };
    }
    let mut status = 0;
    // SAFETY: 1. a child of this process, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "{status:#x}");
    libc::WEXITSTATUS(status)
}

/// One life of the plugin.
fn round(path: &str) {
    let handle = open(path).unwrap();
    ask(handle, c"plugin_start").unwrap();
    let before = seen(handle);
    assert_eq!(atol(), 17);
    assert!(seen(handle) > before);
    ask(handle, c"plugin_stop").unwrap();
    close(handle);
}

/// Rounds, on this thread or on one that ends, each followed by all that can lead into a library
/// that has been closed.
fn rounds(on_thread: bool) {
    let path = plugin().to_string_lossy().into_owned();
    for _ in 0..3 {
        match on_thread {
            true => thread::scope(|s| s.spawn(|| round(&path)).join().unwrap()),
            false => round(&path),
        }
        assert_eq!(atol(), 17);
        assert_eq!(thread::spawn(atol).join().unwrap(), 17);
        assert_eq!(atol_in_child(), 17);
    }
}

/// With a thread that lives on, and has been in the hooked function.
fn beside_a_worker(body: impl FnOnce()) {
    let (stop, stopped) = mpsc::channel::<()>();
    let worker = thread::spawn(move || {
        while stopped.try_recv().is_err() {
            assert_eq!(atol(), 17);
            thread::yield_now();
        }
    });
    body();
    stop.send(()).unwrap();
    worker.join().unwrap();
}

#[test]
fn a_plugin_is_opened_again_and_again() {
    let _one = serial();
    rounds(false);
}

#[test]
fn a_plugin_is_opened_by_threads_that_end_while_others_live_on() {
    let _one = serial();
    beside_a_worker(|| rounds(true));
}

#[test]
fn a_plugin_that_is_closed_while_it_hooks_goes_on() {
    let _one = serial();
    let path = plugin().to_string_lossy().into_owned();
    let handle = open(&path).unwrap();
    ask(handle, c"plugin_start").unwrap();
    close(handle);
    for _ in 0..3 {
        assert_eq!(thread::spawn(atol).join().unwrap(), 17);
        assert_eq!(atol_in_child(), 17);
    }
    let handle = open(&path).unwrap();
    assert!(seen(handle) >= 3, "it is the same library");
    ask(handle, c"plugin_stop").unwrap();
}

/// What the child of a test finds in its environment.
const INSIDE: &str = "RVBPF_TEST_INSIDE";

/// Runs one test in a process of its own, with one more variable.
fn again(test: &str, name: &str, value: &str) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .env(name, value)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned());
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        text[0],
        text[1]
    );
    assert!(text[0].contains("1 passed"), "{}", text[0]);
}

#[test]
fn a_plugin_is_preloaded() {
    let _one = serial();
    if env::var_os(INSIDE).is_none() {
        let path = plugin();
        return again(
            "a_plugin_is_preloaded",
            "LD_PRELOAD",
            &path.to_string_lossy(),
        );
    }
    let all = libc::RTLD_DEFAULT;
    ask(all, c"plugin_start").unwrap();
    let before = seen(all);
    assert_eq!(atol(), 17);
    assert_eq!(thread::spawn(atol).join().unwrap(), 17);
    assert!(seen(all) >= before + 2);
    assert_eq!(atol_in_child(), 17);
    ask(all, c"plugin_stop").unwrap();
}

/// Opens libraries that take eight bytes of static TLS each until `most` are open, or none is left.
fn take_static_tls(most: usize) -> usize {
    let folder = env::temp_dir();
    let (mut taken, mut is_left) = (0, true);
    while is_left && taken < most {
        let path = folder.join(format!("rvbpf-{}-tls{taken}.so", std::process::id()));
        fs::write(&path, testlib::TLS_WORD).unwrap();
        is_left = open(&path.to_string_lossy()).is_ok();
        taken += usize::from(is_left);
        fs::remove_file(&path).unwrap();
    }
    taken
}

/// How many such libraries a process like this one can open.
fn static_tls_words() -> usize {
    let mut ends: [c_int; 2] = [0; 2];
    // SAFETY: 1. a place for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: 1. the child uses what it has alone, and ends.
    if unsafe { libc::fork() } == 0 {
        let words = take_static_tls(usize::MAX);
        // SAFETY: 1. as many bytes as are there.
        unsafe { libc::write(ends[1], (&raw const words).cast(), 8) };
        // SAFETY: 1. no preconditions.
        unsafe { libc::_exit(0) };
    }
    let mut words = 0;
    // SAFETY: 1. as many bytes as there is room for.
    let got = unsafe { libc::read(ends[0], (&raw mut words).cast(), 8) };
    assert_eq!(got, 8);
    words
}

#[test]
fn a_plugin_needs_64_bytes_of_static_tls() {
    let _one = serial();
    let words = static_tls_words();
    assert!(words > 8, "{words}");
    assert_eq!(take_static_tls(words - 8), words - 8);
    rounds(true);
}

#[test]
fn without_static_tls_a_plugin_can_be_opened_and_says_what_is_missing() {
    let _one = serial();
    take_static_tls(usize::MAX);
    let handle = open(&plugin().to_string_lossy()).unwrap();
    let why = ask(handle, c"plugin_start").unwrap_err();
    assert!(why.contains("64 bytes of static TLS"), "{why}");
    assert!(why.contains("glibc.rtld.optional_static_tls"), "{why}");
    close(handle);
    assert_eq!((atol(), atol_in_child()), (17, 17));
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static HAS_HOOKED: AtomicBool = AtomicBool::new(false);
static WAS_IN_TIME: AtomicBool = AtomicBool::new(false);

/// Hooks a function of the program and one of libc, by address and by name, and takes the hooks
/// away. Nothing here has a thread-local destructor: the C library registers those under the
/// dynamic linker's lock.
extern "C" fn hook_and_unhook(_: *mut c_void) -> *mut c_void {
    let rt = RUNTIME.get().unwrap();
    let add = hook(rt, ADD2).on_exit(|_, _| {}).attach().unwrap();
    let atol: unsafe extern "C" fn(*const c_char) -> c_long = libc::atol;
    let atol = hook(rt, atol).on_exit(|_, _| {}).attach().unwrap();
    // SAFETY: 1. nothing is claimed of the function.
    let named = unsafe { rt.hook_symbol(Some("libc"), "strtol", FuncModel::untyped()) };
    let named = named.unwrap().on_entry(|_| {}).attach().unwrap();
    for hooked in [add, atol, named] {
        hooked.detach().unwrap();
    }
    rt.synchronize(PATIENCE).unwrap();
    HAS_HOOKED.store(true, Ordering::Relaxed);
    std::ptr::null_mut()
}

/// What a constructor calls: it waits for a thread that hooks.
extern "C" fn wait_for_hooks() {
    let mut id: libc::pthread_t = 0;
    let start: extern "C" fn(*mut c_void) -> *mut c_void = hook_and_unhook;
    let (attr, arg) = (std::ptr::null(), std::ptr::null_mut());
    // SAFETY: 1. a place for the id; the function has the type that the call wants.
    let failed = unsafe { libc::pthread_create(&mut id, attr, start, arg) };
    assert_eq!(failed, 0);
    let begin = Instant::now();
    while !HAS_HOOKED.load(Ordering::Relaxed) && begin.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    WAS_IN_TIME.store(HAS_HOOKED.load(Ordering::Relaxed), Ordering::Relaxed);
}

#[test]
fn a_constructor_waits_for_a_thread_that_hooks() {
    let _one = serial();
    let library = common::library::Library::new("waits");
    RUNTIME.set(Runtime::new().unwrap()).unwrap();
    let callback = wait_for_hooks as *const () as usize;
    // SAFETY: 1. the only thread of this process that knows the variable.
    unsafe { env::set_var("TL_ON_LOAD", format!("{callback:x}")) };
    drop(library.open());
    assert!(WAS_IN_TIME.load(Ordering::Relaxed));
}
