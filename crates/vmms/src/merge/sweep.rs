//! What comes round: holds end, and layers that nobody needs are merged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use crate::job::{Job, Subject, Submission};
use crate::machine::Vm;
use crate::merge::MergeLayers;
use crate::merge::reads;
use crate::point::{Point, PointType};
use crate::snapshot::Snapshot;
use crate::{Effect, Element, Result, Vmms, guid};
use engine::Layers;

/// Ends holds whose time or bytes are spent and starts merging where there is something to merge.
pub(crate) async fn sweep(vmms: &Arc<Vmms>) {
    for point in vmms.db.all::<Point>() {
        if spent(vmms, &point)
            && let Err(error) = end_hold(vmms, point.id, None).await
        {
            tracing::warn!(point = %guid(point.id), %error, "the hold of a point could not be ended");
        }
    }
    let mut points: BTreeMap<Uuid, Vec<Arc<Point>>> = BTreeMap::new();
    for point in vmms.db.all::<Point>() {
        points.entry(point.vm).or_default().push(point);
    }
    let snapshots = vmms.db.all::<Snapshot>();
    let running: Vec<Arc<Job>> = vmms
        .db
        .all::<Job>()
        .into_iter()
        .filter(|j| !j.is_over())
        .collect();
    for vm in vmms.db.all::<Vm>() {
        let own = points.remove(&vm.id).unwrap_or_default();
        if own.iter().any(|p| !p.complete) && !is_affected(&running, vm.id) {
            // Taking it back failed when its job ended; by now it may work.
            if let Err(error) = crate::point::create::forget_unfinished(vmms, vm.id, |_| true).await
            {
                tracing::warn!(vm = %guid(vm.id), %error, "a point that was not finished stays");
            }
            continue;
        }
        if super::due::is_due(&vm, &own, &snapshots, &running)
            && vmms.points.may_try(vm.id)
            && !busy(vmms, vm.id)
            && let Err(error) = start_merge(vmms, vm.id).await
        {
            tracing::warn!(vm = %guid(vm.id), %error, "layers could not be merged");
        }
    }
}

/// Whether a running job has anything to do with the machine.
fn is_affected(running: &[Arc<Job>], vm: Uuid) -> bool {
    let affected = |job: &Arc<Job>| job.affected.iter().any(|(e, _)| *e == Element::Vm(vm));
    running.iter().any(affected)
}

async fn start_merge(vmms: &Arc<Vmms>, vm: Uuid) -> Result<Uuid> {
    let affected = vec![(Element::Vm(vm), Effect::Performance)];
    let submission = Submission {
        affected,
        ..Submission::default()
    };
    vmms.submit(MergeLayers { vm }, submission).await
}

/// Whether a job that is not over works on the machine's layers.
fn busy(vmms: &Vmms, vm: Uuid) -> bool {
    let jobs = vmms.db.all::<Job>();
    let claims = jobs
        .iter()
        .map(|job| job.claims())
        .filter(|c| c.layers == Layers::Changed);
    claims
        .flat_map(|claims| claims.machines)
        .any(|subject| match subject {
            Subject::Vm(id) => id == vm,
            // Its record may be gone already.
            Subject::Point(id) => vmms.db.get::<Point>(id).map_or(true, |p| p.vm == vm),
        })
}

fn spent(vmms: &Vmms, point: &Point) -> bool {
    let Some(hold) = point.hold else {
        return false;
    };
    SystemTime::now() >= hold.until || held_bytes(vmms, point) > hold.bytes
}

/// What the layers above a point take on the host, in bytes.
fn held_bytes(vmms: &Vmms, point: &Point) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(vm) = vmms.db.get::<Vm>(point.vm) else {
        return 0;
    };
    let mut bytes = 0;
    for disk in &point.disks {
        let Some(tree) = vm.disk(disk.uid).map(|d| &d.layers) else {
            continue;
        };
        let kept = tree.chain(disk.node).unwrap_or_default();
        for file in tree.active_chain().iter().filter(|f| !kept.contains(f)) {
            bytes += std::fs::metadata(&file.path).map_or(0, |m| m.blocks() * 512);
        }
    }
    bytes
}

/// Ends the hold of an RCT point, unless an export other than `job` reads the point.
pub(crate) async fn end_hold(vmms: &Arc<Vmms>, point: Uuid, job: Option<Uuid>) -> Result<()> {
    vmms.db
        .change(|draft| {
            let read = draft
                .all::<Job>()
                .iter()
                .any(|j| reads(j).contains(&point) && Some(j.id) != job);
            let record = draft.get_mut::<Point>(point)?;
            if record.kind == PointType::Rct && !read {
                record.hold = None;
            }
            Ok(())
        })
        .await
}
