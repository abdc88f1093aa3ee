//! Which functions of libraries that everybody has can be hooked, and how: zlib, OpenSSL's
//! libcrypto, and the C library, as Debian ships them, stripped.
//!
//! For every function that the object has ([`Func::all_in`]) a jump at its entry is planned: of 4
//! bytes where a pack is in reach of one, or an island of the object ([`text::Island`]) that is
//! needed or makes it one store; else of 8; and a trap of 2 bytes where neither can be. Each
//! function is looked at as if it were the only one; how many there are at once, while each keeps
//! its island, stands beside it.
//! The moved instructions are emitted for where they would stand, and proved to mean what the
//! originals mean. Nothing is hooked.
//!
//! What a hook costs that comes by such a jump or trap is counted in `added`.
//!
//! | `RVBPF_MEASURE` | rows |
//! | --- | --- |
//! | `insns` | `added/HOW`: instructions added to a call |
//! | `code` | `jump/LIBRARY`, `trap/LIBRARY`, `refused/LIBRARY`: functions; `no_trap/LIBRARY`, `no_window/LIBRARY`, `no_trap_share`, `no_window_share`: of all functions, those that a jump hooks, and those that one store hooks; `jump_share` |
//! | not set | all |
//!
//! Prints tables, with the reasons against jumps, and writes `any.json`. Fails when a goal is
//! missed: of the functions with room for a jump 95 in a hundred are to be hooked by one, which is
//! to cost at most 6 instructions more than a hook of a function with a pad.
#![expect(unsafe_code, reason = "loads libraries and reads their code")]

#[cfg(target_arch = "riscv64")]
mod added;
#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::process::ExitCode;

use pack_alloc::{CHUNK_BYTES, Config, HugePolicy, Near, PackAlloc, PackBuf};
use rv64::{Asm, Features};
use text::{Convention, Func, FuncKind, Island, Need, RxAddr, find_symbol};
use trampoline::prologue::{Body, Jumps, Prologue, Reach, Refusal, plan, plan_trap, same_meaning};

use crate::common::{Error, Goal, Row};

/// The libraries, each with a function that it has.
const LIBRARIES: [(&str, &str); 3] = [
    ("libz.so.1", "deflate"),
    ("libcrypto.so.3", "EVP_Digest"),
    ("libc.so.6", "malloc"),
];
/// The share of functions with room for a jump that are to be hooked by one, in percent.
const GOAL: f64 = 95.0;
/// The room that a jump of two words wants, in bytes.
const ROOM_BYTES: usize = 8;
/// What one `jal` reaches, but for a page; and a pair of words.
const NEAR_BYTES: u64 = (1 << 20) - 4096;
const FAR_BYTES: u64 = (2 << 30) - 4096;
/// How many examples of a reason are shown.
const EXAMPLES: usize = 4;

fn main() -> ExitCode {
    common::exit("any", run())
}

fn run() -> Result<ExitCode, Error> {
    let measure = std::env::var("RVBPF_MEASURE").unwrap_or_default();
    let mut rows = Vec::new();
    #[cfg(target_arch = "riscv64")]
    if matches!(measure.as_str(), "" | "insns") {
        added::measure(&mut rows)?;
    }
    if matches!(measure.as_str(), "" | "code") {
        look(&mut rows)?;
    }
    if rows.is_empty() {
        return Err(format!("RVBPF_MEASURE is {measure}: it can be insns or code").into());
    }
    common::finish("any", &rows)
}

/// How functions can be hooked.
fn look(rows: &mut Vec<Row>) -> Result<(), Error> {
    let mut reports = Vec::new();
    for (library, function) in LIBRARIES {
        open(library)?;
        let within = find_symbol(Some(library), function)?;
        reports.push(Report::of(library, &Func::all_in(within)?)?);
    }
    add_rows(&reports, rows);
    print(&reports, rows);
    Ok(())
}

fn open(library: &str) -> Result<(), Error> {
    let name = CString::new(library)?;
    // SAFETY: 1. a NUL-terminated name. 2. The constructors of these libraries expect nothing.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(format!(
            "{library} is not on this machine: install Debian's packages zlib1g and libssl3t64, \
             or what holds it in your distribution"
        )
        .into());
    }
    Ok(())
}

