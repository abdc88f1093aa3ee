//! All interleavings of a change and the threads that come by, tried out.
//!
//! What is tried is the script that the live change carries out ([`ORDER`], [`Script`],
//! [`compose`]), step by step, over real instruction words, with real passes. Around it:
//!
//! - *A hart* may fetch, of each naturally aligned word, any value that it had since the last flush
//!   ended, each time anew; an instruction at 2 mod 4 takes its two words independently. That is
//!   more than any hart does.
//! - *A thread* calls a site, executes what it fetches, and may be interrupted between any two
//!   instructions by a signal whose handler returns at any later time. A trap sends it to the
//!   handler, which looks into the table at any later time.
//! - *The patcher* does its next step at any time. The wait proves threads outside one by one; a
//!   thread inside that is not in a handler may be carried instead; and it may give up at any
//!   time.
//!
//! What must hold: every call executes the original instructions in order (or, from where it was
//! carried, their copies), or none of them and goes to the detour; when the change has returned,
//! a call that begins afterwards does only what the change was for, and traps only if a trap is
//! what the site became. A breakpoint that the handler does not know must not be met.
//!
//! `starting` adds a thread that is being started, and the gate that keeps it away. `waiting` is the
//! change without traps.
//!
//! The mutations at the end leave out or exchange what the protocol needs; each must be found out.

mod starting;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;

use super::script::{self, Half, ORDER, Part, Pass, Phase, Script, Shape, Step, compose};
use super::{Detour, DetourKind};
use crate::addr::RxAddr;
use crate::insn::{self, C_EBREAK, C_J_0};
use crate::txn::WordPatch;

const BASE: u64 = 0x10_0000;
const TO: u64 = 0x10_4000;
const COPY: u64 = 0x20_0000;
/// Calls that each thread makes. One of each of two threads is enough for one to be under way when
/// the change begins and one to begin when it is over; two where that takes seconds.
const NR_CALLS: u8 = if cfg!(target_arch = "riscv64") { 1 } else { 2 };

/// A function of few instructions and its detour.
#[derive(Clone, Debug)]
struct Func {
    shape: Shape,
    /// All of its instructions: offset and halves.
    insns: Vec<(u64, Vec<u16>)>,
}

impl Func {
    /// Instructions of these lengths from `at` on; the detour covers those that its jump needs.
    fn new(at: u64, lens: &[u8], kind: DetourKind) -> Self {
        let mut insns = Vec::new();
        let mut off = 0;
        for (i, len) in lens.iter().enumerate() {
            // c.addi a0, i + 1 and addi a0, a0, i + 1
            let imm = i as u16 + 1;
            let halves = match len {
                2 => vec![0x0501 | imm << 2],
                _ => vec![0x0513, imm << 4 | 5],
            };
            insns.push((off, halves));
            off += u64::from(*len);
        }
        let jump_bytes = u64::from(script::jump_bytes(kind));
        let covered: Vec<_> = insns
            .iter()
            .take_while(|(off, _)| *off < jump_bytes)
            .collect();
        let covered_bytes: u64 = covered
            .iter()
            .map(|(_, halves)| 2 * halves.len() as u64)
            .sum();
        let moved = covered
            .iter()
            .map(|(off, _)| (*off as u8, RxAddr::new(COPY + off)));
        let detour = Detour {
            at: RxAddr::new(at),
            to: RxAddr::new(TO),
            kind,
            covered_bytes: covered_bytes as u8,
            moved: moved.collect(),
        };
        let code: Vec<u16> = insns
            .iter()
            .flat_map(|(_, halves)| halves.clone())
            .collect();
        let shape = Shape::new(&detour, &code).expect("in reach");
        Self { shape, insns }
    }

    fn at(&self) -> u64 {
        self.shape.detour.at.get()
    }

    fn len_bytes(&self) -> u64 {
        self.insns
            .iter()
            .map(|(_, halves)| 2 * halves.len() as u64)
            .sum()
    }
}

/// What the patcher does, one after the other.
#[derive(Clone, Debug)]
enum Act {
    Store(Vec<Half>),
    Flush,
    PassBy(Vec<Pass>),
    /// The table forgets the sites.
    Forget,
    /// The table knows them again.
    Learn,
}

