//! The interpreter: what a program means, one instruction after the other.
//!
//! It is the reference for compiled code and what runs on hosts that are not riscv64. It is written
//! to be read, shares nothing with the compiler but the decoder, and works on the memory of this
//! process as compiled code does.
//!
//! Key type: [`Interpreter`]. Neighbours: `program`, `env`. Source: RFC 9669; kernel
//! `kernel/bpf/core.c` (`___bpf_prog_run`).

#![expect(
    unsafe_code,
    reason = "programs read and write memory, and call functions, as they please"
)]

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::arena::Arena;
use super::env::{Control, Env};
use super::error::{Reason, Refusal, Stop};
use super::helpers::probe_read;
use super::insn::BpfReg;
use super::op::{
    AluOp, AtomicOp, ByteOrder, Callee, Cond, Extend, Fault, Imm64, Op, Operand, Size, Width,
};
use super::program::{Func, MAX_LOOPS, MAX_STACK_BYTES, MAX_TAIL_CALLS, Program, target};
use super::regs::bit;

/// A program with what it refers to, to be interpreted.
#[derive(Debug)]
pub struct Interpreter<'a> {
    program: &'a Program,
    env: &'a Env,
    arena: Option<&'a Arena>,
}

/// A program that is being run: the one that was given, or one that a tail call led to.
#[derive(Clone)]
enum Source<'a> {
    Given(&'a Program),
    Array(Arc<Program>),
}

impl Deref for Source<'_> {
    type Target = Program;

    fn deref(&self) -> &Program {
        match self {
            Self::Given(program) => program,
            Self::Array(program) => program,
        }
    }
}

/// One function that has been called and has not returned.
struct Frame<'a> {
    program: Source<'a>,
    regs: [u64; 11],
    /// The instruction to go on with.
    at: usize,
    /// `may_goto` has so many loops left.
    loops_left: u64,
    /// Exceptions end here: it is the first function of a program that throws.
    catches: bool,
    then: Then<'a>,
    _stack: Box<[u64; MAX_STACK_BYTES as usize / 8]>,
}

/// What happens when a function has returned.
enum Then<'a> {
    /// Its caller goes on with the result.
    Return,
    /// Its caller's `bpf_loop` calls it again.
    Loop(Loop<'a>),
}

/// What `bpf_loop` does.
#[derive(Clone)]
struct Loop<'a> {
    program: Source<'a>,
    func: usize,
    ctx: u64,
    done: u64,
    times: u64,
}

impl<'a> Loop<'a> {
    /// The function's next call.
    fn frame(self) -> Frame<'a> {
        let args = [self.done, self.ctx];
        let mut frame = Frame::new(self.program.clone(), self.func, &args);
        frame.then = Then::Loop(self);
        frame
    }
}

impl<'a> Frame<'a> {
    fn new(program: Source<'a>, at: usize, args: &[u64]) -> Self {
        let mut stack = Box::new([0; MAX_STACK_BYTES as usize / 8]);
        let mut regs = [0; 11];
        regs[1..=args.len()].copy_from_slice(args);
        regs[BpfReg::R10.index()] = stack.as_mut_ptr_range().end as u64;
        Self {
            program,
            regs,
            at,
            loops_left: MAX_LOOPS,
            catches: false,
            then: Then::Return,
            _stack: stack,
        }
    }

    /// A program's first function.
    fn first(program: Source<'a>, args: &[u64], env: &Env) -> Self {
        let catches = env.controls(&program).throws;
        let mut frame = Self::new(program, 0, args);
        frame.catches = catches;
        frame
    }

    /// Where a jump through a register leads.
    fn table_target(&self, at: usize, value: u64) -> Result<usize, Stop> {
        let funcs = self.program.funcs();
        let func = funcs.partition_point(|func| func.start <= at) - 1;
        let targets = &funcs[func].table_targets;
        let known = |to: &usize| targets.binary_search(to).is_ok();
        let to = usize::try_from(value).ok().filter(known);
        to.ok_or(Stop::BadJump { insn: at, value })
    }

