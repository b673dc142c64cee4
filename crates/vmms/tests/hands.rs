//! What a person could lose by hand.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::{ImageFormat, NewImage};
use support::{Bed, Bench, MIB, options};
use uuid::Uuid;
use vmms::check::{Finding, FindingKind, check_host, clean_host};
use vmms::machine::adopt::{Adopt, adopt_layers};
use vmms::machine::device::{self, NewDevice};
use vmms::machine::losses::{destroy_with_losses, losses};
use vmms::machine::{Asked, DeviceKind, Vm};
use vmms::owner::Owner;
use vmms::point::{Point, PointType};
use vmms::{Message, Options};

const ONE: [(&str, ImageFormat, u64); 1] = [("a.qcow2", ImageFormat::Qcow2, MIB)];

#[tokio::test(flavor = "multi_thread")]
async fn points_without_a_name_get_names_that_nothing_else_has() {
    let bench = Bench::new().await;
    let bed = bench.machine(&ONE).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let asked = Asked::default();
        let made = vmms::point::create_point(&bench.vmms, bed.vm, PointType::Rct, None, "", &asked);
        jobs.push(made.await.unwrap().1);
    }
    for job in jobs {
        bench.done(job).await;
    }
    let names: std::collections::BTreeSet<String> = bench
        .vmms
        .db
        .all::<Point>()
        .iter()
        .map(|p| p.name.clone())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.iter().all(|n| n != "bed"));
}

async fn clean(bench: &Bench) -> Vec<String> {
    let job = clean_host(&bench.vmms, &[], &Asked::default())
        .await
        .unwrap();
    bench.done(job).await.output.report
}

/// A layer on the image that no record names; of this state directory, another one, or nobody.
async fn orphan(bench: &Bench, image: &str, state: Option<Uuid>) -> PathBuf {
    let path = bench.path(&format!("images/{image}.kvmms-{}.qcow2", Uuid::new_v4()));
    let owner = state.map(|state| Owner {
        state,
        vm: Uuid::new_v4(),
        disk: Uuid::new_v4(),
        layer: Uuid::new_v4(),
    });
    let new = NewImage {
        owner: owner.map(|o| o.to_string()),
        ..NewImage::overlay(&path, image, ImageFormat::Qcow2, MIB)
    };
    bench.vmms.images.create(&new).await.unwrap();
    path
}

