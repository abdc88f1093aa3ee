//! Accesses that may fault: the table of where they are, and the signal handler that consults it.
//!
//! A probing load that faults yields 0, and so does every access to a page that an arena does not
//! have; what it would have stored is dropped. The compiler notes where each such access is, where
//! the program goes on, and which register is to be 0; a handler of SIGSEGV and SIGBUS looks the
//! faulting pc up. It takes no lock and allocates nothing, since it may interrupt anything:
//!
//! - *Slots* hold the range of a program and a pointer to its table. They are never freed, only
//!   used again, and read under a sequence count.
//! - *A table* is looked at only if the pc is in its program's range: then this thread executes
//!   the program, which lives as long as it does.
//!
//! What is not found goes to the handler that was there before; if there was none, the process
//! dies of its fault, after a line that names the program if it was one. The handler is installed
//! with the first program that has such accesses, and put before what the host has installed since
//! with each further one, and whenever such a program is made ready to be attached
//! ([`text::signal::Chain`]). Between the two a handler of the host comes first, and is expected to
//! hand on what is not its own, as usual.
//!
//! What it cannot do: a thread that has the signal blocked, or is in a handler of it that was
//! installed without SA_NODEFER, dies of the fault (the kernel asks nobody then). A handler from
//! before is called on the stack of ours.
//!
//! Key types: [`Registered`], [`Probe`]. Neighbours: `jit` makes the table, `loaded` registers it.
//! Source: kernel `arch/riscv/mm/extable.c` (`ex_handler_bpf`); `sigaction(2)`.

#![expect(unsafe_code, reason = "a signal handler, and what it may look at")]

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};

use text::RxRange;

/// An access that may fault.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Probe {
    /// Its address.
    pub(crate) at: u64,
    /// Where the program goes on.
    pub(crate) next: u64,
    /// The number of the RV64 register that becomes 0; 0 of an access that brings nothing.
    pub(crate) reg: u8,
}

/// What is known of a program by its range.
#[derive(Debug)]
#[cfg_attr(
    not(target_arch = "riscv64"),
    expect(dead_code, reason = "read by the handler")
)]
struct Table {
    name: Box<str>,
    /// By address.
    probes: Box<[Probe]>,
}

/// A program that the handler knows, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Registered {
    slot: &'static Slot,
    /// What the slot points to; a `Box`.
    table: *mut Table,
}

// The table is not changed, and freed by whoever drops this.
// SAFETY: 1. the pointer is to memory of no thread, and used by `drop` alone.
unsafe impl Send for Registered {}
// SAFETY: 1. as above; `&Registered` gives no access to it.
unsafe impl Sync for Registered {}

/// The place of one program.
#[derive(Debug, Default)]
struct Slot {
    /// Odd while it is changed.
    seq: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    table: AtomicPtr<Table>,
}

/// Slots are made in blocks that are never freed.
#[derive(Debug, Default)]
struct Block {
    slots: [Slot; Block::SLOTS],
    next: AtomicPtr<Block>,
}

impl Block {
    const SLOTS: usize = 32;
}

static FIRST: AtomicPtr<Block> = AtomicPtr::new(std::ptr::null_mut());
/// Slots that nobody uses.
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());

impl Slot {
    /// Nobody else changes it: it is not free.
    fn set(&self, range: Option<RxRange>, table: *mut Table) {
        let seq = self.seq.load(Ordering::Relaxed);
        self.seq.store(seq + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let (start, end) = range.map_or((0, 0), |r| (r.start.get(), r.end().get()));
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.table.store(table, Ordering::Relaxed);
        self.seq.store(seq + 2, Ordering::Release);
    }

    /// The table, if the slot is of a program that `pc` is in.
    fn table_of(&self, pc: u64) -> Option<*const Table> {
        loop {
            let seq = self.seq.load(Ordering::Acquire);
            let (start, end) = (
                self.start.load(Ordering::Relaxed),
                self.end.load(Ordering::Relaxed),
            );
            let table = self.table.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            // A slot in the midst of a change is not that of a program that runs.
            if seq % 2 != 0 {
                return None;
            }
            if self.seq.load(Ordering::Relaxed) == seq {
                return (start <= pc && pc < end).then_some(table.cast_const());
            }
        }
    }
}

/// Installs the handler, or puts it before what the host has installed since. Under the change lock.
pub(crate) fn come_first() {
    handler::install();
}

impl Registered {
    /// Makes the handler know a program, which begins to run after this. Installs the handler if
    /// the program has accesses that may fault.
    pub(crate) fn new(name: &str, range: RxRange, probes: Vec<Probe>) -> Self {
        if !probes.is_empty() {
            come_first();
        }
        let slot = free_slot();
        let table = Box::into_raw(Box::new(Table {
            name: name.into(),
            probes: probes.into_boxed_slice(),
        }));
        slot.set(Some(range), table);
        Self { slot, table }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.slot.set(None, std::ptr::null_mut());
        // SAFETY:
        // 1. It was made by `Box::into_raw`, and is freed once.
        // 2. The program does not run any more, so no handler looks at it.
        drop(unsafe { Box::from_raw(self.table) });
        FREE.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.slot);
    }
}

