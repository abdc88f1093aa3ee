//! What no program may look like: where jumps go, what is reached, what is read before it is set,
//! the stack's bounds, and what is not there. Chapter 4.3; kernel `kernel/bpf/verifier.c`.

use super::asm::*;
use super::table::Table;

pub(super) fn rows(t: &mut Table) {
    exits(t);
    jumps(t);
    frame(t);
    stack_bounds(t);
    unset(t);
    missing(t);
}

fn exits(t: &mut Table) {
    t.gives("exit_gives_r0", &[mov(R0, 6), exit()], 6);
    let program = [ld_imm64(R0, 0xffff_ffff_0000_0001), exit()];
    t.gives("exit_gives_all_of_r0", &program, 0xffff_ffff_0000_0001);
    let program = [mov(R0, 1), jmp64(EQ, R0, 1, 1), exit(), mov(R0, 2), exit()];
    t.gives("exit_twice", &program, 2);
    t.refuses("program_without_an_end", &[mov(R0, 0)], "fall through");
    let program = [mov(R0, 0), exit(), mov(R0, 1)];
    t.refuses("program_goes_on_after_exit", &program, "fall through");
    let program = [mov(R0, 0), ld_imm64(R0, 1)];
    t.refuses("program_ends_in_a_constant", &program, "fall through");
    let program = [mov(R0, 0), jmp64(EQ, R0, 0, -2)];
    t.refuses("program_ends_in_a_branch", &program, "fall through");
    let program = [call_local(1), exit(), call_local(0), mov(R0, 0), exit()];
    t.refuses("function_ends_in_a_call", &program, "fall through");
    let program = [mov(R0, 0), exit(), mov(R0, 1), exit()];
    t.refuses("unreachable_after_exit", &program, "unreachable");
    let program = [mov(R0, 0), ja(1), mov(R0, 1), exit()];
    t.refuses("unreachable_after_a_jump", &program, "unreachable");
    let program = [mov(R0, 0), exit(), mov(R0, 1), ja(-2)];
    t.refuses("unreachable_loop", &program, "unreachable");
    let program = [mov(R0, 0), exit(), ld_imm64(R0, 1), exit()];
    t.refuses("unreachable_constant", &program, "unreachable");
}

fn jumps(t: &mut Table) {
    for (name, off) in [
        ("one_beyond_the_end", 1),
        ("before_the_beginning", -3),
        ("the_largest", i16::MAX),
        ("the_smallest", i16::MIN),
    ] {
        let mut out = |kind: &str, jump| {
            let program = [mov(R0, 0), jump, exit()];
            t.refuses(format!("{kind}_{name}"), &program, "jump out");
        };
        out("ja", ja(off));
        out("ja32", ja32(off.into()));
        out("jeq64", jmp64(EQ, R0, 0, off));
        out("jslt32", jmp32(SLT, R0, R1, off));
    }
    for (name, off) in [("largest", i32::MAX), ("smallest", i32::MIN)] {
        let program = [mov(R0, 0), ja32(off), exit()];
        t.refuses(format!("ja32_{name}_of_32_bits"), &program, "jump out");
    }
    for (name, jump) in [
        ("ja", ja(1)),
        ("ja32", ja32(1)),
        ("jne64", jmp64(NE, R1, 0, 1)),
        ("jgt32", jmp32(GT, R1, R2, 1)),
    ] {
        let program = [jump, ld_imm64(R0, 1), exit()];
        t.refuses(
            format!("{name}_into_a_constant"),
            &program,
            "jump into constant",
        );
    }
    let program = [ld_imm64(R0, 1), jmp64(EQ, R0, 0, -2), exit()];
    t.refuses(
        "branch_back_into_a_constant",
        &program,
        "jump into constant",
    );
}

/// `r10` is read-only.
fn frame(t: &mut Table) {
    let mut writes = |name: &str, insn| {
        let program = [mov(R0, 0), insn, exit()];
        t.refuses(format!("r10_written_by_{name}"), &program, "writes r10");
    };
    writes("mov64", mov(R10, R1));
    writes("mov32", alu32(MOV, R10, 0));
    writes("add64", add(R10, -8));
    writes("neg64", neg64(R10));
    writes("movsx64", movsx64(8, R10, R1));
    writes("be64", be(64, R10));
    writes("ldx64", ldx(DW, R10, R1, 0));
    writes("ldsx32", ldsx(W, R10, R1, 0));
    writes("ld_imm64", ld_imm64(R10, 0));
}

