//! Power cuts, and QEMU killed at each of its writes, while points are taken and layers merge: what was acknowledged is there,
//! byte for byte. The judge is `qemu-img` on the files, not our own verify.
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

use hypervisor::probe::Prober;
use hypervisor::{ImageFormat, ImageTool, QemuHypervisor};
use serde::{Deserialize, Serialize};
use store::{SqliteOptions, SqliteStore};
use support::journal::{Dice, Note, Shim, cut, read};
use support::{Bed, Bench, MIB, assert_same, try_contents};
use uuid::Uuid;
use vmms::job::{Job, JobState};
use vmms::machine::Asked;
use vmms::machine::StateChange;
use vmms::point::{Consistency, Point, PointType};
use vmms::snapshot::{self, SnapshotKind};

const SIZE: u64 = 8 * MIB;
const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.img", ImageFormat::Raw, SIZE),
    ("b.qcow2", ImageFormat::Qcow2, SIZE),
];

/// What is promised from here on: which contents (by number) which point has, and what the disks show.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Promise {
    points: BTreeMap<Uuid, u32>,
    present: u32,
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

    async fn point(&mut self) -> Uuid {
        let (point, job) = self
            .bed
            .try_point(PointType::Log, Some(Consistency::Crash))
            .await;
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

    async fn live(&mut self, story: &str) {
        if self.running {
            self.bed.state(StateChange::Start).await;
        }
        self.write(1, 0, 3 * MIB);
        let snapshot = if story == "branch" {
            let (vmms, vm) = (&self.bed.bench.vmms, self.bed.vm);
            let (kind, crash) = (SnapshotKind::Disk, Some(Consistency::Crash));
            let made = snapshot::create(vmms, vm, kind, crash, "", &Asked::default()).await;
            let (id, job) = made.unwrap();
            self.bed.bench.done(job).await;
            Some((id, self.bed.disks.clone()))
        } else {
            None
        };
        self.write(2, MIB, MIB);
        let first = self.point().await;
        self.write(3, MIB + 65536, 2 * MIB);
        let second = self.point().await;
        self.write(4, 4 * MIB, MIB);
        if let Some((id, disks)) = snapshot {
            let job = snapshot::apply(&self.bed.bench.vmms, id, &Asked::default()).await;
            self.bed.bench.done(job.unwrap()).await;
            self.bed.disks = disks;
            self.write(5, 6 * MIB, 4096);
        }
        self.remove_data(first).await;
        self.write(6, 2 * MIB, 512);
        let third = self.point().await;
        self.write(7, 5 * MIB, MIB);
        self.remove_data(second).await;
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
    let bed = bench.machine(&TWO).await;
    // The images are the user's, who made them long ago.
    for path in ["kv/images/a.img", "kv/images/b.qcow2", "kv/images", "kv"] {
        File::open(root.join(path)).unwrap().sync_all().unwrap();
    }
    let mut life = Life {
        bed,
        ack: File::create(root.join("ACK")).unwrap(),
        root,
        promise: Promise::default(),
        running: story == "running",
    };
    life.live(&story).await;
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
        let job = bed.try_export(*point, None, &format!("{to}-{point}")).await;
        assert_eq!(job.state, JobState::Completed, "{what}: {:#?}", job.faults);
        let expected = contents(root, *number);
        for disk in &job.output.disks {
            let name = bed.name_of(&disk.device);
            let found = bed.bench.contents(&disk.file, ImageFormat::Qcow2).await;
            assert_same(
                &found,
                &expected[&name],
                &format!("{what}: point {number} of {name}"),
            );
        }
    }
}

/// Lives a life, then cuts the power at many places of it.
fn cuts(story: &str, count: usize) {
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
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for round in 0..count {
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
            let mut bed = bench.bed();
            let (old, new) = (
                contents(&root, before.1.present),
                contents(&root, after.1.present),
            );
            // A point that was being given up may be there or not.
            let mut sure = before.1.clone();
            sure.points.retain(|id, _| after.1.points.contains_key(id));
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
        });
    }
}

#[test]
fn a_power_cut_under_a_running_machine_loses_nothing_acknowledged() {
    cuts("running", 24);
}

#[test]
fn a_power_cut_while_a_stopped_machine_merges_loses_nothing_acknowledged() {
    cuts("stopped", 24);
}

#[test]
fn a_power_cut_while_a_branch_that_was_left_merges_loses_nothing_acknowledged() {
    cuts("branch", 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_killed_at_any_of_its_writes_while_layers_merge_loses_nothing() {
    for at in [1, 2, 3, 4, 5, 6, 8, 10, 13, 17] {
        let dir = tempfile::tempdir().unwrap();
        let shim = Shim::build(dir.path());
        let kill = dir.path().join("kill");
        let qemu = shim.wrap("qemu-system-x86_64", Path::new("/tmp"), Some(&kill));
        let hypervisor = QemuHypervisor::new(Prober::new(qemu), ImageTool::default());
        let bench = Bench::on(support::options(), Arc::new(hypervisor)).await;
        let mut bed = bench.machine(&TWO).await;
        bed.state(StateChange::Start).await;
        let write = |bed: &mut Bed<'_>, byte, offset, length| {
            for (name, _, _) in TWO {
                bed.write(name, byte, offset, length);
                bed.flush(name);
            }
        };
        write(&mut bed, 1, 0, 3 * MIB);
        let first = bed.point(PointType::Log).await;
        write(&mut bed, 2, MIB, 2 * MIB);
        let second = bed.point(PointType::Log).await;
        let at_second = bed.disks.clone();
        write(&mut bed, 3, 5 * MIB, MIB);
        std::fs::write(&kill, at.to_string()).unwrap();
        let job = vmms::point::remove_data(&bench.vmms, first, &Asked::default()).await;
        bench.vmms.wait(job.unwrap()).await.unwrap();
        // Beyond the last write of the merge: it dies at the next one.
        if let Some(machine) = bench.vmms.machine(bed.vm) {
            let _ = machine.kill().await;
        }
        bed.wait_off().await;
        for _ in 0..3 {
            bed.sweep().await;
        }
        bed.assert_present().await;
        let job = bed.export(second, None, "out").await;
        bed.assert_exported(&job, &at_second).await;
        assert!(!bench.vmms.db.get::<Point>(first).unwrap().holds_content());
        for point in [first, second] {
            bed.destroy(point).await;
        }
        bed.sweep().await;
        bed.assert_present().await;
        assert_eq!(
            support::files(&bench.path("images")),
            ["a.img", "b.qcow2"],
            "killed at write {at}"
        );
    }
}
