/* Callers of tables of functions, as a C library has them. Declared in src/ops.rs. */
#include <unistd.h>

#define PLAIN __attribute__((noipa))

struct tl_pair { long a, b; };
struct tl_point { double x, y; };
struct tl_tagged { int tag; float value; };
struct tl_big { long v[6]; };

struct tl_ops {
	long (*stamp)(long x);
	long (*weigh12)(long, long, long, long, long, long, long, long,
			long, long, long, long);
	double (*mul_add)(double a, float b, double c);
	float (*halve)(float x);
	struct tl_pair (*divmod)(long a, long b);
	struct tl_point (*swap)(struct tl_point p);
	struct tl_tagged (*retag)(struct tl_tagged t, int tag);
	struct tl_big (*scale)(struct tl_big b, long k);
	signed char (*narrow)(signed char a, unsigned short b, unsigned int c);
	unsigned int (*wide)(unsigned int x);
	/* The fourth pair is split between a7 and the stack; the rest of the integers, and the float,
	   for which no register is left, are on the stack. */
	double (*mixed)(struct tl_pair, struct tl_pair, struct tl_pair, long, struct tl_pair, long,
			struct tl_tagged, struct tl_point, struct tl_point, struct tl_point,
			struct tl_point, float);
	void (*block)(int fd);
	unsigned long flags;
	unsigned char tag[5];
};

PLAIN long tl_ops_stamp(const struct tl_ops *o, long x) { return o->stamp(x); }

PLAIN long tl_ops_weigh12(const struct tl_ops *o, long first)
{
	return o->weigh12(first, first + 1, first + 2, first + 3, first + 4, first + 5,
			  first + 6, first + 7, first + 8, first + 9, first + 10, first + 11);
}

PLAIN double tl_ops_mul_add(const struct tl_ops *o, double a, float b, double c)
{
	return o->mul_add(a, b, c);
}

PLAIN float tl_ops_halve(const struct tl_ops *o, float x) { return o->halve(x); }

PLAIN struct tl_pair tl_ops_divmod(const struct tl_ops *o, long a, long b)
{
	return o->divmod(a, b);
}

PLAIN struct tl_point tl_ops_swap(const struct tl_ops *o, struct tl_point p)
{
	return o->swap(p);
}

PLAIN struct tl_tagged tl_ops_retag(const struct tl_ops *o, struct tl_tagged t, int tag)
{
	return o->retag(t, tag);
}

PLAIN struct tl_big tl_ops_scale(const struct tl_ops *o, struct tl_big b, long k)
{
	return o->scale(b, k);
}

/* Whole registers: what stands above a narrow result is C's to rely on. */
PLAIN long tl_ops_narrow(const struct tl_ops *o, signed char a, unsigned short b, unsigned int c)
{
	return o->narrow(a, b, c);
}

PLAIN unsigned long tl_ops_wide(const struct tl_ops *o, unsigned int x)
{
	return (long)(int)o->wide(x);
}

PLAIN double tl_ops_mixed(const struct tl_ops *o, long k)
{
	return o->mixed((struct tl_pair){ k, k + 1 }, (struct tl_pair){ k + 2, k + 3 },
			(struct tl_pair){ k + 4, k + 5 }, k + 6, (struct tl_pair){ k + 7, k + 8 },
			k + 9, (struct tl_tagged){ 10, 11.5f }, (struct tl_point){ 12.5, 13.5 },
			(struct tl_point){ 14.5, 15.5 }, (struct tl_point){ 16.5, 17.5 },
			(struct tl_point){ 18.5, 19.5 }, 20.5f);
}

PLAIN void tl_ops_block(const struct tl_ops *o, int fd) { o->block(fd); }

/* What `mixed` is to compute. */
PLAIN double tl_ops_mixed_sum(struct tl_pair p, struct tl_pair q, struct tl_pair r, long a,
			      struct tl_pair s, long b, struct tl_tagged t, struct tl_point u,
			      struct tl_point v, struct tl_point w, struct tl_point x, float y)
{
	return p.a + 2 * p.b + 3 * q.a + 4 * q.b + 5 * r.a + 6 * r.b + 7 * a + 8 * s.a + 9 * s.b
	     + 10 * b + 11 * t.tag + 12 * t.value + 13 * u.x + 14 * u.y + 15 * v.x + 16 * v.y
	     + 17 * w.x + 18 * w.y + 19 * x.x + 20 * x.y + 21 * y;
}

/* A member that blocks until somebody writes to the other end. */
PLAIN void tl_ops_read(int fd)
{
	char byte;
	(void)!read(fd, &byte, 1);
}
