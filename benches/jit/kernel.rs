//! The kernel's compiler, by bpf(2).
//!
//! Key types: [`Compiler`], [`KernelProg`], [`Map`]. Source: kernel `include/uapi/linux/bpf.h` (`union bpf_attr`,
//! `struct bpf_prog_info`), `net/bpf/test_run.c`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::measure::Error;

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;
const OBJ_GET_INFO_BY_FD: i32 = 15;

/// The beginning of `union bpf_attr`, as words; what is not set is zero.
type Attr = [u64; 18];

/// Two 32-bit fields, the first one first.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

fn bpf(command: i32, attr: &mut Attr) -> io::Result<i32> {
    let bytes = size_of::<Attr>();
    // SAFETY:
    // 1. `attr` has so many bytes.
    // 2. Its pointers are to memory that is there and as large as the command uses: what each caller
    //    below sees to.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), bytes) };
    match rc {
        0.. => Ok(rc as i32),
        _ => Err(io::Error::last_os_error()),
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: 1. the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The kernel's compiler, switched on as long as this lives.
pub(crate) struct Compiler {
    before: String,
}

impl Compiler {
    const SWITCH: &str = "/proc/sys/net/core/bpf_jit_enable";

    pub(crate) fn on() -> Result<Self, Error> {
        let switch = |e| format!("{}: {e}: this wants root", Self::SWITCH);
        let before = std::fs::read_to_string(Self::SWITCH).map_err(switch)?;
        if before.trim() == "0" {
            std::fs::write(Self::SWITCH, "1").map_err(switch)?;
        }
        Ok(Self { before })
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        // As it was; there is nobody to tell.
        let _ = std::fs::write(Self::SWITCH, &self.before);
    }
}

/// An array of one value: a program's memory.
pub(crate) struct Map {
    fd: OwnedFd,
    bytes: usize,
}

impl Map {
    pub(crate) fn new(value: &[u8]) -> Result<Self, Error> {
        const ARRAY: u32 = 2;
        let mut attr = Attr::default();
        attr[0] = pair(ARRAY, 4);
        attr[1] = pair(u32::try_from(value.len())?, 1);
        let fd = bpf(MAP_CREATE, &mut attr).map_err(|e| format!("BPF_MAP_CREATE: {e}"))?;
        let map = Self {
            fd: owned(fd),
            bytes: value.len(),
        };
        map.element(MAP_UPDATE_ELEM, value.as_ptr().expose_provenance())?;
        Ok(map)
    }

    pub(crate) fn fd(&self) -> u32 {
        self.fd.as_raw_fd() as u32
    }

    pub(crate) fn value(&self) -> Result<Vec<u8>, Error> {
        // The kernel counts values in units of 8 bytes.
        let mut value = vec![0_u8; self.bytes.next_multiple_of(8)];
        self.element(MAP_LOOKUP_ELEM, value.as_mut_ptr().expose_provenance())?;
        Ok(value)
    }

    fn element(&self, command: i32, value: usize) -> Result<(), Error> {
        let key = 0_u32;
        let mut attr = Attr::default();
        attr[0] = pair(self.fd(), 0);
        attr[1] = (&raw const key).expose_provenance() as u64;
        attr[2] = value as u64;
        bpf(command, &mut attr).map_err(|e| format!("the map's value: {e}"))?;
        Ok(())
    }
}

/// A program that the kernel has compiled.
pub(crate) struct KernelProg(OwnedFd);

impl KernelProg {
    pub(crate) fn load(insns: &[u64]) -> Result<Self, Error> {
        match Self::try_load(insns, &mut []) {
            Ok(prog) => Ok(prog),
            Err(error) => {
                let mut log = vec![0; 1 << 20];
                // For its words.
                let _ = Self::try_load(insns, &mut log);
                let text = String::from_utf8_lossy(&log);
                let lines: Vec<&str> = text.trim_end_matches('\0').lines().collect();
                let tail = lines[lines.len().saturating_sub(20)..].join("\n");
                Err(format!("the kernel refuses it: {error}\n{tail}").into())
            }
        }
    }

    fn try_load(insns: &[u64], log: &mut [u8]) -> io::Result<Self> {
        const SOCKET_FILTER: u32 = 1;
        let license = c"Dual MIT/GPL";
        let mut attr = Attr::default();
        attr[0] = pair(SOCKET_FILTER, insns.len() as u32);
        attr[1] = insns.as_ptr().expose_provenance() as u64;
        attr[2] = license.as_ptr().expose_provenance() as u64;
        if !log.is_empty() {
            attr[3] = pair(1, log.len() as u32);
            attr[4] = log.as_mut_ptr().expose_provenance() as u64;
        }
        bpf(PROG_LOAD, &mut attr).map(|fd| Self(owned(fd)))
    }

    /// Runs it so many times; gives the result of the last.
    pub(crate) fn run(&self, runs: u64) -> Result<u32, Error> {
        /// The least that is a packet.
        const PACKET: [u8; 64] = [0; 64];
        let mut attr = Attr::default();
        attr[0] = pair(self.0.as_raw_fd() as u32, 0);
        attr[1] = pair(PACKET.len() as u32, 0);
        attr[2] = PACKET.as_ptr().expose_provenance() as u64;
        attr[4] = pair(u32::try_from(runs)?, 0);
        bpf(PROG_TEST_RUN, &mut attr).map_err(|e| format!("BPF_PROG_TEST_RUN: {e}"))?;
        Ok((attr[0] >> 32) as u32)
    }

    /// Its code.
    pub(crate) fn image(&self) -> Result<Vec<u8>, Error> {
        let len = (self.info(&mut [])?[2]) as u32 as usize;
        if len == 0 {
            return Err("the kernel does not compile, or does not show its code".into());
        }
        let mut image = vec![0; len];
        self.info(&mut image)?;
        match image.iter().all(|byte| *byte == 0) {
            true => Err("the kernel does not show its code: sysctl kernel.kptr_restrict=0".into()),
            false => Ok(image),
        }
    }

    /// The beginning of `struct bpf_prog_info`; the code goes to `image`.
    fn info(&self, image: &mut [u8]) -> Result<[u64; 32], Error> {
        let mut info = [0_u64; 32];
        if !image.is_empty() {
            info[2] = pair(image.len() as u32, 0);
            info[3] = image.as_mut_ptr().expose_provenance() as u64;
        }
        let mut attr = Attr::default();
        attr[0] = pair(self.0.as_raw_fd() as u32, size_of_val(&info) as u32);
        attr[1] = info.as_mut_ptr().expose_provenance() as u64;
        bpf(OBJ_GET_INFO_BY_FD, &mut attr).map_err(|e| format!("BPF_OBJ_GET_INFO_BY_FD: {e}"))?;
        Ok(info)
    }
}