    fn get(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Reg(reg) => self.regs[reg.index()],
            Operand::Imm(imm) => imm as i64 as u64,
        }
    }
}

impl<'a> Interpreter<'a> {
    /// Makes `program` ready, with `env` around it.
    ///
    /// # Errors
    /// A [`Refusal`] when it refers to something that `env` does not have.
    pub fn new(program: &'a Program, env: &'a Env) -> Result<Self, Refusal> {
        check_imports(program, env)?;
        let arena = env.arena_of_programs();
        Ok(Self {
            program,
            env,
            arena,
        })
    }

    /// Runs it with `r1` to `r5`, at most `budget` instructions; gives `r0`.
    ///
    /// # Errors
    /// [`Stop::Budget`], [`Stop::BadJump`], [`Stop::Refused`].
    ///
    /// # Safety
    /// 1. The program's loads, stores and calls, with these arguments, are sound, and those of the
    ///    programs that it goes on in.
    pub unsafe fn run(&self, args: [u64; 5], budget: u64) -> Result<u64, Stop> {
        let mut run = Run {
            frames: vec![Frame::first(Source::Given(self.program), &args, self.env)],
            tail_calls_left: MAX_TAIL_CALLS,
        };
        let mut left = budget;
        loop {
            let Some(frame) = run.frames.last_mut() else {
                unreachable!("the last frame ends the run");
            };
            let at = frame.at;
            if left == 0 {
                return Err(Stop::Budget { insn: at, budget });
            }
            left -= 1;
            let Some(op) = frame.program.ops()[at] else {
                unreachable!("the verifier keeps paths on whole instructions");
            };
            frame.at += op.len_insns();
            let ended = match op {
                Op::Exit => {
                    let r0 = frame.regs[0];
                    run.leave(r0)
                }
                Op::Call(callee) => match (self.env.control(callee), callee) {
                    (Some(control), _) => self.control(&mut run, at, control)?,
                    (None, Callee::Local(off)) => {
                        let (to, args) = (target(at, off) as usize, &frame.regs[1..6]);
                        let callee = Frame::new(frame.program.clone(), to, args);
                        run.frames.push(callee);
                        None
                    }
                    (None, _) => {
                        // SAFETY: 1. caller's contract.
                        unsafe { self.call(frame, callee) };
                        None
                    }
                },
                Op::JumpReg { dst } => {
                    frame.at = frame.table_target(at, frame.regs[dst.index()])?;
                    None
                }
                _ => {
                    // SAFETY: 1. caller's contract.
                    unsafe { self.step(frame, at, op) };
                    None
                }
            };
            if let Some(r0) = ended {
                return Ok(r0);
            }
        }
    }

    /// A call that is none; the result, if it ends the run.
    fn control(&self, run: &mut Run<'a>, at: usize, control: Control) -> Result<Option<u64>, Stop> {
        let Some(Frame { regs, program, .. }) = run.frames.last() else {
            return Ok(None);
        };
        let (mut regs, unset) = (*regs, program.unset_args(at));
        for reg in BpfReg::ALL.into_iter().filter(|reg| unset & bit(*reg) != 0) {
            regs[reg.index()] = 0;
        }
        let r0 = match control {
            Control::Throw => return Ok(run.throw(regs[1])),
            Control::TailCall => {
                let arrays = self.env.prog_arrays();
                let array = arrays.iter().find(|array| array.addr() == regs[2]);
                let program = array.and_then(|array| array.interpreted(regs[3] as u32));
                match program.filter(|_| run.tail_calls_left > 0) {
                    None => errno(libc::EINVAL),
                    Some(program) => {
                        run.tail_calls_left -= 1;
                        check_imports(&program, self.env)?;
                        let program = Source::Array(program);
                        run.replace(Frame::first(program, &regs[1..6], self.env));
                        return Ok(None);
                    }
                }
            }
            Control::Loop => {
                let (func, ctx, flags) = (regs[2], regs[3], regs[4]);
                match (u64::from(regs[1] as u32), run.func_at(func)) {
                    _ if flags != 0 => errno(libc::EINVAL),
                    (0, _) => 0,
                    (times, _) if times > MAX_LOOPS => errno(libc::E2BIG),
                    (_, None) => errno(libc::EINVAL),
                    (times, Some((program, func))) => {
                        let looped = Loop {
                            program,
                            func,
                            ctx,
                            done: 0,
                            times,
                        };
                        run.frames.push(looped.frame());
                        return Ok(None);
                    }
                }
            }
        };
        if let Some(frame) = run.frames.last_mut() {
            frame.regs[0] = r0;
        }
        Ok(None)
    }

