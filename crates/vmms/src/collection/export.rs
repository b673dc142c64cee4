//! Exporting a collection's point: each member into `<directory>/<VMGUID>/`, one after the other, all or none.
//!
//! Every member is looked at before anything is written, so that all that cannot be exported are told at once, each
//! with its own failure. The manifests, which make the directories exports, are written when all disks of all members are there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use disk::manifest::Manifest;
use engine::{Claims, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::together::member_failed;
use super::{CollectionPoint, MemberPoint};
use crate::collection::member::{self, MemberExport};
use crate::export::{self, Part};
use crate::job::{
    Activity, ExportedMachine, JobClass, JobContext, Machines, Output, Service, Traits, concrete,
};
use crate::machine::Asked;
use crate::point::Point;
use crate::snapshot::Snapshot;
use crate::{Effect, Element, Fault, Kind, Result, Vmms, fault, guid};

/// Exports a point of a collection, one member after the other, all or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportCollectionPoint {
    /// The collection point.
    pub point: Uuid,
    /// The base of a differential export.
    pub base: Option<Uuid>,
    /// Where to.
    pub directory: PathBuf,
    /// What of which machine, by the GUIDs of the machines.
    pub members: Vec<MemberExport>,
}

#[async_trait]
impl Work<Machines> for ExportCollectionPoint {
    fn traits(&self) -> Traits {
        concrete(
            Service::CollectionReferencePoint,
            0,
            "Exporting a reference point of a collection",
            Recovery::Resume,
        )
        .of_class(JobClass::CollectionPointExport)
        .suspendable()
        .shown_as(Activity::Exporting)
    }

    fn claims(&self) -> Claims {
        member::export_claims(self.point, self.base, &self.directory, &self.members)
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(
            vmms,
            ctx,
            Whole::Point(self.point),
            &self.directory,
            &self.members,
        )
        .await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        export::undo(vmms, ctx).await
    }
}

/// The disks to export of a machine, by their identifiers; none means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineDisks {
    /// The machine.
    pub vm: Uuid,
    /// Identifiers as [`crate::export::export_point`] takes them.
    pub disks: Vec<String>,
}

/// Starts a job that exports a collection's point; returns the job. `only`: these machines and disks; empty means all.
///
/// Refused at once: unknown machines and disks, a base of another collection, a newer one, one that does not know a machine, and
/// relative directories. What is wrong with the content of a member, or with its directory, fails the job, with a failure for each
/// such member.
pub async fn export_point(
    vmms: &Arc<Vmms>,
    point: Uuid,
    base: Option<Uuid>,
    directory: &Path,
    only: &[MachineDisks],
    asked: &Asked,
) -> Result<Uuid> {
    let about = |fault: Fault| fault.about(Element::CollectionPoint(point));
    let record = vmms.db.get::<CollectionPoint>(point)?;
    let base_record = base
        .map(|b| vmms.db.get::<CollectionPoint>(b))
        .transpose()?;
    if !record.complete {
        return Err(about(fault!(PointIncomplete, guid(point))));
    }
    if let Some(base) = &base_record {
        if base.collection != record.collection {
            let of = (guid(base.collection), guid(record.collection));
            return Err(about(fault!(NotOfCollection, guid(base.id), of.0, of.1)));
        }
        if base.sequence >= record.sequence {
            return Err(about(fault!(BaseNotOlder, guid(base.id), guid(point))));
        }
    }
    if !directory.is_absolute() {
        return Err(fault!(
            PathNotUsable,
            directory.display(),
            "it is not absolute"
        ));
    }
    let mut members = Vec::new();
    for (member, disks) in choose(&record, only)? {
        let own = vmms.db.get::<Point>(member.point)?;
        let base = match &base_record {
            None => None,
            Some(base) => {
                let known = base.part_of(member.vm);
                let known = known.ok_or_else(|| {
                    about(fault!(BaseWithoutMachine, guid(base.id), guid(member.vm)))
                })?;
                Some(known)
            }
        };
        members.push(MemberExport {
            vm: member.vm,
            point: member.point,
            base,
            disks: export::choose(&own, disks)?.iter().map(|d| d.uid).collect(),
        });
    }
    let mut affected = vec![
        (Element::CollectionPoint(point), Effect::Other),
        (Element::Collection(record.collection), Effect::Other),
    ];
    for member in &members {
        affected.push((Element::Vm(member.vm), Effect::Performance));
        affected.push((Element::Point(member.point), Effect::Other));
    }
    let mut submission = asked.submission(affected);
    submission.output = Output {
        directory: Some(directory.to_owned()),
        point: Some(point),
        base,
        subject: Some(record.collection),
        machines: members
            .iter()
            .map(|m| ExportedMachine {
                vm: m.vm,
                ..ExportedMachine::default()
            })
            .collect(),
        ..Output::default()
    };
    let task = ExportCollectionPoint {
        point,
        base,
        directory: directory.to_owned(),
        members,
    };
    vmms.submit(task, submission).await
}