/// The acts of one change.
fn acts_of(funcs: &[Func], from: Phase, to: Phase) -> Vec<Act> {
    let script = |f: &Func| Script::new(&f.shape, from, to);
    acts_of_scripts(&funcs.iter().map(script).collect::<Vec<_>>(), from, to)
}

fn acts_of_scripts(scripts: &[Script], from: Phase, to: Phase) -> Vec<Act> {
    let mut acts = Vec::new();
    if from == Phase::Bare {
        acts.push(Act::Learn);
    }
    for step in ORDER {
        match step {
            Step::Change(part) => {
                let halves = scripts.iter().flat_map(|s| s.part(part));
                let halves: Vec<Half> = halves.copied().collect();
                if !halves.is_empty() {
                    acts.extend([Act::Store(halves), Act::Flush]);
                }
            }
            Step::PassBy => {
                let passes = scripts.iter().filter_map(|s| s.pass.clone());
                let passes: Vec<Pass> = passes.collect();
                if !passes.is_empty() {
                    acts.push(Act::PassBy(passes));
                }
            }
        }
    }
    if to == Phase::Bare {
        acts.push(Act::Forget);
    }
    acts
}

/// A change of functions that lie next to each other.
#[derive(Clone, Debug)]
struct World {
    funcs: Vec<Func>,
    acts: Vec<Act>,
    from: Phase,
    /// Where calls go that begin after it.
    to: Phase,
    nr_threads: usize,
    nr_calls: u8,
    handler: Handler,
    closing: Closing,
    /// What is done when it is given up.
    back: Vec<Act>,
}

/// What closes the entries.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Closing {
    Trap,
    /// `c.j .`: see `waiting`.
    Wait,
}

/// What the handler does about a breakpoint that it has not found in the table.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Handler {
    LooksAgain,
    BelievesIt,
}

impl World {
    fn new(funcs: Vec<Func>, from: Phase, to: Phase) -> Self {
        let acts = acts_of(&funcs, from, to);
        Self {
            funcs,
            acts,
            from,
            to,
            nr_threads: 2,
            nr_calls: NR_CALLS,
            handler: Handler::LooksAgain,
            closing: Closing::Trap,
            back: Vec::new(),
        }
    }

    /// What the patcher does now, from its first act on.
    fn acts_now(&self, state: &State) -> &[Act] {
        match state.gave_up {
            true => &self.back,
            false => &self.acts,
        }
    }

    /// What calls find that begin when it is done; `None`: what was there, or a trap.
    fn becomes(&self, state: &State) -> Option<Phase> {
        match (state.gave_up, self.closing) {
            (false, _) => Some(self.to),
            (true, Closing::Wait) => Some(self.from),
            (true, Closing::Trap) => None,
        }
    }

    fn start(&self) -> State {
        let mut words: BTreeMap<u64, u32> = BTreeMap::new();
        let mut put = |at: u64, half: u16| {
            let shift = 8 * (at & 3) as u32;
            let word = words.entry(at & !3).or_insert(0x0001_0001);
            *word = *word & !(0xffff << shift) | u32::from(half) << shift;
        };
        for func in &self.funcs {
            for (off, halves) in &func.insns {
                for (i, half) in halves.iter().enumerate() {
                    put(func.at() + off + 2 * i as u64, *half);
                }
            }
            // What stands there in the phase from which the change begins.
            for half in initial(&func.shape, self.from) {
                put(half.at.get(), half.new);
            }
        }
        State {
            words: words
                .into_iter()
                .map(|(at, word)| (at, vec![word]))
                .collect(),
            act: 0,
            proved: BTreeSet::new(),
            knows: self.from != Phase::Bare,
            gave_up: false,
            threads: vec![Thread::idle(self.nr_calls); self.nr_threads],
        }
    }

    fn is_done(&self, state: &State) -> bool {
        state.act == self.acts_now(state).len()
    }

    /// The function and offset of a pc.
    fn func_at(&self, pc: u64) -> Option<&Func> {
        self.funcs
            .iter()
            .find(|f| (f.at()..f.at() + f.len_bytes()).contains(&pc))
    }
}

/// The halves that a phase differs in from bare text.
fn initial(shape: &Shape, phase: Phase) -> Vec<Half> {
    let script = Script::new(shape, Phase::Bare, phase);
    let parts = [Part::Close, Part::Tail, Part::Head];
    parts
        .iter()
        .flat_map(|p| script.part(*p))
        .copied()
        .collect()
}

