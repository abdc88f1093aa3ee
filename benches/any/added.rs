//! What a hook adds to a call, by how the call is led away: by a pad, by a jump of one word or of
//! two, by a trap.
//!
//! | row | the function | what the call comes by |
//! | --- | --- | --- |
//! | `added/pad` | `tl_pad_at_0_mod_4` of the test library | its pad |
//! | `added/jump_near` | zlib's `compressBound`, as Debian ships it | `jal` |
//! | `added/jump_far` | the same | `auipc` and `jalr` |
//! | `added/trap` | one that only returns | `c.ebreak`, the signal, our handler |
//! | `added/trap_user` | the same | the same, without the kernel's share |
//! | `added/sigtrap` | the same, unhooked | no hook: `c.ebreak`, and a handler that steps over it |
//!
//! Each calls nothing, and carries one empty raw program (`li a0, 0; ret`) at its entry. A loop
//! calls it, hooked and not; the least of many stretches of one is subtracted from that of the
//! other, so loop, function and counting cancel, and what remains is divided by the calls.
//!
//! *What is counted.* Instructions of this thread in user space and in the kernel, whose share is
//! most of what a trap costs; a jump never gets there. Firmware (M mode) has none: breakpoints are
//! delegated past it. Under QEMU's `-icount` counts are exact but for timer ticks, which the least
//! leaves out. An unhooked function with a pad executes its nops, a hooked one does not: that is to
//! the pad's credit, as in `benches/trampoline.rs`.
//!
//! *Near and far.* A `jal` needs free address space within 1 MiB of the function, on a boundary of
//! 2 MiB, and where libraries are loaded is chance. So zlib is loaded and closed, with a little
//! more of the address space taken each time, until it lies as a row wants it; which jump it was is
//! read from the function.
//!
//! Peers, counted in the same way in the same VM under Linux 7.2 (DESIGN of this project): `uprobe`
//! with an empty BPF program, and `sigtrap`, which is the row of that name there.

use std::arch::asm;
use std::ffi::{c_int, c_long, c_void};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::{NonNull, null_mut};
use std::time::Duration;

use pack_alloc::{Config, HugePolicy, Near, PackAlloc};
use perf_event::Counter;
use rvbpf::{EntryKind, RawProg, Runtime, RxAddr};
use testlib::functions::tl_pad_at_0_mod_4;

use crate::NEAR_BYTES;
use crate::common::{Error, Goal, Row, Whose, counter, least};

type F = extern "C" fn(c_long, c_long) -> c_long;

/// What a jump may cost beyond a pad.
const GOAL: f64 = 6.0;
const UPROBE: (&str, f64) = ("uprobe", 1809.0);
const SIGTRAP: (&str, f64) = ("sigtrap", 4865.0);
const STRETCHES: usize = 200;

/// Adds the rows, and prints them.
pub(crate) fn measure(rows: &mut Vec<Row>) -> Result<(), Error> {
    let (mut all, mut user) = (counter(Whose::All)?, counter(Whose::User)?);
    // Before a handler of ours is there.
    let sigtrap = sigtrap(&mut all)?;
    let rt = Runtime::new()?;
    let pad = added(&mut all, &rt, tl_pad_at_0_mod_4, How::Pad)?;
    // First the one that leaves no pack within reach of the other.
    let far = Zlib::where_it_takes(How::FarJump)?;
    let jump_far = added(&mut all, &rt, far.compress_bound, How::FarJump)?;
    drop(far);
    let near = Zlib::where_it_takes(How::NearJump)?;
    let jump_near = added(&mut all, &rt, near.compress_bound, How::NearJump)?;
    let trap = added(&mut all, &rt, first, How::Trap)?;
    let trap_user = added(&mut user, &rt, first, How::Trap)?;
    let row = |name: &str, value, (peer, theirs): (&'static str, f64)| {
        Row::new(format!("added/{name}"), value, "insns").beside(peer, theirs)
    };
    let most = Goal::AtMost(pad + GOAL);
    let added = [
        row("pad", pad, UPROBE),
        row("jump_near", jump_near, UPROBE).wants(most),
        row("jump_far", jump_far, UPROBE).wants(most),
        row("trap", trap, SIGTRAP),
        row("trap_user", trap_user, SIGTRAP),
        row("sigtrap", sigtrap, SIGTRAP),
    ];
    print(&added);
    rows.extend(added);
    Ok(())
}

