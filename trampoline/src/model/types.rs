//! C types, reduced to what the calling convention asks of them.
//!
//! [`Type`] is a scalar or a [`StructType`]; a struct keeps its size, its alignment and its
//! *flattening*: the hardware floating-point convention looks through nested structs and arrays and
//! cares for structs of at most two scalars, so no more than two are kept. Everything is `Copy` and
//! `const`, so that a type can be an associated constant.
//!
//! Neighbours: [`super::FuncModel`] puts values of these types into registers and stack slots.
//!
//! Source: RISC-V ELF psABI, "C/C++ Type Details", "Hardware Floating-Point Calling Convention".

use super::ModelError;

/// Whether an integer narrower than its register is extended with its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sign {
    /// `signed char`, `short`, `int`, `long`, `__int128`.
    Signed,
    /// `_Bool`, `char` (unsigned on RISC-V), `unsigned …`.
    Unsigned,
}

/// A C type as an argument or a return value.
///
/// Enums are their underlying integer. `float _Complex` is a struct of two floats
/// ([`StructType::complex`]). Arrays are not passed by value in C: inside a struct, write one as
/// its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// An integer of 1, 2, 4, 8 or 16 bytes.
    Int {
        /// 1, 2, 4, 8 or 16.
        size_bytes: u8,
        /// How it is extended.
        sign: Sign,
    },
    /// A data or function pointer.
    Ptr,
    /// `_Float16`, `__bf16`.
    F16,
    /// `float`.
    F32,
    /// `double`.
    F64,
    /// `long double`: wider than a floating-point register, so it travels as two integers.
    F128,
    /// A struct, union or complex number by value.
    Struct(StructType),
    /// No value. Only as a return type.
    Void,
}

impl Type {
    /// `_Bool`, Rust's `bool`.
    pub const BOOL: Type = Type::U8;
    /// `signed char`.
    pub const I8: Type = Type::int(1, Sign::Signed);
    /// `unsigned char`, and C's plain `char` on RISC-V.
    pub const U8: Type = Type::int(1, Sign::Unsigned);
    /// `short`.
    pub const I16: Type = Type::int(2, Sign::Signed);
    /// `unsigned short`.
    pub const U16: Type = Type::int(2, Sign::Unsigned);
    /// `int`.
    pub const I32: Type = Type::int(4, Sign::Signed);
    /// `unsigned int`: travels *sign*-extended.
    pub const U32: Type = Type::int(4, Sign::Unsigned);
    /// `long`, `long long`.
    pub const I64: Type = Type::int(8, Sign::Signed);
    /// `unsigned long`, `size_t`.
    pub const U64: Type = Type::int(8, Sign::Unsigned);
    /// `__int128`.
    pub const I128: Type = Type::int(16, Sign::Signed);
    /// `unsigned __int128`.
    pub const U128: Type = Type::int(16, Sign::Unsigned);

    const fn int(size_bytes: u8, sign: Sign) -> Type {
        Type::Int { size_bytes, sign }
    }

    /// `sizeof`. An empty struct and `void` have size 0.
    pub const fn size_bytes(&self) -> u32 {
        match self {
            Type::Int { size_bytes, .. } => *size_bytes as u32,
            Type::F16 => 2,
            Type::F32 => 4,
            Type::Ptr | Type::F64 => 8,
            Type::F128 => 16,
            Type::Struct(st) => st.size_bytes,
            Type::Void => 0,
        }
    }

    /// `_Alignof`. A scalar of RV64 is aligned to its size.
    pub const fn align_bytes(&self) -> u32 {
        match self {
            Type::Struct(st) => st.align_bytes,
            Type::Void => 1,
            scalar => scalar.size_bytes(),
        }
    }

