//! Integer instructions: RV64I, M, Zba, Zbb, Zbs, Zicond.
//!
//! Neighbours: `format` turns a row into functions, `bits` names the columns.
//!
//! Source: Unprivileged ISA, chapters "RV32I", "RV64I", "M", "B", "Zicond".

use super::bits::{
    AUIPC, BRANCH, JAL, JALR, LOAD, LUI, OP, OP_32, OP_IMM, OP_IMM_32, STORE, i, r, shift, u, unary,
};
use super::{Ext, Insn, format::rows, place};

rows! {
    /// Register with register.
    ROp => R(rd: rd, rs1: rs1, rs2: rs2), r;
    /// `rs1 + rs2`. Integer Register-Register Operations.
    Add add "add" I (OP, 0b000, 0b000_0000);
    /// `rs1 - rs2`. Integer Register-Register Operations.
    Sub sub "sub" I (OP, 0b000, 0b010_0000);
    /// `rs1 << rs2[5:0]`. Integer Register-Register Operations.
    Sll sll "sll" I (OP, 0b001, 0b000_0000);
    /// `rs1 < rs2`, signed. Integer Register-Register Operations.
    Slt slt "slt" I (OP, 0b010, 0b000_0000);
    /// `rs1 < rs2`, unsigned. Integer Register-Register Operations.
    Sltu sltu "sltu" I (OP, 0b011, 0b000_0000);
    /// `rs1 ^ rs2`. Integer Register-Register Operations.
    Xor xor "xor" I (OP, 0b100, 0b000_0000);
    /// `rs1 >> rs2[5:0]`, zeros in. Integer Register-Register Operations.
    Srl srl "srl" I (OP, 0b101, 0b000_0000);
    /// `rs1 >> rs2[5:0]`, sign in. Integer Register-Register Operations.
    Sra sra "sra" I (OP, 0b101, 0b010_0000);
    /// `rs1 | rs2`. Integer Register-Register Operations.
    Or or "or" I (OP, 0b110, 0b000_0000);
    /// `rs1 & rs2`. Integer Register-Register Operations.
    And and "and" I (OP, 0b111, 0b000_0000);
    /// `sext32(rs1 + rs2)`. RV64I, Integer Computational Instructions.
    Addw addw "addw" I (OP_32, 0b000, 0b000_0000);
    /// `sext32(rs1 - rs2)`. RV64I, Integer Computational Instructions.
    Subw subw "subw" I (OP_32, 0b000, 0b010_0000);
    /// `sext32(rs1 << rs2[4:0])`. RV64I, Integer Computational Instructions.
    Sllw sllw "sllw" I (OP_32, 0b001, 0b000_0000);
    /// `sext32(rs1[31:0] >> rs2[4:0])`, zeros in. RV64I, Integer Computational Instructions.
    Srlw srlw "srlw" I (OP_32, 0b101, 0b000_0000);
    /// `sext32(rs1[31:0] >> rs2[4:0])`, sign in. RV64I, Integer Computational Instructions.
    Sraw sraw "sraw" I (OP_32, 0b101, 0b010_0000);

    /// Low half of `rs1 * rs2`. M, Multiplication Operations.
    Mul mul "mul" M (OP, 0b000, 0b000_0001);
    /// High half of `rs1 * rs2`, signed. M, Multiplication Operations.
    Mulh mulh "mulh" M (OP, 0b001, 0b000_0001);
    /// High half of `rs1 * rs2`, signed with unsigned. M, Multiplication Operations.
    Mulhsu mulhsu "mulhsu" M (OP, 0b010, 0b000_0001);
    /// High half of `rs1 * rs2`, unsigned. M, Multiplication Operations.
    Mulhu mulhu "mulhu" M (OP, 0b011, 0b000_0001);
    /// `rs1 / rs2`, signed. M, Division Operations.
    Div div "div" M (OP, 0b100, 0b000_0001);
    /// `rs1 / rs2`, unsigned. M, Division Operations.
    Divu divu "divu" M (OP, 0b101, 0b000_0001);
    /// `rs1 % rs2`, signed. M, Division Operations.
    Rem rem "rem" M (OP, 0b110, 0b000_0001);
    /// `rs1 % rs2`, unsigned. M, Division Operations.
    Remu remu "remu" M (OP, 0b111, 0b000_0001);
    /// `sext32(rs1 * rs2)`. M, Multiplication Operations.
    Mulw mulw "mulw" M (OP_32, 0b000, 0b000_0001);
    /// 32-bit `rs1 / rs2`, signed. M, Division Operations.
    Divw divw "divw" M (OP_32, 0b100, 0b000_0001);
    /// 32-bit `rs1 / rs2`, unsigned. M, Division Operations.
    Divuw divuw "divuw" M (OP_32, 0b101, 0b000_0001);
    /// 32-bit `rs1 % rs2`, signed. M, Division Operations.
    Remw remw "remw" M (OP_32, 0b110, 0b000_0001);
    /// 32-bit `rs1 % rs2`, unsigned. M, Division Operations.
    Remuw remuw "remuw" M (OP_32, 0b111, 0b000_0001);

    /// `(rs1 << 1) + rs2`. B, Address generation instructions.
    Sh1add sh1add "sh1add" Zba (OP, 0b010, 0b001_0000);
    /// `(rs1 << 2) + rs2`. B, Address generation instructions.
    Sh2add sh2add "sh2add" Zba (OP, 0b100, 0b001_0000);
    /// `(rs1 << 3) + rs2`. B, Address generation instructions.
    Sh3add sh3add "sh3add" Zba (OP, 0b110, 0b001_0000);
    /// `zext32(rs1) + rs2`. B, Address generation instructions.
    AddUw add_uw "add.uw" Zba (OP_32, 0b000, 0b000_0100);
    /// `(zext32(rs1) << 1) + rs2`. B, Address generation instructions.
    Sh1addUw sh1add_uw "sh1add.uw" Zba (OP_32, 0b010, 0b001_0000);
    /// `(zext32(rs1) << 2) + rs2`. B, Address generation instructions.
    Sh2addUw sh2add_uw "sh2add.uw" Zba (OP_32, 0b100, 0b001_0000);
    /// `(zext32(rs1) << 3) + rs2`. B, Address generation instructions.
    Sh3addUw sh3add_uw "sh3add.uw" Zba (OP_32, 0b110, 0b001_0000);

    /// `rs1 & !rs2`. B, Basic bit-manipulation.
    Andn andn "andn" Zbb (OP, 0b111, 0b010_0000);
    /// `rs1 | !rs2`. B, Basic bit-manipulation.
    Orn orn "orn" Zbb (OP, 0b110, 0b010_0000);
    /// `!(rs1 ^ rs2)`. B, Basic bit-manipulation.
    Xnor xnor "xnor" Zbb (OP, 0b100, 0b010_0000);
    /// The larger, signed. B, Basic bit-manipulation.
    Max max "max" Zbb (OP, 0b110, 0b000_0101);
    /// The larger, unsigned. B, Basic bit-manipulation.
    Maxu maxu "maxu" Zbb (OP, 0b111, 0b000_0101);
    /// The smaller, signed. B, Basic bit-manipulation.
    Min min "min" Zbb (OP, 0b100, 0b000_0101);
    /// The smaller, unsigned. B, Basic bit-manipulation.
    Minu minu "minu" Zbb (OP, 0b101, 0b000_0101);
    /// Rotate left. B, Basic bit-manipulation.
    Rol rol "rol" Zbb (OP, 0b001, 0b011_0000);
    /// Rotate right. B, Basic bit-manipulation.
    Ror ror "ror" Zbb (OP, 0b101, 0b011_0000);
    /// Rotate 32 bits left. B, Basic bit-manipulation.
    Rolw rolw "rolw" Zbb (OP_32, 0b001, 0b011_0000);
    /// Rotate 32 bits right. B, Basic bit-manipulation.
    Rorw rorw "rorw" Zbb (OP_32, 0b101, 0b011_0000);

    /// Clears bit `rs2`. B, Single-bit instructions.
    Bclr bclr "bclr" Zbs (OP, 0b001, 0b010_0100);
    /// Extracts bit `rs2`. B, Single-bit instructions.
    Bext bext "bext" Zbs (OP, 0b101, 0b010_0100);
    /// Inverts bit `rs2`. B, Single-bit instructions.
    Binv binv "binv" Zbs (OP, 0b001, 0b011_0100);
    /// Sets bit `rs2`. B, Single-bit instructions.
    Bset bset "bset" Zbs (OP, 0b001, 0b001_0100);

    /// `rs2 == 0 ? 0 : rs1`. Zicond.
    CzeroEqz czero_eqz "czero.eqz" Zicond (OP, 0b101, 0b000_0111);
    /// `rs2 != 0 ? 0 : rs1`. Zicond.
    CzeroNez czero_nez "czero.nez" Zicond (OP, 0b111, 0b000_0111);
}

