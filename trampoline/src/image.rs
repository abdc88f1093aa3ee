//! Codegen: from a function's model and its programs to the words of an image.
//!
//! ```text
//!   site:  auipc t1 ; jr t1  ->  slot:  j image
//!
//!   entry     make the frame, save the argument slots, count in flight (CALL_ORIG only)
//!   phase 1   fentry and session programs in attach order, then fmod_ret programs
//!   to func   restore the arguments; without CALL_ORIG leave for the function,
//!             with it call the function
//!   phase 2   fexit and session programs
//!   leave     load the return value, count out, return to the function's caller
//!   then, out of line: slow paths of both phases, the way out of fmod_ret, bypass, the way out
//!             of exceptions, literals
//! ```
//!
//! A phase looks at the thread's guard first (see [`crate::guard`]); that no other thread may be
//! in an image when it is freed is argued in [`crate::life`]. No jump uses a link register but
//! for calls and returns, so the return-address predictor of a hart stays in step.
//!
//! Source: `__arch_prepare_bpf_trampoline` and `invoke_bpf_prog` in the kernel's
//! `arch/riscv/net/bpf_jit_comp64.c` for what an image does; psABI for the registers.

use rv64::Reg::{self, *};
use rv64::{Cond, Csr, FReg, Features, Label, Order, insn};
use symbols::{Landing, Unwind};
use text::RxAddr;

use crate::emit::Emit;
use crate::error::TrampError;
use crate::flags::TrampFlags;
use crate::frame::{Frame, FrameSlot, FrameSpec, FrameWith};
use crate::guard;
use crate::model::{FuncModel, Loc, Pass, Slot, StackArgs, Upper};
use crate::prog::{Needs, Prog, ProgKind, RetFrom, meta};
use crate::shadow;
use crate::slow::{Counts, Desc, DescCall, Phase, Verdict, run_slow};

/// The largest frame that one `addi` makes and whose slots all loads reach. Twice the stack
/// arguments of a function fit: over 100 words.
const MAX_FRAME_BYTES: u32 = 2032;

/// Everything that the words of an image depend on.
#[derive(Debug)]
pub(crate) struct ImageSpec<'a> {
    /// The hooked function.
    pub(crate) func: RxAddr,
    /// Where the function goes on behind its pad.
    pub(crate) resume: RxAddr,
    pub(crate) model: &'a FuncModel,
    /// The function finds something in `t2`.
    pub(crate) takes_chain: bool,
    /// In attach order.
    pub(crate) progs: &'a [Prog],
    /// Address of the image's in-flight counter lines.
    pub(crate) inflight: u64,
    /// Address of the image's descriptor.
    pub(crate) desc: u64,
    pub(crate) features: Features,
}

/// An image as bytes, and the places in it that are changed while it runs.
#[derive(Debug)]
pub(crate) struct ImageCode {
    pub(crate) bytes: Vec<u8>,
    /// Of each program that runs after the function: its index, the aligned word at which its
    /// block begins, and where to go on without it. Offsets in bytes.
    pub(crate) exits: Vec<ExitBlock>,
    /// How to get from its frame to the caller's.
    pub(crate) unwind: Unwind,
    /// The call of the function, if an exception out of it must be counted out.
    pub(crate) landing: Option<Landing>,
    /// Where the function returns to, in bytes; 0 if it returns to its caller.
    pub(crate) back_bytes: u32,
}

/// A block that one aligned store can skip. Kernel: `im->ip_after_call`, which skips all.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct ExitBlock {
    pub(crate) prog: usize,
    pub(crate) at_bytes: u32,
    pub(crate) next_bytes: u32,
}

