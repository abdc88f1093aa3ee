//! Loads, stores, the stack, and constants of 64 bits: chapters 5.1, 5.2 and 5.4.

use super::asm::*;
use super::table::Table;

const BYTES: &str = "8182838485868788 0102030405060708";
const ONES: &str = "ffffffffffffffff ffffffffffffffff";
const ZEROS: &str = "0000000000000000 0000000000000000";

/// Size, offset in [`BYTES`], the value with zeros, the value with its sign (not for 64 bits).
#[rustfmt::skip]
const LOADS: &[(Size, i16, u64, Option<u64>)] = &[
    (B, 0, 0x81, Some(0xffff_ffff_ffff_ff81)),
    (H, 0, 0x8281, Some(0xffff_ffff_ffff_8281)),
    (W, 0, 0x8483_8281, Some(0xffff_ffff_8483_8281)),
    (DW, 0, 0x8887_8685_8483_8281, None),
    (B, 8, 0x01, Some(0x01)),
    (H, 8, 0x0201, Some(0x0201)),
    (W, 8, 0x0403_0201, Some(0x0403_0201)),
    (DW, 8, 0x0807_0605_0403_0201, None),
    (B, 15, 0x08, Some(0x08)),
    (H, 6, 0x8887, Some(0xffff_ffff_ffff_8887)),
    (W, 4, 0x8887_8685, Some(0xffff_ffff_8887_8685)),
    (H, 7, 0x0188, Some(0x0188)),
    (W, 5, 0x0188_8786, Some(0x0188_8786)),
    (DW, 1, 0x0188_8786_8584_8382, None),
];

/// Size, offset, constant, the first 8 bytes of [`ONES`] and of [`ZEROS`] afterwards.
#[rustfmt::skip]
const STORES: &[(Size, i16, i32, u64, u64)] = &[
    (B, 0, 0x12, 0xffff_ffff_ffff_ff12, 0x12),
    (B, 7, 0x12, 0x12ff_ffff_ffff_ffff, 0x1200_0000_0000_0000),
    (B, 1, 0x1ab, 0xffff_ffff_ffff_abff, 0xab00),
    (H, 0, 0x1234, 0xffff_ffff_ffff_1234, 0x1234),
    (H, 2, 0x5_6789, 0xffff_ffff_6789_ffff, 0x6789_0000),
    (H, 4, -2, 0xffff_fffe_ffff_ffff, 0x0000_fffe_0000_0000),
    (W, 0, 0x1234_5678, 0xffff_ffff_1234_5678, 0x1234_5678),
    (W, 4, 0x1234_5678, 0x1234_5678_ffff_ffff, 0x1234_5678_0000_0000),
    (W, 0, i32::MIN, 0xffff_ffff_8000_0000, 0x8000_0000),
    (DW, 0, 0x7fff_ffff, 0x7fff_ffff, 0x7fff_ffff),
    (DW, 0, -2, 0xffff_ffff_ffff_fffe, 0xffff_ffff_ffff_fffe),
    (DW, 0, i32::MIN, 0xffff_ffff_8000_0000, 0xffff_ffff_8000_0000),
];

/// Size, offset, the first 8 bytes of [`ONES`] after 0x1122334455667788 is stored there.
#[rustfmt::skip]
const STORES_OF_REG: &[(Size, i16, u64)] = &[
    (B, 0, 0xffff_ffff_ffff_ff88),
    (B, 3, 0xffff_ffff_88ff_ffff),
    (H, 0, 0xffff_ffff_ffff_7788),
    (H, 6, 0x7788_ffff_ffff_ffff),
    (W, 0, 0xffff_ffff_5566_7788),
    (W, 4, 0x5566_7788_ffff_ffff),
    (DW, 0, 0x1122_3344_5566_7788),
    (H, 1, 0xffff_ffff_ff77_88ff),
    (W, 3, 0xff55_6677_88ff_ffff),
    (DW, 8, 0xffff_ffff_ffff_ffff),
];

pub(super) fn rows(t: &mut Table) {
    loads(t);
    stores(t);
    far(t);
    stack(t);
    constants(t);
}

fn loads(t: &mut Table) {
    for &(size, off, zeros, sign) in LOADS {
        let bits = size.0;
        let dirty = ld_imm64(R3, 0x5555_5555_5555_5555);
        let mut both =
            |name: String, from: &dyn Fn(i16) -> Vec<Insn>, load: &dyn Fn(i16) -> Insn, want| {
                for (side, base) in [("start", 0), ("end", 16)] {
                    let mut program = from(base);
                    program.extend([load(off - base), mov(R0, R3), exit()]);
                    t.gives_on(
                        BYTES,
                        format!("{name}_byte_{off}_from_the_{side}"),
                        &program,
                        want,
                    );
                }
            };
        let from = |base: i16| match base {
            0 => vec![dirty],
            _ => vec![dirty, add(R1, i32::from(base))],
        };
        both(
            format!("ldx{bits}"),
            &from,
            &|off| ldx(size, R3, R1, off),
            zeros,
        );
        if let Some(sign) = sign {
            both(
                format!("ldsx{bits}"),
                &from,
                &|off| ldsx(size, R3, R1, off),
                sign,
            );
        }
    }
    let program = [ldx(W, R1, R1, 8), mov(R0, R1), exit()];
    t.gives_on(BYTES, "ldx32_over_its_base", &program, 0x0403_0201);
    let program = [ldsx(B, R1, R1, 7), mov(R0, R1), exit()];
    t.gives_on(
        BYTES,
        "ldsx8_over_its_base",
        &program,
        0xffff_ffff_ffff_ff88,
    );
    t.gives_on(
        BYTES,
        "r2_is_the_length",
        &[mov(R0, -16), add(R0, R2), exit()],
        0,
    );
    let program = [mov(R0, R1), alu64(OR, R0, R2), exit()];
    t.gives("r1_and_r2_without_memory", &program, 0);
}

