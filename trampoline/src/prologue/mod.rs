//! Moving a function's first instructions elsewhere, so that a jump fits in their place.
//!
//! ```text
//!   function                              copy
//!   entry:  auipc t1 ; jr t1   ──▶ …      insn 0, insn 1, …      made for where they stand now
//!   insn n  ◀──────────────────────────── j insn n               nothing if the last one jumps
//! ```
//! The copy means what the original meant: addresses that the original would have computed are
//! constants, branches go where they went, and a call leaves the *original* return address, so
//! that nobody ever returns into a copy. [`same_meaning`] proves it of a copy by reading it.
//!
//! # What is refused, and why
//! - *A jump from elsewhere into the covered bytes*: it would land in the middle of our jump.
//!   [`Jumps`] knows all direct ones of an object. Indirect ones (tables of a `switch`) go to
//!   blocks that a branch inside the function can reach as well; nobody makes a block of the first
//!   few bytes the target of a table without a loop to it.
//! - *A loop to the entry*: every round would count as a call.
//! - *A return address inside the covered bytes.* A call is moved if it is the last instruction.
//! - *A system call behind the entry*: a thread that sleeps in it has its pc there, and the kernel
//!   may restart it there.
//! - *A breakpoint*: a debugger put it there, and takes it away again.
//! - *A temporary that is read before it is written*: psABI says that there is nothing in it, so
//!   caller and function follow a convention of their own (millicode, PLT, TLS descriptors, nested
//!   functions of GNU C, `fastcc` of LLVM), of which our jump and the code behind it know nothing.
//!   Of a static chain (`t2`) that is read on another way than straight on, the image is told, and
//!   keeps it (`takes_chain`); so it is of a function with a pad.
//!
//! A jump from one covered instruction forward to another is no jump from elsewhere: it becomes
//! one in the copy.
//!
//! # What no bytes tell
//! - *Other entries.* A symbol inside the covered bytes, for callers outside the object, is not
//!   seen: whoever makes a [`Body`] ends it before the next symbol.
//! - *Callers that know more than psABI.* Compiled together with the function, a caller may rely
//!   on temporaries that the function leaves alone (GCC's `-fipa-ra`; only functions that cannot
//!   be preempted). Ours are the jump's and the copy's [`Prologue::scratch`], and what the code
//!   between them overwrites. A [`Reach::Near`] jump to a copy in reach of a `j` uses none.
//! - *A function that reads its own code as data* finds the jump.
//!
//! # The scratch register
//! A temporary that no covered instruction writes holds, at each of them and wherever they go,
//! what it held at the entry: nothing that anybody may look at. So one register serves the copy as
//! a whole, and nothing has to be known of the code behind it. `t0` and `t2` are left alone: they
//! carry the return address of millicode and the static chain.
//!
//! # Threads
//! The state of a thread at a covered instruction is the state that the copy expects at the label
//! of that instruction ([`Prologue::emit`]), whatever has been made of it: a pair of `auipc` and
//! partner that is fused is computed anew as a whole where its partner stands. So a thread can be
//! carried from any instruction of the original to the copy by its pc alone.
//!
//! Key types: [`Body`], [`Jumps`], [`Prologue`], [`Refusal`]. Neighbours: [`rv64::step`] says what
//! an instruction does, [`rv64::Asm`] lays the copy out. Source: psABI, "Integer Register
//! Convention"; kernel `arch/riscv/kernel/probes/` (which moves one instruction, and simulates
//! those that care where they are).

mod jumps;
mod live;
mod moved;
mod refusal;
mod same;
#[cfg(test)]
mod tests;

use rv64::Reg::{self, T1, T2, T3, T4, T5, T6};
use rv64::{Asm, Flow, Label, RegSet, SImm, insn, step};

pub use jumps::Jumps;
use moved::{Covered, Moved, To};
pub use refusal::Refusal;
pub use same::{Difference, same_meaning};

/// What may serve the copy as scratch, the first choice first.
const SCRATCH: [Reg; 5] = [T1, T3, T4, T5, T6];

