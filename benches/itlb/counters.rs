//! What the hart counts: cycles, instructions, misses of instruction TLBs.
//!
//! Opened one by one, so that what a machine does not have costs only itself; why it is missing is
//! said in a sentence ([`Missing`]). Without `Sscofpmf` (as on the U74) the kernel cannot tell user
//! space from itself and refuses to leave itself out; then all is counted, and it is said.
//!
//! Key types: [`Counters`], [`Event`]. Source: `perf_event_open(2)`; kernel
//! `drivers/perf/riscv_pmu_sbi.c`, `tools/perf/pmu-events/arch/riscv/sifive/u74/`.

use std::fmt;
use std::io;

use perf_event::events::{Cache, CacheId, CacheOp, CacheResult, Hardware, Raw};
use perf_event::{Builder, Counter, ReadFormat};

use super::machine::{Machine, Uarch};

/// Something that a hart counts.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    Instructions,
    Cycles,
    /// Misses of the instruction TLB next to the hart.
    Itlb,
    /// Misses of the level below, which serves data too.
    Utlb,
}

impl Event {
    const ALL: [Self; 4] = [Self::Instructions, Self::Cycles, Self::Itlb, Self::Utlb];

    /// For columns and files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::Cycles => "cycles",
            Self::Itlb => "itlb_misses",
            Self::Utlb => "utlb_misses",
        }
    }

    /// What to try, in this order, on such a machine.
    fn sources(self, machine: &Machine) -> Vec<Source> {
        let u74 = |config| match machine.uarch {
            Uarch::U74 => Some(Source::Raw(config)),
            Uarch::Other => None,
        };
        match self {
            Self::Instructions => vec![Source::Instructions],
            Self::Cycles => vec![Source::Cycles],
            Self::Itlb => [Some(Source::Itlb), u74(0x802)]
                .into_iter()
                .flatten()
                .collect(),
            Self::Utlb => u74(0x2002).into_iter().collect(),
        }
    }
}

/// How an event is asked for.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Source {
    Instructions,
    Cycles,
    /// `PERF_COUNT_HW_CACHE_ITLB`, reads that miss.
    Itlb,
    /// By the core's own number.
    Raw(u64),
}

impl Source {
    fn builder(self) -> Builder<'static> {
        match self {
            Self::Instructions => Builder::new(Hardware::INSTRUCTIONS),
            Self::Cycles => Builder::new(Hardware::CPU_CYCLES),
            Self::Itlb => Builder::new(Cache {
                which: CacheId::ITLB,
                operation: CacheOp::READ,
                result: CacheResult::MISS,
            }),
            Self::Raw(config) => Builder::new(Raw::new(config)),
        }
    }

    /// Opens it, without the kernel's share if that can be.
    fn open(self) -> io::Result<(Counter, Share)> {
        let mut builder = self.builder();
        builder
            .exclude_hv(true)
            .read_format(ReadFormat::TOTAL_TIME_ENABLED | ReadFormat::TOTAL_TIME_RUNNING);
        let all =
            |mut builder: Builder<'static>| builder.exclude_kernel(false).exclude_hv(false).build();
        match builder.exclude_kernel(true).build() {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Ok((all(builder)?, Share::All))
            }
            opened => Ok((opened?, Share::User)),
        }
    }
}

/// The generic name, or the number in hex.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instructions => f.write_str("instructions"),
            Self::Cycles => f.write_str("cycles"),
            Self::Itlb => f.write_str("the generic iTLB event"),
            Self::Raw(config) => write!(f, "raw event {config:#x}"),
        }
    }
}

/// Whose events are counted.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Share {
    User,
    /// The kernel's too.
    All,
}

