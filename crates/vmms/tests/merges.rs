//! Merging makes way for whoever needs the layers, and nothing is lost by it.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hypervisor::ImageFormat;
use support::{Bed, Bench, MIB, files};
use uuid::Uuid;
use vmms::disk_tree::Pending;
use vmms::job::{JobRequest, JobState, Task};
use vmms::machine::{Asked, StateChange, Vm};
use vmms::point::{Consistency, Point, PointType};
use vmms::snapshot::{self, SnapshotKind};

const SIZE: u64 = 192 * MIB;
const BIG: [(&str, ImageFormat, u64); 1] = [("a.img", ImageFormat::Raw, SIZE)];

/// Two points with much between them; the first one's data is being removed when this returns.
async fn merging(bed: &mut Bed<'_>, running: bool) -> (Uuid, Uuid) {
    if running {
        bed.state(StateChange::Start).await;
    }
    let first = bed.point(PointType::Log).await;
    bed.write("a.img", 1, 0, 160 * MIB);
    if running {
        bed.flush("a.img");
    }
    let second = bed.point(PointType::Log).await;
    let job = vmms::point::remove_data(&bed.bench.vmms, first, &Asked::default())
        .await
        .unwrap();
    let mut changes = bed.bench.vmms.db.changes();
    while bed.disk("a.img").layers.pending.is_none()
        && !bed.bench.vmms.job(job).unwrap().state.is_final()
    {
        changes.changed().await.unwrap();
    }
    assert!(matches!(
        bed.disk("a.img").layers.pending,
        Some(Pending::Commit { .. }) | None
    ));
    (second, job)
}

async fn finish(bed: &mut Bed<'_>, points: &[(Uuid, Vec<u8>)]) {
    for _ in 0..3 {
        bed.sweep().await;
    }
    for (n, (point, copy)) in points.iter().enumerate() {
        let full = bed.export(*point, None, &format!("out{n}")).await;
        let found = bed
            .bench
            .contents(&full.output.disks[0].file, ImageFormat::Qcow2)
            .await;
        support::assert_same(&found, copy, "point");
    }
    for point in bed.bench.vmms.db.all::<Point>() {
        bed.destroy(point.id).await;
    }
    for _ in 0..3 {
        bed.sweep().await;
    }
    if bed.bench.vmms.machine(bed.vm).is_some() {
        bed.state(StateChange::Stop).await;
    }
    assert_eq!(files(&bed.bench.path("images")), ["a.img"]);
    bed.assert_present().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_is_taken_while_layers_merge_under_a_guest() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, true).await;
    let at_second = bed.disks["a.img"].clone();
    bed.write("a.img", 2, 100 * MIB, MIB);
    let third = bed.point(PointType::Log).await;
    let at_third = bed.disks["a.img"].clone();
    bench.done(job).await;
    bed.write("a.img", 3, 0, MIB);
    finish(&mut bed, &[(second, at_second), (third, at_third)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_starts_and_stops_while_its_layers_merge() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, false).await;
    let at_second = bed.disks["a.img"].clone();
    bed.state(StateChange::Start).await;
    bench.done(job).await;
    bed.write("a.img", 3, 0, MIB);
    bench.vmms.tick().await;
    bed.state(StateChange::Stop).await;
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_saved_while_its_layers_merge() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, true).await;
    let at_second = bed.disks["a.img"].clone();
    bed.state(StateChange::Save).await;
    bench.done(job).await;
    bed.state(StateChange::Start).await;
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_is_killed_while_its_layers_merge() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, true).await;
    let at_second = bed.disks["a.img"].clone();
    bench.vmms.machine(bed.vm).unwrap().kill().await.unwrap();
    bed.wait_off().await;
    bench.done(job).await;
    bed.state(StateChange::Start).await;
    bed.write("a.img", 3, 0, MIB);
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_merge_is_done_later() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.state(StateChange::Start).await;
    let first = bed.point(PointType::Rct).await;
    bed.write("a.img", 1, 0, 160 * MIB);
    let second = bed.point(PointType::Log).await;
    let at_second = bed.disks["a.img"].clone();
    bed.set_hold(first, None).await;
    for request in [JobRequest::Terminate, JobRequest::Kill] {
        bench.vmms.tick().await;
        let tidy =
            |j: &vmms::job::Job| matches!(j.task, Task::MergeLayers(_)) && !j.state.is_final();
        let Some(job) = bench.vmms.jobs().into_iter().find(tidy) else {
            break;
        };
        let _ = bench.vmms.request_job_state(job.id, request).await;
        let job = bench.vmms.wait(job.id).await.unwrap();
        let expected = [JobState::Terminated, JobState::Killed, JobState::Completed];
        assert!(
            expected.contains(&job.state),
            "{:?} {:#?}",
            job.state,
            job.faults
        );
    }
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_while_layers_merge() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    let (second, job) = merging(&mut bed, true).await;
    let at_second = bed.disks["a.img"].clone();
    let node = bench.vmms.db.get::<Point>(second).unwrap().disks[0]
        .node
        .to_string();
    let path = bench.path("images/a.img");
    let vmms: &Arc<vmms::Vmms> = &bench.vmms;
    let told = vmms::point::changes(vmms, &path, &node, 0, u64::MAX)
        .await
        .unwrap();
    assert_eq!((told.processed, told.ranges), (SIZE, Vec::new()));
    bench.done(job).await;
    finish(&mut bed, &[(second, at_second)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_active_layer_is_folded_under_a_guest_that_hardly_stands_still() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&BIG).await;
    bed.state(StateChange::Start).await;
    let point = bed.point(PointType::Log).await;
    bed.write("a.img", 1, MIB, 40 * MIB);
    bed.flush("a.img");
    let machine = bench.vmms.machine(bed.vm).unwrap();
    let mut events = machine.events();
    let before = bed.disk("a.img").layers.nodes.len();
    assert_eq!(before, 2);
    bed.destroy(point).await;
    // The guest stood still once, for the last and small layer only.
    let mut stops = 0;
    while let Ok(event) = events.try_recv() {
        stops += usize::from(matches!(event, hypervisor::MachineEvent::Stopped));
    }
    assert_eq!(stops, 1);
    assert_eq!(bed.disk("a.img").layers.nodes.len(), 1);
    assert_eq!(files(&bench.path("images")), ["a.img"]);
    bed.write("a.img", 2, 2 * MIB, 512);
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
}