/// A function whose first instructions are to be moved.
#[derive(Copy, Clone, Debug)]
pub struct Body<'a> {
    /// The address of its first instruction.
    pub entry: u64,
    /// All its bytes, and none behind its end or the next symbol.
    pub bytes: &'a [u8],
    /// The jumps of the object that it belongs to, itself included.
    pub jumps: &'a Jumps,
}

/// How far the jump at the entry goes, which is how long it is.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Reach {
    /// `jal zero`: 4 bytes, ±1 MiB.
    Near,
    /// `auipc` and `jalr zero`: 8 bytes, ±2 GiB.
    Far,
}

impl Reach {
    /// The length of the jump in bytes.
    #[must_use]
    pub const fn jump_bytes(self) -> u8 {
        match self {
            Self::Near => 4,
            Self::Far => 8,
        }
    }
}

/// First instructions of a function that can be moved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prologue {
    entry: u64,
    covered: Vec<Covered>,
    /// One for each of `covered`.
    moved: Vec<Moved>,
    scratch: Reg,
    takes_chain: bool,
}

/// Covers the instructions that a jump of this `reach` over the function's entry touches.
///
/// # Errors
/// A [`Refusal`] that says which instruction stands against it.
pub fn plan(body: &Body<'_>, reach: Reach) -> Result<Prologue, Refusal> {
    Prologue::new(body, reach.jump_bytes())
}

/// Covers the first instruction alone: a trap of two bytes is stored over it.
///
/// # Errors
/// A [`Refusal`] that says which instruction stands against it.
pub fn plan_trap(body: &Body<'_>) -> Result<Prologue, Refusal> {
    Prologue::new(body, 2)
}

impl Prologue {
    fn new(body: &Body<'_>, jump_bytes: u8) -> Result<Self, Refusal> {
        let covered = moved::cover(body, jump_bytes)?;
        let moved = moved::moved(body, &covered)?;
        let takes_chain = refuse_custom_entry(body.entry, body.bytes, RegSet::EMPTY)?;
        let written = |set: RegSet, insn: &Covered| set.union(insn.step.writes);
        let written = covered.iter().fold(RegSet::EMPTY, written);
        Ok(Prologue {
            entry: body.entry,
            scratch: scratch(written).ok_or(Refusal::NoScratch { entry: body.entry })?,
            covered,
            moved,
            takes_chain,
        })
    }

    /// Whether the function finds something in `t2`.
    pub(crate) fn takes_chain(&self) -> bool {
        self.takes_chain
    }

    /// The address of the function.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The bytes of the covered instructions: those that the jump is stored over, and the rest of
    /// the last of them.
    #[must_use]
    pub fn covered_bytes(&self) -> u8 {
        self.covered.last().map_or(0, Covered::end)
    }

