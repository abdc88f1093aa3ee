//! How a thread becomes known: its first call of a member, and the tables that it pins.
//!
//! Key type: [`Pin`]. Neighbours: `code` calls [`register_addr`]; [`crate::table`] lists threads.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use super::Front;
use crate::guard::{self, ThreadBlock};
use crate::table;

pub(super) use asm::register_addr;

/// A thread's hold on a version: as long as this lives, nothing of it is freed. It stays on its
/// thread.
///
/// It costs some plain loads and stores; a thread's ninth pin at a time, atomic additions.
#[derive(Debug)]
pub struct Pin {
    place: Place,
    _here: PhantomData<*const ()>,
}

#[derive(Debug)]
enum Place {
    /// Among the thread's pins.
    Here(&'static AtomicU64),
    /// Among those that the front counts.
    Counted(Arc<Front>),
}

impl Pin {
    /// Pins the version that `front` leads to now, and gives its number; `None` when that is none.
    #[inline]
    pub fn new(front: &Arc<Front>) -> Option<(Pin, u64)> {
        let block = guard::block();
        let known = block.ops.load(Relaxed) != 0 || register_thread() == 0;
        let pins = table::levels(block).filter(|_| known).map(|l| &l.pins);
        let free = pins.and_then(|pins| pins.iter().find(|pin| pin.load(Relaxed) == 0));
        let (place, number) = match free {
            Some(pin) => {
                let hold = |number| pin.store(number, Relaxed);
                (Place::Here(pin), settle(front, hold)?)
            }
            None => {
                front.count(1);
                let place = Place::Counted(front.clone());
                (place, settle(front, |_| ())?)
            }
        };
        let pin = Pin {
            place,
            _here: PhantomData,
        };
        (number != 0).then_some((pin, number))
    }
}

/// Says which version is held until it is still the current one afterwards. Whoever swaps looks at
/// this thread after the store: either it finds what is held, or this finds the new version.
fn settle(front: &Front, hold: impl Fn(u64)) -> Option<u64> {
    loop {
        let number = front.current().load(Acquire);
        hold(number);
        compiler_fence(SeqCst);
        if front.current().load(Acquire) == number {
            return Some(number);
        }
    }
}

impl Drop for Pin {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(SeqCst);
        match &self.place {
            Place::Here(pin) => pin.store(0, Release),
            Place::Counted(front) => front.count(-1),
        }
    }
}

/// Puts the calling thread into the table, if it is not there. Non-zero: it is not to be had there.
/// Safe in signal handlers.
extern "C" fn register_thread() -> u64 {
    let block = guard::block();
    let idle = guard::idle_value(block.addr());
    if block.guard.load(Relaxed) == 0 {
        if table::register(block).is_err() {
            return 1;
        }
        // A signal handler may have been quicker, but it has put back what it found: idle.
        block.guard.store(idle, Relaxed);
    }
    make_idle(block, idle);
    0
}

fn make_idle(block: &ThreadBlock, idle: u64) {
    if block.ops.load(Relaxed) == 0 {
        block.ops.store(idle, Relaxed);
    }
}

#[cfg(all(target_arch = "riscv64", target_os = "linux"))]
#[expect(
    unsafe_code,
    reason = "a function in assembly, for machine code to call"
)]
mod asm {
    use std::arch::global_asm;

    // register_thread() for a stub: all argument registers are kept, the result is in t1.
    global_asm!(
        // The assembler of global_asm! does not know of the target's extensions.
        ".option push",
        ".option arch, +d",
        ".section .text.rvbpf_ops_register_0_1, \"ax\", @progbits",
        ".hidden rvbpf_ops_register_0_1",
        ".globl rvbpf_ops_register_0_1",
        ".type rvbpf_ops_register_0_1, @function",
        "rvbpf_ops_register_0_1:",
        ".cfi_startproc",
        "addi sp, sp, -144",
        ".cfi_def_cfa_offset 144",
        "sd ra, 136(sp)",
        ".cfi_offset ra, -8",
        "sd a0, 0(sp)",
        "sd a1, 8(sp)",
        "sd a2, 16(sp)",
        "sd a3, 24(sp)",
        "sd a4, 32(sp)",
        "sd a5, 40(sp)",
        "sd a6, 48(sp)",
        "sd a7, 56(sp)",
        "fsd fa0, 64(sp)",
        "fsd fa1, 72(sp)",
        "fsd fa2, 80(sp)",
        "fsd fa3, 88(sp)",
        "fsd fa4, 96(sp)",
        "fsd fa5, 104(sp)",
        "fsd fa6, 112(sp)",
        "fsd fa7, 120(sp)",
        "call {register}",
        "mv t1, a0",
        "ld a0, 0(sp)",
        "ld a1, 8(sp)",
        "ld a2, 16(sp)",
        "ld a3, 24(sp)",
        "ld a4, 32(sp)",
        "ld a5, 40(sp)",
        "ld a6, 48(sp)",
        "ld a7, 56(sp)",
        "fld fa0, 64(sp)",
        "fld fa1, 72(sp)",
        "fld fa2, 80(sp)",
        "fld fa3, 88(sp)",
        "fld fa4, 96(sp)",
        "fld fa5, 104(sp)",
        "fld fa6, 112(sp)",
        "fld fa7, 120(sp)",
        "ld ra, 136(sp)",
        "addi sp, sp, 144",
        ".cfi_def_cfa_offset 0",
        "ret",
        ".cfi_endproc",
        ".size rvbpf_ops_register_0_1, . - rvbpf_ops_register_0_1",
        ".previous",
        ".option pop",
        register = sym super::register_thread,
    );

    unsafe extern "C" {
        safe fn rvbpf_ops_register_0_1();
    }

    pub(crate) fn register_addr() -> u64 {
        rvbpf_ops_register_0_1 as *const () as u64
    }
}

#[cfg(not(all(target_arch = "riscv64", target_os = "linux")))]
mod asm {
    /// Nothing runs in a stub on other hosts; listings are the same everywhere.
    pub(crate) fn register_addr() -> u64 {
        0x1234_5678
    }
}
