//! Taking a reference point of a collection.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use hypervisor::MachineStatus;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::CollectionPoint;
use super::instant;
use super::member::{self, MemberTask};
use super::together::{self, Taking, lock_members, reconcile_members};
use crate::db::Draft;
use crate::job::{Activity, JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::Asked;
use crate::point::create::{self, Marked};
use crate::point::{Consistency, Point, PointType};
use crate::{Element, Kind, Result, Vmms};

/// Takes a reference point of a collection: one point of each member, all of one instant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateCollectionPoint {
    /// The collection.
    #[serde(rename = "group")]
    pub collection: Uuid,
    /// The new collection point's id.
    pub point: Uuid,
    /// The members when it was asked for, by the GUIDs of their machines, with the ids of their new points.
    pub members: Vec<MemberTask>,
    /// Its kind.
    pub kind: PointType,
    /// What was asked for; `None`: application where it can be had, else crash.
    pub consistency: Option<Consistency>,
    /// Name for people.
    pub name: String,
}

#[async_trait]
impl Work<Machines> for CreateCollectionPoint {
    fn traits(&self) -> Traits {
        concrete(
            Service::CollectionReferencePoint,
            205,
            "Creating a reference point of a collection",
            Recovery::Undo,
        )
        .shown_as(Activity::CreatingPoint)
    }

    fn claims(&self) -> Claims {
        member::claims(
            &self.members,
            Access::Shared,
            Layers::Changed,
            &[self.collection, self.point],
        )
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        undo(vmms, self.point, &self.members).await
    }
}

/// Starts a job that takes a point of a collection; returns the point's and the job's identifiers.
///
/// `consistency` `None` means: each running guest application consistent where that can be had, else crash consistent.
/// With `Application` every running guest must be frozen; machines that are off have nothing to freeze, paused and saved
/// ones fail the point. Refused at once: management collections, empty ones, members of which no point can be taken.
pub async fn create_point(
    vmms: &Arc<Vmms>,
    collection: Uuid,
    kind: PointType,
    consistency: Option<Consistency>,
    name: &str,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let record = together::admit(vmms, collection, "points")?;
    let members = together::new_tasks(&record);
    let point = Uuid::new_v4();
    let name = together::named(name, || create::default_name(vmms, &record.name))?;
    let whole = Element::CollectionPoint(point);
    let affected = together::affected(collection, whole, &members, Element::Point);
    let task = CreateCollectionPoint {
        collection,
        point,
        members,
        kind,
        consistency,
        name,
    };
    let mut submission = asked.submission(affected);
    submission.output = Output {
        created: Some(Element::CollectionPoint(point)),
        ..Output::default()
    };
    let (task, job) = vmms.submit_once(task, submission).await?;
    Ok((task.point, job))
}

/// Takes the point.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    new: &CreateCollectionPoint,
) -> Result<()> {
    let taking = Taking {
        collection: new.collection,
        whole: new.point,
        tasks: &new.members,
        name: &new.name,
        kind: new.kind,
        consistency: new.consistency,
    };
    ctx.checkpoint().await?;
    let locks = lock_members(vmms, ctx, &new.members).await?;
    let mut members = taking.begin(vmms, &locks).await?;
    let mut failures = Vec::new();
    for (place, member) in members.iter_mut().enumerate() {
        member.begun.point.collection_point = Some(new.point);
        if let Err(failure) = member.begun.keep_saved_memory().await {
            failures.push((place, failure));
        }
    }
    if !failures.is_empty() {
        return Err(taking.failed(vmms, failures));
    }
    let mut running = Vec::new();
    for member in &members {
        running.push(runs(vmms, member.begun.vm.id).await);
    }
    let kind = new.kind;
    let at = taking
        .announce(vmms, &running, |draft, at| {
            for member in &members {
                member.begun.announce(draft)?;
            }
            let at = at.clone();
            draft.put(CollectionPoint { at, kind });
            Ok(())
        })
        .await?;
    // Not long from here on; an answer that came after a cancel would leave nobody knowing which of the two won.
    ctx.no_return().await?;
    let reached = instant::mark(vmms, &members, new.consistency).await;
    let reached = reached.map_err(|failures| taking.failed(vmms, failures))?;
    let put = |draft: &mut Draft<'_>, _, found: &Marked| draft.put(found.point.clone());
    let whole = |draft: &mut Draft<'_>, at| draft.put(CollectionPoint { at, kind });
    taking
        .write_down(vmms, at, members, reached, put, whole)
        .await
}

/// Whether a machine's guest runs at this moment.
pub(super) async fn runs(vmms: &Vmms, vm: Uuid) -> bool {
    match vmms.machine(vm) {
        Some(machine) => {
            let status = machine.status().await;
            status.is_ok_and(|s| s == MachineStatus::Running)
        }
        None => false,
    }
}

/// Takes back a point that was not finished: what was announced on each machine is reconciled, then the records go.
pub(crate) async fn undo(vmms: &Arc<Vmms>, point: Uuid, members: &[MemberTask]) -> Result<()> {
    let (locks, failed) = reconcile_members(vmms, members).await;
    drop(locks);
    if vmms
        .db
        .get::<CollectionPoint>(point)
        .is_ok_and(|p| p.complete)
    {
        return Ok(());
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
    match failed {
        Some(failure) if failure.kind() != Kind::Cancelled => Err(failure),
        _ => Ok(()),
    }
}
