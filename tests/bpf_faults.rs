//! Loads that may fault: on many threads, between the handlers of others, and real faults beside
//! them.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "installs signal handlers, and runs programs")]

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::{ptr, thread};

use rvbpf::Runtime;
use rvbpf::bpf::{
    AluOp, BpfProg, BpfReg, Cond, Env, Extend, Fault, Interpreter, Op, Operand, Program, Size,
    Width,
};

use BpfReg::{R0, R1, R2, R3};

/// An address that is never mapped.
const NOWHERE: u64 = 0x10;

fn load(fault: Fault, size: Size, extend: Extend, dst: BpfReg, src: BpfReg) -> Op {
    let off = 0;
    Op::Load {
        size,
        extend,
        fault,
        dst,
        src,
        off,
    }
}

fn alu(op: AluOp, dst: BpfReg, src: Operand) -> Op {
    let width = Width::W64;
    Op::Alu {
        op,
        width,
        dst,
        src,
    }
}

fn program(ops: &[Op]) -> Program {
    let insns = ops.iter().map(|op| op.encode().0).collect();
    Program::new(insns).unwrap()
}

fn compiled(program: &Program) -> BpfProg {
    Runtime::new().unwrap().load(program, &Env::new()).unwrap()
}

/// `r2` loads from `r1`; `r0` = 0 if that was zero every time.
fn probing(times: i32) -> Program {
    let ops = [
        alu(AluOp::Mov, R0, Operand::Imm(0)),
        alu(AluOp::Mov, R3, Operand::Imm(times)),
        alu(AluOp::Mov, R2, Operand::Imm(-1)),
        load(Fault::Zero, Size::Dw, Extend::Zero, R2, R1),
        alu(AluOp::Or, R0, Operand::Reg(R2)),
        alu(AluOp::Sub, R3, Operand::Imm(1)),
        Op::Branch {
            cond: Cond::Ne,
            width: Width::W64,
            dst: R3,
            src: Operand::Imm(0),
            off: -5,
        },
        Op::Exit,
    ];
    program(&ops)
}

fn run(prog: &BpfProg, r1: u64) -> u64 {
    // SAFETY: 1. the programs of this file end; their loads may fault or are of a live variable.
    unsafe { prog.run([r1, 0, 0, 0, 0]) }.unwrap()
}

#[test]
fn a_probing_load_is_zero_where_there_is_no_memory_and_else_loads() {
    for size in Size::ALL {
        for extend in [Extend::Zero, Extend::Sign] {
            if (size, extend) == (Size::Dw, Extend::Sign) {
                continue;
            }
            let program = program(&[load(Fault::Zero, size, extend, R0, R1), Op::Exit]);
            let prog = compiled(&program);
            let value = 0x8899_aabb_ccdd_eeff_u64;
            let env = Env::new();
            let interpreter = Interpreter::new(&program, &env).unwrap();
            for at in [NOWHERE, &raw const value as u64, u64::MAX - 3] {
                // SAFETY: 1. as in `run`.
                let want = unsafe { interpreter.run([at, 0, 0, 0, 0], 10) };
                assert_eq!(Ok(run(&prog, at)), want, "{size:?} {extend:?} {at:#x}");
            }
        }
    }
}

/// Faults that came to the host's handlers: the one installed first, and the one installed last.
static SEEN_FIRST: AtomicU64 = AtomicU64::new(0);
static SEEN_LAST: AtomicU64 = AtomicU64::new(0);
/// What was there before the last one.
static BEFORE_LAST: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
/// A page that the first handler makes readable when it is touched.
static GUARDED: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());
const PAGE_BYTES: usize = 4096;

type Handler = unsafe extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs a handler of SIGSEGV; what was there before.
fn install(handler: Handler) -> libc::sigaction {
    install_for(libc::SIGSEGV, handler)
}

fn install_for(signal: libc::c_int, handler: Handler) -> libc::sigaction {
    // SAFETY: 1. all zeros is an action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let mut before = action;
    // SAFETY: 1. both are live, and the handlers of this file are async-signal-safe.
    let rc = unsafe { libc::sigaction(signal, &raw const action, &raw mut before) };
    assert_eq!(rc, 0);
    before
}

