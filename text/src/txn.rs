//! Transactions: check all, store all, flush once; a mismatch writes nothing.
//!
//! Every change of text in this crate ends in one of two functions, both under the text lock:
//! [`patch_locked`] for words of live code (aligned stores that other harts see whole or not at
//! all) and [`write_locked`] for ranges that nobody can be executing. Both cost a constant number
//! of flushes however long the batch is, and both take back what they stored when the kernel
//! refuses to flush.
//!
//! # Machines that tear
//! QEMU's system emulator before 10.1 translates an aligned word from two loads of 16 bits, the
//! lower half first, so a hart there could run half of the old word and half of the new one: a
//! `jalr t0, lo12(t0)` that becomes a nop is, with its old lower half, `jalr t0, 0(ra)`. Words
//! that change in both halves are therefore changed in stages ([`SyncMode::Staged`]):
//!
//! | stage | the word | a hart that comes by |
//! | --- | --- | --- |
//! | 1 | upper half old, lower half `c.j .` | waits, or still runs the old word |
//! | flush | | no hart is in the midst of translating the old word any more |
//! | 2 | upper half new, lower half `c.j .` | waits: it does not look at the upper half |
//! | 3 | the new word | runs the new word |
//!
//! A hart waits for the time of one flush (longer if a thread of real-time priority keeps the one
//! that changes from running). The thread that changes must not come by itself: in between it calls
//! nothing outside this crate (the flush is a bare `ecall`), and its signals are blocked.
//!
//! Key type: [`WordPatch`]. Neighbours: `state`, `memory` (the view), `flush`, `poke`. Source:
//! kernel `arch/riscv/kernel/patch.c` (`patch_text_nosync`), RISC-V profiles (Ziccif: fetches of
//! naturally aligned 32 bits are atomic).

use std::collections::{BTreeMap, BTreeSet};

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::flush::{self, FlushScope, SyncMode, flush_bare, flush_icache};
use crate::foreign::Spot;
use crate::insn;
use crate::map::Backing;
use crate::memory::RwView;
use crate::proc_maps::{PageMap, ProcMaps};
use crate::state::{self, State};
use crate::sys::{self, Sharing};
use crate::syscall::Errno;

/// One naturally aligned word of live text, in a code map or in foreign r-x text.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct WordPatch {
    /// Where; a multiple of 4.
    pub at: RxAddr,
    /// What must be there.
    pub old: u32,
    /// What shall be there.
    pub new: u32,
}

/// Changes words of live text, all or none, each whole; no order is promised to a thread that
/// executes there before this returns.
///
/// Foreign text may be an ELF's private r-x pages: they are replaced by copies of themselves
/// first. Kernel: `patch_text_nosync`.
///
/// # Errors
/// [`TextError::Misaligned`], [`TextError::Duplicate`], [`TextError::Unmapped`],
/// [`TextError::NotExecutable`], [`TextError::WritableText`], [`TextError::Mismatch`],
/// [`TextError::Flush`], [`TextError::Map`], [`TextError::UnsupportedHost`],
/// [`TextError::SharedWithParent`]. Nothing has changed then.
pub fn patch_words(patches: &[WordPatch]) -> Result<(), TextError> {
    patch_locked(&mut *state::lock_for_change()?, patches)
}

/// Where a word can be stored.
#[derive(Copy, Clone)]
enum Home {
    /// The code map that starts here.
    Map(u64),
    /// Our copy of a foreign page.
    Ours(RxAddr),
    /// A foreign page that is not ours yet.
    Foreign(RxAddr),
}

impl Home {
    fn is_foreign(&self) -> bool {
        !matches!(self, Home::Map(_))
    }
}

/// A store that has been found good, and how to take it back.
struct Store {
    view: usize,
    off_bytes: usize,
    old: u32,
    new: u32,
}

impl Store {
    /// Whether a hart that fetches halves could see one of each word.
    fn could_tear(&self) -> bool {
        let changed = self.old ^ self.new;
        changed & 0xffff != 0 && changed >> 16 != 0
    }
}