impl ImageSpec<'_> {
    /// What this set of programs makes of the image.
    pub(crate) fn flags(&self) -> TrampFlags {
        let mut flags = TrampFlags::empty();
        let exit = self.progs.iter().any(Prog::runs_at_exit);
        if exit {
            flags |= TrampFlags::CALL_ORIG;
            if self.model.stack_args() == StackArgs::Unknown {
                flags |= TrampFlags::ORIG_STACK;
            }
        } else {
            flags |= TrampFlags::RESTORE_REGS;
        }
        if self.progs.iter().any(|p| p.wants(Needs::IP)) {
            flags |= TrampFlags::IP_ARG;
        }
        flags
    }

    /// The frame of the image.
    pub(crate) fn frame(&self) -> Frame {
        let flags = self.flags();
        let any = |need| self.progs.iter().any(|p| p.wants(need));
        let mut with = FrameWith::empty();
        with.set(FrameWith::META, any(Needs::META));
        with.set(FrameWith::IP, any(Needs::IP));
        with.set(FrameWith::ATTACH_COOKIE, any(Needs::COOKIE));
        let keep = any(Needs::PRESERVE);
        let two_phases = self.runs_in(Phase::Entry) && self.runs_in(Phase::Exit);
        with.set(FrameWith::FCSR_ERRNO, keep && !two_phases);
        with.set(FrameWith::SAVED_S1_S2, keep && two_phases);
        // An entry of a shadow stack has a place for it.
        let on_stack = !flags.contains(TrampFlags::ORIG_STACK);
        with.set(
            FrameWith::INFLIGHT,
            on_stack && flags.contains(TrampFlags::CALL_ORIG),
        );
        with.set(FrameWith::STATIC_CHAIN, self.keeps_static_chain());
        let stack_slots = match self.model.stack_args() {
            StackArgs::Known { slots } if flags.contains(TrampFlags::CALL_ORIG) => slots.into(),
            _ => 0,
        };
        let fmod = self
            .progs
            .iter()
            .any(|p| matches!(p.kind, ProgKind::FmodRet(_)));
        let returns = self.model.ret().slots().len().max(usize::from(fmod));
        Frame::new(&FrameSpec {
            arg_slots: self.model.nr_arg_slots(),
            ret_slots: if fmod || flags.contains(TrampFlags::CALL_ORIG) {
                returns
            } else {
                0
            },
            stack_slots,
            cookies: self.sessions().count(),
            with,
        })
    }

    fn runs_in(&self, phase: Phase) -> bool {
        self.progs.iter().any(|p| match phase {
            Phase::Entry => p.runs_at_entry(),
            Phase::Exit => p.runs_at_exit(),
        })
    }

    /// A nested function of GNU C gets its static chain in `t2`: one that has been seen to look there,
    /// and whatever an untyped hook may meet.
    fn keeps_static_chain(&self) -> bool {
        self.takes_chain || self.model.stack_args() == StackArgs::Unknown
    }

    fn sessions(&self) -> impl Iterator<Item = usize> {
        let is_session = |(_, p): &(usize, &Prog)| p.kind == ProgKind::Fsession;
        self.progs
            .iter()
            .enumerate()
            .filter(is_session)
            .map(|(i, _)| i)
    }

    /// How many words below the context the first session's cookie is.
    fn first_session(&self) -> u64 {
        3 + u64::from(self.progs.iter().any(|p| p.wants(Needs::COOKIE)))
    }

    /// Whether a program of this kind finds a return value: zero as long as nobody has given one,
    /// as in the kernel.
    fn has_ret(&self, kind: ProgKind) -> bool {
        match kind {
            ProgKind::Fentry => false,
            ProgKind::FmodRet(_) => true,
            ProgKind::Fexit | ProgKind::Fsession => !self.model.ret().slots().is_empty(),
        }
    }

    /// Whether a program that runs before the function looks at its return slot.
    fn shows_ret_at_entry(&self) -> bool {
        let looks = |p: &Prog| match p.kind {
            ProgKind::FmodRet(_) => true,
            ProgKind::Fsession => p.wants(Needs::RET) && self.has_ret(p.kind),
            _ => false,
        };
        self.progs.iter().any(looks)
    }

    /// The word at `ctx[-1]` for program `i` in `phase`, if it wants one.
    fn meta(&self, i: usize, phase: Phase) -> Option<u64> {
        let mut word = self.model.nr_arg_slots() as u64 & meta::SLOTS_MASK;
        if let Some(nth) = self.sessions().position(|s| s == i) {
            word |= (nth as u64 + self.first_session()) << meta::COOKIE_SHIFT;
            if phase == Phase::Exit {
                word |= meta::IS_RETURN;
            }
        }
        if self.progs[i].wants(Needs::RET) && !self.has_ret(self.progs[i].kind) {
            word |= meta::NO_RET;
        }
        self.progs[i].wants(Needs::META).then_some(word)
    }

    /// Programs of a phase, in the order in which they run.
    fn phase(&self, phase: Phase) -> Vec<usize> {
        let all = |f: &dyn Fn(&Prog) -> bool| {
            let hits = self.progs.iter().enumerate().filter(|(_, p)| f(p));
            hits.map(|(i, _)| i).collect::<Vec<_>>()
        };
        let is_fmod = |p: &Prog| matches!(p.kind, ProgKind::FmodRet(_));
        match phase {
            Phase::Entry => {
                let mut order = all(&|p| p.runs_at_entry() && !is_fmod(p));
                order.extend(all(&is_fmod));
                order
            }
            Phase::Exit => all(&Prog::runs_at_exit),
        }
    }

    /// The descriptor that the slow path reads.
    pub(crate) fn descriptor(&self) -> Desc {
        let calls = |phase| {
            let of = |i: &usize| DescCall::new(&self.progs[*i], self.meta(*i, phase));
            self.phase(phase).iter().map(of).collect()
        };
        Desc {
            func: self.func.get(),
            nr_arg_slots: self.model.nr_arg_slots(),
            entry: calls(Phase::Entry),
            exit: calls(Phase::Exit),
            inflight: self.inflight,
            counts: match self.flags() {
                flags if flags.contains(TrampFlags::CALL_ORIG) => Counts::Calls {
                    on_shadow: flags.contains(TrampFlags::ORIG_STACK),
                },
                _ => Counts::SlowPath,
            },
        }
    }

    /// Generates the image for the address `base`.
    #[cfg(all(test, not(target_arch = "riscv64")))]
    pub(crate) fn generate(&self, base: u64) -> Result<ImageCode, TrampError> {
        self.assemble()?.finish(base)
    }

    /// The image for a place that is not known yet.
    pub(crate) fn assemble(&self) -> Result<Assembled<'_>, TrampError> {
        let frame = self.frame();
        let limit = match self.flags().contains(TrampFlags::ORIG_STACK) {
            true => shadow::ENTRY_FRAME_BYTES,
            false => MAX_FRAME_BYTES,
        };
        if frame.size_bytes() > limit {
            let size_bytes = frame.size_bytes();
            return Err(TrampError::FrameTooLarge {
                func: self.func,
                size_bytes,
            });
        }
        let mut g = Gen::new(self, frame);
        g.image();
        let Gen {
            e,
            blocks,
            framed,
            call,
            ..
        } = g;
        Ok(Assembled {
            spec: self,
            e,
            blocks,
            framed,
            call,
        })
    }

    fn layout(&self, source: rv64::AsmError) -> TrampError {
        TrampError::Layout {
            func: self.func,
            source,
        }
    }
}

