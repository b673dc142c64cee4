//! QEMU is killed at one of its writes and syncs, while it merges, folds or takes a point: what was acknowledged is there, byte for byte.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use hypervisor::probe::Prober;
use hypervisor::{ImageFormat, ImageTool, QemuHypervisor};
use support::journal::Shim;
use support::{Bed, Bench, MIB};
use vmms::job::JobState;
use vmms::machine::{Asked, StateChange};
use vmms::point::{Consistency, Point, PointType};

const SIZE: u64 = 8 * MIB;
const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.img", ImageFormat::Raw, SIZE),
    ("b.qcow2", ImageFormat::Qcow2, SIZE),
];

/// What QEMU does when it is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Doing {
    /// Merging a layer that lies beneath.
    Merging,
    /// Taking a point.
    Marking,
    /// Merging the layer it writes to.
    Folding,
}

/// Whether a process is gone, or on its way out with nothing open.
async fn dies(pid: i32) -> bool {
    for _ in 0..50 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().unwrap().trim().chars().next();
        if matches!(state, None | Some('Z' | 'X')) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// QEMU is killed at its `at`th write or sync. Whether it came to that: what it did may need fewer.
async fn killed_at(at: u32, doing: Doing) -> bool {
    let what = format!("{doing:?}, killed at write {at}");
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::build(dir.path());
    let kill = dir.path().join("kill");
    let below = std::env::temp_dir().canonicalize().unwrap();
    let qemu = shim.wrap("qemu-system-x86_64", &below, Some(&kill));
    let hypervisor = QemuHypervisor::new(Prober::new(qemu), ImageTool::default());
    let bench = Bench::on(support::options(), Arc::new(hypervisor)).await;
    let (vmms, asked) = (&bench.vmms, Asked::default());
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
    let mut held = vec![(second, bed.disks.clone())];
    write(&mut bed, 3, 5 * MIB, MIB);
    if doing == Doing::Folding {
        bed.destroy(first).await;
    }
    if doing == Doing::Marking {
        // The same again, not flushed: so that there is something to do.
        bed.write("a.img", 3, 5 * MIB, MIB);
        bed.write("b.qcow2", 3, 5 * MIB, MIB);
    }
    let pid = vmms.machine(bed.vm).unwrap().pid();
    std::fs::write(&kill, at.to_string()).unwrap();
    match doing {
        Doing::Merging => {
            let job = vmms::point::remove_data(vmms, first, &asked).await;
            vmms.wait(job.unwrap()).await.unwrap();
        }
        Doing::Marking => {
            let crash = Some(Consistency::Crash);
            let (third, job) = bed.try_point(PointType::Log, crash).await;
            if job.state == JobState::Completed {
                held.push((third, bed.disks.clone()));
            }
        }
        Doing::Folding => {
            held.clear();
            let job = vmms::point::destroy_point(vmms, second, &asked).await;
            vmms.wait(job.unwrap()).await.unwrap();
        }
    }
    let died = dies(pid).await;
    // Beyond the last write of all that: by hand.
    if let Some(machine) = vmms.machine(bed.vm) {
        let _ = machine.kill().await;
    }
    bed.wait_off().await;
    for _ in 0..3 {
        bed.sweep().await;
    }
    bed.assert_present().await;
    for (point, disks) in &held {
        let job = bed.export(*point, None, &format!("out-{point}")).await;
        bed.assert_exported(&job, disks).await;
    }
    match doing {
        Doing::Merging => assert!(!vmms.db.get::<Point>(first).unwrap().holds_content()),
        // A point that failed is not there.
        Doing::Marking => assert_eq!(vmms.db.all::<Point>().len(), 1 + held.len(), "{what}"),
        Doing::Folding => {}
    }
    // A merge that failed is not tried again at once by itself: another point's end makes it due.
    bed.point(PointType::Log).await;
    for point in vmms.db.all::<Point>() {
        bed.destroy(point.id).await;
    }
    for _ in 0..3 {
        bed.sweep().await;
    }
    bed.assert_present().await;
    let left = support::files(&bench.path("images"));
    assert_eq!(left, ["a.img", "b.qcow2"], "{what}");
    died
}

/// Kills at each of these writes; most of them have to come.
async fn killed_at_each(doing: Doing, writes: &[u32], least: usize) {
    let mut died = Vec::new();
    for at in writes {
        if killed_at(*at, doing).await {
            died.push(*at);
        }
    }
    assert!(died.len() >= least, "{doing:?}: it died at {died:?} only");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_killed_at_any_of_its_writes_while_layers_merge_loses_nothing() {
    killed_at_each(Doing::Merging, &[1, 2, 3, 5, 8, 11, 14, 17], 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_killed_at_any_of_its_writes_while_a_point_is_taken_loses_nothing() {
    killed_at_each(Doing::Marking, &[1, 2], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_killed_at_any_of_its_writes_while_the_active_layer_folds_loses_nothing() {
    killed_at_each(Doing::Folding, &[1, 3, 6], 2).await;
}
