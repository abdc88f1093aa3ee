//! Other people's code in our packs: machine code that some compiler made, with relocations.
//!
//! ```text
//!   code  ──▶ checked ──▶ placed near what it needs ──▶ relocated ──▶ published ──▶ Hosted
//!             ┌──────────────┬───────────────────────┬────────────────┐
//!     rx ──▶  │ code         │ stubs of far calls    │ addresses      │
//!             └──────────────┴───────────────────────┴────────────────┘
//! ```
//!
//! Everything that can be wrong is found before a byte is published. Calls that do not reach go
//! through stubs behind the code, which change `t3`, as a linker's would; everything else must
//! reach, and the code is placed so that it does, if there is such a place.
//!
//! ```no_run
//! use rvbpf::host::{Reloc, RelocKind, RelocTarget};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let rt = rvbpf::Runtime::new()?;
//! // jal zero, somewhere: four bytes that a relocation fills in.
//! let relocs = [Reloc {
//!     off: 0,
//!     kind: RelocKind::Jal,
//!     target: RelocTarget::Code(4),
//!     addend: 0,
//! }];
//! let hosted = rt.host(&[0x6f, 0, 0, 0, 0x82, 0x80], &relocs)?;
//! // SAFETY: it jumps to a return.
//! unsafe { std::mem::transmute::<*const (), extern "C" fn()>(hosted.entry())() };
//! # Ok(()) }
//! ```
//!
//! Key types: [`HostCode`], [`Hosted`], [`Reloc`]. Neighbours: `pack_alloc` places, [`symbols`]
//! tells others. Source: RISC-V ELF psABI, "Relocations", "Procedure Linkage Table".

mod error;
mod place;
mod reloc;

use std::sync::Arc;

use pack_alloc::{PackAlloc, PackBuf, PackCode, PackError};
use symbols::{CodeInfo, Published};
use text::{RxAddr, RxRange};
use trampoline::Trampolines;

pub use self::error::{HostError, RelocFault};
use self::reloc::Plan;
pub use self::reloc::{Reloc, RelocKind, RelocTarget};
use crate::exclusive::Exclusive;
use crate::runtime::Runtime;
pub use symbols::{Cfa, LineEntry, Row, SavedFrom, Symbol, Unwind};

/// Machine code and what is known of it. Offsets are in bytes from its start.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct HostCode<'a> {
    bytes: &'a [u8],
    relocs: &'a [Reloc],
    symbols: Vec<Symbol>,
    lines: Vec<LineEntry>,
    unwind: Vec<Unwind>,
}

impl<'a> HostCode<'a> {
    /// Code that needs `relocs`.
    pub fn new(bytes: &'a [u8], relocs: &'a [Reloc]) -> Self {
        Self {
            bytes,
            relocs,
            ..Self::default()
        }
    }

    /// Its functions, for `perf` and gdb, by offset.
    pub fn symbols(mut self, symbols: Vec<Symbol>) -> Self {
        self.symbols = symbols;
        self
    }

    /// Where its instructions come from, by offset.
    pub fn lines(mut self, lines: Vec<LineEntry>) -> Self {
        self.lines = lines;
        self
    }

    /// How to leave its frames, so that `backtrace()`, exceptions and panics pass through it.
    pub fn unwind(mut self, unwind: Vec<Unwind>) -> Self {
        self.unwind = unwind;
        self
    }

    fn check(&self) -> Result<(), HostError> {
        let len = self.bytes.len();
        let fits = |off: u32, bytes: u32| off as usize + bytes as usize <= len;
        for Symbol {
            name,
            off,
            len: bytes,
        } in &self.symbols
        {
            if !fits(*off, *bytes) {
                return Err(HostError::Symbol { name: name.clone() });
            }
        }
        let in_order = |lines: &[LineEntry]| lines.windows(2).all(|two| two[0].off < two[1].off);
        if !in_order(&self.lines) || self.lines.last().is_some_and(|line| !fits(line.off, 0)) {
            return Err(HostError::Lines);
        }
        let mut next = 0;
        for unwind in &self.unwind {
            if unwind.off < next || !fits(unwind.off, unwind.len) || !has_sound_rows(unwind) {
                return Err(HostError::Unwind { off: unwind.off });
            }
            next = unwind.off + unwind.len;
        }
        Ok(())
    }
}

