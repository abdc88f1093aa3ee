//! Tables, rows, lists and plots of numbers that are made up here.

use crate::itlb::order::Order;
use crate::itlb::place::Layout;
use crate::itlb::plan::Plan;
use crate::itlb::results::{Memory, Metric, Point, Results, Spread};
use crate::itlb::{plot, report};

/// One level and one counter; `huge` misses of the huge pack at 4,096 programs.
fn results(huge: f64) -> Results {
    let metric = |name: &str, unit| Metric {
        name: name.into(),
        about: format!("about {name}"),
        unit,
    };
    let point = |layout, programs, misses: f64| Point {
        layout,
        order: Order::Random,
        programs,
        values: vec![Spread::exact(misses), Spread::of(vec![120.0, 100.0, 110.0])],
    };
    Results {
        metrics: vec![
            metric("model_l1_misses", "misses/call (model)"),
            metric("cycles", "cycles/call"),
        ],
        nr_modelled: 1,
        points: vec![
            point(Layout::Page, 1, 0.0),
            point(Layout::Page, 4096, 1.0),
            point(Layout::Huge, 1, 0.0),
            point(Layout::Huge, 4096, huge),
        ],
        memory: vec![
            Memory {
                layout: Layout::Page,
                programs: 4096,
                resident_bytes: 1 << 24,
            },
            Memory {
                layout: Layout::Huge,
                programs: 4096,
                resident_bytes: 1 << 21,
            },
        ],
        lonely_bytes: (2 << 20, 4 << 10),
        notes: Vec::new(),
        is_huge: true,
    }
}

fn plan() -> Plan {
    let plan = Plan::full().expect("the full plan");
    let args = "--programs 1,4096 --layout page,huge --order random";
    plan.with_args(args.split(' ').map(str::to_owned))
        .expect("a plan")
}

#[test]
fn medians_are_in_the_middle() {
    let spread = Spread::of(vec![3.0, 1.0, 2.0]);
    assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
}

#[test]
fn rows_compare_with_one_page_per_program() {
    let results = results(0.02);
    let rows = report::rows(&results, &plan());
    let short: Vec<_> = rows
        .iter()
        .map(|row| (row.row.as_str(), row.value, row.peer_value))
        .collect();
    assert_eq!(
        short,
        [
            ("huge_vs_page_misses_4096_random", 0.02, Some(1.0)),
            ("huge_vs_page_cycles_4096_random", 110.0, Some(110.0)),
            ("huge_memory_4096", 2048.0, Some(16384.0)),
            ("pack_with_one_program_memory", 2048.0, Some(4.0)),
        ]
    );
    assert_eq!(rows[0].unit, "misses/call (model)");
}

#[test]
fn the_goal_is_one_fiftieth() {
    let goal = |huge, is_huge| {
        let mut results = results(huge);
        results.is_huge = is_huge;
        report::goal(&report::rows(&results, &plan()), &results)
    };
    assert_eq!(goal(0.02, true), Some(true));
    assert_eq!(goal(0.0201, true), Some(false));
    // Without huge pages nothing can be said of them.
    assert_eq!(goal(0.0, false), None);
}

#[test]
fn tables_say_which_numbers_are_the_models() {
    let table = report::table(&results(0.5), &plan());
    let want = "\nabout model_l1_misses; random order\n\
                programs        page        huge\n       \
                1      0.0000      0.0000\n    \
                4096      1.0000      0.5000\n\
                \nabout cycles; random order\n\
                programs        page        huge\n       \
                1    110.0000    110.0000\n    \
                4096    110.0000    110.0000\n\
                medians; (max - min) / median is 18.2 % at most\n";
    assert_eq!(table, want);
    let csv = report::csv(&results(0.5));
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 1 + 4 * 2);
    assert_eq!(
        lines[0],
        "order,layout,programs,metric,source,median,min,max"
    );
    assert_eq!(lines[3], "random,page,4096,model_l1_misses,model,1,1,1");
    assert_eq!(lines[4], "random,page,4096,cycles,counted,110,100,120");
}

#[test]
fn memory_is_told_in_words() {
    let memory = report::memory(&results(0.0));
    assert!(
        memory.contains("4096 programs, packed in 2 MiB pages: 2048 KiB"),
        "{memory}"
    );
    assert!(
        memory.contains("holds 2048 KiB in huge pages and 4 KiB in 4 KiB pages"),
        "{memory}"
    );
}

#[test]
fn curves_differ_without_colour_and_say_what_they_are() {
    let draw =
        |huge| plot::draw(&results(huge), 0, &[Order::Random], &Layout::ALL).expect("a plot");
    let svg = draw(0.0);
    // Texts stand on lines of their own.
    let texts: Vec<&str> = svg.lines().filter(|line| !line.starts_with('<')).collect();
    for text in [
        "about model_l1_misses",
        "misses/call (model)",
        "random order",
        "programs",
        "0",
    ] {
        assert!(texts.contains(&text), "{text}: {texts:?}");
    }
    for layout in Layout::ALL {
        assert!(texts.contains(&layout.about()), "{layout}: {texts:?}");
    }
    // Two points of one page per program, and one in the legend.
    assert_eq!(svg.matches("<circle").count(), 3);
    // Zeros are below all numbers, and told apart from the smallest of them.
    let places = |svg: &str| -> Vec<String> {
        let circles = svg.lines().filter(|line| line.starts_with("<circle"));
        let cy = |line: &str| {
            line.split("cy=\"")
                .nth(1)?
                .split('"')
                .next()
                .map(str::to_owned)
        };
        circles.filter_map(cy).collect()
    };
    let (zero, one) = (&places(&svg)[0], &places(&svg)[1]);
    let number = |text: &String| text.parse::<i32>().expect("a number");
    assert!(number(zero) > number(one) + 20, "{zero} {one}");
}
