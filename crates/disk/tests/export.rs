//! Exporting: what the pump writes, judged by `qemu-img check` and `qemu-img compare`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod images;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use disk::blocks::{BlockHash, Merged};
use disk::export::{changed_blocks, differing_bytes, estimate};
use disk::{
    BLOCK_SIZE, Backing, CancelFlag, Chain, ChangeMap, DiskReport, Error, ErrorKind, ExportPlan,
    LayerFormat, LayerSpec, Progress, Qcow2Layer, Source, block_count, export_disk, flatten,
};
use images::*;

const MIB: u64 = 1 << 20;
/// 100 MiB and one sector.
const SIZE: u64 = 100 * MIB + 512;

fn quiet(_: Progress) {}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn full(source: &dyn Source, dir: &Path, file: &str) -> DiskReport {
    let mut plan = ExportPlan::full(source, dir.join(file));
    plan.block_list = Some(dir.join(file).with_extension("map").into());
    export_disk(&plan, &quiet, &CancelFlag::new()).unwrap()
}

/// The digest computed the plain way from a raw file.
fn plain_digest(raw: &Path) -> blake3::Hash {
    let bytes = fs::read(raw).unwrap();
    let mut hasher = blake3::Hasher::new();
    for block in bytes.chunks(BLOCK_SIZE as usize) {
        hasher.update(blake3::hash(block).as_bytes());
    }
    hasher.finalize()
}

struct Point {
    raw: PathBuf,
    image: PathBuf,
    list: PathBuf,
}

/// A guest writes, a point is made, again and again; every export must read as the disk at its point.
fn full_and_differentials_equal_the_disk_at_each_point(options: &str, sizes: &[u64], seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut dice = Dice(seed);
    let mut specs: Vec<LayerSpec> = Vec::new();
    let mut points: Vec<Point> = Vec::new();
    for (n, size) in sizes.iter().copied().enumerate() {
        let layer = dir.path().join(format!("layer{n}.qcow2"));
        let below = specs.last().map(|spec| (spec.path.clone(), "qcow2"));
        let opts = if n == 0 { "" } else { options };
        create(
            &layer,
            size,
            opts,
            below.as_ref().map(|(p, f)| (p.as_path(), *f)),
        );
        qemu_io(&layer, "qcow2", &guest_writes(&mut dice, size, 120));
        specs.push(LayerSpec::qcow2(&layer));
        let raw = dir.path().join(format!("point{n}.raw"));
        to_raw(&layer, &raw);

        let chain = Chain::open(&specs).unwrap();
        let image = out.join(format!("disk-{n}.qcow2"));
        let list = image.with_extension("map");
        let changes = Qcow2Layer::open(&layer).unwrap().allocation().unwrap();
        let mut plan = match points.last() {
            None => ExportPlan::full(&chain, &image),
            Some(base) => {
                let backing = Backing {
                    file: name(&base.image),
                    format: "qcow2".into(),
                };
                ExportPlan::differential(&chain, &changes, backing, &image)
            }
        };
        plan.base_lists = points.iter().map(|p| p.list.clone()).collect();
        plan.block_list = Some(list.clone().into());
        plan.threads = 1 + n % 4;
        let last = Mutex::new(None);
        let note = |p: Progress| *last.lock().unwrap() = Some(p);
        let report = export_disk(&plan, &note, &CancelFlag::new()).unwrap();

        check(&image);
        assert_eq!(Qcow2Layer::open(&image).unwrap().virtual_size(), size);
        identical(&raw, "raw", &image, "qcow2");
        assert_eq!(report.digest, Some(plain_digest(&raw)), "point {n}");
        assert_eq!(report.bytes_written, fs::metadata(&image).unwrap().len());
        let progress = last.into_inner().unwrap().unwrap();
        assert_eq!(progress.done, progress.total);
        assert_eq!(progress.written, report.data_blocks * BLOCK_SIZE);
        points.push(Point { raw, image, list });
    }
    // The whole chain of exports, flattened, equals the last point, in either format.
    let specs: Vec<_> = points.iter().map(|p| LayerSpec::qcow2(&p.image)).collect();
    let chain = Chain::open(&specs).unwrap();
    let last = points.last().unwrap();
    for (format, file) in [
        (LayerFormat::Raw, "flat.raw"),
        (LayerFormat::Qcow2, "flat.qcow2"),
    ] {
        let flat = dir.path().join(file);
        flatten(&chain, &flat, format, &quiet, &CancelFlag::new()).unwrap();
        let name = if format == LayerFormat::Raw {
            "raw"
        } else {
            "qcow2"
        };
        identical(&last.raw, "raw", &flat, name);
    }
    let left: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2 * points.len(), "{left:?}");
}

