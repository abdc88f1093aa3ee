//! Whether a program is fit to be compiled: its structure, not its values.
//!
//! | step | finds |
//! | --- | --- |
//! | decode | unknown codes, reserved fields, missing halves, writes of `r10` |
//! | functions | calls to nowhere, jumps out of a function or into a constant, ends without exit |
//! | tables | jump tables that lead to nowhere, jumps without one |
//! | calls | recursion, functions that nothing calls |
//! | paths | unreachable instructions, registers that nobody has set, stack beyond its bounds |
//! | depth | too many frames, too much stack together |
//!
//! Functions are walked callers first. A function's argument registers are set at its entry if they
//! are at every call of it: in the program, and by helpers that call back, which pass what the
//! kernel's do. A function whose address goes elsewhere may be called by host functions, with
//! whatever they pass.
//!
//! Everything is linear in the length of the program but for the paths, which are walked again
//! where they meet with less known than before: a few times at most.
//!
//! Key function: [`verify`]. Neighbours: `op` decodes, `program` keeps the result. Source: kernel
//! `kernel/bpf/verifier.c` (`check_subprogs`, `check_cfg`, `check_max_stack_depth`).

use std::collections::BTreeMap;

use super::error::{Reason, Refusal};
use super::insn::{BpfInsn, BpfReg};
use super::op::{AluOp, Callee, Imm64, Op, Operand, Size, Width};
use super::program::{Extra, Func, MAX_CALL_FRAMES, MAX_INSNS, MAX_STACK_BYTES, target};
use super::regs::{ARGS, RegSet, bit, first_args};
use super::tables;

type Ops = Vec<Option<Op>>;

/// A program that has been checked.
#[derive(Debug)]
pub(crate) struct Verified {
    /// The meaning of every instruction.
    pub(crate) ops: Ops,
    pub(crate) funcs: Vec<Func>,
    /// Calls that leave the program before which not all argument registers are set, in order, and
    /// which are not.
    pub(crate) unset_args: Vec<(usize, RegSet)>,
}

/// Checks a program.
pub(crate) fn verify(insns: &[BpfInsn], extra: &Extra) -> Result<Verified, Refusal> {
    let ops = decode(insns)?;
    let mut funcs = functions(&ops, extra)?;
    tables::lead(&ops, &mut funcs, &extra.jump_tables)?;
    for func in &funcs {
        check_jumps(&ops, func)?;
    }
    let order = call_order(&funcs)?;
    let mut kinds = vec![Kind::Sub; ops.len()];
    let passed: Vec<usize> = pointed_to(&ops).map(|(_, to)| to as usize).collect();
    let calls_back = match passed.is_empty() {
        true => CallsBack::No,
        false => CallsBack::Yes,
    };
    passed.iter().for_each(|at| kinds[*at] = Kind::Main);
    let mut calls = Calls::new(&ops, &funcs, extra, passed);
    calls.enter(0, Entry::ANY);
    kinds[0] = Kind::Main;
    if let Some(at) = extra.exception_callback {
        kinds[at] = Kind::Main;
        calls.enter(at, Entry::of(bit(BpfReg::R1)));
    }
    let mut stacks = vec![Stack::default(); funcs.len()];
    // Once, unless a function is found to be called with less after it has been walked.
    while calls.changed.contains(&true) {
        for &index in order.iter().rev() {
            let Some(entry) = calls.entries[index].filter(|_| calls.changed[index]) else {
                calls.changed[index] = false;
                continue;
            };
            calls.changed[index] = false;
            let func = &funcs[index];
            let kind = kinds[func.start];
            let walked = Paths::new(&ops, index, func, kind, calls_back, entry, &mut calls);
            let (stack, zeroed) = walked.walk()?;
            stacks[index] = stack;
            let func = &mut funcs[index];
            func.stack_bytes = stack.frame_bytes();
            func.zeroed = zeroed;
        }
    }
    check_depth(&funcs, &stacks, &order)?;
    let unset_args = calls.unset_args.into_iter().enumerate();
    let unset_args = unset_args.filter(|(_, unset)| *unset != 0).collect();
    Ok(Verified {
        ops,
        funcs,
        unset_args,
    })
}