/// The members to export, with the identifiers of their disks.
fn choose<'a>(
    point: &'a CollectionPoint,
    only: &'a [MachineDisks],
) -> Result<Vec<(&'a MemberPoint, &'a [String])>> {
    if only.is_empty() {
        let none: &[String] = &[];
        return Ok(point.members.iter().map(|m| (m, none)).collect());
    }
    for (place, wanted) in only.iter().enumerate() {
        if point.part_of(wanted.vm).is_none() {
            return Err(fault!(NotAMember, guid(wanted.vm), guid(point.collection))
                .about(Element::CollectionPoint(point.id)));
        }
        if only.iter().take(place).any(|o| o.vm == wanted.vm) {
            return Err(fault!(
                InvalidValue,
                "VirtualMachinesToDisksToExport",
                guid(wanted.vm),
                "a machine is named twice"
            ));
        }
    }
    let wanted = |m: &'a MemberPoint| {
        only.iter()
            .find(|o| o.vm == m.vm)
            .map(|o| (m, o.disks.as_slice()))
    };
    Ok(point.members.iter().filter_map(wanted).collect())
}

/// What of a collection is exported.
#[derive(Clone, Copy)]
pub(crate) enum Whole {
    /// A point.
    Point(Uuid),
    /// A snapshot; with a base what would be differences to it is written whole.
    Snapshot(Uuid, Option<Uuid>),
}

impl Whole {
    /// That so many machines failed of so many.
    fn failed(self, failed: usize, of: usize, directory: &Path) -> Fault {
        let (what, about) = match self {
            Whole::Point(id) => ("reference point", Element::CollectionPoint(id)),
            Whole::Snapshot(id, _) => ("snapshot", Element::CollectionSnapshot(id)),
        };
        let (Whole::Point(id) | Whole::Snapshot(id, _)) = self;
        let what = format!("{what} {}", guid(id));
        fault!(
            CollectionExportFailed,
            failed,
            of,
            what,
            directory.display()
        )
        .about(about)
    }
}

/// Exports the point, or the snapshot.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    whole: Whole,
    directory: &Path,
    members: &[MemberExport],
) -> Result<()> {
    let failed = |failures: Vec<(Uuid, Fault)>| {
        let whole = whole.failed(failures.len(), members.len(), directory);
        failures.into_iter().fold(whole, |whole, (vm, cause)| {
            whole.caused_by(member_failed(vmms, vm, cause))
        })
    };
    let whole_of = whole;
    // A cancelled job is that, and no failure of a machine.
    let of_one = |vm: Uuid, cause: Fault| match cause.kind() {
        Kind::Cancelled => cause,
        _ => failed(vec![(vm, cause)]),
    };
    ctx.checkpoint().await?;
    let parts = begin(vmms, ctx, directory, members)
        .await
        .map_err(failed_or(&failed))?;
    if !parts.iter().all(Part::is_whole) {
        let mut totals = Vec::new();
        let mut needed = Vec::new();
        let mut failures = Vec::new();
        for part in &parts {
            ctx.checkpoint().await?;
            match part.needs(vmms, ctx).await {
                Ok(needs) => {
                    totals.push(needs.total);
                    needed.push((part, needs.bytes + memory_of(vmms, whole_of, part)));
                }
                Err(cause) if cause.kind() == Kind::Cancelled => return Err(cause),
                Err(cause) => failures.push((part.point.vm, cause)),
            }
        }
        if !failures.is_empty() {
            return Err(failed(failures));
        }
        export::check_room(&needed).map_err(|cause| {
            let all = members.len();
            whole_of.failed(all, all, directory).caused_by(cause)
        })?;
        let whole: u64 = totals.iter().sum();
        let mut before = 0;
        let mut manifests = Vec::new();
        for (part, total) in parts.iter().zip(totals) {
            ctx.checkpoint().await?;
            let progress = ctx.clone();
            let told = move |done: u64, _: u64| progress.progress(before + done.min(total), whole);
            // Sealed before the service ended.
            if !part.is_whole() {
                let written = match part.write(vmms, ctx, told).await {
                    Ok(manifest) => complete(vmms, ctx, whole_of, part, manifest).await,
                    Err(cause) => Err(cause),
                };
                let manifest = written.map_err(|cause| of_one(part.point.vm, cause))?;
                manifests.push((part, manifest));
            }
            before += total;
        }
        // The manifests make it an export: what comes before is nothing, what comes after is done.
        ctx.no_return().await?;
        for (part, manifest) in manifests {
            part.seal(ctx, manifest)
                .await
                .map_err(|cause| of_one(part.point.vm, cause))?;
        }
    }
    let mut made = Vec::new();
    for part in &parts {
        made.push(part.made().map_err(|cause| of_one(part.point.vm, cause))?);
    }
    let doubtful: Vec<Vec<export::Doubtful>> = made.iter().map(|m| m.doubtful.clone()).collect();
    for made in &made {
        made.warn(ctx).await?;
    }
    ctx.output(|output| {
        (output.bytes_read, output.bytes_written) = (0, 0);
        output.report.clear();
        output.decisions.clear();
        made.into_iter().for_each(|made| made.tell(output));
    })
    .await?;
    for (part, doubtful) in parts.iter().zip(&doubtful) {
        part.record(vmms, ctx, doubtful).await?;
    }
    Ok(())
}

