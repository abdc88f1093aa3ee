//! The tracing helpers: what a program on a hook can ask.
//!
//! Numbers, arguments and results are the kernel's, so that compiled BPF objects find them.
//!
//! | id | helper | gives |
//! | --- | --- | --- |
//! | 4, 112, 113 | `probe_read(dst, size, src)` and its `_user` and `_kernel` forms | 0, or `-EFAULT` and zeros |
//! | 5 | `ktime_get_ns()` | time since boot, without sleep |
//! | 7 | `get_prandom_u32()` | a random number, not a secret one |
//! | 8 | `get_smp_processor_id()` | the hart |
//! | 14 | `get_current_pid_tgid()` | process << 32, thread |
//! | 173 | `get_func_ip(ctx)` | the hooked function |
//! | 183 | `get_func_arg(ctx, n, value)` | 0, or `-EINVAL` past the last slot |
//! | 184 | `get_func_ret(ctx, value)` | 0; after the function |
//! | 185 | `get_func_arg_cnt(ctx)` | how many argument slots there are |
//!
//! Key function: [`Env::tracing`]. Neighbours: `env`; `crate::raw` reads contexts. Source: kernel
//! `kernel/trace/bpf_trace.c`, `kernel/bpf/helpers.c`; `include/uapi/linux/bpf.h`.

#![expect(
    unsafe_code,
    reason = "helpers read and write what programs point them to"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use trampoline::Needs;

use super::env::Env;
use super::op::{Callee, Op};
use super::program::Program;
use crate::raw;

const GET_FUNC_IP: i32 = 173;
const GET_FUNC_ARG: i32 = 183;
const GET_FUNC_RET: i32 = 184;
const GET_FUNC_ARG_CNT: i32 = 185;

impl Env {
    /// An environment with the tracing helpers.
    ///
    /// Those that take a context are for programs on hooks; a program that calls one is given what
    /// it needs when it is attached.
    pub fn tracing() -> Self {
        // SAFETY:
        // 1. Each is called as its number says by programs that are sound: what they point to is
        //    theirs to answer for (`BpfProg::run`, `HookBuilder::raw`).
        let helper = |env: Self, id, func: ReadFn| unsafe { env.helper(id, func) };
        let mut env = Self::new();
        for id in [4, 112, 113] {
            env = helper(env, id, probe_read);
        }
        // SAFETY: 1. as above.
        env = unsafe { env.helper(5, ktime_get_ns as extern "C" fn() -> u64) };
        // SAFETY: 1. as above.
        env = unsafe { env.helper(7, get_prandom_u32 as extern "C" fn() -> u32) };
        // SAFETY: 1. as above.
        env = unsafe { env.helper(8, get_smp_processor_id as extern "C" fn() -> u32) };
        // SAFETY: 1. as above.
        env = unsafe { env.helper(14, get_current_pid_tgid as extern "C" fn() -> u64) };
        let ip = get_func_ip as unsafe extern "C" fn(*const u64) -> u64;
        // SAFETY: 1. as above.
        env = unsafe { env.helper(GET_FUNC_IP, ip) };
        let arg = get_func_arg as unsafe extern "C" fn(*const u64, u32, *mut u64) -> i64;
        // SAFETY: 1. as above.
        env = unsafe { env.helper(GET_FUNC_ARG, arg) };
        let ret = get_func_ret as unsafe extern "C" fn(*const u64, *mut u64) -> i64;
        // SAFETY: 1. as above.
        env = unsafe { env.helper(GET_FUNC_RET, ret) };
        let cnt = get_func_arg_cnt as unsafe extern "C" fn(*const u64) -> u64;
        // SAFETY: 1. as above.
        unsafe { env.helper(GET_FUNC_ARG_CNT, cnt) }
    }
}

/// What the helpers that `program` calls must find in its context.
pub(crate) fn needs(program: &Program) -> Needs {
    let calls = program.ops().iter().filter_map(|op| match op {
        Some(Op::Call(Callee::Helper(id))) => Some(*id),
        _ => None,
    });
    calls.fold(Needs::empty(), |needs, id| {
        needs
            | match id {
                GET_FUNC_IP => Needs::IP,
                GET_FUNC_ARG | GET_FUNC_RET | GET_FUNC_ARG_CNT => Needs::META,
                _ => Needs::empty(),
            }
    })
}