/// What is so at every entry of a function.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Entry {
    /// The argument registers that all callers have set.
    set: RegSet,
    /// Those that hold places of a caller's jump tables, or the tables, for some caller.
    foreign: RegSet,
}

impl Entry {
    /// Whatever the host passes.
    const ANY: Self = Self::of(ARGS);

    const fn of(set: RegSet) -> Self {
        Self { set, foreign: 0 }
    }
}

/// What walks find out of each other's functions.
struct Calls {
    /// Where each function begins, in order.
    starts: Vec<usize>,
    /// At the entry of each, as far as its calls have been seen.
    entries: Vec<Option<Entry>>,
    /// Those that are to be walked, again or for the first time.
    changed: Vec<bool>,
    /// Those whose result may be a place of their jump tables, or a table.
    returns_place: Vec<bool>,
    /// Where functions begin whose addresses the program takes.
    taken: Vec<usize>,
    /// The function of each jump table, by its map.
    tables: BTreeMap<i32, usize>,
    /// By instruction: the argument registers that are not set before a call out of the program.
    unset_args: Vec<RegSet>,
}

impl Calls {
    fn new(ops: &Ops, funcs: &[Func], extra: &Extra, taken: Vec<usize>) -> Self {
        let mut calls = Self {
            starts: funcs.iter().map(|func| func.start).collect(),
            entries: vec![None; funcs.len()],
            changed: vec![true; funcs.len()],
            returns_place: vec![false; funcs.len()],
            taken,
            tables: BTreeMap::new(),
            unset_args: vec![0; ops.len()],
        };
        for table in &extra.jump_tables {
            if let Some(first) = table.targets.first() {
                calls.tables.insert(table.map, calls.func_of(*first));
            }
        }
        calls
    }

    fn func_of(&self, insn: usize) -> usize {
        self.starts.partition_point(|start| *start <= insn) - 1
    }

    /// The function that begins at `at` is entered so.
    fn enter(&mut self, at: usize, entry: Entry) {
        let func = self.func_of(at);
        let before = self.entries[func];
        let met = before.map_or(entry, |before| Entry {
            set: before.set & entry.set,
            foreign: before.foreign | entry.foreign,
        });
        if before != Some(met) {
            self.entries[func] = Some(met);
            self.changed[func] = true;
        }
    }
}

/// How a helper calls a function of the program.
struct Callback {
    /// The helper's argument that is the function.
    func: BpfReg,
    /// What the function gets.
    given: RegSet,
    /// The helper's argument that goes to one of the function's as it is.
    passed: Option<(BpfReg, BpfReg)>,
}

/// The helpers that call back. Kernel: `kernel/bpf/verifier.c` (`set_loop_callback_state` and the
/// others of its kind).
fn callback_of(helper: i32) -> Option<Callback> {
    let (func, args, passed) = match helper {
        // bpf_for_each_map_elem
        164 => (BpfReg::R2, 4, Some((BpfReg::R3, BpfReg::R4))),
        // bpf_timer_set_callback
        170 => (BpfReg::R2, 3, None),
        // bpf_find_vma
        180 => (BpfReg::R3, 3, Some((BpfReg::R4, BpfReg::R3))),
        // bpf_loop, bpf_user_ringbuf_drain
        181 | 209 => (BpfReg::R2, 2, Some((BpfReg::R3, BpfReg::R2))),
        _ => return None,
    };
    Some(Callback {
        func,
        given: first_args(args),
        passed,
    })
}

pub(crate) fn refuse<T>(insn: usize, reason: Reason) -> Result<T, Refusal> {
    Err(Refusal { insn, reason })
}

fn decode(insns: &[BpfInsn]) -> Result<Ops, Refusal> {
    if insns.is_empty() {
        return refuse(0, Reason::Empty);
    }
    if insns.len() > MAX_INSNS {
        return refuse(
            MAX_INSNS,
            Reason::TooLong {
                insns: insns.len(),
                max: MAX_INSNS,
            },
        );
    }
    let mut ops = vec![None; insns.len()];
    let mut at = 0;
    while at < insns.len() {
        let op = Op::decode(&insns[at..]).map_err(|reason| Refusal { insn: at, reason })?;
        if op.written() & bit(BpfReg::R10) != 0 {
            return refuse(at, Reason::WritesFrame);
        }
        ops[at] = Some(op);
        at += op.len_insns();
    }
    Ok(ops)
}

