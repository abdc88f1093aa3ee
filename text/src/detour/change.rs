//! Carrying scripts out, a batch at a time: under the text lock, but for the wait.
//!
//! While the lock is not held, the sites of a batch carry its token. Whoever meets one is refused
//! ([`TextError::Busy`]); in the child of a fork the token is void and the site is what its phase
//! says; a site whose text was unmapped is gone when the lock is taken again.
//!
//! # When a step is refused
//! A transaction takes its own stores back, but harts may have fetched what was stored, and the
//! flush that would make them forget it is the very thing that was refused. So before anything else
//! is taken back there must be one flush that succeeds; then the way back is a script like any
//! other, with its own wait. Sites for which that is not to be had stay traps, which lead where the
//! detour goes, and belong to whoever calls next.
//!
//! Key types: [`Entry`], [`Batch`]. Neighbours: `script` (what to do), `pass` (the wait), `txn`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::pass::{self, Stays};
use super::script::{self, Half, ORDER, Part, Phase, Script, Shape, Step};
use super::table;
use super::window::{self, Left, Refused, Window};
use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::flush::{FlushScope, flush_icache};
use crate::state::{self, State};
use crate::sync::ForkMutexGuard;
use crate::sys;
use crate::txn;

/// A site that is not bare.
pub(crate) struct Entry {
    pub(crate) shape: Shape,
    pub(crate) phase: Phase,
    /// The batch that is at work on it.
    token: Option<u64>,
}

impl Entry {
    pub(crate) fn covered(&self) -> RxRange {
        self.shape.detour.covered()
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.token.is_some()
    }

    /// In the child of a fork: the thread at work does not exist here.
    pub(crate) fn release_after_fork(&mut self) {
        self.token = None;
    }
}

/// What becomes of a batch if a thread stays inside of a site.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum IfStuck {
    /// The site stays the trap that it is.
    StaysTrap,
    /// The batch fails.
    Fails,
}

/// One site of a batch.
struct Work {
    at: RxAddr,
    script: Script,
    is_stuck: bool,
}

/// Scripts that are carried out together.
pub(super) struct Batch {
    works: Vec<Work>,
    token: u64,
    if_stuck: IfStuck,
    patience: Duration,
}

impl Batch {
    /// Carries all scripts out, or none.
    pub(super) fn carry_out(
        mut state: ForkMutexGuard<'_, State>,
        plans: Vec<(Shape, Script)>,
        if_stuck: IfStuck,
        patience: Duration,
    ) -> Result<(), TextError> {
        let mut batch = Self::new(&plans, if_stuck, patience);
        batch.begin(&mut state, plans);
        let (mut state, result) = batch.run(state);
        if result.is_err() {
            state = batch.take_back(state);
        }
        batch.end(&mut state);
        result
    }

    /// Carries all scripts out without a trap ([`window`]), or none: `None`. The text lock is held
    /// all the time.
    pub(super) fn carry_out_waiting(
        state: &mut State,
        plans: Vec<(Shape, Script)>,
        patience: Duration,
    ) -> Result<Option<()>, TextError> {
        let waiting: Option<Vec<Script>> = plans
            .iter()
            .map(|(shape, script)| Script::waiting(shape, script.from, script.to))
            .collect();
        let Some(scripts) = waiting else {
            return Ok(None);
        };
        let mut batch = Self::new(&plans, IfStuck::Fails, patience);
        batch.begin(state, plans);
        let became = window::carry_out(state, &scripts, patience);
        for (work, script) in batch.works.iter().zip(&scripts) {
            let Some(entry) = state.detours.get_mut(&work.at.get()) else {
                continue;
            };
            entry.phase = match became {
                Ok(Window::Changed)
                | Err(Refused {
                    left: Left::Changed,
                    ..
                }) => script.to,
                Ok(Window::Stuck)
                | Err(Refused {
                    left: Left::Unchanged,
                    ..
                }) => script.from,
                Err(Refused {
                    left: Left::Traps, ..
                }) => script.trapped(),
            };
        }
        batch.end(state);
        match became {
            Ok(Window::Changed) => Ok(Some(())),
            Ok(Window::Stuck) => Ok(None),
            Err(refused) => Err(refused.why),
        }
    }

    fn new(plans: &[(Shape, Script)], if_stuck: IfStuck, patience: Duration) -> Self {
        static NEXT_TOKEN: AtomicU64 = AtomicU64::new(1);
        Self {
            works: Vec::with_capacity(plans.len()),
            token: NEXT_TOKEN.fetch_add(1, Ordering::Relaxed),
            if_stuck,
            patience,
        }
    }

