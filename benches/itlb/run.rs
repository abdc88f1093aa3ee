//! Lays out, calls, models and counts.
//!
//! ```text
//!   corpus ─▶ place ─┬─▶ call, counted by the hart      (counters)
//!   order  ──────────┴─▶ the pages of the same calls    (tlb, labelled model)
//! ```
//!
//! Every point is warmed up by one pass through its calls, and measured in the next ones; the model
//! goes through the same calls at the same addresses, twice. Key function: [`run`].

use super::Error;
use super::call::{self, Calls, LOOP_INSNS};
use super::corpus::Corpus;
use super::counters::{Counters, Event};
use super::machine::Machine;
use super::order::Order;
use super::pages::Pages;
use super::place::{Layout, Placed};
use super::plan::Plan;
use super::results::{Memory, Metric, Point, Results, Spread};
use super::spec::TlbSpec;
use super::tlb::{PageSize, Tlb};

/// The fewest calls that a point is measured by, about.
const MIN_CALLS: usize = 8192;
/// Calls of each program, on average, at least.
const MIN_CALLS_EACH: usize = 4;
/// Runs in a VM, whose counts repeat.
const RUNS_EMULATED: usize = 2;

/// Does what `plan` says on `machine`; `progress` is told of each step.
///
/// # Errors
/// [`Error`]: no memory for code, counters that fail in the midst of it.
pub(crate) fn run(
    plan: &Plan,
    machine: &Machine,
    progress: &mut dyn FnMut(&str),
) -> Result<Results, Error> {
    progress("compiling the programs");
    let most = plan.programs.last().copied().unwrap_or_default();
    let corpus = Corpus::new(most)?;
    let mut run = Run {
        plan,
        machine,
        counters: Counters::open(machine),
        results: Results::default(),
        loop_page: Pages::read()?.size_at(call::loop_address()),
    };
    run.look_at_memory(&corpus, progress)?;
    run.sort_out_counters(&corpus)?;
    run.name_metrics();
    run.note_corpus(&corpus);
    for &layout in &plan.layouts {
        run.layout(&corpus, layout, progress)?;
    }
    Ok(run.results)
}

struct Run<'a> {
    plan: &'a Plan,
    machine: &'a Machine,
    counters: Counters,
    results: Results,
    /// The page of the loop that calls.
    loop_page: PageSize,
}

