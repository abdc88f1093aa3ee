/* A thousand functions as compilers leave them, without entry pads, and the table of them. They
 * begin in eight ways: see `tl_plain_shape`. */

static unsigned long table[64] = { 1, 2, 3, 5, 8, 13, 21, 34, 55, 89 };

__attribute__((noipa)) static unsigned long halve(unsigned long x) { return x / 2; }
__attribute__((noipa)) static unsigned long twice(unsigned long x) { return x * 2; }

static inline __attribute__((always_inline)) long tl_plain_shape(long arg, const unsigned long n)
{
	unsigned long x = arg, sum = n;
	switch (n % 8) {
	case 0: /* straight */
		return ((x ^ n) * 3 + n) ^ (x >> 2);
	case 1: /* a loop soon after the entry */
		for (unsigned long i = 0; i < (x & 7); i++)
			sum = sum * 5 + i;
		return sum;
	case 2: /* a frame and a call */
		return halve(x + n) + n;
	case 3: /* an address */
		return table[(x + n) & 63] + x + n;
	case 4: /* a tail call */
		return twice(x + n);
	case 5: /* a jump table, or a chain of branches */
		switch (x & 7) {
		case 0: return x + n;
		case 1: return x - n;
		case 2: return x ^ n;
		case 3: return x | n;
		case 4: return x & n;
		case 5: return halve(x) + n;
		case 6: return twice(x) + n;
		default: return n;
		}
	case 6: /* a branch first */
		if (arg < 0)
			return -n;
		return x + n;
	default: /* floating point */
		return (long)((double)arg * 2.0 + (double)n);
	}
}

#define EACH10(M, a, b) \
	M(a, b, 0) M(a, b, 1) M(a, b, 2) M(a, b, 3) M(a, b, 4) \
	M(a, b, 5) M(a, b, 6) M(a, b, 7) M(a, b, 8) M(a, b, 9)
#define EACH100(M, a) \
	EACH10(M, a, 0) EACH10(M, a, 1) EACH10(M, a, 2) EACH10(M, a, 3) EACH10(M, a, 4) \
	EACH10(M, a, 5) EACH10(M, a, 6) EACH10(M, a, 7) EACH10(M, a, 8) EACH10(M, a, 9)
#define EACH1000(M) \
	EACH100(M, 0) EACH100(M, 1) EACH100(M, 2) EACH100(M, 3) EACH100(M, 4) \
	EACH100(M, 5) EACH100(M, 6) EACH100(M, 7) EACH100(M, 8) EACH100(M, 9)

/* No flag that asks for pads reaches them. */
#define PADLESS __attribute__((noipa, patchable_function_entry(0)))
#define PLAIN(a, b, c) \
	static PADLESS long tl_plain_##a##b##c(long x) \
	{ \
		return tl_plain_shape(x, 100 * a + 10 * b + c); \
	}
EACH1000(PLAIN)

#define ENTRY(a, b, c) tl_plain_##a##b##c,
long (*const tl_plain[1000])(long) = { EACH1000(ENTRY) };

/* A caller that could keep what it needs in temporaries: it sees how few `tl_kept_leaf` uses. Local,
 * and compiled for that (-fipa-ra is part of -O2). */
static __attribute__((noinline, noclone, patchable_function_entry(0)))
long tl_kept_leaf(long x) { return x * 5 + 1; }

long (*const tl_kept)(long) = tl_kept_leaf;

__attribute__((patchable_function_entry(0))) long tl_keeper(long a, long b, long c, double d)
{
	long sum = tl_kept_leaf(a ^ b) + a * b;
	double scaled = d * (double)c;
	sum += tl_kept_leaf(sum - c);
	return sum + a + 3 * b + 7 * c + (long)(scaled + d);
}
