//! Snapshots on real files and a real QEMU: branches, points beside them, merging, memory, exports of the machine.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use hypervisor::fake::{FakeHypervisor, Fault};
use hypervisor::{ImageFormat, ImageTool};
use support::{Bed, Bench, KIB, MIB, files};
use uuid::Uuid;
use vmms::export::{LiveState, SystemExport};
use vmms::job::{Job, JobState};
use vmms::machine::StateChange;
use vmms::machine::{Asked, Power};
use vmms::point::{Consistency, Point, PointType};
use vmms::snapshot::{self, Snapshot, SnapshotKind};
use vmms::{Message, Result};

const SIZE: u64 = 2 * MIB;
const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, SIZE),
    ("b.img", ImageFormat::Raw, SIZE),
];

type Disks = BTreeMap<String, Vec<u8>>;

async fn take(bed: &Bed<'_>, kind: SnapshotKind) -> Uuid {
    let crash = Some(Consistency::Crash);
    let made = snapshot::create(&bed.bench.vmms, bed.vm, kind, crash, "", &Asked::default()).await;
    let (id, job) = made.unwrap();
    bed.bench.done(job).await;
    id
}

async fn job_of(bed: &Bed<'_>, started: Result<Uuid>) -> Job {
    bed.bench.done(started.unwrap()).await
}

async fn apply(bed: &Bed<'_>, id: Uuid) -> Job {
    job_of(
        bed,
        snapshot::apply(&bed.bench.vmms, id, &Asked::default()).await,
    )
    .await
}

async fn destroy(bed: &Bed<'_>, id: Uuid, tree: bool) -> Job {
    let asked = Asked::default();
    job_of(
        bed,
        snapshot::destroy(&bed.bench.vmms, id, tree, &asked).await,
    )
    .await
}

fn order(bed: &Bed<'_>, to: &str) -> SystemExport {
    SystemExport {
        snapshot: None,
        own: false,
        others: Vec::new(),
        base: None,
        directory: bed.bench.path(to),
        subdirectory: false,
        storage: true,
        runtime: true,
        excluded: Vec::new(),
        all_snapshots: false,
        live: LiveState::Crash,
        merge: false,
    }
}

async fn export(bed: &Bed<'_>, order: SystemExport) -> Job {
    let started =
        vmms::export::export_system(&bed.bench.vmms, bed.vm, order, &Asked::default()).await;
    job_of(bed, started).await
}

async fn calm(bed: &Bed<'_>) {
    for _ in 0..4 {
        bed.sweep().await;
    }
}

#[tokio::test]
async fn a_machine_goes_back_and_forth_between_its_snapshots() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    bed.write("b.img", 1, 0, MIB);
    let first = take(&bed, SnapshotKind::Disk).await;
    let at_first = bed.disks.clone();
    bed.write("a.qcow2", 2, 64 * KIB, MIB);
    let second = take(&bed, SnapshotKind::Disk).await;
    let at_second = bed.disks.clone();
    bed.write("b.img", 3, MIB, 4096);
    assert_eq!(
        snapshot::current(&bench.vmms, &bed.record()).unwrap().id,
        second
    );

    apply(&bed, first).await;
    bed.disks = at_first.clone();
    bed.assert_present().await;
    assert_eq!(
        snapshot::current(&bench.vmms, &bed.record()).unwrap().id,
        first
    );
    assert_eq!(bed.record().last_applied, Some(first));
    bed.write("a.qcow2", 4, 0, 4096);
    let third = take(&bed, SnapshotKind::Disk).await;
    let at_third = bed.disks.clone();
    let parent = |id: Uuid| bench.vmms.db.get::<Snapshot>(id).unwrap().parent;
    assert_eq!(
        [parent(first), parent(second), parent(third)],
        [None, Some(first), Some(first)]
    );

    for (id, held) in [
        (second, &at_second),
        (third, &at_third),
        (first, &at_first),
        (second, &at_second),
    ] {
        bed.write("b.img", 9, 0, SIZE);
        apply(&bed, id).await;
        bed.disks.clone_from(held);
        bed.assert_present().await;
        calm(&bed).await;
        bed.assert_present().await;
    }
    // The tree below the first goes, the present stays what it is, and each disk is one plain file again.
    destroy(&bed, first, true).await;
    assert!(snapshot::of_vm(&bench.vmms, bed.vm).is_empty());
    calm(&bed).await;
    bed.assert_present().await;
    assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.img"]);
}