/// Labels that several parts of an image jump to.
#[derive(Debug)]
struct Labels {
    /// Start of the image.
    entry: Label,
    /// Behind phase 1.
    after_entry: Label,
    /// Behind the function: phase 2 and the way out.
    do_exit: Label,
    /// An fmod_ret program has put the return value into the return slots.
    skip_func: Label,
    /// The same, with the value still in `a0`.
    skip_func_value: Label,
    /// To the function, uncounted and unhooked.
    bypass: Label,
}

/// State of the generation of one image.
struct Gen<'a> {
    spec: &'a ImageSpec<'a>,
    frame: Frame,
    flags: TrampFlags,
    e: Emit,
    l: Labels,
    blocks: Vec<(usize, Label, Label)>,
    /// What holds from each mark of the code on.
    framed: Vec<Framed>,
    /// The call of the function, when there is one.
    call: Option<FuncCall>,
    /// Slow paths, generated behind the hot code.
    slow: Vec<SlowStub>,
    /// Where the slow path joins the way of an fmod_ret program that has decided: behind the
    /// guard, which the slow path has seen to itself.
    slow_skip: Option<Label>,
}

/// The call of the function, and where an exception out of it goes.
#[derive(Copy, Clone, Debug)]
struct FuncCall {
    from: Label,
    back: Label,
    landing: Label,
}

