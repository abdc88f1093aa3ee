//! Random numbers that nobody can foresee.
//!
//! Key function: [`words`]. Source: getrandom(2).

#![expect(unsafe_code, reason = "a bare system call")]

use std::io;

/// `count` random words.
///
/// # Errors
/// What the kernel says.
pub(super) fn words(count: usize) -> io::Result<Vec<u64>> {
    let mut words = vec![0; count];
    let len = size_of_val(&*words);
    let mut done = 0;
    while done < len {
        let at = words.as_mut_ptr().cast::<u8>().wrapping_add(done);
        // SAFETY: 1. so many bytes are left.
        let got = unsafe { libc::getrandom(at.cast(), len - done, 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_set() {
        let words = words(100_000).unwrap();
        let zeros = words.iter().filter(|word| **word == 0).count();
        let ones: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
        assert_eq!((words.len(), zeros), (100_000, 0));
        // 3,200,000 of them; one in a million million would be farther off.
        assert!(ones.abs_diff(3_200_000) < 10_000, "{ones}");
        assert!(super::words(0).unwrap().is_empty());
    }
}
