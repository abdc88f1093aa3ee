//! Writing code that nobody can be executing yet, and taking it away again.
//!
//! Neighbours: `txn` (does it), `map` (where it goes). Source: kernel `kernel/bpf/core.c`
//! (`bpf_arch_text_copy`, `bpf_arch_text_invalidate`).

use crate::addr::RxRange;
use crate::error::TextError;
use crate::state;
use crate::txn::{self, Content};

/// Writes `src` to `dst`, a range of a code map that nobody can be executing; flushes once.
///
/// # Errors
/// [`TextError::CopyLength`], [`TextError::NotInCodeMap`], [`TextError::Flush`],
/// [`TextError::Map`], [`TextError::UnsupportedHost`], [`TextError::SharedWithParent`]; nothing
/// has changed then.
#[doc(alias = "bpf_arch_text_copy")]
pub fn text_copy(dst: RxRange, src: &[u8]) -> Result<(), TextError> {
    text_copy_all(&[(dst, src)])
}

/// [`text_copy`] for many ranges with one flush, all or none.
///
/// # Errors
/// As [`text_copy`], and [`TextError::Duplicate`] when two ranges overlap.
pub fn text_copy_all(copies: &[(RxRange, &[u8])]) -> Result<(), TextError> {
    let writes: Vec<_> = copies
        .iter()
        .map(|(dst, src)| (*dst, Content::Bytes(src)))
        .collect();
    txn::write_locked(&mut *state::lock_for_change()?, &writes)
}

/// Fills a range of a code map that nobody can be executing any more with illegal instructions
/// (half-words of zeros are defined illegal); flushes once.
///
/// # Errors
/// As [`text_copy`].
#[doc(alias = "bpf_arch_text_invalidate")]
pub fn text_invalidate(range: RxRange) -> Result<(), TextError> {
    text_invalidate_all(&[range])
}

/// [`text_invalidate`] for many ranges with one flush, all or none.
///
/// # Errors
/// As [`text_copy_all`].
pub fn text_invalidate_all(ranges: &[RxRange]) -> Result<(), TextError> {
    let writes: Vec<_> = ranges
        .iter()
        .map(|range| (*range, Content::Illegal))
        .collect();
    txn::write_locked(&mut *state::lock_for_change()?, &writes)
}
