//! Detours over live code: every layout and kind, under execution, with threads that stay inside,
//! and taken back whenever anything is refused.

use std::time::Duration;

use rvbpf_text::{
    Backing, CodeMap, Detour, DetourKind, DetourState, Insn, Place, RxAddr, RxRange, SyncMode,
    TextError, arm_all, divert_all, original_text, restore_all, sync_mode, testing, text_copy,
    text_poke, undivert_all,
};

use super::detour_fns::*;
use super::fns::*;
use super::park::{Parked, parked_in};
use super::threads::{hammer, rounds};
use crate::alone;

fn target_of(kind: DetourKind, far: &FarAway) -> RxAddr {
    match kind {
        DetourKind::Far { .. } => far.target(),
        _ => rx(d_target),
    }
}

fn wanted(kind: DetourKind) -> DetourState {
    match kind {
        DetourKind::Trap => DetourState::Trap,
        _ => DetourState::Jump,
    }
}

fn covered_range(d: &Detour) -> RxRange {
    RxRange::new(d.at, 16)
}

#[test]
fn every_layout_is_led_away_and_given_back() {
    let _alone = alone();
    let far = FarAway::new();
    for site in SITES {
        for kind in KINDS {
            let what = format!("{} {kind:?}", site.name);
            let before = site.bytes();
            let detour = site.detour(kind, target_of(kind, &far));
            for _ in 0..3 {
                assert_eq!(call(site.at(), 5), 5 + site.adds(), "{what}: before");
                let got = divert_all(std::slice::from_ref(&detour));
                assert_eq!(got, Ok(vec![wanted(kind)]), "{what}");
                assert_eq!(call(site.at(), 5), 5 + LED, "{what}: led away");
                assert_ne!(site.bytes(), before, "{what}");
                let original = original_text(covered_range(&detour));
                assert_eq!(original, Ok(before.clone()), "{what}");
                // Again: it is there.
                let again = divert_all(std::slice::from_ref(&detour));
                assert_eq!(again, Ok(vec![wanted(kind)]), "{what}: again");
                undivert_all(std::slice::from_ref(&detour)).unwrap();
                assert_eq!(site.bytes(), before, "{what}: given back");
                undivert_all(std::slice::from_ref(&detour)).unwrap();
            }
            assert_eq!(call(site.at(), 5), 5 + site.adds(), "{what}: after");
        }
    }
}

#[test]
fn a_batch_costs_as_many_flushes_as_one() {
    let _alone = alone();
    let far = FarAway::new();
    let detour = |(i, site): (usize, &Site)| {
        let kind = KINDS[i % 3];
        site.detour(kind, target_of(kind, &far))
    };
    let all: Vec<Detour> = SITES.iter().enumerate().map(detour).collect();
    let flushes = |detours: &[Detour]| {
        let start = testing::flush_count();
        let states = divert_all(detours).unwrap();
        let middle = testing::flush_count();
        for (detour, state) in detours.iter().zip(states) {
            assert_eq!(state, wanted(detour.kind));
            assert_eq!(call(detour.at, 5), 5 + LED);
        }
        undivert_all(detours).unwrap();
        (middle - start, testing::flush_count() - middle)
    };
    // Pages that become ours are flushed once more, before they can be executed.
    flushes(&all);
    // One that needs all steps, and all of them.
    let one = flushes(&all[1..3]);
    assert_eq!(flushes(&all), one);
    // Three of its own and two of the gate. On QEMU's board everything is flushed twice, and words
    // that change in both halves thrice.
    let most = if sync_mode() == Ok(SyncMode::Staged) {
        13
    } else {
        5
    };
    assert!(one.0 <= most && one.1 <= most, "{one:?}");
    for site in SITES {
        assert_eq!(call(site.at(), 5), 5 + site.adds());
    }
    // Of one word that replaces one instruction: one store, no trap.
    let direct = SITES[2].detour(DetourKind::Near, rx(d_target));
    let most = if sync_mode() == Ok(SyncMode::Staged) {
        3
    } else {
        1
    };
    let cost = flushes(&[direct]);
    assert!(cost.0 <= most && cost.1 <= most, "{cost:?}");
}

