//! The change without traps ([`super::super::window`]): all interleavings of it.
//!
//! Entries are closed by `c.j .`. A thread that fetches it stays where it is, until it fetches
//! something else or a question, or the timer, leads it on. The patcher may give up at any time of
//! its wait, as it does when the timer opens the entries: then it stores the old heads. What must
//! hold is what holds of a change with traps; besides, no trap is met, and no entry stays closed.

use super::*;

fn stores(world: &World, part: Part) -> Vec<Half> {
    let script = |f: &Func| Script::waiting(&f.shape, world.from, world.to);
    let scripts = world.funcs.iter().filter_map(script);
    scripts.flat_map(|s| s.part(part).to_vec()).collect()
}

fn reversed(halves: &[Half]) -> Vec<Half> {
    let back = |h: &Half| Half {
        at: h.at,
        old: h.new,
        new: h.old,
    };
    halves.iter().map(back).collect()
}

/// The old heads.
fn opening(world: &World) -> Vec<Act> {
    let heads = reversed(&stores(world, Part::Close));
    vec![Act::Store(heads), Act::Flush]
}

fn waiting() -> Vec<(String, World)> {
    let mut all = Vec::new();
    for (name, mut world) in worlds() {
        let script = |f: &Func| Script::waiting(&f.shape, world.from, world.to);
        let scripts: Option<Vec<Script>> = world.funcs.iter().map(script).collect();
        let Some(scripts) = scripts else {
            continue;
        };
        world.acts = acts_of_scripts(&scripts, world.from, world.to);
        world.closing = Closing::Wait;
        world.back = opening(&world);
        if world.from == Phase::Bare {
            world.back.push(Act::Forget);
        }
        all.push((name, world));
    }
    all
}

#[test]
fn every_interleaving_runs_old_or_new_and_meets_no_trap() {
    let (mut nr_worlds, mut nr_states) = (0, 0);
    for (name, world) in waiting() {
        nr_states += world.explore().unwrap_or_else(|e| panic!("{name}: {e}"));
        nr_worlds += 1;
    }
    println!("{nr_states} states");
    assert!(
        nr_worlds > 50 && nr_states > 10_000,
        "{nr_worlds} {nr_states}"
    );
}

/// Up to the tail, stored and taken back: what the patcher does when flushes are refused.
fn refused() -> Vec<(String, World)> {
    let mut all = Vec::new();
    for (name, mut world) in waiting() {
        let tail = stores(&world, Part::Tail);
        let is_tail = |act: &Act| matches!(act, Act::Store(halves) if *halves == tail);
        let Some(i) = world
            .acts
            .iter()
            .position(is_tail)
            .filter(|_| !tail.is_empty())
        else {
            continue;
        };
        world.acts.truncate(i + 1);
        world.acts.extend([Act::Store(reversed(&tail)), Act::Flush]);
        world.acts.extend(world.back.clone());
        world.to = world.from;
        world.nr_calls = 1;
        all.push((name, world));
    }
    all
}

#[test]
fn a_refused_flush_is_taken_back_soundly() {
    let all = refused();
    assert!(all.len() > 30, "{}", all.len());
    for (name, world) in all {
        world.explore().unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn a_tail_that_is_taken_back_without_a_flush_goes_wrong() {
    let without = |(_, mut world): (String, World)| {
        let twice = |acts: &[Act]| matches!(acts, [Act::Store(_), Act::Store(_), Act::Flush]);
        let i = world.acts.windows(3).position(twice).expect("it is there");
        world.acts.remove(i + 2);
        world.explore().is_err()
    };
    assert!(refused().into_iter().filter(|w| without(w.clone())).count() > 0);
}

/// At least one of the worlds that `mutate` changes must go wrong.
fn must_fail(what: &str, mutate: impl Fn(&mut World) -> bool) {
    let (mut nr_mutated, mut nr_wrong) = (0, 0);
    for (_, mut world) in waiting() {
        if mutate(&mut world) {
            nr_mutated += 1;
            nr_wrong += usize::from(world.explore().is_err());
        }
    }
    println!("{what}: {nr_wrong} of {nr_mutated} go wrong");
    assert!(nr_wrong > 0, "{what}: it was not noticed, of {nr_mutated}");
}

#[test]
fn with_a_step_less_it_goes_wrong() {
    let is_flush = |act: &Act| matches!(act, Act::Flush);
    for (n, what) in ["closing", "the tail", "the head"].iter().enumerate() {
        must_fail(&format!("no flush after {what}"), |world| {
            is_full(world) && remove_nth(world, n, is_flush)
        });
    }
    must_fail("no wait", |world| {
        remove_nth(world, 0, |act| matches!(act, Act::PassBy(_)))
    });
    must_fail("it gives up, and leaves the entry closed", |world| {
        let is_closed = is_full(world);
        world.back.retain(|act| matches!(act, Act::Forget));
        is_closed
    });
    must_fail("it gives up, without a flush", |world| {
        let nr_before = world.back.len();
        world.back.retain(|act| !is_flush(act));
        is_full(world) && world.back.len() < nr_before
    });
}

#[test]
fn with_steps_in_another_order_it_goes_wrong() {
    must_fail("the head before the tail", |world| {
        let is_store = |i: &usize| matches!(world.acts[*i], Act::Store(_));
        let stores: Vec<usize> = (0..world.acts.len()).filter(is_store).collect();
        if stores.len() == 3 {
            world.acts.swap(stores[1], stores[2]);
        }
        stores.len() == 3
    });
    // The timer has opened the entries when the wait is over.
    must_fail("opened behind the patcher's back", |world| {
        let is_wait = |act: &Act| matches!(act, Act::PassBy(_));
        let Some(i) = world
            .acts
            .iter()
            .position(is_wait)
            .filter(|_| is_full(world))
        else {
            return false;
        };
        let opened = opening(world);
        // The new head comes from whatever is there.
        let Some(Act::Store(head)) = world
            .acts
            .iter_mut()
            .rev()
            .find(|a| matches!(a, Act::Store(_)))
        else {
            return false;
        };
        if let [Act::Store(old), _] = &opened[..] {
            for (half, old) in head.iter_mut().zip(old) {
                half.old = old.new;
            }
        }
        world.acts.splice(i + 1..i + 1, opened);
        true
    });
    // In all steps, those of the way back too: each store finds what the one before it left.
    must_fail("closed by a trap", |world| {
        let all = world.acts.iter_mut().chain(&mut world.back);
        let halves = all.filter_map(|act| match act {
            Act::Store(halves) => Some(halves),
            _ => None,
        });
        let mut is_closed = false;
        for half in halves.flatten() {
            for value in [&mut half.old, &mut half.new] {
                is_closed |= *value == C_J_0;
                *value = if *value == C_J_0 { C_EBREAK } else { *value };
            }
        }
        is_closed
    });
}
