//! What a table looks like to C: its members, where they stand, and what they are.
//!
//! Key types: [`StructOps`], which the derive implements by a [`Describe`]; [`MemberKey`] and
//! [`DataKey`], by which members are named; `OpsType`, the description.

#![expect(
    unsafe_code,
    reason = "declares the promises under which a struct is described"
)]

use std::any::TypeId;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use trampoline::FuncModel;

use super::error::OpsError;
use super::member_fn::{FnField, MemberFn};
use crate::func::HookFn;
use text::RxAddr;

/// A struct of function pointers and data that C has too. Implemented by
/// [`#[derive(StructOps)]`](macro@crate::StructOps).
///
/// # Safety
/// 1. [`StructOps::describe`] lists every field once, with its offset and type, and in the order
///    of the keys in [`StructOps::MEMBERS`].
/// 2. The struct is `repr(C)`.
pub unsafe trait StructOps: Sized + 'static {
    /// A struct with a key for each member.
    type Members: Copy;
    /// What it is called.
    const NAME: &'static str;
    /// The keys.
    const MEMBERS: Self::Members;

    /// Lists the members.
    #[doc(hidden)]
    fn describe(to: &mut Describe);
}

/// Data in a table: plain bytes, of which zeros are a value too.
///
/// # Safety
/// 1. Zero bytes are a valid value. 2. It has no padding, and may be sent to and shared with other
///    threads as far as a raw pointer may.
pub unsafe trait OpsData: Copy + 'static {}

macro_rules! data {
    ($($t:ty)*) => {$(
        // SAFETY: 1. zero is a number, or false. 2. there is no padding.
        unsafe impl OpsData for $t {}
    )*};
}
data!(bool i8 u8 i16 u16 i32 u32 i64 u64 isize usize i128 u128 f32 f64);

// SAFETY: 1. null. 2. an address.
unsafe impl<T: 'static> OpsData for *const T {}
// SAFETY: as above.
unsafe impl<T: 'static> OpsData for *mut T {}
// SAFETY: 1. none. 2. an address.
unsafe impl<F: Copy + 'static> OpsData for Option<F> where F: crate::abi::FnPtr {}
// SAFETY: 1. and 2. as each element.
unsafe impl<T: OpsData, const N: usize> OpsData for [T; N] {}

/// Names a member function of `T`.
pub struct MemberKey<T, F> {
    index: usize,
    _of: PhantomData<fn() -> (T, F)>,
}

/// Names a data member of `T`.
pub struct DataKey<T, D> {
    index: usize,
    _of: PhantomData<fn() -> (T, D)>,
}

macro_rules! key {
    ($key:ident) => {
        impl<T, V> $key<T, V> {
            /// For the derive, which counts the fields.
            #[doc(hidden)]
            pub const fn new(index: usize) -> Self {
                Self {
                    index,
                    _of: PhantomData,
                }
            }

            pub(super) fn index(self) -> usize {
                self.index
            }
        }

        impl<T, V> fmt::Debug for $key<T, V> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($key), "({})"), self.index)
            }
        }

        impl<T, V> Copy for $key<T, V> {}
        impl<T, V> Clone for $key<T, V> {
            fn clone(&self) -> Self {
                *self
            }
        }
    };
}
key!(MemberKey);
key!(DataKey);

/// Where [`StructOps::describe`] lists the members.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Describe {
    table: &'static str,
    fields: Vec<FieldType>,
    error: Option<OpsError>,
}

impl Describe {
    /// A member function.
    pub fn function<F: FnField>(
        &mut self,
        name: &'static str,
        offset: usize,
        default: Option<F::Fn>,
    ) {
        let model = match F::Fn::type_model() {
            Ok(model) => model,
            Err(source) => {
                self.error.get_or_insert(OpsError::Model {
                    table: self.table,
                    member: name,
                    source,
                });
                return;
            }
        };
        let kind = FieldKind::Func(FuncType {
            model,
            default: default.map(|f| RxAddr::new(f.addr())),
            presence: match F::OPTIONAL {
                true => Presence::Optional,
                false => Presence::Required,
            },
        });
        self.fields.push(FieldType { name, offset, kind });
    }

    /// Data.
    pub fn data<D: OpsData>(&mut self, name: &'static str, offset: usize) {
        let size_bytes = size_of::<D>();
        let kind = FieldKind::Data { size_bytes };
        self.fields.push(FieldType { name, offset, kind });
    }
}

/// A type of tables.
#[derive(Debug)]
pub(super) struct OpsType {
    pub(super) id: TypeId,
    pub(super) name: &'static str,
    pub(super) size_bytes: usize,
    pub(super) align_bytes: usize,
    /// In the order of the keys.
    pub(super) fields: Vec<FieldType>,
}

#[derive(Debug)]
pub(super) struct FieldType {
    pub(super) name: &'static str,
    pub(super) offset: usize,
    pub(super) kind: FieldKind,
}

#[derive(Debug)]
pub(super) enum FieldKind {
    Func(FuncType),
    Data { size_bytes: usize },
}

#[derive(Clone, Debug)]
pub(super) struct FuncType {
    pub(super) model: Arc<FuncModel>,
    pub(super) default: Option<RxAddr>,
    pub(super) presence: Presence,
}

/// Must a table have the member?
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Presence {
    Required,
    Optional,
}

impl OpsType {
    pub(super) fn of<T: StructOps>() -> Result<Arc<Self>, OpsError> {
        let mut describe = Describe {
            table: T::NAME,
            ..Describe::default()
        };
        T::describe(&mut describe);
        match describe.error {
            Some(error) => Err(error),
            None => Ok(Arc::new(OpsType {
                id: TypeId::of::<T>(),
                name: T::NAME,
                size_bytes: size_of::<T>(),
                align_bytes: align_of::<T>(),
                fields: describe.fields,
            })),
        }
    }

    /// The member functions, with where they stand.
    pub(super) fn funcs(&self) -> impl Iterator<Item = (&FieldType, &FuncType)> {
        self.fields.iter().filter_map(|field| match &field.kind {
            FieldKind::Func(func) => Some((field, func)),
            FieldKind::Data { .. } => None,
        })
    }

    /// How many member functions there are before field `index`.
    pub(super) fn func_index(&self, index: usize) -> usize {
        let before = self.fields[..index].iter();
        before
            .filter(|field| matches!(field.kind, FieldKind::Func(_)))
            .count()
    }

    pub(super) fn models(&self) -> Vec<Arc<FuncModel>> {
        self.funcs().map(|(_, func)| func.model.clone()).collect()
    }
}
