//! Snapshots exported with a machine are imported to a planned machine, live on when it is realized, and can be applied; a service
//! that ends meanwhile leaves all of them or none.
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
use support::{Bed, Bench, KIB, MIB, assert_same, files};
use tokio::sync::watch;
use uuid::Uuid;
use vmms::export::{LiveState, SystemExport};
use vmms::job::JobState;
use vmms::machine::StateChange;
use vmms::machine::{Asked, Power};
use vmms::point::Consistency;
use vmms::snapshot::{self, Snapshot, SnapshotKind};
use vmms::{Message, Vmms};

const SIZE: u64 = 2 * MIB + 512;
const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, SIZE),
    ("b.img", ImageFormat::Raw, SIZE),
];

type Disks = BTreeMap<String, Vec<u8>>;

async fn take(bed: &Bed<'_>, kind: SnapshotKind, name: &str) -> Uuid {
    let (vmms, asked, crash) = (&bed.bench.vmms, Asked::default(), Some(Consistency::Crash));
    let made = snapshot::create(vmms, bed.vm, kind, crash, name, &asked).await;
    let (id, job) = made.unwrap();
    bed.bench.done(job).await;
    id
}

/// What the disks held at each of the three snapshots, and at last.
struct Told {
    names: [&'static str; 3],
    held: Vec<Disks>,
}

/// Takes exported memory over.
async fn trusting() -> Bench {
    let options = vmms::Options {
        import_memory: true,
        ..support::options()
    };
    Bench::with(options).await
}

/// A machine with a snapshot, one with memory on it, a branch from the first, and a present that descends from the branch;
/// exported with all of them. It goes.
async fn exported(bench: &Bench) -> (Uuid, Told) {
    let mut bed = bench.machine(&TWO).await;
    let mut held = Vec::new();
    bed.write("a.qcow2", 1, 0, 600 * KIB);
    bed.write("b.img", 1, MIB, 64 * KIB);
    let first = take(&bed, SnapshotKind::Disk, "first").await;
    held.push(bed.disks.clone());
    bed.state(StateChange::Start).await;
    bed.write("a.qcow2", 2, 100 * KIB, 70 * KIB);
    bed.write("b.img", 2, SIZE - 512, 512);
    take(&bed, SnapshotKind::Full, "memory").await;
    held.push(bed.disks.clone());
    bed.state(StateChange::Stop).await;
    let asked = Asked::default();
    let job = snapshot::apply(&bench.vmms, first, &asked).await.unwrap();
    bench.done(job).await;
    bed.disks.clone_from(&held[0]);
    // Zeros where the snapshots beneath hold something.
    bed.write("a.qcow2", 0, 200 * KIB, 200 * KIB);
    take(&bed, SnapshotKind::Disk, "branch").await;
    held.push(bed.disks.clone());
    bed.write("b.img", 4, 0, 300 * KIB);
    held.push(bed.disks.clone());
    let order = SystemExport {
        snapshot: None,
        own: false,
        others: Vec::new(),
        base: None,
        directory: bench.path("out"),
        subdirectory: true,
        storage: true,
        runtime: true,
        excluded: Vec::new(),
        all_snapshots: true,
        live: LiveState::Crash,
        merge: false,
    };
    let job = vmms::export::export_system(&bench.vmms, bed.vm, order, &asked).await;
    bench.done(job.unwrap()).await;
    let names = ["first", "memory", "branch"];
    (bed.vm, Told { names, held })
}

async fn planned(bench: &Bench, from: Uuid, keep: bool) -> Uuid {
    let root = bench.path("out").join(vmms::guid(from));
    let (into, asked) = (bench.path("in"), Asked::default());
    let made = vmms::import::import_planned(&bench.vmms, &root, keep, Some(&into), &asked).await;
    let (vm, job) = made.unwrap();
    bench.done(job).await;
    vm
}

async fn present(vmms: &Vmms, bench: &Bench, vm: Uuid) -> Disks {
    let record = vmms.db.get::<vmms::machine::Vm>(vm).unwrap();
    let mut found = Disks::new();
    for (_, disk) in record.disks() {
        let stem = disk.path.file_stem().unwrap().to_string_lossy();
        let name = TWO
            .iter()
            .find(|(n, _, _)| n.starts_with(&*stem))
            .unwrap()
            .0;
        let top = disk.layers.active_chain().pop().unwrap();
        let bytes = bench.contents(&top.path, top.format).await;
        found.insert(name.to_owned(), bytes);
    }
    found
}

fn assert_disks(found: &Disks, expected: &Disks, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (name, bytes) in found {
        assert_same(bytes, &expected[name], &format!("{what}: {name}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn imported_snapshots_form_the_same_tree_and_are_applied() {
    let bench = trusting().await;
    let (old, told) = exported(&bench).await;
    let (vmms, asked) = (&bench.vmms, Asked::default());
    let root = bench.path("out").join(vmms::guid(old));
    let verified = vmms::verify::verify_export(vmms, &root, &asked).await;
    bench.done(verified.unwrap()).await;
    let vm = planned(&bench, old, false).await;
    let none = snapshot::import(vmms, vm, &bench.path("in"), &asked).await;
    assert_eq!(none.unwrap_err().message, Message::ManifestUnusable);
    let real = snapshot::import(vmms, old, &root, &asked).await;
    assert_eq!(real.unwrap_err().message, Message::WrongVmState);

    let folder = root.join("Snapshots");
    let (made, job) = snapshot::import(vmms, vm, &folder, &asked).await.unwrap();
    bench.done(job).await;
    assert_eq!(made.len(), 3);
    let all = snapshot::of_vm(vmms, vm);
    let names: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, told.names);
    // The machine they came from is still here, and so are its snapshots: these have GUIDs of their own.
    assert!(all.iter().all(|s| made.contains(&s.id) && s.vm == vm));
    assert_eq!(snapshot::of_vm(vmms, old).len(), 3);
    assert_eq!(all[0].parent, None);
    assert_eq!(all[1].parent, Some(all[0].id));
    assert_eq!(all[2].parent, Some(all[0].id));
    let kinds: Vec<bool> = all.iter().map(|s| s.memory.is_some()).collect();
    assert_eq!(kinds, [false, true, false]);
    let record = vmms.db.get::<vmms::machine::Vm>(vm).unwrap();
    let current = snapshot::current(vmms, &record).unwrap();
    assert_eq!(current.id, all[2].id, "it descends from the branch");
    assert_disks(&present(vmms, &bench, vm).await, &told.held[3], "planned");

    let job = vmms::machine::realize(vmms, vm, &asked).await.unwrap();
    bench.done(job).await;
    let bed = Bed {
        bench: &bench,
        vm,
        disks: Disks::new(),
    };
    for _ in 0..4 {
        bed.sweep().await;
    }
    assert_disks(&present(vmms, &bench, vm).await, &told.held[3], "realized");
    for at in [1, 2, 0, 1] {
        let job = snapshot::apply(vmms, all[at].id, &asked).await.unwrap();
        bench.done(job).await;
        let what = format!("applied {}", told.names[at]);
        assert_disks(&present(vmms, &bench, vm).await, &told.held[at], &what);
        let record = vmms.db.get::<vmms::machine::Vm>(vm).unwrap();
        assert!(!record.planned);
        assert_eq!(record.power == Power::Saved, at == 1);
        assert_eq!(snapshot::current(vmms, &record).unwrap().id, all[at].id);
    }
    // It goes on from its memory, and a snapshot of it can be exported as a difference to an imported one.
    bed.state(StateChange::Start).await;
    bed.state(StateChange::Stop).await;
    let order = |snapshot, base, to: &str| SystemExport {
        snapshot: Some(snapshot),
        own: false,
        others: Vec::new(),
        base,
        directory: bench.path(to),
        subdirectory: false,
        storage: true,
        runtime: true,
        excluded: Vec::new(),
        all_snapshots: false,
        live: LiveState::Crash,
        merge: false,
    };
    let whole = order(all[0].id, None, "again/first");
    let job = vmms::export::export_system(vmms, vm, whole, &asked).await;
    bench.done(job.unwrap()).await;
    let difference = order(all[1].id, Some(all[0].id), "again/memory");
    let job = vmms::export::export_system(vmms, vm, difference, &asked).await;
    let job = bench.done(job.unwrap()).await;
    for disk in &job.output.disks {
        let name = bed.name_of(&disk.device);
        let stem = name.split('.').next().unwrap();
        let expected = told.held[1].iter().find(|(n, _)| n.starts_with(stem));
        let found = bench.contents(&disk.file, ImageFormat::Qcow2).await;
        assert_same(&found, expected.unwrap().1, &name);
    }
    for snapshot in all.iter().rev() {
        let job = snapshot::destroy(vmms, snapshot.id, false, &asked).await;
        bench.done(job.unwrap()).await;
    }
    for _ in 0..4 {
        bed.sweep().await;
    }
    let last = present(vmms, &bench, vm).await;
    assert_disks(&last, &told.held[1], "all snapshots gone");
    assert_eq!(files(&bench.path("in")), ["a.qcow2", "b.qcow2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_imported_snapshots_is_left_out_and_told_unless_it_is_asked_for() {
    let bench = Bench::new().await;
    let (old, held) = exported(&bench).await;
    let (vmms, asked) = (&bench.vmms, Asked::default());
    let vm = planned(&bench, old, false).await;
    let folder = bench.path("out").join(vmms::guid(old)).join("Snapshots");
    let (made, job) = snapshot::import(vmms, vm, &folder, &asked).await.unwrap();
    bench.done(job).await;
    assert_eq!(made.len(), 3);
    let all = snapshot::of_vm(vmms, vm);
    let told = |s: &Snapshot| {
        let mut decisions = s.decisions.iter();
        decisions.any(|d| d.what.contains("memory is left out"))
    };
    let left_out: Vec<bool> = all.iter().map(|s| told(s)).collect();
    assert_eq!(left_out, [false, true, false]);
    assert!(all.iter().all(|s| s.memory.is_none()));
    let named = |path: &String| path.ends_with(".vmstate");
    let imported = |id: &Uuid| files(&vmms.dirs.state.join("points").join(id.to_string()));
    assert!(!made.iter().flat_map(imported).any(|path| named(&path)));
    let job = vmms::machine::realize(vmms, vm, &asked).await.unwrap();
    bench.done(job).await;
    let job = snapshot::apply(vmms, all[1].id, &asked).await.unwrap();
    bench.done(job).await;
    let record = vmms.db.get::<vmms::machine::Vm>(vm).unwrap();
    assert_eq!((record.power, &record.saved_state), (Power::Off, &None));
    let now = present(vmms, &bench, vm).await;
    assert_disks(&now, &held.held[1], "without its memory");
}

/// A life that ends at the `nth` change of records while the snapshots are imported; whether it came to its own end.
fn killed(nth: i64, after: bool) -> bool {
    let first = support::runtime();
    let (mut bench, vm, told, root, lived) = first.block_on(async {
        let mut bench = trusting().await;
        let (dead, mut died) = watch::channel(false);
        let (old, told) = exported(&bench).await;
        let asked = Asked::default();
        let root = bench.path("out").join(vmms::guid(old));
        let job = vmms::machine::destroy(&bench.vmms, old, &asked)
            .await
            .unwrap();
        bench.done(job).await;
        let vm = planned(&bench, old, true).await;
        let store = Arc::new(Deadly {
            inner: Arc::clone(&bench.store),
            left: AtomicI64::new(i64::MAX),
            after,
            dead,
        });
        bench.restart_on(store.clone()).await;
        store.left.store(nth, Ordering::SeqCst);
        let life = async {
            let started = snapshot::import(&bench.vmms, vm, &root, &asked).await;
            bench.done(started.unwrap().1).await;
        };
        let lived = tokio::select! {
            () = life => true,
            _ = died.wait_for(|dead| *dead) => false,
        };
        (bench, vm, told, root, lived)
    });
    first.shutdown_background();
    support::runtime().block_on(async {
        bench.restart().await;
        let vmms = &bench.vmms;
        for job in vmms.jobs() {
            let job = vmms.wait(job.id).await.unwrap();
            let ended = [JobState::Completed, JobState::Exception];
            assert!(ended.contains(&job.state), "{job:#?}");
        }
        let all = vmms.db.all::<Snapshot>();
        assert!([0, 3].contains(&all.len()), "{} snapshots", all.len());
        let layers = files(&bench.path("in")).len();
        assert_eq!(layers, if all.is_empty() { 2 } else { 2 + 2 + 6 });
        let points = std::fs::read_dir(vmms.dirs.state.join("points"));
        assert_eq!(points.map_or(0, Iterator::count), all.len());
        let asked = Asked::default();
        assert_disks(&present(vmms, &bench, vm).await, &told.held[3], "as it was");
        if all.is_empty() {
            let (made, job) = snapshot::import(vmms, vm, &root, &asked).await.unwrap();
            bench.done(job).await;
            assert_eq!(made.len(), 3);
        }
        let job = vmms::machine::realize(vmms, vm, &asked).await.unwrap();
        bench.done(job).await;
        for (at, found) in snapshot::of_vm(vmms, vm).iter().enumerate() {
            let job = snapshot::apply(vmms, found.id, &asked).await.unwrap();
            bench.done(job).await;
            assert_disks(&present(vmms, &bench, vm).await, &told.held[at], "applied");
        }
    });
    lived
}

#[test]
fn a_service_killed_at_any_step_of_an_import_leaves_all_snapshots_or_none() {
    let step = std::env::var("KVMMS_STEP").ok();
    let step: i64 = step.and_then(|n| n.parse().ok()).unwrap_or(3);
    for after in [false, true] {
        let mut nth = if after { 1 } else { 0 };
        while !killed(nth, after) {
            nth += step;
            assert!(nth < 100, "an import has an end");
        }
    }
}
