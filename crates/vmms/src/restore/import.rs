//! Making a machine of an export.
//!
//! Nothing in an export is believed: its files are opened through no link, every block of a disk is proven against the manifests while it
//! is written, the configuration is taken over setting by setting (`crate::restore::exported`). The disks are written in a directory of the job's own and
//! get their names when all of them are there; what fails takes away what it made, and only that.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use disk::manifest::Manifest;
use disk::verify::{Export, disk_files};
use engine::{Access, Claims, Layers, Recovery, Work};
use hypervisor::ImageFormat;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::blocking;
use crate::disk_tree::LayerTree;
use crate::job::{JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::{self, Asked, DeviceKind, Power, Vm, spec};
use crate::point::{self, disk_id_text};
use crate::restore::exported::{self, Exported};
use crate::restore::pick;
use crate::restore::verify::{chain_of, find_export};
use crate::{Effect, Element, Fault, Kind, Result, Use, Vmms, fault, guid, names};

/// Makes a machine of an export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Import {
    /// The machine directory of the export (the one with the manifest).
    pub directory: PathBuf,
    /// The new machine.
    pub vm: Uuid,
    /// Its name; `None` keeps the exported one.
    pub name: Option<String>,
    /// Where its disks go.
    pub disks: PathBuf,
    /// Whether it is to be a planned machine.
    #[serde(default)]
    pub planned: bool,
    /// Whether exported memory is taken over.
    #[serde(default)]
    pub memory: bool,
    /// Whether network addresses and automatic start are.
    #[serde(default)]
    pub keep_identity: bool,
}

#[async_trait]
impl Work<Machines> for Import {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            61,
            "Importing a virtual machine",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, Access::Whole, Layers::Kept, &[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, self.vm).await
    }
}

/// What an import takes over beside settings and disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Take {
    /// Exported memory: QEMU runs what it says.
    pub memory: bool,
    /// What would disturb the exported machine if it is still there: network addresses and automatic start.
    pub identity: bool,
}

impl From<bool> for Take {
    /// Only memory, or nothing.
    fn from(memory: bool) -> Self {
        Take {
            memory,
            identity: false,
        }
    }
}

/// Starts a job that makes a new machine of the export in `directory`; returns the machine's and the job's identifiers. The disks
/// of the point are written as plain images of their own into `disks`. `name` `None` keeps the exported one. The machine
/// gets an identifier of its own, since the exported one may still be there. What is taken over beside
/// settings and disks `take` says.
pub async fn import_export(
    vmms: &Arc<Vmms>,
    directory: &Path,
    name: Option<String>,
    disks: &Path,
    take: impl Into<Take>,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let (own, dir) = (Arc::clone(vmms), directory.to_owned());
    let directory = blocking(move || {
        own.may_use(Use::Import, &dir)?;
        find_export(&dir)
    })
    .await?;
    let order = Order::of(directory, name, disks, take.into());
    start(vmms, order, asked).await
}

/// The same, of one point out of all whose exports are in `directory`, below it, or beneath those: `at` is its GUID, name or instant.
pub async fn import_point(
    vmms: &Arc<Vmms>,
    directory: &Path,
    at: &str,
    name: Option<String>,
    disks: &Path,
    take: impl Into<Take>,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let (own, dir, at) = (Arc::clone(vmms), directory.to_owned(), at.to_owned());
    let directory = blocking(move || {
        own.may_use(Use::Import, &dir)?;
        pick::one(&dir, &at)
    })
    .await?;
    let order = Order::of(directory, name, disks, take.into());
    start(vmms, order, asked).await
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
    let (trusting, dir) = (Arc::clone(vmms), directory.to_owned());
    let found = blocking(move || {
        trusting.may_use(Use::Import, &dir)?;
        let directory = find_export(&dir)?;
        let (manifest, _) = Manifest::load(&directory)?;
        Ok((directory, manifest))
    });
    let (directory, manifest) = found.await?;
    let mut vm = Uuid::new_v4();
    if keep_id {
        let unusable = |_| fault!(ManifestUnusable, directory.display());
        vm = manifest.machine.id.parse().map_err(unusable)?;
        if vmms.db.get::<Vm>(vm).is_ok() {
            return Err(fault!(NameTaken, "machine", guid(vm)).about(Element::Vm(vm)));
        }
    }
    let own = || vmms.dirs.state.join("disks").join(guid(vm));
    let order = Order {
        directory,
        vm,
        name: None,
        disks: disks.map_or_else(own, Path::to_owned),
        planned: true,
        take: Take {
            memory: vmms.options.import_memory,
            // What keeps its identifier is the same machine.
            identity: keep_id,
        },
    };
    start(vmms, order, asked).await
}

