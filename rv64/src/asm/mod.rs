//! A buffer of instructions with labels.
//!
//! Key types: [`Asm`], [`Label`], [`Code`]. Branches and jumps start in their
//! shortest form and grow until every one reaches: see `layout`.
//!
//! ```
//! # use rvbpf_rv64 as rv64;
//! use rv64::{Asm, Cond, Features, Reg::*, addi, imm, ret};
//! # fn main() -> Result<(), rv64::AsmError> {
//! let mut asm = Asm::new(Features::RV64GC);
//! let (again, done) = (asm.new_label(), asm.new_label());
//! asm.bind(again);
//! asm.beqz(A0, done);
//! asm.emit(addi(A0, A0, imm!(-1)));
//! asm.jump(again);
//! asm.bind(done);
//! asm.emit(ret());
//! let code = asm.finish(0x1000)?;
//! assert_eq!(code.bytes.len(), 8); // every instruction found its short form
//! assert_eq!(code.offset(done), 6);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here panics on what it is given: the first mistake is kept and
//! [`Asm::finish`] returns it.
//!
//! Neighbours: [`crate::insn`] makes the instructions.
//!
//! Source: RISC-V ELF psABI, "Linker Relaxation" (the idea, the other way
//! round); Unprivileged ISA, "Conditional Branches".

mod emit;
mod far;
mod item;
mod layout;

use crate::{AsmError, Features, Insn, Reg, li, nop};
pub use far::Hi;
pub use item::Cond;
use item::{Item, Literal, PcRel};

/// A place in the code of one [`Asm`]: made by [`Asm::new_label`], put by
/// [`Asm::bind`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Label(pub(crate) u32);

/// Code for one address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Code {
    /// Where it must stand to run.
    pub base: u64,
    /// The instructions, then the literals.
    pub bytes: Vec<u8>,
    offsets: Vec<u32>,
    marks: Vec<u32>,
}

impl Code {
    /// Where `label` is, in bytes from the start.
    ///
    /// # Panics
    /// If the label belongs to another buffer and this one has fewer labels.
    #[must_use]
    pub fn offset(&self, label: Label) -> u32 {
        self.offsets[label.0 as usize]
    }

    /// Where `label` is, as an address.
    ///
    /// # Panics
    /// As [`Code::offset`].
    #[must_use]
    pub fn address(&self, label: Label) -> u64 {
        self.base + u64::from(self.offset(label))
    }

    /// Where [`Asm::mark`] was called, in that order, in bytes from the start.
    #[must_use]
    pub fn marks(&self) -> &[u32] {
        &self.marks
    }
}

/// A place that nothing goes to: so many bytes into an item.
#[derive(Clone, Copy, Debug)]
struct Mark {
    item: u32,
    bytes: u32,
}

/// The largest alignment [`Asm::align`] takes, in bytes.
pub const MAX_ALIGN: u32 = 4096;

/// A buffer that instructions are emitted to, one after the other.
#[derive(Clone, Debug)]
pub struct Asm {
    features: Features,
    items: Vec<Item>,
    /// The bytes of `Item::Insns` and `Item::Data`.
    raw: Vec<u8>,
    /// The item each label stands before.
    labels: Vec<Option<usize>>,
    marks: Vec<Mark>,
    literals: Vec<Literal>,
    bases: Vec<far::Base>,
    scratch: Option<Reg>,
    /// Whether the last item may not grow, because a label stands at its end.
    sealed: bool,
    /// Whether the literals have been appended.
    closed: bool,
    error: Option<AsmError>,
}

impl Asm {
    /// An empty buffer for a machine with these features.
    #[must_use]
    pub fn new(features: Features) -> Self {
        Self {
            features,
            items: Vec::new(),
            raw: Vec::new(),
            labels: Vec::new(),
            marks: Vec::new(),
            literals: Vec::new(),
            bases: Vec::new(),
            scratch: None,
            sealed: false,
            closed: false,
            error: None,
        }
    }

    /// What the machine has.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Lets branches and jumps to labels beyond ±1 MiB overwrite `reg`.
    /// Without it they are an error.
    pub fn set_scratch(&mut self, reg: Reg) {
        self.check_address_reg(reg);
        self.scratch = Some(reg);
    }

