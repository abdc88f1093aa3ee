//! Atomics: A, Zacas, Zabha.
//!
//! Neighbours: `format` turns a row into functions;
//! [`Order`](crate::Order) is their ordering.
//!
//! Source: Unprivileged ISA, chapters "A", "Zacas", "Zabha".

use super::bits::amo;
use super::{Ext, Insn, format::rows, place};

/// Widths, as `funct3` holds them.
const B: u32 = 0b000;
const H: u32 = 0b001;
const W: u32 = 0b010;
const D: u32 = 0b011;
const Q: u32 = 0b100;

rows! {
    /// Read-modify-write and store-conditional.
    AmoOp => Amo(rd: rd, rs2: rs2, rs1: rs1, order: order), amo;
    /// Stores `rs2` if the reservation stands; `rd` = 0 on success. Zalrsc.
    ScW sc_w "sc.w" A (W, 0b00011);
    /// Stores `rs2` if the reservation stands; `rd` = 0 on success. Zalrsc.
    ScD sc_d "sc.d" A (D, 0b00011);
    /// Swaps. Zaamo.
    AmoswapW amoswap_w "amoswap.w" A (W, 0b00001);
    /// Swaps. Zaamo.
    AmoswapD amoswap_d "amoswap.d" A (D, 0b00001);
    /// Adds. Zaamo.
    AmoaddW amoadd_w "amoadd.w" A (W, 0b00000);
    /// Adds. Zaamo.
    AmoaddD amoadd_d "amoadd.d" A (D, 0b00000);
    /// Exclusive or. Zaamo.
    AmoxorW amoxor_w "amoxor.w" A (W, 0b00100);
    /// Exclusive or. Zaamo.
    AmoxorD amoxor_d "amoxor.d" A (D, 0b00100);
    /// And. Zaamo.
    AmoandW amoand_w "amoand.w" A (W, 0b01100);
    /// And. Zaamo.
    AmoandD amoand_d "amoand.d" A (D, 0b01100);
    /// Or. Zaamo.
    AmoorW amoor_w "amoor.w" A (W, 0b01000);
    /// Or. Zaamo.
    AmoorD amoor_d "amoor.d" A (D, 0b01000);
    /// The smaller, signed. Zaamo.
    AmominW amomin_w "amomin.w" A (W, 0b10000);
    /// The smaller, signed. Zaamo.
    AmominD amomin_d "amomin.d" A (D, 0b10000);
    /// The larger, signed. Zaamo.
    AmomaxW amomax_w "amomax.w" A (W, 0b10100);
    /// The larger, signed. Zaamo.
    AmomaxD amomax_d "amomax.d" A (D, 0b10100);
    /// The smaller, unsigned. Zaamo.
    AmominuW amominu_w "amominu.w" A (W, 0b11000);
    /// The smaller, unsigned. Zaamo.
    AmominuD amominu_d "amominu.d" A (D, 0b11000);
    /// The larger, unsigned. Zaamo.
    AmomaxuW amomaxu_w "amomaxu.w" A (W, 0b11100);
    /// The larger, unsigned. Zaamo.
    AmomaxuD amomaxu_d "amomaxu.d" A (D, 0b11100);

    /// Stores `rs2` if memory equals `rd`; `rd` = what was there. Zacas.
    AmocasW amocas_w "amocas.w" Zacas (W, 0b00101);
    /// Stores `rs2` if memory equals `rd`; `rd` = what was there. Zacas.
    AmocasD amocas_d "amocas.d" Zacas (D, 0b00101);

    /// Stores `rs2` if memory equals `rd`; `rd` = what was there. Zabha and Zacas.
    AmocasB amocas_b "amocas.b" ZabhaZacas (B, 0b00101);
    /// Stores `rs2` if memory equals `rd`; `rd` = what was there. Zabha and Zacas.
    AmocasH amocas_h "amocas.h" ZabhaZacas (H, 0b00101);
    /// Swaps. Zabha.
    AmoswapB amoswap_b "amoswap.b" Zabha (B, 0b00001);
    /// Swaps. Zabha.
    AmoswapH amoswap_h "amoswap.h" Zabha (H, 0b00001);
    /// Adds. Zabha.
    AmoaddB amoadd_b "amoadd.b" Zabha (B, 0b00000);
    /// Adds. Zabha.
    AmoaddH amoadd_h "amoadd.h" Zabha (H, 0b00000);
    /// Exclusive or. Zabha.
    AmoxorB amoxor_b "amoxor.b" Zabha (B, 0b00100);
    /// Exclusive or. Zabha.
    AmoxorH amoxor_h "amoxor.h" Zabha (H, 0b00100);
    /// And. Zabha.
    AmoandB amoand_b "amoand.b" Zabha (B, 0b01100);
    /// And. Zabha.
    AmoandH amoand_h "amoand.h" Zabha (H, 0b01100);
    /// Or. Zabha.
    AmoorB amoor_b "amoor.b" Zabha (B, 0b01000);
    /// Or. Zabha.
    AmoorH amoor_h "amoor.h" Zabha (H, 0b01000);
    /// The smaller, signed. Zabha.
    AmominB amomin_b "amomin.b" Zabha (B, 0b10000);
    /// The smaller, signed. Zabha.
    AmominH amomin_h "amomin.h" Zabha (H, 0b10000);
    /// The larger, signed. Zabha.
    AmomaxB amomax_b "amomax.b" Zabha (B, 0b10100);
    /// The larger, signed. Zabha.
    AmomaxH amomax_h "amomax.h" Zabha (H, 0b10100);
    /// The smaller, unsigned. Zabha.
    AmominuB amominu_b "amominu.b" Zabha (B, 0b11000);
    /// The smaller, unsigned. Zabha.
    AmominuH amominu_h "amominu.h" Zabha (H, 0b11000);
    /// The larger, unsigned. Zabha.
    AmomaxuB amomaxu_b "amomaxu.b" Zabha (B, 0b11100);
    /// The larger, unsigned. Zabha.
    AmomaxuH amomaxu_h "amomaxu.h" Zabha (H, 0b11100);
}

rows! {
    /// Compare-and-swap of a register pair.
    AmoPairOp => AmoPair(rd: rd_pair, rs2: rs2_pair, rs1: rs1, order: order), amo;
    /// 128 bits: stores the pair `rs2` if memory equals the pair `rd`. Zacas.
    AmocasQ amocas_q "amocas.q" Zacas (Q, 0b00101);
}

/// `| funct5 | aq | rl | 00000 | rs1 | funct3 | rd | opcode |`
const fn lr(funct3: u32) -> u32 {
    amo(funct3, 0b00010)
}

rows! {
    /// Load-reserved.
    LrOp => Lr(rd: rd, rs1: rs1, order: order), lr;
    /// Loads a word and reserves it. Zalrsc.
    LrW lr_w "lr.w" A (W);
    /// Loads a double-word and reserves it. Zalrsc.
    LrD lr_d "lr.d" A (D);
}
