//! Images made and judged by QEMU's own tools.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::allow_attributes,
    reason = "unused parts differ from test file to test file"
)]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use disk::Source;

/// Runs a tool to its end and returns its output; fails the test with its messages otherwise.
pub(crate) fn tool(name: &str, args: &[&str]) -> String {
    let output = Command::new(name).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {args:?}: {text}{errors}");
    text
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn create(path: &Path, size: u64, options: &str, backing: Option<(&Path, &str)>) {
    let size = size.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    if let Some((file, format)) = backing {
        args.extend(["-b", text(file), "-F", format]);
    }
    args.extend([text(path), &size]);
    tool("qemu-img", &args);
}

/// Runs qemu-io commands on an image.
pub(crate) fn qemu_io(path: &Path, format: &str, commands: &str) {
    let mut child = Command::new("qemu-io")
        .args(["-f", format, "-d", "unmap", text(path)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let commands = commands.to_owned();
    let feeder = std::thread::spawn(move || stdin.write_all(commands.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    assert!(!said.contains("failed"), "{said}");
}

pub(crate) fn to_raw(path: &Path, raw: &Path) {
    let (from, to) = (text(path), text(raw));
    tool(
        "qemu-img",
        &["convert", "-U", "-f", "qcow2", "-O", "raw", from, to],
    );
}

pub(crate) fn check(path: &Path) {
    tool("qemu-img", &["check", "-f", "qcow2", text(path)]);
}

pub(crate) fn identical(a: &Path, a_format: &str, b: &Path, b_format: &str) {
    let args = [
        "compare",
        "-U",
        "-f",
        a_format,
        "-F",
        b_format,
        text(a),
        text(b),
    ];
    tool("qemu-img", &args);
}

/// A small generator with a seed, so that a failing case can be run again.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What a guest does to a disk: mostly small writes in a few places, some large ones, zeros and discards.
pub(crate) fn guest_writes(dice: &mut Dice, size: u64, count: u32) -> String {
    let mut commands = String::new();
    for _ in 0..count {
        let unit = [512, 4096, 4096, 65536][dice.roll(4) as usize];
        let longest = if dice.roll(8) == 0 { 64 } else { 4 };
        let len = (1 + dice.roll(longest)) * unit;
        let start = dice.roll(size / unit) * unit;
        let len = len.min(size - start);
        if len == 0 {
            continue;
        }
        let pattern = 1 + dice.roll(255);
        match dice.roll(10) {
            0 => writeln!(commands, "write -z {start} {len}").unwrap(),
            1 => writeln!(commands, "write -z -u {start} {len}").unwrap(),
            2 => writeln!(commands, "discard {start} {len}").unwrap(),
            3 => writeln!(commands, "write -P 0 {start} {len}").unwrap(),
            _ => writeln!(commands, "write -P {pattern} {start} {len}").unwrap(),
        }
    }
    commands.push_str("flush\n");
    commands
}

/// Holds a source against a raw file, byte by byte, in reads of changing length and alignment.
pub(crate) fn assert_reads_as(source: &dyn Source, raw: &Path, dice: &mut Dice) {
    let expected = fs::read(raw).unwrap();
    assert_eq!(source.size(), expected.len() as u64);
    let mut at = 0usize;
    while at < expected.len() {
        let len = (1 + dice.roll(3 << 20) as usize).min(expected.len() - at);
        let mut found = vec![0x55u8; len];
        source.read_at(&mut found, at as u64).unwrap();
        if found != expected[at..at + len] {
            let bad = found
                .iter()
                .zip(&expected[at..])
                .position(|(a, b)| a != b)
                .unwrap();
            panic!("first difference at byte {}", at + bad);
        }
        at += len;
    }
    let mut at = 0;
    for extent in source.extents(0..source.size()).unwrap() {
        assert_eq!(extent.start, at);
        at = extent.end();
        if extent.zero {
            let bytes = &expected[extent.start as usize..extent.end() as usize];
            assert!(bytes.iter().all(|b| *b == 0), "{extent:?} is not zero");
        }
    }
    assert_eq!(at, source.size());
}

pub(crate) fn raw_file(path: &Path, size: u64) -> PathBuf {
    File::create(path).unwrap().set_len(size).unwrap();
    path.to_owned()
}
