//! What can go wrong when text is read or changed.
//!
//! Key type: [`TextError`]. On every error the text is as it was before the call, unless the
//! variant says otherwise. Neighbours: everything in this crate. Source of the errno names:
//! kernel `arch/riscv/kernel/patch.c`, `kernel/bpf/core.c`, `mmap(2)`.

use std::path::Path;

use crate::addr::{RxAddr, RxRange};

/// An error of reading or changing executable memory.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A length is zero, or too large to map. Kernel: `-EINVAL`.
    #[error("length of {len_bytes} bytes cannot be mapped")]
    Length {
        /// The length asked for.
        len_bytes: usize,
    },
    /// The source of a copy is not as long as its destination. Kernel: `-EINVAL`.
    #[error("copy to {dst}: the destination has {} bytes, the source {src_bytes}", dst.len_bytes)]
    CopyLength {
        /// Where the copy should have gone.
        dst: RxRange,
        /// The length of the source.
        src_bytes: usize,
    },
    /// An address is not a multiple of what it must be. Kernel: `-EINVAL`.
    #[error("{addr} is not aligned to {align_bytes} bytes")]
    Misaligned {
        /// The address.
        addr: RxAddr,
        /// The alignment it must have.
        align_bytes: u64,
    },
    /// Nothing is mapped there. Kernel: `-EFAULT`.
    #[error("nothing is mapped at {addr}")]
    Unmapped {
        /// The address.
        addr: RxAddr,
    },
    /// What is mapped there cannot be executed. Kernel: `-EFAULT`.
    #[error("memory at {addr} is not executable")]
    NotExecutable {
        /// The address.
        addr: RxAddr,
    },
    /// What is mapped there is executable, but writable or shared too, so somebody else may be
    /// writing it. Kernel: `-EBUSY`.
    #[error("text at {addr} is mapped writable or shared: another owner may be writing it")]
    WritableText {
        /// The address.
        addr: RxAddr,
    },
    /// The range is not inside one live [`CodeMap`](crate::CodeMap). Kernel: `-EFAULT`.
    #[error("{range} is not inside one code map")]
    NotInCodeMap {
        /// The range.
        range: RxRange,
    },
    /// A batch names the same word, or overlapping ranges, twice. Kernel: `-EINVAL`.
    #[error("{site} is named twice in one batch")]
    Duplicate {
        /// The address named twice.
        site: RxAddr,
    },
    /// The text is not what the caller expects it to be; nothing was stored. Kernel: `-EFAULT`.
    #[error("text at {site} is {found:#010x}, expected {expected:#010x}")]
    Mismatch {
        /// The word.
        site: RxAddr,
        /// What the caller said is there.
        expected: u32,
        /// What is there.
        found: u32,
    },
    /// Another thread is arming or restoring this site just now. Kernel: `-EBUSY`.
    #[error("{site} is being changed by another thread")]
    Busy {
        /// The site.
        site: RxAddr,
    },
    /// A jump at `site`, an `auipc` pair or a `jal`, does not reach `target`. Kernel: `-ERANGE`.
    #[error("{target} is out of reach of a jump at {site}")]
    Reach {
        /// Where the jump stands.
        site: RxAddr,
        /// What it should reach.
        target: RxAddr,
    },
    /// The site's `auipc` does not reach the new target, so one store cannot switch it: switch
    /// it to a slot near the old target that jumps on. Kernel: `-ERANGE`.
    #[error(
        "{site}: the armed auipc reaches {reaches}, not {target}; go through a slot in its window"
    )]
    RetargetWindow {
        /// Where the pair stands.
        site: RxAddr,
        /// The new target.
        target: RxAddr,
        /// What the same `auipc` can reach.
        reaches: RxRange,
    },
    /// The kernel refused to make the harts' instruction fetches coherent; what was stored has
    /// been taken back. Kernel: the errno of `riscv_flush_icache`.
    #[error("the kernel refused to flush the instruction cache (errno {errno})")]
    Flush {
        /// Its errno.
        errno: i32,
    },
    /// A mapping call failed. Kernel: the errno of the call.
    #[error("{call} of {len_bytes} bytes at {addr} failed (errno {errno})")]
    Map {
        /// Which call.
        call: &'static str,
        /// The address asked for (0 when the kernel was to choose).
        addr: RxAddr,
        /// The length asked for.
        len_bytes: usize,
        /// Its errno.
        errno: i32,
    },
    /// Something is mapped where the code map was to be placed. Kernel: `-EEXIST`.
    #[error("{range} is not free")]
    Occupied {
        /// The range asked for.
        range: RxRange,
    },
    /// The pool of huge pages cannot back the map. Kernel: `-ENOMEM`.
    #[error("no huge pages for {len_bytes} bytes (errno {errno})")]
    NoHugePages {
        /// The length asked for.
        len_bytes: usize,
        /// The errno of `memfd_create` or `mmap`.
        errno: i32,
    },
    /// Live text cannot be changed on this host: no riscv64, or an emulator that does not follow
    /// the change and whose own step does not help either. Kernel: `-EOPNOTSUPP`.
    #[error("live text cannot be changed on this host: {reason}")]
    UnsupportedHost {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// This process is a fork that could not get its own copy of the code: a change here would be
    /// seen by the parent. Kernel: `-EPERM`.
    #[error("this forked process shares its code with its parent: {reason}")]
    SharedWithParent {
        /// Why it has no copy of its own.
        reason: &'static str,
    },
    /// No entry pad belongs to this function. Kernel: `-ENOENT`.
    #[error(
        "{func} has no entry pad (found {}): compile it with -fpatchable-function-entry=5, and \
         pass the function itself, not a stub that leads to it",
        Hex(found)
    )]
    NotAPad {
        /// The function.
        func: RxAddr,
        /// Its first bytes.
        found: [u8; 8],
    },
    /// The function has a pad, but somebody else has put something in it. Kernel: `-EBUSY`.
    #[error(
        "the entry pad at {site} is taken (found {}), by a debugger's breakpoint or another \
         runtime: take that away first, or hook through that runtime",
        Hex(found)
    )]
    PadTaken {
        /// Where the pad starts.
        site: RxAddr,
        /// Its first bytes.
        found: [u8; 8],
    },
    /// The pad is too short for an aligned pair of words. Kernel: `-EINVAL`.
    #[error(
        "the entry pad at {site} has {found_bytes} bytes, {needed_bytes} are needed: compile \
         with -fpatchable-function-entry=5 (or =2 without compressed instructions)"
    )]
    PadTooShort {
        /// Where the pad starts.
        site: RxAddr,
        /// Its length.
        found_bytes: usize,
        /// The length that a pad at this address needs.
        needed_bytes: usize,
    },
    /// The function follows a variant calling convention (vector arguments). Kernel: `-ENOTSUPP`.
    #[error("function `{symbol}` uses a variant calling convention (STO_RISCV_VARIANT_CC)")]
    VariantCc {
        /// Its name.
        symbol: Box<str>,
    },
    /// The address lies inside a function: it is not where one starts. Kernel: `-EINVAL`.
    #[error(
        "no function starts at {addr}: it is {} bytes inside {}; pass the function's first \
         instruction",
        addr.get() - func.get(),
        Named(name.as_deref(), *func)
    )]
    NotAFunction {
        /// The address.
        addr: RxAddr,
        /// Where the function around it starts.
        func: RxAddr,
        /// The name of that function, if it has one.
        name: Option<Box<str>>,
    },
    /// The code at the address is never called: it is jumped to from the rest of a function, or
    /// signal handlers return to it. Kernel: `-EINVAL`.
    #[error(
        "{} is no function but a part of one, which is never called: pass the function itself",
        Named(name.as_deref(), *addr)
    )]
    FunctionPart {
        /// The address.
        addr: RxAddr,
        /// The name of the part, if it has one.
        name: Option<Box<str>>,
    },
    /// The address lies in an executed segment, but nothing says that there is code. Kernel:
    /// `-EINVAL`.
    #[error(
        "nothing says that there is code at {addr} in {}: no unwind entry and no symbol covers it, \
         so it is data between functions, or assembly whose symbols were stripped",
        object.display()
    )]
    DataInText {
        /// The address.
        addr: RxAddr,
        /// The file of the object.
        object: Box<Path>,
    },
    /// The address is a stub that leads to a function which no loaded object defines. Kernel:
    /// `-ENOENT`.
    #[error(
        "the stub at {addr} leads to {symbol}, which no loaded object defines: load the library \
         that does first"
    )]
    UnresolvedStub {
        /// The stub.
        addr: RxAddr,
        /// The function's name.
        symbol: Box<str>,
    },
    /// No loaded object is called that. Kernel: `-ENOENT`.
    #[error(
        "no loaded object is called `{object}` (loaded are {}): give the name of its file, such \
         as `libz.so.1`, and load it before",
        loaded.join(", ")
    )]
    ObjectNotLoaded {
        /// The name that was given.
        object: Box<str>,
        /// The names of the files of all objects.
        loaded: Box<[Box<str>]>,
    },
    /// Nothing has that name. Kernel: `-ENOENT`.
    #[error(
        "{} `{symbol}`{}: functions that are neither exported nor in the symbol table of a file \
         have no names, and can be given by their addresses",
        NoSymbolIn(object.as_deref()),
        DidYouMean(nearest.as_deref())
    )]
    UnknownSymbol {
        /// The name.
        symbol: Box<str>,
        /// What was given as the object.
        object: Option<Box<str>>,
        /// The most similar name of a function, if one is similar.
        nearest: Option<Box<str>>,
    },
    /// What has the name is no function. Kernel: `-EINVAL`.
    #[error("`{symbol}` of {object} is data, not a function")]
    SymbolIsData {
        /// The name.
        symbol: Box<str>,
        /// The file of the object that defines it.
        object: Box<str>,
    },
    /// The object uses a function of that name but does not define it. Kernel: `-ENOENT`.
    #[error(
        "{object} calls `{symbol}` but does not define it: name the object that does, or none, to \
         look in all of them"
    )]
    SymbolUndefined {
        /// The name.
        symbol: Box<str>,
        /// The file of the object.
        object: Box<str>,
    },
    /// Several functions of the object have that name, each known to its own source file only.
    /// Kernel: `-EADDRNOTAVAIL`.
    #[error("{object} has several functions `{symbol}`: give the address of the one that is meant")]
    AmbiguousSymbol {
        /// The name.
        symbol: Box<str>,
        /// The file of the object.
        object: Box<str>,
    },
    /// The name is that of a function with several implementations, and nothing tells which one
    /// was chosen. Kernel: `-ENOENT`.
    #[error(
        "`{symbol}` of {object} has several implementations, and nothing tells which one this \
         machine uses: give the address of the one that is meant"
    )]
    UnknownChoice {
        /// The name.
        symbol: Box<str>,
        /// The file of the object.
        object: Box<str>,
    },
    /// The file of the object that holds the address cannot be read, or is not the one that was
    /// loaded. Kernel: the errno of `open`, or `-ESTALE`.
    #[error("cannot read the object {} (errno {errno}): {reason}", object.display())]
    ObjectFile {
        /// Its path.
        object: Box<Path>,
        /// What the system said (0 when it is not the system that refused).
        errno: i32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Somebody else has put a hook, or a breakpoint, where a detour was to begin, or keeps one in
    /// what it would cover; or it is another detour, or an armed pad. Kernel: `-EBUSY`.
    #[error(
        "the code at {site} is hooked already (found {}), by a debugger's breakpoint or another \
         runtime: take that away first, or hook through that runtime",
        Hex(found)
    )]
    HookedByOthers {
        /// Where.
        site: RxAddr,
        /// The bytes there.
        found: [u8; 8],
    },
    /// The code in memory is not what the object's file has, so somebody else has changed it:
    /// another library's hook, a debugger's breakpoint, a probe of the kernel. Kernel: `-EBUSY`.
    #[error(
        "the code at {at} is hooked by others: at +{off_bytes} there is {}, where {} has {}; take \
         that hook or breakpoint away first",
        Hex(found),
        object.display(),
        Hex(in_file)
    )]
    ChangedByOthers {
        /// The code.
        at: RxAddr,
        /// Where the first difference is, in bytes from there; even.
        off_bytes: usize,
        /// The file of the object.
        object: Box<Path>,
        /// The bytes that the file has there, as far as they were looked at; then zeros.
        in_file: [u8; 8],
        /// The bytes in memory.
        found: [u8; 8],
    },
    /// The page that would be replaced has a breakpoint that is not in its file: a probe of the
    /// kernel (uprobe), which is known by file and offset, and would kill the process on a page that
    /// is not the file's. Kernel: `-EBUSY`.
    #[error(
        "there is a breakpoint of others at {at}, on the page of the code to be changed (a uprobe \
         of perf, bpftrace or systemtap?); it would be lost and kill the process: take it away first"
    )]
    BreakpointOnPage {
        /// The breakpoint.
        at: RxAddr,
    },
    /// What a detour says that it covers does not fit the code: not whole instructions, or fewer
    /// bytes than its jump has. Kernel: `-EINVAL`.
    #[error(
        "a detour at {site} covers {covered_bytes} bytes: its jump needs {jump_bytes}, and          instructions end after {whole_bytes}"
    )]
    NotWholeInsns {
        /// Where the detour begins.
        site: RxAddr,
        /// What it says that it covers.
        covered_bytes: u8,
        /// The length of its jump.
        jump_bytes: u8,
        /// The first end of an instruction at or after `covered_bytes`, as the code is now.
        whole_bytes: u8,
    },
    /// A detour says that a copy stands for the instruction at an offset where none begins. Kernel:
    /// `-EILSEQ`.
    #[error("in the text that the detour at {site} covers no instruction begins at +{off_bytes}")]
    NotAnInsn {
        /// Where the detour begins.
        site: RxAddr,
        /// The offset.
        off_bytes: u8,
    },
    /// A far jump needs a register from x1 to x31. Kernel: `-EINVAL`.
    #[error("a far detour at {site} cannot go through x{reg}")]
    Scratch {
        /// Where the detour begins.
        site: RxAddr,
        /// What was to be the register.
        reg: u8,
    },
    /// A thread blocks SIGTRAP, so the kernel would kill the process if it came by a site while
    /// that is a trap; and the change needs a trap, or some thread could not be proved outside of
    /// the covered bytes while calls waited at the entry. Kernel: `-EBUSY`.
    #[error(
        "thread {tid} blocks SIGTRAP: a trap would kill it, and the change could not be made \
         without one"
    )]
    SigtrapBlocked {
        /// The thread.
        tid: i32,
    },
    /// The handler of SIGTRAP could not be installed. Kernel: the errno of `rt_sigaction`.
    #[error("the handler of SIGTRAP could not be installed (errno {errno})")]
    TrapHandler {
        /// Its errno.
        errno: i32,
    },
    /// The kernel does not show what is mapped. Kernel: the errno of `open` or `read`.
    #[error("what is mapped cannot be read (errno {errno}): {}", missing(*errno))]
    MapsUnseen {
        /// Its errno; `-ESRCH` if there was nothing to read.
        errno: i32,
    },
    /// The kernel does not show the threads of this process, so none can be proved to be outside of
    /// the text to be changed. Kernel: the errno of the call.
    #[error("the threads of this process cannot be listed (errno {errno}): {}", missing(*errno))]
    ThreadsUnseen {
        /// Its errno.
        errno: i32,
    },
    /// The kernel does not show where a thread is, and the thread, which was asked by a signal, has
    /// not answered. Kernel: the errno of the call.
    #[error("thread {tid} cannot be seen and does not answer (errno {errno}): {}", missing(*errno))]
    ThreadUnseen {
        /// The thread.
        tid: i32,
        /// Its errno.
        errno: i32,
    },
    /// A thread stays where it must not be, longer than the deadline. Kernel: `-EBUSY`.
    #[error("thread {tid} stays inside the text to be changed")]
    Stuck {
        /// The thread.
        tid: i32,
    },
}

