//! Points, exports and merges on real files and a real QEMU, without a guest.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use hypervisor::ImageFormat;
use support::{Bench, KIB, MIB, files};
use vmms::machine::Asked;
use vmms::machine::StateChange;
use vmms::point::PointType;

const ODD: u64 = 4 * MIB + 512;
const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, ODD),
    ("b.img", ImageFormat::Raw, 3 * MIB),
];

async fn full_and_differential(running: bool) {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    bed.write("b.img", 2, 64 * KIB, 64 * KIB);
    if running {
        bed.state(StateChange::Start).await;
        bed.write("a.qcow2", 3, 2 * MIB, 4096);
    }
    let first = bed.point(PointType::Rct).await;
    let at_first = bed.disks.clone();
    bed.write("a.qcow2", 4, ODD - 512, 512);
    bed.write("b.img", 5, 70 * KIB, 1024);
    let second = bed.point(PointType::Rct).await;
    let at_second = bed.disks.clone();
    bed.write("a.qcow2", 6, 0, ODD);
    bed.write("b.img", 7, 0, 3 * MIB);

    let full = bed.export(first, None, "out").await;
    bed.assert_exported(&full, &at_first).await;
    let difference = bed.export(second, Some(first), "out").await;
    bed.assert_exported(&difference, &at_second).await;
    assert!(
        difference
            .output
            .report
            .iter()
            .all(|l| !l.contains("neighbour")),
        "{:?}",
        difference.output.report
    );
    bed.assert_present().await;

    // What was exported is let go; the disks stay as they are, and each is one frozen and one active file.
    bed.sweep().await;
    for name in ["a.qcow2", "b.img"] {
        assert_eq!(bed.disk(name).layers.active_chain().len(), 2, "{name}");
    }
    bed.assert_present().await;
    let asked = Asked::default();
    let dir = bench.path("out");
    let refused =
        vmms::export::export_point(&bench.vmms, first, None, &dir.join("more"), &[], &asked).await;
    assert_eq!(
        refused.unwrap_err().message,
        vmms::Message::NoAssociatedData
    );

    let machine_dir = dir.join(vmms::guid(bed.vm));
    let proof =
        vmms::verify::verify_export(&bench.vmms, &machine_dir.join(vmms::guid(second)), &asked)
            .await
            .unwrap();
    bench.done(proof).await;

    bed.destroy(first).await;
    bed.destroy(second).await;
    assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.img"]);
    if running {
        bed.write("a.qcow2", 8, 5000, 100);
        bed.state(StateChange::Stop).await;
    }
    bed.assert_present().await;
    assert!(files(&bench.path("state/maps")).is_empty());
    assert!(files(&bench.path("state/points")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_points_are_as_open_as_their_image_whether_the_machine_runs_or_not() {
    let bench = Bench::new().await;
    let bed = bench.machine(&TWO).await;
    let modes = [("a.qcow2", 0o640), ("b.img", 0o604)];
    let images = bench.path("images");
    for (name, mode) in modes {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(images.join(name), mode).unwrap();
        // Only root may give files away.
        chown(images.join(name), Some(4321), Some(4321)).ok();
    }
    for running in [false, true] {
        if running {
            bed.state(StateChange::Start).await;
        }
        bed.point(PointType::Log).await;
        for (name, mode) in modes {
            let base = std::fs::metadata(images.join(name)).unwrap();
            let chain = bed.disk(name).layers.active_chain();
            assert_eq!(chain.len(), 2 + usize::from(running), "{name}");
            for layer in chain {
                let found = std::fs::metadata(&layer.path).unwrap();
                assert_eq!(found.mode() & 0o7777, mode, "{}", layer.path.display());
                assert_eq!((found.uid(), found.gid()), (base.uid(), base.gid()));
            }
        }
    }
    bed.state(StateChange::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_machine_is_exported_in_full_and_in_part() {
    full_and_differential(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_exported_in_full_and_in_part() {
    full_and_differential(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_point_keeps_its_data_until_it_is_removed_while_the_guest_runs() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    let mut made = Vec::new();
    for n in 1..=4u8 {
        bed.write("a.qcow2", n, u64::from(n) * 100 * KIB, 200 * KIB);
        bed.write("b.img", n, u64::from(n) * 10 * KIB, 12 * KIB);
        made.push((bed.point(PointType::Log).await, bed.disks.clone()));
    }
    assert_eq!(bed.disk("a.qcow2").layers.active_chain().len(), 5);
    // The second and third lose their data: the layers in the middle merge under a running guest.
    for (point, _) in &made[1..3] {
        let job = vmms::point::remove_data(&bench.vmms, *point, &Asked::default())
            .await
            .unwrap();
        bench.done(job).await;
        let again = vmms::point::remove_data(&bench.vmms, *point, &Asked::default()).await;
        assert_eq!(again.unwrap_err().message, vmms::Message::NoAssociatedData);
    }
    assert_eq!(bed.disk("a.qcow2").layers.active_chain().len(), 3);
    let full = bed.export(made[0].0, None, "out").await;
    bed.assert_exported(&full, &made[0].1).await;
    // From the first to the last, over the two that are only bases now.
    let far = bed.export(made[3].0, Some(made[0].0), "out").await;
    bed.assert_exported(&far, &made[3].1).await;
    let again = bed.export(made[3].0, None, "other").await;
    bed.assert_exported(&again, &made[3].1).await;
    for (point, _) in &made {
        bed.destroy(*point).await;
    }
    bed.write("b.img", 9, MIB, 512);
    bed.state(StateChange::Stop).await;
    assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.img"]);
    bed.assert_present().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_loses_no_change() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    bed.write("a.qcow2", 1, 0, 2 * MIB);
    bed.write("b.img", 1, 0, 2 * MIB);
    let first = bed.point(PointType::Rct).await;
    let at_first = bed.disks.clone();
    bed.write("a.qcow2", 2, 300 * KIB, 100 * KIB);
    // Flushed as a guest would: what is not flushed may be lost in any power cut.
    bed.flush("a.qcow2");
    let machine = bench.vmms.machine(bed.vm).unwrap();
    machine.kill().await.unwrap();
    bed.wait_off().await;
    bed.assert_present().await;
    bed.state(StateChange::Start).await;
    bed.write("b.img", 3, 2 * MIB, 4096);
    let second = bed.point(PointType::Rct).await;
    let at_second = bed.disks.clone();
    let full = bed.export(first, None, "full").await;
    bed.assert_exported(&full, &at_first).await;
    let part = bed.export(second, Some(first), "part").await;
    bed.assert_exported(&part, &at_second).await;
    assert!(
        part.output.bytes_written < MIB,
        "no full in disguise: {}",
        part.output.bytes_written
    );
    bed.state(StateChange::Stop).await;
}

#[test]
fn a_point_survives_the_service_and_is_exported_by_the_next() {
    let life = support::runtime();
    let (mut bench, vm, disks, first) = life.block_on(async {
        let bench = Bench::new().await;
        let mut bed = bench.machine(&TWO).await;
        bed.state(StateChange::Start).await;
        bed.write("a.qcow2", 1, 0, MIB);
        let first = bed.point(PointType::Rct).await;
        let (vm, disks) = (bed.vm, bed.disks.clone());
        (bench, vm, disks, first)
    });
    life.shutdown_background();
    support::runtime().block_on(async {
        bench.restart().await;
        let mut bed = support::Bed {
            bench: &bench,
            vm,
            disks: disks.clone(),
        };
        bed.write("a.qcow2", 2, 0, MIB);
        let full = bed.export(first, None, "out").await;
        bed.assert_exported(&full, &disks).await;
        bed.sweep().await;
        bed.state(StateChange::Stop).await;
        bed.assert_present().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_machine_gives_points_and_goes_on() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    bed.write("a.qcow2", 1, 0, MIB);
    bed.state(StateChange::Save).await;
    let point = bed.point(PointType::Log).await;
    let copies = bed.disks.clone();
    bed.state(StateChange::Start).await;
    bed.write("a.qcow2", 2, 0, 2 * MIB);
    let full = bed.export(point, None, "out").await;
    bed.assert_exported(&full, &copies).await;
    bed.destroy(point).await;
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
    assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.img"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_makes_a_machine_with_the_disks_of_the_point() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    let first = bed.point(PointType::Log).await;
    bed.write("b.img", 2, MIB, MIB);
    let second = bed.point(PointType::Log).await;
    let copies = bed.disks.clone();
    bed.export(first, None, "one").await;
    bed.export(second, Some(first), "two").await;
    let (asked, dir, new) = (Asked::default(), bench.path("two"), bench.path("new"));
    let import =
        vmms::import::import_export(&bench.vmms, &dir, Some("copy".into()), &new, false, &asked);
    let (vm, job) = import.await.unwrap();
    bench.done(job).await;
    let record = bench.vmms.db.get::<vmms::machine::Vm>(vm).unwrap();
    assert_eq!(record.name, "copy");
    assert_eq!(record.disks().count(), 2);
    for (_, disk) in record.disks() {
        let stem = disk
            .path
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let name = copies
            .keys()
            .find(|n| n.starts_with(&format!("{stem}.")))
            .unwrap();
        let found = bench.contents(&disk.path, disk.format).await;
        support::assert_same(&found, &copies[name], name);
    }
    let copy = support::Bed {
        bench: &bench,
        vm,
        disks: Default::default(),
    };
    copy.state(StateChange::Start).await;
    copy.state(StateChange::Stop).await;
}
