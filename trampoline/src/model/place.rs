//! The walk over an argument list: the next free integer register, floating-point register and
//! stack word, and which of them each argument takes.
//!
//! Key type: [`Place`]. Neighbours: [`super::FuncModel`] drives it.
//!
//! Source: RISC-V ELF psABI, "Integer Calling Convention" and "Hardware Floating-Point Calling
//! Convention".

use super::types::{Flat, FlatField, FlatKind, Sign, Type};
use super::{Loc, MAX_ARG_SLOTS, ModelError, NR_ARG_REGS, Pass, Slot, SlotOf, Upper};

/// Whether an argument is in the declaration or stands for the `...`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Named,
    Variadic,
}

/// What the arguments so far have taken.
#[derive(Default)]
pub(super) struct Place {
    pub(super) slots: Vec<Slot>,
    pub(super) int_regs: u8,
    pub(super) fp_regs: u8,
    pub(super) stack_slots: u16,
}

impl Place {
    /// Gives `ty` its place. An empty struct takes none.
    pub(super) fn arg(&mut self, ty: &Type, named: Named, of: SlotOf) -> Result<(), ModelError> {
        ty.check_object()?;
        if named == Named::Variadic || !self.in_fp_regs(ty, of) {
            self.by_integer_convention(ty, named, of);
        }
        if self.slots.len() > MAX_ARG_SLOTS {
            return Err(ModelError::TooManySlots { max: MAX_ARG_SLOTS });
        }
        Ok(())
    }

    /// Hardware floating-point convention. False: it does not apply, or registers are short.
    fn in_fp_regs(&mut self, ty: &Type, of: SlotOf) -> bool {
        let whole = |size_bytes| FlatField {
            offset_bytes: 0,
            size_bytes,
            kind: FlatKind::Fp,
        };
        let flat = match ty {
            Type::F16 => Flat::One(whole(2)),
            Type::F32 => Flat::One(whole(4)),
            Type::F64 => Flat::One(whole(8)),
            Type::Struct(st) => st.flat,
            _ => return false,
        };
        let fields = match flat {
            Flat::One(a) if a.kind == FlatKind::Fp => [Some(a), None],
            Flat::Two(a, b) => [Some(a), Some(b)],
            _ => return false,
        };
        let wanted = |kind| fields.iter().flatten().filter(|f| f.kind == kind).count();
        if wanted(FlatKind::Fp) > usize::from(NR_ARG_REGS - self.fp_regs)
            || wanted(FlatKind::Int) > usize::from(NR_ARG_REGS - self.int_regs)
        {
            return false;
        }
        for field in fields.into_iter().flatten() {
            let (loc, upper) = match field.kind {
                FlatKind::Fp => (self.next_fp(), Upper::NanBox),
                FlatKind::Int => (self.next_int_or_stack(), Upper::Undefined),
            };
            let upper = if field.size_bytes == 8 {
                Upper::Full
            } else {
                upper
            };
            let FlatField {
                offset_bytes,
                size_bytes,
                ..
            } = field;
            self.slots.push(Slot {
                loc,
                of,
                offset_bytes,
                size_bytes,
                upper,
                pass: Pass::Value,
            });
        }
        true
    }

    fn by_integer_convention(&mut self, ty: &Type, named: Named, of: SlotOf) {
        let size_bytes = ty.size_bytes();
        if size_bytes > 16 {
            let loc = self.next_int_or_stack();
            let pass = Pass::Reference { size_bytes };
            self.slots.push(Slot {
                pass,
                ..Slot::unknown(loc, of)
            });
            return;
        }
        let pair_aligned = size_bytes > 0 && ty.align_bytes() > 8;
        if pair_aligned && named == Named::Variadic {
            self.int_regs = self.int_regs.next_multiple_of(2);
        }
        // A pair that has begun in a7 goes on in the first stack word, whatever its alignment.
        if pair_aligned && self.int_regs == NR_ARG_REGS {
            self.stack_slots = self.stack_slots.next_multiple_of(2);
        }
        for offset_bytes in (0..size_bytes).step_by(8) {
            let piece_bytes = (size_bytes - offset_bytes).min(8) as u8;
            let upper = if piece_bytes == 8 {
                Upper::Full
            } else {
                extension(ty)
            };
            let loc = self.next_int_or_stack();
            self.slots.push(Slot {
                loc,
                of,
                offset_bytes,
                size_bytes: piece_bytes,
                upper,
                pass: Pass::Value,
            });
        }
    }

    /// The next integer register, or the next stack word when there is none.
    pub(super) fn next_int_or_stack(&mut self) -> Loc {
        if self.int_regs < NR_ARG_REGS {
            self.int_regs += 1;
            Loc::Int(self.int_regs - 1)
        } else {
            self.stack_slots += 1;
            Loc::Stack(self.stack_slots - 1)
        }
    }

    /// The next floating-point register; the caller has seen that there is one.
    fn next_fp(&mut self) -> Loc {
        self.fp_regs += 1;
        Loc::Fp(self.fp_regs - 1)
    }
}

/// How the caller fills an integer register above a value that is narrower: by the type's sign up
/// to 32 bits, then by bit 31.
fn extension(ty: &Type) -> Upper {
    match ty {
        Type::Int {
            size_bytes: 1 | 2,
            sign: Sign::Unsigned,
        } => Upper::Zero,
        Type::Int { .. } => Upper::Sign,
        _ => Upper::Undefined,
    }
}
