/* 128 small functions, each unlike every other, and the table of them. */
#define EACH8(M, n) \
	M(n##0) M(n##1) M(n##2) M(n##3) M(n##4) M(n##5) M(n##6) M(n##7)
/* Octal, so that eight times sixteen comes out even. */
#define EACH128(M) \
	EACH8(M, 00) EACH8(M, 01) EACH8(M, 02) EACH8(M, 03) EACH8(M, 04) EACH8(M, 05) \
	EACH8(M, 06) EACH8(M, 07) EACH8(M, 010) EACH8(M, 011) EACH8(M, 012) EACH8(M, 013) \
	EACH8(M, 014) EACH8(M, 015) EACH8(M, 016) EACH8(M, 017)

#define SITE(n) \
	static __attribute__((noipa)) long tl_site_##n(long x) { return x + n; }
EACH128(SITE)

#define ENTRY(n) tl_site_##n,
long (*const tl_sites[128])(long) = { EACH128(ENTRY) };
