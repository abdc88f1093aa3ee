//! Foreign pages: never writable and executable, and not trusted for ever.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rvbpf_text::{
    Insn, ProcMaps, RxAddr, TextError, WordPatch, arm_all, patch_words, restore_all, text_poke,
};

use super::fns::*;
use crate::alone;

#[test]
fn nothing_is_ever_writable_and_executable() {
    let _alone = alone();
    let images = Images::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let watcher = s.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds == 0 {
                let maps = ProcMaps::read().unwrap();
                let bad: Vec<_> = maps.all().iter().filter(|m| m.is_wx()).collect();
                assert!(bad.is_empty(), "{bad:?}");
                rounds += 1;
            }
            rounds
        });
        for i in 0..40 {
            let w = words(pad_c_2mod4);
            let (a, b) = images.two_in_reach(w.hi, 100, 200 + i);
            arm_all(&[(w, a)]).unwrap();
            text_poke(w.hi, Insn::Call(a), Insn::Call(b)).unwrap();
            restore_all(&[w]).unwrap();
            drop(Images::new());
        }
        done.store(true, Ordering::Relaxed);
        println!("{} looks", watcher.join().unwrap());
    });
    let mapped = ProcMaps::read().unwrap();
    let is_rw_view = |m: &&rvbpf_text::Mapping| {
        let is_text = |path: &[u8]| m.path.starts_with(path);
        m.perms[1] == b'w' && (is_text(b"/memfd:rvbpf-text") || is_text(b"/dev/zero"))
    };
    assert_eq!(
        mapped.all().iter().find(is_rw_view),
        None,
        "rw views are gone"
    );
}

/// A page of a file with these words, mapped as a library's text would be.
pub(crate) struct Page {
    pub(crate) at: RxAddr,
}

impl Page {
    const BYTES: usize = 4096;

