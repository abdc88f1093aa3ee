//! The hooks, each of which counts, and the table of what they counted.
#![expect(unsafe_code, reason = "promises what the functions look like")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rvbpf::{EntryKind, FuncModel, Hook, Runtime};

use super::libraries::{LIBC, LIBCRYPTO, LIBZ};
use super::work::{ROUNDS, THREADS};
use super::{Outcome, ensure};

/// Rounds of all threads.
const ALL: u64 = (THREADS * ROUNDS) as u64;

/// How often a function must have been called.
#[derive(Copy, Clone)]
enum Want {
    /// The threads call it themselves, and nobody else does.
    Exactly(u64),
    /// It is called inside of what the threads call.
    AtLeast(u64),
}
use Want::{AtLeast, Exactly};

/// A function, what it does, and how often it is called.
type Function = (&'static str, &'static str, Want);

const FUNCTIONS: [(&str, &[Function]); 3] = [
    (
        LIBZ,
        &[
            ("compress2", "compresses a buffer", Exactly(ALL)),
            ("compressBound", "how large it can become", AtLeast(ALL)),
            ("deflateInit_", "begins to compress", Exactly(ALL)),
            ("deflateInit2_", "with more settings", Exactly(ALL)),
            ("deflate", "compresses a piece", AtLeast(ALL)),
            ("deflateEnd", "ends it", Exactly(ALL)),
            ("uncompress", "uncompresses a buffer", Exactly(ALL)),
            ("inflateInit_", "begins to uncompress", Exactly(ALL)),
            ("inflate", "uncompresses a piece", AtLeast(ALL)),
            ("inflateEnd", "ends it", Exactly(ALL)),
            ("adler32", "zlib's checksum", AtLeast(2 * ALL)),
        ],
    ),
    (
        LIBCRYPTO,
        &[
            ("SHA256", "hashes a buffer", Exactly(2 * ALL + 1)),
            ("EVP_Digest", "by any algorithm", AtLeast(ALL)),
            ("EVP_MD_CTX_new", "makes room for a hash", AtLeast(ALL)),
            ("EVP_DigestInit_ex", "begins a hash", AtLeast(ALL)),
            ("EVP_DigestUpdate", "hashes a piece", AtLeast(ALL)),
            ("EVP_DigestFinal_ex", "ends it", AtLeast(ALL)),
            ("EVP_MD_CTX_free", "gives the room back", AtLeast(ALL)),
            ("EVP_sha512", "names an algorithm", AtLeast(ALL)),
            ("CRYPTO_zalloc", "OpenSSL's memory", AtLeast(ALL)),
            ("CRYPTO_free", "gives it back", AtLeast(ALL)),
        ],
    ),
    (
        LIBC,
        &[
            ("malloc", "everybody's memory", AtLeast(4 * ALL)),
            ("calloc", "the same, zeroed", AtLeast(ALL)),
            ("realloc", "makes it longer", AtLeast(ALL)),
            ("free", "gives it back", AtLeast(4 * ALL)),
            ("qsort", "sorts an array", Exactly(ALL)),
            ("memcpy", "copies bytes", AtLeast(4 * ALL)),
        ],
    ),
];

/// All of them, each with its library.
fn functions() -> impl Iterator<Item = (&'static str, &'static Function)> {
    let of = |(library, functions): (&'static str, &'static [Function])| {
        functions.iter().map(move |function| (library, function))
    };
    FUNCTIONS.into_iter().flat_map(of)
}

/// The hooks of all of [`FUNCTIONS`], and what they had counted when that was last asked.
pub(crate) struct Counts {
    hooks: Vec<Hook>,
    before: Vec<u64>,
}

impl Counts {
    /// Hooks all functions at once, while `work` is done again and again.
    pub(crate) fn attach_during<T: PartialEq + Sync>(
        rt: &Runtime,
        work: impl Fn() -> Outcome<T> + Sync,
        expected: &T,
    ) -> Outcome<Self> {
        let mut builders = Vec::new();
        for (library, (name, ..)) in functions() {
            // SAFETY: nothing is said of the function but that it is one.
            let hook = unsafe { rt.hook_symbol(Some(library), name, FuncModel::untyped()) };
            let hook = hook.map_err(|e| format!("{name} of {library}: {e}"))?;
            builders.push(hook.allow_trap().on_entry(|_| ()));
        }
        let attached = AtomicBool::new(false);
        let (hooks, worked) = std::thread::scope(|scope| {
            let worker = scope.spawn(|| -> Outcome {
                loop {
                    // Once more from beginning to end when they are there.
                    let is_last = attached.load(Ordering::Acquire);
                    ensure(work()? == *expected, "hooks that came changed the results")?;
                    if is_last {
                        return Ok(());
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(100));
            let hooks = rt.attach_all(builders);
            attached.store(true, Ordering::Release);
            let worked = worker
                .join()
                .unwrap_or_else(|_| Err("the work panicked".into()));
            (hooks, worked)
        });
        worked?;
        let counts = Self {
            hooks: hooks?,
            before: vec![0; functions().count()],
        };
        let calls: u64 = counts.calls().iter().sum();
        ensure(calls > 0, "hooks that came saw no call")?;
        println!(
            "   {} functions hooked; they saw {calls} calls",
            counts.hooks.len()
        );
        Ok(counts)
    }

    /// Begins to count anew.
    pub(crate) fn reset(&mut self) {
        self.before = self.hooks.iter().map(|hook| hook.stats().runs).collect();
    }

    /// Calls of each function since then.
    fn calls(&self) -> Vec<u64> {
        let since = |(hook, before): (&Hook, &u64)| hook.stats().runs - before;
        self.hooks.iter().zip(&self.before).map(since).collect()
    }

    /// The table.
    pub(crate) fn show(&self) {
        println!(
            "   {:16}{:20}{:>9}  {:6}what it does",
            "library", "function", "calls", "by"
        );
        let rows = functions().zip(&self.hooks).zip(self.calls());
        for (((library, (name, what, _)), hook), calls) in rows {
            let by = match hook.kind() {
                Some(EntryKind::Pad) => "pad",
                Some(EntryKind::Jump) => "jump",
                Some(EntryKind::Trap) => "trap",
                None => "",
            };
            println!("   {library:16}{name:20}{calls:>9}  {by:6}{what}");
        }
    }

    /// Each was called as often as it must have been, and every call was counted.
    pub(crate) fn check(&self) -> Outcome {
        for ((_, (name, _, want)), calls) in functions().zip(self.calls()) {
            let (holds, word, want) = match *want {
                Exactly(want) => (calls == want, "exactly", want),
                AtLeast(want) => (calls >= want, "at least", want),
            };
            ensure(holds, &format!("{name}: {calls} calls, not {word} {want}"))?;
        }
        let missed: u64 = self.hooks.iter().map(|hook| hook.stats().missed).sum();
        ensure(missed == 0, &format!("{missed} calls were not counted"))
    }

    /// Takes all hooks away, and begins to count anew.
    pub(crate) fn detach(&mut self) -> Outcome {
        for hook in &self.hooks {
            hook.detach()?;
        }
        self.reset();
        Ok(())
    }

    /// Nothing has been counted.
    pub(crate) fn check_silent(&self) -> Outcome {
        let calls: u64 = self.calls().iter().sum();
        ensure(calls == 0, "hooks that are gone counted")
    }
}
