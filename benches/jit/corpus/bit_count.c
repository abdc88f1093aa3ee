// The bits of 128 words: how many, and the words with their bits in reverse.
#include "corpus.h"

enum { WORDS = 128 };

INLINE u64 count(u64 x)
{
	x -= x >> 1 & 0x5555555555555555ull;
	x = (x & 0x3333333333333333ull) + (x >> 2 & 0x3333333333333333ull);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0full;
	return x * 0x0101010101010101ull >> 56;
}

INLINE u64 reverse(u64 x)
{
	x = (x >> 1 & 0x5555555555555555ull) | (x & 0x5555555555555555ull) << 1;
	x = (x >> 2 & 0x3333333333333333ull) | (x & 0x3333333333333333ull) << 2;
	x = (x >> 4 & 0x0f0f0f0f0f0f0f0full) | (x & 0x0f0f0f0f0f0f0f0full) << 4;
	return __builtin_bswap64(x);
}

ENTRY u32 bit_count(void)
{
	const u64 *from = (const u64 *)in;
	u64 *to = (u64 *)out;
	u32 sum = 0;
	for (u32 i = 0; i < WORDS; i++) {
		sum += count(from[i]);
		to[i] = reverse(from[i]);
	}
	return sum;
}