fn stack_bounds(t: &mut Table) {
    let mut beyond = |name: &str, insn| {
        let program = [mov(R0, 0), mov(R3, 1), insn, exit()];
        t.refuses(format!("stack_{name}"), &program, "stack bounds");
    };
    beyond("below_by_a_byte", st(B, R10, -513, 0));
    beyond("below_by_half", stx(DW, R10, -516, R3));
    beyond("far_below", st(DW, R10, i16::MIN, 0));
    beyond("above", st(B, R10, 0, 0));
    beyond("above_by_half", stx(DW, R10, -4, R3));
    beyond("far_above", st(DW, R10, i16::MAX, 0));
    beyond("load_below", ldx(W, R0, R10, -514));
    beyond("load_above", ldx(H, R0, R10, -1));
    beyond("signed_load_above", ldsx(B, R0, R10, 0));
    beyond("atomic_below", atomically(DW, atomic::ADD, R10, -520, R3));
    beyond("atomic_above", atomically(W, atomic::XCHG, R10, 0, R3));
    beyond(
        "load_acquire_above",
        atomically(DW, atomic::LOAD_ACQ, R0, 0, R10),
    );
    beyond(
        "store_release_below",
        atomically(B, atomic::STORE_REL, R10, -513, R3),
    );
    for (name, by, off) in [("below", -512, -8), ("above", -8, 8)] {
        let program = [
            mov(R2, R10),
            add(R2, by),
            st(DW, R2, off, 0),
            mov(R0, 0),
            exit(),
        ];
        t.refuses(
            format!("stack_{name}_through_a_copy"),
            &program,
            "stack bounds",
        );
    }
    let program = [
        mov(R1, 0),
        call_local(2),
        mov(R0, 0),
        exit(),
        ldx(DW, R0, R10, -520),
        exit(),
    ];
    t.refuses("stack_below_in_a_callee", &program, "stack bounds");
}

fn unset(t: &mut Table) {
    t.refuses("exit_without_r0", &[exit()], "unset register");
    for reg in [R0, R6, R7, R8, R9] {
        let program = [add(reg, 1), mov(R0, 0), exit()];
        t.refuses(
            format!("unset_r{}_as_destination", reg.0),
            &program,
            "unset register",
        );
        let program = [mov(R1, reg), mov(R0, 0), exit()];
        t.refuses(
            format!("unset_r{}_as_source", reg.0),
            &program,
            "unset register",
        );
    }
    let mut unset = |name: &str, insn| {
        let program = [insn, mov(R0, 0), exit()];
        t.refuses(
            format!("unset_register_of_{name}"),
            &program,
            "unset register",
        );
    };
    unset("neg32", neg32(R6));
    unset("bswap16", bswap(16, R6));
    unset("movsx32", movsx32(8, R1, R6));
    unset("jeq64_dst", jmp64(EQ, R6, 0, 0));
    unset("jeq32_src", jmp32(EQ, R1, R6, 0));
    unset("ldx8", ldx(B, R0, R6, 0));
    unset("st8", st(B, R6, 0, 0));
    unset("stx8", stx(B, R1, 0, R6));
    unset("atomic_src", atomically(W, atomic::ADD, R1, 0, R6));
    unset("atomic_dst", atomically(W, atomic::ADD, R6, 0, R1));
    unset("load_acquire", atomically(W, atomic::LOAD_ACQ, R0, 0, R6));
    unset("store_release", atomically(W, atomic::STORE_REL, R1, 0, R6));
}

/// The environment has no helper, no host function, no map and no arena.
fn missing(t: &mut Table) {
    for id in [0, 1, 5, 9999, -1] {
        let name = format!("helper_{id}_is_not_there").replace('-', "minus_");
        t.refuses(name, &[call_helper(id), exit()], "no helper");
    }
    t.refuses(
        "host_function_is_not_there",
        &[call_host(7), exit()],
        "no host function",
    );
    for (name, src) in [
        ("map_by_fd", 1),
        ("value_of_map_by_fd", 2),
        ("variable", 3),
        ("map_by_index", 5),
        ("value_of_map_by_index", 6),
    ] {
        let insn = Insn {
            src,
            ..ld_imm64(R0, 3)
        };
        t.refuses(format!("{name}_is_not_there"), &[insn, exit()], "no object");
    }
    let insn = Insn {
        src: 4,
        ..ld_imm64(R0, 9)
    };
    t.refuses("code_address_is_not_there", &[insn, exit()], "jump out");
    let (code, dst) = (0x0d, 1);
    let insn = Insn {
        code,
        dst,
        ..Insn::default()
    };
    let program = [mov(R0, 0), insn, exit()];
    t.refuses("jump_by_register_without_table", &program, "no table");
    // Loads with zeros and with their sign, stores, atomics, by offset in the arena.
    for (code, src) in [(0xa1, 1), (0xc1, 1), (0xa2, 0), (0xa3, 1), (0xe3, 1)] {
        let dst = 1;
        let insn = Insn {
            code,
            dst,
            src,
            ..Insn::default()
        };
        let name = format!("arena_access_{code:#04x}_without_arena");
        t.refuses(name, &[mov(R0, 0), insn, exit()], "no arena");
    }
    for (name, imm) in [("to_program", 1), ("to_user", 1 << 16)] {
        let (off, insn) = (1, mov(R0, R1));
        let insn = Insn { off, imm, ..insn };
        let name = format!("cast_{name}_without_arena");
        t.refuses(name, &[insn, exit()], "no arena");
    }
}
