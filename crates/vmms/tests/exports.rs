//! What exports refuse, what they leave behind, and what they notice.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::time::Duration;

use hypervisor::ImageFormat;
use support::{Bed, Bench, KIB, MIB, files, options};
use uuid::Uuid;
use vmms::job::{JobRequest, JobState};
use vmms::machine::Asked;
use vmms::machine::StateChange;
use vmms::point::{Point, PointType};
use vmms::{Fault, Message};

const ONE: [(&str, ImageFormat, u64); 1] = [("a.qcow2", ImageFormat::Qcow2, 2 * MIB)];
const BIG: [(&str, ImageFormat, u64); 1] = [("a.img", ImageFormat::Raw, 96 * MIB)];
const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, MIB),
    ("b.img", ImageFormat::Raw, MIB),
];

async fn refusal(
    bed: &Bed<'_>,
    point: Uuid,
    base: Option<Uuid>,
    disks: &[&str],
    to: &str,
) -> Fault {
    let disks: Vec<String> = disks.iter().map(|d| (*d).to_owned()).collect();
    let (dir, asked) = (bed.bench.path(to), Asked::default());
    vmms::export::export_point(&bed.bench.vmms, point, base, &dir, &disks, &asked)
        .await
        .unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bases_and_disks_are_refused_at_once() {
    let bench = Bench::new().await;
    let bed = bench.machine(&TWO).await;
    let other = bench.machine(&[("c.img", ImageFormat::Raw, MIB)]).await;
    let (first, second) = (
        bed.point(PointType::Log).await,
        bed.point(PointType::Log).await,
    );
    let foreign = other.point(PointType::Log).await;
    let refused = |fault: Fault| fault.message;
    assert_eq!(
        refused(refusal(&bed, first, Some(second), &[], "x").await),
        Message::BaseNotOlder
    );
    assert_eq!(
        refused(refusal(&bed, first, Some(first), &[], "x").await),
        Message::BaseNotOlder
    );
    assert_eq!(
        refused(refusal(&bed, second, Some(foreign), &[], "x").await),
        Message::BaseOfOtherVm
    );
    assert_eq!(
        refused(refusal(&bed, second, Some(Uuid::nil()), &[], "x").await),
        Message::PointNotFound
    );
    assert_eq!(
        refused(refusal(&bed, Uuid::nil(), None, &[], "x").await),
        Message::PointNotFound
    );
    assert_eq!(
        refused(refusal(&bed, first, None, &["nothing"], "x").await),
        Message::DiskNotFound
    );
    let asked = Asked::default();
    let relative = vmms::export::export_point(&bench.vmms, first, None, "x".as_ref(), &[], &asked);
    assert_eq!(relative.await.unwrap_err().message, Message::PathNotUsable);
    assert!(!bench.path("x").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_chosen_by_any_spelling_of_their_identifier() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("b.img", 7, 0, 4096);
    let point = bed.point(PointType::Rct).await;
    let device = bed.device("b.img");
    let whole = vmms::point::disk_id_text(bed.vm, &device);
    let spellings = [
        device.clone(),
        whole.to_lowercase(),
        whole
            .trim_end_matches("\\L")
            .trim_end_matches("\\D")
            .to_owned(),
        format!(
            "{}\\L",
            whole.trim_end_matches("\\L").trim_end_matches("\\D")
        ),
        whole.replace('\\', "\\\\"),
    ];
    for (n, text) in spellings.iter().enumerate() {
        let (dir, asked) = (bench.path(&format!("out{n}")), Asked::default());
        let job = vmms::export::export_point(
            &bench.vmms,
            point,
            None,
            &dir,
            std::slice::from_ref(text),
            &asked,
        );
        let job = bench.done(job.await.unwrap()).await;
        assert_eq!(job.output.disks.len(), 1, "{text}");
        assert_eq!(bed.name_of(&job.output.disks[0].device), "b.img");
    }
    // A part of the disks does not end the hold: the rest could not be had any more.
    let copies = bed.disks.clone();
    let full = bed.export(point, None, "full").await;
    bed.assert_exported(&full, &copies).await;
    assert!(bench.vmms.db.get::<Point>(point).unwrap().hold.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_directory_takes_each_point_once() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let point = bed.point(PointType::Log).await;
    let job = bed.export(point, None, "out").await;
    let before = files(&bench.path("out"));
    let again = bed.try_export(point, None, "out").await;
    assert_eq!(again.state, JobState::Exception);
    assert!(again.faults[0].has(Message::ExportExists));
    assert_eq!(files(&bench.path("out")), before);
    let vm = vmms::guid(bed.vm);
    let guid = vmms::guid(point);
    assert!(
        before.contains(&format!("{vm}/manifest.json")),
        "{before:?}"
    );
    assert!(
        before.contains(&format!("{vm}/Virtual Machines/{vm}.json")),
        "{before:?}"
    );
    assert!(
        before.iter().any(|f| f.ends_with(&format!("-{guid}.map"))),
        "{before:?}"
    );
    assert_eq!(
        job.output.machines[0].config,
        Some(bench.path(&format!("out/{vm}/Virtual Machines/{vm}.json")))
    );
    assert_eq!(job.output.directory, Some(bench.path("out")));
    assert_eq!(
        (job.output.point, job.output.base, job.output.subject),
        (Some(point), None, Some(bed.vm))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_fails_says_why_and_leaves_nothing() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let point = bed.point(PointType::Rct).await;
    std::fs::write(bench.path("file"), b"").unwrap();
    let job = bed.try_export(point, None, "file/below").await;
    assert_eq!(job.state, JobState::Exception);
    assert_eq!(job.faults[0].message, Message::ExportFailed);
    assert!(
        job.faults[0].has(Message::ExportDirectory),
        "{:#?}",
        job.faults
    );
    assert!(job.faults[0].has(Message::Os));
    assert_eq!(std::fs::read(bench.path("file")).unwrap(), b"");
    // The hold did not end: the next attempt is exact.
    let copies = bed.disks.clone();
    let full = bed.export(point, None, "out").await;
    bed.assert_exported(&full, &copies).await;
}

async fn stopped_export(request: JobRequest, expected: JobState) {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.write("a.img", 1, 0, 96 * MIB);
    let point = bed.point(PointType::Rct).await;
    std::fs::create_dir(bench.path("out")).unwrap();
    let (dir, asked) = (bench.path("out"), Asked::default());
    let job = vmms::export::export_point(&bench.vmms, point, None, &dir, &[], &asked)
        .await
        .unwrap();
    bench
        .vmms
        .request_job_state(job, JobRequest::Suspend)
        .await
        .unwrap();
    assert_eq!(bench.vmms.job(job).unwrap().state, JobState::Suspended);
    bench.vmms.request_job_state(job, request).await.unwrap();
    let job = bench.vmms.wait(job).await.unwrap();
    assert_eq!(job.state, expected, "{:#?}", job.faults);
    assert!(files(&bench.path("out")).is_empty());
    assert_eq!(
        std::fs::read_dir(bench.path("out")).unwrap().count(),
        0,
        "no directory either"
    );
    let copies = bed.disks.clone();
    let full = bed.export(point, None, "out").await;
    bed.assert_exported(&full, &copies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_export_leaves_nothing_and_can_be_done_again() {
    stopped_export(JobRequest::Terminate, JobState::Terminated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_export_leaves_nothing_and_can_be_done_again() {
    stopped_export(JobRequest::Kill, JobState::Killed).await;
}

#[test]
fn a_suspended_export_survives_the_service_and_goes_on() {
    let life = support::runtime();
    let (mut bench, vm, disks, job) = life.block_on(async {
        let bench = Bench::new().await;
        let mut bed = bench.machine(&BIG).await;
        bed.write("a.img", 1, 0, 96 * MIB);
        let point = bed.point(PointType::Rct).await;
        let (dir, asked) = (bench.path("out"), Asked::default());
        let job = vmms::export::export_point(&bench.vmms, point, None, &dir, &[], &asked)
            .await
            .unwrap();
        bench
            .vmms
            .request_job_state(job, JobRequest::Suspend)
            .await
            .unwrap();
        bed.write("a.img", 2, MIB, MIB);
        let (vm, disks) = (bed.vm, bed.disks.clone());
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
        assert_eq!(bench.vmms.job(job).unwrap().state, JobState::Suspended);
        bench.vmms.tick().await;
        bench
            .vmms
            .request_job_state(job, JobRequest::Start)
            .await
            .unwrap();
        let job = bench.done(job).await;
        let mut copies = bed.disks.clone();
        copies.get_mut("a.img").unwrap()[..].fill(1);
        bed.assert_exported(&job, &copies).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_without_hold_is_a_base_but_not_exported() {
    let bench = Bench::with(vmms::Options {
        hold_time: Duration::ZERO,
        ..options()
    })
    .await;
    let mut bed = bench.machine(&ONE).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let first = bed.point(PointType::Rct).await;
    assert_eq!(
        refusal(&bed, first, None, &[], "x").await.message,
        Message::NoAssociatedData
    );
    bed.write("a.qcow2", 2, MIB, 64 * KIB);
    let second = bed.point(PointType::Log).await;
    bed.sweep().await;
    let part = bed.export(second, Some(first), "out").await;
    assert!(
        part.output.report.iter().any(|l| l.contains("neighbour")),
        "{:?}",
        part.output.report
    );
    assert!(part.output.bytes_written < MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_ends_when_the_layers_above_have_grown() {
    let bench = Bench::with(vmms::Options {
        hold_bytes: MIB,
        ..options()
    })
    .await;
    let mut bed = bench.machine(&ONE).await;
    let point = bed.point(PointType::Rct).await;
    bed.sweep().await;
    assert!(bench.vmms.db.get::<Point>(point).unwrap().holds_content());
    bed.write("a.qcow2", 1, 0, 2 * MIB);
    bed.sweep().await;
    assert!(!bench.vmms.db.get::<Point>(point).unwrap().holds_content());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_changed_behind_our_back_is_noticed_and_new_points_are_good_again() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let old = bed.point(PointType::Log).await;
    let path = bench.path("images/a.qcow2");
    let done = std::process::Command::new("qemu-io")
        .args(["-c", "write -P 9 0 4096"])
        .arg(&path)
        .status();
    assert!(done.unwrap().success());
    bed.disks.get_mut("a.qcow2").unwrap()[..4096].fill(9);
    assert_eq!(
        refusal(&bed, old, None, &[], "x").await.message,
        Message::ImageTampered
    );
    let new = bed.point(PointType::Log).await;
    let copies = bed.disks.clone();
    let record = bench.vmms.db.get::<Point>(new).unwrap();
    assert!(
        record
            .decisions
            .iter()
            .any(|d| d.reason.contains("changed by something")),
        "{record:?}"
    );
    let full = bed.export(new, None, "out").await;
    bed.assert_exported(&full, &copies).await;
    assert_eq!(
        refusal(&bed, old, None, &[], "x").await.message,
        Message::ImageTampered
    );
    let part = bed.try_export(new, Some(old), "part").await;
    assert!(
        part.faults[0].has(Message::TrackingLost),
        "{:#?}",
        part.faults
    );
    bed.write("a.qcow2", 3, MIB, 4096);
    let newer = bed.point(PointType::Log).await;
    let copies = bed.disks.clone();
    let part = bed.export(newer, Some(new), "out").await;
    bed.assert_exported(&part, &copies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_layer_is_told_by_name() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    let first = bed.point(PointType::Log).await;
    bed.write("a.qcow2", 1, 0, 4096);
    let second = bed.point(PointType::Log).await;
    let layer = bed
        .disk("a.qcow2")
        .layers
        .chain(bed.disk("a.qcow2").layers.active)
        .unwrap()[1]
        .path
        .clone();
    std::fs::rename(&layer, bench.path("away")).unwrap();
    assert_eq!(
        refusal(&bed, second, None, &[], "x").await.message,
        Message::LayerMissing
    );
    let full = bed.export(first, None, "out").await;
    assert_eq!(
        full.output.disks.len(),
        1,
        "what lies beneath is still whole"
    );
    let (_, job) = bed.try_point(PointType::Log, None).await;
    assert!(
        job.faults[0].has(Message::LayerMissing),
        "{:#?}",
        job.faults
    );
    std::fs::rename(bench.path("away"), &layer).unwrap();
    bed.point(PointType::Log).await;
    bed.export(second, Some(first), "out").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_export_does_not_pass_verification() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let point = bed.point(PointType::Log).await;
    let job = bed.export(point, None, "out").await;
    let asked = Asked::default();
    let proof = vmms::verify::verify_export(&bench.vmms, &bench.path("out"), &asked)
        .await
        .unwrap();
    let proof = bench.done(proof).await;
    assert!(
        proof.output.report.iter().all(|l| l.contains("proven")),
        "{:?}",
        proof.output.report
    );

    let image = &job.output.disks[0].file;
    let mut bytes = std::fs::read(image).unwrap();
    let at = bytes.iter().position(|b| *b == 1).unwrap() + 300_000;
    bytes[at] ^= 1;
    std::fs::write(image, &bytes).unwrap();
    let proof = vmms::verify::verify_export(&bench.vmms, &bench.path("out"), &asked)
        .await
        .unwrap();
    let proof = bench.vmms.wait(proof).await.unwrap();
    assert_eq!(proof.state, JobState::Exception);
    assert_eq!(proof.faults[0].message, Message::VerifyFailed);
    assert!(
        proof.faults[0].has(Message::DigestMismatch),
        "{:#?}",
        proof.faults
    );

    std::fs::remove_file(bench.path(&format!("out/{}/manifest.json", vmms::guid(bed.vm)))).unwrap();
    let refused = vmms::verify::verify_export(&bench.vmms, &bench.path("out"), &asked).await;
    assert_eq!(refused.unwrap_err().message, Message::ManifestUnusable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_without_its_middle_is_not_imported() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    let mut base = None;
    for (n, to) in ["one", "two", "three"].iter().enumerate() {
        bed.write("a.qcow2", 1 + n as u8, n as u64 * 64 * KIB, 64 * KIB);
        let point = bed.point(PointType::Log).await;
        bed.export(point, base, to).await;
        base = Some(point);
    }
    std::fs::rename(bench.path("two"), bench.path("elsewhere-two")).unwrap();
    std::fs::create_dir(bench.path("deep")).unwrap();
    std::fs::rename(bench.path("elsewhere-two"), bench.path("deep/two")).unwrap();
    let asked = Asked::default();
    let (dir, to) = (bench.path("three"), bench.path("new"));
    let (vm, job) = vmms::import::import_export(&bench.vmms, &dir, None, &to, false, &asked)
        .await
        .unwrap();
    let job = bench.vmms.wait(job).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    assert!(
        job.faults[0].has(Message::ChainIncomplete),
        "{:#?}",
        job.faults
    );
    assert!(bench.vmms.db.get::<vmms::machine::Vm>(vm).is_err());
    assert!(!to.exists());
    std::fs::rename(bench.path("deep/two"), bench.path("two")).unwrap();
    let (_, job) = vmms::import::import_export(&bench.vmms, &dir, None, &to, false, &asked)
        .await
        .unwrap();
    bench.done(job).await;
    let found = bench
        .contents(&to.join("a.qcow2"), ImageFormat::Qcow2)
        .await;
    support::assert_same(&found, &bed.disks["a.qcow2"], "imported");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_runs_on_is_not_disturbed_by_an_export() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.state(StateChange::Start).await;
    bed.write("a.img", 1, 0, 64 * MIB);
    let point = bed.point(PointType::Rct).await;
    let copies = bed.disks.clone();
    let (dir, asked) = (bench.path("out"), Asked::default());
    let job = vmms::export::export_point(&bench.vmms, point, None, &dir, &[], &asked)
        .await
        .unwrap();
    // Written, frozen again and swept while the copy runs: its content is claimed by the job.
    for n in 0..8u8 {
        bed.write("a.img", 100 + n, u64::from(n) * 8 * MIB, 4 * MIB);
        bed.point(PointType::Rct).await;
        bench.vmms.tick().await;
    }
    let job = bench.done(job).await;
    bed.assert_exported(&job, &copies).await;
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_export_directory_is_proven_and_one_export_of_it_imported() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    let first = bed.point(PointType::Log).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let second = bed.point(PointType::Log).await;
    bed.export(first, None, "out").await;
    let job = bed.export(second, Some(first), "out").await;
    let (asked, whole) = (Asked::default(), bench.path("out"));
    let proof = vmms::verify::verify_export(&bench.vmms, &whole, &asked);
    let proof = bench.done(proof.await.unwrap()).await;
    for point in [first, second] {
        let about = vmms::guid(point);
        assert!(
            proof.output.report.iter().any(|l| l.contains(&about)),
            "{about}: {:?}",
            proof.output.report
        );
    }
    // Damage in the later one is found from the top.
    let image = &job.output.disks[0].file;
    let mut bytes = std::fs::read(image).unwrap();
    let at = bytes.iter().position(|b| *b == 1).unwrap() + 300_000;
    bytes[at] ^= 1;
    std::fs::write(image, &bytes).unwrap();
    let proof = vmms::verify::verify_export(&bench.vmms, &whole, &asked);
    let proof = bench.vmms.wait(proof.await.unwrap()).await.unwrap();
    assert_eq!(proof.state, JobState::Exception);
    let (dir, to) = (bench.path("out"), bench.path("new"));
    let refused = vmms::import::import_export(&bench.vmms, &dir, None, &to, false, &asked).await;
    assert_eq!(refused.unwrap_err().message, Message::InvalidValue);
    let (dir, name) = (dir.join(vmms::guid(bed.vm)), Some("old".to_owned()));
    let import = vmms::import::import_export(&bench.vmms, &dir, name, &to, false, &asked).await;
    bench.done(import.unwrap().1).await;
    let found = bench
        .contents(&to.join("a.qcow2"), ImageFormat::Qcow2)
        .await;
    assert!(found.iter().all(|b| *b == 0), "the first point");
}
