//! Disk images as such: making, resizing, converting, checking, describing them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use engine::{Claims, Work};
use hypervisor::image::ConvertOptions;
use hypervisor::{ImageFormat, NewImage};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::blocking;
use crate::job::{JobContext, Machines, Traits, storage};
use crate::machine::{Asked, Disk, Vm, spec};
use crate::merge;
use crate::trusted::{self, Seen};
use crate::{Effect, Element, Fault, Result, Use, Vmms, fault};

/// A disk image to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Where.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Whether all space is taken at once.
    pub fixed: bool,
    /// Its size in bytes; `None` with a parent: the parent's.
    pub size: Option<u64>,
    /// The image it differs from.
    pub parent: Option<PathBuf>,
}

/// Makes a disk image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateImage(pub ImageSpec);

#[async_trait]
impl Work<Machines> for CreateImage {
    fn traits(&self) -> Traits {
        storage(1, "Creating a virtual hard disk")
    }

    fn claims(&self) -> Claims {
        Claims::of_no_machine(&[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run_create(vmms, ctx, &self.0).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo_create(ctx, &self.0.path)
    }
}

/// Resizes a disk image, attached or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResizeImage {
    /// The image.
    pub path: PathBuf,
    /// Its new size in bytes.
    pub size: u64,
}

#[async_trait]
impl Work<Machines> for ResizeImage {
    fn traits(&self) -> Traits {
        storage(4, "Resizing a virtual hard disk").to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims::of_no_machine(&[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run_resize(vmms, ctx, &self.path, self.size).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        // It either happened or did not.
        Ok(())
    }
}

/// Copies an image into another format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvertImage {
    /// The image to read.
    pub source: PathBuf,
    /// The image to make.
    pub target: ImageSpec,
}

#[async_trait]
impl Work<Machines> for ConvertImage {
    fn traits(&self) -> Traits {
        storage(6, "Converting a virtual hard disk")
    }

    fn claims(&self) -> Claims {
        Claims::of_no_machine(&[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run_convert(vmms, ctx, &self.source, &self.target).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo_create(ctx, &self.target.path)
    }
}

/// Checks an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidateImage {
    /// The image.
    pub path: PathBuf,
}

#[async_trait]
impl Work<Machines> for ValidateImage {
    fn traits(&self) -> Traits {
        storage(9, "Validating a virtual hard disk")
    }

