//! Signatures worked by hand from the psABI. The compiler's own answer for hundreds of random ones
//! is compared in the root package's `tests/abi_model.rs`.

use super::*;

/// One line per slot: `owner[offset..end]@place upper`.
fn show(slots: &[Slot]) -> Vec<String> {
    let line = |s: &Slot| {
        let of = match s.of {
            SlotOf::Arg(n) => format!("{n}"),
            SlotOf::RetPtr => "retptr".into(),
            SlotOf::Ret => "ret".into(),
            SlotOf::Unknown => "?".into(),
        };
        let end = s.offset_bytes + u32::from(s.size_bytes);
        let what = match s.pass {
            Pass::Value => format!("{}..{end}", s.offset_bytes),
            Pass::Reference { size_bytes } => format!("&{size_bytes}"),
        };
        let upper = match s.upper {
            Upper::Full => "",
            Upper::Zero => " zero",
            Upper::Sign => " sign",
            Upper::NanBox => " box",
            Upper::Undefined => " any",
        };
        format!("{of}[{what}]@{}{upper}", s.loc)
    };
    slots.iter().map(line).collect()
}

fn args(args: &[Type]) -> Vec<String> {
    show(FuncModel::new(args, Type::Void).unwrap().slots())
}

fn ret(ty: Type) -> Vec<String> {
    show(FuncModel::new(&[], ty).unwrap().ret().slots())
}

fn st(members: &[Type]) -> Type {
    Type::Struct(StructType::c(members).unwrap())
}

fn opaque(size_bytes: u32, align_bytes: u32) -> Type {
    Type::Struct(StructType::opaque(size_bytes, align_bytes).unwrap())
}

/// `n` `long`s, which fill `a0` to `a<n-1>`.
fn longs(n: usize, then: &[Type]) -> Vec<Type> {
    [&vec![Type::I64; n], then].concat()
}

fn doubles(n: usize, then: &[Type]) -> Vec<Type> {
    [&vec![Type::F64; n], then].concat()
}

/// The slots after the first `n`.
fn after(n: usize, all: Vec<String>) -> Vec<String> {
    all[n..].to_vec()
}

use Type as T;

#[test]
fn narrow_integers_are_extended_by_their_sign_to_32_bits_then_from_bit_31() {
    assert_eq!(
        args(&[
            T::I8,
            T::U8,
            T::I16,
            T::U16,
            T::I32,
            T::U32,
            T::BOOL,
            T::Ptr
        ]),
        [
            "0[0..1]@a0 sign",
            "1[0..1]@a1 zero",
            "2[0..2]@a2 sign",
            "3[0..2]@a3 zero",
            "4[0..4]@a4 sign",
            "5[0..4]@a5 sign",
            "6[0..1]@a6 zero",
            "7[0..8]@a7"
        ]
    );
    assert_eq!(after(8, args(&longs(8, &[T::U16]))), ["8[0..2]@0(sp) zero"]);
}

#[test]
fn floats_take_their_own_registers_then_integer_ones_then_the_stack() {
    assert_eq!(
        args(&[T::I32, T::F32, T::I32, T::F64])[1],
        "1[0..4]@fa0 box"
    );
    assert_eq!(
        after(8, args(&doubles(8, &[T::F32, T::F64]))),
        ["8[0..4]@a0 any", "9[0..8]@a1"]
    );
    let full: Vec<T> = longs(8, &doubles(8, &[T::F32, T::F64]));
    assert_eq!(
        after(16, args(&full)),
        ["16[0..4]@0(sp) any", "17[0..8]@8(sp)"]
    );
    // Integers exhausted does not keep floats out of fa0.
    assert_eq!(after(8, args(&longs(8, &[T::F16]))), ["8[0..2]@fa0 box"]);
}

