//! The server: threads with flows of their own, which ask the policy about every event.

#![expect(
    unsafe_code,
    reason = "the table is called by a pointer, as C code would"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rvbpf::struct_ops::Link;

use crate::policy::{CongOps, Decision, Flow, RENO, STUCK};

/// Threads that serve.
pub(crate) const WORKERS: usize = 4;

/// What the workers have counted: decisions by version; and how often a pinned table was not one
/// version.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) decisions: [u64; 5],
    pub(crate) nobodys: u64,
    pub(crate) mixed: u64,
    pub(crate) calls: u64,
}

impl Tally {
    fn add(&mut self, decision: Decision) -> u32 {
        let version = (decision >> 32) as u32;
        self.calls += 1;
        match version {
            RENO..=STUCK => self.decisions[version as usize] += 1,
            _ => self.nobodys += 1,
        }
        version
    }

    fn join(mut self, other: &Tally) -> Tally {
        for (sum, n) in self.decisions.iter_mut().zip(other.decisions) {
            *sum += n;
        }
        self.nobodys += other.nobodys;
        self.mixed += other.mixed;
        self.calls += other.calls;
        self
    }
}

/// Serves with all workers while `meanwhile` runs, and at least until each has served something.
/// `served` counts the events.
pub(crate) fn serve<R>(
    link: &Link<CongOps>,
    served: &AtomicU64,
    meanwhile: impl FnOnce() -> R,
) -> (Tally, R) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS as u64)
            .map(|seed| {
                let stop = &stop;
                scope.spawn(move || work(link, seed, served, stop))
            })
            .collect();
        let result = meanwhile();
        stop.store(true, Ordering::Relaxed);
        let tallies = workers.into_iter().filter_map(|worker| worker.join().ok());
        let tally = tallies.fold(Tally::default(), |sum, tally| sum.join(&tally));
        (tally, result)
    })
}

fn work(link: &Link<CongOps>, seed: u64, served: &AtomicU64, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    let mut flow = Flow::default();
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    // What a C program would keep: the table never moves.
    let ops = link.as_ptr();
    // SAFETY: 1. the link lives while the workers do. 2. functions in it do not change. So below.
    let init = unsafe { (*ops).init };
    // SAFETY: as above.
    let on_ack = unsafe { (*ops).on_ack };
    // SAFETY: as above.
    let on_loss = unsafe { (*ops).on_loss };
    // SAFETY: as above.
    let cwnd = unsafe { (*ops).cwnd };
    tally.add(init(&raw mut flow));
    while !stop.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let decision = match random % 16 {
            0 => {
                flow.losses += 1;
                on_loss(&raw mut flow)
            }
            1 => cwnd(&raw const flow),
            2 => {
                pinned_round(link, &mut flow, &mut tally);
                continue;
            }
            _ => {
                flow.acks += 1;
                on_ack(&raw mut flow, 1 + (random >> 60) as u32)
            }
        };
        tally.add(decision);
        served.fetch_add(1, Ordering::Relaxed);
    }
    tally
}

/// A round that must be of one version from beginning to end.
fn pinned_round(link: &Link<CongOps>, flow: &mut Flow, tally: &mut Tally) {
    let Some(ops) = link.pin() else { return };
    let decisions = [
        (ops.cwnd)(&raw const *flow),
        (ops.on_loss)(&raw mut *flow),
        (ops.cwnd)(&raw const *flow),
    ];
    // What a version leaves to the default is the default's decision.
    let versions = decisions.map(|decision| tally.add(decision));
    let own = if ops.version > 2 { RENO } else { ops.version };
    if versions != [own; 3] {
        tally.mixed += 1;
    }
}
