//! Contexts that a signal interrupted, found on stacks.
//!
//! While a signal handler runs (or blocks), the context that it interrupted lies in a frame that
//! the kernel has pushed. The thread will go on there, so its pc counts. The kernel writes this,
//! for every signal:
//!
//! ```text
//!            riscv64                             x86_64 (host tests)
//!   sp →  +0    siginfo: si_signo 1 to 64     +0   return address
//!   uc →  +128  uc_flags = 0                  +8   uc_flags = 6 or 7
//!         +136  uc_link = 0                   +16  uc_link = 0
//!         +144  uc_stack {sp, flags, size}: the signal stack that was set up
//!         +168  uc_sigmask, unused            +48  registers: … rsp (uc+160), rip (uc+168)
//!         +304  pc, ra, sp, gp, tp …
//! ```
//!
//! `uc` is a multiple of 16, and the sp in it either is a little above the frame (the kernel has
//! pushed the frame below it) or the frame lies on the signal stack that `uc_stack` names, which
//! must be one that `sigaltstack` accepts, or none. On riscv64 `tp` is not 0 (psABI: the thread
//! pointer, in every thread of a C library). All of these must hold, and only these. A frame with
//! a pc in the spans is a hit. The fewer lists of addresses pass for frames, the better: those who
//! ask have the addresses in question in their own variables.
//!
//! A frame on the signal stack is the way back to the stack that was interrupted: the search goes
//! on at its sp.
//!
//! A stale frame in a dead part of a live stack (an array that nobody has written yet) cannot be
//! told from a live one and counts: that errs on the safe side, and lasts until the thread moves.
//! Frames of this module's own questions would be the most frequent ones, and those of traps would
//! hold the very addresses that are asked about (one who has come by a trap, and then waits until
//! nobody is where it led, would wait for itself). Both handlers mark theirs dead as they end
//! ([`ANSWERED`]).
//!
//! Key types: [`Spans`], [`Frames`]. Source: `arch/riscv/kernel/signal.c` (`setup_rt_frame`),
//! `arch/riscv/include/uapi/asm/{ucontext,sigcontext}.h`, `kernel/signal.c` (`__save_altstack`),
//! `arch/x86/include/asm/sigframe.h`.

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};

use super::proc::StackRuns;
use super::sys::{self, Errno};
use crate::RxRange;

