//! Where a trap leads to: a table that the signal handler reads without locks.
//!
//! Open addressing over pairs of words. Changes are made under the text lock; the handler may read
//! at any moment, and interrupts anything:
//!
//! - *A slot* keeps its address for as long as its table lives; what is removed leads to 0. So a
//!   reader that has found its address finds its target.
//! - *A table* that is half full is replaced by a larger one, and freed when nobody reads it.
//! - *Readers* count themselves in and out on one of two counters, whichever the epoch says.
//!   [`quiesce`] turns the epoch and waits for the other counter to be 0: whoever read before is
//!   done, and whoever comes meanwhile does not keep it waiting. A reader writes the target into
//!   the context of its thread before it is done: after [`remove`] every thread that was led
//!   anywhere shows it, in its registers or in a signal frame, to those who look for it there
//!   ([`crate::threads`]).
//!
//! In the child of a fork the readers of the parent do not exist ([`after_fork`]).
//!
//! Neighbours: `trap` (reads), `change` (writes), `state` (forgets). Source:
//! `kernel/rcu/srcutree.c` (two counters and an epoch).
#![expect(
    unsafe_code,
    reason = "a table that a signal handler reads through a pointer"
)]

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};

use crate::addr::RxAddr;

/// Makes traps at these addresses lead to these targets. Under the text lock.
pub(crate) fn insert(pairs: &[(RxAddr, RxAddr)]) {
    // SAFETY: 1. the text lock is held, so nobody frees it.
    let table = unsafe { TABLE.load(Ordering::Relaxed).as_ref() };
    let nr_used = table.map_or(0, |table| table.nr_used());
    if table.is_none_or(|table| 2 * (nr_used + pairs.len()) > table.slots.len()) {
        replace(pairs.len());
    }
    // SAFETY: 1. as above.
    if let Some(table) = unsafe { TABLE.load(Ordering::Relaxed).as_ref() } {
        for (at, to) in pairs {
            table.put(at.get(), to.get());
        }
    }
    // Before the trap is stored that a reader comes from.
    NR_CHANGES.fetch_add(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
}

/// Forgets addresses, and waits until nobody is on the way to their targets without showing it.
/// Under the text lock.
pub(crate) fn remove(ats: &[RxAddr]) {
    // SAFETY: 1. the text lock is held, so nobody frees it.
    let Some(table) = (unsafe { TABLE.load(Ordering::Relaxed).as_ref() }) else {
        return;
    };
    if ats.is_empty() {
        return;
    }
    for slot in ats.iter().filter_map(|at| table.find(at.get())) {
        slot.to.store(0, Ordering::Relaxed);
    }
    NR_CHANGES.fetch_add(1, Ordering::SeqCst);
    quiesce();
}

/// Whether a breakpoint stands at `pc` ([`lead`] has nothing for it, `is_breakpoint` sees one) that
/// is nobody's of this table. For the signal handler.
///
/// One without the other says nothing: a trap may have been laid in between. But every trap is
/// in the table, and the change counted, before it is stored, and in the table until it is gone.
/// So if nothing was changed around both answers they belong together; else the caller asks again,
/// once for each change that somebody made meanwhile.
#[cfg_attr(
    not(target_arch = "riscv64"),
    allow(dead_code, reason = "asked by the handler")
)]
pub(crate) fn look(
    pc: u64,
    mut lead_to: impl FnMut(u64),
    is_breakpoint: impl Fn(u64) -> bool,
) -> Found {
    loop {
        let nr_changes = NR_CHANGES.load(Ordering::SeqCst);
        if lead(pc, &mut lead_to) {
            return Found::Led;
        }
        if !is_breakpoint(pc) {
            return Found::Gone;
        }
        fence(Ordering::SeqCst);
        if NR_CHANGES.load(Ordering::SeqCst) == nr_changes {
            return Found::Unknown;
        }
    }
}

/// What a thread has come by.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Found {
    /// A trap of ours.
    Led,
    /// One that was taken away since.
    Gone,
    /// A breakpoint of somebody else.
    Unknown,
}

