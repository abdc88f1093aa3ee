//! The slot of a site: 64 bytes in a pack through which the site reaches its image.
//!
//! ```text
//!    0  j image            when the image is within 1 MiB, else  j far
//!    8  far: auipc t1, 0
//!   12       lw    t3, 16(t1)
//!   16       add   t1, t1, t3
//!   20       jr    t1
//!   24       .word image - far
//! ```
//!
//! The site's `auipc` is written once, for the slot; after that one aligned store retargets the
//! site from any image to any other: the word at 0, or, when both images are far, the one at 24.
//! From a near image to a far one the distance is stored and flushed first, and the jump to `far`
//! second: a hart that fetches the new jump has the new distance.

use rv64::Reg::{T1, T3, Zero};
use rv64::{SImm, imm, insn};
use text::{RxAddr, WordPatch};

/// Bytes of a slot: one chunk.
pub(crate) const SLOT_BYTES: usize = 64;
const FAR: u64 = 8;
const DIST: u64 = 24;

/// What a slot holds now, as it was stored.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct SlotWords {
    jump: u32,
    dist: u32,
}

impl SlotWords {
    /// The distance has been stored.
    pub(crate) fn set_dist(&mut self, dist: u32) {
        self.dist = dist;
    }
}

/// A change of a slot: `prepare` may be stored at any time, `commit` switches.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Retarget {
    pub(crate) prepare: Option<WordPatch>,
    pub(crate) commit: WordPatch,
    pub(crate) words: SlotWords,
}

/// The bytes of a slot at `at` that leads to `image`. `None`: further away than 2 GiB.
pub(crate) fn new_slot(at: RxAddr, image: RxAddr) -> Option<([u8; SLOT_BYTES], SlotWords)> {
    let words = words_for(at, image)?;
    let mut bytes = [0; SLOT_BYTES];
    let mut put = |off: u64, word: u32| {
        bytes[off as usize..][..4].copy_from_slice(&word.to_le_bytes());
    };
    put(0, words.jump);
    put(FAR, insn::auipc(T1, SImm::ZERO).encode());
    put(FAR + 4, insn::lw(T3, T1, imm!(16)).encode());
    put(FAR + 8, insn::add(T1, T1, T3).encode());
    put(FAR + 12, insn::jalr(Zero, T1, imm!(0)).encode());
    put(DIST, words.dist);
    Some((bytes, words))
}

/// How the slot at `at` is led from what it holds to `image`.
pub(crate) fn retarget(at: RxAddr, now: SlotWords, image: RxAddr) -> Option<Retarget> {
    let words = words_for(at, image)?;
    let patch = |off, old, new| {
        Some(WordPatch {
            at: at.checked_add(off)?,
            old,
            new,
        })
    };
    let far = far_jump();
    Some(if words.jump != far {
        // The distance stays what it was: nobody uses it.
        let words = SlotWords {
            jump: words.jump,
            dist: now.dist,
        };
        Retarget {
            prepare: None,
            commit: patch(0, now.jump, words.jump)?,
            words,
        }
    } else if now.jump == far {
        Retarget {
            prepare: None,
            commit: patch(DIST, now.dist, words.dist)?,
            words,
        }
    } else {
        let prepare = patch(DIST, now.dist, words.dist);
        Retarget {
            prepare,
            commit: patch(0, now.jump, words.jump)?,
            words,
        }
    })
}

fn far_jump() -> u32 {
    jump_word(FAR as i64).unwrap_or_default()
}

fn jump_word(by: i64) -> Option<u32> {
    Some(insn::jal(Zero, rv64::Offset::new(by)?).encode())
}

fn words_for(at: RxAddr, image: RxAddr) -> Option<SlotWords> {
    let by = image.get().wrapping_sub(at.get()) as i64;
    let dist = i32::try_from(by - FAR as i64).ok()?;
    let jump = jump_word(by).unwrap_or_else(far_jump);
    Some(SlotWords {
        jump,
        dist: dist as u32,
    })
}

/// The word that replaces the first one of a block of an image by a jump `by_bytes` ahead.
pub(crate) fn skip_word(by_bytes: u32) -> Option<u32> {
    jump_word(by_bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: RxAddr = RxAddr::new(0x7000_0000);
    fn image(off: i64) -> RxAddr {
        RxAddr::new(AT.get().wrapping_add_signed(off))
    }

    #[test]
    fn near_images_take_one_jump() {
        let (bytes, words) = new_slot(AT, image(0x1000)).unwrap();
        assert_eq!(bytes[..4], 0x0000_106f_u32.to_le_bytes(), "j +0x1000");
        let there = retarget(AT, words, image(-0x1000)).unwrap();
        assert!(there.prepare.is_none());
        assert_eq!(there.commit.at, AT);
    }

    #[test]
    fn a_far_image_is_prepared_before_the_jump_is_switched() {
        let (_, near) = new_slot(AT, image(0x1000)).unwrap();
        let far = retarget(AT, near, image(0x1000_0000)).unwrap();
        assert_eq!(far.prepare.unwrap().at, image(24));
        assert_eq!(far.commit.at, AT);
        let farther = retarget(AT, far.words, image(-0x1000_0000)).unwrap();
        assert!(farther.prepare.is_none());
        assert_eq!(
            farther.commit.at,
            image(24),
            "from far to far the distance alone changes"
        );
        let back = retarget(AT, farther.words, image(0x2000)).unwrap();
        assert_eq!((back.commit.at, back.commit.old), (AT, far_jump()));
    }

    #[test]
    fn beyond_two_gib_there_is_no_slot() {
        assert!(new_slot(AT, image(1 << 32)).is_none());
    }
}
