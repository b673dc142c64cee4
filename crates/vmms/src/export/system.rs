//! Exporting a whole machine, or one of its snapshots (ExportSystemDefinition).
//!
//! What is exported is always a frozen instant: the snapshot that was named, else one that is taken for the time of the
//! export. Each exported instant is a directory with a manifest, of the same layout as the export of a reference point; the
//! machine's other snapshots, where they are wanted, lie in `Snapshots/<GUID>` below it, each differing from the one it
//! descends from.
//!
//! A differential export whose outputs shall be merged (BackupIntent 1) is written as a whole image at once: it holds what the base's
//! export and the differences make together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use disk::atomic::Slot;
use disk::manifest::{HexHash, PlainFile, RelativePath};
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::own::Wanted;
use super::{Made, Part, layout, own, repair};
use crate::job::{JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::{Asked, Power, Vm};
use crate::point::{self, Consistency, Point};
use crate::snapshot::{self, Definition, Snapshot, SnapshotKind};
use crate::{Effect, Element, Fault, Kind, Result, Vmms, fault, guid};

/// Exports a machine or one of its snapshots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportSystem {
    /// The machine.
    pub vm: Uuid,
    /// What and how.
    pub order: SystemExport,
}

#[async_trait]
impl Work<Machines> for ExportSystem {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            62,
            "Exporting a virtual machine",
            Recovery::Undo,
        )
        .suspendable()
    }

    fn claims(&self) -> Claims {
        let order = &self.order;
        Claims {
            reads: order
                .snapshot
                .iter()
                .chain(&order.others)
                .copied()
                .collect(),
            builds_on: order.base.into_iter().collect(),
            writes_to: vec![order.directory.clone()],
            // It may take a snapshot of its own.
            ..Claims::of_machine(self.vm, Access::Shared, Layers::Kept, &[])
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.vm, &self.order).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, self.vm, &self.order).await
    }
}

/// Role of the memory in a manifest.
pub(crate) const RUNTIME: &str = "runtime-state";

/// What to export of a machine and how, after Msvm_VirtualSystemExportSettingData.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemExport {
    /// The snapshot to export; one of its own is taken where there is none.
    pub snapshot: Option<Uuid>,
    /// Whether the snapshot was taken for this export and goes with it. Filled in by [`export_system`].
    #[serde(default)]
    pub own: bool,
    /// The machine's other snapshots that are exported too. Filled in by [`export_system`].
    #[serde(default)]
    pub others: Vec<Uuid>,
    /// The point or snapshot whose export this one builds on.
    pub base: Option<Uuid>,
    /// Where to.
    pub directory: PathBuf,
    /// Whether to make a directory named after the machine's GUID there.
    pub subdirectory: bool,
    /// Whether the disks are exported.
    pub storage: bool,
    /// Whether memory is exported, where the instant has any.
    pub runtime: bool,
    /// Disks to leave out, by instance id or resource id.
    pub excluded: Vec<String>,
    /// Whether the machine's snapshots are exported too.
    pub all_snapshots: bool,
    /// How a snapshot taken for the export is to be.
    pub live: LiveState,
    /// Whether a differential export is to become a whole image at the target.
    pub merge: bool,
}

/// How the instant is taken where no snapshot was named (CaptureLiveState).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LiveState {
    /// 0: as after a power cut.
    Crash,
    /// 1: with its memory.
    Saved,
    /// 2: with the guest's file systems frozen.
    Application,
}

/// Starts a job that exports a machine; returns the job.
///
/// Refused at once: planned machines, snapshots and bases of other machines, bases that are not older or do not know a
/// disk, unknown disks, and relative directories. What the directory holds is looked at by the job.
pub async fn export_system(
    vmms: &Arc<Vmms>,
    vm: Uuid,
    mut order: SystemExport,
    asked: &Asked,
) -> Result<Uuid> {
    let record = vmms.db.get::<Vm>(vm)?;
    if record.planned {
        return Err(fault!(
            WrongVmState,
            record.name,
            "planned",
            "exporting",
            "realized"
        )
        .about(Element::Vm(vm)));
    }
    if !order.directory.is_absolute() {
        return Err(fault!(
            PathNotUsable,
            order.directory.display(),
            "it is not absolute"
        ));
    }
    let mut affected = vec![(Element::Vm(vm), Effect::Performance)];
    match order.snapshot {
        Some(id) => {
            let snapshot = vmms.db.get::<Snapshot>(id)?;
            if snapshot.vm != vm {
                return Err(
                    fault!(SnapshotOfOtherVm, guid(id), guid(snapshot.vm), guid(vm))
                        .about(Element::Snapshot(id)),
                );
            }
            let instant = snapshot.as_point();
            let base = order.base.map(|b| instant_of(vmms, b)).transpose()?;
            admit(vmms, &snapshot, base.as_deref())?;
            let disks = chosen(&order, &instant)?;
            if let Some(base) = &base {
                check_base(base, &instant, &disks)?;
            }
            affected.push((Element::Snapshot(id), Effect::Other));
        }
        None => {
            point::create::admit(vmms, &record)?;
            order.snapshot = Some(Uuid::new_v4());
            order.own = true;
            if let Some(base) = order.base {
                instant_of(vmms, base)?;
            }
        }
    }
    if order.all_snapshots {
        let mut others = snapshot::of_vm(vmms, vm);
        others.retain(|s| Some(s.id) != order.snapshot && s.kind != SnapshotKind::Recovery);
        order.others = others.iter().map(|s| s.id).collect();
    }
    let mut submission = asked.submission(affected);
    submission.output = Output {
        directory: Some(order.directory.clone()),
        subject: Some(vm),
        base: order.base,
        ..Output::default()
    };
    vmms.submit(ExportSystem { vm, order }, submission).await
}

