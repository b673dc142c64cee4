//! Random lives of a stopped machine, against a model that keeps a full copy of every disk at every point: what is still
//! readable equals its copy, and every difference, laid over the copy of its base, gives the copy of its point.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use disk::{Chain, ChangeMap, ExportPlan, LayerFormat, Qcow2Layer};
use hypervisor::ImageFormat;
use proptest::prelude::*;
use support::{Bed, Bench, KIB, assert_same, contents, files};
use uuid::Uuid;
use vmms::job::{Job, JobState};
use vmms::machine::Asked;
use vmms::point::{Point, PointType};

const SIZE: u64 = 300 * KIB + 512;
const DISKS: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, SIZE),
    ("b.img", ImageFormat::Raw, SIZE),
];

#[derive(Clone, Debug)]
enum Op {
    Write {
        disk: usize,
        byte: u8,
        offset: u64,
        length: u64,
    },
    Point(PointType),
    RemoveData(usize),
    EndHold(usize),
    Destroy(usize),
    Sweep,
    Restart,
    Grow {
        disk: usize,
        sectors: u64,
    },
    Difference {
        from: usize,
        to: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let write =
        (0..2usize, 1..=255u8, 0..SIZE, 1..120 * KIB).prop_map(|(disk, byte, offset, length)| {
            Op::Write {
                disk,
                byte,
                offset,
                length: length.min(SIZE - offset),
            }
        });
    let kind = prop_oneof![Just(PointType::Log), Just(PointType::Rct)];
    prop_oneof![
        5 => write,
        4 => kind.prop_map(Op::Point),
        2 => any::<usize>().prop_map(Op::RemoveData),
        2 => any::<usize>().prop_map(Op::EndHold),
        2 => any::<usize>().prop_map(Op::Destroy),
        2 => Just(Op::Sweep),
        1 => Just(Op::Restart),
        1 => (0..2usize, 1..300u64).prop_map(|(disk, sectors)| Op::Grow { disk, sectors }),
        3 => (any::<usize>(), any::<usize>()).prop_map(|(from, to)| Op::Difference { from, to }),
    ]
}

type Copies = BTreeMap<String, Vec<u8>>;

struct Life<'a> {
    bed: Bed<'a>,
    points: Vec<(Uuid, Copies)>,
    exports: usize,
}

