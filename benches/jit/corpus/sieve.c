// The primes below 1024.
#include "corpus.h"

enum { LIMIT = 1024 };

ENTRY u32 sieve(void)
{
	u32 count = 0;
	for (u32 i = 0; i < LIMIT / 8; i++)
		((u64 *)out)[i] = 0;
	for (u32 i = 2; i * i < LIMIT; i++) {
		if (out[i])
			continue;
		for (u32 j = i * i; j < LIMIT; j += i)
			out[j] = 1;
	}
	for (u32 i = 2; i < LIMIT; i++)
		count += !out[i];
	return count;
}
