//! Machines that do not run move between two services: what moves, what is refused, and what a link that breaks leaves.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hypervisor::ImageFormat;
use support::hosts::{Hosts, Way, hasty, trust};
use support::{Bed, Bench, KIB, MIB, assert_same, files, options};
use uuid::Uuid;
use vmms::job::{Job, JobState};
use vmms::machine::{StateChange, Vm};
use vmms::migration::{self, MigrationKind, Phase};
use vmms::point::{Point, PointType};
use vmms::{Element, Message};

const DISKS: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, 8 * MIB + 512),
    ("b.img", ImageFormat::Raw, 2 * MIB),
];

type Copies = BTreeMap<Uuid, BTreeMap<String, Vec<u8>>>;

/// A machine with a chain of points, and what its disks held at each.
async fn chain(bed: &mut Bed<'_>) -> (Vec<Uuid>, Copies) {
    let (mut points, mut copies) = (Vec::new(), Copies::new());
    for (byte, kind) in [
        (1, PointType::Log),
        (2, PointType::Rct),
        (3, PointType::Log),
    ] {
        bed.write("a.qcow2", byte, u64::from(byte) * 700 * KIB, 900 * KIB);
        bed.write("b.img", byte, u64::from(byte) * 100 * KIB + 512, 4 * KIB);
        let point = bed.point(kind).await;
        copies.insert(point, bed.disks.clone());
        points.push(point);
    }
    bed.write("a.qcow2", 9, 100, 5 * KIB);
    (points, copies)
}

fn there<'a>(bench: &'a Bench, vm: Uuid, disks: &BTreeMap<String, Vec<u8>>) -> Bed<'a> {
    Bed {
        bench,
        vm,
        disks: disks.clone(),
    }
}

fn texts(job: &Job) -> Vec<String> {
    let chain = job.faults.iter().flat_map(|f| f.chain());
    chain
        .map(|f| format!("{}: {}", f.message.id(), f.text()))
        .collect()
}

fn assert_moved(job: &Job) {
    assert_eq!(job.state, JobState::Completed, "{:#?}", texts(job));
    assert_eq!(job.output.migration.as_ref().unwrap().phase, Phase::Done);
}

