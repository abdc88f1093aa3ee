//! From a function of Cranelift to code that can be hosted.
//!
//! Cranelift gives bytes and relocations by name; who calls [`compile`] says what the names are.
//! Functions keep a frame pointer, so how to leave them is known without Cranelift's own tables.
//!
//! Key types: [`Compiled`]. Neighbour: [`rvbpf::host`].

use cranelift_codegen::Context;
use cranelift_codegen::binemit;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{ExternalName, Function};
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use rvbpf::host::{Cfa, HostCode, Reloc, RelocKind, RelocTarget, Row, SavedFrom, Symbol, Unwind};

/// What goes wrong in Cranelift, in its own words.
pub type Error = Box<dyn std::error::Error>;

/// The code of one function.
#[derive(Clone, Debug)]
pub struct Compiled {
    name: String,
    bytes: Vec<u8>,
    relocs: Vec<Reloc>,
}

/// Cranelift for this machine, with frame pointers.
///
/// # Errors
/// Where Cranelift does not know this machine.
pub fn isa() -> Result<OwnedTargetIsa, Error> {
    let mut flags = settings::builder();
    flags.set("opt_level", "speed")?;
    flags.set("preserve_frame_pointers", "true")?;
    Ok(cranelift_native::builder()?.finish(settings::Flags::new(flags))?)
}

/// Compiles `func`; `address_of` knows the addresses of what it calls, by the index of the user's
/// name.
///
/// # Errors
/// What Cranelift refuses, a name that nobody knows, a relocation that it has not had so far.
pub fn compile(
    isa: &OwnedTargetIsa,
    name: &str,
    func: Function,
    address_of: impl Fn(u32) -> Option<u64>,
) -> Result<Compiled, Error> {
    let mut context = Context::for_function(func);
    let code = context
        .compile(&**isa, &mut ControlPlane::default())
        .map_err(|error| error.inner)?;
    let (bytes, found) = (code.code_buffer().to_vec(), code.buffer.relocs().to_vec());
    let names = context.func.params.user_named_funcs();
    let mut relocs = Vec::new();
    for reloc in found {
        let kind = match reloc.kind {
            binemit::Reloc::RiscvCall => RelocKind::Call,
            binemit::Reloc::Abs8 => RelocKind::Abs64,
            other => return Err(format!("Cranelift asks for a relocation {other}").into()),
        };
        let ExternalName::User(user) = reloc.name else {
            return Err(format!("Cranelift calls {:?} of its own", reloc.name).into());
        };
        let index = names[user].index;
        let address = address_of(index).ok_or_else(|| format!("nobody knows function {index}"))?;
        relocs.push(Reloc {
            off: reloc.offset as usize,
            kind,
            target: RelocTarget::Address(address),
            addend: reloc.addend,
        });
    }
    Ok(Compiled {
        name: name.to_owned(),
        bytes,
        relocs,
    })
}

impl Compiled {
    /// What [`rvbpf::Runtime::host_code`] takes.
    pub fn host_code(&self) -> HostCode<'_> {
        let len = self.bytes.len() as u32;
        HostCode::new(&self.bytes, &self.relocs)
            .symbols(vec![Symbol {
                name: self.name.clone(),
                off: 0,
                len,
            }])
            .unwind(vec![self.unwind(len)])
    }

    /// Relocations that it has.
    #[must_use]
    pub fn relocs(&self) -> &[Reloc] {
        &self.relocs
    }

    /// Cranelift's prologue with a frame pointer: room for two words, `ra`, `fp`, then `fp` points
    /// to them. Inside, that is all one needs; the last words of an epilogue are not described.
    fn unwind(&self, len: u32) -> Unwind {
        const SP: u8 = 2;
        const FP: u8 = 8;
        let saved = vec![(1, -8), (FP, -16)];
        let row = |off, reg, saved| Row {
            off,
            cfa: Cfa { reg, off: 16 },
            saved,
            from: SavedFrom::Cfa,
        };
        let rows = vec![
            row(4, SP, Vec::new()),
            row(12, SP, saved.clone()),
            row(16, FP, saved),
        ];
        Unwind { off: 0, len, rows }
    }
}