/// Bytes of memory that are exported with a member.
fn memory_of(vmms: &Vmms, whole: Whole, part: &Part) -> u64 {
    let Whole::Snapshot(..) = whole else {
        return export::length(part.point.memory.as_deref());
    };
    let snapshot = vmms.db.get::<Snapshot>(part.point.id).ok();
    export::length(snapshot.as_ref().and_then(|s| s.memory.as_deref()))
}

/// Whether the instant of a member can be exported: a point while it has its data, a snapshot always.
fn admit(vmms: &Vmms, instant: &Point, base: Option<&Point>) -> Result<()> {
    match vmms.db.get::<Snapshot>(instant.id) {
        Ok(snapshot) => export::admit_snapshot(vmms, &snapshot, base),
        Err(_) => export::admit(vmms, instant, base),
    }
}

/// What an export has besides disks and configuration: the memory, and why that of a snapshot is whole.
async fn complete(
    vmms: &Vmms,
    ctx: &JobContext,
    whole: Whole,
    part: &Part,
    mut manifest: Manifest,
) -> Result<Manifest> {
    let Whole::Snapshot(_, merged) = whole else {
        if let Some(memory) = &part.point.memory {
            manifest
                .files
                .push(export::add_memory(ctx, part, memory).await?);
        }
        return Ok(manifest);
    };
    let snapshot = vmms.db.get::<Snapshot>(part.point.id)?;
    if let Some(memory) = &snapshot.memory {
        manifest
            .files
            .push(export::add_memory(ctx, part, memory).await?);
    }
    if let Some(base) = merged {
        manifest.decisions.push(export::merged(base));
    }
    Ok(manifest)
}

/// Why an export could not begin: failures of machines, or something about the whole.
enum Refusal {
    Machines(Vec<(Uuid, Fault)>),
    Whole(Fault),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Refusal::Whole(fault)
    }
}

fn failed_or(failed: &impl Fn(Vec<(Uuid, Fault)>) -> Fault) -> impl Fn(Refusal) -> Fault {
    move |refusal| match refusal {
        Refusal::Machines(failures) => failed(failures),
        Refusal::Whole(fault) => fault,
    }
}

/// Claims and makes the directories of all members. A resumed job has them already, and kept the content all the time.
async fn begin(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    directory: &Path,
    members: &[MemberExport],
) -> Result<Vec<Part>, Refusal> {
    let (mut parts, mut failures) = (Vec::new(), Vec::new());
    let fresh = ctx.notes::<Vec<serde_json::Value>>().is_none();
    let mut records = Vec::new();
    for member in members {
        let point = export::instant_of(vmms, member.point)?;
        let base = member.base.map(|b| export::instant_of(vmms, b));
        let base = base.transpose()?;
        if fresh && let Err(cause) = admit(vmms, &point, base.as_deref()) {
            failures.push((member.vm, cause));
        }
        records.push((point, base, member));
    }
    if !failures.is_empty() {
        return Err(Refusal::Machines(failures));
    }
    for (point, base, member) in records {
        let mut wanted = export::wanted(&point, directory, &member.disks)?;
        wanted.may_have_memory();
        match Part::open(vmms, ctx, wanted, base, &member.disks).await {
            Ok(part) => parts.push(part),
            Err(cause) if cause.kind() == Kind::Cancelled => return Err(cause.into()),
            Err(cause) => failures.push((member.vm, cause)),
        }
    }
    match failures.is_empty() {
        true => Ok(parts),
        false => Err(Refusal::Machines(failures)),
    }
}
