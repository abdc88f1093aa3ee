// What the programs of the corpus share: their memory and their entry.
//
// Each program is one file and one function, NAME, without arguments. It reads `in`, which the bench
// fills, writes `out`, and gives 32 bits; run again it does the same again. The same source is
// compiled for BPF, where both arrays are the value of a map, and for riscv64, as a peer.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

enum { IN_BYTES = 4096, OUT_BYTES = 4096 };

#ifdef __bpf__
_Alignas(64) u8 in[IN_BYTES];
_Alignas(64) u8 out[OUT_BYTES];
#define ENTRY __attribute__((section("socket")))
#else
extern __attribute__((visibility("hidden"))) u8 in[IN_BYTES];
extern __attribute__((visibility("hidden"))) u8 out[OUT_BYTES];
#define ENTRY
#endif

#define INLINE static inline __attribute__((always_inline))

// `value` below `bound`, a power of two, in a way that the kernel's verifier sees.
#define BELOW(value, bound) ({ u64 v_ = (value); asm volatile("" : "+r"(v_)); v_ & ((bound) - 1); })

// A zero of which the kernel's verifier does not know that it is one: it would follow every path on
// which a number that begins as a constant can change. The bench keeps the end of `in` free.
#define ZERO (*(const volatile u32 *)(in + IN_BYTES - 4))

INLINE u32 rol32(u32 x, int by) { return x << by | x >> (32 - by); }
INLINE u64 rol64(u64 x, int by) { return x << by | x >> (64 - by); }
INLINE u32 fold(u64 x) { return (u32)(x ^ x >> 32); }
