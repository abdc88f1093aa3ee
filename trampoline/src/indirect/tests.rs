//! Listings of stubs and entries, as reviewed. They are those of the host's thread-local offsets:
//! the block 64 bytes from `tp`.

use rv64::Features;

use super::code::{self, EntrySpec, Made, StubSpec};
use crate::model::{FuncModel, StructType, Type};
use crate::prog::{Needs, RetFrom};

const BASE: u64 = 0x7000_0000;
const CELL: u64 = 0x7000_8008;

/// The instructions up to byte `end`, one a line.
fn listing(made: &Made, end: usize) -> String {
    let lines = rv64::disassemble(&made.bytes[..end], BASE);
    // Address and bytes stand before the instruction.
    let text = lines.map(|line| line.to_string().chars().skip(20).collect::<String>());
    text.collect::<Vec<_>>().join("\n")
}

fn drawing(indented: &str) -> String {
    let lines = indented.trim().lines().map(str::trim);
    lines.collect::<Vec<_>>().join("\n")
}

fn stub(args: &[Type]) -> Made {
    let model = FuncModel::new(args, Type::I64).unwrap();
    let spec = StubSpec {
        model: &model,
        cell: CELL,
    };
    code::stubs(&[spec], 0x1234, Features::RV64GC, BASE).unwrap()
}

fn prog(args: &[Type], ret: Type, from: RetFrom, needs: Needs) -> Made {
    let model = FuncModel::new(args, ret).unwrap();
    let spec = EntrySpec::Prog {
        model: &model,
        func: BASE + 0x1_0000,
        cookie: None,
        ret: from,
        needs,
    };
    code::entries(&[spec], Features::RV64GC, BASE).unwrap()
}

#[test]
fn a_stub_takes_twelve_instructions() {
    let made = stub(&[Type::I64, Type::F64]);
    let want = drawing(
        "
        addi sp, sp, -16
        sd ra, 8(sp)
        ld t1, 104(tp)
        bne t1, tp, 70000024
        auipc t1, 0x8
        ld t1, -4(t1)               # 70008008
        sd t1, 104(tp)
        jalr t1
        sd tp, 104(tp)
        ld ra, 8(sp)
        addi sp, sp, 16
        ret
        ",
    );
    assert_eq!(listing(&made, 0x24), want);
    let rows: Vec<_> = made
        .unwind
        .rows
        .iter()
        .map(|row| (row.off, row.cfa.off))
        .collect();
    // In the end: the way out of line, where the frame is there.
    assert_eq!(rows, [(0, 0), (2, 16), (4, 16), (0x22, 0), (0x24, 16)]);
}

#[test]
fn stack_arguments_are_copied_before_the_word_is_looked_at() {
    let made = stub(&[Type::U64; 10]);
    let want = drawing(
        "
        addi sp, sp, -32
        sd ra, 24(sp)
        ld t1, 32(sp)
        sd t1, 0(sp)
        ld t1, 40(sp)
        sd t1, 8(sp)
        ld t1, 104(tp)
        ",
    );
    assert_eq!(listing(&made, 16), want);
}

#[test]
fn an_image_extends_what_its_program_returns() {
    let args = [Type::I32, Type::F32];
    let made = prog(&args, Type::I32, RetFrom::Value, Needs::META);
    let want = drawing(
        "
        addi sp, sp, -48
        sd ra, 40(sp)
        sd s0, 32(sp)
        addi s0, sp, 48
        sd a0, 8(sp)
        fsd fa0, 16(sp)
        li t3, 1
        slli t3, t3, 62
        addi t3, t3, 2
        sd t3, 0(sp)
        addi a0, sp, 8
        jal ra, 70010000
        sd a0, 24(sp)
        lw a0, 24(sp)
        ld ra, 40(sp)
        ld s0, 32(sp)
        addi sp, sp, 48
        ret
        ",
    );
    assert_eq!(listing(&made, made.bytes.len()), want);
}

#[test]
fn results_in_other_registers_are_loaded_from_their_slots() {
    let last_of = |ret: Type, from| {
        let made = prog(&[Type::U64], ret, from, Needs::empty());
        let text = listing(&made, made.bytes.len());
        let lines = text
            .lines()
            .skip_while(|line| !line.starts_with("jal "))
            .skip(1);
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        lines[..lines.len() - 4].join("; ")
    };
    for (ret, want) in [
        (Type::Void, ""),
        (Type::U8, "sd a0, 8(sp); lbu a0, 8(sp)"),
        (Type::I16, "sd a0, 8(sp); lh a0, 8(sp)"),
        (Type::U32, "sd a0, 8(sp); lw a0, 8(sp)"),
        (Type::F64, "sd a0, 8(sp); fld fa0, 8(sp)"),
        (Type::F32, "sd a0, 8(sp); flw fa0, 8(sp)"),
    ] {
        assert_eq!(last_of(ret, RetFrom::Value), want, "{ret:?}");
    }
    let two = "ld a0, 16(sp); ld a1, 24(sp)";
    assert_eq!(last_of(Type::U128, RetFrom::Slots), two);
}

#[test]
fn zeros_fill_what_the_caller_reads() {
    let of = |ret: Type| {
        let model = FuncModel::new(&[], ret).unwrap();
        let made = code::entries(&[EntrySpec::Zeros(&model)], Features::RV64GC, BASE).unwrap();
        listing(&made, made.bytes.len()).replace('\n', "; ")
    };
    assert_eq!(of(Type::Void), "ret");
    assert_eq!(of(Type::I8), "li a0, 0; ret");
    assert_eq!(of(Type::U128), "li a0, 0; li a1, 0; ret");
    assert_eq!(of(Type::F64), "li t1, 0; fmv.d.x fa0, t1; ret");
    assert_eq!(
        of(Type::F32),
        "li t1, -1; slli t1, t1, 32; fmv.d.x fa0, t1; ret"
    );
    let big = StructType::c(&[Type::U128, Type::U64]).unwrap();
    assert_eq!(
        of(Type::Struct(big)),
        "li t1, 32; add t1, t1, a0; beq t1, a0, 70000012; addi t1, t1, -1; sb zero, 0(t1); \
         j 70000006; ret"
    );
}