    pub(crate) fn map(at: Option<RxAddr>, words: [u32; 2]) -> Self {
        let path = format!("/tmp/rvbpf-page-{}-{}", std::process::id(), words[0]);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        file.write_all(&words.map(u32::to_le_bytes).concat())
            .unwrap();
        file.set_len(Self::BYTES as u64).unwrap();
        std::fs::remove_file(path).unwrap();
        let hint = at.map_or(std::ptr::null_mut(), |at| {
            std::ptr::with_exposed_provenance_mut(at.get() as usize)
        });
        // SAFETY: at an address that is free, or where this test has mapped a page.
        let got = unsafe {
            libc::mmap(
                hint,
                Self::BYTES,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE | if at.is_some() { libc::MAP_FIXED } else { 0 },
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(got, libc::MAP_FAILED);
        Self {
            at: RxAddr::new(got.expose_provenance() as u64),
        }
    }

    fn word(&self) -> u32 {
        // SAFETY: the page is mapped, and changed by atomic stores only.
        unsafe { std::ptr::with_exposed_provenance::<u32>(self.at.get() as usize).read_volatile() }
    }
}

#[test]
fn a_page_that_is_no_longer_ours_is_forgotten() {
    let _alone = alone();
    let patch = |at, old, new| patch_words(&[WordPatch { at, old, new }]);
    let first = Page::map(None, [0x13, 0x13]);
    patch(first.at, 0x13, 0x113).unwrap();
    assert_eq!(first.word(), 0x113);
    // The library is closed, and another one loaded there.
    let second = Page::map(Some(first.at), [0x213, 0x13]);
    let got = patch(second.at, 0x113, 0x313);
    let want = TextError::Mismatch {
        site: second.at,
        expected: 0x113,
        found: 0x213,
    };
    assert_eq!(got, Err(want));
    patch(second.at, 0x213, 0x313).unwrap();
    assert_eq!(second.word(), 0x313, "stored where the harts read");
    // Nothing there any more.
    // SAFETY: the page is the test's, and nothing refers to it.
    unsafe {
        libc::munmap(
            std::ptr::with_exposed_provenance_mut(second.at.get() as usize),
            4096,
        )
    };
    assert_eq!(
        patch(second.at, 0x313, 0x13),
        Err(TextError::Unmapped { addr: second.at })
    );
}

#[test]
fn a_page_that_a_debugger_wrote_to_is_replaced_anew() {
    let _alone = alone();
    let page = Page::map(None, [0x13, 0x13]);
    let patch = |old, new| {
        patch_words(&[WordPatch {
            at: page.at,
            old,
            new,
        }])
    };
    patch(0x13, 0x113).unwrap();
    let mem = File::options().write(true).open("/proc/self/mem").unwrap();
    if let Err(e) = mem.write_all_at(&0x413u32.to_le_bytes(), page.at.get()) {
        println!("this kernel refuses writes through /proc/self/mem: {e}");
        return;
    }
    assert_eq!(page.word(), 0x413, "now a private copy");
    let got = patch(0x113, 0x513);
    let want = TextError::Mismatch {
        site: page.at,
        expected: 0x113,
        found: 0x413,
    };
    assert_eq!(got, Err(want));
    patch(0x413, 0x513).unwrap();
    assert_eq!(page.word(), 0x513, "stored where the harts read");
}

#[test]
fn neighbouring_pages_make_one_mapping() {
    let _alone = alone();
    let images = Images::new();
    let image = images.put(0x4000, 100);
    let all: Vec<_> = (0..64)
        .map(|i| rvbpf_text::Pad::find(many(i)).unwrap().words().unwrap())
        .collect();
    let arms: Vec<_> = all.iter().map(|w| (*w, image)).collect();
    arm_all(&arms).unwrap();
    let maps = ProcMaps::read().unwrap();
    let mapping = |i: usize| maps.find(all[i].hi).expect("mapped").range;
    let pages = (all[63].hi.get() >> 12) - (all[0].hi.get() >> 12) + 1;
    assert!(pages >= 4);
    let distinct: std::collections::BTreeSet<_> = (0..64).map(|i| mapping(i).start).collect();
    // Pages that other tests replaced before stand alone.
    assert!(
        distinct.len() as u64 <= 2,
        "{} mappings for {pages} pages",
        distinct.len()
    );
    restore_all(&all).unwrap();
}

#[test]
fn huge_pages_of_the_pool_hold_code_too() {
    use rvbpf_text::{Backing, CodeMap, Place, text_copy};

    let _alone = alone();
    const POOL: &str = "/proc/sys/vm/nr_hugepages";
    let Ok(pages) = std::fs::read_to_string(POOL) else {
        return;
    };
    if std::fs::write(POOL, "4").is_err() {
        println!("the pool of huge pages is not ours to fill");
        return;
    }
    let map = CodeMap::new(2 << 20, Place::Anywhere, Backing::Hugetlb);
    std::fs::write(POOL, pages.trim()).unwrap();
    let map = map.unwrap();
    assert!(map.is_huge() && map.rx().start.is_aligned(2 << 20));
    let code = [0x13, 0x0000_8067u32].map(u32::to_le_bytes).concat();
    let func = map.rx().sub(0x1_2340, code.len()).unwrap();
    text_copy(func, &code).unwrap();
    assert_eq!(call(func.start, 5), 5);
    patch_words(&[WordPatch {
        at: func.start,
        old: 0x13,
        new: 7 << 20 | 0x513,
    }])
    .unwrap();
    assert_eq!(call(func.start, 5), 7);
    // A process that shares the code with another gets ordinary pages with the same code, when it
    // is the first to change it.
    let is_content = super::fork::forked(libc::fork, || {
        let is_same = call(func.start, 5) == 7;
        let new = 9 << 20 | 0x513;
        patch_words(&[WordPatch {
            at: func.start,
            old: 7 << 20 | 0x513,
            new,
        }])
        .unwrap();
        is_same && map.backing() == Backing::Memfd && call(func.start, 5) == 9
    });
    assert!(is_content);
    assert_eq!(call(func.start, 5), 7);
}
