/*
 * Ten thousand times long f(long a, long b) { return a + b; } behind a pad, 16 bytes each, of
 * which the first one has a name. A file of its own: programs that do not ask for it do not get it.
 */
	.text
	.balign	16
	.globl	tl_many
	.type	tl_many, @function
	.size	tl_many, 16
tl_many:
	.rept	10000
1:
	.cfi_startproc
	.rept	5
	c.nop
	.endr
	add	a0, a0, a1
	ret
	.cfi_endproc
	.section __patchable_function_entries,"awo",@progbits,.text
	.balign	8
	.quad	1b
	.text
	.balign	16
	.endr
