//! Making a frame, taking it down, and what unwinders are told of it.
//!
//! ```text
//!   on the stack                          on the shadow stack
//!   fp -> caller's frame                  sp -> caller's frame, which the function sees
//!         RetAddr, ParentFp, …            fp -> end of the frame
//!   sp -> lowest address                        RetAddr, ParentFp, … in an entry
//! ```
//!
//! Either way `fp` points behind a frame record as psABI wants it, so a walk along frame pointers
//! passes through images of both kinds. The function keeps `sp` and `fp`, so the image finds its
//! frame again whatever happened meanwhile to the shadow stack.
//!
//! An exception that comes out of the function is sent to the image ([`symbols::Landing`]), which
//! counts the call out and takes its frame down as if the function had returned. Then it goes on
//! unwinding in its caller's name: `_Unwind_Resume` finds the caller's return address in `ra` and
//! the caller's stack pointer in `sp`, and nothing of the image. So no image is kept, an entry of
//! the shadow stack is given back, and a caller whose frame has the same stack pointer as the image
//! (on the shadow stack it has) is told from it.
//!
//! Neighbours: [`super`] generates the rest, [`crate::shadow`] has the entries. Source: psABI,
//! "Frame Pointer Convention"; Itanium C++ ABI, "Exception Handling", level I.

use rv64::Reg::{self, *};
use rv64::{Cond, Order, insn};
use symbols::{Cfa, Row, SavedFrom};

use super::{Gen, ImageSpec, tls_off};
use crate::flags::TrampFlags;
use crate::frame::FrameSlot;
use crate::guard;
use crate::shadow;

/// What an unwinder has to know from some place on.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Framed {
    /// No frame: not made yet, or taken down.
    No,
    /// There is room for one.
    Made,
    /// Return address and `fp` are in it.
    Linked,
    /// `s1` and `s2` too.
    Saved,
}

impl ImageSpec<'_> {
    pub(super) fn unwind_row(&self, off: u32, framed: Framed) -> Row {
        let (frame, on_shadow) = (self.frame(), self.flags().contains(TrampFlags::ORIG_STACK));
        let size = frame.size_bytes();
        let mut saved = Vec::new();
        let mut save = |reg: Reg, slot, nth: u32| {
            if let Some(at) = frame.off(slot) {
                saved.push((reg.num() as u8, (at + 8 * nth) as i32 - size as i32));
            }
        };
        if matches!(framed, Framed::Linked | Framed::Saved) {
            save(Ra, FrameSlot::RetAddr, 0);
            save(Fp, FrameSlot::ParentFp, 0);
        }
        if framed == Framed::Saved {
            save(S1, FrameSlot::SavedS1S2, 0);
            save(S2, FrameSlot::SavedS1S2, 1);
        }
        let is_made = framed != Framed::No && !on_shadow;
        let cfa = Cfa {
            reg: Sp.num() as u8,
            off: if is_made { size } else { 0 },
        };
        let from = match on_shadow {
            true => SavedFrom::Reg(Fp.num() as u8),
            false => SavedFrom::Cfa,
        };
        Row {
            off,
            cfa,
            saved,
            from,
        }
    }
}

