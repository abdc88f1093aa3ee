//! Tables in use.
//!
//! ```text
//!   register ──▶ Link ── update ──▶ … ── unregister ──▶ vacant
//!                 │                        └─▶ Leave: when the last thread has left
//!                 ├─ as_ptr, get: the table of now
//!                 └─ pin: one version
//! ```
//!
//! A link's own struct never moves; its functions are the stubs of a front, so that a pointer taken
//! out of it stays good for as long as the link. Key types: [`Link`], [`Pinned`], [`Leave`].
//! Neighbours: `table`, `retire`; [`trampoline::indirect`].

#![expect(
    unsafe_code,
    reason = "declares the promises under which tables are called; pinned tables are references"
)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use text::Deadline;
use text::threads::{Patience, StuckWhy};
use trampoline::indirect::{Front, Leaving, Left, Member, Pin};
use trampoline::{TrampError, Trampolines};

use super::any::AnyLink;
use super::describe::{FieldKind, MemberKey, OpsType, StructOps};
use super::error::OpsError;
use super::member_fn::MemberFn;
use super::memory::Memory;
use super::retire::{Keep, Retired};
use super::table::{Table, TableCore};
use crate::runtime::Runtime;
use text::ForkMutex;

/// A table in use. Dropped, it is unregistered, and what it needs is freed as soon as nobody is in
/// it.
pub struct Link<T> {
    core: Arc<LinkCore>,
    _of: PhantomData<fn() -> T>,
}

/// A link of whatever type.
#[derive(Debug)]
pub(super) struct LinkCore {
    number: u64,
    pub(super) ty: Arc<OpsType>,
    front: Arc<Front>,
    /// What C sees. Kept until the front can go.
    memory: Option<Memory>,
    /// The table of now; `None`: unregistered. Locked under the lock of changes alone.
    current: ForkMutex<Option<Arc<TableCore>>>,
    runtime: Runtime,
}

impl Runtime {
    /// Puts `table` into use, under an address of its own that C code can call through.
    ///
    /// # Errors
    /// [`OpsError::AlreadyRegistered`]; [`OpsError::Tramp`] when the code for it cannot be made.
    ///
    /// # Safety
    /// 1. Functions out of the table ([`Link::as_ptr`], [`Link::get`]) are not called when the link
    ///    is gone, nor functions out of a [`Pinned`] one when that is.
    #[doc(alias = "bpf_map__attach_struct_ops")]
    pub unsafe fn register<T: StructOps>(&self, table: &Table<T>) -> Result<Link<T>, OpsError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let ty = table.core.ty.clone();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        table.core.claim(number)?;
        let vacant = ty.funcs().map(|(_, func)| match func.default {
            Some(default) => Member::Func(default),
            None => Member::Absent,
        });
        let made = Front::new(&self.workshop(), &ty.models(), vacant.collect());
        let front = made.inspect_err(|_| table.core.release())?;
        let memory = Memory::for_type(&ty);
        for (i, (field, _)) in ty.funcs().enumerate() {
            memory.store(field.offset, &front.stub(i).get().to_ne_bytes());
        }
        self.retirees().link_made();
        let core = LinkCore {
            number,
            ty,
            front: Arc::new(front),
            memory: Some(memory),
            current: ForkMutex::new(Some(table.core.clone())),
            runtime: self.clone(),
        };
        core.lead(&table.core);
        Ok(Link {
            core: Arc::new(core),
            _of: PhantomData,
        })
    }
}

impl<T> fmt::Debug for Link<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.core).finish()
    }
}

impl<T> fmt::Debug for Pinned<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned")
            .field(&std::ptr::from_ref(self.table))
            .finish()
    }
}

impl<T: StructOps> Link<T> {
    /// Swaps the whole table. Calls that begin when this has returned reach `table`; a caller that
    /// has pinned the table before goes on with the one that it has. Nothing is waited for, no
    /// text changes.
    ///
    /// # Errors
    /// [`OpsError::Unregistered`]; [`OpsError::AlreadyRegistered`] when `table` serves another
    /// link; that it serves this one is no error, and changes nothing. [`OpsError::Tramp`] with
    /// `Reentered`: this thread is in the midst of an update of this link.
    #[doc(alias = "bpf_link__update_map")]
    pub fn update(&self, table: &Table<T>) -> Result<(), OpsError> {
        self.core.update(&table.core)
    }

