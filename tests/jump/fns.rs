//! Functions of one integer whose first instructions are hard to move.

use std::arch::global_asm;
use std::ffi::c_long;

pub(crate) type F = extern "C" fn(c_long) -> c_long;

/// What can be written over the entry.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Takes {
    Jump,
    /// No jump, but a trap.
    Trap,
    Nothing,
}

/// A function, what it takes, and what it returns of an argument.
#[derive(Copy, Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) f: F,
    pub(crate) takes: Takes,
    pub(crate) want: fn(c_long) -> c_long,
}

/// `jp!("name", "lines"…)`: a function `jp_name` with unwind tables and a size, `skip` bytes behind
/// a boundary of 8.
macro_rules! jp {
    ($name:literal, $skip:literal, $($line:literal),+ $(,)?) => {
        global_asm!(
            ".option push",
            ".option rvc",
            ".section .text.jp, \"ax\", @progbits",
            ".balign 8",
            concat!(".skip ", $skip),
            concat!(".globl jp_", $name),
            concat!(".type jp_", $name, ", @function"),
            concat!("jp_", $name, ":"),
            ".cfi_startproc",
            $($line,)+
            ".cfi_endproc",
            concat!(".size jp_", $name, ", . - jp_", $name),
            ".previous",
            ".option pop",
        );
    };
}

// Whole words, at each place that an instruction can stand at.
jp!(
    "words_0",
    "0",
    ".option push",
    ".option norvc",
    "addi a0, a0, 1",
    "slli a0, a0, 3",
    "addi a0, a0, -5",
    "ret",
    ".option pop"
);
jp!(
    "words_2",
    "2",
    ".option push",
    ".option norvc",
    "addi a0, a0, 1",
    "slli a0, a0, 3",
    "addi a0, a0, -5",
    "ret",
    ".option pop"
);
// Halves, and a word across the end of the jump.
jp!(
    "halves_0",
    "0",
    "c.addi a0, 1",
    "c.addi a0, 2",
    "c.addi a0, 3",
    "c.addi a0, 4",
    "c.addi a0, 5",
    "ret"
);
jp!(
    "halves_2",
    "2",
    "c.addi a0, 1",
    "c.addi a0, 2",
    "c.addi a0, 3",
    "xori a0, a0, 1365",
    "c.addi a0, 5",
    "ret"
);
jp!(
    "halves_4",
    "4",
    "c.addi a0, 1",
    "c.addi a0, 2",
    "c.addi a0, 3",
    "xori a0, a0, 1365",
    "c.addi a0, 5",
    "ret"
);
jp!(
    "halves_6",
    "6",
    "c.addi a0, 1",
    "xori a0, a0, 1365",
    "c.addi a0, 3",
    "c.addi a0, 5",
    "ret"
);
// An address, with its partner covered, and with one that stays behind and is used twice.
jp!(
    "pcrel",
    "0",
    "auipc a1, %pcrel_hi(jp_data)",
    "ld a1, %pcrel_lo(jp_pcrel)(a1)",
    "add a0, a0, a1",
    "ret"
);
jp!(
    "pcrel_later",
    "2",
    "auipc a1, %pcrel_hi(jp_data)",
    "xori a2, a0, 85",
    "c.addi a0, 1",
    "ld a3, %pcrel_lo(jp_pcrel_later)(a1)",
    "addi a1, a1, %pcrel_lo(jp_pcrel_later)",
    "ld a1, 8(a1)",
    "add a0, a0, a3",
    "add a0, a0, a1",
    "add a0, a0, a2",
    "ret"
);
// Branches forward, taken and not, long and short.
jp!(
    "branch",
    "0",
    "beqz a0, 1f",
    "addi a0, a0, 10",
    "slli a0, a0, 1",
    "ret",
    "1: li a0, 77",
    "ret"
);
jp!(
    "branch_short",
    "2",
    "c.bnez a0, 1f",
    "c.li a0, 19",
    "c.addi a0, 4",
    "c.addi a0, 4",
    "ret",
    "1: slli a0, a0, 2",
    "ret"
);
// Tail calls, as C makes them.
jp!(
    "tail",
    "0",
    ".option push",
    ".option norvc",
    "addi a0, a0, 1",
    "j jp_words_0",
    ".option pop"
);
jp!(
    "tail_far",
    "4",
    "c.addi a0, 1",
    "2: auipc t1, %pcrel_hi(jp_words_2)",
    "jalr x0, %pcrel_lo(2b)(t1)"
);
// A call whose return address stands in the middle of it.
jp!(
    "frame",
    "0",
    "addi sp, sp, -16",
    ".cfi_def_cfa_offset 16",
    "sd ra, 8(sp)",
    ".cfi_offset ra, -8",
    "call jp_words_0",
    "addi a0, a0, 100",
    "ld ra, 8(sp)",
    "addi sp, sp, 16",
    ".cfi_def_cfa_offset 0",
    "ret"
);
// Seven temporaries are free at an entry; this one uses them all later.
jp!(
    "temporaries",
    "0",
    "mv t0, a0",
    "mv t1, t0",
    "addi t2, t1, 1",
    "mv t3, t2",
    "mv t4, t3",
    "mv t5, t4",
    "addi t6, t5, 1",
    "mv a0, t6",
    "ret"
);
// Too short for any jump.
jp!("short", "0", "ret");
// The second instruction is the head of a loop.
jp!(
    "loop_inside",
    "0",
    "c.li a1, 0",
    "1: add a1, a1, a0",
    "c.addi a0, -1",
    "bgtz a0, 1b",
    "mv a0, a1",
    "ret"
);
// The entry itself is one: each round would look like a call.
jp!(
    "loop_entry",
    "0",
    "addi a0, a0, -3",
    "addi a0, a0, 0",
    "bgtz a0, jp_loop_entry",
    "ret"
);

global_asm!(
    ".section .data.jp, \"aw\", @progbits",
    ".balign 8",
    "jp_data: .dword 1000",
    ".dword 30000",
    ".previous",
);

macro_rules! cases {
    ($($f:ident $takes:ident $want:expr;)*) => {
        unsafe extern "C" {
            $(safe fn $f(x: c_long) -> c_long;)*
        }

        pub(crate) const CASES: &[Case] = &[
            $(Case { name: stringify!($f), f: $f, takes: Takes::$takes, want: $want },)*
        ];
    };
}

const fn words(x: c_long) -> c_long {
    (x + 1) * 8 - 5
}

cases! {
    jp_words_0 Jump words;
    jp_words_2 Jump words;
    jp_halves_0 Jump |x| x + 15;
    jp_halves_2 Jump |x| ((x + 6) ^ 1365) + 5;
    jp_halves_4 Jump |x| ((x + 6) ^ 1365) + 5;
    jp_halves_6 Jump |x| ((x + 1) ^ 1365) + 8;
    jp_pcrel Jump |x| x + 1000;
    jp_pcrel_later Jump |x| x + 1 + 1000 + 30000 + (x ^ 85);
    jp_branch Jump |x| if x == 0 { 77 } else { (x + 10) * 2 };
    jp_branch_short Jump |x| if x == 0 { 27 } else { x * 4 };
    jp_tail Jump |x| words(x + 1);
    jp_tail_far Jump |x| words(x + 1);
    jp_frame Jump |x| words(x) + 100;
    jp_temporaries Jump |x| x + 2;
    jp_short Trap |x| x;
    jp_loop_inside Trap |x| if x > 0 { x * (x + 1) / 2 } else { x };
    jp_loop_entry Nothing |x| {
        let mut x = x - 3;
        while x > 0 {
            x -= 3;
        }
        x
    };
}
