//! What the dynamic linker has loaded, and what it finds under a name.
//!
//! What it has loaded is read anew when it has opened or closed something, which it counts; a few
//! hundred bytes an object are kept.
//!
//! Key types: [`Loaded`], [`Scope`]. Neighbours: `object` and `catalog` read what is found here;
//! `fork` keeps the lock. Source: `dl_iterate_phdr(3)`, `dlopen(3)`, `dlsym(3)`.
#![expect(
    unsafe_code,
    reason = "dl_iterate_phdr, dlopen, dlsym, and a lock that is held across fork"
)]

use std::borrow::Cow;
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::addr::{RxAddr, RxRange};
use crate::cache;
use crate::error::TextError;
use crate::namespaces::{self, Mapped, Namespace};
use crate::sync::{ForkMutex, RawForkMutex};

/// Where the file of the main program is, which the dynamic linker does not name.
const MAIN: &str = "/proc/self/exe";
/// The same where the first thread has ended: `/proc/self` is that one, and has no file any more.
const MAIN_OF_THREAD: &str = "/proc/thread-self/exe";

/// Held while the dynamic linker is asked, and across `fork`: glibc frees its other locks in the
/// child, but not the one of `dl_iterate_phdr` (`posix/fork.c`), which another thread may be
/// holding.
static ASKING: ForkMutex<()> =
    ForkMutex::const_new(<RawForkMutex as parking_lot::lock_api::RawMutex>::INIT, ());

/// Takes the lock of this module for the time of a fork.
pub(crate) fn before_fork() {
    let _asking = ManuallyDrop::new(ASKING.lock());
}

/// Gives it back, in the parent and in the child.
pub(crate) fn after_fork() {
    // SAFETY: `before_fork` took the lock on this thread and forgot its guard.
    unsafe { ASKING.force_unlock() };
}

/// A program header, as it is in memory.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) vaddr: u64,
    pub(crate) filesz: u64,
    pub(crate) memsz: u64,
}

impl Header {
    fn new(ph: &libc::Elf64_Phdr) -> Self {
        Self {
            kind: ph.p_type,
            flags: ph.p_flags,
            offset: ph.p_offset,
            vaddr: ph.p_vaddr,
            filesz: ph.p_filesz,
            memsz: ph.p_memsz,
        }
    }
}

/// What the dynamic linker says of an object. Two that are equal are the same object, with
/// nothing closed in between.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Loaded {
    pub(crate) base: u64,
    /// Of the main program, [`MAIN`].
    pub(crate) path: PathBuf,
    pub(crate) headers: Vec<Header>,
    pub(crate) namespace: Namespace,
    /// How many objects had been closed.
    closed: u64,
}

/// What the dynamic linker says of an object.
struct Info {
    phdr: libc::dl_phdr_info,
    namespace: Namespace,
}

impl Deref for Info {
    type Target = libc::dl_phdr_info;

    fn deref(&self) -> &Self::Target {
        &self.phdr
    }
}

/// All that is loaded.
#[derive(Debug)]
pub(crate) struct Objects {
    changes: Changes,
    /// In order of loading: the main program, then what it needs; behind them those of other
    /// namespaces.
    pub(crate) all: Vec<Arc<Loaded>>,
    /// The loaded segments by their first addresses, each with the index of its object. They do
    /// not overlap.
    segments: Vec<(RxRange, usize)>,
}

/// How many objects had been opened and closed: when one of both differs, so may all that is
/// loaded.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
struct Changes {
    opened: u64,
    closed: u64,
}

impl Changes {
    fn of(info: &libc::dl_phdr_info) -> Self {
        Self {
            opened: info.dlpi_adds,
            closed: info.dlpi_subs,
        }
    }

    /// Asks for the first object alone.
    fn now() -> Self {
        unsafe extern "C" fn first(
            info: *mut libc::dl_phdr_info,
            _size: libc::size_t,
            changes: *mut c_void,
        ) -> c_int {
            // SAFETY: the dynamic linker passes a live structure.
            let now = Changes::of(unsafe { &*info });
            // SAFETY: it is that of `now`, below.
            unsafe { changes.cast::<Changes>().write(now) };
            1
        }
        let mut changes = Self::default();
        let _asking = ASKING.lock();
        // SAFETY:
        // 1. `first` has the type that the call wants and does not unwind.
        // 2. `changes` outlives the call and nobody else uses it meanwhile.
        unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut changes).cast::<c_void>()) };
        changes
    }
}

