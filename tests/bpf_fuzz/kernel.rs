//! The same program in the running kernel: loaded by bpf(2), run by `BPF_PROG_TEST_RUN`.
//!
//! ```text
//!   map value   0 ─────────── words ──▶│      │ r2 to r5 │ r0 │
//!               what the case's r1 points to     in         out
//! ```
//!
//! The program is of the type `SYSCALL`, which is called with a context of its own and returns 32
//! bits; so the case's first function is called from one that fetches the arguments from the map,
//! of which the verifier knows nothing, and leaves all of `r0` there. The map is mapped here.
//!
//! Key types: [`Kernel`], [`Refused`]. Neighbours: `profile` says what is generated for it. Source:
//! bpf(2); kernel `include/uapi/linux/bpf.h` (`union bpf_attr`), `net/bpf/test_run.c`
//! (`bpf_prog_test_run_syscall`).

#![expect(
    unsafe_code,
    reason = "bpf(2), and memory that the kernel's programs share"
)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rvbpf::Features;
use rvbpf::bpf::{AluOp, BpfInsn, BpfReg, Callee, Extend, Fault, Imm64, Op, Operand, Size, Width};

use super::case::Case;
use super::compare::{Failure, Machine, Outcome};
use super::profile::{Ordered, Profile};

/// The map's value: one page.
const MAP_BYTES: usize = 4096;
/// The words from which `r2` to `r5` are fetched.
const ARGS_WORD: usize = 500;
/// The word that `r0` is left in.
const R0_WORD: usize = 504;
/// As much of the verifier's log as is looked at, from its end.
const LOG_BYTES: usize = 1 << 16;

const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_SYSCALL: u32 = 31;
const PROG_SLEEPABLE: u32 = 1 << 4;
/// Whether the kernel compiles.
const JIT_ENABLE: &str = "/proc/sys/net/core/bpf_jit_enable";

/// `union bpf_attr` of `BPF_MAP_CREATE`, as far as it is used.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    max_entries: u32,
    flags: u32,
}

/// The same of `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insns: u32,
    insns_at: u64,
    license_at: u64,
    log_level: u32,
    log_bytes: u32,
    log_at: u64,
    kernel_version: u32,
    flags: u32,
}

/// The same of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_bytes_in: u32,
    data_bytes_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_bytes_in: u32,
    ctx_bytes_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    _padding: u32,
}

/// Why the kernel's verifier refuses a program.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Refused(pub(crate) String);

/// How the kernel runs programs.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Way {
    /// In its interpreter.
    Interpreted,
    /// As its compiler has made them.
    Compiled,
    /// It does not let itself be switched.
    AsItIs,
}

/// What comes of a case.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Kernel, interpreter and compiled code have done the same.
    Same,
    /// The kernel does not run it.
    Refused(Refused),
    /// They have not.
    Fails(Failure),
}

impl Verdict {
    /// Whether a smaller case with this verdict shows the same fault.
    pub(crate) fn is_difference(&self) -> bool {
        matches!(self, Self::Fails(failure) if failure.is_difference())
    }
}

/// The running kernel, with a map for programs to work on. While it lives, the kernel's compiler is
/// switched on and off.
pub(crate) struct Kernel {
    map: OwnedFd,
    words: *mut u64,
    ordered: Ordered,
    ways: Vec<Way>,
    now: Cell<Option<Way>>,
    /// What the switch is put back to.
    before: Option<Vec<u8>>,
}