/// Why an event is not counted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Missing {
    #[error(
        "{event} cannot be counted: the kernel gives no permission; as root: \
         sysctl kernel.perf_event_paranoid={level} (it is {now})"
    )]
    Permission {
        event: &'static str,
        level: i32,
        now: String,
    },
    #[error("{event} cannot be counted: this machine has no such event ({tried})")]
    NoEvent { event: &'static str, tried: String },
    #[error("{event} are not counted: nobody knows the event's number on this core")]
    Unknown { event: &'static str },
    #[error("{event} cannot be counted: the machine gave the event no counter")]
    NoCounter { event: &'static str },
    #[error("{event} are not counted: what an emulator says of them means nothing")]
    Emulated { event: &'static str },
    #[error(
        "{event} are not shown: this VM counts {found} where {expected} are executed (it needs \
         one hart and a counting clock: --icount)"
    )]
    Miscounted {
        event: &'static str,
        found: u64,
        expected: u64,
    },
}

/// Counters that are open.
#[derive(Debug)]
pub(crate) struct Counters {
    open: Vec<(Event, Counter, Share)>,
    missing: Vec<Missing>,
}

impl Counters {
    /// Opens what `machine` has. Nothing fails: what is not there is [missing](Self::missing).
    pub(crate) fn open(machine: &Machine) -> Self {
        let mut counters = Self {
            open: Vec::new(),
            missing: Vec::new(),
        };
        for event in Event::ALL {
            match open(event, machine) {
                Ok((counter, share)) => counters.open.push((event, counter, share)),
                Err(missing) => counters.missing.push(missing),
            }
        }
        counters
    }

    /// What is counted.
    pub(crate) fn events(&self) -> impl Iterator<Item = Event> + '_ {
        self.open.iter().map(|(event, ..)| *event)
    }

    /// What is not, and why.
    pub(crate) fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Whether the kernel's share is in some of it.
    pub(crate) fn has_kernels_share(&self) -> bool {
        self.open.iter().any(|(.., share)| *share == Share::All)
    }

    /// Counts `work`, in the order of [`Self::events`].
    pub(crate) fn count(&mut self, work: impl FnOnce()) -> io::Result<Vec<u64>> {
        for (_, counter, _) in &mut self.open {
            counter.reset()?;
        }
        for (_, counter, _) in &mut self.open {
            counter.enable()?;
        }
        work();
        for (_, counter, _) in self.open.iter_mut().rev() {
            counter.disable()?;
        }
        let counts = self.open.iter_mut();
        counts.map(|(_, counter, _)| counter.read()).collect()
    }

    /// Drops what has no counter of its own all the time, and instructions where the machine does
    /// not count what is executed: `work` executes `expected` of them in user space.
    pub(crate) fn sort_out(&mut self, expected: u64, work: impl FnOnce()) -> io::Result<()> {
        let found = self.count(work)?;
        let mut kept = Vec::new();
        for ((event, mut counter, share), found) in self.open.drain(..).zip(found) {
            let time = counter.read_count_and_time()?;
            let name = event.name();
            // Enabling and reading are in it, and ticks where the kernel's share is.
            let is_off = event == Event::Instructions && found.abs_diff(expected) > expected / 20;
            if time.time_running == 0 || time.time_running < time.time_enabled {
                self.missing.push(Missing::NoCounter { event: name });
            } else if is_off {
                self.missing.push(Missing::Miscounted {
                    event: name,
                    found,
                    expected,
                });
            } else {
                kept.push((event, counter, share));
            }
        }
        self.open = kept;
        Ok(())
    }
}

fn open(event: Event, machine: &Machine) -> Result<(Counter, Share), Missing> {
    let name = event.name();
    if machine.is_emulated && event != Event::Instructions {
        return Err(Missing::Emulated { event: name });
    }
    let mut tried = Vec::new();
    for source in event.sources(machine) {
        match source.open() {
            Ok(opened) => return Ok(opened),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
                return Err(no_permission(name));
            }
            Err(error) => tried.push(format!("{source}: {error}")),
        }
    }
    Err(match tried.is_empty() {
        true => Missing::Unknown { event: name },
        false => Missing::NoEvent {
            event: name,
            tried: tried.join("; "),
        },
    })
}

fn no_permission(event: &'static str) -> Missing {
    const PATH: &str = "/proc/sys/kernel/perf_event_paranoid";
    let now = std::fs::read_to_string(PATH).unwrap_or_else(|_| "unknown".into());
    // 1 lets the kernel's share be counted too, which some machines cannot leave out.
    Missing::Permission {
        event,
        level: 1,
        now: now.trim().into(),
    }
}
