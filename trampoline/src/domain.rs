//! Sites, the programs attached to them, and how both change.
//!
//! Key types: [`Trampolines`], one set of hooked functions with packs of its own; [`Attach`];
//! [`LinkId`]. A change of any number of sites is one transaction: everything that can fail is
//! done before the first word of live text is switched.
//!
//! Source: `bpf_trampoline_update`, `bpf_trampoline_link_prog` in the kernel's
//! `kernel/bpf/trampoline.c`.

#![expect(unsafe_code, reason = "declares the promises of attaching")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pack_alloc::PackAlloc;
use rv64::Features;
use symbols::Tools;
use text::threads::{Patience, StuckWhy};
use text::{Deadline, Detour, ForkMutex, ForkMutexGuard, RxAddr, RxRange, TextError};

use crate::change::{Change, Maker, Site, Stored, Wanted};
use crate::entry::{EntryKind, Traps};
use crate::error::TrampError;
use crate::indirect::{Placed, Workshop};
use crate::life::{self, Leftovers, Retired};
use crate::model::FuncModel;
use crate::owner::ChangeLock;
use crate::pin::LibPin;
use crate::prog::Prog;
use crate::tls;

/// The most programs that one function can have. Kernel: `BPF_MAX_TRAMP_LINKS`.
pub const MAX_LINKS: usize = 38;

/// Retired bytes after which a change looks for what can be freed.
const RECLAIM_BYTES: usize = 128 << 10;

/// Retired bytes after which threads that never seem to sleep are asked where they are.
const ASK_BYTES: usize = 4 * RECLAIM_BYTES;

/// A thread between the words of a jump is given this long to leave before others come first: it
/// needs one instruction, and a hart.
const LEAVING: Duration = Duration::from_secs(1);
/// This long at least, however little is left.
const LEAST_LEAVING: Duration = Duration::from_millis(50);

/// Between two tries to free what is retired.
const PAUSE: Duration = Duration::from_millis(1);

/// How long a change waits for their answers.
const ASK_DEADLINE: Duration = Duration::from_millis(20);

/// Links are numbered through the process, so that one of another set is never mistaken for one's
/// own.
static NEXT_LINK: AtomicU64 = AtomicU64::new(1);

/// Names one attached program.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct LinkId(pub(crate) u64);

/// A program and where it shall be attached.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The function.
    pub func: RxAddr,
    /// Its arguments and return value.
    pub model: Arc<FuncModel>,
    /// What runs.
    pub prog: Prog,
    /// Whether a trap may lead to it where no jump can.
    pub traps: Traps,
}

/// Numbers of one [`Trampolines`].
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct TrampStats {
    /// Functions with at least one program.
    pub sites: usize,
    /// Programs attached.
    pub links: usize,
    /// Images that calls go through.
    pub images: usize,
    /// Images, slots, stubs and chains that wait for their grace period.
    pub retired: usize,
    /// Bytes of those.
    pub retired_bytes: usize,
}

/// Everything that a change changes.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) sites: BTreeMap<RxAddr, Site>,
    func_of: BTreeMap<LinkId, RxAddr>,
    pub(crate) retired: Vec<Retired>,
    /// How many bytes of those are worth the next look; beyond what the last one left.
    reclaim_at_bytes: usize,
}

/// A set of hooked functions.
#[derive(Debug)]
pub struct Trampolines {
    shop: Workshop,
    state: ForkMutex<State>,
}

/// What functions shall have.
type Plan = BTreeMap<RxAddr, Wanted>;

impl Trampolines {
    /// An empty set whose images lie in `packs`.
    ///
    /// # Errors
    /// [`TrampError::UnsupportedHost`] where images cannot run; [`TrampError::Text`] when live
    /// text cannot be changed here; [`TrampError::NoThreadBlock`].
    pub fn new(packs: Arc<PackAlloc>) -> Result<Self, TrampError> {
        if !cfg!(all(target_arch = "riscv64", target_os = "linux")) {
            return Err(TrampError::UnsupportedHost);
        }
        text::sync_mode()?;
        tls::ready()?;
        Ok(Trampolines {
            shop: Workshop {
                packs,
                features: Features::RV64GC,
                tools: Tools::empty(),
            },
            state: ForkMutex::default(),
        })
    }

    /// The same, with `tools` told of images; unwinders always are.
    #[must_use]
    pub fn with_tools(mut self, tools: Tools) -> Self {
        self.shop.tools = tools;
        self
    }