    /// `Ok` when this can be the type of an object: not `void`, and an integer of a size C has.
    pub(super) const fn check_object(&self) -> Result<(), ModelError> {
        match self {
            Type::Int { size_bytes, .. } if !matches!(size_bytes, 1 | 2 | 4 | 8 | 16) => {
                Err(ModelError::IntSize {
                    size_bytes: *size_bytes,
                })
            }
            Type::Void => Err(ModelError::VoidObject),
            _ => Ok(()),
        }
    }

    /// What this type adds to the flattening of a struct that has it at `offset_bytes`.
    const fn flatten(&self, offset_bytes: u32) -> Flat {
        let (size_bytes, kind) = match self {
            Type::Int { size_bytes, .. } if *size_bytes <= 8 => (*size_bytes, FlatKind::Int),
            Type::F16 => (2, FlatKind::Fp),
            Type::F32 => (4, FlatKind::Fp),
            Type::F64 => (8, FlatKind::Fp),
            Type::Struct(st) => return st.flat.moved(offset_bytes),
            // Wider than a register, or a pointer: the C compilers take "integer" at its word and
            // do not flatten a pointer (GCC riscv_flatten_aggregate_field, Clang
            // detectFPCCEligibleStructHelper).
            Type::Int { .. } | Type::Ptr | Type::F128 | Type::Void => return Flat::Opaque,
        };
        Flat::One(FlatField {
            offset_bytes,
            size_bytes,
            kind,
        })
    }
}

/// A member of a struct, where it is and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// `offsetof`.
    pub offset_bytes: u32,
    /// Its type; a struct for a nested one.
    pub ty: Type,
}

/// A struct or union passed by value: size, alignment, and what it flattens to.
///
/// An empty one is ignored, as the psABI says. (GCC 14 lets an empty struct that is declared with
/// an alignment of 16 move the stack arguments behind it; no model says so.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StructType {
    size_bytes: u32,
    align_bytes: u32,
    pub(super) flat: Flat,
}

impl StructType {
    /// A struct whose members stand at known offsets, as `size_of`, `align_of` and `offset_of!`
    /// give them, in memory order. Arrays are written element by element, empty members may be left
    /// out. Each bit-field is a member of its own, an integer of the bytes it touches; one of width
    /// zero is left out.
    ///
    /// # Errors
    /// [`ModelError::StructLayout`]: the alignment is no power of two, the size is no multiple of
    /// it, or a member ends outside. [`ModelError::IntSize`], [`ModelError::VoidObject`]: a member
    /// is no object type.
    pub const fn of(
        size_bytes: u32,
        align_bytes: u32,
        members: &[Member],
    ) -> Result<StructType, ModelError> {
        let bad = Err(ModelError::StructLayout {
            size_bytes,
            align_bytes,
        });
        if !align_bytes.is_power_of_two() || size_bytes % align_bytes != 0 {
            return bad;
        }
        let mut flat = Flat::Empty;
        let mut i = 0;
        while i < members.len() {
            let Member { offset_bytes, ty } = members[i];
            if let Err(e) = ty.check_object() {
                return Err(e);
            }
            match offset_bytes.checked_add(ty.size_bytes()) {
                Some(end) if end <= size_bytes => {}
                _ => return bad,
            }
            flat = flat.then(ty.flatten(offset_bytes));
            i += 1;
        }
        Ok(StructType {
            size_bytes,
            align_bytes,
            flat,
        })
    }

