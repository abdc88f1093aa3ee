//! Relocations: which there are, and how each changes its instruction.
//!
//! | kind | psABI's name | changes | reaches |
//! | --- | --- | --- | --- |
//! | `Call` | `R_RISCV_CALL_PLT`, `R_RISCV_CALL` | `auipc`, `jalr` | everything |
//! | `Jal` | `R_RISCV_JAL` | `jal` | 1 MiB |
//! | `Branch` | `R_RISCV_BRANCH` | `beq` and the like | 4 KiB |
//! | `RvcJump` | `R_RISCV_RVC_JUMP` | `c.j` | 2 KiB |
//! | `RvcBranch` | `R_RISCV_RVC_BRANCH` | `c.beqz`, `c.bnez` | 256 bytes |
//! | `PcrelHi20` | `R_RISCV_PCREL_HI20` | `auipc` | 2 GiB |
//! | `GotHi20` | `R_RISCV_GOT_HI20` | `auipc` | everything |
//! | `PcrelLo12I` | `R_RISCV_PCREL_LO12_I` | `addi`, loads, `jalr` | |
//! | `PcrelLo12S` | `R_RISCV_PCREL_LO12_S` | stores | |
//! | `Abs64` | `R_RISCV_64` | 8 bytes | everything |
//!
//! Instructions are decoded, changed and encoded again: what is not the instruction that the kind is
//! for is refused.
//!
//! Key types: [`Reloc`], [`Plan`]. Neighbours: `place` says where code can be. Source: RISC-V ELF
//! psABI, "Relocations".

use std::collections::BTreeMap;

use rv64::{Insn, Offset, Reg, SImm, UOp, auipc, imm, jr, ld};

use super::error::{HostError, RelocFault};

/// A place in code that depends on an address.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Reloc {
    /// Where it is, in bytes from the start of the code.
    pub off: usize,
    /// What is there.
    pub kind: RelocKind,
    /// The address it depends on; for the lower half of a pair, the offset of the upper half.
    pub target: RelocTarget,
    /// Added to the address. Lower halves take that of their upper half.
    pub addend: i64,
}

/// An address.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum RelocTarget {
    /// This one.
    Address(u64),
    /// That of the byte at this offset of the code.
    Code(usize),
}

/// What is at the place of a relocation; psABI's names stand in the module's table.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RelocKind {
    /// `auipc` and `jalr`: a call or a tail call. Where it does not reach, it goes through a stub
    /// that changes `t3`.
    #[doc(alias = "R_RISCV_CALL_PLT")]
    Call,
    /// `jal`.
    #[doc(alias = "R_RISCV_JAL")]
    Jal,
    /// A conditional branch.
    #[doc(alias = "R_RISCV_BRANCH")]
    Branch,
    /// `c.j`.
    #[doc(alias = "R_RISCV_RVC_JUMP")]
    RvcJump,
    /// `c.beqz` or `c.bnez`.
    #[doc(alias = "R_RISCV_RVC_BRANCH")]
    RvcBranch,
    /// `auipc`: the upper half of a distance.
    #[doc(alias = "R_RISCV_PCREL_HI20")]
    PcrelHi20,
    /// `auipc`: the upper half of the distance to 8 bytes, behind the code, that hold the address.
    #[doc(alias = "R_RISCV_GOT_HI20")]
    GotHi20,
    /// `addi`, a load or `jalr`: the lower half of the distance whose upper half is at the target.
    #[doc(alias = "R_RISCV_PCREL_LO12_I")]
    PcrelLo12I,
    /// A store: the same.
    #[doc(alias = "R_RISCV_PCREL_LO12_S")]
    PcrelLo12S,
    /// The address itself, in 8 bytes.
    #[doc(alias = "R_RISCV_64")]
    Abs64,
}

impl RelocKind {
    fn len_bytes(self) -> usize {
        match self {
            Self::Call | Self::Abs64 => 8,
            Self::RvcJump | Self::RvcBranch => 2,
            _ => 4,
        }
    }