    fn begin(&mut self, state: &mut State, plans: Vec<(Shape, Script)>) {
        let mut leads = Vec::new();
        for (shape, script) in plans {
            let (at, to) = (shape.detour.at, shape.detour.to);
            let (token, phase) = (Some(self.token), script.from);
            let entry = Entry {
                shape,
                phase,
                token,
            };
            if state.detours.insert(at.get(), entry).is_none() {
                leads.push((at, to));
            }
            self.works.push(Work {
                at,
                script,
                is_stuck: false,
            });
        }
        if !leads.is_empty() {
            table::insert(&leads);
        }
    }

    fn run<'s>(
        &mut self,
        mut state: ForkMutexGuard<'s, State>,
    ) -> (ForkMutexGuard<'s, State>, Result<(), TextError>) {
        for step in ORDER {
            let done = match step {
                Step::Change(part) => self.change(&mut state, part),
                Step::PassBy if self.works.iter().all(|w| w.script.pass.is_none()) => Ok(()),
                Step::PassBy => {
                    drop(state);
                    let passed = self.pass_by();
                    state = state::lock();
                    passed.and_then(|()| self.check_present(&state))
                }
            };
            if done.is_err() {
                return (state, done);
            }
        }
        (state, Ok(()))
    }

    /// One part of all scripts, in one transaction.
    fn change(&self, state: &mut State, part: Part) -> Result<(), TextError> {
        let works = || self.works.iter().filter(|w| !w.is_stuck);
        let halves: Vec<&Half> = works().flat_map(|w| w.script.part(part)).collect();
        if halves.is_empty() {
            return Ok(());
        }
        let mut words: Vec<RxAddr> = halves.iter().map(|h| h.at.align_down(4)).collect();
        words.sort_unstable();
        words.dedup();
        txn::check_mapped(state, &words)?;
        let patches = script::compose(halves, sys::load_text_u32)?;
        txn::patch_locked(state, &patches)?;
        for work in works().filter(|w| !w.script.part(part).is_empty()) {
            if let Some(entry) = state.detours.get_mut(&work.at.get()) {
                entry.phase = work.script.after(part);
            }
        }
        Ok(())
    }

    fn pass_by(&mut self) -> Result<(), TextError> {
        let passes = self.works.iter().enumerate();
        let passes: Vec<_> = passes
            .filter_map(|(i, w)| Some((i, w.script.pass.as_ref()?)))
            .collect();
        let stays = pass::pass_by(&passes, self.patience);
        match (stays.first(), self.if_stuck) {
            (Some(Stays { stuck, .. }), IfStuck::Fails) => Err((*stuck).into()),
            _ => {
                for stay in stays {
                    self.works[stay.index].is_stuck = true;
                }
                Ok(())
            }
        }
    }

    /// Nobody has unmapped a site meanwhile.
    fn check_present(&self, state: &State) -> Result<(), TextError> {
        match self.works.iter().find(|w| self.entry(state, w).is_none()) {
            Some(gone) => Err(TextError::Unmapped { addr: gone.at }),
            None => Ok(()),
        }
    }

    fn entry<'s>(&self, state: &'s State, work: &Work) -> Option<&'s Entry> {
        let entry = state.detours.get(&work.at.get())?;
        (entry.token == Some(self.token)).then_some(entry)
    }

    /// Leads all sites back to where they came from, as far as that can be done soundly.
    fn take_back<'s>(&self, state: ForkMutexGuard<'s, State>) -> ForkMutexGuard<'s, State> {
        let back = |work: &Work| {
            let entry = self.entry(&state, work)?;
            let to = work.script.from;
            (entry.phase != to).then(|| Work {
                at: work.at,
                script: Script::new(&entry.shape, entry.phase, to),
                is_stuck: false,
            })
        };
        let works: Vec<Work> = self.works.iter().filter_map(back).collect();
        let everywhere = RxRange::new(RxAddr::new(0), 0);
        if works.is_empty() || flush_icache(everywhere, FlushScope::Process).is_err() {
            return state;
        }
        let mut back = Self {
            works,
            token: self.token,
            if_stuck: IfStuck::StaysTrap,
            patience: self.patience,
        };
        // What is refused here stays a trap.
        back.run(state).0
    }

    fn end(&self, state: &mut State) {
        let mut bare = Vec::new();
        for work in &self.works {
            let at = work.at.get();
            let Some(entry) = state.detours.get_mut(&at) else {
                continue;
            };
            if entry.token != Some(self.token) {
                continue;
            }
            entry.token = None;
            if entry.phase == Phase::Bare {
                state.detours.remove(&at);
                bare.push(work.at);
            }
        }
        table::remove(&bare);
    }
}
