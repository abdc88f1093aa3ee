// 48 numbers, sorted while they are copied.
#include "corpus.h"

enum { NUMBERS = 48 };

ENTRY u32 insertion_sort(void)
{
	const u32 *from = (const u32 *)in;
	u32 *to = (u32 *)out, sum = 0;
	for (u32 i = 0; i < NUMBERS; i++) {
		u32 value = from[i];
		u32 at = i;
		for (; at > 0 && to[at - 1] > value; at--)
			to[at] = to[at - 1];
		to[at] = value;
	}
	for (u32 i = 0; i < NUMBERS; i++)
		sum = sum * 31 + to[i];
	return sum;
}