/// Where a reference to a function leads.
fn func_ref(op: Op) -> Option<i32> {
    match op {
        Op::Call(Callee::Local(off)) => Some(off),
        Op::LdImm64 {
            imm: Imm64::Func(off),
            ..
        } => Some(off),
        _ => None,
    }
}

/// Every reference to a function: where it is, where it leads.
fn refs<'a>(
    ops: &'a Ops,
    func_ref: impl Fn(Op) -> Option<i32> + 'a,
) -> impl Iterator<Item = (usize, i64)> + 'a {
    let at = move |(i, op): (usize, &Option<Op>)| Some((i, target(i, func_ref((*op)?)?)));
    ops.iter().enumerate().filter_map(at)
}

/// The references that are no calls: whoever gets one calls it, and looks at what it returns.
fn pointed_to(ops: &Ops) -> impl Iterator<Item = (usize, i64)> + '_ {
    let pointer = |op| match op {
        Op::Call(_) => None,
        _ => func_ref(op),
    };
    refs(ops, pointer)
}

/// Cuts the program where somebody refers to. The exception callback is called by the first
/// function, as it were.
fn functions(ops: &Ops, extra: &Extra) -> Result<Vec<Func>, Refusal> {
    let callback = extra.exception_callback.map(|at| (0, at as i64));
    let refs = || refs(ops, func_ref).chain(callback);
    let mut is_start = vec![false; ops.len()];
    is_start[0] = true;
    for (at, to) in refs() {
        match usize::try_from(to).ok().filter(|to| *to < ops.len()) {
            Some(to) if ops[to].is_some() => is_start[to] = true,
            Some(to) => return refuse(at, Reason::JumpIntoConstant { target: to }),
            None => {
                return refuse(
                    at,
                    Reason::JumpOut {
                        target: to,
                        start: 0,
                        end: ops.len(),
                    },
                );
            }
        }
    }
    let starts: Vec<usize> = (0..ops.len()).filter(|i| is_start[*i]).collect();
    let ends = starts.iter().skip(1).copied().chain([ops.len()]);
    let mut funcs: Vec<Func> = starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| Func {
            start,
            end,
            stack_bytes: 0,
            zeroed: 0,
            callees: Vec::new(),
            table_targets: Vec::new(),
        })
        .collect();
    for (at, to) in refs() {
        let of = |insn: usize| starts.partition_point(|s| *s <= insn) - 1;
        let callees = &mut funcs[of(at)].callees;
        callees.push(of(to as usize));
    }
    for func in &mut funcs {
        func.callees.sort_unstable();
        func.callees.dedup();
    }
    Ok(funcs)
}

/// Where an instruction goes besides the next one, if it says so itself; of [`Op::JumpReg`] see
/// [`Func::table_targets`].
pub(crate) fn jump_of(op: Op) -> Option<i32> {
    match op {
        Op::Jump { off } => Some(off),
        Op::MayGoto { off } | Op::Branch { off, .. } => Some(off.into()),
        _ => None,
    }
}

/// Whether an instruction goes on to the next one.
pub(crate) fn goes_on(op: Op) -> bool {
    !matches!(op, Op::Jump { .. } | Op::JumpReg { .. } | Op::Exit)
}

fn check_jumps(ops: &Ops, func: &Func) -> Result<(), Refusal> {
    let (start, end) = (func.start, func.end);
    let mut last = start;
    for (at, op) in ops[start..end].iter().enumerate() {
        let (at, Some(op)) = (start + at, op) else {
            continue;
        };
        last = at;
        let Some(off) = jump_of(*op) else { continue };
        let to = target(at, off);
        let inside = usize::try_from(to).ok();
        match inside.filter(|to| (start..end).contains(to)) {
            None => {
                return refuse(
                    at,
                    Reason::JumpOut {
                        target: to,
                        start,
                        end,
                    },
                );
            }
            Some(to) if ops[to].is_none() => {
                return refuse(at, Reason::JumpIntoConstant { target: to });
            }
            Some(_) => {}
        }
    }
    match ops[last] {
        Some(op) if goes_on(op) => refuse(last, Reason::FallThrough),
        _ => Ok(()),
    }
}