#[test]
fn twice_xlen_goes_in_pairs_even_split_between_a7_and_the_stack() {
    assert_eq!(args(&[T::I32, T::I128])[1..], ["1[0..8]@a1", "1[8..16]@a2"]);
    assert_eq!(
        after(7, args(&longs(7, &[T::I128]))),
        ["7[0..8]@a7", "7[8..16]@0(sp)"]
    );
    // long double, and a named one needs no even pair.
    assert_eq!(
        after(1, args(&longs(1, &[T::F128]))),
        ["1[0..8]@a1", "1[8..16]@a2"]
    );
    // On the stack it is aligned: word 1 is a gap, and counts as stack.
    let m = FuncModel::new(&longs(9, &[T::I128]), T::Void).unwrap();
    assert_eq!(
        show(&m.slots()[8..]),
        ["8[0..8]@0(sp)", "9[0..8]@16(sp)", "9[8..16]@24(sp)"]
    );
    assert_eq!(m.stack_args(), StackArgs::Known { slots: 4 });
    // An aligned pair that begins in a7 is not realigned in memory.
    let split = st(&[T::I128]);
    assert_eq!(
        after(7, args(&longs(7, &[split]))),
        ["7[0..8]@a7", "7[8..16]@0(sp)"]
    );
}

#[test]
fn structs_of_integers_travel_as_memory_words() {
    assert_eq!(args(&[st(&[T::I8, T::I16, T::I32])]), ["0[0..8]@a0"]);
    assert_eq!(args(&[st(&[T::I32])]), ["0[0..4]@a0 any"]);
    assert_eq!(args(&[st(&[T::I64, T::I8])]), ["0[0..8]@a0", "0[8..16]@a1"]);
    assert_eq!(args(&[opaque(12, 4)]), ["0[0..8]@a0", "0[8..12]@a1 any"]);
    assert_eq!(
        args(&[opaque(24, 8), T::I32]),
        ["0[&24]@a0", "1[0..4]@a1 sign"]
    );
    assert_eq!(
        after(8, args(&longs(8, &[opaque(24, 8)]))),
        ["8[&24]@0(sp)"]
    );
}

#[test]
fn empty_structs_are_ignored() {
    let empty = st(&[]);
    assert_eq!(args(&[empty, T::I32, empty]), ["1[0..4]@a0 sign"]);
    assert_eq!(ret(empty), [] as [&str; 0]);
    assert_eq!(args(&[st(&[empty, T::F32, empty])]), ["0[0..4]@fa0 box"]);
    // C++: one byte.
    assert_eq!(args(&[opaque(1, 1)]), ["0[0..1]@a0 any"]);
}

#[test]
fn small_structs_with_floats_are_flattened() {
    let nested = st(&[st(&[T::F32]), st(&[st(&[]), T::F32])]);
    assert_eq!(args(&[nested]), ["0[0..4]@fa0 box", "0[4..8]@fa1 box"]);
    assert_eq!(
        args(&[st(&[T::F32, T::F64])]),
        ["0[0..4]@fa0 box", "0[8..16]@fa1"]
    );
    assert_eq!(
        args(&[st(&[T::F64, T::I8])]),
        ["0[0..8]@fa0", "0[8..9]@a0 any"]
    );
    assert_eq!(
        args(&[st(&[T::I64, T::F32])]),
        ["0[0..8]@a0", "0[8..12]@fa0 box"]
    );
    let complex = T::Struct(StructType::complex(T::F32).unwrap());
    assert_eq!(args(&[complex]), ["0[0..4]@fa0 box", "0[4..8]@fa1 box"]);
}

#[test]
fn flattening_looks_at_fields_not_at_the_size() {
    // struct { float a __attribute__((aligned(16))); int b __attribute__((aligned(16))); }
    let wide = StructType::of(
        32,
        16,
        &[
            Member {
                offset_bytes: 0,
                ty: T::F32,
            },
            Member {
                offset_bytes: 16,
                ty: T::I32,
            },
        ],
    );
    let wide = T::Struct(wide.unwrap());
    assert_eq!(args(&[wide]), ["0[0..4]@fa0 box", "0[16..20]@a0 any"]);
    assert_eq!(after(8, args(&doubles(8, &[wide]))), ["8[&32]@a0"]);
}

