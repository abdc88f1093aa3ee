//! Helpers that are a few instructions, in place of the call.
//!
//! The registers that a call spoils are spoilt for the program all the same; a function whose only
//! calls are these is a leaf. Contexts are drawn in [`crate::raw`].
//!
//! Neighbours: `helpers` says which they are; `frame` and `facts` know that nobody is called.
//! Source: kernel `kernel/bpf/verifier.c` (`bpf_do_misc_fixups`, which does this before its JITs
//! see a program).

use rv64::{Cond, Reg, SImm, UImm, add, andi, imm, ld, lw, lwu, sd, sh3add, slli, uimm};
use trampoline::meta;

use super::super::env::Inline;
use super::super::insn::BpfReg::{self, R0, R1, R2, R3};
use super::super::op::{AluOp, Op, Operand};
use super::super::regs::bit;
use super::frame::small;
use super::{Emit, TMP, TMP2, imm12};

/// `ctx[-1]`, `ctx[-2]` and `ctx[-3]`.
const META: SImm<12> = imm!(-8);
const IP: SImm<12> = imm!(-16);
const COOKIE: SImm<12> = imm!(-24);

const SLOTS_MASK: SImm<12> = imm!(0xff);
/// From `meta::NO_RET` to the sign.
const TO_SIGN: UImm<6> = uimm!(1);
const _: () = assert!(meta::SLOTS_MASK == 0xff && meta::NO_RET << 1 == 1 << 63);

/// What the second argument holds, where it is a constant.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Second(Option<i32>);

impl Second {
    /// After an instruction.
    pub(super) fn step(&mut self, op: Op) {
        match op {
            Op::Alu {
                op: AluOp::Mov,
                dst: R2,
                src: Operand::Imm(value),
                ..
            } => self.0 = Some(value),
            Op::Call(_) => self.0 = None,
            _ if op.written() & bit(R2) != 0 => self.0 = None,
            _ => {}
        }
    }
}

impl Emit<'_> {
    pub(super) fn inline(&mut self, inline: Inline) {
        let (r0, ctx) = (self.rd(R0), self.rd(R1));
        match inline {
            Inline::FuncIp => self.emit(ld(r0, ctx, IP)),
            Inline::AttachCookie => self.emit(ld(r0, ctx, COOKIE)),
            Inline::FuncArgCnt => {
                self.emit(ld(r0, ctx, META));
                self.emit(andi(r0, r0, SLOTS_MASK));
            }
            Inline::FuncArg => self.func_arg(ctx),
            Inline::FuncRet => self.func_ret(ctx),
            Inline::ProcessorId { tp_off } => self.processor_id(tp_off.into()),
        }
    }

    /// `*r3 = ctx[r2]`, if there is such a slot.
    fn func_arg(&mut self, ctx: Reg) {
        let (r0, value) = (self.rd(R0), self.rd(R3));
        let done = self.asm.new_label();
        self.emit(ld(TMP, ctx, META));
        self.emit(andi(TMP, TMP, SLOTS_MASK));
        // Either form of 32 bits: what is not small is large.
        let form = self.forms.of(R2);
        let n = self.signed(self.rd(R2), form.sign || form.zero, TMP2);
        self.asm.li(r0, -i64::from(libc::EINVAL));
        self.asm.branch(Cond::Geu, n, TMP, done);
        match self.second.0 {
            // The number of slots has eight bits.
            Some(n @ 0..=0xff) if !self.is_blinded() => {
                self.emit(ld(TMP, ctx, small(8 * i64::from(n))));
            }
            _ => {
                self.slot(n, ctx);
                self.emit(ld(TMP, TMP, SImm::ZERO));
            }
        }
        self.emit(sd(TMP, value, SImm::ZERO));
        self.asm.li(r0, 0);
        self.asm.bind(done);
    }

    /// `*r2` = the slot behind the arguments, if it holds something.
    fn func_ret(&mut self, ctx: Reg) {
        let (r0, value) = (self.rd(R0), self.rd(R2));
        let done = self.asm.new_label();
        self.emit(ld(TMP, ctx, META));
        self.asm.li(r0, -i64::from(libc::EOPNOTSUPP));
        self.emit(slli(TMP2, TMP, TO_SIGN));
        self.asm.branch(Cond::Lt, TMP2, Reg::Zero, done);
        self.emit(andi(TMP, TMP, SLOTS_MASK));
        self.slot(TMP, ctx);
        self.emit(ld(TMP, TMP, SImm::ZERO));
        self.emit(sd(TMP, value, SImm::ZERO));
        self.asm.li(r0, 0);
        self.asm.bind(done);
    }

    /// `TMP` = the address of slot `n`.
    fn slot(&mut self, n: Reg, ctx: Reg) {
        if self.features().zba {
            return self.emit(sh3add(TMP, n, ctx));
        }
        self.emit(slli(TMP, n, uimm!(3)));
        self.emit(add(TMP, TMP, ctx));
    }

    fn processor_id(&mut self, tp_off: i64) {
        let load = match self.is_upper_live(BpfReg::R0) {
            true => lwu,
            false => lw,
        };
        let r0 = self.rd(R0);
        if let Some(off) = imm12(tp_off) {
            return self.emit(load(r0, Reg::Tp, off));
        }
        let low = ((tp_off & 0xfff) ^ 0x800) - 0x800;
        self.asm.li(TMP, tp_off - low);
        self.emit(add(TMP, TMP, Reg::Tp));
        self.emit(load(r0, TMP, small(low)));
    }
}
