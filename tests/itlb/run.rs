//! All of it, on real code: short runs, and what is said where something is missing.

#![expect(unsafe_code, reason = "gives up huge pages and rights")]

use std::path::PathBuf;

use crate::itlb::corpus::Corpus;
use crate::itlb::counters::{Counters, Event};
use crate::itlb::machine::{Machine, Uarch, uarch_of};
use crate::itlb::order::Order;
use crate::itlb::place::{Layout, Placed};
use crate::itlb::plan::Plan;
use crate::itlb::{Error, Outcome, measure};

/// A short plan that writes into a folder of this process.
fn plan(name: &str, line: &str) -> Plan {
    let plan = Plan::full().expect("the full plan");
    let args = line.split_whitespace().map(str::to_owned);
    let mut plan = plan.with_args(args).expect("a plan");
    plan.out = std::env::temp_dir().join(format!("itlb-{name}-{}", std::process::id()));
    plan
}

fn files_of(plan: &Plan) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&plan.out).expect("the folder");
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files
}

/// The model's misses of the first level.
fn misses(outcome: &Outcome, layout: Layout, order: Order, programs: usize) -> f64 {
    let value = outcome.results.value(0, layout, order, programs);
    value.expect("a value").median
}

#[test]
fn a_short_run_finds_what_can_be_worked_out_by_hand() {
    let plan = plan("short", "--programs 39,40,512");
    let outcome = measure(&plan).expect("measured");
    // The loop has a page of its own: 39 are left in the U74's first level. With one more than
    // there is room for, going round misses all the time, and the loop's page, used in between,
    // stays.
    for (layout, order, programs, want) in [
        (Layout::Page, Order::RoundRobin, 39, 0.0),
        (Layout::Page, Order::RoundRobin, 40, 1.0),
        (Layout::Page, Order::RoundRobin, 512, 1.0),
        (Layout::Packed, Order::RoundRobin, 40, 0.0),
        (Layout::Huge, Order::Random, 512, 0.0),
        (Layout::Huge, Order::Zipf, 512, 0.0),
    ] {
        let found = misses(&outcome, layout, order, programs);
        assert_eq!(found, want, "{layout}, {order}, {programs}");
    }
    // At random, 39 of 512 pages are there: 0.924 misses, six standard deviations are 0.018.
    let random = misses(&outcome, Layout::Page, Order::Random, 512);
    assert!((random - 0.924).abs() < 0.018, "{random}");
    let (packed, hot) = (Layout::Packed, Layout::Hot);
    let zipf = |layout| misses(&outcome, layout, Order::Zipf, 512);
    assert!(zipf(hot) < zipf(packed) && zipf(packed) < zipf(Layout::Page));

    assert!(outcome.results.is_huge, "{:?}", outcome.results.notes);
    assert_eq!(outcome.results.lonely_bytes, (2 << 20, 4 << 10));
    // Not 4,096 programs: the goal says nothing.
    assert_eq!(outcome.goal, None);
    let sentence = outcome.in_a_sentence();
    assert!(
        sentence.starts_with("In the model, 512 programs called at random"),
        "{sentence}"
    );
    let files = files_of(&plan);
    for name in [
        "itlb.csv",
        "itlb.json",
        "itlb_model_itlb_misses.svg",
        "itlb_model_utlb_misses.svg",
    ] {
        assert!(files.contains(&plan.out.join(name)), "{files:?}");
    }
    let json = std::fs::read(plan.out.join("itlb.json")).expect("read");
    let rows: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let names: Vec<_> = rows
        .as_array()
        .expect("an array")
        .iter()
        .map(|r| &r["row"])
        .collect();
    assert!(
        names
            .iter()
            .any(|name| *name == "huge_vs_page_misses_512_random"),
        "{names:?}"
    );
    assert_eq!(names.len(), outcome.rows.len());
    let csv = std::fs::read_to_string(plan.out.join("itlb.csv")).expect("read");
    let nr_points = 4 * 3 * 3;
    assert_eq!(
        csv.lines().count(),
        1 + nr_points * outcome.results.metrics.len()
    );
    std::fs::remove_dir_all(&plan.out).expect("removed");
}

/// In QEMU only instructions can be counted, and only with a counting clock.
#[test]
fn what_an_emulator_counts_is_not_shown_as_if_it_meant_something() {
    let machine = Machine::look(None).expect("a machine");
    if !machine.is_emulated {
        println!("this is no emulator");
        return;
    }
    let plan = plan("emulated", "--programs 4 --layout packed --order random");
    let outcome = measure(&plan).expect("measured");
    let names: Vec<&str> = outcome
        .results
        .metrics
        .iter()
        .map(|m| m.name.as_str())
        .collect();
    let notes = outcome.results.notes.join("\n");
    assert_eq!(names[..2], ["model_itlb_misses", "model_utlb_misses"]);
    for event in ["cycles", "itlb_misses", "utlb_misses"] {
        assert!(!names.contains(&event), "{names:?}");
        let why = format!("{event} are not counted: what an emulator says of them means nothing");
        assert!(notes.contains(&why), "{notes}");
    }
    let said = notes.contains("instructions are not shown: this VM counts")
        || notes.contains("instructions cannot be counted: ");
    assert_ne!(names.contains(&"instructions"), said, "{names:?}\n{notes}");
    std::fs::remove_dir_all(&plan.out).expect("removed");
}

