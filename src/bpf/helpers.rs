//! The tracing helpers: what a program on a hook can ask.
//!
//! Numbers, arguments and results are the kernel's, so that compiled BPF objects find them.
//!
//! | id | helper | gives |
//! | --- | --- | --- |
//! | 4, 112, 113 | `probe_read(dst, size, src)` and its `_user` and `_kernel` forms | 0, or `-EFAULT` and zeros |
//! | 5 | `ktime_get_ns()` | time since boot, without sleep |
//! | 6 | `trace_printk(fmt, size, a, b, c)` | how much it printed, or `-EINVAL`: see [`trace_pipe`] |
//! | 7 | `get_prandom_u32()` | a random number, not a secret one |
//! | 8 | `get_smp_processor_id()` | the hart |
//! | 14 | `get_current_pid_tgid()` | process << 32, thread |
//! | 15 | `get_current_uid_gid()` | group << 32, user |
//! | 16 | `get_current_comm(buf, size)` | 0, and the thread's name |
//! | 36 | `probe_write_user(dst, src, len)` | 0, or `-EFAULT` |
//! | 42 | `get_numa_node_id()` | the node of the hart |
//! | 45, 114, 115 | `probe_read_str(dst, size, src)` and its forms | its length with the zero, or `-EFAULT` |
//! | 125 | `ktime_get_boot_ns()` | time since boot, with sleep |
//! | 148 | `copy_from_user(dst, size, src)` | as `probe_read` |
//! | 160 | `ktime_get_coarse_ns()` | as 5, as of the last tick |
//! | 165 | `snprintf(to, size, fmt, data, len)` | how much it takes, or `-EINVAL` |
//! | 173 | `get_func_ip(ctx)` | the hooked function |
//! | 174 | `get_attach_cookie(ctx)` | [`RawProg::cookie`](crate::RawProg::cookie), or 0 |
//! | 177 | `trace_vprintk(fmt, size, data, len)` | as 6 |
//! | 182 | `strncmp(a, len, b)` | -1, 0, 1 |
//! | 183 | `get_func_arg(ctx, n, value)` | 0, or `-EINVAL` past the last slot |
//! | 184 | `get_func_ret(ctx, value)` | 0, or `-EOPNOTSUPP` where there is none |
//! | 185 | `get_func_arg_cnt(ctx)` | how many argument slots there are |
//!
//! Those that are a load or two, 8, 173, 174 and 183 to 185, are not called by compiled code
//! (`jit::inline`).
//!
//! | file | holds |
//! | --- | --- |
//! | `memory` | what may not be there |
//! | `printf`, `trace` | formats, and where lines go |
//! | `rseq` | where a thread finds its hart |
//!
//! Key functions: [`Env::tracing`], [`trace_pipe`]. Neighbours: `env`; `crate::raw` reads contexts.
//! Source: kernel `kernel/trace/bpf_trace.c`, `kernel/bpf/helpers.c`; `include/uapi/linux/bpf.h`.

#![expect(
    unsafe_code,
    reason = "helpers read contexts and write what programs point them to"
)]

mod memory;
mod printf;
mod rseq;
mod trace;

use std::sync::atomic::{AtomicU64, Ordering};

use trampoline::Needs;

pub(super) use self::memory::probe_read;
pub use self::trace::{TraceSink, trace_pipe};
use super::env::{Env, Inline};
use super::op::{Callee, Op};
use super::program::Program;
use crate::raw;

const GET_FUNC_IP: i32 = 173;
const GET_ATTACH_COOKIE: i32 = 174;
const GET_FUNC_ARG: i32 = 183;
const GET_FUNC_RET: i32 = 184;
const GET_FUNC_ARG_CNT: i32 = 185;

/// `dst`, `size`, `src`.
type Read = unsafe extern "C" fn(*mut u8, u32, *const u8) -> i64;
/// A string twice, and a length.
type Compare = unsafe extern "C" fn(*const u8, u32, *const u8) -> i64;

