//! Which bytes changed since a point, asked while the machine runs and while it does not.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use hypervisor::ImageFormat;
use support::{Bed, Bench, KIB, MIB};
use uuid::Uuid;
use vmms::Message;
use vmms::machine::StateChange;
use vmms::point::{Changes, Point, PointType};

const SIZE: u64 = 4 * MIB + 512;
const TWO: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, SIZE),
    ("b.img", ImageFormat::Raw, MIB),
];

fn limit(bed: &Bed<'_>, point: Uuid, name: &str) -> String {
    let uid = bed.disk(name).uid;
    let point = bed.bench.vmms.db.get::<Point>(point).unwrap();
    vmms::guid(point.disks.iter().find(|d| d.uid == uid).unwrap().node)
}

async fn ask(
    bed: &Bed<'_>,
    name: &str,
    limit: &str,
    offset: u64,
    length: u64,
) -> vmms::Result<Changes> {
    let path = bed.bench.path(&format!("images/{name}"));
    vmms::point::changes(&bed.bench.vmms, &path, limit, offset, length).await
}

/// Asks in parts, as clients do, and checks that together they name every byte that differs.
async fn assert_complete(bed: &Bed<'_>, name: &str, limit: &str, before: &[u8], step: u64) -> u64 {
    let now = &bed.disks[name];
    let mut named = vec![false; now.len()];
    let (mut at, mut total) = (0, 0);
    while at < now.len() as u64 {
        let part = ask(bed, name, limit, at, step).await.unwrap();
        assert!(part.processed > 0 && part.processed <= step);
        assert_eq!(part.size, now.len() as u64);
        for (offset, length) in part.ranges {
            assert!(offset >= at && offset + length <= at + part.processed);
            total += length;
            named[offset as usize..(offset + length) as usize].fill(true);
        }
        at += part.processed;
    }
    let missed =
        (0..now.len()).find(|&i| now[i] != before.get(i).copied().unwrap_or(0) && !named[i]);
    assert_eq!(missed, None, "a changed byte that is not named");
    total
}