    /// Where code is made.
    pub fn workshop(&self) -> Workshop {
        self.shop.clone()
    }

    /// Attaches all of `wanted`, or nothing. When it returns, every call that begins afterwards
    /// runs the programs; the programs of one function run in the order of their attaching.
    ///
    /// # Errors
    /// [`TrampError::TooManyProgs`], [`TrampError::ModelMismatch`], [`TrampError::Layout`],
    /// [`TrampError::CannotMove`], [`TrampError::CannotTrap`], [`TrampError::UnknownExtent`],
    /// [`TrampError::LeadsElsewhere`], [`TrampError::UnboundStub`], [`TrampError::Text`] (no
    /// function, taken by others, out of reach, refused flush),
    /// [`TrampError::Pack`] (no room), [`TrampError::Reentered`]. Nothing has changed then.
    ///
    /// # Safety
    /// 1. Each function is as its model says, and is called by psABI's rules.
    /// 2. Each program is a function of the type [`ProgFn`](crate::ProgFn) that may run where its
    ///    function is called, and its cookie's owner keeps alive what it uses.
    pub unsafe fn attach(&self, wanted: &[Attach]) -> Result<Vec<LinkId>, TrampError> {
        // Outlive the lock.
        let mut leftovers = Leftovers::default();
        let funcs = wanted.iter().map(|a| a.func);
        let holders = Self::exclusively(|| text::holders(funcs.clone()))??;
        let pins = LibPin::of_all(funcs.zip(holders));
        let mut state = self.lock()?;
        let mut plan = Plan::new();
        let mut ids = Vec::new();
        for a in wanted {
            let id = LinkId(NEXT_LINK.fetch_add(1, Ordering::Relaxed));
            let goal = plan.entry(a.func).or_insert_with(|| Wanted {
                pin: pins.get(&a.func).cloned(),
                ..state.wanted_now(a)
            });
            goal.traps = goal.traps.max(a.traps);
            if *goal.model != *a.model {
                return Err(TrampError::ModelMismatch { func: a.func });
            }
            if goal.links.len() == MAX_LINKS {
                return Err(TrampError::TooManyProgs {
                    func: a.func,
                    limit: MAX_LINKS,
                });
            }
            ids.push(id);
            goal.links.push((id, a.prog.clone()));
        }
        self.apply(&mut state, plan)?;
        state
            .func_of
            .extend(ids.iter().zip(wanted).map(|(id, a)| (*id, a.func)));
        self.reclaim_some(&mut state, &mut leftovers);
        Ok(ids)
    }

    /// Detaches all of `links`, or nothing. When it returns, no call that begins afterwards runs
    /// the programs, and none of them runs at the end of a call that is under way.
    ///
    /// # Errors
    /// [`TrampError::NotAttached`]; else as [`Trampolines::attach`].
    pub fn detach(&self, links: &[LinkId]) -> Result<(), TrampError> {
        let mut leftovers = Leftovers::default();
        let mut state = self.lock()?;
        let mut plan = Plan::new();
        for id in links {
            let func = *state.func_of.get(id).ok_or(TrampError::NotAttached)?;
            let site = state.sites.get(&func).ok_or(TrampError::NotAttached)?;
            let goal = plan.entry(func).or_insert_with(|| site.wanted());
            goal.links.retain(|(l, _)| l != id);
        }
        self.apply(&mut state, plan)?;
        for id in links {
            state.func_of.remove(id);
        }
        self.reclaim_some(&mut state, &mut leftovers);
        Ok(())
    }

