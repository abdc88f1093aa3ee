//! Every way to be refused: the right error, and everything as before.
#![cfg(target_arch = "riscv64")]
#![expect(
    unsafe_code,
    reason = "hooks addresses that are none, fills the address space"
)]

#[path = "common/mod.rs"]
mod common;

#[path = "errors/flushes.rs"]
mod flushes;
#[path = "errors/limits.rs"]
mod limits;
#[path = "errors/others.rs"]
mod others;
#[path = "errors/probes.rs"]
mod probes;
#[path = "errors/sites.rs"]
mod sites;
#[path = "errors/words.rs"]
mod words;

use rvbpf::{Error, Runtime};

use common::{Footprint, code_at, footprint};

/// What must not change when something is refused: code, and the runtime's numbers.
struct Before<'a> {
    rt: &'a Runtime,
    funcs: Vec<*const ()>,
    code: Vec<[u8; 16]>,
    numbers: Footprint,
}

impl<'a> Before<'a> {
    fn new(rt: &'a Runtime, funcs: &[*const ()]) -> Self {
        let code = funcs.iter().map(|f| code_at(*f)).collect();
        Before {
            rt,
            funcs: funcs.to_vec(),
            code,
            numbers: footprint(&rt.stats()),
        }
    }

    /// The same code, the same numbers.
    fn assert_unchanged(&self) {
        let code: Vec<_> = self.funcs.iter().map(|f| code_at(*f)).collect();
        assert_eq!(code, self.code, "code has changed");
        assert_eq!(footprint(&self.rt.stats()), self.numbers);
    }
}

/// The error of what must fail, with its message printed.
fn refused<T>(result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("was not refused"),
        Err(error) => {
            println!("{error}");
            error
        }
    }
}

/// `matches!` that shows what it was instead.
macro_rules! assert_is {
    ($error:expr, $($pattern:tt)+) => {{
        let error = $error;
        assert!(matches!(&error, $($pattern)+), "is {error:?}");
    }};
}
use assert_is;
