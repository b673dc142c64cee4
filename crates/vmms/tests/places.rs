//! Configured roots: every way in which a client names an image or an export.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic")]

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hypervisor::{ImageFormat, NewImage};
use support::{Bed, Bench, MIB, files, options};
use uuid::Uuid;
use vmms::boot::{Wanted, boot_exports};
use vmms::image::ImageSpec;
use vmms::machine::device::{self, NewDevice};
use vmms::machine::{Asked, DeviceKind, Vm};
use vmms::point::PointType;
use vmms::{Message, Options, Places, Result};

/// A service with roots for images and imports, and a second one without that makes what lies outside.
async fn bench(root: &Path) -> Bench {
    let below = |name: &str| {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        vec![dir]
    };
    let places = Places {
        images: below("images"),
        imports: below("incoming"),
        exports: below("backup"),
        ..Places::default()
    };
    Bench::with(Options {
        places,
        ..options()
    })
    .await
}

fn outside<T>(result: Result<T>, what: &str) {
    let Err(fault) = result else {
        panic!("{what} was done");
    };
    assert!(fault.has(Message::OutsideRoots), "{what}: {fault}");
}

fn spec(path: PathBuf) -> ImageSpec {
    ImageSpec {
        path,
        format: ImageFormat::Qcow2,
        fixed: false,
        size: Some(8 * MIB),
        parent: None,
    }
}

async fn drive(bed: &Bed<'_>, dvd: bool) -> String {
    let record = bed.record();
    let scsi = record.devices.iter().find_map(|d| match d.kind {
        DeviceKind::ScsiController { .. } => Some(d.id.clone()),
        _ => None,
    });
    let (controller, slot) = (scsi.unwrap(), None);
    let new = match dvd {
        true => NewDevice::DvdDrive { controller, slot },
        false => NewDevice::DiskDrive { controller, slot },
    };
    device::add(&bed.bench.vmms, bed.vm, new, None)
        .await
        .unwrap()
}

