//! How jobs end: told to stop, a deadline, the undo, a final state; and what a restart makes of one in the middle of it.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::fake::{FakeHypervisor, Fault as Scripted};
use hypervisor::{ImageFormat, ImageTool, NewImage};
use support::{Bed, Bench, KIB, MIB, files, options};
use uuid::Uuid;
use vmms::export::{LiveState, SystemExport};
use vmms::job::{Job, JobRequest, JobState, Submission, Task, UndoLeft};
use vmms::machine::device::{self, NewDevice};
use vmms::machine::{Asked, DeviceKind, Power, StateChange, Vm};
use vmms::point::{Point, PointType};
use vmms::snapshot::Snapshot;
use vmms::{Kind, Message, Options, Vmms};

const DISK: [(&str, ImageFormat, u64); 1] = [("a.qcow2", ImageFormat::Qcow2, 4 * MIB)];

struct Stage {
    bench: Bench,
    fake: Arc<FakeHypervisor>,
    vm: Uuid,
}

/// A machine that runs, with one disk, on a scripted hypervisor whose layers are real files.
async fn stage(options: Options) -> Stage {
    let fake = Arc::new(FakeHypervisor::with_images(ImageTool::default()));
    let bench = Bench::on(options, fake.clone()).await;
    let vm = {
        let mut bed = bench.machine(&DISK).await;
        bed.write("a.qcow2", 7, 0, 300 * KIB);
        bed.state(StateChange::Start).await;
        bed.vm
    };
    Stage { bench, fake, vm }
}

fn hasty() -> Options {
    Options {
        kill_deadline: Duration::from_millis(30),
        ..options()
    }
}

impl Stage {
    fn record(&self, job: Uuid) -> Job {
        self.bench.vmms.job(job).unwrap()
    }

    fn power(&self) -> Power {
        self.bench.vmms.db.get::<Vm>(self.vm).unwrap().power
    }

    async fn ask(&self, to: StateChange) -> vmms::Result<Uuid> {
        vmms::machine::request_state(&self.bench.vmms, self.vm, to, &Asked::default()).await
    }

    /// A shutdown whose request to the guest hangs.
    async fn stuck(&self) -> Uuid {
        self.fake.script().on_next("guest_shutdown", Scripted::Hang);
        let before = self.fake.script().count("guest_shutdown");
        let job = self.ask(StateChange::Shutdown).await.unwrap();
        self.called("guest_shutdown", before).await;
        job
    }