    /// How far it reaches from its place to a target outside of the code; `None`: everywhere.
    pub(super) fn reach_bytes(self) -> Option<u64> {
        match self {
            Self::Jal => Some(1 << 20),
            Self::Branch => Some(4 << 10),
            Self::RvcJump => Some(2 << 10),
            Self::RvcBranch => Some(256),
            Self::PcrelHi20 => Some(PAIR_REACH_BYTES),
            _ => None,
        }
    }

    fn jumps(self) -> bool {
        matches!(
            self,
            Self::Call | Self::Jal | Self::Branch | Self::RvcJump | Self::RvcBranch
        )
    }

    fn is_lower_half(self) -> bool {
        matches!(self, Self::PcrelLo12I | Self::PcrelLo12S)
    }
}

/// What an `auipc` and a lower half reach, either way: the lower half has a sign.
pub(super) const PAIR_REACH_BYTES: u64 = (1 << 31) - (1 << 11);

/// `auipc t3; ld t3; jr t3; nop` and the address.
const STUB_BYTES: usize = 24;

/// Code whose relocations have been found to fit their places.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    bytes: &'a [u8],
    pub(super) relocs: &'a [Reloc],
    /// Where the stub for a target of calls is, if one turns out to be needed.
    stubs: BTreeMap<u64, usize>,
    /// Where the address of a target is.
    addresses: BTreeMap<(RelocTarget, i64), usize>,
    len_bytes: usize,
}

impl<'a> Plan<'a> {
    pub(super) fn new(bytes: &'a [u8], relocs: &'a [Reloc]) -> Result<Self, HostError> {
        if bytes.is_empty() {
            return Err(HostError::Empty);
        }
        let mut plan = Self {
            bytes,
            relocs,
            stubs: BTreeMap::new(),
            addresses: BTreeMap::new(),
            len_bytes: bytes.len().next_multiple_of(8),
        };
        plan.check_overlaps()?;
        for index in 0..relocs.len() {
            plan.check(index)
                .map_err(|fault| plan.error(index, fault))?;
        }
        for reloc in relocs {
            let mut room = |bytes| {
                plan.len_bytes += bytes;
                plan.len_bytes - bytes
            };
            match (reloc.kind, reloc.target) {
                (RelocKind::Call, RelocTarget::Address(at)) => {
                    let at = at.wrapping_add_signed(reloc.addend);
                    plan.stubs.entry(at).or_insert_with(|| room(STUB_BYTES));
                }
                (RelocKind::GotHi20, target) => {
                    let key = (target, reloc.addend);
                    plan.addresses.entry(key).or_insert_with(|| room(8));
                }
                _ => {}
            }
        }
        if relocs
            .iter()
            .all(|reloc| reloc.kind != RelocKind::Call && reloc.kind != RelocKind::GotHi20)
        {
            plan.len_bytes = bytes.len();
        }
        Ok(plan)
    }

    /// How much room it takes.
    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    pub(super) fn error(&self, index: usize, fault: RelocFault) -> HostError {
        let Reloc { off, kind, .. } = self.relocs[index];
        HostError::Reloc {
            index,
            off,
            kind,
            fault,
        }
    }

    fn check_overlaps(&self) -> Result<(), HostError> {
        let mut by_off: Vec<usize> = (0..self.relocs.len()).collect();
        by_off.sort_by_key(|index| self.relocs[*index].off);
        for two in by_off.windows(2) {
            let (first, second) = (&self.relocs[two[0]], &self.relocs[two[1]]);
            if first.off.saturating_add(first.kind.len_bytes()) > second.off {
                return Err(self.error(two[1], RelocFault::Overlap { other: two[0] }));
            }
        }
        Ok(())
    }

    /// What can be said without addresses.
    fn check(&self, index: usize) -> Result<(), RelocFault> {
        let reloc = &self.relocs[index];
        let (need_bytes, len_bytes) = (reloc.kind.len_bytes(), self.bytes.len());
        if reloc
            .off
            .checked_add(need_bytes)
            .is_none_or(|end| end > len_bytes)
        {
            return Err(RelocFault::PastEnd {
                need_bytes,
                len_bytes,
            });
        }
        if reloc.kind != RelocKind::Abs64 && reloc.off % 2 != 0 {
            return Err(RelocFault::Misaligned);
        }
        match reloc.target {
            RelocTarget::Code(target) if target > len_bytes => {
                return Err(RelocFault::TargetPastEnd { target, len_bytes });
            }
            _ => {}
        }
        if reloc.kind.is_lower_half() {
            self.upper_half(reloc)?;
        }
        // With distances that always fit, to see that the instruction is the right one.
        let mut place = self.bytes[reloc.off..reloc.off + need_bytes].to_vec();
        change(reloc.kind, &mut place, 0, 0)
    }

