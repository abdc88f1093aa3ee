//! Floating point: F and D.
//!
//! `fcvt.d.s`, `fcvt.d.w` and `fcvt.d.wu` never round: their rounding field
//! is fixed to zero here, as GNU as writes it, and other values of it are
//! decode errors.
//!
//! Neighbours: `format` turns a row into functions; [`Rm`](crate::Rm) is the
//! rounding mode.
//!
//! Source: Unprivileged ISA, chapters "F" and "D".

use super::bits::{LOAD_FP, MADD, MSUB, NMADD, NMSUB, STORE_FP, fp, fp2, fp3, fp23, fused, i};
use super::{Ext, Insn, format::rows, place};

/// Widths, as `fmt` holds them.
const S: u32 = 0b00;
const D: u32 = 0b01;

rows! {
    /// Loads.
    FLoadOp => FLoad(fd: fd, rs1: rs1, imm: i_imm), i;
    /// Loads 32 bits. F, Load and Store Instructions.
    Flw flw "flw" F (LOAD_FP, 0b010);
    /// Loads 64 bits. D, Load and Store Instructions.
    Fld fld "fld" D (LOAD_FP, 0b011);
}

rows! {
    /// Stores: the value, the base, the offset.
    FStoreOp => FStore(fs2: fs2, rs1: rs1, imm: s_imm), i;
    /// Stores 32 bits. F, Load and Store Instructions.
    Fsw fsw "fsw" F (STORE_FP, 0b010);
    /// Stores 64 bits. D, Load and Store Instructions.
    Fsd fsd "fsd" D (STORE_FP, 0b011);
}

rows! {
    /// Fused multiply-add.
    FFusedOp => FFused(fd: fd, fs1: fs1, fs2: fs2, fs3: fs3, rm: rm), fused;
    /// `fs1 * fs2 + fs3`. F, Computational Instructions.
    FmaddS fmadd_s "fmadd.s" F (MADD, S);
    /// `fs1 * fs2 - fs3`. F, Computational Instructions.
    FmsubS fmsub_s "fmsub.s" F (MSUB, S);
    /// `-(fs1 * fs2) + fs3`. F, Computational Instructions.
    FnmsubS fnmsub_s "fnmsub.s" F (NMSUB, S);
    /// `-(fs1 * fs2) - fs3`. F, Computational Instructions.
    FnmaddS fnmadd_s "fnmadd.s" F (NMADD, S);
    /// `fs1 * fs2 + fs3`. D, Computational Instructions.
    FmaddD fmadd_d "fmadd.d" D (MADD, D);
    /// `fs1 * fs2 - fs3`. D, Computational Instructions.
    FmsubD fmsub_d "fmsub.d" D (MSUB, D);
    /// `-(fs1 * fs2) + fs3`. D, Computational Instructions.
    FnmsubD fnmsub_d "fnmsub.d" D (NMSUB, D);
    /// `-(fs1 * fs2) - fs3`. D, Computational Instructions.
    FnmaddD fnmadd_d "fnmadd.d" D (NMADD, D);
}

rows! {
    /// Arithmetic that rounds.
    FArithOp => FArith(fd: fd, fs1: fs1, fs2: fs2, rm: rm), fp;
    /// `fs1 + fs2`. F, Computational Instructions.
    FaddS fadd_s "fadd.s" F (0b00000, S);
    /// `fs1 - fs2`. F, Computational Instructions.
    FsubS fsub_s "fsub.s" F (0b00001, S);
    /// `fs1 * fs2`. F, Computational Instructions.
    FmulS fmul_s "fmul.s" F (0b00010, S);
    /// `fs1 / fs2`. F, Computational Instructions.
    FdivS fdiv_s "fdiv.s" F (0b00011, S);
    /// `fs1 + fs2`. D, Computational Instructions.
    FaddD fadd_d "fadd.d" D (0b00000, D);
    /// `fs1 - fs2`. D, Computational Instructions.
    FsubD fsub_d "fsub.d" D (0b00001, D);
    /// `fs1 * fs2`. D, Computational Instructions.
    FmulD fmul_d "fmul.d" D (0b00010, D);
    /// `fs1 / fs2`. D, Computational Instructions.
    FdivD fdiv_d "fdiv.d" D (0b00011, D);
}