#[derive(Clone, Eq, PartialEq, Hash, Debug)]
struct State {
    /// By address, all values since the last flush; the last one is in memory.
    words: BTreeMap<u64, Vec<u32>>,
    act: usize,
    /// In a wait: threads that have been seen outside.
    proved: BTreeSet<usize>,
    /// Whether the table has the sites.
    knows: bool,
    gave_up: bool,
    threads: Vec<Thread>,
}

impl State {
    fn memory(&self, at: u64) -> u32 {
        let values = self.words.get(&at);
        values.and_then(|v| v.last()).copied().unwrap_or(0)
    }

    fn memory_half(&self, at: u64) -> u16 {
        (self.memory(at & !3) >> (8 * (at & 2))) as u16
    }

    /// All instructions that a hart may fetch at `pc`.
    fn fetches(&self, pc: u64) -> BTreeSet<Vec<u16>> {
        let none = Vec::new();
        let values = |at: u64| self.words.get(&at).unwrap_or(&none);
        let mut found = BTreeSet::new();
        for word in values(pc & !3) {
            let first = (word >> (8 * (pc & 2))) as u16;
            match (insn::len_bytes(first), pc & 2) {
                (Some(2), _) => {
                    found.insert(vec![first]);
                }
                (_, 0) => {
                    found.insert(vec![first, (word >> 16) as u16]);
                }
                _ => {
                    let next = values((pc & !3) + 4);
                    found.extend(next.iter().map(|next| vec![first, *next as u16]));
                }
            }
        }
        found
    }
}

#[derive(Clone, Eq, PartialEq, Hash, Debug)]
struct Thread {
    calls_left: u8,
    in_handler: bool,
    place: Place,
    /// Began after the change had returned.
    is_late: bool,
}

#[derive(Clone, Eq, PartialEq, Hash, Debug)]
enum Place {
    Idle,
    /// In a function, `nr_done` instructions executed; `has_auipc` of a far jump, too.
    At {
        pc: u64,
        nr_done: usize,
        has_auipc: bool,
    },
    /// A trap was executed at `pc`, its handler has not looked yet.
    Trapped {
        pc: u64,
        has_auipc: bool,
    },
    /// The handler has not found it in the table, and has not looked at the text yet.
    Missed {
        pc: u64,
        has_auipc: bool,
    },
}

impl Thread {
    fn idle(calls_left: u8) -> Self {
        Self {
            calls_left,
            in_handler: false,
            place: Place::Idle,
            is_late: false,
        }
    }

    fn pc(&self) -> Option<u64> {
        match self.place {
            Place::Idle => None,
            Place::At { pc, .. } | Place::Trapped { pc, .. } | Place::Missed { pc, .. } => Some(pc),
        }
    }

    fn with(&self, place: Place) -> Self {
        Self {
            place,
            ..self.clone()
        }
    }

    /// The call is over.
    fn ended(&self) -> Self {
        Self::idle(self.calls_left)
    }
}

type Found = Result<Vec<State>, String>;

/// Goes wherever `next` leads from `start`; how many states there are.
fn reach<S: Clone + Eq + Hash>(
    start: S,
    next: impl Fn(&S) -> Result<Vec<S>, String>,
) -> Result<usize, String> {
    let mut seen = HashSet::from([start.clone()]);
    let mut todo = vec![start];
    while let Some(state) = todo.pop() {
        for next in next(&state)? {
            if seen.insert(next.clone()) {
                todo.push(next);
            }
        }
    }
    Ok(seen.len())
}

impl World {
    /// Tries all interleavings; how many states there are.
    fn explore(&self) -> Result<usize, String> {
        reach(self.start(), |state| self.next(state))
    }

    fn next(&self, state: &State) -> Found {
        let is_closed = |f: &Func| state.memory_half(f.at()) == C_J_0;
        if self.is_done(state) && self.funcs.iter().any(is_closed) {
            return Err("an entry stays closed".into());
        }
        let mut all = self.patch(state);
        for i in 0..state.threads.len() {
            for thread in self.step(state, &state.threads[i])? {
                let mut next = state.clone();
                next.threads[i] = thread;
                all.push(next);
            }
        }
        Ok(all)
    }

