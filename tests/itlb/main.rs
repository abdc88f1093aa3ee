//! The iTLB benchmark (`benches/itlb/`): its model by cases worked by hand, its errors, and a short
//! run of all of it.

#[path = "../../benches/itlb/mod.rs"]
mod itlb;
mod model;
mod spec;
