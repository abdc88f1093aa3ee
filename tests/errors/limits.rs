//! Too much, too far, too large.

use std::ffi::c_long;
use std::sync::Arc;
use std::{fs, ptr};

use pack_alloc::{Config, Near, PackAlloc, PackError};
use rvbpf::{Error, HugePolicy, MAX_LINKS, Runtime, RxAddr, TrampError};
use testlib::functions::{tl_add2, tl_no_pad};
use text::TextError;
use trampoline::{Attach, Prog, ProgKind, Trampolines, Traps};

use crate::common::{
    ADD2, WEIGH12, assert_settled, code_at, hook, in_child, serial, sites, weigh_from,
};
use crate::{Before, assert_is, refused};

#[test]
fn more_programs_than_an_image_can_call() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let one = || hook(&rt, ADD2).on_entry(|_| {});
    let hooks = rt.attach_all((0..MAX_LINKS).map(|_| one())).unwrap();
    let before = Before::new(&rt, &[ADD2 as *const ()]);
    let too_many = |e| assert_is!(e, Error::Tramp(TrampError::TooManyProgs { limit: 38, .. }));
    too_many(refused(one().attach()));
    before.assert_unchanged();
    // A batch is refused whole, for the sake of one.
    let site = sites(1)[0];
    // SAFETY:
    // 1. The functions are of these types.
    let other = unsafe { rt.hook_addr(site as *const (), rvbpf::FuncModel::untyped()) }.unwrap();
    // SAFETY:
    // 1. As above.
    let full = unsafe { rt.hook_addr(ADD2 as *const (), hook_model()) }.unwrap();
    too_many(refused(
        rt.attach_all([other.on_entry(|_| {}), full.on_entry(|_| {})]),
    ));
    before.assert_unchanged();
    assert_eq!((tl_add2(1, 2), site(1)), (3, 1));
    assert!(hooks.iter().all(|h| h.stats().runs == 1));
    // One goes, one may come.
    hooks[7].detach().unwrap();
    let last = one().attach().unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(last.stats().runs, 1);
    drop((hooks, last));
    // 39 at once, none of them attached before.
    let before = Before::new(&rt, &[ADD2 as *const ()]);
    too_many(refused(rt.attach_all((0..=MAX_LINKS).map(|_| one()))));
    before.assert_unchanged();
    assert_settled(&rt);
}

fn hook_model() -> rvbpf::FuncModel {
    use rvbpf::model::Type;
    rvbpf::FuncModel::new(&[Type::I32, Type::I32], Type::I32).unwrap()
}

#[test]
fn no_pack_allowed() {
    let _one = serial();
    let rt = Runtime::builder()
        .max_packs(0)
        .huge(HugePolicy::Never)
        .build()
        .unwrap();
    let before = Before::new(&rt, &[ADD2 as *const ()]);
    let error = refused(hook(&rt, ADD2).on_entry(|_| {}).attach());
    assert_is!(
        error,
        Error::Tramp(TrampError::Pack(PackError::LimitReached { limit: 0 }))
    );
    before.assert_unchanged();
    assert_eq!(tl_add2(1, 2), 3);
}

unsafe extern "C" fn nothing(_: *mut u64, _: u64) -> u64 {
    0
}

/// The only pack is full but for a bit: what is attached stays, more is refused, until there is
/// room again.
#[test]
fn the_limit_of_packs_is_reached() {
    let _one = serial();
    let mut config = Config::default();
    config.max_packs = Some(1);
    config.huge = HugePolicy::Never;
    let packs = Arc::new(PackAlloc::new(config));
    let tramps = Trampolines::new(packs.clone()).unwrap();
    let func = RxAddr::new(ADD2 as usize as u64);
    let near = Near::Within {
        of: func,
        reach_bytes: 1 << 30,
    };
    let attach = || {
        let prog = Prog::new(ProgKind::Fexit, nothing);
        let wanted = [Attach {
            func,
            model: Arc::new(hook_model()),
            prog,
            traps: Traps::Refused,
        }];
        // SAFETY:
        // 1. The model is the function's. 2. The program returns and keeps nothing.
        unsafe { tramps.attach(&wanted) }
    };
    let first = attach().unwrap();
    // Everything but two chunks, in pieces: images take more than that.
    let mut filled = Vec::new();
    while let Ok(piece) = packs.alloc(64, 64, near) {
        filled.push(piece);
    }
    assert_is!(
        packs.alloc(64, 64, near).unwrap_err(),
        PackError::LimitReached { limit: 1 }
    );
    filled.truncate(filled.len() - 2);
    let numbers = (packs.stats(), tramps.stats(), code_at(ADD2 as *const ()));
    let error = attach().unwrap_err();
    assert_is!(
        error,
        TrampError::Pack(PackError::LimitReached { limit: 1 })
    );
    assert_eq!(
        (packs.stats(), tramps.stats(), code_at(ADD2 as *const ())),
        numbers
    );
    assert_eq!(tl_add2(1, 2), 3);
    filled.clear();
    let second = attach().unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    tramps.detach(&[first[0], second[0]]).unwrap();
    tramps.synchronize(crate::common::PATIENCE).unwrap();
    assert_eq!(packs.stats().nr_live, 0);
}

