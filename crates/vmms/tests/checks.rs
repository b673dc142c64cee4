//! Host checks: each kind of orphan is found and cleaned, nothing else is found, and what is not ours is never touched.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use disk::ChangeMap;
use hypervisor::names::RunFiles;
use hypervisor::process::Process;
use hypervisor::{ImageFormat, NewImage};
use support::{Bed, Bench, KIB, MIB};
use uuid::Uuid;
use vmms::check::{Finding, FindingKind, check_host, clean_host};
use vmms::job::{Job, JobState};
use vmms::machine::StateChange;
use vmms::machine::{Asked, spec};
use vmms::owner::Owner;
use vmms::point::{Hold, Point, PointType};
use vmms::snapshot::SnapshotKind;

const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, 2 * MIB),
    ("b.img", ImageFormat::Raw, MIB),
];

async fn found(bench: &Bench) -> Vec<Finding> {
    let mut all = check_host(&bench.vmms).await.unwrap();
    // What was cleaned before is shown until its time is over.
    all.retain(|f| f.kind != FindingKind::Quarantine);
    all
}

/// The files below, but for what cleaning set aside.
fn files(dir: &Path) -> Vec<String> {
    let mut all = support::files(dir);
    all.retain(|f| !f.contains("quarantine"));
    all
}

/// Cleans and tells what was reported.
async fn clean(bench: &Bench, kinds: &[FindingKind]) -> Job {
    let job = clean_host(&bench.vmms, kinds, &Asked::default()).await;
    bench.done(job.unwrap()).await
}

fn kinds(findings: &[Finding]) -> Vec<(FindingKind, bool)> {
    findings.iter().map(|f| (f.kind, f.safe)).collect()
}

/// One finding of this kind and nothing else; cleaned, nothing is left.
async fn found_and_cleaned(bench: &Bench, kind: FindingKind, subject: &str) {
    let findings = found(bench).await;
    assert_eq!(kinds(&findings), [(kind, true)], "{findings:#?}");
    let one = &findings[0];
    assert!(one.subject.contains(subject), "{one:?}");
    assert!(!one.why.is_empty() && !one.action.is_empty());
    // Another kind leaves it alone.
    let other = FindingKind::ALL
        .iter()
        .copied()
        .find(|k| *k != kind)
        .unwrap();
    assert!(clean(bench, &[other]).await.output.report.is_empty());
    let report = clean(bench, &[kind]).await.output.report;
    assert_eq!(report.len(), 1, "{report:?}");
    assert!(report[0].contains(subject), "{report:?}");
    assert_eq!(found(bench).await, []);
}

