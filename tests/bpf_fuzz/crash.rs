//! Which seed it was, when compiled code does not come back: it has run into nothing, or round and
//! round.
//!
//! Key type: [`Watch`].

#![expect(unsafe_code, reason = "a signal handler")]

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long a run may take.
const PATIENCE_SECONDS: u32 = 60;

static SEED: AtomicU64 = AtomicU64::new(0);
static HANDLERS: Once = Once::new();

/// While it lives, a fatal signal tells the seed. One at a time.
pub(crate) struct Watch(());

impl Watch {
    pub(crate) fn new(seed: u64) -> Self {
        HANDLERS.call_once(|| {
            let handler = tell as extern "C" fn(libc::c_int) as libc::sighandler_t;
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGALRM] {
                // SAFETY: 1. the handler does only what handlers may.
                unsafe { libc::signal(signal, handler) };
            }
        });
        SEED.store(seed, Ordering::SeqCst);
        // SAFETY: 1. `tell` handles the signal.
        unsafe { libc::alarm(PATIENCE_SECONDS) };
        Self(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: 1. it takes a number.
        unsafe { libc::alarm(0) };
    }
}

extern "C" fn tell(signal: libc::c_int) {
    let mut text = *b"signal 00 while seed 0x0000000000000000 ran\n";
    text[7] += (signal / 10) as u8;
    text[8] += (signal % 10) as u8;
    let seed = SEED.load(Ordering::SeqCst);
    for (i, byte) in text[23..39].iter_mut().enumerate() {
        *byte = b"0123456789abcdef"[(seed >> (60 - 4 * i)) as usize & 15];
    }
    // SAFETY: 1. `text` is readable for its length.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    // SAFETY: 1. it may be called in handlers, and does not return.
    unsafe { libc::_exit(128 + signal) };
}