/// What a job is to do.
struct Order {
    directory: PathBuf,
    vm: Uuid,
    name: Option<String>,
    disks: PathBuf,
    planned: bool,
    take: Take,
}

impl Order {
    /// For a new machine.
    fn of(directory: PathBuf, name: Option<String>, disks: &Path, take: Take) -> Self {
        Order {
            directory,
            vm: Uuid::new_v4(),
            name,
            disks: disks.to_owned(),
            planned: false,
            take,
        }
    }
}

async fn start(vmms: &Arc<Vmms>, order: Order, asked: &Asked) -> Result<(Uuid, Uuid)> {
    let Order {
        directory,
        vm,
        name,
        disks,
        planned,
        take,
    } = order;
    if !disks.is_absolute() {
        return Err(fault!(PathNotUsable, disks.display(), "it is not absolute"));
    }
    if let Some(name) = &name {
        names::check("the new name", name)?;
    }
    let task = Import {
        directory: directory.clone(),
        vm,
        name,
        disks,
        planned,
        memory: take.memory,
        keep_identity: take.identity,
    };
    let affected = vec![(Element::Vm(vm), Effect::Create)];
    let mut submission = asked.submission(affected);
    submission.output = Output {
        directory: Some(directory),
        created: Some(Element::Vm(vm)),
        subject: Some(vm),
        ..Output::default()
    };
    let (task, job) = vmms.submit_once(task, submission).await?;
    Ok((task.vm, job))
}

/// Imports.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, work: &Import) -> Result<()> {
    let directory = work.directory.as_path();
    let wanted = Wanted {
        name: work.name.as_deref(),
        disks: &work.disks,
        planned: work.planned,
        take: Take {
            memory: work.memory,
            identity: work.keep_identity,
        },
    };
    import(vmms, ctx, directory, work.vm, &wanted)
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
    wanted: &Wanted<'_>,
) -> Result<()> {
    ctx.checkpoint().await?;
    let prepared = prepare(vmms, directory, id, wanted).await?;
    let mut notes = Checkpoint::default();
    notes.expect(vmms, &prepared);
    ctx.note(&notes).await?;
    let total = prepared.size();
    prepared.write(ctx, 0, total).await?;
    notes.place(&prepared)?;
    ctx.note(&notes).await?;
    let report = prepared.report();
    ctx.output(|output| output.report = report).await?;
    ctx.no_return().await?;
    let record = prepared.finish(vmms, ctx).await?;
    machine::install(vmms, record).await.map(drop)
}

/// What is asked for of an import.
pub(crate) struct Wanted<'a> {
    /// The new machine's name; `None` keeps the exported one.
    pub(crate) name: Option<&'a str>,
    /// Where its disks go.
    pub(crate) disks: &'a Path,
    /// Whether it is to be a planned machine.
    pub(crate) planned: bool,
    /// What is taken over beside settings and disks.
    pub(crate) take: Take,
}

/// A machine to be made of an export.
pub(crate) struct Prepared {
    chain: Arc<[Export]>,
    record: Vm,
    parts: Arc<[Part]>,
    disks: PathBuf,
    memory: bool,
    left_out: Vec<String>,
}

/// What a job may have to take away again: only what it made itself.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// Directories of its own, with all that is in them.
    own: Vec<PathBuf>,
    /// Directories that were not there before; removed where they are empty.
    made: Vec<PathBuf>,
    /// Where files of its own directories go, and which they are.
    placed: Vec<Placed>,
}

/// A file that was written and is about to get its name.
#[derive(Serialize, Deserialize)]
pub(crate) struct Placed {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Checkpoint {
    /// What making this machine will leave behind if it is not finished.
    pub(crate) fn expect(&mut self, vmms: &Vmms, prepared: &Prepared) {
        self.own.push(prepared.staging());
        let state = spec::state_dir(&vmms.dirs, prepared.record.id);
        if state.symlink_metadata().is_err() {
            self.own.push(state);
        }
        let missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
        for dir in prepared.disks.ancestors().take_while(missing) {
            if !self.made.iter().any(|d| d == dir) {
                self.made.push(dir.to_owned());
            }
        }
    }