    /// The patcher's next step.
    fn patch(&self, state: &State) -> Vec<State> {
        if self.is_done(state) {
            return Vec::new();
        }
        let mut next = state.clone();
        match &self.acts_now(state)[state.act] {
            Act::Store(halves) => {
                let load = |at: RxAddr| state.memory(at.get());
                let patches = compose(halves, load).expect("the text is what it was");
                for WordPatch { at, new, .. } in patches {
                    next.words.entry(at.get()).or_default().push(new);
                }
            }
            Act::Flush => {
                for values in next.words.values_mut() {
                    values.drain(..values.len() - 1);
                }
            }
            Act::Forget => next.knows = false,
            Act::Learn => next.knows = true,
            Act::PassBy(passes) => return self.pass_by(state, passes),
        }
        next.act += 1;
        vec![next]
    }

    fn pass_by(&self, state: &State, passes: &[Pass]) -> Vec<State> {
        let mut all = Vec::new();
        for (i, thread) in state.threads.iter().enumerate() {
            let inside = |pc: u64| passes.iter().find(|p| p.range.contains(RxAddr::new(pc)));
            let mut next = state.clone();
            match thread.pc().and_then(|pc| Some((pc, inside(pc)?))) {
                None => {
                    next.proved.insert(i);
                }
                Some(_) if thread.in_handler => continue,
                Some((pc, pass)) => {
                    let Some((_, to)) = pass.carry.iter().find(|(from, _)| *from == pc) else {
                        continue;
                    };
                    next.threads[i] = self.carried(thread, *to);
                    next.proved.insert(i);
                }
            }
            if next.proved.len() == state.threads.len() {
                next.proved.clear();
                next.act += 1;
            }
            all.push(next);
        }
        // A site that is waited for in vain stays a trap, if that is what it is then.
        let mut gave_up = state.clone();
        gave_up.gave_up = true;
        gave_up.act = 0;
        all.push(gave_up);
        all
    }

    /// A thread that goes on elsewhere: in the copy, or at the detour.
    fn carried(&self, thread: &Thread, to: u64) -> Thread {
        let Place::At {
            nr_done, has_auipc, ..
        } = thread.place
        else {
            return thread.clone();
        };
        thread.with(Place::At {
            pc: to,
            nr_done,
            has_auipc,
        })
    }

    /// What a thread may do next.
    fn step(&self, state: &State, thread: &Thread) -> Result<Vec<Thread>, String> {
        if thread.in_handler {
            return Ok(vec![Thread {
                in_handler: false,
                ..thread.clone()
            }]);
        }
        match thread.place {
            Place::Idle if thread.calls_left == 0 => Ok(Vec::new()),
            Place::Idle => Ok(self.calls(state, thread)),
            Place::At { .. } => {
                let mut all = self.execute(state, thread)?;
                all.extend(self.leave(state, thread));
                all.push(Thread {
                    in_handler: true,
                    ..thread.clone()
                });
                Ok(all)
            }
            Place::Trapped { pc, has_auipc } => Ok(self.trap(state, thread, pc, has_auipc)),
            Place::Missed { pc, has_auipc } => self.missed(state, thread, pc, has_auipc),
        }
    }

    /// A question, or the timer, finds the thread at a closed entry.
    fn leave(&self, state: &State, thread: &Thread) -> Option<Thread> {
        let pc = thread.pc().filter(|_| state.knows)?;
        let is_entry = self.funcs.iter().any(|f| f.at() == pc);
        let is_closed = is_entry && state.memory_half(pc) == C_J_0;
        is_closed.then(|| self.carried(thread, TO))
    }

    fn calls(&self, state: &State, thread: &Thread) -> Vec<Thread> {
        let call = |func: &Func| Thread {
            calls_left: thread.calls_left - 1,
            in_handler: false,
            place: Place::At {
                pc: func.at(),
                nr_done: 0,
                has_auipc: false,
            },
            is_late: self.is_done(state),
        };
        self.funcs.iter().map(call).collect()
    }

    /// The handler of SIGTRAP looks into the table.
    fn trap(&self, state: &State, thread: &Thread, pc: u64, has_auipc: bool) -> Vec<Thread> {
        let place = match state.knows {
            true => Place::At {
                pc: TO,
                nr_done: 0,
                has_auipc,
            },
            false => Place::Missed { pc, has_auipc },
        };
        vec![thread.with(place)]
    }

