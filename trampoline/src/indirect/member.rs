//! One version of a table: for each member, what the stub calls.
//!
//! A Rust function is its own entry, as long as no other version has it; the second gets a jump to
//! it in a pack, so that an entry in a thread's word names one version alone.
//!
//! Key types: [`Member`], [`Version`]. Neighbours: `code` makes images, `front` leads to entries.

use std::collections::BTreeSet;
use std::sync::Arc;

use pack_alloc::{Near, PackBuf, PackCode};
use parking_lot::Mutex;
use symbols::{CodeInfo, Published, Symbol, Unwind};
use text::{RxAddr, RxRange};

use super::Workshop;
use super::code::{self, EntrySpec, MAX_FRAME_BYTES, Made, prog_frame};
use crate::domain::Trampolines;
use crate::error::TrampError;
use crate::model::FuncModel;
use crate::prog::{Needs, Owner, ProgFn, RetFrom};

/// Where everything is far away: code is longest there.
const FAR: u64 = 1 << 20;

/// What a member is.
#[derive(Clone, Debug)]
pub enum Member {
    /// A function of the member's own type, at this address.
    Func(RxAddr),
    /// A program that gets the BPF context.
    Prog(MemberProg),
    /// Nothing: it returns zeros.
    Absent,
}

/// A program that is run for a member.
#[derive(Clone, Debug)]
pub struct MemberProg {
    /// What runs.
    pub func: ProgFn,
    /// Its second argument; `None`: it takes the context alone.
    pub cookie: Option<u64>,
    /// Whether the result is what it returns, or what it has written behind the arguments.
    pub ret: RetFrom,
    /// Words that it wants to find before its context: [`Needs::META`]; the others are there as
    /// zeros.
    pub needs: Needs,
    /// Kept alive as long as the version.
    pub owner: Owner,
}

/// The members of one version.
#[derive(Debug)]
pub struct Version {
    entries: Vec<u64>,
    _placed: Option<Placed>,
    _claims: Claims,
    /// In the end: the code is gone by then.
    _owners: Vec<Owner>,
}

impl Version {
    /// Makes what members of these models need.
    ///
    /// # Errors
    /// [`TrampError::FrameTooLarge`], [`TrampError::Layout`], [`TrampError::Pack`].
    ///
    /// # Panics
    /// When there is not one member for each model.
    pub fn new(
        shop: &Workshop,
        models: &[Arc<FuncModel>],
        members: Vec<Member>,
    ) -> Result<Version, TrampError> {
        assert_eq!(models.len(), members.len(), "one member for each model");
        let mut claims = Claims::default();
        let mut entries = vec![0; members.len()];
        let (mut specs, mut of) = (Vec::new(), Vec::new());
        for (i, (model, member)) in models.iter().zip(&members).enumerate() {
            let spec = match member {
                Member::Func(func) if claims.claim(func.get()) => {
                    entries[i] = func.get();
                    continue;
                }
                Member::Func(func) => EntrySpec::Jump(func.get()),
                Member::Absent => EntrySpec::Zeros(model),
                Member::Prog(prog) => prog.spec(model)?,
            };
            specs.push(spec);
            of.push(i);
        }
        let placed = match specs.is_empty() {
            true => None,
            false => {
                let near = Near::Within {
                    of: super::cells::address(),
                    reach_bytes: 1 << 30,
                };
                let (placed, at) = place(shop, near, FAR, "bpf_struct_ops", |base| {
                    code::entries(&specs, shop.features, base)
                })?;
                for (i, at) in of.into_iter().zip(at) {
                    entries[i] = at.get();
                }
                Some(placed)
            }
        };
        let owners = members.into_iter().filter_map(|member| match member {
            Member::Prog(prog) => Some(prog.owner),
            _ => None,
        });
        Ok(Version {
            entries,
            _placed: placed,
            _claims: claims,
            _owners: owners.collect(),
        })
    }

    /// What a stub, or a caller that has pinned the version, calls for member `i`.
    pub fn entry(&self, i: usize) -> u64 {
        self.entries[i]
    }

    /// Whether an entry is one of this version. Safe in signal handlers.
    pub(super) fn has(&self, word: u64) -> bool {
        self.entries.contains(&word)
    }
}

impl MemberProg {
    fn spec<'a>(&self, model: &'a FuncModel) -> Result<EntrySpec<'a>, TrampError> {
        let func = self.func as *const () as u64;
        let size_bytes = prog_frame(model, self.needs).size_bytes();
        if size_bytes > MAX_FRAME_BYTES {
            let func = RxAddr::new(func);
            return Err(TrampError::FrameTooLarge { func, size_bytes });
        }
        Ok(EntrySpec::Prog {
            model,
            func,
            cookie: self.cookie,
            ret: self.ret,
            needs: self.needs,
        })
    }
}

/// Functions that are entries of some version. Used under the lock of changes.
static CLAIMED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// Those of one version.
#[derive(Debug, Default)]
struct Claims(Vec<u64>);