/// A layer as we make it, that no record names.
async fn layer(bed: &Bed<'_>, on: &Path) -> PathBuf {
    let image = on.file_name().unwrap().to_string_lossy().into_owned();
    let stem = image.split(".kvmms-").next().unwrap();
    let path = on.with_file_name(format!("{stem}.kvmms-{}.qcow2", Uuid::new_v4()));
    let format = match image.ends_with(".img") {
        true => ImageFormat::Raw,
        false => ImageFormat::Qcow2,
    };
    let owner = Owner {
        state: bed.bench.vmms.identity,
        vm: bed.vm,
        disk: Uuid::new_v4(),
        layer: Uuid::new_v4(),
    };
    let new = NewImage {
        owner: Some(owner.to_string()),
        ..NewImage::overlay(&path, image, format, MIB)
    };
    bed.bench.vmms.images.create(&new).await.unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_busy_host_has_no_findings() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    bed.state(StateChange::Start).await;
    let held = bed.point(PointType::Rct).await;
    bed.write("a.qcow2", 2, 0, 64 * KIB);
    let kept = bed.point(PointType::Log).await;
    let (vm, kind, asked) = (bed.vm, SnapshotKind::Full, Asked::default());
    let snapshot = vmms::snapshot::create(&bench.vmms, vm, kind, None, "s", &asked);
    let (_, job) = snapshot.await.unwrap();
    bench.done(job).await;
    bed.export(held, None, "out").await;
    bed.export(kept, Some(held), "out").await;
    bed.write("b.img", 3, 0, 64 * KIB);
    bed.point(PointType::Rct).await;
    bed.sweep().await;
    assert_eq!(found(&bench).await, [], "running, with merged layers");

    let other = bench.machine(&[("c.img", ImageFormat::Raw, MIB)]).await;
    other.state(StateChange::Start).await;
    other.state(StateChange::Save).await;
    let third = bench.machine(&[("d.img", ImageFormat::Raw, MIB)]).await;
    third.state(StateChange::Start).await;
    third.state(StateChange::Stop).await;
    assert_eq!(found(&bench).await, [], "saved and stopped ones beside it");

    // Checked again and again while points come and go.
    let vmms = std::sync::Arc::clone(&bench.vmms);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watch = std::sync::Arc::clone(&stop);
    let looking = tokio::spawn(async move {
        let mut seen = Vec::new();
        while !watch.load(std::sync::atomic::Ordering::Relaxed) {
            seen.extend(check_host(&vmms).await.unwrap());
        }
        seen
    });
    for n in 0..4 {
        bed.write("a.qcow2", n, MIB, 64 * KIB);
        let point = bed.point(PointType::Log).await;
        bed.export(point, None, &format!("again{n}")).await;
        bed.destroy(point).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(looking.await.unwrap(), []);

    // A machine that was deleted leaves nothing.
    bed.state(StateChange::Stop).await;
    let job = vmms::machine::destroy(&bench.vmms, third.vm, &Asked::default()).await;
    bench.done(job.unwrap()).await;
    assert_eq!(found(&bench).await, [], "after one was deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_nobody_names_are_found_and_cleaned_from_above() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    bed.point(PointType::Log).await;
    let before = files(&bench.path("images"));
    let orphan = layer(&bed, &bench.path("images/a.qcow2")).await;
    found_and_cleaned(&bench, FindingKind::Layer, &orphan.display().to_string()).await;

    let below = layer(&bed, &bench.path("images/b.img")).await;
    let above = layer(&bed, &below).await;
    let findings = found(&bench).await;
    let of = |path: &Path| {
        let shown = path.display().to_string();
        findings.iter().find(|f| f.subject == shown).unwrap().safe
    };
    assert_eq!((of(&below), of(&above)), (false, true));
    assert_eq!(clean(&bench, &[]).await.output.report.len(), 2);
    assert_eq!(files(&bench.path("images")), before);
    assert_eq!(found(&bench).await, []);
    bed.assert_present().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn look_alikes_and_files_in_use_are_told_and_never_touched() {
    let bench = Bench::new().await;
    let bed = bench.machine(&TWO).await;
    bed.point(PointType::Log).await;
    let named = |image: &str| {
        let name = format!("images/{image}.kvmms-{}.qcow2", Uuid::new_v4());
        bench.path(&name)
    };
    // A text, a whole image that lies on nothing, a layer of another image, a link to a layer in use.
    let text = named("a.qcow2");
    std::fs::write(&text, "letters to a friend").unwrap();
    let whole = named("a.qcow2");
    let images = &bench.vmms.images;
    let new = NewImage::new(&whole, ImageFormat::Qcow2, MIB);
    images.create(&new).await.unwrap();
    let other = named("a.qcow2");
    let new = NewImage::overlay(&other, "b.img".to_owned(), ImageFormat::Raw, MIB);
    images.create(&new).await.unwrap();
    let link = named("a.qcow2");
    let active = bed.disk("a.qcow2").layers.active_chain().pop().unwrap();
    std::os::unix::fs::symlink(&active.path, &link).unwrap();
    // An orphan somebody built an image of his own on, and one that a process has open.
    let built_on = layer(&bed, &bench.path("images/a.qcow2")).await;
    let own = bench.path("images/mine.qcow2");
    let name = built_on.file_name().unwrap().to_string_lossy().into_owned();
    let new = NewImage::overlay(&own, name, ImageFormat::Qcow2, MIB);
    images.create(&new).await.unwrap();
    let opened = layer(&bed, &bench.path("images/b.img")).await;
    let user = std::fs::File::open(&opened).unwrap();
    // Foreign things among our own.
    let state = bench.path("state");
    let fake_map = state.join("maps").join(format!("x/{}.map", Uuid::new_v4()));
    std::fs::create_dir_all(fake_map.parent().unwrap()).unwrap();
    std::fs::write(&fake_map, "not a map").unwrap();
    let point = state.join("points").join(Uuid::new_v4().to_string());
    std::fs::create_dir_all(&point).unwrap();
    std::fs::write(point.join("thesis.odt"), "years of work").unwrap();
    let machine = state.join("vm/holiday");
    std::fs::create_dir_all(&machine).unwrap();

    let before = files(bench.dir.path());
    let findings = found(&bench).await;
    assert!(findings.iter().all(|f| !f.safe), "{findings:#?}");
    let subjects: Vec<&str> = findings.iter().map(|f| f.subject.as_str()).collect();
    for path in [
        &text, &whole, &other, &built_on, &opened, &fake_map, &point, &machine,
    ] {
        let shown = path.display().to_string();
        assert!(subjects.contains(&shown.as_str()), "{shown}: {subjects:#?}");
    }
    assert_eq!(findings.len(), 8, "{findings:#?}");
    assert!(clean(&bench, &[]).await.output.report.is_empty());
    assert_eq!(files(bench.dir.path()), before, "nothing was touched");
    drop(user);
    assert_eq!(clean(&bench, &[]).await.output.report.len(), 1);
    assert!(!opened.exists() && built_on.exists() && link.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_state_directory_without_record_are_found_and_cleaned() {
    let bench = Bench::new().await;
    let bed = bench.machine(&TWO).await;
    bed.point(PointType::Log).await;
    bed.point(PointType::Log).await;
    let state = bench.path("state");
    let before = files(&state);

    let map = state.join(format!("maps/{}/{}.map", Uuid::new_v4(), Uuid::new_v4()));
    std::fs::create_dir_all(map.parent().unwrap()).unwrap();
    ChangeMap::of(0..4096).save(&map, MIB).unwrap();
    found_and_cleaned(&bench, FindingKind::Map, &map.display().to_string()).await;
    assert!(!map.parent().unwrap().exists());

    // The directory of a point, with what a point has.
    let known = bench.vmms.db.all::<Point>()[0].config.clone();
    let dir = state.join("points").join(Uuid::new_v4().to_string());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(&known, dir.join("machine.json")).unwrap();
    found_and_cleaned(&bench, FindingKind::PointFiles, &dir.display().to_string()).await;

    let dir = state.join("vm").join(Uuid::new_v4().to_string());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("console.log"), "login:").unwrap();
    std::fs::write(dir.join("saved.vmstate"), "memory").unwrap();
    found_and_cleaned(
        &bench,
        FindingKind::MachineFiles,
        &dir.display().to_string(),
    )
    .await;

    let temporary = known.with_file_name("machine.json.partial");
    std::fs::write(&temporary, "{").unwrap();
    let shown = temporary.display().to_string();
    // Not while a job runs that may be writing it: cleaning is a job itself.
    let findings = found(&bench).await;
    assert_eq!(kinds(&findings), [(FindingKind::Temporary, true)]);
    assert_eq!(findings[0].subject, shown);
    clean(&bench, &[]).await;
    assert_eq!(found(&bench).await, []);
    assert_eq!(files(&state), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_an_export_is_found_and_cleaned_and_whole_ones_stay() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let (first, second) = (
        bed.point(PointType::Log).await,
        bed.point(PointType::Log).await,
    );
    bed.export(first, None, "out").await;
    bed.export(second, Some(first), "out").await;
    let out = bench.path("out");
    let whole = files(&out);
    assert_eq!(found(&bench).await, []);

    // The second one, had it been cut short: no manifest, one file under its temporary name; and a file of somebody else.
    let dir = out.join(vmms::guid(bed.vm)).join(vmms::guid(second));
    std::fs::remove_file(dir.join("manifest.json")).unwrap();
    let disks = dir.join("Virtual Hard Disks");
    let image = std::fs::read_dir(&disks).unwrap().next().unwrap().unwrap();
    let partial = PathBuf::from(format!("{}.partial", image.path().display()));
    std::fs::rename(image.path(), partial).unwrap();
    std::fs::write(disks.join("notes.txt"), "mine").unwrap();
    found_and_cleaned(&bench, FindingKind::Export, &dir.display().to_string()).await;
    let left = files(&out);
    assert!(left.iter().any(|f| f.ends_with("notes.txt")));
    assert!(left.len() < whole.len(), "{left:?}");
    for file in &left {
        assert!(
            whole.contains(file) || file.ends_with("notes.txt"),
            "{file}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_and_sockets_nobody_knows_are_found_and_cleaned() {
    let bench = Bench::new().await;
    let bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    let run = bench.path("run");
    let dir = run.join("0123456789abcdef");
    std::fs::create_dir_all(&dir).unwrap();
    let run_files = RunFiles::new(&dir);
    // Names its pid file on its command line, as QEMU does, and never ends by itself.
    let args = [
        "-f".into(),
        "/dev/null".into(),
        run_files.pid().into_os_string(),
    ];
    let process = Process::spawn(Path::new("/usr/bin/tail"), &args, &run_files).unwrap();
    let findings = found(&bench).await;
    assert_eq!(
        kinds(&findings),
        [(FindingKind::Process, false)],
        "another service may have started it"
    );
    std::fs::write(dir.join("owner"), bench.vmms.identity.to_string()).unwrap();
    let findings = found(&bench).await;
    assert_eq!(kinds(&findings), [(FindingKind::Process, true)]);
    assert!(findings[0].subject.contains(&process.pid().to_string()));
    clean(&bench, &[FindingKind::Process]).await;
    assert_eq!(process.exited().await.signal, Some(9));

    // What it left is found now.
    drop(UnixListener::bind(run_files.qmp()).unwrap());
    found_and_cleaned(&bench, FindingKind::Socket, "0123456789abcdef").await;
    assert!(!dir.exists());

    // A machine whose process was killed keeps its log; its sockets lead nowhere.
    let machine = bench.vmms.machine(bed.vm).unwrap();
    let pid = machine.pid().to_string();
    assert!(
        Command::new("kill")
            .args(["-9", &pid])
            .status()
            .unwrap()
            .success()
    );
    bed.wait_off().await;
    let dir = spec::run_dir(&bench.vmms.dirs, bed.vm);
    let shown = dir.display().to_string();
    found_and_cleaned(&bench, FindingKind::Socket, &shown).await;
    assert!(dir.join("qemu.log").exists());
    bed.state(StateChange::Start).await;
    assert_eq!(found(&bench).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_lag_behind_are_found_and_put_right() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let held = bed.point(PointType::Rct).await;
    let log = bed.point(PointType::Log).await;

    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let over = Hold {
        until: long_ago,
        bytes: u64::MAX,
    };
    bed.set_hold(held, Some(over)).await;
    found_and_cleaned(&bench, FindingKind::Hold, &vmms::guid(held)).await;
    assert!(bench.vmms.db.get::<Point>(held).unwrap().hold.is_none());

    let change = |draft: &mut vmms::db::Draft<'_>| {
        draft.get_mut::<Point>(held)?.complete = false;
        Ok(())
    };
    bench.vmms.db.change(change).await.unwrap();
    found_and_cleaned(&bench, FindingKind::Unfinished, &vmms::guid(held)).await;
    assert!(bench.vmms.db.get::<Point>(held).is_err());

    // A point of a machine that does not exist.
    let mut lost = (*bench.vmms.db.get::<Point>(log).unwrap()).clone();
    (lost.id, lost.vm) = (Uuid::new_v4(), Uuid::new_v4());
    let id = lost.id;
    let change = move |draft: &mut vmms::db::Draft<'_>| {
        draft.put(lost);
        Ok(())
    };
    bench.vmms.db.change(change).await.unwrap();
    found_and_cleaned(&bench, FindingKind::Record, &vmms::guid(id)).await;

    // A job whose end could not be stored: its record says that it runs.
    let ended = bench
        .vmms
        .jobs()
        .into_iter()
        .find(|j| j.title.starts_with("Cleaning"));
    let job = ended.unwrap().id;
    let change = |draft: &mut vmms::db::Draft<'_>| {
        let job = draft.get_mut::<Job>(job)?;
        job.state = JobState::Running;
        Ok(())
    };
    bench.vmms.db.change(change).await.unwrap();
    let findings = found(&bench).await;
    assert_eq!(
        kinds(&findings),
        [(FindingKind::Job, true)],
        "{findings:#?}"
    );
    clean(&bench, &[FindingKind::Job]).await;
    bench.done(job).await;
    assert_eq!(found(&bench).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_whose_files_are_gone_are_told_and_left_to_people() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    bed.point(PointType::Log).await;
    bed.write("a.qcow2", 2, 0, MIB);
    let point = bed.point(PointType::Log).await;
    let record = bench.vmms.db.get::<Point>(point).unwrap();
    let disk = bed.disk("a.qcow2");
    let node = record
        .disks
        .iter()
        .find(|d| d.uid == disk.uid)
        .unwrap()
        .node;
    let layer = disk.layers.nodes[&node].file.clone().unwrap().path;
    let map = disk.layers.nodes[&node].map.clone().unwrap();

    // A map can be read again from its layer, so it is no loss.
    std::fs::rename(&map, bench.path("map")).unwrap();
    assert_eq!(found(&bench).await, []);
    std::fs::rename(bench.path("map"), &map).unwrap();
    // A layer cannot.
    std::fs::rename(&layer, bench.path("layer")).unwrap();
    let findings = found(&bench).await;
    assert_eq!(
        kinds(&findings),
        [(FindingKind::Record, false), (FindingKind::Record, false)],
        "the point and the machine that is read through it: {findings:#?}"
    );
    assert!(
        findings
            .iter()
            .all(|f| f.why.contains(&layer.display().to_string()))
    );
    assert!(clean(&bench, &[]).await.output.report.is_empty());
    std::fs::rename(bench.path("layer"), &layer).unwrap();
    std::fs::rename(&record.config, bench.path("config")).unwrap();
    let findings = found(&bench).await;
    assert_eq!(kinds(&findings), [(FindingKind::Record, false)]);
    assert!(findings[0].why.contains("configuration"));
    std::fs::rename(bench.path("config"), &record.config).unwrap();
    assert_eq!(found(&bench).await, []);
}
