//! Points of collections on a scripted hypervisor that fails at each step for each member.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use hypervisor::fake::{FakeHypervisor, Fault as Scripted};
use hypervisor::{ImageFormat, ImageTool, MachineStatus};
use support::{Bed, Bench, MIB, files, options};
use uuid::Uuid;
use vmms::collection::{Collection, CollectionKind, CollectionPoint, MachineDisks, manage};
use vmms::job::{Job, JobRequest, JobState};
use vmms::machine::Asked;
use vmms::machine::StateChange;
use vmms::point::{Consistency, Point, PointType};
use vmms::{Element, Message, Options};

async fn bench() -> (Bench, Arc<FakeHypervisor>) {
    bench_with(Duration::from_millis(200)).await
}

async fn bench_with(stop_deadline: Duration) -> (Bench, Arc<FakeHypervisor>) {
    let fake = Arc::new(FakeHypervisor::with_images(ImageTool::default()));
    let options = Options {
        stop_deadline,
        ..options()
    };
    (Bench::on(options, fake.clone()).await, fake)
}

/// Two running machines, a paused one and one that is off, with a disk each, in a collection.
struct Four<'a> {
    bench: &'a Bench,
    fake: &'a FakeHypervisor,
    beds: Vec<Bed<'a>>,
    collection: Uuid,
}

impl<'a> Four<'a> {
    async fn new(bench: &'a Bench, fake: &'a FakeHypervisor) -> Self {
        let mut beds = Vec::new();
        for name in ["a.qcow2", "b.qcow2", "c.qcow2", "d.qcow2"] {
            beds.push(bench.machine(&[(name, ImageFormat::Qcow2, MIB)]).await);
        }
        for bed in &beds[..3] {
            bed.state(StateChange::Start).await;
        }
        beds[2].state(StateChange::Pause).await;
        let collection = manage::define(&bench.vmms, "four", None, CollectionKind::Machines)
            .await
            .unwrap();
        for bed in &beds {
            manage::add(&bench.vmms, collection, bed.vm).await.unwrap();
        }
        Four {
            bench,
            fake,
            beds,
            collection,
        }
    }

    async fn point(&self, kind: PointType, consistency: Option<Consistency>) -> (Uuid, Job) {
        let vmms = &self.bench.vmms;
        let asked = Asked::default();
        let made =
            vmms::collection::create_point(vmms, self.collection, kind, consistency, "p", &asked);
        let (point, job) = made.await.unwrap();
        (point, vmms.wait(job).await.unwrap())
    }

    /// A point that works; what it made is deleted again.
    async fn assert_works(&self) {
        let (point, job) = self.point(PointType::Log, Some(Consistency::Crash)).await;
        assert_eq!(job.state, JobState::Completed, "{:#?}", job.faults);
        let asked = Asked::default();
        let job = vmms::collection::destroy_point(&self.bench.vmms, point, &asked)
            .await
            .unwrap();
        self.bench.done(job).await;
    }

    /// Machines run, stand and lie as before, and no point, layer or file is left.
    async fn assert_untouched(&self, what: &str) {
        // Guests that are told to go on in the background have the machine's lock until they heard it.
        for bed in &self.beds {
            drop(self.bench.vmms.lock(bed.vm).await);
        }
        for (bed, wanted) in self.beds.iter().zip([
            MachineStatus::Running,
            MachineStatus::Running,
            MachineStatus::Paused,
        ]) {
            let machine = self.bench.vmms.machine(bed.vm).unwrap();
            assert_eq!(machine.status().await.unwrap(), wanted, "{what}");
        }
        assert!(self.bench.vmms.machine(self.beds[3].vm).is_none(), "{what}");
        assert!(self.bench.vmms.db.all::<Point>().is_empty(), "{what}");
        assert!(
            self.bench.vmms.db.all::<CollectionPoint>().is_empty(),
            "{what}"
        );
        for _ in 0..4 {
            self.beds[0].sweep().await;
        }
        for bed in &self.beds {
            for (_, disk) in bed.record().disks() {
                assert!(disk.layers.pending.is_none(), "{what}");
                assert_eq!(
                    disk.layers.active_chain().len(),
                    1,
                    "{what}: {}",
                    disk.path.display()
                );
            }
        }
        let left = files(&self.bench.path("images"));
        assert_eq!(left, ["a.qcow2", "b.qcow2", "c.qcow2", "d.qcow2"], "{what}");
        assert!(files(&self.bench.path("state/points")).is_empty(), "{what}");
    }