impl Kernel {
    /// # Errors
    /// When this process may not load programs, or the kernel cannot run them.
    pub(crate) fn new() -> io::Result<Self> {
        let mut attr = MapCreate {
            map_type: MAP_TYPE_ARRAY,
            key_bytes: 4,
            value_bytes: MAP_BYTES as u32,
            max_entries: 1,
            flags: MAP_MMAPABLE,
        };
        let map = new_fd(bpf(MAP_CREATE, &mut attr)?);
        // SAFETY: 1. a new mapping, which touches no other.
        let words = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAP_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if words == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut kernel = Self {
            map,
            words: words.cast(),
            ordered: Ordered::Yes,
            ways: vec![Way::Interpreted, Way::Compiled],
            now: Cell::new(None),
            before: std::fs::read(JIT_ENABLE).ok(),
        };
        let can = |way: &Way| kernel.switch(*way).is_ok();
        let ways: Vec<Way> = kernel.ways.iter().copied().filter(can).collect();
        kernel.ways = match ways.is_empty() {
            true => vec![Way::AsItIs],
            false => ways,
        };
        if kernel.load(&ordered_program(), &mut []).is_err() {
            kernel.ordered = Ordered::No;
        }
        Ok(kernel)
    }

    /// What programs for it are made of.
    pub(crate) fn profile(&self) -> Profile {
        Profile::Kernel(self.ordered)
    }

    /// The ways in which it runs each program.
    pub(crate) fn ways(&self) -> &[Way] {
        &self.ways
    }

    /// Loads a case and runs it.
    ///
    /// # Errors
    /// When the kernel cannot run what its verifier has accepted.
    fn run(&self, case: &Case, way: Way) -> io::Result<Result<Outcome, Refused>> {
        self.switch(way)?;
        let insns = self.wrapped(case);
        let prog = match self.load(&insns, &mut []) {
            Ok(prog) => prog,
            Err(error) => return Ok(Err(self.reason(&insns, &error))),
        };
        let [r3, r4, r5] = case.args;
        self.store(0, &case.words);
        self.store(ARGS_WORD, &[8 * case.words.len() as u64, r3, r4, r5]);
        let mut attr = TestRun {
            prog_fd: prog.as_raw_fd() as u32,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attr)?;
        let words = (0..case.words.len()).map(|at| self.word(at)).collect();
        let r0 = self.word(R0_WORD);
        Ok(Ok(Outcome { r0, words }))
    }

    /// Runs a case everywhere.
    ///
    /// # Errors
    /// When the kernel cannot run what its verifier has accepted.
    pub(crate) fn compare(
        &self,
        machine: &Machine,
        case: &Case,
        features: Features,
    ) -> io::Result<Verdict> {
        let interpreted = match machine.run(case, features) {
            Ok(outcome) => outcome,
            Err(failure) => return Ok(Verdict::Fails(failure)),
        };
        for way in &self.ways {
            let kernel = match self.run(case, *way)? {
                Err(refused) => return Ok(Verdict::Refused(refused)),
                Ok(kernel) if kernel == interpreted => continue,
                Ok(kernel) => kernel,
            };
            return Ok(Verdict::Fails(Failure::KernelDiffers {
                way: *way,
                interpreted,
                kernel,
            }));
        }
        Ok(Verdict::Same)
    }

    fn switch(&self, way: Way) -> io::Result<()> {
        let to = match way {
            Way::AsItIs => return Ok(()),
            Way::Interpreted => "0",
            Way::Compiled => "1",
        };
        if self.now.replace(Some(way)) == Some(way) {
            return Ok(());
        }
        std::fs::write(JIT_ENABLE, to)
    }

    /// The case's instructions behind a function that calls them.
    fn wrapped(&self, case: &Case) -> Vec<BpfInsn> {
        use BpfReg::{R0, R1, R2, R3, R4, R5, R6};
        let fd = self.map.as_raw_fd();
        let mut ops = vec![
            Op::LdImm64 {
                dst: R6,
                imm: Imm64::MapValue { fd, off: 0 },
            },
            mov(R1, Operand::Reg(R6)),
        ];
        let word = |index: usize| (8 * index) as i16;
        for (i, dst) in [R2, R3, R4, R5].into_iter().enumerate() {
            ops.push(Op::Load {
                size: Size::Dw,
                extend: Extend::Zero,
                fault: Fault::Fatal,
                dst,
                src: R6,
                off: word(ARGS_WORD + i),
            });
        }
        ops.extend([
            // Over the three that follow.
            Op::Call(Callee::Local(3)),
            Op::Store {
                size: Size::Dw,
                dst: R6,
                off: word(R0_WORD),
                src: Operand::Reg(R0),
            },
            mov(R0, Operand::Imm(0)),
            Op::Exit,
        ]);
        let mut insns = encoded(&ops);
        insns.extend(case.insns());
        insns
    }

