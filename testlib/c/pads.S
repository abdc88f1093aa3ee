/*
 * Functions whose pads are placed by hand: long f(long a, long b) { return a + b; }, each with its
 * own quirk. __patchable_function_entries is written as GCC writes it.
 */
.macro pad_entry label
	.section __patchable_function_entries,"awo",@progbits,.text
	.balign	8
	.quad	\label
	.text
.endm

.macro begin name
	.globl	\name
	.type	\name, @function
\name:
	.cfi_startproc
.endm

.macro end name
	.cfi_endproc
	.size	\name, .-\name
.endm

.macro nops n
	.rept	\n
	c.nop
	.endr
.endm

	.text
	/* The pad begins on a multiple of 4. */
	.balign	4
begin tl_pad_at_0_mod_4
1:	nops	5
	add	a0, a0, a1
	ret
end tl_pad_at_0_mod_4
	pad_entry 1b

	/* The pad begins 2 bytes after a multiple of 4. */
	.balign	4
	c.nop
begin tl_pad_at_2_mod_4
1:	nops	5
	add	a0, a0, a1
	ret
end tl_pad_at_2_mod_4
	pad_entry 1b

	/* 4-byte nops, as a compiler without the C extension leaves them. */
	.balign	4
begin tl_pad_of_wide_nops
	.option push
	.option norvc
1:	.rept	5
	nop
	.endr
	add	a0, a0, a1
	ret
	.option pop
end tl_pad_of_wide_nops
	pad_entry 1b

	/* Four 2-byte nops from a multiple of 4: just enough. */
	.balign	4
begin tl_pad_just_enough
1:	nops	4
	add	a0, a0, a1
	ret
end tl_pad_just_enough
	pad_entry 1b

	/* Four 2-byte nops from 2-mod-4: no two aligned words inside. */
	.balign	4
	c.nop
begin tl_pad_just_too_short
1:	nops	4
	add	a0, a0, a1
	ret
end tl_pad_just_too_short
	pad_entry 1b

	/* A pad that somebody else uses: jumps over itself. */
	.balign	4
begin tl_pad_taken
	.option push
	.option norvc
1:	j	2f
	.option pop
	nops	3
2:	add	a0, a0, a1
	ret
end tl_pad_taken
	pad_entry 1b

	/* The vector calling convention, as far as the symbol says. */
	.variant_cc tl_variant_cc
	.balign	4
begin tl_variant_cc
1:	nops	5
	add	a0, a0, a1
	ret
end tl_variant_cc
	pad_entry 1b

	.section .note.GNU-stack,"",@progbits