fn print(rows: &[Row]) {
    println!("instructions that an empty program at the entry adds to a call");
    println!("{:20}{:>9}{:>9}{:>9}", "", "added", "at most", "peer");
    for row in rows {
        let [goal, theirs] = row.cells();
        let peer = row.peer.unwrap_or_default();
        println!("{:20}{:>9}{goal:>9}{theirs:>9}  {peer}", row.row, row.value);
    }
    println!();
}

/// How a call is led away.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum How {
    Pad,
    NearJump,
    FarJump,
    Trap,
}

impl How {
    /// Calls of a stretch. Of traps fewer: a stretch is to end before a timer tick.
    fn calls(self) -> u64 {
        match self {
            How::Pad | How::NearJump | How::FarJump => 100,
            How::Trap => 20,
        }
    }

    /// Of a hooked function.
    fn of(f: F, kind: Option<EntryKind>) -> Option<Self> {
        const JAL: u16 = 0x6f;
        let at = f as *const u16;
        // SAFETY: 1. text of this process, on a boundary of 2; others may change it.
        let opcode = unsafe { at.read_volatile() } & 0x7f;
        Some(match kind? {
            EntryKind::Pad => How::Pad,
            EntryKind::Jump if opcode == JAL => How::NearJump,
            EntryKind::Jump => How::FarJump,
            EntryKind::Trap => How::Trap,
        })
    }
}

/// A function that only returns.
#[inline(never)]
extern "C" fn first(a: c_long, _: c_long) -> c_long {
    a
}

extern "C" fn empty(_: *mut u64) -> u64 {
    0
}

/// Instructions that an empty program at the entry of `f` adds to a call, led away by `how`.
fn added(counter: &mut Counter, rt: &Runtime, f: F, how: How) -> Result<f64, Error> {
    let (result, unhooked) = (f(1, 2), calls(counter, f, how)?);
    // SAFETY: 1. all that are given are C functions of two integers, or of the first of them.
    let builder = unsafe { rt.hook(f) }?;
    let builder = if how == How::Trap {
        builder.allow_trap()
    } else {
        builder
    };
    // SAFETY: 1. the program returns. 2. it does not look at its context.
    let hook = unsafe { builder.raw(RawProg::fentry(empty)) }.attach()?;
    let is = How::of(f, hook.kind());
    let hooked = calls(counter, f, how)?;
    let is_same = f(1, 2) == result;
    hook.detach()?;
    rt.synchronize(Duration::from_secs(10))?;
    let added = (hooked as f64 - unhooked as f64) / how.calls() as f64;
    // The program alone is two instructions.
    if is != Some(how) || !is_same || added < 2.0 {
        return Err(format!("a hook is to come by a {how:?}, but: {is:?}, {added}").into());
    }
    Ok(added)
}

/// Instructions of one stretch of calls of `f`, the least of many.
fn calls(counter: &mut Counter, f: F, how: How) -> Result<u64, Error> {
    let one = || {
        for _ in 0..how.calls() {
            black_box(black_box(f)(black_box(1), black_box(2)));
        }
    };
    least(counter, STRETCHES, one)
}

/// zlib, open.
struct Zlib {
    handle: NonNull<c_void>,
    /// `uLong compressBound(uLong)`.
    compress_bound: F,
}