/// Whether a register points into the stack.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Ptr {
    /// Not that anybody knows.
    Other,
    /// So many bytes from `r10`.
    Stack(i64),
    /// Somewhere into it, perhaps.
    Somewhere,
}

impl Ptr {
    fn join(self, other: Self) -> Self {
        if self == other { self } else { Self::Somewhere }
    }
}

/// What is known where paths meet.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Known {
    /// Registers that some path has set.
    set: RegSet,
    /// Registers that every path has set.
    must: RegSet,
    ptrs: [Ptr; 11],
    /// Registers that may hold a place of this function's jump tables, or the address of one.
    places: RegSet,
    /// The same of other functions.
    foreign: RegSet,
    /// The function whose address a register holds on every path, by its first instruction.
    funcs: [Option<u32>; 11],
}

impl Known {
    fn join(mut self, other: &Self) -> Self {
        self.set |= other.set;
        self.must &= other.must;
        for (ptr, other) in self.ptrs.iter_mut().zip(other.ptrs) {
            *ptr = ptr.join(other);
        }
        self.places |= other.places;
        self.foreign |= other.foreign;
        for (func, other) in self.funcs.iter_mut().zip(other.funcs) {
            *func = func.filter(|func| other == Some(*func));
        }
        self
    }
}

/// Whether a pointer into the stack goes where nobody follows it: to another function of the
/// program, which whoever is called may call too where others know it; into memory, through an
/// instruction that is not for pointers. What is reached by it may be anywhere in the stack.
fn escapes(op: Op, known: &Known, calls_back: CallsBack) -> bool {
    let points = |reg: BpfReg| known.ptrs[reg.index()] != Ptr::Other;
    let passes = || BpfReg::ALL[1..6].iter().any(|reg| points(*reg));
    match op {
        Op::Call(Callee::Local(_)) => passes(),
        Op::Call(_) => calls_back == CallsBack::Yes && passes(),
        Op::Store {
            src: Operand::Reg(src),
            ..
        }
        | Op::StoreRelease { src, .. }
        | Op::Atomic { src, .. }
        | Op::Movsx { src, .. }
        | Op::AddrSpaceCast { src, .. } => points(src),
        Op::Arena(access) => escapes(access.plain(), known, calls_back),
        Op::Neg { dst, .. } | Op::End { dst, .. } => points(dst),
        _ => false,
    }
}

/// The stack that a function touches.
#[derive(Copy, Clone, Default, Debug)]
struct Stack {
    /// As far below `r10` as a constant shows.
    bytes: u32,
    /// A pointer into it is changed by what is no constant, or lost sight of.
    any: bool,
}

impl Stack {
    fn reach(&mut self, off: i64) {
        let bytes = u32::try_from(-off).unwrap_or(0).min(MAX_STACK_BYTES);
        self.bytes = self.bytes.max(bytes);
    }

    fn frame_bytes(self) -> u32 {
        if self.any {
            MAX_STACK_BYTES
        } else {
            self.bytes
        }
    }
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum Kind {
    /// What it returns is the program's result, or looked at by whoever was given the function.
    Main,
    /// It may return nothing.
    Sub,
}

/// Whether others know functions of the program, and may call them.
#[derive(Copy, Clone, Eq, PartialEq)]
enum CallsBack {
    Yes,
    No,
}

/// A walk along all paths of one function.
struct Paths<'a> {
    ops: &'a Ops,
    /// The function, and its index.
    func: &'a Func,
    index: usize,
    calls: &'a mut Calls,
    kind: Kind,
    calls_back: CallsBack,
    /// Which of `known` is of an instruction that is jumped to.
    places: Vec<Option<u32>>,
    /// What is known before such an instruction; nothing before anybody has come there.
    known: Vec<Option<Known>>,
    /// What is known at jumps through registers, all together.
    at_tables: Option<Known>,
    todo: Vec<usize>,
    stack: Stack,
    /// Registers that are read where a path comes by that has not set them.
    zeroed: RegSet,
}

