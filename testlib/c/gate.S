/*
 * tl_abi_gate: stands between a caller and a callee without either noticing, and looks.
 *
 * On entry it writes all argument registers and the stack words above sp into tl_abi_dump; calls
 * tl_abi_probe(dump) if there is one; fills the callee-saved registers, fcsr and the temporaries
 * with patterns; calls tl_abi_target with the argument registers and sp as they came; then writes
 * down what came back and restores what its own caller had. It keeps nothing on the stack, so that
 * the callee finds its stack arguments where it expects them; so one call at a time, from one
 * thread.
 *
 * Offsets: struct Dump in src/abi.rs, which asserts them.
 */
#define D_A         0       /* a0-a7 at entry */
#define D_FA        64      /* fa0-fa7 at entry */
#define D_SP        128
#define D_STACK     136     /* 64 words from sp */
#define D_PAT_S     648     /* what s0-s11 are set to */
#define D_PAT_FS    744     /* what fs0-fs11 are set to */
#define D_PAT_FCSR  840
#define D_RET_A     848     /* a0, a1 at return */
#define D_RET_FA    864     /* fa0, fa1 at return */
#define D_RET_SP    880
#define D_RET_S     888     /* s0-s11 at return */
#define D_RET_FS    984     /* fs0-fs11 at return */
#define D_RET_FCSR  1080
#define D_RET_GP    1088
#define D_RET_TP    1096
#define D_SAVE_S    1104    /* the caller's s0-s11 */
#define D_SAVE_FS   1200    /* the caller's fs0-fs11 */
#define D_SAVE_FCSR 1296
#define D_SAVE_RA   1304
#define D_SAVE_GP   1312
#define D_SAVE_TP   1320
#define D_BYTES     1328

.macro int_args op
	\op a0, D_A+0(t0)
	\op a1, D_A+8(t0)
	\op a2, D_A+16(t0)
	\op a3, D_A+24(t0)
	\op a4, D_A+32(t0)
	\op a5, D_A+40(t0)
	\op a6, D_A+48(t0)
	\op a7, D_A+56(t0)
.endm

.macro fp_args op
	\op fa0, D_FA+0(t0)
	\op fa1, D_FA+8(t0)
	\op fa2, D_FA+16(t0)
	\op fa3, D_FA+24(t0)
	\op fa4, D_FA+32(t0)
	\op fa5, D_FA+40(t0)
	\op fa6, D_FA+48(t0)
	\op fa7, D_FA+56(t0)
.endm

.macro callee_saved op, fop, s, fs
	\op s0, \s+0(t0)
	\op s1, \s+8(t0)
	\op s2, \s+16(t0)
	\op s3, \s+24(t0)
	\op s4, \s+32(t0)
	\op s5, \s+40(t0)
	\op s6, \s+48(t0)
	\op s7, \s+56(t0)
	\op s8, \s+64(t0)
	\op s9, \s+72(t0)
	\op s10, \s+80(t0)
	\op s11, \s+88(t0)
	\fop fs0, \fs+0(t0)
	\fop fs1, \fs+8(t0)
	\fop fs2, \fs+16(t0)
	\fop fs3, \fs+24(t0)
	\fop fs4, \fs+32(t0)
	\fop fs5, \fs+40(t0)
	\fop fs6, \fs+48(t0)
	\fop fs7, \fs+56(t0)
	\fop fs8, \fs+64(t0)
	\fop fs9, \fs+72(t0)
	\fop fs10, \fs+80(t0)
	\fop fs11, \fs+88(t0)
.endm

	.text
	.globl	tl_abi_gate
	.type	tl_abi_gate, @function
	.balign	4
tl_abi_gate:
	.cfi_startproc
	lla	t0, tl_abi_dump
	int_args sd
	fp_args fsd
	sd	sp, D_SP(t0)
	addi	t1, t0, D_STACK
	mv	t2, sp
	li	t3, 64
1:	ld	t4, 0(t2)
	sd	t4, 0(t1)
	addi	t1, t1, 8
	addi	t2, t2, 8
	addi	t3, t3, -1
	bnez	t3, 1b
	callee_saved sd, fsd, D_SAVE_S, D_SAVE_FS
	frcsr	t1
	sd	t1, D_SAVE_FCSR(t0)
	sd	ra, D_SAVE_RA(t0)
	sd	gp, D_SAVE_GP(t0)
	sd	tp, D_SAVE_TP(t0)

	lla	t1, tl_abi_probe
	ld	t1, 0(t1)
	beqz	t1, 2f
	mv	a0, t0
	jalr	t1
	lla	t0, tl_abi_dump