/// Code ranges, sorted and joined: what a pc is looked up in.
pub(super) struct Spans(Cow<'static, [(u64, u64)]>);

impl Spans {
    pub(super) fn new(ranges: &[RxRange]) -> Self {
        let bounds = |range: &RxRange| {
            let start = range.start.get();
            (start, start.saturating_add(range.len_bytes as u64))
        };
        let mut spans: Vec<(u64, u64)> = ranges.iter().map(bounds).collect();
        spans.sort_unstable();
        spans.dedup_by(|next, last| {
            let joined = next.0 <= last.1;
            if joined {
                last.1 = last.1.max(next.1);
            }
            joined
        });
        Self(spans.into())
    }

    /// All there is.
    pub(super) const EVERYWHERE: Self = Self(Cow::Borrowed(&[(0, u64::MAX)]));

    pub(super) fn contains(&self, pc: u64) -> bool {
        let after = self.0.partition_point(|&(start, _)| start <= pc);
        let span = after.checked_sub(1).and_then(|last| self.0.get(last));
        span.is_some_and(|span| pc < span.1)
    }
}

/// Where the kernel puts what.
struct Layout {
    /// The `ucontext`, from the 16-aligned place where a frame is looked for.
    uc_off: usize,
    /// `si_signo`, from the same place, if it is always written.
    signo_off: Option<usize>,
    flags: RangeInclusive<u64>,
    /// From the `ucontext`.
    sp_off: usize,
    pc_off: usize,
    /// Where a register is that is never 0.
    tp_off: Option<usize>,
    /// The least distance of the interrupted sp from the frame below it.
    min_bytes: u64,
}

#[cfg(target_arch = "riscv64")]
const LAYOUT: Layout = Layout {
    uc_off: 128,
    signo_off: Some(0),
    flags: 0..=0,
    sp_off: 192,
    pc_off: 176,
    tp_off: Some(208),
    min_bytes: 1024,
};
#[cfg(target_arch = "x86_64")]
const LAYOUT: Layout = Layout {
    uc_off: 0,
    signo_off: None,
    flags: 6..=7,
    sp_off: 160,
    pc_off: 168,
    tp_off: None,
    min_bytes: 1,
};
#[cfg(target_arch = "aarch64")]
const LAYOUT: Layout = Layout {
    uc_off: 128,
    signo_off: Some(0),
    flags: 0..=0,
    sp_off: 432,
    pc_off: 440,
    tp_off: None,
    min_bytes: 1,
};

/// Where the pc is, from the `ucontext`.
pub(super) const PC_OFF: usize = LAYOUT.pc_off;
/// What of a `ucontext` is read.
pub(super) const UCONTEXT_BYTES: usize = {
    let (sp_off, pc_off) = (LAYOUT.sp_off, LAYOUT.pc_off);
    let last = if sp_off > pc_off { sp_off } else { pc_off };
    match LAYOUT.tp_off {
        Some(tp_off) if tp_off > last => tp_off + 8,
        _ => last + 8,
    }
};
/// What of a frame is read.
const FRAME_BYTES: usize = LAYOUT.uc_off + UCONTEXT_BYTES;
/// What a frame's place is a multiple of.
const FRAME_ALIGN_BYTES: usize = 16;
/// More than any frame with all of its vector registers (32 of 65,536 bits).
const FRAME_MAX_BYTES: u64 = 512 << 10;
/// More than anybody's signal stack.
const SIGNAL_STACK_MAX_BYTES: u64 = 1 << 32;
/// Stacks that one thread may be on at once: its own, the signal stack, and some for bad luck
/// (stale frames that lead elsewhere).
const MAX_STACKS: usize = 8;
const PAGE_BYTES: u64 = 4096;

/// What our own handlers (of questions, of traps) store into their frame's `uc_link` as they end:
/// nobody reads that field on the way back, and the frame is no context of interest any more.
///
/// Between the store and the end of `rt_sigreturn` the frame is still live. All signals but
/// faults are masked there, and a thread that blocks there is in a fault or in `rt_sigreturn`
/// itself: see [`Marked`].
pub(crate) const ANSWERED: u64 = 0x7262_7066_646f_6e65;
/// Where that field is, from the `ucontext`.
pub(super) const UC_LINK_OFF: usize = 8;

/// Whether frames marked [`ANSWERED`] can be live.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Marked {
    /// The thread may be on its way out of our handler.
    Live,
    /// The thread is in an ordinary system call, or in this module.
    Dead,
}

/// The result of a search.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Frames {
    /// No interrupted context is in the spans.
    Clear,
    /// One is.
    Inside {
        /// Where it goes on; 0 if there were more stacks than could be noted.
        pc: u64,
    },
    /// The stack pointer is in no known run: they are out of date, or it is no stack at all.
    UnknownStack,
}

/// A `ucontext` in memory, as far as it is read.
pub(super) struct Context<'a>(&'a [u8]);

impl<'a> Context<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.get(..UCONTEXT_BYTES).map(Self)
    }

    pub(super) fn pc(&self) -> u64 {
        self.word(LAYOUT.pc_off)
    }

    pub(super) fn sp(&self) -> u64 {
        self.word(LAYOUT.sp_off)
    }

    /// The thread pointer, where it is a register of a context.
    pub(super) fn tp(&self) -> Option<u64> {
        LAYOUT.tp_off.map(|off| self.word(off))
    }

    /// The signal stack that was set up when the signal came; empty if there was none. `None`: no
    /// thread can have such a signal stack.
    fn signal_stack(&self) -> Option<Range<u64>> {
        const SS_DISABLE: u32 = libc::SS_DISABLE as u32;
        const SS_ONSTACK: u32 = libc::SS_ONSTACK as u32;
        const SS_AUTODISARM: u32 = 1 << 31;
        let (start, len_bytes) = (self.word(16), self.word(32));
        let flags = self.word(24) as u32 & !SS_AUTODISARM;
        let end = start.checked_add(len_bytes)?;
        let possible = match len_bytes {
            0 => start == 0 && matches!(flags, 0 | SS_DISABLE),
            _ => {
                start != 0 && matches!(flags, 0 | SS_ONSTACK) && len_bytes <= SIGNAL_STACK_MAX_BYTES
            }
        };
        possible.then_some(start..end)
    }

    fn word(&self, off: usize) -> u64 {
        let bytes = self
            .0
            .get(off..off + 8)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    }
}