    /// # Safety
    /// 1. The instruction's access or call is sound.
    unsafe fn step(&self, frame: &mut Frame<'_>, at: usize, op: Op) {
        match op {
            Op::Alu {
                op,
                width,
                dst,
                src,
            } => {
                let (a, b) = (frame.regs[dst.index()], frame.get(src));
                frame.regs[dst.index()] = alu(op, width, a, b);
            }
            Op::Neg { width, dst } => {
                let value = &mut frame.regs[dst.index()];
                *value = cut(width, value.wrapping_neg());
            }
            Op::Movsx {
                width,
                size,
                dst,
                src,
            } => {
                let value = sign_extend(size, frame.regs[src.index()]);
                frame.regs[dst.index()] = cut(width, value);
            }
            Op::End { order, size, dst } => {
                let value = &mut frame.regs[dst.index()];
                *value = byte_order(order, size, *value);
            }
            Op::AddrSpaceCast { dst, src, .. } => {
                frame.regs[dst.index()] = self.arena().cast(frame.regs[src.index()]);
            }
            Op::LdImm64 {
                dst,
                imm: Imm64::Func(off),
            } => {
                let func = target(at, off) as usize;
                frame.regs[dst.index()] = func_addr(&frame.program, func);
            }
            Op::LdImm64 { dst, imm } => {
                // `new` has seen that it is there.
                let outside = || self.env.address(imm).unwrap_or_default();
                frame.regs[dst.index()] =
                    frame.program.tables().address(imm).unwrap_or_else(outside);
            }
            Op::Load { .. }
            | Op::Store { .. }
            | Op::Atomic { .. }
            | Op::LoadAcquire { .. }
            | Op::StoreRelease { .. } => {
                let (base, off, size) = place(op);
                let addr = frame.regs[base.index()].wrapping_add_signed(off.into());
                // SAFETY: 1. caller's contract.
                unsafe { self.access(frame, op, size, addr) };
            }
            Op::Arena(access) => {
                let op = access.plain();
                let (base, off, size) = place(op);
                let start = self.arena().at(frame.regs[base.index()]);
                let addr = start.wrapping_add_signed(off.into());
                // SAFETY: 1. the arena's guards are wider than an offset.
                unsafe { self.access(frame, op, size, addr) };
            }
            Op::Jump { off } => frame.at = target(at, off) as usize,
            Op::MayGoto { off } => match frame.loops_left {
                0 => frame.at = target(at, off.into()) as usize,
                _ => frame.loops_left -= 1,
            },
            Op::Branch {
                cond,
                width,
                dst,
                src,
                off,
            } => {
                if holds(cond, width, frame.regs[dst.index()], frame.get(src)) {
                    frame.at = target(at, off.into()) as usize;
                }
            }
            Op::Call(_) | Op::JumpReg { .. } | Op::Exit => {
                unreachable!("`run` has dealt with it")
            }
        }
    }