async fn attach(bed: &Bed<'_>, path: &Path) -> Result<String> {
    let new = NewDevice::Disk {
        drive: drive(bed, false).await,
        path: path.to_owned(),
        read_only: false,
    };
    device::add(&bed.bench.vmms, bed.vm, new, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_made_read_and_attached_below_their_roots_only() {
    let root = tempfile::tempdir().unwrap();
    let bench = bench(root.path()).await;
    let vmms = &bench.vmms;
    let bed = bench.machine(&[]).await;
    let elsewhere = bench.path("images");
    let image = NewImage::new(elsewhere.join("a.qcow2"), ImageFormat::Qcow2, 8 * MIB);
    vmms.images.create(&image).await.unwrap();
    let there = elsewhere.join("a.qcow2");
    let link = root.path().join("images/link");
    symlink(&elsewhere, &link).unwrap();
    let before = files(&elsewhere);
    let asked = Asked::default();

    for path in [there.clone(), link.join("a.qcow2")] {
        outside(attach(&bed, &path).await, "attaching");
        outside(vmms::image::describe(vmms, &path).await, "describing");
        outside(vmms::image::validate(vmms, &path, &asked).await, "checking");
        let grown = vmms::image::resize(vmms, &path, 16 * MIB, &asked).await;
        outside(grown, "resizing");
        let target = spec(root.path().join("images/copy.qcow2"));
        let copied = vmms::image::convert(vmms, &path, target, &asked).await;
        outside(copied, "converting");
        let medium = NewDevice::Dvd {
            drive: drive(&bed, true).await,
            path,
        };
        let added = device::add(vmms, bed.vm, medium, None).await;
        outside(added, "inserting a medium");
    }
    for path in [elsewhere.join("new.qcow2"), link.join("new.qcow2")] {
        let made = vmms::image::create(vmms, spec(path), &asked).await;
        outside(made, "making");
    }
    assert_eq!(files(&elsewhere), before);

    let fine = root.path().join("images/fine.qcow2");
    let job = vmms::image::create(vmms, spec(fine.clone()), &asked).await;
    bench.done(job.unwrap()).await;
    let mut child = spec(elsewhere.join("child.qcow2"));
    child.parent = Some(fine.clone());
    outside(
        vmms::image::create(vmms, child, &asked).await,
        "making a differencing image",
    );
    attach(&bed, &fine).await.unwrap();
    assert!(vmms::image::describe(vmms, &fine).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_beneath_an_image_lies_below_the_roots_of_images_too() {
    let root = tempfile::tempdir().unwrap();
    let bench = bench(root.path()).await;
    let bed = bench.machine(&[]).await;
    let images = root.path().join("images");
    let elsewhere = root.path().join("elsewhere");
    symlink(&elsewhere, images.join("link")).unwrap();
    for dir in [images.join("other"), elsewhere.clone()] {
        std::fs::create_dir(&dir).unwrap();
        let base = NewImage::new(dir.join("base.qcow2"), ImageFormat::Qcow2, 8 * MIB);
        bench.vmms.images.create(&base).await.unwrap();
    }
    let outside = elsewhere.join("base.qcow2").display().to_string();
    let cases = [
        ("other/base.qcow2", true),
        ("link/base.qcow2", false),
        ("../elsewhere/base.qcow2", false),
        (outside.as_str(), false),
    ];
    for (number, (beneath, fine)) in cases.into_iter().enumerate() {
        let path = images.join(format!("{number}.qcow2"));
        let image = NewImage::overlay(&path, beneath, ImageFormat::Qcow2, 8 * MIB);
        bench.vmms.images.create(&image).await.unwrap();
        match attach(&bed, &path).await {
            Ok(_) => assert!(fine, "{beneath} was opened"),
            Err(refused) => {
                let told = !fine && refused.has(Message::BackingOutside);
                assert!(told, "{beneath}: {refused}");
            }
        }
    }
    assert_eq!(bed.record().disks().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_a_machine_has_already_stays_usable_when_roots_are_configured() {
    let bench = Bench::new().await;
    let bed = bench
        .machine(&[("disk.qcow2", ImageFormat::Qcow2, 8 * MIB)])
        .await;
    let (vm, path) = (bed.vm, bench.path("images/disk.qcow2"));
    let mut bench = bench;
    bench.options.places.images = vec!["/srv/nowhere".into()];
    bench.restart().await;
    let described = vmms::image::describe(&bench.vmms, &path).await.unwrap();
    assert_eq!(described.attached_to, Some(vm));
    let asked = Asked::default();
    let job = vmms::image::resize(&bench.vmms, &path, 16 * MIB, &asked).await;
    bench.done(job.unwrap()).await;
    let other = bench.path("images/other.qcow2");
    outside(
        vmms::image::create(&bench.vmms, spec(other), &asked).await,
        "making another",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_are_read_below_their_roots_only() {
    let root = tempfile::tempdir().unwrap();
    let maker = Bench::new().await;
    let bed = maker
        .machine(&[("disk.qcow2", ImageFormat::Qcow2, 8 * MIB)])
        .await;
    let point = bed.point(PointType::Log).await;
    bed.export(point, None, "out").await;
    let out = maker.path("out");

    let bench = bench(root.path()).await;
    let vmms = &bench.vmms;
    let link = root.path().join("incoming/link");
    symlink(&out, &link).unwrap();
    let asked = Asked::default();
    let to = root.path().join("images/restored");
    for from in [&out, &link] {
        let import = |at: Option<&'static str>| {
            let (from, to, asked) = (from.clone(), to.clone(), asked.clone());
            async move {
                match at {
                    None => {
                        vmms::import::import_export(vmms, &from, None, &to, false, &asked).await
                    }
                    Some(at) => {
                        let import = vmms::import::import_point;
                        import(vmms, &from, at, None, &to, false, &asked).await
                    }
                }
            }
        };
        outside(import(None).await, "importing");
        outside(import(Some("2026")).await, "importing a point");
        let collection = vmms::import_collection::import_collection;
        let collection = collection(vmms, from, None, None, &to, false, &asked).await;
        outside(collection, "importing a collection");
        let planned = vmms::import::import_planned(vmms, from, false, Some(&to), &asked).await;
        outside(planned, "importing a planned machine");
        let proven = vmms::verify::verify_export(vmms, from, &asked).await;
        outside(proven, "proving");
        let booted = boot_exports(vmms, from, None, Wanted::default(), &asked).await;
        outside(booted, "booting");
        let adopted = vmms::adopt::adopt_point(vmms, Uuid::new_v4(), from, &asked).await;
        outside(adopted, "taking a point over");
    }
    assert!(vmms.db.all::<Vm>().is_empty());

    // Where exports go they are read; disks go below the roots of images, also by a link.
    for place in ["incoming/fine", "backup/fine"] {
        let fine = root.path().join(place);
        let mut copy = std::process::Command::new("cp");
        assert!(
            copy.arg("-a")
                .args([&out, &fine])
                .status()
                .unwrap()
                .success()
        );
        let proven = vmms::verify::verify_export(vmms, &fine, &asked).await;
        bench.done(proven.unwrap()).await;
        let away = root.path().join("images/away");
        let _ = symlink(bench.path("state"), &away);
        for to in [bench.path("restored"), away.join("x")] {
            let import = vmms::import::import_export(vmms, &fine, None, &to, false, &asked).await;
            let (_, job) = import.unwrap();
            let job = vmms.wait(job).await.unwrap();
            let refused = job
                .faults
                .first()
                .is_some_and(|f| f.has(Message::OutsideRoots));
            assert!(refused, "{:?}", job.faults);
            assert!(!to.exists());
        }
        let to = root.path().join("images").join(place);
        let import = vmms::import::import_export(vmms, &fine, None, &to, false, &asked).await;
        bench.done(import.unwrap().1).await;
    }
    assert_eq!(vmms.db.all::<Vm>().len(), 2);
}
