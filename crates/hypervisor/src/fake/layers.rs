//! Layers of a fake: names in memory, and files where there are images.

use std::path::PathBuf;
use std::time::Duration;

use super::machine::FakeMachine;
use super::script::locked;
use crate::block::{
    BlockState, CommitOutcome, CommitSpec, DriveState, FreezeReport, JobControl, NewOverlay,
    NodeState, PreparedLayers, Progress,
};
use crate::config::{DriveConfig, ImageFormat, LayerFile};
use crate::error::{Error, Result};
use crate::image::NewImage;

/// Size of a fake disk whose file is not there to ask.
const DISK_BYTES: u64 = 64 << 20;

pub(super) fn drive_state(drive: &DriveConfig) -> DriveState {
    DriveState {
        id: drive.id.clone(),
        chain: drive.chain.iter().map(node_state).collect(),
        tray_open: false,
    }
}

pub(super) fn node_state(layer: &LayerFile) -> NodeState {
    NodeState {
        node_name: layer.node_name.clone(),
        path: Some(layer.path.clone()),
        format: Some(layer.format),
        size: DISK_BYTES,
        read_only: false,
    }
}

pub(super) fn drive_mut<'a>(block: &'a mut BlockState, id: &str) -> Result<&'a mut DriveState> {
    block
        .drives
        .iter_mut()
        .find(|drive| drive.id == id)
        .ok_or_else(|| Error::not_found(format!("drive `{id}`")))
}

fn drive<'a>(block: &'a BlockState, id: &str) -> Result<&'a DriveState> {
    block
        .drive(id)
        .ok_or_else(|| Error::not_found(format!("drive `{id}`")))
}

/// How many of the overlays are on top already: none or all, or something is wrong.
fn all_on_top(block: &BlockState, overlays: &[NewOverlay]) -> Result<bool> {
    let mut count = 0;
    for overlay in overlays {
        let active = drive(block, &overlay.drive_id)?.active();
        count += usize::from(active.is_some_and(|node| node.node_name == overlay.overlay_node));
    }
    match count {
        0 => Ok(false),
        all if all == overlays.len() => Ok(true),
        _ => Err(Error::conflict(
            "some of the new layers are on top already, others are not",
        )),
    }
}

pub(super) async fn prepare(
    machine: &FakeMachine,
    overlays: &[NewOverlay],
) -> Result<PreparedLayers> {
    let block = locked(&machine.state).block.clone();
    let already_marked = all_on_top(&block, overlays)?;
    let mut prepared = PreparedLayers {
        overlays: overlays.to_vec(),
        frozen: Vec::new(),
        already_marked,
    };
    for overlay in overlays {
        let chain = &drive(&block, &overlay.drive_id)?.chain;
        let beneath = chain.iter().rev().nth(usize::from(already_marked));
        let beneath = beneath.ok_or_else(|| {
            Error::conflict(format!("drive `{}` has no medium", overlay.drive_id))
        })?;
        prepared.frozen.push(beneath.node_name.clone());
        let loose = block
            .loose_nodes
            .iter()
            .any(|node| node.node_name == overlay.overlay_node);
        if !already_marked && !loose {
            add(machine, overlay, beneath).await?;
        }
    }
    Ok(prepared)
}

async fn add(machine: &FakeMachine, overlay: &NewOverlay, beneath: &NodeState) -> Result<()> {
    let mut size = overlay.size.unwrap_or(beneath.size);
    if let (Some(images), Some(below)) = (&machine.images, &beneath.path) {
        let format = beneath.format.unwrap_or(ImageFormat::Qcow2);
        if overlay.size.is_none() {
            size = images
                .info_as(below, Some(format), false)
                .await?
                .virtual_size;
        }
        let name = crate::layers::backing_name(overlay, below)?;
        let image = NewImage {
            owner: overlay.owner.clone(),
            ..NewImage::overlay(&overlay.overlay_path, name, format, size)
        };
        images.create_or_reuse_overlay(&image).await?;
    }
    let layer = LayerFile::new(
        &overlay.overlay_node,
        &overlay.overlay_path,
        ImageFormat::Qcow2,
    );
    locked(&machine.state).block.loose_nodes.push(NodeState {
        size,
        ..node_state(&layer)
    });
    Ok(())
}

