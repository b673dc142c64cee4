//! ImportSnapshotDefinitions: the snapshots exported with a machine become snapshots of the planned machine that was imported.
//!
//! ```text
//!   the machine's image ── new active layer        before: the machine's image alone
//!            └── first snapshot ── second          each layer holds what differs from the one beneath
//! ```
//! The image stays where it is and is frozen; a snapshot without parent lies on it, every other one on its parent. What
//! differs is found by comparing the bytes themselves: what the exports tell of changes is not needed for it, and
//! nothing has to be believed. One transaction puts it all into place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use disk::manifest::Manifest;
use disk::verify::{DiskProof, Export, disk_files};
use disk::{Backing, CancelFlag, Chain, ChangeMap, ExportPlan, Source, export_disk};
use engine::{Access, Claims, Layers, Recovery, Work};
use hypervisor::ImageFormat;
use hypervisor::image::write_owner;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::create::forget_files;
use super::record::kept;
use super::{Definition, Snapshot};
use crate::blocking;
use crate::disk_tree::{Frozen, LayerRef};
use crate::host::owner::Owner;
use crate::instant::freeze::{self, Step};
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::machine::{Asked, DeviceKind, Disk, Power, Vm};
use crate::merge;
use crate::point::{self, Consistency, Decision, Instant, Point, PointDisk, disk_id_text};
use crate::restore::exported::{self, Exported};
use crate::restore::verify::{chain_of, has_manifest};
use crate::{Effect, Element, Kind, Result, Use, Vmms, export, fault, guid};

/// Imports snapshots to a planned machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportSnapshots {
    /// The machine.
    pub vm: Uuid,
    /// The folder that was named.
    pub folder: PathBuf,
    /// The snapshots, parents before children.
    pub snapshots: Vec<SnapshotImport>,
    /// Which of them the machine descends from.
    pub descends_from: Option<Uuid>,
}

#[async_trait]
impl Work<Machines> for ImportSnapshots {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            60,
            "Importing snapshots",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        let named = self.snapshots.iter().map(|s| s.snapshot);
        let named: Vec<Uuid> = named.chain(self.descends_from).collect();
        Claims::of_machine(self.vm, Access::Alone, Layers::Changed, &named)
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, self.vm, &self.snapshots).await
    }
}

/// Bytes that are compared in one go.
const STEP: u64 = 1 << 20;

/// A snapshot to import.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotImport {
    /// The directory of its export.
    pub directory: PathBuf,
    /// The new snapshot: the exported GUID where that is free here.
    pub snapshot: Uuid,
    /// The imported snapshot it descends from.
    pub parent: Option<Uuid>,
}

/// Starts a job that imports the snapshots in `folder` to a planned machine; returns the new snapshots, the oldest first, and the job.
/// `folder` is the export of the machine, its `Snapshots` directory, or that of one snapshot.
///
/// Refused at once: machines that are not planned, and folders without snapshots.
pub async fn import(
    vmms: &Arc<Vmms>,
    vm: Uuid,
    folder: &Path,
    asked: &Asked,
) -> Result<(Vec<Uuid>, Uuid)> {
    let record = vmms.db.get::<Vm>(vm)?;
    planned(&record)?;
    if !folder.is_absolute() {
        return Err(fault!(
            PathNotUsable,
            folder.display(),
            "it is not absolute"
        ));
    }
    vmms.may_use(Use::Import, folder)?;
    let (found, present) = definitions(folder)?;
    if found.is_empty() {
        return Err(fault!(ManifestUnusable, folder.display()));
    }
    let free = |id| vmms.db.get::<Snapshot>(id).is_err() && vmms.db.get::<Point>(id).is_err();
    let mut new: Vec<(Uuid, Uuid)> = Vec::new();
    for (_, definition) in &found {
        let id = definition.id;
        new.push((id, if free(id) { id } else { Uuid::new_v4() }));
    }
    let of = |exported: Option<Uuid>| {
        let found = new.iter().find(|(old, _)| Some(*old) == exported);
        found.map(|(_, id)| *id)
    };
    let snapshots: Vec<SnapshotImport> = found
        .iter()
        .zip(&new)
        .map(|((directory, definition), (_, id))| SnapshotImport {
            directory: directory.clone(),
            snapshot: *id,
            parent: of(definition.parent),
        })
        .collect();
    let mut affected = vec![(Element::Vm(vm), Effect::ExclusiveUse)];
    for snapshot in &snapshots {
        affected.push((Element::Snapshot(snapshot.snapshot), Effect::Create));
    }
    let task = ImportSnapshots {
        vm,
        folder: folder.to_owned(),
        snapshots,
        descends_from: of(present.and_then(|p| p.parent)),
    };
    let submission = asked.submission(affected);
    let (task, job) = vmms.submit_once(task, submission).await?;
    Ok((task.snapshots.iter().map(|s| s.snapshot).collect(), job))
}

