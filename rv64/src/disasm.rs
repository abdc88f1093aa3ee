//! Code as text: a line for each instruction, in the shape of objdump.
//!
//! ```text
//!   3f80001000  00000297  auipc t0, 0x0
//!   3f80001004  0202b283  ld t0, 32(t0)                 # 3f80001020
//!   3f80001008      c501  beqz a0, 3f80001010
//!   address     parcel    Insn's text, targets as addresses
//! ```
//!
//! Key types: [`Line`], made by [`disassemble`]. Neighbours: [`decode`](crate::decode); the text
//! of an instruction alone is [`Insn`]'s `Display`.

use core::fmt;

use crate::Reg;
use crate::insn::{Insn, ROp, UOp};

/// One instruction where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line<'a> {
    /// Its address.
    pub address: u64,
    /// Its bytes: 2 or 4, or what is left of a truncated one.
    pub bytes: &'a [u8],
    /// What they mean; `None` if nothing that this crate knows.
    pub insn: Option<Insn>,
    /// What an `auipc` before it has put where: the first half of a pair.
    upper: Option<(Reg, u64)>,
}

/// The instructions of `bytes`, the first of which is at `base`.
///
/// What is no instruction gets a line as well, and the next is looked for behind it.
pub fn disassemble(bytes: &[u8], base: u64) -> impl Iterator<Item = Line<'_>> {
    let (mut rest, mut address, mut upper) = (bytes, base, None);
    core::iter::from_fn(move || {
        let (insn, len) = match Insn::decode_at(rest) {
            Ok((insn, len)) => (Some(insn), len),
            Err(_) => (None, unknown_len(rest)?),
        };
        let (bytes, behind) = rest.split_at(len);
        let line = Line {
            address,
            bytes,
            insn,
            upper,
        };
        upper = line.auipc();
        (rest, address) = (behind, address.wrapping_add(len as u64));
        Some(line)
    })
}

/// How many bytes to skip where there is no instruction; `None` at the end.
fn unknown_len(rest: &[u8]) -> Option<usize> {
    let len = match rest.first()? & 0b11 {
        0b11 => 4,
        _ => 2,
    };
    Some(len.min(rest.len()))
}

impl Line<'_> {
    /// Where it goes or points, if that is a constant: a branch, a jump, or the second half of a
    /// pair whose first half is the instruction before.
    #[must_use]
    pub fn target(&self) -> Option<u64> {
        match self.insn? {
            Insn::Branch { offset, .. } => Some(self.address.wrapping_add_signed(offset.get())),
            Insn::Jal { offset, .. } => Some(self.address.wrapping_add_signed(offset.get())),
            insn => self.second_half(insn),
        }
    }

    fn second_half(&self, insn: Insn) -> Option<u64> {
        let (base, address) = self.upper?;
        let (rs1, imm) = match insn {
            Insn::I { rs1, imm, .. }
            | Insn::Load { rs1, imm, .. }
            | Insn::Store { rs1, imm, .. }
            | Insn::FLoad { rs1, imm, .. }
            | Insn::FStore { rs1, imm, .. }
            | Insn::Jalr { rs1, imm, .. } => (rs1, imm),
            _ => return None,
        };
        (rs1 == base).then(|| address.wrapping_add_signed(imm.get()))
    }

    fn auipc(&self) -> Option<(Reg, u64)> {
        match self.insn? {
            Insn::U {
                op: UOp::Auipc,
                rd,
                imm,
            } if rd != Reg::Zero => Some((rd, self.address.wrapping_add_signed(imm.get() << 12))),
            _ => None,
        }
    }

    /// The bytes as one number, which is how manuals show them.
    fn parcel(&self) -> u64 {
        self.bytes
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u64::from(*byte))
    }

    fn text(&self) -> String {
        let Some(insn) = self.insn else {
            return format!(".insn {}, {:#x}", self.bytes.len(), self.parcel());
        };
        let text = insn.to_string();
        match (insn, self.target()) {
            // c.mv stands for an addition, which hides that it moves.
            (
                Insn::R {
                    op: ROp::Add,
                    rd,
                    rs1: Reg::Zero,
                    rs2,
                },
                _,
            ) if self.bytes.len() == 2 => format!("mv {rd}, {rs2}"),
            (Insn::Branch { .. } | Insn::Jal { .. }, Some(target)) => {
                let head = text.rsplit_once(' ').map_or(&*text, |(head, _)| head);
                format!("{head} {target:x}")
            }
            (_, Some(target)) => format!("{text:<28}# {target:x}"),
            _ => text,
        }
    }
}

