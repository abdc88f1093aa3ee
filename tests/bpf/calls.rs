//! Functions of the program: chapter 4.3.2. What they keep: kernel
//! `Documentation/bpf/standardization/abi.rst`; how deep they go: kernel `MAX_CALL_FRAMES` and
//! `MAX_BPF_STACK`.

use super::asm::*;
use super::table::Table;

pub(super) fn rows(t: &mut Table) {
    arguments(t);
    registers(t);
    stacks(t);
    nesting(t);
    refused(t);
}

fn arguments(t: &mut Table) {
    let program = [mov(R1, 30), call_local(1), exit(), mov(R0, R1), exit()];
    t.gives("call_passes_r1_and_gives_r0", &program, 30);
    // r0 = ((((r1 * 10 + r2) * 10) + r3) * 10 + r4) * 10 + r5.
    let mut program: Vec<_> = [R1, R2, R3, R4, R5]
        .into_iter()
        .map(|reg| mov(reg, i32::from(reg.0)))
        .collect();
    program.extend([call_local(1), exit(), mov(R0, 0)]);
    for reg in [R1, R2, R3, R4, R5] {
        program.extend([alu64(MUL, R0, 10), add(R0, reg)]);
    }
    program.push(exit());
    t.gives("call_passes_five_arguments", &program, 12345);
    let program = [
        call_local(1),
        exit(),
        ld_imm64(R0, 0xfedc_ba98_7654_3210),
        exit(),
    ];
    t.gives("call_gives_all_of_r0", &program, 0xfedc_ba98_7654_3210);
    // 5 + (5 + 1) through two calls of one function.
    let program = [
        mov(R1, 4),
        call_local(5),
        mov(R6, R0),
        mov(R1, R0),
        call_local(2),
        add(R0, R6),
        exit(),
        mov(R0, R1),
        add(R0, 1),
        exit(),
    ];
    t.gives("call_twice", &program, 11);
    let program = [
        mov(R1, 2),
        call_local(3),
        exit(),
        alu64(MUL, R1, 3),
        mov(R0, R1),
        exit(),
    ];
    t.refuses("function_falls_into_the_next", &program, "fall through");
    let program = [
        mov(R1, 2),
        call_local(4),
        exit(),
        alu64(MUL, R1, 3),
        mov(R0, R1),
        exit(),
        add(R1, 5),
        call_local(-5),
        exit(),
    ];
    t.gives("call_of_a_function_before", &program, 21);
    let program = [
        mov(R0, 1),
        mov(R1, 7),
        jmp64(EQ, R0, 0, 1),
        call_local(1),
        exit(),
        mov(R0, R1),
        jmp64(GT, R0, 6, 1),
        mov(R0, 0),
        exit(),
    ];
    t.gives("call_behind_a_branch", &program, 7);
}

fn registers(t: &mut Table) {
    let kept = [R6, R7, R8, R9];
    for (which, reg) in kept.into_iter().enumerate() {
        let fill = |base: i32| {
            let of = move |(i, r)| mov(r, base + i as i32);
            kept.into_iter().enumerate().map(of)
        };
        let mut program: Vec<_> = fill(60).collect();
        program.extend([call_local(2), mov(R0, reg), exit(), mov(R0, 0)]);
        program.extend(fill(-900));
        program.push(exit());
        t.gives(
            format!("call_keeps_register_{}", reg.0),
            &program,
            60 + which as u64,
        );
    }
    // Two calls deep: 1 and 2 survive 3.
    let program = [
        mov(R6, 1),
        call_local(2),
        add(R0, R6),
        exit(),
        mov(R6, 2),
        call_local(2),
        add(R0, R6),
        exit(),
        mov(R6, 3),
        mov(R0, R6),
        exit(),
    ];
    t.gives("call_keeps_register_6_of_every_frame", &program, 6);
    let program = [
        mov(R6, R10),
        call_local(3),
        mov(R0, R10),
        alu64(SUB, R0, R6),
        exit(),
        mov(R0, 1),
        exit(),
    ];
    t.gives("call_keeps_register_10", &program, 0);
}

