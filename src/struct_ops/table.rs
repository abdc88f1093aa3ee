//! One version of a table.
//!
//! Key types: [`TableBuilder`], [`Table`]. Neighbours: `link` puts tables into use.

#![expect(
    unsafe_code,
    reason = "declares the promises under which programs become members"
)]

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use text::RxAddr;
use trampoline::indirect::{Member, MemberProg, Version, Workshop};
use trampoline::model::Pass;
use trampoline::{FuncModel, Needs, RetFrom};

use super::any::AnyTable;
use super::closure;
use super::describe::{
    DataKey, FieldKind, FuncType, MemberKey, OpsData, OpsType, Presence, StructOps,
};
use super::error::OpsError;
use super::member_fn::MemberFn;
use super::memory::{Memory, bytes_of};
use crate::bpf::BpfProg;
use crate::panics::Panics;
use crate::runtime::Runtime;

/// One version of a table of type `T`: what [`Runtime::register`] and
/// [`Link::update`](super::Link::update) put into use. Clones are the same table; what its members
/// need is freed with the last of them, when no thread is in it any more.
pub struct Table<T> {
    pub(super) core: Arc<TableCore>,
    _of: PhantomData<fn() -> T>,
}

/// A table of whatever type.
#[derive(Debug)]
pub(super) struct TableCore {
    pub(super) ty: Arc<OpsType>,
    pub(super) version: Arc<Version>,
    /// As pinned callers see it.
    pub(super) memory: Memory,
    panics: Arc<Panics>,
    /// The number of the link that it serves, 0: none.
    link: AtomicU64,
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Table {
            core: self.core.clone(),
            _of: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Table").field(&self.core).finish()
    }
}

impl<T> fmt::Debug for TableBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableBuilder")
            .field("type", &self.ty.name)
            .field("choices", &self.choices)
            .finish_non_exhaustive()
    }
}

impl<T: StructOps> Table<T> {
    /// Begins a table. Members that nobody says anything of are as the type has them: a default,
    /// null, or zero.
    ///
    /// # Errors
    /// [`OpsError::Model`]: the type has a member that cannot be called.
    pub fn builder(rt: &Runtime) -> Result<TableBuilder<T>, OpsError> {
        let ty = OpsType::of::<T>()?;
        Ok(TableBuilder {
            choices: ty.fields.iter().map(|_| Choice::Unset).collect(),
            shop: rt.workshop(),
            ty,
            panics: Arc::default(),
            error: None,
            _of: PhantomData,
        })
    }

    /// The same table without its type.
    pub fn any(&self) -> AnyTable {
        AnyTable(self.core.clone())
    }

    /// How many of its closures' runs have panicked; their callers got zeros.
    pub fn panics(&self) -> u64 {
        self.core.panics.count()
    }
}

impl TableCore {
    /// By which it is pinned: its address, which is that of no code.
    pub(super) fn number(self: &Arc<Self>) -> u64 {
        Arc::as_ptr(self).expose_provenance() as u64
    }

    /// The table serves this link from now on.
    pub(super) fn claim(&self, link: u64) -> Result<(), OpsError> {
        let table = self.ty.name;
        let claimed = self
            .link
            .compare_exchange(0, link, Ordering::AcqRel, Ordering::Acquire);
        claimed
            .map(drop)
            .map_err(|_| OpsError::AlreadyRegistered { table })
    }

    /// It serves no link any more.
    pub(super) fn release(&self) {
        self.link.store(0, Ordering::Release);
    }
}

/// Collects the members of a table.
#[must_use = "there is no table before `build`"]
pub struct TableBuilder<T> {
    shop: Workshop,
    ty: Arc<OpsType>,
    choices: Vec<Choice>,
    panics: Arc<Panics>,
    /// The first thing that was wrong.
    error: Option<OpsError>,
    _of: PhantomData<fn() -> T>,
}

/// What was said of a field.
#[derive(Clone, Debug)]
enum Choice {
    Unset,
    Member(Member),
    Data(Vec<u8>),
}

impl<T: StructOps> TableBuilder<T> {
    /// A member is a function of its own type: the fast way.
    pub fn function<F: MemberFn>(self, member: MemberKey<T, F>, f: F) -> Self {
        let func = Member::Func(RxAddr::new(f.addr()));
        self.set(member.index(), func)
    }

    /// A member is a closure. If it panics, its caller gets zeros.
    pub fn closure<F: MemberFn>(
        self,
        member: MemberKey<T, F>,
        f: impl Fn(F::Args) -> F::Ret + Send + Sync + 'static,
    ) -> Self {
        let index = member.index();
        let Some((_, func)) = self.func(index) else {
            return self;
        };
        let prog = closure::program::<F, _>(f, func.model.clone(), self.panics.clone());
        self.set(index, Member::Prog(prog))
    }

    /// A member is a BPF program, which gets its arguments as a context in `r1`: 64-bit slots, as
    /// [`FuncModel::slots`] lists them. What it returns is the member's result, extended as C
    /// has it; a result in two registers is what it writes into the slots behind the arguments, one
    /// by reference what it writes to where slot 0 points.
    ///
    /// # Safety
    /// 1. The program's loads, stores and calls are sound in any call of the member, and it ends,
    ///    by itself or by its budget.
    #[doc(alias = "BPF_PROG_TYPE_STRUCT_OPS")]
    pub unsafe fn bpf<F: MemberFn>(self, member: MemberKey<T, F>, prog: &BpfProg) -> Self {
        let index = member.index();
        self.set_prog(index, prog)
    }

