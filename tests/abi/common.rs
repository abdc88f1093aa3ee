//! What the ABI tests share: from generated C types to the model's, and from slots back to bytes.

use testlib::sig::{Layout, Sig, Signed, Ty};
use trampoline::model::{
    FuncModel, Member, ModelError, Pass, Sign, Slot, SlotOf, StructType, Type, Upper,
};

/// The model's word for a C type.
pub(crate) fn to_type(ty: &Ty) -> Type {
    match ty {
        Ty::Void => Type::Void,
        Ty::Bool => Type::BOOL,
        Ty::Int(size, signed) => Type::Int {
            size_bytes: *size as u8,
            sign: match signed {
                Signed::Yes => Sign::Signed,
                Signed::No => Sign::Unsigned,
            },
        },
        Ty::Ptr => Type::Ptr,
        Ty::Float(size) => real(*size),
        Ty::Complex(size) => Type::Struct(StructType::complex(real(*size)).unwrap()),
        Ty::Union(_) => {
            Type::Struct(StructType::opaque(ty.size_bytes(), ty.align_bytes()).unwrap())
        }
        Ty::Struct(..) => Type::Struct(to_struct(ty).unwrap()),
        Ty::Array(..) => panic!("C passes no arrays"),
    }
}

fn real(size: u32) -> Type {
    match size {
        2 => Type::F16,
        4 => Type::F32,
        8 => Type::F64,
        _ => Type::F128,
    }
}

/// A struct by C's layout rule where that is its layout, by offsets otherwise.
fn to_struct(ty: &Ty) -> Result<StructType, ModelError> {
    let mut members = Vec::new();
    for (at, member) in ty.member_offsets() {
        elements(at, member, &mut members);
    }
    let by_offsets = StructType::of(ty.size_bytes(), ty.align_bytes(), &members)?;
    if matches!(ty, Ty::Struct(_, Layout::C)) {
        let types: Vec<Type> = members.iter().map(|member| member.ty).collect();
        assert_eq!(StructType::c(&types)?, by_offsets, "{ty:?}");
    }
    Ok(by_offsets)
}

/// Arrays are written as their elements.
fn elements(at: u32, ty: &Ty, members: &mut Vec<Member>) {
    match ty {
        Ty::Array(element, n) => {
            (0..*n).for_each(|i| elements(at + i * element.size_bytes(), element, members));
        }
        _ => members.push(Member {
            offset_bytes: at,
            ty: to_type(ty),
        }),
    }
}

/// The model of a generated function.
pub(crate) fn model_of(sig: &Sig) -> FuncModel {
    let named: Vec<Type> = sig.named.iter().map(to_type).collect();
    match sig.extra {
        None => FuncModel::new(&named, to_type(&sig.ret)),
        Some(_) => FuncModel::variadic(&named, to_type(&sig.ret)),
    }
    .unwrap()
}

/// Puts the bytes of each argument (or of the return value, as argument 0) together again.
/// `value` gives a slot's 64 bits, by its index. Padding reads as zero. An error says which slot
/// is not extended as the model claims.
pub(crate) fn gather<'a>(
    slots: &[Slot],
    types: impl Iterator<Item = &'a Ty>,
    value: impl Fn(usize, &Slot) -> u64,
) -> Result<Vec<Vec<u8>>, String> {
    let masks: Vec<Vec<u8>> = types.map(Ty::value_mask).collect();
    let mut values: Vec<Vec<u8>> = masks.iter().map(|mask| vec![0; mask.len()]).collect();
    for (index, slot) in slots.iter().enumerate() {
        let bits = value(index, slot);
        let arg = match slot.of {
            SlotOf::Arg(arg) => usize::from(arg),
            SlotOf::Ret => 0,
            SlotOf::RetPtr | SlotOf::Unknown => continue,
        };
        match slot.pass {
            Pass::Value => {
                check_upper(slot, bits)?;
                let (at, len) = (slot.offset_bytes as usize, usize::from(slot.size_bytes));
                values[arg][at..][..len].copy_from_slice(&bits.to_le_bytes()[..len]);
            }
            Pass::Reference { size_bytes } => {
                assert_eq!(size_bytes as usize, values[arg].len());
                values[arg] = read(bits, size_bytes)?;
            }
        }
    }
    for (value, mask) in values.iter_mut().zip(&masks) {
        value
            .iter_mut()
            .zip(mask)
            .filter(|(_, mask)| **mask == 0)
            .for_each(|(byte, _)| *byte = 0);
    }
    Ok(values)
}

fn check_upper(slot: &Slot, bits: u64) -> Result<(), String> {
    let shift = 64 - 8 * u32::from(slot.size_bytes);
    let want = match slot.upper {
        Upper::Full | Upper::Undefined => return Ok(()),
        Upper::Zero => (bits << shift) >> shift,
        Upper::Sign => (((bits << shift) as i64) >> shift) as u64,
        Upper::NanBox => bits | !(u64::MAX >> shift),
    };
    if bits == want {
        Ok(())
    } else {
        Err(format!("{slot:?} holds {bits:#x}, not {want:#x}"))
    }
}

/// The bytes of an argument passed by reference: a temporary in the frame of its caller.
fn read(address: u64, size_bytes: u32) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; size_bytes as usize];
    let here = (&raw const bytes) as u64;
    if address.wrapping_sub(here) > 1 << 20 {
        return Err(format!("{address:#x} is not in a caller's frame"));
    }
    let from = address as *const u8;
    // SAFETY: 1. the address is in the frame of a function that has not returned (just checked), so
    // that it can be read, whatever stands there; 2. `bytes` has this length.
    unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    Ok(bytes)
}