fn planned(record: &Vm) -> Result<()> {
    if record.planned {
        return Ok(());
    }
    let (is, what) = ("realized", "importing snapshots");
    Err(fault!(WrongVmState, record.name, is, what, "planned").about(Element::Vm(record.id)))
}

/// The directory of an exported snapshot, and what is told of it.
type Found = (PathBuf, Definition);

/// The snapshots in a folder, the oldest first, and what is told of the machine they were exported with.
fn definitions(folder: &Path) -> Result<(Vec<Found>, Option<Definition>)> {
    let mut dirs = vec![folder.to_owned()];
    for dir in [folder.to_owned(), folder.join(export::SNAPSHOTS)] {
        let list = std::fs::read_dir(&dir).into_iter().flatten();
        dirs.extend(list.filter_map(|e| e.ok().map(|e| e.path())));
    }
    let above = folder.ancestors().skip(1).take(2);
    let own = dirs.len();
    dirs.extend(above.map(Path::to_owned));
    let (mut found, mut present) = (Vec::new(), None);
    for (place, dir) in dirs.into_iter().enumerate() {
        if !has_manifest(&dir) {
            continue;
        }
        let (manifest, hash) = Manifest::load(&dir)
            .map_err(|e| fault!(ManifestUnusable, dir.display()).caused_by(e))?;
        let export = Export {
            dir: dir.clone(),
            manifest,
            hash,
        };
        match Definition::read(&export)? {
            Some(definition) if definition.present => {
                present.get_or_insert(definition);
            }
            Some(definition) if place < own => found.push((dir, definition)),
            _ => {}
        }
    }
    found.sort_by_key(|(_, d)| d.sequence);
    Ok((found, present))
}

/// What the job will leave behind if it does not come to its end.
#[derive(Serialize, Deserialize)]
struct Checkpoint {
    files: Vec<PathBuf>,
}

/// Imports.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, work: &ImportSnapshots) -> Result<()> {
    let (vm, folder) = (work.vm, &work.folder);
    let name = vmms.db.get::<Vm>(vm)?.name.clone();
    let done = bring_in(vmms, ctx, vm, &work.snapshots, work.descends_from).await;
    done.map_err(|cause| match cause.kind() {
        Kind::Cancelled => cause,
        _ => fault!(SnapshotImportFailed, folder.display(), name)
            .about(Element::Vm(vm))
            .caused_by(cause),
    })
}

/// A layer to write.
struct Part {
    /// The snapshot's place in the list.
    snapshot: usize,
    device: String,
    /// What the manifests call it.
    instance: String,
    disk: Uuid,
    /// The disk as it was.
    source: Vec<disk::LayerSpec>,
    /// What it is compared with: the export of its parent; none means the machine's own image.
    below: Option<Vec<disk::LayerSpec>>,
    on: Uuid,
    on_file: LayerRef,
    node: Uuid,
    file: LayerRef,
}