unsafe extern "C" fn first(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    SEEN_FIRST.fetch_add(1, Ordering::Relaxed);
    let page = GUARDED.load(Ordering::Relaxed);
    // SAFETY: 1. the page is the test's own.
    unsafe { libc::mprotect(page, PAGE_BYTES, libc::PROT_READ) };
}

/// Hands on to what the last handler of the host has found.
///
/// # Safety
/// 1. The arguments are those of a handler.
unsafe fn hand_to_the_runtime(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: 1. set before this handler can be asked, and never freed.
    let before = unsafe { &*BEFORE_LAST.load(Ordering::Acquire) };
    // SAFETY: 1. what was there before is the runtime's handler, which is of this kind.
    let handler = unsafe { std::mem::transmute::<usize, Handler>(before.sa_sigaction) };
    // SAFETY: 1. caller's contract.
    unsafe { handler(signal, info, context) };
}

unsafe extern "C" fn last(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    SEEN_LAST.fetch_add(1, Ordering::Relaxed);
    // SAFETY: 1. the kernel's own arguments.
    unsafe { hand_to_the_runtime(signal, info, context) };
}

#[test]
fn slow_a_million_faults_between_the_handlers_of_the_host() {
    const THREADS: u64 = 4;
    const EACH: i32 = 250_000;
    // SAFETY: 1. a new mapping at an address of the kernel's choice.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            PAGE_BYTES,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    GUARDED.store(page, Ordering::Relaxed);
    install(first);
    let prog = compiled(&probing(EACH));
    // Nothing is lost in between.
    let before = Box::leak(Box::new(install(last)));
    BEFORE_LAST.store(before, Ordering::Release);
    thread::scope(|s| {
        for _ in 0..THREADS {
            let prog = &prog;
            s.spawn(move || assert_eq!(run(prog, NOWHERE), 0));
        }
    });
    let seen = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert_eq!(
        (seen(&SEEN_FIRST), seen(&SEEN_LAST)),
        (0, THREADS * EACH as u64)
    );
    // A fault of the host's own goes past ours to the first.
    // SAFETY: 1. the first handler makes the page readable.
    assert_eq!(unsafe { page.cast::<u64>().read_volatile() }, 0);
    assert_eq!(
        (seen(&SEEN_FIRST), seen(&SEEN_LAST)),
        (1, THREADS * EACH as u64 + 1)
    );
}

/// Faults and signals that came to the handlers of the test below.
static SEEN_LATER: AtomicU64 = AtomicU64::new(0);
static SEEN_LATEST: AtomicU64 = AtomicU64::new(0);

/// Hands nothing on. A fault is mended by a page where there was none to be had.
unsafe extern "C" fn later(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    SEEN_LATER.fetch_add(1, Ordering::Relaxed);
    // SAFETY: 1. the kernel passes it.
    let info = unsafe { &*info };
    if info.si_code > 0 {
        let page = GUARDED.load(Ordering::Relaxed);
        // SAFETY: 1. it is that of a fault.
        if unsafe { info.si_addr() } != page {
            // A program's own, which comes again for ever.
            // SAFETY: 1. ends this process.
            unsafe { libc::_exit(98) };
        }
        map_over(page, libc::PROT_READ);
    }
}

/// Hands on to what it found, which is the runtime's.
unsafe extern "C" fn latest(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    SEEN_LATEST.fetch_add(1, Ordering::Relaxed);
    // SAFETY: 1. the kernel's own arguments.
    unsafe { hand_to_the_runtime(signal, info, context) };
}

