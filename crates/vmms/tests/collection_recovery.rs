//! The service ends at single changes of its records while collections' points are taken, exported and deleted: after
//! the next start each point is there whole, of one instant, or not at all.
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
use support::{Bed, Bench, KIB, MIB, assert_same, files};
use tokio::sync::watch;
use uuid::Uuid;
use vmms::collection::{self, CollectionKind, CollectionPoint, manage};
use vmms::job::{Job, JobState};
use vmms::machine::Asked;
use vmms::machine::StateChange;
use vmms::point::{Consistency, Point, PointType};

const NAMES: [&str; 3] = ["a.qcow2", "b.qcow2", "c.img"];

/// What each disk held, by machine, for each point that was asked for.
type Copies = Vec<BTreeMap<Uuid, Vec<u8>>>;

struct Life<'a> {
    bench: &'a Bench,
    beds: Vec<Bed<'a>>,
    collection: Uuid,
    copies: Copies,
}

impl Life<'_> {
    fn write(&mut self, byte: u8) {
        for (bed, name) in self.beds.iter_mut().zip(NAMES) {
            let at = u64::from(byte) * 7 * KIB;
            bed.write(name, byte, at, 9 * KIB);
        }
    }

    fn now(&self) -> BTreeMap<Uuid, Vec<u8>> {
        let held = self.beds.iter().zip(NAMES);
        held.map(|(bed, name)| (bed.vm, bed.disks[name].clone()))
            .collect()
    }

    async fn point(&mut self, kind: PointType) -> Uuid {
        self.copies.push(self.now());
        let (vmms, asked) = (&self.bench.vmms, Asked::default());
        let crash = Some(Consistency::Crash);
        let made = collection::create_point(vmms, self.collection, kind, crash, "p", &asked);
        let (point, job) = made.await.unwrap();
        self.bench.done(job).await;
        point
    }

    async fn export(&self, point: Uuid, base: Option<Uuid>, to: &str) -> Job {
        let (vmms, asked) = (&self.bench.vmms, Asked::default());
        let to = self.bench.path(to);
        let job = collection::export_point(vmms, point, base, &to, &[], &asked)
            .await
            .unwrap();
        self.bench.done(job).await
    }

    async fn destroy(&self, point: Uuid) {
        let (vmms, asked) = (&self.bench.vmms, Asked::default());
        let job = collection::destroy_point(vmms, point, &asked)
            .await
            .unwrap();
        self.bench.done(job).await;
    }

    async fn live(&mut self) {
        self.write(1);
        let first = self.point(PointType::Log).await;
        self.write(2);
        let second = self.point(PointType::Rct).await;
        self.write(3);
        self.export(second, Some(first), "out").await;
        let (vmms, asked) = (&self.bench.vmms, Asked::default());
        let job = collection::remove_data(vmms, first, &asked).await.unwrap();
        self.bench.done(job).await;
        self.destroy(first).await;
        self.destroy(second).await;
    }

    /// After the restart: waits for what goes on, then looks at everything.
    async fn look(&mut self, running: bool) {
        let vmms = &self.bench.vmms;
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
        for bed in &self.beds[..2] {
            if running {
                let machine = vmms.machine(bed.vm).unwrap();
                assert_eq!(machine.status().await.unwrap(), MachineStatus::Running);
            }
        }
        let manifests = files(&self.bench.path("out"));
        let manifests = manifests.iter().filter(|f| f.ends_with("manifest.json"));
        assert!([0, 3].contains(&manifests.count()), "all or none");
        let mut points = vmms.db.all::<CollectionPoint>();
        points.sort_by_key(|p| p.sequence);
        let members: usize = points.iter().map(|p| p.members.len()).sum();
        assert_eq!(
            vmms.db.all::<Point>().len(),
            members,
            "no member stands alone"
        );
        for point in &points {
            assert!(point.complete);
            assert_eq!(point.members.len(), 3);
            let own: Vec<Arc<Point>> = point
                .members
                .iter()
                .map(|m| vmms.db.get(m.point).unwrap())
                .collect();
            assert!(own.iter().all(|p| p.complete));
            if own.iter().all(|p| p.holds_content()) {
                let job = self
                    .export(point.id, None, &format!("look/{}", point.sequence))
                    .await;
                let held = &self.copies[usize::try_from(point.sequence).unwrap() - 1];
                for disk in &job.output.disks {
                    let found = self.bench.contents(&disk.file, ImageFormat::Qcow2).await;
                    assert_same(&found, &held[&disk.vm], &disk.file.display().to_string());
                }
            }
        }
        for point in points {
            self.destroy(point.id).await;
        }
        for _ in 0..3 {
            self.beds[0].sweep().await;
        }
        for bed in &self.beds[..2] {
            if running {
                bed.state(StateChange::Stop).await;
            }
        }
        assert_eq!(files(&self.bench.path("images")), NAMES);
        assert!(files(&self.bench.path("state/maps")).is_empty());
        assert!(files(&self.bench.path("state/points")).is_empty());
        for bed in &self.beds {
            bed.assert_present().await;
        }
    }
}