    /// The arena of a program that uses one.
    fn arena(&self) -> &'a Arena {
        let Some(arena) = self.arena else {
            unreachable!("`check_imports` has seen that it is there");
        };
        arena
    }

    /// An access to memory; where the arena has no page, or a misaligned atomic one, what is loaded
    /// is 0.
    ///
    /// # Safety
    /// 1. It is sound, unless it is the arena's.
    unsafe fn access(&self, frame: &mut Frame<'_>, op: Op, size: Size, addr: u64) {
        // SAFETY: 1. caller's contract; in the arena the page is there.
        let access = || unsafe { access(op, &frame.regs, addr) };
        let result = match self.arena {
            _ if is_misaligned(op, addr) => None,
            Some(arena) => arena.access(addr, size.bytes().into(), access),
            None => Some(access()),
        };
        for reg in BpfReg::ALL {
            if op.written() & bit(reg) != 0 {
                frame.regs[reg.index()] = result.unwrap_or(0);
            }
        }
    }

    /// # Safety
    /// 1. The function may be called with what the registers hold.
    unsafe fn call(&self, frame: &mut Frame<'_>, callee: Callee) {
        let Some(import) = self.env.import(callee) else {
            unreachable!("`new` has seen that it is there");
        };
        let mut args = [0; 5];
        for (i, arg) in args.iter_mut().enumerate() {
            *arg = import.args[i].apply(frame.regs[1 + i]);
        }
        let func = std::ptr::with_exposed_provenance::<()>(import.addr as usize);
        // SAFETY:
        // 1. `import` is an `extern "C"` function of at most five integers or pointers, which all
        //    calling conventions that we know pass in registers; more of them are not looked at.
        let func = unsafe {
            std::mem::transmute::<*const (), extern "C" fn(u64, u64, u64, u64, u64) -> u64>(func)
        };
        let ret = func(args[0], args[1], args[2], args[3], args[4]);
        frame.regs[0] = import.ret.apply(ret);
    }
}

/// The functions that are being run, the innermost last.
struct Run<'a> {
    frames: Vec<Frame<'a>>,
    tail_calls_left: u32,
}

impl<'a> Run<'a> {
    /// The function that `addr` stands for, of a program that is under way.
    fn func_at(&self, addr: u64) -> Option<(Source<'a>, usize)> {
        let of = |frame: &Frame<'a>| Some((frame.program.clone(), func_at(&frame.program, addr)?));
        self.frames.iter().rev().find_map(of)
    }

    /// The innermost function is left for another, which returns in its stead.
    fn replace(&mut self, mut next: Frame<'a>) {
        if let Some(frame) = self.frames.last_mut() {
            next.then = std::mem::replace(&mut frame.then, Then::Return);
            *frame = next;
        }
    }

    /// The innermost function returns; the result, if it was the last one.
    fn leave(&mut self, r0: u64) -> Option<u64> {
        let then = self.frames.pop()?.then;
        let Some(caller) = self.frames.last_mut() else {
            return Some(r0);
        };
        match then {
            Then::Return => caller.regs[0] = r0,
            Then::Loop(mut looped) => {
                looped.done += 1;
                match r0 == 0 && looped.done < looped.times {
                    true => self.frames.push(looped.frame()),
                    false => caller.regs[0] = looped.done,
                }
            }
        }
        None
    }

    /// The innermost program's functions are left, and its callback makes a result of the cookie.
    fn throw(&mut self, cookie: u64) -> Option<u64> {
        while self.frames.last().is_some_and(|frame| !frame.catches) {
            self.frames.pop();
        }
        let Some(frame) = self.frames.last() else {
            // Out of the callback itself.
            return Some(cookie);
        };
        match frame.program.extra().exception_callback {
            None => self.leave(cookie),
            Some(at) => {
                let callback = Frame::new(frame.program.clone(), at, &[cookie]);
                self.replace(callback);
                None
            }
        }
    }
}

/// A helper's error.
fn errno(code: i32) -> u64 {
    -i64::from(code) as u64
}

/// What stands for a function of a program: where its first instruction is kept. Only `bpf_loop`
/// can call it; interpreted functions are no code.
fn func_addr(program: &Program, func: usize) -> u64 {
    std::ptr::from_ref(&program.ops()[func]).expose_provenance() as u64
}

/// The function that `addr` stands for.
fn func_at(program: &Program, addr: u64) -> Option<usize> {
    let is_it = |func: &&Func| func_addr(program, func.start) == addr;
    program.funcs().iter().find(is_it).map(|f| f.start)
}

