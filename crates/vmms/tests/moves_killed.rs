//! Either service is killed at every single change of its records while a machine moves, before and after the change is durable, and starts
//! again: at no time may two hosts run the machine, afterwards exactly one has it, whole, and nothing of it is left on the other.
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
use support::hosts::{Hosts, anywhere, trust};
use support::{Bed, Bench, KIB, MIB, files};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use uuid::Uuid;
use vmms::job::JobState;
use vmms::machine::{Asked, Vm};
use vmms::migration::{self, PermitState};
use vmms::point::{Point, PointType};

const DISK: [(&str, ImageFormat, u64); 1] = [("a.qcow2", ImageFormat::Qcow2, 2 * MIB)];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Source,
    Destination,
}

/// Two hosts, each in a runtime of its own: only its end ends everything the service has going.
struct Lives {
    here: Runtime,
    there: Runtime,
    hosts: Hosts,
    vm: Uuid,
    disks: BTreeMap<String, Vec<u8>>,
    /// What the disks held at the point.
    copy: (Uuid, BTreeMap<String, Vec<u8>>),
}

impl Lives {
    fn new() -> Self {
        let (here, there) = (support::runtime(), support::runtime());
        let (source, vm, disks, copy) = here.block_on(async {
            let bench = Bench::new().await;
            let (vm, disks, copy) = {
                let mut bed = bench.machine(&DISK).await;
                bed.write("a.qcow2", 1, 0, 300 * KIB);
                let point = bed.point(PointType::Log).await;
                let copy = (point, bed.disks.clone());
                bed.write("a.qcow2", 2, 100 * KIB, 50 * KIB);
                (bed.vm, bed.disks.clone(), copy)
            };
            (bench, vm, disks, copy)
        });
        let target = there.block_on(Bench::new());
        std::fs::create_dir_all(target.path("images")).unwrap();
        let hosts = Hosts {
            here: source,
            there: target,
        };
        Lives {
            here,
            there,
            hosts,
            vm,
            disks,
            copy,
        }
    }

    /// One side goes on with another store.
    fn on_store(&mut self, side: Side, store: Arc<dyn store::Store>) {
        let (runtime, bench) = match side {
            Side::Source => (&self.here, &mut self.hosts.here),
            Side::Destination => (&self.there, &mut self.hosts.there),
        };
        runtime.block_on(bench.restart_on(store));
    }

    /// Both listen and trust each other, wherever they listen now.
    fn meet(&self) {
        let (here, there) = (&self.hosts.here.vmms, &self.hosts.there.vmms);
        let listen = async |vmms: &Arc<vmms::Vmms>| {
            if migration::listening(vmms).is_empty() {
                migration::listen(vmms, &[anywhere()]).await.unwrap();
            }
        };
        self.here.block_on(listen(here));
        self.there.block_on(listen(there));
        self.here.block_on(trust(here, "there", there, None));
        self.there.block_on(trust(there, "here", here, None));
    }

    /// The service of one side is gone, and starts again.
    fn again(&mut self, side: Side) {
        let (runtime, bench) = match side {
            Side::Source => (&mut self.here, &mut self.hosts.here),
            Side::Destination => (&mut self.there, &mut self.hosts.there),
        };
        std::mem::replace(runtime, support::runtime()).shutdown_background();
        runtime.block_on(bench.restart());
        self.meet();
    }

    /// At no time may two hosts run the machine.
    fn at_most_one(&self) {
        let may = |bench: &Bench| {
            let permits = migration::permits(&bench.vmms);
            let granted = permits.iter().any(|p| p.state != PermitState::Here);
            bench.vmms.db.get::<Vm>(self.vm).is_ok() && !granted
        };
        assert!(!(may(&self.hosts.here) && may(&self.hosts.there)));
    }