/// An image whose instructions are known, but not where it stands.
pub(crate) struct Assembled<'a> {
    spec: &'a ImageSpec<'a>,
    e: Emit,
    blocks: Vec<(usize, Label, Label)>,
    framed: Vec<Framed>,
    call: Option<FuncCall>,
}

impl Assembled<'_> {
    /// Its length at `base`, in bytes.
    pub(crate) fn size_at(&mut self, base: u64) -> Result<usize, TrampError> {
        let size = self.e.size_at(base);
        size.map_err(|source| self.spec.layout(source))
    }

    /// The image at `base`.
    pub(crate) fn finish(self, base: u64) -> Result<ImageCode, TrampError> {
        let Self {
            spec,
            e,
            blocks,
            framed,
            call,
        } = self;
        let code = e.finish(base).map_err(|source| spec.layout(source))?;
        let exits = blocks
            .iter()
            .map(|&(prog, at, next)| ExitBlock {
                prog,
                at_bytes: code.offset(at),
                next_bytes: code.offset(next),
            })
            .collect();
        let len = code.bytes.len() as u32;
        let rows = code.marks().iter().zip(framed);
        let rows = rows.map(|(off, framed)| spec.unwind_row(*off, framed));
        let unwind = Unwind {
            off: 0,
            len,
            rows: rows.filter(|row| row.off < len).collect(),
        };
        let landing = call.map(|call| Landing {
            off: code.offset(call.from),
            len: code.offset(call.back) - code.offset(call.from),
            to: code.offset(call.landing),
        });
        Ok(ImageCode {
            bytes: code.bytes,
            exits,
            unwind,
            landing,
            back_bytes: landing.map_or(0, |call| call.off + call.len),
        })
    }
}

/// A slow path that is still to be generated.
#[derive(Copy, Clone, Debug)]
struct SlowStub {
    phase: Phase,
    stub: Label,
    key: Label,
    go_on: Label,
}

fn arg_reg(n: u8) -> Reg {
    [A0, A1, A2, A3, A4, A5, A6, A7][n as usize & 7]
}

fn arg_freg(n: u8) -> FReg {
    use FReg::*;
    [Fa0, Fa1, Fa2, Fa3, Fa4, Fa5, Fa6, Fa7][n as usize & 7]
}

fn tls_off(field: i32) -> i64 {
    guard::thread_tp_off() + i64::from(field)
}

impl<'a> Gen<'a> {
    fn new(spec: &'a ImageSpec<'a>, frame: Frame) -> Self {
        let mut e = Emit::new(spec.features);
        let l = Labels {
            entry: e.new_label(),
            after_entry: e.new_label(),
            do_exit: e.new_label(),
            skip_func: e.new_label(),
            skip_func_value: e.new_label(),
            bypass: e.new_label(),
        };
        let flags = spec.flags();
        Gen {
            spec,
            frame,
            flags,
            e,
            l,
            blocks: Vec::new(),
            framed: Vec::new(),
            call: None,
            slow: Vec::new(),
            slow_skip: None,
        }
    }

    fn call_orig(&self) -> bool {
        self.flags.contains(TrampFlags::CALL_ORIG)
    }

    fn on_shadow(&self) -> bool {
        self.flags.contains(TrampFlags::ORIG_STACK)
    }

    /// Where a slot is, in bytes from [`Gen::base`].
    fn off(&self, slot: FrameSlot) -> i32 {
        self.based(self.frame.off(slot).unwrap_or_default())
    }

    /// The same for an offset in the frame.
    fn based(&self, off: u32) -> i32 {
        match self.on_shadow() {
            true => off as i32 - self.frame.size_bytes() as i32,
            false => off as i32,
        }
    }