fn free_slot() -> &'static Slot {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(slot) = free.pop() {
        return slot;
    }
    let block = Box::leak(Box::<Block>::default());
    block.next = AtomicPtr::new(FIRST.load(Ordering::Relaxed));
    let block: &'static Block = block;
    FIRST.store(std::ptr::from_ref(block).cast_mut(), Ordering::Release);
    free.extend(&block.slots);
    free.pop().unwrap_or(&block.slots[0])
}

/// The table of the program that `pc` is in.
#[cfg_attr(
    not(target_arch = "riscv64"),
    allow(dead_code, reason = "asked by the handler")
)]
fn table_at(pc: u64) -> Option<*const Table> {
    let mut block = FIRST.load(Ordering::Acquire).cast_const();
    // SAFETY: 1. blocks are never freed.
    while let Some(here) = unsafe { block.as_ref() } {
        if let Some(table) = here.slots.iter().find_map(|slot| slot.table_of(pc)) {
            return Some(table);
        }
        block = here.next.load(Ordering::Acquire);
    }
    None
}

#[cfg(not(target_arch = "riscv64"))]
mod handler {
    /// Nothing is compiled that could fault.
    pub(super) fn install() {}
}

#[cfg(target_arch = "riscv64")]
mod handler {
    use text::signal::{Action, Cause, Chain};
    use text::syscall::syscall;

    use super::{Table, table_at};

    static SEGV: Chain = Chain::new(libc::SIGSEGV);
    static BUS: Chain = Chain::new(libc::SIGBUS);

    /// Makes sure that faults come to us first. Under the change lock.
    pub(super) fn install() {
        // On the stack that the thread keeps for this, if it does.
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        let ours = Action {
            handler: on_fault as *const () as usize,
            flags: flags as u64,
            mask: 0,
        };
        for chain in [&SEGV, &BUS] {
            // The kernel refuses no handler of these.
            // SAFETY: 1. `on_fault` takes no lock, calls nothing of libc, and hands on.
            let _ = unsafe { chain.come_first(&ours) };
        }
    }

    unsafe extern "C" fn on_fault(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: 1. the kernel passes the context that it will restore.
        let context_ref = unsafe { &mut *context.cast::<libc::ucontext_t>() };
        let regs = &mut context_ref.uc_mcontext.__gregs;
        let pc = regs[0];
        // SAFETY: 1. the kernel passes it.
        let code = unsafe { (*info).si_code };
        // Of memory that has gone bad somewhere the kernel tells whoever is there.
        let is_news = signal == libc::SIGBUS && code == libc::BUS_MCEERR_AO;
        let is_a_fault = code > 0 && !is_news;
        let table = table_at(pc).filter(|_| is_a_fault);
        // SAFETY:
        // 1. This thread executes the program, so it is registered, and its table lives.
        let table = table.map(|table| unsafe { &*table });
        if let Some(table) = table {
            if let Ok(i) = table.probes.binary_search_by_key(&pc, |probe| probe.at) {
                let probe = table.probes[i];
                regs[usize::from(probe.reg)] = 0;
                // Register 0 is the pc here, where `probe.reg` says that there is none.
                regs[0] = probe.next;
                return;
            }
            say(table, signal, pc);
        }
        let chain = match signal {
            libc::SIGBUS => &BUS,
            _ => &SEGV,
        };
        let cause = match is_a_fault {
            true => Cause::Fault,
            false => Cause::Sent,
        };
        // SAFETY: 1. the kernel's own arguments.
        unsafe { chain.hand_on(cause, info, context) };
    }

    /// A line about a fault that is the program's own, by system call alone.
    fn say(table: &Table, signal: libc::c_int, pc: u64) {
        let mut hex = [0; 16];
        for (i, digit) in hex.iter_mut().rev().enumerate() {
            *digit = b"0123456789abcdef"[(pc >> (4 * i) & 15) as usize];
        }
        let what: &[u8] = match signal {
            libc::SIGBUS => b": SIGBUS at ",
            _ => b": SIGSEGV at ",
        };
        let parts: [&[u8]; 5] = [b"BPF program ", table.name.as_bytes(), what, &hex, b"\n"];
        for part in parts {
            let at = part.as_ptr().expose_provenance();
            // SAFETY: 1. the bytes are live. Whether they arrive does not matter.
            let _ = unsafe { syscall(libc::SYS_write, [2, at, part.len()]) };
        }
    }
}

#[cfg(test)]
mod tests {
    use text::RxAddr;

    use super::*;

    #[test]
    fn programs_are_found_by_their_range_while_they_live() {
        let range = |i: u64| RxRange::new(RxAddr::new(0x1_0000 + 0x100 * i), 0x80);
        let mut all: Vec<_> = (0..600)
            .map(|i| Registered::new("p", range(i), Vec::new()))
            .collect();
        let found = |i: u64| table_at(range(i).start.get() + 0x7f);
        assert_eq!(found(599), Some(all[599].table.cast_const()));
        assert_eq!(table_at(range(3).end().get()), None, "between two");
        all.truncate(10);
        assert_eq!(found(599), None);
        assert_eq!(found(9), Some(all[9].table.cast_const()));
        let again = Registered::new("q", range(700), Vec::new());
        assert_eq!(found(700), Some(again.table.cast_const()));
    }
}
