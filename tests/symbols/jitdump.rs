//! A reader of what `perf` reads, from the formats' descriptions: `perf-PID.map` and jitdump.
//!
//! Source: Linux `tools/perf/Documentation/jitdump-specification.txt` and `jit-interface.txt`.

/// A record of code.
#[derive(Debug, PartialEq)]
pub(crate) struct CodeLoad {
    pub(crate) time_ns: u64,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) vma: u64,
    pub(crate) at: u64,
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) code: Vec<u8>,
    /// Of the record of lines before it: address, line, file.
    pub(crate) lines: Vec<(u64, u32, String)>,
}

/// Bytes, read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> String {
        let len = self.0.iter().position(|b| *b == 0).unwrap();
        let text = String::from_utf8(self.take(len).to_vec()).unwrap();
        self.take(1);
        text
    }
}

/// The whole file of process `pid`.
pub(crate) fn read_dump(bytes: &[u8], pid: u32) -> Vec<CodeLoad> {
    const EM_RISCV: u32 = 243;
    let mut file = Reader(bytes);
    assert_eq!((file.u32(), file.u32()), (0x4A69_5444, 1), "magic, version");
    let header_bytes = file.u32() as usize;
    assert_eq!(file.u32(), EM_RISCV);
    file.u32();
    assert_eq!(file.u32(), pid);
    let mut last_ns = file.u64();
    assert_eq!(file.u64(), 0, "flags: time is the clock's");
    let mut records = Reader(&bytes[header_bytes..]);
    let (mut all, mut lines) = (Vec::new(), None);
    while !records.0.is_empty() {
        let (id, size) = (records.u32(), records.u32() as usize);
        let time_ns = records.u64();
        assert!(time_ns >= last_ns, "in order of time");
        last_ns = time_ns;
        let body = Reader(records.take(size - 16));
        match id {
            0 => all.push(code_load(body, time_ns, lines.take())),
            2 => assert!(lines.replace(debug_info(body)).is_none()),
            other => panic!("record {other}"),
        }
    }
    assert!(lines.is_none(), "lines of no code");
    all
}

type Lines = (u64, Vec<(u64, u32, String)>);

fn code_load(mut body: Reader<'_>, time_ns: u64, lines: Option<Lines>) -> CodeLoad {
    let (pid, tid) = (body.u32(), body.u32());
    let (vma, at) = (body.u64(), body.u64());
    let (len, number) = (body.u64() as usize, body.u64());
    let name = body.string();
    let lines = lines.map_or_else(Vec::new, |(of, lines)| {
        assert_eq!(of, at, "lines of other code");
        lines
    });
    assert_eq!(body.0.len(), len, "{name}");
    CodeLoad {
        time_ns,
        pid,
        tid,
        vma,
        at,
        number,
        name,
        code: body.0.to_vec(),
        lines,
    }
}

fn debug_info(mut body: Reader<'_>) -> Lines {
    let (at, nr) = (body.u64(), body.u64());
    let mut line = || {
        let (addr, line) = (body.u64(), body.u32());
        body.u32();
        (addr, line, body.string())
    };
    (at, (0..nr).map(|_| line()).collect())
}

/// Start, length and name of each line.
pub(crate) fn read_map(text: &str) -> Vec<(u64, u64, String)> {
    let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().unwrap();
        (hex(word()), hex(word()), word().to_owned())
    };
    text.lines().map(line).collect()
}
