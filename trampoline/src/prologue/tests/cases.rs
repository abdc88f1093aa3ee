//! Prologues that are hard to move, and what becomes of them.

use rv64::FReg;
use rv64::Reg::{A4, A5, S1};

use super::*;

/// The table. Where [`NEAR`] is written `j` reaches, where [`FAR`] is `auipc`, where [`BEYOND`] is
/// only a constant.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name, reach, at, insns: &[Insn], want| {
        let bytes = padded(insns);
        cases.push(Case {
            name,
            bytes,
            reach,
            at,
            want,
        });
    };
    use Reach::{Far, Near};
    let frame = [
        insn::addi(Sp, Sp, imm!(-32)),
        insn::sd(Ra, Sp, imm!(24)),
        insn::sd(Fp, Sp, imm!(16)),
        insn::addi(Fp, Sp, imm!(32)),
    ];
    case(
        "a frame, near",
        Near,
        NEAR,
        &frame,
        "
            addi sp, sp, -32
            sd ra, 24(sp)
            j 1000000004
        ",
    );
    case(
        "a frame, far",
        Far,
        FAR,
        &frame,
        "
            addi sp, sp, -32
            sd ra, 24(sp)
            sd s0, 16(sp)
            addi s0, sp, 32
            auipc t1, 0xbffff
            jalr zero, 1348(t1) # 1000000008
        ",
    );
    case(
        "a frame, beyond",
        Far,
        BEYOND,
        &frame,
        "
            addi sp, sp, -32
            sd ra, 24(sp)
            sd s0, 16(sp)
            addi s0, sp, 32
            auipc t1, 0x0
            ld t1, 16(t1) # 11000000018
            jr t1
        ",
    );
    let address = [insn::auipc(A0, imm!(0x10)), insn::addi(A0, A0, imm!(-8))];
    case(
        "an address, its partner outside",
        Near,
        FAR,
        &address,
        "
            auipc a0, 0xc000f
            addi a0, a0, 1348 # 1000010000
            auipc t1, 0xbffff
            jalr zero, 1344(t1) # 1000000004
        ",
    );
    case(
        "an address",
        Far,
        FAR,
        &address,
        "
            auipc a0, 0xc000f
            addi a0, a0, 1340 # 100000fff8
            addi a3, a3, 1
            auipc t1, 0xbffff
            jalr zero, 1346(t1) # 1000000008
        ",
    );
    case(
        "an address, beyond",
        Far,
        BEYOND,
        &address,
        "
            auipc a0, 0x0
            ld a0, 24(a0) # 11000000018
            addi a3, a3, 1
            auipc t1, 0x0
            ld t1, 22(t1) # 11000000020
            jr t1
        ",
    );
    let load = |imm| [insn::auipc(A0, imm!(-1)), insn::lhu(A0, A0, imm)];
    case(
        "a global",
        Far,
        FAR,
        &load(imm!(2047)),
        "
            auipc a0, 0xbffff
            lhu a0, -701(a0) # ffffff7ff
            auipc t1, 0xbffff
            jalr zero, 1348(t1) # 1000000008
        ",
    );
    case(
        "a global, beyond",
        Far,
        BEYOND,
        &load(imm!(-2048)),
        "
            auipc a0, 0x0
            ld a0, 24(a0) # 11000000018
            lhu a0, 0(a0)
            auipc t1, 0x0
            ld t1, 20(t1) # 11000000020
            jr t1
        ",
    );
    case(
        "a global, something in between",
        Far,
        FAR,
        &[
            insn::auipc(A5, imm!(1)),
            insn::addi(S1, A0, imm!(0)),
            insn::lw(A5, A5, imm!(100)),
        ],
        "
            mv s1, a0
            auipc a5, 0xc0000
            lw a5, 1446(a5) # 1000001064
            auipc t1, 0xbffff
            jalr zero, 1346(t1) # 1000000008
        ",
    );
    case(
        "a store, which leaves its base",
        Far,
        FAR,
        &[insn::auipc(A5, imm!(1)), insn::sd(A0, A5, imm!(100))],
        "
            auipc a5, 0xc0000
            addi a5, a5, 1348 # 1000001000
            sd a0, 100(a5)
            auipc t1, 0xbffff
            jalr zero, 1344(t1) # 1000000008
        ",
    );
    case(
        "a load to another register",
        Far,
        FAR,
        &[insn::auipc(A5, imm!(1)), insn::ld(A0, A5, imm!(100))],
        "
            auipc a5, 0xc0000
            addi a5, a5, 1348 # 1000001000
            ld a0, 100(a5)
            auipc t1, 0xbffff
            jalr zero, 1344(t1) # 1000000008
        ",
    );
    case(
        "a load of a float",
        Far,
        FAR,
        &[
            insn::auipc(A5, imm!(1)),
            insn::fld(FReg::Fa0, A5, imm!(100)),
        ],
        "
            auipc a5, 0xc0000
            addi a5, a5, 1348 # 1000001000
            fld fa0, 100(a5)
            auipc t1, 0xbffff
            jalr zero, 1344(t1) # 1000000008
        ",
    );
    case(
        "the address is looked at before its partner",
        Far,
        FAR,
        &[
            insn::auipc(A5, imm!(1)),
            insn::add(A4, A4, A5),
            insn::ld(A5, A5, imm!(100)),
        ],
        "
            auipc a5, 0xc0000
            addi a5, a5, 1348 # 1000001000
            add a4, a4, a5
            ld a5, 100(a5)
            auipc t1, 0xbffff
            jalr zero, 1344(t1) # 100000000a
        ",
    );
    case(
        "two addresses",
        Far,
        FAR,
        &[
            insn::auipc(A0, imm!(1)),
            insn::auipc(A1, imm!(2)),
            insn::addi(A1, A1, imm!(1)),
        ],
        "
            auipc a0, 0xc0000
            addi a0, a0, 1348 # 1000001000
            auipc a1, 0xc0001
            addi a1, a1, 1344 # 1000002004
            auipc t1, 0xbffff
            jalr zero, 1340(t1) # 1000000008
        ",
    );
    case(
        "a branch",
        Near,
        NEAR,
        &[
            insn::beq(A0, Zero, offset!(0x80)),
            insn::ld(A1, A0, imm!(8)),
        ],
        "
            bnez a0, 1000010ac2
            j 1000000080
            ld a1, 8(a0)
            j 1000000004
        ",
    );
    case(
        "branches, far",
        Far,
        FAR,
        &[
            insn::bltu(A0, A1, offset!(0x800)),
            insn::bge(A2, Zero, offset!(-0x400)),
        ],
        "
            bgeu a0, a1, 1040000ac8
            auipc t1, 0xc0000
            jalr zero, -704(t1) # 1000000800
            blt a2, zero, 1040000ad4
            auipc t1, 0xbffff
            jalr zero, 312(t1) # ffffffc04
            auipc t1, 0xbffff
            jalr zero, 1332(t1) # 1000000008
        ",
    );
    case(
        "a branch over one",
        Far,
        NEAR,
        &[
            insn::bne(A0, Zero, offset!(4)),
            insn::addi(A0, Zero, imm!(1)),
            insn::addi(A1, A1, imm!(1)),
            insn::addi(A2, A2, imm!(1)),
        ],
        "
            bnez a0, 1000010ac0
            li a0, 1
            addi a1, a1, 1
            addi a2, a2, 1
            j 1000000008
        ",
    );
    case(
        "a branch to an address's partner",
        Far,
        FAR,
        &[
            insn::bne(A0, Zero, offset!(6)),
            insn::auipc(A0, imm!(1)),
            insn::addi(A0, A0, imm!(1)),
            insn::addi(A2, A2, imm!(1)),
        ],
        "
            bnez a0, 1040000ac6
            auipc a0, 0xc0000
            addi a0, a0, 1348 # 1000001002
            addi a0, a0, 1
            auipc t1, 0xbffff
            jalr zero, 1344(t1) # 1000000008
        ",
    );
    case(
        "a branch to what is behind",
        Far,
        FAR,
        &[insn::beq(A0, A1, offset!(8)), insn::addi(A0, A1, imm!(100))],
        "
            bne a0, a1, 1040000ac8
            auipc t1, 0xbffff
            jalr zero, 1352(t1) # 1000000008
            addi a0, a1, 100
            auipc t1, 0xbffff
            jalr zero, 1340(t1) # 1000000008
        ",
    );
    case(
        "a jump",
        Near,
        NEAR,
        &[call(Zero, 0x8000)],
        "
            j 1000008000
        ",
    );
    case(
        "a jump, far",
        Near,
        FAR,
        &[call(Zero, 0x8000)],
        "
            auipc t1, 0xc0007
            jalr zero, 1348(t1) # 1000008000
        ",
    );
    case(
        "a jump over one",
        Far,
        FAR,
        &[
            insn::beq(A0, Zero, offset!(4)),
            call(Zero, 4),
            insn::addi(A0, A0, imm!(1)),
            insn::addi(A1, A1, imm!(1)),
        ],
        "
            beqz a0, 1040000ac0
            j 1040000ac2
            addi a0, a0, 1
            addi a1, a1, 1
            auipc t1, 0xbffff
            jalr zero, 1348(t1) # 1000000008
        ",
    );
    case(
        "a tail call",
        Far,
        FAR,
        &[insn::auipc(T1, imm!(0x100)), insn::jalr(Zero, T1, imm!(4))],
        "
            auipc t1, 0xc00ff
            addi t1, t1, 1348 # 1000100000
            jalr zero, 4(t1)
        ",
    );
    let caller = [insn::addi(Sp, Sp, imm!(-16)), call(Ra, 0x4000)];
    case(
        "a call, near",
        Near,
        NEAR,
        &caller,
        "
            addi sp, sp, -16
            auipc ra, 0xfffef
            addi ra, ra, 1352 # 1000000006
            j 1000004002
        ",
    );
    case(
        "a call, far",
        Near,
        FAR,
        &caller,
        "
            addi sp, sp, -16
            auipc ra, 0xbffff
            addi ra, ra, 1352 # 1000000006
            auipc t1, 0xc0003
            jalr zero, 1340(t1) # 1000004002
        ",
    );
    case(
        "a call, beyond",
        Near,
        BEYOND,
        &caller,
        "
            addi sp, sp, -16
            auipc ra, 0x0
            ld ra, 22(ra) # 11000000018
            auipc t1, 0x0
            ld t1, 22(t1) # 11000000020
            jr t1
        ",
    );
    case(
        "a call by a pair",
        Far,
        FAR,
        &[insn::auipc(Ra, imm!(0x100)), insn::jalr(Ra, Ra, imm!(-2))],
        "
            auipc ra, 0xbffff
            addi ra, ra, 1356 # 1000000008
            auipc t1, 0xc00ff
            jalr zero, 1338(t1) # 10000ffffe
        ",
    );
    case(
        "a call through its link",
        Far,
        FAR,
        &[insn::ld(Ra, A0, imm!(8)), insn::jalr(Ra, Ra, imm!(8))],
        "
            ld ra, 8(a0)
            mv t1, ra
            auipc ra, 0xbffff
            addi ra, ra, 1350 # 1000000008
            jalr zero, 8(t1)
        ",
    );
    case(
        "a call through a register",
        Near,
        NEAR,
        &[insn::ld(A5, A0, imm!(8)), insn::jalr(Ra, A5, imm!(0))],
        "
            ld a5, 8(a0)
            auipc ra, 0xfffef
            addi ra, ra, 1350 # 1000000004
            jr a5
        ",
    );
    case(
        "millicode is called",
        Near,
        FAR,
        &[call(T0, 0x4000)],
        "
            auipc t0, 0xbffff
            addi t0, t0, 1352 # 1000000004
            auipc t1, 0xc0003
            jalr zero, 1340(t1) # 1000004000
        ",
    );
    case(
        "it calls itself",
        Near,
        FAR,
        &[insn::addi(A0, A0, imm!(-1)), call(Ra, -2)],
        "
            addi a0, a0, -1
            auipc ra, 0xbffff
            addi ra, ra, 1352 # 1000000006
            auipc t1, 0xbffff
            jalr zero, 1338(t1) # 1000000000
        ",
    );
    case(
        "it returns at once",
        Near,
        FAR,
        &[insn::addi(A0, Zero, imm!(0)), insn::ret()],
        "
            li a0, 0
            ret
        ",
    );
    case(
        "the first scratch register is taken",
        Far,
        FAR,
        &[
            insn::lui(T1, imm!(1)),
            insn::addi(T3, T1, imm!(1)),
            insn::add(A0, A0, T3),
        ],
        "
            lui t1, 0x1
            addi t3, t1, 1
            add a0, a0, t3
            auipc t4, 0xbffff
            jalr zero, 1348(t4) # 1000000008
        ",
    );
    case(
        "a system call",
        Near,
        FAR,
        &[insn::ecall()],
        "
            ecall
            auipc t1, 0xbffff
            jalr zero, 1348(t1) # 1000000004
        ",
    );
    case(
        "a thread's variable",
        Far,
        FAR,
        &[
            insn::lui(A5, imm!(64)),
            insn::add(A5, A5, Tp),
            insn::ld(A5, A5, imm!(64)),
        ],
        "
            lui a5, 0x40
            add a5, a5, tp
            ld a5, 64(a5)
            auipc t1, 0xbffff
            jalr zero, 1348(t1) # 1000000008
        ",
    );
    cases.push(Case {
        name: "vectors",
        bytes: function(|asm| {
            asm.emit_encoded(&0x0c05_72d7_u32.to_le_bytes()); // vsetvli t0, a0, e8, m1, ta, ma
            asm.emit_encoded(&0x0205_8407_u32.to_le_bytes()); // vle8.v v8, (a1)
            asm.emit(insn::ret());
        }),
        reach: Far,
        at: FAR,
        want: "
            .insn 4, 0xc0572d7
            .insn 4, 0x2058407
            auipc t1, 0xbffff
            jalr zero, 1348(t1) # 1000000008
        ",
    });
    cases
}
