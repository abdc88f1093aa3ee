//! What no instruction may look like: chapter 3, and the opcodes that no chapter has.

use super::asm::atomic::{CMPXCHG, FETCH, LOAD_ACQ, STORE_REL, XCHG};
use super::asm::*;
use super::table::Table;

/// Codes without a meaning, by class.
const UNKNOWN: &[&[u8]] = &[
    // LD: constants of fewer bits, packet accesses of 64 bits, and modes of other classes.
    &[
        0x00, 0x08, 0x10, 0x38, 0x58, 0x60, 0x78, 0x80, 0xa0, 0xc0, 0xd8, 0xe0,
    ],
    // LDX: 64 bits need no extension.
    &[0x01, 0x19, 0x99, 0xd9, 0xe1],
    &[0x02, 0x22, 0x42, 0x82, 0xc2, 0xda, 0xe2],
    &[0x03, 0x23, 0x43, 0x83],
    // ALU, ALU64: a negation of a register, a swap with a source bit, and beyond the table.
    &[0x8c, 0xe4, 0xec, 0xf4, 0xfc],
    &[0x8f, 0xdf, 0xe7, 0xef, 0xf7, 0xff],
    // JMP, JMP32: calls and exits by register, jumps too of 32 bits, calls and exits of 32 bits.
    &[0x8d, 0x9d, 0xed, 0xf5, 0xfd],
    &[0x0e, 0x86, 0x8e, 0x96, 0x9e, 0xe6, 0xee, 0xf6, 0xfe],
];

/// Packet accesses: `ABS` and `IND`, of 32, 16 and 8 bits.
const LEGACY: [u8; 6] = [0x20, 0x28, 0x30, 0x40, 0x48, 0x50];

/// A program with one wrong instruction.
fn around(insn: Insn) -> [Insn; 4] {
    [mov(R0, 0), mov(R3, 1), insn, exit()]
}

pub(super) fn rows(t: &mut Table) {
    for code in UNKNOWN.iter().copied().flatten().copied() {
        let insn = Insn {
            code,
            ..Insn::default()
        };
        t.refuses(
            format!("unknown_opcode_{code:#04x}"),
            &around(insn),
            "unknown opcode",
        );
    }
    for code in LEGACY {
        let insn = Insn {
            code,
            ..Insn::default()
        };
        t.refuses(
            format!("packet_access_{code:#04x}"),
            &around(insn),
            "legacy",
        );
    }
    reserved_of_alu(t);
    reserved_of_jumps(t);
    reserved_of_memory(t);
    reserved_of_constants(t);
    registers(t);
    sizes(t);
}

fn reserved(t: &mut Table, name: &str, insn: Insn) {
    t.refuses(format!("reserved_{name}"), &around(insn), "reserved field");
}

fn reserved_of_alu(t: &mut Table) {
    let by_reg = alu64(ADD, R0, R3);
    let by_imm = alu64(ADD, R0, 1);
    reserved(t, "add64_reg_imm", Insn { imm: 1, ..by_reg });
    reserved(t, "add64_imm_src", Insn { src: 3, ..by_imm });
    reserved(
        t,
        "sdiv64_reg_imm",
        Insn {
            imm: 1,
            ..alu64(SDIV, R0, R3)
        },
    );
    reserved(
        t,
        "mov32_reg_imm",
        Insn {
            imm: 1,
            ..alu32(MOV, R0, R3)
        },
    );
    reserved(
        t,
        "mov64_imm_src",
        Insn {
            src: 3,
            ..mov(R0, 1)
        },
    );
    for op in [ADD, SUB, MUL, OR, AND, LSH, RSH, XOR, ARSH] {
        let name = op.0;
        reserved(
            t,
            &format!("{name}64_reg_off"),
            Insn {
                off: 1,
                ..alu64(op, R0, R3)
            },
        );
        reserved(
            t,
            &format!("{name}64_imm_off"),
            Insn {
                off: 1,
                ..alu64(op, R0, 1)
            },
        );
        reserved(
            t,
            &format!("{name}32_reg_off"),
            Insn {
                off: 1,
                ..alu32(op, R0, R3)
            },
        );
        reserved(
            t,
            &format!("{name}32_imm_off"),
            Insn {
                off: 1,
                ..alu32(op, R0, 1)
            },
        );
    }
    for op in [DIV, MOD] {
        reserved(
            t,
            &format!("{}64_off_2", op.0),
            Insn {
                off: 2,
                ..alu64(op, R0, R3)
            },
        );
        reserved(
            t,
            &format!("{}32_off_minus_1", op.0),
            Insn {
                off: -1,
                ..alu32(op, R0, 3)
            },
        );
    }
    reserved(
        t,
        "mov64_imm_off",
        Insn {
            off: 8,
            ..mov(R0, 1)
        },
    );
    reserved(
        t,
        "mov32_imm_off",
        Insn {
            off: 16,
            ..alu32(MOV, R0, 1)
        },
    );
    reserved(
        t,
        "movsx64_imm",
        Insn {
            imm: 1,
            ..movsx64(8, R0, R3)
        },
    );
    reserved(
        t,
        "movsx32_imm",
        Insn {
            imm: 1,
            ..movsx32(8, R0, R3)
        },
    );
    for bits in [7, 24, 64, -8] {
        let name = format!("movsx64_from_{bits}_bits").replace('-', "minus_");
        reserved(t, &name, movsx64(bits, R0, R3));
    }
    for bits in [1, 7, 24, 32, 64] {
        reserved(
            t,
            &format!("movsx32_from_{bits}_bits"),
            movsx32(bits, R0, R3),
        );
    }
    for (name, neg) in [("neg64", neg64(R0)), ("neg32", neg32(R0))] {
        reserved(t, &format!("{name}_src"), Insn { src: 3, ..neg });
        reserved(t, &format!("{name}_off"), Insn { off: 1, ..neg });
        reserved(t, &format!("{name}_imm"), Insn { imm: 1, ..neg });
    }
    for (name, end) in [
        ("le", le(16, R0)),
        ("be", be(16, R0)),
        ("bswap", bswap(16, R0)),
    ] {
        for bits in [0, 8, 17, 128, -16] {
            let of_bits = format!("{name}_of_{bits}_bits").replace('-', "minus_");
            reserved(t, &of_bits, Insn { imm: bits, ..end });
        }
        reserved(t, &format!("{name}_src"), Insn { src: 3, ..end });
        reserved(t, &format!("{name}_off"), Insn { off: 1, ..end });
    }
}

