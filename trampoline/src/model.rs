//! What LP64D says of a function, as data: where each argument and the return value are.
//!
//! [`FuncModel`] is the user-space twin of the kernel's `struct btf_func_model`. The kernel knows
//! at most twelve integer arguments; here is the whole psABI: floating-point registers, structs
//! in one or two registers, split between `a7` and the stack or by reference, arguments on the
//! stack, returns in up to two registers, variadic and unknown functions.
//!
//! ```text
//! double f(int n, struct { float x; long k; } s, __int128 w, struct { char b[40]; } big)
//!
//! slot  arg  bytes  where  above the bytes
//!    0    0   0..4  a0     sign of bit 31
//!    1    1   0..4  fa0    NaN-boxed
//!    2    1   8..16 a1
//!    3    2   0..8  a2
//!    4    2   8..16 a3
//!    5    3   ref   a4     address of 40 bytes
//!  ret        0..8  fa0
//! ```
//!
//! The slots, in this order, are the argument slots of the BPF context. A struct takes as many
//! as it takes registers and stack words; an empty one takes none.
//!
//! Key types: [`FuncModel`], [`Slot`], [`Type`], [`Ret`]. Neighbours: the frame and the images of
//! this crate save, restore and copy what the model lists. Pure: no unsafe, no I/O, any host.
//!
//! Source: RISC-V ELF psABI, "Procedure Calling Convention"; `include/linux/bpf.h`
//! `struct btf_func_model`; `kernel/bpf/btf.c` `btf_distill_func_proto`.

mod place;
mod slot;
#[cfg(test)]
mod tests;
mod types;

pub use slot::{Loc, Pass, Slot, SlotOf, Upper};
pub use types::{Member, Sign, StructType, Type};

use place::{Named, Place};

/// Argument registers of each file: `a0` to `a7`, `fa0` to `fa7`.
pub const NR_ARG_REGS: u8 = 8;

/// The most argument slots a model has. C promises 127 parameters (C11 5.2.4.1), and there may be a
/// hidden pointer before them.
pub const MAX_ARG_SLOTS: usize = 128;

/// Why a signature has no model. The kernel's `btf_distill_func_proto` answers `-EINVAL` and
/// `-ENOTSUPP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// C has no integer of this size (`-EINVAL`).
    #[error("an integer of {size_bytes} bytes; LP64D has 1, 2, 4, 8 and 16")]
    IntSize {
        /// What was asked for.
        size_bytes: u8,
    },
    /// `void` as an argument or a member (`-EINVAL`).
    #[error("void as the type of an argument or a member")]
    VoidObject,
    /// Alignment, size and members of a struct do not fit each other (`-EINVAL`).
    #[error(
        "no struct has size {size_bytes}, alignment {align_bytes} and these members: \
         alignment is a power of two, size its multiple, members inside, 4 GiB at most"
    )]
    StructLayout {
        /// Its size.
        size_bytes: u32,
        /// Its alignment.
        align_bytes: u32,
    },
    /// The arguments take more slots than a frame is made for (`-ENOTSUPP`; kernel:
    /// `MAX_BPF_FUNC_ARGS`).
    #[error("arguments take more than {max} slots of 8 bytes")]
    TooManySlots {
        /// [`MAX_ARG_SLOTS`].
        max: usize,
    },
}

/// Whether a function takes arguments beyond the declared ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variadic {
    /// The declaration says all.
    No,
    /// `...` after the named arguments.
    Yes {
        /// How many are named.
        nr_named: u8,
    },
    /// Nothing is known of the function ([`FuncModel::untyped`]).
    Unknown,
}

/// How far above `sp` the caller has put arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StackArgs {
    /// This many 8-byte words from `sp` at entry, gaps for alignment included. Who calls the
    /// function from a frame of their own copies so many.
    Known {
        /// Words.
        slots: u16,
    },
    /// Nobody but the caller knows: the function can only be called with the caller's `sp`.
    Unknown,
}

/// Where a return value is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ret {
    slots: Vec<Slot>,
    pass: Pass,
}

impl Ret {
    /// The registers that carry it, in memory order of what they hold: none, or one or two of `a0`,
    /// `a1`, `fa0`, `fa1`; all four of them, in this order, when nothing is known of the function.
    ///
    /// `a0` when it is returned by reference. GCC leaves the address there; the psABI does not ask
    /// for it, and LLVM does not. An image puts there what the [`SlotOf::RetPtr`] argument was.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// By value, or by reference to memory of the caller whose address is the hidden first argument.
    pub fn pass(&self) -> Pass {
        self.pass
    }
}

/// Where the arguments and the return value of one function are (kernel: `struct btf_func_model`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FuncModel {
    slots: Vec<Slot>,
    ret: Ret,
    variadic: Variadic,
    stack_args: StackArgs,
    int_regs_used: u8,
    fp_regs_used: u8,
}

impl FuncModel {
    /// The model of `ret f(args…)`.
    ///
    /// # Errors
    /// [`ModelError`]: a type that cannot be passed, or more than [`MAX_ARG_SLOTS`] slots.
    pub fn new(args: &[Type], ret: Type) -> Result<FuncModel, ModelError> {
        let (place, ret) = place_named(args, &ret)?;
        let stack_args = StackArgs::Known {
            slots: place.stack_slots,
        };
        Ok(FuncModel::from_place(place, ret, Variadic::No, stack_args))
    }

