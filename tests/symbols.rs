//! Programs and images as others see them: unwinders, gdb, `perf`.
#![cfg(target_arch = "riscv64")]
#![expect(
    unsafe_code,
    reason = "attaches raw programs, walks stacks and gdb's list"
)]

mod common;
#[path = "symbols/jitdump.rs"]
mod jitdump;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use common::{ADD2, hook, serial};
use rvbpf::bpf::BpfReg::{R0, R1, R2, R3, R6, R7, R10};
use rvbpf::bpf::{BpfProg, Cond, Env, LineInfo, Program, ProgramBuilder, Size};
use rvbpf::{RawProg, Runtime, Tools};
use testlib::functions::tl_add2;

const MAX_FRAMES: usize = 64;
/// The helper of these tests.
const TRACE: i32 = 1000;

/// Addresses of the last trace; written in signal handlers, so no lock.
static FRAMES: [AtomicUsize; MAX_FRAMES] = [const { AtomicUsize::new(0) }; MAX_FRAMES];
static NR_FRAMES: AtomicUsize = AtomicUsize::new(0);

/// Walks the stack as C++ exceptions and panics do.
extern "C" fn trace() -> u64 {
    let mut frames = [std::ptr::null_mut::<c_void>(); MAX_FRAMES];
    // SAFETY: 1. there is room for so many.
    let nr = unsafe { libc::backtrace(frames.as_mut_ptr(), MAX_FRAMES as c_int) };
    for (place, frame) in FRAMES.iter().zip(frames) {
        place.store(frame as usize, Ordering::Relaxed);
    }
    NR_FRAMES.store(nr as usize, Ordering::Release);
    0
}

/// Where the frame of the range is in the last trace.
fn depth_of(start: u64, len: u64) -> Option<usize> {
    let nr = NR_FRAMES.load(Ordering::Acquire);
    let is_in = |place: &AtomicUsize| {
        // Return addresses may be behind the end of a function.
        let at = place.load(Ordering::Relaxed) as u64 - 1;
        (start..start + len).contains(&at)
    };
    FRAMES[..nr].iter().position(is_in)
}

fn env() -> Env {
    // SAFETY: 1. it takes nothing, and may be called anywhere.
    unsafe { Env::tracing().helper(TRACE, trace as extern "C" fn() -> u64) }
}

/// Calls the hooked function from a frame of its own.
#[inline(never)]
extern "C" fn caller(a: c_int, b: c_int) -> c_int {
    let sum = tl_add2(a, b);
    std::hint::black_box(sum) + 1
}

/// A program whose inner function calls the helper, with registers and stack in use.
fn nested() -> Program {
    let mut b = ProgramBuilder::new();
    let inner = b.label();
    b.mov(R6, R1).mov(R7, 5).store(Size::Dw, R10, -16, R6);
    b.mov(R1, R7).call(inner).mov(R0, 0).exit();
    b.bind(inner).mov(R6, R1).store(Size::Dw, R10, -64, R6);
    b.call_helper(TRACE).mov(R0, 0).exit();
    b.finish().unwrap().with_name("nested")
}

fn with_program(rt: &Runtime, prog: RawProg, calls: impl FnOnce()) {
    // SAFETY: 1. The programs of this file end, and touch their stacks alone.
    let hooked = unsafe { hook(rt, ADD2).raw(prog) }.attach().unwrap();
    calls();
    hooked.detach().unwrap();
}

fn assert_trace_passes(prog: &BpfProg) {
    let rx = prog.rx();
    let program = depth_of(rx.start.get(), rx.len_bytes as u64).expect("no frame of the program");
    let ours = depth_of(caller as *const () as u64, 256).expect("the caller was not reached");
    // The program's two functions, and the image.
    assert_eq!(ours, program + 3, "frames between program and caller");
}

