//! What can go wrong with tables.

use trampoline::TrampError;
use trampoline::model::ModelError;

/// Errors of tables. After each of them everything is as it was before the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpsError {
    /// The type has no function of this name. Kernel: `-EINVAL`.
    #[error("{table} has no member function {member}")]
    NoSuchMember {
        /// The type.
        table: &'static str,
        /// What was asked for.
        member: Box<str>,
    },
    /// The function's arguments or its result are others than the member's. Kernel: `-EINVAL`.
    #[error("{table}::{member} has other arguments or another result than the function for it")]
    WrongModel {
        /// The type.
        table: &'static str,
        /// The member.
        member: &'static str,
    },
    /// A member that the type has no default for, and that must be there. Kernel: `-EINVAL`.
    #[error("{table}::{member} is missing: it has no default")]
    Missing {
        /// The type.
        table: &'static str,
        /// The member.
        member: &'static str,
    },
    /// The program asks for what only a hook has: the address of a hooked function, a cookie of an
    /// attachment, the return value of a function. Kernel: `-EINVAL`, for the attach type.
    #[error(
        "the program for {table}::{member} asks for a hooked function's address, cookie or return \
         value: it is one for hooks"
    )]
    ProgramKind {
        /// The type.
        table: &'static str,
        /// The member.
        member: &'static str,
    },
    /// A member's signature has no model. Kernel: `-EINVAL`.
    #[error("{table}::{member} cannot be a member: {source}")]
    Model {
        /// The type.
        table: &'static str,
        /// The member.
        member: &'static str,
        /// Why.
        source: ModelError,
    },
    /// The table serves a link. Kernel: `-EEXIST`.
    #[error("this table of {table} is registered already")]
    AlreadyRegistered {
        /// The type.
        table: &'static str,
    },
    /// A link is updated by a table of another type. Kernel: `-EINVAL`.
    #[error("a link of {link} cannot be updated by a table of {table}")]
    OtherType {
        /// The link's type.
        link: &'static str,
        /// The table's.
        table: &'static str,
    },
    /// The link has been unregistered. Kernel: `-ENOENT`.
    #[error("this link of {table} is unregistered already")]
    Unregistered {
        /// The type.
        table: &'static str,
    },
    /// A thread is still in a member, or has the table pinned. Nothing is lost by waiting again.
    /// Kernel: `-EBUSY`.
    #[error("a thread is still inside the table of {table}")]
    StillInside {
        /// The type.
        table: &'static str,
        /// The thread that was in the way last, where it is known.
        tid: Option<i32>,
    },
    /// The thread that waits is itself in a member, or has the table pinned. Kernel: `-EDEADLK`.
    #[error("the thread that waits is itself inside the table of {table}")]
    Myself {
        /// The type.
        table: &'static str,
    },
    /// The code cannot be made.
    #[error(transparent)]
    Tramp(#[from] TrampError),
}
