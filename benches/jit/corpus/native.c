// The memory of the corpus where it is compiled for riscv64.
#include "corpus.h"

_Alignas(64) u8 in[IN_BYTES];
_Alignas(64) u8 out[OUT_BYTES];

u8 *corpus_in(void) { return in; }
u8 *corpus_out(void) { return out; }
