//! A stub whose target is changed while it is called: a direct jump, and no load.
//!
//! ```text
//!    0  hi:  auipc t1, hi20      while the target changes: j far
//!    4  lo:  jr    lo12(t1)
//!    8  far: auipc t1, 0
//!   12       lw    t3, 16(t1)
//!   16       add   t1, t1, t3
//!   20       jr    t1
//!   24       .word target - far
//! ```
//!
//! # Changing the target
//! 1. The word at 24 becomes the new distance; nobody who comes by `hi` uses it. Flush.
//! 2. `hi` becomes a jump to `far`. This one store is the change. Flush.
//! 3. [`text::threads::pass_by`]: no thread is between `hi` and `lo` any more.
//! 4. `lo`, flush, then `hi` are written for the new target. Flush.
//!
//! | where a thread can be | what it does |
//! | --- | --- |
//! | at `lo`, with the old `auipc`'s register | goes to the old target: `lo` stays until step 3 has seen it leave |
//! | in `far`, since a change before | finds the old distance or the new one: a call that began before this change ended |
//! | at `hi` in step 4 | has the new `lo` if it executes the new `auipc`: that was flushed before |
//!
//! If a thread stays between the words (it is stopped there), the stub stays as it is after step 2,
//! which is right, and four instructions slower, until the next change.
//!
//! Targets are functions that stay for ever: nobody could say when the last call of an old one has
//! returned. Key type: [`StaticStub`]. Neighbour: `slot`, which does without the pair. Source:
//! kernel `include/linux/static_call.h`; `kernel/static_call_inline.c`.

use std::sync::Arc;
use std::time::Duration;

use pack_alloc::Near;
use rv64::Reg::{T1, T3, Zero};
use rv64::{Offset, SImm, imm, insn};
use text::{ForkMutex, RxAddr, RxRange, WordPatch, patch_words};

use crate::domain::Trampolines;
use crate::error::TrampError;
use crate::indirect::Placed;
use crate::leaf::Leaf;

/// Bytes of a stub; it is aligned to 64.
pub const STATIC_STUB_BYTES: usize = 28;

const FAR: u64 = 8;
const DIST: u64 = 24;

/// How far the stub may be from its first target.
const REACH_BYTES: u64 = 1 << 30;

/// How long a change waits for threads between the words, which need one instruction to leave.
const PATIENCE: Duration = Duration::from_secs(1);

/// One stub. It is freed some time after it has been dropped, when no thread is in it.
#[derive(Debug)]
pub struct StaticStub {
    at: RxAddr,
    /// Locked under the lock of changes alone, across which no fork comes.
    words: ForkMutex<Words>,
    /// `None`: it belongs to the program's text.
    #[expect(dead_code, reason = "held")]
    leaf: Option<Leaf>,
}

/// What stands in it.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Words {
    hi: u32,
    lo: u32,
    dist: u32,
}

impl StaticStub {
    /// A stub of its own for `target`.
    ///
    /// # Errors
    /// [`TrampError::Pack`]; [`TrampError::OutOfReach`].
    pub fn new(tramps: &Arc<Trampolines>, target: RxAddr) -> Result<Self, TrampError> {
        let near = Near::Within {
            of: target,
            reach_bytes: REACH_BYTES,
        };
        let (shop, mut made) = (tramps.workshop(), None);
        let placed = Placed::bytes(&shop, near, "bpf_static_call", STATIC_STUB_BYTES, |at| {
            let words = words_for(at, target)?;
            made = Some((at, words));
            Some(bytes_of(words))
        })?;
        let (at, words) = made.ok_or(TrampError::OutOfReach { func: target })?;
        Ok(Self {
            at,
            words: ForkMutex::new(words),
            leaf: Some(Leaf::new(placed, tramps)),
        })
    }

    /// A stub that stands in the program's text, as assembled: its pair leads to its first target.
    ///
    /// # Errors
    /// [`TrampError::Text`] with `Misaligned`.
    ///
    /// # Safety
    /// 1. There are the words of a stub at `at`, and nobody else changes them.
    #[expect(unsafe_code, reason = "reads the stub's words")]
    pub unsafe fn in_text(at: RxAddr) -> Result<Self, TrampError> {
        if !at.is_aligned(4) {
            return Err(TrampError::Text(text::TextError::Misaligned {
                addr: at,
                align_bytes: 4,
            }));
        }
        let word = |off: u64| {
            let at = std::ptr::with_exposed_provenance::<u32>((at.get() + off) as usize);
            // SAFETY: 1. caller's contract; text is readable.
            unsafe { at.read_volatile() }
        };
        Ok(Self {
            words: ForkMutex::new(Words {
                hi: word(0),
                lo: word(4),
                dist: word(DIST),
            }),
            at,
            leaf: None,
        })
    }

