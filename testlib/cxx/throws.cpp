/* Functions that are left by exceptions, and those who catch them. Declared in src/throws.rs. */
#include <cstdarg>

/* Called as written: not inlined, cloned or analysed. */
#define PLAIN extern "C" __attribute__((noipa))

PLAIN int tl_throw(int value)
{
	if (value < 0)
		throw value;
	return value;
}

PLAIN int tl_throw_variadic(int n, ...)
{
	int sum = 0;
	va_list ap;
	va_start(ap, n);
	while (n-- > 0)
		sum += va_arg(ap, int);
	va_end(ap);
	return tl_throw(sum) + 0 * n;
}

/* A jump, not a call: tl_throw returns to whoever called this. */
PLAIN int tl_throw_at_end(int value) { return tl_throw(value); }

static __thread int cleanups;

struct counted {
	~counted() { cleanups++; }
};

PLAIN int tl_throw_past_cleanup(int value)
{
	counted here;
	return tl_throw(value) + 1;
}

PLAIN int tl_cleanups(void) { return cleanups; }

#define CATCH(call) do { try { return call; } catch (int thrown) { return 1000 - thrown; } } while (0)

PLAIN int tl_catch_throw(int value) { CATCH(tl_throw(value)); }
PLAIN int tl_catch_throw_at_end(int value) { CATCH(tl_throw_at_end(value)); }
PLAIN int tl_catch_past_cleanup(int value) { CATCH(tl_throw_past_cleanup(value)); }
PLAIN int tl_catch_variadic(int value)
{
	CATCH(tl_throw_variadic(10, value, 0, 0, 0, 0, 0, 0, 0, 0, 0));
}
