//! Making a machine of an export.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use disk::manifest::Manifest;
use disk::verify::{Export, disk_files};
use disk::{Chain, ExportPlan, Source, export_disk};
use hypervisor::ImageFormat;
use uuid::Uuid;

use crate::job::{JobContext, Output, Task};
use crate::layer::LayerTree;
use crate::point::tidy::blocking;
use crate::point::{self, disk_id_text};
use crate::verify::{chain_of, find_export};
use crate::vm::{self, Asked, DeviceKind, Power, Vm, spec};
use crate::{Effect, Element, Fault, Kind, Result, Vmms, export, fault, guid, names, pick};

/// Starts a job that makes a new machine of the export in `directory`; returns the machine's and the job's identifiers. The disks
/// of the point are written as plain images of their own into `disks`. `name` `None` keeps the exported one. The machine
/// gets an identifier of its own, since the exported one may still be there.
pub async fn import_export(
    vmms: &Arc<Vmms>,
    directory: &Path,
    name: Option<String>,
    disks: &Path,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let directory = find_export(directory)?;
    let disks = disks.to_owned();
    start(vmms, directory, Uuid::new_v4(), name, disks, false, asked).await
}

/// The same, of one point out of all whose exports are in `directory`, below it, or beneath those: `at` is its GUID, name or instant.
pub async fn import_point(
    vmms: &Arc<Vmms>,
    directory: &Path,
    at: &str,
    name: Option<String>,
    disks: &Path,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let (dir, at) = (directory.to_owned(), at.to_owned());
    let directory = blocking(move || pick::one(&dir, &at)).await?;
    let disks = disks.to_owned();
    start(vmms, directory, Uuid::new_v4(), name, disks, false, asked).await
}

/// Starts a job that makes a planned machine of the export in `directory`; returns the machine's and the job's identifiers. With `keep_id`
/// it has the exported machine's GUID, which must be free here. `disks` `None` puts its disks under the state directory.
pub async fn import_planned(
    vmms: &Arc<Vmms>,
    directory: &Path,
    keep_id: bool,
    disks: Option<&Path>,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let directory = find_export(directory)?;
    let mut vm = Uuid::new_v4();
    if keep_id {
        let (manifest, _) = Manifest::load(&directory)?;
        let unusable = |_| fault!(ManifestUnusable, directory.display());
        vm = manifest.machine.id.parse().map_err(unusable)?;
        if vmms.db.get::<Vm>(vm).is_ok() {
            return Err(fault!(NameTaken, "machine", guid(vm)).about(Element::Vm(vm)));
        }
    }
    let own = || vmms.dirs.state.join("disks").join(guid(vm));
    let disks = disks.map_or_else(own, Path::to_owned);
    start(vmms, directory, vm, None, disks, true, asked).await
}

async fn start(
    vmms: &Arc<Vmms>,
    directory: PathBuf,
    vm: Uuid,
    name: Option<String>,
    disks: PathBuf,
    planned: bool,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    if !disks.is_absolute() {
        return Err(fault!(PathNotUsable, disks.display(), "it is not absolute"));
    }
    if let Some(name) = &name {
        names::check("the new name", name)?;
    }
    let task = Task::Import {
        directory: directory.clone(),
        vm,
        name,
        disks,
        planned,
    };
    let affected = vec![(Element::Vm(vm), Effect::Create)];
    let mut submission = asked.submission(affected);
    submission.output = Output {
        directory: Some(directory),
        created: Some(Element::Vm(vm)),
        subject: Some(vm),
        ..Output::default()
    };
    let job = vmms.submit(task, submission).await?;
    match vmms.job(job).map(|j| j.task) {
        Ok(Task::Import { vm, .. }) => Ok((vm, job)),
        _ => Ok((vm, job)),
    }
}

/// Imports.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    directory: &Path,
    id: Uuid,
    name: Option<&str>,
    disks: &Path,
    planned: bool,
) -> Result<()> {
    import(vmms, ctx, directory, id, name, disks, planned)
        .await
        .map_err(|cause| match cause.kind() {
            Kind::Cancelled => cause,
            _ => fault!(ImportFailed, directory.display()).caused_by(cause),
        })
}

async fn import(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    directory: &Path,
    id: Uuid,
    name: Option<&str>,
    disks: &Path,
    planned: bool,
) -> Result<()> {
    ctx.checkpoint().await?;
    let mut prepared = prepare(vmms, directory, id, name, disks, planned).await?;
    let files = prepared.files();
    ctx.note(&files).await?;
    let total = prepared.size();
    prepared.write(ctx, disks, 0, total).await?;
    let report: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    ctx.output(|output| output.report = report).await?;
    ctx.no_return().await?;
    let record = prepared.finish(vmms)?;
    vm::install(vmms, record).await.map(drop)
}