/// How a function can be hooked, and what stands against something better.
enum How {
    NearJump(Stores),
    IslandJump(Stores),
    FarJump,
    Trap(Refusal),
    Not(Refusal),
    Vector,
    /// Nothing says where it ends, so a trap at its first instruction is all that is tried.
    NoLength,
}

/// What a change of a jump takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stores {
    One,
    /// A trap, or a wait, comes first.
    More,
}

/// What was found in a library.
struct Report {
    library: &'static str,
    functions: usize,
    /// Of these, with room for a jump, and with a jump that takes it.
    roomy: usize,
    roomy_jumps: usize,
    near_jumps: usize,
    island_jumps: usize,
    far_jumps: usize,
    /// Jumps that one store makes.
    one_stores: usize,
    /// The same, and jumps, if all functions are hooked at once.
    jumps_at_once: usize,
    one_stores_at_once: usize,
    traps: usize,
    refused: usize,
    /// What is jumped to from within functions, and not counted as one.
    parts: usize,
    /// Why there is no jump: how often, and some of the functions.
    reasons: BTreeMap<String, (usize, Vec<String>)>,
}

impl Report {
    fn of(library: &'static str, funcs: &[Func]) -> Result<Self, Error> {
        let code = |f: &Func| (f.entry.get(), bytes_of(f));
        let jumps = Jumps::scan(funcs.iter().map(code));
        let mut packs = Packs::new();
        let mut at_once = Vec::new();
        let mut report = Self {
            library,
            functions: 0,
            roomy: 0,
            roomy_jumps: 0,
            near_jumps: 0,
            island_jumps: 0,
            far_jumps: 0,
            one_stores: 0,
            jumps_at_once: 0,
            one_stores_at_once: 0,
            traps: 0,
            refused: 0,
            parts: 0,
            reasons: BTreeMap::new(),
        };
        for func in funcs {
            match func.kind {
                FuncKind::Part => report.parts += 1,
                FuncKind::Called => {
                    let alone = |at, _| Island::reserve(at, Need::OnlyWay).is_some();
                    report.add(func, how(func, &jumps, &mut packs, alone)?);
                }
            }
        }
        for func in funcs.iter().filter(|f| f.kind == FuncKind::Called) {
            let keeps = |at, need| {
                let island = Island::reserve(at, need);
                let is_there = island.is_some();
                at_once.extend(island);
                is_there
            };
            let how = how(func, &jumps, &mut packs, keeps)?;
            report.jumps_at_once += usize::from(how.is_jump());
            report.one_stores_at_once += usize::from(how.is_one_store());
        }
        Ok(report)
    }

    fn add(&mut self, func: &Func, how: How) {
        let is_roomy = func.len_bytes.is_some_and(|len| len >= ROOM_BYTES);
        let is_jump = how.is_jump();
        self.one_stores += usize::from(how.is_one_store());
        self.functions += 1;
        self.roomy += usize::from(is_roomy);
        self.roomy_jumps += usize::from(is_roomy && is_jump);
        let (count, reason) = match how {
            How::NearJump(_) => (&mut self.near_jumps, None),
            How::IslandJump(_) => (&mut self.island_jumps, None),
            How::FarJump => (&mut self.far_jumps, None),
            How::Trap(refusal) => (&mut self.traps, Some(kind_of(&refusal))),
            How::Not(refusal) => (
                &mut self.refused,
                Some(kind_of(&refusal) + ", not even a trap"),
            ),
            How::Vector => (&mut self.refused, Some("vector calling convention".into())),
            How::NoLength => (&mut self.traps, Some("its length is not known".into())),
        };
        *count += 1;
        let Some(reason) = reason else { return };
        let (count, examples) = self.reasons.entry(reason).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            let name = func.name.as_deref().map(str::to_owned);
            examples.push(name.unwrap_or_else(|| func.entry.to_string()));
        }
    }

    fn jumps(&self) -> usize {
        self.near_jumps + self.island_jumps + self.far_jumps
    }
}