/// Whether `env` has what a program refers to.
pub(crate) fn check_imports(program: &Program, env: &Env) -> Result<(), Refusal> {
    for (insn, op) in program.ops().iter().enumerate() {
        let Some(op) = op.filter(|op| !program.tables().has(*op)) else {
            continue;
        };
        check_import(op, env).map_err(|reason| Refusal { insn, reason })?;
        let Op::Call(callee) = op else { continue };
        let unset = program.unset_args(insn) & env.args_of(callee);
        if let Some(reg) = BpfReg::ALL.into_iter().find(|reg| unset & bit(*reg) != 0) {
            let reason = Reason::Unset { reg };
            return Err(Refusal { insn, reason });
        }
    }
    Ok(())
}

fn check_import(op: Op, env: &Env) -> Result<(), Reason> {
    match op {
        Op::Call(callee) if env.control(callee).is_some() => Ok(()),
        Op::Call(callee) if env.import(callee).is_none() => match callee {
            Callee::Helper(id) => Err(Reason::NoHelper { id }),
            Callee::Host { id, .. } => Err(Reason::NoHostFunction { id }),
            Callee::Local(_) => Ok(()),
        },
        Op::LdImm64 {
            imm: Imm64::Func(_),
            ..
        } => Ok(()),
        Op::LdImm64 { imm, .. } => env.address(imm).map(|_| ()),
        Op::AddrSpaceCast { .. } | Op::Arena(_) if env.arena_of_programs().is_none() => {
            Err(Reason::NoArena)
        }
        _ => Ok(()),
    }
}

/// A result of 32-bit arithmetic is zero-extended.
fn cut(width: Width, value: u64) -> u64 {
    match width {
        Width::W32 => value & 0xffff_ffff,
        Width::W64 => value,
    }
}

fn zero_extend(size: Size, value: u64) -> u64 {
    value & (u64::MAX >> (64 - size.bits()))
}

fn sign_extend(size: Size, value: u64) -> u64 {
    match size {
        Size::B => value as i8 as u64,
        Size::H => value as i16 as u64,
        Size::W => value as i32 as u64,
        Size::Dw => value,
    }
}

fn alu(op: AluOp, width: Width, a: u64, b: u64) -> u64 {
    match width {
        Width::W64 => alu64(op, a, b),
        Width::W32 => u64::from(alu32(op, a as u32, b as u32)),
    }
}

fn alu64(op: AluOp, a: u64, b: u64) -> u64 {
    let (sa, sb) = (a as i64, b as i64);
    match op {
        AluOp::Add => a.wrapping_add(b),
        AluOp::Sub => a.wrapping_sub(b),
        AluOp::Mul => a.wrapping_mul(b),
        AluOp::Div => a.checked_div(b).unwrap_or(0),
        AluOp::SDiv if b == 0 => 0,
        AluOp::SDiv => sa.wrapping_div(sb) as u64,
        AluOp::Mod => a.checked_rem(b).unwrap_or(a),
        AluOp::SMod if b == 0 => a,
        AluOp::SMod => sa.wrapping_rem(sb) as u64,
        AluOp::Or => a | b,
        AluOp::And => a & b,
        AluOp::Xor => a ^ b,
        AluOp::Lsh => a << (b & 63),
        AluOp::Rsh => a >> (b & 63),
        AluOp::Arsh => (sa >> (b & 63)) as u64,
        AluOp::Mov => b,
    }
}