    /// What is called.
    pub fn at(&self) -> RxAddr {
        self.at
    }

    pub(crate) fn range(&self) -> RxRange {
        RxRange::new(self.at, STATIC_STUB_BYTES)
    }

    /// Leads calls that begin afterwards to `target`.
    ///
    /// # Errors
    /// [`TrampError::OutOfReach`]; [`TrampError::Reentered`]; [`TrampError::Text`] when the text
    /// cannot be changed: calls go where they went before then, or the change is done and the stub
    /// is left slower.
    pub fn lead(&self, target: RxAddr) -> Result<(), TrampError> {
        Trampolines::exclusively(|| self.lead_within_change(target))?
    }

    /// [`StaticStub::lead`] for callers that hold the lock of changes ([`Trampolines::exclusively`]).
    ///
    /// # Errors
    /// Those of [`StaticStub::lead`].
    pub fn lead_within_change(&self, target: RxAddr) -> Result<(), TrampError> {
        let goal = words_for(self.at, target).ok_or(TrampError::OutOfReach { func: target })?;
        let mut now = self.words.lock();
        self.patch(DIST, &mut now.dist, goal.dist)?;
        self.patch(0, &mut now.hi, far_jump())?;
        // The change is done. What follows makes it fast, and can be left out.
        let between = RxRange::new(RxAddr::new(self.at.get() + 4), 4);
        if text::threads::pass_by(&[between], PATIENCE).is_ok()
            && self.patch(4, &mut now.lo, goal.lo).is_ok()
        {
            let _ = self.patch(0, &mut now.hi, goal.hi);
        }
        Ok(())
    }

    fn patch(&self, off: u64, now: &mut u32, new: u32) -> Result<(), TrampError> {
        if *now != new {
            patch_words(&[WordPatch {
                at: RxAddr::new(self.at.get() + off),
                old: *now,
                new,
            }])?;
            *now = new;
        }
        Ok(())
    }
}

fn far_jump() -> u32 {
    let to_far = Offset::new(FAR as i64).map(|by| insn::jal(Zero, by).encode());
    to_far.unwrap_or_default()
}

fn words_for(at: RxAddr, target: RxAddr) -> Option<Words> {
    let by = target.get().wrapping_sub(at.get()) as i64;
    let hi = by.checked_add(0x800)? >> 12;
    let dist = i32::try_from(by - FAR as i64).ok()?;
    Some(Words {
        hi: insn::auipc(T1, SImm::new(hi)?).encode(),
        lo: insn::jalr(Zero, T1, SImm::new(by - (hi << 12))?).encode(),
        dist: dist as u32,
    })
}

fn bytes_of(words: Words) -> Vec<u8> {
    let far = [
        insn::auipc(T1, SImm::ZERO),
        insn::lw(T3, T1, imm!(16)),
        insn::add(T1, T1, T3),
        insn::jalr(Zero, T1, imm!(0)),
    ];
    let far = far.iter().map(|insn| insn.encode());
    let all = [words.hi, words.lo]
        .into_iter()
        .chain(far)
        .chain([words.dist]);
    all.flat_map(u32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_reads_as_it_is_drawn() {
        let (at, target) = (
            RxAddr::new(0x7000_0000),
            RxAddr::new(0x7000_0000 - 0x12_3456),
        );
        let bytes = bytes_of(words_for(at, target).unwrap());
        let lines = rv64::disassemble(&bytes[..24], at.get());
        let text: Vec<String> = lines.map(|line| line.to_string()).collect();
        let text = text.join("\n");
        for (i, want) in ["auipc", "0x6fedcbaa", "auipc", "lw", "add", "jr"]
            .iter()
            .enumerate()
        {
            assert!(
                i == 1 || text.lines().nth(i).unwrap().contains(want),
                "{text}"
            );
        }
        assert_eq!(bytes.len(), STATIC_STUB_BYTES);
        assert_eq!(bytes[24..], (-0x12_3456i32 - 8).to_le_bytes());
        assert_eq!(far_jump(), 0x0080_006f, "j +8");
    }

    #[test]
    fn beyond_two_gib_there_is_no_stub() {
        let at = RxAddr::new(1 << 40);
        for by in [-(1i64 << 31) - 0x900, (1 << 31) - 0x700, 1 << 40] {
            let target = RxAddr::new(at.get().wrapping_add_signed(by));
            assert!(words_for(at, target).is_none(), "{by:#x}");
        }
        for by in [-(1i64 << 31) + 0x800, (1 << 31) - 0x802] {
            let target = RxAddr::new(at.get().wrapping_add_signed(by));
            assert!(words_for(at, target).is_some(), "{by:#x}");
        }
    }
}