#[test]
fn what_is_not_flattened() {
    for members in [
        &[T::F32, T::F32, T::F32][..],
        &[T::F32, T::I8, T::I8],
        &[T::I32, T::I32],
        &[T::F32, T::Ptr],
        &[T::F32, opaque(4, 4)],
    ] {
        let all = args(&[st(members)]);
        assert!(all.iter().all(|s| s.contains("@a")), "{members:?}: {all:?}");
    }
    assert_eq!(args(&[st(&[T::F128])]), ["0[0..8]@a0", "0[8..16]@a1"]);
    assert_eq!(args(&[st(&[T::F32, T::I128])]), ["0[&32]@a0"]);
}

#[test]
fn flattened_structs_fall_back_when_registers_are_short() {
    let ff = st(&[T::F32, T::F32]);
    assert_eq!(
        after(7, args(&doubles(7, &[ff, T::F32]))),
        ["7[0..8]@a0", "8[0..4]@fa7 box"]
    );
    let fi = st(&[T::F64, T::I32]);
    assert_eq!(
        after(8, args(&doubles(8, &[fi]))),
        ["8[0..8]@a0", "8[8..16]@a1"]
    );
    // No integer register: the whole struct goes on the stack, fa0 stays free.
    assert_eq!(
        after(8, args(&longs(8, &[fi, T::F32]))),
        ["8[0..8]@0(sp)", "8[8..16]@8(sp)", "9[0..4]@fa0 box"]
    );
}

#[test]
fn returns() {
    assert_eq!(ret(T::Void), [] as [&str; 0]);
    assert_eq!(ret(T::U32), ["ret[0..4]@a0 sign"]);
    assert_eq!(ret(T::F32), ["ret[0..4]@fa0 box"]);
    assert_eq!(ret(T::I128), ["ret[0..8]@a0", "ret[8..16]@a1"]);
    assert_eq!(
        ret(st(&[T::F32, T::F64])),
        ["ret[0..4]@fa0 box", "ret[8..16]@fa1"]
    );
    assert_eq!(
        ret(st(&[T::I32, T::F64])),
        ["ret[0..4]@a0 any", "ret[8..16]@fa0"]
    );
    assert_eq!(ret(opaque(16, 8)), ["ret[0..8]@a0", "ret[8..16]@a1"]);
}

#[test]
fn a_large_return_value_is_a_hidden_first_argument() {
    let m = FuncModel::new(&[T::I32, T::F64], opaque(40, 8)).unwrap();
    assert_eq!(
        show(m.slots()),
        ["retptr[0..8]@a0", "0[0..4]@a1 sign", "1[0..8]@fa0"]
    );
    assert_eq!(m.ret().pass(), Pass::Reference { size_bytes: 40 });
    assert_eq!(show(m.ret().slots()), ["ret[&40]@a0"]);
    assert_eq!(m.arg_slots(0), (1, &m.slots()[1..2]));
}

#[test]
fn variadic_functions_keep_every_integer_register() {
    let m = FuncModel::variadic(&[T::Ptr, T::F64], T::I32).unwrap();
    let slots = show(m.slots());
    assert_eq!(slots[..3], ["0[0..8]@a0", "1[0..8]@fa0", "?[0..8]@a1"]);
    assert_eq!(slots.len(), 9);
    assert_eq!((m.int_regs_used(), m.fp_regs_used()), (8, 1));
    assert_eq!(m.stack_args(), StackArgs::Unknown);
    assert_eq!(m.variadic_kind(), Variadic::Yes { nr_named: 2 });
}

#[test]
fn variadic_arguments_follow_the_integer_convention_in_even_pairs() {
    let call = |named: &[T], extra: &[T]| {
        let slots = FuncModel::variadic_call(named, extra, T::Void).unwrap();
        after(named.len(), show(&slots))
    };
    assert_eq!(call(&[T::Ptr], &[T::F64]), ["1[0..8]@a1"]);
    assert_eq!(call(&[T::Ptr], &[T::I128]), ["1[0..8]@a2", "1[8..16]@a3"]);
    assert_eq!(call(&[T::Ptr], &[st(&[T::F32, T::F32])]), ["1[0..8]@a1"]);
    assert_eq!(
        call(&[T::Ptr], &[opaque(16, 8)]),
        ["1[0..8]@a1", "1[8..16]@a2"]
    );
    // a7 is left unused, and nothing after the pair goes back to it.
    assert_eq!(
        call(&longs(7, &[]), &[T::F128, T::I32]),
        ["7[0..8]@0(sp)", "7[8..16]@8(sp)", "8[0..4]@16(sp) sign"]
    );
}

