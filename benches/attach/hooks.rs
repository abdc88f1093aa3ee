//! Batches of hooks, and hooks one by one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rvbpf::{FuncModel, Hook, Runtime};
use text::{Convention, Func, FuncKind, RxAddr};
use trampoline::prologue::{Body, Jumps, Reach, plan};

use crate::common::{Error, Row};
use crate::meter::{Counts, Meter};
use crate::uprobe;

/// So many at once.
const BATCHES: [usize; 6] = [1, 10, 100, 1000, 4000, 10_000];
/// So many one by one.
const SINGLES: [usize; 3] = [1, 10, 100];
/// What a batch may cost, in instructions a function: from this many functions on.
const FROM: usize = 1000;
const BUILD_AND_ATTACH: f64 = 40_000.0;
const DETACH: f64 = 10_000.0;
/// What a further hook may.
const FURTHER: f64 = 300_000.0;
/// What ten times as many functions may cost, in times.
const GROWTH: f64 = 11.0;
const PATIENCE: Duration = Duration::from_secs(20);

/// What is hooked.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    /// The file, for the kernel's probes.
    pub(crate) path: Option<String>,
    pub(crate) funcs: Vec<RxAddr>,
}

fn subjects() -> Result<[Subject; 2], Error> {
    let pads = (0..testlib::functions::MANY)
        .map(|n| RxAddr::new(testlib::functions::many(n).expose_provenance() as u64));
    let pads = Subject {
        name: "pads",
        path: None,
        funcs: pads.collect(),
    };
    Ok([crypto()?, pads])
}

/// The functions of libcrypto that can be hooked by a jump.
fn crypto() -> Result<Subject, Error> {
    let library = "libcrypto.so.3";
    let name = std::ffi::CString::new(library)?;
    // SAFETY: 1. a NUL-terminated name. 2. Its constructors expect nothing.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() {
        return Err(format!("{library} is not on this machine: Debian's libssl3t64 has it").into());
    }
    let within = text::find_symbol(Some(library), "EVP_Digest")?;
    let all = Func::all_in(within)?;
    let code = |f: &Func| -> &'static [u8] {
        let at = std::ptr::with_exposed_provenance::<u8>(f.entry.get() as usize);
        // SAFETY: 1. functions lie in loaded segments; the library is never closed. 2. Its text
        //    is not changed while this is used.
        unsafe { std::slice::from_raw_parts(at, f.len_bytes.unwrap_or(0)) }
    };
    let jumps = Jumps::scan(all.iter().map(|f| (f.entry.get(), code(f))));
    let is_good = |f: &&Func| {
        let body = Body {
            entry: f.entry.get(),
            bytes: code(f),
            jumps: &jumps,
        };
        let is_called = f.kind == FuncKind::Called && f.convention == Convention::Standard;
        is_called && f.len_bytes.is_some() && plan(&body, Reach::Far).is_ok()
    };
    let path = all.first().and_then(|f| f.object.as_ref());
    Ok(Subject {
        name: "libcrypto",
        path: path.map(|p| p.to_string_lossy().into_owned()),
        funcs: all.iter().filter(is_good).map(|f| f.entry).collect(),
    })
}

/// The work, step by step; each has its counts.
struct Run {
    n: usize,
    steps: Vec<(&'static str, Counts)>,
}

/// Hooks `funcs` at once, and lets them go.
fn batch(meter: &mut Meter, rt: &Runtime, funcs: &[RxAddr]) -> Result<Run, Error> {
    let mut steps = Vec::new();
    let mut step = |name, counts| steps.push((name, counts));
    let build = || {
        funcs
            .iter()
            .map(|f| builder(rt, *f))
            .collect::<Result<Vec<_>, Error>>()
    };
    let (builders, counts) = meter.of(build)?;
    step("build", counts);
    let (mut hooks, counts) = meter.of(|| Ok(rt.attach_all(builders)?))?;
    step("attach", counts);
    let more = build()?;
    let (more, counts) = meter.of(|| Ok(rt.attach_all(more)?))?;
    step("retarget", counts);
    hooks.extend(more);
    let ((), counts) = meter.of(|| Ok(rt.detach_all(&hooks)?))?;
    step("detach", counts);
    let ((), counts) = meter.of(|| Ok(rt.synchronize(PATIENCE)?))?;
    step("free", counts);
    Ok(Run {
        n: funcs.len(),
        steps,
    })
}

/// The same one by one.
fn one_by_one(meter: &mut Meter, rt: &Runtime, funcs: &[RxAddr]) -> Result<Run, Error> {
    let attach = || {
        funcs
            .iter()
            .map(|f| Ok(builder(rt, *f)?.attach()?))
            .collect()
    };
    let (hooks, attached): (Vec<Hook>, _) = meter.of(attach)?;
    let (more, retargeted): (Vec<Hook>, _) = meter.of(attach)?;
    let detach = || {
        hooks
            .iter()
            .chain(&more)
            .try_for_each(|hook| Ok(hook.detach()?))
    };
    let ((), detached) = meter.of(detach)?;
    let ((), freed) = meter.of(|| Ok(rt.synchronize(PATIENCE)?))?;
    let steps = vec![
        ("attach", attached),
        ("retarget", retargeted),
        ("detach", detached),
        ("free", freed),
    ];
    Ok(Run {
        n: funcs.len(),
        steps,
    })
}

fn builder(rt: &Runtime, func: RxAddr) -> Result<rvbpf::HookBuilder<rvbpf::Untyped>, Error> {
    let at = std::ptr::with_exposed_provenance::<()>(func.get() as usize);
    // SAFETY: 1. nothing is said of it.
    let builder = unsafe { rt.hook_addr(at, FuncModel::untyped()) }?;
    Ok(builder.on_entry(|_| {}))
}

fn batches(funcs: usize) -> impl Iterator<Item = usize> {
    let most = std::env::var("RVBPF_ATTACH_MOST").ok();
    let most = most
        .and_then(|most| most.parse().ok())
        .unwrap_or(usize::MAX);
    BATCHES.into_iter().filter(move |n| *n <= most.min(funcs))
}

/// Instructions, and what else can be counted.
pub(crate) fn count(rows: &mut Vec<Row>) -> Result<(), Error> {
    let mut meter = Meter::new()?;
    for subject in subjects()? {
        let rt = Runtime::new()?;
        let mut totals = Vec::new();
        for n in batches(subject.funcs.len()) {
            let run = batch(&mut meter, &rt, &subject.funcs[..n])?;
            totals.push((n, run.total()));
            run.report(&format!("{}/{n}", subject.name), rows);
        }
        growth(subject.name, &totals, rows);
        // Some are hooked already.
        let (some, others) = subject.funcs.split_at(100);
        let builders: Result<Vec<_>, Error> = some.iter().map(|f| builder(&rt, *f)).collect();
        let _some = rt.attach_all(builders?)?;
        for n in SINGLES {
            let run = one_by_one(&mut meter, &rt, &others[..n])?;
            run.report(&format!("{}/one_by_one/{n}", subject.name), rows);
        }
    }
    Ok(())
}

/// What ten times as many functions cost.
fn growth(name: &str, totals: &[(usize, u64)], rows: &mut Vec<Row>) {
    let of = |n| {
        totals
            .iter()
            .find(|(of, _)| *of == n)
            .map(|(_, total)| *total as f64)
    };
    // Where there are not quite as many, as if there were.
    let (Some(some), Some((n, many))) = (of(1000), totals.last().filter(|(n, _)| *n > 1000)) else {
        return;
    };
    let times = *many as f64 / some * 10_000.0 / *n as f64;
    let row = Row::new(
        format!("{name}/growth/{n}"),
        times,
        "times 1,000 functions, for 10,000",
    );
    rows.push(row.beside("goal", GROWTH));
}

/// The row, beside what is wanted of it, if anything is.
fn beside_goal(row: Row, goal: Option<f64>) -> Row {
    match goal {
        Some(goal) => row.beside("goal", goal),
        None => row,
    }
}

impl Run {
    fn total(&self) -> u64 {
        self.steps.iter().map(|(_, counts)| counts.insns).sum()
    }

