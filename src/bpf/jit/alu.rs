//! Arithmetic.
//!
//! Source: RFC 9669, section 4.1; Unprivileged ISA, "M" (division by zero), "Zicond".

use rv64::{
    Cond, Insn, Reg, SImm, UImm, add, add_uw, addi, addiw, addw, and, andi, bclri, binvi, bseti,
    czero_eqz, div, divu, divuw, divw, imm, mul, mulw, neg, or, ori, rem, remu, remuw, remw, rev8,
    rori, roriw, sext_b, sext_h, sext_w, sh1add, sh1add_uw, sh2add, sh2add_uw, sh3add, sh3add_uw,
    sll, slli, slliw, sllw, snez, sra, srai, sraiw, sraw, srl, srli, srliw, srlw, sub, subw, uimm,
    xor, xori, zext_h,
};

use super::super::insn::BpfReg;
use super::super::op::{AluOp, ByteOrder, Imm64, Operand, Size, Width};
use super::super::program::target;
use super::facts::{Form, alu_form};
use super::later::{Bits, Later};
use super::{Emit, TMP, TMP2, imm12};

type RType = fn(Reg, Reg, Reg) -> Insn;

/// Additions of what is shifted to the left by 0 to 3: of all bits, and of the lower half.
const SHIFT_ADDS: [[Option<RType>; 2]; 4] = [
    [None, Some(add_uw)],
    [Some(sh1add), Some(sh1add_uw)],
    [Some(sh2add), Some(sh2add_uw)],
    [Some(sh3add), Some(sh3add_uw)],
];

