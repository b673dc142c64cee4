//! Taking members together: what a point and a snapshot of a collection have in common.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::instant::{self, Doing, Failures, Lock, Member, Part, side_by_side};
use super::manage::fits;
use super::member::MemberTask;
use super::record::{CollectionInstant, next_sequence};
use super::{Collection, CollectionKind, MemberPoint};
use crate::db::Draft;
use crate::job::JobContext;
use crate::machine::Vm;
use crate::merge;
use crate::point::create::{self, Begun, Marked, New};
use crate::point::{Consistency, PointType};
use crate::{Effect, Element, Fault, Result, Vmms, fault, guid, names};

/// An instant of a collection that is being taken.
pub(super) struct Taking<'a> {
    /// The collection.
    pub(super) collection: Uuid,
    /// The GUID of the new point or snapshot.
    pub(super) whole: Uuid,
    /// Its members, in the order their locks are taken.
    pub(super) tasks: &'a [MemberTask],
    /// Name for people.
    pub(super) name: &'a str,
    /// How the members' points are kept.
    pub(super) kind: PointType,
    /// What was asked for.
    pub(super) consistency: Option<Consistency>,
}

/// The collection, if an instant of it can be taken; `what` names instants of that kind.
pub(super) fn admit(vmms: &Vmms, collection: Uuid, what: &str) -> Result<Arc<Collection>> {
    let about = |fault: Fault| fault.about(Element::Collection(collection));
    let record = vmms.db.get::<Collection>(collection)?;
    if record.kind == CollectionKind::Management {
        let why = format!("{what} are taken of collections of machines");
        return Err(about(fault!(WrongType, "Collection", why)));
    }
    if record.members.is_empty() {
        return Err(about(fault!(CollectionEmpty, record.name)));
    }
    fits(&record.name, record.members.len()).map_err(about)?;
    for vm in &record.members {
        create::admit(vmms, &*vmms.db.get::<Vm>(*vm)?)?;
    }
    Ok(record)
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

/// The name given, or the one that it has without one.
pub(super) fn named(given: &str, default: impl FnOnce() -> String) -> Result<String> {
    let name = match given.trim() {
        "" => default(),
        name => name.to_owned(),
    };
    names::check("ElementName", &name)?;
    Ok(name)
}

/// What taking it affects: the collection and its machines; the new instants are created.
pub(super) fn affected(
    collection: Uuid,
    whole: Element,
    tasks: &[MemberTask],
    part: fn(Uuid) -> Element,
) -> Vec<(Element, Effect)> {
    let mut affected = vec![
        (Element::Collection(collection), Effect::Other),
        (whole, Effect::Create),
    ];
    for task in tasks {
        affected.push((Element::Vm(task.vm), Effect::Other));
        affected.push((part(task.point), Effect::Create));
    }
    affected
}

/// Takes the locks of the members, in their order, unless the job is told to stop meanwhile.
pub(super) async fn lock_members(
    vmms: &Vmms,
    ctx: &JobContext,
    members: &[MemberTask],
) -> Result<Vec<Lock>> {
    let mut locks = Vec::new();
    for member in members {
        locks.push(tokio::select! {
            lock = vmms.lock(member.vm) => Arc::new(lock),
            stop = ctx.stop_asked() => return Err(stop),
        });
    }
    Ok(locks)
}

/// Reconciles the layers of all members that are still there, to take something back: their locks, and the first failure. A machine that
/// cannot be reconciled now is reconciled before the next operation on it.
pub(super) async fn reconcile_members(
    vmms: &Arc<Vmms>,
    members: &[MemberTask],
) -> (Vec<Lock>, Option<Fault>) {
    let (mut locks, mut failed) = (Vec::new(), None);
    for member in members {
        if vmms.db.get::<Vm>(member.vm).is_err() {
            continue;
        }
        locks.push(Arc::new(vmms.lock(member.vm).await));
        let _paused = merge::pause_merges(vmms, member.vm).await;
        if let Err(error) = merge::reconcile(vmms, member.vm).await {
            failed.get_or_insert(member_failed(vmms, member.vm, error));
        }
    }
    (locks, failed)
}

impl Taking<'_> {
    /// The failure of the whole.
    pub(super) fn failed(&self, vmms: &Vmms, failures: Failures) -> Fault {
        summary(vmms, self.collection, self.tasks, failures)
    }

    /// Plans the instant of each member; nothing has changed yet. The members' locks are held.
    pub(super) async fn begin(&self, vmms: &Arc<Vmms>, locks: &[Lock]) -> Result<Vec<Member>> {
        let (mut members, mut failures) = (Vec::new(), Vec::new());
        for (place, (task, lock)) in self.tasks.iter().zip(locks).enumerate() {
            let paused = merge::pause_merges(vmms, task.vm).await;
            let order = New {
                point: task.point,
                kind: self.kind,
                consistency: self.consistency,
                name: self.name,
            };
            match create::begin(vmms, task.vm, &order).await {
                Ok(begun) => members.push(Member {
                    begun,
                    lock: Arc::clone(lock),
                    _paused: paused,
                }),
                Err(failure) => failures.push((place, failure)),
            }
        }
        if failures.is_empty() {
            Ok(members)
        } else {
            Err(self.failed(vmms, failures))
        }
    }

    /// Writes down what is about to happen, on all machines in one transaction; `running` says of which the guest runs. `put` writes
    /// the members' records and that of the whole.
    pub(super) async fn announce(
        &self,
        vmms: &Vmms,
        running: &[bool],
        put: impl FnOnce(&mut Draft<'_>, &CollectionInstant) -> Result<()> + Send,
    ) -> Result<CollectionInstant> {
        let part = |(task, running): (&MemberTask, &bool)| MemberPoint {
            vm: task.vm,
            point: task.point,
            pause_us: 0,
            running: *running,
        };
        let members = self.tasks.iter().zip(running).map(part).collect();
        vmms.db
            .change(|draft| {
                draft.get_mut::<Collection>(self.collection)?;
                let at = CollectionInstant {
                    id: self.whole,
                    collection: self.collection,
                    name: self.name.to_owned(),
                    consistency: Consistency::Crash,
                    instant: SystemTime::now(),
                    sequence: next_sequence(draft, self.collection),
                    complete: false,
                    members,
                    skew_us: 0,
                    skew_limit_us: 0,
                };
                put(draft, &at)?;
                Ok(at)
            })
            .await
    }

    /// Writes down what was reached: trees, members' instants and that of the collection in one transaction. `put` writes the
    /// record of the member at that place, `whole` that of the collection.
    pub(super) async fn write_down(
        &self,
        vmms: &Arc<Vmms>,
        mut at: CollectionInstant,
        members: Vec<Member>,
        reached: instant::Together,
        put: impl Fn(&mut Draft<'_>, usize, &Marked) + Send,
        whole: impl FnOnce(&mut Draft<'_>, CollectionInstant) + Send,
    ) -> Result<()> {
        at.instant = reached.instant;
        at.skew_us = micros(reached.skew);
        at.skew_limit_us = micros(reached.skew_limit);
        at.consistency = least(&reached.members);
        for (member, part) in at.members.iter_mut().zip(&reached.members) {
            member.pause_us = micros(part.reached.pause);
            member.running = part.running;
        }
        // The locks live until the records are written.
        let (begun, held): (Vec<Begun>, Vec<_>) = members
            .into_iter()
            .map(|m| (m.begun, (m.lock, m._paused)))
            .unzip();
        let mut looking: Vec<Doing<'_, Result<Marked>>> = Vec::new();
        for (begun, part) in begun.into_iter().zip(reached.members) {
            looking.push(Box::pin(begun.look(vmms, part.reached)));
        }
        let (mut marked, mut failures): (Vec<(usize, Marked)>, Failures) = (Vec::new(), Vec::new());
        for (place, look) in side_by_side(looking).await.into_iter().enumerate() {
            match look {
                Ok(found) => {
                    if let Err(failure) = &found.maps {
                        failures.push((place, failure.clone()));
                    }
                    marked.push((place, found));
                }
                Err(failure) => failures.push((place, failure)),
            }
        }
        at.complete = true;
        let all = failures.is_empty();
        vmms.db
            .change(|draft| {
                for (place, found) in &marked {
                    found.record_layers(draft)?;
                    if all {
                        put(draft, *place, found);
                    }
                }
                if all {
                    whole(draft, at);
                }
                Ok(())
            })
            .await?;
        drop(held);
        if all {
            return Ok(());
        }
        Err(self.failed(vmms, failures))
    }
}

/// The least that any running member reached.
fn least(members: &[Part]) -> Consistency {
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
