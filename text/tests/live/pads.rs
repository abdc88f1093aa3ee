//! Pads: found, armed, switched, disarmed, restored.

use rvbpf_text::{
    Insn, Pad, Poke, RxAddr, TextError, WordPatch, arm_all, patch_words, poke_all, restore_all,
    testing, text_poke,
};

use super::fns::*;
use crate::alone;

#[test]
fn pads_of_every_shape_are_found() {
    let _alone = alone();
    for (name, f, skip, len_bytes, hi) in [
        ("pad_c_0mod4", pad_c_0mod4 as Func, 0, 10, 0),
        ("pad_c_2mod4", pad_c_2mod4, 0, 10, 2),
        ("pad_4", pad_4, 0, 8, 0),
        ("pad_before", pad_before, 0, 10, 2),
        ("pad_lpad", pad_lpad, 4, 10, 4),
    ] {
        let func = rx(f);
        let pad = Pad::find(func).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((pad.func, pad.len_bytes), (func, len_bytes), "{name}");
        assert_eq!(pad.start.get() - func.get(), skip, "{name}");
        let words = pad.words().unwrap();
        assert_eq!(words.hi.get() - func.get(), hi, "{name}");
        assert!(words.hi.is_aligned(4));
        assert_eq!(words.lo.get(), words.hi.get() + 4);
        assert_eq!(words.resume.get(), pad.start.get() + len_bytes as u64);
    }
}

#[test]
fn all_pads_of_an_object_are_listed() {
    let _alone = alone();
    let pads = Pad::all_in(rx(pad_4)).unwrap();
    let found: Vec<RxAddr> = pads.iter().flatten().map(|p| p.func).collect();
    for f in [
        pad_c_0mod4 as Func,
        pad_c_2mod4,
        pad_4,
        pad_before,
        pad_short_0,
    ] {
        assert!(found.contains(&rx(f)), "{}", rx(f));
    }
    let refused = pads.iter().filter_map(|p| p.as_ref().err());
    let kinds: Vec<_> = refused.collect();
    assert!(
        kinds
            .iter()
            .any(|e| matches!(e, TextError::PadTaken { .. })),
        "{kinds:?}"
    );
    assert!(
        kinds
            .iter()
            .any(|e| matches!(e, TextError::VariantCc { .. })),
        "{kinds:?}"
    );
    assert!(found.len() >= 64 + 6, "{}", found.len());
}

#[test]
fn a_site_goes_through_all_its_states() {
    let _alone = alone();
    let images = Images::new();
    for f in [
        pad_c_0mod4 as Func,
        pad_c_2mod4,
        pad_4,
        pad_before,
        pad_lpad,
    ] {
        let w = words(f);
        let (a, b) = images.two_in_reach(w.hi, 100, 200);
        let func = rx(f);
        let pad = Pad::find(func).unwrap();
        assert_eq!(call(func, 5), 6);
        arm_all(&[(w, a)]).unwrap();
        assert_eq!(call(func, 5), 101);
        assert_eq!(Pad::find(func), Ok(pad), "an armed pad is still ours");
        text_poke(w.hi, Insn::Call(a), Insn::Call(b)).unwrap();
        assert_eq!(call(func, 5), 201);
        text_poke(w.hi, Insn::Call(b), Insn::Nop).unwrap();
        assert_eq!(call(func, 5), 6);
        text_poke(w.hi, Insn::Nop, Insn::Nop).unwrap();
        text_poke(w.hi, Insn::Nop, Insn::Call(a)).unwrap();
        assert_eq!(call(func, 5), 101);
        restore_all(&[w]).unwrap();
        assert_eq!(call(func, 5), 6);
        restore_all(&[w]).unwrap();
        assert_eq!(Pad::find(func), Ok(pad));
    }
}

