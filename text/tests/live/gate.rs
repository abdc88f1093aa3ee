//! Neither thread nor child is started while traps are laid; afterwards all are, whatever became of
//! the change.

use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rvbpf_text::{
    DetourKind, DetourState, RxAddr, RxRange, TextError, divert_all, find_symbol, original_text,
    testing, undivert_all,
};

use super::detour_fns::*;
use super::fns::*;
use super::park::{Parked, parked_in};
use crate::alone;

/// As long as a start is given to show that it does not come about.
const HELD: Duration = Duration::from_millis(100);
/// As long as it may take at most once it can.
const STARTED: Duration = Duration::from_secs(20);

/// A thread that is there already, and starts others, or children, when it is told to.
struct Starter {
    orders: Sender<()>,
    started: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Starter {
    fn of_threads() -> Self {
        Self::new(|tell| {
            std::thread::spawn(move || tell.send(()).unwrap());
        })
    }

    /// By `posix_spawn`, as std does where there is one.
    fn of_children() -> Self {
        Self::new(|tell| {
            let mut command = Command::new("/proc/self/exe");
            let quiet = command.args(["--exact", "none"]).stdout(Stdio::null());
            let mut child = quiet.spawn().unwrap();
            tell.send(()).unwrap();
            assert!(child.wait().unwrap().success());
        })
    }

    fn new(start: fn(Sender<()>)) -> Self {
        let (orders, ordered) = channel();
        let (tell, started) = channel();
        let thread = std::thread::spawn(move || {
            while ordered.recv().is_ok() {
                start(tell.clone());
            }
        });
        Self {
            orders,
            started,
            thread,
        }
    }

    fn start(&self) {
        self.orders.send(()).unwrap();
    }

    fn has_started_in(&self, time: Duration) -> bool {
        self.started.recv_timeout(time).is_ok()
    }

    fn end(self) {
        drop(self.orders);
        self.thread.join().unwrap();
    }
}

fn is_trap(site: Site) -> bool {
    site.bytes()[..2] == [0x02, 0x90]
}

/// The text of `pthread_create`: as it is, and as it is shown.
fn of_pthread_create() -> (Vec<u8>, Vec<u8>) {
    let at = find_symbol(Some("libc"), "pthread_create").unwrap();
    let range = RxRange::new(at, 0x400);
    // SAFETY: the function is longer than that, and its text can be read.
    let now = unsafe { std::slice::from_raw_parts(pointer(at), range.len_bytes) };
    (now.to_vec(), original_text(range).unwrap())
}

fn pointer(at: RxAddr) -> *const u8 {
    std::ptr::with_exposed_provenance(at.get() as usize)
}

#[test]
fn nothing_starts_while_there_are_traps() {
    let _alone = alone();
    let site = SITES[1];
    let detour = [site.detour(DetourKind::Near, rx(d_target))];
    let (before, _) = of_pthread_create();
    let starters = [Starter::of_threads(), Starter::of_children()];
    let parked = Parked::at(site.at().checked_add(2).unwrap(), 1);
    std::thread::scope(|s| {
        let diverting = s.spawn(|| divert_all(&detour));
        parked_in(|| is_trap(site));
        let (now, shown) = of_pthread_create();
        assert_eq!(shown, before, "the gate is seen through");
        let differ = (0..now.len()).filter(|i| now[*i] != before[*i]);
        let differ: Vec<usize> = differ.collect();
        assert!(matches!(differ[..], [_] | [_, _]), "{differ:?}");
        let gate = differ[0] & !1;
        assert_eq!(now[gate..gate + 2], [0x01, 0xa0], "c.j .");
        assert_eq!(before[gate..gate + 4], [0x73, 0, 0, 0], "an ecall");
        starters.iter().for_each(Starter::start);
        let has_started = |starter: &Starter| starter.has_started_in(HELD);
        assert_eq!(starters.iter().position(has_started), None);
        assert!(is_trap(site) && !diverting.is_finished());
        parked.go_on();
        let states = diverting.join().unwrap();
        let has_started = |starter: &Starter| starter.has_started_in(STARTED);
        assert!(starters.iter().all(has_started), "it is open again");
        assert_eq!(states, Ok(vec![DetourState::Jump]));
    });
    assert_eq!(of_pthread_create().0, before);
    undivert_all(&detour).unwrap();
    assert_eq!(of_pthread_create().0, before);
    starters.map(Starter::end);
}

#[test]
fn the_gate_opens_when_somebody_stays_inside_or_is_in_the_way() {
    let _alone = alone();
    let site = SITES[1];
    let detour = [site.detour(DetourKind::Near, rx(d_target))];
    let starter = Starter::of_threads();
    let starts = |what: &str| {
        starter.start();
        assert!(starter.has_started_in(STARTED), "{what}");
    };
    let parked = Parked::at(site.at().checked_add(2).unwrap(), 1);
    assert_eq!(divert_all(&detour), Ok(vec![DetourState::Trap]));
    starts("a site that stays a trap");
    parked.go_on();
    assert_eq!(divert_all(&detour), Ok(vec![DetourState::Jump]));
    starts("its jump");
    undivert_all(&detour).unwrap();
    for pass in 0.. {
        testing::refuse_flushes_after(pass, 1);
        let diverted = divert_all(&detour);
        testing::refuse_next_flushes(0);
        starts("a refused flush");
        if diverted.is_ok() {
            break;
        }
        assert!(
            matches!(diverted, Err(TextError::Flush { .. })),
            "{diverted:?}"
        );
    }
    undivert_all(&detour).unwrap();
    starter.end();
}

#[test]
fn the_gate_stays_closed_until_the_last_of_two_changes() {
    let _alone = alone();
    let [first, second] = [SITES[1], SITES[5]];
    let detour = |site: Site| [site.detour(DetourKind::Near, rx(d_target))];
    let parked = |site: Site| Parked::at(site.at().checked_add(2).unwrap(), 1);
    let starter = Starter::of_threads();
    let (early, late) = (parked(first), parked(second));
    let (one, two) = (detour(first), detour(second));
    let (go, turn) = channel::<()>();
    std::thread::scope(|s| {
        // It must be there before the gate closes.
        let later = s.spawn(|| turn.into_iter().map(|()| divert_all(&two)).next());
        let sooner = s.spawn(|| divert_all(&one));
        parked_in(|| is_trap(first));
        go.send(()).unwrap();
        parked_in(|| is_trap(second));
        starter.start();
        early.go_on();
        assert_eq!(sooner.join().unwrap(), Ok(vec![DetourState::Jump]));
        let has_started = starter.has_started_in(HELD);
        assert!(!has_started && is_trap(second) && !later.is_finished());
        late.go_on();
        let states = later.join().unwrap();
        assert!(starter.has_started_in(STARTED), "it is open again");
        assert_eq!(states, Some(Ok(vec![DetourState::Jump])));
    });
    undivert_all(&[one, two].concat()).unwrap();
    starter.end();
}

/// The child is made while the gate is closed.
#[test]
fn a_child_of_a_fork_starts_threads_and_children() {
    let _alone = alone();
    let site = SITES[1];
    let detour = [site.detour(DetourKind::Near, rx(d_target))];
    let (before, _) = of_pthread_create();
    let parked = Parked::at(site.at().checked_add(2).unwrap(), 1);
    std::thread::scope(|s| {
        let diverting = s.spawn(|| divert_all(&detour));
        parked_in(|| is_trap(site));
        let is_content = super::fork::forked(libc::fork, || {
            let is_open = of_pthread_create().0 == before;
            let is_started = [Starter::of_threads(), Starter::of_children()].map(|starter| {
                starter.start();
                let has_started = starter.has_started_in(STARTED);
                starter.end();
                has_started
            });
            let states = divert_all(&detour);
            undivert_all(&detour).unwrap();
            is_open && is_started == [true; 2] && states.is_ok() && of_pthread_create().0 == before
        });
        assert!(is_content);
        // The child has opened its own. The change goes on to close this one, in turns, unless all
        // this has taken longer than it has patience.
        parked_in(|| of_pthread_create().0 != before || diverting.is_finished());
        parked.go_on();
        assert!(diverting.join().unwrap().is_ok());
    });
    assert_eq!(of_pthread_create().0, before);
    undivert_all(&detour).unwrap();
}
