//! What code memory costs: programs of 300 bytes in packs, against one mapping per program.
//!
//! One program's life is `alloc`, write, `finalize`, `free`. The peer is what a JIT without packs
//! does and still never has writable and executable memory: `mmap` read-write, write, `mprotect`
//! read-execute, flush, `munmap`.
//!
//! Prints a table and writes `pack.json`. `RVBPF_MEASURE` chooses `insns` (counted by perf, worth
//! something where the machine counts real instructions) or `time`; both without it.
#![expect(unsafe_code, reason = "the peer maps and unmaps executable memory")]

mod common;

use std::ffi::c_int;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use pack_alloc::{CHUNK_BYTES, Config, HugePolicy, Near, PackAlloc, PackStats};
use perf_event::Counter;
use text::{FlushScope, RxAddr, RxRange, flush_icache};

use crate::common::{Error, Row, Whose, counter};

const PROG_BYTES: usize = 300;
const PAGE_BYTES: usize = 4096;
/// Lives counted one by one; the least is taken, so that no timer tick is in it.
const NR_ROUNDS: usize = 200;
/// Programs that are published and freed together, with one flush each way.
const NR_BATCH: usize = 100;
/// Programs that live at once where memory is looked at.
const NR_MANY: usize = 4096;

const PEER: &str = "one mmap and mprotect per program";

fn main() -> ExitCode {
    common::exit("pack", run())
}

fn run() -> Result<ExitCode, Error> {
    let measure = std::env::var("RVBPF_MEASURE").unwrap_or_default();
    let mut rows = Vec::new();
    if matches!(measure.as_str(), "" | "insns") {
        match Counters::open() {
            Ok(mut counters) => count_insns(&mut counters, &mut rows)?,
            Err(error) if measure.is_empty() => println!("{error}"),
            Err(error) => return Err(error),
        }
    }
    if matches!(measure.as_str(), "" | "time") {
        take_time(&mut rows)?;
        look_at_memory(&mut rows)?;
    }
    if rows.is_empty() {
        return Err(format!("RVBPF_MEASURE is {measure}: it can be insns or time").into());
    }
    print(&rows);
    common::finish("pack", &rows)
}

fn print(rows: &[Row]) {
    println!("programs of {PROG_BYTES} bytes; the peer is {PEER}");
    println!("{:32}{:>14}{:>14}  unit", "", "packs", "peer");
    for Row {
        row,
        value,
        unit,
        peer_value,
        ..
    } in rows
    {
        let peer = peer_value.map_or_else(|| "-".into(), |peer| format!("{peer:.0}"));
        println!("{row:32}{value:>14.0}{peer:>14}  {unit}");
    }
}

/// Packs near this program's text, with one program that stays, as in a process with hooks.
struct Packs {
    packs: PackAlloc,
    prog: [u8; PROG_BYTES],
}

impl Packs {
    fn new(huge: HugePolicy) -> Self {
        let mut config = Config::default();
        config.huge = huge;
        // `ret`, again and again.
        let prog = std::array::from_fn(|index| [0x82, 0x80][index % 2]);
        Self {
            packs: PackAlloc::new(config),
            prog,
        }
    }

    fn near(&self) -> Near {
        let of = RxAddr::new(main as fn() -> ExitCode as usize as u64);
        Near::Within {
            of,
            reach_bytes: (2 << 30) - 4096,
        }
    }

    fn publish(&self, nr_progs: usize) -> Result<Vec<pack_alloc::PackCode>, Error> {
        let mut bufs = Vec::with_capacity(nr_progs);
        for _ in 0..nr_progs {
            let mut buf = self.packs.alloc(PROG_BYTES, CHUNK_BYTES, self.near())?;
            buf.rw().copy_from_slice(&self.prog);
            bufs.push(buf);
        }
        Ok(self.packs.finalize_all(bufs)?)
    }

    /// The lives of `nr_progs` programs that come and go together.
    fn lives(&self, nr_progs: usize) -> Result<(), Error> {
        let codes = self.publish(nr_progs)?;
        Ok(self.packs.free_all(black_box(codes))?)
    }
}

/// The life of one program in a mapping of its own.
fn peer_life(prog: &[u8]) -> Result<(), Error> {
    let map = PeerMap::new(prog)?;
    map.publish()?;
    drop(black_box(map));
    Ok(())
}

/// A program in a mapping of its own.
struct PeerMap(*mut libc::c_void);

impl PeerMap {
    fn new(prog: &[u8]) -> Result<Self, Error> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: 1. a new mapping where the kernel likes touches nothing.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_BYTES, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let nr_bytes = prog.len().min(PAGE_BYTES);
        // SAFETY: 1. the page is ours, writable, and at least that long.
        unsafe { std::ptr::copy_nonoverlapping(prog.as_ptr(), at.cast(), nr_bytes) };
        Ok(Self(at))
    }

    fn publish(&self) -> Result<(), Error> {
        let protection: c_int = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: 1. the page is ours, and no reference to it is alive.
        if unsafe { libc::mprotect(self.0, PAGE_BYTES, protection) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let range = RxRange::new(RxAddr::new(self.0.addr() as u64), PROG_BYTES);
        Ok(flush_icache(range, FlushScope::Process)?)
    }
}

impl Drop for PeerMap {
    fn drop(&mut self) {
        // SAFETY: 1. the page is ours, and nobody executes it.
        unsafe { libc::munmap(self.0, PAGE_BYTES) };
    }
}

