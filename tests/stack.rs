//! How much stack hooks take, and that threads and handlers with little of it get along.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "makes stacks, attaches raw programs")]

mod common;

use std::arch::global_asm;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{ptr, thread};

use common::{ADD2, WEIGH12, assert_settled, checked, hook, serial, weigh_from};
use rvbpf::model::Type;
use rvbpf::{FuncModel, Hook, Needs, RawProg, Runtime};
use testlib::functions::{tl_add2, tl_catch_jump};

/// The most bytes of stack that images and what they call take below the caller's stack pointer,
/// the programs' own use apart: the crate's docs say so. The frames of typed functions with stack
/// arguments hold those twice, so they may be larger.
const WORST_BYTES: usize = 512;
/// The same with closures, whose glue catches panics.
const WORST_CLOSURE_BYTES: usize = 768;

const PAGE: usize = 4096;
const PATTERN: u64 = 0x5a5a_a5a5_c3c3_3c3c;

// empty_program: uses no stack. on_stack(f, top): calls f() with the stack pointer `top`.
global_asm!(
    ".section .text.on_stack, \"ax\", @progbits",
    ".balign 4",
    ".type empty_program, @function",
    "empty_program:",
    "li a0, 0",
    "ret",
    ".size empty_program, . - empty_program",
    ".type on_stack, @function",
    "on_stack:",
    ".cfi_startproc",
    "addi sp, sp, -16",
    "sd ra, 8(sp)",
    "sd s0, 0(sp)",
    "addi s0, sp, 16",
    ".cfi_def_cfa s0, 0",
    ".cfi_offset ra, -8",
    ".cfi_offset s0, -16",
    "mv sp, a1",
    "jalr a0",
    "addi sp, s0, -16",
    "ld ra, 8(sp)",
    "ld s0, 0(sp)",
    "addi sp, sp, 16",
    "ret",
    ".cfi_endproc",
    ".size on_stack, . - on_stack",
    ".previous",
);

unsafe extern "C" {
    fn empty_program(ctx: *mut u64) -> u64;
    fn on_stack(f: extern "C" fn(), top: *mut c_void);
}

/// A stack with nothing but a pattern on it, and a page below that nobody may touch.
struct Stack {
    base: *mut u8,
    len: usize,
}

impl Stack {
    fn new(len: usize) -> Self {
        let all = len.next_multiple_of(PAGE) + PAGE;
        // SAFETY: 1. a fresh mapping.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                all,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: 1. our own page.
        checked(unsafe { libc::mprotect(base, PAGE, libc::PROT_NONE) });
        // The stack ends where the mapping does; what is too much lies at its lower end.
        let base = base.cast::<u8>().wrapping_add(all - len);
        let stack = Stack { base, len };
        stack.words().for_each(|word| {
            // SAFETY: 1. inside of the mapping.
            unsafe { word.write_volatile(PATTERN) }
        });
        stack
    }

    fn words(&self) -> impl Iterator<Item = *mut u64> + use<> {
        let base = self.base.cast::<u64>();
        (0..self.len / 8).map(move |i| base.wrapping_add(i))
    }

    fn top(&self) -> *mut c_void {
        self.base.wrapping_add(self.len).cast()
    }

    /// Bytes from the top to the lowest that has been written.
    fn used(&self) -> usize {
        // SAFETY: 1. inside of the mapping.
        let is_clean = |word: &*mut u64| unsafe { word.read_volatile() } == PATTERN;
        self.len - 8 * self.words().take_while(is_clean).count()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let pages = self.len.next_multiple_of(PAGE) + PAGE;
        let start = self.top().wrapping_byte_sub(pages);
        // SAFETY: 1. mapped by `new`; nobody runs on it any more.
        unsafe { libc::munmap(start, pages) };
    }
}

/// What `f` uses of a stack of its own.
fn used_by(f: extern "C" fn()) -> usize {
    let stack = Stack::new(64 << 10);
    // SAFETY: 1. `f` returns, and there is room for it.
    unsafe { on_stack(f, stack.top()) };
    stack.used()
}

extern "C" fn add() {
    assert_eq!(tl_add2(1, 2), 3);
}

extern "C" fn jump() {
    assert_eq!(tl_catch_jump(3), 3);
}

/// Enough for a collection.
extern "C" fn jumps() {
    (1..200).for_each(|i| assert_eq!(tl_catch_jump(i), i));
}

