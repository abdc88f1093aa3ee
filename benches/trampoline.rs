//! What a hooked call costs: instructions beyond the same call unhooked.
//!
//! A loop written in assembly calls a function of two integers, or one of eight arguments in
//! registers and four on the stack, a hundred times; perf counts the instructions of this thread in
//! user space. The least of many such stretches is taken, so that no timer tick is in it, and the
//! least of the unhooked loop subtracted: loop, call, function and counting cancel. The unhooked
//! function executes the nops of its own pad.
//!
//! Counts mean something only where the machine counts: on a board, or in a VM with one hart under
//! `-icount`, as `cargo xtask bench trampoline` starts it.
//!
//! Prints a table, writes `trampoline.json`, fails when a target is missed. Source of the targets
//! and of the kernel's numbers: DESIGN of this project; the kernel's were counted on Linux 7.2 with
//! an empty BPF program on a function of one argument.
#![cfg_attr(
    target_arch = "riscv64",
    expect(unsafe_code, reason = "raw programs, assembly")
)]

#[cfg(target_arch = "riscv64")]
mod common;

#[cfg(target_arch = "riscv64")]
fn main() -> std::process::ExitCode {
    riscv::main()
}

#[cfg(not(target_arch = "riscv64"))]
fn main() {
    println!("hooks run on riscv64 only: use cargo xtask bench trampoline");
}

#[cfg(target_arch = "riscv64")]
mod riscv {
    use std::arch::global_asm;
    use std::ffi::{c_int, c_long};
    use std::process::ExitCode;
    use std::time::Duration;

    use perf_event::Counter;
    use rvbpf::{FuncModel, Hook, HookBuilder, HookFn, Needs, RawProg, Runtime, RxAddr};
    use testlib::functions::{tl_add2, tl_weigh12};

    use crate::common::{self, Error, Goal, Row, Whose};

    type Add2 = extern "C" fn(c_int, c_int) -> c_int;
    type L = c_long;
    type Weigh12 = extern "C" fn(L, L, L, L, L, L, L, L, L, L, L, L) -> L;

    const CALLS: u64 = 100;
    const STRETCHES: usize = 200;

    // bench_prog: the empty program. bench_loop(f, n): calls f(1, …, 12) n times: a function looks
    // at those that it has.
    global_asm!(
        ".section .text.bench_loop, \"ax\", @progbits",
        ".balign 64",
        ".type bench_prog, @function",
        "bench_prog:",
        "li a0, 0",
        "ret",
        ".size bench_prog, . - bench_prog",
        ".balign 64",
        ".type bench_loop, @function",
        "bench_loop:",
        "addi sp, sp, -64",
        "sd ra, 56(sp)",
        "sd s0, 48(sp)",
        "sd s1, 40(sp)",
        "mv s0, a0",
        "mv s1, a1",
        "li t0, 9",
        "sd t0, 0(sp)",
        "li t0, 10",
        "sd t0, 8(sp)",
        "li t0, 11",
        "sd t0, 16(sp)",
        "li t0, 12",
        "sd t0, 24(sp)",
        "1:",
        "li a0, 1",
        "li a1, 2",
        "li a2, 3",
        "li a3, 4",
        "li a4, 5",
        "li a5, 6",
        "li a6, 7",
        "li a7, 8",
        "jalr s0",
        "addi s1, s1, -1",
        "bnez s1, 1b",
        "ld ra, 56(sp)",
        "ld s0, 48(sp)",
        "ld s1, 40(sp)",
        "addi sp, sp, 64",
        "ret",
        ".size bench_loop, . - bench_loop",
        ".previous",
    );

    unsafe extern "C" {
        fn bench_prog(ctx: *mut u64) -> u64;
        fn bench_loop(f: *const (), calls: u64) -> c_long;
    }

    /// A mix of programs whose cost the kernel's is known of.
    struct Mix {
        name: &'static str,
        kernel: f64,
        target: f64,
        progs: fn() -> Vec<RawProg>,
    }

