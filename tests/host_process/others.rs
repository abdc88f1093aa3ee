//! Other makers' allocator, preloaded, and other makers' interpreter, which opens us as an
//! extension.
//!
//! `RVBPF_JEMALLOC` and `RVBPF_PYTHON` say where they are; without them nothing is tested. The lab
//! has both.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common::{PATIENCE, Stopper, in_child, plugin, serial};
use crate::{Answer, Hooks, workload};

/// What is said here, if the lab or this machine has it.
fn place(name: &str) -> Option<PathBuf> {
    let place = env::var_os(name).map(PathBuf::from);
    if place.is_none() {
        eprintln!("not tried: {name} says nothing");
    }
    place
}

fn succeeded(output: &Output, words: &str) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    let is_well = output.status.success() && out.contains(words);
    assert!(is_well, "{}\n{out}{err}", output.status);
}

/// What the child of the next test finds in its environment.
const PRELOADED: &str = "RVBPF_TEST_PRELOADED";

/// Every allocation of this process, those of the hooks' own included, is jemalloc's, which locks
/// all its arenas for the time of a fork.
#[test]
fn jemalloc_preloaded() {
    let _one = serial();
    let Some(library) = place("RVBPF_JEMALLOC") else {
        return;
    };
    if env::var_os(PRELOADED).is_none() {
        let mut again = Command::new(env::current_exe().unwrap());
        again.args(["--exact", "others::jemalloc_preloaded", "--nocapture"]);
        let output = again
            .env(PRELOADED, "1")
            .env("LD_PRELOAD", library)
            .output();
        return succeeded(&output.unwrap(), "1 passed");
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps.contains("libjemalloc"), "{maps}");
    Answer::Works.check(workload());
    let hooks = Hooks::attach().unwrap();
    hooks.call();
    in_child(|| {
        hooks.call();
        hooks.retarget().unwrap();
        hooks.rt.detach_all([&hooks.pad, &hooks.jump]).unwrap();
        // Another runtime may have the functions when this one has given them back.
        hooks.rt.synchronize(PATIENCE).unwrap();
        Answer::Works.check(workload());
    })
    .join();
    hooks.end().unwrap();
    // Threads that change hooks hold locks of ours and want jemalloc's.
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stopper(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                Answer::Works.check(workload());
            }
        });
        for _ in 0..20 {
            in_child(|| drop(vec![0_u8; 4 << 20])).join();
        }
    });
    in_child(|| Answer::Works.check(workload())).join();
}

/// A Python that hooks with a library that it opens, closes, and opens again.
const SCRIPT: &str = "
import ctypes, _ctypes, _frozen_importlib, _imp, _thread, os, sys, time

libc = ctypes.CDLL(None)

def calls(lib):
    before = lib.plugin_seen()
    assert libc.atol(b'17') == 17
    return lib.plugin_seen() - before

def said(text):
    assert text is None, text.decode()

for turn in range(3):
    lib = ctypes.CDLL(sys.argv[1])
    for name in 'plugin_start', 'plugin_stop':
        getattr(lib, name).restype = ctypes.c_char_p
    assert calls(lib) == 0
    said(lib.plugin_start())
    assert calls(lib) == 1
    seen = []
    _thread.start_new_thread(lambda: seen.append(calls(lib)), ())
    while not seen:
        time.sleep(0.001)
    assert seen == [1], seen
    child = os.fork()
    if child == 0:
        is_well = False
        try:
            assert calls(lib) == 1
            said(lib.plugin_stop())
            assert calls(lib) == 0
            is_well = True
        finally:
            os._exit(0 if is_well else 1)
    assert os.waitpid(child, 0)[1] == 0
    if turn != 1:
        said(lib.plugin_stop())
        assert calls(lib) == 0
    # In the second turn it is closed while it hooks.
    _ctypes.dlclose(lib._handle)
    assert libc.atol(b'18') == 18
    if turn == 1:
        lib = ctypes.CDLL(sys.argv[1])
        lib.plugin_stop.restype = ctypes.c_char_p
        assert calls(lib) == 1
        said(lib.plugin_stop())
        _ctypes.dlclose(lib._handle)

# As an extension module, which hooks while it is imported, and is never closed.
spec = _frozen_importlib.ModuleSpec('testplugin', None, origin=sys.argv[1])
assert _imp.create_dynamic(spec).__name__ == 'testplugin'
lib = ctypes.CDLL(sys.argv[1])
lib.plugin_stop.restype = ctypes.c_char_p
assert calls(lib) == 1
said(lib.plugin_stop())
assert calls(lib) == 0
print('hooked and unhooked')
";

#[test]
fn a_python_that_loads_us_as_an_extension() {
    let _one = serial();
    let Some(python) = place("RVBPF_PYTHON") else {
        return;
    };
    let mut host = Command::new(python);
    // Of its library it finds what stands beside it, and reads no settings.
    let output = host
        .args(["-I", "-S", "-B", "-c", SCRIPT])
        .arg(plugin())
        .output();
    succeeded(&output.unwrap(), "hooked and unhooked");
}