#[test]
fn full_and_differentials_over_plain_layers_are_exact() {
    full_and_differentials_equal_the_disk_at_each_point("", &[SIZE; 4], 101);
}

#[test]
fn full_and_differentials_over_layers_with_subclusters_are_exact() {
    full_and_differentials_equal_the_disk_at_each_point("extended_l2=on", &[SIZE; 4], 102);
}

#[test]
fn differentials_of_a_disk_that_grows_and_shrinks_are_exact() {
    let sizes = [
        SIZE,
        SIZE + 3 * MIB,
        40 * MIB + 1024,
        40 * MIB + 70_144,
        64 * MIB,
    ];
    full_and_differentials_equal_the_disk_at_each_point("extended_l2=on", &sizes, 103);
}

#[test]
fn zeros_in_a_differential_hide_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("b.qcow2"), dir.path().join("t.qcow2"));
    create(&base, SIZE, "", None);
    qemu_io(&base, "qcow2", "write -P 9 0 40M\nwrite -P 3 100M 512\n");
    create(&top, SIZE, "extended_l2=on", Some((&base, "qcow2")));
    // Zeros by flag over a large range, zeros as data, and a hole punched in the short last block.
    let zeros = "write -z 1M 30M\nwrite -P 0 32M 128k\nwrite -z 100M 512\nwrite -z 39M 4k\n";
    qemu_io(&top, "qcow2", zeros);
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    full(
        &Chain::open(&[LayerSpec::qcow2(&base)]).unwrap(),
        &out,
        "b.qcow2",
    );
    let chain = Chain::open(&[LayerSpec::qcow2(&base), LayerSpec::qcow2(&top)]).unwrap();
    let changes = Qcow2Layer::open(&top).unwrap().allocation().unwrap();
    let backing = Backing {
        file: "b.qcow2".into(),
        format: "qcow2".into(),
    };
    let plan = ExportPlan::differential(&chain, &changes, backing, out.join("t.qcow2"));
    let report = export_disk(&plan, &quiet, &CancelFlag::new()).unwrap();
    check(&out.join("t.qcow2"));
    identical(&top, "qcow2", &out.join("t.qcow2"), "qcow2");
    // Only the block that is zero in part holds data.
    assert_eq!(
        (report.data_blocks, report.zero_blocks),
        (1, 30 * 16 + 2 + 1)
    );
}

#[test]
fn a_full_export_holds_no_zero_block() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw_file(&dir.path().join("r"), SIZE);
    qemu_io(
        &raw,
        "raw",
        "write -P 1 0 64k\nwrite -P 0 1M 8M\nwrite -P 2 50M 4k\n",
    );
    let chain = Chain::open(&[LayerSpec::raw(&raw)]).unwrap();
    let estimate = estimate(&chain, None).unwrap();
    let report = full(&chain, dir.path(), "x.qcow2");
    assert!(
        (report.bytes_written..12 * MIB).contains(&estimate),
        "{estimate}"
    );
    assert_eq!(report.data_blocks, 2);
    assert_eq!(report.zero_blocks, block_count(SIZE) - 2);
    assert_eq!(report.extents, 2);
    // Header, two blocks, one L2 table, the L1 table, one cluster of counts and their table.
    assert_eq!(report.bytes_written, 7 * BLOCK_SIZE);
    identical(&raw, "raw", &dir.path().join("x.qcow2"), "qcow2");
    let mut lists = Merged::open(&[dir.path().join("x.map")]).unwrap();
    let first = lists.next_run().unwrap().unwrap();
    assert_eq!(
        first.hash,
        BlockHash::Hash(blake3::hash(&[1u8; BLOCK_SIZE as usize]))
    );
}