    fn report(&self, name: &str, rows: &mut Vec<Row>) {
        let each = |value: u64| value as f64 / self.n as f64;
        let is_single = name.contains("one_by_one");
        for (step, c) in &self.steps {
            let mut row = |what: &str, value: f64, unit| {
                rows.push(Row::new(format!("{name}/{step}/{what}"), value, unit));
            };
            if let Some(syscalls) = c.syscalls {
                row("syscalls", each(syscalls), "calls");
            }
            row("flushes", each(c.flushes), "flushes");
            row("maps_readings", each(c.maps_readings), "readings");
            row("thread_looks", each(c.thread_looks), "looks");
            row("memory", c.memory as f64, "bytes in all");
            let goal = match *step {
                "attach" | "retarget" if is_single => Some(FURTHER),
                "detach" if !is_single && self.n >= FROM => Some(DETACH),
                _ => None,
            };
            let insns = Row::new(format!("{name}/{step}/insns"), each(c.insns), "insns");
            rows.push(beside_goal(insns, goal));
        }
        let of = |name| {
            self.steps
                .iter()
                .find(|(step, _)| *step == name)
                .map_or(0, |s| s.1.insns)
        };
        if !is_single {
            let both = each(of("build") + of("attach"));
            let row = Row::new(format!("{name}/build_and_attach/insns"), both, "insns");
            let goal = (self.n >= FROM).then_some(BUILD_AND_ATTACH);
            rows.push(beside_goal(row, goal));
        }
    }
}

/// Time, idle and while others are busy.
pub(crate) fn time(rows: &mut Vec<Row>) -> Result<(), Error> {
    let mut meter = Meter::new()?;
    for subject in subjects()? {
        for (suffix, threads) in [("", 0), ("/busy", 4)] {
            let _busy = Busy::new(threads);
            let rt = Runtime::new()?;
            for n in batches(subject.funcs.len()) {
                let run = batch(&mut meter, &rt, &subject.funcs[..n])?;
                run.report_time(&format!("{}/{n}", subject.name), suffix, rows);
            }
            for n in SINGLES {
                let run = one_by_one(&mut meter, &rt, &subject.funcs[..n])?;
                run.report_time(&format!("{}/one_by_one/{n}", subject.name), suffix, rows);
            }
        }
        uprobe::measure(&subject, batches(subject.funcs.len()), rows)?;
    }
    Ok(())
}

impl Run {
    fn report_time(&self, name: &str, suffix: &str, rows: &mut Vec<Row>) {
        for (step, counts) in &self.steps {
            let us = counts.time.as_secs_f64() * 1e6 / self.n as f64;
            rows.push(Row::new(format!("{name}/{step}/us{suffix}"), us, "us"));
        }
    }
}

/// Threads that run all the time.
struct Busy(Vec<std::thread::JoinHandle<()>>);

static STOP: AtomicBool = AtomicBool::new(false);

impl Busy {
    fn new(threads: usize) -> Self {
        STOP.store(false, Ordering::Relaxed);
        let run = |_| {
            std::thread::spawn(|| {
                while !STOP.load(Ordering::Relaxed) {
                    std::hint::black_box(testlib::functions::tl_many(1, 2));
                }
            })
        };
        Self((0..threads).map(run).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        STOP.store(true, Ordering::Relaxed);
        for thread in self.0.drain(..) {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}