async fn bring_in(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    snapshots: &[SnapshotImport],
    descends_from: Option<Uuid>,
) -> Result<()> {
    let _lock = tokio::select! {
        lock = vmms.lock(vm) => lock,
        stop = ctx.stop_asked() => return Err(stop),
    };
    let _paused = merge::pause_merges(vmms, vm).await;
    ctx.checkpoint().await?;
    merge::reconcile(vmms, vm).await?;
    let record = vmms.db.get::<Vm>(vm)?;
    planned(&record)?;
    let mut exports = Vec::new();
    for snapshot in snapshots {
        let dir = snapshot.directory.clone();
        exports.push(blocking(move || chain_of(&dir)).await?);
    }
    let mut records = Vec::new();
    for (snapshot, chain) in snapshots.iter().zip(&exports) {
        records.push(settings_of(vmms, &record, snapshot, chain)?);
    }
    let steps = freeze::plan(vmms, &record, |disk| {
        let wanted = |s: &Read| s.settings.disk(disk.uid).is_some();
        records.iter().any(wanted) && disk.layers.beneath(disk.layers.active).is_none()
    })?;
    let parts = plan(vmms, &record, snapshots, &exports, &records)?;
    let map = |p: &Part| point::map_path(vmms, p.disk, p.node);
    let files = parts.iter().map(|p| p.file.path.clone());
    let files = files.chain(parts.iter().map(map)).collect();
    ctx.note(&Checkpoint { files }).await?;
    let exports: Arc<[Vec<Export>]> = exports.into();
    let parts = write(vmms, ctx, &record, parts, Arc::clone(&exports)).await?;
    let (own, of, named) = (Arc::clone(vmms), Arc::clone(&record), snapshots.to_vec());
    let cancel = ctx.cancel_flag();
    let (parts, kept) = blocking(move || {
        let mut kept = Vec::new();
        for (at, (read, import)) in (0..).zip(records.iter().zip(&named)) {
            let chain = exports.get(at).map(Vec::as_slice).unwrap_or_default();
            kept.push(keep(&own, &of, (read, chain), import, &parts, at, &cancel)?);
        }
        Ok((parts, kept))
    })
    .await?;
    ctx.no_return().await?;
    vmms.db
        .change(|draft| freeze::announce(draft, vm, &steps))
        .await?;
    freeze::mark_files(vmms, &record, &steps, Some(Consistency::Crash)).await?;
    let mut frozen: Vec<(Step, Frozen)> = Vec::new();
    for step in steps {
        let facts = freeze::frozen(vmms, &step.disk).await?;
        frozen.push((step, facts));
    }
    let mut aside = Vec::new();
    for part in &parts {
        aside.push((part, of_file(vmms, &record, part)?));
    }
    vmms.db
        .change(|draft| {
            let first = merge::next_sequence(vmms, vm);
            let machine = draft.get_mut::<Vm>(vm)?;
            for (step, facts) in &frozen {
                if let Some(disk) = machine.disk_mut(step.disk.uid) {
                    disk.layers
                        .freeze(step.node, step.file.clone(), facts.clone());
                }
            }
            for (part, facts) in &aside {
                if let Some(disk) = machine.disk_mut(part.disk) {
                    let file = part.file.clone();
                    disk.layers.aside(part.on, part.node, file, facts.clone());
                }
            }
            machine.descends_from = descends_from;
            machine.changed = SystemTime::now();
            for (sequence, mut snapshot) in (first..).zip(kept) {
                snapshot.sequence = sequence;
                draft.put(snapshot);
            }
            Ok(())
        })
        .await
}

/// A snapshot as its export tells it, told in the terms of the planned machine.
struct Read {
    definition: Definition,
    /// Its disks are those of the planned machine.
    settings: Vm,
    exported: String,
    /// Whether its memory is taken over.
    memory: bool,
    left_out: Vec<String>,
}

