//! Shadow stacks: frames of images whose function must see the caller's stack pointer.
//!
//! When nobody can say how many arguments lie on the stack (a variadic or untyped function), an
//! image that wants to see the function return cannot have a frame of its own between the
//! caller's and the function's. Its frame lies on a per-thread shadow stack instead, and `sp` is
//! left alone.
//!
//! Each entry is [`ENTRY_BYTES`] long: the image's frame from its start on, and the caller's
//! `sp` in the last word, which tells whose entry it is. Calls return in reverse order as long
//! as nobody jumps: then the top entry has the right `sp`. After a `longjmp` dead entries lie
//! above, and with several stacks on one thread (coroutines, signal stacks) live ones may:
//! [`find`] sorts that out.
//!
//! Source of the idea: `kernel/trace/fgraph.c` and its per-task return stack.

#![expect(
    unsafe_code,
    reason = "stack memory from mmap that machine code writes"
)]

use std::ptr;
use std::sync::atomic::Ordering::Relaxed;

use crate::guard::{self, ThreadBlock};
use crate::slow::{Desc, Phase, count_missed};
use crate::table;

/// Size of an entry: the largest frame without stack arguments, and the word for `sp`.
pub(crate) const ENTRY_BYTES: usize = 576;
/// Where in an entry the caller's `sp` stands.
pub(crate) const ENTRY_SP_OFF: usize = ENTRY_BYTES - 8;
/// Address space of one shadow stack; memory is used as calls nest.
const STACK_BYTES: usize = 8 << 20;
/// How far below the current `sp` an entry of the same stack can be.
const SAME_STACK_BYTES: u64 = 8 << 20;

/// Called by an image that found no room: makes the thread's stack, or clears dead entries out
/// of a full one. Returns 1 when there is room now; 0 means that this call goes unhooked.
///
/// # Safety
/// 1. `desc` is the descriptor of the live image that this thread is in. 2. `sp` is its caller's.
pub(crate) unsafe extern "C" fn grow(desc: *const Desc, sp: u64) -> u64 {
    let block = guard::block();
    let next = block.shadow_next.load(Relaxed);
    let room = if next == 0 {
        make(block)
    } else {
        drop_dead(block, sp)
    };
    if room.is_none() {
        // SAFETY: 1. caller's contract.
        count_missed(unsafe { &*desc }, Phase::Entry);
    }
    u64::from(room.is_some())
}

