//! What images, signal handlers and glue can reach calls no function of the C library.
//!
//! Any of these may be hooked: a call of it would run a program inside the runtime's own handler,
//! or recurse until the stack ends. The modules' sources are read; what the compiler calls by
//! itself (`memcpy`, `memset`) is seen in the program that it has made, on riscv64 (`bare/program.rs`).
#![cfg_attr(
    target_arch = "riscv64",
    expect(
        unsafe_code,
        reason = "hooks a function, so that the linker keeps what that needs"
    )
)]

#[cfg(target_arch = "riscv64")]
#[path = "bare/graph.rs"]
mod graph;
#[cfg(target_arch = "riscv64")]
#[path = "bare/program.rs"]
mod program;

/// The modules, and what they may call all the same.
const MODULES: [(&str, &str, &[&str]); 20] = [
    (
        "guard",
        include_str!("../trampoline/src/guard.rs"),
        &[
            // Asked when an image is made, by the thread that makes it.
            "libc::__errno_location(",
        ],
    ),
    ("slow", include_str!("../trampoline/src/slow.rs"), &[]),
    ("shadow", include_str!("../trampoline/src/shadow.rs"), &[]),
    ("table", include_str!("../trampoline/src/table.rs"), &[]),
    (
        "enter",
        include_str!("../trampoline/src/indirect/enter.rs"),
        &[],
    ),
    ("sync", include_str!("../text/src/sync.rs"), &[]),
    (
        "syscall",
        include_str!("../text/src/syscall.rs"),
        &[
            // Of other architectures, where nothing is hooked.
            "libc::syscall(",
            "libc::__errno_location(",
        ],
    ),
    (
        "signal",
        include_str!("../text/src/signal.rs"),
        &[
            // As above.
            "libc::sigaction(",
            "last_os_error(",
        ],
    ),
    ("ask", include_str!("../text/src/threads/ask.rs"), &[]),
    ("frames", include_str!("../text/src/threads/frames.rs"), &[]),
    (
        "sys",
        include_str!("../text/src/threads/sys.rs"),
        &[
            // In functions for tests.
            "libc::__errno_location(",
            "last_os_error(",
        ],
    ),
    (
        "engine",
        include_str!("../text/src/threads/engine.rs"),
        &[
            // Of the thread that asks.
            "Instant::now(",
        ],
    ),
    ("proc", include_str!("../text/src/threads/proc.rs"), &[]),
    ("trap", include_str!("../text/src/detour/trap.rs"), &[]),
    (
        "detour table",
        include_str!("../text/src/detour/table.rs"),
        &[
            // Of the change that waits for readers.
            "thread::yield_now(",
        ],
    ),
    (
        "gate",
        include_str!("../text/src/detour/gate.rs"),
        &[
            // Of the thread that closes it.
            "thread::sleep(",
        ],
    ),
    ("glue", include_str!("../src/glue.rs"), &[]),
    ("mark", include_str!("../trampoline/src/mark.rs"), &[]),
    ("cancel", include_str!("../trampoline/src/cancel.rs"), &[]),
    ("faults", include_str!("../src/bpf/faults.rs"), &[]),
];

/// What stands for a call of the C library; of `libc::` the functions alone, which are written in
/// small letters.
const CALLS: [&str; 8] = [
    "std::process::id(",
    "last_os_error(",
    "thread::sleep(",
    "thread::yield_now(",
    "thread::current(",
    "std::fs::",
    "println!(",
    "Instant::now(",
];

/// The calls in `source`, less its tests.
fn calls(source: &str) -> Vec<String> {
    let code = source.split("\n#[cfg(test)]\nmod tests").next();
    let lines = code.unwrap_or_default().lines().map(str::trim_start);
    let code: Vec<&str> = lines.filter(|line| !line.starts_with("//")).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for after in code.split("libc::").skip(1) {
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, rest) = after.split_at(end.unwrap_or(after.len()));
        let is_lower = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if is_lower && rest.starts_with('(') {
            found.push(format!("libc::{name}("));
        }
    }
    let others = CALLS.iter().filter(|call| code.contains(**call));
    found.extend(others.map(ToString::to_string));
    found
}

#[test]
fn no_function_of_libc_is_called_where_hooks_and_handlers_run() {
    for (name, source, allowed) in MODULES {
        let found = calls(source);
        let forbidden = found
            .iter()
            .filter(|call| !allowed.contains(&call.as_str()));
        let forbidden: Vec<_> = forbidden.collect();
        assert!(forbidden.is_empty(), "{name} calls {forbidden:?}");
    }
}

#[test]
fn calls_are_found_and_names_and_tests_are_not() {
    let source = "// libc::open()\nlet a = libc::SIGTRAP; libc::mmap(a); f::<libc::iovec>();\n\
std::process::id()\n#[cfg(test)]\nmod tests { libc::fork() }";
    assert_eq!(calls(source), ["libc::mmap(", "std::process::id("]);
}
