//! Cranelift's output in our packs: a function that sums what a function of ours gives, hosted,
//! called, known to unwinders and `perf`, and freed.
#![expect(unsafe_code, reason = "calls the code that it hosts")]

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, ExtFuncData, ExternalName, Function, InstBuilder};
use cranelift_codegen::ir::{Signature, UserExternalName, UserFuncName};
use cranelift_codegen::isa::{CallConv, OwnedTargetIsa};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use rvbpf::Runtime;
use rvbpf_peers::cranelift::{Error, compile, isa};

/// The index of [`square`] among the names of the function.
const SQUARE: u32 = 7;

extern "C" fn square(n: u64) -> u64 {
    let trace = std::backtrace::Backtrace::force_capture().to_string();
    assert!(
        trace.contains("rust_begin_short_backtrace"),
        "the stack does not lead back to main:\n{trace}"
    );
    n * n
}

fn main() -> Result<(), Error> {
    let isa = isa()?;
    let rt = Runtime::new()?;
    let before = rt.stats().packs.nr_live;
    let code = compile(&isa, "sum_of_squares", sum_of_squares(&isa), |index| {
        (index == SQUARE).then_some(square as *const () as u64)
    })?;
    println!("relocations: {:?}", code.relocs());
    let hosted = rt.host_code(code.host_code())?;
    let sum = hosted.symbol("sum_of_squares").ok_or("no symbol")?;
    // SAFETY:
    // 1. Cranelift made a function of this type there, for the C calling convention.
    let sum = unsafe { std::mem::transmute::<*const (), extern "C" fn(u64) -> u64>(sum) };
    println!("1 + 4 + 9 + … + 100 = {}, at {:?}", sum(10), hosted.rx());
    assert_eq!(sum(10), 385);
    drop(hosted);
    assert_eq!(rt.stats().packs.nr_live, before);
    Ok(())
}

/// `square(n) + square(n - 1) + … + square(1)`
fn sum_of_squares(isa: &OwnedTargetIsa) -> Function {
    let mut signature = Signature::new(CallConv::triple_default(isa.triple()));
    signature.params.push(AbiParam::new(I64));
    signature.returns.push(AbiParam::new(I64));
    let mut func = Function::with_name_signature(UserFuncName::user(0, 0), signature.clone());
    let name = func.declare_imported_user_function(UserExternalName::new(0, SQUARE));
    let signature = func.import_signature(signature);
    let square = func.import_function(ExtFuncData {
        name: ExternalName::user(name),
        signature,
        // As one call; where it does not reach, the runtime makes a stub.
        colocated: true,
    });
    let mut frontend = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut func, &mut frontend);
    let (entry, head, body, out) = (
        b.create_block(),
        b.create_block(),
        b.create_block(),
        b.create_block(),
    );
    b.append_block_params_for_function_params(entry);
    let (n, sum) = (
        b.append_block_param(head, I64),
        b.append_block_param(head, I64),
    );
    b.switch_to_block(entry);
    let (first, zero) = (b.block_params(entry)[0], b.ins().iconst(I64, 0));
    b.ins().jump(head, &[first, zero]);
    b.switch_to_block(head);
    let more = b.ins().icmp_imm(IntCC::NotEqual, n, 0);
    b.ins().brif(more, body, &[], out, &[]);
    b.switch_to_block(body);
    let call = b.ins().call(square, &[n]);
    let squared = b.inst_results(call)[0];
    let (less, sum_now) = (b.ins().iadd_imm(n, -1), b.ins().iadd(sum, squared));
    b.ins().jump(head, &[less, sum_now]);
    b.switch_to_block(out);
    b.ins().return_(&[sum]);
    b.seal_all_blocks();
    b.finalize();
    func
}
