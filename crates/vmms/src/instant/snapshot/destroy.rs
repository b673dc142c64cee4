//! Deleting snapshots: the record goes at once, what only it needed is merged afterwards, visibly and restartably.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Snapshot, SnapshotKind, create, of_vm, refuse_busy};
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::machine::{Asked, Vm};
use crate::merge;
use crate::{Effect, Element, Kind, Result, Vmms, fault, guid};

/// Deletes a snapshot, or it and everything below it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestroySnapshot {
    /// The machine.
    pub vm: Uuid,
    /// The snapshot.
    pub snapshot: Uuid,
    /// Whether its descendants go too.
    pub tree: bool,
}

#[async_trait]
impl Work<Machines> for DestroySnapshot {
    fn traits(&self) -> Traits {
        concrete(
            Service::Snapshot,
            72,
            "Deleting a snapshot",
            Recovery::Resume,
        )
        .to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims {
            deletes: vec![self.snapshot],
            ..Claims::of_machine(self.vm, Access::Shared, Layers::Changed, &[])
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.vm, self.snapshot, self.tree).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        // The snapshot is there or gone; merging goes on by itself.
        merge::undo(vmms, ctx, self.vm).await
    }
}

/// Starts a job that deletes a snapshot, with `tree` also everything below it; returns the job.
///
/// Refused at once: recovery snapshots, and snapshots that an export reads or builds on.
pub async fn destroy(vmms: &Arc<Vmms>, snapshot: Uuid, tree: bool, asked: &Asked) -> Result<Uuid> {
    let record = vmms.db.get::<Snapshot>(snapshot)?;
    let doomed = doomed(vmms, &record, tree)?;
    let mut affected = vec![(Element::Vm(record.vm), Effect::Other)];
    affected.extend(
        doomed
            .iter()
            .map(|s| (Element::Snapshot(*s), Effect::ExclusiveUse)),
    );
    let task = DestroySnapshot {
        vm: record.vm,
        snapshot,
        tree,
    };
    vmms.submit(task, asked.submission(affected)).await
}

/// The snapshots that go, the lowest first.
fn doomed(vmms: &Vmms, root: &Snapshot, tree: bool) -> Result<Vec<Uuid>> {
    let mut doomed = vec![root.id];
    if tree {
        // Children are younger than their parents.
        for snapshot in of_vm(vmms, root.vm) {
            if snapshot.parent.is_some_and(|p| doomed.contains(&p)) {
                doomed.push(snapshot.id);
            }
        }
    }
    for id in &doomed {
        let record = vmms.db.get::<Snapshot>(*id)?;
        if let Some(collection) = record.collection_snapshot {
            return Err(fault!(SnapshotOfCollection, guid(*id), guid(collection))
                .about(Element::Snapshot(*id)));
        }
        if record.kind == SnapshotKind::Recovery {
            return Err(
                fault!(SnapshotIsRecovery, guid(*id), "deleted").about(Element::Snapshot(*id))
            );
        }
        refuse_busy(vmms, *id)?;
    }
    doomed.reverse();
    Ok(doomed)
}

/// What is to be deleted, so that a restart does not take the rest of the tree for something else.
#[derive(Serialize, Deserialize)]
struct Checkpoint {
    doomed: Vec<Uuid>,
}

/// Deletes the records, then merges the layers.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    snapshot: Uuid,
    tree: bool,
) -> Result<()> {
    let notes = match ctx.notes::<Checkpoint>() {
        Some(notes) => notes,
        None => {
            let notes = Checkpoint {
                doomed: doomed(vmms, &*vmms.db.get::<Snapshot>(snapshot)?, tree)?,
            };
            ctx.note(&notes).await?;
            notes
        }
    };
    {
        let _lock = vmms.lock(vm).await;
        for id in notes.doomed {
            create::forget(vmms, id).await?;
        }
    }
    if vmms.db.get::<Vm>(vm).is_err() {
        return Ok(());
    }
    // Made way for somebody, or failed: the sweep goes on with it. The snapshot itself is gone.
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