pub(crate) fn patch_locked(state: &mut State, patches: &[WordPatch]) -> Result<(), TextError> {
    if patches.is_empty() {
        return Ok(());
    }
    check_shape(patches)?;
    state.part_from_sharers()?;
    let sites: Vec<RxAddr> = patches.iter().map(|p| p.at).collect();
    let homes = find_homes(state, &sites)?;
    let mode = match homes.iter().any(Home::is_foreign) {
        true => flush::sync_mode()?,
        false => flush::sync_mode_of_maps()?,
    };
    check_old(patches)?;
    let (views, stores) = open_views(state, patches, &homes)?;
    let all = Stores {
        mode,
        views: &views,
        stores: &stores,
        sites: &sites,
    };
    if mode == SyncMode::Remap {
        let synced = all.bring_and_map(state, Way::Forth);
        if synced.is_err() {
            let _ = all.bring_and_map(state, Way::Back);
        }
        return synced;
    }
    let synced = {
        // Until the words are whole again, whichever way.
        let _signals = all.come_in_stages().then(sys::BlockedSignals::new);
        let synced = all.bring(Way::Forth);
        if synced.is_err() {
            // Best effort: a hart may have fetched a new word, and no fence is to be had.
            let _ = all.bring(Way::Back);
        }
        synced
    };
    synced.map_err(|errno| TextError::Flush { errno })
}

/// Stores words of pages that are ours, and leaves them stored whatever becomes of the flush, which
/// is tried a few times: a hart that has fetched an old word and sees no fence may keep it for a
/// while. The words must be such as [`patch_locked`] has changed, in text that is never unmapped.
///
/// # Errors
/// [`TextError::Map`]: nothing is stored.
pub(crate) fn store_for_good(state: &mut State, patches: &[WordPatch]) -> Result<(), TextError> {
    const TRIES: usize = 3;
    state.part_from_sharers()?;
    let page_bytes = region::page::size() as u64;
    let sites: Vec<RxAddr> = patches.iter().map(|p| p.at).collect();
    let ours = |at: &RxAddr| Home::Ours(at.align_down(page_bytes));
    let homes: Vec<Home> = sites.iter().map(ours).collect();
    let mode = flush::sync_mode()?;
    let (views, stores) = open_views(state, patches, &homes)?;
    let all = Stores {
        mode,
        views: &views,
        stores: &stores,
        sites: &sites,
    };
    let store = || match mode {
        SyncMode::Remap => all.bring_and_map(state, Way::Forth).is_ok(),
        SyncMode::Flush | SyncMode::Staged => all.bring(Way::Forth).is_ok(),
    };
    let _ = (0..TRIES).any(|_| store());
    Ok(())
}

/// Half-words that can be stored at once: their pages are ours and mapped to be written. What is
/// done with them calls nothing outside this crate and takes no lock.
pub(crate) struct Prepared {
    views: Vec<RwView>,
    /// The word of each half-word, by address.
    words: Vec<(RxAddr, Place)>,
    mode: SyncMode,
    span: RxRange,
}

#[derive(Copy, Clone)]
struct Place {
    view: usize,
    off_bytes: usize,
}

impl Prepared {
    /// # Errors
    /// Those of [`patch_words`], but for a flush.
    pub(crate) fn new(state: &mut State, words: &[RxAddr]) -> Result<Self, TextError> {
        state.part_from_sharers()?;
        let patch = |at: &RxAddr| {
            let now = sys::load_text_u32(*at);
            WordPatch {
                at: *at,
                old: now,
                new: now,
            }
        };
        let homes = find_homes(state, words)?;
        let mode = match homes.iter().any(Home::is_foreign) {
            true => flush::sync_mode()?,
            false => flush::sync_mode_of_maps()?,
        };
        let patches: Vec<WordPatch> = words.iter().map(patch).collect();
        check_shape(&patches)?;
        let (views, stores) = open_views(state, &patches, &homes)?;
        let place = |s: &Store| Place {
            view: s.view,
            off_bytes: s.off_bytes,
        };
        let mut words: Vec<_> = words
            .iter()
            .copied()
            .zip(stores.iter().map(place))
            .collect();
        words.sort_unstable_by_key(|(at, _)| *at);
        let sites: Vec<RxAddr> = words.iter().map(|(at, _)| *at).collect();
        Ok(Self {
            views,
            words,
            mode,
            span: span_of(&sites),
        })
    }

