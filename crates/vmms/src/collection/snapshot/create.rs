//! Taking a snapshot of a collection.
//!
//! Without memory it is taken like a point: all running guests stand still while the disks of all are marked. With memory, all
//! running guests stand still, each is saved from there, the files of all are marked, and when that is on record
//! everybody goes on where it stood.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::create::runs;
use super::super::instant::{self, Doing, Failures, Lock, Standing, side_by_side};
use super::super::together::{
    self, Taking, lock_members, member_failed, micros, reconcile_members, summary,
};
use super::super::{Collection, CollectionSnapshot};
use crate::collection::member::{self, MemberTask};
use crate::db::Draft;
use crate::instant::freeze;
use crate::job::{JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::{Asked, Power, Vm};
use crate::point::create::{self, Begun, Marked};
use crate::point::{Consistency, Point, PointType};
use crate::snapshot::create::{forget_files, go_on, keep_memory, take_out};
use crate::snapshot::{Snapshot, SnapshotKind, current};
use crate::{Element, Kind, Result, Vmms, fault};

/// Takes a snapshot of a collection: one snapshot of each member, all of one instant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateCollectionSnapshot {
    /// The collection.
    #[serde(rename = "group")]
    pub collection: Uuid,
    /// The new collection snapshot's id.
    pub snapshot: Uuid,
    /// The members when it was asked for, by the GUIDs of their machines; `point` is the id of the new snapshot.
    pub members: Vec<MemberTask>,
    /// Its kind.
    pub kind: SnapshotKind,
    /// What was asked for; `None`: application where it can be had, else crash.
    pub consistency: Option<Consistency>,
    /// Name for people.
    pub name: String,
}

#[async_trait]
impl Work<Machines> for CreateCollectionSnapshot {
    fn traits(&self) -> Traits {
        concrete(
            Service::CollectionSnapshot,
            198,
            "Creating a snapshot of a collection",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        member::claims(
            &self.members,
            Access::Shared,
            Layers::Changed,
            &[self.collection, self.snapshot],
        )
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, self.snapshot, &self.members).await
    }
}

/// Starts a job that takes a snapshot of a collection; returns the snapshot's and the job's identifiers. `consistency` as in
/// [`crate::collection::create_point`]; a full snapshot has the memory and needs none.
///
/// Refused at once: management collections, empty ones, members of which no snapshot can be taken, and an application
/// consistent full snapshot.
pub async fn create_snapshot(
    vmms: &Arc<Vmms>,
    collection: Uuid,
    kind: SnapshotKind,
    consistency: Option<Consistency>,
    name: &str,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    if kind == SnapshotKind::Full && consistency == Some(Consistency::Application) {
        let why = "a snapshot with memory keeps that instead; take one of the disks or a recovery snapshot (2)";
        return Err(
            fault!(InvalidValue, "ConsistencyLevel", 1, why).about(Element::Collection(collection))
        );
    }
    let record = together::admit(vmms, collection, "snapshots")?;
    let members = together::new_tasks(&record);
    let snapshot = Uuid::new_v4();
    let name = together::named(name, || {
        format!("{} - ({})", record.name, create::now_text())
    })?;
    let whole = Element::CollectionSnapshot(snapshot);
    let affected = together::affected(collection, whole, &members, Element::Snapshot);
    let task = CreateCollectionSnapshot {
        collection,
        snapshot,
        members,
        kind,
        consistency,
        name,
    };
    let mut submission = asked.submission(affected);
    submission.output = Output {
        created: Some(Element::CollectionSnapshot(snapshot)),
        ..Output::default()
    };
    let (task, job) = vmms.submit_once(task, submission).await?;
    Ok((task.snapshot, job))
}

/// What the machines were before they were saved, so that they come back to it.
type Before = Vec<(Uuid, Power)>;

