//! The proof itself: look at every thread until each has been seen outside once.
//!
//! # One look at a blocked thread
//! ```text
//!   n0 = runs          s0 = syscall line          stack, busy_of          s1 = line   n1 = runs
//! ```
//! The kernel reads a line of a thread that is off-cpu atomically. If both lines say blocked and
//! `n0 == n1`, the thread did not run between the lines: had it run, it would have been put on a
//! cpu after `s0` and taken off before `s1`, and the count (of either event) at `n1` would be
//! above that at `n0`. So pc, stack and `busy_of` belong to one instant.
//!
//! # Order
//! The caller has changed and flushed the code before. All that is read here is read after that,
//! and a thread that was off-cpu has gone through the scheduler's full barriers: what it did in
//! the ranges happens before this call returns.
//!
//! Key function: [`prove`]. Neighbours: `proc` (what is read), `frames` (stacks), `ask` (signals).

use std::time::{Duration, Instant};

use super::ask::{self, Answer, Asked, Here, Question};
use super::frames::{self, Bounds, Frames, Marked, Spans, UnknownRun};
use super::proc::{self, Shown, StackRuns, SyscallLine, Task, Tasks, Tid};
use super::sys::{self, Errno};
use super::{Patience, Stuck, StuckWhy, Watch};

/// Proves every thread outside, or names one that is not.
pub(super) fn prove(watch: &dyn Watch, patience: Patience) -> Result<(), Stuck> {
    let looker = Looker::new().map_err(unlisted)?;
    prove_by(looker, watch, patience)
}

/// Those of a thread that is blocked, of which no more is known than its sp.
fn bounds(runs: &StackRuns) -> Bounds<'_> {
    Bounds {
        runs,
        unknown: UnknownRun::Report,
        tp: None,
    }
}

/// All threads, the caller too.
fn list(tasks: &Tasks) -> Result<Vec<Tid>, Stuck> {
    let (mut tids, mut buf) = (Vec::new(), vec![0; BUF_BYTES]);
    let start = Instant::now();
    loop {
        match proc::list_threads(tasks, &mut tids, &mut buf) {
            Ok(()) => return Ok(tids),
            Err(libc::EAGAIN) if start.elapsed() < LISTING => {}
            Err(errno) => return Err(unlisted(errno)),
        }
    }
}

/// The ids of all threads, as system calls have them.
pub(super) fn ids() -> Result<Vec<i32>, Stuck> {
    let tasks = Tasks::open().map_err(unlisted)?;
    Ok(list(&tasks)?.into_iter().map(|tid| tid.own).collect())
}

/// The first thread that blocks `signo` and may run user code; the caller counts.
pub(super) fn blocking(signo: i32) -> Result<Option<i32>, Stuck> {
    let tasks = Tasks::open().map_err(unlisted)?;
    // Where no thread can be looked at, masks can be read still.
    if tasks.shown() == Shown::Emulators {
        return Ok(None);
    }
    for tid in list(&tasks)? {
        let is_deaf = || Ok(tasks.blocks_signal(tid, signo)? && !tasks.is_in_kernel_for_good(tid)?);
        match is_deaf() {
            Ok(false) => {}
            Ok(true) => return Ok(Some(tid.own)),
            Err(_) if !sys::is_alive(tid.own) => {}
            Err(errno) => {
                let why = StuckWhy::Hidden(errno);
                return Err(Stuck { tid: tid.own, why });
            }
        }
    }
    Ok(None)
}