/// What is missing when `/proc` does not answer with this errno, for messages.
pub(crate) fn missing(errno: i32) -> &'static str {
    match errno {
        libc::ENOENT | libc::ESRCH | libc::ENOTDIR => {
            "there is no /proc here that shows this process; mount the one of its PID namespace"
        }
        libc::EACCES | libc::EPERM => {
            "the process may not read its own /proc, since it has changed its user, has made itself \
             not dumpable, or is filtered; make it dumpable (PR_SET_DUMPABLE), or let its threads \
             take signals"
        }
        libc::EMFILE | libc::ENFILE => {
            "no file descriptor is free; close some, or raise RLIMIT_NOFILE"
        }
        libc::EOPNOTSUPP => "an emulator runs this program, and /proc shows the emulator",
        libc::EAGAIN => "threads come and go faster than they can be listed; try again",
        _ => "try again when the kernel answers",
    }
}

/// Bytes as hexadecimal digits, for messages.
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            write!(f, "{gap}{byte:02x}")?;
        }
        Ok(())
    }
}

/// A function in messages, by its name or its address.
struct Named<'a>(Option<&'a str>, RxAddr);

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(name) => write!(f, "`{name}`"),
            None => write!(f, "the code at {}", self.1),
        }
    }
}

/// Where there is no symbol.
struct NoSymbolIn<'a>(Option<&'a str>);

impl std::fmt::Display for NoSymbolIn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(object) => write!(f, "{object} has no"),
            None => f.write_str("no loaded object has a"),
        }
    }
}

/// Another name.
struct DidYouMean<'a>(Option<&'a str>);

impl std::fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0
            .map_or(Ok(()), |name| write!(f, " (did you mean `{name}`?)"))
    }
}