    /// Appends an instruction, compressed where the features allow it.
    pub fn emit(&mut self, insn: Insn) {
        match insn.compress_for(self.features) {
            Some(half) => self.raw(&half.to_le_bytes(), Item::Insns),
            None => self.emit_wide(insn),
        }
    }

    /// Appends an instruction in its 32-bit form. To patch it by one store
    /// it must also be aligned: see [`Asm::wide_label`].
    pub fn emit_wide(&mut self, insn: Insn) {
        self.raw(&insn.encode().to_le_bytes(), Item::Insns);
    }

    /// Appends one instruction as it is encoded already: it keeps its length, and need not be one
    /// that [`Insn`] knows.
    pub fn emit_encoded(&mut self, bytes: &[u8]) {
        self.raw(bytes, Item::Insns);
    }

    /// Aligns to 4 bytes, appends `insn` in its 32-bit form, and returns a
    /// label on it: one aligned 4-byte store can replace it.
    pub fn wide_label(&mut self, insn: Insn) -> Label {
        self.align(4);
        let label = self.here();
        self.emit_wide(insn);
        label
    }

    /// Appends bytes that are no instructions. What follows must be aligned
    /// again before it can hold instructions.
    pub fn data(&mut self, bytes: &[u8]) {
        self.raw(bytes, Item::Data);
    }

    /// Appends the shortest sequence that makes `rd` = `value`, over `rd`
    /// alone.
    pub fn li(&mut self, rd: Reg, value: i64) {
        for insn in li(rd, value, self.features) {
            self.emit(insn);
        }
    }

    /// Pads with `nop` to an address that is a multiple of `align` bytes: a
    /// power of two up to [`MAX_ALIGN`].
    pub fn align(&mut self, align: u32) {
        if align.is_power_of_two() && align <= MAX_ALIGN {
            self.push(Item::Align { align });
        } else {
            self.fail(AsmError::BadAlign { align });
        }
    }

