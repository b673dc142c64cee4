//! Taking a reference point of a collection.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use hypervisor::MachineStatus;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::instant::{self, Doing, Failures, Member, Part, side_by_side};
use super::record::next_sequence;
use super::{Collection, CollectionKind, CollectionPoint, MemberPoint};
use crate::collection::member::{self, MemberTask};
use crate::job::{Activity, JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::{Asked, Vm};
use crate::merge;
use crate::point::create::{self, Begun, Marked, New};
use crate::point::{Consistency, Point, PointType};
use crate::{Effect, Element, Fault, Kind, Result, Vmms, fault, guid, names};

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
    let record = vmms.db.get::<Collection>(collection)?;
    if record.kind == CollectionKind::Management {
        let why = "points are taken of collections of machines";
        return Err(fault!(WrongType, "Collection", why).about(Element::Collection(collection)));
    }
    if record.members.is_empty() {
        return Err(fault!(CollectionEmpty, record.name).about(Element::Collection(collection)));
    }
    for vm in &record.members {
        create::admit(vmms, &*vmms.db.get::<Vm>(*vm)?)?;
    }
    let members = new_tasks(&record);
    let point = Uuid::new_v4();
    let name = match name.trim() {
        "" => create::default_name(vmms, &record.name),
        name => name.to_owned(),
    };
    names::check("ElementName", &name)?;
    let mut affected = vec![
        (Element::Collection(collection), Effect::Other),
        (Element::CollectionPoint(point), Effect::Create),
    ];
    for member in &members {
        affected.push((Element::Vm(member.vm), Effect::Other));
        affected.push((Element::Point(member.point), Effect::Create));
    }
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

/// A part for each member of what is about to be made, in the order their locks are taken.
pub(super) fn new_tasks(collection: &Collection) -> Vec<MemberTask> {
    let mut vms = collection.members.clone();
    vms.sort();
    let task = |vm| MemberTask {
        vm,
        point: Uuid::new_v4(),
    };
    vms.into_iter().map(task).collect()
}

/// Takes the point.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    new: &CreateCollectionPoint,
) -> Result<()> {
    let tasks = &new.members;
    ctx.checkpoint().await?;
    let mut members = Vec::new();
    let mut failures = Vec::new();
    for (place, task) in tasks.iter().enumerate() {
        let lock = tokio::select! {
            lock = vmms.lock(task.vm) => Arc::new(lock),
            stop = ctx.stop_asked() => return Err(stop),
        };
        let paused = merge::pause_merges(vmms, task.vm).await;
        let order = New {
            point: task.point,
            kind: new.kind,
            consistency: new.consistency,
            name: &new.name,
        };
        let begun = match create::begin(vmms, task.vm, &order).await {
            Ok(mut begun) => begun.keep_saved_memory().await.map(|()| begun),
            Err(failure) => Err(failure),
        };
        match begun {
            Ok(mut begun) => {
                begun.point.collection_point = Some(new.point);
                members.push(Member {
                    begun,
                    lock,
                    _paused: paused,
                });
            }
            Err(failure) => failures.push((place, failure)),
        }
    }
    if !failures.is_empty() {
        return Err(summary(vmms, new.collection, tasks, failures));
    }
    let record = announce(vmms, new, &members).await?;
    // Not long from here on; an answer that came after a cancel would leave nobody knowing which of the two won.
    ctx.no_return().await?;
    let reached = instant::mark(vmms, &members, new.consistency).await;
    let reached = reached.map_err(|failures| summary(vmms, new.collection, tasks, failures))?;
    write_down(vmms, new, tasks, record, members, reached).await
}

/// Writes down what is about to happen, on all machines in one transaction.
async fn announce(
    vmms: &Arc<Vmms>,
    new: &CreateCollectionPoint,
    members: &[Member],
) -> Result<CollectionPoint> {
    let mut running = Vec::new();
    for member in members {
        running.push(match vmms.machine(member.begun.vm.id) {
            Some(machine) => machine
                .status()
                .await
                .is_ok_and(|s| s == MachineStatus::Running),
            None => false,
        });
    }
    vmms.db
        .change(|draft| {
            draft.get_mut::<Collection>(new.collection)?;
            let sequence = next_sequence(draft, new.collection);
            let record = CollectionPoint {
                id: new.point,
                collection: new.collection,
                name: new.name.clone(),
                kind: new.kind,
                consistency: Consistency::Crash,
                instant: SystemTime::now(),
                sequence,
                complete: false,
                members: members
                    .iter()
                    .zip(&running)
                    .map(|(member, running)| MemberPoint {
                        vm: member.begun.vm.id,
                        point: member.begun.point.id,
                        pause_us: 0,
                        running: *running,
                    })
                    .collect(),
                skew_us: 0,
                skew_limit_us: 0,
            };
            for member in members {
                member.begun.announce(draft)?;
            }
            draft.put(record.clone());
            Ok(record)
        })
        .await
}