fn of<'a>(findings: &'a [Finding], path: &Path) -> &'a Finding {
    let shown = path.display().to_string();
    findings.iter().find(|f| f.subject == shown).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cleaning_sets_aside_what_can_be_taken_back_until_its_time_is_over() {
    let bench = Bench::with(Options {
        quarantine: Duration::from_secs(3600),
        ..options()
    })
    .await;
    let _bed = bench.machine(&ONE).await;
    let mine = orphan(&bench, "a.qcow2", Some(bench.vmms.identity)).await;
    let bytes = std::fs::read(&mine).unwrap();
    assert_eq!(clean(&bench).await.len(), 1);
    assert!(!mine.exists());
    let findings = check_host(&bench.vmms).await.unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    let aside = &findings[0];
    assert_eq!((aside.kind, aside.safe), (FindingKind::Quarantine, false));
    // What it says to do brings it back.
    let (_, command) = aside.action.split_once("mv '").unwrap();
    let (from, rest) = command.split_once("' '").unwrap();
    assert_eq!(rest.trim_end_matches('\''), mine.display().to_string());
    assert!(
        clean(&bench).await.is_empty(),
        "cleaning again deletes nothing"
    );
    bench.vmms.tick().await;
    assert_eq!(std::fs::read(from).unwrap(), bytes);
    std::fs::rename(from, &mine).unwrap();
    assert!(mine.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_goes_when_its_time_is_over_and_nothing_else_does() {
    let bench = Bench::with(Options {
        quarantine: Duration::ZERO,
        ..options()
    })
    .await;
    let _bed = bench.machine(&ONE).await;
    orphan(&bench, "a.qcow2", Some(bench.vmms.identity)).await;
    assert_eq!(clean(&bench).await.len(), 1);
    let outer = bench.path("images/.kvmms-quarantine");
    let mine = std::fs::read_dir(&outer)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::write(mine.join("thesis.odt"), "years of work").unwrap();
    bench.vmms.tick().await;
    assert_eq!(support::files(&outer).len(), 1, "only what is not ours");
    assert!(check_host(&bench.vmms).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_another_state_directory_or_of_nobody_are_told_and_never_cleaned() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    bed.write("a.qcow2", 1, 0, 1000);
    bed.point(PointType::Log).await;
    let theirs = orphan(&bench, "a.qcow2", Some(Uuid::new_v4())).await;
    let nobodys = orphan(&bench, "a.qcow2", None).await;
    let mine = orphan(&bench, "a.qcow2", Some(bench.vmms.identity)).await;
    let findings = check_host(&bench.vmms).await.unwrap();
    let safe = [&theirs, &nobodys, &mine].map(|p| of(&findings, p).safe);
    assert_eq!(safe, [false, false, true]);
    assert!(
        of(&findings, &theirs)
            .why
            .contains("another state directory")
    );
    assert_eq!(clean(&bench).await.len(), 1);
    assert!(theirs.exists() && nobodys.exists() && !mine.exists());
    // What points, snapshots and running guests make names its owner.
    let layer = bed.disk("a.qcow2").layers.active_chain().pop().unwrap();
    let header = disk::Qcow2Layer::open(&layer.path).unwrap();
    let owner = Owner::of(&header).unwrap();
    assert_eq!(
        (owner.state, owner.vm, owner.layer),
        (bench.vmms.identity, bed.vm, layer.layer)
    );
    bed.assert_present().await;
}

/// The machine loses its record; its files stay. Answers what was on its disk.
async fn abandoned(bed: &mut Bed<'_>) -> Vec<u8> {
    bed.write("a.qcow2", 1, 0, 5000);
    bed.point(PointType::Log).await;
    bed.write("a.qcow2", 2, 70_000, 5000);
    bed.point(PointType::Rct).await;
    bed.write("a.qcow2", 3, 140_000, 5000);
    let vm = bed.vm;
    let db = &bed.bench.vmms.db;
    db.change(|draft| {
        for point in draft.all::<Point>() {
            draft.delete::<Point>(point.id);
        }
        draft.delete::<Vm>(vm);
        Ok(())
    })
    .await
    .unwrap();
    bed.disks["a.qcow2"].clone()
}

async fn drive(bench: &Bench, vm: Uuid) -> String {
    let controller = device::add(&bench.vmms, vm, NewDevice::ScsiController, None)
        .await
        .unwrap();
    let new = NewDevice::DiskDrive {
        controller,
        slot: None,
    };
    device::add(&bench.vmms, vm, new, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_layers_that_no_record_names_is_refused_and_taken_over_with_them() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    let expected = abandoned(&mut bed).await;
    let image = bench.path("images/a.qcow2");
    let other = bench.machine(&[]).await;
    let drive = drive(&bench, other.vm).await;
    for read_only in [false, true] {
        let new = NewDevice::Disk {
            drive: drive.clone(),
            path: image.clone(),
            read_only,
        };
        let refused = device::add(&bench.vmms, other.vm, new, None)
            .await
            .unwrap_err();
        assert_eq!(refused.message, Message::NewerLayers, "{}", refused.text());
    }
    let wanted = Adopt {
        drive: Some(drive),
        image: image.clone(),
        ..Adopt::default()
    };
    // In somebody's hands, of somebody else, on two lines, damaged: refused, and nothing has changed.
    let layers: Vec<PathBuf> = support::files(&bench.path("images"))
        .iter()
        .filter(|f| f.contains(".kvmms-"))
        .map(|f| bench.path("images").join(f))
        .collect();
    assert_eq!(layers.len(), 2);
    let refuse = async |wanted: &Adopt, why: &str| {
        let refused = adopt_layers(&bench.vmms, other.vm, wanted.clone())
            .await
            .unwrap_err();
        assert_eq!(
            refused.message,
            Message::LayersNotAdoptable,
            "{}",
            refused.text()
        );
        assert!(refused.text().contains(why), "{}", refused.text());
    };
    let user = std::fs::File::open(&layers[0]).unwrap();
    refuse(&wanted, "open").await;
    drop(user);
    let theirs = orphan(&bench, "a.qcow2", Some(Uuid::new_v4())).await;
    refuse(&wanted, "several lines").await;
    let named = Adopt {
        top: Some(theirs.clone()),
        ..wanted.clone()
    };
    refuse(&named, "another one").await;
    std::fs::remove_file(theirs).unwrap();

    let adopted = adopt_layers(&bench.vmms, other.vm, wanted.clone())
        .await
        .unwrap();
    assert_eq!(adopted.layers.len(), 2);
    let record = bench.vmms.db.get::<Vm>(other.vm).unwrap();
    let Some(DeviceKind::Disk(disk)) = record.device(&adopted.device).map(|d| &d.kind) else {
        panic!("a disk");
    };
    for layer in &adopted.layers {
        let owner = Owner::of(&disk::Qcow2Layer::open(layer).unwrap()).unwrap();
        assert_eq!((owner.vm, owner.disk), (other.vm, disk.uid));
    }
    let top = adopted.layers.last().unwrap();
    assert_eq!(bench.contents(top, ImageFormat::Qcow2).await, expected);
    // Nobody needs its layers: they become one image again.
    other.sweep().await;
    assert_eq!(bench.contents(&image, ImageFormat::Qcow2).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_older_than_its_layers_is_brought_up_to_them() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&ONE).await;
    let before = bench.vmms.db.get::<Vm>(bed.vm).unwrap();
    bed.write("a.qcow2", 1, 0, 5000);
    bed.point(PointType::Log).await;
    bed.write("a.qcow2", 2, 70_000, 5000);
    bench
        .vmms
        .db
        .change(|draft| {
            for point in draft.all::<Point>() {
                draft.delete::<Point>(point.id);
            }
            draft.put((*before).clone());
            Ok(())
        })
        .await
        .unwrap();
    let wanted = Adopt {
        image: bench.path("images/a.qcow2"),
        ..Adopt::default()
    };
    let adopted = adopt_layers(&bench.vmms, bed.vm, wanted).await.unwrap();
    assert_eq!(adopted.layers.len(), 1);
    bed.assert_present().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_layer_is_missing_goes_by_force_and_only_that_is_lost() {
    let bench = Bench::new().await;
    let two = [ONE[0], ("b.img", ImageFormat::Raw, MIB)];
    let mut bed = bench.machine(&two).await;
    for n in 1..=3 {
        bed.write("a.qcow2", n, u64::from(n) * 70_000, 5000);
        bed.write("b.img", n, u64::from(n) * 70_000, 5000);
        bed.point(PointType::Log).await;
    }
    let expected = bed.disks["b.img"].clone();
    assert!(losses(&bench.vmms, bed.vm).unwrap().is_empty());
    let chain = bed.disk("a.qcow2").layers.active_chain();
    std::fs::remove_file(&chain[2].path).unwrap();
    let kept: Vec<(PathBuf, Vec<u8>)> = [0, 1, 3]
        .iter()
        .map(|n| {
            (
                chain[*n].path.clone(),
                std::fs::read(&chain[*n].path).unwrap(),
            )
        })
        .collect();

    let refused = vmms::machine::destroy(&bench.vmms, bed.vm, &Asked::default()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.message, Message::LayerMissing);
    assert!(
        refused.text().contains("images/a.qcow2"),
        "{}",
        refused.text()
    );
    assert_eq!(bench.vmms.db.all::<Point>().len(), 3, "nothing went");
    let said = losses(&bench.vmms, bed.vm).unwrap();
    assert!(
        said[0].contains(&chain[2].path.display().to_string()),
        "{said:?}"
    );
    assert!(
        bench.vmms.db.get::<Vm>(bed.vm).is_ok(),
        "saying it loses nothing"
    );

    let (lost, job) = destroy_with_losses(&bench.vmms, bed.vm, &Asked::default())
        .await
        .unwrap();
    assert_eq!(lost[0], said[0]);
    bench.done(job).await;
    assert!(bench.vmms.db.get::<Vm>(bed.vm).is_err());
    for (path, bytes) in kept {
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{}", path.display());
    }
    let whole = bench
        .contents(&bench.path("images/b.img"), ImageFormat::Raw)
        .await;
    assert_eq!(whole, expected, "the other disk is whole and plain");
    // What is whole can be taken over.
    let other = bench.machine(&[]).await;
    let wanted = Adopt {
        drive: Some(drive(&bench, other.vm).await),
        image: chain[0].path.clone(),
        ..Adopt::default()
    };
    let adopted = adopt_layers(&bench.vmms, other.vm, wanted).await.unwrap();
    assert_eq!(adopted.layers, [chain[1].path.clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remedy_for_a_chain_that_is_too_long_makes_room() {
    for (kind, newest) in [
        (PointType::Log, true),
        (PointType::Log, false),
        (PointType::Rct, true),
        (PointType::Rct, false),
    ] {
        let bench = Bench::with(Options {
            max_layers: 5,
            ..options()
        })
        .await;
        let mut bed = bench.machine(&ONE).await;
        let mut points = Vec::new();
        for n in 1..=4 {
            bed.write("a.qcow2", n, u64::from(n) * 70_000, 5000);
            points.push(bed.point(kind).await);
        }
        let asked = Asked::default();
        let full = vmms::point::create_point(&bench.vmms, bed.vm, kind, None, "", &asked).await;
        assert_eq!(full.unwrap_err().message, Message::ChainTooLong);
        let gone = if newest { points[3] } else { points[0] };
        let job = vmms::point::remove_data(&bench.vmms, gone, &asked)
            .await
            .unwrap();
        bench.done(job).await;
        for n in 5..=6 {
            bed.write("a.qcow2", n, u64::from(n) * 70_000, 5000);
            let made = vmms::point::create_point(&bench.vmms, bed.vm, kind, None, "", &asked).await;
            let Ok((point, job)) = made else {
                assert_eq!(n, 6, "there was room for one: {kind:?}, newest {newest}");
                continue;
            };
            bench.done(job).await;
            let job = vmms::point::remove_data(&bench.vmms, point, &asked)
                .await
                .unwrap();
            bench.done(job).await;
        }
        assert!(bed.disk("a.qcow2").layers.active_chain().len() <= 6);
        bed.assert_present().await;
    }
}