#[tokio::test]
async fn a_snapshot_in_the_middle_goes_and_its_child_descends_from_its_parent() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    let mut taken = Vec::new();
    for n in 1..=3 {
        bed.write("a.qcow2", n, u64::from(n) * 64 * KIB, 64 * KIB);
        taken.push((take(&bed, SnapshotKind::Disk).await, bed.disks.clone()));
    }
    bed.write("a.qcow2", 7, 0, MIB);
    let chain = bed.disk("a.qcow2").layers.active_chain().len();
    destroy(&bed, taken[1].0, false).await;
    calm(&bed).await;
    assert_eq!(bed.disk("a.qcow2").layers.active_chain().len(), chain - 1);
    let child = bench.vmms.db.get::<Snapshot>(taken[2].0).unwrap();
    assert_eq!(child.parent, Some(taken[0].0));
    bed.assert_present().await;
    for (id, held) in [&taken[2], &taken[0]] {
        apply(&bed, *id).await;
        bed.disks.clone_from(held);
        bed.assert_present().await;
    }
}

#[tokio::test]
async fn points_stay_when_a_snapshot_is_applied_and_differences_cross_branches() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let fork = take(&bed, SnapshotKind::Disk).await;
    let at_fork = bed.disks.clone();
    bed.write("a.qcow2", 2, 0, 64 * KIB);
    bed.write("b.img", 2, MIB, 64 * KIB);
    let left = bed.point(PointType::Log).await;
    let at_left = bed.disks.clone();
    let exported = bed.export(left, None, "out").await;
    bed.assert_exported(&exported, &at_left).await;
    bed.write("a.qcow2", 3, 0, SIZE);

    apply(&bed, fork).await;
    bed.disks = at_fork;
    calm(&bed).await;
    bed.assert_present().await;
    bed.write("b.img", 4, 128 * KIB, 64 * KIB);
    let right = bed.point(PointType::Rct).await;
    let at_right = bed.disks.clone();
    bed.write("b.img", 5, 0, SIZE);
    // From one branch to the other: what the base changed since the fork is told back, too.
    let difference = bed.export(right, Some(left), "out").await;
    bed.assert_exported(&difference, &at_right).await;
    // The point on the branch that was left still holds its data.
    let again = bed.export(left, None, "again").await;
    bed.assert_exported(&again, &at_left).await;

    destroy(&bed, fork, false).await;
    for point in [left, right] {
        bed.destroy(point).await;
    }
    calm(&bed).await;
    bed.assert_present().await;
    assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.img"]);
}

#[tokio::test]
async fn a_full_snapshot_of_a_running_machine_has_its_memory_and_comes_back_saved() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let full = take(&bed, SnapshotKind::Full).await;
    let held = bed.disks.clone();
    assert_eq!(bed.record().power, Power::Running, "it goes on");
    let memory = bench
        .vmms
        .db
        .get::<Snapshot>(full)
        .unwrap()
        .memory
        .clone()
        .unwrap();
    assert!(memory.exists());
    bed.write("a.qcow2", 2, 0, SIZE);
    let refused = snapshot::apply(&bench.vmms, full, &Asked::default()).await;
    assert_eq!(refused.unwrap_err().message, Message::WrongVmState);
    bed.state(StateChange::Stop).await;
    for _ in 0..2 {
        apply(&bed, full).await;
        bed.disks.clone_from(&held);
        bed.assert_present().await;
        assert_eq!(bed.record().power, Power::Saved);
        bed.state(StateChange::Start).await;
        assert!(memory.exists(), "the snapshot keeps its own");
        bed.write("a.qcow2", 3, 0, 4096);
        bed.state(StateChange::Stop).await;
    }
    job_of(
        &bed,
        snapshot::clear(&bench.vmms, full, &Asked::default()).await,
    )
    .await;
    assert!(!memory.exists());
    apply(&bed, full).await;
    assert_eq!(bed.record().power, Power::Off);
}

