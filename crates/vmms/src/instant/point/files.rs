//! The files of layers and points: where they are, how they are opened, and whether they are what the tree says.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use disk::{Chain, LayerSpec, Qcow2Layer, RawLayer, Source};
use hypervisor::ImageFormat;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk_tree::{LayerRef, LayerTree, Stamp};
use crate::machine::{Disk, Vm, spec};
use crate::{Fault, Result, Vmms, fault, guid};

/// The identifier clients see for a disk of a machine.
pub fn disk_id_text(vm: Uuid, device: &str) -> String {
    format!("Microsoft:{}\\{device}", guid(vm))
}

/// Where a new layer of a disk goes: beside the image; for a block device, which has no such place, under the state
/// directory.
pub(crate) fn layer_path(vmms: &Vmms, disk: &Disk, layer: Uuid) -> Result<PathBuf> {
    let is_device = std::fs::metadata(&disk.path).is_ok_and(|m| m.file_type().is_block_device());
    if is_device {
        let dir = vmms.dirs.state.join("layers").join(disk.uid.to_string());
        make_dir(&dir)?;
        return Ok(dir.join(format!("kvmms-{layer}.qcow2")));
    }
    let mut name = disk
        .path
        .file_name()
        .ok_or_else(|| fault!(PathNotUsable, disk.path.display(), "it has no file name"))?
        .to_owned();
    name.push(format!(".kvmms-{layer}.qcow2"));
    Ok(disk.path.with_file_name(name))
}

/// Whether a file is named as layers are.
pub(crate) fn is_layer_name(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let id = name
        .strip_suffix(".qcow2")
        .and_then(|n| n.rsplit_once("kvmms-"));
    id.is_some_and(|(_, id)| id.parse::<Uuid>().is_ok())
}

/// Where the change map of a node is kept.
pub(crate) fn map_path(vmms: &Vmms, disk: Uuid, node: Uuid) -> PathBuf {
    let dir = vmms.dirs.state.join("maps").join(disk.to_string());
    dir.join(format!("{node}.map"))
}

/// Where the files of a point are kept.
pub(crate) fn point_dir(vmms: &Vmms, point: Uuid) -> PathBuf {
    vmms.dirs.state.join("points").join(point.to_string())
}

/// Where the hashes of a point's disk are kept once it was exported.
pub(crate) fn blocks_path(vmms: &Vmms, point: Uuid, disk: Uuid) -> PathBuf {
    point_dir(vmms, point).join(format!("{disk}.blocks"))
}

/// The configuration of a machine as it is kept with a point and in exports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SavedConfig {
    /// `kvmms-machine`.
    pub(crate) format: String,
    /// 1.
    pub(crate) version: u32,
    /// The machine.
    pub(crate) machine: Vm,
}

/// The mark of a configuration file.
pub(crate) const CONFIG_FORMAT: &str = "kvmms-machine";

/// The firmware variables of a point, beside its configuration.
pub(crate) const FIRMWARE_VARS: &str = "firmware-vars.fd";

/// Writes the machine's configuration for a point, and a copy of its firmware variables; returns where the first is.
pub(crate) fn save_config(vmms: &Vmms, vm: &Vm, point: Uuid) -> Result<PathBuf> {
    let dir = point_dir(vmms, point);
    make_dir(&dir)?;
    let path = dir.join("machine.json");
    let config = SavedConfig {
        format: CONFIG_FORMAT.to_owned(),
        version: 1,
        machine: vm.clone(),
    };
    let text = serde_json::to_vec_pretty(&config).map_err(|e| fault!(Internal, e))?;
    disk::atomic::AtomicFile::replace(&path, &text)?;
    let vars = spec::state_dir(&vmms.dirs, vm.id).join("firmware-vars.fd");
    if vm.generation == 2 && vars.exists() {
        let bytes = std::fs::read(&vars).map_err(|e| Fault::io("read", &vars, &e))?;
        disk::atomic::AtomicFile::replace(&dir.join(FIRMWARE_VARS), &bytes)?;
    }
    Ok(path)
}

