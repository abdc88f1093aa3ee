//! One transaction: sites go from the programs they have to the programs they shall have.
//!
//! | step | may fail | visible to calls |
//! | --- | --- | --- |
//! | draft: find the entry, generate the image, reserve room for image and stub | yes | no |
//! | publish: copy all of it into packs, one flush | yes | no: nothing leads there |
//! | prepare: slots that nobody enters are led to their new images | yes | no |
//! | arm: pads that were nops get their pair of words, closed | yes | no: a closed pad is a nop |
//! | divert: functions without pads are led to their stubs | yes | no: a stub leads to the copy |
//! | commit: slots, pads and exit blocks are switched, all or none, one flush | yes | yes |
//! | conclude: what is not reachable any more is retired | no | no |
//!
//! A site that loses all programs is switched off, at its pad or in its stub, and keeps its stub
//! until [`synchronize`](crate::Trampolines::synchronize) takes it apart; so hooking it again costs
//! one store.
//!
//! Source: `bpf_trampoline_update` in the kernel's `kernel/bpf/trampoline.c`.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pack_alloc::{Near, PackAlloc, PackBuf, PackCode, PackError};
use rv64::Features;
use symbols::{CodeInfo, Published, Symbol, Tools};
use text::{Detour, Look, Lookup, PadWords, RxAddr, RxRange, Switch, WordPatch};

use crate::domain::{LinkId, State};
use crate::entry::{self, Entry, Found, JAL_REACH_BYTES, Mover, Traps};
use crate::error::TrampError;
use crate::image::{ImageCode, ImageSpec};
use crate::life::{Exit, Image, Inflight, Retired, Runs, What};
use crate::model::FuncModel;
use crate::pin::LibPin;
use crate::prog::Prog;
use crate::slot::{self, Retarget, SLOT_BYTES, SlotWords};
use crate::slow::Desc;

/// How far from its site a slot or an image may lie: what `auipc` reaches, less its rounding.
pub(crate) const REACH_BYTES: u64 = (1 << 31) - (1 << 12);

/// One hooked function, or one that was.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) entry: Entry,
    pub(crate) model: Arc<FuncModel>,
    pub(crate) slot: Slot,
    pub(crate) links: Vec<(LinkId, Prog)>,
    takes_chain: bool,
    /// There is one exactly if there are links.
    pub(crate) image: Option<Image>,
    /// Keeps the function's library loaded.
    pub(crate) pin: Arc<LibPin>,
}

/// A published slot.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) code: PackCode,
    pub(crate) words: SlotWords,
}

/// Makes what sites need.
#[derive(Debug)]
pub(crate) struct Maker<'a> {
    packs: &'a PackAlloc,
    features: Features,
    /// Who is told of images.
    tools: Tools,
    /// At what is mapped, when a function is met that is not hooked yet.
    look: OnceCell<Look>,
}

/// What a site shall become, in buffers.
#[derive(Debug)]
pub(crate) struct Draft {
    goal: Goal,
    image: Option<ImageDraft>,
    stub: Option<(PackBuf, SlotWords)>,
}

#[derive(Debug)]
struct Goal {
    func: RxAddr,
    entry: Entry,
    /// The function finds something in `t2`.
    takes_chain: bool,
    wanted: Wanted,
}

/// The programs that a function shall have.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) model: Arc<FuncModel>,
    pub(crate) links: Vec<(LinkId, Prog)>,
    /// For a function that is not hooked yet.
    pub(crate) pin: Option<Arc<LibPin>>,
    pub(crate) traps: Traps,
}

#[derive(Debug)]
struct ImageDraft {
    buf: PackBuf,
    exits: Vec<Exit>,
    inflight: Box<Inflight>,
    desc: Box<Desc>,
    code: ImageCode,
}

/// An entry, what leads from it if it has no pad, and whether the function finds something in `t2`.
type NewEntry = (Entry, Option<(PackBuf, SlotWords)>, bool);

