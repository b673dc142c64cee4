//! Replays the corpus of every reader and bends it at random. `CIM_FUZZ_RUNS` sets how many bent inputs each
//! reader gets (default 3,000); `CIM_FUZZ_SEED` another beginning.

#![expect(clippy::expect_used, reason = "a test without its corpus fails")]

use std::path::Path;

type Target = fn(&[u8]);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// xorshift64*: good enough to bend inputs, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % (limit.max(1) as u64)) as usize
    }
}

fn bend(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    const PIECES: &[&str] = &[
        "<",
        ">",
        "/>",
        "</",
        "&#",
        "&amp;",
        "<![CDATA[",
        "]]>",
        "<!--",
        "-->",
        "\"",
        "'",
        "\\",
        "\\\\",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ";",
        ":",
        ".",
        ",",
        "=",
        "%",
        "_",
        "instance of ",
        "class ",
        " REF ",
        " LIKE ",
        " IS NULL",
        " ISA ",
        " NOT ",
        "NULL",
        "0x",
        "-",
        "1e9",
        "18446744073709551616",
        "\u{feff}",
        "\0",
        "\u{fffe}",
        "\u{e9}",
        "\n",
        "@",
        "$a",
        "#pragma ",
        " xmlns:a='b'",
        "a:",
        "20261120184500.123456+000",
    ];
    let mut out = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len() + 1);
        let end = (at + random.below(12)).min(out.len());
        match random.below(6) {
            0 => drop(out.drain(at..end)),
            1 => drop(out.splice(at..at, PIECES[random.below(PIECES.len())].bytes())),
            2 => {
                let copy = out[at..end].to_vec();
                let to = random.below(out.len() + 1);
                drop(out.splice(to..to, copy));
            }
            3 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let to = (from + random.below(40)).min(other.len());
                drop(out.splice(at..end, other[from..to].iter().copied()));
            }
            4 => {
                if let Some(byte) = out.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            _ => out.truncate(at),
        }
    }
    out
}

fn run(name: &str, target: Target) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name);
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .expect(name)
        .map(|entry| entry.expect(name).path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "the corpus of {name} is empty");
    let corpus: Vec<Vec<u8>> = files
        .iter()
        .map(|file| std::fs::read(file).expect(name))
        .collect();
    for input in &corpus {
        target(input);
    }
    let mut random = Random(number("CIM_FUZZ_SEED", 0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..number("CIM_FUZZ_RUNS", 3_000) {
        let input = bend(&mut random, &corpus);
        let failed = std::panic::catch_unwind(|| target(&input));
        assert!(
            failed.is_ok(),
            "{name} fails on {:?}",
            String::from_utf8_lossy(&input)
        );
    }
}

#[test]
fn hostile_xml_is_survived() {
    run("xml", cim::fuzz::xml);
}

#[test]
fn hostile_mof_is_survived() {
    run("mof", cim::fuzz::mof);
}

#[test]
fn hostile_queries_are_survived() {
    run("wql", cim::fuzz::wql);
}

#[test]
fn hostile_embedded_instances_are_survived() {
    run("embedded", cim::fuzz::embedded);
}

#[test]
fn hostile_paths_are_survived() {
    run("path", cim::fuzz::path);
}