    /// It looks at the text, and whether the table has changed meanwhile.
    fn missed(
        &self,
        state: &State,
        thread: &Thread,
        pc: u64,
        has_auipc: bool,
    ) -> Result<Vec<Thread>, String> {
        if state.memory_half(pc) != C_EBREAK {
            return Ok(vec![thread.with(Place::At {
                pc,
                nr_done: 0,
                has_auipc,
            })]);
        }
        match state.knows && self.handler == Handler::LooksAgain {
            true => Ok(vec![thread.with(Place::Trapped { pc, has_auipc })]),
            false => Err(format!("a breakpoint at {pc:#x} that nobody knows")),
        }
    }

    fn execute(&self, state: &State, thread: &Thread) -> Result<Vec<Thread>, String> {
        let Place::At {
            pc,
            nr_done,
            has_auipc,
        } = thread.place
        else {
            return Ok(Vec::new());
        };
        if pc == TO {
            return self.at_detour(state, thread, nr_done);
        }
        if (COPY..COPY + 0x100).contains(&pc) {
            return Ok(vec![self.in_copy(thread, pc, nr_done)?]);
        }
        let Some(func) = self.func_at(pc) else {
            return Err(format!("a thread went astray to {pc:#x}"));
        };
        let fetched = state.fetches(pc);
        let run =
            |halves: &Vec<u16>| self.run(state, thread, func, halves, (pc, nr_done, has_auipc));
        fetched.iter().map(run).collect()
    }

    /// Executes one instruction of a function.
    fn run(
        &self,
        state: &State,
        thread: &Thread,
        func: &Func,
        halves: &[u16],
        (pc, nr_done, has_auipc): (u64, usize, bool),
    ) -> Result<Thread, String> {
        let off = pc - func.at();
        let wrong = |what: &str| Err(format!("{what} at +{off}, {halves:x?}: {thread:?}"));
        if halves == [C_EBREAK] {
            if off != 0 || nr_done != 0 {
                return wrong("a trap in the middle");
            }
            // A thread that begins to block SIGTRAP now must not die of it.
            let is_trap = |phase| matches!(phase, Phase::Trap | Phase::Closed);
            if thread.is_late && !self.becomes(state).is_none_or(is_trap) {
                return wrong("a trap after the change");
            }
            if self.closing == Closing::Wait && !is_trap(self.from) {
                return wrong("a trap where SIGTRAP is blocked");
            }
            return Ok(thread.with(Place::Trapped { pc, has_auipc }));
        }
        if halves == [C_J_0] {
            if off != 0 || nr_done != 0 || self.closing == Closing::Trap {
                return wrong("a closed entry in the middle");
            }
            if thread.is_late {
                return wrong("a closed entry after the change");
            }
            return Ok(thread.clone());
        }
        let jump = &func.shape.jump;
        let is_jump = |i: usize| jump.get(i..i + 2) == Some(halves) && off == 2 * i as u64;
        let go = |pc, nr_done, has_auipc| {
            Ok(thread.with(Place::At {
                pc,
                nr_done,
                has_auipc,
            }))
        };
        match func.shape.detour.kind {
            DetourKind::Near if is_jump(0) => return go(TO, nr_done, false),
            DetourKind::Far { .. } if is_jump(0) => return go(pc + 4, nr_done, true),
            DetourKind::Far { .. } if is_jump(2) && has_auipc => return go(TO, nr_done, true),
            _ => {}
        }
        let index = func.insns.iter().position(|(o, _)| *o == off);
        let Some(index) = index.filter(|i| func.insns[*i].1 == halves) else {
            return wrong("a mixture");
        };
        if index != nr_done {
            return wrong("out of order");
        }
        let wants_old = self.becomes(state).is_none_or(|phase| phase == Phase::Bare);
        if thread.is_late && !wants_old {
            return wrong("old text after the change");
        }
        let next = nr_done + 1;
        match func.insns.get(next) {
            Some((off, _)) => go(func.at() + off, next, has_auipc),
            None => Ok(thread.ended()),
        }
    }

    fn in_copy(&self, thread: &Thread, pc: u64, nr_done: usize) -> Result<Thread, String> {
        // The copies of all functions have the same offsets here: one function at a time.
        let func = &self.funcs[0];
        let off = pc - COPY;
        match func.insns.get(nr_done) {
            Some((o, _)) if *o == off => Ok(thread.ended()),
            _ => Err(format!("carried astray to +{off} after {nr_done}")),
        }
    }