    /// Stores half-words, of which a hart fetches either the old one or the new one, and makes all
    /// harts fetch the new ones. Async-signal-safe.
    ///
    /// # Errors
    /// That of a refused flush: all are stored, and some harts may not know.
    pub(crate) fn store(
        &self,
        halves: impl Iterator<Item = (RxAddr, u16)> + Clone,
    ) -> Result<(), Errno> {
        let put = || {
            for (at, half) in halves.clone() {
                let word = at.align_down(4);
                if let Ok(i) = self.words.binary_search_by_key(&word, |(at, _)| *at) {
                    let Place { view, off_bytes } = self.words[i].1;
                    let off_bytes = off_bytes + (at.get() - word.get()) as usize;
                    self.views[view].store_u16(off_bytes, half);
                }
            }
        };
        put();
        flush_bare(self.span, FlushScope::Process)?;
        if self.mode == SyncMode::Staged {
            put();
            flush_bare(self.span, FlushScope::Process)?;
        }
        Ok(())
    }
}

/// Which way words are changed.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Way {
    /// To the new words; the first refusal ends it.
    Forth,
    /// Back to the old ones, whatever is refused.
    Back,
}

impl Way {
    fn goal(self, s: &Store) -> u32 {
        match self {
            Way::Forth => s.new,
            Way::Back => s.old,
        }
    }
}

/// All stores of one change.
struct Stores<'a> {
    mode: SyncMode,
    views: &'a [RwView],
    stores: &'a [Store],
    /// Where the words are.
    sites: &'a [RxAddr],
}

impl Stores<'_> {
    /// Whether words are torn for a moment.
    fn come_in_stages(&self) -> bool {
        self.mode == SyncMode::Staged && self.stores.iter().any(Store::could_tear)
    }

    fn put(&self, word: &dyn Fn(&Store) -> u32) {
        for s in self.stores {
            self.views[s.view].store_u32(s.off_bytes, word(s));
        }
    }

    /// Stores all words and makes every hart fetch them. Signals may be blocked, those of traps
    /// included, and any function of libc may be what is changed: none is called (`tests/bare.rs`).
    #[inline(never)]
    fn bring(&self, way: Way) -> Result<(), Errno> {
        let goal = |s: &Store| way.goal(s);
        let span = span_of(self.sites);
        if self.come_in_stages() {
            let closed = |s: &Store, word| match s.could_tear() {
                true => insn::wait(word),
                false => word,
            };
            self.put(&|s| closed(s, self.views[s.view].load_u32(s.off_bytes)));
            let flushed = flush_bare(span, FlushScope::Process);
            if way == Way::Forth {
                flushed?;
            }
            self.put(&|s| closed(s, goal(s)));
        }
        self.put(&goal);
        flush_bare(span, FlushScope::Process)?;
        if self.mode == SyncMode::Staged {
            self.put(&goal);
            flush_bare(span, FlushScope::Process)?;
        }
        Ok(())
    }

    /// The same under an emulator that wants the pages mapped anew.
    fn bring_and_map(&self, state: &State, way: Way) -> Result<(), TextError> {
        self.put(&|s| way.goal(s));
        sync(state, self.mode, self.sites)
    }
}

/// From the first of these words to the last.
fn span_of(sites: &[RxAddr]) -> RxRange {
    match (sites.iter().min(), sites.iter().max()) {
        (Some(first), Some(last)) => RxRange::new(*first, (last.get() - first.get()) as usize + 4),
        _ => RxRange::new(RxAddr::new(0), 0),
    }
}

