//! FDEs written by hand: every form of pointer, and what cannot be read.

use super::*;

const FRAMES: u64 = 0x10_0000;

/// Writes a section from its start.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn here(&self) -> u64 {
        FRAMES + self.0.len() as u64
    }

    /// An entry: its id, and what is behind it. Returns where it begins.
    fn entry(&mut self, id: u32, body: &[u8]) -> u64 {
        let at = self.here();
        self.0.extend((body.len() as u32 + 4).to_le_bytes());
        self.0.extend(id.to_le_bytes());
        self.0.extend(body);
        at
    }

    /// A CIE with an augmentation and its data; the frame is found from register 2, offset 0.
    fn cie(&mut self, augmentation: &str, data: &[u8]) -> u64 {
        let mut body = vec![1];
        body.extend(augmentation.bytes());
        // NUL; factors 1 and -8; return address in register 1.
        body.extend([0, 1, 0x78, 1]);
        if augmentation.starts_with('z') {
            body.push(data.len() as u8);
        }
        body.extend(data);
        body.extend([0x0c, 2, 0]);
        self.entry(0, &body)
    }

    fn fde(&mut self, cie: u64, body: &[u8]) -> u64 {
        let back = self.here() + 4 - cie;
        self.entry(back as u32, body)
    }

    fn read(mut self) -> Vec<(u64, usize, Start)> {
        self.0.extend([0; 4]);
        let span = Span::of(FRAMES, self.0);
        let mut section = Section {
            span: &span,
            known: None,
        };
        let fdes = section.all(FRAMES).into_iter();
        fdes.map(|f| (f.range.start.get(), f.range.len_bytes, f.start))
            .collect()
    }
}

/// One FDE whose pointers are written in a form.
fn one(encoding: u8, start: &[u8], len: &[u8]) -> Vec<(u64, usize, Start)> {
    let mut writer = Writer::default();
    let cie = writer.cie("zR", &[encoding]);
    writer.fde(cie, &[start, len, &[0]].concat());
    writer.read()
}

#[test]
fn pointers_have_many_forms() {
    // Where the first pointer of the FDE stands: behind a CIE of 20 bytes.
    let pc = FRAMES + 20 + 8;
    let called = |start, len| vec![(start, len, Start::Called)];
    let le = |v: u64| v.to_le_bytes();
    assert_eq!(
        one(0x00, &le(0x1234), &le(16)),
        called(0x1234, 16),
        "absptr"
    );
    assert_eq!(
        one(0x02, &[0x34, 0x12], &[16, 0]),
        called(0x1234, 16),
        "udata2"
    );
    assert_eq!(
        one(0x03, &[0x34, 0x12, 0, 0], &[16, 0, 0, 0]),
        called(0x1234, 16),
        "udata4"
    );
    assert_eq!(
        one(0x01, &[0xb4, 0x24], &[16]),
        called(0x1234, 16),
        "uleb128"
    );
    let back = (-0x100i32).to_le_bytes();
    assert_eq!(
        one(0x1b, &back, &[8, 1, 0, 0]),
        called(pc - 0x100, 264),
        "pcrel sdata4"
    );
    assert_eq!(
        one(0x1a, &[0, 0xff], &[8, 1]),
        called(pc - 0x100, 264),
        "pcrel sdata2"
    );
    assert_eq!(
        one(0x19, &[0x80, 0x7e], &[8]),
        called(pc - 0x100, 8),
        "pcrel sleb128"
    );
    assert_eq!(
        one(0x1c, &le(0x100), &le(8)),
        called(pc + 0x100, 8),
        "pcrel sdata8"
    );
}

#[test]
fn what_cannot_be_read_is_left_out() {
    let le = |v: u64| v.to_le_bytes();
    assert_eq!(one(0x20, &le(1), &le(16)), [], "relative to text");
    assert_eq!(one(0x0e, &le(1), &le(16)), [], "no such form");
    assert_eq!(
        one(0x9b, &[1, 0, 0, 0], &[16, 0, 0, 0]),
        [],
        "an address of the address"
    );
    assert_eq!(one(0x00, &le(0x1234), &le(0)), [], "no length");
    assert_eq!(one(0x00, &le(0x1234), &[]), [], "cut");
    let mut writer = Writer::default();
    let unknown = writer.cie("zX", &[0]);
    let known = writer.cie("zR", &[0]);
    writer.fde(unknown, &[le(1), le(16)].concat());
    writer.fde(known + 1, &[le(1), le(16)].concat());
    writer.fde(known, &[&le(7)[..], &le(16), &[0]].concat());
    assert_eq!(writer.read(), [(7, 16, Start::Called)], "the others are");
}