#[test]
fn backtraces_pass_through_programs_and_images() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let prog = rt.load(&nested(), &env()).unwrap();
    for raw in [
        prog.fentry(),
        prog.fexit(),
        prog.fsession(),
        prog.fmod_ret(),
    ] {
        NR_FRAMES.store(0, Ordering::Relaxed);
        // A thread's first call takes the slow path, which has frames of its own.
        with_program(&rt, raw, || {
            assert_eq!((caller(1, 2), caller(1, 2)), (4, 4))
        });
        assert_trace_passes(&prog);
    }
}

static GO_ON: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(_: c_int) {
    trace();
    GO_ON.store(1, Ordering::Release);
}

/// A function that calls nobody, with a stack, interrupted in its middle.
#[test]
fn leaves_are_unwound_from_where_a_signal_finds_them() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let mut b = ProgramBuilder::new();
    let again = b.label();
    b.ld_imm64(R2, GO_ON.as_ptr() as u64)
        .store(Size::Dw, R10, -8, R2);
    b.bind(again).load(Size::Dw, R3, R2, 0);
    b.branch(Cond::Eq, R3, 0, again).mov(R0, 0).exit();
    let leaf = b.finish().unwrap().with_name("leaf");
    let prog = rt.load(&leaf, &env()).unwrap();
    // SAFETY: 1. the handler walks the stack and stores atomically.
    unsafe { libc::signal(libc::SIGUSR1, on_signal as *const () as libc::sighandler_t) };
    // What the first walk allocates is there then.
    trace();
    with_program(&rt, prog.fentry(), || {
        let runner = std::thread::spawn(|| {
            GO_ON.store(1, Ordering::Relaxed);
            caller(1, 2);
            GO_ON.store(0, Ordering::Relaxed);
            caller(1, 2)
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        use std::os::unix::thread::JoinHandleExt;
        // SAFETY: 1. the thread has not been joined.
        unsafe { libc::pthread_kill(runner.as_pthread_t(), libc::SIGUSR1) };
        assert_eq!(runner.join().unwrap(), 4);
    });
    let rx = prog.rx();
    let program = depth_of(rx.start.get(), rx.len_bytes as u64).expect("no frame of the leaf");
    let ours = depth_of(caller as *const () as u64, 256).expect("the caller was not reached");
    assert_eq!(ours, program + 2);
}

/// gdb's list, as its manual has it.
mod gdb {
    #[repr(C)]
    pub(super) struct Entry {
        pub(super) next: *const Entry,
        prev: *const Entry,
        pub(super) object: *const u8,
        pub(super) len: u64,
    }

    #[repr(C)]
    pub(super) struct Descriptor {
        version: u32,
        action: u32,
        relevant: *const Entry,
        pub(super) first: *const Entry,
    }

    unsafe extern "C" {
        pub(super) static __jit_debug_descriptor: Descriptor;
    }
}

fn gdb_knows(name: &str) -> bool {
    let list = &raw const gdb::__jit_debug_descriptor;
    // SAFETY: 1. nobody changes the list: tests come one after the other.
    let mut at = unsafe { (*list).first };
    while !at.is_null() {
        // SAFETY: 1. as above.
        let entry = unsafe { &*at };
        // SAFETY: 1. as above; entries are whole.
        let object = unsafe { std::slice::from_raw_parts(entry.object, entry.len as usize) };
        if object
            .windows(name.len())
            .any(|part| part == name.as_bytes())
        {
            return true;
        }
        at = entry.next;
    }
    false
}

#[test]
fn gdb_knows_programs_and_images_while_they_are_there() {
    let _one = serial();
    let rt = Runtime::builder().tools(Tools::GDB).build().unwrap();
    let prog = rt.load(&nested(), &env()).unwrap();
    let (name, image) = (
        prog.compiled().program().symbol(),
        format!("bpf_trampoline_{:x}", ADD2 as usize),
    );
    assert!(gdb_knows(&format!("{name}.func_7")));
    assert!(!gdb_knows(&image));
    with_program(&rt, prog.fentry(), || assert!(gdb_knows(&image)));
    rt.synchronize(common::PATIENCE).unwrap();
    assert!(!gdb_knows(&image));
    drop(prog);
    assert!(!gdb_knows(&name));
    let silent = Runtime::builder().tools(Tools::empty()).build().unwrap();
    let prog = silent.load(&nested(), &env()).unwrap();
    assert!(!gdb_knows(&name));
    drop(prog);
}

#[test]
fn perf_finds_programs_by_map_and_by_dump() {
    let _one = serial();
    let pid = std::process::id();
    // SAFETY: 1. no other thread of this test reads the environment.
    unsafe { std::env::set_var("JITDUMPDIR", "/tmp") };
    let rt = Runtime::builder()
        .tools(Tools::PERF_MAP | Tools::JITDUMP)
        .build()
        .unwrap();
    let line = LineInfo {
        insn: 0,
        file: "nested.bpf.c".into(),
        line: 12,
        column: 0,
        text: None,
    };
    let program = nested().with_line_info(vec![line]).unwrap();
    let prog = rt.load(&program, &env()).unwrap();
    let map = std::fs::read_to_string(format!("/tmp/perf-{pid}.map")).unwrap();
    let name = program.symbol();
    let first = map.lines().next().unwrap();
    assert!(
        first.starts_with(&format!("{:x} ", prog.rx().start.get())),
        "{map}"
    );
    assert!(first.ends_with(&name), "{map}");
    assert!(map.contains(&format!("{name}.func_7\n")), "{map}");
    let dump = std::fs::read(dump_path(pid)).unwrap();
    let has = |text: &str| dump.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(dump.starts_with(b"DTiJ"));
    assert!(has(&name) && has("nested.bpf.c"));
    with_program(&rt, prog.fexit(), || {
        perf_reads_an_image(&dump_path(pid), pid)
    });
    rt.synchronize(common::PATIENCE).unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let marked = maps
        .lines()
        .find(|line| line.ends_with(&format!("jit-{pid}.dump")));
    assert!(marked.is_some_and(|line| line.contains(" r-xp ")), "{maps}");
}

fn dump_path(pid: u32) -> String {
    format!("/tmp/jit-{pid}.dump")
}

/// The image of `tl_add2` and the program on it, as the formats' readers have them.
fn perf_reads_an_image(path: &str, pid: u32) {
    let codes = jitdump::read_dump(&std::fs::read(path).unwrap(), pid);
    let numbers: Vec<u64> = codes.iter().map(|code| code.number).collect();
    assert_eq!(numbers, (0..codes.len() as u64).collect::<Vec<_>>());
    let image_name = format!("bpf_trampoline_{:x}", ADD2 as usize);
    let image = codes.iter().rfind(|code| code.name == image_name);
    let image = image.expect("no record of the image");
    assert_eq!((image.pid, image.vma), (pid, image.at));
    assert!(image.tid > 0 && image.time_ns > 0);
    let nested = codes.iter().find(|code| !code.lines.is_empty()).unwrap();
    assert!(nested.name.contains("nested"), "{}", nested.name);
    let (at, line, file) = &nested.lines[0];
    assert!((nested.at..nested.at + nested.code.len() as u64).contains(at));
    assert_eq!((*line, &**file), (12, "nested.bpf.c"));
    let map = std::fs::read_to_string(format!("/tmp/perf-{pid}.map")).unwrap();
    let map = jitdump::read_map(&map);
    for code in [image, nested] {
        let entry = (code.at, code.code.len() as u64, code.name.clone());
        assert!(map.contains(&entry), "{entry:?} is not in {map:?}");
        // SAFETY: 1. the code is there, and nobody changes it: the hook is attached.
        let there = unsafe { std::slice::from_raw_parts(code.at as *const u8, code.code.len()) };
        assert_eq!(there, code.code, "{}", code.name);
    }
}
