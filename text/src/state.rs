//! The one table of text we own, behind the one lock under which text changes.
//!
//! Key types: [`State`] (code maps, foreign pages, sites, detours), [`MapEntry`].
//! [`lock_for_change`] is the door of every change: it makes sure that a fork cannot leave two
//! processes changing one memory. Neighbours: `map`, `foreign`, `txn`, `site`, `fork`. Source: the
//! kernel's `text_mutex` (`kernel/extable.c`).

use std::collections::BTreeMap;

use crate::addr::{RxAddr, RxRange};
use crate::detour;
use crate::error::TextError;
use crate::flush::{FlushScope, flush_icache};
use crate::foreign::Foreign;
use crate::fork::ForkState;
use crate::island::Islands;
use crate::map::Backing;
use crate::memory::TextMemory;
use crate::proc_maps::ProcMaps;
use crate::site::Site;
use crate::sync::{ForkMutex, ForkMutexGuard, RawForkMutex};

/// One live code map.
pub(crate) struct MapEntry {
    pub(crate) rx: RxRange,
    pub(crate) memory: TextMemory,
    pub(crate) backing: Backing,
    pub(crate) collapsed: bool,
}

impl MapEntry {
    /// Puts a copy of the map in its place, while code runs in it.
    fn part(&mut self) -> Result<(), TextError> {
        if self.memory.needs_file() {
            let reason = "in QEMU user mode code cannot be parted from that of another process";
            return Err(TextError::SharedWithParent { reason });
        }
        let copy = self.memory.copy(self.rx)?;
        // Before any hart can fetch from these pages.
        flush_icache(RxRange::new(RxAddr::new(0), 0), FlushScope::Process)?;
        copy.replace_rx(self.rx)?;
        self.memory = copy;
        self.backing = Backing::Memfd;
        self.collapsed = false;
        Ok(())
    }
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
    /// Unused text of objects, and which of it is taken.
    pub(crate) islands: Islands,
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
        islands: Islands::new(),
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
    /// Makes sure that no other process executes what is about to be changed: the children of
    /// forks, of `_Fork` and of bare `clone` share all code until one side changes it. The side
    /// that changes takes copies of its own first, and leaves the old memory to the others.
    ///
    /// # Errors
    /// [`TextError::Map`]: the copies cannot be had. Nothing is changed; some may have been made.
    pub(crate) fn part_from_sharers(&mut self) -> Result<(), TextError> {
        if !self.fork.may_be_shared() {
            return Ok(());
        }
        self.seen = None;
        for entry in self.maps.values_mut() {
            entry.part()?;
        }
        self.foreign.part()?;
        self.fork.has_parted();
        Ok(())
    }

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
