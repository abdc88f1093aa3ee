//! Arenas: what programs and their host share, casts, pages that are not there, on both sides: in
//! the interpreter and compiled.
#![expect(unsafe_code, reason = "runs programs that access memory")]

use std::thread;

use rvbpf::Features;
use rvbpf::Runtime;
use rvbpf::bpf::BpfReg::{R0, R1, R2, R3, R4, R5, R6, R10};
use rvbpf::bpf::{
    AluOp, Arena, ArenaOp, AtomicOp, BpfProg, BpfReg, Callee, Cond, Env, Extend, Fault, Fetch,
    Imm64, Interpreter, LoadError, MapObject, Op, Operand, Options, Program, ProgramBuilder,
    Reason, Size, arena_alloc_pages, arena_free_pages,
};

/// The machine without extensions, and with all that this one has.
fn feature_sets() -> [Features; 2] {
    [Features::RV64GC, Options::default().features]
}

/// A program, ready on every side that this host has.
struct Sides<'a> {
    interpreter: Interpreter<'a>,
    compiled: Vec<BpfProg>,
    _runtime: Option<Runtime>,
}

impl<'a> Sides<'a> {
    fn new(program: &'a Program, env: &'a Env) -> Self {
        let interpreter = Interpreter::new(program, env).unwrap();
        let runtime = cfg!(target_arch = "riscv64").then(|| Runtime::new().unwrap());
        let compiled = runtime.iter().flat_map(|rt| {
            feature_sets().map(|features| {
                let mut options = Options::default();
                options.features = features;
                rt.load_with(program, env, options).unwrap()
            })
        });
        Self {
            interpreter,
            compiled: compiled.collect(),
            _runtime: runtime,
        }
    }

    /// What each side gives; `before` sets memory for it.
    fn results(&self, args: [u64; 5], mut before: impl FnMut()) -> Vec<u64> {
        before();
        // SAFETY: 1. the programs of this file access arenas and their stack alone.
        let first = unsafe { self.interpreter.run(args, 1_000_000) };
        let mut all = vec![first.unwrap()];
        for prog in &self.compiled {
            before();
            // SAFETY: 1. as above, and they end.
            all.push(unsafe { prog.run(args) }.unwrap());
        }
        all
    }

    fn assert(&self, args: [u64; 5], want: u64) {
        for (side, got) in self.results(args, || ()).into_iter().enumerate() {
            assert_eq!(got, want, "side {side}: {got:#x} is not {want:#x}");
        }
    }
}

fn cast(dst: BpfReg, src: BpfReg, to: u16) -> Op {
    let from = 1 - to;
    Op::AddrSpaceCast { dst, src, to, from }
}

/// Every access at `r2`: it stores `r3` or a constant, compares `r0`, loads to `r4`.
fn accesses() -> Vec<Op> {
    let (dst, src, off) = (R2, R3, 0);
    let mut all = Vec::new();
    for size in Size::ALL {
        for extend in [Extend::Zero, Extend::Sign] {
            if (size, extend) != (Size::Dw, Extend::Sign) {
                all.push(Op::Load {
                    size,
                    extend,
                    fault: Fault::Fatal,
                    dst: R4,
                    src: R2,
                    off,
                });
            }
        }
        for src in [Operand::Reg(R3), Operand::Imm(-2)] {
            all.push(Op::Store {
                size,
                dst,
                off,
                src,
            });
        }
        all.extend(AtomicOp::ALL.map(|op| Op::Atomic {
            op,
            size,
            dst,
            off,
            src,
        }));
        all.push(Op::LoadAcquire {
            size,
            dst: R4,
            src: R2,
            off,
        });
        all.push(Op::StoreRelease {
            size,
            dst,
            off,
            src,
        });
    }
    all
}

/// Accesses through the pointer in `r2`; what they bring to `r0`, `r3` and `r4`, mixed.
fn mixed(access: &[Op]) -> Program {
    let mut b = ProgramBuilder::new();
    b.ld_imm64(R3, 0x1122_3344_5566_7788).ld_imm64(R4, 5);
    b.ld_imm64(R0, 0x8888_9999_aaaa_bbbb);
    for op in access {
        b.op(*op);
    }
    b.alu(AluOp::Mul, R3, 3).alu(AluOp::Mul, R4, 5);
    b.alu(AluOp::Add, R0, R3).alu(AluOp::Add, R0, R4);
    b.exit();
    b.finish().unwrap()
}

/// What is in the page.
const MEM: u64 = 0x8182_8384_8586_8788;