/// Instructions of this thread.
struct Counters {
    user: Counter,
    /// With the kernel's, if that may be counted.
    all: Option<Counter>,
}

impl Counters {
    fn open() -> Result<Self, Error> {
        Ok(Self {
            user: counter(Whose::User)?,
            all: counter(Whose::All).ok(),
        })
    }

    /// The least that `work` took in many rounds: user instructions, and all.
    fn least(&mut self, work: impl Fn() -> Result<(), Error>) -> Result<(u64, Option<u64>), Error> {
        let user = least_of(&mut self.user, &work)?;
        let all = self
            .all
            .as_mut()
            .map(|counter| least_of(counter, &work))
            .transpose()?;
        Ok((user, all))
    }
}

fn least_of(counter: &mut Counter, work: impl Fn() -> Result<(), Error>) -> Result<u64, Error> {
    let mut least_with = |work: &dyn Fn() -> Result<(), Error>| -> Result<u64, Error> {
        let mut done = Ok(());
        let least = common::least(counter, NR_ROUNDS, || {
            if done.is_ok() {
                done = work();
            }
        })?;
        done.map(|()| least)
    };
    work()?;
    // Enabling and reading cost instructions of their own.
    let nothing = least_with(&|| Ok(()))?;
    Ok(least_with(&work)?.saturating_sub(nothing))
}

fn count_insns(counters: &mut Counters, rows: &mut Vec<Row>) -> Result<(), Error> {
    let packs = Packs::new(HugePolicy::Try);
    let stays = packs.publish(1)?;
    let peer = counters.least(|| peer_life(&packs.prog))?;
    let one = counters.least(|| packs.lives(1))?;
    let batch = counters.least(|| packs.lives(NR_BATCH))?;
    let per_prog = |insns: u64| insns as f64 / NR_BATCH as f64;
    let mut row = |row, value, unit, peer: u64| {
        rows.push(Row::new(row, value, unit).beside(PEER, peer as f64));
    };
    row("life_insns_user", one.0 as f64, "instructions", peer.0);
    row(
        "life_in_batch_insns_user",
        per_prog(batch.0),
        "instructions",
        peer.0,
    );
    if let (Some(peer), Some(one), Some(batch)) = (peer.1, one.1, batch.1) {
        row("life_insns_all", one as f64, "instructions", peer);
        row(
            "life_in_batch_insns_all",
            per_prog(batch),
            "instructions",
            peer,
        );
    }
    drop(stays);
    Ok(())
}

/// The median time of `work`, in nanoseconds.
fn median_ns(work: impl Fn() -> Result<(), Error>) -> Result<f64, Error> {
    let mut times = Vec::with_capacity(NR_ROUNDS);
    for _ in 0..NR_ROUNDS {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_nanos());
    }
    times.sort_unstable();
    Ok(times[NR_ROUNDS / 2] as f64)
}

fn take_time(rows: &mut Vec<Row>) -> Result<(), Error> {
    let packs = Packs::new(HugePolicy::Try);
    let stays = packs.publish(1)?;
    let peer = median_ns(|| peer_life(&packs.prog))?;
    let one = median_ns(|| packs.lives(1))?;
    let batch = median_ns(|| packs.lives(NR_BATCH))? / NR_BATCH as f64;
    rows.push(Row::new("life_time", one, "ns").beside(PEER, peer));
    rows.push(Row::new("life_in_batch_time", batch, "ns").beside(PEER, peer));
    drop(stays);
    Ok(())
}

/// What many small programs hold, and over how many pages their code is spread.
fn look_at_memory(rows: &mut Vec<Row>) -> Result<(), Error> {
    let packs = Packs::new(HugePolicy::Try);
    let codes = packs.publish(NR_MANY)?;
    let stats: PackStats = packs.packs.stats();
    let mut pages: Vec<u64> = codes
        .iter()
        .flat_map(|code| {
            let page = PAGE_BYTES as u64;
            code.rx().start.get() / page..=(code.rx().end().get() - 1) / page
        })
        .collect();
    pages.sort_unstable();
    pages.dedup();
    let many = NR_MANY as f64;
    let lost = (stats.occupied_bytes - stats.requested_bytes) as f64 / many;
    // What an instruction TLB sees: whole packs if they are huge.
    let nr_translations = match stats.nr_huge_packs == stats.nr_packs {
        true => stats.nr_packs,
        false => pages.len(),
    };
    let mut row = |row, value, unit, peer| rows.push(Row::new(row, value, unit).beside(PEER, peer));
    let peer_bytes = PAGE_BYTES as f64;
    row(
        "bytes_per_prog",
        stats.occupied_bytes as f64 / many,
        "bytes",
        peer_bytes,
    );
    row(
        "bytes_lost_per_prog",
        lost,
        "bytes",
        peer_bytes - PROG_BYTES as f64,
    );
    row(
        "pack_bytes_per_prog_of_4096",
        stats.pack_bytes as f64 / many,
        "bytes",
        peer_bytes,
    );
    row(
        "pages_touched_by_4096",
        pages.len() as f64,
        "4 KiB pages",
        many,
    );
    row(
        "translations_for_4096",
        nr_translations as f64,
        "TLB entries",
        many,
    );
    row("packs", stats.nr_packs as f64, "packs", many);
    row("huge_packs", stats.nr_huge_packs as f64, "packs", 0.0);
    println!("with {NR_MANY} programs: {stats}");
    packs.packs.free_all(codes)?;
    println!("after they are freed:  {}", packs.packs.stats());
    Ok(())
}
