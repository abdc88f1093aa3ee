// XXH64 of 1 KiB.
#include "corpus.h"

#define P1 0x9e3779b185ebca87ull
#define P2 0xc2b2ae3d27d4eb4full
#define P3 0x165667b19e3779f9ull
#define P4 0x85ebca77c2b2ae63ull

enum { BYTES = 1024 };

INLINE u64 round(u64 acc, u64 lane) { return rol64(acc + lane * P2, 31) * P1; }
INLINE u64 merge(u64 hash, u64 acc) { return (hash ^ round(0, acc)) * P1 + P4; }

ENTRY u32 xxhash64(void)
{
	const u64 *lanes = (const u64 *)in;
	u64 a = P1 + P2, b = P2, c = 0, d = -P1;
	for (u32 i = 0; i < BYTES / 8; i += 4) {
		a = round(a, lanes[i]);
		b = round(b, lanes[i + 1]);
		c = round(c, lanes[i + 2]);
		d = round(d, lanes[i + 3]);
	}
	u64 hash = rol64(a, 1) + rol64(b, 7) + rol64(c, 12) + rol64(d, 18);
	hash = merge(merge(merge(merge(hash, a), b), c), d) + BYTES;
	hash = (hash ^ hash >> 33) * P2;
	hash = (hash ^ hash >> 29) * P3;
	hash ^= hash >> 32;
	*(u64 *)out = hash;
	return fold(hash);
}