#[tokio::test]
async fn a_recovery_snapshot_is_exported_converted_and_a_base_of_the_next() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let first = take(&bed, SnapshotKind::Recovery).await;
    let held = bed.disks.clone();
    bed.write("a.qcow2", 2, 0, SIZE);
    for refused in [
        snapshot::destroy(&bench.vmms, first, false, &Asked::default()).await,
        snapshot::clear(&bench.vmms, first, &Asked::default()).await,
    ] {
        assert_eq!(refused.unwrap_err().message, Message::SnapshotIsRecovery);
    }
    let template = order(&bed, "");
    let backup = |snapshot, base, merge, to: &str| SystemExport {
        snapshot: Some(snapshot),
        base,
        merge,
        directory: bench.path(to),
        ..template.clone()
    };
    let job = export(&bed, backup(first, None, false, "full")).await;
    bed.assert_exported(&job, &held).await;
    job_of(
        &bed,
        snapshot::convert(&bench.vmms, first, &Asked::default()).await,
    )
    .await;
    assert!(
        bench.vmms.db.get::<Point>(first).unwrap().hold.is_none(),
        "it was exported"
    );
    calm(&bed).await;

    let second = take(&bed, SnapshotKind::Recovery).await;
    let held = bed.disks.clone();
    bed.write("b.img", 3, 0, SIZE);
    let difference = backup(second, Some(first), false, "next");
    let job = export(&bed, difference.clone()).await;
    bed.assert_exported(&job, &held).await;
    assert!(job.output.bytes_written < held["a.qcow2"].len() as u64 * 2);
    let again =
        vmms::export::export_system(&bench.vmms, bed.vm, difference, &Asked::default()).await;
    let again = bench.vmms.wait(again.unwrap()).await.unwrap();
    assert!(again.faults[0].has(Message::ExportExists));
    let merged = backup(second, Some(first), true, "merged");
    let job = export(&bed, merged).await;
    bed.assert_exported(&job, &held).await;
    std::fs::remove_dir_all(bench.path("full")).unwrap();
    bed.assert_exported(&job, &held).await;
    assert!(
        job.output.report.iter().any(|l| l.contains("BackupIntent")),
        "{:?}",
        job.output.report
    );

    let disk = take(&bed, SnapshotKind::Disk).await;
    let refused = snapshot::convert(&bench.vmms, disk, &Asked::default()).await;
    assert_eq!(refused.unwrap_err().message, Message::SnapshotNotRecovery);
}

#[tokio::test]
async fn a_machine_is_exported_with_all_its_snapshots_and_none_is_left_behind() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    let mut held: Vec<(Uuid, Disks)> = Vec::new();
    for n in 1..=2 {
        bed.write("a.qcow2", n, 0, 64 * KIB);
        held.push((take(&bed, SnapshotKind::Disk).await, bed.disks.clone()));
    }
    bed.write("b.img", 7, 0, 64 * KIB);
    let now = bed.disks.clone();
    let all = SystemExport {
        all_snapshots: true,
        live: LiveState::Saved,
        subdirectory: true,
        ..order(&bed, "all")
    };
    let job = export(&bed, all).await;
    bed.assert_exported(&job, &now).await;
    assert!(job.output.machines[0].runtime.as_ref().unwrap().exists());
    assert_eq!(bed.record().power, Power::Running);
    assert_eq!(
        snapshot::of_vm(&bench.vmms, bed.vm).len(),
        2,
        "the one taken for the export is gone"
    );
    let root = bench.path("all").join(vmms::guid(bed.vm));
    for (id, disks) in &held {
        let dir = root
            .join("Snapshots")
            .join(vmms::guid(*id))
            .join("Virtual Hard Disks");
        for (name, bytes) in disks {
            let stem = name.split('.').next().unwrap();
            let file = std::fs::read_dir(&dir)
                .unwrap()
                .map(|e| e.unwrap().path())
                .find(|p| {
                    p.extension().is_some_and(|e| e == "qcow2")
                        && p.file_name().unwrap().to_string_lossy().starts_with(stem)
                })
                .unwrap();
            support::assert_same(
                &bench.contents(&file, ImageFormat::Qcow2).await,
                bytes,
                name,
            );
        }
    }
    let device = bed.device("b.img");
    let less = SystemExport {
        excluded: vec![device],
        ..order(&bed, "less")
    };
    let job = export(&bed, less).await;
    assert_eq!(job.output.disks.len(), 1);
}

#[tokio::test]
async fn an_export_that_cannot_be_written_leaves_neither_files_nor_a_snapshot() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    std::fs::write(bench.path("file"), "in the way").unwrap();
    let order = order(&bed, "file/below");
    let job = vmms::export::export_system(&bench.vmms, bed.vm, order, &Asked::default()).await;
    let job = bench.vmms.wait(job.unwrap()).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    assert!(job.faults[0].chain().len() > 1);
    assert!(bench.vmms.db.all::<Snapshot>().is_empty());
    calm(&bed).await;
    assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.img"]);
    bed.assert_present().await;
}

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// A place in a list of that length.
    fn pick(&mut self, length: usize) -> usize {
        usize::try_from(self.roll(length as u64)).unwrap()
    }
}