    fn fentry() -> RawProg {
        RawProg::fentry(bench_prog)
    }

    fn fexit() -> RawProg {
        RawProg::fexit(bench_prog)
    }

    const MIXES: [Mix; 4] = [
        Mix {
            name: "fentry",
            kernel: 133.0,
            target: 30.0,
            progs: || vec![fentry()],
        },
        Mix {
            name: "fexit",
            kernel: 229.0,
            target: 45.0,
            progs: || vec![fexit()],
        },
        Mix {
            name: "fentry_fexit",
            kernel: 337.0,
            target: 60.0,
            progs: || vec![fentry(), fexit()],
        },
        Mix {
            name: "fmod_ret",
            kernel: 234.0,
            target: 45.0,
            progs: || vec![RawProg::fmod_ret(bench_prog)],
        },
    ];

    pub(crate) fn main() -> ExitCode {
        common::exit("trampoline", run())
    }

    fn run() -> Result<ExitCode, Error> {
        let mut bench = Bench::new()?;
        for mix in &MIXES {
            bench.mix(mix)?;
        }
        bench.for_information()?;
        print(&bench.rows);
        common::finish("trampoline", &bench.rows)
    }

    fn print(rows: &[Row]) {
        println!(
            "instructions added per call, beyond the same call unhooked (the unhooked function \
executes the nops of its pad); programs are empty: li a0, 0; ret"
        );
        println!("{:34}{:>9}{:>9}{:>9}", "", "added", "target", "kernel");
        for row in rows {
            let [target, kernel] = row.cells();
            println!("{:34}{:>9}{target:>9}{kernel:>9}", row.row, row.value);
        }
    }

    struct Bench {
        rt: Runtime,
        counter: Counter,
        add2: u64,
        weigh12: u64,
        rows: Vec<Row>,
    }

    fn address<F: HookFn>(f: F) -> *const () {
        f.addr() as *const ()
    }

    impl Bench {
        fn new() -> Result<Self, Error> {
            let mut bench = Bench {
                rt: Runtime::new()?,
                counter: common::counter(Whose::User)?,
                add2: 0,
                weigh12: 0,
                rows: Vec::new(),
            };
            bench.add2 = bench.least(address(tl_add2 as Add2))?;
            bench.weigh12 = bench.least(address(tl_weigh12 as Weigh12))?;
            for (what, f, base) in [
                ("two integers", address(tl_add2 as Add2), bench.add2),
                (
                    "eight arguments and four on the stack",
                    address(tl_weigh12 as Weigh12),
                    bench.weigh12,
                ),
            ] {
                let pad = text::Pad::find(RxAddr::new(f as u64))?;
                println!(
                    "baseline, function of {what}: {base} instructions for {CALLS} calls and their \
counting; {} bytes of pad at {}",
                    pad.len_bytes, pad.start
                );
            }
            Ok(bench)
        }

        /// The instructions of one stretch of calls, the least of many.
        fn least(&mut self, f: *const ()) -> Result<u64, Error> {
            common::least(&mut self.counter, STRETCHES, || {
                // SAFETY: 1. `f` looks at no argument but the first twelve `long`s, which it is
                // given.
                unsafe { bench_loop(f, CALLS) };
            })
        }

        /// Instructions that each call of `f` takes more than `base` says.
        fn added<F: HookFn>(&mut self, f: F, base: u64, hook: &Hook) -> Result<f64, Error> {
            let runs = hook.stats().runs;
            let least = self.least(address(f))?;
            let counted = hook.stats().runs - runs;
            let added = (least as f64 - base as f64) / CALLS as f64;
            // The empty program alone is two instructions. Runs are counted where anybody asked.
            let ran = added > 2.0 && (counted == 0 || counted >= CALLS * STRETCHES as u64);
            if !ran || hook.stats().missed != 0 {
                return Err(format!(
                    "the hook did not run as it should: {added}, {:?}",
                    hook.stats()
                )
                .into());
            }
            Ok(added)
        }