impl Life<'_> {
    fn record(&self, point: Uuid) -> std::sync::Arc<Point> {
        self.bed.bench.vmms.db.get::<Point>(point).unwrap()
    }

    async fn step(&mut self, op: &Op) {
        let vmms = &self.bed.bench.vmms;
        let asked = Asked::default();
        let pick = |n: usize, all: &[(Uuid, Copies)]| n.checked_rem(all.len());
        match op {
            Op::Write {
                disk,
                byte,
                offset,
                length,
            } => {
                self.bed.write(DISKS[*disk].0, *byte, *offset, *length);
            }
            Op::Point(kind) => {
                let point = self.bed.point(*kind).await;
                self.points.push((point, self.bed.disks.clone()));
            }
            Op::RemoveData(n) => {
                let Some(at) = pick(*n, &self.points) else {
                    return;
                };
                let point = self.record(self.points[at].0);
                let job = vmms::point::remove_data(vmms, point.id, &asked).await;
                if point.has_data || point.hold.is_some() {
                    self.bed.bench.done(job.unwrap()).await;
                } else {
                    assert_eq!(job.unwrap_err().message, vmms::Message::NoAssociatedData);
                }
            }
            Op::EndHold(n) => {
                let Some(at) = pick(*n, &self.points) else {
                    return;
                };
                let id = self.points[at].0;
                vmms.db
                    .change(|d| {
                        let _: () = d.get_mut::<Point>(id)?.hold = None;
                        Ok(())
                    })
                    .await
                    .unwrap();
            }
            Op::Destroy(n) => {
                let Some(at) = pick(*n, &self.points) else {
                    return;
                };
                self.bed.destroy(self.points.remove(at).0).await;
            }
            Op::Sweep => self.bed.sweep().await,
            Op::Restart => {}
            Op::Grow { disk, sectors } => self.bed.grow(DISKS[*disk].0, sectors * 512).await,
            Op::Difference { from, to } => {
                let (Some(from), Some(to)) = (pick(*from, &self.points), pick(*to, &self.points))
                else {
                    return;
                };
                if from < to {
                    self.difference(from, to).await;
                }
            }
        }
    }

    /// Exports into a directory of its own, with the same hold afterwards as before.
    async fn export(&mut self, point: &Point, base: Option<Uuid>) -> Option<Job> {
        self.exports += 1;
        let to = format!("out/{}", self.exports);
        if !point.holds_content() {
            let (vmms, asked) = (&self.bed.bench.vmms, Asked::default());
            let refused =
                vmms::export::export_point(vmms, point.id, base, Path::new("/x"), &[], &asked)
                    .await;
            assert_eq!(
                refused.unwrap_err().message,
                vmms::Message::NoAssociatedData
            );
            return None;
        }
        let job = self.bed.try_export(point.id, base, &to).await;
        assert_eq!(job.state, JobState::Completed, "{:#?}", job.faults);
        let hold = point.hold;
        let vmms = &self.bed.bench.vmms;
        vmms.db
            .change(|d| {
                let _: () = d.get_mut::<Point>(point.id)?.hold = hold;
                Ok(())
            })
            .await
            .unwrap();
        Some(job)
    }

    async fn difference(&mut self, from: usize, to: usize) {
        let base = self.record(self.points[from].0);
        let point = self.record(self.points[to].0);
        let Some(job) = self.export(&point, Some(base.id)).await else {
            return;
        };
        for exported in &job.output.disks {
            let name = self.bed.name_of(&exported.device);
            let (old, new) = (&self.points[from].1[&name], &self.points[to].1[&name]);
            // Where the export of the base was not found, the image names a neighbour: put there what the base was.
            let layer = Qcow2Layer::open(&exported.file).unwrap();
            let backing = exported
                .file
                .parent()
                .unwrap()
                .join(layer.backing().unwrap());
            if !backing.exists() {
                std::fs::write(backing.with_extension("raw"), old).unwrap();
                let source =
                    Chain::single(&backing.with_extension("raw"), LayerFormat::Raw).unwrap();
                let plan = ExportPlan::full(&source, &backing);
                disk::export_disk(&plan, &|_| {}, &disk::CancelFlag::new()).unwrap();
            }
            let images = &self.bed.bench.vmms.images;
            let found = contents(images, &exported.file, ImageFormat::Qcow2).await;
            assert_same(&found, new, "difference over its base");
            assert_small(&layer, old, new);
        }
        // With all it builds on at hand, it is proven by its own manifest too.
        if job.output.report.is_empty() {
            let bench = self.bed.bench;
            let dir = job.output.disks[0].file.parent().unwrap().parent().unwrap();
            let proof = vmms::verify::verify_export(&bench.vmms, dir, &Asked::default()).await;
            bench.done(proof.unwrap()).await;
        }
    }

    /// Whatever still holds content reads as it was, the present too.
    async fn check(&mut self) {
        self.bed.assert_present().await;
        for at in 0..self.points.len() {
            let (point, copies) = (self.record(self.points[at].0), self.points[at].1.clone());
            if let Some(job) = self.export(&point, None).await {
                self.bed.assert_exported(&job, &copies).await;
            }
        }
    }
}

/// A difference holds no block in which nothing was ever written: at most what lies around changed bytes, and what was
/// written over with the same bytes.
fn assert_small(layer: &Qcow2Layer, old: &[u8], new: &[u8]) {
    let changed: ChangeMap = old
        .iter()
        .zip(new)
        .enumerate()
        .filter(|(_, (a, b))| a != b)
        .map(|(i, _)| i as u64..i as u64 + 1)
        .collect();
    let held = layer.allocation().unwrap();
    assert_eq!(
        changed.intersect(&held),
        changed,
        "every changed byte is in the difference"
    );
}

fn live(ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut bench = Bench::new().await;
        let bed = bench.machine(&DISKS).await;
        let (vm, disks) = (bed.vm, bed.disks.clone());
        let (mut disks, mut points, mut exports) = (disks, Vec::new(), 0);
        let mut rest = ops.as_slice();
        // A restart needs the bench to itself: the life is taken apart and put together around it.
        loop {
            let (part, after) = match rest.iter().position(|o| matches!(o, Op::Restart)) {
                Some(at) => (&rest[..at], Some(&rest[at + 1..])),
                None => (rest, None),
            };
            let mut life = Life {
                bed: Bed {
                    bench: &bench,
                    vm,
                    disks,
                },
                points,
                exports,
            };
            for op in part {
                life.step(op).await;
            }
            if after.is_none() {
                life.check().await;
                while let Some((point, _)) = life.points.pop() {
                    life.bed.destroy(point).await;
                }
                life.bed.assert_present().await;
                assert_eq!(files(&bench.path("images")), ["a.qcow2", "b.img"]);
                assert!(files(&bench.path("state/maps")).is_empty());
                return;
            }
            (disks, points, exports) = (life.bed.disks, life.points, life.exports);
            bench.restart().await;
            rest = after.unwrap_or_default();
        }
    });
}

/// More lives are lived with KVMMS_LIVES.
fn lives() -> u32 {
    std::env::var("KVMMS_LIVES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: lives(), max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn points_and_differences_stay_exact_whatever_is_merged_and_dropped(ops in prop::collection::vec(op(), 6..24)) {
        live(ops);
    }
}