fn make(block: &ThreadBlock) -> Option<()> {
    let fresh = block.guard.load(Relaxed) == 0;
    if fresh {
        table::register(block)?;
        block.guard.store(guard::idle_value(block.addr()), Relaxed);
    }
    let owner = table::shadow_of_this_thread()?;
    let mut base = owner.load(Relaxed);
    if base == 0 {
        // SAFETY: 1. a fresh anonymous mapping disturbs nothing.
        let mem = unsafe {
            libc::mmap(
                ptr::null_mut(),
                STACK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mem == libc::MAP_FAILED {
            return None;
        }
        base = mem as u64;
        owner.store(base, Relaxed);
    }
    block
        .shadow_last
        .store(base + (STACK_BYTES - ENTRY_BYTES) as u64, Relaxed);
    block.shadow_next.store(base, Relaxed);
    Some(())
}

/// The `sp` word of the entry at `at`.
///
/// # Safety
/// 1. `at` is an entry of this thread's shadow stack.
unsafe fn sp_word(at: u64) -> *mut u64 {
    (at + ENTRY_SP_OFF as u64) as *mut u64
}

/// Is an entry with the caller's `entry_sp` dead, seen from a frame at `sp`? Its frame has been
/// left when the stack is shorter now. Entries of other stacks are taken for alive.
fn is_dead(entry_sp: u64, sp: u64) -> bool {
    entry_sp == 0 || (entry_sp < sp && sp - entry_sp < SAME_STACK_BYTES)
}

/// Drops the dead entries at the top of a full stack. Those below a live one stay: a program may
/// be looking at the entries above them, so nothing may move.
fn drop_dead(block: &ThreadBlock, sp: u64) -> Option<()> {
    let base = table::shadow_of_this_thread()?.load(Relaxed);
    let next = block.shadow_next.load(Relaxed);
    let mut top = next;
    while top > base {
        // SAFETY: 1. `top` is above the base, so an entry lies below it.
        let word = unsafe { sp_word(top - ENTRY_BYTES as u64) };
        // SAFETY: 1. mapped, and only this thread writes it.
        if !is_dead(unsafe { word.read() }, sp) {
            break;
        }
        top -= ENTRY_BYTES as u64;
    }
    block.shadow_next.store(top, Relaxed);
    (top < next).then_some(())
}

/// Called by an image whose function returned with `sp`, when the top entry is not its own:
/// brings the right entry to the top.
///
/// # Safety
/// 1. Called from an image after its function has returned on this thread.
pub(crate) unsafe extern "C" fn find(sp: u64) {
    let block = guard::block();
    let next = block.shadow_next.load(Relaxed);
    let base = table::shadow_of_this_thread().map_or(0, |s| s.load(Relaxed));
    let entries = if base == 0 {
        0
    } else {
        (next - base) / ENTRY_BYTES as u64
    };
    let mut top = next;
    let mut only_dead_above = true;
    for i in (0..entries).rev() {
        let at = base + i * ENTRY_BYTES as u64;
        // SAFETY: 1. `at` is an entry below `next`.
        let word = unsafe { sp_word(at) };
        // SAFETY: 1. mapped, and only this thread writes it.
        let entry_sp = unsafe { word.read() };
        if entry_sp == sp {
            // What lies above and is dead goes; what may live stays, and the found entry is
            // copied over it.
            if top != at + ENTRY_BYTES as u64 {
                // SAFETY: 1. `top` is an entry's place within the stack: `next` or below.
                unsafe { ptr::copy(at as *const u8, top as *mut u8, ENTRY_BYTES) };
                // SAFETY: 1. mapped; the entry has moved.
                unsafe { word.write(0) };
                top += ENTRY_BYTES as u64;
            }
            block.shadow_next.store(top, Relaxed);
            return;
        }
        only_dead_above &= is_dead(entry_sp, sp);
        if only_dead_above {
            top = at;
        }
    }
    fatal()
}

/// A return address is lost for good: there is nowhere to return to.
fn fatal() -> ! {
    const WHY: &[u8] = b"rvbpf: a hooked function of unknown stack arguments returned on another \
thread than it was called on; its return address cannot be found\n";
    // SAFETY: 1. writes a static buffer.
    unsafe { libc::write(2, WHY.as_ptr().cast(), WHY.len()) };
    std::process::abort()
}

/// Unmaps the shadow stack of a thread that has ended.
pub(crate) fn unmap(base: u64) {
    if base != 0 {
        // SAFETY: 1. mapped by `make` with this size; its thread is gone.
        unsafe { libc::munmap(base as *mut libc::c_void, STACK_BYTES) };
    }
}

#[cfg(all(target_arch = "riscv64", target_os = "linux"))]
mod thunk {
    use std::arch::global_asm;

    // Both are called from images with the link in t4 and keep every register that the image
    // has not saved yet. They are left by `jr t4`.
    //
    // rvbpf_shadow_grow: t3 = descriptor; returns the answer of `grow` in t5.
    // rvbpf_shadow_find: after the function's return: a0, a1, fa0, fa1 are live.
    global_asm!(
        ".section .text.rvbpf_shadow_0_1,\"ax\",@progbits",
        ".option push",
        // Module-level assembly does not inherit the target's extensions.
        ".option arch, +d",
        ".hidden rvbpf_shadow_grow_0_1",
        ".globl rvbpf_shadow_grow_0_1",
        ".type rvbpf_shadow_grow_0_1, @function",
        "rvbpf_shadow_grow_0_1:",
        "addi sp, sp, -160",
        "sd ra, 152(sp)",
        "sd t4, 144(sp)",
        "sd t2, 136(sp)",
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
        "mv a0, t3",
        "addi a1, sp, 160",
        "call {grow}",
        "mv t5, a0",
        "ld ra, 152(sp)",
        "ld t4, 144(sp)",
        "ld t2, 136(sp)",
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
        "addi sp, sp, 160",
        "jr t4",
        ".size rvbpf_shadow_grow_0_1, . - rvbpf_shadow_grow_0_1",
        ".hidden rvbpf_shadow_find_0_1",
        ".globl rvbpf_shadow_find_0_1",
        ".type rvbpf_shadow_find_0_1, @function",
        "rvbpf_shadow_find_0_1:",
        "addi sp, sp, -48",
        "sd t4, 40(sp)",
        "sd a0, 0(sp)",
        "sd a1, 8(sp)",
        "fsd fa0, 16(sp)",
        "fsd fa1, 24(sp)",
        "addi a0, sp, 48",
        "call {find}",
        "ld t4, 40(sp)",
        "ld a0, 0(sp)",
        "ld a1, 8(sp)",
        "fld fa0, 16(sp)",
        "fld fa1, 24(sp)",
        "addi sp, sp, 48",
        "jr t4",
        ".size rvbpf_shadow_find_0_1, . - rvbpf_shadow_find_0_1",
        ".option pop",
        ".previous",
        grow = sym super::grow,
        find = sym super::find,
    );

    unsafe extern "C" {
        fn rvbpf_shadow_grow_0_1();
        fn rvbpf_shadow_find_0_1();
    }

    pub(crate) fn grow_addr() -> u64 {
        rvbpf_shadow_grow_0_1 as *const () as u64
    }

    pub(crate) fn find_addr() -> u64 {
        rvbpf_shadow_find_0_1 as *const () as u64
    }
}

#[cfg(not(all(target_arch = "riscv64", target_os = "linux")))]
mod thunk {
    pub(crate) fn grow_addr() -> u64 {
        super::grow as *const () as u64
    }

    pub(crate) fn find_addr() -> u64 {
        super::find as *const () as u64
    }
}

pub(crate) use thunk::{find_addr, grow_addr};
