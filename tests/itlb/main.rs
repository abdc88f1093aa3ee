//! The iTLB benchmark (`benches/itlb/`): its model by cases worked by hand, its errors, where it
//! puts programs, and a short run of all of it.
#![cfg_attr(
    not(target_arch = "riscv64"),
    allow(dead_code, reason = "what runs code is not used elsewhere")
)]

#[path = "../../benches/itlb/mod.rs"]
mod itlb;
mod model;
mod order;
mod place;
mod plan;
mod report;
#[cfg(target_arch = "riscv64")]
mod run;
mod spec;