impl Objects {
    /// Those of now. One look at a counter, unless it has changed.
    ///
    /// Nothing is allocated or freed under a lock: a hook of the allocator may come here.
    pub(crate) fn now() -> Arc<Self> {
        let changes = Changes::now();
        let known = cache::lock().loaded.clone();
        if let Some(known) = known.filter(|known| known.changes == changes) {
            return known;
        }
        let read = Arc::new(Self::read());
        let before = cache::lock().loaded.replace(Arc::clone(&read));
        drop(before);
        read
    }

    fn read() -> Self {
        let (changes, all) = Raw::read();
        let mut segments = Vec::new();
        for (i, object) in all.iter().enumerate() {
            segments.extend(object.loads().map(|h| (object.range_of(h), i)));
        }
        // Of the same address the object that was loaded first comes last, and is found.
        segments.sort_by_key(|(range, i)| (range.start, std::cmp::Reverse(*i)));
        Self {
            changes,
            all,
            segments,
        }
    }

    /// The object that holds `addr` in a segment of it, and that segment.
    pub(crate) fn find(&self, addr: RxAddr) -> Option<(usize, RxRange)> {
        let after = self.segments.partition_point(|(r, _)| r.start <= addr);
        let (range, i) = self.segments.get(after.checked_sub(1)?)?;
        range.contains(addr).then_some((*i, *range))
    }
}

/// What the dynamic linker says of all objects, in memory that was there before it was asked.
#[derive(Default)]
struct Raw {
    changes: Changes,
    /// Of each object its base, the end of its name and that of its headers, and where it is.
    objects: Vec<(u64, usize, usize, Namespace)>,
    names: Vec<u8>,
    headers: Vec<Header>,
    /// How much there is of each.
    needed: [usize; 3],
}

impl Raw {
    fn read() -> (Changes, Vec<Arc<Loaded>>) {
        let mut raw = Self::default();
        while !raw.fill() {}
        let (mut name_at, mut header_at) = (0, 0);
        let objects = raw
            .objects
            .iter()
            .map(|&(base, name_end, headers_end, namespace)| {
                let name = &raw.names[name_at..name_end];
                let headers = raw.headers[header_at..headers_end].to_vec();
                (name_at, header_at) = (name_end, headers_end);
                let closed = raw.changes.closed;
                Arc::new(Loaded::new(base, name, headers, namespace, closed))
            });
        (raw.changes, objects.collect())
    }

    /// Whether there was room for all.
    fn fill(&mut self) -> bool {
        self.objects.clear();
        self.names.clear();
        self.headers.clear();
        self.objects.reserve(self.needed[0]);
        self.names.reserve(self.needed[1]);
        self.headers.reserve(self.needed[2]);
        self.needed = [0; 3];
        iterate(&mut |info| {
            self.add(info);
            None
        });
        self.objects.len() == self.needed[0]
    }

    fn add(&mut self, info: &Info) {
        self.changes = Changes::of(info);
        let Some((name, headers)) = parts(info) else {
            return;
        };
        self.needed[0] += 1;
        self.needed[1] += name.len();
        self.needed[2] += headers.len();
        let has_room = self.needed[0] <= self.objects.capacity()
            && self.needed[1] <= self.names.capacity()
            && self.needed[2] <= self.headers.capacity();
        if has_room {
            self.names.extend_from_slice(name);
            self.headers.extend(headers.iter().map(Header::new));
            let (name_end, headers_end) = (self.names.len(), self.headers.len());
            let ends = (info.dlpi_addr, name_end, headers_end, info.namespace);
            self.objects.push(ends);
        }
    }
}

/// The name and the program headers of an object.
fn parts(info: &Info) -> Option<(&[u8], &[libc::Elf64_Phdr])> {
    if info.dlpi_phdr.is_null() {
        return None;
    }
    // SAFETY: the structure says how many headers there are, and they are loaded.
    let phdrs = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let name = if info.dlpi_name.is_null() {
        &[]
    } else {
        // SAFETY: a name is a NUL-terminated string that lives as long as the object.
        unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes()
    };
    let has_none = name.is_empty() && info.namespace.is_other();
    (!has_none).then_some((name, phdrs))
}

/// The loaded segment that holds `addr`; `None` where no object has one there.
#[must_use]
pub fn segment_of(addr: RxAddr) -> Option<RxRange> {
    Objects::now().find(addr).map(|(_, range)| range)
}

