//! What an export owns: it claims its directory, writes nothing over, follows no link, and deletes what it created and nothing else.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use hypervisor::ImageFormat;
use support::deadly::Deadly;
use support::{Bed, Bench, MIB, files, options};
use tokio::sync::watch;
use uuid::Uuid;
use vmms::image::ImageSpec;
use vmms::job::{Job, JobRequest, JobState};
use vmms::machine::Asked;
use vmms::point::PointType;
use vmms::{Message, Options, Places};

const ONE: [(&str, ImageFormat, u64); 1] = [("a.qcow2", ImageFormat::Qcow2, 2 * MIB)];
const BIG: [(&str, ImageFormat, u64); 2] = [
    ("a.img", ImageFormat::Raw, MIB),
    ("b.img", ImageFormat::Raw, 64 * MIB),
];

async fn start(bed: &Bed<'_>, point: Uuid, to: &Path) -> vmms::Result<Uuid> {
    let asked = Asked::default();
    vmms::export::export_point(&bed.bench.vmms, point, None, to, &[], &asked).await
}

async fn ask(bench: &Bench, job: Uuid, request: JobRequest) {
    bench.vmms.request_job_state(job, request).await.unwrap();
}

/// Starts an export and holds it up before it is whole, after it has claimed its directory and begun its first files.
async fn held_up(bed: &Bed<'_>, point: Uuid, to: &Path) -> Uuid {
    let job = start(bed, point, to).await.unwrap();
    let mut changes = bed.bench.vmms.db.changes();
    let begun = |notes: &serde_json::Value| {
        let created = notes[0]["created"].as_array();
        created.is_some_and(|c| {
            let image =
                |f: &serde_json::Value| f["path"].as_str().is_some_and(|p| p.ends_with(".qcow2"));
            c.iter().any(image)
        })
    };
    while !begun(&bed.bench.vmms.job(job).unwrap().notes) {
        changes.changed().await.unwrap();
    }
    ask(bed.bench, job, JobRequest::Suspend).await;
    assert_eq!(bed.bench.vmms.job(job).unwrap().state, JobState::Suspended);
    job
}