fn hammered(site: Site, kind: DetourKind, nr_rounds: u64) {
    let _alone = alone();
    let far = FarAway::new();
    let detour = [site.detour(kind, target_of(kind, &far))];
    let (bare, led) = (5 + site.adds(), 5 + LED);
    let mut nr_traps = 0;
    hammer(site.at(), &[bare, led], rounds(nr_rounds), |i| {
        if i % 2 == 0 {
            let states = divert_all(&detour).unwrap();
            nr_traps += usize::from(states[0] == DetourState::Trap);
            return led;
        }
        undivert_all(&detour).unwrap();
        bare
    });
    undivert_all(&detour).unwrap();
    println!("{} {kind:?}: {nr_traps} stayed traps", site.name);
    assert_eq!(call(site.at(), 5), bare);
}

#[test]
fn under_load_near_over_2222_at_0() {
    hammered(SITES[0], DetourKind::Near, 40);
}

#[test]
fn under_load_near_over_44_at_0_is_one_store() {
    hammered(SITES[2], DetourKind::Near, 400);
}

#[test]
fn under_load_near_over_44_at_2() {
    hammered(SITES[3], DetourKind::Near, 40);
}

#[test]
fn under_load_near_over_242_at_2() {
    hammered(SITES[5], DetourKind::Near, 40);
}

#[test]
fn under_load_far_over_2222_at_2() {
    hammered(SITES[1], FAR, 40);
}

#[test]
fn under_load_far_over_4222_at_2() {
    hammered(SITES[6], FAR, 40);
}

#[test]
fn under_load_far_over_44_at_0() {
    hammered(SITES[2], FAR, 40);
}

#[test]
fn under_load_a_trap() {
    hammered(SITES[5], DetourKind::Trap, 40);
}

/// Emulators interrupt only between blocks: here a thread stands, in a signal frame, at each place
/// inside.
#[test]
fn a_thread_that_stays_inside_leaves_a_trap_that_works() {
    let _alone = alone();
    let far = FarAway::new();
    for (site, kind) in [
        (SITES[1], DetourKind::Near),
        (SITES[3], FAR),
        (SITES[5], FAR),
    ] {
        let detour = [site.detour(kind, target_of(kind, &far))];
        let before = site.bytes();
        let (offs, _) = site.covered(kind);
        for off in offs.into_iter().filter(|off| *off > 0) {
            let what = format!("{} {kind:?} +{off}", site.name);
            let at = site.at().checked_add(u64::from(off)).unwrap();
            let parked = Parked::at(at, 1);
            assert_eq!(divert_all(&detour), Ok(vec![DetourState::Trap]), "{what}");
            assert_eq!(call(site.at(), 5), 5 + LED, "{what}: by the trap");
            assert_eq!(site.bytes()[2..], before[2..], "{what}: the tail is there");
            assert_eq!(
                parked.go_on(),
                5 + site.adds_from(off),
                "{what}: went astray"
            );
            assert_eq!(divert_all(&detour), Ok(vec![DetourState::Jump]), "{what}");
            assert_eq!(call(site.at(), 5), 5 + LED, "{what}: by the jump");
            undivert_all(&detour).unwrap();
        }
        assert_eq!(site.bytes(), before);
    }
}

#[test]
fn signals_on_top_of_signals_do_not_hide_who_is_inside() {
    let _alone = alone();
    let site = SITES[1];
    let detour = [site.detour(DetourKind::Near, rx(d_target))];
    let at = site.at().checked_add(2).unwrap();
    let parked = Parked::at(at, 3);
    assert_eq!(divert_all(&detour), Ok(vec![DetourState::Trap]));
    assert_eq!(parked.go_on(), 5 + site.adds_from(2));
    assert_eq!(divert_all(&detour), Ok(vec![DetourState::Jump]));
    undivert_all(&detour).unwrap();
}

