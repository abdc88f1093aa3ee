//! What can go wrong when code memory is asked for.

use text::{RxAddr, TextError};

/// An error of this crate. The allocator is as it was before the call, unless the variant says
/// otherwise.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A size of zero. Kernel: `-EINVAL`.
    #[error("zero bytes of code memory were asked for")]
    ZeroSize,
    /// More than one allocation may have. Kernel: `-E2BIG`.
    #[error("{size_bytes} bytes of code memory were asked for, at most {max_bytes} can be had")]
    TooLarge {
        /// The size asked for.
        size_bytes: usize,
        /// The largest size.
        max_bytes: usize,
    },
    /// An alignment that is no power of two, or larger than a pack. Kernel: `-EINVAL`.
    #[error("an alignment of {align_bytes} bytes is no power of two up to {max_bytes}")]
    BadAlign {
        /// The alignment asked for.
        align_bytes: usize,
        /// The largest alignment.
        max_bytes: usize,
    },
    /// A new pack is needed, but the limit is reached. Kernel: `-ENOSPC`.
    #[error("the limit of {limit} packs is reached: allow more, or free code that is not needed")]
    LimitReached {
        /// The limit ([`Config::max_packs`](crate::Config::max_packs)).
        limit: usize,
    },
    /// There is no room, neither in a pack nor in the address space, that lies wholly in reach.
    /// Kernel: `-ERANGE`.
    #[error(
        "no room for code within {reach_bytes} bytes of {of}: unmap something there, or ask before \
         all of it is taken"
    )]
    OutOfReach {
        /// The text to be near to.
        of: RxAddr,
        /// How near.
        reach_bytes: u64,
    },
    /// There is no ordinary memory for the buffer to write into. Kernel: `-ENOMEM`.
    #[error("no memory for a buffer of {size_bytes} bytes")]
    NoMemory {
        /// The size asked for.
        size_bytes: usize,
    },
    /// The text could not be mapped or changed.
    #[error(transparent)]
    Text(#[from] TextError),
}
