//! Loads, stores, atomics, casts of address spaces.
//!
//! An instruction that accesses memory is emitted by [`Emit::access`], which notes it where it may
//! fault. What it brings is 0 then and what follows in the same BPF instruction is left out, so a
//! register that it writes is changed last, or to what nobody sees.
//!
//! Atomics of 8 and 16 bits without Zabha work on the aligned word around them. A misaligned atomic
//! access is left out, and what it would bring is 0. Machines differ there (a trap, an emulation, or
//! with Zama16b the access itself), so the code tests the address wherever its alignment is not
//! known: two instructions. Orders are those of the C++ mapping: what fetches is sequentially
//! consistent, the rest is not ordered.
//!
//! Source: RFC 9669, section 5; Unprivileged ISA, "A", "Zabha", "Zacas", and appendix A.5 (the
//! mapping of C/C++ atomics); kernel `Documentation/bpf/standardization/instruction-set.rst`.

use rv64::{
    Cond, FenceSet, Insn, Label, Order, Reg, SImm, add, add_uw, addi, amoadd_b, amoadd_d, amoadd_h,
    amoadd_w, amoand_b, amoand_d, amoand_h, amoand_w, amocas_b, amocas_d, amocas_h, amocas_w,
    amoor_b, amoor_d, amoor_h, amoor_w, amoswap_b, amoswap_d, amoswap_h, amoswap_w, amoxor_b,
    amoxor_d, amoxor_h, amoxor_w, and, andi, fence, imm, lb, lbu, ld, lh, lhu, lr_d, lr_w, lw, lwu,
    mv, or, sb, sc_d, sc_w, sd, sh, sll, slli, srl, srli, sw, uimm, xor,
};

use super::super::insn::BpfReg;
use super::super::op::{AtomicOp, Extend, Fault, Fetch, Operand, Size};
use super::frame::small;
use super::later::Later;
use super::{Emit, ProbeLabels, Space, TMP, TMP2, TMP3, TMP4, imm12};

type Amo = fn(Reg, Reg, Reg, Order) -> Insn;