#[test]
fn only_the_site_with_somebody_inside_stays_a_trap() {
    let _alone = alone();
    let far = FarAway::new();
    let detours: Vec<Detour> = SITES.iter().map(|s| s.detour(FAR, far.target())).collect();
    let at = |i: usize, off| SITES[i].at().checked_add(off).unwrap();
    let (first, second) = (Parked::at(at(1, 4), 1), Parked::at(at(4, 2), 2));
    let states = divert_all(&detours).unwrap();
    for (i, state) in states.into_iter().enumerate() {
        let want = match i {
            1 | 4 => DetourState::Trap,
            _ => DetourState::Jump,
        };
        assert_eq!(state, want, "{}", SITES[i].name);
        assert_eq!(call(SITES[i].at(), 5), 5 + LED, "{}", SITES[i].name);
    }
    assert_eq!(first.go_on(), 5 + SITES[1].adds_from(4));
    assert_eq!(second.go_on(), 5 + SITES[4].adds_from(2));
    assert_eq!(divert_all(&detours), Ok(vec![DetourState::Jump; 7]));
    undivert_all(&detours).unwrap();
    for site in SITES {
        assert_eq!(call(site.at(), 5), 5 + site.adds());
    }
}

/// A thread in a loop of covered instructions never leaves by itself: it goes on in the copy.
#[test]
fn a_thread_that_runs_inside_is_carried_to_the_copy() {
    let _alone = alone();
    let far = FarAway::new();
    let flag = std::sync::atomic::AtomicU32::new(0);
    let detour = [LOOP.detour(FAR, far.target())];
    let arg = flag.as_ptr().expose_provenance() as u64;
    let before = LOOP.bytes();
    std::thread::scope(|s| {
        let inside = s.spawn(|| call(LOOP.at(), arg));
        std::thread::sleep(Duration::from_millis(50));
        let states = divert_all(&detour);
        assert!(!inside.is_finished(), "it runs in the copy");
        flag.store(1, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(inside.join().unwrap(), 7, "as if nothing had been");
        assert_eq!(states, Ok(vec![DetourState::Jump]));
    });
    assert_eq!(call(LOOP.at(), 5), 5 + LED);
    undivert_all(&detour).unwrap();
    assert_eq!(LOOP.bytes(), before);
}

#[test]
fn a_thread_between_the_halves_of_a_far_jump_is_waited_for() {
    let _alone = alone();
    let far = FarAway::new();
    let site = SITES[0];
    let detour = [site.detour(FAR, far.target())];
    assert_eq!(divert_all(&detour), Ok(vec![DetourState::Jump]));
    let jump = site.bytes();
    let at = site.at().checked_add(4).unwrap();
    // What its auipc has left in t3.
    let window = far
        .target()
        .get()
        .wrapping_sub(site.at().get())
        .wrapping_add(0x800)
        & !0xfff;
    let t3 = site.at().get().wrapping_add(window);
    let parked = Parked::with_t3(at, 1, t3);
    let stuck = undivert_all(&detour);
    assert!(matches!(stuck, Err(TextError::Stuck { .. })), "{stuck:?}");
    assert_eq!(site.bytes(), jump, "as before");
    assert_eq!(call(site.at(), 5), 5 + LED);
    std::thread::scope(|s| {
        let undiverting = s.spawn(|| undivert_all(&detour));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!undiverting.is_finished(), "somebody is inside");
        assert_eq!(call(site.at(), 5), 5 + LED, "by the trap");
        assert_eq!(
            divert_all(&detour),
            Err(TextError::Busy { site: site.at() })
        );
        assert_eq!(parked.go_on(), 5 + LED);
        undiverting.join().unwrap().unwrap();
    });
    assert_eq!(call(site.at(), 5), 5 + site.adds());
}

