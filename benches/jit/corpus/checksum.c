// The internet checksum of 32 packets of 40 bytes.
#include "corpus.h"

enum { PACKETS = 32, HALVES = 20 };

ENTRY u32 checksum(void)
{
	u16 *sums = (u16 *)out;
	u32 all = 0;
	for (u32 i = 0; i < PACKETS; i++) {
		const u16 *halves = (const u16 *)in + i * HALVES;
		u32 sum = 0;
		for (u32 j = 0; j < HALVES; j++)
			sum += halves[j];
		sum = (sum & 0xffff) + (sum >> 16);
		sum += sum >> 16;
		sums[i] = ~sum;
		all = all * 31 + sums[i];
	}
	return all;
}