/// A machine to be made of an export.
pub(crate) struct Prepared {
    chain: Vec<Export>,
    record: Vm,
    parts: Arc<[Part]>,
}

/// Finds out what is to be made of the export in `directory`; fails where a file is in the way.
pub(crate) async fn prepare(
    vmms: &Arc<Vmms>,
    directory: &Path,
    id: Uuid,
    name: Option<&str>,
    disks: &Path,
    planned: bool,
) -> Result<Prepared> {
    let dir = directory.to_owned();
    let chain = blocking(move || chain_of(&dir)).await?;
    let (mut record, exported) = machine_of(&chain, id)?;
    if let Some(name) = name {
        record.name = name.to_owned();
    }
    record.planned = planned;
    record.owner = vmms.host.clone();
    let parts = plan(&chain, exported, &record, disks)?;
    if let Some(part) = parts.iter().find(|p| p.target.exists()) {
        return Err(fault!(NameTaken, "the file", part.target.display()));
    }
    leave_out_others(&mut record, &parts);
    Ok(Prepared {
        chain,
        record,
        parts: parts.into(),
    })
}

impl Prepared {
    /// The images that will be written.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.parts.iter().map(|p| p.target.clone()).collect()
    }

    /// What they hold, as guests see it, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.parts.iter().map(|p| p.size).sum()
    }

    /// Writes them; `before` of `total` bytes of the whole work are done.
    pub(crate) async fn write(
        &mut self,
        ctx: &JobContext,
        disks: &Path,
        before: u64,
        total: u64,
    ) -> Result<()> {
        let (cancel, told) = (ctx.cancel_flag(), ctx.clone());
        let (dir, parts) = (disks.to_owned(), Arc::clone(&self.parts));
        blocking(move || {
            std::fs::create_dir_all(&dir).map_err(|e| Fault::io("create", &dir, &e))?;
            let mut before = before;
            for part in parts.iter() {
                let source = Chain::open(&part.layers)?;
                let progress = |p: disk::Progress| told.progress(before + p.done, total);
                export_disk(&ExportPlan::full(&source, &part.target), &progress, &cancel)?;
                before += source.size();
            }
            Ok(())
        })
        .await?;
        for part in self.parts.iter() {
            part.put_in(&mut self.record);
        }
        Ok(())
    }

    /// Puts the small files in their places; returns the machine, to be recorded.
    pub(crate) fn finish(self, vmms: &Vmms) -> Result<Vm> {
        let mut record = self.record;
        firmware(vmms, &self.chain, record.id)?;
        if let Some(memory) = memory(vmms, &self.chain, record.id)? {
            record.power = Power::Saved;
            record.saved_state = Some(memory);
        }
        Ok(record)
    }
}

/// The machine in the last export of a chain, with the identifier `id` in place of its own, which is returned as well. It is off.
pub(crate) fn machine_of(chain: &[Export], id: Uuid) -> Result<(Vm, Uuid)> {
    let mut record = configuration(chain)?;
    let exported = record.id;
    record.id = id;
    let text = serde_json::to_string(&record).map_err(|e| fault!(Internal, e))?;
    // Resource ids carry the machine's GUID in places; the imported machine has its own.
    let text = text
        .replace(&guid(exported), &guid(id))
        .replace(&exported.to_string(), &id.to_string());
    let mut record: Vm = serde_json::from_str(&text).map_err(|e| fault!(Internal, e))?;
    record.power = Power::Off;
    record.saved_state = None;
    record.last_end = None;
    (record.last_applied, record.descends_from) = (None, None);
    (record.created, record.changed, record.power_changed) =
        (SystemTime::now(), SystemTime::now(), SystemTime::now());
    Ok((record, exported))
}

/// Takes out the disks that were not exported: there is nothing they could be made of. Returns where they were attached from.
pub(crate) fn leave_out_others(record: &mut Vm, plan: &[Part]) -> Vec<PathBuf> {
    let mut out = Vec::new();
    record.devices.retain(|d| match &d.kind {
        DeviceKind::Disk(disk) => {
            let stays = plan.iter().any(|p| p.device.eq_ignore_ascii_case(&d.id));
            if !stays {
                out.push(disk.path.clone());
            }
            stays
        }
        _ => true,
    });
    out
}

/// The configuration in the last export of a chain.
fn configuration(chain: &[Export]) -> Result<Vm> {
    let export = chain
        .last()
        .ok_or_else(|| fault!(Internal, "a chain without exports"))?;
    let file = export
        .manifest
        .files
        .iter()
        .find(|f| f.role == "configuration");
    let file = file.ok_or_else(|| fault!(ManifestUnusable, export.dir.display()))?;
    Ok(point::load_config(&export.dir.join(&file.path))?.machine)
}

