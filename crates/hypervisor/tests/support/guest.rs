//! Guests in one boot sector, assembled here.

use std::path::Path;
use std::process::Command;

/// A disk of the writer.
pub const SIZE: u64 = 64 << 20;
const SLOTS: usize = 2048;
/// The guest's first start: the number of starts is in the upper 12 bits.
pub const FIRST: u32 = 1 << 20;

/// Writes record after record (`tests/guest/writer.s` of the workspace).
pub fn writer(dir: &Path) -> Vec<u8> {
    assemble(
        dir,
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guest/writer.s"),
    )
}

/// Says that it begins, and from then on changes half a MiB of memory all the time.
pub fn hog(dir: &Path) -> Vec<u8> {
    let source = dir.join("hog.s");
    let code = "
        .code16
_start: cli
        cld
        movw    $0x3f8, %dx
        movb    $'H, %al
        outb    %al, %dx
again:  incl    %ebx
        movw    $0x1000, %dx
part:   movw    %dx, %es
        xorw    %di, %di
        movw    $0x4000, %cx
        movl    %ebx, %eax
        rep     stosl
        addw    $0x1000, %dx
        cmpw    $0x9000, %dx
        jb      part
        jmp     again
        .org    510
        .word   0xaa55
";
    std::fs::write(&source, code).unwrap();
    assemble(dir, &source)
}

fn assemble(dir: &Path, source: &Path) -> Vec<u8> {
    let (object, binary) = (dir.join("writer.o"), dir.join("writer.bin"));
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(
        "as",
        &[
            "--32".as_ref(),
            "-o".as_ref(),
            object.as_ref(),
            source.as_ref(),
        ],
    );
    let flags = [
        "-m",
        "elf_i386",
        "-Ttext",
        "0x7c00",
        "--oformat",
        "binary",
        "-o",
    ]
    .map(AsRef::as_ref);
    run(
        "ld",
        &[&flags[..], &[binary.as_ref(), object.as_ref()]].concat(),
    );
    std::fs::read(binary).unwrap()
}

fn slot(number: u32) -> usize {
    (number.wrapping_mul(2_654_435_761) >> 21) as usize
}

/// The number up to which a disk holds exactly the records, all of them and none beyond.
pub fn records(disk: &[u8]) -> u32 {
    let at = |slot: usize| &disk[(2048 + 56 * slot) * 512..][..4096];
    let number = |slot: usize| u32::from_le_bytes(at(slot)[..4].try_into().unwrap());
    let newest = (0..SLOTS).map(number).max().unwrap();
    let mut expected = vec![0_u32; SLOTS];
    for number in FIRST + 1..=newest {
        expected[slot(number)] = number;
    }
    for (slot, expected) in expected.into_iter().enumerate() {
        let whole = at(slot)
            .chunks(4)
            .all(|word| word == expected.to_le_bytes());
        assert!(
            whole,
            "slot {slot} does not hold record {expected} of {newest}"
        );
    }
    newest
}
