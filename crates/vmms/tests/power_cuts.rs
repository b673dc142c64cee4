//! Power cuts while points and snapshots are taken, exported, imported and merged: what was acknowledged is there, byte for byte. The
//! judge is `qemu-img` on the files, not our own verify.
//!
//! `KVMMS_CUTS` makes so many cuts of each life, `KVMMS_SEED` makes them at other places: a night can run thousands.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hypervisor::ImageFormat;
use serde::{Deserialize, Serialize};
use store::{SqliteOptions, SqliteStore};
use support::journal::{Dice, Note, Shim, cut, read};
use support::{Bed, Bench, MIB, assert_same, try_contents};
use uuid::Uuid;
use vmms::export::{LiveState, SystemExport};
use vmms::job::{Job, JobState};
use vmms::machine::{Asked, Power, StateChange, Vm, spec};
use vmms::point::{Consistency, Point, PointType};
use vmms::snapshot::{self, Snapshot, SnapshotKind};

const SIZE: u64 = 8 * MIB;
/// Where the exports of a life go.
const KEPT: &str = "kept";
const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.img", ImageFormat::Raw, SIZE),
    ("b.qcow2", ImageFormat::Qcow2, SIZE),
];

/// The firmware variables of the machine that has some.
const FIRMWARE: [u8; 5000] = [0x5a; 5000];

/// What is promised from here on: which contents (by number) which point and snapshot has, and what the disks show.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Promise {
    vm: Uuid,
    points: BTreeMap<Uuid, u32>,
    snapshots: BTreeMap<Uuid, u32>,
    present: u32,
    copies: Vec<Written>,
    /// The machine that was made of an export.
    imported: Option<Uuid>,
    /// The machine may be gone, and leaves its disks.
    going: bool,
}

/// The images of a completed export, or of a machine made of one.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Written {
    of: Uuid,
    number: u32,
    images: BTreeMap<String, PathBuf>,
}

type Contents = BTreeMap<String, Vec<u8>>;

/// A life whose files are noted: it runs in a process of its own, with the library before libc.
struct Life<'a> {
    bed: Bed<'a>,
    root: PathBuf,
    ack: File,
    promise: Promise,
    running: bool,
}

