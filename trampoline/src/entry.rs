//! How calls are led away from a function: through its pad, or by moving its first instructions.
//!
//! ```text
//!   pad                                    no pad
//!   func: auipc t1 ─┐                      func: jal or auipc+jr, or a trap ─┐
//!         jr t1     ▼                            rest                        ▼
//!         rest    stub:  j image           ▲                               stub:  j image, or copy
//!                                          └───────────── j rest ◀── copy: the first instructions
//! ```
//!
//! A pad is switched on and off where it is. A function without one is led to its stub for as long
//! as the stub exists, and the stub's first word chooses: the image, or the copy of what the jump
//! covers. An image that calls the function calls the copy.
//!
//! Which jump:
//!
//! | jump | bytes | where |
//! | --- | --- | --- |
//! | `jal` to the stub | 4 | a pack within 1 MiB can be had |
//! | `jal` to an island of the object ([`text::Island`]), which leads to the stub | 4 | it is one store, or no other jump fits; while there are islands |
//! | `auipc` and `jalr` | 8 | else |
//! | `c.ebreak`, a trap | 2 | no jump fits, and the caller allows it |
//!
//! Key types: [`EntryKind`], [`Traps`], [`Entry`]. Neighbours: [`crate::prologue`] (what can be
//! moved), `text` (writes the jump while threads run there), `slot`, `change`. Source: the
//! kernel's `kernel/kprobes.c` (optimised probes) for the idea.

use std::path::Path;
use std::sync::Arc;

use pack_alloc::{Near, PackAlloc, PackBuf, PackError};
use parking_lot::lock_api::RawMutex as _;
use rv64::{Asm, Features, RegSet};
use text::{
    Detour, DetourKind, DetourState, ForkMutex, Func, Island, Look, Lookup, Need, PadWords,
    RawForkMutex, RxAddr, RxRange, TextError,
};

use crate::change::REACH_BYTES;
use crate::error::TrampError;
use crate::prologue::{self, Body, Jumps, Prologue, Reach};
use crate::slot::{self, SlotWords};

/// How calls are led away from a hooked function.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum EntryKind {
    /// By a jump in its entry pad.
    Pad,
    /// By a jump over its first instructions, which have been moved.
    Jump,
    /// By a trap in its first instruction: several thousand instructions a call.
    Trap,
}

/// Whether a function whose first instructions no jump fits over may be hooked by a trap.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Traps {
    /// It is refused, with the reason.
    #[default]
    Refused,
    /// It is hooked all the same.
    Allowed,
}

/// What a site is changed at.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Pad(PadWords),
    Moved(Moved),
}

/// A function whose first instructions have been moved, or will be.
#[derive(Clone, Debug)]
pub(crate) struct Moved {
    /// Leads to the stub, or to the island.
    pub(crate) detour: Detour,
    pub(crate) bridge: Option<Bridge>,
    /// The copy of the first instructions, in the stub.
    pub(crate) copy: RxAddr,
    /// The jump could not be written yet, because a thread stays where it would be.
    pub(crate) waits: bool,
}

/// What leads on to the stub from near the function.
#[derive(Clone, Debug)]
pub(crate) struct Bridge {
    pub(crate) island: Arc<Island>,
    /// The number of the register that it uses.
    pub(crate) scratch: u8,
}

/// What leads from a function to its image, not published yet.
#[derive(Debug)]
pub(crate) struct Stub {
    pub(crate) buf: PackBuf,
    pub(crate) words: SlotWords,
    pub(crate) entry: Entry,
    /// The function finds something in `t2`.
    pub(crate) takes_chain: bool,
}

impl Entry {
    /// Where an image calls the function.
    pub(crate) fn resume(&self) -> RxAddr {
        match self {
            Entry::Pad(pad) => pad.resume,
            Entry::Moved(moved) => moved.copy,
        }
    }

    /// Where calls leave the function.
    pub(crate) fn range(&self) -> RxRange {
        match self {
            Entry::Pad(pad) => pad.range(),
            Entry::Moved(Moved { detour, .. }) => {
                RxRange::new(detour.at, detour.covered_bytes.into())
            }
        }
    }

    /// Where a thread may be that goes to the stub.
    pub(crate) fn way_in(&self) -> Vec<RxRange> {
        let bridge = self.moved().and_then(|moved| moved.bridge.as_ref());
        let island = bridge.map(|bridge| bridge.island.range());
        std::iter::once(self.range()).chain(island).collect()
    }

