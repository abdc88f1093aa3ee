//! What the threads do, and what comes out of it: the same each time.
#![expect(
    unsafe_code,
    reason = "sorts with the C library's qsort, in memory of its malloc"
)]

use std::ffi::{c_int, c_void};

use super::libraries::Libraries;
use super::{Outcome, ensure};

pub(crate) const THREADS: usize = 4;
pub(crate) const ROUNDS: usize = 24;
/// Bytes that are compressed in a round.
const TEXT_BYTES: usize = 24 << 10;
/// Numbers that are sorted in a round.
const NUMBERS: usize = 500;

/// Works on all threads; gives a hash of everything that came out.
pub(crate) fn run(libraries: &Libraries) -> Outcome<[u8; 32]> {
    let results: Vec<Outcome<[u8; 32]>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || one_thread(libraries, thread as u64)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err("a thread panicked".into()))
        };
        threads.into_iter().map(join).collect()
    });
    let mut all = Vec::new();
    for result in results {
        all.extend(result?);
    }
    Ok(libraries.sha256(&all))
}

fn one_thread(libraries: &Libraries, thread: u64) -> Outcome<[u8; 32]> {
    let mut random = Random(thread + 1);
    let mut state = [0; 32];
    for round in 0..ROUNDS {
        let text = text(&mut random);
        let level = 1 + (round % 9) as c_int;
        let packed = libraries.compress(&text, level)?;
        let same = libraries.uncompress(&packed, text.len())? == text;
        ensure(same, "what was uncompressed is not what was compressed")?;
        let mut out = state.to_vec();
        out.extend(libraries.sha256(&packed));
        out.extend(libraries.sha512(&text)?);
        out.extend(sorted(&mut random)?);
        state = libraries.sha256(&out);
    }
    Ok(state)
}

/// Words, some of them often.
fn text(random: &mut Random) -> Vec<u8> {
    let mut text = Vec::new();
    while text.len() < TEXT_BYTES {
        let word = random.next() % 300;
        text.extend(format!("{:x} ", word * word * 7919).bytes());
    }
    text
}

/// Numbers, sorted by the C library in memory of the C library.
fn sorted(random: &mut Random) -> Outcome<Vec<u8>> {
    extern "C" fn compare(a: *const c_void, b: *const c_void) -> c_int {
        // SAFETY: `qsort` passes two elements of the array.
        let a = unsafe { *a.cast::<u64>() };
        // SAFETY: as above.
        let b = unsafe { *b.cast::<u64>() };
        a.cmp(&b) as c_int
    }
    // SAFETY: memory of any size may be asked for.
    let memory = unsafe { libc::malloc(NUMBERS * 8) }.cast::<u64>();
    ensure(!memory.is_null(), "malloc failed")?;
    for i in 0..NUMBERS {
        // SAFETY: the memory has room for so many numbers.
        let place = unsafe { memory.add(i) };
        // SAFETY: it is inside the memory, aligned, and ours.
        unsafe { place.write(random.next()) };
    }
    // SAFETY: so many numbers have been written; `compare` orders them.
    unsafe { libc::qsort(memory.cast(), NUMBERS, 8, Some(compare)) };
    // SAFETY: they are still there, and nobody writes them while this lives.
    let numbers = unsafe { std::slice::from_raw_parts(memory, NUMBERS) };
    let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let in_order = numbers.is_sorted();
    // SAFETY: it is ours, and nothing refers to it any more.
    unsafe { libc::free(memory.cast()) };
    ensure(in_order, "qsort did not sort")?;
    Ok(bytes)
}

/// Numbers that look random, and are the same each time (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