impl Life<'_> {
    /// Tells what is promised by now; only then does the life go on.
    fn ack(&mut self) {
        let mut line = serde_json::to_vec(&self.promise).unwrap();
        line.push(b'\n');
        self.ack.write_all(&line).unwrap();
    }

    fn write(&mut self, byte: u8, offset: u64, length: u64) {
        for (name, _, _) in TWO {
            self.bed.write(name, byte, offset, length);
            if self.running {
                self.bed.flush(name);
            }
        }
        self.promise.present += 1;
        let dir = self.root.with_extension(self.promise.present.to_string());
        std::fs::create_dir(&dir).unwrap();
        for (name, bytes) in &self.bed.disks {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        self.ack();
    }

    async fn point(&mut self, kind: PointType) -> Uuid {
        let (point, job) = self.bed.try_point(kind, Some(Consistency::Crash)).await;
        self.bed.bench.done(job.id).await;
        self.promise.points.insert(point, self.promise.present);
        self.ack();
        point
    }

    async fn remove_data(&mut self, point: Uuid) {
        self.promise.points.remove(&point);
        self.ack();
        let vmms = &self.bed.bench.vmms;
        let job = vmms::point::remove_data(vmms, point, &Asked::default()).await;
        let job = self.bed.bench.done(job.unwrap()).await;
        assert!(job.faults.is_empty(), "{:#?}", job.faults);
        self.ack();
    }

    /// Exports a point; the images are promised.
    async fn export(&mut self, point: Uuid, number: u32, base: Option<Uuid>) {
        let job = self.bed.export(point, base, KEPT).await;
        let disks = job.output.disks.iter();
        let images = disks.map(|d| (self.bed.name_of(&d.device), d.file.clone()));
        self.promise.copies.push(Written {
            of: point,
            number,
            images: images.collect(),
        });
        self.ack();
    }

    /// Makes a machine of an export.
    async fn import(&mut self, point: Uuid, number: u32) {
        let (bench, asked) = (self.bed.bench, Asked::default());
        let (from, to) = (bench.path(KEPT), bench.path("imported"));
        let (at, name) = (vmms::guid(point), Some("imported".to_owned()));
        let import = vmms::import::import_point;
        let made = import(&bench.vmms, &from, &at, name, &to, false, &asked).await;
        let (vm, job) = made.unwrap();
        bench.done(job).await;
        let images = [("a.img", "a.qcow2"), ("b.qcow2", "b.qcow2")];
        let images = images.map(|(name, file)| (name.to_owned(), to.join(file)));
        self.promise.imported = Some(vm);
        self.promise.copies.push(Written {
            of: vm,
            number,
            images: images.into(),
        });
        self.ack();
    }

    async fn snapshot(&mut self, kind: SnapshotKind) -> Uuid {
        let (vmms, crash) = (&self.bed.bench.vmms, Some(Consistency::Crash));
        let made = snapshot::create(vmms, self.bed.vm, kind, crash, "", &Asked::default()).await;
        let (id, job) = made.unwrap();
        self.bed.bench.done(job).await;
        self.promise.snapshots.insert(id, self.promise.present);
        self.ack();
        id
    }

    async fn apply(&mut self, snapshot: Uuid, disks: &Contents) {
        let job = snapshot::apply(&self.bed.bench.vmms, snapshot, &Asked::default()).await;
        self.bed.bench.done(job.unwrap()).await;
        self.bed.disks.clone_from(disks);
    }

    /// Points and merges, exported as they come, on one branch or two.
    async fn live(&mut self, story: &str) {
        if self.running {
            self.bed.state(StateChange::Start).await;
        }
        self.write(1, 0, 3 * MIB);
        let branches = story == "branch";
        let mut fork = None;
        if branches {
            let made = self.snapshot(SnapshotKind::Disk).await;
            fork = Some((made, self.bed.disks.clone()));
        }
        self.write(2, MIB, MIB);
        let first = self.point(PointType::Log).await;
        let at_first = self.promise.present;
        self.write(3, MIB + 65536, 2 * MIB);
        let second = self.point(PointType::Log).await;
        let at_second = self.promise.present;
        if !branches {
            self.export(first, at_first, None).await;
        }
        self.write(4, 4 * MIB, MIB);
        if !branches {
            self.export(second, at_second, Some(first)).await;
        }
        if let Some((id, disks)) = fork {
            self.apply(id, &disks).await;
            self.write(5, 6 * MIB, 4096);
        }
        self.remove_data(first).await;
        self.write(6, 2 * MIB, 512);
        let third = self.point(PointType::Log).await;
        self.write(7, 5 * MIB, MIB);
        self.remove_data(second).await;
        if story == "stopped" {
            self.import(second, at_second).await;
        }
        self.promise.points.clear();
        self.ack();
        for point in [first, second, third] {
            self.bed.destroy(point).await;
        }
        self.ack();
        self.write(8, 3 * MIB, 4096);
        if self.running {
            self.bed.state(StateChange::Stop).await;
        }
    }

    /// Snapshots of all kinds, one with memory; a branch is left and the snapshots on it go; then the machine goes.
    async fn live_with_snapshots(&mut self) {
        let vmms = Arc::clone(&self.bed.bench.vmms);
        let asked = Asked::default();
        self.write(1, 0, 2 * MIB);
        let fork = self.snapshot(SnapshotKind::Disk).await;
        let at_fork = self.bed.disks.clone();
        self.write(2, MIB, MIB);
        let tracked = self.point(PointType::Rct).await;
        // It holds its content for this export.
        self.promise.points.remove(&tracked);
        self.ack();
        self.export(tracked, self.promise.present, None).await;
        self.bed.state(StateChange::Start).await;
        self.running = true;
        self.write(3, MIB + 65536, MIB);
        let full = self.snapshot(SnapshotKind::Full).await;
        self.write(4, 3 * MIB, MIB);
        let recovery = self.snapshot(SnapshotKind::Recovery).await;
        self.promise.snapshots.remove(&recovery);
        self.ack();
        let job = snapshot::convert(&vmms, recovery, &asked).await;
        self.bed.bench.done(job.unwrap()).await;
        let at = self.promise.present;
        self.promise.points.insert(recovery, at);
        self.ack();
        self.bed.state(StateChange::Stop).await;
        self.running = false;
        self.write(5, 4 * MIB, 65536);
        self.apply(fork, &at_fork).await;
        self.write(6, 6 * MIB, 4096);
        // What lies on the branch that was left merges down to the point at its tip.
        self.promise.snapshots.remove(&full);
        self.ack();
        let job = snapshot::destroy(&vmms, full, false, &asked).await;
        self.bed.bench.done(job.unwrap()).await;
        self.bed.sweep().await;
        self.ack();
        self.write(7, 5 * MIB, MIB);
        self.promise.points.clear();
        self.promise.snapshots.clear();
        self.promise.going = true;
        self.ack();
        let job = vmms::machine::destroy(&vmms, self.bed.vm, &asked).await;
        self.bed.bench.done(job.unwrap()).await;
        self.ack();
    }
}

