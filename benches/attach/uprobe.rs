//! The peers: the kernel's uprobes at the same functions, one by one by `perf_event_open`, and all
//! of a batch at once as a BPF link of kind `uprobe_multi`.
//!
//! Left out, with a line that says so, where the kernel has no uprobes or does not let us.
//!
//! Source: kernel `include/uapi/linux/bpf.h` (`BPF_TRACE_UPROBE_MULTI`), `kernel/trace/bpf_trace.c`
//! (`bpf_uprobe_multi_link_attach`), `kernel/events/core.c` (`perf_uprobe_event_init`).

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use text::RxAddr;

use crate::common::{Error, Row};
use crate::hooks::Subject;

/// So many one by one.
const SINGLES: usize = 100;

/// Probes of what the subject has hooked.
pub(crate) fn measure(
    subject: &Subject,
    batches: impl Iterator<Item = usize>,
    rows: &mut Vec<Row>,
) -> Result<(), Error> {
    let exe = std::env::current_exe()?.to_string_lossy().into_owned();
    let path = subject.path.clone().unwrap_or(exe);
    let offsets = offsets(&path, &subject.funcs)?;
    let path = CString::new(path)?;
    let n = offsets.len().min(SINGLES);
    match one_by_one(&path, &offsets[..n]) {
        Ok(times) => add(rows, subject, &format!("uprobe/one_by_one/{n}"), n, times),
        Err(e) => println!("{}: no uprobes here: {e}", subject.name),
    }
    for n in batches {
        match multi(&path, &offsets[..n]) {
            Ok(times) => add(rows, subject, &format!("uprobe_multi/{n}"), n, times),
            Err(e) => {
                println!("{}: no uprobe_multi here: {e}", subject.name);
                break;
            }
        }
    }
    Ok(())
}

fn add(rows: &mut Vec<Row>, subject: &Subject, what: &str, n: usize, times: [Duration; 2]) {
    for (step, time) in ["attach", "detach"].into_iter().zip(times) {
        let us = time.as_secs_f64() * 1e6 / n as f64;
        rows.push(Row::new(
            format!("{}/{what}/{step}/us", subject.name),
            us,
            "us",
        ));
    }
}

/// Where the file has these addresses.
fn offsets(path: &str, funcs: &[RxAddr]) -> Result<Vec<u64>, Error> {
    let maps = text::ProcMaps::read()?;
    let is_it = |m: &&text::Mapping| m.path == path.as_bytes();
    // Pages that hold hooks are another file's for as long as they do, so what is not found there
    // is reckoned from the object's first mapping: text is mapped as the file has it.
    let first = maps
        .all()
        .iter()
        .find(is_it)
        .ok_or("the object is not mapped")?;
    let offset = |f: &RxAddr| {
        let at = maps
            .all()
            .iter()
            .filter(is_it)
            .find(|m| m.range.contains(*f));
        let from = at.unwrap_or(first);
        f.get() - from.range.start.get() + from.off_bytes
    };
    Ok(funcs.iter().map(offset).collect())
}

/// Attaches and detaches a probe at each offset.
fn one_by_one(path: &CString, offsets: &[u64]) -> io::Result<[Duration; 2]> {
    let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
    let kind: u32 = kind.trim().parse().map_err(io::Error::other)?;
    let start = Instant::now();
    let mut probes = Vec::new();
    for offset in offsets {
        let mut attr = [0_u64; 17];
        attr[0] = u64::from(kind) | (size_of_val(&attr) as u64) << 32;
        attr[7] = path.as_ptr().expose_provenance() as u64;
        attr[8] = *offset;
        // SAFETY: 1. the attributes have the length that they say. 2. The path outlives the call.
        let rc = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), 0, -1, -1, 0) };
        probes.push(owned(rc)?);
    }
    let attached = start.elapsed();
    let start = Instant::now();
    drop(probes);
    Ok([attached, start.elapsed()])
}

/// Attaches and detaches one link with all offsets.
fn multi(path: &CString, offsets: &[u64]) -> io::Result<[Duration; 2]> {
    const PROG_LOAD: i32 = 5;
    const LINK_CREATE: i32 = 28;
    const KPROBE: u64 = 2;
    const UPROBE_MULTI: u64 = 48;
    // r0 = 0; exit
    let insns: [u64; 2] = [0xb7, 0x95];
    let licence = c"GPL";
    let mut attr = [0_u64; 18];
    attr[0] = KPROBE | (insns.len() as u64) << 32;
    attr[1] = insns.as_ptr().expose_provenance() as u64;
    attr[2] = licence.as_ptr().expose_provenance() as u64;
    attr[8] = UPROBE_MULTI << 32;
    let prog = bpf(PROG_LOAD, &attr)?;
    let mut attr = [0_u64; 18];
    attr[0] = prog.as_raw_fd() as u64;
    attr[1] = UPROBE_MULTI;
    attr[2] = path.as_ptr().expose_provenance() as u64;
    attr[3] = offsets.as_ptr().expose_provenance() as u64;
    attr[6] = offsets.len() as u64;
    attr[7] = u64::from(std::process::id());
    let start = Instant::now();
    let link = bpf(LINK_CREATE, &attr)?;
    let attached = start.elapsed();
    let start = Instant::now();
    drop(link);
    Ok([attached, start.elapsed()])
}

fn bpf(command: i32, attr: &[u64; 18]) -> io::Result<OwnedFd> {
    // SAFETY: 1. `attr` has so many bytes, and its pointers are to what lives for the call.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    owned(rc)
}

fn owned(rc: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(rc) {
        // SAFETY: 1. the kernel has just made it for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
