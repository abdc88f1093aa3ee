//! A priority above all threads of this process, for as long as entries are closed.
//!
//! Threads that wait at a closed entry spin. One of real-time priority, on the only hart that the
//! thread that changes could use, would keep it from ever opening the entry. Threads of the usual
//! policies share.
//!
//! Neighbours: `window`. Source: `sched(7)`.
#![expect(unsafe_code, reason = "bare system calls about scheduling")]

use std::ffi::c_int;

use crate::syscall::syscall;
use crate::threads;

const HIGHEST: c_int = 99;
/// In what the kernel gives as policy: not inherited by children.
const RESET_ON_FORK: c_int = 0x4000_0000;

/// What the thread was before; it is again when this is dropped.
pub(super) struct Rank {
    before: Option<(c_int, c_int)>,
}

/// No other thread keeps this one from its hart from here on. `None`: that cannot be had.
pub(super) fn above_all() -> Option<Rank> {
    let (policy, own) = of(0)?;
    if policy & !RESET_ON_FORK == libc::SCHED_DEADLINE {
        // It could not be set back.
        return None;
    }
    // The highest, and how many have it; the caller is among them.
    let (mut highest, mut nr) = (0, 0);
    for tid in threads::list().ok()? {
        // One that has ended meanwhile keeps nothing.
        let Some((policy, priority)) = of(tid) else {
            continue;
        };
        match policy & !RESET_ON_FORK {
            libc::SCHED_FIFO | libc::SCHED_RR => match priority.cmp(&highest) {
                std::cmp::Ordering::Greater => (highest, nr) = (priority, 1),
                std::cmp::Ordering::Equal => nr += 1,
                std::cmp::Ordering::Less => {}
            },
            libc::SCHED_DEADLINE => return None,
            _ => {}
        }
    }
    if highest == 0 || highest < own || (highest == own && nr <= 1) {
        return Some(Rank { before: None });
    }
    let priority = highest + 1;
    if priority > HIGHEST {
        return None;
    }
    set(libc::SCHED_FIFO | policy & RESET_ON_FORK, priority)?;
    Some(Rank {
        before: Some((policy, own)),
    })
}

impl Drop for Rank {
    fn drop(&mut self) {
        if let Some((policy, priority)) = self.before {
            // To lower it is always allowed.
            let _ = set(policy, priority);
        }
    }
}

/// A thread's policy and real-time priority; 0: this thread's.
fn of(tid: i32) -> Option<(c_int, c_int)> {
    // SAFETY: 1. reads and writes no memory.
    let policy = unsafe { syscall(libc::SYS_sched_getscheduler, [tid as usize]) }.ok()?;
    let mut priority: c_int = 0;
    let args = [tid as usize, (&raw mut priority).expose_provenance()];
    // SAFETY: 1. the kernel writes `priority`, which lives.
    unsafe { syscall(libc::SYS_sched_getparam, args) }.ok()?;
    // SAFETY: 1. this function's own; the kernel wrote it behind the compiler's back.
    let priority = unsafe { (&raw const priority).read_volatile() };
    Some((policy as c_int, priority))
}

fn set(policy: c_int, priority: c_int) -> Option<()> {
    let args = [
        0,
        policy as usize,
        (&raw const priority).expose_provenance(),
    ];
    // SAFETY: 1. the kernel reads `priority`, which lives.
    unsafe { syscall(libc::SYS_sched_setscheduler, args) }.ok()?;
    Some(())
}