/// Takes the snapshot.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    new: &CreateCollectionSnapshot,
) -> Result<()> {
    let tasks = &new.members;
    ctx.checkpoint().await?;
    let locks = lock_members(vmms, ctx, tasks).await?;
    if new.kind != SnapshotKind::Full {
        return take(vmms, ctx, new, &locks, None).await;
    }
    let mut members: Vec<(Arc<Vm>, Lock)> = Vec::new();
    for (task, lock) in tasks.iter().zip(&locks) {
        members.push((vmms.db.get::<Vm>(task.vm)?, Arc::clone(lock)));
    }
    let before: Before = members.iter().map(|(vm, _)| (vm.id, vm.power)).collect();
    ctx.note(&before).await?;
    ctx.no_return().await?;
    let failed = |failures| summary(vmms, new.collection, tasks, failures);
    let mut standing = instant::stand_still(vmms, &members).await.map_err(failed)?;
    let taken = match save_all(vmms, &members, &mut standing).await {
        Ok(()) => take(vmms, ctx, new, &locks, Some(&standing)).await,
        Err(failures) => Err(failed(failures)),
    };
    let pauses = go_on_all(vmms, &before, Some(&standing)).await;
    taken?;
    let (mut failures, mut stood) = (Vec::new(), Vec::new());
    for (place, pause) in pauses.into_iter().enumerate() {
        match pause {
            Ok(us) => stood.push((place, us)),
            Err(failure) => failures.push((place, failure)),
        }
    }
    note_pauses(vmms, new.snapshot, &stood).await?;
    if failures.is_empty() {
        return Ok(());
    }
    let name = vmms.db.get::<Collection>(new.collection)?.name.clone();
    let whole = fault!(CollectionNotResumed, failures.len(), tasks.len(), name)
        .about(Element::Collection(new.collection));
    Err(failures.into_iter().fold(whole, |whole, (place, cause)| {
        let vm = tasks.get(place).map(|t| t.vm).unwrap_or_default();
        whole.caused_by(member_failed(vmms, vm, cause))
    }))
}

/// Saves all guests that have a process, side by side. Running ones stand still already.
async fn save_all(
    vmms: &Arc<Vmms>,
    members: &[(Arc<Vm>, Lock)],
    standing: &mut Standing,
) -> Result<(), Failures> {
    let mut doing: Vec<Doing<'_, Result<()>>> = Vec::new();
    for (vm, _) in members {
        doing.push(Box::pin(async move {
            match vm.power {
                Power::Running | Power::Paused => crate::machine::save(vmms, vm.id).await,
                Power::Off | Power::Saved => Ok(()),
            }
        }));
    }
    let mut failures = Vec::new();
    for (place, saved) in side_by_side(doing).await.into_iter().enumerate() {
        match saved {
            Ok(()) => standing.saved(place),
            Err(failure) => failures.push((place, failure)),
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures)
    }
}

/// Brings all machines back into the state they had, side by side; answers how long each guest stood still, in microseconds.
async fn go_on_all(
    vmms: &Arc<Vmms>,
    before: &Before,
    standing: Option<&Standing>,
) -> Vec<Result<u64>> {
    let mut doing: Vec<Doing<'_, Result<u64>>> = Vec::new();
    for (place, (vm, power)) in before.iter().enumerate() {
        doing.push(Box::pin(async move {
            go_on(vmms, *vm, *power).await?;
            Ok(standing.map_or(0, |s| micros(s.pause(place))))
        }));
    }
    side_by_side(doing).await
}

/// Writes down how long the guests stood still; known only when they go on.
async fn note_pauses(vmms: &Vmms, snapshot: Uuid, stood: &[(usize, u64)]) -> Result<()> {
    vmms.db
        .change(|draft| {
            let mut parts = Vec::new();
            let record = draft.get_mut::<CollectionSnapshot>(snapshot)?;
            for (place, us) in stood {
                if let Some(member) = record.members.get_mut(*place) {
                    member.pause_us = *us;
                    parts.push((member.point, *us));
                }
            }
            for (part, us) in parts {
                draft.get_mut::<Snapshot>(part)?.pause_us = us;
            }
            Ok(())
        })
        .await
}

/// What is known of a member's snapshot before its disks are marked.
struct Plan {
    parent: Option<Uuid>,
    memory: Option<PathBuf>,
    settings: Vm,
}

