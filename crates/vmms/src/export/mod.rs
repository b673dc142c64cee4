//! Exporting a reference point into a directory.
//!
//! ```text
//! <ExportDirectory>/<VMGUID>/                      the first export of a machine into a directory
//!   Virtual Machines/<VMGUID>.json                 configuration at the instant
//!   Virtual Machines/<VMGUID>.guest.json           guest state
//!   Virtual Hard Disks/<disk>-<POINTGUID>.qcow2    full, or differential over the base's image (relative name)
//!   Virtual Hard Disks/<disk>-<POINTGUID>.map      the hash of each exported block
//!   manifest.json                                  written last
//!   <POINTGUID>/                                   each further point exported into the same directory: the same layout
//! ```
//!
//! So every directory with a manifest is one export of one point, never changed afterwards, and a chain of points can lie in one
//! directory or in several. A differential export looks for its base's export in the same directory first, then where
//! the base was exported to last. Where it finds none, its images name the base's image as a neighbour, and job and
//! manifest say so: whoever keeps the exports brings them together.
//!
//! Frozen layers are read straight from their files by the data plane, on threads for blocking work, without any
//! lock: the running job itself is the claim that keeps them ([`crate::point`]).
//!
//! What is written where, and what may be deleted again, is `own`'s.

mod disks;
pub(crate) mod layout;
pub(crate) mod own;
mod repair;
mod system;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use disk::atomic::Slot;
use disk::confined::Dir;
use disk::manifest::{MANIFEST_NAME, Manifest};
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use disks::Needs;
pub(crate) use layout::SNAPSHOTS;
pub(crate) use own::undo;
pub(crate) use repair::{Doubtful, kept_list, proven_lists};
pub use system::{ExportSystem, LiveState, SystemExport, export_system};
pub(crate) use system::{RUNTIME, add_memory, admit as admit_snapshot, instant_of, length, merged};

use crate::job::{
    Activity, ExportedDisk, ExportedMachine, JobClass, JobContext, Machines, Output, Service,
    Traits, concrete,
};
use crate::machine::{Asked, Vm};
use crate::merge;
use crate::point::{self, Point, PointDisk, disk_id_text};
use crate::snapshot::Snapshot;
use crate::{Effect, Element, Fault, Kind, Result, Vmms, fault, guid};
use own::{Held, Ledger, Wanted};

/// Exports a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportPoint {
    /// The point.
    pub point: Uuid,
    /// The base of a differential export.
    pub base: Option<Uuid>,
    /// Where to.
    pub directory: PathBuf,
    /// The uids of the disks to export.
    pub disks: Vec<Uuid>,
}

#[async_trait]
impl Work<Machines> for ExportPoint {
    fn traits(&self) -> Traits {
        concrete(
            Service::ReferencePoint,
            0,
            "Exporting a reference point",
            Recovery::Resume,
        )
        .of_class(JobClass::PointExport)
        .suspendable()
        .shown_as(Activity::Exporting)
    }

    fn claims(&self) -> Claims {
        Claims {
            reads: vec![self.point],
            builds_on: self.base.into_iter().collect(),
            writes_to: vec![self.directory.clone()],
            others: self.disks.clone(),
            ..Claims::of_point(self.point, Access::Frozen, Layers::Kept)
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx).await
    }
}