impl Claims {
    fn claim(&mut self, func: u64) -> bool {
        let is_new = Trampolines::locked(|| CLAIMED.lock().insert(func));
        if is_new {
            self.0.push(func);
        }
        is_new
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        Trampolines::locked(|| {
            let mut claimed = CLAIMED.lock();
            self.0.iter().for_each(|func| {
                claimed.remove(func);
            });
        });
    }
}

/// Code in a pack, known to tools.
#[derive(Debug)]
pub(crate) struct Placed {
    rx: RxRange,
    /// Nobody looks up what is freed: the first goes first.
    parts: Option<(Published, PackCode)>,
}

impl Placed {
    pub(crate) fn rx(&self) -> RxRange {
        self.rx
    }

    /// The code, of which tools know no more.
    pub(crate) fn into_code(mut self) -> Option<PackCode> {
        self.parts.take().map(|(_, code)| code)
    }

    /// Code of `len_bytes` that `generate` makes for the place that it gets; `None`: it cannot lie
    /// there.
    pub(crate) fn bytes(
        shop: &Workshop,
        near: Near,
        name: &str,
        len_bytes: usize,
        generate: impl FnOnce(RxAddr) -> Option<Vec<u8>>,
    ) -> Result<Placed, TrampError> {
        Trampolines::locked(|| {
            let buf = shop.packs.alloc(len_bytes, 64, near)?;
            let func = buf.rx().start;
            let bytes = generate(func).ok_or(TrampError::OutOfReach { func })?;
            finish(shop, buf, &Made::leaf(bytes), name)
        })
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let parts = self.parts.take();
        Trampolines::locked(|| drop(parts));
    }
}

impl Made {
    /// Code without a frame.
    fn leaf(bytes: Vec<u8>) -> Self {
        Made {
            unwind: Unwind {
                off: 0,
                len: bytes.len() as u32,
                rows: Vec::new(),
            },
            offs: vec![0],
            bytes,
        }
    }
}

/// Generates code where it will run, puts it there and tells tools; where its pieces begin. At
/// `trial` it is as long as it can get.
pub(super) fn place(
    shop: &Workshop,
    near: Near,
    trial: u64,
    name: &str,
    generate: impl Fn(u64) -> Result<Made, rv64::AsmError>,
) -> Result<(Placed, Vec<RxAddr>), TrampError> {
    let layout = |source| TrampError::Layout {
        func: super::cells::address(),
        source,
    };
    let longest = generate(trial).map_err(layout)?.bytes.len();
    Trampolines::locked(|| {
        let buf = shop.packs.alloc(longest, 64, near)?;
        let made = generate(buf.rx().start.get()).map_err(layout)?;
        let placed = finish(shop, buf, &made, name)?;
        let starts = made.offs.iter();
        let start = placed.rx.start.get();
        let starts = starts.map(|off| RxAddr::new(start + u64::from(*off)));
        Ok((placed, starts.collect()))
    })
}

/// The same for code that is one piece without a frame.
pub(crate) fn place_code(
    shop: &Workshop,
    near: Near,
    name: &str,
    generate: impl Fn(u64) -> Result<Vec<u8>, rv64::AsmError>,
) -> Result<(Placed, RxAddr), TrampError> {
    let (placed, _) = place(shop, near, FAR, name, |base| {
        Ok(Made::leaf(generate(base)?))
    })?;
    let start = placed.rx.start;
    Ok((placed, start))
}

fn finish(
    shop: &Workshop,
    mut buf: PackBuf,
    made: &Made,
    name: &str,
) -> Result<Placed, TrampError> {
    buf.rw()[..made.bytes.len()].copy_from_slice(&made.bytes);
    let code = shop.packs.finalize(buf)?;
    let rx = code.rx();
    let published = tell(shop, rx, made, name);
    Ok(Placed {
        rx,
        parts: Some((published, code)),
    })
}

fn tell(shop: &Workshop, rx: RxRange, made: &Made, name: &str) -> Published {
    let len = made.bytes.len() as u32;
    let symbol = Symbol {
        name: format!("{name}_{:x}", rx.start.get()),
        off: 0,
        len,
    };
    let info = CodeInfo {
        range: RxRange::new(rx.start, len as usize),
        bytes: &made.bytes,
        symbols: &[symbol],
        lines: &[],
        unwind: std::slice::from_ref(&made.unwind),
        landings: &[],
    };
    symbols::publish(&info, shop.tools)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_the_entry_of_one_version_at_a_time() {
        let (mut a, mut b) = (Claims::default(), Claims::default());
        assert!(a.claim(0x10) && !b.claim(0x10) && !a.claim(0x10));
        drop(a);
        assert!(b.claim(0x10));
    }

    #[test]
    fn a_program_with_too_many_arguments_is_refused() {
        let prog = MemberProg {
            func: never,
            cookie: None,
            ret: RetFrom::Value,
            needs: Needs::empty(),
            owner: Owner::default(),
        };
        let of = |n| FuncModel::new(&vec![crate::model::Type::U64; n], crate::model::Type::Void);
        assert!(prog.spec(&of(8).unwrap()).is_ok());
        assert!(
            prog.spec(&of(128).unwrap()).is_ok(),
            "the largest model fits"
        );
    }

    extern "C" fn never(_: *mut u64, _: u64) -> u64 {
        0
    }
}