fn stores(t: &mut Table) {
    for &(size, off, imm, on_ones, on_zeros) in STORES {
        for (what, mem, want) in [("ones", ONES, on_ones), ("zeros", ZEROS, on_zeros)] {
            let program = [st(size, R1, off, imm), ldx(DW, R0, R1, 0), exit()];
            let name = format!("st{}_of_{imm}_at_{off}_on_{what}", size.0).replace('-', "minus_");
            t.gives_on(mem, name, &program, want);
        }
    }
    for &(size, off, want) in STORES_OF_REG {
        let value = ld_imm64(R7, 0x1122_3344_5566_7788);
        let program = [value, stx(size, R1, off, R7), ldx(DW, R0, R1, 0), exit()];
        let name = format!("stx{}_at_plus_{off}", size.0);
        t.gives_on(ONES, name, &program, want);
        let program = [
            value,
            mov(R8, R1),
            add(R8, 16),
            stx(size, R8, off - 16, R7),
            ldx(DW, R0, R1, 0),
            exit(),
        ];
        let name = format!("stx{}_at_minus_{}", size.0, 16 - off);
        t.gives_on(ONES, name, &program, want);
    }
    let program = [
        ld_imm64(R7, 0x1122_3344_5566_7788),
        stx(B, R1, 0, R7),
        mov(R0, R7),
        exit(),
    ];
    t.gives_on(
        ZEROS,
        "stx8_leaves_its_source",
        &program,
        0x1122_3344_5566_7788,
    );
    let program = [
        stx(DW, R1, 8, R1),
        ldx(DW, R0, R1, 8),
        alu64(SUB, R0, R1),
        exit(),
    ];
    t.gives_on(ZEROS, "stx64_of_its_base", &program, 0);
}

/// The ends of what an offset can be.
fn far(t: &mut Table) {
    for (name, base, off) in [
        ("largest", -32_767, i16::MAX),
        ("smallest", 32_768, i16::MIN),
        ("2048", -2048, 2048),
        ("2047", -2047, 2047),
        ("minus_2048", 2048, -2048),
        ("minus_2049", 2049, -2049),
    ] {
        let program = [add(R1, base), ldx(W, R0, R1, off), exit()];
        t.gives_on(BYTES, format!("ldx32_offset_{name}"), &program, 0x8483_8281);
        let program = [
            mov(R6, R1),
            add(R1, base),
            st(H, R1, off, 0x2211),
            ldx(W, R0, R6, 0),
            exit(),
        ];
        t.gives_on(BYTES, format!("st16_offset_{name}"), &program, 0x8483_2211);
        let program = [
            mov(R6, R1),
            add(R1, base),
            mov(R2, 0x2211),
            stx(H, R1, off, R2),
            ldx(W, R0, R6, 0),
            exit(),
        ];
        t.gives_on(BYTES, format!("stx16_offset_{name}"), &program, 0x8483_2211);
    }
}

fn stack(t: &mut Table) {
    for off in [-8, -16, -256, -504, -512] {
        let program = [
            mov(R3, 77),
            stx(DW, R10, off, R3),
            ldx(DW, R0, R10, off),
            exit(),
        ];
        t.gives(format!("stack_64_bits_at_minus_{}", -off), &program, 77);
    }
    for (size, off) in [(B, -1), (H, -2), (W, -4), (B, -512), (H, -510), (W, -508)] {
        let program = [st(size, R10, off, 0x71), ldx(size, R0, R10, off), exit()];
        let name = format!("stack_{}_bits_at_minus_{}", size.0, -off);
        t.gives(name, &program, 0x71);
    }
    let program = [
        st(W, R10, -8, 0x1111),
        st(W, R10, -4, 0x2222),
        ldx(DW, R0, R10, -8),
        exit(),
    ];
    t.gives("stack_two_halves", &program, 0x0000_2222_0000_1111);
    let program = [
        mov(R2, R10),
        add(R2, -24),
        st(DW, R2, 8, 5),
        ldx(DW, R0, R10, -16),
        exit(),
    ];
    t.gives("stack_through_a_copy_of_r10", &program, 5);
    let program = [
        stx(DW, R10, -8, R10),
        ldx(DW, R1, R10, -8),
        st(DW, R1, -16, 6),
        ldx(DW, R0, R10, -16),
        exit(),
    ];
    t.gives("stack_holds_a_pointer_into_itself", &program, 6);
    let program = [
        mov(R2, R10),
        alu64(SUB, R2, 512),
        st(B, R2, 0, 3),
        ldx(B, R0, R10, -512),
        exit(),
    ];
    t.gives("stack_from_below", &program, 3);
}

fn constants(t: &mut Table) {
    for (name, value) in [
        ("zero", 0),
        ("minus_one", s(-1)),
        ("lower_half", 0x8000_0000),
        ("upper_half", 0x8000_0000_0000_0000),
        ("largest", 0x7fff_ffff_ffff_ffff),
        ("mixed", 0x0123_4567_89ab_cdef),
        ("negative_lower_half", 0x0000_0001_ffff_ffff),
        ("sign_of_the_lower_half", 0xffff_ffff_7fff_ffff),
        ("small", 42),
        ("page", 0x1000),
    ] {
        for reg in [R0, R9] {
            let program = [ld_imm64(reg, value), mov(R0, reg), exit()];
            t.gives(format!("ld_imm64_{name}_in_r{}", reg.0), &program, value);
        }
    }
}