rows! {
    /// One register in, one out.
    UnaryOp => Unary(rd: rd, rs1: rs1), unary;
    /// Counts leading zeros. B, Basic bit-manipulation.
    Clz clz "clz" Zbb (OP_IMM, 0b001, 0b011_0000, 0);
    /// Counts trailing zeros. B, Basic bit-manipulation.
    Ctz ctz "ctz" Zbb (OP_IMM, 0b001, 0b011_0000, 1);
    /// Counts ones. B, Basic bit-manipulation.
    Cpop cpop "cpop" Zbb (OP_IMM, 0b001, 0b011_0000, 2);
    /// Counts leading zeros of 32 bits. B, Basic bit-manipulation.
    Clzw clzw "clzw" Zbb (OP_IMM_32, 0b001, 0b011_0000, 0);
    /// Counts trailing zeros of 32 bits. B, Basic bit-manipulation.
    Ctzw ctzw "ctzw" Zbb (OP_IMM_32, 0b001, 0b011_0000, 1);
    /// Counts ones of 32 bits. B, Basic bit-manipulation.
    Cpopw cpopw "cpopw" Zbb (OP_IMM_32, 0b001, 0b011_0000, 2);
    /// Sign-extends a byte. B, Basic bit-manipulation.
    SextB sext_b "sext.b" Zbb (OP_IMM, 0b001, 0b011_0000, 4);
    /// Sign-extends a half-word. B, Basic bit-manipulation.
    SextH sext_h "sext.h" Zbb (OP_IMM, 0b001, 0b011_0000, 5);
    /// Zero-extends a half-word. B, Basic bit-manipulation.
    ZextH zext_h "zext.h" Zbb (OP_32, 0b100, 0b000_0100, 0);
    /// Makes each non-zero byte 0xff. B, Basic bit-manipulation.
    OrcB orc_b "orc.b" Zbb (OP_IMM, 0b101, 0b001_0100, 7);
    /// Reverses the bytes. B, Basic bit-manipulation.
    Rev8 rev8 "rev8" Zbb (OP_IMM, 0b101, 0b011_0101, 24);
}

