//! The same change while a thread, or a child in this memory, is being started.
//!
//! A parent comes by the gate, blocks its signals, makes the thread, and opens them again; the
//! thread, one of those that call the site, does so at any time after it was born. A child of
//! `posix_spawn` never does: its parent opens its own when the child has become another program,
//! at any time after it was born. Around the steps of the change the patcher takes those of
//! [`super::super::gate`]. A trap while SIGTRAP is blocked ends the process.

use super::*;

/// What the patcher does around a change.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
enum Move {
    Close,
    Flush,
    /// Until the parent is not in the system call at the gate.
    PassBy,
    /// Which threads there are.
    List,
    /// Back to the first list if the parent blocks SIGTRAP.
    SeeParent,
    /// The same of the thread that is born, if it was listed; no child of a spawn is.
    SeeChild,
    /// All of the change.
    Change,
    Open,
}

const MOVES: [Move; 12] = [
    Move::Close,
    Move::Flush,
    Move::PassBy,
    Move::List,
    Move::SeeParent,
    Move::SeeChild,
    Move::List,
    Move::SeeParent,
    Move::SeeChild,
    Move::Change,
    Move::Open,
    Move::Flush,
];

#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
enum Parent {
    AtGate,
    /// Behind the gate, signals not blocked yet.
    Entering,
    Blocks,
    Done,
}

#[derive(Clone, Eq, PartialEq, Hash, Debug)]
struct Both {
    change: State,
    next: usize,
    /// Whether the gate is open: all values since the last flush.
    gate: Vec<bool>,
    parent: Parent,
    is_born: bool,
    child_blocks: bool,
    is_listed: bool,
}

/// What is started.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum What {
    Thread,
    Spawned,
}

struct Starting {
    world: World,
    what: What,
    moves: Vec<Move>,
}

/// The thread, or the child, that is born.
const CHILD: usize = 0;

impl Starting {
    fn new(world: World, what: What) -> Self {
        let world = World {
            nr_calls: 1,
            ..world
        };
        Self {
            world,
            what,
            moves: MOVES.to_vec(),
        }
    }

    fn explore(&self) -> Result<usize, String> {
        let start = Both {
            change: self.world.start(),
            next: 0,
            gate: vec![true],
            parent: Parent::AtGate,
            is_born: false,
            child_blocks: false,
            is_listed: false,
        };
        reach(start, |both| self.next(both))
    }

    fn next(&self, both: &Both) -> Result<Vec<Both>, String> {
        let mut all = self.patch(both);
        all.extend(self.start_thread(both));
        for (i, thread) in both.change.threads.iter().enumerate() {
            if i == CHILD && !(both.is_born && self.is_here(both)) {
                continue;
            }
            for thread in self.world.step(&both.change, thread)? {
                let is_trapped = matches!(thread.place, Place::Trapped { .. });
                if i == CHILD && both.child_blocks && is_trapped {
                    return Err("a trap while SIGTRAP is blocked".into());
                }
                let mut next = both.clone();
                next.change.threads[i] = thread;
                all.push(next);
            }
        }
        Ok(all)
    }

    /// Whether what was born is still in this memory.
    fn is_here(&self, both: &Both) -> bool {
        self.what == What::Thread || both.parent != Parent::Done
    }

    fn patch(&self, both: &Both) -> Vec<Both> {
        let Some(step) = self.moves.get(both.next) else {
            return Vec::new();
        };
        let mut next = both.clone();
        next.next += 1;
        match step {
            Move::Close => next.gate.push(false),
            Move::Open => next.gate.push(true),
            Move::Flush => {
                next.gate.drain(..next.gate.len() - 1);
            }
            Move::PassBy if both.parent == Parent::Entering => return Vec::new(),
            Move::PassBy => {}
            Move::List => next.is_listed = both.is_born && self.what == What::Thread,
            Move::SeeParent if both.parent == Parent::Blocks => next.next = self.first_look(),
            Move::SeeChild if both.is_listed && both.child_blocks => next.next = self.first_look(),
            Move::SeeParent | Move::SeeChild => {}
            // A site that stays a trap is one for those who start later, too: not covered.
            Move::Change if both.change.gave_up => return Vec::new(),
            Move::Change if self.world.is_done(&both.change) => {}
            Move::Change => {
                let step = |change| Both {
                    change,
                    ..both.clone()
                };
                return self
                    .world
                    .patch(&both.change)
                    .into_iter()
                    .map(step)
                    .collect();
            }
        }
        vec![next]
    }