/// Reads a machine's configuration.
pub(crate) fn load_config(path: &Path) -> Result<SavedConfig> {
    let text = std::fs::read(path).map_err(|e| Fault::io("read", path, &e))?;
    let config: SavedConfig = serde_json::from_slice(&text).map_err(|e| {
        fault!(
            WrongType,
            path.display(),
            format!("it is no machine configuration: {e}")
        )
    })?;
    if config.format != CONFIG_FORMAT || config.version != 1 {
        let what = format!("{} version {}", config.format, config.version);
        return Err(fault!(
            WrongType,
            path.display(),
            format!("{what} is not known")
        ));
    }
    Ok(config)
}

/// Removes a file; one that is gone is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Fault::io("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Makes a file that a tool wrote, and its name, durable.
pub(crate) fn sync(path: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Fault::io("sync", path, &e);
    std::fs::File::open(path)
        .and_then(|f| f.sync_all())
        .map_err(failed)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    std::fs::File::open(dir)
        .and_then(|f| f.sync_all())
        .map_err(|e| Fault::io("sync", dir, &e))
}

/// Makes a directory and all above it that are missing, each durable in the one that holds it.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(Path::new("/"));
    make_dir(parent)?;
    match std::fs::create_dir(dir) {
        Ok(()) => sync_dir(parent),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Fault::io("create", dir, &e)),
    }
}

/// How the data plane reads a layer.
pub(crate) fn layer_spec(layer: &LayerRef) -> Result<LayerSpec> {
    match layer.format {
        ImageFormat::Qcow2 => Ok(LayerSpec::qcow2(&layer.path)),
        ImageFormat::Raw => Ok(LayerSpec::raw(&layer.path)),
        other => {
            let what = format!("exporting a disk whose base image is {}", other.as_str());
            Err(fault!(NotServed, what))
        }
    }
}

/// Refuses an instant that the data plane cannot read.
pub(crate) fn check_formats(tree: &LayerTree, node: Uuid) -> Result<()> {
    let files = tree.chain(node).unwrap_or_default();
    files.iter().try_for_each(|file| layer_spec(file).map(drop))
}

/// The stamp of a layer's file. A block device has none: its times say nothing about its content.
pub(crate) fn stamp(path: &Path) -> Result<Option<Stamp>> {
    let failed = |e: std::io::Error| Fault::io("look at", path, &e);
    if std::fs::metadata(path)
        .map_err(failed)?
        .file_type()
        .is_block_device()
    {
        return Ok(None);
    }
    Stamp::of(path).map(Some).map_err(failed)
}

/// The stamp of a file that was written a moment ago. Its time of change is made durable first: what QEMU syncs is the data, and a
/// power cut would bring an older time back, as if something else had changed the file.
pub(crate) fn stamp_written(path: &Path) -> Result<Option<Stamp>> {
    std::fs::File::open(path)
        .and_then(|f| f.sync_all())
        .map_err(|e| Fault::io("sync", path, &e))?;
    stamp(path)
}

/// The size of the disk a frozen layer shows, in bytes.
pub(crate) async fn size_of(vmms: &Vmms, layer: &LayerRef) -> Result<u64> {
    Ok(match layer.format {
        ImageFormat::Qcow2 => Qcow2Layer::open(&layer.path)?.virtual_size(),
        ImageFormat::Raw => RawLayer::open(&layer.path)?.size(),
        other => {
            vmms.images
                .info_as(&layer.path, Some(other), true)
                .await?
                .virtual_size
        }
    })
}

/// The nodes of the line of `node` that have files, base first.
fn nodes_with_files(tree: &LayerTree, node: Uuid) -> Vec<Uuid> {
    let mut line = tree.line(node);
    line.retain(|id| tree.nodes.get(id).is_some_and(|n| n.file.is_some()));
    line.reverse();
    line
}

/// Whether `name` in the header of `above` means the file `below`, whatever links lead there.
pub(crate) fn names_backing(above: &Path, name: &str, below: &Path) -> bool {
    let named = above.parent().unwrap_or(Path::new("/")).join(name);
    let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
    named == below || same(&named, below).unwrap_or(false)
}

/// A disk as people know it: by its image; by its identifier where that cannot be told.
fn image_of(device: &str, tree: &LayerTree) -> String {
    let line = tree.line(tree.active).into_iter().rev();
    let mut files = line.filter_map(|id| tree.nodes.get(&id)?.file.as_ref());
    // What others share lies beneath the image.
    let image = files.find(|f| !f.shared);
    image.map_or_else(|| device.to_owned(), |f| f.path.display().to_string())
}