fn reserved_of_jumps(t: &mut Table) {
    for (name, jump) in [("ja", ja(0)), ("ja32", ja32(0)), ("exit", exit())] {
        reserved(t, &format!("{name}_dst"), Insn { dst: 3, ..jump });
        reserved(t, &format!("{name}_src"), Insn { src: 3, ..jump });
    }
    reserved(t, "ja_imm", Insn { imm: 1, ..ja(0) });
    reserved(t, "ja32_off", Insn { off: 1, ..ja32(0) });
    reserved(t, "exit_off", Insn { off: 1, ..exit() });
    reserved(t, "exit_imm", Insn { imm: 1, ..exit() });
    for cond in [EQ, GT, GE, SET, NE, SGT, SGE, LT, LE, SLT, SLE] {
        let name = cond.0;
        reserved(
            t,
            &format!("{name}64_reg_imm"),
            Insn {
                imm: 1,
                ..jmp64(cond, R0, R3, 0)
            },
        );
        reserved(
            t,
            &format!("{name}64_imm_src"),
            Insn {
                src: 3,
                ..jmp64(cond, R0, 1, 0)
            },
        );
        reserved(
            t,
            &format!("{name}32_reg_imm"),
            Insn {
                imm: 1,
                ..jmp32(cond, R0, R3, 0)
            },
        );
        reserved(
            t,
            &format!("{name}32_imm_src"),
            Insn {
                src: 3,
                ..jmp32(cond, R0, 1, 0)
            },
        );
    }
    reserved(
        t,
        "call_helper_dst",
        Insn {
            dst: 3,
            ..call_helper(1)
        },
    );
    reserved(
        t,
        "call_helper_off",
        Insn {
            off: 1,
            ..call_helper(1)
        },
    );
    reserved(
        t,
        "call_local_dst",
        Insn {
            dst: 3,
            ..call_local(0)
        },
    );
    reserved(
        t,
        "call_local_off",
        Insn {
            off: 1,
            ..call_local(0)
        },
    );
    reserved(
        t,
        "call_host_dst",
        Insn {
            dst: 3,
            ..call_host(1)
        },
    );
    for src in [3, 4, 15] {
        reserved(
            t,
            &format!("call_src_{src}"),
            Insn {
                src,
                ..call_helper(1)
            },
        );
    }
}