    fn claims(&self) -> Claims {
        Claims::of_no_machine(&[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run_validate(vmms, ctx, &self.path).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        Ok(())
    }
}

/// The largest disk: 64 TiB, as VHDX has it.
const MAX_SIZE: u64 = 64 << 40;

/// What an image is.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The file.
    pub path: PathBuf,
    /// Its true format.
    pub format: String,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes taken on the host, layers not counted.
    pub file_size: u64,
    /// Whether all space is taken.
    pub fixed: bool,
    /// The image it differs from.
    pub parent: Option<PathBuf>,
    /// Cluster or block size in bytes.
    pub block_size: Option<u64>,
    /// The machine it is attached to.
    pub attached_to: Option<Uuid>,
    /// An identifier that stays with the file: of the disk where attached, else made of the path.
    pub id: Uuid,
    /// When the file was made.
    pub created: Option<SystemTime>,
}

/// What the task noted: that the file is its own.
#[derive(Serialize, Deserialize)]
struct Mine {
    created: bool,
}

fn attached(vmms: &Vmms, path: &Path) -> Option<(Arc<Vm>, Disk)> {
    vmms.db.all::<Vm>().into_iter().find_map(|vm| {
        let disk = vm
            .disks()
            .find(|(_, d)| d.path == path)
            .map(|(_, d)| d.clone())?;
        Some((vm, disk))
    })
}

/// Describes an image, attached or not.
pub async fn describe(vmms: &Vmms, path: &Path) -> Result<Image> {
    let (seen, beneath) = trusted::top(vmms, path)?;
    let metadata = std::fs::metadata(path).map_err(|e| Fault::io("open", path, &e))?;
    let info = vmms.images.info_as(path, Some(seen.format), true).await;
    let info = info.map_err(|e| fault!(ImageUnreadable, path.display()).caused_by(e))?;
    let owner = attached(vmms, path);
    let mut size = info.virtual_size;
    if let Some((_, disk)) = &owner
        && let Some(active) = disk.layers.nodes.get(&disk.layers.active)
    {
        size = size.max(active.size);
    }
    let parent = beneath.map(|b| path.parent().unwrap_or(Path::new("/")).join(b.name));
    Ok(Image {
        path: path.to_owned(),
        fixed: info.format == "raw" || info.actual_size >= info.virtual_size,
        format: info.format,
        size,
        file_size: info.actual_size.max(metadata.len().min(info.actual_size)),
        parent,
        block_size: info.cluster_size,
        attached_to: owner.as_ref().map(|(vm, _)| vm.id),
        id: owner.map_or_else(
            || Uuid::new_v5(&Uuid::NAMESPACE_URL, path.as_os_str().as_encoded_bytes()),
            |(_, disk)| disk.uid,
        ),
        created: metadata.created().or_else(|_| metadata.modified()).ok(),
    })
}

pub(crate) fn check_size(size: u64) -> Result<()> {
    if size == 0 || !size.is_multiple_of(512) || size > MAX_SIZE {
        return Err(fault!(
            InvalidValue,
            "MaxInternalSize",
            format!("{size} bytes"),
            "a disk has a multiple of 512 bytes, at most 64 TiB"
        ));
    }
    Ok(())
}

fn check_new(vmms: &Vmms, path: &Path) -> Result<()> {
    vmms.may_use(Use::Image, path)?;
    if path.exists() {
        return Err(fault!(NameTaken, "file", path.display()));
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    vmms.may_make(Use::Image, dir)?;
    let metadata = std::fs::metadata(dir).map_err(|e| Fault::io("open", dir, &e))?;
    if !metadata.is_dir() {
        return Err(fault!(
            PathNotUsable,
            path.display(),
            "its parent is not a directory"
        ));
    }
    Ok(())
}

/// What a job on an image affects: the image, which clients know as the disk of a machine once it is attached, and the host
/// whose storage it is.
fn submission(vmms: &Vmms, asked: &Asked, path: &Path) -> crate::job::Submission {
    let mut affected = vec![(Element::Image(path.to_owned()), Effect::ExclusiveUse)];
    let owner = vmms.db.all::<Vm>().into_iter().find_map(|vm| {
        let device = vm.disks().find(|(_, d)| d.path == path)?.0.to_owned();
        Some((vm.id, device))
    });
    if let Some((vm, id)) = owner {
        affected.push((Element::Resource { vm, id }, Effect::ExclusiveUse));
        affected.push((Element::Vm(vm), Effect::Other));
    }
    affected.push((Element::Host, Effect::Performance));
    asked.submission(affected)
}

/// Starts the job that makes an image.
pub async fn create(vmms: &Arc<Vmms>, image: ImageSpec, asked: &Asked) -> Result<Uuid> {
    match (image.size, &image.parent) {
        (Some(size), _) => check_size(size)?,
        (None, Some(_)) => {}
        (None, None) => return Err(fault!(MissingValue, "MaxInternalSize")),
    }
    if image.parent.is_some() && image.format != ImageFormat::Qcow2 {
        return Err(fault!(
            NotServed,
            format!("a differencing image in format {}", image.format)
        ));
    }
    check_new(vmms, &image.path)?;
    if let Some(parent) = &image.parent {
        trusted::check_parent(vmms, parent, &image.path)?;
    }
    let path = image.path.clone();
    vmms.submit(CreateImage(image), submission(vmms, asked, &path))
        .await
}

fn new_image(image: &ImageSpec, path: PathBuf, below: Option<(ImageFormat, u64)>) -> NewImage {
    let size = image.size.or(below.map(|(_, size)| size));
    let mut new = NewImage::new(path, image.format, size.unwrap_or_default());
    new.fixed = image.fixed;
    new.backing = image
        .parent
        .as_ref()
        .zip(below)
        .map(|(parent, (format, _))| (parent.display().to_string(), format));
    new
}

/// An image and what lies beneath it, base first.
async fn chain(vmms: &Arc<Vmms>, path: &Path) -> Result<Vec<Seen>> {
    let (own, path) = (Arc::clone(vmms), path.to_owned());
    blocking(move || trusted::chain(&own, &path)).await
}

/// Remembers what a file is that was made here.
async fn remember(vmms: &Vmms, path: &Path, format: ImageFormat) -> Result<()> {
    let known = trusted::known(path, format);
    vmms.db
        .change(|draft| {
            draft.put(known);
            Ok(())
        })
        .await
}

/// The name a file has until it is finished.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Gives a finished file its name, durably, and never over another file.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let file = std::fs::File::open(from).map_err(|e| Fault::io("open", from, &e))?;
    file.sync_all().map_err(|e| Fault::io("sync", from, &e))?;
    std::fs::hard_link(from, to).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => fault!(NameTaken, "file", to.display()),
        _ => Fault::io("create", to, &e),
    })?;
    std::fs::remove_file(from).map_err(|e| Fault::io("remove", from, &e))?;
    let dir = to.parent().unwrap_or(Path::new("/"));
    let dir_file = std::fs::File::open(dir).map_err(|e| Fault::io("open", dir, &e))?;
    dir_file.sync_all().map_err(|e| Fault::io("sync", dir, &e))
}

pub(crate) async fn run_create(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    image: &ImageSpec,
) -> Result<()> {
    let failed = |e: Fault| fault!(ImageCreate, image.path.display()).caused_by(e);
    check_new(vmms, &image.path)?;
    let backing = match &image.parent {
        Some(parent) => {
            let files = chain(vmms, parent).await.map_err(failed)?;
            let format = files.last().map_or(ImageFormat::Raw, |f| f.format);
            let info = vmms.images.info_as(parent, Some(format), true).await;
            Some((format, info.map_err(|e| failed(e.into()))?.virtual_size))
        }
        None => None,
    };
    let temporary = partial(&image.path);
    ctx.note(&Mine { created: true }).await?;
    let _ = std::fs::remove_file(&temporary);
    let made = vmms
        .images
        .create(&new_image(image, temporary.clone(), backing))
        .await;
    made.map_err(|e| failed(e.into()))?;
    ctx.no_return().await?;
    publish(&temporary, &image.path).map_err(failed)?;
    remember(vmms, &image.path, image.format).await
}

pub(crate) fn undo_create(ctx: &JobContext, path: &Path) -> Result<()> {
    if ctx.notes::<Mine>().is_some_and(|m| m.created) {
        let temporary = partial(path);
        match std::fs::remove_file(&temporary) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Fault::io("remove", &temporary, &e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Starts the job that resizes an image.
pub async fn resize(vmms: &Arc<Vmms>, path: &Path, size: u64, asked: &Asked) -> Result<Uuid> {
    check_size(size)?;
    let image = describe(vmms, path).await?;
    if size < image.size {
        return Err(fault!(ShrinkRefused, path.display(), image.size, size));
    }
    let task = ResizeImage {
        path: path.to_owned(),
        size,
    };
    vmms.submit(task, submission(vmms, asked, path)).await
}

pub(crate) async fn run_resize(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    path: &Path,
    size: u64,
) -> Result<()> {
    let failed = |e: Fault| fault!(ImageResize, path.display()).caused_by(e);
    let Some((vm, _)) = attached(vmms, path) else {
        let files = chain(vmms, path).await.map_err(failed)?;
        let files: Vec<_> = files.iter().map(Seen::file).collect();
        ctx.no_return().await?;
        let done = vmms.images.resize_chain(&files, size).await;
        return done.map_err(|e| failed(e.into()));
    };
    let _lock = vmms.lock(vm.id).await;
    // Nobody may merge the layer away meanwhile.
    let _paused = merge::pause_merges(vmms, vm.id).await;
    merge::reconcile(vmms, vm.id).await?;
    let vm = vmms.db.get::<Vm>(vm.id)?;
    let Some(disk) = vm.disks().find(|(_, d)| d.path == path).map(|(_, d)| d) else {
        return Err(failed(fault!(DiskNotFound, vm.name, path.display())));
    };
    if vm.power == crate::machine::Power::Saved {
        return Err(fault!(
            WrongVmState,
            vm.name,
            "saved",
            "resizing a disk",
            "off, running or paused"
        )
        .about(Element::Vm(vm.id)));
    }
    ctx.no_return().await?;
    match vmms.machine(vm.id) {
        Some(machine) => machine
            .resize(&spec::drive_id(disk), size)
            .await
            .map_err(|e| failed(e.into()))?,
        None => {
            let active = disk.layers.active_chain();
            let files: Vec<_> = active
                .iter()
                .map(|l| (l.path.as_path(), l.format))
                .collect();
            trusted::check_known(files.iter().copied()).map_err(failed)?;
            let done = vmms.images.resize_chain(&files, size).await;
            done.map_err(|e| failed(e.into()))?;
        }
    }
    let uid = disk.uid;
    vmms.db
        .change(|draft| {
            if let Some(disk) = draft.get_mut::<Vm>(vm.id)?.disk_mut(uid) {
                let active = disk.layers.active;
                if let Some(node) = disk.layers.nodes.get_mut(&active) {
                    node.size = size;
                }
            }
            Ok(())
        })
        .await
}

/// Starts the job that copies an image into another format.
pub async fn convert(
    vmms: &Arc<Vmms>,
    source: &Path,
    target: ImageSpec,
    asked: &Asked,
) -> Result<Uuid> {
    if let Some((vm, _)) = attached(vmms, source) {
        return Err(fault!(ImageInUse, source.display(), vm.name).about(Element::Vm(vm.id)));
    }
    trusted::named(vmms, source)?;
    std::fs::metadata(source).map_err(|e| Fault::io("open", source, &e))?;
    check_new(vmms, &target.path)?;
    let path = target.path.clone();
    let task = ConvertImage {
        source: source.to_owned(),
        target,
    };
    vmms.submit(task, submission(vmms, asked, &path)).await
}

pub(crate) async fn run_convert(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    source: &Path,
    target: &ImageSpec,
) -> Result<()> {
    let failed = |e: Fault| fault!(ImageCreate, target.path.display()).caused_by(e);
    let files = chain(vmms, source).await.map_err(failed)?;
    let files: Vec<_> = files.iter().map(Seen::file).collect();
    let temporary = partial(&target.path);
    ctx.note(&Mine { created: true }).await?;
    let _ = std::fs::remove_file(&temporary);
    let options = ConvertOptions {
        fixed: target.fixed,
        ..ConvertOptions::default()
    };
    tokio::select! {
        done = vmms.images.convert_chain(&files, (&temporary, target.format), &options) => {
            done.map_err(|e| failed(e.into()))?;
        }
        stop = ctx.stop_asked() => return Err(stop),
    }
    ctx.no_return().await?;
    publish(&temporary, &target.path).map_err(failed)?;
    remember(vmms, &target.path, target.format).await
}

/// Starts the job that checks an image.
pub async fn validate(vmms: &Arc<Vmms>, path: &Path, asked: &Asked) -> Result<Uuid> {
    trusted::named(vmms, path)?;
    std::fs::metadata(path).map_err(|e| Fault::io("open", path, &e))?;
    vmms.submit(
        ValidateImage {
            path: path.to_owned(),
        },
        submission(vmms, asked, path),
    )
    .await
}

pub(crate) async fn run_validate(vmms: &Arc<Vmms>, ctx: &JobContext, path: &Path) -> Result<()> {
    let unreadable = |e: Fault| fault!(ImageUnreadable, path.display()).caused_by(e);
    let files = chain(vmms, path).await.map_err(unreadable)?;
    for (at, format) in files.iter().map(Seen::file).rev() {
        let info = vmms.images.info_as(at, Some(format), true).await;
        info.map_err(|e| unreadable(e.into()))?;
        let owner = attached(vmms, at);
        let checkable = matches!(
            format,
            ImageFormat::Qcow2 | ImageFormat::Vhdx | ImageFormat::Vmdk
        );
        // A running machine's image is written meanwhile: its own process keeps it consistent.
        if checkable && owner.is_none_or(|(vm, _)| vmms.machine(vm.id).is_none()) {
            let report = vmms.images.check_one(at, format).await;
            let report = report.map_err(|e| unreadable(e.into()))?;
            if report.corruptions > 0 || report.check_errors > 0 {
                let text = format!(
                    "{} damaged clusters, {} check errors",
                    report.corruptions, report.check_errors
                );
                return Err(unreadable(fault!(Block, text)));
            }
        }
        ctx.checkpoint().await?;
    }
    Ok(())
}
