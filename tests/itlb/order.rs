//! Orders of calls.

use crate::itlb::order::{Order, Rng};

fn counts(calls: &[u32], nr: usize) -> Vec<usize> {
    let mut counts = vec![0; nr];
    for &number in calls {
        counts[number as usize] += 1;
    }
    counts
}

#[test]
fn round_robin_goes_round() {
    assert_eq!(Order::RoundRobin.calls(3, 8), [0, 1, 2, 0, 1, 2, 0, 1]);
}

#[test]
fn random_calls_are_spread_evenly_and_the_same_each_time() {
    let calls = Order::Random.calls(10, 100_000);
    assert_eq!(calls, Order::Random.calls(10, 100_000));
    // Six standard deviations of 10,000 are 570.
    let counts = counts(&calls, 10);
    assert!(
        counts.iter().all(|n| n.abs_diff(10_000) < 570),
        "{counts:?}"
    );
    let repeated = calls.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!(repeated.abs_diff(10_000) < 570, "{repeated}");
}

#[test]
fn the_second_hottest_is_called_half_as_often_and_so_on() {
    let calls = Order::Zipf.calls(4, 250_000);
    let mut counts = counts(&calls, 4);
    counts.sort_unstable_by(|a, b| b.cmp(a));
    // 1 + 1/2 + 1/3 + 1/4 is 25/12: of 250,000 calls the hottest gets 120,000.
    for (rank, want) in [(0, 120_000), (1, 60_000), (2, 40_000), (3, 30_000)] {
        assert!(counts[rank].abs_diff(want) < 1500, "{counts:?}");
    }
}

#[test]
fn the_hottest_are_not_the_first() {
    let calls = Order::Zipf.calls(1000, 100_000);
    let counts = counts(&calls, 1000);
    let first: usize = counts[..100].iter().sum();
    // Ranks 1 to 100 get 69 % of the calls; any hundred are far from that.
    assert!(first < 50_000, "{first}");
}

#[test]
fn one_program_is_all_there_is() {
    for order in Order::ALL {
        assert_eq!(order.calls(1, 5), [0; 5], "{order}");
    }
}

#[test]
fn shuffled_has_each_once() {
    let shuffled = Rng::new(1).shuffled(1000);
    let mut sorted = shuffled.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
    assert_ne!(shuffled, sorted);
}