impl Gen<'_> {
    /// Makes the frame, saves what the function was called with.
    pub(super) fn enter(&mut self) {
        if self.on_shadow() {
            self.enter_on_shadow();
        } else {
            let size = self.frame.size_bytes();
            self.e.addi(Sp, Sp, -i64::from(size));
            self.framed(Framed::Made);
            self.e.sd(Ra, Sp, self.off(FrameSlot::RetAddr));
            self.e.sd(Fp, Sp, self.off(FrameSlot::ParentFp));
            self.framed(Framed::Linked);
            self.e.addi(Fp, Sp, size.into());
            if self.call_orig() {
                self.count_in(T1);
                self.e.sd(T1, Sp, self.off(FrameSlot::Inflight));
            }
        }
        let base = self.base();
        if self.has(FrameSlot::StaticChain) {
            self.e.sd(T2, base, self.off(FrameSlot::StaticChain));
        }
        if self.has(FrameSlot::SavedS1S2) {
            self.e.sd(S1, base, self.off(FrameSlot::SavedS1S2));
            self.e.sd(S2, base, self.off(FrameSlot::SavedS1S2) + 8);
        }
        self.framed(Framed::Saved);
        self.save_args();
        if self.flags.contains(TrampFlags::IP_ARG) {
            self.e.ld_lit(T1, self.spec.func.get());
            self.e.sd(T1, base, self.off(FrameSlot::FuncIp));
        }
        let first = self.spec.first_session() as i32;
        for nth in 0..self.spec.sessions().count() as i32 {
            self.e.sd(Zero, base, self.ctx() - 8 * (nth + first));
        }
    }

    /// Takes an entry of the shadow stack, for a frame whose end is in `fp` from here on.
    ///
    /// The entry is ours before `sp` is written into it: see [`crate::shadow`] for what a signal
    /// handler may find in between.
    fn enter_on_shadow(&mut self) {
        self.count_in(T1);
        let (more, room) = (self.e.new_label(), self.e.new_label());
        self.e.ld_tls(T6, tls_off(guard::SHADOW_FREE_OFF));
        self.e.branch(Cond::Eq, T6, Zero, more);
        self.e.ld(T4, T6, shadow::ENTRY_NEXT_OFF);
        self.e.branch(Cond::Ne, T4, Zero, room);
        self.e.bind(more);
        // No stack yet, or only the last entry is left. Uncounted while outside of the image
        // would be wrong, so the count stays until `grow` is back; then the image starts anew.
        self.e.ld_lit(T3, self.spec.desc);
        self.e.ld_lit(T4, shadow::grow_addr());
        self.e.call_reg(T4, T4);
        self.count_out_from_literal();
        self.e.branch(Cond::Ne, T5, Zero, self.l.entry);
        self.e.jump_abs(self.spec.resume.get(), T1);
        self.e.bind(room);
        self.e.sd_tls(T4, tls_off(guard::SHADOW_FREE_OFF));
        self.e.sd(T1, T6, shadow::ENTRY_LINE_OFF);
        self.e.sd(Sp, T6, shadow::ENTRY_SP_OFF);
        let size = self.frame.size_bytes() as i32;
        self.e.sd(Ra, T6, size + self.off(FrameSlot::RetAddr));
        self.e.sd(Fp, T6, size + self.off(FrameSlot::ParentFp));
        self.e.addi(Fp, T6, size.into());
        self.framed(Framed::Linked);
    }

    /// `ra`, `fp`, `sp`, `s1` and `s2` as they were at entry. Changes `t4`, `t5`, `t6`.
    pub(super) fn drop_frame(&mut self) {
        let base = self.base();
        self.e.ld(Ra, base, self.off(FrameSlot::RetAddr));
        if self.has(FrameSlot::SavedS1S2) {
            self.e.ld(S1, base, self.off(FrameSlot::SavedS1S2));
            self.e.ld(S2, base, self.off(FrameSlot::SavedS1S2) + 8);
        }
        if self.on_shadow() {
            self.e.addi(T6, Fp, -i64::from(self.frame.size_bytes()));
            self.e.ld(Fp, Fp, self.off(FrameSlot::ParentFp));
            self.framed(Framed::No);
            self.give_entry_back();
        } else {
            self.e.ld(Fp, Sp, self.off(FrameSlot::ParentFp));
            self.e.addi(Sp, Sp, self.frame.size_bytes().into());
            self.framed(Framed::No);
        }
    }

    /// The entry at `t6` is free again, if it is this thread's. Nothing in it is needed any more.
    fn give_entry_back(&mut self) {
        let (mine, done) = (self.e.new_label(), self.e.new_label());
        self.e.ld(T4, T6, shadow::ENTRY_OWNER_OFF);
        self.e.branch(Cond::Eq, T4, Tp, mine);
        // A coroutine has taken the call to another thread: its owner will find the entry.
        self.e.addi(T6, T6, shadow::ENTRY_SP_OFF.into());
        self.e.li(T4, shadow::LEFT_ELSEWHERE as i64);
        self.e.insn(insn::amoswap_d(Zero, T4, T6, Order::Rl));
        self.e.jump(done);
        self.e.bind(mine);
        self.e.ld_tls(T4, tls_off(guard::SHADOW_FREE_OFF));
        self.e.sd(T4, T6, shadow::ENTRY_NEXT_OFF);
        self.e.sd(Zero, T6, shadow::ENTRY_SP_OFF);
        self.e.sd_tls(T6, tls_off(guard::SHADOW_FREE_OFF));
        self.e.bind(done);
    }

    /// Out of line: where an exception comes out of the function.
    pub(super) fn land(&mut self) {
        let Some(call) = self.call else { return };
        self.e.bind(call.landing);
        self.count_out();
        self.drop_frame();
        self.e.ld_lit(T1, symbols::resume_addr());
        self.e.jump_reg(T1);
        self.framed(Framed::Saved);
    }
}
