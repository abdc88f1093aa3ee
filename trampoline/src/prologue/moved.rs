//! Which instructions are covered, and what becomes of each.
//!
//! Key types: [`Covered`], [`Moved`].

use rv64::{Cond, Flow, IOp, Insn, LoadOp, Reg, SImm, Step, step};

use super::{Body, Refusal};

/// One covered instruction.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Covered {
    /// Where it begins, in bytes from the entry.
    pub(super) off: u8,
    pub(super) step: Step,
    bytes: [u8; 4],
}

impl Covered {
    /// Where it ends.
    pub(super) fn end(&self) -> u8 {
        self.off + self.step.len_bytes
    }

    /// As it is encoded.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.step.len_bytes.into()]
    }
}

/// What does an instruction's work in the copy.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Moved {
    /// Itself: it does not care where it stands.
    Same,
    /// A later one, which is an `auipc`'s partner: there.
    ByPartner,
    /// `rd` = `address`: an `auipc`, or one and its `addi`.
    Address {
        rd: Reg,
        address: u64,
    },
    /// `rd` = what is at `address`: an `auipc` and its load.
    Load {
        op: LoadOp,
        rd: Reg,
        address: u64,
    },
    Branch {
        cond: Cond,
        rs1: Reg,
        rs2: Reg,
        to: To,
    },
    Jump {
        to: To,
    },
    /// A call of `target` that returns to `ret` in the original.
    Call {
        link: Reg,
        ret: u64,
        target: u64,
    },
    /// A call of `base + off` that returns to `ret` in the original.
    CallReg {
        link: Reg,
        ret: u64,
        base: Reg,
        off: SImm<12>,
    },
}

/// Where a jump goes.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum To {
    /// Out of the covered bytes: this address.
    Outside(u64),
    /// The covered instruction with this number.
    Covered(usize),
}

/// The instructions that the first `jump_bytes` of the function touch.
pub(super) fn cover(body: &Body<'_>, jump_bytes: u8) -> Result<Vec<Covered>, Refusal> {
    let too_short = |needed: usize| Refusal::TooShort {
        entry: body.entry,
        len: body.bytes.len(),
        needed,
    };
    let (mut covered, mut off) = (Vec::new(), 0);
    while off < jump_bytes {
        let rest = body.bytes.get(off.into()..).unwrap_or_default();
        let mut bytes = [0; 4];
        let have = rest.len().min(4);
        bytes[..have].copy_from_slice(&rest[..have]);
        let len = if bytes[0] & 0b11 == 0b11 { 4 } else { 2 };
        if have < len {
            let needed = (usize::from(off) + len).max(jump_bytes.into());
            return Err(too_short(needed));
        }
        let at = body.entry + u64::from(off);
        let step = step(rest).ok_or(Refusal::Undecodable { at, bytes })?;
        match step.flow {
            Flow::Ebreak => return Err(Refusal::Breakpoint { at }),
            Flow::Ecall if off > 0 => return Err(Refusal::SystemCall { at }),
            flow if flow.is_call() && off + step.len_bytes < jump_bytes => {
                return Err(Refusal::ReturnsInto { at });
            }
            _ => {}
        }
        covered.push(Covered { off, step, bytes });
        off += step.len_bytes;
    }
    if body.bytes.len() < jump_bytes.into() {
        return Err(too_short(jump_bytes.into()));
    }
    Ok(covered)
}

/// What becomes of each.
pub(super) fn moved(body: &Body<'_>, covered: &[Covered]) -> Result<Vec<Moved>, Refusal> {
    let place = Place { body, covered };
    place.refuse_jumps()?;
    let mut all = Vec::with_capacity(covered.len());
    for nth in 0..covered.len() {
        all.push(place.moved(nth)?);
    }
    for nth in 0..covered.len() {
        if let Some((partner, fused)) = place.partner(nth, &all) {
            all[nth] = Moved::ByPartner;
            all[partner] = fused;
        }
    }
    Ok(all)
}

/// Covered instructions where they stand.
struct Place<'a> {
    body: &'a Body<'a>,
    covered: &'a [Covered],
}