impl<'a> Paths<'a> {
    fn new(
        ops: &'a Ops,
        index: usize,
        func: &'a Func,
        kind: Kind,
        calls_back: CallsBack,
        entry: Entry,
        calls: &'a mut Calls,
    ) -> Self {
        let mut places = vec![None; func.end - func.start];
        // The function's entry is one of them.
        let mut known = vec![None];
        places[0] = Some(0);
        let jump = |at: usize| Some(target(at, jump_of(ops[at]?)?) as usize);
        let jumps = (func.start..func.end).filter_map(jump);
        for to in jumps.chain(func.table_targets.iter().copied()) {
            places[to - func.start].get_or_insert_with(|| {
                known.push(None);
                known.len() as u32 - 1
            });
        }
        let mut ptrs = [Ptr::Other; 11];
        ptrs[BpfReg::R10.index()] = Ptr::Stack(0);
        let set = entry.set | bit(BpfReg::R10);
        known[0] = Some(Known {
            set,
            must: set,
            ptrs,
            places: 0,
            foreign: entry.foreign,
            funcs: [None; 11],
        });
        Self {
            ops,
            func,
            index,
            calls,
            kind,
            calls_back,
            places,
            known,
            at_tables: None,
            todo: vec![func.start],
            stack: Stack::default(),
            zeroed: 0,
        }
    }

    fn walk(mut self) -> Result<(Stack, RegSet), Refusal> {
        let mut reached = vec![false; self.places.len()];
        while let Some(mut at) = self.todo.pop() {
            let Some(mut known) = self.place(at).and_then(|place| *place) else {
                continue;
            };
            loop {
                reached[at - self.func.start] = true;
                // `check_jumps` has seen that paths stay on whole instructions of the function.
                let Some(op) = self.ops[at] else { break };
                self.step(at, op, &mut known)?;
                if let Some(off) = jump_of(op) {
                    self.meet(target(at, off) as usize, &known);
                }
                if let Op::JumpReg { .. } = op {
                    self.meet_at_tables(&known);
                }
                if !goes_on(op) {
                    break;
                }
                at += op.len_insns();
                if self.place(at).is_some() {
                    self.meet(at, &known);
                    break;
                }
            }
        }
        let unreachable = (self.func.start..self.func.end)
            .find(|at| self.ops[*at].is_some() && !reached[at - self.func.start]);
        match unreachable {
            Some(at) => refuse(at, Reason::Unreachable),
            None => Ok((self.stack, self.zeroed)),
        }
    }

    /// What is known before instruction `at`, if it is jumped to.
    fn place(&mut self, at: usize) -> Option<&mut Option<Known>> {
        let place = self.places[at - self.func.start]?;
        self.known.get_mut(place as usize)
    }

    /// A path comes to `at`: walks on from there unless that has been done with as little known.
    fn meet(&mut self, at: usize, known: &Known) {
        let Some(place) = self.place(at) else { return };
        let joined = match place {
            Some(before) => before.join(known),
            None => *known,
        };
        if *place != Some(joined) {
            *place = Some(joined);
            self.todo.push(at);
        }
    }

    /// A path comes to a jump through a register, and goes on wherever one may lead.
    fn meet_at_tables(&mut self, known: &Known) {
        let joined = match &self.at_tables {
            Some(before) => before.join(known),
            None => *known,
        };
        if self.at_tables != Some(joined) {
            self.at_tables = Some(joined);
            let func = self.func;
            func.table_targets
                .iter()
                .for_each(|to| self.meet(*to, &joined));
        }
    }

    fn step(&mut self, at: usize, op: Op, known: &mut Known) -> Result<(), Refusal> {
        let reads = op.read();
        // A function need not return anything.
        let may_be_unset = match (op, self.kind) {
            (Op::Exit, Kind::Sub) => reads,
            _ => 0,
        };
        // What a call has left in an argument's register cannot be told.
        let set = (known.set & !ARGS) | (known.must & ARGS) | may_be_unset;
        if let Some(reg) = BpfReg::ALL
            .into_iter()
            .find(|reg| bit(*reg) & reads & !set != 0)
        {
            return refuse(at, Reason::Unset { reg });
        }
        self.zeroed |= reads & !known.must;
        if let Op::JumpReg { dst: reg } = op {
            if known.foreign & bit(reg) != 0 {
                return refuse(at, Reason::ForeignTable { reg });
            }
        }
        self.access(at, op, known)?;
        self.calls(at, op, known);
        self.stack.any |= escapes(op, known, self.calls_back);
        let result = self.pointer(op, known);
        let (place, foreign) = self.place_of(at, op, known);
        let func = func_in(at, op, known);
        let written = op.written();
        known.places = known.places & !written | if place { written } else { 0 };
        known.foreign = known.foreign & !written | if foreign { written } else { 0 };
        for reg in BpfReg::ALL.into_iter().filter(|r| written & bit(*r) != 0) {
            known.ptrs[reg.index()] = result;
            known.funcs[reg.index()] = func;
        }
        known.set |= written;
        known.must |= written;
        if matches!(op, Op::Call(_)) {
            known.set &= !ARGS;
            known.must &= !ARGS;
            known.places &= !ARGS;
            known.foreign &= !ARGS;
        }
        Ok(())
    }