/// Starts a job that exports a point; returns the job. `base` makes it differential. `disks` are instance ids
/// (`Microsoft:<machine>\<resource>`) or resource ids, in any case, with or without the last `\L` or `\D`; none means all.
///
/// Refused at once: points that do not hold their content, bases that are newer, of another machine or do not know a
/// disk, unknown disks, and relative directories. What the directory holds is looked at by the job.
pub async fn export_point(
    vmms: &Arc<Vmms>,
    point: Uuid,
    base: Option<Uuid>,
    directory: &Path,
    disks: &[String],
    asked: &Asked,
) -> Result<Uuid> {
    let record = vmms.db.get::<Point>(point)?;
    let base_record = base.map(|b| vmms.db.get::<Point>(b)).transpose()?;
    let about = |fault: Fault| fault.about(Element::Point(point));
    admit(vmms, &record, base_record.as_deref()).map_err(about)?;
    let chosen = choose(&record, disks)?;
    if let Some(base) = &base_record {
        for disk in &chosen {
            if !base.disks.iter().any(|d| d.uid == disk.uid) {
                return Err(about(fault!(BaseWithoutDisk, guid(base.id), disk.device)));
            }
        }
    }
    if !directory.is_absolute() {
        return Err(fault!(
            PathNotUsable,
            directory.display(),
            "it is not absolute"
        ));
    }
    let task = ExportPoint {
        point,
        base,
        directory: directory.to_owned(),
        disks: chosen.iter().map(|d| d.uid).collect(),
    };
    let affected = vec![
        (Element::Point(point), Effect::Other),
        (Element::Vm(record.vm), Effect::Performance),
    ];
    let mut submission = asked.submission(affected);
    submission.output = Output {
        directory: Some(directory.to_owned()),
        point: Some(point),
        base,
        subject: Some(record.vm),
        machines: vec![ExportedMachine {
            vm: record.vm,
            ..ExportedMachine::default()
        }],
        ..Output::default()
    };
    vmms.submit(task, submission).await
}

pub(crate) fn admit(vmms: &Vmms, point: &Point, base: Option<&Point>) -> Result<()> {
    if !point.complete {
        return Err(fault!(PointIncomplete, guid(point.id)));
    }
    if !point.holds_content() {
        return Err(fault!(NoAssociatedData, guid(point.id)));
    }
    admit_disks(vmms, point, base)
}

/// Whether the disks of an instant can be exported, and the base fits.
fn admit_disks(vmms: &Vmms, point: &Point, base: Option<&Point>) -> Result<()> {
    let vm = vmms.db.get::<Vm>(point.vm)?;
    if let Some(base) = base {
        if base.vm != point.vm {
            return Err(fault!(
                BaseOfOtherVm,
                guid(base.id),
                guid(base.vm),
                guid(point.vm)
            ));
        }
        if !base.complete {
            return Err(fault!(PointIncomplete, guid(base.id)));
        }
        if base.sequence >= point.sequence {
            return Err(fault!(BaseNotOlder, guid(base.id), guid(point.id)));
        }
    }
    for disk in &point.disks {
        let found = vm
            .disk(disk.uid)
            .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), disk.device))?;
        let looked = point::check_chain(&disk.device, &found.layers, disk.node)
            .and_then(|()| point::check_formats(&found.layers, disk.node));
        if let Err(fault) = looked {
            // While layers are merged, files beneath change by our own hand. The job looks again once they stand still.
            let now = vmms.db.get::<Vm>(point.vm)?;
            let still = found.layers.pending.is_none()
                && now.disk(disk.uid).is_some_and(|d| d.layers == found.layers);
            if still {
                return Err(fault);
            }
        }
    }
    Ok(())
}

/// Ends a merge that is under way beneath what is to be read. From here on the running job keeps new ones away.
async fn stand_still(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    let _lock = vmms.lock(vm).await;
    let _paused = merge::pause_merges(vmms, vm).await;
    merge::reconcile(vmms, vm).await?;
    point::distrust(vmms, vm).await.map(drop)
}

/// The disks that a list of identifiers means.
pub(crate) fn choose(point: &Point, texts: &[String]) -> Result<Vec<PointDisk>> {
    if texts.is_empty() {
        return Ok(point.disks.clone());
    }
    let mut out: Vec<PointDisk> = Vec::new();
    for text in texts {
        let found = point.disks.iter().find(|d| means(text, point.vm, d));
        let found = found.ok_or_else(|| fault!(DiskNotFound, guid(point.vm), text))?;
        if !out.iter().any(|d| d.uid == found.uid) {
            out.push(found.clone());
        }
    }
    Ok(out)
}

