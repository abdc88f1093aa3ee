//! The kernel's `printf` for programs: no allocation, no lock, no floating point.
//!
//! ```text
//!   %[0 + - space]*[width][l | ll](d i u x X)     numbers
//!   %c  %s  %pks  %pus                            a byte; a string, fault-safe
//!   %p  %px  %pK                                  an address, 16 digits
//!   %%
//! ```
//!
//! Everything else is refused, and then nothing is printed: symbols (`%ps`, `%pB`) and addresses of
//! the network (`%pI4`), too.
//!
//! Key types: [`Out`], [`print`]. Neighbour: `trace`. Source: kernel `kernel/bpf/helpers.c`
//! (`bpf_bprintf_prepare`), `lib/vsprintf.c`.

use super::memory::read_str;

/// As much of a string as is printed.
const MAX_STR_BYTES: usize = 512;
/// Wider fields than anybody has room for.
const MAX_WIDTH: usize = 1 << 23;

/// Room for what is printed, and how much it would have taken.
#[derive(Debug)]
pub(super) struct Out<'a> {
    buf: &'a mut [u8],
    wanted: usize,
}

/// A format that no kernel takes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) struct BadFormat;

impl<'a> Out<'a> {
    pub(super) fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, wanted: 0 }
    }

    /// How many bytes there would be if there were room.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.wanted.min(self.buf.len())
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        let at = self.len();
        let room = &mut self.buf[at..];
        let len = room.len().min(bytes.len());
        room[..len].copy_from_slice(&bytes[..len]);
        self.wanted += bytes.len();
    }

    fn pad(&mut self, byte: u8, count: usize) {
        let at = self.len();
        let room = &mut self.buf[at..];
        let len = room.len().min(count);
        room[..len].fill(byte);
        self.wanted += count;
    }
}

impl std::fmt::Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

/// What an argument is printed as.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Kind {
    Signed,
    Unsigned,
    Hex { upper: bool },
    Char,
    Str,
    Address,
}

/// One conversion.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Spec {
    kind: Kind,
    /// `l` or `ll`: 64 bits, not 32.
    long: bool,
    width: usize,
    zeros: bool,
    left: bool,
    plus: bool,
    space: bool,
}

/// A part of a format.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Piece<'f> {
    Text(&'f [u8]),
    Arg(Spec),
}

/// The parts of a format, one after the other.
struct Pieces<'f>(&'f [u8]);

impl<'f> Iterator for Pieces<'f> {
    type Item = Result<Piece<'f>, BadFormat>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&first, rest) = self.0.split_first()?;
        if first == b'%' {
            return Some(match rest.first() {
                Some(b'%') => {
                    self.0 = &rest[1..];
                    Ok(Piece::Text(b"%"))
                }
                _ => spec(rest).map(|(spec, rest)| {
                    self.0 = rest;
                    Piece::Arg(spec)
                }),
            });
        }
        let len = self.0.iter().position(|b| *b == b'%');
        let (text, rest) = self.0.split_at(len.unwrap_or(self.0.len()));
        self.0 = rest;
        let plain = |b: &u8| b.is_ascii_graphic() || matches!(*b, b' ' | b'\t'..=b'\r');
        Some(match text.iter().all(plain) {
            true => Ok(Piece::Text(text)),
            false => Err(BadFormat),
        })
    }
}

/// What stands behind a percent sign, and what follows it.
fn spec(mut rest: &[u8]) -> Result<(Spec, &[u8]), BadFormat> {
    let mut spec = Spec {
        kind: Kind::Signed,
        long: false,
        width: 0,
        zeros: false,
        left: false,
        plus: false,
        space: false,
    };
    while let [flag @ (b'0' | b'+' | b'-' | b' '), after @ ..] = rest {
        match flag {
            b'0' => spec.zeros = true,
            b'+' => spec.plus = true,
            b'-' => spec.left = true,
            _ => spec.space = true,
        }
        rest = after;
    }
    while let [digit @ b'0'..=b'9', after @ ..] = rest {
        spec.width = (10 * spec.width + usize::from(digit - b'0')).min(MAX_WIDTH);
        rest = after;
    }
    let (kind, rest) = match rest {
        [b'c', rest @ ..] => (Kind::Char, rest),
        [b's', rest @ ..] | [b'p', b'k' | b'u', b's', rest @ ..] => (Kind::Str, rest),
        [b'p', b'x' | b'K', rest @ ..] => (Kind::Address, rest),
        // Letters behind it would mean something.
        [b'p', next, ..] if next.is_ascii_alphanumeric() => return Err(BadFormat),
        [b'p', rest @ ..] => (Kind::Address, rest),
        [b'l', b'l', rest @ ..] | [b'l', rest @ ..] => {
            spec.long = true;
            number(rest)?
        }
        _ => number(rest)?,
    };
    spec.kind = kind;
    Ok((spec, rest))
}