/// The context in what may be a signal frame at `addr`, if it is one.
fn frame_at(addr: u64, bytes: &[u8], marked: Marked) -> Option<Context<'_>> {
    let context = Context::new(bytes.get(LAYOUT.uc_off..)?)?;
    let link = context.word(UC_LINK_OFF);
    let is_live = link == 0 || (link == ANSWERED && marked == Marked::Live);
    if !is_live || !LAYOUT.flags.contains(&context.word(0)) {
        return None;
    }
    if let Some(off) = LAYOUT.signo_off {
        let signo = i32::from_ne_bytes(bytes.get(off..off + 4)?.try_into().ok()?);
        if !(1..=64).contains(&signo) {
            return None;
        }
    }
    if LAYOUT.tp_off.is_some_and(|off| context.word(off) == 0) {
        return None;
    }
    let above = addr.saturating_add(LAYOUT.min_bytes)..addr.saturating_add(FRAME_MAX_BYTES);
    let signal_stack = context.signal_stack()?;
    let possible = above.contains(&context.sp()) || signal_stack.contains(&addr);
    possible.then_some(context)
}

/// How far up a stack goes if its run is not known.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum UnknownRun {
    /// Give up: [`Frames::UnknownStack`].
    Report,
    /// Up to the first page that cannot be read.
    ToFirstHole,
}

/// How far up the stacks of a thread go.
#[derive(Copy, Clone)]
pub(super) struct Bounds<'a> {
    pub(super) runs: &'a StackRuns,
    pub(super) unknown: UnknownRun,
    /// Its thread pointer, if it is known. A C library puts a thread's own block above the thread's
    /// stack, in the same mapping, and no stack around it: no frame of a stack that begins below
    /// lies above. The run, on the other hand, may go on through whatever was mapped next to it.
    pub(super) tp: Option<u64>,
}

impl Bounds<'_> {
    /// Where the stack with this sp ends at the latest, if its run is known.
    fn end_of(&self, sp: u64) -> Option<u64> {
        let end = self.runs.end_of(sp)?;
        Some(self.tp.filter(|tp| *tp > sp).map_or(end, |tp| end.min(tp)))
    }
}

/// Looks for interrupted contexts from `sp` up, and on the stacks that they lead to. Reads through
/// `buf`, at least [`FRAME_BYTES`] bytes. Allocates nothing; async-signal-safe.
pub(super) fn search(
    sp: u64,
    spans: &Spans,
    bounds: Bounds<'_>,
    marked: Marked,
    buf: &mut [u8],
) -> Result<Frames, Errno> {
    let mut stacks = [0; MAX_STACKS];
    stacks[0] = sp;
    let mut nr_stacks = 1;
    let mut next = 0;
    while next < nr_stacks {
        let from = stacks[next];
        next += 1;
        let end = match (bounds.end_of(from), bounds.unknown) {
            (Some(end), _) => Some(end),
            (None, UnknownRun::ToFirstHole) => None,
            // A frame led to something that is no stack: it was none.
            (None, UnknownRun::Report) if next > 1 => continue,
            (None, UnknownRun::Report) => return Ok(Frames::UnknownStack),
        };
        let mut stack = Stack {
            from,
            end,
            stop: bounds.tp.filter(|tp| *tp > from).unwrap_or(u64::MAX),
            spans,
            marked,
        };
        let hit = stack.search(buf, |interrupted_sp| {
            if stacks[..nr_stacks].contains(&interrupted_sp) {
                return true;
            }
            let room = stacks.get_mut(nr_stacks);
            nr_stacks += 1;
            room.map(|slot| *slot = interrupted_sp).is_some()
        })?;
        if let Some(pc) = hit {
            return Ok(Frames::Inside { pc });
        }
    }
    Ok(Frames::Clear)
}

/// One stack from its stack pointer to its end.
struct Stack<'a> {
    from: u64,
    /// `None`: to the first page that cannot be read.
    end: Option<u64>,
    /// And not further than this.
    stop: u64,
    spans: &'a Spans,
    marked: Marked,
}

