//! Which chunks of a pack are used: a pure bitmap.
//!
//! Key type: [`Chunks`]. Neighbours: `pack` (a map and its chunks). Source: kernel
//! `kernel/bpf/core.c` (`bpf_prog_pack_alloc`), `lib/find_bit.c`.

use std::ops::Range;

const WORD_CHUNKS: usize = u64::BITS as usize;

/// A bitmap of chunks; a set bit is a used chunk. Bits behind the last chunk are set for ever.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chunks {
    words: Box<[u64]>,
    nr_chunks: usize,
    nr_used: usize,
    /// No chunk below this one is free.
    first_free: usize,
}

impl Chunks {
    /// `nr_chunks` free chunks.
    #[must_use]
    pub fn new(nr_chunks: usize) -> Self {
        let mut words = vec![0; nr_chunks.div_ceil(WORD_CHUNKS)].into_boxed_slice();
        let nr_last = nr_chunks % WORD_CHUNKS;
        if let (Some(last), 1..) = (words.last_mut(), nr_last) {
            *last = u64::MAX << nr_last;
        }
        Self {
            words,
            nr_chunks,
            nr_used: 0,
            first_free: 0,
        }
    }

    /// How many chunks are used.
    #[must_use]
    pub fn nr_used(&self) -> usize {
        self.nr_used
    }

    /// How many chunks are free.
    #[must_use]
    pub fn nr_free(&self) -> usize {
        self.nr_chunks - self.nr_used
    }

    /// Takes the first run of `nr` free chunks that starts at a multiple of `align` and lies in
    /// `window`. First fit: programs crowd at the low end, so that whole packs become free.
    ///
    /// `None` if there is no such run, or if `nr` or `align` is zero.
    pub fn take(&mut self, nr: usize, align: usize, window: Range<usize>) -> Option<Range<usize>> {
        let run = self.find(nr, align, window)?;
        self.fill(&run, Fill::Used);
        self.nr_used += nr;
        if run.start <= self.first_free {
            self.first_free = run.end;
        }
        Some(run)
    }

    /// Gives a run that [`Self::take`] gave back. Chunks that are free already stay free, those
    /// behind the end are ignored; gives the number that has become free.
    pub fn give(&mut self, run: Range<usize>) -> usize {
        let run = run.start.min(self.nr_chunks)..run.end.min(self.nr_chunks);
        let nr_freed = self.fill(&run, Fill::Free);
        self.nr_used -= nr_freed;
        self.first_free = self.first_free.min(run.start);
        nr_freed
    }

    /// The length of the longest run of free chunks.
    #[must_use]
    pub fn largest_free_run(&self) -> usize {
        let (mut at, mut largest) = (0, 0);
        while at < self.nr_chunks {
            let start = self.next(at, Fill::Free);
            let end = self.next(start, Fill::Used);
            largest = largest.max(end - start);
            at = end;
        }
        largest
    }

    fn find(&self, nr: usize, align: usize, window: Range<usize>) -> Option<Range<usize>> {
        let end = window.end.min(self.nr_chunks);
        if nr == 0 || align == 0 {
            return None;
        }
        let mut at = window.start.max(self.first_free);
        loop {
            let start = self.next(at, Fill::Free).checked_next_multiple_of(align)?;
            let run = start..start.checked_add(nr)?;
            if run.end > end {
                return None;
            }
            match self.next_before(start, run.end, Fill::Used) {
                None => return Some(run),
                Some(used) => at = used + 1,
            }
        }
    }

    /// The first chunk from `at` on that is free or used; the number of chunks if there is none.
    fn next(&self, at: usize, fill: Fill) -> usize {
        self.next_before(at, self.nr_chunks, fill)
            .unwrap_or(self.nr_chunks)
    }

    /// The first one before `end`; no more is looked at.
    fn next_before(&self, at: usize, end: usize, fill: Fill) -> Option<usize> {
        let hits = |word: u64| match fill {
            Fill::Free => !word,
            Fill::Used => word,
        };
        let first = at / WORD_CHUNKS;
        let mut below = (1_u64 << (at % WORD_CHUNKS)) - 1;
        let words = self.words.get(first..end.div_ceil(WORD_CHUNKS))?;
        for (index, &word) in words.iter().enumerate() {
            let found = hits(word) & !below;
            if found != 0 {
                let bit = found.trailing_zeros() as usize;
                let at = (first + index) * WORD_CHUNKS + bit;
                return (at < end).then_some(at);
            }
            below = 0;
        }
        None
    }

