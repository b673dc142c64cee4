//! Taking over layers that lie on an image and that no record names: of a service that is gone, of a record that was lost, of a machine
//! that was given up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::ImageFormat;
use hypervisor::image::write_owner;
use uuid::Uuid;

use super::device::{self, NewDevice};
use super::{DeviceKind, Power, Vm};
use crate::blocking;
use crate::disk_tree::{LayerNode, LayerRef, LayerTree, Stamp};
use crate::host::check::beside::{Beside, unknown_above};
use crate::host::check::open_by;
use crate::host::owner::Owner;
use crate::{Element, Fault, Result, Vmms, fault, guid};

/// What to take over.
#[derive(Clone, Debug, Default)]
pub struct Adopt {
    /// The drive the image goes into; `None` where the machine has the image already.
    pub drive: Option<String>,
    /// The image.
    pub image: PathBuf,
    /// The uppermost layer to take, where several lines of layers lie on the image, or not all are wanted.
    pub top: Option<PathBuf>,
    /// Whether layers that name another state directory as their owner are taken as well.
    pub of_others: bool,
}

/// What was taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// The disk's identifier.
    pub device: String,
    /// The files, the lowest first.
    pub layers: Vec<PathBuf>,
    /// What a person should know.
    pub remarks: Vec<String>,
}

/// Takes the layers on an image as those of a disk, after checking them. Nothing is written but their owner.
pub async fn adopt_layers(vmms: &Arc<Vmms>, id: Uuid, wanted: Adopt) -> Result<Adopted> {
    let record = vmms.db.get::<Vm>(id)?;
    if record.power != Power::Off || vmms.machine(id).is_some() {
        let state = vmms.state_of(&record);
        let what = "taking over layers";
        return Err(
            fault!(WrongVmState, record.name, state.word(), what, "off").about(Element::Vm(id))
        );
    }
    let taken = match &wanted.drive {
        None => extend(vmms, id, &wanted, false).await?,
        Some(drive) => attach(vmms, id, drive.clone(), &wanted).await?,
    };
    owned(vmms, id, taken).await
}

/// Takes the layers on a disk whose record is older than they are. A process of the machine may have them open: it put them there.
pub(crate) async fn take_up(vmms: &Arc<Vmms>, id: Uuid, wanted: &Adopt) -> Result<Adopted> {
    let taken = extend(vmms, id, wanted, true).await?;
    owned(vmms, id, taken).await
}

async fn owned(vmms: &Arc<Vmms>, id: Uuid, taken: Taken) -> Result<Adopted> {
    let (device, uid, line, remarks) = taken;
    // Only now: until the record names them they are what they were.
    for layer in &line {
        let owner = Owner {
            state: vmms.identity,
            vm: id,
            disk: uid,
            layer: layer.layer,
        };
        if layer.owner != Some(owner) {
            own(vmms, id, uid, layer, owner).await?;
        }
    }
    Ok(Adopted {
        device,
        layers: line.into_iter().map(|b| b.path).collect(),
        remarks,
    })
}

type Taken = (String, Uuid, Vec<Beside>, Vec<String>);

/// Writes the new owner into a layer, and what the file looks like then into the record.
async fn own(vmms: &Arc<Vmms>, id: Uuid, uid: Uuid, layer: &Beside, owner: Owner) -> Result<()> {
    let (path, text) = (layer.path.clone(), owner.to_string());
    let stamp = blocking(move || {
        write_owner(&path, &text)?;
        Stamp::of(&path).map_err(|e| Fault::io("look at", &path, &e))
    })
    .await?;
    vmms.db
        .change(|draft| {
            let Some(disk) = draft.get_mut::<Vm>(id)?.disk_mut(uid) else {
                return Ok(());
            };
            let active = disk.layers.active;
            for (node, record) in &mut disk.layers.nodes {
                let same = record.file.as_ref().is_some_and(|f| f.layer == layer.layer);
                if same && *node != active {
                    record.stamp = Some(stamp);
                }
            }
            Ok(())
        })
        .await
}