    /// The table, for C: it stands there as long as the link, and always is what it is now. Each
    /// call sees one version; who wants several calls, or data, of one version pins it.
    ///
    /// Functions are never null, whatever the version: a member that was left out returns zeros.
    /// Data changes piece by piece.
    pub fn as_ptr(&self) -> *const T {
        self.core.as_ptr().cast()
    }

    /// A function of the table, whatever version it is when it is called.
    pub fn get<F: MemberFn>(&self, member: MemberKey<T, F>) -> F {
        let i = self.core.ty.func_index(member.index());
        let stub = self.core.front.stub(i);
        // SAFETY: 1. the stub passes its arguments on to a member of this type, and stays as long
        //    as the link; whoever registered it has promised not to call it later.
        unsafe { F::at(stub.get()) }
    }

    /// The version of now, all of it, for as long as the result lives. `None`: unregistered.
    ///
    /// Nothing is locked; a thread that has many pinned at a time (more than eight) pays an atomic
    /// addition for the others.
    pub fn pin(&self) -> Option<Pinned<'_, T>> {
        let (pin, number) = Pin::new(&self.core.front)?;
        let core = std::ptr::with_exposed_provenance::<TableCore>(number as usize);
        // SAFETY: 1. the number is the address of a table, which is kept while anybody pins it.
        let core = unsafe { &*core };
        let table = core.memory.as_ptr().cast::<T>();
        Some(Pinned {
            // SAFETY:
            // 1. A `T`: functions of the members' types, null where they may be, and plain data.
            // 2. Nobody changes the struct of a table that has been built.
            table: unsafe { &*table },
            _pin: pin,
        })
    }

    /// Ends the table's use and waits until no thread is inside it, `patience` at most. Calls
    /// through the link find defaults, and zeros where there are none.
    ///
    /// # Errors
    /// [`OpsError::Unregistered`]: nothing has happened. [`OpsError::StillInside`],
    /// [`OpsError::Myself`]: it is unregistered, but not left; [`Runtime::synchronize`] waits
    /// again.
    pub fn unregister(&self, patience: Duration) -> Result<(), OpsError> {
        self.begin_unregister()?.wait(patience)
    }

    /// The same, at once: the result says when no thread is inside.
    ///
    /// # Errors
    /// [`OpsError::Unregistered`].
    pub fn begin_unregister(&self) -> Result<Leave, OpsError> {
        self.core.begin_unregister()
    }

    /// The link without its type.
    pub fn any(&self) -> AnyLink {
        AnyLink(self.core.clone())
    }
}

impl LinkCore {
    fn as_ptr(&self) -> *const u8 {
        self.memory
            .as_ref()
            .map_or(std::ptr::null(), Memory::as_ptr)
    }

    /// Leads callers to `table`: functions first, then data.
    fn lead(&self, table: &Arc<TableCore>) {
        self.front.lead(&table.version, table.number());
        let Some(memory) = &self.memory else { return };
        for field in &self.ty.fields {
            if let FieldKind::Data { size_bytes } = field.kind {
                memory.store(field.offset, &table.memory.load(field.offset, size_bytes));
            }
        }
    }

    pub(super) fn update(&self, table: &Arc<TableCore>) -> Result<(), OpsError> {
        if table.ty.id != self.ty.id {
            return Err(OpsError::OtherType {
                link: self.ty.name,
                table: table.ty.name,
            });
        }
        let swapped = Trampolines::locked(|| self.swap(table))?;
        if swapped == Swapped::Yes {
            self.runtime.retirees().settle_some();
        }
        Ok(())
    }