fn number(rest: &[u8]) -> Result<(Kind, &[u8]), BadFormat> {
    let (letter, rest) = rest.split_first().ok_or(BadFormat)?;
    let kind = match letter {
        b'd' | b'i' => Kind::Signed,
        b'u' => Kind::Unsigned,
        b'x' => Kind::Hex { upper: false },
        b'X' => Kind::Hex { upper: true },
        _ => return Err(BadFormat),
    };
    Ok((kind, rest))
}

/// Prints `args` as `fmt` says. Arguments that are too many are not looked at.
///
/// # Errors
/// [`BadFormat`], also when arguments are missing: nothing is printed then.
pub(super) fn print(out: &mut Out<'_>, fmt: &[u8], args: &[u64]) -> Result<(), BadFormat> {
    let mut wants = 0;
    for piece in Pieces(fmt) {
        wants += usize::from(matches!(piece?, Piece::Arg(_)));
    }
    if wants > args.len() {
        return Err(BadFormat);
    }
    let mut args = args.iter();
    for piece in Pieces(fmt).flatten() {
        match piece {
            Piece::Text(text) => out.put(text),
            Piece::Arg(spec) => spec.print(out, args.next().copied().unwrap_or_default()),
        }
    }
    Ok(())
}

impl Spec {
    fn print(self, out: &mut Out<'_>, arg: u64) {
        match self.kind {
            Kind::Char => self.text(out, &[arg as u8]),
            Kind::Str => {
                let mut text = [0; MAX_STR_BYTES];
                // What is not there is empty, as in the kernel.
                let len = read_str(&mut text, arg).unwrap_or(1);
                self.text(out, &text[..len - 1]);
            }
            Kind::Address => {
                let mut digits = [0; 20];
                let len = hex(&mut digits, arg, false);
                out.pad(b' ', self.before(16));
                out.pad(b'0', 16 - len);
                out.put(&digits[20 - len..]);
                out.pad(b' ', self.behind(16));
            }
            Kind::Signed => {
                let value = if self.long {
                    arg as i64
                } else {
                    i64::from(arg as i32)
                };
                let sign: &[u8] = match (value < 0, self.plus, self.space) {
                    (true, ..) => b"-",
                    (_, true, _) => b"+",
                    (_, _, true) => b" ",
                    _ => b"",
                };
                let mut digits = [0; 20];
                let len = decimal(&mut digits, value.unsigned_abs());
                self.number(out, sign, &digits[20 - len..]);
            }
            Kind::Unsigned => {
                let mut digits = [0; 20];
                let len = decimal(&mut digits, self.cut(arg));
                self.number(out, b"", &digits[20 - len..]);
            }
            Kind::Hex { upper } => {
                let mut digits = [0; 20];
                let len = hex(&mut digits, self.cut(arg), upper);
                self.number(out, b"", &digits[20 - len..]);
            }
        }
    }

    fn cut(self, arg: u64) -> u64 {
        if self.long { arg } else { arg & 0xffff_ffff }
    }

    fn before(self, len: usize) -> usize {
        if self.left {
            0
        } else {
            self.width.saturating_sub(len)
        }
    }

    fn behind(self, len: usize) -> usize {
        if self.left {
            self.width.saturating_sub(len)
        } else {
            0
        }
    }

    fn text(self, out: &mut Out<'_>, text: &[u8]) {
        out.pad(b' ', self.before(text.len()));
        out.put(text);
        out.pad(b' ', self.behind(text.len()));
    }

