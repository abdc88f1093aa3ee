//! What an image is asked to do. Source: `BPF_TRAMP_F_*` in the kernel's `include/linux/bpf.h`;
//! names, values and meaning are the kernel's.

use bitflags::bitflags;

bitflags! {
    /// Flags of one trampoline image.
    ///
    /// `trampoline` derives them from the set of programs; [`TrampFlags::check`] says which
    /// combinations make sense.
    #[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
    pub struct TrampFlags: u32 {
        /// Restore the argument registers and go on into the function: fentry only.
        const RESTORE_REGS = 1 << 0;
        /// The image itself calls the function, because somebody wants to see it return.
        const CALL_ORIG = 1 << 1;
        /// The image replaces the function: it returns to the function's caller.
        const SKIP_FRAME = 1 << 2;
        /// Some program asked for the address of the function: it stands at `ctx[-2]`.
        const IP_ARG = 1 << 3;
        /// The value of the fentry program is the function's return value (struct_ops).
        const RET_FENTRY_RET = 1 << 4;
        /// The function must see the caller's stack pointer, because how many arguments lie on
        /// the stack is not known.
        const ORIG_STACK = 1 << 5;
        /// The site is shared with another user of instruction-pointer changes.
        const SHARE_IPMODIFY = 1 << 6;
        /// The tail-call counter travels through the image.
        const TAIL_CALL_CTX = 1 << 7;
        /// The image is called through a pointer (struct_ops), not from a site.
        const INDIRECT = 1 << 8;
    }
}

impl TrampFlags {
    /// The flags' own rules: `RESTORE_REGS` and `CALL_ORIG` exclude each other (the kernel's
    /// `arch_prepare_bpf_trampoline` says so too), `ORIG_STACK` needs `CALL_ORIG`.
    pub fn check(self) -> bool {
        !self.contains(Self::RESTORE_REGS | Self::CALL_ORIG)
            && (!self.contains(Self::ORIG_STACK) || self.contains(Self::CALL_ORIG))
    }
}