    /// A new label, bound nowhere yet. Every label must be bound in the end.
    pub fn new_label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() as u32 - 1)
    }

    /// A new label, bound here.
    pub fn here(&mut self) -> Label {
        let label = self.new_label();
        self.bind(label);
        label
    }

    /// Puts `label` here.
    pub fn bind(&mut self, label: Label) {
        let place = self.items.len();
        match self.labels.get_mut(label.0 as usize) {
            None => self.fail(AsmError::ForeignLabel { label }),
            Some(Some(_)) => self.fail(AsmError::BoundTwice { label }),
            Some(slot) => {
                *slot = Some(place);
                self.sealed = true;
            }
        }
    }

    /// Notes this place for [`Code::marks`]. Nothing can go there, and unlike a label it costs the
    /// layout nothing: tables that lead from code back to what it was made of want many.
    pub fn mark(&mut self) {
        let mark = match self.items.last() {
            Some(Item::Insns(range) | Item::Data(range)) => Mark {
                item: self.items.len() as u32 - 1,
                bytes: range.len() as u32,
            },
            _ => Mark {
                item: self.items.len() as u32,
                bytes: 0,
            },
        };
        self.marks.push(mark);
    }

    /// Goes to `target` if `rs1 cond rs2`.
    pub fn branch(&mut self, cond: Cond, rs1: Reg, rs2: Reg, target: Label) {
        self.check_label(target);
        self.push(Item::Branch {
            cond,
            rs1,
            rs2,
            target,
        });
    }

    /// Goes to `target` if `rs` is zero.
    pub fn beqz(&mut self, rs: Reg, target: Label) {
        self.branch(Cond::Eq, rs, Reg::Zero, target);
    }

    /// Goes to `target` if `rs` is not zero.
    pub fn bnez(&mut self, rs: Reg, target: Label) {
        self.branch(Cond::Ne, rs, Reg::Zero, target);
    }

    /// Goes to `target`.
    pub fn jump(&mut self, target: Label) {
        self.jal(Reg::Zero, target);
    }

    /// Goes to `target`, with the address of what follows in `rd`.
    pub fn jal(&mut self, rd: Reg, target: Label) {
        self.check_label(target);
        self.push(Item::Jump { rd, target });
    }

    /// `rd` = the address of `label` (auipc, addi).
    pub fn la(&mut self, rd: Reg, label: Label) {
        self.pcrel(PcRel::Address, rd, label);
    }

    /// `rd` = the 64 bits at `label` (auipc, ld).
    pub fn ld_label(&mut self, rd: Reg, label: Label) {
        self.pcrel(PcRel::Load, rd, label);
    }

    /// The code for `base`, the address where its first byte will run.
    ///
    /// # Errors
    /// The first [`AsmError`] there was: a mistake in a call before, a label
    /// that is not bound, a target out of reach, a misaligned base.
    pub fn finish(mut self, base: u64) -> Result<Code, AsmError> {
        let layout = self.settle(base)?;
        let offsets = self
            .labels
            .iter()
            .flatten()
            .map(|&item| layout.offsets[item])
            .collect();
        let marks = self
            .marks
            .iter()
            .map(|mark| layout.offsets[mark.item as usize] + mark.bytes)
            .collect();
        let bytes = emit::bytes(&self, &layout, base)?;
        Ok(Code {
            base,
            bytes,
            offsets,
            marks,
        })
    }

    /// An upper bound of the size in bytes of what is in the buffer now, for
    /// any base. Labels that are not bound yet count as far away.
    #[must_use]
    pub fn max_size(&self) -> usize {
        let mut all = self.clone();
        all.close();
        layout::Layout::bound(&all)
    }

    /// The length of the code for `base`, in bytes. Nothing may be appended afterwards.
    ///
    /// # Errors
    /// As [`Asm::finish`].
    pub fn size_at(&mut self, base: u64) -> Result<usize, AsmError> {
        let layout = self.settle(base)?;
        Ok(layout.size() as usize)
    }

    fn settle(&mut self, base: u64) -> Result<layout::Layout, AsmError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.close();
        if let Some(unbound) = self.labels.iter().position(Option::is_none) {
            return Err(AsmError::Unbound {
                label: Label(unbound as u32),
            });
        }
        layout::Layout::settle(self, layout::Base::At(base))
    }

    fn pcrel(&mut self, kind: PcRel, rd: Reg, label: Label) {
        self.check_label(label);
        self.check_address_reg(rd);
        self.push(Item::PcRel { kind, rd, label });
    }

    fn check_label(&mut self, label: Label) {
        if label.0 as usize >= self.labels.len() {
            self.fail(AsmError::ForeignLabel { label });
        }
    }

    fn check_address_reg(&mut self, reg: Reg) {
        if reg == Reg::Zero {
            self.fail(AsmError::BadRegister { reg });
        }
    }

    fn push(&mut self, item: Item) {
        self.items.push(item);
        self.sealed = false;
    }

    /// Appends bytes, to the last item if it is of the same kind.
    fn raw(&mut self, bytes: &[u8], kind: fn(core::ops::Range<usize>) -> Item) {
        let start = self.raw.len();
        self.raw.extend_from_slice(bytes);
        let new = kind(start..self.raw.len());
        match (self.items.last_mut(), &new) {
            (Some(Item::Insns(old)), Item::Insns(_)) | (Some(Item::Data(old)), Item::Data(_))
                if !self.sealed =>
            {
                old.end = self.raw.len();
            }
            _ => self.push(new),
        }
    }

    /// Appends the literals and binds their labels.
    fn close(&mut self) {
        if self.literals.is_empty() || self.closed {
            return;
        }
        self.closed = true;
        self.push(Item::PoolAlign);
        for index in 0..self.literals.len() {
            let label = self.literals[index].label;
            self.labels[label.0 as usize] = Some(self.items.len());
            self.push(Item::Literal { index });
        }
    }

    fn fail(&mut self, error: AsmError) {
        self.error.get_or_insert(error);
    }

    /// What pads code: `c.nop` or `nop`.
    fn nop_bytes(&self) -> Vec<u8> {
        match nop().compress_for(self.features) {
            Some(half) => half.to_le_bytes().to_vec(),
            None => nop().encode().to_le_bytes().to_vec(),
        }
    }

    /// The alignment of instructions.
    const fn insn_align(&self) -> u32 {
        if self.features.c { 2 } else { 4 }
    }
}

#[cfg(test)]
mod tests;
