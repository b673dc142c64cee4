//! Points, exports and merges on real files and a real QEMU, without a guest.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use hypervisor::ImageFormat;
use support::{Bench, KIB, MIB, files};
use vmms::job::StateChange;
use vmms::point::PointType;
use vmms::vm::Asked;

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
async fn a_stopped_machine_is_exported_in_full_and_in_part() {
    full_and_differential(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_exported_in_full_and_in_part() {
    full_and_differential(true).await;
}