fn reserved_of_memory(t: &mut Table) {
    for size in [B, H, W, DW] {
        let bits = size.0;
        reserved(
            t,
            &format!("ldx{bits}_imm"),
            Insn {
                imm: 1,
                ..ldx(size, R0, R1, 0)
            },
        );
        reserved(
            t,
            &format!("st{bits}_src"),
            Insn {
                src: 3,
                ..st(size, R1, 0, 1)
            },
        );
        reserved(
            t,
            &format!("stx{bits}_imm"),
            Insn {
                imm: 1,
                ..stx(size, R1, 0, R3)
            },
        );
    }
    for size in [B, H, W] {
        let name = format!("ldsx{}_imm", size.0);
        reserved(
            t,
            &name,
            Insn {
                imm: 1,
                ..ldsx(size, R0, R1, 0)
            },
        );
    }
    for (name, op) in [
        ("2", 2),
        ("10", 0x10),
        ("xchg_without_fetch", XCHG & !FETCH),
        ("cmpxchg_without_fetch", CMPXCHG & !FETCH),
        ("load_acquire_with_fetch", LOAD_ACQ | FETCH),
        ("store_release_with_fetch", STORE_REL | FETCH),
        ("120", 0x120),
        ("minus_1", -1),
    ] {
        for size in [W, DW] {
            let name = format!("atomic{}_operation_{name}", size.0);
            reserved(t, &name, atomically(size, op, R1, 0, R3));
        }
    }
}

fn reserved_of_constants(t: &mut Table) {
    let constant = ld_imm64(R0, 1);
    reserved(t, "ld_imm64_off", Insn { off: 1, ..constant });
    for src in [7, 8, 15] {
        reserved(t, &format!("ld_imm64_src_{src}"), Insn { src, ..constant });
    }
    for (name, at) in [("code", 0), ("registers", 1), ("off", 2), ("upper_off", 3)] {
        let mut second = Second::default();
        second.zeros[at] = 1;
        let second = Some(second);
        let name = format!("ld_imm64_second_{name}");
        reserved(t, &name, Insn { second, ..constant });
    }
    // Maps by number, and code, have no second number.
    for (name, src) in [("map_by_fd", 1), ("code", 4), ("map_by_index", 5)] {
        let constant = ld_imm64(R0, 0x1_0000_0000);
        let name = format!("ld_imm64_{name}_next_imm");
        reserved(t, &name, Insn { src, ..constant });
    }
}

fn registers(t: &mut Table) {
    let mut bad = |name: &str, insn| {
        t.refuses(format!("register_{name}"), &around(insn), "bad register");
    };
    bad("11_of_mov64_dst", mov(R11, 0));
    bad("11_of_mov64_src", mov(R0, R11));
    bad("15_of_mov64_src", mov(R0, Reg(15)));
    bad("12_of_add32_dst", alu32(ADD, Reg(12), 1));
    bad("12_of_add32_src", alu32(ADD, R0, Reg(12)));
    bad("11_of_neg64", neg64(R11));
    bad("11_of_movsx64_src", movsx64(8, R0, R11));
    bad("11_of_movsx32_dst", movsx32(8, R11, R3));
    bad("11_of_le", le(16, R11));
    bad("11_of_bswap", bswap(16, R11));
    bad("11_of_jeq64_dst", jmp64(EQ, R11, 0, 0));
    bad("11_of_jeq64_src", jmp64(EQ, R0, R11, 0));
    bad("11_of_jlt32_dst", jmp32(LT, R11, 0, 0));
    bad("11_of_jlt32_src", jmp32(LT, R0, R11, 0));
    bad("11_of_ldx64_dst", ldx(DW, R11, R1, 0));
    bad("11_of_ldx64_src", ldx(DW, R0, R11, 0));
    bad("11_of_ldsx8_src", ldsx(B, R0, R11, 0));
    bad("11_of_st8", st(B, R11, 0, 0));
    bad("11_of_stx8_dst", stx(B, R11, 0, R3));
    bad("11_of_stx8_src", stx(B, R1, 0, R11));
    bad("11_of_atomic_dst", atomically(DW, 0, R11, 0, R3));
    bad("11_of_atomic_src", atomically(DW, 0, R1, 0, R11));
    bad(
        "11_of_load_acquire_src",
        atomically(DW, LOAD_ACQ, R0, 0, R11),
    );
    bad(
        "11_of_store_release_src",
        atomically(DW, STORE_REL, R1, 0, R11),
    );
    bad("11_of_ld_imm64", ld_imm64(R11, 0));
}

fn sizes(t: &mut Table) {
    t.refuses("empty_program", &[], "empty");
    t.refuses_hex("half_an_instruction", "b7000000", "odd bytes");
    let with_rest = "b700000001000000 9500000000000000 95".replace(' ', "");
    t.refuses_hex("a_byte_after_the_end", &with_rest, "odd bytes");
    let half = Insn {
        second: None,
        ..ld_imm64(R0, 1)
    };
    t.refuses("half_a_constant", &[half], "truncated");
    t.refuses(
        "half_a_constant_at_the_end",
        &[mov(R0, 0), half],
        "truncated",
    );
    t.refuses(
        "an_instruction_inside_a_constant",
        &[half, exit()],
        "reserved field",
    );
}