fn beds<'a>(bench: &'a Bench, known: Vec<(Uuid, BTreeMap<String, Vec<u8>>)>) -> Vec<Bed<'a>> {
    let of = |(vm, disks)| Bed { bench, vm, disks };
    known.into_iter().map(of).collect()
}

/// One life that ends at the `nth` transaction; tells whether it came to its natural end before.
fn killed_at(nth: i64, after: bool, running: bool) -> bool {
    let (dead, mut died) = watch::channel(false);
    let first = support::runtime();
    let (mut bench, known, collection, copies, lived) = first.block_on(async {
        let mut bench = Bench::new().await;
        let mut known = Vec::new();
        for (name, format) in
            NAMES
                .into_iter()
                .zip([ImageFormat::Qcow2, ImageFormat::Qcow2, ImageFormat::Raw])
        {
            let bed = bench.machine(&[(name, format, MIB / 4)]).await;
            known.push((bed.vm, bed.disks));
        }
        let collection = manage::define(&bench.vmms, "three", None, CollectionKind::Machines)
            .await
            .unwrap();
        for (vm, _) in &known {
            manage::add(&bench.vmms, collection, *vm).await.unwrap();
        }
        let store = Arc::new(Deadly {
            inner: Arc::clone(&bench.store),
            left: AtomicI64::new(i64::MAX),
            after,
            dead,
        });
        bench.restart_on(store.clone()).await;
        let mut life = Life {
            bench: &bench,
            beds: beds(&bench, known),
            collection,
            copies: Vec::new(),
        };
        if running {
            for bed in &life.beds[..2] {
                bed.state(StateChange::Start).await;
            }
        }
        store.left.store(nth, Ordering::SeqCst);
        let lived = tokio::select! {
            () = life.live() => true,
            _ = died.wait_for(|dead| *dead) => false,
        };
        let known = life.beds.into_iter().map(|b| (b.vm, b.disks)).collect();
        let copies = life.copies;
        (bench, known, collection, copies, lived)
    });
    first.shutdown_background();
    support::runtime().block_on(async {
        bench.restart().await;
        let mut life = Life {
            bench: &bench,
            beds: beds(&bench, known),
            collection,
            copies,
        };
        life.look(running).await;
    });
    lived
}

/// Every step is tried with KVMMS_STEP=1; otherwise each ninth.
fn every_step(begin: i64, after: bool, running: bool) {
    let stride = std::env::var("KVMMS_STEP")
        .ok()
        .and_then(|n| n.parse().ok());
    let stride: i64 = stride.unwrap_or(9);
    let mut nth = begin % stride;
    while {
        // Shown when the life fails.
        eprintln!("killed at change {nth}");
        !killed_at(nth, after, running)
    } {
        nth += stride;
        assert!(nth < 500, "a life has an end");
    }
}

#[test]
fn a_service_killed_before_a_change_is_durable_leaves_whole_points_or_none() {
    every_step(0, false, false);
}

#[test]
fn a_service_killed_after_a_change_is_durable_leaves_whole_points_or_none() {
    every_step(4, true, false);
}

#[test]
fn a_service_killed_beside_running_machines_lets_them_go_on() {
    every_step(2, false, true);
    every_step(6, true, true);
}