/// The layers from the image up to the one that is wanted, each lying on the one before.
fn line(found: &[Beside], wanted: &Adopt) -> Result<Vec<Beside>> {
    let image = &wanted.image;
    let refuse = |why: String| fault!(LayersNotAdoptable, image.display(), why);
    if found.is_empty() {
        return Err(refuse(
            "no layers lie on it that no record names".to_owned(),
        ));
    }
    let same = |a: &Path, b: &Path| {
        a.canonicalize()
            .ok()
            .is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b))
    };
    let tops: Vec<&Beside> = found
        .iter()
        .filter(|b| !found.iter().any(|other| same(&other.on, &b.path)))
        .collect();
    let top = match (&wanted.top, tops.as_slice()) {
        (Some(top), _) => {
            let found = found.iter().find(|b| same(&b.path, top));
            found.ok_or_else(|| refuse(format!("{} is none of the layers on it", top.display())))?
        }
        (None, [one]) => *one,
        (None, several) => {
            let shown: Vec<String> = several
                .iter()
                .map(|b| b.path.display().to_string())
                .collect();
            let why = format!(
                "several lines of layers lie on it, and only one can be the disk: name the uppermost layer of it, one of {}",
                shown.join(", ")
            );
            return Err(refuse(why));
        }
    };
    let mut line = vec![top.clone()];
    while let Some(below) = line
        .last()
        .and_then(|at| found.iter().find(|b| same(&b.path, &at.on)))
    {
        if line.len() > found.len() {
            return Err(refuse(
                "its layers lie on each other in a circle".to_owned(),
            ));
        }
        line.push(below.clone());
    }
    line.reverse();
    Ok(line)
}

/// Checks each layer: whole, in nobody's hands, ours, and not smaller than what it lies on.
async fn check(
    vmms: &Arc<Vmms>,
    line: &[Beside],
    size: u64,
    wanted: &Adopt,
    running: bool,
) -> Result<Vec<String>> {
    let refuse = |why: String| fault!(LayersNotAdoptable, wanted.image.display(), why);
    let mut below = size;
    for layer in line {
        let shown = layer.path.display();
        let user = open_by(&layer.path);
        if let Some(pid) = user.filter(|_| !running) {
            return Err(refuse(format!("process {pid} has {shown} open")));
        }
        if let Some(owner) = layer.owner.filter(|o| o.state != vmms.identity)
            && !wanted.of_others
        {
            return Err(refuse(format!(
                "{shown} says that it belongs to machine {} of the state directory {}, which is another one",
                guid(owner.vm),
                owner.state
            )));
        }
        if layer.size < below {
            return Err(refuse(format!(
                "{shown} has {} bytes, less than the {below} of what it lies on",
                layer.size
            )));
        }
        below = layer.size;
        if user.is_some() {
            continue;
        }
        let report = vmms.images.check_layer(&layer.path).await?;
        if report.corruptions > 0 || report.check_errors > 0 {
            return Err(refuse(format!(
                "{shown} is damaged: {} clusters, {} check errors",
                report.corruptions, report.check_errors
            )));
        }
    }
    let mut remarks = Vec::new();
    if let Some(lowest) = line.first() {
        let changed = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let newest = line.iter().filter_map(|b| changed(&b.path)).max();
        if changed(&lowest.on) > newest {
            remarks.push(format!(
                "{} was written to after its newest layer: if a guest ran on it alone, its file systems do not fit the layers; check them",
                lowest.on.display()
            ));
        }
    }
    Ok(remarks)
}

fn file(layer: &Beside) -> LayerRef {
    LayerRef {
        layer: layer.layer,
        path: layer.path.clone(),
        format: ImageFormat::Qcow2,
        shared: false,
    }
}

