//! The fixed bits of the formats, from the columns of the manual's listing.
//!
//! Neighbours: the tables pass their columns to these functions.
//!
//! Source: Unprivileged ISA, "RV32/64G Instruction Set Listings".

/// Major opcodes.
pub(crate) const LOAD: u32 = 0b000_0011;
pub(crate) const LOAD_FP: u32 = 0b000_0111;
pub(crate) const MISC_MEM: u32 = 0b000_1111;
pub(crate) const OP_IMM: u32 = 0b001_0011;
pub(crate) const AUIPC: u32 = 0b001_0111;
pub(crate) const OP_IMM_32: u32 = 0b001_1011;
pub(crate) const STORE: u32 = 0b010_0011;
pub(crate) const STORE_FP: u32 = 0b010_0111;
pub(crate) const AMO: u32 = 0b010_1111;
pub(crate) const OP: u32 = 0b011_0011;
pub(crate) const LUI: u32 = 0b011_0111;
pub(crate) const OP_32: u32 = 0b011_1011;
pub(crate) const MADD: u32 = 0b100_0011;
pub(crate) const MSUB: u32 = 0b100_0111;
pub(crate) const NMSUB: u32 = 0b100_1011;
pub(crate) const NMADD: u32 = 0b100_1111;
pub(crate) const OP_FP: u32 = 0b101_0011;
pub(crate) const BRANCH: u32 = 0b110_0011;
pub(crate) const JALR: u32 = 0b110_0111;
pub(crate) const JAL: u32 = 0b110_1111;
pub(crate) const SYSTEM: u32 = 0b111_0011;

/// `| funct7 | rs2 | rs1 | funct3 | rd | opcode |`
pub(crate) const fn r(opcode: u32, funct3: u32, funct7: u32) -> u32 {
    funct7 << 25 | funct3 << 12 | opcode
}

/// `| funct7 | funct5 | rs1 | funct3 | rd | opcode |`, the field of `rs2` fixed.
pub(crate) const fn unary(opcode: u32, funct3: u32, funct7: u32, rs2: u32) -> u32 {
    rs2 << 20 | r(opcode, funct3, funct7)
}

/// `| imm[11:0] | rs1 | funct3 | rd | opcode |`; also stores and branches.
pub(crate) const fn i(opcode: u32, funct3: u32) -> u32 {
    funct3 << 12 | opcode
}

/// `| funct6 | shamt[5:0] | rs1 | funct3 | rd | opcode |`
pub(crate) const fn shift(opcode: u32, funct3: u32, funct6: u32) -> u32 {
    funct6 << 26 | i(opcode, funct3)
}

/// `| imm[31:12] | rd | opcode |`; also jumps.
pub(crate) const fn u(opcode: u32) -> u32 {
    opcode
}

/// `| funct5 | aq | rl | rs2 | rs1 | funct3 | rd | opcode |`
pub(crate) const fn amo(funct3: u32, funct5: u32) -> u32 {
    funct5 << 27 | i(AMO, funct3)
}

/// `| fs3 | fmt | fs2 | fs1 | rm | fd | opcode |`
pub(crate) const fn fused(opcode: u32, fmt: u32) -> u32 {
    fmt << 25 | opcode
}

/// `| funct5 | fmt | fs2 | fs1 | rm | fd | opcode |`
pub(crate) const fn fp(funct5: u32, fmt: u32) -> u32 {
    funct5 << 27 | fmt << 25 | OP_FP
}

/// The same with `rm` fixed.
pub(crate) const fn fp3(funct5: u32, fmt: u32, rm: u32) -> u32 {
    rm << 12 | fp(funct5, fmt)
}

/// The same with the field of `fs2` fixed.
pub(crate) const fn fp2(funct5: u32, fmt: u32, fs2: u32) -> u32 {
    fs2 << 20 | fp(funct5, fmt)
}

/// The same with `fs2` and `rm` fixed.
pub(crate) const fn fp23(funct5: u32, fmt: u32, fs2: u32, rm: u32) -> u32 {
    rm << 12 | fp2(funct5, fmt, fs2)
}

/// A whole word.
pub(crate) const fn word(word: u32) -> u32 {
    word
}
