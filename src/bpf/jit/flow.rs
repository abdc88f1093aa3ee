//! Branches, calls, exits.
//!
//! Source: RFC 9669, section 4.3; RISC-V psABI, "Integer Calling Convention".

use rv64::{
    Cond as RvCond, Reg, UImm, add, addi, and, andi, bexti, imm, jr, ld, lw, mv, sd, sh3add, slli,
    uimm,
};

use super::super::env::{Control, Fill, Import};
use super::super::insn::BpfReg;
use super::super::op::{Callee, Cond, Operand, Size, Width};
use super::super::program::target;
use super::super::regs::bit;
use super::facts::Form;
use super::frame::small;
use super::{Emit, TMP, TMP2, TMP3, imm12, record};

impl Emit<'_> {
    /// The label that a jump from `at` goes to; the verifier has seen that there is one.
    fn target(&mut self, at: usize, off: i32) -> rv64::Label {
        let to = target(at, off) as usize;
        match self.labels.insns[to] {
            Some(label) => label,
            None => self.asm.new_label(),
        }
    }

    pub(super) fn jump(&mut self, at: usize, off: i32) {
        // To the next instruction.
        if off == 0 {
            return;
        }
        let label = self.target(at, off);
        self.asm.jump(label);
    }

    pub(super) fn jump_reg(&mut self, dst: BpfReg) {
        let mut rs = self.rs(dst, TMP);
        if self.features().zicfilp {
            // A jump through t2 wants no landing pad.
            self.emit(mv(TMP3, rs));
            rs = TMP3;
        }
        self.emit(jr(rs));
    }

    pub(super) fn may_goto(&mut self, at: usize, off: i16) {
        let place = small(self.frame.loops_off());
        let label = self.target(at, off.into());
        self.emit(ld(TMP, Reg::Sp, place));
        self.asm.beqz(TMP, label);
        self.emit(addi(TMP, TMP, imm!(-1)));
        self.emit(sd(TMP, Reg::Sp, place));
    }

    pub(super) fn branch(
        &mut self,
        at: usize,
        cond: Cond,
        width: Width,
        (dst, src): (BpfReg, Operand),
        off: i16,
    ) {
        let label = self.target(at, off.into());
        self.ready(dst, src);
        if cond == Cond::Set {
            return self.branch_if_set(width, dst, src, label);
        }
        let (a, b) = match width {
            Width::W64 => (self.rs(dst, TMP), self.operand(src, TMP2)),
            Width::W32 => self.halves(cond, dst, src),
        };
        let (cond, a, b) = match cond {
            Cond::Eq => (RvCond::Eq, a, b),
            Cond::Ne | Cond::Set => (RvCond::Ne, a, b),
            Cond::Gt => (RvCond::Ltu, b, a),
            Cond::Ge => (RvCond::Geu, a, b),
            Cond::Lt => (RvCond::Ltu, a, b),
            Cond::Le => (RvCond::Geu, b, a),
            Cond::Sgt => (RvCond::Lt, b, a),
            Cond::Sge => (RvCond::Ge, a, b),
            Cond::Slt => (RvCond::Lt, a, b),
            Cond::Sle => (RvCond::Ge, b, a),
        };
        self.asm.branch(cond, a, b, label);
    }

    fn form(&self, src: Operand) -> Form {
        match src {
            // Half a pointer.
            Operand::Reg(BpfReg::R10) => Form::default(),
            Operand::Reg(reg) => self.forms.of(reg),
            Operand::Imm(imm) => Form::of(imm.into()),
        }
    }

    /// Registers that compare as the lower halves do: both with their signs, which keeps the order
    /// of unsigned numbers too; or both with zeros, if signs do not matter.
    fn halves(&mut self, cond: Cond, dst: BpfReg, src: Operand) -> (Reg, Reg) {
        let signed = matches!(cond, Cond::Sgt | Cond::Sge | Cond::Slt | Cond::Sle);
        let (fa, fb) = (self.form(Operand::Reg(dst)), self.form(src));
        let (a, b) = (self.rs(dst, TMP), self.operand(src, TMP2));
        if !signed && fa.zero && fb.zero {
            return (a, b);
        }
        (self.signed(a, fa.sign, TMP), self.signed(b, fb.sign, TMP2))
    }

    fn branch_if_set(&mut self, width: Width, dst: BpfReg, src: Operand, label: rv64::Label) {
        let a = self.rs(dst, TMP);
        if let (Operand::Imm(value), false) = (src, self.is_blinded()) {
            if let Some(small) = imm12(value.into()) {
                self.emit(andi(TMP, a, small));
                return self.branch_if_any(width, (dst, src), label);
            }
            if value.count_ones() == 1 && value > 0 {
                let bit = value.trailing_zeros();
                if let (true, Some(at)) = (self.features().zbs, UImm::new(bit.into())) {
                    self.emit(bexti(TMP, a, at));
                    return self.asm.bnez(TMP, label);
                }
                // Up to the sign.
                let up = UImm::new(i64::from(63 - bit)).unwrap_or(uimm!(0));
                self.emit(slli(TMP, a, up));
                return self.asm.branch(RvCond::Lt, TMP, Reg::Zero, label);
            }
        }
        let b = self.operand(src, TMP2);
        self.emit(and(TMP, a, b));
        self.branch_if_any(width, (dst, src), label);
    }

    /// If any bit of `TMP` is set, which holds `dst & src`.
    fn branch_if_any(&mut self, width: Width, (dst, src): (BpfReg, Operand), label: rv64::Label) {
        let (a, b) = (self.form(Operand::Reg(dst)), self.form(src));
        let as_it_is = width == Width::W64 || a.zero || b.zero || (a.sign && b.sign);
        let test = self.signed(TMP, as_it_is, TMP);
        self.asm.bnez(test, label);
    }

    pub(super) fn exit(&mut self) {
        let result = self.later(BpfReg::R0);
        self.make(Reg::A0, result);
        self.frame.epilogue(self.asm);
    }

    pub(super) fn call(&mut self, at: usize, callee: Callee) {
        if let Some(control) = self.env.control(callee) {
            return self.control(at, control);
        }
        if let Callee::Local(off) = callee {
            let label = self.labels.funcs[target(at, off) as usize];
            if let Some(label) = label {
                self.asm.jal(Reg::Ra, label);
            }
            return self.emit(mv(Reg::A5, Reg::A0));
        }
        // `compile` has seen that it is there.
        if let Some(import) = self.env.import(callee).copied() {
            match import.inline {
                Some(inline) => self.inline(inline),
                None => self.call_host(&import),
            }
        }
    }

    fn control(&mut self, at: usize, control: Control) {
        match control {
            Control::Throw => record::throw(self.asm),
            Control::TailCall => self.tail_call(at),
            Control::Loop => {
                self.asm.jal(Reg::Ra, self.routines.loop_);
                self.emit(mv(Reg::A5, Reg::A0));
            }
        }
    }

    /// Argument registers that are not set are zero in the program that it goes on in. Kernel:
    /// `emit_bpf_tail_call`.
    fn tail_call(&mut self, at: usize) {
        let none = self.asm.new_label();
        let (array, index) = (self.rd(BpfReg::R2), self.rd(BpfReg::R3));
        // Both with their signs: that keeps the order of unsigned numbers, and what is below a
        // length has none.
        self.emit(lw(TMP, array, imm!(0)));
        let index = self.signed(index, self.forms.of(BpfReg::R3).sign, TMP2);
        self.asm.branch(RvCond::Geu, index, TMP, none);
        if self.features().zba {
            self.emit(sh3add(TMP3, index, array));
        } else {
            self.emit(slli(TMP3, index, uimm!(3)));
            self.emit(add(TMP3, TMP3, array));
        }
        // Jumps through `t2` want no landing pad.
        self.emit(ld(TMP3, TMP3, imm!(8)));
        self.asm.beqz(TMP3, none);
        record::load_tail_calls(self.asm, TMP2, none);
        record::store_tail_calls(self.asm, TMP2);
        self.frame.leave(self.asm);
        let unset = self.program.unset_args(at);
        for reg in BpfReg::ALL.into_iter().filter(|r| unset & bit(*r) != 0) {
            self.asm.li(self.frame.reg(reg), 0);
        }
        self.emit(jr(TMP3));
        self.asm.bind(none);
        self.asm.li(Reg::A5, -i64::from(libc::EINVAL));
    }

    fn call_host(&mut self, import: &Import) {
        for (fill, reg) in import.args.into_iter().zip(&BpfReg::ALL[1..6]) {
            let (rd, form) = (self.rd(*reg), self.forms.of(*reg));
            match fill {
                Fill::Zeros(Size::B) => self.zext_b(rd, rd),
                Fill::Zeros(Size::H) => self.zext_h(rd, rd),
                Fill::Sign(Size::B) => self.sext_b(rd, rd),
                Fill::Sign(Size::H) => self.sext_h(rd, rd),
                Fill::Sign(Size::W) => {
                    self.signed(rd, form.sign, rd);
                }
                Fill::Whole | Fill::Zeros(_) | Fill::Sign(Size::Dw) => {}
            }
        }
        self.asm.call_abs(import.addr, Reg::Ra, Reg::Ra);
        // Results come extended; 32 bits have their sign, whatever the type.
        match import.ret {
            Fill::Zeros(Size::W) if self.is_upper_live(BpfReg::R0) => {
                self.zext_w(Reg::A5, Reg::A0);
            }
            _ => self.mv(Reg::A5, Reg::A0),
        }
    }
}
