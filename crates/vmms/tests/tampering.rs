//! Files of a disk changed, cut, exchanged or taken away behind the service's back: what is condemned, what is not, and what a
//! differential export makes of it under each policy. The judge is a copy of what the disks hold, kept by the test.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hypervisor::ImageFormat;
use support::deadly::Deadly;
use support::{Bed, Bench, KIB, MIB, options};
use tokio::sync::watch;
use uuid::Uuid;
use vmms::job::{Job, JobRequest, JobState};
use vmms::machine::Asked;
use vmms::machine::StateChange;
use vmms::point::{Point, PointType, problems};
use vmms::{Message, Options, TamperingPolicy};

const SIZE: u64 = 8 * MIB + 512;
const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, SIZE),
    ("b.img", ImageFormat::Raw, 2 * MIB),
];

const BIG: [(&str, ImageFormat, u64); 1] = [("a.img", ImageFormat::Raw, 96 * MIB)];

fn with(tampering: TamperingPolicy) -> Options {
    Options {
        tampering,
        ..options()
    }
}

fn record(bed: &Bed<'_>, point: Uuid) -> Point {
    (*bed.bench.vmms.db.get::<Point>(point).unwrap()).clone()
}

fn trouble(bed: &Bed<'_>, point: Uuid) -> Vec<String> {
    problems(&bed.bench.vmms, &record(bed, point)).all()
}

/// The file of a layer, the base being 0.
fn layer(bed: &Bed<'_>, name: &str, nth: usize) -> PathBuf {
    bed.disk(name).layers.active_chain()[nth].path.clone()
}

/// Writes into a file as a stranger does.
fn meddle(path: &Path, format: &str, byte: u8, offset: u64, length: u64) {
    let done = std::process::Command::new("qemu-io")
        .args([
            "-f",
            format,
            "-c",
            &format!("write -P {byte} {offset} {length}"),
        ])
        .arg(path)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stdout)
    );
}

async fn assert_proven(bed: &Bed<'_>, dir: &str) {
    let asked = Asked::default();
    let proof = vmms::verify::verify_export(&bed.bench.vmms, &bed.bench.path(dir), &asked).await;
    let proof = bed.bench.done(proof.unwrap()).await;
    let proven = |line: &String| line.contains("proven");
    assert!(
        proof.output.report.iter().all(proven),
        "{:?}",
        proof.output.report
    );
}

/// A machine with a point that was exported, then changed behind our back in the middle of what both disks hold, then
/// used a little, then with a second point.
async fn meddled(bed: &mut Bed<'_>) -> (Uuid, Uuid) {
    bed.write("a.qcow2", 1, 0, 6 * MIB);
    bed.write("b.img", 2, 0, MIB);
    let first = bed.point(PointType::Log).await;
    let full = bed.export(first, None, "out").await;
    bed.assert_exported(&full, &bed.disks).await;
    bed.write("a.qcow2", 3, 6 * MIB, 64 * KIB);
    assert_eq!(trouble(bed, first), [""; 0]);
    meddle(&layer(bed, "a.qcow2", 0), "qcow2", 9, 3 * MIB, 4096);
    let at = (3 * MIB) as usize;
    bed.disks.get_mut("a.qcow2").unwrap()[at..at + 4096].fill(9);
    let told = trouble(bed, first);
    assert_eq!(told.len(), 2, "content and differences: {told:?}");
    assert!(told.iter().all(|l| l.contains("a.qcow2 was changed")));
    let second = bed.point(PointType::Log).await;
    assert_eq!(trouble(bed, second), [""; 0], "it is what the guest sees");
    assert_eq!(trouble(bed, first).len(), 2, "and the old one stays bad");
    (first, second)
}