    /// What an instruction says of other functions' entries, and of calls out of the program.
    fn calls(&mut self, at: usize, op: Op, known: &Known) {
        let places = known.places | known.foreign;
        match op {
            Op::Call(Callee::Local(off)) => {
                let entry = Entry {
                    set: known.must & ARGS,
                    foreign: places & ARGS,
                };
                self.calls.enter(target(at, off) as usize, entry);
            }
            Op::Call(callee) => {
                self.calls.unset_args[at] = ARGS & !known.must;
                let Callee::Helper(helper) = callee else {
                    return;
                };
                let Some(callback) = callback_of(helper) else {
                    return;
                };
                let passed = callback.passed;
                let foreign = passed.filter(|(from, _)| places & bit(*from) != 0);
                let entry = Entry {
                    set: callback.given,
                    foreign: foreign.map_or(0, |(_, to)| bit(to)),
                };
                match known.funcs[callback.func.index()] {
                    Some(func) => self.calls.enter(func as usize, entry),
                    None => {
                        for func in self.calls.taken.clone() {
                            self.calls.enter(func, entry);
                        }
                    }
                }
            }
            Op::LdImm64 {
                imm: Imm64::Func(off),
                ..
            } => self.calls.enter(target(at, off) as usize, Entry::ANY),
            Op::Exit if places & bit(BpfReg::R0) != 0 && !self.calls.returns_place[self.index] => {
                self.calls.returns_place[self.index] = true;
                self.calls.changed.fill(true);
            }
            _ => {}
        }
    }

    /// Whether the result of an instruction may be a place of this function's jump tables, and of
    /// another's; or the address of such a table.
    fn place_of(&self, at: usize, op: Op, known: &Known) -> (bool, bool) {
        let of = |regs: RegSet| (known.places & regs != 0, known.foreign & regs != 0);
        match op {
            Op::LdImm64 {
                imm: Imm64::MapIdxValue { idx, .. },
                ..
            } => {
                let owner = self.calls.tables.get(&idx);
                let is_own = owner == Some(&self.index);
                (is_own, owner.is_some() && !is_own)
            }
            Op::Alu {
                width: Width::W64, ..
            } => of(op.read()),
            Op::Load {
                size: Size::Dw,
                src,
                ..
            } => of(bit(src)),
            Op::Call(Callee::Local(off)) => {
                // `written` has the arguments' registers, too: they are cleared afterwards.
                let callee = self.calls.func_of(target(at, off) as usize);
                (false, self.calls.returns_place[callee])
            }
            _ => (false, false),
        }
    }

    /// Accesses to the stack stay in it, as far as they are at a constant place.
    fn access(&mut self, at: usize, op: Op, known: &Known) -> Result<(), Refusal> {
        let (base, off, size) = match op {
            Op::Load { size, src, off, .. } | Op::LoadAcquire { size, src, off, .. } => {
                (src, off, size)
            }
            Op::Store { size, dst, off, .. }
            | Op::StoreRelease { size, dst, off, .. }
            | Op::Atomic { size, dst, off, .. } => (dst, off, size),
            _ => return Ok(()),
        };
        let from = match known.ptrs[base.index()] {
            Ptr::Other => return Ok(()),
            Ptr::Somewhere => {
                self.stack.any = true;
                return Ok(());
            }
            Ptr::Stack(from) => from,
        };
        let (off, bytes) = (from + i64::from(off), size.bytes());
        if off < -i64::from(MAX_STACK_BYTES) || off + i64::from(bytes) > 0 {
            let max = MAX_STACK_BYTES;
            return refuse(at, Reason::StackBounds { off, bytes, max });
        }
        self.stack.reach(off);
        Ok(())
    }

