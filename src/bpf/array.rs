//! Arrays of programs, and when a program that was in one may go.
//!
//! # When has the last thread left a replaced program?
//! A tail call leaves no trace of where it went: nobody returns to the caller, who could count. But
//! every chain of tail calls begins with a run that was entered from outside, and the code around
//! such a run ([`jit::record`](super::jit)) counts it in and out. After an entry has been
//! overwritten, only runs that were in at that moment can have found the old program; so it is free
//! when each line of the counter has been seen at zero once since.
//!
//! | window | covered by |
//! | --- | --- |
//! | counted in, about to look into the array | the line is not zero (the count is an acquiring `amo`: no look comes before it) |
//! | has looked before the entry was overwritten | the same; the fence in [`settle`] orders store and reading |
//! | looks afterwards | finds the new entry |
//! | in the program, or in one that it went on to | the line is not zero until the code around the run counts out |
//! | between counting out and the run's `ret` | that is code of the program that was entered, which its caller holds; a program whose budget ends has gone there before |
//! | left by `longjmp`, or by `fork` in the child's other threads | the line never returns to zero: all that is taken out later is kept |
//!
//! Key types: [`ProgArray`]. Neighbours: `env` holds arrays, `jit` reads them, `interp` too.
//! Source: kernel `kernel/bpf/arraymap.c` (`prog_array_map_clear`), `kernel/bpf/core.c`
//! (`bpf_prog_map_compatible`).

use std::mem::Discriminant;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};
use std::time::Duration;

use parking_lot::Mutex;
use text::Deadline;
use thiserror::Error;
use trampoline::{TrampError, Trampolines};

use super::jit::Budget;
use super::loaded::BpfProg;
use super::program::Program;

/// The most entries of an array.
const MAX_LEN: u32 = 1 << 20;

/// Where tail calls go: an array of programs, changed while they run.
///
/// Programs find it as a map of their [`Env`](super::Env). Compiled programs go on in what
/// [`set`](Self::set) has put there; interpreted ones do too, or, on any host, in what
/// [`set_interpreted`](Self::set_interpreted) has.
///
/// A program in an array stays loaded. When the last handle is dropped, those in environments
/// included, the array is emptied, as the kernel does when user space has let go: so a program in
/// its own array is freed in the end.
#[derive(Clone, Debug)]
#[doc(alias = "BPF_MAP_TYPE_PROG_ARRAY")]
pub struct ProgArray(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Slots>);

/// What compiled code sees, and what keeps it alive.
#[derive(Debug)]
pub(crate) struct Slots {
    /// The length, and then the programs' inner entries; 0: none.
    words: Box<[AtomicU64]>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    programs: Vec<Entry>,
    /// Which budgets the programs in the array have, and those that use it; the first decides.
    budgets: Option<BudgetKind>,
}

/// Budgets of one kind are counted the same way.
pub(crate) type BudgetKind = Option<Discriminant<Budget>>;

pub(crate) fn kind_of(budget: Option<Budget>) -> BudgetKind {
    budget.as_ref().map(std::mem::discriminant)
}

#[derive(Clone, Debug, Default)]
struct Entry {
    compiled: Option<BpfProg>,
    interpreted: Option<Arc<Program>>,
}

/// Why an array was not changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProgArrayError {
    /// Beyond its end.
    #[error("the array has {len} entries, and there is none with index {index}")]
    Index {
        /// The entry that was asked for.
        index: u32,
        /// How many there are.
        len: u32,
    },
    /// A program would go on in one that counts another budget, or none.
    #[error(
        "programs that go on in each other must have budgets of one kind, or none: give \
         `Options::budget` the same kind for all"
    )]
    Budgets,
    /// More entries than an array may have.
    #[error("an array of {len} programs is too long: {max} are the most")]
    TooLong {
        /// How many were asked for.
        len: u32,
        /// The most.
        max: u32,
    },
    /// This thread is changing an array, and a hook of what that calls changes one.
    #[error("this thread is changing an array of programs already")]
    Reentered,
    /// Code cannot be changed now.
    #[error("{0}")]
    Tramp(#[from] TrampError),
}