type ReadFn = unsafe extern "C" fn(*mut u8, u32, *const u8) -> i64;

/// Copies `size` bytes from an address that need not be one.
///
/// # Safety
/// 1. There is room for `size` bytes at `dst`.
pub(super) unsafe extern "C" fn probe_read(dst: *mut u8, size: u32, src: *const u8) -> i64 {
    let local = libc::iovec {
        iov_base: dst.cast(),
        iov_len: size as usize,
    };
    let remote = libc::iovec {
        iov_base: src.cast_mut().cast(),
        iov_len: size as usize,
    };
    let pid = std::process::id() as libc::pid_t;
    // SAFETY:
    // 1. The program has `size` bytes at `dst`.
    // 2. The kernel checks `remote`.
    let got = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    if got == size as isize {
        return 0;
    }
    // SAFETY: 1. as above.
    unsafe { dst.write_bytes(0, size as usize) };
    -i64::from(libc::EFAULT)
}

pub(super) extern "C" fn ktime_get_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: 1. `now` is live; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A counter, scrambled (splitmix64): nobody waits.
extern "C" fn get_prandom_u32() -> u32 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    static STATE: AtomicU64 = AtomicU64::new(0);
    if STATE.load(Ordering::Relaxed) == 0 {
        STATE.fetch_add(ktime_get_ns() | 1, Ordering::Relaxed);
    }
    let mut x = STATE.fetch_add(STEP, Ordering::Relaxed);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ x >> 31) as u32
}

extern "C" fn get_smp_processor_id() -> u32 {
    // SAFETY: 1. takes nothing, changes nothing.
    unsafe { libc::sched_getcpu() as u32 }
}

extern "C" fn get_current_pid_tgid() -> u64 {
    // SAFETY: 1. takes nothing, changes nothing.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    u64::from(std::process::id()) << 32 | tid as u64
}

unsafe extern "C" fn get_func_ip(ctx: *const u64) -> u64 {
    // SAFETY: 1. the program's context, attached with `needs`.
    unsafe { raw::get_func_ip(ctx) }
}

unsafe extern "C" fn get_func_arg(ctx: *const u64, n: u32, value: *mut u64) -> i64 {
    // SAFETY: 1. as above.
    let arg = unsafe { raw::get_func_arg(ctx, n.into()) };
    let Some(arg) = arg else {
        return -i64::from(libc::EINVAL);
    };
    // SAFETY: 1. the program has 8 bytes there.
    unsafe { value.write_unaligned(arg) };
    0
}

unsafe extern "C" fn get_func_ret(ctx: *const u64, value: *mut u64) -> i64 {
    // SAFETY: 1. as above; the program runs after the function.
    let ret = unsafe { raw::get_func_ret(ctx) };
    // SAFETY: 1. the program has 8 bytes there.
    unsafe { value.write_unaligned(ret) };
    0
}

unsafe extern "C" fn get_func_arg_cnt(ctx: *const u64) -> u64 {
    // SAFETY: 1. as above.
    unsafe { raw::get_func_arg_cnt(ctx) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_reads_as_zeros() {
        let (mut got, there) = ([1u8; 8], [7u8; 8]);
        // SAFETY: 1. eight bytes at `got`.
        let read = |dst: &mut [u8; 8], src| unsafe { probe_read(dst.as_mut_ptr(), 8, src) };
        assert_eq!(read(&mut got, there.as_ptr()), 0);
        assert_eq!(got, there);
        let nowhere = std::ptr::without_provenance(8);
        assert_eq!(read(&mut got, nowhere), -i64::from(libc::EFAULT));
        assert_eq!(got, [0; 8]);
    }

    #[test]
    fn time_goes_on_and_numbers_differ() {
        let before = ktime_get_ns();
        assert!(before > 0 && ktime_get_ns() >= before);
        let numbers: std::collections::BTreeSet<u32> =
            (0..1000).map(|_| get_prandom_u32()).collect();
        assert!(numbers.len() > 990, "{}", numbers.len());
    }

    #[test]
    fn process_and_thread_are_told_apart() {
        let here = get_current_pid_tgid();
        assert_eq!(here >> 32, u64::from(std::process::id()));
        fn there() -> u64 {
            get_current_pid_tgid()
        }
        let there = std::thread::spawn(there).join().unwrap();
        assert_eq!(there >> 32, here >> 32);
        assert_ne!(there as u32, here as u32);
    }
}