#[test]
fn an_empty_disk_and_a_huge_sparse_one_are_exported() {
    let dir = tempfile::tempdir().unwrap();
    for (n, size) in [0u64, 512, 8 << 40].into_iter().enumerate() {
        let (image, file) = (
            dir.path().join(format!("{n}.qcow2")),
            format!("{n}.out.qcow2"),
        );
        create(&image, size, "cluster_size=2M", None);
        if size > MIB {
            qemu_io(&image, "qcow2", "write -P 1 7T 64k\nwrite -P 2 3T 1M\n");
        }
        let chain = Chain::open(&[LayerSpec::qcow2(&image)]).unwrap();
        full(&chain, dir.path(), &file);
        check(&dir.path().join(&file));
        identical(&image, "qcow2", &dir.path().join(&file), "qcow2");
    }
}

#[test]
fn a_cancelled_export_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw_file(&dir.path().join("r"), SIZE);
    qemu_io(&raw, "raw", "write -P 1 0 90M\n");
    let chain = Chain::open(&[LayerSpec::raw(&raw)]).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let cancel = CancelFlag::new();
    let mut plan = ExportPlan::full(&chain, out.join("x.qcow2"));
    plan.block_list = Some(out.join("x.map").into());
    let stop = |p: Progress| {
        if p.done > 10 * MIB {
            cancel.cancel();
        }
    };
    assert!(matches!(
        export_disk(&plan, &stop, &cancel),
        Err(Error::Cancelled)
    ));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}

/// A source that fails in the middle.
struct Broken(u64);

impl Source for Broken {
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> disk::Result<()> {
        if offset >= self.0 {
            return Err(Error::Io {
                action: "read",
                path: "/broken".into(),
                offset: Some(offset),
                source: std::io::Error::from_raw_os_error(5),
            });
        }
        buf.fill(1);
        Ok(())
    }
    fn extents(&self, range: std::ops::Range<u64>) -> disk::Result<Vec<disk::SourceExtent>> {
        let len = range.end - range.start;
        Ok(vec![disk::SourceExtent {
            start: range.start,
            len,
            zero: false,
        }])
    }
}

