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
//! Key type: [`WordPatch`]. Neighbours: `state`, `sys` (the rw view), `flush`, `poke`. Source:
//! kernel `arch/riscv/kernel/patch.c` (`patch_text_nosync`), RISC-V profiles (Ziccif: fetches of
//! naturally aligned 32 bits are atomic).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::addr::{RxAddr, RxRange};
use crate::error::TextError;
use crate::flush::{self, FlushScope, SyncMode, flush_icache};
use crate::insn;
use crate::map::Backing;
use crate::proc_maps::{PageMap, ProcMaps};
use crate::state::{self, State};
use crate::sys::{self, RwView, Sharing};

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
    let sites: Vec<RxAddr> = patches.iter().map(|p| p.at).collect();
    let homes = find_homes(state, &sites)?;
    let mode = match homes.iter().any(Home::is_foreign) {
        true => flush::sync_mode()?,
        false => flush::sync_mode_of_maps()?,
    };
    check_old(patches)?;
    let (views, stores) = open_views(state, patches, &homes)?;
    let in_stages = mode == SyncMode::Staged && stores.iter().any(Store::could_tear);
    // Until the words are whole again, whichever way.
    let _signals = in_stages.then(sys::BlockedSignals::new);
    let bring = |way| bring(state, mode, (&views, &stores, &sites), way);
    let synced = bring(Way::Forth);
    if synced.is_err() {
        // Best effort: a hart may have fetched a new word, and no fence is to be had.
        let _ = bring(Way::Back);
    }
    synced
}

