//! Atomic instructions: chapter 5.3; in 8 and 16 bits, and the acquiring load and the releasing
//! store, as the kernel's later instruction set has them.

use super::asm::atomic::*;
use super::asm::{B, DW, H, Insn, R0, R1, R3, R6, R10, Size, W};
use super::asm::{add, atomically, exit, ld_imm64, ldx, mov, st};
use super::table::Table;

/// 0x1122334455667788, and a neighbour that must stay.
const MEM: &str = "8877665544332211 ffffffffffffffff";
/// The second operand.
const SRC: u64 = 0x0f0f_0f0f_f0f0_f0f0;

/// What an operation makes of [`MEM`]: all of its first 8 bytes, afterwards.
struct Row {
    size: Size,
    /// What was there: the lower bits of the first 8 bytes.
    old: u64,
    add: u64,
    or: u64,
    and: u64,
    xor: u64,
    /// [`SRC`] instead of what was there.
    swapped: u64,
}

const ROWS: [Row; 4] = [
    Row {
        size: DW,
        old: 0x1122_3344_5566_7788,
        add: 0x2031_4254_4657_6878,
        or: 0x1f2f_3f4f_f5f6_f7f8,
        and: 0x0102_0304_5060_7080,
        xor: 0x1e2d_3c4b_a596_8778,
        swapped: SRC,
    },
    Row {
        size: W,
        old: 0x5566_7788,
        add: 0x1122_3344_4657_6878,
        or: 0x1122_3344_f5f6_f7f8,
        and: 0x1122_3344_5060_7080,
        xor: 0x1122_3344_a596_8778,
        swapped: 0x1122_3344_f0f0_f0f0,
    },
    Row {
        size: H,
        old: 0x7788,
        add: 0x1122_3344_5566_6878,
        or: 0x1122_3344_5566_f7f8,
        and: 0x1122_3344_5566_7080,
        xor: 0x1122_3344_5566_8778,
        swapped: 0x1122_3344_5566_f0f0,
    },
    Row {
        size: B,
        old: 0x88,
        add: 0x1122_3344_5566_7778,
        or: 0x1122_3344_5566_77f8,
        and: 0x1122_3344_5566_7780,
        xor: 0x1122_3344_5566_7778,
        swapped: 0x1122_3344_5566_77f0,
    },
];

pub(super) fn rows(t: &mut Table) {
    for row in &ROWS {
        for (name, op, after) in [
            ("add", ADD, row.add),
            ("or", OR, row.or),
            ("and", AND, row.and),
            ("xor", XOR, row.xor),
        ] {
            without_fetch(t, name, row.size, op, after);
            with_fetch(t, &format!("fetch_{name}"), row, op | FETCH, after);
        }
        with_fetch(t, "xchg", row, XCHG, row.swapped);
        cmpxchg(t, row);
        ordered(t, row);
    }
    places(t);
}

/// Programs on [`MEM`] with [`SRC`] in `r3`.
fn on_mem(t: &mut Table, name: String, rest: &[Insn], want: u64) {
    let program: Vec<_> = [&[ld_imm64(R3, SRC)], rest].concat();
    t.gives_on(MEM, name, &program, want);
}

fn memory_then(op: Insn) -> [Insn; 3] {
    [op, ldx(DW, R0, R1, 0), exit()]
}

fn without_fetch(t: &mut Table, name: &str, size: Size, op: i32, after: u64) {
    let insn = atomically(size, op, R1, 0, R3);
    let name = format!("atomic_{name}{}", size.0);
    on_mem(t, format!("{name}_memory"), &memory_then(insn), after);
    let rest = [insn, mov(R0, R3), exit()];
    on_mem(t, format!("{name}_leaves_its_source"), &rest, SRC);
    let rest = [insn, ldx(DW, R0, R1, 8), exit()];
    on_mem(t, format!("{name}_leaves_its_neighbour"), &rest, u64::MAX);
}

fn with_fetch(t: &mut Table, name: &str, row: &Row, op: i32, after: u64) {
    let insn = atomically(row.size, op, R1, 0, R3);
    let name = format!("atomic_{name}{}", row.size.0);
    on_mem(t, format!("{name}_memory"), &memory_then(insn), after);
    let rest = [insn, mov(R0, R3), exit()];
    on_mem(t, format!("{name}_gives_what_was_there"), &rest, row.old);
}

fn cmpxchg(t: &mut Table, row: &Row) {
    let name = format!("atomic_cmpxchg{}", row.size.0);
    let insn = atomically(row.size, CMPXCHG, R1, 0, R3);
    // Bits of r0 that are not compared.
    let above = match row.size.0 {
        "64" => 0,
        _ => 0xdead_beef_0000_0000,
    };
    for (what, r0, after) in [
        ("hit", above | row.old, row.swapped),
        ("miss", row.old ^ 1, 0x1122_3344_5566_7788),
        (
            "other_bit_63",
            row.old ^ 1 << 63,
            match row.size.0 {
                "64" => 0x1122_3344_5566_7788,
                _ => row.swapped,
            },
        ),
    ] {
        let set = ld_imm64(R0, r0);
        let rest = [&[set][..], &memory_then(insn)].concat();
        on_mem(t, format!("{name}_{what}_memory"), &rest, after);
        let rest = [set, insn, exit()];
        on_mem(
            t,
            format!("{name}_{what}_gives_what_was_there"),
            &rest,
            row.old,
        );
        let rest = [set, insn, mov(R0, R3), exit()];
        on_mem(t, format!("{name}_{what}_leaves_its_source"), &rest, SRC);
    }
}

