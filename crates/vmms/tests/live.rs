//! A guest that never stops writing numbered records to two disks in lock step (`tests/guest/writer.s` of the workspace,
//! assembled here): exports are exact at one instant, whatever happens around them.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hypervisor::ImageFormat;
use support::{Bed, Bench, MIB, assert_same};
use uuid::Uuid;
use vmms::job::Job;
use vmms::machine::StateChange;
use vmms::machine::{Asked, spec};
use vmms::point::{Point, PointType};

const DISKS: [(&str, ImageFormat, u64); 2] = [
    ("a.img", ImageFormat::Raw, 64 * MIB),
    ("b.qcow2", ImageFormat::Qcow2, 64 * MIB),
];
const SLOTS: usize = 2048;

fn boot_sector(dir: &Path) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guest/writer.s");
    let (object, binary) = (dir.join("writer.o"), dir.join("writer.bin"));
    let run = |program: &str, args: &[&OsStr]| {
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
    .map(OsStr::new);
    run(
        "ld",
        &[&flags[..], &[binary.as_ref(), object.as_ref()]].concat(),
    );
    std::fs::read(binary).unwrap()
}

async fn writer(bench: &Bench) -> Bed<'_> {
    let bed = bench.machine(&DISKS).await;
    let code = boot_sector(bench.dir.path());
    let disk = std::fs::File::options()
        .write(true)
        .open(bench.path("images/a.img"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &code, 0).unwrap();
    bed.state(StateChange::Start).await;
    writes_on(&bed).await;
    bed
}

fn reports(bed: &Bed<'_>) -> usize {
    let log = std::fs::read_to_string(spec::console_log(&bed.bench.vmms.dirs, bed.vm))
        .unwrap_or_default();
    assert!(
        !log.lines().any(|line| line.starts_with("E ")),
        "a write failed in the guest: {log}"
    );
    log.lines().filter(|line| line.starts_with("N ")).count()
}

/// Waits until some hundred more records are written.
async fn writes_on(bed: &Bed<'_>) {
    let before = reports(bed);
    let more = async {
        while reports(bed) <= before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(180), more)
        .await
        .unwrap();
}

fn slot(number: u32) -> usize {
    (number.wrapping_mul(2_654_435_761) >> 21) as usize
}

/// The number up to which a disk holds exactly the records of the guest's first start, all of them and none beyond.
fn records(disk: &[u8]) -> u32 {
    let at = |slot: usize| &disk[(2048 + 56 * slot) * 512..][..4096];
    let number = |slot: usize| u32::from_le_bytes(at(slot)[..4].try_into().unwrap());
    let newest = (0..SLOTS).map(number).max().unwrap();
    let mut expected = vec![0_u32; SLOTS];
    for number in (1 << 20) + 1..=newest {
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

type Copies = BTreeMap<String, Vec<u8>>;

async fn copies(bed: &Bed<'_>, job: &Job) -> Copies {
    let mut out = Copies::new();
    for disk in &job.output.disks {
        let found = bed.bench.contents(&disk.file, ImageFormat::Qcow2).await;
        out.insert(bed.name_of(&disk.device), found);
    }
    out
}

/// The disks as of a point, read by QEMU's own tool from the frozen layers.
async fn frozen(bed: &Bed<'_>, point: Uuid) -> Copies {
    let mut out = Copies::new();
    for disk in &bed.bench.vmms.db.get::<Point>(point).unwrap().disks {
        let tree = bed.record().disk(disk.uid).unwrap().layers.clone();
        let top = tree.chain(disk.node).unwrap().pop().unwrap();
        let found = bed.bench.contents(&top.path, top.format).await;
        out.insert(bed.name_of(&disk.device), found);
    }
    out
}

fn assert_equal(found: &Copies, expected: &Copies, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (name, expected) in expected {
        assert_same(&found[name], expected, &format!("{what}, {name}"));
    }
}

fn assert_one_instant(copies: &Copies) -> u32 {
    let (a, b) = (records(&copies["a.img"]), records(&copies["b.qcow2"]));
    assert!(
        a == b || a == b + 1,
        "the first disk is at {a}, the second at {b}"
    );
    a
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_of_a_writing_guest_are_exact_at_one_instant_each() {
    let bench = Bench::new().await;
    let bed = writer(&bench).await;
    let mut points = Vec::new();
    for _ in 0..3 {
        let point = bed.point(PointType::Rct).await;
        points.push((point, frozen(&bed, point).await));
        writes_on(&bed).await;
    }
    let (mut base, mut newest) = (None, 0);
    for (n, (point, frozen)) in points.iter().enumerate() {
        // In full, and over the one before; meanwhile the guest writes, and what was let go is merged beneath it.
        let record = bench.vmms.db.get::<Point>(*point).unwrap();
        let full = bed.export(*point, None, &format!("full{n}")).await;
        let full = copies(&bed, &full).await;
        assert_equal(&full, frozen, "full export");
        let at = assert_one_instant(&full);
        assert!(at > newest);
        newest = at;
        if let Some(base) = base {
            bed.set_hold(*point, record.hold).await;
            let part = bed.export(*point, Some(base), "chain").await;
            assert_equal(&copies(&bed, &part).await, frozen, "differential export");
        }
        bench.vmms.tick().await;
        base = Some(*point);
    }
    bed.sweep().await;
    writes_on(&bed).await;
    let asked = Asked::default();
    let last = points[2].0;
    let dir = bench
        .path("chain")
        .join(vmms::guid(bed.vm))
        .join(vmms::guid(last));
    let proof = vmms::verify::verify_export(&bench.vmms, &dir, &asked)
        .await
        .unwrap();
    bench.done(proof).await;
    for (point, _) in &points {
        bed.destroy(*point).await;
        writes_on(&bed).await;
    }
    assert_eq!(support::files(&bench.path("images")), ["a.img", "b.qcow2"]);
    bed.state(StateChange::Stop).await;
    let now = [("a.img", ImageFormat::Raw), ("b.qcow2", ImageFormat::Qcow2)];
    let mut disks = Copies::new();
    for (name, format) in now {
        disks.insert(
            name.to_owned(),
            bench
                .contents(&bench.path(&format!("images/{name}")), format)
                .await,
        );
    }
    assert!(assert_one_instant(&disks) > newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_between_two_points_loses_no_change_of_a_writing_guest() {
    let bench = Bench::new().await;
    let bed = writer(&bench).await;
    let first = bed.point(PointType::Rct).await;
    let full = bed.export(first, None, "out").await;
    assert_one_instant(&copies(&bed, &full).await);
    writes_on(&bed).await;
    bench.vmms.machine(bed.vm).unwrap().kill().await.unwrap();
    bed.wait_off().await;
    bed.state(StateChange::Start).await;
    writes_on(&bed).await;
    let second = bed.point(PointType::Rct).await;
    let frozen = frozen(&bed, second).await;
    writes_on(&bed).await;
    let part = bed.export(second, Some(first), "out").await;
    assert_equal(&copies(&bed, &part).await, &frozen, "differential export");
    assert!(
        part.output
            .disks
            .iter()
            .all(|d| disk::Qcow2Layer::open(&d.file).unwrap().backing().is_some())
    );
    bed.state(StateChange::Stop).await;
}
