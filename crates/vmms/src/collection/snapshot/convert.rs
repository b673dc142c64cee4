//! ConvertToReferencePoint of a collection: its recovery snapshot becomes an RCT point of the collection, and the members'
//! snapshots become the points of that.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::{CollectionPoint, CollectionSnapshot};
use super::{affected, finished, tasks};
use crate::collection::member::{self, MemberTask};
use crate::job::{JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::Asked;
use crate::point::{self, Point, PointType};
use crate::snapshot::{Snapshot, SnapshotKind, refuse_busy};
use crate::{Effect, Element, Result, Vmms, fault, guid};

/// Makes a reference point of a collection of its recovery snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvertCollectionSnapshot {
    /// The collection's snapshot.
    pub snapshot: Uuid,
    /// Its members.
    pub members: Vec<MemberTask>,
}

#[async_trait]
impl Work<Machines> for ConvertCollectionSnapshot {
    fn traits(&self) -> Traits {
        concrete(
            Service::CollectionSnapshot,
            200,
            "Making a reference point of a snapshot of a collection",
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
                Layers::Kept,
                &[self.snapshot],
            )
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.snapshot, &self.members).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        // One transaction: whole or not at all.
        Ok(())
    }
}

/// Starts a job that turns a recovery snapshot of a collection into a reference point of the same GUID; returns the job.
///
/// Refused at once: other snapshots, and those that an export reads.
pub async fn convert_snapshot(vmms: &Arc<Vmms>, snapshot: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = finished(vmms, snapshot)?;
    admit(vmms, &record)?;
    let mut affected = affected(&record, Effect::ExclusiveUse, Effect::Other);
    affected.push((Element::CollectionPoint(snapshot), Effect::Create));
    for member in &record.members {
        affected.push((Element::Point(member.point), Effect::Create));
    }
    let mut submission = asked.submission(affected);
    submission.output = Output {
        created: Some(Element::CollectionPoint(snapshot)),
        ..Output::default()
    };
    let members = tasks(&record);
    vmms.submit(ConvertCollectionSnapshot { snapshot, members }, submission)
        .await
}

fn admit(vmms: &Vmms, record: &CollectionSnapshot) -> Result<()> {
    if record.kind != SnapshotKind::Recovery {
        let about = Element::CollectionSnapshot(record.id);
        return Err(fault!(SnapshotNotRecovery, guid(record.id)).about(about));
    }
    record
        .members
        .iter()
        .try_for_each(|m| refuse_busy(vmms, m.point))
}

/// Converts: one transaction for all members. What was exported needs no hold; what was not can still be, as a point.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    snapshot: Uuid,
    members: &[MemberTask],
) -> Result<()> {
    let mut locks = Vec::new();
    for member in members {
        locks.push(vmms.lock(member.vm).await);
    }
    // Run again after a restart: it is done when the point is there.
    if vmms.db.get::<CollectionPoint>(snapshot).is_ok() {
        return Ok(());
    }
    let record = finished(vmms, snapshot)?;
    admit(vmms, &record)?;
    ctx.no_return().await?;
    let mut points: Vec<Point> = Vec::new();
    for member in &record.members {
        let part = vmms.db.get::<Snapshot>(member.point)?;
        let mut point = part.as_point();
        point.collection_point = Some(snapshot);
        if part.exports.is_empty() {
            let options = &vmms.options;
            point.hold = point::hold(options.hold_time, options.hold_bytes, SystemTime::now());
        }
        points.push(point);
    }
    let whole = CollectionPoint {
        at: record.at.clone(),
        kind: PointType::Rct,
    };
    vmms.db
        .change(|draft| {
            for point in points {
                draft.delete::<Snapshot>(point.id);
                draft.put(point);
            }
            draft.delete::<CollectionSnapshot>(snapshot);
            draft.put(whole);
            Ok(())
        })
        .await
}
