//! What only riscv64 has: vector functions, and stubs as this machine writes them.