#[test]
fn untyped_is_all_argument_registers() {
    let m = FuncModel::untyped();
    let locs: Vec<_> = m.slots().iter().map(|s| s.loc.to_string()).collect();
    assert_eq!(locs[..2], ["a0", "a1"]);
    assert_eq!(locs[7..9], ["a7", "fa0"]);
    assert_eq!(locs.len(), 16);
    let rets: Vec<_> = m.ret().slots().iter().map(|s| s.loc.to_string()).collect();
    assert_eq!(rets, ["a0", "a1", "fa0", "fa1"]);
    assert_eq!((m.int_regs_used(), m.fp_regs_used()), (8, 8));
    assert_eq!(m.stack_args(), StackArgs::Unknown);
}

#[test]
fn arg_slots_finds_an_argument_among_the_slots() {
    let m = FuncModel::new(&[T::I32, st(&[]), st(&[T::I64, T::I64]), T::F32], T::Void).unwrap();
    assert_eq!(m.arg_slots(0), (0, &m.slots()[0..1]));
    assert!(m.arg_slots(1).1.is_empty());
    assert_eq!(m.arg_slots(2), (1, &m.slots()[1..3]));
    assert_eq!(m.arg_slots(3), (3, &m.slots()[3..4]));
    assert!(m.arg_slots(4).1.is_empty());
}

#[test]
fn limits_are_errors() {
    let new = |args: &[T], ret| FuncModel::new(args, ret).map(|m| m.nr_arg_slots());
    let too_many = ModelError::TooManySlots { max: MAX_ARG_SLOTS };
    assert_eq!(new(&[T::I64; 127], opaque(17, 1)), Ok(128));
    assert_eq!(new(&[T::I64; 128], opaque(17, 1)), Err(too_many));
    assert_eq!(new(&[T::I128; 65], T::Void), Err(too_many));
    assert_eq!(new(&[st(&[]); 1000], T::Void), Err(too_many));
    assert_eq!(
        FuncModel::variadic(&[T::F64; 129], T::Void).map(|_| ()),
        Err(too_many)
    );
    assert_eq!(new(&[T::Void], T::Void), Err(ModelError::VoidObject));
    let odd = T::Int {
        size_bytes: 3,
        sign: Sign::Signed,
    };
    assert_eq!(
        new(&[odd], T::Void),
        Err(ModelError::IntSize { size_bytes: 3 })
    );
    assert_eq!(new(&[], odd), Err(ModelError::IntSize { size_bytes: 3 }));
}

#[test]
fn impossible_structs_are_errors() {
    let member = |offset_bytes, ty| [Member { offset_bytes, ty }];
    for bad in [
        StructType::of(12, 8, &[]),
        StructType::of(12, 3, &[]),
        StructType::of(0, 0, &[]),
        StructType::of(8, 4, &member(5, T::I32)),
        StructType::of(8, 4, &member(u32::MAX, T::I32)),
        StructType::opaque(3, 2),
    ] {
        assert!(
            matches!(bad, Err(ModelError::StructLayout { .. })),
            "{bad:?}"
        );
    }
    assert_eq!(
        StructType::of(8, 4, &member(0, T::Void)),
        Err(ModelError::VoidObject)
    );
    assert_eq!(StructType::c(&[T::Void]), Err(ModelError::VoidObject));
    let huge = opaque(1 << 31, 1);
    assert!(matches!(
        StructType::c(&[huge, huge]),
        Err(ModelError::StructLayout { .. })
    ));
}

#[test]
fn c_layout() {
    let layout = |members: &[T]| {
        let st = StructType::c(members).unwrap();
        (st.size_bytes(), st.align_bytes())
    };
    assert_eq!(layout(&[]), (0, 1));
    assert_eq!(layout(&[T::I8, T::I32, T::I8]), (12, 4));
    assert_eq!(layout(&[T::I8, T::I128]), (32, 16));
    assert_eq!(layout(&[st(&[T::I8, T::I16]), T::I8]), (6, 2));
}