    /// Where the context is, in bytes from [`Gen::base`].
    fn ctx(&self) -> i32 {
        self.based(self.frame.ctx())
    }

    fn has(&self, slot: FrameSlot) -> bool {
        self.frame.off(slot).is_some()
    }

    /// What an unwinder has to know from here on.
    fn framed(&mut self, framed: Framed) {
        self.e.mark();
        self.framed.push(framed);
    }

    /// The register that leads to the frame: its lowest address, or behind its end for a frame on
    /// the shadow stack, where `fp` always is. Callees keep both.
    fn base(&self) -> Reg {
        if self.on_shadow() { Fp } else { Sp }
    }

    fn image(&mut self) {
        self.e.bind(self.l.entry);
        self.enter();
        let fmod = self
            .spec
            .progs
            .iter()
            .any(|p| matches!(p.kind, ProgKind::FmodRet(_)));
        let entry = self.spec.phase(Phase::Entry);
        if !entry.is_empty() {
            if self.spec.shows_ret_at_entry() {
                let base = self.base();
                self.e.sd(Zero, base, self.off(FrameSlot::Retval));
            }
            self.run_phase(Phase::Entry, &entry);
            self.e.bind(self.l.after_entry);
            self.restore_fcsr_errno();
            self.restore_args();
        }
        if self.call_orig() {
            self.call_func();
            self.e.bind(self.l.do_exit);
            let exit = self.spec.phase(Phase::Exit);
            self.run_phase_at_exit(&exit);
            self.leave();
        } else {
            self.leave_for_func();
        }
        if fmod {
            self.skip_func();
        }
        self.slow_stubs();
        if !entry.is_empty() {
            self.bypass();
        }
        self.land();
        self.bind_unused(fmod, entry.is_empty());
    }

    /// Labels that this image does not use must still stand somewhere.
    fn bind_unused(&mut self, fmod: bool, no_entry: bool) {
        if !fmod {
            self.e.bind(self.l.skip_func);
            self.e.bind(self.l.skip_func_value);
        }
        if no_entry {
            self.e.bind(self.l.after_entry);
            self.e.bind(self.l.bypass);
        }
        if !self.call_orig() {
            self.e.bind(self.l.do_exit);
        }
    }

    /// Adds one to this thread's line of the in-flight counter, whose address is left in `at`.
    /// Changes `t3`.
    fn count_in(&mut self, at: Reg) {
        self.add_inflight(at, 1);
    }

    /// The way out for code that has no frame to load the line's address from. Changes `t1`,
    /// `t3`.
    fn count_out_from_literal(&mut self) {
        self.add_inflight(T1, -1);
    }

    fn add_inflight(&mut self, at: Reg, by: i64) {
        self.e.ld_lit(at, self.spec.inflight);
        self.e.ld_tls(T3, tls_off(guard::SHARD_OFF));
        self.e.add(at, at, T3);
        self.e.li(T3, by);
        self.e.insn(insn::amoadd_d(Zero, T3, at, Order::Relaxed));
    }

    /// Subtracts one again. Everything this call did in the image comes before it.
    fn count_out(&mut self) {
        let line = match self.on_shadow() {
            true => self.based(shadow::ENTRY_LINE_OFF as u32),
            false => self.off(FrameSlot::Inflight),
        };
        self.e.ld(T1, self.base(), line);
        self.e.li(T3, -1);
        self.e.insn(insn::amoadd_d(Zero, T3, T1, Order::Rl));
    }

    fn save_args(&mut self) {
        let (base, ctx) = (self.base(), self.ctx());
        let caller_sp = if self.on_shadow() { Sp } else { Fp };
        for (i, slot) in self.spec.model.slots().iter().enumerate() {
            let off = ctx + 8 * i as i32;
            match slot.loc {
                Loc::Int(n) => self.e.sd(arg_reg(n), base, off),
                Loc::Fp(n) => self.e.fsd(arg_freg(n), base, off),
                Loc::Stack(n) => {
                    self.e.ld(T1, caller_sp, 8 * i32::from(n));
                    self.e.sd(T1, base, off);
                }
            }
        }
    }

