//! The service ends at changes of its records while snapshots are taken, exported, converted, applied and deleted: after the
//! next start each is there whole or not at all, and the machine is one of the things it was asked to be.
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

use hypervisor::{ImageFormat, MachineStatus};
use support::deadly::Deadly;
use support::{Bed, Bench, KIB, MIB, files};
use tokio::sync::watch;
use uuid::Uuid;
use vmms::export::{LiveState, SystemExport};
use vmms::job::JobState;
use vmms::machine::StateChange;
use vmms::machine::{Asked, Power};
use vmms::point::{Consistency, Point};
use vmms::snapshot::{self, Snapshot, SnapshotKind};

const DISKS: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, MIB + 512),
    ("b.img", ImageFormat::Raw, 512 * KIB),
];

type Disks = BTreeMap<String, Vec<u8>>;

/// What is known outside of the service.
#[derive(Default)]
struct Known {
    /// What the disks held when each snapshot was asked for.
    copies: Vec<Disks>,
    /// Whether applying the first one was seen to end.
    applied: bool,
}

async fn take(bed: &Bed<'_>, kind: SnapshotKind, known: &mut Known) -> Uuid {
    known.copies.push(bed.disks.clone());
    let crash = Some(Consistency::Crash);
    let made = snapshot::create(&bed.bench.vmms, bed.vm, kind, crash, "s", &Asked::default()).await;
    let (id, job) = made.unwrap();
    bed.bench.done(job).await;
    id
}

fn order(bed: &Bed<'_>, snapshot: Uuid, to: &str) -> SystemExport {
    SystemExport {
        snapshot: Some(snapshot),
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

async fn stopped_life(bed: &mut Bed<'_>, known: &mut Known) {
    let (vmms, asked) = (Arc::clone(&bed.bench.vmms), Asked::default());
    bed.write("a.qcow2", 1, 0, 300 * KIB);
    let first = take(bed, SnapshotKind::Disk, known).await;
    bed.write("a.qcow2", 2, 100 * KIB, 10 * KIB);
    bed.write("b.img", 2, 0, 4 * KIB);
    let second = take(bed, SnapshotKind::Recovery, known).await;
    bed.write("b.img", 3, 2 * KIB, 100 * KIB);
    let export = order(bed, second, "out");
    let job = vmms::export::export_system(&vmms, bed.vm, export, &asked)
        .await
        .unwrap();
    bed.bench.done(job).await;
    let job = snapshot::convert(&vmms, second, &asked).await.unwrap();
    bed.bench.done(job).await;
    let job = snapshot::apply(&vmms, first, &asked).await.unwrap();
    bed.bench.done(job).await;
    bed.disks.clone_from(&known.copies[0]);
    known.applied = true;
    bed.write("a.qcow2", 4, 0, 4 * KIB);
    take(bed, SnapshotKind::Disk, known).await;
    bed.write("a.qcow2", 5, 8 * KIB, 4 * KIB);
    let job = snapshot::destroy(&vmms, first, false, &asked)
        .await
        .unwrap();
    bed.bench.done(job).await;
    let job = vmms::point::destroy_point(&vmms, second, &asked)
        .await
        .unwrap();
    bed.bench.done(job).await;
}

async fn running_life(bed: &mut Bed<'_>, known: &mut Known) {
    bed.write("a.qcow2", 1, 0, 300 * KIB);
    take(bed, SnapshotKind::Full, known).await;
    bed.write("b.img", 2, 0, 4 * KIB);
    take(bed, SnapshotKind::Disk, known).await;
}

async fn look(bed: &mut Bed<'_>, known: &Known, running: bool) {
    let vmms = Arc::clone(&bed.bench.vmms);
    let asked = Asked::default();
    for job in vmms.jobs() {
        let job = vmms.wait(job.id).await.unwrap();
        let interrupted = job
            .faults
            .first()
            .is_some_and(|f| f.has(vmms::Message::HostInterrupted));
        let chain: Vec<String> = job
            .faults
            .iter()
            .flat_map(|f| f.chain())
            .map(|f| f.text())
            .collect();
        assert!(
            job.state == JobState::Completed || interrupted,
            "{}: {chain:#?}",
            job.title
        );
    }
    if running {
        assert_eq!(bed.record().power, Power::Running);
        let machine = vmms.machine(bed.vm).unwrap();
        assert_eq!(machine.status().await.unwrap(), MachineStatus::Running);
    } else if bed.record().last_applied.is_some() && !known.applied {
        bed.disks.clone_from(&known.copies[0]);
    }
    bed.assert_present().await;
    for (n, found) in vmms.db.all::<Snapshot>().into_iter().enumerate() {
        assert!(found.complete, "an unfinished snapshot is taken back");
        let held = &known.copies[usize::try_from(found.sequence).unwrap() - 1];
        let export = order(bed, found.id, &format!("look{n}"));
        let job = vmms::export::export_system(&vmms, bed.vm, export, &asked)
            .await
            .unwrap();
        bed.assert_exported(&bed.bench.done(job).await, held).await;
        let job = match found.kind {
            SnapshotKind::Recovery => snapshot::convert(&vmms, found.id, &asked).await,
            _ => snapshot::destroy(&vmms, found.id, false, &asked).await,
        };
        bed.bench.done(job.unwrap()).await;
    }
    for point in vmms.db.all::<Point>() {
        bed.destroy(point.id).await;
    }
    for _ in 0..4 {
        bed.sweep().await;
    }
    if running {
        bed.state(StateChange::Stop).await;
        bed.sweep().await;
    }
    bed.assert_present().await;
    assert_eq!(files(&bed.bench.path("images")), ["a.qcow2", "b.img"]);
    let kept = std::fs::read_dir(vmms.dirs.state.join("points")).map_or(0, Iterator::count);
    assert_eq!(kept, 0, "no files of snapshots stay");
}

/// A life that ends at the `nth` change of records; whether it came to its own end.
fn killed(running: bool, nth: i64, after: bool) -> bool {
    let first = support::runtime();
    let (mut bench, vm, disks, known, lived) = first.block_on(async {
        let mut bench = Bench::new().await;
        let (dead, mut died) = watch::channel(false);
        let mut known = Known::default();
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
        let life = async {
            match running {
                true => running_life(&mut bed, &mut known).await,
                false => stopped_life(&mut bed, &mut known).await,
            }
        };
        let lived = tokio::select! {
            () = life => true,
            _ = died.wait_for(|dead| *dead) => false,
        };
        let disks = bed.disks;
        (bench, vm, disks, known, lived)
    });
    first.shutdown_background();
    support::runtime().block_on(async {
        bench.restart().await;
        let mut bed = Bed {
            bench: &bench,
            vm,
            disks,
        };
        look(&mut bed, &known, running).await;
    });
    lived
}

/// Every step is tried with KVMMS_STEP=1; otherwise some, beginning elsewhere for each kind of end.
fn everywhere(running: bool, usual: i64) {
    let step = std::env::var("KVMMS_STEP")
        .ok()
        .and_then(|n| n.parse().ok());
    let step: i64 = step.unwrap_or(usual);
    for after in [false, true] {
        let mut nth = if after { step / 2 } else { 0 };
        while !killed(running, nth, after) {
            nth += step;
            assert!(nth < 400, "it never comes to its end");
        }
    }
}

#[test]
fn a_service_killed_at_changes_of_records_of_a_stopped_machine_loses_nothing() {
    everywhere(false, 7);
}

#[test]
fn a_service_killed_while_memory_is_saved_lets_the_machine_go_on() {
    everywhere(true, 5);
}
