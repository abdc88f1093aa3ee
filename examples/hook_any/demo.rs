//! The demo from its first line to its last.
//!
//! - [`libraries`]: the three libraries, opened like any program opens them.
//! - [`work`]: what the threads do with them, and what comes out.
//! - [`counts`]: the hooks, and the table of what they counted.

use std::error::Error;
use std::time::{Duration, Instant};

use rvbpf::Runtime;

mod counts;
mod libraries;
mod work;

use counts::Counts;
use libraries::Libraries;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

pub(crate) fn run() -> Outcome {
    let begin = Instant::now();
    let libraries = Libraries::open()?;
    let rt = Runtime::new()?;

    println!(
        "These are zlib, OpenSSL's libcrypto and the C library, as Debian ships them: stripped,\n\
         and compiled without a thought of hooks. rvbpf finds functions in them by name, moves\n\
         their first instructions elsewhere and writes a jump in their place, while they run.\n"
    );
    println!("0. Without hooks");
    println!(
        "   {} threads compress, uncompress, hash and sort, {} rounds each ...",
        work::THREADS,
        work::ROUNDS
    );
    let round = Instant::now();
    let expected = work::run(&libraries)?;
    println!(
        "   took {:.1?}; the results hash to {}\n",
        round.elapsed(),
        hex(&expected)
    );

    println!("1. With hooks that come while the threads work");
    let round = Instant::now();
    let mut counts = Counts::attach_during(&rt, || work::run(&libraries), &expected)?;
    println!("   took {:.1?}; the same results\n", round.elapsed());

    println!("2. With hooks from the first call to the last");
    counts.reset();
    let round = Instant::now();
    ensure(
        work::run(&libraries)? == expected,
        "hooked functions gave other results",
    )?;
    let took = round.elapsed();
    counts.show();
    counts.check()?;
    println!("   took {took:.1?}; the same results, and as many calls as there must be\n");

    println!("3. Without hooks again");
    counts.detach()?;
    ensure(
        work::run(&libraries)? == expected,
        "other results after all hooks were gone",
    )?;
    counts.check_silent()?;
    rt.synchronize(Duration::from_secs(10))?;
    let stats = rt.stats();
    let left = stats.tramps.sites + stats.tramps.links + stats.tramps.images;
    ensure(left == 0, "something was left behind")?;
    println!("   the same results; nothing counted, nothing left behind\n");
    println!("All of it checked, in {:.0?}.", begin.elapsed());
    Ok(())
}

/// An error that says `otherwise`, unless `holds`.
pub(crate) fn ensure(holds: bool, otherwise: &str) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

fn hex(bytes: &[u8]) -> String {
    let first = bytes.iter().take(8);
    first.fold(String::new(), |text, b| text + &format!("{b:02x}"))
}
