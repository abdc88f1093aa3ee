//! What constants of 64 bits refer to: maps by place or descriptor, their values, variables.
//!
//! Key types: [`MapObject`], [`Objects`]. Neighbours: `env` owns them. Source: kernel
//! `kernel/bpf/verifier.c` (`resolve_pseudo_ldimm64`, `check_pseudo_btf_id`);
//! `include/uapi/linux/bpf.h` (`BPF_PSEUDO_MAP_FD` and the following).

use std::collections::BTreeMap;

use super::arena::Arena;
use super::error::Reason;
use super::op::Imm64;

/// A map, or what stands for one, as programs refer to it: by its place in their list, and by a
/// file descriptor if it has one.
#[derive(Clone, Debug)]
#[must_use]
pub struct MapObject {
    addr: u64,
    fd: Option<i32>,
    value: Option<Value>,
    arena: Option<Arena>,
}

#[derive(Copy, Clone, Debug)]
struct Value {
    addr: u64,
    len_bytes: u64,
}

impl MapObject {
    /// An object at this address, which is what references to it give.
    pub fn new(addr: *const ()) -> Self {
        Self {
            addr: addr as u64,
            fd: None,
            value: None,
            arena: None,
        }
    }

    /// An arena. Its value is its window: references to it give pointers into that.
    pub fn arena(arena: &Arena) -> Self {
        Self {
            addr: arena.handle(),
            fd: None,
            value: Some(Value {
                addr: arena.base() as u64,
                len_bytes: arena.len_bytes(),
            }),
            arena: Some(arena.clone()),
        }
    }

    /// Gives it a file descriptor: the number alone; nothing need be open under it.
    pub fn with_fd(mut self, fd: i32) -> Self {
        self.fd = Some(fd);
        self
    }

    /// Gives it a value, as a map of one element has: memory that programs refer to bytes of.
    pub fn with_value(mut self, start: *mut u8, len_bytes: u32) -> Self {
        self.value = Some(Value {
            addr: start as u64,
            len_bytes: len_bytes.into(),
        });
        self
    }
}

/// Everything that constants can refer to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    /// By place.
    maps: Vec<MapObject>,
    /// By BTF id.
    variables: BTreeMap<i32, u64>,
}

impl Objects {
    pub(crate) fn add(&mut self, map: MapObject) {
        self.maps.push(map);
    }

    pub(crate) fn add_variable(&mut self, id: i32, addr: u64) {
        self.variables.insert(id, addr);
    }

    /// The arena; of several the last.
    pub(crate) fn arena(&self) -> Option<&Arena> {
        self.maps.iter().rev().find_map(|map| map.arena.as_ref())
    }

    /// What a constant stands for; `Err`: what it refers to is not there.
    pub(crate) fn address(&self, imm: Imm64) -> Result<u64, Reason> {
        let none = |what, id| Reason::NoObject { what, id };
        match imm {
            Imm64::Value(value) => Ok(value),
            Imm64::MapIdx(idx) => match self.by_place(idx) {
                Some(map) => Ok(map.addr),
                None => Err(none("map", idx)),
            },
            Imm64::MapFd(fd) => match self.by_fd(fd) {
                Some(map) => Ok(map.addr),
                None => Err(none("map by descriptor", fd)),
            },
            Imm64::MapIdxValue { idx, off } => {
                let what = "the value of map";
                let map = self.by_place(idx).ok_or(none(what, idx))?;
                map.value_at(off, what, idx)
            }
            Imm64::MapValue { fd, off } => {
                let what = "the value of map by descriptor";
                let map = self.by_fd(fd).ok_or(none(what, fd))?;
                map.value_at(off, what, fd)
            }
            Imm64::BtfId { id, .. } => match self.variables.get(&id) {
                Some(addr) => Ok(*addr),
                None => Err(none("variable", id)),
            },
            Imm64::Func(off) => Err(none("function", off)),
        }
    }

    fn by_place(&self, idx: i32) -> Option<&MapObject> {
        self.maps.get(usize::try_from(idx).ok()?)
    }

