//! ConvertToReferencePoint: a recovery snapshot becomes an RCT point on the same nodes.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Snapshot, SnapshotKind, refuse_busy};
use crate::job::{JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::Asked;
use crate::point::{self, Point};
use crate::{Effect, Element, Result, Vmms, fault, guid};

/// Makes a reference point of a recovery snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvertSnapshot {
    /// The machine.
    pub vm: Uuid,
    /// The snapshot.
    pub snapshot: Uuid,
}

#[async_trait]
impl Work<Machines> for ConvertSnapshot {
    fn traits(&self) -> Traits {
        concrete(
            Service::Snapshot,
            200,
            "Making a reference point of a snapshot",
            Recovery::Resume,
        )
        .to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims {
            deletes: vec![self.snapshot],
            ..Claims::of_machine(self.vm, Access::Shared, Layers::Kept, &[])
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.vm, self.snapshot).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        // One transaction: whole or not at all.
        Ok(())
    }
}

/// Starts a job that turns a recovery snapshot into a reference point of the same GUID; returns the job.
///
/// Refused at once: snapshots that are not recovery snapshots, that were not completed, or that an export reads.
pub async fn convert(vmms: &Arc<Vmms>, snapshot: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = vmms.db.get::<Snapshot>(snapshot)?;
    admit(vmms, &record)?;
    let affected = vec![
        (Element::Vm(record.vm), Effect::Other),
        (Element::Snapshot(snapshot), Effect::ExclusiveUse),
        (Element::Point(snapshot), Effect::Create),
    ];
    let mut submission = asked.submission(affected);
    submission.output = Output {
        created: Some(Element::Point(snapshot)),
        ..Output::default()
    };
    vmms.submit(
        ConvertSnapshot {
            vm: record.vm,
            snapshot,
        },
        submission,
    )
    .await
}

fn admit(vmms: &Vmms, record: &Snapshot) -> Result<()> {
    let about = Element::Snapshot(record.id);
    if record.kind != SnapshotKind::Recovery {
        return Err(fault!(SnapshotNotRecovery, guid(record.id)).about(about));
    }
    if let Some(collection) = record.collection_snapshot {
        return Err(fault!(SnapshotOfCollection, guid(record.id), guid(collection)).about(about));
    }
    if !record.complete {
        return Err(fault!(SnapshotIncomplete, guid(record.id)).about(about));
    }
    refuse_busy(vmms, record.id)
}

/// Converts: one transaction. An exported snapshot needs no hold; one that was not exported can still be, as a point.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    snapshot: Uuid,
) -> Result<()> {
    let _lock = vmms.lock(vm).await;
    // Run again after a restart: it is done when the point is there.
    if vmms.db.get::<Point>(snapshot).is_ok() {
        return Ok(());
    }
    let record = vmms.db.get::<Snapshot>(snapshot)?;
    admit(vmms, &record)?;
    ctx.no_return().await?;
    let mut point = record.as_point();
    if record.exports.is_empty() {
        point.hold = point::hold(
            vmms.options.hold_time,
            vmms.options.hold_bytes,
            std::time::SystemTime::now(),
        );
    }
    vmms.db
        .change(|draft| {
            draft.delete::<Snapshot>(snapshot);
            draft.put(point);
            Ok(())
        })
        .await
}