/// Stores words of pages that are ours, and leaves them stored whatever becomes of the flush, which
/// is tried a few times: a hart that has fetched an old word and sees no fence may keep it for a
/// while. The words must be such as [`patch_locked`] has changed, in text that is never unmapped.
///
/// # Errors
/// [`TextError::Map`]: nothing is stored.
pub(crate) fn store_for_good(state: &mut State, patches: &[WordPatch]) -> Result<(), TextError> {
    const TRIES: usize = 3;
    let page_bytes = region::page::size() as u64;
    let sites: Vec<RxAddr> = patches.iter().map(|p| p.at).collect();
    let ours = |at: &RxAddr| Home::Ours(at.align_down(page_bytes));
    let homes: Vec<Home> = sites.iter().map(ours).collect();
    let mode = flush::sync_mode()?;
    let (views, stores) = open_views(state, patches, &homes)?;
    let store = || bring(state, mode, (&views, &stores, &sites), Way::Forth).is_ok();
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
    /// [`TextError::Flush`]: all are stored, and some harts may not know.
    pub(crate) fn store(
        &self,
        halves: impl Iterator<Item = (RxAddr, u16)> + Clone,
    ) -> Result<(), TextError> {
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
        flush_icache(self.span, FlushScope::Process)?;
        if self.mode == SyncMode::Staged {
            put();
            flush_icache(self.span, FlushScope::Process)?;
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

/// Stores all words and makes every hart fetch them. Signals may be blocked, and `malloc` may be
/// what is changed: nothing is allocated in between.
fn bring(
    state: &State,
    mode: SyncMode,
    (views, stores, sites): (&[RwView], &[Store], &[RxAddr]),
    way: Way,
) -> Result<(), TextError> {
    let put = |word: &dyn Fn(&Store) -> u32| {
        for s in stores {
            views[s.view].store_u32(s.off_bytes, word(s));
        }
    };
    let goal = |s: &Store| match way {
        Way::Forth => s.new,
        Way::Back => s.old,
    };
    if mode == SyncMode::Staged && stores.iter().any(Store::could_tear) {
        let closed = |s: &Store, word| match s.could_tear() {
            true => insn::wait(word),
            false => word,
        };
        put(&|s| closed(s, views[s.view].load_u32(s.off_bytes)));
        let flushed = flush_icache(span_of(sites), FlushScope::Process);
        if way == Way::Forth {
            flushed?;
        }
        put(&|s| closed(s, goal(s)));
    }
    put(&goal);
    sync(state, mode, sites, || put(&goal))
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
    if state.foreign.off_of(at, maps).is_some() {
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

/// Makes every foreign page ours: new ones, and those that a debugger has written to since. Gives a
/// view of them all.
fn adopt_pages(
    state: &mut State,
    patches: &[WordPatch],
    homes: &[Home],
) -> Result<Option<RwView>, TextError> {
    if !homes.iter().any(Home::is_foreign) {
        return Ok(None);
    }
    let view = state.foreign.view()?;
    let (mut pages, mut fresh) = (BTreeSet::new(), BTreeSet::new());
    for (p, home) in patches.iter().zip(homes) {
        match *home {
            Home::Map(_) => {}
            Home::Foreign(page) => {
                pages.insert(page);
            }
            Home::Ours(page) => {
                let in_file = state.foreign.trusted_off(p.at);
                let is_fresh = match (&view, in_file) {
                    (Some(view), Some(off)) => view.load_u32(off) == p.old,
                    _ => false,
                };
                let seen = if is_fresh { &mut fresh } else { &mut pages };
                seen.insert(page);
            }
        }
    }
    // What a debugger has written and taken back reads the same, and is a copy still.
    if let Some(page_map) = fresh.first().and_then(|_| PageMap::open()) {
        pages.extend(fresh.into_iter().filter(|page| page_map.is_copied(*page)));
    }
    if pages.is_empty() {
        return Ok(view);
    }
    drop(view);
    let pages: Vec<RxAddr> = pages.into_iter().collect();
    for page in &pages {
        state.foreign.forget(*page);
    }
    state.seen = None;
    state.foreign.adopt(&pages)?;
    state.foreign.view()
}

/// Maps one rw view per map touched, and one for all foreign pages, which are made ours.
fn open_views(
    state: &mut State,
    patches: &[WordPatch],
    homes: &[Home],
) -> Result<(Vec<RwView>, Vec<Store>), TextError> {
    let mut views = Vec::from_iter(adopt_pages(state, patches, homes)?);
    let mut view_of: BTreeMap<Option<u64>, usize> = BTreeMap::new();
    view_of.extend(views.first().map(|_| (None, 0)));
    let mut stores = Vec::with_capacity(patches.len());
    for (p, home) in patches.iter().zip(homes) {
        let (key, off_bytes) = match *home {
            Home::Map(start) => (Some(start), Some((p.at.get() - start) as usize)),
            Home::Ours(_) | Home::Foreign(_) => (None, state.foreign.trusted_off(p.at)),
        };
        let off_bytes = off_bytes.ok_or(TextError::Unmapped { addr: p.at })?;
        let view = match view_of.get(&key) {
            Some(view) => *view,
            None => {
                let entry = key.and_then(|start| state.maps.get(&start));
                let entry = entry.ok_or(TextError::Unmapped { addr: p.at })?;
                views.push(RwView::new(&entry.file, entry.rx.len_bytes)?);
                view_of.insert(key, views.len() - 1);
                views.len() - 1
            }
        };
        stores.push(Store {
            view,
            off_bytes,
            old: p.old,
            new: p.new,
        });
    }
    Ok((views, stores))
}

/// Makes every hart fetch what was stored at `sites`.
fn sync(
    state: &State,
    mode: SyncMode,
    sites: &[RxAddr],
    store_again: impl FnOnce(),
) -> Result<(), TextError> {
    let span = span_of(sites);
    match mode {
        SyncMode::Flush => flush_icache(span, FlushScope::Process),
        SyncMode::Staged => {
            flush_icache(span, FlushScope::Process)?;
            store_again();
            flush_icache(span, FlushScope::Process)
        }
        SyncMode::Remap => {
            remap(state, sites)?;
            flush_icache(span, FlushScope::Process)
        }
    }
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
            Some(m) if m.backing == Backing::Hugetlb => {
                sys::mmap_rx_over(m.rx, &m.file, 0, Sharing::Shared)?;
            }
            Some(m) => {
                let off_bytes = page.get() - m.rx.start.get();
                let range = RxRange::new(page, page_bytes as usize);
                sys::mmap_rx_over(range, &m.file, off_bytes, Sharing::Shared)?;
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
    let mode = flush::sync_mode_of_maps()?;
    let mut views: BTreeMap<u64, RwView> = BTreeMap::new();
    for (dst, _) in &writes {
        let entry = state.map_of_range(*dst)?;
        if let Entry::Vacant(vacant) = views.entry(entry.rx.start.get()) {
            vacant.insert(RwView::new(&entry.file, entry.rx.len_bytes)?);
        }
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
    let mode = if mode == SyncMode::Staged {
        SyncMode::Flush
    } else {
        mode
    };
    let synced = sync(state, mode, &ends, || ());
    if synced.is_err() {
        for (start, off_bytes, old) in &undo {
            views[start].write(*off_bytes, old);
        }
        let _ = sync(state, mode, &ends, || ());
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
