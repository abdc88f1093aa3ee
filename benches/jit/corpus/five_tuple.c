// Packets of Ethernet, IPv4 and TCP or UDP, some with a VLAN tag: their 5-tuples, and a hash of both
// directions alike. A packet begins two bytes after its place, so that its addresses are aligned.
#include "corpus.h"

enum { PACKETS = 32, PACKET_BYTES = 128 };

struct tuple { u32 saddr, daddr; u16 sport, dport; u8 proto; };

INLINE int parse(const u8 *p, struct tuple *t)
{
	u16 type = *(u16 *)(p + 12);
	u64 at = 14;
	if (type == 0x0081) {
		type = *(u16 *)(p + 16);
		at = 18;
	}
	if (type != 0x0008)
		return 0;
	p += at;
	u64 header = BELOW((p[0] & 15) * 4, 64);
	if (p[0] >> 4 != 4 || header < 20)
		return 0;
	t->proto = p[9];
	if (t->proto != 6 && t->proto != 17)
		return 0;
	t->saddr = *(u32 *)(p + 12);
	t->daddr = *(u32 *)(p + 16);
	p += header;
	t->sport = __builtin_bswap16(*(u16 *)p);
	t->dport = __builtin_bswap16(*(u16 *)(p + 2));
	return 1;
}

ENTRY u32 five_tuple(void)
{
	u32 *hashes = (u32 *)out, sum = 0;
	for (u32 i = 0; i < PACKETS; i++) {
		struct tuple t;
		u32 hash = 0;
		if (parse(in + i * PACKET_BYTES + 2, &t)) {
			u32 ports = t.sport < t.dport ? t.sport << 16 | t.dport : t.dport << 16 | t.sport;
			hash = (t.saddr ^ t.daddr) * 0x9e3779b1;
			hash = rol32(hash ^ ports, 13) * 5 + t.proto;
		}
		hashes[i] = hash;
		sum += hash;
	}
	return sum;
}
