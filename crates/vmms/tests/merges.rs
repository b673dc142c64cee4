//! Merging makes way for whoever needs the layers, and nothing is lost by it.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::sync::Arc;

use hypervisor::ImageFormat;
use support::{Bed, Bench, MIB, files};
use uuid::Uuid;
use vmms::disk_tree::Pending;
use vmms::job::{JobRequest, JobState, Task};
use vmms::machine::Asked;
use vmms::machine::StateChange;
use vmms::point::{Consistency, Point, PointType};
use vmms::snapshot::{self, SnapshotKind};

const SIZE: u64 = 192 * MIB;
const BIG: [(&str, ImageFormat, u64); 1] = [("a.img", ImageFormat::Raw, SIZE)];

/// Two points with much between them; the first one's data is being removed when this returns.
async fn merging(bed: &mut Bed<'_>, running: bool) -> (Uuid, Uuid) {
    if running {
        bed.state(StateChange::Start).await;
    }
    let first = bed.point(PointType::Log).await;
    bed.write("a.img", 1, 0, 160 * MIB);
    if running {
        bed.flush("a.img");
    }
    let second = bed.point(PointType::Log).await;
    let job = vmms::point::remove_data(&bed.bench.vmms, first, &Asked::default())
        .await
        .unwrap();
    let mut changes = bed.bench.vmms.db.changes();
    while bed.disk("a.img").layers.pending.is_none()
        && !bed.bench.vmms.job(job).unwrap().state.is_final()
    {
        changes.changed().await.unwrap();
    }
    assert!(matches!(
        bed.disk("a.img").layers.pending,
        Some(Pending::Commit { .. }) | None
    ));
    (second, job)
}

async fn finish(bed: &mut Bed<'_>, points: &[(Uuid, Vec<u8>)]) {
    for _ in 0..3 {
        bed.sweep().await;
    }
    for (n, (point, copy)) in points.iter().enumerate() {
        let full = bed.export(*point, None, &format!("out{n}")).await;
        let found = bed
            .bench
            .contents(&full.output.disks[0].file, ImageFormat::Qcow2)
            .await;
        support::assert_same(&found, copy, "point");
    }
    for point in bed.bench.vmms.db.all::<Point>() {
        bed.destroy(point.id).await;
    }
    for _ in 0..3 {
        bed.sweep().await;
    }
    if bed.bench.vmms.machine(bed.vm).is_some() {
        bed.state(StateChange::Stop).await;
    }
    assert_eq!(files(&bed.bench.path("images")), ["a.img"]);
    bed.assert_present().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_is_taken_while_layers_merge_under_a_guest() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, true).await;
    let at_second = bed.disks["a.img"].clone();
    bed.write("a.img", 2, 100 * MIB, MIB);
    let third = bed.point(PointType::Log).await;
    let at_third = bed.disks["a.img"].clone();
    bench.done(job).await;
    bed.write("a.img", 3, 0, MIB);
    finish(&mut bed, &[(second, at_second), (third, at_third)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_starts_and_stops_while_its_layers_merge() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, false).await;
    let at_second = bed.disks["a.img"].clone();
    bed.state(StateChange::Start).await;
    bench.done(job).await;
    bed.write("a.img", 3, 0, MIB);
    bench.vmms.tick().await;
    bed.state(StateChange::Stop).await;
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_saved_while_its_layers_merge() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, true).await;
    let at_second = bed.disks["a.img"].clone();
    bed.state(StateChange::Save).await;
    bench.done(job).await;
    bed.state(StateChange::Start).await;
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_is_killed_while_its_layers_merge() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, true).await;
    let at_second = bed.disks["a.img"].clone();
    bench.vmms.machine(bed.vm).unwrap().kill().await.unwrap();
    bed.wait_off().await;
    bench.done(job).await;
    bed.state(StateChange::Start).await;
    bed.write("a.img", 3, 0, MIB);
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_merge_is_done_later() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.state(StateChange::Start).await;
    let first = bed.point(PointType::Rct).await;
    bed.write("a.img", 1, 0, 160 * MIB);
    let second = bed.point(PointType::Log).await;
    let at_second = bed.disks["a.img"].clone();
    bed.set_hold(first, None).await;
    for request in [JobRequest::Terminate, JobRequest::Kill] {
        bench.vmms.tick().await;
        let tidy =
            |j: &vmms::job::Job| matches!(j.task, Task::MergeLayers(_)) && !j.state.is_final();
        let Some(job) = bench.vmms.jobs().into_iter().find(tidy) else {
            break;
        };
        let _ = bench.vmms.request_job_state(job.id, request).await;
        let job = bench.vmms.wait(job.id).await.unwrap();
        let expected = [JobState::Terminated, JobState::Killed, JobState::Completed];
        assert!(
            expected.contains(&job.state),
            "{:?} {:#?}",
            job.state,
            job.faults
        );
    }
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_while_layers_merge() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, true).await;
    let at_second = bed.disks["a.img"].clone();
    let node = bench.vmms.db.get::<Point>(second).unwrap().disks[0]
        .node
        .to_string();
    let path = bench.path("images/a.img");
    let vmms: &Arc<vmms::Vmms> = &bench.vmms;
    let told = vmms::point::changes(vmms, &path, &node, 0, u64::MAX)
        .await
        .unwrap();
    assert_eq!((told.processed, told.ranges), (SIZE, Vec::new()));
    bench.done(job).await;
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_active_layer_is_folded_under_a_guest_that_hardly_stands_still() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.state(StateChange::Start).await;
    let point = bed.point(PointType::Log).await;
    bed.write("a.img", 1, MIB, 40 * MIB);
    bed.flush("a.img");
    let machine = bench.vmms.machine(bed.vm).unwrap();
    let mut events = machine.events();
    let before = bed.disk("a.img").layers.nodes.len();
    assert_eq!(before, 2);
    bed.destroy(point).await;
    // The guest stood still once, for the last and small layer only.
    let mut stops = 0;
    while let Ok(event) = events.try_recv() {
        stops += usize::from(matches!(event, hypervisor::MachineEvent::Stopped));
    }
    assert_eq!(stops, 1);
    assert_eq!(bed.disk("a.img").layers.nodes.len(), 1);
    assert_eq!(files(&bench.path("images")), ["a.img"]);
    bed.write("a.img", 2, 2 * MIB, 512);
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
}

