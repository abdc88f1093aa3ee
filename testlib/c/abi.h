/* What the generated callers and callees share. See build/emit.rs. */
#include <stdarg.h>
#include <string.h>

/* The bytes of the arguments, where the caller reads and where the callee writes them. */
extern unsigned char tl_abi_in[], tl_abi_got[];
/* The bytes of the return value, where the callee reads and where the caller writes them. */
extern unsigned char tl_abi_ret[], tl_abi_out[];
/* Calls that reached a callee. */
extern unsigned long tl_abi_nr_calls;
/* What callers call: the gate. A variable, so that the compiler cannot see the type change. */
extern void (*tl_abi_entry)(void);
