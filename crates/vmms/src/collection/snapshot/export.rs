//! Exporting a collection's snapshot: like a collection's point, each member into `<directory>/<VMGUID>/`, with its memory where
//! the snapshot has any.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use engine::{Claims, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::{CollectionPoint, CollectionSnapshot};
use super::finished;
use crate::collection::export::Whole;
use crate::collection::member::{self, MemberExport};
use crate::job::{ExportedMachine, JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::Asked;
use crate::snapshot::Snapshot;
use crate::{Effect, Element, Fault, Result, Vmms, fault, guid};

/// Exports a snapshot of a collection, one member after the other, all or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportCollectionSnapshot {
    /// The collection's snapshot.
    pub snapshot: Uuid,
    /// The point or snapshot of the collection whose export this one builds on.
    pub base: Option<Uuid>,
    /// Where to.
    pub directory: PathBuf,
    /// What of which machine, by the GUIDs of the machines; `point` is the member's snapshot.
    pub members: Vec<MemberExport>,
    /// Whether what would be differences to the base is written whole.
    pub merge: bool,
}

#[async_trait]
impl Work<Machines> for ExportCollectionSnapshot {
    fn traits(&self) -> Traits {
        concrete(
            Service::CollectionSnapshot,
            62,
            "Exporting a snapshot of a collection",
            Recovery::Resume,
        )
        .suspendable()
    }

    fn claims(&self) -> Claims {
        member::export_claims(self.snapshot, self.base, &self.directory, &self.members)
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        let whole = Whole::Snapshot(self.snapshot, self.base.filter(|_| self.merge));
        crate::collection::export::run(vmms, ctx, whole, &self.directory, &self.members).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        crate::export::undo(vmms, ctx).await
    }
}

/// Starts a job that exports a snapshot of a collection; returns the job. `base`: a point or snapshot of the collection. `storage`:
/// whether the disks are exported. `merge`: what would be differences to the base is written whole.
///
/// Refused at once: what [`crate::collection::export_point`] refuses.
pub async fn export_snapshot(
    vmms: &Arc<Vmms>,
    snapshot: Uuid,
    base: Option<Uuid>,
    directory: &Path,
    storage: bool,
    merge: bool,
    asked: &Asked,
) -> Result<Uuid> {
    let about = |fault: Fault| fault.about(Element::CollectionSnapshot(snapshot));
    let record = finished(vmms, snapshot)?;
    let known = match base {
        Some(base) => Some(base_of(vmms, &record, base).map_err(about)?),
        None => None,
    };
    if !directory.is_absolute() {
        let why = "it is not absolute";
        return Err(fault!(PathNotUsable, directory.display(), why));
    }
    let mut members = Vec::new();
    for member in &record.members {
        let part = vmms.db.get::<Snapshot>(member.point)?;
        let beneath = match (base, &known) {
            (Some(base), Some(known)) => {
                let found = known.iter().find(|(vm, _)| *vm == member.vm);
                let (_, id) = found.ok_or_else(|| {
                    about(fault!(BaseWithoutMachine, guid(base), guid(member.vm)))
                })?;
                Some(*id)
            }
            _ => None,
        };
        members.push(MemberExport {
            vm: member.vm,
            point: member.point,
            base: beneath.filter(|_| !merge),
            disks: match storage {
                true => part.disks.iter().map(|d| d.uid).collect(),
                false => Vec::new(),
            },
        });
    }
    let mut affected = vec![
        (Element::CollectionSnapshot(snapshot), Effect::Other),
        (Element::Collection(record.collection), Effect::Other),
    ];
    for member in &members {
        affected.push((Element::Vm(member.vm), Effect::Performance));
        affected.push((Element::Snapshot(member.point), Effect::Other));
    }
    let mut submission = asked.submission(affected);
    let machine = |m: &MemberExport| ExportedMachine {
        vm: m.vm,
        ..ExportedMachine::default()
    };
    submission.output = Output {
        directory: Some(directory.to_owned()),
        point: Some(snapshot),
        base,
        subject: Some(record.collection),
        machines: members.iter().map(machine).collect(),
        ..Output::default()
    };
    let task = ExportCollectionSnapshot {
        snapshot,
        base,
        directory: directory.to_owned(),
        members,
        merge: merge && base.is_some(),
    };
    vmms.submit(task, submission).await
}

/// The instants of a base by machine. It is of the same collection and older.
fn base_of(vmms: &Vmms, record: &CollectionSnapshot, base: Uuid) -> Result<Vec<(Uuid, Uuid)>> {
    let (collection, sequence, members) = match vmms.db.get::<CollectionSnapshot>(base) {
        Ok(found) => {
            let found = finished(vmms, found.id)?;
            (found.collection, found.sequence, found.members.clone())
        }
        Err(_) => {
            let found = vmms.db.get::<CollectionPoint>(base)?;
            if !found.complete {
                return Err(fault!(PointIncomplete, guid(base)));
            }
            (found.collection, found.sequence, found.members.clone())
        }
    };
    if collection != record.collection {
        let of = (guid(collection), guid(record.collection));
        return Err(fault!(NotOfCollection, guid(base), of.0, of.1));
    }
    if sequence >= record.sequence {
        return Err(fault!(BaseNotOlder, guid(base), guid(record.id)));
    }
    Ok(members.into_iter().map(|m| (m.vm, m.point)).collect())
}