/// Every flush of a change is refused once: everything is as before. Then all after the first ones
/// are refused: what stays works, and can be taken away.
#[test]
fn whatever_flush_is_refused_all_is_as_before() {
    let _alone = alone();
    let far = FarAway::new();
    for site in [SITES[1], SITES[2], SITES[6]] {
        for kind in KINDS {
            let what = format!("{} {kind:?}", site.name);
            let detour = [site.detour(kind, target_of(kind, &far))];
            let bare = site.bytes();
            let refusals = refuse_each(&what, || {
                let diverted = divert_all(&detour).map(drop);
                let is_as_before = site.bytes() == bare && call(site.at(), 5) == 5 + site.adds();
                (diverted, is_as_before)
            });
            let led = site.bytes();
            let back = refuse_each(&what, || {
                let undiverted = undivert_all(&detour);
                let is_as_before = site.bytes() == led && call(site.at(), 5) == 5 + LED;
                (undiverted, is_as_before)
            });
            assert!(refusals >= 1 && back >= 1, "{what}: {refusals} {back}");
            assert_eq!(site.bytes(), bare, "{what}");
            refuse_for_ever(&what, site, &detour);
        }
    }
}

/// Refuses the first flush of `change`, then the second, until none is left; how many there were.
fn refuse_each(what: &str, mut change: impl FnMut() -> (Result<(), TextError>, bool)) -> u32 {
    for pass in 0.. {
        testing::refuse_flushes_after(pass, 1);
        let (changed, is_as_before) = change();
        testing::refuse_next_flushes(0);
        match changed {
            Ok(()) => return pass,
            Err(TextError::Flush { errno }) => assert_eq!(errno, libc::EPERM),
            Err(e) => panic!("{what}: {e}"),
        }
        assert!(is_as_before, "{what}: refused the flush after {pass}");
    }
    unreachable!()
}

fn refuse_for_ever(what: &str, site: Site, detour: &[Detour]) {
    let bare = site.bytes();
    for pass in 0..12 {
        testing::refuse_flushes_after(pass, 1000);
        let diverted = divert_all(detour);
        let got = call(site.at(), 5);
        testing::refuse_next_flushes(0);
        let want = match diverted {
            Ok(_) => got == 5 + LED,
            Err(TextError::Flush { .. }) => got == 5 + LED || got == 5 + site.adds(),
            Err(e) => panic!("{what}: {e}"),
        };
        assert!(want, "{what}: {got} after {pass}");
        let is_done = diverted.is_ok();
        undivert_all(detour).unwrap();
        assert_eq!(site.bytes(), bare, "{what}: {pass}");
        assert_eq!(call(site.at(), 5), 5 + site.adds(), "{what}: {pass}");
        if is_done {
            return;
        }
    }
    panic!("{what}: never done");
}

