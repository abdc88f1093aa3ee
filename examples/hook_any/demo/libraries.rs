//! The three libraries, opened like any program opens them.
#![expect(unsafe_code, reason = "opens libraries and calls their functions")]

use std::ffi::{CStr, c_int, c_uchar, c_uint, c_ulong, c_void};

use super::{Outcome, ensure};

pub(crate) const LIBZ: &str = "libz.so.1";
pub(crate) const LIBCRYPTO: &str = "libcrypto.so.3";
pub(crate) const LIBC: &str = "libc.so.6";

type Compress2 =
    unsafe extern "C" fn(*mut c_uchar, *mut c_ulong, *const c_uchar, c_ulong, c_int) -> c_int;
type Uncompress =
    unsafe extern "C" fn(*mut c_uchar, *mut c_ulong, *const c_uchar, c_ulong) -> c_int;
type CompressBound = unsafe extern "C" fn(c_ulong) -> c_ulong;
type Digest = unsafe extern "C" fn(
    *const c_void,
    usize,
    *mut c_uchar,
    *mut c_uint,
    *const c_void,
    *mut c_void,
) -> c_int;
type Algorithm = unsafe extern "C" fn() -> *const c_void;
type Sha256 = unsafe extern "C" fn(*const c_uchar, usize, *mut c_uchar) -> *mut c_uchar;

/// What the demo calls of zlib and libcrypto.
#[derive(Copy, Clone)]
pub(crate) struct Libraries {
    compress2: Compress2,
    uncompress: Uncompress,
    compress_bound: CompressBound,
    evp_digest: Digest,
    evp_sha512: Algorithm,
    sha256: Sha256,
}

/// A library that stays open.
struct Library {
    name: &'static str,
    handle: *mut c_void,
}

impl Library {
    fn open(name: &'static str, c_name: &CStr) -> Outcome<Self> {
        // SAFETY: 1. a NUL-terminated name. 2. The library's constructors expect nothing of us.
        let handle = unsafe { libc::dlopen(c_name.as_ptr(), libc::RTLD_LAZY) };
        if handle.is_null() {
            return Err(format!(
                "{name} is not on this machine; in Debian it is in the packages zlib1g and \
                 libssl3t64"
            )
            .into());
        }
        Ok(Self { name, handle })
    }

    /// The address of a function.
    fn get(&self, function: &CStr) -> Outcome<*mut c_void> {
        // SAFETY: a live handle and a NUL-terminated name.
        let found = unsafe { libc::dlsym(self.handle, function.as_ptr()) };
        if found.is_null() {
            return Err(format!("{} has no {}", self.name, function.to_string_lossy()).into());
        }
        Ok(found)
    }
}

impl Libraries {
    pub(crate) fn open() -> Outcome<Self> {
        let z = Library::open(LIBZ, c"libz.so.1")?;
        let crypto = Library::open(LIBCRYPTO, c"libcrypto.so.3")?;
        let (compress2, uncompress) = (z.get(c"compress2")?, z.get(c"uncompress")?);
        let compress_bound = z.get(c"compressBound")?;
        let (evp_digest, evp_sha512) = (crypto.get(c"EVP_Digest")?, crypto.get(c"EVP_sha512")?);
        let sha256 = crypto.get(c"SHA256")?;
        Ok(Self {
            // SAFETY: this is its type in zlib.h.
            compress2: unsafe { std::mem::transmute::<*mut c_void, Compress2>(compress2) },
            // SAFETY: as above.
            uncompress: unsafe { std::mem::transmute::<*mut c_void, Uncompress>(uncompress) },
            // SAFETY: as above.
            compress_bound: unsafe {
                std::mem::transmute::<*mut c_void, CompressBound>(compress_bound)
            },
            // SAFETY: this is its type in openssl/evp.h.
            evp_digest: unsafe { std::mem::transmute::<*mut c_void, Digest>(evp_digest) },
            // SAFETY: as above.
            evp_sha512: unsafe { std::mem::transmute::<*mut c_void, Algorithm>(evp_sha512) },
            // SAFETY: this is its type in openssl/sha.h.
            sha256: unsafe { std::mem::transmute::<*mut c_void, Sha256>(sha256) },
        })
    }

    /// zlib's form of `bytes`.
    pub(crate) fn compress(&self, bytes: &[u8], level: c_int) -> Outcome<Vec<u8>> {
        let len = bytes.len() as c_ulong;
        // SAFETY: any length may be asked for.
        let bound = unsafe { (self.compress_bound)(len) };
        let mut out = vec![0; bound as usize];
        let mut out_len = bound;
        // SAFETY: both buffers have the lengths that are given.
        let code = unsafe {
            (self.compress2)(
                out.as_mut_ptr(),
                &raw mut out_len,
                bytes.as_ptr(),
                len,
                level,
            )
        };
        ensure(code == 0, "compress2 failed")?;
        out.truncate(out_len as usize);
        Ok(out)
    }

    /// The `len_bytes` bytes that were compressed.
    pub(crate) fn uncompress(&self, bytes: &[u8], len_bytes: usize) -> Outcome<Vec<u8>> {
        let mut out = vec![0; len_bytes];
        let mut out_len = len_bytes as c_ulong;
        let len = bytes.len() as c_ulong;
        // SAFETY: both buffers have the lengths that are given.
        let code =
            unsafe { (self.uncompress)(out.as_mut_ptr(), &raw mut out_len, bytes.as_ptr(), len) };
        ensure(
            code == 0 && out_len as usize == len_bytes,
            "uncompress failed",
        )?;
        Ok(out)
    }

    /// SHA-512, by the interface for any algorithm.
    pub(crate) fn sha512(&self, bytes: &[u8]) -> Outcome<[u8; 64]> {
        let mut digest = [0; 64];
        // SAFETY: it wants nothing.
        let algorithm = unsafe { (self.evp_sha512)() };
        // SAFETY:
        // 1. `bytes` has the length that is given, `digest` that of the algorithm.
        // 2. The length of the digest need not be told, nor who computes it.
        let code = unsafe {
            (self.evp_digest)(
                bytes.as_ptr().cast(),
                bytes.len(),
                digest.as_mut_ptr(),
                std::ptr::null_mut(),
                algorithm,
                std::ptr::null_mut(),
            )
        };
        ensure(code == 1, "EVP_Digest failed")?;
        Ok(digest)
    }

    /// SHA-256, by its own function.
    pub(crate) fn sha256(&self, bytes: &[u8]) -> [u8; 32] {
        let mut digest = [0; 32];
        // SAFETY: `bytes` has the length that is given, `digest` that of SHA-256.
        unsafe { (self.sha256)(bytes.as_ptr(), bytes.len(), digest.as_mut_ptr()) };
        digest
    }
}
