//! Where the C library is about to block all signals, because it starts a thread or a child.
//!
//! Those places are private. They are found by reading the functions that everybody calls, and
//! those that they end in by a jump: a system call that blocks signals, or a call of a function
//! that comes to one before anything else. glibc 2.41 has one in `pthread_create`, and two in the
//! function behind `posix_spawn` and its kin, which call what `fork` calls, too. There `fork`
//! holds our locks ([`crate::fork`]), so the callers are taken, not the callee.
//!
//! Of a function that has none, or too many, its entry is taken.
//!
//! Key types: [`Start`], [`find`]. Neighbour: `gate`, which holds them. Source: glibc
//! `nptl/pthread_create.c` (`__pthread_create_2_1`), `sysdeps/unix/sysv/linux/spawni.c`
//! (`__spawnix`), `sysdeps/unix/sysv/linux/internal-signals.h` (`internal_signal_block_all`).

use crate::addr::{RxAddr, RxRange};
use crate::func::Func;
use crate::insn;
use crate::look::Look;

/// An instruction that leads to a start, at which a thread may wait.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Start {
    pub(super) at: RxAddr,
    /// Where a thread is that has executed it, until its signals are blocked: up to and with the
    /// instruction behind the system call, where the kernel shows it.
    pub(super) behind: RxRange,
}

/// What starts threads and children: all that it takes, for whatever else does so calls these.
const NAMES: [&str; 3] = ["pthread_create", "posix_spawn", "posix_spawnp"];
/// As many starts in one function; in more there is something that is not understood.
const MOST_IN_FUNC: usize = 4;
/// As many starts in all.
pub(super) const MOST: usize = NAMES.len() * MOST_IN_FUNC;
/// As many functions may end in each other.
const MOST_FUNCS: usize = 8;

/// Every start of this process's C library; no lock of this crate may be held.
pub(super) fn find() -> Vec<Start> {
    if !cfg!(target_arch = "riscv64") {
        return Vec::new();
    }
    let known: [*const (); NAMES.len()] = [
        libc::pthread_create as *const (),
        libc::posix_spawn as *const (),
        libc::posix_spawnp as *const (),
    ];
    let addr = |f: *const ()| RxAddr::new(f.expose_provenance() as u64);
    // The library's own, even if somebody has put another one before it.
    let funcs = Func::all_in(addr(libc::getauxval as *const ())).unwrap_or_default();
    // One for all that is read.
    let look = Look::now().ok();
    let mut starts: Vec<Start> = Vec::new();
    for (name, otherwise) in NAMES.into_iter().zip(known) {
        let entry = match funcs.iter().find(|f| f.name.as_deref() == Some(name)) {
            Some(func) => func.entry,
            None => match Func::find(addr(otherwise)) {
                Ok(func) => func.entry,
                Err(_) => continue,
            },
        };
        for start in starts_of(entry, &|entry| code_of(&funcs, look.as_ref(), entry)) {
            if !starts.contains(&start) {
                starts.push(start);
            }
        }
    }
    starts
}

