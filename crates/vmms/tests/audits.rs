//! Audits: a change map that missed nothing passes, one that lacks a range is caught with exactly that range.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::path::PathBuf;

use disk::ChangeMap;
use hypervisor::ImageFormat;
use support::{Bed, Bench, KIB, MIB};
use uuid::Uuid;
use vmms::audit::{Audit, Proof};
use vmms::job::{Job, JobRequest, JobState};
use vmms::machine::Asked;
use vmms::machine::StateChange;
use vmms::point::{Point, PointType};
use vmms::{Message, Result};

const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, 8 * MIB),
    ("b.img", ImageFormat::Raw, 4 * MIB + 512),
];

async fn submit(bed: &Bed<'_>, point: Uuid, base: Option<Uuid>) -> Result<Uuid> {
    vmms::audit::audit_point(&bed.bench.vmms, point, base, &Asked::default()).await
}

async fn audit(bed: &Bed<'_>, point: Uuid, base: Option<Uuid>) -> Job {
    let job = submit(bed, point, base).await.unwrap();
    bed.bench.vmms.wait(job).await.unwrap()
}

fn stored(bed: &Bed<'_>, point: Uuid) -> Audit {
    let record = bed.bench.vmms.db.get::<Point>(point).unwrap();
    record.audit.clone().unwrap()
}

/// The map of a disk at a point, and where it lies.
fn map_of(bed: &Bed<'_>, point: Uuid, name: &str) -> (PathBuf, ChangeMap, u64) {
    let disk = bed.disk(name);
    let record = bed.bench.vmms.db.get::<Point>(point).unwrap();
    let of_disk = record.disks.iter().find(|d| d.uid == disk.uid).unwrap();
    let path = disk.layers.nodes[&of_disk.node].map.clone().unwrap();
    let (map, size) = ChangeMap::load(&path).unwrap();
    (path, map, size)
}

