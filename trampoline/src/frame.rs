//! The frame of an image, as data: codegen asks it for offsets, `Display` draws it.
//!
//! ```text
//!   fp ->  +----------------------+   stack pointer of the caller at entry (CFA)
//!          | RetAddr              |   fp - 8    as psABI frame records have it
//!          | ParentFp             |   fp - 16
//!          | Retval               |   ctx[nr_arg_slots]: return slots
//!   ctx -> | Args                 |   ctx[0]: argument slots
//!          | FuncMeta             |   ctx[-1]: slot count, session bits
//!          | FuncIp               |   ctx[-2]: address of the function
//!          | AttachCookie         |   ctx[-3]: what the program was attached with
//!          | Cookies              |   below: cookie of session program i
//!          | Inflight             |   the in-flight counter that this call incremented
//!          | StaticChain          |   t2 at entry
//!          | SavedS1S2            |   of the caller: s1 keeps fcsr and s2 errno (two phases)
//!          | FcsrErrno            |   fcsr in the low, errno in the high half (one phase)
//!   sp ->  | StackArgs            |   the function's own stack arguments, copied
//!          +----------------------+
//! ```
//!
//! Slots that nobody asked for do not exist. A frame of an [`TrampFlags::ORIG_STACK`] image has
//! the same form, but lies on the thread's shadow stack (`shadow`).
//!
//! [`TrampFlags::ORIG_STACK`]: crate::TrampFlags::ORIG_STACK
//!
//! Source: the frame of
//! `__arch_prepare_bpf_trampoline` in the kernel's `arch/riscv/net/bpf_jit_comp64.c`; psABI,
//! "Frame Pointer Convention".

use std::fmt;

/// A part of the frame.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum FrameSlot {
    /// Return address of the function's caller.
    RetAddr,
    /// Frame pointer of the function's caller.
    ParentFp,
    /// Return value.
    Retval,
    /// Arguments.
    Args,
    /// Slot count and session bits.
    FuncMeta,
    /// Address of the function.
    FuncIp,
    /// Cookie with which the program that runs was attached.
    AttachCookie,
    /// Session cookies.
    Cookies,
    /// Pointer to the in-flight counter.
    Inflight,
    /// `t2`, the static chain register.
    StaticChain,
    /// `s1` and `s2` of the caller.
    SavedS1S2,
    /// `fcsr` and `errno`.
    FcsrErrno,
    /// Copy of the stack arguments.
    StackArgs,
}

/// What a frame must hold.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct FrameSpec {
    /// Argument slots.
    pub arg_slots: usize,
    /// Return slots.
    pub ret_slots: usize,
    /// Stack argument slots to copy for the function.
    pub stack_slots: usize,
    /// Session programs.
    pub cookies: usize,
    /// Slots that exist or not.
    pub with: FrameWith,
}

bitflags::bitflags! {
    /// Optional single slots.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
    pub struct FrameWith: u8 {
        /// [`FrameSlot::FuncMeta`]
        const META = 1 << 0;
        /// [`FrameSlot::FuncIp`]
        const IP = 1 << 1;
        /// [`FrameSlot::Inflight`]
        const INFLIGHT = 1 << 2;
        /// [`FrameSlot::StaticChain`]
        const STATIC_CHAIN = 1 << 3;
        /// [`FrameSlot::FcsrErrno`]
        const FCSR_ERRNO = 1 << 4;
        /// [`FrameSlot::SavedS1S2`]
        const SAVED_S1_S2 = 1 << 5;
        /// [`FrameSlot::AttachCookie`]
        const ATTACH_COOKIE = 1 << 6;
    }
}

/// A laid-out frame: offsets in bytes from its lowest address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    slots: Vec<(FrameSlot, u32, u32)>,
    size_bytes: u32,
}

