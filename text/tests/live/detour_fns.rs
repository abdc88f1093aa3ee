//! Functions without pads, of every shape that a jump can fall on, with copies of what it covers.

use std::arch::global_asm;

use rvbpf_text::{Backing, CodeMap, Detour, DetourKind, Place, ProcMaps, RxAddr, text_copy};

use super::fns::{Func, rx};

/// A function, the copy of its first instructions, and both as `extern`s. Each instruction adds
/// another power of two, so that a sum says which have run.
macro_rules! function {
    ($name:ident, $copy:ident, $before:literal, [$($covered:literal),*], [$($rest:literal),*]) => {
        global_asm!(
            ".text",
            ".option push",
            ".option rvc",
            ".option norelax",
            ".p2align 3",
            $before,
            concat!(".globl ", stringify!($name)),
            concat!(".type ", stringify!($name), ", @function"),
            concat!(stringify!($name), ":"),
            $($covered,)*
            concat!(stringify!($name), "_rest:"),
            $($rest,)*
            "ret",
            concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
            ".p2align 2",
            concat!(".globl ", stringify!($copy)),
            concat!(stringify!($copy), ":"),
            $($covered,)*
            concat!("j ", stringify!($name), "_rest"),
            ".option pop",
        );
        unsafe extern "C" {
            fn $name(x: u64) -> u64;
            fn $copy(x: u64) -> u64;
        }
    };
}

function!(
    d_2222_0,
    d_2222_0_copy,
    "",
    [
        "c.addi a0, 1",
        "c.addi a0, 2",
        "c.addi a0, 4",
        "c.addi a0, 8"
    ],
    ["c.addi a0, 16"]
);
function!(
    d_2222_2,
    d_2222_2_copy,
    "c.nop",
    [
        "c.addi a0, 1",
        "c.addi a0, 2",
        "c.addi a0, 4",
        "c.addi a0, 8"
    ],
    ["c.addi a0, 16"]
);
function!(
    d_44_0,
    d_44_0_copy,
    "",
    ["addi a0, a0, 65", "addi a0, a0, 130"],
    ["c.addi a0, 16"]
);
function!(
    d_44_2,
    d_44_2_copy,
    "c.nop",
    ["addi a0, a0, 65", "addi a0, a0, 130"],
    ["c.addi a0, 16"]
);
function!(
    d_242_0,
    d_242_0_copy,
    "",
    ["c.addi a0, 1", "addi a0, a0, 66", "c.addi a0, 4"],
    ["c.addi a0, 16"]
);
function!(
    d_242_2,
    d_242_2_copy,
    "c.nop",
    ["c.addi a0, 1", "addi a0, a0, 66", "c.addi a0, 4"],
    ["c.addi a0, 16"]
);
function!(
    d_4222_2,
    d_4222_2_copy,
    "c.nop",
    ["addi a0, a0, 65", "c.addi a0, 2", "c.addi a0, 4"],
    ["c.addi a0, 16"]
);
// Its covered instructions are a loop, which is left when the word at a0 is not 0.
function!(
    d_loop,
    d_loop_copy,
    "",
    ["c.nop", "77: c.lw a5, 0(a0)", "c.beqz a5, 77b", "c.nop"],
    ["li a0, 7"]
);

global_asm!(
    ".text",
    ".option push",
    ".option rvc",
    ".p2align 2",
    ".globl d_target",
    "d_target:",
    "addi a0, a0, 1000",
    "ret",
    // Stops in a handler of SIGILL, which lets it go on elsewhere.
    ".globl d_unimp",
    "d_unimp:",
    ".word 0",
    "ret",
    // A breakpoint of somebody else: returns twice its argument.
    ".p2align 2",
    ".globl d_foreign",
    "d_foreign:",
    "c.ebreak",
    "c.add a0, a0",
    "ret",
    ".option pop",
);

unsafe extern "C" {
    pub(crate) fn d_target(x: u64) -> u64;
    pub(crate) fn d_unimp(x: u64) -> u64;
    pub(crate) fn d_foreign(x: u64) -> u64;
}

/// What a call that is led away yields, more than its argument.
pub(crate) const LED: u64 = 1000;

/// A function of the table.
#[derive(Copy, Clone)]
pub(crate) struct Site {
    pub(crate) name: &'static str,
    func: Func,
    copy: Func,
    /// Of each instruction that may be covered: its length and what it adds.
    pub(crate) insns: &'static [(u8, u64)],
    /// What the others add.
    rest: u64,
}