    fn load(&self, insns: &[BpfInsn], log: &mut [u8]) -> io::Result<OwnedFd> {
        let bytes: Vec<u8> = insns.iter().flat_map(|insn| insn.to_bytes()).collect();
        let mut attr = ProgLoad {
            prog_type: PROG_TYPE_SYSCALL,
            insns: insns.len() as u32,
            insns_at: bytes.as_ptr() as u64,
            license_at: c"Dual MIT/GPL".as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_bytes: log.len() as u32,
            log_at: if log.is_empty() {
                0
            } else {
                log.as_mut_ptr() as u64
            },
            kernel_version: 0,
            flags: PROG_SLEEPABLE,
        };
        bpf(PROG_LOAD, &mut attr).map(new_fd)
    }

    /// The last line of the verifier's log but for its statistics, without the numbers.
    fn reason(&self, insns: &[BpfInsn], error: &io::Error) -> Refused {
        let mut log = vec![0; LOG_BYTES];
        // The log may be larger than its buffer, which then holds the end.
        let _ = self.load(insns, &mut log);
        let text = String::from_utf8_lossy(&log);
        let text = text.trim_end_matches('\0');
        let line = text
            .lines()
            .rfind(|line| !line.is_empty() && !line.starts_with("processed "));
        let Some(line) = line else {
            return Refused(error.to_string());
        };
        let mut reason = String::new();
        for c in line.chars() {
            match c.is_ascii_digit() {
                true if reason.ends_with('#') => {}
                true => reason.push('#'),
                false => reason.push(c),
            }
        }
        Refused(reason)
    }

    fn store(&self, from: usize, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            // SAFETY: 1. words of a case and its arguments lie inside the mapping.
            let place = unsafe { self.words.add(from + i) };
            // SAFETY: 1. as above; no program runs now.
            unsafe { place.write_volatile(*word) };
        }
    }

    fn word(&self, at: usize) -> u64 {
        // SAFETY: 1. as in `store`.
        let place = unsafe { self.words.add(at) };
        // SAFETY: 1. as in `store`.
        unsafe { place.read_volatile() }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // What could not be switched is as it was.
            let _ = std::fs::write(JIT_ENABLE, before);
        }
        // SAFETY: 1. `new` has mapped it, and nobody has its address.
        unsafe { libc::munmap(self.words.cast(), MAP_BYTES) };
    }
}

fn mov(dst: BpfReg, src: Operand) -> Op {
    Op::Alu {
        op: AluOp::Mov,
        width: Width::W64,
        dst,
        src,
    }
}

fn encoded(ops: &[Op]) -> Vec<BpfInsn> {
    let halves = ops.iter().map(|op| op.encode());
    halves
        .flat_map(|(first, second)| std::iter::once(first).chain(second))
        .collect()
}

/// A program with a load-acquire.
fn ordered_program() -> Vec<BpfInsn> {
    let (size, dst, src, off) = (Size::Dw, BpfReg::R0, BpfReg::R10, -8);
    let store = Op::Store {
        size,
        dst: src,
        off,
        src: Operand::Imm(0),
    };
    let load = Op::LoadAcquire {
        size,
        dst,
        src,
        off,
    };
    encoded(&[store, load, Op::Exit])
}

/// bpf(2).
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY:
    // 1. `attr` is what the kernel takes for `command`, from its beginning on; what it leaves out
    //    is zero to the kernel.
    // 2. What it points to lives as long as the call, and is written to where the kernel writes.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    match i32::try_from(rc) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

fn new_fd(fd: i32) -> OwnedFd {
    // SAFETY: 1. the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