    /// The relocation of the upper half that belongs to a lower one.
    fn upper_half(&self, lower: &Reloc) -> Result<&Reloc, RelocFault> {
        let target = match lower.target {
            RelocTarget::Code(off) => off as u64,
            RelocTarget::Address(target) => return Err(RelocFault::NoUpperHalf { target }),
        };
        let is_upper = |reloc: &&Reloc| {
            reloc.off as u64 == target
                && matches!(reloc.kind, RelocKind::PcrelHi20 | RelocKind::GotHi20)
        };
        let found = self.relocs.iter().find(is_upper);
        found.ok_or(RelocFault::NoUpperHalf { target })
    }

    /// The code for `base`, with stubs and addresses.
    pub(super) fn link(&self, base: u64) -> Result<Vec<u8>, HostError> {
        let mut out = self.bytes.to_vec();
        out.resize(self.len_bytes, 0);
        for (target, at) in &self.stubs {
            out[*at..*at + STUB_BYTES].copy_from_slice(&stub(*target));
        }
        for ((target, addend), at) in &self.addresses {
            let address = absolute(*target, base).wrapping_add_signed(*addend);
            out[*at..*at + 8].copy_from_slice(&address.to_le_bytes());
        }
        for (index, reloc) in self.relocs.iter().enumerate() {
            let (off, len) = (reloc.off, reloc.kind.len_bytes());
            let (target, distance) = self
                .distance(reloc, base)
                .map_err(|fault| self.error(index, fault))?;
            change(reloc.kind, &mut out[off..off + len], target, distance)
                .map_err(|fault| self.error(index, fault))?;
        }
        Ok(out)
    }

    /// What `reloc` leads to, and how far that is from where the distance counts.
    fn distance(&self, reloc: &Reloc, base: u64) -> Result<(u64, i64), RelocFault> {
        let reloc = match reloc.kind.is_lower_half() {
            true => self.upper_half(reloc)?,
            false => reloc,
        };
        let pc = base.wrapping_add(reloc.off as u64);
        let mut target = absolute(reloc.target, base).wrapping_add_signed(reloc.addend);
        if reloc.kind.jumps() && target % 2 != 0 {
            return Err(RelocFault::OddTarget { target });
        }
        if reloc.kind == RelocKind::GotHi20 {
            let at = self.addresses.get(&(reloc.target, reloc.addend));
            target = at.map_or(target, |at| base.wrapping_add(*at as u64));
        }
        let mut distance = target.wrapping_sub(pc) as i64;
        if reloc.kind == RelocKind::Call && halves(distance).is_none() {
            if let Some(at) = self.stubs.get(&target) {
                distance = base.wrapping_add(*at as u64).wrapping_sub(pc) as i64;
            }
        }
        Ok((target, distance))
    }
}

fn absolute(target: RelocTarget, base: u64) -> u64 {
    match target {
        RelocTarget::Address(address) => address,
        RelocTarget::Code(off) => base.wrapping_add(off as u64),
    }
}

fn stub(target: u64) -> [u8; STUB_BYTES] {
    let mut out = [0; STUB_BYTES];
    let insns = [
        auipc(Reg::T3, imm!(0)),
        ld(Reg::T3, Reg::T3, imm!(16)),
        jr(Reg::T3),
        rv64::nop(),
    ];
    for (place, insn) in out.chunks_exact_mut(4).zip(insns) {
        place.copy_from_slice(&insn.encode().to_le_bytes());
    }
    out[16..].copy_from_slice(&target.to_le_bytes());
    out
}