/// Every word is aligned and named once.
fn check_shape(patches: &[WordPatch]) -> Result<(), TextError> {
    if let Some(p) = patches.iter().find(|p| !p.at.is_aligned(4)) {
        return Err(TextError::Misaligned {
            addr: p.at,
            align_bytes: 4,
        });
    }
    let mut sites: Vec<RxAddr> = patches.iter().map(|p| p.at).collect();
    sites.sort_unstable();
    match sites.windows(2).find(|w| w[0] == w[1]) {
        Some(w) => Err(TextError::Duplicate { site: w[0] }),
        None => Ok(()),
    }
}

/// That all words are mapped where text may be changed, so that they can be loaded.
pub(crate) fn check_mapped(state: &mut State, words: &[RxAddr]) -> Result<(), TextError> {
    if let Some(at) = words.iter().find(|w| !w.is_aligned(4)) {
        return Err(TextError::Misaligned {
            addr: *at,
            align_bytes: 4,
        });
    }
    find_homes(state, words).map(|_| ())
}

/// Of each site, given by its words, whether text is there still: its object may have been closed
/// since, and something else may be in its place. Of what is replaced, our sites are forgotten.
///
/// # Errors
/// [`TextError::Map`]: what is mapped cannot be read, so nothing is known of any.
pub(crate) fn present<W: AsRef<[RxAddr]>>(
    state: &mut State,
    sites: impl IntoIterator<Item = W>,
) -> Result<Vec<bool>, TextError> {
    let is_present = |words: W| match find_homes(state, words.as_ref()) {
        Ok(_) => Ok(true),
        Err(
            TextError::Unmapped { .. }
            | TextError::NotExecutable { .. }
            | TextError::WritableText { .. },
        ) => Ok(false),
        Err(other) => Err(other),
    };
    sites.into_iter().map(is_present).collect()
}

/// Finds every word's home.
fn find_homes(state: &mut State, sites: &[RxAddr]) -> Result<Vec<Home>, TextError> {
    sites.iter().map(|at| find_home(state, *at)).collect()
}

fn find_home(state: &mut State, at: RxAddr) -> Result<Home, TextError> {
    if let Some(entry) = state.map_of(at) {
        return Ok(Home::Map(entry.rx.start.get()));
    }
    let maps = match &mut state.seen {
        Some(maps) => maps,
        none => none.insert(ProcMaps::read()?),
    };
    let page_bytes = region::page::size();
    let page = at.align_down(page_bytes as u64);
    if state.foreign.spot_of(at, maps).is_some() {
        return Ok(Home::Ours(page));
    }
    let found = maps.private_text_at(at).map(|_| Home::Foreign(page));
    if state.foreign.forget(page) {
        state.forget_sites(RxRange::new(page, page_bytes));
    }
    found
}

/// Every word is what the caller says, as the harts fetch it.
fn check_old(patches: &[WordPatch]) -> Result<(), TextError> {
    for p in patches {
        let found = sys::load_text_u32(p.at);
        if found != p.old {
            return Err(TextError::Mismatch {
                site: p.at,
                expected: p.old,
                found,
            });
        }
    }
    Ok(())
}

/// Makes every foreign page ours: new ones, and those that a debugger has written to since.
fn adopt_pages(state: &mut State, homes: &[Home]) -> Result<(), TextError> {
    let is_ours = |home: &Home| matches!(home, Home::Ours(_));
    let page_map = homes.iter().any(is_ours).then(PageMap::open).flatten();
    // What a debugger has written and taken back reads the same, and is a copy still. Where that
    // cannot be known, the page is replaced as if it were one.
    let is_as_stored = |page| {
        let copied = page_map.as_ref().and_then(|map| map.is_copied(page));
        copied == Some(false)
    };
    let mut known = BTreeSet::new();
    let mut pages = Vec::new();
    for home in homes {
        let (page, is_wanted): (_, &dyn Fn() -> bool) = match home {
            Home::Map(_) => continue,
            Home::Foreign(page) => (*page, &|| true),
            Home::Ours(page) => (*page, &|| !is_as_stored(*page)),
        };
        if known.insert(page) && is_wanted() {
            pages.push(page);
        }
    }
    pages.sort_unstable();
    if pages.is_empty() {
        return Ok(());
    }
    let maps = match state.seen.take() {
        Some(maps) => maps,
        None => ProcMaps::read()?,
    };
    state.foreign.adopt(&pages, &maps)
}