impl<'a> Maker<'a> {
    pub(crate) fn new(packs: &'a PackAlloc, features: Features, tools: Tools) -> Self {
        Self {
            packs,
            features,
            tools,
            look: OnceCell::new(),
        }
    }

    fn look(&self) -> Result<&Look, TrampError> {
        if let Some(look) = self.look.get() {
            return Ok(look);
        }
        let look = Look::now()?;
        Ok(self.look.get_or_init(|| look))
    }

    /// Makes what `func` needs for `links`, unpublished.
    pub(crate) fn draft(
        &self,
        site: Option<&Site>,
        func: RxAddr,
        wanted: Wanted,
    ) -> Result<Draft, TrampError> {
        let (entry, stub, takes_chain) = match site {
            Some(site) => (site.entry.clone(), None, site.takes_chain),
            None => self.draft_stub(func, wanted.traps)?,
        };
        if let (Some(pad), None) = (entry.pad(), site.and_then(|s| s.image.as_ref())) {
            // Another set of hooks may have taken it, also while the site was idle.
            pad.check_off()?;
        }
        let goal = Goal {
            func,
            entry,
            takes_chain,
            wanted,
        };
        if goal.wanted.links.is_empty() {
            return Ok(Draft {
                goal,
                image: None,
                stub: None,
            });
        }
        self.check_return(&goal, site)?;
        let image = self.draft_image(&goal)?;
        let stub = match (stub, site) {
            (Some(stub), _) => Some(stub),
            (None, None) => Some(self.draft_slot(&goal, image.buf.rx().start)?),
            (None, Some(_)) => None,
        };
        Ok(Draft {
            goal,
            image: Some(image),
            stub,
        })
    }

    /// Refuses programs at the return of a function that must return straight to its caller.
    fn check_return(&self, goal: &Goal, site: Option<&Site>) -> Result<(), TrampError> {
        let calls = |links: &[(LinkId, Prog)]| links.iter().any(|(_, p)| p.runs_at_exit());
        let is_known = site.is_some_and(|site| calls(&site.links));
        if is_known || !calls(&goal.wanted.links) {
            return Ok(());
        }
        let func = goal.func;
        let unwinder = RxAddr::new(symbols::resume_addr());
        match self.look()?.direct_return(func, unwinder)? {
            Some((why, name)) => Err(TrampError::ReturnsDirectly { func, name, why }),
            None => Ok(()),
        }
    }

    /// The entry of a function that is not hooked yet, with the stub of one without a pad, and
    /// whether the function finds something in `t2`.
    fn draft_stub(&self, func: RxAddr, traps: Traps) -> Result<NewEntry, TrampError> {
        let mover = Mover {
            packs: self.packs,
            features: self.features,
            look: self.look()?,
        };
        match entry::find(func, mover.look)? {
            Lookup::Ask(_) => Err(TrampError::UnboundStub { func }),
            Lookup::Known(Found::Pad(pad)) => {
                let chain = entry::check_padded(func, &pad, mover.look)?;
                Ok((Entry::Pad(pad), None, chain))
            }
            Lookup::Known(Found::Func(found)) if found.entry == func => {
                let stub = mover.stub(&found, traps)?;
                Ok((stub.entry, Some((stub.buf, stub.words)), stub.takes_chain))
            }
            Lookup::Known(Found::Func(found)) => Err(TrampError::LeadsElsewhere {
                func,
                to: found.entry,
            }),
        }
    }