    fn first_look(&self) -> usize {
        let is_look = |step: &Move| *step == Move::List;
        self.moves.iter().position(is_look).unwrap_or(0)
    }

    fn start_thread(&self, both: &Both) -> Vec<Both> {
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut Both)| {
            let mut next = both.clone();
            change(&mut next);
            all.push(next);
        };
        match both.parent {
            Parent::AtGate if both.gate.contains(&true) => {
                with(&|b| b.parent = Parent::Entering);
            }
            Parent::Entering => with(&|b| b.parent = Parent::Blocks),
            Parent::Blocks if !both.is_born => {
                with(&|b| (b.is_born, b.child_blocks) = (true, true));
            }
            Parent::Blocks => with(&|b| b.parent = Parent::Done),
            Parent::AtGate | Parent::Done => {}
        }
        if both.child_blocks && self.what == What::Thread {
            with(&|b| b.child_blocks = false);
        }
        all
    }
}

fn starting(what: What) -> Vec<Starting> {
    let lays_trap = |(_, world): &(String, World)| {
        let script = Script::new(&world.funcs[0].shape, world.from, world.to);
        script.lays_trap() && world.to != Phase::Trap
    };
    let worlds = worlds().into_iter().filter(lays_trap);
    worlds
        .map(|(_, world)| Starting::new(world, what))
        .collect()
}

fn nobody_meets_a_trap(what: What) {
    let (mut nr_worlds, mut nr_states) = (0, 0);
    for world in starting(what) {
        let explored = world.explore();
        nr_states += explored.unwrap_or_else(|e| panic!("{e}: {:?}", world.world));
        nr_worlds += 1;
    }
    println!("{what:?}: {nr_states} states");
    assert!(
        nr_worlds > 20 && nr_states > 50_000,
        "{nr_worlds} {nr_states}"
    );
}

#[test]
fn slow_a_thread_that_starts_meets_no_trap() {
    nobody_meets_a_trap(What::Thread);
}

#[test]
fn slow_a_spawned_child_meets_no_trap() {
    nobody_meets_a_trap(What::Spawned);
}

/// Leaves out the moves of the gate one by one, and opens it too early.
fn dies_with_less_of_a_gate(what: What) {
    let at = |step: Move| MOVES.iter().position(|m| *m == step).expect("it is there");
    let without = |range: std::ops::Range<usize>| {
        let mut moves = MOVES.to_vec();
        moves.drain(range);
        moves
    };
    let one = |i: usize| without(i..i + 1);
    let look = at(Move::List);
    let mut opened = MOVES.to_vec();
    opened.swap(at(Move::Change), at(Move::Open));
    // A thread may be born, and its parent done, between a list and the look at the parent.
    let one_look = (what == What::Thread).then(|| ("one look", without(look..look + 3)));
    let others = [
        ("no gate", one(at(Move::Close))),
        ("no flush of the gate", one(at(Move::Flush))),
        ("no pass by the gate", one(at(Move::PassBy))),
        ("no look", without(look..look + 6)),
        ("opened before the change", opened),
    ];
    for (missing, moves) in others.into_iter().chain(one_look) {
        let mut nr_wrong = 0;
        for mut world in starting(what) {
            world.moves.clone_from(&moves);
            let explored = world.explore();
            nr_wrong += usize::from(explored.is_err_and(|e| e.contains("is blocked")));
        }
        println!("{what:?}, {missing}: {nr_wrong} go wrong");
        assert!(nr_wrong > 0, "{what:?}, {missing}: nobody noticed");
    }
}

#[test]
fn slow_with_less_of_a_gate_a_thread_dies() {
    dies_with_less_of_a_gate(What::Thread);
}

#[test]
fn slow_with_less_of_a_gate_a_spawned_child_dies() {
    dies_with_less_of_a_gate(What::Spawned);
}