rows! {
    /// Register with immediate.
    IOp => I(rd: rd, rs1: rs1, imm: i_imm), i;
    /// `rs1 + imm`. Integer Register-Immediate Instructions.
    Addi addi "addi" I (OP_IMM, 0b000);
    /// `rs1 < imm`, signed. Integer Register-Immediate Instructions.
    Slti slti "slti" I (OP_IMM, 0b010);
    /// `rs1 < imm`, unsigned. Integer Register-Immediate Instructions.
    Sltiu sltiu "sltiu" I (OP_IMM, 0b011);
    /// `rs1 ^ imm`. Integer Register-Immediate Instructions.
    Xori xori "xori" I (OP_IMM, 0b100);
    /// `rs1 | imm`. Integer Register-Immediate Instructions. With `rd` =
    /// `zero` and the right low bits it is a prefetch: see
    /// [`prefetch_r`](super::prefetch_r).
    Ori ori "ori" I (OP_IMM, 0b110);
    /// `rs1 & imm`. Integer Register-Immediate Instructions.
    Andi andi "andi" I (OP_IMM, 0b111);
    /// `sext32(rs1 + imm)`. RV64I, Integer Register-Immediate Instructions.
    Addiw addiw "addiw" I (OP_IMM_32, 0b000);
}

rows! {
    /// Shifts and single bits, 64 bits wide.
    ShiftOp => Shift(rd: rd, rs1: rs1, shamt: shamt6), shift;
    /// `rs1 << shamt`. RV64I, Integer Register-Immediate Instructions.
    Slli slli "slli" I (OP_IMM, 0b001, 0b00_0000);
    /// `rs1 >> shamt`, zeros in. RV64I, Integer Register-Immediate Instructions.
    Srli srli "srli" I (OP_IMM, 0b101, 0b00_0000);
    /// `rs1 >> shamt`, sign in. RV64I, Integer Register-Immediate Instructions.
    Srai srai "srai" I (OP_IMM, 0b101, 0b01_0000);
    /// `zext32(rs1) << shamt`. B, Address generation instructions.
    SlliUw slli_uw "slli.uw" Zba (OP_IMM_32, 0b001, 0b00_0010);
    /// Rotate right. B, Basic bit-manipulation.
    Rori rori "rori" Zbb (OP_IMM, 0b101, 0b01_1000);
    /// Clears a bit. B, Single-bit instructions.
    Bclri bclri "bclri" Zbs (OP_IMM, 0b001, 0b01_0010);
    /// Extracts a bit. B, Single-bit instructions.
    Bexti bexti "bexti" Zbs (OP_IMM, 0b101, 0b01_0010);
    /// Inverts a bit. B, Single-bit instructions.
    Binvi binvi "binvi" Zbs (OP_IMM, 0b001, 0b01_1010);
    /// Sets a bit. B, Single-bit instructions.
    Bseti bseti "bseti" Zbs (OP_IMM, 0b001, 0b00_1010);
}