/// The instant that an identifier of a point or of a snapshot means.
pub(crate) fn instant_of(vmms: &Vmms, id: Uuid) -> Result<Arc<Point>> {
    match vmms.db.get::<Snapshot>(id) {
        Ok(snapshot) => Ok(Arc::new(snapshot.as_point())),
        Err(_) => vmms.db.get::<Point>(id),
    }
}

pub(crate) fn admit(vmms: &Vmms, snapshot: &Snapshot, base: Option<&Point>) -> Result<()> {
    let about = |fault: Fault| fault.about(Element::Snapshot(snapshot.id));
    if !snapshot.complete {
        return Err(about(fault!(SnapshotIncomplete, guid(snapshot.id))));
    }
    super::admit_disks(vmms, &snapshot.as_point(), base).map_err(about)
}

fn check_base(base: &Point, instant: &Point, disks: &[Uuid]) -> Result<()> {
    for disk in instant.disks.iter().filter(|d| disks.contains(&d.uid)) {
        if !base.disks.iter().any(|d| d.uid == disk.uid) {
            return Err(fault!(BaseWithoutDisk, guid(base.id), disk.device));
        }
    }
    Ok(())
}

/// The uids of the disks that are exported.
fn chosen(order: &SystemExport, instant: &Point) -> Result<Vec<Uuid>> {
    if !order.storage {
        return Ok(Vec::new());
    }
    let excluded = match order.excluded.as_slice() {
        [] => Vec::new(),
        texts => super::choose(instant, texts)?
            .iter()
            .map(|d| d.uid)
            .collect(),
    };
    Ok(instant
        .disks
        .iter()
        .map(|d| d.uid)
        .filter(|uid| !excluded.contains(uid))
        .collect())
}

/// Where the manifest may go.
fn roots(order: &SystemExport, instant: &Point) -> Vec<PathBuf> {
    let own = if order.subdirectory {
        layout::machine_dir(&order.directory, instant.vm)
    } else {
        order.directory.clone()
    };
    let further = own.join(guid(instant.id));
    vec![own, further]
}

/// Exports.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    order: &SystemExport,
) -> Result<()> {
    let name = vmms.db.get::<Vm>(vm)?.name.clone();
    export(vmms, ctx, vm, order)
        .await
        .map_err(|cause| match cause.kind() {
            Kind::Cancelled => cause,
            _ => fault!(SystemExportFailed, name, order.directory.display())
                .about(Element::Vm(vm))
                .caused_by(cause),
        })
}