/// One random life of a machine with snapshots and points, restarts of the service included.
async fn live(seed: u64) {
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15 ^ (seed + 1));
    let mut bench = Bench::new().await;
    let (vm, mut disks) = {
        let bed = bench.machine(&TWO).await;
        (bed.vm, bed.disks)
    };
    let mut taken: Vec<(Uuid, Disks)> = Vec::new();
    let mut points: Vec<(Uuid, Disks)> = Vec::new();
    for step in 0..28 {
        if dice.roll(10) == 0 {
            bench.restart().await;
        }
        let mut bed = Bed {
            bench: &bench,
            vm,
            disks,
        };
        for _ in 0..dice.roll(3) {
            let name = ["a.qcow2", "b.img"][dice.pick(2)];
            let offset = dice.roll(SIZE / 4096) * 4096;
            let length = (1 + dice.roll((SIZE - offset) / 512)).min(256) * 512;
            bed.write(name, u8::try_from(dice.roll(256)).unwrap(), offset, length);
        }
        match dice.roll(9) {
            0..=2 => taken.push((take(&bed, SnapshotKind::Disk).await, bed.disks.clone())),
            3 => points.push((bed.point(PointType::Log).await, bed.disks.clone())),
            4 => {
                let id = take(&bed, SnapshotKind::Recovery).await;
                job_of(
                    &bed,
                    snapshot::convert(&bench.vmms, id, &Asked::default()).await,
                )
                .await;
                points.push((id, bed.disks.clone()));
            }
            5 | 6 => {
                if !taken.is_empty() {
                    let (id, held) = &taken[dice.pick(taken.len())];
                    apply(&bed, *id).await;
                    bed.disks.clone_from(held);
                }
            }
            7 => {
                if !taken.is_empty() {
                    let (id, _) = taken.swap_remove(dice.pick(taken.len()));
                    destroy(&bed, id, dice.roll(4) == 0).await;
                    taken.retain(|(id, _)| bench.vmms.db.get::<Snapshot>(*id).is_ok());
                }
            }
            _ => {
                // Any older point is a base, whatever branch it is on.
                if points.len() >= 2 {
                    let n = 1 + dice.pick(points.len() - 1);
                    let (point, held) = &points[n];
                    let base = points[dice.pick(n)].0;
                    if bench.vmms.db.get::<Point>(*point).unwrap().holds_content() {
                        let base_out = format!("base-{step}");
                        // The differences alone are judged: the base lies beneath them as it was.
                        let whole = bench.vmms.db.get::<Point>(base).unwrap().holds_content();
                        if whole {
                            bed.export(base, None, &base_out).await;
                            let job = bed.export(*point, Some(base), &base_out).await;
                            bed.assert_exported(&job, held).await;
                        }
                    }
                }
            }
        }
        if dice.roll(2) == 0 {
            bed.sweep().await;
        }
        bed.assert_present().await;
        disks = bed.disks;
    }
    let mut bed = Bed {
        bench: &bench,
        vm,
        disks,
    };
    for (id, held) in taken.clone() {
        apply(&bed, id).await;
        bed.disks = held;
        bed.assert_present().await;
    }
    for (point, _) in &points {
        bed.destroy(*point).await;
    }
    for (id, _) in &taken {
        destroy(&bed, *id, false).await;
    }
    calm(&bed).await;
    bed.assert_present().await;
    assert_eq!(
        files(&bench.path("images")),
        ["a.qcow2", "b.img"],
        "seed {seed}"
    );
}

#[tokio::test]
async fn random_lives_with_branches_lose_nothing() {
    for seed in 0..3 {
        live(seed).await;
    }
}

#[tokio::test]
async fn a_deleted_machine_takes_its_snapshots_along() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    let first = take(&bed, SnapshotKind::Disk).await;
    bed.write("a.qcow2", 1, 0, MIB);
    take(&bed, SnapshotKind::Recovery).await;
    apply(&bed, first).await;
    bed.write("a.qcow2", 2, 0, 4096);
    let vm: Arc<vmms::machine::Vm> = bed.record();
    job_of(
        &bed,
        vmms::machine::destroy(&bench.vmms, vm.id, &Asked::default()).await,
    )
    .await;
    assert!(bench.vmms.db.all::<Snapshot>().is_empty());
    assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.img"]);
}