    /// The model of `ret f(named…, ...)`. After the slots of the named arguments come those integer
    /// registers that may hold variadic ones, as [`SlotOf::Unknown`].
    ///
    /// # Errors
    /// As [`FuncModel::new`].
    pub fn variadic(named: &[Type], ret: Type) -> Result<FuncModel, ModelError> {
        let (mut place, ret) = place_named(named, &ret)?;
        while place.int_regs < NR_ARG_REGS {
            let loc = place.next_int_or_stack();
            place.slots.push(Slot::unknown(loc, SlotOf::Unknown));
        }
        // `place_named` has bounded the arguments, and each takes a slot or is empty.
        let nr_named = u8::try_from(named.len()).unwrap_or(u8::MAX);
        Ok(FuncModel::from_place(
            place,
            ret,
            Variadic::Yes { nr_named },
            StackArgs::Unknown,
        ))
    }

    /// Where the arguments of one particular call of a variadic function are: the slots of `named`,
    /// then those of `extra`, whose types have been through C's default promotions.
    ///
    /// # Errors
    /// As [`FuncModel::new`].
    pub fn variadic_call(
        named: &[Type],
        extra: &[Type],
        ret: Type,
    ) -> Result<Vec<Slot>, ModelError> {
        let (mut place, _) = place_named(named, &ret)?;
        for (i, ty) in extra.iter().enumerate() {
            place.arg(ty, Named::Variadic, arg_number(named.len() + i)?)?;
        }
        Ok(place.slots)
    }

    /// The model of a function of which nothing is known: all sixteen argument registers, `a0` to
    /// `a7` then `fa0` to `fa7`, are its argument slots; `a0`, `a1`, `fa0`, `fa1` its return slots.
    pub fn untyped() -> FuncModel {
        let args = (0..NR_ARG_REGS)
            .map(Loc::Int)
            .chain((0..NR_ARG_REGS).map(Loc::Fp));
        let rets = [Loc::Int(0), Loc::Int(1), Loc::Fp(0), Loc::Fp(1)];
        FuncModel {
            slots: args
                .map(|loc| Slot::unknown(loc, SlotOf::Unknown))
                .collect(),
            ret: Ret {
                slots: rets.map(|loc| Slot::unknown(loc, SlotOf::Unknown)).to_vec(),
                pass: Pass::Value,
            },
            variadic: Variadic::Unknown,
            stack_args: StackArgs::Unknown,
            int_regs_used: NR_ARG_REGS,
            fp_regs_used: NR_ARG_REGS,
        }
    }

    fn from_place(place: Place, ret: Ret, variadic: Variadic, stack_args: StackArgs) -> FuncModel {
        let Place {
            slots,
            int_regs,
            fp_regs,
            ..
        } = place;
        FuncModel {
            slots,
            ret,
            variadic,
            stack_args,
            int_regs_used: int_regs,
            fp_regs_used: fp_regs,
        }
    }

    /// The argument slots of the BPF context, in its order: the hidden return pointer if there is
    /// one, then each argument's, in memory order of what they hold.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// How many argument slots the BPF context has (kernel: `nr_arg_slots`).
    pub fn nr_arg_slots(&self) -> usize {
        self.slots.len()
    }

    /// The context index of argument `arg`'s first slot, and its slots. An empty slice for an empty
    /// struct, and for an argument the model does not know.
    pub fn arg_slots(&self, arg: u8) -> (usize, &[Slot]) {
        let is_its = |slot: &&Slot| slot.of == SlotOf::Arg(arg);
        let first = self.slots.iter().take_while(|slot| !is_its(slot)).count();
        let len = self.slots[first..].iter().take_while(is_its).count();
        (first, &self.slots[first..first + len])
    }

    /// The return value.
    pub fn ret(&self) -> &Ret {
        &self.ret
    }

    /// Whether there are arguments beyond the listed ones.
    pub fn variadic_kind(&self) -> Variadic {
        self.variadic
    }

    /// How much of the caller's stack belongs to the arguments.
    pub fn stack_args(&self) -> StackArgs {
        self.stack_args
    }

    /// `a0` up to but not including `a<n>` carry something at entry.
    pub fn int_regs_used(&self) -> u8 {
        self.int_regs_used
    }

    /// `fa0` up to but not including `fa<n>` carry something at entry.
    pub fn fp_regs_used(&self) -> u8 {
        self.fp_regs_used
    }
}

/// The return value is placed as a first argument would be, in registers of its own. By reference:
/// its address comes before the arguments.
fn place_named(args: &[Type], ret: &Type) -> Result<(Place, Ret), ModelError> {
    let mut of_ret = Place::default();
    if *ret != Type::Void {
        of_ret.arg(ret, Named::Named, SlotOf::Ret)?;
    }
    let ret = Ret {
        pass: of_ret.slots.first().map_or(Pass::Value, |slot| slot.pass),
        slots: of_ret.slots,
    };
    let mut place = Place::default();
    if ret.pass != Pass::Value {
        place.arg(&Type::Ptr, Named::Named, SlotOf::RetPtr)?;
    }
    for (i, ty) in args.iter().enumerate() {
        place.arg(ty, Named::Named, arg_number(i)?)?;
    }
    Ok((place, ret))
}

/// Empty structs take no slot, so that the number of arguments needs a bound of its own.
fn arg_number(i: usize) -> Result<SlotOf, ModelError> {
    match u8::try_from(i) {
        Ok(n) if usize::from(n) < MAX_ARG_SLOTS => Ok(SlotOf::Arg(n)),
        _ => Err(ModelError::TooManySlots { max: MAX_ARG_SLOTS }),
    }
}