/// Puts the layers on top of the tree, each as an instant of its own; the uppermost is the present.
fn grow(tree: &mut LayerTree, line: &[Beside]) -> Result<()> {
    for layer in line {
        if let Some(old) = tree.nodes.get_mut(&tree.active)
            && let Some(below) = &old.file
        {
            let stamp =
                Stamp::of(&below.path).map_err(|e| Fault::io("look at", &below.path, &e))?;
            old.stamp = Some(stamp);
        }
        let node = LayerNode {
            parent: Some(tree.active),
            file: Some(file(layer)),
            map: None,
            size: layer.size,
            stamp: None,
            lost: false,
            foreign: None,
        };
        let id = Uuid::new_v4();
        tree.nodes.insert(id, node);
        tree.active = id;
    }
    Ok(())
}

fn top_of(tree: &LayerTree) -> Result<LayerRef> {
    let top = tree.active_chain().pop();
    top.ok_or_else(|| fault!(Internal, "a disk without layers"))
}

/// Whether the lowest layer takes what it lies on for what it is.
fn fits(line: &[Beside], below: &LayerRef, image: &Path) -> Result<()> {
    let named = line.first().and_then(|b| b.on_format.clone());
    let told = named.as_deref().and_then(ImageFormat::from_driver);
    if told.is_some_and(|format| format == below.format) {
        return Ok(());
    }
    let why = format!(
        "its lowest layer takes {} for {}, and it is {}",
        below.path.display(),
        named.as_deref().unwrap_or("an image of no format"),
        below.format
    );
    Err(fault!(LayersNotAdoptable, image.display(), why))
}

/// A disk that is there gets the layers above its present.
async fn extend(vmms: &Arc<Vmms>, id: Uuid, wanted: &Adopt, running: bool) -> Result<Taken> {
    let _lock = vmms.lock(id).await;
    let record = vmms.db.get::<Vm>(id)?;
    let (device, disk) = record
        .disks()
        .find(|(_, d)| d.path == wanted.image)
        .map(|(device, disk)| (device.to_owned(), disk.clone()))
        .ok_or_else(|| fault!(DiskNotFound, record.name, wanted.image.display()))?;
    if disk.layers.pending.is_some() {
        let why = "its layers are being changed";
        return Err(fault!(LayersNotAdoptable, wanted.image.display(), why));
    }
    let top = top_of(&disk.layers)?;
    let line = line(&unknown_above(vmms, &top.path), wanted)?;
    let size = disk
        .layers
        .nodes
        .get(&disk.layers.active)
        .map_or(0, |n| n.size);
    fits(&line, &top, &wanted.image)?;
    let remarks = check(vmms, &line, size, wanted, running).await?;
    let mut tree = disk.layers.clone();
    grow(&mut tree, &line)?;
    vmms.db
        .change(|draft| {
            let now = draft.get_mut::<Vm>(id)?.disk_mut(disk.uid);
            let now =
                now.ok_or_else(|| fault!(DiskNotFound, record.name, wanted.image.display()))?;
            now.layers = tree;
            Ok(())
        })
        .await?;
    Ok((device, disk.uid, line, remarks))
}

/// An image that is nobody's goes into a drive together with its layers.
async fn attach(vmms: &Arc<Vmms>, id: Uuid, drive: String, wanted: &Adopt) -> Result<Taken> {
    let mut tree = device::open_image(vmms, &wanted.image).await?;
    let base = top_of(&tree)?;
    let line = line(&unknown_above(vmms, &wanted.image), wanted)?;
    let size = tree.nodes.get(&tree.active).map_or(0, |n| n.size);
    fits(&line, &base, &wanted.image)?;
    let remarks = check(vmms, &line, size, wanted, false).await?;
    grow(&mut tree, &line)?;
    let new = NewDevice::Disk {
        drive,
        path: wanted.image.clone(),
        read_only: false,
    };
    let device = device::add_opened(vmms, id, new, None, Some(tree)).await?;
    let record = vmms.db.get::<Vm>(id)?;
    let uid = match record.device(&device).map(|d| &d.kind) {
        Some(DeviceKind::Disk(disk)) => disk.uid,
        _ => return Err(fault!(DiskNotFound, record.name, wanted.image.display())),
    };
    Ok((device, uid, line, remarks))
}