fn assert_told(bed: &Bed<'_>, job: &Job, point: Uuid, words: &str, warning: Message) {
    assert_eq!(job.output.decisions.len(), 1, "{:?}", job.output.decisions);
    assert!(job.output.decisions[0].contains(words));
    assert!(
        job.output.decisions[0].contains("a.qcow2 was changed"),
        "the reason: {:?}",
        job.output.decisions
    );
    assert_eq!(job.faults.len(), 1);
    assert_eq!(job.faults[0].message, warning);
    let record = record(bed, point);
    assert_eq!(record.export_decisions.len(), 1);
    assert!(record.export_decisions[0].what.contains(words));
    let manifest = std::fs::read_to_string(
        job.output.disks[0]
            .file
            .parent()
            .unwrap()
            .with_file_name("manifest.json"),
    );
    let manifest = manifest.unwrap();
    assert!(manifest.contains(words), "{manifest}");
    assert!(manifest.contains("a.qcow2 was changed"), "{manifest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repaired_difference_is_exact_and_resends_only_what_changed() {
    let bench = Bench::with(with(TamperingPolicy::Repair)).await;
    let mut bed = bench.machine(&TWO).await;
    let (first, second) = meddled(&mut bed).await;
    // The export of the base is not even needed to find out; it is to lay the difference over.
    std::fs::rename(bench.path("out"), bench.path("away")).unwrap();
    let copies = bed.disks.clone();
    let job = bed.export(second, Some(first), "part").await;
    std::fs::rename(bench.path("away"), bench.path("out")).unwrap();
    assert!(
        job.output.bytes_written < MIB,
        "two blocks and tables: {}",
        job.output.bytes_written
    );
    assert_eq!(job.output.base, Some(first));
    assert_told(
        &bed,
        &job,
        second,
        "comparing hashes",
        Message::ExportRepaired,
    );
    // Again, beside its base: what lies there opens as the whole disk.
    let job = bed.export(second, Some(first), "out").await;
    bed.assert_exported(&job, &copies).await;
    assert_proven(&bed, "out").await;
    // The chain goes on from there, tracked as ever.
    bed.write("a.qcow2", 4, MIB, 4096);
    let third = bed.point(PointType::Log).await;
    let job = bed.export(third, Some(second), "out").await;
    bed.assert_exported(&job, &bed.disks).await;
    assert_eq!(job.output.decisions, [""; 0]);
    assert_proven(&bed, "out").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kept_hashes_those_of_the_exports_serve_and_without_any_the_export_fails() {
    let bench = Bench::with(with(TamperingPolicy::Repair)).await;
    let mut bed = bench.machine(&TWO).await;
    let (first, second) = meddled(&mut bed).await;
    for disk in record(&bed, first).at.disks {
        let list = disk.blocks.unwrap();
        let mut bytes = std::fs::read(&list).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(&list, bytes).unwrap();
    }
    let copies = bed.disks.clone();
    let job = bed.export(second, Some(first), "out").await;
    bed.assert_exported(&job, &copies).await;
    assert_told(
        &bed,
        &job,
        second,
        "comparing hashes",
        Message::ExportRepaired,
    );
    std::fs::rename(bench.path("out"), bench.path("away")).unwrap();
    let job = bed.try_export(second, Some(first), "other").await;
    assert_eq!(job.state, JobState::Exception);
    for message in [Message::RepairImpossible, Message::TrackingLost] {
        assert!(job.faults[0].has(message), "{:#?}", job.faults);
    }
    assert!(!bench.path("other").exists(), "nothing is left");
    let whole = bed.export(second, None, "other").await;
    bed.assert_exported(&whole, &copies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_full_writes_the_point_whole_and_says_why() {
    let bench = Bench::with(with(TamperingPolicy::Full)).await;
    let mut bed = bench.machine(&TWO).await;
    let (first, second) = meddled(&mut bed).await;
    let copies = bed.disks.clone();
    let job = bed.export(second, Some(first), "alone").await;
    bed.assert_exported(&job, &copies).await;
    assert_eq!(job.output.base, None);
    assert_told(&bed, &job, second, "exported whole", Message::ExportedWhole);
    assert_proven(&bed, "alone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_fail_fails_with_the_reason_and_leaves_nothing() {
    let bench = Bench::with(with(TamperingPolicy::Fail)).await;
    let mut bed = bench.machine(&TWO).await;
    let (first, second) = meddled(&mut bed).await;
    let job = bed.try_export(second, Some(first), "part").await;
    assert_eq!(job.state, JobState::Exception);
    assert!(job.faults[0].has(Message::TrackingLost));
    assert!(!job.faults[0].has(Message::RepairImpossible));
    let texts: Vec<String> = job.faults[0].chain().iter().map(|f| f.text()).collect();
    assert!(
        texts.iter().any(|t| t.contains("written to or exchanged")),
        "{texts:#?}"
    );
    assert!(!bench.path("part").exists());
    // The disk that nobody touched is a difference as ever.
    let (dir, asked) = (bench.path("out"), Asked::default());
    let untouched = [bed.device("b.img")];
    let job =
        vmms::export::export_point(&bench.vmms, second, Some(first), &dir, &untouched, &asked);
    let job = bench.done(job.await.unwrap()).await;
    assert!(job.output.bytes_written < 512 * KIB);
    // What changed on the disk is not told either.
    let node = vmms::guid(record(&bed, first).disks[0].node);
    let path = bench.path("images/a.qcow2");
    let refused = vmms::point::changes(&bench.vmms, &path, &node, 0, 0).await;
    assert_eq!(refused.unwrap_err().message, Message::TrackingLost);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchanged_file_is_noticed_before_a_merge_writes_into_it() {
    let bench = Bench::with(with(TamperingPolicy::Repair)).await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let first = bed.point(PointType::Rct).await;
    bed.export(first, None, "out").await;
    bed.write("a.qcow2", 2, MIB, 64 * KIB);
    let between = bed.point(PointType::Rct).await;
    bed.export(between, None, "between").await;
    let base = layer(&bed, "a.qcow2", 0);
    let copy = bench.path("copy");
    std::fs::copy(&base, &copy).unwrap();
    meddle(&copy, "qcow2", 7, 512 * KIB, 64 * KIB);
    std::fs::rename(&copy, &base).unwrap();
    let at = (512 * KIB) as usize;
    bed.disks.get_mut("a.qcow2").unwrap()[at..at + 65536].fill(7);
    // Merging looks before it writes a new stamp over the evidence.
    bed.sweep().await;
    assert_eq!(bed.disk("a.qcow2").layers.active_chain().len(), 2, "merged");
    assert!(!trouble(&bed, first).is_empty());
    bed.write("a.qcow2", 2, 0, 4096);
    let second = bed.point(PointType::Log).await;
    let job = bed.export(second, Some(first), "out").await;
    bed.assert_exported(&job, &bed.disks).await;
    assert_eq!(job.output.decisions.len(), 1);
    assert!(job.output.bytes_written < MIB);
}

#[test]
fn a_change_while_the_service_is_away_is_on_record_when_it_is_back() {
    let life = support::runtime();
    let (mut bench, vm, disks, points) = life.block_on(async {
        let bench = Bench::with(with(TamperingPolicy::Repair)).await;
        let mut bed = bench.machine(&TWO).await;
        let points = meddled(&mut bed).await;
        meddle(&layer(&bed, "b.img", 0), "raw", 5, MIB, 512);
        let at = MIB as usize;
        bed.disks.get_mut("b.img").unwrap()[at..at + 512].fill(5);
        let (vm, disks) = (bed.vm, bed.disks.clone());
        (bench, vm, disks, points)
    });
    life.shutdown_background();
    support::runtime().block_on(async {
        bench.restart().await;
        let bed = Bed {
            bench: &bench,
            vm,
            disks,
        };
        let lost = |name: &str| {
            bed.disk(name)
                .layers
                .nodes
                .values()
                .filter(|n| n.lost)
                .count()
        };
        assert_eq!((lost("a.qcow2"), lost("b.img")), (1, 2));
        assert_eq!(trouble(&bed, points.0).len(), 4);
        assert_eq!(trouble(&bed, points.1).len(), 2, "b.img alone");
        let third = bed.point(PointType::Log).await;
        let job = bed.export(third, Some(points.0), "out").await;
        bed.assert_exported(&job, &bed.disks).await;
        assert_eq!(job.output.decisions.len(), 2, "both disks");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_reads_a_changed_layer_is_condemned() {
    let bench = Bench::with(with(TamperingPolicy::Fail)).await;
    let mut bed = bench.machine(&TWO).await;
    let mut points = Vec::new();
    for n in 0..3u8 {
        bed.write("a.qcow2", 1 + n, u64::from(n) * MIB, MIB);
        points.push((bed.point(PointType::Log).await, bed.disks.clone()));
    }
    bed.export(points[0].0, None, "out").await;
    // The layer between the second and the third point.
    meddle(&layer(&bed, "a.qcow2", 2), "qcow2", 9, 2 * MIB, 4096);
    for (name, known) in [("a.qcow2", false), ("b.img", true)] {
        let uid = bed.disk(name).uid;
        let disks = record(&bed, points[0].0).at.disks;
        let node = disks.iter().find(|d| d.uid == uid).unwrap().node;
        let path = bench.path(&format!("images/{name}"));
        let told = vmms::point::changes(&bench.vmms, &path, &vmms::guid(node), 0, 0).await;
        assert_eq!(told.is_ok(), known, "{name}: {told:?}");
    }
    let words = |n: usize, text: &str| trouble(&bed, points[n].0).iter().any(|l| l.contains(text));
    assert!(!words(0, "cannot be exported") && !words(1, "cannot be exported"));
    assert!(words(2, "cannot be exported"));
    assert!(words(0, "not tracked") && words(1, "not tracked"));
    // Both lie beneath: exact, and tracked.
    let job = bed.export(points[1].0, Some(points[0].0), "out").await;
    bed.assert_exported(&job, &points[1].1).await;
    let (dir, asked) = (bench.path("out"), Asked::default());
    let refused =
        vmms::export::export_point(&bench.vmms, points[2].0, None, &dir, &[], &asked).await;
    assert_eq!(refused.unwrap_err().message, Message::ImageTampered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_layer_condemns_nothing_for_good() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let first = bed.point(PointType::Log).await;
    bed.write("a.qcow2", 2, 0, 4096);
    let second = bed.point(PointType::Log).await;
    let path = layer(&bed, "a.qcow2", 1);
    std::fs::rename(&path, bench.path("away")).unwrap();
    assert_eq!(trouble(&bed, first), [""; 0]);
    assert!(trouble(&bed, second)[0].contains("is missing"));
    std::fs::rename(bench.path("away"), &path).unwrap();
    assert_eq!(trouble(&bed, second), [""; 0]);
    bed.export(first, None, "out").await;
    let job = bed.export(second, Some(first), "out").await;
    bed.assert_exported(&job, &bed.disks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_was_cut_is_told_and_no_point_is_taken_of_it() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let first = bed.point(PointType::Log).await;
    let file = std::fs::File::options()
        .write(true)
        .open(layer(&bed, "a.qcow2", 0))
        .unwrap();
    file.set_len(1000).unwrap();
    assert!(trouble(&bed, first).iter().all(|l| l.contains("cut (")));
    let (_, job) = bed.try_point(PointType::Log, None).await;
    assert_eq!(job.state, JobState::Exception, "{:#?}", job.faults);
    assert!(!trouble(&bed, first).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_regular_resize_between_points_is_tracked() {
    let bench = Bench::with(with(TamperingPolicy::Fail)).await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, 2 * MIB);
    bed.write("b.img", 1, 0, MIB);
    let first = bed.point(PointType::Log).await;
    bed.export(first, None, "out").await;
    let asked = Asked::default();
    for (name, size) in [("a.qcow2", SIZE + 3 * MIB), ("b.img", 2 * MIB + 1536)] {
        let path = bench.path(&format!("images/{name}"));
        let job = vmms::image::resize(&bench.vmms, &path, size, &asked);
        bench.done(job.await.unwrap()).await;
        bed.disks
            .get_mut(name)
            .unwrap()
            .resize(usize::try_from(size).unwrap(), 0);
        let smaller = vmms::image::resize(&bench.vmms, &path, size - 512, &asked).await;
        assert_eq!(smaller.unwrap_err().message, Message::ShrinkRefused);
    }
    assert_eq!(trouble(&bed, first), [""; 0]);
    bed.write("a.qcow2", 2, SIZE + MIB, 4096);
    let second = bed.point(PointType::Log).await;
    let job = bed.export(second, Some(first), "out").await;
    bed.assert_exported(&job, &bed.disks).await;
    assert!(job.output.bytes_written < MIB);
    assert_proven(&bed, "out").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_makes_nobody_doubt_anything() {
    let bench = Bench::with(with(TamperingPolicy::Fail)).await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, 2 * MIB);
    bed.state(StateChange::Start).await;
    let first = bed.point(PointType::Log).await;
    bed.export(first, None, "out").await;
    bed.write("a.qcow2", 2, MIB, 64 * KIB);
    bed.flush("a.qcow2");
    let machine = bench.vmms.machine(bed.vm).unwrap();
    machine.kill().await.unwrap();
    bed.wait_off().await;
    assert_eq!(trouble(&bed, first), [""; 0]);
    let second = bed.point(PointType::Log).await;
    let job = bed.export(second, Some(first), "out").await;
    bed.assert_exported(&job, &bed.disks).await;
    assert!(job.output.bytes_written < MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kept_hashes_go_with_their_point() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let first = bed.point(PointType::Log).await;
    bed.export(first, None, "one").await;
    let second = bed.point(PointType::Log).await;
    // A difference keeps the hashes of the whole disk too, with or without the export it builds on.
    std::fs::rename(bench.path("one"), bench.path("away")).unwrap();
    bed.export(second, Some(first), "two").await;
    for point in [first, second] {
        for disk in record(&bed, point).at.disks {
            assert!(disk.blocks.is_some_and(|list| list.is_file()));
        }
        bed.destroy(point).await;
    }
    assert!(support::files(&bench.path("state/points")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_changed_while_it_is_exported_fails_the_export() {
    let bench = Bench::with(with(TamperingPolicy::Repair)).await;
    let mut bed = bench.machine(&BIG).await;
    bed.write("a.img", 1, 0, 96 * MIB);
    let point = bed.point(PointType::Log).await;
    let (dir, asked) = (bench.path("out"), Asked::default());
    let job = vmms::export::export_point(&bench.vmms, point, None, &dir, &[], &asked).await;
    let job = job.unwrap();
    // Suspended once it has read a part of it.
    while bench.vmms.job(job).unwrap().done == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let paused = bench.vmms.request_job_state(job, JobRequest::Suspend);
    paused.await.unwrap();
    meddle(&layer(&bed, "a.img", 0), "raw", 9, 0, 4096);
    let going = bench.vmms.request_job_state(job, JobRequest::Start);
    going.await.unwrap();
    let job = bench.vmms.wait(job).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    assert!(
        job.faults[0].has(Message::ImageTampered),
        "{:#?}",
        job.faults
    );
    assert!(!dir.exists(), "nothing is left");
    assert!(record(&bed, point).disks[0].blocks.is_none());
}

/// A service killed at the `nth` change of its records while a point is taken and exported over a base whose files were changed.
/// Tells whether it came to its end before.
fn repair_killed_at(nth: i64, after: bool) -> bool {
    let (dead, mut died) = watch::channel(false);
    let life = support::runtime();
    let (mut bench, vm, disks, first, lived) = life.block_on(async {
        let mut bench = Bench::with(with(TamperingPolicy::Repair)).await;
        let (vm, disks, first) = {
            let mut bed = bench.machine(&TWO).await;
            bed.write("a.qcow2", 1, 0, 2 * MIB);
            let first = bed.point(PointType::Log).await;
            bed.export(first, None, "out").await;
            meddle(&layer(&bed, "a.qcow2", 0), "qcow2", 9, MIB, 4096);
            let at = MIB as usize;
            bed.disks.get_mut("a.qcow2").unwrap()[at..at + 4096].fill(9);
            (bed.vm, bed.disks.clone(), first)
        };
        let store = Arc::new(Deadly {
            inner: Arc::clone(&bench.store),
            left: AtomicI64::new(i64::MAX),
            after,
            dead,
        });
        bench.restart_on(store.clone()).await;
        let bed = Bed {
            bench: &bench,
            vm,
            disks: disks.clone(),
        };
        store.left.store(nth, Ordering::SeqCst);
        let work = async {
            let second = bed.point(PointType::Log).await;
            bed.export(second, Some(first), "out").await;
        };
        let lived = tokio::select! {
            () = work => true,
            _ = died.wait_for(|dead| *dead) => false,
        };
        (bench, vm, disks, first, lived)
    });
    life.shutdown_background();
    support::runtime().block_on(async {
        bench.restart().await;
        let bed = Bed {
            bench: &bench,
            vm,
            disks,
        };
        for job in bench.vmms.jobs() {
            bench.vmms.wait(job.id).await.unwrap();
        }
        let mut points = bench.vmms.db.all::<Point>();
        points.retain(|p| p.id != first);
        let second = match points.first() {
            Some(second) => second.id,
            None => bed.point(PointType::Log).await,
        };
        assert_eq!(trouble(&bed, first).len(), 2);
        assert_eq!(trouble(&bed, second), [""; 0]);
        if record(&bed, second).exports.is_empty() {
            bed.export(second, Some(first), "out").await;
        }
        let exported = |j: &&Arc<Job>| j.output.point == Some(second) && !j.output.disks.is_empty();
        let jobs = bench.vmms.db.all::<Job>();
        let job = jobs.iter().find(exported).unwrap();
        bed.assert_exported(job, &bed.disks).await;
        assert_told(
            &bed,
            job,
            second,
            "comparing hashes",
            Message::ExportRepaired,
        );
        assert!(job.output.bytes_written < MIB);
        assert_proven(&bed, "out").await;
    });
    lived
}

#[test]
fn a_service_killed_at_any_step_of_a_repair_leaves_an_exact_export() {
    for after in [false, true] {
        let mut nth = i64::from(after);
        while !repair_killed_at(nth, after) {
            nth += 2;
            assert!(nth < 100, "a life has an end");
        }
    }
}

#[test]
fn a_repair_goes_on_after_the_service_was_killed() {
    let life = support::runtime();
    let (mut bench, vm, disks, job) = life.block_on(async {
        let bench = Bench::with(with(TamperingPolicy::Repair)).await;
        let mut bed = bench.machine(&BIG).await;
        bed.write("a.img", 1, 0, 96 * MIB);
        let first = bed.point(PointType::Log).await;
        bed.export(first, None, "out").await;
        meddle(&layer(&bed, "a.img", 0), "raw", 9, 50 * MIB, 4096);
        let at = (50 * MIB) as usize;
        bed.disks.get_mut("a.img").unwrap()[at..at + 4096].fill(9);
        let second = bed.point(PointType::Rct).await;
        let (dir, asked) = (bench.path("out"), Asked::default());
        let job =
            vmms::export::export_point(&bench.vmms, second, Some(first), &dir, &[], &asked).await;
        let job = job.unwrap();
        let paused = bench.vmms.request_job_state(job, JobRequest::Suspend);
        paused.await.unwrap();
        let (vm, disks) = (bed.vm, bed.disks.clone());
        // Not part of the point any more.
        bed.write("a.img", 2, MIB, MIB);
        (bench, vm, disks, job)
    });
    life.shutdown_timeout(Duration::from_millis(10));
    support::runtime().block_on(async {
        bench.restart().await;
        let bed = Bed {
            bench: &bench,
            vm,
            disks,
        };
        let going = bench.vmms.request_job_state(job, JobRequest::Start);
        going.await.unwrap();
        let job = bench.done(job).await;
        bed.assert_exported(&job, &bed.disks).await;
        assert_eq!(job.output.decisions.len(), 1);
        assert_eq!(job.faults.len(), 1, "{:#?}", job.faults);
        assert!(job.output.bytes_written < MIB);
    });
}