    /// Loads the argument registers again, and what else the function may look at.
    fn restore_args(&mut self) {
        let (base, ctx) = (self.base(), self.ctx());
        for (i, slot) in self.spec.model.slots().iter().enumerate() {
            let off = ctx + 8 * i as i32;
            match slot.loc {
                Loc::Int(n) => self.e.ld(arg_reg(n), base, off),
                Loc::Fp(n) => self.e.fld(arg_freg(n), base, off),
                Loc::Stack(_) => {}
            }
        }
        if self.has(FrameSlot::StaticChain) {
            self.e.ld(T2, base, self.off(FrameSlot::StaticChain));
        }
    }

    /// Before the programs of a phase. With two phases `s1` and `s2` keep the values: saving
    /// them once is cheaper than a store and a load for each phase.
    fn save_fcsr_errno(&mut self) {
        if self.has(FrameSlot::SavedS1S2) {
            self.e.insn(insn::csrr(S1, Csr::FCSR));
            self.e.lw_tls(S2, guard::errno_tp_off());
        } else if self.has(FrameSlot::FcsrErrno) {
            let (base, off) = (self.base(), self.off(FrameSlot::FcsrErrno));
            self.e.insn(insn::csrr(T3, Csr::FCSR));
            self.e.sw(T3, base, off);
            self.e.lw_tls(T3, guard::errno_tp_off());
            self.e.sw(T3, base, off + 4);
        }
    }

    /// After them.
    fn restore_fcsr_errno(&mut self) {
        if self.has(FrameSlot::SavedS1S2) {
            self.e.insn(insn::csrw(Csr::FCSR, S1));
            self.e.sw_tls(S2, guard::errno_tp_off());
        } else if self.has(FrameSlot::FcsrErrno) {
            let (base, off) = (self.base(), self.off(FrameSlot::FcsrErrno));
            self.e.lw(T3, base, off);
            self.e.insn(insn::csrw(Csr::FCSR, T3));
            self.e.lw(T3, base, off + 4);
            self.e.sw_tls(T3, guard::errno_tp_off());
        }
    }

    /// Guard, programs, guard. Ends where the next code follows.
    fn run_phase(&mut self, phase: Phase, progs: &[usize]) {
        self.save_fcsr_errno();
        let stub = SlowStub {
            phase,
            stub: self.e.new_label(),
            key: self.e.new_label(),
            go_on: if phase == Phase::Entry {
                self.l.after_entry
            } else {
                self.e.new_label()
            },
        };
        self.slow.push(stub);
        self.e.ld_tls(T1, tls_off(guard::GUARD_OFF));
        self.e.branch(Cond::Eq, T1, Tp, stub.key);
        self.e.jump(stub.stub);
        // What the key names, and what the first program needs, in reach of the key.
        let first = &self.spec.progs[progs[0]];
        self.e.align(8);
        self.e.data64(first.cookie.unwrap_or_default());
        self.e.data64(first.func as *const () as u64);
        self.e.data64(self.spec.desc);
        self.e.bind(stub.key);
        self.e.insn(insn::auipc(T1, rv64::SImm::ZERO));
        self.e.sd_tls(T1, tls_off(guard::GUARD_OFF));
        for (nth, &i) in progs.iter().enumerate() {
            self.run_prog(
                phase,
                i,
                if nth == 0 {
                    Literals::AtKey
                } else {
                    Literals::Behind
                },
            );
        }
        self.e.sd_tls(Tp, tls_off(guard::GUARD_OFF));
        if phase == Phase::Exit {
            self.e.bind(stub.go_on);
        }
    }

    fn run_phase_at_exit(&mut self, progs: &[usize]) {
        if !progs.is_empty() {
            self.run_phase(Phase::Exit, progs);
            self.restore_fcsr_errno();
        }
    }