fn settings_of(vmms: &Vmms, vm: &Vm, import: &SnapshotImport, chain: &[Export]) -> Result<Read> {
    let unusable = || fault!(ManifestUnusable, import.directory.display());
    let export = chain.last().ok_or_else(unusable)?;
    let manifest = &export.manifest;
    let definition = Definition::read(export)?.ok_or_else(unusable)?;
    let Exported {
        machine: mut settings,
        was: exported,
        mut left_out,
    } = exported::machine(vmms, chain, vm.id)?;
    settings.owner.clone_from(&vm.owner);
    let exported = guid(exported);
    let has = |device: &str| {
        let id = disk_id_text(vm.id, device).replace(&guid(vm.id), &exported);
        let mut disks = manifest.disks.iter();
        disks.any(|d| d.instance_id.eq_ignore_ascii_case(&id))
    };
    // A disk that was not exported has nothing to be made of.
    settings.devices.retain(|d| match &d.kind {
        DeviceKind::Disk(disk) => disk.read_only || has(&d.id),
        _ => true,
    });
    for device in &mut settings.devices {
        let DeviceKind::Disk(disk) = &mut device.kind else {
            continue;
        };
        let mut own = vm.disks();
        let found = own.find(|(id, _)| id.eq_ignore_ascii_case(&device.id));
        let (_, found) = found.ok_or_else(|| fault!(DiskNotFound, guid(vm.id), device.id))?;
        **disk = Disk {
            read_only: disk.read_only,
            ..found.clone()
        };
    }
    if !settings.disks().any(|(_, d)| !d.read_only) {
        return Err(fault!(NoDisks, settings.name).about(Element::Snapshot(import.snapshot)));
    }
    let mut memory = exported::memory(chain).is_some();
    if memory && !vmms.options.import_memory {
        left_out.push(exported::WITHOUT_MEMORY.to_owned());
        memory = false;
    }
    if memory {
        settings.power = Power::Saved;
    }
    Ok(Read {
        definition,
        settings,
        exported,
        memory,
        left_out,
    })
}

/// The layers to write, each after the one it lies on.
fn plan(
    vmms: &Vmms,
    vm: &Vm,
    snapshots: &[SnapshotImport],
    exports: &[Vec<Export>],
    records: &[Read],
) -> Result<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    for (at, (import, read)) in snapshots.iter().zip(records).enumerate() {
        let chain = exports.get(at).map(Vec::as_slice).unwrap_or_default();
        for (device, disk) in read.settings.disks().filter(|(_, d)| !d.read_only) {
            let id = disk_id_text(vm.id, device).replace(&guid(vm.id), &read.exported);
            let source = disk_files(chain, &id)?.layers;
            let instance = id;
            let parent = snapshots
                .iter()
                .position(|s| Some(s.snapshot) == import.parent);
            let beneath = parts
                .iter()
                .find(|p| Some(p.snapshot) == parent && p.disk == disk.uid);
            let own = vm
                .disk(disk.uid)
                .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), device))?;
            let (on, on_file, below) = match beneath {
                Some(p) => (p.node, p.file.clone(), Some(p.source.clone())),
                None => {
                    let tree = &own.layers;
                    let on = tree.beneath(tree.active).unwrap_or(tree.active);
                    let file = tree.nodes.get(&on).and_then(|n| n.file.clone());
                    let file =
                        file.ok_or_else(|| fault!(TrackingLost, own.path.display(), guid(on)))?;
                    (on, file, None)
                }
            };
            let layer = Uuid::new_v4();
            let file = LayerRef {
                layer,
                path: point::layer_path(vmms, own, layer)?,
                format: ImageFormat::Qcow2,
                shared: false,
            };
            parts.push(Part {
                snapshot: at,
                device: device.to_owned(),
                instance,
                disk: disk.uid,
                source,
                below,
                on,
                on_file,
                node: Uuid::new_v4(),
                file,
            });
        }
    }
    Ok(parts)
}