/// Takes a range out of a map: a whole and valid file that does not tell the truth.
fn take_out(bed: &Bed<'_>, point: Uuid, name: &str, range: std::ops::Range<u64>) {
    let (path, map, size) = map_of(bed, point, name);
    let less = map.without(&ChangeMap::of(range));
    assert_ne!(less, map, "the range was in the map");
    less.save(&path, size).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_maps_of_running_and_stopped_machines_pass_by_their_layers() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, 8 * MIB);
    bed.write("b.img", 2, MIB, MIB);
    let first = bed.point(PointType::Log).await;
    bed.state(StateChange::Start).await;
    bed.write("a.qcow2", 3, 128 * KIB, 4 * KIB);
    bed.write("a.qcow2", 0, 3 * MIB, 64 * KIB);
    bed.write("b.img", 4, 4 * MIB, 512);
    let between = bed.point(PointType::Rct).await;
    bed.write("b.img", 0, MIB, MIB);
    let last = bed.point(PointType::Log).await;

    let job = audit(&bed, last, Some(first)).await;
    bench.done(job.id).await;
    let found = stored(&bed, last);
    assert!(found.passed());
    assert_eq!((found.base, found.proof), (first, Proof::Layers));
    let numbers = |n: usize| {
        let d = &found.disks[n];
        (d.compared, d.different)
    };
    assert_eq!(numbers(0), (8 * MIB, 68 * KIB));
    assert_eq!(numbers(1), (4 * MIB + 512, MIB + 512));
    assert!(found.disks.iter().all(|d| d.mapped >= d.different));
    assert_eq!(job.output.bytes_read, 12 * MIB + 512);

    // Without a base: the newest older one.
    bench.done(audit(&bed, last, None).await.id).await;
    assert_eq!(stored(&bed, last).base, between);
    // It outlives the service.
    bed.state(StateChange::Stop).await;
    let vm = bed.vm;
    let mut bench = bench;
    bench.restart().await;
    let record = bench.vmms.db.get::<Point>(last).unwrap();
    assert_eq!(record.vm, vm);
    assert!(record.audit.as_ref().unwrap().passed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_lives_on_only_in_an_export_is_proven_by_its_hashes() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, 2 * MIB);
    let first = bed.point(PointType::Rct).await;
    bed.export(first, None, "out").await;
    bed.write("a.qcow2", 2, MIB, 64 * KIB);
    let second = bed.point(PointType::Rct).await;
    bed.export(second, Some(first), "out").await;
    bed.write("a.qcow2", 5, 5 * MIB, 4 * KIB);
    bed.write("b.img", 6, 0, 512);
    let third = bed.point(PointType::Log).await;
    bed.sweep().await;
    let tree = &bed.disk("a.qcow2").layers;
    let node = |p: Uuid| bench.vmms.db.get::<Point>(p).unwrap().disks[0].node;
    assert!(tree.nodes[&node(second)].file.is_none(), "it was merged");

    bench.done(audit(&bed, third, None).await.id).await;
    let found = stored(&bed, third);
    assert_eq!((found.base, found.proof), (second, Proof::Hashes));
    assert_eq!(found.disks[0].different, 64 * KIB, "told in blocks");
    // Across two maps, against the full export.
    bench.done(audit(&bed, third, Some(first)).await.id).await;
    let found = stored(&bed, third);
    assert_eq!((found.base, found.proof), (first, Proof::Hashes));
    assert_eq!(found.disks[0].different, 128 * KIB);

    // The hashes that were kept here are gone: those of the exports do as well. Without either nothing is proven.
    let kept = bench.vmms.db.get::<Point>(first).unwrap().disks[0]
        .blocks
        .clone();
    let kept = kept.unwrap();
    std::fs::rename(&kept, bench.path("kept")).unwrap();
    bench.done(audit(&bed, third, Some(first)).await.id).await;
    std::fs::rename(bench.path("out"), bench.path("moved")).unwrap();
    let nothing = submit(&bed, third, Some(first)).await.unwrap_err();
    assert_eq!(nothing.message, Message::AuditImpossible);
    std::fs::rename(bench.path("moved"), bench.path("out")).unwrap();

    // A map that lacks one of the blocks is caught, whichever map on the way it is.
    let block = 5 * MIB..5 * MIB + 64 * KIB;
    take_out(&bed, third, "a.qcow2", block.clone());
    let job = audit(&bed, third, Some(first)).await;
    assert_eq!(job.state, JobState::Exception);
    assert_eq!(job.faults[0].message, Message::AuditMissed);
    let found = stored(&bed, third);
    assert_eq!(found.disks[0].missed, [(block.start, 64 * KIB)]);
    assert_eq!(found.disks[1].missed, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_lacks_a_range_fails_the_audit_with_exactly_that_range() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    let first = bed.point(PointType::Log).await;
    bed.write("a.qcow2", 3, MIB, 256 * KIB);
    bed.write("b.img", 7, 64 * KIB, 8 * KIB);
    let second = bed.point(PointType::Log).await;
    bench.done(audit(&bed, second, Some(first)).await.id).await;
    take_out(&bed, second, "a.qcow2", MIB + 64 * KIB..MIB + 66 * KIB);
    take_out(&bed, second, "b.img", 64 * KIB..68 * KIB);

    let job = audit(&bed, second, Some(first)).await;
    assert_eq!(job.state, JobState::Exception);
    let told = &job.faults[0];
    assert_eq!(told.message, Message::AuditMissed);
    assert!(
        told.text().ends_with("missed 2048 bytes: 1114112-1116160"),
        "{told}"
    );
    assert_eq!(told.causes[0].message, Message::AuditMissed, "each disk");
    assert!(
        told.causes[0]
            .text()
            .ends_with("missed 4096 bytes: 65536-69632")
    );
    let found = stored(&bed, second);
    assert!(!found.passed());
    assert_eq!(found.disks[0].missed, [(MIB + 64 * KIB, 2 * KIB)]);
    assert_eq!(found.disks[1].missed, [(64 * KIB, 4 * KIB)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_proven_is_refused_with_the_reason() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    let first = bed.point(PointType::Rct).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let second = bed.point(PointType::Log).await;
    let alone = submit(&bed, first, None).await.unwrap_err();
    assert_eq!(alone.message, Message::AuditImpossible, "nothing is older");
    let order = submit(&bed, first, Some(second)).await.unwrap_err();
    assert_eq!(order.message, Message::BaseNotOlder);
    let other = bench.machine(&[("c.img", ImageFormat::Raw, MIB)]).await;
    let foreign = other.point(PointType::Log).await;
    let foreign = submit(&bed, second, Some(foreign)).await.unwrap_err();
    assert_eq!(foreign.message, Message::BaseOfOtherVm);

    bed.set_hold(first, None).await;
    bed.sweep().await;
    let gone = submit(&bed, second, Some(first)).await.unwrap_err();
    assert_eq!(gone.message, Message::AuditImpossible);
    assert!(gone.has(Message::NoAssociatedData), "{:?}", gone.causes);
    let asked = Asked::default();
    let job = vmms::point::remove_data(&bench.vmms, second, &asked).await;
    bench.done(job.unwrap()).await;
    bed.point(PointType::Log).await;
    bed.sweep().await;
    let own = submit(&bed, second, None).await.unwrap_err();
    assert!(own.text().contains("its own content"), "{own}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_audit_reads_its_points_and_their_layers_stay() {
    let bench = Bench::new().await;
    let mut bed = bench
        .machine(&[("a.img", ImageFormat::Raw, 64 * MIB)])
        .await;
    bed.write("a.img", 9, 0, 64 * MIB);
    let first = bed.point(PointType::Rct).await;
    bed.write("a.img", 8, 0, 32 * MIB);
    let second = bed.point(PointType::Rct).await;
    let job = submit(&bed, second, Some(first)).await.unwrap();
    let vmms = &bench.vmms;
    if vmms
        .request_job_state(job, JobRequest::Suspend)
        .await
        .is_ok()
    {
        // The holds end, and nothing but the audit keeps the layers.
        bed.set_hold(first, None).await;
        bed.set_hold(second, None).await;
        bench.vmms.tick().await;
        let asked = Asked::default();
        let busy = vmms::point::destroy_point(vmms, first, &asked).await;
        assert_eq!(busy.unwrap_err().message, Message::PointBusy);
        vmms.request_job_state(job, JobRequest::Start)
            .await
            .unwrap();
    }
    bench.done(job).await;
    let record = bench.vmms.db.get::<Point>(second).unwrap();
    let found = record.audit.as_ref().unwrap();
    assert!(found.passed());
    assert_eq!(found.disks[0].different, 32 * MIB);
    bed.set_hold(first, None).await;
    bed.set_hold(second, None).await;
    bed.sweep().await;
    assert!(
        bed.disk("a.img").layers.active_chain().len() <= 2,
        "merged afterwards"
    );
}