fn prove_by(mut looker: Looker, watch: &dyn Watch, patience: Patience) -> Result<(), Stuck> {
    let start = Instant::now();
    let question = looker.question(watch).map_err(unlisted)?;
    prove_caller(&question, &mut looker.buf)?;
    let mut waiting = loop {
        match looker.threads() {
            Ok(waiting) => break waiting,
            Err(libc::EAGAIN) if start.elapsed() < patience.deadline() => {}
            // Threads come and go faster than that: they are running, and not hidden.
            Err(libc::EAGAIN) => {
                let (tid, why) = (looker.newest, StuckWhy::Running);
                return Err(Stuck { tid, why });
            }
            Err(errno) => return Err(unlisted(errno)),
        }
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let asking = match patience {
            Patience::Signal { after, .. } if start.elapsed() >= after => Asking::Yes,
            _ => Asking::No,
        };
        waiting.retain_mut(|thread| !thread.passes(&question, &mut looker, asking));
        if waiting.is_empty() {
            return Ok(());
        }
        let left = patience.deadline().saturating_sub(start.elapsed());
        // Where one look takes longer than the deadline, threads are still asked once.
        if left.is_zero() && (asking == Asking::Yes || !patience.asks()) {
            return take_last_answers(waiting);
        }
        sys::pause(pause.min(left));
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

const FIRST_PAUSE: Duration = Duration::from_micros(30);
const LAST_PAUSE: Duration = Duration::from_millis(1);
const BUF_BYTES: usize = 64 << 10;
/// How long after the deadline an answer that is under way is waited for: the thread gives it as soon
/// as it has a hart.
const LAST_ANSWER: Duration = Duration::from_millis(20);
/// How long threads may come and go faster than they can be listed; a machine that is busy gets few
/// lists done in a second.
const LISTING: Duration = Duration::from_secs(5);

/// It is too late to look again, but not for answers to what has been asked.
fn take_last_answers(mut waiting: Vec<Waiting<'_>>) -> Result<(), Stuck> {
    let start = Instant::now();
    while waiting.iter().any(|thread| thread.asked.is_some()) && start.elapsed() < LAST_ANSWER {
        sys::pause(LAST_PAUSE);
        waiting.retain_mut(|thread| !thread.has_answered_outside());
    }
    match waiting.is_empty() {
        true => Ok(()),
        false => Err(worst_of(&waiting)),
    }
}

/// Somebody who is known to be inside says more than one who was only not seen.
fn worst_of(waiting: &[Waiting<'_>]) -> Stuck {
    let rank = |why| match why {
        StuckWhy::Inside | StuckWhy::Caller => 0,
        StuckWhy::Vfork => 1,
        StuckWhy::SignalBlocked => 2,
        StuckWhy::Hidden(_) => 3,
        StuckWhy::Running => 4,
    };
    let worst = waiting.iter().min_by_key(|thread| rank(thread.why));
    worst.map_or(unlisted(libc::ESRCH), |thread| Stuck {
        tid: thread.tid.own,
        why: thread.why,
    })
}

fn unlisted(errno: Errno) -> Stuck {
    Stuck {
        tid: 0,
        why: StuckWhy::Hidden(errno),
    }
}

/// The caller itself cannot leave while it waits here, so it is asked once.
fn prove_caller(question: &Question<'_>, buf: &mut [u8]) -> Result<(), Stuck> {
    let tid = sys::gettid();
    let here = Here {
        pc: 0,
        sp: std::ptr::from_ref(&tid).addr() as u64,
        tp: None,
    };
    match question.answer_here(here, buf) {
        Answer::Outside => Ok(()),
        Answer::Inside | Answer::None => Err(Stuck {
            tid,
            why: StuckWhy::Caller,
        }),
        Answer::Unreadable => Err(Stuck {
            tid,
            why: StuckWhy::Hidden(libc::EPERM),
        }),
    }
}

/// Whether threads may be asked by signal by now.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Asking {
    No,
    Yes,
}

/// A thread that is not proved outside yet.
struct Waiting<'a> {
    tid: Tid,
    why: StuckWhy,
    asked: Option<Asked<'a>>,
}

impl<'a> Waiting<'a> {
    /// Looks once, takes an answer, asks. `true`: the thread is proved outside.
    fn passes(&mut self, question: &'a Question<'a>, looker: &mut Looker, asking: Asking) -> bool {
        if self.has_answered_outside() {
            return true;
        }
        match looker.look(self.tid, question) {
            Seen::Gone | Seen::Outside => return true,
            Seen::Inside => self.why = StuckWhy::Inside,
            Seen::Vfork => self.why = StuckWhy::Vfork,
            // Only the others may be asked: the signal would wake a thread that is blocked.
            Seen::Running => {
                if self.why == StuckWhy::Vfork {
                    self.why = StuckWhy::Running;
                }
                return asking == Asking::Yes
                    && self.ask(question, looker, StuckWhy::SignalBlocked);
            }
            Seen::Hidden(errno) => {
                self.why = StuckWhy::Hidden(errno);
                return asking == Asking::Yes && self.ask(question, looker, self.why);
            }
        }
        false
    }

    fn has_answered_outside(&mut self) -> bool {
        match self.asked.as_ref().map(Asked::answer) {
            None | Some(Answer::None) => return false,
            Some(Answer::Outside) => return true,
            Some(Answer::Inside) => self.why = StuckWhy::Inside,
            Some(Answer::Unreadable) => self.why = StuckWhy::Hidden(libc::EPERM),
        }
        self.asked = None;
        false
    }

    /// Asks unless a question is under way; `deaf` is what to say of a thread that cannot be
    /// asked. `true`: there is nobody to ask.
    fn ask(&mut self, question: &'a Question<'a>, looker: &Looker, deaf: StuckWhy) -> bool {
        if self.asked.is_some() {
            return false;
        }
        let sent = ask::signal().and_then(|signo| {
            if looker.blocks_signal(self.tid, signo) {
                self.why = deaf;
                return match looker.tasks.is_in_kernel_for_good(self.tid)? {
                    true => Err(libc::ESRCH),
                    false => Ok(None),
                };
            }
            Asked::send(question, self.tid.own, signo)
        });
        match sent {
            Ok(asked) => self.asked = asked,
            Err(libc::ESRCH) => return true,
            Err(errno) => self.why = StuckWhy::Hidden(errno),
        }
        false
    }
}

/// What one look at a thread shows.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Seen {
    Gone,
    Outside,
    Inside,
    /// On a cpu at some moment of the look.
    Running,
    Vfork,
    Hidden(Errno),
}