    /// Where the covered instructions begin, in bytes from the entry.
    pub fn offsets(&self) -> impl Iterator<Item = u8> + '_ {
        self.covered.iter().map(|insn| insn.off)
    }

    /// A register that holds nothing at the entry, nor wherever the copy leads: for the jump at
    /// the entry, and used by the copy.
    #[must_use]
    pub fn scratch(&self) -> Reg {
        self.scratch
    }

    /// Whether somebody comes to the instruction behind the covered ones through the copy: not if
    /// the last one jumps away or calls.
    #[must_use]
    pub fn falls_through(&self) -> bool {
        let away = |flow: Flow| flow.is_jump() || flow.is_call();
        self.covered
            .last()
            .is_some_and(|insn| !away(insn.step.flow))
    }

    /// Appends the copy and the jump back. Returns the offset of each covered instruction in the
    /// function, and the label of what does its work.
    pub fn emit(&self, asm: &mut Asm) -> Vec<(u8, Label)> {
        let labels: Vec<_> = self.offsets().map(|off| (off, asm.new_label())).collect();
        for (nth, moved) in self.moved.iter().enumerate() {
            asm.bind(labels[nth].1);
            self.emit_one(asm, &self.covered[nth], moved, &labels);
        }
        if self.falls_through() {
            let resume = self.entry + u64::from(self.covered_bytes());
            asm.jump_abs(resume, self.scratch);
        }
        labels
    }

    fn emit_one(&self, asm: &mut Asm, insn: &Covered, moved: &Moved, labels: &[(u8, Label)]) {
        match *moved {
            Moved::Same => asm.emit_encoded(insn.bytes()),
            Moved::ByPartner => {}
            Moved::Address { rd, address } => asm.la_abs(rd, address),
            Moved::Load { op, rd, address } => asm.load_abs(op, rd, address),
            Moved::Branch {
                cond,
                rs1,
                rs2,
                to: To::Covered(nth),
            } => asm.branch(cond, rs1, rs2, labels[nth].1),
            Moved::Branch {
                cond,
                rs1,
                rs2,
                to: To::Outside(target),
            } => {
                let over = asm.new_label();
                asm.branch(cond.inverse(), rs1, rs2, over);
                asm.jump_abs(target, self.scratch);
                asm.bind(over);
            }
            Moved::Jump {
                to: To::Covered(nth),
            } => asm.jump(labels[nth].1),
            Moved::Jump {
                to: To::Outside(target),
            } => asm.jump_abs(target, self.scratch),
            Moved::Call { link, ret, target } => {
                asm.la_abs(link, ret);
                asm.jump_abs(target, self.scratch);
            }
            Moved::CallReg {
                link,
                ret,
                base,
                off,
            } => self.emit_call(asm, (link, ret), (base, off)),
        }
    }

    /// A jump to `base + off` with `ret` in `link`, which may be `base`.
    fn emit_call(&self, asm: &mut Asm, (link, ret): (Reg, u64), (base, off): (Reg, SImm<12>)) {
        let via = if base == link { self.scratch } else { base };
        if via != base {
            asm.emit(insn::mv(via, base));
        }
        asm.la_abs(link, ret);
        asm.emit(insn::jalr(Reg::Zero, via, off));
    }
}

/// A register for the copy, if these are written.
fn scratch(written: RegSet) -> Option<Reg> {
    SCRATCH.into_iter().find(|&reg| !written.contains(reg))
}

/// Refuses a function that finds something in a temporary: in one of either kind on the way that
/// leads straight on from its entry, past branches that are not taken, to the first jump or call; in
/// a floating-point one on any way. `bytes` are those from `entry` on; what is in `kept` may be read.
///
/// The answer is whether the function finds something in `t2`, on any way: a nested function of
/// GNU C gets its static chain there.
pub(crate) fn refuse_custom_entry(entry: u64, bytes: &[u8], kept: RegSet) -> Result<bool, Refusal> {
    let (mut rest, mut at, mut written) = (bytes, entry, kept);
    loop {
        let len_bytes = match live::passes(rest, RegSet::TEMPORARIES) {
            Some(len_bytes) => len_bytes,
            None => {
                let Some(step) = step(rest) else {
                    break;
                };
                let found = step.reads.intersection(RegSet::TEMPORARIES);
                if let Some(reg) = found.without(written).iter().next() {
                    return Err(Refusal::CustomEntry { at, reg });
                }
                if step.flow.is_jump() || step.flow.is_call() {
                    break;
                }
                written = written.union(step.writes);
                step.len_bytes.into()
            }
        };
        at += len_bytes as u64;
        rest = rest.get(len_bytes..).unwrap_or_default();
    }
    let chain = RegSet::of(&[T2]);
    let mut takes_chain = false;
    for (off, found) in live::find(bytes, RegSet::FLOAT_TEMPORARIES.union(chain)) {
        if let Some(reg) = found.floats().next() {
            let at = entry + off;
            return Err(Refusal::CustomFloatEntry { at, reg });
        }
        takes_chain |= !found.intersection(chain).is_empty();
    }
    Ok(takes_chain)
}