rows! {
    /// Signs and extremes: nothing rounds.
    FBinaryOp => FBinary(fd: fd, fs1: fs1, fs2: fs2), fp3;
    /// `fs1` with the sign of `fs2`. F, Sign-Injection.
    FsgnjS fsgnj_s "fsgnj.s" F (0b00100, S, 0b000);
    /// `fs1` with the opposite sign of `fs2`. F, Sign-Injection.
    FsgnjnS fsgnjn_s "fsgnjn.s" F (0b00100, S, 0b001);
    /// `fs1` with both signs' exclusive or. F, Sign-Injection.
    FsgnjxS fsgnjx_s "fsgnjx.s" F (0b00100, S, 0b010);
    /// The smaller. F, Computational Instructions.
    FminS fmin_s "fmin.s" F (0b00101, S, 0b000);
    /// The larger. F, Computational Instructions.
    FmaxS fmax_s "fmax.s" F (0b00101, S, 0b001);
    /// `fs1` with the sign of `fs2`. D, Sign-Injection.
    FsgnjD fsgnj_d "fsgnj.d" D (0b00100, D, 0b000);
    /// `fs1` with the opposite sign of `fs2`. D, Sign-Injection.
    FsgnjnD fsgnjn_d "fsgnjn.d" D (0b00100, D, 0b001);
    /// `fs1` with both signs' exclusive or. D, Sign-Injection.
    FsgnjxD fsgnjx_d "fsgnjx.d" D (0b00100, D, 0b010);
    /// The smaller. D, Computational Instructions.
    FminD fmin_d "fmin.d" D (0b00101, D, 0b000);
    /// The larger. D, Computational Instructions.
    FmaxD fmax_d "fmax.d" D (0b00101, D, 0b001);
}

rows! {
    /// Comparisons.
    FCompareOp => FCompare(rd: rd, fs1: fs1, fs2: fs2), fp3;
    /// `fs1 == fs2`, quiet. F, Compare Instructions.
    FeqS feq_s "feq.s" F (0b10100, S, 0b010);
    /// `fs1 < fs2`, signalling. F, Compare Instructions.
    FltS flt_s "flt.s" F (0b10100, S, 0b001);
    /// `fs1 <= fs2`, signalling. F, Compare Instructions.
    FleS fle_s "fle.s" F (0b10100, S, 0b000);
    /// `fs1 == fs2`, quiet. D, Compare Instructions.
    FeqD feq_d "feq.d" D (0b10100, D, 0b010);
    /// `fs1 < fs2`, signalling. D, Compare Instructions.
    FltD flt_d "flt.d" D (0b10100, D, 0b001);
    /// `fs1 <= fs2`, signalling. D, Compare Instructions.
    FleD fle_d "fle.d" D (0b10100, D, 0b000);
}

rows! {
    /// One operand, rounded.
    FUnaryOp => FUnary(fd: fd, fs1: fs1, rm: rm), fp2;
    /// Square root. F, Computational Instructions.
    FsqrtS fsqrt_s "fsqrt.s" F (0b01011, S, 0);
    /// Square root. D, Computational Instructions.
    FsqrtD fsqrt_d "fsqrt.d" D (0b01011, D, 0);
    /// Double to single. D, Conversion Instructions.
    FcvtSD fcvt_s_d "fcvt.s.d" D (0b01000, S, 1);
}

rows! {
    /// The conversion that never rounds.
    FWidenOp => FWiden(fd: fd, fs1: fs1), fp23;
    /// Single to double. D, Conversion Instructions.
    FcvtDS fcvt_d_s "fcvt.d.s" D (0b01000, D, 0, 0);
}

