//! Machines that run move between two services, on QEMU: the guest goes on there with every byte, or here as if nothing had been.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::time::Duration;

use hypervisor::ImageFormat;
use support::hosts::{Hosts, Way, hasty, trust};
use support::{Bed, KIB, MIB, files, options};
use vmms::Message;
use vmms::job::{Job, JobState};
use vmms::machine::{Power, StateChange, Vm, VmState};
use vmms::migration::{self, Phase};
use vmms::point::PointType;

const DISKS: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, 8 * MIB),
    ("b.img", ImageFormat::Raw, 2 * MIB),
];

fn texts(job: &Job) -> Vec<String> {
    let chain = job.faults.iter().flat_map(|f| f.chain());
    chain
        .map(|f| format!("{}: {}", f.message.id(), f.text()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_moves_with_its_chain_and_goes_on_there() {
    let hosts = Hosts::new(options()).await;
    let (vm, first, at_first, now) = {
        let mut bed = hosts.here.machine(&DISKS).await;
        bed.write("a.qcow2", 1, 0, 900 * KIB);
        bed.state(StateChange::Start).await;
        bed.write("b.img", 2, 512, 64 * KIB);
        let first = bed.point(PointType::Log).await;
        let at_first = bed.disks.clone();
        bed.export(first, None, "one").await;
        bed.write("a.qcow2", 3, 300 * KIB, 100 * KIB);
        bed.write("b.img", 4, MIB, 4 * KIB);
        (bed.vm, first, at_first, bed.disks.clone())
    };
    let moved = hosts.go(hosts.request(vm)).await;
    assert_eq!(moved.state, JobState::Completed, "{:#?}", texts(&moved));
    let progress = moved.output.migration.clone().unwrap();
    assert_eq!(progress.phase, Phase::Done);
    assert!(
        progress.downtime_ms.is_some() && progress.disk_bytes > 0,
        "{progress:?}"
    );
    // Nothing of it is here, and it runs there.
    assert!(hosts.here.vmms.db.all::<Vm>().is_empty());
    assert!(files(&hosts.here.path("images")).is_empty());
    let there = &hosts.there.vmms;
    let record = there.db.get::<Vm>(vm).unwrap();
    assert_eq!(there.state_of(&record), VmState::Running);
    // It goes on being written to, and the next difference is exact.
    let mut bed = Bed {
        bench: &hosts.there,
        vm,
        disks: now,
    };
    bed.write("a.qcow2", 5, 4 * MIB, 30 * KIB);
    let second = bed.point(PointType::Log).await;
    let part = bed.export(second, Some(first), "two").await;
    assert_eq!(part.output.base, Some(first));
    bed.assert_exported(&part, &bed.disks).await;
    let whole = bed.export(first, None, "three").await;
    bed.assert_exported(&whole, &at_first).await;
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_breaks_leaves_the_machine_running_here_and_nothing_there() {
    let hosts = Hosts::new(hasty()).await;
    let mut bed = hosts.here.machine(&DISKS).await;
    bed.write("a.qcow2", 1, 0, 7 * MIB);
    bed.state(StateChange::Start).await;
    bed.point(PointType::Log).await;
    bed.write("a.qcow2", 2, 0, 6 * MIB);
    let (here, there) = (&hosts.here.vmms, &hosts.there.vmms);
    // The frozen layers pass, the mirror does not.
    let way = Way::to(migration::listening(there)[0].port(), 11 * 1024 * 1024).await;
    trust(here, "there", there, Some(way.port)).await;
    let failed = hosts.go(hosts.request(bed.vm)).await;
    assert_eq!(failed.state, JobState::Exception);
    assert!(
        failed.faults[0].has(Message::MoveFailed),
        "{:#?}",
        texts(&failed)
    );
    let record = bed.record();
    assert_eq!(
        (record.power, here.state_of(&record)),
        (Power::Running, VmState::Running)
    );
    assert!(migration::permits(here).is_empty());
    assert!(there.db.all::<Vm>().is_empty());
    // It works on here, and may try again at once, though the destination has not heard that the first attempt is over.
    bed.write("b.img", 6, 0, 5 * KIB);
    trust(here, "there", there, None).await;
    let moved = hosts.go(hosts.request(bed.vm)).await;
    assert_eq!(moved.state, JobState::Completed, "{:#?}", texts(&moved));
    assert!(moved.output.migration.unwrap().file_skipped > MIB);
    // The time of what was kept of the first attempt ends: the machine that has come since has nothing to do with that.
    for arrival in migration::arrivals(there) {
        let past = |draft: &mut vmms::db::Draft<'_>| {
            let arrival = draft.get_mut::<migration::Arrival>(arrival.id)?;
            let kept = arrival.kept_until.is_some();
            arrival.kept_until = kept.then_some(std::time::UNIX_EPOCH);
            Ok(kept)
        };
        there.db.change(past).await.unwrap();
    }
    there.tick().await;
    assert!(
        migration::arrivals(there)
            .iter()
            .all(|a| a.kept_until.is_none())
    );
    let record = there.db.get::<Vm>(bed.vm).unwrap();
    assert_eq!(there.state_of(&record), VmState::Running);
    let bed = Bed {
        bench: &hosts.there,
        vm: bed.vm,
        disks: bed.disks.clone(),
    };
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_stopped_before_the_hand_over_leaves_the_machine_running_here() {
    let hosts = Hosts::new(hasty()).await;
    let mut bed = hosts.here.machine(&DISKS).await;
    bed.state(StateChange::Start).await;
    bed.write("a.qcow2", 2, 0, 7 * MIB);
    let (here, there) = (&hosts.here.vmms, &hosts.there.vmms);
    let mut slow = hosts.request(bed.vm);
    slow.options.bandwidth = Some(256 * KIB);
    let job = migration::migrate(here, slow, &vmms::machine::Asked::default())
        .await
        .unwrap();
    let mut changes = here.db.changes();
    loop {
        let seen = here.job(job).unwrap();
        assert!(!seen.state.is_final(), "{:#?}", texts(&seen));
        if seen.output.migration.unwrap().phase == Phase::Mirroring {
            break;
        }
        let changed = tokio::time::timeout(Duration::from_secs(60), changes.changed());
        changed.await.unwrap().unwrap();
    }
    here.request_job_state(job, vmms::job::JobRequest::Terminate)
        .await
        .unwrap();
    let job = here.wait(job).await.unwrap();
    assert_eq!(job.state, JobState::Terminated, "{:#?}", texts(&job));
    assert_eq!(here.state_of(&bed.record()), VmState::Running);
    for arrival in migration::arrivals(there) {
        there.wait(arrival.job.unwrap()).await.unwrap();
    }
    assert!(there.db.all::<Vm>().is_empty());
    assert!(files(&hosts.there.path("images")).is_empty());
    bed.write("b.img", 6, 0, 5 * KIB);
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
}