fn alu32(op: AluOp, a: u32, b: u32) -> u32 {
    let (sa, sb) = (a as i32, b as i32);
    match op {
        AluOp::Add => a.wrapping_add(b),
        AluOp::Sub => a.wrapping_sub(b),
        AluOp::Mul => a.wrapping_mul(b),
        AluOp::Div => a.checked_div(b).unwrap_or(0),
        AluOp::SDiv if b == 0 => 0,
        AluOp::SDiv => sa.wrapping_div(sb) as u32,
        AluOp::Mod => a.checked_rem(b).unwrap_or(a),
        AluOp::SMod if b == 0 => a,
        AluOp::SMod => sa.wrapping_rem(sb) as u32,
        AluOp::Or => a | b,
        AluOp::And => a & b,
        AluOp::Xor => a ^ b,
        AluOp::Lsh => a << (b & 31),
        AluOp::Rsh => a >> (b & 31),
        AluOp::Arsh => (sa >> (b & 31)) as u32,
        AluOp::Mov => b,
    }
}

fn byte_order(order: ByteOrder, size: Size, value: u64) -> u64 {
    let swapped = value.swap_bytes() >> (64 - size.bits());
    let kept = zero_extend(size, value);
    match order {
        ByteOrder::Swap => swapped,
        ByteOrder::Le if cfg!(target_endian = "little") => kept,
        ByteOrder::Be if cfg!(target_endian = "big") => kept,
        ByteOrder::Le | ByteOrder::Be => swapped,
    }
}

fn holds(cond: Cond, width: Width, a: u64, b: u64) -> bool {
    let (a, b) = match width {
        Width::W64 => (a, b),
        // Signed comparisons want the sign; the others come out the same with it.
        Width::W32 => (sign_extend(Size::W, a), sign_extend(Size::W, b)),
    };
    let (sa, sb) = (a as i64, b as i64);
    match cond {
        Cond::Eq => a == b,
        Cond::Ne => a != b,
        Cond::Gt => a > b,
        Cond::Ge => a >= b,
        Cond::Lt => a < b,
        Cond::Le => a <= b,
        Cond::Sgt => sa > sb,
        Cond::Sge => sa >= sb,
        Cond::Slt => sa < sb,
        Cond::Sle => sa <= sb,
        Cond::Set => a & b != 0,
    }
}

/// The register, the offset and the size of an access to memory.
fn place(op: Op) -> (BpfReg, i16, Size) {
    match op {
        Op::Load { size, src, off, .. } | Op::LoadAcquire { size, src, off, .. } => {
            (src, off, size)
        }
        Op::Store { size, dst, off, .. }
        | Op::Atomic { size, dst, off, .. }
        | Op::StoreRelease { size, dst, off, .. } => (dst, off, size),
        _ => unreachable!("{op:?} does not access memory"),
    }
}

/// Whether an access is atomic and its address no multiple of its size.
fn is_misaligned(op: Op, addr: u64) -> bool {
    match op {
        Op::Atomic { size, .. } | Op::LoadAcquire { size, .. } | Op::StoreRelease { size, .. } => {
            addr % u64::from(size.bytes()) != 0
        }
        _ => false,
    }
}

/// Does an access; what goes to the register that it writes, if it writes one.
///
/// # Safety
/// 1. It is sound, and aligned if it is atomic.
unsafe fn access(op: Op, regs: &[u64; 11], addr: u64) -> u64 {
    let get = |reg: BpfReg| regs[reg.index()];
    match op {
        Op::Load {
            size,
            extend,
            fault,
            ..
        } => {
            let value = match fault {
                // SAFETY: 1. caller's contract.
                Fault::Fatal => unsafe { load(size, addr) },
                Fault::Zero => probe(size, addr),
            };
            match extend {
                Extend::Zero => value,
                Extend::Sign => sign_extend(size, value),
            }
        }
        Op::Store { size, src, .. } => {
            let value = match src {
                Operand::Reg(reg) => get(reg),
                Operand::Imm(imm) => imm as i64 as u64,
            };
            // SAFETY: 1. caller's contract.
            unsafe { store(size, addr, value) };
            0
        }
        Op::Atomic { op, size, src, .. } => {
            let (value, r0) = (get(src), get(BpfReg::R0));
            // SAFETY: 1. caller's contract.
            unsafe { atomic(op, size, addr, value, r0) }
        }
        // SAFETY: 1. caller's contract.
        Op::LoadAcquire { size, .. } => unsafe { load_acquire(size, addr) },
        Op::StoreRelease { size, src, .. } => {
            // SAFETY: 1. caller's contract.
            unsafe { store_release(size, addr, get(src)) };
            0
        }
        _ => unreachable!("{op:?} does not access memory"),
    }
}

