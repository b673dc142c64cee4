//! A hypervisor that fails at each call: points fail cleanly, guests thaw, layers are as they were, and the next try works.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use hypervisor::fake::{FakeHypervisor, Fault};
use hypervisor::{Hypervisor, ImageFormat, ImageTool, Machine};
use support::{Bench, MIB, files, options};
use vmms::Message;
use vmms::job::JobState;
use vmms::machine::StateChange;
use vmms::point::{Consistency, Point, PointType};

const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, 64 * MIB),
    ("b.qcow2", ImageFormat::Qcow2, 64 * MIB),
];

struct Faulty {
    bench: Bench,
    fake: Arc<FakeHypervisor>,
}

async fn faulty() -> Faulty {
    let fake = Arc::new(FakeHypervisor::with_images(ImageTool::default()));
    let hypervisor: Arc<dyn Hypervisor> = fake.clone();
    Faulty {
        bench: Bench::on(options(), hypervisor).await,
        fake,
    }
}

fn lost() -> Fault {
    Fault::lose_answer(Duration::from_secs(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_fails_at_any_call_leaves_the_machine_as_it_was() {
    for method in [
        "prepare_layers",
        "mark",
        "guest_ping",
        "guest_freeze",
        "guest_frozen",
        "guest_thaw",
    ] {
        for lose in [false, true] {
            let Faulty { bench, fake } = faulty().await;
            let bed = bench.machine(&TWO).await;
            bed.state(StateChange::Start).await;
            fake.script().on_next(
                method,
                if lose {
                    lost()
                } else {
                    Fault::refuse("scripted")
                },
            );
            let (point, job) = bed
                .try_point(PointType::Log, Some(Consistency::Application))
                .await;
            let thaw_only = method == "guest_thaw";
            if job.state == JobState::Completed {
                // The guest was frozen at the instant for sure; the thaw is repeated behind it.
                assert!(thaw_only, "{method} {lose}");
            } else {
                assert_eq!(
                    job.state,
                    JobState::Exception,
                    "{method} {lose}: {:#?}",
                    job.faults
                );
                assert_eq!(job.faults[0].message, Message::PointFailed);
                assert!(
                    bench.vmms.db.get::<Point>(point).is_err(),
                    "{method} {lose}"
                );
            }
            bed.sweep().await;
            let machine = fake.machine(bed.vm).unwrap();
            for _ in 0..100 {
                if !machine.guest_frozen(Duration::from_secs(1)).await.unwrap() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(
                !machine.guest_frozen(Duration::from_secs(1)).await.unwrap(),
                "{method} {lose}: thawed"
            );
            if !thaw_only {
                assert_eq!(
                    files(&bench.path("images")),
                    ["a.qcow2", "b.qcow2"],
                    "{method} {lose}"
                );
                assert!(files(&bench.path("state/points")).is_empty());
            }
            let (_, job) = bed
                .try_point(PointType::Log, Some(Consistency::Application))
                .await;
            assert_eq!(
                job.state,
                JobState::Completed,
                "{method} {lose}: {:#?}",
                job.faults
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_fails_is_told_and_done_later() {
    for method in ["commit", "reconcile"] {
        for lose in [false, true] {
            let Faulty { bench, fake } = faulty().await;
            let bed = bench.machine(&TWO).await;
            bed.state(StateChange::Start).await;
            let first = bed.point(PointType::Log).await;
            let second = bed.point(PointType::Log).await;
            fake.script().on_next(
                method,
                if lose {
                    lost()
                } else {
                    Fault::refuse("scripted")
                },
            );
            let job = bed.destroy(first).await;
            assert!(bench.vmms.db.get::<Point>(first).is_err());
            let told = job.faults.iter().any(|f| f.has(Message::CommitFailed));
            assert!(
                told || method == "reconcile",
                "{method} {lose}: {:#?}",
                job.faults
            );
            bed.destroy(second).await;
            for _ in 0..10 {
                bed.sweep().await;
            }
            assert_eq!(
                files(&bench.path("images")),
                ["a.qcow2", "b.qcow2"],
                "{method} {lose}"
            );
            assert!(matches!(
                fake.machine(bed.vm).unwrap().status().await.unwrap(),
                hypervisor::MachineStatus::Running
            ));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_application_consistency_is_refused_and_nothing_asked_falls_back() {
    let Faulty { bench, fake } = faulty().await;
    let bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    fake.machine(bed.vm).unwrap().set_agent(false);
    let (_, job) = bed
        .try_point(PointType::Log, Some(Consistency::Application))
        .await;
    assert!(job.faults[0].has(Message::AgentAbsent), "{:#?}", job.faults);
    let point = bed.point(PointType::Log).await;
    let record = bench.vmms.db.get::<Point>(point).unwrap();
    assert_eq!(record.consistency, Consistency::Crash);
    assert!(
        record.decisions[0].reason.contains("agent"),
        "{:?}",
        record.decisions
    );
    fake.machine(bed.vm).unwrap().set_agent(true);
    let point = bed.point(PointType::Log).await;
    assert_eq!(
        bench.vmms.db.get::<Point>(point).unwrap().consistency,
        Consistency::Application
    );
    let (point, job) = bed
        .try_point(PointType::Log, Some(Consistency::Crash))
        .await;
    bench.done(job.id).await;
    assert_eq!(
        bench.vmms.db.get::<Point>(point).unwrap().consistency,
        Consistency::Crash
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_thawed_by_itself_was_not_consistent() {
    let Faulty { bench, fake } = faulty().await;
    let bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    fake.script().on_next("mark", Fault::Hang);
    let machine = fake.machine(bed.vm).unwrap();
    let script = fake.script().clone();
    let thaws = tokio::spawn(async move {
        while script.count("mark") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        machine.guest_thaw(Duration::from_secs(1)).await.unwrap();
        script.release_hangs();
    });
    let (point, job) = bed
        .try_point(PointType::Log, Some(Consistency::Application))
        .await;
    thaws.await.unwrap();
    assert!(
        job.faults[0].has(Message::FreezeFailed),
        "{:#?}",
        job.faults
    );
    assert!(bench.vmms.db.get::<Point>(point).is_err());
    bed.sweep().await;
    assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.qcow2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_in_the_mark_fails_the_point_only() {
    let Faulty { bench, fake } = faulty().await;
    let bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    fake.script().on_next("mark", Fault::Hang);
    let machine = fake.machine(bed.vm).unwrap();
    let script = fake.script().clone();
    let dies = tokio::spawn(async move {
        while script.count("mark") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        machine.die(9);
        script.release_hangs();
    });
    let (point, job) = bed
        .try_point(PointType::Log, Some(Consistency::Crash))
        .await;
    dies.await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    assert!(job.faults[0].has(Message::QemuGone), "{:#?}", job.faults);
    bed.wait_off().await;
    bed.sweep().await;
    assert!(bench.vmms.db.get::<Point>(point).is_err());
    assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.qcow2"]);
    bed.point(PointType::Log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_runs_on_whatever_fails_while_its_disk_is_folded() {
    for method in ["quiesce", "commit", "release", "reconcile"] {
        for lose in [false, true] {
            let Faulty { bench, fake } = faulty().await;
            let bed = bench.machine(&TWO).await;
            bed.state(StateChange::Start).await;
            let point = bed.point(PointType::Log).await;
            let fault = if lose {
                lost()
            } else {
                Fault::refuse("scripted")
            };
            fake.script().on_next(method, fault);
            bed.destroy(point).await;
            let machine = fake.machine(bed.vm).unwrap();
            let status = machine.status().await.unwrap();
            assert!(
                matches!(status, hypervisor::MachineStatus::Running),
                "{method} {lose}: {status:?}"
            );
            let again = bed.point(PointType::Log).await;
            bed.destroy(again).await;
            assert_eq!(
                files(&bench.path("images")),
                ["a.qcow2", "b.qcow2"],
                "{method} {lose}"
            );
            let status = machine.status().await.unwrap();
            assert!(matches!(status, hypervisor::MachineStatus::Running));
        }
    }
}
