//! A thread that is held between the words of a jump keeps what `synchronize` takes apart.

use std::arch::global_asm;
use std::ffi::{c_int, c_long};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rvbpf::{EntryKind, Error, Runtime, TrampError};

use crate::common::{PATIENCE, assert_settled, code_at, hook, serial};
use crate::fns::{CASES, Case, F, Takes};

// Called like a function; its signal handler goes on elsewhere.
global_asm!(
    ".globl jp_elsewhere",
    ".balign 4",
    "jp_elsewhere:",
    ".word 0",
);

unsafe extern "C" {
    fn jp_elsewhere(x: c_long) -> c_long;
}

/// Where a thread goes on, and with what in which register.
static PC: AtomicU64 = AtomicU64::new(0);
static REG: AtomicUsize = AtomicUsize::new(0);
static VALUE: AtomicU64 = AtomicU64::new(0);
static IS_HELD: AtomicBool = AtomicBool::new(false);
static MAY_GO: AtomicBool = AtomicBool::new(false);

extern "C" fn hold(_: c_int, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: 1. the kernel passes the context that it will restore.
    let regs = unsafe { &mut (*context).uc_mcontext.__gregs };
    regs[REG.load(Ordering::SeqCst)] = VALUE.load(Ordering::SeqCst);
    regs[0] = PC.load(Ordering::SeqCst);
    IS_HELD.store(true, Ordering::SeqCst);
    while !MAY_GO.load(Ordering::SeqCst) {
        // SAFETY: 1. sleeping has no conditions.
        unsafe { libc::usleep(1000) };
    }
}

/// Lets the thread that is held go, also when the test has failed.
struct LetsGo;

impl Drop for LetsGo {
    fn drop(&mut self) {
        MAY_GO.store(true, Ordering::SeqCst);
    }
}

/// The second word of the far jump at `f`, and what the first one has left in its register.
fn between(f: F) -> Option<(u64, usize, u64)> {
    let code = code_at(f as *const ());
    let auipc = u32::from_le_bytes([code[0], code[1], code[2], code[3]]);
    let at = f as usize as u64;
    let far = i64::from((auipc & 0xffff_f000) as i32);
    let is_far = auipc & 0x7f == 0x17;
    is_far.then(|| {
        (
            at + 4,
            (auipc >> 7 & 31) as usize,
            at.wrapping_add_signed(far),
        )
    })
}

/// Takes a page of every place within 8 MiB of `f` where a pack could be.
fn crowd(f: F) {
    const PACK_BYTES: usize = 2 << 20;
    let first = (f as usize & !(PACK_BYTES - 1)) - 4 * PACK_BYTES;
    for place in (first..first + 9 * PACK_BYTES).step_by(PACK_BYTES) {
        let at = std::ptr::without_provenance_mut(place);
        let (anonymous, fixed) = (
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            libc::MAP_FIXED_NOREPLACE,
        );
        // SAFETY: 1. nothing is replaced. Where something is already, no pack can be.
        unsafe { libc::mmap(at, 4096, libc::PROT_NONE, anonymous | fixed, -1, 0) };
    }
}

fn is_in_use(got: &Result<(), Error>) -> bool {
    matches!(
        got,
        Err(Error::Tramp(TrampError::StillInUse { retired: 1.. }))
    )
}

#[test]
fn synchronize_waits_for_a_thread_between_the_words_of_a_jump() {
    let _one = serial();
    // Far from all packs: what is near takes one word, in the middle of which nobody is.
    crowd(CASES[0].f);
    let rt = Runtime::new().unwrap();
    let hooked = |case: &Case| {
        let hooked = hook(&rt, case.f).on_entry(|_| {}).attach().unwrap();
        assert_eq!(hooked.kind(), Some(EntryKind::Jump));
        hooked.detach().unwrap();
        between(case.f)
    };
    let jumps = CASES.iter().filter(|c| c.takes == Takes::Jump);
    let before: Vec<_> = jumps.clone().map(|c| code_at(c.f as *const ())).collect();
    let found = jumps
        .clone()
        .enumerate()
        .find_map(|(i, c)| Some((i, c, hooked(c)?)));
    let (i, case, (pc, reg, value)) = found.expect("a far jump");
    PC.store(pc, Ordering::SeqCst);
    REG.store(reg, Ordering::SeqCst);
    VALUE.store(value, Ordering::SeqCst);
    // SAFETY: 1. all zero is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = hold as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: 1. the structure is live; the handler is async-signal-safe.
    unsafe { libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) };
    thread::scope(|scope| {
        let lets_go = LetsGo;
        // SAFETY: 1. its handler makes a call of `case.f` of it.
        let held = scope.spawn(|| unsafe { jp_elsewhere(7) });
        while !IS_HELD.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        let got = rt.synchronize(Duration::from_millis(300));
        let took = start.elapsed();
        assert!(is_in_use(&got), "{got:?}");
        assert!(took >= Duration::from_millis(300), "{took:?}");
        assert!(between(case.f).is_some(), "it is as it was");
        assert_eq!((case.f)(7), (case.want)(7));
        let waiting = scope.spawn(|| rt.synchronize(PATIENCE));
        thread::sleep(Duration::from_millis(200));
        assert!(!waiting.is_finished(), "somebody is inside");
        drop(lets_go);
        assert_eq!(held.join().unwrap(), (case.want)(7));
        assert!(waiting.join().unwrap().is_ok());
        assert_eq!(code_at(case.f as *const ()), before[i], "its own again");
    });
    assert_settled(&rt);
}
