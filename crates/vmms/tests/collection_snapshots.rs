//! Snapshots of collections: on a scripted hypervisor that fails at each step for each member, and on real ones.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor::fake::{FakeHypervisor, Fault as Scripted};
use hypervisor::{ImageFormat, ImageTool, MachineStatus};
use support::{Bed, Bench, KIB, MIB, assert_same, files, options};
use uuid::Uuid;
use vmms::collection::{
    self, Collection, CollectionKind, CollectionPoint, CollectionSnapshot, manage,
};
use vmms::import::Take;
use vmms::import_collection::import_collection;
use vmms::job::{Job, JobState};
use vmms::machine::{Asked, Power, StateChange, Vm};
use vmms::point::{Consistency, Point, PointType};
use vmms::snapshot::{self, Snapshot, SnapshotKind};
use vmms::{Element, Message, Options};

const NAMES: [&str; 4] = ["a.qcow2", "b.qcow2", "c.qcow2", "d.img"];
const CRASH: Option<Consistency> = Some(Consistency::Crash);
/// The flag O_NONBLOCK.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

async fn scripted() -> (Bench, Arc<FakeHypervisor>) {
    let fake = Arc::new(FakeHypervisor::with_images(ImageTool::default()));
    let options = Options {
        stop_deadline: Duration::from_millis(200),
        ..options()
    };
    (Bench::on(options, fake.clone()).await, fake)
}

/// Two running machines, a paused one and one that is off, with a disk each, in a collection.
struct Four<'a> {
    bench: &'a Bench,
    beds: Vec<Bed<'a>>,
    collection: Uuid,
}

impl<'a> Four<'a> {
    async fn new(bench: &'a Bench) -> Self {
        let mut beds = Vec::new();
        for name in NAMES {
            let format = if name.ends_with("img") {
                ImageFormat::Raw
            } else {
                ImageFormat::Qcow2
            };
            beds.push(bench.machine(&[(name, format, MIB)]).await);
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
            beds,
            collection,
        }
    }

    fn write(&mut self, byte: u8) {
        for (bed, name) in self.beds.iter_mut().zip(NAMES) {
            bed.write(name, byte, u64::from(byte) * 70 * KIB, 9 * KIB);
        }
    }

    fn held(&self) -> BTreeMap<Uuid, Vec<u8>> {
        let held = self.beds.iter().zip(NAMES);
        held.map(|(bed, name)| (bed.vm, bed.disks[name].clone()))
            .collect()
    }

    async fn try_take(&self, kind: SnapshotKind) -> (Uuid, Job) {
        let (vmms, asked) = (&self.bench.vmms, Asked::default());
        let made = collection::create_snapshot(vmms, self.collection, kind, CRASH, "s", &asked);
        let (snapshot, job) = made.await.unwrap();
        (snapshot, vmms.wait(job).await.unwrap())
    }

    async fn take(&self, kind: SnapshotKind) -> Uuid {
        let (snapshot, job) = self.try_take(kind).await;
        self.bench.done(job.id).await;
        snapshot
    }

    async fn export(&self, snapshot: Uuid, base: Option<Uuid>, to: &str, merge: bool) -> Job {
        let (vmms, asked) = (&self.bench.vmms, Asked::default());
        let to = self.bench.path(to);
        let job = collection::export_snapshot(vmms, snapshot, base, &to, true, merge, &asked);
        self.bench.done(job.await.unwrap()).await
    }

    async fn assert_exported(&self, job: &Job, held: &BTreeMap<Uuid, Vec<u8>>) {
        assert_eq!(job.output.disks.len(), 4);
        for disk in &job.output.disks {
            let found = self.bench.contents(&disk.file, ImageFormat::Qcow2).await;
            assert_same(&found, &held[&disk.vm], &disk.file.display().to_string());
        }
    }

    async fn stop_all(&self) {
        for bed in &self.beds {
            if self.bench.vmms.machine(bed.vm).is_some() {
                bed.state(StateChange::Stop).await;
            }
        }
    }

    async fn destroy(&self, snapshot: Uuid) {
        let asked = Asked::default();
        let job = collection::destroy_snapshot(&self.bench.vmms, snapshot, &asked).await;
        self.bench.done(job.unwrap()).await;
    }

