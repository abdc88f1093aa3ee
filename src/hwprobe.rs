//! What this machine's harts have.
//!
//! Source: kernel `Documentation/arch/riscv/hwprobe.rst`, `arch/riscv/include/uapi/asm/hwprobe.h`.

#![cfg_attr(
    target_arch = "riscv64",
    expect(unsafe_code, reason = "a bare system call")
)]

use rv64::Features;

/// The extensions that code may use here: those that all harts have and the kernel tells of. On
/// other hosts, none beyond RV64GC.
#[must_use]
pub fn features() -> Features {
    let extensions = extensions().unwrap_or(0);
    let has = |bit: u32| extensions >> bit & 1 != 0;
    Features {
        zba: has(3),
        zbb: has(4),
        zbs: has(5),
        zicond: has(35),
        zacas: has(34),
        zabha: has(58),
        zcb: has(44),
        ..Features::RV64GC
    }
}

/// The bits of `RISCV_HWPROBE_KEY_IMA_EXT_0` that all harts share.
#[cfg(target_arch = "riscv64")]
fn extensions() -> Option<u64> {
    /// The `libc` crate does not have it.
    const SYS_RISCV_HWPROBE: libc::c_long = 258;
    const KEY_IMA_EXT_0: i64 = 4;

    #[repr(C)]
    struct Pair {
        key: i64,
        value: u64,
    }
    let mut pair = Pair {
        key: KEY_IMA_EXT_0,
        value: 0,
    };
    // SAFETY:
    // 1. The kernel writes to the one pair, which is as it declares it.
    // 2. No set of harts: all of them.
    let rc = unsafe {
        libc::syscall(
            SYS_RISCV_HWPROBE,
            &raw mut pair,
            1_usize,
            0_usize,
            std::ptr::null::<u64>(),
            0_u32,
        )
    };
    // A key that the kernel does not know comes back as -1.
    (rc == 0 && pair.key == KEY_IMA_EXT_0).then_some(pair.value)
}

#[cfg(not(target_arch = "riscv64"))]
fn extensions() -> Option<u64> {
    None
}
