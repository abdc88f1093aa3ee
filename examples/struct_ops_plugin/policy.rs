//! The table of a congestion control, and four versions of it.
//!
//! Every decision carries the number of the version that made it in its upper half, so that the
//! server can tell to whom it owes it; and every version counts its own decisions.

#![expect(unsafe_code, reason = "plugins get pointers to flows")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rvbpf::bpf::BpfReg::{self, R0, R1, R2, R3, R4};
use rvbpf::bpf::{
    AluOp, AtomicOp, BpfProg, Budget, Cond, Env, Extend, Fault, Fetch, Op, Options, ProgramBuilder,
    Size,
};
use rvbpf::struct_ops::{OpsError, StructOps as _, Table};
use rvbpf::{Runtime, StructOps};

/// A connection, as the server and its plugins know it.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// How many packets may be under way.
    pub(crate) cwnd: u64,
    pub(crate) acks: u64,
    pub(crate) losses: u64,
}

/// Offset of `cwnd`, for programs.
const CWND: i16 = 0;

/// A decision: a window, and in the upper half whose it is.
pub(crate) type Decision = u64;

/// The table. C would call it `struct cong_ops`.
#[derive(StructOps)]
#[repr(C)]
pub(crate) struct CongOps {
    pub(crate) init: extern "C" fn(*mut Flow) -> Decision,
    pub(crate) on_ack: extern "C" fn(*mut Flow, u32) -> Decision,
    pub(crate) on_loss: extern "C" fn(*mut Flow) -> Decision,
    pub(crate) cwnd: extern "C" fn(*const Flow) -> Decision,
    /// The number that the decisions carry.
    pub(crate) version: u32,
}

pub(crate) const M: CongOpsMembers = CongOps::MEMBERS;

/// The Rust default.
pub(crate) const RENO: u32 = 1;
/// The BPF plugin.
pub(crate) const BOLD: u32 = 2;
/// One that reads a bad pointer.
pub(crate) const WILD: u32 = 3;
/// One that does not end.
pub(crate) const STUCK: u32 = 4;

/// How many decisions each version says that it has made.
pub(crate) static MADE: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

fn decide(window: u64) -> Decision {
    MADE[RENO as usize].fetch_add(1, Ordering::Relaxed);
    u64::from(RENO) << 32 | window
}

fn flow<'a>(flow: *mut Flow) -> &'a mut Flow {
    // SAFETY: 1. the server gives its own flow, which no other thread has, for the call.
    unsafe { &mut *flow }
}

extern "C" fn init(at: *mut Flow) -> Decision {
    let flow = flow(at);
    flow.cwnd = 10;
    decide(flow.cwnd)
}

extern "C" fn on_ack(at: *mut Flow, packets: u32) -> Decision {
    let flow = flow(at);
    flow.cwnd = (flow.cwnd + u64::from(packets)).min(1000);
    decide(flow.cwnd)
}

extern "C" fn on_loss(at: *mut Flow) -> Decision {
    let flow = flow(at);
    flow.cwnd = (flow.cwnd / 2).max(2);
    decide(flow.cwnd)
}

extern "C" fn cwnd(at: *const Flow) -> Decision {
    decide(flow(at.cast_mut()).cwnd)
}

/// The default: plain Rust functions.
pub(crate) fn reno(rt: &Runtime) -> Result<Table<CongOps>, OpsError> {
    Table::builder(rt)?
        .function(M.init, init)
        .function(M.on_ack, on_ack)
        .function(M.on_loss, on_loss)
        .function(M.cwnd, cwnd)
        .data(M.version, RENO)
        .build()
}

type Error = Box<dyn std::error::Error>;

/// `r0 = version << 32 | r0`, counted; ends the program.
fn answer(b: &mut ProgramBuilder, version: u32) {
    b.ld_imm64(R3, MADE[version as usize].as_ptr() as u64)
        .mov(R4, 1);
    b.op(Op::Atomic {
        op: AtomicOp::Add(Fetch::No),
        size: Size::Dw,
        dst: R3,
        off: 0,
        src: R4,
    });
    b.ld_imm64(R3, u64::from(version) << 32)
        .alu(AluOp::Or, R0, R3)
        .exit();
}