/// Not a test: what the tests below run in a process of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the tests of this file run it"]
async fn a_life_that_is_noted() {
    let Some(root) = std::env::var_os("KVMMS_JOURNAL_ROOT").map(PathBuf::from) else {
        return;
    };
    let story = std::env::var("KVMMS_LIFE").unwrap();
    let bench = Bench::open(root.join("kv"), database(&root)).await;
    // A stopped one has firmware variables: nothing here needs the firmware itself.
    let generation = if story == "stopped" { 2 } else { 1 };
    let bed = bench.machine_of(generation, &TWO).await;
    let state = spec::state_dir(&bench.vmms.dirs, bed.vm);
    if generation == 2 {
        std::fs::create_dir_all(&state).unwrap();
        std::fs::write(state.join("firmware-vars.fd"), FIRMWARE).unwrap();
    }
    // The images are the user's, who made them long ago; and so are the variables.
    let images = ["kv/images/a.img", "kv/images/b.qcow2", "kv/images", "kv"];
    let own = [state.join("firmware-vars.fd"), state.clone()];
    let above = ["kv/state/vm", "kv/state"].map(|dir| root.join(dir));
    let older = images.map(|file| root.join(file)).into_iter();
    for path in older.chain(own).chain(above).filter(|path| path.exists()) {
        File::open(path).unwrap().sync_all().unwrap();
    }
    let vm = bed.vm;
    let mut life = Life {
        bed,
        ack: File::create(root.join("ACK")).unwrap(),
        root,
        promise: Promise {
            vm,
            ..Promise::default()
        },
        running: story == "running",
    };
    match story.as_str() {
        "snapshots" => life.live_with_snapshots().await,
        story => life.live(story).await,
    }
}

fn database(root: &Path) -> Arc<SqliteStore> {
    let path = root.join("kv/state/kvmms.db");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::open(root).unwrap().sync_all().unwrap();
    Arc::new(SqliteStore::open(path, SqliteOptions::default()).unwrap())
}

/// What was promised at each place in the notes.
fn promises(notes: &[Note]) -> Vec<(usize, Promise)> {
    let mut ack = None;
    let mut out = Vec::new();
    for (place, note) in notes.iter().enumerate() {
        match note {
            Note::Create(ino, path) if path.ends_with("ACK") => ack = Some(*ino),
            Note::Write(ino, _, data) if Some(*ino) == ack => {
                out.push((place, serde_json::from_slice(data).unwrap()));
            }
            _ => {}
        }
    }
    out
}

fn contents(root: &Path, number: u32) -> Contents {
    let dir = root.with_extension(number.to_string());
    let read = |name: &str| (name.to_owned(), std::fs::read(dir.join(name)).unwrap());
    TWO.iter().map(|(name, _, _)| read(name)).collect()
}

/// What the disk shows. A job that was taken up again may take a layer away while its files are read; then they are read again.
async fn present(bed: &Bed<'_>, name: &str) -> Vec<u8> {
    loop {
        let still = bed.bench.vmms.jobs().iter().all(Job::is_over);
        let chain = bed.disk(name).layers.active_chain();
        let top = chain.last().unwrap();
        let read = try_contents(&bed.bench.vmms.images, &top.path, top.format).await;
        let same = bed.disk(name).layers.active_chain() == chain;
        if same && (still || read.is_ok()) {
            return read.unwrap();
        }
    }
}

/// Each byte is as it was promised last, or as the change that was going on would have it.
async fn judge_present(bed: &Bed<'_>, before: &Contents, after: &Contents, what: &str) {
    for (name, _, _) in TWO {
        let found = present(bed, name).await;
        if found == before[name] || found == after[name] {
            continue;
        }
        assert_eq!(found.len(), before[name].len(), "{what}: {name}");
        let odd = (0..found.len())
            .find(|at| found[*at] != before[name][*at] && found[*at] != after[name][*at]);
        assert_eq!(odd, None, "{what}: {name}: the present");
    }
}