/// Hands the target of a trap at `pc` to `lead`; `false` if there is none. Async-signal-safe.
pub(super) fn lead(pc: u64, lead: impl FnOnce(u64)) -> bool {
    let parity = enter();
    // SAFETY: 1. a table is freed when all have left who entered before it was replaced.
    let table = unsafe { TABLE.load(Ordering::Acquire).as_ref() };
    let slot = table.and_then(|table| table.find(pc));
    let to = slot.map_or(0, |slot| slot.to.load(Ordering::Acquire));
    if to != 0 {
        lead(to);
    }
    READERS[parity].fetch_sub(1, Ordering::SeqCst);
    to != 0
}

/// In the child of a fork, which has one thread, and that one does not read.
pub(crate) fn after_fork() {
    for readers in &READERS {
        readers.store(0, Ordering::SeqCst);
    }
}

static TABLE: AtomicPtr<Table> = AtomicPtr::new(null_mut());
static EPOCH: AtomicUsize = AtomicUsize::new(0);
/// How often something was put into the table or taken out.
static NR_CHANGES: AtomicU64 = AtomicU64::new(0);
static READERS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

struct Table {
    /// A power of two, never full.
    slots: Box<[Slot]>,
}

#[derive(Default)]
struct Slot {
    /// 0: nothing was ever here.
    at: AtomicU64,
    /// 0: nothing is here any more.
    to: AtomicU64,
}

impl Table {
    fn new(nr_pairs: usize) -> Self {
        let nr_slots = (4 * nr_pairs).next_power_of_two().max(64);
        let slots = (0..nr_slots).map(|_| Slot::default()).collect();
        Self { slots }
    }

    fn nr_used(&self) -> usize {
        let used = |slot: &&Slot| slot.at.load(Ordering::Relaxed) != 0;
        self.slots.iter().filter(used).count()
    }

