//! The one table of text we own, behind the one lock under which text changes.
//!
//! Key types: [`State`] (code maps, foreign pages, sites, detours), [`MapEntry`].
//! [`lock_for_change`] is the door of every change: it makes sure that a fork cannot leave two
//! processes changing one memory. Neighbours: `map`, `foreign`, `txn`, `site`, `fork`. Source: the
//! kernel's `text_mutex` (`kernel/extable.c`).

use std::collections::BTreeMap;
use std::fs::File;

use crate::addr::{RxAddr, RxRange};
use crate::detour;
use crate::error::TextError;
use crate::foreign::Foreign;
use crate::fork::ForkState;
use crate::map::Backing;
use crate::proc_maps::ProcMaps;
use crate::site::Site;
use crate::sync::{ForkMutex, ForkMutexGuard, RawForkMutex};

/// One live code map.
pub(crate) struct MapEntry {
    pub(crate) rx: RxRange,
    pub(crate) file: File,
    pub(crate) backing: Backing,
    pub(crate) collapsed: bool,
}

/// All text we own.
pub(crate) struct State {
    /// By first address.
    pub(crate) maps: BTreeMap<u64, MapEntry>,
    /// What is mapped, once it has been asked, until a page is replaced or the lock is given back.
    pub(crate) seen: Option<ProcMaps>,
    pub(crate) foreign: Foreign,
    /// Sites that have been armed and not restored, by the address of their `hi` word.
    pub(crate) sites: BTreeMap<u64, Site>,
    /// Detours that have been laid and not taken away, by address.
    pub(crate) detours: BTreeMap<u64, detour::Entry>,
    /// Whether threads can be started.
    pub(crate) gate: detour::Gate,
    pub(crate) fork: ForkState,
}

static STATE: ForkMutex<State> = ForkMutex::const_new(
    <RawForkMutex as parking_lot::lock_api::RawMutex>::INIT,
    State {
        maps: BTreeMap::new(),
        seen: None,
        foreign: Foreign::new(),
        sites: BTreeMap::new(),
        detours: BTreeMap::new(),
        gate: detour::Gate::open(),
        fork: ForkState::new(),
    },
);

/// The lock itself, for the fork handlers.
pub(crate) fn raw() -> &'static ForkMutex<State> {
    &STATE
}

/// Locks the table to look something up.
pub(crate) fn lock() -> ForkMutexGuard<'static, State> {
    let mut state = STATE.lock();
    state.seen = None;
    state
}

/// Locks the table to change text.
pub(crate) fn lock_for_change() -> Result<ForkMutexGuard<'static, State>, TextError> {
    let mut state = lock();
    state.fork.check()?;
    Ok(state)
}

/// Sees to it that a fork takes the locks of this crate: to be called before the dynamic linker is
/// asked, whose lock glibc leaves as it is in the child.
pub(crate) fn watch_forks() -> Result<(), TextError> {
    STATE.lock().fork.watch()
}

impl State {
    /// The map that holds `addr`.
    pub(crate) fn map_of(&self, addr: RxAddr) -> Option<&MapEntry> {
        let (_, entry) = self.maps.range(..=addr.get()).next_back()?;
        entry.rx.contains(addr).then_some(entry)
    }

    /// The map that holds all of `range`.
    pub(crate) fn map_of_range(&self, range: RxRange) -> Result<&MapEntry, TextError> {
        self.map_of(range.start)
            .filter(|m| m.rx.contains_range(&range))
            .ok_or(TextError::NotInCodeMap { range })
    }

    /// Forgets the sites and detours in a range whose text is replaced as a whole.
    pub(crate) fn forget_sites(&mut self, range: RxRange) {
        let keys: Vec<u64> = self
            .sites
            .range(range.start.get()..range.end().get())
            .map(|(k, _)| *k)
            .collect();
        for key in keys {
            self.sites.remove(&key);
        }
        let gone: Vec<RxAddr> = self.detours_over(range).map(|(at, _)| at).collect();
        for at in &gone {
            self.detours.remove(&at.get());
        }
        detour::forget(&gone);
    }

    /// The detours that cover any of `range`.
    pub(crate) fn detours_over(
        &self,
        range: RxRange,
    ) -> impl Iterator<Item = (RxAddr, &detour::Entry)> {
        let from = range.start.get().saturating_sub(u64::from(u8::MAX));
        let near = self.detours.range(from..range.end().get());
        let near = near.map(|(at, entry)| (RxAddr::new(*at), entry));
        near.filter(move |(_, entry)| entry.covered().end() > range.start)
    }

    /// Whether a pad that is armed has a byte in `range`.
    pub(crate) fn has_site_in(&self, range: RxRange) -> bool {
        let from = range.start.get().saturating_sub(7);
        self.sites.range(from..range.end().get()).next().is_some()
    }
}