/// Nothing of a machine is left.
fn assert_gone(bench: &Bench) {
    assert!(bench.vmms.db.all::<Vm>().is_empty());
    assert!(bench.vmms.db.all::<Point>().is_empty());
    assert!(migration::permits(&bench.vmms).is_empty());
    for dir in ["images", "state/maps", "state/points", "state/vm"] {
        assert!(
            files(&bench.path(dir)).is_empty(),
            "{dir}: {:?}",
            files(&bench.path(dir))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_machine_moves_with_its_points_and_differences_across_the_move_are_exact() {
    let hosts = Hosts::new(options()).await;
    let (vm, points, copies, now) = {
        let mut bed = hosts.here.machine(&DISKS).await;
        let (points, copies) = chain(&mut bed).await;
        bed.export(points[0], None, "one").await;
        (bed.vm, points, copies, bed.disks.clone())
    };
    let before = hosts.here.vmms.db.get::<Vm>(vm).unwrap();
    assert_moved(&hosts.go(hosts.request(vm)).await);
    assert_gone(&hosts.here);
    let after = hosts.there.vmms.db.get::<Vm>(vm).unwrap();
    assert_eq!(
        (&after.name, &after.devices.len()),
        (&before.name, &before.devices.len())
    );
    let mut bed = there(&hosts.there, vm, &now);
    bed.assert_present().await;
    // What was frozen there is exported here, whole and as a difference to what was exported there.
    let part = bed.export(points[2], Some(points[0]), "two").await;
    let base = hosts.here.path("one");
    assert!(part.output.report.is_empty(), "{:?}", part.output.report);
    assert_laid_over(&bed, &part, &base, &copies[&points[2]]).await;
    let whole = bed.export(points[2], None, "three").await;
    bed.assert_exported(&whole, &copies[&points[2]]).await;
    // It runs, and goes on being tracked.
    bed.state(StateChange::Start).await;
    bed.state(StateChange::Stop).await;
    bed.write("a.qcow2", 17, 3 * MIB, 70 * KIB);
    let new = bed.point(PointType::Log).await;
    let copy = bed.disks.clone();
    bed.write("b.img", 18, 0, KIB);
    let now = bed.disks.clone();
    // And back.
    let hosts = hosts.turned();
    let mut request = hosts.request(vm);
    request.destination = "here".to_owned();
    assert_moved(&hosts.go(request).await);
    assert_gone(&hosts.here);
    let bed = there(&hosts.there, vm, &now);
    bed.assert_present().await;
    let part = bed.export(new, Some(points[2]), "four").await;
    bed.assert_exported(&part, &copy).await;
    // Nothing is left over that nobody knows.
    for point in hosts.there.vmms.db.all::<Point>() {
        bed.destroy(point.id).await;
    }
    bed.sweep().await;
    assert_eq!(files(&hosts.there.path("images")), ["a.qcow2", "b.img"]);
    bed.assert_present().await;
}

/// Exported differences lie on the export beside them.
async fn assert_laid_over(
    bed: &Bed<'_>,
    job: &Job,
    base: &std::path::Path,
    expected: &BTreeMap<String, Vec<u8>>,
) {
    assert!(base.is_dir());
    for disk in &job.output.disks {
        let name = bed.name_of(&disk.device);
        let found = bed.bench.contents(&disk.file, ImageFormat::Qcow2).await;
        assert_same(&found, &expected[&name], &name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_machine_moves_with_its_memory_and_wakes_up_there() {
    let hosts = Hosts::new(options()).await;
    let vm = {
        let bed = hosts.here.machine(&DISKS).await;
        bed.state(StateChange::Start).await;
        bed.state(StateChange::Save).await;
        bed.vm
    };
    assert_moved(&hosts.go(hosts.request(vm)).await);
    assert_gone(&hosts.here);
    let bed = hosts.there.bed();
    let saved = bed.record().saved_state.clone().unwrap();
    assert!(saved.starts_with(hosts.there.path("state")) && saved.exists());
    bed.state(StateChange::Start).await;
    bed.state(StateChange::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_broke_off_does_not_send_again_what_arrived() {
    let hosts = Hosts::new(hasty()).await;
    let (vm, now) = {
        let mut bed = hosts.here.machine(&DISKS).await;
        chain(&mut bed).await;
        (bed.vm, bed.disks.clone())
    };
    let (here, target) = (&hosts.here.vmms, &hosts.there.vmms);
    let port = migration::listening(target)[0].port();
    let way = Way::to(port, 3 * 1024 * 1024).await;
    trust(here, "there", target, Some(way.port)).await;
    let failed = hosts.go(hosts.request(vm)).await;
    assert_eq!(failed.state, JobState::Exception);
    assert!(
        failed.faults[0].has(Message::LinkBroke),
        "{:#?}",
        texts(&failed)
    );
    let bed = there(&hosts.here, vm, &now);
    bed.assert_present().await;
    assert!(migration::permits(here).is_empty());
    // The destination finds out, keeps what came, and has no machine.
    way.left.store(i64::MAX, Ordering::SeqCst);
    trust(here, "there", target, Some(port)).await;
    end_coming(&hosts.there).await;
    let second = hosts.go(hosts.request(vm)).await;
    assert_moved(&second);
    let progress = second.output.migration.unwrap();
    assert!(progress.file_skipped > MIB, "{progress:?}");
    assert!(progress.file_bytes < progress.file_total, "{progress:?}");
    there(&hosts.there, vm, &now).assert_present().await;
    assert_gone(&hosts.here);
    assert!(
        files(&hosts.there.path("images"))
            .iter()
            .all(|f| !f.ends_with("moving"))
    );
}

/// The destination notices that its source is silent.
async fn end_coming(bench: &Bench) {
    for arrival in migration::arrivals(&bench.vmms) {
        bench.vmms.wait(arrival.job.unwrap()).await.unwrap();
    }
    assert!(bench.vmms.db.all::<Vm>().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_a_broken_move_goes_when_its_time_is_over() {
    let mut short = hasty();
    short.patience.kept = std::time::Duration::ZERO;
    let hosts = Hosts::new(short).await;
    let vm = {
        let mut bed = hosts.here.machine(&DISKS).await;
        chain(&mut bed).await;
        bed.vm
    };
    let (here, target) = (&hosts.here.vmms, &hosts.there.vmms);
    let way = Way::to(migration::listening(target)[0].port(), 3 * 1024 * 1024).await;
    trust(here, "there", target, Some(way.port)).await;
    assert_eq!(hosts.go(hosts.request(vm)).await.state, JobState::Exception);
    end_coming(&hosts.there).await;
    assert!(!files(&hosts.there.path("images")).is_empty());
    target.tick().await;
    assert_gone(&hosts.there);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_a_failed_job_that_says_which_host_said_what() {
    let hosts = Hosts::new(hasty()).await;
    let bed = hosts.here.machine(&DISKS).await;
    let vm = bed.vm;
    let (here, target) = (&hosts.here.vmms, &hosts.there.vmms);
    let refused = async |request, message: Message| {
        let job = hosts.go(request).await;
        assert_eq!(job.state, JobState::Exception);
        let found = job.faults.iter().any(|f| f.has(message));
        assert!(found, "{message:?}: {:#?}", texts(&job));
        assert!(job.faults[0].has(Message::MoveFailed));
        job
    };
    let request = || hosts.request(vm);
    // The host.
    let mut unknown = request();
    unknown.destination = "nowhere".to_owned();
    refused(unknown, Message::HostUnknown).await;
    migration::forget(target, "here").await.unwrap();
    refused(request(), Message::HostDistrusts).await;
    trust(target, "here", here, None).await;
    trust(
        here,
        "stranger",
        here,
        Some(migration::listening(target)[0].port()),
    )
    .await;
    let mut stranger = request();
    stranger.destination = "stranger".to_owned();
    refused(stranger, Message::HostChanged).await;
    let mut unreachable = request();
    unreachable.options.addresses = vec!["127.0.0.1:1".to_owned()];
    refused(unreachable, Message::HostUnreachable).await;
    // What it says.
    std::fs::write(hosts.there.path("images/b.img"), "somebody's").unwrap();
    let job = refused(request(), Message::PlaceTaken).await;
    let said = job.faults[0].chain().into_iter();
    let said: Vec<_> = said
        .skip_while(|f| f.message != Message::PeerSaid)
        .collect();
    assert!(said.len() > 2);
    assert_eq!(said[0].element, Some(Element::Peer("there".to_owned())));
    for fault in &said[1..] {
        assert_eq!(fault.host.as_deref(), Some("there"));
    }
    assert_eq!(
        std::fs::read(hosts.there.path("images/b.img")).unwrap(),
        b"somebody's"
    );
    std::fs::remove_file(hosts.there.path("images/b.img")).unwrap();
    let mut outside = request();
    outside.options.disk_root = Some("/etc/images".into());
    refused(outside, Message::OutsideRoots).await;
    let off = target.set_migration_service(|service| {
        service.enabled = false;
        Ok(())
    });
    off.await.unwrap();
    refused(request(), Message::MovesDisabled).await;
    // What is not served.
    for kind in [
        MigrationKind::Live,
        MigrationKind::Storage,
        MigrationKind::Staged,
    ] {
        let mut other = request();
        other.kind = kind;
        refused(other, Message::MoveNotServed).await;
    }
    let mut smb = request();
    smb.options.smb = true;
    refused(smb, Message::MoveNotServed).await;
    // Nothing has changed, here or there.
    assert!(migration::permits(here).is_empty());
    assert!(target.db.all::<Vm>().is_empty());
    bed.assert_present().await;
    bed.state(StateChange::Start).await;
    bed.state(StateChange::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_what_would_move_and_changes_nothing() {
    let hosts = Hosts::new(hasty()).await;
    let mut bed = hosts.here.machine(&DISKS).await;
    chain(&mut bed).await;
    let (here, target) = (&hosts.here.vmms, &hosts.there.vmms);
    let report = migration::plan(here, &hosts.request(bed.vm)).await.unwrap();
    assert_eq!((report.points, report.memory_bytes), (3, 0));
    assert!(
        report.files >= 8 && report.missing_bytes == report.file_bytes,
        "{report:?}"
    );
    migration::forget(target, "here").await.unwrap();
    let asked = vmms::machine::Asked::default();
    let job = migration::check(here, hosts.request(bed.vm), &asked)
        .await
        .unwrap();
    let job = here.wait(job).await.unwrap();
    assert!(
        job.faults[0].has(Message::HostDistrusts),
        "{:#?}",
        texts(&job)
    );
    assert!(migration::arrivals(target).is_empty() && migration::permits(here).is_empty());
}