/// Writes down what was reached: trees, members' points and the collection's point in one transaction.
async fn write_down(
    vmms: &Arc<Vmms>,
    new: &CreateCollectionPoint,
    tasks: &[MemberTask],
    mut record: CollectionPoint,
    members: Vec<Member>,
    reached: instant::Together,
) -> Result<()> {
    record.instant = reached.instant;
    record.skew_us = micros(reached.skew);
    record.skew_limit_us = micros(reached.skew_limit);
    record.consistency = least(&reached.members);
    for (member, part) in record.members.iter_mut().zip(&reached.members) {
        member.pause_us = micros(part.reached.pause);
        member.running = part.running;
    }
    // The locks live until the records are written.
    let (begun, locks): (Vec<Begun>, Vec<_>) = members
        .into_iter()
        .map(|m| (m.begun, (m.lock, m._paused)))
        .unzip();
    let mut looking: Vec<Doing<'_, Result<Marked>>> = Vec::new();
    for (begun, part) in begun.into_iter().zip(reached.members) {
        looking.push(Box::pin(begun.look(vmms, part.reached)));
    }
    let looks = side_by_side(looking).await;
    let (mut marked, mut failures): (Vec<Marked>, Failures) = (Vec::new(), Vec::new());
    for (place, look) in looks.into_iter().enumerate() {
        match look {
            Ok(found) => {
                if let Err(failure) = &found.maps {
                    failures.push((place, failure.clone()));
                }
                marked.push(found);
            }
            Err(failure) => failures.push((place, failure)),
        }
    }
    record.complete = true;
    let whole = failures.is_empty();
    vmms.db
        .change(|draft| {
            for found in &marked {
                found.record_layers(draft)?;
                if whole {
                    draft.put(found.point.clone());
                }
            }
            if whole {
                draft.put(record.clone());
            }
            Ok(())
        })
        .await?;
    drop(locks);
    if whole {
        return Ok(());
    }
    Err(summary(vmms, new.collection, tasks, failures))
}

/// The least that any running member reached.
pub(super) fn least(members: &[Part]) -> Consistency {
    let mut running = members.iter().filter(|p| p.running).peekable();
    if running.peek().is_some()
        && running.all(|p| p.reached.consistency == Consistency::Application)
    {
        Consistency::Application
    } else {
        Consistency::Crash
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The failure of the whole, with one beneath for each machine that failed.
pub(super) fn summary(
    vmms: &Vmms,
    collection: Uuid,
    tasks: &[MemberTask],
    failures: Failures,
) -> Fault {
    let name = vmms
        .db
        .get::<Collection>(collection)
        .map_or_else(|_| guid(collection), |g| g.name.clone());
    let whole = fault!(CollectionPointFailed, failures.len(), tasks.len(), name)
        .about(Element::Collection(collection));
    failures.into_iter().fold(whole, |whole, (place, cause)| {
        let vm = tasks.get(place).map(|t| t.vm).unwrap_or_default();
        whole.caused_by(member_failed(vmms, vm, cause))
    })
}

/// That a machine could not take part.
pub(super) fn member_failed(vmms: &Vmms, vm: Uuid, cause: Fault) -> Fault {
    let name = vmms
        .db
        .get::<Vm>(vm)
        .map_or_else(|_| guid(vm), |v| v.name.clone());
    fault!(MemberFailed, name)
        .about(Element::Vm(vm))
        .caused_by(cause)
}

/// Takes back a point that was not finished: what was announced on each machine is reconciled, then the records go. A machine that
/// cannot be reconciled now is reconciled before the next operation on it.
pub(crate) async fn undo(vmms: &Arc<Vmms>, point: Uuid, members: &[MemberTask]) -> Result<()> {
    let mut failed = None;
    for member in members {
        if vmms.db.get::<Vm>(member.vm).is_err() {
            continue;
        }
        let _lock = vmms.lock(member.vm).await;
        let _paused = merge::pause_merges(vmms, member.vm).await;
        if let Err(error) = merge::reconcile(vmms, member.vm).await {
            failed.get_or_insert(member_failed(vmms, member.vm, error));
        }
    }
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