#[tokio::test]
async fn a_restored_machine_goes_on_with_its_incremental_chain() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let first = bed.point(PointType::Rct).await;
    bed.export(first, None, "out").await;
    bed.write("b.img", 2, 0, 64 * KIB);
    let second = bed.point(PointType::Rct).await;
    let held = bed.disks.clone();
    bed.export(second, Some(first), "out").await;
    let last = bench
        .path("out")
        .join(vmms::guid(bed.vm))
        .join(vmms::guid(second));
    let config = last
        .join("Virtual Machines")
        .join(format!("{}.json", vmms::guid(bed.vm)));
    let asked = Asked::default();
    // The machine is lost with its disks.
    let taken = vmms::import::import_planned(&bench.vmms, &last, true, None, &asked).await;
    assert_eq!(taken.unwrap_err().message, Message::NameTaken);
    job_of(
        &bed,
        vmms::machine::destroy(&bench.vmms, bed.vm, &asked).await,
    )
    .await;
    std::fs::remove_dir_all(bench.path("images")).unwrap();

    let into = bench.path("images");
    let made = vmms::import::import_planned(&bench.vmms, &last, true, Some(&into), &asked).await;
    let (vm, job) = made.unwrap();
    bench.done(job).await;
    assert_eq!(vm, bed.vm);
    assert!(bed.record().planned);
    let refused = vmms::machine::request_state(&bench.vmms, vm, StateChange::Start, &asked).await;
    assert_eq!(refused.unwrap_err().message, Message::WrongVmState);
    job_of(
        &bed,
        vmms::machine::validate_planned(&bench.vmms, vm, &asked).await,
    )
    .await;
    job_of(&bed, vmms::machine::realize(&bench.vmms, vm, &asked).await).await;
    assert!(!bed.record().planned);
    // Restored, both disks are qcow2 images.
    let name = |n: String| n.replace(".img", ".qcow2");
    bed.disks = held
        .into_iter()
        .map(|(n, bytes)| (name(n), bytes))
        .collect();
    bed.assert_present().await;

    let (point, job) = vmms::adopt::adopt_point(&bench.vmms, vm, &config, &asked)
        .await
        .unwrap();
    bench.done(job).await;
    assert_eq!(point, second, "the point is itself again");
    let again = vmms::adopt::adopt_point(&bench.vmms, vm, &config, &asked).await;
    assert_eq!(again.unwrap_err().message, Message::NameTaken);
    bed.write("a.qcow2", 3, 64 * KIB, 4096);
    let third = bed.point(PointType::Rct).await;
    let held = bed.disks.clone();
    let job = bed.export(third, Some(second), "out").await;
    bed.assert_exported(&job, &held).await;
    assert!(
        job.output.bytes_written < MIB,
        "{} bytes",
        job.output.bytes_written
    );
    let dir = bench
        .path("out")
        .join(vmms::guid(vm))
        .join(vmms::guid(third));
    job_of(
        &bed,
        vmms::verify::verify_export(&bench.vmms, &dir, &asked).await,
    )
    .await;
}

#[tokio::test]
async fn a_point_is_not_taken_over_by_disks_that_are_something_else() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let point = bed.point(PointType::Rct).await;
    bed.export(point, None, "out").await;
    let asked = Asked::default();
    let root = bench.path("out").join(vmms::guid(bed.vm));
    job_of(
        &bed,
        vmms::machine::destroy(&bench.vmms, bed.vm, &asked).await,
    )
    .await;
    std::fs::remove_dir_all(bench.path("images")).unwrap();
    let into = bench.path("images");
    let made = vmms::import::import_planned(&bench.vmms, &root, true, Some(&into), &asked).await;
    bench.done(made.unwrap().1).await;
    job_of(
        &bed,
        vmms::machine::realize(&bench.vmms, bed.vm, &asked).await,
    )
    .await;
    // One byte in the second disk, which is all zero.
    let zeros = bed.disks.remove("b.img").unwrap();
    bed.disks.insert("b.qcow2".to_owned(), zeros);
    bed.write("b.qcow2", 9, SIZE - 512, 512);
    let (_, job) = vmms::adopt::adopt_point(&bench.vmms, bed.vm, &root, &asked)
        .await
        .unwrap();
    let job = bench.vmms.wait(job).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    assert!(
        job.faults[0].has(Message::DigestMismatch),
        "{:?}",
        job.faults
    );
    assert!(bench.vmms.db.all::<Point>().is_empty());
    bed.assert_present().await;
}