    /// The slots in which `at` may be, in order.
    fn places(&self, at: u64) -> impl Iterator<Item = &Slot> {
        let mask = self.slots.len() - 1;
        let first = ((at >> 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        (0..self.slots.len()).map(move |i| &self.slots[first.wrapping_add(i) & mask])
    }

    fn find(&self, at: u64) -> Option<&Slot> {
        for slot in self.places(at) {
            match slot.at.load(Ordering::Acquire) {
                0 => return None,
                here if here == at => return Some(slot),
                _ => {}
            }
        }
        None
    }

    fn put(&self, at: u64, to: u64) {
        let free_or_own = |slot: &&Slot| {
            let here = slot.at.load(Ordering::Relaxed);
            here == 0 || here == at
        };
        // There is room: `insert` has seen to it.
        if let Some(slot) = self.places(at).find(free_or_own) {
            slot.to.store(to, Ordering::Release);
            slot.at.store(at, Ordering::Release);
        }
    }
}

/// A larger table, with what leads somewhere, and room for `nr_more`.
fn replace(nr_more: usize) {
    let old = TABLE.load(Ordering::Relaxed);
    // SAFETY: 1. the text lock is held, so nobody else frees it.
    let slots: &[Slot] = unsafe { old.as_ref() }.map_or(&[], |table| &table.slots);
    let pair = |slot: &Slot| {
        let to = slot.to.load(Ordering::Relaxed);
        (to != 0).then(|| (slot.at.load(Ordering::Relaxed), to))
    };
    let live: Vec<(u64, u64)> = slots.iter().filter_map(pair).collect();
    let table = Table::new(live.len() + nr_more);
    for (at, to) in live {
        table.put(at, to);
    }
    TABLE.store(Box::into_raw(Box::new(table)), Ordering::SeqCst);
    if old.is_null() {
        return;
    }
    quiesce();
    // SAFETY:
    // 1. It was made by `Box::into_raw` here, and is freed once, under the text lock.
    // 2. No reader has it: they have left, or entered after it was replaced.
    drop(unsafe { Box::from_raw(old) });
}

/// Counts this reader in; which counter it is on.
fn enter() -> usize {
    loop {
        let epoch = EPOCH.load(Ordering::SeqCst);
        let parity = epoch & 1;
        READERS[parity].fetch_add(1, Ordering::SeqCst);
        if EPOCH.load(Ordering::SeqCst) == epoch {
            return parity;
        }
        READERS[parity].fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits until all have left who entered before. Readers are signal handlers with all signals
/// blocked, a few instructions long.
fn quiesce() {
    let parity = EPOCH.fetch_add(1, Ordering::SeqCst) & 1;
    while READERS[parity].load(Ordering::SeqCst) != 0 {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::state;

    fn led(at: u64) -> Option<u64> {
        let mut found = None;
        lead(at, |to| found = Some(to));
        found
    }

    #[test]
    fn what_is_inserted_is_found_until_it_is_removed() {
        let _lock = state::lock();
        let at = |i: u64| RxAddr::new(0x7700_0000 + 2 * i);
        let to = |i: u64| RxAddr::new(0x1_0000 + i);
        for round in 0..3 {
            let pairs: Vec<_> = (0..1000).map(|i| (at(i), to(i + round))).collect();
            insert(&pairs);
            for i in 0..1000 {
                assert_eq!(led(at(i).get()), Some(to(i + round).get()));
            }
            assert_eq!(led(at(1000).get()), None);
            let gone: Vec<_> = (0..500).map(at).collect();
            remove(&gone);
            assert_eq!(led(at(499).get()), None);
            assert_eq!(led(at(500).get()), Some(to(500 + round).get()));
            remove(&(500..1000).map(at).collect::<Vec<_>>());
        }
        assert_eq!((0..1000).find_map(|i| led(at(i).get())), None);
    }

    /// A trap is laid, or laid and taken away again, between the look into the table and the one at
    /// the text.
    #[test]
    fn a_trap_that_comes_in_between_is_not_somebody_elses() {
        let at = RxAddr::new(0x8b00_0000);
        let pairs = [(at, RxAddr::new(0x77))];
        let nr_looks = std::cell::Cell::new(0);
        let look_at = |text: &dyn Fn(u32) -> bool| {
            nr_looks.set(0);
            let mut led = None;
            let found = look(
                at.get(),
                |to| led = Some(to),
                |_| {
                    nr_looks.set(nr_looks.get() + 1);
                    text(nr_looks.get())
                },
            );
            (found, led, nr_looks.get())
        };
        let lay = |nr| {
            if nr == 1 {
                insert_locked(&pairs);
            }
            true
        };
        assert_eq!(look_at(&lay), (Found::Led, Some(0x77), 1));
        remove_locked(&[at]);
        let lay_and_take = |nr| {
            if nr == 1 {
                insert_locked(&pairs);
                remove_locked(&[at]);
            }
            nr == 1
        };
        assert_eq!(look_at(&lay_and_take), (Found::Gone, None, 2));
        assert_eq!(look_at(&|_| false), (Found::Gone, None, 1));
        // Other tests change the table meanwhile: more looks are needed then.
        let (found, led, _) = look_at(&|_| true);
        assert_eq!((found, led), (Found::Unknown, None));
    }

    #[test]
    fn readers_see_old_or_new_while_tables_come_and_go() {
        let done = AtomicBool::new(false);
        let keep = (RxAddr::new(0x8800_0000), RxAddr::new(0x1234));
        insert_locked(&[keep]);
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        assert_eq!(led(keep.0.get()), Some(0x1234));
                        let other = led(0x8800_0002);
                        assert!(matches!(other, None | Some(0x9999)), "{other:?}");
                    }
                });
            }
            for i in 0..2000_u64 {
                let other = RxAddr::new(0x8800_0002);
                insert_locked(&[(other, RxAddr::new(0x9999))]);
                let _lock = state::lock();
                insert(&[(RxAddr::new(0x8900_0000 + 2 * i), RxAddr::new(1))]);
                remove(&[other, RxAddr::new(0x8900_0000 + 2 * i)]);
            }
            done.store(true, Ordering::Relaxed);
        });
        let _lock = state::lock();
        remove(&[keep.0]);
    }

    fn insert_locked(pairs: &[(RxAddr, RxAddr)]) {
        let _lock = state::lock();
        insert(pairs);
    }

    fn remove_locked(ats: &[RxAddr]) {
        let _lock = state::lock();
        remove(ats);
    }

    #[test]
    fn removal_waits_for_whoever_is_being_led() {
        let at = RxAddr::new(0x8a00_0000);
        insert_locked(&[(at, RxAddr::new(0x77))]);
        let (is_led, may_go) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|s| {
            s.spawn(|| {
                lead(at.get(), |_| {
                    is_led.store(true, Ordering::SeqCst);
                    while !may_go.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                });
            });
            while !is_led.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let removing = s.spawn(|| {
                let _lock = state::lock();
                remove(&[at]);
            });
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!removing.is_finished(), "somebody is on the way");
            may_go.store(true, Ordering::SeqCst);
        });
    }
}
