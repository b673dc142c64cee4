//! Deleting a collection's snapshot with those of its members.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::{CollectionSnapshot, discard};
use super::{affected, finished, not_recovery, tasks};
use crate::collection::member::{self, MemberTask};
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::machine::Asked;
use crate::snapshot::create::{forget_files, take_out};
use crate::snapshot::refuse_busy;
use crate::{Effect, Result, Vmms};

/// Deletes a snapshot of a collection with its members' snapshots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestroyCollectionSnapshot {
    /// The collection's snapshot.
    pub snapshot: Uuid,
    /// Its members.
    pub members: Vec<MemberTask>,
}

#[async_trait]
impl Work<Machines> for DestroyCollectionSnapshot {
    fn traits(&self) -> Traits {
        concrete(
            Service::CollectionSnapshot,
            72,
            "Deleting a snapshot of a collection",
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
                &[self.snapshot],
            )
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.snapshot, &self.members).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        discard::undo(vmms, ctx, &self.members).await
    }
}

/// Starts a job that deletes a snapshot of a collection; returns the job.
///
/// Refused at once: recovery snapshots, and snapshots that an export reads or builds on.
pub async fn destroy_snapshot(vmms: &Arc<Vmms>, snapshot: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = finished(vmms, snapshot)?;
    not_recovery(&record, "deleted")?;
    let members = tasks(&record);
    for member in &members {
        refuse_busy(vmms, member.point)?;
    }
    let submission = asked.submission(affected(&record, Effect::ExclusiveUse, Effect::Other));
    vmms.submit(DestroyCollectionSnapshot { snapshot, members }, submission)
        .await
}

/// Deletes the records, all in one transaction, then merges what only they needed.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    snapshot: Uuid,
    members: &[MemberTask],
) -> Result<()> {
    for member in members {
        refuse_busy(vmms, member.point)?;
    }
    vmms.db
        .change(|draft| {
            draft.delete::<CollectionSnapshot>(snapshot);
            for member in members {
                take_out(draft, member.point);
            }
            Ok(())
        })
        .await?;
    for member in members {
        forget_files(vmms, member.point)?;
    }
    discard::merge(vmms, ctx, members).await
}
