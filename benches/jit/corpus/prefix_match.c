// 16 paths of 64 bytes, and for each how many of 8 prefixes of up to 16 bytes it begins with. The
// prefixes stand behind the paths, ended by a zero.
#include "corpus.h"

enum { PATHS = 16, PATH_BYTES = 64, PREFIXES = 8, PREFIX_BYTES = 16 };

INLINE u32 begins_with(const u8 *path, const u8 *prefix)
{
	for (u32 i = 0; i < PREFIX_BYTES; i++) {
		if (!prefix[i])
			return 1;
		if (prefix[i] != path[i])
			return 0;
	}
	return 1;
}

ENTRY u32 prefix_match(void)
{
	const u8 *prefixes = in + PATHS * PATH_BYTES;
	u32 sum = 0;
	for (u32 i = 0; i < PATHS; i++) {
		u32 matches = 0;
		for (u32 j = 0; j < PREFIXES; j++)
			matches += begins_with(in + i * PATH_BYTES, prefixes + j * PREFIX_BYTES);
		out[i] = matches;
		sum = sum * 31 + matches;
	}
	return sum;
}