/// Two points on a branch that is left; the data of the first is being removed when this returns, so that the tip is merged.
async fn merging_a_left_branch(bed: &mut Bed<'_>) -> (Uuid, Vec<u8>, Uuid) {
    let vmms = &bed.bench.vmms;
    let (kind, crash) = (SnapshotKind::Disk, Some(Consistency::Crash));
    let made = snapshot::create(vmms, bed.vm, kind, crash, "", &Asked::default()).await;
    let (snapshot, job) = made.unwrap();
    bed.bench.done(job).await;
    let at_snapshot = bed.disks.clone();
    let first = bed.point(PointType::Log).await;
    bed.write("a.img", 1, 0, 160 * MIB);
    let second = bed.point(PointType::Log).await;
    let at_second = bed.disks["a.img"].clone();
    let vmms = &bed.bench.vmms;
    let job = snapshot::apply(vmms, snapshot, &Asked::default()).await;
    bed.bench.done(job.unwrap()).await;
    bed.disks = at_snapshot;
    let asked = Asked::default();
    let job = vmms::point::remove_data(vmms, first, &asked).await.unwrap();
    let mut changes = vmms.db.changes();
    while bed.disk("a.img").layers.pending.is_none() && !vmms.job(job).unwrap().state.is_final() {
        changes.changed().await.unwrap();
    }
    (second, at_second, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_was_left_is_exact_whatever_interrupts_its_merge() {
    for interruption in ["point", "export", "start"] {
        let bench = Bench::new().await;
        let mut bed = bench.machine(&BIG).await;
        bed.write("a.img", 9, 0, MIB);
        let (second, at_second, job) = merging_a_left_branch(&mut bed).await;
        match interruption {
            "point" => drop(bed.point(PointType::Log).await),
            "start" => bed.state(StateChange::Start).await,
            _ => {}
        }
        let whole = bed.export(second, None, "at-once").await;
        let found = bench
            .contents(&whole.output.disks[0].file, ImageFormat::Qcow2)
            .await;
        support::assert_same(&found, &at_second, interruption);
        bench.done(job).await;
        if interruption == "start" {
            bed.state(StateChange::Stop).await;
        }
        for _ in 0..3 {
            bed.sweep().await;
        }
        let whole = bed.export(second, None, "merged").await;
        let found = bench
            .contents(&whole.output.disks[0].file, ImageFormat::Qcow2)
            .await;
        support::assert_same(&found, &at_second, interruption);
        bed.assert_present().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_with_a_colon_in_their_name_are_merged_and_folded() {
    let bench = Bench::new().await;
    let mut bed = bench
        .machine(&[("nbd:a.qcow2", ImageFormat::Qcow2, 2 * MIB)])
        .await;
    for running in [false, true] {
        if running {
            bed.state(StateChange::Start).await;
        }
        let mut points = Vec::new();
        for byte in 1..4 {
            bed.write("nbd:a.qcow2", byte, u64::from(byte) * 65536, 65536);
            points.push(bed.point(PointType::Log).await);
        }
        for point in points {
            bed.destroy(point).await;
        }
        for _ in 0..3 {
            bed.sweep().await;
        }
        assert_eq!(bed.disk("nbd:a.qcow2").layers.nodes.len(), 1);
        assert_eq!(files(&bench.path("images")), ["nbd:a.qcow2"]);
    }
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
}

/// A tool of the service's last life that has an image open for writing.
struct Tool {
    child: Child,
    say: ChildStdin,
    _hear: BufReader<ChildStdout>,
}

impl Tool {
    fn open(path: &Path, format: ImageFormat) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format.as_str()]).arg(path);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let mut say = child.stdin.take().unwrap();
        let mut hear = BufReader::new(child.stdout.take().unwrap());
        say.write_all(b"length\n").unwrap();
        let mut line = String::new();
        while !line.contains("MiB") {
            assert!(hear.read_line(&mut line).unwrap() > 0, "{line}");
        }
        Tool {
            child,
            say,
            _hear: hear,
        }
    }

    /// Writes a last time, and ends.
    fn end(mut self, byte: u8, offset: u64) {
        let line = format!("write -P {byte} {offset} 4096\nquit\n");
        self.say.write_all(line.as_bytes()).unwrap();
        // It reads all there is, and looks for more before it goes on.
        drop(self.say);
        assert!(self.child.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stamped_before_the_tools_of_the_last_life_have_closed_the_files() {
    for fold in [false, true] {
        let mut bench = Bench::new().await;
        let mut bed = bench.machine(&[("a.img", ImageFormat::Raw, 4 * MIB)]).await;
        bed.write("a.img", 1, 0, MIB);
        let first = bed.point(PointType::Log).await;
        let at_first = bed.disks["a.img"].clone();
        bed.write("a.img", 2, MIB, MIB);
        let second = bed.point(PointType::Log).await;
        let at_second = bed.disks["a.img"].clone();
        let disk = bed.disk("a.img");
        // As it is on record while the second layer is put into the image, or the active one into that.
        let chain = disk.layers.active_chain();
        let node = bench.vmms.db.get::<Point>(second).unwrap().disks[0].node;
        let (pending, base, point, copy, byte) = match fold {
            false => (Pending::Commit { node }, &chain[0], first, at_first, 1),
            true => {
                let pending = Pending::Fold { resume: false };
                (pending, &chain[1], second, at_second, 2)
            }
        };
        let vm = bed.vm;
        let announce = |draft: &mut vmms::db::Draft<'_>| {
            let disk = draft.get_mut::<Vm>(vm)?.disk_mut(disk.uid);
            disk.unwrap().layers.pending = Some(pending);
            Ok(())
        };
        bench.vmms.db.change(announce).await.unwrap();
        let tool = Tool::open(&base.path, base.format);
        {
            let mut restart = std::pin::pin!(bench.restart());
            let early = tokio::time::timeout(Duration::from_secs(1), &mut restart).await;
            assert!(early.is_err(), "fold {fold}: it did not wait");
            // What is there already: only the time of the change tells.
            tool.end(byte, (u64::from(byte) - 1) * MIB);
            restart.await;
        }
        let bed = bench.bed();
        assert_eq!(bed.disk("a.img").layers.pending, None);
        let whole = bed.export(point, None, "out").await;
        let file = &whole.output.disks[0].file;
        let found = bench.contents(file, ImageFormat::Qcow2).await;
        support::assert_same(&found, &copy, &format!("fold {fold}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_header_names_one_that_was_merged_is_put_on_what_lies_beneath() {
    let mut bench = Bench::new().await;
    let (copies, disks, merged, above) = {
        let mut bed = bench
            .machine(&[("a.qcow2", ImageFormat::Qcow2, 4 * MIB)])
            .await;
        let mut copies = Vec::new();
        for byte in 1..=3 {
            bed.write("a.qcow2", byte, u64::from(byte) * 100_000, 150_000);
            let point = bed.point(PointType::Log).await;
            copies.push((point, bed.disks["a.qcow2"].clone()));
        }
        let chain = bed.disk("a.qcow2").layers.active_chain();
        let (merged, above) = (chain[1].path.clone(), chain[2].path.clone());
        let asked = Asked::default();
        let job = vmms::point::remove_data(&bench.vmms, copies[0].0, &asked).await;
        bench.done(job.unwrap()).await;
        copies.remove(0);
        (copies, bed.disks.clone(), merged, above)
    };
    assert!(!merged.exists());
    // As a service left it that did not sync the header, which another version was.
    let stamped = std::fs::metadata(&above).unwrap().modified().unwrap();
    let name = format!("./{}", merged.file_name().unwrap().to_str().unwrap());
    let mut forged = Command::new("qemu-img");
    forged.args(["rebase", "-u", "-F", "qcow2", "-b", &name]);
    assert!(forged.arg(&above).status().unwrap().success());
    let file = std::fs::File::options().write(true).open(&above).unwrap();
    file.set_modified(stamped).unwrap();
    drop(file);

    bench.restart().await;
    let mut bed = bench.bed();
    bed.disks = disks;
    let info = bench.vmms.images.info_as(&above, None, false).await;
    assert_eq!(info.unwrap().backing.unwrap(), "./a.qcow2");
    bed.write("a.qcow2", 4, 500_000, 4096);
    let last = bed.point(PointType::Log).await;
    let mut copies = copies;
    copies.push((last, bed.disks["a.qcow2"].clone()));
    for (n, (point, copy)) in copies.iter().enumerate() {
        let whole = bed.export(*point, None, &format!("out{n}")).await;
        let file = &whole.output.disks[0].file;
        let found = bench.contents(file, ImageFormat::Qcow2).await;
        support::assert_same(&found, copy, &format!("point {n}"));
    }
    bed.assert_present().await;
}