    /// The island by which it leads to the stub.
    pub(crate) fn into_island(self) -> Option<Arc<Island>> {
        match self {
            Entry::Pad(_) => None,
            Entry::Moved(moved) => moved.bridge.map(|bridge| bridge.island),
        }
    }

    pub(crate) fn pad(&self) -> Option<PadWords> {
        match self {
            Entry::Pad(pad) => Some(*pad),
            Entry::Moved(_) => None,
        }
    }

    pub(crate) fn moved(&self) -> Option<&Moved> {
        match self {
            Entry::Pad(_) => None,
            Entry::Moved(moved) => Some(moved),
        }
    }

    /// What a detour became.
    pub(crate) fn set_waits(&mut self, became: DetourState) {
        if let Entry::Moved(moved) = self {
            moved.waits = became == DetourState::Trap && moved.detour.kind != DetourKind::Trap;
        }
    }

    pub(crate) fn kind(&self) -> EntryKind {
        match self {
            Entry::Pad(_) => EntryKind::Pad,
            Entry::Moved(m) if m.waits || m.detour.kind == DetourKind::Trap => EntryKind::Trap,
            Entry::Moved(_) => EntryKind::Jump,
        }
    }
}

/// The function that runs when `addr` is called, as an address that can be attached to. Where a
/// stub leads that is not bound yet, the caller asks the dynamic linker, without the lock of
/// changes: the answer is what to resolve next.
///
/// # Errors
/// [`TrampError::Text`]: it is no function, or one that cannot be hooked.
pub fn resolve(addr: RxAddr) -> Result<Lookup<RxAddr>, TrampError> {
    // What is mapped is read when it is attached to.
    if text::is_entry(addr) {
        return Ok(Lookup::Known(addr));
    }
    Ok(find(addr, &Look::now()?)?.map(|found| match found {
        Found::Pad(_) => addr,
        Found::Func(func) => func.entry,
    }))
}

/// What a function that is not hooked begins with.
#[derive(Debug)]
pub(crate) enum Found {
    Pad(PadWords),
    Func(Func),
}

/// Looks at what is at `func`.
pub(crate) fn find(func: RxAddr, look: &Look) -> Result<Lookup<Found>, TrampError> {
    match look.pad(func).and_then(|pad| pad.words()) {
        Ok(words) => Ok(Lookup::Known(Found::Pad(words))),
        // Without the file it is not known where pads are: nops are moved like other instructions.
        Err(
            TextError::NotAPad { .. }
            | TextError::PadTooShort { .. }
            | TextError::ObjectFile { .. },
        ) => Ok(look.func(func)?.map(Found::Func)),
        Err(other) => Err(other.into()),
    }
}

/// Refuses a function with a pad that finds something in a floating-point temporary, which programs
/// overwrite. The answer is whether it finds something in `t2`. Reads of the other integer
/// temporaries prove nothing here: GCC without optimisation masks them to build small structs.
pub(crate) fn check_padded(func: RxAddr, pad: &PadWords, look: &Look) -> Result<bool, TrampError> {
    // Of code whose extent is not known there is nothing to read.
    let Ok(Lookup::Known(Func {
        entry,
        len_bytes: Some(len),
        ..
    })) = look.func(func)
    else {
        return Ok(false);
    };
    let skip = pad.resume.get().wrapping_sub(entry.get()) as usize;
    if entry != func || skip > len {
        return Ok(false);
    }
    let bytes = look.original_text(RxRange::new(pad.resume, len - skip))?;
    let kept = RegSet::TEMPORARIES.without(RegSet::FLOAT_TEMPORARIES);
    prologue::refuse_custom_entry(pad.resume.get(), &bytes, kept)
        .map_err(|source| TrampError::CustomConvention { func, source })
}

/// What a `jal` reaches, less the length of a stub or of an image.
pub(crate) const JAL_REACH_BYTES: u64 = (1 << 20) - 4096;
/// Where the copy begins in a stub: behind the slot's words, on a boundary of literals.
const COPY_OFF: u64 = 32;

/// As far as is looked for what others have written over a function's entry.
const LOOKED_AT_BYTES: usize = 16;

/// What others have done to a function's first bytes. What they change behind those that are moved
/// stays where it is, and works: a debugger's breakpoint.
struct Others(Result<(), TextError>);

