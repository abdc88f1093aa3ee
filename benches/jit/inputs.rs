//! What the programs of the corpus read.

use crate::corpus::IN_BYTES;

/// The input of a program: random bytes, the same each time, where it does not want more.
pub(crate) fn of(name: &str) -> Vec<u8> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut input: Vec<u8> = (0..IN_BYTES).map(|_| random.next() as u8).collect();
    match name {
        "base64" => {
            let letters = (b'A'..=b'Z')
                .chain(b'a'..=b'z')
                .chain(b'0'..=b'9')
                .chain(*b"+/");
            input.splice(..64, letters);
        }
        "binary_search" => put(&mut input, 4 * 64, &sorted(&mut random)),
        "crc32" => put(&mut input, 0, &crc_table()),
        "five_tuple" => {
            (0..32).for_each(|i| packet(&mut input[i * 128 + 2..][..126], i, &mut random));
        }
        "histogram_log2" => {
            // As many of each size.
            let values: Vec<u64> = (0..256).map(|i| random.next() >> (i & 63)).collect();
            input.splice(..8 * 256, values.iter().flat_map(|v| v.to_le_bytes()));
        }
        "lpm" => put(&mut input, 4 * 32, &trie(&mut random)),
        "map_lookup" => map(&mut input, &mut random),
        "matrix" => {
            let numbers: Vec<u32> = (0..128)
                .map(|_| (random.next() as i32 >> 8) as u32)
                .collect();
            put(&mut input, 0, &numbers);
        }
        "prefix_match" => paths(&mut input),
        "varint" => {
            let numbers: Vec<u8> = (0..128)
                .flat_map(|i| varint(random.next() as u32 >> (i % 32)))
                .collect();
            input.splice(..numbers.len(), numbers);
        }
        _ => {}
    }
    // `ZERO` of `corpus.h`.
    put(&mut input, IN_BYTES - 4, &[0]);
    input
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
}

fn put(input: &mut [u8], at: usize, words: &[u32]) {
    for (bytes, word) in input[at..].chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

fn sorted(random: &mut Random) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..512).map(|_| random.next() as u32).collect();
    numbers.sort_unstable();
    numbers
}

fn crc_table() -> Vec<u32> {
    let step = |crc: u32| crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 };
    (0..256)
        .map(|byte| (0..8).fold(byte, |crc, _| step(crc)))
        .collect()
}

/// Every fourth has a VLAN tag, every eighth is no IPv4, every other is UDP, some have options.
fn packet(packet: &mut [u8], i: usize, random: &mut Random) {
    let mut at = 12;
    if i % 4 == 1 {
        packet[at..at + 4].copy_from_slice(&[0x81, 0x00, 0x00, 0x07]);
        at += 4;
    }
    let kind: [u8; 2] = if i % 8 == 7 {
        [0x86, 0xdd]
    } else {
        [0x08, 0x00]
    };
    packet[at..at + 2].copy_from_slice(&kind);
    at += 2;
    packet[at] = 0x45 + (random.next() % 3 * (i as u64 % 2)) as u8;
    packet[at + 9] = if i % 2 == 0 { 6 } else { 17 };
}

/// Prefixes of 1 to 16 bits, each of the first addresses' own or of none.
fn trie(random: &mut Random) -> Vec<u32> {
    // (children, value)
    let mut nodes: Vec<([u16; 2], u32)> = vec![([0; 2], 0)];
    for i in 0..48_u64 {
        let (prefix, len) = (random.next() as u32, 1 + i as u32 % 16);
        let mut at = 0;
        for bit in 0..len {
            let child = (prefix >> (31 - bit) & 1) as usize;
            if nodes[at].0[child] == 0 {
                if nodes.len() == 256 {
                    break;
                }
                nodes[at].0[child] = nodes.len() as u16;
                nodes.push(([0; 2], 0));
            }
            at = nodes[at].0[child].into();
        }
        nodes[at].1 = random.next() as u32 | 1;
    }
    let words = nodes.iter();
    words
        .flat_map(|(children, value)| {
            [
                u32::from(children[0]) | u32::from(children[1]) << 16,
                *value,
            ]
        })
        .collect()
}

/// 96 keys in 256 slots; of the 64 that are looked up, every fourth is not there.
fn map(input: &mut [u8], random: &mut Random) {
    let hash = |key: u32| {
        let key = (key ^ key >> 16).wrapping_mul(0x85eb_ca6b);
        key ^ key >> 13
    };
    let (mut slots, mut keys) = (vec![0_u32; 2 * 256], Vec::new());
    for i in 0..96 {
        let key = random.next() as u32 | 1;
        let free = (0..8).map(|probe| ((hash(key) + probe) & 255) as usize * 2);
        if let Some(at) = free.into_iter().find(|at| slots[*at] == 0) {
            (slots[at], slots[at + 1]) = (key, i + 1);
            keys.push(key);
        }
    }
    let looked_up = keys.into_iter().enumerate().map(|(i, key)| match i % 4 {
        3 => key ^ 0x10,
        _ => key,
    });
    put(input, 0, &looked_up.take(64).collect::<Vec<u32>>());
    put(input, 4 * 64, &slots);
}

fn paths(input: &mut [u8]) {
    const PATHS: [&str; 8] = [
        "/usr/lib/riscv64-linux-gnu/libc.so.6",
        "/usr/bin/env",
        "/etc/passwd",
        "/home/user/.config/editor/settings",
        "/proc/self/maps",
        "/var/lib/app/database/index",
        "/usr/lib/locale/C.utf8",
        "/tmp/build/object.o",
    ];
    const PREFIXES: [&str; 8] = [
        "/usr",
        "/usr/lib",
        "/etc/",
        "/home/user/.",
        "/proc/",
        "/var/log",
        "/usr/lib/locale/",
        "",
    ];
    input.fill(0);
    for i in 0..16 {
        let path = PATHS[i % PATHS.len()].as_bytes();
        input[i * 64..][..path.len()].copy_from_slice(path);
    }
    for (i, prefix) in PREFIXES.iter().enumerate() {
        input[16 * 64 + i * 16..][..prefix.len()].copy_from_slice(prefix.as_bytes());
    }
}

fn varint(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 128 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