    /// Zeros come between the sign and the digits, and not behind them.
    fn number(self, out: &mut Out<'_>, sign: &[u8], digits: &[u8]) {
        let len = sign.len() + digits.len();
        let before = self.before(len);
        if !self.zeros {
            out.pad(b' ', before);
        }
        out.put(sign);
        if self.zeros {
            out.pad(b'0', before);
        }
        out.put(digits);
        out.pad(b' ', self.behind(len));
    }
}

/// The digits of `value`, at the end of `to`; how many.
fn decimal(to: &mut [u8; 20], value: u64) -> usize {
    digits(to, value, 10, b"0123456789")
}

fn hex(to: &mut [u8; 20], value: u64, upper: bool) -> usize {
    match upper {
        true => digits(to, value, 16, b"0123456789ABCDEF"),
        false => digits(to, value, 16, b"0123456789abcdef"),
    }
}

fn digits(to: &mut [u8; 20], mut value: u64, base: u64, names: &[u8]) -> usize {
    let mut len = 0;
    for place in to.iter_mut().rev() {
        *place = names[(value % base) as usize];
        value /= base;
        len += 1;
        if value == 0 {
            break;
        }
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(fmt: &str, args: &[u64]) -> Result<String, BadFormat> {
        let mut buf = [0; 64];
        let mut out = Out::new(&mut buf);
        print(&mut out, fmt.as_bytes(), args)?;
        let len = out.len();
        Ok(String::from_utf8_lossy(&buf[..len]).into_owned())
    }

    #[test]
    fn numbers_are_printed_as_their_formats_say() {
        let minus = -5_i64 as u64;
        for (fmt, arg, want) in [
            ("%d", minus, "-5"),
            ("%d", 1 << 32 | 7, "7"),
            ("%d", 0x8000_0000, "-2147483648"),
            ("%i", 0, "0"),
            ("%u", minus, "4294967291"),
            ("%x", minus, "fffffffb"),
            ("%X", 0xbeef, "BEEF"),
            ("%ld", minus, "-5"),
            ("%lld", i64::MIN as u64, "-9223372036854775808"),
            ("%llu", u64::MAX, "18446744073709551615"),
            ("%lx", 0x1234_5678_9abc, "123456789abc"),
            ("%llX", u64::MAX, "FFFFFFFFFFFFFFFF"),
            ("[%5d]", 42, "[   42]"),
            ("[%-5d]", 42, "[42   ]"),
            ("[%05d]", minus, "[-0005]"),
            ("[%+d]", 42, "[+42]"),
            ("[% d]", 42, "[ 42]"),
            ("[%08x]", 0xcafe, "[0000cafe]"),
            ("[%2d]", 12345, "[12345]"),
            ("%p", 0xdead_beef, "00000000deadbeef"),
            ("%px", 1, "0000000000000001"),
            ("%c%%", b'k'.into(), "k%"),
            ("no argument\n", 0, "no argument\n"),
        ] {
            assert_eq!(printed(fmt, &[arg]).as_deref(), Ok(want), "{fmt}");
        }
    }

    #[test]
    fn strings_are_read_and_those_that_are_not_there_are_empty() {
        let text = c"hook".as_ptr().expose_provenance() as u64;
        let got = printed("%s|%7s|%-6s|%pks|%s.", &[text, text, text, text, 8]);
        assert_eq!(got.as_deref(), Ok("hook|   hook|hook  |hook|."));
    }

    #[test]
    fn formats_that_no_kernel_takes_are_refused() {
        for fmt in [
            "%", "%l", "%5", "%f", "%o", "%hd", "%lc", "%ps", "%pB", "%pI4", "%pk", "%n", "%lll",
            "\u{1}", "ä", "%d %d",
        ] {
            assert_eq!(printed(fmt, &[1]), Err(BadFormat), "{fmt}");
        }
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut buf = [0; 4];
        let mut out = Out::new(&mut buf);
        print(&mut out, b"ab%9999999999d", &[7]).unwrap();
        assert_eq!((out.len(), out.wanted()), (4, 2 + MAX_WIDTH));
        assert_eq!(&buf, b"ab  ");
    }
}