fn failed_with(job: &Job, message: Message) {
    let chain: Vec<String> = job
        .faults
        .iter()
        .flat_map(|f| f.chain())
        .map(|f| f.text())
        .collect();
    assert_eq!(job.state, JobState::Exception, "{chain:#?}");
    assert!(job.faults[0].has(message), "{message:?}: {chain:#?}");
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Everything below a directory, directories too.
fn all(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path.clone());
            }
            out.push(path);
        }
    }
    out.sort();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn several_points_of_a_machine_go_into_one_directory_at_once() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    let (mut points, mut copies) = (Vec::new(), Vec::new());
    for n in 1..=4 {
        bed.write("a.qcow2", n, u64::from(n) * 65536, MIB);
        points.push(bed.point(PointType::Log).await);
        copies.push(bed.disks.clone());
    }
    // Nothing of it is there yet; each makes what is missing, or finds it made.
    let mut jobs = Vec::new();
    for point in &points {
        jobs.push(start(&bed, *point, &bench.path("new/out")).await.unwrap());
    }
    for (job, copy) in jobs.into_iter().zip(&copies) {
        let job = bench.done(job).await;
        bed.assert_exported(&job, copy).await;
    }
    let out = bench.path("new/out");
    assert!(files(&out).iter().all(|f| !f.contains("partial")));
    assert_eq!(
        files(&out)
            .iter()
            .filter(|f| f.ends_with("manifest.json"))
            .count(),
        4
    );
    for path in all(&bench.path("new")) {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_goes_into_a_directory_once_whatever_the_directory_is_called() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.write("b.img", 1, 0, 64 * MIB);
    let point = bed.point(PointType::Log).await;
    let (out, alias) = (bench.path("out"), bench.path("alias"));
    symlink("out", &alias).unwrap();
    std::fs::create_dir(&out).unwrap();
    let first = held_up(&bed, point, &out).await;
    let busy = start(&bed, point, &out).await.unwrap_err();
    assert_eq!(busy.message, Message::VmBusy);
    let second = start(&bed, point, &alias).await.unwrap();
    let second = bench.vmms.wait(second).await.unwrap();
    failed_with(&second, Message::ExportBusy);
    ask(&bench, first, JobRequest::Start).await;
    let first = bench.done(first).await;
    bed.assert_exported(&first, &bed.disks).await;
    let whole = files(&out);
    // And once it is there.
    let third = start(&bed, point, &alias).await.unwrap();
    failed_with(
        &bench.vmms.wait(third).await.unwrap(),
        Message::ExportExists,
    );
    assert_eq!(files(&out), whole);
    bed.assert_exported(&first, &bed.disks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_exports_through_different_names_the_one_that_fails_leaves_the_other_alone() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.write("b.img", 1, 0, 64 * MIB);
    let (one, two) = (
        bed.point(PointType::Log).await,
        bed.point(PointType::Log).await,
    );
    let (out, alias) = (bench.path("out"), bench.path("alias"));
    symlink(&out, &alias).unwrap();
    std::fs::create_dir(&out).unwrap();
    let first = held_up(&bed, one, &out).await;
    let second = held_up(&bed, two, &alias).await;
    ask(&bench, second, JobRequest::Start).await;
    let second = bench.done(second).await;
    ask(&bench, first, JobRequest::Terminate).await;
    let first = bench.vmms.wait(first).await.unwrap();
    assert_eq!(first.state, JobState::Terminated);
    bed.assert_exported(&second, &bed.disks).await;
    let left = files(&out);
    assert_eq!(
        left.iter().filter(|f| f.ends_with("manifest.json")).count(),
        1
    );
    assert!(
        left.iter().all(|f| f.contains(&vmms::guid(two))),
        "{left:?}"
    );
    assert!(!left.iter().any(|f| f.contains("partial")), "{left:?}");
    let root = out.join(
        left.iter()
            .find_map(|f| f.strip_suffix("manifest.json"))
            .unwrap(),
    );
    let proof = vmms::verify::verify_export(&bench.vmms, &root, &Asked::default()).await;
    bench.done(proof.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_exports_that_fail_together_leave_not_even_a_directory() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.write("b.img", 1, 0, 64 * MIB);
    let (one, two) = (
        bed.point(PointType::Log).await,
        bed.point(PointType::Log).await,
    );
    let out = bench.path("new");
    let first = held_up(&bed, one, &out).await;
    let second = held_up(&bed, two, &out).await;
    for job in [first, second] {
        ask(&bench, job, JobRequest::Terminate).await;
        assert_eq!(
            bench.vmms.wait(job).await.unwrap().state,
            JobState::Terminated
        );
    }
    assert!(!out.exists(), "{:?}", all(&out));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_somebody_else_is_refused_by_name_before_the_first_byte() {
    let bench = Bench::new().await;
    let bed = bench.machine(&ONE).await;
    let point = bed.point(PointType::Log).await;
    let vm = vmms::guid(bed.vm);
    let whole = bed.export(point, None, "model").await;
    let image = whole.output.disks[0]
        .file
        .strip_prefix(bench.path("model"))
        .unwrap()
        .to_owned();
    for name in [format!("{vm}/Virtual Machines/{vm}.json").into(), image] {
        let out = bench.path("out");
        let path = out.join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        let before = all(&out);
        let job = bed.try_export(point, None, "out").await;
        failed_with(&job, Message::ForeignFile);
        let named = path.display().to_string();
        let told = job.faults[0]
            .chain()
            .iter()
            .any(|f| f.text().contains(&named));
        assert!(told, "{:#?}", job.faults);
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        assert_eq!(all(&out), before);
        std::fs::remove_dir_all(out).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_puts_there_meanwhile_is_neither_replaced_nor_deleted() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.write("b.img", 1, 0, 64 * MIB);
    let point = bed.point(PointType::Log).await;
    let whole = bed.export(point, None, "model").await;
    let (out, model) = (bench.path("out"), bench.path("model"));
    let job = held_up(&bed, point, &out).await;
    let big = whole
        .output
        .disks
        .iter()
        .find(|d| bed.name_of(&d.device) == "b.img");
    let theirs = out.join(big.unwrap().file.strip_prefix(&model).unwrap());
    std::fs::write(&theirs, "theirs").unwrap();
    // One that it had finished is exchanged as well.
    let config = out.join(format!("{0}/Virtual Machines/{0}.json", vmms::guid(bed.vm)));
    std::fs::remove_file(&config).unwrap();
    std::fs::write(&config, "exchanged").unwrap();
    ask(&bench, job, JobRequest::Start).await;
    let job = bench.vmms.wait(job).await.unwrap();
    failed_with(&job, Message::ForeignFile);
    assert_eq!(std::fs::read(&theirs).unwrap(), b"theirs");
    assert_eq!(std::fs::read(&config).unwrap(), b"exchanged");
    assert_eq!(files(&out).len(), 2, "{:?}", files(&out));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_link_below_the_directory_is_followed() {
    let bench = Bench::new().await;
    let bed = bench.machine(&ONE).await;
    let point = bed.point(PointType::Log).await;
    let vm = vmms::guid(bed.vm);
    let elsewhere = bench.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let secret = elsewhere.join(format!("{vm}.json"));
    std::fs::write(&secret, "secret").unwrap();
    let out = bench.path("out");
    for link in [
        format!("{vm}/Virtual Machines"),
        format!("{vm}/Virtual Hard Disks"),
        format!("{vm}/manifest.json"),
        format!("{vm}/Virtual Machines/{vm}.guest.json"),
    ] {
        let path = out.join(&link);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(&elsewhere, &path).unwrap();
        let job = bed.try_export(point, None, "out").await;
        if job.state == JobState::Completed {
            // A manifest that leads elsewhere makes it no place for ours: the point got a directory of its own.
            assert!(link.ends_with("manifest.json"));
        } else {
            let seen =
                job.faults[0].has(Message::PathRefused) || job.faults[0].has(Message::ForeignFile);
            assert!(seen, "{link}: {:#?}", job.faults);
        }
        assert_eq!(all(&elsewhere), std::slice::from_ref(&secret));
        assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
        assert!(path.symlink_metadata().unwrap().is_symlink());
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_is_made_where_others_could_exchange_it() {
    let bench = Bench::new().await;
    let bed = bench.machine(&ONE).await;
    let point = bed.point(PointType::Log).await;
    bed.export(point, None, "out").await;
    let open = bench.path("open");
    std::fs::create_dir(&open).unwrap();
    let set =
        |mode| std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
    set(0o777);
    let spec = |name: &str| ImageSpec {
        path: open.join(name),
        format: ImageFormat::Qcow2,
        fixed: false,
        size: Some(MIB),
        parent: None,
    };
    let asked = Asked::default();
    let refused = |result: vmms::Result<Uuid>| {
        assert!(result.is_err_and(|f| f.has(Message::PathRefused)));
    };
    let source = bench.path("images/source.qcow2");
    let made = vmms::image::create(
        &bench.vmms,
        ImageSpec {
            path: source.clone(),
            ..spec("")
        },
        &asked,
    )
    .await;
    bench.vmms.wait(made.unwrap()).await.unwrap();
    refused(vmms::image::create(&bench.vmms, spec("new.qcow2"), &asked).await);
    refused(vmms::image::convert(&bench.vmms, &source, spec("copy.qcow2"), &asked).await);
    let import =
        vmms::import::import_export(&bench.vmms, &bench.path("out"), None, &open, false, &asked)
            .await;
    failed_with(
        &bench.vmms.wait(import.unwrap().1).await.unwrap(),
        Message::PathRefused,
    );
    assert_eq!(all(&open).len(), 0);
    set(0o1777);
    let made = vmms::image::create(&bench.vmms, spec("new.qcow2"), &asked)
        .await
        .unwrap();
    assert_eq!(
        bench.vmms.wait(made).await.unwrap().state,
        JobState::Completed
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_of_others_are_refused_unless_it_is_allowed() {
    let bench = Bench::new().await;
    let bed = bench.machine(&ONE).await;
    let point = bed.point(PointType::Log).await;
    let out = bench.path("out");
    std::fs::create_dir(&out).unwrap();
    let set = |mode| std::fs::set_permissions(&out, std::fs::Permissions::from_mode(mode)).unwrap();
    set(0o777);
    failed_with(
        &bed.try_export(point, None, "out").await,
        Message::PathRefused,
    );
    set(0o755);
    if is_root() {
        chown(&out, Some(4321), Some(4321)).unwrap();
        failed_with(
            &bed.try_export(point, None, "out").await,
            Message::PathRefused,
        );
        failed_with(
            &bed.try_export(point, None, "out/below").await,
            Message::PathRefused,
        );
        // A link in it may be anybody's.
        symlink(bench.path("images"), out.join("link")).unwrap();
        let job = bed.try_export(point, None, "out/link").await;
        failed_with(&job, Message::PathRefused);
        chown(&out, Some(0), Some(0)).unwrap();
        std::fs::remove_file(out.join("link")).unwrap();
    }
    assert_eq!(all(&out).len(), 0);
    set(0o1777);
    bed.export(point, None, "out").await;

    let allowed = Bench::with(Options {
        places: Places {
            allow_foreign: true,
            ..Places::default()
        },
        ..options()
    })
    .await;
    let bed = allowed.machine(&ONE).await;
    let point = bed.point(PointType::Log).await;
    let out = allowed.path("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o777)).unwrap();
    bed.export(point, None, "out").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_go_where_the_configuration_lets_them() {
    let bench = Bench::new().await;
    let bed = bench.machine(&ONE).await;
    let point = bed.point(PointType::Log).await;
    let before = all(&bench.path("state"));
    for to in ["state", "state/points", "run/x"] {
        failed_with(
            &bed.try_export(point, None, to).await,
            Message::OutsideRoots,
        );
    }
    assert_eq!(all(&bench.path("state")), before);
    let system = start(&bed, point, Path::new("/proc/kvmms")).await.unwrap();
    failed_with(
        &bench.vmms.wait(system).await.unwrap(),
        Message::OutsideRoots,
    );

    let root = tempfile::tempdir().unwrap();
    let bench = Bench::with(Options {
        places: Places {
            exports: vec![root.path().to_owned()],
            ..Places::default()
        },
        ..options()
    })
    .await;
    let bed = bench.machine(&ONE).await;
    let point = bed.point(PointType::Log).await;
    failed_with(
        &bed.try_export(point, None, "out").await,
        Message::OutsideRoots,
    );
    // Nor by a link that leads out of it.
    symlink(bench.path("images"), root.path().join("link")).unwrap();
    let out = start(&bed, point, &root.path().join("link")).await.unwrap();
    failed_with(&bench.vmms.wait(out).await.unwrap(), Message::OutsideRoots);
    let fine = start(&bed, point, &root.path().join("below"))
        .await
        .unwrap();
    bench.done(fine).await;
}

/// An interrupted export of a disk that is done and one that is not; the marks come every 4 MiB.
fn interrupted(check: impl FnOnce(&Bench, &Path)) {
    let life = support::runtime();
    let (mut bench, vm, disks, job) = life.block_on(async {
        let bench = Bench::with(Options {
            export_mark: 4 * MIB,
            ..options()
        })
        .await;
        let mut bed = bench.machine(&BIG).await;
        bed.write("a.img", 1, 0, MIB);
        bed.write("b.img", 2, 0, 64 * MIB);
        let point = bed.point(PointType::Rct).await;
        let job = start(&bed, point, &bench.path("out")).await.unwrap();
        let mut changes = bench.vmms.db.changes();
        while bench.vmms.job(job).unwrap().notes[0]["mark"].is_null() {
            changes.changed().await.unwrap();
        }
        ask(&bench, job, JobRequest::Suspend).await;
        let (vm, disks) = (bed.vm, bed.disks.clone());
        (bench, vm, disks, job)
    });
    life.shutdown_timeout(Duration::from_millis(50));
    let shown = bench.vmms.job(job).unwrap().percent;
    let out = bench.path("out");
    check(&bench, &out);
    support::runtime().block_on(async {
        bench.restart().await;
        assert!(
            bench.vmms.job(job).unwrap().percent >= shown,
            "percent goes back"
        );
        ask(&bench, job, JobRequest::Start).await;
        let bed = Bed {
            bench: &bench,
            vm,
            disks,
        };
        let done = bench.done(job).await;
        assert_eq!(done.output.disks.len(), 2);
        for disk in &done.output.disks {
            let name = bed.name_of(&disk.device);
            let mut expected = bed.disks[&name].clone();
            let found = bench.contents(&disk.file, ImageFormat::Qcow2).await;
            // What was done is not read again: the byte that was changed there stays changed.
            let differing: Vec<usize> = (0..found.len())
                .filter(|i| found[*i] != expected[*i])
                .collect();
            assert_eq!(differing.len(), 1, "{name}");
            expected[differing[0]] ^= 0x55;
            assert!(found == expected);
        }
    });
}

#[test]
fn an_interrupted_export_goes_on_after_its_last_disk_and_its_last_mark() {
    interrupted(|_, out| {
        let images: Vec<PathBuf> = all(out)
            .into_iter()
            .filter(|p| std::fs::read(p).is_ok_and(|b| b.len() > MIB as usize))
            .collect();
        assert_eq!(images.len(), 2, "one whole, one not: {images:?}");
        for image in images {
            let mut bytes = std::fs::read(&image).unwrap();
            // The first clusters are header and table; the third holds data.
            bytes[2 * 65536 + 100] ^= 0x55;
            std::fs::write(&image, bytes).unwrap();
        }
    });
}

#[test]
fn a_killed_export_whose_service_dies_at_any_change_leaves_nothing() {
    for left in 0..12 {
        for after in [false, true] {
            let life = support::runtime();
            let (mut bench, job, ended) = life.block_on(async {
                let mut bench = Bench::new().await;
                let (dead, mut died) = watch::channel(false);
                let deadly = Arc::new(Deadly {
                    inner: Arc::clone(&bench.store),
                    left: AtomicI64::new(i64::MAX),
                    after,
                    dead,
                });
                bench.restart_on(Arc::clone(&deadly) as _).await;
                let mut bed = bench.machine(&BIG).await;
                bed.write("b.img", 1, 0, 64 * MIB);
                let point = bed.point(PointType::Log).await;
                let job = start(&bed, point, &bench.path("out")).await.unwrap();
                let mut changes = bench.vmms.db.changes();
                while bench.vmms.job(job).unwrap().notes[0]["created"]
                    .as_array()
                    .is_none_or(Vec::is_empty)
                {
                    changes.changed().await.unwrap();
                }
                // Standing still, so that nothing goes on behind the service that is gone.
                ask(&bench, job, JobRequest::Suspend).await;
                deadly.left.store(left, std::sync::atomic::Ordering::SeqCst);
                let vmms = Arc::clone(&bench.vmms);
                let end = async {
                    let _ = vmms.request_job_state(job, JobRequest::Kill).await;
                    vmms.wait(job).await.unwrap();
                };
                let ended = tokio::select! {
                    () = end => true,
                    _ = died.wait_for(|d| *d) => false,
                };
                (bench, job, ended)
            });
            life.shutdown_timeout(Duration::from_millis(50));
            support::runtime().block_on(async {
                bench.restart().await;
                if bench.vmms.job(job).unwrap().state == JobState::Suspended {
                    // The wish to end it did not become durable.
                    ask(&bench, job, JobRequest::Kill).await;
                }
                let job = bench.vmms.wait(job).await.unwrap();
                let out = bench.path("out");
                // The state may be told before the clean-up is done.
                for _ in 0..1200 {
                    if !out.exists() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                assert_eq!(job.state, JobState::Killed, "{left} {after}");
                assert!(!out.exists(), "{left} {after}: {:?}", all(&out));
            });
            if ended {
                return;
            }
        }
    }
}

/// A second point goes into a directory that holds the export of another one; the service dies at one change of its store after the other.
#[test]
fn an_export_whose_service_dies_at_any_change_goes_on_beside_the_export_before_and_never_in_it() {
    for left in 0.. {
        let mut ended = true;
        for after in [false, true] {
            let life = support::runtime();
            let (mut bench, vm, disks, job, before, done) = life.block_on(async {
                let mut bench = Bench::new().await;
                let (dead, mut died) = watch::channel(false);
                let deadly = Arc::new(Deadly {
                    inner: Arc::clone(&bench.store),
                    left: AtomicI64::new(i64::MAX),
                    after,
                    dead,
                });
                bench.restart_on(Arc::clone(&deadly) as _).await;
                let mut bed = bench.machine(&ONE).await;
                bed.write(ONE[0].0, 1, 0, 65536);
                let first = bed.point(PointType::Log).await;
                bed.export(first, None, "out").await;
                bed.write(ONE[0].0, 2, 65536, 65536);
                let second = bed.point(PointType::Log).await;
                let out = bench.path("out");
                let bytes = |p: PathBuf| (std::fs::read(&p).unwrap_or_default(), p);
                let before: Vec<_> = all(&out).into_iter().map(bytes).collect();
                // The first change is the job itself: without it there is nothing to go on with.
                deadly
                    .left
                    .store(left + 1, std::sync::atomic::Ordering::SeqCst);
                let job = start(&bed, second, &out).await.unwrap();
                let end = bench.vmms.wait(job);
                let done = tokio::select! {
                    job = end => { job.unwrap(); true }
                    _ = died.wait_for(|d| *d) => false,
                };
                let (vm, disks) = (bed.vm, bed.disks.clone());
                (bench, vm, disks, job, before, done)
            });
            life.shutdown_timeout(Duration::from_millis(50));
            support::runtime().block_on(async {
                bench.restart().await;
                let job = bench.done(job).await;
                let bed = Bed {
                    bench: &bench,
                    vm,
                    disks: disks.clone(),
                };
                bed.assert_exported(&job, &disks).await;
                for (bytes, path) in &before {
                    let now = std::fs::read(path).unwrap_or_default();
                    assert!(now == *bytes, "{left} {after}: {}", path.display());
                }
            });
            ended &= done;
        }
        if ended {
            assert!(left > 3, "it never died: {left}");
            return;
        }
    }
}