    fn draft_image(&self, goal: &Goal) -> Result<ImageDraft, TrampError> {
        let progs: Vec<Prog> = goal.wanted.links.iter().map(|l| l.1.clone()).collect();
        let inflight = Box::new(Inflight::default());
        let mut spec = ImageSpec {
            func: goal.func,
            resume: goal.entry.resume(),
            model: &goal.wanted.model,
            takes_chain: goal.takes_chain,
            progs: &progs,
            inflight: inflight.addr(),
            desc: 0,
            features: self.features,
        };
        let desc = Box::new(spec.descriptor());
        spec.desc = std::ptr::from_ref(&*desc) as u64;
        // Jumps to the function are longest when it is far away; literals are aligned alike in
        // every chunk.
        let far = goal.entry.resume().get().wrapping_add(REACH_BYTES / 2) & !63;
        let mut image = spec.assemble()?;
        let mut buf = self.room_for_image(goal, image.size_at(far)?)?;
        let code = image.finish(buf.rx().start.get())?;
        buf.rw()[..code.bytes.len()].copy_from_slice(&code.bytes);
        if code.back_bytes != 0 {
            inflight.comes_back_to(buf.rx().start.get() + u64::from(code.back_bytes));
        }
        let exits = code.exits.iter().map(|&block| Exit {
            block,
            first_word: word_at(&code.bytes, block.at_bytes as usize),
            runs: Runs::Yes,
        });
        Ok(ImageDraft {
            exits: exits.collect(),
            buf,
            inflight,
            desc,
            code,
        })
    }

    /// Beside the stub of a function without a pad, whose jumps to the image and back are then one
    /// word each; elsewhere if there is no room.
    fn room_for_image(&self, goal: &Goal, len_bytes: usize) -> Result<PackBuf, TrampError> {
        if let Some(moved) = goal.entry.moved() {
            let beside = Near::Within {
                of: moved.copy,
                reach_bytes: JAL_REACH_BYTES,
            };
            match self.packs.alloc(len_bytes, 64, beside) {
                Err(PackError::OutOfReach { .. } | PackError::LimitReached { .. }) => {}
                done => return Ok(done?),
            }
        }
        Ok(self.packs.alloc(len_bytes, 64, near(goal))?)
    }

    fn draft_slot(&self, goal: &Goal, image: RxAddr) -> Result<(PackBuf, SlotWords), TrampError> {
        let mut buf = self.packs.alloc(SLOT_BYTES, 64, near(goal))?;
        let (bytes, words) = slot::new_slot(buf.rx().start, image)
            .ok_or(TrampError::OutOfReach { func: goal.func })?;
        buf.rw()[..SLOT_BYTES].copy_from_slice(&bytes);
        Ok((buf, words))
    }

    /// Copies all drafts into their packs, with one flush.
    pub(crate) fn publish(&self, drafts: Vec<Draft>) -> Result<Vec<SiteChange>, TrampError> {
        let mut bufs = Vec::new();
        let mut rests = Vec::new();
        for Draft { goal, image, stub } in drafts {
            let slot_words = stub.map(|(buf, words)| {
                bufs.push(buf);
                words
            });
            let image = image.map(
                |ImageDraft {
                     buf,
                     exits,
                     inflight,
                     desc,
                     code,
                 }| {
                    bufs.push(buf);
                    (exits, inflight, desc, code)
                },
            );
            rests.push((goal, slot_words, image));
        }
        let mut codes = self.packs.finalize_all(bufs)?.into_iter();
        let changes = rests.into_iter().map(|(goal, slot_words, image)| {
            let slot = slot_words.and_then(|words| {
                Some(Slot {
                    code: codes.next()?,
                    words,
                })
            });
            let image = image.and_then(|(exits, inflight, desc, made)| {
                let links = goal.wanted.links.iter();
                let progs = links.map(|(id, p)| (id.0, p.clone())).collect();
                let code = codes.next()?;
                Some(Image {
                    _published: self.tell(goal.func, &code, &made),
                    code,
                    exits,
                    inflight,
                    _desc: desc,
                    progs,
                })
            });
            SiteChange { goal, slot, image }
        });
        Ok(changes.collect())
    }

    /// Unwinders and tools learn of an image before anybody is in it.
    fn tell(&self, func: RxAddr, code: &PackCode, made: &ImageCode) -> Published {
        let range = RxRange::new(code.rx().start, made.bytes.len());
        let symbol = Symbol {
            name: format!("bpf_trampoline_{:x}", func.get()),
            off: 0,
            len: made.bytes.len() as u32,
        };
        let info = CodeInfo {
            range,
            bytes: &made.bytes,
            symbols: &[symbol],
            lines: &[],
            unwind: std::slice::from_ref(&made.unwind),
            landings: made.landing.as_slice(),
        };
        symbols::publish(&info, self.tools)
    }
}

