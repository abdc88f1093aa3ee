//! The generated callers and callees, and the gate between them.
//!
//! ```text
//! tl_abi_in ─▶ caller abi_c<n> ─▶ gate ─▶ callee abi_f<n> ─▶ tl_abi_got
//! tl_abi_out ◀─               ◀─  │  ◀─                  ◀─ tl_abi_ret
//!                                 ▼
//!                              tl_abi_dump: registers and stack words at entry and at return
//! ```
//!
//! [`call`] sends random bytes down that path and reports what was [`Seen`]: the bytes that the
//! callee received, those that the caller got back, and the [`Dump`]. Only the callee has a pad, so
//! that a hook sits between the gate and the callee.
//!
//! Source: `c/gate.S`, `build/emit.rs`.
#![expect(
    unsafe_code,
    reason = "calls C functions and reads the memory they share"
)]

use crate::sig::{BUFFER_BYTES, Rng, Sig, Ty, buffer_offsets, generate};
use std::mem::offset_of;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the gate has written down (`c/gate.S`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Dump {
    /// `a0` to `a7` at entry.
    pub a: [u64; 8],
    /// `fa0` to `fa7` at entry.
    pub fa: [u64; 8],
    /// `sp` at entry.
    pub sp: u64,
    /// The words from `sp` up at entry.
    pub stack: [u64; 64],
    /// What the gate set `s0` to `s11` to.
    pub pattern_s: [u64; 12],
    /// What the gate set `fs0` to `fs11` to.
    pub pattern_fs: [u64; 12],
    /// What the gate set `fcsr` to.
    pub pattern_fcsr: u64,
    /// `a0`, `a1` at return.
    pub ret_a: [u64; 2],
    /// `fa0`, `fa1` at return.
    pub ret_fa: [u64; 2],
    /// `sp` at return.
    pub ret_sp: u64,
    /// `s0` to `s11` at return.
    pub ret_s: [u64; 12],
    /// `fs0` to `fs11` at return.
    pub ret_fs: [u64; 12],
    /// `fcsr` at return.
    pub ret_fcsr: u64,
    /// `gp` at return.
    pub ret_gp: u64,
    /// `tp` at return.
    pub ret_tp: u64,
    save_s: [u64; 12],
    save_fs: [u64; 12],
    save_fcsr: u64,
    save_ra: u64,
    /// `gp` at entry.
    pub gp: u64,
    /// `tp` at entry.
    pub tp: u64,
}

const _: () = {
    assert!(offset_of!(Dump, fa) == 64);
    assert!(offset_of!(Dump, sp) == 128);
    assert!(offset_of!(Dump, stack) == 136);
    assert!(offset_of!(Dump, pattern_s) == 648);
    assert!(offset_of!(Dump, pattern_fs) == 744);
    assert!(offset_of!(Dump, pattern_fcsr) == 840);
    assert!(offset_of!(Dump, ret_a) == 848);
    assert!(offset_of!(Dump, ret_fa) == 864);
    assert!(offset_of!(Dump, ret_sp) == 880);
    assert!(offset_of!(Dump, ret_s) == 888);
    assert!(offset_of!(Dump, ret_fs) == 984);
    assert!(offset_of!(Dump, ret_fcsr) == 1080);
    assert!(offset_of!(Dump, ret_gp) == 1088);
    assert!(offset_of!(Dump, ret_tp) == 1096);
    assert!(offset_of!(Dump, save_s) == 1104);
    assert!(offset_of!(Dump, save_fs) == 1200);
    assert!(offset_of!(Dump, save_fcsr) == 1296);
    assert!(offset_of!(Dump, save_ra) == 1304);
    assert!(offset_of!(Dump, gp) == 1312);
    assert!(offset_of!(Dump, tp) == 1320);
    assert!(size_of::<Dump>() == 1328);
};

type Code = unsafe extern "C" fn();
type Buffer = [u8; BUFFER_BYTES];

/// Called by the gate before the callee, with the entry half of the dump filled in.
pub type Probe = extern "C" fn(&Dump);

unsafe extern "C" {
    // As many as the build script was asked for: RVBPF_ABI_COUNT.
    static tl_abi_cases: [RawCase; 0];
    static mut tl_abi_in: Buffer;
    static mut tl_abi_got: Buffer;
    static mut tl_abi_ret: Buffer;
    static mut tl_abi_out: Buffer;
    static mut tl_abi_dump: Dump;
    static mut tl_abi_probe: Option<Probe>;
    static mut tl_abi_target: Option<Code>;
    static mut tl_abi_nr_calls: u64;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawCase {
    caller: Code,
    callee: Code,
}

/// One generated signature with its compiled functions.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its number, as in `abi_f<index>`.
    pub index: usize,
    /// Its types.
    pub sig: Sig,
    /// The function with the pad, whatever its type.
    pub callee: Code,
    caller: Code,
}

/// All generated cases.
pub fn cases() -> Vec<Case> {
    let number = |text: &str| {
        text.parse::<u64>()
            .expect("the build script wrote a number")
    };
    let seed = number(env!("RVBPF_ABI_SEED"));
    let count = number(env!("RVBPF_ABI_COUNT")) as usize;
    let raw = (&raw const tl_abi_cases).cast::<RawCase>();
    // SAFETY: 1. the build script emitted the table with `count` entries of this layout;
    // 2. it is constant.
    let raw = unsafe { std::slice::from_raw_parts(raw, count) };
    let with_code = |(index, (sig, raw)): (usize, (Sig, &RawCase))| Case {
        index,
        sig,
        callee: raw.callee,
        caller: raw.caller,
    };
    generate(seed, count)
        .into_iter()
        .zip(raw)
        .enumerate()
        .map(with_code)
        .collect()
}

/// The bytes of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// Of each argument.
    pub args: Vec<Vec<u8>>,
    /// Of the return value.
    pub ret: Vec<u8>,
}