#[test]
fn an_entry_that_leads_outside_ends_it() {
    let mut writer = Writer::default();
    let cie = writer.cie("zR", &[0]);
    let le = |v: u64| v.to_le_bytes();
    writer.fde(cie, &[&le(7)[..], &le(16), &[0]].concat());
    writer.0.extend(0x1000_u32.to_le_bytes());
    assert_eq!(writer.read(), [(7, 16, Start::Called)]);
}

#[test]
fn augmentations_are_read_past() {
    let le = |v: u64| v.to_le_bytes();
    let plain = [&le(7)[..], &le(16), &[0]].concat();
    // A personality and the form of language data, then the form of pointers.
    let mut writer = Writer::default();
    let cie = writer.cie("zPLR", &[0x9b, 1, 2, 3, 4, 0x1b, 0x00]);
    writer.fde(cie, &[&le(7)[..], &le(16), &[4, 1, 2, 3, 4]].concat());
    // No data at all.
    let old = writer.cie("", &[]);
    writer.fde(old, &plain[..16]);
    let signal = writer.cie("zRS", &[0]);
    writer.fde(signal, &plain);
    let want = [
        (7, 16, Start::Called),
        (7, 16, Start::Called),
        (7, 16, Start::Signal),
    ];
    assert_eq!(writer.read(), want);
}

#[test]
fn rules_say_whether_there_is_a_frame() {
    for (rules, want) in [
        (&[][..], Start::Called),
        (&[0x00, 0x00], Start::Called),
        // advance_loc 4; def_cfa_offset 16
        (&[0x44, 0x0e, 16], Start::Called),
        (&[0x0e, 16], Start::InFrame),
        // By no distance, in each form.
        (&[0x40, 0x0e, 16], Start::InFrame),
        (&[0x02, 0, 0x0e, 16], Start::InFrame),
        (&[0x03, 0, 0, 0x0e, 16], Start::InFrame),
        (&[0x04, 0, 0, 0, 0, 0x0e, 16], Start::InFrame),
        (&[0x02, 4, 0x0e, 16], Start::Called),
        (&[0x03, 0, 4, 0x0e, 16], Start::Called),
        // offset of register 8
        (&[0x88, 2], Start::InFrame),
        // What the CIE says too.
        (&[0x0c, 2, 0, 0x0e, 0, 0x0d, 2], Start::Called),
        (&[0x0c, 2, 16], Start::InFrame),
        (&[0x0d, 8], Start::InFrame),
        // undefined ra, same_value, remember_state
        (&[0x07, 1, 0x08, 9, 0x0a], Start::Called),
        (&[0x07, 1, 0x0e, 32], Start::InFrame),
    ] {
        let mut writer = Writer::default();
        let cie = writer.cie("zR", &[0]);
        let body = [&7u64.to_le_bytes()[..], &16u64.to_le_bytes(), &[0], rules].concat();
        writer.fde(cie, &body);
        assert_eq!(writer.read(), [(7, 16, want)], "{rules:x?}");
    }
}

#[test]
fn the_index_leads_to_fdes() {
    let hdr = |bytes: Vec<u8>| {
        let span = Span::of(0x2000, bytes);
        let range = RxRange::new(RxAddr::new(0x2000), 64);
        Index::read(&span, range).map(|index| (index.frames, index.fdes))
    };
    let word = |v: i32| v.to_le_bytes();
    let table = |encodings: [u8; 4]| {
        let words = [0x100, 2, -0x800, 0x10, -0x400, 0x20].map(word).concat();
        [&encodings[..], &words].concat()
    };
    let frames = 0x2004 + 0x100;
    let want = Some((frames, Some(vec![0x2010, 0x2020])));
    assert_eq!(hdr(table([1, 0x1b, 0x03, 0x3b])), want);
    assert_eq!(hdr(table([1, 0x1b, 0xff, 0xff])), Some((frames, None)));
    assert_eq!(hdr(table([2, 0x1b, 0x03, 0x3b])), None, "another version");
    let mut cut = table([1, 0x1b, 0x03, 0x3b]);
    cut.truncate(20);
    assert_eq!(hdr(cut), Some((frames, None)), "then all of it is read");
}
