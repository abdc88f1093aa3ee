//! Tables of places in a program, for jumps through a register.
//!
//! A program reaches an element as it does the value of a map: it takes the value's address, adds
//! eight times an index, loads the eight bytes there, and jumps to what they say. What that is, the
//! address of code or the index of an instruction, is the affair of whoever runs it.
//!
//! Key types: [`JumpTable`], [`Tables`]. Neighbours: `verify` asks where functions go by them
//! ([`lead`]) and follows every element; `interp` and `jit` make tables of their own. Source: kernel
//! `kernel/bpf/bpf_insn_array.c`.

use std::collections::BTreeMap;

use super::error::{Reason, Refusal};
use super::op::{Imm64, Op};
use super::program::Func;
use super::verify::refuse;

/// What a program takes for a map of code addresses.
#[derive(Clone, Eq, PartialEq, Debug)]
#[doc(alias = "BPF_MAP_TYPE_INSN_ARRAY")]
pub struct JumpTable {
    /// The map's place in the program's list. What the environment has there is not looked at when
    /// the program refers to the map's value.
    pub map: i32,
    /// The instruction of each element: where one begins, all in one function.
    pub targets: Vec<usize>,
}

impl JumpTable {
    /// A table at this place.
    #[must_use]
    pub fn new(map: i32, targets: Vec<usize>) -> Self {
        Self { map, targets }
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        8 * self.targets.len() as u64
    }
}

/// Finds where functions go by tables: [`Func::table_targets`].
pub(crate) fn lead(
    ops: &[Option<Op>],
    funcs: &mut [Func],
    tables: &[JumpTable],
) -> Result<(), Refusal> {
    let mut places = BTreeMap::new();
    for table in tables {
        if places.insert(table.map, table).is_some() {
            return refuse(0, Reason::TableTwice { map: table.map });
        }
    }
    let referred = references(ops, &places)?;
    for table in tables {
        let of = |insn: usize| funcs.partition_point(|func| func.start <= insn) - 1;
        let Some(func) = table.targets.first().map(|to| of(*to)) else {
            continue;
        };
        let begins = |to: usize| ops.get(to).is_some_and(Option::is_some) && of(to) == func;
        if let Some(&target) = table.targets.iter().find(|to| !begins(**to)) {
            let map = table.map;
            let at = referred.get(&map).copied().unwrap_or(0);
            return refuse(at, Reason::TableTarget { map, target });
        }
        funcs[func].table_targets.extend(&table.targets);
    }
    for func in funcs {
        let is_jump = |at: &usize| matches!(ops[*at], Some(Op::JumpReg { .. }));
        match (func.start..func.end).find(is_jump) {
            None => func.table_targets.clear(),
            Some(at) if func.table_targets.is_empty() => return refuse(at, Reason::NoTable),
            Some(_) => {}
        }
        func.table_targets.sort_unstable();
        func.table_targets.dedup();
    }
    Ok(())
}

/// The first instruction that refers to each table; all refer to an element.
fn references(
    ops: &[Option<Op>],
    tables: &BTreeMap<i32, &JumpTable>,
) -> Result<BTreeMap<i32, usize>, Refusal> {
    let mut referred = BTreeMap::new();
    for (at, op) in ops.iter().enumerate() {
        let Some(Op::LdImm64 { imm, .. }) = *op else {
            continue;
        };
        let Imm64::MapIdxValue { idx: id, off } = imm else {
            continue;
        };
        let Some(table) = tables.get(&id) else {
            continue;
        };
        referred.entry(id).or_insert(at);
        let len_bytes = table.len_bytes();
        if off % 8 != 0 {
            return refuse(at, Reason::TableElement { map: id, off });
        }
        if u64::from(off) >= len_bytes {
            let what = "the jump table at map";
            let reason = Reason::ValueBounds {
                what,
                id,
                off,
                len_bytes,
            };
            return refuse(at, reason);
        }
    }
    Ok(referred)
}

/// The tables of a program, in memory that it reads, which stays where it is.
#[derive(Debug)]
pub(crate) struct Tables(Vec<(i32, Box<[u64]>)>);

impl Tables {
    /// With indices of instructions for elements.
    pub(crate) fn new(tables: &[JumpTable]) -> Self {
        let elements = |table: &JumpTable| table.targets.iter().map(|to| *to as u64).collect();
        let mut all: Vec<_> = tables.iter().map(|t| (t.map, elements(t))).collect();
        all.sort_by_key(|(map, _)| *map);
        Self(all)
    }

    /// With something else for every index.
    pub(crate) fn replace(&mut self, by: impl Fn(u64) -> u64) {
        let elements = self.0.iter_mut().flat_map(|(_, elements)| elements);
        elements.for_each(|element| *element = by(*element));
    }

    /// The address that a constant stands for, if it refers to a table; the verifier has seen that
    /// it is inside.
    pub(crate) fn address(&self, imm: Imm64) -> Option<u64> {
        let Imm64::MapIdxValue { idx, off } = imm else {
            return None;
        };
        let place = self.0.binary_search_by_key(&idx, |(map, _)| *map).ok()?;
        let start = self.0[place].1.as_ptr().expose_provenance() as u64;
        Some(start + u64::from(off))
    }

    /// Whether an instruction refers to a table.
    pub(crate) fn has(&self, op: Op) -> bool {
        matches!(op, Op::LdImm64 { imm, .. } if self.address(imm).is_some())
    }

    #[cfg(test)]
    pub(crate) fn elements(&self, at: usize) -> &[u64] {
        &self.0[at].1
    }
}
