//! What code layout does to the instruction TLB: see `main.rs`.

pub(crate) mod spec;
pub(crate) mod tlb;