rows! {
    /// Shifts, 32 bits wide.
    ShiftWOp => ShiftW(rd: rd, rs1: rs1, shamt: shamt5), r;
    /// `sext32(rs1 << shamt)`. RV64I, Integer Register-Immediate Instructions.
    Slliw slliw "slliw" I (OP_IMM_32, 0b001, 0b000_0000);
    /// `sext32(rs1[31:0] >> shamt)`, zeros in. RV64I, Integer Register-Immediate Instructions.
    Srliw srliw "srliw" I (OP_IMM_32, 0b101, 0b000_0000);
    /// `sext32(rs1[31:0] >> shamt)`, sign in. RV64I, Integer Register-Immediate Instructions.
    Sraiw sraiw "sraiw" I (OP_IMM_32, 0b101, 0b010_0000);
    /// Rotate 32 bits right. B, Basic bit-manipulation.
    Roriw roriw "roriw" Zbb (OP_IMM_32, 0b101, 0b011_0000);
}

rows! {
    /// Loads.
    LoadOp => Load(rd: rd, rs1: rs1, imm: i_imm), i;
    /// Loads a byte, sign-extended. Load and Store Instructions.
    Lb lb "lb" I (LOAD, 0b000);
    /// Loads a half-word, sign-extended. Load and Store Instructions.
    Lh lh "lh" I (LOAD, 0b001);
    /// Loads a word, sign-extended. Load and Store Instructions.
    Lw lw "lw" I (LOAD, 0b010);
    /// Loads a double-word. RV64I, Load and Store Instructions.
    Ld ld "ld" I (LOAD, 0b011);
    /// Loads a byte, zero-extended. Load and Store Instructions.
    Lbu lbu "lbu" I (LOAD, 0b100);
    /// Loads a half-word, zero-extended. Load and Store Instructions.
    Lhu lhu "lhu" I (LOAD, 0b101);
    /// Loads a word, zero-extended. RV64I, Load and Store Instructions.
    Lwu lwu "lwu" I (LOAD, 0b110);
}

rows! {
    /// Stores: the value, the base, the offset.
    StoreOp => Store(rs2: rs2, rs1: rs1, imm: s_imm), i;
    /// Stores a byte. Load and Store Instructions.
    Sb sb "sb" I (STORE, 0b000);
    /// Stores a half-word. Load and Store Instructions.
    Sh sh "sh" I (STORE, 0b001);
    /// Stores a word. Load and Store Instructions.
    Sw sw "sw" I (STORE, 0b010);
    /// Stores a double-word. RV64I, Load and Store Instructions.
    Sd sd "sd" I (STORE, 0b011);
}

rows! {
    /// Conditional branches.
    BranchOp => Branch(rs1: rs1, rs2: rs2, offset: b_imm), i;
    /// Branches if equal. Conditional Branches.
    Beq beq "beq" I (BRANCH, 0b000);
    /// Branches if not equal. Conditional Branches.
    Bne bne "bne" I (BRANCH, 0b001);
    /// Branches if `rs1 < rs2`, signed. Conditional Branches.
    Blt blt "blt" I (BRANCH, 0b100);
    /// Branches if `rs1 >= rs2`, signed. Conditional Branches.
    Bge bge "bge" I (BRANCH, 0b101);
    /// Branches if `rs1 < rs2`, unsigned. Conditional Branches.
    Bltu bltu "bltu" I (BRANCH, 0b110);
    /// Branches if `rs1 >= rs2`, unsigned. Conditional Branches.
    Bgeu bgeu "bgeu" I (BRANCH, 0b111);
}

rows! {
    /// Upper immediates.
    UOp => U(rd: rd, imm: u_imm), u;
    /// `imm << 12`. Integer Register-Immediate Instructions.
    Lui lui "lui" I (LUI);
    /// `pc + (imm << 12)`. Integer Register-Immediate Instructions. With
    /// `rd` = `zero` it is a landing pad: see [`lpad`](super::lpad).
    Auipc auipc "auipc" I (AUIPC);
}

rows! {
    /// The direct jump.
    JalOp => Jal(rd: rd, offset: j_imm), u;
    /// Jumps by `offset`, link in `rd`. Unconditional Jumps.
    Jal jal "jal" I (JAL);
}

rows! {
    /// The indirect jump.
    JalrOp => Jalr(rd: rd, rs1: rs1, imm: i_imm), i;
    /// Jumps to `rs1 + imm`, link in `rd`. Unconditional Jumps.
    Jalr jalr "jalr" I (JALR, 0b000);
}
