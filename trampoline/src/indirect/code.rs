//! Codegen: the stubs of a front, and the entries of a version.
//!
//! ```text
//!   stub     addi sp, -F ; sd ra          F: return address, and the member's stack arguments,
//!            (copy stack arguments)          which the entry must find at its sp
//!            ld t1, word(tp)
//!            bne t1, tp, slow             the thread is new, or in a member already
//!            auipc t1 ; ld t1, cell
//!            sd t1, word(tp)
//!            jalr t1
//!            sd tp, word(tp)
//!            ld ra ; addi sp, F ; ret
//!
//!   image    frame of `crate::frame`, argument slots, (zeros for the return slots)
//!            a0 = context, a1 = cookie ; call the program
//!            the result, extended as C has it ; ret
//! ```
//!
//! Key types: [`StubSpec`], [`EntrySpec`], [`Made`]. Neighbours: `front` and `member` place what is
//! made here. Source: psABI for the registers; kernel `arch/riscv/net/bpf_jit_comp64.c`.

use rv64::Reg::{self, *};
use rv64::{AsmError, Cond, FReg, Features, Label, Order, SImm, imm, insn};
use symbols::{Cfa, Row, SavedFrom, Unwind};

use super::enter;
use crate::emit::Emit;
use crate::frame::{Frame, FrameSlot, FrameSpec, FrameWith};
use crate::guard::{self, LEVELS_OFF, OPS_DEPTH_OFF, OPS_NESTED_OFF, OPS_NESTING, OPS_OFF};
use crate::model::{FuncModel, Loc, Pass, Slot, StackArgs, Upper};
use crate::prog::{Needs, RetFrom, meta};

/// The largest frame that one `addi` makes and whose slots all loads reach.
pub(super) const MAX_FRAME_BYTES: u32 = 2032;

/// What a stub depends on.
#[derive(Debug)]
pub(super) struct StubSpec<'a> {
    pub(super) model: &'a FuncModel,
    /// Address of its cell.
    pub(super) cell: u64,
}

/// What an entry depends on.
#[derive(Debug)]
pub(super) enum EntrySpec<'a> {
    /// Goes on in a function.
    Jump(u64),
    /// Runs a program.
    Prog {
        model: &'a FuncModel,
        func: u64,
        cookie: Option<u64>,
        ret: RetFrom,
        needs: Needs,
    },
    /// Returns zeros.
    Zeros(&'a FuncModel),
}

/// Code for one base.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) bytes: Vec<u8>,
    /// Where each piece begins.
    pub(super) offs: Vec<u32>,
    pub(super) unwind: Unwind,
}

