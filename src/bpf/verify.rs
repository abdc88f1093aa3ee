//! Whether a program is fit to be compiled: its structure, not its values.
//!
//! | step | finds |
//! | --- | --- |
//! | decode | unknown codes, reserved fields, missing halves, writes of `r10` |
//! | functions | calls to nowhere, jumps out of a function or into a constant, ends without exit |
//! | tables | jump tables that lead to nowhere, jumps without one |
//! | paths | unreachable instructions, registers that nobody has set, stack beyond its bounds |
//! | calls | recursion, too many frames, too much stack together |
//!
//! Everything is linear in the length of the program but for the paths, which are walked again
//! where they meet with less known than before: a few times at most.
//!
//! Key function: [`verify`]. Neighbours: `op` decodes, `program` keeps the result. Source: kernel
//! `kernel/bpf/verifier.c` (`check_subprogs`, `check_cfg`, `check_max_stack_depth`).

use super::error::{Reason, Refusal};
use super::insn::{BpfInsn, BpfReg};
use super::op::{AluOp, Callee, Imm64, Op, Operand, Width};
use super::program::{Extra, Func, MAX_CALL_FRAMES, MAX_INSNS, MAX_STACK_BYTES, target};
use super::regs::{ARGS, RegSet, bit};
use super::tables;

type Ops = Vec<Option<Op>>;

/// The meaning of every instruction, and the functions.
pub(crate) fn verify(insns: &[BpfInsn], extra: &Extra) -> Result<(Ops, Vec<Func>), Refusal> {
    let ops = decode(insns)?;
    let mut funcs = functions(&ops, extra)?;
    tables::lead(&ops, &mut funcs, &extra.jump_tables)?;
    let mut stacks = Vec::with_capacity(funcs.len());
    let mut kinds = vec![Kind::Sub; ops.len()];
    let passed: Vec<usize> = pointed_to(&ops).map(|(_, to)| to as usize).collect();
    let calls_back = match passed.is_empty() {
        true => CallsBack::No,
        false => CallsBack::Yes,
    };
    passed.into_iter().for_each(|at| kinds[at] = Kind::Main);
    if let Some(at) = extra.exception_callback {
        kinds[at] = Kind::Catch;
    }
    kinds[0] = Kind::Main;
    for func in &mut funcs {
        check_jumps(&ops, func)?;
        let kind = kinds[func.start];
        let (stack, zeroed) = Paths::new(&ops, func, kind, calls_back).walk()?;
        func.stack_bytes = stack.frame_bytes();
        func.zeroed = zeroed;
        stacks.push(stack);
    }
    check_calls(&funcs, &stacks)?;
    Ok((ops, funcs))
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
}

impl Known {
    fn join(mut self, other: &Self) -> Self {
        self.set |= other.set;
        self.must &= other.must;
        for (ptr, other) in self.ptrs.iter_mut().zip(other.ptrs) {
            *ptr = ptr.join(other);
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
    /// The same of a cookie, which is all that it gets.
    Catch,
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
    func: &'a Func,
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
    fn new(ops: &'a Ops, func: &'a Func, kind: Kind, calls_back: CallsBack) -> Self {
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
        let args = match kind {
            Kind::Catch => bit(BpfReg::R1),
            Kind::Main | Kind::Sub => ARGS,
        };
        let set = args | bit(BpfReg::R10);
        known[0] = Some(Known {
            set,
            must: set,
            ptrs,
        });
        Self {
            ops,
            func,
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
        self.access(at, op, known)?;
        self.stack.any |= escapes(op, known, self.calls_back);
        let result = self.pointer(op, known);
        let written = op.written();
        for reg in BpfReg::ALL.into_iter().filter(|r| written & bit(*r) != 0) {
            known.ptrs[reg.index()] = result;
        }
        known.set |= written;
        known.must |= written;
        if matches!(op, Op::Call(_)) {
            known.set &= !ARGS;
            known.must &= !ARGS;
        }
        Ok(())
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

fn check_calls(funcs: &[Func], stacks: &[Stack]) -> Result<(), Refusal> {
    #[derive(Copy, Clone)]
    enum Mark {
        New,
        Open,
        Done(Depth),
    }
    // Frames may be larger than what adds up here: all of the stack's size where a pointer into
    // it is changed by what is no constant.
    let mut marks = vec![Mark::New; funcs.len()];
    // A function, and how many of its callees have been looked at.
    let mut path = vec![(0, 0)];
    while let Some((func, next)) = path.pop() {
        marks[func] = Mark::Open;
        if let Some(&callee) = funcs[func].callees.get(next) {
            path.push((func, next + 1));
            match marks[callee] {
                Mark::New => path.push((callee, 0)),
                Mark::Open => return refuse(funcs[callee].start, Reason::Recursion),
                Mark::Done(_) => {}
            }
            continue;
        }
        let mut depth = Depth::default();
        for callee in &funcs[func].callees {
            if let Mark::Done(of) = marks[*callee] {
                depth.frames = depth.frames.max(of.frames);
                depth.bytes = depth.bytes.max(of.bytes);
            }
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
        marks[func] = Mark::Done(depth);
    }
    let nobodys = marks.iter().position(|mark| matches!(mark, Mark::New));
    match nobodys {
        Some(func) => refuse(funcs[func].start, Reason::Unreachable),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::insn::BpfReg::{R0, R1, R2, R3, R10};
    use super::super::op::{Cond, Size};
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
        verify(&insns, &Extra::default()).map(|(_, funcs)| funcs)
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