    fn at_detour(
        &self,
        state: &State,
        thread: &Thread,
        nr_done: usize,
    ) -> Result<Vec<Thread>, String> {
        if nr_done != 0 {
            return Err(format!(
                "to the detour after {nr_done} instructions: {thread:?}"
            ));
        }
        if thread.is_late && self.becomes(state) == Some(Phase::Bare) {
            return Err(format!("to a detour that was taken away: {thread:?}"));
        }
        Ok(vec![thread.ended()])
    }
}

const NEAR: DetourKind = DetourKind::Near;
const FAR: DetourKind = DetourKind::Far { scratch: 28 };

/// Lengths of instructions, the address mod 4, the kind.
const LAYOUTS: [(&[u8], u64, DetourKind); 13] = [
    (&[2, 2, 2], 0, NEAR),
    (&[2, 2, 2], 2, NEAR),
    (&[4, 2], 0, NEAR),
    (&[4, 2], 2, NEAR),
    (&[2, 4, 2], 0, NEAR),
    (&[2, 4, 2], 2, NEAR),
    (&[2, 4, 2], 0, FAR),
    (&[2, 4, 2], 2, FAR),
    (&[4, 4, 2], 0, FAR),
    (&[4, 4, 2], 2, FAR),
    (&[2, 2, 2, 2, 2], 0, FAR),
    (&[2, 2, 2, 2, 2], 2, FAR),
    (&[2, 2], 2, DetourKind::Trap),
];

/// Each layout with the two ways that a change can go.
fn worlds() -> Vec<(String, World)> {
    let mut all = Vec::new();
    for (lens, at, kind) in LAYOUTS {
        let func = Func::new(BASE + at, lens, kind);
        let goal = func.shape.goal();
        let ways = [
            (Phase::Bare, goal),
            (goal, Phase::Bare),
            (Phase::Trap, goal),
            (Phase::Trap, Phase::Bare),
            (Phase::Closed, goal),
            (Phase::Closed, Phase::Bare),
            (Phase::Closed, Phase::Trap),
        ];
        for (from, to) in ways {
            let is_trap = kind == DetourKind::Trap;
            if from == to || (is_trap && from == Phase::Closed) {
                continue;
            }
            let name = format!("{lens:?} at {at} mod 4, {kind:?}, {from:?} to {to:?}");
            all.push((name, World::new(vec![func.clone()], from, to)));
        }
    }
    all
}

#[test]
fn every_interleaving_runs_old_or_new() {
    let mut nr_states = 0;
    for (name, world) in worlds() {
        match world.explore() {
            Ok(nr) => nr_states += nr,
            Err(e) => panic!("{name}: {e}"),
        }
    }
    println!("{nr_states} states");
    assert!(nr_states > 10_000, "{nr_states}");
}

/// One change after the other, with threads that are still inside from the ones before.
#[test]
fn slow_changes_in_a_row_run_old_or_new() {
    use Phase::{Bare, Closed, Jump, Trap};
    let rows: [&[Phase]; 6] = [
        // A site in which somebody stayed, brought to its kind later.
        &[Bare, Trap, Jump],
        &[Bare, Jump, Bare],
        &[Jump, Bare, Jump],
        &[Bare, Trap, Bare],
        // The head was refused.
        &[Bare, Closed, Bare],
        // Taken away and laid again before a handler has looked.
        AWAY_AND_BACK,
    ];
    for (lens, at, kind) in LAYOUTS
        .into_iter()
        .filter(|(_, _, k)| *k != DetourKind::Trap)
    {
        let func = Func::new(BASE + at, lens, kind);
        for row in rows {
            if let Err(e) = in_a_row(&func, row).explore() {
                panic!("{lens:?} at {at} mod 4, {kind:?}, {row:?}: {e}");
            }
        }
    }
}

const AWAY_AND_BACK: &[Phase] = &[Phase::Trap, Phase::Bare, Phase::Trap];

fn in_a_row(func: &Func, row: &[Phase]) -> World {
    let (first, last) = (row[0], row[row.len() - 1]);
    let mut world = World::new(vec![func.clone()], first, last);
    world.nr_calls = 1;
    let pairs = row.windows(2);
    world.acts = pairs
        .flat_map(|w| acts_of(&world.funcs, w[0], w[1]))
        .collect();
    world
}

