//! The machines that the lab can be: processor, kernel, harts, clock.
//!
//! Key type: [`Machine`]. Neighbours: `main` reads it from the command line,
//! `vm` boots it. Source: QEMU's `docs/system/riscv/virt.rst` and
//! `target/riscv/cpu.c`.

use std::fmt;

use clap::ValueEnum;

/// Which processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cpu {
    /// RV64GC and nothing beyond it that user space can see.
    Rv64gc,
    /// SiFive U74: RV64GC, Zba, Zbb.
    U74,
    /// The RVA22 profile.
    Rva22,
    /// The RVA23 profile.
    Rva23,
}

impl Cpu {
    /// QEMU's `-cpu`. Sscofpmf is what makes `perf_event_open` work.
    fn qemu(self) -> &'static str {
        match self {
            Self::Rv64gc => {
                "rv64,zba=off,zbb=off,zbc=off,zbs=off,zfa=off,zicond=off,zacas=off,zabha=off,\
                 zawrs=off,v=off,sscofpmf=true"
            }
            Self::U74 => {
                "rv64,zba=on,zbb=on,zbc=off,zbs=off,zfa=off,zicond=off,zacas=off,zabha=off,\
                 zawrs=off,v=off,sscofpmf=true"
            }
            Self::Rva22 => "rva22s64,sscofpmf=true",
            Self::Rva23 => "rva23s64,sscofpmf=true",
        }
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.to_possible_value();
        f.write_str(name.as_ref().map_or("", |name| name.get_name()))
    }
}

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Of Debian's stable release.
    Stable,
    /// Of Debian's testing.
    Testing,
}

/// What time is to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The host's.
    Host,
    /// One nanosecond an instruction: instruction counts repeat, and harts, were
    /// there more than one, would take turns.
    Instructions,
}

/// A machine to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cpu: Cpu,
    pub(crate) kernel: Kernel,
    pub(crate) harts: u16,
    pub(crate) clock: Clock,
}

impl Machine {
    /// QEMU's arguments for it.
    pub(crate) fn qemu_args(&self) -> Vec<String> {
        let mut args: Vec<String> = [
            "-M",
            "virt",
            "-nographic",
            "-m",
            "8G",
            "-no-reboot",
            "-cpu",
            self.cpu.qemu(),
            "-smp",
        ]
        .map(str::to_owned)
        .into();
        args.push(self.harts.to_string());
        if self.clock == Clock::Instructions {
            args.extend(["-icount", "shift=0"].map(str::to_owned));
        }
        args
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        };
        let kernel = name(self.kernel.to_possible_value());
        write!(f, "{}, {kernel} kernel, {} hart(s)", self.cpu, self.harts)?;
        match self.clock {
            Clock::Host => Ok(()),
            Clock::Instructions => f.write_str(", counting instructions"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_readme() {
        for name in ["rv64gc", "u74", "rva22", "rva23"] {
            assert!(Cpu::from_str(name, false).is_ok(), "{name}");
        }
        for name in ["stable", "testing"] {
            assert!(Kernel::from_str(name, false).is_ok(), "{name}");
        }
        assert!(Cpu::from_str("z80", false).is_err());
    }

    #[test]
    fn a_machine_is_told_to_qemu() {
        let (cpu, kernel, clock) = (Cpu::U74, Kernel::Stable, Clock::Instructions);
        let args = Machine {
            cpu,
            kernel,
            harts: 1,
            clock,
        }
        .qemu_args()
        .join(" ");
        assert!(
            args.contains("-smp 1 -icount shift=0") && args.contains("zba=on"),
            "{args}"
        );
        let args = Machine {
            cpu: Cpu::Rv64gc,
            kernel,
            harts: 2,
            clock: Clock::Host,
        }
        .qemu_args();
        let args = args.join(" ");
        assert!(
            !args.contains("icount") && args.contains("zba=off"),
            "{args}"
        );
    }
}
