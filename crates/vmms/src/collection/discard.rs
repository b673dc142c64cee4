//! Deleting a collection's points, and dropping their data.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{CollectionPoint, together::member_failed};
use crate::collection::member::{self, MemberTask};
use crate::job::{Activity, JobContext, Machines, Service, Traits, concrete};
use crate::machine::{Asked, Vm};
use crate::merge;
use crate::point::{Point, PointType, create, destroy};
use crate::{Effect, Element, Kind, Result, Vmms, fault, guid};

/// Deletes a reference point of a collection with its members' points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestroyCollectionPoint {
    /// The collection point.
    pub point: Uuid,
    /// Its members.
    pub members: Vec<MemberTask>,
}

#[async_trait]
impl Work<Machines> for DestroyCollectionPoint {
    fn traits(&self) -> Traits {
        concrete(
            Service::CollectionReferencePoint,
            208,
            "Deleting a reference point of a collection",
            Recovery::Resume,
        )
        .to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims {
            deletes: member::instants(&self.members),
            ..member::claims(
                &self.members,
                Access::Shared,
                Layers::Changed,
                &[self.point],
            )
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.point, &self.members).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, &self.members).await
    }
}

/// Drops the data of a log-based point of a collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoveCollectionData {
    /// The collection point.
    pub point: Uuid,
    /// Its members.
    pub members: Vec<MemberTask>,
}

#[async_trait]
impl Work<Machines> for RemoveCollectionData {
    fn traits(&self) -> Traits {
        concrete(
            Service::CollectionReferencePoint,
            207,
            "Removing the data of a reference point of a collection",
            Recovery::Resume,
        )
        .shown_as(Activity::Merging)
    }

    fn claims(&self) -> Claims {
        Claims {
            drops_data: member::instants(&self.members),
            ..member::claims(
                &self.members,
                Access::Shared,
                Layers::Changed,
                &[self.point],
            )
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run_release(vmms, ctx, &self.members).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, &self.members).await
    }
}

fn tasks(record: &CollectionPoint) -> Vec<MemberTask> {
    let of = |m: &super::MemberPoint| MemberTask {
        vm: m.vm,
        point: m.point,
    };
    record.members.iter().map(of).collect()
}

fn affected(point: Uuid, members: &[MemberTask]) -> Vec<(Element, Effect)> {
    let mut out = vec![(Element::CollectionPoint(point), Effect::ExclusiveUse)];
    for member in members {
        out.push((Element::Point(member.point), Effect::ExclusiveUse));
        out.push((Element::Vm(member.vm), Effect::Other));
    }
    out
}

/// Starts a job that deletes a collection's point and with it the points of its members. Refused while an export reads one of
/// them or builds on it.
pub async fn destroy_point(vmms: &Arc<Vmms>, point: Uuid, asked: &Asked) -> Result<Uuid> {
    let members = tasks(&*vmms.db.get::<CollectionPoint>(point)?);
    for member in &members {
        destroy::refuse_busy(vmms, member.point)?;
    }
    let submission = asked.submission(affected(point, &members));
    vmms.submit(DestroyCollectionPoint { point, members }, submission)
        .await
}

/// Deletes the records, all in one transaction, then merges what only they needed.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    point: Uuid,
    members: &[MemberTask],
) -> Result<()> {
    for member in members {
        destroy::refuse_busy(vmms, member.point)?;
    }
    vmms.db
        .change(|draft| {
            draft.delete::<CollectionPoint>(point);
            for member in members {
                draft.delete::<Point>(member.point);
            }
            Ok(())
        })
        .await?;
    for member in members {
        create::remove_files(vmms, member.point)?;
    }
    merge(vmms, ctx, members).await
}

/// Starts a job that drops the data of a log-based point of a collection. Refused where no member has any, and while
/// an export reads it.
pub async fn remove_data(vmms: &Arc<Vmms>, point: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = vmms.db.get::<CollectionPoint>(point)?;
    let members = tasks(&record);
    let has_data = |m: &MemberTask| vmms.db.get::<Point>(m.point).is_ok_and(|p| p.has_data);
    if record.kind != PointType::Log || !members.iter().any(has_data) {
        return Err(fault!(NoAssociatedData, guid(point)).about(Element::CollectionPoint(point)));
    }
    for member in &members {
        destroy::refuse_busy(vmms, member.point)?;
    }
    let submission = asked.submission(affected(point, &members));
    vmms.submit(RemoveCollectionData { point, members }, submission)
        .await
}

/// Drops the data of all members, then merges their layers.
pub(crate) async fn run_release(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    members: &[MemberTask],
) -> Result<()> {
    let has_data = |m: &MemberTask| vmms.db.get::<Point>(m.point).is_ok_and(|p| p.has_data);
    if members.iter().any(has_data) {
        for member in members {
            destroy::refuse_busy(vmms, member.point)?;
        }
        // Once merging begins the instant cannot be had back.
        ctx.no_return().await?;
        vmms.db
            .change(|draft| {
                for member in members {
                    if let Ok(point) = draft.get_mut::<Point>(member.point) {
                        point.has_data = false;
                    }
                }
                Ok(())
            })
            .await?;
    }
    merge(vmms, ctx, members).await
}

/// Merges the layers of the members, one after the other. What fails is a warning: the sweep goes on with it.
pub(super) async fn merge(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    members: &[MemberTask],
) -> Result<()> {
    for member in members {
        if vmms.db.get::<Vm>(member.vm).is_err() {
            continue;
        }
        if let Err(error) = merge::merge(vmms, ctx, member.vm).await {
            // The service ends: the next start goes on with it.
            if error.kind() == Kind::Cancelled {
                return Err(error);
            }
            vmms.points.failed(member.vm);
            ctx.warn(member_failed(vmms, member.vm, error)).await?;
        }
    }
    Ok(())
}

/// The points are there or gone; merges that were begun are reconciled.
pub(crate) async fn undo(vmms: &Arc<Vmms>, ctx: &JobContext, members: &[MemberTask]) -> Result<()> {
    for member in members {
        merge::undo(vmms, ctx, member.vm).await?;
    }
    Ok(())
}