impl Emit<'_> {
    pub(super) fn alu(&mut self, op: AluOp, width: Width, dst: BpfReg, src: Operand) {
        let native = self.native(op, width, dst, src);
        if op == AluOp::Mov {
            return self.mov(width, dst, src);
        }
        if let Operand::Reg(src) = src {
            if self.fused(op, width, dst, src) {
                return self.extend(width, dst, native);
            }
        }
        // What it reads is found before a register changes.
        self.ready(dst, src);
        let rs = match src {
            Operand::Reg(reg) => Some((self.rs(reg, TMP), reg)),
            Operand::Imm(_) => None,
        };
        let a = self.source(dst);
        self.target_of(dst);
        match (src, rs) {
            (Operand::Imm(imm), _) => self.alu_imm(op, width, (dst, a), imm),
            (_, Some((rs, reg))) => self.alu_reg(op, width, (dst, a), (rs, Some(reg))),
            _ => {}
        }
        self.extend(width, dst, native);
    }

    /// Two operations in one instruction: a shift and an addition, or two shifts that are a rotation.
    /// Whether it was so.
    fn fused(&mut self, op: AluOp, width: Width, dst: BpfReg, src: BpfReg) -> bool {
        if src == BpfReg::R10 {
            return false;
        }
        let scaled = match (op, width) {
            (AluOp::Add, Width::W64) if self.features().zba => self.scaled(dst, src),
            _ => None,
        };
        let insn = scaled.or_else(|| match op {
            AluOp::Add | AluOp::Or | AluOp::Xor if self.features().zbb => {
                self.rotation(width, dst, src)
            }
            _ => None,
        });
        let Some(insn) = insn else { return false };
        self.target_of(dst);
        self.emit(insn);
        true
    }

    fn scaled(&mut self, dst: BpfReg, src: BpfReg) -> Option<Insn> {
        let rd = self.rd(dst);
        let scale = |later| match later {
            Later::Shl(bits, rs, by @ 0..=3) => Some((SHIFT_ADDS[by as usize][bits as usize]?, rs)),
            _ => None,
        };
        // The other one is made first: that may make both.
        for (scaled, other) in [(src, dst), (dst, src)] {
            if scale(self.later(scaled)).is_some() && scaled != other {
                let other = self.source(other);
                let (insn, rs) = scale(self.later(scaled))?;
                return Some(insn(rd, rs, other));
            }
        }
        None
    }

    fn rotation(&self, width: Width, dst: BpfReg, src: BpfReg) -> Option<Insn> {
        let (rd, a, b) = (self.rd(dst), self.later(dst), self.later(src));
        match (width, a, b) {
            (Width::W64, Later::Shl(Bits::All, rs, up), Later::Shr(also, down))
            | (Width::W64, Later::Shr(also, down), Later::Shl(Bits::All, rs, up))
                if rs == also && up + down == 64 =>
            {
                Some(rori(rd, rs, UImm::new(down.into())?))
            }
            (Width::W32, Later::ShlW(rs, up), Later::ShrW(also, down))
            | (Width::W32, Later::ShrW(also, down), Later::ShlW(rs, up))
                if rs == also && up + down == 32 =>
            {
                Some(roriw(rd, rs, UImm::new(down.into())?))
            }
            _ => None,
        }
    }

    fn native(&self, op: AluOp, width: Width, dst: BpfReg, src: Operand) -> Form {
        let b = match src {
            Operand::Reg(reg) => self.forms.of(reg),
            Operand::Imm(imm) => Form::of(imm.into()),
        };
        alu_form(op, width, self.forms.of(dst), b, src)
    }

    /// A 32-bit result is given zeros, if somebody looks and they are not there.
    fn extend(&mut self, width: Width, dst: BpfReg, native: Form) {
        if width == Width::W32 && self.is_upper_live(dst) && !native.zero {
            self.zext_later(dst);
        }
    }

    /// What cannot be left for later: the lower half of `r10`, and constants that are hidden.
    fn mov(&mut self, width: Width, dst: BpfReg, src: Operand) {
        let rd = self.target_of(dst);
        match src {
            Operand::Imm(imm) if width == Width::W32 && self.is_upper_live(dst) => {
                self.constant_w(rd, imm);
            }
            Operand::Imm(imm) => self.constant(rd, imm.into()),
            Operand::Reg(reg) => {
                self.rs(reg, rd);
                self.extend(width, dst, Form::default());
            }
        }
    }

    /// With a register, of which `bpf` says whose value it is.
    fn alu_reg(
        &mut self,
        op: AluOp,
        width: Width,
        (dst, a): (BpfReg, Reg),
        (rs, bpf): (Reg, Option<BpfReg>),
    ) {
        let rd = self.rd(dst);
        let insn: RType = match (op, width) {
            (AluOp::Add, Width::W64) => add,
            (AluOp::Add, Width::W32) => addw,
            (AluOp::Sub, Width::W64) => sub,
            (AluOp::Sub, Width::W32) => subw,
            (AluOp::Mul, Width::W64) => mul,
            (AluOp::Mul, Width::W32) => mulw,
            (AluOp::And, _) => and,
            (AluOp::Or, _) => or,
            (AluOp::Xor, _) => xor,
            (AluOp::Lsh, Width::W64) => sll,
            (AluOp::Lsh, Width::W32) => sllw,
            (AluOp::Rsh, Width::W64) => srl,
            (AluOp::Rsh, Width::W32) => srlw,
            (AluOp::Arsh, Width::W64) => sra,
            (AluOp::Arsh, Width::W32) => sraw,
            // By zero RV64 leaves the dividend, as BPF does.
            (AluOp::Mod, Width::W64) => remu,
            (AluOp::Mod, Width::W32) => remuw,
            (AluOp::SMod, Width::W64) => rem,
            (AluOp::SMod, Width::W32) => remw,
            (AluOp::Div, Width::W64) => return self.div(divu, width, (dst, a), rs, bpf),
            (AluOp::Div, Width::W32) => return self.div(divuw, width, (dst, a), rs, bpf),
            (AluOp::SDiv, Width::W64) => return self.div(div, width, (dst, a), rs, bpf),
            (AluOp::SDiv, Width::W32) => return self.div(divw, width, (dst, a), rs, bpf),
            (AluOp::Mov, _) => return self.mv(rd, rs),
        };
        self.emit(insn(rd, a, rs));
    }

    /// By zero RV64 gives all ones, BPF zero.
    fn div(
        &mut self,
        insn: RType,
        width: Width,
        (dst, a): (BpfReg, Reg),
        rs: Reg,
        bpf: Option<BpfReg>,
    ) {
        let rd = self.rd(dst);
        // A constant, which is not zero.
        let Some(bpf) = bpf else {
            return self.emit(insn(rd, a, rs));
        };
        // What is compared with zero must be as wide as what is divided by.
        let form = self.forms.of(bpf);
        let test = match width {
            Width::W32 => self.signed(rs, form.sign || form.zero, TMP2),
            Width::W64 => rs,
        };
        if test == a {
            // x / x
            self.emit(snez(rd, a));
        } else if self.features().zicond {
            self.emit(insn(rd, a, rs));
            self.emit(czero_eqz(rd, rd, test));
        } else if rs == a {
            // x / x again, in 32 bits.
            self.emit(snez(rd, test));
        } else {
            let done = self.asm.new_label();
            self.emit(insn(rd, a, rs));
            self.asm.branch(Cond::Ne, test, Reg::Zero, done);
            self.asm.li(rd, 0);
            self.asm.bind(done);
        }
    }

    fn alu_imm(&mut self, op: AluOp, width: Width, (dst, a): (BpfReg, Reg), value: i32) {
        let rd = self.rd(dst);
        if !self.hides(op, value) && self.alu_short(op, width, (rd, a), value) {
            return;
        }
        let rs = self.constant_reg(value.into(), TMP);
        self.alu_reg(op, width, (dst, a), (rs, None));
    }

    /// The operations with a constant that need no register for it; whether this is one.
    fn alu_short(&mut self, op: AluOp, width: Width, (rd, a): (Reg, Reg), value: i32) -> bool {
        let small = imm12(value.into());
        let w32 = width == Width::W32;
        match op {
            AluOp::Add => match small {
                Some(SImm::ZERO) if !w32 => self.mv(rd, a),
                Some(small) if w32 => self.emit(addiw(rd, a, small)),
                Some(small) => self.emit(addi(rd, a, small)),
                None => return false,
            },
            AluOp::Sub => {
                return imm12(-i64::from(value)).is_some()
                    && self.alu_short(AluOp::Add, width, (rd, a), -value);
            }
            AluOp::And => return self.and_imm((rd, a), value),
            AluOp::Or => match small {
                Some(SImm::ZERO) => self.mv(rd, a),
                Some(small) => self.emit(ori(rd, a, small)),
                None => return self.single_bit(value, |bit| bseti(rd, a, bit)),
            },
            AluOp::Xor => match small {
                Some(SImm::ZERO) => self.mv(rd, a),
                Some(small) => self.emit(xori(rd, a, small)),
                None => return self.single_bit(value, |bit| binvi(rd, a, bit)),
            },
            AluOp::Lsh | AluOp::Rsh | AluOp::Arsh => self.shift(op, width, (rd, a), value),
            AluOp::Mul => return self.mul_imm(width, (rd, a), value),
            AluOp::Div | AluOp::SDiv => return self.div_imm(op, width, (rd, a), value),
            AluOp::Mod | AluOp::SMod => return self.mod_imm(op, width, (rd, a), value),
            AluOp::Mov => return false,
        }
        true
    }

    /// One instruction for a constant of one bit, which is a positive number.
    fn single_bit(&mut self, value: i32, insn: impl Fn(UImm<6>) -> Insn) -> bool {
        let bit = UImm::new(value.trailing_zeros().into());
        match bit {
            Some(bit) if self.features().zbs && value > 0 && value & (value - 1) == 0 => {
                self.emit(insn(bit));
                true
            }
            _ => false,
        }
    }

    fn and_imm(&mut self, (rd, a): (Reg, Reg), value: i32) -> bool {
        if let Some(small) = imm12(value.into()) {
            self.emit(andi(rd, a, small));
            return true;
        }
        if value == 0xffff && self.features().zbb {
            self.emit(zext_h(rd, a));
            return true;
        }
        // The lowest bits alone: shifted out and in again.
        if value > 0 && value & value.wrapping_add(1) == 0 {
            let by = UImm::new(i64::from(64 - value.trailing_ones()));
            if let Some(by) = by {
                self.emit(slli(rd, a, by));
                self.emit(srli(rd, rd, by));
                return true;
            }
        }
        // All bits but one, which is not the sign.
        let cleared = !value;
        cleared > 0 && self.single_bit(cleared, |bit| bclri(rd, a, bit))
    }

    fn shift(&mut self, op: AluOp, width: Width, (rd, a): (Reg, Reg), value: i32) {
        match width {
            Width::W32 => {
                let by = UImm::new(i64::from(value & 31)).unwrap_or(uimm!(0));
                self.emit(match op {
                    AluOp::Lsh => slliw(rd, a, by),
                    AluOp::Rsh => srliw(rd, a, by),
                    _ => sraiw(rd, a, by),
                });
            }
            Width::W64 => {
                let by = UImm::new(i64::from(value & 63)).unwrap_or(uimm!(0));
                match by.get() {
                    0 => self.mv(rd, a),
                    _ => self.emit(match op {
                        AluOp::Lsh => slli(rd, a, by),
                        AluOp::Rsh => srli(rd, a, by),
                        _ => srai(rd, a, by),
                    }),
                }
            }
        }
    }

    fn mul_imm(&mut self, width: Width, (rd, a): (Reg, Reg), value: i32) -> bool {
        let w32 = width == Width::W32;
        match value {
            0 => self.asm.li(rd, 0),
            1 if w32 => self.emit(sext_w(rd, a)),
            1 => self.mv(rd, a),
            -1 if w32 => self.emit(subw(rd, Reg::Zero, a)),
            -1 => self.emit(neg(rd, a)),
            3 | 5 | 9 if !w32 && self.features().zba => self.emit(match value {
                3 => sh1add(rd, a, a),
                5 => sh2add(rd, a, a),
                _ => sh3add(rd, a, a),
            }),
            // A power of two; of 32 bits also the sign bit.
            _ if value.count_ones() == 1 && (w32 || value > 0) => {
                self.shift(AluOp::Lsh, width, (rd, a), value.trailing_zeros() as i32);
            }
            _ => return false,
        }
        true
    }

    fn div_imm(&mut self, op: AluOp, width: Width, (rd, a): (Reg, Reg), value: i32) -> bool {
        let w32 = width == Width::W32;
        match value {
            0 => self.asm.li(rd, 0),
            1 if w32 => self.emit(sext_w(rd, a)),
            1 => self.mv(rd, a),
            -1 if op == AluOp::SDiv && w32 => self.emit(subw(rd, Reg::Zero, a)),
            -1 if op == AluOp::SDiv => self.emit(neg(rd, a)),
            _ if op == AluOp::Div && value > 0 && value.count_ones() == 1 => {
                self.shift(AluOp::Rsh, width, (rd, a), value.trailing_zeros() as i32);
            }
            _ => return false,
        }
        true
    }

    fn mod_imm(&mut self, op: AluOp, width: Width, (rd, a): (Reg, Reg), value: i32) -> bool {
        let w32 = width == Width::W32;
        match value {
            0 if w32 => self.emit(sext_w(rd, a)),
            0 => self.mv(rd, a),
            1 => self.asm.li(rd, 0),
            -1 if op == AluOp::SMod => self.asm.li(rd, 0),
            _ if op == AluOp::Mod && value > 0 && value.count_ones() == 1 => {
                return self.and_imm((rd, a), value - 1);
            }
            _ => return false,
        }
        true
    }

    pub(super) fn neg(&mut self, width: Width, dst: BpfReg) {
        let rd = self.rd(dst);
        match width {
            Width::W64 => self.emit(neg(rd, rd)),
            Width::W32 => self.emit(subw(rd, Reg::Zero, rd)),
        }
        self.extend(width, dst, Form::default());
    }

    pub(super) fn movsx(&mut self, width: Width, size: Size, dst: BpfReg, src: BpfReg) {
        let (rd, rs) = (self.rd(dst), self.rs(src, TMP));
        match size {
            Size::B => self.sext_b(rd, rs),
            Size::H => self.sext_h(rd, rs),
            Size::W | Size::Dw if self.forms.of(src).sign => self.mv(rd, rs),
            Size::W | Size::Dw => self.emit(sext_w(rd, rs)),
        }
        self.extend(width, dst, Form::default());
    }

    pub(super) fn sext_b(&mut self, rd: Reg, rs: Reg) {
        if self.features().zbb {
            return self.emit(sext_b(rd, rs));
        }
        self.emit(slli(rd, rs, uimm!(56)));
        self.emit(srai(rd, rd, uimm!(56)));
    }

    pub(super) fn sext_h(&mut self, rd: Reg, rs: Reg) {
        if self.features().zbb {
            return self.emit(sext_h(rd, rs));
        }
        self.emit(slli(rd, rs, uimm!(48)));
        self.emit(srai(rd, rd, uimm!(48)));
    }

    pub(super) fn zext_h(&mut self, rd: Reg, rs: Reg) {
        if self.features().zbb {
            return self.emit(zext_h(rd, rs));
        }
        self.emit(slli(rd, rs, uimm!(48)));
        self.emit(srli(rd, rd, uimm!(48)));
    }

    pub(super) fn zext_b(&mut self, rd: Reg, rs: Reg) {
        self.emit(andi(rd, rs, imm!(0xff)));
    }

    pub(super) fn end(&mut self, order: ByteOrder, size: Size, dst: BpfReg) {
        let rd = self.rd(dst);
        // RV64 is little-endian.
        if order == ByteOrder::Le {
            match size {
                Size::B | Size::Dw => {}
                Size::H => self.zext_h(rd, rd),
                Size::W => self.extend(Width::W32, dst, self.forms.of(dst)),
            }
            return;
        }
        if self.features().zbb {
            self.emit(rev8(rd, rd));
            let by = UImm::new(i64::from(64 - size.bits()));
            if let Some(by) = by.filter(|by| by.get() != 0) {
                self.emit(srli(rd, rd, by));
            }
            return;
        }
        self.swap_bytes(rd, size);
    }

    /// Byte by byte, from the lowest on, into a temporary.
    fn swap_bytes(&mut self, rd: Reg, size: Size) {
        self.asm.li(TMP, 0);
        for byte in 0..size.bytes() {
            if byte > 0 {
                self.emit(slli(TMP, TMP, uimm!(8)));
                self.emit(srli(rd, rd, uimm!(8)));
            }
            self.emit(andi(TMP2, rd, imm!(0xff)));
            self.emit(or(TMP, TMP, TMP2));
        }
        self.emit(rv64::mv(rd, TMP));
    }

    /// What cannot be left for later: functions, and constants that are hidden.
    pub(super) fn ld_imm64(&mut self, at: usize, dst: BpfReg, imm: Imm64) {
        let rd = self.rd(dst);
        if let Imm64::Func(off) = imm {
            if let Some(label) = self.routines.callback(target(at, off) as usize) {
                self.asm.la(rd, label);
            }
            return;
        }
        self.constant(rd, self.address_of(imm));
    }

    /// What a constant stands for; `compile` has seen that it is there.
    pub(super) fn address_of(&self, imm: Imm64) -> i64 {
        let outside = || self.env.address(imm).unwrap_or_default();
        self.tables.address(imm).unwrap_or_else(outside) as i64
    }
}