/// Reads what the kernel shows of threads.
struct Looker {
    tasks: Tasks,
    /// Unless it is ours, everybody is asked.
    shown: Shown,
    buf: Vec<u8>,
    /// Read when a stack was not in the runs of the question.
    newer_runs: StackRuns,
    /// The last thread that was listed.
    newest: i32,
}

impl Looker {
    fn new() -> Result<Self, Errno> {
        let tasks = Tasks::open()?;
        let shown = tasks.shown();
        Ok(Self {
            tasks,
            shown,
            buf: vec![0; BUF_BYTES],
            newer_runs: StackRuns::default(),
            newest: sys::gettid(),
        })
    }

    fn question<'a>(&mut self, watch: &'a dyn Watch) -> Result<Question<'a>, Errno> {
        let mut runs = StackRuns::default();
        runs.read(&mut self.buf)?;
        Ok(Question {
            watch,
            spans: Spans::new(watch.ranges()),
            runs,
        })
    }

    /// All threads but the caller.
    fn threads<'a>(&mut self) -> Result<Vec<Waiting<'a>>, Errno> {
        let mut tids = Vec::new();
        let listed = proc::list_threads(&self.tasks, &mut tids, &mut self.buf);
        self.newest = tids.last().map_or(self.newest, |tid: &Tid| tid.own);
        listed?;
        let me = sys::gettid();
        let others = tids.into_iter().filter(|tid| tid.own != me);
        let waiting = |tid| Waiting {
            tid,
            why: StuckWhy::Running,
            asked: None,
        };
        Ok(others.map(waiting).collect())
    }

    fn look(&mut self, tid: Tid, question: &Question<'_>) -> Seen {
        match self.try_look(tid, question) {
            Ok(seen) => seen,
            Err(libc::ENOENT | libc::ESRCH) if !sys::is_alive(tid.own) => Seen::Gone,
            Err(errno) => Seen::Hidden(errno),
        }
    }

    fn try_look(&mut self, tid: Tid, question: &Question<'_>) -> Result<Seen, Errno> {
        let task = Task::open(&self.tasks, tid)?;
        if self.shown == Shown::Emulators {
            return Err(libc::EOPNOTSUPP);
        }
        let nr_runs = task.nr_runs()?;
        let line = task.syscall()?;
        let SyscallLine::Blocked { pc, .. } = line else {
            return Ok(Seen::Running);
        };
        let at = match question.spans.contains(pc) {
            true => Some(pc),
            false => self.interrupted_inside(line, question)?,
        };
        let inside = at.is_some() || question.watch.busy_of(tid.own);
        if task.syscall()? != line || task.nr_runs()? != nr_runs {
            return Ok(Seen::Running);
        }
        if let Some(pc) = at {
            question.watch.seen_at(pc);
        }
        Ok(match inside {
            true => Seen::Inside,
            false if line.in_vfork() => Seen::Vfork,
            false => Seen::Outside,
        })
    }

    /// The pc of a context in the spans that a signal handler on the thread's stack has
    /// interrupted.
    fn interrupted_inside(
        &mut self,
        line: SyscallLine,
        question: &Question<'_>,
    ) -> Result<Option<u64>, Errno> {
        let SyscallLine::Blocked { nr, sp, .. } = line else {
            return Ok(None);
        };
        // A thread that has ended but is not gone (a leader that waits for the others), or one
        // that lives in the kernel only (io_uring).
        if sp == 0 {
            return Ok(None);
        }
        // Our own handler makes no blocking system call; a fault may come anywhere in it.
        let marked = match nr {
            ..=-1 | libc::SYS_rt_sigreturn => Marked::Live,
            _ => Marked::Dead,
        };
        let Question { spans, runs, .. } = question;
        let mut found = frames::search(sp, spans, bounds(runs), marked, &mut self.buf)?;
        if found == Frames::UnknownStack {
            let newer = bounds(&self.newer_runs);
            found = frames::search(sp, spans, newer, marked, &mut self.buf)?;
        }
        if found == Frames::UnknownStack {
            self.newer_runs.read(&mut self.buf)?;
            let newer = bounds(&self.newer_runs);
            found = frames::search(sp, spans, newer, marked, &mut self.buf)?;
        }
        Ok(match found {
            Frames::Inside { pc } => Some(pc),
            // Still unknown: sp points to no memory, so no frame is there.
            Frames::Clear | Frames::UnknownStack => None,
        })
    }

    /// `false` also if that cannot be read: then the thread is asked in vain at worst.
    fn blocks_signal(&self, tid: Tid, signo: i32) -> bool {
        self.tasks.blocks_signal(tid, signo).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::tests::{Parked, Spinner, in_turn, nowhere};

    #[test]
    fn where_nothing_can_be_read_everybody_is_asked() {
        let _turn = in_turn();
        let (parked, spinner) = (Parked::new(), Spinner::outside());
        let deadline = Duration::from_secs(20);
        for _ in 0..20 {
            let mut looker = Looker::new().expect("/proc is there");
            looker.shown = Shown::Emulators;
            let patience = Patience::Signal {
                after: Duration::ZERO,
                deadline,
            };
            assert_eq!(prove_by(looker, &nowhere(), patience), Ok(()));
        }
        let mut looker = Looker::new().expect("/proc is there");
        looker.shown = Shown::Emulators;
        let polled = prove_by(looker, &nowhere(), Patience::PollOnly(Duration::ZERO));
        assert_eq!(
            polled.map_err(|stuck| stuck.why),
            Err(StuckWhy::Hidden(libc::EOPNOTSUPP))
        );
        spinner.stop();
        parked.stop();
    }

    /// A look takes longer than that. Whoever runs all the time is asked anyway, and is heard.
    #[test]
    fn a_short_deadline_leaves_time_for_one_answer() {
        let _turn = in_turn();
        let spinner = Spinner::outside();
        for after in [Duration::ZERO, Duration::from_nanos(1)] {
            let deadline = after;
            let patience = Patience::Signal { after, deadline };
            let prove = || prove(&nowhere(), patience);
            // The spinner may have no hart for longer than an answer may take.
            assert!((0..200).any(|_| prove() == Ok(())), "{:?}", prove());
        }
        spinner.stop();
    }
}
