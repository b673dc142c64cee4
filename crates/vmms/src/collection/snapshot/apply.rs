//! Bringing all machines of a collection's snapshot back to it, all or none: one transaction puts the new layers of all
//! machines into place, and until then every machine is what it was.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::together::{lock_members, summary};
use super::super::{Collection, CollectionSnapshot, LastApply};
use super::{affected, finished, not_recovery, tasks};
use crate::collection::member::{self, MemberTask};
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::machine::{Asked, Vm};
use crate::merge;
use crate::snapshot::{Back, Snapshot, admit_apply};
use crate::{Effect, Element, Fault, Result, Vmms, fault, guid};

/// Brings all machines of a snapshot of a collection back to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApplyCollectionSnapshot {
    /// The collection's snapshot.
    pub snapshot: Uuid,
    /// Its members.
    pub members: Vec<MemberTask>,
}

#[async_trait]
impl Work<Machines> for ApplyCollectionSnapshot {
    fn traits(&self) -> Traits {
        concrete(
            Service::CollectionSnapshot,
            71,
            "Applying a snapshot of a collection",
            Recovery::Undo,
        )
        .to_the_end()
    }

    fn claims(&self) -> Claims {
        member::claims(
            &self.members,
            Access::Replaces,
            Layers::Changed,
            &[self.snapshot],
        )
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.snapshot, &self.members).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        undo(vmms, &self.members).await
    }
}

/// Starts a job that brings all machines of a snapshot of a collection back to it; returns the job.
///
/// Refused at once: recovery snapshots, and whatever one of the machines refuses ([`crate::snapshot::apply`]).
pub async fn apply_snapshot(vmms: &Arc<Vmms>, snapshot: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = finished(vmms, snapshot)?;
    not_recovery(&record, "applied")?;
    for member in &record.members {
        admit_apply(vmms, &*vmms.db.get::<Snapshot>(member.point)?)?;
    }
    let submission = asked.submission(affected(&record, Effect::Other, Effect::ExclusiveUse));
    let members = tasks(&record);
    vmms.submit(ApplyCollectionSnapshot { snapshot, members }, submission)
        .await
}

/// Applies it.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    snapshot: Uuid,
    members: &[MemberTask],
) -> Result<()> {
    let record = finished(vmms, snapshot)?;
    let mut held = Vec::new();
    let locks = lock_members(vmms, ctx, members).await?;
    for (member, lock) in members.iter().zip(locks) {
        held.push((lock, merge::pause_merges(vmms, member.vm).await));
    }
    ctx.checkpoint().await?;
    let failed = |failures: Vec<(usize, Fault)>| {
        let named = failures.into_iter().map(|(place, cause)| {
            let vm = members.get(place).map(|m| m.vm).unwrap_or_default();
            let name = vmms
                .db
                .get::<Vm>(vm)
                .map_or_else(|_| guid(vm), |v| v.name.clone());
            let cause = fault!(ApplyFailed, guid(snapshot), name)
                .about(Element::Vm(vm))
                .caused_by(cause);
            (place, cause)
        });
        summary(vmms, record.collection, members, named.collect())
    };
    let (mut backs, mut failures) = (Vec::new(), Vec::new());
    for (place, member) in members.iter().enumerate() {
        match Back::plan(vmms, member.vm, member.point).await {
            Ok(back) => backs.push(back),
            Err(failure) => failures.push((place, failure)),
        }
    }
    if !failures.is_empty() {
        return Err(failed(failures));
    }
    vmms.db
        .change(|draft| backs.iter().try_for_each(|back| back.announce(draft)))
        .await?;
    let mut memories = Vec::new();
    for (place, back) in backs.iter().enumerate() {
        match back.make(vmms).await {
            Ok(memory) => memories.push(memory),
            Err(failure) => failures.push((place, failure)),
        }
    }
    if !failures.is_empty() {
        for member in members {
            merge::reconcile(vmms, member.vm).await?;
        }
        return Err(failed(failures));
    }
    vmms.db
        .change(|draft| {
            for (back, memory) in backs.iter().zip(&memories) {
                back.swap(draft, memory.clone())?;
            }
            note(draft.get_mut::<Collection>(record.collection)?, &record);
            Ok(())
        })
        .await?;
    for (back, memory) in backs.iter().zip(&memories) {
        back.clean(vmms, memory.as_ref()).await?;
    }
    drop(held);
    Ok(())
}

fn note(collection: &mut Collection, snapshot: &CollectionSnapshot) {
    collection.last_apply = Some(LastApply {
        at: SystemTime::now(),
        consistency: snapshot.consistency,
        vms: snapshot.members.iter().map(|m| m.vm).collect(),
    });
}

/// Takes back what was begun: layers that no record names as active.
pub(crate) async fn undo(vmms: &Arc<Vmms>, members: &[MemberTask]) -> Result<()> {
    for member in members {
        crate::snapshot::undo_apply(vmms, member.vm).await?;
    }
    Ok(())
}