    /// A C struct of these members in this order, laid out as C does: each at the next multiple of
    /// its alignment, the size rounded up to the largest alignment.
    ///
    /// # Errors
    /// [`ModelError::IntSize`], [`ModelError::VoidObject`]: a member is no object type.
    /// [`ModelError::StructLayout`]: larger than 4 GiB.
    pub const fn c(members: &[Type]) -> Result<StructType, ModelError> {
        let mut end: u64 = 0;
        let mut align_bytes: u32 = 1;
        let mut flat = Flat::Empty;
        let mut i = 0;
        while i < members.len() {
            let ty = members[i];
            if let Err(e) = ty.check_object() {
                return Err(e);
            }
            let offset = end.next_multiple_of(ty.align_bytes() as u64);
            end = offset + ty.size_bytes() as u64;
            if end > StructType::MAX_SIZE_BYTES {
                return Err(ModelError::StructLayout {
                    size_bytes: u32::MAX,
                    align_bytes,
                });
            }
            if ty.align_bytes() > align_bytes {
                align_bytes = ty.align_bytes();
            }
            flat = flat.then(ty.flatten(offset as u32));
            i += 1;
        }
        let size = end.next_multiple_of(align_bytes as u64);
        if size > StructType::MAX_SIZE_BYTES {
            return Err(ModelError::StructLayout {
                size_bytes: u32::MAX,
                align_bytes,
            });
        }
        Ok(StructType {
            size_bytes: size as u32,
            align_bytes,
            flat,
        })
    }

    /// A complex number: passed as a struct of two reals.
    ///
    /// # Errors
    /// As [`StructType::c`].
    pub const fn complex(real: Type) -> Result<StructType, ModelError> {
        StructType::c(&[real, real])
    }

    /// A union, an empty C++ class (size 1), or anything else that is never flattened: it travels
    /// as an integer of its size would, or by reference when larger than 16 bytes.
    ///
    /// # Errors
    /// [`ModelError::StructLayout`]: the alignment is no power of two, or the size is no multiple
    /// of it.
    pub const fn opaque(size_bytes: u32, align_bytes: u32) -> Result<StructType, ModelError> {
        match StructType::of(size_bytes, align_bytes, &[]) {
            // An empty union is ignored wherever it stands, like an empty struct.
            Ok(st) if size_bytes != 0 => Ok(StructType {
                flat: Flat::Opaque,
                ..st
            }),
            other => other,
        }
    }

    /// `sizeof`.
    pub const fn size_bytes(&self) -> u32 {
        self.size_bytes
    }

    /// `_Alignof`.
    pub const fn align_bytes(&self) -> u32 {
        self.align_bytes
    }

    /// Offsets stay exact in `u32`.
    const MAX_SIZE_BYTES: u64 = u32::MAX as u64;
}

/// A struct seen through its nesting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Flat {
    /// Nothing in it.
    Empty,
    /// One scalar.
    One(FlatField),
    /// Two scalars, at least one of them floating-point.
    Two(FlatField, FlatField),
    /// More than two scalars, two integers, a scalar that no register holds, or a union: the
    /// floating-point registers are out of question.
    Opaque,
}

/// One scalar of a flattened struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlatField {
    pub(super) offset_bytes: u32,
    pub(super) size_bytes: u8,
    pub(super) kind: FlatKind,
}

/// Which register file a flattened scalar wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FlatKind {
    Int,
    Fp,
}

impl Flat {
    /// The members of `self`, then those of `next`.
    const fn then(self, next: Flat) -> Flat {
        match (self, next) {
            (flat, Flat::Empty) | (Flat::Empty, flat) => flat,
            (Flat::One(a), Flat::One(b)) => match (a.kind, b.kind) {
                (FlatKind::Int, FlatKind::Int) => Flat::Opaque,
                _ => Flat::Two(a, b),
            },
            _ => Flat::Opaque,
        }
    }

    /// The same, `by_bytes` further on. Cannot overflow where the enclosing struct was checked to
    /// hold it; saturates until that check has been made.
    const fn moved(self, by_bytes: u32) -> Flat {
        match self {
            Flat::One(a) => Flat::One(a.moved(by_bytes)),
            Flat::Two(a, b) => Flat::Two(a.moved(by_bytes), b.moved(by_bytes)),
            other => other,
        }
    }
}

impl FlatField {
    const fn moved(self, by_bytes: u32) -> FlatField {
        FlatField {
            offset_bytes: self.offset_bytes.saturating_add(by_bytes),
            ..self
        }
    }
}