pub(super) fn mark(machine: &FakeMachine, prepared: &PreparedLayers) -> Result<FreezeReport> {
    let mut state = locked(&machine.state);
    let already = all_on_top(&state.block, &prepared.overlays)?;
    // All or none: the copy takes the place of the original only at the end.
    let mut block = state.block.clone();
    for overlay in prepared.overlays.iter().filter(|_| !already) {
        let at = block
            .loose_nodes
            .iter()
            .position(|node| node.node_name == overlay.overlay_node);
        let at = at.ok_or_else(|| Error::Qmp {
            command: "transaction".into(),
            class: "GenericError".into(),
            desc: format!(
                "Cannot find device={0} nor node-name={0}",
                overlay.overlay_node
            ),
        })?;
        let node = block.loose_nodes.remove(at);
        let drive = drive_mut(&mut block, &overlay.drive_id)?;
        drive
            .chain
            .iter_mut()
            .for_each(|below| below.read_only = true);
        drive.chain.push(node);
    }
    state.block = block;
    Ok(FreezeReport {
        paused_for: Duration::ZERO,
        instant: machine.clock.now(),
        already,
    })
}

pub(super) fn discard(machine: &FakeMachine, prepared: &PreparedLayers) -> Result<()> {
    for overlay in &prepared.overlays {
        let loose = {
            let nodes = &mut locked(&machine.state).block.loose_nodes;
            let before = nodes.len();
            nodes.retain(|node| node.node_name != overlay.overlay_node);
            before != nodes.len()
        };
        if loose && machine.images.is_some() {
            std::fs::remove_file(&overlay.overlay_path)
                .map_err(|source| Error::io("remove", &overlay.overlay_path, source))?;
        }
    }
    Ok(())
}

pub(super) async fn commit(
    machine: &FakeMachine,
    spec: &CommitSpec,
    control: &JobControl,
) -> Result<CommitOutcome> {
    control.report(Progress {
        done: 0,
        total: DISK_BYTES,
    });
    if control.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let chain = drive(&locked(&machine.state).block, &spec.drive_id)?
        .chain
        .clone();
    let place = |name: &str| chain.iter().position(|node| node.node_name == name);
    let base = place(&spec.base_node)
        .ok_or_else(|| Error::not_found(format!("layer `{}`", spec.base_node)))?;
    let Some(top) = place(&spec.top_node) else {
        return Ok(CommitOutcome::AlreadyDone);
    };
    if top <= base {
        return Err(Error::conflict(format!(
            "layer `{}` does not lie above `{}`",
            spec.top_node, spec.base_node
        )));
    }
    if let Some(images) = &machine.images {
        let layer = |node: &NodeState| {
            Some(LayerFile::new(
                &node.node_name,
                node.path.clone()?,
                node.format?,
            ))
        };
        let layers: Vec<LayerFile> = chain.iter().filter_map(layer).collect();
        images
            .fold(&layers, &spec.base_node, &spec.top_node, control)
            .await?;
    }
    let mut state = locked(&machine.state);
    let chain = &mut drive_mut(&mut state.block, &spec.drive_id)?.chain;
    let gone: Vec<NodeState> = chain.drain(base + 1..=top).collect();
    if let Some(active) = chain.last_mut() {
        active.read_only = false;
    }
    state.block.loose_nodes.extend(gone);
    control.report(Progress {
        done: DISK_BYTES,
        total: DISK_BYTES,
    });
    Ok(CommitOutcome::Committed)
}

pub(super) fn drop_merged(machine: &FakeMachine, files: &[PathBuf]) {
    let merged = |node: &NodeState| node.path.as_ref().is_some_and(|p| files.contains(p));
    let nodes = &mut locked(&machine.state).block.loose_nodes;
    nodes.retain(|node| !merged(node));
}
