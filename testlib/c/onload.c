/* A shared library that calls back when it is loaded, and functions that only the dynamic linker
 * can say the address of. */
#include <stdlib.h>
#include <unistd.h>

/* Calls what the environment says, under the dynamic linker's lock. */
__attribute__((constructor)) static void on_load(void)
{
	const char *at = getenv("TL_ON_LOAD");

	if (at)
		((void (*)(void))strtoul(at, NULL, 16))();
}

static int one(int x)
{
	return x + 1;
}

static int (*choose(void))(int)
{
	return one;
}

/* Nothing in here calls it, so no slot here holds what was chosen. */
int tl_chosen(int x) __attribute__((ifunc("choose")));

/* Nobody calls it, so the stub that it jumps to stays unbound. */
pid_t tl_unbound(void)
{
	return getppid();
}

__attribute__((noipa)) static long twice(long x)
{
	return 2 * x;
}

/* Makes a frame. */
__attribute__((patchable_function_entry(0))) long tl_in_library(long a, long b)
{
	return twice(a + b) * 3;
}