#[test]
fn a_handler_that_does_not_look_again_goes_wrong() {
    let func = Func::new(BASE, &[2, 2], DetourKind::Trap);
    let mut world = in_a_row(&func, AWAY_AND_BACK);
    world.explore().expect("it looks again");
    world.handler = Handler::BelievesIt;
    let wrong = world.explore().expect_err("nobody noticed");
    assert!(wrong.contains("nobody knows"), "{wrong}");
}

/// Flushes of a change are refused: what was stored is taken back, then there is one flush, then
/// the way back.
#[test]
fn slow_a_refused_flush_is_taken_back_soundly() {
    let mut nr_worlds = 0;
    for (name, world) in refused() {
        nr_worlds += 1;
        if let Err(e) = world.explore() {
            panic!("{name}: {e}");
        }
    }
    assert!(nr_worlds > 60, "{nr_worlds}");
}

#[test]
fn taking_back_without_a_flush_goes_wrong() {
    let mut nr_wrong = 0;
    for (_, mut world) in refused() {
        let is_marked = |i: &usize| {
            let near = world.acts.get(*i..i + 3);
            matches!(near, Some([Act::Store(_), Act::Store(_), Act::Flush]))
        };
        if let Some(i) = (0..world.acts.len()).find(is_marked) {
            world.acts.remove(i + 2);
            nr_wrong += usize::from(world.explore().is_err());
        }
    }
    println!("{nr_wrong} go wrong");
    assert!(nr_wrong > 0, "nobody noticed");
}

/// Each full change with each of its flushes refused.
fn refused() -> Vec<(String, World)> {
    let mut all = Vec::new();
    for (name, world) in worlds() {
        if !is_full(&world) {
            continue;
        }
        let shape = world.funcs[0].shape.clone();
        let script = Script::new(&shape, world.from, world.to);
        let mut reached = world.from;
        for part in [Part::Close, Part::Tail, Part::Head] {
            let halves = script.part(part);
            let stores = |act: &Act| matches!(act, Act::Store(h) if h == halves);
            let Some(i) = world.acts.iter().position(stores) else {
                continue;
            };
            let mut back = halves.to_vec();
            for half in &mut back {
                (half.old, half.new) = (half.new, half.old);
            }
            let mut refused = world.clone();
            refused.acts.truncate(i + 1);
            refused.acts.extend([Act::Store(back), Act::Flush]);
            refused
                .acts
                .extend(acts_of(&world.funcs, reached, world.from));
            refused.to = world.from;
            refused.nr_calls = 1;
            all.push((format!("{name}, {part:?} refused"), refused));
            reached = script.after(part);
        }
    }
    all
}

/// Two detours that share a word, changed together.
#[test]
fn neighbours_share_a_word() {
    for (first, second, kinds) in [
        (&[2, 2][..], &[2, 2, 2][..], (NEAR, NEAR)),
        (&[4][..], &[4][..], (NEAR, NEAR)),
        (&[2, 2, 4][..], &[2, 4][..], (FAR, NEAR)),
    ] {
        let a = Func::new(BASE + 2, first, kinds.0);
        let b = Func::new(a.at() + a.len_bytes(), second, kinds.1);
        assert_eq!(b.at() & 2, 2, "they share a word");
        for (from, to) in [(Phase::Bare, Phase::Jump), (Phase::Jump, Phase::Bare)] {
            let mut world = World::new(vec![a.clone(), b.clone()], from, to);
            // Copies are one function's.
            for act in &mut world.acts {
                if let (Act::PassBy(passes), Phase::Bare) = (act, from) {
                    passes.iter_mut().for_each(|p| p.carry.clear());
                }
            }
            if let Err(e) = world.explore() {
                panic!("{first:?} {second:?}, {from:?} to {to:?}: {e}");
            }
        }
    }
}

/// Of all worlds, those in which `mutate` changes something; at least one of them must go wrong.
fn must_fail(what: &str, mutate: impl Fn(&mut World) -> bool) {
    let mut nr_mutated = 0;
    let mut failed = Vec::new();
    for (name, mut world) in worlds() {
        if !mutate(&mut world) {
            continue;
        }
        nr_mutated += 1;
        if let Err(e) = world.explore() {
            failed.push(format!("{name}: {e}"));
        }
    }
    println!("{what}: {} of {nr_mutated} go wrong", failed.len());
    assert!(
        !failed.is_empty(),
        "{what}: nobody noticed, of {nr_mutated}"
    );
}