/// Writes the layers, on a thread for blocking work.
async fn write(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: &Arc<Vm>,
    parts: Vec<Part>,
    exports: Arc<[Vec<Export>]>,
) -> Result<Vec<Part>> {
    let (vmms, vm, cancel, told) = (
        Arc::clone(vmms),
        Arc::clone(vm),
        ctx.cancel_flag(),
        ctx.clone(),
    );
    blocking(move || {
        let mut jobs = Vec::new();
        for part in &parts {
            let source = Chain::open(&part.source)?;
            let below = match &part.below {
                Some(specs) => Chain::open(specs)?,
                None => {
                    let disk = vm
                        .disk(part.disk)
                        .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), part.device))?;
                    point::open_present(&part.device, &disk.layers)?
                }
            };
            jobs.push((part, source, below));
        }
        let total: u64 = jobs.iter().map(|(_, source, _)| source.size()).sum();
        let mut before = 0;
        for (part, source, below) in &jobs {
            let at = |done: u64| told.progress(before + done, total);
            let chain = exports.get(part.snapshot).map(Vec::as_slice);
            let proof = DiskProof::open(chain.unwrap_or_default(), &part.instance)?;
            let changes = differences(source, below, proof, &cancel, &at)?;
            let backing = Backing {
                file: freeze::backing_name(&part.file, &part.on_file)?,
                format: part.on_file.format.as_str().to_owned(),
            };
            let mut plan = ExportPlan::differential(source, &changes, backing, &part.file.path);
            plan.threads = vmms.options.export_threads.clamp(1, 16);
            export_disk(&plan, &|_| {}, &cancel)?;
            let owner = Owner::new(&vmms, vm.id, part.disk, part.file.layer);
            write_owner(&part.file.path, &owner.to_string())?;
            point::sync(&part.file.path)?;
            before += source.size();
        }
        drop(jobs);
        Ok(parts)
    })
    .await
}

/// The blocks in which two disks differ, found by reading both. What lies beyond the end of the second differs. The first is proven on
/// the way.
fn differences(
    source: &Chain,
    below: &Chain,
    mut proof: DiskProof,
    cancel: &CancelFlag,
    progress: &dyn Fn(u64),
) -> Result<ChangeMap> {
    let mut changes = ChangeMap::new();
    let size = source.size();
    let common = size.min(below.size());
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < size {
        cancel.check()?;
        let end = at.saturating_add(STEP).min(size);
        let length = usize::try_from(end - at).map_err(|e| fault!(Internal, e))?;
        one.resize(length, 0);
        source.read_at(&mut one, at)?;
        proof.bytes(&one)?;
        let there = end.min(common).saturating_sub(at);
        other.resize(usize::try_from(there).map_err(|e| fault!(Internal, e))?, 0);
        if there > 0 {
            below.read_at(&mut other, at)?;
        }
        let one = one.get(..other.len()).unwrap_or_default();
        if one != other {
            let block = usize::try_from(disk::BLOCK_SIZE).map_err(|e| fault!(Internal, e))?;
            let blocks = one.chunks(block).zip(other.chunks(block));
            for (place, (a, b)) in (0_u64..).zip(blocks) {
                if a != b {
                    let from = at + place * disk::BLOCK_SIZE;
                    changes.insert(from..(from + disk::BLOCK_SIZE).min(size));
                }
            }
        }
        at = end;
        progress(at);
    }
    proof.finish()?;
    if common < size {
        changes.insert(common..size);
    }
    Ok(changes)
}