fn means(text: &str, vm: Uuid, disk: &PointDisk) -> bool {
    fn bare(text: &str) -> &str {
        text.strip_suffix("\\L")
            .or_else(|| text.strip_suffix("\\D"))
            .unwrap_or(text)
    }
    let text = text.trim().replace("\\\\", "\\").to_ascii_uppercase();
    let device = disk.device.to_ascii_uppercase();
    let whole = disk_id_text(vm, &disk.device).to_ascii_uppercase();
    let given = bare(&text);
    given == bare(&device)
        || given == bare(&whole)
        || given == disk.uid.to_string().to_ascii_uppercase()
}

/// Exports the point.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, work: &ExportPoint) -> Result<()> {
    let (point, directory) = (work.point, work.directory.as_path());
    let result = export(vmms, ctx, point, work.base, directory, &work.disks).await;
    result.map_err(|cause| match cause.kind() {
        Kind::Cancelled => cause,
        _ => {
            let failed = fault!(ExportFailed, guid(point), directory.display());
            failed.about(Element::Point(point)).caused_by(cause)
        }
    })
}

async fn export(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    point: Uuid,
    base: Option<Uuid>,
    directory: &Path,
    disks: &[Uuid],
) -> Result<()> {
    ctx.checkpoint().await?;
    let record = vmms.db.get::<Point>(point)?;
    let base = base.map(|b| vmms.db.get::<Point>(b)).transpose()?;
    if Ledger::new(vmms, ctx, point).noted().is_none() {
        // Resumed, the job kept the content all the time.
        admit(vmms, &record, base.as_deref())?;
    }
    let part = Part::open(vmms, ctx, wanted(&record, directory, disks)?, base, disks).await?;
    if !part.is_whole() {
        let needs = part.needs(vmms, ctx).await?;
        let memory = length(part.point.memory.as_deref());
        check_room(&[(&part, needs.bytes + memory)])?;
        let progress = ctx.clone();
        let mut manifest = part
            .write(vmms, ctx, move |done, total| progress.progress(done, total))
            .await?;
        if let Some(memory) = &part.point.memory {
            manifest.files.push(add_memory(ctx, &part, memory).await?);
        }
        // The manifest makes it an export: what comes before is nothing, what comes after is done.
        ctx.no_return().await?;
        part.seal(ctx, manifest).await?;
    }
    let made = part.made()?;
    made.warn(ctx).await?;
    let doubtful = made.doubtful.clone();
    ctx.output(|output| made.tell_alone(output)).await?;
    part.record(vmms, ctx, &doubtful).await
}

/// The export of one machine: the whole of a job, or a part of one on a collection.
pub(crate) struct Part {
    pub(crate) point: Arc<Point>,
    pub(crate) base: Option<Arc<Point>>,
    /// The directory the user named.
    pub(crate) directory: PathBuf,
    /// The uids of the disks to export.
    pub(crate) disks: Vec<Uuid>,
    /// The directory with the manifest, claimed.
    dir: Dir,
    ledger: Ledger,
}

impl Part {
    /// Claims and makes the directories; what a job that goes on has claimed already is its own.
    pub(crate) async fn open(
        vmms: &Arc<Vmms>,
        ctx: &JobContext,
        wanted: Wanted,
        base: Option<Arc<Point>>,
        disks: &[Uuid],
    ) -> Result<Part> {
        let ledger = Ledger::new(vmms, ctx, wanted.point.id);
        let (point, directory) = (Arc::clone(&wanted.point), wanted.directory.clone());
        let (own, working) = (ledger.clone(), ctx.cancel_flag().work());
        let Held { dir } = crate::blocking(move || {
            let _working = working;
            own.claim(&wanted)
        })
        .await?;
        Ok(Part {
            point,
            base,
            directory,
            disks: disks.to_vec(),
            dir,
            ledger,
        })
    }

    /// The directory with the manifest.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Whether its manifest is there.
    pub(crate) fn is_whole(&self) -> bool {
        let notes = self.ledger.noted();
        notes.is_some_and(|n| n.is_whole(&self.dir))
    }