/// A disk to be made: of which images, the base first, and where.
pub(crate) struct Part {
    pub(crate) device: String,
    pub(crate) layers: Vec<disk::LayerSpec>,
    pub(crate) target: PathBuf,
    pub(crate) size: u64,
}

impl Part {
    /// Makes it the disk of its drive, as a new one.
    pub(crate) fn put_in(&self, record: &mut Vm) {
        let device = record
            .devices
            .iter_mut()
            .find(|d| d.id.eq_ignore_ascii_case(&self.device));
        if let Some(DeviceKind::Disk(disk)) = device.map(|d| &mut d.kind) {
            disk.uid = Uuid::new_v4();
            disk.path = self.target.clone();
            disk.format = ImageFormat::Qcow2;
            disk.layers = LayerTree::new(self.target.clone(), ImageFormat::Qcow2, self.size);
        }
    }
}

/// The disks of a machine (as [`machine_of`] gives it) and where they go.
pub(crate) fn plan(
    chain: &[Export],
    exported: Uuid,
    record: &Vm,
    disks: &Path,
) -> Result<Vec<Part>> {
    let id = record.id;
    let export = chain
        .last()
        .ok_or_else(|| fault!(Internal, "a chain without exports"))?;
    let mut parts: Vec<Part> = Vec::new();
    for entry in &export.manifest.disks {
        let whole = entry.instance_id.replace(&guid(exported), &guid(id));
        let device = record
            .disks()
            .find(|(device, _)| disk_id_text(id, device).eq_ignore_ascii_case(&whole));
        let (device, disk) =
            device.ok_or_else(|| fault!(DiskNotFound, guid(exported), entry.instance_id))?;
        let files = disk_files(chain, &entry.instance_id)?;
        let stem = disk
            .path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let name = |n: usize| match n {
            0 => disks.join(format!("{stem}.qcow2")),
            n => disks.join(format!("{stem}-{n}.qcow2")),
        };
        // Two disks may have had the same name in different directories.
        let target = (0..)
            .map(name)
            .find(|t| !parts.iter().any(|p| p.target == *t));
        let target = target.ok_or_else(|| fault!(Internal, "no name is free"))?;
        parts.push(Part {
            device: device.to_owned(),
            layers: files.layers,
            target,
            size: files.virtual_size,
        });
    }
    Ok(parts)
}

/// Gives the machine the exported firmware variables.
pub(crate) fn firmware(vmms: &Vmms, chain: &[Export], id: Uuid) -> Result<()> {
    let Some((export, file)) = chain.last().and_then(|e| {
        Some((
            e,
            e.manifest
                .files
                .iter()
                .find(|f| f.role == "firmware-variables")?,
        ))
    }) else {
        return Ok(());
    };
    let from = export.dir.join(&file.path);
    let bytes = std::fs::read(&from).map_err(|e| Fault::io("read", &from, &e))?;
    let dir = spec::state_dir(&vmms.dirs, id);
    std::fs::create_dir_all(&dir).map_err(|e| Fault::io("create", &dir, &e))?;
    Ok(disk::atomic::AtomicFile::replace(
        &dir.join("firmware-vars.fd"),
        &bytes,
    )?)
}

/// Gives the machine the exported memory: it goes on from there when it is started.
fn memory(vmms: &Vmms, chain: &[Export], id: Uuid) -> Result<Option<PathBuf>> {
    let found = chain.last().and_then(|e| {
        let file = e
            .manifest
            .files
            .iter()
            .find(|f| f.role == export::RUNTIME)?;
        Some(e.dir.join(&file.path))
    });
    let Some(from) = found else {
        return Ok(None);
    };
    let dir = spec::state_dir(&vmms.dirs, id);
    std::fs::create_dir_all(&dir).map_err(|e| Fault::io("create", &dir, &e))?;
    let target = dir.join("imported.vmstate");
    std::fs::copy(&from, &target).map_err(|e| Fault::io("copy the memory to", &target, &e))?;
    point::sync(&target)?;
    Ok(Some(target))
}

/// Removes the images that were written, unless the machine is there.
pub(crate) async fn undo(vmms: &Arc<Vmms>, ctx: &JobContext, id: Uuid, disks: &Path) -> Result<()> {
    if vmms.db.get::<Vm>(id).is_ok() {
        return Ok(());
    }
    for file in ctx.notes::<Vec<PathBuf>>().unwrap_or_default() {
        for path in [disk::atomic::partial_name(&file), file] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Fault::io("remove", &path, &e));
                }
                _ => {}
            }
        }
    }
    // Only if nothing else is in it.
    let _ = std::fs::remove_dir(disks);
    Ok(())
}