fn near(goal: &Goal) -> Near {
    Near::Within {
        of: goal.entry.range().start,
        reach_bytes: REACH_BYTES,
    }
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What a site shall become, published but not reached yet.
#[derive(Debug)]
pub(crate) struct SiteChange {
    goal: Goal,
    /// For a site that had none.
    slot: Option<Slot>,
    image: Option<Image>,
}

/// The stores of one transaction.
#[derive(Debug)]
pub(crate) struct Change {
    /// By function.
    sites: Vec<SiteChange>,
    /// What slots hold after the commit, by function.
    words: BTreeMap<RxAddr, SlotWords>,
    /// How far new sites have come.
    armed: Armed,
}

/// What leads to the stubs of new sites.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Armed {
    No,
    /// The pads do.
    Pads,
    /// So do the functions without pads.
    All,
}

impl Change {
    pub(crate) fn new(mut sites: Vec<SiteChange>) -> Self {
        sites.sort_by_key(|c| c.goal.func);
        Change {
            sites,
            words: BTreeMap::new(),
            armed: Armed::No,
        }
    }

    /// Everything up to the commit. On error no call goes another way than before.
    pub(crate) fn store(&mut self, state: &mut State) -> Result<(), TrampError> {
        let mut commit = self.lead_slots(state)?;
        text::arm_off_all(&self.to_arm(state))?;
        self.armed = Armed::Pads;
        self.divert(state)?;
        self.armed = Armed::All;
        for c in &self.sites {
            let site = state.sites.get(&c.goal.func);
            let slot = c.slot.as_ref().or(site.map(|s| &s.slot));
            let (Some(pad), Some(slot)) = (c.goal.entry.pad(), slot) else {
                continue;
            };
            let target = slot.code.rx().start;
            match (site.is_some_and(|s| s.image.is_some()), c.image.is_some()) {
                (false, true) => commit.push(pad.switch(target, Switch::On)?),
                (true, false) => commit.push(pad.switch(target, Switch::Off)?),
                _ => {}
            }
        }
        let removed = self.removed_links(state);
        let concerned = self.images_of(state);
        commit.extend(concerned.flat_map(|i| i.exit_patches(&removed)));
        Ok(text::patch_words(&commit)?)
    }

    /// Pads that must be armed, and for which slot: those of new sites, and those of idle ones that
    /// another set of hooks has used meanwhile. (Nobody else does now: there is one lock for all.)
    fn to_arm(&self, state: &State) -> Vec<(PadWords, RxAddr)> {
        let arm = |c: &SiteChange| {
            let pad = c.goal.entry.pad()?;
            let site = state.sites.get(&c.goal.func);
            let idle = site.filter(|s| s.image.is_none() && c.image.is_some());
            let slot = c.slot.as_ref().or(idle.map(|s| &s.slot))?;
            let target = slot.code.rx().start;
            let done = idle.is_some() && pad.is_armed_off_for(target);
            (!done).then_some((pad, target))
        };
        self.sites.iter().filter_map(arm).collect()
    }

    /// Leads new functions without pads to their stubs, and tries those again whose jump had to
    /// wait for a thread.
    fn divert(&mut self, state: &mut State) -> Result<(), TrampError> {
        let wants = |c: &SiteChange| {
            let moved = c.goal.entry.moved()?;
            (c.slot.is_some() || (moved.waits && c.image.is_some())).then(|| moved.detour.clone())
        };
        let detours: Vec<Detour> = self.sites.iter().filter_map(wants).collect();
        self.lead_islands()?;
        let became = text::divert_all(&detours)?;
        for (detour, became) in detours.iter().zip(became) {
            let new = self.site_mut(detour.at).into_iter();
            let entries = new.map(|c| &mut c.goal.entry);
            let old = state.sites.get_mut(&detour.at).map(|s| &mut s.entry);
            for entry in entries.chain(old) {
                entry.set_waits(became);
            }
        }
        Ok(())
    }