/// Checks that the files beneath `node` are there, are what the tree says, and were written by nobody else.
/// The active node's own file is only checked for being there.
pub(crate) fn check_chain(device: &str, tree: &LayerTree, node: Uuid) -> Result<()> {
    let mut below: Option<LayerRef> = None;
    for id in nodes_with_files(tree, node) {
        let Some((record, file)) = tree.nodes.get(&id).and_then(|n| Some((n, n.file.clone()?)))
        else {
            continue;
        };
        let shown = file.path.display();
        let found = Stamp::of(&file.path).map_err(|e| {
            let missing = e.kind() == std::io::ErrorKind::NotFound;
            let cause = Fault::io("look at", &file.path, &e);
            if missing {
                fault!(LayerMissing, shown, image_of(device, tree)).caused_by(cause)
            } else {
                cause
            }
        })?;
        if record.lost && id == node {
            let file = tree.why_lost(node).map_or(&file.path, |f| &f.file);
            return Err(fault!(ImageTampered, file.display(), "it was frozen"));
        }
        if record.stamp.is_some_and(|s| s != found) {
            return Err(fault!(ImageTampered, shown, "it was frozen"));
        }
        if let Some(below) = &below {
            let header = Qcow2Layer::open(&file.path)?;
            let fits = header
                .backing()
                .is_some_and(|name| names_backing(&file.path, name, &below.path));
            if !fits {
                let beneath = header.backing().unwrap_or("nothing").to_owned();
                let lies = format!("{shown} lies on {beneath}, not on {}", below.path.display());
                let disk = image_of(device, tree);
                return Err(fault!(TrackingLost, disk, guid(node)).caused_by(fault!(Block, lies)));
            }
        } else if file.format == ImageFormat::Qcow2 {
            let header = Qcow2Layer::open(&file.path)?;
            if let Some(name) = header.backing() {
                let why = format!(
                    "it is a layer on {name}, which its machine does not own; convert it into an image of its own"
                );
                return Err(fault!(WrongType, shown, why));
            }
        }
        below = Some(file);
    }
    Ok(())
}

/// Whether the file of a frozen node still is exactly what changed from its parent, so that its map can be read again. Not once the
/// parent's file was handed on to a later instant: this file then holds more. Not when something else wrote to it.
pub(crate) fn tells_changes(tree: &LayerTree, node: Uuid) -> bool {
    let Some(record) = tree.nodes.get(&node) else {
        return false;
    };
    let parent = record.parent.and_then(|p| tree.nodes.get(&p));
    let (Some(file), Some(Some(_))) = (&record.file, parent.map(|p| &p.file)) else {
        return false;
    };
    let untouched = |was: Stamp| Stamp::of(&file.path).is_ok_and(|found| found == was);
    record.foreign.is_none() && record.stamp.is_none_or(untouched)
}

/// Opens the present of a disk that no process has open, after checking its files.
pub(crate) fn open_present(device: &str, tree: &LayerTree) -> Result<Chain> {
    check_chain(device, tree, tree.active)?;
    let specs = tree
        .active_chain()
        .iter()
        .map(layer_spec)
        .collect::<Result<Vec<_>>>()?;
    Ok(Chain::open(&specs)?)
}

/// Opens the content of a frozen node for reading, after checking its files.
pub(crate) fn open_chain(device: &str, tree: &LayerTree, node: Uuid) -> Result<Chain> {
    check_chain(device, tree, node)?;
    let files = tree
        .chain(node)
        .ok_or_else(|| fault!(TrackingLost, image_of(device, tree), guid(node)))?;
    let specs = files.iter().map(layer_spec).collect::<Result<Vec<_>>>()?;
    let chain = Chain::open(&specs)?;
    let expected = tree.nodes.get(&node).map_or(0, |n| n.size);
    if chain.size() != expected {
        let top = files
            .last()
            .map(|f| f.path.display().to_string())
            .unwrap_or_default();
        return Err(fault!(ImageTampered, top, "it was frozen"));
    }
    Ok(chain)
}