    /// Of several the last.
    fn by_fd(&self, fd: i32) -> Option<&MapObject> {
        self.maps.iter().rev().find(|map| map.fd == Some(fd))
    }
}

impl MapObject {
    fn value_at(&self, off: u32, what: &'static str, id: i32) -> Result<u64, Reason> {
        let value = self.value.ok_or(Reason::NoObject { what, id })?;
        if u64::from(off) >= value.len_bytes {
            let len_bytes = value.len_bytes;
            return Err(Reason::ValueBounds {
                what,
                id,
                off,
                len_bytes,
            });
        }
        Ok(value.addr + u64::from(off))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(addr: usize) -> *const () {
        std::ptr::without_provenance(addr)
    }

    #[test]
    fn references_find_what_was_added() {
        let value = std::ptr::without_provenance_mut(0x5000);
        let mut objects = Objects::default();
        objects.add(MapObject::new(at(0x1000)));
        objects.add(MapObject::new(at(0x2000)).with_fd(7).with_value(value, 16));
        objects.add_variable(-3, 0x3000);
        let object = 0;
        for (imm, want) in [
            (Imm64::Value(9), 9),
            (Imm64::MapIdx(0), 0x1000),
            (Imm64::MapIdx(1), 0x2000),
            (Imm64::MapFd(7), 0x2000),
            (Imm64::MapIdxValue { idx: 1, off: 0 }, 0x5000),
            (Imm64::MapIdxValue { idx: 1, off: 15 }, 0x500f),
            (Imm64::MapValue { fd: 7, off: 8 }, 0x5008),
            (Imm64::BtfId { id: -3, object }, 0x3000),
        ] {
            assert_eq!(objects.address(imm), Ok(want), "{imm}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut objects = Objects::default();
        objects.add(MapObject::new(at(0x1000)).with_fd(7));
        let value = std::ptr::without_provenance_mut(0x5000);
        objects.add(MapObject::new(at(0x2000)).with_fd(8).with_value(value, 16));
        let object = 0;
        for (imm, want) in [
            (Imm64::MapIdx(2), "refers to map 2, which is not there"),
            (Imm64::MapIdx(-1), "refers to map -1, which is not there"),
            (
                Imm64::MapFd(1),
                "refers to map by descriptor 1, which is not there",
            ),
            (
                Imm64::MapIdxValue { idx: 0, off: 0 },
                "refers to the value of map 0, which is not there",
            ),
            (
                Imm64::MapValue { fd: 7, off: 0 },
                "refers to the value of map by descriptor 7, which is not there",
            ),
            (
                Imm64::MapIdxValue { idx: 1, off: 16 },
                "refers to byte 16 of the value of map 1, which has 16 bytes",
            ),
            (
                Imm64::MapValue {
                    fd: 8,
                    off: u32::MAX,
                },
                "refers to byte 4294967295 of the value of map by descriptor 8, which has 16 bytes",
            ),
            (
                Imm64::BtfId { id: 5, object },
                "refers to variable 5, which is not there",
            ),
        ] {
            let refused = objects.address(imm).unwrap_err();
            assert_eq!(refused.to_string(), want, "{imm}");
        }
    }

    #[test]
    fn an_arena_is_a_map_whose_value_is_its_window() {
        let (first, arena) = (Arena::new(1).unwrap(), Arena::new(1).unwrap());
        let mut objects = Objects::default();
        assert!(objects.arena().is_none());
        objects.add(MapObject::arena(&first));
        objects.add(MapObject::arena(&arena).with_fd(3));
        let base = arena.base() as u64;
        assert_eq!(objects.arena().map(Arena::base), Some(arena.base()));
        assert_eq!(objects.address(Imm64::MapFd(3)), Ok(arena.handle()));
        let page = arena.page_bytes();
        let value = |off| objects.address(Imm64::MapIdxValue { idx: 1, off });
        assert_eq!(value(page), Ok(base + u64::from(page)));
        assert!(value(2 * page).is_err());
    }
}