impl ProgArray {
    /// An array of `len` entries, all empty.
    ///
    /// # Errors
    /// [`ProgArrayError::TooLong`].
    pub fn new(len: u32) -> Result<Self, ProgArrayError> {
        let max = MAX_LEN;
        if len > max {
            return Err(ProgArrayError::TooLong { len, max });
        }
        let empty = (0..len).map(|_| AtomicU64::new(0));
        let words = [AtomicU64::new(len.into())].into_iter().chain(empty);
        let programs = vec![Entry::default(); len as usize];
        let held = Held {
            programs,
            budgets: None,
        };
        Ok(Self(Arc::new(Handle(Arc::new(Slots {
            words: words.collect(),
            held: Mutex::new(held),
        })))))
    }

    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.slots().len()
    }

    /// Whether it has no entry at all, not even an empty one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a compiled program into an entry. Tail calls that begin afterwards go there.
    ///
    /// # Errors
    /// [`ProgArrayError`].
    #[doc(alias = "BPF_MAP_UPDATE_ELEM")]
    pub fn set(&self, index: u32, prog: &BpfProg) -> Result<(), ProgArrayError> {
        let entry = Entry {
            compiled: Some(prog.clone()),
            interpreted: Some(Arc::new(prog.compiled().program().clone())),
        };
        self.change(index, entry, Some(prog.budget_kind()))
    }

    /// Puts a program into an entry for the interpreter alone, which goes on in it with the
    /// environment that it has.
    ///
    /// # Errors
    /// [`ProgArrayError`].
    pub fn set_interpreted(&self, index: u32, program: Program) -> Result<(), ProgArrayError> {
        let entry = Entry {
            compiled: None,
            interpreted: Some(Arc::new(program)),
        };
        self.change(index, entry, None)
    }

    /// Empties an entry.
    ///
    /// # Errors
    /// [`ProgArrayError`].
    #[doc(alias = "BPF_MAP_DELETE_ELEM")]
    pub fn clear(&self, index: u32) -> Result<(), ProgArrayError> {
        self.change(index, Entry::default(), None)
    }

    /// Changes an entry; what was in it is freed as soon as nobody can be in it.
    fn change(
        &self,
        index: u32,
        mut entry: Entry,
        kind: Option<BudgetKind>,
    ) -> Result<(), ProgArrayError> {
        let len = self.len();
        if index >= len {
            return Err(ProgArrayError::Index { index, len });
        }
        let slots = self.slots();
        Trampolines::exclusively(|| {
            let mut held = slots.held.try_lock().ok_or(ProgArrayError::Reentered)?;
            if let Some(kind) = kind {
                held.agree(kind)?;
                held.budgets = Some(kind);
            }
            let inner = entry.compiled.as_ref().map_or(0, BpfProg::inner);
            std::mem::swap(&mut held.programs[index as usize], &mut entry);
            slots.words[1 + index as usize].store(inner, Ordering::Release);
            Ok::<_, ProgArrayError>(())
        })??;
        retire(entry.compiled);
        Ok(())
    }

    pub(crate) fn slots(&self) -> &Arc<Slots> {
        &self.0.0
    }

    /// By which compiled code knows it.
    pub(crate) fn addr(&self) -> u64 {
        self.slots().words.as_ptr().expose_provenance() as u64
    }

    /// The program that an interpreted tail call goes on in.
    pub(crate) fn interpreted(&self, index: u32) -> Option<Arc<Program>> {
        Trampolines::locked(|| {
            let held = self.slots().held.try_lock()?;
            held.programs.get(index as usize)?.interpreted.clone()
        })
    }

    /// Whether a program with such a budget can use it.
    pub(crate) fn agree(&self, kind: BudgetKind) -> Result<(), ProgArrayError> {
        let held = self.slots().held.try_lock();
        held.ok_or(ProgArrayError::Reentered)?.agree(kind)
    }

    /// A program with such a budget uses it.
    pub(crate) fn adopt(&self, kind: BudgetKind) {
        if let Some(mut held) = self.slots().held.try_lock() {
            held.budgets = Some(kind);
        }
    }
}

