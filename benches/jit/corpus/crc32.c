// CRC-32 of 1 KiB, a byte at a time, by the table of 256 words that stands before it.
#include "corpus.h"

enum { BYTES = 1024, TABLE_BYTES = 1024 };

ENTRY u32 crc32(void)
{
	const u32 *table = (const u32 *)in;
	const u8 *data = in + TABLE_BYTES;
	u32 crc = ~0u;
	for (u32 i = 0; i < BYTES; i++)
		crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
	*(u32 *)out = ~crc;
	return ~crc;
}
