//! What can go wrong when a trampoline is made or changed.

use text::RxAddr;

use crate::prologue::Refusal;

/// Errors of this crate. After each of them everything is as it was before the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrampError {
    /// The site has as many programs as an image can call. Kernel: `-E2BIG`.
    #[error("{func}: {limit} programs are attached to this function, and no more can be")]
    TooManyProgs {
        /// The function.
        func: RxAddr,
        /// `BPF_MAX_TRAMP_LINKS`.
        limit: usize,
    },
    /// Two programs on one function describe it by different models. Kernel: `-EINVAL`.
    #[error("{func}: is attached already with another signature; use the same one")]
    ModelMismatch {
        /// The function.
        func: RxAddr,
    },
    /// The link is not attached (any more). Kernel: `-ENOENT`.
    #[error("this hook is detached already")]
    NotAttached,
    /// A handler that runs inside an attach or detach asked for another. Kernel: `-EBUSY`.
    #[error("hooks are being changed by this very thread; try again when that call is over")]
    Reentered,
    /// This library got no thread-local memory at one distance from each thread's pointer, or cannot
    /// be kept loaded. Kernel: `-ENOMEM`.
    #[error(
        "the library that holds rvbpf cannot have {bytes} bytes of static TLS: {reason}; open it \
         earlier, preload it, or raise glibc.rtld.optional_static_tls in GLIBC_TUNABLES",
        bytes = crate::guard::BLOCK_BYTES
    )]
    NoThreadBlock {
        /// What is wrong.
        reason: Box<str>,
    },
    /// The image cannot be laid out. Kernel: `-EFBIG`.
    #[error("the image for {func} cannot be laid out: {source}")]
    Layout {
        /// The function.
        func: RxAddr,
        /// What the assembler says.
        source: rv64::AsmError,
    },
    /// The function has too many arguments on the stack, or too many session programs. Kernel:
    /// `-EFBIG`.
    #[error("{func}: a frame of {size_bytes} bytes is too large; there are too many arguments")]
    FrameTooLarge {
        /// The function.
        func: RxAddr,
        /// The size that it would have.
        size_bytes: u32,
    },
    /// The function can tell whether it returns straight to its caller, and must: it can be hooked
    /// at its entry, but not at its return. Kernel: `-EINVAL`, of functions that return twice.
    #[error(
        "{func}: {name} cannot be hooked at its return (on_exit, on_session): it {}; hook its entry",
        .why.reason()
    )]
    ReturnsDirectly {
        /// The function.
        func: RxAddr,
        /// Its name.
        name: Box<str>,
        /// Why.
        why: text::DirectReturn,
    },
    /// No jump fits over the first instructions of the function, which has no pad. Kernel:
    /// `-EINVAL`, of optimised probes.
    #[error(
        "{func}: its first instructions cannot make room for a jump: {source}; allow a trap, or \
         compile it with -fpatchable-function-entry=5"
    )]
    CannotMove {
        /// The function.
        func: RxAddr,
        /// Which instruction, and why.
        source: Refusal,
    },
    /// The same where a trap is allowed: it does not fit either. Kernel: `-EINVAL`, of probes.
    #[error(
        "{func}: its first instructions make room neither for a jump nor for a trap: {source}; \
         compile it with -fpatchable-function-entry=5"
    )]
    CannotTrap {
        /// The function.
        func: RxAddr,
        /// Which instruction, and why.
        source: Refusal,
    },
    /// The function has a pad, but is not called as the psABI says: a hook would overwrite what it is
    /// passed. Kernel: `-EOPNOTSUPP`.
    #[error("{func}: cannot be hooked: {source}")]
    CustomConvention {
        /// The function.
        func: RxAddr,
        /// Which instruction shows it.
        source: Refusal,
    },
    /// The function has no pad, and nothing says where it ends. Kernel: `-ENOENT`.
    #[error(
        "{func}: neither a symbol nor unwind tables say where this function ends; compile it \
         with -fasynchronous-unwind-tables or with -fpatchable-function-entry=5"
    )]
    UnknownExtent {
        /// The function.
        func: RxAddr,
    },
    /// What is there only leads to the function: a stub of the dynamic linker. Kernel: `-EINVAL`.
    #[error("{func} is a stub that leads to {to}; hook that one")]
    LeadsElsewhere {
        /// The stub.
        func: RxAddr,
        /// The function.
        to: RxAddr,
    },
    /// What is there is a stub, and the dynamic linker has not bound it yet. Kernel: `-EINVAL`.
    #[error("{func} is a stub that is not bound yet; hook the function that it leads to")]
    UnboundStub {
        /// The stub.
        func: RxAddr,
    },
    /// No pack can be had within 2 GiB of the function. Kernel: `-ERANGE`.
    #[error(
        "{func}: there is no room for an image within 2 GiB of this function: unmap something \
         there, or hook it before all of that is taken"
    )]
    OutOfReach {
        /// The function.
        func: RxAddr,
    },
    /// Images, or programs out of arrays, are still in use after the time given. Kernel: `-EBUSY`.
    #[error("{retired} retired images or programs are still in use; they are freed later")]
    StillInUse {
        /// How many.
        retired: usize,
    },
    /// All cells for members of struct_ops tables are taken. Kernel: `-ENOSPC`.
    #[error("there are cells for {max} members of tables, and not enough of them are free")]
    TooManyMembers {
        /// How many the process has.
        max: usize,
    },
    /// A dispatcher is told where to go in a register, and the function's arguments take all.
    /// Kernel: `-EINVAL`.
    #[error("the arguments leave no integer register free to say where a dispatcher goes")]
    NoFreeRegister,
    /// A dispatcher knows so many functions by name. Kernel: `-E2BIG`.
    #[error("a dispatcher compares with {max} functions at most")]
    TooManyTargets {
        /// `BPF_DISPATCHER_MAX`.
        max: usize,
    },
    /// The process cannot run images.
    #[error("trampolines run on riscv64 Linux only; this process is something else")]
    UnsupportedHost,
    /// Text could not be read or changed.
    #[error(transparent)]
    Text(#[from] text::TextError),
    /// No room for the image.
    #[error(transparent)]
    Pack(#[from] pack_alloc::PackError),
}
