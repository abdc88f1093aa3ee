// Bob Jenkins's lookup3 of 32 keys of 36 bytes.
#include "corpus.h"

enum { KEYS = 32, WORDS = 9 };

#define MIX(a, b, c)                                                                               \
	a -= c; a ^= rol32(c, 4); c += b;                                                          \
	b -= a; b ^= rol32(a, 6); a += c;                                                          \
	c -= b; c ^= rol32(b, 8); b += a;                                                          \
	a -= c; a ^= rol32(c, 16); c += b;                                                         \
	b -= a; b ^= rol32(a, 19); a += c;                                                         \
	c -= b; c ^= rol32(b, 4); b += a;

#define FINAL(a, b, c)                                                                             \
	c ^= b; c -= rol32(b, 14);                                                                 \
	a ^= c; a -= rol32(c, 11);                                                                 \
	b ^= a; b -= rol32(a, 25);                                                                 \
	c ^= b; c -= rol32(b, 16);                                                                 \
	a ^= c; a -= rol32(c, 4);                                                                  \
	b ^= a; b -= rol32(a, 14);                                                                 \
	c ^= b; c -= rol32(b, 24);

ENTRY u32 jhash(void)
{
	u32 *hashes = (u32 *)out, sum = 0;
	for (u32 i = 0; i < KEYS; i++) {
		const u32 *key = (const u32 *)in + i * WORDS;
		u32 a = 0xdeadbeef + WORDS * 4, b = a, c = a;
		for (u32 at = 0; at < WORDS - 3; at += 3) {
			a += key[at];
			b += key[at + 1];
			c += key[at + 2];
			MIX(a, b, c)
		}
		a += key[WORDS - 3];
		b += key[WORDS - 2];
		c += key[WORDS - 1];
		FINAL(a, b, c)
		hashes[i] = c;
		sum ^= c;
	}
	return sum;
}