    /// Where the result of an instruction points.
    fn pointer(&mut self, op: Op, known: &Known) -> Ptr {
        let Op::Alu {
            op,
            width,
            dst,
            src,
        } = op
        else {
            return Ptr::Other;
        };
        let now = known.ptrs[dst.index()];
        let by = match src {
            Operand::Reg(reg) => known.ptrs[reg.index()],
            Operand::Imm(_) => Ptr::Other,
        };
        let result = match (op, width, now, src) {
            (AluOp::Mov, Width::W64, _, _) => by,
            (AluOp::Mov, Width::W32, _, _) => Ptr::Other,
            (AluOp::Add, Width::W64, Ptr::Stack(off), Operand::Imm(imm)) => {
                Ptr::Stack(off + i64::from(imm))
            }
            (AluOp::Sub, Width::W64, Ptr::Stack(off), Operand::Imm(imm)) => {
                Ptr::Stack(off - i64::from(imm))
            }
            _ if now == Ptr::Other && by == Ptr::Other => Ptr::Other,
            _ => {
                self.stack.any = true;
                Ptr::Somewhere
            }
        };
        match result {
            // A loop may move a pointer for ever.
            Ptr::Stack(off) if off.abs() > 1 << 20 => {
                self.stack.any = true;
                Ptr::Somewhere
            }
            Ptr::Stack(off) => {
                self.stack.reach(off);
                result
            }
            _ => result,
        }
    }
}

/// How deep calls go, from one function on.
#[derive(Copy, Clone, Default)]
struct Depth {
    frames: usize,
    bytes: u32,
}

/// The functions, callees first; each can be reached from the first one, and none from itself.
fn call_order(funcs: &[Func]) -> Result<Vec<usize>, Refusal> {
    #[derive(Copy, Clone)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; funcs.len()];
    let mut order = Vec::with_capacity(funcs.len());
    // A function, and how many of its callees have been looked at.
    let mut path = vec![(0, 0)];
    while let Some((func, next)) = path.pop() {
        marks[func] = Mark::Open;
        if let Some(&callee) = funcs[func].callees.get(next) {
            path.push((func, next + 1));
            match marks[callee] {
                Mark::New => path.push((callee, 0)),
                Mark::Open => return refuse(funcs[callee].start, Reason::Recursion),
                Mark::Done => {}
            }
            continue;
        }
        marks[func] = Mark::Done;
        order.push(func);
    }
    let nobodys = marks.iter().position(|mark| matches!(mark, Mark::New));
    match nobodys {
        Some(func) => refuse(funcs[func].start, Reason::Unreachable),
        None => Ok(order),
    }
}

/// How deep calls go, and how much stack they take together. Frames may be larger than what adds up
/// here: all of the stack's size where a pointer into it is changed by what is no constant.
fn check_depth(funcs: &[Func], stacks: &[Stack], order: &[usize]) -> Result<(), Refusal> {
    let mut depths = vec![Depth::default(); funcs.len()];
    for &func in order {
        let mut depth = Depth::default();
        for callee in &funcs[func].callees {
            depth.frames = depth.frames.max(depths[*callee].frames);
            depth.bytes = depth.bytes.max(depths[*callee].bytes);
        }
        depth.frames += 1;
        depth.bytes += stacks[func].bytes.next_multiple_of(16);
        let insn = funcs[func].start;
        if depth.frames > MAX_CALL_FRAMES {
            let (frames, max) = (depth.frames, MAX_CALL_FRAMES);
            return refuse(insn, Reason::CallDepth { frames, max });
        }
        if depth.bytes > MAX_STACK_BYTES {
            let (bytes, max) = (depth.bytes, MAX_STACK_BYTES);
            return refuse(insn, Reason::StackDepth { bytes, max });
        }
        depths[func] = depth;
    }
    Ok(())
}