    /// Leads the islands of new functions to their stubs; nothing leads to the islands yet.
    fn lead_islands(&self) -> Result<(), TrampError> {
        let new = self.sites.iter().filter_map(|c| {
            let bridge = c.goal.entry.moved()?.bridge.as_ref()?;
            let stub = c.slot.as_ref()?.code.rx().start;
            Some((&*bridge.island, stub, bridge.scratch))
        });
        Ok(text::lead_all(&new.collect::<Vec<_>>())?)
    }

    /// Leads the slots of idle sites to their new images, and prepares those of busy ones; what
    /// is left to be stored at the commit is returned.
    fn lead_slots(&mut self, state: &mut State) -> Result<Vec<WordPatch>, TrampError> {
        let (mut first, mut second, mut commit) = (Vec::new(), Vec::new(), Vec::new());
        let mut led = Vec::new();
        for c in &self.sites {
            let func = c.goal.func;
            let site = state.sites.get(&func);
            let Some((slot, target)) = c.leads_to(site) else {
                continue;
            };
            let Retarget {
                prepare,
                commit: switch,
                words,
            } = slot::retarget(slot.code.rx().start, slot.words, target)
                .ok_or(TrampError::OutOfReach { func })?;
            first.extend(prepare);
            led.push((func, prepare.map(|p| p.new), words));
            let is_idle = site.is_some_and(|s| s.image.is_none()) && c.goal.entry.pad().is_some();
            if is_idle {
                second.push(switch);
            } else {
                commit.push(switch);
                self.words.insert(func, words);
            }
        }
        text::patch_words(&first)?;
        for (func, dist, _) in &led {
            let new = self.site_mut(*func).and_then(|c| c.slot.as_mut());
            let slot = new.or(state.sites.get_mut(func).map(|s| &mut s.slot));
            if let (Some(slot), Some(dist)) = (slot, dist) {
                slot.words.set_dist(*dist);
            }
        }
        text::patch_words(&second)?;
        for (func, _, words) in &led {
            if let (Some(site), false) = (state.sites.get_mut(func), self.words.contains_key(func))
            {
                site.slot.words = *words;
            }
        }
        Ok(commit)
    }

    /// The change of the site of `func`.
    fn site_mut(&mut self, func: RxAddr) -> Option<&mut SiteChange> {
        let found = self.sites.binary_search_by_key(&func, |c| c.goal.func);
        self.sites.get_mut(found.ok()?)
    }

    /// Links that are attached now and will not be.
    fn removed_links(&self, state: &State) -> BTreeSet<u64> {
        let of_site = |c: &SiteChange| {
            let has = state.sites.get(&c.goal.func).map(|s| &s.links);
            let has = has.into_iter().flatten().map(|l| l.0);
            let stays = |id: &LinkId| c.goal.wanted.links.iter().any(|l| l.0 == *id);
            has.filter(|id| !stays(id))
                .map(|id| id.0)
                .collect::<Vec<_>>()
        };
        self.sites.iter().flat_map(of_site).collect()
    }

    /// Every image that a call of one of the sites can be in: those of now, and all that are
    /// retired.
    fn images_of<'s>(&'s self, state: &'s State) -> impl Iterator<Item = &'s Image> {
        let sites = self.sites.iter();
        let sites = sites.filter_map(|c| state.sites.get(&c.goal.func));
        let old = state.retired.iter().filter_map(|r| match &r.what {
            What::Image(image) => Some(image),
            What::Slot(..) | What::Leaf(_) => None,
        });
        sites.filter_map(|s| s.image.as_ref()).chain(old)
    }

    /// Brings `state` up to what the text is now.
    pub(crate) fn conclude(self, state: &mut State, stored: Stored) {
        match stored {
            Stored::Yes => self.take_effect(state),
            Stored::No => self.give_up(state),
        }
    }

