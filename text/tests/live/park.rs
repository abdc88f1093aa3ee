//! Threads that stand where a test wants them, under signal handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rvbpf_text::RxAddr;

use super::detour_fns::d_unimp;
use super::fns::{call, rx};

/// A thread that called a function with 5 and was, so it seems, interrupted in it.
pub(crate) struct Parked {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<u64>>,
}

#[derive(Default)]
struct Orders {
    pc: AtomicU64,
    t3: AtomicU64,
    /// Handlers on top of each other still to come.
    depth: AtomicU32,
    is_there: AtomicBool,
    may_go: AtomicBool,
}

thread_local! {
    static ORDERS: std::cell::Cell<*const Orders> = const { std::cell::Cell::new(std::ptr::null()) };
}

impl Parked {
    /// At `pc`, under `depth` signal handlers.
    pub(crate) fn at(pc: RxAddr, depth: u32) -> Self {
        Self::with_t3(pc, depth, 0)
    }

    pub(crate) fn with_t3(pc: RxAddr, depth: u32, t3: u64) -> Self {
        for signal in [libc::SIGILL, libc::SIGUSR1] {
            // SAFETY: all zero is a valid `sigaction`.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_signal as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            // SAFETY: the structure is live; the handler is async-signal-safe.
            unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        }
        let orders = Arc::new(Orders::default());
        orders.pc.store(pc.get(), Ordering::SeqCst);
        orders.t3.store(t3, Ordering::SeqCst);
        orders.depth.store(depth, Ordering::SeqCst);
        let own = Arc::clone(&orders);
        let thread = std::thread::spawn(move || {
            ORDERS.set(Arc::as_ptr(&own));
            call(rx(d_unimp), 5)
        });
        parked_in(|| orders.is_there.load(Ordering::SeqCst));
        // Asleep, not on the way there.
        std::thread::sleep(Duration::from_millis(20));
        Self {
            orders,
            thread: Some(thread),
        }
    }

    /// Lets it go on; what its call yields.
    pub(crate) fn go_on(mut self) -> u64 {
        self.orders.may_go.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("once");
        thread.join().expect("the thread ends well")
    }
}

/// A test that failed lets nobody wait.
impl Drop for Parked {
    fn drop(&mut self) {
        self.orders.may_go.store(true, Ordering::SeqCst);
    }
}

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: set by this thread, which keeps it alive until it ends.
    let orders = unsafe { &*ORDERS.get() };
    if signal == libc::SIGILL {
        // SAFETY: the kernel passes the context that it will restore.
        let regs = unsafe { &mut (*context).uc_mcontext.__gregs };
        regs[0] = orders.pc.load(Ordering::SeqCst);
        regs[28] = orders.t3.load(Ordering::SeqCst);
    }
    if orders.depth.fetch_sub(1, Ordering::SeqCst) > 1 {
        // SAFETY: a signal to this thread, with a handler.
        unsafe { libc::raise(libc::SIGUSR1) };
        return;
    }
    orders.is_there.store(true, Ordering::SeqCst);
    while !orders.may_go.load(Ordering::SeqCst) {
        // SAFETY: sleeping has no conditions.
        unsafe { libc::usleep(1000) };
    }
}

/// Waits until it is so.
pub(crate) fn parked_in(is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it never is so");
        std::thread::sleep(Duration::from_millis(1));
    }
}
