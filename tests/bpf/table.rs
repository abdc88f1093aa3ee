//! Vectors, and the table that collects them.
//!
//! Key types: [`Vector`], a line of the file; [`Table`].

use serde::{Deserialize, Serialize};

use super::asm::Insn;

/// A program and what comes of it.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vector {
    /// Its name.
    pub(crate) name: String,
    /// The program: hex of 8-byte little-endian instructions.
    pub(crate) insns: String,
    /// Hex of the memory that `r1` points to, with its length in `r2`; empty: both are 0.
    pub(crate) mem: String,
    /// `r0` at the end, in hex.
    pub(crate) r0: String,
    /// Not empty: the program must be refused, for this kind of reason.
    pub(crate) error: String,
}

/// Vectors in order.
#[derive(Default)]
pub(crate) struct Table(Vec<Vector>);

impl Table {
    /// A program without memory that gives `r0`.
    pub(crate) fn gives(&mut self, name: impl Into<String>, program: &[Insn], r0: u64) {
        self.gives_on("", name, program, r0);
    }

    /// A program on a copy of `mem`, hex, that gives `r0`.
    pub(crate) fn gives_on(
        &mut self,
        mem: &str,
        name: impl Into<String>,
        program: &[Insn],
        r0: u64,
    ) {
        self.0.push(Vector {
            name: name.into(),
            insns: hex_of(program),
            mem: mem.replace(' ', ""),
            r0: format!("{r0:#x}"),
            error: String::new(),
        });
    }

    /// A program that is refused.
    pub(crate) fn refuses(&mut self, name: impl Into<String>, program: &[Insn], error: &str) {
        self.refuses_hex(name, &hex_of(program), error);
    }

    /// Bytes, in hex, that are refused.
    pub(crate) fn refuses_hex(&mut self, name: impl Into<String>, insns: &str, error: &str) {
        self.0.push(Vector {
            name: name.into(),
            insns: insns.to_owned(),
            mem: String::new(),
            r0: "0x0".to_owned(),
            error: error.to_owned(),
        });
    }

    pub(crate) fn into_vectors(self) -> Vec<Vector> {
        self.0
    }
}

fn hex_of(program: &[Insn]) -> String {
    let bytes = program.iter().flat_map(|insn| insn.bytes());
    bytes.fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The bytes that a field holds.
pub(crate) fn bytes_of_hex(hex: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    };
    let bytes = hex.as_bytes().chunks(2).map(byte);
    bytes.collect::<Option<_>>().expect("hex")
}
