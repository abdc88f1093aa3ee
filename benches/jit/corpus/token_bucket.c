// 128 packets pass 16 token buckets or do not. A packet is its delay, bucket and length.
#include "corpus.h"

enum { PACKETS = 128, BUCKETS = 16, BURST = 1 << 16 };

struct packet { u32 delay_ns; u16 bucket, bytes; };
struct bucket { u64 last_ns, tokens, rate; u32 passed, dropped; };

ENTRY u32 token_bucket(void)
{
	const struct packet *packets = (const struct packet *)in;
	struct bucket *buckets = (struct bucket *)out;
	u64 now = 0;
	for (u32 i = 0; i < BUCKETS; i++)
		buckets[i] = (struct bucket){0, BURST, 100 + 37 * i, 0, 0};
	for (u32 i = 0; i < PACKETS; i++) {
		struct bucket *b = &buckets[BELOW(packets[i].bucket, BUCKETS)];
		now += packets[i].delay_ns & 0xffff;
		u64 tokens = b->tokens + ((now - b->last_ns) * b->rate >> 10);
		b->last_ns = now;
		if (tokens > BURST)
			tokens = BURST;
		if (tokens >= packets[i].bytes) {
			tokens -= packets[i].bytes;
			b->passed++;
		} else {
			b->dropped++;
		}
		b->tokens = tokens;
	}
	u32 sum = 0;
	for (u32 i = 0; i < BUCKETS; i++)
		sum = sum * 31 + buckets[i].passed;
	return sum;
}
