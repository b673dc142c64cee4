//! What the points, snapshots and exports of a machine ask of its layers, and what may therefore be merged.

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use crate::db::Draft;
use crate::disk_tree::{LayerTree, Pending, Prune};
use crate::job::Job;
use crate::machine::{Disk, Vm};
use crate::point::Point;
use crate::snapshot::Snapshot;
use crate::{Result, Vmms, guid};

/// What the points and exports of a machine ask of its layers.
pub(crate) struct Needed {
    /// Instants that must stay readable.
    needed: BTreeSet<Uuid>,
    /// Instants that must stay usable as the start of a difference.
    wanted: BTreeSet<Uuid>,
    /// Instants whose files are being read: neither they nor anything beneath them may be written.
    read: BTreeSet<Uuid>,
}

impl Needed {
    /// The claims on a machine's layers.
    pub(crate) fn of(
        vm: Uuid,
        points: &[impl AsRef<Point>],
        snapshots: &[impl AsRef<Snapshot>],
        jobs: &[impl AsRef<Job>],
    ) -> Self {
        let read: BTreeSet<Uuid> = jobs.iter().flat_map(|j| reads(j.as_ref())).collect();
        let mut claims = Needed {
            needed: BTreeSet::new(),
            wanted: BTreeSet::new(),
            read: BTreeSet::new(),
        };
        for point in points.iter().map(AsRef::as_ref).filter(|p| p.vm == vm) {
            let nodes = point.disks.iter().map(|d| d.node);
            if point.holds_content() || read.contains(&point.id) {
                claims.needed.extend(nodes.clone());
            }
            if read.contains(&point.id) {
                claims.read.extend(nodes.clone());
            }
            claims.wanted.extend(nodes);
        }
        for snapshot in snapshots.iter().map(AsRef::as_ref).filter(|s| s.vm == vm) {
            let nodes = snapshot.disks.iter().map(|d| d.node);
            if read.contains(&snapshot.id) {
                claims.read.extend(nodes.clone());
            }
            claims.needed.extend(nodes.clone());
            claims.wanted.extend(nodes);
        }
        claims
    }

    fn needed(&self, node: Uuid) -> bool {
        self.needed.contains(&node)
    }

    fn wanted(&self, node: Uuid) -> bool {
        self.wanted.contains(&node)
    }

    /// The nodes of this tree into whose files nothing may be merged for now.
    fn still(&self, tree: &LayerTree) -> BTreeSet<Uuid> {
        self.read.iter().flat_map(|n| tree.line(*n)).collect()
    }
}

/// Whether the layer beneath the one that is written to is needed by nobody: it is merged as soon as there is another on top.
pub(crate) fn goes_next(vmms: &Vmms, vm: &Vm, tree: &LayerTree) -> bool {
    let claims = Needed::of(
        vm.id,
        &vmms.db.all::<Point>(),
        &vmms.db.all::<Snapshot>(),
        &vmms.db.all::<Job>(),
    );
    let shared = |id: Uuid| {
        let file = tree.nodes.get(&id).and_then(|n| n.file.as_ref());
        file.is_none_or(|f| f.shared)
    };
    tree.beneath(tree.active)
        .is_some_and(|id| !claims.needed(id) && !shared(id) && tree.above(id).len() == 1)
}

/// What a merge is about, for people: the point whose content goes, or the layer of a disk.
pub(super) fn merged_name(vmms: &Vmms, vm: &Vm, disk: &Disk, node: Uuid) -> String {
    let of = format!("disk {} of machine {}", disk.path.display(), vm.name);
    let point = vmms.db.all::<Point>().into_iter().find(|p| {
        let named = p.disks.iter().any(|d| d.uid == disk.uid && d.node == node);
        p.vm == vm.id && named
    });
    if let Some(point) = point {
        return format!(
            "the layer of reference point {} ({}) of {of}",
            point.name,
            guid(point.id)
        );
    }
    let file = disk.layers.nodes.get(&node).and_then(|n| n.file.as_ref());
    match file {
        Some(file) => format!("layer {} of {of}", file.path.display()),
        None => format!("a layer of {of}"),
    }
}

/// The points a job reads that is not over.
pub(crate) fn reads(job: &Job) -> Vec<Uuid> {
    job.claims().reads
}

/// Something to do with a machine's layers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Chore {
    /// Merge the file of this frozen node into the one beneath.
    Commit(Uuid),
    /// Drop an instant that nobody names.
    Prune(Prune),
    /// Delete the file of this node, which is on a branch that was left.
    Drop(Uuid),
    /// Merge the active layer into the base.
    Fold,
}

pub(super) fn chore(tree: &LayerTree, claims: &Needed) -> Option<Chore> {
    if let Some(node) = tree.next_drop(&|n| claims.needed(n)) {
        return Some(Chore::Drop(node));
    }
    let still = claims.still(tree);
    if let Some(node) = tree.next_commit(&|n| claims.needed(n) || still.contains(&n)) {
        return Some(Chore::Commit(node));
    }
    if tree.can_fold(&|n| claims.wanted(n)) {
        return Some(Chore::Fold);
    }
    tree.next_prune(&|n| claims.wanted(n)).map(Chore::Prune)
}

/// Whether there is anything to do with a machine's layers, given its points, its snapshots and the jobs that run.
pub(crate) fn is_due(
    vm: &Vm,
    points: &[Arc<Point>],
    snapshots: &[Arc<Snapshot>],
    running: &[Arc<Job>],
) -> bool {
    let idle = |d: &Disk| {
        let tree = &d.layers;
        tree.nodes.len() == 1 && tree.pending.is_none() && tree.leftovers.is_empty()
    };
    // Most machines have no layers at all.
    if vm.disks().all(|(_, d)| idle(d)) {
        return false;
    }
    let claims = Needed::of(vm.id, points, snapshots, running);
    vm.disks().any(|(_, d)| {
        d.layers.pending.is_some()
            || !d.layers.leftovers.is_empty()
            || chore(&d.layers, &claims).is_some()
    })
}

/// Picks the next chore; a change of files is announced in the same transaction that decided it.
pub(super) fn pick(
    draft: &mut Draft<'_>,
    vm: Uuid,
    stopped: bool,
) -> Result<Option<(Uuid, Chore)>> {
    let points: Vec<Arc<Point>> = draft.all::<Point>().into_iter().map(Arc::new).collect();
    let jobs: Vec<Arc<Job>> = draft.all::<Job>().into_iter().map(Arc::new).collect();
    let snapshots: Vec<Arc<Snapshot>> = draft.all::<Snapshot>().into_iter().map(Arc::new).collect();
    let claims = Needed::of(vm, &points, &snapshots, &jobs);
    for (_, disk) in draft.get_mut::<Vm>(vm)?.disks_mut() {
        let Some(chore) = chore(&disk.layers, &claims) else {
            continue;
        };
        match &chore {
            Chore::Commit(node) => disk.layers.pending = Some(Pending::Commit { node: *node }),
            // With a guest, folding begins with a fresh layer; announced then.
            Chore::Fold if stopped => disk.layers.pending = Some(Pending::Fold { resume: false }),
            // The record first; the file is deleted once nothing names it any more.
            Chore::Drop(node) => disk.layers.dropped(*node),
            Chore::Fold | Chore::Prune(_) => {}
        }
        return Ok(Some((disk.uid, chore)));
    }
    Ok(None)
}