#[tokio::test]
async fn a_machine_exported_with_its_memory_goes_on_where_it_was() {
    let bench = Bench::with(vmms::Options {
        import_memory: true,
        ..support::options()
    })
    .await;
    let mut bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let held = bed.disks.clone();
    let live = SystemExport {
        live: LiveState::Saved,
        ..order(&bed, "live")
    };
    export(&bed, live).await;
    let asked = Asked::default();
    // Memory is code: without being asked for it is left out, and that is told.
    let (from, plain) = (bench.path("live"), bench.path("plain"));
    let made = vmms::import::import_export(&bench.vmms, &from, None, &plain, false, &asked).await;
    let (vm, job) = made.unwrap();
    let job = bench.done(job).await;
    let record = bench.vmms.db.get::<vmms::machine::Vm>(vm).unwrap();
    assert_eq!(
        (record.power, record.saved_state.clone()),
        (Power::Off, None)
    );
    assert!(
        job.output
            .report
            .iter()
            .any(|l| l.contains("memory is left out"))
    );
    let into = bench.path("imported");
    let made =
        vmms::import::import_planned(&bench.vmms, &bench.path("live"), false, Some(&into), &asked)
            .await;
    let (vm, job) = made.unwrap();
    bench.done(job).await;
    job_of(&bed, vmms::machine::realize(&bench.vmms, vm, &asked).await).await;
    let record = bench.vmms.db.get::<vmms::machine::Vm>(vm).unwrap();
    assert_eq!(record.power, Power::Saved);
    for (_, disk) in record.disks() {
        let stem = disk
            .path
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let (name, bytes) = held.iter().find(|(n, _)| n.starts_with(&stem)).unwrap();
        support::assert_same(
            &bench.contents(&disk.path, ImageFormat::Qcow2).await,
            bytes,
            name,
        );
    }
    job_of(
        &bed,
        vmms::machine::request_state(&bench.vmms, vm, StateChange::Start, &asked).await,
    )
    .await;
    assert_eq!(
        bench.vmms.db.get::<vmms::machine::Vm>(vm).unwrap().power,
        Power::Running
    );
}

#[tokio::test]
async fn a_branch_that_was_left_is_merged_while_the_machine_runs_on_another() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let fork = take(&bed, SnapshotKind::Disk).await;
    let at_fork = bed.disks.clone();
    let mut left = Vec::new();
    for n in 2..=4 {
        bed.write("a.qcow2", n, u64::from(n) * 64 * KIB, 128 * KIB);
        left.push((take(&bed, SnapshotKind::Disk).await, bed.disks.clone()));
    }
    apply(&bed, fork).await;
    bed.disks = at_fork;
    bed.state(StateChange::Start).await;
    bed.write("b.img", 9, 0, 64 * KIB);
    let layers = files(&bench.path("images")).len();
    // The lowest and the middle one of the other branch go; the upper one stays what it was.
    destroy(&bed, left[0].0, false).await;
    destroy(&bed, left[1].0, false).await;
    calm(&bed).await;
    assert_eq!(
        files(&bench.path("images")).len(),
        layers - 4,
        "two layers less on each disk"
    );
    bed.write("b.img", 8, MIB, 64 * KIB);
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
    apply(&bed, left[2].0).await;
    bed.disks.clone_from(&left[2].1);
    bed.assert_present().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_fails_at_any_call_leaves_the_machine_as_it_was() {
    for method in ["prepare_layers", "mark", "save_state"] {
        let fake = Arc::new(FakeHypervisor::with_images(ImageTool::default()));
        let bench = Bench::on(support::options(), fake.clone()).await;
        let bed = bench.machine(&TWO).await;
        bed.state(StateChange::Start).await;
        fake.script().on_next(method, Fault::refuse("scripted"));
        let kind = match method {
            "save_state" => SnapshotKind::Full,
            _ => SnapshotKind::Recovery,
        };
        let crash = Some(Consistency::Crash);
        let made = snapshot::create(&bench.vmms, bed.vm, kind, crash, "", &Asked::default()).await;
        let job = bench.vmms.wait(made.unwrap().1).await.unwrap();
        assert_eq!(job.state, JobState::Exception, "{method}");
        assert_eq!(job.faults[0].message, Message::SnapshotFailed, "{method}");
        assert!(bench.vmms.db.all::<Snapshot>().is_empty(), "{method}");
        assert_eq!(bed.record().power, Power::Running, "{method}");
        calm(&bed).await;
        assert_eq!(
            files(&bench.path("images")),
            ["a.qcow2", "b.img"],
            "{method}"
        );
        // The next one works.
        take(&bed, kind).await;
    }
}