    fn take_effect(self, state: &mut State) {
        let removed = self.removed_links(state);
        if !removed.is_empty() {
            let progs = self.images_of(state).flat_map(|i| &i.progs);
            let gone = progs.filter(|(link, _)| removed.contains(link));
            gone.for_each(|(_, prog)| prog.state.detach());
            // The images of now: what they become is retired, and asked again.
            for c in &self.sites {
                let site = state.sites.get_mut(&c.goal.func);
                if let Some(image) = site.and_then(|s| s.image.as_mut()) {
                    image.exits_patched(&removed);
                }
            }
            for retired in &mut state.retired {
                if let What::Image(image) = &mut retired.what {
                    image.exits_patched(&removed);
                }
            }
        }
        for SiteChange { goal, slot, image } in self.sites {
            let Goal {
                func,
                entry,
                takes_chain,
                wanted,
            } = goal;
            match (state.sites.get_mut(&func), slot) {
                (Some(site), _) => {
                    site.model = wanted.model;
                    site.links = wanted.links;
                    if let Some(words) = self.words.get(&func) {
                        site.slot.words = *words;
                    }
                    let slot = site.slot.code.rx();
                    let old = std::mem::replace(&mut site.image, image);
                    state.retired.extend(old.map(|i| Retired::image(i, slot)));
                }
                (None, Some(mut slot)) => {
                    if let Some(words) = self.words.get(&func) {
                        slot.words = *words;
                    }
                    state
                        .sites
                        .insert(func, Site::new(entry, takes_chain, slot, wanted, image));
                }
                (None, None) => {}
            }
        }
    }

    /// The commit was refused. A hart may have seen some of it before it was taken back, and a
    /// prepared slot may lead to a new image: none of the new code is freed at once.
    fn give_up(self, state: &mut State) {
        for SiteChange { goal, slot, image } in self.sites {
            let Goal {
                func,
                entry,
                takes_chain,
                wanted,
            } = goal;
            let is_led = match (&entry, self.armed) {
                (_, Armed::All) | (Entry::Pad(_), Armed::Pads) => true,
                (_, Armed::No) | (Entry::Moved(_), Armed::Pads) => false,
            };
            match slot {
                Some(slot) if is_led => {
                    let idle = Wanted {
                        links: Vec::new(),
                        ..wanted
                    };
                    state
                        .sites
                        .insert(func, Site::new(entry, takes_chain, slot, idle, None));
                }
                Some(slot) if self.armed == Armed::Pads => {
                    // It was led to and no more is: somebody may be on the way.
                    let pin = wanted.pin.unwrap_or_default();
                    let retired = Retired::slot(slot.code, entry, pin);
                    state.retired.push(retired);
                }
                _ => {}
            }
            if let Some(image) = image {
                let slot = state
                    .sites
                    .get(&func)
                    .map_or(image.code.rx(), |s| s.slot.code.rx());
                state.retired.push(Retired::image(image, slot));
            }
        }
    }
}

impl Site {
    fn new(
        entry: Entry,
        takes_chain: bool,
        slot: Slot,
        wanted: Wanted,
        image: Option<Image>,
    ) -> Self {
        let Wanted {
            model, links, pin, ..
        } = wanted;
        Site {
            entry,
            model,
            slot,
            links,
            takes_chain,
            image,
            pin: pin.unwrap_or_default(),
        }
    }
}

impl SiteChange {
    /// The slot that the commit leads elsewhere, and where to. A new pad's slot leads to its image
    /// from the beginning; one of a function without pad leads to the copy while there is none.
    fn leads_to<'a>(&'a self, site: Option<&'a Site>) -> Option<(&'a Slot, RxAddr)> {
        let image = self.image.as_ref().map(|i| i.code.rx().start);
        match (&self.goal.entry, &self.slot, site) {
            (Entry::Pad(_), _, site) => Some((&site?.slot, image?)),
            (Entry::Moved(moved), Some(slot), _) => Some((slot, image.unwrap_or(moved.copy))),
            (Entry::Moved(moved), None, site) => Some((&site?.slot, image.unwrap_or(moved.copy))),
        }
    }
}

/// Has the commit been stored?
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Stored {
    Yes,
    No,
}