impl Env {
    /// An environment with the tracing helpers.
    ///
    /// Those that take a context are for programs on hooks; a program that calls one is given what
    /// it needs when it is attached.
    pub fn tracing() -> Self {
        macro_rules! add {
            ($($id:expr, $func:path as $ty:ty;)*) => {{
                let env = Self::new();
                $(
                    // SAFETY:
                    // 1. Each is called as its number says by programs that are sound: what they
                    //    point to is theirs to answer for (`BpfProg::run`, `HookBuilder::raw`).
                    let env = unsafe { env.helper($id, $func as $ty) };
                )*
                env
            }};
        }
        let env = add! {
            4, memory::probe_read as Read;
            5, ktime_get_ns as extern "C" fn() -> u64;
            6, trace::trace_printk as unsafe extern "C" fn(*const u8, u32, u64, u64, u64) -> i64;
            7, get_prandom_u32 as extern "C" fn() -> u32;
            14, get_current_pid_tgid as extern "C" fn() -> u64;
            15, get_current_uid_gid as extern "C" fn() -> u64;
            16, get_current_comm as unsafe extern "C" fn(*mut u8, u32) -> i64;
            36, memory::probe_write_user as unsafe extern "C" fn(*mut u8, *const u8, u32) -> i64;
            42, get_numa_node_id as extern "C" fn() -> u32;
            45, memory::probe_read_str as Read;
            112, memory::probe_read as Read;
            113, memory::probe_read as Read;
            114, memory::probe_read_str as Read;
            115, memory::probe_read_str as Read;
            125, ktime_get_boot_ns as extern "C" fn() -> u64;
            148, memory::probe_read as Read;
            160, ktime_get_coarse_ns as extern "C" fn() -> u64;
            165, trace::snprintf
                as unsafe extern "C" fn(*mut u8, u32, *const libc::c_char, *const u64, u32) -> i64;
            177, trace::trace_vprintk
                as unsafe extern "C" fn(*const u8, u32, *const u64, u32) -> i64;
            182, memory::strncmp as Compare;
        };
        env.with_inlined()
    }

    fn with_inlined(self) -> Self {
        macro_rules! add {
            ($($id:expr, $func:path as $ty:ty = $inline:expr;)*) => {{
                let env = self;
                $(
                    // SAFETY:
                    // 1. As in `tracing`.
                    // 2. `tests/bpf_inline.rs` compares them.
                    let env = unsafe { env.inlined($id, $func as $ty, $inline) };
                )*
                env
            }};
        }
        let cpu = rseq::cpu_id_off().map(|tp_off| Inline::ProcessorId { tp_off });
        add! {
            8, get_smp_processor_id as extern "C" fn() -> u32 = cpu;
            GET_FUNC_IP, get_func_ip as unsafe extern "C" fn(*const u64) -> u64
                = Some(Inline::FuncIp);
            GET_ATTACH_COOKIE, get_attach_cookie as unsafe extern "C" fn(*const u64) -> u64
                = Some(Inline::AttachCookie);
            GET_FUNC_ARG, get_func_arg as unsafe extern "C" fn(*const u64, u32, *mut u64) -> i64
                = Some(Inline::FuncArg);
            GET_FUNC_RET, get_func_ret as unsafe extern "C" fn(*const u64, *mut u64) -> i64
                = Some(Inline::FuncRet);
            GET_FUNC_ARG_CNT, get_func_arg_cnt as unsafe extern "C" fn(*const u64) -> u64
                = Some(Inline::FuncArgCnt);
        }
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
                GET_ATTACH_COOKIE => Needs::COOKIE,
                GET_FUNC_ARG | GET_FUNC_ARG_CNT => Needs::META,
                GET_FUNC_RET => Needs::RET,
                _ => Needs::empty(),
            }
    })
}

/// An error as helpers return it.
fn errno(number: i32) -> i64 {
    -i64::from(number)
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: 1. `now` is live; these clocks are always there.
    unsafe { libc::clock_gettime(id, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub(super) extern "C" fn ktime_get_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

extern "C" fn ktime_get_boot_ns() -> u64 {
    clock(libc::CLOCK_BOOTTIME)
}

extern "C" fn ktime_get_coarse_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC_COARSE)
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

extern "C" fn get_current_uid_gid() -> u64 {
    // SAFETY: 1. takes nothing, changes nothing.
    let gid = unsafe { libc::getgid() };
    // SAFETY: 1. as above.
    let uid = unsafe { libc::getuid() };
    u64::from(gid) << 32 | u64::from(uid)
}

/// The thread's name, with zeros behind it. Kernel: `TASK_COMM_LEN`.
fn current_comm() -> [u8; 16] {
    let mut comm = [0; 16];
    // SAFETY: 1. so many bytes it takes.
    unsafe { libc::prctl(libc::PR_GET_NAME, comm.as_mut_ptr()) };
    comm
}

/// # Safety
/// 1. There are `size` bytes at `buf`.
unsafe extern "C" fn get_current_comm(buf: *mut u8, size: u32) -> i64 {
    let Some(last) = (size as usize).checked_sub(1) else {
        return errno(libc::EINVAL);
    };
    let comm = current_comm();
    // SAFETY: 1. caller's contract.
    unsafe { buf.write_bytes(0, size as usize) };
    // SAFETY: 1. caller's contract; the last one stays zero.
    unsafe { buf.copy_from_nonoverlapping(comm.as_ptr(), last.min(comm.len())) };
    0
}

extern "C" fn get_numa_node_id() -> u32 {
    let (mut cpu, mut node) = (0u32, 0u32);
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: 1. two live numbers.
    unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, &raw mut node, nothing) };
    node
}

