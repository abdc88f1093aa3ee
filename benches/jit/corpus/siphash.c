// SipHash-2-4 of 512 bytes, the key before them.
#include "corpus.h"

enum { WORDS = 64 };

#define ROUND                                                                                      \
	v0 += v1; v1 = rol64(v1, 13) ^ v0; v0 = rol64(v0, 32);                                     \
	v2 += v3; v3 = rol64(v3, 16) ^ v2;                                                         \
	v0 += v3; v3 = rol64(v3, 21) ^ v0;                                                         \
	v2 += v1; v1 = rol64(v1, 17) ^ v2; v2 = rol64(v2, 32);

ENTRY u32 siphash(void)
{
	const u64 *words = (const u64 *)in;
	u64 k0 = words[0], k1 = words[1];
	u64 v0 = k0 ^ 0x736f6d6570736575ull, v1 = k1 ^ 0x646f72616e646f6dull;
	u64 v2 = k0 ^ 0x6c7967656e657261ull, v3 = k1 ^ 0x7465646279746573ull;
	for (u32 i = 0; i < WORDS; i++) {
		u64 m = words[2 + i];
		v3 ^= m;
		ROUND ROUND
		v0 ^= m;
	}
	v3 ^= (u64)(WORDS * 8) << 56;
	ROUND ROUND
	v0 ^= (u64)(WORDS * 8) << 56;
	v2 ^= 0xff;
	ROUND ROUND ROUND ROUND
	u64 hash = v0 ^ v1 ^ v2 ^ v3;
	*(u64 *)out = hash;
	return fold(hash);
}