/// Two points on a branch that is left; the data of the first is being removed when this returns, so that the tip is merged.
async fn merging_a_left_branch(bed: &mut Bed<'_>) -> (Uuid, Vec<u8>, Uuid) {
    let vmms = &bed.bench.vmms;
    let (kind, crash) = (SnapshotKind::Disk, Some(Consistency::Crash));
    let made = snapshot::create(vmms, bed.vm, kind, crash, "", &Asked::default()).await;
    let (snapshot, job) = made.unwrap();
    bed.bench.done(job).await;
    let at_snapshot = bed.disks.clone();
    let first = bed.point(PointType::Log).await;
    bed.write("a.img", 1, 0, 160 * MIB);
    let second = bed.point(PointType::Log).await;
    let at_second = bed.disks["a.img"].clone();
    let vmms = &bed.bench.vmms;
    let job = snapshot::apply(vmms, snapshot, &Asked::default()).await;
    bed.bench.done(job.unwrap()).await;
    bed.disks = at_snapshot;
    let asked = Asked::default();
    let job = vmms::point::remove_data(vmms, first, &asked).await.unwrap();
    let mut changes = vmms.db.changes();
    while bed.disk("a.img").layers.pending.is_none() && !vmms.job(job).unwrap().state.is_final() {
        changes.changed().await.unwrap();
    }
    (second, at_second, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_was_left_is_exact_whatever_interrupts_its_merge() {
    for interruption in ["point", "export", "start"] {
        let bench = Bench::new().await;
        let mut bed = bench.machine(&BIG).await;
        bed.write("a.img", 9, 0, MIB);
        let (second, at_second, job) = merging_a_left_branch(&mut bed).await;
        match interruption {
            "point" => drop(bed.point(PointType::Log).await),
            "start" => bed.state(StateChange::Start).await,
            _ => {}
        }
        let whole = bed.export(second, None, "at-once").await;
        let found = bench
            .contents(&whole.output.disks[0].file, ImageFormat::Qcow2)
            .await;
        support::assert_same(&found, &at_second, interruption);
        bench.done(job).await;
        if interruption == "start" {
            bed.state(StateChange::Stop).await;
        }
        for _ in 0..3 {
            bed.sweep().await;
        }
        let whole = bed.export(second, None, "merged").await;
        let found = bench
            .contents(&whole.output.disks[0].file, ImageFormat::Qcow2)
            .await;
        support::assert_same(&found, &at_second, interruption);
        bed.assert_present().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_with_a_colon_in_their_name_are_merged_and_folded() {
    let bench = Bench::new().await;
    let mut bed = bench
        .machine(&[("nbd:a.qcow2", ImageFormat::Qcow2, 2 * MIB)])
        .await;
    for running in [false, true] {
        if running {
            bed.state(StateChange::Start).await;
        }
        let mut points = Vec::new();
        for byte in 1..4 {
            bed.write("nbd:a.qcow2", byte, u64::from(byte) * 65536, 65536);
            points.push(bed.point(PointType::Log).await);
        }
        for point in points {
            bed.destroy(point).await;
        }
        for _ in 0..3 {
            bed.sweep().await;
        }
        assert_eq!(bed.disk("nbd:a.qcow2").layers.nodes.len(), 1);
        assert_eq!(files(&bench.path("images")), ["nbd:a.qcow2"]);
    }
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
}