        fn mix(&mut self, mix: &Mix) -> Result<(), Error> {
            let value = self.raw(tl_add2 as Add2, self.add2, (mix.progs)())?;
            let row = Row::new(mix.name, value, "insns/call");
            let row = row.beside("kernel", mix.kernel);
            self.rows.push(row.wants(Goal::AtMost(mix.target)));
            // The kernel's RV64 trampoline has no stack arguments: no peer.
            let value = self.raw(tl_weigh12 as Weigh12, self.weigh12, (mix.progs)())?;
            self.row(format!("{}_8_4", mix.name), value);
            Ok(())
        }

        fn row(&mut self, row: String, value: f64) {
            self.rows.push(Row::new(row, value, "insns/call"));
        }

        fn raw<F: HookFn>(&mut self, f: F, base: u64, progs: Vec<RawProg>) -> Result<f64, Error> {
            // SAFETY: 1. the functions of the test library are as declared.
            let builder = unsafe { self.rt.hook(f) }?;
            self.hooked(f, base, with_all(builder, progs))
        }

        /// Attaches, measures, detaches.
        fn hooked<F: HookFn, G: HookFn>(
            &mut self,
            f: F,
            base: u64,
            builder: HookBuilder<G>,
        ) -> Result<f64, Error> {
            let hook = builder.attach()?;
            let added = self.added(f, base, &hook);
            hook.detach()?;
            self.rt.synchronize(Duration::from_secs(10))?;
            added
        }

        /// What else one may want to know; no target, no peer.
        fn for_information(&mut self) -> Result<(), Error> {
            let add2 = tl_add2 as Add2;
            for mix in &MIXES {
                let bare = (mix.progs)().into_iter().map(RawProg::bare).collect();
                let value = self.raw(add2, self.add2, bare)?;
                self.row(format!("{}_bare", mix.name), value);
                let counted = (mix.progs)()
                    .into_iter()
                    .map(|p| p.needs(Needs::STATS))
                    .collect();
                let value = self.raw(add2, self.add2, counted)?;
                self.row(format!("{}_stats", mix.name), value);
            }
            let ten = (0..10).map(|_| fentry()).collect();
            let value = self.raw(add2, self.add2, ten)?;
            self.row("fentry_of_10_programs".into(), value);
            let value = self.raw(add2, self.add2, vec![RawProg::fsession(bench_prog)])?;
            self.row("fsession".into(), value);

            let closures: [(&str, Give); 4] = [
                ("closure_on_entry", |b| b.on_entry(|_| {})),
                ("closure_on_exit", |b| b.on_exit(|_, _| {})),
                ("closure_on_entry_and_exit", |b| {
                    b.on_entry(|_| {}).on_exit(|_, _| {})
                }),
                ("closure_override_return", |b| b.override_return(|_| None)),
            ];
            for (name, give) in closures {
                // SAFETY: 1. the function is as declared.
                let builder = unsafe { self.rt.hook(add2) }?;
                let value = self.hooked(add2, self.add2, give(builder))?;
                self.row(name.into(), value);
            }
            for (name, progs) in [
                ("fentry_untyped", vec![fentry()]),
                ("fexit_untyped", vec![fexit()]),
            ] {
                // SAFETY: 1. the model claims nothing.
                let builder = unsafe { self.rt.hook_addr(address(add2), FuncModel::untyped()) }?;
                let value = self.hooked(add2, self.add2, with_all(builder, progs))?;
                self.row(name.into(), value);
            }
            Ok(())
        }
    }

    /// Gives a hook its programs.
    type Give = fn(HookBuilder<Add2>) -> HookBuilder<Add2>;

    /// A hook with programs of this file.
    fn with_all<F: HookFn>(builder: HookBuilder<F>, progs: Vec<RawProg>) -> HookBuilder<F> {
        progs.into_iter().fold(builder, |builder, prog| {
            // SAFETY: 1. the program returns. 2. it does not look at its context.
            unsafe { builder.raw(prog) }
        })
    }
}