/// What a view is of: a code map, by its first address, or a batch of foreign pages.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd)]
enum Viewed {
    Map(u64),
    Store(u32),
}

/// Opens one view per map and per batch of foreign pages touched; new pages are made ours.
fn open_views(
    state: &mut State,
    patches: &[WordPatch],
    homes: &[Home],
) -> Result<(Vec<RwView>, Vec<Store>), TextError> {
    adopt_pages(state, homes)?;
    let spot = |(p, home): (&WordPatch, &Home)| match *home {
        Home::Map(start) => Ok((Viewed::Map(start), (p.at.get() - start) as usize)),
        Home::Ours(_) | Home::Foreign(_) => state
            .foreign
            .trusted_spot(p.at)
            .map(|spot| (Viewed::Store(spot.store), spot.off_bytes))
            .ok_or(TextError::Unmapped { addr: p.at }),
    };
    let spots: Vec<_> = patches
        .iter()
        .zip(homes)
        .map(spot)
        .collect::<Result<_, _>>()?;
    // From the first to the last byte that is stored to.
    let mut windows: BTreeMap<Viewed, (usize, usize)> = BTreeMap::new();
    for (viewed, off) in &spots {
        let window = windows.entry(*viewed).or_insert((*off, off + 4));
        *window = (window.0.min(*off), window.1.max(off + 4));
    }
    let mut views = Vec::with_capacity(windows.len());
    let mut view_of = BTreeMap::new();
    for (viewed, (from, to)) in windows {
        let view = open_view(state, viewed, from, to - from)?;
        view_of.insert(viewed, views.len());
        views.push(view);
    }
    let store = |(p, (viewed, off_bytes)): (&WordPatch, &(Viewed, usize))| Store {
        view: view_of[viewed],
        off_bytes: *off_bytes,
        old: p.old,
        new: p.new,
    };
    let stores = patches.iter().zip(&spots).map(store).collect();
    Ok((views, stores))
}

fn open_view(
    state: &mut State,
    viewed: Viewed,
    off_bytes: usize,
    len_bytes: usize,
) -> Result<RwView, TextError> {
    match viewed {
        Viewed::Store(store) => state.foreign.open(Spot { store, off_bytes }, len_bytes),
        Viewed::Map(start) => {
            let entry = state.maps.get_mut(&start);
            let addr = RxAddr::new(start);
            let entry = entry.ok_or(TextError::Unmapped { addr })?;
            entry.memory.open(off_bytes, len_bytes)
        }
    }
}

/// Makes every hart fetch what was stored at `sites`.
fn sync(state: &State, mode: SyncMode, sites: &[RxAddr]) -> Result<(), TextError> {
    if mode == SyncMode::Remap {
        remap(state, sites)?;
    }
    flush_icache(span_of(sites), FlushScope::Process)
}

/// Maps every page that holds one of `sites` over itself.
fn remap(state: &State, sites: &[RxAddr]) -> Result<(), TextError> {
    let page_bytes = region::page::size() as u64;
    let mut pages: Vec<RxAddr> = sites.iter().map(|s| s.align_down(page_bytes)).collect();
    pages.sort_unstable();
    pages.dedup();
    for page in pages {
        match state.map_of(page) {
            None => state.foreign.remap(page)?,
            Some(m) => {
                let file = m.memory.file();
                let file = file.ok_or(TextError::Unmapped { addr: page })?;
                let (range, off_bytes) = match m.backing {
                    Backing::Hugetlb => (m.rx, 0),
                    Backing::Memfd => (
                        RxRange::new(page, page_bytes as usize),
                        page.get() - m.rx.start.get(),
                    ),
                };
                sys::mmap_rx_over(range, file, off_bytes, Sharing::Shared)?;
            }
        }
    }
    Ok(())
}

