//! A chain of comparisons in front of an indirect call.
//!
//! ```text
//!   ld t1, target 1 ; bltu aN, t1, left      aN, the first integer register that the function's
//!   bne aN, t1, right                        arguments leave free, holds the address that is
//!   j target 1                               to be called
//!   …
//!   jr aN                                    an address that is not in the chain
//! ```
//!
//! An indirect jump that goes to several places is predicted badly by small harts, a direct one
//! never. The chain is a binary search, so that it costs three or four instructions a level. Key
//! type: [`Chain`]. Neighbour: `static_call`, by whose stub a chain is replaced. Source: kernel
//! `kernel/bpf/dispatcher.c`, `arch_prepare_bpf_dispatcher`, which RV64 does not have there.

use std::sync::Arc;

use pack_alloc::Near;
use rv64::Reg::{self, *};
use rv64::{AsmError, Cond, Features};
use text::RxAddr;

use crate::domain::Trampolines;
use crate::emit::Emit;
use crate::error::TrampError;
use crate::indirect::{cells, place_code};
use crate::leaf::Leaf;
use crate::model::{FuncModel, NR_ARG_REGS};
use crate::static_call::StaticStub;

/// The most targets of a chain. Kernel: `BPF_DISPATCHER_MAX`.
pub const MAX_TARGETS: usize = 48;

/// One chain. It is freed some time after it has been dropped, when no thread is in it.
#[derive(Debug)]
pub struct Chain(Leaf);

impl Chain {
    /// A chain for functions of this model.
    ///
    /// # Errors
    /// [`TrampError::NoFreeRegister`], [`TrampError::TooManyTargets`]; [`TrampError::Layout`],
    /// [`TrampError::Pack`].
    pub fn new(
        tramps: &Arc<Trampolines>,
        model: &FuncModel,
        targets: &[RxAddr],
    ) -> Result<(Self, RxAddr), TrampError> {
        let at = key_reg(model).ok_or(TrampError::NoFreeRegister)?;
        let max = MAX_TARGETS;
        if targets.len() > max {
            return Err(TrampError::TooManyTargets { max });
        }
        let mut targets: Vec<u64> = targets.iter().map(|target| target.get()).collect();
        targets.sort_unstable();
        targets.dedup();
        // All chains near each other: one stub leads to any of them. Targets may be far away.
        let near = Near::Within {
            of: cells::address(),
            reach_bytes: 1 << 30,
        };
        let shop = tramps.workshop();
        let (placed, start) = place_code(&shop, near, "bpf_dispatcher", |base| {
            generate(at, &targets, shop.features, base)
        })?;
        Ok((Chain(Leaf::new(placed, tramps)), start))
    }

    /// Calls come here by `stub`.
    pub fn calls_come_by(&mut self, stub: &StaticStub) {
        self.0.calls_come_from(stub.range());
    }
}

/// The register that says where to go.
fn key_reg(model: &FuncModel) -> Option<Reg> {
    let regs = [A0, A1, A2, A3, A4, A5, A6, A7];
    let used = model.int_regs_used();
    (used < NR_ARG_REGS).then(|| regs[usize::from(used)])
}

fn generate(key: Reg, targets: &[u64], features: Features, base: u64) -> Result<Vec<u8>, AsmError> {
    let mut e = Emit::new(features);
    search(&mut e, key, targets);
    Ok(e.finish(base)?.bytes)
}

/// Goes where `key` says, if that is in `targets`, which are in order.
fn search(e: &mut Emit, key: Reg, targets: &[u64]) {
    if targets.is_empty() {
        return e.jump_reg(key);
    }
    let middle = targets.len() / 2;
    let (left, right) = (&targets[..middle], &targets[middle + 1..]);
    let (to_left, to_right) = (e.new_label(), e.new_label());
    e.ld_lit(T1, targets[middle]);
    if !left.is_empty() {
        e.branch(Cond::Ltu, key, T1, to_left);
    }
    e.branch(Cond::Ne, key, T1, to_right);
    e.jump_abs(targets[middle], T1);
    e.bind(to_right);
    search(e, key, right);
    if left.is_empty() {
        // Nobody branched there; it is bound all the same.
        return e.bind(to_left);
    }
    e.bind(to_left);
    search(e, key, left);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Type;

    /// What the chain does, read from its code: which of its ways `key` takes.
    fn listing(targets: &[u64]) -> String {
        let code = generate(A2, targets, Features::RV64GC, 0x1_0000).unwrap();
        let lines = rv64::disassemble(&code, 0x1_0000);
        let lines: Vec<String> = lines.map(|line| line.to_string()).collect();
        lines.join("\n")
    }

    #[test]
    fn without_targets_it_is_the_indirect_jump() {
        assert_eq!(listing(&[]).lines().count(), 1);
        assert!(listing(&[]).contains("jr"), "{}", listing(&[]));
    }

    #[test]
    fn each_target_has_a_direct_jump() {
        let text = listing(&[0x1_1000, 0x1_2000, 0x1_3000]);
        let jumps = text
            .lines()
            .filter(|line| line.contains("\tj ") || line.contains(" j "));
        assert!(jumps.count() >= 3, "{text}");
    }

    #[test]
    fn the_register_is_the_first_free_one() {
        let of = |n| key_reg(&FuncModel::new(&vec![Type::U64; n], Type::Void).unwrap());
        assert_eq!(
            (of(0), of(3), of(7), of(8)),
            (Some(A0), Some(A3), Some(A7), None)
        );
        let floats = FuncModel::new(&[Type::F64, Type::I32], Type::Void).unwrap();
        assert_eq!(key_reg(&floats), Some(A1));
    }
}