    /// Waits until everything that is retired is freed, sites that have no programs left
    /// included: their pads are nops again. Kernel: `synchronize_rcu_tasks`.
    ///
    /// # Errors
    /// [`TrampError::StillInUse`] when something still is after `patience`: images and slots that
    /// threads are in, functions whose entries cannot be given back because a thread stands between
    /// the words of their jump. It stays as it is, and nothing is lost by asking again. The same holds
    /// for `ThreadsUnseen` and `ThreadUnseen` of [`TextError`], when the kernel does not show what is
    /// in use, and for what else a change of text may be refused for ([`TrampError::Text`]).
    pub fn synchronize(&self, patience: Duration) -> Result<(), TrampError> {
        let end = Deadline::after(patience);
        let mut round = Duration::from_millis(5);
        loop {
            let pause;
            let mut leftovers = Leftovers::default();
            {
                let mut state = self.lock()?;
                let left = end.left();
                let nr_stuck = self.dismantle_idle(&mut state, left.min(LEAVING))?;
                let patience = Patience::Signal {
                    after: round / 2,
                    deadline: round,
                };
                let unseen = life::reclaim(
                    &mut state.retired,
                    &self.shop.packs,
                    patience,
                    &mut leftovers,
                )?;
                let retired = state.retired.len() + nr_stuck;
                if retired == 0 && leftovers.is_empty() {
                    return Ok(());
                }
                // Waiting does not help where threads cannot even be listed.
                let hidden = unseen.filter(|stuck| matches!(stuck.why, StuckWhy::Hidden(_)));
                if let Some(stuck) = hidden.filter(|stuck| stuck.tid == 0 || end.is_over()) {
                    return Err(TextError::from(stuck).into());
                }
                if retired > 0 && end.is_over() {
                    return Err(TrampError::StillInUse { retired });
                }
                // While entries are tried, no thread can be started.
                pause = if nr_stuck > 0 { round } else { PAUSE };
            }
            if !leftovers.is_empty() {
                // What they own may be a hook, and then there is more to free.
                continue;
            }
            // Unlocked meanwhile: a program that waits for the lock may be what is in use.
            std::thread::sleep(pause);
            round = (round * 2).min(Duration::from_millis(200));
        }
    }

    /// Detaches whatever is attached: programs whose detaching was refused when nobody could be
    /// told.
    ///
    /// # Errors
    /// As [`Trampolines::detach`].
    pub fn detach_rest(&self) -> Result<(), TrampError> {
        let links: Vec<LinkId> = self.lock()?.func_of.keys().copied().collect();
        self.detach(&links)
    }

    /// Forgets what is attached, and what is retired but still in use, so that dropping this frees
    /// none of it. The packs must be kept alive too.
    pub fn leak(&self) {
        if let Ok(mut state) = self.lock() {
            std::mem::forget(std::mem::take(&mut *state));
        }
    }

    /// Numbers as of now.
    pub fn stats(&self) -> TrampStats {
        let Ok(state) = self.lock() else {
            return TrampStats::default();
        };
        let live = state.sites.values().filter(|s| !s.links.is_empty());
        TrampStats {
            sites: live.clone().count(),
            links: live.clone().map(|s| s.links.len()).sum(),
            images: live.count(),
            retired: state.retired.len(),
            retired_bytes: state.retired.iter().map(Retired::bytes).sum(),
        }
    }

    /// How calls of `func` are led to its programs; `None` when it has none.
    pub fn entry_of(&self, func: RxAddr) -> Option<EntryKind> {
        let state = self.lock().ok()?;
        let site = state.sites.get(&func).filter(|s| !s.links.is_empty())?;
        Some(site.entry.kind())
    }

    /// Where the image of `func` lies now.
    pub fn image_of(&self, func: RxAddr) -> Option<RxRange> {
        let state = self.lock().ok()?;
        state.sites.get(&func)?.image.as_ref().map(|i| i.code.rx())
    }

    /// Runs `f` under the lock of changes: for what takes locks of the rooms below, which this
    /// thread may be holding when a program runs in the midst of a change.
    ///
    /// # Errors
    /// [`TrampError::Reentered`]: this is such a program.
    pub fn exclusively<R>(f: impl FnOnce() -> R) -> Result<R, TrampError> {
        let _change = ChangeLock::enter().ok_or(TrampError::Reentered)?;
        Ok(f())
    }

    /// Runs `f` under the lock of changes, across which no fork comes. This thread may have it
    /// already, so `f` takes what else there is to lock by `try_lock` alone.
    pub fn locked<R>(f: impl FnOnce() -> R) -> R {
        let _change = ChangeLock::enter();
        f()
    }

