//! Functions with pads of every shape, and images to lead them to.

use std::arch::global_asm;
use std::sync::OnceLock;

use rvbpf_text::{Backing, CodeMap, Pad, PadWords, Place, ProcMaps, RxAddr, text_copy};

// One function of five c.nops per alignment, one of two nops, and what must be refused. Each
// returns its argument plus one.
global_asm!(
    ".macro pad_entry name, label",
    ".pushsection __patchable_function_entries,\"awo\",@progbits,.text",
    ".p2align 3",
    ".dword \\label",
    ".popsection",
    ".endm",
    ".macro func name",
    ".globl \\name",
    ".type \\name, @function",
    "\\name:",
    ".endm",
    ".macro body name",
    "addi a0, a0, 1",
    "ret",
    ".size \\name, . - \\name",
    ".endm",
    ".text",
    ".option push",
    ".option rvc",
    ".option norelax",
    ".p2align 2",
    "func pad_c_0mod4",
    "pad_entry pad_c_0mod4, pad_c_0mod4",
    ".rept 5\n c.nop\n .endr",
    "body pad_c_0mod4",
    ".p2align 2",
    "c.nop",
    "func pad_c_2mod4",
    "pad_entry pad_c_2mod4, pad_c_2mod4",
    ".rept 5\n c.nop\n .endr",
    "body pad_c_2mod4",
    ".p2align 2",
    ".option push",
    ".option norvc",
    "func pad_4",
    "pad_entry pad_4, pad_4",
    "nop\n nop",
    "body pad_4",
    ".option pop",
    // The N,M form: two nops before the entry, five after it.
    ".p2align 2",
    "c.ebreak",
    "2: c.nop\n c.nop",
    "func pad_before",
    "pad_entry pad_before, 2b",
    ".rept 5\n c.nop\n .endr",
    "body pad_before",
    // A landing pad, then nops.
    ".p2align 2",
    "func pad_lpad",
    "pad_entry pad_lpad, 3f",
    ".word 0x00000017",
    "3: .rept 5\n c.nop\n .endr",
    "body pad_lpad",
    // Too short, at either alignment.
    ".p2align 2",
    "func pad_short_0",
    "pad_entry pad_short_0, pad_short_0",
    "c.nop\n c.nop",
    "body pad_short_0",
    ".p2align 2",
    "c.nop",
    "func pad_short_2",
    "pad_entry pad_short_2, pad_short_2",
    ".rept 4\n c.nop\n .endr",
    "body pad_short_2",
    // Somebody else was here.
    ".p2align 2",
    "func pad_taken",
    "pad_entry pad_taken, pad_taken",
    ".word 0x00000297",
    "c.nop",
    "body pad_taken",
    ".p2align 2",
    "func pad_gone",
    "pad_entry pad_gone, pad_gone",
    "addi a0, a0, 0",
    "body pad_gone",
    // Traps; its handler decides where it goes on.
    ".p2align 2",
    "func trap_into",
    "ebreak",
    "body trap_into",
    // No pad at all, and a vector function.
    ".p2align 2",
    "func no_pad",
    "body no_pad",
    ".p2align 2",
    ".variant_cc pad_vector",
    "func pad_vector",
    "pad_entry pad_vector, pad_vector",
    ".rept 5\n c.nop\n .endr",
    "body pad_vector",
    // Many, over several pages.
    ".p2align 2",
    "func pad_many",
    ".rept 64",
    "4: pad_entry pad_many, 4b",
    ".rept 4\n c.nop\n .endr",
    "addi a0, a0, 1",
    "ret",
    ".space 240",
    ".endr",
    ".size pad_many, . - pad_many",
    ".option pop",
);

