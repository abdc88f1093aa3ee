// 32 addresses looked up in a binary trie by their longest prefix. A node is two children and a value
// with its lowest bit set, or 0; child 0 is none.
#include "corpus.h"

enum { ADDRESSES = 32, NODES = 256, DEPTH = 24 };

struct node { u16 child[2]; u32 value; };

ENTRY u32 lpm(void)
{
	const u32 *addresses = (const u32 *)in;
	const struct node *nodes = (const struct node *)(in + 4 * ADDRESSES);
	u32 *values = (u32 *)out, sum = 0;
	for (u32 i = 0; i < ADDRESSES; i++) {
		u32 address = addresses[i], best = 0;
		u64 at = 0;
		for (u32 depth = 0; depth < DEPTH; depth++) {
			const struct node *node = &nodes[at];
			if (node->value)
				best = node->value;
			at = BELOW(node->child[address >> 31], NODES);
			address <<= 1;
			if (!at)
				break;
		}
		values[i] = best;
		sum = sum * 31 + best;
	}
	return sum;
}