fn raw_hook(rt: &Runtime, addr: *const (), model: FuncModel, progs: &[RawProg]) -> Hook {
    // SAFETY: 1. callers pass the model of the function, or one that claims nothing.
    let mut builder = unsafe { rt.hook_addr(addr, model) }.unwrap();
    for prog in progs {
        // SAFETY: 1. the program looks at nothing.
        builder = unsafe { builder.raw(prog.clone()) };
    }
    builder.attach().unwrap()
}

fn all_words() -> Needs {
    Needs::META | Needs::IP | Needs::COOKIE | Needs::RET | Needs::STATS
}

/// Programs of all kinds that use no stack.
fn progs() -> Vec<RawProg> {
    let all = [
        RawProg::fentry(empty_program),
        RawProg::fmod_ret(empty_program),
        RawProg::fsession(empty_program),
        RawProg::fexit(empty_program),
    ];
    all.map(|prog| prog.needs(all_words())).into()
}

fn two_ints() -> FuncModel {
    FuncModel::new(&[Type::I32, Type::I32], Type::I32).unwrap()
}

/// More than `f` takes by itself: in a thread's first call, and in a later one.
fn in_new_thread(f: extern "C" fn(), plain: usize) -> [usize; 2] {
    let measure = || [used_by(f) - plain, used_by(f) - plain];
    thread::scope(|s| s.spawn(measure).join().unwrap())
}

#[test]
fn hooked_calls_take_little_stack() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    // A test of its own process: the first hooked call of all makes the table of threads.
    let plain = used_by(add);
    let mut worst = 0;
    let mut note = |what: &str, [first, later]: [usize; 2]| {
        println!("{what:32} first call of a thread {first:5}, later {later:5} bytes");
        worst = worst.max(first).max(later);
    };
    let at = ADD2 as *const ();
    for (what, model) in [("typed", two_ints()), ("untyped", FuncModel::untyped())] {
        for (kinds, progs) in [
            ("entry", &progs()[..1]),
            ("exit", &progs()[3..]),
            ("all", &progs()),
        ] {
            let hooked = raw_hook(&rt, at, model.clone(), progs);
            note(&format!("{what}, {kinds}"), in_new_thread(add, plain));
            hooked.detach().unwrap();
        }
    }
    // Jumped out of, until entries of the shadow stack are collected.
    let plain_jumps = used_by(jumps);
    let jumped = raw_hook(
        &rt,
        common::JUMP as *const (),
        FuncModel::untyped(),
        &progs(),
    );
    note("left by jumps, untyped", in_new_thread(jumps, plain_jumps));
    jumped.detach().unwrap();
    assert!(
        (96..=WORST_BYTES).contains(&worst),
        "{worst} bytes at worst"
    );
}

/// From inside of a program: the slow path.
#[test]
fn nested_calls_take_little_stack() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    static WITHIN: AtomicU64 = AtomicU64::new(0);
    unsafe extern "C" fn measure(_: *mut u64) -> u64 {
        WITHIN.store(used_by(add) as u64, Ordering::Relaxed);
        0
    }
    let plain = used_by(add);
    let outer = raw_hook(
        &rt,
        WEIGH12 as *const (),
        FuncModel::untyped(),
        &[RawProg::fentry(measure)],
    );
    for model in [two_ints(), FuncModel::untyped()] {
        let inner = raw_hook(&rt, ADD2 as *const (), model, &progs());
        assert_eq!(weigh_from(1), (650, 650));
        let used = WITHIN.load(Ordering::Relaxed) as usize - plain;
        println!("nested: {used} bytes");
        assert!((96..=WORST_BYTES).contains(&used), "{used} bytes");
        inner.detach().unwrap();
    }
    outer.detach().unwrap();
    assert_settled(&rt);
}

#[test]
fn closures_take_little_stack() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let plain = used_by(add);
    let hooked = hook(&rt, ADD2)
        .on_session(
            |call, c| *c = call.args().0 as u64,
            |_, _, c| assert_eq!(*c, 1),
        )
        .override_return(|_| None)
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    let [first, later] = in_new_thread(add, plain);
    println!("closures: first call of a thread {first}, later {later} bytes");
    assert!(first.max(later) <= WORST_CLOSURE_BYTES);
    assert_eq!(hooked.stats().panics, 0);
    hooked.detach().unwrap();
    assert_settled(&rt);
}

