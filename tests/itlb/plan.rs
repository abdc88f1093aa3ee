//! Command lines.

use std::path::PathBuf;

use crate::itlb::order::Order;
use crate::itlb::place::Layout;
use crate::itlb::plan::Plan;

fn plan(line: &str) -> Result<Plan, String> {
    let full = Plan::full().expect("the full plan");
    let args = line.split_whitespace().map(str::to_owned);
    full.with_args(args).map_err(|error| error.to_string())
}

/// A file for this process alone.
fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("itlb-{name}-{}.tlb", std::process::id()));
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn without_options_it_is_everything() {
    let plan = plan("--bench").expect("a plan");
    assert_eq!(plan.programs.len(), 15);
    assert_eq!((plan.programs[0], plan.programs[14]), (1, 16384));
    assert_eq!(plan.compared_at(), 4096);
    assert_eq!(
        (plan.layouts, plan.orders),
        (Layout::ALL.into(), Order::ALL.into())
    );
    assert_eq!(plan.spec.core, "SiFive U74");
}

#[test]
fn options_are_read() {
    let file = file("good", include_str!("../../benches/itlb/u54.tlb"));
    let line = "--programs 64,1,64 --layout huge,page --order zipf --runs 3 --hart 2 --out /o";
    let plan = plan(&format!("{line} --tlb {}", file.display())).expect("a plan");
    std::fs::remove_file(file).expect("removed");
    assert_eq!(plan.programs, [1, 64]);
    assert_eq!(plan.compared_at(), 64);
    assert_eq!(plan.layouts, [Layout::Huge, Layout::Page]);
    assert_eq!(plan.orders, [Order::Zipf]);
    assert_eq!((plan.runs, plan.hart), (3, Some(2)));
    assert_eq!(plan.out.to_str(), Some("/o"));
    assert_eq!(plan.spec.core, "SiFive U54 (PolarFire SoC)");
}

#[test]
fn what_cannot_be_is_said() {
    for (line, want) in [
        (
            "--speed 1",
            "there is no option --speed; there are: --programs N,N --layout",
        ),
        ("--programs", "--programs wants a value"),
        (
            "--programs 0",
            "the number of programs is from 1 to 16384, not 0",
        ),
        (
            "--programs 1,16385",
            "the number of programs is from 1 to 16384, not 16385",
        ),
        (
            "--programs 1,",
            "the number of programs is from 1 to 16384, not ",
        ),
        (
            "--layout heap",
            "there is no layout heap; there are: page, packed, hot-first, huge",
        ),
        (
            "--order last",
            "there is no order last; there are: round-robin, random, zipf",
        ),
        ("--runs 0", "the number of runs is from 1 to 1000, not 0"),
        ("--hart first", "a hart has a number, not first"),
        ("--tlb /nowhere", "/nowhere: No such file or directory"),
    ] {
        let error = plan(line).expect_err(line);
        assert!(error.starts_with(want), "{line}: {error}");
    }
}

#[test]
fn a_bad_file_is_named_with_its_line() {
    let text = "core x\n\nlevel L1 entries=4 ways=3 pages=4K replacement=lru\n";
    let path = file("bad", text);
    let error = plan(&format!("--tlb {}", path.display())).expect_err("a bad file");
    std::fs::remove_file(&path).expect("removed");
    let want = "line 3: ways is full or a number that divides 4 into a power of two, not 3";
    assert_eq!(error, format!("{}, {want}", path.display()));
}