async fn judge_points(bed: &mut Bed<'_>, root: &Path, promise: &Promise, to: &str, what: &str) {
    for (point, number) in &promise.points {
        let record = bed.bench.vmms.db.get::<Point>(*point).expect(what);
        assert!(record.holds_content(), "{what}: {point}");
        // One that tracks changes holds its content for one export only: that comes last, as a difference.
        if record.kind == PointType::Rct {
            continue;
        }
        let job = bed.try_export(*point, None, &format!("{to}-{point}")).await;
        let what = format!("{what}: point {number}");
        judge_export(bed, &job, &contents(root, *number), &what).await;
    }
    for (id, number) in &promise.snapshots {
        let record = bed.bench.vmms.db.get::<Snapshot>(*id).expect(what);
        assert!(record.complete, "{what}: {id}");
        let order = SystemExport {
            snapshot: Some(*id),
            own: false,
            others: Vec::new(),
            base: None,
            directory: bed.bench.path(&format!("{to}-{id}")),
            subdirectory: false,
            storage: true,
            runtime: true,
            excluded: Vec::new(),
            all_snapshots: false,
            live: LiveState::Crash,
            merge: false,
        };
        let (vmms, asked) = (&bed.bench.vmms, Asked::default());
        let job = vmms::export::export_system(vmms, bed.vm, order, &asked).await;
        let job = vmms.wait(job.unwrap()).await.unwrap();
        let what = format!("{what}: snapshot {number}");
        judge_export(bed, &job, &contents(root, *number), &what).await;
        let memory = job.output.machines.iter().any(|m| m.runtime.is_some());
        assert_eq!(memory, record.kind == SnapshotKind::Full, "{what}: memory");
    }
}

async fn judge_export(bed: &Bed<'_>, job: &Job, expected: &Contents, what: &str) {
    assert_eq!(job.state, JobState::Completed, "{what}: {:#?}", job.faults);
    assert_eq!(job.output.disks.len(), expected.len(), "{what}");
    for disk in &job.output.disks {
        let name = bed.name_of(&disk.device);
        let found = bed.bench.contents(&disk.file, ImageFormat::Qcow2).await;
        assert_same(&found, &expected[&name], &format!("{what} of {name}"));
    }
}

/// Exports that were completed are whole where they were written, and so is the machine that was made of one.
async fn judge_copies(bench: &Bench, root: &Path, promise: &Promise, what: &str) {
    for copy in &promise.copies {
        let expected = contents(root, copy.number);
        for (name, path) in &copy.images {
            let found = try_contents(&bench.vmms.images, path, ImageFormat::Qcow2).await;
            let found = found.unwrap_or_else(|e| panic!("{what}: {}: {e}", path.display()));
            let what = format!("{what}: {}", path.display());
            assert_same(&found, &expected[name], &what);
        }
    }
    if let Some(vm) = promise.imported {
        assert_eq!(bench.vmms.db.get::<Vm>(vm).expect(what).power, Power::Off);
        let file = spec::state_dir(&bench.vmms.dirs, vm).join("firmware-vars.fd");
        let found = std::fs::read(&file).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(found == FIRMWARE, "{what}: {}", file.display());
    }
}

/// A later point goes onto the last export of before the cut: what changed between them is known, also where its layer was merged.
async fn judge_difference(
    bed: &Bed<'_>,
    root: &Path,
    (sure, after): (&Promise, &Promise),
    what: &str,
) {
    let exported = |copy: &&Written| bed.bench.vmms.db.get::<Point>(copy.of).is_ok();
    let Some(base) = sure.copies.iter().rfind(exported) else {
        return;
    };
    // One whose own export was on its way goes nowhere else meanwhile.
    let free = |point: &Uuid| after.copies.iter().all(|copy| copy.of != *point);
    let mut later = sure.points.iter().filter(|(point, number)| {
        let record = bed.bench.vmms.db.get::<Point>(**point);
        free(point) && **number > base.number && record.is_ok_and(|p| p.holds_content())
    });
    let Some((point, number)) = later.next() else {
        return;
    };
    let job = bed.try_export(*point, Some(base.of), KEPT).await;
    let what = format!("{what}: point {number} since {}", base.number);
    judge_export(bed, &job, &contents(root, *number), &what).await;
    let info =
        bed.bench
            .vmms
            .images
            .info_as(&job.output.disks[0].file, Some(ImageFormat::Qcow2), true);
    assert!(
        info.await.unwrap().backing.is_some(),
        "{what}: a difference"
    );
}