    /// Afterwards exactly one has it, whole, and nothing of it is on the other.
    fn look(&self) {
        for (runtime, bench) in [
            (&self.here, &self.hosts.here),
            (&self.there, &self.hosts.there),
        ] {
            for job in bench.vmms.jobs() {
                let job = runtime.block_on(bench.vmms.wait(job.id)).unwrap();
                let texts: Vec<String> = job
                    .faults
                    .iter()
                    .flat_map(|f| f.chain())
                    .map(|f| f.text())
                    .collect();
                assert_eq!(job.state, JobState::Completed, "{}: {texts:#?}", job.title);
            }
        }
        let has = |bench: &Bench| bench.vmms.db.get::<Vm>(self.vm).is_ok();
        let (here, there) = (has(&self.hosts.here), has(&self.hosts.there));
        assert!(here != there, "here {here}, there {there}");
        let (runtime, owner, other) = match here {
            true => (&self.here, &self.hosts.here, &self.hosts.there),
            false => (&self.there, &self.hosts.there, &self.hosts.here),
        };
        for dir in ["images", "state/maps", "state/points", "state/vm"] {
            let left = files(&other.path(dir));
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
        assert!(other.vmms.db.all::<Point>().is_empty());
        runtime.block_on(async {
            let bed = Bed {
                bench: owner,
                vm: self.vm,
                disks: self.disks.clone(),
            };
            bed.assert_present().await;
            let part = bed.export(self.copy.0, None, "look").await;
            bed.assert_exported(&part, &self.copy.1).await;
        });
    }
}

/// A move in which one service ends at its `nth` change; tells whether the move came to its end before.
fn killed_at(side: Side, nth: i64, after: bool) -> bool {
    let (dead, mut died) = watch::channel(false);
    let mut lives = Lives::new();
    let inner = match side {
        Side::Source => Arc::clone(&lives.hosts.here.store),
        Side::Destination => Arc::clone(&lives.hosts.there.store),
    };
    let store = Arc::new(Deadly {
        inner,
        left: AtomicI64::new(i64::MAX),
        after,
        dead,
    });
    lives.on_store(side, store.clone());
    lives.meet();
    store.left.store(nth, Ordering::SeqCst);
    let request = lives.hosts.request(lives.vm);
    let source = Arc::clone(&lives.hosts.here.vmms);
    let lived = lives.here.block_on(async {
        let moved = async {
            let job = migration::migrate(&source, request, &Asked::default()).await;
            source.wait(job.unwrap()).await.unwrap();
        };
        tokio::select! {
            () = moved => true,
            _ = died.wait_for(|dead| *dead) => false,
        }
    });
    // What the destination still has to write down after its answer may be where it ends.
    let target = Arc::clone(&lives.hosts.there.vmms);
    let lived = lived
        && lives.there.block_on(async {
            let ended = async {
                for job in target.jobs() {
                    target.wait(job.id).await.unwrap();
                }
            };
            tokio::select! {
                () = ended => true,
                _ = died.wait_for(|dead| *dead) => false,
            }
        });
    drop((source, target));
    lives.at_most_one();
    // What is asked of it from here on is not the move any more.
    store.left.store(i64::MAX, Ordering::SeqCst);
    if !lived {
        lives.again(side);
        lives.at_most_one();
    }
    lives.look();
    lived
}

/// Every step is tried with KVMMS_STEP=1; otherwise each eleventh, beginning elsewhere for each kind of end.
fn every_step(side: Side, begin: i64, after: bool) {
    let stride = std::env::var("KVMMS_STEP")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(11);
    let mut nth = begin % stride;
    while !killed_at(side, nth, after) {
        nth += stride;
        assert!(nth < 500, "a move has an end");
    }
}

#[test]
fn a_source_killed_before_a_change_is_durable_leaves_exactly_one_machine() {
    every_step(Side::Source, 1, false);
}

#[test]
fn a_source_killed_after_a_change_is_durable_leaves_exactly_one_machine() {
    every_step(Side::Source, 6, true);
}

#[test]
fn a_destination_killed_before_a_change_is_durable_leaves_exactly_one_machine() {
    every_step(Side::Destination, 2, false);
}

#[test]
fn a_destination_killed_after_a_change_is_durable_leaves_exactly_one_machine() {
    every_step(Side::Destination, 7, true);
}