impl Frame {
    /// Lays out `spec`. The size is a multiple of 16, as psABI wants the stack pointer.
    pub fn new(spec: &FrameSpec) -> Frame {
        use FrameSlot::*;
        let one = |with| if spec.with.contains(with) { 8 } else { 0 };
        let words = |n: usize| 8 * n as u32;
        // A word before the context exists as soon as one further away does: their places are
        // fixed relative to the context.
        let cookies = words(spec.cookies);
        let attach_cookie = one(FrameWith::ATTACH_COOKIE);
        let ip = match cookies + attach_cookie {
            0 => one(FrameWith::IP),
            _ => 8,
        };
        let meta = if ip > 0 { 8 } else { one(FrameWith::META) };
        let top_down = [
            (RetAddr, 8),
            (ParentFp, 8),
            (Retval, words(spec.ret_slots)),
            (Args, words(spec.arg_slots)),
            (FuncMeta, meta),
            (FuncIp, ip),
            (AttachCookie, attach_cookie),
            (Cookies, cookies),
            (Inflight, one(FrameWith::INFLIGHT)),
            (StaticChain, one(FrameWith::STATIC_CHAIN)),
            (SavedS1S2, 2 * one(FrameWith::SAVED_S1_S2)),
            (FcsrErrno, one(FrameWith::FCSR_ERRNO)),
            (StackArgs, words(spec.stack_slots)),
        ];
        let used: u32 = top_down.iter().map(|s| s.1).sum();
        let size_bytes = used.next_multiple_of(16);
        // Padding goes between the copied stack arguments, which must start at `sp`, and the
        // rest.
        let mut top = size_bytes;
        let mut slots = Vec::new();
        for (slot, len) in top_down {
            let off = if slot == StackArgs { 0 } else { top - len };
            top = off;
            // A context without arguments still has its place.
            if len > 0 || slot == Args {
                slots.push((slot, off, len));
            }
        }
        Frame { slots, size_bytes }
    }

    /// Offset of `slot` in bytes, `None` when this frame has no such slot.
    pub fn off(&self, slot: FrameSlot) -> Option<u32> {
        self.slots.iter().find(|s| s.0 == slot).map(|s| s.1)
    }

    /// Size in bytes, a multiple of 16.
    pub fn size_bytes(&self) -> u32 {
        self.size_bytes
    }

    /// Offset of the context (`ctx[0]`).
    pub fn ctx(&self) -> u32 {
        self.off(FrameSlot::Args).unwrap_or_default()
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "fp -> sp+{}", self.size_bytes)?;
        for (slot, off, len) in &self.slots {
            let name = format!("{slot:?}");
            let ctx = if *slot == FrameSlot::Args {
                "  <- ctx"
            } else {
                ""
            };
            writeln!(f, "  {name:<12} sp+{off:<5} {len:>4} bytes{ctx}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawing(indented: &str) -> String {
        let lines = indented.trim_end().lines().skip(1);
        let lines = lines.map(|l| l.strip_prefix("        ").unwrap_or(l));
        lines.flat_map(|l| [l, "\n"]).collect()
    }

    #[test]
    fn fentry_of_two_arguments() {
        let spec = FrameSpec {
            arg_slots: 2,
            with: FrameWith::FCSR_ERRNO,
            ..Default::default()
        };
        assert_eq!(
            Frame::new(&spec).to_string(),
            drawing(
                "
        fp -> sp+48
          RetAddr      sp+40       8 bytes
          ParentFp     sp+32       8 bytes
          Args         sp+16      16 bytes  <- ctx
          FcsrErrno    sp+8        8 bytes
        "
            )
        );
    }

    #[test]
    fn everything() {
        let spec = FrameSpec {
            arg_slots: 12,
            ret_slots: 2,
            stack_slots: 4,
            cookies: 2,
            with: FrameWith::all(),
        };
        assert_eq!(
            Frame::new(&spec).to_string(),
            drawing(
                "
        fp -> sp+240
          RetAddr      sp+232      8 bytes
          ParentFp     sp+224      8 bytes
          Retval       sp+208     16 bytes
          Args         sp+112     96 bytes  <- ctx
          FuncMeta     sp+104      8 bytes
          FuncIp       sp+96       8 bytes
          AttachCookie sp+88       8 bytes
          Cookies      sp+72      16 bytes
          Inflight     sp+64       8 bytes
          StaticChain  sp+56       8 bytes
          SavedS1S2    sp+40      16 bytes
          FcsrErrno    sp+32       8 bytes
          StackArgs    sp+0       32 bytes
        "
            )
        );
    }

    #[test]
    fn a_cookie_brings_the_words_between_it_and_the_context() {
        let frame = Frame::new(&FrameSpec {
            arg_slots: 1,
            cookies: 1,
            ..Default::default()
        });
        let ctx = frame.ctx();
        assert_eq!(frame.off(FrameSlot::FuncMeta), Some(ctx - 8));
        assert_eq!(frame.off(FrameSlot::FuncIp), Some(ctx - 16));
        assert_eq!(frame.off(FrameSlot::Cookies), Some(ctx - 24));
    }

    #[test]
    fn attach_cookies_stand_between_the_address_and_the_sessions() {
        let frame = Frame::new(&FrameSpec {
            arg_slots: 1,
            cookies: 2,
            with: FrameWith::ATTACH_COOKIE,
            ..Default::default()
        });
        let ctx = frame.ctx();
        assert_eq!(frame.off(FrameSlot::AttachCookie), Some(ctx - 24));
        assert_eq!(frame.off(FrameSlot::Cookies), Some(ctx - 40));
    }
}
