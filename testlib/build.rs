//! Compiles the C and C++ functions of this crate, hand-written and generated, for riscv64; on any
//! other target there is nothing to build.
//!
//! `RVBPF_ABI_SEED` and `RVBPF_ABI_COUNT` choose other signatures and more of them.

#[path = "build/emit.rs"]
mod emit;
#[path = "src/sig.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the crate uses what the build script does not"
)]
mod sig;

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Nops at each function's entry; with the C extension, 10 bytes.
const PAD: &str = "-fpatchable-function-entry=5";

/// Signatures in one pair of C files.
const CHUNK_SIGS: usize = 80;

fn main() {
    println!("cargo:rerun-if-changed=c");
    println!("cargo:rerun-if-changed=cxx");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=src/sig.rs");
    let seed = number("RVBPF_ABI_SEED", 0x5eed_0001);
    let count = number("RVBPF_ABI_COUNT", 640);
    println!("cargo:rustc-env=RVBPF_ABI_SEED={seed}");
    println!("cargo:rustc-env=RVBPF_ABI_COUNT={count}");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("riscv64") {
        compile_functions();
        compile_throws();
        link_libraries();
        link_private();
        compile_generated(seed, count as usize);
    }
}

/// A number from the environment, or the default.
fn number(name: &str, default: u64) -> u64 {
    println!("cargo:rerun-if-env-changed={name}");
    let Ok(text) = env::var(name) else {
        return default;
    };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|e| panic!("{name}={text}: {e}"))
}

fn compile_functions() {
    let mut build = compiler();
    build.flag(PAD).files([
        "c/functions.c",
        "c/left.c",
        "c/nested.c",
        "c/ops.c",
        "c/sites.c",
        "c/twice.c",
        "c/pads.S",
        "c/gate.S",
    ]);
    build.compile("testlib_functions");
    // As distributions compile.
    let mut plain = compiler();
    plain.opt_level(2).flag("-fomit-frame-pointer");
    plain.file("c/plain.c").compile("testlib_plain");
}

/// C++: the way of an exception is what is tested. Calls at the end of a function become jumps.
fn compile_throws() {
    let mut build = compiler();
    build.cpp(true).opt_level(2).flag(PAD);
    build.file("cxx/throws.cpp").compile("testlib_throws");
}

/// Libraries that are opened by tests, bound as late as can be.
fn link_libraries() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in ["onload", "tlsword"] {
        let mut command = compiler()
            .opt_level(2)
            .pic(true)
            .get_compiler()
            .to_command();
        command.args(["-shared", "-Wl,-z,lazy", &format!("c/{name}.c"), "-o"]);
        let status = command.arg(out.join(format!("{name}.so"))).status();
        let is_linked = status.as_ref().is_ok_and(std::process::ExitStatus::success);
        assert!(is_linked, "linking {name}.so: {status:?}");
    }
}

/// A library with an unwinder of its own, without the symbols of its file.
fn link_private() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut build = compiler();
    build.cpp(true).opt_level(2).pic(true);
    let mut command = build.get_compiler().to_command();
    command.args(["-shared", "-s", "-static-libgcc", "-static-libstdc++"]);
    command
        .args(["cxx/private.cpp", "-o"])
        .arg(out.join("private.so"));
    let status = command.status();
    let is_linked = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    assert!(is_linked, "linking private.so: {status:?}");
}

fn compile_generated(seed: u64, count: usize) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let write = |name: String, text: String| -> PathBuf {
        let path = out.join(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    };
    let mut callees = compiler();
    let mut others = compiler();
    callees.flag(PAD);
    for (chunk, sigs) in sig::generate(seed, count).chunks(CHUNK_SIGS).enumerate() {
        let first = chunk * CHUNK_SIGS;
        write(format!("gen{chunk}.h"), emit::header(first, sigs));
        callees.file(write(
            format!("callees{chunk}.c"),
            emit::callees(chunk, first, sigs),
        ));
        others.file(write(
            format!("callers{chunk}.c"),
            emit::callers(chunk, first, sigs),
        ));
    }
    others.file(write("table.c".into(), emit::table(count)));
    others.compile("testlib_callers");
    callees.compile("testlib_callees");
}

/// The same code whatever the profile and the environment of the build.
fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.include(Path::new("c")).opt_level(1).warnings(false);
    // Notes on GCC's own ABI changes say nothing here: both sides are compiled alike.
    build.flag("-Wno-psabi").flag("-fno-omit-frame-pointer");
    // Panics and `pthread_cancel` pass through C too.
    build.flag("-fexceptions");
    build
}
