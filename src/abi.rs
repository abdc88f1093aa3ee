//! Rust types that can stand in a hooked function's signature.
//!
//! Key type: [`AbiType`]. `repr(C)` structs of the user's own join in by [`abi_struct!`].
//! Values are put together from, and taken apart into, the 64-bit slots of a call's context, as
//! the function's model says. Source: RISC-V ELF psABI, LP64D.

#![expect(
    unsafe_code,
    reason = "values are read from the slots of a context as bytes"
)]

use std::mem::MaybeUninit;

use trampoline::model::{Member, ModelError, Pass, Slot, StructType, Type};

/// A type that C passes by value: integers, `bool`, `f32`, `f64`, pointers, and structs declared
/// by [`abi_struct!`](crate::abi_struct).
///
/// # Safety
/// 1. [`AbiType::TYPE`] describes the type's C layout.
/// 2. Whatever the C side passes for such an argument is a valid value.
pub unsafe trait AbiType: Copy + 'static {
    /// What the calling convention has to know.
    const TYPE: Type;
}

macro_rules! scalars {
    ($($t:ty = $ty:expr;)*) => {$(
        // SAFETY: 1. same size and kind as the C type. 2. all bit patterns are valid, and C's
        //    `_Bool` is 0 or 1.
        unsafe impl AbiType for $t { const TYPE: Type = $ty; }
    )*};
}

scalars! {
    () = Type::Void;
    bool = Type::BOOL;
    i8 = Type::I8; u8 = Type::U8;
    i16 = Type::I16; u16 = Type::U16;
    i32 = Type::I32; u32 = Type::U32;
    i64 = Type::I64; u64 = Type::U64;
    isize = Type::I64; usize = Type::U64;
    i128 = Type::I128; u128 = Type::U128;
    f32 = Type::F32; f64 = Type::F64;
}

// SAFETY: 1. a thin pointer is a C pointer. 2. any address is a valid raw pointer.
unsafe impl<T: 'static> AbiType for *const T {
    const TYPE: Type = Type::Ptr;
}

// SAFETY: as above.
unsafe impl<T: 'static> AbiType for *mut T {
    const TYPE: Type = Type::Ptr;
}

// SAFETY: 1. `Option` of a function pointer is a C function pointer. 2. C passes functions or null.
unsafe impl<T: Copy + 'static> AbiType for Option<T>
where
    T: FnPtr,
{
    const TYPE: Type = Type::Ptr;
}

/// Function pointers of C.
pub trait FnPtr {}

macro_rules! fn_ptrs {
    ($($a:ident)*) => {
        impl<R, $($a),*> FnPtr for unsafe extern "C" fn($($a),*) -> R {}
        impl<R, $($a),*> FnPtr for extern "C" fn($($a),*) -> R {}
    };
}
fn_ptrs!();
fn_ptrs!(A);
fn_ptrs!(A B);
fn_ptrs!(A B C);
fn_ptrs!(A B C D);
fn_ptrs!(A B C D E);
fn_ptrs!(A B C D E F);

/// Declares a `repr(C)` struct that can be passed by value to and from hooked functions.
///
/// ```
/// rvbpf::abi_struct! {
///     /// A point.
///     pub struct Point { pub x: f64, pub y: f64 }
/// }
/// let p = Point { x: 1.0, y: 2.0 };
/// assert_eq!(p.x + p.y, 3.0);
/// ```
#[macro_export]
macro_rules! abi_struct {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($fvis:vis $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Copy, Clone, Debug, PartialEq)]
        #[repr(C)]
        #[allow(missing_docs, reason = "fields carry the C names")]
        $vis struct $name { $($fvis $field: $ty),* }

        // SAFETY: 1. the description is made from the fields themselves, and the struct is
        //    repr(C). 2. the fields are AbiTypes.
        #[allow(
            unsafe_code,
            clippy::undocumented_unsafe_blocks,
            reason = "this is the promise that the macro makes for its struct, argued for above"
        )]
        unsafe impl $crate::AbiType for $name {
            const TYPE: $crate::model::Type = $crate::struct_type(
                ::core::mem::size_of::<$name>() as u32,
                ::core::mem::align_of::<$name>() as u32,
                &[$($crate::model::Member {
                    offset_bytes: ::core::mem::offset_of!($name, $field) as u32,
                    ty: <$ty as $crate::AbiType>::TYPE,
                }),*],
            );
        }
    };
}

/// What [`abi_struct!`](crate::abi_struct) evaluates at compile time.
#[doc(hidden)]
pub const fn struct_type(size_bytes: u32, align_bytes: u32, members: &[Member]) -> Type {
    match StructType::of(size_bytes, align_bytes, members) {
        Ok(st) => Type::Struct(st),
        Err(ModelError::StructLayout { .. }) => panic!("the members do not fit the struct"),
        Err(_) => panic!("a member cannot be passed by value"),
    }
}

/// Whether values of this type are the low bytes of one slot.
const fn is_in_one_slot(ty: Type) -> bool {
    match ty {
        Type::Int { size_bytes, .. } => size_bytes <= 8,
        Type::Ptr | Type::F16 | Type::F32 | Type::F64 => true,
        Type::F128 | Type::Struct(_) | Type::Void => false,
    }
}