impl Others {
    fn at(entry: RxRange, look: &Look) -> Self {
        Others(look.check_unchanged(entry))
    }

    /// Refuses if the first `covered_bytes` are theirs.
    fn refuse_in(&self, covered_bytes: u8) -> Result<(), TrampError> {
        match &self.0 {
            Err(TextError::ChangedByOthers { off_bytes, .. })
                if *off_bytes >= covered_bytes.into() =>
            {
                Ok(())
            }
            result => Ok(result.clone()?),
        }
    }
}

/// Makes stubs of functions that have no pad.
#[derive(Debug)]
pub(crate) struct Mover<'a> {
    pub(crate) packs: &'a PackAlloc,
    pub(crate) features: Features,
    pub(crate) look: &'a Look,
}

impl Mover<'_> {
    /// The stub of `func` with the shortest jump that can be had.
    pub(crate) fn stub(&self, func: &Func, traps: Traps) -> Result<Stub, TrampError> {
        let at = func.entry;
        let len = func
            .len_bytes
            .ok_or(TrampError::UnknownExtent { func: at })?;
        let others = Others::at(RxRange::new(at, len.min(LOOKED_AT_BYTES)), self.look);
        let bytes = self.look.original_text(RxRange::new(at, len))?;
        let jumps = jumps_of(func)?;
        let body = Body {
            entry: at.get(),
            bytes: &bytes,
            jumps: &jumps,
        };
        let window = Near::Within {
            of: at,
            reach_bytes: JAL_REACH_BYTES,
        };
        let plan_near = || prologue::plan(&body, Reach::Near).ok();
        let mut near = None;
        if !self.packs.has_none_near(window) {
            near = plan_near();
            if let Some(plan) = &near {
                others.refuse_in(plan.covered_bytes())?;
                match self.lay(at, Way::Near, plan) {
                    Err(TrampError::Pack(
                        PackError::OutOfReach { .. } | PackError::LimitReached { .. },
                    )) => {}
                    done => return done,
                }
            }
        }
        let far = prologue::plan(&body, Reach::Far);
        let begins_with_word = at.is_aligned(4) && bytes.first().is_some_and(|b| b & 3 == 3);
        if far.is_err() || begins_with_word {
            near = near.or_else(plan_near);
        }
        if let Some(plan) = &near {
            others.refuse_in(plan.covered_bytes())?;
            if let Some(bridge) = bridge(at, plan, far.is_ok()) {
                return self.lay(at, Way::Bridge(bridge), plan);
            }
        }
        let refusal = match far {
            Ok(plan) => {
                others.refuse_in(plan.covered_bytes())?;
                return self.lay(at, Way::Far, &plan);
            }
            Err(refusal) => refusal,
        };
        // What stands against it may be theirs.
        others.refuse_in(u8::MAX)?;
        match traps {
            Traps::Refused => Err(TrampError::CannotMove {
                func: at,
                source: refusal,
            }),
            Traps::Allowed => {
                let cannot = |source| TrampError::CannotTrap { func: at, source };
                let plan = prologue::plan_trap(&body).map_err(cannot)?;
                self.lay(at, Way::Trap, &plan)
            }
        }
    }

    /// Reserves room within reach, and makes the slot and the copy.
    fn lay(&self, func: RxAddr, way: Way, plan: &Prologue) -> Result<Stub, TrampError> {
        let (kind, reach_bytes) = match way {
            Way::Near => (DetourKind::Near, JAL_REACH_BYTES),
            // The island may lie on the other side.
            Way::Bridge(_) => (DetourKind::Near, REACH_BYTES - (1 << 20)),
            Way::Far => {
                let scratch = plan.scratch() as u8;
                (DetourKind::Far { scratch }, REACH_BYTES)
            }
            Way::Trap => (DetourKind::Trap, REACH_BYTES),
        };
        let bridge = match way {
            Way::Bridge(bridge) => Some(bridge),
            Way::Near | Way::Far | Way::Trap => None,
        };
        let near = Near::Within {
            of: func,
            reach_bytes,
        };
        // The way back is longest from far away.
        let far = func.get().wrapping_add(REACH_BYTES / 2) & !63;
        let layout = |source| TrampError::Layout { func, source };
        let mut asm = Asm::new(self.features);
        let moved = plan.emit(&mut asm);
        let longest = asm.size_at(far).map_err(layout)?;
        let mut buf = self.packs.alloc(COPY_OFF as usize + longest, 64, near)?;
        let at = buf.rx().start;
        let out_of_reach = || TrampError::OutOfReach { func };
        let copy = at.checked_add(COPY_OFF).ok_or_else(out_of_reach)?;
        let (slot, words) = slot::new_slot(at, copy).ok_or_else(out_of_reach)?;
        let code = asm.finish(copy.get()).map_err(layout)?;
        let at_label = |(off, label)| (off, RxAddr::new(code.address(label)));
        let moved = moved.into_iter().map(at_label).collect();
        buf.rw()[..COPY_OFF as usize].copy_from_slice(&slot[..COPY_OFF as usize]);
        buf.rw()[COPY_OFF as usize..][..code.bytes.len()].copy_from_slice(&code.bytes);
        let detour = Detour {
            at: func,
            to: bridge.as_ref().map_or(at, |bridge| bridge.island.at()),
            kind,
            covered_bytes: plan.covered_bytes(),
            moved,
        };
        let entry = Entry::Moved(Moved {
            detour,
            bridge,
            copy,
            waits: false,
        });
        Ok(Stub {
            buf,
            words,
            entry,
            takes_chain: plan.takes_chain(),
        })
    }
}