    fn lock(&self) -> Result<Locked<'_>, TrampError> {
        let change = ChangeLock::enter().ok_or(TrampError::Reentered)?;
        Ok(Locked {
            state: self.state.lock(),
            _change: change,
        })
    }

    /// Frees `code`, in which no call begins any more and into which nothing returns, when every
    /// thread has been seen outside of it, and of the code by which calls came here.
    pub(crate) fn retire(&self, code: Placed, way_in: Option<RxRange>) {
        let mut code = Some(code);
        Self::locked(|| {
            if let Some(mut state) = self.state.try_lock() {
                let leaf = code.take().map(|code| Retired::leaf(code, way_in));
                state.retired.extend(leaf);
            }
        });
        // In the midst of a change by this thread: kept for good, which is safe.
        std::mem::forget(code);
        let mut leftovers = Leftovers::default();
        if let Ok(mut state) = self.lock() {
            self.reclaim_some(&mut state, &mut leftovers);
        }
    }

    fn reclaim_some(&self, state: &mut State, leftovers: &mut Leftovers) {
        let bytes: usize = state.retired.iter().map(Retired::bytes).sum();
        if bytes < RECLAIM_BYTES.max(state.reclaim_at_bytes) {
            return;
        }
        // Threads that sleep now and then are seen sleeping sooner or later. Where that does not
        // happen for long, those that run are asked.
        let patience = match bytes < ASK_BYTES {
            true => Patience::PollOnly(Duration::ZERO),
            false => Patience::Signal {
                after: Duration::ZERO,
                deadline: ASK_DEADLINE,
            },
        };
        // What cannot be freed now is freed later; there is nobody to tell.
        let _ = life::reclaim(&mut state.retired, &self.shop.packs, patience, leftovers);
        let left: usize = state.retired.iter().map(Retired::bytes).sum();
        state.reclaim_at_bytes = left + RECLAIM_BYTES / 2;
    }

    /// Brings the sites of `plan` to the links that it lists.
    fn apply(&self, state: &mut State, plan: Plan) -> Result<(), TrampError> {
        let maker = Maker::new(&self.shop.packs, self.shop.features, self.shop.tools);
        let mut drafts = Vec::new();
        for (func, wanted) in plan {
            drafts.push(maker.draft(state.sites.get(&func), func, wanted)?);
        }
        let mut change = Change::new(maker.publish(drafts)?);
        let result = change.store(state);
        change.conclude(
            state,
            if result.is_ok() {
                Stored::Yes
            } else {
                Stored::No
            },
        );
        result
    }

    /// Gives sites without programs their own instructions again and retires their slots; of how
    /// many that cannot be, since a thread stays between the words of a jump.
    fn dismantle_idle(&self, state: &mut State, patience: Duration) -> Result<usize, TrampError> {
        let idle = state.sites.iter().filter(|(_, s)| s.links.is_empty());
        let pad_of = |s: &Site| Some((s.entry.pad()?, s.slot.code.rx().start));
        let pads: Vec<_> = idle.clone().filter_map(|(_, s)| pad_of(s)).collect();
        text::restore_off_all(&pads)?;
        retire(state, |site| site.entry.pad().is_some());
        let detours: Vec<Detour> = state
            .sites
            .values()
            .filter(|s| s.links.is_empty())
            .filter_map(|s| Some(s.entry.moved()?.detour.clone()))
            .collect();
        match text::undivert_all_within(&detours, patience.max(LEAST_LEAVING)) {
            Ok(()) => retire(state, |site| site.entry.moved().is_some()),
            // They are led to their copies for now.
            Err(TextError::Stuck { .. } | TextError::ThreadUnseen { .. }) => {
                return Ok(detours.len());
            }
            Err(other) => return Err(other.into()),
        }
        Ok(0)
    }
}

/// Takes the idle sites of `which` out, whose functions lead to them no more.
fn retire(state: &mut State, which: impl Fn(&Site) -> bool) {
    let (gone, kept) = std::mem::take(&mut state.sites)
        .into_iter()
        .partition(|(_, s)| s.links.is_empty() && which(s));
    state.sites = kept;
    let gone: BTreeMap<RxAddr, Site> = gone;
    let gone = gone
        .into_values()
        .map(|site| Retired::slot(site.slot.code, site.entry, site.pin));
    state.retired.extend(gone);
}

/// The state, and the lock around all changes.
struct Locked<'a> {
    state: ForkMutexGuard<'a, State>,
    _change: ChangeLock,
}

impl std::ops::Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl State {
    /// What the function of `a` has now.
    fn wanted_now(&self, a: &Attach) -> Wanted {
        match self.sites.get(&a.func) {
            Some(site) if !site.links.is_empty() => site.wanted(),
            _ => Wanted {
                model: a.model.clone(),
                links: Vec::new(),
                pin: None,
                traps: a.traps,
            },
        }
    }
}

impl Site {
    fn wanted(&self) -> Wanted {
        Wanted {
            model: self.model.clone(),
            links: self.links.clone(),
            pin: None,
            traps: Traps::Refused,
        }
    }
}