#[test]
fn another_window_needs_the_site_disarmed_first() {
    let _alone = alone();
    let images = Images::new();
    let w = words(pad_c_2mod4);
    let near = images.put(0x8000, 100);
    let far = images.put(0x2_0000, 300);
    arm_all(&[(w, near)]).unwrap();
    match text_poke(w.hi, Insn::Call(near), Insn::Call(far)) {
        Err(TextError::RetargetWindow {
            site,
            target,
            reaches,
        }) => {
            assert_eq!((site, target), (w.hi, far));
            assert!(
                reaches.contains(near) && !reaches.contains(far),
                "{reaches}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(call(rx(pad_c_2mod4), 5), 101);
    text_poke(w.hi, Insn::Call(near), Insn::Nop).unwrap();
    arm_all(&[(w, far)]).unwrap();
    assert_eq!(call(rx(pad_c_2mod4), 5), 301);
    restore_all(&[w]).unwrap();
    assert_eq!(call(rx(pad_c_2mod4), 5), 6);
}

#[test]
fn a_batch_costs_a_constant_number_of_flushes() {
    let _alone = alone();
    let images = Images::new();
    let image = images.put(0x4000, 100);
    let all: Vec<_> = (0..64)
        .map(|i| Pad::find(many(i)).unwrap().words().unwrap())
        .collect();
    // Pages that become ours are flushed once more, before they can be executed: whatever their number.
    let arms: Vec<_> = all.iter().map(|w| (*w, image)).collect();
    let before = testing::flush_count();
    arm_all(&arms).unwrap();
    let first = testing::flush_count() - before;
    restore_all(&all).unwrap();
    let mut costs = Vec::new();
    for n in [1, 2, 64] {
        let arms: Vec<_> = all.iter().take(n).map(|w| (*w, image)).collect();
        let pokes: Vec<_> = all
            .iter()
            .take(n)
            .map(|w| Poke {
                site: w.hi,
                old: Insn::Call(image),
                new: Insn::Nop,
            })
            .collect();
        let before = testing::flush_count();
        arm_all(&arms).unwrap();
        let armed = testing::flush_count();
        for i in 0..64 {
            assert_eq!(call(many(i), 5), if i < n { 101 } else { 6 }, "{i} of {n}");
        }
        let called = testing::flush_count();
        assert_eq!(called, armed, "looking flushes nothing");
        poke_all(&pokes).unwrap();
        let poked = testing::flush_count();
        restore_all(&all[..n]).unwrap();
        costs.push((
            armed - before,
            poked - armed,
            testing::flush_count() - poked,
        ));
    }
    assert!(costs[0].0 >= 2 && costs[0].1 >= 1, "{costs:?}");
    assert!(first <= costs[0].0 + 1, "{first} at first: {costs:?}");
    assert!(costs.iter().all(|c| *c == costs[0]), "{costs:?}");
    assert!((0..64).all(|i| call(many(i), 5) == 6));
}

#[test]
fn a_mismatch_anywhere_changes_nothing() {
    let _alone = alone();
    let images = Images::new();
    let image = images.put(0x4000, 100);
    let w: Vec<_> = (0..3)
        .map(|i| Pad::find(many(i)).unwrap().words().unwrap())
        .collect();
    arm_all(&[(w[0], image)]).unwrap();
    let before = testing::flush_count();
    let got = poke_all(&[
        Poke {
            site: w[0].hi,
            old: Insn::Call(image),
            new: Insn::Nop,
        },
        Poke {
            site: w[1].hi,
            old: Insn::Nop,
            new: Insn::Call(image),
        },
        Poke {
            site: w[2].hi,
            old: Insn::Call(image),
            new: Insn::Nop,
        },
    ]);
    match got {
        Err(TextError::Mismatch { site, found, .. }) => {
            assert_eq!((site, found), (w[2].hi, 0x0001_0001));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        testing::flush_count(),
        before,
        "nothing stored, nothing flushed"
    );
    assert_eq!([0, 1, 2].map(|i| call(many(i), 5)), [101, 6, 6]);
    let got = patch_words(&[
        WordPatch {
            at: w[1].lo,
            old: 0x0001_0001,
            new: 0x0000_0013,
        },
        WordPatch {
            at: w[2].lo,
            old: 0x0000_0013,
            new: 0x0000_0013,
        },
    ]);
    assert!(
        matches!(got, Err(TextError::Mismatch { site, .. }) if site == w[2].lo),
        "{got:?}"
    );
    let twice = [w[1], w[1]].map(|w| (w, image));
    assert_eq!(arm_all(&twice), Err(TextError::Duplicate { site: w[1].hi }));
    restore_all(&[w[0]]).unwrap();
    assert_eq!([0, 1, 2].map(|i| call(many(i), 5)), [6, 6, 6]);
}

#[test]
fn a_refused_flush_takes_everything_back() {
    let _alone = alone();
    let images = Images::new();
    for f in [pad_c_2mod4 as Func, pad_4] {
        let w = words(f);
        let (a, b) = images.two_in_reach(w.hi, 100, 200);
        let func = rx(f);
        let refused = Err(TextError::Flush { errno: libc::EPERM });
        let now = || [w.hi, w.lo].map(word);
        let bare = now();
        // The first flush is of the page that becomes ours, unless another test has made it so.
        testing::refuse_next_flushes(1);
        assert_eq!(arm_all(&[(w, a)]), refused);
        assert_eq!(now(), bare);
        arm_all(&[(w, a)]).unwrap();
        restore_all(&[w]).unwrap();
        let before = testing::flush_count();
        arm_all(&[(w, a)]).unwrap();
        let armed = now();
        let arm_flushes = (testing::flush_count() - before) as u32;
        let before = testing::flush_count();
        restore_all(&[w]).unwrap();
        let restore_flushes = (testing::flush_count() - before) as u32;
        assert!(arm_flushes >= 2 && restore_flushes >= 2);
        // Each flush of each step is refused in turn.
        for grants in 0..arm_flushes {
            testing::refuse_flushes_after(grants, 1);
            assert_eq!(arm_all(&[(w, a)]), refused, "{grants}");
            assert_eq!(now(), bare, "{grants}");
        }
        arm_all(&[(w, a)]).unwrap();
        for grants in 0..restore_flushes {
            testing::refuse_flushes_after(grants, 1);
            assert_eq!(restore_all(&[w]), refused, "{grants}");
            assert_eq!(now(), armed, "{grants}");
        }
        testing::refuse_next_flushes(1);
        assert_eq!(text_poke(w.hi, Insn::Call(a), Insn::Call(b)), refused);
        assert_eq!(call(func, 5), 101);
        // Refused for good, also the flushes that follow what was taken back.
        testing::refuse_next_flushes(50);
        assert_eq!(text_poke(w.hi, Insn::Call(a), Insn::Call(b)), refused);
        assert_eq!(restore_all(&[w]), refused);
        testing::refuse_next_flushes(0);
        assert_eq!(now(), armed);
        assert_eq!(call(func, 5), 101);
        restore_all(&[w]).unwrap();
        assert_eq!((now(), call(func, 5)), (bare, 6));
    }
}

#[test]
fn a_map_of_our_own_is_poked_too() {
    let _alone = alone();
    let images = Images::new();
    // nop; nop; addi a0, a0, 1; ret
    let code = [0x13u32, 0x13, 0x0015_0513, 0x0000_8067]
        .map(u32::to_le_bytes)
        .concat();
    let func = images.map.rx().sub(0x1000, code.len()).unwrap();
    rvbpf_text::text_copy(func, &code).unwrap();
    let image = images.put(0x2000, 100);
    let at = func.start;
    assert_eq!(call(at, 5), 6);
    text_poke(at, Insn::Nop, Insn::Call(image)).unwrap();
    assert_eq!(call(at, 5), 101);
    // A jump to the body of `no_pad` returns straight to the caller.
    text_poke(at, Insn::Call(image), Insn::Nop).unwrap();
    text_poke(at, Insn::Nop, Insn::Jump(rx(no_pad))).unwrap();
    assert_eq!(call(at, 7), 8);
}