impl Loaded {
    /// The object that holds `addr` in a segment of it.
    pub(crate) fn find(addr: RxAddr) -> Option<Arc<Self>> {
        let objects = Objects::now();
        let (i, _) = objects.find(addr)?;
        Some(Arc::clone(&objects.all[i]))
    }

    /// All objects, in order of loading: the main program, then what it needs; behind them those of
    /// other namespaces.
    pub(crate) fn all() -> Vec<Arc<Self>> {
        Objects::now().all.clone()
    }

    /// Visits all objects. None is closed meanwhile.
    pub(crate) fn each(visitor: &mut dyn FnMut(Self)) {
        iterate(&mut |info| {
            if let Some(object) = Self::read(info) {
                visitor(object);
            }
            None
        });
    }

    fn read(info: &Info) -> Option<Self> {
        let (name, headers) = parts(info)?;
        let headers = headers.iter().map(Header::new).collect();
        Some(Self::new(
            info.dlpi_addr,
            name,
            headers,
            info.namespace,
            Changes::of(info).closed,
        ))
    }

    fn new(
        base: u64,
        name: &[u8],
        headers: Vec<Header>,
        namespace: Namespace,
        closed: u64,
    ) -> Self {
        let path = if name.is_empty() {
            MAIN.as_bytes()
        } else {
            name
        };
        Self {
            base,
            path: Path::new(OsStr::from_bytes(path)).to_path_buf(),
            headers,
            namespace,
            closed,
        }
    }

    /// Whether it is the main program.
    pub(crate) fn is_main(&self) -> bool {
        self.path.as_os_str() == MAIN
    }

    /// Where its file was when it was loaded.
    pub(crate) fn real_path(&self) -> Cow<'_, Path> {
        let read = self.is_main().then(|| std::fs::read_link(self.file()));
        match read {
            Some(Ok(path)) => Cow::Owned(path),
            _ => Cow::Borrowed(&self.path),
        }
    }

    /// The path by which its file can be opened now.
    pub(crate) fn file(&self) -> &Path {
        let is_gone = |e: std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
        match self.is_main() && std::fs::read_link(MAIN).is_err_and(is_gone) {
            true => Path::new(MAIN_OF_THREAD),
            false => &self.path,
        }
    }

    /// Where a segment is in memory.
    pub(crate) fn range_of(&self, header: &Header) -> RxRange {
        let start = RxAddr::new(self.base.wrapping_add(header.vaddr));
        RxRange::new(start, header.memsz as usize)
    }

    /// The first header of a kind.
    pub(crate) fn header(&self, kind: u32) -> Option<&Header> {
        self.headers.iter().find(|h| h.kind == kind)
    }

    /// The loaded segment that holds `addr`.
    pub(crate) fn segment_of(&self, addr: RxAddr) -> Option<RxRange> {
        self.loads()
            .map(|h| self.range_of(h))
            .find(|range| range.contains(addr))
    }

    /// Where the file has `range`, all of it.
    pub(crate) fn file_off(&self, range: RxRange) -> Option<u64> {
        self.loads().find_map(|h| {
            let start = self.range_of(h).start;
            let in_file = RxRange::new(start, h.filesz as usize);
            let from_start = range.start.get().wrapping_sub(start.get());
            let off = h.offset.wrapping_add(from_start);
            in_file.contains_range(&range).then_some(off)
        })
    }

    /// Whether `addr` lies in a segment that is executed.
    pub(crate) fn is_executed(&self, addr: RxAddr) -> bool {
        self.loads()
            .any(|h| h.flags & libc::PF_X != 0 && self.range_of(h).contains(addr))
    }

    /// The segments that are executed.
    pub(crate) fn executed(&self) -> impl Iterator<Item = RxRange> + '_ {
        let executed = self.loads().filter(|h| h.flags & libc::PF_X != 0);
        executed.map(|h| self.range_of(h))
    }

    /// The headers of what is mapped.
    pub(crate) fn loads(&self) -> impl Iterator<Item = &Header> {
        self.headers.iter().filter(|h| h.kind == libc::PT_LOAD)
    }

    /// An object of these headers, without a file.
    #[cfg(test)]
    pub(crate) fn of_headers(base: u64, headers: Vec<Header>) -> Self {
        Self {
            base,
            path: PathBuf::new(),
            headers,
            namespace: Namespace::default(),
            closed: 0,
        }
    }

    /// Its file cannot be used.
    pub(crate) fn error(&self, reason: &'static str) -> TextError {
        TextError::ObjectFile {
            object: self.path.as_path().into(),
            errno: 0,
            reason,
        }
    }

    /// Its file cannot be read.
    pub(crate) fn io_error(&self, e: &std::io::Error) -> TextError {
        TextError::ObjectFile {
            object: self.path.as_path().into(),
            errno: e.raw_os_error().unwrap_or(0),
            reason: "its file is needed for its section headers, which are not loaded",
        }
    }
}