    /// Calls one program. At exit its block begins with a word that can be replaced by a jump
    /// over it.
    fn run_prog(&mut self, phase: Phase, i: usize, literals: Literals) {
        let prog = &self.spec.progs[i];
        let next = self.e.new_label();
        if phase == Phase::Exit {
            let at = self.e.patch_point();
            self.blocks.push((i, at, next));
        }
        let (base, ctx) = (self.base(), self.ctx());
        self.e.addi(A0, base, ctx.into());
        if let Some(word) = self.spec.meta(i, phase) {
            self.e.li(T3, word as i64);
            self.e.sd(T3, base, ctx - 8);
        }
        if prog.needs.contains(Needs::STATS) {
            self.e.ld_lit(T4, prog.state.runs_addr());
            self.e.li(T3, 1);
            self.e.insn(insn::amoadd_d(Zero, T3, T4, Order::Relaxed));
        }
        self.load_prog(prog, literals);
        if prog.wants(Needs::COOKIE) {
            let cookie = if prog.cookie.is_some() { A1 } else { Zero };
            self.e.sd(cookie, base, self.off(FrameSlot::AttachCookie));
        }
        self.e.call_reg(Ra, T2);
        self.after_prog(prog);
        self.e.bind(next);
        if phase == Phase::Exit {}
    }

    /// The program's address to `t2`, its cookie to `a1`.
    fn load_prog(&mut self, prog: &Prog, literals: Literals) {
        match literals {
            Literals::AtKey => {
                self.e.insn(insn::ld(T2, T1, rv64::imm!(-16)));
                if prog.cookie.is_some() {
                    self.e.insn(insn::ld(A1, T1, rv64::imm!(-24)));
                }
            }
            Literals::Behind => {
                self.e.ld_lit(T2, prog.func as *const () as u64);
                if let Some(cookie) = prog.cookie {
                    self.e.ld_lit(A1, cookie);
                }
            }
        }
    }

    fn after_prog(&mut self, prog: &Prog) {
        if let ProgKind::FmodRet(from) = prog.kind {
            let to = match from {
                RetFrom::Value => self.l.skip_func_value,
                RetFrom::Slots => self.l.skip_func,
            };
            self.e.branch(Cond::Ne, A0, Zero, to);
        }
    }

    /// Calls the function with its arguments in place and takes its return value.
    fn call_func(&mut self) {
        if let (false, StackArgs::Known { slots }) =
            (self.on_shadow(), self.spec.model.stack_args())
        {
            for n in 0..i32::from(slots) {
                self.e.ld(T1, Fp, 8 * n);
                self.e.sd(T1, Sp, 8 * n);
            }
        }
        let from = self.e.here();
        self.e.call_abs(self.spec.resume.get(), Ra);
        self.call = Some(FuncCall {
            from,
            back: self.e.here(),
            landing: self.e.new_label(),
        });
        let base = self.base();
        let first = self.off(FrameSlot::Retval);
        if matches!(self.spec.model.ret().pass(), Pass::Reference { .. }) {
            // LLVM does not leave the address in `a0`; the hidden argument is it, and comes first.
            self.e.ld(A0, base, self.ctx());
        }
        for (i, slot) in self.spec.model.ret().slots().iter().enumerate() {
            let off = first + 8 * i as i32;
            match slot.loc {
                Loc::Int(n) => self.e.sd(arg_reg(n), base, off),
                Loc::Fp(n) => self.e.fsd(arg_freg(n), base, off),
                Loc::Stack(_) => {}
            }
        }
    }

    fn load_ret(&mut self) {
        let base = self.base();
        let first = self.off(FrameSlot::Retval);
        for (i, slot) in self.spec.model.ret().slots().iter().enumerate() {
            let off = first + 8 * i as i32;
            match slot.loc {
                Loc::Int(n) => self.e.ld(arg_reg(n), base, off),
                Loc::Fp(n) => self.e.fld(arg_freg(n), base, off),
                Loc::Stack(_) => {}
            }
        }
    }

    /// Returns to the function's caller with what the return slots hold.
    fn leave(&mut self) {
        if self.call_orig() {
            self.count_out();
        }
        self.load_ret();
        self.drop_frame();
        self.e.ret();
        self.framed(Framed::Saved);
    }