unsafe extern "C" {
    pub(crate) fn pad_c_0mod4(x: u64) -> u64;
    pub(crate) fn pad_c_2mod4(x: u64) -> u64;
    pub(crate) fn pad_4(x: u64) -> u64;
    pub(crate) fn pad_before(x: u64) -> u64;
    pub(crate) fn pad_lpad(x: u64) -> u64;
    pub(crate) fn pad_short_0(x: u64) -> u64;
    pub(crate) fn pad_short_2(x: u64) -> u64;
    pub(crate) fn pad_taken(x: u64) -> u64;
    pub(crate) fn pad_gone(x: u64) -> u64;
    pub(crate) fn trap_into(x: u64) -> u64;
    pub(crate) fn no_pad(x: u64) -> u64;
    pub(crate) fn pad_vector(x: u64) -> u64;
    pub(crate) fn pad_many(x: u64) -> u64;
}

pub(crate) type Func = unsafe extern "C" fn(u64) -> u64;

pub(crate) fn rx(f: Func) -> RxAddr {
    RxAddr::new(f as usize as u64)
}

/// The `i`th of the functions at `pad_many`.
pub(crate) fn many(i: usize) -> RxAddr {
    static STARTS: OnceLock<Vec<RxAddr>> = OnceLock::new();
    let starts = STARTS.get_or_init(|| {
        let pads = Pad::all_in(rx(pad_many)).expect("the test's own file");
        let from_many = |pad: &Pad| pad.start >= rx(pad_many);
        pads.into_iter()
            .flatten()
            .filter(from_many)
            .map(|pad| pad.start)
            .collect()
    });
    starts[i]
}

pub(crate) fn words(f: Func) -> PadWords {
    Pad::find(rx(f))
        .and_then(|p| p.words())
        .expect("a pad of the test")
}

pub(crate) fn call(at: RxAddr, x: u64) -> u64 {
    let entry = std::ptr::with_exposed_provenance::<()>(at.get() as usize);
    // SAFETY: the tests pass entries of functions of this type only.
    let f = unsafe { std::mem::transmute::<*const (), Func>(entry) };
    // SAFETY: these functions have no conditions.
    unsafe { f(x) }
}

/// The word of text at `at`.
pub(crate) fn word(at: RxAddr) -> u32 {
    let word = std::ptr::with_exposed_provenance::<u32>(at.get() as usize);
    // SAFETY: mapped text, changed by aligned stores only.
    unsafe { word.read_volatile() }
}

/// A code map in reach of this program, with images that set a0 and go back through t0.
pub(crate) struct Images {
    pub(crate) map: CodeMap,
}

impl Images {
    pub(crate) fn new() -> Self {
        let maps = ProcMaps::read().unwrap();
        let own = maps.find(rx(pad_4)).expect("mapped").range.end();
        let mib2 = 2u64 << 20;
        let start = (own.get() + (512 << 20)).next_multiple_of(mib2);
        let map = (0..64)
            .find_map(|i| {
                let at = RxAddr::new(start + i * mib2);
                CodeMap::new(mib2 as usize, Place::At(at), Backing::Memfd).ok()
            })
            .expect("a free 2 MiB near the program");
        Self { map }
    }

    /// The image at `off` (a multiple of 8): `li a0, n; jr t0`.
    pub(crate) fn put(&self, off: usize, n: u32) -> RxAddr {
        let code = [n << 20 | 0x513, 0x0002_8067]
            .map(u32::to_le_bytes)
            .concat();
        let at = self.map.rx().sub(off, code.len()).expect("inside");
        text_copy(at, &code).unwrap();
        at.start
    }

    /// Two images that one `auipc` at `site` reaches, returning `a` and `b`.
    pub(crate) fn two_in_reach(&self, site: RxAddr, a: u32, b: u32) -> (RxAddr, RxAddr) {
        let base = self.map.rx().start;
        // The window of an auipc is [site + hi20 * 4096 - 2048, + 2048).
        let low = (site.get() % 4096) as usize;
        let off = ((low + 4096 - (base.get() % 4096) as usize) % 4096 + 7) & !7;
        (self.put(off, a), self.put(off + 64, b))
    }
}