impl Held {
    fn agree(&self, kind: BudgetKind) -> Result<(), ProgArrayError> {
        match self.budgets.is_none_or(|decided| decided == kind) {
            true => Ok(()),
            false => Err(ProgArrayError::Budgets),
        }
    }
}

impl Slots {
    fn len(&self) -> u32 {
        self.words.len() as u32 - 1
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let slots = &self.0;
        let programs = Trampolines::locked(|| {
            let words = &slots.words[1..];
            words
                .iter()
                .for_each(|word| word.store(0, Ordering::Release));
            // Nobody else has it: changes hold the lock of changes too, and drop nothing under it.
            let held = slots.held.try_lock();
            held.map_or_else(Vec::new, |mut held| std::mem::take(&mut held.programs))
        });
        retire(programs.into_iter().filter_map(|entry| entry.compiled));
    }
}

/// How many lines the counter has: threads that run at the same time seldom share one.
pub(crate) const LINES: usize = 64;
/// How far one line is from the next.
pub(crate) const LINE_BYTES: usize = 64;
/// The bit of the thread pointer from which on a thread's line is taken: stacks lie that far apart.
pub(crate) const LINE_SHIFT: i64 = 12;

/// Runs that may make tail calls, as many as are under way; compiled code adds to it.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(AtomicI64);

const _: () = assert!(size_of::<Line>() == LINE_BYTES);

static RUNS: [Line; LINES] = [const { Line(AtomicI64::new(0)) }; LINES];

/// Where the counter is.
pub(crate) fn runs_addr() -> u64 {
    RUNS.as_ptr().expose_provenance() as u64
}

/// A program that is in no array any more, and the lines that have been seen at zero since.
#[derive(Debug)]
struct Retired {
    #[expect(dead_code, reason = "held")]
    prog: BpfProg,
    seen: u64,
}

const _: () = assert!(LINES == u64::BITS as usize);

static RETIRED: Mutex<Vec<Retired>> = Mutex::new(Vec::new());

/// Keeps programs that have just been taken out of their array until nobody is in them.
fn retire(progs: impl IntoIterator<Item = BpfProg>) {
    let fresh = progs.into_iter().map(|prog| Retired { prog, seen: 0 });
    let mut fresh: Vec<Retired> = fresh.collect();
    if fresh.is_empty() {
        return;
    }
    Trampolines::locked(|| {
        if let Some(mut retired) = RETIRED.try_lock() {
            retired.append(&mut fresh);
        }
    });
    if !fresh.is_empty() {
        // In the midst of a look at the list by this thread: kept for good, which is safe.
        std::mem::forget(fresh);
    }
    settle();
}

/// Frees what is retired and can be freed; how much is left.
pub(crate) fn settle() -> usize {
    let (free, left) = Trampolines::locked(|| {
        let Some(mut retired) = RETIRED.try_lock() else {
            return (Vec::new(), 0);
        };
        if retired.is_empty() {
            return (Vec::new(), 0);
        }
        // Whatever is in the list has been overwritten before; lines are read after.
        fence(Ordering::SeqCst);
        let zero = RUNS.iter().enumerate().fold(0u64, |zero, (i, line)| {
            zero | u64::from(line.0.load(Ordering::Acquire) == 0) << i
        });
        retired.iter_mut().for_each(|one| one.seen |= zero);
        let (free, kept): (Vec<_>, _) = std::mem::take(&mut *retired)
            .into_iter()
            .partition(|one| one.seen == u64::MAX);
        *retired = kept;
        (free, retired.len())
    });
    // Without the lock, which each takes.
    drop(free);
    left
}

/// Waits until nothing is retired; how much still is.
pub(crate) fn synchronize(patience: Duration) -> usize {
    let end = Deadline::after(patience);
    loop {
        let left = settle();
        if left == 0 || end.is_over() {
            return left;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
