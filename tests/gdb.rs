//! gdb itself, in front of a process with hooks: it is told of images while they come and go, names
//! them, and walks on to their callers.
//!
//! `RVBPF_GDB` says where it is; without it nothing is tested. The lab has one.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "attaches raw programs, calls C")]

mod common;

use std::ffi::{c_long, c_void};
use std::path::Path;
use std::process::Command;

use common::{ADD2, call_back, call_through, hook, serial};
use rvbpf::model::Type;
use rvbpf::{FuncModel, Hook, RawProg, Runtime, Tools};
use testlib::functions::tl_add2;

/// gdb stops here; the arguments say where the call comes from.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn gdb_stops_here(x: c_long) -> c_long {
    std::hint::black_box(x)
}

#[inline(never)]
extern "C-unwind" fn called_back(_: *mut c_void) -> c_long {
    std::hint::black_box(gdb_stops_here(1))
}

#[inline(never)]
unsafe extern "C" fn program(_: *mut u64) -> u64 {
    (gdb_stops_here(2) == 0).into()
}

#[inline(never)]
fn calls_hooked() -> c_long {
    std::hint::black_box(call_through(called_back, std::ptr::null_mut()))
}

fn hooked(rt: &Runtime, model: FuncModel) -> Hook {
    // SAFETY: 1. the model is that of `tl_call`, or claims nothing.
    let builder = unsafe { rt.hook_addr(call_back() as *const (), model) }.unwrap();
    // SAFETY: 1. the program looks at nothing.
    unsafe { builder.raw(RawProg::fexit(program)) }
        .attach()
        .unwrap()
}

/// What gdb runs.
#[test]
#[ignore = "is run by gdb, in the test below"]
fn inferior() {
    let _one = serial();
    let rt = Runtime::builder().tools(Tools::GDB).build().unwrap();
    // A thread's first hooked call takes the slow path, which has frames of its own.
    let first = hook(&rt, ADD2).on_entry(|_| {}).attach().unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    first.detach().unwrap();
    let typed = FuncModel::new(&[Type::Ptr, Type::Ptr], Type::I64).unwrap();
    for model in [typed, FuncModel::untyped()] {
        let hooked = hooked(&rt, model);
        assert_eq!(calls_hooked(), 2);
        hooked.detach().unwrap();
        rt.synchronize(common::PATIENCE).unwrap();
    }
}

/// The functions of one backtrace, innermost first.
fn functions(trace: &str) -> Vec<&str> {
    let frames = trace.lines().filter(|line| line.starts_with('#'));
    let named = frames.map(|line| {
        let rest = line
            .trim_start_matches('#')
            .trim_start_matches(char::is_numeric);
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix("0x") {
            Some(at) => at.split_once(" in ").map_or(at, |(_, name)| name),
            None => rest,
        };
        // Modules are named or not, as the compiler's notes on the function have it.
        let name = rest.split([' ', '(']).next().unwrap_or_default();
        name.strip_prefix("gdb::").unwrap_or(name)
    });
    named.collect()
}

#[test]
fn slow_gdb_names_images_and_walks_through_them() {
    let Some(gdb) = std::env::var_os("RVBPF_GDB").filter(|path| !path.is_empty()) else {
        println!("no gdb: not tested");
        return;
    };
    // Its Python looks for its own files below this; Debian's gdb does not start without them.
    let home = Path::new(&gdb).ancestors().nth(2).unwrap();
    let mut command = Command::new(&gdb);
    command.env("PYTHONHOME", home);
    command.args(["-nx", "-batch", "-iex", "set debuginfod enabled off"]);
    for step in [
        "set width 0",
        "set host-charset UTF-8",
        // There is none in the lab's VM.
        "set startup-with-shell off",
        "set breakpoint pending on",
        "break gdb_stops_here",
        "run",
        "echo == typed, in the function\\n",
        "bt",
        "continue",
        "echo == typed, in the program\\n",
        "bt",
        "continue",
        "echo == untyped, in the function\\n",
        "bt",
        "continue",
        "echo == untyped, in the program\\n",
        "bt",
        "continue",
        "echo == the end\\n",
    ] {
        command.args(["-ex", step]);
    }
    command.arg("--args").arg(std::env::current_exe().unwrap());
    command.args(["inferior", "--exact", "--ignored", "--test-threads=1"]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // Of its complaints about Python it has many: one for each frame.
    let errors = String::from_utf8_lossy(&output.stderr);
    let traces: Vec<_> = text.split("== ").skip(1).map(functions).collect();
    let image = format!("bpf_trampoline_{:x}", call_back() as usize);
    println!("{text}");
    assert_eq!(traces.len(), 5, "{errors}");
    assert!(
        traces[..4].iter().all(|trace| trace.len() > 4),
        "too few frames"
    );
    for (nr, trace) in traces[..4].iter().enumerate() {
        let inner = match nr % 2 {
            0 => &["gdb_stops_here", "called_back", "tl_call"][..],
            _ => &["gdb_stops_here", "program"],
        };
        let image_at = inner.len();
        assert_eq!(trace[..image_at], *inner);
        assert!(trace[image_at].starts_with("bpf_trampoline_"), "{image}");
        let caller = trace[image_at + 1..]
            .iter()
            .position(|f| f.contains("calls_hooked"));
        // `call_through` may have a frame of its own.
        assert!(caller.is_some_and(|at| at <= 1));
        assert!(trace.iter().any(|f| f.contains("inferior")), "{text}");
    }
    assert!(text.contains("exited normally"));
}