/// Address, parcel, text.
impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parcel = format!("{:0w$x}", self.parcel(), w = 2 * self.bytes.len());
        write!(f, "{:x}  {parcel:>8}  {}", self.address, self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gnu::Gnu;
    use crate::{Asm, Cond, FReg, Features, addi, auipc, fld, imm, jalr, ld, mv, ret, sd};
    use Reg::*;

    const BASE: u64 = 0x3f_8000_1000;

    fn sample() -> Vec<u8> {
        let mut asm = Asm::new(Features::RV64GC);
        let (again, done) = (asm.here(), asm.new_label());
        asm.emit(mv(A5, A0));
        asm.emit_wide(mv(A5, A0));
        asm.beqz(A0, done);
        asm.branch(Cond::Ltu, A1, A2, done);
        asm.jump(again);
        asm.jal(Ra, again);
        asm.ld_lit(T0, 1 << 40);
        asm.emit(auipc(T1, imm!(-1)));
        asm.emit(jalr(Ra, T1, imm!(-4)));
        asm.emit(auipc(T1, imm!(1)));
        asm.emit(sd(A0, T1, imm!(8)));
        asm.emit(auipc(T1, imm!(1)));
        asm.emit(addi(T2, T1, imm!(2047)));
        asm.emit(auipc(T1, imm!(1)));
        asm.emit(fld(FReg::Fa0, T1, imm!(0)));
        asm.emit(ld(T2, T0, imm!(0)));
        asm.bind(done);
        asm.emit(ret());
        asm.mark();
        let code = asm.finish(BASE).unwrap();
        // Without the literal.
        code.bytes[..code.marks()[0] as usize].to_vec()
    }

    #[test]
    fn lines_say_where_they_go() {
        let bytes = sample();
        let lines: Vec<String> = disassemble(&bytes, BASE)
            .map(|line| line.to_string())
            .collect();
        let want = "\
            3f80001000      87aa  mv a5, a0\n\
            3f80001002  00050793  mv a5, a0\n\
            3f80001006      cd05  beqz a0, 3f8000103e\n\
            3f80001008  02c5eb63  bltu a1, a2, 3f8000103e\n\
            3f8000100c      bfd5  j 3f80001000\n\
            3f8000100e  ff3ff0ef  jal ra, 3f80001000\n";
        assert_eq!(lines[..6].join("\n") + "\n", want);
        let rest = lines[6..].join("\n");
        for part in [
            "ld t0, ",
            "jalr ra, -4(t1)             # 3f80000016\n",
            "sd a0, 8(t1)",
            "fld fa0, 0(t1)              # 3f8000",
            "8082  ret",
        ] {
            assert!(rest.contains(part), "{part} is not in\n{rest}");
        }
    }

    #[test]
    fn what_is_no_instruction_has_a_line_too() {
        let bytes = [0, 0, 0x0b, 0x70, 0, 0, 1, 0, 0x7f];
        let lines: Vec<String> = disassemble(&bytes, 0)
            .map(|line| line.to_string())
            .collect();
        let want = [
            "0      0000  .insn 2, 0x0",
            "2  0000700b  .insn 4, 0x700b",
            "6      0001  nop",
            "8        7f  .insn 1, 0x7f",
        ];
        assert_eq!(lines, want);
    }

    /// objdump finds the same places, and names the same instructions there.
    #[test]
    fn places_are_those_of_objdump() {
        let Some(gnu) = Gnu::from_env() else {
            return;
        };
        let bytes = sample();
        let theirs = gnu.listing(&bytes, BASE);
        let ours: Vec<_> = disassemble(&bytes, BASE)
            .map(|line| (line.address, line.parcel(), line.target()))
            .collect();
        assert!(ours.iter().filter(|line| line.2.is_some()).count() >= 8);
        assert_eq!(ours, theirs);
    }
}
