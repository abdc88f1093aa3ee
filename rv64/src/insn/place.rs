//! Where an operand stands in a word: one module per place, each with the
//! type of its operand, its mask, and the way in and out.
//!
//! Neighbours: [`super::format`] composes formats from places.
//!
//! Source: Unprivileged ISA, "Base Instruction Formats" and "Immediate
//! Encoding Variants", whose pictures stand above the scattered immediates.

use crate::{Csr, EvenReg, FReg, FenceSet, Offset, Order, Reg, RegSet, Rm, SImm, UImm};

/// `word[lo..=hi]`, at bit 0.
pub(crate) const fn bits(word: u32, hi: u32, lo: u32) -> u32 {
    (word >> lo) & (u32::MAX >> (31 - (hi - lo)))
}

/// No register: what operands that are none read and write.
pub(crate) const fn no_regs<T: Copy>(_: T) -> RegSet {
    RegSet::EMPTY
}

/// Declares one place. `get` answers `None` for a reserved pattern; `reads` and `writes` are the
/// registers that an instruction with such an operand reads and writes.
macro_rules! place {
    (
        $(#[$doc:meta])* $name:ident: $ty:ty, $hi:literal..$lo:literal, |$v:ident| $put:expr, |$w:ident| $get:expr
        $(, reads |$r:ident| $reads:expr)? $(, writes |$u:ident| $writes:expr)?
    ) => {
        $(#[$doc])*
        pub(crate) mod $name {
            #[allow(unused_imports)]
            use super::*;

            pub(crate) type Operand = $ty;
            pub(crate) const MASK: u32 = (u32::MAX >> (31 - ($hi - $lo))) << $lo;

            pub(crate) const fn put($v: Operand) -> u32 {
                $put
            }

            pub(crate) const fn get($w: u32) -> Option<Operand> {
                $get
            }

            pub(crate) const fn reads(_operand: Operand) -> RegSet {
                RegSet::EMPTY $(.union({ let $r = _operand; $reads }))?
            }

            pub(crate) const fn writes(_operand: Operand) -> RegSet {
                RegSet::EMPTY $(.union({ let $u = _operand; $writes }))?
            }
        }
    };
}

place!(rd: Reg, 11..7, |r| r.num() << 7, |w| Reg::from_num(bits(w, 11, 7)), writes |r| RegSet::of(&[r]));
place!(rs1: Reg, 19..15, |r| r.num() << 15, |w| Reg::from_num(bits(w, 19, 15)), reads |r| RegSet::of(&[r]));
place!(rs2: Reg, 24..20, |r| r.num() << 20, |w| Reg::from_num(bits(w, 24, 20)), reads |r| RegSet::of(&[r]));
place!(fd: FReg, 11..7, |r| r.num() << 7, |w| FReg::from_num(bits(w, 11, 7)), writes |r| RegSet::of_floats(&[r]));
place!(fs1: FReg, 19..15, |r| r.num() << 15, |w| FReg::from_num(bits(w, 19, 15)), reads |r| RegSet::of_floats(&[r]));
place!(fs2: FReg, 24..20, |r| r.num() << 20, |w| FReg::from_num(bits(w, 24, 20)), reads |r| RegSet::of_floats(&[r]));
place!(fs3: FReg, 31..27, |r| r.num() << 27, |w| FReg::from_num(bits(w, 31, 27)), reads |r| RegSet::of_floats(&[r]));
place!(rd_pair: EvenReg, 11..7, |r| r.get().num() << 7, |w| match rd::get(w) {
    Some(reg) => EvenReg::new(reg),
    None => None,
}, writes |r| RegSet::pair(r));
place!(rs2_pair: EvenReg, 24..20, |r| r.get().num() << 20, |w| match rs2::get(w) {
    Some(reg) => EvenReg::new(reg),
    None => None,
}, reads |r| RegSet::pair(r));

place!(rm: Rm, 14..12, |r| (r as u32) << 12, |w| Rm::from_bits(bits(w, 14, 12)));
place!(order: Order, 26..25, |o| (o as u32) << 25, |w| Some(Order::ALL[bits(w, 26, 25) as usize]));
place!(pred: FenceSet, 27..24, |s| s.bits() << 24, |w| FenceSet::from_bits(bits(w, 27, 24)));
place!(succ: FenceSet, 23..20, |s| s.bits() << 20, |w| FenceSet::from_bits(bits(w, 23, 20)));
place!(csr: Csr, 31..20, |c| c.num() << 20, |w| Csr::new(bits(w, 31, 20)));
place!(zimm: UImm<5>, 19..15, |i| i.get() << 15, |w| Some(UImm::from_field(bits(w, 19, 15))));
place!(shamt6: UImm<6>, 25..20, |i| i.get() << 20, |w| Some(UImm::from_field(bits(w, 25, 20))));
place!(shamt5: UImm<5>, 24..20, |i| i.get() << 20, |w| Some(UImm::from_field(bits(w, 24, 20))));

place!(
    /// `| imm[11:0] | ...`
    i_imm: SImm<12>, 31..20,
    |i| i.field() << 20,
    |w| Some(SImm::from_field(bits(w, 31, 20)))
);
place!(
    /// `| imm[31:12] | rd | opcode |`, held without its twelve zeros.
    u_imm: SImm<20>, 31..12,
    |i| i.field() << 12,
    |w| Some(SImm::from_field(bits(w, 31, 12)))
);
place!(
    /// `| imm[20|10:1|11|19:12] | rd | opcode |`
    j_imm: Offset<21>, 31..12,
    |o| {
        let imm = o.field();
        bits(imm, 20, 20) << 31 | bits(imm, 10, 1) << 21 | bits(imm, 11, 11) << 20 | bits(imm, 19, 12) << 12
    },
    |w| Some(Offset::from_field(
        bits(w, 31, 31) << 20 | bits(w, 30, 21) << 1 | bits(w, 20, 20) << 11 | bits(w, 19, 12) << 12,
    ))
);

/// `| imm[11:5] | rs2 | rs1 | funct3 | imm[4:0] | opcode |`
pub(crate) mod s_imm {
    use super::*;
    pub(crate) use super::{no_regs as reads, no_regs as writes};

    pub(crate) type Operand = SImm<12>;
    pub(crate) const MASK: u32 = 0xfe00_0f80;

    pub(crate) const fn put(imm: Operand) -> u32 {
        let imm = imm.field();
        bits(imm, 11, 5) << 25 | bits(imm, 4, 0) << 7
    }

    pub(crate) const fn get(word: u32) -> Option<Operand> {
        Some(SImm::from_field(
            bits(word, 31, 25) << 5 | bits(word, 11, 7),
        ))
    }
}

/// `| imm[12|10:5] | rs2 | rs1 | funct3 | imm[4:1|11] | opcode |`
pub(crate) mod b_imm {
    use super::*;
    pub(crate) use super::{no_regs as reads, no_regs as writes};

    pub(crate) type Operand = Offset<13>;
    pub(crate) const MASK: u32 = 0xfe00_0f80;

    pub(crate) const fn put(offset: Operand) -> u32 {
        let imm = offset.field();
        bits(imm, 12, 12) << 31
            | bits(imm, 10, 5) << 25
            | bits(imm, 4, 1) << 8
            | bits(imm, 11, 11) << 7
    }

    pub(crate) const fn get(word: u32) -> Option<Operand> {
        Some(Offset::from_field(
            bits(word, 31, 31) << 12
                | bits(word, 30, 25) << 5
                | bits(word, 11, 8) << 1
                | bits(word, 7, 7) << 11,
        ))
    }
}

/// Declares places of which `flow` only asks whether they hold something that is not reserved.
macro_rules! looked_at {
    ($($(#[$doc:meta])* $name:ident: $mask:literal, |$w:ident| $valid:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) mod $name {
            #[allow(unused_imports)]
            use super::*;
            pub(crate) use super::{no_regs as reads, no_regs as writes};

            pub(crate) const MASK: u32 = $mask;

            pub(crate) const fn get($w: u32) -> Option<()> {
                if $valid { Some(()) } else { None }
            }
        }
    )*};
}

looked_at! {
    /// The number of a round of AES: 0 to 10.
    rnum: 0x00f0_0000, |w| bits(w, 23, 20) <= 10;
    /// The number of a byte.
    bs: 0xc000_0000, |_w| true;
    /// Both sets of a fence, which may be empty.
    fence_sets: 0x0ff0_0000, |_w| true;
    /// `| 1 | n[4] | 00 | n[3:2] | 0111 | n[1:0] | ...`
    mop_r: 0x4c30_0000, |_w| true;
    /// `| 1 | n[2] | 00 | n[1:0] | 1 | rs2 | ...`
    mop_rr: 0x4c00_0000, |_w| true;
}