async fn since_each_point(running: bool) {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, 2 * MIB);
    if running {
        bed.state(StateChange::Start).await;
    }
    let mut points = Vec::new();
    for n in 0..3u8 {
        points.push((
            bed.point(PointType::Rct).await,
            bed.disks["a.qcow2"].clone(),
        ));
        bed.write("a.qcow2", 10 + n, u64::from(n) * 333 * KIB + 100, 5000);
        bed.write("a.qcow2", 20 + n, SIZE - 512, 512);
    }
    for (nth, (point, before)) in points.iter().enumerate() {
        let limit = limit(&bed, *point, "a.qcow2");
        for step in [SIZE, 100 * KIB] {
            let total = assert_complete(&bed, "a.qcow2", &limit, before, step).await;
            assert!(
                total <= (3 - nth as u64) * 3 * 8 * KIB,
                "fine, not by whole clusters: {total}"
            );
        }
        // Also through a layer's own path, in braces, in lower case, and beyond the end.
        let layer = bed
            .disk("a.qcow2")
            .layers
            .active_chain()
            .pop()
            .unwrap()
            .path;
        let text = format!("{{{}}}", limit.to_lowercase());
        let all = vmms::point::changes(&bench.vmms, &layer, &text, 0, u64::MAX)
            .await
            .unwrap();
        assert_eq!(all.processed, SIZE);
    }
    assert_eq!(
        ask(&bed, "b.img", &limit(&bed, points[0].0, "b.img"), 0, MIB)
            .await
            .unwrap()
            .ranges,
        []
    );
    // Content gone, bases merged away: the answer stays.
    for (point, _) in &points {
        bed.export(*point, None, &format!("out/{point}")).await;
    }
    bed.sweep().await;
    bed.destroy(points[1].0).await;
    for nth in [0, 2] {
        let limit = limit(&bed, points[nth].0, "a.qcow2");
        assert_complete(&bed, "a.qcow2", &limit, &points[nth].1, MIB).await;
    }
    if running {
        bed.state(StateChange::Stop).await;
        let limit = limit(&bed, points[0].0, "a.qcow2");
        assert_complete(&bed, "a.qcow2", &limit, &points[0].1, SIZE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_disk_tells_its_changes_since_each_point() {
    since_each_point(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_disk_tells_its_changes_since_each_point() {
    since_each_point(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_over_a_busy_disk_sees_one_answer() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.state(StateChange::Start).await;
    let point = bed.point(PointType::Rct).await;
    let limit = limit(&bed, point, "a.qcow2");
    let first = ask(&bed, "a.qcow2", &limit, 0, MIB).await.unwrap();
    assert_eq!(first.ranges, []);
    bed.write("a.qcow2", 1, 2 * MIB, 4096);
    let rest = ask(&bed, "a.qcow2", &limit, MIB, SIZE).await.unwrap();
    assert_eq!(rest.ranges, [], "as it was when the loop began");
    let again = ask(&bed, "a.qcow2", &limit, 0, SIZE).await.unwrap();
    assert_eq!(again.ranges, [(2 * MIB, 4096)]);
    bed.state(StateChange::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_identifiers_and_ranges_are_refused() {
    let bench = Bench::new().await;
    let bed = bench.machine(&TWO).await;
    let point = bed.point(PointType::Log).await;
    let (a, b) = (limit(&bed, point, "a.qcow2"), limit(&bed, point, "b.img"));
    let message = |r: vmms::Result<Changes>| r.unwrap_err().message;
    assert_eq!(
        message(ask(&bed, "a.qcow2", &b, 0, 1).await),
        Message::LimitIdUnknown
    );
    assert_eq!(
        message(ask(&bed, "a.qcow2", "no guid", 0, 1).await),
        Message::LimitIdUnknown
    );
    assert_eq!(
        message(ask(&bed, "a.qcow2", "", 0, 1).await),
        Message::LimitIdUnknown
    );
    assert_eq!(
        message(ask(&bed, "a.qcow2", &a, SIZE, 1).await),
        Message::RangeOutside
    );
    assert_eq!(
        message(ask(&bed, "none", &a, 0, 1).await),
        Message::ImageMissing
    );
    bed.destroy(point).await;
    assert_eq!(
        message(ask(&bed, "a.qcow2", &a, 0, 1).await),
        Message::LimitIdUnknown
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grown_disk_changed_beyond_its_old_end() {
    let bench = Bench::new().await;
    let mut bed = bench.machine(&TWO).await;
    bed.write("a.qcow2", 1, 0, MIB);
    bed.state(StateChange::Start).await;
    let first = bed.point(PointType::Log).await;
    let at_first = bed.disks.clone();
    let machine = bench.vmms.machine(bed.vm).unwrap();
    let drive = vmms::machine::spec::drive_id(&bed.disk("a.qcow2"));
    machine.resize(&drive, SIZE + 2 * MIB).await.unwrap();
    bed.disks
        .get_mut("a.qcow2")
        .unwrap()
        .resize((SIZE + 2 * MIB) as usize, 0);
    let limit = limit(&bed, first, "a.qcow2");
    let part = ask(&bed, "a.qcow2", &limit, 0, u64::MAX).await.unwrap();
    assert_eq!(part.ranges, [(SIZE, 2 * MIB)]);
    bed.write("a.qcow2", 2, SIZE + MIB, 4096);
    let second = bed.point(PointType::Log).await;
    let at_second = bed.disks.clone();
    let full = bed.export(first, None, "out").await;
    bed.assert_exported(&full, &at_first).await;
    let part = bed.export(second, Some(first), "out").await;
    bed.assert_exported(&part, &at_second).await;
    let asked = vmms::machine::Asked::default();
    let dir = bench
        .path("out")
        .join(vmms::guid(bed.vm))
        .join(vmms::guid(second));
    let proof = vmms::verify::verify_export(&bench.vmms, &dir, &asked)
        .await
        .unwrap();
    bench.done(proof).await;
    bed.destroy(first).await;
    bed.destroy(second).await;
    bed.state(StateChange::Stop).await;
    bed.assert_present().await;
}
