//! Where the bits of a compressed instruction's immediate stand.
//!
//! Key type: [`Scatter`], one per layout; the same list puts and gets.
//!
//! Neighbours: `compress` puts, `decode` gets.
//!
//! Source: Unprivileged ISA, chapter "C", "Load and Store Instructions",
//! "Control Transfer Instructions", "Integer Computational Instructions";
//! chapter "Zcb".

use crate::insn::place::bits;

/// A layout: pieces `(hi, lo, at)`, bits `hi..=lo` of the value standing at
/// bit `at` of the half-word.
#[derive(Clone, Copy)]
pub(crate) struct Scatter(&'static [(u32, u32, u32)]);

/// `imm[5] imm[4:0]`: c.addi, c.addiw, c.li, c.lui, c.andi and shift amounts.
pub(crate) const CI: Scatter = Scatter(&[(5, 5, 12), (4, 0, 2)]);
/// `nzimm[9] nzimm[4|6|8:7|5]`.
pub(crate) const ADDI16SP: Scatter =
    Scatter(&[(9, 9, 12), (4, 4, 6), (6, 6, 5), (8, 7, 3), (5, 5, 2)]);
/// `nzuimm[5:4|9:6|2|3]`.
pub(crate) const ADDI4SPN: Scatter = Scatter(&[(5, 4, 11), (9, 6, 7), (2, 2, 6), (3, 3, 5)]);
/// `uimm[5] uimm[4:2|7:6]`: c.lwsp.
pub(crate) const W_SP_LOAD: Scatter = Scatter(&[(5, 5, 12), (4, 2, 4), (7, 6, 2)]);
/// `uimm[5] uimm[4:3|8:6]`: c.ldsp, c.fldsp.
pub(crate) const D_SP_LOAD: Scatter = Scatter(&[(5, 5, 12), (4, 3, 5), (8, 6, 2)]);
/// `uimm[5:2|7:6]`: c.swsp.
pub(crate) const W_SP_STORE: Scatter = Scatter(&[(5, 2, 9), (7, 6, 7)]);
/// `uimm[5:3|8:6]`: c.sdsp, c.fsdsp.
pub(crate) const D_SP_STORE: Scatter = Scatter(&[(5, 3, 10), (8, 6, 7)]);
/// `uimm[5:3] uimm[2|6]`: c.lw, c.sw.
pub(crate) const W_MEM: Scatter = Scatter(&[(5, 3, 10), (2, 2, 6), (6, 6, 5)]);
/// `uimm[5:3] uimm[7:6]`: c.ld, c.sd, c.fld, c.fsd.
pub(crate) const D_MEM: Scatter = Scatter(&[(5, 3, 10), (7, 6, 5)]);
/// `uimm[0|1]`: c.lbu, c.sb.
pub(crate) const BYTE: Scatter = Scatter(&[(0, 0, 6), (1, 1, 5)]);
/// `uimm[1]`: c.lhu, c.lh, c.sh.
pub(crate) const HALF: Scatter = Scatter(&[(1, 1, 5)]);
/// `offset[8|4:3] offset[7:6|2:1|5]`: c.beqz, c.bnez.
pub(crate) const CB: Scatter = Scatter(&[(8, 8, 12), (4, 3, 10), (7, 6, 5), (2, 1, 3), (5, 5, 2)]);
/// `offset[11|4|9:8|10|6|7|3:1|5]`: c.j.
pub(crate) const CJ: Scatter = Scatter(&[
    (11, 11, 12),
    (4, 4, 11),
    (9, 8, 9),
    (10, 10, 8),
    (6, 6, 7),
    (7, 7, 6),
    (3, 1, 3),
    (5, 5, 2),
]);

impl Scatter {
    /// The bits of the value that the layout holds.
    fn mask(self) -> u32 {
        self.0.iter().fold(0, |mask, &(hi, lo, _)| {
            mask | (u32::MAX >> (31 - (hi - lo))) << lo
        })
    }

    /// The number of the highest bit plus one.
    fn width(self) -> u32 {
        32 - self.mask().leading_zeros()
    }

    /// The field of an unsigned value; `None` if it does not fit.
    pub(crate) fn put(self, value: i64) -> Option<u32> {
        let value = u32::try_from(value).ok()?;
        (value & !self.mask() == 0).then(|| self.scatter(value))
    }

    /// The field of a signed value; `None` if it does not fit.
    pub(crate) fn put_signed(self, value: i64) -> Option<u32> {
        let half = 1 << (self.width() - 1);
        let low = (value + half) as u64;
        if low >= 2 * half as u64 {
            return None;
        }
        self.put(value & (2 * half - 1))
    }

    /// The unsigned value of a half-word.
    pub(crate) fn get(self, half: u32) -> i64 {
        let mut value = 0;
        for &(hi, lo, at) in self.0 {
            value |= bits(half, at + hi - lo, at) << lo;
        }
        value.into()
    }

    /// The signed value of a half-word.
    pub(crate) fn get_signed(self, half: u32) -> i64 {
        let unused = 64 - self.width();
        self.get(half) << unused >> unused
    }

    fn scatter(self, value: u32) -> u32 {
        self.0
            .iter()
            .fold(0, |half, &(hi, lo, at)| half | bits(value, hi, lo) << at)
    }
}
