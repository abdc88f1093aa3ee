// 64 records copied, field by field, into records of another order.
#include "corpus.h"

enum { RECORDS = 64 };

struct from { u64 id; u32 a, b; u16 c; u8 flags, kind; u32 d; u64 time; };
struct to { u64 time, id; u8 kind, flags; u16 c; u32 sum; u64 pair; };

ENTRY u32 struct_copy(void)
{
	const struct from *from = (const struct from *)in;
	struct to *to = (struct to *)out;
	u32 sum = 0;
	for (u32 i = 0; i < RECORDS; i++) {
		struct from r = from[i];
		to[i] = (struct to){r.time, r.id, r.kind, r.flags, r.c, r.a + r.b + r.d,
				    (u64)r.a << 32 | r.b};
		sum += to[i].sum;
	}
	return sum;
}
