//! What is counted of a stretch of work of this thread.
//!
//! Key types: [`Meter`], [`Counts`].

use std::time::{Duration, Instant};

use perf_event::events::Raw;
use perf_event::{Builder, Counter};

use crate::common::{Error, Whose, counter};

/// What some work has cost.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Counts {
    pub(crate) insns: u64,
    /// None where the kernel does not show them.
    pub(crate) syscalls: Option<u64>,
    pub(crate) flushes: u64,
    pub(crate) maps_readings: u64,
    pub(crate) thread_looks: u64,
    pub(crate) time: Duration,
    /// Bytes that the process has more of in memory afterwards.
    pub(crate) memory: i64,
}

/// Counts them.
pub(crate) struct Meter {
    insns: Counter,
    syscalls: Option<Counter>,
}

impl Meter {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            insns: counter(Whose::All)?,
            syscalls: syscalls(),
        })
    }

    /// Does `work` and counts.
    pub(crate) fn of<T>(
        &mut self,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<(T, Counts), Error> {
        let own = || {
            [
                text::testing::flush_count(),
                text::testing::maps_reading_count(),
                text::testing::thread_look_count(),
            ]
        };
        let insns = std::iter::once(&mut self.insns);
        let mut all: Vec<&mut Counter> = insns.chain(&mut self.syscalls).collect();
        let (before, resident) = (own(), resident_bytes()?);
        for counter in &mut all {
            counter.reset()?;
            counter.enable()?;
        }
        let start = Instant::now();
        let done = work();
        let time = start.elapsed();
        for counter in &mut all {
            counter.disable()?;
        }
        let after = own();
        let memory = resident_bytes()? - resident;
        let counts = Counts {
            insns: self.insns.read()?,
            syscalls: self.syscalls.as_mut().map(Counter::read).transpose()?,
            flushes: after[0] - before[0],
            maps_readings: after[1] - before[1],
            thread_looks: after[2] - before[2],
            time,
            memory,
        };
        Ok((done?, counts))
    }
}

/// Every system call of this thread: the kernel's event `raw_syscalls:sys_enter`.
fn syscalls() -> Option<Counter> {
    const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    mount(ROOTS[0]);
    let read =
        |root: &&str| std::fs::read_to_string(format!("{root}/events/raw_syscalls/sys_enter/id"));
    let id: u64 = ROOTS
        .iter()
        .find_map(|root| read(root).ok())?
        .trim()
        .parse()
        .ok()?;
    /// `PERF_TYPE_TRACEPOINT`.
    const TRACEPOINT: u32 = 2;
    let mut builder = Builder::new(Raw::new(id));
    builder.attrs_mut().type_ = TRACEPOINT;
    builder.include_kernel();
    builder.build().ok()
}

/// Where nothing is mounted yet, and this may.
fn mount(root: &str) {
    let Ok(root) = std::ffi::CString::new(root) else {
        return;
    };
    let kind = c"tracefs".as_ptr();
    // SAFETY: 1. NUL-terminated strings, and no data.
    let _ = unsafe { libc::mount(kind, root.as_ptr(), kind, 0, std::ptr::null()) };
}

fn resident_bytes() -> Result<i64, Error> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').nth(1).ok_or("no statm")?;
    Ok(pages.parse::<i64>()? * 4096)
}
