//! The kernel's probes (uprobes) of functions beside hooked ones.

use std::ffi::{CString, c_long};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::null;

use rvbpf::{Error, Runtime, TrampError};
use testlib::functions::tl_plain;
use text::TextError;

use crate::common::{assert_settled, checked, code_at, hook, serial};
use crate::{Before, refused};

type F = extern "C" fn(c_long) -> c_long;

/// The kernel's tracing folder, mounted for a test.
struct Tracing(PathBuf);

impl Tracing {
    fn mount() -> Self {
        let at = std::env::temp_dir().join(format!("rvbpf-tracing-{}", std::process::id()));
        fs::create_dir_all(&at).unwrap();
        let target = CString::new(at.as_os_str().as_bytes()).unwrap();
        let kind = c"tracefs".as_ptr();
        // SAFETY: 1. strings with their zeros, and no data.
        checked(unsafe { libc::mount(kind, target.as_ptr(), kind, 0, null()) });
        Self(at)
    }

    /// A uprobe there, enabled.
    fn probe(&self, place: &Place) -> Probe<'_> {
        let Place { file, off } = place;
        self.events(&format!("p:rvbpf_test/beside {file}:{off:#x}\n"));
        let probe = Probe(self);
        probe.enable("1");
        probe
    }
}

/// How the kernel knows an instruction.
struct Place {
    file: String,
    off: u64,
}

impl Place {
    /// Before its page is replaced.
    fn of(f: F) -> Self {
        let addr = f as *const () as u64;
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let find = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (start, end) = fields[0].split_once('-')?;
            let hex = |digits| u64::from_str_radix(digits, 16).unwrap();
            let place = || Self {
                file: fields[5].to_owned(),
                off: addr - hex(start) + hex(fields[2]),
            };
            (hex(start)..hex(end)).contains(&addr).then(place)
        };
        maps.lines().find_map(find).unwrap()
    }
}

impl Tracing {
    /// Adds or takes away an event. Others' events stay.
    fn events(&self, line: &str) {
        let mut options = fs::File::options();
        let file = options.append(true).open(self.0.join("uprobe_events"));
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let target = CString::new(self.0.as_os_str().as_bytes()).unwrap();
        // SAFETY: 1. a string with its zero.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        let _ = fs::remove_dir(&self.0);
    }
}

struct Probe<'t>(&'t Tracing);

impl Probe<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.0.0.join("events/rvbpf_test/beside").join(name)
    }

    fn enable(&self, value: &str) {
        fs::write(self.file("enable"), value).unwrap();
    }

    /// How often it has fired.
    fn hits(&self) -> u64 {
        let profile = fs::read_to_string(self.0.0.join("uprobe_profile")).unwrap();
        let line = profile
            .lines()
            .find(|line| line.contains("beside"))
            .unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.enable("0");
        self.0.events("-:rvbpf_test/beside\n");
    }
}

/// Two functions on one page.
fn neighbours() -> (F, F) {
    let page = |f: &F| *f as *const () as usize & !0xfff;
    let pairs = tl_plain.windows(2);
    let mut pairs = pairs.filter(|pair| page(&pair[0]) == page(&pair[1]));
    let pair = pairs.nth(100).unwrap();
    (pair[0], pair[1])
}

#[test]
fn a_page_with_a_probe_is_refused_until_the_probe_is_gone() {
    let _one = serial();
    let tracing = Tracing::mount();
    let rt = Runtime::new().unwrap();
    let (f, probed) = neighbours();
    let place = Place::of(probed);
    let wanted = (f(40), probed(40));
    let probe = tracing.probe(&place);
    assert_eq!(probed(40), wanted.1);
    assert_eq!(probe.hits(), 1);
    let before = Before::new(&rt, &[f as *const ()]);
    for _ in 0..2 {
        let error = refused(hook(&rt, f).on_entry(|_| {}).attach());
        assert_settled(&rt);
        before.assert_unchanged();
        let Error::Tramp(TrampError::Text(TextError::BreakpointOnPage { at })) = &error else {
            panic!("is {error:?}");
        };
        assert_eq!(at.get(), probed as *const () as u64);
        assert!(error.to_string().contains("take it away first"), "{error}");
    }
    assert_eq!((f(40), probed(40)), wanted);
    assert_eq!(probe.hits(), 2);
    drop(probe);

    let hooked = hook(&rt, f).on_entry(|_| {}).attach().unwrap();
    assert_eq!(
        (f(40), probed(40), hooked.stats().runs),
        (wanted.0, wanted.1, 1)
    );
    // One that is set later does not come onto a page that has been replaced.
    let code = code_at(probed as *const ());
    let probe = tracing.probe(&place);
    assert_eq!(code_at(probed as *const ()), code);
    assert_eq!(
        (f(40), probed(40), hooked.stats().runs),
        (wanted.0, wanted.1, 2)
    );
    assert_eq!(probe.hits(), 0);
    drop(probe);
    drop(hooked);
    assert_settled(&rt);
}