#[test]
fn without_huge_pages_it_falls_back_and_says_so() {
    // SAFETY: 1. it changes nothing but which pages this process gets.
    let rc = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    let plan = plan("small", "--programs 1024 --layout page,huge --order random");
    let outcome = measure(&plan).expect("measured");
    let notes = outcome.results.notes.join("\n");
    assert!(!outcome.results.is_huge);
    assert!(notes.contains("fell back to 4 KiB pages"), "{notes}");
    assert!(
        notes.contains(
            "packed in 2 MiB pages: 1024 programs are in 1 pack of 2 MiB, in 4 KiB pages"
        ),
        "{notes}"
    );
    // Its numbers are those of small pages, and the goal is neither met nor missed.
    assert!(misses(&outcome, Layout::Huge, Order::Random, 1024) > 0.5);
    assert_eq!(outcome.goal, None);
    assert!(
        outcome
            .in_a_sentence()
            .ends_with("of 4 KiB pages for want of others.")
    );
    assert_eq!(outcome.results.lonely_bytes.0 / 1024, 4);
    std::fs::remove_dir_all(&plan.out).expect("removed");
}

#[test]
fn code_memory_that_is_not_to_be_had_is_an_error() {
    let corpus = Corpus::new(600).expect("programs");
    let status = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages = status
        .split(' ')
        .next()
        .and_then(|pages| pages.parse::<u64>().ok());
    // Not even one pack has room.
    let most = (4096 * pages.expect("a number")) + (1 << 20);
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: 1. the kernel reads the limit.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    let by: Vec<u32> = (0..600).collect();
    for layout in Layout::ALL {
        let error = Placed::new(&corpus, layout, &by).expect_err("no room");
        assert!(matches!(error, Error::Pack(_)), "{layout}: {error:?}");
        println!("{layout}: {error}");
    }
}

#[test]
fn without_permission_the_sysctl_is_named_and_the_rest_is_measured() {
    const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
    // Debian's kernels know 3: nobody but root counts anything.
    if std::fs::write(PARANOID, "3").is_err() {
        println!("the sysctl is not ours to change");
        return;
    }
    let plan = plan("nobody", "--programs 64 --layout page,huge --order random");
    std::fs::create_dir_all(&plan.out).expect("a folder");
    let folder = std::ffi::CString::new(plan.out.to_str().expect("a name")).expect("no zero");
    // SAFETY: 1. the name is a C string.
    assert_eq!(unsafe { libc::chown(folder.as_ptr(), 65534, 65534) }, 0);
    // SAFETY: 1. it takes rights away.
    assert_eq!(unsafe { libc::setuid(65534) }, 0);
    let mut machine = Machine::look(None).expect("a machine");
    machine.is_emulated = false;
    machine.uarch = Uarch::U74;
    let counters = Counters::open(&machine);
    assert_eq!(counters.events().count(), 0);
    let missing: Vec<String> = counters.missing().iter().map(ToString::to_string).collect();
    assert_eq!(missing.len(), 4, "{missing:?}");
    for (event, why) in ["instructions", "cycles", "itlb_misses", "utlb_misses"]
        .iter()
        .zip(missing)
    {
        let want = format!(
            "{event} cannot be counted: the kernel gives no permission; as root: sysctl \
             kernel.perf_event_paranoid=1 (it is 3)"
        );
        assert_eq!(why, want);
    }
    let outcome = measure(&plan).expect("the rest is measured");
    assert_eq!(outcome.results.metrics.len(), 2);
    assert!(misses(&outcome, Layout::Page, Order::Random, 64) > 0.1);
    assert_eq!(misses(&outcome, Layout::Huge, Order::Random, 64), 0.0);
}

#[test]
fn events_that_the_machine_lacks_are_said_and_cost_only_themselves() {
    let mut machine = Machine::look(None).expect("a machine");
    machine.is_emulated = false;
    machine.uarch = Uarch::Other;
    let counters = Counters::open(&machine);
    let missing: Vec<String> = counters.missing().iter().map(ToString::to_string).collect();
    let unknown = "utlb_misses are not counted: nobody knows the event's number on this core";
    assert!(missing.iter().any(|why| why == unknown), "{missing:?}");

    // QEMU has no raw events: either it says so, or the event gets no counter.
    machine.uarch = Uarch::U74;
    let mut counters = Counters::open(&machine);
    counters
        .sort_out(1, || {
            std::thread::sleep(std::time::Duration::from_millis(1))
        })
        .expect("counted");
    if Machine::look(None).expect("a machine").is_emulated {
        assert!(counters.events().all(|event| event != Event::Utlb));
        let missing: Vec<String> = counters.missing().iter().map(ToString::to_string).collect();
        let why = missing
            .iter()
            .find(|why| why.starts_with("utlb_misses cannot be counted: "));
        let why = why.expect("a reason");
        assert!(
            why.contains("this machine has no such event (raw event 0x2002: ")
                || why.contains("the machine gave the event no counter"),
            "{why}"
        );
    }
}

#[test]
fn a_hart_that_is_not_there_is_refused() {
    for hart in [1000, usize::MAX] {
        let error = Machine::look(Some(hart))
            .expect_err("no such hart")
            .to_string();
        let want =
            format!("this thread cannot be pinned to hart {hart}: Invalid argument (os error 22)");
        assert_eq!(error, want);
    }
}

#[test]
fn the_u74_is_known_by_name_and_by_number() {
    let cpuinfo = "processor\t: 0\nhart\t\t: 1\nisa\t\t: rv64imafdc_zba_zbb\nmmu\t\t: sv39\n\
                   uarch\t\t: sifive,u74-mc\nmvendorid\t: 0x489\n\n\
                   processor\t: 1\nmvendorid\t: 0x489\nmarchid\t\t: 0x8000000000000007\n\n\
                   processor\t: 2\nmvendorid\t: 0x489\nmarchid\t\t: 0x8000000000000008\n";
    assert_eq!(uarch_of(cpuinfo, 0), Uarch::U74);
    assert_eq!(uarch_of(cpuinfo, 1), Uarch::U74);
    assert_eq!(uarch_of(cpuinfo, 2), Uarch::Other);
}