/// A private page of zeros, at `at` if that is not null.
fn map_over(at: *mut libc::c_void, prot: libc::c_int) -> *mut libc::c_void {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: 1. a new mapping, or one over a page of the test's own.
    let page = unsafe { libc::mmap(at, PAGE_BYTES, prot, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    page
}

/// A page behind the end of its file: to touch it is a SIGBUS.
fn page_behind_the_end() -> *mut libc::c_void {
    // SAFETY: 1. a name that ends.
    let fd = unsafe { libc::memfd_create(c"empty".as_ptr(), 0) };
    assert!(fd >= 0);
    // SAFETY: 1. a new mapping at an address of the kernel's choice.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            PAGE_BYTES,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            fd,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    page
}

/// `fentry` of a function: adds up what a probing load of `NOWHERE` is.
fn nowhere_probed() -> Program {
    program(&[
        alu(AluOp::Mov, R1, Operand::Imm(NOWHERE as i32)),
        load(Fault::Zero, Size::Dw, Extend::Zero, R0, R1),
        Op::Exit,
    ])
}

/// Handlers that the host installs after ours: ours is the first again with the next program that
/// is loaded or attached, and theirs get the rest, whether they hand on or not.
fn handlers_that_come_later(signal: libc::c_int, page: fn() -> *mut libc::c_void) {
    let seen = || {
        let seen = [&SEEN_LATER, &SEEN_LATEST].map(|count| count.swap(0, Ordering::Relaxed));
        (seen[0], seen[1])
    };
    let probes = |progs: &[&BpfProg]| {
        let page = page();
        for prog in progs {
            assert_eq!(run(prog, NOWHERE), 0);
            assert_eq!(run(prog, page as u64), 0);
        }
    };
    let faults_and_is_told = || {
        let page = page();
        GUARDED.store(page, Ordering::Relaxed);
        // SAFETY: 1. the handler makes the page readable.
        assert_eq!(unsafe { page.cast::<u64>().read_volatile() }, 0);
        // SAFETY: 1. there is a handler.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
    };
    let early = compiled(&probing(3));
    probes(&[&early]);

    // It hands nothing on. The next program that is loaded sees to it.
    install_for(signal, later);
    let second = compiled(&probing(3));
    probes(&[&early, &second]);
    assert_eq!(seen(), (0, 0));
    faults_and_is_told();
    assert_eq!(seen(), (2, 0));

    // It hands on to ours, which must not hand it back.
    let before = Box::leak(Box::new(install_for(signal, latest)));
    BEFORE_LAST.store(before, Ordering::Release);
    probes(&[&early]);
    let (_, handed_on) = seen();
    assert!(handed_on > 0, "until then it comes first, and hands on");
    let third = compiled(&probing(3));
    probes(&[&early, &second, &third]);
    assert_eq!(seen(), (0, 0));
    faults_and_is_told();
    assert_eq!(seen(), (2, 2));

    // Attaching a program that was loaded before is enough, too.
    let rt = Runtime::new().unwrap();
    let prog = rt.load(&nowhere_probed(), &Env::new()).unwrap();
    install_for(signal, later);
    // SAFETY: 1. the function is of this type.
    let hooked = unsafe { rt.hook(testlib::functions::tl_add2 as Add2) }.unwrap();
    // SAFETY: 1. it looks at nothing.
    let hooked = unsafe { hooked.raw(prog.fentry()) }.attach().unwrap();
    assert_eq!(testlib::functions::tl_add2(20, 3), 23);
    probes(&[&early]);
    assert_eq!(seen(), (0, 0));
    hooked.detach().unwrap();
    faults_and_is_told();
    assert_eq!(seen(), (2, 0));
}

type Add2 = extern "C" fn(libc::c_int, libc::c_int) -> libc::c_int;

#[test]
fn handlers_of_sigsegv_that_come_later() {
    handlers_that_come_later(libc::SIGSEGV, || map_over(ptr::null_mut(), libc::PROT_NONE));
}

#[test]
fn handlers_of_sigbus_that_come_later() {
    handlers_that_come_later(libc::SIGBUS, page_behind_the_end);
}

/// A load that is not marked is the process's own fault, and the program is named.
#[test]
fn a_real_fault_is_fatal_and_names_its_program() {
    const CHILD: &str = "RVBPF_TEST_REAL_FAULT";
    if std::env::var_os(CHILD).is_some() {
        // The handler is there because of the first load.
        let ops = [
            load(Fault::Zero, Size::B, Extend::Zero, R0, R1),
            load(Fault::Fatal, Size::B, Extend::Zero, R0, R1),
            Op::Exit,
        ];
        let prog = compiled(&program(&ops).with_name("the_guilty_one"));
        run(&prog, NOWHERE);
        unreachable!("the second load faults");
    }
    let name = "a_real_fault_is_fatal_and_names_its_program";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stderr);
    assert_eq!(child.status.signal(), Some(libc::SIGSEGV), "{text}");
    assert!(
        text.contains("BPF program the_guilty_one: SIGSEGV at 0000"),
        "{text}"
    );
}