#[test]
fn a_failed_read_leaves_nothing_and_names_path_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let plan = ExportPlan::full(&Broken(30 * MIB), dir.path().join("x.qcow2"));
    let error = export_disk(&plan, &quiet, &CancelFlag::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    assert!(
        error
            .to_string()
            .starts_with("cannot read /broken at offset "),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn existing_files_are_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw_file(&dir.path().join("r"), MIB);
    let chain = Chain::open(&[LayerSpec::raw(&raw)]).unwrap();
    let target = dir.path().join("x.qcow2");
    fs::write(&target, "precious").unwrap();
    let error = export_disk(
        &ExportPlan::full(&chain, &target),
        &quiet,
        &CancelFlag::new(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

#[test]
fn plans_that_contradict_themselves_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw_file(&dir.path().join("r"), MIB);
    let chain = Chain::open(&[LayerSpec::raw(&raw)]).unwrap();
    let backing = |file: &str| Backing {
        file: file.into(),
        format: "qcow2".into(),
    };
    let map = ChangeMap::of(0..MIB);
    let beyond = ChangeMap::of(0..MIB + 1);
    let target = dir.path().join("x.qcow2");
    let mut plans = vec![
        ExportPlan::differential(&chain, &beyond, backing("b"), &target),
        ExportPlan::differential(&chain, &map, backing("/etc/passwd"), &target),
        ExportPlan::differential(&chain, &map, backing("nbd:host"), &target),
        ExportPlan::differential(&chain, &map, backing(""), &target),
    ];
    let mut no_backing = ExportPlan::full(&chain, &target);
    no_backing.changes = Some(&map);
    plans.push(no_backing);
    for plan in plans {
        let error = export_disk(&plan, &quiet, &CancelFlag::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn changes_are_found_by_hashes_when_there_is_no_map() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(9);
    let disk = dir.path().join("d.qcow2");
    create(&disk, SIZE, "", None);
    qemu_io(&disk, "qcow2", &guest_writes(&mut dice, SIZE, 100));
    full(
        &Chain::open(&[LayerSpec::qcow2(&disk)]).unwrap(),
        dir.path(),
        "base.qcow2",
    );
    let lists = [dir.path().join("base.map")];
    let same = Chain::open(&[LayerSpec::qcow2(&disk)]).unwrap();
    let none = changed_blocks(&same, &lists, &quiet, &CancelFlag::new()).unwrap();
    assert!(none.is_empty(), "{none:?}");

    // Changed in place, behind our back, and grown.
    qemu_io(
        &disk,
        "qcow2",
        "write -P 201 5M 4k\nwrite -P 202 60M 200k\nwrite -z 0 1M\n",
    );
    tool(
        "qemu-img",
        &["resize", "-q", "-f", "qcow2", text(&disk), "105M"],
    );
    let now = Chain::open(&[LayerSpec::qcow2(&disk)]).unwrap();
    let changes = changed_blocks(&now, &lists, &quiet, &CancelFlag::new()).unwrap();
    assert!(changes.contains(5 * MIB) && changes.contains(SIZE) && changes.total() < 10 * MIB);
    let backing = Backing {
        file: "base.qcow2".into(),
        format: "qcow2".into(),
    };
    let target = dir.path().join("repaired.qcow2");
    let mut plan = ExportPlan::differential(&now, &changes, backing, &target);
    plan.base_lists = lists.to_vec();
    plan.block_list = Some(dir.path().join("repaired.map").into());
    let report = export_disk(&plan, &quiet, &CancelFlag::new()).unwrap();
    identical(&disk, "qcow2", &target, "qcow2");
    let raw = dir.path().join("raw");
    to_raw(&disk, &raw);
    assert_eq!(report.digest, Some(plain_digest(&raw)));
}

#[test]
fn two_disks_differ_in_exactly_the_sectors_that_are_not_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(77);
    let (base, top) = (dir.path().join("base.qcow2"), dir.path().join("top.qcow2"));
    create(&base, SIZE, "", None);
    qemu_io(&base, "qcow2", &guest_writes(&mut dice, SIZE, 150));
    // A little larger than its base, and not a whole number of blocks.
    let grown = SIZE + 3 * 512;
    create(&top, grown, "extended_l2=on", Some((&base, "qcow2")));
    qemu_io(&top, "qcow2", &guest_writes(&mut dice, grown, 150));
    let (older, newer) = (dir.path().join("older"), dir.path().join("newer"));
    to_raw(&base, &older);
    to_raw(&top, &newer);
    let (mut old, new) = (fs::read(&older).unwrap(), fs::read(&newer).unwrap());
    old.resize(new.len(), 0);
    let sectors = new.chunks(512).zip(old.chunks(512)).enumerate();
    let expected: ChangeMap = sectors
        .filter(|(_, (a, b))| a != b)
        .map(|(n, _)| n as u64 * 512..(n as u64 + 1) * 512)
        .collect();
    assert!(expected.len() > 50, "{}", expected.len());

    let below = Chain::open(&[LayerSpec::qcow2(&base)]).unwrap();
    let above = Chain::open(&[LayerSpec::qcow2(&base), LayerSpec::qcow2(&top)]).unwrap();
    let found = differing_bytes(&above, &below, &quiet, &CancelFlag::new()).unwrap();
    assert_eq!(found, expected);
    // From the other side: what the base lacks is compared with nothing.
    let back = differing_bytes(&below, &above, &quiet, &CancelFlag::new()).unwrap();
    assert_eq!(back, expected.clip(SIZE));
    let stopped = CancelFlag::new();
    stopped.cancel();
    let error = differing_bytes(&above, &below, &quiet, &stopped).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

/// Set for the process that runs into its limit.
const LIMITED: &str = "KVMMS_TEST_LIMITED_DIR";

#[test]
fn a_target_without_room_leaves_nothing_and_keeps_the_cause() {
    if let Some(dir) = std::env::var_os(LIMITED) {
        let dir = PathBuf::from(dir);
        let plan = ExportPlan::full(&Broken(u64::MAX), dir.join("x.qcow2"));
        let error = export_disk(&plan, &quiet, &CancelFlag::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
        assert!(
            error.to_string().contains("x.qcow2.partial at offset "),
            "{error}"
        );
        assert!(std::error::Error::source(&error).is_some());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        return;
    }
    // This very test again, in a process that may write 2 MiB per file and gets an error instead of a signal.
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 4096; exec \"$@\"";
    let this = "a_target_without_room_leaves_nothing_and_keeps_the_cause";
    let output = std::process::Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", this])
        .env(LIMITED, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}
