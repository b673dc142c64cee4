//! Dropping the data of a log-based point; the point stays as a base of differences.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::job::{Activity, JobContext, Machines, Service, Traits, concrete};
use crate::machine::{Asked, Vm};
use crate::merge::{self};
use crate::point::destroy::refuse_busy;
use crate::point::{Point, PointType};
use crate::{Effect, Element, Kind, Result, Vmms, fault, guid};

/// Drops the data of a log-based point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoveData {
    /// The point.
    pub point: Uuid,
}

#[async_trait]
impl Work<Machines> for RemoveData {
    fn traits(&self) -> Traits {
        concrete(
            Service::ReferencePoint,
            204,
            "Removing the data of a reference point",
            Recovery::Resume,
        )
        .shown_as(Activity::Merging)
    }

    fn claims(&self) -> Claims {
        Claims {
            drops_data: vec![self.point],
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

/// Starts a job that drops the data of a log-based point. Refused for points without data (an RCT point has content as long as it
/// is held) and while an export reads it.
pub async fn remove_data(vmms: &Arc<Vmms>, point: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = vmms.db.get::<Point>(point)?;
    let held = record.kind == PointType::Rct && record.hold.is_some();
    let kept = record.kind == PointType::Log && record.has_data;
    if !held && !kept {
        return Err(fault!(NoAssociatedData, guid(point)).about(Element::Point(point)));
    }
    refuse_busy(vmms, point)?;
    let affected = vec![
        (Element::Point(point), Effect::ExclusiveUse),
        (Element::Vm(record.vm), Effect::Other),
    ];
    vmms.submit(RemoveData { point }, asked.submission(affected))
        .await
}

/// Drops the data, then merges the layers.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, point: Uuid) -> Result<()> {
    let record = vmms.db.get::<Point>(point)?;
    if record.has_data || record.hold.is_some() {
        refuse_busy(vmms, point)?;
        // Once merging begins the instant cannot be had back.
        ctx.no_return().await?;
        vmms.db
            .change(|draft| {
                let record = draft.get_mut::<Point>(point)?;
                record.has_data = false;
                record.hold = None;
                Ok(())
            })
            .await?;
    }
    if vmms.db.get::<Vm>(record.vm).is_err() {
        return Ok(());
    }
    if let Err(error) = merge::merge(vmms, ctx, record.vm).await {
        // The service ends: the next start goes on with it.
        if error.kind() == Kind::Cancelled {
            return Err(error);
        }
        vmms.points.failed(record.vm);
        ctx.warn(error).await?;
    }
    Ok(())
}

/// The data is there or gone; a merge that was begun is reconciled.
pub(crate) async fn undo(vmms: &Arc<Vmms>, ctx: &JobContext, point: Uuid) -> Result<()> {
    match vmms.db.get::<Point>(point) {
        Ok(record) => merge::undo(vmms, ctx, record.vm).await,
        Err(_) => Ok(()),
    }
}
