//! Deleting reference points.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::job::{Job, JobContext, Machines, Service, Traits, concrete};
use crate::machine::{Asked, Vm};
use crate::merge::points_of;
use crate::merge::{self};
use crate::point::{Point, create};
use crate::snapshot::Snapshot;
use crate::{Effect, Element, Kind, Result, Vmms, fault, guid};

/// Deletes a reference point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestroyPoint {
    /// The point.
    pub point: Uuid,
}

#[async_trait]
impl Work<Machines> for DestroyPoint {
    fn traits(&self) -> Traits {
        concrete(
            Service::ReferencePoint,
            202,
            "Deleting a reference point",
            Recovery::Resume,
        )
        .to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims {
            deletes: vec![self.point],
            ..Claims::of_point(self.point, Access::Shared, Layers::Changed)
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.point).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, self.point).await
    }
}

/// Starts a job that deletes a point. Refused while an export reads the point or builds on it.
pub async fn destroy_point(vmms: &Arc<Vmms>, point: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = vmms.db.get::<Point>(point)?;
    refuse_busy(vmms, point)?;
    if let Some(collection) = record.collection_point {
        return Err(
            fault!(PointOfCollection, guid(point), guid(collection)).about(Element::Point(point))
        );
    }
    let affected = vec![
        (Element::Point(point), Effect::ExclusiveUse),
        (Element::Vm(record.vm), Effect::Other),
    ];
    vmms.submit(DestroyPoint { point }, asked.submission(affected))
        .await
}

/// Refuses a point that a running export reads or builds on.
pub(crate) fn refuse_busy(vmms: &Vmms, point: Uuid) -> Result<()> {
    for job in vmms.db.all::<Job>().iter().filter(|j| !j.is_over()) {
        if job.claims().needs(point) {
            return Err(fault!(PointBusy, guid(point), guid(job.id)).about(Element::Point(point)));
        }
    }
    Ok(())
}

/// Deletes the point's record, then merges what only it needed.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, point: Uuid) -> Result<()> {
    // Resumed after the record was gone: the notes still know the machine.
    let vm = match vmms.db.get::<Point>(point) {
        Ok(record) => {
            refuse_busy(vmms, point)?;
            ctx.note(&record.vm).await?;
            create::forget(vmms, point).await?;
            record.vm
        }
        Err(gone) => ctx.notes::<Uuid>().ok_or(gone)?,
    };
    if vmms.db.get::<Vm>(vm).is_err() {
        return Ok(());
    }
    // Made way for somebody, or failed: the sweep goes on with it. The point itself is gone.
    if let Err(error) = merge::merge(vmms, ctx, vm).await {
        // The service ends: the next start goes on with it.
        if error.kind() == Kind::Cancelled {
            return Err(error);
        }
        vmms.points.failed(vm);
        ctx.warn(error).await?;
    }
    Ok(())
}

/// Nothing to take back: the point is there or gone, and merging goes on by itself.
pub(crate) async fn undo(vmms: &Arc<Vmms>, ctx: &JobContext, _point: Uuid) -> Result<()> {
    match ctx.notes::<Uuid>() {
        Some(vm) => merge::undo(vmms, ctx, vm).await,
        None => Ok(()),
    }
}

/// Deletes all points and snapshots of a machine and folds its disks into their plain files. Used where the machine itself goes.
pub(crate) async fn drop_all(vmms: &Arc<Vmms>, ctx: &JobContext, vm: Uuid) -> Result<()> {
    for point in points_of(vmms, vm) {
        refuse_busy(vmms, point.id)?;
    }
    for point in points_of(vmms, vm) {
        create::forget(vmms, point.id).await?;
    }
    for snapshot in vmms.db.all::<Snapshot>().into_iter().filter(|s| s.vm == vm) {
        crate::snapshot::create::forget(vmms, snapshot.id).await?;
    }
    while merge::merge(vmms, ctx, vm).await? == merge::Merged::MadeWay {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Ok(())
}