    /// Sets or clears a run; gives how many chunks have changed.
    fn fill(&mut self, run: &Range<usize>, fill: Fill) -> usize {
        let (mut at, mut nr_changed) = (run.start, 0);
        while at < run.end {
            let bit = at % WORD_CHUNKS;
            let nr = (WORD_CHUNKS - bit).min(run.end - at);
            let mask = (u64::MAX >> (WORD_CHUNKS - nr)) << bit;
            let word = &mut self.words[at / WORD_CHUNKS];
            let old = *word;
            match fill {
                Fill::Free => *word &= !mask,
                Fill::Used => *word |= mask,
            }
            nr_changed += (old ^ *word).count_ones() as usize;
            at += nr;
        }
        nr_changed
    }
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Fill {
    Free,
    Used,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One `bool` per chunk.
    struct Model(Vec<bool>);

    impl Model {
        fn take(&mut self, nr: usize, align: usize, window: Range<usize>) -> Option<Range<usize>> {
            let end = window.end.min(self.0.len());
            let fits = |&start: &usize| {
                start % align == 0
                    && start + nr <= end
                    && !self.0[start..start + nr].contains(&true)
            };
            let start = (window.start..end).find(fits)?;
            self.0[start..start + nr].fill(true);
            Some(start..start + nr)
        }

        fn largest_free_run(&self) -> usize {
            self.0
                .split(|used| *used)
                .map(<[bool]>::len)
                .max()
                .unwrap_or(0)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take {
            nr: usize,
            align: usize,
            window: Range<usize>,
        },
        Give {
            which: prop::sample::Index,
        },
    }

    fn steps(nr_chunks: usize) -> impl Strategy<Value = Vec<Step>> {
        let bound = 0..nr_chunks + 70;
        let window = prop_oneof![
            Just(0..usize::MAX),
            (bound.clone(), bound).prop_map(|(a, b)| a.min(b)..a.max(b)),
        ];
        let nr = prop_oneof![1..4_usize, 1..200_usize];
        let align = prop_oneof![4 => Just(1_usize), 1 => (0..8_u32).prop_map(|bits| 1 << bits)];
        let take =
            (nr, align, window).prop_map(|(nr, align, window)| Step::Take { nr, align, window });
        let give = any::<prop::sample::Index>().prop_map(|which| Step::Give { which });
        prop::collection::vec(prop_oneof![3 => take, 2 => give], 1..150)
    }

    proptest! {
        #[test]
        fn agrees_with_one_bool_per_chunk(
            (nr_chunks, steps) in prop_oneof![Just(512), 0..700_usize]
                .prop_flat_map(|nr_chunks| (Just(nr_chunks), steps(nr_chunks)))
        ) {
            let mut chunks = Chunks::new(nr_chunks);
            let mut model = Model(vec![false; nr_chunks]);
            let mut runs: Vec<Range<usize>> = Vec::new();
            for step in steps {
                match step {
                    Step::Take { nr, align, window } => {
                        let got = chunks.take(nr, align, window.clone());
                        prop_assert_eq!(&got, &model.take(nr, align, window));
                        runs.extend(got);
                    }
                    Step::Give { which } if !runs.is_empty() => {
                        let run = runs.swap_remove(which.index(runs.len()));
                        model.0[run.clone()].fill(false);
                        prop_assert_eq!(chunks.give(run.clone()), run.len());
                    }
                    Step::Give { .. } => {}
                }
                let nr_used = model.0.iter().filter(|used| **used).count();
                prop_assert_eq!(chunks.nr_used(), nr_used);
                prop_assert_eq!(chunks.nr_free(), nr_chunks - nr_used);
                prop_assert_eq!(chunks.largest_free_run(), model.largest_free_run());
            }
            for run in runs {
                chunks.give(run);
            }
            let fresh = Chunks::new(nr_chunks);
            prop_assert_eq!(&chunks.words, &fresh.words);
            prop_assert_eq!((chunks.nr_used, chunks.first_free), (0, 0));
        }
    }

    #[test]
    fn edges() {
        let mut chunks = Chunks::new(128);
        assert_eq!(chunks.take(129, 1, 0..usize::MAX), None);
        assert_eq!(chunks.take(0, 1, 0..128), None);
        assert_eq!(chunks.take(1, 0, 0..128), None);
        assert_eq!(chunks.take(usize::MAX, 1, 5..usize::MAX), None);
        assert_eq!(chunks.take(1, usize::MAX, 5..usize::MAX), None);
        assert_eq!(chunks.take(128, 128, 0..usize::MAX), Some(0..128));
        assert_eq!(chunks.take(1, 1, 0..usize::MAX), None);
        assert_eq!(chunks.largest_free_run(), 0);
        assert_eq!(chunks.give(60..70), 10);
        assert_eq!(chunks.give(60..70), 0, "free already");
        assert_eq!(chunks.give(127..4000), 1, "nothing behind the end");
        assert_eq!(chunks.largest_free_run(), 10);
        assert_eq!(chunks.take(10, 1, 60..70), Some(60..70));
        assert_eq!(Chunks::new(0).take(1, 1, 0..1), None);
    }
}