impl Emit<'_> {
    /// A register and an offset for an address; what does not fit comes into `TMP`.
    fn address(&mut self, (base, off): (BpfReg, i16)) -> (Reg, SImm<12>) {
        let off = i64::from(off);
        if self.space == Space::Process && base == BpfReg::R10 {
            let off = off + self.frame.r10();
            if let Some(off) = imm12(off) {
                return (Reg::Sp, off);
            }
        }
        if let Some(place) = self.near(base, off) {
            return place;
        }
        let rs = match self.space {
            Space::Process => self.rs(base, TMP),
            Space::Arena => self.arena_address(base),
        };
        if let Some(off) = imm12(off) {
            return (rs, off);
        }
        let low = ((off & 0xfff) ^ 0x800) - 0x800;
        self.asm.li(TMP2, off - low);
        self.emit(add(TMP, TMP2, rs));
        (TMP, small(low))
    }

    /// `TMP`, with the address of the lower half of `base` in the arena.
    fn arena_address(&mut self, base: BpfReg) -> Reg {
        let rs = self.rs(base, TMP2);
        let has_zeros = base != BpfReg::R10 && self.forms.of(base).zero;
        let (rs, add): (Reg, fn(Reg, Reg, Reg) -> Insn) = if has_zeros {
            (rs, add)
        } else if self.features().zba {
            (rs, add_uw)
        } else {
            self.zext_w(TMP2, rs);
            (TMP2, add)
        };
        self.asm.li(TMP, self.arena_base());
        self.emit(add(TMP, rs, TMP));
        TMP
    }

    /// Where the arena is; `compile` has seen that there is one.
    fn arena_base(&self) -> i64 {
        let arena = self.env.arena_of_programs();
        arena.map_or(0, |arena| arena.base() as i64)
    }

    /// `dst` = the address of the lower half of `src` in the arena, in whichever address space; null
    /// stays null.
    pub(super) fn cast(&mut self, dst: BpfReg, src: BpfReg) {
        let (rd, rs) = (self.rd(dst), self.rs(src, TMP));
        match src != BpfReg::R10 && self.forms.of(src).zero {
            true => self.mv(rd, rs),
            false => self.zext_w(rd, rs),
        }
        let null = self.asm.new_label();
        self.asm.beqz(rd, null);
        self.asm.li(TMP, self.arena_base());
        self.emit(add(rd, rd, TMP));
        self.asm.bind(null);
    }

    /// An instruction that accesses memory, noted as one that may fault if it is.
    fn access(&mut self, insn: Insn) {
        if self.fault == Fault::Zero {
            let (at, rd) = (self.asm.here(), Reg::Zero);
            // Where it goes on is known when all of the BPF instruction is there.
            self.probes.push(ProbeLabels { at, next: at, rd });
        }
        self.emit(insn);
    }

    /// A register and an offset for an address that has not been made and need not be.
    fn near(&self, base: BpfReg, off: i64) -> Option<(Reg, SImm<12>)> {
        match self.later(base) {
            _ if base == BpfReg::R10 || self.space == Space::Arena => None,
            Later::Plus(rs, before) => Some((rs, imm12(before.get() + off)?)),
            Later::Const(value) => self.pool.near(value.wrapping_add(off)),
            _ => None,
        }
    }

    /// A register that holds an address.
    fn whole_address(&mut self, place: (BpfReg, i16)) -> Reg {
        let (rs, off) = self.address(place);
        if off == SImm::ZERO {
            return rs;
        }
        self.emit(addi(TMP, rs, off));
        TMP
    }

    pub(super) fn load(&mut self, size: Size, extend: Extend, dst: BpfReg, place: (BpfReg, i16)) {
        let (rs, off) = self.address(place);
        let (insn, rd) = (self.load_insn(size, extend, dst), self.target_of(dst));
        self.access(insn(rd, rs, off));
    }

    fn load_insn(&self, size: Size, extend: Extend, dst: BpfReg) -> fn(Reg, Reg, SImm<12>) -> Insn {
        match (size, extend) {
            (Size::B, Extend::Zero) => lbu,
            (Size::H, Extend::Zero) => lhu,
            // With the sign there are compressed forms.
            (Size::W, Extend::Zero) if self.is_upper_live(dst) => lwu,
            (Size::W, _) => lw,
            (Size::B, Extend::Sign) => lb,
            (Size::H, Extend::Sign) => lh,
            (Size::Dw, _) => ld,
        }
    }

    pub(super) fn store(&mut self, size: Size, place: (BpfReg, i16), src: Operand) {
        if let Operand::Reg(reg) = src {
            self.ready(reg, src);
        }
        let (rs1, off) = self.address(place);
        let rs2 = self.operand(src, TMP2);
        self.access(store_insn(size)(rs2, rs1, off));
    }

    pub(super) fn load_acquire(&mut self, size: Size, dst: BpfReg, place: (BpfReg, i16)) {
        let (rs, off) = self.address(place);
        let end = self.skip_misaligned(size, place, (rs, off), Some(dst));
        let (insn, rd) = (self.load_insn(size, Extend::Zero, dst), self.target_of(dst));
        self.access(insn(rd, rs, off));
        self.emit(fence(FenceSet::R, FenceSet::RW));
        self.asm.bind(end);
    }

    pub(super) fn store_release(&mut self, size: Size, place: (BpfReg, i16), src: BpfReg) {
        let (rs1, off) = self.address(place);
        let rs2 = self.rs(src, TMP2);
        let end = self.skip_misaligned(size, place, (rs1, off), None);
        self.emit(fence(FenceSet::RW, FenceSet::W));
        self.access(store_insn(size)(rs2, rs1, off));
        self.asm.bind(end);
    }

    /// Goes to the label that it gives, with 0 in what the access `brings`, if the address is not a
    /// multiple of its size. The operands are in their registers; `addr` is what `place` became.
    fn skip_misaligned(
        &mut self,
        size: Size,
        place: (BpfReg, i16),
        addr: (Reg, SImm<12>),
        brings: Option<BpfReg>,
    ) -> Label {
        let end = self.asm.new_label();
        let bytes = i64::from(size.bytes());
        let in_frame = self.space == Space::Process && place.0 == BpfReg::R10;
        // `r10` is a multiple of 8: see `frame`.
        if size == Size::B || (in_frame && i64::from(place.1) % bytes == 0) {
            return end;
        }
        let (mut rs, off) = addr;
        if off.get() % bytes != 0 {
            self.emit(addi(FAILED, rs, off));
            rs = FAILED;
        }
        self.emit(andi(FAILED, rs, small(bytes - 1)));
        match brings {
            None => self.asm.bnez(FAILED, end),
            Some(reg) => {
                let aligned = self.asm.new_label();
                self.asm.beqz(FAILED, aligned);
                self.asm.li(self.frame.reg(reg), 0);
                self.asm.jump(end);
                self.asm.bind(aligned);
            }
        }
        end
    }

    pub(super) fn atomic(&mut self, op: AtomicOp, size: Size, place: (BpfReg, i16), src: BpfReg) {
        let addr = self.whole_address(place);
        // A pointer into the stack may be stored.
        let value = self.rs(src, TMP2);
        let end = self.skip_misaligned(size, place, (addr, SImm::ZERO), op.result(src));
        let narrow = matches!(size, Size::B | Size::H);
        match op {
            AtomicOp::Cmpxchg => self.cmpxchg(size, addr, value),
            _ if narrow && !self.features().zabha => self.narrow(op, size, addr, value, src),
            _ => {
                let (amo, fetch) = amo(op, size);
                let (rd, order) = match fetch {
                    Fetch::Yes => (self.rd(src), Order::AqRl),
                    Fetch::No => (Reg::Zero, Order::Relaxed),
                };
                self.access(amo(rd, value, addr, order));
                if fetch == Fetch::Yes {
                    self.fetched(size, src);
                }
            }
        }
        self.asm.bind(end);
    }

    /// What an atomic instruction has brought, with its sign, is extended.
    fn fetched(&mut self, size: Size, reg: BpfReg) {
        let rd = self.rd(reg);
        match size {
            Size::B => self.zext_b(rd, rd),
            Size::H => self.zext_h(rd, rd),
            Size::W if self.is_upper_live(reg) => self.zext_w(rd, rd),
            Size::W | Size::Dw => {}
        }
    }

    fn cmpxchg(&mut self, size: Size, addr: Reg, value: Reg) {
        let r0 = self.rd(BpfReg::R0);
        let features = self.features();
        match size {
            Size::B | Size::H if !(features.zacas && features.zabha) => {
                return self.narrow_cmpxchg(size, addr, value);
            }
            _ if features.zacas => {
                let cas = match size {
                    Size::B => amocas_b,
                    Size::H => amocas_h,
                    Size::W => amocas_w,
                    Size::Dw => amocas_d,
                };
                self.access(cas(r0, value, addr, Order::AqRl));
            }
            _ => {
                let wide = size == Size::Dw;
                let (lr, sc): (fn(Reg, Reg, Order) -> Insn, Amo) = match wide {
                    true => (lr_d, sc_d),
                    false => (lr_w, sc_w),
                };
                let expected = match wide {
                    true => r0,
                    false => self.signed(r0, self.forms.of(BpfReg::R0).sign, TMP4),
                };
                let (again, done) = (self.asm.here(), self.asm.new_label());
                self.access(lr(TMP3, addr, Order::AqRl));
                self.asm.branch(Cond::Ne, TMP3, expected, done);
                // The value's temporary is free if it is not in one; addr may be TMP.
                self.access(sc(FAILED, value, addr, Order::Rl));
                self.asm.bnez(FAILED, again);
                self.asm.bind(done);
                self.emit(mv(r0, TMP3));
            }
        }
        self.fetched(size, BpfReg::R0);
    }

    /// An operation on 8 or 16 bits, by the word around them.
    fn narrow(&mut self, op: AtomicOp, size: Size, addr: Reg, value: Reg, src: BpfReg) {
        let fetch = amo(op, size).1;
        let order = match fetch {
            Fetch::Yes => (Order::AqRl, Order::Rl),
            Fetch::No => (Order::Relaxed, Order::Relaxed),
        };
        // TMP: the word's address. TMP3: how far up it the value is. TMP2: the value there, zeros
        // around it. TMP4: the word.
        self.narrow_value(size, value);
        self.narrow_place(addr);
        self.emit(sll(TMP2, TMP2, TMP3));
        let again = self.asm.here();
        self.access(lr_w(TMP4, TMP, order.0));
        match op {
            AtomicOp::Add(_) => {
                self.emit(add(FAILED, TMP4, TMP2));
                self.merge(size);
            }
            AtomicOp::Xchg => {
                self.emit(mv(FAILED, TMP2));
                self.merge(size);
            }
            AtomicOp::Or(_) => self.emit(or(FAILED, TMP4, TMP2)),
            AtomicOp::Xor(_) => self.emit(xor(FAILED, TMP4, TMP2)),
            AtomicOp::And(_) | AtomicOp::Cmpxchg => {
                self.emit(and(FAILED, TMP4, TMP2));
                self.merge(size);
            }
        }
        self.access(sc_w(FAILED, FAILED, TMP, order.1));
        self.asm.bnez(FAILED, again);
        if fetch == Fetch::Yes {
            let rd = self.rd(src);
            self.emit(srl(rd, TMP4, TMP3));
            self.fetched(size, src);
        }
    }

    /// `FAILED` = `TMP4` with the field of `FAILED`.
    fn merge(&mut self, size: Size) {
        self.emit(xor(FAILED, FAILED, TMP4));
        // The field alone, by shifting it down, cutting, and up again.
        self.emit(srl(FAILED, FAILED, TMP3));
        self.cut(size);
        self.emit(sll(FAILED, FAILED, TMP3));
        self.emit(xor(FAILED, FAILED, TMP4));
    }

    /// `FAILED`, cut. Between `lr` and `sc` stand at most 16 instructions of base I, so that the loop
    /// ends (Zalrsc, "Eventual Success of Store-Conditional Instructions").
    fn cut(&mut self, size: Size) {
        match size {
            Size::B => self.zext_b(FAILED, FAILED),
            _ => {
                self.emit(slli(FAILED, FAILED, uimm!(48)));
                self.emit(srli(FAILED, FAILED, uimm!(48)));
            }
        }
    }

    /// `TMP2` = the value, cut.
    fn narrow_value(&mut self, size: Size, value: Reg) {
        match size {
            Size::B => self.zext_b(TMP2, value),
            _ => self.zext_h(TMP2, value),
        }
    }

    /// `TMP` = the word around `addr`, `TMP3` = how many bits up the value is.
    fn narrow_place(&mut self, addr: Reg) {
        self.emit(andi(TMP3, addr, imm!(3)));
        self.emit(slli(TMP3, TMP3, uimm!(3)));
        self.emit(andi(TMP, addr, imm!(-4)));
    }

    fn narrow_cmpxchg(&mut self, size: Size, addr: Reg, value: Reg) {
        let r0 = self.rd(BpfReg::R0);
        self.narrow_value(size, value);
        self.narrow_place(addr);
        match size {
            Size::B => self.zext_b(r0, r0),
            _ => self.zext_h(r0, r0),
        }
        let (again, done) = (self.asm.here(), self.asm.new_label());
        self.access(lr_w(TMP4, TMP, Order::AqRl));
        self.emit(srl(FAILED, TMP4, TMP3));
        self.cut(size);
        self.asm.branch(Cond::Ne, FAILED, r0, done);
        self.emit(sll(FAILED, TMP2, TMP3));
        self.merge(size);
        self.access(sc_w(FAILED, FAILED, TMP, Order::Rl));
        self.asm.bnez(FAILED, again);
        self.asm.bind(done);
        self.emit(srl(r0, TMP4, TMP3));
        self.fetched(size, BpfReg::R0);
    }
}