    /// Leaves the image for the function, which will return to its caller.
    fn leave_for_func(&mut self) {
        self.drop_frame();
        self.e.jump_abs(self.spec.resume.get(), T1);
        self.framed(Framed::Saved);
    }

    /// An fmod_ret program has decided: bring its value into the form of a return value.
    fn skip_func(&mut self) {
        self.e.bind(self.l.skip_func_value);
        let base = self.base();
        self.e.sd(A0, base, self.off(FrameSlot::Retval));
        self.e.bind(self.l.skip_func);
        self.e.sd_tls(Tp, tls_off(guard::GUARD_OFF));
        self.slow_skip = Some(self.e.here());
        self.restore_fcsr_errno();
        let first = self.off(FrameSlot::Retval);
        for (i, slot) in self.spec.model.ret().slots().to_vec().iter().enumerate() {
            self.extend_ret(slot, first + 8 * i as i32);
        }
        if self.call_orig() {
            self.e.jump(self.l.do_exit);
        } else {
            self.load_ret();
            self.drop_frame();
            self.e.ret();
            self.framed(Framed::Saved);
        }
    }

    /// What psABI wants above a return value that is narrower than its register.
    fn extend_ret(&mut self, slot: &Slot, off: i32) {
        let base = self.base();
        let imm = rv64::SImm::new(off.into()).unwrap_or(rv64::SImm::ZERO);
        let load = match (slot.upper, slot.size_bytes) {
            (Upper::Sign, 4) => insn::lw(T3, base, imm),
            (Upper::Sign, 2) => insn::lh(T3, base, imm),
            (Upper::Sign, 1) => insn::lb(T3, base, imm),
            (Upper::Zero, 4) => insn::lwu(T3, base, imm),
            (Upper::Zero, 2) => insn::lhu(T3, base, imm),
            (Upper::Zero, 1) => insn::lbu(T3, base, imm),
            (Upper::NanBox, size_bytes) => {
                self.e.li(T3, -1);
                if size_bytes == 2 {
                    self.e.sh(T3, base, off + 2);
                }
                self.e.sw(T3, base, off + 4);
                return;
            }
            _ => return,
        };
        self.e.insn(load);
        self.e.sd(T3, base, off);
    }

    /// Out of line: what an image does when the guard is not idle.
    fn slow_stubs(&mut self) {
        for stub in std::mem::take(&mut self.slow) {
            self.e.bind(stub.stub);
            // An image that calls the function is counted already.
            if !self.call_orig() {
                self.count_in(T1);
            }
            let (base, ctx) = (self.base(), self.ctx());
            self.e.addi(A2, base, ctx.into());
            self.e.addi(A3, Sp, 0);
            self.e.la(A0, stub.key);
            self.e.li(A1, stub.phase as i64);
            self.e.ld_lit(T2, run_slow as *const () as u64);
            self.e.call_reg(Ra, T2);
            if !self.call_orig() {
                self.count_out_from_literal();
            }
            self.e.branch(Cond::Eq, A0, Zero, stub.go_on);
            if stub.phase == Phase::Entry {
                if let Some(skip) = self.slow_skip {
                    self.e.li(T1, Verdict::SkipFunc as i64);
                    self.e.branch(Cond::Eq, A0, T1, skip);
                }
                self.e.jump(self.l.bypass);
            } else {
                self.e.jump(stub.go_on);
            }
        }
    }

    /// Out of line: to the function as if there were no hook.
    fn bypass(&mut self) {
        self.e.bind(self.l.bypass);
        self.restore_fcsr_errno();
        self.restore_args();
        if self.call_orig() {
            self.count_out();
        }
        self.leave_for_func();
    }
}

/// Where a program's address and cookie stand.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Literals {
    /// Before the key, whose address `t1` still holds.
    AtKey,
    /// Behind the code.
    Behind,
}

mod frames;

use frames::Framed;

// Listings are those of the host's thread-local offsets.
#[cfg(all(test, not(target_arch = "riscv64")))]
mod tests;