2:
	callee_saved ld, fld, D_PAT_S, D_PAT_FS
	ld	t1, D_PAT_FCSR(t0)
	fscsr	t1
	int_args ld
	fp_args fld
	lla	t1, tl_abi_target
	ld	t1, 0(t1)
	/* Temporaries hold nothing the callee may count on. */
	li	t0, 0x7e0
	li	t2, 0x7e2
	li	t3, 0x7e3
	li	t4, 0x7e4
	li	t5, 0x7e5
	li	t6, 0x7e6
	jalr	t1

	lla	t0, tl_abi_dump
	sd	a0, D_RET_A+0(t0)
	sd	a1, D_RET_A+8(t0)
	fsd	fa0, D_RET_FA+0(t0)
	fsd	fa1, D_RET_FA+8(t0)
	sd	sp, D_RET_SP(t0)
	sd	gp, D_RET_GP(t0)
	sd	tp, D_RET_TP(t0)
	frcsr	t1
	sd	t1, D_RET_FCSR(t0)
	callee_saved sd, fsd, D_RET_S, D_RET_FS

	callee_saved ld, fld, D_SAVE_S, D_SAVE_FS
	ld	t1, D_SAVE_FCSR(t0)
	fscsr	t1
	ld	sp, D_SP(t0)
	ld	gp, D_SAVE_GP(t0)
	ld	tp, D_SAVE_TP(t0)
	ld	ra, D_SAVE_RA(t0)
	ret
	.cfi_endproc
	.size	tl_abi_gate, .-tl_abi_gate

/*
 * tl_clobber: overwrites every register that a call may change: t0-t6, a0-a7, ft0-ft11, fa0-fa7.
 */
	.globl	tl_clobber
	.type	tl_clobber, @function
	.balign	4
tl_clobber:
	.cfi_startproc
	li	t0, 0x5bad5bad5bad5bad
	fmv.d.x	ft0, t0
	fmv.d.x	ft1, t0
	fmv.d.x	ft2, t0
	fmv.d.x	ft3, t0
	fmv.d.x	ft4, t0
	fmv.d.x	ft5, t0
	fmv.d.x	ft6, t0
	fmv.d.x	ft7, t0
	fmv.d.x	ft8, t0
	fmv.d.x	ft9, t0
	fmv.d.x	ft10, t0
	fmv.d.x	ft11, t0
	fmv.d.x	fa0, t0
	fmv.d.x	fa1, t0
	fmv.d.x	fa2, t0
	fmv.d.x	fa3, t0
	fmv.d.x	fa4, t0
	fmv.d.x	fa5, t0
	fmv.d.x	fa6, t0
	fmv.d.x	fa7, t0
	mv	a0, t0
	mv	a1, t0
	mv	a2, t0
	mv	a3, t0
	mv	a4, t0
	mv	a5, t0
	mv	a6, t0
	mv	a7, t0
	mv	t1, t0
	mv	t2, t0
	mv	t3, t0
	mv	t4, t0
	mv	t5, t0
	mv	t6, t0
	ret
	.cfi_endproc
	.size	tl_clobber, .-tl_clobber

	.bss
	.balign	16
	.globl	tl_abi_dump, tl_abi_probe, tl_abi_target, tl_abi_nr_calls
	.globl	tl_abi_in, tl_abi_got, tl_abi_ret, tl_abi_out
	.hidden	tl_abi_dump, tl_abi_probe, tl_abi_target, tl_abi_nr_calls
	.hidden	tl_abi_in, tl_abi_got, tl_abi_ret, tl_abi_out
tl_abi_dump:	.zero	D_BYTES
tl_abi_in:	.zero	8192
tl_abi_got:	.zero	8192
tl_abi_ret:	.zero	8192
tl_abi_out:	.zero	8192
tl_abi_probe:	.zero	8
tl_abi_target:	.zero	8
tl_abi_nr_calls: .zero	8

	.data
	.balign	8
	.globl	tl_abi_entry
tl_abi_entry:	.quad	tl_abi_gate

	.section .note.GNU-stack,"",@progbits