#[test]
fn sizes_that_cannot_be() {
    let packs = PackAlloc::new(Config::default());
    let alloc = |size: usize, align: usize| {
        packs
            .alloc(size, align, Near::Anywhere)
            .map(|_| ())
            .unwrap_err()
    };
    assert_is!(alloc(0, 64), PackError::ZeroSize);
    for size in [usize::MAX, usize::MAX - 4096, isize::MAX as usize, 1 << 46] {
        assert_is!(
            alloc(size, 64),
            PackError::TooLarge { .. }
                | PackError::NoMemory { .. }
                | PackError::Text(TextError::Map { .. } | TextError::Length { .. })
        );
    }
    for align in [0, 3, 48, (2 << 20) + 1, 4 << 20, usize::MAX] {
        assert_is!(alloc(64, align), PackError::BadAlign { align_bytes, .. } if *align_bytes == align);
    }
    assert_eq!((packs.stats().nr_packs, packs.stats().nr_live), (0, 0));
    // What is just large is fine, and gone afterwards.
    let large = packs.alloc(5 << 20, 4096, Near::Anywhere).unwrap();
    assert!(large.rx().len_bytes >= 5 << 20);
    drop(large);
    assert_eq!(packs.stats().nr_live, 0);
}

/// Free ranges of this process's address space between `from` and `to`.
fn gaps(from: u64, to: u64) -> Vec<(u64, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |s: &str| u64::from_str_radix(s, 16).unwrap();
    let mut at = from;
    let mut found = Vec::new();
    for line in maps.lines() {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let start = hex(start).min(to);
        if start > at {
            found.push((at, start));
        }
        at = at.max(hex(end));
    }
    if at < to {
        found.push((at, to));
    }
    found
}

const NO_PAD: extern "C" fn(c_long, c_long) -> c_long = tl_no_pad;

/// Takes all address space within reach of the function: in a child, whose address space is its
/// own to spoil.
#[test]
fn everything_in_reach_is_taken() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let far = hook(&rt, WEIGH12).on_exit(|_, _| {}).attach().unwrap();
    in_child(|| {
        let rt = Runtime::new().unwrap();
        let func = ADD2 as usize as u64;
        // Beyond the reach too: a pack that reaches in would count.
        let page = |addr: u64| addr & !4095;
        let (from, to) = (
            page(func.saturating_sub(5 << 30).max(1 << 20)),
            page(func + (5 << 30)),
        );
        for (start, end) in gaps(from, to) {
            // SAFETY:
            // 1. Only free addresses are taken.
            let got = unsafe {
                libc::mmap(
                    ptr::without_provenance_mut(start as usize),
                    (end - start) as usize,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE
                        | libc::MAP_ANONYMOUS
                        | libc::MAP_NORESERVE
                        | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            assert_ne!(
                got,
                libc::MAP_FAILED,
                "{:?}",
                std::io::Error::last_os_error()
            );
        }
        let before = Before::new(&rt, &[ADD2 as *const ()]);
        let with_pad = refused(hook(&rt, ADD2).on_entry(|_| {}).attach());
        let without = refused(hook(&rt, NO_PAD).on_entry(|_| {}).attach());
        for error in [with_pad, without] {
            assert!(
                error.to_string().contains("unmap something there"),
                "{error}"
            );
            assert_is!(
                error,
                Error::Tramp(
                    TrampError::Pack(PackError::OutOfReach { .. }) | TrampError::OutOfReach { .. }
                )
            );
        }
        before.assert_unchanged();
        assert_eq!((tl_add2(1, 2), NO_PAD(40, 2)), (3, 42));
        // What has its memory goes on.
        assert_eq!(weigh_from(1), (650, 650));
        assert_eq!(far.stats().runs, 1);
        far.detach().unwrap();
        assert_eq!(weigh_from(1), (650, 650));
    })
    .join();
    far.detach().unwrap();
    assert_settled(&rt);
}