/// The function whose address an instruction leaves in the register that it writes.
fn func_in(at: usize, op: Op, known: &Known) -> Option<u32> {
    match op {
        Op::LdImm64 {
            imm: Imm64::Func(off),
            ..
        } => u32::try_from(target(at, off)).ok(),
        Op::Alu {
            op: AluOp::Mov,
            width: Width::W64,
            src: Operand::Reg(src),
            ..
        } => known.funcs[src.index()],
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::insn::BpfReg::{R0, R1, R2, R3, R10};
    use super::super::op::Cond;
    use super::*;

    fn mov(dst: BpfReg, src: Operand) -> Op {
        let (op, width) = (AluOp::Mov, Width::W64);
        Op::Alu {
            op,
            width,
            dst,
            src,
        }
    }

    fn skip_if_zero(dst: BpfReg, off: i16) -> Op {
        let (cond, width, src) = (Cond::Eq, Width::W64, Operand::Imm(0));
        Op::Branch {
            cond,
            width,
            dst,
            src,
            off,
        }
    }

    fn funcs(ops: &[Op]) -> Result<Vec<Func>, Refusal> {
        let insns: Vec<BpfInsn> = ops.iter().map(|op| op.encode().0).collect();
        verify(&insns, &Extra::default()).map(|verified| verified.funcs)
    }

    #[test]
    fn functions_that_only_call_each_other_are_unreachable() {
        let call = |off| Op::Call(Callee::Local(off));
        let main = [mov(R0, Operand::Imm(0)), Op::Exit];
        let ops = [main.as_slice(), &[call(-1), Op::Exit]].concat();
        let insn = 2;
        let reason = Reason::Unreachable;
        assert_eq!(funcs(&ops), Err(Refusal { insn, reason }));
    }

    /// `r2` points to one of two places; what is below both may be touched.
    #[test]
    fn an_access_at_one_of_two_places_takes_all_of_the_stack() {
        let at = |imm| {
            let (op, width, dst, src) = (AluOp::Add, Width::W64, R2, Operand::Imm(imm));
            Op::Alu {
                op,
                width,
                dst,
                src,
            }
        };
        let ops = [
            mov(R2, Operand::Reg(R10)),
            at(-8),
            skip_if_zero(R1, 1),
            at(-8),
            Op::Store {
                size: Size::B,
                dst: R2,
                off: -200,
                src: Operand::Imm(1),
            },
            mov(R0, Operand::Imm(0)),
            Op::Exit,
        ];
        assert_eq!(funcs(&ops).unwrap()[0].stack_bytes, MAX_STACK_BYTES);
    }

    /// Whoever gets `r10` may go down from it.
    #[test]
    fn a_pointer_that_is_lost_sight_of_takes_all_of_the_stack() {
        let store = |dst, off, src| Op::Store {
            size: Size::Dw,
            dst,
            off,
            src,
        };
        let end = [mov(R0, Operand::Imm(0)), Op::Exit];
        let passed = [mov(R1, Operand::Reg(R10)), Op::Call(Callee::Local(2))];
        let sub = [store(R1, -8, Operand::Imm(7))];
        let spilled = [store(R10, -8, Operand::Reg(R10))];
        let negated = [
            mov(R2, Operand::Reg(R10)),
            Op::Neg {
                width: Width::W64,
                dst: R2,
            },
        ];
        for ops in [
            [passed.as_slice(), &end, &sub, &end].concat(),
            [spilled.as_slice(), &end].concat(),
            [negated.as_slice(), &end].concat(),
        ] {
            let stack_bytes = funcs(&ops).unwrap()[0].stack_bytes;
            assert_eq!(stack_bytes, MAX_STACK_BYTES, "{ops:?}");
        }
    }

    #[test]
    fn what_one_path_has_not_set_is_zero_but_for_what_a_call_spoils() {
        let ops = [skip_if_zero(R1, 1), mov(R0, Operand::Imm(1)), Op::Exit];
        assert_eq!(funcs(&ops).unwrap()[0].zeroed, bit(R0));
        let ops = [
            skip_if_zero(R1, 1),
            Op::Call(Callee::Helper(5)),
            mov(R0, Operand::Reg(R3)),
            Op::Exit,
        ];
        let (insn, reason) = (2, Reason::Unset { reg: R3 });
        assert_eq!(funcs(&ops), Err(Refusal { insn, reason }));
    }
}
