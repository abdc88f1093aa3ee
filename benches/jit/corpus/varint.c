// 128 numbers of 1 to 5 bytes, seven bits a byte, decoded.
#include "corpus.h"

enum { NUMBERS = 128 };

ENTRY u32 varint(void)
{
	u32 *numbers = (u32 *)out, sum = 0;
	u64 at = BELOW(ZERO, IN_BYTES);
	for (u32 i = 0; i < NUMBERS; i++) {
		u32 number = 0;
		for (u32 shift = 0; shift < 35; shift += 7) {
			u8 byte = in[at];
			at = BELOW(at + 1, IN_BYTES);
			number |= (u32)(byte & 127) << shift;
			if (byte < 128)
				break;
		}
		numbers[i] = number;
		sum = sum * 31 + number;
	}
	return sum;
}