    /// A member that is known by its name is a function, whose type is compared with the member's
    /// now.
    pub fn function_named<F: MemberFn>(mut self, name: &str, f: F) -> Self {
        let Some(index) = self.find(name) else {
            return self;
        };
        let same = match (self.func(index), F::type_model()) {
            (Some((_, func)), Ok(model)) => func.model == model,
            _ => false,
        };
        if !same {
            let (table, member) = (self.ty.name, self.ty.fields[index].name);
            return self.fail(OpsError::WrongModel { table, member });
        }
        self.choices[index] = Choice::Member(Member::Func(RxAddr::new(f.addr())));
        self
    }

    /// A member that is known by its name is a BPF program.
    ///
    /// # Safety
    /// As [`TableBuilder::bpf`].
    pub unsafe fn bpf_named(mut self, name: &str, prog: &BpfProg) -> Self {
        match self.find(name) {
            Some(index) => self.set_prog(index, prog),
            None => self,
        }
    }

    /// A data member has this value.
    pub fn data<D: OpsData>(mut self, member: DataKey<T, D>, value: D) -> Self {
        self.choices[member.index()] = Choice::Data(bytes_of(&value));
        self
    }

    /// Makes the table.
    ///
    /// # Errors
    /// The first of: [`OpsError::NoSuchMember`], [`OpsError::WrongModel`],
    /// [`OpsError::ProgramKind`]; then [`OpsError::Missing`]; [`OpsError::Tramp`] when its code
    /// cannot be made.
    pub fn build(self) -> Result<Table<T>, OpsError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let memory = Memory::for_type(&self.ty);
        let mut members = Vec::new();
        for (field, choice) in self.ty.fields.iter().zip(self.choices) {
            match (&field.kind, choice) {
                (FieldKind::Func(func), choice) => {
                    let table = self.ty.name;
                    let member = field.name;
                    let missing = OpsError::Missing { table, member };
                    members.push(chosen(func, choice).ok_or(missing)?);
                }
                (FieldKind::Data { .. }, Choice::Data(bytes)) => memory.store(field.offset, &bytes),
                (FieldKind::Data { .. }, _) => {}
            }
        }
        let direct: Vec<Option<u64>> = members.iter().map(direct).collect();
        let version = Version::new(&self.shop, &self.ty.models(), members)?;
        for (i, (field, _)) in self.ty.funcs().enumerate() {
            let addr = direct[i].unwrap_or_else(|| version.entry(i));
            memory.store(field.offset, &addr.to_ne_bytes());
        }
        Ok(Table {
            core: Arc::new(TableCore {
                ty: self.ty,
                version: Arc::new(version),
                memory,
                panics: self.panics,
                link: AtomicU64::new(0),
            }),
            _of: PhantomData,
        })
    }

    fn func(&self, index: usize) -> Option<(&'static str, &FuncType)> {
        let field = self.ty.fields.get(index)?;
        match &field.kind {
            FieldKind::Func(func) => Some((field.name, func)),
            FieldKind::Data { .. } => None,
        }
    }

    fn set(mut self, index: usize, member: Member) -> Self {
        self.choices[index] = Choice::Member(member);
        self
    }

    fn set_prog(self, index: usize, prog: &BpfProg) -> Self {
        let Some((member, func)) = self.func(index) else {
            return self;
        };
        if prog
            .asks_for()
            .intersects(Needs::IP | Needs::COOKIE | Needs::RET)
        {
            let table = self.ty.name;
            return self.fail(OpsError::ProgramKind { table, member });
        }
        let ret = result_of(&func.model);
        let raw = prog.fentry().0;
        let prog = MemberProg {
            func: raw.func,
            cookie: None,
            ret,
            needs: raw.needs,
            owner: raw.owner,
        };
        self.set(index, Member::Prog(prog))
    }

    fn find(&mut self, name: &str) -> Option<usize> {
        let is_it = |field: &super::describe::FieldType| {
            field.name == name && matches!(field.kind, FieldKind::Func(_))
        };
        let found = self.ty.fields.iter().position(is_it);
        if found.is_none() && self.error.is_none() {
            self.error = Some(OpsError::NoSuchMember {
                table: self.ty.name,
                member: name.into(),
            });
        }
        found
    }

    fn fail(mut self, error: OpsError) -> Self {
        self.error.get_or_insert(error);
        self
    }
}

/// Where a BPF program's result is.
fn result_of(model: &FuncModel) -> RetFrom {
    match model.ret().slots() {
        [] => RetFrom::Value,
        [one] if one.pass == Pass::Value => RetFrom::Value,
        _ => RetFrom::Slots,
    }
}

/// What a member is, all said; `None`: it is missing.
fn chosen(func: &FuncType, choice: Choice) -> Option<Member> {
    match (choice, func.default, func.presence) {
        (Choice::Member(member), _, _) => Some(member),
        (_, Some(default), _) => Some(Member::Func(default)),
        (_, None, Presence::Optional) => Some(Member::Absent),
        (_, None, Presence::Required) => None,
    }
}

/// What pinned callers call, where that is not the entry.
fn direct(member: &Member) -> Option<u64> {
    match member {
        Member::Func(func) => Some(func.get()),
        Member::Absent => Some(0),
        Member::Prog(_) => None,
    }
}
