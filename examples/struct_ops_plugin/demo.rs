//! The four parts of the demo.

#![expect(unsafe_code, reason = "the table is registered")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rvbpf::Runtime;
use rvbpf::struct_ops::Link;

use crate::policy::{self, BOLD, CongOps, MADE, RENO, STUCK, WILD};
use crate::server::{Tally, WORKERS, serve};

type Error = Box<dyn std::error::Error>;

const SWAPS: u64 = 10_000;

/// How long anything may take that must happen soon. Generous: a VM may stall.
const SOON: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<(), Error> {
    let rt = Runtime::new()?;
    let before = rt.stats();
    println!("A server with {WORKERS} threads asks a table of functions about every packet:");
    println!("init, on_ack, on_loss, cwnd. The table is swapped while it is called.\n");
    let reno = policy::reno(&rt)?;
    // SAFETY: 1. the workers end before the link goes.
    let link = unsafe { rt.register(&reno) }?;

    swaps(&rt, &link, &reno)?;
    bad_pointer(&rt, &link, &reno)?;
    runaway(&rt, &link, &reno)?;

    link.unregister(SOON)?;
    drop((link, reno));
    rt.synchronize(SOON)?;
    let after = rt.stats();
    check(
        (after.packs.nr_live, after.ops) == (before.packs.nr_live, before.ops),
        "something was left behind",
    )?;
    println!("Unregistered: no thread is inside, and all code of the plugins has been freed.");
    Ok(())
}

fn check(holds: bool, why: &'static str) -> Result<(), Error> {
    match holds {
        true => Ok(()),
        false => Err(why.into()),
    }
}

/// What the versions say that they decided since `MADE` was looked at last.
fn taken() -> [u64; 5] {
    std::array::from_fn(|i| MADE[i].swap(0, Ordering::Relaxed))
}

/// No call lost, none decided twice, each by one version that says the same.
fn accounts_for(tally: &Tally) -> Result<(), Error> {
    check(tally.mixed == 0, "a pinned table was a mixture of versions")?;
    check(
        tally.decisions == taken(),
        "the versions have counted other decisions than the server",
    )
}

fn swaps(
    rt: &Runtime,
    link: &Link<CongOps>,
    reno: &rvbpf::struct_ops::Table<CongOps>,
) -> Result<(), Error> {
    println!("1. A Rust default and a BPF plugin, swapped {SWAPS} times");
    let bold = policy::bold(rt)?;
    let served = AtomicU64::new(0);
    let start = Instant::now();
    let (tally, swapped) = serve(link, &served, || -> Result<(), Error> {
        for i in 0..SWAPS {
            link.update(if i % 2 == 0 { &bold } else { reno })?;
            if i % 64 == 0 {
                wait_for(&served, 16)?;
            }
        }
        Ok(())
    });
    swapped?;
    check(tally.nobodys == 0, "a decision was nobody's")?;
    check(
        tally.decisions.iter().sum::<u64>() == tally.calls,
        "a call was lost",
    )?;
    accounts_for(&tally)?;
    check(
        tally.decisions[RENO as usize] > 0 && tally.decisions[BOLD as usize] > 0,
        "one version was never called",
    )?;
    println!("   {} decisions in {:.1?}:", tally.calls, start.elapsed());
    println!("   {:>9} by the default", tally.decisions[RENO as usize]);
    println!("   {:>9} by the plugin", tally.decisions[BOLD as usize]);
    println!("   Both count their own, and the sums agree: no call was lost, and each decision");
    println!("   is one version's. Rounds with a pinned table saw one version throughout.\n");
    Ok(())
}

/// Until so many more events have been served.
fn wait_for(served: &AtomicU64, more: u64) -> Result<(), Error> {
    let (goal, end) = (served.load(Ordering::Relaxed) + more, Instant::now() + SOON);
    while served.load(Ordering::Relaxed) < goal {
        check(Instant::now() < end, "the server stands still")?;
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

fn bad_pointer(
    rt: &Runtime,
    link: &Link<CongOps>,
    reno: &rvbpf::struct_ops::Table<CongOps>,
) -> Result<(), Error> {
    println!("2. A plugin that reads a bad pointer");
    let wild = policy::wild(rt)?;
    let served = AtomicU64::new(0);
    let (tally, result) = serve(link, &served, || {
        link.update(&wild)?;
        wait_for(&served, 1000)?;
        link.update(reno)?;
        Ok::<_, Error>(())
    });
    result?;
    accounts_for(&tally)?;
    let reads = tally.decisions[WILD as usize];
    check(reads > 0 && tally.nobodys == 0, "it was not called")?;
    println!("   It read from address 0x10 {reads} times, got 0 each time, and answered.");
    println!("   The server noticed nothing.\n");
    Ok(())
}

fn runaway(
    rt: &Runtime,
    link: &Link<CongOps>,
    reno: &rvbpf::struct_ops::Table<CongOps>,
) -> Result<(), Error> {
    println!("3. A plugin that does not end");
    let (stuck, program) = policy::stuck(rt)?;
    let served = AtomicU64::new(0);
    let (tally, result) = serve(link, &served, || {
        link.update(&stuck)?;
        let end = Instant::now() + SOON;
        while program.stops() == 0 {
            check(Instant::now() < end, "nobody ended it")?;
            thread::sleep(Duration::from_millis(1));
        }
        link.update(reno)?;
        wait_for(&served, 1000)?;
        Ok::<_, Error>(())
    });
    result?;
    let stops = program.stops();
    check(tally.nobodys == stops, "its runs do not add up")?;
    check(tally.decisions[STUCK as usize] == 0, "it has answered")?;
    accounts_for(&tally)?;
    println!(
        "   Its budget of 2 ms ended it {stops} times, with 0 as the answer, until the server"
    );
    println!("   saw that and went back to the default.\n");
    Ok(())
}
