//! What this machine is, as far as the numbers depend on it.
//!
//! Key type: [`Machine`]. Source: kernel `arch/riscv/kernel/cpu.c` (`/proc/cpuinfo`), device tree.

#![expect(unsafe_code, reason = "asks for the running hart and stays on it")]

use std::{fmt, io, mem};

use text::SyncMode;

use super::Error;

/// A machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) uarch: Uarch,
    /// QEMU, of either kind.
    pub(crate) is_emulated: bool,
    /// The hart that all is measured on.
    pub(crate) hart: usize,
    model: String,
    core: String,
    isa: String,
    kernel: String,
}

/// Cores of which more is known than the kernel tells.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Uarch {
    /// SiFive's U74.
    U74,
    Other,
}

impl Machine {
    /// Looks at this machine, and keeps this thread on `hart`, or on the one that it is on.
    ///
    /// # Errors
    /// [`Error::Hart`] when it cannot be kept there.
    pub(crate) fn look(hart: Option<usize>) -> Result<Self, Error> {
        let hart = match hart {
            Some(hart) => hart,
            None => running_hart(),
        };
        stay_on(hart).map_err(|error| Error::Hart { hart, error })?;
        let cpuinfo = read("/proc/cpuinfo");
        let core = core_of(&cpuinfo, hart);
        let model = read("/proc/device-tree/model");
        Ok(Self {
            uarch: uarch_of(&cpuinfo, hart),
            is_emulated: matches!(text::sync_mode()?, SyncMode::Staged | SyncMode::Remap),
            hart,
            model: match model.trim_end_matches('\0') {
                "" => "unknown board".into(),
                model => model.into(),
            },
            core,
            isa: value_of(section_of(&cpuinfo, hart), "isa").unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
        })
    }
}

/// Three lines.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let emulated = if self.is_emulated { " (QEMU)" } else { "" };
        writeln!(
            f,
            "machine: {}{emulated}, kernel {}",
            self.model, self.kernel
        )?;
        writeln!(f, "core:    {}, {}", self.core, self.isa)?;
        write!(f, "hart:    {}, to which this thread is pinned", self.hart)
    }
}

fn read(path: &str) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What `/proc/cpuinfo` says of a hart.
fn section_of(cpuinfo: &str, hart: usize) -> &str {
    let mut sections = cpuinfo.split("\n\n");
    let number = hart.to_string();
    sections
        .find(|section| value_of(section, "processor").as_deref() == Some(&number))
        .unwrap_or(cpuinfo)
}

fn value_of(section: &str, name: &str) -> Option<String> {
    section.lines().find_map(|line| {
        let (word, value) = line.split_once(':')?;
        (word.trim() == name).then(|| value.trim().to_owned())
    })
}

fn core_of(cpuinfo: &str, hart: usize) -> String {
    let section = section_of(cpuinfo, hart);
    let named = value_of(section, "uarch");
    named.unwrap_or_else(|| {
        let value = |name| value_of(section, name).unwrap_or_else(|| "?".into());
        format!(
            "mvendorid {}, marchid {}",
            value("mvendorid"),
            value("marchid")
        )
    })
}

/// By the device tree's name, else by the numbers that perf's own files go by.
pub(crate) fn uarch_of(cpuinfo: &str, hart: usize) -> Uarch {
    let section = section_of(cpuinfo, hart);
    let is = |name, want: &str| value_of(section, name).is_some_and(|value| value == want);
    let by_name = value_of(section, "uarch").is_some_and(|uarch| uarch.starts_with("sifive,u74"));
    let by_number = is("mvendorid", "0x489") && is("marchid", "0x8000000000000007");
    match by_name || by_number {
        true => Uarch::U74,
        false => Uarch::Other,
    }
}

fn running_hart() -> usize {
    // SAFETY: 1. it only tells.
    let hart = unsafe { libc::sched_getcpu() };
    usize::try_from(hart).unwrap_or_default()
}

fn stay_on(hart: usize) -> io::Result<()> {
    // SAFETY: 1. a set of bits, all of which may be zero.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    if hart >= 8 * mem::size_of_val(&set) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: 1. the bit is in the set, as was just seen.
    unsafe { libc::CPU_SET(hart, &mut set) };
    // SAFETY: 1. the kernel reads so many bytes of the set.
    match unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
