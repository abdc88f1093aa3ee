//! Writes the items of a settled layout.
//!
//! Neighbours: `layout` has chosen forms and places.

use super::Asm;
use super::item::{AbsRel, Form, Item, LiteralValue, PcRel};
use super::layout::{Layout, split};
use crate::{AsmError, Insn, Offset, Reg, SImm, addi, auipc, jal, jalr, jr, ld};

/// The bytes of the whole buffer.
pub(super) fn bytes(asm: &Asm, layout: &Layout, base: u64) -> Result<Vec<u8>, AsmError> {
    let mut writer = Writer {
        asm,
        layout,
        base,
        bytes: Vec::with_capacity(layout.size() as usize),
    };
    for index in 0..asm.items.len() {
        writer.item(index)?;
    }
    Ok(writer.bytes)
}

struct Writer<'a> {
    asm: &'a Asm,
    layout: &'a Layout,
    base: u64,
    bytes: Vec<u8>,
}

impl Writer<'_> {
    fn item(&mut self, index: usize) -> Result<(), AsmError> {
        let asm = self.asm;
        let form = self.layout.forms[index];
        match &asm.items[index] {
            Item::Insns(range) | Item::Data(range) => {
                self.bytes.extend_from_slice(&asm.raw[range.clone()]);
            }
            Item::Align { .. } => self.pad_code(self.layout.offsets[index + 1]),
            Item::PoolAlign => self
                .bytes
                .resize(self.layout.offsets[index + 1] as usize, 0),
            Item::Literal { index } => self.literal(*index),
            Item::Branch {
                cond,
                rs1,
                rs2,
                target,
            } => {
                let distance = self.distance(*target);
                if matches!(form, Form::Short | Form::Near) {
                    let offset = Offset::new(distance).ok_or_else(|| self.error(distance))?;
                    return self.jump_insn(cond.branch(*rs1, *rs2, offset), form);
                }
                let size = self.layout.offsets[index + 1] - self.layout.offsets[index];
                let skip = cond.inverse();
                let over = Offset::new(size.into()).ok_or_else(|| self.error(distance))?;
                let short = asm.has_short_branch(skip, *rs1, *rs2);
                self.jump_insn(
                    skip.branch(*rs1, *rs2, over),
                    if short { Form::Short } else { Form::Near },
                )?;
                let form = if form == Form::Inverted {
                    Form::Near
                } else {
                    Form::Pair
                };
                self.jump(Reg::Zero, asm.scratch, self.distance(*target), form)?;
            }
            Item::Jump { rd, target } => {
                let tmp = if *rd == Reg::Zero {
                    asm.scratch
                } else {
                    Some(*rd)
                };
                self.jump(*rd, tmp, self.distance(*target), form)?;
            }
            Item::Absolute {
                link,
                tmp,
                target,
                literal,
            } => {
                if form == Form::Loaded {
                    let distance = self.distance(asm.literals[*literal].label);
                    self.pair(*tmp, distance, |low| ld(*tmp, *tmp, low))?;
                    self.insn(if *link == Reg::Zero {
                        jr(*tmp)
                    } else {
                        jalr(*link, *tmp, SImm::ZERO)
                    });
                } else {
                    let distance = target.wrapping_sub(self.pc()) as i64;
                    self.jump(*link, Some(*tmp), distance, form)?;
                }
            }
            Item::AbsRel {
                kind,
                rd,
                address,
                literal,
            } => {
                let (kind, rd) = (*kind, *rd);
                if form == Form::Pair {
                    let distance = address.wrapping_sub(self.pc()) as i64;
                    return self.pair(rd, distance, |low| use_of(kind, rd, low));
                }
                let distance = self.distance(asm.literals[*literal].label);
                self.pair(rd, distance, |low| ld(rd, rd, low))?;
                if let AbsRel::Load(_) = kind {
                    self.insn(use_of(kind, rd, SImm::ZERO));
                }
            }
            Item::PcRel { kind, rd, label } => {
                self.pair(*rd, self.distance(*label), |low| {
                    partner(*kind, *rd, *rd, low)
                })?;
            }
            Item::Base { index } => self.base(*index, form)?,
            Item::Low {
                kind,
                rd,
                base,
                label,
            } => {
                let low = self.low(*base, *label)?;
                self.insn(partner(*kind, *rd, asm.bases[*base].rd, low));
            }
        }
        Ok(())
    }

    /// A jump in one of its forms but `Loaded`.
    fn jump(
        &mut self,
        link: Reg,
        tmp: Option<Reg>,
        distance: i64,
        form: Form,
    ) -> Result<(), AsmError> {
        if form == Form::Pair {
            let tmp = tmp.ok_or_else(|| self.error(distance))?;
            return self.pair(tmp, distance, |low| jalr(link, tmp, low));
        }
        let offset = Offset::new(distance).ok_or_else(|| self.error(distance))?;
        self.jump_insn(jal(link, offset), form)
    }

    /// A branch or jump in 16 bits or in 32.
    fn jump_insn(&mut self, insn: Insn, form: Form) -> Result<(), AsmError> {
        if form == Form::Short {
            let half = insn.compress().ok_or_else(|| self.error(0))?;
            self.bytes.extend_from_slice(&half.to_le_bytes());
        } else {
            self.insn(insn);
        }
        Ok(())
    }

    /// An auipc and its partner.
    fn pair(
        &mut self,
        tmp: Reg,
        distance: i64,
        partner: impl FnOnce(SImm<12>) -> Insn,
    ) -> Result<(), AsmError> {
        let (upper, low) = split(distance).ok_or_else(|| self.error(distance))?;
        self.insn(auipc(tmp, upper));
        self.insn(partner(low));
        Ok(())
    }

    /// The shared first half: auipc, or auipc and addi to the middle.
    fn base(&mut self, index: usize, form: Form) -> Result<(), AsmError> {
        let rd = self.asm.bases[index].rd;
        let at = self.bytes.len() as i64;
        let distance = self.base_offset(index, at, form)? - at;
        if form == Form::Pair {
            return self.pair(rd, distance, |low| addi(rd, rd, low));
        }
        let upper = SImm::new(distance >> 12).ok_or_else(|| self.error(distance))?;
        self.insn(auipc(rd, upper));
        Ok(())
    }

    /// Where a shared base points, as an offset in the buffer, when its auipc
    /// stands at `at`.
    fn base_offset(&self, index: usize, at: i64, form: Form) -> Result<i64, AsmError> {
        let (min, _) = self
            .layout
            .span(self.asm, index)
            .ok_or_else(|| self.error(0))?;
        Ok(match form {
            Form::Pair => min + 0x800,
            _ => at + ((min - at + 0x800) >> 12 << 12),
        })
    }

    /// The distance of `label` from a shared base.
    fn low(&self, index: usize, label: super::Label) -> Result<SImm<12>, AsmError> {
        let item = self.asm.bases[index].item;
        let at = self.layout.offsets[item].into();
        let base = self.base_offset(index, at, self.layout.forms[item])?;
        let to = self.layout.label(self.asm, label).unwrap_or(0);
        SImm::new(to - base).ok_or_else(|| self.error(to - base))
    }

    fn literal(&mut self, index: usize) {
        if !self.layout.present[index] {
            return;
        }
        let value = match self.asm.literals[index].value {
            LiteralValue::Bits(bits) => bits,
            LiteralValue::Address(label) => {
                self.base + self.layout.label(self.asm, label).unwrap_or(0) as u64
            }
        };
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Fills with nops; bytes that no nop fits into are zero.
    fn pad_code(&mut self, end: u32) {
        let nop = self.asm.nop_bytes();
        let odd = (end as usize - self.bytes.len()) % nop.len();
        self.bytes.resize(self.bytes.len() + odd, 0);
        while self.bytes.len() < end as usize {
            self.bytes.extend_from_slice(&nop);
        }
    }

    fn insn(&mut self, insn: Insn) {
        self.bytes.extend_from_slice(&insn.encode().to_le_bytes());
    }

    /// From here to a label.
    fn distance(&self, label: super::Label) -> i64 {
        self.layout.label(self.asm, label).unwrap_or(0) - self.bytes.len() as i64
    }

    fn pc(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    fn error(&self, distance: i64) -> AsmError {
        AsmError::OutOfReach {
            offset: self.bytes.len() as u32,
            distance,
        }
    }
}

fn use_of(kind: AbsRel, rd: Reg, low: SImm<12>) -> Insn {
    match kind {
        AbsRel::Address => addi(rd, rd, low),
        AbsRel::Load(op) => Insn::Load {
            op,
            rd,
            rs1: rd,
            imm: low,
        },
    }
}

fn partner(kind: PcRel, rd: Reg, base: Reg, low: SImm<12>) -> Insn {
    match kind {
        PcRel::Address => addi(rd, base, low),
        PcRel::Load => ld(rd, base, low),
    }
}