/// What a range that nobody can be executing shall hold.
#[derive(Copy, Clone)]
pub(crate) enum Content<'a> {
    Bytes(&'a [u8]),
    Illegal,
}

/// Writes ranges of code maps that nobody can be executing; all or none.
pub(crate) fn write_locked(
    state: &mut State,
    writes: &[(RxRange, Content<'_>)],
) -> Result<(), TextError> {
    let writes: Vec<_> = writes
        .iter()
        .copied()
        .filter(|(dst, _)| dst.len_bytes > 0)
        .collect();
    if writes.is_empty() {
        return Ok(());
    }
    check_ranges(state, &writes)?;
    state.part_from_sharers()?;
    let mode = flush::sync_mode_of_maps()?;
    let mut windows: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    for (dst, _) in &writes {
        let start = state.map_of_range(*dst)?.rx.start.get();
        let off = (dst.start.get() - start) as usize;
        let end = off + dst.len_bytes;
        let window = windows.entry(start).or_insert((off, end));
        *window = (window.0.min(off), window.1.max(end));
    }
    let mut views: BTreeMap<u64, RwView> = BTreeMap::new();
    for (start, (from, to)) in windows {
        let view = open_view(state, Viewed::Map(start), from, to - from)?;
        views.insert(start, view);
    }
    let mut undo = Vec::with_capacity(writes.len());
    for (dst, content) in &writes {
        let start = state.map_of_range(*dst)?.rx.start.get();
        let off_bytes = (dst.start.get() - start) as usize;
        let mut old = vec![0; dst.len_bytes];
        sys::read_text(dst.start, &mut old);
        match content {
            Content::Bytes(src) => views[&start].write(off_bytes, src),
            Content::Illegal => views[&start].fill_illegal(off_bytes, dst.len_bytes),
        }
        undo.push((start, off_bytes, old));
    }
    let ends = touched(&writes);
    // Nobody executes here, so no hart can translate old bytes meanwhile: one store is enough
    // in every mode.
    let synced = sync(state, mode, &ends);
    if synced.is_err() {
        for (start, off_bytes, old) in &undo {
            views[start].write(*off_bytes, old);
        }
        let _ = sync(state, mode, &ends);
        return synced;
    }
    for (dst, _) in &writes {
        state.forget_sites(*dst);
    }
    Ok(())
}

/// An address in every page that the ranges touch, and their last bytes' words.
fn touched(writes: &[(RxRange, Content<'_>)]) -> Vec<RxAddr> {
    let page_bytes = region::page::size();
    let mut at = Vec::new();
    for (dst, _) in writes {
        at.extend(
            (0..dst.len_bytes)
                .step_by(page_bytes)
                .filter_map(|o| dst.start.checked_add(o as u64)),
        );
        at.extend(dst.end().checked_sub(1).map(|last| last.align_down(4)));
    }
    at
}

/// Every range lies in one code map, fits its content, and overlaps no other.
fn check_ranges(state: &State, writes: &[(RxRange, Content<'_>)]) -> Result<(), TextError> {
    for (dst, content) in writes {
        state.map_of_range(*dst)?;
        if let Content::Bytes(src) = content {
            if src.len() != dst.len_bytes {
                return Err(TextError::CopyLength {
                    dst: *dst,
                    src_bytes: src.len(),
                });
            }
        }
    }
    let mut ranges: Vec<RxRange> = writes.iter().map(|(dst, _)| *dst).collect();
    ranges.sort_by_key(|r| r.start);
    match ranges.windows(2).find(|w| w[0].end() > w[1].start) {
        Some(w) => Err(TextError::Duplicate { site: w[1].start }),
        None => Ok(()),
    }
}