fn ordered(t: &mut Table, row: &Row) {
    let bits = row.size.0;
    let load = atomically(row.size, LOAD_ACQ, R3, 0, R1);
    let rest = [load, mov(R0, R3), exit()];
    on_mem(t, format!("load_acquire{bits}"), &rest, row.old);
    let rest = [
        add(R1, 16),
        atomically(row.size, LOAD_ACQ, R0, -16, R1),
        exit(),
    ];
    on_mem(t, format!("load_acquire{bits}_at_minus_16"), &rest, row.old);
    let load = atomically(row.size, LOAD_ACQ, R1, 0, R1);
    let rest = [load, mov(R0, R1), exit()];
    on_mem(
        t,
        format!("load_acquire{bits}_over_its_base"),
        &rest,
        row.old,
    );
    let store = atomically(row.size, STORE_REL, R1, 0, R3);
    on_mem(
        t,
        format!("store_release{bits}_memory"),
        &memory_then(store),
        row.swapped,
    );
    let rest = [store, mov(R0, R3), exit()];
    on_mem(
        t,
        format!("store_release{bits}_leaves_its_source"),
        &rest,
        SRC,
    );
    let rest = [
        mov(R6, R1),
        add(R6, 16),
        atomically(row.size, STORE_REL, R6, -16, R3),
        ldx(DW, R0, R1, 0),
        exit(),
    ];
    on_mem(
        t,
        format!("store_release{bits}_at_minus_16"),
        &rest,
        row.swapped,
    );
}

/// Where the operand lies and which registers take part.
fn places(t: &mut Table) {
    let upper = memory_then(atomically(W, ADD, R1, 4, R3));
    // 0x11223344 + 0xf0f0f0f0, without the carry.
    on_mem(
        t,
        "atomic_add32_upper_half".into(),
        &upper,
        0x0213_2434_5566_7788,
    );
    let upper = memory_then(atomically(H, XCHG, R1, 6, R3));
    on_mem(
        t,
        "atomic_xchg16_last_two_bytes".into(),
        &upper,
        0xf0f0_3344_5566_7788,
    );
    let upper = memory_then(atomically(B, OR, R1, 1, R3));
    on_mem(
        t,
        "atomic_or8_second_byte".into(),
        &upper,
        0x1122_3344_5566_f788,
    );
    for (name, base, off) in [
        ("16", 16, -16),
        ("far", 32_768, i16::MIN),
        ("near", -32_760, 32_760),
    ] {
        let rest = [
            mov(R6, R1),
            add(R6, base),
            atomically(DW, ADD | FETCH, R6, off, R3),
            ldx(DW, R0, R1, 0),
            exit(),
        ];
        on_mem(
            t,
            format!("atomic_fetch_add64_offset_{name}"),
            &rest,
            0x2031_4254_4657_6878,
        );
    }
    let program = [
        st(DW, R10, -8, 40),
        mov(R1, 2),
        atomically(DW, ADD, R10, -8, R1),
        ldx(DW, R0, R10, -8),
        exit(),
    ];
    t.gives("atomic_add64_on_the_stack", &program, 42);
    let program = [
        st(DW, R10, -512, 40),
        mov(R0, 40),
        mov(R1, 2),
        atomically(W, CMPXCHG, R10, -512, R1),
        ldx(DW, R1, R10, -512),
        add(R0, R1),
        exit(),
    ];
    t.gives("atomic_cmpxchg32_on_the_stack", &program, 42);
    let program = [
        st(DW, R10, -8, 5),
        mov(R0, 7),
        atomically(DW, XCHG, R10, -8, R0),
        exit(),
    ];
    t.gives("atomic_xchg64_with_r0", &program, 5);
    let program = [
        st(DW, R10, -8, 5),
        mov(R0, 5),
        atomically(DW, CMPXCHG, R10, -8, R0),
        ldx(DW, R1, R10, -8),
        add(R0, R1),
        exit(),
    ];
    t.gives("atomic_cmpxchg64_with_r0", &program, 10);
    let program = [
        st(W, R10, -4, 0),
        mov(R0, 0),
        mov(R1, 1),
        atomically(W, CMPXCHG, R10, -4, R1),
        mov(R0, 0),
        atomically(W, CMPXCHG, R10, -4, R1),
        exit(),
    ];
    t.gives("atomic_cmpxchg32_takes_a_lock_once", &program, 1);
    // The base is the source: what was there replaces the pointer.
    let program = [atomically(DW, XCHG, R1, 0, R1), mov(R0, R1), exit()];
    t.gives_on(
        MEM,
        "atomic_xchg64_of_its_base",
        &program,
        0x1122_3344_5566_7788,
    );
    let program = [atomically(DW, XCHG, R1, 0, R10), exit()];
    t.refuses("atomic_xchg64_with_r10", &program, "writes r10");
    let program = [mov(R0, 0), atomically(DW, ADD | FETCH, R1, 0, R10), exit()];
    t.refuses("atomic_fetch_add64_with_r10", &program, "writes r10");
    let program = [mov(R0, 0), atomically(DW, LOAD_ACQ, R10, 0, R1), exit()];
    t.refuses("load_acquire64_to_r10", &program, "writes r10");
    let program = [mov(R3, 1), atomically(DW, CMPXCHG, R1, 0, R3), exit()];
    t.refuses("atomic_cmpxchg64_without_r0", &program, "unset register");
}