/// Every access does the same through a cast, by offset, and to memory of the process; where there
/// is no page, all that it brings is 0, and nothing is stored.
#[test]
fn every_access_reaches_pages_and_faults_where_there_are_none() {
    let arena = Arena::new(16).unwrap();
    let page = arena.alloc(1).unwrap();
    let end = page + arena.page_bytes();
    let env = Env::new().arena(&arena);
    let set = || arena.write(page, &MEM.to_ne_bytes()).unwrap();
    let get = || {
        let mut bytes = [0; 8];
        arena.read(page, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    };
    for access in accesses() {
        let (mut plain, mut zero) = (MEM, 0_u64);
        let by_address = mixed(&[access]);
        let no_env = Env::new();
        let reference = Interpreter::new(&by_address, &no_env).unwrap();
        let run = |cell: &mut u64| {
            let addr = (&raw mut *cell).expose_provenance() as u64;
            // SAFETY: 1. eight bytes of a live variable.
            unsafe { reference.run([0, addr, 0, 0, 0], 100) }.unwrap()
        };
        let (want, want_absent) = (run(&mut plain), run(&mut zero));
        // What an access to zeros brings is what one to nothing brings.
        let offset = mixed(&[Op::Arena(ArenaOp::of(access).unwrap())]);
        let through_cast = mixed(&[cast(R2, R2, 0), access]);
        for program in [&offset, &through_cast] {
            let sides = Sides::new(program, &env);
            let text = program.disassemble();
            // Whatever is in the upper half.
            for upper in [0, 7 << 32, u64::MAX << 32] {
                let args = |offset: u32| [0, upper | u64::from(offset), 0, 0, 0];
                let results = sides.results(args(page), set);
                assert!(results.iter().all(|r| *r == want), "{results:x?}\n{text}");
                assert_eq!(get(), plain, "\n{text}");
                for nowhere in [end, 0, 0xffff_fff8] {
                    let results = sides.results(args(nowhere), set);
                    let absent = results.iter().all(|r| *r == want_absent);
                    assert!(absent, "{results:x?} at {nowhere:#x}\n{text}");
                }
                assert_eq!(get(), MEM, "\n{text}");
            }
        }
    }
    assert_eq!(arena.pages(), 1);
}

/// Misaligned atomics, at every byte and over the end of a page: what they bring is 0, and nothing
/// is stored; in an arena, on the stack and in other memory alike. Without Zabha, narrow ones would
/// work on the word around them; with Zama16b, all would be carried out.
#[test]
fn misaligned_atomics_bring_0_and_store_nothing() {
    let arena = Arena::new(16).unwrap();
    let page = arena.alloc(2).unwrap();
    let second = page + arena.page_bytes();
    let env = Env::new().arena(&arena);
    let plain = [0xa5_u8; 32];
    let set = || {
        arena.write(page, &plain).unwrap();
        arena.write(second - 16, &plain).unwrap();
    };
    let get = |at| {
        let mut bytes = [0; 32];
        arena.read(at, &mut bytes).unwrap();
        bytes
    };
    for access in accesses() {
        let (brings, size) = match access {
            Op::Atomic { op, size, .. } => (op.result(R3), size),
            Op::LoadAcquire { size, dst, .. } => (Some(dst), size),
            Op::StoreRelease { size, .. } => (None, size),
            _ => continue,
        };
        let regs = [
            (R0, 0x8888_9999_aaaa_bbbb_u64, 1),
            (R3, 0x1122_3344_5566_7788, 3),
            (R4, 5, 5),
        ];
        let want = regs.iter().fold(0_u64, |sum, (reg, value, by)| {
            let value = if brings == Some(*reg) { 0 } else { *value };
            sum.wrapping_add(value.wrapping_mul(*by))
        });
        let offset = mixed(&[Op::Arena(ArenaOp::of(access).unwrap())]);
        let through_cast = mixed(&[cast(R2, R2, 0), access]);
        let bytes = size.bytes();
        let misaligned = |at: &u32| at % bytes != 0;
        for program in [&offset, &through_cast] {
            let sides = Sides::new(program, &env);
            let text = program.disassemble();
            let places = (page..page + 8).chain(second - 4..second);
            for at in places.filter(misaligned) {
                let results = sides.results([0, at.into(), 0, 0, 0], set);
                let all = results.iter().all(|r| *r == want);
                assert!(all, "{results:x?}, not {want:x}, at {at:#x}\n{text}");
                assert_eq!((get(page), get(second - 16)), (plain, plain), "\n{text}");
            }
        }
        // Outside of arenas: the stack, by its register.
        for off in (-16_i16..-8).filter(|off| off.rem_euclid(bytes as i16) != 0) {
            let moved = match access {
                Op::Atomic { op, size, src, .. } => Op::Atomic {
                    op,
                    size,
                    dst: R10,
                    off,
                    src,
                },
                Op::LoadAcquire { size, dst, .. } => Op::LoadAcquire {
                    size,
                    dst,
                    src: R10,
                    off,
                },
                Op::StoreRelease { size, src, .. } => Op::StoreRelease {
                    size,
                    dst: R10,
                    off,
                    src,
                },
                _ => continue,
            };
            let program = mixed(&[moved]);
            let no_env = Env::new();
            Sides::new(&program, &no_env).assert([0; 5], want);
        }
    }
}

/// Offsets of 16 bits stay in the guards, on both sides of the window.
#[test]
fn offsets_beyond_the_window_fault() {
    let arena = Arena::new(1).unwrap();
    let env = Env::new().arena(&arena);
    for (offset, off) in [(8, i16::MIN), (u32::MAX, i16::MAX), (0, -1)] {
        for by_offset in [false, true] {
            let mut b = ProgramBuilder::new();
            let load = Op::Load {
                size: Size::Dw,
                extend: Extend::Zero,
                fault: Fault::Fatal,
                dst: R0,
                src: R1,
                off,
            };
            match by_offset {
                true => b.op(Op::Arena(ArenaOp::of(load).unwrap())),
                false => b.op(cast(R1, R1, 0)).op(load),
            };
            b.exit();
            let program = b.finish().unwrap();
            let sides = Sides::new(&program, &env);
            sides.assert([offset.into(), 0, 0, 0, 0], 0);
        }
    }
}

#[test]
fn casts_keep_the_offset_and_null() {
    let arena = Arena::new(1).unwrap();
    let env = Env::new().arena(&arena);
    let base = arena.base() as u64;
    for to in [0, 1] {
        for (dst, src) in [(R0, R1), (R0, R0), (R6, R1)] {
            let mut b = ProgramBuilder::new();
            b.mov(R0, R1).op(cast(dst, src, to)).mov(R0, dst).exit();
            let program = b.finish().unwrap();
            let sides = Sides::new(&program, &env);
            for (value, want) in [
                (0x1234, base + 0x1234),
                (base + 0x1234, base + 0x1234),
                (u64::MAX, base + 0xffff_ffff),
                (0, 0),
                (base, 0),
                (7 << 32, 0),
            ] {
                sides.assert([value, 0, 0, 0, 0], want);
            }
        }
    }
    // A register that is known to have zeros in its upper half.
    let mut b = ProgramBuilder::new();
    b.alu32(AluOp::Add, R1, 1).op(cast(R0, R1, 0)).exit();
    let program = b.finish().unwrap();
    let sides = Sides::new(&program, &env);
    sides.assert([0xffff_ffff, 0, 0, 0, 0], 0);
    sides.assert([0xffff_fffe, 0, 0, 0, 0], base + 0xffff_ffff);
}

/// A list that the host makes, of nodes `{next, value}`, with the pointers of programs; the last
/// is led to nowhere.
#[test]
fn a_program_walks_a_list_of_its_host() {
    let arena = Arena::new(8).unwrap();
    let env = Env::new().arena(&arena);
    let first = arena.alloc(2).unwrap();
    let node = |i: u32| first + 0x150 * i;
    for i in 0..20_u32 {
        let next = if i == 19 {
            0
        } else {
            arena.ptr(node(i + 1)) as u64
        };
        arena.write(node(i), &next.to_ne_bytes()).unwrap();
        let value = u64::from(i * i).to_ne_bytes();
        arena.write(node(i) + 8, &value).unwrap();
    }
    let mut b = ProgramBuilder::new();
    let (again, done) = (b.label(), b.label());
    b.mov(R0, 0).bind(again).op(cast(R1, R1, 0));
    b.branch(Cond::Eq, R1, 0, done);
    b.load(Size::Dw, R2, R1, 8).alu(AluOp::Add, R0, R2);
    b.load(Size::Dw, R1, R1, 0).jump(again);
    b.bind(done).exit();
    let program = b.finish().unwrap();
    let sides = Sides::new(&program, &env);
    let head = [arena.ptr(first) as u64, 0, 0, 0, 0];
    sides.assert(head, (0..20).map(|i| i * i).sum());
    // Half a list: the rest reads as zeros, and so as its end.
    arena.free(first + arena.page_bytes(), 1).unwrap();
    let there = (0..20).filter(|i| 0x150 * i < arena.page_bytes());
    sides.assert(head, there.map(|i| u64::from(i * i)).sum());
}

/// Programs add and free pages by the kernel's functions, and refer to variables in the arena.
#[test]
fn a_program_has_pages_come_and_go() {
    let arena = Arena::new(2).unwrap();
    let (alloc, free) = (
        arena_alloc_pages as unsafe extern "C" fn(*const (), *mut u8, u32, i32, u64) -> *mut u8,
        arena_free_pages as unsafe extern "C" fn(*const (), *mut u8, u32),
    );
    let env = Env::new().map(std::ptr::null());
    let env = env.object(MapObject::arena(&arena).with_fd(9));
    // SAFETY: 1. the programs below pass them the arena.
    let env = unsafe { env.host_fn(1, alloc) };
    // SAFETY: 1. as above.
    let env = unsafe { env.host_fn(2, free) };
    let call = |id| Op::Call(Callee::Host { id, object: 0 });
    let map = |imm| Op::LdImm64 { dst: R1, imm };
    let page = arena.page_bytes();
    let value = |off| Op::LdImm64 {
        dst: R2,
        imm: Imm64::MapIdxValue { idx: 1, off },
    };
    let mut b = ProgramBuilder::new();
    let none = b.label();
    // Anywhere: the first page. Then at the second.
    b.op(map(Imm64::MapFd(9))).mov(R2, 0).mov(R3, 1).mov(R4, -1);
    b.mov(R5, 0).op(call(1)).mov(R6, R0);
    b.branch(Cond::Eq, R0, 0, none);
    b.op(map(Imm64::MapIdx(1))).op(value(2 * page));
    b.mov(R3, 1).mov(R4, -1).mov(R5, 0).op(call(1));
    b.branch(Cond::Eq, R0, 0, none);
    // Write to both, by pointer and by reference.
    b.op(cast(R2, R6, 0)).store(Size::W, R2, 4, 40);
    b.op(value(2 * page)).op(cast(R2, R2, 0));
    b.store(Size::W, R2, 0, 2).load(Size::W, R6, R2, 0);
    b.op(value(page + 4)).op(cast(R2, R2, 0));
    b.load(Size::W, R2, R2, 0).alu(AluOp::Add, R6, R2);
    // Free both.
    b.op(map(Imm64::MapIdx(1))).op(value(page)).mov(R3, 2);
    b.op(call(2));
    // What is there is gone.
    b.op(value(page + 4)).op(cast(R2, R2, 0));
    b.load(Size::W, R2, R2, 0).alu(AluOp::Add, R6, R2);
    b.mov(R0, R6).exit();
    b.bind(none).mov(R0, -1).exit();
    let program = b.finish().unwrap();
    let sides = Sides::new(&program, &env);
    sides.assert([0; 5], 42);
    assert_eq!(arena.pages(), 0);
    // There is one already.
    arena.alloc_at(2 * page, 1).unwrap();
    let mut before = || {
        arena.free(page, 1).unwrap();
    };
    for got in sides.results([0; 5], &mut before) {
        assert_eq!(got as i32, -1);
    }
}

/// The arena is not the program's to lose.
#[test]
#[cfg(target_arch = "riscv64")]
fn a_loaded_program_keeps_its_arena() {
    let rt = Runtime::new().unwrap();
    let mut b = ProgramBuilder::new();
    b.op(cast(R1, R1, 0)).load(Size::Dw, R0, R1, 0).exit();
    let program = b.finish().unwrap();
    let arena = Arena::new(1).unwrap();
    let page = arena.alloc(1).unwrap();
    arena.write(page, &77_u64.to_ne_bytes()).unwrap();
    let prog = rt.load(&program, &Env::new().arena(&arena)).unwrap();
    drop(arena);
    // SAFETY: 1. it loads from its arena.
    assert_eq!(unsafe { prog.run([page.into(), 0, 0, 0, 0]) }, Ok(77));
}

/// One of them is in the code as an address alone.
#[test]
#[cfg(target_arch = "riscv64")]
fn a_loaded_program_keeps_every_arena_that_it_refers_to() {
    let rt = Runtime::new().unwrap();
    let arenas = [(); 2].map(|()| Arena::new(1).unwrap());
    let page = arenas[0].alloc(1).unwrap();
    arenas[0].write(page, &77_u64.to_ne_bytes()).unwrap();
    let mut b = ProgramBuilder::new();
    let imm = Imm64::MapIdxValue { idx: 0, off: page };
    b.op(Op::LdImm64 { dst: R1, imm }).load(Size::Dw, R0, R1, 0);
    b.exit();
    let env = Env::new().arena(&arenas[0]).arena(&arenas[1]);
    let prog = rt.load(&b.finish().unwrap(), &env).unwrap();
    drop((arenas, env));
    // SAFETY: 1. it loads from its arena.
    assert_eq!(unsafe { prog.run([0; 5]) }, Ok(77));
}

/// The address comes from a constant, and there is no cast.
#[test]
fn a_program_without_casts_meets_arena_faults_too() {
    let arena = Arena::new(2).unwrap();
    let page = arena.alloc(1).unwrap();
    arena.free(page, 1).unwrap();
    let mut b = ProgramBuilder::new();
    let imm = Imm64::MapIdxValue { idx: 0, off: page };
    b.op(Op::LdImm64 { dst: R1, imm });
    b.store(Size::W, R1, 8, 7).load(Size::Dw, R0, R1, 8).exit();
    let (program, env) = (b.finish().unwrap(), Env::new().arena(&arena));
    let sides = Sides::new(&program, &env);
    sides.assert([0; 5], 0);
    arena.alloc_at(page, 1).unwrap();
    sides.assert([0; 5], 7);
}

#[test]
fn a_program_without_its_arena_is_refused() {
    for op in [
        cast(R0, R1, 0),
        cast(R0, R1, 1),
        Op::Arena(ArenaOp::LoadAcquire {
            size: Size::B,
            dst: R0,
            src: R1,
            off: 0,
        }),
    ] {
        let mut b = ProgramBuilder::new();
        b.mov(R2, 0).op(op).exit();
        let program = b.finish().unwrap();
        let env = Env::new();
        let refusal = Interpreter::new(&program, &env).unwrap_err();
        assert_eq!((refusal.insn, &refusal.reason), (1, &Reason::NoArena));
        assert!(refusal.to_string().contains("Env::arena"), "{refusal}");
        if cfg!(target_arch = "riscv64") {
            let loaded = Runtime::new().unwrap().load(&program, &env);
            assert!(matches!(loaded, Err(LoadError::Refused(r)) if r == refusal));
        }
    }
}

/// Threads count in one page while others come and go under them: what is counted is all there,
/// and what is not there is 0 or what was stored.
#[test]
fn threads_share_an_arena_whose_pages_come_and_go() {
    const THREADS: u64 = 4;
    const ROUNDS: i32 = 20_000;
    let arena = Arena::new(4).unwrap();
    let counter = arena.alloc(1).unwrap();
    let other = counter + arena.page_bytes();
    let env = Env::new().arena(&arena);
    // r1: the counter, r2: the page that comes and goes, r3: rounds. r0: what was not 0 or 9.
    let mut b = ProgramBuilder::new();
    let (again, known) = (b.label(), b.label());
    b.op(cast(R1, R1, 0)).op(cast(R2, R2, 0)).mov(R0, 0);
    b.bind(again).mov(R4, 1).op(Op::Atomic {
        op: AtomicOp::Add(Fetch::Yes),
        size: Size::Dw,
        dst: R1,
        off: 0,
        src: R4,
    });
    b.store(Size::Dw, R2, 16, 9).load(Size::Dw, R5, R2, 16);
    b.branch(Cond::Eq, R5, 0, known)
        .branch(Cond::Eq, R5, 9, known);
    b.alu(AluOp::Add, R0, 1);
    b.bind(known).alu(AluOp::Sub, R3, 1);
    b.branch(Cond::Ne, R3, 0, again).exit();
    let program = b.finish().unwrap();
    let sides = Sides::new(&program, &env);
    let args = [counter.into(), other.into(), ROUNDS as u64, 0, 0];
    let ran = thread::scope(|s| {
        let run = || sides.results(args, || ());
        let threads: Vec<_> = (0..THREADS).map(|_| s.spawn(run)).collect();
        while threads.iter().any(|t| !t.is_finished()) {
            arena.alloc_at(other, 1).unwrap();
            thread::yield_now();
            arena.free(other, 1).unwrap();
        }
        let results = threads.into_iter().flat_map(|t| t.join().unwrap());
        let results: Vec<u64> = results.collect();
        assert!(results.iter().all(|r| *r == 0), "{results:?}");
        results.len()
    });
    let mut count = [0; 8];
    arena.read(counter, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), ran as u64 * ROUNDS as u64);
}