    pub(crate) fn place(&mut self, prepared: &Prepared) -> Result<()> {
        self.placed.extend(prepared.placed()?);
        Ok(())
    }

    fn undo(mut self) -> Result<()> {
        for placed in &self.placed {
            let found = std::fs::symlink_metadata(&placed.path);
            if found.is_ok_and(|m| (m.dev(), m.ino()) == (placed.device, placed.inode)) {
                point::remove(&placed.path)?;
            }
        }
        for dir in &self.own {
            remove_tree(dir)?;
        }
        // The deepest first; what somebody else put something into stays.
        self.made
            .sort_by_key(|d| std::cmp::Reverse(d.components().count()));
        for dir in &self.made {
            let _ = std::fs::remove_dir(dir);
        }
        Ok(())
    }
}

fn remove_tree(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Fault::io("remove", dir, &e)),
        _ => Ok(()),
    }
}

/// Finds out what is to be made of the export in `directory`; fails where a file is in the way.
pub(crate) async fn prepare(
    vmms: &Arc<Vmms>,
    directory: &Path,
    id: Uuid,
    wanted: &Wanted<'_>,
) -> Result<Prepared> {
    let (own, dir) = (Arc::clone(vmms), directory.to_owned());
    let disks = wanted.disks.to_owned();
    let (chain, exported) = blocking(move || {
        own.may_use(Use::Import, &dir)?;
        own.may_make(Use::Image, &disks)?;
        let chain = chain_of(&dir)?;
        let exported = exported::machine(&own, &chain, id)?;
        Ok((chain, exported))
    })
    .await?;
    let Exported {
        machine: mut record,
        was,
        mut left_out,
    } = exported;
    if let Some(name) = wanted.name {
        record.name = name.to_owned();
    }
    record.planned = wanted.planned;
    if !wanted.take.identity {
        crate::restore::identity::renew(&mut record);
    }
    let parts = plan(&chain, was, &record, wanted.disks)?;
    if let Some(part) = parts.iter().find(|p| p.target.symlink_metadata().is_ok()) {
        return Err(fault!(NameTaken, "the file", part.target.display()));
    }
    for disk in leave_out_others(&mut record, &parts) {
        let disk = disk.display();
        left_out.push(format!("the disk {disk} was not exported, and is left out"));
    }
    for part in &parts {
        part.put_in(&mut record);
    }
    // What QEMU could not make a machine of is better refused before its disks are written.
    let config = spec::machine_config(&record, &vmms.dirs, &vmms.options)?;
    if let Err(e) = config.validate() {
        return Err(fault!(ConfigRefused, directory.display(), e));
    }
    if !wanted.take.memory && exported::memory(&chain).is_some() {
        left_out.push(exported::WITHOUT_MEMORY.to_owned());
    }
    Ok(Prepared {
        chain: chain.into(),
        record,
        parts: parts.into(),
        disks: wanted.disks.to_owned(),
        memory: wanted.take.memory,
        left_out,
    })
}

impl Prepared {
    /// What was made and what was not, for people.
    pub(crate) fn report(&self) -> Vec<String> {
        let files = self.parts.iter().map(|p| p.target.display().to_string());
        files.chain(self.left_out.iter().cloned()).collect()
    }