/// In order, inside, and with places that `.eh_frame` can say.
fn has_sound_rows(unwind: &Unwind) -> bool {
    /// Those of integers.
    const REGS: u8 = 32;
    let inside = unwind.off..unwind.off + unwind.len;
    let in_order = unwind.rows.windows(2).all(|two| two[0].off < two[1].off);
    let sayable = |(reg, off): &(u8, i32)| *reg < 64 && off % 8 == 0 && *off < 0;
    let known = |from: SavedFrom| !matches!(from, SavedFrom::Reg(REGS..));
    let sound = |row: &Row| {
        let by_registers = row.cfa.reg < REGS && known(row.from);
        inside.contains(&row.off) && by_registers && row.saved.iter().all(sayable)
    };
    !inside.is_empty() && in_order && unwind.rows.iter().all(sound)
}

/// Hosted code. Clones share it; it is freed with the last of them, and nobody may be in it then.
/// (A hook's program must not let go of the last one while it runs in the midst of a change of
/// hooks by its own thread, as on `malloc`: it would wait for itself.)
#[derive(Clone, Debug)]
pub struct Hosted {
    code: Arc<Code>,
    /// Keeps the packs.
    _runtime: Runtime,
}

#[derive(Debug)]
struct Code {
    rx: RxRange,
    symbols: Vec<Symbol>,
    /// The first goes first: nobody looks up what is freed.
    _parts: Exclusive<(Published, PackCode)>,
}

impl Runtime {
    /// Places machine code that another compiler made; see [`host`](crate::host).
    ///
    /// # Errors
    /// As [`Runtime::host_code`].
    pub fn host(&self, code: &[u8], relocs: &[Reloc]) -> Result<Hosted, HostError> {
        self.host_code(HostCode::new(code, relocs))
    }

    /// The same, with what unwinders, `perf` and gdb shall know.
    ///
    /// # Errors
    /// [`HostError`] names the relocation, symbol or row that cannot be; nothing is placed then.
    pub fn host_code(&self, host: HostCode<'_>) -> Result<Hosted, HostError> {
        if !cfg!(target_arch = "riscv64") {
            return Err(HostError::UnsupportedHost);
        }
        host.check()?;
        let plan = Plan::new(host.bytes, host.relocs)?;
        let code = Trampolines::exclusively(|| -> Result<Code, HostError> {
            let mut buf = alloc(self.packs(), &plan)?;
            let rx = buf.rx();
            let bytes = plan.link(rx.start.get())?;
            buf.rw()[..bytes.len()].copy_from_slice(&bytes);
            let pack = self.packs().finalize(buf)?;
            let symbols = match host.symbols.is_empty() {
                true => vec![nameless(rx)],
                false => host.symbols,
            };
            let info = CodeInfo {
                range: rx,
                bytes: &bytes,
                symbols: &symbols,
                lines: &host.lines,
                unwind: &host.unwind,
                landings: &[],
            };
            let published = symbols::publish(&info, self.tools());
            Ok(Code {
                rx,
                symbols,
                _parts: Exclusive::new((published, pack)),
            })
        })??;
        Ok(Hosted {
            code: Arc::new(code),
            _runtime: self.clone(),
        })
    }
}

/// As near as calls would like it; if there is no room, as near as the rest needs.
fn alloc(packs: &PackAlloc, plan: &Plan<'_>) -> Result<PackBuf, HostError> {
    let (wish, need) = plan.places()?;
    match packs.alloc(plan.len_bytes(), 64, wish) {
        Err(PackError::OutOfReach { .. }) if wish != need => {
            Ok(packs.alloc(plan.len_bytes(), 64, need)?)
        }
        result => Ok(result?),
    }
}

fn nameless(rx: RxRange) -> Symbol {
    Symbol {
        name: format!("hosted_{:x}", rx.start.get()),
        off: 0,
        len: rx.len_bytes as u32,
    }
}

impl Hosted {
    /// Where it is, stubs and addresses behind it included.
    #[must_use]
    pub fn rx(&self) -> RxRange {
        self.code.rx
    }

    /// Its first byte, as a pointer that can be made one to a function.
    #[must_use]
    pub fn entry(&self) -> *const () {
        pointer(self.code.rx.start)
    }

    /// The function of this name.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<*const ()> {
        let symbol = self
            .code
            .symbols
            .iter()
            .find(|symbol| symbol.name == name)?;
        Some(pointer(self.code.rx.start.checked_add(symbol.off.into())?))
    }
}

fn pointer(at: RxAddr) -> *const () {
    std::ptr::with_exposed_provenance(at.get() as usize)
}
