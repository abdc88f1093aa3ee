// Two matrices of 8 by 8 numbers with 16 bits behind the point, multiplied.
#include "corpus.h"

enum { N = 8 };

ENTRY u32 matrix(void)
{
	const s32 *a = (const s32 *)in, *b = a + N * N;
	s32 *c = (s32 *)out;
	u32 sum = 0;
	for (u32 i = 0; i < N; i++) {
		for (u32 j = 0; j < N; j++) {
			s64 dot = 0;
			for (u32 k = 0; k < N; k++)
				dot += (s64)a[i * N + k] * b[k * N + j];
			c[i * N + j] = dot >> 16;
			sum = sum * 31 + c[i * N + j];
		}
	}
	return sum;
}