/// How a function leads to its stub.
enum Way {
    Near,
    Bridge(Bridge),
    Far,
    Trap,
}

/// An island for a function whose first instructions a `jal` covers as `plan` says; none if a longer
/// jump does as well, `has_far`, because the one word is not one store either.
fn bridge(at: RxAddr, plan: &Prologue, has_far: bool) -> Option<Bridge> {
    let is_one_word = plan.offsets().count() == 1 && plan.covered_bytes() == 4 && at.is_aligned(4);
    let need = match (has_far, is_one_word) {
        (false, _) => Need::OnlyWay,
        (true, true) => Need::NoWindow,
        (true, false) => return None,
    };
    Some(Bridge {
        island: Arc::new(Island::reserve(at, need)?),
        scratch: plan.scratch() as u8,
    })
}

/// The jumps of the object that `func` is part of. Those of the last few objects are kept.
fn jumps_of(func: &Func) -> Result<Arc<Jumps>, TrampError> {
    /// An object that is loaded anew has another name, though it may read the same. Used under the
    /// change lock alone.
    type Known = Vec<(Arc<Path>, Arc<Jumps>)>;
    static KNOWN: ForkMutex<Known> = ForkMutex::const_new(RawForkMutex::INIT, Vec::new());
    const MOST: usize = 4;

    let Some(object) = &func.object else {
        return Err(TrampError::UnknownExtent { func: func.entry });
    };
    let known = |k: &Known| {
        k.iter()
            .find(|(o, _)| Arc::ptr_eq(o, object))
            .map(|k| k.1.clone())
    };
    if let Some(jumps) = known(&KNOWN.lock()) {
        return Ok(jumps);
    }
    let jumps = Arc::new(scan(&Func::all_in(func.entry)?)?);
    let mut known = KNOWN.lock();
    let surplus = (known.len() + 1).saturating_sub(MOST);
    known.drain(..surplus);
    known.push((object.clone(), jumps.clone()));
    Ok(jumps)
}

/// Functions that lie further apart are read one by one.
const GAP_BYTES: u64 = 4096;

/// The jumps of `funcs`, which are in order.
fn scan(funcs: &[Func]) -> Result<Jumps, TrampError> {
    let end = |func: &Func| func.entry.get() + func.len_bytes.unwrap_or(0) as u64;
    let runs = funcs.chunk_by(|a, b| b.entry.get().saturating_sub(end(a)) < GAP_BYTES);
    let mut texts = Vec::new();
    for run in runs {
        let start = run[0].entry;
        let len = run.iter().map(end).max().unwrap_or(0) - start.get();
        let text = text::original_text(RxRange::new(start, len as usize))?;
        texts.push((run, text));
    }
    let parts = texts.iter().flat_map(|(run, text)| {
        run.iter().filter_map(|func| {
            let from = (func.entry.get() - run[0].entry.get()) as usize;
            let bytes = text.get(from..from + func.len_bytes?)?;
            Some((func.entry.get(), bytes))
        })
    });
    Ok(Jumps::scan(parts))
}