/// Told of each object until it answers.
type Visitor<'a> = &'a mut dyn FnMut(&Info) -> Option<()>;

fn iterate(mut visitor: Visitor<'_>) {
    let _asking = ASKING.lock();
    // SAFETY:
    // 1. `visit` has the type that the call wants and does not unwind.
    // 2. `visitor` outlives the call and nobody else uses it meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut visitor).cast::<c_void>()) };
}

unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    data: *mut c_void,
) -> c_int {
    let mut listed: Vec<libc::dl_phdr_info> = Vec::new();
    // From the first call on, which lists all: its lock may be taken again.
    let _ = info;
    // SAFETY:
    // 1. `list` has the type that the call wants and does not unwind.
    // 2. `listed` outlives the call and nobody else uses it meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(list), (&raw mut listed).cast::<c_void>()) };
    // SAFETY: `data` is the visitor of `iterate`, borrowed by nobody else.
    let visitor = unsafe { &mut *data.cast::<Visitor<'_>>() };
    let own = listed.iter().map(|phdr| Info {
        phdr: *phdr,
        namespace: Namespace::default(),
    });
    for info in own {
        if visitor(&info).is_some() {
            return 1;
        }
    }
    for Mapped { info, namespace } in namespaces::others(&listed) {
        let phdr = info;
        if visitor(&Info { phdr, namespace }).is_some() {
            break;
        }
    }
    1
}

/// Adds an object to a list.
unsafe extern "C" fn list(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    data: *mut c_void,
) -> c_int {
    // SAFETY: the dynamic linker passes a live structure.
    let info = unsafe { *info };
    // SAFETY: `data` is the list of `visit`, borrowed by nobody else.
    unsafe { &mut *data.cast::<Vec<libc::dl_phdr_info>>() }.push(info);
    0
}

/// Where the dynamic linker begins to look for a name.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Scope<'a> {
    /// In the main program, in what it needs, and in what was opened for everybody.
    Global,
    /// In an object and what that needs.
    Object(&'a Loaded),
}

/// What the dynamic linker finds under a name, of this version or of the default one. Of a
/// function with several implementations, the one that is chosen on this machine.
///
/// Takes the dynamic linker's lock, under which constructors run: no lock of this crate may be
/// held.
pub(crate) fn look_up(scope: Scope<'_>, name: &CStr, version: Option<&CStr>) -> Option<RxAddr> {
    let handle = Handle::open(scope)?;
    let found = match version {
        // SAFETY: a live handle and a NUL-terminated name.
        None => unsafe { libc::dlsym(handle.0, name.as_ptr()) },
        // SAFETY: a live handle and NUL-terminated names.
        Some(version) => unsafe { libc::dlvsym(handle.0, name.as_ptr(), version.as_ptr()) },
    };
    (!found.is_null()).then(|| RxAddr::new(found.expose_provenance() as u64))
}

/// A reference to a loaded object.
struct Handle(*mut c_void);

impl Handle {
    fn open(scope: Scope<'_>) -> Option<Self> {
        let namespace = match scope {
            Scope::Object(object) => object.namespace,
            Scope::Global => Namespace::default(),
        };
        let path = match scope {
            Scope::Object(object) if !object.is_main() => Some(object.path.as_os_str().as_bytes()),
            _ => None,
        };
        let path = match path.map(std::ffi::CString::new) {
            Some(path) => Some(path.ok()?),
            None => None,
        };
        let handle = namespace.open(path.as_deref());
        (!handle.is_null()).then_some(Self(handle))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and is given back once.
        unsafe { libc::dlclose(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_is_loaded() {
        let here = RxAddr::new(what_is_kept_is_what_is_loaded as *const () as u64);
        let own = segment_of(here).unwrap();
        assert!(own.contains(here));
        assert!(Loaded::find(here).unwrap().is_main());
        let local = Box::new(0_u64);
        let heap = RxAddr::new((&raw const *local).expose_provenance() as u64);
        assert_eq!(segment_of(heap), None);
        let (one, other) = (Objects::now(), Objects::read());
        assert_eq!(one.all, other.all);
        assert_eq!(one.segments, other.segments);
    }
}
