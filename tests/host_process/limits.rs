//! Limits of resources, each at its edge: an error, or it works; never a signal.

use std::fs;
use std::io;
use std::ptr;

use crate::common::{checked, in_child, serial};
use crate::{Answer, Hooks, workload};

fn limit(resource: libc::__rlimit_resource_t, value: u64) {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: 1. the limit lives through the call.
    checked(unsafe { libc::setrlimit(resource, &raw const limit) });
}

/// The address space that this process has, in bytes.
fn address_space() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    pages * 4096
}

/// Every limit before the first hook.
#[test]
fn limits_at_their_edges() {
    let _one = serial();
    let errors = &["memory", "errno", "descriptor", "limit", "room", "mapp"];
    let either = || Answer::WorksOrRefused(errors);
    for (name, resource, value, answer) in [
        ("descriptors", libc::RLIMIT_NOFILE, 3, either()),
        (
            "file size 0",
            libc::RLIMIT_FSIZE,
            0,
            Answer::Refused(&["file", "FSIZE"]),
        ),
        (
            "file size 1 MiB",
            libc::RLIMIT_FSIZE,
            1 << 20,
            Answer::Works,
        ),
        (
            "address space",
            libc::RLIMIT_AS,
            address_space() + (1 << 20),
            either(),
        ),
        ("data", libc::RLIMIT_DATA, 0, either()),
        ("locked memory", libc::RLIMIT_MEMLOCK, 0, Answer::Works),
        ("processes", libc::RLIMIT_NPROC, 1, Answer::Works),
        ("queued signals", libc::RLIMIT_SIGPENDING, 0, Answer::Works),
        ("stack", libc::RLIMIT_STACK, 64 << 10, Answer::Works),
        ("core", libc::RLIMIT_CORE, 0, Answer::Works),
    ] {
        in_child(|| {
            println!("limit: {name}");
            limit(resource, value);
            answer.check(workload());
        })
        .join();
    }
}

/// Every descriptor is taken while hooks are there: they come off all the same.
#[test]
fn no_descriptor_is_left_while_hooked() {
    let _one = serial();
    in_child(|| {
        let hooks = Hooks::attach().unwrap();
        limit(libc::RLIMIT_NOFILE, 64);
        let taken = || fs::File::open("/dev/null");
        let files: Vec<_> = std::iter::from_fn(|| taken().ok()).collect();
        assert_eq!(taken().unwrap_err().raw_os_error(), Some(libc::EMFILE));
        hooks.call();
        let result = hooks.rt.detach_all([&hooks.pad, &hooks.jump]);
        drop(files);
        match result {
            Ok(()) => crate::unhooked(),
            // Nothing is half done: it works on, and comes off when there is room again.
            Err(error) => {
                println!("refused: {error}");
                hooks.call();
                hooks.retarget().unwrap();
                hooks.end().unwrap();
            }
        }
    })
    .join();
}

/// `mlockall` by a user who may lock little: every new mapping counts.
#[test]
fn all_memory_is_locked() {
    let _one = serial();
    in_child(|| {
        limit(libc::RLIMIT_MEMLOCK, address_space() + (256 << 10));
        // SAFETY: 1. no preconditions.
        if unsafe { libc::geteuid() } == 0 {
            // SAFETY: 1. no preconditions.
            checked(unsafe { libc::setresuid(65534, 65534, 65534) });
        }
        // SAFETY: 1. no preconditions.
        let locked = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
        if locked != 0 {
            eprintln!("not tried: mlockall: {}", io::Error::last_os_error());
            return;
        }
        Answer::WorksOrRefused(&["errno 11", "errno 12", "memory", "mmap"]).check(workload());
    })
    .join();
}

/// 20,000 mappings: reading them takes long, and joins none of ours.
#[test]
fn slow_twenty_thousand_mappings() {
    const PAGE_BYTES: usize = 4096;
    let _one = serial();
    in_child(|| {
        let len_bytes = 20_000 * PAGE_BYTES;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: 1. a new mapping, at an address of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), len_bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        for i in (0..20_000).step_by(2) {
            let page = at.wrapping_byte_add(i * PAGE_BYTES);
            // SAFETY: 1. a page of the mapping above, which nothing uses.
            checked(unsafe { libc::mprotect(page, PAGE_BYTES, libc::PROT_READ) });
        }
        Answer::Works.check(workload());
    })
    .join();
}