impl Bytes {
    /// Random values: any bit pattern, but 0 or 1 for a `_Bool` and zeros in padding.
    pub fn random(sig: &Sig, rng: &mut Rng) -> Bytes {
        let mut value = |ty: &Ty| -> Vec<u8> {
            ty.value_mask()
                .into_iter()
                .map(|mask| rng.next_u64() as u8 & mask)
                .collect()
        };
        Bytes {
            args: sig.args().map(&mut value).collect(),
            ret: value(&sig.ret),
        }
    }
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The arguments as the callee got them, and the return value as the caller got it, zeros in
    /// padding. An untouched buffer reads 0xee.
    pub bytes: Bytes,
    /// Registers and stack at the gate.
    pub dump: Dump,
    /// How often the callee was reached.
    pub nr_calls: u64,
}

impl Seen {
    /// What a call must not change and this one did: callee-saved registers, `sp`, `gp`, `tp`,
    /// `fcsr`. Empty when all is well.
    pub fn damage(&self) -> Vec<String> {
        let d = &self.dump;
        let mut damage = Vec::new();
        let mut expect = |name: String, want: u64, got: u64| {
            if want != got {
                damage.push(format!("{name}: {want:#x} became {got:#x}"));
            }
        };
        for i in 0..12 {
            expect(format!("s{i}"), d.pattern_s[i], d.ret_s[i]);
            expect(format!("fs{i}"), d.pattern_fs[i], d.ret_fs[i]);
        }
        expect("sp".into(), d.sp, d.ret_sp);
        expect("gp".into(), d.gp, d.ret_gp);
        expect("tp".into(), d.tp, d.ret_tp);
        expect("fcsr".into(), d.pattern_fcsr, d.ret_fcsr);
        damage
    }
}

/// The gate and its buffers serve one call at a time.
static GATE: Mutex<()> = Mutex::new(());

fn lock_gate() -> MutexGuard<'static, ()> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls the case's caller with these bytes. `probe` runs at the gate, before the callee and
/// before whatever is hooked to it.
pub fn call(case: &Case, sent: &Bytes, probe: Option<Probe>) -> Seen {
    let _gate = lock_gate();
    let sig = &case.sig;
    let offsets = buffer_offsets(sig);
    let mut input = [0xee; BUFFER_BYTES];
    for (arg, at) in sent.args.iter().zip(&offsets) {
        input[*at..][..arg.len()].copy_from_slice(arg);
    }
    let mut ret = [0xee; BUFFER_BYTES];
    ret[..sent.ret.len()].copy_from_slice(&sent.ret);
    store(&raw mut tl_abi_in, input);
    store(&raw mut tl_abi_ret, ret);
    store(&raw mut tl_abi_got, [0xee; BUFFER_BYTES]);
    store(&raw mut tl_abi_out, [0xee; BUFFER_BYTES]);
    store(&raw mut tl_abi_dump, patterns());
    store(&raw mut tl_abi_probe, probe);
    store(&raw mut tl_abi_target, Some(case.callee));
    store(&raw mut tl_abi_nr_calls, 0);
    // SAFETY: 1. a generated caller takes nothing and returns nothing; 2. the gate's target is the
    // callee it was generated for; 3. the buffers are as large as its offsets ask (asserted by
    // `buffer_offsets`).
    unsafe { (case.caller)() };
    let got = load(&raw const tl_abi_got);
    let out = load(&raw const tl_abi_out);
    let masked = |ty: &Ty, bytes: &[u8]| -> Vec<u8> {
        ty.value_mask()
            .iter()
            .zip(bytes)
            .map(|(mask, byte)| mask_byte(*mask, *byte))
            .collect()
    };
    Seen {
        bytes: Bytes {
            args: sig
                .args()
                .zip(&offsets)
                .map(|(ty, at)| masked(ty, &got[*at..]))
                .collect(),
            ret: masked(&sig.ret, &out),
        },
        dump: load(&raw const tl_abi_dump),
        nr_calls: load(&raw const tl_abi_nr_calls),
    }
}

/// Padding reads as zero; a `_Bool`, whose mask is 1, is compared whole, for it must be 0 or 1.
fn mask_byte(mask: u8, byte: u8) -> u8 {
    if mask == 0 { 0 } else { byte }
}

/// Distinct values for the callee-saved registers; a rounding mode and flags that are not the
/// default for `fcsr`.
fn patterns() -> Dump {
    // SAFETY: all-zero bytes are a `Dump`: it is made of integers.
    let zero: Dump = unsafe { std::mem::zeroed() };
    Dump {
        pattern_s: std::array::from_fn(|i| 0x5000_dead_beef_0000 + i as u64),
        pattern_fs: std::array::from_fn(|i| 0xf500_dead_beef_0000 + i as u64),
        pattern_fcsr: 0b001_10101,
        ..zero
    }
}

/// Writes what machine code reads later. Only under the gate's lock.
fn store<T>(to: *mut T, value: T) {
    // SAFETY: 1. `to` is one of the statics above (private function); 2. the lock is held, and the
    // machine code that shares them runs only inside `call`, a call the compiler cannot see through.
    unsafe { to.write(value) }
}

/// Reads what machine code wrote. Only under the gate's lock.
fn load<T: Copy>(from: *const T) -> T {
    // SAFETY: as in `store`.
    unsafe { from.read() }
}