fn stacks(t: &mut Table) {
    let program = [
        st(DW, R10, -8, 11),
        call_local(2),
        ldx(DW, R0, R10, -8),
        exit(),
        st(DW, R10, -8, 22),
        mov(R0, 0),
        exit(),
    ];
    t.gives("call_has_its_own_stack", &program, 11);
    let program = [
        st(DW, R10, -8, 11),
        mov(R1, R10),
        add(R1, -8),
        call_local(3),
        ldx(DW, R1, R10, -8),
        add(R0, R1),
        exit(),
        ldx(DW, R0, R1, 0),
        st(DW, R1, 0, 22),
        exit(),
    ];
    // 11 as the callee reads it, 22 as it leaves it.
    t.gives("call_reaches_its_callers_stack", &program, 33);
    let halves = |callee: i16| {
        [
            st(DW, R10, -256, 5),
            call_local(2),
            ldx(DW, R0, R10, -256),
            exit(),
            st(DW, R10, callee, 6),
            mov(R0, 0),
            exit(),
        ]
    };
    t.gives("call_uses_all_of_the_stack", &halves(-256), 5);
    t.refuses(
        "call_uses_more_than_the_stack",
        &halves(-264),
        "stack depth",
    );
    let thirds = |last: i16| {
        [
            st(DW, R10, -192, 1),
            call_local(2),
            ldx(DW, R0, R10, -192),
            exit(),
            st(DW, R10, -192, 2),
            call_local(1),
            exit(),
            st(DW, R10, last, 3),
            mov(R0, 0),
            exit(),
        ]
    };
    t.gives("calls_of_calls_use_all_of_the_stack", &thirds(-128), 1);
    t.refuses(
        "calls_of_calls_use_more_than_the_stack",
        &thirds(-136),
        "stack depth",
    );
    // Not inside each other, two functions may use the same room.
    let program = [
        st(DW, R10, -256, 5),
        call_local(3),
        call_local(5),
        ldx(DW, R0, R10, -256),
        exit(),
        st(DW, R10, -256, 6),
        mov(R0, 0),
        exit(),
        st(DW, R10, -256, 7),
        mov(R0, 0),
        exit(),
    ];
    t.gives("calls_one_after_the_other_share_the_stack", &program, 5);
}

/// `frames` functions inside each other; the last gives 100, each adds its place: 1, 2, ….
fn chain(frames: i32) -> Vec<Insn> {
    let link = |place| [mov(R6, place), call_local(2), add(R0, R6), exit()];
    let links = (1..frames).flat_map(link);
    links.chain([mov(R0, 100), exit()]).collect()
}

fn nesting(t: &mut Table) {
    for (frames, want) in [(1, 100), (2, 101), (3, 103), (5, 110), (8, 128)] {
        t.gives(format!("frames_{frames}_deep"), &chain(frames), want);
    }
    t.refuses("frames_9_deep", &chain(9), "call depth");
    t.refuses("frames_20_deep", &chain(20), "call depth");
}

fn refused(t: &mut Table) {
    let program = [call_local(-1), exit()];
    t.refuses("recursion_of_the_program", &program, "recursion");
    let program = [call_local(1), exit(), call_local(-1), exit()];
    t.refuses("recursion_of_a_function", &program, "recursion");
    let program = [
        call_local(1),
        exit(),
        call_local(1),
        exit(),
        call_local(-3),
        exit(),
    ];
    t.refuses("recursion_of_two_functions", &program, "recursion");
    let program = [call_local(2), exit()];
    t.refuses("call_beyond_the_end", &program, "jump out");
    let program = [call_local(-2), exit()];
    t.refuses("call_before_the_beginning", &program, "jump out");
    for (name, off) in [("largest", i32::MAX), ("smallest", i32::MIN)] {
        let program = [call_local(off), exit()];
        t.refuses(format!("call_of_the_{name}_distance"), &program, "jump out");
    }
    let program = [call_local(2), exit(), ld_imm64(R0, 0), exit()];
    t.refuses("call_into_a_constant", &program, "jump into constant");
    let program = [mov(R0, 0), call_local(1), exit(), mov(R0, 1), ja(-3)];
    t.refuses("jump_into_the_caller", &program, "jump out");
    let program = [
        call_local(3),
        jmp64(EQ, R0, 0, 2),
        mov(R0, 0),
        exit(),
        mov(R0, 1),
        exit(),
    ];
    t.refuses("branch_into_the_callee", &program, "jump out");
    let program = [call_local(1), exit(), mov(R0, 1)];
    t.refuses("callee_without_an_end", &program, "fall through");
    let program = [call_local(0)];
    t.refuses("call_with_nothing_behind", &program, "jump out");
    for reg in [R1, R2, R3, R4, R5] {
        let program = [
            mov(reg, 1),
            call_local(2),
            mov(R0, reg),
            exit(),
            mov(R0, 0),
            exit(),
        ];
        t.refuses(
            format!("call_spoils_register_{}", reg.0),
            &program,
            "unset register",
        );
    }
    for reg in [R0, R6, R7, R8, R9] {
        let program = [
            mov(R0, 0),
            mov(reg, 1),
            call_local(1),
            exit(),
            add(reg, 1),
            mov(R0, 0),
            exit(),
        ];
        t.refuses(
            format!("callee_does_not_see_register_{}", reg.0),
            &program,
            "unset register",
        );
    }
}