rows! {
    /// Float to integer, rounded.
    FToIntOp => FToInt(rd: rd, fs1: fs1, rm: rm), fp2;
    /// To `i32`. F, Conversion Instructions.
    FcvtWS fcvt_w_s "fcvt.w.s" F (0b11000, S, 0);
    /// To `u32`, sign-extended. F, Conversion Instructions.
    FcvtWuS fcvt_wu_s "fcvt.wu.s" F (0b11000, S, 1);
    /// To `i64`. F, Conversion Instructions.
    FcvtLS fcvt_l_s "fcvt.l.s" F (0b11000, S, 2);
    /// To `u64`. F, Conversion Instructions.
    FcvtLuS fcvt_lu_s "fcvt.lu.s" F (0b11000, S, 3);
    /// To `i32`. D, Conversion Instructions.
    FcvtWD fcvt_w_d "fcvt.w.d" D (0b11000, D, 0);
    /// To `u32`, sign-extended. D, Conversion Instructions.
    FcvtWuD fcvt_wu_d "fcvt.wu.d" D (0b11000, D, 1);
    /// To `i64`. D, Conversion Instructions.
    FcvtLD fcvt_l_d "fcvt.l.d" D (0b11000, D, 2);
    /// To `u64`. D, Conversion Instructions.
    FcvtLuD fcvt_lu_d "fcvt.lu.d" D (0b11000, D, 3);
}

rows! {
    /// Float to integer register, bits or class.
    FMoveOp => FMove(rd: rd, fs1: fs1), fp23;
    /// The 32 bits, sign-extended. F, Move Instructions.
    FmvXW fmv_x_w "fmv.x.w" F (0b11100, S, 0, 0b000);
    /// The class of `fs1`. F, Classify Instruction.
    FclassS fclass_s "fclass.s" F (0b11100, S, 0, 0b001);
    /// The 64 bits. D, Move Instructions.
    FmvXD fmv_x_d "fmv.x.d" D (0b11100, D, 0, 0b000);
    /// The class of `fs1`. D, Classify Instruction.
    FclassD fclass_d "fclass.d" D (0b11100, D, 0, 0b001);
}

rows! {
    /// Integer to float, rounded.
    IntToFOp => IntToF(fd: fd, rs1: rs1, rm: rm), fp2;
    /// From `i32`. F, Conversion Instructions.
    FcvtSW fcvt_s_w "fcvt.s.w" F (0b11010, S, 0);
    /// From `u32`. F, Conversion Instructions.
    FcvtSWu fcvt_s_wu "fcvt.s.wu" F (0b11010, S, 1);
    /// From `i64`. F, Conversion Instructions.
    FcvtSL fcvt_s_l "fcvt.s.l" F (0b11010, S, 2);
    /// From `u64`. F, Conversion Instructions.
    FcvtSLu fcvt_s_lu "fcvt.s.lu" F (0b11010, S, 3);
    /// From `i64`. D, Conversion Instructions.
    FcvtDL fcvt_d_l "fcvt.d.l" D (0b11010, D, 2);
    /// From `u64`. D, Conversion Instructions.
    FcvtDLu fcvt_d_lu "fcvt.d.lu" D (0b11010, D, 3);
}

rows! {
    /// Integer register to float: bits, or a conversion that never rounds.
    MoveFOp => MoveF(fd: fd, rs1: rs1), fp23;
    /// The low 32 bits. F, Move Instructions.
    FmvWX fmv_w_x "fmv.w.x" F (0b11110, S, 0, 0b000);
    /// The 64 bits. D, Move Instructions.
    FmvDX fmv_d_x "fmv.d.x" D (0b11110, D, 0, 0b000);
    /// From `i32`. D, Conversion Instructions.
    FcvtDW fcvt_d_w "fcvt.d.w" D (0b11010, D, 0, 0b000);
    /// From `u32`. D, Conversion Instructions.
    FcvtDWu fcvt_d_wu "fcvt.d.wu" D (0b11010, D, 1, 0b000);
}