pub(crate) const SITES: [Site; 7] = [
    site(
        "2222 at 0",
        d_2222_0,
        d_2222_0_copy,
        &[(2, 1), (2, 2), (2, 4), (2, 8)],
    ),
    site(
        "2222 at 2",
        d_2222_2,
        d_2222_2_copy,
        &[(2, 1), (2, 2), (2, 4), (2, 8)],
    ),
    site("44 at 0", d_44_0, d_44_0_copy, &[(4, 65), (4, 130)]),
    site("44 at 2", d_44_2, d_44_2_copy, &[(4, 65), (4, 130)]),
    site(
        "242 at 0",
        d_242_0,
        d_242_0_copy,
        &[(2, 1), (4, 66), (2, 4)],
    ),
    site(
        "242 at 2",
        d_242_2,
        d_242_2_copy,
        &[(2, 1), (4, 66), (2, 4)],
    ),
    site(
        "4222 at 2",
        d_4222_2,
        d_4222_2_copy,
        &[(4, 65), (2, 2), (2, 4)],
    ),
];

/// Covered as a whole by a far jump.
pub(crate) const LOOP: Site = Site {
    name: "loop",
    func: d_loop,
    copy: d_loop_copy,
    insns: &[(2, 0), (2, 0), (2, 0), (2, 0)],
    rest: 0,
};

const fn site(name: &'static str, func: Func, copy: Func, insns: &'static [(u8, u64)]) -> Site {
    Site {
        name,
        func,
        copy,
        insns,
        rest: 16,
    }
}

impl Site {
    pub(crate) fn at(&self) -> RxAddr {
        rx(self.func)
    }

    /// What a call yields, more than its argument.
    pub(crate) fn adds(&self) -> u64 {
        self.insns.iter().map(|(_, adds)| adds).sum::<u64>() + self.rest
    }

    /// Offsets of the instructions that `kind` covers, and how many bytes that is.
    pub(crate) fn covered(&self, kind: DetourKind) -> (Vec<u8>, u8) {
        let jump_bytes = match kind {
            DetourKind::Trap => 2,
            DetourKind::Near => 4,
            DetourKind::Far { .. } => 8,
        };
        let (mut offs, mut end) = (Vec::new(), 0);
        for (len, _) in self.insns {
            if end >= jump_bytes {
                break;
            }
            offs.push(end);
            end += len;
        }
        (offs, end)
    }

    /// What is still added from the instruction at `off` on.
    pub(crate) fn adds_from(&self, off: u8) -> u64 {
        let mut at = 0;
        let mut sum = self.rest;
        for (len, adds) in self.insns {
            if at >= off {
                sum += adds;
            }
            at += len;
        }
        sum
    }

    pub(crate) fn detour(&self, kind: DetourKind, to: RxAddr) -> Detour {
        let (offs, covered_bytes) = self.covered(kind);
        let copy = |off: &u8| rx(self.copy).checked_add(u64::from(*off)).unwrap();
        Detour {
            at: self.at(),
            to,
            kind,
            covered_bytes,
            moved: offs.iter().map(|off| (*off, copy(off))).collect(),
        }
    }

    /// The bytes of its text now.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let at = self.at().get();
        let byte = |i: u64| {
            let at = std::ptr::with_exposed_provenance::<u8>((at + i) as usize);
            // SAFETY: mapped text.
            unsafe { at.read_volatile() }
        };
        (0..16).map(byte).collect()
    }
}

/// Code in reach of an `auipc` pair, but not of a `jal`.
pub(crate) struct FarAway {
    map: CodeMap,
}

impl FarAway {
    const OFF: usize = 0x1234;

    pub(crate) fn new() -> Self {
        let maps = ProcMaps::read().unwrap();
        let own = maps.find(rx(d_target)).expect("mapped").range.end();
        let mib2 = 2u64 << 20;
        let start = (own.get() + (256 << 20)).next_multiple_of(mib2);
        let map = (0..64)
            .find_map(|i| {
                let at = RxAddr::new(start + i * mib2);
                CodeMap::new(mib2 as usize, Place::At(at), Backing::Memfd).ok()
            })
            .expect("a free 2 MiB near the program");
        // addi a0, a0, 1000; ret
        let code = [(LED as u32) << 20 | 0x5_0513, 0x0000_8067];
        let bytes = code.map(u32::to_le_bytes).concat();
        let at = map.rx().sub(Self::OFF, bytes.len()).expect("inside");
        text_copy(at, &bytes).unwrap();
        Self { map }
    }

    /// Adds what `d_target` adds.
    pub(crate) fn target(&self) -> RxAddr {
        self.map.rx().start.checked_add(Self::OFF as u64).unwrap()
    }
}

pub(crate) const FAR: DetourKind = DetourKind::Far { scratch: 28 };
pub(crate) const KINDS: [DetourKind; 3] = [DetourKind::Trap, DetourKind::Near, FAR];