async fn export(vmms: &Arc<Vmms>, ctx: &JobContext, vm: Uuid, order: &SystemExport) -> Result<()> {
    ctx.checkpoint().await?;
    let id = order
        .snapshot
        .ok_or_else(|| fault!(Internal, "an export without a snapshot"))?;
    if order.own {
        take_own(vmms, ctx, vm, id, order.live).await?;
    }
    let main = vmms.db.get::<Snapshot>(id)?;
    let jobs = plan(vmms, ctx, &main, order).await?;
    let mut needed = Vec::new();
    for (snapshot, part) in jobs.iter().filter(|(_, part)| !part.is_whole()) {
        let memory = snapshot.memory.as_deref().filter(|_| order.runtime);
        let bytes = part.needs(vmms, ctx).await?.bytes + length(memory);
        needed.push((part, bytes));
    }
    super::check_room(&needed)?;
    let count = u64::try_from(jobs.len()).unwrap_or(1).max(1);
    let mut made: Option<Made> = None;
    let mut doubtful = BTreeMap::new();
    // The machine itself comes last: its manifest makes the whole an export.
    for (i, (snapshot, part)) in (0_u64..).zip(&jobs) {
        ctx.checkpoint().await?;
        let told = ctx.clone();
        let progress = move |done: u64, total: u64| {
            if count == 1 {
                told.progress(done, total);
            } else {
                // Shares of the whole, in thousandths of a part: parts differ in what they count.
                told.progress(
                    i * 1000 + (done * 1000).checked_div(total).unwrap_or(0),
                    count * 1000,
                );
            }
        };
        if !part.is_whole() {
            let mut manifest = part.write(vmms, ctx, progress).await?;
            if let Some(memory) = snapshot.memory.clone().filter(|_| order.runtime) {
                manifest.files.push(add_memory(ctx, part, &memory).await?);
            }
            if order.all_snapshots {
                let definition = Definition::of(snapshot, snapshot.id == id);
                let file = add_definition(ctx, part, definition).await?;
                manifest.files.push(file);
            }
            if let (true, Some(base)) = (order.merge && snapshot.id == id, order.base) {
                manifest.decisions.push(merged(base));
            }
            if snapshot.id == id {
                ctx.no_return().await?;
            }
            part.seal(ctx, manifest).await?;
        }
        let whole = part.made()?;
        doubtful.insert(snapshot.id, whole.doubtful.clone());
        made = Some(whole);
    }
    if let Some(made) = made {
        let memory = jobs
            .last()
            .map(|(_, p)| p.root().join(runtime_name(vm)))
            .filter(|f| f.exists());
        made.warn(ctx).await?;
        ctx.output(|output| {
            made.tell_alone(output);
            if let Some(machine) = output.machines.first_mut() {
                machine.runtime = memory;
            }
        })
        .await?;
    }
    vmms.db
        .change(|draft| {
            for (snapshot, part) in &jobs {
                if let Ok(record) = draft.get_mut::<Snapshot>(snapshot.id) {
                    let root = part.root();
                    record.exports.retain(|e| e != root);
                    record.exports.push(root.to_owned());
                    repair::note_lists(vmms, record.id, &mut record.disks);
                    let doubtful = doubtful.get(&record.id).map_or(&[][..], Vec::as_slice);
                    repair::note_decisions(&mut record.export_decisions, root, doubtful);
                }
            }
            Ok(())
        })
        .await?;
    if order.own {
        snapshot::create::forget(vmms, id).await?;
    }
    Ok(())
}

/// Bytes of a memory file.
pub(crate) fn length(memory: Option<&Path>) -> u64 {
    let found = memory.and_then(|m| std::fs::metadata(m).ok());
    found.map_or(0, |m| m.len())
}

/// Copies a snapshot's memory into its export; returns its entry.
pub(crate) async fn add_memory(ctx: &JobContext, part: &Part, memory: &Path) -> Result<PlainFile> {
    let (memory, cancel) = (memory.to_owned(), ctx.cancel_flag());
    let name = runtime_name(part.point.vm);
    let path = RelativePath::new(name.clone())?;
    let copy = move |slot: &Slot| copy_memory(&memory, slot, path, &cancel);
    part.file(ctx, name, copy).await
}

/// Writes what is known of a snapshot beside its disks into its export; returns its entry.
async fn add_definition(
    ctx: &JobContext,
    part: &Part,
    definition: Definition,
) -> Result<PlainFile> {
    let name = definition_name(part.point.vm);
    let path = RelativePath::new(name.clone())?;
    let write = move |slot: &Slot| {
        let bytes = serde_json::to_vec_pretty(&definition).map_err(|e| fault!(Internal, e))?;
        disk::atomic::AtomicFile::fill(slot, &bytes).map_err(own::named)?;
        Ok(PlainFile {
            role: Definition::ROLE.to_owned(),
            path,
            bytes: bytes.len() as u64,
            blake3: HexHash(blake3::hash(&bytes)),
        })
    };
    part.file(ctx, name, write).await
}

fn definition_name(vm: Uuid) -> String {
    format!("{}/{}.snapshot.json", layout::MACHINES, guid(vm))
}

/// Why an export is whole although a base was named.
pub(crate) fn merged(base: Uuid) -> disk::manifest::Decision {
    disk::manifest::Decision {
        disk: None,
        decision: "the disks are written whole".to_owned(),
        reason: format!(
            "BackupIntent is to merge: what base {} and the changes since make together",
            guid(base)
        ),
    }
}

impl Wanted {
    /// The export may also write the machine's memory.
    pub(crate) fn may_have_memory(&mut self) {
        let memory = PathBuf::from(runtime_name(self.point.vm));
        if !self.files.contains(&memory) {
            self.files.push(memory);
        }
    }
}

