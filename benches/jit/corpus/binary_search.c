// 64 keys looked for among 512 numbers in order, which stand behind the keys.
#include "corpus.h"

enum { KEYS = 64, NUMBERS = 512, STEPS = 9 };

ENTRY u32 binary_search(void)
{
	const u32 *keys = (const u32 *)in, *numbers = keys + KEYS;
	u32 *places = (u32 *)out, sum = 0;
	for (u32 i = 0; i < KEYS; i++) {
		u32 low = ZERO, width = NUMBERS;
		for (u32 step = 0; step < STEPS; step++) {
			width /= 2;
			if (numbers[BELOW(low + width, NUMBERS)] <= keys[i])
				low += width;
		}
		places[i] = low;
		sum = sum * 31 + low;
	}
	return sum;
}