    /// Waits until a method of the hypervisor was called again.
    async fn called(&self, method: &str, before: usize) {
        while self.fake.script().count(method) == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until(&self, job: Uuid, wanted: impl Fn(&Job) -> bool) -> Job {
        let mut changes = self.bench.vmms.db.changes();
        loop {
            let record = self.record(job);
            if wanted(&record) {
                return record;
            }
            changes.changed().await.unwrap();
        }
    }

    async fn export(&self, live: LiveState) -> Uuid {
        let order = SystemExport {
            snapshot: None,
            own: false,
            others: Vec::new(),
            base: None,
            directory: self.bench.path("out"),
            subdirectory: true,
            storage: true,
            runtime: true,
            excluded: Vec::new(),
            all_snapshots: false,
            live,
            merge: false,
        };
        let asked = Asked::default();
        vmms::export::export_system(&self.bench.vmms, self.vm, order, &asked)
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_told_to_end_takes_nothing_but_kill_and_says_who_asked() {
    let s = stage(options()).await;
    let job = s.stuck().await;
    let vmms = &s.bench.vmms;
    let ended = vmms.request_job_state_as(job, JobRequest::Terminate, "alice");
    ended.await.unwrap();
    for request in [
        JobRequest::Start,
        JobRequest::Suspend,
        JobRequest::Terminate,
    ] {
        let refused = vmms.request_job_state(job, request).await;
        let refused = refused.expect_err("it is being ended");
        assert_eq!(refused.kind(), Kind::InvalidState, "{request:?}");
        assert_eq!(s.record(job).state, JobState::ShuttingDown, "{request:?}");
    }
    s.fake.machine(s.vm).unwrap().set_agent(false);
    s.fake.machine(s.vm).unwrap().set_obeys_powerdown(false);
    s.fake.script().release_hangs();
    let ended = vmms.wait(job).await.unwrap();
    assert_eq!(ended.state, JobState::Terminated);
    assert_eq!(ended.faults[0].message, Message::Cancelled);
    assert_eq!(ended.faults[0].arguments, ["terminated", "alice"]);
    let late = vmms.request_job_state(job, JobRequest::Kill).await;
    assert_eq!(late.unwrap_err().message, Message::JobFinal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_job_answers_in_time_and_holds_what_it_claims_until_its_undo_has_finished() {
    let s = stage(hasty()).await;
    let job = s.stuck().await;
    let vmms = &s.bench.vmms;
    let kill = vmms.request_job_state_as(job, JobRequest::Kill, "bob");
    kill.await.unwrap();
    let killed = s.until(job, |j| j.state.is_final()).await;
    assert_eq!(killed.state, JobState::Killed);
    assert_eq!(killed.undo, Some(UndoLeft::Underway));
    assert_eq!(killed.faults[0].arguments, ["killed", "bob"]);
    let busy = s
        .ask(StateChange::Save)
        .await
        .expect_err("the work is still there");
    assert!(matches!(busy.kind(), Kind::InUse | Kind::InvalidState));
    s.fake.machine(s.vm).unwrap().set_agent(false);
    s.fake.machine(s.vm).unwrap().set_obeys_powerdown(false);
    s.fake.script().release_hangs();
    let over = vmms.wait(job).await.unwrap();
    assert_eq!((over.state, over.undo), (JobState::Killed, None));
    assert_eq!(over.changed, killed.changed, "it has ended when it said so");
    let saved = s.ask(StateChange::Save).await.unwrap();
    s.bench.done(saved).await;
}

#[test]
fn a_restart_in_the_middle_of_ending_finishes_the_undo_and_keeps_the_answer() {
    for (request, state) in [
        (JobRequest::Terminate, JobState::Terminated),
        (JobRequest::Kill, JobState::Killed),
    ] {
        let first = support::runtime();
        let (mut s, job) = first.block_on(async {
            let s = stage(hasty()).await;
            let job = s.stuck().await;
            let vmms = &s.bench.vmms;
            vmms.request_job_state_as(job, request, "carol")
                .await
                .unwrap();
            if request == JobRequest::Kill {
                s.until(job, |j| j.undo.is_some()).await;
            }
            (s, job)
        });
        first.shutdown_background();
        support::runtime().block_on(async {
            s.bench.restart().await;
            let over = s.bench.vmms.wait(job).await.unwrap();
            assert_eq!((over.state, over.undo), (state, None), "{:?}", over.faults);
            assert_eq!(over.faults[0].arguments[1], "carol");
            assert!(over.is_over());
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_that_was_taken_before_the_last_step_wins_and_one_that_was_not_is_refused() {
    let s = stage(options()).await;
    let (mut won, mut lost) = (0, 0);
    for n in 0..24_u64 {
        let asked = Asked::default();
        let vmms = &s.bench.vmms;
        let made = vmms::point::create_point(vmms, s.vm, PointType::Rct, None, "p", &asked);
        let (point, job) = made.await.unwrap();
        tokio::time::sleep(Duration::from_micros(n * n * 60)).await;
        let kill = vmms.request_job_state(job, JobRequest::Kill).await;
        let ended = vmms.wait(job).await.unwrap();
        let there = vmms.db.get::<Point>(point).is_ok_and(|p| p.complete);
        match kill {
            Ok(()) => {
                assert_eq!((ended.state, there), (JobState::Killed, false), "{n}");
                won += 1;
            }
            Err(refused) => {
                assert_eq!(refused.kind(), Kind::InvalidState);
                assert_eq!((ended.state, there), (JobState::Completed, true), "{n}");
                lost += 1;
            }
        }
        assert_eq!(ended.undo, None);
        assert_eq!(vmms.db.get::<Vm>(s.vm).unwrap().power, Power::Running);
    }
    assert_eq!(won + lost, 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_export_of_a_running_machine_can_be_stopped_while_and_after_its_snapshot_is_taken() {
    let s = stage(options()).await;
    let before = s.fake.script().count("mark");
    s.fake.script().on_next("mark", Scripted::Hang);
    let job = s.export(LiveState::Crash).await;
    s.called("mark", before).await;
    assert!(
        s.record(job).cancellable,
        "the snapshot is only a part of it"
    );
    let vmms = &s.bench.vmms;
    vmms.request_job_state(job, JobRequest::Terminate)
        .await
        .unwrap();
    s.fake.script().release_hangs();
    let ended = vmms.wait(job).await.unwrap();
    assert_eq!(ended.state, JobState::Terminated, "{:?}", ended.faults);
    assert!(vmms.db.all::<Snapshot>().is_empty());
    assert!(files(&s.bench.path("out")).is_empty());
    assert_eq!(vmms.db.get::<Vm>(s.vm).unwrap().power, Power::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_with_memory_that_is_undone_leaves_the_guest_running() {
    let s = stage(options()).await;
    // The machine is saved for its memory; then the layers cannot be made.
    s.fake
        .script()
        .on_next("launch", Scripted::refuse("not now"));
    let job = s.export(LiveState::Saved).await;
    let ended = s.bench.vmms.wait(job).await.unwrap();
    assert_eq!(ended.state, JobState::Exception, "{:?}", ended.faults);
    assert!(s.bench.vmms.machine(s.vm).is_some());
    let record = s.bench.vmms.db.get::<Vm>(s.vm).unwrap();
    assert_eq!(record.power, Power::Running);
    assert_eq!(record.saved_state, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ends_parks_an_export_and_the_next_one_goes_on_with_it() {
    for suspended in [true, false] {
        let mut bench = Bench::with(options()).await;
        let (point, vm) = {
            let mut bed = bench
                .machine(&[("a.qcow2", ImageFormat::Qcow2, 64 * MIB)])
                .await;
            bed.write("a.qcow2", 7, 0, 60 * MIB);
            (bed.point(PointType::Log).await, bed.vm)
        };
        let (dir, asked) = (bench.path("out"), Asked::default());
        let export = vmms::export::export_point(&bench.vmms, point, None, &dir, &[], &asked);
        let job = export.await.unwrap();
        if suspended {
            let paused = bench.vmms.request_job_state(job, JobRequest::Suspend);
            paused.await.unwrap();
        }
        bench.vmms.park(Duration::from_secs(30)).await;
        let parked = bench.vmms.job(job).unwrap();
        if parked.state == JobState::Completed {
            // It was quicker than the end of the service.
            assert!(!suspended);
            continue;
        }
        assert!(parked.paused_since.is_some());
        assert_eq!(parked.stop, None);
        let late = vmms::machine::request_state(&bench.vmms, vm, StateChange::Start, &asked).await;
        assert_eq!(late.unwrap_err().message, Message::ServiceEnding);
        bench.restart().await;
        if suspended {
            assert_eq!(bench.vmms.job(job).unwrap().state, JobState::Suspended);
            let going = bench.vmms.request_job_state(job, JobRequest::Start);
            going.await.unwrap();
        }
        let done = bench.done(job).await;
        assert!(done.percent >= parked.percent);
        assert!(done.paused > Duration::ZERO, "the pause is on record");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_that_was_overtaken_by_a_power_off_does_not_start_the_machine_again() {
    let s = stage(options()).await;
    let machine = s.fake.machine(s.vm).unwrap();
    machine.set_agent(false);
    machine.set_obeys_powerdown(false);
    let before = s.fake.script().count("powerdown");
    let reboot = s.ask(StateChange::Reboot).await.unwrap();
    s.called("powerdown", before).await;
    let stop = s.ask(StateChange::Stop).await.unwrap();
    s.bench.done(stop).await;
    let reboot = s.bench.vmms.wait(reboot).await.unwrap();
    assert_eq!(reboot.state, JobState::Exception);
    assert_eq!(reboot.faults[0].message, Message::Overtaken);
    assert!(s.bench.vmms.machine(s.vm).is_none());
    assert_eq!(s.power(), Power::Off);
    assert_eq!(s.fake.script().count("launch"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_started_before_its_deletion_begins_stays() {
    let s = stage(options()).await;
    // As when the start came between the look at its state and the job.
    let destroy = Task::from(vmms::machine::DestroyVm { vm: s.vm });
    let job = s.bench.vmms.submit(destroy, Submission::default()).await;
    let job = s.bench.vmms.wait(job.unwrap()).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    assert!(job.faults[0].has(Message::WrongVmState));
    assert_eq!(s.power(), Power::Running);
    assert!(s.bench.vmms.machine(s.vm).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_guest_is_written_down_under_the_lock_of_its_machine() {
    let s = stage(options()).await;
    let held = s.bench.vmms.lock(s.vm).await;
    let shutdown = s.ask(StateChange::Shutdown).await.unwrap();
    while s.fake.machine(s.vm).is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Whoever has the lock may be about to write the record back.
    assert_eq!(s.power(), Power::Running);
    drop(held);
    s.bench.done(shutdown).await;
    assert_eq!(s.power(), Power::Off);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ends_while_a_disk_is_added_to_it_is_off_afterwards() {
    let s = stage(options()).await;
    let (vmms, vm) = (Arc::clone(&s.bench.vmms), s.vm);
    let record = vmms.db.get::<Vm>(vm).unwrap();
    let controller = record.devices.iter().find_map(|d| match d.kind {
        DeviceKind::ScsiController { .. } => Some(d.id.clone()),
        _ => None,
    });
    let (controller, slot) = (controller.unwrap(), None);
    let drive = NewDevice::DiskDrive { controller, slot };
    let drive = device::add(&vmms, vm, drive, None).await.unwrap();
    let path = s.bench.path("images/late.qcow2");
    let image = NewImage::new(&path, ImageFormat::Qcow2, MIB);
    vmms.images.create(&image).await.unwrap();
    let before = s.fake.script().count("add_drive");
    s.fake.script().on_next("add_drive", Scripted::Hang);
    let disk = NewDevice::Disk {
        drive,
        path,
        read_only: false,
    };
    let adding = tokio::spawn(async move { device::add(&vmms, vm, disk, None).await });
    // By now it has read the record, which says that the machine runs.
    s.called("add_drive", before).await;
    s.fake.machine(vm).unwrap().die(9);
    tokio::time::sleep(Duration::from_millis(100)).await;
    s.fake.script().release_hangs();
    let added = adding.await.unwrap();
    let mut changes = s.bench.vmms.db.changes();
    while s.power() != Power::Off {
        let changed = tokio::time::timeout(Duration::from_secs(30), changes.changed());
        changed.await.expect("it is said to run").unwrap();
    }
    assert!(s.bench.vmms.machine(vm).is_none());
    let record = s.bench.vmms.db.get::<Vm>(vm).unwrap();
    assert_eq!(record.disks().count(), 1 + usize::from(added.is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_process_is_looked_for_again_until_it_answers() {
    let mut s = stage(options()).await;
    s.fake
        .script()
        .on_next("reattach", Scripted::refuse("silent"));
    s.bench.restart().await;
    assert_eq!(s.power(), Power::Running);
    while s.bench.vmms.machine(s.vm).is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stop = s.ask(StateChange::Stop).await.unwrap();
    s.bench.done(stop).await;
    assert!(s.fake.machine(s.vm).is_none(), "it was the same process");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_machine_is_not_taken_for_one_that_is_off() {
    let mut s = stage(options()).await;
    let calls = s.fake.script().count("reattach");
    for nth in 1..6 {
        s.fake
            .script()
            .on("reattach", calls + nth, Scripted::refuse("silent"));
    }
    s.bench.restart().await;
    let stop = s.ask(StateChange::Stop).await.unwrap();
    let stop = s.bench.vmms.wait(stop).await.unwrap();
    assert_eq!(stop.state, JobState::Exception);
    assert!(stop.faults[0].has(Message::MachineSilent));
    assert_eq!(s.power(), Power::Running);
    assert!(s.fake.machine(s.vm).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_reattached_side_by_side() {
    let mut s = stage(options()).await;
    let other = s.bench.machine(&[]).await.vm;
    let asked = Asked::default();
    let start = vmms::machine::request_state(&s.bench.vmms, other, StateChange::Start, &asked);
    s.bench.done(start.await.unwrap()).await;
    let script = s.fake.script().clone();
    let calls = script.count("reattach");
    script.on("reattach", calls + 1, Scripted::Hang);
    script.on("reattach", calls + 2, Scripted::Hang);
    let both = async {
        while script.count("reattach") < calls + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        script.release_hangs();
    };
    tokio::join!(s.bench.restart(), both);
    for vm in [s.vm, other] {
        assert!(s.bench.vmms.machine(vm).is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_the_locks_of_a_process_that_was_just_killed() {
    let s = stage(options()).await;
    let stop = s.ask(StateChange::Stop).await.unwrap();
    s.bench.done(stop).await;
    let held = || hypervisor::Error::StartFailed {
        status: "exit status: 1".to_owned(),
        log_tail: "Failed to get \"write\" lock\nIs another process using the image?".to_owned(),
    };
    let launches = s.fake.script().count("launch");
    for nth in 1..4 {
        s.fake
            .script()
            .on("launch", launches + nth, Scripted::Fail(Box::new(held)));
    }
    let start = s.ask(StateChange::Start).await.unwrap();
    s.bench.done(start).await;
    assert_eq!(s.fake.script().count("launch"), launches + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_stopped_by_an_interrupted_save_goes_on_and_its_old_memory_goes() {
    let mut s = stage(options()).await;
    let file = s.bench.path("old.vmstate");
    std::fs::write(&file, "memory of before").unwrap();
    let (vm, noted) = (s.vm, file.clone());
    let change = |draft: &mut vmms::db::Draft<'_>| {
        draft.get_mut::<Vm>(vm)?.saved_state = Some(noted);
        Ok(())
    };
    s.bench.vmms.db.change(change).await.unwrap();
    s.bench.vmms.machine(s.vm).unwrap().pause().await.unwrap();
    s.bench.restart().await;
    let status = s.bench.vmms.machine(s.vm).unwrap().status().await.unwrap();
    assert_eq!(status, hypervisor::MachineStatus::Running);
    assert_eq!(s.power(), Power::Running);
    let record = s.bench.vmms.db.get::<Vm>(s.vm).unwrap();
    assert_eq!(record.saved_state, None, "it would be restored some day");
    assert!(!file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_failed_is_tried_again_and_then_nothing_is_left() {
    let s = stage(options()).await;
    let before = s.fake.script().count("mark");
    s.fake.script().on_next("mark", Scripted::Hang);
    let job = s.export(LiveState::Crash).await;
    s.called("mark", before).await;
    let vmms = &s.bench.vmms;
    let stop = vmms.request_job_state(job, JobRequest::Terminate);
    stop.await.unwrap();
    s.fake.script().release_hangs();
    let ended = vmms.wait(job).await.unwrap();
    // As it is on record where a file could not be removed.
    let change = |draft: &mut vmms::db::Draft<'_>| {
        draft.get_mut::<Job>(job)?.undo = Some(UndoLeft::Failed);
        Ok(())
    };
    vmms.db.change(change).await.unwrap();
    assert!(s.record(job).vanishes().is_none(), "it stays to be seen");
    vmms.tick().await;
    let over = s.until(job, Job::is_over).await;
    assert_eq!((over.state, over.undo), (JobState::Terminated, None));
    let now = std::time::SystemTime::now();
    assert_eq!(over.elapsed(now), ended.elapsed(now));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_whose_killed_export_is_not_taken_back_yet_is_not_lost_to_the_next_one() {
    let mut bench = Bench::new().await;
    let mut bed = bench
        .machine(&[("a.img", ImageFormat::Raw, 64 * MIB)])
        .await;
    bed.write("a.img", 1, 0, 64 * MIB);
    let (one, two) = (
        bed.point(PointType::Log).await,
        bed.point(PointType::Log).await,
    );
    let (out, alias) = (bench.path("out"), bench.path("alias"));
    symlink("out", &alias).unwrap();
    std::fs::create_dir(&out).unwrap();
    let asked = Asked::default();
    let start = async |vmms: &Arc<Vmms>, point: Uuid, to: &Path| {
        vmms::export::export_point(vmms, point, None, to, &[], &asked).await
    };
    // It has begun its image when it is told to stand still.
    let first = start(&bench.vmms, one, &out).await.unwrap();
    let mut changes = bench.vmms.db.changes();
    let image = |f: &serde_json::Value| f["path"].as_str().is_some_and(|p| p.ends_with(".qcow2"));
    while !bench.vmms.job(first).unwrap().notes[0]["created"]
        .as_array()
        .is_some_and(|created| created.iter().any(image))
    {
        changes.changed().await.unwrap();
    }
    let ask = |request| bench.vmms.request_job_state(first, request);
    ask(JobRequest::Suspend).await.unwrap();
    // Its undo follows no link, and so cannot reach what it has to delete.
    let disks = out.join(vmms::guid(bed.vm)).join("Virtual Hard Disks");
    let aside = bench.path("aside");
    std::fs::rename(&disks, &aside).unwrap();
    symlink(&aside, &disks).unwrap();
    ask(JobRequest::Kill).await.unwrap();
    let ended = bench.vmms.wait(first).await.unwrap();
    let left = (JobState::Killed, Some(UndoLeft::Failed));
    assert_eq!((ended.state, ended.undo), left, "{:#?}", ended.faults);
    std::fs::remove_file(&disks).unwrap();
    std::fs::rename(&aside, &disks).unwrap();
    let partial = files(&out);
    assert!(partial.iter().any(|f| f.contains("partial")), "{partial:?}");

    for path in [&out, &alias] {
        let again = match start(&bench.vmms, one, path).await {
            Ok(job) => bench.vmms.wait(job).await.unwrap(),
            Err(busy) => {
                assert_eq!(busy.message, Message::VmBusy);
                continue;
            }
        };
        assert_eq!(again.state, JobState::Exception);
        assert!(again.faults[0].has(Message::ExportBusy), "{again:#?}");
        assert_eq!(files(&out), partial);
    }
    let second = start(&bench.vmms, two, &alias).await.unwrap();
    let second = bench.done(second).await;
    bed.assert_exported(&second, &bed.disks).await;
    // Only now is it undone, by the next start: what came later stays.
    let (vm, disks) = (bed.vm, bed.disks.clone());
    bench.restart().await;
    let bed = Bed {
        bench: &bench,
        vm,
        disks,
    };
    let mut changes = bench.vmms.db.changes();
    while !bench.vmms.job(first).unwrap().is_over() {
        changes.changed().await.unwrap();
    }
    let left = files(&out);
    let own = vmms::guid(two);
    assert!(left.iter().all(|f| f.contains(&own)), "{left:?}");
    bed.assert_exported(&second, &bed.disks).await;
    let again = start(&bench.vmms, one, &out).await.unwrap();
    let again = bench.done(again).await;
    bed.assert_exported(&again, &bed.disks).await;
}