fn remove_nth(world: &mut World, n: usize, is_it: impl Fn(&Act) -> bool) -> bool {
    let found: Vec<usize> = (0..world.acts.len())
        .filter(|i| is_it(&world.acts[*i]))
        .collect();
    let act = found.get(n);
    if let Some(i) = act {
        world.acts.remove(*i);
    }
    act.is_some()
}

fn is_full(world: &World) -> bool {
    world
        .acts
        .iter()
        .filter(|a| matches!(a, Act::Flush))
        .count()
        == 3
}

#[test]
fn without_a_flush_it_goes_wrong() {
    for (n, what) in ["closing", "the tail", "the head"].iter().enumerate() {
        for to in [Phase::Jump, Phase::Bare] {
            must_fail(&format!("no flush after {what}, to {to:?}"), |world| {
                let is_it = is_full(world) && world.to == to;
                is_it && remove_nth(world, n, |act| matches!(act, Act::Flush))
            });
        }
    }
}

#[test]
fn without_the_wait_it_goes_wrong() {
    for to in [Phase::Jump, Phase::Bare] {
        must_fail(&format!("no wait, to {to:?}"), |world| {
            world.to == to && remove_nth(world, 0, |act| matches!(act, Act::PassBy(_)))
        });
    }
}

#[test]
fn with_the_head_before_the_tail_it_goes_wrong() {
    must_fail("head first", |world| {
        let n = world.acts.len();
        let stores: Vec<usize> = (0..n)
            .filter(|i| matches!(world.acts[*i], Act::Store(_)))
            .collect();
        if stores.len() != 3 {
            return false;
        }
        world.acts.swap(stores[1], stores[2]);
        true
    });
}

#[test]
fn with_everything_stored_at_once_it_goes_wrong() {
    for keep_wait in [true, false] {
        must_fail("one transaction for all", |world| {
            if !is_full(world) {
                return false;
            }
            let last = world.acts.len();
            let pass = world
                .acts
                .iter()
                .find(|a| matches!(a, Act::PassBy(_)))
                .cloned();
            let shape = &world.funcs[0].shape;
            let phase = |to| initial(shape, to);
            let (old, new) = (phase(world.from), phase(world.to));
            let halves = shape.original.iter().enumerate().map(|(i, half)| {
                let at = RxAddr::new(shape.detour.at.get() + 2 * i as u64);
                let of = |halves: &[Half]| {
                    let mut here = halves.iter().rev().filter(|h| h.at == at);
                    here.next().map_or(*half, |h| h.new)
                };
                Half {
                    at,
                    old: of(&old),
                    new: of(&new),
                }
            });
            let mut acts = vec![Act::Store(halves.collect()), Act::Flush];
            if let Some(pass) = pass.filter(|_| keep_wait) {
                acts.insert(0, pass);
            }
            assert!(acts.len() < last);
            world.acts = acts;
            true
        });
    }
}

#[test]
fn a_thread_that_is_carried_to_a_wrong_place_goes_wrong() {
    must_fail("carried two bytes too far", |world| {
        let mut changed = false;
        for act in &mut world.acts {
            if let Act::PassBy(passes) = act {
                for (_, to) in passes.iter_mut().flat_map(|p| &mut p.carry) {
                    *to += 2;
                    changed = true;
                }
            }
        }
        changed
    });
}

#[test]
fn a_wait_that_looks_at_too_little_goes_wrong() {
    must_fail("the last half-word is not looked at", |world| {
        let mut changed = false;
        for act in &mut world.acts {
            if let Act::PassBy(passes) = act {
                for pass in passes {
                    let covered = pass.range.len_bytes;
                    pass.range.len_bytes = covered.saturating_sub(4);
                    changed |= covered > 4;
                }
            }
        }
        changed
    });
}

#[test]
fn a_table_that_forgets_too_early_goes_wrong() {
    must_fail("forgotten before the head is back", |world| {
        let n = world.acts.len();
        let is_last = n > 2 && matches!(world.acts[n - 1], Act::Forget);
        if is_last {
            world.acts.swap(n - 1, n - 3);
        }
        is_last
    });
}