impl Run<'_> {
    /// All points of a layout. What does not depend on the calls is placed once, as many programs
    /// as there will be, of which the first are called.
    fn layout(
        &mut self,
        corpus: &Corpus,
        layout: Layout,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        let most = self.plan.programs.last().copied().unwrap_or_default();
        let shared = match layout {
            Layout::Hot => None,
            Layout::Page | Layout::Packed | Layout::Huge => {
                let by: Vec<u32> = (0..most as u32).collect();
                Some(Placed::new(corpus, layout, &by)?)
            }
        };
        for &order in &self.plan.orders {
            progress(&format!("{}, {order}", layout.about()));
            for &nr in &self.plan.programs {
                let calls = order.calls(nr, nr * MIN_CALLS.div_ceil(nr).max(MIN_CALLS_EACH));
                let values = match &shared {
                    Some(placed) => self.point(placed, order, nr, &calls)?,
                    None => {
                        let placed = Placed::new(corpus, layout, &hottest_first(&calls, nr))?;
                        let values = self.point(&placed, order, nr, &calls)?;
                        placed.free()?;
                        values
                    }
                };
                self.results.points.push(Point {
                    layout,
                    order,
                    programs: nr,
                    values,
                });
            }
        }
        shared.map_or(Ok(()), Placed::free)
    }

    fn point(
        &mut self,
        placed: &Placed,
        order: Order,
        nr: usize,
        calls: &[u32],
    ) -> Result<Vec<Spread>, Error> {
        let per_call = |count: u64| count as f64 / calls.len() as f64;
        let modelled = model(&self.plan.spec, placed, self.loop_page, calls);
        let mut values: Vec<Spread> = modelled.map(|n| Spread::exact(per_call(n))).collect();
        let sequence = Calls::new(placed, calls);
        let wrong = Error::WrongSum {
            order: order.name(),
            nr,
        };
        // Counted or not: this is what runs them.
        if !sequence.make() {
            return Err(wrong);
        }
        let runs = match self.machine.is_emulated {
            true => self.plan.runs.min(RUNS_EMULATED),
            false => self.plan.runs,
        };
        let nr_events = self.counters.events().count();
        let mut counted = vec![Vec::with_capacity(runs); nr_events];
        let mut well = true;
        for _ in 0..if nr_events == 0 { 0 } else { runs } {
            let counts = self.counters.count(|| well &= sequence.make());
            let counts = counts.map_err(Error::Counters)?;
            for (all, count) in counted.iter_mut().zip(counts) {
                all.push(per_call(count));
            }
        }
        if !well {
            return Err(wrong);
        }
        values.extend(counted.into_iter().map(Spread::of));
        Ok(values)
    }

    /// What layouts hold, and what a pack costs that is nearly empty.
    fn look_at_memory(
        &mut self,
        corpus: &Corpus,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        progress("memory of the layouts");
        let programs = self.plan.compared_at();
        let by: Vec<u32> = (0..programs as u32).collect();
        for layout in [Layout::Page, Layout::Packed, Layout::Huge] {
            let placed = resident(corpus, layout, &by)?;
            self.results.memory.push(Memory {
                layout,
                programs,
                resident_bytes: placed.resident_bytes(),
            });
            let backing = placed.backing();
            let about = layout.about();
            let note = format!("{about}: {programs} programs are in {backing}");
            self.results.notes.push(note);
            if layout == Layout::Huge {
                self.results.is_huge = placed.is_huge();
            }
            placed.free()?;
        }
        if !self.results.is_huge {
            self.results.notes.push(NO_HUGE_PAGES.into());
        }
        let lonely = |layout| -> Result<u64, Error> {
            let placed = resident(corpus, layout, &[0])?;
            let bytes = placed.resident_bytes();
            placed.free()?;
            Ok(bytes)
        };
        self.results.lonely_bytes = (lonely(Layout::Huge)?, lonely(Layout::Packed)?);
        Ok(())
    }

    /// Keeps the counters that count what is executed.
    fn sort_out_counters(&mut self, corpus: &Corpus) -> Result<(), Error> {
        let placed = Placed::new(corpus, Layout::Packed, &[0])?;
        let calls = vec![0; 100_000];
        let sequence = Calls::new(&placed, &calls);
        let expected = calls.len() as u64 * (LOOP_INSNS + corpus.nr_insns(0));
        let mut well = true;
        let sorted = self.counters.sort_out(expected, || well = sequence.make());
        sorted.map_err(Error::Counters)?;
        if !well {
            return Err(Error::WrongSum {
                order: "one program",
                nr: 1,
            });
        }
        placed.free()
    }

    fn name_metrics(&mut self) {
        let spec = &self.plan.spec;
        let (core, results) = (&spec.core, &mut self.results);
        for level in &spec.levels {
            results.metrics.push(Metric {
                name: format!("model_{}_misses", level.name.to_lowercase()),
                about: format!("misses of the {} per call, model of {core}", level.name),
                unit: "misses/call (model)",
            });
        }
        results.nr_modelled = results.metrics.len();
        for event in self.counters.events() {
            let (about, unit) = match event {
                Event::Instructions => ("instructions per call, counted", "instructions/call"),
                Event::Cycles => ("cycles per call, counted", "cycles/call"),
                Event::Itlb => ("iTLB misses per call, counted", "misses/call"),
                Event::Utlb => ("UTLB misses per call, counted", "misses/call"),
            };
            results.metrics.push(Metric {
                name: event.name().into(),
                about: about.into(),
                unit,
            });
        }
        let missing = self.counters.missing().iter().map(ToString::to_string);
        results.notes.extend(missing);
        if self.counters.has_kernels_share() {
            results.notes.push(KERNELS_SHARE.into());
        }
    }

    fn note_corpus(&mut self, corpus: &Corpus) {
        let (least, median, most) = corpus.sizes();
        let note = format!(
            "sizes of programs, spread log-uniformly: {least} to {most} bytes, median {median}"
        );
        self.results.notes.push(note);
    }
}

const NO_HUGE_PAGES: &str = "there are no huge pages to be had here: the layout in 2 MiB pages \
     fell back to 4 KiB pages, and its numbers are those of 4 KiB pages";
const KERNELS_SHARE: &str = "counts include the kernel's share: this machine cannot leave it out";

/// Puts programs into memory, runs each, and looks what is there then.
fn resident(corpus: &Corpus, layout: Layout, by: &[u32]) -> Result<Placed, Error> {
    let mut placed = Placed::new(corpus, layout, by)?;
    if !Calls::new(&placed, by).make() {
        return Err(Error::WrongSum {
            order: "memory",
            nr: by.len(),
        });
    }
    placed.look_again()?;
    Ok(placed)
}

/// Misses by level when the model goes through `calls` a second time.
fn model(
    spec: &TlbSpec,
    placed: &Placed,
    loop_page: PageSize,
    calls: &[u32],
) -> impl Iterator<Item = u64> {
    let mut tlb = Tlb::new(spec);
    for _ in 0..2 {
        tlb.reset_counts();
        for &number in calls {
            tlb.access(call::loop_address(), loop_page);
            let spot = placed.spot(number);
            let (mut at, end) = (spot.rx.start.get(), spot.rx.end().get());
            while at < end {
                tlb.access(at, spot.page);
                at = spot.page.end_of(at);
            }
        }
    }
    tlb.misses().collect::<Vec<_>>().into_iter()
}

/// Programs by how often they are called; those called as often as each other, as they were.
fn hottest_first(calls: &[u32], nr: usize) -> Vec<u32> {
    let mut nr_calls = vec![0_u32; nr];
    for &number in calls {
        nr_calls[number as usize] += 1;
    }
    let mut by: Vec<u32> = (0..nr as u32).collect();
    by.sort_by_key(|&number| std::cmp::Reverse(nr_calls[number as usize]));
    by
}