/// What is known of a layer that was written; its map is kept.
fn of_file(vmms: &Vmms, vm: &Vm, part: &Part) -> Result<Frozen> {
    let mut disk = vm
        .disk(part.disk)
        .cloned()
        .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), part.device))?;
    let frozen = Frozen {
        map: Some(point::map_path(vmms, part.disk, part.node)),
        size: disk::Qcow2Layer::open(&part.file.path)?.virtual_size(),
        stamp: point::stamp(&part.file.path)?,
    };
    let on = part.on;
    // The size of a snapshot beneath is known from its file; only its size matters for the map.
    if !disk.layers.nodes.contains_key(&on) {
        let size = disk::Qcow2Layer::open(&part.on_file.path)?.virtual_size();
        let beneath = Frozen {
            size,
            ..Frozen::default()
        };
        let root = disk.layers.active;
        disk.layers.aside(root, on, part.on_file.clone(), beneath);
    }
    disk.layers
        .aside(on, part.node, part.file.clone(), frozen.clone());
    point::keep_map(vmms, &disk, part.node)?;
    Ok(frozen)
}

/// Puts the small files of a snapshot where those of snapshots are; returns its record.
fn keep(
    vmms: &Vmms,
    vm: &Vm,
    (read, chain): (&Read, &[Export]),
    import: &SnapshotImport,
    parts: &[Part],
    at: usize,
    cancel: &CancelFlag,
) -> Result<Snapshot> {
    let config = point::save_config(vmms, &read.settings, import.snapshot)?;
    let vars = config.with_file_name(point::FIRMWARE_VARS);
    match exported::firmware(chain)? {
        Some(bytes) => disk::atomic::AtomicFile::replace(&vars, &bytes)?,
        None => point::remove(&vars)?,
    }
    let memory = match exported::memory(chain).filter(|_| read.memory) {
        Some((export, file)) => {
            let target = config.with_file_name("memory.vmstate");
            point::remove(&target)?;
            export.copy(file, &target, cancel)?;
            Some(target)
        }
        None => None,
    };
    let mut disks = Vec::new();
    for part in parts.iter().filter(|p| p.snapshot == at) {
        disks.push(PointDisk {
            uid: part.disk,
            device: part.device.clone(),
            path: vm
                .disk(part.disk)
                .map(|d| d.path.clone())
                .unwrap_or_default(),
            node: part.node,
            size: disk::Qcow2Layer::open(&part.file.path)?.virtual_size(),
            blocks: None,
        });
    }
    let told = &read.definition;
    Ok(Snapshot {
        at: Instant {
            id: import.snapshot,
            vm: vm.id,
            name: told.name.clone(),
            consistency: told.consistency,
            instant: told.instant,
            pause_us: told.pause_us,
            sequence: 0,
            complete: true,
            disks,
            memory,
            config,
            decisions: decisions(read, import),
            exports: Vec::new(),
            export_decisions: Vec::new(),
        },
        notes: told.notes.clone(),
        kind: told.kind,
        parent: import.parent,
        collection_snapshot: None,
        settings: kept(read.settings.clone()),
    })
}

fn decisions(read: &Read, import: &SnapshotImport) -> Vec<Decision> {
    let from = import.directory.display();
    let decision = |what: &str| Decision {
        what: what.to_owned(),
        reason: format!("from {from}"),
    };
    let imported = [decision("the snapshot was imported")];
    let left_out = read.left_out.iter().map(|line| decision(line));
    imported.into_iter().chain(left_out).collect()
}

/// Takes back what was begun, unless all of it is in place.
pub(crate) async fn undo(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    snapshots: &[SnapshotImport],
) -> Result<()> {
    if vmms.db.get::<Vm>(vm).is_ok() {
        let _lock = vmms.lock(vm).await;
        let _paused = merge::pause_merges(vmms, vm).await;
        merge::reconcile(vmms, vm).await?;
    }
    let there = |s: &SnapshotImport| vmms.db.get::<Snapshot>(s.snapshot).is_ok();
    let Some(notes) = ctx
        .notes::<Checkpoint>()
        .filter(|_| !snapshots.iter().any(there))
    else {
        return Ok(());
    };
    for file in notes.files {
        point::remove(&disk::atomic::partial_name(&file))?;
        point::remove(&file)?;
    }
    snapshots
        .iter()
        .try_for_each(|s| forget_files(vmms, s.snapshot))
}
