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

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::env::Env;
use super::error::{Reason, Refusal, Stop};
use super::helpers::probe_read;
use super::insn::BpfReg;
use super::op::{
    AluOp, AtomicOp, ByteOrder, Callee, Cond, Extend, Fault, Imm64, Op, Operand, Size, Width,
};
use super::program::{MAX_STACK_BYTES, Program, target};

/// How often a `may_goto` goes on before it leaves. Kernel: `BPF_MAX_LOOPS`.
pub(crate) const MAX_LOOPS: u64 = 8 << 20;

/// A program with what it refers to, to be interpreted.
#[derive(Debug)]
pub struct Interpreter<'a> {
    program: &'a Program,
    env: &'a Env,
}

/// One function that has been called and has not returned.
struct Frame {
    regs: [u64; 11],
    /// The instruction to go on with.
    at: usize,
    /// `may_goto` has so many loops left.
    loops_left: u64,
    _stack: Box<[u64; MAX_STACK_BYTES as usize / 8]>,
}

impl Frame {
    fn new(at: usize, args: &[u64]) -> Self {
        let mut stack = Box::new([0; MAX_STACK_BYTES as usize / 8]);
        let mut regs = [0; 11];
        regs[1..=args.len()].copy_from_slice(args);
        regs[BpfReg::R10.index()] = stack.as_mut_ptr_range().end as u64;
        Self {
            regs,
            at,
            loops_left: MAX_LOOPS,
            _stack: stack,
        }
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
        for (insn, op) in program.ops().iter().enumerate() {
            let Some(op) = op else { continue };
            check_import(*op, env).map_err(|reason| Refusal { insn, reason })?;
        }
        Ok(Self { program, env })
    }

    /// Runs it with `r1` to `r5`, at most `budget` instructions; gives `r0`.
    ///
    /// # Errors
    /// [`Stop::Budget`].
    ///
    /// # Safety
    /// 1. The program's loads, stores and calls, with these arguments, are sound.
    pub unsafe fn run(&self, args: [u64; 5], budget: u64) -> Result<u64, Stop> {
        let mut frames = vec![Frame::new(0, &args)];
        let mut left = budget;
        while let Some(mut frame) = frames.pop() {
            loop {
                let at = frame.at;
                if left == 0 {
                    return Err(Stop::Budget { insn: at, budget });
                }
                left -= 1;
                let Some(op) = self.program.ops()[at] else {
                    unreachable!("the verifier keeps paths on whole instructions");
                };
                frame.at += op.len_insns();
                match op {
                    Op::Exit => {
                        let r0 = frame.regs[0];
                        match frames.last_mut() {
                            Some(caller) => caller.regs[0] = r0,
                            None => return Ok(r0),
                        }
                        break;
                    }
                    Op::Call(Callee::Local(off)) => {
                        let callee = Frame::new(target(at, off) as usize, &frame.regs[1..6]);
                        frames.push(frame);
                        frames.push(callee);
                        break;
                    }
                    // SAFETY: 1. caller's contract.
                    _ => unsafe { self.step(&mut frame, at, op) },
                }
            }
        }
        unreachable!("the last frame returns")
    }

    /// # Safety
    /// 1. The instruction's access or call is sound.
    unsafe fn step(&self, frame: &mut Frame, at: usize, op: Op) {
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
            Op::AddrSpaceCast { .. } => unreachable!("the verifier refuses it"),
            Op::LdImm64 { dst, imm } => {
                // `new` has seen that it is there.
                frame.regs[dst.index()] = self.env.address(imm).unwrap_or_default();
            }
            Op::Load {
                size,
                extend,
                fault,
                dst,
                src,
                off,
            } => {
                let addr = frame.regs[src.index()].wrapping_add_signed(off.into());
                let value = match fault {
                    // SAFETY: 1. caller's contract.
                    Fault::Fatal => unsafe { load(size, addr) },
                    Fault::Zero => probe(size, addr),
                };
                frame.regs[dst.index()] = match extend {
                    Extend::Zero => value,
                    Extend::Sign => sign_extend(size, value),
                };
            }
            Op::Store {
                size,
                dst,
                off,
                src,
            } => {
                let addr = frame.regs[dst.index()].wrapping_add_signed(off.into());
                // SAFETY: 1. caller's contract.
                unsafe { store(size, addr, frame.get(src)) };
            }
            Op::Atomic {
                op,
                size,
                dst,
                off,
                src,
            } => {
                let addr = frame.regs[dst.index()].wrapping_add_signed(off.into());
                let (value, r0) = (frame.regs[src.index()], frame.regs[0]);
                // SAFETY: 1. caller's contract.
                let before = unsafe { atomic(op, size, addr, value, r0) };
                if let Some(reg) = op.result(src) {
                    frame.regs[reg.index()] = before;
                }
            }
            Op::LoadAcquire {
                size,
                dst,
                src,
                off,
            } => {
                let addr = frame.regs[src.index()].wrapping_add_signed(off.into());
                // SAFETY: 1. caller's contract.
                frame.regs[dst.index()] = unsafe { load_acquire(size, addr) };
            }
            Op::StoreRelease {
                size,
                dst,
                off,
                src,
            } => {
                let addr = frame.regs[dst.index()].wrapping_add_signed(off.into());
                // SAFETY: 1. caller's contract.
                unsafe { store_release(size, addr, frame.regs[src.index()]) };
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
            // SAFETY: 1. caller's contract.
            Op::Call(callee) => unsafe { self.call(frame, callee) },
            Op::Exit => unreachable!("`run` returns"),
        }
    }

    /// # Safety
    /// 1. The function may be called with what the registers hold.
    unsafe fn call(&self, frame: &mut Frame, callee: Callee) {
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

/// Whether `env` has what an instruction refers to.
pub(crate) fn check_import(op: Op, env: &Env) -> Result<(), Reason> {
    match op {
        Op::Call(Callee::Helper(super::env::TAIL_CALL)) => {
            Err(Reason::Unsupported { what: "tail_call" })
        }
        Op::Call(callee) if env.import(callee).is_none() => match callee {
            Callee::Helper(id) => Err(Reason::NoHelper { id }),
            Callee::Host { id, .. } => Err(Reason::NoHostFunction { id }),
            Callee::Local(_) => Ok(()),
        },
        Op::LdImm64 {
            imm: Imm64::Func(_),
            ..
        } => Err(Reason::Unsupported {
            what: "the address of a function",
        }),
        Op::LdImm64 { imm, .. } => match env.address(imm) {
            Ok(_) => Ok(()),
            Err((what, id)) => Err(Reason::NoObject { what, id }),
        },
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
