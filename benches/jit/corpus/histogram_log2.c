// 256 values sorted into slots by their base-2 logarithm, as tracing tools do.
#include "corpus.h"

enum { VALUES = 256, SLOTS = 64 };

INLINE u32 log2_u32(u32 v)
{
	u32 r = (v > 0xffff) << 4, shift;
	v >>= r;
	shift = (v > 0xff) << 3; v >>= shift; r |= shift;
	shift = (v > 0xf) << 2; v >>= shift; r |= shift;
	shift = (v > 0x3) << 1; v >>= shift; r |= shift;
	return r | v >> 1;
}

INLINE u32 log2_u64(u64 v)
{
	u32 high = v >> 32;
	return high ? log2_u32(high) + 32 : log2_u32(v);
}

ENTRY u32 histogram_log2(void)
{
	const u64 *values = (const u64 *)in;
	u64 *slots = (u64 *)out;
	u32 sum = 0;
	for (u32 i = 0; i < SLOTS; i++)
		slots[i] = 0;
	for (u32 i = 0; i < VALUES; i++)
		slots[BELOW(log2_u64(values[i]), SLOTS)]++;
	for (u32 i = 0; i < SLOTS; i++)
		sum = sum * 33 + slots[i];
	return sum;
}