/// Reads a value from its slots.
///
/// # Safety
/// 1. `ctx[first..first + slots.len()]` are the slots of a value of type `T`. 2. A reference slot
///    points to such a value.
pub(crate) unsafe fn load<T: AbiType>(ctx: *const u64, first: usize, slots: &[Slot]) -> T {
    if const { is_in_one_slot(T::TYPE) } {
        // SAFETY: 1. within the context (caller).
        let at = unsafe { ctx.add(first) };
        // SAFETY: 1. it is in the low bytes, which come first, and what C passed is a valid value
        //    (contract of AbiType).
        return unsafe { at.cast::<T>().read() };
    }
    let mut value = MaybeUninit::<T>::zeroed();
    let to = value.as_mut_ptr().cast::<u8>();
    for (i, slot) in slots.iter().enumerate() {
        // SAFETY: 1. within the context (caller).
        let at = unsafe { ctx.add(first + i) };
        let (from, len) = match slot.pass {
            Pass::Value => (at.cast::<u8>(), usize::from(slot.size_bytes)),
            Pass::Reference { size_bytes } => {
                // SAFETY: 1. within the context (caller).
                let value = unsafe { at.read() };
                (value as *const u8, size_bytes as usize)
            }
        };
        let off = slot.offset_bytes as usize;
        let len = len.min(size_of::<T>().saturating_sub(off));
        // SAFETY: 1. `off` is within `T`, or `len` is 0.
        let to = unsafe { to.add(off) };
        // SAFETY: 1. `len` bytes are readable: of a slot, or of the referred-to value (2).
        //    2. `off + len` is within `T`.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
    }
    // SAFETY: 1. every byte of the value that is not padding came from the C side, which passed a
    //    valid value (contract of AbiType).
    unsafe { value.assume_init() }
}

/// Writes a return value into its slots, or, for one by reference, to where the caller wants it.
///
/// # Safety
/// 1. `ctx[first..first + slots.len()]` are return slots of type `T`. 2. `by_ref`, if the value is
///    returned by reference, points to room for it.
pub(crate) unsafe fn store_ret<T: AbiType>(
    ctx: *mut u64,
    first: usize,
    slots: &[Slot],
    by_ref: u64,
    value: &T,
) {
    if const { is_in_one_slot(T::TYPE) } {
        // SAFETY: 1. within the context (caller).
        let at = unsafe { ctx.add(first) };
        // SAFETY: 1. the return slot belongs to this call.
        unsafe { at.write(0) };
        // SAFETY: 1. as above; the value is no larger than the slot.
        return unsafe { at.cast::<T>().write(*value) };
    }
    let from = std::ptr::from_ref(value).cast::<u8>();
    for (i, slot) in slots.iter().enumerate() {
        // SAFETY: 1. within the context (caller).
        let at = unsafe { ctx.add(first + i) };
        match slot.pass {
            Pass::Value => {
                let off = slot.offset_bytes as usize;
                let len = usize::from(slot.size_bytes).min(size_of::<T>().saturating_sub(off));
                // SAFETY: 1. the return slot belongs to this call.
                unsafe { at.write(0) };
                // SAFETY: 1. `off + len` is within `T`.
                let from = unsafe { from.add(off) };
                // SAFETY: 1. at most eight bytes into the slot.
                unsafe { std::ptr::copy_nonoverlapping(from, at.cast::<u8>(), len) };
            }
            Pass::Reference { .. } => {
                // SAFETY: 2. room for the value (caller).
                unsafe { std::ptr::copy_nonoverlapping(from, by_ref as *mut u8, size_of::<T>()) };
                // SAFETY: 1. the return slot belongs to this call.
                unsafe { at.write(by_ref) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trampoline::FuncModel;

    abi_struct! {
        /// One of each register file.
        struct Mixed { f: f32, n: i64 }
    }
    abi_struct! {
        /// Too large for registers.
        struct Big { a: [u64; 1], b: u64 }
    }

    // SAFETY: 1. an array of one element is that element for the calling convention.
    unsafe impl AbiType for [u64; 1] {
        const TYPE: Type = Type::U64;
    }

    #[test]
    fn values_come_out_of_their_slots() {
        let model = FuncModel::new(&[i32::TYPE, Mixed::TYPE, u128::TYPE], Type::Void).unwrap();
        let ctx = [0xffff_ffff_ffff_fffb, f32::to_bits(1.5).into(), 7, 1, 2];
        let read = |n| model.arg_slots(n);
        let (first, slots) = read(0);
        // SAFETY: the context is laid out as the model says.
        assert_eq!(unsafe { load::<i32>(ctx.as_ptr(), first, slots) }, -5);
        let (first, slots) = read(1);
        // SAFETY: as above.
        let mixed = unsafe { load::<Mixed>(ctx.as_ptr(), first, slots) };
        assert_eq!(mixed, Mixed { f: 1.5, n: 7 });
        let (first, slots) = read(2);
        // SAFETY: as above.
        let wide = unsafe { load::<u128>(ctx.as_ptr(), first, slots) };
        assert_eq!(wide, (2 << 64) | 1);
    }

    #[test]
    fn a_return_value_goes_into_its_slots() {
        let model = FuncModel::new(&[], Mixed::TYPE).unwrap();
        let mut ctx = [u64::MAX; 2];
        let value = Mixed { f: 2.5, n: -1 };
        // SAFETY: two return slots.
        unsafe { store_ret(ctx.as_mut_ptr(), 0, model.ret().slots(), 0, &value) };
        assert_eq!(ctx, [f32::to_bits(2.5).into(), u64::MAX]);
        let _ = Big { a: [1], b: 2 };
    }
}