/// The code of the function at `entry`; nothing if there is none, or none can be read.
fn code_of(funcs: &[Func], look: Option<&Look>, entry: RxAddr) -> Vec<u16> {
    let i = funcs.binary_search_by_key(&entry, |f| f.entry);
    let len_bytes = i.ok().and_then(|i| funcs.get(i)?.len_bytes).unwrap_or(0);
    let code = look.and_then(|look| look.original_text(RxRange::new(entry, len_bytes)).ok());
    let code = code.unwrap_or_default();
    let halves = code.chunks_exact(2);
    halves.map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

/// The starts in the function at `entry`, or in those that it ends in.
fn starts_of(entry: RxAddr, code_of: &dyn Fn(RxAddr) -> Vec<u16>) -> Vec<Start> {
    let (mut starts, mut funcs, mut next) = (Vec::new(), vec![entry], 0);
    while let Some(&func) = funcs.get(next) {
        next += 1;
        let code = code_of(func);
        let found = starts_in(func, &code, code_of);
        if found.is_empty() {
            for end in ends_of(func, &code) {
                if !funcs.contains(&end) {
                    funcs.push(end);
                }
            }
        }
        starts.extend(found);
        if starts.len() > MOST_IN_FUNC || funcs.len() > MOST_FUNCS {
            starts.clear();
            break;
        }
    }
    if starts.is_empty() {
        starts.push(Start::system_call(entry));
    }
    starts
}

impl Start {
    /// The system call itself, or what is taken for one.
    fn system_call(at: RxAddr) -> Self {
        let second_half = RxAddr::new(at.get().wrapping_add(2));
        Self {
            at,
            behind: RxRange::new(second_half, 4),
        }
    }
}

/// The starts among the instructions of one function.
fn starts_in(func: RxAddr, code: &[u16], code_of: &dyn Fn(RxAddr) -> Vec<u16>) -> Vec<Start> {
    let (mut starts, mut reader, mut before) = (Vec::new(), Reader::default(), None);
    for insn in insns(func, code) {
        if reader.blocks(insn) {
            starts.push(Start::system_call(insn.at));
        }
        if let Some(callee) = callee(before, insn) {
            let code = code_of(callee);
            let mut reader = Reader::default();
            let mut head = insns(callee, &code).take_while(|i| !insn::is_transfer(i.word));
            let blocks = |insn: &Insn| reader.blocks(*insn);
            if let Some(call) = head.find(blocks) {
                let behind = call.at.get() + 4 + 2 - callee.get();
                starts.push(Start {
                    at: insn.at,
                    behind: RxRange::new(callee, behind as usize),
                });
            }
        }
        before = Some(insn);
    }
    starts
}

/// Where a call leads: `jal`, or `jalr` behind its `auipc`.
fn callee(before: Option<Insn>, insn: Insn) -> Option<RxAddr> {
    let near = insn::jump_target(insn.word, insn.at);
    let pair = || insn::pair_target([before?.word, insn.word], before?.at);
    let (link, to) = near.or_else(pair)?;
    (link != 0).then_some(to)
}

/// Where jumps lead out of a function.
fn ends_of(func: RxAddr, code: &[u16]) -> impl Iterator<Item = RxAddr> {
    let own = RxRange::new(func, 2 * code.len());
    insns(func, code).filter_map(move |insn| {
        let (link, to) = insn::jump_target(insn.word, insn.at)?;
        (link == 0 && !own.contains(to)).then_some(to)
    })
}

/// An instruction of two bytes or four.
#[derive(Copy, Clone)]
struct Insn {
    at: RxAddr,
    word: u32,
}

/// The instructions of `code` that follow each other, up to what is none.
fn insns(start: RxAddr, code: &[u16]) -> impl Iterator<Item = Insn> {
    let mut i = 0;
    std::iter::from_fn(move || {
        let first = *code.get(i)?;
        let at = start.checked_add(2 * i as u64)?;
        let (word, nr_halves) = match insn::len_bytes(first)? {
            2 => (u32::from(first), 1),
            _ => (u32::from(*code.get(i + 1)?) << 16 | u32::from(first), 2),
        };
        i += nr_halves;
        Some(Insn { at, word })
    })
}

/// Reads instructions in their order, to know what a system call is about.
#[derive(Default)]
struct Reader {
    before: Vec<u32>,
}

impl Reader {
    /// So many instructions before a system call may say which it is.
    const MOST: usize = 8;

    /// Whether the next instruction is a system call that blocks signals.
    fn blocks(&mut self, insn: Insn) -> bool {
        let word = insn.word;
        let is_call = word == insn::ECALL;
        let says = |word: u32| {
            self.before
                .iter()
                .rev()
                .take(Self::MOST)
                .any(|w| *w == word)
        };
        let blocks = is_call
            && says(insn::LI_A7_SIGPROCMASK)
            && (says(insn::C_LI_A0_0) || says(insn::LI_A0_0));
        match is_call || insn::is_transfer(word) {
            true => self.before.clear(),
            false => self.before.push(word),
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: RxAddr = RxAddr::new(0x1000);
    const CALLEE: RxAddr = RxAddr::new(0x2000);

    /// From a `pthread_create` of glibc 2.41, by GNU as.
    const BLOCK: [u16; 13] = [
        0x8656, // mv a2, s5
        0x0893, 0x0870, // li a7, 135
        0x4501, // li a0, 0
        0x0597, 0x000b, // auipc a1, 0xb
        0x8593, 0x6845, // addi a1, a1, 1668
        0x46a1, // li a3, 8
        0x0073, 0x0000, // ecall
        0x749c, // ld a5, 40(s1)
        0xc3f1, // beqz a5, …
    ];

    /// The starts of a function at [`ENTRY`], when there are these others.
    fn starts(code: &[u16], others: &[(RxAddr, &[u16])]) -> Vec<Start> {
        let all = others.iter().copied().chain([(ENTRY, code)]);
        let all: Vec<(RxAddr, &[u16])> = all.collect();
        starts_of(ENTRY, &|entry| {
            let known = all.iter().find(|(at, _)| *at == entry);
            known.map(|(_, code)| code.to_vec()).unwrap_or_default()
        })
    }

    fn call_at(at: u64) -> Start {
        Start {
            at: RxAddr::new(at),
            behind: RxRange::new(RxAddr::new(at + 2), 4),
        }
    }

    fn halves(words: &[u32]) -> Vec<u16> {
        let halves = words.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]);
        halves.collect()
    }

    /// Holding entries would not be enough: see `gate`.
    #[cfg(all(target_arch = "riscv64", target_env = "gnu"))]
    #[test]
    fn glibc_has_places_inside() {
        let starts = find();
        let funcs = Func::all_in(RxAddr::new(libc::getauxval as *const () as u64)).unwrap();
        for start in &starts {
            assert!(funcs.iter().all(|f| f.entry != start.at), "{start:?}");
        }
        let look = Look::now().unwrap();
        let holds = |f: *const ()| {
            let entry = Func::find(RxAddr::new(f as u64)).unwrap().entry;
            let of_it = starts_of(entry, &|entry| code_of(&funcs, Some(&look), entry));
            assert!(
                of_it.iter().all(|start| starts.contains(start)),
                "{of_it:?}"
            );
            of_it
        };
        let thread = holds(libc::pthread_create as *const ());
        let child = holds(libc::posix_spawn as *const ());
        assert_eq!(holds(libc::posix_spawnp as *const ()), child);
        assert!(child.iter().all(|start| !thread.contains(start)));
    }

    #[test]
    fn the_call_that_blocks_signals_is_found() {
        let in_it = vec![call_at(ENTRY.get() + 18)];
        let entry = vec![call_at(ENTRY.get())];
        assert_eq!(starts(&BLOCK, &[]), in_it);
        let with = |i: usize, half: u16| {
            let mut code = BLOCK;
            code[i] = half;
            starts(&code, &[])
        };
        assert_eq!(with(3, 0x4509), entry, "SIG_SETMASK");
        assert_eq!(with(2, 0x0880), entry, "another call");
        assert_eq!(with(8, 0xc3f1), entry, "a branch in between");
        assert_eq!(with(9, 0x0013), entry, "no call at all");
        let twice = [BLOCK, BLOCK].concat();
        let both = [18, 26 + 18].map(|off| call_at(ENTRY.get() + off));
        assert_eq!(starts(&twice, &[]), both);
        assert_eq!(starts(&BLOCK.repeat(5), &[]), entry, "what are they all?");
        assert_eq!(starts(&[0x001f], &[]), entry, "no instruction");
        assert_eq!(starts(&[], &[]), entry, "not readable");
    }

    /// As `posix_spawn` of glibc 2.41 is: it ends in a function that ends in another, and that one
    /// calls what blocks the signals.
    #[test]
    fn calls_of_what_blocks_them_are_found_behind_jumps() {
        let (far, last) = (RxAddr::new(0x8_0000), RxAddr::new(0x8_0800));
        let jump = |from: RxAddr, to: RxAddr| insn::jump_near(from, to).unwrap();
        let entry = halves(&[jump(ENTRY, far)]);
        let pair = insn::jump_far(RxAddr::new(last.get() + 8), CALLEE, 1).unwrap();
        let last_code = halves(&[
            jump(last, CALLEE) | 1 << 7,
            insn::NOP,
            pair[0],
            pair[1] | 1 << 7,
        ]);
        // On two ways.
        let to_last = [4, 8].map(|off| jump(RxAddr::new(far.get() + off), last));
        let to_last = halves(&[insn::NOP, to_last[0], to_last[1]]);
        let behind = RxRange::new(CALLEE, 18 + 4 + 2);
        let want = [0, 12].map(|off| Start {
            at: RxAddr::new(last.get() + off),
            behind,
        });
        let others: [(RxAddr, &[u16]); 3] = [(far, &to_last), (last, &last_code), (CALLEE, &BLOCK)];
        assert_eq!(starts(&entry, &others), want);
        // Something else may come first in the callee: then it has to be looked for there.
        let branch = [&[0xc3f1], &BLOCK[..]].concat();
        let others: [(RxAddr, &[u16]); 3] =
            [(far, &to_last), (last, &last_code), (CALLEE, &branch)];
        assert_eq!(starts(&entry, &others), [call_at(ENTRY.get())]);
        // They may go round in circles.
        let back = halves(&[jump(far, ENTRY)]);
        assert_eq!(starts(&entry, &[(far, &back)]), [call_at(ENTRY.get())]);
    }
}