fn runtime_name(vm: Uuid) -> String {
    format!("{}/{}.vmstate", layout::MACHINES, guid(vm))
}

/// Takes the snapshot that lives as long as this export.
async fn take_own(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    id: Uuid,
    live: LiveState,
) -> Result<()> {
    let record = vmms.db.get::<Vm>(vm)?;
    let (kind, consistency) = match (live, record.power) {
        (LiveState::Saved, _) | (_, Power::Saved) => (SnapshotKind::Full, Some(Consistency::Crash)),
        (LiveState::Application, Power::Running) => {
            (SnapshotKind::Recovery, Some(Consistency::Application))
        }
        _ => (SnapshotKind::Recovery, Some(Consistency::Crash)),
    };
    snapshot::create::take_for_export(vmms, ctx, vm, id, kind, consistency).await
}

/// Chooses the directories of all parts, durably: no other export takes them, and undoing finds them.
async fn plan(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    main: &Arc<Snapshot>,
    order: &SystemExport,
) -> Result<Vec<(Arc<Snapshot>, Part)>> {
    let instant = Arc::new(main.as_point());
    let base = order
        .base
        .filter(|_| !order.merge)
        .map(|b| instant_of(vmms, b))
        .transpose()?;
    let disks = chosen(order, &instant)?;
    admit(vmms, main, base.as_deref())?;
    if let Some(base) = &base {
        check_base(base, &instant, &disks)?;
    }
    let others = order
        .others
        .iter()
        .map(|id| vmms.db.get::<Snapshot>(*id))
        .collect::<Result<Vec<_>>>()?;
    let claimed = |point: &Arc<Point>, directory: &Path, roots, disks: &[Uuid]| {
        let mut files = super::files(point, disks)?;
        files.push(definition_name(point.vm).into());
        let mut wanted = Wanted {
            point: Arc::clone(point),
            directory: directory.to_owned(),
            roots,
            files,
        };
        wanted.may_have_memory();
        Ok::<_, Fault>(wanted)
    };
    let wanted = claimed(&instant, &order.directory, roots(order, &instant), &disks)?;
    let whole = Part::open(vmms, ctx, wanted, base, &disks).await?;
    let mut parts: Vec<(Arc<Snapshot>, Part)> = Vec::new();
    for other in others {
        let point = Arc::new(other.as_point());
        // One after the other, so that each parent is written before its children.
        let base = other.parent.and_then(|p| {
            let found = parts.iter().find(|(s, _)| s.id == p);
            found.map(|(_, part)| Arc::clone(&part.point))
        });
        let disks: Vec<Uuid> = if order.storage {
            point.disks.iter().map(|d| d.uid).collect()
        } else {
            Vec::new()
        };
        let base = base.filter(|b| check_base(b, &point, &disks).is_ok());
        let directory = whole.root().join(layout::SNAPSHOTS);
        let root = directory.join(guid(other.id));
        let wanted = claimed(&point, &directory, vec![root], &disks)?;
        parts.push((other, Part::open(vmms, ctx, wanted, base, &disks).await?));
    }
    parts.push((Arc::clone(main), whole));
    Ok(parts)
}

/// Copies the memory into the export; returns its entry.
fn copy_memory(
    memory: &Path,
    slot: &Slot,
    path: RelativePath,
    cancel: &disk::CancelFlag,
) -> Result<PlainFile> {
    use std::io::{Read, Seek, Write};
    let read = |e: std::io::Error| Fault::io("read", memory, &e);
    let write = |e: std::io::Error| Fault::io("write", slot.target(), &e);
    let mut from = std::fs::File::open(memory).map_err(read)?;
    let file = disk::atomic::AtomicFile::start(slot)?;
    let mut to = file.file();
    to.rewind().map_err(write)?;
    let mut hash = blake3::Hasher::new();
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0_u64);
    loop {
        cancel.check()?;
        let n = from.read(&mut buffer).map_err(read)?;
        let Some(piece) = buffer.get(..n).filter(|p| !p.is_empty()) else {
            break;
        };
        hash.update(piece);
        to.write_all(piece).map_err(write)?;
        bytes += n as u64;
    }
    file.commit().map_err(own::named)?;
    Ok(PlainFile {
        role: RUNTIME.to_owned(),
        path,
        bytes,
        blake3: HexHash(hash.finalize()),
    })
}

/// Takes back a failed or stopped export: its files, and the snapshot that was taken for it.
pub(crate) async fn undo(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    order: &SystemExport,
) -> Result<()> {
    // The machine before the files: it may be waiting to go on.
    if let Some(id) = order.snapshot.filter(|_| order.own) {
        snapshot::create::undo_for_export(vmms, ctx, vm, id).await?;
    }
    super::undo(vmms, ctx).await
}
