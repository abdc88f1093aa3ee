//! The assembler as codegen uses it: byte offsets checked, thread-local words, literals.
//!
//! Neighbours: [`rv64::Asm`] below, [`crate::image`] above. Registers used behind the caller's
//! back: `t5`, when a thread-local offset does not fit an instruction.

use rv64::Reg::{self, T5, Tp, Zero};
use rv64::{Asm, AsmError, Code, Cond, FReg, Features, Insn, Label, SImm, insn};

/// An offset in a frame, or a constant of this crate.
///
/// # Panics
/// When it does not fit: frames are checked against [`MAX_FRAME_BYTES`] before code is generated.
///
/// [`MAX_FRAME_BYTES`]: crate::image
fn imm12(value: i64) -> SImm<12> {
    SImm::new(value).expect("frames are small enough for 12-bit offsets")
}

/// Collects code.
#[derive(Debug)]
pub(crate) struct Emit {
    asm: Asm,
    width: Width,
}

/// Whether the next instruction may be compressed.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Width {
    Any,
    /// Four bytes, so that one aligned store can replace it.
    Word,
}

impl Emit {
    pub(crate) fn new(features: Features) -> Self {
        Emit {
            asm: Asm::new(features),
            width: Width::Any,
        }
    }

    pub(crate) fn finish(self, base: u64) -> Result<Code, AsmError> {
        self.asm.finish(base)
    }

    /// The length of the code for `base`.
    pub(crate) fn size_at(&mut self, base: u64) -> Result<usize, AsmError> {
        self.asm.size_at(base)
    }

    /// The next instruction is four bytes long and four-byte aligned; returns its label.
    pub(crate) fn patch_point(&mut self) -> Label {
        self.asm.align(4);
        self.width = Width::Word;
        self.here()
    }

    /// Four bytes, wherever they come to lie: to be filled in when the place is known.
    pub(crate) fn hole(&mut self, insn: Insn) -> Label {
        let label = self.here();
        self.asm.emit_wide(insn);
        label
    }

    pub(crate) fn insn(&mut self, insn: Insn) {
        match std::mem::replace(&mut self.width, Width::Any) {
            Width::Any => self.asm.emit(insn),
            Width::Word => self.asm.emit_wide(insn),
        }
    }

    pub(crate) fn ld(&mut self, rd: Reg, base: Reg, off: impl Into<i64>) {
        let imm = imm12(off.into());
        self.insn(insn::ld(rd, base, imm));
    }

    pub(crate) fn sd(&mut self, rs: Reg, base: Reg, off: impl Into<i64>) {
        let imm = imm12(off.into());
        self.insn(insn::sd(rs, base, imm));
    }

    pub(crate) fn lw(&mut self, rd: Reg, base: Reg, off: impl Into<i64>) {
        let imm = imm12(off.into());
        self.insn(insn::lw(rd, base, imm));
    }

    pub(crate) fn sw(&mut self, rs: Reg, base: Reg, off: impl Into<i64>) {
        let imm = imm12(off.into());
        self.insn(insn::sw(rs, base, imm));
    }

    pub(crate) fn sh(&mut self, rs: Reg, base: Reg, off: impl Into<i64>) {
        let imm = imm12(off.into());
        self.insn(insn::sh(rs, base, imm));
    }

    pub(crate) fn fld(&mut self, rd: FReg, base: Reg, off: impl Into<i64>) {
        let imm = imm12(off.into());
        self.insn(insn::fld(rd, base, imm));
    }

    pub(crate) fn fsd(&mut self, rs: FReg, base: Reg, off: impl Into<i64>) {
        let imm = imm12(off.into());
        self.insn(insn::fsd(rs, base, imm));
    }

    pub(crate) fn addi(&mut self, rd: Reg, rs: Reg, value: i64) {
        let imm = imm12(value);
        self.insn(insn::addi(rd, rs, imm));
    }

    pub(crate) fn add(&mut self, rd: Reg, rs1: Reg, rs2: Reg) {
        self.insn(insn::add(rd, rs1, rs2));
    }

    pub(crate) fn li(&mut self, rd: Reg, value: i64) {
        self.asm.li(rd, value);
    }

    /// `jalr link, target`.
    pub(crate) fn call_reg(&mut self, link: Reg, target: Reg) {
        self.insn(insn::jalr(link, target, SImm::ZERO));
    }

    /// `jr target`.
    pub(crate) fn jump_reg(&mut self, target: Reg) {
        self.insn(insn::jalr(Zero, target, SImm::ZERO));
    }

    pub(crate) fn ret(&mut self) {
        self.jump_reg(Reg::Ra);
    }

    /// A word of the thread's memory at `tp + off`: the register and offset that reach it.
    fn tls(&mut self, off: i64) -> (Reg, SImm<12>) {
        if let Some(imm) = SImm::new(off) {
            return (Tp, imm);
        }
        let hi = (off + 0x800) >> 12 << 12;
        self.li(T5, hi);
        self.add(T5, T5, Tp);
        let lo = imm12(off - hi);
        (T5, lo)
    }

    pub(crate) fn ld_tls(&mut self, rd: Reg, off: i64) {
        let (base, imm) = self.tls(off);
        self.insn(insn::ld(rd, base, imm));
    }

    pub(crate) fn sd_tls(&mut self, rs: Reg, off: i64) {
        let (base, imm) = self.tls(off);
        self.insn(insn::sd(rs, base, imm));
    }

    pub(crate) fn lw_tls(&mut self, rd: Reg, off: i64) {
        let (base, imm) = self.tls(off);
        self.insn(insn::lw(rd, base, imm));
    }

    pub(crate) fn sw_tls(&mut self, rs: Reg, off: i64) {
        let (base, imm) = self.tls(off);
        self.insn(insn::sw(rs, base, imm));
    }

    /// Loads a 64-bit constant that stands behind the code: two instructions, any value.
    pub(crate) fn ld_lit(&mut self, rd: Reg, value: u64) {
        self.asm.ld_lit(rd, value);
    }

    pub(crate) fn data64(&mut self, value: u64) {
        self.asm.data(&value.to_le_bytes());
    }

    pub(crate) fn align(&mut self, bytes: u32) {
        self.asm.align(bytes);
    }

    /// Notes this place for `Code::marks`.
    pub(crate) fn mark(&mut self) {
        self.asm.mark();
    }

    pub(crate) fn new_label(&mut self) -> Label {
        self.asm.new_label()
    }

    pub(crate) fn bind(&mut self, label: Label) {
        self.asm.bind(label);
    }

    pub(crate) fn here(&mut self) -> Label {
        let label = self.asm.new_label();
        self.asm.bind(label);
        label
    }

    pub(crate) fn branch(&mut self, cond: Cond, rs1: Reg, rs2: Reg, to: Label) {
        self.asm.branch(cond, rs1, rs2, to);
    }

    pub(crate) fn jump(&mut self, to: Label) {
        self.asm.jump(to);
    }

    pub(crate) fn la(&mut self, rd: Reg, label: Label) {
        self.asm.la(rd, label);
    }

    /// Calls code at a fixed address; the link register serves as the temporary.
    pub(crate) fn call_abs(&mut self, target: u64, link: Reg) {
        self.asm.call_abs(target, link, link);
    }

    /// Jumps to code at a fixed address.
    pub(crate) fn jump_abs(&mut self, target: u64, tmp: Reg) {
        self.asm.jump_abs(target, tmp);
    }
}