/// The two halves of a distance.
fn halves(distance: i64) -> Option<(SImm<20>, SImm<12>)> {
    let upper = distance.checked_add(0x800)? >> 12;
    Some((SImm::new(upper)?, SImm::new(distance - (upper << 12))?))
}

/// Puts a distance, or the target's address, into the bytes of one place.
fn change(kind: RelocKind, place: &mut [u8], target: u64, distance: i64) -> Result<(), RelocFault> {
    let far = |reach_bytes| RelocFault::OutOfReach {
        distance,
        reach_bytes,
    };
    let pair = || halves(distance).ok_or(far(PAIR_REACH_BYTES));
    let reach = kind.reach_bytes().unwrap_or(PAIR_REACH_BYTES);
    match kind {
        RelocKind::Abs64 => place.copy_from_slice(&target.to_le_bytes()),
        RelocKind::Call => {
            let (upper, lower) = pair()?;
            let (first, second) = place.split_at_mut(4);
            let rd = set_upper(first, upper)?;
            let expected = "a jalr through the register that the auipc before it sets";
            set(second, expected, lower, |insn| match insn {
                Insn::Jalr { rs1, imm, .. } if *rs1 == rd => Some(imm),
                _ => None,
            })?;
        }
        RelocKind::PcrelHi20 | RelocKind::GotHi20 => {
            set_upper(place, pair()?.0)?;
        }
        RelocKind::PcrelLo12I => {
            let expected = "an addition of a constant, a load or a jalr";
            set(place, expected, pair()?.1, |insn| match insn {
                Insn::I { imm, .. }
                | Insn::Load { imm, .. }
                | Insn::FLoad { imm, .. }
                | Insn::Jalr { imm, .. } => Some(imm),
                _ => None,
            })?;
        }
        RelocKind::PcrelLo12S => {
            set(place, "a store", pair()?.1, |insn| match insn {
                Insn::Store { imm, .. } | Insn::FStore { imm, .. } => Some(imm),
                _ => None,
            })?;
        }
        RelocKind::Jal | RelocKind::RvcJump => {
            let new = Offset::new(distance).ok_or(far(reach))?;
            let fits = set(place, "a jump", new, |insn| match insn {
                Insn::Jal { offset, .. } => Some(offset),
                _ => None,
            })?;
            return fits.then_some(()).ok_or(far(reach));
        }
        RelocKind::Branch | RelocKind::RvcBranch => {
            let new = Offset::new(distance).ok_or(far(reach))?;
            let fits = set(place, "a branch", new, |insn| match insn {
                Insn::Branch { offset, .. } => Some(offset),
                _ => None,
            })?;
            return fits.then_some(()).ok_or(far(reach));
        }
    }
    Ok(())
}

/// Puts the upper half into an `auipc`; gives its register.
fn set_upper(place: &mut [u8], upper: SImm<20>) -> Result<Reg, RelocFault> {
    let mut reg = Reg::Zero;
    set(place, "an auipc", upper, |insn| match insn {
        Insn::U {
            op: UOp::Auipc,
            rd,
            imm,
        } if *rd != Reg::Zero => {
            reg = *rd;
            Some(imm)
        }
        _ => None,
    })?;
    Ok(reg)
}

/// Puts `value` into a field of the instruction that fills `place`; whether the changed one still
/// has room there.
fn set<T>(
    place: &mut [u8],
    expected: &'static str,
    value: T,
    field: impl FnOnce(&mut Insn) -> Option<&mut T>,
) -> Result<bool, RelocFault> {
    let found = place
        .iter()
        .rev()
        .fold(0, |all, byte| all << 8 | u64::from(*byte));
    let wrong = RelocFault::WrongInsn { expected, found };
    let insn = Insn::decode_at(place)
        .ok()
        .filter(|(_, len)| *len == place.len());
    let (mut insn, len) = insn.ok_or(wrong.clone())?;
    *field(&mut insn).ok_or(wrong)? = value;
    match (len, insn.compress()) {
        (2, Some(half)) => place.copy_from_slice(&half.to_le_bytes()),
        (2, None) => return Ok(false),
        _ => place.copy_from_slice(&insn.encode().to_le_bytes()),
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