    /// Machines run, stand and lie as before.
    async fn assert_states(&self, what: &str) {
        // Guests that are told to go on in the background have the machine's lock until they heard it.
        for bed in &self.beds {
            drop(self.bench.vmms.lock(bed.vm).await);
        }
        let wanted = [
            (Power::Running, MachineStatus::Running),
            (Power::Running, MachineStatus::Running),
            (Power::Paused, MachineStatus::Paused),
        ];
        for (bed, (power, status)) in self.beds.iter().zip(wanted) {
            let machine = self.bench.vmms.machine(bed.vm);
            let machine = machine.unwrap_or_else(|| panic!("{what}: a machine is gone"));
            assert_eq!(machine.status().await.unwrap(), status, "{what}");
            assert_eq!(bed.record().power, power, "{what}");
            assert_eq!(bed.record().saved_state, None, "{what}");
        }
        assert!(self.bench.vmms.machine(self.beds[3].vm).is_none(), "{what}");
    }

    /// Nothing of any snapshot is left.
    async fn assert_untouched(&self, what: &str) {
        self.assert_states(what).await;
        let db = &self.bench.vmms.db;
        assert!(db.all::<Snapshot>().is_empty(), "{what}");
        assert!(db.all::<CollectionSnapshot>().is_empty(), "{what}");
        for _ in 0..4 {
            self.beds[0].sweep().await;
        }
        assert_eq!(files(&self.bench.path("images")), NAMES, "{what}");
        assert!(files(&self.bench.path("state/points")).is_empty(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_machines_in_every_state_are_exported_and_the_states_stay() {
    let bench = Bench::new().await;
    let mut four = Four::new(&bench).await;
    let vmms = &bench.vmms;
    four.write(1);
    let first = four.take(SnapshotKind::Disk).await;
    let held_first = four.held();
    four.assert_states("disk").await;
    four.write(2);
    let full = four.take(SnapshotKind::Full).await;
    let held_full = four.held();
    four.assert_states("full").await;
    four.write(3);

    let record = vmms.db.get::<CollectionSnapshot>(full).unwrap();
    assert!(record.complete);
    assert!(record.skew_us <= record.skew_limit_us);
    let running: Vec<Uuid> = record
        .members
        .iter()
        .filter(|m| m.running)
        .map(|m| m.vm)
        .collect();
    assert_eq!(running.len(), 2);
    for member in &record.members {
        let part = vmms.db.get::<Snapshot>(member.point).unwrap();
        assert_eq!(part.collection_snapshot, Some(full));
        assert_eq!(part.parent, {
            let earlier = vmms.db.get::<CollectionSnapshot>(first).unwrap();
            earlier.part_of(member.vm)
        });
        // All but the machine that was off have their memory in it.
        assert_eq!(part.memory.is_some(), member.vm != four.beds[3].vm);
        assert_eq!(member.pause_us > 0, member.running);
        assert_eq!(part.pause_us, member.pause_us);
    }
    let job = four.export(first, None, "out", false).await;
    four.assert_exported(&job, &held_first).await;
    let job = four.export(full, Some(first), "out", false).await;
    four.assert_exported(&job, &held_full).await;
    let memories = job.output.machines.iter().filter(|m| m.runtime.is_some());
    assert_eq!(memories.count(), 3);
    let whole = four.export(full, Some(first), "whole", true).await;
    four.assert_exported(&whole, &held_full).await;
    assert!(whole.output.bytes_written > 0);
    for disk in &whole.output.disks {
        let format = Some(ImageFormat::Qcow2);
        let info = vmms.images.info_as(&disk.file, format, true).await.unwrap();
        assert_eq!(info.backing, None, "merged: nothing lies beneath");
    }
    // Members stay together.
    let part = record.members[0].point;
    let refused = snapshot::destroy(vmms, part, false, &Asked::default()).await;
    assert_eq!(refused.unwrap_err().message, Message::SnapshotOfCollection);
    let refused = manage::destroy(vmms, four.collection).await;
    assert_eq!(refused.unwrap_err().message, Message::CollectionHasPoints);
    let refused = collection::convert_snapshot(vmms, full, &Asked::default()).await;
    assert_eq!(refused.unwrap_err().message, Message::SnapshotNotRecovery);
    let refused = collection::apply_snapshot(vmms, first, &Asked::default()).await;
    assert_eq!(refused.unwrap_err().message, Message::WrongVmState);
    four.destroy(first).await;
    four.destroy(full).await;
    four.assert_untouched("deleted").await;
    four.stop_all().await;
    for bed in &four.beds {
        bed.assert_present().await;
    }
    for export in ["out", "whole"] {
        for bed in &four.beds {
            let dir = bench.path(export).join(vmms::guid(bed.vm));
            let job = vmms::verify::verify_export(vmms, &dir, &Asked::default()).await;
            bench.done(job.unwrap()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_brings_all_machines_back_or_none() {
    let bench = Bench::new().await;
    let mut four = Four::new(&bench).await;
    let (vmms, asked) = (&bench.vmms, Asked::default());
    four.write(1);
    let full = four.take(SnapshotKind::Full).await;
    let held = four.held();
    four.write(2);
    four.stop_all().await;
    four.write(3);
    let now = four.held();

    // One machine cannot: a layer of it has gone. Nobody is brought back.
    let image = bench.path("images/b.qcow2");
    let aside = bench.path("aside");
    std::fs::rename(&image, &aside).unwrap();
    let job = collection::apply_snapshot(vmms, full, &asked)
        .await
        .unwrap();
    let job = vmms.wait(job).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    let causes = &job.faults[0].causes;
    assert_eq!(causes.len(), 1);
    assert_eq!(causes[0].message, Message::MemberFailed);
    assert_eq!(causes[0].element, Some(Element::Vm(four.beds[1].vm)));
    std::fs::rename(&aside, &image).unwrap();
    for bed in &four.beds {
        assert_eq!(bed.record().last_applied, None);
        assert_eq!(bed.record().power, Power::Off);
        bed.assert_present().await;
    }
    assert_eq!(four.held(), now);

    let job = collection::apply_snapshot(vmms, full, &asked)
        .await
        .unwrap();
    bench.done(job).await;
    for (bed, name) in four.beds.iter_mut().zip(NAMES) {
        bed.disks.insert(name.to_owned(), held[&bed.vm].clone());
        bed.assert_present().await;
    }
    let last = vmms
        .db
        .get::<Collection>(four.collection)
        .unwrap()
        .last_apply
        .clone();
    let last = last.unwrap();
    assert_eq!(last.vms.len(), 4);
    assert_eq!(last.consistency, Consistency::Crash);
    // Those that had memory go on from there.
    for bed in &four.beds[..3] {
        assert_eq!(bed.record().power, Power::Saved);
        bed.state(StateChange::Start).await;
    }
    assert_eq!(four.beds[3].record().power, Power::Off);
    four.write(4);
    four.destroy(full).await;
    four.stop_all().await;
    for bed in &four.beds {
        bed.assert_present().await;
    }
    for _ in 0..4 {
        four.beds[0].sweep().await;
    }
    assert_eq!(files(&bench.path("images")), NAMES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_converted_recovery_snapshot_is_a_point_of_the_collection_and_a_base_for_the_next() {
    let bench = Bench::new().await;
    let mut four = Four::new(&bench).await;
    let (vmms, asked) = (&bench.vmms, Asked::default());
    four.write(1);
    let first = four.take(SnapshotKind::Recovery).await;
    let held = four.held();
    let refused = collection::destroy_snapshot(vmms, first, &asked).await;
    assert_eq!(refused.unwrap_err().message, Message::SnapshotIsRecovery);
    let job = four.export(first, None, "out", false).await;
    four.assert_exported(&job, &held).await;
    let parts = vmms
        .db
        .get::<CollectionSnapshot>(first)
        .unwrap()
        .members
        .clone();
    let refused = snapshot::convert(vmms, parts[0].point, &asked).await;
    assert_eq!(refused.unwrap_err().message, Message::SnapshotOfCollection);
    let job = collection::convert_snapshot(vmms, first, &asked)
        .await
        .unwrap();
    bench.done(job).await;
    assert!(vmms.db.all::<Snapshot>().is_empty());
    assert!(vmms.db.all::<CollectionSnapshot>().is_empty());
    let point = vmms.db.get::<CollectionPoint>(first).unwrap();
    assert_eq!(point.kind, PointType::Rct);
    assert_eq!(point.members, parts);
    for member in &point.members {
        let own = vmms.db.get::<Point>(member.point).unwrap();
        assert_eq!(own.collection_point, Some(first));
        assert!(!own.holds_content(), "it was exported");
    }

    four.write(2);
    let second = four.take(SnapshotKind::Recovery).await;
    let held = four.held();
    four.write(3);
    let job = four.export(second, Some(first), "out", false).await;
    four.assert_exported(&job, &held).await;
    let job = collection::convert_snapshot(vmms, second, &asked)
        .await
        .unwrap();
    bench.done(job).await;
    // A point of the collection goes on from a point that was a snapshot.
    let made = collection::create_point(vmms, four.collection, PointType::Rct, CRASH, "p", &asked);
    let (third, job) = made.await.unwrap();
    bench.done(job).await;
    let held = four.held();
    let out = bench.path("out");
    let job = collection::export_point(vmms, third, Some(second), &out, &[], &asked).await;
    four.assert_exported(&bench.done(job.unwrap()).await, &held)
        .await;
    let older = collection::export_snapshot(vmms, second, None, &out, true, false, &asked).await;
    assert_eq!(older.unwrap_err().message, Message::SnapshotNotFound);
    let numbers: Vec<u64> = [first, second, third]
        .iter()
        .map(|p| vmms.db.get::<CollectionPoint>(*p).unwrap().sequence)
        .collect();
    assert_eq!(numbers, [1, 2, 3]);
    for point in [first, second, third] {
        let job = collection::destroy_point(vmms, point, &asked)
            .await
            .unwrap();
        bench.done(job).await;
    }
    four.assert_untouched("deleted").await;
    four.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_an_imported_collection_is_left_out_and_told_unless_it_is_asked_for() {
    let (bench, _) = scripted().await;
    let four = Four::new(&bench).await;
    let full = four.take(SnapshotKind::Full).await;
    four.export(full, None, "out", false).await;
    let (vmms, asked, from) = (&bench.vmms, Asked::default(), bench.path("out"));
    for memory in [false, true] {
        let take = Take {
            memory,
            ..Take::default()
        };
        let (name, to) = (
            format!("copies {memory}"),
            bench.path(&format!("in-{memory}")),
        );
        let import = import_collection(vmms, &from, None, Some(name), &to, take, &asked);
        let (made, job) = import.await.unwrap();
        let report = bench.done(job).await.output.report;
        let left_out = report.iter().filter(|l| l.contains("memory is left out"));
        assert_eq!(left_out.count(), if memory { 0 } else { 3 }, "{report:?}");
        let members = vmms.db.get::<Collection>(made).unwrap().members.clone();
        assert_eq!(members.len(), 4);
        let saved = members.iter().filter(|vm| {
            let record = vmms.db.get::<Vm>(**vm).unwrap();
            assert_eq!(record.power == Power::Saved, record.saved_state.is_some());
            record.power == Power::Saved
        });
        assert_eq!(saved.count(), if memory { 3 } else { 0 });
    }
}

/// FIFOs at which whoever reads one waits; nobody waits any longer than the test.
struct Fifos(Vec<PathBuf>);

impl Fifos {
    /// Waits until somebody waits at it; whoever does goes on then.
    async fn reached(&self, fifo: &Path) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut options = OpenOptions::new();
        // Refused as long as there is no reader.
        options.write(true).custom_flags(NONBLOCK);
        while options.open(fifo).is_err() {
            let nobody = format!("nobody waits at {}", fifo.display());
            assert!(Instant::now() < deadline, "{nobody}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(NONBLOCK);
        for fifo in &self.0 {
            // Open until the process ends.
            std::mem::forget(options.open(fifo));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_all_members_is_kept_side_by_side() {
    let (bench, _) = scripted().await;
    let vmms = &bench.vmms;
    let kind = CollectionKind::Machines;
    let two = manage::define(vmms, "two", None, kind).await.unwrap();
    let mut members = Vec::new();
    for name in &NAMES[..2] {
        let vm = bench.machine(&[(name, ImageFormat::Qcow2, MIB)]).await.vm;
        let fifo = bench.path(&format!("{name}.memory"));
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let memory = fifo.clone();
        let saved = |draft: &mut vmms::db::Draft<'_>| {
            let record = draft.get_mut::<Vm>(vm)?;
            (record.power, record.saved_state) = (Power::Saved, Some(memory));
            Ok(())
        };
        vmms.db.change(saved).await.unwrap();
        manage::add(vmms, two, vm).await.unwrap();
        members.push((vm, fifo));
    }
    // In this order members are taken.
    members.sort();
    let fifos = Fifos(members.iter().map(|(_, fifo)| fifo.clone()).collect());
    let kind = SnapshotKind::Full;
    let asked = Asked::default();
    let made = collection::create_snapshot(vmms, two, kind, CRASH, "s", &asked);
    let (_, job) = made.await.unwrap();
    // The last one's is begun while the first one's is not done.
    fifos.reached(&fifos.0[1]).await;
    fifos.reached(&fifos.0[0]).await;
    // No disk takes a FIFO: the snapshot fails, and nothing of it stays.
    let job = vmms.wait(job).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    assert!(vmms.db.all::<Snapshot>().is_empty());
    for (vm, fifo) in members {
        let record = vmms.db.get::<Vm>(vm).unwrap();
        let now = (record.power, record.saved_state.as_ref());
        assert_eq!(now, (Power::Saved, Some(&fifo)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_any_member_at_any_step_takes_everything_back() {
    let (bench, fake) = scripted().await;
    let four = Four::new(&bench).await;
    let script = fake.script();
    let steps = [
        (SnapshotKind::Disk, "prepare_layers", 3),
        (SnapshotKind::Disk, "quiesce", 2),
        (SnapshotKind::Recovery, "mark", 3),
        (SnapshotKind::Full, "quiesce", 2),
        (SnapshotKind::Full, "save_state", 3),
    ];
    for (kind, method, members) in steps {
        for nth in 1..=members {
            let what = format!("{kind:?}: {method} of member {nth}");
            let failing = Scripted::refuse("scripted");
            script.on(method, script.count(method) + nth, failing);
            let (_, job) = four.try_take(kind).await;
            assert_eq!(job.state, JobState::Exception, "{what}");
            assert_eq!(
                job.faults[0].message,
                Message::CollectionPointFailed,
                "{what}"
            );
            let causes = &job.faults[0].causes;
            assert_eq!(causes.len(), 1, "{what}: {causes:#?}");
            assert_eq!(causes[0].message, Message::MemberFailed, "{what}");
            four.assert_untouched(&what).await;
        }
    }
    for kind in [SnapshotKind::Full, SnapshotKind::Disk] {
        let made = four.take(kind).await;
        four.assert_states("it works").await;
        four.destroy(made).await;
        four.assert_untouched("it works").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_go_on_is_named_and_stays_saved() {
    let (bench, fake) = scripted().await;
    let four = Four::new(&bench).await;
    let script = fake.script();
    let failing = Scripted::refuse("scripted");
    script.on("launch", script.count("launch") + 1, failing);
    let (made, job) = four.try_take(SnapshotKind::Full).await;
    assert_eq!(job.state, JobState::Exception);
    assert_eq!(job.faults[0].message, Message::CollectionNotResumed);
    assert_eq!(job.faults[0].causes.len(), 1);
    // The end of the job tries again, since the snapshot was asked for and the machine was running.
    four.assert_states("after the end of the job").await;
    assert!(
        bench
            .vmms
            .db
            .get::<CollectionSnapshot>(made)
            .unwrap()
            .complete
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_machine_leaves_the_snapshots_of_its_collection() {
    let (bench, _) = scripted().await;
    let four = Four::new(&bench).await;
    let made = four.take(SnapshotKind::Disk).await;
    four.stop_all().await;
    for (n, bed) in four.beds.iter().enumerate() {
        let vmms = &bench.vmms;
        assert_eq!(
            vmms.db
                .get::<CollectionSnapshot>(made)
                .unwrap()
                .members
                .len(),
            4 - n
        );
        let job = vmms::machine::destroy(vmms, bed.vm, &Asked::default()).await;
        bench.done(job.unwrap()).await;
    }
    assert!(bench.vmms.db.get::<CollectionSnapshot>(made).is_err());
}