#[test]
fn what_cannot_be_diverted_is_refused_with_its_reason() {
    let _alone = alone();
    let far = FarAway::new();
    let near = DetourKind::Near;
    let good = SITES[0].detour(near, rx(d_target));
    let one = |d: &Detour| divert_all(std::slice::from_ref(d)).map(drop);
    let hooked = |got: Result<(), TextError>, at: RxAddr| {
        assert!(
            matches!(got, Err(TextError::HookedByOthers { site, .. }) if site == at),
            "{got:?}"
        );
    };
    let before = SITES[0].bytes();
    // Addresses.
    let reach = one(&SITES[0].detour(near, far.target()));
    assert_eq!(
        reach,
        Err(TextError::Reach {
            site: SITES[0].at(),
            target: far.target()
        })
    );
    let hole = RxAddr::new(0x1000);
    let got = one(&Detour {
        at: hole,
        ..good.clone()
    });
    assert_eq!(got, Err(TextError::Unmapped { addr: hole }));
    static DATA: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(5);
    let data = RxAddr::new(DATA.as_ptr().expose_provenance() as u64);
    let got = one(&Detour {
        at: data,
        ..good.clone()
    });
    assert_eq!(got, Err(TextError::NotExecutable { addr: data }));
    // Lengths.
    let got = one(&Detour {
        covered_bytes: 6,
        ..SITES[2].detour(near, rx(d_target))
    });
    assert!(
        matches!(got, Err(TextError::NotWholeInsns { whole_bytes: 8, .. })),
        "{got:?}"
    );
    // Breakpoints of others; at the entry, and covered.
    hooked(
        one(&Detour {
            at: rx(d_foreign),
            ..good.clone()
        }),
        rx(d_foreign),
    );
    let before_it = rx(d_foreign).checked_sub(2).unwrap();
    hooked(
        one(&Detour {
            at: before_it,
            moved: Vec::new(),
            ..good.clone()
        }),
        rx(d_foreign),
    );
    // Another detour, overlapping, or from the same entry to another target.
    assert_eq!(
        divert_all(std::slice::from_ref(&good)),
        Ok(vec![DetourState::Jump])
    );
    let inside = SITES[0].at().checked_add(2).unwrap();
    hooked(
        one(&Detour {
            at: inside,
            moved: Vec::new(),
            ..good.clone()
        }),
        SITES[0].at(),
    );
    hooked(
        one(&Detour {
            to: rx(no_pad),
            ..good.clone()
        }),
        SITES[0].at(),
    );
    let other = Detour {
        to: rx(no_pad),
        ..good.clone()
    };
    hooked(undivert_all(std::slice::from_ref(&other)), SITES[0].at());
    // All or none.
    let both = [SITES[1].detour(near, rx(d_target)), other];
    let got = divert_all(&both).map(drop);
    hooked(got, SITES[0].at());
    assert_eq!(call(SITES[1].at(), 5), 5 + SITES[1].adds());
    undivert_all(std::slice::from_ref(&good)).unwrap();
    assert_eq!(SITES[0].bytes(), before);
}

#[test]
fn pads_and_detours_keep_out_of_each_others_way() {
    let _alone = alone();
    let images = Images::new();
    let w = words(pad_4);
    let image = images.put(0x4000, 100);
    let over_pad = Detour {
        at: rx(pad_4),
        to: rx(d_target),
        kind: DetourKind::Near,
        covered_bytes: 4,
        moved: Vec::new(),
    };
    let one = std::slice::from_ref(&over_pad);
    arm_all(&[(w, image)]).unwrap();
    let got = divert_all(one);
    assert!(
        matches!(got, Err(TextError::HookedByOthers { .. })),
        "{got:?}"
    );
    restore_all(&[w]).unwrap();
    divert_all(one).unwrap();
    assert_eq!(call(rx(pad_4), 5), 5 + LED);
    let got = text_poke(w.hi, Insn::Nop, Insn::Call(image));
    assert!(
        matches!(got, Err(TextError::HookedByOthers { .. })),
        "{got:?}"
    );
    // Seen through: it is a pad still.
    assert_eq!(words(pad_4), w);
    undivert_all(one).unwrap();
    assert_eq!(call(rx(pad_4), 5), 6);
}

/// Over the border of two pages of a code map; forgotten when the code is replaced.
#[test]
fn code_maps_have_detours_too() {
    let _alone = alone();
    let map = CodeMap::new(2 << 20, Place::Anywhere, Backing::Memfd).unwrap();
    // c.addi a0, 1; addi a0, a0, 2; c.addi a0, 4; ret … and, elsewhere, addi a0, a0, 1000; ret
    let func = [
        0x05_u8, 0x05, 0x13, 0x05, 0x25, 0x00, 0x11, 0x05, 0x82, 0x80,
    ];
    let target = [(LED as u32) << 20 | 0x5_0513, 0x0000_8067];
    let at = map.rx().sub(0x1ffe, func.len()).unwrap();
    let to = map.rx().sub(0x8000, 8).unwrap();
    text_copy(at, &func).unwrap();
    text_copy(to, &target.map(u32::to_le_bytes).concat()).unwrap();
    for (kind, covered_bytes) in [(DetourKind::Trap, 2), (DetourKind::Near, 6), (FAR, 8)] {
        let detour = [Detour {
            at: at.start,
            to: to.start,
            kind,
            covered_bytes,
            moved: Vec::new(),
        }];
        assert_eq!(divert_all(&detour), Ok(vec![wanted(kind)]));
        assert_eq!(call(at.start, 5), 5 + LED, "{kind:?}");
        assert_eq!(original_text(at), Ok(func.to_vec()), "{kind:?}");
        undivert_all(&detour).unwrap();
        assert_eq!(call(at.start, 5), 5 + 7, "{kind:?}");
        // Replaced as a whole while the detour is there: the code is new, the detour gone.
        assert_eq!(divert_all(&detour), Ok(vec![wanted(kind)]));
        text_copy(at, &func).unwrap();
        assert_eq!(call(at.start, 5), 5 + 7, "{kind:?}");
        undivert_all(&detour).unwrap();
        assert_eq!(call(at.start, 5), 5 + 7, "{kind:?}");
    }
}

