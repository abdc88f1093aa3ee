// A hash of 64 words, by a function that is called for each.
#include "corpus.h"

enum { WORDS = 64 };

ENTRY static __attribute__((noinline)) u64 mix(u64 hash, u64 word);

ENTRY u32 calls(void)
{
	const u64 *words = (const u64 *)in;
	u64 hash = 0;
	for (u32 i = 0; i < WORDS; i++)
		hash = mix(hash, words[i]);
	*(u64 *)out = hash;
	return fold(hash);
}

static u64 mix(u64 hash, u64 word)
{
	hash ^= word * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 29;
}