    /// What the disks hold, as guests see it, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.parts.iter().map(|p| p.size).sum()
    }

    /// The directory in which the disks are written: nobody else's, on the file system where they go.
    fn staging(&self) -> PathBuf {
        let id = self.record.id.simple();
        self.disks.join(format!(".kvmms-import-{id}"))
    }

    fn staged(&self, part: &Part) -> PathBuf {
        let name = part.target.file_name().unwrap_or_default();
        self.staging().join(name)
    }

    /// Writes the disks, each block proven; `before` of `total` bytes of the whole work are done.
    pub(crate) async fn write(&self, ctx: &JobContext, before: u64, total: u64) -> Result<()> {
        let (cancel, told) = (ctx.cancel_flag(), ctx.clone());
        let (chain, parts) = (Arc::clone(&self.chain), Arc::clone(&self.parts));
        let (staging, dir) = (self.staging(), self.disks.clone());
        let staged: Vec<PathBuf> = self.parts.iter().map(|p| self.staged(p)).collect();
        blocking(move || {
            point::make_dir(&dir)?;
            // A name nobody else has: what is there is of an attempt of this job.
            remove_tree(&staging)?;
            let mut private = std::fs::DirBuilder::new();
            let made = private.mode(0o700).create(&staging);
            made.map_err(|e| Fault::io("create", &staging, &e))?;
            // Also what is not needed: an export that is damaged in one place may be in others.
            if let Some(export) = chain.last() {
                let mut files = export.manifest.files.iter();
                files.try_for_each(|file| export.prove(file, &cancel))?;
            }
            let mut before = before;
            for (part, target) in parts.iter().zip(&staged) {
                let progress = |p: disk::Progress| told.progress(before + p.done, total);
                disk::import_disk(&chain, &part.instance, target, &progress, &cancel)?;
                before += part.size;
            }
            Ok(())
        })
        .await
    }

    /// The files that were written, and where they go.
    fn placed(&self) -> Result<Vec<Placed>> {
        let found = self.parts.iter().map(|part| {
            let from = self.staged(part);
            let meta = from.symlink_metadata();
            let meta = meta.map_err(|e| Fault::io("look at", &from, &e))?;
            Ok(Placed {
                path: part.target.clone(),
                device: meta.dev(),
                inode: meta.ino(),
            })
        });
        found.collect()
    }

    /// Puts everything in its place; returns the machine, to be recorded.
    pub(crate) async fn finish(self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<Vm> {
        let (own, cancel) = (Arc::clone(vmms), ctx.cancel_flag());
        blocking(move || {
            for part in self.parts.iter() {
                disk::atomic::rename_new(&self.staged(part), &part.target)?;
            }
            let staging = self.staging();
            std::fs::remove_dir(&staging).map_err(|e| Fault::io("remove", &staging, &e))?;
            firmware(&own, &self.chain, self.record.id)?;
            let mut record = self.record;
            if self.memory
                && let Some(memory) = memory(&own, &self.chain, record.id, &cancel)?
            {
                record.power = Power::Saved;
                record.saved_state = Some(memory);
            }
            Ok(record)
        })
        .await
    }
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

/// A disk to be made: of which images, the base first, and where.
pub(crate) struct Part {
    pub(crate) device: String,
    /// What the manifests call it.
    pub(crate) instance: String,
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

/// The disks of a machine (as [`exported::machine`] gives it) and where they go.
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
        let size = files.virtual_size;
        crate::image::check_size(size)?;
        let stem = plain_stem(&disk.path);
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
            instance: entry.instance_id.clone(),
            layers: files.layers,
            target,
            size,
        });
    }
    Ok(parts)
}

/// What an exported disk was called, as far as a file can be called that.
fn plain_stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| {
        if c.is_alphanumeric() || "._- +@()".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = stem.chars().take(64).map(plain).collect();
    match name.trim_start_matches(['.', ' ']) {
        "" => "disk".to_owned(),
        name => name.to_owned(),
    }
}

/// Gives the machine the exported firmware variables.
pub(crate) fn firmware(vmms: &Vmms, chain: &[Export], id: Uuid) -> Result<()> {
    let Some(bytes) = exported::firmware(chain)? else {
        return Ok(());
    };
    let dir = spec::state_dir(&vmms.dirs, id);
    point::make_dir(&dir)?;
    Ok(disk::atomic::AtomicFile::replace(
        &dir.join("firmware-vars.fd"),
        &bytes,
    )?)
}

/// Gives the machine the exported memory: it goes on from there when it is started.
fn memory(
    vmms: &Vmms,
    chain: &[Export],
    id: Uuid,
    cancel: &disk::CancelFlag,
) -> Result<Option<PathBuf>> {
    let Some((export, file)) = exported::memory(chain) else {
        return Ok(None);
    };
    let dir = spec::state_dir(&vmms.dirs, id);
    point::make_dir(&dir)?;
    let target = dir.join("imported.vmstate");
    point::remove(&target)?;
    export.copy(file, &target, cancel)?;
    Ok(Some(target))
}

/// Removes what was made, unless the machine is there.
pub(crate) async fn undo(vmms: &Arc<Vmms>, ctx: &JobContext, id: Uuid) -> Result<()> {
    if vmms.db.get::<Vm>(id).is_ok() {
        return Ok(());
    }
    take_back(ctx).await
}

/// Removes what a job made for machines that did not come to be.
pub(crate) async fn take_back(ctx: &JobContext) -> Result<()> {
    let notes = ctx.notes::<Checkpoint>().unwrap_or_default();
    blocking(move || notes.undo()).await
}