impl How {
    fn is_jump(&self) -> bool {
        matches!(self, How::NearJump(_) | How::IslandJump(_) | How::FarJump)
    }

    fn is_one_store(&self) -> bool {
        matches!(
            self,
            How::NearJump(Stores::One) | How::IslandJump(Stores::One)
        )
    }
}

/// A reason without the addresses in it.
fn kind_of(refusal: &Refusal) -> String {
    let text = format!("{refusal:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// The code of a function; nothing, if its length is not known.
fn bytes_of(func: &Func) -> &'static [u8] {
    let at = std::ptr::with_exposed_provenance::<u8>(func.entry.get() as usize);
    // SAFETY:
    // 1. Functions lie in loaded segments, and these libraries are never closed.
    // 2. Nobody changes their text in this program.
    unsafe { std::slice::from_raw_parts(at, func.len_bytes.unwrap_or(0)) }
}

/// `has_island` says whether there is one for a function and a need.
fn how(
    func: &Func,
    jumps: &Jumps,
    packs: &mut Packs,
    mut has_island: impl FnMut(RxAddr, Need) -> bool,
) -> Result<How, Error> {
    if func.convention == Convention::Variant {
        return Ok(How::Vector);
    }
    if func.len_bytes.is_none() {
        return Ok(How::NoLength);
    }
    let body = Body {
        entry: func.entry.get(),
        bytes: bytes_of(func),
        jumps,
    };
    let short = plan(&body, Reach::Near).ok();
    let is_word = |p: &Prologue| func.entry.is_aligned(4) && p.offsets().eq([0]);
    let stores = match short.as_ref().is_some_and(is_word) {
        true => Stores::One,
        false => Stores::More,
    };
    if let (Some(prologue), Some(near)) = (&short, packs.near(func.entry)) {
        prove(prologue, &body, near)?;
        return Ok(How::NearJump(stores));
    }
    let far = packs.far(func.entry)?;
    let long = plan(&body, Reach::Far);
    let need = match (&long, stores) {
        (Err(_), _) => Some(Need::OnlyWay),
        (Ok(_), Stores::One) => Some(Need::NoWindow),
        (Ok(_), Stores::More) => None,
    };
    if let (Some(prologue), Some(need)) = (&short, need) {
        if has_island(func.entry, need) {
            prove(prologue, &body, far)?;
            return Ok(How::IslandJump(stores));
        }
    }
    let refusal = match long {
        Ok(prologue) => {
            prove(&prologue, &body, far)?;
            return Ok(How::FarJump);
        }
        Err(refusal) => refusal,
    };
    match plan_trap(&body) {
        Ok(prologue) => {
            prove(&prologue, &body, far)?;
            Ok(How::Trap(refusal))
        }
        Err(refusal) => Ok(How::Not(refusal)),
    }
}

/// Emits the copy for `at` and proves it: one that is wrong ends the bench.
fn prove(prologue: &Prologue, body: &Body<'_>, at: RxAddr) -> Result<(), Error> {
    let mut asm = Asm::new(Features::RV64GC);
    prologue.emit(&mut asm);
    let copy = asm.finish(at.get())?;
    same_meaning(prologue, body.bytes, &copy.bytes, at.get())
        .map_err(|e| format!("the copy of {:#x} at {at}: {e}", body.entry).into())
}

/// Where copies would stand: in chunks that are taken and never filled.
struct Packs {
    packs: PackAlloc,
    taken: Vec<PackBuf>,
    /// Stretches around which nothing is free.
    none_near: Vec<u64>,
}

impl Packs {
    fn new() -> Self {
        let mut config = Config::default();
        config.huge = HugePolicy::Never;
        Self {
            packs: PackAlloc::new(config),
            taken: Vec::new(),
            none_near: Vec::new(),
        }
    }

    /// Within reach of one word.
    fn near(&mut self, of: RxAddr) -> Option<RxAddr> {
        /// Functions that lie in the same stretch of this length have the same answer.
        const STRETCH_BYTES: u64 = 1 << 14;
        let stretch = of.get() / STRETCH_BYTES;
        if self.none_near.contains(&stretch) {
            return None;
        }
        let found = self.within(of, NEAR_BYTES);
        if found.is_none() {
            self.none_near.push(stretch);
        }
        found
    }

    /// Within reach of two words.
    fn far(&mut self, of: RxAddr) -> Result<RxAddr, Error> {
        self.within(of, FAR_BYTES)
            .ok_or_else(|| format!("there is no room for code within 2 GiB of {of}").into())
    }

    fn within(&mut self, of: RxAddr, reach_bytes: u64) -> Option<RxAddr> {
        let is_near = |at: RxAddr| at.get().abs_diff(of.get()) <= reach_bytes - CHUNK_BYTES as u64;
        let known = self.taken.iter().map(|buf| buf.rx().start);
        if let Some(known) = known.into_iter().find(|at| is_near(*at)) {
            return Some(known);
        }
        let near = Near::Within { of, reach_bytes };
        let buf = self.packs.alloc(CHUNK_BYTES, CHUNK_BYTES, near).ok()?;
        let at = buf.rx().start;
        self.taken.push(buf);
        Some(at)
    }
}

fn add_rows(reports: &[Report], rows: &mut Vec<Row>) {
    for report in reports {
        for (what, count) in [
            ("jump", report.jumps()),
            ("trap", report.traps),
            ("refused", report.refused),
        ] {
            let row = format!("{what}/{}", report.library);
            let row = Row::new(row, count as f64, "functions");
            rows.push(row.beside("all functions", report.functions as f64));
        }
        let percent = |count: usize| 100.0 * count as f64 / report.functions as f64;
        for (what, count, at_once) in [
            ("no_trap", report.jumps(), report.jumps_at_once),
            ("no_window", report.one_stores, report.one_stores_at_once),
        ] {
            let row = format!("{what}/{}", report.library);
            let row = Row::new(row, percent(count), "% of all functions");
            rows.push(row.beside("all at once", percent(at_once)));
        }
    }
    let sum = |count: fn(&Report) -> usize| reports.iter().map(count).sum::<usize>() as f64;
    let of_all = |count: fn(&Report) -> usize| 100.0 * sum(count) / sum(|r| r.functions);
    for (what, count, at_once) in [
        (
            "no_trap_share",
            of_all(Report::jumps),
            of_all(|r| r.jumps_at_once),
        ),
        (
            "no_window_share",
            of_all(|r| r.one_stores),
            of_all(|r| r.one_stores_at_once),
        ),
    ] {
        rows.push(Row::new(what, count, "% of all functions").beside("all at once", at_once));
    }
    let share = 100.0 * sum(|r| r.roomy_jumps) / sum(|r| r.roomy);
    let row = Row::new("jump_share", share, "% of functions of 8 bytes or more");
    rows.push(row.beside("goal", GOAL).wants(Goal::AtLeast(GOAL)));
}

fn print(reports: &[Report], rows: &[Row]) {
    println!(
        "{:16}{:>10}{:>10}{:>10}{:>10}{:>8}{:>10}{:>8}{:>10}",
        "",
        "functions",
        "jump of 4",
        "by island",
        "jump of 8",
        "trap",
        "refused",
        "parts",
        "one store"
    );
    for r in reports {
        println!(
            "{:16}{:>10}{:>10}{:>10}{:>10}{:>8}{:>10}{:>8}{:>10}",
            r.library,
            r.functions,
            r.near_jumps,
            r.island_jumps,
            r.far_jumps,
            r.traps,
            r.refused,
            r.parts,
            r.one_stores
        );
    }
    println!("\nof all functions, in percent; and if all are hooked at once");
    for row in rows.iter().filter(|r| r.row.starts_with("no_")) {
        let at_once = row.peer_value.unwrap_or(0.0);
        println!("{:28}{:>8.1}{at_once:>8.1}", row.row, row.value);
    }
    println!("\nwhy no jump");
    for r in reports {
        for (reason, (count, examples)) in &r.reasons {
            println!(
                "{:16}{count:>6}  {reason} ({} …)",
                r.library,
                examples.join(", ")
            );
        }
    }
    if let Some(share) = rows.last() {
        println!("\n{:.1} {}; the goal is {GOAL}", share.value, share.unit);
    }
}