static LEFT_BYTES: AtomicU64 = AtomicU64::new(0);

extern "C" fn in_small_thread(_: *mut c_void) -> *mut c_void {
    for _ in 0..3 {
        add();
        jump();
        assert_eq!(weigh_from(1), (650, 650));
    }
    ptr::null_mut()
}

/// Threads with the smallest stack there is; what lies below it must not be touched.
#[test]
fn threads_with_small_stacks_call_hooked_functions() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let hooks = [
        raw_hook(&rt, ADD2 as *const (), two_ints(), &progs()),
        raw_hook(&rt, WEIGH12 as *const (), FuncModel::untyped(), &progs()),
        raw_hook(
            &rt,
            common::JUMP as *const (),
            FuncModel::untyped(),
            &progs(),
        ),
    ];
    for _ in 0..100 {
        let stack = Stack::new(16 << 10);
        let mut attr = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
        // SAFETY: 1. there is room for it.
        checked(-unsafe { libc::pthread_attr_init(attr.as_mut_ptr()) });
        // SAFETY: 1. the stack outlives the thread, which is joined.
        checked(-unsafe {
            libc::pthread_attr_setstack(attr.as_mut_ptr(), stack.base.cast(), stack.len)
        });
        let mut thread = 0;
        // SAFETY: 1. `in_small_thread` takes what it is given.
        checked(-unsafe {
            libc::pthread_create(
                &raw mut thread,
                attr.as_ptr(),
                in_small_thread,
                ptr::null_mut(),
            )
        });
        // SAFETY: 1. a thread of ours.
        checked(-unsafe { libc::pthread_join(thread, ptr::null_mut()) });
        let left = (stack.len - stack.used()) as u64;
        LEFT_BYTES.store(left, Ordering::Relaxed);
    }
    println!(
        "of 16 KiB, {} bytes have never been touched",
        LEFT_BYTES.load(Ordering::Relaxed)
    );
    assert!(
        hooks
            .iter()
            .all(|h| h.stats().missed == 0 && h.stats().runs > 0)
    );
    rt.detach_all(&hooks[..2]).unwrap();
    hooks[2].detach().unwrap();
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(_: c_int) {
    add();
    assert_eq!(weigh_from(1), (650, 650));
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// Stacks on which little more than a signal frame has room.
#[test]
fn handlers_on_small_stacks_call_hooked_functions() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let hooks = [
        raw_hook(&rt, ADD2 as *const (), two_ints(), &progs()),
        raw_hook(&rt, WEIGH12 as *const (), FuncModel::untyped(), &progs()),
    ];
    let handler: extern "C" fn(c_int) = on_signal;
    // SAFETY: 1. zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: 1. the handler calls hooked functions and an atomic.
    checked(unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, ptr::null_mut()) });
    // SAFETY: 1. no preconditions.
    let least = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
    assert!(least >= 1024, "{least}");
    let handle = || {
        // What the handler's own frames take, and panics that it could raise.
        let stack = Stack::new((least + WORST_BYTES + 1024).next_multiple_of(16));
        let there = libc::stack_t {
            ss_sp: stack.base.cast(),
            ss_flags: 0,
            ss_size: stack.len,
        };
        let mut before = std::mem::MaybeUninit::<libc::stack_t>::uninit();
        // SAFETY: 1. the stack is taken away again before it goes.
        checked(unsafe { libc::sigaltstack(&raw const there, before.as_mut_ptr()) });
        for _ in 0..10 {
            // SAFETY: 1. its handler is there.
            checked(unsafe { libc::raise(libc::SIGUSR2) });
        }
        // SAFETY: 1. what the kernel said was there.
        checked(unsafe { libc::sigaltstack(before.as_ptr(), ptr::null_mut()) });
        stack.used()
    };
    let used = thread::scope(|s| s.spawn(handle).join().unwrap());
    println!("a signal frame of up to {least} bytes and the handler: {used} bytes");
    thread::scope(|s| (0..20).for_each(|_| drop(s.spawn(handle))));
    assert_eq!(HANDLED.load(Ordering::Relaxed), 210);
    assert!(hooks.iter().all(|h| h.stats().missed == 0));
    rt.detach_all(&hooks).unwrap();
    assert_settled(&rt);
}