    fn order(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> disks::Order {
        disks::Order {
            vmms: Arc::clone(vmms),
            point: Arc::clone(&self.point),
            base: self.base.clone(),
            directory: self.directory.clone(),
            dir: self.dir.clone(),
            ledger: self.ledger.clone(),
            disks: self
                .point
                .disks
                .iter()
                .filter(|d| self.disks.contains(&d.uid))
                .cloned()
                .collect(),
            cancel: ctx.cancel_flag(),
        }
    }

    /// What the copy will go through and take.
    pub(crate) async fn needs(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<Needs> {
        stand_still(vmms, self.point.vm).await?;
        let (order, working) = (self.order(vmms, ctx), ctx.cancel_flag().work());
        crate::blocking(move || {
            let _working = working;
            disks::needs(&order)
        })
        .await
    }

    /// Writes everything but the manifest; goes on where it was interrupted.
    pub(crate) async fn write(
        &self,
        vmms: &Arc<Vmms>,
        ctx: &JobContext,
        progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Manifest> {
        stand_still(vmms, self.point.vm).await?;
        let (order, working) = (self.order(vmms, ctx), ctx.cancel_flag().work());
        crate::blocking(move || {
            let _working = working;
            disks::write(&order, &progress)
        })
        .await
    }

    /// Writes one more file, as `write` does; on a thread for blocking work.
    pub(crate) async fn file<T: Send + 'static>(
        &self,
        ctx: &JobContext,
        name: String,
        write: impl FnOnce(&Slot) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (ledger, dir, working) = (
            self.ledger.clone(),
            self.dir.clone(),
            ctx.cancel_flag().work(),
        );
        crate::blocking(move || {
            let _working = working;
            write(&ledger.slot(&dir, Path::new(&name))?)
        })
        .await
    }

    /// Writes the manifest.
    pub(crate) async fn seal(&self, ctx: &JobContext, manifest: Manifest) -> Result<()> {
        let save = move |slot: &Slot| manifest.save_to(slot).map(drop).map_err(own::named);
        self.file(ctx, MANIFEST_NAME.to_owned(), save).await
    }

    /// What was made, as its manifest tells.
    pub(crate) fn made(&self) -> Result<Made> {
        let (manifest, _) = Manifest::load(self.root())?;
        let (root, point) = (self.root(), &self.point);
        let whole = |p: &disk::manifest::RelativePath| root.join(p);
        let file = |role: &str| {
            let found = manifest.files.iter().find(|f| f.role == role);
            found.map(|f| whole(&f.path))
        };
        let machine = ExportedMachine {
            vm: point.vm,
            config: file(disks::CONFIGURATION),
            runtime: file(RUNTIME),
            guest_state: file(disks::GUEST_STATE),
        };
        let mut exported = Vec::new();
        for entry in &manifest.disks {
            let disk = point
                .disks
                .iter()
                .find(|d| disk_id_text(point.vm, &d.device) == entry.instance_id);
            let device = disk.map_or_else(|| entry.instance_id.clone(), |d| d.device.clone());
            exported.push(ExportedDisk {
                vm: point.vm,
                device,
                file: whole(&entry.file),
            });
        }
        Ok(Made {
            machine,
            disks: exported,
            written: manifest.disks.iter().map(|d| d.file_bytes).sum(),
            read: manifest
                .disks
                .iter()
                .map(|d| d.data_blocks * d.block_size)
                .sum(),
            decisions: manifest
                .decisions
                .iter()
                .map(|d| format!("{}: {}", d.decision, d.reason))
                .collect(),
            doubtful: repair::doubtful(&manifest),
            is_whole: manifest.point.base_id.is_none(),
        })
    }

    /// Notes the export with the point, and ends the hold of an RCT point of which everything was exported.
    pub(crate) async fn record(
        &self,
        vmms: &Arc<Vmms>,
        ctx: &JobContext,
        doubtful: &[Doubtful],
    ) -> Result<()> {
        let root = self.root();
        vmms.db
            .change(|draft| {
                let at = match draft.get_mut::<Snapshot>(self.point.id) {
                    Ok(snapshot) => &mut snapshot.at,
                    Err(_) => &mut draft.get_mut::<Point>(self.point.id)?.at,
                };
                at.exports.retain(|e| e != root);
                at.exports.push(root.to_owned());
                repair::note_lists(vmms, at.id, &mut at.disks);
                repair::note_decisions(&mut at.export_decisions, root, doubtful);
                Ok(())
            })
            .await?;
        let is_point = vmms.db.get::<Point>(self.point.id).is_ok();
        if is_point && self.disks.len() == self.point.disks.len() {
            merge::end_hold(vmms, self.point.id, Some(ctx.job())).await?;
        }
        Ok(())
    }
}

/// What the export of a machine made.
pub(crate) struct Made {
    machine: ExportedMachine,
    disks: Vec<ExportedDisk>,
    written: u64,
    read: u64,
    decisions: Vec<String>,
    /// What was decided because the tracking could not be trusted.
    pub(crate) doubtful: Vec<Doubtful>,
    /// It has no base.
    is_whole: bool,
}

impl Made {
    /// Warns where the export is another one than was asked for, or came about otherwise. Once, however often the job is resumed.
    pub(crate) async fn warn(&self, ctx: &JobContext) -> Result<()> {
        for doubtful in &self.doubtful {
            ctx.warn_once(doubtful.warning()).await?;
        }
        Ok(())
    }

    /// Puts it into the output of a job that exports this machine alone.
    fn tell_alone(self, output: &mut Output) {
        // Asked for as a difference, and not written as one.
        if self.is_whole && !self.doubtful.is_empty() {
            output.base = None;
        }
        // A job that was resumed may have told it before.
        (output.bytes_read, output.bytes_written) = (0, 0);
        output.report.clear();
        output.decisions.clear();
        self.tell(output);
    }

    /// Puts it into a job's output, in the place of what was there of this machine.
    pub(crate) fn tell(self, output: &mut Output) {
        let vm = self.machine.vm;
        match output.machines.iter_mut().find(|m| m.vm == vm) {
            Some(machine) => *machine = self.machine,
            None => output.machines.push(self.machine),
        }
        output.disks.retain(|d| d.vm != vm);
        output.disks.extend(self.disks);
        output.bytes_written += self.written;
        output.bytes_read += self.read;
        output.report.extend(self.decisions);
        let told = self.doubtful.iter().map(Doubtful::line);
        output.decisions.extend(told);
    }
}

/// What the export of a point claims: the machine's directory, or one for the point in it.
pub(crate) fn wanted(point: &Arc<Point>, directory: &Path, disks: &[Uuid]) -> Result<Wanted> {
    let mut wanted = Wanted {
        point: Arc::clone(point),
        directory: directory.to_owned(),
        roots: vec![
            layout::machine_dir(directory, point.vm),
            layout::point_dir(directory, point.vm, point.id),
        ],
        files: files(point, disks)?,
    };
    if point.memory.is_some() {
        wanted.may_have_memory();
    }
    Ok(wanted)
}

/// The files that the export of an instant may write, without the manifest.
fn files(point: &Point, disks: &[Uuid]) -> Result<Vec<PathBuf>> {
    let machine =
        |what: &str| PathBuf::from(layout::MACHINES).join(format!("{}.{what}", guid(point.vm)));
    let mut files = vec![
        machine("json"),
        machine("guest.json"),
        machine("firmware.fd"),
    ];
    for disk in point.disks.iter().filter(|d| disks.contains(&d.uid)) {
        files.push(layout::image(disk, point.id)?.as_ref().to_owned());
        files.push(layout::block_list(disk, point.id)?.as_ref().to_owned());
    }
    Ok(files)
}

/// Whether there is room for all of it, on each file system; before the first byte.
pub(crate) fn check_room(parts: &[(&Part, u64)]) -> Result<()> {
    let mut needed: BTreeMap<u64, (&Part, u64)> = BTreeMap::new();
    for (part, bytes) in parts {
        let device = part.dir.identity()?.device;
        needed.entry(device).or_insert((part, 0)).1 += bytes;
    }
    for (part, bytes) in needed.into_values() {
        let room = part.dir.space()?.available;
        if room < bytes {
            let what = format!(
                "{} ({bytes} bytes needed, {room} free)",
                part.directory.display()
            );
            return Err(fault!(NoSpace, what));
        }
    }
    Ok(())
}