fn set(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

/// Lives a life, then cuts the power at many places of it.
fn cuts(story: &str, count: u64) {
    let dir = tempfile::Builder::new().prefix("kv").tempdir().unwrap();
    let root = dir.path().join("life");
    std::fs::create_dir(&root).unwrap();
    let shim = Shim::build(dir.path());
    for program in ["qemu-img", "qemu-system-x86_64"] {
        shim.wrap(program, &root, None);
    }
    let path = std::env::var("PATH").unwrap();
    let lived = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "a_life_that_is_noted",
            "--nocapture",
        ])
        .env("PATH", format!("{}:{path}", dir.path().display()))
        .env("LD_PRELOAD", &shim.library)
        .env("KVMMS_JOURNAL", &shim.log)
        .env("KVMMS_JOURNAL_ROOT", &root)
        .env("KVMMS_LIFE", story)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&lived.stdout).into_owned()
        + &String::from_utf8_lossy(&lived.stderr);
    assert!(lived.status.success(), "{said}");
    let notes = read(&shim.log);
    let promises = promises(&notes);
    assert!(promises.len() > 8, "{said}");
    let root_ino = std::fs::metadata(&root).unwrap().ino();
    let (first, last) = (promises[0].0, notes.len());
    let merges: Vec<(usize, usize)> = promises
        .windows(2)
        .filter(|pair| pair[0].1.present == pair[1].1.present)
        .map(|pair| (pair[0].0, pair[1].0))
        .collect();
    let mut dice = Dice(set("KVMMS_SEED").unwrap_or(0x9e37_79b9_7f4a_7c15).max(1));
    for round in 0..set("KVMMS_CUTS").unwrap_or(count) {
        // Two of three where the promise does not change: that is where layers merge.
        let (from, to) = match round % 3 {
            0 => (first, last),
            _ => merges[dice.roll(merges.len() as u64) as usize],
        };
        let at = from + 1 + dice.roll((to - from) as u64) as usize;
        cut(&notes, at, &root, root_ino, &mut dice);
        let before = promises.iter().rfind(|(place, _)| *place < at).unwrap();
        let after = promises
            .iter()
            .find(|(place, _)| *place >= at)
            .unwrap_or(before);
        let what = format!("{story}: cut {round} after {at} of {last} notes");
        support::runtime().block_on(async {
            let bench = Bench::open(root.join("kv"), database(&root)).await;
            let mut bed = Bed {
                bench: &bench,
                vm: before.1.vm,
                disks: BTreeMap::new(),
            };
            let (old, new) = (
                contents(&root, before.1.present),
                contents(&root, after.1.present),
            );
            // What was being given up may be there or not.
            let mut sure = before.1.clone();
            sure.points.retain(|id, _| after.1.points.contains_key(id));
            let snapshots = &after.1.snapshots;
            sure.snapshots.retain(|id, _| snapshots.contains_key(id));
            judge_copies(&bench, &root, &sure, &what).await;
            if sure.going {
                for job in bench.vmms.jobs() {
                    bench.vmms.wait(job.id).await.unwrap();
                }
            }
            if bench.vmms.db.get::<Vm>(bed.vm).is_err() {
                assert!(sure.going, "{what}: the machine is gone");
                for (name, format, _) in TWO {
                    let image = bench.path("images").join(name);
                    let found = bench.contents(&image, format).await;
                    assert_same(&found, &old[name], &format!("{what}: {name}, alone"));
                }
                return;
            }
            judge_present(&bed, &old, &new, &what).await;
            judge_points(&mut bed, &root, &sure, "out", &what).await;
            for _ in 0..3 {
                bed.sweep().await;
            }
            for job in bench.vmms.jobs() {
                let fine = [
                    JobState::Completed,
                    JobState::Exception,
                    JobState::Terminated,
                ];
                assert!(fine.contains(&job.state), "{what}: {job:#?}");
            }
            judge_present(&bed, &old, &new, &format!("{what}, merged")).await;
            judge_points(&mut bed, &root, &sure, "again", &format!("{what}, merged")).await;
            judge_difference(&bed, &root, (&sure, &after.1), &what).await;
        });
    }
}

#[test]
fn a_power_cut_under_a_running_machine_loses_nothing_acknowledged() {
    cuts("running", 18);
}

#[test]
fn a_power_cut_while_a_stopped_machine_merges_loses_nothing_acknowledged() {
    cuts("stopped", 20);
}

#[test]
fn a_power_cut_while_a_branch_that_was_left_merges_loses_nothing_acknowledged() {
    cuts("branch", 18);
}

#[test]
fn a_power_cut_in_a_life_with_snapshots_loses_nothing_acknowledged() {
    cuts("snapshots", 8);
}