impl Zlib {
    /// Where a pack is in reach of a `jal`, or where none is.
    fn where_it_takes(how: How) -> Result<Self, Error> {
        /// How far it moves each time at most, and how often: twice the way from pack to pack.
        const STEP_BYTES: usize = 64 << 10;
        const STEPS: usize = 64;
        for _ in 0..STEPS {
            let zlib = Self::open()?;
            if zlib.has_room() == (how == How::NearJump) {
                return Ok(zlib);
            }
            drop(zlib);
            take(STEP_BYTES)?;
        }
        Err(format!("zlib is never loaded where it takes a {how:?}").into())
    }

    fn open() -> Result<Self, Error> {
        // SAFETY: 1. a NUL-terminated name. 2. zlib's constructors expect nothing.
        let handle = unsafe { libc::dlopen(c"libz.so.1".as_ptr(), libc::RTLD_NOW) };
        let handle = NonNull::new(handle).ok_or("zlib is not on this machine (zlib1g)")?;
        // SAFETY: 1. an open handle, and a NUL-terminated name.
        let found = unsafe { libc::dlsym(handle.as_ptr(), c"compressBound".as_ptr()) };
        if found.is_null() {
            return Err("zlib has no compressBound".into());
        }
        // SAFETY: 1. a C function of one integer, which leaves a second argument alone.
        let compress_bound = unsafe { std::mem::transmute::<*mut c_void, F>(found) };
        Ok(Zlib {
            handle,
            compress_bound,
        })
    }

    /// Whether a pack can be had within reach of a `jal`.
    fn has_room(&self) -> bool {
        /// No stub is longer.
        const STUB_BYTES: usize = 256;
        let mut config = Config::default();
        config.huge = HugePolicy::Never;
        let near = Near::Within {
            of: RxAddr::new(self.compress_bound as usize as u64),
            reach_bytes: NEAR_BYTES,
        };
        PackAlloc::new(config).alloc(STUB_BYTES, 64, near).is_ok()
    }
}

impl Drop for Zlib {
    fn drop(&mut self) {
        // SAFETY: 1. the handle is given back once, and nobody calls the function any more.
        unsafe { libc::dlclose(self.handle.as_ptr()) };
    }
}

/// Takes address space from libraries that are loaded later, for good.
fn take(len_bytes: usize) -> Result<(), Error> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: 1. a new mapping where the kernel likes touches nothing.
    let at = unsafe { libc::mmap(null_mut(), len_bytes, libc::PROT_NONE, flags, -1, 0) };
    match at == libc::MAP_FAILED {
        true => Err(std::io::Error::last_os_error().into()),
        false => Ok(()),
    }
}

/// Instructions that a breakpoint adds whose handler steps over it.
fn sigtrap(counter: &mut Counter) -> Result<f64, Error> {
    let without = calls(counter, first, How::Trap)?;
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    let handler: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = step_over;
    // SAFETY: 1. zero bytes are a valid action.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    let before = exchange(action)?;
    let with = calls(counter, stopped, How::Trap)?;
    exchange(&before)?;
    Ok((with as f64 - without as f64) / How::Trap.calls() as f64)
}

/// Sets the action of SIGTRAP, and gives the one before.
fn exchange(new: &libc::sigaction) -> Result<libc::sigaction, Error> {
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: 1. a whole action, and room for another. 2. The handler changes its context alone.
    match unsafe { libc::sigaction(libc::SIGTRAP, new, before.as_mut_ptr()) } {
        // SAFETY: 1. it has been written.
        0 => Ok(unsafe { before.assume_init() }),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

/// As [`first`], with a breakpoint.
#[inline(never)]
extern "C" fn stopped(a: c_long, _: c_long) -> c_long {
    // SAFETY: 1. the handler goes on behind it, with all registers as they were.
    unsafe { asm!("c.ebreak", options(nomem, nostack, preserves_flags)) };
    a
}

unsafe extern "C" fn step_over(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    const C_EBREAK_BYTES: u64 = 2;
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: 1. the context of this signal, which is ours while the handler runs.
    let context = unsafe { &mut *context };
    context.uc_mcontext.__gregs[libc::REG_PC] += C_EBREAK_BYTES;
}