impl Place<'_> {
    fn address(&self, off: u8) -> u64 {
        self.body.entry + u64::from(off)
    }

    /// The address behind the covered instructions.
    fn end(&self) -> u64 {
        self.address(self.covered.last().map_or(0, Covered::end))
    }

    /// Which covered instruction begins at `address`.
    fn at(&self, address: u64) -> Option<usize> {
        let begins = |insn: &Covered| self.address(insn.off) == address;
        self.covered.iter().position(begins)
    }

    /// Jumps from elsewhere into what is covered, and loops to the entry.
    fn refuse_jumps(&self) -> Result<(), Refusal> {
        let entry = self.body.entry;
        let own = entry..entry + self.body.bytes.len() as u64;
        for edge in self.body.jumps.landing_in(entry..self.end()) {
            let (from, to) = (edge.from(), edge.target());
            if to == entry {
                if !edge.is_call() && own.contains(&from) {
                    return Err(Refusal::LoopsToEntry { from });
                }
                continue;
            }
            // What a covered one tells of itself is looked at where it is moved.
            let covered = self.at(from).map(|nth| self.covered[nth].step.flow);
            if covered.and_then(|flow| flow.target(from)) != Some(to) {
                return Err(Refusal::BranchesInto { from, to });
            }
        }
        Ok(())
    }

    /// Where the jump or branch `nth` goes to, if it may.
    fn to(&self, nth: usize, target: u64) -> Result<To, Refusal> {
        let from = self.address(self.covered[nth].off);
        if target == self.body.entry {
            return Err(Refusal::LoopsToEntry { from });
        }
        if target < self.body.entry || self.end() <= target {
            return Ok(To::Outside(target));
        }
        // Backwards it would be a loop, and inside an instruction there is nothing.
        match self.at(target).filter(|&to| to > nth) {
            Some(to) => Ok(To::Covered(to)),
            None => Err(Refusal::BranchesInto { from, to: target }),
        }
    }

    fn moved(&self, nth: usize) -> Result<Moved, Refusal> {
        let insn = &self.covered[nth];
        let (at, ret) = (self.address(insn.off), self.address(insn.end()));
        Ok(match insn.step.flow {
            Flow::Jump { off } => Moved::Jump {
                to: self.to(nth, at.wrapping_add_signed(off.get()))?,
            },
            Flow::Branch {
                cond,
                rs1,
                rs2,
                off,
            } => Moved::Branch {
                cond,
                rs1,
                rs2,
                to: self.to(nth, at.wrapping_add_signed(off.get()))?,
            },
            Flow::Call { link, off } => {
                let target = at.wrapping_add_signed(off.get());
                self.call(at, target)?;
                Moved::Call { link, ret, target }
            }
            Flow::IndirectCall { link, base, off } => Moved::CallReg {
                link,
                ret,
                base,
                off,
            },
            Flow::Auipc { rd, imm } => Moved::Address {
                rd,
                address: at.wrapping_add_signed(imm.get() << 12),
            },
            _ => Moved::Same,
        })
    }

    /// A function may call itself, but not the middle of what is covered.
    fn call(&self, from: u64, to: u64) -> Result<(), Refusal> {
        if self.body.entry < to && to < self.end() {
            return Err(Refusal::BranchesInto { from, to });
        }
        Ok(())
    }

    /// The partner of an `auipc`, and what becomes of both: if it makes something of the address
    /// in the same register, so that nobody else can see the `auipc`'s.
    fn partner(&self, nth: usize, all: &[Moved]) -> Option<(usize, Moved)> {
        let Flow::Auipc { rd, .. } = self.covered[nth].step.flow else {
            return None;
        };
        let Moved::Address { address, .. } = all[nth] else {
            return None;
        };
        for later in nth + 1..self.covered.len() {
            let joins = |moved: &Moved| match moved {
                Moved::Branch { to, .. } | Moved::Jump { to } => *to == To::Covered(later),
                _ => false,
            };
            if all.iter().any(joins) {
                return None;
            }
            let step = &self.covered[later].step;
            if step.reads.contains(rd) {
                return Some((later, fuse(step, rd, address, all[later])?));
            }
            if step.writes.contains(rd) || !matches!(step.flow, Flow::Next | Flow::Auipc { .. }) {
                return None;
            }
        }
        None
    }
}

/// What an `auipc` of `rd` and this one do together.
fn fuse(step: &Step, rd: Reg, upper: u64, alone: Moved) -> Option<Moved> {
    let address = |low: SImm<12>| upper.wrapping_add_signed(low.get());
    match (Insn::decode(step.word).ok()?, alone) {
        (
            Insn::I {
                op: IOp::Addi,
                rd: to,
                rs1,
                imm,
            },
            _,
        ) if to == rd && rs1 == rd => Some(Moved::Address {
            rd,
            address: address(imm),
        }),
        (
            Insn::Load {
                op,
                rd: to,
                rs1,
                imm,
            },
            _,
        ) if to == rd && rs1 == rd => Some(Moved::Load {
            op,
            rd,
            address: address(imm),
        }),
        (
            _,
            Moved::CallReg {
                link,
                ret,
                base,
                off,
            },
        ) if link == rd && base == rd => Some(Moved::Call {
            link,
            ret,
            target: address(off) & !1,
        }),
        _ => None,
    }
}
