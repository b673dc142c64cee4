//! Change maps: read from a layer when it freezes, kept as files, joined for differences.

use disk::{ChangeMap, Qcow2Layer};
use hypervisor::ImageFormat;
use uuid::Uuid;

use crate::disk_tree::{LayerNode, LayerTree};
use crate::machine::Disk;
use crate::point::files;
use crate::{Result, Vmms, fault, guid};

/// What a layer's file itself defines, with everything a change of the disk's size alone changes.
fn of_layer(node: &LayerNode, parent_size: u64) -> Result<(ChangeMap, u64)> {
    let file = node
        .file
        .as_ref()
        .ok_or_else(|| fault!(Internal, "a layer without file was read"))?;
    if file.format != ImageFormat::Qcow2 {
        return Err(fault!(Internal, "only a qcow2 layer has a map"));
    }
    let layer = Qcow2Layer::open(&file.path)?;
    let size = layer.virtual_size();
    let resized = ChangeMap::of(size.min(parent_size)..size.max(parent_size));
    Ok((layer.allocation()?.union(&resized), size.max(parent_size)))
}

/// Reads the map of a node that has just been frozen and keeps it as a file. A root has none.
pub(crate) fn keep(vmms: &Vmms, disk: &Disk, node: Uuid) -> Result<()> {
    let tree = &disk.layers;
    let Some(record) = tree.nodes.get(&node) else {
        return Ok(());
    };
    let Some(parent) = record.parent.and_then(|p| tree.nodes.get(&p)) else {
        return Ok(());
    };
    let (map, size) = of_layer(record, parent.size)?;
    save(vmms, disk.uid, node, &map, size)
}

/// Writes a map file.
pub(crate) fn save(vmms: &Vmms, disk: Uuid, node: Uuid, map: &ChangeMap, size: u64) -> Result<()> {
    let path = files::map_path(vmms, disk, node);
    if let Some(dir) = path.parent() {
        files::make_dir(dir)?;
    }
    Ok(map.save(&path, size)?)
}

/// The map of a frozen node. One that is missing or damaged is read again from the layer, as long as the layer still
/// is exactly the difference to the node's parent.
pub(crate) fn load(vmms: &Vmms, disk: &Disk, node: Uuid) -> Result<(ChangeMap, u64)> {
    let tree = &disk.layers;
    let lost = || fault!(TrackingLost, disk.path.display(), guid(node));
    let record = tree.nodes.get(&node).ok_or_else(lost)?;
    let path = record.map.as_ref().ok_or_else(lost)?;
    let error = match ChangeMap::load(path) {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    let parent = record
        .parent
        .and_then(|p| tree.nodes.get(&p))
        .ok_or_else(lost)?;
    if !files::tells_changes(tree, node) {
        return Err(lost().caused_by(error));
    }
    tracing::warn!(node = %guid(node), %error, "a change map is read again from its layer");
    let (map, size) = of_layer(record, parent.size)?;
    save(vmms, disk.uid, node, &map, size)?;
    Ok((map, size))
}

/// What the active layer's file defines. Only right while no process has it open.
pub(crate) fn of_stopped_active(tree: &LayerTree) -> Result<(ChangeMap, u64)> {
    let node = tree
        .nodes
        .get(&tree.active)
        .ok_or_else(|| fault!(Internal, "a tree without active node"))?;
    let parent = node
        .parent
        .and_then(|p| tree.nodes.get(&p))
        .map_or(0, |p| p.size);
    let (map, _) = of_layer(node, parent)?;
    let file = node
        .file
        .as_ref()
        .ok_or_else(|| fault!(Internal, "an active node without file"))?;
    let size = Qcow2Layer::open(&file.path)?.virtual_size();
    Ok((map, size))
}

/// The bytes that differ between two instants, cut to `size`. `live` is the map of the active layer, needed where the
/// path goes through it.
pub(crate) fn between(
    vmms: &Vmms,
    disk: &Disk,
    from: Uuid,
    to: Uuid,
    size: u64,
    live: Option<&ChangeMap>,
) -> Result<ChangeMap> {
    let tree = &disk.layers;
    let lost = || fault!(TrackingLost, disk.path.display(), guid(from));
    if let Some(doubt) = tree.doubt(from, to) {
        return Err(lost().caused_by(fault!(Block, doubt.reason)));
    }
    let path = tree.path_between(from, to).ok_or_else(lost)?;
    let mut out = ChangeMap::new();
    for node in path {
        if node == tree.active {
            out = out.union(live.ok_or_else(lost)?);
        } else {
            out = out.union(&load(vmms, disk, node)?.0);
        }
    }
    let from_size = tree.nodes.get(&from).map_or(0, |n| n.size);
    if from_size < size {
        out = out.union(&ChangeMap::of(from_size..size));
    }
    Ok(out.clip(size))
}
