//! The first hook: a C function, seen from both ends.

#[cfg(target_arch = "riscv64")]
#[expect(unsafe_code, reason = "promises what the C function looks like")]
fn main() -> Result<(), rvbpf::Error> {
    use std::ffi::c_int;

    use rvbpf::Runtime;
    // int add(int a, int b) { return a + b; }, compiled with -fpatchable-function-entry=5
    use testlib::functions::tl_add2 as add;

    let rt = Runtime::new()?;
    // SAFETY: `add` is a C function of this very type.
    let hook = unsafe { rt.hook(add as extern "C" fn(c_int, c_int) -> c_int) }?
        .on_entry(|call| println!("add{:?}", call.args()))
        .on_exit(|_, sum| println!("  = {sum}"))
        .attach()?;
    add(1, 2); // prints add(1, 2) and = 3
    hook.detach()?;
    add(3, 4); // prints nothing
    println!("{:?}", hook.stats());
    Ok(())
}

#[cfg(not(target_arch = "riscv64"))]
fn main() -> std::process::ExitCode {
    eprintln!("This example runs on riscv64 only; `cargo xtask demo first_hook` brings its own.");
    std::process::ExitCode::FAILURE
}