/// Marks the disks of all members and writes the snapshot down. `standing`: the guests were stopped and saved before.
async fn take(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    new: &CreateCollectionSnapshot,
    locks: &[Lock],
    standing: Option<&Standing>,
) -> Result<()> {
    let taking = Taking {
        collection: new.collection,
        whole: new.snapshot,
        tasks: &new.members,
        name: &new.name,
        kind: PointType::Rct,
        consistency: new.consistency,
    };
    let members = taking.begin(vmms, locks).await?;
    // All guests may be standing still: their memory is kept and synced side by side.
    let mut planning: Vec<Doing<'_, Result<Plan>>> = Vec::new();
    for member in &members {
        planning.push(Box::pin(plan(vmms, new.kind, &member.begun)));
    }
    let (mut plans, mut failures) = (Vec::new(), Vec::new());
    for (place, planned) in side_by_side(planning).await.into_iter().enumerate() {
        match planned {
            Ok(plan) => plans.push(plan),
            Err(failure) => failures.push((place, failure)),
        }
    }
    if !failures.is_empty() {
        return Err(taking.failed(vmms, failures));
    }
    let mut running = Vec::new();
    for (place, member) in members.iter().enumerate() {
        running.push(match standing {
            Some(standing) => standing.ran(place),
            None => runs(vmms, member.begun.vm.id).await,
        });
    }
    let kind = new.kind;
    let at = taking
        .announce(vmms, &running, |draft, at| {
            for (member, plan) in members.iter().zip(&plans) {
                freeze::announce(draft, member.begun.vm.id, &member.begun.steps)?;
                draft.put(part_of(new, &member.begun.point, plan));
            }
            let at = at.clone();
            draft.put(CollectionSnapshot { at, kind });
            Ok(())
        })
        .await?;
    // Not long from here on; an answer that came after a cancel would leave nobody knowing which of the two won.
    ctx.no_return().await?;
    let asked = match kind {
        SnapshotKind::Full => Some(Consistency::Crash),
        _ => new.consistency,
    };
    let reached = instant::mark(vmms, &members, asked).await;
    let mut reached = reached.map_err(|failures| taking.failed(vmms, failures))?;
    if let Some(standing) = standing {
        (reached.instant, reached.skew) = (standing.instant, standing.skew);
        reached.skew_limit = standing.skew_limit;
        for (place, part) in reached.members.iter_mut().enumerate() {
            part.reached.instant = standing.instant;
            // Its process is gone; it ran until it was saved for this.
            part.running = standing.ran(place);
        }
    }
    let put = |draft: &mut Draft<'_>, place: usize, found: &Marked| {
        if let Some(plan) = plans.get(place) {
            draft.put(part_of(new, &found.point, plan));
        }
    };
    let whole = |draft: &mut Draft<'_>, at| draft.put(CollectionSnapshot { at, kind });
    taking
        .write_down(vmms, at, members, reached, put, whole)
        .await
}

async fn plan(vmms: &Vmms, kind: SnapshotKind, begun: &Begun) -> Result<Plan> {
    let parent = current(vmms, &begun.vm).filter(|s| s.kind != SnapshotKind::Recovery);
    let memory = match &begun.vm.saved_state {
        Some(saved) if kind == SnapshotKind::Full && begun.vm.power == Power::Saved => {
            Some(keep_memory(saved, &begun.point.config).await?)
        }
        _ => None,
    };
    Ok(Plan {
        parent: parent.map(|s| s.id),
        memory,
        settings: (*begun.vm).clone(),
    })
}

fn part_of(new: &CreateCollectionSnapshot, point: &Point, plan: &Plan) -> Snapshot {
    let (settings, memory) = (plan.settings.clone(), plan.memory.clone());
    let mut part = Snapshot::of(point, new.kind, plan.parent, settings, memory);
    part.collection_snapshot = Some(new.snapshot);
    part
}

/// Takes back a snapshot that was not finished: what was announced on each machine is reconciled, then the records go, and
/// machines that were saved for it come back.
pub(crate) async fn undo(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    snapshot: Uuid,
    members: &[MemberTask],
) -> Result<()> {
    let (_locks, mut failed) = reconcile_members(vmms, members).await;
    if !vmms
        .db
        .get::<CollectionSnapshot>(snapshot)
        .is_ok_and(|s| s.complete)
    {
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
    }
    let mut before = ctx.notes::<Before>().unwrap_or_default();
    before.retain(|(vm, _)| vmms.db.get::<Vm>(*vm).is_ok());
    let back = go_on_all(vmms, &before, None).await;
    for ((vm, _), back) in before.iter().zip(back) {
        if let Err(error) = back {
            failed.get_or_insert(member_failed(vmms, *vm, error));
        }
    }
    match failed {
        Some(failure) if failure.kind() != Kind::Cancelled => Err(failure),
        _ => Ok(()),
    }
}
