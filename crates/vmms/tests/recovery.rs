//! The service ends at every single change of its records, before and after the change is durable, and starts again:
//! nothing acknowledged is lost, nothing is half done, every point is exact.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use hypervisor::ImageFormat;
use support::deadly::Deadly;
use support::{Bed, Bench, KIB, MIB, files};
use tokio::sync::watch;
use uuid::Uuid;
use vmms::job::JobState;
use vmms::machine::Asked;
use vmms::machine::StateChange;
use vmms::point::{Point, PointType};

const DISKS: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, MIB + 512),
    ("b.img", ImageFormat::Raw, 512 * KIB),
];

/// What the disks held at each point, in the order the points were asked for.
type Copies = Vec<BTreeMap<String, Vec<u8>>>;

async fn life(bed: &mut Bed<'_>, copies: &mut Copies) {
    let asked = Asked::default();
    bed.write("a.qcow2", 1, 0, 300 * KIB);
    copies.push(bed.disks.clone());
    let first = bed.point(PointType::Log).await;
    bed.write("a.qcow2", 2, 100 * KIB, 10 * KIB);
    bed.write("b.img", 2, 0, 4 * KIB);
    copies.push(bed.disks.clone());
    let second = bed.point(PointType::Rct).await;
    bed.write("b.img", 3, 2 * KIB, 100 * KIB);
    bed.export(second, Some(first), "out").await;
    let vmms = &bed.bench.vmms;
    let job = vmms::point::remove_data(vmms, first, &asked).await.unwrap();
    bed.bench.done(job).await;
    copies.push(bed.disks.clone());
    let third = bed.point(PointType::Log).await;
    bed.destroy(first).await;
    bed.destroy(second).await;
    bed.destroy(third).await;
}

/// After the restart: waits for what goes on, then looks at everything.
async fn look(bed: &mut Bed<'_>, copies: &Copies) {
    let vmms = &bed.bench.vmms;
    for job in vmms.jobs() {
        let job = vmms.wait(job.id).await.unwrap();
        let faults: Vec<String> = job
            .faults
            .iter()
            .flat_map(|f| f.chain())
            .map(|f| f.text())
            .collect();
        let interrupted = job
            .faults
            .first()
            .is_some_and(|f| f.has(vmms::Message::HostInterrupted));
        assert!(
            job.state == JobState::Completed || interrupted,
            "{}: {faults:#?}",
            job.title
        );
    }
    let points = || -> Vec<Arc<Point>> {
        let mut points = vmms.db.all::<Point>();
        points.sort_by_key(|p| p.sequence);
        points
    };
    // A point that was not finished is gone, and so may be the last one of the list.
    let found = points();
    let mut oldest: Option<Uuid> = None;
    for point in &found {
        assert!(point.complete, "point {}", point.sequence);
        let at = usize::try_from(point.sequence).unwrap() - 1;
        if point.holds_content() {
            let full = bed
                .export(point.id, None, &format!("look/{}", point.sequence))
                .await;
            bed.assert_exported(&full, &copies[at]).await;
        }
    }
    for point in &points() {
        if let Some(base) = oldest
            && point.holds_content()
        {
            let to = format!("look/{}", point.sequence);
            let part = bed
                .export(point.id, Some(base), &format!("{to}-part"))
                .await;
            // Where an export beneath was never made, there is nothing to lay the difference over.
            if part.output.report.is_empty() {
                let at = usize::try_from(point.sequence).unwrap() - 1;
                bed.assert_exported(&part, &copies[at]).await;
            }
        }
        oldest = oldest.or(Some(point.id));
    }
    bed.write("a.qcow2", 99, 5 * KIB, 5 * KIB);
    for point in points() {
        bed.destroy(point.id).await;
    }
    bed.sweep().await;
    if vmms.machine(bed.vm).is_some() {
        bed.write("b.img", 98, 5 * KIB, 5 * KIB);
        bed.state(StateChange::Stop).await;
    }
    assert_eq!(files(&bed.bench.path("images")), ["a.qcow2", "b.img"]);
    assert!(files(&bed.bench.path("state/maps")).is_empty());
    assert!(files(&bed.bench.path("state/points")).is_empty());
    bed.assert_present().await;
}

/// One life that ends at the `nth` transaction; tells whether it came to its natural end before.
fn killed_at(nth: i64, after: bool, running: bool) -> bool {
    let (dead, mut died) = watch::channel(false);
    let first = support::runtime();
    let (mut bench, vm, disks, copies, lived) = first.block_on(async {
        let mut bench = Bench::new().await;
        let mut copies = Copies::new();
        let (vm, disks) = {
            let bed = bench.machine(&DISKS).await;
            (bed.vm, bed.disks)
        };
        let store = Arc::new(Deadly {
            inner: Arc::clone(&bench.store),
            left: AtomicI64::new(i64::MAX),
            after,
            dead,
        });
        bench.restart_on(store.clone()).await;
        let mut bed = Bed {
            bench: &bench,
            vm,
            disks,
        };
        if running {
            bed.state(StateChange::Start).await;
        }
        store.left.store(nth, Ordering::SeqCst);
        let lived = tokio::select! {
            () = life(&mut bed, &mut copies) => true,
            _ = died.wait_for(|dead| *dead) => false,
        };
        let disks = bed.disks;
        (bench, vm, disks, copies, lived)
    });
    first.shutdown_background();
    support::runtime().block_on(async {
        bench.restart().await;
        let mut bed = Bed {
            bench: &bench,
            vm,
            disks,
        };
        look(&mut bed, &copies).await;
    });
    lived
}

/// Every step is tried with KVMMS_STEP=1; otherwise each ninth, beginning elsewhere for each kind of end.
fn stride() -> i64 {
    std::env::var("KVMMS_STEP")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(9)
}

fn every_step(begin: i64, after: bool, running: bool) {
    let mut nth = begin % stride();
    while !killed_at(nth, after, running) {
        nth += stride();
        assert!(nth < 500, "a life has an end");
    }
}

#[test]
fn a_service_killed_before_a_change_is_durable_leaves_nothing_half_done() {
    every_step(0, false, false);
}

#[test]
fn a_service_killed_after_a_change_is_durable_leaves_nothing_half_done() {
    every_step(3, true, false);
}

#[test]
fn a_service_killed_beside_a_running_machine_leaves_nothing_half_done() {
    every_step(1, false, true);
    every_step(4, true, true);
}