#[test]
fn a_library_that_is_closed_takes_its_detours_along() {
    let _alone = alone();
    let first = super::foreign::Page::map(None, [0x0013_0513, 0x0000_8067]);
    let detour = [Detour {
        at: first.at,
        to: rx(d_target),
        kind: DetourKind::Trap,
        covered_bytes: 4,
        moved: Vec::new(),
    }];
    assert_eq!(divert_all(&detour), Ok(vec![DetourState::Trap]));
    assert_eq!(call(first.at, 5), 5 + LED);
    let second = super::foreign::Page::map(Some(first.at), [0x0025_0513, 0x0000_8067]);
    assert_eq!(call(second.at, 5), 7);
    undivert_all(&detour).unwrap();
    assert_eq!(call(second.at, 5), 7, "what stands there is not ours");
    assert_eq!(divert_all(&detour), Ok(vec![DetourState::Trap]));
    assert_eq!(call(second.at, 5), 5 + LED);
    undivert_all(&detour).unwrap();
    assert_eq!(call(second.at, 5), 7);
}

#[test]
fn parent_and_child_have_their_own_detours() {
    let _alone = alone();
    let far = FarAway::new();
    let site = SITES[5];
    let detour = [site.detour(FAR, far.target())];
    divert_all(&detour).unwrap();
    let is_content = super::fork::forked(libc::fork, || {
        let inherited = call(site.at(), 5) == 5 + LED;
        undivert_all(&detour).unwrap();
        let bare = call(site.at(), 5) == 5 + site.adds();
        divert_all(&detour).unwrap();
        let led = call(site.at(), 5) == 5 + LED;
        undivert_all(&detour).unwrap();
        inherited && bare && led
    });
    assert!(is_content);
    assert_eq!(call(site.at(), 5), 5 + LED, "the parent's is as it was");
    undivert_all(&detour).unwrap();
}

/// The fork comes while the change waits for a thread inside.
#[test]
fn a_fork_in_the_midst_leaves_a_child_that_works() {
    let _alone = alone();
    let far = FarAway::new();
    for site in [SITES[1], SITES[3]] {
        let detour = [site.detour(FAR, far.target())];
        let off = site.insns[0].0;
        let parked = Parked::at(site.at().checked_add(u64::from(off)).unwrap(), 1);
        std::thread::scope(|s| {
            let diverting = s.spawn(|| divert_all(&detour));
            parked_in(|| site.bytes()[..2] == [0x02, 0x90]);
            let is_content = super::fork::forked(libc::fork, || {
                let by_trap = call(site.at(), 5) == 5 + LED;
                // Nobody is inside in this process.
                let states = divert_all(&detour);
                let by_jump =
                    states == Ok(vec![DetourState::Jump]) && call(site.at(), 5) == 5 + LED;
                undivert_all(&detour).unwrap();
                by_trap && by_jump && call(site.at(), 5) == 5 + site.adds()
            });
            assert!(is_content);
            assert_eq!(diverting.join().unwrap(), Ok(vec![DetourState::Trap]));
        });
        assert_eq!(parked.go_on(), 5 + site.adds_from(off));
        assert_eq!(divert_all(&detour), Ok(vec![DetourState::Jump]));
        undivert_all(&detour).unwrap();
        assert_eq!(call(site.at(), 5), 5 + site.adds());
    }
}