    /// Under the lock of changes.
    fn swap(&self, table: &Arc<TableCore>) -> Result<Swapped, OpsError> {
        let unregistered = OpsError::Unregistered {
            table: self.ty.name,
        };
        let mut current = self.current.try_lock().ok_or(TrampError::Reentered)?;
        let now = current.as_mut().ok_or(unregistered)?;
        if Arc::ptr_eq(now, table) {
            return Ok(Swapped::No);
        }
        table.claim(self.number)?;
        self.lead(table);
        let old = std::mem::replace(now, table.clone());
        old.release();
        self.runtime.retirees().swapped(self.retired(old), table);
        Ok(Swapped::Yes)
    }

    /// A table that calls do not reach any more.
    fn retired(&self, old: Arc<TableCore>) -> Retired {
        Retired {
            link: self.number,
            leaving: self.leaving(&old),
            keep: Keep::Table(old),
        }
    }

    fn leaving(&self, old: &Arc<TableCore>) -> Leaving {
        Leaving::of_version(self.front.clone(), old.version.clone(), old.number())
    }

    fn begin_unregister(&self) -> Result<Leave, OpsError> {
        let table = self.ty.name;
        let taken = Trampolines::locked(|| {
            let mut current = self.current.try_lock().ok_or(TrampError::Reentered)?;
            let taken = current.take();
            if taken.is_some() {
                self.front.vacate();
            }
            Ok::<_, TrampError>(taken)
        })?;
        let old = taken.ok_or(OpsError::Unregistered { table })?;
        old.release();
        Ok(Leave {
            retired: Some(self.retired(old)),
            runtime: self.runtime.clone(),
            table,
        })
    }
}

impl Drop for LinkCore {
    fn drop(&mut self) {
        // What it led to is retired, and kept until it is left.
        drop(self.begin_unregister());
        let front = Retired {
            link: self.number,
            leaving: Leaving::of_front(self.front.clone()),
            keep: Keep::Front(self.memory.take()),
        };
        self.runtime.retirees().front_gone(front);
        self.runtime.retirees().settle_some();
    }
}

/// Has a table been swapped for another?
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Swapped {
    Yes,
    No,
}

/// One version of a table, which stays what it is. Of this thread: it cannot be sent.
pub struct Pinned<'l, T> {
    table: &'l T,
    _pin: Pin,
}

impl<T> Deref for Pinned<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.table
    }
}

/// A table that has been unregistered, and that threads may still be inside.
#[derive(Debug)]
pub struct Leave {
    /// Until it is left.
    retired: Option<Retired>,
    runtime: Runtime,
    table: &'static str,
}

impl Leave {
    /// Whether no thread is inside any more. Looks at threads without disturbing them, so one that
    /// never sleeps may look as if it were inside: [`Leave::wait`] asks it.
    pub fn is_left(&mut self) -> bool {
        self.advance(Patience::PollOnly(Duration::ZERO)) == Left::Yes
    }

    /// Waits until no thread is inside, `patience` at most.
    ///
    /// # Errors
    /// [`OpsError::StillInside`]: wait again, or drop this: what the table needs is kept until
    /// then.
    /// [`OpsError::Myself`]: this thread is; waiting does not help.
    pub fn wait(&mut self, patience: Duration) -> Result<(), OpsError> {
        let table = self.table;
        let end = Deadline::after(patience);
        let mut round = Duration::from_millis(5);
        loop {
            let left = self.advance(Patience::Signal {
                after: round / 2,
                deadline: round,
            });
            let stuck = match left {
                Left::Yes => return Ok(()),
                Left::No(stuck) => stuck,
            };
            if stuck.is_some_and(|stuck| stuck.why == StuckWhy::Caller) {
                return Err(OpsError::Myself { table });
            }
            if end.is_over() {
                let tid = stuck.map(|stuck| stuck.tid);
                return Err(OpsError::StillInside { table, tid });
            }
            std::thread::sleep(Duration::from_millis(1));
            round = (round * 2).min(Duration::from_millis(200));
        }
    }

    fn advance(&mut self, patience: Patience) -> Left {
        let Some(retired) = &mut self.retired else {
            return Left::Yes;
        };
        let left = retired.leaving.advance(patience);
        if left == Left::Yes {
            self.retired = None;
        }
        left
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(retired) = self.retired.take() {
            self.runtime.retirees().unregistered(retired);
        }
    }
}
