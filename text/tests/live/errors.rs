//! Bad addresses and bad pads, each with its error.

use std::sync::atomic::AtomicU64;

use rvbpf_text::{
    Insn, Pad, RxAddr, SyncMode, TextError, WordPatch, patch_words, restore_all, sync_mode,
    testing, text_copy, text_poke,
};

use super::fns::*;
use crate::alone;

/// Constants may lie in the text's segment; this cannot.
static DATA: AtomicU64 = AtomicU64::new(0x0001_0001_0001_0001);

#[test]
fn bad_pads_are_refused_with_their_reason() {
    let _alone = alone();
    let short = |f| Pad::find(rx(f)).unwrap().words();
    assert_eq!(
        short(pad_short_0),
        Err(TextError::PadTooShort {
            site: rx(pad_short_0),
            found_bytes: 4,
            needed_bytes: 8
        })
    );
    let e = short(pad_short_2).unwrap_err();
    assert_eq!(
        e,
        TextError::PadTooShort {
            site: rx(pad_short_2),
            found_bytes: 8,
            needed_bytes: 10
        }
    );
    assert!(
        e.to_string().contains("-fpatchable-function-entry=5"),
        "{e}"
    );
    match Pad::find(rx(pad_taken)) {
        Err(e @ TextError::PadTaken { site, found }) => {
            assert_eq!((site, &found[..4]), (rx(pad_taken), &[0x97, 2, 0, 0][..]));
            assert!(e.to_string().contains("97 02 00 00 01 00"), "{e}");
        }
        other => panic!("{other:?}"),
    }
    let got = Pad::find(rx(pad_gone));
    assert!(matches!(got, Err(TextError::PadTaken { site, .. }) if site == rx(pad_gone)));
    let got = Pad::find(rx(no_pad));
    assert!(
        matches!(got, Err(TextError::NotAPad { func, .. }) if func == rx(no_pad)),
        "{got:?}"
    );
    let got = Pad::find(rx(pad_vector));
    assert_eq!(
        got,
        Err(TextError::VariantCc {
            symbol: "pad_vector".into()
        })
    );
    // Inside a pad is not a function.
    let inside = rx(pad_4).checked_add(4).unwrap();
    assert!(matches!(Pad::find(inside), Err(TextError::NotAPad { .. })));
}

#[test]
fn bad_addresses_are_refused_with_their_reason() {
    let _alone = alone();
    let images = Images::new();
    let data = RxAddr::new(DATA.as_ptr().expose_provenance() as u64);
    let hole = RxAddr::new(0x1000);
    let odd = rx(pad_4).checked_add(1).unwrap();
    assert_eq!(Pad::find(hole), Err(TextError::Unmapped { addr: hole }));
    assert_eq!(
        Pad::find(data),
        Err(TextError::NotExecutable { addr: data })
    );
    assert_eq!(
        Pad::find(odd),
        Err(TextError::Misaligned {
            addr: odd,
            align_bytes: 2
        })
    );
    let in_map = images.put(0, 1);
    assert!(matches!(Pad::find(in_map), Err(TextError::NotAPad { .. })));
    let poke = |at| text_poke(at, Insn::Nop, Insn::Call(in_map));
    assert_eq!(poke(hole), Err(TextError::Unmapped { addr: hole }));
    assert_eq!(poke(data), Err(TextError::NotExecutable { addr: data }));
    let half = rx(pad_4).checked_add(2).unwrap();
    assert_eq!(
        poke(half),
        Err(TextError::Misaligned {
            addr: half,
            align_bytes: 4
        })
    );
    let far = RxAddr::new(rx(pad_4).get() + (3 << 30));
    let got = text_poke(rx(pad_4), Insn::Nop, Insn::Call(far));
    assert_eq!(
        got,
        Err(TextError::Reach {
            site: rx(pad_4),
            target: far
        })
    );
    let top = RxAddr::new(u64::MAX - 3);
    assert!(poke(top).is_err());
    let got = patch_words(&[WordPatch {
        at: data,
        old: 0,
        new: 0,
    }]);
    assert_eq!(got, Err(TextError::NotExecutable { addr: data }));
    assert_eq!(call(rx(pad_4), 1), 2);
}

#[test]
fn the_machine_is_known_and_shows_what_is_stored() {
    let _alone = alone();
    let mode = sync_mode().unwrap();
    println!("sync mode: {mode:?}");
    let compatible = std::fs::read("/sys/firmware/devicetree/base/compatible").unwrap_or_default();
    if compatible.windows(12).any(|w| w == b"riscv-virtio") {
        assert_eq!(mode, SyncMode::Staged);
    }
    let images = Images::new();
    let mut old = 0x13;
    // nop; then `li a0, n` in its place; ret
    let code = [0x13, 0x0000_8067u32].map(u32::to_le_bytes).concat();
    let func = images.map.rx().sub(0, code.len()).unwrap();
    text_copy(func, &code).unwrap();
    for n in 1..200 {
        let new = n << 20 | 0x513;
        patch_words(&[WordPatch {
            at: func.start,
            old,
            new,
        }])
        .unwrap();
        assert!(
            (0..20).all(|_| call(func.start, 5) == u64::from(n)),
            "stale at {n}"
        );
        old = new;
    }
    let armed = text_poke(rx(pad_4), Insn::Nop, Insn::Call(func.start));
    match mode {
        SyncMode::Remap => {
            assert!(
                matches!(armed, Err(TextError::UnsupportedHost { .. })),
                "{armed:?}"
            );
        }
        _ => {
            armed.unwrap();
            restore_all(&[words(pad_4)]).unwrap();
        }
    }
    assert_eq!(call(rx(pad_4), 5), 6);
}

/// An emulator that fetches halves shows a mixture once in thousands of changes; the flush between
/// the halves is there every time.
#[test]
fn a_word_that_changes_in_both_halves_changes_in_stages() {
    let _alone = alone();
    let images = Images::new();
    let at = images.map.rx().start;
    let flushes = |old, new| {
        let before = testing::flush_count();
        patch_words(&[WordPatch { at, old, new }]).unwrap();
        assert_eq!(word(at), new);
        testing::flush_count() - before
    };
    let counts = [
        flushes(0, 0x0000_0013),
        flushes(0x0000_0013, 0x0010_0013),
        flushes(0x0010_0013, 0x8002_82e7),
    ];
    let want = match sync_mode().unwrap() {
        SyncMode::Staged => [2, 2, 3],
        _ => [1, 1, 1],
    };
    assert_eq!(counts, want, "lower half, upper half, both");
}
