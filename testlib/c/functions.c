/* Functions to hook: one per thing that a hook can get wrong. Declared in src/functions.rs. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

/* Called as written: not inlined, cloned or analysed. */
#define PLAIN __attribute__((noipa))

PLAIN int tl_add2(int a, int b) { return a + b; }

PLAIN long tl_weigh12(long a, long b, long c, long d, long e, long f, long g, long h,
                      long i, long j, long k, long l)
{
	return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h
	     + 9 * i + 10 * j + 11 * k + 12 * l;
}

PLAIN double tl_mul_add(double a, float b, double c) { return a * b + c; }
PLAIN float tl_halve(float x) { return x / 2; }

struct tl_pair { long a, b; };
struct tl_point { double x, y; };
struct tl_tagged { int tag; float value; };
struct tl_big { long v[6]; };

PLAIN long tl_pair_sum(struct tl_pair p) { return p.a + p.b; }
PLAIN struct tl_pair tl_divmod(long a, long b)
{
	return (struct tl_pair){ a / b, a % b };
}
PLAIN struct tl_point tl_swap(struct tl_point p) { return (struct tl_point){ p.y, p.x }; }
PLAIN struct tl_tagged tl_retag(struct tl_tagged t, int tag)
{
	return (struct tl_tagged){ tag, t.value + 1 };
}
PLAIN struct tl_big tl_big_scale(struct tl_big b, long k)
{
	for (int i = 0; i < 6; i++)
		b.v[i] *= k;
	return b;
}

PLAIN long tl_sum(int n, ...)
{
	long sum = 0;
	va_list ap;
	va_start(ap, n);
	while (n-- > 0)
		sum += va_arg(ap, long);
	va_end(ap);
	return sum;
}
PLAIN double tl_sum_doubles(int n, ...)
{
	double sum = 0;
	va_list ap;
	va_start(ap, n);
	while (n-- > 0)
		sum += va_arg(ap, double);
	va_end(ap);
	return sum;
}

PLAIN unsigned long tl_fib(unsigned long n) { return n < 2 ? n : tl_fib(n - 1) + tl_fib(n - 2); }

PLAIN long tl_call(long (*callback)(void *arg), void *arg) { return callback(arg) + 1; }

PLAIN int tl_set_errno(int value)
{
	int old = errno;
	errno = value;
	return old;
}
PLAIN int tl_get_errno(void) { return errno; }

PLAIN unsigned long tl_set_fcsr(unsigned long value)
{
	unsigned long old;
	__asm__ volatile ("fscsr %0, %1" : "=r"(old) : "r"(value));
	return old;
}
PLAIN unsigned long tl_get_fcsr(void)
{
	unsigned long value;
	__asm__ volatile ("frcsr %0" : "=r"(value));
	return value;
}

PLAIN long tl_read_byte(int fd)
{
	unsigned char byte;
	return read(fd, &byte, 1) == 1 ? byte : -1;
}

PLAIN unsigned long tl_spin_until(const int *stop)
{
	unsigned long turns = 0;
	while (!__atomic_load_n(stop, __ATOMIC_ACQUIRE))
		turns++;
	return turns;
}

static __thread jmp_buf tl_jump_env;
PLAIN void tl_jump(int value) { longjmp(tl_jump_env, value); }
PLAIN int tl_catch_jump(int value)
{
	int got = setjmp(tl_jump_env);
	if (got == 0)
		tl_jump(value);
	return got;
}

__attribute__((patchable_function_entry(2))) PLAIN long tl_pad_too_short(long a, long b)
{
	return a + b;
}
__attribute__((patchable_function_entry(0))) PLAIN long tl_no_pad(long a, long b)
{
	return a + b;
}
/* Two of the five nops stand before the entry. */
__attribute__((patchable_function_entry(5, 2))) PLAIN long tl_pad_around_entry(long a, long b)
{
	return a + b;
}