fn at<T>(addr: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(addr as usize)
}

/// # Safety
/// 1. `addr` can be read.
unsafe fn load(size: Size, addr: u64) -> u64 {
    match size {
        // SAFETY: 1. caller's contract.
        Size::B => u64::from(unsafe { at::<u8>(addr).read_volatile() }),
        // SAFETY: as above.
        Size::H => u64::from(unsafe { at::<u16>(addr).read_unaligned() }),
        // SAFETY: as above.
        Size::W => u64::from(unsafe { at::<u32>(addr).read_unaligned() }),
        // SAFETY: as above.
        Size::Dw => unsafe { at::<u64>(addr).read_unaligned() },
    }
}

/// Reads memory that may not be there, through the kernel.
fn probe(size: Size, addr: u64) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: 1. there is room for the largest size.
    unsafe { probe_read(bytes.as_mut_ptr(), size.bytes(), at(addr)) };
    u64::from_le_bytes(bytes)
}

/// # Safety
/// 1. `addr` can be written.
unsafe fn store(size: Size, addr: u64, value: u64) {
    match size {
        // SAFETY: 1. caller's contract.
        Size::B => unsafe { at::<u8>(addr).write_volatile(value as u8) },
        // SAFETY: as above.
        Size::H => unsafe { at::<u16>(addr).write_unaligned(value as u16) },
        // SAFETY: as above.
        Size::W => unsafe { at::<u32>(addr).write_unaligned(value as u32) },
        // SAFETY: as above.
        Size::Dw => unsafe { at::<u64>(addr).write_unaligned(value) },
    }
}

macro_rules! atomics {
    ($($size:ident: $atomic:ident $int:ident,)*) => {
        /// What was at `addr` before.
        ///
        /// # Safety
        /// 1. `addr` can be read and written, and is aligned to its size.
        unsafe fn atomic(op: AtomicOp, size: Size, addr: u64, value: u64, r0: u64) -> u64 {
            const ORDER: Ordering = Ordering::SeqCst;
            match size {$(
                Size::$size => {
                    // SAFETY: 1. caller's contract.
                    let cell = unsafe { $atomic::from_ptr(at(addr)) };
                    let value = value as $int;
                    u64::from(match op {
                        AtomicOp::Add(_) => cell.fetch_add(value, ORDER),
                        AtomicOp::Or(_) => cell.fetch_or(value, ORDER),
                        AtomicOp::And(_) => cell.fetch_and(value, ORDER),
                        AtomicOp::Xor(_) => cell.fetch_xor(value, ORDER),
                        AtomicOp::Xchg => cell.swap(value, ORDER),
                        AtomicOp::Cmpxchg => {
                            match cell.compare_exchange(r0 as $int, value, ORDER, ORDER) {
                                Ok(before) | Err(before) => before,
                            }
                        }
                    })
                }
            )*}
        }

        /// # Safety
        /// As [`atomic`].
        unsafe fn load_acquire(size: Size, addr: u64) -> u64 {
            match size {$(
                Size::$size => {
                    // SAFETY: 1. caller's contract.
                    let cell = unsafe { $atomic::from_ptr(at(addr)) };
                    u64::from(cell.load(Ordering::Acquire))
                }
            )*}
        }

        /// # Safety
        /// As [`atomic`].
        unsafe fn store_release(size: Size, addr: u64, value: u64) {
            match size {$(
                Size::$size => {
                    // SAFETY: 1. caller's contract.
                    let cell = unsafe { $atomic::from_ptr(at(addr)) };
                    cell.store(value as $int, Ordering::Release);
                }
            )*}
        }
    };
}

atomics! {
    B: AtomicU8 u8,
    H: AtomicU16 u16,
    W: AtomicU32 u32,
    Dw: AtomicU64 u64,
}
