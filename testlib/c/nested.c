/* Nested functions of GNU C, whose chain is passed in t2. Declared in src/functions.rs. */

#define PLAIN __attribute__((noipa))

/* Something that changes temporaries. */
PLAIN static long tl_opaque(long x) { return x + 1; }

PLAIN long tl_outer(long a, long x)
{
	long sum = a;
	/* Reads its chain at once. */
	__attribute__((noipa)) long tl_inner(long n) { return sum += n; }
	tl_inner(x);
	return 100 * tl_inner(tl_opaque(x)) + sum;
}

PLAIN long tl_outer_late(long a, long x)
{
	long sum = a;
	/* Reads it on one of its ways, not on the one that leads straight on. */
	__attribute__((noipa)) long tl_inner_late(long n)
	{
		if (__builtin_expect(n == 7, 0)) {
			sum += tl_opaque(n);
			return sum;
		}
		return n * 3;
	}
	return 100 * tl_inner_late(x) + 10 * tl_inner_late(7) + sum;
}