fn load(rt: &Runtime, b: &ProgramBuilder, name: &str, options: Options) -> Result<BpfProg, Error> {
    let program = b.finish()?.with_name(name);
    Ok(rt.load_with(&program, &Env::tracing(), options)?)
}

/// The window of the flow in `ctx[0]` becomes what `change` makes of it in `r0`; `r2` is the flow.
fn program(
    rt: &Runtime,
    name: &str,
    version: u32,
    change: impl FnOnce(&mut ProgramBuilder),
) -> Result<BpfProg, Error> {
    let mut b = ProgramBuilder::new();
    b.load(Size::Dw, R2, R1, 0).load(Size::Dw, R0, R2, CWND);
    change(&mut b);
    b.store(Size::Dw, R2, CWND, R0);
    answer(&mut b, version);
    load(rt, &b, name, Options::default())
}

/// A BPF plugin: opens the window faster, and closes it less.
pub(crate) fn bold(rt: &Runtime) -> Result<Table<CongOps>, Error> {
    let init = program(rt, "bold_init", BOLD, |b| {
        b.mov(R0, 20);
    })?;
    let on_ack = program(rt, "bold_on_ack", BOLD, |b| {
        // ctx[1]: packets
        b.load(Size::Dw, R3, R1, 8).alu(AluOp::Lsh, R3, 1);
        b.alu(AluOp::Add, R0, R3).alu(AluOp::And, R0, 1023);
    })?;
    let on_loss = program(rt, "bold_on_loss", BOLD, |b| {
        b.alu(AluOp::Mul, R0, 7).alu(AluOp::Rsh, R0, 3);
    })?;
    let cwnd = program(rt, "bold_cwnd", BOLD, |_| ())?;
    let table = Table::builder(rt)?.data(M.version, BOLD);
    // SAFETY: 1. the programs read their context and the flow, and end. So below.
    let table = unsafe { table.bpf(M.init, &init) };
    // SAFETY: as above.
    let table = unsafe { table.bpf(M.on_ack, &on_ack) };
    // SAFETY: as above.
    let table = unsafe { table.bpf(M.on_loss, &on_loss) };
    // SAFETY: as above.
    let table = unsafe { table.bpf(M.cwnd, &cwnd) };
    Ok(table.build()?)
}

/// The default, but for `on_ack`.
fn with_on_ack(rt: &Runtime, version: u32, on_ack: &BpfProg) -> Result<Table<CongOps>, Error> {
    let table = Table::builder(rt)?
        .function(M.init, init)
        .function(M.on_loss, on_loss)
        .function(M.cwnd, cwnd)
        .data(M.version, version);
    // SAFETY: 1. the programs of this file read their context and what may fault, and end.
    Ok(unsafe { table.bpf(M.on_ack, on_ack) }.build()?)
}

/// A plugin with a bug: it follows a pointer that leads nowhere.
pub(crate) fn wild(rt: &Runtime) -> Result<Table<CongOps>, Error> {
    let nowhere: BpfReg = R2;
    let mut b = ProgramBuilder::new();
    b.ld_imm64(nowhere, 0x10);
    b.op(Op::Load {
        size: Size::Dw,
        extend: Extend::Zero,
        fault: Fault::Zero,
        dst: R0,
        src: nowhere,
        off: 0,
    });
    answer(&mut b, WILD);
    let on_ack = load(rt, &b, "wild_on_ack", Options::default())?;
    with_on_ack(rt, WILD, &on_ack)
}

/// A plugin with another: it does not end. Its program, too, to be asked for its stops.
pub(crate) fn stuck(rt: &Runtime) -> Result<(Table<CongOps>, BpfProg), Error> {
    let mut b = ProgramBuilder::new();
    let again = b.label();
    // Until a count of 64 bits is at zero again.
    b.mov(R0, 0).bind(again).alu(AluOp::Add, R0, 1);
    b.branch(Cond::Ne, R0, 0, again).exit();
    let mut options = Options::default();
    options.budget = Some(Budget::Time(Duration::from_millis(2)));
    let on_ack = load(rt, &b, "stuck_on_ack", options)?;
    Ok((with_on_ack(rt, STUCK, &on_ack)?, on_ack))
}