    fn fail(&self, method: &str, nth: usize, fault: Scripted) {
        let script = self.fake.script();
        script.on(method, script.count(method) + nth, fault);
    }
}

/// The machines that a failed job names, each with a failure of its own.
fn failed_members(job: &Job) -> Vec<Uuid> {
    let causes = job.faults.iter().flat_map(|f| &f.causes);
    let members = causes.filter(|c| c.message == Message::MemberFailed);
    members
        .map(|c| match &c.element {
            Some(Element::Vm(vm)) => *vm,
            other => panic!("a member's failure is about {other:?}"),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_of_machines_in_every_state_is_of_one_instant_and_goes_whole() {
    let (bench, fake) = bench().await;
    let four = Four::new(&bench, &fake).await;
    let (id, job) = four.point(PointType::Rct, None).await;
    assert_eq!(job.state, JobState::Completed, "{:#?}", job.faults);
    let point = bench.vmms.db.get::<CollectionPoint>(id).unwrap();
    assert!(point.complete);
    assert_eq!(point.members.len(), 4);
    assert!(point.skew_us <= point.skew_limit_us);
    let running: Vec<bool> = four
        .beds
        .iter()
        .map(|bed| {
            point
                .members
                .iter()
                .find(|m| m.vm == bed.vm)
                .unwrap()
                .running
        })
        .collect();
    assert_eq!(running, [true, true, false, false]);
    for member in &point.members {
        let own = bench.vmms.db.get::<Point>(member.point).unwrap();
        assert!(own.complete);
        assert_eq!(
            (own.collection_point, own.instant),
            (Some(id), point.instant)
        );
        assert_eq!(member.running, member.pause_us > 0);
    }
    // All stand still before any is marked, and none goes on before all are.
    let calls = fake.script().calls();
    let place = |method: &str| {
        let all: Vec<usize> = (0..calls.len())
            .filter(|i| calls[*i].starts_with(method))
            .collect();
        (all[0], all[all.len() - 1])
    };
    assert!(place("quiesce").1 < place("mark").0, "{calls:#?}");
    assert!(place("mark").1 < place("release").0, "{calls:#?}");

    let asked = Asked::default();
    let one = vmms::point::destroy_point(&bench.vmms, point.members[0].point, &asked).await;
    assert_eq!(one.unwrap_err().message, Message::PointOfCollection);
    let busy = manage::destroy(&bench.vmms, four.collection)
        .await
        .unwrap_err();
    assert_eq!(busy.message, Message::CollectionHasPoints);
    let job = vmms::collection::destroy_point(&bench.vmms, id, &asked)
        .await
        .unwrap();
    bench.done(job).await;
    four.assert_untouched("deleted").await;
    manage::destroy(&bench.vmms, four.collection).await.unwrap();
    assert!(bench.vmms.db.all::<Collection>().is_empty());
}

async fn each_member_fails(method: &str, calls: usize, fault: impl Fn() -> Scripted, kind: &str) {
    let (bench, fake) = bench().await;
    let four = Four::new(&bench, &fake).await;
    for nth in 1..=calls {
        let what = format!("call {nth} of {method}: {kind}");
        four.fail(method, nth, fault());
        let (_, job) = four.point(PointType::Log, Some(Consistency::Crash)).await;
        assert_eq!(job.state, JobState::Exception, "{what}");
        let whole = &job.faults[0];
        assert_eq!(
            whole.message,
            Message::CollectionPointFailed,
            "{what}: {:#?}",
            job.faults
        );
        let members = failed_members(&job);
        assert_eq!(members.len(), 1, "{what}: {:#?}", job.faults);
        assert!(four.beds.iter().any(|b| b.vm == members[0]), "{what}");
        four.assert_untouched(&what).await;
    }
    four.assert_works().await;
    four.assert_untouched("afterwards").await;
}

const LOST: fn() -> Scripted = || Scripted::lose_answer(Duration::from_secs(1));
const REFUSED: fn() -> Scripted = || Scripted::refuse("no");
const HANGS: fn() -> Scripted = || Scripted::Hang;

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_get_ready_fails_the_point_and_nothing_is_left() {
    each_member_fails("prepare_layers", 3, REFUSED, "refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_stop_fails_the_point_and_all_others_go_on() {
    each_member_fails("quiesce", 2, REFUSED, "refused").await;
    each_member_fails("quiesce", 2, LOST, "answer lost").await;
    each_member_fails("quiesce", 2, HANGS, "hangs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_be_marked_fails_the_point_and_all_marks_are_taken_back() {
    each_member_fails("mark", 3, REFUSED, "refused").await;
    each_member_fails("mark", 3, LOST, "answer lost").await;
    each_member_fails("mark", 3, HANGS, "hangs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_go_on_at_once_fails_the_point_and_goes_on_later() {
    each_member_fails("release", 2, REFUSED, "refused").await;
    each_member_fails("release", 2, LOST, "answer lost").await;
    each_member_fails("release", 2, HANGS, "hangs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_guests_are_thawed_whatever_fails() {
    let (bench, fake) = bench().await;
    let four = Four::new(&bench, &fake).await;
    // The paused one cannot be frozen at all: it leaves.
    manage::remove(&bench.vmms, four.collection, four.beds[2].vm, true)
        .await
        .unwrap();
    for bed in &four.beds[..2] {
        fake.machine(bed.vm).unwrap().set_agent(true);
    }
    for (method, nth) in [
        ("guest_freeze", 1),
        ("guest_freeze", 2),
        ("quiesce", 1),
        ("mark", 2),
        ("release", 1),
    ] {
        let what = format!("{method} {nth}");
        four.fail(method, nth, REFUSED());
        let (_, job) = four
            .point(PointType::Rct, Some(Consistency::Application))
            .await;
        assert_eq!(job.state, JobState::Exception, "{what}");
        four.assert_untouched(&what).await;
        for bed in &four.beds[..2] {
            let machine = bench.vmms.machine(bed.vm).unwrap();
            assert!(
                !machine.guest_frozen(Duration::from_secs(1)).await.unwrap(),
                "{what}"
            );
        }
    }
    let (id, job) = four
        .point(PointType::Rct, Some(Consistency::Application))
        .await;
    assert_eq!(job.state, JobState::Completed, "{:#?}", job.faults);
    let point = bench.vmms.db.get::<CollectionPoint>(id).unwrap();
    assert_eq!(point.consistency, Consistency::Application);
    let off = bench
        .vmms
        .db
        .get::<Point>(point.part_of(four.beds[3].vm).unwrap())
        .unwrap();
    assert!(
        off.decisions
            .iter()
            .any(|d| d.reason == "the machine was off")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_member_cannot_be_application_consistent() {
    let (bench, fake) = bench().await;
    let four = Four::new(&bench, &fake).await;
    for bed in &four.beds[..3] {
        fake.machine(bed.vm).unwrap().set_agent(true);
    }
    let (_, job) = four
        .point(PointType::Rct, Some(Consistency::Application))
        .await;
    assert_eq!(failed_members(&job), [four.beds[2].vm]);
    four.assert_untouched("paused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ends_while_all_stand_still_lets_them_go_on_at_its_next_start() {
    let (mut bench, fake) = bench_with(Duration::from_secs(600)).await;
    let (vms, collection) = {
        let four = Four::new(&bench, &fake).await;
        let vms: Vec<Uuid> = four.beds.iter().map(|b| b.vm).collect();
        (vms, four.collection)
    };
    let script = fake.script();
    script.on("mark", script.count("mark") + 2, Scripted::Hang);
    let asked = Asked::default();
    let made =
        vmms::collection::create_point(&bench.vmms, collection, PointType::Log, None, "p", &asked);
    made.await.unwrap();
    for _ in 0..500 {
        if script.count("mark") > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let still = bench.vmms.machine(vms[0]).unwrap();
    assert_eq!(still.status().await.unwrap(), MachineStatus::Paused);
    // The job of the old service is still in the middle of it; the new one finds what it left.
    bench.restart().await;
    for job in bench.vmms.jobs() {
        bench.vmms.wait(job.id).await.unwrap();
    }
    for (vm, wanted) in vms.iter().zip([
        MachineStatus::Running,
        MachineStatus::Running,
        MachineStatus::Paused,
    ]) {
        let machine = bench.vmms.machine(*vm).unwrap();
        assert_eq!(machine.status().await.unwrap(), wanted);
    }
    assert!(bench.vmms.db.all::<CollectionPoint>().is_empty());
    assert!(bench.vmms.db.all::<Point>().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_not_deleted_while_a_point_of_its_collection_is_taken() {
    let (bench, fake) = bench().await;
    let four = Four::new(&bench, &fake).await;
    four.fail("prepare_layers", 1, HANGS());
    let asked = Asked::default();
    let vmms = &bench.vmms;
    let made =
        vmms::collection::create_point(vmms, four.collection, PointType::Log, None, "p", &asked)
            .await;
    let (point, job) = made.unwrap();
    let off = four.beds[3].vm;
    let refused = vmms::machine::destroy(vmms, off, &asked).await.unwrap_err();
    assert_eq!(refused.message, Message::VmBusy);
    while fake.script().count("prepare_layers") < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    fake.script().release_hangs();
    bench.done(job).await;

    // Deleted afterwards, it leaves the collection, and its point goes; the others' stay.
    let job = vmms::machine::destroy(vmms, off, &asked).await.unwrap();
    bench.done(job).await;
    let collection = vmms.db.get::<Collection>(four.collection).unwrap();
    assert!(!collection.members.contains(&off) && collection.members.len() == 3);
    let left = vmms.db.get::<CollectionPoint>(point).unwrap();
    assert_eq!(left.members.len(), 3);
    assert_eq!(vmms.db.all::<Point>().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_export_of_a_collection_leaves_nothing_of_any_member() {
    let (bench, fake) = bench().await;
    let four = Four::new(&bench, &fake).await;
    let (point, job) = four.point(PointType::Log, None).await;
    bench.done(job.id).await;
    let (vmms, asked) = (&bench.vmms, Asked::default());
    let out = bench.path("out");
    for (round, how) in [JobRequest::Terminate, JobRequest::Kill]
        .into_iter()
        .enumerate()
    {
        // Suspended at once, so that the end is asked for in the middle, wherever that is.
        let job = loop {
            let job = vmms::collection::export_point(vmms, point, None, &out, &[], &asked)
                .await
                .unwrap();
            if vmms
                .request_job_state(job, JobRequest::Suspend)
                .await
                .is_ok()
            {
                break job;
            }
            // It was over before.
            bench.done(job).await;
            std::fs::remove_dir_all(&out).unwrap();
        };
        for _ in 0..round * 5 {
            tokio::task::yield_now().await;
        }
        vmms.request_job_state(job, how).await.unwrap();
        let job = vmms.wait(job).await.unwrap();
        let wanted = if round == 0 {
            JobState::Terminated
        } else {
            JobState::Killed
        };
        assert_eq!(job.state, wanted, "{:#?}", job.faults);
        // What a killed job wrote is removed behind it.
        for _ in 0..500 {
            if !out.exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(files(&out), Vec::<String>::new());
        assert!(!out.exists());
    }
    let job = vmms::collection::export_point(vmms, point, None, &out, &[], &asked)
        .await
        .unwrap();
    let job = bench.done(job).await;
    assert_eq!(job.output.machines.len(), 4);
    assert_eq!(job.output.disks.len(), 4);
    assert!(
        job.output
            .machines
            .iter()
            .all(|m| m.config.as_ref().is_some_and(|c| c.exists()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_must_be_an_older_point_of_the_collection_that_knows_each_machine() {
    let (bench, fake) = bench().await;
    let four = Four::new(&bench, &fake).await;
    let (vmms, asked) = (&bench.vmms, Asked::default());
    let late = four.beds[3].vm;
    manage::remove(vmms, four.collection, late, true)
        .await
        .unwrap();
    let (first, _) = four.point(PointType::Log, None).await;
    manage::add(vmms, four.collection, late).await.unwrap();
    let (second, _) = four.point(PointType::Log, None).await;
    let other = manage::define(vmms, "other", None, CollectionKind::Machines)
        .await
        .unwrap();
    manage::add(vmms, other, four.beds[0].vm).await.unwrap();
    let (stranger, job) =
        vmms::collection::create_point(vmms, other, PointType::Log, None, "o", &asked)
            .await
            .unwrap();
    bench.done(job).await;
    let out = bench.path("out");
    for (point, base, wanted) in [
        (second, first, Message::BaseWithoutMachine),
        (first, second, Message::BaseNotOlder),
        (second, second, Message::BaseNotOlder),
        (second, stranger, Message::NotOfCollection),
        (second, Uuid::nil(), Message::PointNotFound),
    ] {
        let refused =
            vmms::collection::export_point(vmms, point, Some(base), &out, &[], &asked).await;
        assert_eq!(refused.unwrap_err().message, wanted);
    }
    // The machines the base knows can be exported against it.
    let known: Vec<MachineDisks> = four.beds[..3]
        .iter()
        .map(|b| MachineDisks {
            vm: b.vm,
            disks: Vec::new(),
        })
        .collect();
    let job = vmms::collection::export_point(vmms, second, Some(first), &out, &known, &asked).await;
    let job = bench.done(job.unwrap()).await;
    assert_eq!(job.output.machines.len(), 3);
}

#[tokio::test]
async fn a_collection_takes_as_many_machines_as_fit_into_one_transaction_and_says_so() {
    let (bench, _) = bench().await;
    let vmms = &bench.vmms;
    let many = manage::define(vmms, "many", None, CollectionKind::Machines);
    let many = many.await.unwrap();
    for n in 0..manage::MOST_MACHINES {
        let name = format!("{n}.img");
        let bed = bench.machine(&[(&name, ImageFormat::Raw, 65536)]).await;
        manage::add(vmms, many, bed.vm).await.unwrap();
    }
    let one_more = bench
        .machine(&[("more.img", ImageFormat::Raw, 65536)])
        .await;
    let full = manage::add(vmms, many, one_more.vm).await.unwrap_err();
    assert_eq!(full.message, Message::CollectionFull);
    assert!(full.text().contains("61 machines") && full.text().contains("at most 60"));
    let members = vmms.db.get::<Collection>(many).unwrap().members.len();
    assert_eq!(members, manage::MOST_MACHINES);
    // Everything that changes all of them at once fits.
    let asked = Asked::default();
    let made = vmms::collection::create_point(vmms, many, PointType::Log, None, "p", &asked);
    let (point, job) = made.await.unwrap();
    bench.done(job).await;
    let job = vmms::collection::remove_data(vmms, point, &asked).await;
    bench.done(job.unwrap()).await;
    let job = vmms::collection::destroy_point(vmms, point, &asked).await;
    bench.done(job.unwrap()).await;
    let kind = vmms::snapshot::SnapshotKind::Recovery;
    let made = vmms::collection::create_snapshot(vmms, many, kind, None, "s", &asked);
    let (snapshot, job) = made.await.unwrap();
    bench.done(job).await;
    let converted = vmms::collection::convert_snapshot(vmms, snapshot, &asked).await;
    bench.done(converted.unwrap()).await;
    let kind = vmms::snapshot::SnapshotKind::Disk;
    let made = vmms::collection::create_snapshot(vmms, many, kind, None, "s", &asked);
    let (snapshot, job) = made.await.unwrap();
    bench.done(job).await;
    let applied = vmms::collection::apply_snapshot(vmms, snapshot, &asked).await;
    bench.done(applied.unwrap()).await;
    let gone = vmms::collection::destroy_snapshot(vmms, snapshot, &asked).await;
    bench.done(gone.unwrap()).await;
}