unsafe extern "C" fn get_func_ip(ctx: *const u64) -> u64 {
    // SAFETY: 1. the program's context, attached with `needs`.
    unsafe { raw::get_func_ip(ctx) }
}

unsafe extern "C" fn get_func_arg(ctx: *const u64, n: u32, value: *mut u64) -> i64 {
    // SAFETY: 1. as above.
    let arg = unsafe { raw::get_func_arg(ctx, n.into()) };
    let Some(arg) = arg else {
        return errno(libc::EINVAL);
    };
    // SAFETY: 1. the program has 8 bytes there.
    unsafe { value.write_unaligned(arg) };
    0
}

unsafe extern "C" fn get_func_ret(ctx: *const u64, value: *mut u64) -> i64 {
    // SAFETY: 1. as above.
    let ret = unsafe { raw::get_func_ret_checked(ctx) };
    let Some(ret) = ret else {
        return errno(libc::EOPNOTSUPP);
    };
    // SAFETY: 1. the program has 8 bytes there.
    unsafe { value.write_unaligned(ret) };
    0
}

unsafe extern "C" fn get_attach_cookie(ctx: *const u64) -> u64 {
    // SAFETY: 1. as above.
    unsafe { raw::get_attach_cookie(ctx) }
}

unsafe extern "C" fn get_func_arg_cnt(ctx: *const u64) -> u64 {
    // SAFETY: 1. as above.
    unsafe { raw::get_func_arg_cnt(ctx) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_numbers_differ() {
        let before = ktime_get_ns();
        assert!(before > 0 && ktime_get_ns() >= before);
        let later = [ktime_get_coarse_ns(), ktime_get_boot_ns()];
        assert!(later[0] > 0 && later[1] >= before, "{before} {later:?}");
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

    #[test]
    fn a_thread_is_told_its_name_and_its_users() {
        fn named() {
            for (room, want) in [
                (16, &b"who\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]),
                (3, b"wh\0"),
                (1, b"\0"),
                (
                    20,
                    &[
                        b'w', b'h', b'o', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                    ],
                ),
            ] {
                let mut buf = [0xff; 32];
                // SAFETY: 1. so many bytes.
                assert_eq!(unsafe { get_current_comm(buf.as_mut_ptr(), room) }, 0);
                assert_eq!(&buf[..room as usize], want);
                assert!(buf[room as usize..].iter().all(|b| *b == 0xff));
            }
            // SAFETY: 1. none.
            let none = unsafe { get_current_comm(std::ptr::null_mut(), 0) };
            assert_eq!(none, errno(libc::EINVAL));
        }
        let thread = std::thread::Builder::new().name("who".into());
        thread.spawn(named).unwrap().join().unwrap();
        let file = std::fs::metadata("/proc/self").unwrap();
        use std::os::unix::fs::MetadataExt;
        let want = u64::from(file.gid()) << 32 | u64::from(file.uid());
        assert_eq!(get_current_uid_gid(), want);
    }

    #[test]
    fn harts_and_nodes_are_there() {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let count = cpus.lines().filter(|l| l.starts_with("processor")).count();
        assert!((get_smp_processor_id() as usize) < count.max(1));
        let node = format!("/sys/devices/system/node/node{}", get_numa_node_id());
        let no_nodes = !std::path::Path::new("/sys/devices/system/node").exists();
        assert!(no_nodes || std::path::Path::new(&node).exists(), "{node}");
    }
}