/// Whether a conditional store failed. Far jumps, which use the same register, are none here.
const FAILED: Reg = super::FAR;

fn store_insn(size: Size) -> fn(Reg, Reg, SImm<12>) -> Insn {
    match size {
        Size::B => sb,
        Size::H => sh,
        Size::W => sw,
        Size::Dw => sd,
    }
}

/// The instruction of an operation, and whether it brings what was there.
fn amo(op: AtomicOp, size: Size) -> (Amo, Fetch) {
    let pick = |b: Amo, h: Amo, w: Amo, d: Amo| match size {
        Size::B => b,
        Size::H => h,
        Size::W => w,
        Size::Dw => d,
    };
    match op {
        AtomicOp::Add(fetch) => (pick(amoadd_b, amoadd_h, amoadd_w, amoadd_d), fetch),
        AtomicOp::Or(fetch) => (pick(amoor_b, amoor_h, amoor_w, amoor_d), fetch),
        AtomicOp::And(fetch) => (pick(amoand_b, amoand_h, amoand_w, amoand_d), fetch),
        AtomicOp::Xor(fetch) => (pick(amoxor_b, amoxor_h, amoxor_w, amoxor_d), fetch),
        AtomicOp::Xchg | AtomicOp::Cmpxchg => {
            (pick(amoswap_b, amoswap_h, amoswap_w, amoswap_d), Fetch::Yes)
        }
    }
}