impl Stack<'_> {
    /// The pc of a context on it that is in the spans. `follow` takes the sp of a context that was
    /// interrupted on another stack, and says whether there was room to note it; if not, any pc may
    /// be missing, which is 0.
    fn search(
        &mut self,
        buf: &mut [u8],
        mut follow: impl FnMut(u64) -> bool,
    ) -> Result<Option<u64>, Errno> {
        let mut at = self.from.next_multiple_of(FRAME_ALIGN_BYTES as u64);
        while self
            .end
            .is_none_or(|end| at.saturating_add(FRAME_BYTES as u64) <= end)
            && at < self.stop
        {
            let left = self.end.map_or(u64::MAX, |end| end - at);
            let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = match sys::read_memory(at, &mut buf[..want]) {
                Ok(got) => got,
                Err(libc::EFAULT) => 0,
                Err(errno) => return Err(errno),
            };
            let nr_places =
                (got + FRAME_ALIGN_BYTES).saturating_sub(FRAME_BYTES) / FRAME_ALIGN_BYTES;
            for place in (0..nr_places).map(|place| place * FRAME_ALIGN_BYTES) {
                let addr = at + place as u64;
                let Some(context) = frame_at(addr, &buf[place..got], self.marked) else {
                    continue;
                };
                if self.spans.contains(context.pc()) {
                    return Ok(Some(context.pc()));
                }
                if self.leads_elsewhere(addr, &context) && !follow(context.sp()) {
                    return Ok(Some(0));
                }
            }
            if got < want {
                // A live frame is always readable by its process: what is not holds none.
                if self.end.is_none() {
                    return Ok(None);
                }
                at = (at + got as u64 + 1).next_multiple_of(PAGE_BYTES);
            } else {
                at += (nr_places.max(1) * FRAME_ALIGN_BYTES) as u64;
            }
        }
        Ok(None)
    }

    /// Whether `context`, found at `addr`, was pushed on the signal stack on which this search
    /// began, from another stack. Then nothing above the signal stack's end belongs to it.
    fn leads_elsewhere(&mut self, addr: u64, context: &Context<'_>) -> bool {
        let Some(signal_stack) = context.signal_stack() else {
            return false;
        };
        let on_it = signal_stack.contains(&addr) && signal_stack.contains(&self.from);
        if !on_it || signal_stack.contains(&context.sp()) {
            return false;
        }
        self.end = self.end.map(|end| end.min(signal_stack.end));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RxAddr;

    fn spans(bounds: &[(u64, u64)]) -> Spans {
        let range = |&(start, end): &(u64, u64)| RxRange {
            start: RxAddr::new(start),
            len_bytes: (end - start) as usize,
        };
        Spans::new(&bounds.iter().map(range).collect::<Vec<_>>())
    }

    #[test]
    fn spans_sort_and_join() {
        let spans = spans(&[(40, 48), (8, 16), (16, 20), (12, 18), (60, 60)]);
        for (pc, want) in [
            (7, false),
            (8, true),
            (19, true),
            (20, false),
            (39, false),
            (40, true),
            (47, true),
            (48, false),
            (60, false),
        ] {
            assert_eq!(spans.contains(pc), want, "{pc}");
        }
        assert!(!Spans::new(&[]).contains(0));
    }

    /// A fake stack in an ordinary buffer, with its runs.
    struct Fake {
        words: Vec<u64>,
        runs: StackRuns,
    }

    const NR_WORDS: usize = 4096;
    const IN_SPAN: u64 = 0x7000_0000_1234;

    impl Fake {
        fn new() -> Self {
            // Nothing in it looks like a frame: no word is zero.
            let words = vec![0x55; NR_WORDS];
            let mut runs = StackRuns::default();
            runs.read(&mut vec![0; 4096]).expect("maps are readable");
            Self { words, runs }
        }

        fn base(&self) -> u64 {
            (self.words.as_ptr() as u64).next_multiple_of(16)
        }

        fn bounds(&self, unknown: UnknownRun) -> Bounds<'_> {
            Bounds {
                runs: &self.runs,
                unknown,
                tp: None,
            }
        }

        fn end(&self) -> u64 {
            self.words.as_ptr_range().end as u64
        }

        /// Writes a word `off` bytes behind `addr`.
        fn put(&mut self, addr: u64, off: usize, value: u64) {
            let first = ((addr - self.words.as_ptr() as u64) / 8) as usize;
            self.words[first + off / 8] = value;
        }

        fn put_uc(&mut self, addr: u64, off: usize, value: u64) {
            self.put(addr, LAYOUT.uc_off + off, value);
        }

        /// A frame as the kernel pushes it.
        fn frame(&mut self, addr: u64, pc: u64, sp: u64, signal_stack: Range<u64>) {
            if let Some(off) = LAYOUT.signo_off {
                self.put(addr, off, libc::SIGUSR1 as u64);
            }
            self.put_uc(addr, 0, *LAYOUT.flags.start());
            self.put_uc(addr, UC_LINK_OFF, 0);
            self.put_uc(addr, 16, signal_stack.start);
            self.put_uc(addr, 24, 0);
            self.put_uc(addr, 32, signal_stack.end - signal_stack.start);
            self.put_uc(addr, LAYOUT.pc_off, pc);
            self.put_uc(addr, LAYOUT.sp_off, sp);
            if let Some(off) = LAYOUT.tp_off {
                self.put_uc(addr, off, 0x7fff_1000);
            }
        }

        fn search(&self, from: u64, buf_bytes: usize) -> bool {
            let (spans, marked) = (in_span(), Marked::Dead);
            let mut stack = Stack {
                from,
                end: Some(self.end()),
                stop: u64::MAX,
                spans: &spans,
                marked,
            };
            let hit = stack
                .search(&mut vec![0; buf_bytes], |_| false)
                .expect("readable");
            assert!(matches!(hit, None | Some(0 | IN_SPAN)), "{hit:x?}");
            hit.is_some()
        }
    }

    fn in_span() -> Spans {
        spans(&[(IN_SPAN - 4, IN_SPAN + 4)])
    }

    #[test]
    fn a_frame_is_found_at_every_place_and_with_every_buffer() {
        let mut fake = Fake::new();
        for buf_bytes in [FRAME_BYTES, FRAME_BYTES + 8, 1024, 1000, 65536] {
            for at in (0..4096).step_by(16) {
                fake.words.fill(0x55);
                let addr = fake.base() + at;
                fake.frame(addr, IN_SPAN, addr + 1024, 0..0);
                assert!(fake.search(fake.base(), buf_bytes), "{at} {buf_bytes}");
                // Below the stack pointer nothing is live.
                assert!(!fake.search(addr + 16, buf_bytes), "{at} {buf_bytes}");
            }
        }
        fake.words.fill(0x55);
        let last = (fake.end() - FRAME_BYTES as u64) & !15;
        fake.frame(last, IN_SPAN, last + 1024, 0..0);
        assert!(fake.search(fake.base(), 1024), "the last that fits");
    }

    #[test]
    fn what_is_no_frame_is_no_hit() {
        type Spoil = fn(&mut Fake, u64);
        let spoils: [(&str, Spoil); 9] = [
            ("uc_link is not null", |fake, addr| {
                fake.put_uc(addr, UC_LINK_OFF, 1)
            }),
            ("uc_flags are others", |fake, addr| fake.put_uc(addr, 0, 8)),
            ("pc is behind the span", |fake, addr| {
                fake.put_uc(addr, LAYOUT.pc_off, IN_SPAN + 4)
            }),
            ("sp is below, the frame on no signal stack", |fake, addr| {
                fake.put_uc(addr, LAYOUT.sp_off, addr);
            }),
            ("a signal stack that is switched off", |fake, addr| {
                fake.put_uc(addr, 16, addr);
                fake.put_uc(addr, 24, libc::SS_DISABLE as u64);
                fake.put_uc(addr, 32, 8192);
            }),
            ("a signal stack without flags that exist", |fake, addr| {
                fake.put_uc(addr, 16, addr);
                fake.put_uc(addr, 24, 0xaaaa_aaab);
                fake.put_uc(addr, 32, 8192);
            }),
            ("a signal stack of half the address space", |fake, addr| {
                fake.put_uc(addr, 16, 0x1000);
                fake.put_uc(addr, 32, 1 << 62);
            }),
            ("no signal stack, but an address of it", |fake, addr| {
                fake.put_uc(addr, 16, addr);
            }),
            ("the frame was ours and is done", |fake, addr| {
                fake.put_uc(addr, UC_LINK_OFF, ANSWERED);
            }),
        ];
        for (what, spoil) in spoils {
            let mut fake = Fake::new();
            let addr = fake.base() + 256;
            fake.frame(addr, IN_SPAN, addr + 1024, 0..0);
            assert!(fake.search(fake.base(), 1024), "{what}: before");
            spoil(&mut fake, addr);
            assert!(!fake.search(fake.base(), 1024), "{what}");
        }
        let mut fake = Fake::new();
        let addr = fake.base() + 256;
        fake.frame(addr, IN_SPAN, addr + 1024, 0..0);
        if let Some(off) = LAYOUT.signo_off {
            fake.put(addr, off, 65);
            assert!(!fake.search(fake.base(), 1024), "no such signal");
        }
        if let Some(off) = LAYOUT.tp_off {
            fake.frame(addr, IN_SPAN, addr + 1024, 0..0);
            fake.put_uc(addr, off, 0);
            assert!(!fake.search(fake.base(), 1024), "no thread pointer");
        }
    }

    #[test]
    fn an_answered_frame_may_be_live_on_the_way_out() {
        let mut fake = Fake::new();
        let addr = fake.base() + 256;
        fake.frame(addr, IN_SPAN, addr + 1024, 0..0);
        fake.put_uc(addr, UC_LINK_OFF, ANSWERED);
        for (marked, want) in [
            (Marked::Live, Frames::Inside { pc: IN_SPAN }),
            (Marked::Dead, Frames::Clear),
        ] {
            let bounds = fake.bounds(UnknownRun::Report);
            let mut buf = [0; 1024];
            let found = search(fake.base(), &in_span(), bounds, marked, &mut buf);
            assert_eq!(found, Ok(want));
        }
    }

    #[test]
    fn a_stack_ends_below_its_threads_own_block() {
        let mut fake = Fake::new();
        let addr = fake.base() + 4096;
        fake.frame(addr, IN_SPAN, addr + 1024, 0..0);
        let inside = Frames::Inside { pc: IN_SPAN };
        for (from, tp, want) in [
            (fake.base(), None, inside),
            (fake.base(), Some(addr), Frames::Clear),
            (fake.base(), Some(addr + FRAME_BYTES as u64), inside),
            (fake.base(), Some(u64::MAX), inside),
            // The stack is another one: a main thread's, a signal stack.
            (fake.base() + 64, Some(fake.base()), inside),
            (fake.base(), Some(0), inside),
        ] {
            let bounds = Bounds {
                tp,
                ..fake.bounds(UnknownRun::Report)
            };
            let mut buf = [0; 1024];
            let found = search(from, &in_span(), bounds, Marked::Dead, &mut buf);
            assert_eq!(found, Ok(want), "{tp:x?}");
        }
    }

    #[test]
    fn a_frame_on_a_signal_stack_leads_to_the_interrupted_one() {
        let mut fake = Fake::new();
        let (low, high) = (fake.base(), fake.base() + 16384);
        let signal_stack = low..low + 8192;
        let found = |fake: &Fake, from, unknown| {
            let (bounds, mut buf) = (fake.bounds(unknown), [0; 1024]);
            search(from, &in_span(), bounds, Marked::Dead, &mut buf)
        };
        fake.frame(high, IN_SPAN, high + 1024, 0..0);
        fake.frame(low + 1024, 0x10, high - 64, signal_stack.clone());
        assert_eq!(
            found(&fake, low + 16, UnknownRun::Report),
            Ok(Frames::Inside { pc: IN_SPAN })
        );
        // Led above it, there is nothing: what lies between is no stack of this thread.
        fake.frame(low + 1024, 0x10, high + 64, signal_stack);
        assert_eq!(
            found(&fake, low + 16, UnknownRun::Report),
            Ok(Frames::Clear)
        );
        assert_eq!(
            found(&fake, 8, UnknownRun::Report),
            Ok(Frames::UnknownStack)
        );
        assert_eq!(found(&fake, 8, UnknownRun::ToFirstHole), Ok(Frames::Clear));
    }
}