/// The stubs of a front that counts deep nesting at `deep`.
pub(super) fn stubs(
    specs: &[StubSpec<'_>],
    deep: u64,
    features: Features,
    base: u64,
) -> Result<Made, AsmError> {
    let mut g = Gen::new(features);
    let mut cold = Vec::new();
    for spec in specs {
        cold.push(g.stub(spec));
    }
    for stub in &cold {
        g.slow(stub, deep);
    }
    g.finish(base)
}

/// The entries of a version.
pub(super) fn entries(
    specs: &[EntrySpec<'_>],
    features: Features,
    base: u64,
) -> Result<Made, AsmError> {
    let mut g = Gen::new(features);
    for spec in specs {
        g.start();
        match *spec {
            EntrySpec::Jump(func) => g.e.jump_abs(func, T1),
            EntrySpec::Zeros(model) => g.zeros(model),
            EntrySpec::Prog {
                model,
                func,
                cookie,
                ret,
                needs,
            } => g.prog(model, func, cookie, ret, needs),
        }
    }
    g.finish(base)
}

/// The frame of a stub: the return address above the copied stack arguments.
pub(super) fn stub_frame_bytes(model: &FuncModel) -> u32 {
    (8 + 8 * stack_slots(model)).next_multiple_of(16)
}

/// The frame of an image.
pub(super) fn prog_frame(model: &FuncModel, needs: Needs) -> Frame {
    let mut with = FrameWith::empty();
    with.set(FrameWith::META, needs.intersects(Needs::META | Needs::RET));
    with.set(FrameWith::IP, needs.contains(Needs::IP));
    with.set(FrameWith::ATTACH_COOKIE, needs.contains(Needs::COOKIE));
    Frame::new(&FrameSpec {
        arg_slots: model.nr_arg_slots(),
        ret_slots: model.ret().slots().len(),
        stack_slots: 0,
        cookies: 0,
        with,
    })
}

fn stack_slots(model: &FuncModel) -> u32 {
    match model.stack_args() {
        StackArgs::Known { slots } => slots.into(),
        StackArgs::Unknown => 0,
    }
}

fn arg_reg(n: u8) -> Reg {
    [A0, A1, A2, A3, A4, A5, A6, A7][n as usize & 7]
}

fn arg_freg(n: u8) -> FReg {
    use FReg::*;
    [Fa0, Fa1, Fa2, Fa3, Fa4, Fa5, Fa6, Fa7][n as usize & 7]
}

fn word_off() -> i64 {
    guard::thread_tp_off() + i64::from(OPS_OFF)
}

/// What is needed to go on with a stub out of line.
struct Cold {
    slow: Label,
    retry: Label,
    out: Label,
    frame_bytes: u32,
    cell: u64,
}

struct Gen {
    e: Emit,
    starts: Vec<Label>,
    /// From each mark on: the frame's size, and the registers that are in it, as DWARF wants them.
    rows: Vec<(u32, Vec<(u8, i32)>)>,
    /// Two instructions that load a cell.
    holes: Vec<(Label, Label, u64)>,
}

impl Gen {
    fn new(features: Features) -> Self {
        Gen {
            e: Emit::new(features),
            starts: Vec::new(),
            rows: Vec::new(),
            holes: Vec::new(),
        }
    }

    /// A piece begins: one that is called.
    fn start(&mut self) {
        self.e.align(64);
        let here = self.e.here();
        self.starts.push(here);
        self.row(0, &[]);
    }

    fn row(&mut self, frame_bytes: u32, saved: &[(Reg, i32)]) {
        self.e.mark();
        let saved = saved.iter().map(|(reg, off)| (reg.num() as u8, *off));
        self.rows.push((frame_bytes, saved.collect()));
    }

    fn finish(self, base: u64) -> Result<Made, AsmError> {
        let code = self.e.finish(base)?;
        let mut bytes = code.bytes.clone();
        for (hi, lo, cell) in self.holes {
            let at = code.offset(hi);
            let from = base + u64::from(at);
            let [upper, load] = load_words(from, cell).ok_or(AsmError::OutOfReach {
                offset: at,
                distance: cell.wrapping_sub(from) as i64,
            })?;
            for (at, word) in [(at, upper), (code.offset(lo), load)] {
                bytes[at as usize..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
        let len = bytes.len() as u32;
        let rows = code.marks().iter().zip(self.rows);
        let rows = rows.filter(|(off, _)| **off < len);
        let rows = rows.map(|(off, (frame_bytes, saved))| Row {
            off: *off,
            cfa: Cfa {
                reg: Sp.num() as u8,
                off: frame_bytes,
            },
            from: SavedFrom::Cfa,
            saved,
        });
        Ok(Made {
            offs: self
                .starts
                .iter()
                .map(|start| code.offset(*start))
                .collect(),
            unwind: Unwind {
                off: 0,
                len,
                rows: rows.collect(),
            },
            bytes,
        })
    }

    /// `t1` = the cell, which may be anywhere near.
    fn load_cell(&mut self, cell: u64) {
        let hi = self.e.hole(insn::auipc(T1, SImm::ZERO));
        let lo = self.e.hole(insn::ld(T1, T1, imm!(0)));
        self.holes.push((hi, lo, cell));
    }

    fn stub(&mut self, spec: &StubSpec<'_>) -> Cold {
        let cold = Cold {
            slow: self.e.new_label(),
            retry: self.e.new_label(),
            out: self.e.new_label(),
            frame_bytes: stub_frame_bytes(spec.model),
            cell: spec.cell,
        };
        let frame = cold.frame_bytes;
        self.start();
        self.e.addi(Sp, Sp, -i64::from(frame));
        self.row(frame, &[]);
        self.e.sd(Ra, Sp, frame - 8);
        self.row(frame, &[(Ra, -8)]);
        for n in 0..stack_slots(spec.model) {
            self.e.ld(T1, Sp, frame + 8 * n);
            self.e.sd(T1, Sp, 8 * n);
        }
        self.e.bind(cold.retry);
        self.e.ld_tls(T1, word_off());
        self.e.branch(Cond::Ne, T1, Tp, cold.slow);
        self.load_cell(spec.cell);
        self.e.sd_tls(T1, word_off());
        self.e.call_reg(Ra, T1);
        self.e.sd_tls(Tp, word_off());
        self.e.bind(cold.out);
        self.e.ld(Ra, Sp, frame - 8);
        self.e.addi(Sp, Sp, frame.into());
        self.row(0, &[]);
        self.e.ret();
        cold
    }

    /// Where a stub goes when the word is not idle: `t1` holds it.
    fn slow(&mut self, stub: &Cold, deep: u64) {
        let (nested, too_deep) = (self.e.new_label(), self.e.new_label());
        self.e.bind(stub.slow);
        self.row(stub.frame_bytes, &[(Ra, -8)]);
        self.e.branch(Cond::Ne, T1, Zero, nested);
        self.e.ld_lit(T1, enter::register_addr());
        self.e.call_reg(Ra, T1);
        self.e.branch(Cond::Eq, T1, Zero, stub.retry);
        self.e.jump(too_deep);

        // The order lets whoever looks at any moment find every entry: first the copy, then the
        // depth, then the word; and back. A signal handler in between stores the same copy.
        self.e.bind(nested);
        self.thread_block();
        self.e.lw(T3, T5, OPS_DEPTH_OFF);
        self.e.li(T4, OPS_NESTING as i64);
        self.e.branch(Cond::Geu, T3, T4, too_deep);
        self.nested_place();
        self.e.sd(T1, T4, OPS_NESTED_OFF as u32);
        self.e.addi(T3, T3, 1);
        self.e.sw(T3, T5, OPS_DEPTH_OFF);
        self.load_cell(stub.cell);
        self.e.sd(T1, T5, OPS_OFF as u32);
        self.e.call_reg(Ra, T1);
        self.thread_block();
        self.e.lw(T3, T5, OPS_DEPTH_OFF);
        self.e.addi(T3, T3, -1);
        self.nested_place();
        self.e.ld(T4, T4, OPS_NESTED_OFF as u32);
        self.e.sd(T4, T5, OPS_OFF as u32);
        self.e.sw(T3, T5, OPS_DEPTH_OFF);
        self.e.jump(stub.out);

        self.e.bind(too_deep);
        self.count(deep, 1, Order::Relaxed);
        self.load_cell(stub.cell);
        self.e.call_reg(Ra, T1);
        self.count(deep, -1, Order::Rl);
        self.e.jump(stub.out);
    }

    /// `t5` = the thread's block.
    fn thread_block(&mut self) {
        self.e.li(T5, guard::thread_tp_off());
        self.e.add(T5, T5, Tp);
    }

    /// `t4` = the thread's levels and eight times `t3`. `t5` is the block.
    fn nested_place(&mut self) {
        self.e.ld(T4, T5, LEVELS_OFF as u32);
        self.e.insn(insn::slli(T3, T3, rv64::uimm!(3)));
        self.e.add(T4, T4, T3);
        self.e.insn(insn::srli(T3, T3, rv64::uimm!(3)));
    }

    fn count(&mut self, deep: u64, by: i64, order: Order) {
        self.e.ld_lit(T5, deep);
        self.e.li(T3, by);
        self.e.insn(insn::amoadd_d(Zero, T3, T5, order));
    }

    fn prog(
        &mut self,
        model: &FuncModel,
        func: u64,
        cookie: Option<u64>,
        ret: RetFrom,
        needs: Needs,
    ) {
        let frame = prog_frame(model, needs);
        let off = |slot| frame.off(slot).unwrap_or_default();
        let (size, ctx) = (frame.size_bytes(), frame.ctx());
        let saved = [(Ra, -8), (Fp, -16)];
        self.e.addi(Sp, Sp, -i64::from(size));
        self.row(size, &[]);
        self.e.sd(Ra, Sp, off(FrameSlot::RetAddr));
        self.e.sd(Fp, Sp, off(FrameSlot::ParentFp));
        self.row(size, &saved);
        self.e.addi(Fp, Sp, size.into());
        self.save_args(model, ctx);
        let ret_off = off(FrameSlot::Retval);
        if ret == RetFrom::Slots {
            for i in 0..model.ret().slots().len() as u32 {
                self.e.sd(Zero, Sp, ret_off + 8 * i);
            }
        }
        if needs.intersects(Needs::META | Needs::RET) {
            let word = model.nr_arg_slots() as u64 | meta::NO_RET;
            self.e.li(T3, word as i64);
            self.e.sd(T3, Sp, ctx - 8);
        }
        if needs.contains(Needs::IP) {
            self.e.sd(Zero, Sp, ctx - 16);
        }
        if needs.contains(Needs::COOKIE) {
            self.e.sd(Zero, Sp, off(FrameSlot::AttachCookie));
        }
        self.e.addi(A0, Sp, ctx.into());
        if let Some(cookie) = cookie {
            self.e.ld_lit(A1, cookie);
        }
        self.e.call_abs(func, Ra);
        if ret == RetFrom::Value && !model.ret().slots().is_empty() {
            self.e.sd(A0, Sp, ret_off);
        }
        for (i, slot) in model.ret().slots().iter().enumerate() {
            self.load_ret(slot, ret_off + 8 * i as u32, ctx);
        }
        self.e.ld(Ra, Sp, off(FrameSlot::RetAddr));
        self.e.ld(Fp, Sp, off(FrameSlot::ParentFp));
        self.e.addi(Sp, Sp, size.into());
        self.row(0, &[]);
        self.e.ret();
    }

    fn save_args(&mut self, model: &FuncModel, ctx: u32) {
        for (i, slot) in model.slots().iter().enumerate() {
            let off = ctx + 8 * i as u32;
            match slot.loc {
                Loc::Int(n) => self.e.sd(arg_reg(n), Sp, off),
                Loc::Fp(n) => self.e.fsd(arg_freg(n), Sp, off),
                Loc::Stack(n) => {
                    self.e.ld(T1, Fp, 8 * u32::from(n));
                    self.e.sd(T1, Sp, off);
                }
            }
        }
    }

    /// A return register, with what psABI wants above a narrower value. Where the value is by
    /// reference: the address that the caller gave.
    fn load_ret(&mut self, slot: &Slot, off: u32, ctx: u32) {
        if let Pass::Reference { .. } = slot.pass {
            return self.e.ld(A0, Sp, ctx);
        }
        let at = SImm::new(off.into()).unwrap_or(SImm::ZERO);
        match slot.loc {
            Loc::Fp(n) if slot.size_bytes == 4 => self.e.insn(insn::flw(arg_freg(n), Sp, at)),
            Loc::Fp(n) => {
                if slot.size_bytes == 2 {
                    self.e.li(T3, -1);
                    self.e.sh(T3, Sp, off + 2);
                    self.e.sw(T3, Sp, off + 4);
                }
                self.e.fld(arg_freg(n), Sp, off);
            }
            Loc::Int(n) => {
                let load = match (slot.upper, slot.size_bytes) {
                    (Upper::Sign, 4) => insn::lw,
                    (Upper::Sign, 2) => insn::lh,
                    (Upper::Sign, 1) => insn::lb,
                    (Upper::Zero, 2) => insn::lhu,
                    (Upper::Zero, 1) => insn::lbu,
                    _ => insn::ld,
                };
                self.e.insn(load(arg_reg(n), Sp, at));
            }
            // Nothing is returned on the stack.
            Loc::Stack(_) => {}
        }
    }

    /// Returns zeros, also where the value is by reference.
    fn zeros(&mut self, model: &FuncModel) {
        for slot in model.ret().slots() {
            match (slot.pass, slot.loc) {
                (Pass::Reference { size_bytes }, _) => self.zero_memory(size_bytes),
                (Pass::Value, Loc::Int(n)) => self.e.li(arg_reg(n), 0),
                (Pass::Value, Loc::Fp(n)) => {
                    // Zero with the ones above it that a narrower value has.
                    let bits = u64::MAX.checked_shl(8 * u32::from(slot.size_bytes));
                    self.e.li(T1, bits.unwrap_or(0) as i64);
                    self.e.insn(insn::fmv_d_x(arg_freg(n), T1));
                }
                (Pass::Value, Loc::Stack(_)) => {}
            }
        }
        self.e.ret();
    }

    /// Clears what `a0` points to.
    fn zero_memory(&mut self, size_bytes: u32) {
        self.e.li(T1, size_bytes.into());
        self.e.add(T1, T1, A0);
        let (again, done) = (self.e.new_label(), self.e.new_label());
        self.e.bind(again);
        self.e.branch(Cond::Eq, T1, A0, done);
        self.e.addi(T1, T1, -1);
        self.e.insn(insn::sb(Zero, T1, imm!(0)));
        self.e.jump(again);
        self.e.bind(done);
    }
}

/// `auipc t1 ; ld t1` at `at`, for the word at `cell`.
fn load_words(at: u64, cell: u64) -> Option<[u32; 2]> {
    let by = cell.wrapping_sub(at) as i64;
    let hi = by.checked_add(0x800)? >> 12;
    let upper = insn::auipc(T1, SImm::new(hi)?);
    let load = insn::ld(T1, T1, SImm::new(by - (hi << 12))?);
    Some([upper.encode(), load.encode()])
}
